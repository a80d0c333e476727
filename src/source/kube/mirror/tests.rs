//! The mirror on its own: what comes of answers, and of everything that is none.
#![allow(clippy::unwrap_used)]

use serde_json::{Value as Json, json};

use super::*;
use crate::source::kube::item::Metadata;

fn cluster() -> Cluster {
    Cluster {
        name: "hub".to_owned(),
        kubeconfig: "/dev/null".into(),
        contribute: [Contribution::Policies, Contribution::Sets].into(),
        tiers: ["platform".to_owned()].into(),
        believe_empty: false,
        node_addresses: Vec::new(),
        calico: false,
    }
}

fn mirror() -> Mirror {
    mirror_of(cluster(), &Holding::default())
}

fn mirror_of(cluster: Cluster, before: &Holding) -> Mirror {
    let labels = [("pool".to_owned(), "training".to_owned())].into();
    Mirror::new(cluster, Me { labels, ..Me::default() }, (before, &ClusterNodes::new()))
}

fn item(name: &str, revision: u64, spec: Json) -> Item {
    let metadata = Metadata { name: name.to_owned(), resource_version: revision.to_string(), ..Metadata::default() };
    Item { metadata, spec, ..Item::default() }
}

fn set(name: &str, revision: u64, cidr: &str) -> Item {
    item(name, revision, json!({ "cidrs": [cidr] }))
}

fn policy(name: &str, nodes: &str) -> Item {
    item(name, 1, json!({ "tier": "platform", "nodes": nodes, "interfaces": "all()", "ingress": [] }))
}

fn refused(code: u16) -> Failure {
    Failure::Refused { code, message: "no".to_owned() }
}

fn listing(revision: String, items: Vec<Item>) -> Listing {
    Listing { revision, items, ..Listing::default() }
}

/// A pass in which sets and policies are these, and all other kinds are empty.
fn pass(mirror: &mut Mirror, revision: u64, sets: Vec<Item>, policies: Vec<Item>) -> Plan {
    let mut lists = Vec::new();
    for kind in mirror.resources() {
        let items = match kind {
            Resource::Object(Kind::HostNetworkSet) => sets.clone(),
            Resource::Object(Kind::HostPolicy) => policies.clone(),
            _ => Vec::new(),
        };
        lists.push((kind, Ok(listing(revision.to_string(), items))));
    }
    mirror.passed(lists, 0)
}

fn failed_pass(mirror: &mut Mirror, failure: &Failure) -> Plan {
    let lists = mirror.resources().into_iter().map(|kind| (kind, Err(failure.clone()))).collect();
    mirror.passed(lists, 0)
}

fn names(mirror: &Mirror) -> Vec<String> {
    mirror.holding().objects.into_keys().map(|(_, name)| name).collect()
}

#[test]
fn lists_and_events_are_followed_and_what_means_the_same_is_no_change() {
    let mut mirror = mirror();
    assert!(!mirror.holding().heard);
    let plan = pass(&mut mirror, 10, vec![set("a", 5, "10.0.0.1")], vec![]);
    assert!(plan.changed && mirror.holding().heard);
    assert_eq!(plan.watch.len(), 4);
    assert!(plan.watch.iter().all(|(_, revision)| revision == "10"));
    assert!(plan.again >= PERIOD * 3 / 4 && plan.again <= PERIOD);
    assert!(!pass(&mut mirror, 11, vec![set("a", 9, "10.0.0.1")], vec![]).changed);
    assert!(!mirror.stored(Resource::Object(Kind::HostNetworkSet), set("a", 12, "10.0.0.1")).changed);
    assert!(mirror.stored(Resource::Object(Kind::HostNetworkSet), set("a", 13, "10.0.0.2")).changed);
    assert!(mirror.stored(Resource::Object(Kind::HostNetworkSet), set("b", 14, "10.0.0.2")).changed);
    assert!(mirror.deleted(Resource::Object(Kind::HostNetworkSet), &set("a", 15, "10.0.0.2")).changed);
    assert!(!mirror.deleted(Resource::Object(Kind::HostNetworkSet), &set("a", 15, "10.0.0.2")).changed);
    assert_eq!(names(&mirror), ["b"]);
    mirror.follows(Resource::Object(Kind::HostNetworkSet), "20");
    assert_eq!(mirror.goes_on(Resource::Object(Kind::HostNetworkSet)), "20");
    assert_eq!(mirror.goes_on(Resource::Object(Kind::HostPolicy)), "11");
    // What a list lacks is gone.
    assert!(pass(&mut mirror, 21, vec![set("c", 21, "10.0.0.3")], vec![]).changed);
    assert_eq!(names(&mirror), ["c"]);
    assert_eq!((mirror.health().reach, mirror.health().revision), (Reach::Synced, 21));
}

