//! A pool of 10,000 nodes of which 50 change every second: what that costs one node, by Nodes and HostStates themselves and by digests
//! of these, and how long it takes from a told batch to the kernel; beside the nft program on the same change of elements.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::sync::Arc;
use std::time::Instant;

use nodewall::compile::compile;
use nodewall::controller::digests::{Layout, pause};
use nodewall::driver::{self, Netlink};
use nodewall::net::facts::Facts;
use nodewall::net::node::ClusterNodes;
use nodewall::nft::text;
use nodewall::policy::clusters::{Cluster, Contribution};
use nodewall::source::kube::mirror::{Listing, Mirror};
use nodewall::source::kube::resource::Resource;
use nodewall::source::kube::{Holding, Me};
use nodewall::source::object::Kind;
use nodewall::source::object::peers::{HostPeersSpec, INDEX};
use serde_json::{Value as Json, json};

const NODES: usize = 10_000;
/// Changes a second.
const CHURN: usize = 50;
/// Seconds of churn.
const SECONDS: usize = 20;

const POLICY: &str = r#"
[[policy]]
name = "rail-peers"
order = 10
interfaces = "role in {'mgmt', 'rail'}"
ingress = [
  { action = "allow", from = { nodes = "pool == 'training'", role = "rail" }, protocol = "tcp" },
  { action = "allow", from = { nodes = "pool == 'training'", role = "rail" }, protocol = "icmp" },
  { action = "allow", from = { nodes = "pool == 'training'" }, protocol = "tcp", ports = [9100] },
]
"#;

/// A Node as a GPU fleet has it: some fifty labels and annotations, images, conditions; about 12 KiB.
fn node(number: usize, turn: usize) -> Json {
    let labels: BTreeMap<String, String> = (0..45)
        .map(|label| (format!("feature.node.kubernetes.io/cpu-cpuid.FEATURE{label}"), "true".to_owned()))
        .chain([
            ("pool".to_owned(), "training".to_owned()),
            ("kubernetes.io/hostname".to_owned(), format!("gpu-{number:05}")),
            ("topology.kubernetes.io/zone".to_owned(), format!("z{}", number % 4)),
        ])
        .collect();
    let images: Vec<Json> = (0..50)
        .map(|image| json!({ "names": [format!("registry.example/some/image-{image}@sha256:{image:064}")], "sizeBytes": 1 }))
        .collect();
    json!({
        "metadata": { "name": format!("gpu-{number:05}"), "resourceVersion": (turn + 1).to_string(), "labels": labels,
                      "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": "x".repeat(1500) } }] },
        "spec": { "podCIDR": "10.244.0.0/24" },
        "status": { "addresses": [{ "type": "InternalIP", "address": address(0, number).to_string() },
                                  { "type": "Hostname", "address": format!("gpu-{number:05}") }],
                    "images": images },
    })
}

fn address(net: u32, number: usize) -> std::net::Ipv4Addr {
    // No two are neighbours, as no two racks are.
    std::net::Ipv4Addr::from(0x0a00_0000 + (net << 20) + number as u32 * 2)
}

fn state(number: usize, turn: usize) -> Json {
    let interfaces: Vec<Json> = (1..=8)
        .map(|rail| {
            json!({ "name": format!("rail{rail}"), "role": "rail", "coverage": "enforced",
                            "addresses": [format!("{}/24", address(rail, number + NODES * turn))] })
        })
        .collect();
    json!({ "metadata": { "name": format!("gpu-{number:05}"), "resourceVersion": (turn + 1).to_string() },
            "spec": { "node": format!("gpu-{number:05}") }, "status": { "interfaces": interfaces } })
}

fn mirror() -> Mirror {
    let cluster = Cluster {
        name: "training".to_owned(),
        kubeconfig: "/dev/null".into(),
        contribute: [Contribution::Nodes].into(),
        tiers: [].into(),
        believe_empty: false,
        node_addresses: Vec::new(),
        calico: false,
    };
    Mirror::new(cluster, Me::default(), (&Holding::default(), &ClusterNodes::new()))
}

fn listed(items: Vec<String>) -> Listing {
    let items = items.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    Listing { revision: "1".to_owned(), items, ..Listing::default() }
}

const STATES: Resource = Resource::Object(Kind::HostState);
const PEERS: Resource = Resource::Object(Kind::HostPeers);

/// Digests of all nodes, as the controller makes them.
fn digests(nodes: &ClusterNodes) -> Vec<String> {
    let mut layout = Layout::default();
    layout.follow(nodes);
    let object = |(name, spec): (String, HostPeersSpec)| {
        json!({ "metadata": { "name": name, "resourceVersion": "1" }, "spec": spec }).to_string()
    };
    layout.digests(nodes).into_iter().chain([(INDEX.to_owned(), HostPeersSpec::default())]).map(object).collect()
}

/// The memory that a mirror of these texts takes, in MiB: asked of a process that has nothing else.
fn memory(kind: &str, texts: &[String]) -> f64 {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), texts.join("\n")).unwrap();
    let me = std::env::current_exe().unwrap();
    let said = std::process::Command::new(me).env("FLEET_MEMORY", kind).arg(file.path()).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().parse().unwrap()
}

