//! Documents from the API of Kubernetes clusters: `HostPolicy` and its like, listed and watched, beside the files.
//!
//! `mirror` decides, `combine` puts clusters and files together; `client` and `watch` talk to the server. `report` writes the state of
//! this node, when `damping` says. `fleet` reads everything once, for a person.

mod calico;
mod client;
pub(super) mod combine;
pub mod damping;
pub mod fleet;
pub(super) mod item;
pub mod mirror;
pub mod name;
mod peers;
pub mod report;
pub mod resource;
mod wait;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::calico::KeptCalico;
use super::decoded::DecodedFile;
use super::object::Kind;
use super::object::peers::HostPeersSpec;
use crate::net::node::ClusterNodes;
use crate::policy::selector::Labels;
use crate::text::finding::Finding;
pub use calico::OnNode;
pub use watch::{Pace, Source, Told};

/// What clusters say, by their names in nodewall.toml.
pub type Holdings = BTreeMap<String, Arc<Holding>>;

/// What a cluster says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Holding {
    /// Whether it was ever heard of as a whole; until then what it does not say means nothing.
    pub heard: bool,
    /// The last good version of each of its objects that are for this node.
    pub objects: BTreeMap<(Kind, String), Arc<DecodedFile>>,
    /// Objects that take their names and say nothing here: for other nodes, or never good.
    pub hidden: BTreeSet<(Kind, String)>,
    /// What is wrong: warnings, as what is wrong with one object stops nothing else.
    pub findings: Vec<Finding>,
    /// Calico's objects, where they are asked for. What they come to is among `objects`.
    pub calico: Option<OnNode>,
}

impl Holding {
    /// A text from which [`Holding::restore`] makes the same again, but for findings about objects of ours.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn to_text(&self, cluster: &str) -> Result<String, String> {
        let called = |(kind, object): &(Kind, String)| name::of(cluster, *kind, object);
        let kept = Kept {
            version: 1,
            objects: self.objects.iter().map(|(key, file)| (called(key), file.text.to_string())).collect(),
            hidden: self.hidden.iter().map(called).collect(),
            calico: self.calico.as_ref().map(|held| KeptCalico::of(cluster, held)),
        };
        serde_json::to_string(&kept).map_err(|error| error.to_string())
    }

    /// What a cluster said, from a text that was kept.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn restore(text: &str) -> Result<Self, String> {
        let Kept { version, objects, hidden, calico } =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if version != 1 {
            return Err(format!("version {version} is not known here"));
        }
        let unknown = |called: &str| format!("\"{called}\" is no object");
        let mut holding = Self { heard: true, ..Self::default() };
        for (called, text) in objects {
            let (cluster, kind, object) = name::parse(&called).ok_or_else(|| unknown(&called))?;
            let file = item::decode(cluster, kind, object, Arc::from(text));
            holding.objects.insert((kind, object.to_owned()), Arc::new(file));
        }
        for called in hidden {
            let (_, kind, object) = name::parse(&called).ok_or_else(|| unknown(&called))?;
            holding.hidden.insert((kind, object.to_owned()));
        }
        if let Some(calico) = calico {
            let (cluster, held) = calico.restore().map_err(|called| unknown(&called))?;
            holding.findings = held.findings(&cluster);
            holding.calico = Some(held);
        }
        Ok(holding)
    }

    /// The same without versions that do not go together with what others say: in their place are those of `before`, where it has one.
    /// `aside` has them by what they are called, with their text.
    pub fn without(&self, cluster: &str, aside: &BTreeMap<String, Arc<str>>, before: Option<&Self>) -> Self {
        let mut holding = self.clone();
        for (key, file) in &self.objects {
            if aside.get(&name::of(cluster, key.0, &key.1)) != Some(&file.text) {
                continue;
            }
            match before.and_then(|before| before.objects.get(key)).filter(|earlier| earlier.text != file.text) {
                Some(earlier) => {
                    holding.objects.insert(key.clone(), Arc::clone(earlier));
                }
                None => {
                    holding.objects.remove(key);
                    holding.hidden.insert(key.clone());
                }
            }
        }
        holding
    }

    /// The text of an object by what it is called.
    pub fn text(&self, called: &str) -> Option<&Arc<str>> {
        let (_, kind, object) = name::parse(called)?;
        self.objects.get(&(kind, object.to_owned())).map(|file| &file.text)
    }
}

/// A text from which [`restore_nodes`] makes the same again.
///
/// # Errors
/// It cannot be written as JSON.
pub fn text_of_nodes(nodes: &ClusterNodes) -> Result<String, String> {
    let kept = KeptNodes { version: 1, nodes: HostPeersSpec::of(nodes) };
    serde_json::to_string(&kept).map_err(|error| error.to_string())
}

/// Who the nodes of a cluster were, from a text that was kept.
///
/// # Errors
/// Why it cannot be used.
pub fn restore_nodes(text: &str) -> Result<ClusterNodes, String> {
    let KeptNodes { version, nodes } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if version == 1 { Ok(nodes.nodes()) } else { Err(format!("version {version} is not known here")) }
}

/// Nodes on disk.
#[derive(Serialize, Deserialize)]
struct KeptNodes {
    version: u32,
    nodes: HostPeersSpec,
}

/// A holding on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    objects: BTreeMap<String, String>,
    hidden: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calico: Option<KeptCalico>,
}

/// How an API server is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// As this kubeconfig says.
    Kubeconfig(PathBuf),
    /// As the ServiceAccount of the pod in which this runs.
    Pod,
}

/// Who this node is for a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Me {
    /// What it is called in clusters.
    pub name: String,
    /// Its labels, but for those of its Node in that cluster.
    pub labels: Labels,
    /// The name of its Node, if that one's labels count.
    pub node: Option<String>,
}

impl Me {
    /// All its labels, where these are the nodes of the cluster.
    pub fn labels_with(&self, nodes: &ClusterNodes) -> Labels {
        let node = self.node.as_ref().and_then(|name| nodes.get(name));
        let mut labels = node.map(|node| node.labels()).unwrap_or_default();
        labels.extend(self.labels.clone());
        labels
    }
}

/// How a cluster is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reach {
    /// It has not answered yet.
    Connecting,
    /// What it says is what is held.
    Synced,
    /// Some kinds of objects are not answered for.
    Partial,
    /// It does not answer, or refuses.
    Away,
    /// It says that there is nothing more of all that there was.
    Doubted,
}

impl Reach {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Synced => "in-sync",
            Self::Partial => "partial",
            Self::Away => "away",
            Self::Doubted => "doubted",
        }
    }
}

/// How it is with a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// How it is reached.
    pub reach: Reach,
    /// The newest revision that was seen; 0: none.
    pub revision: u64,
    /// How many objects count.
    pub objects: usize,
    /// How many are for other nodes only.
    pub elsewhere: usize,
    /// How many nodes it has.
    pub nodes: usize,
    /// Which have a newest version that cannot be used: "HostPolicy/kubelet".
    pub invalid: Vec<String>,
    /// What went wrong last, until everything is answered again.
    pub error: Option<String>,
}
