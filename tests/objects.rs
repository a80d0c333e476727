//! Objects of Kubernetes and policy files are two spellings of one language: they mean the same, have the same findings, and are
//! converted both ways; the definitions that an API server gets know what the walker of documents knows.
//!
//! `UPDATE=1 cargo test --test objects` rewrites the definitions and the expected conversions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nodewall::policy::model::Policy;
use nodewall::source::object::status::{Condition, DriftCount, HostStateStatus, InterfaceState};
use nodewall::source::object::{self, Kind, convert, crd};
use nodewall::source::{self, guards};
use nodewall::text::finding::{Code, Finding, Severity};
use nodewall::text::render::{line, render};
use nodewall::text::tree::Source;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

/// A policy without where things were written.
fn meaning(policy: &Policy) -> String {
    let mut out = String::new();
    let mut within: Option<usize> = None;
    for line in format!("{policy:#?}").lines() {
        let indent = line.len() - line.trim_start().len();
        match within {
            Some(outer) if indent == outer && line.trim_start().starts_with('}') => within = None,
            Some(_) => {}
            None => {
                out.push_str(line);
                out.push('\n');
                if line.trim_end().ends_with("Place {") {
                    within = Some(indent);
                }
            }
        }
    }
    out
}

fn lines(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(line).collect()
}

/// A text with what is expected in a file; `UPDATE=1` rewrites it.
fn same(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, found).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    let line = found.lines().zip(expected.lines()).take_while(|(found, expected)| found == expected).count();
    let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
    assert!(
        found == expected,
        "{}:{}: expected\n  {}\nfound\n  {}\nUPDATE=1 rewrites it",
        path.display(),
        line + 1,
        at(&expected),
        at(found)
    );
}

/// Every policy file of the repository that has no error.
fn policy_files() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("src/source/guards.toml")];
    let mut folders: Vec<PathBuf> = ["config", "tests/cases", "tests/inventory", "demo"].map(PathBuf::from).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Some of these are what no object can say.
                if !path.ends_with("tests/cases/objects") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                found.push(path);
            }
        }
    }
    found.sort();
    found.retain(|path| {
        let Ok(text) = fs::read_to_string(path) else { return false };
        let sourced = source::decode_text("x.toml", &text);
        sourced.findings.iter().all(|finding| finding.severity != Severity::Error)
    });
    assert!(found.len() >= 90, "only {} policy files", found.len());
    found
}

#[test]
fn a_policy_file_converted_to_objects_and_back_means_the_same() {
    let (mut kinds, mut all) = (BTreeSet::new(), Vec::new());
    for path in policy_files() {
        let (name, text) = (path.display().to_string(), fs::read_to_string(&path).unwrap());
        let original = source::decode_text(&name, &text);
        let (documents, findings) = convert::from_toml(&Source::new(name.as_str(), text.as_str()));
        assert_eq!(lines(&findings), Vec::<String>::new(), "{name}");
        kinds.extend(documents.iter().map(|document| document.kind));
        all.extend(documents.iter().cloned());

        let objects = convert::to_objects(&documents);
        let decoded = object::decode(&objects);
        assert_eq!(lines(&decoded.findings), Vec::<String>::new(), "{name}");
        assert_eq!(meaning(&decoded.policy), meaning(&original.policy), "{name}: as objects");

        let list = serde_json::to_string_pretty(&convert::to_list(objects.clone())).unwrap();
        for written in [convert::to_yaml(&objects), list] {
            let (again, findings) = convert::from_objects(&Source::new("objects", written.as_str()));
            assert_eq!(lines(&findings), Vec::<String>::new(), "{name}: {written}");
            let toml = convert::to_toml(&again);
            let back = source::decode_text("back.toml", &toml);
            assert_eq!(lines(&back.findings), Vec::<String>::new(), "{name}: {toml}");
            assert_eq!(meaning(&back.policy), meaning(&original.policy), "{name}: {toml}");
        }
    }
    // Two files may have the same name, which no two objects of one cluster have.
    let said = convert::check_objects(&all);
    let errors = said.iter().filter(|said| said.severity == Severity::Error && said.code != Code::DuplicateName);
    assert_eq!(errors.map(line).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(
        kinds.len(),
        Kind::ALL.iter().filter(|kind| kind.table().is_some()).count(),
        "a kind of document in no file: {kinds:?}"
    );
}

#[test]
fn the_guards_are_converted_like_any_policy() {
    let (documents, findings) = convert::from_toml(&Source::new("guards", guards::TEXT));
    assert!(findings.is_empty() && documents.len() == guards::shipped().len());
    let decoded = object::decode(&convert::to_objects(&documents));
    let tiers: BTreeSet<&str> = decoded.policy.policies.iter().map(|policy| policy.tier.as_str()).collect();
    assert_eq!(tiers, ["guards"].into());
}

/// A value of TOML as objects have it.
fn as_json(value: &toml::Value) -> Value {
    match value {
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(items) => items.iter().map(as_json).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.clone(), as_json(value))).collect())
        }
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Boolean(value) => (*value).into(),
        toml::Value::String(text) => text.as_str().into(),
    }
}

fn an_object(kind: Kind, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": object::API_VERSION, "kind": kind.name(), "metadata": { "name": name }, "spec": spec })
}

