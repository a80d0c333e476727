//! What an API says of a whole fleet, read once: its Nodes, their HostStates, and the documents.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::client::Client;
use super::mirror::Failure;
use super::resource::Resource;
use crate::fleet::{Condition, Interface, Member, Members, Report};
use crate::net::interface::Role;
use crate::source::object::status::{HostStateStatus, InterfaceState};
use crate::source::object::{API_VERSION, Kind};

/// How long one answer may take: a page of HostStates is some megabytes.
const ANSWER: Duration = Duration::from_secs(30);
/// The addresses of a Node by which others know it.
const INTERNAL: &str = "InternalIP";

/// What was read.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Fleet {
    /// The nodes, and what else has a HostState.
    pub members: Members,
    /// The objects of each kind of documents, as [`crate::source::object::decode`] takes them.
    pub documents: Vec<Json>,
    /// The kinds of documents that could not be read, and why: "HostPolicy: 403: ...".
    pub unread: Vec<String>,
    /// HostStates that this version does not understand, by name.
    pub not_understood: Vec<String>,
}

/// Why there is nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotRead {
    /// There is no API by these files, or it does not answer.
    Unreachable(String),
    /// It does not know who we are, or does not let us.
    NotAuthorised(String),
    /// It does not know our objects.
    NoDefinitions,
    /// It answers something else.
    Refused(String),
}

/// Reads everything, as the user of these kubeconfigs.
///
/// # Errors
/// Nodes or HostStates cannot be read. Documents that cannot are left out.
pub fn read(kubeconfigs: &[PathBuf]) -> Result<Fleet, NotRead> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| NotRead::Unreachable(error.to_string()))?;
    let fleet = runtime.block_on(async {
        let client = Client::of_a_person(kubeconfigs, ANSWER).await.map_err(NotRead::Unreachable)?;
        read_with(&client).await
    });
    // A name server that does not answer is not waited for.
    runtime.shutdown_background();
    fleet
}

async fn read_with(client: &Client) -> Result<Fleet, NotRead> {
    let (nodes, _) = client.list_as::<NodeItem>(Resource::Node).await.map_err(|failure| not_read("nodes", failure))?;
    let states = client.list_as::<StateItem>(Resource::Object(Kind::HostState)).await;
    let (states, _) = states.map_err(|failure| match failure {
        Failure::Refused { code: 404, .. } => NotRead::NoDefinitions,
        failure => not_read("hoststates.nodewall.dev", failure),
    })?;
    let mut fleet = Fleet::default();
    for node in nodes {
        fleet.members.insert(node.metadata.name.clone(), node.member());
    }
    for state in states {
        let name = state.metadata.name.clone();
        match state.report() {
            Some(report) => fleet.members.entry(name).or_default().report = Some(report),
            None => {
                fleet.members.entry(name.clone()).or_default();
                fleet.not_understood.push(name);
            }
        }
    }
    for kind in Kind::ALL.into_iter().filter(|kind| kind.table().is_some()) {
        match client.list_as::<DocumentItem>(Resource::Object(kind)).await {
            Ok((items, _)) => fleet.documents.extend(items.into_iter().map(|item| item.object(kind))),
            Err(failure) => fleet.unread.push(format!("{}: {failure}", kind.name())),
        }
    }
    Ok(fleet)
}

fn not_read(what: &str, failure: Failure) -> NotRead {
    match failure {
        Failure::Refused { code: 401 | 403, .. } => NotRead::NotAuthorised(format!("{what}: {failure}")),
        Failure::Refused { .. } => NotRead::Refused(format!("{what}: {failure}")),
        Failure::Broken(message) => NotRead::Unreachable(message),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    managed_fields: Vec<ManagedField>,
}

/// Who wrote something, and when (meta/v1 ManagedFieldsEntry).
#[derive(Deserialize)]
struct ManagedField {
    time: Option<String>,
}

#[derive(Deserialize)]
struct NodeItem {
    metadata: Metadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<super::item::NodeStatusAddress>,
}

impl NodeItem {
    fn member(self) -> Member {
        let internal = self.status.addresses.iter().filter(|address| address.kind == INTERNAL);
        let addresses: Vec<IpAddr> = internal.filter_map(|address| address.address.parse().ok()).collect();
        Member { labels: Some(self.metadata.labels), addresses, report: None }
    }
}

#[derive(Deserialize)]
struct StateItem {
    metadata: Metadata,
    /// What of it another version writes is nothing to stop for.
    #[serde(default)]
    status: Json,
}

impl StateItem {
    fn report(self) -> Option<Report> {
        let status: HostStateStatus = match self.status {
            Json::Null => HostStateStatus::default(),
            status => serde_json::from_value(status).ok()?,
        };
        // RFC 3339 in UTC, as the server writes it, sorts by time.
        let written = self.metadata.managed_fields.into_iter().filter_map(|field| field.time).max();
        let drift = status.drift.unwrap_or_default();
        let conditions = status.conditions.into_iter().map(|condition| Condition {
            kind: condition.kind,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            since: condition.last_transition_time,
        });
        Some(Report {
            version: status.version,
            mode: status.mode,
            hash: status.hash,
            policies: status.policies,
            omitted: status.policies_omitted.and_then(|omitted| u64::try_from(omitted).ok()).unwrap_or(0),
            defaults: status.defaults,
            failsafe: status.failsafe,
            conditions: conditions.collect(),
            drifts: u64::try_from(drift.count).unwrap_or(0),
            drifted: drift.last,
            written,
            interfaces: status.interfaces.into_iter().filter_map(interface).collect(),
        })
    }
}

/// An interface, unless its role is one that is not known here.
fn interface(state: InterfaceState) -> Option<Interface> {
    Some(Interface {
        role: Role::by_name(&state.role)?,
        addresses: state.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        name: state.name,
        rail: state.rail,
        coverage: state.coverage,
    })
}

#[derive(Deserialize)]
struct DocumentItem {
    metadata: Metadata,
    #[serde(default)]
    spec: Json,
}

impl DocumentItem {
    /// Items of a list do not say what they are.
    fn object(self, kind: Kind) -> Json {
        json!({
            "apiVersion": API_VERSION,
            "kind": kind.name(),
            "metadata": { "name": self.metadata.name },
            "spec": self.spec,
        })
    }
}
