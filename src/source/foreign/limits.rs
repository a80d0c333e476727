//! Limits of which a rule says what is over them: together with the rule after it, they are what nodewall calls a limit. Pure.

use super::cube::{Cube, NEW};
use super::model::{Chain, Rule, Ruleset, Verdict};
use crate::text::finding::{Code, Finding};

/// `what: deny what is over the limit` before `what: allow` becomes `what: allow within the limit` before `what: deny`.
pub(super) fn pair(ruleset: &mut Ruleset) {
    let lets_through: Vec<bool> = ruleset
        .chains
        .iter()
        .map(|chain| matches!(chain.rules.as_slice(), [only] if only.verdict == Verdict::Accept && only.cube == without_family(&only.cube)))
        .collect();
    let accepts = |verdict: &Verdict| match verdict {
        Verdict::Accept => true,
        Verdict::Jump(target) | Verdict::Goto(target) => lets_through.get(*target).copied().unwrap_or(false),
        _ => false,
    };
    let mut findings = Vec::new();
    for Chain { rules, .. } in &mut ruleset.chains {
        for index in 0..rules.len() {
            let Some(next) =
                rules.iter().enumerate().skip(index + 1).find(|(_, rule)| rule.verdict != Verdict::Nothing)
            else {
                continue;
            };
            let (at, accept) = (next.0, next.1.clone());
            let Some(over) = rules.get(index).filter(|rule| rule.cube.over.is_some()).cloned() else { continue };
            let limit = over.cube.over;
            let same = new_only(&Cube { over: None, ..over.cube.clone() }) == new_only(&accept.cube);
            let denies =
                !matches!(over.verdict, Verdict::Accept | Verdict::Return | Verdict::Nothing | Verdict::Log(_));
            if !(same && denies && accepts(&accept.verdict) && accept.cube.limit.is_none()) {
                continue;
            }
            if over.text.contains("recent") {
                let message = "who comes too often is counted otherwise: a burst of so many, then so many in a time, where this rule looks at the last seconds";
                findings.push(
                    Finding::warning(Code::NotConverted, &over.place, message).help("see limit in nodewall-policy(5)"),
                );
            }
            let within = Rule { cube: Cube { limit, ..accept.cube.clone() }, ..accept };
            let denied = Rule { cube: Cube { over: None, ..over.cube.clone() }, ..over };
            if let Some(rule) = rules.get_mut(index) {
                *rule = within;
            }
            if let Some(rule) = rules.get_mut(at) {
                *rule = denied;
            }
        }
    }
    ruleset.findings.extend(findings);
}

/// The same for new packets.
fn new_only(cube: &Cube) -> Cube {
    Cube { states: cube.states & NEW, ..cube.clone() }
}

/// Every packet of the families of this.
fn without_family(cube: &Cube) -> Cube {
    Cube::of(cube.v4, cube.v6)
}
