#!/usr/bin/env python3
"""A stream of numbered datagrams, so that each one that is lost or comes twice is known.

    numbered.py send ADDRESS PORT PER-SECOND BYTES
    numbered.py receive ADDRESS PORT

The receiver writes a line of JSON twenty times a second: datagrams so far, highest number,
repetitions, datagrams that came behind a later one, and the longest silence since the last line, in ms. At SIGTERM
the sender tells how many it sent, the receiver which were missing below the highest (as ranges) and every silence of
over 100 ms. ADDRESS may be a broadcast address.
"""
import json
import os
import signal
import socket
import struct
import sys
import time

verb, address, port = sys.argv[1:4]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
one = socket.socket(family, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
SILENCE = 0.1


def say(record):
    os.write(1, (json.dumps(record) + "\n").encode())


def send(rate, size):
    sent = 0
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    padding = bytes(size - 8)
    begin = time.monotonic()
    while not ending:
        due = int((time.monotonic() - begin) * rate)
        if due - sent > rate // 10:
            # Held up, by a busy machine or a full queue: that time is left out, not made up for by a burst.
            begin += (due - sent) / rate
            due = sent
        while sent < due:
            try:
                one.sendto(struct.pack("!Q", sent) + padding, (address, int(port)))
            except OSError:
                pass  # no route, or no neighbour: it counts as sent, and will be missing
            sent += 1
        time.sleep(0.002)
    say({"sent": sent})


def ranges(numbers, newest):
    found = []
    for number in range(newest + 1):
        if number in numbers:
            continue
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def receive():
    one.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    one.bind((address, int(port)))
    one.settimeout(0.05)
    numbers = set()
    state = {"received": 0, "newest": -1, "repeated": 0, "late": 0}
    silences = []
    ending = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    last = None
    told = time.monotonic()
    longest = 0.0
    say(state)
    while not ending:
        now = time.monotonic()
        if now - told > 0.05:
            quiet = longest if last is None else max(longest, now - last)
            say({**state, "silentMs": round(1000 * quiet)})
            told = now
            longest = 0.0
        try:
            datagram = one.recv(65536)
        except TimeoutError:
            continue
        now = time.monotonic()
        (number,) = struct.unpack_from("!Q", datagram)
        if number in numbers:
            state["repeated"] += 1
            continue
        numbers.add(number)
        if last is not None:
            longest = max(longest, now - last)
            if now - last > SILENCE:
                silences.append([number, round(1000 * (now - last))])
        last = now
        state["received"] += 1
        if number < state["newest"]:
            state["late"] += 1
        state["newest"] = max(state["newest"], number)
    say({**state, "missing": ranges(numbers, state["newest"]), "silences": silences})


if verb == "send":
    send(int(sys.argv[4]), int(sys.argv[5]))
else:
    receive()
