//! The one loop.
//!
//! ```text
//!  signals ───────────┐                       ┌─> Apply ──> kernel thread ──┐
//!  files (inotify) ───┤ load, on a thread ─┐  ├─> Retry ──> timer ──────────┤
//!  links and devices ─┤ collect ───────────┼─> reconcile::step              │
//!  nf_tables changes ─┤                    │  ├─> Repair ─> kernel thread ──┤
//!  control socket ────┘                    │  ├─> SelfTest ──> probes ──────┤
//!                                          │  ├─> Ready, status ──> systemd │
//!                                          │  └─> Report ──> journal        │
//!                                          └────────────────────────────────┘
//! ```

mod alarm;
pub mod clock;
mod clusters;
mod countdown;
mod disk;
pub mod documents;
mod drift;
mod files;
mod host;
pub mod host_state;
mod kernel;
mod local;
mod log;
pub mod metrics;
mod motd;
mod notify;
mod peers;
pub mod rails;
mod reading;
mod report;
mod requests;
mod revoke;
pub mod rules;
mod selftest;
pub mod socket;
pub mod status;
pub mod traffic;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::driver::{self, Kernel, Touch};
use crate::host::cgroup::Scan;
use crate::host::{self as machine, Changed};
use crate::net::facts::Facts;
use crate::net::rail::Rails;
use crate::nft::feature::{Feature, Support};
use crate::nft::netlink::TouchedSets;
use crate::policy::local::LocalNames;
use crate::policy::resolve::node_name;
use crate::policy::settings::NodeSettings;
use crate::reconcile::selftest::Tried;
use crate::reconcile::{Done, Effect, Event, Memory, Phase, Report, State, step};
use crate::source::Trust;
use crate::source::kube::Told;
use crate::source::kube::report::Reported;
use crate::text::finding::{Finding, Severity};
use crate::text::{render, time};
use alarm::Alarm;
use clusters::Clusters;
use countdown::Countdown;
use disk::DiskThread;
pub use disk::{Stored, stored};
use documents::{Documents, Whereabouts};
use drift::Drift;
use files::FileWatch;
use host::Features;
use kernel::{Applied, KernelThread};
use local::{Local, Look, Next};
use log::message_id;
pub use log::start as start_log;
use metrics::Meters;
use motd::Motd;
use notify::Systemd;
use rails::Remembered;
use reading::{Reading, Reread};
use report::Reports;
use requests::{Fetched, Orderer, documents_of};
use socket::{Query, Reloaded};
use status::{Status, TrafficRecord};
use traffic::Traffic;

/// What the daemon is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the documents are.
    pub whereabouts: Whereabouts,
    /// Where /sys and /proc are.
    pub root: PathBuf,
}

