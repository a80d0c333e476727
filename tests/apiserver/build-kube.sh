#!/usr/bin/env bash
# Builds a real kube-apiserver, of Kubernetes 1.20, into a cache outside the checkout, from the source package of Debian 12 and its Go;
# nothing is installed. Does nothing when it is there. Prints the folder. Takes ten minutes on two cores, and 4 GB for the time.
set -euo pipefail

cache=${NODEWALL_KUBE_APISERVER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nodewall/kube-apiserver}
mkdir -p "$cache"
if [ -x "$cache/kube-apiserver" ]; then
    echo "$cache"
    exit
fi

# An apt of its own, with the mirror that this machine has for Debian.
# shellcheck disable=SC2016  # apt-get fills these in.
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' | awk '$1 == "Debian" && !/security/ { print $2; exit }')
[ -n "$mirror" ] || { echo "build-kube: this machine's apt has no mirror of Debian" >&2; exit 1; }
apt=$cache/apt
mkdir -p "$apt"/etc/apt/{preferences.d,apt.conf.d} "$apt"/var/lib/{dpkg,apt/lists/partial} "$apt/var/cache/apt/archives/partial"
touch "$apt/var/lib/dpkg/status"
keys=$(find /usr/share/keyrings -name 'debian-archive-*keyring.gpg' | paste -sd,)
printf '%s\n' "deb [signed-by=$keys] $mirror bookworm main" "deb-src [signed-by=$keys] $mirror bookworm main" >"$apt/etc/apt/sources.list"
# A mirror may be a snapshot: it is as old as it is, and signed all the same.
cat >"$apt/apt.conf" <<CONF
Dir "$apt";
Dir::State "$apt/var/lib/apt";
Dir::State::status "$apt/var/lib/dpkg/status";
Dir::Cache "$apt/var/cache/apt";
Dir::Etc::SourceParts "none";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
CONF
export APT_CONFIG=$apt/apt.conf
rm -rf "$cache"/{packages,gopath}
mkdir -p "$cache/packages" "$cache/gopath/src/k8s.io"
{
    apt-get update
    (cd "$cache/packages" && apt-get download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev)
    (cd "$cache/packages" && apt-get source --download-only kubernetes)
} >&2
for package in "$cache"/packages/*.deb; do dpkg -x "$package" "$cache/tree"; done
cd "$cache/gopath/src/k8s.io"
# The signature of the source package is of a key that this machine need not have; apt has checked its hash against the signed list.
dpkg-source --no-check -x "$cache"/packages/kubernetes_*.dsc kubernetes >&2
cd kubernetes

export GOROOT=$cache/tree/usr/lib/go-1.19 GOPATH=$cache/gopath GO111MODULE=off CGO_ENABLED=0 GOCACHE=$cache/gocache
go=$GOROOT/bin/go
# The vendored one is older than this Go, and crashes when the first custom resource is written.
rm -rf vendor/github.com/modern-go/reflect2
cp -r "$cache/tree/usr/share/gocode/src/github.com/modern-go/reflect2" vendor/github.com/modern-go/reflect2
# The only generated file that is not in the package. What upstream's makefile collects: every folder that asks for it.
"$go" build -o "$cache/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen >&2
folders=$(grep -lR --include='*.go' '^// *+k8s:openapi-gen=' pkg cmd plugin vendor/k8s.io |
    grep -v -e k8s.io/code-generator/ -e k8s.io/sample-apiserver/ -e k8s.io/kube-openapi/ |
    xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
"$cache/openapi-gen" -i "$folders" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$cache/openapi.report" >&2
version=$(sed -n 's/^Version: .*really\([0-9.]*\)-.*/v\1/p' "$cache"/packages/kubernetes_*.dsc)
"$go" build -ldflags "-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=$version" -o "$cache/kube-apiserver.new" \
    ./cmd/kube-apiserver >&2
mv "$cache/kube-apiserver.new" "$cache/kube-apiserver"
chmod -R u+w "$cache"
rm -rf "$cache"/{apt,packages,tree,gopath,gocache,openapi-gen,openapi.report}
echo "$cache"