/// Findings without their places, as they are said of a file.
fn said(findings: &[Finding], kind: Kind) -> Vec<String> {
    let mut said: Vec<String> = findings
        .iter()
        .map(|finding| {
            // What a document is called, and that its name is one of its keys in TOML, is all that may differ.
            let help = if finding.code == Code::UnknownKey { "" } else { finding.help.as_str() };
            let message = format!("{:?} {} | {help}", finding.code, finding.message);
            message.replace(kind.name(), &format!("[[{}]]", kind.table().unwrap()))
        })
        .collect();
    said.sort();
    said
}

#[test]
fn a_bad_document_has_the_same_findings_in_both_spellings() {
    let mut compared = 0;
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in fs::read_dir("tests/cases/bad").unwrap() {
        files.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "toml")) {
        let Ok(text) = fs::read_to_string(path) else { continue };
        let Ok(table) = text.parse::<toml::Table>() else { continue };
        for kind in Kind::ALL {
            let items = kind.table().and_then(|name| table.get(name)).and_then(toml::Value::as_array);
            for item in items.into_iter().flatten() {
                let Some(name) = item.get("name").and_then(toml::Value::as_str) else { continue };
                let mut alone = toml::Table::new();
                alone.insert(kind.table().unwrap().to_owned(), toml::Value::Array(vec![item.clone()]));
                let written = source::decode_text("x.toml", &toml::to_string(&alone).unwrap());
                let mut spec = as_json(item);
                spec.as_object_mut().unwrap().remove("name");
                let read = object::read(&an_object(kind, name, spec)).unwrap();
                assert_eq!(said(&read.findings, kind), said(&written.findings, kind), "{}", path.display());
                compared += usize::from(!read.is_good());
            }
        }
    }
    assert!(compared >= 80, "only {compared} bad documents");
}

#[test]
fn a_finding_names_the_object_and_the_field() {
    let spec = json!({
        "interfaces": "role =",
        "ingres": [],
        "ingress": [{ "action": "allow", "protocol": "tcp", "ports": [22, 70000], "from": { "cidrs": ["10.0.0.1/8"] } }, null],
    });
    let read = object::read(&an_object(Kind::HostPolicy, "ssh", spec)).unwrap();
    assert!(!read.is_good());
    assert_eq!((read.kind, read.name.as_str()), (Kind::HostPolicy, "ssh"));
    let found = lines(&read.findings);
    for wanted in [
        "HostPolicy/ssh spec.interfaces: error[selector]: interfaces: ",
        "HostPolicy/ssh spec.ingress[0].ports[1]: error[value]: 70000 is not a port",
        "HostPolicy/ssh spec.ingress[0].from.cidrs[0]: error[value]: ",
        "HostPolicy/ssh spec.ingress[1]: error[type]: a rule must be a table, not null",
        "HostPolicy/ssh spec.ingres: error[unknown-key]: \"ingres\" is not a key of HostPolicy; did you mean \"ingress\"?",
    ] {
        assert!(found.iter().any(|line| line.starts_with(wanted)), "{wanted}: {found:#?}");
    }
}

#[test]
fn an_object_that_is_none_of_ours_is_said_to_be_so() {
    let good = || an_object(Kind::HostTier, "a", json!({ "order": 1, "default": "pass" }));
    let changed = |path: &str, value: Value| {
        let mut object = good();
        *object.pointer_mut(path).unwrap() = value;
        object
    };
    assert!(object::read(&good()).unwrap().is_good());
    let refused = [
        (changed("/apiVersion", "apps/v1".into()), "\"apps/v1\" is not an apiVersion"),
        (changed("/kind", "HostTyre".into()), "\"HostTyre\" is not a kind; did you mean \"HostTier\"?"),
        (changed("/metadata", json!({})), "metadata has no `name`"),
        (json!([]), "an object must be a table"),
    ];
    for (object, wanted) in refused {
        let findings = lines(&object::read(&object).unwrap_err());
        assert!(findings.iter().any(|line| line.contains(wanted)), "{wanted}: {findings:?}");
    }
    // These have a name, so that what was there under it can stay.
    let broken = [
        (changed("/spec", Value::Null), "HostTier must be a table, not null"),
        (changed("/spec/default", "maybe".into()), "is not a default of a tier"),
        (an_object(Kind::HostState, "node-1", json!({ "node": "node-1" })), "HostState is no policy document"),
    ];
    for (object, wanted) in broken {
        let read = object::read(&object).unwrap();
        assert!(
            !read.is_good() && lines(&read.findings).iter().any(|line| line.contains(wanted)),
            "{wanted}: {read:?}"
        );
    }
    let mut stray = good();
    stray["specs"] = json!({});
    stray["status"] = json!({ "accepted": true });
    let findings = lines(&object::read(&stray).unwrap().findings);
    assert_eq!(
        findings,
        ["HostTier/a specs: error[unknown-key]: \"specs\" is not a key of an object; did you mean \"spec\"?"]
    );
}

