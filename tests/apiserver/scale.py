#!/usr/bin/env python3
"""`make test-scale`: a cold start of the daemon beside a real API server with 10,000 objects, of which 1,000 are for this node, and what it
costs when nothing happens. The exit code is 1 if a bound does not hold. As root, in a network namespace of its own.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import ssl
import subprocess
import tempfile
import threading
import time

from rbac import isolate
from server import DEFINITIONS, Server

POLICIES, MINE, SETS, NODES, DIGESTS = 4000, 1000, 3000, 3000, 300
# What is promised: seconds from the start to all of it in force, MiB, part of a core.
SOON, SMALL, IDLE = 10.0, 128.0, 0.01
WATCHED = 30


def address(number):
    return f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"


def objects():
    """All of them: kind and object."""
    for number in range(SETS):
        cidrs = [f"{address(number * 32 + member * 2)}/31" for member in range(8)]
        yield "HostNetworkSet", f"set-{number}", {"cidrs": cidrs}
    for number in range(POLICIES):
        pool = "mine" if number < MINE else f"other-{number % 7}"
        ingress = [
            {"action": "allow", "from": {"sets": [f"set-{(number * 3 + rule) % SETS}"]}, "protocol": "tcp", "ports": [1024 + number]}
            for rule in range(3)
        ]
        if number == 0:
            ingress.append({"action": "allow", "from": {"nodes": "pool == 'mine'", "role": "rail"}, "protocol": "tcp"})
        spec = {"order": number + 1, "interfaces": "role == 'mgmt'", "nodes": f"pool == '{pool}'", "ingress": ingress}
        yield "HostPolicy", f"policy-{number}", spec
    in_each = NODES // DIGESTS
    for digest in range(DIGESTS):
        nodes = [
            {"name": f"node-{number}", "shares": 0, "addresses": {"node": [address(2**20 + number * 16)], "rail": [address(2**20 + number * 16 + rail * 2) for rail in range(1, 8)]}}
            for number in range(digest * in_each, (digest + 1) * in_each)
        ]
        yield "HostPeers", f"{digest:04}-of-{DIGESTS:04}", {"labels": [{"pool": "mine"}], "nodes": nodes}
    yield "HostPeers", "index", {}


class Writer(threading.local):
    """A connection of each thread."""

    connection = None


def fill(server, plurals):
    """Makes all objects, by some connections that stay open."""
    writer = Writer()
    host = server.address.removeprefix("https://")

    def make(each):
        kind, name, spec = each
        body = {"apiVersion": "nodewall.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        if writer.connection is None:
            writer.connection = http.client.HTTPSConnection(host, context=ssl._create_unverified_context())
        path = f"/apis/nodewall.dev/v1alpha1/{plurals[kind]}"
        writer.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = writer.connection.getresponse()
        text = answer.read()
        assert answer.status == 201, text[:500]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return sum(1 for _ in pool.map(make, objects()))


def value(pid, key):
    """Of /proc/PID/status, in MiB."""
    line = next(line for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def worked(pid):
    """Seconds of a core so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(server, folder, nodewall):
    kubeconfig = pathlib.Path(folder) / "nodewall.kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n"
        f'clusters: [{{name: a, cluster: {{server: "{server.address}", insecure-skip-tls-verify: true}}}}]\n'
        "users: [{name: a, user: {}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
    )
    kubeconfig.chmod(0o600)
    config = pathlib.Path(folder) / "nodewall.toml"
    config.write_text(
        f'socket = "{folder}/nodewall.sock"\nstate_directory = "{folder}/state"\nnode = "node-0"\npolicy_directories = ["{folder}/none"]\n'
        f'[[source.cluster]]\nname = "fleet"\nkubeconfig = "{kubeconfig}"\ncontribute = ["policies", "sets", "nodes"]\n'
    )
    subprocess.run("ip link add mgmt0 type veth peer name peer0 && ip addr add 192.0.2.1/24 dev mgmt0 && ip link set mgmt0 up "
                   "&& ip link set peer0 up && ip route add default via 192.0.2.2", shell=True, check=True)
    log = open(pathlib.Path(folder) / "nodewall.log", "wb")
    start = time.monotonic()
    process = subprocess.Popen([nodewall, "--config", config, "run"], stderr=log, stdin=subprocess.DEVNULL)
    try:
        while b"policy in force" not in (said := (pathlib.Path(folder) / "nodewall.log").read_bytes()):
            assert process.poll() is None and time.monotonic() < start + 120, said[-2000:].decode()
            time.sleep(0.02)
        soon = time.monotonic() - start
        rules = subprocess.run(["nft", "list", "table", "inet", "nodewall"], capture_output=True, text=True).stdout
        found = sum(f'"policy-{number}#' in rules or f"policy-{number}#" in rules for number in range(MINE))
        missing = [number for number in (0, 1, MINE - 1) if f"policy-{number}#" not in rules and str(1024 + number) not in rules]
        assert not missing, f"not in the kernel: {missing}"
        status = json.loads(subprocess.run([nodewall, "--config", config, "--json", "status"], capture_output=True, text=True).stdout)
        cluster = status["clusters"][0]
        assert cluster["objects"] == SETS + MINE and cluster["elsewhere"] == POLICIES - MINE and cluster["nodes"] == NODES, cluster
        # What a start leaves to be done, as generations on disk.
        time.sleep(10)
        before, began = worked(process.pid), time.monotonic()
        time.sleep(WATCHED)
        idle = (worked(process.pid) - before) / (time.monotonic() - began)
        small, most = value(process.pid, "VmRSS"), value(process.pid, "VmHWM")
    finally:
        process.terminate()
        process.wait()
    print(f"{cluster['objects']} objects, {cluster['elsewhere']} for other nodes, {cluster['nodes']} nodes; {found} policies named in rules")
    print(f"in force after {soon:.1f} s (at most {SOON})")
    print(f"{small:.0f} MiB resident (at most {SMALL:.0f}), {most:.0f} MiB at the most")
    print(f"idle: {100 * idle:.2f} % of a core (at most {100 * IDLE:.0f})")
    return soon <= SOON and small <= SMALL and idle <= IDLE


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="the folder that build.sh printed")
    parser.add_argument("--nodewall", required=True, help="the program, of a release build")
    arguments = parser.parse_args()
    nodewall = os.path.abspath(arguments.nodewall)
    if not isolate():
        raise SystemExit("scale: needs root, for a network namespace of its own")
    with tempfile.TemporaryDirectory() as folder, Server(arguments.programs, folder) as server:
        plurals = {}
        for definition in json.loads(subprocess.run([nodewall, "crd", "--json"], check=True, capture_output=True, text=True).stdout)["items"]:
            status, answer = server.call("POST", DEFINITIONS, definition)
            assert status == 201, answer
            names = definition["spec"]["names"]
            plurals[names["kind"]] = names["plural"]
            server.until(lambda: server.call("GET", f"/apis/nodewall.dev/v1alpha1/{names['plural']}")[0] == 200, "a kind is not served")
        start = time.monotonic()
        made = fill(server, plurals)
        print(f"{made} objects made in {time.monotonic() - start:.0f} s")
        return 0 if measure(server, folder, nodewall) else 1


if __name__ == "__main__":
    sys.exit(main())