/// Why the daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not be read at the start.
    #[error(transparent)]
    Kernel(#[from] driver::Error),
    /// Another daemon is running.
    #[error("{0}")]
    InUse(String),
    /// Something that the loop cannot do without.
    #[error("cannot {attempt}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A new link comes with several messages in a row.
const LINKS_SETTLE: Duration = Duration::from_millis(5);
/// rtnetlink did not answer; it is asked again after this time.
const COLLECT_AGAIN: Duration = Duration::from_secs(1);
/// How many queries of control sockets wait for the loop.
const QUERIES_WAITING: usize = 16;

/// Runs until SIGTERM or SIGINT, and leaves the rules in place then.
///
/// # Errors
/// When the daemon cannot start: the kernel cannot be read, another daemon is running, or the system refuses a signal
/// handler, a thread or a netlink socket.
pub async fn run(options: Options, mut kernel: Box<dyn Kernel>) -> Result<(), Error> {
    log::start();
    let failed = |attempt| move |source| Error::System { attempt, source };
    let mut hangup = signal(SignalKind::hangup()).map_err(failed("handle SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("handle SIGINT"))?;
    let mut links = machine::Watch::open(&options.root).map_err(failed("watch links by rtnetlink"))?;
    let mut files = FileWatch::open().map_err(failed("watch files by inotify"))?;
    let mut foreign =
        driver::Watch::open(kernel.port()).map_err(failed("watch changes by others by nf_tables notifications"))?;
    kernel.hush(foreign.ear());
    let (kernel, mut otherwise) =
        KernelThread::start(kernel).map_err(failed("start the thread that talks to the kernel"))?;
    let systemd = Systemd::find().map_err(failed("start the thread that talks to systemd"))?;
    let (inbox, mut inputs) = mpsc::unbounded_channel();
    let (queries, mut queried) = mpsc::channel(QUERIES_WAITING);
    let mut watchdog = notify::watchdog_interval().map(|every| {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    });
    let table = match kernel.exists().await {
        Ok(table) => table,
        Err(kernel::Error::Driver(error)) => return Err(error.into()),
        Err(error @ kernel::Error::Gone) => return Err(failed("read the kernel")(io::Error::other(error))),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), table, "starting");
    let (meters, mut measured) = Meters::start(kernel.clone());
    let mut daemon = Daemon::new(options, kernel, meters, systemd, inbox);
    match Traffic::start(daemon.inbox.clone(), daemon.meters.log.clone()) {
        Ok(traffic) => daemon.traffic = Some(traffic),
        // Rules hold without anybody looking.
        Err(error) => tracing::error!("cannot start the threads that see what goes on: {error}"),
    }
    daemon.happened(Event::KernelSeen { table });
    daemon.collect();
    daemon.load();
    loop {
        tokio::select! {
            // In this order: what ends or feeds the loop goes before what keeps it busy.
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = tick(watchdog.as_mut()) => daemon.systemd.alive(),
            _ = hangup.recv() => daemon.reload(),
            Some(input) = inputs.recv() => match daemon.received(input) {
                Received::Nothing => {}
                Received::Documents => {
                    let since = daemon.reading.read_at.unwrap_or(SystemTime::UNIX_EPOCH);
                    if files.set(&daemon.watched_directories, &daemon.watched_files, since) {
                        daemon.reading.all_changed();
                    }
                    daemon.listen(&queries)?;
                }
            },
            Some(query) = queried.recv() => daemon.asked(query),
            Some(ask) = measured.recv() => daemon.measured(ask),
            changed = links.changed() => {
                daemon.asks_devices |= changed.map_err(failed("watch links by rtnetlink"))? == Changed::Devices;
                daemon.collect_at.get_or_insert(Instant::now() + LINKS_SETTLE);
            }
            touched = foreign.touched() => {
                daemon.touched(touched.map_err(failed("watch changes by others by nf_tables notifications"))?);
            }
            Some(set) = otherwise.recv() => {
                if daemon.drift.noticed(None, TouchedSets::These([set].into())) {
                    daemon.repair();
                }
            }
            () = until(daemon.drift.repair_at) => daemon.repair(),
            () = sleep_until(daemon.drift.look_at) => daemon.look_unasked(),
            changed = files.changed() => daemon.files_changed(changed),
            () = local::changed(&mut daemon.local.watch) => daemon.units_changed(),
            () = until(daemon.collect_at) => daemon.collect(),
            () = until(daemon.local.scan_at) => daemon.scan(),
            () = until(daemon.local.ask_at) => {
                daemon.local.ask_at = None;
                daemon.look_up(Next::Facts);
            }
            () = until(daemon.reading.load_at) => daemon.load(),
            () = until(daemon.deadline_at) => {
                daemon.deadline_at = None;
                daemon.happened(Event::DeadlineDue);
            }
            () = until(daemon.countdown.next()) => daemon.count_down(),
            () = until(daemon.break_glass_at) => {
                daemon.break_glass_at = None;
                daemon.happened(Event::BreakGlassDue);
            }
            () = daemon.alarm.rings() => daemon.read_clock(),
            () = until(daemon.remind_at) => {
                tracing::warn!(message_id = message_id::EMERGENCY, "{}", daemon.state.status_line());
                daemon.remind();
            }
            () = until(daemon.reports.at) => daemon.report(),
            () = until(daemon.meters.tick_at) => daemon.meters.tick(),
            () = until(daemon.retry_at) => {
                daemon.retry_at = None;
                daemon.happened(Event::RetryDue);
            }
        }
    }
    tracing::info!("stopping; the rules stay in force");
    daemon.stop_listening();
    daemon.systemd.stopping();
    if let Some(traffic) = daemon.traffic.take() {
        traffic.end();
    }
    Ok(())
}

async fn tick(watchdog: Option<&mut tokio::time::Interval>) {
    match watchdog {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => future::pending().await,
    }
}

/// What work off the loop came to.
enum Input {
    Loaded(Box<Documents>),
    /// One file was looked at.
    Reread(Box<Reread>),
    Collected(Result<Box<Facts>, machine::Error>),
    Applied(Result<Applied, kernel::Error>),
    Repaired(Result<Applied, kernel::Error>),
    /// Whether our table is in the kernel.
    Seen(bool),
    /// Whoever wanted the status has it.
    StatusTold,
    /// What is on disk, and the documents that waited for it.
    Remembered(Box<(Memory, Vec<String>, Documents, Rails, clusters::Kept)>),
    /// Whether the numbers of rails are on disk.
    RailsKept(Result<(), String>),
    Kept(u64, Result<(), String>),
    SelfTested(u64, Vec<Tried>),
    /// What an order of somebody needs.
    Fetched(u64, String, Fetched),
    /// What was looked up of accounts and units.
    Looked(Box<Look>),
    /// Where units run, and which were looked for.
    Scanned(LocalNames, Scan),
    /// What the kernel said that it has.
    Features(Result<BTreeMap<Feature, Support>, driver::Error>),
    /// What became of a cluster, by its name and which start of its thread tells.
    Cluster(String, u64, Box<Told>),
    /// Who the nodes of a cluster are is to be written.
    KeepNodes(String),
    /// What became of the state of this node in a cluster, by the same.
    Reported(String, u64, Reported),
    /// Somebody has to explain what goes on.
    Scenery(std::sync::mpsc::Sender<Option<traffic::Scenery>>),
}

/// What the loop has to do after an input.
enum Received {
    Nothing,
    /// Other directories may have to be watched.
    Documents,
}

/// Work of which one piece at a time is under way; a wish that comes meanwhile is one more piece afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Work {
    #[default]
    Idle,
    Busy,
    BusyAndWanted,
}

impl Work {
    /// Whether to begin now.
    fn begin(&mut self) -> bool {
        let begin = *self == Self::Idle;
        *self = if begin { Self::Busy } else { Self::BusyAndWanted };
        begin
    }

    /// Whether to begin again.
    fn end(&mut self) -> bool {
        let again = *self == Self::BusyAndWanted;
        *self = Self::Idle;
        again
    }
}

/// Whether systemd waits for the end of a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reload {
    No,
    Loading,
    Settling,
}

