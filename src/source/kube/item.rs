//! An object as an API server sends it, without all that is not meaning: managed fields, annotations and status are never kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::name;
use crate::source::calico::CalicoKind;
use crate::source::decoded::DecodedFile;
use crate::source::object::{API_VERSION, Kind};

/// An object in a list or in an event of a watch.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct Item {
    /// Its name and revision.
    pub metadata: Metadata,
    /// What it says.
    #[serde(default)]
    pub spec: Json,
    /// What of its status says who a node is.
    #[serde(default, deserialize_with = "or_empty")]
    pub status: Status,
}

/// What matters of the status of a Node and of a HostState.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Of a Node: its addresses.
    #[serde(deserialize_with = "or_nothing")]
    pub addresses: Vec<NodeStatusAddress>,
    /// Of a HostState: its interfaces.
    #[serde(deserialize_with = "or_nothing")]
    pub interfaces: Vec<InterfaceStatus>,
}

/// An address of a Node (core/v1 NodeAddress).
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatusAddress {
    /// "InternalIP", "ExternalIP", "Hostname", ...
    #[serde(rename = "type")]
    pub kind: String,
    /// It.
    pub address: String,
}

/// What matters of an interface in a HostState.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct InterfaceStatus {
    /// Its role.
    pub role: String,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<String>,
}

fn or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list that is null, or of something else, is none: no status of whatever kind is a reason to doubt an object.
fn or_nothing<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        List(Vec<T>),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Other(_) => Vec::new(),
    })
}

/// What matters of an object's metadata.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// The revision in which it was written last.
    #[serde(default)]
    pub resource_version: String,
    /// Its labels, which matter of a Node and of some objects of Calico's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its annotations, of which one of Calico's has labels.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Item {
    /// The object in one spelling: what means the same is the same text, whatever order a server has its fields in.
    pub(super) fn text(mut self, kind: Kind) -> Arc<str> {
        self.spec.sort_all_objects();
        let mut object = json!({
            "apiVersion": API_VERSION,
            "kind": kind.name(),
            "metadata": { "name": self.metadata.name },
        });
        if let (Json::Object(fields), false) = (&mut object, self.spec.is_null()) {
            fields.insert("spec".to_owned(), self.spec);
        }
        object.to_string().into()
    }

    /// An object of Calico's in one spelling.
    pub(super) fn calico_text(self, kind: CalicoKind) -> Arc<str> {
        let Metadata { name, labels, annotations, .. } = &self.metadata;
        kind.text(name, labels, annotations, self.spec)
    }
}

/// The document in a text of [`Item::text`], which findings call by cluster, kind and name.
pub(in crate::source) fn decode(cluster: &str, kind: Kind, object: &str, text: Arc<str>) -> DecodedFile {
    DecodedFile::of_object(&name::of(cluster, kind, object), text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_server_adds_is_dropped_and_the_order_of_fields_means_nothing() {
        let item = |text: &str| serde_json::from_str::<Item>(text).unwrap().text(Kind::HostNetworkSet);
        let plain =
            item(r#"{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"cidrs":["10.0.0.1"],"labels":{}}}"#);
        let dressed = item(
            r#"{"apiVersion":"nodewall.dev/v1alpha1","kind":"HostNetworkSet","status":{"x":1},
                "metadata":{"name":"a","uid":"u","resourceVersion":"9","managedFields":[{"manager":"kubectl"}]},
                "spec":{"labels":{},"cidrs":["10.0.0.1"]}}"#,
        );
        assert_eq!(plain, dressed);
        assert_eq!(
            &*plain,
            r#"{"apiVersion":"nodewall.dev/v1alpha1","kind":"HostNetworkSet","metadata":{"name":"a"},"spec":{"cidrs":["10.0.0.1"],"labels":{}}}"#
        );
        let file = decode("hub", Kind::HostNetworkSet, "a", plain);
        assert!(file.findings.is_empty() && file.documents.sets.len() == 1, "{file:?}");
    }

    #[test]
    fn an_object_without_meaning_has_findings_at_its_fields() {
        let text = |spec: &str| {
            let text = format!(r#"{{"metadata":{{"name":"a"}}{spec}}}"#);
            decode(
                "hub",
                Kind::HostNetworkSet,
                "a",
                serde_json::from_str::<Item>(&text).unwrap().text(Kind::HostNetworkSet),
            )
        };
        let places =
            |file: DecodedFile| file.findings.iter().map(|finding| finding.place.to_string()).collect::<Vec<_>>();
        assert_eq!(places(text("")), ["cluster hub: HostNetworkSet/a"]);
        assert_eq!(
            places(text(r#","spec":{"cidrs":["10.0.0.1",7]}"#)),
            ["cluster hub: HostNetworkSet/a spec.cidrs[1]"]
        );
    }
}
