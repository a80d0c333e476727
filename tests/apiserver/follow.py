#!/usr/bin/env python3
"""`make test-apiserver`: the contract suite of tests/kube, unchanged, against a real API server, which is killed and started again on
its demand. The exit code is that of the suite.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import http.server
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading

from server import DEFINITIONS, Server

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Restarted(Server):
    """A server that can be killed, and comes back on the same address with what etcd has."""

    def start(self, program, *arguments):
        super().start(program, *arguments)
        self.last = (program, *arguments)

    def restart(self):
        process = self.processes.pop()
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start(*self.last)


def demands(server):
    """Listens for whoever wants the server to be killed; the command that demands it."""

    class Demand(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.restart()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    listener = http.server.HTTPServer(("127.0.0.1", 0), Demand)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listener.server_port}/"
    return f'python3 -c "import urllib.request; urllib.request.urlopen(\'{url}\').read()"'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="the folder that build.sh printed")
    parser.add_argument("--nodewall", required=True, help="the program")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Restarted(arguments.programs, folder) as server:
        made = subprocess.run([arguments.nodewall, "crd", "--json"], check=True, capture_output=True, text=True)
        for definition in json.loads(made.stdout)["items"]:
            status, answer = server.call("POST", DEFINITIONS, definition)
            assert status == 201, answer
            path = f"/apis/nodewall.dev/v1alpha1/{definition['spec']['names']['plural']}"
            server.until(lambda: server.call("GET", path)[0] == 200, f"{path} is not served")
        kubeconfig = pathlib.Path(folder) / "nodewall.kubeconfig"
        kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n"
            f'clusters: [{{name: a, cluster: {{server: "{server.address}", insecure-skip-tls-verify: true}}}}]\n'
            "users: [{name: a, user: {}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
        )
        environment = os.environ | {
            "NODEWALL_TEST_KUBECONFIG": str(kubeconfig),
            "NODEWALL_TEST_RESTART": demands(server),
        }
        # One after the other: they share the server.
        command = ["cargo", "test", "--test", "kube", "contract", "--", "--test-threads=1", "--nocapture"]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
