//! `nodewall fleet status` against an API: what it prints, and its exit codes.

use std::path::Path;
use std::process::Command;

use hyper::Method;
use nodewall::fleet::api::Api;
use serde_json::{Value as Json, json};

use super::stand_in::StandIn;
use super::survey::{api, documents};

/// Exit code, stdout and stderr, with this kubeconfig and nothing else to go by.
fn status(kubeconfig: &Path, arguments: &[&str]) -> (i32, String, String) {
    run(&[&["--kubeconfig", kubeconfig.to_str().unwrap()], arguments].concat(), &[])
}

fn run(arguments: &[&str], environment: &[(&str, &Path)]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("nodewall.toml"), "").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .args(["--config", "nodewall.toml", "fleet", "status"])
        .args(arguments)
        .current_dir(folder.path())
        .env_remove("KUBECONFIG")
        .env("HOME", folder.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A server with the documents.
fn server() -> (StandIn, Api) {
    let server = StandIn::start();
    for object in documents() {
        let kind = object["kind"].as_str().unwrap();
        let kind = nodewall::source::object::Kind::by_name(kind).unwrap();
        let mut listed = object.clone();
        // As a server lists it.
        listed.as_object_mut().unwrap().retain(|field, _| field == "metadata" || field == "spec");
        server.put(kind.plural(), object["metadata"]["name"].as_str().unwrap(), listed);
    }
    (server, api(&documents(), &["own"]))
}

/// A node, and what nodewall says of it: what the API says, but for this policy.
fn put(server: &StandIn, api: &Api, number: usize, lacks: Option<&str>) {
    let name = format!("gpu-{number:03}");
    server.put("nodes", &name, json!({ "metadata": { "labels": { "pool": "training" } } }));
    let member = nodewall::fleet::Member {
        labels: Some([("pool".to_owned(), "training".to_owned())].into()),
        ..Default::default()
    };
    let mut meant = api.meant_for(&name, &member);
    meant.retain(|policy| Some(policy.as_str()) != lacks);
    let policies: serde_json::Map<String, Json> =
        meant.iter().map(|policy| (policy.clone(), json!(api.hash(policy).unwrap()))).collect();
    let condition = |kind: &str, status: &str, reason: &str| json!({ "type": kind, "status": status, "reason": reason, "message": "as it is", "lastTransitionTime": "2026-11-26T05:00:00Z" });
    let state = json!({
        "metadata": { "managedFields": [{ "manager": "nodewall", "time": "2026-11-26T05:30:00Z" }, { "manager": "x" }] },
        "spec": { "node": name },
        "status": {
            "version": "0.1.0", "mode": "enforce", "generation": 7, "policies": policies,
            "hash": lacks.map_or("0123456789abcdef0123456789abcdef".to_owned(), |lacks| format!("{:0<32}", lacks.len() + number)),
            "defaults": api.settings_mean.defaults, "failsafe": api.settings_mean.failsafe,
            "conditions": [condition("Ready", "True", "PolicyInForce"), condition("InSync", "True", "InSync"), condition("Degraded", "False", "AsWanted")],
            "interfaces": [{ "name": "eth0", "role": "mgmt", "coverage": "enforced", "addresses": [format!("10.1.{}.{}/16", number / 250, number % 250 + 1)] }],
        },
    });
    server.put("hoststates", &name, state);
}

#[test]
fn a_fleet_of_one_that_is_well_is_two_lines_and_exit_code_0() {
    let (server, api) = server();
    put(&server, &api, 1, None);
    let (code, out, err) = status(&server.kubeconfig(), &[]);
    let expected = "\
1 node: 1 in force; none differs in what its policy means

GROUP  NODES  MODE     VERSION  HASH          WHICH
    1      1  enforce  0.1.0    0123456789ab  gpu-001
";
    assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
    // As kubectl finds its file.
    assert_eq!(run(&[], &[("KUBECONFIG", &server.kubeconfig())]), (0, expected.to_owned(), String::new()));
}

#[test]
fn a_kubeconfig_may_log_in_with_a_program_and_not_with_a_provider() {
    let (server, api) = server();
    put(&server, &api, 1, None);
    let folder = tempfile::tempdir().unwrap();
    for name in ["ca.crt", "kubeconfig"] {
        std::fs::copy(server.as_ref().join(name), folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("kubeconfig");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("tokenFile: token"), "{text}");
    let program = folder.path().join("login");
    let answer = json!({
        "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": { "token": "first" },
    });
    std::fs::write(&program, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login, interactiveMode: Never}";
    std::fs::write(&path, text.replace("tokenFile: token", exec)).unwrap();
    let (code, out, err) = status(&path, &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("1 node: 1 in force"), "{out}");
    // The token is what counts.
    std::fs::write(&program, format!("#!/bin/sh\necho '{}'\n", answer.to_string().replace("first", "other"))).unwrap();
    let (code, _, err) = status(&path, &[]);
    assert_eq!(code, 4, "{err}");
    std::fs::write(&path, text.replace("tokenFile: token", "auth-provider: {name: gcp}")).unwrap();
    let (code, _, err) = status(&path, &[]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("the auth-provider \"gcp\" is not supported"), "{err}");
}

#[test]
fn three_of_512_nodes_differ_and_it_says_how() {
    let (server, api) = server();
    (1..=509).for_each(|number| put(&server, &api, number, None));
    // One hash for the three.
    (510..=512).for_each(|number| put(&server, &api, number, Some("default/jupyter")));
    for number in 510..=512 {
        let name = format!("gpu-{number:03}");
        let mut state = server.object("hoststates", &name).unwrap();
        state["status"]["hash"] = json!("ffffffffffffffffffffffffffffffff");
        server.put("hoststates", &name, state);
    }
    // One that cannot follow its cluster, one without nodewall.
    let mut away = server.object("hoststates", "gpu-007").unwrap();
    away["status"]["conditions"][2] = json!({
        "type": "Degraded", "status": "True", "reason": "ClusterAway", "message": "cluster \"own\" does not answer",
        "lastTransitionTime": "2026-11-26T04:00:00Z",
    });
    away["status"]["version"] = json!("0.0.9");
    server.put("hoststates", "gpu-007", away);
    server.put("nodes", "login-1", json!({ "metadata": {} }));
    let (code, out, err) = status(&server.kubeconfig(), &[]);
    let expected = "\
513 nodes: 511 in force, 1 degraded, 1 without nodewall; 3 differ in what their policy means
versions of nodewall: 0.0.9 on 1, 0.1.0 on 511

GROUP  NODES  MODE     VERSION      HASH          WHICH
    1    509  enforce  0.0.9 0.1.0  0123456789ab  gpu-001 to gpu-509
    2      3  enforce  0.1.0        ffffffffffff  gpu-510 to gpu-512

group 2 differs from group 1: gpu-510 to gpu-512
  lacks policy default/jupyter
  new flows, by the interfaces of gpu-510:
    from set dev (10.0.9.0/24) to tcp/8888 on mgmt: allowed in group 1, denied here

NODES    SINCE                 WRITTEN               WHAT
login-1  -                     -                     there is no HostState: nodewall does not run there, or does not report to this cluster
gpu-007  2026-11-26T04:00:00Z  2026-11-26T05:30:00Z  degraded: ClusterAway: cluster \"own\" does not answer
";
    assert_eq!((code, out.as_str(), err.as_str()), (1, expected, ""));

    let (code, out, _) = status(&server.kubeconfig(), &["--json"]);
    let record: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &record["version"], &record["well"], &record["differ"]),
        (1, &json!(1), &json!(false), &json!(3))
    );
    assert_eq!((&record["degraded"], &record["without_nodewall"]), (&json!(1), &json!(1)));
    let difference = &record["groups"][1]["difference"];
    assert_eq!(
        difference["packets"]["contrasts"],
        json!([{
            "direction": "ingress", "peers": ["dev"], "what": "tcp/8888", "interfaces": ["mgmt"], "allowed_here": false,
            "text": "from set dev (10.0.9.0/24) to tcp/8888 on mgmt: allowed in group 1, denied here",
        }])
    );
    assert_eq!(difference["policies"][0]["change"], "lacking");

    // Of those alone that are as they are meant.
    let (code, out, _) = status(&server.kubeconfig(), &["--selector", "name in {'gpu-001', 'gpu-002'}"]);
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("2 nodes: 2 in force; none differs"), "{out}");
    let (code, _, err) = status(&server.kubeconfig(), &["--selector", "name ="]);
    assert_eq!(code, 2, "{err}");
}

