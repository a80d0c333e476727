//! The documents of the policy language as objects of Kubernetes: the fields of nodewall-policy(5), with its words as descriptions.
//!
//! They are for schemas and for writing. What an object means, and what is wrong with it, the walker of documents says.

#![allow(clippy::duplicated_attributes, reason = "several columns of kubectl have the same type")]

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::{Entity, Icmp, Not, NumberOrText, Rule};
use super::schema;
use super::status::DocumentStatus;

/// Rules for the interfaces that it selects.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostPolicy",
    plural = "hostpolicies",
    shortname = "hp",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "Rules for packets at the interfaces of hosts, enforced by nodewall on every node that it selects. See nodewall-policy(5).",
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier", description = "The tier of the policy"),
    printcolumn(
        name = "Order",
        type_ = "integer",
        json_path = ".spec.order",
        description = "Its place in the tier, lower first"
    ),
    printcolumn(
        name = "Stage",
        type_ = "string",
        json_path = ".spec.stage",
        description = "Where on a packet's way it is asked"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", description = "Whether it decides"),
    printcolumn(
        name = "Accepted",
        type_ = "boolean",
        json_path = ".status.accepted",
        description = "Whether nodewall can use it",
        priority = 1
    ),
    printcolumn(
        name = "Expires",
        type_ = "date",
        json_path = ".spec.expires",
        description = "When it no longer exists",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::policy_rules()))]
pub struct HostPolicySpec {
    /// The name of its tier. Built in are "platform" (order 100), "default" (1000) and "baseline" (10000).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::tier")]
    pub tier: Option<String>,
    /// Its place in the tier, lower first; a policy without one goes last. No two of a tier have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::order")]
    pub order: Option<i64>,
    /// A selector over the labels of interfaces: name, role, kind, driver, rail, rdma, link, coverage, and their own. all() selects
    /// every interface.
    #[schemars(schema_with = "schema::selector")]
    pub interfaces: String,
    /// A selector over a node's labels, all() if left out; a policy that does not select a node does not exist there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub nodes: Option<String>,
    /// Where on a packet's way through the kernel the policy is asked: "host" (packets to and from the host's own sockets), "forward"
    /// (packets through it), "prednat" (what arrives, before any DNAT) or "untracked" (without state, both directions to be written).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::stage")]
    pub stage: Option<String>,
    /// "enforce", or "audit": counts and logs what it would have decided, and decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::mode")]
    pub mode: Option<String>,
    /// A time of RFC 3339, like 2027-01-31T18:00:00Z, from which on the policy no longer exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::expires")]
    pub expires: Option<String>,
    /// "bypass": the author knows that some of what the rules name never reaches nftables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::acknowledge")]
    pub acknowledge: Option<String>,
    /// Rules for packets that arrive on the interfaces, from the top; the first that holds decides. The direction is governed if this
    /// is there, an empty list included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = schema::MOST_RULES))]
    pub ingress: Option<Vec<Rule>>,
    /// Rules for packets that leave by the interfaces, from the top; not in stage "prednat". The direction is governed if this is there,
    /// an empty list included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = schema::MOST_RULES))]
    pub egress: Option<Vec<Rule>>,
}

/// Addresses that belong together.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostNetworkSet",
    plural = "hostnetworksets",
    shortname = "hns",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "Addresses that belong together, for the rules of HostPolicies. See nodewall-policy(5).",
    printcolumn(
        name = "Accepted",
        type_ = "boolean",
        json_path = ".status.accepted",
        description = "Whether nodewall can use it",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::set_rules()))]
pub struct HostNetworkSetSpec {
    /// Labels for `select` of rules. The object's own labels do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::labels")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Addresses and prefixes of IPv4 and IPv6, without host bits. They may overlap. An empty list matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::prefixes")]
    pub cidrs: Option<Vec<String>>,
    /// Domain names, exact or "*.suffix". Not supported yet: a document with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::domains")]
    pub domains: Option<Vec<String>>,
}

