//! What is below packaging/kubernetes: it can be read, every file is installed by some kustomization, roles name what exists and give nodes no
//! more than they need, and the settings in it are settings. `make test-rbac` asks real API servers about the same files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nodewall::config;
use nodewall::policy::clusters::Contribution;
use nodewall::source::object::Kind;
use nodewall::text::render::line;
use nodewall::text::tree::{Node, Source, Value as Tree};
use nodewall::text::yaml;
use serde_json::{Map, Value, json};

const FOLDER: &str = "packaging/kubernetes";
/// Digests of nodes, which the controller writes: a kind of its own.
const PEERS: &str = "hostpeers";

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// Every file of the tree, sorted.
fn all_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(Path::new(FOLDER), &mut found);
    found.sort();
    found
}

fn json(node: &Node<'_>) -> Value {
    match &node.value {
        Tree::Null => Value::Null,
        Tree::String(text) => text.as_ref().into(),
        Tree::Integer(number) => (*number).into(),
        Tree::Boolean(value) => (*value).into(),
        Tree::Array(items) => items.iter().map(json).collect(),
        Tree::Table(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.to_string(), json(&entry.node))).collect::<Map<_, _>>())
        }
        Tree::Float | Tree::Datetime(_) => panic!("no manifest of ours has {}", node.value.kind()),
    }
}

/// The documents of a file, by the reader that refuses what YAML 1.1, which kubectl reads, and YAML 1.2 understand differently.
fn documents(path: &Path) -> Vec<Value> {
    let source = Source::new(path.display().to_string(), fs::read_to_string(path).unwrap());
    let (nodes, findings) = yaml::parse(&source);
    assert_eq!(findings.iter().map(line).collect::<Vec<_>>(), Vec::<String>::new());
    nodes.iter().map(json).collect()
}

/// Every object of the tree, with the folder that it is in.
static OBJECTS: LazyLock<Vec<(String, Value)>> = LazyLock::new(|| {
    let manifests = all_files().into_iter().filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name != "kustomization.yaml" && (name.ends_with(".yaml") || name.ends_with(".yaml.in"))
    });
    let with_folder = |path: PathBuf| {
        let folder = path.parent().unwrap().strip_prefix(FOLDER).unwrap().to_str().unwrap().to_owned();
        documents(&path).into_iter().map(move |object| (folder.clone(), object))
    };
    manifests.flat_map(with_folder).collect()
});

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value}"))
}

fn words(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

/// The one object of this kind, name and folder.
fn object(folder: &str, kind: &str, name: &str) -> &'static Value {
    let named = |(at, object): &&(String, Value)| {
        at == folder && object["kind"] == kind && text(object, "/metadata/name") == name
    };
    let found: Vec<_> = OBJECTS.iter().filter(named).collect();
    assert_eq!(found.len(), 1, "{folder}: {kind} {name}");
    &found[0].1
}

#[test]
fn every_file_is_read_and_in_a_kustomization() {
    let mut expected: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for path in all_files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "README.md" | "kustomization.yaml" | "node.yaml.in" => {}
            _ => {
                assert!(name.ends_with(".yaml"), "{}", path.display());
                let of_folder = expected.entry(path.parent().unwrap().to_owned()).or_default();
                assert!(of_folder.insert(name.to_owned()));
            }
        }
        if name != "README.md" {
            assert!(!documents(&path).is_empty(), "{}", path.display());
        }
    }
    let tree = Path::new(FOLDER);
    expected.insert(tree.to_owned(), ["admission", "crds", "rbac"].map(str::to_owned).into());
    expected.insert(tree.join("older"), ["../crds", "../rbac"].map(str::to_owned).into());
    let mut listed: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for path in all_files().into_iter().filter(|path| path.ends_with("kustomization.yaml")) {
        let [kustomization] = &documents(&path)[..] else { panic!("{}", path.display()) };
        let resources = words(&kustomization["resources"]).into_iter().map(str::to_owned).collect();
        listed.insert(path.parent().unwrap().to_owned(), resources);
    }
    assert_eq!(listed, expected);
}

