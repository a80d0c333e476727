#!/usr/bin/env bash
# What tests in virtual machines take, from this machine's own apt sources (Debian, as root): qemu, and in the directory that is named a
# kernel and an initial RAM disk, which is a whole Debian with the RDMA programs. Does nothing when that is there already.
# NODEWALL_VM_KERNEL names the package of the kernel (linux-image-6.12-amd64, say); without it, it is the release's own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
lab=$(cd "$1" && pwd) kernel=${NODEWALL_VM_KERNEL:-linux-image-amd64}
packages=mount,kmod,iproute2,nftables,libsystemd0,rdma-core,ibverbs-providers,rdmacm-utils,perftest,python3,iputils-ping,procps
left_out=('/usr/share/man/*' '/usr/share/locale/*' '/usr/share/doc/*' '/usr/lib/udev/hwdb*')

wanted=$(cat "$here/setup.sh" "$here/init" <(echo "$kernel") | sha256sum)
if [ "$(cat "$lab/made" 2>/dev/null)" = "$wanted" ] && command -v qemu-system-x86_64 >/dev/null; then exit 0; fi
[ "$(id -u)" -eq 0 ] || { echo "setup: needs root, for apt and mmdebstrap" >&2; exit 1; }
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
export DEBIAN_FRONTEND=noninteractive

for program in qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap cpio:cpio depmod:kmod; do
    command -v "${program%%:*}" >/dev/null && continue
    package=${program##*:}
    echo "setup: installing $package"
    apt-get -qq update
    if ! apt-get -qq install -y --no-install-recommends "$package" >/dev/null 2>&1; then
        # Where parts of qemu came from backports, the rest has to as well.
        sed "s/^Suites: .*/Suites: $suite-backports/; s/ $suite / $suite-backports /" "$sources" >"$lab/backports.${sources##*.}"
        backports=(-o "Dir::Etc::sourcelist=$lab/backports.${sources##*.}")
        apt-get "${backports[@]}" -qq update
        apt-get "${backports[@]}" -qq install -y --no-install-recommends -t "$suite-backports" "$package" >/dev/null
    fi
done

tree=$(mktemp -d "$lab/tree.XXXXXX")
trap 'rm -rf "$tree"' EXIT
echo "setup: making a Debian $suite with $kernel"
# shellcheck disable=SC2016 # the hook's $1 is the tree
mmdebstrap --quiet --mode=root --variant=apt --include="$packages" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    "${left_out[@]/#/--dpkgopt=path-exclude=}" \
    --customize-hook='cd "$1/root" && chroot "$1" sh -ec "
        cd /root
        image=\$(apt-cache depends '"$kernel"' | sed -n \"s/.*Depends: \(linux-image-[0-9].*\)/\1/p\" | head -n 1)
        apt-get -qq -o APT::Sandbox::User=root download \$image"' \
    "$suite" "$tree/root" "$sources"

# The kernel is unpacked and not installed, which would make a RAM disk of its own. Of its modules, what networks and RDMA take, as far
# as this kernel has them apart.
dpkg-deb -x "$tree"/root/root/linux-image-*.deb "$tree/kernel"
rm -rf "$tree"/root/{root/*.deb,boot,var/cache/apt,var/lib/apt,usr/share/perl,usr/lib/*/perl}
version=$(basename "$tree"/kernel/lib/modules/*)
modules=$tree/root/usr/lib/modules/$version
mkdir -p "$modules"
cp "$tree/kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$modules"
(cd "$tree/kernel/lib/modules/$version" && {
    find kernel/net/{netfilter,ipv4,ipv6,core,9p,rds} kernel/{lib,crypto,arch/x86/crypto} kernel/fs/{9p,netfs,fscache,configfs} \
        kernel/drivers/{infiniband/core,infiniband/sw,virtio,char/hw_random,net/*.ko*} \
        -name '*.ko*' 2>/dev/null || true
} | cpio --quiet -pdm "$modules")
depmod -b "$tree/root" "$version"
install -m 755 "$here/init" "$tree/root/init"
(cd "$tree/root" && find . -xdev | cpio --quiet -o -H newc) >"$lab/initrd"
cp "$tree"/kernel/boot/vmlinuz-* "$lab/vmlinuz"
echo "$version" >"$lab/version"
echo "$wanted" >"$lab/made"
