#!/usr/bin/env python3
"""nodewall's packages on a real systemd: `run.py nspawn|vm --lab DIR --old DEB --new DEB [--rpms DIR] [SCENARIO...]`, as root.

A machine boots with systemd as its first process, the package is installed, and another machine asks it for answers all the while: what
the policy denies must never be answered, and what it allows always. Every scenario has a machine of its own, and ends with what was seen.
"""

import argparse
import concurrent.futures
import contextlib
import json
import pathlib
import random
import re
import shutil
import sys
import time

from machine import Container, Failed

# What the machine's link is called, and how it gets its addresses.
NETWORKD = """[Match]
Name={link}
[Network]
Address=10.9.0.1/24
Address=fd09::1/64
IPv6DuplicateAddressDetection=0
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
IFUPDOWN = """auto {link}
iface {link} inet static
    address 10.9.0.1/24
iface {link} inet6 static
    address fd09::1/64
    dad-attempts 0
    accept_ra 0
"""
POLICY = """[[interface]]
name = "uplink"
match = {{ name = "{link}" }}
role = "mgmt"

[[policy]]
name = "services"
interfaces = "role == 'mgmt'"
ingress = [{{ action = "allow", protocol = "tcp", ports = [{port}] }}]
"""
ENFORCE = "sed -i 's/^mode = .*/mode = \"enforce\"/' /etc/nodewall/nodewall.toml"
ALLOWED, DENIED = 8443, 9999


def is_denied(name):
    return f"tcp-{ALLOWED}-" not in name


class Watch:
    """What was answered since a moment."""

    def __init__(self, prober):
        self.prober, self.before = prober, prober.now()

    def over(self):
        """The answers since then, after the last questions had time to be answered."""
        time.sleep(1.3)
        now = self.prober.now()
        names = ("asked", "answered", "unanswered")
        return {name: {key: now[name][key] - self.before[name][key] for key in names} for name in now}

    def hold(self, always=True):
        """Denied was never answered, and allowed was: always, or (`always` false) now and then."""
        seen = self.over()
        for name, counts in seen.items():
            if is_denied(name) and counts["answered"]:
                raise Failed(f"{name}: {counts['answered']} answers to what is denied")
            if not is_denied(name) and not counts["answered"]:
                raise Failed(f"{name}: {counts['asked']} questions, and no answer to what is allowed")
            if always and not is_denied(name) and counts["unanswered"]:
                raise Failed(f"{name}: {counts['unanswered']} questions about what is allowed were not answered")
        return summary(seen)

    def open(self):
        """Everything was answered: nothing is denied yet."""
        seen = self.over()
        for name, counts in seen.items():
            # The kernel answers few datagrams a second with "unreachable".
            if not counts["answered"] or counts["unanswered"]:
                raise Failed(f"{name}: {counts} where nothing is denied")
        return summary(seen)


def afresh(bed):
    """A watch that begins when what was asked under other rules has had its time."""
    time.sleep(1.2)
    return Watch(bed.prober)


def summary(seen):
    denied = [counts for name, counts in seen.items() if is_denied(name)]
    allowed = [counts for name, counts in seen.items() if not is_denied(name)]
    total = lambda many, key: sum(counts[key] for counts in many)
    return f"allowed {total(allowed, 'answered')}/{total(allowed, 'asked')}, denied {total(denied, 'answered')}/{total(denied, 'asked')} answered"


def must(condition, words):
    if not condition:
        raise Failed(words)


class Bed:
    """A scenario's machine, with what all of them do."""

    def __init__(self, arguments):
        self.arguments = arguments
        if arguments.kind == "vm":
            from vm import Virtual

            self.machine = Virtual(arguments.lab)
        else:
            self.machine = Container(arguments.lab)
        self.link = self.machine.link
        for name in ("old", "new"):
            shutil.copy(getattr(arguments, name), self.machine.share / f"{name}.deb")
        self.prober = None

    def boot(self):
        self.machine.boot()
        self.machine.put("/etc/systemd/network/10-uplink.network", NETWORKD.format(link=self.link))
        self.machine.run("systemctl enable --now systemd-networkd")
        self.machine.patiently("ip -br address show up | grep -q fd09::1")
        self.machine.knows_its_peer()
        self.prober = self.machine.ask_for_answers()
        # Addresses and neighbours have settled, and what was asked before has had its time.
        self.machine.until("answers of all kinds", lambda: all(one["answered"] for one in self.prober.now().values()))
        time.sleep(1.2)

    def install(self, which="new"):
        return self.machine.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends /host/{which}.deb 2>&1", 120)

    def policy(self, port=ALLOWED):
        self.machine.put("/etc/nodewall/policy.d/10-node.toml", POLICY.format(link=self.link, port=port))

    def enforced(self, which="new"):
        self.install(which)
        self.policy()
        self.machine.run(f"{ENFORCE}; systemctl reload nodewall")

    def status(self):
        return json.loads(self.machine.run("nodewall status --json"))

    def prop(self, name, unit="nodewall"):
        return self.machine.run(f"systemctl show -p {name} --value {unit}").strip()


