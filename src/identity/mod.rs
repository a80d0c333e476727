//! Who a node is to its cluster: a client certificate that it asks for with a token, keeps in one file, and renews by itself.
//!
//! `request`, `certificate` and `renew` decide; `client`, `files`, `obtain`, `join` and `renewer` do it.

pub mod certificate;
pub mod client;
mod discovery;
pub mod files;
pub mod join;
mod obtain;
pub mod renew;
mod renewer;
pub mod request;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

pub use renewer::{Renewer, Standing};

/// Who signs client certificates in Kubernetes.
pub const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// The group (organization) of nodes.
pub const GROUP: &str = "nodewall:nodes";
/// The group that a bootstrap token for joining has (`auth-extra-groups` of its Secret).
pub const BOOTSTRAP_GROUP: &str = "system:bootstrappers:nodewall";
/// What the key of a node is for, in the words of the API.
pub const USAGES: [&str; 2] = ["client auth", "digital signature"];

const USER: &str = "nodewall:node:";

/// The user (common name) that a node is.
pub fn user(node: &str) -> String {
    format!("{USER}{node}")
}

/// The node that a user is.
pub fn node_of(user: &str) -> Option<&str> {
    user.strip_prefix(USER).filter(|node| crate::text::name::is_node_name(node))
}

/// Something that nobody is to read by accident: its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text, for whoever has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// Seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