#[test]
fn no_refusal_and_no_silence_makes_anything_less_and_pauses_stay_short() {
    let mut mirror = mirror();
    pass(&mut mirror, 10, vec![set("a", 5, "10.0.0.1")], vec![]);
    let before = mirror.holding();
    let mut pauses = Vec::new();
    for code in [401, 403, 404, 429, 500, 503, 504] {
        let plan = failed_pass(&mut mirror, &refused(code));
        assert!(!plan.changed && plan.watch.is_empty(), "{code}");
        pauses.push(plan.again);
    }
    pauses.push(failed_pass(&mut mirror, &Failure::Broken("no route to host".to_owned())).again);
    pauses.push(mirror.broke(Resource::Object(Kind::HostPolicy), &Failure::Broken("cut".to_owned()), u64::MAX));
    assert_eq!(mirror.holding(), before);
    assert_eq!(mirror.health().reach, Reach::Away);
    // What a server means is not asked for every two seconds for ever; what may pass is.
    assert!(failed_pass(&mut mirror, &refused(401)).again > LONGEST_PAUSE);
    assert!(failed_pass(&mut mirror, &refused(503)).again <= LONGEST_PAUSE);
    assert!(pauses[0] <= FIRST_PAUSE && pauses.is_sorted(), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE), "{pauses:?}");
    // A watch that says something is proof that the server is back.
    pass(&mut mirror, 11, vec![set("a", 5, "10.0.0.1")], vec![]);
    mirror.follows(Resource::Object(Kind::HostPolicy), "12");
    assert!(mirror.broke(Resource::Object(Kind::HostPolicy), &Failure::Broken("cut".to_owned()), 0) <= FIRST_PAUSE);
    // Expired is no trouble of the server.
    assert!(mirror.broke(Resource::Object(Kind::HostPolicy), &refused(410), 0) < FIRST_PAUSE);
}

#[test]
fn a_kind_that_is_refused_is_kept_while_others_are_followed() {
    let mut mirror = mirror();
    pass(&mut mirror, 10, vec![set("a", 5, "10.0.0.1")], vec![policy("p", "all()")]);
    let with = |failure: Failure, mirror: &mut Mirror| {
        let lists = mirror.resources().into_iter().map(|kind| match kind {
            Resource::Object(Kind::HostPolicy) => (kind, Err(failure.clone())),
            _ => (kind, Ok(listing("11".to_owned(), vec![set("b", 11, "10.0.0.1")]))),
        });
        let lists = lists
            .filter(|(kind, _)| matches!(kind, Resource::Object(Kind::HostPolicy | Kind::HostNetworkSet)))
            .collect();
        mirror.passed(lists, 0)
    };
    let plan = with(refused(403), &mut mirror);
    assert_eq!(plan.watch.len(), 1);
    assert!(plan.again <= LONGEST_PAUSE, "it may be passing");
    assert_eq!(names(&mirror), ["b", "p"]);
    assert_eq!(mirror.health().reach, Reach::Partial);
    assert!(with(refused(404), &mut mirror).again <= LONGEST_PAUSE, "definitions that are gone take nothing with them");
    assert_eq!(names(&mirror), ["b", "p"]);
    for _ in 0..PASSING {
        with(refused(403), &mut mirror);
    }
    assert!(with(refused(403), &mut mirror).again > LONGEST_PAUSE);
}

#[test]
fn a_cluster_is_heard_when_all_its_kinds_are_there_or_unknown() {
    let heard = |failure: Failure| {
        let mut mirror = mirror();
        let lists = mirror.resources().into_iter().map(|kind| match kind {
            Resource::Object(Kind::HostExpectation) => (kind, Err(failure.clone())),
            _ => (kind, Ok(listing("7".to_owned(), Vec::new()))),
        });
        let lists = lists.collect();
        mirror.passed(lists, 0);
        mirror.holding().heard
    };
    assert!(heard(refused(404)));
    assert!(!heard(refused(403)));
}

