//! What `nodewall interfaces` says of machines that were written down: a table, a picture and JSON for each in `tests/inventory`.
//!
//! `UPDATE=1 cargo test --test interfaces` rewrites the expected files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use nodewall::store::{Directory, Store};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The machines of `tests/fixtures`.
fn machines() -> Vec<String> {
    let entries = std::fs::read_dir(Path::new(ROOT).join("tests/fixtures")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 8, "the machines are gone: {names:?}");
    names
}

/// Exit code, stdout and stderr.
fn interfaces(root: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "tests/inventory/nodewall.toml", "--policy-dir", "tests/inventory/policy.d", "--root"])
        .arg(root)
        .arg("interfaces")
        .args(arguments)
        .current_dir(ROOT)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn fixture(machine: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures").join(machine)
}

#[track_caller]
fn same(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if found != expected {
        let differs = found.lines().zip(expected.lines()).position(|(left, right)| left != right);
        let line = differs.unwrap_or(found.lines().count().min(expected.lines().count()));
        let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
        panic!(
            "{}:{}: expected\n  {}\nfound\n  {}\nUPDATE=1 rewrites it",
            path.display(),
            line + 1,
            at(&expected),
            at(found)
        );
    }
}

#[test]
fn every_machine_is_as_it_is_written_down() {
    for machine in machines() {
        let golden = Path::new(ROOT).join("tests/inventory").join(&machine);
        for (arguments, file) in
            [(&[][..], "interfaces.txt"), (&["--tree"], "tree.txt"), (&["--json"], "interfaces.json")]
        {
            let (code, stdout, stderr) = interfaces(&fixture(&machine), arguments);
            assert_eq!((code, stderr.as_str()), (0, ""), "{machine} {arguments:?}");
            same(&golden.join(file), &stdout);
        }
    }
}

#[test]
fn every_machine_names_its_sources() {
    for machine in machines().iter().filter(|machine| !machine.ends_with("-node")) {
        let path = fixture(machine).with_extension("md");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.starts_with(&format!("# {machine}\n")) && text.contains("\n## Sources\n"), "{text}");
    }
}

/// What must hold on any machine, so that a mistake is not just written down.
#[test]
fn nothing_that_shares_a_card_with_rdma_is_called_enforced() {
    for machine in machines() {
        let report: Value = serde_json::from_str(&interfaces(&fixture(&machine), &["--json"]).1).unwrap();
        assert_eq!(report["version"], 1);
        let hardware: Vec<&Value> =
            report["rdma"].as_array().unwrap().iter().filter(|device| device["software"] == false).collect();
        let is_hardware = |name: &Value| hardware.iter().any(|device| device["name"] == *name);
        for interface in report["interfaces"].as_array().unwrap() {
            for direction in ["ingress", "egress"] {
                let coverage = &interface["coverage"][direction];
                assert!(!coverage["reason"].as_str().unwrap().is_empty());
                if is_hardware(&interface["rdma"]) {
                    assert_eq!(coverage["state"], "partial", "{machine}: {interface:#}");
                    let reason = coverage["reason"].as_str().unwrap();
                    assert!(reason.contains(interface["rdma"].as_str().unwrap()), "{reason}");
                }
            }
        }
        // A device is with an interface, or told of by itself or with its function.
        for device in &hardware {
            let named = |record: &Value| record["rdma"] == device["name"] || record["name"] == device["name"];
            let with_interface = report["interfaces"].as_array().unwrap().iter().any(named);
            let elsewhere = report["elsewhere"].as_array().unwrap().iter().any(named);
            assert!(with_interface != elsewhere, "{machine}: {device:#}");
        }
        // Rails have numbers from 0 without a gap where nothing is remembered, and each a NIC of its own.
        let rails = report["rails"].as_array().unwrap();
        let names: Vec<String> = rails.iter().map(|rail| rail["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, (0..rails.len()).map(|number| format!("rail{number}")).collect::<Vec<_>>(), "{machine}");
        let mut nics: Vec<&str> = rails.iter().map(|rail| rail["rdma"].as_str().unwrap()).collect();
        nics.sort_unstable();
        nics.dedup();
        assert_eq!(nics.len(), rails.len(), "{machine}");
    }
}

/// What a daemon of that machine would have left: the numbers of a start on which every card was there.
fn remember(root: &Path) {
    let report: Value = serde_json::from_str(&interfaces(root, &["--json"]).1).unwrap();
    let rails: serde_json::Map<String, Value> = report["rails"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(number, rail)| {
            let slot = serde_json::json!({ "pci": rail["pci"], "guid": rail["guid"], "gpu": rail["gpu"]["pci"] });
            (number.to_string(), slot)
        })
        .collect();
    let directory = root.join("var/lib/nodewall");
    std::fs::create_dir_all(&directory).unwrap();
    let text = serde_json::json!({ "version": 1, "rails": rails }).to_string();
    Store::new(Directory::open(&directory).unwrap()).keep_rails(&text).unwrap();
}

#[test]
fn a_dead_card_is_named_and_the_others_keep_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(fixture("dgx-h100")).arg(folder.path()).status().unwrap();
    assert!(copied.success());
    let root = folder.path().join("dgx-h100");
    let kill = || {
        for path in ["class/net/enp94s0np0", "class/infiniband/mlx5_5", "bus/pci/devices/0000:5e:00.0"] {
            std::fs::remove_file(root.join("sys").join(path)).unwrap();
        }
    };
    let rails = || {
        let report: Value = serde_json::from_str(&interfaces(&root, &["--json"]).1).unwrap();
        let interfaces = report["interfaces"].as_array().unwrap().clone().into_iter();
        let rails =
            interfaces.filter_map(|link| Some((link["rail"].as_str()?.to_owned(), link["name"].as_str()?.to_owned())));
        rails.collect::<std::collections::BTreeMap<String, String>>()
    };
    remember(&root);
    let mut all = rails();
    assert_eq!((all.len(), all["rail4"].as_str()), (8, "enp154s0np0"));
    kill();
    all.remove("rail3");
    assert_eq!(rails(), all);
    let text = interfaces(&root, &[]).1;
    assert!(text.contains("\nrail3: its NIC at 0000:5e:00.0 is not there; the number stays free\n"), "{text}");
    assert!(interfaces(&root, &["--tree"]).1.contains("GPU 0000:61:00.0  gpu3"), "its GPU is there");
    // A file that is not what was written is said, and then the numbers are those of a first start.
    let kept = root.join("var/lib/nodewall/rails");
    std::fs::write(&kept, "garbage").unwrap();
    let (code, _, stderr) = interfaces(&root, &[]);
    assert_eq!(code, 0);
    assert!(stderr.contains("the numbers of rails are those of a first start: rails:"), "{stderr}");
    assert_eq!(rails()["rail3"], "enp154s0np0");
}
