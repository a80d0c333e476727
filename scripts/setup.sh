#!/usr/bin/env bash
# Installs what building, testing and the demonstration take on a Debian or Ubuntu that has only Rust, gcc, Python and apt.
# Does nothing, and needs no root, when everything is there.
set -euo pipefail

# package:the command or file that shows it is there
wanted=(
    nftables:/usr/sbin/nft
    iptables:/usr/sbin/iptables-nft-restore
    iproute2:/usr/sbin/ip
    iptables:/usr/sbin/iptables-nft
    libsystemd-dev:/usr/include/systemd/sd-daemon.h
    pkg-config:/usr/bin/pkg-config
    mandoc:/usr/bin/mandoc
    strace:/usr/bin/strace
    tmux:/usr/bin/tmux
    chromium:/usr/bin/chromium
    openssl:/usr/bin/openssl
    # Completions, and the role in packaging/ansible.
    zsh:/usr/bin/zsh
    fish:/usr/bin/fish
    ansible-core:/usr/bin/ansible-playbook
    python3-yaml:/usr/lib/python3/dist-packages/yaml/__init__.py
    # Of this only promtool and a Prometheus in namespaces of tests are used; its service need not run.
    prometheus:/usr/bin/promtool
)

missing=()
for entry in "${wanted[@]}"; do
    package=${entry%%:*} shown_by=${entry#*:}
    [ -e "$shown_by" ] || [ -e "${shown_by/\/usr/}" ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: please install the equivalents of: ${missing[*]}" >&2
        exit 1
    fi
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    # Ubuntu has Chromium as a snap only. Tests that need a browser say SKIPPED without it, and fail under CI.
    if [[ " ${missing[*]} " == *" chromium "* ]] && ! apt-cache show chromium >/dev/null 2>&1; then
        echo "setup: apt has no chromium here; the tests of audit's page need /usr/bin/chromium" >&2
        for at in "${!missing[@]}"; do [ "${missing[at]}" != chromium ] || unset 'missing[at]'; done
    fi
    [ ${#missing[@]} -eq 0 ] || "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo >/dev/null || { echo "setup: Rust is missing: install rustup's stable toolchain" >&2; exit 1; }
command -v cc >/dev/null || { echo "setup: a C compiler is missing: install gcc" >&2; exit 1; }
command -v python3 >/dev/null || { echo "setup: python3 is missing" >&2; exit 1; }