#[test]
fn nothing_at_all_is_not_believed_until_there_is_something_again() {
    let mut mirror = mirror();
    pass(&mut mirror, 100, vec![set("a", 5, "10.0.0.1")], vec![]);
    let plan = pass(&mut mirror, 3, vec![], vec![]);
    assert_eq!(names(&mirror), ["a"]);
    assert_eq!(mirror.health().reach, Reach::Doubted);
    assert!(plan.changed && mirror.holding().findings.iter().any(|finding| finding.message.contains("not believed")));
    // The same over a restart of the daemon.
    let mut again = mirror_of(cluster(), &mirror.holding());
    pass(&mut again, 3, vec![], vec![]);
    assert_eq!(names(&again), ["a"]);
    assert_eq!(
        mirror.stored(Resource::Object(Kind::HostNetworkSet), set("b", 4, "10.0.0.1")),
        Noticed { changed: false, nodes: false, list: true }
    );
    pass(&mut mirror, 4, vec![set("b", 4, "10.0.0.1")], vec![]);
    assert_eq!(names(&mirror), ["b"]);
    // What is deleted one by one is deleted.
    assert!(mirror.deleted(Resource::Object(Kind::HostNetworkSet), &set("b", 5, "10.0.0.1")).changed);
    assert!(names(&mirror).is_empty());
    let believing = Cluster { believe_empty: true, ..cluster() };
    let mut believing = mirror_of(believing, &again.holding());
    pass(&mut believing, 3, vec![], vec![]);
    assert!(names(&believing).is_empty());
}

#[test]
fn an_older_state_is_followed_and_told() {
    let mut mirror = mirror();
    pass(&mut mirror, 100, vec![set("a", 90, "10.0.0.1"), set("b", 95, "10.0.0.1")], vec![]);
    assert!(pass(&mut mirror, 60, vec![set("a", 50, "10.0.0.1")], vec![]).changed);
    assert_eq!(names(&mirror), ["a"]);
    let told = |mirror: &Mirror| mirror.holding().findings.iter().any(|finding| finding.message.contains("went back"));
    assert!(told(&mirror));
    mirror.follows(Resource::Object(Kind::HostPolicy), "70");
    pass(&mut mirror, 70, vec![set("a", 50, "10.0.0.1")], vec![]);
    assert!(told(&mirror));
    pass(&mut mirror, 101, vec![set("a", 50, "10.0.0.1")], vec![]);
    assert!(!told(&mirror));
}

#[test]
fn an_object_that_cannot_be_used_keeps_its_last_good_version() {
    let mut mirror = mirror();
    let bad = |revision| item("a", revision, json!({ "cidrs": ["10.0.0.0/33"] }));
    pass(&mut mirror, 10, vec![bad(9), set("b", 9, "10.0.0.1")], vec![]);
    assert_eq!(names(&mirror), ["b"]);
    assert!(mirror.holding().hidden.contains(&(Kind::HostNetworkSet, "a".to_owned())));
    assert!(mirror.stored(Resource::Object(Kind::HostNetworkSet), set("a", 11, "10.0.0.1")).changed);
    let good = mirror.holding();
    assert_eq!(good.findings, []);
    assert!(mirror.stored(Resource::Object(Kind::HostNetworkSet), bad(12)).changed);
    let holding = mirror.holding();
    assert_eq!(holding.objects, good.objects);
    assert_eq!(mirror.health().invalid, ["HostNetworkSet/a"]);
    let [finding] = &holding.findings[..] else { unreachable!("{:?}", holding.findings) };
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(finding.place.to_string(), "cluster hub: HostNetworkSet/a spec.cidrs[0]");
    assert!(finding.help.contains("last good version stays in force"), "{finding:?}");
    // Back to what it was.
    assert!(mirror.stored(Resource::Object(Kind::HostNetworkSet), set("a", 13, "10.0.0.1")).changed);
    assert_eq!(mirror.holding(), good);
}

#[test]
fn policies_of_other_nodes_are_not_held_but_take_their_names() {
    let mut mirror = mirror();
    let plan =
        pass(&mut mirror, 10, vec![], vec![policy("ours", "pool == 'training'"), policy("theirs", "pool == 'dev'")]);
    assert!(plan.changed);
    assert_eq!(names(&mirror), ["ours"]);
    assert!(mirror.holding().hidden.contains(&(Kind::HostPolicy, "theirs".to_owned())));
    assert_eq!((mirror.health().objects, mirror.health().elsewhere), (1, 1));
    assert!(!mirror.stored(Resource::Object(Kind::HostPolicy), policy("theirs", "pool == 'other'")).changed);
    assert!(mirror.stored(Resource::Object(Kind::HostPolicy), policy("theirs", "has(pool)")).changed);
    assert_eq!(names(&mirror), ["ours", "theirs"]);
}