/// A group of policies that is evaluated before those with a higher order.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostTier",
    plural = "hosttiers",
    shortname = "ht",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "A tier of HostPolicies: all policies of a tier are asked before those of a tier with a higher order. See nodewall-policy(5).",
    printcolumn(
        name = "Order",
        type_ = "integer",
        json_path = ".spec.order",
        description = "Its place among the tiers, lower first"
    ),
    printcolumn(
        name = "Default",
        type_ = "string",
        json_path = ".spec.default",
        description = "What happens to what none of its policies decided"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
pub struct HostTierSpec {
    /// Its place among the tiers; lower ones come first.
    #[schemars(schema_with = "schema::order")]
    pub order: i64,
    /// "deny" or "pass": what happens to a packet that a policy of this tier governed and none decided.
    #[schemars(schema_with = "schema::tier_default")]
    pub default: String,
}

/// Named ports.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostService",
    plural = "hostservices",
    shortname = "hsvc",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "Named ports, for the rules of HostPolicies. See nodewall-policy(5).",
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports", description = "What it listens on"),
    printcolumn(
        name = "Transport",
        type_ = "string",
        json_path = ".spec.transport",
        description = "How it is carried"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
pub struct HostServiceSpec {
    /// What it listens on: "tcp/10250", "udp/30000-32767", "icmp/echo-request", or a protocol alone.
    #[schemars(schema_with = "schema::service_ports")]
    pub ports: Vec<String>,
    /// "ip", or "rdma" for a number that RDMA-CM resolves: no rule can filter it, and a rule that names it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::transport")]
    pub transport: Option<String>,
}

/// What an interface is for.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostInterface",
    plural = "hostinterfaces",
    shortname = "hif",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "What the interfaces of hosts that match are for, where detection does not know. HostInterfaces are tried in the order of their names, and the first that matches wins. See nodewall-policy(5).",
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role", description = "The role that it gives"),
    printcolumn(
        name = "Coverage",
        type_ = "string",
        json_path = ".spec.coverage",
        description = "What it declares about the reach of rules",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
pub struct HostInterfaceSpec {
    /// What an interface must be; all its keys must hold.
    #[serde(rename = "match")]
    pub matches: InterfaceMatch,
    /// The role that it gets; the detected one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::given_role")]
    pub role: Option<String>,
    /// Labels that it gets, for selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::labels")]
    pub labels: Option<BTreeMap<String, String>>,
    /// "bypassed" declares that packets of the interface never reach nftables, where the host cannot tell: Onload, DPDK, AF_XDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::coverage")]
    pub coverage: Option<String>,
}

/// What an interface must be; all its keys must hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct InterfaceMatch {
    /// Its name or one of its alternative names, as a glob of *, ? and [a-z].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::glob")]
    pub name: Option<String>,
    /// Its kind, as `ip -details link` shows it: "vlan", "bond".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub kind: Option<String>,
    /// The kernel driver: "mlx5_core".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub driver: Option<String>,
    /// The bus: "pci", "usb", "virtio".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub bus: Option<String>,
    /// The PCI address: "0000:c1:00.0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::pci")]
    pub pci: Option<String>,
    /// The RDMA device: "mlx5_0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::word")]
    pub rdma: Option<String>,
    /// The link layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::link")]
    pub link: Option<String>,
    /// The hardware address: "02:42:ac:11:00:02".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::mac")]
    pub mac: Option<String>,
    /// The name of the bond, bridge or VRF that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::interface_name")]
    pub master: Option<String>,
}

/// What must hold.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodewall.dev",
    version = "v1alpha1",
    kind = "HostExpectation",
    plural = "hostexpectations",
    shortname = "hexp",
    category = "nodewall",
    status = "DocumentStatus",
    derive = "PartialEq",
    doc = "What must hold where HostPolicies are applied: that somebody defines a set, or what becomes of packets. See nodewall-policy(5).",
    printcolumn(
        name = "Set",
        type_ = "string",
        json_path = ".spec.set",
        description = "The set that somebody else is to define"
    ),
    printcolumn(
        name = "Verdict",
        type_ = "string",
        json_path = ".spec.verdict",
        description = "What becomes of the packets"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "Whether a policy is refused without it"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::expect_rules()))]
pub struct HostExpectationSpec {
    /// What is expected, in words; the object's name if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::text")]
    pub name: Option<String>,
    /// The name of a set that somebody else is to define.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub set: Option<String>,
    /// Addresses and prefixes that the set could hold, for the reader. They are used for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::prefixes")]
    pub example: Option<Vec<String>>,
    /// Packets that arrive. Not supported yet: a document with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<PacketMatch>,
    /// Packets that leave. Not supported yet: a document with it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<PacketMatch>,
    /// What must become of all these packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::verdict")]
    pub verdict: Option<String>,
    /// "enforce" refuses a policy while this does not hold; "warn" reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::expect_mode")]
    pub mode: Option<String>,
}

/// Packets that an expectation is about: the conditions of a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::match_rules()))]
pub struct PacketMatch {
    /// A selector over the labels of interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::selector")]
    pub interfaces: Option<String>,
    /// Where the packets come from; anywhere if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Entity>,
    /// Where the packets go to; anywhere if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Entity>,
    /// The protocol: a name or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::protocol")]
    pub protocol: Option<NumberOrText>,
    /// Destination ports: numbers, and ranges like "8000-8010".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub ports: Option<Vec<NumberOrText>>,
    /// Names of services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub services: Option<Vec<String>>,
    /// An ICMP type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Only this IP version: 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::family")]
    pub family: Option<i64>,
    /// What must not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Not>,
}
