//! packaging/ansible and packaging/cloud-init: the role is run on a host made of namespaces, and the user data holds what nodewall takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// False, with a word about it, where ansible is missing; a failure under CI.
fn ansible(test: &str) -> bool {
    let there = Command::new("ansible-playbook").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "ansible-playbook is missing (apt: ansible-core)");
    if !there {
        println!("SKIPPED {test}: ansible-playbook is missing");
    }
    there
}

#[test]
fn the_example_playbook_is_one() {
    if !ansible("the_example_playbook_is_one") {
        return;
    }
    let output = Command::new("ansible-playbook")
        .args(["--syntax-check", "-i", "localhost,", "site.example.yml"])
        .current_dir(at("packaging/ansible"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every variable of the role is in its README with its default, and no other.
#[test]
fn the_readme_has_every_variable_of_the_role() {
    let readme = fs::read_to_string(at("packaging/ansible/README.md")).unwrap();
    let defaults = fs::read_to_string(at("packaging/ansible/roles/nodewall/defaults/main.yml")).unwrap();
    let mut named: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut known: Vec<&str> = defaults.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    // The one without a default.
    known.retain(|name| name.starts_with("nodewall_"));
    known.push("nodewall_admin_cidrs");
    named.sort_unstable();
    known.sort_unstable();
    assert_eq!(named, known);
}

/// A play on a host with a directory and a stand-in for systemctl of its own: what it prints, and what `after` prints then.
const PLAY: &str = r#"
set -eu
mount -t tmpfs -o mode=0755 tmpfs "$1"
for directory in etc usr/lib usr/sbin var/lib root; do
    mkdir -p "$1/$directory/up" "$1/$directory/work"
    mount -t overlay overlay -o "lowerdir=/$directory,upperdir=$1/$directory/up,workdir=$1/$directory/work" "/$directory"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t sysfs sysfs /sys
install -d -m 0755 /etc/nodewall/policy.d /usr/lib/nodewall/policy.d /run/nodewall
install -m 0644 "$2"/config/nodewall.toml /etc/nodewall/
install -m 0644 "$2"/config/policy.d/*.toml /usr/lib/nodewall/policy.d/
cp "$3" /usr/sbin/nodewall
ip link set lo up
ip link add eth0 type veth peer name wire0
ip addr add 192.0.2.17/24 dev eth0
ip link set eth0 up; ip link set wire0 up
ip route add default via 192.0.2.1
mkdir "$1/bin"
cat >"$1/bin/systemctl" <<'END'
#!/bin/sh
case "$*" in
    "reload nodewall") kill -HUP "$(cat /run/nodewall.pid)" ;;
    "is-active nodewall") kill -0 "$(cat /run/nodewall.pid)" ;;
    *) exit 99 ;;
esac
END
chmod 0755 "$1/bin/systemctl"
export PATH="$1/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root NO_COLOR=1 ANSIBLE_NOCOLOR=1 ANSIBLE_LOCALHOST_WARNING=false LC_ALL=C.UTF-8
# A module is a process less, and facts about the host are asked for by nobody.
export ANSIBLE_PIPELINING=true ANSIBLE_GATHERING=explicit
nodewall run >/run/nodewall.log 2>&1 &
echo $! >/run/nodewall.pid
for _ in $(seq 300); do nodewall status 2>&1 | grep -q '^state.*in force' && break; sleep 0.1; done
cd /root
sed 's/hosts: gpu_nodes/hosts: all/' "$2/packaging/ansible/site.example.yml" >"$1/site.yml"
run() {
    ANSIBLE_ROLES_PATH="$2/packaging/ansible/roles" ansible-playbook -i gpu-17, -c local -e ansible_python_interpreter=/usr/bin/python3 \
        -e ansible_become=false -e nodewall_install=false "$1/site.yml" 2>&1 || echo "play failed"
}
echo "@@first"; run "$1" "$2"
echo "@@files"; ls /etc/nodewall/policy.d
echo "@@status"; sleep 3; nodewall check 2>&1; nodewall status || true
echo "@@second"; run "$1" "$2"
sed -i "s/role == 'mgmt'/role = 'mgmt'/" "$1/site.yml"
echo "@@broken"; run "$1" "$2"
echo "@@kept"; nodewall check 2>&1; grep interfaces /etc/nodewall/policy.d/20-ssh.toml
echo "@@end"
"#;

#[test]
fn the_role_puts_a_policy_in_force_changes_nothing_twice_and_refuses_what_is_wrong() {
    let name = "the_role_puts_a_policy_in_force";
    if !lab::may_run(name) || !ansible(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", PLAY, "host"])
        .args([folder.path(), &at(""), Path::new(env!("CARGO_BIN_EXE_nodewall"))])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let part = |name: &str| -> &str {
        let rest = printed.split_once(&format!("@@{name}\n")).unwrap_or_else(|| panic!("{name}: {printed}{errors}")).1;
        rest.split("@@").next().unwrap()
    };
    let first = part("first");
    assert!(first.contains("failed=0") && !first.contains("play failed"), "{first}");
    assert!(first.contains("Put them in force"), "{first}");
    let files = ["10-addresses.toml", "20-ssh.toml", "50-preset-dcgm.toml", "50-preset-kubelet.toml"];
    assert_eq!(part("files").lines().collect::<Vec<_>>(), files);
    let status = part("status");
    assert!(status.contains("3 policies in 5 files: no findings"), "{status}");
    assert!(status.contains("in force (audit") && status.contains("preset-kubelet"), "{status}");
    let second = part("second");
    assert!(second.contains("changed=0") && second.contains("failed=0"), "{second}");
    let broken = part("broken");
    assert!(broken.contains("play failed") && broken.contains("error[selector]"), "{broken}");
    let kept = part("kept");
    assert!(kept.contains("no findings") && kept.contains("role == 'mgmt'"), "{kept}");
}

/// What the example for cloud-init writes, by path: read by Python, as cloud-init does.
#[test]
fn the_user_data_for_cloud_init_holds_what_nodewall_takes() {
    let folder = tempfile::tempdir().unwrap();
    let write = r##"
import pathlib, sys, yaml
text = pathlib.Path(sys.argv[1]).read_text()
assert text.startswith("#cloud-config\n"), "cloud-init takes it for something else"
data = yaml.safe_load(text)
assert set(data) == {"write_files", "runcmd"}, set(data)
for file in data["write_files"]:
    assert set(file) == {"path", "owner", "permissions", "content"}, file
    assert file["owner"] == "root:root" and file["permissions"] == "0644", file
    place = pathlib.Path(sys.argv[2] + file["path"])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(file["content"])
    print(file["path"])
for command in data["runcmd"]:
    assert isinstance(command, list) and all(isinstance(word, str) for word in command), command
"##;
    let output = Command::new("python3")
        .args(["-c", write])
        .args([&at("packaging/cloud-init/user-data.example.yaml"), folder.path()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
    let place = |path: &str| folder.path().join(path).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", &place("etc/nodewall/nodewall.toml"), "--policy-dir", &place("etc/nodewall/policy.d")])
        .args(["--root", &at("tests/fixtures/edge-node").display().to_string(), "check"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("no findings"), "{said}");
}
