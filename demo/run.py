#!/usr/bin/env python3
"""nodewall on a simulated GPU node, in throw-away network namespaces. Usage: demo/run.py --binary PATH

Shows who reaches what before and after, changes a policy file live, and with a terminal leaves a shell in the node. Every
cell is compared with what the policy says: exit status 0 if all are as they should be, 1 if not. Needs root."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import scenario
import table
from network import Network, sweep

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLE = os.path.join(ROOT, "config/examples/training-node")
CATALOGUE = os.path.join(ROOT, "config/policy.d")
# Long for a packet in this machine, short for a person. A dropped packet costs the whole time.
PROBE_SECONDS = 0.6
# A busy machine may answer late: a cell that is not as expected is asked again.
ATTEMPTS = 4
READY_SECONDS = 30


def main():
    """The demo from start to end; the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--binary", default=os.path.join(ROOT, "target/release/nodewall"), help="the nodewall to show")
    program = os.path.abspath(options.parse_args().binary)
    if not os.access(program, os.X_OK):
        print(f"demo: {program} is not built; `make run` builds it", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("demo: network namespaces need root; try `sudo make run`", file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _frame: sys.exit(128 + number))
    sweep()
    network = Network()
    directory = tempfile.mkdtemp(prefix="nodewall-demo-")
    try:
        return Demo(network, directory, program).run()
    except KeyboardInterrupt:
        return 130
    finally:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)
        network.close()
        shutil.rmtree(directory, ignore_errors=True)