/// What the store will have answered.
type Answer = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Tells the loop the answers in the order of their tickets: tasks of their own end in any order, and to the state machine the last
/// answer is the newest.
fn in_order(inbox: mpsc::UnboundedSender<Input>) -> mpsc::UnboundedSender<(u64, Answer)> {
    let (keeping, mut waiting) = mpsc::unbounded_channel::<(u64, Answer)>();
    tokio::spawn(async move {
        while let Some((ticket, answer)) = waiting.recv().await {
            let _ = inbox.send(Input::Kept(ticket, answer.await));
        }
    });
    keeping
}

/// The state of the loop.
struct Daemon {
    options: Options,
    kernel: KernelThread,
    meters: Meters,
    systemd: Systemd,
    inbox: mpsc::UnboundedSender<Input>,
    state: State,
    /// The facts as collected, and what the documents add to them.
    facts: Option<Facts>,
    /// Whether what is known of devices is out of date.
    asks_devices: bool,
    api_servers: BTreeSet<(IpAddr, u16)>,
    local: Local,
    clusters: Clusters,
    reports: Reports,
    /// The settings of the node, from the newest nodewall.toml without an error.
    node_settings: Option<NodeSettings>,
    watched_directories: Vec<PathBuf>,
    watched_files: Vec<PathBuf>,
    loading: Work,
    collecting: Work,
    telling: Work,
    /// Who wants to know the status.
    curious: Vec<oneshot::Sender<Status>>,
    reading: Reading,
    collect_at: Option<Instant>,
    retry_at: Option<Instant>,
    ready: bool,
    reload: Reload,
    /// Who waits for its end.
    reloaders: Vec<oneshot::Sender<Reloaded>>,
    status_line: String,
    since: Option<SystemTime>,
    socket: Option<PathBuf>,
    listening: bool,
    drift: Drift,
    features: Features,
    /// What the store was given, in the order in which its answers are told.
    keeping: mpsc::UnboundedSender<(u64, Answer)>,
    /// The store, once the settings say where.
    disk: Option<DiskThread>,
    /// Whether what is on disk and the documents are known.
    started: bool,
    /// The numbers of rails.
    remembered: Remembered,
    /// Who waits for the outcome of an order.
    orderer: Option<Orderer>,
    /// How many orders there were.
    orders: u64,
    /// What was found damaged on disk at the start, and passed over.
    damages: Vec<String>,
    deadline_at: Option<Instant>,
    countdown: Countdown,
    /// The probes that are under way.
    selftest: Option<JoinHandle<()>>,
    motd: Motd,
    break_glass_at: Option<Instant>,
    remind_at: Option<Instant>,
    /// Rings when a policy is over.
    alarm: Alarm,
    /// What reads the packet log and connection tracking; `None` where the system refused it.
    traffic: Option<Traffic>,
}

