//! Says in policy documents what nodewall makes of them, as `documents` says.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::api::Api;
use super::documents::{applied, refusal, say};
use super::wall;
use crate::identity::client::Failure;
use crate::source::object::{API_VERSION, Kind};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// So often documents are looked at: from the memory of the API server, which costs it no look into etcd.
const EVERY: Duration = Duration::from_secs(5);

/// Works until it is dropped.
pub(super) async fn run(api: Api) {
    loop {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.table().is_some()) {
            if let Err(failure) = round(&api, kind).await {
                tracing::warn!("{} cannot be judged: {failure}", kind.plural());
            }
        }
        sleep(EVERY).await;
    }
}

async fn round(api: &Api, kind: Kind) -> Result<(), Failure> {
    let collection = format!("/apis/{API_VERSION}/{}", kind.plural());
    for mut object in api.list(&collection, None).await? {
        // Items of a list do not say what they are.
        object["apiVersion"] = json!(API_VERSION);
        object["kind"] = json!(kind.name());
        let Some(name) = object.pointer("/metadata/name").and_then(Json::as_str).map(str::to_owned) else { continue };
        let now = wall();
        let said = say(&object, &now);
        if !said.differs {
            continue;
        }
        let called = format!("{}/{name}", kind.name());
        match &said.refused {
            // The Event comes first: where that is all that came to be, the next look goes on.
            Some(why) => {
                tracing::info!("{called} is refused: {why}");
                match api.create(EVENTS, &refusal(&object, why, &now, &api.instance)).await {
                    Err(failure) if !failure.is(409) => tracing::warn!("no Event about {called}: {failure}"),
                    _ => {}
                }
            }
            None => tracing::debug!("{called} is accepted"),
        }
        match api.apply_status(&collection, &name, &applied(&object, &said.status)).await {
            // It is gone, or another one has its name: the next look shows.
            Err(failure) if failure.is(404) || failure.is(409) => {}
            // One that cannot be written must not keep the others from it.
            Err(failure) if !failure.passes() => tracing::warn!("no status for {called}: {failure}"),
            Err(failure) => return Err(failure),
            Ok(_) => {}
        }
    }
    Ok(())
}
