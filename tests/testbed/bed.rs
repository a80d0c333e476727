//! One policy after the other on the node, packets under each, and what every judge says of them.

use std::collections::{BTreeMap, BTreeSet};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use nodewall::compile::compile;
use nodewall::driver::{self, Kernel as _, Netlink, Read};
use nodewall::net::facts::Cgroup;
use nodewall::nft::change::Loaded;
use nodewall::nft::ir::{Ruleset, Statement};
use nodewall::policy::effective::Effective;
use nodewall::policy::settings::LogSettings;
use nodewall::simulate::link::{LinkType, frame};
use nodewall::simulate::wire;

use super::compare::{Fate, Judged, Known, differences, judge, sums};
use super::frame::{Built, Together, build, frames};
use super::node::{Link, Node};
use super::observe::{Observed, observations};
use super::people::People;
use super::shape::{By, Shape, Way};
use super::witness::{LAST, OUR_LOG, Point, Testimony, Witnesses};
use crate::generate::packet::Points;
use crate::lab::conntrack::Conntrack;

/// A burst that no test comes to the end of; with a rate of one a day the kernel can just keep count of it in 64 bits.
const BURST: u32 = 50_000;

/// A node, and everything that sends to it and watches it.
pub struct Bed {
    pub node: Node,
    pub people: People,
    witnesses: Witnesses,
    conntrack: Conntrack,
    kernel: Netlink,
    loaded: Option<Loaded>,
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
        Self { node, people, witnesses, conntrack: Conntrack::open(), kernel, loaded: None }
    }

    /// The policy as this node can have it: control groups that there are, limits that are never reached, a log that is heard.
    pub fn fit(&self, effective: &Effective) -> Effective {
        let mut effective = effective.clone();
        effective.log = LogSettings { group: OUR_LOG, rate: 1_000_000, burst: 1_000_000 };
        let real = |cgroup: &Cgroup| match &self.people.cgroups {
            Some(cgroups) => cgroups.get(cgroup.level, (cgroup.id & 0xff) as usize),
            None => *cgroup,
        };
        let policies = effective.tiers.iter_mut().flat_map(|tier| &mut tier.policies);
        let rules = policies.flat_map(|policy| policy.ingress.iter_mut().chain(&mut policy.egress).flatten());
        for rule in rules.chain(effective.failsafe.iter_mut().map(|entry| &mut entry.rule)) {
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
        self.load(&ruleset)?;
        self.conntrack.flush();
        let points = Points::of(&effective);
        self.witnesses.heard();
        let before = self.counters()?;
        let mut built = Vec::new();
        for (index, shape) in shapes.iter().enumerate() {
            let packet = build(shape, &points, index as u16 + 1);
            if let Some(flow) = packet.flow {
                self.conntrack.add(&[flow]);
            }
            self.send(shape, &packet);
            if shape.before == super::shape::Before::Itself {
                self.send(shape, &packet);
            }
            built.push(packet);
        }
        let said = self.rest();
        let after = self.counters()?;
        let said =
            said.into_iter().filter(|testimony| u32::from(LAST) != super::observe::identification(&testimony.bytes));
        let mut outcomes = Outcomes { sent: shapes.len(), ..Outcomes::default() };
        let mut counted = Vec::new();
        let mut arrived = BTreeSet::new();
        for observed in observations(said.collect()) {
            let index = self.index(&observed, shapes, &built);
            if index.is_none() && !observed.leaves() && std::env::var_os("DBG").is_some() {
                println!("ANSWER {} {:?} {:02x?}", self.node.name_of(observed.input), observed.seen, observed.bytes);
            }
            let known = self.known(index.map(|index| &shapes[index]), &observed);
            if let Some(index) = index.filter(|_| !observed.leaves()) {
                arrived.insert(index);
                self.as_sent(&shapes[index], &built[index], &observed).map_err(|words| format!("{words}\n{:#?}", shapes[index]))?;
            }
            let judged = judge(&self.node, &effective, &ruleset, &observed, &known).map_err(|words| match index {
                Some(index) => format!("{words}\n{:#?}", shapes[index]),
                None => format!("an answer: {words}"),
            })?;
            counted.extend(judged.counted.iter().cloned());
            outcomes.judged.push((judged, index));
        }
        for (index, shape) in shapes.iter().enumerate().filter(|(index, _)| !arrived.contains(index)) {
            outcomes.unseen += 1;
            self.never_arrives(shape, &built[index]).map_err(|words| format!("{words}\n{shape:#?}"))?;
        }
        let there = difference(&before, &after);
        let wrong = differences(&sums(counted.into_iter().filter(|comment| !comment.is_empty())), &there);
        if wrong.is_empty() { Ok(outcomes) } else { Err(format!("counters differ: {}", wrong.join("; "))) }
    }

    fn load(&mut self, ruleset: &Ruleset) -> Result<(), String> {
        let known = self.loaded.take();
        let applied = driver::apply(&mut self.kernel, ruleset, known.as_ref());
        let applied = applied.map_err(|error| format!("the kernel does not take it: {error}"))?;
        self.loaded = Some(applied.loaded);
        Ok(())
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
                        let tcp = shape.protocol % 2 == 0;
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
                    testimony.point == Some(Point::Arrived)
                        && super::observe::identification(&testimony.bytes) == u32::from(LAST)
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
    fn index(&self, observed: &Observed, shapes: &[Shape], built: &[Built]) -> Option<usize> {
        let index = (observed.id() as usize).checked_sub(1)?;
        let shape = shapes.get(index)?;
        let ours = match shape.way {
            Way::In { link, .. } => observed.input == self.node.links[link].index,
            // The kernel's answers have no owner, and those of ordinary sockets another source.
            Way::Out { by: By::Raw, .. } => {
                let source = wire::packet(&observed.bytes).ok().map(|headers| headers.source);
                (!observed.leaves() || observed.owner.is_some()) && source == Some(built[index].source)
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
        if built.together == Together::Unsaid {
            return Ok(());
        }
        let mut whole = built.whole.clone();
        if built.together == Together::Whole {
            whole.extend(vec![0xa5; usize::from(shape.frame.trailer)]);
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
        if shape.frame.to == super::shape::Whom::SomebodyElse {
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
        source: 0,
        destination: 0,
        ports: (1, 0),
        icmp: 0,
        protocol: 253,
        hop_limit: 64,
        ecn: 0,
        options: super::shape::Options::None,
        headers: Vec::new(),
        fragments: super::shape::Fragments::No,
        transport: super::shape::Transport { flags: 0, sum: true, cut: None, payload: 8 },
        lie: super::shape::Lie::None,
        frame: super::shape::Frame { to: super::shape::Whom::Node, tags: Vec::new(), trailer: 0 },
        before: super::shape::Before::Nothing,
    };
    let points = Points { v4: vec![0x0a00_0001], v6: Vec::new(), ports: vec![1] };
    let built = build(&shape, &points, LAST);
    frames(&shape, &built, link).remove(0)
}

/// Whether it came to an end of ours: neither lost nor dropped before.
pub fn to_the_end(fate: Fate) -> bool {
    matches!(fate, Fate::Dropped | Fate::Accepted)
}