/// The schema of a definition, below the object itself.
fn schema(kind: Kind) -> Value {
    crd::definition(kind).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

const DOCUMENTS: [Kind; 6] = [
    Kind::HostInterface,
    Kind::HostNetworkSet,
    Kind::HostService,
    Kind::HostTier,
    Kind::HostPolicy,
    Kind::HostExpectation,
];

/// A step on the way to a field.
#[derive(Clone, PartialEq, Debug)]
enum Step {
    Key(String),
    Item,
}

/// Every schema below `spec`, with the way there.
fn fields(kind: Kind) -> Vec<(Vec<Step>, Value)> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), schema(kind)["properties"]["spec"].clone())];
    while let Some((way, schema)) = open.pop() {
        let step = |step: Step| way.iter().cloned().chain([step]).collect::<Vec<_>>();
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            open.push((step(Step::Key(key.clone())), inner.clone()));
        }
        if schema["items"].is_object() {
            open.push((step(Step::Item), schema["items"].clone()));
        }
        found.push((way, schema));
    }
    found
}

/// An object that has nothing but this value at the end of this way.
fn with(kind: Kind, way: &[Step], value: Value) -> Value {
    let mut spec = way.iter().rev().fold(value, |inner, step| match step {
        Step::Key(key) => Value::Object(Map::from_iter([(key.clone(), inner)])),
        Step::Item => json!([inner]),
    });
    // The walker looks at an example only where it is one of a set.
    if way.first() == Some(&Step::Key("example".to_owned())) {
        spec["set"] = "a".into();
    }
    an_object(kind, "x", spec)
}

fn path(kind: Kind, way: &[Step]) -> String {
    let mut path = format!("{}/x spec", kind.name());
    for step in way {
        match step {
            Step::Key(key) => path.push_str(&format!(".{key}")),
            Step::Item => path.push_str("[0]"),
        }
    }
    path
}

/// What the walker says of a field with this value.
fn findings_at(kind: Kind, way: &[Step], value: Value) -> Vec<Finding> {
    let place = path(kind, way);
    let read = object::read(&with(kind, way, value)).unwrap();
    read.findings.into_iter().filter(|finding| *finding.place.file == place).collect()
}

fn words(help: &str) -> BTreeSet<String> {
    let list = help.strip_prefix("it can be: ").unwrap_or_else(|| panic!("no list: {help}"));
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn schemas_have_the_keys_that_the_walker_knows() {
    let mut tables = 0;
    for kind in DOCUMENTS {
        for (way, schema) in fields(kind) {
            let Some(properties) = schema["properties"].as_object() else { continue };
            let mut unknown = way.clone();
            unknown.push(Step::Key("zzzzzzzz".to_owned()));
            let findings = findings_at(kind, &unknown, json!(1));
            let [finding] = &findings[..] else { panic!("{}: {findings:?}", path(kind, &unknown)) };
            assert_eq!(finding.code, Code::UnknownKey);
            let mut known = words(&finding.help);
            // `except` takes no ports, which the walker says in words, and a schema ends somewhere.
            let excepts = way.iter().filter(|step| **step == Step::Key("except".to_owned())).count();
            if excepts > 0 {
                assert!(known.remove("ports"));
            }
            if excepts == 2 {
                assert!(known.remove("except"));
            }
            let keys: BTreeSet<String> = properties.keys().cloned().collect();
            assert_eq!(keys, known, "{}", path(kind, &way));
            tables += 1;
        }
    }
    assert!(tables >= 20, "{tables}");
}

/// Whether a value has a type that a schema allows.
fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == true {
        return value.is_i64() || value.is_string();
    }
    match schema["type"].as_str().unwrap() {
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("type {other}"),
    }
}

#[test]
fn schemas_have_the_types_and_words_that_the_walker_knows() {
    let (mut typed, mut enums) = (0, 0);
    for kind in DOCUMENTS {
        for (way, schema) in fields(kind) {
            let place = path(kind, &way);
            // True or text: of no type that a schema knows.
            if schema["x-kubernetes-preserve-unknown-fields"] == true {
                assert!(place.ends_with(".log"), "{place}");
                continue;
            }
            for value in [json!(true), json!(5), json!(1.5), json!("x"), json!(["x"]), json!({ "x": 1 }), Value::Null] {
                let wrong = findings_at(kind, &way, value.clone()).iter().any(|finding| finding.code == Code::Type);
                assert_eq!(!wrong, has_type(&schema, &value), "{place} {value}");
                typed += 1;
            }
            let refused = |value: &Value| {
                let findings = findings_at(kind, &way, value.clone());
                findings.iter().any(|finding| [Code::Value, Code::Type].contains(&finding.code))
            };
            let empty = match schema["type"].as_str() {
                Some("array") => Some((json!([]), "minItems")),
                Some("object") if !way.is_empty() => Some((json!({}), "minProperties")),
                _ => None,
            };
            if let Some((empty, bound)) = empty {
                assert_eq!(refused(&empty), schema[bound] == 1, "{place} {empty}");
            }
            if let Some(words_of) = schema["enum"].as_array() {
                for word in words_of {
                    assert!(!refused(word), "{place} {word}");
                }
                let findings = findings_at(kind, &way, json!("zzzzzzzz"));
                assert!(!findings.is_empty(), "{place}");
                let words_known = findings.iter().filter(|finding| finding.help.starts_with("it can be"));
                for known in words_known.flat_map(|finding| words(&finding.help)) {
                    assert_eq!(refused(&json!(known)), !words_of.contains(&json!(known)), "{place} {known}");
                }
                enums += 1;
            }
            for (bound, step) in [("minimum", -1), ("maximum", 1)] {
                if let (Some(bound), true) = (
                    schema[bound].as_i64(),
                    schema["x-kubernetes-int-or-string"] == true || schema["type"] == "integer",
                ) {
                    // What a number means may depend on other fields: a conflict is not a bad value.
                    assert!(!refused(&json!(bound)), "{place} {bound}");
                    assert!(refused(&json!(bound + step)), "{place} {}", bound + step);
                }
            }
        }
    }
    assert!(typed >= 500 && enums >= 15, "{typed} {enums}");
}

