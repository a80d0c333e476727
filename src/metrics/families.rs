//! Which metrics there are, and what each says. How many series each has at most is in docs/metrics.md.

use super::bounded::Bounded;
use super::snapshot::{CLUSTER_STATES, Cluster, Exposed, Log, LogSeries, Policy, Process, Serving, Snapshot, Work};
use super::text::{Family, Kind, Sample, Value};
use super::verdicts::{Series, Verdicts};
use crate::net::interface::{Direction, Role};

/// The policy of series that had no room of their own.
pub const OTHER: &str = "(other)";
/// A label that is not one thing.
const ANY: &str = "*";

type Labels = Vec<(&'static str, String)>;

/// All families that have something to show, in order.
pub fn families(snapshot: &Snapshot) -> Vec<Family> {
    let mut all = Vec::new();
    all.push(info("nodewall_build", "The daemon that runs.", vec![("version", snapshot.version.to_owned())]));
    policy(&mut all, &snapshot.policy);
    all.push(gauges(
        "nodewall_findings",
        "Findings of the newest documents, by severity.",
        counts("severity", &snapshot.findings),
    ));
    verdicts(&mut all, &snapshot.verdicts);
    work(&mut all, &snapshot.work);
    clusters(&mut all, &snapshot.clusters);
    all.push(gauges(
        "nodewall_coverage_devices",
        "Interfaces, RDMA devices and functions of network cards, by how far rules reach on them.",
        counts("coverage", &snapshot.coverage),
    ));
    if let Some(exposed) = &snapshot.exposed {
        self::exposed(&mut all, exposed);
    }
    if let Some(log) = &snapshot.log {
        self::log(&mut all, log);
    }
    process(&mut all, &snapshot.process);
    serving(&mut all, &snapshot.serving);
    cut(&mut all, snapshot);
    all.retain(|family| !family.samples.is_empty());
    all
}

fn family(name: &'static str, kind: Kind, help: &'static str, samples: Vec<(Labels, Value)>) -> Family {
    let samples = samples.into_iter().map(|(labels, value)| Sample { labels, value }).collect();
    Family { name, kind, help, samples }
}

fn info(name: &'static str, help: &'static str, labels: Labels) -> Family {
    family(name, Kind::Info, help, vec![(labels, Value::Whole(1))])
}

fn gauges(name: &'static str, help: &'static str, samples: Vec<(Labels, Value)>) -> Family {
    family(name, Kind::Gauge, help, samples)
}

fn gauge(name: &'static str, help: &'static str, value: impl Into<Option<Value>>) -> Family {
    gauges(name, help, value.into().into_iter().map(|value| (Vec::new(), value)).collect())
}

fn counters(name: &'static str, help: &'static str, samples: Vec<(Labels, Value)>) -> Family {
    family(name, Kind::Counter, help, samples)
}

fn counter(name: &'static str, help: &'static str, value: impl Into<Option<Value>>) -> Family {
    counters(name, help, value.into().into_iter().map(|value| (Vec::new(), value)).collect())
}

fn histogram(name: &'static str, help: &'static str, histogram: &super::histogram::Histogram) -> Family {
    family(name, Kind::Histogram, help, vec![(Vec::new(), Value::Buckets(Box::new(histogram.clone())))])
}

fn whether(yes: bool) -> Value {
    Value::Whole(yes.into())
}

/// A series for each key.
fn counts<'a, K: AsRef<str> + 'a>(
    label: &'static str,
    counts: impl IntoIterator<Item = (&'a K, &'a u64)>,
) -> Vec<(Labels, Value)> {
    counts.into_iter().map(|(key, count)| (vec![(label, key.as_ref().to_owned())], Value::Whole(*count))).collect()
}

/// A series for each word: 1 for the one that holds.
fn one_of(label: &'static str, words: &[&'static str], holds: &str) -> Vec<(Labels, Value)> {
    words.iter().map(|word| (vec![(label, (*word).to_owned())], whether(*word == holds))).collect()
}

