//! Every file of config/ is one that `nodewall check` has nothing against, and does what its comments promise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nodewall::config::{self, Config};
use nodewall::host;
use nodewall::net::facts::Facts;
use nodewall::policy::effective::Effective;
use nodewall::policy::model::{Mode, Policy, Transport};
use nodewall::policy::resolve::resolve;
use nodewall::source;
use nodewall::text::finding::{Code, Finding, Severity};
use nodewall::text::render::line;
use nodewall::textfile::Trust;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path)
}

/// The machine of a fixture.
fn node(fixture: &str) -> Facts {
    host::collect_fixture(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture))
}

/// The settings and policy of some files, with what there is to say about them.
fn checked(fixture: &str, paths: &[&str]) -> (Policy, Effective, Vec<Finding>) {
    let (config, mut findings, _) = config::load(&shipped("nodewall.toml"), Trust::Anyone);
    let paths: Vec<PathBuf> = paths.iter().map(|path| shipped(path)).collect();
    let sourced = source::load_paths(&paths, Trust::Anyone);
    let (effective, resolved) = resolve(&sourced.policy, &config.settings, &node(fixture));
    findings.extend(sourced.findings);
    findings.extend(resolved);
    (sourced.policy, effective, findings)
}

/// The findings as lines, but for SSH's failsafe: as delivered it is open to anyone, so that nobody is locked out.
fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter(|finding| finding.code != Code::OpenFailsafe).map(line).collect()
}

#[test]
fn the_settings_are_the_built_in_ones_but_only_watch() {
    let (config, findings, _) = config::load(&shipped("nodewall.toml"), Trust::Anyone);
    assert_eq!(lines(&findings), Vec::<String>::new());
    let Config {
        mut settings,
        policy_directories,
        socket,
        kubeconfig,
        state_directory,
        confirm,
        probes,
        motd,
        guards,
        clusters,
        flows,
        metrics,
    } = config;
    let built_in = Config::shipped();
    assert_eq!(settings.mode, Mode::Audit);
    settings.mode = built_in.settings.mode;
    for entry in &mut settings.failsafe {
        let same = built_in.settings.failsafe.iter().find(|other| other.name == entry.name).unwrap();
        entry.place = same.place.clone();
    }
    assert_eq!((settings, guards), (built_in.settings, built_in.guards));
    assert_eq!(
        (policy_directories, socket, kubeconfig, state_directory),
        (built_in.policy_directories, built_in.socket, built_in.kubeconfig, built_in.state_directory)
    );
    assert_eq!((confirm, probes, motd), (built_in.confirm, built_in.probes, built_in.motd));
    assert_eq!((clusters, flows, metrics), (built_in.clusters, built_in.flows, built_in.metrics));
}

/// Each line that shows a setting is the setting that holds without it, or one that says EDIT.
#[test]
fn the_settings_that_are_commented_out_are_valid() {
    let text = std::fs::read_to_string(shipped("nodewall.toml")).unwrap();
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            let shown = line.strip_prefix("# ").filter(|shown| shown.contains(" = ") || shown.starts_with('['));
            shown.filter(|shown| !shown.contains('`')).unwrap_or(line)
        })
        .collect();
    assert_ne!(uncommented.join("\n"), text.trim_end());
    let (config, findings) = config::decode_text("nodewall.toml", &uncommented.join("\n"));
    assert_eq!(lines(&findings), Vec::<String>::new());
    assert_eq!((config.settings.log, config.flows), (Config::shipped().settings.log, Config::shipped().flows));
    assert_eq!(config.policy_directories, Config::shipped().policy_directories);
    assert_eq!(config.settings.labels["pool"], "training");
}

#[test]
fn the_catalogue_is_clean_and_has_what_gpu_nodes_listen_on() {
    let (policy, _, findings) = checked("training-node", &["policy.d"]);
    assert_eq!(lines(&findings), Vec::<String>::new());
    let wanted = [
        "ssh",
        "kubelet",
        "kube-control-plane",
        "node-exporter",
        "dcgm-exporter",
        "amd-metrics-exporter",
        "calico",
        "cilium",
        "flannel",
        "vxlan",
        "torchrun",
        "nccl-peers",
        "ray",
        "slurm",
        "imex",
        "nfs",
        "nfs-rdma",
        "nvme-tcp",
        "nvme-rdma",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "sharp-client",
        "iwarp",
        "roce-soft",
        "redfish-host",
        "tmfifo",
        "triton",
        "vllm",
        "sglang",
        "ollama",
        "jupyter",
        "imds",
    ];
    let missing: Vec<&&str> = wanted.iter().filter(|name| !policy.services.contains_key(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let rdma: BTreeSet<&str> = policy
        .services
        .values()
        .filter(|service| service.transport == Transport::Rdma)
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(rdma, BTreeSet::from(["iser", "nfs-rdma", "nvme-rdma"]));
}

#[test]
fn the_examples_are_clean_and_all_of_each_is_in_force() {
    for (fixture, example, policies) in [("training-node", "training-node", 7), ("edge-node", "edge-inference", 5)] {
        let (policy, effective, findings) = checked(fixture, &["policy.d", &format!("examples/{example}")]);
        assert_eq!(lines(&findings), Vec::<String>::new(), "{example}");
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning));
        assert_eq!(policy.policies.len(), policies, "{example}");
        assert_eq!(effective.tiers.iter().map(|tier| tier.policies.len()).sum::<usize>(), policies, "{example}");
    }
}

/// Nobody has edited 10-addresses.toml yet: SSH and the kubelet answer private addresses all the same.
#[test]
fn the_examples_are_safe_as_pasted() {
    for example in ["training-node", "edge-inference"] {
        let (policy, _, _) = checked("training-node", &["policy.d", &format!("examples/{example}")]);
        for name in ["admin", "control-plane", "monitoring"] {
            let cidrs: Vec<String> = policy.sets[name].cidrs.iter().map(ToString::to_string).collect();
            assert_eq!(cidrs, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"], "{example} {name}");
        }
    }
}
