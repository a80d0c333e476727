//! Documents as operators write them: every mistake is found at its place, every supported field means what it says, and no
//! input does harm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodewall::config;
use nodewall::net::addr::Family;
use nodewall::net::protocol::{PortSet, Protocol};
use nodewall::net::range::RangeSet;
use nodewall::policy::model::{Account, Action, Mode, Rule, ServicePort, TierDefault, Transport};
use nodewall::policy::selector::Selector;
use nodewall::source::{self, Sourced, Trust};
use nodewall::text::finding::{Finding, Severity};
use nodewall::text::place::Place;
use nodewall::text::render::{line, render, sorted};

/// What `check` says about a directory of files: one line for each finding, then all of them for people.
fn report(directory: &Path) -> (Vec<Finding>, String) {
    let settings = directory.join("nodewall.toml");
    let (findings, texts) = if settings.exists() {
        let (_, findings, text) = config::load(&settings, Trust::Anyone);
        let name = settings.to_string_lossy();
        (findings, BTreeMap::from([(name.as_ref().into(), text.into())]))
    } else {
        let sourced = source::load_directories(&[directory.to_owned()], Trust::Anyone);
        (sourced.findings, sourced.texts)
    };
    let lines: Vec<String> = sorted(&findings).into_iter().map(line).collect();
    let text = format!("{}\n\n{}", lines.join("\n"), render(&findings, &texts, false));
    (findings, text)
}

/// The report on a directory of bad documents is as expected, and names a line. `UPDATE=1` rewrites what is expected.
fn check_bad(directory: &Path) -> Result<(), String> {
    let (findings, actual) = report(directory);
    let expected_path = directory.join("expected.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&expected_path, &actual).unwrap();
    }
    let expected = fs::read_to_string(&expected_path).unwrap_or_default();
    if actual != expected {
        return Err(format!("{}:\n--- expected\n{expected}\n--- actual\n{actual}", directory.display()));
    }
    let named =
        findings.iter().filter(|finding| finding.severity == Severity::Error).all(|finding| finding.place.line > 0);
    if !named || !findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(format!("{}: no error, or one without a line", directory.display()));
    }
    Ok(())
}

