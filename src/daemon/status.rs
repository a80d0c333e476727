//! What `nodewall status` shows, as it goes over the control socket and into `--json`; version 1 of both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rules::RuleRecord;
use super::traffic::Numbers;
use super::{clock, disk};
use crate::compile::rule_of;
use crate::driver::OtherChain;
use crate::host::coexistence::Remark;
use crate::net::facts::Cgroup;
use crate::net::interface::Direction;
use crate::nft::change::Loaded;
use crate::nft::feature::{Feature, Need, Support};
use crate::nft::ir::Ruleset;
use crate::policy::coverage;
use crate::policy::guards;
use crate::policy::model::Mode;
use crate::reconcile::selftest::{Judgement, words};
use crate::reconcile::{Emergency, PolicySummary, SelfTest, State};
use crate::text::finding::{Finding, Severity};
use crate::text::time;

/// The version of these records. Keys may be added within a version; none goes or changes its meaning.
pub const VERSION: u32 = 1;

/// Everything at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// Whether the daemon answered; without it only `table` is known.
    pub running: bool,
    /// "in-force", "unconfirmed", "degraded", "panic", "break-glass", "applying", "waiting", or "not-running".
    pub state: String,
    /// Why it is degraded, or why something else is in force than the documents in place say.
    pub reason: Option<String>,
    /// The version of the daemon.
    pub daemon: Option<String>,
    /// The daemon's process.
    pub pid: Option<u32>,
    /// "enforce" or "audit", node-wide.
    pub mode: Option<String>,
    /// The number of the generation in force, as in `nodewall history`; 0 when it is none.
    pub generation: u64,
    /// The number of the generation that a boot loads.
    pub confirmed: Option<u64>,
    /// Until when the generation in force must be confirmed: RFC 3339, UTC.
    pub confirm_until: Option<String>,
    /// The same in seconds from now.
    pub confirm_seconds: Option<u64>,
    /// What confirms it: "operator" or "self-test".
    pub confirm_by: Option<String>,
    /// The self-test of the newest change that had one.
    pub selftest: Option<SelfTestRecord>,
    /// Until when break-glass lets everything through: RFC 3339, UTC.
    pub break_glass_until: Option<String>,
    /// Why the disk does not have what a boot should load.
    pub store_error: Option<String>,
    /// What the daemon found damaged on disk when it started, and passed over.
    pub store_damages: Vec<String>,
    /// Why metrics cannot be read somewhere where they should.
    pub metrics_error: Option<String>,
    /// Since when it is in force: RFC 3339, UTC.
    pub since: Option<String>,
    /// SHA-256 of the ruleset in force as nft(8) text.
    pub hash: Option<String>,
    /// Whether the kernel has what is in force; `None` when it could not be looked at.
    pub in_sync: Option<bool>,
    /// What the kernel has otherwise, or why it could not be looked at.
    pub drift: Vec<String>,
    /// How often others changed our table since the daemon's start, and it was repaired.
    pub drift_events: u64,
    /// The last time.
    pub drift_last: Option<DriftRecord>,
    /// Whether another process keeps changing our table, so that repairs wait up to a second.
    pub drift_storm: bool,
    /// How far the ending of flows that the policy denies has come, or how it went the last time; `None` when none was judged.
    pub revocation: Option<RevocationRecord>,
    /// The base chains of others, in the order in which packets meet them; `None` when they could not be looked at.
    pub other_chains: Option<Vec<BaseChainRecord>>,
    /// What else on this machine decides about packets.
    pub remarks: Vec<RemarkRecord>,
    /// The clusters that documents come from, the highest precedence first.
    pub clusters: Vec<ClusterRecord>,
    /// What is seen of what goes on; `None` where nothing is.
    pub traffic: Option<TrafficRecord>,
    /// What the kernel lacks of what nodewall uses; `None` while that is not known.
    pub kernel_lacks: Option<Vec<FeatureRecord>>,
    /// Our table in the kernel.
    pub table: Option<TableRecord>,
    /// How far rules reach: of how many interfaces, RDMA devices and functions of network cards, by state ("enforced", "partial",
    /// "bypassed", ...); every state is there.
    pub coverage: BTreeMap<String, usize>,
    /// RDMA devices and functions of network cards without an interface here.
    pub elsewhere: Vec<CoverageRecord>,
    /// The interfaces, sorted by name.
    pub interfaces: Vec<InterfaceRecord>,
    /// The systemd units and slices that the policy names, sorted by name.
    pub units: Vec<UnitRecord>,
    /// The built-in policies that hold before all others, in order of evaluation.
    pub guards: Vec<PolicyRecord>,
    /// The policies in order of evaluation.
    pub policies: Vec<PolicyRecord>,
    /// The failsafe entries.
    pub failsafe: Vec<FailsafeRecord>,
    /// What the kernel has counted for each rule, default of a tier and default of a role; sorted.
    pub rules: Vec<RuleRecord>,
    /// What the newest documents were found to have.
    pub findings: Vec<FindingRecord>,
}

