//! A policy and what the judges say of a packet, in few words: for failures.

use std::fmt::Write as _;

use nodewall::net::protocol::{L4Detail, L4Match};
use nodewall::policy::effective::{Addresses, Effective, EffectiveRule, Expected, ProcessMatch};
use nodewall::simulate::Trace;
use nodewall::simulate::words::parts;

/// Every part of a policy that decides something, a rule a line.
pub fn policy(effective: &Effective) -> String {
    let mut text = format!("mode {:?}, accept mark {:#x}", effective.mode, effective.accept_mark);
    let _ = writeln!(text, ", invalid packets {}", if effective.drop_invalid { "dropped" } else { "not dropped" });
    for interface in &effective.interfaces {
        let _ = writeln!(text, "interface {} {:?}", interface.name, interface.labels);
    }
    for Expected { pattern, labels, .. } in &effective.expected {
        let _ = writeln!(text, "expected {pattern:?} {labels:?}");
    }
    for entry in &effective.failsafe {
        let _ = write!(text, "failsafe {} {:?} {}", entry.name, entry.direction, entry.interfaces);
        text += &rule(&entry.rule);
    }
    for tier in &effective.tiers {
        let _ = writeln!(text, "tier {} {:?}", tier.name, tier.default);
        for policy in &tier.policies {
            let _ =
                writeln!(text, "  policy {} {:?} {:?} {}", policy.name, policy.stage, policy.mode, policy.interfaces);
            for (word, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
                let Some(rules) = rules else { continue };
                let _ = writeln!(text, "    {word}");
                for one in rules {
                    let _ = write!(text, "      {}", one.id.number);
                    text += &rule(one);
                }
            }
        }
    }
    for ((role, direction), default) in &effective.defaults {
        let _ = write!(text, "{role} {direction} {default:?}; ");
    }
    text
}

fn rule(rule: &EffectiveRule) -> String {
    let mut text = format!(" {}", rule.action.name());
    for (word, addresses) in [("from", &rule.from), ("to", &rule.to)] {
        match addresses {
            Addresses::Any => {}
            Addresses::Literal(set) => {
                let _ = write!(text, " {word} {:x?} {:x?}", set.v4.ranges(), set.v6.ranges());
            }
            Addresses::Named(name, set) => {
                let _ = write!(text, " {word} @{name} {:x?} {:x?}", set.v4.ranges(), set.v6.ranges());
            }
        }
    }
    match &rule.l4 {
        L4Match::Any => {}
        L4Match::Only(protocols) if protocols.len() > 20 => {
            let _ = write!(
                text,
                " {} protocols without {:?}",
                protocols.len(),
                left_out(protocols.keys().map(|one| one.0))
            );
        }
        L4Match::Only(protocols) => {
            for (protocol, detail) in protocols {
                let _ = match detail {
                    L4Detail::All => write!(text, " {protocol}"),
                    L4Detail::Ports(ports) => write!(text, " {protocol} {:?}", ports.ranges()),
                    L4Detail::Icmp(types) => write!(text, " {protocol} {types:?}"),
                };
            }
            if protocols.is_empty() {
                text += " no protocol";
            }
        }
    }
    if let Some(ports) = &rule.source_ports {
        let _ = write!(text, " source ports {:?}", ports.ranges());
    }
    if let Some(family) = rule.family {
        let _ = write!(text, " {family:?}");
    }
    if let Some(ProcessMatch { users, groups, units }) = &rule.process {
        let _ = write!(text, " users {users:?} groups {groups:?} units {units:?}");
    }
    if let Some(limit) = &rule.limit {
        let _ = write!(text, " {limit:?}");
    }
    if let Some(words) = &rule.log {
        let _ = write!(text, " log {words:?}");
    }
    text.push('\n');
    text
}

fn left_out(there: impl Iterator<Item = u8>) -> Vec<u8> {
    let there: Vec<u8> = there.collect();
    (0..=255).filter(|number| !there.contains(number)).collect()
}

/// The steps of a trace, a line each.
pub fn trace(trace: &Trace<'_>) -> String {
    let mut text = String::new();
    for part in parts(trace) {
        if let Some((stage, direction, _)) = part.stage {
            let _ = writeln!(text, "  stage {} {direction}", stage.name());
        }
        for line in part.lines {
            let _ = writeln!(text, "    {} {} {}", line.kind, line.name, line.result);
        }
    }
    text
}
