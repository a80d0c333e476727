//! Says in policy documents what nodewall makes of them, as `documents` says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::api::Api;
use super::documents::{applied, refusal, say, unresolved};
use super::{Trouble, wall};
use crate::identity::client::Failure;
use crate::source::object::{API_VERSION, Kind};

/// Where Events about what has no namespace are.
pub(super) const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// So often documents are looked at: at their metadata, and at what has another version.
const EVERY: Duration = Duration::from_secs(5);
/// More changed objects of a kind than this are listed, not asked for one by one.
const FEW: usize = 16;

/// Works until it is dropped.
pub(super) async fn run(api: Api) {
    let mut documents = Documents { api, held: BTreeMap::new(), stale: true };
    let mut trouble = Trouble::default();
    loop {
        trouble.say("policy objects cannot be judged", documents.round().await);
        sleep(EVERY).await;
    }
}

/// The documents of the cluster, as they were seen last.
struct Documents {
    api: Api,
    held: BTreeMap<(Kind, String), Json>,
    /// Whether there may be something to say.
    stale: bool,
}

impl Documents {
    async fn round(&mut self) -> Result<(), Failure> {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.table().is_some()) {
            match self.look(kind).await {
                // The definition is not installed; the others may well be.
                Err(failure) if failure.is(404) => {}
                other => other?,
            }
        }
        if !self.stale {
            return Ok(());
        }
        let unresolved = unresolved(self.held.values());
        let keys: Vec<_> = self.held.keys().cloned().collect();
        for (kind, name) in keys {
            // The Lease is renewed by the same thread.
            tokio::task::yield_now().await;
            self.say(kind, &name, &unresolved).await?;
        }
        self.stale = false;
        Ok(())
    }

    /// Looks for changes of a kind.
    async fn look(&mut self, kind: Kind) -> Result<(), Failure> {
        let collection = collection(kind);
        let mut names = BTreeSet::new();
        let mut changed = Vec::new();
        for object in self.api.list_metadata(&collection).await? {
            let Some(name) = object.pointer("/metadata/name").and_then(Json::as_str) else { continue };
            names.insert(name.to_owned());
            let held = self.held.get(&(kind, name.to_owned()));
            if held.and_then(version) != version(&object) {
                changed.push(name.to_owned());
            }
        }
        let before = self.held.len();
        self.held.retain(|(of, name), _| *of != kind || names.contains(name));
        self.stale |= self.held.len() != before;
        if changed.len() > FEW {
            for object in self.api.list(&collection, None).await? {
                self.hold(kind, object);
            }
            return Ok(());
        }
        for name in changed {
            match self.api.get(&collection, &name).await {
                Ok(object) => self.hold(kind, object),
                // The next look does not find it any more.
                Err(failure) if failure.is(404) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    fn hold(&mut self, kind: Kind, mut object: Json) {
        let Some(name) = object.pointer("/metadata/name").and_then(Json::as_str).map(str::to_owned) else { return };
        // Items of a list do not say what they are.
        object["apiVersion"] = json!(API_VERSION);
        object["kind"] = json!(kind.name());
        self.held.insert((kind, name), object);
        self.stale = true;
    }

    /// Says of one object what there is to say, if it does not say so.
    async fn say(&mut self, kind: Kind, name: &str, unresolved: &BTreeMap<String, String>) -> Result<(), Failure> {
        let called = format!("{}/{name}", kind.name());
        let Some(object) = self.held.get(&(kind, name.to_owned())) else { return Ok(()) };
        let now = wall();
        let said = say(object, unresolved.get(&called).map(String::as_str), &now);
        if !said.differs {
            return Ok(());
        }
        match &said.refused {
            // The Event comes first: where that is all that came to be, the next look goes on.
            Some(why) => {
                tracing::info!("{called} is refused: {why}");
                match self.api.create(EVENTS, &refusal(kind, object, why, &now, &self.api.instance)).await {
                    Err(failure) if !failure.is(409) => tracing::warn!("no Event about {called}: {failure}"),
                    _ => {}
                }
            }
            None => tracing::debug!("{called} is accepted"),
        }
        match self.api.apply_status(&collection(kind), name, &applied(object, &said.status)).await {
            Ok(answer) => self.hold(kind, answer),
            // It is gone, or another one has its name: the next look shows.
            Err(failure) if failure.is(404) || failure.is(409) => {}
            Err(failure) if failure.passes() => return Err(failure),
            // One that cannot be written must not keep the others from it.
            Err(failure) => tracing::warn!("no status for {called}: {failure}"),
        }
        Ok(())
    }
}

/// Where objects of a kind are.
pub(super) fn collection(kind: Kind) -> String {
    format!("/apis/{API_VERSION}/{}", kind.plural())
}

/// The version of an object.
pub(super) fn version(object: &Json) -> Option<&str> {
    object.pointer("/metadata/resourceVersion").and_then(Json::as_str)
}