/// What is seen of packets and connections, counted since the daemon's start.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficRecord {
    /// Logged packets that were read.
    pub packets: u64,
    /// Logged packets that were lost on the way to the daemon.
    pub packets_lost: u64,
    /// Logged packets of the same group that no rule of ours has logged.
    pub packets_foreign: u64,
    /// Connections that were seen to begin.
    pub connections: u64,
    /// How often events of connections were lost: each time an unknown number.
    pub connections_overruns: u64,
    /// Logged packets that had no line of their own in the journal.
    pub journal_silent: u64,
    /// Records that were stored.
    pub records: u64,
    /// Records that were not stored.
    pub records_left_out: u64,
    /// How many bytes the store has on disk.
    pub store_bytes: u64,
    /// Whether connection tracking counts packets and bytes; `None` where that is not known.
    pub accounting: Option<bool>,
    /// Why the packet log is not read.
    pub packets_error: Option<String>,
    /// Why connections are not seen.
    pub connections_error: Option<String>,
    /// Why records are not stored.
    pub store_error: Option<String>,
}

impl TrafficRecord {
    /// The record of what was counted.
    pub fn of(numbers: &Numbers) -> Self {
        Self {
            packets: numbers.packets,
            packets_lost: numbers.lost_packets,
            packets_foreign: numbers.foreign,
            connections: numbers.connections,
            connections_overruns: numbers.connection_overruns,
            journal_silent: numbers.silent,
            records: numbers.stored,
            records_left_out: numbers.left_out,
            store_bytes: numbers.store_bytes,
            accounting: numbers.accounting,
            packets_error: numbers.log_error.clone(),
            connections_error: numbers.connections_error.clone(),
            store_error: numbers.store_error.clone(),
        }
    }
}

/// A cluster that documents come from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterRecord {
    /// Its name in nodewall.toml.
    pub name: String,
    /// "connecting", "in-sync", "partial" (not all kinds of objects are answered for), "away", or "doubted" (it says that there is
    /// nothing more of what there was). What it said stays in force in every one of them.
    pub state: String,
    /// Since when: RFC 3339, UTC.
    pub since: String,
    /// The newest revision of its objects that was seen; 0: none since the daemon's start.
    pub revision: u64,
    /// How many of its objects count here.
    pub objects: usize,
    /// How many are for other nodes only.
    pub elsewhere: usize,
    /// How many nodes it has; `None` of one that does not say.
    pub nodes: Option<usize>,
    /// Objects whose newest version cannot be used: "HostPolicy/kubelet".
    pub invalid: Vec<String>,
    /// Until when the node's certificate holds, where `nodewall join` made it: RFC 3339, UTC.
    pub certificate_until: Option<String>,
    /// What went wrong last.
    pub error: Option<String>,
    /// How it is with the HostState of this node there: "written 2026-11-26T05:00:00Z", or why it is not; `None` where it is not to be
    /// written, or was not yet.
    pub report: Option<String>,
}

/// How far rules reach on something.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CoverageRecord {
    /// The name of an interface or RDMA device, or a PCI address.
    pub name: String,
    /// "enforced", "partial", "bypassed", ...
    pub state: String,
    /// Why.
    pub reason: String,
}

/// How the self-test of a change goes, or went.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SelfTestRecord {
    /// The generation; `None` while it has no number.
    pub generation: Option<u64>,
    /// "waiting" (for an address of this host or the end of an emergency), "before" (the probes are tried without the change),
    /// "running", "passed" (the generation was confirmed by it), "failed" (the generation was given up), or "ended" (somebody
    /// confirmed the generation, or something else came in its place).
    pub state: String,
    /// How often the probes were tried with the change.
    pub rounds: u32,
    /// The results in words; empty while there are none.
    pub summary: String,
    /// What the probes came to the last time.
    pub results: Vec<ProbeRecord>,
}

