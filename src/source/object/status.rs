//! What nodewall says in objects: the status of a document, and the state of a node.

#![allow(clippy::duplicated_attributes, reason = "several columns of kubectl have the same type")]

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// What nodewall makes of a document.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DocumentStatus {
    /// Whether it can be used. Of one that cannot, the last good version stays in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// What is wrong with it, by field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// The generation of the object that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// "Accepted", with when it changed and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One thing that holds or does not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What: "Accepted" of a document; "Ready", "InSync", "Degraded" or "Unconfirmed" of a node.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub kind: String,
    /// "True", "False" or "Unknown".
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Why, as one word for programs.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When `status` changed the last time: RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// The generation of the object that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whose state it is.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostState",
    plural = "hoststates",
    shortname = "hs",
    category = "nodewall",
    status = "HostStateStatus",
    derive = "PartialEq",
    doc = "What nodewall has in force on a node, and what the node has behind its interfaces. Each nodewall writes the one of its own node; nobody else should.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node", description = "The node"),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".status.mode",
        description = "Whether policies decide there"
    ),
    printcolumn(
        name = "Generation",
        type_ = "integer",
        json_path = ".status.generation",
        description = "The number of the generation in force"
    ),
    printcolumn(
        name = "In sync",
        type_ = "boolean",
        json_path = ".status.inSync",
        description = "Whether the kernel has what is in force"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "integer",
        json_path = ".status.coverage.enforced",
        description = "Interfaces and devices that rules reach"
    ),
    printcolumn(
        name = "Partial",
        type_ = "integer",
        json_path = ".status.coverage.partial",
        description = "Those that rules reach in part"
    ),
    printcolumn(
        name = "Bypassed",
        type_ = "integer",
        json_path = ".status.coverage.bypassed",
        description = "Those whose packets never reach nftables"
    ),
    printcolumn(
        name = "Hash",
        type_ = "string",
        json_path = ".status.hash",
        description = "A hash of what the policy means",
        priority = 1
    ),
    printcolumn(
        name = "Drifts",
        type_ = "integer",
        json_path = ".status.drift.count",
        description = "How often others changed our table",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = schema::state_rules()))]
pub struct HostStateSpec {
    /// The name of the node, which is the name of the object, too.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

/// What is in force on a node, and what is behind its interfaces. It is written when it changes, and stays under 8 KiB for 16 NICs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostStateStatus {
    /// The version of nodewall.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub version: Option<String>,
    /// "enforce" or "audit", for the whole node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["enforce", "audit"]))]
    pub mode: Option<String>,
    /// The number of the generation in force on the node, as in `nodewall history`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// A hash of what the policy means, the same on nodes on which it means the same: mode, tiers, policies with the contents of their
    /// sets, defaults and failsafe, but not what this node has for interfaces, addresses and accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub hash: Option<String>,
    /// The same of each policy, by "tier/name"; the first ones in order of evaluation, where there is not room for all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64, "x-kubernetes-map-type" = "atomic"))]
    pub policies: BTreeMap<String, String>,
    /// How many policies there are that `policies` has no room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies_omitted: Option<i64>,
    /// The same of what is done with packets that no policy decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub defaults: Option<String>,
    /// The same of the ways that no policy can close.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub failsafe: Option<String>,
    /// Since when the generation is in force: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub since: Option<String>,
    /// Whether the kernel has what is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_sync: Option<bool>,
    /// "Ready", "InSync", "Degraded" and "Unconfirmed", with when they changed and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// How far rules reach: of how many interfaces, RDMA devices and functions of network cards, by state: "enforced", "partial",
    /// "bypassed", ... Loopback and the links of pods do not count: these come and go all the time.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub coverage: BTreeMap<String, i64>,
    /// Changes of our table by others, all of which were repaired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftCount>,
    /// The last thing that went wrong since the daemon's start; `Degraded` says whether it still is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
    /// The interfaces, but for loopback and the links of pods; management and rails first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub interfaces: Vec<InterfaceState>,
    /// How many interfaces there are that `interfaces` has no room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted: Option<i64>,
}

impl HostStateStatus {
    /// Keeps the times of conditions that are as they were before.
    pub fn keep_times(&mut self, before: &[Condition]) {
        for condition in &mut self.conditions {
            let same = |old: &&Condition| old.kind == condition.kind && old.status == condition.status;
            if let Some(old) = before.iter().find(same) {
                condition.last_transition_time.clone_from(&old.last_transition_time);
            }
        }
    }
}

/// Changes of our table by others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DriftCount {
    /// How many since the start of the daemon.
    pub count: i64,
    /// When the last one was: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last: Option<String>,
}

/// An interface of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceState {
    /// Its name.
    #[schemars(length(max = 15))]
    pub name: String,
    /// Its role.
    #[schemars(schema_with = "schema::role")]
    pub role: String,
    /// Its rail, of an interface of role "rail": "rail0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub rail: Option<String>,
    /// How far rules reach for what comes in: "enforced", "partial", "bypassed", ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub coverage: Option<String>,
    /// Its addresses with prefix lengths, without link-local ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub addresses: Vec<String>,
}
