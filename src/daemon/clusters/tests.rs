//! What goes together and what is set aside, without a loop around it.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;

use super::super::documents::{self, Whereabouts};
use super::*;
use crate::policy::clusters::Contribution;
use crate::source::Trust;
use crate::text::render::line;

/// A node with files and with what clusters said.
struct World {
    folder: tempfile::TempDir,
    clusters: Clusters,
    loads: usize,
}

impl World {
    fn new(clusters: &[&str]) -> Self {
        let cluster = |name: &&str| Cluster {
            name: (*name).to_owned(),
            kubeconfig: "/nowhere/kubeconfig".into(),
            contribute: [Contribution::Policies, Contribution::Sets].into(),
            tiers: ["default".to_owned()].into(),
            believe_empty: false,
            node_addresses: Vec::new(),
            calico: false,
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        let text: String = clusters
            .iter()
            .map(|name| format!("[[source.cluster]]\nname = \"{name}\"\nkubeconfig = \"/nowhere/kubeconfig\"\n"))
            .collect();
        std::fs::write(folder.path().join("nodewall.toml"), text).unwrap();
        let clusters = Clusters { wanted: clusters.iter().map(cluster).collect(), ..Clusters::default() };
        Self { folder, clusters, loads: 0 }
    }

    fn file(&self, text: &str) {
        std::fs::write(self.folder.path().join("policy.d/10.toml"), text).unwrap();
    }

    /// The cluster says exactly this: kind, name and spec.
    fn says(&mut self, cluster: &str, objects: &[(&str, &str, serde_json::Value)]) {
        let object = |(kind, name, spec): &(&str, &str, serde_json::Value)| {
            let text = json!({ "apiVersion": "nodewall.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
            (format!("cluster {cluster}: {kind}/{name}"), json!(text.to_string()))
        };
        let objects: serde_json::Map<_, _> = objects.iter().map(object).collect();
        let text = json!({ "version": 1, "objects": objects, "hidden": [] }).to_string();
        self.clusters.holdings.insert(cluster.to_owned(), Arc::new(Holding::restore(&text).unwrap()));
    }

    /// Loads until there is nothing to set aside: the names of policies and sets, how many errors are left, and the findings.
    fn settle(&mut self) -> (Vec<String>, usize, Vec<String>) {
        self.loads = 0;
        loop {
            self.loads += 1;
            assert!(self.loads < 10, "it does not settle");
            let holdings = self.clusters.for_a_load();
            let at = |name: &str| self.folder.path().join(name);
            let whereabouts = Whereabouts {
                config: at("nodewall.toml"),
                directories: vec![at("policy.d")],
                paths: Vec::new(),
                node: None,
            };
            let mut documents = documents::load_after(&whereabouts, Trust::Required, None, &holdings);
            match self.clusters.judge(&mut documents, &Facts::default(), Instant::now()) {
                Judgement::Again => {}
                Judgement::Wait(_) => panic!("there is nothing to wait for"),
                Judgement::Good => {
                    let policy = &documents.policy;
                    let own = policy.policies.iter().filter(|policy| !policy.name.starts_with("guard-"));
                    let names = own.map(|policy| policy.name.clone()).chain(policy.sets.keys().cloned()).collect();
                    let (_, resolved) = resolve(policy, &documents.config.settings, &Facts::default());
                    let left = documents::errors(&documents.findings) + documents::errors(&resolved);
                    return (names, left, documents.findings.iter().map(line).collect());
                }
            }
        }
    }
}

fn to_set(set: &str, order: u32) -> serde_json::Value {
    json!({ "order": order, "interfaces": "all()", "egress": [{ "action": "deny", "to": { "sets": [set] } }] })
}

fn set(cidr: &str) -> serde_json::Value {
    json!({ "cidrs": [cidr] })
}

const FILE: &str = "[[policy]]\nname = \"file\"\norder = 1\ninterfaces = \"all()\"\ningress = []\n";

#[test]
fn new_objects_that_do_not_fit_are_set_aside_and_all_else_goes_on() {
    let mut world = World::new(&["dev"]);
    world.file(FILE);
    world.says("dev", &[("HostPolicy", "a", to_set("s", 2)), ("HostNetworkSet", "s", set("10.0.0.0/8"))]);
    assert_eq!(world.settle(), (vec!["file".into(), "a".into(), "s".into()], 0, vec![]));
    assert_eq!(world.loads, 1);
    let good = ("HostPolicy", "a", to_set("s", 2));
    let sets = ("HostNetworkSet", "s", set("10.0.0.0/8"));
    // A set that nobody defines, and an order that a file has.
    world.says(
        "dev",
        &[good.clone(), sets.clone(), ("HostPolicy", "b", to_set("nowhere", 3)), ("HostPolicy", "c", to_set("s", 1))],
    );
    let (names, left, findings) = world.settle();
    assert_eq!((names.join(" ").as_str(), left), ("file a s", 0), "{findings:#?}");
    assert!(findings.len() == 2 && findings.iter().all(|finding| finding.contains("warning[")), "{findings:#?}");
    // A new version that does not fit: the one before counts.
    world.says("dev", &[("HostPolicy", "a", to_set("nowhere", 2)), sets]);
    let (names, left, findings) = world.settle();
    assert_eq!((names.join(" ").as_str(), left, findings.len()), ("file a s", 0, 1), "{findings:#?}");
    // What was missing comes, also in a file.
    world.file(&format!("{FILE}[[set]]\nname = \"nowhere\"\ncidrs = []\n"));
    let (names, left, findings) = world.settle();
    assert_eq!((names.join(" ").as_str(), left, findings.len()), ("file a nowhere s", 0, 0), "{findings:#?}");
}

#[test]
fn a_cluster_whose_objects_stand_on_what_is_gone_stays_as_it_was() {
    let mut world = World::new(&["hub", "dev"]);
    world.file(FILE);
    world.says("hub", &[("HostNetworkSet", "s", set("10.0.0.0/8"))]);
    world.says("dev", &[("HostPolicy", "a", to_set("s", 2))]);
    assert_eq!(world.settle().0, ["file", "a", "s"]);
    // The error is at the policy of dev, which has not changed; hub has.
    world.says("hub", &[]);
    let (names, left, findings) = world.settle();
    assert_eq!((names.join(" ").as_str(), left), ("file a s", 0), "{findings:#?}");
    assert!(
        findings.iter().any(|finding| finding.contains("cluster \"hub\" says does not go together")),
        "{findings:#?}"
    );
    // The other goes on meanwhile.
    world.says("dev", &[("HostPolicy", "a", to_set("s", 2)), ("HostNetworkSet", "t", set("10.0.0.1"))]);
    assert_eq!(world.settle().0, ["file", "a", "s", "t"]);
    world.says("dev", &[]);
    let (names, left, findings) = world.settle();
    assert_eq!((names.join(" ").as_str(), left, findings.len()), ("file", 0, 0), "{findings:#?}");
}

#[test]
fn errors_of_files_stay_errors() {
    let mut world = World::new(&["dev"]);
    world.file("[[policy]]\nname = \"file\"\ninterfaces = \"all()\"\negress = [{ action = \"deny\", to = { sets = [\"x\"] } }]\n");
    world.says("dev", &[("HostNetworkSet", "s", set("10.0.0.0/8"))]);
    let (_, left, _) = world.settle();
    assert_eq!(left, 1);
    // What they stand on comes from a cluster.
    world.says("dev", &[("HostNetworkSet", "x", set("10.0.0.0/8"))]);
    assert_eq!(world.settle().1, 0);
    // A cluster that was never heard of is an error, too, and none that setting aside could mend.
    let mut world = World::new(&["dev"]);
    let (_, left, findings) = world.settle();
    assert!(left == 1 && findings[0].contains("nothing is known yet"), "{findings:?}");
}

#[test]
fn a_cluster_that_was_just_asked_is_waited_for() {
    let mut world = World::new(&["dev"]);
    let cluster = world.clusters.wanted[0].clone();
    let nothing = (&Holding::default(), &ClusterNodes::new());
    let source = Source::start(cluster.clone(), Me::default(), nothing, Pace::SHIPPED, 1, |_| {}).unwrap();
    let (began, since) = (Instant::now(), SystemTime::now());
    let running = Running {
        cluster,
        me: Me::default(),
        relabelled: false,
        number: 1,
        began,
        health: None,
        since,
        renewer: None,
        _source: source,
    };
    world.clusters.running.insert("dev".to_owned(), running);
    let whereabouts = Whereabouts {
        config: world.folder.path().join("nodewall.toml"),
        directories: Vec::new(),
        paths: Vec::new(),
        node: None,
    };
    let mut documents = documents::load_after(&whereabouts, Trust::Required, None, &world.clusters.for_a_load());
    let judge =
        |clusters: &mut Clusters, documents: &mut Documents, now| clusters.judge(documents, &Facts::default(), now);
    assert!(
        matches!(judge(&mut world.clusters, &mut documents, began), Judgement::Wait(until) if until == began + FIRST_WORD)
    );
    assert!(matches!(judge(&mut world.clusters, &mut documents, began + FIRST_WORD), Judgement::Good));
}

#[test]
fn what_is_damaged_on_disk_is_told_and_is_nothing_that_a_cluster_said() {
    let mut world = World::new(&["hub", "dev"]);
    for cluster in ["hub", "dev"] {
        world.says(cluster, &[("HostNetworkSet", cluster, set("10.0.0.0/8"))]);
    }
    let state = world.folder.path().join("state");
    let mut store = Store::new(Directory::open(&state).unwrap());
    for (cluster, holding) in &world.clusters.holdings {
        store.keep_cluster(cluster, &holding.to_text(cluster).unwrap()).unwrap();
    }
    let before = kept(&state, &world.clusters.wanted);
    assert_eq!((before.holdings, before.troubles), (world.clusters.holdings.clone(), vec![]));
    let path = state.join("hub.cluster");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("10.0.0.0", "11.0.0.0")).unwrap();
    let Kept { holdings, troubles, .. } = kept(&state, &world.clusters.wanted);
    assert_eq!(holdings.keys().collect::<Vec<_>>(), ["dev"]);
    assert_eq!(troubles, ["what cluster \"hub\" said: hub.cluster: the checksum does not match"]);
    // Until it speaks, documents are refused rather than taken without what it said.
    world.clusters.holdings = holdings;
    let (_, left, findings) = world.settle();
    assert!(left == 1 && findings.iter().any(|finding| finding.contains("nothing is known yet")), "{findings:?}");
}
