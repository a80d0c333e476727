#!/usr/bin/env bash
# compile.sh TARGET: builds the program that goes into packages, and prints where it is. The same commit gives the same bytes in any
# directory, for any user.
set -euo pipefail
target=$1
root=$(cd "$(dirname "$0")/.." && pwd)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
# Paths get into messages of panics.
export RUSTFLAGS="--remap-path-prefix=$root=/nodewall --remap-path-prefix=$cargo_home=/cargo"
cd "$root"
cargo build --quiet --profile dist --locked --target "$target" >&2
echo "${CARGO_TARGET_DIR:-target}/$target/dist/nodewall"