fn policy(all: &mut Vec<Family>, policy: &Policy) {
    all.push(gauges(
        "nodewall_policy_state",
        "1 for the state that `nodewall status` shows, 0 for the others.",
        one_of("state", &policy.states, policy.state),
    ));
    all.push(gauges(
        "nodewall_policy_mode",
        "1 for the node-wide mode, 0 for the other.",
        policy.mode.map(|mode| one_of("mode", &["enforce", "audit"], mode)).unwrap_or_default(),
    ));
    all.push(gauge(
        "nodewall_policy_generation",
        "The generation in force; 0 when it is none of the documents', as in the built-in lockdown and in an emergency.",
        Value::Whole(policy.generation),
    ));
    all.push(gauge(
        "nodewall_policy_confirmed_generation",
        "The generation that a boot loads.",
        policy.confirmed.map(Value::Whole),
    ));
    all.push(gauge(
        "nodewall_policy_in_force_timestamp_seconds",
        "Since when the generation is in force, in seconds since 1970.",
        policy.since.map(Value::Real),
    ));
    all.push(gauge(
        "nodewall_policy_unconfirmed_left_seconds",
        "How long the generation in force has to be confirmed; absent when it need not be.",
        policy.unconfirmed_left.map(Value::Real),
    ));
    all.push(gauge(
        "nodewall_kernel_table_read",
        "Whether our table in the kernel could be read for these metrics; 0 means that verdicts stand still.",
        whether(policy.kernel_read),
    ));
    let lacks = policy.kernel_lacks.iter().flatten().map(|(feature, needed)| {
        let needed = if *needed { "always" } else { "partly" };
        (vec![("feature", feature.clone()), ("needed", needed.to_owned())], Value::Whole(1))
    });
    all.push(gauges("nodewall_kernel_lacks", "1 for each feature that the kernel lacks.", lacks.collect()));
    all.push(gauge(
        "nodewall_store_error",
        "Whether the disk does not have what a boot should load.",
        whether(policy.store_error),
    ));
    all.push(gauge(
        "nodewall_store_damages",
        "What was found damaged on disk when the daemon started, and passed over.",
        Value::Whole(policy.store_damages),
    ));
}

fn served(series: &Series) -> Labels {
    let any = || ANY.to_owned();
    vec![
        ("interface", series.served.interface.clone().unwrap_or_else(any)),
        ("role", series.served.role.map_or_else(any, |role: Role| role.name().to_owned())),
        ("direction", series.served.direction.map_or_else(any, |direction: Direction| direction.name().to_owned())),
        ("policy", series.policy.clone()),
        ("verdict", series.counted.name().to_owned()),
    ]
}

/// The labels of what had no room.
fn others() -> Labels {
    let any = || ANY.to_owned();
    vec![("interface", any()), ("role", any()), ("direction", any()), ("policy", OTHER.to_owned()), ("verdict", any())]
}

fn series_of(
    bounded: &Bounded<Series, 2>,
    labels: impl Fn(&Series) -> Labels,
    others: Labels,
    at: usize,
) -> Vec<(Labels, Value)> {
    let mut samples: Vec<(Labels, Value)> =
        bounded.iter().map(|(series, counts)| (labels(series), Value::Whole(counts[at]))).collect();
    samples.extend(bounded.rest().map(|rest| (others, Value::Whole(rest[at]))));
    samples
}

fn verdicts(all: &mut Vec<Family>, verdicts: &Verdicts) {
    if !verdicts.began() {
        return;
    }
    let names = [
        ("nodewall_verdict_packets", "Packets that rules counted, by what became of them, since the daemon's start."),
        ("nodewall_verdict_bytes", "Bytes of the packets that rules counted, since the daemon's start."),
    ];
    for (at, (name, help)) in names.into_iter().enumerate() {
        all.push(counters(name, help, series_of(verdicts.policies(), served, others(), at)));
    }
    let names = [
        ("nodewall_rule_packets", "The same packets by rule; only with `rules = true` in [metrics]."),
        ("nodewall_rule_bytes", "The same bytes by rule; only with `rules = true` in [metrics]."),
    ];
    let rule = |series: &Series| {
        let mut labels = served(series);
        labels.push(("rule", series.rule.unwrap_or_default().to_string()));
        labels
    };
    for (at, (name, help)) in names.into_iter().enumerate() {
        let mut others = others();
        others.push(("rule", ANY.to_owned()));
        all.push(counters(name, help, series_of(verdicts.rules(), rule, others, at)));
    }
}

