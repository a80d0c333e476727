//! Rules of another firewall, whichever it is: chains of rules, and the chains that the kernel's hooks begin with.

use std::collections::BTreeMap;

use super::cube::Cube;
use crate::net::addr::AddrSet;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;

/// What a rule does with packets that match.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Verdict {
    /// This chain lets it through.
    Accept,
    /// Dropped without an answer.
    Drop,
    /// Dropped, and its sender told.
    Reject,
    /// On in this chain (by its index), and back after its end.
    Jump(usize),
    /// On in this chain, whose end is that of the chain that the packet came from.
    Goto(usize),
    /// Back to the calling chain; the policy of a base chain.
    Return,
    /// Logged with this text, and on to the next rule.
    Log(String),
    /// On to the next rule.
    Nothing,
    /// Something that nobody here can say, in words; its packets are denied.
    Other(String),
}

/// A rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// What it matches.
    pub(super) cube: Cube,
    /// What it does.
    pub(super) verdict: Verdict,
    /// Where it stands.
    pub(super) place: Place,
    /// The rule as its reader wrote it, for comments.
    pub(super) text: String,
}

/// A chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Its name, with the table where that is needed to tell it from others.
    pub(super) name: String,
    /// Its rules from the top.
    pub(super) rules: Vec<Rule>,
    /// The program that writes it, if that is not the operator.
    pub(super) owner: Option<&'static str>,
}

/// Where in the kernel a base chain is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hook {
    /// What arrives, before it is routed.
    Prerouting,
    /// What goes to this host.
    Input,
    /// What goes through it.
    Forward,
    /// What this host sends.
    Output,
    /// What leaves, after it was routed.
    Postrouting,
}

impl Hook {
    /// The word of nft(8).
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    pub(super) fn by_name(name: &str) -> Option<Self> {
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting]
            .into_iter()
            .find(|hook| hook.name().eq_ignore_ascii_case(name))
    }
}

/// A chain that a hook begins with.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// The chain, by its index.
    pub(super) chain: usize,
    /// Where it is asked.
    pub(super) hook: Hook,
    /// Its place among those of the hook, lower first.
    pub(super) priority: i32,
    /// It sees IPv4.
    pub(super) v4: bool,
    /// It sees IPv6.
    pub(super) v6: bool,
    /// What it does with packets that its rules do not decide: accept, drop or reject.
    pub(super) policy: Verdict,
    /// Where that stands.
    pub(super) place: Place,
    /// That as its reader wrote it.
    pub(super) text: String,
}

/// All that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Ruleset {
    /// Chains, which verdicts name by their index.
    pub(super) chains: Vec<Chain>,
    /// Those that hooks begin with.
    pub(super) bases: Vec<Base>,
    /// Names of address sets, by what they hold.
    pub(super) sets: BTreeMap<AddrSet, String>,
    /// Packets that are not tracked.
    pub(super) untracked: Vec<Cube>,
    /// The first rule that looks at TCP flags.
    pub(super) flags: Option<Place>,
    /// What was to be said about the text.
    pub(super) findings: Vec<Finding>,
}

impl Ruleset {
    /// Notes that something is left out or taken otherwise.
    pub(super) fn warn(&mut self, place: &Place, message: impl Into<String>, help: &str) {
        self.findings.push(Finding::warning(Code::NotConverted, place, message).help(help));
    }

    /// Notes that something cannot be left out.
    pub(super) fn refuse(&mut self, place: &Place, message: impl Into<String>, help: &str) {
        self.findings.push(Finding::error(Code::NotConverted, place, message).help(help));
    }
}

/// Names with which chains of other programs begin, which go on writing them.
const OWNERS: &[(&str, &str)] = &[
    ("KUBE-", "kube-proxy"),
    ("cali-", "Calico"),
    ("cali:", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("FLANNEL-", "flannel"),
    ("CNI-", "CNI plugins"),
    ("NETAVARK", "Podman"),
    ("DOCKER", "Docker"),
    ("LIBVIRT_", "libvirt"),
    ("f2b-", "fail2ban"),
    ("fail2ban-", "fail2ban"),
    ("sshguard", "sshguard"),
    ("CROWDSEC", "CrowdSec"),
    ("ts-", "Tailscale"),
    ("WEAVE-", "Weave"),
];

/// The program that writes a chain of this name, if that is not the operator: Docker leaves DOCKER-USER to people.
pub(super) fn owner(chain: &str) -> Option<&'static str> {
    if chain == "DOCKER-USER" {
        return None;
    }
    OWNERS.iter().find(|(prefix, _)| chain.starts_with(prefix)).map(|(_, owner)| *owner)
}
