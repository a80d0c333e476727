//! The comment that every rule carries in the kernel, so that `nft list table inet nodewall` reads like the policy, and
//! back: which policy and rule a counter belongs to.

use crate::policy::effective::{EffectiveRule, RuleId};

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
}
