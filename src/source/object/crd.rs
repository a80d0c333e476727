//! The definitions of our objects for an API server (CustomResourceDefinition), from the types in `spec`, `rule` and `status`.

use kube::CustomResourceExt;
use serde_json::{Map, Value as Json};

use super::peers::HostPeers;
use super::spec::{HostExpectation, HostInterface, HostNetworkSet, HostPolicy, HostService, HostTier};
use super::status::HostState;
use super::{Kind, schema, yaml};

/// The definition of a kind.
///
/// # Errors
/// What serde says; the types of this version can be written.
pub fn definition(kind: Kind) -> Result<Json, serde_json::Error> {
    let definition = match kind {
        Kind::HostInterface => HostInterface::crd(),
        Kind::HostNetworkSet => HostNetworkSet::crd(),
        Kind::HostService => HostService::crd(),
        Kind::HostTier => HostTier::crd(),
        Kind::HostPolicy => HostPolicy::crd(),
        Kind::HostExpectation => HostExpectation::crd(),
        Kind::HostState => HostState::crd(),
        Kind::HostPeers => HostPeers::crd(),
    };
    let mut definition = serde_json::to_value(definition)?;
    for version in definition.pointer_mut("/spec/versions").and_then(Json::as_array_mut).into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            structural(schema);
            if let Some(root) = schema.as_object_mut() {
                root.remove("title");
                root.insert("x-kubernetes-validations".to_owned(), schema::object_rules(kind));
            }
            if let Some(status) = schema.pointer_mut("/properties/status") {
                without_defaults(status);
            }
        }
    }
    Ok(definition)
}

/// Definitions as a YAML text, as they are checked in under `packaging/kubernetes/crds`.
pub fn text(definitions: &[Json]) -> String {
    yaml::write(definitions)
}

/// Fields of a document for which the definition of its kind has no room: a policy file knows fewer bounds. Each is its path and how
/// much there can be.
pub(super) fn too_large(definition: &Json, fields: &Map<String, Json>) -> Vec<String> {
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties");
    let mut found = Vec::new();
    for (key, value) in fields {
        if let Some(schema) = schema.and_then(|properties| properties.get(key)) {
            exceed(schema, value, &format!("spec.{key}"), &mut found);
        }
    }
    found
}

fn exceed(schema: &Json, value: &Json, path: &str, found: &mut Vec<String>) {
    let (bound, length, what) = match value {
        Json::String(text) => ("maxLength", text.chars().count(), "characters"),
        Json::Array(items) => ("maxItems", items.len(), "items"),
        Json::Object(fields) => ("maxProperties", fields.len(), "keys"),
        _ => return,
    };
    match schema.get(bound).and_then(Json::as_u64) {
        Some(most) if length as u64 > most => {
            found.push(format!("{path} has {length} {what}, and {most} at most in an object"))
        }
        _ => {}
    }
    match value {
        Json::Array(items) => {
            let Some(schema) = schema.get("items") else { return };
            items.iter().enumerate().for_each(|(index, item)| exceed(schema, item, &format!("{path}[{index}]"), found));
        }
        Json::Object(fields) => {
            let named = |key: &String| schema.get("properties").and_then(|named| named.get(key));
            for (key, value) in fields {
                if let Some(schema) = named(key).or_else(|| schema.get("additionalProperties")) {
                    exceed(schema, value, &format!("{path}.{key}"), found);
                }
            }
        }
        _ => {}
    }
}

/// The schemas in a schema: those of its properties, items and values.
fn inner(schema: &mut Json) -> Vec<&mut Json> {
    let Some(schema) = schema.as_object_mut() else { return Vec::new() };
    let mut found = Vec::new();
    for (key, value) in schema {
        match (key.as_str(), value) {
            ("properties", Json::Object(properties)) => found.extend(properties.values_mut()),
            ("items" | "additionalProperties", value @ Json::Object(_)) => found.push(value),
            _ => {}
        }
    }
    found
}

/// Makes a schema one that Kubernetes takes and that says what we mean.
///
/// Null is no value of ours: where a field may not be null, the API server takes it away. What other properties there may be is not
/// for a schema of Kubernetes to say. A bound that went through a type of `k8s-openapi` has become 65535.0. Lines of a description are
/// one text.
fn structural(schema: &mut Json) {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("nullable");
        if schema.get("additionalProperties") == Some(&Json::Bool(false)) {
            schema.remove("additionalProperties");
        }
        if schema.get("default") == Some(&Json::Null) {
            schema.remove("default");
        }
        for bound in ["minimum", "maximum"] {
            if let Some(whole) =
                schema.get(bound).and_then(|bound| bound.to_string().strip_suffix(".0")?.parse::<i64>().ok())
            {
                schema.insert(bound.to_owned(), whole.into());
            }
        }
        if let Some(Json::String(text)) = schema.get_mut("description") {
            *text = text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
        }
    }
    inner(schema).into_iter().for_each(structural);
}

/// An API server fills defaults in; what a program writes has what it has.
fn without_defaults(schema: &mut Json) {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("default");
    }
    inner(schema).into_iter().for_each(without_defaults);
}
