//! The thread that reads what goes on, explains it and passes it on. Under a flood it works a part of the time only: what then has no
//! room is lost in the kernel, and counted.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::UnboundedSender;

use super::people::People;
use super::record::LostRecord;
use super::{Shared, Wanted, Watchers, journal};
use crate::compile::logged;
use crate::daemon::Input;
use crate::daemon::clock::micros;
use crate::daemon::metrics::LogMeter;
use crate::driver::Routes;
use crate::flow::{Connections, PacketLog};
use crate::host::owner::Owners;
use crate::metrics::snapshot::Losses;
use crate::net::interface::Direction;
use crate::nft::netlink::conntrack::{ConnectionEvent, Phase};
use crate::nft::netlink::log::LoggedPacket;
use crate::simulate::First;
use crate::simulate::wire;
use crate::text::cause::chain;
use crate::traffic::scene::{Explained, Scene, Seen};
use crate::traffic::tell::Teller;
use crate::traffic::window::Window;
use crate::traffic::{Actor, Event, Kind, Record};

/// How many messages are read from each socket before the other one has its turn.
const AT_ONCE: usize = 256;
/// After a turn that leaves something behind, the thread rests so many times as long as it has worked: a seventh of a core at most.
const REST: u32 = 6;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// A socket that could not be opened is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// How long the loop may take to say what is in force.
const SCENE_TIME: Duration = Duration::from_millis(500);
/// While nothing is in force, it is asked for so often; and as soon as something comes into force.
const SCENE_WAIT: Duration = Duration::from_millis(200);
/// A new scene is made at most so many times as long after the last one as that took: with a large policy it takes a while.
const SCENE_PAUSE: u32 = 20;
/// How many routes are remembered.
const ROUTES: usize = 4096;
/// Told by the kernel's switch whether connection tracking counts.
const ACCOUNTING: &str = "proc/sys/net/netfilter/nf_conntrack_acct";

