//! Accounts, units and times, from the operator's text to what the policy comes to on a node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::net::facts::{Cgroup, Facts};
use nodewall::nft::text;
use nodewall::policy::effective::{Effective, EffectiveRule};
use nodewall::policy::expiry;
use nodewall::policy::local::{LocalNames, not_running};
use nodewall::policy::model::Policy;
use nodewall::policy::resolve::resolve;
use nodewall::source;
use nodewall::text::finding::{Code, Finding};
use nodewall::text::render::line;

fn cgroup(level: u8, id: u64) -> Cgroup {
    Cgroup { level, id }
}

/// A node with two accounts and one unit that runs in two control groups.
fn node() -> Facts {
    Facts {
        users: [("root".to_owned(), 0), ("slurm".to_owned(), 64030)].into(),
        groups: [("render".to_owned(), 105)].into(),
        units: [("ollama.service".to_owned(), [cgroup(2, 4711), cgroup(3, 5000)].into())].into(),
        ..Facts::default()
    }
}

/// A policy of these egress rules.
fn egress(rules: &str) -> Policy {
    let text = format!(
        "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\nnodes = \"!has(elsewhere)\"\negress = [\n{rules}\n]\n"
    );
    let sourced = source::decode_text("p.toml", &text);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    sourced.policy
}

fn resolved(policy: &Policy, facts: &Facts) -> (Effective, Vec<Finding>) {
    let (effective, findings) = resolve(policy, &Config::shipped().settings, facts);
    (effective, findings.into_iter().filter(|finding| finding.code != Code::OpenFailsafe).collect())
}

fn rules(effective: &Effective) -> Vec<EffectiveRule> {
    effective.tiers.iter().flat_map(|tier| &tier.policies).flat_map(|p| p.egress.clone().unwrap_or_default()).collect()
}

/// One line for each rule: users, groups and units as they are matched.
fn processes(rules: &[EffectiveRule]) -> Vec<String> {
    let words = |rule: &EffectiveRule| {
        let Some(process) = &rule.process else { return "any".to_owned() };
        let mut words = Vec::new();
        for (what, ids) in [("users", &process.users), ("groups", &process.groups)] {
            words.extend(ids.as_ref().map(|ids| format!("{what} {:?}", ids.ranges())));
        }
        words.extend(process.units.as_ref().map(|units| {
            let cgroups: Vec<String> = units.cgroups.iter().map(|c| format!("{}:{}", c.level, c.id)).collect();
            format!("{} [{}]", units.name, cgroups.join(" "))
        }));
        words.join(", ")
    };
    rules.iter().map(words).collect()
}

#[track_caller]
fn check(rules_text: &str, expected: &[&str], expected_findings: &[&str]) {
    let (effective, findings) = resolved(&egress(rules_text), &node());
    assert_eq!(processes(&rules(&effective)), expected);
    assert_eq!(findings.iter().map(line).collect::<Vec<_>>(), expected_findings);
}

#[test]
fn names_and_numbers_are_looked_up_and_merged() {
    check(
        r#"{ action = "allow", users = ["slurm", 1, "root"], groups = ["render"] }, { action = "deny" }"#,
        &["users [(0, 1), (64030, 64030)], groups [(105, 105)]", "any"],
        &[],
    );
    check(
        r#"{ action = "allow", units = ["ollama.service"] }, { action = "allow", users = ["root"], units = ["user.slice"] }"#,
        &["units/ollama.service [2:4711 3:5000]", "users [(0, 0)], units/user.slice []"],
        &[],
    );
}

#[test]
fn a_list_without_a_known_name_matches_nothing_and_is_warned_of() {
    check(
        r#"{ action = "allow", users = ["slrum"], groups = ["vidoe", "render"] }"#,
        &["users [], groups [(105, 105)]"],
        &[
            "p.toml:7:30: warning[unknown-account]: this node knows no user \"slrum\", so the name matches nothing; compare it with `getent passwd`; a number needs no look-up",
            "p.toml:7:50: warning[unknown-account]: this node knows no group \"vidoe\", so the name matches nothing; compare it with `getent group`; a number needs no look-up",
        ],
    );
}

