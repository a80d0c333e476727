//! What `audit --json` prints; the table, the page and the comparison are made of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::cli::subject::Subject;
use crate::daemon::clock;
use crate::exposure::finding::{self, Finding};
use crate::exposure::known::Known;
use crate::exposure::peers::Peer;
use crate::exposure::{Exposure, Reach};
use crate::net::addr::Family;
use crate::net::listener::{Endpoint, Holders, Listener, Process, Transport};
use crate::net::protocol::Protocol;
use crate::net::published::Published;
use crate::policy::model::Mode;
use crate::text::time;

/// The version of the form.
pub(super) const VERSION: u32 = 1;

/// What listeners were held against.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Basis {
    /// The generation in force.
    Generation,
    /// Documents, which may be in force or not.
    Documents,
    /// No policy of ours is in force.
    Nothing,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct Report {
    pub(super) version: u32,
    /// The host name.
    pub(super) node: String,
    /// When it was looked at (RFC 3339, UTC).
    pub(super) time: String,
    pub(super) policy: PolicyRecord,
    pub(super) zones: Vec<ZoneRecord>,
    pub(super) listeners: Vec<ListenerRecord>,
    pub(super) published: Vec<PublishedRecord>,
    pub(super) findings: Vec<FindingRecord>,
    /// How many listeners and published ports can be reached by "anyone", by "some", by "nobody", or on "loopback" only.
    #[serde(default)]
    pub(super) counts: BTreeMap<String, usize>,
    /// What is not known, and why.
    pub(super) troubles: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct PolicyRecord {
    pub(super) basis: Basis,
    pub(super) generation: Option<u64>,
    /// An emergency that stands above it.
    pub(super) emergency: Option<String>,
    /// "enforce", or "audit", in which nothing is denied.
    pub(super) mode: String,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct ZoneRecord {
    /// The role, with interfaces where the policy does not treat all of the role alike.
    pub(super) zone: String,
    pub(super) role: String,
    pub(super) interfaces: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct ListenerRecord {
    /// The known service that it is.
    pub(super) service: Option<String>,
    /// "tcp", "udp", "udplite", "sctp" or "rdma-cm".
    pub(super) transport: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Whether a socket of IPv6 takes IPv4 as well.
    pub(super) both_families: bool,
    /// The interface that it is bound to.
    pub(super) device: Option<String>,
    /// The RDMA devices of an RDMA-CM listener.
    pub(super) rdma: Vec<String>,
    pub(super) uid: Option<u32>,
    pub(super) user: Option<String>,
    /// "processes", "kernel" or "unknown".
    pub(super) held_by: String,
    pub(super) processes: Vec<ProcessRecord>,
    /// Whether a process that holds it holds a GPU.
    pub(super) gpu: bool,
    pub(super) reach: Vec<ReachRecord>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct ProcessRecord {
    pub(super) pid: u32,
    pub(super) name: String,
    /// The first words of the command line.
    pub(super) words: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) unit: Option<String>,
    pub(super) pod: Option<PodRecord>,
    pub(super) container: Option<String>,
    /// The device files of GPUs and RDMA devices that it has open.
    pub(super) devices: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct PodRecord {
    pub(super) uid: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct PublishedRecord {
    pub(super) service: Option<String>,
    /// "tcp"; nothing for any protocol.
    pub(super) transport: Option<String>,
    /// "30080", "8000-8010"
    pub(super) ports: String,
    /// "ipv4" or "ipv6"; nothing for both.
    pub(super) family: Option<String>,
    /// Where it leads, in words.
    pub(super) target: String,
    pub(super) owner: Option<String>,
    pub(super) comment: Option<String>,
    pub(super) via: String,
    /// Something about it is not understood, so that it may hold for fewer packets.
    pub(super) partly: bool,
    pub(super) reach: Vec<ReachRecord>,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct ReachRecord {
    pub(super) zone: String,
    pub(super) role: String,
    pub(super) from: Vec<PeerRecord>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct PeerRecord {
    /// "anyone", "anyone-but", "set", "part-of-set", "prefix", "more-prefixes" or "fabric".
    pub(super) peer: String,
    /// The set or prefix; "ipv4" or "ipv6" for anyone of that family; the number of more prefixes.
    pub(super) name: Option<String>,
    /// Whom "anyone-but" leaves out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) but: Vec<String>,
    /// The same for people.
    pub(super) text: String,
}

#[derive(Serialize, Deserialize, Debug)]
pub(super) struct FindingRecord {
    pub(super) severity: String,
    pub(super) code: String,
    pub(super) message: String,
    pub(super) help: String,
    pub(super) preset: Option<String>,
}

impl Report {
    pub(super) fn of(
        (basis, subject): (Basis, &Subject),
        exposure: &Exposure<'_>,
        (listeners, users): (&[Listener], &BTreeMap<u32, String>),
        published: &[Published],
        troubles: Vec<String>,
    ) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        let listeners = listeners.iter().map(|listener| {
            let reach = exposure.of_listener(listener);
            findings.extend(finding::of_listener(listener, &reach));
            ListenerRecord::of(listener, &reach, users)
        });
        let mut listeners: Vec<ListenerRecord> = listeners.collect();
        listeners.sort_by_key(|listener| (degree(&listener.reach, &listener.address), listener.port));
        let parts = published.iter().flat_map(|published| {
            let parts = exposure.of_published(published);
            parts.into_iter().map(|(ports, reach)| (Published { ports, ..published.clone() }, reach))
        });
        let published = parts.map(|(published, reach)| {
            let record = PublishedRecord::of(&published, &reach);
            findings.extend(finding::of_published(service(&published), &record.subject(), &reach));
            record
        });
        let published = published.collect();
        findings.sort_by_key(|finding| finding.kind);
        let (mode, emergency) = match basis {
            Basis::Nothing => ("audit".to_owned(), None),
            _ => (mode(subject.effective.mode), subject.emergency.clone()),
        };
        let report = Self {
            version: VERSION,
            node: subject.facts.node.clone(),
            time: time::rfc3339(clock::now()),
            policy: PolicyRecord { basis, generation: subject.generation, emergency, mode },
            zones: exposure.zones().iter().map(ZoneRecord::of).collect(),
            listeners,
            published,
            findings: findings.iter().map(FindingRecord::of).collect(),
            counts: BTreeMap::new(),
            troubles,
        };
        let names = ["anyone", "some", "nobody", "loopback"].map(str::to_owned);
        let counts = names.into_iter().zip(report.counts()).collect();
        Self { counts, ..report }
    }

    /// How many listeners and published ports anybody reaches by some zone, only some, nobody, and only this host.
    pub(super) fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        let listeners = self.listeners.iter().map(|listener| degree(&listener.reach, &listener.address));
        let published = self.published.iter().map(|published| degree(&published.reach, &IpAddr::from([0, 0, 0, 0])));
        for degree in listeners.chain(published) {
            counts[degree as usize] += 1;
        }
        counts
    }
}

/// How far something can be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Degree {
    Anybody,
    Some,
    Nobody,
    ThisHost,
}

pub(super) fn degree(reach: &[ReachRecord], address: &IpAddr) -> Degree {
    let anybody = |peer: &PeerRecord| matches!(peer.peer.as_str(), "anyone" | "anyone-but" | "fabric");
    match reach {
        [] if address.is_loopback() => Degree::ThisHost,
        [] => Degree::Nobody,
        reach if reach.iter().flat_map(|reach| &reach.from).any(anybody) => Degree::Anybody,
        _ => Degree::Some,
    }
}

fn mode(mode: Mode) -> String {
    match mode {
        Mode::Enforce => "enforce".to_owned(),
        Mode::Audit => "audit".to_owned(),
    }
}

/// The service of a published port, if it is one port.
fn service(published: &Published) -> Option<&'static Known> {
    Known::at(published.protocol.unwrap_or(Protocol::TCP), published.ports.only()?)
}

impl ZoneRecord {
    fn of(zone: &Reach) -> Self {
        let interfaces = zone.interfaces.iter().map(ToString::to_string).collect();
        Self { zone: zone.zone(), role: zone.role.to_string(), interfaces }
    }
}

impl ListenerRecord {
    fn of(listener: &Listener, reach: &[Reach], users: &BTreeMap<u32, String>) -> Self {
        let Listener { endpoint, uid, holders, rdma } = listener;
        let Endpoint { transport, port, address, both_families, device } = endpoint;
        let processes = holders.processes();
        Self {
            service: Known::of(listener).map(|known| known.name.to_owned()),
            transport: transport.name(),
            address: *address,
            port: *port,
            both_families: *both_families,
            device: device.as_ref().map(ToString::to_string),
            rdma: rdma.iter().cloned().collect(),
            uid: *uid,
            user: uid.map(|uid| user(users, uid)),
            held_by: match holders {
                Holders::Processes(_) => "processes",
                Holders::Kernel(_) => "kernel",
                Holders::Unknown => "unknown",
            }
            .to_owned(),
            processes: processes.iter().map(|process| ProcessRecord::of(process, users)).collect(),
            gpu: processes.iter().any(Process::holds_gpu),
            reach: reach.iter().map(ReachRecord::of).collect(),
        }
    }

    /// "*:8265/tcp": the star is any address of both families.
    pub(super) fn place(&self) -> String {
        let device = self.device.as_ref().map(|device| format!("%{device}")).unwrap_or_default();
        let socket = match self.address {
            address if address.is_unspecified() && self.both_families => format!("*{device}:{}", self.port),
            IpAddr::V6(address) => format!("[{address}{device}]:{}", self.port),
            address @ IpAddr::V4(_) if device.is_empty() => SocketAddr::new(address, self.port).to_string(),
            address @ IpAddr::V4(_) => format!("{address}{device}:{}", self.port),
        };
        format!("{socket}/{}", self.transport)
    }

    /// Who holds it: "gcs_server (812)", "nginx (812 and 3 more)".
    pub(super) fn who(&self) -> String {
        match (self.held_by.as_str(), self.processes.as_slice()) {
            ("kernel", _) => "the kernel".to_owned(),
            (_, []) => "?".to_owned(),
            (_, [one]) => format!("{} ({})", one.name, one.pid),
            (_, [first, rest @ ..]) => format!("{} ({} and {} more)", first.name, first.pid, rest.len()),
        }
    }

    /// The unit, pod or container that it belongs to.
    pub(super) fn home(&self) -> Option<String> {
        self.processes.first().and_then(ProcessRecord::home)
    }
}

impl ProcessRecord {
    fn of(process: &Process, users: &BTreeMap<u32, String>) -> Self {
        let Process { pid, name, words, uid, home, devices } = process;
        Self {
            pid: *pid,
            name: name.clone(),
            words: words.clone(),
            user: uid.map(|uid| user(users, uid)),
            unit: home.unit.clone(),
            pod: home.pod.as_ref().map(|pod| PodRecord {
                uid: pod.uid.clone(),
                namespace: pod.name.as_ref().map(|(namespace, _)| namespace.clone()),
                name: pod.name.as_ref().map(|(_, name)| name.clone()),
            }),
            container: home.container.clone(),
            devices: devices.iter().cloned().collect(),
        }
    }

    fn home(&self) -> Option<String> {
        let pod = self.pod.as_ref().map(|pod| match (&pod.namespace, &pod.name) {
            (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
            _ => format!("pod {}", pod.uid),
        });
        let container = || self.container.as_ref().map(|id| format!("container {}", id.get(..12).unwrap_or(id)));
        pod.or_else(|| self.unit.clone()).or_else(container)
    }
}

fn user(users: &BTreeMap<u32, String>, uid: u32) -> String {
    users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
}

impl PublishedRecord {
    fn of(published: &Published, reach: &[Reach]) -> Self {
        let range = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let ports: Vec<String> = published.ports.ranges().iter().map(range).collect();
        Self {
            service: service(published).map(|known| known.name.to_owned()),
            transport: published.protocol.map(|protocol| Transport::Ip(protocol).name()),
            ports: if published.ports.is_full() { "any port".to_owned() } else { ports.join(",") },
            family: published.family.map(|family| family_name(family).to_owned()),
            target: published.target.to_string(),
            owner: published.owner.map(str::to_owned),
            comment: published.comment.clone(),
            via: published.via.to_string(),
            partly: published.partly,
            reach: reach.iter().map(ReachRecord::of).collect(),
        }
    }

    /// "*:30080/tcp"
    pub(super) fn place(&self) -> String {
        let transport = self.transport.as_deref().map(|name| format!("/{name}")).unwrap_or_default();
        let start = match self.family.as_deref() {
            Some("ipv4") => "0.0.0.0",
            Some(_) => "[::]",
            None => "*",
        };
        format!("{start}:{}{transport}", self.ports)
    }

    /// "*:30080/tcp, published by kube-proxy (default/web:http)"
    fn subject(&self) -> String {
        let owner = self.owner.as_deref().unwrap_or(&self.via);
        let comment = self.comment.as_ref().map(|comment| format!(" ({comment})")).unwrap_or_default();
        format!("{}, published by {owner}{comment}", self.place())
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

impl ReachRecord {
    fn of(reach: &Reach) -> Self {
        Self {
            zone: reach.zone(),
            role: reach.role.to_string(),
            from: reach.peers.iter().map(PeerRecord::of).collect(),
        }
    }

    /// "admin, monitoring"
    pub(super) fn peers(&self) -> String {
        self.from.iter().map(|peer| peer.text.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl PeerRecord {
    fn of(peer: &Peer) -> Self {
        let (kind, name, but) = match peer {
            Peer::Anyone(family) => ("anyone", family.map(|family| family_name(family).to_owned()), Vec::new()),
            Peer::AnyoneBut(names) => ("anyone-but", None, names.clone()),
            Peer::Set(name) => ("set", Some(name.clone()), Vec::new()),
            Peer::PartOf(name) => ("part-of-set", Some(name.clone()), Vec::new()),
            Peer::Prefix(prefix) => ("prefix", Some(prefix.to_string()), Vec::new()),
            Peer::More(more) => ("more-prefixes", Some(more.to_string()), Vec::new()),
            Peer::Fabric => ("fabric", None, Vec::new()),
        };
        Self { peer: kind.to_owned(), name, but, text: peer.to_string() }
    }
}

impl FindingRecord {
    fn of(finding: &Finding) -> Self {
        Self {
            severity: finding.kind.severity().to_owned(),
            code: finding.kind.code().to_owned(),
            message: finding.message.clone(),
            help: finding.help.clone(),
            preset: finding.preset.map(str::to_owned),
        }
    }
}
