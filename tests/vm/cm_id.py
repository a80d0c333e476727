#!/usr/bin/env python3
"""Prints what the kernel answers to RDMA_NLDEV_CMD_RES_CM_ID_GET for one device: a line of hexadecimal for each datagram."""
import socket
import struct
import sys

NETLINK_RDMA = 20
RDMA_NL_NLDEV = 5
RES_CM_ID_GET = 11
ATTR_DEV_INDEX = 1
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_RDMA)
netlink.bind((0, 0))
attribute = struct.pack("=HHI", 8, ATTR_DEV_INDEX, int(sys.argv[1]))
kind = (RDMA_NL_NLDEV << 10) + RES_CM_ID_GET
netlink.send(struct.pack("=IHHII", 16 + len(attribute), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + attribute)
done = False
while not done:
    datagram = netlink.recv(1 << 20)
    print(datagram.hex())
    offset = 0
    while offset + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, offset)
        done = done or kind in (NLMSG_ERROR, NLMSG_DONE)
        offset += (length + 3) & ~3
