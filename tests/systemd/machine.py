"""A machine with systemd as its first process, and beside it one that asks it for answers: in containers, or in virtual machines."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
# Of the machine under test, and of the one beside it.
ADDRESSES = ("10.9.0.1", "fd09::1")
BESIDE = ("10.9.0.2/24", "fd09::2/64")


class Failed(Exception):
    """Something is not as it has to be."""


class Machine:
    """What both kinds have in common: jobs through a directory that host and machine share."""

    # How much longer than in a container everything may take.
    slow = 1

    def __init__(self, lab, name):
        self.lab, self.name = pathlib.Path(lab).resolve(), name
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f"nodewall-{name}.", dir=os.environ.get("TMPDIR", "/var/tmp")))
        self.share = self.work / "share"
        (self.share / "jobs").mkdir(parents=True)
        self.jobs = 0
        self.process = None

    # For each kind: start(), and gone() that says whether it has ended.

    def boots(self):
        try:
            return int((self.share / "boots").read_text())
        except (OSError, ValueError):
            return 0

    def until(self, what, ready, seconds=60):
        deadline = time.monotonic() + seconds * self.slow
        while not ready():
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {seconds * self.slow} s\n{self.console()}")
            time.sleep(0.01)

    def console(self):
        try:
            return (self.work / "console").read_text(errors="replace")[-4000:]
        except OSError:
            return ""

    def boot(self):
        """Starts it, and waits until it takes jobs."""
        before = self.boots()
        self.start()
        self.comes_up(before)

    def comes_up(self, before):
        """Waits until it takes jobs, having come up so often before."""
        self.until(f"{self.name} comes up", lambda: self.boots() > before)

    def begin(self, command):
        """Begins a job, of which nobody waits for the end."""
        self.jobs += 1
        job = self.share / "jobs" / str(self.jobs)
        job.with_suffix(".tmp").write_text(command + "\n")
        job.with_suffix(".tmp").rename(job.with_suffix(".sh"))
        return job

    def attempt(self, command, seconds=60):
        """Runs a job: its exit status, and what it said."""
        job = self.begin(command)
        self.until(f"{command!r} on {self.name}", job.with_suffix(".status").exists, seconds)
        return int(job.with_suffix(".status").read_text()), job.with_suffix(".out").read_text(errors="replace")

    def run(self, command, seconds=60):
        """Runs a job that must succeed: what it said."""
        status, out = self.attempt(command, seconds)
        if status != 0:
            raise Failed(f"on {self.name}: {command!r} ended with {status}:\n{out}")
        return out

    def patiently(self, command, seconds=30):
        """Runs a job until it succeeds."""
        deadline = time.monotonic() + seconds * self.slow
        while True:
            status, out = self.attempt(command)
            if status == 0:
                return out
            if time.monotonic() > deadline:
                raise Failed(f"on {self.name}: {command!r} still ends with {status}:\n{out}")
            time.sleep(0.1)

    def put(self, path, text):
        """Writes a file on it."""
        source = self.share / "file"
        source.write_text(text)
        self.run(f"install -D -m 644 /host/file {path}")

    def reboot(self):
        """As an operator does it."""
        before = self.boots()
        self.begin("systemctl --no-block reboot; sleep 60")
        self.came_back(before)

    def power_cut(self):
        """Nothing that was not on disk is kept, and nothing is told."""
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.work, ignore_errors=True)


class Container(Machine):
    """systemd-nspawn on a throw-away overlay, in a network namespace with a bridge where the prober is."""

    link = "host0"

    # Each has names of its own, of which some are those of the whole host.
    made = itertools.count(1)

    def __init__(self, lab):
        number = next(self.made)
        super().__init__(lab, f"nw{os.getpid()}-{number}")
        self.outer = self.name
        self.namespace = None
        for part in ("upper", "overlay", "root"):
            (self.work / part).mkdir()
        options = f"lowerdir={self.lab / 'tree'},upperdir={self.work / 'upper'},workdir={self.work / 'overlay'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.work / "root"], check=True)
        self.ip("netns", "add", self.outer)
        self.ip("-n", self.outer, "link", "set", "lo", "up")
        self.ip("-n", self.outer, "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        self.ip("-n", self.outer, "link", "set", "br0", "up")
        self.ip("-n", self.outer, "address", "add", BESIDE[0], "dev", "br0")
        self.ip("-n", self.outer, "address", "add", BESIDE[1], "dev", "br0", "nodad")
        self.prober = None

    @staticmethod
    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True)

    def start(self):
        command = ["nsenter", f"--net=/run/netns/{self.outer}", "systemd-nspawn", "--quiet", f"--directory={self.work / 'root'}"]
        command += ["--private-network", "--network-bridge=br0", "--register=no", "--keep-unit", "--boot", f"--machine={self.name}", "--hostname=node"]
        command += [f"--bind={self.share}:/host", "--capability=CAP_NET_ADMIN", "--kill-signal=SIGRTMIN+3", "--console=read-only"]
        with open(self.work / "console", "ab") as console:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT)

    def came_back(self, before):
        # 133 is how nspawn says that it wants to be started again.
        self.until("the reboot", lambda: self.process.poll() is not None)
        if self.process.returncode != 133:
            raise Failed(f"systemd-nspawn ended with {self.process.returncode}\n{self.console()}")
        self.unplug()
        self.start()
        self.comes_up(before)

    def first_process(self):
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def comes_up(self, before):
        super().comes_up(before)
        # A kernel takes a network namespace that nobody is in any more apart, and its rules before its links: answers that no machine
        # would give. So there is somebody in it until the link is gone.
        self.namespace = os.open(f"/proc/{self.first_process()}/ns/net", os.O_RDONLY)

    def unplug(self):
        subprocess.run(["ip", "-n", self.outer, "link", "delete", f"vb-{self.name}"], check=False, capture_output=True)
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None

    def power_cut(self):
        # With the container's first process go all others. nspawn itself would let it shut down.
        os.kill(self.first_process(), signal.SIGKILL)
        super().power_cut()
        self.unplug()

    def knows_its_peer(self):
        """Nothing has to be asked before a packet is sent: what comes back from the first moment on is seen."""
        mac = self.run("cat /sys/class/net/host0/address").strip()
        for address in ADDRESSES:
            self.ip("-n", self.outer, "neighbour", "replace", address, "lladdr", mac, "dev", "br0", "nud", "permanent")

    def ask_for_answers(self):
        self.prober = Prober(self.work / "answers")
        command = ["nsenter", f"--net=/run/netns/{self.outer}", "python3", HERE / "prober.py", self.work / "answers"]
        self.prober.process = subprocess.Popen(command)
        return self.prober

    def close(self):
        if self.prober:
            self.prober.end()
        if self.process and self.process.poll() is None:
            self.power_cut()
        subprocess.run(["umount", self.work / "root"], check=False)
        subprocess.run(["ip", "netns", "delete", self.outer], check=False)
        super().close()


class Prober:
    """What a prober has heard so far."""

    def __init__(self, file):
        self.file = pathlib.Path(file)
        self.process = None

    def record(self):
        return json.loads(self.file.read_text())

    def now(self):
        """What it has heard up to now: it writes ten times a second."""
        begun, deadline = time.time(), time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                record = self.record()
                if record["at"] > begun + 0.02:
                    return record["probes"]
            except (OSError, ValueError):
                pass
            time.sleep(0.02)
        raise Failed("the prober does not say what it has heard")

    def end(self):
        pathlib.Path(str(self.file) + ".stop").touch()
        if self.process:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