class Demo:
    """One run: the network, the daemon's files, and the program."""

    def __init__(self, network, directory, program):
        self.network = network
        self.directory = directory
        self.program = program
        self.policy = os.path.join(directory, "policy.d")
        self.settings = os.path.join(directory, "nodewall.toml")
        self.options = ["--config", self.settings]
        for name in ("catalogue", "policy.d"):
            self.options += ["--policy-dir", os.path.join(directory, name)]
        self.probers = {}
        self.wrong = 0

    def run(self):
        say("a GPU node with a management NIC, two rails, a storage NIC and a pod link ...")
        self.build()
        before = self.probe([set(service.name for service in scenario.SERVICES)] * len(scenario.CALLERS))
        self.write_policy()
        daemon = self.start_daemon()
        after = self.probe(scenario.AFTER)
        table.show("nodewall run, with config/examples/training-node", before, after)

        with open(os.path.join(self.policy, scenario.CHANGE_NAME), "w", encoding="utf-8") as file:
            file.write(scenario.CHANGE)
        say(f"policy.d/{scenario.CHANGE_NAME} written: a suspect neighbour is shut out, Ray's dashboard opened to the administrator")
        changed = self.probe(scenario.CHANGED)
        table.show("changed live", after, changed)

        say("nodewall status")
        status = self.nodewall("status")
        print(indent(status.stdout + status.stderr), flush=True)
        if status.returncode != 0:
            self.complain(f"nodewall status ended with {status.returncode}")
        if daemon.poll() is not None:
            self.complain(f"the daemon ended by itself with {daemon.returncode}")
        if self.wrong:
            self.show_log()
            say(table.paint(f"{self.wrong} things are not as the policy says", "red"))
            return 1
        cells = 3 * len(scenario.CALLERS) * len(scenario.SERVICES)
        say(table.paint(f"all {cells} cells are as they should be, by IPv4 and by IPv6", "green"))
        if sys.stdin.isatty() and sys.stdout.isatty():
            self.explore()
        return 0

    def build(self):
        """Namespaces, links and listeners."""
        network = self.network
        network.switch("switch", ["mgmt", "rail0", "rail1", "stor"])
        for name in ["node", *dict.fromkeys(caller.namespace for caller in scenario.CALLERS)]:
            network.add(name)
        for index, (name, interface, bridge, addresses) in enumerate(scenario.PLUGS):
            network.plug(name, interface, "switch", bridge, addresses, index)
        network.link("node", "cali0", "pod", "eth0")
        network.batch("node", [
            "addr add 10.244.7.1/24 dev cali0",
            "addr add fd00:244::1/64 dev cali0",
            # The uplink is known by its default route.
            "route add default via 10.10.0.10 dev eno1",
            "route add default via fd00:10::10 dev eno1",
        ])
        network.batch("pod", ["addr add 10.244.7.2/24 dev eth0", "addr add fd00:244::2/64 dev eth0"])
        listeners = network.agent("node", "listen", *[str(s.port) for s in scenario.SERVICES if s.port])
        if listeners.stdout.readline() != "ready\n":
            raise RuntimeError("the node's listeners did not start")
        for name in dict.fromkeys(caller.namespace for caller in scenario.CALLERS):
            self.probers[name] = network.agent(name, "probe")

    def write_policy(self):
        """A copy of the shipped catalogue and example, with this network's addresses."""
        shutil.copytree(CATALOGUE, os.path.join(self.directory, "catalogue"))
        shutil.copytree(EXAMPLE, self.policy)
        with open(os.path.join(self.policy, "10-addresses.toml"), "w", encoding="utf-8") as file:
            file.write(scenario.ADDRESSES)
        with open(self.settings, "w", encoding="utf-8") as file:
            file.write(scenario.SETTINGS.format(directory=self.directory))
        for parent, directories, files in os.walk(self.directory):
            # The daemon takes only what root owns and nobody else may write, whatever the checkout looks like.
            for name in directories:
                own(os.path.join(parent, name), 0o755)
            for name in files:
                own(os.path.join(parent, name), 0o644)

    def start_daemon(self):
        """`nodewall run` in the node; returns when its policy is in force."""
        with open(os.path.join(self.directory, "daemon.log"), "w", encoding="utf-8") as log:
            daemon = self.network.start(
                "node", self.program, *self.options, "run", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and daemon.poll() is None:
            status = self.nodewall("--json", "status")
            with contextlib.suppress(ValueError):
                if json.loads(status.stdout).get("state") == "in-force":
                    return daemon
            time.sleep(0.05)
        self.show_log()
        raise RuntimeError("the daemon did not put the policy in force")

    def nodewall(self, *arguments):
        """Runs the program in the node, with the daemon's options."""
        command = ["ip", "netns", "exec", self.network.namespace("node"), self.program, *self.options, *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)

    def probe(self, expected):
        """Who reaches what, as rows of {service: open}. Cells that stay other than expected count as wrong."""
        for attempt in range(ATTEMPTS):
            rows = self.round()
            differing = [
                (caller, service, row[service.name])
                for caller, row, wanted in zip(scenario.CALLERS, rows, expected)
                for service in scenario.SERVICES
                if row[service.name] != (service.name in wanted)
            ]
            if not differing:
                return rows
        for caller, service, found in differing:
            word = {True: "reaches", False: "does not reach", None: "reaches by one IP version only"}[found]
            self.complain(f"{caller.name} {word} {service.name} by {caller.way}")
        return rows

    def round(self):
        """One round of probes, all callers at once."""
        questions = {}
        for index, caller in enumerate(scenario.CALLERS):
            for service in scenario.SERVICES:
                for address in caller.targets:
                    questions.setdefault(caller.namespace, []).append((index, service.name, address, service.port))
        for name, asked in questions.items():
            request = {"targets": [question[2:] for question in asked], "seconds": PROBE_SECONDS}
            self.probers[name].stdin.write(json.dumps(request) + "\n")
            self.probers[name].stdin.flush()
        found = [{service.name: set() for service in scenario.SERVICES} for _ in scenario.CALLERS]
        for name, asked in questions.items():
            answers = json.loads(self.probers[name].stdout.readline())
            for (index, service, _, _), answer in zip(asked, answers):
                found[index][service].add(answer)
        return [{name: got.pop() if len(got) == 1 else None for name, got in row.items()} for row in found]

    def complain(self, text):
        self.wrong += 1
        print(f"demo: {text}", file=sys.stderr, flush=True)

    def show_log(self):
        with open(os.path.join(self.directory, "daemon.log"), encoding="utf-8", errors="replace") as log:
            print("demo: the daemon's log:\n" + indent(log.read()), file=sys.stderr, flush=True)

    def explore(self):
        """A shell in the node, with this `nodewall` first in PATH."""
        programs = os.path.join(self.directory, "bin")
        os.mkdir(programs)
        wrapper = os.path.join(programs, "nodewall")
        with open(wrapper, "w", encoding="utf-8") as file:
            words = " ".join(f"'{word}'" for word in [self.program, *self.options])
            file.write(f'#!/bin/sh\nexec {words} "$@"\n')
        os.chmod(wrapper, 0o755)
        say("a shell in the node; `exit` removes everything. To try:")
        print(
            "  nodewall status           what is in force, with counters\n"
            "  nodewall render | less    the rules\n"
            f"  $EDITOR {self.policy}/40-rails.toml\n"
            "                            in force as soon as it is saved; mistakes are refused\n"
            f"  ip netns exec {self.network.namespace('stranger')} bash\n"
            "                            be the stranger on the rail; the node is 10.20.0.7\n"
        )
        environment = {**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', '')}", "PS1": "node# "}
        # Ctrl-C is for what runs in the shell.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.run(
            ["ip", "netns", "exec", self.network.namespace("node"), "bash", "--norc", "--noprofile", "-i"],
            env=environment, cwd=self.policy, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def own(path, mode):
    """Root's, and writable by nobody else."""
    os.chown(path, 0, 0)
    os.chmod(path, mode)


def say(text):
    print(table.paint("==>", "bold"), text, flush=True)


def indent(text):
    return "".join(f"  {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
