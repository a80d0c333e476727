//! Which events somebody wants to see.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::daemon::traffic::record::EventRecord;
use crate::traffic::Kind;

/// What an event has to be; what is empty asks for nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// One of these verdicts.
    pub(super) verdicts: Vec<&'static str>,
    /// Of one of these peers.
    pub(super) peers: Vec<Peer>,
    /// By one of these interfaces.
    pub(super) interfaces: Vec<String>,
    /// Decided by one of these policies or rules.
    pub(super) policies: Vec<String>,
    /// Of this kind.
    pub(super) kind: Option<Kind>,
}

/// A peer, as a person names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Peer {
    /// By its address.
    Net(IpNet),
    /// By a name of either kind.
    Name(String),
    /// By a name with its kind: "set:ops", "node:gpu-17".
    Kinded(String),
}

impl Peer {
    /// Reads an address, a prefix, or a name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(address.to_canonical().into()));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        if text.is_empty() || text.contains('/') || text.contains(char::is_whitespace) {
            return Err("neither a set, a node, an address nor a prefix".to_owned());
        }
        Ok(match text.split_once(':') {
            Some(("set" | "node", _)) => Self::Kinded(text.to_owned()),
            _ => Self::Name(text.to_owned()),
        })
    }

    fn is(&self, event: &EventRecord) -> bool {
        match self {
            Self::Net(net) => event.peer.parse::<IpAddr>().is_ok_and(|address| net.contains(&address.to_canonical())),
            Self::Kinded(name) => event.names.contains(name),
            Self::Name(name) => {
                event.names.iter().any(|known| known.split_once(':').is_some_and(|(_, known)| known == name))
            }
        }
    }
}

impl Filter {
    /// Whether an event is wanted.
    pub(super) fn wants(&self, event: &EventRecord) -> bool {
        let any = |words: &[String], is: &dyn Fn(&str) -> bool| words.is_empty() || words.iter().any(|word| is(word));
        (self.verdicts.is_empty() || self.verdicts.contains(&event.verdict.as_str()))
            && (self.peers.is_empty() || self.peers.iter().any(|peer| peer.is(event)))
            && any(&self.interfaces, &|name| {
                event.interface.as_deref() == Some(name) || event.out.as_deref() == Some(name)
            })
            && any(&self.policies, &|name| event.policy.as_deref() == Some(name) || event.rule == name)
            && self.kind.is_none_or(|kind| event.kind == kind.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event() -> EventRecord {
        EventRecord {
            kind: "packet".into(),
            verdict: "denied".into(),
            interface: Some("eth0".into()),
            out: Some("cni0".into()),
            peer: "10.0.7.9".into(),
            names: vec!["node:gpu-17".into(), "set:ops".into()],
            rule: "kubelet#2".into(),
            policy: Some("kubelet".into()),
            ..EventRecord::default()
        }
    }

    #[test]
    fn peers_are_addresses_prefixes_sets_and_nodes() {
        for text in [
            "10.0.7.9",
            "10.0.7.0/24",
            "10.0.7.9/8",
            "0.0.0.0/0",
            "::ffff:10.0.7.9",
            "ops",
            "set:ops",
            "gpu-17",
            "node:gpu-17",
        ] {
            assert!(Peer::parse(text).unwrap().is(&event()), "{text}");
        }
        for text in ["10.0.7.8", "10.1.0.0/16", "::/0", "op", "node:ops", "set:gpu-17", "set:ops:x"] {
            assert!(!Peer::parse(text).unwrap().is(&event()), "{text}");
        }
        for text in ["", "10.0.7.9/33", "10.0/8", "a b"] {
            assert!(Peer::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_has_to_be_so_all_together() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        let all = Filter {
            verdicts: vec!["rejected", "denied"],
            peers: vec![Peer::parse("ops").unwrap()],
            interfaces: words(&["eth1", "cni0"]),
            policies: words(&["kubelet"]),
            kind: Some(Kind::Packet),
        };
        assert!(Filter::default().wants(&event()) && all.wants(&event()));
        for other in [
            Filter { verdicts: vec!["allowed"], ..all.clone() },
            Filter { peers: vec![Peer::parse("10.0.0.0/24").unwrap()], ..all.clone() },
            Filter { interfaces: words(&["eth1"]), ..all.clone() },
            Filter { policies: words(&["kube"]), ..all.clone() },
            Filter { kind: Some(Kind::Connection), ..all.clone() },
        ] {
            assert!(!other.wants(&event()), "{other:?}");
        }
        assert!(Filter { policies: words(&["kubelet#2"]), ..all.clone() }.wants(&event()));
        assert!(!Filter { policies: words(&["kubelet#1"]), ..all }.wants(&event()));
    }
}
