//! What somebody with the right to write asks of the daemon, from the control socket to the state machine.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;

use super::documents::{self, Documents, Whereabouts};
use super::{Daemon, Input, disk};
use crate::config::confirm::Confirm;
use crate::reconcile::{self, Confirmation, Emergency, Event, Term, Trial, Version};
use crate::source::Trust;

/// How often the journal hears that everything is let through.
const REMIND: Duration = Duration::from_secs(60);

/// A request that changes something.
#[derive(Debug)]
pub(super) struct Order {
    /// Who: "uid 0 (pid 123)".
    pub(super) by: String,
    /// What.
    pub(super) what: What,
    /// Where the outcome goes.
    pub(super) reply: oneshot::Sender<Result<String, String>>,
}

/// What somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// To put documents in force.
    Apply {
        /// How they have to be confirmed.
        confirm: Confirm,
        /// Where they are, absolute; empty: in place.
        paths: Vec<PathBuf>,
    },
    /// To keep what waits for it.
    Confirm,
    /// To go back: to this generation, or the one before.
    Rollback(Option<u64>),
    /// To begin or end a panic.
    Panic {
        /// Whether it is on.
        on: bool,
        /// Why; may be empty.
        reason: String,
    },
    /// To begin a break-glass, or to end it.
    BreakGlass {
        /// How long it holds; `None` ends it.
        time: Option<Duration>,
        /// Why.
        reason: String,
    },
}

/// Who waits for the outcome of an order.
pub(super) struct Orderer {
    /// Which order it is, counted from the daemon's start.
    number: u64,
    reply: oneshot::Sender<Result<String, String>>,
    /// Whether the state machine knows of it: what that answers before is not for this one.
    asked: bool,
}

/// What was read for an order.
pub(super) enum Fetched {
    Documents { documents: Box<Documents>, confirm: Confirm, elsewhere: Option<String> },
    Version(Result<Box<Version>, String>),
}

impl Daemon {
    /// One order at a time: its outcome is what the state machine answers next.
    pub(super) fn ordered(&mut self, order: Order) {
        let Order { by, what, reply } = order;
        if matches!(what, What::Panic { .. } | What::BreakGlass { .. }) {
            // An emergency waits for nobody.
            self.refuse("panic or break-glass was ordered meanwhile".to_owned());
        }
        if !self.started || self.orderer.as_ref().is_some_and(|orderer| !orderer.reply.is_closed()) {
            let _ = reply.send(Err("another request is under way; try again".to_owned()));
            return;
        }
        self.orders = self.orders.wrapping_add(1);
        let number = self.orders;
        self.orderer = Some(Orderer { number, reply, asked: false });
        let inbox = self.inbox.clone();
        match what {
            What::Apply { confirm, paths } => {
                if paths.is_empty() {
                    self.reading.is_done_for();
                }
                let whereabouts = Whereabouts { paths: paths.clone(), ..self.options.whereabouts.clone() };
                let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                let elsewhere = (!names.is_empty()).then(|| names.join(", "));
                let holdings = self.clusters.fitting();
                tokio::task::spawn_blocking(move || {
                    let documents = documents::load_after(&whereabouts, Trust::Required, None, &holdings);
                    let documents = Box::new(documents);
                    let _ =
                        inbox.send(Input::Fetched(number, by, Fetched::Documents { documents, confirm, elsewhere }));
                });
            }
            What::Confirm => self.asks(Event::ConfirmRequested { by }),
            What::Rollback(None) if self.state.record().pending.is_some() => {
                self.asks(Event::RollbackRequested { version: None, by });
            }
            What::Rollback(generation) => {
                let Some(disk) = self.disk.clone() else { return self.refuse("there is no store".to_owned()) };
                let wanted = match generation {
                    Some(number) => disk::Wanted::Number(number),
                    None => disk::Wanted::Before(self.state.generation()),
                };
                tokio::spawn(async move {
                    let version = disk.read(wanted).await.map(Box::new);
                    let _ = inbox.send(Input::Fetched(number, by, Fetched::Version(version)));
                });
            }
            What::Panic { on, reason } => {
                let emergency = on.then(|| Emergency::Panic { by: by.clone(), reason });
                self.asks(Event::EmergencyRequested { emergency, by });
            }
            What::BreakGlass { time, reason } => {
                let emergency = time.map(|time| Emergency::BreakGlass {
                    term: Term::new(disk::now(), time),
                    by: by.clone(),
                    reason,
                });
                self.asks(Event::EmergencyRequested { emergency, by });
            }
        }
    }

    /// What an order needs is there. One that was given up waiting for meanwhile is not carried out any more.
    pub(super) fn fetched(&mut self, number: u64, by: String, fetched: Fetched) {
        if self.orderer.as_ref().is_none_or(|orderer| orderer.number != number || orderer.reply.is_closed()) {
            return tracing::warn!("a request of {by} took too long to read what it is about, and is dropped");
        }
        match fetched {
            Fetched::Documents { documents, confirm, elsewhere } => {
                let documents = documents_of(*documents, Some(confirm));
                self.asks(Event::ApplyRequested { documents, elsewhere });
            }
            Fetched::Version(Ok(version)) => {
                self.asks(Event::RollbackRequested { version: Some(*version), by });
            }
            Fetched::Version(Err(error)) => self.refuse(error),
        }
    }

    /// Hands an order to the state machine.
    fn asks(&mut self, event: Event) {
        if let Some(orderer) = &mut self.orderer {
            orderer.asked = true;
        }
        self.happened(event);
    }

    /// The state machine has answered.
    pub(super) fn answered(&mut self, answer: Result<String, String>) {
        if let Some(orderer) = self.orderer.take_if(|orderer| orderer.asked) {
            // The peer may have gone.
            let _ = orderer.reply.send(answer);
        }
    }

    /// An order that the state machine never hears of.
    fn refuse(&mut self, why: String) {
        if let Some(orderer) = self.orderer.take() {
            let _ = orderer.reply.send(Err(why));
        }
    }

    /// When to say again that everything is let through.
    pub(super) fn remind(&mut self) {
        let on = matches!(self.state.record().emergency, Some(Emergency::BreakGlass { .. }));
        self.remind_at = on.then(|| tokio::time::Instant::now() + REMIND);
    }
}

/// Documents as the state machine takes them.
pub(super) fn documents_of(documents: Documents, confirm: Option<Confirm>) -> reconcile::Documents {
    let trial = |confirm: Confirm| Trial {
        term: Term::new(disk::now(), confirm.time()),
        confirmation: match confirm {
            Confirm::Operator(_) => Confirmation::Operator,
            Confirm::SelfTest(_) => Confirmation::SelfTest { before: None },
        },
    };
    reconcile::Documents {
        policy: documents.policy,
        settings: documents.config.settings,
        findings: documents.findings,
        probes: documents.config.probes,
        texts: documents.kept,
        trial: confirm.or(documents.config.confirm).map(trial),
    }
}
