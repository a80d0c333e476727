//! Nodes of a cluster as peers: who they are by Node and HostState or by digests of these, and what packets of theirs meet.

use nodewall::net::interface::Role;
use nodewall::policy::clusters::{Cluster, Contribution};
use nodewall::source::kube::{Holding, Reach};
use nodewall::source::object::Kind;
use nodewall::source::object::peers::{HostPeersSpec, INDEX};
use serde_json::{Value as Json, json};

use super::daemon::{settings, until};
use super::follower::{Follower, cluster};
use super::lab::daemon::{Node, Prober};
use super::lab::{isolated, sh};
use super::server::Admin;
use super::stand_in::{Content, StandIn};

/// A Node of Kubernetes with this label and address.
fn node(pool: &str, address: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "labels": { "pool": pool } },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] } })
}

/// What a node says of an interface.
fn state(role: &str, address: &str) -> Json {
    json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": "HostState", "spec": { "node": "n" },
            "status": { "interfaces": [{ "name": "eth0", "role": role, "addresses": [address] }] } })
}

/// A policy that lets these nodes in to port 8080, on nodes of pool "training".
fn policy(from: &Json) -> Json {
    json!({ "tier": "default", "order": 10, "interfaces": "all()", "nodes": "pool == 'training'",
            "ingress": [{ "action": "allow", "from": from, "protocol": "tcp", "ports": [8080] }] })
}

/// Who there is, with addresses by role.
fn known(follower: &Follower) -> Vec<String> {
    let written = |(name, node): (&String, &std::sync::Arc<nodewall::net::node::Node>)| {
        let address = |each: &nodewall::net::node::NodeAddress| {
            format!(" {}{}", each.role.map_or(String::new(), |role| format!("{}:", Role::name(role))), each.address)
        };
        let addresses: String = node.addresses.iter().map(address).collect();
        format!("{name} {}{addresses}", node.label("pool").unwrap_or_default())
    };
    follower.nodes().iter().map(written).collect()
}

fn with_nodes(server: &StandIn) -> Cluster {
    Cluster { contribute: [Contribution::Policies, Contribution::Nodes].into(), ..cluster(&server.kubeconfig()) }
}

#[test]
fn nodes_are_followed_by_their_nodes_and_states_and_by_digests_where_there_are_any() {
    let server = StandIn::start();
    server.put("nodes", "a", node("training", "10.0.0.1"));
    server.put("nodes", "b", node("login", "10.0.0.2"));
    let mut follower = Follower::new(with_nodes(&server));
    follower.until("the nodes", |it| known(it) == ["a training 10.0.0.1", "b login 10.0.0.2"]);
    server.put("hoststates", "a", state("rail", "10.1.0.1/24"));
    follower.until("a state", |it| known(it)[0] == "a training 10.0.0.1 rail:10.1.0.1");
    server.put("nodes", "c", node("training", "10.0.0.3"));
    follower.until("a new node", |it| known(it).len() == 3);
    server.remove("nodes", "b");
    follower.until("the end of one", |it| known(it).len() == 2);

    // The controller comes: what it says is what was known, and from then on only that is watched.
    let before = known(&follower);
    let digest = |names: &[&str]| json!({ "spec": HostPeersSpec::of(follower.nodes().iter().filter(|(name, _)| names.contains(&name.as_str()))) });
    let (all, some) = (digest(&["a", "c"]), digest(&["a"]));
    server.put("hostpeers", "0", all);
    server.put("hostpeers", INDEX, json!({ "spec": {} }));
    let asked = server.requests("GET /api/v1/nodes?");
    server.restart();
    let lists = server.requests("/hostpeers?&limit");
    follower.until("a pass", |it| server.requests("/hostpeers?&limit") > lists && it.health().reach == Reach::Synced);
    server.put("nodes", "d", node("training", "10.0.0.4"));
    assert_eq!(known(&follower), before);
    server.put("hostpeers", "0", some);
    follower.until("a digest", |it| known(it) == ["a training 10.0.0.1 rail:10.1.0.1"]);
    assert!(server.requests("GET /api/v1/nodes?") <= asked + 1, "nobody asks for Nodes any more");

    // The controller goes, and its digests with it.
    server.remove("hostpeers", INDEX);
    follower.until("the nodes themselves", |it| known(it).len() == 3);
}

#[test]
fn a_cluster_that_has_lost_its_nodes_keeps_them_and_a_refusal_takes_none() {
    let server = StandIn::start();
    server.put("nodes", "a", node("training", "10.0.0.1"));
    let mut follower = Follower::new(with_nodes(&server));
    follower.until("the node", |it| known(it).len() == 1 && it.health().reach == Reach::Synced);
    server.rewind(Content::default());
    server.restart();
    follower.until("the doubt", |it| it.health().reach == Reach::Doubted);
    assert_eq!(known(&follower).len(), 1);
    server.put("nodes", "b", node("training", "10.0.0.2"));
    follower.until("the nodes that there are", |it| known(it) == ["b training 10.0.0.2"]);
    server.refuse(403, 20);
    server.restart();
    follower.until("the way back", |it| it.health().reach == Reach::Synced && server.has_refused());
    assert_eq!(known(&follower), ["b training 10.0.0.2"]);
}