#[test]
fn what_a_schema_fills_in_is_what_is_meant_without() {
    let least = |kind: Kind| match kind {
        Kind::HostInterface => json!({ "match": { "name": "eth0" } }),
        Kind::HostNetworkSet => json!({ "cidrs": [] }),
        Kind::HostService => json!({ "ports": ["tcp/1"] }),
        Kind::HostTier => json!({ "order": 1, "default": "pass" }),
        Kind::HostPolicy => {
            let rule = json!({ "action": "allow", "limit": { "rate": 1 } });
            json!({ "interfaces": "all()", "ingress": [rule], "egress": [rule] })
        }
        _ => json!({ "set": "a" }),
    };
    let mut filled = 0;
    for kind in DOCUMENTS {
        let without = object::decode(&[an_object(kind, "x", least(kind))]);
        assert_eq!(lines(&without.findings), Vec::<String>::new());
        for (way, schema) in fields(kind) {
            let Some(default) = schema.get("default") else { continue };
            let pointer: String = way
                .iter()
                .map(|step| match step {
                    Step::Key(key) => format!("/{key}"),
                    Step::Item => "/0".to_owned(),
                })
                .collect();
            let mut spec = least(kind);
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = default.clone();
            let with = object::decode(&[an_object(kind, "x", spec)]);
            assert_eq!(lines(&with.findings), Vec::<String>::new());
            assert_eq!(meaning(&with.policy), meaning(&without.policy), "{pointer}");
            filled += 1;
        }
    }
    assert_eq!(filled, 7, "tier, stage, mode, two bursts, transport, mode of an expectation");
}

#[test]
fn definitions_are_as_checked_in() {
    let folder = Path::new("packaging/kubernetes/crds");
    // tests/manifests.rs looks at the list of them.
    let mut expected = BTreeSet::from(["kustomization.yaml".to_owned()]);
    for kind in Kind::ALL {
        let definition = crd::definition(kind).unwrap();
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        same(&folder.join(format!("{name}.yaml")), &crd::text(&[definition]));
        expected.insert(format!("{name}.yaml"));
    }
    let found: BTreeSet<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, expected);
}

/// What Kubernetes wants of a schema (structural schemas) and what we want of ours.
fn structural(place: &str, schema: &Value) -> usize {
    const KEYWORDS: &[&str] = &[
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    let keys = schema.as_object().unwrap();
    for key in keys.keys() {
        assert!(KEYWORDS.contains(&key.as_str()), "{place}: {key}");
    }
    let untyped = keys.contains_key("x-kubernetes-int-or-string") || place.ends_with(".log");
    assert_eq!(keys.contains_key("type"), !untyped, "{place}");
    assert_eq!(keys.contains_key("x-kubernetes-preserve-unknown-fields"), place.ends_with(".log"), "{place}");
    if let Some(format) = keys.get("format") {
        assert!(["int32", "int64", "date-time"].contains(&format.as_str().unwrap()), "{place}: {format}");
    }
    if schema["type"] == "array" {
        assert!(keys.contains_key("maxItems"), "{place} has no bound");
    }
    let mut count = 1;
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        let inner_place = format!("{place}.{key}");
        assert!(inner["description"].as_str().is_some_and(|text| text.len() > 4), "{inner_place} has no description");
        count += structural(&inner_place, inner);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            count += structural(&format!("{place}[]"), &schema[part]);
        }
    }
    count
}

