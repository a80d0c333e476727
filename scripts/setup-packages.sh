#!/usr/bin/env bash
# Installs by apt, on Debian 12, what packaging/build.sh takes beside what scripts/setup.sh installs; with `lint` also what scripts/lint.sh
# takes, and with `arm64` what builds for arm64. Does nothing, and needs no root, when everything is there.
set -euo pipefail

# package:the file that shows it is there
wanted=(debhelper:/usr/bin/dh dh-apparmor:/usr/bin/dh_apparmor rpm:/usr/bin/rpmbuild binutils:/usr/bin/readelf)
for mode in "$@"; do
    case $mode in
    lint)
        wanted+=(lintian:/usr/bin/lintian rpmlint:/usr/bin/rpmlint shellcheck:/usr/bin/shellcheck git:/usr/bin/git)
        python3 -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv:/nothing)
        ;;
    arm64) wanted+=(gcc-aarch64-linux-gnu:/usr/bin/aarch64-linux-gnu-gcc libc6-dev-arm64-cross:/usr/aarch64-linux-gnu/include/stdint.h qemu-user:/usr/bin/qemu-aarch64) ;;
    *) echo "setup-packages: no mode $mode: lint or arm64" >&2; exit 2 ;;
    esac
done

missing=()
for entry in "${wanted[@]}"; do
    [ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
echo "setup-packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
