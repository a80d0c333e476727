"""The demo's throw-away network: namespaces, links, addresses, and the processes in them."""

import os
import re
import signal
import subprocess
import sys

PREFIX = "nodewall-demo-"
AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent.py")


def call(*command):
    """Runs a command; its standard output. Raises with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Network:
    """Namespaces named after this process. `close` removes them and ends what was started in them."""

    def __init__(self):
        self.prefix = f"{PREFIX}{os.getpid()}-"
        self.names = []
        self.processes = []

    def namespace(self, name):
        """The full name of one of ours."""
        return self.prefix + name

    def add(self, name):
        """A new namespace with loopback up."""
        self.names.append(name)
        call("ip", "netns", "add", self.namespace(name))
        # Addresses are usable at once; the demo has no duplicates to detect.
        self.batch(name, ["link set lo up"], accept_dad=0)

    def batch(self, name, lines, accept_dad=None):
        """Runs lines of ip(8) inside a namespace."""
        if accept_dad is not None:
            for where in ("all", "default"):
                self.run(name, "sh", "-c", f"echo {accept_dad} > /proc/sys/net/ipv6/conf/{where}/accept_dad")
        done = subprocess.run(
            ["ip", "-n", self.namespace(name), "-batch", "-"],
            input="\n".join(lines) + "\n", capture_output=True, text=True, check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"ip in {name}: {done.stderr.strip()}")

    def run(self, name, *command):
        """Runs a command inside a namespace to its end."""
        return call("ip", "netns", "exec", self.namespace(name), *command)

    def link(self, left, left_name, right, right_name):
        """A cable between two namespaces, up on both ends."""
        self.batch(left, [
            f"link add {left_name} type veth peer name {right_name} netns {self.namespace(right)}",
            f"link set {left_name} up",
        ])
        self.batch(right, [f"link set {right_name} up"])

    def switch(self, name, bridges):
        """A namespace that is nothing but bridges."""
        self.add(name)
        lines = []
        for bridge in bridges:
            lines += [f"link add {bridge} type bridge", f"link set {bridge} up"]
        self.batch(name, lines)

    def plug(self, name, interface, switch, bridge, addresses, port):
        """An interface of a namespace on a bridge of the switch, at the port of that number, with addresses."""
        port = f"port{port}"
        self.link(name, interface, switch, port)
        self.batch(switch, [f"link set {port} master {bridge}"])
        self.batch(name, [f"addr add {address} dev {interface}" for address in addresses])

    def start(self, name, *command, **options):
        """Starts a process inside a namespace; `close` ends it. It is in a session of its own, so that Ctrl-C is ours."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(name), *command], start_new_session=True, **options
        )
        self.processes.append(process)
        return process

    def agent(self, name, *arguments):
        """Starts demo/agent.py inside a namespace."""
        return self.start(
            name, sys.executable, AGENT, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self):
        """Ends every process that was started here, then removes every namespace. Goes on whatever fails."""
        for process in reversed(self.processes):
            if process.stdin:
                try:
                    process.stdin.close()
                except OSError:
                    pass
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in self.names:
            remove(self.namespace(name))


def remove(namespace):
    """Removes a namespace, if it is there."""
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False, stdin=subprocess.DEVNULL)


def sweep():
    """Removes what a demo left behind that was killed with SIGKILL: namespaces whose process is gone."""
    for line in call("ip", "netns", "list").splitlines():
        found = re.match(re.escape(PREFIX) + r"(\d+)-", line)
        if not found or os.path.exists(f"/proc/{found[1]}"):
            continue
        namespace = line.split()[0]
        for pid in call("ip", "netns", "pids", namespace).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        remove(namespace)
