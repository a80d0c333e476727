"""The end of the demonstration on a terminal: a shell in the node, with nodewall wired to its files."""

import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable

from daemon import Daemon
from network import namespace
from probes import ProbeError
from table import Paint
from world import HOSTS

KNOCK = """#!/usr/bin/env python3
import socket, sys
if len(sys.argv) != 3:
    sys.exit("usage: knock ADDRESS PORT")
try:
    with socket.create_connection(sys.argv[1:], timeout=1) as answer:
        print("open:", answer.recv(100).decode(errors="replace").strip())
except OSError as error:
    sys.exit(f"shut: {error}")
"""
REACH = """#!/usr/bin/env python3
import socket, sys
with socket.socket(socket.AF_UNIX) as ask:
    ask.connect({path!r})
    while part := ask.recv(65536):
        sys.stdout.buffer.write(part)
"""


def explore(daemon: Daemon, directory: pathlib.Path, paint: Paint, table: Callable[[], str]) -> None:
    """Runs the shell until its user leaves it."""
    commands = directory / "bin"
    commands.mkdir()
    paths = ["--config", str(daemon.config), "--policy-dir", str(daemon.policies)]
    script(commands / "nodewall", f'#!/bin/sh\nexec {shlex.join([str(daemon.binary), *paths])} "$@"\n')
    reach_socket = directory / "reach.sock"
    script(commands / "reach", REACH.format(path=str(reach_socket)))
    prefix = namespace("")
    script(
        commands / "on",
        f'#!/bin/sh\n[ $# -ge 2 ] || {{ echo "usage: on HOST COMMAND..." >&2; exit 2; }}\nhost=$1; shift\n'
        f'exec ip netns exec {shlex.quote(prefix)}"$host" "$@"\n',
    )
    script(commands / "knock", KNOCK)
    rc = directory / "shellrc"
    rc.write_text(
        f"export PATH={shlex.quote(str(commands))}:\"$PATH\"\ncd {shlex.quote(str(directory))}\n"
        "PS1='[gpu-node] \\w # '\nunset HISTFILE PROMPT_COMMAND\n",
        encoding="utf-8",
    )
    print(paint.heading("\nYou are on the node now.") + " Leave with `exit`; everything goes away then. Things to try:\n")
    print(f"""  nodewall status                       what is in force, and what it has counted
  nodewall check                        what is wrong with the policy
  nodewall render                       the policy as nft would write it
  nft list table inet nodewall          the same, as the kernel has it
  $EDITOR policy.d/30-services.toml     change it; then
  reach                                 the table again, probed now
  echo oops >> policy.d/50-pods.toml    a bad file; `nodewall status` says so, and `reach` that nothing opened
  on stranger knock 10.77.1.1 45000     be somebody else: {' '.join(host.name for host in HOSTS)}
""")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(reach_socket))
        server.listen()
        threading.Thread(target=answer, args=(server, table), daemon=True).start()
        bash = shutil.which("bash")
        shell = [bash, "--noprofile", "--rcfile", str(rc), "-i"] if bash else ["env", f"ENV={rc}", "sh", "-i"]
        # Ctrl-C is the shell's while it runs. A handler, unlike SIG_IGN, is not inherited by it.
        before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
        child = subprocess.Popen(["ip", "netns", "exec", namespace("node"), *shell])
        try:
            child.wait()
        finally:
            end(child)
            signal.signal(signal.SIGINT, before)
            server.shutdown(socket.SHUT_RDWR)


def end(child: subprocess.Popen) -> None:
    """Ends the shell when the story is ended around it."""
    if child.poll() is None:
        child.send_signal(signal.SIGHUP)
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def answer(server: socket.socket, table: Callable[[], str]) -> None:
    """Gives everybody who connects a table."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            try:
                connection.sendall(table().encode())
            except ProbeError as error:
                connection.sendall(f"{error}\n".encode())
            except BrokenPipeError:
                continue


def script(path: pathlib.Path, text: str) -> None:
    """Writes a program."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
