//! The thread of one cluster: it lists, watches and lists again, as its mirror says, and tells what came of it.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use kube::core::WatchEvent;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::client::{Client, Credentials};
use super::item::Item;
use super::mirror::{Failure, Mirror, Noticed, Plan};
use super::resource::Resource;
use super::wait::until;
use super::{Access, Health, Holding, Me};
use crate::net::node::ClusterNodes;
use crate::net::splitmix::Dice;
use crate::policy::clusters::Cluster;
use crate::source::object::Kind;

/// How long things take at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// How long the server is to watch the first of the kinds, in seconds. As it ends the watch by itself then, silence for much longer
    /// means that nothing comes through any more, on whatever watch.
    pub short_watch: u32,
    /// How long it is to watch the others, in seconds.
    pub long_watch: u32,
    /// How much later than that a watch may end.
    pub grace: Duration,
    /// How long an answer may take.
    pub answer: Duration,
    /// How long events are collected before they are told.
    pub settle: Duration,
    /// The same of events about nodes, of which there are many and each matters little.
    pub settle_nodes: Duration,
    /// How often the files of the credentials are looked at.
    pub credentials: Duration,
}

impl Pace {
    /// As shipped: a way that is cut is noticed within 40 s, for a request every 30 s.
    pub const SHIPPED: Self = Self {
        short_watch: 30,
        long_watch: 270,
        grace: Duration::from_secs(10),
        answer: Duration::from_secs(15),
        settle: Duration::from_millis(20),
        settle_nodes: Duration::from_secs(1),
        credentials: Duration::from_secs(5),
    };
}

/// What became of a cluster.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it says, if that is something else than before.
    pub holding: Option<Arc<Holding>>,
    /// Who its nodes are, if they are others than before.
    pub nodes: Option<Arc<ClusterNodes>>,
    /// How it is.
    pub health: Health,
}

/// A cluster that is followed until this is dropped.
#[derive(Debug)]
pub struct Source {
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Source {
    /// Follows a cluster from a thread of its own, from what it said before, of its nodes as well. `seed` spreads the requests of nodes
    /// in time. `tell` must not wait.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(
        cluster: Cluster,
        me: Me,
        before: (&Holding, &ClusterNodes),
        pace: Pace,
        seed: u64,
        tell: impl Fn(Told) + Send + 'static,
    ) -> io::Result<Self> {
        let access = Access::Kubeconfig(cluster.kubeconfig.clone());
        Self::run(access, Mirror::new(cluster, me, before), pace, seed, tell)
    }

    /// Follows who the nodes of a cluster are by their Nodes and HostStates, also where there are digests of these.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn of_nodes(access: Access, pace: Pace, seed: u64, tell: impl Fn(Told) + Send + 'static) -> io::Result<Self> {
        Self::run(access, Mirror::of_nodes(), pace, seed, tell)
    }

    fn run(
        access: Access,
        mirror: Mirror,
        pace: Pace,
        seed: u64,
        tell: impl Fn(Told) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let follower = Follower { access, mirror, pace, dice: Dice::new(seed), told: None, tell: Box::new(tell) };
        thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = follower.follow() => {}
                }
            });
            // A name server that does not answer is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { _end: end })
    }
}

struct Follower {
    access: Access,
    mirror: Mirror,
    pace: Pace,
    /// Other numbers on every node.
    dice: Dice,
    told: Option<Health>,
    tell: Box<dyn Fn(Told) + Send>,
}

/// What a watch says.
enum Said {
    Event(WatchEvent<Item>),
    /// It ended when its time was over.
    Over,
    Broke(Failure),
}

impl Follower {
    async fn follow(mut self) {
        loop {
            let (pause, credentials) = match Client::at(&self.access, self.pace.answer).await {
                Ok((client, credentials)) => {
                    let plan = self.pass(&client).await;
                    self.say(plan.changed, plan.nodes);
                    (self.watch(&client, &credentials, plan).await, Some(credentials))
                }
                Err(why) => {
                    let dice = self.dice.roll();
                    (self.mirror.unable(why, dice), None)
                }
            };
            self.say(false, false);
            self.rest(pause, credentials.as_ref()).await;
        }
    }