#[test]
fn definitions_are_what_an_api_server_takes_and_kubectl_shows() {
    let mut names = BTreeMap::new();
    for kind in Kind::ALL {
        let definition = crd::definition(kind).unwrap();
        let spec = &definition["spec"];
        assert_eq!((spec["group"].as_str(), spec["scope"].as_str()), (Some("nodewall.dev"), Some("Cluster")));
        assert_eq!(spec["names"]["categories"], json!(["nodewall"]));
        let version = &spec["versions"][0];
        // What is said about nodes as a whole needs nobody's judgement.
        let subresources = if kind == Kind::HostPeers { Value::Null } else { json!({ "status": {} }) };
        assert_eq!((version["name"].as_str(), &version["subresources"]), (Some("v1alpha1"), &subresources));
        let schema = &version["schema"]["openAPIV3Schema"];
        structural(kind.name(), &without(schema, "metadata"));
        for column in version["additionalPrinterColumns"].as_array().unwrap() {
            let path = column["jsonPath"].as_str().unwrap();
            let pointer = path
                .replace('.', "/properties/")
                .replace("/properties/enforced", "")
                .replace("/properties/partial", "")
                .replace("/properties/bypassed", "");
            let known = path == ".metadata.creationTimestamp" || schema.pointer(&pointer).is_some();
            assert!(known, "{}: {path}", kind.name());
        }
        let columns: Vec<&str> = version["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|column| column["priority"].is_null())
            .map(|column| column["name"].as_str().unwrap())
            .collect();
        names.insert(spec["names"]["shortNames"][0].as_str().unwrap().to_owned(), columns.join(" "));
    }
    let expected = [
        ("hexp", "Set Verdict Mode Age"),
        ("hif", "Role Age"),
        ("hns", "Age"),
        ("hp", "Tier Order Stage Mode Age"),
        ("hpe", "Age"),
        ("hs", "Node Mode Generation In sync Enforced Partial Bypassed Age"),
        ("hsvc", "Ports Transport Age"),
        ("ht", "Order Default Age"),
    ];
    assert_eq!(names, expected.map(|(name, columns)| (name.to_owned(), columns.to_owned())).into());
}

fn without(value: &Value, key: &str) -> Value {
    let mut value = value.clone();
    value["properties"].as_object_mut().unwrap().remove(key);
    value
}

#[test]
fn the_state_of_a_node_with_sixteen_nics_is_small() {
    let time = || "2026-11-26T01:36:16Z".to_owned();
    let condition = |kind: &str| Condition {
        kind: kind.to_owned(),
        status: "False".to_owned(),
        reason: "PolicyRefused".to_owned(),
        message: "HostPolicy/kubelet spec.ingress[12].from.cidrs[3]: \"10.0.0.1/8\" has host bits set; ".repeat(2),
        last_transition_time: time(),
        observed_generation: Some(17),
    };
    let interface = |number: usize| InterfaceState {
        name: format!("enp193s0f{number:02}np0"),
        role: "rail".to_owned(),
        rail: Some(format!("rail{number}")),
        coverage: Some("bridge/tc-first".to_owned()),
        addresses: vec![
            format!("100.100.{number}.105/24"),
            format!("fd00:1234:5678:9abc:{number:04x}:1111:2222:3333/64"),
            format!("fe80::{number:04x}:1111:2222:3333/64"),
        ],
    };
    let status = HostStateStatus {
        version: Some("0.1.0".to_owned()),
        mode: Some("enforce".to_owned()),
        generation: Some(123_456),
        hash: Some("0".repeat(32)),
        policies: (0..40).map(|number| (format!("default/a-policy-of-somebody-{number:02}"), "0".repeat(8))).collect(),
        policies_omitted: Some(12),
        defaults: Some("0".repeat(8)),
        failsafe: Some("0".repeat(8)),
        since: Some(time()),
        in_sync: Some(true),
        conditions: ["Ready", "InSync", "Degraded", "Unconfirmed"].map(condition).into(),
        coverage: ["enforced", "partial", "bypassed", "bridge/tc-first"].map(|state| (state.to_owned(), 16)).into(),
        drift: Some(DriftCount { count: 123, last: Some(time()) }),
        error: Some("x".repeat(500)),
        interfaces: (0..18).map(interface).collect(),
        omitted: Some(40),
    };
    let text = serde_json::to_string(&status).unwrap();
    assert!(text.len() < 8192, "{} bytes", text.len());
    // The definition has room for every field, under the name that is written.
    let written: BTreeSet<String> =
        serde_json::from_str::<Map<String, Value>>(&text).unwrap().keys().cloned().collect();
    let defined: BTreeSet<String> =
        schema(Kind::HostState)["properties"]["status"]["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(written, defined);
}

/// Exit code, stdout and stderr of the program, given this on its standard input.
fn nodewall(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who has refused its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A folder for each case: `input.toml` or `input.yaml`, what is printed, and what is said beside it.
#[test]
fn conversions_are_as_written_down() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir("tests/cases/objects").unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 8, "{cases:?}");
    for case in cases {
        let input = ["input.toml", "input.yaml", "input.json"].map(|name| case.join(name));
        let input = input.iter().find(|path| path.exists()).unwrap();
        let (code, stdout, stderr) = nodewall(&["convert", "--color", "never", input.to_str().unwrap()], "");
        assert!([0, 5].contains(&code), "{}: {code}", case.display());
        assert_eq!(code == 5, stderr.contains("error["), "{}: {stderr}", case.display());
        let printed = if input.extension().unwrap() == "toml" { "expected.yaml" } else { "expected.toml" };
        if code == 0 {
            same(&case.join(printed), &stdout);
        } else {
            assert_eq!(stdout, "", "{}", case.display());
        }
        same(&case.join("expected.txt"), &stderr);
    }
}

#[test]
fn convert_reads_the_standard_input_and_prints_what_is_asked_for() {
    let toml = "[[tier]]\nname = \"a\"\norder = 1\ndefault = \"pass\"\n";
    let yaml = "---\napiVersion: nodewall.dev/v1alpha1\nkind: HostTier\nmetadata:\n  name: a\nspec:\n  order: 1\n  default: pass\n";
    assert_eq!(nodewall(&["convert"], toml), (0, yaml.to_owned(), String::new()));
    assert_eq!(nodewall(&["convert", "-"], yaml), (0, toml.to_owned(), String::new()));
    assert_eq!(nodewall(&["convert", "--to", "toml"], toml).1, toml);
    assert_eq!(nodewall(&["convert", "--to", "yaml"], yaml).1, yaml);
    let (code, json, stderr) = nodewall(&["convert", "--to", "json"], toml);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["items"][0]["kind"], "HostTier");
    assert_eq!(nodewall(&["convert", "--json"], toml).1, json);
    assert_eq!(nodewall(&["convert"], &json).1, toml);
    let commented = format!("# why\n{toml}# because\n");
    assert_eq!(
        nodewall(&["convert"], &commented),
        (0, yaml.to_owned(), "nodewall: comments are not converted\n".to_owned())
    );
}

