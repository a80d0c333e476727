//! How a host becomes a node, and stays one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nodewall::identity::Renewer;
use nodewall::identity::certificate::{self, fingerprint};
use nodewall::net::node::ClusterNodes;
use nodewall::policy::clusters::{Cluster, Contribution};
use nodewall::source::kube::{Holding, Me, Pace, Reach, Source};
use serde_json::{Value as Json, json};

use super::api::{Api, REQUESTS, TOKEN, hex};
use super::lab::daemon::{Node, management_link};
use super::lab::{isolated, may_run};
use super::run::{Controller, ended, join, log, settings, until};

/// Certificate and key, and the key of a request that is under way.
const IDENTITY: &str = "state/identity/kubeconfig.pem";
const PENDING: &str = "state/identity/kubeconfig.pem.pending-key";

const STATES: &str = "/apis/nodewall.dev/v1alpha1/hoststates";

/// The names of all requests.
fn requests(api: &Api) -> Vec<String> {
    api.all(REQUESTS).iter().map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits for a request and settles it, while `command` waits.
fn joined(api: &Api, node: &str, folder: &Path, more: &[&str]) -> (i32, String) {
    let child = join(api, node, folder, more)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until("a request", || api.all(REQUESTS).iter().any(|object| object["status"].is_null()));
    for object in api.all(REQUESTS).iter().filter(|object| object["status"].is_null()) {
        api.settle(object["metadata"]["name"].as_str().unwrap(), "Approved", "as it should be");
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// The hash of the key that is in force in a folder.
fn key(folder: &Path) -> String {
    hex(&fingerprint(&certificate::read(&fs::read_to_string(folder.join(IDENTITY)).unwrap()).unwrap().key))
}

#[test]
fn a_host_joins_by_the_hash_of_the_ca_and_only_once() {
    if !may_run("a_host_joins_by_the_hash_of_the_ca_and_only_once") {
        return;
    }
    let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
    let hash = api.ca_hash();
    let (code, said) = joined(&api, "gpu-17", folder.path(), &["--ca-hash", &hash]);
    assert_eq!(code, 0, "{said}");
    let request = requests(&api).pop().unwrap();
    assert!(said.contains(&format!("kubectl certificate approve {request}")), "{said}");
    assert!(request.starts_with("nodewall-gpu-17-"), "{request}");
    assert!(!said.contains(TOKEN) && !said.contains(&TOKEN[7..]), "{said}");
    for name in ["kubeconfig", IDENTITY] {
        assert_eq!(fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert!(!folder.path().join(PENDING).exists());
    let text = fs::read_to_string(folder.path().join("kubeconfig")).unwrap();
    assert!(!text.contains(&TOKEN[7..]) && text.contains(&api.url) && !text.contains("elsewhere"), "{text}");
    // Whoever knows the hash has sent the token to that server only, and what is there holds.
    let before = api.requests(&[""]);
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &["--ca-hash", &hash]));
    assert_eq!((code, api.requests(&[""])), (0, before), "{said}");
    assert!(said.contains("joined already"), "{said}");
    let (code, said) = ended(&mut join(&api, "gpu-18", folder.path(), &["--ca-hash", &hash]));
    assert!(code == 1 && said.contains("the identity of node \"gpu-17\", not of \"gpu-18\"; --force"), "{said}");
    let first = key(folder.path());
    let (code, said) = joined(&api, "gpu-17", folder.path(), &["--ca-hash", &hash, "--force", "--json"]);
    assert_eq!(code, 0, "{said}");
    let report: Json = serde_json::from_str(&said[said.find('{').unwrap()..=said.rfind('}').unwrap()]).unwrap();
    assert_eq!(
        (report["version"].as_i64(), report["state"].as_str(), report["node"].as_str()),
        (Some(1), Some("joined"), Some("gpu-17"))
    );
    assert_ne!(key(folder.path()), first);
    assert_eq!(requests(&api).len(), 2);
}

#[test]
fn a_server_with_another_ca_gets_no_token() {
    if !may_run("a_server_with_another_ca_gets_no_token") {
        return;
    }
    let (api, other, folder) = (Api::start(), Api::start(), tempfile::tempdir().unwrap());
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &["--ca-hash", &other.ca_hash()]));
    assert!(code == 1 && said.contains("the token was not sent"), "{code} {said}");
    let file = other.ca_file();
    let (code, said) =
        ended(&mut join(&api, "gpu-17", folder.path(), &["--wait", "1s", "--ca-file", file.to_str().unwrap()]));
    assert!(code == 1 && said.contains("does not answer as it should"), "{said}");
    assert_eq!(api.requests(&[TOKEN]), 0);
    assert!(!folder.path().join("kubeconfig").exists());
}

#[test]
fn wrong_tokens_are_usage_or_not_authorised_and_never_repeated() {
    if !may_run("wrong_tokens_are_usage_or_not_authorised_and_never_repeated") {
        return;
    }
    let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
    let with = |token: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.arg("--config").arg(settings(folder.path()));
        command
            .args(["--node", "gpu-17", "join", "--server", &api.url, "--token", token, "--ca-file"])
            .arg(api.ca_file());
        ended(command.arg("--kubeconfig").arg(folder.path().join("kubeconfig")))
    };
    let (code, said) = with("abcdef.0123456789abcdeX");
    assert!(code == 2 && said.contains("no bootstrap token") && !said.contains("0123456789"), "{said}");
    let (code, said) = with("fedcba.fedcba9876543210");
    assert!(code == 4 && said.contains("does not know the token") && !said.contains("9876543210"), "{said}");
}