    /// Waits, but no longer than until there are other credentials.
    async fn rest(&self, pause: Duration, credentials: Option<&Credentials>) {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + self.pace.credentials)).await;
            if credentials.is_some_and(Credentials::changed) {
                return;
            }
        }
    }

    /// Lists every kind.
    async fn pass(&mut self, client: &Client) -> Plan {
        let mut lists = Vec::new();
        let mut general = false;
        for mut resource in self.mirror.resources() {
            if self.mirror.is_needless(resource, &lists) {
                continue;
            }
            // When the server is in trouble, the others would only wait for the same.
            let mut list = match general {
                true => Err(Failure::Broken("not asked".to_owned())),
                false if resource == Resource::Object(Kind::HostPeers) => {
                    client.list_digests(&self.mirror.digests()).await
                }
                false => client.list(resource).await,
            };
            if let (true, Some(other)) = (list.as_ref().is_err_and(Failure::is_unknown), resource.otherwise()) {
                resource = other;
                list = client.list(resource).await;
            }
            general |= list.as_ref().is_err_and(Failure::is_general);
            lists.push((resource, list));
        }
        let dice = self.dice.roll();
        self.mirror.passed(lists, dice)
    }

    /// Watches what was listed, until another pass is due; how long to wait before it.
    async fn watch(&mut self, client: &Client, credentials: &Credentials, plan: Plan) -> Duration {
        if plan.watch.is_empty() {
            return plan.again;
        }
        let again = Instant::now() + plan.again;
        let (says, mut said) = mpsc::unbounded_channel();
        let mut watches = JoinSet::new();
        // One of them is the proof that something comes through at all.
        let short = plan.watch.first().map(|(kind, _)| *kind);
        let pace = self.pace;
        let times = move |kind| {
            let seconds = if short == Some(kind) { pace.short_watch } else { pace.long_watch };
            (seconds, pace.grace)
        };
        for (kind, revision) in plan.watch {
            watches.spawn(watch(client.clone(), kind, revision, times(kind), says.clone()));
        }
        let mut look = interval(self.pace.credentials);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut tell_at, mut nodes_at) = (None, None);
        loop {
            tokio::select! {
                Some((kind, said)) = said.recv() => {
                    let noticed = match said {
                        Said::Event(WatchEvent::Added(item) | WatchEvent::Modified(item)) => self.mirror.stored(kind, item),
                        Said::Event(WatchEvent::Deleted(item)) => self.mirror.deleted(kind, &item),
                        Said::Event(WatchEvent::Bookmark(bookmark)) => {
                            self.mirror.follows(kind, &bookmark.metadata.resource_version);
                            Noticed::default()
                        }
                        Said::Event(WatchEvent::Error(status)) => {
                            let failure = Failure::Refused { code: status.code, message: status.message.clone() };
                            return self.broke(kind, &failure, (tell_at.is_some(), nodes_at.is_some()));
                        }
                        Said::Broke(failure) => return self.broke(kind, &failure, (tell_at.is_some(), nodes_at.is_some())),
                        Said::Over => {
                            let revision = self.mirror.goes_on(kind);
                            watches.spawn(watch(client.clone(), kind, revision, times(kind), says.clone()));
                            Noticed::default()
                        }
                    };
                    if noticed.list {
                        self.say(tell_at.is_some(), nodes_at.is_some() || noticed.nodes);
                        return Duration::ZERO;
                    }
                    if noticed.nodes {
                        nodes_at.get_or_insert(Instant::now() + self.pace.settle_nodes);
                    }
                    if noticed.changed {
                        tell_at.get_or_insert(Instant::now() + self.pace.settle);
                    }
                }
                () = until(tell_at) => {
                    tell_at = None;
                    self.say(true, false);
                }
                () = until(nodes_at) => {
                    nodes_at = None;
                    self.say(false, true);
                }
                _ = look.tick() => {
                    if credentials.changed() {
                        self.say(tell_at.is_some(), nodes_at.is_some());
                        return Duration::ZERO;
                    }
                }
                () = sleep_until(again) => {
                    self.say(tell_at.is_some(), nodes_at.is_some());
                    return Duration::ZERO;
                }
            }
        }
    }

    fn broke(&mut self, kind: Resource, failure: &Failure, (holding, nodes): (bool, bool)) -> Duration {
        let dice = self.dice.roll();
        let pause = self.mirror.broke(kind, failure, dice);
        self.say(holding, nodes);
        pause
    }

    /// Tells what is new.
    fn say(&mut self, holding: bool, nodes: bool) {
        if holding {
            self.mirror.settle();
        }
        let health = self.mirror.health();
        if holding || nodes || self.told.as_ref() != Some(&health) {
            self.told = Some(health.clone());
            let holding = holding.then(|| Arc::new(self.mirror.holding()));
            let nodes = nodes.then(|| Arc::new(self.mirror.nodes().clone()));
            (self.tell)(Told { holding, nodes, health });
        }
    }
}

/// One watch, until it ends: for so many seconds, and this much longer until silence means that nothing comes through.
async fn watch(
    client: Client,
    kind: Resource,
    revision: String,
    (seconds, grace): (u32, Duration),
    says: mpsc::UnboundedSender<(Resource, Said)>,
) {
    let time = Duration::from_secs(seconds.into());
    let started = Instant::now();
    // Who listens may be gone, and this with it.
    let say = |said| drop(says.send((kind, said)));
    let mut events = match client.watch(kind, &revision, seconds).await {
        Ok(events) => Box::pin(events),
        Err(failure) => return say(Said::Broke(failure)),
    };
    let deadline = started + time + grace;
    loop {
        match tokio::time::timeout_at(deadline, events.next()).await {
            Ok(Some(Ok(event))) => say(Said::Event(event)),
            Ok(Some(Err(failure))) => return say(Said::Broke(failure)),
            // A server that goes away also ends its watches in good order, but early.
            Ok(None) if started.elapsed() + Duration::from_secs(1) < time => {
                return say(Said::Broke(Failure::Broken("the server ended the watch before its time".to_owned())));
            }
            Ok(None) => return say(Said::Over),
            Err(_) => return say(Said::Broke(Failure::Broken("nothing comes through any more".to_owned()))),
        }
    }
}