/// What a probe came to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProbeRecord {
    /// Its name.
    pub probe: String,
    /// "passed", "failed", "failed-before-too", or "absent" where there is nothing to try.
    pub outcome: String,
    /// Why it has not passed.
    pub reason: Option<String>,
}

impl SelfTestRecord {
    /// The record of a self-test.
    pub fn of(selftest: &SelfTest) -> Self {
        let SelfTest { generation, progress, rounds, results } = selftest;
        let record = |(probe, judgement): &(String, Judgement)| ProbeRecord {
            probe: probe.clone(),
            outcome: judgement.name().to_owned(),
            reason: judgement.why().map(str::to_owned),
        };
        Self {
            generation: *generation,
            state: progress.name().to_owned(),
            rounds: *rounds,
            summary: if *rounds == 0 { String::new() } else { words(results) },
            results: results.iter().map(record).collect(),
        }
    }
}

/// A change of our table by somebody else.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DriftRecord {
    /// When it was repaired: RFC 3339, UTC.
    pub time: String,
    /// The name of the process, where the kernel told; any process may choose its name.
    pub process: Option<String>,
    /// Its number.
    pub pid: Option<u32>,
    /// What was otherwise.
    pub difference: Vec<String>,
    /// From the notification to the repaired table, read back, in milliseconds; `None` when it was found by looking unasked.
    pub repair_ms: Option<f64>,
}

/// The ending of flows that the policy in force denies.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RevocationRecord {
    /// When it began: RFC 3339, UTC.
    pub started: String,
    /// Whether it is under way.
    pub running: bool,
    /// How many flows were judged.
    pub judged: usize,
    /// How many of them were ended.
    pub ended: usize,
    /// How many of those that were judged are denied and still to be ended.
    pub left: usize,
    /// How long it has taken so far, or took.
    pub milliseconds: u64,
}

/// A base chain of somebody else's.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BaseChainRecord {
    /// The hook, as nft(8) names it.
    pub hook: String,
    /// The priority; lower goes first.
    pub priority: i32,
    /// "filter", "nat" or "route".
    pub kind: String,
    /// The family of the table.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// "accept" or "drop".
    pub policy: String,
    /// How many rules it has itself.
    pub rules: u32,
    /// Who made it, as far as names tell.
    pub owners: Vec<String>,
    /// Whether it can drop what a chain of ours accepted.
    pub after_ours: bool,
    /// Whether it drops at all: "policy", "rules", "no", or "maybe" where its rules were not read or do not tell.
    pub drops: String,
}

impl BaseChainRecord {
    /// The record of a chain.
    pub fn of(chain: &OtherChain) -> Self {
        Self {
            hook: chain.base.hook.to_owned(),
            priority: chain.base.priority,
            kind: chain.base.kind.clone(),
            family: chain.family.name().to_owned(),
            table: chain.table.clone(),
            chain: chain.name.clone(),
            policy: if chain.base.drops { "drop" } else { "accept" }.to_owned(),
            rules: chain.base.rules,
            owners: chain.owners.iter().map(|owner| (*owner).to_owned()).collect(),
            after_ours: chain.after_ours,
            drops: chain.drops.name().to_owned(),
        }
    }
}

/// Something else on this machine that decides about packets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RemarkRecord {
    /// Its kind: "legacy-iptables", "flush-ruleset", "route-localnet", "xdp", "tc", "not-readable".
    pub code: String,
    /// What there is.
    pub message: String,
    /// What it means, or what to do.
    pub help: String,
}

impl RemarkRecord {
    /// The record of a remark.
    pub fn of(remark: &Remark) -> Self {
        Self { code: remark.code.to_owned(), message: remark.message.clone(), help: remark.help.to_owned() }
    }
}

/// A feature of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FeatureRecord {
    /// Its name for scripts.
    pub feature: String,
    /// "present", "missing" or "unknown".
    pub state: String,
    /// Whether nodewall does not work at all without it.
    pub needed: bool,
    /// What it is.
    pub what: String,
    /// What does not work without it, and where it comes from.
    pub help: String,
}