#[test]
fn who_was_interrupted_goes_on_with_the_same_request() {
    if !may_run("who_was_interrupted_goes_on_with_the_same_request") {
        return;
    }
    let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
    let ca = api.ca_file();
    let more = ["--ca-file", ca.to_str().unwrap(), "--wait", "1s"];
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &more));
    assert!(code == 1 && said.contains("another `nodewall join` goes on waiting"), "{said}");
    assert!(folder.path().join(PENDING).exists() && !folder.path().join("kubeconfig").exists());
    let all = requests(&api);
    api.settle(&all[0], "Approved", "");
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &more));
    assert_eq!((code, requests(&api)), (0, all), "{said}");
    // Killed between the two files, it writes the other one and asks nobody.
    fs::remove_file(folder.path().join("kubeconfig")).unwrap();
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &more));
    assert_eq!((code, requests(&api).len()), (0, 1), "{said}");
    assert!(folder.path().join("kubeconfig").exists());
}

#[test]
fn who_is_denied_is_told_why_and_asks_with_another_key_next_time() {
    if !may_run("who_is_denied_is_told_why_and_asks_with_another_key_next_time") {
        return;
    }
    let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
    let ca = api.ca_file();
    let more = ["--ca-file", ca.to_str().unwrap(), "--wait", "1s"];
    assert_eq!(ended(&mut join(&api, "gpu-17", folder.path(), &more)).0, 1);
    api.settle(&requests(&api)[0], "Denied", "gpu-17 is in repair");
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &more));
    assert!(code == 1 && said.contains("was denied: gpu-17 is in repair"), "{said}");
    assert_eq!(requests(&api).len(), 1);
    let (code, said) = joined(&api, "gpu-17", folder.path(), &["--ca-file", ca.to_str().unwrap()]);
    assert_eq!((code, requests(&api).len()), (0, 2), "{said}");
}

