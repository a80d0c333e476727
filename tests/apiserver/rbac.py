#!/usr/bin/env python3
"""`make test-rbac`: the rights of packaging/kubernetes in a real kube-apiserver, of Kubernetes 1.20, with its RBAC and its Node authorizer.
Requests come with client certificates and with tokens that this server gave for ServiceAccounts. That server knows no
ValidatingAdmissionPolicy: see admission.py. As root, in a network namespace of its own, the daemon of the DaemonSet is run, too: with its
capabilities, settings and token. The exit code is 1 if anything is otherwise.
"""

import sys

# No __pycache__ in the source tree.
sys.dont_write_bytecode = True

import argparse
import base64
import ctypes
import json
import os
import pathlib
import subprocess
import tempfile
import time

import manifests
from identity import Authority, by_token, openssl
from server import DEFINITIONS, Server, free_port

OURS = "/apis/nodewall.dev/v1alpha1"
STATES = f"{OURS}/hoststates"
SIGNING = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/nodewall/leases"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
# As in the kubeconfig of the DaemonSet.
ADDRESS, PORT = "192.0.2.10", 6443


class Kube(Server):
    """A kube-apiserver with an etcd."""

    def __init__(self, programs, etcd, folder, address, port):
        super().__init__(programs, folder)
        self.etcd, self.bind, self.port = pathlib.Path(etcd), address, port
        self.authority = Authority(folder)
        self.admin = self.authority.identity("admin", "admin", "system:masters")

    def start(self, program, *arguments):
        mine, self.programs = self.programs, self.etcd if program == "etcd" else self.programs
        super().start(program, *arguments)
        self.programs = mine

    def begin(self):
        key = self.folder / "accounts.key"
        openssl("genrsa", "-out", key, "2048")
        etcd = self.start_etcd()
        serving, serving_key = self.authority.serving(self.bind)
        self.start("kube-apiserver", "--etcd-servers", etcd, "--secure-port", self.port, "--bind-address", self.bind,
                   "--tls-cert-file", serving, "--tls-private-key-file", serving_key, "--client-ca-file", self.authority.certificate,
                   "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
                   "--service-account-issuer", "https://test", "--service-account-key-file", key,
                   "--service-account-signing-key-file", key, "--service-cluster-ip-range", "10.0.0.0/24")
        self.address = f"https://{self.bind}:{self.port}"
        self.until(lambda: self.as_admin("GET", "/readyz")[0] == 200, "the API server does not get ready", 120)

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.kill()
            process.wait()

    def as_admin(self, method, path, body=None, kind="application/json"):
        return self.call(method, path, body, kind, who=self.admin)

    def install(self, documents):
        """Creates each document; those of groups that this server does not know are given back."""
        unknown = []
        for document in documents:
            group, kind, namespace = document["apiVersion"], document["kind"], document["metadata"].get("namespace")
            root = f"/api/{group}" if group == "v1" else f"/apis/{group}"
            status, answer = self.as_admin("GET", root)
            known = {each["kind"]: each for each in answer.get("resources", []) if "/" not in each["name"]} if status == 200 else {}
            if kind not in known:
                unknown.append(document)
                continue
            assert known[kind]["namespaced"] == bool(namespace), document["metadata"]
            path = f"{root}/namespaces/{namespace}" if namespace else root
            status, answer = self.as_admin("POST", f"{path}/{known[kind]['name']}", document)
            assert status == 201, f"{kind} {document['metadata']['name']}: {answer.get('message')}"
        return unknown

    def bearer(self, account):
        path = f"/api/v1/namespaces/nodewall/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["https://test"]}}
        status, answer = self.as_admin("POST", path, body)
        assert status == 201, answer
        return answer["status"]["token"]

    def token(self, account):
        return by_token(account, self.bearer(account))


def tier(name="t", order=1):
    spec = {"order": order, "default": "pass"}
    return {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostTier", "metadata": {"name": name}, "spec": spec}


def state(node):
    return {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostState", "metadata": {"name": node}, "spec": {"node": node}}


def lease(name):
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {"holderIdentity": "x"}}


def event():
    about = {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostTier", "name": "t"}
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "e-", "namespace": "default"}, "involvedObject": about,
            "reason": "Accepted", "type": "Normal", "message": "m"}