#[test]
fn rules_name_nodes_by_labels_and_by_the_roles_of_their_interfaces() {
    isolated("rules_name_nodes_by_labels_and_by_the_roles_of_their_interfaces", || {
        let prober = Prober::new();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        server.put("nodes", "this", node("training", "10.77.0.2"));
        server.put("nodes", "peer", node("training", "10.77.0.1"));
        admin.create(Kind::HostPolicy, "peers", &policy(&json!({ "nodes": "pool == 'training'" })));
        let mut host = Node::new(&[]);
        let more = "contribute = [\"policies\", \"nodes\"]";
        host.write("nodewall.toml", &format!("node = \"this\"\n{}", settings(&host, &[("training", &server, more)])));
        host.run();
        until(&host, "the policy of nodes with this label", || prober.connects());
        let status = host.until("the cluster", |_, status| status["clusters"][0]["state"] == "in-sync");
        assert_eq!(status["clusters"][0]["nodes"], 2);

        // The peer moves to another pool, and back, and goes.
        server.put("nodes", "peer", node("login", "10.77.0.1"));
        until(&host, "its leaving", || !prober.connects());
        server.put("nodes", "peer", node("training", "10.77.0.1"));
        until(&host, "its coming back", || prober.connects());
        server.remove("nodes", "peer");
        until(&host, "its end", || !prober.connects());
        server.put("nodes", "peer", node("training", "10.0.0.9"));

        // By role: only from addresses on such interfaces.
        admin.change(
            Kind::HostPolicy,
            "peers",
            &json!({
                "ingress": [{ "action": "allow", "from": { "nodes": "pool == 'training'", "role": "rail" },
                              "protocol": "tcp", "ports": [8080] }],
            }),
        );
        server.put("hoststates", "peer", state("mgmt", "10.77.0.1/24"));
        until(&host, "the other policy", || sh("nft list table inet nodewall").contains("peers#1"));
        assert!(!prober.connects(), "an interface of another role");
        server.put("hoststates", "peer", state("rail", "10.77.0.1/24"));
        until(&host, "the role", || prober.connects());
        let kept = || std::fs::read_to_string(host.path("state/training+nodes.cluster")).unwrap_or_default();
        until(&host, "who they are, on the disk", || kept().contains("\"rail\""));

        // Without the API, and over a restart, they are who they were.
        server.black_hole(true);
        host.kill();
        sh("nft delete table inet nodewall");
        host.run();
        until(&host, "who they were, from the disk", || prober.connects());
        let (code, table, said) = host.nodewall(&["render"]);
        assert_eq!(code, 0, "{said}");
        assert!(table.contains("10.77.0.1") && table.contains("peers#1"), "{table}");
        server.black_hole(false);

        // This node is in another pool: the policy is not for it any more.
        server.put("nodes", "this", node("login", "10.77.0.2"));
        until(&host, "the end of the policy here", || !sh("nft list table inet nodewall").contains("peers#1"));
        assert!(!prober.connects());
        server.put("nodes", "this", node("training", "10.77.0.2"));
        until(&host, "the policy", || prober.connects());
    });
}

#[test]
fn a_hub_is_asked_for_the_labels_that_another_cluster_gives_this_node() {
    isolated("a_hub_is_asked_for_the_labels_that_another_cluster_gives_this_node", || {
        let prober = Prober::new();
        let (hub, training) = (StandIn::start(), StandIn::start());
        Admin::new(hub.kubeconfig()).create(
            Kind::HostPolicy,
            "peers",
            &policy(&json!({ "nodes": "cluster == 'training' && name == 'peer'" })),
        );
        training.put("nodes", "this", node("training", "10.77.0.2"));
        training.put("nodes", "peer", node("training", "10.77.0.1"));
        let mut host = Node::new(&[]);
        let clusters: [(&str, &StandIn, &str); 2] =
            [("hub", &hub, ""), ("training", &training, "contribute = [\"policies\", \"nodes\"]")];
        host.write("nodewall.toml", &format!("node = \"this\"\n{}", settings(&host, &clusters)));
        host.run();
        until(&host, "the hub's policy", || prober.connects());
        training.put("nodes", "this", node("login", "10.77.0.2"));
        until(&host, "its end", || !prober.connects());
    });
}

#[test]
fn a_node_can_say_nothing_about_addresses_outside_of_the_networks_of_nodes() {
    let server = StandIn::start();
    server.put("nodes", "a", node("training", "10.0.0.1"));
    server.put("hoststates", "a", state("rail", "192.0.2.66/24"));
    let bounded = Cluster { node_addresses: vec!["10.0.0.0/8".parse().unwrap()], ..with_nodes(&server) };
    let mut follower = Follower::from(bounded, &Holding::default());
    follower.until("the node", |it| known(it) == ["a training 10.0.0.1"]);
}
