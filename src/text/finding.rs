//! What `check` reports: findings with a code, a severity, a place and what to do about it.

use super::place::Place;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Worth a look; the policy is applied all the same.
    Warning,
    /// The document is refused.
    Error,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// What kind of finding it is: a stable word for scripts and the manual.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Code { $($(#[$doc])* $variant),* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word that is printed and that scripts match.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

codes! {
    /// A file or directory that cannot be read, is not a regular file, too large, or not UTF-8.
    Unreadable = "unreadable",
    /// A policy file that others than root could have written.
    Untrusted = "untrusted",
    /// Not TOML.
    Syntax = "syntax",
    /// A key that does not exist here.
    UnknownKey = "unknown-key",
    /// A key that must be there and is not.
    MissingKey = "missing-key",
    /// A value of the wrong type.
    Type = "type",
    /// A value of the right type that means nothing: a port of 70000, a prefix with host bits.
    Value = "value",
    /// A selector that does not parse.
    Selector = "selector",
    /// Keys that cannot stand together, or one that needs another.
    Conflict = "conflict",
    /// The same name twice.
    DuplicateName = "duplicate-name",
    /// Two policies of one tier with the same order.
    DuplicateOrder = "duplicate-order",
    /// A set, service or tier that does not exist.
    UnknownName = "unknown-name",
    /// Something the language has and this version does not enforce.
    Unsupported = "not-supported-yet",
    /// A set that an `[[expect]]` names and nobody has filled.
    MissingSet = "missing-set",
    /// An entity that resolves to no address.
    EmptyEntity = "empty-entity",
    /// A rule that no packet can match.
    NeverMatches = "never-matches",
    /// A rule about traffic that never reaches nftables.
    Bypassed = "bypassed",
    /// A failsafe entry whose peers are anyone.
    OpenFailsafe = "open-failsafe",
    /// A rule for Soft-RoCE in one direction only: conntrack never sees it as established.
    OneWayRoce = "one-way-roce",
    /// A policy of stage `untracked` that allows one direction only: it has no flows, so answers need a rule of their own.
    OneWayUntracked = "one-way-untracked",
    /// A policy that selects no interface of this node.
    SelectsNothing = "selects-nothing",
    /// A user or group that this node does not know.
    UnknownAccount = "unknown-account",
    /// A systemd unit that does not run.
    NotRunning = "not-running",
    /// A rule that lets anyone in by ports from which this host makes connections itself.
    EphemeralPort = "ephemeral-port",
    /// A rule for a listener whose port Kubernetes may give to a Service.
    NodePort = "node-port",
    /// A policy whose time is over.
    Expired = "expired-policy",
    /// Something that a document says and its other spelling does not.
    NotConverted = "not-converted",
    /// A document of a cluster that the cluster may not write.
    NotAllowed = "not-allowed",
    /// A cluster of which nothing is known, or whose word is doubted.
    Cluster = "cluster",
}

/// One thing to tell the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// What is wrong, in one sentence: lower case, no full stop.
    pub message: String,
    /// Where.
    pub place: Place,
    /// A few words at the marker; may be empty.
    pub label: String,
    /// What to do; may be empty.
    pub help: String,
    /// Other places that belong to it, each with a few words.
    pub related: Vec<(Place, String)>,
}

impl Finding {
    /// An error at a place.
    pub fn error(code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, place, message)
    }

    /// A warning at a place.
    pub fn warning(code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, place, message)
    }

    fn new(severity: Severity, code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            message: message.into(),
            place: place.clone(),
            label: String::new(),
            help: String::new(),
            related: Vec::new(),
        }
    }

    /// The same with words at the marker.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The same with another place that belongs to it.
    #[must_use]
    pub fn related(mut self, place: &Place, words: impl Into<String>) -> Self {
        self.related.push((place.clone(), words.into()));
        self
    }
}
