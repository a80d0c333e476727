//! `nodewall audit-report`: what a policy in audit mode would have denied, and whether it is ready to be enforced.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Options;
use super::exit::Exit;
use super::flows::report::{FlowRecord, SeenRecord, SumRecord};
use super::flows::{Found, asked, look, refused, text};
use super::output::Output;
use super::status::table;
use crate::daemon::clock;
use crate::daemon::documents::{self, Documents};
use crate::net::interface::Direction;
use crate::policy::meaning::meaning;
use crate::policy::model::{Action, Entity, HostPolicy, Mode, Policy, Rule};
use crate::policy::settings::NodeSettings;
use crate::source::{self, Trust};
use crate::store::{Directory, Store};
use crate::text::read::suggestion;
use crate::text::time::{parse_rfc3339, rfc3339_micros};
use crate::traffic::query::{Filter, Sum, is_named, peer_words, service_words};
use crate::traffic::readiness::{Evidence, Judgement, Standing, judge};
use crate::traffic::{Decider, Record, Verdict};

/// Arguments of `audit-report`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The policy
    #[arg(value_name = "POLICY")]
    policy: String,
    /// From when on: a duration until now ("30m", "24h") or an RFC 3339 time
    #[arg(long, value_name = "TIME", default_value = "24h")]
    since: String,
}

/// What `audit-report --json` prints; version 1.
#[derive(Serialize)]
struct Report {
    version: u32,
    policy: String,
    place: String,
    /// "audit", "audit (node-wide)" or "enforce".
    mode: &'static str,
    since: String,
    until: String,
    /// When what it means changed last; null: not known, or before the generations that are kept.
    changed: Option<String>,
    ready: bool,
    reasons: Vec<ReasonRecord>,
    seen: SeenRecord,
    total: SumRecord,
    /// Flows that were too many to tell apart.
    others: SumRecord,
    /// What it would have denied, or has denied.
    flows: Vec<FlowRecord>,
}

#[derive(Serialize)]
struct ReasonRecord {
    /// Whether it speaks against enforcing the policy.
    against: bool,
    text: String,
}

pub(super) fn run(options: &Options, arguments: &Arguments, output: &Output) -> Exit {
    let documents = documents::load(&options.whereabouts(&[]), Trust::Anyone);
    let Some(policy) = documents.policy.policies.iter().find(|policy| policy.name == arguments.policy) else {
        let known: Vec<&str> = documents.policy.policies.iter().map(|policy| policy.name.as_str()).collect();
        let help = suggestion(&arguments.policy, &known);
        let help = if help.is_empty() { String::new() } else { format!("; {help}") };
        output.message(&format!("no policy is called \"{}\"{help}", arguments.policy));
        return Exit::Usage;
    };
    let now = clock::micros();
    let asked = match asked::time(&arguments.since, now) {
        Ok(since) if since < now => since,
        Ok(_) => {
            output.message("--since is not in the past");
            return Exit::Usage;
        }
        Err(why) => {
            output.message(&format!("--since: {why}"));
            return Exit::Usage;
        }
    };
    let standing = match (documents.config.settings.mode, policy.mode) {
        (Mode::Audit, _) => Standing::NodeWide,
        (_, Mode::Audit) => Standing::Audit,
        (Mode::Enforce, Mode::Enforce) => Standing::Enforced,
    };
    let changed = changed(&documents, policy);
    // What an earlier version of it would have denied says nothing about this one.
    let since = asked.max(changed.unwrap_or(0));
    let filter = Filter { since, until: now.saturating_add(1), verdicts: verdicts(standing), ..Filter::default() };
    let found = match look(&documents.config, &filter, |record| is_of(policy, record)) {
        Ok(found) => found,
        Err(error) => return refused(&documents.config, &error, output),
    };
    let judgement = judged(&filter, standing, policy, &found, now);
    let printed = if output.json {
        let reasons = judgement.reasons.iter();
        output.json(&Report {
            version: 1,
            policy: policy.name.clone(),
            place: policy.place.short(),
            mode: mode_words(standing),
            since: rfc3339_micros(since),
            until: rfc3339_micros(now),
            changed: changed.map(rfc3339_micros),
            ready: judgement.ready,
            reasons: reasons
                .map(|reason| ReasonRecord { against: reason.is_against(), text: reason.to_string() })
                .collect(),
            seen: SeenRecord::of(&found.seen),
            total: SumRecord::of(&found.flows.total()),
            others: SumRecord::of(&found.flows.others),
            flows: found.flows.sorted().into_iter().map(FlowRecord::of).collect(),
        })
    } else {
        output.data(&words(&filter, standing, policy, &found, &judgement, changed))
    };
    // Of what is enforced nobody asks whether it is ready.
    let unready = standing != Standing::Enforced && !judgement.ready;
    if printed == Exit::Ok && unready { Exit::Failure } else { printed }
}

fn verdicts(standing: Standing) -> BTreeSet<Verdict> {
    Verdict::ALL
        .into_iter()
        .filter(|verdict| if standing == Standing::Enforced { verdict.denies() } else { verdict.is_audited() })
        .collect()
}

const fn mode_words(standing: Standing) -> &'static str {
    match standing {
        Standing::Audit => "audit",
        Standing::NodeWide => "audit (node-wide)",
        Standing::Enforced => "enforce",
    }
}

