#!/usr/bin/env bash
# nodewall's packages on a real systemd, as root on Debian: `run.sh nspawn|vm PROGRAM [OPTIONS OF run.py]`. Makes the packages of the program,
# once as an older version than the other, and what they are installed on.
# NODEWALL_SUITE is the release that they are installed on (bookworm, trixie), by default this machine's own.
set -euo pipefail
cd "$(dirname "$0")/../.."
kind=$1 program=$2
shift 2
[ "$(id -u)" -eq 0 ] || { echo "tests/systemd: needs root" >&2; exit 1; }
suite=${NODEWALL_SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
lab=target/systemd-$suite packages=target/packages-systemd
scripts/setup-packages.sh
tests/systemd/setup.sh "$lab" "$kind"
rm -rf "$packages"
# Sorted by name, the older one comes first.
for version in 0.0.1 0.0.2; do packaging/build.sh --quick --binary "$program" --version "$version" --out "$packages" >/dev/null; done
exec python3 -B tests/systemd/run.py "$kind" --lab "$lab" --old "$packages"/nodewall_0.0.1_*.deb --new "$packages"/nodewall_0.0.2_*.deb \
    --rpms "$packages" "$@"
