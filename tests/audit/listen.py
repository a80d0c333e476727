"""A process of this name that listens at the places that it is told, answers, and says "ready" when it does.

    listen.py NAME user:UID [dev:PATH]... [PLACE]...

PLACE is KIND:PORT or KIND:ADDRESS:PORT, with @IFACE at its end for SO_BINDTODEVICE. KIND is tcp, udp, udplite, mptcp (IPv4), tcp6, udp6
(IPv6 only), both (TCP of IPv6 and IPv4), or shared (TCP with SO_REUSEPORT); and "connected" and "unbound" for sockets that do not
listen. It ends when its standard input does.
"""

import os
import selectors
import socket
import sys

IPPROTO_UDPLITE, IPPROTO_MPTCP = 136, 262
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {
    "tcp": (socket.AF_INET, STREAM, 0),
    "shared": (socket.AF_INET, STREAM, 0),
    "mptcp": (socket.AF_INET, STREAM, IPPROTO_MPTCP),
    "tcp6": (socket.AF_INET6, STREAM, 0),
    "both": (socket.AF_INET6, STREAM, 0),
    "udp": (socket.AF_INET, DATAGRAM, 0),
    "udp6": (socket.AF_INET6, DATAGRAM, 0),
    "udplite": (socket.AF_INET, DATAGRAM, IPPROTO_UDPLITE),
}


def listen(place):
    place, _, device = place.partition("@")
    kind, _, rest = place.partition(":")
    address, _, port = rest.rpartition(":")
    family, form, protocol = KINDS[kind]
    opened = socket.socket(family, form, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == "shared":
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, kind != "both")
    if device:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    opened.bind((address or ("::" if family == socket.AF_INET6 else "0.0.0.0"), int(port)))
    if form == STREAM:
        opened.listen(64)
    opened.setblocking(False)
    return opened


def silent(kind):
    if kind == "unbound":
        return [socket.socket(socket.AF_INET, STREAM), socket.socket(socket.AF_INET, DATAGRAM)]
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    server.close()
    datagrams = socket.socket(socket.AF_INET, DATAGRAM)
    datagrams.connect(("127.0.0.1", 9))
    return [client, accepted, datagrams]


name, wanted = sys.argv[1], sys.argv[2:]
with open("/proc/self/comm", "w") as comm:
    comm.write(name)
kept, selector = [], selectors.DefaultSelector()
selector.register(sys.stdin, selectors.EVENT_READ)
for one in wanted:
    if one.startswith("user:"):
        os.setuid(int(one[5:]))
    elif one.startswith("dev:"):
        kept.append(os.open(one[4:], os.O_RDONLY))
    elif one in ("connected", "unbound"):
        kept.extend(silent(one))
    else:
        selector.register(listen(one), selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is sys.stdin:
            sys.exit()
        try:
            if key.fileobj.type == STREAM:
                key.fileobj.accept()[0].close()
            else:
                data, peer = key.fileobj.recvfrom(2048)
                key.fileobj.sendto(data, peer)
        except OSError:
            # The other side has gone, or another process of a shared port was quicker.
            pass
