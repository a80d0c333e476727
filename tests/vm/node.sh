# The machine with nodewall: RDMA works, works under a policy that allows it, stops under one that denies it, and works again.
. /host/guest.sh
failures=0
step() { printf '\n== %s\n' "$*"; }
must() { "$@" || { echo "FAILED: $*"; failures=$((failures + 1)); }; }
must_not() { ! "$@" || { echo "FAILED, it should not: $*"; failures=$((failures + 1)); }; }
nodewall() { /usr/local/bin/nodewall --config /host/nodewall.toml --policy-dir /tmp/policy.d "$@"; }

# A server that lost its client in the middle may be gone; a second one beside it says that the port is taken, and goes.
serve='rdma resource show cm_id | grep -q LISTEN || { rping -s -P -a ADDRESS >/dev/null 2>&1 & sleep 1; }; rdma resource show cm_id | grep -q LISTEN'
served() { bash -c "${serve/ADDRESS/10.9.0.1}"; }
peer_serves() { ask "${serve/ADDRESS/10.9.0.2}"; }
# Each within a time that is enough for it by far, where nothing is lost; when packets are, RDMA-CM goes on trying for longer.
rping_in() { patiently served && ask timeout 30 rping -c -a 10.9.0.1 -C 20; }
rping_out() { patiently peer_serves && timeout 30 rping -c -a 10.9.0.2 -C 20; }
# It talks to the other end by TCP first, which no policy here forbids: what fails is the RDMA.
bandwidth() {
    timeout 90 ib_send_bw -d rxe0 -x 1 -F -n 200 -s 1024 >/tmp/bandwidth 2>&1 &
    local server=$!
    patiently listens 18515 || return
    ask stdbuf -oL timeout 60 ib_send_bw -d rxe0 -x 1 -F -n 200 -s 1024 10.9.0.1
    local status=$?
    [ $status -eq 0 ] || kill $server 2>/dev/null
    wait $server
    return $status
}
listens() { ss -Hltn "sport = :$1" | grep -q .; }

# A policy that allows or denies RoCE both ways, and all else.
policy() {
    cat >/tmp/policy.d/10-fabric.toml <<POLICY
[[interface]]
name = "fabric"
match = { rdma = "rxe0" }
role = "fabric"
$2

[[policy]]
name = "roce"
order = 10
interfaces = "role == 'fabric'"
$3
ingress = [{ action = "$1", protocol = "udp", ports = [4791] }, { action = "allow" }]
egress = [{ action = "$1", protocol = "udp", ports = [4791] }, { action = "allow" }]
POLICY
    first_rule=$(grep -n '^ingress' /tmp/policy.d/10-fabric.toml | cut -d : -f 1)
}

# The rules that packets of RoCE met: the policy's own, where they arrive, and the essential by which what the kernel's rxe sends goes
# out. The policy's rule on the way out is met by processes that send to that port themselves.
met() { nft list table inet nodewall | grep -v ' packets 0 ' | grep -q "$1"; }
rules_met() {
    (echo >/dev/udp/10.9.0.2/4791) 2>/dev/null
    nft list table inet nodewall | grep 'dport 4791 .*counter'
    met "roce#1 10-fabric.toml:$first_rule" && met "roce#1 10-fabric.toml:$((first_rule + 1))" && met 'Soft-RoCE is decided where it arrives'
}

install -m 755 /host/nodewall /usr/local/bin/nodewall
mkdir -p /tmp/policy.d
uname -r
join_fabric 1 || exit
patiently ask ping -c 1 -W 2 10.9.0.1 >/dev/null || exit

step "nodewall shows what rdma link shows"
rdma link
nodewall interfaces --json >/tmp/interfaces
rdma -j link >/tmp/links
must python3 - <<'SAME'
import json
links = {link["ifname"]: link["netdev"] for link in json.load(open("/tmp/links"))}
found = json.load(open("/tmp/interfaces"))["interfaces"]
ours = {interface["rdma"]: interface["name"] for interface in found if interface["rdma"]}
print("rdma link:", links, "nodewall:", ours)
assert links == ours == {"rxe0": "eth0"}
SAME

step "without a policy"
must patiently rping_in
must patiently rping_out
must bandwidth

step "under a policy that allows udp/4791"
policy allow '' ''
must nodewall apply
must rping_in
must rping_out
must bandwidth
must rules_met

step "under a policy that denies udp/4791"
policy deny '' ''
must nodewall apply
must patiently served
must patiently peer_serves
must_not rping_in
must_not rping_out
must_not bandwidth
must grep 'remote address' "/host/job-$jobs.out"
must ask ping -c 1 -W 5 10.9.0.1 >/dev/null
must rules_met

step "without it again"
must nodewall disarm
must rping_in
must rping_out
must bandwidth

step "where the hardware carries it"
policy deny 'coverage = "bypassed"' ''
nodewall check
must test $? -eq 5
policy deny 'coverage = "bypassed"' 'acknowledge = "bypass"'
nodewall check
must test $? -eq 0

echo
echo "$failures failed"
touch /host/over
exit "$failures"
