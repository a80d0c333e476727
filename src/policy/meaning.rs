//! What a policy means, as hashes: nodes on which documents mean the same have the same ones, whatever these nodes have for themselves.
//!
//! Names of accounts and units, and "this host's own addresses", are taken as they were written; what the node makes of them, its
//! interfaces and their roles, and in which files documents stand, is left out. Services, sets and their contents count by what they
//! stand for, so that two spellings of one thing are the same. The text that is hashed is of our own making and no `Debug`, so that
//! versions of nodewall agree on it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::l4::{l4_of_rule, l4_of_services};
use super::model::{Account, Entity, HostPolicy, Limit, LocalProcess, Mode, Policy, Rule, ServicePort, TierDefault};
use super::nodes::NodePeers;
use super::settings::{Default, Failsafe, NodeSettings};
use crate::net::addr::{AddrSet, Family};
use crate::net::interface::{Direction, Role};
use crate::net::protocol::{L4Detail, L4Match};
use crate::net::range::{Point, RangeSet};

/// How many bytes of a digest stand for the whole policy, and for a part of it. They tell nodes apart that differ by accident: a node
/// says of itself what it likes anyway.
const WHOLE: usize = 16;
const PART: usize = 4;

/// What the policy of a node means.
#[derive(Clone, PartialEq, Eq, Debug, std::default::Default)]
pub struct Meaning {
    /// Everything that decides about packets: 32 hexadecimal digits.
    pub whole: String,
    /// Each policy by "tier/name", in order of evaluation: eight hexadecimal digits.
    pub policies: Vec<(String, String)>,
    /// What is done with packets that no policy decides: eight hexadecimal digits.
    pub defaults: String,
    /// The ways that no policy can close: eight hexadecimal digits.
    pub failsafe: String,
}

/// What a policy means on a node with these settings, on which these of its policies exist: tier and name, in order of evaluation.
pub fn meaning<'a>(
    policy: &Policy,
    settings: &NodeSettings,
    here: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Meaning {
    let mut words = Words { documents: policy, contents: BTreeMap::new() };
    let by_name: BTreeMap<&str, &HostPolicy> =
        policy.policies.iter().map(|policy| (policy.name.as_str(), policy)).collect();
    let (mut whole, mut policies) = (Sha256::new(), Vec::new());
    let mut add = |part: &str| {
        whole.update((part.len() as u64).to_le_bytes());
        whole.update(part);
    };
    let failsafe: String = settings.failsafe.iter().map(|entry| words.failsafe(entry)).collect();
    let defaults = defaults(settings);
    for part in [mode(settings.mode), &defaults, &failsafe] {
        add(part);
    }
    let mut last = None;
    for (tier, name) in here {
        let Some(policy) = by_name.get(name) else { continue };
        if last.replace(tier) != Some(tier) {
            let default = words.documents.tiers.get(tier).map(|tier| tier.default);
            add(&format!("tier {tier} {}", if default == Some(TierDefault::Deny) { "deny" } else { "pass" }));
        }
        let text = words.policy(policy);
        add(&format!("policy {name}"));
        add(&text);
        policies.push((format!("{tier}/{name}"), short(&text)));
    }
    Meaning {
        whole: hexadecimal(&whole.finalize(), WHOLE),
        policies,
        defaults: short(&defaults),
        failsafe: short(&failsafe),
    }
}

fn short(text: &str) -> String {
    hexadecimal(&Sha256::digest(text), PART)
}

fn hexadecimal(digest: &[u8], bytes: usize) -> String {
    digest.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

/// The settings that change a verdict, but for failsafe and mode.
fn defaults(settings: &NodeSettings) -> String {
    // Which bit marks packets, and where the log goes, decide nothing. Whoever adds a field says here what it means.
    #[rustfmt::skip]
    let NodeSettings { early, drop_invalid, revoke, defaults: _, mode: _, failsafe: _, node: _, labels: _, accept_mark: _, log: _ } = settings;
    let mut text = String::new();
    for role in Role::ALL {
        for direction in Direction::BOTH {
            let default = match settings.default_for(*role, direction) {
                Default::Allow => "allow",
                Default::Deny => "deny",
            };
            push(&mut text, format_args!("{}.{} {default};", role.name(), direction.name()));
        }
    }
    for role in early {
        push(&mut text, format_args!("early {};", role.name()));
    }
    push(&mut text, format_args!("drop-invalid {drop_invalid};revoke {revoke};"));
    text
}

/// What turns parts of a policy into text.
struct Words<'a> {
    documents: &'a Policy,
    /// What sets hold, as digests.
    contents: BTreeMap<&'a str, String>,
}

