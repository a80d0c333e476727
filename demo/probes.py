"""Asks the agents in all namespaces who reaches what, and folds their answers into the cells of the table."""

import json
import pathlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from network import namespace
from world import HOSTS, NODE_HOST, OUTWARD, SERVICES, Cell, address, host_named

# On a veth an answer takes microseconds; the rest is for a busy machine.
PATIENCE_SECONDS = 0.4
# Before something that should answer counts as silent, it is asked once more with more time.
MORE_PATIENCE_SECONDS = 2.0


class ProbeError(Exception):
    """An agent did not start or did not answer."""


@dataclass(frozen=True)
class Attempt:
    """One connection to try, and the cell that it belongs to."""

    agent: str
    cell: Cell
    address: str
    port: int
    service: str
    family: int
    door: str


def attempts() -> list[Attempt]:
    """Every connection of a matrix: each host, each of the node's addresses that it may try, each service, both families."""
    tried = [
        Attempt(host.name, (host.name, service.name), address(door, NODE_HOST, family), service.port, service.name, family, door)
        for host in HOSTS
        for door in host.doors
        for service in SERVICES
        for family in (4, 6)
    ]
    for name, segment, service in OUTWARD:
        number = host_named(name).links[segment]
        cell = ("node", f"{name}:{service.name}")
        tried += [
            Attempt("node", cell, address(segment, number, family), service.port, service.name, family, segment)
            for family in (4, 6)
        ]
    return tried


@dataclass(frozen=True)
class Reach:
    """What a cell came to: the answers by (family, address tried)."""

    words: dict[tuple[int, str], str]

    @property
    def opened(self) -> frozenset[tuple[int, str]]:
        """Where it is open."""
        return frozenset(way for way, word in self.words.items() if word == "open")

    @property
    def open(self) -> bool | None:
        """Whether all of it is open, none of it, or (None) some of it."""
        if self.opened and self.opened != self.words.keys():
            return None
        return bool(self.opened)

    def short(self, yes: str, no: str) -> str:
        """The cell's text: one mark, or what is open where it differs."""
        if self.open is not None:
            return yes if self.open else no
        for family in (4, 6):
            if self.opened == {way for way in self.words if way[0] == family}:
                return f"v{family} only"
        return "partly"

    def long(self) -> str:
        """All answers in words."""
        return ", ".join(f"IPv{family} by {door}: {word}" for (family, door), word in self.words.items())


Matrix = dict[Cell, Reach]


class Agents:
    """One agent process for each namespace."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen] = {}
        # The shell's `reach` and the story ask from different threads.
        self.lock = threading.Lock()

    def start(self) -> None:
        """Starts all of them and waits until they listen."""
        listens = {host.name: host.listens for host in HOSTS} | {"node": SERVICES}
        program = pathlib.Path(__file__).with_name("agent.py")
        for name, services in listens.items():
            arguments = [f"{service.name}={service.port}" for service in services]
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", namespace(name), sys.executable, "-I", "-S", str(program), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Ctrl-C is for the story, which then ends them in order.
                start_new_session=True,
            )
        for name, process in self.processes.items():
            if process.stdout.readline() != "ready\n":
                raise ProbeError(f"the listeners of {name} did not start")

    def stop(self) -> None:
        """Ends all of them."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self.processes = {}

    def ask(self, name: str, request: dict) -> object:
        """One request to one agent."""
        process = self.processes[name]
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise ProbeError(f"the agent of {name} has ended") from error
        answer = process.stdout.readline()
        if not answer:
            raise ProbeError(f"the agent of {name} has ended")
        return json.loads(answer)

    def matrix(self, expected_open: frozenset[Cell]) -> Matrix:
        """Who reaches what now. Silence where an answer is expected is asked again; an answer never is."""
        with self.lock:
            tried = attempts()
            words = self._try(tried, PATIENCE_SECONDS)
            again = [attempt for attempt in tried if words[attempt] == "silent" and attempt.cell in expected_open]
            words |= self._try(again, MORE_PATIENCE_SECONDS)
        cells: dict[Cell, dict[tuple[int, str], str]] = {}
        for attempt in tried:
            cells.setdefault(attempt.cell, {})[attempt.family, attempt.door] = words[attempt]
        return {cell: Reach(answers) for cell, answers in cells.items()}

    def _try(self, tried: list[Attempt], timeout: float) -> dict[Attempt, str]:
        """All of them at once."""
        by_agent: dict[str, list[Attempt]] = {}
        for attempt in tried:
            by_agent.setdefault(attempt.agent, []).append(attempt)
        if not by_agent:
            return {}

        def one(name: str) -> list[str]:
            probes = [[attempt.address, attempt.port, attempt.service] for attempt in by_agent[name]]
            return self.ask(name, {"timeout": timeout, "probes": probes})

        with ThreadPoolExecutor(len(by_agent)) as pool:
            answers = list(pool.map(one, by_agent))
        return {
            attempt: word for group, reply in zip(by_agent.values(), answers) for attempt, word in zip(group, reply)
        }


def mismatches(matrix: Matrix, expected_open: frozenset[Cell]) -> list[tuple[Cell, Reach]]:
    """The cells that are not as expected."""
    return [(cell, reach) for cell, reach in matrix.items() if reach.open is not (cell in expected_open)]


def changed(before: Matrix, after: Matrix) -> list[Cell]:
    """The cells that differ."""
    return [cell for cell in after if after[cell].opened != before[cell].opened]
