"""The real nodewall daemon in the node's namespace: its files, its start as systemd would do it, its end, and its answers."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from network import namespace

HERE = pathlib.Path(__file__).parent
READY_SECONDS = 10.0
IN_FORCE_SECONDS = 5.0


class DaemonError(Exception):
    """The daemon did not do what it was asked to."""


class Daemon:
    """One nodewall with a policy directory of its own below `directory`."""

    def __init__(self, binary: pathlib.Path, directory: pathlib.Path) -> None:
        self.binary = binary
        self.config = directory / "nodewall.toml"
        self.policies = directory / "policy.d"
        self.log = directory / "nodewall.log"
        self.notify_path = directory / "notify"
        self.process: subprocess.Popen | None = None
        kubeconfig = directory / "kubelet.conf"
        write(kubeconfig, "clusters:\n- cluster:\n    server: https://10.77.0.10:6443\n")
        settings = (HERE / "nodewall.toml").read_text(encoding="utf-8")
        paths = f'socket     = "{directory / "nodewall.sock"}"\nkubeconfig = "{kubeconfig}"\n'
        paths += f'state_directory = "{directory / "state"}"\n'
        write(self.config, paths + settings)
        self.policies.mkdir(mode=0o755)
        for source in sorted((HERE / "policy.d").glob("*.toml")):
            write(self.policies / source.name, source.read_text(encoding="utf-8"))

    def command(self, *arguments: str) -> list[str]:
        """A nodewall command line in the node's namespace."""
        paths = ["--config", str(self.config), "--policy-dir", str(self.policies)]
        return ["ip", "netns", "exec", namespace("node"), str(self.binary), *paths, *arguments]

    def start(self) -> float:
        """Starts the daemon and waits for READY; how many seconds that took."""
        began = time.monotonic()
        self.notify_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log.open("a") as log:
            notify.bind(str(self.notify_path))
            notify.settimeout(0.1)
            self.process = subprocess.Popen(
                self.command("run"),
                env={**os.environ, "NOTIFY_SOCKET": str(self.notify_path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            while not ready(notify):
                if self.process.poll() is not None:
                    raise DaemonError(f"nodewall ended with exit code {self.process.returncode}:\n{self.tail()}")
                if time.monotonic() - began > READY_SECONDS:
                    raise DaemonError(f"nodewall was not ready in {READY_SECONDS:.0f} s:\n{self.tail()}")
        return time.monotonic() - began

    def end(self, by: signal.Signals) -> None:
        """Ends the daemon by a signal, and by SIGKILL if it does not."""
        if self.process is None:
            return
        self.process.send_signal(by)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def status(self) -> dict:
        """`nodewall status --json`."""
        done = subprocess.run(self.command("status", "--json"), capture_output=True, text=True, timeout=30, check=False)
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise DaemonError(f"`nodewall status --json` failed: {done.stderr.strip()}") from error

    def in_force(self, newer_than: int = 0) -> tuple[int, float]:
        """Waits until a generation newer than this is in force and the kernel has it; its number, and how many seconds that
        took. While a change is under way, state and kernel may be seen from its two sides."""
        began = time.monotonic()
        while True:
            status = self.status()
            settled = status["state"] == "in-force" and status["in_sync"]
            if settled and status["generation"] > newer_than:
                return status["generation"], time.monotonic() - began
            if status["state"] == "degraded" or time.monotonic() - began > IN_FORCE_SECONDS:
                reason = status["reason"] or "; ".join(status["drift"]) or "no new generation"
                raise DaemonError(f"nodewall is {status['state']}: {reason}\n{self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        """The end of what the daemon said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def ready(notify: socket.socket) -> bool:
    """Whether READY arrives within the socket's patience."""
    try:
        return b"READY=1" in notify.recv(4096).split(b"\n")
    except TimeoutError:
        return False


def write(path: pathlib.Path, text: str) -> None:
    """Writes a file as an editor does, by rename, with the mode that the daemon trusts."""
    # Hidden, so that the daemon does not take it for a policy meanwhile.
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.rename(path)
