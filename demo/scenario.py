"""Who is on the demo's network, what the node listens on, and who shall reach what."""

from typing import NamedTuple


class Service(NamedTuple):
    """A column. Port 0 is a ping."""

    name: str
    port: int


class Caller(NamedTuple):
    """A row: a namespace, what it plays, and the node's addresses that it calls."""

    namespace: str
    name: str
    way: str
    targets: tuple


SERVICES = [
    Service("ssh", 22),
    Service("kubelet", 10250),
    Service("node-exp", 9100),
    Service("dcgm-exp", 9400),
    Service("dcgm", 5555),
    Service("ray", 8265),
    Service("nccl", 41873),
    Service("ping", 0),
]

MGMT = ("10.10.0.7", "fd00:10::7")
RAIL0 = ("10.20.0.7", "fd00:20::7")
RAIL1 = ("10.21.0.7", "fd00:21::7")
STORAGE = ("10.30.0.7", "fd00:30::7")
POD = ("10.244.7.1", "fd00:244::1")

CALLERS = [
    Caller("control", "control plane", "eno1", MGMT),
    Caller("monitoring", "monitoring", "eno1", MGMT),
    Caller("admin", "administrator", "eno1", MGMT),
    Caller("office", "anyone else", "eno1", MGMT),
    Caller("neighbour", "training neighbour", "rail0", RAIL0),
    Caller("neighbour", "training neighbour", "rail1", RAIL1),
    Caller("stranger", "stranger", "rail0", RAIL0),
    Caller("storage", "storage server", "stor0", STORAGE),
    Caller("pod", "compromised pod", "cali0", POD),
]

# namespace, interface, bridge, addresses
PLUGS = [
    ("node", "eno1", "mgmt", ["10.10.0.7/24", "fd00:10::7/64"]),
    ("node", "rail0", "rail0", ["10.20.0.7/24", "fd00:20::7/64"]),
    ("node", "rail1", "rail1", ["10.21.0.7/24", "fd00:21::7/64"]),
    ("node", "stor0", "stor", ["10.30.0.7/24", "fd00:30::7/64"]),
    ("control", "eth0", "mgmt", ["10.10.0.10/24", "fd00:10::10/64"]),
    ("monitoring", "eth0", "mgmt", ["10.10.0.20/24", "fd00:10::20/64"]),
    ("admin", "eth0", "mgmt", ["10.10.0.30/24", "fd00:10::30/64"]),
    ("office", "eth0", "mgmt", ["10.10.0.99/24", "fd00:10::99/64"]),
    ("neighbour", "rail0", "rail0", ["10.20.0.8/24", "fd00:20::8/64"]),
    ("neighbour", "rail1", "rail1", ["10.21.0.8/24", "fd00:21::8/64"]),
    ("stranger", "rail0", "rail0", ["10.20.0.66/24", "fd00:20::66/64"]),
    ("storage", "eth0", "stor", ["10.30.0.10/24", "fd00:30::10/64"]),
]

# config/examples/training-node/10-addresses.toml with this network's addresses, as its comments ask for.
ADDRESSES = """\
[[set]]
name = "admin"
cidrs = ["10.10.0.30", "fd00:10::30"]

[[set]]
name = "control-plane"
cidrs = ["10.10.0.10", "fd00:10::10"]

[[set]]
name = "cluster"
cidrs = ["10.10.0.7", "10.10.0.10", "fd00:10::7", "fd00:10::10"]

[[set]]
name = "monitoring"
cidrs = ["10.10.0.20", "fd00:10::20"]

[[set]]
name = "rail-peers"
cidrs = ["10.20.0.8", "10.21.0.8", "fd00:20::8", "fd00:21::8"]

[[set]]
name = "storage-servers"
cidrs = ["10.30.0.10", "fd00:30::10"]
"""

# config/nodewall.toml, edited: enforcing, and SSH's failsafe for the administrator only.
SETTINGS = """\
mode = "enforce"
socket = "{directory}/nodewall.sock"
kubeconfig = "{directory}/no-kubeconfig"

[[failsafe.entry]]
name = "ssh"
direction = "ingress"
ports = ["tcp/22"]
peers = {{ sets = ["admin"] }}
interfaces = "role in {{'mgmt', 'unknown'}}"
"""

# Written while the daemon runs: one neighbour is under suspicion, and the administrator has to look at Ray's dashboard.
CHANGE_NAME = "90-incident.toml"
CHANGE = """\
[[policy]]
name = "suspect-neighbour"
tier = "platform"
order = 10
interfaces = "role == 'rail'"
ingress = [{ action = "deny", from = { cidrs = ["10.20.0.8", "10.21.0.8", "fd00:20::8", "fd00:21::8"] } }]

[[policy]]
name = "look-at-ray"
order = 10
interfaces = "role == 'mgmt'"
ingress = [{ action = "allow", from = { sets = ["admin"] }, protocol = "tcp", ports = [8265] }]
"""

# What each row reaches under the policy.
AFTER = [
    {"kubelet", "ping"},
    {"kubelet", "node-exp", "dcgm-exp"},
    {"ssh"},
    set(),
    {"nccl", "ping"},
    {"nccl", "ping"},
    set(),
    {"ping"},
    {"ping"},
]

# And after the change.
CHANGED = [*AFTER[:2], {"ssh", "ray"}, AFTER[3], set(), set(), *AFTER[6:]]