def signing_request(name, folder, user="nodewall:node:node-a"):
    key, request = pathlib.Path(folder) / f"{name}.key", pathlib.Path(folder) / f"{name}.csr"
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/O=nodewall:nodes/CN={user}",
            "-keyout", key, "-out", request)
    spec = {"request": base64.b64encode(request.read_bytes()).decode(), "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"]}
    return {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name}, "spec": spec}


def pod():
    spec = {"containers": [{"name": "a", "image": "a"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec}


PLURALS = [definition["spec"]["names"]["plural"] for definition in manifests.documents("crds")]
READS = [(f"lists {plural}", "GET", f"{OURS}/{plural}") for plural in PLURALS]
WATCHES = [(f"watches {plural}", "GET", f"{OURS}/{plural}?watch=true&timeoutSeconds=1") for plural in ["hostpolicies", "hoststates"]]
NODES = [("lists nodes", "GET", "/api/v1/nodes"), ("watches nodes", "GET", "/api/v1/nodes?watch=true&timeoutSeconds=1"),
         ("gets a node", "GET", "/api/v1/nodes/node-a")]


def apply(what, node, path="", extra=None):
    return (what, "PATCH", f"{STATES}/{node}{path}?fieldManager=nodewall&force=true", state(node) | (extra or {}), APPLY)


STATUS = {"status": {"mode": "enforce"}}


# What no node and nobody without rights may do.
FOREIGN = [
    ("creates a HostTier", "POST", f"{OURS}/hosttiers", tier("new")),
    ("changes a HostTier", "PATCH", f"{OURS}/hosttiers/t", {"spec": {"order": 2}}, MERGE),
    ("applies a HostTier", "PATCH", f"{OURS}/hosttiers/t?fieldManager=nodewall", tier(), APPLY),
    ("deletes a HostTier", "DELETE", f"{OURS}/hosttiers/t"),
    ("writes the status of a HostTier", "PATCH", f"{OURS}/hosttiers/t/status", {"status": {"accepted": True}}, MERGE),
    ("creates a HostPolicy", "POST", f"{OURS}/hostpolicies", {}),
    ("deletes all HostPolicies", "DELETE", f"{OURS}/hostpolicies"),
    ("creates a HostNetworkSet", "POST", f"{OURS}/hostnetworksets", {}),
    ("changes a HostNetworkSet", "PATCH", f"{OURS}/hostnetworksets/x", {}, MERGE),
    ("creates a HostPeers", "POST", f"{OURS}/hostpeers", {}),
    ("changes a HostPeers", "PATCH", f"{OURS}/hostpeers/x", {}, MERGE),
    apply("applies the state of another node", "node-b"),
    apply("applies the status of another node", "node-b", "/status", STATUS),
    ("changes the state of another node", "PATCH", f"{STATES}/node-b", {"metadata": {"labels": {"a": "b"}}}, MERGE),
    ("changes the status of another node", "PATCH", f"{STATES}/node-b/status", STATUS, MERGE),
    ("replaces the status of another node", "PUT", f"{STATES}/node-b/status", state("node-b") | STATUS),
    ("applies the state of a node that has none", "PATCH", f"{STATES}/node-c?fieldManager=nodewall", state("node-c"), APPLY),
    ("creates the state of another node", "POST", STATES, state("node-c")),
    ("deletes the state of another node", "DELETE", f"{STATES}/node-b"),
    ("deletes all states", "DELETE", STATES),
    ("lists secrets", "GET", "/api/v1/secrets"),
    ("gets a secret", "GET", "/api/v1/namespaces/nodewall/secrets/x"),
    ("lists config maps", "GET", "/api/v1/namespaces/nodewall/configmaps"),
    ("lists pods", "GET", "/api/v1/pods"),
    ("creates a pod", "POST", "/api/v1/namespaces/default/pods", pod()),
    ("changes a node", "PATCH", "/api/v1/nodes/node-a", {"metadata": {"labels": {"pool": "other"}}}, MERGE),
    ("changes the status of a node", "PATCH", "/api/v1/nodes/node-a/status", {"status": {}}, MERGE),
    ("deletes a node", "DELETE", "/api/v1/nodes/node-a"),
    ("creates a node", "POST", "/api/v1/nodes", {}),
    ("reaches a kubelet", "GET", "/api/v1/nodes/node-a/proxy/metrics"),
    ("approves a certificate", "PUT", f"{SIGNING}/of-a/approval", {}),
    ("signs a certificate", "PUT", f"{SIGNING}/of-a/status", {}),
    ("lists certificate requests", "GET", SIGNING),
    ("deletes a certificate request", "DELETE", f"{SIGNING}/of-a"),
    ("creates a lease", "POST", LEASES, lease("nodewall-controller")),
    ("changes a lease", "PATCH", f"{LEASES}/nodewall-controller", {}, MERGE),
    ("creates an event", "POST", "/api/v1/namespaces/default/events", event()),
    ("asks for a token", "POST", "/api/v1/namespaces/nodewall/serviceaccounts/nodewall-controller/token", {}),
    ("binds a role", "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {}),
    ("changes a role", "PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodewall-node", {}, MERGE),
    ("changes a definition", "PATCH", f"{DEFINITIONS}/hoststates.nodewall.dev", {}, MERGE),
]
OWN = [
    apply("applies its own state, which is not there yet", "node-a"),
    apply("applies its own state again", "node-a"),
    apply("applies its own status", "node-a", "/status", STATUS),
    ("changes its own state", "PATCH", f"{STATES}/node-a", {"metadata": {"labels": {"a": "b"}}}, MERGE),
    ("changes its own status", "PATCH", f"{STATES}/node-a/status", {"status": {"mode": "audit"}}, MERGE),
]


class Checks:
    """Prints what is as it should be, and counts what is not."""

    def __init__(self, server):
        self.server, self.failed, self.count = server, 0, 0

    def say(self, what, holds, detail=""):
        self.count += 1
        self.failed += not holds
        print("ok    " if holds else "FAILED", what + ("" if holds else f": {detail}"))

    def allowed(self, who, what, method, path, body=None, kind="application/json", headers=None):
        status, answer = self.server.call(method, path, body, kind, who, headers)
        self.say(f"allowed: {who.name} {what}", status in (200, 201), f"{status} {answer.get('message')}")
        return answer

    def refused(self, who, what, method, path, body=None, kind="application/json", headers=None):
        status, answer = self.server.call(method, path, body, kind, who, headers)
        # Refused by what it is, and not because there is no such thing.
        forbidden = status == 403 and "cannot" in answer.get("message", "")
        self.say(f"refused: {who.name} {what}", forbidden, f"{status} {answer.get('message')}")

    def refused_impersonation(self, who):
        for header, name in [("Impersonate-User", "admin"), ("Impersonate-User", "nodewall:node:node-b"), ("Impersonate-Group", "system:masters")]:
            headers = {"Impersonate-User": "x"} | {header: name}
            self.refused(who, f"acts as {name}", "GET", "/api/v1/nodes", headers=headers)


def node(checks, who):
    """What every node may and must not."""
    for each in [*READS, *WATCHES, *NODES]:
        checks.allowed(who, *each)
    for each in FOREIGN:
        checks.refused(who, *each)
    checks.refused_impersonation(who)


def isolate():
    """Whether this process is in a network namespace of its own now, which has the address of the API server."""
    if os.geteuid() != 0:
        return False
    clone_newnet = 0x40000000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True, help="the folder that build-kube.sh printed")
    parser.add_argument("--etcd", required=True, help="the folder that build.sh printed")
    parser.add_argument("--nodewall", required=True, help="the program")
    arguments = parser.parse_args()
    isolated = isolate()
    address, port = (ADDRESS, PORT) if isolated else ("127.0.0.1", free_port())
    with tempfile.TemporaryDirectory() as folder, Kube(arguments.programs, arguments.etcd, folder, address, port) as server:
        checks = Checks(server)
        run(checks, server, folder)
        if isolated:
            daemon(checks, server, folder, os.path.abspath(arguments.nodewall))
        else:
            print("SKIPPED the daemon of the DaemonSet: needs root")
    print(f"{checks.failed} of {checks.count} failed" if checks.failed else f"all {checks.count} hold")
    return 1 if checks.failed else 0


def run(checks, server, folder):
    sign = server.authority.identity
    version = subprocess.run([server.programs / "kube-apiserver", "--version"], capture_output=True, text=True).stdout.strip()

    unknown = [document["kind"] for document in server.install(manifests.documents("older"))]
    checks.say(f"{version} takes older/", not unknown, unknown)
    for plural in PLURALS:
        server.until(lambda: server.as_admin("GET", f"{OURS}/{plural}")[0] == 200, f"{plural} is not served")
    unknown = server.install(manifests.documents("calico")) + server.install(manifests.documents("controller"))
    unknown += server.install(manifests.documents("daemonset"))
    checks.say("the server takes calico/, controller/ and daemonset/", not unknown, unknown)

    for name in ["node-a", "node-b"]:
        status, answer = server.as_admin("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        assert status == 201, answer
    for path, body in [(f"{OURS}/hosttiers", tier()), (STATES, state("node-b")), (SIGNING, signing_request("of-a", folder)),
                       (f"{LEASES}", lease("nodewall-controller") | {"metadata": {"name": "another"}})]:
        status, answer = server.as_admin("POST", path, body)
        assert status == 201, answer

    a = sign("node a", "nodewall:node:node-a", "nodewall:nodes")
    # Nothing in older/ lets a node write before its own role is there.
    checks.refused(a, *apply("applies its own state without a role of its own", "node-a"))
    for name in ["node-a", "node-b"]:
        unknown = server.install(manifests.for_node(name))
        assert not unknown, unknown
    server.until(lambda: server.call("GET", f"{OURS}/hostpolicies", who=a)[0] == 200, "the roles do not come to hold")
    server.until(lambda: server.call("PATCH", f"{STATES}/node-a/status", {}, MERGE, who=a)[0] != 403, "the roles do not come to hold")
    # A POST has no name that a role could be about, and nodewall sends none.
    checks.refused(a, "creates its own state by POST", "POST", STATES, state("node-a"))
    for each in OWN:
        checks.allowed(a, *each)
    checks.refused(a, "deletes its own state", "DELETE", f"{STATES}/node-a")
    node(checks, a)
    checks.allowed(a, "asks for a certificate", "POST", SIGNING, signing_request("by-a", folder))
    checks.allowed(a, "gets its certificate", "GET", f"{SIGNING}/by-a")
    checks.refused(a, "approves its own certificate", "PUT", f"{SIGNING}/by-a/approval", signing_request("by-a", folder))
    b = sign("node b", "nodewall:node:node-b", "nodewall:nodes")
    checks.refused(b, *apply("applies the state of node a", "node-a"))
    checks.refused(b, *apply("applies the status of node a", "node-a", "/status", STATUS))
    checks.allowed(b, *apply("applies its own status", "node-b", "/status", STATUS))

    # A certificate with the name and without the group writes its state, and reads nothing; a group without a name reads.
    nameless = sign("a certificate with the group only", "somebody", "nodewall:nodes")
    checks.refused(nameless, *apply("applies the state of a node", "node-a"))
    for each in READS:
        checks.allowed(nameless, *each)

    # The ServiceAccount of the DaemonSet reads; this server cannot tell its pods from each other, so that none may write.
    pods = server.token("nodewall-node")
    node(checks, pods)
    for each in OWN:
        checks.refused(pods, *each)

    kubelet = sign("a kubelet", "system:node:node-a", "system:nodes")
    checks.allowed(kubelet, "gets its node", "GET", "/api/v1/nodes/node-a")
    for each in [*READS, *WATCHES, *OWN]:
        checks.refused(kubelet, *each)

    nobody = sign("a user without rights", "somebody")
    for each in [*READS, *WATCHES, *NODES, *OWN, *FOREIGN, ("asks for a certificate", "POST", SIGNING, {})]:
        checks.refused(nobody, *each)
    checks.refused_impersonation(nobody)

    controller(checks, server, folder)
    people(checks, server, sign)


def controller(checks, server, folder):
    who = server.token("nodewall-controller")
    for each in [*READS, *WATCHES, *NODES]:
        checks.allowed(who, *each)
    checks.allowed(who, "says that a HostTier is accepted", "PATCH", f"{OURS}/hosttiers/t/status", {"status": {"accepted": True}}, MERGE)
    checks.allowed(who, "creates its lease", "POST", LEASES, lease("nodewall-controller"))
    checks.allowed(who, "gets its lease", "GET", f"{LEASES}/nodewall-controller")
    checks.allowed(who, "renews its lease", "PATCH", f"{LEASES}/nodewall-controller", {"spec": {"holderIdentity": "y"}}, MERGE)
    created = checks.allowed(who, "creates an event", "POST", "/api/v1/namespaces/default/events", event())
    checks.allowed(who, "counts an event", "PATCH", f"/api/v1/namespaces/default/events/{created['metadata']['name']}", {"count": 2}, MERGE)
    checks.allowed(who, "lists certificate requests", "GET", SIGNING)
    request = checks.allowed(who, "gets a certificate request", "GET", f"{SIGNING}/by-a")
    condition = {"type": "Approved", "status": "True", "reason": "ofANode", "message": "m"}
    request["status"] = {"conditions": [condition]}
    checks.allowed(who, "approves a certificate of a node", "PUT", f"{SIGNING}/by-a/approval", request)
    checks.allowed(who, "deletes the state of a node", "DELETE", f"{STATES}/node-b")
    server.as_admin("POST", STATES, state("node-b"))
    # HostPeers are not defined here, so that a right to them shows as "not found" instead of "forbidden".
    for what, method, path, body in [("creates a HostPeers", "POST", f"{OURS}/hostpeers", {}), ("deletes a HostPeers", "DELETE", f"{OURS}/hostpeers/x", None)]:
        status, answer = server.call(method, path, body, who=who)
        checks.say(f"allowed: {who.name} {what}", status in (201, 404, 400, 422), f"{status} {answer.get('message')}")

    other = signing_request("of-a-kubelet", folder)
    other["spec"] |= {"signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth"]}
    status, answer = server.as_admin("POST", SIGNING, other)
    assert status == 201, answer
    answer["status"] = {"conditions": [condition]}
    status, answer = server.call("PUT", f"{SIGNING}/of-a-kubelet/approval", answer, who=who)
    held = status == 403 and "not permitted to approve" in answer.get("message", "")
    checks.say(f"refused: {who.name} approves a certificate of another signer", held, f"{status} {answer.get('message')}")

    about_nodes = {"applies the state of another node", "applies the status of another node", "changes the state of another node",
                   "changes the status of another node", "replaces the status of another node", "creates the state of another node",
                   "applies the state of a node that has none", "deletes all states"}
    its_own = {"writes the status of a HostTier", "creates a HostPeers", "changes a HostPeers", "deletes the state of another node",
               "approves a certificate", "lists certificate requests", "creates a lease", "changes a lease", "creates an event"}
    assert about_nodes | its_own <= {each[0] for each in FOREIGN}
    for each in FOREIGN:
        if each[0] not in its_own:
            checks.refused(who, *each)
    checks.refused_impersonation(who)
    for name in ["another", "x"]:
        checks.refused(who, f"gets the lease {name}", "GET", f"{LEASES}/{name}")
        checks.refused(who, f"changes the lease {name}", "PATCH", f"{LEASES}/{name}", {}, MERGE)
    elsewhere = LEASES.replace("/nodewall/", "/kube-system/")
    checks.refused(who, "creates a lease elsewhere", "POST", elsewhere, lease("nodewall-controller"))
    checks.refused(who, "asks for a certificate", "POST", SIGNING, {})


def volume(folder, name, files):
    """Files as the kubelet puts those of a ConfigMap or a token into a pod: behind two links, in a directory that everybody may write."""
    at = pathlib.Path(folder) / name
    (at / "..2026").mkdir(parents=True)
    at.chmod(0o1777)
    (at / "..data").symlink_to("..2026")
    for file, text in files.items():
        (at / "..2026" / file).write_text(text)
        (at / file).symlink_to(f"..data/{file}")
    return at


def daemon(checks, server, folder, nodewall):
    """nodewall as the DaemonSet runs it, but for a container: it follows the policies of this server."""
    documents = {document["kind"]: document for document in manifests.documents("daemonset")}
    settings = documents["ConfigMap"]["data"]
    identity = volume(folder, "identity", {"token": server.bearer("nodewall-node"), "ca.crt": server.authority.certificate.read_text()})
    own = {"socket": f"{folder}/run/nodewall.sock", "state_directory": f"{folder}/state"}
    moved = {"/etc/nodewall/": f"{folder}/config/", "/var/run/secrets/nodewall/": f"{identity}/"}
    for file, text in settings.items():
        for old, new in moved.items():
            text = text.replace(old, new)
        settings[file] = text
    settings["nodewall.toml"] = "".join(f'{key} = "{value}"\n' for key, value in own.items()) + settings["nodewall.toml"]
    config = volume(folder, "config", settings) / "nodewall.toml"

    container = documents["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
    kept = ",".join(f"+{name.lower()}" for name in container["securityContext"]["capabilities"]["add"])
    spec = {"interfaces": "all()", "ingress": [{"action": "allow", "protocol": "tcp", "ports": [12345]}]}
    policy = {"apiVersion": "nodewall.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "of-the-cluster"}, "spec": spec}
    status, answer = server.as_admin("POST", f"{OURS}/hostpolicies", policy)
    assert status == 201, answer
    log = open(pathlib.Path(folder) / "nodewall.log", "wb")
    command = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", nodewall, "--config", config, *container["args"]]
    process = subprocess.Popen(command, cwd="/", env={"PATH": "/usr/sbin:/usr/bin", "NODEWALL_NODE": "node-a"}, stderr=log)
    try:
        holds, clusters, end = False, [], time.monotonic() + 30
        while not holds and time.monotonic() < end and process.poll() is None:
            # What the readiness probe of the pod asks.
            ended = subprocess.run([nodewall, "--config", config, "--json", "status"], capture_output=True, text=True)
            clusters = json.loads(ended.stdout or "{}").get("clusters", [])
            holds = ended.returncode == 0 and [each["state"] for each in clusters] == ["in-sync"] and clusters[0]["objects"] > 0
            time.sleep(0.2)
        detail = (clusters, (pathlib.Path(folder) / "nodewall.log").read_text()[-1500:])
        checks.say(f"the daemon of the DaemonSet, with {kept} only, follows the cluster by its token", holds, detail)
        rules = subprocess.run(["nft", "list", "table", "inet", "nodewall"], capture_output=True, text=True).stdout
        checks.say("what the cluster says is in the kernel", "12345" in rules, rules[:500])
    finally:
        process.terminate()
        process.wait()


def people(checks, server, sign):
    """Whoever has the standard roles. What collects rules into these is a controller that does not run here: what it would do is looked
    at, and the rules are bound directly."""
    for role in ["view", "edit"]:
        standard = server.as_admin("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{role}")[1]
        ours = server.as_admin("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/nodewall-{role}")[1]
        selectors = standard["aggregationRule"]["clusterRoleSelectors"]
        collected = any(selector["matchLabels"].items() <= ours["metadata"]["labels"].items() for selector in selectors)
        checks.say(f"{role} of the server collects nodewall-{role}", collected, selectors)
        # Whoever has `edit` has `view`.
        for bound in ["view"] if role == "view" else ["view", "edit"]:
            server.install([binding("ClusterRoleBinding", role, bound), binding("RoleBinding", f"{role} of a namespace", bound)])
    view, edit = sign("view", "view"), sign("edit", "edit")
    server.until(lambda: server.call("PATCH", f"{OURS}/hosttiers/x", {}, MERGE, edit)[0] == 404, "the roles do not come to hold")
    for each in [*READS, *WATCHES]:
        checks.allowed(view, *each)
        checks.allowed(edit, *each)
        for role in ["view", "edit"]:
            checks.refused(sign(f"{role} of a namespace", f"{role} of a namespace"), *each)
    for each in FOREIGN:
        checks.refused(view, *each)
    checks.allowed(edit, "creates a HostTier", "POST", f"{OURS}/hosttiers", tier("by-edit", 7))
    checks.allowed(edit, "changes a HostTier", "PATCH", f"{OURS}/hosttiers/by-edit", {"spec": {"order": 8}}, MERGE)
    checks.allowed(edit, "deletes a HostTier", "DELETE", f"{OURS}/hosttiers/by-edit")
    policies = {"creates a HostTier", "changes a HostTier", "applies a HostTier", "deletes a HostTier", "creates a HostPolicy",
                "deletes all HostPolicies", "creates a HostNetworkSet", "changes a HostNetworkSet"}
    assert policies <= {each[0] for each in FOREIGN}
    for each in FOREIGN:
        if each[0] not in policies:
            checks.refused(edit, *each)


def binding(kind, user, role):
    metadata = {"name": f"{user.replace(' ', '-')}-{role}"} | ({"namespace": "default"} if kind == "RoleBinding" else {})
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"nodewall-{role}"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]}


if __name__ == "__main__":
    sys.exit(main())