#[test]
fn every_bad_document_has_a_finding_that_names_the_line() {
    let mut directories: Vec<PathBuf> =
        fs::read_dir("tests/cases/bad").unwrap().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    assert!(directories.len() >= 60, "{} cases", directories.len());
    let failures: Vec<String> = directories.iter().filter_map(|directory| check_bad(directory).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn good(name: &str) -> Sourced {
    let path = format!("tests/cases/good/{name}.toml");
    let sourced = source::decode_text(&path, &fs::read_to_string(&path).unwrap());
    let lines: Vec<String> = sourced.findings.iter().map(line).collect();
    assert!(lines.is_empty(), "{lines:#?}");
    sourced
}

fn ports(ranges: &[(u16, u16)]) -> PortSet {
    ranges.iter().copied().collect()
}

#[test]
fn interfaces_sets_services_and_tiers_are_read_by_value() {
    let policy = good("every-field").policy;
    let [rails, ib] = &policy.interfaces[..] else { panic!("two interfaces") };
    let text = |value: &Option<String>| value.clone().unwrap();
    assert_eq!(text(&rails.matches.name), "enp[0-9]*s0*");
    assert_eq!(text(&rails.matches.kind), "vlan");
    assert_eq!(text(&rails.matches.driver), "mlx5_core");
    assert_eq!(text(&rails.matches.bus), "pci");
    assert_eq!(text(&rails.matches.pci), "0000:c1:00.0");
    assert_eq!(text(&rails.matches.rdma), "mlx5_0");
    assert_eq!(text(&rails.matches.link), "ethernet");
    assert_eq!(text(&rails.matches.mac), "02:42:ac:11:00:02");
    assert_eq!(text(&rails.matches.master), "bond0");
    assert_eq!(rails.role.unwrap().name(), "rail");
    assert_eq!(rails.labels["example.org/fabric"], "a");
    assert_eq!(rails.place.to_string(), "tests/cases/good/every-field.toml:3:1");
    assert_eq!((ib.role, ib.matches.name.as_ref()), (None, None));

    let set = &policy.sets["control-plane"];
    let cidrs: Vec<String> = set.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.0.0.10/32", "10.0.0.0/24", "fd00::10/128", "::/0"]);
    assert_eq!(set.labels["zone"], "z1");
    assert!(policy.sets["empty"].cidrs.is_empty());

    let kubelet = &policy.services["kubelet"];
    assert_eq!(kubelet.transport, Transport::Ip);
    assert_eq!(
        kubelet.ports,
        [
            ServicePort::Ports(Protocol::TCP, ports(&[(10250, 10250)])),
            ServicePort::Ports(Protocol::UDP, ports(&[(30000, 32767)])),
            ServicePort::Icmp(Protocol::ICMP, [(8, RangeSet::full())].into()),
            ServicePort::Icmp(Protocol::ICMPV6, [(128, RangeSet::full())].into()),
            ServicePort::Protocol(Protocol(50)),
            ServicePort::Protocol(Protocol(47)),
        ]
    );
    assert_eq!(policy.services["nvme"].transport, Transport::Rdma);

    let tiers: Vec<(&str, i64, TierDefault)> =
        policy.tiers.values().map(|tier| (tier.name.as_str(), tier.order, tier.default)).collect();
    assert_eq!(
        tiers,
        [
            ("baseline", 10_000, TierDefault::Pass),
            ("default", 1000, TierDefault::Pass),
            ("platform", -5, TierDefault::Pass),
            ("security", 50, TierDefault::Deny),
        ]
    );
}

#[test]
fn policies_and_rules_are_read_by_value() {
    let policy = good("every-field").policy;
    let [first, later] = &policy.policies[..] else { panic!("two policies") };
    assert_eq!((first.name.as_str(), first.tier.as_str(), first.order), ("everything", "security", Some(100)));
    assert_eq!(first.interfaces, Selector::parse("role in {'mgmt', 'pod'} && !has(lab)").unwrap());
    assert_eq!(first.nodes, Selector::parse("pool == 'training'").unwrap());
    assert_eq!(first.mode, Mode::Audit);
    assert_eq!(first.egress.as_deref(), Some(&[][..]));
    assert_eq!((later.tier.as_str(), later.order, later.mode), ("default", None, Mode::Enforce));
    assert_eq!((&later.nodes, &later.ingress), (&Selector::All, &None));

    let rules = first.ingress.as_deref().unwrap();
    let actions: Vec<&str> = rules.iter().map(|rule| rule.action.name()).collect();
    assert_eq!(actions[..5], ["allow", "deny", "reject", "pass", "log"]);
    let rule = |number: usize| -> &Rule { &rules[number - 1] };

    let from = rule(1).from.as_ref().unwrap();
    assert_eq!(from.sets[0].0, "control-plane");
    assert_eq!(from.cidrs[0].to_string(), "10.1.0.0/16");
    assert_eq!(from.select, Some(Selector::parse("zone == 'z1'").unwrap()));
    assert!(from.local && from.ports.is_none());
    assert_eq!(from.except.as_ref().unwrap().cidrs[0].to_string(), "10.1.1.0/24");
    let services: Vec<&str> = rule(1).services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(services, ["kubelet", "nvme"]);
    assert_eq!(rule(1).services[1].1.to_string(), "tests/cases/good/every-field.toml:50:185");
    assert_eq!((rule(1).comment.as_deref(), &rule(1).log), (Some("scrapes"), &None));

    assert_eq!(rule(2).protocol, Some(Protocol::TCP));
    assert_eq!(rule(2).ports, Some(ports(&[(22, 22), (80, 80), (8000, 8010)])));
    assert_eq!(rule(2).from.as_ref().unwrap().ports, Some(ports(&[(1024, 65535)])));
    assert_eq!((rule(2).family, rule(2).log.as_deref()), (Some(Family::V4), Some("")));

    // `to.ports` is `ports` written in another place.
    assert_eq!(rule(3).ports, Some(ports(&[(53, 53)])));
    assert_eq!((rule(3).to.as_ref().unwrap().local, &rule(3).to.as_ref().unwrap().ports), (true, &None));
    assert_eq!(rule(3).log.as_deref(), Some("dns"));
    assert_eq!((&rule(11).to, &rule(11).ports), (&None, &Some(ports(&[(1, 1)]))));

    // A type by name counts in each family that knows it; by number, in the one that is named.
    let icmp = rule(4).icmp.as_ref().unwrap();
    assert_eq!((icmp.v4.keys().collect::<Vec<_>>(), icmp.v6.keys().collect::<Vec<_>>()), (vec![&8], vec![&128]));
    let icmp = rule(5).icmp.as_ref().unwrap();
    assert_eq!((&icmp.v4, icmp.v6.is_empty()), (&[(3, RangeSet::single(4))].into(), true));
    assert_eq!((rule(5).action, &rule(5).log), (Action::Log, &None));
    let icmp = rule(8).icmp.as_ref().unwrap();
    assert_eq!((icmp.v4.is_empty(), icmp.v6.keys().collect::<Vec<_>>()), (true, vec![&135]));

    assert_eq!(rule(6).not.as_ref().unwrap().ports, Some(ports(&[(22, 22)])));
    assert_eq!(rule(7).not.as_ref().unwrap().protocol, Some(Protocol::UDP));
    assert!(rule(9).not.as_ref().unwrap().icmp.as_ref().unwrap().v6.contains_key(&137));
    assert_eq!(rule(10).protocol, Some(Protocol(50)));
}

#[test]
fn processes_and_times_are_read_by_value() {
    let policies = good("temporary").policy.policies;
    let rules = policies[0].egress.as_deref().unwrap();
    let process = rules[0].process.as_ref().unwrap();
    let accounts = |list: &[(Account, Place)]| list.iter().map(|(account, _)| account.clone()).collect::<Vec<_>>();
    assert_eq!(accounts(&process.users), [Account::Name("root".into()), Account::Id(1000)]);
    assert_eq!(accounts(&process.groups), [Account::Name("render".into()), Account::Id(0)]);
    let units: Vec<&str> = process.units.iter().map(|(unit, _)| unit.as_str()).collect();
    assert_eq!(units, ["ollama.service", "user.slice", "kubepods.slice/kubepods-burstable.slice"]);
    assert_eq!(process.users[1].1.to_string(), "tests/cases/good/temporary.toml:8:40");
    assert_eq!((rules[1].process.as_ref().unwrap().users.len(), &rules[2].process), (0, &None));

    let times: Vec<Option<u64>> = policies.iter().map(|policy| policy.expires).collect();
    // As `date -u -d ... +%s` has it: never later than what is written.
    assert_eq!(times, [None, Some(1_801_418_400), Some(1_801_414_800), Some(1_483_228_799), Some(1_799)]);
}

#[test]
fn tables_under_headers_are_the_same_as_inline_ones() {
    let policy = good("kubelet").policy;
    assert_eq!(policy.policies[0].interfaces.to_string(), "role in {'mgmt', 'pod'} && !has(lab)");
    let rules = policy.policies[1].ingress.as_deref().unwrap();
    assert_eq!(rules.iter().map(|rule| rule.action).collect::<Vec<_>>(), [Action::Allow, Action::Deny]);
    assert_eq!(rules[1].place.short(), "kubelet.toml:37");
}

#[test]
fn a_document_with_an_error_is_left_out_alone() {
    let text =
        "[[set]]\nname = \"bad\"\ncidrs = [\"x\"]\n[[set]]\nname = \"good\"\ncidrs = []\n[[tier]]\nname = \"t\"\n";
    let sourced = source::decode_text("x.toml", text);
    assert_eq!(sourced.policy.sets.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(sourced.policy.tiers.len(), 3);
    assert_eq!(sourced.findings.len(), 3);
}

/// xorshift64*: the same mutations on every run of the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

/// What breaks parsers: structure, quotes, escapes, numbers at their limits, and our own words.
const SPLICES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u",
    "\\ud800",
    "\\\n",
    "\n",
    "\r",
    "\r\n",
    "#",
    "=",
    ",",
    ".",
    "\u{0}",
    "\u{feff}",
    "é",
    "漢",
    "\u{10ffff}",
    "-1",
    "70000",
    "9223372036854775808",
    "1e400",
    "inf",
    "nan",
    "0x",
    "1979-05-27",
    "07:32:00",
    "true",
    "all()",
    "has(",
    "!",
    "&&",
    "||",
    "(",
    ")",
    " in {",
    "not in",
    "starts with",
    "10.0.0.0/33",
    "::ffff:1.2.3.4",
    "icmp = { type = ",
    "not = {",
    "except = {",
    "from = {}",
    "[policy]",
    "[[policy.ingress]]",
    "a.b.c.d.e.f",
    "services = []",
];

/// Changes a text in a few places. Cuts may split a character; what is left is made UTF-8 again, as `read` refuses the rest.
fn mutate(text: &str, other: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(40)).min(bytes.len());
        match random.below(7) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.truncate(at),
            2 | 3 => drop(bytes.splice(at..at, SPLICES[random.below(SPLICES.len())].bytes())),
            4 => drop(bytes.splice(at..end, SPLICES[random.below(SPLICES.len())].bytes())),
            5 => {
                let from = random.below(other.len());
                let to = (from + random.below(200)).min(other.len());
                drop(bytes.splice(at..at, other.as_bytes()[from..to].iter().copied()));
            }
            _ => {
                let piece: Vec<u8> = bytes[at..end].repeat(1 + random.below(30));
                drop(bytes.splice(at..at, piece));
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Everything that is done with a text before anything is decided; it must end, soon, without a panic.
fn exercise(text: &str) {
    let started = Instant::now();
    let sourced = source::decode_text("fuzz.toml", text);
    let printed = render(&sourced.findings, &sourced.texts, false);
    for finding in &sourced.findings {
        assert!(!finding.message.is_empty() && finding.place.end <= text.len(), "{finding:?}");
        assert!(!line(finding).contains('\n'));
    }
    assert_eq!(printed.is_empty(), sourced.findings.is_empty());
    for policy in &sourced.policy.policies {
        assert_eq!(Selector::parse(&policy.interfaces.to_string()).as_ref(), Ok(&policy.interfaces));
    }
    config::decode_text("fuzz.toml", text);
    assert!(started.elapsed() < Duration::from_secs(5), "{} bytes took {:?}", text.len(), started.elapsed());
}

#[test]
fn thousands_of_damaged_documents_do_no_harm() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let seed = number("FUZZ_SEED", 0x6e6f_6465_7761_6c6c);
    let rounds = number("FUZZ_ROUNDS", 3000);
    println!("FUZZ_SEED={seed} FUZZ_ROUNDS={rounds}");
    let seeds: Vec<String> = ["every-field", "kubelet", "temporary"]
        .iter()
        .map(|name| fs::read_to_string(format!("tests/cases/good/{name}.toml")).unwrap())
        .chain([fs::read_to_string("tests/cases/good/nodewall.toml").unwrap()])
        .collect();
    let mut random = Random(seed);
    for round in 0..rounds {
        let text = mutate(&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())], &mut random);
        let result = std::panic::catch_unwind(|| exercise(&text));
        assert!(result.is_ok(), "round {round}; keep this as a case:\n{text}");
    }
}

