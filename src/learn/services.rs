//! What ports are called: by the services of the policy where one means just these, else after who listens there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::net::interface::{Direction, Role};
use crate::net::protocol::{PortSet, Protocol, icmp_type_name, icmpv6_type_name};
use crate::policy::model::{Policy, Service as Named, ServicePort, Transport};
use crate::traffic::{Actor, Service};

/// What is to be named.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) direction: Direction,
    pub(super) role: Role,
    pub(super) protocol: Protocol,
    pub(super) service: Service,
    /// Who has the sockets.
    pub(super) actors: &'a BTreeSet<Actor>,
    /// Who asks, or is asked.
    pub(super) peers: &'a BTreeSet<IpAddr>,
    /// Ports that are seen beside it.
    pub(super) beside: &'a BTreeSet<u16>,
}

/// Services of the catalogue that mean something on one kind of interface only.
const OF_ROLE: &[(&str, Role)] = &[("tmfifo", Role::Dpu), ("redfish-host", Role::Bmc), ("ipmi", Role::Bmc)];
/// Services of the catalogue at ports that many others have, too: their program has to be called like them.
const AT_COMMON_PORTS: &[&str] =
    &["ufm", "mlflow", "amd-metrics-exporter", "tgi", "spark", "vllm", "triton", "sglang", "jupyter", "dask"];
/// Cloud metadata, at its own addresses only.
const IMDS: &str = "imds";
const IMDS_ADDRESSES: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// A service with more ports than these is not meant by one of them ...
const MOST_PORTS: u32 = 16;
/// ... but by several, if it has no more than these: ranges like Ceph's.
const MOST_PORTS_OF_RANGE: u32 = 1024;
const SEVERAL: usize = 3;

/// Whether a service of the policy stands at exactly this port, so that it is nobody's that changes.
pub(super) fn is_fixed(policy: &Policy, protocol: Protocol, port: u16) -> bool {
    policy.services.values().any(|service| has(service, protocol, port) && width(service) <= MOST_PORTS)
}

/// The service of the policy that is meant, if one is.
pub(super) fn find<'p>(policy: &'p Policy, question: &Question<'_>) -> Option<&'p Named> {
    let wanted = |service: &&Named| {
        let fits = match question.service {
            Service::Port(port) => has(service, question.protocol, port),
            Service::Icmp(kind, _) => match service.ports.as_slice() {
                [] => false,
                ports => ports.iter().all(|port| matches!(port, ServicePort::Icmp(_, types) if types.len() == 1))
                    && ports.iter().any(|port| {
                        matches!(port, ServicePort::Icmp(protocol, types) if *protocol == question.protocol && types.contains_key(&kind))
                    }),
            },
            Service::Whole => service.ports == [ServicePort::Protocol(question.protocol)],
            Service::Many => false,
        };
        fits && service.transport == Transport::Ip && may_be(service, question)
    };
    let rank = |service: &&Named| (!is_called(&service.name, question.actors), width(service), service.name.clone());
    policy.services.values().filter(wanted).min_by_key(rank)
}

fn may_be(service: &Named, question: &Question<'_>) -> bool {
    let name = service.name.as_str();
    let ports = width(service);
    let beside = question.beside.iter().filter(|port| has(service, question.protocol, **port)).count();
    if ports > MOST_PORTS && (ports > MOST_PORTS_OF_RANGE || beside < SEVERAL) {
        return false;
    }
    if let Some((_, role)) = OF_ROLE.iter().find(|(known, _)| *known == name) {
        return question.role == *role;
    }
    if name == IMDS {
        let is = |peer: &IpAddr| IMDS_ADDRESSES.contains(&peer.to_string().as_str());
        return question.direction == Direction::Egress && question.peers.iter().all(is);
    }
    !AT_COMMON_PORTS.contains(&name) || is_called(name, question.actors)
}

fn has(service: &Named, protocol: Protocol, port: u16) -> bool {
    service
        .ports
        .iter()
        .any(|known| matches!(known, ServicePort::Ports(of, ports) if *of == protocol && ports.contains(port)))
}

/// How many ports it has; a protocol as a whole counts as one.
fn width(service: &Named) -> u32 {
    let of = |port: &ServicePort| match port {
        ServicePort::Ports(_, ports) => ports.ranges().iter().map(|(first, last)| u32::from(last - first) + 1).sum(),
        ServicePort::Icmp(..) | ServicePort::Protocol(_) => 1_u32,
    };
    service.ports.iter().map(of).sum()
}

