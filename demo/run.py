#!/usr/bin/env python3
"""`make run`: nodewall's main job, shown on a simulated GPU node in throw-away network namespaces.

Builds the network, shows who reaches what without nodewall and with it, changes a policy file live, kills the daemon, starts
it again, and on a terminal stays for a look around. It is a test as well: the exit code is 1 if any cell of any table is not
as `world.py` says, 2 if it cannot run here at all. Nothing is left behind.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import difflib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import network
import shell
import table
import world
from daemon import Daemon, DaemonError, write
from probes import Agents, Matrix, ProbeError, changed, mismatches

EXIT_WRONG, EXIT_IMPOSSIBLE = 1, 2
TEMPORARY = "/tmp"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(Exception):
    """A signal asks the demonstration to end."""


def ended_by(number: int, _frame: object) -> None:
    """The handler of the signals that end it. Once is enough: a second one must not disturb the cleaning up."""
    for signal_number in ENDING_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise Ended(number)


class Story:
    """The steps, what they saw, and what was not as expected."""

    def __init__(self, paint: table.Paint, agents: Agents, daemon: Daemon) -> None:
        self.paint, self.agents, self.daemon = paint, agents, daemon
        self.problems: list[str] = []
        self.said: set[str] = set()
        self.before: Matrix = {}

    def step(self, text: str) -> None:
        """Says what comes next."""
        print(self.paint.heading(f"\n{text}"), flush=True)

    def look(self, expected: frozenset[world.Cell], when: str) -> tuple[Matrix, set[world.Cell]]:
        """Probes everything and notes what is not as expected."""
        matrix = self.agents.matrix(expected)
        wrong = mismatches(matrix, expected)
        for cell, reach in wrong:
            should = "open" if cell in expected else "shut"
            problem = f"{table.name_of(cell)} should be {should}; {reach.long()}"
            # What stays wrong is said once.
            if problem not in self.said:
                self.said.add(problem)
                self.problems.append(f"{when}: {problem}")
        if when != "before nodewall" and self.agents.ask("peer", {"held": True}) is not True:
            self.problems.append(f"{when}: the training peer's connection, opened before nodewall came, carries nothing")
        return matrix, {cell for cell, _ in wrong}

    def tell(self) -> None:
        """All steps but the last."""
        self.step("1  A GPU node, seven services listening on every address, eight hosts around it; no firewall yet")
        self.before, wrong_before = self.look(world.OPEN_BEFORE, "before nodewall")
        rail = world.address("rail0", world.NODE_HOST, 4)
        if self.agents.ask("peer", {"hold": [rail, 45000, "nccl"]}) != "open":
            self.problems.append("before nodewall: the training peer cannot open its connection")
        opened = sum(1 for reach in self.before.values() if reach.open)
        print(f"   {opened} of {len(self.before)} ways are open. The training peer opens a connection that is to last.")

        self.step("2  nodewall starts, with the policy of demo/policy.d")
        took = self.daemon.start()
        generation, _ = self.daemon.in_force()
        after, wrong = self.look(world.OPEN_AFTER, "with nodewall")
        print(f"   In force {took * 1000:.0f} ms after its start.\n")
        print(table.render(self.paint, self.before, after, wrong | wrong_before))

        self.step(f"3  An operator edits policy.d/{world.CHANGED_FILE}")
        self.edit()
        _, took = self.daemon.in_force(newer_than=generation)
        now, wrong = self.look(world.OPEN_AFTER_CHANGE, "after the change")
        print(f"   In force {took * 1000:.0f} ms later:")
        for cell in changed(after, now):
            text, _ = self.paint.cell(after[cell], now[cell], cell in wrong)
            print(f"     {table.name_of(cell):<32} {text}")
        self.unchanged(len(now) - len(changed(after, now)))

        self.step("4  $ nodewall status")
        self.show("status", "--color", "always" if self.paint.colours else "never")

        self.step("5  kill -9 of the daemon, then a new one")
        self.daemon.end(signal.SIGKILL)
        self.compare(now, "after kill -9", "dead")
        self.daemon.start()
        self.daemon.in_force()
        self.compare(now, "after the restart", "back")
        if not self.problems:
            print("   The connection that the training peer opened at the start carried data all along.")

    def edit(self) -> None:
        """The live change, shown as a difference."""
        path = self.daemon.policies / world.CHANGED_FILE
        old = path.read_text(encoding="utf-8")
        new = old
        for was, becomes in world.CHANGES:
            if new.count(was) != 1:
                raise DaemonError(f"{world.CHANGED_FILE} does not have this exactly once: {was.strip()}")
            new = new.replace(was, becomes)
        colours = {"-": "31", "+": "32"}
        for line in difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""):
            if line[:1] in colours and line[:3] not in ("---", "+++"):
                print("     " + self.paint(colours[line[0]], line))
        write(path, new)

    def compare(self, earlier: Matrix, when: str, state: str) -> None:
        """Probes again; nothing may differ from before."""
        now, wrong = self.look(world.OPEN_AFTER_CHANGE, when)
        differing = changed(earlier, now)
        print(f"   The daemon is {state}: ", end="")
        if not differing:
            print(self.paint.good(f"all {len(now)} verdicts are as they were."))
        for cell in differing:
            text, _ = self.paint.cell(earlier[cell], now[cell], cell in wrong)
            print(f"\n     {table.name_of(cell):<32} {text}")

    def unchanged(self, count: int) -> None:
        """The rest of a change."""
        print(self.paint.faint(f"     the other {count} are as they were"))

    def show(self, *arguments: str) -> None:
        """Runs a nodewall command for its output."""
        sys.stdout.flush()
        done = subprocess.run(self.daemon.command(*arguments), check=False, timeout=30)
        if done.returncode != 0:
            self.problems.append(f"`nodewall {arguments[0]}` ended with exit code {done.returncode}")

    def table_now(self) -> str:
        """The table for the shell; whatever its user made of the policy is right."""
        now = self.agents.matrix(frozenset())
        return table.render(self.paint, self.before, now, set()) + "\n"


def main() -> int:
    """Checks, runs the story, cleans up; the exit code."""
    arguments = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    arguments.add_argument("--binary", type=pathlib.Path, required=True, help="the nodewall program")
    binary = arguments.parse_args().binary.resolve()
    impossible = why_not(binary)
    if impossible:
        print(f"demo: {impossible}", file=sys.stderr)
        return EXIT_IMPOSSIBLE
    for number in ENDING_SIGNALS:
        signal.signal(number, ended_by)
    os.umask(0o022)

    paint, began = table.Paint(), time.monotonic()
    problems, code = [], 0
    # Not in TMPDIR, which may be too long for the name of a socket.
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{network.PREFIX}{os.getpid()}-", dir=TEMPORARY))
    agents, daemon = Agents(), None
    try:
        remove_leftovers()
        daemon = Daemon(binary, directory)
        network.build()
        agents.start()
        story = Story(paint, agents, daemon)
        problems = story.problems
        story.tell()
        if sys.stdin.isatty() and sys.stdout.isatty():
            shell.explore(daemon, directory, paint, story.table_now)
    except network.NetworkError as error:
        problems.append(f"{error} (in a container, making namespaces takes --privileged)")
        code = EXIT_IMPOSSIBLE
    except (ProbeError, DaemonError) as error:
        problems.append(str(error))
    except Ended as error:
        code = 128 + error.args[0]
    except BrokenPipeError:
        # Nobody reads on, as with `| head`; what is said from here goes nowhere, the exit code does.
        code = EXIT_WRONG
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        # From here on nothing may stop the cleaning up.
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        problems += clean_up(agents, daemon, directory)
    sys.stdout.flush()
    if problems:
        print(paint.bad("\nNot as expected:"), file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        return code or EXIT_WRONG
    if code == 0:
        print(paint.good("\nEverything was as expected") + f", in {time.monotonic() - began:.1f} s; nothing is left behind.")
    return code


def why_not(binary: pathlib.Path) -> str | None:
    """What keeps the demonstration from running here."""
    if os.geteuid() != 0:
        return "it makes network namespaces and needs root: run it with sudo"
    if not shutil.which("ip"):
        return "the program ip is missing: install iproute2"
    if not os.access(binary, os.X_OK):
        return f"there is no program {binary}: build it with `cargo build --release`"
    if not pathlib.Path("/proc/sys/net/ipv6").exists():
        return "this kernel has no IPv6, and half of what is shown needs it"
    return None


def remove_leftovers() -> None:
    """What a demonstration left that was killed by SIGKILL."""
    for name in network.remove_leftovers():
        print(f"removed {name}, which an earlier run left")
    for path in pathlib.Path(TEMPORARY).glob(f"{network.PREFIX}*"):
        process = path.name.removeprefix(network.PREFIX).partition("-")[0]
        if process.isdecimal() and int(process) != os.getpid() and not network.alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def clean_up(agents: Agents, daemon: Daemon | None, directory: pathlib.Path) -> list[str]:
    """Ends and removes everything; what would not go."""
    if daemon:
        daemon.end(signal.SIGTERM)
    agents.stop()
    try:
        problems = network.remove()
    except network.NetworkError as error:
        problems = [str(error)]
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        problems.append(f"{directory} could not be removed")
    return problems


if __name__ == "__main__":
    sys.exit(main())
