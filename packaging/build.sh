#!/usr/bin/env bash
# Makes the .deb and the .rpm in target/packages from a built program, as any user; scripts/setup-packages.sh has what it takes.
#   packaging/build.sh [--arch amd64|arm64] [--binary PROGRAM] [--version VERSION] [--out DIRECTORY] [--only deb|rpm] [--quick]
# Without --binary the program is built with profile dist. --quick compresses little, for tests. The same commit gives the same bytes, wherever it lies.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

arch=amd64 binary='' version='' out=target/packages only='' quick=''
[ "$(uname -m)" != aarch64 ] || arch=arm64
while [ $# -gt 0 ]; do
    case $1 in
    --arch) arch=$2 ;;
    --binary) binary=$2 ;;
    --version) version=$2 ;;
    --out) out=$2 ;;
    --only) only=$2 ;;
    --quick) quick=yes; shift; continue ;;
    *) sed -n '2,4s/^# *//p' "$0" >&2; exit 2 ;;
    esac
    shift 2
done
case $arch in
amd64) target=x86_64-unknown-linux-gnu tools=x86_64-linux-gnu- ;;
arm64) target=aarch64-unknown-linux-gnu tools=aarch64-linux-gnu- ;;
*) echo "build.sh: no architecture $arch: amd64 or arm64" >&2; exit 2 ;;
esac
: "${version:=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)}"
# Times of files in the packages: that of the commit, or of an unpacked tarball's newest change.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)}"
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC
umask 022

if [ -z "$binary" ]; then binary=$(packaging/compile.sh "$target"); limit=yes; else limit=; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
"${tools}strip" --strip-all --remove-section=.comment -o "$work/nodewall" "$binary"
chmod 0755 "$work/nodewall"

# What the oldest that we support have: RHEL 9 and Ubuntu 22.04 have glibc 2.34 and 2.35, and systemd 252 and 249.
newest=$(readelf --version-info --wide "$work/nodewall" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
if [ "$(printf '%s\n' GLIBC_2.34 "$newest" | sort -V | tail -n 1)" != GLIBC_2.34 ]; then
    echo "build.sh: the program needs $newest, and RHEL 9 has GLIBC_2.34: build it on Debian 12" >&2
    exit 1
fi
if [ -n "$limit" ] && grep -qaF -e "$root/" -e "${CARGO_HOME:-$HOME/.cargo}/" "$work/nodewall"; then
    echo "build.sh: the program knows where it was built, and would be another one elsewhere" >&2
    exit 1
fi

# One of another architecture runs by qemu, with its libraries, of which dpkg-shlibdeps knows the packages.
program=$work/nodewall shlibdeps=''
if [ "$target" != "$(rustc -vV | sed -n 's/^host: //p')" ]; then
    sysroot=${NODEWALL_SYSROOT:-$(realpath -m "${CARGO_TARGET_DIR:-target}")/sysroot-arm64}
    packaging/sysroot.sh "$sysroot" >&2
    program=$work/by-qemu
    printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" "%s" "$@"\n' "$sysroot" "$work/nodewall" >"$program"
    chmod 0755 "$program"
    shlibdeps="--admindir=$sysroot/var/lib/dpkg -l$sysroot/lib/aarch64-linux-gnu -l$sysroot/usr/lib/aarch64-linux-gnu"
fi
"$program" --version >/dev/null
PACKAGE_PROGRAM=$program packaging/stage.sh "$work/root" "$work/nodewall" "$target" "$version"

installed() { # installed KIND DIRECTORY [OPTIONS]: says how much will be on a host's disk, of which what is released has a limit
    local kib
    kib=$(du -sk --apparent-size "${@:3}" "$2" | cut -f1)
    echo "$1: $kib KiB installed, of which the program has $(($(stat -c %s "$work/nodewall") / 1024)) KiB" >&2
    if [ -n "$limit" ] && [ "$kib" -ge 10240 ]; then
        echo "build.sh: that is more than 10 MiB" >&2
        exit 1
    fi
}

deb() {
    local build=$work/deb
    mkdir "$build"
    cp -r packaging/debian "$build/debian"
    cp -r "$work/root" "$build/root"
    # The debhelper of Debian 12 looks for units here only; it is the same directory on every host.
    mkdir -p "$build/root/lib/systemd"
    mv "$build/root/usr/lib/systemd/system" "$build/root/lib/systemd/"
    cat >"$build/debian/changelog" <<END
nodewall ($version) unstable; urgency=medium

  * CHANGELOG.md says what operators notice of this version.

 -- The nodewall authors <packages@nodewall.invalid>  $(date -Rd "@$SOURCE_DATE_EPOCH")
END
    [ -z "$quick" ] || export COMPRESSION='-Zgzip -z1'
    (cd "$build" && DEB_BUILD_OPTIONS=nocheck SHLIBDEPS=$shlibdeps dpkg-buildpackage --build=binary --no-sign --host-arch "$arch" -d >../log 2>&1) || { cat "$work/log" >&2; exit 1; }
    mv "$work/nodewall_${version}_$arch.deb" "$out/"
    installed deb "$build/debian/nodewall" --exclude=DEBIAN
    echo "$out/nodewall_${version}_$arch.deb"
}

rpm() {
    local root=$work/rpm/root machine=x86_64 payload=w9.xzdio
    [ -z "$quick" ] || payload=w1.gzdio
    [ "$arch" = amd64 ] || machine=aarch64
    mkdir "$work/rpm"
    cp -r "$work/root" "$root"
    install -D -m 0644 systemd/system-preset/90-nodewall.preset -t "$root/usr/lib/systemd/system-preset"
    install -D -m 0644 LICENSE -t "$root/usr/share/licenses/nodewall"
    if [ -d "$root/usr/share/zsh" ]; then mv "$root/usr/share/zsh/vendor-completions" "$root/usr/share/zsh/site-functions"; fi
    # Neither RHEL nor Fedora has AppArmor.
    rm -rf "$root/etc/apparmor.d"
    gzip -9n "$root"/usr/share/man/man*/*
    find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
    rpmbuild -bb --quiet --target "$machine-linux" --define "_topdir $work/rpm" --define "_rpmdir $work" --define "_rpmfilename %%{NAME}.rpm" \
        --define "version_ $version" --define "date_ $(date -d "@$SOURCE_DATE_EPOCH" '+%a %b %d %Y')" \
        --define "root $root" --define "packager The nodewall authors <packages@nodewall.invalid>" --define "_binary_payload $payload" \
        packaging/rpm/nodewall.spec >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    installed rpm "$root"
    mv "$work/nodewall.rpm" "$out/nodewall-$version-1.$machine.rpm"
    echo "$out/nodewall-$version-1.$machine.rpm"
}

[ "$only" = rpm ] || deb
[ "$only" = deb ] || rpm