#[test]
fn on_other_nodes_nobody_misses_an_account() {
    let mut facts = node();
    facts.labels.insert("elsewhere".to_owned(), "yes".to_owned());
    let policy = egress(r#"{ action = "allow", users = ["slrum"], units = ["x.service"] }"#);
    let (effective, findings) = resolved(&policy, &facts);
    assert_eq!((rules(&effective).len(), findings), (0, Vec::new()));
    assert_eq!(not_running(&policy, &Config::shipped().settings, &facts), []);
}

#[test]
fn check_warns_of_units_that_do_not_run() {
    let policy = egress(r#"{ action = "allow", units = ["olama.service", "ollama.service"] }"#);
    let found: Vec<String> = not_running(&policy, &Config::shipped().settings, &node()).iter().map(line).collect();
    assert_eq!(
        found,
        [
            "p.toml:7:30: warning[not-running]: no unit \"olama.service\" runs here now, so the name matches nothing until it does; compare it with `systemctl status` and `systemd-cgls`"
        ]
    );
}

#[test]
fn the_names_to_look_up_are_those_of_all_rules_without_numbers() {
    let mut names = LocalNames::of(&egress(
        r#"{ action = "allow", users = ["a", 5], units = ["x.service"] }, { action = "deny", groups = [7] }"#,
    ));
    assert!(names.has_accounts());
    names.add(LocalNames::of(&egress(r#"{ action = "allow", groups = ["g"], units = ["y.slice", "x.service"] }"#)));
    let expected = LocalNames {
        users: ["a".to_owned()].into(),
        groups: ["g".to_owned()].into(),
        units: ["x.service", "y.slice"].map(str::to_owned).into(),
    };
    assert_eq!(names, expected);
    assert!(!LocalNames::of(&egress(r#"{ action = "allow", users = [5], units = ["x.service"] }"#)).has_accounts());
}

/// Two policies for ingress, the first of which ends at 1970-01-01T00:01:40Z.
const UNTIL: &str = r#"
[[policy]]
name = "guests"
order = 1
interfaces = "all()"
expires = 1970-01-01T00:01:40Z
ingress = [
  { action = "allow", protocol = "tcp", ports = [8000] },
  { action = "pass", protocol = "tcp", ports = [8001] },
  { action = "deny", protocol = "tcp", ports = [8002] },
]

[[policy]]
name = "rest"
order = 2
interfaces = "all()"
ingress = [{ action = "allow", protocol = "tcp", ports = [9000] }]
"#;

fn until() -> Effective {
    resolved(&source::decode_text("until.toml", UNTIL).policy, &Facts::default()).0
}

fn names(effective: &Effective) -> Vec<&str> {
    effective.tiers.iter().flat_map(|tier| &tier.policies).map(|policy| policy.name.as_str()).collect()
}

#[test]
fn a_policy_exists_before_its_time_and_not_at_it() {
    let mut effective = until();
    assert_eq!(effective.next_expiry(), Some(100));
    assert!(effective.expire(|policy| policy.is_over(99)).is_empty());
    assert_eq!(names(&effective), ["guests", "rest"]);
    let over = effective.expire(|policy| policy.is_over(100));
    assert_eq!(names(&effective), ["rest"]);
    assert_eq!(effective.next_expiry(), None);
    assert_eq!(
        over.iter().map(expiry::finding).map(|finding| line(&finding)).collect::<Vec<_>>(),
        [
            "until.toml:2:1: warning[expired-policy]: policy \"guests\" expired at 1970-01-01T00:01:40Z; remove it, or give it another time in `expires`"
        ]
    );
}

#[test]
fn a_boot_has_no_opening_that_may_be_over_but_every_denial() {
    let effective = until();
    let boot = effective.at_boot().unwrap();
    let ports = |effective: &Effective| -> Vec<u16> {
        let text = text::render(&compile(effective));
        (8000..=9000).filter(|port| text.contains(&format!("tcp dport {port} "))).collect()
    };
    assert_eq!(ports(&effective), [8000, 8001, 8002, 9000]);
    assert_eq!(ports(&boot), [8002, 9000]);
    assert_eq!(boot.at_boot(), None, "nothing more to take out");
    let mut later = effective;
    later.expire(|policy| policy.is_over(100));
    assert_eq!(later.at_boot(), None);
}

#[test]
fn a_boot_knows_no_control_group() {
    let rules_text = r#"{ action = "allow", users = ["slurm"], units = ["ollama.service"] }"#;
    let (effective, _) = resolved(&egress(rules_text), &node());
    let boot = effective.at_boot().unwrap();
    assert_eq!(processes(&rules(&boot)), ["users [(64030, 64030)], units/ollama.service []"]);
    let (idle, _) = resolved(&egress(rules_text), &Facts { units: [].into(), ..node() });
    assert_eq!(idle.at_boot(), None);
    assert_eq!(boot, idle, "the same as before the unit has started");
}