/// What the thread works with.
pub(super) struct Reader {
    shared: Arc<Shared>,
    watchers: Watchers,
    inbox: UnboundedSender<Input>,
    keeper: SyncSender<Vec<Record>>,
    meter: LogMeter,
    wanted: Option<Wanted>,
    log: Option<PacketLog>,
    /// Losses of packet logs that are closed.
    lost_before: u64,
    connections: Option<Connections>,
    overruns_before: u64,
    retry_at: Option<Instant>,
    scene: Option<Scene>,
    /// The number of the scene.
    seen: Option<u64>,
    scene_again: Instant,
    owners: Option<Owners>,
    people: People,
    routes: Option<Routes>,
    known_routes: BTreeMap<(IpAddr, IpAddr), Option<u32>>,
    window: Window,
    write_at: Option<Instant>,
    teller: Teller,
    lost_told: LostRecord,
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        watchers: Watchers,
        inbox: UnboundedSender<Input>,
        keeper: SyncSender<Vec<Record>>,
        meter: LogMeter,
    ) -> Self {
        Self {
            shared,
            watchers,
            inbox,
            keeper,
            meter,
            wanted: None,
            log: None,
            lost_before: 0,
            connections: None,
            overruns_before: 0,
            retry_at: None,
            scene: None,
            seen: None,
            scene_again: Instant::now(),
            owners: None,
            people: People::default(),
            routes: None,
            known_routes: BTreeMap::new(),
            window: Window::default(),
            write_at: None,
            teller: Teller::default(),
            lost_told: LostRecord::default(),
        }
    }

    /// Until the loop is gone.
    pub(super) fn serve(&mut self) {
        while !self.inbox.is_closed() {
            if self.shared.ending.load(Ordering::Acquire) {
                self.write();
                return;
            }
            self.follow();
            if let Err(error) = self.wait() {
                journal::tell_blind(&format!("cannot wait for what goes on: {error}"));
                thread::sleep(TRY_AGAIN);
                continue;
            }
            let before = worked();
            let more = self.turn();
            self.due();
            if more {
                let spent = worked().saturating_sub(before);
                thread::sleep(spent.saturating_mul(REST).min(LONGEST_REST));
            }
        }
    }

    /// Opens and closes what the settings say.
    fn follow(&mut self) {
        let again = self.retry_at.is_some_and(|at| Instant::now() >= at);
        let wanted = self.shared.wanted();
        if *wanted == self.wanted && !again {
            return;
        }
        let Some(now) = wanted.clone() else { return };
        drop(wanted);
        self.retry_at = None;
        if self.wanted.as_ref().is_some_and(|before| before.group != now.group) {
            self.close_log();
        }
        if self.log.is_none() {
            let opened = PacketLog::open(now.group).map_err(|error| chain(&error));
            self.log = self.opened(opened, "packets are not logged", |numbers| &mut numbers.log_error);
        }
        if !now.flows.connections {
            self.close_connections();
        } else if self.connections.is_none() {
            self.count(&now);
            let opened = Connections::open().map_err(|error| chain(&error));
            self.connections =
                self.opened(opened, "connections are not recorded", |numbers| &mut numbers.connections_error);
        }
        if !now.flows.processes {
            self.owners = None;
        } else if self.owners.is_none() {
            match Owners::open(&now.root) {
                Ok(owners) => self.owners = Some(owners),
                Err(error) => journal::tell_blind(&format!("processes are not recorded: {error}")),
            }
        }
        if self.routes.is_none() {
            self.routes = Routes::open().ok();
        }
        self.wanted = Some(now);
    }

    fn opened<T>(
        &mut self,
        opened: Result<T, String>,
        without: &str,
        place: impl Fn(&mut super::Numbers) -> &mut Option<String>,
    ) -> Option<T> {
        let mut numbers = self.shared.numbers();
        let known = place(&mut numbers);
        match opened {
            Ok(opened) => {
                *known = None;
                Some(opened)
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + TRY_AGAIN);
                if known.as_ref() != Some(&error) {
                    journal::tell_blind(&format!("{without}: {error}"));
                    *known = Some(error);
                }
                None
            }
        }
    }

    /// Has connection tracking count packets and bytes, where that is wanted and it does not.
    fn count(&self, wanted: &Wanted) {
        let path = wanted.root.join(ACCOUNTING);
        let counts = || fs::read_to_string(&path).ok().map(|text| text.trim() != "0");
        let mut now = counts();
        if now == Some(false) && wanted.flows.accounting {
            match fs::write(&path, "1\n") {
                Ok(()) => {
                    now = counts();
                    let path = path.display();
                    tracing::info!("{path} is 1 now, so that connections have packets and bytes ([flows] accounting)");
                }
                Err(error) => {
                    let path = path.display();
                    journal::tell_blind(&format!(
                        "connections have no packets and bytes: cannot write {path}: {error}"
                    ));
                }
            }
        }
        self.shared.numbers().accounting = now;
    }

    fn close_log(&mut self) {
        if let Some(log) = self.log.take() {
            self.lost_before = self.lost_before.saturating_add(log.lost());
        }
    }

    fn close_connections(&mut self) {
        if let Some(connections) = self.connections.take() {
            self.overruns_before = self.overruns_before.saturating_add(connections.overruns());
        }
    }

    /// Until something is there to be read, somebody wakes us, or it is time for something.
    fn wait(&self) -> nix::Result<()> {
        let summary =
            self.teller.summary_at().map(|at| Instant::now() + Duration::from_micros(at.saturating_sub(micros())));
        let scene = self.scene.is_none().then(|| self.scene_again.max(Instant::now() + SCENE_WAIT));
        let next = [self.write_at, self.retry_at, summary, scene].into_iter().flatten().min();
        let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = match wait {
            // A part of a millisecond is one, so that the thread does not spin.
            Some(wait) => PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut sockets = [self.log.as_ref().map(AsFd::as_fd), self.connections.as_ref().map(AsFd::as_fd)];
        if self.scene.is_none() {
            sockets = [None, None];
        }
        let mut ready: Vec<PollFd<'_>> = [Some(self.shared.wake.as_fd())]
            .into_iter()
            .chain(sockets)
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut ready, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        // Nothing to be read is as good.
        let _ = self.shared.wake.read();
        Ok(())
    }

    /// Reads some of each; whether more waits.
    fn turn(&mut self) -> bool {
        if self.scene.is_none() {
            self.look();
            // At the start nothing is in force yet, or not known to be. What comes meanwhile waits in the kernel.
            if self.scene.is_none() {
                return false;
            }
        }
        let (mut packets, mut events) = (Vec::new(), Vec::new());
        let mut more = false;
        if let Some(log) = &mut self.log {
            match log.read(AT_ONCE, &mut packets) {
                Ok(waits) => more |= waits,
                Err(error) => {
                    journal::tell_blind(&format!("the packet log is opened again: {}", chain(&error)));
                    self.close_log();
                    self.retry_at = Some(Instant::now());
                }
            }
        }
        if let Some(connections) = &mut self.connections {
            match connections.read(AT_ONCE, &mut events) {
                Ok(waits) => more |= waits,
                Err(error) => {
                    journal::tell_blind(&format!("events of connections are opened again: {}", chain(&error)));
                    self.close_connections();
                    self.retry_at = Some(Instant::now());
                }
            }
        }
        if packets.is_empty() && events.is_empty() {
            return more;
        }
        self.look();
        // Who has the sockets comes first: many a connection lasts for less than a millisecond.
        let asked: Vec<(&ConnectionEvent, First, Option<Actor>)> =
            events.iter().filter_map(|event| self.asked(event)).collect();
        for (event, first, actor) in asked {
            self.connection(event, &first, actor);
        }
        for packet in &packets {
            self.packet(packet);
        }
        self.tell_losses();
        more
    }

    /// Learns what is in force, where that has changed.
    fn look(&mut self) {
        let newest = self.shared.scene.load(Ordering::Acquire);
        if self.seen == Some(newest) || Instant::now() < self.scene_again {
            return;
        }
        let begun = Instant::now();
        let (reply, answer) = mpsc::channel();
        if self.inbox.send(Input::Scenery(reply)).is_err() {
            return;
        }
        if let Ok(Some((effective, facts, sets))) = answer.recv_timeout(SCENE_TIME) {
            self.scene = Some(Scene::new(effective, &facts, &sets));
            self.seen = Some(newest);
            self.known_routes.clear();
        }
        self.scene_again = Instant::now() + begun.elapsed().saturating_mul(SCENE_PAUSE);
    }

    fn packet(&mut self, packet: &LoggedPacket) {
        let Some(said) = logged(&packet.prefix) else {
            let mut numbers = self.shared.numbers();
            numbers.foreign = numbers.foreign.saturating_add(1);
            return;
        };
        let length = length(&packet.payload);
        let (Ok(headers), Some(scene)) = (wire::beginning(&packet.payload, length), &mut self.scene) else {
            let mut numbers = self.shared.numbers();
            numbers.lost_packets = numbers.lost_packets.saturating_add(1);
            return;
        };
        let seen = Seen {
            time: packet.time_micros.unwrap_or_else(micros),
            hook: packet.hook,
            interfaces: (packet.indev, packet.outdev),
            headers: &headers,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            logged: said,
        };
        let mut event = scene.packet(&seen);
        event.actor = self.actor(&event);
        let mut numbers = self.shared.numbers();
        numbers.packets = numbers.packets.saturating_add(1);
        drop(numbers);
        self.meter.saw([&event]);
        let flows = self.wanted.as_ref().map(|wanted| wanted.flows);
        if flows.is_some_and(|flows| flows.journal) && self.teller.tells(&event) {
            journal::tell(&event);
        }
        self.happened(&event);
    }

    /// A connection of this host, with who has its socket if it begins.
    fn asked<'e>(&mut self, event: &'e ConnectionEvent) -> Option<(&'e ConnectionEvent, First, Option<Actor>)> {
        let first = self.scene.as_ref()?.first(&event.flow)?;
        let (Phase::Began, Some((source, destination)), Some(owners)) = (event.kind, first.ports, &mut self.owners)
        else {
            return Some((event, first, None));
        };
        let (local, remote) = first.ends();
        // What the sender wrote is not where the socket is, with somebody else's address translation in between.
        let (from, to) = match (first.direction, first.translated) {
            (Direction::Ingress, translated) => {
                ((remote, source), (local, translated.map_or(destination, |(_, port)| port)))
            }
            (Direction::Egress, _) => ((local, source), (remote, destination)),
        };
        let ask = &mut |protocol, local, remote| owners.of_flow(protocol, local, remote);
        let actor = self.people.of(first.direction, first.protocol, from, to, micros(), ask);
        Some((event, first, actor))
    }

    fn connection(&mut self, event: &ConnectionEvent, first: &First, actor: Option<Actor>) {
        let Some(scene) = &mut self.scene else { return };
        let (local, remote) = first.ends();
        let route = match self.known_routes.get(&(local, remote)) {
            Some(known) => *known,
            None => {
                let route = self.routes.as_mut().and_then(|routes| routes.interface(local, remote));
                if self.known_routes.len() >= ROUTES {
                    self.known_routes.clear();
                }
                self.known_routes.insert((local, remote), route);
                route
            }
        };
        let explained = scene.explain(first, route);
        match event.kind {
            Phase::Began => {
                let happened = Event { actor, ..began(&explained, micros()) };
                let mut numbers = self.shared.numbers();
                numbers.connections = numbers.connections.saturating_add(1);
                drop(numbers);
                self.happened(&happened);
            }
            Phase::Ended => {
                if let (Some(packets), Some(bytes)) = (event.packets, event.bytes) {
                    self.window.ended(&explained, packets, bytes, event.ended_micros.unwrap_or_else(micros));
                    self.writes_soon();
                }
            }
        }
    }

    /// Who on this host has the socket of a packet.
    fn actor(&mut self, event: &Event) -> Option<Actor> {
        let owners = self.owners.as_mut().filter(|_| event.out.is_none())?;
        let (protocol, (source, destination)) = (event.protocol?, event.ports?);
        let (from, to) = ((event.source, source), (event.destination, destination));
        let ask = &mut |protocol, local, remote| owners.of_flow(protocol, local, remote);
        self.people.of(event.direction, protocol, from, to, event.time, ask)
    }

    fn happened(&mut self, event: &Event) {
        self.watchers.tell(event);
        self.window.add(event);
        self.writes_soon();
    }

    fn writes_soon(&mut self) {
        let window = self.wanted.as_ref().map_or(Duration::ZERO, |wanted| wanted.flows.window);
        self.write_at.get_or_insert_with(|| Instant::now() + window);
    }

    fn tell_losses(&mut self) {
        let lost = self.log.as_ref().map_or(0, PacketLog::lost).saturating_add(self.lost_before);
        let overruns = self.connections.as_ref().map_or(0, Connections::overruns).saturating_add(self.overruns_before);
        let now = LostRecord { packets: lost, connections: overruns };
        if now == self.lost_told {
            return;
        }
        let mut numbers = self.shared.numbers();
        numbers.lost_packets = numbers.lost_packets.saturating_add(lost.saturating_sub(self.lost_told.packets));
        numbers.connection_overruns = overruns;
        let all = LostRecord { packets: numbers.lost_packets, connections: overruns };
        drop(numbers);
        self.lost_told = now;
        self.watchers.tell_lost(all);
    }

    /// What it is time for.
    fn due(&mut self) {
        if self.write_at.is_some_and(|at| Instant::now() >= at) {
            self.write();
        }
        let now = micros();
        if self.teller.summary_at().is_some_and(|at| now >= at) {
            journal::tell_left_out(&self.teller.summary(now));
        }
        let mut numbers = self.shared.numbers();
        numbers.silent = self.teller.silent();
        self.meter.lost(Losses {
            packets: numbers.lost_packets,
            connection_overruns: numbers.connection_overruns,
            journal_suppressed: numbers.silent,
            store_left_out: numbers.left_out,
            watchers_missed: self.watchers.missed(),
        });
    }

    /// Hands what was gathered to the thread that writes.
    fn write(&mut self) {
        self.write_at = None;
        let records = self.window.take();
        let keeps = self.wanted.as_ref().is_some_and(|wanted| wanted.flows.store);
        let number = records.len() as u64;
        if keeps && number > 0 && self.keeper.try_send(records).is_err() {
            let mut numbers = self.shared.numbers();
            numbers.left_out = numbers.left_out.saturating_add(number);
        }
    }
}

/// The event of a connection that has begun.
fn began(explained: &Explained, time: u64) -> Event {
    let Explained { first, interface, names, answer } = explained.clone();
    let (name, role) = interface.unzip();
    Event {
        time,
        kind: Kind::Connection,
        direction: first.direction,
        interface: name,
        role,
        out: None,
        source: first.source,
        destination: first.destination,
        protocol: Some(first.protocol),
        ports: first.ports,
        icmp: first.icmp,
        length: None,
        names,
        verdict: answer.verdict,
        decider: answer.decider,
        tier: answer.tier,
        place: answer.place,
        text: String::new(),
        actor: None,
    }
}

/// The length that the IP header says, in bytes: the log has the beginning of a packet only.
fn length(packet: &[u8]) -> usize {
    let word = |at: usize| match packet.get(at..at + 2) {
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => packet.len(),
    };
    match packet.first().map(|first| first >> 4) {
        Some(4) => word(2),
        Some(6) => word(4).saturating_add(40),
        _ => packet.len(),
    }
}

/// How long this thread has worked.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