def install(bed, say):
    """A fresh machine: audit mode, what is said, editing and reloading, a bad file."""
    m = bed.machine
    bed.boot()
    watch = Watch(bed.prober)
    said = bed.install()
    say(watch.open(), "while it was installed")
    must("audit mode" in said and "nodewall status" in said, f"the installation says what to do next:\n{said}")
    must(bed.prop("ActiveState") == "active", "the daemon runs")
    must(m.run("systemctl is-enabled nodewall nodewall-boot").split() == ["enabled", "enabled"], "both units are enabled")
    must(bed.prop("ActiveState", "nodewall-boot") == "inactive", "the lockdown of the boot is not for a host that runs")
    line = bed.prop("StatusText")
    must("audit" in line and "in force" in line, f"one line says what it does: {line!r}")
    say(line)
    must("Status: \"" + line in m.run("systemctl status nodewall"), "systemctl status shows it")
    must("chain " in m.run("nft list table inet nodewall"), "the table is there")
    must(m.run("dpkg -V nodewall") == "", "dpkg -V has nothing to say")
    exposure = float(re.search(r"nodewall.service: ([0-9.]+)", m.run("systemd-analyze security nodewall | tail -1")).group(1))
    must(exposure < 2.0, f"systemd-analyze security: {exposure}")
    say(f"exposure {exposure}")
    verified = m.attempt("systemd-analyze verify --man=no nodewall.service nodewall-boot.service 2>&1")
    must(verified == (0, ""), f"systemd-analyze verify: {verified}")

    bed.policy()
    m.run(f"{ENFORCE}; systemctl reload nodewall")
    say(Watch(bed.prober).hold(), "after enforce and reload")
    must(bed.status()["mode"] == "enforce", "it enforces")

    m.put("/etc/nodewall/policy.d/20-bad.toml", '[[policy]]\nname = "bad"\nprot = "tcp"\n')
    watch = Watch(bed.prober)
    code, said = m.attempt("systemctl reload nodewall 2>&1")
    must(code != 0 and "failed" in said, f"a reload of a bad file fails: {code} {said}")
    status = m.attempt("systemctl status nodewall --no-pager -n 20")[1]
    must("active (running)" in status, f"the daemon goes on:\n{status}")
    must("20-bad.toml:3" in status and "degraded" in status, f"systemctl status says what is wrong, and where:\n{status}")
    say(watch.hold(), "with a bad file")
    code, said = m.attempt("nodewall reload 2>&1")
    must(code == 9, f"nodewall reload says so by its exit code: {code} {said}")
    m.run("rm /etc/nodewall/policy.d/20-bad.toml; systemctl reload nodewall")
    must(bed.status()["state"] == "in-force", "mended")

    journal = m.run("journalctl -u nodewall -o cat --no-pager")
    for words in ("policy in force: generation 2", "prot"):
        must(words in journal, f"the journal says {words!r}:\n{journal}")
    must("EPERM" not in journal and "not permitted" not in journal, f"nothing is refused to the daemon:\n{journal}")


