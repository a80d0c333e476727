//! Deletes HostStates of nodes that are gone, as `leftovers` says.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::time::sleep;

use super::Trouble;
use super::api::{Api, elapsed};
use super::judge::collection;
use super::leftovers::{Leftovers, State};
use super::pace::spread;
use crate::identity::client::Failure;
use crate::net::splitmix;
use crate::source::object::Kind;

const NODES: &str = "/api/v1/nodes";

/// Works until it is dropped, with looks so far apart.
pub(super) async fn run(api: Api, every: Duration) {
    let (mut leftovers, mut trouble) = (Leftovers::new(every), Trouble::default());
    let mut held_back = 0;
    for turn in 0.. {
        let came = look(&api, &mut leftovers, &mut held_back).await;
        trouble.say("states of nodes that are gone cannot be looked for", came);
        sleep(spread(every, splitmix::nth(u64::from(elapsed().subsec_nanos()), turn))).await;
    }
}

async fn look(api: &Api, leftovers: &mut Leftovers, held_back: &mut usize) -> Result<(), Failure> {
    let (now, states_at) = (elapsed(), collection(Kind::HostState));
    let mut states = Vec::new();
    match api.each_metadata(&states_at, |object| states.extend(state(&object))).await {
        // The definition is not installed.
        Err(failure) if failure.is(404) => return Ok(()),
        other => other?,
    }
    let mut nodes = BTreeSet::new();
    api.each_metadata(NODES, |object| nodes.extend(text(&object, "/metadata/name"))).await?;
    let sweep = leftovers.look(&states, &nodes, now);
    if sweep.held_back > 0 && *held_back == 0 {
        tracing::warn!(
            "{} of {} HostStates have no Node; only {} are deleted at a time: see whether Nodes are missing that should be there",
            sweep.held_back + sweep.delete.len(),
            states.len(),
            sweep.delete.len()
        );
    }
    *held_back = sweep.held_back;
    for State { name, uid, version } in &sweep.delete {
        match api.delete(&states_at, name, uid, version).await {
            Ok(()) => tracing::info!("HostState/{name} is deleted: there is no Node of that name any more"),
            // It is gone, or was written just now: the next look shows.
            Err(failure) if failure.is(404) || failure.is(409) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

fn state(object: &Json) -> Option<State> {
    Some(State {
        name: text(object, "/metadata/name")?,
        uid: text(object, "/metadata/uid")?,
        version: text(object, "/metadata/resourceVersion")?,
    })
}

fn text(object: &Json, pointer: &str) -> Option<String> {
    object.pointer(pointer).and_then(Json::as_str).map(str::to_owned)
}
