//! What the kernel has counted for each rule, as `status` tells it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::compile::counted::{Counted, ending};
use crate::compile::{Logged, logged, rule_of};
use crate::nft::change::Loaded;
use crate::nft::ir::{Rule, Statement};
use crate::policy::model::Action;

/// What was counted for a rule, or for a default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleRecord {
    /// "kubelet#2", "failsafe:ssh#1", "tier node", or "default of mgmt ingress".
    pub rule: String,
    /// Where the rule is written, "FILE:LINE" without the directory; empty for a default.
    pub place: String,
    /// "allowed", "denied", "rejected", "logged"; "passed" to the next tier; "would-deny" and "would-reject" where audit mode alone keeps
    /// it from that; "would-allow" where a policy in audit mode does not decide.
    pub verdict: String,
    /// How many packets it matched. Of what is allowed, that is the first of each connection: the others do not come to rules.
    pub packets: u64,
    /// How many bytes these had.
    pub bytes: u64,
}

/// The counters of all rules and defaults, sorted by rule, place and verdict. A rule that stands in several chains is one.
pub fn counted(loaded: &Loaded) -> Vec<RuleRecord> {
    let mut sums: BTreeMap<(&str, &str, &'static str), (u64, u64)> = BTreeMap::new();
    for (name, chain) in &loaded.ruleset.chains {
        // What would be denied does not look different from what is allowed; the log before it tells.
        let would: BTreeMap<&str, Action> = chain.rules.iter().filter_map(would).collect();
        let states = loaded.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        for (rule, state) in chain.rules.iter().zip(states) {
            let Some((packets, bytes)) = state.counter else { continue };
            let comment = rule.comment.as_deref().unwrap_or_default();
            let Some((id, place)) = subject(comment) else { continue };
            let action = would.get(without_log(comment));
            let sum = sums.entry((id, place, verdict(rule, action))).or_default();
            *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
        }
    }
    sums.into_iter()
        .map(|((rule, place, verdict), (packets, bytes))| RuleRecord {
            rule: rule.to_owned(),
            place: place.to_owned(),
            verdict: verdict.to_owned(),
            packets,
            bytes,
        })
        .collect()
}

/// What a comment is of, and where that is written.
fn subject(comment: &str) -> Option<(&str, &str)> {
    if rule_of(comment).is_some() {
        return comment.split_once(' ').or(Some((comment, ""))).map(|(id, place)| (id, without_log(place)));
    }
    if let Some((what, _)) = comment.strip_suffix(": deny").or(comment.strip_suffix(": allow")).map(|what| (what, ())) {
        return what.starts_with("default of ").then_some((what, ""));
    }
    comment.strip_suffix(" denies by default").filter(|what| what.starts_with("tier ")).map(|what| (what, ""))
}

fn without_log(comment: &str) -> &str {
    comment.strip_suffix(" log").unwrap_or(comment)
}

/// The comment of a rule that logs what audit mode keeps from being denied, and what it would do.
fn would(rule: &Rule) -> Option<(&str, Action)> {
    let prefix = rule.statements.iter().find_map(|statement| match statement {
        Statement::Log { prefix, .. } => Some(prefix),
        _ => None,
    })?;
    let Logged { action, would, .. } = logged(prefix)?;
    would.then_some((without_log(rule.comment.as_deref()?), action))
}

/// What became of the packets that a rule counted; `would`: what it would do without audit mode.
fn verdict(rule: &Rule, would: Option<&Action>) -> &'static str {
    match would {
        Some(Action::Reject) => return "would-reject",
        Some(_) => return "would-deny",
        None => {}
    }
    ending(rule).unwrap_or(Counted::Logged).name()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::compile::compile;
    use crate::host;
    use crate::nft::change::RuleState;
    use crate::policy::resolve::resolve;

    /// The rules of a policy, each counter at one packet of 60 bytes for every part that the rule has in the kernel.
    fn counted_of(settings: &str, policy: &str) -> Vec<(String, String, String)> {
        let facts = host::collect_fixture(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/edge-node"));
        let sourced = crate::source::decode_text("/etc/10-x.toml", policy);
        let (config, _) = crate::config::decode_text("nodewall.toml", settings);
        let (effective, _) = resolve(&sourced.policy, &config.settings, &facts);
        let ruleset = compile(&effective);
        let state = |rule: &Rule| RuleState {
            counter: rule.statements.contains(&Statement::Counter).then_some((1, 60)),
            ..RuleState::default()
        };
        let rules = ruleset
            .chains
            .iter()
            .map(|(name, chain)| (name.clone(), chain.rules.iter().map(state).collect()))
            .collect();
        let loaded = Loaded { generation: 1, exists: true, ruleset, rules, unread: Vec::new(), foreign: Vec::new() };
        let counted = counted(&loaded);
        assert!(counted.iter().all(|record| record.packets > 0 && record.bytes == 60 * record.packets));
        counted.into_iter().map(|record| (record.rule, record.place, record.verdict)).collect()
    }

    const POLICY: &str = r#"
[[policy]]
name = "x"
order = 10
interfaces = "all()"
ingress = [
  { action = "allow", protocol = "tcp", ports = [1] },
  { action = "deny", protocol = "tcp", ports = [2] },
  { action = "reject", protocol = "tcp", ports = [3] },
  { action = "log", protocol = "tcp", ports = [4], log = "four" },
]
"#;

    #[track_caller]
    fn expect(found: &[(String, String, String)], wanted: &[(&str, &str, &str)]) {
        let found: Vec<(&str, &str, &str)> =
            found.iter().map(|(rule, place, verdict)| (&**rule, &**place, &**verdict)).collect();
        for wanted in wanted {
            assert!(found.contains(wanted), "{wanted:?} is not in {found:#?}");
        }
        assert_eq!(found.iter().filter(|(rule, ..)| rule.starts_with("x#")).count(), 4, "{found:#?}");
    }

    #[test]
    fn each_rule_and_default_is_counted_with_its_verdict() {
        let enforced = counted_of("", POLICY);
        expect(
            &enforced,
            &[
                ("x#1", "10-x.toml:7", "allowed"),
                ("x#2", "10-x.toml:8", "denied"),
                ("x#3", "10-x.toml:9", "rejected"),
                ("x#4", "10-x.toml:10", "logged"),
            ],
        );
        assert!(enforced.iter().any(|(rule, _, verdict)| rule.starts_with("default of ") && verdict == "denied"));
    }

    #[test]
    fn under_audit_it_is_what_would_become_of_packets() {
        let node = counted_of("mode = \"audit\"\n", POLICY);
        expect(
            &node,
            &[
                ("x#1", "10-x.toml:7", "allowed"),
                ("x#2", "10-x.toml:8", "would-deny"),
                ("x#3", "10-x.toml:9", "would-reject"),
            ],
        );
        assert!(
            node.iter().any(|(rule, _, verdict)| rule.starts_with("default of ") && verdict == "would-deny"),
            "{node:#?}"
        );
        let policy = counted_of("", &POLICY.replace("order = 10", "order = 10\nmode = \"audit\""));
        expect(
            &policy,
            &[
                ("x#1", "10-x.toml:8", "would-allow"),
                ("x#2", "10-x.toml:9", "would-deny"),
                ("x#3", "10-x.toml:10", "would-reject"),
            ],
        );
    }
}
