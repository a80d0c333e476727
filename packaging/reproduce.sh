#!/usr/bin/env bash
# reproduce.sh [PROGRAM]: shows that two builds give the same bytes, in two directories of different depth, at different times, in another
# language and time zone, and with another umask. With PROGRAM only the packages are built twice, of that program; without it the
# program is built twice, too, which takes twice as long as a release.
#   ARCH=arm64 packaging/reproduce.sh
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${ARCH:-amd64} program=${1:+$(realpath "$1")}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/reproduce.XXXXXX")
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

build() { # build DIRECTORY: from a checkout of its own
    mkdir -p "$1"
    git ls-files -z | tar --null -T - -c | tar -x -C "$1"
    (cd "$1" && unset CARGO_TARGET_DIR && packaging/build.sh --arch "$arch" ${program:+--binary "$program" --quick} --out packages >/dev/null)
    (cd "$1/packages" && sha256sum -- *) >"$work/sums.$2"
    # A target directory is some GB.
    rm -rf "$1"
}

build "$work/a" 1
(export LC_ALL=C TZ=Pacific/Auckland && umask 077 && build "$work/some/where/else" 2)
if ! diff "$work/sums.1" "$work/sums.2"; then
    echo "reproduce.sh: the packages differ" >&2
    exit 1
fi
cat "$work/sums.1"
