#!/usr/bin/env python3
"""`make test-apiserver`: the definitions of our objects in a real API server, with its validation and its CEL.

What nodewall takes, the server takes; what the server refuses, nodewall refuses, too; and what the server cannot tell is counted.
The exit code is 1 if anything is otherwise.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import json
import pathlib
import subprocess
import tempfile
import tomllib

from server import DEFINITIONS, Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = {
    "interface": "HostInterface",
    "set": "HostNetworkSet",
    "service": "HostService",
    "tier": "HostTier",
    "policy": "HostPolicy",
    "expect": "HostExpectation",
}
# What of tests/cases/bad no schema can tell: grammars, host bits, names inside of names, what is not supported yet.
MOST_THAT_ONLY_NODEWALL_TELLS = 22


class Tests:
    def __init__(self, server, nodewall):
        self.server, self.nodewall, self.plurals = server, nodewall, {}

    def run_nodewall(self, *arguments, data=""):
        return subprocess.run([self.nodewall, *arguments, "--color", "never"], input=data, capture_output=True, text=True)

    def path(self, kind):
        return f"/apis/nodewall.dev/v1alpha1/{self.plurals[kind]}"

    def post(self, document, query="?dryRun=All&fieldValidation=Strict"):
        return self.server.call("POST", self.path(document["kind"]) + query, document)

    def the_server_takes_the_definitions(self):
        definitions = json.loads(self.run_nodewall("crd", "--json").stdout)["items"]
        for definition in definitions:
            name, names = definition["metadata"]["name"], definition["spec"]["names"]
            status, answer = self.server.call("POST", DEFINITIONS, definition)
            assert status == 201, f"{name}: {answer.get('message')}"
            self.plurals[names["kind"]] = names["plural"]
        for kind in self.plurals:
            self.server.until(lambda: self.server.call("GET", self.path(kind))[0] == 200, f"{kind} is not served")
            _, answer = self.server.call("GET", f"{DEFINITIONS}/{self.plurals[kind]}.nodewall.dev")
            wrong = [each for each in answer["status"]["conditions"] if each["type"] == "NonStructuralSchema"]
            assert not wrong, f"{kind}: {wrong}"
        return f"{len(definitions)} definitions"

    def every_good_document_is_taken_and_read_back_as_the_same(self):
        files = [*ROOT.glob("config/**/*.toml"), *ROOT.glob("tests/cases/good/**/*.toml"), ROOT / "src/source/guards.toml"]
        files += [*ROOT.glob("tests/cases/simulate/*/policy.toml")]
        count = 0
        for file in sorted(files):
            converted = self.run_nodewall("convert", "--to", "json", str(file))
            if converted.returncode:
                continue  # nodewall.toml
            for document in json.loads(converted.stdout)["items"]:
                name = f"{file.relative_to(ROOT)} {document['metadata']['name']}"
                status, answer = self.post(document)
                assert status == 201, f"{name}: {answer.get('message')}"
                back = self.run_nodewall("convert", "-", data=json.dumps(answer))
                assert back.returncode == 0, f"{name}: {back.stderr}"
                count += 1
        assert count > 300, count
        return f"{count} documents"

    def the_server_refuses_only_what_nodewall_refuses(self):
        both, only_nodewall = 0, []
        for file in sorted(ROOT.glob("tests/cases/bad/*/*.toml")):
            try:
                tables = tomllib.loads(file.read_text())
            except (ValueError, OSError):
                continue
            for table, kind in KINDS.items():
                items = tables.get(table)
                for item in items if isinstance(items, list) else []:
                    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                        continue
                    document = self.document(kind, item)
                    refused = self.run_nodewall("convert", "-", data=json.dumps(document)).returncode == 5
                    status, answer = self.post(document)
                    assert status == 201 or refused, f"{file}: only the server refuses: {answer.get('message')}"
                    both += status != 201
                    if status == 201 and refused:
                        only_nodewall.append(file.parent.name)
        assert both > 90 and len(only_nodewall) <= MOST_THAT_ONLY_NODEWALL_TELLS, (both, only_nodewall)
        return f"{both} refused by both, {len(only_nodewall)} by nodewall only"

    def document(self, kind, item):
        spec = json.loads(json.dumps(item, default=lambda date: date.isoformat()))
        name = spec.pop("name")
        if kind == "HostExpectation":
            spec["name"], name = name, "x"
        return {"apiVersion": "nodewall.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}

    def rules_in_cel_say_what_is_wrong(self):
        rule = {"action": "allow"}
        wrong = {
            "`ports` needs `protocol`": {"ingress": [rule | {"ports": [22]}]},
            "`from.ports` needs `protocol`": {"ingress": [rule | {"from": {"ports": [22]}, "protocol": "esp"}]},
            "`to.ports` needs `protocol`": {"egress": [rule | {"to": {"ports": [22]}, "protocol": 47}]},
            "`not.ports` needs `protocol`": {"ingress": [rule | {"not": {"ports": [22]}}]},
            "say the same thing twice": {"egress": [rule | {"protocol": 6, "ports": [1], "to": {"ports": [1]}}]},
            "`services` stands without": {"ingress": [rule | {"services": ["a"], "protocol": "tcp"}]},
            "`icmp` needs protocol": {"ingress": [rule | {"protocol": "tcp", "icmp": {"type": 8}}]},
            "`not.icmp` needs protocol": {"ingress": [rule | {"protocol": "tcp", "not": {"icmp": {"type": 8}}}]},
            "a type number means different things": {"ingress": [rule | {"icmp": {"type": 8}}]},
            "protocol icmp is of IPv4": {"ingress": [rule | {"protocol": "icmpv6", "family": 4}]},
            "one of `ingress` and `egress`": {},
            "has no egress": {"stage": "prednat", "egress": []},
            "which only egress has": {"ingress": [rule | {"users": [0]}]},
            "which only stage \"host\" sees": {"stage": "forward", "egress": [rule | {"units": ["a.service"]}]},
            "`role` says which addresses": {"ingress": [rule | {"from": {"cidrs": ["10.0.0.0/8"], "role": "rail"}}]},
        }
        for message, spec in wrong.items():
            status, answer = self.post(self.document("HostPolicy", {"name": "x", "interfaces": "all()"} | spec))
            assert status == 422 and message in answer["message"], f"{message}: {status} {answer.get('message')}"
        for message, spec in {
            "one of `set`, `ingress` and `egress`": {},
            "`set` stands without": {"set": "a", "verdict": "deny"},
            "cannot stand in one expectation": {"ingress": {}, "egress": {}, "verdict": "deny"},
            "`example` needs `set`": {"example": ["10.0.0.0/8"], "ingress": {}, "verdict": "deny"},
            "needs `verdict`": {"ingress": {}},
        }.items():
            status, answer = self.post(self.document("HostExpectation", {"name": "x"} | spec))
            assert status == 422 and message in answer["message"], f"{message}: {status} {answer.get('message')}"
        status, answer = self.post(self.document("HostNetworkSet", {"name": "x"}))
        assert status == 422 and "`cidrs` must be there" in answer["message"], answer
        status, answer = self.post(self.document("HostTier", {"name": "x" * 64, "order": 1, "default": "pass"}))
        assert status == 422 and "63 characters" in answer["message"], answer
        return f"{len(wrong) + 7} rules"

    def the_largest_documents_are_taken(self):
        rules = [{"action": "allow", "protocol": "tcp", "ports": [port], "from": {"cidrs": ["10.0.0.0/8"]}} for port in range(4096)]
        large = self.document("HostPolicy", {"name": "large", "interfaces": "all()", "ingress": rules})
        status, answer = self.post(large)
        assert status == 201, answer.get("message")
        large["spec"]["ingress"].append(rules[0])
        assert self.post(large)[0] == 422
        prefixes = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(65536)]
        status, answer = self.post(self.document("HostNetworkSet", {"name": "large", "cidrs": prefixes}))
        assert status == 201, answer.get("message")
        return "4,096 rules, 65,536 prefixes"

    def what_is_left_out_is_filled_in(self):
        policy = self.document("HostPolicy", {"name": "x", "interfaces": "all()", "egress": [{"action": "deny", "log": True}]})
        spec = self.post(policy)[1]["spec"]
        assert (spec["tier"], spec["stage"], spec["mode"], spec["egress"][0]["log"]) == ("default", "host", "enforce", True), spec

    def an_unknown_key_is_refused_where_that_is_asked_for_and_else_gone(self):
        policy = self.document("HostPolicy", {"name": "x", "interfaces": "all()", "ingress": [{"action": "allow", "form": {}}]})
        status, answer = self.post(policy)
        assert status == 400 and "form" in answer["message"], answer
        status, answer = self.post(policy, "?dryRun=All&fieldValidation=Ignore")
        assert status == 201 and answer["spec"]["ingress"] == [{"action": "allow"}], answer

    def a_status_is_written_beside_the_spec(self):
        policy = self.document("HostPolicy", {"name": "status", "interfaces": "all()", "ingress": []})
        status, kept = self.post(policy, "")
        assert status == 201, kept
        condition = {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "m", "lastTransitionTime": "2026-11-26T01:36:16Z"}
        kept["status"] = {"accepted": False, "message": "spec.ingress: wrong", "observedGeneration": 1, "conditions": [condition]}
        kept["spec"]["interfaces"] = "has(x)"
        status, answer = self.server.call("PUT", self.path("HostPolicy") + "/status/status", kept)
        assert status == 200 and answer["status"] == kept["status"], answer
        assert answer["spec"]["interfaces"] == "all()" and answer["metadata"]["generation"] == 1, answer

    def the_state_of_a_node_is_that_of_its_node(self):
        def state(name, node):
            return {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostState", "metadata": {"name": name}, "spec": {"node": node}}

        status, answer = self.post(state("node-1", "node-2"))
        assert status == 422 and "has the name of its node" in answer["message"], answer
        status, kept = self.post(state("node-1", "node-1"), "")
        assert status == 201, kept
        interface = {"name": "enp193s0np0", "role": "rail", "rail": "rail0", "coverage": "partial", "addresses": ["10.100.0.5/24"]}
        kept["status"] = {"mode": "enforce", "generation": 12, "inSync": True, "coverage": {"enforced": 2, "bypassed": 1},
                          "interfaces": [interface], "drift": {"count": 0}}
        status, answer = self.server.call("PUT", self.path("HostState") + "/node-1/status", kept)
        assert status == 200 and answer["status"] == kept["status"], answer
        answer = self.server.call("GET", self.path("HostState") + "/node-1")[1]
        answer["spec"]["node"] = "node-2"
        status, answer = self.server.call("PUT", self.path("HostState") + "/node-1", answer)
        assert status == 422 and "stays the one of its node" in answer["message"], answer

    def the_state_of_a_node_is_applied_as_nodewall_does_it(self):
        head = {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostState", "metadata": {"name": "node-3"}}
        apply = lambda part, body: self.server.call(
            "PATCH", self.path("HostState") + f"/node-3{part}?fieldManager=nodewall&force=true", head | body, "application/apply-patch+yaml")
        interface = lambda number: {
            "name": f"enp{number}s0np0", "role": "rail", "rail": f"rail{number}", "coverage": "partial",
            "addresses": [f"100.100.{number}.105/24", f"fd00:1234:5678:9abc:{number:04x}:1111:2222:3333/64"]}
        condition = lambda kind: {
            "type": kind, "status": "False", "reason": "AsWanted", "message": "nothing is amiss", "lastTransitionTime": "2026-11-26T05:00:00Z"}
        said = {
            "version": "0.1.0", "mode": "enforce", "generation": 12, "hash": "0" * 32, "defaults": "0" * 8, "failsafe": "0" * 8,
            "policies": {f"default/a-policy-{number:02}": "0" * 8 for number in range(50)}, "policiesOmitted": 3,
            "inSync": True, "conditions": [condition(kind) for kind in ["Ready", "InSync", "Degraded", "Unconfirmed"]],
            "coverage": {"enforced": 2, "bypassed": 1}, "interfaces": [interface(number) for number in range(16)],
            "drift": {"count": 0}, "since": "2026-11-26T05:00:00Z"}
        status, answer = apply("/status", {"status": said})
        assert status == 404, answer
        status, answer = apply("", {"spec": {"node": "node-3"}})
        assert status == 201, answer
        status, written = apply("/status", {"status": said})
        assert status == 200 and written["status"] == said, written
        size = len(json.dumps(written, separators=(",", ":")))
        assert size < 8192, f"{size} bytes"
        # The same again is no event, and hands the status to who makes the object; what is not said any more is gone.
        for part, body in [("", {"spec": {"node": "node-3"}}), ("/status", {"status": said})]:
            status, answer = apply(part, body)
            assert status == 200 and answer["metadata"]["resourceVersion"] == written["metadata"]["resourceVersion"], answer
            assert answer["status"] == said, answer
        less = said | {"policies": {"default/other": "1" * 8}, "interfaces": [interface(7)]}
        del less["policiesOmitted"], less["since"]
        status, answer = apply("/status", {"status": less})
        assert status == 200 and answer["status"] == less, answer
        return f"{size} bytes with 16 NICs and 50 policies"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="the folder that build.sh printed")
    parser.add_argument("--nodewall", required=True, help="the program")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder, Server(arguments.programs, folder) as server:
        tests = Tests(server, arguments.nodewall)
        for name in [name for name in vars(Tests) if name.startswith(("the_", "every_", "rules_", "what_", "an_", "a_"))]:
            try:
                detail = getattr(tests, name)()
                print("ok    ", name + (f": {detail}" if detail else ""))
            except AssertionError as error:
                failed += 1
                print("FAILED", f"{name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