/// Inputs that once did harm, or were made to: each stays.
#[test]
fn made_up_monsters_do_no_harm() {
    let many = |text: &str, count: usize| text.repeat(count);
    for text in [
        many("[", 100_000),
        many("a.", 100_000),
        format!("a = {}", many("{a=", 100_000)),
        many("[[policy]]\n", 20_000),
        many("x = 1\n", 20_000),
        many("\"", 100_001),
        many("'''", 50_001),
        many("[[set]]\nname = \"a\"\ncidrs = [\"x\"]\n", 5000),
        format!("[[set]]\nname = \"a\"\ncidrs = [{}]", many("\"x\",", 50_000)),
        format!("[[policy]]\nname = \"a\"\ninterfaces = \"{}\"\n", many("!(", 50_000)),
        format!("[[policy]]\nname = \"a\"\ninterfaces = \"{}\"\n", many("\\u00e9", 20_000)),
        format!(
            "[[policy]]\nname = \"é\"\ninterfaces = \"all()\"\ningress = [{}]\n",
            many("{action=\"deny\"},", 50_000)
        ),
        format!("[[set]]\nname = \"a\"\ncidrs = [{}] # {}\n", many("\"10.0.0.1\",", 50_000), many("é", 50_000)),
        "\u{feff}[[set]]\nname = \"a\"\ncidrs = [\"10.0.0.0/33\"]\n".to_owned(),
        "\r".to_owned(),
        "\u{0}".to_owned(),
    ] {
        exercise(&text);
    }
}
