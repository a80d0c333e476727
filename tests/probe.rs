//! The kernel is asked what it has, says so, and nothing of the question stays or is heard of.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{isolated, sh};
use nodewall::driver::{Kernel, Netlink, features};
use nodewall::nft::feature::{Feature, Support};

/// The options of this kernel that are built in or modules; `None` where the kernel does not tell.
fn options() -> Option<String> {
    let output = Command::new("sh").args(["-c", "zcat /proc/config.gz 2>/dev/null"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (!text.is_empty()).then_some(text)
}

#[test]
fn this_kernel_has_what_its_configuration_says() {
    isolated("features", || {
        let start = Instant::now();
        let found = features().unwrap();
        println!("asked in {:?}: {found:?}", start.elapsed());
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), Feature::ALL);
        let Some(options) = options() else {
            println!("SKIPPED the comparison: the kernel has no /proc/config.gz");
            return;
        };
        let has = |name: &str| options.lines().any(|line| line == format!("{name}=y") || line == format!("{name}=m"));
        let wanted: BTreeMap<Feature, &[&str]> = [
            (Feature::NfTables, &["CONFIG_NF_TABLES"] as &[&str]),
            (Feature::Inet, &["CONFIG_NF_TABLES_INET"]),
            (Feature::Conntrack, &["CONFIG_NFT_CT"]),
            (Feature::Limit, &["CONFIG_NFT_LIMIT"]),
            (Feature::Log, &["CONFIG_NFT_LOG", "CONFIG_NETFILTER_NETLINK_LOG"]),
            (Feature::Reject, &["CONFIG_NFT_REJECT_INET"]),
            (Feature::LogReader, &["CONFIG_NETFILTER_NETLINK_LOG"]),
            (Feature::ConntrackList, &["CONFIG_NF_CT_NETLINK"]),
            (Feature::SocketDestroy, &["CONFIG_INET_DIAG_DESTROY"]),
            (Feature::SocketCgroup, &["CONFIG_NFT_SOCKET", "CONFIG_SOCK_CGROUP_DATA"]),
            (Feature::Fib, &["CONFIG_NFT_FIB_INET"]),
            (Feature::Notrack, &["CONFIG_NFT_CT"]),
            (Feature::NetdevIngress, &["CONFIG_NF_TABLES_NETDEV", "CONFIG_NETFILTER_INGRESS"]),
        ]
        .into();
        for (feature, support) in &found {
            // What has no option of its own is in every kernel of the last years.
            let there = wanted.get(feature).is_none_or(|options| options.iter().all(|option| has(option)));
            assert_eq!(*support == Support::Present, there, "{feature:?}: {support:?}");
        }
    });
}

#[test]
fn nothing_of_the_question_stays_or_is_heard_of() {
    isolated("unseen", || {
        sh("nft add table inet theirs");
        let mut monitor = Command::new("nft").arg("monitor").stdout(Stdio::piped()).spawn().unwrap();
        // It says nothing when it is ready: until it hears of a table, it is not.
        let mut heard = monitor.stdout.take().unwrap();
        let (said, words) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = heard.read(&mut buffer) {
                let _ = said.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        });
        let hears = || words.recv_timeout(Duration::from_millis(200)).unwrap_or_default();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            sh("nft add table inet ready; nft delete table inet ready");
            if !hears().is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "nft monitor hears nothing");
        }
        while !hears().is_empty() {}

        let before = (sh("nft list ruleset"), Netlink::open().unwrap().generation().unwrap());
        let links = sh("ip -d link");
        for _ in 0..3 {
            features().unwrap();
        }
        assert_eq!((sh("nft list ruleset"), Netlink::open().unwrap().generation().unwrap()), before);
        assert_eq!(sh("ip -d link"), links);
        let heard = hears();
        assert_eq!(heard, "", "a listener hears of it");
        sh("nft add table inet after");
        assert!(hears().contains("after"), "the listener was there all the time");
        monitor.kill().unwrap();
        monitor.wait().unwrap();
    });
}

#[test]
fn without_the_privilege_it_is_said_and_nothing_is_claimed() {
    isolated("unprivileged", || {
        let binary = env!("CARGO_BIN_EXE_nodewall");
        let script = format!("setpriv --inh-caps=-all --bounding-set=-all {binary} --json check --host");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["features"], serde_json::Value::Null, "{report:#}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("what the kernel lacks is not known"), "{said}");
        assert_eq!(output.status.code(), Some(0));
    });
}
