//! Which certificate requests of nodes are approved: decides, and does nothing.
//!
//! Two kinds are: a node renews its own certificate, or somebody with a bootstrap token for joining asks for the name of a node that
//! nobody has yet. Everything else is left to an administrator, and nothing is ever denied: who has a token must not be able to end
//! another's request, and a person may know better.
//!
//! Whoever has a token could otherwise become any node that there is, as the token does not say for which node it is. So a name is free
//! only when there is no HostState of it, no request of it that was approved and has not expired, and no other one that waits. An
//! administrator who sets up a node again deletes its HostState first, or approves by hand.

use k8s_openapi::ByteString;
use serde::Deserialize;

use crate::identity::certificate;
use crate::identity::request::read;
use crate::identity::{BOOTSTRAP_GROUP, GROUP, SIGNER, USAGES, node_of};

/// A CertificateSigningRequest, as the API gives it.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    pub(super) metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    request: ByteString,
    signer_name: String,
    usages: Vec<String>,
    username: String,
    groups: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    certificate: Option<ByteString>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
}

/// What a request claims.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// Nothing that concerns us: another signer, or no node of ours.
    Others,
    /// A node asks for its own name.
    Renewal(String),
    /// Somebody who may join asks for the name of a node.
    First(String),
    /// It is about a node, and not as a node asks.
    Odd(String),
}

/// What to do with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Judgement {
    /// To approve it, for this reason.
    Approve(String),
    /// To leave it to an administrator, for this reason.
    Leave(String),
    /// It is settled, or none of ours.
    Pass,
}

impl Request {
    fn is(&self, kind: &str) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == kind)
    }

    /// Whether nobody has settled it.
    fn waits(&self) -> bool {
        !self.is("Approved") && !self.is("Denied") && !self.is("Failed")
    }

    /// Whether somebody has, or may come to have, a certificate by it.
    fn holds(&self, now: u64) -> bool {
        if !self.is("Approved") || self.is("Denied") || self.is("Failed") {
            return false;
        }
        let Some(issued) = self.status.certificate.as_ref().filter(|issued| !issued.0.is_empty()) else { return true };
        // What cannot be read is no reason to give the name away.
        let read = std::str::from_utf8(&issued.0).map_err(|_| String::new()).and_then(certificate::read);
        read.map_or(true, |certificate| certificate.lifetime.until > now)
    }

    /// What it claims.
    pub(super) fn claim(&self) -> Claim {
        if self.spec.signer_name != SIGNER {
            return Claim::Others;
        }
        let asked = match read(&self.spec.request.0) {
            Ok(asked) => asked,
            // Whose it is, its name says; a request of somebody else with another kind of key is not ours to speak of.
            Err(why) if self.metadata.name.starts_with("nodewall-") => return Claim::Odd(why),
            Err(_) => return Claim::Others,
        };
        let Some(node) = node_of(&asked.user) else {
            return match asked.groups.contains(GROUP) || asked.user.starts_with("nodewall:") {
                true => Claim::Odd(format!("\"{}\" is no name of a node", asked.user)),
                false => Claim::Others,
            };
        };
        if asked.groups.len() != 1 || !asked.groups.contains(GROUP) {
            return Claim::Odd(format!("it asks for other groups than \"{GROUP}\""));
        }
        let mut usages: Vec<&str> = self.spec.usages.iter().map(String::as_str).collect();
        usages.sort_unstable();
        if usages != USAGES {
            return Claim::Odd("its key is to be used for something else than to be a client".to_owned());
        }
        let is_in = |group: &str| self.spec.groups.iter().any(|mine| mine == group);
        match node_of(&self.spec.username) {
            Some(own) if own == node && is_in(GROUP) => Claim::Renewal(node.to_owned()),
            Some(other) => Claim::Odd(format!("node \"{other}\" asks for the certificate of node \"{node}\"")),
            None if is_in(BOOTSTRAP_GROUP) => Claim::First(node.to_owned()),
            None => Claim::Odd(format!("\"{}\" may not ask for the certificate of a node", self.spec.username)),
        }
    }
}

/// The node for whose name a request wants to be approved, if it has to be known whether that has a HostState.
pub(super) fn first(request: &Request) -> Option<String> {
    match request.claim() {
        Claim::First(node) if request.waits() => Some(node),
        _ => None,
    }
}

/// What to do with one of all requests. `is_known` says whether the node that it wants to be has a HostState; `now` is in seconds since
/// 1970-01-01 UTC.
pub(super) fn judge(request: &Request, all: &[Request], is_known: bool, now: u64) -> Judgement {
    if !request.waits() {
        return Judgement::Pass;
    }
    let node = match request.claim() {
        Claim::Others => return Judgement::Pass,
        Claim::Odd(why) => return Judgement::Leave(why),
        Claim::Renewal(node) => return Judgement::Approve(format!("node \"{node}\" renews its certificate")),
        Claim::First(node) => node,
    };
    if is_known {
        let why = format!(
            "there is a node \"{node}\" already; if it is set up again, delete its HostState, or approve by hand"
        );
        return Judgement::Leave(why);
    }
    let others = all.iter().filter(|other| other.metadata.name != request.metadata.name);
    for other in others {
        let same = match other.claim() {
            Claim::Renewal(name) | Claim::First(name) => name == node,
            Claim::Others | Claim::Odd(_) => false,
        };
        if same && other.holds(now) {
            let why = format!("request {} of a node \"{node}\" was approved already", other.metadata.name);
            return Judgement::Leave(why);
        }
        if same && other.waits() {
            let why = format!("request {} wants to be node \"{node}\", too", other.metadata.name);
            return Judgement::Leave(why);
        }
    }
    Judgement::Approve(format!("node \"{node}\" joins"))
}

#[cfg(test)]
mod tests;
