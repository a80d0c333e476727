//! Denials that hold as a packet arrives: on roles with `early = true` the deny sets at the head of the policy are asked before
//! anything else costs time, reassembly, connection tracking and routing included.
//!
//! They are rules that deny whatever comes from some addresses, with nothing before them that could let it in. Asked early they hold
//! for every packet from there: for established flows too, and whatever the packet's destination turns out to be. Essentials and
//! failsafe go before them. Nothing is early under node-wide audit, which changes no verdict.

use super::effective::{Addresses, Effective, EffectiveRule};
use super::guards;
use super::model::{Action, Mode, Stage, TierDefault};
use super::selector::Labels;
use crate::net::interface::{Direction, Role};
use crate::net::protocol::L4Match;

/// The early rules of an interface with this role and these labels, in order.
pub fn rules<'a>(effective: &'a Effective, role: Role, labels: &Labels) -> Vec<&'a EffectiveRule> {
    let mut early = Vec::new();
    if effective.mode == Mode::Audit || !effective.early.contains(&role) {
        return early;
    }
    for stage in [Stage::Untracked, Stage::Prednat, Stage::Host] {
        for tier in &effective.tiers {
            let mut governed = false;
            for policy in &tier.policies {
                let Some(rules) = policy.rules(Direction::Ingress) else { continue };
                if policy.stage != stage || policy.mode == Mode::Audit || !policy.interfaces.matches(labels) {
                    continue;
                }
                // What the untracked stage allows, later ones do not ask about.
                if stage == Stage::Untracked {
                    return early;
                }
                governed = true;
                for rule in rules {
                    if is_deny_set(rule) {
                        early.push(rule);
                    } else if ends(&tier.name, rule) {
                        return early;
                    }
                }
            }
            if governed && tier.default == TierDefault::Deny {
                return early;
            }
        }
    }
    early
}

/// Whether nothing after this rule of a tier is early, because it may let something in. What a guard denies lets nothing in.
pub fn ends(tier: &str, rule: &EffectiveRule) -> bool {
    !is_deny_set(rule) && (tier != guards::TIER || rule.action != Action::Deny)
}

/// Whether a rule denies everything from some addresses and asks for nothing else.
fn is_deny_set(rule: &EffectiveRule) -> bool {
    let EffectiveRule { id: _, place: _, action, from, to, l4, source_ports, family: _, process, limit, log } = rule;
    *action == Action::Deny
        && *from != Addresses::Any
        && *to == Addresses::Any
        && *l4 == L4Match::Any
        && source_ports.is_none()
        && process.is_none()
        && limit.is_none()
        && log.is_none()
}