#[test]
fn the_controller_lets_new_nodes_in_and_gives_nobody_the_name_of_another() {
    if !may_run("the_controller_lets_new_nodes_in_and_gives_nobody_the_name_of_another") {
        return;
    }
    let (api, folder, thief) = (Api::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ca = api.ca_file();
    let more = ["--ca-file", ca.to_str().unwrap(), "--wait", "20s"];
    let _controller = Controller::start(&api, "controller-a");
    let (code, said) = ended(&mut join(&api, "gpu-17", folder.path(), &more));
    assert_eq!(code, 0, "{said}\n{}", log(&api, "controller-a"));
    let short = ["--ca-file", ca.to_str().unwrap(), "--wait", "8s"];
    let (code, said) = ended(&mut join(&api, "gpu-17", thief.path(), &short));
    assert!(code == 1 && said.contains("nobody approved"), "{said}");
    let said = log(&api, "controller-a");
    assert!(said.contains("was approved already"), "{said}");
    // The node is there, and the API server has cleaned up.
    for name in requests(&api) {
        api.delete(REQUESTS, &name);
    }
    api.put(STATES, "gpu-17", json!({ "spec": { "node": "gpu-17" } }));
    fs::remove_file(thief.path().join(PENDING)).unwrap();
    assert_eq!(ended(&mut join(&api, "gpu-17", thief.path(), &short)).0, 1);
    let said = log(&api, "controller-a");
    assert!(said.contains("there is a node \"gpu-17\" already"), "{said}");
    // A person may: the node is set up again.
    api.delete(STATES, "gpu-17");
    let (code, said) = ended(&mut join(&api, "gpu-17", thief.path(), &more));
    assert_eq!(code, 0, "{said}\n{}", log(&api, "controller-a"));
}

#[test]
fn a_certificate_is_renewed_in_time_and_used_without_a_restart() {
    if !may_run("a_certificate_is_renewed_in_time_and_used_without_a_restart") {
        return;
    }
    let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
    // Of 50 minutes, ten are left.
    api.next_lifetime(-2400, 600);
    let ca = api.ca_file();
    let (code, said) = joined(&api, "gpu-17", folder.path(), &["--ca-file", ca.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let first = key(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let (tell, told) = mpsc::channel();
    let cluster = Cluster {
        name: "hub".to_owned(),
        kubeconfig: kubeconfig.clone(),
        contribute: [Contribution::Sets].into(),
        tiers: ["default".to_owned()].into(),
        believe_empty: true,
        node_addresses: Vec::new(),
        calico: false,
    };
    let pace = Pace { credentials: Duration::from_millis(100), ..Pace::SHIPPED };
    let _source =
        Source::start(cluster, Me::default(), (&Holding::default(), &ClusterNodes::new()), pace, 7, move |news| {
            drop(tell.send(news))
        })
        .unwrap();
    until("the first list", || api.requests(&["GET", "hostnetworksets", "by nodewall:node:gpu-17", &first]) > 0);
    let renewer = Renewer::start(&kubeconfig, 7).unwrap();
    until("another request", || requests(&api).len() == 2);
    assert_eq!(api.requests(&["POST", REQUESTS, "by nodewall:node:gpu-17", &first]), 1, "under the present identity");
    let waiting = renewer.standing();
    assert!(waiting.error.is_none() && waiting.until.is_some(), "{waiting:?}");
    let _controller = Controller::start(&api, "controller-a");
    until("another certificate", || key(folder.path()) != first);
    let second = key(folder.path());
    until("a list with it", || api.requests(&["GET", "hostnetworksets", "by nodewall:node:gpu-17", &second]) > 0);
    until("the word of it", || renewer.standing().until > waiting.until.map(|until| until + 80 * 24 * 3600));
    assert!(log(&api, "controller-a").contains("node \"gpu-17\" renews its certificate"));
    let away = told.try_iter().filter(|told| told.health.reach == Reach::Away).count();
    println!("away {away} times over it");
    assert!(!folder.path().join(PENDING).exists());
}

#[test]
fn the_daemon_renews_and_says_until_when_the_certificate_holds() {
    isolated("the_daemon_renews_and_says_until_when_the_certificate_holds", || {
        management_link();
        let api = Api::start();
        let mut node = Node::new(&[]);
        api.next_lifetime(-2400, 600);
        let ca = api.ca_file();
        let folder = node.path("");
        let (code, said) = joined(&api, "gpu-17", &folder, &["--ca-file", ca.to_str().unwrap()]);
        assert_eq!(code, 0, "{said}");
        let first = key(&folder);
        let kubeconfig = node.path("kubeconfig");
        let source = format!("[[source.cluster]]\nname = \"hub\"\nkubeconfig = \"{}\"\n", kubeconfig.display());
        node.write("nodewall.toml", &(node.settings() + &source));
        node.run();
        let ends = |status: &Json| status["clusters"][0]["certificate_until"].as_str().map(str::to_owned);
        let before = ends(&node.until("the certificate", |_, status| ends(status).is_some())).unwrap();
        until("a request", || requests(&api).len() == 2);
        for name in requests(&api) {
            api.settle(&name, "Approved", "");
        }
        let status = node.until("the new certificate", |_, status| ends(status).is_some_and(|now| now > before));
        assert_eq!(status["clusters"][0]["error"], Json::Null, "{status}");
        let second = key(&folder);
        assert_ne!(second, first);
        until("its use", || api.requests(&["GET", "hostpolicies", "by nodewall:node:gpu-17", &second]) > 0);
        assert!(node.log().contains("the certificate of node \"gpu-17\" is renewed"), "{}", node.log());
        assert!(node.must(&["status"]).contains("certificate until 20"));
    });
}

#[test]
fn a_certificate_that_is_nearly_or_wholly_over_is_told() {
    if !may_run("a_certificate_that_is_nearly_or_wholly_over_is_told") {
        return;
    }
    for (until_end, wanted) in [(60, "ends at"), (8, "run `nodewall join` with a new token")] {
        // The one before has asked for another certificate.
        let (api, folder) = (Api::start(), tempfile::tempdir().unwrap());
        let ca = api.ca_file();
        api.next_lifetime(-10_000, until_end);
        let (code, said) = joined(&api, "gpu-17", folder.path(), &["--ca-file", ca.to_str().unwrap()]);
        assert_eq!(code, 0, "{said}");
        if until_end == 8 {
            std::thread::sleep(Duration::from_secs(9));
        }
        let renewer = Renewer::start(&folder.path().join("kubeconfig"), 7).unwrap();
        until("the worry", || renewer.standing().error.is_some_and(|error| error.contains(wanted)));
    }
}