fn work(all: &mut Vec<Family>, work: &Work) {
    all.push(histogram(
        "nodewall_apply_duration_seconds",
        "How long it took to bring a ruleset into force, read back included.",
        &work.applies,
    ));
    all.push(counters("nodewall_apply_results", "Applies by what they came to.", counts("result", &work.results)));
    all.push(histogram(
        "nodewall_repair_duration_seconds",
        "From the notification of a change by somebody else to our table as it should be, read back.",
        &work.repairs,
    ));
    all.push(counter(
        "nodewall_drift_events",
        "How often others changed our table and it was repaired.",
        Value::Whole(work.drifts),
    ));
    all.push(gauge(
        "nodewall_drift_storm",
        "Whether another process keeps changing our table, so that repairs wait up to a second.",
        whether(work.storm),
    ));
    all.push(histogram(
        "nodewall_loop_lag_seconds",
        "How late the daemon's loop came to a timer of one second.",
        &work.lag,
    ));
}

fn clusters(all: &mut Vec<Family>, clusters: &[Cluster]) {
    let of = |cluster: &Cluster| vec![("cluster", cluster.name.clone())];
    let some = |value: &dyn Fn(&Cluster) -> Option<Value>| -> Vec<(Labels, Value)> {
        clusters.iter().filter_map(|cluster| Some((of(cluster), value(cluster)?))).collect()
    };
    let states = clusters.iter().flat_map(|cluster| {
        let states = one_of("state", &CLUSTER_STATES, &cluster.state).into_iter();
        states.map(|(state, value)| ([of(cluster), state].concat(), value))
    });
    all.push(gauges(
        "nodewall_cluster_state",
        "1 for the state of a cluster that documents come from.",
        states.collect(),
    ));
    all.push(gauges(
        "nodewall_cluster_state_age_seconds",
        "For how long a cluster has been in its state.",
        some(&|cluster| cluster.state_age.map(Value::Real)),
    ));
    all.push(gauges(
        "nodewall_cluster_objects",
        "Objects of a cluster that count here.",
        some(&|cluster| Some(Value::Whole(cluster.objects))),
    ));
    all.push(gauges(
        "nodewall_cluster_invalid_objects",
        "Objects of a cluster whose newest version cannot be used.",
        some(&|cluster| Some(Value::Whole(cluster.invalid))),
    ));
    all.push(gauges(
        "nodewall_cluster_nodes",
        "Nodes that a cluster has, by which rules name peers.",
        some(&|cluster| cluster.nodes.map(Value::Whole)),
    ));
    all.push(gauges(
        "nodewall_cluster_certificate_expiry_timestamp_seconds",
        "When this node's certificate for a cluster ends, in seconds since 1970.",
        some(&|cluster| cluster.certificate_until.map(Value::Real)),
    ));
    all.push(gauges(
        "nodewall_cluster_report_written",
        "Whether the last write of this node's HostState to a cluster went well.",
        some(&|cluster| cluster.report_written.map(whether)),
    ));
    all.push(gauges(
        "nodewall_cluster_report_age_seconds",
        "How long ago this node's HostState was written to a cluster.",
        some(&|cluster| cluster.report_age.map(Value::Real)),
    ));
}