#[test]
fn names_are_there_once_and_in_the_namespace() {
    let mut seen = BTreeSet::new();
    for (folder, object) in OBJECTS.iter() {
        let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
        assert!(seen.insert((kind.to_owned(), name.to_owned())), "{folder}: {kind} {name} is there twice");
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let namespaced =
            ["ServiceAccount", "ConfigMap", "DaemonSet", "Deployment", "Role", "RoleBinding"].contains(&kind);
        assert_eq!(namespace, namespaced.then_some("nodewall"), "{kind} {name}");
    }
}

#[test]
fn roles_name_what_exists_and_verbs_that_exist() {
    let known: BTreeSet<String> =
        Kind::ALL.iter().map(|kind| kind.plural().to_owned()).chain([PEERS.to_owned()]).collect();
    let verbs =
        BTreeSet::from(["get", "list", "watch", "create", "delete", "deletecollection", "patch", "update", "approve"]);
    let mut rules = 0;
    for (folder, role) in OBJECTS.iter() {
        for rule in role["rules"].as_array().into_iter().flatten() {
            rules += 1;
            let name = text(role, "/metadata/name");
            let (groups, used) = (words(&rule["apiGroups"]), words(&rule["verbs"]));
            assert!(!groups.is_empty() && !used.is_empty(), "{folder}: {name}: {rule}");
            assert!(used.is_subset(&verbs), "{folder}: {name}: {used:?}");
            for resource in words(&rule["resources"]) {
                assert!(resource != "*", "{folder}: {name} gives everything");
                if groups.contains("nodewall.dev") {
                    let plural = resource.strip_suffix("/status").unwrap_or(resource);
                    assert!(known.contains(plural), "{folder}: {name}: there is no {resource}");
                }
            }
        }
    }
    assert!(rules > 15, "{rules}");
    let bindings = OBJECTS
        .iter()
        .filter(|(_, object)| text(object, "/kind").ends_with("RoleBinding") || text(object, "/kind") == "RoleBinding");
    for (folder, binding) in bindings {
        let role = text(binding, "/roleRef/name");
        object(folder, text(binding, "/roleRef/kind"), role);
        for subject in binding["subjects"].as_array().unwrap() {
            let name = text(subject, "/name");
            match text(subject, "/kind") {
                "ServiceAccount" => assert!(
                    OBJECTS
                        .iter()
                        .any(|(_, object)| object["kind"] == "ServiceAccount" && object["metadata"]["name"] == name),
                    "{role}: {name}"
                ),
                // Who has a bootstrap token asks for a certificate, and nothing else.
                "Group" if role == "nodewall-join" => {
                    assert_eq!(name, nodewall::identity::BOOTSTRAP_GROUP);
                    let rules = &object(folder, "ClusterRole", role)["rules"];
                    let wanted = serde_json::json!([{ "apiGroups": ["certificates.k8s.io"],
                        "resources": ["certificatesigningrequests"], "verbs": ["create", "get"] }]);
                    assert_eq!(*rules, wanted);
                }
                "Group" => assert_eq!(name, "nodewall:nodes", "{role}"),
                "User" => assert_eq!(name, "nodewall:node:NODE", "{role}"),
                other => panic!("{role}: {other}"),
            }
        }
    }
}

