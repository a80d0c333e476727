//! One policy after the other on the node, packets under each, and what every judge says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Range;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use nodewall::compile::compile;
use nodewall::driver::{self, Kernel as _, Netlink, Read};
use nodewall::net::facts::Cgroup;
use nodewall::net::protocol::Protocol;
use nodewall::nft::change::Loaded;
use nodewall::nft::ir::{Reject, Ruleset, Statement};
use nodewall::policy::effective::Effective;
use nodewall::policy::settings::LogSettings;
use nodewall::simulate::link::{LinkType, frame};
use nodewall::simulate::{Packet, wire};

use super::compare::{Fate, Judge, Judged, Known, differences, sums};
use super::frame::{Built, Together, build, frames, is_extension};
use super::inbox::Inbox;
use super::node::{Link, Node, OWN_V4, OWN_V6};
use super::observe::{Entry, Lasting, Observed, identification, lasting, observations};
use super::people::People;
use super::shape::{Before, By, Lie, Options, Shape, Way, Whom};
use super::witness::{LAST, LAST_PROTOCOL, OUR_LOG, Point, Testimony, Witnesses, is_last};
use crate::generate::packet::Points;
use crate::lab::conntrack::Conntrack;

/// A burst that no test comes to the end of; with a rate of one a day the kernel can just keep count of it in 64 bits.
const BURST: u32 = 50_000;

/// A node, and everything that sends to it and watches it.
pub struct Bed {
    pub node: Node,
    pub people: People,
    witnesses: Witnesses,
    inbox: Inbox,
    conntrack: Conntrack,
    kernel: Netlink,
    loaded: Option<Loaded>,
    /// The identification of the next packet: fragments that wait for others must not meet those of another one.
    next: u16,
}

/// What became of the packets of one policy.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// What was judged, and of which shape it was if it is not an answer of the node's.
    pub judged: Vec<(Judged, Option<usize>)>,
    /// How many were sent.
    pub sent: usize,
    /// How many of them never came to a rule.
    pub unseen: usize,
    /// How many sockets of this host, or the peer, got.
    pub taken: usize,
}

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// The packets that were let through, and so may arrive: by identification, whether they have to.
#[derive(Default)]
struct Arrivals {
    /// At a socket of this host.
    here: BTreeMap<u32, bool>,
    /// At the peer, by the index of the link.
    there: BTreeMap<(u32, u32), bool>,
    /// At the peer, by whatever link: those of this host that got another destination, and with it another route.
    rerouted: BTreeSet<u32>,
    /// Where the witnesses saw each.
    seen: BTreeMap<u32, Vec<Vec<Point>>>,
}

impl Arrivals {
    fn note(&mut self, observed: &Observed, judged: &Judged, plain: bool) {
        // Two flows whose answers would look alike are one too many (`__nf_conntrack_confirm`).
        let plain = plain && judged.packet.translated.is_none();
        if observed.at(Point::AfterInput) {
            let packet = &judged.packet;
            let has_to = plain && Inbox::takes(packet) && !packet.destination.is_multicast();
            *self.here.entry(observed.id()).or_default() |= has_to;
        } else if observed.leaves() && judged.packet.translated.is_some() {
            self.rerouted.insert(observed.id());
        } else {
            *self.there.entry((observed.output, observed.id())).or_default() |= plain && observed.output != LOOPBACK;
        }
    }