def verbs(bed, say):
    """systemctl's verbs, a killed daemon, one that hangs, under a prober; nothing of it is noticed."""
    m = bed.machine
    bed.boot()
    bed.enforced()
    watch = Watch(bed.prober)
    for _ in range(5):
        m.run("systemctl restart nodewall")
    m.run("systemctl reload nodewall; systemctl try-reload-or-restart nodewall; systemctl reload-or-restart nodewall")
    m.run("systemctl stop nodewall; sleep 0.3")
    must(bed.prop("ActiveState") == "inactive", "stopped")
    must(m.attempt("nodewall status")[0] == 3, "nodewall status says that it does not run")
    must("chain " in m.run("nft list table inet nodewall"), "the rules stay")
    m.run("systemctl start nodewall")
    must(bed.prop("NRestarts") == "0", "no restart but ours")
    m.run("systemctl kill -s KILL --kill-whom=main nodewall")
    m.patiently('test "$(systemctl show -p NRestarts --value nodewall)" = 1 && systemctl is-active nodewall')
    say(watch.hold(), "while it was restarted, stopped, started and killed")

    m.run("mkdir -p /etc/systemd/system/nodewall.service.d && printf '[Service]\\nWatchdogSec=1\\n' >/etc/systemd/system/nodewall.service.d/soon.conf")
    m.run("systemctl daemon-reload && systemctl restart nodewall")
    watch = Watch(bed.prober)
    before = bed.prop("MainPID")
    m.run("systemctl kill -s STOP --kill-whom=main nodewall")
    m.patiently(f'pid=$(systemctl show -p MainPID --value nodewall); test "$pid" != {before} -a "$pid" != 0 && systemctl is-active nodewall')
    say(watch.hold(), "while it hung and the watchdog ended it")
    must("watchdog" in m.run("journalctl -u nodewall --no-pager").lower(), "the journal tells of the watchdog")
    m.run("rm -r /etc/systemd/system/nodewall.service.d && systemctl daemon-reload && systemctl restart nodewall")

    watch = Watch(bed.prober)
    m.run("systemctl stop nodewall-boot; systemctl restart nodewall-boot; systemctl isolate multi-user.target")
    must(bed.prop("ActiveState") == "active", "it survives a change of targets")
    say(watch.hold(), "while the boot unit was stopped and started")


def load(bed, say):
    """Everything that the daemon does, in its sandbox: what the sandbox forbids ends the process here."""
    m = bed.machine
    bed.boot()
    bed.install()
    bed.policy()
    # But for two calls that are tried and done without: SQLite gives its files away, and nice(1) wants less of the processor for an audit.
    m.put("/etc/systemd/system/nodewall.service.d/strict.conf", "[Service]\nSystemCallErrorNumber=\nSystemCallFilter=fchown setpriority\n")
    m.put("/etc/nodewall/nodewall.toml", f"""mode = "enforce"

[apply]
motd = "/run/motd.d/nodewall"

[[selftest.probe]]
name = "command"
command = ["/bin/true"]

[[selftest.probe]]
name = "listener"
tcp = "127.0.0.1:{ALLOWED}"

[metrics]
socket = "/run/nodewall/metrics.sock"
""")
    m.run("nodewall check && systemctl daemon-reload && systemctl restart nodewall")
    filtered = m.run("grep -E 'Seccomp:|CapEff|NoNewPrivs' /proc/$(systemctl show -p MainPID --value nodewall)/status")
    must(re.search(r"Seccomp:\s2", filtered) and re.search(r"CapEff:\s0000000000001000", filtered), f"sandboxed:\n{filtered}")
    m.run(f"systemd-run --unit=listener --quiet python3 -m http.server {ALLOWED}")
    m.run("""systemd-run --unit=asker --quiet python3 -c '
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("10.9.0.2", 5555))
while True:
    try:
        s.send(b"x")
    except OSError:
        pass
    time.sleep(0.2)'""")
    m.patiently(f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {ALLOWED}))'")
    watch = Watch(bed.prober)
    # A change that waits for its confirmation, and what those who log in are told; then one that its self-test confirms.
    m.put("/root/other/10-node.toml", POLICY.format(link=bed.link, port=DENIED))
    m.run("nodewall apply --confirm 60s /root/other")
    m.patiently("grep -q 'nodewall confirm' /run/motd.d/nodewall")
    m.run("nodewall rollback")
    m.patiently("test ! -e /run/motd.d/nodewall")
    watch = Watch(bed.prober)
    m.put("/root/other/10-node.toml", POLICY.format(link=bed.link, port=f"{ALLOWED}, 1234"))
    said = m.run("nodewall apply --confirm auto:20s --wait /root/other 2>&1", 90)
    must("confirmed" in said, f"a self-test confirms:\n{said}")
    # Somebody else empties the table.
    m.run("nft flush table inet nodewall")
    m.patiently("nodewall status --json | grep -q '\"in_sync\": *true'")
    # Panic and break-glass, and back.
    m.run("nodewall panic on && nodewall panic off")
    time.sleep(2)
    status = bed.status()
    must(status["state"] == "in-force", f"in force: {status['state']}")
    traffic = status["traffic"]
    for name in ("packets_error", "connections_error", "store_error"):
        must(traffic[name] is None, f"{name}: {traffic[name]}")
    must(traffic["packets"] > 0 and traffic["connections"] > 0, f"packets and connections are seen: {traffic}")
    must(traffic["accounting"] is True, "connection tracking counts")
    metrics = m.run("""python3 - <<'ASK'
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/nodewall/metrics.sock")
s.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
data = b""
while part := s.recv(65536):
    data += part
print(data.decode())
ASK""")
    must("nodewall_" in metrics, f"metrics:\n{metrics[:500]}")
    m.patiently("nodewall flows --json | grep -q '\"deny\\|\"denied'")
    # Records are gathered for ten seconds before they are written; they name the unit that has the socket.
    m.patiently("nodewall flows --json --direction out --service udp/5555 | grep -q '\"unit\": \"asker.service\"'")
    fields = m.run("journalctl -u nodewall -o json --no-pager")
    entries = [json.loads(line) for line in fields.splitlines() if line.startswith("{")]
    in_force = [entry for entry in entries if entry.get("MESSAGE", "").startswith("policy in force")]
    must(in_force and all(entry.get("MESSAGE_ID") and entry.get("NODEWALL_GENERATION") for entry in in_force), "the journal has fields")
    must(any(entry.get("NODEWALL_VERDICT") for entry in entries), "denied packets are in the journal, with their fields")
    must("Generation" in m.run("journalctl -x -u nodewall --no-pager"), "journalctl -x explains")
    m.run("useradd -G nodewall reader && useradd other")
    m.run("setpriv --reuid reader --init-groups nodewall status --json && setpriv --reuid reader --init-groups nodewall flows --json >/dev/null")
    must(m.attempt("setpriv --reuid other --init-groups nodewall status")[0] == 4, "others may not ask")
    must(m.attempt("setpriv --reuid reader --init-groups nodewall reload")[0] == 4, "readers may not reload")
    modes = m.run("stat -c '%a %U:%G %n' /var/lib/nodewall /run/nodewall /run/nodewall/nodewall.sock /var/lib/nodewall/flows /var/lib/nodewall/confirmed; find /var/lib/nodewall -maxdepth 2 -perm /027 ! -path '*/flows*' ! -path /var/lib/nodewall")
    say(modes.strip().replace("\n", "; "))
    must("710 root:nodewall /var/lib/nodewall" in modes and "660 root:nodewall /run/nodewall/nodewall.sock" in modes, f"modes:\n{modes}")
    say(watch.over() and "the sandbox forbade nothing that was tried")
    must(bed.prop("NRestarts") == "0", f"nothing that was tried is forbidden:\n{m.run('journalctl -u nodewall --no-pager | tail -30')}")


