#!/usr/bin/env python3
"""Floods a UDP port with frames that look sealed, each with a sender index and a source of its own.

    flood.py INTERFACE DESTINATION-MAC DESTINATION-IP PORT FRAMES-PER-SECOND

Sources are 203.0.113.0/24, as many as it has. Ends at SIGTERM and tells what it sent.
"""
import json
import os
import random
import signal
import socket
import struct
import sys
import time

interface, mac, target, port, rate = sys.argv[1:6]
chance = random.Random(7)
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
out.bind((interface, 0))
ethernet = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("02005e0053660800")
sent = 0
begin = time.monotonic()


def end(*_):
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - begin}), flush=True)
    os._exit(0)


def checksum(header):
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def frame():
    shim = struct.pack("!BBHIQ", 0x11, 0, chance.getrandbits(16), 1 + chance.getrandbits(31), chance.getrandbits(40))
    sealed = shim + chance.randbytes(100)
    udp = struct.pack("!HHHH", 7000, int(port), 8 + len(sealed), 0) + sealed
    source = bytes([203, 0, 113, 1 + chance.randrange(254)])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + source + socket.inet_aton(target)
    return ethernet + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:] + udp


signal.signal(signal.SIGTERM, end)
print("ready", file=sys.stderr, flush=True)
while True:
    due = int((time.monotonic() - begin) * int(rate))
    while sent < due:
        out.send(frame())
        sent += 1
    time.sleep(0.002)