impl FeatureRecord {
    /// The record of a feature.
    pub fn of(feature: Feature, support: Support) -> Self {
        let (needed, without) = match feature.need() {
            Need::Always => (true, "nodewall does not work"),
            Need::Partly(without) => (false, without),
        };
        let module = feature.module().map(|module| format!("; `modprobe {module}`")).unwrap_or_default();
        Self {
            feature: feature.name().to_owned(),
            state: support.name().to_owned(),
            needed,
            what: feature.words().to_owned(),
            help: format!("without it {without}; it comes with {}{module}", feature.config()),
        }
    }

    /// The records of those that the kernel lacks.
    pub fn missing(found: &BTreeMap<Feature, Support>) -> Vec<Self> {
        let missing = found.iter().filter(|(_, support)| matches!(support, Support::Missing(_)));
        missing.map(|(feature, support)| Self::of(*feature, *support)).collect()
    }
}

/// Our table in the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TableRecord {
    /// Whether it is there.
    pub exists: bool,
    /// How many chains it has.
    pub chains: usize,
    /// How many rules.
    pub rules: usize,
    /// How many named sets and maps.
    pub sets: usize,
    /// How many elements all of them have.
    pub elements: usize,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceRecord {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its role.
    pub role: String,
    /// How the role was found.
    pub why: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A systemd unit or slice, or a path of control groups.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitRecord {
    /// Its name, as the policy has it.
    pub name: String,
    /// Its control groups; none while it does not run.
    pub cgroups: Vec<CgroupRecord>,
}

/// A control group of the unified hierarchy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupRecord {
    /// How deep it is; 1 below the root.
    pub level: u8,
    /// The inode number of its directory.
    pub id: u64,
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyRecord {
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: String,
    /// "enforce" or "audit".
    pub mode: String,
    /// The interfaces it applies to.
    pub interfaces: Vec<String>,
    /// How many rules it has.
    pub rules: usize,
    /// How many packets its rules matched; `None` when the kernel could not be looked at.
    pub packets: Option<u64>,
    /// How many bytes these had.
    pub bytes: Option<u64>,
    /// From when on it no longer exists: RFC 3339, UTC.
    pub expires: Option<String>,
    /// Where it was written.
    pub place: String,
}

/// A failsafe entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FailsafeRecord {
    /// Its name.
    pub name: String,
    /// "ingress" or "egress".
    pub direction: String,
    /// The interfaces it holds on.
    pub interfaces: Vec<String>,
    /// How many packets it let through.
    pub packets: Option<u64>,
}

/// A finding.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FindingRecord {
    /// "error" or "warning".
    pub severity: String,
    /// The code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The file.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: u32,
    /// The column, from 1; 0 for the file as a whole.
    pub column: u32,
    /// What to do; may be empty.
    pub help: String,
}

impl FindingRecord {
    /// The record of a finding.
    pub fn of(finding: &Finding) -> Self {
        Self {
            severity: match finding.severity {
                Severity::Error => "error".to_owned(),
                Severity::Warning => "warning".to_owned(),
            },
            code: finding.code.name().to_owned(),
            message: finding.message.clone(),
            file: finding.place.file.to_string(),
            line: finding.place.line,
            column: finding.place.column,
            help: finding.help.clone(),
        }
    }
}

impl TableRecord {
    /// The record of a table.
    pub fn of(loaded: &Loaded) -> Self {
        let Ruleset { sets, chains } = &loaded.ruleset;
        Self {
            exists: loaded.exists,
            chains: chains.len(),
            rules: chains.values().map(|chain| chain.rules.len()).sum(),
            sets: sets.len(),
            elements: sets.values().map(|set| set.elements.len()).sum(),
        }
    }
}

/// Packets and bytes by policy ("failsafe:NAME" for failsafe entries), summed over all rules that carry its name.
pub fn counters(loaded: &Loaded) -> BTreeMap<String, (u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (name, chain) in &loaded.ruleset.chains {
        let states = loaded.rules.get(name).map(Vec::as_slice).unwrap_or_default();
        for (rule, state) in chain.rules.iter().zip(states) {
            let id = rule.comment.as_deref().and_then(rule_of);
            if let (Some(id), Some((packets, bytes))) = (id, state.counter) {
                let sum = sums.entry(id.policy.to_string()).or_default();
                *sum = (sum.0.saturating_add(packets), sum.1.saturating_add(bytes));
            }
        }
    }
    sums
}