def reboots(bed, say):
    """A packet that is denied gets no answer, ever, from the moment the link is up, across ten boots; and the prober would have seen one."""
    m = bed.machine
    bed.boot()
    bed.enforced()
    times = bed.arguments.reboots
    # The first half with systemd-networkd, the second with ifupdown, which orders itself otherwise.
    watch = Watch(bed.prober)
    for number in range(times):
        if number == (times + 1) // 2:
            m.put("/etc/network/interfaces", IFUPDOWN.format(link=bed.link))
            m.run("rm /etc/systemd/network/10-uplink.network; systemctl disable systemd-networkd 2>&1; systemctl enable networking")
        answered = Watch(bed.prober)
        m.reboot()
        m.patiently("ip -br address show up | grep -q fd09::1")
        m.patiently("systemctl is-active nodewall nodewall-boot")
        time.sleep(0.2)
        answered.hold(always=False)
    say(watch.hold(always=False), f"across {times} reboots")
    m.run("systemctl disable nodewall nodewall-boot; nodewall disarm")
    watch = Watch(bed.prober)
    m.reboot()
    m.patiently("ip -br address show up | grep -q fd09::1")
    seen = watch.over()
    early = sum(counts["answered"] for name, counts in seen.items() if is_denied(name))
    must(early > 0, f"without nodewall the prober hears answers: {seen}")
    say(f"without nodewall {early} answers to the same questions")