#[test]
fn where_all_differ_only_some_are_said_unless_all_are_asked_for() {
    let (server, api) = server();
    (1..=30).for_each(|number| put(&server, &api, number, Some("default/web")));
    let (code, out, _) = status(&server.kubeconfig(), &[]);
    assert_eq!(code, 1);
    assert!(
        out.starts_with("30 nodes: 30 in force; 29 differ in what their policy means; 1 has something else"),
        "{out}"
    );
    assert!(out.contains("and 20 more groups (--all shows them)") && !out.contains("gpu-030\n"), "{out}");
    assert!(out.contains("  has the same policies in another order"), "{out}");
    assert!(
        out.contains("group 1 is not what the API says for it:\n  policy default/web of the API is for them"),
        "{out}"
    );
    let (_, out, _) = status(&server.kubeconfig(), &["--all"]);
    assert!(!out.contains("--all shows") && out.contains("group 30 differs from group 1: gpu-030\n"), "{out}");
}

#[test]
fn a_fleet_without_nodes_or_without_nodewall_is_said() {
    let server = StandIn::start();
    assert_eq!(status(&server.kubeconfig(), &[]), (0, "no nodes\n".to_owned(), String::new()));
    server.put("nodes", "gpu-1", json!({ "metadata": {} }));
    server.put("nodes", "gpu-2", json!({ "metadata": {} }));
    let (code, out, _) = status(&server.kubeconfig(), &[]);
    assert_eq!(code, 1);
    assert!(
        out.starts_with("2 nodes: 2 without nodewall\n") && out.contains("\ngpu-1, gpu-2  -      -        there is no"),
        "{out}"
    );
}

#[test]
fn an_api_that_does_not_let_us_or_is_away_is_said_with_the_right_exit_code() {
    let server = StandIn::start();
    server.forbid(Some((Method::GET, 403)));
    let (code, out, err) = status(&server.kubeconfig(), &[]);
    assert_eq!((code, out.as_str()), (4, ""));
    assert!(err.starts_with("nodewall: not authorised to list nodes: 403: "), "{err}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    for name in ["ca.crt", "token", "kubeconfig"] {
        std::fs::copy(server.as_ref().join(name), folder.path().join(name)).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().find(|line| line.contains("server: ")).unwrap();
    // Nothing listens on this port of loopback.
    std::fs::write(&path, text.replace(line, "    server: https://127.0.0.1:1")).unwrap();
    let (code, out, err) = status(&path, &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("nodewall: the API cannot be asked: "), "{err}");
    let (code, _, err) = status(&folder.path().join("absent"), &[]);
    assert_eq!(code, 1);
    assert!(err.contains("absent cannot be used: "), "{err}");
    let (code, _, err) = run(&[], &[]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("it is not known how to reach an API"), "{err}");
}