    /// Every packet that arrived was let through, and every plain one that was let through arrived; how many arrived.
    fn compare(&self, node: &Node, inbox: &Inbox, ours: Range<u16>) -> Result<usize, (u32, String)> {
        let taken: BTreeSet<u32> = inbox.taken().into_iter().filter(|id| ours.contains(id)).map(u32::from).collect();
        if let Some(id) = taken.iter().find(|id| !self.here.contains_key(id)) {
            return Err((*id, format!("a socket got packet {id}, which was not let through: {:?}", self.seen.get(id))));
        }
        if let Some((id, _)) = self.here.iter().find(|(id, has_to)| **has_to && !taken.contains(id)) {
            return Err((*id, format!("no socket got packet {id}, which was let through: {:?}", self.seen.get(id))));
        }
        let mut sent = BTreeSet::new();
        for (link, bytes) in node.arrived() {
            let Ok(frame) = frame(LinkType::Ethernet, &bytes) else { continue };
            let id = identification(frame.packet);
            if u16::try_from(id).is_ok_and(|id| ours.contains(&id)) {
                sent.insert((node.links[link].index, id));
            }
        }
        if let Some(key) = sent.iter().find(|key| !self.there.contains_key(key) && !self.rerouted.contains(&key.1)) {
            let seen = self.seen.get(&key.1);
            return Err((key.1, format!("the peer got packet {key:?}, which was not let through: {seen:?}")));
        }
        if let Some((key, _)) = self.there.iter().find(|(key, has_to)| **has_to && !sent.contains(key)) {
            let seen = self.seen.get(&key.1);
            return Err((key.1, format!("the peer did not get packet {key:?}, which was let through: {seen:?}")));
        }
        Ok(taken.len() + sent.len())
    }
}

/// What the node tells senders of what it does not let through.
struct Answers {
    /// The packets about which an ICMP error says that they are prohibited: what is left of them, whoever translates addresses.
    prohibited: BTreeSet<Lasting>,
    /// Source, destination and ports of resets.
    resets: BTreeSet<(IpAddr, IpAddr, (u16, u16))>,
}

impl Answers {
    fn of(all: &[Observed]) -> Self {
        let mut answers = Self { prohibited: BTreeSet::new(), resets: BTreeSet::new() };
        for observed in all.iter().filter(|observed| observed.leaves() && observed.owner.is_none()) {
            let Ok(headers) = wire::packet(&observed.bytes) else { continue };
            let transport = headers.transport.unwrap_or_default();
            match (headers.protocol, headers.icmp(), headers.ports()) {
                // "Communication administratively prohibited" (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
                (Some(Protocol::ICMP), Some((3, 13)), _) | (Some(Protocol::ICMPV6), Some((1, 1)), _) => {
                    answers.prohibited.extend(lasting(&transport[8..]));
                }
                (Some(Protocol::TCP), _, Some(ports)) if transport.get(13).is_some_and(|flags| flags & 4 != 0) => {
                    answers.resets.insert((headers.source, headers.destination, ports));
                }
                _ => {}
            }
        }
        answers
    }

    /// Only senders of rejected packets are told that they are prohibited.
    fn only_of(&self, rejected: &BTreeSet<Lasting>) -> Result<(), String> {
        match self.prohibited.difference(rejected).next() {
            Some(packet) => Err(format!("the sender of a packet that no rule rejects is told so: {packet:x?}")),
            None => Ok(()),
        }
    }

    /// A rejected packet's sender is told, if there is nothing odd about the packet.
    fn compare(&self, observed: &Observed, judged: &Judged, nice: bool) -> Result<(), String> {
        let packet = &judged.packet;
        let told = lasting(&observed.bytes).is_some_and(|packet| self.prohibited.contains(&packet));
        let (source, destination) = (packet.source, packet.destination);
        let own = |address: IpAddr| [OWN_V4, OWN_V6].contains(&address.to_string().as_str());
        let someone = |address: IpAddr| match address {
            _ if own(address) => false,
            IpAddr::V4(address) => address.octets()[0] == 10,
            // The first address of a route's prefix is nobody's alone (`ipv6_anycast_destination`), and nobody is told there.
            IpAddr::V6(address) => address.octets()[0] == 0xfd && address.octets()[15] % 8 != 0,
        };
        let nice = nice && packet.translated.is_none() && source != destination;
        let nice = nice && someone(source) && (someone(destination) || own(destination));
        // An error is from the address that was asked, which a host has to have (`ip_route_output_key_hash_rcu`).
        let from_nobody = observed.at(Point::BeforeInput) && source.is_ipv4() && !own(destination);
        match judged.reject {
            Some(Reject::AdminProhibited)
                if nice && !told && !from_nobody && packet.protocol == Some(Protocol::UDP) =>
            {
                Err(format!("its sender is not told that it is prohibited: {judged:?}"))
            }
            Some(Reject::TcpReset) if nice => {
                let is_reset = observed.bytes.get(transport_at(packet) + 13).is_none_or(|flags| flags & 4 != 0);
                let (sport, dport) = packet.ports().unwrap_or_default();
                let there = self.resets.contains(&(destination, source, (dport, sport)));
                if there || is_reset { Ok(()) } else { Err(format!("its sender gets no reset: {judged:?}")) }
            }
            _ => Ok(()),
        }
    }
}