def upgrade(bed, say):
    """Upgrade, downgrade, removal and purge, under a prober."""
    m = bed.machine
    bed.boot()
    bed.enforced("old")
    m.run("sed -i 's/^# accept_mark/# mine\\n# accept_mark/' /etc/nodewall/nodewall.toml")
    boot_unit = bed.prop("ActiveEnterTimestampMonotonic", "nodewall-boot")
    for which in ("new", "old", "new"):
        before = bed.prop("MainPID")
        watch = Watch(bed.prober)
        option = "--allow-downgrades" if which == "old" else ""
        m.run(f"DEBIAN_FRONTEND=noninteractive apt-get install -y {option} --no-install-recommends /host/{which}.deb 2>&1", 120)
        say(watch.hold(), {"new": "while it was upgraded", "old": "while it was downgraded"}[which])
        must(bed.prop("MainPID") != before, "the new version runs")
        must(bed.prop("ActiveState") == "active", "it runs")
        must("# mine" in m.run("cat /etc/nodewall/nodewall.toml"), "edited files are kept")
        must(bed.status()["mode"] == "enforce" and bed.status()["state"] == "in-force", "the policy is in force")
        must(bed.prop("ActiveEnterTimestampMonotonic", "nodewall-boot") == boot_unit, "the boot unit was left alone")
    # A reinstallation, and one whose files somebody damaged.
    watch = Watch(bed.prober)
    m.run("rm /usr/share/nodewall -rf; DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall --no-install-recommends /host/new.deb 2>&1", 120)
    say(watch.hold(), "while it was installed again")
    must(m.run("dpkg -V nodewall | grep -v nodewall.toml || true") == "", "dpkg -V has nothing to say but of the edited file")

    said = m.run("apt-get remove -y nodewall 2>&1")
    must("removed" in said and "protects nothing" in said, f"removal says what it means:\n{said}")
    must(m.attempt("nft list table inet nodewall")[0] != 0, "a removed package leaves no table")
    must(m.attempt("test -e /etc/nodewall/nodewall.toml -a -d /var/lib/nodewall")[0] == 0, "a removed package leaves settings and state")
    say(afresh(bed).open(), "after it was removed")
    # Back again: as it was.
    bed.install()
    must(bed.status()["mode"] == "enforce", "settings are as they were")
    say(Watch(bed.prober).hold(), "after it was installed again")
    m.run("rm /etc/nodewall/policy.d/10-node.toml; apt-get purge -y nodewall 2>&1")
    left = m.run("ls -d /etc/nodewall /var/lib/nodewall /run/nodewall /usr/lib/nodewall /usr/share/nodewall /etc/systemd/system/sysinit.target.wants/nodewall* 2>/dev/null || true")
    must(left == "", f"a purge leaves nothing:\n{left}")
    must(m.attempt("nft list table inet nodewall")[0] != 0, "nor a table")
    must(m.run("systemctl list-units --failed --no-legend \"nodewall*\"").strip() == "", "no unit has failed")


def power_cuts(bed, say):
    """The power goes at any moment of an apply; whatever generation comes up, what both deny is never answered."""
    m = bed.machine
    dice = random.Random(bed.arguments.seed)
    bed.boot()
    bed.enforced()
    m.put("/usr/local/sbin/changes", """#!/bin/bash
# One change after the other, each confirmed: what is denied stays denied.
for ((n = 0; ; n++)); do
    sed "s/PORT/$((20000 + n % 10000))/" /root/policy >/etc/nodewall/policy.d/10-node.toml.new
    mv /etc/nodewall/policy.d/10-node.toml.new /etc/nodewall/policy.d/10-node.toml
    nodewall reload
done
""")
    m.put("/root/policy", POLICY.format(link=bed.link, port=f"{ALLOWED}, PORT"))
    m.run("chmod +x /usr/local/sbin/changes")
    watch = Watch(bed.prober)
    generations = []
    for _ in range(bed.arguments.cuts):
        m.begin("setsid /usr/local/sbin/changes >/dev/null 2>&1 &")
        time.sleep(dice.uniform(0.2, 1.2) * m.slow)
        m.power_cut()
        m.boot()
        m.patiently("ip -br address show up | grep -q fd09::1")
        m.patiently("systemctl is-active nodewall && nodewall status")
        boot = m.run("journalctl -b -u nodewall-boot -o cat --no-pager")
        found = re.search(r"in force: generation (\d+)", boot)
        # Software emulation on a busy machine can take longer than the few seconds that a boot waits; then there is the lockdown.
        must(found or (m.slow > 1 and "lockdown" in boot), f"a boot finds a generation:\n{boot}")
        generations.extend([int(found.group(1))] if found else [])
        status = bed.status()
        must(status["state"] == "in-force" and not status["store_error"], f"after a power cut: {status['state']} {status['store_error']}")
    say(watch.hold(always=False), f"across {bed.arguments.cuts} power cuts")
    say(f"generations that came up: {generations}")
    must(generations == sorted(generations) and (bed.arguments.cuts == 1 or len(set(generations)) > 1), f"changes were under way: {generations}")


