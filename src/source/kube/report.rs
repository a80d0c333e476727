//! The thread that writes the state of this node to the cluster it is a node of, as `damping` says when.

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::client::{Client, Credentials};
use super::damping::{Damping, Outcome, ReportPace};
use super::mirror::Failure;
use super::resource::Resource;
use super::wait::until;
use crate::net::splitmix::Dice;
use crate::source::object::status::{Condition, HostStateSpec, HostStateStatus};
use crate::source::object::{API_VERSION, Kind};

/// What a write came to: `Ok` when it is written, else why not, for people.
pub type Reported = Result<(), String>;

/// The state of a node, which is written until this is dropped.
#[derive(Debug)]
pub struct Reporter {
    say: watch::Sender<Option<HostStateStatus>>,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Reporter {
    /// Writes HostState/`node` from a thread of its own, as the user of this kubeconfig. `seed` spreads the requests of nodes in time.
    /// `tell` is told of every answer and must not wait.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(
        kubeconfig: PathBuf,
        node: String,
        pace: ReportPace,
        seed: u64,
        tell: impl Fn(Reported) + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let (say, said) = watch::channel(None);
        let writer = Writer {
            kubeconfig,
            node,
            damping: Damping::new(pace),
            pace,
            dice: Dice::new(seed),
            started: Instant::now(),
            session: None,
            written: None,
            noticed: false,
            there: Vec::new(),
            tell: Box::new(tell),
        };
        thread::Builder::new().name("report".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = writer.write(said) => {}
                }
            });
            // A name server that does not answer is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { say, _end: end })
    }

    /// This is what there is to say from now on.
    pub fn say(&self, state: HostStateStatus) {
        self.say.send_if_modified(|said| {
            let other = said.as_ref() != Some(&state);
            *said = Some(state);
            other
        });
    }
}

struct Writer {
    kubeconfig: PathBuf,
    node: String,
    damping: Damping,
    pace: ReportPace,
    /// Other numbers on every node.
    dice: Dice,
    started: Instant,
    session: Option<(Client, Credentials)>,
    /// What was written last.
    written: Option<HostStateStatus>,
    /// Whether something else to say was noticed since.
    noticed: bool,
    /// The conditions that the server has.
    there: Vec<Condition>,
    tell: Box<dyn Fn(Reported) + Send>,
}

impl Writer {
    async fn write(mut self, mut said: watch::Receiver<Option<HostStateStatus>>) {
        loop {
            let wanted = said.borrow_and_update().clone().map(|wanted| self.with_times(wanted));
            let due = wanted.as_ref().map(|wanted| self.due(wanted));
            tokio::select! {
                changed = said.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = until(due.map(|due| self.started + due)) => {
                    if let Some(wanted) = wanted {
                        self.attempt(wanted).await;
                    }
                }
            }
        }
    }

    /// When to write this, counted from the start.
    fn due(&mut self, wanted: &HostStateStatus) -> Duration {
        let differs = self.written.as_ref() != Some(wanted);
        if differs && !self.noticed && self.written.is_some() {
            let dice = self.dice.roll();
            self.damping.changed(self.started.elapsed(), dice);
        }
        // What was taken back before it was written was none.
        self.noticed = differs;
        self.damping.due(differs)
    }

    /// With the times of conditions that the server has already.
    fn with_times(&self, mut wanted: HostStateStatus) -> HostStateStatus {
        wanted.keep_times(&self.there);
        wanted
    }

    async fn attempt(&mut self, wanted: HostStateStatus) {
        let whole = self.damping.is_refresh(self.started.elapsed());
        let outcome = match self.send(wanted, whole).await {
            Ok(()) => {
                (self.tell)(Ok(()));
                Outcome::Written
            }
            Err(failure) => {
                // Another address or other credentials may be in its place.
                self.session = None;
                let refused = matches!(failure, Failure::Refused { code: 403 | 404, .. });
                (self.tell)(Err(failure.to_string()));
                if refused { Outcome::Refused } else { Outcome::Failed }
            }
        };
        let dice = self.dice.roll();
        self.damping.answered(outcome, self.started.elapsed(), dice);
    }

    /// Writes the state, and before it the object where that may not be there.
    async fn send(&mut self, wanted: HostStateStatus, whole: bool) -> Result<(), Failure> {
        let client = self.client().await?;
        if whole {
            self.make(&client).await?;
        }
        let mut wanted = self.with_times(wanted);
        match self.put(&client, Some("status"), "status", json!(wanted)).await {
            // Somebody deleted it.
            Err(Failure::Refused { code: 404, .. }) if !whole => {
                self.make(&client).await?;
                wanted = self.with_times(wanted);
                self.put(&client, Some("status"), "status", json!(wanted)).await?;
            }
            answer => drop(answer?),
        }
        self.there.clone_from(&wanted.conditions);
        (self.written, self.noticed) = (Some(wanted), false);
        Ok(())
    }

    /// Makes sure that the object is there, and looks what it says.
    async fn make(&mut self, client: &Client) -> Result<(), Failure> {
        let there = self.put(client, None, "spec", json!(HostStateSpec { node: self.node.clone() })).await?;
        // What somebody else made of it says nothing to us.
        let conditions = there.pointer("/status/conditions").cloned().unwrap_or_default();
        self.there = serde_json::from_value(conditions).unwrap_or_default();
        Ok(())
    }

    /// Says what one part of the object is; what the whole of it is then.
    async fn put(&self, client: &Client, at: Option<&str>, part: &str, value: Json) -> Result<Json, Failure> {
        let (kind, metadata) = (Kind::HostState, json!({ "name": self.node }));
        let body = json!({ "apiVersion": API_VERSION, "kind": kind.name(), "metadata": metadata, part: value });
        client.apply(Resource::Object(kind), &self.node, at, &body).await
    }

    async fn client(&mut self) -> Result<Client, Failure> {
        if let Some((client, credentials)) = &self.session
            && !credentials.changed()
        {
            return Ok(client.clone());
        }
        let (client, credentials) = Client::open(&self.kubeconfig, self.pace.answer).await.map_err(Failure::Broken)?;
        self.session = Some((client.clone(), credentials));
        Ok(client)
    }
}
