"""Throw-away network namespaces: builds the simulated network with `ip`, and takes it away again.

Only namespaces named nodewall-demo-PID-* are touched, and links are made from inside them, so the machine's own namespace
never sees any. The names carry the process that made them: what a killed demonstration left is recognised by that.
"""

import contextlib
import os
import re
import signal
import subprocess
import time

from world import HOSTS, NODE_HOST, NODE_INTERFACES, ROUTER_HOST, address, prefix

PREFIX = "nodewall-demo-"
# The namespace with the switches.
WIRE = "wire"
# Segments with more than two ends have a switch; the others are one cable.
SWITCHED = ("mgmt", "rail0", "rail1")


class NetworkError(Exception):
    """A namespace or a link could not be made."""


def namespace(name: str) -> str:
    """The namespace of a host of this run."""
    return f"{PREFIX}{os.getpid()}-{name}"


def ip(*arguments: str, commands: str = "") -> str:
    """Runs `ip`; with `commands`, as a batch."""
    done = subprocess.run(["ip", *arguments], input=commands, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def existing() -> list[str]:
    """All namespaces of demonstrations, ours and others'."""
    lines = ip("netns", "list").splitlines()
    return [line.split()[0] for line in lines if line.startswith(PREFIX)]


def addresses(segment: str, host: int) -> list[str]:
    """Both addresses with their prefix lengths, as `ip address add` wants them."""
    return [f"{address(segment, host, 4)}/24", f"{address(segment, host, 6)}/64 nodad"]


def build() -> None:
    """Makes all namespaces, links, addresses and routes of this run."""
    for name in (WIRE, "node", *(host.name for host in HOSTS)):
        ip("netns", "add", namespace(name))
    wire, inside = [], {name: ["link set lo up"] for name in ("node", *(host.name for host in HOSTS))}
    for segment in SWITCHED:
        wire.append(f"link add br-{segment} type bridge stp_state 0 mcast_snooping 0")
        wire.append(f"link set br-{segment} up")
    for entry in addresses("mgmt", ROUTER_HOST):
        wire.append(f"address add {entry} dev br-mgmt")

    ends = [("node", interface, segment, NODE_HOST) for interface, segment in NODE_INTERFACES.items()]
    for host in HOSTS:
        ends += [(host.name, segment, segment, number) for segment, number in host.links.items()]
    for count, (name, interface, segment, number) in enumerate(ends):
        if segment in SWITCHED:
            port = f"port{count}"
            wire.append(f"link add {port} type veth peer name {interface} netns {namespace(name)}")
            wire.append(f"link set {port} master br-{segment}")
            wire.append(f"link set {port} up")
        elif name == "node":
            far = next(host for host in HOSTS if segment in host.links)
            wire.append(
                f"link add {interface} netns {namespace('node')} type veth peer name {segment} netns {namespace(far.name)}"
            )
        for entry in addresses(segment, number):
            inside[name].append(f"address add {entry} dev {interface}")
        inside[name].append(f"link set {interface} up")
    for name, lines in routes().items():
        inside[name] += lines

    ip("-n", namespace(WIRE), "-batch", "-", commands="\n".join(wire))
    for name, lines in inside.items():
        ip("-n", namespace(name), "-batch", "-", commands="\n".join(lines))


def routes() -> dict[str, list[str]]:
    """The node's default route; and for hosts beside the management network ways to the node's other addresses, because
    Linux answers for every address of its own on every interface, and intruders know that."""
    lines = {
        "node": [f"route add default via {address('mgmt', ROUTER_HOST, family)}" for family in (4, 6)],
    }
    for host in HOSTS:
        near = next(iter(host.links))
        for segment in host.doors:
            if segment not in host.links:
                lines.setdefault(host.name, []).extend(
                    f"route add {prefix(segment, family)} via {address(near, NODE_HOST, family)}" for family in (4, 6)
                )
    return lines


def remove() -> list[str]:
    """Removes every namespace of this run, what still runs in them included; what could not be removed."""
    mine = f"{PREFIX}{os.getpid()}-"
    return [problem for name in existing() if name.startswith(mine) for problem in remove_one(name)]


def remove_leftovers() -> list[str]:
    """Removes namespaces of demonstrations that were killed; their names."""
    gone = []
    for name in existing():
        made_by = re.fullmatch(rf"{PREFIX}(\d+)-\w+", name)
        if made_by and int(made_by[1]) != os.getpid() and not alive(int(made_by[1])):
            remove_one(name)
            gone.append(name)
    return gone


def alive(process: int) -> bool:
    """Whether a process of this id exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_one(name: str) -> list[str]:
    """Ends what runs in a namespace and deletes its name; the problems."""
    for round_signal in (signal.SIGTERM, signal.SIGKILL):
        for process in processes_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, round_signal)
        deadline = time.monotonic() + 1.0
        while processes_in(name) and time.monotonic() < deadline:
            time.sleep(0.02)
    try:
        ip("netns", "delete", name)
    except NetworkError as error:
        return [str(error)]
    return []


def processes_in(name: str) -> list[int]:
    """What runs in a namespace; nothing in one that was interrupted while it was made."""
    try:
        return [int(process) for process in ip("netns", "pids", name).split()]
    except NetworkError:
        return []