#[test]
fn a_node_writes_nothing_but_its_state_and_a_certificate_request() {
    let reading = BTreeSet::from(["get", "list", "watch"]);
    // By what is written: (resource, verbs), of what is bound to nodes in each folder.
    let written = |folder: &str, name: &str| -> BTreeSet<(String, String)> {
        let role = object(folder, "ClusterRole", name);
        let rules = role["rules"].as_array().unwrap();
        let of_rule = |rule: &Value| {
            let verbs: Vec<&str> = words(&rule["verbs"]).into_iter().filter(|verb| !reading.contains(verb)).collect();
            let verbs = verbs.join(" ");
            words(&rule["resources"]).iter().map(|name| ((*name).to_owned(), verbs.clone())).collect::<Vec<_>>()
        };
        rules.iter().flat_map(of_rule).filter(|(_, verbs)| !verbs.is_empty()).collect()
    };
    let set = |pairs: &[(&str, &str)]| -> BTreeSet<(String, String)> {
        pairs.iter().map(|(name, verbs)| ((*name).to_owned(), (*verbs).to_owned())).collect()
    };
    let state = set(&[("hoststates", "create patch update"), ("hoststates/status", "patch update")]);
    assert_eq!(written("rbac", "nodewall-node"), set(&[("certificatesigningrequests", "create")]));
    assert_eq!(written("calico", "nodewall-node-calico"), set(&[]));
    assert_eq!(written("admission", "nodewall-node-state"), state);
    assert_eq!(written("older", "nodewall:node:NODE"), state);
    // Without the policy, a rule is for one name.
    let role = object("older", "ClusterRole", "nodewall:node:NODE");
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["resourceNames"], json!(["NODE"]), "{rule}");
    }
    // What nodes have beside that is in no other folder.
    let bound: BTreeSet<String> = OBJECTS
        .iter()
        .filter(|(_, object)| {
            let subjects = object["subjects"].as_array().into_iter().flatten();
            let mut names = subjects.map(|subject| text(subject, "/name"));
            names.any(|name| name.starts_with("nodewall:node") || name == "nodewall-node")
        })
        .map(|(folder, object)| format!("{folder} {}", text(object, "/roleRef/name")))
        .collect();
    let roles = [
        "rbac nodewall-node",
        "calico nodewall-node-calico",
        "admission nodewall-node-state",
        "older nodewall:node:NODE",
    ];
    assert_eq!(bound, roles.map(str::to_owned).into());
}

