//! Policy files to objects and back: the same documents in their other spelling.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::spec::{
    HostExpectationSpec, HostInterfaceSpec, HostNetworkSetSpec, HostPolicySpec, HostServiceSpec, HostTierSpec,
};
use super::{API_VERSION, Kind, body, crd, field, head, toml, yaml};
use crate::source::document;
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::read::{Reader, quoted};
use crate::text::tree::{self, Node, Source, Value};
use crate::text::yaml as yaml_text;

/// The longest name that we give an object: one of the policy language is no longer.
const LONGEST_NAME: usize = 63;

/// A document in neither spelling.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// Its kind.
    pub kind: Kind,
    /// Its name as an object.
    pub name: String,
    /// Its fields, in the order of the manual.
    pub fields: Map<String, Json>,
    /// Where it was written.
    pub place: Place,
}

/// The documents of a policy file. With an error among the findings there are none.
pub fn from_toml(source: &Source) -> (Vec<Document>, Vec<Finding>) {
    let (_, mut findings) = document::decode(source);
    let (Some(root), _) = tree::parse(source) else { return (Vec::new(), findings) };
    if has_errors(&findings) {
        return (Vec::new(), findings);
    }
    let mut documents = Vec::new();
    for kind in Kind::ALL {
        let Some(Value::Array(items)) = kind.table().and_then(|table| get(&root, table)).map(|node| &node.value) else {
            continue;
        };
        for item in items {
            let Value::Table(entries) = &item.value else { continue };
            let name = entries.iter().find(|entry| entry.key == "name");
            let (Some(name), place) = (name, source.place(item.span)) else { continue };
            let Value::String(text) = &name.node.value else { continue };
            let fields = entries.iter().filter(|entry| entry.key != "name").map(field).collect();
            let (name, fields) = match kind {
                Kind::HostExpectation => name_in_words(text, fields),
                _ => (text.to_string(), fields),
            };
            documents.extend(checked(kind, name, fields, place, &mut findings));
        }
    }
    (documents, findings)
}

/// The documents of a text of objects: YAML or JSON, one or many, lists of them too. With an error among the findings there are none.
pub fn from_objects(source: &Source) -> (Vec<Document>, Vec<Finding>) {
    let (nodes, mut findings) = yaml_text::parse(source);
    let mut reader = Reader::new(source);
    let mut read = Vec::new();
    for node in &nodes {
        objects(&mut reader, node, &mut read);
    }
    findings.extend(reader.into_findings());
    let mut documents = Vec::new();
    if !has_errors(&findings) {
        for (kind, name, fields, place) in read {
            documents.extend(checked(kind, name, fields, place, &mut findings));
        }
    }
    (documents, findings)
}

/// What stands in one node: an object, or a list of them.
fn objects<'t>(reader: &mut Reader<'t>, node: &Node<'t>, read: &mut Vec<(Kind, String, Map<String, Json>, Place)>) {
    let is_list =
        matches!(get(node, "kind").map(|kind| &kind.value), Some(Value::String(kind)) if kind.ends_with("List"));
    if let (true, Some(items)) = (is_list, get(node, "items")) {
        for item in reader.list(items, "items").unwrap_or_default() {
            objects(reader, item, read);
        }
        return;
    }
    let Some(head) = head(reader, node) else { return };
    body(reader, &head);
    let spec = head.spec.map(|spec| &spec.value);
    if let (Some(Value::Table(entries)), Some(_)) = (spec, head.kind.table()) {
        let fields = entries.iter().map(field).collect();
        read.push((head.kind, head.name_text(), fields, reader.place(node.span)));
    }
}

/// Findings about documents that shall be objects of one cluster: names that no object can have, names that two have, and what
/// objects cannot say.
pub fn check_objects(documents: &[Document]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut first: BTreeMap<(Kind, &str), &Place> = BTreeMap::new();
    let mut definitions = BTreeMap::new();
    for Document { kind, name, fields, place } in documents {
        let (kind_name, quoted) = (kind.name(), quoted(name));
        if !is_object_name(name) {
            let message = format!(
                "{quoted} cannot be the name of a {kind_name}: Kubernetes wants small letters, digits, \"-\" and \".\""
            );
            let help = format!("rename it, and where it is named: \"{}\"", slug(name));
            findings.push(Finding::error(Code::Value, place, message).help(help));
        }
        let said = match definitions.entry(*kind).or_insert_with(|| crd::definition(*kind)) {
            Ok(definition) => crd::too_large(definition, fields),
            Err(error) => vec![format!("it cannot be held against its definition: {error}")],
        };
        for said in said {
            let message = format!("{kind_name} {quoted} is too large for an object: {said}");
            findings.push(Finding::error(Code::NotConverted, place, message).help("write it as several documents"));
        }
        match first.get(&(*kind, name.as_str())) {
            Some(earlier) => findings.push(
                Finding::error(Code::DuplicateName, place, format!("two {kind_name}s would have the name {quoted}"))
                    .related(earlier, "the first")
                    .help("rename one of them"),
            ),
            None => {
                first.insert((*kind, name), place);
            }
        }
    }
    let interfaces: Vec<&Document> = documents.iter().filter(|document| document.kind == Kind::HostInterface).collect();
    let turned = interfaces.windows(2).find(|pair| matches!(pair, [one, next] if one.name > next.name));
    if let Some([one, next]) = turned {
        let message = format!(
            "HostInterfaces of a cluster are tried in the order of their names: \"{}\" comes before \"{}\" there",
            next.name, one.name
        );
        let help = "where an interface can match both, give them names in the order that is meant";
        findings.push(
            Finding::warning(Code::NotConverted, &next.place, message)
                .related(&one.place, "comes first here")
                .help(help),
        );
    }
    findings
}

