//! Policies about traffic that never reaches nftables, on machines that were written down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

/// `nodewall check` of one policy on a machine of `tests/fixtures`: exit code and everything that it says.
fn check(machine: &str, policy: &str) -> (i32, String) {
    let root = env!("CARGO_MANIFEST_DIR");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("10-fabric.toml");
    std::fs::write(&file, policy).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "config/nodewall.toml", "--root", &format!("tests/fixtures/{machine}"), "check"])
        .arg(&file)
        .current_dir(root)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), said)
}

fn policy(selector: &str, more: &str, rule: &str) -> String {
    format!(
        "[[policy]]\nname = \"fabric\"\norder = 1\ninterfaces = \"{selector}\"\n{more}\ningress = [\n  {rule},\n]\negress = [{rule}]\n"
    )
}

const DENY: &str = r#"{ action = "deny", protocol = "udp", ports = [4791] }"#;

#[test]
fn a_rule_about_roce_is_refused_where_the_hardware_carries_it() {
    let (code, said) = check("dgx-h100", &policy("role == 'rail'", "", DENY));
    assert_eq!(code, 5, "{said}");
    for words in [
        "10-fabric.toml:7:",
        "error[bypassed]: rule fabric#1 names udp/4791, which never reaches nftables on rail",
        "and on 7 more interfaces: RDMA device mlx5_",
        "acknowledge = \"bypass\"",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (code, said) = check("dgx-h100", &policy("role == 'rail'", "acknowledge = \"bypass\"", DENY));
    assert_eq!(code, 0, "{said}");
    let (code, said) = check("dgx-h100", &policy("role == 'rail' && coverage == 'enforced'", "", DENY));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("selects no interface"), "{said}");
}

#[test]
fn what_names_no_path_that_is_bypassed_is_fine() {
    for (machine, selector, rule) in [
        ("h100-vm", "all()", DENY),
        ("dgx-h100", "role == 'mgmt'", DENY),
        ("dgx-h100", "role == 'rail'", r#"{ action = "deny", protocol = "udp", ports = ["4000-5000"] }"#),
        ("dgx-h100", "role == 'rail'", r#"{ action = "deny" }"#),
    ] {
        let (code, said) = check(machine, &policy(selector, "", rule));
        assert_eq!(code, 0, "{machine} {selector}: {said}");
    }
}

#[test]
fn an_interface_that_is_declared_bypassed_is_one() {
    let declared = "[[interface]]\nname = \"onload\"\nmatch = { name = \"*\" }\ncoverage = \"bypassed\"\n";
    let rule = policy("role == 'mgmt'", "", DENY);
    let (code, said) = check("h100-vm", &(declared.to_owned() + &rule));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("nothing on it reaches nftables"), "{said}");
    let (code, said) = check("h100-vm", &declared.replace("\"bypassed\"", "\"enforced\""));
    assert_eq!(code, 5);
    assert!(said.contains("coverage to declare"), "{said}");
}

#[test]
fn a_service_of_rdma_cm_is_only_declared() {
    let service = "[[service]]\nname = \"nvme\"\nports = [\"tcp/4420\"]\ntransport = \"rdma\"\n";
    let rule = r#"{ action = "allow", services = ["nvme"] }"#;
    let (code, said) = check("dgx-h100", &(service.to_owned() + &policy("role == 'rail'", "", rule)));
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("service \"nvme\" is carried by RDMA-CM"), "{said}");
    let known = policy("role == 'rail'", "acknowledge = \"bypass\"", rule);
    let (code, said) = check("dgx-h100", &(service.to_owned() + &known));
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("no packet can match"), "{said}");
}