/// Whether one of the processes, units or pods is called like a service.
fn is_called(name: &str, actors: &BTreeSet<Actor>) -> bool {
    actors.iter().any(|actor| {
        let called = [Some(&actor.process), actor.unit.as_ref(), actor.pod.as_ref()];
        called.into_iter().flatten().any(|text| text.to_ascii_lowercase().contains(name))
    })
}

/// The service of the policy for all ephemeral ports of a protocol, the one that is called like who listens before others.
pub(super) fn of_range<'p>(
    policy: &'p Policy,
    protocol: Protocol,
    range: &PortSet,
    actors: &BTreeSet<Actor>,
) -> Option<&'p Named> {
    let same = |service: &&Named| service.ports == [ServicePort::Ports(protocol, range.clone())];
    let rank = |service: &&Named| {
        let word = service.name.rsplit('-').next().unwrap_or(&service.name);
        (!is_called(word, actors), service.name.clone())
    };
    policy.services.values().filter(same).min_by_key(rank)
}

/// Programs that run programs, so that their name alone says nothing.
const INTERPRETERS: &[&str] = &["python", "java", "node", "ray", "ruby", "perl", "bash", "sh", "uvicorn", "gunicorn"];

/// What a service without a name could be called: its words, and whether they need a port to mean something.
pub(super) fn invent(protocol: Protocol, service: Service, actors: &BTreeSet<Actor>) -> String {
    let detail = match service {
        Service::Port(port) => port.to_string(),
        Service::Icmp(8, _) if protocol == Protocol::ICMP => return "ping".to_owned(),
        Service::Icmp(128, _) if protocol == Protocol::ICMPV6 => return "ping6".to_owned(),
        Service::Icmp(kind, _) => kind.to_string(),
        Service::Whole | Service::Many => return format!("proto-{protocol}"),
    };
    let unit = |actor: &Actor| {
        let name = actor.unit.as_deref()?.strip_suffix(".service")?;
        // An instance of a template is one of several.
        Some(word(name.split('@').next()?)).filter(|word| !word.is_empty())
    };
    let process = |actor: &Actor| Some(word(&actor.process)).filter(|word| !word.is_empty());
    match actors.iter().find_map(unit).or_else(|| actors.iter().find_map(process)) {
        Some(word)
            if INTERPRETERS
                .iter()
                .any(|interpreter| word.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') == *interpreter) =>
        {
            format!("{word}-{detail}")
        }
        Some(word) => word,
        None => format!("{protocol}-{detail}"),
    }
}

/// Foreign text as part of a name: lower-case letters, digits and dashes.
pub(super) fn word(text: &str) -> String {
    let mut word = String::new();
    for next in text.chars().take(32) {
        match next.to_ascii_lowercase() {
            plain if plain.is_ascii_alphanumeric() => word.push(plain),
            '.' if !word.is_empty() => word.push('.'),
            _ if !word.is_empty() && !word.ends_with('-') => word.push('-'),
            _ => {}
        }
    }
    word.trim_end_matches(['-', '.']).to_owned()
}

/// A port as a service has it: "tcp/22", "icmp/echo-request", "esp".
pub(super) fn port_words(protocol: Protocol, service: Service) -> String {
    match service {
        Service::Port(port) => format!("{protocol}/{port}"),
        Service::Icmp(kind, _) => {
            let name = if protocol == Protocol::ICMP { icmp_type_name(kind) } else { icmpv6_type_name(kind) };
            name.map_or_else(|| format!("{protocol}/{kind}"), |name| format!("{protocol}/{name}"))
        }
        Service::Whole => protocol.to_string(),
        Service::Many => format!("{protocol}, many"),
    }
}

/// The ports of a service in words, those of the policy as those that were found.
pub(super) fn ports_of(service: &Named) -> Vec<String> {
    let range = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let words = |port: &ServicePort| -> Vec<String> {
        match port {
            ServicePort::Ports(protocol, ports) => {
                ports.ranges().iter().map(|ports| format!("{protocol}/{}", range(ports))).collect()
            }
            ServicePort::Icmp(protocol, types) => {
                types.keys().map(|kind| port_words(*protocol, Service::Icmp(*kind, 0))).collect()
            }
            ServicePort::Protocol(protocol) => vec![protocol.to_string()],
        }
    };
    service.ports.iter().flat_map(words).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::range::RangeSet;
    use crate::text::place::Place;

    fn catalogue() -> Policy {
        let service = |(name, ports): (&str, Vec<(Protocol, u16, u16)>)| {
            let ports = ports
                .iter()
                .map(|(protocol, first, last)| ServicePort::Ports(*protocol, RangeSet::range(*first, *last)));
            let named = Named {
                name: name.to_owned(),
                ports: ports.collect(),
                transport: Transport::Ip,
                place: Place::file("t"),
            };
            (name.to_owned(), named)
        };
        let tcp = |port: u16| (Protocol::TCP, port, port);
        let services = [
            ("ssh", vec![tcp(22)]),
            ("tmfifo", vec![tcp(22)]),
            ("ufm", vec![tcp(443)]),
            ("vllm", vec![tcp(8000)]),
            ("kube-apiserver", vec![tcp(6443)]),
            ("kube-control-plane", vec![tcp(6443), tcp(10_257)]),
            ("ceph", vec![tcp(3300), (Protocol::TCP, 6800, 7300)]),
            ("nodeports", vec![(Protocol::TCP, 30_000, 32_767)]),
            ("imds", vec![tcp(80)]),
            ("nccl-peers", vec![(Protocol::TCP, 32_768, 60_999)]),
            ("slurm-srun", vec![(Protocol::TCP, 32_768, 60_999)]),
        ];
        Policy { services: services.into_iter().map(service).collect(), ..Policy::default() }
    }

    fn actor(process: &str, unit: Option<&str>) -> BTreeSet<Actor> {
        [Actor { process: process.to_owned(), unit: unit.map(str::to_owned), ..Actor::default() }].into()
    }

    #[test]
    fn a_service_is_named_where_its_ports_mean_it() {
        let policy = catalogue();
        let name = |role, port, process: &str, beside: &[u16]| {
            let question = Question {
                direction: Direction::Ingress,
                role,
                protocol: Protocol::TCP,
                service: Service::Port(port),
                actors: &actor(process, None),
                peers: &BTreeSet::new(),
                beside: &beside.iter().copied().collect(),
            };
            find(&policy, &question).map(|service| service.name.clone())
        };
        let is = |name: &str| Some(name.to_owned());
        assert_eq!(name(Role::Mgmt, 22, "sshd", &[]), is("ssh"));
        assert_eq!(name(Role::Mgmt, 6443, "", &[]), is("kube-apiserver"));
        // Whatever serves HTTPS is not UFM, and metadata is no service of this host.
        assert_eq!(name(Role::Mgmt, 443, "nginx", &[]), None);
        assert_eq!(name(Role::Mgmt, 443, "ufm-web", &[]), is("ufm"));
        assert_eq!(name(Role::Mgmt, 80, "nginx", &[]), None);
        assert_eq!(name(Role::Mgmt, 8000, "python3", &[]), None);
        assert_eq!(name(Role::Mgmt, 8000, "VLLM::Worker", &[]), is("vllm"));
        // One port of a range is not the range.
        assert_eq!(name(Role::Storage, 6801, "ceph-osd", &[6801]), None);
        assert_eq!(name(Role::Storage, 6801, "ceph-osd", &[6801, 6802, 3300]), is("ceph"));
        assert_eq!(name(Role::Mgmt, 30_080, "", &[30_080, 30_081, 30_082]), None);
        assert!(is_fixed(&policy, Protocol::TCP, 22));
        assert!(!is_fixed(&policy, Protocol::TCP, 40_000));
    }

    #[test]
    fn ephemeral_ports_are_those_of_who_listens() {
        let policy = catalogue();
        let range = PortSet::range(32_768, 60_999);
        let name =
            |process: &str| of_range(&policy, Protocol::TCP, &range, &actor(process, None)).unwrap().name.clone();
        assert_eq!(name("python3"), "nccl-peers");
        assert_eq!(name("srun"), "slurm-srun");
        assert!(of_range(&policy, Protocol::UDP, &range, &BTreeSet::new()).is_none());
        assert!(of_range(&policy, Protocol::TCP, &PortSet::range(10_000, 60_999), &BTreeSet::new()).is_none());
    }

    #[test]
    fn foreign_names_become_plain_words() {
        for (process, unit, expected) in [
            ("nginx", None, "nginx"),
            ("python3", None, "python3-9000"),
            ("python3.11", None, "python3.11-9000"),
            ("python3", Some("inference-api.service"), "inference-api"),
            ("x", Some("worker@3.service"), "worker"),
            ("x", Some("cri-containerd-0123.scope"), "x"),
            ("\"]\n[[policy]]", None, "policy"),
            ("../../etc", None, "etc"),
            ("\u{202e}\u{1f600}", None, "tcp-9000"),
            ("", None, "tcp-9000"),
            ("--", None, "tcp-9000"),
        ] {
            assert_eq!(invent(Protocol::TCP, Service::Port(9000), &actor(process, unit)), expected);
        }
    }
}