/// Whether the policy decided, or the default of its tier, which holds where the policy is enforced.
fn is_of(policy: &HostPolicy, record: &Record) -> bool {
    let tier = matches!(&record.key.decider, Decider::Tier(tier) if **tier == *policy.tier);
    tier || record.key.decider.policy() == Some(&policy.name)
}

fn judged(filter: &Filter, standing: Standing, policy: &HostPolicy, found: &Found, now: u64) -> Judgement {
    let (mut named, mut unnamed, mut meant) = (Sum::default(), Sum::default(), Sum::default());
    for record in found.flows.records() {
        let sum = if is_meant(policy, record) {
            &mut meant
        } else if is_named(record) {
            &mut named
        } else {
            &mut unnamed
        };
        sum.add(record);
    }
    judge(&Evidence {
        now,
        since: filter.since,
        standing,
        seen: &found.seen,
        damaged: found.damaged,
        named,
        unnamed,
        meant,
    })
}

/// Whether the rule that decided says whom it denies.
fn is_meant(policy: &HostPolicy, record: &Record) -> bool {
    let Decider::Rule(id) = &record.key.decider else { return false };
    let (rules, peer): (_, fn(&Rule) -> Option<&Entity>) = match record.key.direction {
        Direction::Ingress => (&policy.ingress, |rule| rule.from.as_ref()),
        Direction::Egress => (&policy.egress, |rule| rule.to.as_ref()),
    };
    let number = usize::try_from(id.number).unwrap_or(0);
    let rule = rules.as_ref().and_then(|rules| rules.get(number.checked_sub(1)?));
    rule.is_some_and(|rule| {
        matches!(rule.action, Action::Deny | Action::Reject)
            && peer(rule).is_some_and(|entity| entity.names_addresses() || entity.names_nodes())
    })
}

/// When what the policy means came into force, by the generations that are kept; microseconds since 1970-01-01 UTC.
fn changed(documents: &Documents, policy: &HostPolicy) -> Option<u64> {
    let settings = &documents.config.settings;
    let now = meant(&documents.policy, settings, policy)?;
    changed_in(
        &documents.config.state_directory,
        |kept| {
            let policy = kept.policies.iter().find(|other| other.name == policy.name)?;
            meant(kept, settings, policy)
        },
        &now,
    )
}

fn changed_in(state: &Path, meant: impl Fn(&Policy) -> Option<String>, now: &str) -> Option<u64> {
    let store = Store::new(Directory::existing(state));
    let mut since = None;
    // Newest first. One generation after the other is in memory.
    for number in store.numbers().ok()?.into_iter().rev() {
        let Ok(generation) = store.read(number) else { continue };
        let kept = generation.policy.into_iter().map(|(file, text)| (file, text.into())).collect();
        if meant(&source::decode_kept(&kept).policy).as_deref() != Some(now) {
            return since;
        }
        since = parse_rfc3339(&generation.time).map(|seconds| seconds.saturating_mul(1_000_000));
    }
    // It is older than what is kept.
    None
}

fn meant(policies: &Policy, settings: &NodeSettings, policy: &HostPolicy) -> Option<String> {
    let here = [(policy.tier.as_str(), policy.name.as_str())];
    meaning(policies, settings, here).policies.into_iter().next().map(|(_, hash)| hash)
}

fn words(
    filter: &Filter,
    standing: Standing,
    policy: &HostPolicy,
    found: &Found,
    judgement: &Judgement,
    changed: Option<u64>,
) -> String {
    let mut out = String::new();
    let flows = &found.flows;
    let denied = if standing == Standing::Enforced { "denied" } else { "would have denied" };
    let mode = match standing {
        Standing::Audit => "in audit mode",
        Standing::NodeWide => "in audit mode with the whole node",
        Standing::Enforced => "enforced",
    };
    // Writing to a String does not fail.
    let _ = writeln!(out, "policy {} ({}) is {mode}", policy.name, policy.place.short());
    if let Some(changed) = changed {
        let _ = writeln!(out, "it is as it is since {}", text::at(changed));
    }
    let what = if flows.is_empty() { "nothing".to_owned() } else { text::connections(&flows.total()) };
    let _ = writeln!(out, "since {} it {denied} {what}", text::at(filter.since));
    if flows.others.connections > 0 {
        let others = text::connections(&flows.others);
        let _ = writeln!(out, "{others} of flows that were too many to tell apart are not in it");
    }
    let rows = flows.sorted().into_iter().map(|record| {
        [
            peer_words(record),
            service_words(record.key.protocol, record.key.service),
            if record.key.direction == Direction::Ingress { "in" } else { "out" }.to_owned(),
            text::rule(record),
            record.connections.to_string(),
            text::at(record.first),
            text::at(record.last),
            text::processes(record),
        ]
    });
    let head = ["PEER", "SERVICE", "DIR", "RULE", "CONNS", "FIRST", "LAST", "PROCESS"];
    table(&mut out, head, &[false, false, false, false, true, false, false, false], rows.collect());
    out.push('\n');
    if standing == Standing::Enforced {
        text::watched(&mut out, filter.since, filter.until, &found.seen);
        return out.trim_end().to_owned() + "\n";
    }
    let _ = writeln!(out, "{}", if judgement.ready { "ready to enforce" } else { "not ready to enforce" });
    for reason in &judgement.reasons {
        let _ = writeln!(out, "  {} {reason}", if reason.is_against() { "-" } else { "+" });
    }
    out
}
