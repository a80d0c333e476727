//! Approves certificate requests of nodes, as `approval` says.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::api::Api;
use super::approval::{Judgement, Request, first, judge};
use super::{Trouble, now, wall};
use crate::identity::SIGNER;
use crate::identity::client::Failure;
use crate::source::object::{API_VERSION, Kind};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// So often requests are looked at.
const EVERY: Duration = Duration::from_secs(3);

/// Works until it is dropped.
pub(super) async fn run(api: Api) {
    // Why a request is left is said once.
    let (mut told, mut trouble) = (BTreeSet::new(), Trouble::default());
    loop {
        trouble.say("certificate requests cannot be looked at", round(&api, &mut told).await);
        sleep(EVERY).await;
    }
}

async fn round(api: &Api, told: &mut BTreeSet<String>) -> Result<(), Failure> {
    let objects = api.list(REQUESTS, Some(&format!("spec.signerName={SIGNER}"))).await?;
    let requests: Vec<(Request, &Json)> =
        objects.iter().filter_map(|object| Some((serde_json::from_value(object.clone()).ok()?, object))).collect();
    let all: Vec<Request> = requests.iter().map(|(request, _)| request.clone()).collect();
    let names: BTreeSet<&str> = all.iter().map(|request| request.metadata.name.as_str()).collect();
    told.retain(|name| names.contains(name.as_str()));
    for (request, object) in &requests {
        let name = &request.metadata.name;
        let is_known = match first(request) {
            Some(node) => has_state(api, &node).await?,
            None => false,
        };
        match judge(request, &all, is_known, now()) {
            Judgement::Pass => {}
            Judgement::Leave(why) => {
                if told.insert(name.clone()) {
                    tracing::warn!("request {name} is left to an administrator: {why}");
                }
            }
            Judgement::Approve(why) => approve(api, name, object, &why).await?,
        }
    }
    Ok(())
}

/// Whether there is a HostState of a node. Not knowing is an error: a name is given away only when nobody has it.
async fn has_state(api: &Api, node: &str) -> Result<bool, Failure> {
    let states = format!("/apis/{API_VERSION}/{}", Kind::HostState.plural());
    match api.get(&states, node).await {
        Ok(_) => Ok(true),
        Err(failure) if failure.is(404) => Ok(false),
        Err(failure) => Err(failure),
    }
}

async fn approve(api: &Api, name: &str, object: &Json, why: &str) -> Result<(), Failure> {
    let mut object = object.clone();
    // Items of a list do not say what they are.
    object["apiVersion"] = json!("certificates.k8s.io/v1");
    object["kind"] = json!("CertificateSigningRequest");
    let condition = json!({
        "type": "Approved",
        "status": "True",
        "reason": "NodewallApproved",
        "message": why,
        "lastUpdateTime": wall(),
    });
    let mut conditions = object.pointer("/status/conditions").and_then(Json::as_array).cloned().unwrap_or_default();
    conditions.push(condition);
    object["status"] = json!({ "conditions": conditions });
    match api.replace(REQUESTS, name, Some("approval"), &object).await {
        Ok(_) => tracing::info!("request {name} is approved: {why}"),
        // Somebody settled it meanwhile, or it is gone: the next look shows.
        Err(failure) if failure.is(409) || failure.is(404) => {}
        Err(failure) => return Err(failure),
    }
    Ok(())
}
