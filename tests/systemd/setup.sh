#!/usr/bin/env bash
# What the tests on a real systemd take, from this machine's own apt sources (Debian, as root), into the directory that is named: a small
# Debian tree, and with `vm` as second argument also qemu, a kernel and a disk image of the tree. Does nothing when that is there already.
# NODEWALL_SUITE names another release than this machine's (trixie, say), and NODEWALL_VM_KERNEL the package of the kernel
# (linux-image-6.12-amd64, say), which is the release's own without it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
lab=$(cd "$1" && pwd) level=${2:-nspawn} kernel=${NODEWALL_VM_KERNEL:-linux-image-amd64}
# What a node has that nodewall is installed on: who brings links up, and what the package depends on.
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,nftables,libsystemd0,libgcc-s1,adduser,ifupdown,python3-minimal,libpython3-stdlib,procps,iputils-ping,rpm,apparmor
left_out=('/usr/share/locale/*' '/usr/share/doc/*' '/usr/share/man/*/*' '/usr/lib/udev/hwdb*')

[ "$(id -u)" -eq 0 ] || { echo "setup: needs root, for apt and mmdebstrap" >&2; exit 1; }
own=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
suite=${NODEWALL_SUITE:-$own}
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
if [ "$suite" != "$own" ]; then
    # Another release of the same mirror.
    mirror=$(sed -n 's/^URIs: *//p; s/^deb .*\(https\{0,1\}:[^ ]*\) .*/\1/p' "$sources" | head -n 1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$lab/$suite.list"
    sources=$lab/$suite.list
fi
export DEBIAN_FRONTEND=noninteractive

programs=(mmdebstrap:mmdebstrap systemd-nspawn:systemd-container)
[ "$level" != vm ] || programs+=(qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils mke2fs:e2fsprogs cpio:cpio depmod:kmod busybox:busybox-static)
missing=()
for program in "${programs[@]}"; do
    command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    apt-get -qq update
    if ! apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
        # Where parts of qemu came from backports, the rest has to as well.
        sed "s/^Suites: .*/Suites: $own-backports/; s/ $own / $own-backports /" "$sources" >"$lab/backports.${sources##*.}"
        backports=(-o "Dir::Etc::sourcelist=$lab/backports.${sources##*.}")
        apt-get "${backports[@]}" -qq update
        apt-get "${backports[@]}" -qq install -y --no-install-recommends -t "$own-backports" "${missing[@]}" >/dev/null
    fi
fi

wanted=$(cat "$here/setup.sh" "$here/agent" <(echo "$suite") | sha256sum)
if [ "$(cat "$lab/tree.made" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: making a Debian $suite"
    rm -rf "$lab/tree" "$lab/tree.made" "$lab"/image.*
    mmdebstrap --quiet --mode=root --variant=apt --include="$packages" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        "${left_out[@]/#/--dpkgopt=path-exclude=}" --dpkgopt='path-include=/usr/share/doc/nodewall/*' \
        --dpkgopt='path-include=/usr/share/man/*/nodewall*' "$suite" "$lab/tree" "$sources"
    tree=$lab/tree
    install -m 755 "$here/agent" "$tree/usr/local/sbin/agent"
    cat >"$tree/etc/systemd/system/agent.service" <<'UNIT'
[Unit]
Description=runs what the test on the other side of /host asks for
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/agent
TimeoutStopSec=1
KillMode=process
[Install]
WantedBy=multi-user.target
UNIT
    mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
    ln -s ../agent.service "$tree/etc/systemd/system/multi-user.target.wants/agent.service"
    # What only costs time at a boot.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service \
        man-db.timer systemd-firstboot.service console-getty.service getty@tty1.service; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    echo node >"$tree/etc/hostname"
    : >"$tree/etc/fstab"
    : >"$tree/etc/machine-id"
    mkdir -p "$tree/var/log/journal" "$tree/host"
    echo "$wanted" >"$lab/tree.made"
fi
[ "$level" = vm ] || exit 0

wanted=$(cat "$lab/tree.made" <(echo "$kernel") | sha256sum)
[ "$(cat "$lab/image.made" 2>/dev/null)" != "$wanted" ] || exit 0
echo "setup: making a disk image with $kernel"
work=$(mktemp -d "$lab/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp -a "$lab/tree" "$work/root"
# By the tree's own apt, which knows its release.
cp -a "$work/root" "$work/fetch"
cp /etc/resolv.conf "$work/fetch/etc/resolv.conf"
chroot "$work/fetch" sh -ec "
    apt-get -qq update
    image=\$(apt-cache depends $kernel | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    # Some releases have the modules in a package of their own.
    version=\${image#linux-image-}
    wanted=\$image
    for more in linux-modules linux-binary; do apt-cache show \$more-\$version >/dev/null 2>&1 && wanted=\"\$wanted \$more-\$version\"; done
    cd /root && apt-get -qq -o APT::Sandbox::User=root download \$wanted"
for package in "$work"/fetch/root/linux-*.deb; do dpkg-deb -x "$package" "$work/kernel"; done
rm -rf "$work/fetch"
modules=$work/kernel/lib/modules
[ -d "$modules" ] || modules=$work/kernel/usr/lib/modules
version=$(basename "$modules"/*)
depmod -b "${modules%/lib/modules}" "$version"
# Of the modules, what networks and disks take: the image is made anew for each kernel.
into=$work/root/usr/lib/modules/$version
mkdir -p "$into"
cp "$modules/$version"/modules.{builtin,builtin.modinfo,order} "$into"
(cd "$modules/$version" && {
    find kernel/net/{netfilter,ipv4,ipv6,core,9p,bridge,8021q,sched,packet,unix,llc,802} kernel/{lib,crypto,arch/x86/crypto} \
        kernel/fs/{9p,netfs,fscache,configfs,ext4,jbd2,autofs} kernel/drivers/{virtio,block,char/hw_random,net/*.ko*} kernel/mm \
        -name '*.ko*' 2>/dev/null || true
} | cpio --quiet -pdm "$into")
depmod -b "$work/root" "$version"
rm -rf "$work"/root/{var/cache/apt/*.bin,var/lib/apt/lists}
rm -f "$lab/image.raw"
truncate -s 2G "$lab/image.raw"
mke2fs -q -t ext4 -E lazy_itable_init=1 -L root -d "$work/root" "$lab/image.raw"
# The RAM disk mounts the disk, and no more.
mkdir -p "$work/initrd"/{bin,proc,sys,dev,root,modules}
cp /bin/busybox "$work/initrd/bin/busybox"
ln -s busybox "$work/initrd/bin/sh"
: >"$work/initrd/modules/order"
for module in virtio_pci virtio_blk virtio_rng virtio_net ext4 9p 9pnet_virtio; do
    modprobe -d "${modules%/lib/modules}" -S "$version" --show-depends "$module" 2>/dev/null | while read -r kind file; do
        [ "$kind" = insmod ] || continue
        name=$(basename "$file")
        name=${name%.xz} name=${name%.zst}
        grep -qx "$name" "$work/initrd/modules/order" && continue
        case $file in *.xz) xz -dc "$file" ;; *.zst) zstd -dcq "$file" ;; *) cat "$file" ;; esac >"$work/initrd/modules/$name"
        echo "$name" >>"$work/initrd/modules/order"
    done
done
cat >"$work/initrd/init" <<'INIT'
#!/bin/sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module" || echo "initrd: no $module"; done </modules/order
tries=0
while [ ! -b /dev/vda ]; do
    $b usleep 20000; tries=$((tries + 1))
    [ $tries -lt 500 ] || { echo "initrd: no disk"; $b poweroff -f; }
done
$b mount -t ext4 -o rw,noatime /dev/vda /root || { echo "initrd: the disk cannot be mounted"; $b poweroff -f; }
$b umount /proc /sys; $b mount -o move /dev /root/dev
exec $b switch_root /root /sbin/init
INIT
chmod +x "$work/initrd/init"
(cd "$work/initrd" && find . | cpio --quiet -o -H newc) >"$lab/image.initrd"
cp "$(find "$work/kernel" -name 'vmlinuz*' -type f | head -n 1)" "$lab/image.vmlinuz"
echo "$version" >"$lab/image.version"
echo "$wanted" >"$lab/image.made"