/// Where the transport header of a packet without options begins.
fn transport_at(packet: &Packet) -> usize {
    if packet.source.is_ipv4() { 20 } else { 40 }
}

/// Whether nothing about a packet gives the kernel a reason not to deliver it once rules let it through.
fn is_plain(shape: &Shape, built: &Built) -> bool {
    shape.options == Options::None
        && shape.headers.is_empty()
        && (shape.v4 || !is_extension(shape.protocol))
        && shape.lie == Lie::None
        && built.together == Together::Whole
        && shape.transport.cut.is_none()
        && shape.transport.payload >= 8
        && shape.transport.sum
}

impl Bed {
    /// A new one; this thread is on its node from now on, and on one processor, so that packets stay in order.
    pub fn new() -> Self {
        let node = Node::new();
        node.host.step_into();
        let here = sched_getaffinity(Pid::from_raw(0)).expect("the processors");
        let mut one = CpuSet::new();
        let last = (0..CpuSet::count()).rev().find(|cpu| here.is_set(*cpu).unwrap_or(false)).expect("a processor");
        one.set(last).expect("a processor");
        sched_setaffinity(Pid::from_raw(0), &one).expect("one processor");
        let people = People::make();
        let witnesses = Witnesses::new();
        let kernel = Netlink::open().expect("a socket");
        let inbox = Inbox::open();
        Self { node, people, witnesses, inbox, conntrack: Conntrack::open(), kernel, loaded: None, next: 1 }
    }

    /// The policy as this node can have it: control groups that there are, limits that are never reached, a log that is heard.
    pub fn fit(&self, effective: &Effective) -> Effective {
        let mut effective = effective.clone();
        effective.log = LogSettings { group: OUR_LOG, denied: false, rate: 1_000_000, burst: 1_000_000 };
        let real = |cgroup: &Cgroup| match &self.people.cgroups {
            Some(cgroups) => cgroups.get(cgroup.level, (cgroup.id & 0xff) as usize),
            None => *cgroup,
        };
        let policies = effective.tiers.iter_mut().flat_map(|tier| &mut tier.policies);
        let rules = policies.flat_map(|policy| policy.ingress.iter_mut().chain(&mut policy.egress).flatten());
        let ways = effective.failsafe.iter_mut().flat_map(|entry| entry.replies.iter_mut().chain([&mut entry.rule]));
        for rule in rules.chain(ways) {
            if let Some(limit) = &mut rule.limit {
                limit.burst = BURST;
            }
            if let Some(units) = rule.process.as_mut().and_then(|process| process.units.as_mut()) {
                units.cgroups = units.cgroups.iter().map(real).collect();
            }
        }
        effective
    }