fn exposed(all: &mut Vec<Family>, exposed: &Exposed) {
    all.push(gauges(
        "nodewall_exposed_sockets",
        "Listening sockets and published ports of this host, by who can reach them.",
        counts("reach", &exposed.sockets),
    ));
    let findings = exposed.findings.iter().map(|((code, severity), count)| {
        (vec![("code", code.clone()), ("severity", severity.clone())], Value::Whole(*count))
    });
    all.push(gauges(
        "nodewall_exposed_findings",
        "What `nodewall audit` calls dangerous, by kind.",
        findings.collect(),
    ));
    all.push(gauge(
        "nodewall_exposed_age_seconds",
        "How long ago it was looked what can be reached.",
        Value::Real(exposed.age),
    ));
    all.push(gauge("nodewall_exposed_duration_seconds", "How long that look took.", Value::Real(exposed.took)));
}

fn log(all: &mut Vec<Family>, log: &Log) {
    let labels = |series: &LogSeries| {
        vec![
            ("interface", series.interface.clone()),
            ("direction", series.direction.to_owned()),
            ("policy", series.policy.clone()),
            ("verdict", series.verdict.to_owned()),
        ]
    };
    let mut events: Vec<(Labels, Value)> =
        log.events.iter().map(|(series, [count])| (labels(series), Value::Whole(*count))).collect();
    let other = LogSeries { interface: ANY.to_owned(), direction: ANY, policy: OTHER.to_owned(), verdict: ANY };
    events.extend(log.events.rest().map(|[count]| (labels(&other), Value::Whole(*count))));
    all.push(counters("nodewall_log_events", "Logged packets that the daemon saw, by interface.", events));
    let losses = log.losses;
    for (name, help, value) in [
        ("nodewall_log_lost_packets", "Logged packets that the daemon did not get or did not look at.", losses.packets),
        (
            "nodewall_log_connection_overruns",
            "How often the kernel had no room for events of connection tracking.",
            losses.connection_overruns,
        ),
        ("nodewall_log_journal_suppressed", "Lines that the journal was spared.", losses.journal_suppressed),
        ("nodewall_log_store_left_out", "Flow records that the store did not take.", losses.store_left_out),
        ("nodewall_log_watchers_missed", "Events that a watcher was too slow for.", losses.watchers_missed),
    ] {
        all.push(counter(name, help, Value::Whole(value)));
    }
}

fn process(all: &mut Vec<Family>, process: &Process) {
    all.push(gauge(
        "nodewall_process_resident_memory_bytes",
        "Resident memory of the daemon.",
        process.resident.map(Value::Whole),
    ));
    all.push(counter(
        "nodewall_process_cpu_seconds",
        "User and system time of the daemon.",
        process.cpu.map(Value::Real),
    ));
    all.push(gauge("nodewall_process_threads", "Threads of the daemon.", process.threads.map(Value::Whole)));
    all.push(gauge("nodewall_process_open_fds", "Open files of the daemon.", process.files.map(Value::Whole)));
    all.push(gauge(
        "nodewall_process_start_time_seconds",
        "When the daemon started, in seconds since 1970.",
        process.started.map(Value::Real),
    ));
}

fn serving(all: &mut Vec<Family>, serving: &Serving) {
    all.push(counters(
        "nodewall_metrics_requests",
        "Requests for metrics by outcome.",
        counts("outcome", &serving.requests),
    ));
    all.push(counters(
        "nodewall_metrics_refused_connections",
        "Connections that were not let in, by reason.",
        counts("reason", &serving.refused),
    ));
}

fn cut(all: &mut Vec<Family>, snapshot: &Snapshot) {
    let mut families = vec![("verdict", snapshot.verdicts.policies().cut()), ("rule", snapshot.verdicts.rules().cut())];
    families.extend(snapshot.log.as_ref().map(|log| ("log_events", log.events.cut())));
    let samples = families.into_iter().map(|(family, cut)| {
        (vec![("family", family.to_owned())], Value::Whole(u64::try_from(cut).unwrap_or(u64::MAX)))
    });
    all.push(gauges(
        "nodewall_metrics_cut_series",
        "Series without room of their own, which are counted together as policy \"(other)\".",
        samples.collect(),
    ));
}
