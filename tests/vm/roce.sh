#!/usr/bin/env bash
# A policy about udp/4791 between two virtual machines with Soft-RoCE, as root: `roce.sh [BINARY]`, target/release/nodewall by default.
# `roce.sh record DIRECTORY` writes down what the kernel tells of RDMA-CM listeners instead. Software emulation: it takes a few minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

lab=${NODEWALL_VM:-target/vm}
tests/vm/setup.sh "$lab"
share=$(mktemp -d "${TMPDIR:-/tmp}/nodewall-roce.XXXXXX")
cp tests/vm/{guest,peer,node,record}.sh tests/vm/cm_id.py "$share"
guest=node
if [ "${1:-}" = record ]; then
    guest=record
else
    strip -o "$share/nodewall" "${1:-target/release/nodewall}"
    : >"$share/nodewall.toml"
fi

machines=()
trap '[ ${#machines[@]} -eq 0 ] || kill "${machines[@]}" 2>/dev/null || true; rm -rf "$share"' EXIT
start() { # name, end of the wire, other end
    timeout 1200 qemu-system-x86_64 -accel tcg,thread=multi -cpu Nehalem -M q35 -m 1024 -smp 1 \
        -nodefaults -display none -monitor none -no-reboot -serial "file:$share/$1.console" \
        -kernel "$lab/vmlinuz" -initrd "$lab/initrd" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable net.ifnames=0 guest=$1" \
        -virtfs "local,path=$share,mount_tag=host,security_model=none,multidevs=remap" \
        -netdev "dgram,id=wire,local.type=unix,local.path=$share/$2,remote.type=unix,remote.path=$share/$3" \
        -device virtio-net-pci,netdev=wire -object rng-random,filename=/dev/urandom,id=rng -device virtio-rng-pci,rng=rng &
    machines+=($!)
}
start "$guest" one other
start peer other one
begin=$SECONDS
wait "${machines[0]}" || true
# The other one waits for work for as long as nobody says that there is none.
touch "$share/over"
wait "${machines[1]}" || true
machines=()

cat "$share/$guest.out" || cat "$share"/*.console
status=$(cat "$share/$guest.status" 2>/dev/null || echo none)
if [ "$status" != 0 ]; then
    cat "$share/peer.out" "$share"/*.console || true
    echo "roce: FAILED ($status) on Linux $(cat "$lab/version"), after $((SECONDS - begin)) s"
    exit 1
fi
if [ "$guest" = record ]; then
    mkdir -p "$2"
    cp "$share"/recorded/* "$2"
fi
echo "roce: passed on Linux $(cat "$lab/version") in $((SECONDS - begin)) s"
