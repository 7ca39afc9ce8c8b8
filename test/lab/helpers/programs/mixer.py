#!/usr/bin/env python3
"""A bad line between two interfaces: loses, repeats and reorders frames, each way.

    mixer.py INTERFACE INTERFACE LOST REPEATED LATE      (per 1,000 frames)

A late frame leaves behind up to 40 later ones, or after 5 ms. The kernel's own netem is not in
every kernel. Prints what it did when it is ended.
"""
import json
import random
import select
import signal
import socket
import struct
import sys
import time

names = sys.argv[1:3]
lost, repeated, late = (int(text) for text in sys.argv[3:6])
chance = random.Random(20)
done = {"frames": 0, "lost": 0, "repeated": 0, "late": 0}


def end(*_):
    print(json.dumps(done), flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
ends = []
for name in names:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    one.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    one.bind((name, 0))
    # SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC: frames that are not for this host.
    one.setsockopt(263, 1, struct.pack("IHH8s", socket.if_nametoindex(name), 1, 0, b""))
    ends.append(one)
OUTGOING = 4
waiting = [[], []]


def leave(way, frame):
    try:
        ends[1 - way].send(frame)
    except OSError:
        done["lost"] += 1


print("ready", file=sys.stderr, flush=True)
while True:
    readable, _, _ = select.select(ends, [], [], 0.005)
    for one in readable:
        way = ends.index(one)
        frame, address = one.recvfrom(65536)
        if address[2] == OUTGOING:
            continue
        done["frames"] += 1
        dice = chance.randrange(1000)
        if dice < lost:
            done["lost"] += 1
            continue
        if dice < lost + late:
            done["late"] += 1
            waiting[way].append([chance.randrange(1, 40), time.monotonic(), frame])
            continue
        leave(way, frame)
        if dice < lost + late + repeated:
            done["repeated"] += 1
            leave(way, frame)
        for item in waiting[way]:
            item[0] -= 1
    now = time.monotonic()
    for way in (0, 1):
        ready = [item for item in waiting[way] if item[0] <= 0 or now - item[1] > 0.005]
        if ready:
            waiting[way] = [item for item in waiting[way] if item not in ready]
            for item in ready:
                leave(way, item[2])
