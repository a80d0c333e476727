"""The simulated world: who is there, how they are joined, what listens, and who should reach what.

Nothing here acts. `EXPECTED` is the table that the demonstration holds the kernel to.
"""

from dataclasses import dataclass

# Segments and their number in the addresses: 10.77.N.HOST and fd77:0:0:N::HOST.
SEGMENTS = {"mgmt": 0, "rail0": 1, "rail1": 2, "stor": 3, "pod": 4}

# The node's interfaces. The pod link has the name that Calico would give it.
NODE_INTERFACES = {"mgmt0": "mgmt", "rail0": "rail0", "rail1": "rail1", "stor0": "stor", "cali77aa00b1c2d": "pod"}
NODE_HOST = 1
# The router of the management network, which is there only so that there is a default route.
ROUTER_HOST = 254


def address(segment: str, host: int, family: int) -> str:
    """The address of a host on a segment."""
    number = SEGMENTS[segment]
    return f"10.77.{number}.{host}" if family == 4 else f"fd77:0:0:{number}::{host}"


def prefix(segment: str, family: int) -> str:
    """The prefix of a segment."""
    number = SEGMENTS[segment]
    return f"10.77.{number}.0/24" if family == 4 else f"fd77:0:0:{number}::/64"


@dataclass(frozen=True)
class Service:
    """A TCP service: the column it has, or the cell of the node's way out."""

    name: str
    port: int


# All of them listen on every address, as shipped or as people start them in a hurry.
SERVICES = (
    Service("ssh", 22),
    Service("kubelet", 10250),
    Service("node-exp", 9100),
    Service("dcgm-exp", 9400),
    Service("dcgm-host", 5555),
    Service("nccl", 45000),
    Service("ray", 8265),
)


@dataclass(frozen=True)
class Host:
    """A machine or pod around the node."""

    name: str
    title: str
    # Host number on each segment that it is joined to.
    links: dict[str, int]
    # Which of the node's addresses it tries, by segment: those it should use, and those it could try instead.
    doors: tuple[str, ...]
    # What listens on it, for the node's way out.
    listens: tuple[Service, ...] = ()


NFS = Service("nfs", 2049)
STORAGE_SSH = Service("ssh", 22)
API = Service("kube-api", 6443)

HOSTS = (
    Host("control", "control plane", {"mgmt": 10}, ("mgmt",), (API,)),
    Host("monitoring", "monitoring", {"mgmt": 20}, ("mgmt",)),
    Host("bastion", "bastion (admins)", {"mgmt": 30}, ("mgmt",)),
    Host("laptop", "office laptop", {"mgmt": 99}, ("mgmt",)),
    Host("peer", "training peer", {"rail0": 2, "rail1": 2}, ("rail0", "rail1", "mgmt")),
    Host("stranger", "stranger on rail0", {"rail0": 66}, ("rail0", "mgmt")),
    Host("pod", "compromised pod", {"pod": 2}, ("pod", "mgmt", "rail0")),
    Host("storage", "storage server", {"stor": 20}, ("stor", "mgmt"), (NFS, STORAGE_SSH)),
)

# The node's own ways out: host, segment, service.
OUTWARD = (
    ("storage", "stor", NFS),
    ("storage", "stor", STORAGE_SSH),
    ("control", "mgmt", API),
)

# A cell of the table: (host, service) into the node, ("node", "HOST:SERVICE") out of it.
Cell = tuple[str, str]

ALL_CELLS: tuple[Cell, ...] = tuple((host.name, service.name) for host in HOSTS for service in SERVICES) + tuple(
    ("node", f"{host}:{service.name}") for host, _, service in OUTWARD
)

# Without a firewall everybody reaches everything.
OPEN_BEFORE = frozenset(ALL_CELLS)

# What demo/policy.d allows; everything else is denied.
OPEN_AFTER = frozenset(
    {
        ("control", "kubelet"),
        ("monitoring", "kubelet"),
        ("monitoring", "node-exp"),
        ("monitoring", "dcgm-exp"),
        ("bastion", "ssh"),
        ("peer", "nccl"),
        ("node", "storage:nfs"),
        ("node", "control:kube-api"),
    }
)

# The live change: a file of demo/policy.d, and what is replaced in it.
CHANGED_FILE = "30-services.toml"
CHANGES = (
    (
        'services = ["node-exporter", "dcgm-exporter"] },',
        'services = ["node-exporter"] },',
    ),
    (
        '  { action = "deny", services = ["ray-dashboard"] },\n',
        '  { action = "allow", from = { sets = ["bastion"] }, services = ["ray-dashboard"] },\n'
        '  { action = "deny", services = ["ray-dashboard"] },\n',
    ),
)
OPEN_AFTER_CHANGE = (OPEN_AFTER - {("monitoring", "dcgm-exp")}) | {("bastion", "ray")}


def host_named(name: str) -> Host:
    """The host of that name."""
    return next(host for host in HOSTS if host.name == name)