impl<'a> Words<'a> {
    fn policy(&mut self, policy: &'a HostPolicy) -> String {
        let HostPolicy { interfaces, stage, mode: own, expires, ingress, egress, .. } = policy;
        let mut text = format!("{} {} {interfaces};", stage.name(), mode(*own));
        if let Some(expires) = expires {
            push(&mut text, format_args!("expires {expires};"));
        }
        for (direction, rules) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            let Some(rules) = rules else { continue };
            push(&mut text, format_args!("{}:", direction.name()));
            for rule in rules {
                let rule = self.rule(rule);
                push(&mut text, format_args!("{{{rule}}}"));
            }
        }
        text
    }

    fn rule(&mut self, rule: &'a Rule) -> String {
        let Rule { action, from, to, services, family, process, limit, log, .. } = rule;
        let mut text = action.name().to_owned();
        for (side, entity) in [("from", from), ("to", to)] {
            if let Some(entity) = entity {
                let entity = self.entity(entity);
                push(&mut text, format_args!(" {side} {entity}"));
            }
        }
        // One that is not there is an error of the documents.
        let ports: Vec<ServicePort> = services
            .iter()
            .filter_map(|(name, _)| self.documents.services.get(name))
            .flat_map(|service| service.ports.iter().cloned())
            .collect();
        let matched = l4_of_rule(rule, (!services.is_empty()).then_some(&ports[..]));
        transport(&mut text, &matched);
        if let Some(ports) = from.as_ref().and_then(|from| from.ports.as_ref()) {
            text.push_str(" sport ");
            ranges(&mut text, ports);
        }
        match family {
            Some(Family::V4) => text.push_str(" ipv4"),
            Some(Family::V6) => text.push_str(" ipv6"),
            None => {}
        }
        if let Some(process) = process {
            local(&mut text, process);
        }
        if let Some(Limit { rate, seconds, burst, per_source }) = limit {
            push(&mut text, format_args!(" limit {rate}/{seconds} {burst} {per_source}"));
        }
        if let Some(log) = log {
            push(&mut text, format_args!(" log {}", Counted(log)));
        }
        text
    }

    fn entity(&mut self, entity: &'a Entity) -> String {
        // Ports are with those of the rule. Whoever adds a field says here what it means.
        let Entity { cidrs, sets, select, nodes, local, ports: _, except, place: _ } = entity;
        let mut text = "(".to_owned();
        if !entity.names_addresses() {
            text.push_str("any");
        }
        if !cidrs.is_empty() {
            let addresses: AddrSet = cidrs.iter().copied().collect();
            ranges(&mut text, &addresses.v4);
            ranges(&mut text, &addresses.v6);
        }
        let named = sets.iter().map(|(name, _)| name.as_str());
        let chosen = select.iter().flat_map(|selector| {
            let chosen = self.documents.sets.values().filter(|set| selector.matches(&set.labels));
            chosen.map(|set| set.name.as_str())
        });
        let names: Vec<&str> = named.chain(chosen).collect();
        let mut contents: Vec<String> = names.into_iter().map(|name| self.content(name)).collect();
        contents.sort();
        contents.dedup();
        for content in contents {
            push(&mut text, format_args!(" set {content}"));
        }
        if let Some(NodePeers { selector, role, cluster }) = nodes {
            let role = role.map_or("any", Role::name);
            push(&mut text, format_args!(" nodes {selector} of {role} in {}", cluster.as_deref().unwrap_or("all")));
        }
        if *local {
            text.push_str(" local");
        }
        if let Some(except) = except {
            let except = self.entity(except);
            push(&mut text, format_args!(" except {except}"));
        }
        text.push(')');
        text
    }

    /// The digest of what a set holds; one that is not there holds nothing.
    fn content(&mut self, name: &str) -> String {
        let Some((name, set)) = self.documents.sets.get_key_value(name) else { return "none".to_owned() };
        let content = self.contents.entry(name).or_insert_with(|| {
            let addresses: AddrSet = set.cidrs.iter().copied().collect();
            let mut hash = Sha256::new();
            for (start, end) in addresses.v4.ranges() {
                hash.update(start.to_be_bytes());
                hash.update(end.to_be_bytes());
            }
            // So that no two of one family are one of the other.
            hash.update([u8::from(!addresses.v4.is_empty()), u8::from(!addresses.v6.is_empty())]);
            for (start, end) in addresses.v6.ranges() {
                hash.update(start.to_be_bytes());
                hash.update(end.to_be_bytes());
            }
            hexadecimal(&hash.finalize(), WHOLE)
        });
        content.clone()
    }

    fn failsafe(&mut self, entry: &'a Failsafe) -> String {
        let Failsafe { name, direction, ports, peers, interfaces, cluster_api, place: _ } = entry;
        let mut text = format!("failsafe {name} {} {interfaces}", direction.name());
        if *cluster_api {
            text.push_str(" cluster-api");
        } else {
            transport(&mut text, &l4_of_services(ports));
        }
        if let Some(peers) = peers {
            let peers = self.entity(peers);
            push(&mut text, format_args!(" peers {peers}"));
        }
        text.push(';');
        text
    }
}

fn transport(text: &mut String, matched: &L4Match) {
    let L4Match::Only(protocols) = matched else { return };
    text.push_str(" only");
    for (protocol, detail) in protocols {
        push(text, format_args!(" {}", protocol.0));
        match detail {
            L4Detail::All => {}
            L4Detail::Ports(ports) => {
                text.push_str(" port ");
                ranges(text, ports);
            }
            L4Detail::Icmp(types) => {
                for (kind, codes) in types {
                    push(text, format_args!(" type {kind} "));
                    ranges(text, codes);
                }
            }
        }
    }
}

fn local(text: &mut String, process: &LocalProcess) {
    let LocalProcess { users, groups, units } = process;
    for (what, accounts) in [("user", users), ("group", groups)] {
        let mut accounts: Vec<&Account> = accounts.iter().map(|(account, _)| account).collect();
        accounts.sort();
        for account in accounts {
            match account {
                Account::Id(id) => push(text, format_args!(" {what} {id}")),
                Account::Name(name) => push(text, format_args!(" {what} {}", Counted(name))),
            }
        }
    }
    let mut units: Vec<&str> = units.iter().map(|(unit, _)| unit.as_str()).collect();
    units.sort_unstable();
    for unit in units {
        push(text, format_args!(" unit {}", Counted(unit)));
    }
}

fn ranges<T: Point + std::fmt::Display>(text: &mut String, set: &RangeSet<T>) {
    for (start, end) in set.ranges() {
        push(text, format_args!("{start}-{end},"));
    }
}

/// A text that may have anything in it, with its length, so that nothing in it is taken for what comes after it.
struct Counted<'a>(&'a str);

impl std::fmt::Display for Counted<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.0.len(), self.0)
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = text.write_fmt(what);
}
