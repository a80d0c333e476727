//! Everything that can be shown, as text: the golden file is the list of metrics, and other tests ask it which series there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use nodewall::compile::compile;
use nodewall::compile::counted::meaning;
use nodewall::metrics::families::families;
use nodewall::metrics::snapshot::{Cluster, Exposed, Log, LogSeries, Losses, Policy, Process, Serving, Snapshot, Work};
use nodewall::metrics::text::{Format, encode};
use nodewall::metrics::verdicts::Verdicts;
use nodewall::nft::change::{Loaded, RuleState};
use nodewall::nft::ir::{Ruleset, Statement};

use super::ask::promtool;

/// Two interfaces of a role that share a chain, one that is alone in its role, a guard, a tier with a default and policies that audit.
const POLICY: &str = r#"
[[interface]]
name = "one"
role = "mgmt"
match = { name = "eth0" }

[[interface]]
name = "rails"
role = "rail"
match = { name = "rail*" }

[[policy]]
name = "web"
order = 10
interfaces = "role == 'mgmt'"
ingress = [
  { action = "allow", protocol = "tcp", ports = [80] },
  { action = "deny", protocol = "tcp", ports = [81] },
  { action = "reject", protocol = "tcp", ports = [82] },
  { action = "pass", protocol = "tcp", ports = [83] },
  { action = "log", protocol = "tcp", ports = [84] },
]

[[policy]]
name = "watched"
order = 20
mode = "audit"
interfaces = "role in {'mgmt', 'rail'}"
ingress = [
  { action = "allow", protocol = "udp", ports = [80] },
  { action = "deny", protocol = "udp", ports = [81] },
  { action = "reject", protocol = "udp", ports = [82] },
]
egress = [
  { action = "deny", protocol = "udp", ports = [83] },
]
"#;

/// The ruleset of the policy on a host with these interfaces.
fn ruleset(mode: &str) -> Ruleset {
    use nodewall::config::decode_text as settings;
    use nodewall::net::facts::{Facts, Link};
    use nodewall::net::interface::InterfaceName;
    let links = ["lo", "eth0", "rail0", "rail1"].iter().zip(1..).map(|(name, index)| {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        if *name == "lo" {
            link.hardware = 772;
        }
        (index, link)
    });
    let facts = Facts { links: links.collect(), ..Facts::default() };
    let (config, findings) = settings("nodewall.toml", &format!("mode = \"{mode}\"\n"));
    assert!(findings.len() <= 1, "{findings:?}");
    let sourced = nodewall::source::decode_text("10-web.toml", POLICY);
    assert_eq!(sourced.findings, []);
    let (effective, _) = nodewall::policy::resolve::resolve(&sourced.policy, &config.settings, &facts);
    compile(&effective)
}

/// What the kernel says of it when every rule counted one packet of 100 bytes.
fn counted(ruleset: &Ruleset) -> Loaded {
    let mut handle = 0;
    let rules = ruleset.chains.iter().map(|(name, chain)| {
        let states = chain.rules.iter().map(|rule| {
            handle += 1;
            let counter = rule.statements.contains(&Statement::Counter).then_some((1, 100));
            RuleState { handle, counter }
        });
        (name.clone(), states.collect::<Vec<_>>())
    });
    let rules = rules.collect();
    Loaded { exists: true, ruleset: ruleset.clone(), rules, ..Loaded::default() }
}