impl Daemon {
    fn new(
        options: Options,
        kernel: KernelThread,
        meters: Meters,
        systemd: Systemd,
        inbox: mpsc::UnboundedSender<Input>,
    ) -> Self {
        Self {
            keeping: in_order(inbox.clone()),
            options,
            kernel,
            meters,
            systemd,
            inbox,
            state: State::default(),
            facts: None,
            asks_devices: false,
            api_servers: BTreeSet::new(),
            local: Local::default(),
            clusters: Clusters::default(),
            reports: Reports::default(),
            node_settings: None,
            watched_directories: Vec::new(),
            watched_files: Vec::new(),
            loading: Work::Idle,
            collecting: Work::Idle,
            telling: Work::Idle,
            curious: Vec::new(),
            reading: Reading::default(),
            collect_at: None,
            retry_at: None,
            ready: false,
            reload: Reload::No,
            reloaders: Vec::new(),
            status_line: String::new(),
            since: None,
            socket: None,
            listening: false,
            drift: Drift::new(seed()),
            features: Features::default(),
            disk: None,
            started: false,
            remembered: Remembered::default(),
            orderer: None,
            orders: 0,
            damages: Vec::new(),
            deadline_at: None,
            countdown: Countdown::default(),
            selftest: None,
            motd: Motd::default(),
            break_glass_at: None,
            remind_at: None,
            alarm: Alarm::default(),
            traffic: None,
        }
    }

    /// Lets the state machine know, and does what it asks for.
    fn happened(&mut self, event: Event) {
        self.step(Event::Clock(clock::now()));
        self.step(event);
        self.remember_rails();
        self.tell_status();
        self.reports.may_differ();
    }

    /// A policy may be over, or somebody set the clock.
    fn read_clock(&mut self) {
        self.step(Event::Clock(clock::now()));
        self.tell_status();
        self.reports.may_differ();
    }

    fn step(&mut self, event: Event) {
        for effect in step(&mut self.state, event) {
            match effect {
                Effect::Apply(ruleset) => {
                    let (kernel, inbox) = (self.kernel.clone(), self.inbox.clone());
                    let revocation = self.state.revocation();
                    tokio::spawn(async move {
                        // The loop is gone only when the process ends.
                        let _ = inbox.send(Input::Applied(kernel.apply(ruleset, revocation).await));
                    });
                }
                Effect::Repair(ruleset) => {
                    let (kernel, inbox) = (self.kernel.clone(), self.inbox.clone());
                    let (depth, revocation) = (self.drift.begin(), self.state.revocation());
                    tokio::spawn(async move {
                        let _ = inbox.send(Input::Repaired(kernel.repair(ruleset, depth, revocation).await));
                    });
                }
                Effect::ChangeMembers { ruleset, sets } => {
                    let (kernel, inbox) = (self.kernel.clone(), self.inbox.clone());
                    let revocation = self.state.revocation();
                    tokio::spawn(async move {
                        let _ = inbox.send(Input::Applied(kernel.change_members(ruleset, sets, revocation).await));
                    });
                }
                Effect::Reload => self.reading.all_changed(),
                Effect::Look => {
                    let (kernel, inbox) = (self.kernel.clone(), self.inbox.clone());
                    tokio::spawn(async move {
                        match kernel.exists().await {
                            Ok(table) => {
                                let _ = inbox.send(Input::Seen(table));
                            }
                            // It is looked at again, unasked.
                            Err(error) => tracing::error!("cannot read the kernel: {error}"),
                        }
                    });
                }
                Effect::Retry(after) => self.retry_at = Some(Instant::now() + after),
                Effect::ForgetRetry => self.retry_at = None,
                Effect::Keep(ticket, what) => {
                    let answer: Answer = match self.disk.as_ref().map(|disk| disk.keep(what)) {
                        Some(keeping) => Box::pin(keeping),
                        None => Box::pin(future::ready(Err("there is no store".to_owned()))),
                    };
                    // The task is gone only when the process ends.
                    let _ = self.keeping.send((ticket, answer));
                }
                Effect::Deadline(after) => {
                    let now = Instant::now();
                    self.deadline_at = after.map(|after| now + after);
                    self.countdown = after.map(|after| Countdown::new(now, after)).unwrap_or_default();
                }
                Effect::SelfTest { ticket, probes, after } => {
                    let inbox = self.inbox.clone();
                    let task = tokio::spawn(async move {
                        tokio::time::sleep(after).await;
                        let results = selftest::run(probes).await;
                        let _ = inbox.send(Input::SelfTested(ticket, results));
                    });
                    if let Some(earlier) = self.selftest.replace(task) {
                        earlier.abort();
                    }
                }
                Effect::BreakGlass(after) => {
                    self.break_glass_at = after.map(|after| Instant::now() + after);
                    self.remind_at = after.map(|_| Instant::now());
                }
                Effect::Expiry(at) => self.alarm.set(at),
                Effect::Answer(answer) => self.answered(answer),
                Effect::Ready => self.settled(),
                Effect::Report(report) => log_report(&report),
            }
        }
        self.tell_status();
        if self.started {
            self.motd.say(motd::text(&self.state));
        }
    }