#[test]
fn everybody_who_reads_reads_every_kind_and_editors_write_every_document() {
    let of_ours = |name: &str, folder: &str, verb: &str| -> BTreeSet<String> {
        let role = object(folder, "ClusterRole", name);
        let rules = role["rules"].as_array().unwrap().iter();
        let ours = rules
            .filter(|rule| words(&rule["apiGroups"]).contains("nodewall.dev") && words(&rule["verbs"]).contains(verb));
        ours.flat_map(|rule| words(&rule["resources"]).into_iter().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let mut every: BTreeSet<String> = Kind::ALL.iter().map(|kind| kind.plural().to_owned()).collect();
    every.insert(PEERS.to_owned());
    for (name, folder) in [("nodewall-node", "rbac"), ("nodewall-view", "rbac"), ("nodewall-controller", "controller")]
    {
        assert_eq!(of_ours(name, folder, "watch"), every, "{name}");
    }
    let documents: Vec<&str> =
        Kind::ALL.iter().filter(|kind| kind.table().is_some()).map(|kind| kind.plural()).collect();
    let owned: BTreeSet<String> = documents.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(of_ours("nodewall-edit", "rbac", "update"), owned);
    let mut statuses: BTreeSet<String> = documents.iter().map(|name| format!("{name}/status")).collect();
    statuses.insert(PEERS.to_owned());
    assert_eq!(of_ours("nodewall-controller", "controller", "patch"), statuses, "a controller never writes a policy");
}

#[test]
fn the_controller_may_tell_of_nodes_and_delete_what_they_leave() {
    let role = object("controller", "ClusterRole", "nodewall-controller");
    let may = |group: &str, resource: &str, verb: &str| {
        role["rules"].as_array().unwrap().iter().any(|rule| {
            let has = |key: &str, word: &str| words(&rule[key]).contains(word);
            has("apiGroups", group) && has("resources", resource) && has("verbs", verb)
        })
    };
    for (group, resource, verbs) in [
        ("nodewall.dev", "hoststates", &["get", "list", "delete"][..]),
        ("", "nodes", &["list"]),
        ("events.k8s.io", "events", &["create"]),
    ] {
        for verb in verbs {
            assert!(may(group, resource, verb), "{verb} {resource}");
        }
    }
    for verb in ["create", "patch", "update", "deletecollection"] {
        assert!(!may("nodewall.dev", "hoststates", verb), "{verb}");
    }
}

#[test]
fn the_policy_for_states_holds_and_fails_closed() {
    let policy = object("admission", "ValidatingAdmissionPolicy", "nodewall-hoststates");
    assert_eq!(policy["apiVersion"], "admissionregistration.k8s.io/v1");
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let [rule] = &policy["spec"]["matchConstraints"]["resourceRules"].as_array().unwrap()[..] else { panic!() };
    assert_eq!(rule["resources"], json!(["hoststates", "hoststates/status"]));
    assert_eq!(rule["operations"], json!(["CREATE", "UPDATE", "DELETE"]));
    let binding = object("admission", "ValidatingAdmissionPolicyBinding", "nodewall-hoststates");
    assert_eq!(binding["spec"], json!({ "policyName": "nodewall-hoststates", "validationActions": ["Deny"] }));
}

#[test]
fn the_settings_of_the_daemonset_are_settings() {
    let map = object("daemonset", "ConfigMap", "nodewall-node");
    let (config, findings) = config::decode_text("nodewall.toml", text(map, "/data/nodewall.toml"));
    let knows_nodes = Contribution::ALL.iter().any(|each| each.name() == "nodes");
    let findings: Vec<String> =
        findings.iter().map(line).filter(|found| knows_nodes || !found.contains("\"nodes\"")).collect();
    assert_eq!(findings, Vec::<String>::new());
    if let [cluster] = &config.clusters[..] {
        // It is where the DaemonSet has the same ConfigMap.
        assert_eq!(cluster.kubeconfig, Path::new("/etc/nodewall/cluster.kubeconfig"));
    } else {
        assert!(!knows_nodes, "{:?}", config.clusters);
    }
    let source = Source::new("cluster.kubeconfig", text(map, "/data/cluster.kubeconfig"));
    let (nodes, findings) = yaml::parse(&source);
    assert!(findings.is_empty(), "{findings:?}");
    let kubeconfig = json(&nodes[0]);
    let daemonset = object("daemonset", "DaemonSet", "nodewall");
    let pod = &daemonset["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let mounted = |path: &str| {
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        mounts.map(|mount| text(mount, "/mountPath")).any(|mount| Path::new(path).parent().unwrap() == Path::new(mount))
    };
    let token = text(&kubeconfig, "/users/0/user/tokenFile");
    let authority = text(&kubeconfig, "/clusters/0/cluster/certificate-authority");
    for path in ["/etc/nodewall/nodewall.toml", "/etc/nodewall/cluster.kubeconfig", token, authority] {
        assert!(mounted(path), "{path}");
    }
    // Its address is one of those that the rules let the node reach.
    assert_eq!(nodewall::config::kubeconfig::api_servers(text(map, "/data/cluster.kubeconfig")).len(), 1);
    assert_eq!(container["securityContext"]["privileged"], false);
    assert_eq!(container["securityContext"]["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }));
    assert_eq!((&pod["hostNetwork"], pod.get("hostPID")), (&json!(true), None));
    let volumes: BTreeSet<&str> =
        pod["volumes"].as_array().unwrap().iter().map(|volume| text(volume, "/name")).collect();
    let mounts: BTreeSet<&str> =
        container["volumeMounts"].as_array().unwrap().iter().map(|mount| text(mount, "/name")).collect();
    assert_eq!(volumes, mounts);
}
