#!/usr/bin/env python3
"""Sends Ethernet frames as they are, whatever addresses and tags they have.

    raw-send.py INTERFACE FRAME-AS-HEX...
"""
import socket
import sys

with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
    sock.bind((sys.argv[1], 0))
    for frame in sys.argv[2:]:
        sock.send(bytes.fromhex(frame))
