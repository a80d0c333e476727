"""A real API server on loopback: etcd, apiextensions-apiserver, and a stub that says yes to who may do what, as that server asks
another one. There are no nodes, no namespaces and no RBAC in it."""

import http.server
import json
import pathlib
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Yes(http.server.BaseHTTPRequestHandler):
    """Answers a SubjectAccessReview with yes, and knows nothing else."""

    protocol_version = "HTTP/1.1"

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            review = json.loads(data)
        except ValueError:
            # It tries its own binary form first.
            self.answer(415, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 415})
            return
        self.answer(201, review | {"status": {"allowed": True}})

    def do_GET(self):
        self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """Runs while the `with` lasts."""

    # What it asks the other server, which is ours; what it does without; and what else it is told.
    stub_answers = Yes
    plugins_off = ("NamespaceLifecycle", "MutatingAdmissionWebhook", "ValidatingAdmissionWebhook", "ValidatingAdmissionPolicy",
                   "MutatingAdmissionPolicy")
    arguments = ()

    def __init__(self, programs, folder):
        self.programs, self.folder = pathlib.Path(programs), pathlib.Path(folder)
        self.processes = []
        self.context = ssl._create_unverified_context()

    def __enter__(self):
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self):
        self.stub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.stub_answers)
        threading.Thread(target=self.stub.serve_forever, daemon=True).start()
        kubeconfig = self.folder / "kubeconfig"
        kubeconfig.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n"
            f'clusters: [{{name: a, cluster: {{server: "http://127.0.0.1:{self.stub.server_port}"}}}}]\n'
            "users: [{name: a, user: {}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\n"
        )
        etcd, port = self.start_etcd(), free_port()
        self.start("apiserver", "--etcd-servers", etcd, "--secure-port", port, "--bind-address", "127.0.0.1",
                   "--cert-dir", self.folder / "certificates", "--kubeconfig", kubeconfig,
                   "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
                   "--authentication-skip-lookup", "--disable-admission-plugins", ",".join(self.plugins_off), *self.arguments)
        self.address = f"https://127.0.0.1:{port}"
        self.until(lambda: self.call("GET", DEFINITIONS)[0] == 200, "the API server does not answer")

    def start_etcd(self):
        """The address of an etcd."""
        client, peer = free_port(), free_port()
        etcd, other = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.start("etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
                   "--listen-peer-urls", other, "--initial-advertise-peer-urls", other, "--initial-cluster", f"default={other}")
        return etcd

    def start(self, program, *arguments):
        log = open(self.folder / f"{program}.log", "wb")
        command = [str(self.programs / program), *map(str, arguments)]
        self.last_started = program
        self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        self.stub.shutdown()

    def until(self, holds, complaint, seconds=60):
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                log = (self.folder / f"{self.last_started}.log").read_text(errors="replace")[-2000:]
                raise SystemExit(f"{complaint}\n{log}")
            time.sleep(0.05)

    def call(self, method, path, body=None, kind="application/json", who=None, headers=None):
        """The status and the answer of a request; of nobody in particular, unless `who` says so."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind} | (headers or {}) | (who.headers if who else {})
        request = urllib.request.Request(self.address + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, context=who.context if who else self.context) as answer:
                return answer.status, self.parsed(answer)
        except urllib.error.HTTPError as error:
            return error.code, self.parsed(error)
        except urllib.error.URLError:
            return 0, {}

    def parsed(self, answer):
        """A body, which need not be JSON: errors on the way, and what is watched, are not."""
        text = answer.read().decode(errors="replace")
        try:
            return json.loads(text)
        except ValueError:
            return {"message": text}
