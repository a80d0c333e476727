//! The daemon between clusters and the kernel.

use std::time::{Duration, Instant};

use nodewall::source::object::Kind;
use serde_json::{Value as Json, json};

use super::lab::daemon::{Node, PATIENCE, Prober, management_link, policy};
use super::lab::{isolated, sh};
use super::server::Admin;
use super::stand_in::StandIn;

/// nodewall.toml with these clusters: name, server, and more lines.
pub fn settings(node: &Node, clusters: &[(&str, &StandIn, &str)]) -> String {
    let mut text = node.settings();
    for (name, server, more) in clusters {
        let path = server.kubeconfig();
        text += &format!("[[source.cluster]]\nname = \"{name}\"\nkubeconfig = \"{}\"\n{more}\n", path.display());
    }
    text
}

fn spec(tier: &str, action: &str) -> Json {
    json!({
        "tier": tier, "order": 10, "interfaces": "all()",
        "ingress": [{ "action": action, "protocol": "tcp", "ports": [8080] }],
    })
}

#[track_caller]
pub fn until(node: &Node, what: &str, wanted: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come\n{}\n{}", sh("nft list ruleset"), node.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

#[test]
fn what_objects_say_is_in_force_and_stays_when_the_api_is_gone_for_ever() {
    isolated("what_objects_say_is_in_force_and_stays_when_the_api_is_gone_for_ever", || {
        let prober = Prober::new();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        admin.create(Kind::HostPolicy, "web", &spec("platform", "allow"));
        let mut node = Node::new(&[]);
        node.write("nodewall.toml", &settings(&node, &[("hub", &server, "tiers = [\"platform\"]")]));
        node.run();
        until(&node, "the object", || prober.connects());
        assert!(sh("nft list table inet nodewall").contains("web"));
        let status = node.until("the cluster", |_, status| status["clusters"][0]["state"] == "in-sync");
        assert_eq!(status["clusters"][0]["objects"], 1);
        admin.change(
            Kind::HostPolicy,
            "web",
            &json!({ "ingress": [{ "action": "deny", "protocol": "tcp", "ports": [8080] }] }),
        );
        until(&node, "the change", || !prober.connects());
        admin.delete(Kind::HostPolicy, "web");
        until(&node, "the end of the object", || !sh("nft list table inet nodewall").contains("web"));
        admin.create(Kind::HostPolicy, "web", &spec("platform", "allow"));
        until(&node, "the new object", || prober.connects());

        // Files beside it are followed while the API is away, and over a restart of the daemon.
        server.black_hole(true);
        node.kill();
        node.run();
        assert!(prober.connects(), "from the disk");
        let status = node.until("its absence", |_, status| status["clusters"][0]["state"] == "away");
        assert_eq!((status["clusters"][0]["objects"].as_u64(), status["state"].as_str()), (Some(1), Some("in-force")));
        node.write("policy.d/10.toml", &policy("local", "allow").replace("8080", "9090"));
        until(&node, "the file", || sh("nft list table inet nodewall").contains("local"));
        assert!(prober.connects(), "what the cluster said stays");
        server.black_hole(false);
        node.until("the cluster", |_, status| status["clusters"][0]["state"] == "in-sync");
        assert!(prober.connects());
    });
}

#[test]
fn objects_that_do_not_go_together_with_the_rest_are_set_aside() {
    isolated("objects_that_do_not_go_together_with_the_rest_are_set_aside", || {
        management_link();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        let to_set = |set: &str| json!({ "tier": "default", "order": 20, "interfaces": "all()", "egress": [{ "action": "deny", "to": { "sets": [set] } }] });
        admin.create(Kind::HostNetworkSet, "store", &json!({ "cidrs": ["10.9.0.0/16"] }));
        admin.create(Kind::HostPolicy, "good", &to_set("store"));
        let mut node = Node::new(&[("10.toml", &policy("local", "allow"))]);
        node.write("nodewall.toml", &settings(&node, &[("dev", &server, "")]));
        node.run();
        let table = || sh("nft list table inet nodewall");
        until(&node, "the object", || table().contains("good"));
        // A set that is not there, an order that a file has, a tier that is not the cluster's.
        admin.create(Kind::HostPolicy, "dangling", &to_set("nowhere"));
        admin.create(Kind::HostPolicy, "same-order", &spec("default", "deny"));
        admin.create(Kind::HostPolicy, "others", &spec("platform", "deny"));
        admin.create(Kind::HostService, "fine", &json!({ "ports": ["tcp/9100"] }));
        let findings =
            |status: &Json| status["findings"].as_array().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        node.until("the findings", |_, status| {
            let told = findings(status);
            let all = ["dangling", "same-order", "others"].iter().all(|name| told.iter().any(|one| one.contains(name)));
            all && status["state"] == "in-force"
        });
        // Files go on, and so does the cluster.
        node.write("policy.d/20.toml", &policy("second", "allow").replace("order = 10", "order = 11"));
        until(&node, "the file", || table().contains("second"));
        admin.create(Kind::HostPolicy, "another", &json!({ "order": 30, "interfaces": "all()", "ingress": [] , "egress": [{ "action": "allow", "protocol": "udp", "ports": [9] }] }));
        until(&node, "another object", || table().contains("another"));
        assert!(!table().contains("dangling") && !table().contains("same-order") && table().contains("good"));
        // What a policy in force stands on is gone: then it all stays as it was.
        admin.delete(Kind::HostNetworkSet, "store");
        node.until("the doubt", |_, status| {
            findings(status).iter().any(|finding| finding.contains("does not go together"))
        });
        assert!(table().contains("good") && table().contains("10.9.0.0/16"));
        admin.delete(Kind::HostPolicy, "good");
        until(&node, "the end of it", || !table().contains("10.9.0.0/16"));
        // What was missing comes.
        admin.create(Kind::HostNetworkSet, "nowhere", &json!({ "cidrs": ["10.8.0.0/16"] }));
        until(&node, "what was missing", || table().contains("dangling"));
    });
}

/// The seed case: training, inference-edge and development clusters, and one hub with the platform's policies for all of them.
#[test]
fn a_development_node_never_reaches_the_model_store_whatever_its_own_cluster_says() {
    isolated("a_development_node_never_reaches_the_model_store_whatever_its_own_cluster_says", || {
        management_link();
        let hub = StandIn::start();
        let platform = Admin::new(hub.kubeconfig());
        platform.create(Kind::HostNetworkSet, "model-store", &json!({ "cidrs": ["10.77.9.0/24"] }));
        platform.create(
            Kind::HostPolicy,
            "model-store",
            &json!({
                "tier": "platform", "order": 10, "interfaces": "all()", "nodes": "pool not in {'training', 'inference-edge'}",
                "egress": [{ "action": "deny", "to": { "sets": ["model-store"] } }],
            }),
        );
        for (pool, reaches) in [("training", true), ("inference-edge", true), ("development", false)] {
            let own = StandIn::start();
            let admin = Admin::new(own.kubeconfig());
            let allow =
                |to: &str| json!([{ "action": "allow", "to": { "cidrs": [to] }, "protocol": "tcp", "ports": [443] }]);
            admin.create(
                Kind::HostPolicy,
                "own-services",
                &json!({ "order": 10, "interfaces": "all()", "egress": allow("10.77.0.0/16") }),
            );
            let mut node = Node::new(&[]);
            let clusters = [("hub", &hub, "tiers = [\"platform\"]"), (pool, &own, "tiers = [\"default\"]")];
            // Top-level keys come before tables.
            let text = settings(&node, &clusters);
            let labels = format!("\n[labels]\npool = \"{pool}\"\n[default.mgmt]\negress = \"deny\"\n");
            node.write("nodewall.toml", &(text + &labels));
            node.run();
            node.until("both clusters", |_, status| {
                (0..2).all(|index| status["clusters"][index]["state"] == "in-sync") && status["state"] == "in-force"
            });
            // What the own cluster's administrator tries against it: every way that a cluster has to be asked first.
            let tries = [
                (
                    Kind::HostPolicy,
                    "a-platform",
                    json!({ "tier": "platform", "order": 1, "interfaces": "all()", "egress": allow("10.77.9.0/24") }),
                ),
                (Kind::HostTier, "before-all", json!({ "order": 1, "default": "pass" })),
                (
                    Kind::HostPolicy,
                    "a-first-tier",
                    json!({ "tier": "before-all", "order": 1, "interfaces": "all()", "egress": allow("10.77.9.0/24") }),
                ),
                (
                    Kind::HostPolicy,
                    "a-stage",
                    json!({ "stage": "untracked", "order": 2, "interfaces": "all()", "egress": allow("10.77.9.0/24") }),
                ),
                (
                    Kind::HostPolicy,
                    "model-store",
                    json!({ "order": 3, "interfaces": "all()", "egress": allow("10.77.9.0/24") }),
                ),
                (Kind::HostNetworkSet, "model-store", json!({ "cidrs": ["192.0.2.1"] })),
                (
                    Kind::HostPolicy,
                    "an-allow",
                    json!({ "order": 4, "interfaces": "all()", "egress": allow("10.77.9.0/24") }),
                ),
            ];
            for (kind, name, spec) in &tries {
                admin.create(*kind, name, spec);
            }
            admin.create(Kind::HostPolicy, "last", &json!({ "order": 99, "interfaces": "all()", "egress": [{ "action": "deny", "protocol": "udp", "ports": [9] }] }));
            until(&node, "the last object", || sh("nft list table inet nodewall").contains("last"));
            node.until("a finding about each attempt but the plain allow", |_, status| {
                let told: Vec<String> =
                    status["findings"].as_array().unwrap().iter().map(ToString::to_string).collect();
                let names = |(kind, name, _): &(Kind, &str, Json)| format!("cluster {pool}: {}/{name}", kind.name());
                // A tier that is never defined is an order that does not matter: contribute says so, and no object comes.
                let wanted = tries.iter().filter(|(kind, name, _)| *kind != Kind::HostTier && *name != "an-allow");
                wanted.map(names).all(|called| told.iter().any(|one| one.contains(&called)))
            });
            let connects = |to: &str| {
                // Whether the kernel lets the first packet out, by the counter of what stands behind all our chains.
                sh(&format!("timeout 1 bash -c 'exec 3<>/dev/tcp/{to}/443' 2>&1 || true"))
            };
            sh(
                "nft add table inet witness; nft 'add chain inet witness out { type filter hook postrouting priority 500 ; }'",
            );
            sh(
                "nft add rule inet witness out ip daddr 10.77.9.9 tcp dport 443 counter; nft add rule inet witness out ip daddr 10.77.8.8 tcp dport 443 counter",
            );
            connects("10.77.9.9");
            connects("10.77.8.8");
            let rules = sh("nft list chain inet witness out");
            let packets = |to: &str| {
                let line = rules.lines().find(|line| line.contains(to)).unwrap();
                line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
            };
            assert!(packets("10.77.8.8") > 0, "{pool} reaches its own services\n{rules}\n{}", node.log());
            assert_eq!(packets("10.77.9.9") > 0, reaches, "{pool}\n{rules}\n{}", sh("nft list table inet nodewall"));
            sh("nft delete table inet witness");
            node.kill();
        }
    });
}

/// From the object committed to the kernel committed: printed, for the machine's noise decides.
#[test]
fn an_object_is_in_force_soon() {
    isolated("an_object_is_in_force_soon", || {
        management_link();
        let server = StandIn::start();
        let admin = Admin::new(server.kubeconfig());
        admin.create(Kind::HostPolicy, "base", &spec("default", "allow"));
        let mut node = Node::new(&[]);
        node.write("nodewall.toml", &settings(&node, &[("hub", &server, "")]));
        node.run();
        until(&node, "the first object", || sh("nft list table inet nodewall").contains("base"));
        let mut times = Vec::new();
        for number in 0..15 {
            let port = 20_000 + number;
            admin.change(
                Kind::HostPolicy,
                "base",
                &json!({ "ingress": [{ "action": "allow", "protocol": "tcp", "ports": [port] }] }),
            );
            times.push(until(&node, "the change", || sh("nft list table inet nodewall").contains(&port.to_string())));
            // As changes of people come: not one on the other's heels.
            std::thread::sleep(Duration::from_millis(100));
        }
        times.sort();
        println!(
            "from object committed to kernel committed: median {} ms, worst {} ms",
            times[7].as_millis(),
            times[14].as_millis()
        );
    });
}
