#!/usr/bin/env python3
"""Asks a machine for answers, again and again, from before its link is up: `prober.py FILE`.

Each probe is one packet that begins something: an ICMP echo, a TCP SYN, a UDP datagram. An answer is whatever comes back for it, also
a reset or "port unreachable": a closed port answers as well as an open one, and earlier than any service could. What was asked and
answered so far is written to FILE, as a whole, ten times a second. Ends when FILE.stop is there, or after an hour.
"""

import errno
import json
import os
import select
import socket
import struct
import sys
import time

# What the policy of the tests allows, and what it denies.
ALLOWED, DENIED = 8443, 9999
ADDRESSES = {"v4": "10.9.0.1", "v6": "fd09::1"}
# Between two questions of one kind.
EVERY = 0.004
# A question without an answer after this time was not answered.
PATIENCE = 1.0
# So many times of answers and of silences are kept for each probe.
KEPT = 2000


class Probe:
    """One kind of question."""

    def __init__(self, name):
        self.name = name
        self.asked = self.answered = self.unanswered = 0
        self.answers, self.silences = [], []

    def hears(self, when):
        self.answered += 1
        if len(self.answers) < KEPT:
            self.answers.append(when)

    def misses(self, when):
        self.unanswered += 1
        if len(self.silences) < KEPT:
            self.silences.append(when)

    def record(self):
        names = ("asked", "answered", "unanswered", "answers", "silences")
        return {name: getattr(self, name) for name in names}


class Datagrams(Probe):
    """UDP to a port where nobody listens: the kernel answers that it is unreachable."""

    def __init__(self, family, port):
        super().__init__(f"udp-{port}-{family}")
        kind = socket.AF_INET if family == "v4" else socket.AF_INET6
        self.socket = socket.socket(kind, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.to = (ADDRESSES[family], port)
        self.connected = False

    def ask(self):
        try:
            if not self.connected:
                self.socket.connect(self.to)
                self.connected = True
            self.hear()
            self.socket.send(b"?")
            self.asked += 1
        except OSError as error:
            self.told(error)

    def hear(self):
        try:
            self.socket.recv(100)
            self.hears(time.time())
        except BlockingIOError:
            pass
        except OSError as error:
            self.told(error)

    def told(self, error):
        # Whatever else there is to say (no route yet, nobody at home) comes from our own kernel.
        if error.errno == errno.ECONNREFUSED:
            self.hears(time.time())


class Connections(Probe):
    """TCP to a port: accepted or reset."""

    def __init__(self, family, port):
        super().__init__(f"tcp-{port}-{family}")
        self.kind = socket.AF_INET if family == "v4" else socket.AF_INET6
        self.to = (ADDRESSES[family], port)
        self.open = {}
        self.poll = select.poll()

    def ask(self):
        self.hear()
        if len(self.open) >= 400:
            return
        attempt = socket.socket(self.kind, socket.SOCK_STREAM)
        attempt.setblocking(False)
        # Gone at once when closed, so that ports do not run out.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        code = attempt.connect_ex(self.to)
        if code == errno.EINPROGRESS:
            self.asked += 1
            self.open[attempt.fileno()] = (attempt, time.time())
            self.poll.register(attempt, select.POLLOUT)
        else:
            attempt.close()

    def hear(self):
        now = time.time()
        for number, _ in self.poll.poll(0):
            attempt, begun = self.open.pop(number)
            self.poll.unregister(number)
            code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            attempt.close()
            if code in (0, errno.ECONNREFUSED, errno.ECONNRESET):
                self.hears(now)
            else:
                self.misses(begun)
        for number, (attempt, begun) in list(self.open.items()):
            if now - begun > PATIENCE:
                self.poll.unregister(number)
                attempt.close()
                del self.open[number]
                self.misses(begun)


class Echoes(Probe):
    """ICMP and ICMPv6 echo requests."""

    def __init__(self, family):
        super().__init__(f"echo-{family}")
        self.v4 = family == "v4"
        kind, protocol = (socket.AF_INET, 1) if self.v4 else (socket.AF_INET6, 58)
        self.socket = socket.socket(kind, socket.SOCK_RAW, protocol)
        self.socket.setblocking(False)
        self.to = (ADDRESSES[family], 0)
        self.number = 0

    def ask(self):
        self.hear()
        self.number = (self.number + 1) % 0x10000
        request = 8 if self.v4 else 128
        packet = struct.pack("!BBHHH", request, 0, 0, 0x4E57, self.number)
        if self.v4:
            words = struct.unpack("!HHHH", packet)
            total = sum(words)
            total = (total & 0xFFFF) + (total >> 16)
            packet = struct.pack("!BBHHH", request, 0, ~total & 0xFFFF, 0x4E57, self.number)
        try:
            self.socket.sendto(packet, self.to)
            self.asked += 1
        except OSError:
            pass

    def hear(self):
        while True:
            try:
                data, sender = self.socket.recvfrom(200)
            except OSError:
                return
            start = (data[0] & 15) * 4 if self.v4 else 0
            if sender[0] == self.to[0] and len(data) >= start + 8 and data[start] in (0, 129) and data[start + 4 : start + 6] == b"NW":
                self.hears(time.time())


def main():
    file = sys.argv[1]
    probes = []
    for family in ADDRESSES:
        probes += [Connections(family, ALLOWED), Connections(family, DENIED), Datagrams(family, DENIED), Echoes(family)]
    begun = written = time.time()
    while not os.path.exists(file + ".stop") and time.time() - begun < 3600:
        round_begun = time.time()
        for probe in probes:
            probe.ask()
        if round_begun - written > 0.1:
            with open(file + ".new", "w", encoding="utf-8") as out:
                json.dump({"at": round_begun, "probes": {probe.name: probe.record() for probe in probes}}, out)
            os.replace(file + ".new", file)
            written = round_begun
        time.sleep(max(0.0, EVERY - (time.time() - round_begun)))


if __name__ == "__main__":
    main()