    /// Loads a policy, sends the packets, and compares.
    ///
    /// # Errors
    /// The first difference, in words.
    pub fn run(&mut self, effective: &Effective, shapes: &[Shape]) -> Result<Outcomes, String> {
        let effective = self.fit(effective);
        let ruleset = compile(&effective);
        let devices = ruleset.chains.values().filter_map(|chain| chain.base?.device).map(|device| device.as_name());
        self.witnesses.watch(&devices.collect());
        self.load(&ruleset)?;
        self.conntrack.flush();
        let points = Points::of(&effective);
        let shapes: &[Shape] = &shapes.iter().map(|shape| shape.aimed(&points, &self.people)).collect::<Vec<_>>();
        let (before, _) = self.still_counters()?;
        self.inbox.taken();
        self.node.arrived();
        let mut built = Vec::new();
        let first = self.next;
        self.next = if first > 60_000 { 1 } else { first + shapes.len() as u16 };
        for (id, shape) in (first..).zip(shapes) {
            let packet = build(shape, &points, id);
            if let Some(flow) = packet.flow {
                self.conntrack.add(&[flow]);
            }
            self.send(shape, &packet);
            if shape.before == Before::Itself {
                self.send(shape, &packet);
            }
            built.push(packet);
        }
        let mut said = self.rest();
        let (after, more) = self.still_counters()?;
        said.extend(more);
        let said = said.into_iter().filter(|testimony| !is_last(&testimony.bytes));
        let mut outcomes = Outcomes { sent: shapes.len(), ..Outcomes::default() };
        let mut counted = Vec::new();
        let mut arrived = BTreeSet::new();
        let mut through = Arrivals::default();
        let mut rejected = BTreeSet::new();
        let all = observations(said.collect())?;
        let answers = Answers::of(&all);
        let judge = Judge::new(&self.node, &effective, &ruleset);
        let crowded: BTreeSet<u8> =
            shapes.iter().filter(|shape| matches!(shape.ecn, 1 | 2)).map(|shape| shape.protocol).collect();
        // Where one flow is translated, another may have the addresses of its answers; without ports to choose from
        // (`nf_nat_l4proto_unique_tuple`; since Linux 6.16 DCCP has none), connection tracking takes one of the two only
        // (`__nf_conntrack_confirm`).
        let alone = |protocol| matches!(protocol, 6 | 17 | 132 | 136) || !crowded.contains(&protocol);
        for observed in all {
            let index = self.index(&observed, first, shapes, &built);
            let known = self.known(index.map(|index| &shapes[index]), &observed);
            let of_shape = |words: String| match index {
                Some(index) => format!("{words}\n{:#?}", shapes[index]),
                None => format!("an answer: {words}"),
            };
            let judged = judge.judge(&observed, &known).map_err(of_shape)?;
            if let Some(index) = index {
                let (shape, built) = (&shapes[index], &built[index]);
                if observed.hook == Entry::Network {
                    self.as_sent(shape, built, &observed).map_err(of_shape)?;
                    let nice = is_plain(shape, built) && shape.frame.to == Whom::Node;
                    answers.compare(&observed, &judged, nice).map_err(of_shape)?;
                }
                if observed.hook != Entry::Device || judged.fate != Fate::Accepted {
                    arrived.insert(index);
                }
                if observed.hook == Entry::Device && judged.fate != Fate::Accepted && built.together == Together::Joined
                {
                    judge.arrives(&observed, &built.whole).map_err(of_shape)?;
                }
            }
            rejected.extend(lasting(&observed.bytes).filter(|_| judged.reject.is_some()));
            counted.extend(judged.counted.iter().cloned());
            through.seen.entry(observed.id()).or_default().push(observed.seen.clone());
            if judged.fate == Fate::Accepted && observed.hook != Entry::Device {
                let plain =
                    index.is_some_and(|index| is_plain(&shapes[index], &built[index]) && alone(shapes[index].protocol));
                through.note(&observed, &judged, plain);
            }
            outcomes.judged.push((judged, index));
        }
        answers.only_of(&rejected)?;
        for (index, shape) in shapes.iter().enumerate().filter(|(index, _)| !arrived.contains(index)) {
            outcomes.unseen += usize::from(!matches!(shape.way, Way::Out { by: By::Socket, .. }));
            self.never_arrives(shape, &built[index]).map_err(|words| format!("{words}\n{shape:#?}"))?;
        }
        let ours = first..first + shapes.len() as u16;
        outcomes.taken = through.compare(&self.node, &self.inbox, ours).map_err(|(id, words)| {
            let shape = (id as usize).checked_sub(usize::from(first)).and_then(|index| shapes.get(index));
            format!("{words}\n{shape:#?}")
        })?;
        let there = difference(&before, &after);
        let wrong = differences(&sums(counted.into_iter().filter(|comment| !comment.is_empty())), &there);
        if wrong.is_empty() {
            return Ok(outcomes);
        }
        let packets: String = outcomes
            .judged
            .iter()
            .map(|(judged, index)| {
                format!("{index:?} {:?} {:?}\n  counted {:?}\n", judged.fate, judged.packet, judged.counted)
            })
            .collect();
        Err(format!("counters differ: {}\n{packets}", wrong.join("; ")))
    }

    fn load(&mut self, ruleset: &Ruleset) -> Result<(), String> {
        let known = self.loaded.take();
        let applied = driver::apply(&mut self.kernel, ruleset, known.as_ref());
        let applied = applied.map_err(|error| format!("the kernel does not take it: {error}"))?;
        self.loaded = Some(applied.loaded);
        Ok(())
    }