    /// Tells the journal again how long a generation has.
    fn count_down(&mut self) {
        self.countdown.told();
        let (Some(pending), Some(deadline)) = (&self.state.record().pending, self.deadline_at) else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        log_unconfirmed(pending.generation, left, pending.before.is_some());
    }

    fn settled(&mut self) {
        self.reading.ends();
        if !self.ready || self.reload == Reload::Settling {
            self.ready = true;
            self.reload = Reload::No;
            self.status_line = self.state.status_line();
            self.systemd.ready(&self.status_line);
            let came_to = if self.state.phase() == Phase::Degraded { Err } else { Ok };
            for reply in self.reloaders.drain(..) {
                // The peer may have gone.
                let _ = reply.send(came_to(self.status_line.clone()));
            }
        }
    }

    fn tell_status(&mut self) {
        let line = self.state.status_line();
        if line != self.status_line {
            self.systemd.status(&line);
            self.status_line = line;
        }
    }

    fn reload(&mut self) {
        tracing::info!("reloading");
        self.asks_devices = true;
        self.systemd.reloading();
        self.reload = Reload::Loading;
        self.load();
        self.collect();
    }

    /// Reads the documents, off the loop: they may be large, or on a file system that hangs.
    fn load(&mut self) {
        self.reading.load_at = None;
        if !self.loading.begin() {
            return;
        }
        self.reading.begins();
        let (whereabouts, inbox, before) = (self.options.whereabouts.clone(), self.inbox.clone(), self.reading.files());
        let holdings = self.clusters.for_a_load();
        tokio::task::spawn_blocking(move || {
            let documents = documents::load_after(&whereabouts, Trust::Required, Some(&before), &holdings);
            let _ = inbox.send(Input::Loaded(Box::new(documents)));
        });
    }

    fn collect(&mut self) {
        self.collect_at = None;
        if !self.collecting.begin() {
            return;
        }
        let (root, inbox) = (self.options.root.clone(), self.inbox.clone());
        let known = self.facts.clone().filter(|_| !std::mem::take(&mut self.asks_devices));
        tokio::spawn(async move {
            let _ = inbox.send(Input::Collected(machine::collect_again(&root, known).await.map(Box::new)));
        });
    }

