"""The same machine in qemu, with Debian's own kernel and a disk that a power cut really cuts off; and a second one that asks for answers."""

import pathlib
import shutil
import subprocess
import time

from machine import BESIDE, HERE, ADDRESSES, Failed, Machine, Prober

# The machine under test, and the one beside it.
MACS = {"node": "52:54:00:00:01:01", "peer": "52:54:00:00:01:02"}


class Virtual(Machine):
    """Software emulation: everything takes ten times as long, and nothing here is about time."""

    link = "eth0"
    slow = 10

    def __init__(self, lab, name="node", wire=None):
        super().__init__(lab, name)
        self.wire = wire or self.work
        self.disk = self.work / "disk.qcow2"
        base = self.lab / "image.raw"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, self.disk], check=True)
        self.peer = None

    def start(self):
        ends = ("node", "peer") if self.name == "node" else ("peer", "node")
        wire = f"dgram,id=wire,local.type=unix,local.path={self.wire}/{ends[0]}.sock,remote.type=unix,remote.path={self.wire}/{ends[1]}.sock"
        (self.wire / f"{ends[0]}.sock").unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-M", "q35", "-m", "768", "-smp", "1"]
        command += ["-nodefaults", "-display", "none", "-monitor", "none", "-serial", f"file:{self.work}/console"]
        command += ["-kernel", self.lab / "image.vmlinuz", "-initrd", self.lab / "image.initrd", "-append"]
        command += ["console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=unstable net.ifnames=0 audit=0 systemd.show_status=no"]
        # The host keeps what the guest has flushed, and what it has not, whatever becomes of qemu: what the guest itself had in memory
        # is lost with a power cut, as anywhere.
        command += ["-drive", f"file={self.disk},if=virtio,format=qcow2,cache=unsafe"]
        command += ["-virtfs", f"local,path={self.share},mount_tag=host,security_model=none,multidevs=remap"]
        command += ["-netdev", wire, "-device", f"virtio-net-pci,netdev=wire,mac={MACS[self.name]}"]
        command += ["-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng"]
        with open(self.work / "qemu", "ab") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)

    def console(self):
        said = (self.work / "qemu").read_text(errors="replace") if (self.work / "qemu").exists() else ""
        return said + super().console()

    def came_back(self, before):
        self.comes_up(before)

    def knows_its_peer(self):
        """The other machine, which knows where to send from the first moment on."""
        self.peer = Virtual(self.lab, "peer", self.wire)
        shutil.copy(HERE / "prober.py", self.peer.share)
        self.peer.boot()
        commands = ["ip link set eth0 up", f"ip address add {BESIDE[0]} dev eth0", f"ip address add {BESIDE[1]} dev eth0 nodad"]
        commands += [f"ip neighbour replace {one} lladdr {MACS['node']} dev eth0 nud permanent" for one in ADDRESSES]
        self.peer.run(" && ".join(commands))

    def close(self):
        if self.peer:
            self.peer.close()
        super().close()

    def ask_for_answers(self):
        # In its own memory first: the shared directory is slow.
        self.peer.begin("setsid python3 /host/prober.py /run/answers >/host/prober.log 2>&1 &")
        prober = Remote(self.peer)
        self.peer.patiently("test -s /run/answers")
        return prober


class Remote(Prober):
    """A prober in the machine beside."""

    def __init__(self, peer):
        super().__init__(pathlib.Path("/run/answers"))
        self.peer = peer

    def now(self):
        """What it has heard up to now, by its own clock."""
        begun = float(self.peer.run("date +%s.%N"))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            self.peer.run("cat /run/answers >/host/answers")
            self.file = self.peer.share / "answers"
            record = self.record()
            if record["at"] > begun + 0.02:
                return record["probes"]
            time.sleep(0.1)
        raise Failed(f"the prober does not say what it has heard:\n{(self.peer.share / 'prober.log').read_text()}")

    def end(self):
        self.peer.close()
