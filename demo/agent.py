"""Runs inside one namespace: tiny listeners that say who they are, and a prober that is told on stdin what to try.

Usage: agent.py NAME=PORT...  Prints "ready" when all listen. Then each line of stdin is a request and each line of stdout its
answer, both JSON: {"timeout": SECONDS, "probes": [[ADDRESS, PORT, NAME], ...]} gives a list of words in the same order:
"open" (it is the listener of that name), "silent" (no answer in time), "refused", "unreachable", or "wrong" (somebody else
answered). {"hold": [ADDRESS, PORT, NAME]} opens a connection and keeps it; {"held": true} says whether it still carries data.
Ends when stdin does.
"""

import asyncio
import contextlib
import json
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """Says the service's name, then echoes lines."""
    with contextlib.suppress(OSError):
        writer.write(f"{name}\n".encode())
        await writer.drain()
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    writer.close()


async def connect(address: str, port: int, name: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects and reads who is there."""
    reader, writer = await asyncio.open_connection(address, port)
    greeting = (await reader.readline()).decode(errors="replace").strip()
    return ("open" if greeting == name else "wrong"), reader, writer


async def probe(address: str, port: int, name: str, timeout: float) -> str:
    """One word about one probe."""
    try:
        word, _, writer = await asyncio.wait_for(connect(address, port, name), timeout)
    except (TimeoutError, asyncio.TimeoutError):
        return "silent"
    except ConnectionError:
        return "refused"
    except OSError:
        return "unreachable"
    writer.close()
    return word


class Agent:
    """The requests, and the one connection that outlives them."""

    def __init__(self) -> None:
        self.kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def answer(self, request: dict) -> object:
        """Does what a request says."""
        if "probes" in request:
            timeout = request["timeout"]
            return await asyncio.gather(*(probe(*target, timeout) for target in request["probes"]))
        if "hold" in request:
            word, reader, writer = await asyncio.wait_for(connect(*request["hold"]), 2.0)
            self.kept = (reader, writer)
            return word
        return await self.carries_data()

    async def carries_data(self) -> bool:
        """Whether a line sent over the kept connection comes back."""
        if self.kept is None:
            return False
        reader, writer = self.kept
        try:
            writer.write(b"all-reduce\n")
            await writer.drain()
            return await asyncio.wait_for(reader.readline(), 1.0) == b"all-reduce\n"
        except (OSError, asyncio.TimeoutError):
            return False


async def main(services: list[str]) -> None:
    """Listens, and answers until stdin ends."""
    for service in services:
        name, port = service.split("=")
        # A socket of each family: "::" alone may or may not take IPv4, as the machine's bindv6only says.
        for address in ("0.0.0.0", "::"):
            await asyncio.start_server(lambda r, w, name=name: serve(r, w, name), address, int(port))
    requests = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    print("ready", flush=True)
    agent = Agent()
    while line := await requests.readline():
        print(json.dumps(await agent.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
