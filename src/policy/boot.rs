//! What of a policy a boot can stand on: nothing that it would have to look up first, and no opening that may be over.

use super::effective::{Effective, EffectivePolicy, EffectiveRule};
use super::model::Action;

impl Effective {
    /// The same as a boot should have it, compiled beforehand and loaded before anything can be looked up; `None` where that is
    /// no other.
    ///
    /// A boot does not know what time it is: there is no NTP yet, and the clock of the hardware may be wrong. So what a policy with
    /// `expires` denies stays, and what it allows or passes on waits for the daemon. Control groups have other numbers after
    /// every start of the host, and their old ones may be somebody else's: no unit is any, until the daemon has looked.
    pub fn at_boot(&self) -> Option<Self> {
        let rules = |policy: &EffectivePolicy| -> bool {
            policy.ingress.iter().chain(&policy.egress).flatten().any(|rule| differs(policy, rule))
        };
        if !self.tiers.iter().flat_map(|tier| &tier.policies).any(rules) {
            return None;
        }
        let mut boot = self.clone();
        for policy in boot.tiers.iter_mut().flat_map(|tier| &mut tier.policies) {
            let temporary = policy.expires.is_some();
            for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
                rules.retain(|rule| !(temporary && opens(rule)));
                for units in rules.iter_mut().filter_map(|rule| rule.process.as_mut()?.units.as_mut()) {
                    units.cgroups.clear();
                }
            }
        }
        Some(boot)
    }
}

fn differs(policy: &EffectivePolicy, rule: &EffectiveRule) -> bool {
    let units = rule.process.as_ref().and_then(|process| process.units.as_ref());
    (policy.expires.is_some() && opens(rule)) || units.is_some_and(|units| !units.cgroups.is_empty())
}

fn opens(rule: &EffectiveRule) -> bool {
    match rule.action {
        Action::Allow | Action::Pass => true,
        Action::Deny | Action::Reject | Action::Log => false,
    }
}