    fn received(&mut self, input: Input) -> Received {
        match input {
            Input::Loaded(documents) if !self.started => {
                self.remember(*documents);
            }
            Input::Reread(reread) => self.reread_one(*reread),
            Input::Loaded(documents) => return self.look_up(Next::Documents(documents)),
            Input::Collected(collected) => {
                let again = self.collecting.end();
                match collected {
                    Ok(facts) => {
                        self.facts = Some(*facts);
                        self.tell_facts();
                        self.follow_clusters();
                        if self.clusters.was_postponed() {
                            self.load();
                        }
                    }
                    Err(error) => {
                        tracing::error!("{error}: {}", source_of(&error));
                        self.asks_devices = true;
                        self.collect_at = Some(Instant::now() + COLLECT_AGAIN);
                    }
                }
                if again {
                    self.collect();
                }
            }
            Input::Applied(answer) => {
                self.meters.applied(&answer);
                if let Ok(applied) = &answer {
                    self.drift.mended_by_the_way(applied);
                }
                self.applied(answer);
            }
            Input::Repaired(answer) => {
                self.drift.repaired(&answer);
                self.applied(answer);
            }
            Input::StatusTold => {
                self.telling.end();
                self.look_for_the_curious();
            }
            Input::Seen(table) => self.happened(Event::KernelSeen { table }),
            Input::Remembered(remembered) => {
                let (memory, troubles, documents, rails, clusters) = *remembered;
                self.remembered = Remembered::of(rails);
                for trouble in &troubles {
                    tracing::error!(message_id = message_id::NOT_KEPT, "passed over on disk: {trouble}");
                }
                self.damages = troubles;
                self.happened(Event::Remembered(Box::new(memory)));
                self.started = true;
                self.clusters.remember(clusters);
                if !documents.config.clusters.is_empty() {
                    // They were loaded without what clusters said.
                    self.loading.end();
                    self.load();
                    return Received::Nothing;
                }
                return self.look_up(Next::Documents(Box::new(documents)));
            }
            Input::Cluster(name, number, told) => {
                self.cluster_told(&name, number, *told);
                self.reports.may_differ();
            }
            Input::KeepNodes(name) => self.keep_nodes(&name),
            Input::Reported(name, number, answer) => self.reported(&name, number, answer),
            Input::RailsKept(kept) => self.rails_kept(kept),
            Input::Kept(ticket, answer) => self.happened(Event::Kept(ticket, answer)),
            Input::SelfTested(ticket, results) => {
                self.happened(Event::SelfTested { ticket, results, now: disk::now() });
            }
            Input::Fetched(order, by, fetched) => return self.look_up(Next::Order(order, by, fetched)),
            Input::Looked(look) => return self.looked(*look),
            Input::Scanned(looked, scan) => self.scanned(&looked, scan),
            Input::Scenery(reply) => {
                // Whoever asked may have given up waiting.
                let _ = reply.send(self.scenery());
            }
            Input::Features(found) => self.told_features(found),
        }
        Received::Nothing
    }

    /// Reads what is on disk. The documents wait for it: they may be what somebody went back from.
    fn remember(&mut self, documents: Documents) {
        let disk = match DiskThread::start(documents.config.state_directory.clone()) {
            Ok(disk) => disk,
            Err(error) => {
                tracing::error!("cannot start the thread of the store: {error}");
                self.started = true;
                let _ = self.inbox.send(Input::Loaded(Box::new(documents)));
                return;
            }
        };
        self.disk = Some(disk.clone());
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let wanted = documents.config.clusters.clone();
            let ((memory, mut troubles), rails, clusters) =
                tokio::join!(disk.remember(), disk.rails(), disk.clusters(wanted));
            let mut clusters = clusters.unwrap_or_else(|trouble| {
                troubles.push(trouble);
                clusters::Kept::default()
            });
            troubles.append(&mut clusters.troubles);
            let rails = rails.unwrap_or_else(|trouble| {
                troubles.push(trouble);
                Rails::new()
            });
            let _ = inbox.send(Input::Remembered(Box::new((memory, troubles, documents, rails, clusters))));
        });
    }

    fn loaded(&mut self, mut documents: Documents) {
        let attempt = self.clusters.under_way();
        self.reading.loaded(&mut documents);
        if self.loading.end() {
            // What was loaded is out of date already.
            self.load();
        } else if self.reload == Reload::Loading {
            self.reload = Reload::Settling;
        }
        self.watched_directories.clone_from(&documents.looked_at);
        self.watched_files.clone_from(&documents.files);
        self.watched_files.push(self.options.whereabouts.config.clone());
        // It comes when the host joins its cluster, and the failsafe of the cluster API with it.
        self.watched_files.extend(documents.config.kubeconfig.clone());
        self.watched_files.extend(documents.config.clusters.iter().map(|cluster| cluster.kubeconfig.clone()));
        self.watched_files.extend(self.local.files(&self.options.root));
        self.socket.get_or_insert_with(|| documents.config.socket.clone());
        self.meters.configure(&documents.config.metrics, &self.options);
        // A broken nodewall.toml says nothing about the kubeconfig.
        if self.has_good_settings(&documents) || self.api_servers.is_empty() {
            self.api_servers.clone_from(&documents.api_servers);
            self.tell_facts();
        }
        // Nor about where people are told things.
        if documents::errors(&documents.findings) == 0 || documents.config.motd.is_some() {
            self.motd.at(documents.config.motd.clone());
        }
        if self.has_good_settings(&documents) {
            self.follow_traffic(&documents.config);
        }
        self.wants_clusters(&documents);
        if self.goes_together(&mut documents, attempt) {
            self.happened(Event::DocumentsLoaded(documents_of(documents, None)));
        }
    }

    fn tell_facts(&mut self) {
        if let Some(facts) = self.known_facts() {
            self.happened(Event::FactsChanged(facts));
            if let Some(traffic) = &self.traffic {
                traffic.scene_changed();
            }
        }
    }

    /// The facts as the state machine gets them.
    fn known_facts(&self) -> Option<Facts> {
        // Without what policies name, a rule that denies would deny nothing.
        let mut facts = self.facts.clone().filter(|_| self.local.is_known())?;
        self.local.add_to(&mut facts);
        facts.api_servers.clone_from(&self.api_servers);
        facts.rails.clone_from(&self.remembered.rails);
        if let Some(settings) = &self.node_settings {
            let name = node_name(settings, &facts).to_owned();
            self.clusters.add_nodes(&mut facts, &name);
        }
        Some(facts)
    }

    fn applied(&mut self, answer: Result<Applied, kernel::Error>) {
        let before = self.state.generation();
        let answer = answer.map_err(|error| error.to_string()).map(|applied| Done { changes: applied.changes });
        self.happened(Event::Applied(answer));
        if let Some(traffic) = &self.traffic {
            traffic.scene_changed();
        }
        // After the first rules: asking takes the kernel's lock for a moment.
        self.ask_features();
        if self.state.generation() != before {
            self.since = Some(SystemTime::now());
        }
    }
}