    /// The counters while no packet came to a rule, and what the witnesses say of packets before that. The node says something unasked
    /// now and then.
    fn still_counters(&mut self) -> Result<(BTreeMap<String, u64>, Vec<Testimony>), String> {
        let mut said = self.witnesses.heard();
        loop {
            let counters = self.counters()?;
            let more = self.witnesses.heard();
            if more.is_empty() {
                return Ok((counters, said));
            }
            said.extend(more);
        }
    }

    /// The counter of every rule that has one, by chain and place.
    fn counters(&mut self) -> Result<BTreeMap<String, u64>, String> {
        let loaded = self.kernel.load(&Read::Only(Vec::new())).map_err(|error| error.to_string())?;
        let mut sums = BTreeMap::new();
        for (name, chain) in &loaded.ruleset.chains {
            for (rule, state) in chain.rules.iter().zip(&loaded.rules[name]) {
                if !rule.statements.contains(&Statement::Counter) {
                    continue;
                }
                let packets = state.counter.map_or(0, |(packets, _)| packets);
                *sums.entry(rule.comment.clone().unwrap_or_default()).or_insert(0) += packets;
            }
        }
        Ok(sums)
    }

    fn send(&self, shape: &Shape, built: &Built) {
        match shape.way {
            Way::In { link, .. } => {
                for frame in frames(shape, built, &self.node.links[link]) {
                    self.node.inject(link, &frame);
                }
            }
            Way::Out { link, person, mark, by } => {
                let through = match link {
                    Some(link) => (self.node.links[link].name, self.node.links[link].index),
                    None => ("", 0),
                };
                let person = &self.people.all[person];
                match by {
                    By::Socket => {
                        let tcp = shape.protocol.is_multiple_of(2);
                        let _ = person.talk(through, mark, tcp, built.ports.0, (built.destination, built.ports.1));
                    }
                    By::Raw => {
                        for part in &built.parts {
                            // What a rule drops, and what the kernel does not take for a packet, is refused.
                            let _ = person.send(through, mark, built.destination, part);
                        }
                    }
                }
            }
        }
    }

