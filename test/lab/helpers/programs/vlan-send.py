#!/usr/bin/env python3
"""Sends tagged super-frames as a kernel with VLANs would hand them to its device.

    vlan-send.py INTERFACE SOURCE-MAC DESTINATION-MAC COUNT SIZE TAG...

COUNT super-frames of each of TCP and UDP over IPv4 and IPv6, cut by whoever carries them into
segments of SIZE bytes of payload. TAG is TPID:TCI in hex, the outer one first. Prints, for each kind,
how many segments a wire must carry and the SHA-256 of their payload. An AF_PACKET socket with a vnet header
needs no VLAN support in the kernel.
"""
import hashlib
import json
import random
import socket
import struct
import sys
import time

interface, source, destination, count, size = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
tags = b"".join(bytes.fromhex(tag.replace(":", "")) for tag in sys.argv[6:])
ethernet = bytes.fromhex(destination.replace(":", "")) + bytes.fromhex(source.replace(":", "")) + tags
dice = random.Random(7)
NEEDS_CSUM, TCP4, TCP6, UDP = 1, 1, 4, 5


def total(data):
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def super_frame(protocol, version, payload, sequence, number):
    if protocol == 6:
        head = struct.pack("!HHIIBBHHH", 4444, 7, sequence, 1, 0x50, 0x18, 500, 0, 0)
    else:
        head = struct.pack("!HHHH", 4444, 7, 8 + len(payload), 0)
    length = len(head) + len(payload)
    if version == 4:
        addresses = socket.inet_aton("198.51.100.11") + socket.inet_aton("198.51.100.50")
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, number, 0, 64, protocol, 0) + addresses
        ip = ip[:10] + struct.pack("!H", ~total(ip) & 0xFFFF) + ip[12:]
        ethertype = 0x0800
    else:
        addresses = socket.inet_pton(socket.AF_INET6, "2001:db8:51::11")
        addresses += socket.inet_pton(socket.AF_INET6, "2001:db8:51::50")
        ip = struct.pack("!IHBB", 0x60000000, length, protocol, 64) + addresses
        ethertype = 0x86DD
    field = 16 if protocol == 6 else 6
    pseudo = total(addresses + struct.pack("!HH", protocol, length))
    head = head[:field] + struct.pack("!H", pseudo) + head[field + 2 :]
    front = ethernet + struct.pack("!H", ethertype) + ip
    kind = UDP if protocol == 17 else TCP4 if version == 4 else TCP6
    vnet = struct.pack("=BBHHHH", NEEDS_CSUM, kind, len(front) + len(head), size, len(front), field)
    return vnet + front + head + payload


result = {}
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
    sock.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
    sock.bind((interface, 0))
    for protocol in (6, 17):
        for version in (4, 6):
            digest, segments, sequence = hashlib.sha256(), 0, 1000
            for _ in range(count):
                payload = dice.randbytes(dice.randrange(2 * size, 40 * size))
                sock.send(super_frame(protocol, version, payload, sequence, segments))
                digest.update(payload)
                segments += -(-len(payload) // size)
                # Nothing acknowledges: no faster than the segments behind find room in queues.
                time.sleep(0.01)
                sequence += len(payload)
            name = ("tcp" if protocol == 6 else "udp") + str(version)
            result[name] = {"segments": segments, "sha256": digest.hexdigest()}
print(json.dumps(result))