#[test]
fn what_is_held_survives_on_disk() {
    let mut mirror = mirror();
    pass(&mut mirror, 10, vec![set("a", 5, "10.0.0.1")], vec![policy("p", "all()"), policy("q", "pool == 'dev'")]);
    let holding = mirror.holding();
    let text = holding.to_text("hub").unwrap();
    assert_eq!(Holding::restore(&text), Ok(holding));
    assert!(Holding::restore(&text.replace("\"version\":1", "\"version\":2")).is_err());
    assert!(Holding::restore("{}").is_err());
}

const PEERS: Resource = Resource::Object(Kind::HostPeers);

/// A Node with this label.
fn node(name: &str, pool: &str) -> Item {
    let object = json!({ "metadata": { "name": name, "labels": { "pool": pool } },
                         "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }] } });
    serde_json::from_value(object).unwrap()
}

/// A mirror of a cluster in which this node is "me", and its labels count.
fn mirror_at_home() -> Mirror {
    let cluster = Cluster { contribute: [Contribution::Policies, Contribution::Nodes].into(), ..cluster() };
    let me = Me { node: Some("me".to_owned()), ..Me::default() };
    Mirror::new(cluster, me, (&Holding::default(), &ClusterNodes::new()))
}

/// A pass of a cluster with these policies and nodes.
fn pass_with_nodes(mirror: &mut Mirror, policies: &[Item], nodes: &[Item]) -> Plan {
    let list = |resource| match resource {
        Resource::Object(Kind::HostPolicy) => policies.to_vec(),
        Resource::Node => nodes.to_vec(),
        Resource::Object(_) | Resource::Calico(..) => Vec::new(),
    };
    let listed = |resource| (resource, Ok(listing("7".to_owned(), list(resource))));
    let lists = mirror.resources().into_iter().map(listed).collect();
    mirror.passed(lists, 0)
}

#[test]
fn the_labels_of_this_node_say_which_policies_are_for_it() {
    let mut mirror = mirror_at_home();
    let policies = [policy("for-training", "pool == 'training'"), policy("for-login", "pool == 'login'")];
    let plan = pass_with_nodes(&mut mirror, &policies, &[node("me", "training"), node("other", "login")]);
    assert!(plan.changed && plan.nodes && mirror.holding().heard);
    assert_eq!((names(&mirror), mirror.health().nodes), (vec!["for-training".to_owned()], 2));
    let told = mirror.stored(Resource::Node, node("other", "dev"));
    assert_eq!((told.nodes, told.list), (true, false), "others' labels are for those who select them");
    assert_eq!(mirror.stored(Resource::Node, node("other", "dev")), Noticed::default());
    let told = mirror.stored(Resource::Node, node("me", "login"));
    assert!(told.list, "what is for another node now, and for this one, was not kept");
    let plan = pass_with_nodes(&mut mirror, &policies, &[node("me", "login")]);
    assert!(plan.changed);
    assert_eq!(names(&mirror), ["for-login"]);
}

#[test]
fn a_cluster_without_nodes_is_not_believed_and_keeps_its_documents() {
    let mut mirror = mirror_at_home();
    let policies = [policy("p", "all()")];
    pass_with_nodes(&mut mirror, &policies, &[node("me", "training")]);
    let plan = pass_with_nodes(&mut mirror, &policies, &[]);
    assert!(!plan.nodes && plan.changed);
    assert_eq!((mirror.health().nodes, mirror.health().reach), (1, Reach::Doubted));
    assert!(mirror.holding().findings.iter().any(|finding| finding.message.contains("no nodes any more")));
    assert!(mirror.stored(Resource::Node, node("me", "training")).list);
    // Nodes that register again on an empty etcd do not vouch for documents that are gone.
    pass_with_nodes(&mut mirror, &[], &[node("me", "training")]);
    assert_eq!(names(&mirror), ["p"]);
    assert_eq!(mirror.health().reach, Reach::Doubted);
}

#[test]
fn with_digests_nodes_are_not_asked_for_and_without_the_kind_they_are() {
    let mut mirror = mirror_at_home();
    let index = item("index", 1, json!({}));
    let digests = |items: Vec<Item>| (PEERS, Ok(listing("7".to_owned(), items)));
    for resource in [Resource::Node, Resource::Object(Kind::HostState)] {
        assert!(mirror.is_needless(resource, &[digests(vec![index.clone()])]));
        assert!(!mirror.is_needless(resource, &[digests(vec![])]));
        assert!(!mirror.is_needless(resource, &[(PEERS, Err(refused(404)))]));
    }
    assert!(!mirror.is_needless(Resource::Object(Kind::HostPolicy), &[digests(vec![index.clone()])]));
    let lists = mirror.resources().into_iter().filter(|resource| *resource != PEERS);
    let listed = |resource| (resource, Ok(listing("7".to_owned(), Vec::new())));
    let lists = lists.map(listed).chain([(PEERS, Err(refused(404)))]).collect();
    mirror.passed(lists, 0);
    assert!(mirror.holding().heard && mirror.health().reach == Reach::Synced, "{:?}", mirror.health());
    // When digests come, all is listed again, and when they cannot be had for once, they count as they were.
    assert!(mirror.stored(PEERS, index).list);
    assert!(mirror.is_needless(Resource::Node, &[(PEERS, Err(refused(403)))]));
}

/// A pass of a cluster with Calico's objects: host endpoints and policies are these, staged policies are unknown.
fn pass_with_calico(mirror: &mut Mirror, endpoints: &[Item], policies: &[Item]) -> Plan {
    let listed = |resource| {
        let items = match resource {
            Resource::Calico(CalicoKind::HostEndpoint, _) => endpoints.to_vec(),
            Resource::Calico(CalicoKind::GlobalNetworkPolicy, _) => policies.to_vec(),
            Resource::Calico(CalicoKind::StagedGlobalNetworkPolicy, _) => return (resource, Err(refused(404))),
            _ => Vec::new(),
        };
        (resource, Ok(listing("7".to_owned(), items)))
    };
    let lists = mirror.resources().into_iter().map(listed).collect();
    let plan = mirror.passed(lists, 0);
    mirror.settle();
    plan
}

#[test]
fn calico_s_objects_are_held_beside_ours_and_come_to_documents() {
    let me = Me { name: "n1".to_owned(), ..Me::default() };
    let new = |before: &Holding| {
        Mirror::new(Cluster { calico: true, ..cluster() }, me.clone(), (before, &ClusterNodes::new()))
    };
    let mut mirror = new(&Holding::default());
    let endpoint = |node: &str| item("h", 5, json!({ "node": node, "interfaceName": "eth0" }));
    let policy = |rules: Json| item("web", 6, json!({ "selector": "all()", "ingress": rules }));
    let allow = policy(json!([{ "action": "Allow" }]));
    let plan = pass_with_calico(&mut mirror, &[endpoint("n1")], std::slice::from_ref(&allow));
    assert!(plan.changed && mirror.holding().heard);
    assert_eq!(mirror.health().reach, Reach::Synced, "what a cluster never had is not missed");
    assert!(names(&mirror).contains(&"calico_web".to_owned()), "{:?}", names(&mirror));
    let held = mirror.holding();
    assert_eq!(mirror.health().objects, held.objects.len());
    assert!(!pass_with_calico(&mut mirror, &[endpoint("n1")], std::slice::from_ref(&allow)).changed);

    // What is wrong counts as before; what is empty is doubted; both from the disk as well.
    let policies = Resource::Calico(CalicoKind::GlobalNetworkPolicy, Form::V3);
    assert!(mirror.stored(policies, policy(json!([{ "action": "Permit" }]))).changed);
    mirror.settle();
    assert_eq!(mirror.holding().objects, held.objects);
    assert_eq!(mirror.health().invalid, ["GlobalNetworkPolicy/web"]);
    let kept = Holding::restore(&mirror.holding().to_text("hub").unwrap()).unwrap();
    assert_eq!(kept, mirror.holding());
    let mut again = new(&kept);
    assert_eq!(again.holding(), kept);
    pass_with_calico(&mut again, &[], &[]);
    assert_eq!((again.health().reach, again.holding().objects), (Reach::Doubted, held.objects));
    assert!(again.stored(policies, allow).list);

    // What is deleted one by one is gone.
    assert!(mirror.deleted(policies, &policy(json!([]))).changed);
    let endpoints = Resource::Calico(CalicoKind::HostEndpoint, Form::V3);
    assert!(mirror.stored(endpoints, endpoint("n2")).changed && !mirror.stored(endpoints, endpoint("n2")).changed);
    mirror.settle();
    assert!(mirror.holding().objects.is_empty());
    // A cluster that is not asked for them any more has none, whatever is on disk.
    let mut without = Mirror::new(cluster(), me, (&kept, &ClusterNodes::new()));
    without.settle();
    assert!(without.holding().objects.is_empty() && without.holding().calico.is_none());
}
