#!/usr/bin/env bash
# Everything that has to hold: format, lints, tests against the kernel in throw-away network namespaces, manual pages, the
# demonstration. As root; the kernel tests say SKIPPED without, and fail instead when CI is set.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step format
cargo fmt --check
step lints
cargo clippy --all-targets --quiet -- -D warnings
step manual pages
if compgen -G 'man/*' >/dev/null; then mandoc -Tlint -Wwarning man/*; fi
step demonstration
# The very program that the tests run: a release build takes CI a third of its time, and shows nothing more here.
cargo build --quiet
if [ "$(id -u)" -eq 0 ]; then
    python3 demo/run.py --binary target/debug/nodewall </dev/null
elif [ -n "${CI:-}" ]; then
    echo "the demonstration needs root" >&2
    exit 1
else
    echo "SKIPPED demonstration: needs root"
fi
step tests
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --no-fail-fast
else
    cargo test --no-fail-fast
fi
