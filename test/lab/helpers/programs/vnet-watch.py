#!/usr/bin/env python3
"""What comes in at a TAP, with the vnet header under which the kernel knows it.

    vnet-watch.py INTERFACE

Prints one line of JSON for each packet: the fields of its virtio_net_hdr, its length, and its
first 200 bytes as hex.
"""
import json
import socket
import struct
import sys

PACKET_OUTGOING = 4
SOL_PACKET, PACKET_VNET_HDR = 263, 15
one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
one.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
one.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
one.bind((sys.argv[1], 3))
print("ready", flush=True)
while True:
    packet, address = one.recvfrom(70000)
    if address[2] == PACKET_OUTGOING:
        continue
    flags, gso_type, header, size, start, offset = struct.unpack_from("<BBHHHH", packet)
    frame = packet[10:]
    seen = {
        "flags": flags,
        "gsoType": gso_type,
        "headerLength": header,
        "gsoSize": size,
        "checksumStart": start,
        "checksumOffset": offset,
        "length": len(frame),
        "begin": frame[:200].hex(),
    }
    print(json.dumps(seen), flush=True)
