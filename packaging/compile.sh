#!/usr/bin/env bash
# compile.sh TARGET: builds the program that goes into packages for x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu, and prints
# where it is. The same commit, compiler and distribution give the same bytes in any directory, for any user.
set -euo pipefail
target=$1
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
host=$(rustc -vV | sed -n 's/^host: //p')
built=$(realpath -m "${CARGO_TARGET_DIR:-target}")
cargo fetch --quiet --locked --target "$target" >&2

# Messages of panics name files: these are the names, instead of where this checkout and the crates lie.
remap() { flags+=" --remap-path-prefix=$1=$2" prefixes+=" -ffile-prefix-map=$1=$2"; }
flags='' prefixes=''
remap "$root" /nodewall
remap "$built" /target
for sources in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do remap "$(realpath "$sources")" /crates; done
# Nor are there tables for unwinding through SQLite (packaging/abort-gcc has why).
export CFLAGS="${CFLAGS:-} $prefixes -fno-asynchronous-unwind-tables -fno-unwind-tables"

if [ "$target" != "$host" ]; then
    # Of the other architecture: the linker's libraries come from Debian, and only what is in them.
    [ "$target" = aarch64-unknown-linux-gnu ] || { echo "compile.sh: cannot build for $target on $host" >&2; exit 2; }
    export NODEWALL_SYSROOT=${NODEWALL_SYSROOT:-$built/sysroot-arm64}
    packaging/sysroot.sh "$NODEWALL_SYSROOT" >&2
    export SYSTEMD_LIB_DIR=$NODEWALL_SYSROOT/usr/lib/aarch64-linux-gnu
    export NODEWALL_CC=$root/packaging/link-arm64.sh
fi
# By name, as a path would get into the names of symbols; for the program only, and not for what runs in its build.
PATH=$root/packaging:$PATH
# What many functions have in common is there once, a twentieth of the whole; on arm64 it is so without being asked for.
flags+=" -Clinker=abort-gcc -Cllvm-args=-enable-machine-outliner=always"
variable=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_RUSTFLAGS
export "$variable=${flags# }"
unset RUSTFLAGS
cargo build --quiet --profile dist --features packaged --locked --target "$target" >&2
echo "$built/$target/dist/nodewall"
