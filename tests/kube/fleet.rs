//! What a daemon says of itself, looked at as one of a fleet: its hashes are those that the API's documents have there.

use std::process::Command;
use std::time::Instant;

use nodewall::source::object::Kind;
use serde_json::json;

use super::lab::daemon::{Node, PATIENCE, management_link};
use super::lab::isolated;
use super::server::Admin;
use super::stand_in::StandIn;

#[test]
fn a_daemon_that_follows_its_cluster_is_as_the_api_says_and_one_that_does_not_is_told() {
    isolated("a_daemon_that_follows_its_cluster_is_as_the_api_says_and_one_that_does_not_is_told", || {
        management_link();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        server.put("nodes", "node-7", json!({ "metadata": { "labels": { "pool": "training" } } }));
        admin.create(Kind::HostNetworkSet, "dev", &json!({ "cidrs": ["10.0.9.0/24", "fd00::/64"] }));
        let spec = json!({
            "order": 10, "interfaces": "all()", "nodes": "pool == 'training'",
            "ingress": [
                { "action": "allow", "from": { "sets": ["dev"] }, "protocol": "tcp", "ports": [8080] },
                { "action": "deny", "from": { "nodes": "all()", "role": "rail" }, "protocol": "udp", "ports": [9] },
            ],
        });
        admin.create(Kind::HostPolicy, "web", &spec);
        let mut node = Node::new(&[]);
        let settings = format!(
            "{}node = \"node-7\"\n[[source.cluster]]\nname = \"own\"\nkubeconfig = \"{}\"\ncontribute = [\"policies\", \"sets\", \"nodes\"]\n",
            node.settings(),
            server.kubeconfig().display()
        );
        node.write("nodewall.toml", &settings);
        node.run();
        let start = Instant::now();
        while !server
            .object("hoststates", "node-7")
            .is_some_and(|state| state["status"]["policies"]["default/web"].is_string())
        {
            assert!(
                start.elapsed() < 3 * PATIENCE,
                "no state: {:?}\n{}",
                server.object("hoststates", "node-7"),
                node.log()
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let status = || {
            let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
                .args(["fleet", "status", "--kubeconfig"])
                .arg(server.kubeconfig())
                .output()
                .unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, out, err) = status();
        assert_eq!(err, "");
        assert!(out.starts_with("1 node: 1 in force; none differs in what its policy means\n"), "{out}");
        assert_eq!(code, Some(0), "{out}");
        drop(node);
        admin.change(Kind::HostNetworkSet, "dev", &json!({ "cidrs": ["10.0.8.0/24"] }));
        let (code, out, _) = status();
        assert_eq!(code, Some(1), "{out}");
        assert!(out.contains("  policy default/web is in force in an older or local version (its hash "), "{out}");
    });
}
