//! Policy documents as objects of Kubernetes, group `nodewall.dev/v1alpha1` (`policy.md` section 6).
//!
//! An object is read by the walker that reads TOML, so that both mean the same and have the same findings. The Rust types beside it
//! give the schemas of the objects, and are for writing them.

pub mod convert;
pub mod crd;
pub mod news;
pub mod peers;
pub mod rule;
mod schema;
pub mod spec;
pub mod status;
mod toml;
mod yaml;

use serde_json::Value as Json;

use super::Sourced;
use super::document::{Documents, decode_body};
use super::merge::merge;
use crate::text::fields;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::read::Reader;
use crate::text::tree::{Entry, Node, Value};

/// Group and version of the objects.
pub const API_VERSION: &str = "nodewall.dev/v1alpha1";

/// A kind of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `[[interface]]`.
    HostInterface,
    /// `[[set]]`.
    HostNetworkSet,
    /// `[[service]]`.
    HostService,
    /// `[[tier]]`.
    HostTier,
    /// `[[policy]]`.
    HostPolicy,
    /// `[[expect]]`.
    HostExpectation,
    /// The state of a node, which is no document.
    HostState,
    /// A digest of nodes, which is no document either.
    HostPeers,
}

impl Kind {
    /// Every kind, documents in the order in which a file has them.
    pub const ALL: [Self; 8] = [
        Self::HostInterface,
        Self::HostNetworkSet,
        Self::HostService,
        Self::HostTier,
        Self::HostPolicy,
        Self::HostExpectation,
        Self::HostState,
        Self::HostPeers,
    ];

    /// What it is called in the path of a request.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::HostInterface => "hostinterfaces",
            Self::HostNetworkSet => "hostnetworksets",
            Self::HostService => "hostservices",
            Self::HostTier => "hosttiers",
            Self::HostPolicy => "hostpolicies",
            Self::HostExpectation => "hostexpectations",
            Self::HostState => "hoststates",
            Self::HostPeers => "hostpeers",
        }
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostInterface => "HostInterface",
            Self::HostNetworkSet => "HostNetworkSet",
            Self::HostService => "HostService",
            Self::HostTier => "HostTier",
            Self::HostPolicy => "HostPolicy",
            Self::HostExpectation => "HostExpectation",
            Self::HostState => "HostState",
            Self::HostPeers => "HostPeers",
        }
    }

    /// The table that is its document in TOML; `None` for what is no document.
    pub const fn table(self) -> Option<&'static str> {
        match self {
            Self::HostInterface => Some("interface"),
            Self::HostNetworkSet => Some("set"),
            Self::HostService => Some("service"),
            Self::HostTier => Some("tier"),
            Self::HostPolicy => Some("policy"),
            Self::HostExpectation => Some("expect"),
            Self::HostState | Self::HostPeers => None,
        }
    }

    /// The kind of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An object that was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The document in it, or that it is broken.
    pub(super) documents: Documents,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Object {
    /// Whether it can be used: nothing is wrong with it but what deserves a warning.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Error)
    }
}

/// Reads an object as an API server gives it. Places are fields: "HostPolicy/kubelet spec.ingress\[0\].ports".
///
/// # Errors
/// What is wrong, when that cannot be said of an object of ours: it has no kind, no name, another group or version.
pub fn read(object: &Json) -> Result<Object, Vec<Finding>> {
    let text = |key: &str| object.get(key).and_then(Json::as_str);
    let name = object.pointer("/metadata/name").and_then(Json::as_str);
    read_called(&format!("{}/{}", text("kind").unwrap_or("object"), name.unwrap_or("?")), object)
}

/// The same, where places call the object so.
pub(super) fn read_called(called: &str, object: &Json) -> Result<Object, Vec<Finding>> {
    let (source, node) = fields::tree(called, object).map_err(|finding| vec![*finding])?;
    let mut reader = Reader::new(&source);
    let read = head(&mut reader, &node).map(|head| {
        let documents = body(&mut reader, &head);
        (head.kind, head.name_text(), documents)
    });
    let findings = reader.into_findings();
    match read {
        Some((kind, name, documents)) => Ok(Object { kind, name, documents, findings }),
        None => Err(findings),
    }
}

/// The documents of objects, all of one standing, merged. Pure: for tests, and for whatever has objects at hand.
pub fn decode(objects: &[Json]) -> Sourced {
    let (mut documents, mut findings) = (Vec::new(), Vec::new());
    for object in objects {
        match read(object) {
            Ok(object) => {
                findings.extend(object.findings);
                documents.push((0, object.documents));
            }
            Err(said) => findings.extend(said),
        }
    }
    let (policy, said) = merge(documents);
    findings.extend(said);
    Sourced { policy, findings, ..Sourced::default() }
}

/// The parts of an object that is one of ours.
struct Head<'n, 't> {
    kind: Kind,
    name: &'n Node<'t>,
    /// `None` when it is missing, which has been reported.
    spec: Option<&'n Node<'t>>,
}

impl Head<'_, '_> {
    fn name_text(&self) -> String {
        match &self.name.value {
            Value::String(text) => text.to_string(),
            _ => String::new(),
        }
    }
}

/// What an object is. `None` has been reported.
fn head<'n, 't>(reader: &mut Reader<'t>, node: &'n Node<'t>) -> Option<Head<'n, 't>> {
    let mut fields = reader.table(node, "an object")?;
    let version = fields.need(reader, "apiVersion", "an object");
    let version = version.and_then(|version| reader.word(version, "apiVersion", &[(API_VERSION, ())]));
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
    let kind = fields.need(reader, "kind", "an object");
    // What another group calls its objects is not misspelt.
    let kind = if version.is_some() { kind.and_then(|kind| reader.word(kind, "kind", &kinds)) } else { None };
    let metadata = fields.need(reader, "metadata", "an object");
    let name = metadata.and_then(|metadata| {
        let mut fields = reader.table(metadata, "metadata")?;
        fields.need(reader, "name", "metadata")
    });
    version?;
    let spec = fields.need(reader, "spec", kind?.name());
    fields.get("status");
    fields.finish(reader, "an object");
    Some(Head { kind: kind?, name: name?, spec })
}

/// The document in an object.
fn body<'t>(reader: &mut Reader<'t>, head: &Head<'_, 't>) -> Documents {
    let Some(table) = head.kind.table() else {
        let message = format!("{} is no policy document", head.kind.name());
        let help = "nodewall writes it itself; leave it out";
        reader.error_with_help(Code::Value, head.name.span, message, help);
        return Documents::default();
    };
    match head.spec {
        Some(spec) => decode_body(reader, table, head.kind.name(), head.name, spec),
        None => {
            let name = head.name_text();
            let broken = (!name.is_empty()).then_some((table, name));
            Documents { broken: broken.into_iter().collect(), ..Documents::default() }
        }
    }
}

/// A value of a document as JSON. Numbers with a fraction are null: no field has one, and whoever wrote one was told.
fn json(node: &Node<'_>) -> Json {
    match &node.value {
        Value::Null | Value::Float => Json::Null,
        Value::String(text) => Json::String(text.to_string()),
        Value::Integer(number) => number.map_or(Json::Null, Json::from),
        Value::Boolean(value) => Json::Bool(*value),
        Value::Datetime(date) => Json::String(date.to_string()),
        Value::Array(items) => Json::Array(items.iter().map(json).collect()),
        Value::Table(entries) => Json::Object(entries.iter().map(field).collect()),
    }
}

fn field(entry: &Entry<'_>) -> (String, Json) {
    (entry.key.to_string(), json(&entry.node))
}