#[test]
fn convert_says_by_its_exit_code_what_is_wrong() {
    let (code, stdout, stderr) = nodewall(&["convert", "--color", "never"], "[[tier]]\nname = \"a\"\norder = 1\n");
    assert_eq!((code, stdout.as_str()), (5, ""));
    assert!(stderr.contains("standard input:1:1\n") && stderr.contains("[[tier]] has no `default`"), "{stderr}");
    assert_eq!(nodewall(&["convert", "nowhere.toml"], "").0, 5);
    assert_eq!(nodewall(&["convert", "--to", "xml"], "").0, 2);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tier = "[[tier]]\nname = \"a\"\norder = 1\ndefault = \"pass\"\n";
    let (toml, other) = (file("a.toml", tier), file("b.toml", tier));
    let (code, yaml, _) = nodewall(&["convert", &toml], "");
    assert_eq!(code, 0);
    let yaml = file("c.yaml", &yaml);
    let (code, _, stderr) = nodewall(&["convert", &toml, &yaml], "");
    assert_eq!(code, 2);
    assert!(stderr.contains("say with --to"), "{stderr}");
    assert_eq!(nodewall(&["convert", "--to", "toml", &toml, &yaml], "").0, 0);
    let rule = "{ action = \"deny\" },".repeat(4097);
    let long = format!("[[policy]]\nname = \"a\"\ninterfaces = \"all()\"\ningress = [{rule}]\n");
    let (code, _, stderr) = nodewall(&["convert", "--color", "never"], &long);
    assert_eq!(code, 5);
    assert!(stderr.contains("spec.ingress has 4097 items, and 4096 at most in an object"), "{stderr}");
    assert_eq!(nodewall(&["convert", "--to", "toml"], &long).0, 0);
    let (code, _, stderr) = nodewall(&["convert", "--color", "never", &toml, &other], "");
    assert_eq!(code, 5);
    assert!(stderr.contains("two HostTiers would have the name \"a\"") && stderr.contains("a.toml:1:1"), "{stderr}");
}

#[test]
fn crd_prints_one_definition_or_all() {
    let (code, all, stderr) = nodewall(&["crd"], "");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(all.matches("\nkind: CustomResourceDefinition\n").count(), Kind::ALL.len());
    let (code, one, _) = nodewall(&["crd", "hostpolicy"], "");
    let checked_in = fs::read_to_string("packaging/kubernetes/crds/hostpolicies.nodewall.dev.yaml").unwrap();
    assert!(code == 0 && one == checked_in, "not as checked in");
    let (code, json, _) = nodewall(&["--json", "crd", "HostState"], "");
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &list["kind"], &list["items"][0]["metadata"]["name"]),
        (0, &"List".into(), &"hoststates.nodewall.dev".into())
    );
    let (code, _, stderr) = nodewall(&["crd", "HostPolicies"], "");
    assert_eq!(code, 2);
    assert!(stderr.contains("did you mean \"HostPolicy\"?"), "{stderr}");
}

fn some<T: std::fmt::Debug + Clone + 'static>(
    strategy: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = Option<T>> + Clone {
    prop::option::of(strategy)
}

