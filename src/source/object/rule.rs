//! Rules and entities as objects have them: the fields of nodewall-policy(5), with its words as descriptions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// A number or text, where the policy language takes both.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A number: 22, 6.
    Number(i64),
    /// Text: "8000-8010", "tcp".
    Text(String),
}

/// True, false or text, as `log` is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum YesOrText {
    /// True or false.
    Yes(bool),
    /// A text.
    Text(String),
}

/// A rule holds if all its conditions hold. The first rule of a policy that holds decides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = schema::match_rules()))]
pub struct Rule {
    /// What it does with a packet: "allow", "deny" (dropped without an answer), "reject" (answered), "pass" (on to the next tier) or
    /// "log" (logged, and on to the next rule).
    #[schemars(schema_with = "schema::action")]
    pub action: String,
    /// Where the packet comes from; anywhere if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Entity>,
    /// Where the packet goes to; anywhere if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Entity>,
    /// The protocol: a name like "tcp" or "icmpv6", or a number from 0 to 255.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::protocol")]
    pub protocol: Option<NumberOrText>,
    /// Destination ports: numbers, and ranges like "8000-8010" with both ends counted. Needs a protocol that has ports: tcp, udp, sctp,
    /// udplite, dccp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub ports: Option<Vec<NumberOrText>>,
    /// Names of services, which are HostServices or come with nodewall; stands without `protocol`, `ports` and `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub services: Option<Vec<String>>,
    /// An ICMP type, with its code or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Only this IP version: 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::family")]
    pub family: Option<i64>,
    /// What must not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Not>,
    /// The sending process belongs to one of these users, by name or number. Only in `egress` of stage "host".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::accounts")]
    pub users: Option<Vec<NumberOrText>>,
    /// The sending process runs with one of these groups, by name or number. Only in `egress` of stage "host".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::accounts")]
    pub groups: Option<Vec<NumberOrText>>,
    /// The sending process is in the control group of one of these systemd units or slices, or below it: "sshd.service",
    /// "system.slice/ollama.service". Only in `egress` of stage "host", and only with cgroup v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::units")]
    pub units: Option<Vec<String>>,
    /// The rule holds only while it holds no more often than this; for what is over the limit, the next rule is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// True, or a text of at most 48 printable ASCII characters without quotes: log what matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::log")]
    pub log: Option<YesOrText>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::text")]
    pub comment: Option<String>,
}

/// An ICMP type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Icmp {
    /// A name as in nft(8), like "echo-request", or a number. A number needs `protocol` or `family`, since it means different things
    /// in ICMP and in ICMPv6.
    #[serde(rename = "type")]
    #[schemars(schema_with = "schema::icmp_type")]
    pub kind: NumberOrText,
    /// The code; any if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::icmp_code")]
    pub code: Option<i64>,
}

/// Each of these that is there is taken away from what the rule matches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Not {
    /// This protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::protocol")]
    pub protocol: Option<NumberOrText>,
    /// These destination ports of the rule's protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub ports: Option<Vec<NumberOrText>>,
    /// This ICMP type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
}

/// A token bucket. Packets of flows that are established are not asked about and do not count, except in stage "untracked".
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// How many packets in how long: a number, which is of a second, or a text like "10/second", "5/minute", "100/hour", "1000/day".
    #[schemars(schema_with = "schema::rate")]
    pub rate: NumberOrText,
    /// How many at once before the rate counts: from 1 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::burst")]
    pub burst: Option<i64>,
    /// "source": each source address is counted by itself. Without, all packets of the rule are counted together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::per")]
    pub per: Option<String>,
}

/// An entity with these fields beside those that all have: one type for each depth, since a schema of Kubernetes cannot refer to itself.
macro_rules! entity {
    ($(#[$doc:meta])* $name:ident { $($extra:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        #[schemars(extend("minProperties" = 1, "x-kubernetes-validations" = schema::entity_rules()))]
        pub struct $name {
            /// Addresses and prefixes of IPv4 and IPv6, without host bits.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::some_prefixes")]
            pub cidrs: Option<Vec<String>>,
            /// Names of sets.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::names")]
            pub sets: Option<Vec<String>>,
            /// A selector over the labels of sets.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::selector")]
            pub select: Option<String>,
            /// A selector over the labels of the cluster's nodes, of which `name` and `cluster` are what they are called and where.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::selector")]
            pub nodes: Option<String>,
            /// Which addresses of `nodes` are meant: those on interfaces of this role. Without it all, but for those of pods, overlays and loopback.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::role")]
            pub role: Option<String>,
            /// Domain names, exact or "*.suffix". Not supported yet: a document with it is refused.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::domains")]
            pub domains: Option<Vec<String>>,
            /// True: the host's own addresses.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(schema_with = "schema::local")]
            pub local: Option<bool>,
            $($extra)*
        }
    };
}

entity! {
    /// What is listed in one entity is united. An entity that comes to no address matches nothing.
    Entity {
        /// Source ports in `from`, destination ports in `to`: numbers, and ranges like "8000-8010".
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(schema_with = "schema::ports")]
        pub ports: Option<Vec<NumberOrText>>,
        /// An entity that is taken away.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub except: Option<Except>,
    }
}

entity! {
    /// What is listed here is taken away from the entity around it.
    Except {
        /// What is not taken away after all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub except: Option<ExceptOfExcept>,
    }
}

entity! {
    /// What is listed here is not taken away after all.
    ExceptOfExcept {}
}
