//! Keeps digests of the cluster's nodes, as `digests` says: nodes watch these, and not every Node and every HostState.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::Trouble;
use super::api::Api;
use super::digests::{Layout, otherwise, pause};
use crate::identity::client::Failure;
use crate::net::node::ClusterNodes;
use crate::source::kube::{Access, Pace, Reach, Source, Told};
use crate::source::object::peers::{FINGERPRINT, HostPeersSpec, INDEX};
use crate::source::object::{API_VERSION, Kind};

/// Within this time, what changed is looked at again, however much there is to write.
const ROUND: Duration = Duration::from_secs(5);
/// After something went wrong, all is looked at again, which is large.
const AGAIN: Duration = Duration::from_secs(10);
/// What is on the server is looked at again so often: somebody else may have changed it.
const RECHECK: Duration = Duration::from_secs(600);

/// What is known of the nodes; `None` while the server does not vouch for it.
type Known = Option<Arc<ClusterNodes>>;

/// Works until it is dropped.
pub(super) async fn run(api: Api, access: Access, seed: u64) {
    let (known, mut nodes) = watch::channel::<Known>(None);
    let latest = Mirrored { known, nodes: std::sync::Mutex::default() };
    let _source = match Source::of_nodes(access, Pace::SHIPPED, seed, move |told| latest.take(told)) {
        Ok(source) => source,
        Err(error) => return tracing::error!("cannot start the thread that follows nodes: {error}"),
    };
    let mut keeper =
        Keeper { api, written: None, layout: Layout::default(), last: String::new(), checked: Instant::now() };
    let mut trouble = Trouble::default();
    loop {
        let now = nodes.borrow_and_update().clone();
        let came = match now {
            Some(now) => keeper.round(&now).await,
            None => Ok(true),
        };
        let pause = match came {
            // Nothing to do until the nodes are others, or somebody may have changed what is there.
            Ok(true) => None,
            Ok(false) => Some(Duration::from_millis(500)),
            Err(_) => Some(AGAIN),
        };
        trouble.say("digests of nodes cannot be kept", came.map(drop));
        match pause {
            Some(pause) => sleep(pause).await,
            None => drop(timeout(RECHECK, nodes.changed()).await),
        }
    }
}

/// Hands on what the source tells, while the server vouches for it.
struct Mirrored {
    known: watch::Sender<Known>,
    nodes: std::sync::Mutex<Option<Arc<ClusterNodes>>>,
}

impl Mirrored {
    fn take(&self, Told { nodes, health, .. }: Told) {
        let mut latest = self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if nodes.is_some() {
            *latest = nodes;
        }
        // What is only partly known would make nodes lose their roles.
        let known = latest.clone().filter(|_| health.reach == Reach::Synced);
        self.known.send_if_modified(|before| {
            let differs = known.is_some() && *before != known;
            if differs {
                *before = known;
            }
            differs
        });
    }
}

struct Keeper {
    api: Api,
    /// What is in each digest on the server; `None` while that is not known.
    written: Option<BTreeMap<String, String>>,
    layout: Layout,
    /// The digest that was written last.
    last: String,
    checked: Instant,
}

impl Keeper {
    /// Writes what is otherwise, for a while; whether nothing is left to do.
    async fn round(&mut self, nodes: &ClusterNodes) -> Result<bool, Failure> {
        if self.checked.elapsed() >= RECHECK {
            self.written = None;
        }
        let mut written = match self.written.take() {
            Some(written) => written,
            None => self.look().await?,
        };
        self.layout.follow(nodes);
        let digests = self.layout.digests(nodes);
        let mut wanted = BTreeMap::new();
        for (name, digest) in &digests {
            wanted.insert(name.clone(), fingerprint(digest)?);
        }
        let index = HostPeersSpec::default();
        let indexed = fingerprint(&index)?;
        let had_index = written.remove(INDEX).is_some_and(|there| there == indexed);
        let end = Instant::now() + ROUND;
        let todo = otherwise(&wanted, &written, &self.last);
        // A node that is in a digest of another layout is in one of this layout first.
        let (new, old): (Vec<String>, Vec<String>) = todo.into_iter().partition(|name| digests.contains_key(name));
        let mut done = true;
        for name in new.into_iter().chain(old) {
            if Instant::now() >= end {
                done = false;
                break;
            }
            let bytes = match (digests.get(&name), wanted.get(&name)) {
                (Some(digest), Some(content)) => {
                    let bytes = self.write(&name, digest, content).await?;
                    written.insert(name.clone(), content.clone());
                    bytes
                }
                _ => {
                    self.delete(&name).await.or_else(gone)?;
                    written.remove(&name);
                    0
                }
            };
            self.last = name;
            sleep(pause(bytes, nodes.len())).await;
        }
        if done && !had_index {
            self.write(INDEX, &index, &indexed).await?;
        }
        if done || had_index {
            written.insert(INDEX.to_owned(), indexed);
        }
        self.written = Some(written);
        Ok(done)
    }

    /// What is on the server.
    async fn look(&mut self) -> Result<BTreeMap<String, String>, Failure> {
        let objects = self.api.list(&collection(), None).await?;
        self.checked = Instant::now();
        let content = |object: &Json| {
            let name = object.pointer("/metadata/name").and_then(Json::as_str)?.to_owned();
            let said = object.pointer("/metadata/annotations").and_then(|notes| notes.get(FINGERPRINT)?.as_str());
            // What somebody else wrote is not what it says it is.
            let spec = serde_json::from_value::<HostPeersSpec>(object.get("spec").cloned().unwrap_or_default()).ok();
            let is = spec.and_then(|spec| spec.fingerprint().ok());
            Some((name, is.filter(|is| Some(is.as_str()) == said).unwrap_or_default()))
        };
        Ok(objects.iter().filter_map(content).collect())
    }

    /// Deletes one that is not wanted, in the version in which it is there.
    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let object = self.api.get(&collection(), name).await?;
        let text = |key: &str| object.pointer(key).and_then(Json::as_str).unwrap_or_default();
        let (uid, version) = (text("/metadata/uid"), text("/metadata/resourceVersion"));
        self.api.delete(&collection(), name, uid, version).await
    }

    /// Writes one; how many bytes that are.
    async fn write(&self, name: &str, digest: &HostPeersSpec, content: &str) -> Result<usize, Failure> {
        let object = json!({
            "apiVersion": API_VERSION, "kind": Kind::HostPeers.name(),
            "metadata": { "name": name, "annotations": { FINGERPRINT: content } },
            "spec": digest,
        });
        self.api.apply(&collection(), name, &object).await?;
        Ok(object.to_string().len())
    }
}

fn collection() -> String {
    format!("/apis/{API_VERSION}/{}", Kind::HostPeers.plural())
}

fn fingerprint(digest: &HostPeersSpec) -> Result<String, Failure> {
    digest.fingerprint().map_err(|error| Failure::Broken(format!("a digest cannot be written: {error}")))
}

/// What is gone already need not be deleted.
fn gone(failure: Failure) -> Result<(), Failure> {
    if failure.is(404) { Ok(()) } else { Err(failure) }
}