/// A snapshot with something in everything.
pub fn full() -> Snapshot {
    let ruleset = ruleset("enforce");
    let mut verdicts = Verdicts::default();
    verdicts.take(&meaning(&ruleset), &counted(&ruleset), true);
    let mut work = Work { drifts: 2, storm: true, ..Work::default() };
    work.applies.observe(Duration::from_millis(4));
    work.repairs.observe(Duration::from_millis(700));
    work.lag.observe(Duration::from_micros(250));
    work.results = [("changed", 3), ("failed", 1), ("unchanged", 2)].into();
    let mut log = Log::default();
    let series =
        LogSeries { interface: "eth0".to_owned(), direction: "ingress", policy: "web".to_owned(), verdict: "denied" };
    log.events.add(&series, [7]);
    log.losses =
        Losses { packets: 1, connection_overruns: 2, journal_suppressed: 3, store_left_out: 4, watchers_missed: 5 };
    Snapshot {
        version: "0.1.0",
        policy: Policy {
            state: "unconfirmed",
            states: vec!["in-force", "unconfirmed", "degraded"],
            mode: Some("enforce"),
            generation: 7,
            confirmed: Some(6),
            since: Some(1_700_000_000.5),
            unconfirmed_left: Some(42.0),
            store_error: false,
            store_damages: 1,
            kernel_read: true,
            kernel_lacks: Some(vec![("flowtable".to_owned(), false)]),
        },
        verdicts,
        work,
        clusters: vec![Cluster {
            name: "home".to_owned(),
            state: "in-sync".to_owned(),
            state_age: Some(12.0),
            objects: 9,
            invalid: 1,
            nodes: Some(64),
            certificate_until: Some(1_800_000_000.0),
            report_written: Some(true),
            report_age: Some(3.0),
        }],
        findings: [("error", 0), ("warning", 2)].into(),
        coverage: [("bypassed", 1), ("enforced", 3)].into(),
        exposed: Some(Exposed {
            sockets: [("anyone".to_owned(), 2)].into(),
            findings: [(("exposed-service".to_owned(), "error".to_owned()), 1)].into(),
            age: 20.0,
            took: 0.25,
        }),
        log: Some(log),
        process: Process {
            resident: Some(1024),
            cpu: Some(1.5),
            threads: Some(9),
            files: Some(40),
            started: Some(1_700_000_000.0),
        },
        serving: Serving { requests: [("served", 3)].into(), refused: BTreeMap::from([("busy", 1)]) },
    }
}

/// The names of all series that there can be.
pub fn names() -> BTreeSet<String> {
    let text = encode(&families(&full()), Format::Classic);
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

#[test]
fn everything_as_text() {
    for (format, file) in [(Format::OpenMetrics, "openmetrics.txt"), (Format::Classic, "classic.txt")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metrics").join(file);
        let text = encode(&families(&full()), format);
        if std::env::var_os("NODEWALL_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{file}: NODEWALL_BLESS=1 writes it");
        if format == Format::Classic
            && let Some((good, words)) = promtool(&["check", "metrics"], &text)
        {
            assert!(good && words.is_empty(), "{words}");
        }
    }
}

/// What a name and labels of verdicts come to.
fn series(mode: &str) -> BTreeMap<String, u64> {
    let ruleset = ruleset(mode);
    let mut verdicts = Verdicts::default();
    verdicts.take(&meaning(&ruleset), &counted(&ruleset), false);
    let words = |series: &nodewall::metrics::verdicts::Series| {
        let role = series.served.role.map_or("*", |role| role.name());
        let direction = series.served.direction.map_or("*", |direction| direction.name());
        let interface = series.served.interface.as_deref().unwrap_or("*");
        format!("{interface} {role} {direction} {} {}", series.policy, series.counted.name())
    };
    verdicts.policies().iter().map(|(series, counts)| (words(series), counts[0])).collect()
}

#[test]
fn counters_are_told_apart_as_far_as_chains_are() {
    let enforced = series("enforce");
    for wanted in [
        "eth0 mgmt ingress web allowed",
        "eth0 mgmt ingress web denied",
        "eth0 mgmt ingress web rejected",
        "eth0 mgmt ingress web logged",
        // Two interfaces share the chain of a role, and all roles the chain of a policy in audit mode.
        "* * ingress watched would-allow",
        "* * ingress watched would-deny",
        "* * ingress watched would-reject",
        "* * egress watched would-deny",
        "eth0 mgmt ingress default:mgmt denied",
        "* rail ingress default:rail denied",
        // What is not known yet ends there, too.
        "* unknown ingress default:unknown denied",
        "eth0 mgmt ingress failsafe:ssh allowed",
        "* * ingress built-in:invalid denied",
        "* * ingress built-in:loopback-address denied",
        "* * ingress built-in:essential allowed",
    ] {
        assert!(enforced.contains_key(wanted), "{wanted} is not among {enforced:#?}");
    }
    assert!(!enforced.keys().any(|series| series.contains(" web would-")), "{enforced:#?}");
    let audited = series("audit");
    for wanted in [
        "eth0 mgmt ingress web allowed",
        "eth0 mgmt ingress web would-deny",
        "eth0 mgmt ingress web would-reject",
        "eth0 mgmt ingress default:mgmt would-deny",
        "* * ingress built-in:invalid would-deny",
    ] {
        assert!(audited.contains_key(wanted), "{wanted} is not among {audited:#?}");
    }
    assert!(!audited.keys().any(|series| series.ends_with(" denied") || series.ends_with(" rejected")), "{audited:#?}");
}
