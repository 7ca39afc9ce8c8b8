#!/usr/bin/env python3
"""Mischief on the plain side of a plain port.

    plain-side.py flood INTERFACE COUNT    broadcasts from COUNT made-up sources
    plain-side.py reflect INTERFACE ID     sends the next loop probe of that member back, once
"""
import socket
import struct
import sys
import time

what, interface = sys.argv[1:3]
ETH_P_ALL = 3
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
raw.bind((interface, 0))

if what == "flood":
    payload = bytes.fromhex("88b7") + b"made up".ljust(46, b"\0")
    for number in range(int(sys.argv[3])):
        raw.send(b"\xff" * 6 + b"\x0a\xff" + struct.pack("!I", number) + payload)
        # Some 20,000 a second: as fast as storm control lets through, and a bridge learns.
        if number % 200 == 0:
            time.sleep(0.01)
    print("sent")
else:
    # After 14 bytes of Ethernet and 24 of the probe (docs/protocol.md): the length of the id, the id.
    member = sys.argv[3].encode()
    its_id = bytes([len(member)]) + member
    raw.settimeout(5)
    while True:
        frame, (_, _, kind, _, _) = raw.recvfrom(2048)
        if kind == socket.PACKET_OUTGOING or frame[12:14] != b"\x88\xb6":
            continue
        if frame[38:].startswith(its_id):
            raw.send(frame)
            print("reflected")
            break