def rpm(bed, say):
    """The .rpm, with its scriptlets under a running systemd."""
    m = bed.machine
    found = sorted(pathlib.Path(bed.arguments.rpms).glob("*.rpm"))
    must(len(found) >= 2, f"{bed.arguments.rpms}: wanted are an old and a new .rpm")
    for name, file in zip(("old", "new"), found):
        shutil.copy(file, m.share / f"{name}.rpm")
    bed.boot()
    m.run("rpm --initdb 2>/dev/null || true")
    # The names of what it depends on are those of RHEL, of which nothing is in this tree.
    said = m.run("rpm -i --nodeps /host/old.rpm 2>&1")
    # By the rules of these distributions nothing starts by being installed; a boot would start it.
    must("audit mode" in said and "systemctl start nodewall" in said, f"the installation says what to do next:\n{said}")
    m.run("systemctl start nodewall")
    must(m.run("systemctl is-enabled nodewall nodewall-boot").split() == ["enabled", "enabled"], "both units are enabled")
    must("audit" in bed.prop("StatusText"), "audit mode")
    verified = m.attempt("rpm -V --nodeps nodewall")
    must(verified == (0, ""), f"rpm -V: {verified}")
    bed.policy()
    m.run(f"{ENFORCE}; systemctl reload nodewall")
    before, watch = bed.prop("MainPID"), Watch(bed.prober)
    m.run("rpm -U --nodeps /host/new.rpm 2>&1")
    say(watch.hold(), "while it was upgraded")
    must(bed.prop("MainPID") != before and bed.status()["mode"] == "enforce", "the new version runs, as the old one was set")
    watch = Watch(bed.prober)
    m.run("rpm -U --nodeps --oldpackage /host/old.rpm 2>&1")
    say(watch.hold(), "while it was downgraded")
    m.run("rpm -e nodewall 2>&1")
    must(m.attempt("nft list table inet nodewall")[0] != 0, "a removed package leaves no table")
    must(m.attempt("systemctl is-active nodewall")[0] != 0, "nor a daemon")
    say(afresh(bed).open(), "after it was removed")


SCENARIOS = (install, verbs, load, reboots, upgrade, power_cuts, rpm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("nspawn", "vm"))
    parser.add_argument("--lab", required=True, help="what setup.sh made")
    parser.add_argument("--old", required=True, help="a .deb of an older version")
    parser.add_argument("--new", required=True, help="a .deb")
    parser.add_argument("--rpms", help="a directory with an older and a newer .rpm")
    parser.add_argument("--reboots", type=int, default=10)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="so many scenarios at a time")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(one.__name__ for one in SCENARIOS))
    arguments = parser.parse_intermixed_args()
    wanted = [one for one in SCENARIOS if not arguments.scenarios or one.__name__ in arguments.scenarios]
    if not arguments.rpms:
        wanted = [one for one in wanted if one is not rpm]
    if not wanted:
        parser.error("no such scenario")
    print(f"seed {arguments.seed}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        failed = [name for name in pool.map(lambda one: play(one, arguments), wanted) if name]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def play(scenario, arguments):
    """Plays a scenario and tells of it when it is over; its name if it has failed."""
    begun, told, failed, bed = time.monotonic(), [], None, None
    try:
        bed = Bed(arguments)
        scenario(bed, lambda *words: told.append(": ".join(reversed([str(word) for word in words]))))
    except Failed as error:
        failed = scenario.__name__
        told.append(f"FAILED {failed}: {error}")
        if bed:
            with contextlib.suppress(Failed, OSError):
                wanted = "journalctl -b -u nodewall -u nodewall-boot -n 60 --no-pager; nodewall status; ip -br address"
                told.append(bed.machine.attempt(wanted, 20)[1])
    finally:
        if bed:
            bed.machine.close()
    lines = [f"{scenario.__name__}, {time.monotonic() - begun:.1f} s: {scenario.__doc__}", *(f"    {line}" for line in told)]
    print("\n".join(lines), flush=True)
    return failed


if __name__ == "__main__":
    main()
