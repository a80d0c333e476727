#!/usr/bin/env python3
"""`make test-rbac`: that a node writes its own state only, by the ValidatingAdmissionPolicy of packaging/kubernetes/admission in the CEL of a
real API server of Kubernetes 1.36. The core API, from which that server gets policies and who a token is, is a stub; it allows every
request of everybody, so that what is refused is refused by the policy. The exit code is 1 if anything is otherwise.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import json
import pathlib
import tempfile
import threading
import urllib.parse

import manifests
from identity import Authority, by_token
from server import DEFINITIONS, Server, Yes

STATES = "/apis/nodewall.dev/v1alpha1/hoststates"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
KINDS = {
    POLICIES: ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    BINDINGS: ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
    "/api/v1/namespaces": ("v1", "Namespace"),
}
CLAIM = "authentication.kubernetes.io/node-name"
ACCOUNT = "system:serviceaccount:nodewall:nodewall-node"
TOKENS = {
    "pod-on-a": (ACCOUNT, {CLAIM: ["node-a"]}),
    "pod-on-b": (ACCOUNT, {CLAIM: ["node-b"]}),
    "pod-on-no-node": (ACCOUNT, {}),
    "pod-on-both": (ACCOUNT, {CLAIM: ["node-a", "node-b"]}),
    "other-pod-on-a": ("system:serviceaccount:other:other", {CLAIM: ["node-a"]}),
    "namesake-pod-on-a": ("system:serviceaccount:other:nodewall-node", {CLAIM: ["node-a"]}),
    "controller": ("system:serviceaccount:nodewall:nodewall-controller", {}),
    "garbage-collector": ("system:serviceaccount:kube-system:generic-garbage-collector", {}),
    "cluster-admin": ("alice@example.org", {}),
    "may-delete-by-name": ("bob@example.org", {}),
}


class Core(Yes):
    """The core API as far as the server asks for it."""

    objects = {path: [] for path in KINDS}
    revision = 1
    changed = threading.Condition()
    asked = set()

    @classmethod
    def add(cls, path, document):
        with cls.changed:
            cls.revision += 1
            document["metadata"] |= {"resourceVersion": str(cls.revision), "uid": f"{cls.revision}", "generation": 1}
            cls.objects[path].append(document)
            cls.changed.notify_all()

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            review = json.loads(data)
        except ValueError:
            # It tries its own binary form first.
            self.answer(415, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 415})
            return
        if review["kind"] == "TokenReview":
            name, extra = TOKENS[review["spec"]["token"]]
            groups = ["system:authenticated"]
            user = {"username": name, "groups": groups, "extra": extra}
            status = {"authenticated": True, "user": user}
        else:
            # Everybody may do everything, but delete everything: that is for those who may do everything indeed.
            what = review["spec"].get("resourceAttributes", {})
            status = {"allowed": what.get("verb") != "deletecollection" or review["spec"]["user"] == "alice@example.org"}
        self.answer(201, review | {"status": status})

    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        if address.path not in KINDS:
            super().do_GET()
        elif query.get("watch") in ("true", "1"):
            self.watch(address.path, query)
        else:
            version, kind = KINDS[address.path]
            with self.changed:
                items, revision = list(self.objects[address.path]), str(self.revision)
            Core.asked.add(address.path)
            self.answer(200, {"apiVersion": version, "kind": kind + "List", "metadata": {"resourceVersion": revision}, "items": items})

    def watch(self, path, query):
        version, kind = KINDS[path]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = int(query.get("resourceVersion") or 0)
        first = query.get("sendInitialEvents") == "true"
        Core.asked.add(path)
        try:
            while True:
                with self.changed:
                    events = [each for each in self.objects[path] if first or int(each["metadata"]["resourceVersion"]) > seen]
                    seen = self.revision
                for each in events:
                    self.event("ADDED", each)
                if first:
                    note = {"resourceVersion": str(seen), "annotations": {"k8s.io/initial-events-end": "true"}}
                    self.event("BOOKMARK", {"apiVersion": version, "kind": kind, "metadata": note})
                    first = False
                with self.changed:
                    self.changed.wait_for(lambda: self.revision > seen, timeout=600)
        except OSError:
            pass  # It has gone.

    def event(self, kind, body):
        data = json.dumps({"type": kind, "object": body}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


def defaulted(document):
    """A policy with the defaults that a server of admissionregistration.k8s.io gives it."""
    constraints = document["spec"].get("matchConstraints")
    if constraints:
        document["spec"]["matchConstraints"] = {"namespaceSelector": {}, "objectSelector": {}} | constraints
        for rule in constraints["resourceRules"]:
            rule.setdefault("scope", "*")
    return document


class Judged(Server):
    """A server that asks admission policies, and knows clients by certificate."""

    stub_answers = Core
    plugins_off = tuple(plugin for plugin in Server.plugins_off if plugin != "ValidatingAdmissionPolicy")

    def __init__(self, programs, folder):
        super().__init__(programs, folder)
        self.authority = Authority(folder)
        self.arguments = ("--client-ca-file", self.authority.certificate)


def state(node, **metadata):
    return {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostState", "metadata": {"name": node} | metadata, "spec": {"node": node}}


class Requests:
    """What is asked of the state of a node."""

    def __init__(self, server, owner):
        self.server, self.owner = server, owner

    def there(self, node):
        status, answer = self.apply(self.owner[node], node)
        assert status in (200, 201), answer

    def gone(self, node):
        status, answer = self.server.call("DELETE", f"{STATES}/{node}", who=self.admin)
        assert status in (200, 404), answer

    def create(self, who, node):
        self.gone(node)
        return self.server.call("POST", STATES, state(node), who=who)

    def apply(self, who, node, extra=None, path=""):
        address = f"{STATES}/{node}{path}?fieldManager=nodewall&force=true"
        return self.server.call("PATCH", address, state(node) | (extra or {}), "application/apply-patch+yaml", who=who)

    def create_by_apply(self, who, node):
        self.gone(node)
        return self.apply(who, node)

    def annotate(self, who, node):
        self.there(node)
        body = {"metadata": {"annotations": {"by": who.name}}}
        return self.server.call("PATCH", f"{STATES}/{node}", body, "application/merge-patch+json", who=who)

    def replace(self, who, node):
        self.there(node)
        before = self.server.call("GET", f"{STATES}/{node}", who=self.admin)[1]
        before["metadata"]["annotations"] = {"by": who.name}
        return self.server.call("PUT", f"{STATES}/{node}", before, who=who)

    def apply_status(self, who, node):
        self.there(node)
        return self.apply(who, node, {"status": {"mode": "enforce", "hash": who.name}}, "/status")

    def patch_status(self, who, node):
        self.there(node)
        body = {"status": {"mode": "audit", "hash": who.name}}
        return self.server.call("PATCH", f"{STATES}/{node}/status", body, "application/merge-patch+json", who=who)

    def replace_status(self, who, node):
        self.there(node)
        before = self.server.call("GET", f"{STATES}/{node}", who=self.admin)[1]
        return self.server.call("PUT", f"{STATES}/{node}/status", before | {"status": {"mode": "audit", "hash": who.name}}, who=who)

    def delete(self, who, node):
        self.there(node)
        return self.server.call("DELETE", f"{STATES}/{node}", who=who)

    def delete_all(self, who, node):
        self.there(node)
        return self.server.call("DELETE", STATES, who=who)

    def take_finalizer(self, who, node):
        """As the garbage collector does after `kubectl delete --cascade=foreground`."""
        self.there(node)
        merge = "application/merge-patch+json"
        own = self.server.call("PATCH", f"{STATES}/{node}", {"metadata": {"finalizers": ["test/wait"]}}, merge, who=self.owner[node])
        assert own[0] == 200, own
        answer = self.server.call("PATCH", f"{STATES}/{node}", {"metadata": {"finalizers": None}}, merge, who=who)
        if answer[0] != 200:
            own = self.server.call("PATCH", f"{STATES}/{node}", {"metadata": {"finalizers": None}}, merge, who=self.owner[node])
            assert own[0] == 200, own
        return answer


WRITES = ["create", "create_by_apply", "annotate", "replace", "apply_status", "patch_status", "replace_status", "delete"]
STATE_WRITES = ["create", "create_by_apply", "apply_status", "patch_status", "replace_status"]


def table():
    """Who, what, on the state of which node, and whether it is allowed."""
    for who, own, other in [("certificate of a", "node-a", "node-b"), ("pod-on-a", "node-a", "node-b"), ("pod-on-b", "node-b", "node-a")]:
        for what in WRITES:
            yield who, what, own, True
            yield who, what, other, False
    for who in ["pod-on-no-node", "pod-on-both", "other-pod-on-a", "namesake-pod-on-a", "kubelet of a", "certificate of a without CN prefix",
                "certificate of a longer name", "may-delete-by-name"]:
        for what in WRITES:
            yield who, what, "node-a", False
    for who in ["controller", "garbage-collector", "cluster-admin", "system:masters"]:
        for what in STATE_WRITES:
            yield who, what, "node-a", False
        yield who, "delete", "node-a", True
        yield who, "annotate", "node-a", True
        yield who, "take_finalizer", "node-a", True
    for who in ["pod-on-b", "may-delete-by-name"]:
        yield who, "take_finalizer", "node-a", False
    for who in ["cluster-admin", "system:masters"]:
        yield who, "delete_all", "node-a", True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="the folder that build.sh printed")
    arguments = parser.parse_args()
    failed = 0

    def check(name, holds, detail=""):
        nonlocal failed
        failed += not holds
        print("ok    " if holds else "FAILED", name + ("" if holds else f": {detail}"))

    with tempfile.TemporaryDirectory() as folder, Judged(arguments.programs, folder) as server:
        sign = server.authority.identity
        who = {name: by_token(name, name) for name in TOKENS} | {
            "system:masters": sign("system:masters", "admin", "system:masters"),
            "certificate of a": sign("certificate of a", "nodewall:node:node-a", "nodewall:nodes"),
            "certificate of b": sign("certificate of b", "nodewall:node:node-b", "nodewall:nodes"),
            "certificate of a longer name": sign("certificate of a longer name", "nodewall:node:node-a1", "nodewall:nodes"),
            "certificate of a without CN prefix": sign("certificate of a without CN prefix", "node-a", "nodewall:nodes"),
            "kubelet of a": sign("kubelet of a", "system:node:node-a", "system:nodes"),
        }
        requests = Requests(server, {"node-a": who["certificate of a"], "node-b": who["certificate of b"]})
        requests.admin = who["system:masters"]
        for definition in manifests.documents("crds"):
            status, answer = server.call("POST", DEFINITIONS, definition, who=requests.admin)
            assert status == 201, answer
        server.until(lambda: server.call("GET", STATES, who=requests.admin)[0] == 200, "HostState is not served")

        # Without the policy everything is allowed, or the table below shows nothing.
        status, answer = requests.patch_status(who["certificate of b"], "node-a")
        check("without the policy node b writes the state of a", status == 200, answer)
        for document in manifests.documents("admission"):
            for path, (_, kind) in KINDS.items():
                if document["kind"] == kind:
                    Core.add(path, defaulted(document))
        missing = {POLICIES, BINDINGS} - Core.asked
        check("the server follows policies and bindings", not missing, missing)
        server.until(lambda: requests.patch_status(who["certificate of b"], "node-a")[0] != 200, "the policy does not come to hold")

        for name, what, node, allowed in table():
            status, answer = getattr(requests, what)(who[name], node)
            if allowed:
                holds = status in (200, 201)
            else:
                message = answer.get("message", "")
                holds = status == 403 and "nodewall-hoststates" in message and f"the state of node {node} is written by that node only" in message
            check(f"{'allowed' if allowed else 'refused'}: {name}, {what.replace('_', ' ')}, {node}", holds, f"{status} {answer.get('message')}")
        # Everything else is none of its business.
        policy = {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostTier", "metadata": {"name": "x"}, "spec": {"order": 1, "default": "pass"}}
        status, answer = server.call("POST", "/apis/nodewall.dev/v1alpha1/hosttiers", policy, who=who["may-delete-by-name"])
        check("allowed: may-delete-by-name, create, a HostTier", status == 201, answer)
    print(f"{failed} failed" if failed else "all hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
