"""What runs inside a namespace of the demo: tiny listeners, or a prober that answers requests on its standard input.

Both end when their standard input closes, so that none outlives the demo, whatever happens to it."""

import errno
import itertools
import json
import os
import select
import socket
import struct
import sys
import time

# Python's socket module does not have it on every system (linux/socket.h).
SOL_RAW = 255
# Every echo request has an identifier of its own, or conntrack would take a later one for part of an established flow.
IDENTIFIERS = itertools.count(os.getpid())


def listen(ports):
    """Accepts and closes on every port, IPv4 and IPv6. Says "ready" when all listen."""
    listeners = []
    for port in ports:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", port))
        listener.listen(64)
        listeners.append(listener)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([sys.stdin, *listeners], [], [])
        for listener in ready:
            if listener is sys.stdin:
                if not os.read(0, 4096):
                    return
            else:
                listener.accept()[0].close()


def checksum(data):
    """RFC 1071, for data of even length."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address):
    """A socket that has sent an echo request to the address; it is readable when the answer is there."""
    version6 = ":" in address
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if version6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    probe = socket.socket(family, socket.SOCK_RAW, protocol)
    probe.setblocking(False)
    if version6:
        # ICMP6_FILTER (RFC 3542): block all but echo replies (129), or neighbour discovery would look like an answer.
        blocked = bytearray(b"\xff" * 32)
        blocked[129 // 32 * 4 + 129 % 32 // 8] &= ~(1 << 129 % 8) & 0xFF
        probe.setsockopt(socket.IPPROTO_ICMPV6, 1, bytes(blocked))
    else:
        # ICMP_FILTER (raw(7)): block all but echo replies (0).
        probe.setsockopt(SOL_RAW, 1, struct.pack("I", 0xFFFFFFFE))
    probe.connect((address, 0))
    request = struct.pack("!BBHHH", 128 if version6 else 8, 0, 0, next(IDENTIFIERS) & 0xFFFF, 1)
    if not version6:
        request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
    probe.send(request)
    return probe


def connect(address, port):
    """A socket that is writable when the connection is there or refused."""
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    probe.setblocking(False)
    error = probe.connect_ex((address, port))
    if error not in (0, errno.EINPROGRESS):
        raise OSError(error, os.strerror(error))
    return probe


def probe_all(targets, seconds):
    """Whether each (address, port) answers within the time; port 0 is a ping. All at once."""
    open_ = [False] * len(targets)
    reading, writing = {}, {}
    for index, (address, port) in enumerate(targets):
        try:
            if port == 0:
                reading[ping(address)] = index
            else:
                writing[connect(address, port)] = index
        except OSError:
            pass
    end = time.monotonic() + seconds
    while (reading or writing) and time.monotonic() < end:
        readable, writable, _ = select.select(list(reading), list(writing), [], max(0, end - time.monotonic()))
        for probe in readable:
            index = reading.pop(probe)
            try:
                open_[index] = bool(probe.recv(2048))
            except OSError:
                pass  # an ICMP error is no answer
            probe.close()
        for probe in writable:
            open_[writing.pop(probe)] = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            probe.close()
    for probe in [*reading, *writing]:
        probe.close()
    return open_


def answer():
    """Reads {"targets": [[address, port]...], "seconds": s} a line, answers a list of booleans a line."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(probe_all(request["targets"], request["seconds"])), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen([int(port) for port in sys.argv[2:]])
    else:
        answer()
