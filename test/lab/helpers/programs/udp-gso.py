#!/usr/bin/env python3
"""UDP with segmentation offload, which Node.js has not: one send() is a super-frame of datagrams.

    udp-gso.py serve PORT                          ends when the sender says so; prints JSON
    udp-gso.py send ADDRESS PORT SIZE COUNT        COUNT super-frames of datagrams of SIZE bytes

Each datagram has the numbers of its super-frame and of itself and bytes that follow from both, so
what arrives can be judged by itself. A super-frame that is not acknowledged is sent again.
"""
import hashlib
import json
import socket
import struct
import sys

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
HEAD = struct.Struct("!IHH")  # super-frame, place, datagrams in it
END = 0xFFFFFFFF


def datagram(number, place, count, size):
    head = HEAD.pack(number, place, count)
    return head + hashlib.shake_128(head).digest(size - len(head))


def serve(port):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        sock.bind(("::", port))
        print("ready", file=sys.stderr, flush=True)
        result = {"datagrams": 0, "altered": 0, "joined": 0}
        seen = {}
        while True:
            data, extra, _, sender = sock.recvmsg(65536, 64)
            size = len(data)
            for level, kind, value in extra:
                if level == SOL_UDP and kind == UDP_GRO:
                    size = struct.unpack("=i", value[:4])[0]
            if size < len(data):
                result["joined"] += 1
            for at in range(0, len(data), size):
                one = data[at : at + size]
                number, place, count = HEAD.unpack(one[: HEAD.size])
                if number == END:
                    print(json.dumps(result))
                    return
                if one != datagram(number, place, count, len(one)):
                    result["altered"] += 1
                    continue
                result["datagrams"] += 1
                places = seen.setdefault(number, set())
                places.add(place)
                if len(places) == count:
                    sock.sendto(struct.pack("!I", number), sender)


def send(address, port, size, count):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, size)
        sock.settimeout(1)
        datagrams = min(60, 60000 // size)
        for number in range(count):
            last = size - number % (size - HEAD.size)  # The last one may be shorter.
            parts = [datagram(number, i, datagrams, size if i + 1 < datagrams else last) for i in range(datagrams)]
            for _ in range(30):
                sock.send(b"".join(parts))
                try:
                    while struct.unpack("!I", sock.recv(4))[0] != number:
                        pass
                    break
                except TimeoutError:
                    continue
            else:
                sys.exit(f"super-frame {number} was never acknowledged")
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
        try:
            for _ in range(3):
                sock.send(HEAD.pack(END, 0, 0))
        except ConnectionRefusedError:
            pass  # The first one arrived: nobody listens any more.
        print(json.dumps({"datagrams": datagrams * count}))


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
