//! The comment that every rule carries in the kernel, so that `nft list table inet nodewall` reads like the policy, and
//! back: which policy and rule a counter belongs to.

use crate::policy::effective::{EffectiveRule, RuleId};
use crate::policy::model::Action;

/// The most bytes that nft(8) takes and prints (`NFTNL_UDATA_COMMENT_MAXLEN` less the terminator).
const LONGEST: usize = 127;

/// `kubelet#2 20-kubelet.toml:14`.
pub(super) fn of_rule(rule: &EffectiveRule) -> String {
    fit(format!("{} {}", rule.id, rule.place.short()))
}

/// The prefix of logged packets: `kubelet#2 deny: TEXT`.
pub(super) fn log_prefix(rule: &EffectiveRule, verb: &str, text: &str) -> String {
    let text = if text.is_empty() { String::new() } else { format!(": {text}") };
    fit(format!("{} {verb}{text} ", rule.id).replace(['"', '\\'], "'"))
}

/// The prefix of packets that a default denies, or would under audit: `deny: default of mgmt ingress `, `would deny: tier node `.
pub(super) fn default_prefix(what: &str, audit: bool) -> String {
    let would = if audit { WOULD } else { "" };
    fit(format!("{would}{DENY}{what} "))
}

/// What comes before the verb where nothing is denied yet.
const WOULD: &str = "would ";
/// What the prefix of a default begins with: no policy has a name with a colon and a space.
const DENY: &str = "deny: ";
/// The default of an interface, as [`default_prefix`] is given it.
pub(super) const DEFAULT_OF: &str = "default of ";
/// The default of a tier, likewise.
pub(super) const TIER: &str = "tier ";

/// What the prefix of a logged packet says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    /// What decided, or would.
    pub by: LoggedBy,
    /// What it does.
    pub action: Action,
    /// Whether only audit mode keeps it from doing that.
    pub would: bool,
    /// The text of the rule's `log`; cut short where the whole had no room.
    pub text: String,
}

/// What logged a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LoggedBy {
    /// A rule.
    Rule(RuleId),
    /// The default of this tier.
    Tier(String),
    /// The default of the interface's role.
    Default,
}

/// Reads the prefix of a logged packet; `None` where it is not one of ours.
pub fn logged(prefix: &str) -> Option<Logged> {
    let prefix = prefix.trim_end_matches(' ');
    let (would, rest) = prefix.strip_prefix(WOULD).map_or((false, prefix), |rest| (true, rest));
    if let Some(what) = rest.strip_prefix(DENY) {
        let by = match what.strip_prefix(TIER) {
            Some(tier) => LoggedBy::Tier(tier.to_owned()),
            None => what.strip_prefix(DEFAULT_OF).map(|_| LoggedBy::Default)?,
        };
        return Some(Logged { by, action: Action::Deny, would, text: String::new() });
    }
    let (id, rest) = prefix.split_once(' ')?;
    let (policy, number) = id.rsplit_once('#')?;
    let by = LoggedBy::Rule(RuleId { policy: policy.into(), number: number.parse().ok()? });
    let (would, rest) = rest.strip_prefix(WOULD).map_or((false, rest), |rest| (true, rest));
    let (verb, text) = rest.split_once(": ").unwrap_or((rest, ""));
    let action = Action::ALL.into_iter().find(|action| action.name() == verb)?;
    Some(Logged { by, action, would, text: text.to_owned() })
}

/// The text, cut to what nft(8) takes, without characters that its syntax has no way to write.
pub(super) fn fit(text: String) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() || c == '"' { '\'' } else { c }).collect();
    if text.len() > LONGEST {
        let mut end = LONGEST;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// The policy and rule number that a comment names, if it is one of a policy's rule.
pub fn rule_of(comment: &str) -> Option<RuleId> {
    let (policy, number) = comment.split(' ').next()?.rsplit_once('#')?;
    Some(RuleId { policy: policy.into(), number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn comments_name_their_rule_and_fit() {
        assert_eq!(rule_of("kubelet#2 20-kubelet.toml:14").unwrap().to_string(), "kubelet#2");
        assert_eq!(rule_of("failsafe:ssh#1 nodewall.toml:3 log").unwrap().policy.as_ref(), "failsafe:ssh");
        assert_eq!(rule_of("default mgmt ingress deny"), None);
        let long = fit("é".repeat(100));
        assert_eq!(long.len(), 126);
        assert_eq!(fit("a\n\"b".to_owned()), "a''b");
    }

    #[test]
    fn prefixes_are_read_back() {
        let rule = |policy: &str, number| LoggedBy::Rule(RuleId { policy: policy.into(), number });
        for (prefix, by, action, would, text) in [
            ("kubelet#2 deny ", rule("kubelet", 2), Action::Deny, false, ""),
            ("kubelet#2 deny: no: not you ", rule("kubelet", 2), Action::Deny, false, "no: not you"),
            ("kubelet#12 would reject: x ", rule("kubelet", 12), Action::Reject, true, "x"),
            ("failsafe:ssh#1 allow: y ", rule("failsafe:ssh", 1), Action::Allow, false, "y"),
            ("would#1 log ", rule("would", 1), Action::Log, false, ""),
        ] {
            let logged = logged(prefix).unwrap();
            assert_eq!(logged, Logged { by, action, would, text: text.to_owned() }, "{prefix}");
        }
        for (what, by) in
            [("tier node", LoggedBy::Tier("node".to_owned())), ("default of mgmt ingress", LoggedBy::Default)]
        {
            for would in [false, true] {
                let expected = Logged { by: by.clone(), action: Action::Deny, would, text: String::new() };
                assert_eq!(logged(&default_prefix(what, would)), Some(expected));
            }
        }
        for foreign in ["", "kubelet", "kubelet#x deny", "kubelet#1 drop", "IN=eth0 ", "deny: something"] {
            assert_eq!(logged(foreign), None, "{foreign}");
        }
    }
}