/// What that process does.
fn measure_memory(kind: &str) {
    let before = resident();
    let mut mirror = mirror();
    let lines = std::io::BufReader::new(std::fs::File::open(std::env::args().nth(1).unwrap()).unwrap()).lines();
    let mut nodes = Listing { revision: "1".to_owned(), ..Listing::default() };
    let mut states = nodes.clone();
    for line in lines {
        let line = line.unwrap();
        let is_node = line.contains("\"InternalIP\"");
        let items = if is_node || kind == "digests" { &mut nodes.items } else { &mut states.items };
        items.push(serde_json::from_str(&line).unwrap());
    }
    let lists = match kind {
        "digests" => vec![(PEERS, Ok(nodes))],
        _ => vec![(PEERS, Ok(Listing::default())), (Resource::Node, Ok(nodes)), (STATES, Ok(states))],
    };
    mirror.passed(lists, 0);
    assert_eq!(mirror.nodes().len(), NODES);
    println!("{}", resident() - before);
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Milliseconds.
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e3)
}

/// Tells a mirror of events; microseconds for each, from its text.
fn told(mirror: &mut Mirror, resource: Resource, events: &[String]) -> f64 {
    let ((), took) = timed(|| {
        for event in events {
            mirror.stored(resource, serde_json::from_str(event).unwrap());
        }
    });
    took * 1e3 / events.len() as f64
}

fn main() {
    if let Ok(kind) = std::env::var("FLEET_MEMORY") {
        return measure_memory(&kind);
    }
    support::enter_namespace();
    let mut direct = mirror();
    // As lists come: page by page, and gone when they are read.
    let nodes = listed((0..NODES).map(|number| node(number, 0).to_string()).collect());
    let states = listed((0..NODES).map(|number| state(number, 0).to_string()).collect());
    direct.passed(vec![(Resource::Node, Ok(nodes)), (STATES, Ok(states)), (PEERS, Ok(Listing::default()))], 0);
    let held = direct.nodes().clone();
    assert_eq!(held.len(), NODES);
    let events = |text: fn(usize, usize) -> Json| -> Vec<String> {
        (0..CHURN * SECONDS).map(|event| text(event * 7 % NODES, 1 + event / NODES).to_string()).collect()
    };
    let (node_events, state_events) = (events(node), events(state));
    let by_node = told(&mut direct, Resource::Node, &node_events);
    let by_state = told(&mut direct, STATES, &state_events);
    let sizes = |events: &[String]| events.iter().map(String::len).sum::<usize>() as f64 / events.len() as f64;

    let texts = digests(&held);
    let mut digested = mirror();
    let (_, listing) = timed(|| digested.passed(vec![(PEERS, Ok(listed(texts.clone())))], 0));
    assert_eq!(digested.nodes().len(), NODES);
    let changed = digests(direct.nodes());
    let by_digest = told(&mut digested, PEERS, &changed);
    let digest_size = sizes(&changed);
    // As many as the controller writes when all of them differ.
    let a_second = 1.0 / pause(digest_size as usize, NODES).as_secs_f64();
    let plain: Vec<String> =
        (0..NODES).flat_map(|number| [node(number, 0), state(number, 0)]).map(|it| it.to_string()).collect();
    let (memory_plain, memory_digests) = (memory("plain", &plain), memory("digests", &texts));

    // From what is told to the kernel.
    let sourced = nodewall::source::decode_text("bench.toml", POLICY);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    let facts = |nodes: &ClusterNodes| Facts {
        nodes: Arc::new([("training".to_owned(), Arc::new(nodes.clone()))].into()),
        ..support::facts()
    };
    let resolved = |facts: &Facts| support::resolve_on(&sourced.policy, facts);
    let mut kernel = Netlink::open().unwrap();
    let first = compile(&resolved(&facts(&held)));
    driver::apply(&mut kernel, &first, None).unwrap();
    let after = facts(direct.nodes());
    let (ruleset, deciding) = timed(|| compile(&resolved(&after)));
    let (applied, applying) = timed(|| driver::apply(&mut kernel, &ruleset, None).unwrap());
    assert!(applied.changes > 0);
    support::nft("delete table inet nodewall\n");
    let rendered = text::render(&ruleset);
    let (_, nft) = timed(|| support::nft(&rendered));
    support::nft("delete table inet nodewall\n");

    println!();
    let line = |what: &str, value: f64, unit: &str| println!("      {what:<66} {value:>9.1} {unit}");
    line("a Node: bytes of an event", sizes(&node_events), "");
    line("  work for one", by_node, "us");
    line("a HostState: bytes of an event", sizes(&state_events), "");
    line("  work for one", by_state, "us");
    line("a digest of some ten nodes: bytes of an event", digest_size, "");
    line("  work for one", by_digest, "us");
    line("all digests listed, read and taken in", listing, "ms");
    line("memory: 10,000 nodes by Nodes and HostStates, with the lists", memory_plain, "MiB");
    line("memory: the same by digests", memory_digests, "MiB");
    line("digests that the controller writes a second at most", a_second, "");
    line("a batch of changes: decided", deciding, "ms");
    line("a batch of changes: in the kernel and read back", applying, "ms");
    line("the nft program: the same rules from their text", nft, "ms");
    let by_nodes = CHURN as f64 * (by_node + by_state) / 1e4;
    let by_digests = a_second * by_digest / 1e4;
    line("50 changes a second, by Nodes and HostStates: of a core", by_nodes, "%");
    line("the same by digests at the controller's pace: of a core", by_digests, "%");
    support::figure(
        "work for what is told, by digests, of that by Nodes",
        by_digests / by_nodes,
        "",
        "< 0.2",
        by_digests < by_nodes * 0.2,
    );
    let share = applying / nft;
    support::figure("a batch in the kernel, of the nft program's time", share, "", "< 1", share < 1.0);
}