/// A table of the keys that are there.
fn table(fields: Vec<(&str, Option<Value>)>) -> Value {
    Value::Object(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

fn value_of(values: Vec<Value>) -> impl Strategy<Value = Value> + Clone {
    select(values)
}

fn entity(ports: bool) -> impl Strategy<Value = Value> + Clone {
    let cidrs = subsequence(vec!["10.0.0.0/8", "192.0.2.1", "fd00::/8", "::/0"], 1..3).prop_map(Value::from);
    let sets = subsequence(vec!["a", "b.c", "d-e"], 1..3).prop_map(Value::from);
    let selects = value_of(vec!["all()".into(), "zone == 'z\"1'".into(), "!has(x) && y in {'a', 'b'}".into()]);
    let ports_of = subsequence(vec![json!(22), json!("80"), json!("1024-65535"), json!(0)], 1..3).prop_map(Value::from);
    let ports_of = some(ports_of).prop_map(move |found| found.filter(|_| ports));
    let leaf = (some(cidrs.clone()), some(sets), some(selects), some(Just(json!(true)))).prop_map(
        |(cidrs, sets, select, local)| {
            table(vec![
                ("cidrs", Some(cidrs.unwrap_or_else(|| json!(["198.51.100.0/24"])))),
                ("sets", sets),
                ("select", select),
                ("local", local),
            ])
        },
    );
    (leaf.clone(), some(leaf.clone()), some(leaf), ports_of).prop_map(|(mut entity, except, inner, ports)| {
        if let Some(mut except) = except {
            if let Some(inner) = inner {
                except["except"] = inner;
            }
            entity["except"] = except;
        }
        if let Some(ports) = ports {
            entity["ports"] = ports;
        }
        entity
    })
}

/// What a rule says about the packet's upper layer, without a conflict; whether `from` and `to` may have ports.
fn upper() -> impl Strategy<Value = (Value, bool)> + Clone {
    let ports = subsequence(vec![json!(22), json!("80"), json!("8000-8010"), json!(65535)], 1..4).prop_map(Value::from);
    let protocol = value_of(vec!["tcp".into(), "UDP".into(), json!(132), json!("33")]);
    prop_oneof![
        Just((json!({}), false)),
        subsequence(vec!["kubelet", "ssh"], 1..3).prop_map(|services| (json!({ "services": services }), false)),
        (protocol, some(ports)).prop_map(|(protocol, not)| {
            let not = not.map(|ports| json!({ "ports": ports, "protocol": "esp" }));
            (table(vec![("protocol", Some(protocol)), ("not", not)]), true)
        }),
        value_of(vec![
            json!({ "protocol": "icmp", "icmp": { "type": 3, "code": 4 } }),
            json!({ "icmp": { "type": "echo-request" } }),
            json!({ "family": 6, "icmp": { "type": "135" } }),
            json!({ "protocol": 58, "not": { "icmp": { "type": "nd-redirect" } } }),
            json!({ "protocol": 47, "family": 4 }),
        ])
        .prop_map(|upper| (upper, false)),
    ]
}

fn rule(egress: bool) -> impl Strategy<Value = Value> + Clone {
    let action = value_of(["allow", "deny", "reject", "pass", "log"].map(Value::from).into());
    let log = value_of(vec![json!(true), json!(false), json!("it's #1: ~"), json!("")]);
    let limit = value_of(vec![
        json!({ "rate": 1 }),
        json!({ "rate": "10/minute", "burst": 65535, "per": "source" }),
        json!({ "rate": "7", "burst": 1 }),
    ]);
    let users = subsequence(vec![json!(0), json!("nobody"), json!("DOMAIN\\some one"), json!(4_294_967_294_u32)], 1..3)
        .prop_map(Value::from);
    let units =
        subsequence(vec!["sshd.service", "system.slice/ollama.service", "user-1000.slice"], 1..3).prop_map(Value::from);
    let comment = "[ -~é]{0,12}".prop_map(Value::from);
    (
        action,
        upper(),
        some(entity(true)),
        some(entity(true)),
        some(log),
        some(limit),
        (some(users.clone()), some(users), some(units)),
        some(comment),
    )
        .prop_map(move |(action, (upper, ports), from, to, log, limit, (users, groups, units), comment)| {
            let entity = |entity: Option<Value>| {
                entity.map(|mut entity| {
                    if !ports {
                        entity.as_object_mut().unwrap().remove("ports");
                    }
                    entity
                })
            };
            let process = |value: Option<Value>| value.filter(|_| egress);
            let mut rule = table(vec![
                ("action", Some(action)),
                ("from", entity(from)),
                ("to", entity(to)),
                ("log", log),
                ("limit", limit),
                ("users", process(users)),
                ("groups", process(groups)),
                ("units", process(units)),
                ("comment", comment),
            ]);
            rule.as_object_mut().unwrap().extend(upper.as_object().unwrap().clone());
            rule
        })
}

fn policy() -> impl Strategy<Value = Value> {
    let stage = some(value_of(["host", "forward", "prednat", "untracked"].map(Value::from).into()));
    let mode = some(value_of(["enforce", "audit"].map(Value::from).into()));
    let expires = value_of(vec!["2027-01-31T18:00:00Z".into(), "2030-06-01T00:00:00.5+02:00".into()]);
    let selectors =
        value_of(vec!["all()".into(), "role in {'rail', 'mgmt'}".into(), "name starts with \"e\\\\\"".into()]);
    (
        (stage, mode, some(expires), some(Just("bypass".into())), some(any::<i64>())),
        (selectors.clone(), some(selectors)),
        some(prop::collection::vec(rule(false), 0..4)),
        prop::collection::vec(rule(true), 0..4),
        any::<bool>(),
    )
        .prop_map(|((stage, mode, expires, acknowledge, order), (interfaces, nodes), ingress, egress, without)| {
            let stage_is = |word: &str| stage.as_ref().is_some_and(|stage| stage == word);
            let host = stage.is_none() || stage_is("host");
            let strip = |mut rule: Value| {
                if !host {
                    ["users", "groups", "units"]
                        .iter()
                        .for_each(|key| drop(rule.as_object_mut().unwrap().remove(*key)));
                }
                rule
            };
            let egress: Vec<Value> = egress.into_iter().map(strip).collect();
            let no_egress = stage_is("prednat") || (without && ingress.is_some());
            let ingress = if no_egress { Some(ingress.unwrap_or_default()) } else { ingress };
            table(vec![
                ("tier", Some("platform".into())),
                ("order", order.map(Value::from)),
                ("interfaces", Some(interfaces)),
                ("nodes", nodes),
                ("stage", stage),
                ("mode", mode),
                ("expires", expires),
                ("acknowledge", acknowledge),
                ("ingress", ingress.map(Value::from)),
                ("egress", (!no_egress).then(|| Value::from(egress))),
            ])
        })
}

fn object() -> impl Strategy<Value = Value> {
    let labels = some(value_of(vec![json!({ "zone": "z1", "example.org/x": "yes \"\u{7f}" }), json!({})]));
    let set =
        (subsequence(vec!["10.0.0.0/8", "::/0", "192.0.2.1"], 0..3), labels.clone()).prop_map(|(cidrs, labels)| {
            (Kind::HostNetworkSet, table(vec![("cidrs", Some(cidrs.into())), ("labels", labels)]))
        });
    let service = (
        subsequence(vec!["tcp/1", "udp/30000-32767", "icmp/echo-request", "esp", "47"], 1..4),
        some(Just("rdma".into())),
    )
        .prop_map(|(ports, transport)| {
            (Kind::HostService, table(vec![("ports", Some(ports.into())), ("transport", transport)]))
        });
    let tier = (any::<i64>(), select(vec!["deny", "pass"]))
        .prop_map(|(order, default)| (Kind::HostTier, json!({ "order": order, "default": default })));
    let matches = value_of(vec![
        json!({ "name": "e[a-c]*", "mac": "02:42:ac:11:00:02" }),
        json!({ "pci": "C1:00.0", "link": "infiniband" }),
    ]);
    let interface = (
        matches,
        labels.prop_map(|labels| labels.filter(|labels| *labels != json!({}))),
        some(Just("rail".into())),
        some(Just("bypassed".into())),
    )
        .prop_map(|(matches, labels, role, coverage)| {
            (
                Kind::HostInterface,
                table(vec![("match", Some(matches)), ("labels", labels), ("role", role), ("coverage", coverage)]),
            )
        });
    let expect =
        (some("[ -~]{1,80}".prop_map(Value::from)), some(Just(json!(["10.0.0.0/8"]))), some(Just("warn".into())))
            .prop_map(|(name, example, mode)| {
                (
                    Kind::HostExpectation,
                    table(vec![("name", name), ("set", Some("a".into())), ("example", example), ("mode", mode)]),
                )
            });
    let policy = policy().prop_map(|spec| (Kind::HostPolicy, spec));
    prop_oneof![1 => set, 1 => service, 1 => tier, 1 => interface, 1 => expect, 4 => policy]
        .prop_map(|(kind, spec)| an_object(kind, "x.y-1", spec))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever can be said as an object can be said in a file, and means the same.
    #[test]
    fn any_object_means_the_same_in_toml_yaml_and_json(object in object()) {
        let direct = object::decode(std::slice::from_ref(&object));
        prop_assert_eq!(lines(&direct.findings), Vec::<String>::new(), "{}", object);
        let text = object.to_string().replace('\u{7f}', "\\u007f");
        let (documents, findings) = convert::from_objects(&Source::new("x.json", text.as_str()));
        prop_assert_eq!(lines(&findings), Vec::<String>::new(), "{}", text);
        let toml = convert::to_toml(&documents);
        let from_toml = source::decode_text("x.toml", &toml);
        prop_assert_eq!(lines(&from_toml.findings), Vec::<String>::new(), "{}", toml);
        prop_assert_eq!(meaning(&from_toml.policy), meaning(&direct.policy), "{}", toml);
        let (again, _) = convert::from_toml(&Source::new("x.toml", toml.as_str()));
        let yaml = convert::to_yaml(&convert::to_objects(&again));
        let (last, findings) = convert::from_objects(&Source::new("x.yaml", yaml.as_str()));
        prop_assert_eq!(lines(&findings), Vec::<String>::new(), "{}", yaml);
        let decoded = object::decode(&convert::to_objects(&last));
        prop_assert_eq!(meaning(&decoded.policy), meaning(&direct.policy), "{}", yaml);
    }

    /// Whatever stands in a file of objects, something is said and nothing breaks.
    #[test]
    fn no_text_does_harm(
        random in "(.|[\\[\\]{}:,&*!|>'\"%#\n -]){0,200}",
        object in object(),
        cut in any::<prop::sample::Index>(),
        insert in "[\\[\\]{}:,&*!|>'\"%#\n\t -]{0,3}",
    ) {
        let source = Source::new("objects", object.to_string());
        let (documents, _) = convert::from_objects(&source);
        let mut yaml = convert::to_yaml(&convert::to_objects(&documents));
        let mut at = cut.index(yaml.len() + 1);
        while !yaml.is_char_boundary(at) {
            at -= 1;
        }
        yaml.insert_str(at, &insert);
        for text in [random, yaml] {
            let source = Source::new("objects", text.as_str());
            let (documents, findings) = convert::from_objects(&source);
            let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
            prop_assert!(!bad || documents.is_empty());
            for finding in &findings {
                prop_assert!(finding.place.end <= text.len() + 1, "{}: {text:?}", line(finding));
            }
            let texts = [(source.file.clone(), source.text.clone())].into();
            prop_assert!(findings.is_empty() == render(&findings, &texts, false).is_empty());
        }
    }
}