/// A policy file with these documents, grouped by kind.
pub fn to_toml(documents: &[Document]) -> String {
    let mut tables: Vec<(Kind, &'static str, Map<String, Json>)> = Vec::new();
    for document in documents {
        let Some(table) = document.kind.table() else { continue };
        let mut fields = document.fields.clone();
        let words = fields.shift_remove("name").unwrap_or_else(|| Json::from(document.name.clone()));
        fields.shift_insert(0, "name".to_owned(), words);
        tables.push((document.kind, table, fields));
    }
    tables.sort_by_key(|(kind, ..)| *kind);
    toml::write(tables.iter().map(|(_, table, fields)| (*table, fields)))
}

/// The objects, one for each document.
pub fn to_objects(documents: &[Document]) -> Vec<Json> {
    let object = |document: &Document| {
        json!({
            "apiVersion": API_VERSION,
            "kind": document.kind.name(),
            "metadata": { "name": document.name },
            "spec": document.fields,
        })
    };
    documents.iter().map(object).collect()
}

/// Objects as YAML, a document each.
pub fn to_yaml(objects: &[Json]) -> String {
    yaml::write(objects)
}

/// Objects as one of kind `List`, which kubectl takes.
pub fn to_list(objects: Vec<Json>) -> Json {
    json!({ "apiVersion": "v1", "kind": "List", "items": objects })
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// The value of a key of a table.
fn get<'n, 't>(node: &'n Node<'t>, key: &str) -> Option<&'n Node<'t>> {
    let Value::Table(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
}

/// A document whose fields have gone through the types that objects are made of. What these do not have is reported, never left out.
fn checked(
    kind: Kind,
    name: String,
    fields: Map<String, Json>,
    place: Place,
    findings: &mut Vec<Finding>,
) -> Option<Document> {
    let fields = Json::Object(fields);
    let typed = match kind {
        Kind::HostInterface => through::<HostInterfaceSpec>(fields),
        Kind::HostNetworkSet => through::<HostNetworkSetSpec>(fields),
        Kind::HostService => through::<HostServiceSpec>(fields),
        Kind::HostTier => through::<HostTierSpec>(fields),
        Kind::HostPolicy => through::<HostPolicySpec>(fields),
        Kind::HostExpectation => through::<HostExpectationSpec>(fields),
        Kind::HostState | Kind::HostPeers => return None,
    };
    match typed {
        Ok(fields) => Some(Document { kind, name, fields, place }),
        Err(error) => {
            let message = format!("{} {} cannot be converted: {error}", kind.name(), quoted(&name));
            let help = "an object has `except` in `except` no deeper than twice";
            findings.push(Finding::error(Code::NotConverted, &place, message).help(help));
            None
        }
    }
}

fn through<T: DeserializeOwned + Serialize>(fields: Json) -> Result<Map<String, Json>, serde_json::Error> {
    serde_json::from_value(serde_json::to_value(serde_json::from_value::<T>(fields)?)?)
}

/// The name and the fields of an expectation, which says in TOML what it is in words: an object has these as a field.
fn name_in_words(words: &str, mut fields: Map<String, Json>) -> (String, Map<String, Json>) {
    let name = slug(words);
    if name != words {
        fields.shift_insert(0, "name".to_owned(), Json::from(words));
    }
    (name, fields)
}

/// Whether an object can have this name (DNS-1123 subdomain).
fn is_object_name(name: &str) -> bool {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.iter().all(|byte| small(*byte) || *byte == b'-')
            && matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if small(*first) && small(*last))
    };
    name.len() <= LONGEST_NAME && name.split('.').all(part)
}

/// A name that an object can have, from any text: small letters, digits and single dashes. One that has to be cut ends in a hash.
fn slug(text: &str) -> String {
    let mut name = String::new();
    for next in text.chars() {
        if next.is_ascii_alphanumeric() {
            name.push(next.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let end = name.trim_end_matches('-').len();
    name.truncate(end);
    if name.is_empty() || name.len() > LONGEST_NAME {
        let mut hash = String::new();
        for byte in Sha256::digest(text.as_bytes()).iter().take(4) {
            // Writing to a String does not fail.
            let _ = write!(hash, "{byte:02x}");
        }
        name.truncate(LONGEST_NAME - 1 - hash.len());
        name = format!("{}-{hash}", name.trim_end_matches('-')).trim_start_matches('-').to_owned();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_those_of_kubernetes() {
        for good in ["a", "rail-peers", "a.b", "0", "x1.y-2.z"] {
            assert!(is_object_name(good), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.-b", "a b", "ä", &"a".repeat(64)] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }

    #[test]
    fn any_text_gives_a_name() {
        let long = "nobody but the control plane and monitoring reaches the kubelet of any node";
        assert_eq!(slug("Somebody fills: \"admin\""), "somebody-fills-admin");
        assert_eq!(slug("a--_b"), "a-b");
        for text in [long, "", "漢", "a", "---", &"x".repeat(63), &"x".repeat(64)] {
            assert!(is_object_name(&slug(text)), "{text}: {}", slug(text));
        }
        assert_ne!(slug(&"x".repeat(64)), slug(&"x".repeat(65)));
    }
}