impl Status {
    /// What the state machine knows, without what only a look at the kernel tells.
    pub fn of(state: &State) -> Self {
        let (pending, now) = (state.record().pending.as_ref(), disk::now());
        let mode = |mode: Mode| match mode {
            Mode::Enforce => "enforce".to_owned(),
            Mode::Audit => "audit".to_owned(),
        };
        let summary = state.summary().cloned().unwrap_or_default();
        let (guards, policies): (Vec<_>, Vec<_>) =
            summary.policies.into_iter().partition(|policy| guards::is_built_in(&policy.place));
        let policy = |policy: PolicySummary| PolicyRecord {
            name: policy.name,
            tier: policy.tier,
            mode: mode(policy.mode),
            interfaces: policy.interfaces,
            rules: policy.rules,
            packets: None,
            bytes: None,
            expires: policy.expires.map(time::rfc3339),
            place: policy.place.to_string(),
        };
        let elsewhere = state.elsewhere();
        let here = summary.interfaces.iter().filter_map(|interface| interface.coverage.get(&Direction::Ingress));
        let counts = coverage::counts(here.chain(elsewhere.values()));
        Self {
            coverage: counts.into_iter().map(|(state, count)| (state.name().to_owned(), count)).collect(),
            elsewhere: elsewhere
                .into_iter()
                .map(|(name, found)| CoverageRecord {
                    name,
                    state: found.state.name().to_owned(),
                    reason: found.reason,
                })
                .collect(),
            version: VERSION,
            running: true,
            state: state.phase().name().to_owned(),
            reason: state.reason(),
            daemon: Some(env!("CARGO_PKG_VERSION").to_owned()),
            pid: Some(std::process::id()),
            mode: state.summary().map(|summary| mode(summary.mode)),
            generation: state.generation(),
            confirmed: state.confirmed(),
            confirm_until: pending.map(|pending| clock::of_milliseconds(pending.term.until)),
            confirm_seconds: pending
                .map(|pending| pending.term.left(now).map_or(0, |left| left.as_secs_f64().ceil() as u64)),
            confirm_by: pending.map(|pending| match pending.before {
                Some(_) => "self-test".to_owned(),
                None => "operator".to_owned(),
            }),
            selftest: state.selftest().as_ref().map(SelfTestRecord::of),
            break_glass_until: match &state.record().emergency {
                Some(Emergency::BreakGlass { term, .. }) => Some(clock::of_milliseconds(term.until)),
                _ => None,
            },
            store_error: state.not_kept().map(str::to_owned),
            interfaces: summary
                .interfaces
                .into_iter()
                .map(|interface| InterfaceRecord {
                    name: interface.name.to_string(),
                    index: interface.index,
                    role: interface.role.name().to_owned(),
                    why: interface.why,
                    labels: interface.labels,
                })
                .collect(),
            units: state
                .units()
                .into_iter()
                .map(|(name, cgroups)| UnitRecord {
                    name,
                    cgroups: cgroups.into_iter().map(|Cgroup { level, id }| CgroupRecord { level, id }).collect(),
                })
                .collect(),
            guards: guards.into_iter().map(policy).collect(),
            policies: policies.into_iter().map(policy).collect(),
            failsafe: summary
                .failsafe
                .into_iter()
                .map(|entry| FailsafeRecord {
                    name: entry.name,
                    direction: entry.direction.name().to_owned(),
                    interfaces: entry.interfaces,
                    packets: None,
                })
                .collect(),
            findings: state.findings().iter().map(FindingRecord::of).collect(),
            ..Self::default()
        }
    }

    /// Adds what a look at the kernel told.
    pub fn add_counters(&mut self, counters: &BTreeMap<String, (u64, u64)>) {
        for policy in self.guards.iter_mut().chain(&mut self.policies) {
            let (packets, bytes) = counters.get(&policy.name).copied().unwrap_or_default();
            (policy.packets, policy.bytes) = (Some(packets), Some(bytes));
        }
        for entry in &mut self.failsafe {
            entry.packets = Some(counters.get(&format!("failsafe:{}", entry.name)).map_or(0, |sum| sum.0));
        }
    }
}