    /// Everything that the witnesses say of what was sent, and of the node's answers.
    fn rest(&mut self) -> Vec<Testimony> {
        let mut all = Vec::new();
        // What the node sends to itself may come after the first.
        for _ in 0..2 {
            let frame = last_frame(&self.node.links[0]);
            self.node.inject(0, &frame);
            let mut patience = 0;
            loop {
                let said = self.witnesses.heard();
                let through = said.iter().any(|testimony| {
                    matches!(testimony.point, Some(Point::Arrived | Point::Ingress)) && is_last(&testimony.bytes)
                });
                all.extend(said);
                if through {
                    break;
                }
                patience += 1;
                assert!(patience < 5000, "a packet to the node does not arrive");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        all
    }

    /// Which of the shapes it is.
    fn index(&self, observed: &Observed, first: u16, shapes: &[Shape], built: &[Built]) -> Option<usize> {
        let index = (observed.id() as usize).checked_sub(usize::from(first))?;
        let shape = shapes.get(index)?;
        let ours = match shape.way {
            Way::In { link, .. } => observed.input == self.node.links[link].index,
            // The kernel's answers have no owner, and those of ordinary sockets another source.
            Way::Out { by: By::Raw, .. } => {
                let Built { source, destination, .. } = built[index];
                let ends = wire::packet(&observed.bytes).map(|headers| (headers.source, headers.destination));
                match ends {
                    Ok(ends) if observed.leaves() => observed.owner.is_some() && ends == (source, destination),
                    // Another destination by DNAT.
                    Ok((from, _)) => from == source,
                    Err(_) => false,
                }
            }
            Way::Out { .. } => false,
        };
        ours.then_some(index)
    }

    fn known(&self, shape: Option<&Shape>, observed: &Observed) -> Known {
        let exit = match shape.map(|shape| shape.way) {
            Some(Way::In { exit, .. }) => exit.map(|exit| self.node.links[exit].name),
            _ => None,
        };
        let socket = match shape.map(|shape| shape.way) {
            Some(Way::Out { person, .. }) if observed.leaves() => Some(self.people.all[person].socket.clone()),
            _ => None,
        };
        Known { exit, socket }
    }

    /// A packet comes to the rules as it was sent, or as its fragments make it.
    fn as_sent(&self, shape: &Shape, built: &Built, observed: &Observed) -> Result<(), String> {
        // What this host sends to itself is translated before it arrives.
        let translated = matches!(shape.way, Way::Out { .. }) && matches!(shape.ecn, 1 | 2);
        if built.together == Together::Unsaid || translated {
            return Ok(());
        }
        let mut whole = built.whole.clone();
        if built.parts.len() == 1 {
            whole.extend(1..=shape.frame.trailer);
        }
        let sent = match shape.way {
            Way::In { .. } => wire::arriving(&whole, whole.len()),
            Way::Out { .. } => wire::packet(&whole),
        };
        let there = wire::packet(&observed.bytes);
        match (sent, there) {
            (Ok(sent), Ok(there)) if sent == there => Ok(()),
            (Ok(sent), Ok(there)) => Err(format!("it was {sent:?}, and rules saw {there:?}")),
            (Err(error), _) => Err(format!("rules saw it, although {error}: {:02x?}", built.whole)),
            (_, Err(error)) => Err(format!("rules saw what is no packet: {error}")),
        }
    }

    /// A packet that did not come to the rules has a reason not to.
    fn never_arrives(&self, shape: &Shape, built: &Built) -> Result<(), String> {
        let Way::In { link, .. } = shape.way else { return Ok(()) };
        if built.together != Together::Whole && built.together != Together::Joined {
            return Ok(());
        }
        if shape.frame.to == Whom::SomebodyElse {
            return Ok(());
        }
        // A chain at the ingress hook makes the kernel look for the transport protocol there and then (`nft_set_pktinfo_ipv6_ingress`).
        let watched = self.witnesses.devices().contains(self.node.links[link].name);
        if watched && built.parts.iter().any(|part| wire::packet(part).is_ok_and(|headers| headers.protocol.is_none()))
        {
            return Ok(());
        }
        // RFC 4291 section 2.5.3 (`ip6_rcv_core`); on `lo` such a packet does come to the rules.
        if [built.source, built.destination].iter().any(|address| address.is_ipv6() && address.is_loopback()) {
            return Ok(());
        }
        let frames = frames(shape, built, &self.node.links[link]);
        for bytes in &frames {
            match frame(LinkType::Ethernet, bytes) {
                Ok(frame) if frame.vlans.is_empty() => {
                    if wire::arriving(frame.packet, frame.packet.len()).is_err() {
                        return Ok(());
                    }
                }
                _ => return Ok(()),
            }
        }
        if wire::arriving(&built.whole, built.whole.len()).is_err() {
            return Ok(());
        }
        Err(format!("no rule saw it, and nothing says why: {:02x?}", built.whole))
    }
}

/// How much each comment counted in between.
fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let mut difference = BTreeMap::new();
    for (comment, now) in after {
        let then = before.get(comment).copied().unwrap_or(0);
        if now - then > 0 && !comment.is_empty() {
            difference.insert(comment.clone(), now - then);
        }
    }
    difference
}

/// A packet that is for nobody, and that every rule may do with what it likes.
fn last_frame(link: &Link) -> Vec<u8> {
    let shape = Shape {
        way: Way::In { link: 0, exit: None },
        v4: true,
        aim: None,
        source: 0,
        destination: 0,
        ports: (1, 0),
        dhcp: None,
        icmp: 0,
        protocol: LAST_PROTOCOL,
        hop_limit: 64,
        ecn: 0,
        options: Options::None,
        headers: Vec::new(),
        fragments: super::shape::Fragments::No,
        transport: super::shape::Transport { flags: 0, sum: true, cut: None, payload: 8 },
        lie: Lie::None,
        frame: super::shape::Frame { to: Whom::Node, tags: Vec::new(), trailer: 0 },
        before: Before::Nothing,
    };
    let points = Points { v4: vec![0x0a00_0001], ports: vec![1], ..Points::default() };
    let built = build(&shape, &points, LAST);
    frames(&shape, &built, link).remove(0)
}
