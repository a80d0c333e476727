#!/usr/bin/env bash
# stage.sh DEST BINARY TARGET VERSION: what both kinds of packages install, laid out below DEST as on a host; BINARY goes there as it is.
# With PACKAGE_PROGRAM, completions are asked from that program: one that runs on this machine, of the same source.
set -euo pipefail
dest=$1 binary=$2 target=$3 version=$4 program=${PACKAGE_PROGRAM:-$2}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"

put() { # put MODE DIRECTORY FILE...
    local mode=$1 into=$dest/$2
    shift 2
    install -d -m 0755 "$into"
    install -m "$mode" -t "$into" "$@"
}

rm -rf "$dest"
put 0755 usr/sbin "$binary"
[ "${binary##*/}" = nodewall ] || mv "$dest/usr/sbin/${binary##*/}" "$dest/usr/sbin/nodewall"
put 0644 usr/lib/systemd/system systemd/*.service
for kind in sysusers.d tmpfiles.d modules-load.d; do put 0644 "usr/lib/$kind" "systemd/$kind/nodewall.conf"; done
put 0644 usr/lib/systemd/catalog packaging/journal/nodewall.catalog
put 0644 usr/lib/nodewall/policy.d config/policy.d/*.toml
put 0644 etc/nodewall config/nodewall.toml
install -d -m 0755 "$dest/etc/nodewall/policy.d"
put 0644 etc/apparmor.d packaging/apparmor/nodewall

for page in man/*.[1-9]; do put 0644 "usr/share/man/man${page##*.}" "$page"; done
if "$program" completions bash >/dev/null 2>&1; then
    install -d "$dest"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
    "$program" completions bash >"$dest/usr/share/bash-completion/completions/nodewall"
    "$program" completions zsh >"$dest/usr/share/zsh/vendor-completions/_nodewall"
    "$program" completions fish >"$dest/usr/share/fish/vendor_completions.d/nodewall.fish"
fi

doc=usr/share/doc/nodewall
put 0644 $doc README.md CHANGELOG.md
for file in docs/*.md; do put 0644 $doc/docs "$file"; done
cp -r --no-preserve=all config/examples packaging/kubernetes packaging/prometheus packaging/grafana packaging/selinux "$dest/$doc/"
if compgen -G 'systemd/examples/*' >/dev/null; then put 0644 $doc/examples systemd/examples/*; fi
for more in ansible cloud-init; do
    if [ -d packaging/$more ]; then cp -r --no-preserve=all packaging/$more "$dest/$doc/"; fi
done
# Not what only tests read.
rm "$dest/$doc/prometheus/nodewall.test.yml"
python3 packaging/sbom.py "$target" "$version" >"$dest/$doc/nodewall.cdx.json"
python3 packaging/licences.py "$target" | gzip -9n >"$dest/$doc/THIRD-PARTY.txt.gz"
chmod 0644 "$dest/$doc"/{nodewall.cdx.json,THIRD-PARTY.txt.gz}