impl Daemon {
    /// Somebody else may have changed our table.
    fn touched(&mut self, touch: Touch) {
        if self.drift.touched(touch) {
            self.repair();
        }
    }

    fn repair(&mut self) {
        self.drift.repair_at = None;
        self.happened(Event::Drifted);
        if self.state.last_sent().is_none() {
            self.drift.forget();
        }
    }

    /// The second line behind the notifications.
    fn look_unasked(&mut self) {
        self.drift.looking();
        self.write_rails_again();
        self.happened(Event::Drifted);
    }

    /// Starts the control socket, once the settings say where. The daemon does its work without one, too.
    fn listen(&mut self, queries: &mpsc::Sender<Query>) -> Result<(), Error> {
        let Some(path) = self.socket.clone().filter(|_| !self.listening) else { return Ok(()) };
        self.listening = true;
        match socket::bind(&path) {
            Ok(listener) => {
                tokio::spawn(socket::serve(listener, queries.clone()));
                Ok(())
            }
            Err(error @ socket::Error::InUse(_)) => Err(Error::InUse(error.to_string())),
            Err(error) => {
                tracing::error!("{error}; `nodewall status` will not find this daemon");
                self.socket = None;
                Ok(())
            }
        }
    }

    fn stop_listening(&self) {
        self.meters.stop();
        if let Some(path) = &self.socket {
            // A leftover socket is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
    }

    fn asked(&mut self, query: Query) {
        match query {
            Query::Reload(reply) => {
                self.reloaders.push(reply);
                self.reload();
            }
            Query::Order(order) => self.ordered(order),
            Query::Watch(reply) => {
                let lines = self.traffic.as_ref().and_then(|traffic| traffic.watchers().enter());
                // The peer may have gone.
                let _ = reply.send(lines);
            }
            Query::Status(reply) => {
                self.curious.push(reply);
                self.look_for_the_curious();
            }
        }
    }

    /// Looks at the kernel for all who want to know. Who comes meanwhile waits for the next look, so that however many ask, an order
    /// waits for one look at most.
    fn look_for_the_curious(&mut self) {
        if self.curious.is_empty() || !self.telling.begin() {
            return;
        }
        let curious = std::mem::take(&mut self.curious);
        let mut status = Status::of(&self.state);
        status.store_damages.clone_from(&self.damages);
        status.metrics_error = self.meters.trouble();
        self.drift.add_to(&mut status);
        self.clusters.add_to(&mut status);
        self.reports.add_to(&mut status);
        status.traffic = self.traffic.as_ref().map(|traffic| TrafficRecord::of(&traffic.numbers()));
        status.since = self.since.map(clock::rfc3339);
        // The kernel's thread takes requests in order: it looks after whatever is on its way.
        let (kernel, wanted) = (self.kernel.clone(), self.state.last_sent().cloned());
        let in_force = self.state.in_force().cloned();
        let inbox = self.inbox.clone();
        if let Features::Known(missing) = &self.features {
            status.kernel_lacks = Some(missing.clone());
        }
        let (root, facts) = (self.options.root.clone(), self.facts.clone());
        tokio::spawn(async move {
            match kernel.look(wanted.clone(), in_force).await {
                Ok(look) => {
                    status.hash = look.hash;
                    status.in_sync = wanted.map(|_| look.drift.is_empty());
                    status.drift = look.drift;
                    status.add_counters(&look.counters);
                    status.rules = look.rules;
                    status.table = Some(look.table);
                    status.revocation = kernel.revocation();
                }
                Err(error) => status.drift = vec![error.to_string()],
            }
            host::look_around(&mut status, root, facts).await;
            for reply in curious {
                // The peer may have gone.
                let _ = reply.send(status.clone());
            }
            let _ = inbox.send(Input::StatusTold);
        });
    }
}

/// Something that is another number on every node and at every start.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    u64::try_from(now & u128::from(u64::MAX)).unwrap_or(0) ^ u64::from(std::process::id()).rotate_left(32)
}

