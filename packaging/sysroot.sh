#!/usr/bin/env bash
# sysroot.sh DIRECTORY: the libraries of arm64 that the program is linked with, from this machine's Debian sources, unpacked in DIRECTORY
# with what dpkg-shlibdeps wants to know of them. Any user may; no architecture is added to this machine.
set -euo pipefail
mkdir -p "$1"
sysroot=$(cd "$1" && pwd)
packages=(libc6 libgcc-s1 libsystemd0 libsystemd-dev libcap2 libgcrypt20 libgpg-error0 liblzma5 libzstd1 liblz4-1)
made="${packages[*]} in $sysroot"
[ "$(cat "$sysroot/made" 2>/dev/null)" != "$made" ] || exit 0

apt=$sysroot/apt
mkdir -p "$apt"/{lists,archives}/partial
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
cat >"$apt/conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt";
Dir::Etc::sourcelist "$sources";
Dir::Etc::sourceparts "/dev/null";
END
export APT_CONFIG=$apt/conf
apt-get -qq update
(cd "$apt/archives" && apt-get -qq download "${packages[@]}")
info=$sysroot/var/lib/dpkg/info
mkdir -p "$info"
: >"$sysroot/var/lib/dpkg/status"
echo 1 >"$info/format"
printf '%s\n' "$(dpkg --print-architecture)" arm64 >"$sysroot/var/lib/dpkg/arch"
for package in "$apt"/archives/*.deb; do
    dpkg-deb -x "$package" "$sysroot"
    name=$(dpkg-deb -f "$package" Package)
    dpkg-deb --ctrl-tarfile "$package" | tar -x -C "$info" --transform "s,^\./,$name:arm64.," --wildcards './symbols' './shlibs' 2>/dev/null || true
    dpkg-deb --fsys-tarfile "$package" | tar -t | sed "s,^\.,$sysroot,; s,/\$,," >"$info/$name:arm64.list"
    { dpkg-deb -f "$package"; echo 'Status: install ok installed'; echo; } >>"$sysroot/var/lib/dpkg/status"
done
rm -rf "$apt"
echo "$made" >"$sysroot/made"