fn source_of(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

fn log_findings(findings: &[Finding]) {
    for finding in render::sorted(findings) {
        let (file, line) = (&*finding.place.file, finding.place.line);
        match finding.severity {
            Severity::Error => tracing::error!(file, line, code = finding.code.name(), "{}", render::line(finding)),
            Severity::Warning => tracing::warn!(file, line, code = finding.code.name(), "{}", render::line(finding)),
        }
    }
}

fn log_unconfirmed(generation: u64, left: Duration, selftest: bool) {
    let (message_id, left) = (message_id::TRIAL, left.as_secs_f64().round());
    let unless = if selftest { "its self-test passes" } else { "`nodewall confirm` is run" };
    tracing::warn!(message_id, generation, "unconfirmed: it goes in {left} s unless {unless}");
}

fn log_report(report: &Report) {
    match report {
        Report::InForce { generation, rules, changes, lockdown: false } => {
            let message_id = message_id::IN_FORCE;
            tracing::info!(
                message_id,
                generation,
                rules,
                changes,
                "policy in force: generation {generation}, {rules} rules ({changes} changes)"
            );
        }
        Report::InForce { generation, rules, changes, lockdown: true } => {
            let message_id = message_id::IN_FORCE;
            tracing::warn!(message_id, generation, rules, changes, "built-in lockdown in force");
        }
        Report::Members { generation, changes } => {
            tracing::debug!(generation, changes, "members of sets changed");
        }
        Report::Unconfirmed { generation, left, selftest } => log_unconfirmed(*generation, *left, *selftest),
        Report::Held { until } => {
            tracing::info!(message_id = message_id::TRIAL, "a change waits for its self-test until {until}");
        }
        Report::SelfTest { generation, failing } => {
            let message_id = message_id::TRIAL;
            tracing::warn!(message_id, generation, "the self-test fails and goes on: {failing}");
        }
        Report::Confirmed { generation, by } => {
            tracing::info!(message_id = message_id::TRIAL, generation, "confirmed by {by}");
        }
        Report::RolledBack { to, why } => {
            tracing::warn!(message_id = message_id::ROLLED_BACK, generation = to, "rolling back: {why}");
        }
        Report::Emergency { words, on: true } => {
            tracing::warn!(message_id = message_id::EMERGENCY, "{words}");
        }
        Report::Emergency { words, on: false } => {
            tracing::warn!(message_id = message_id::EMERGENCY, "over: {words}");
        }
        Report::Expired { policy, at } => {
            let (message_id, at) = (message_id::EXPIRED, time::rfc3339(*at));
            tracing::info!(message_id, policy = policy.as_str(), "policy \"{policy}\" expired at {at}");
        }
        Report::NotKept { error } => {
            let message_id = message_id::NOT_KEPT;
            tracing::error!(
                message_id,
                "not on disk: {error}; what is in force stays in force, and a boot has an older policy"
            );
        }
        Report::Refused { findings, instead } => {
            log_findings(findings);
            let message_id = message_id::REFUSED;
            let errors = documents::errors(findings);
            tracing::error!(message_id, errors, "the newest policy has errors and is refused; {}", instead.words());
        }
        Report::Warned { findings } => log_findings(findings),
        Report::Failed { error, attempt, again } => {
            let message_id = message_id::FAILED;
            // The first ones, and then ever fewer: the same line every five seconds helps nobody.
            if attempt.is_power_of_two() {
                let again = again.as_secs_f32();
                tracing::error!(message_id, attempt, "cannot apply the policy: {error}; next attempt in {again} s");
            }
        }
        Report::Interface { name, role, why } => {
            tracing::info!(iface = name.as_str(), role = role.name(), "interface {name} is {role}: {why}");
        }
        Report::InterfaceGone { name } => tracing::info!(iface = name.as_str(), "interface {name} is gone"),
    }
}
