//! What systemd is told (sd_notify(3)) and asked (sd_watchdog_enabled(3)). Without systemd all of it does nothing.

use std::env;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use systemd::daemon;

/// The way to systemd. A thread of its own does the sending, which blocks while systemd does not read: a manager that hangs
/// must not keep the loop from following links. The messages come from the loop all the same, so that a watchdog's
/// ping still says that the loop is alive.
pub(super) struct Systemd {
    messages: Option<SyncSender<Message>>,
    done: Option<Receiver<()>>,
}

type Message = Vec<(&'static str, String)>;

/// How many messages wait for a manager that hangs; further ones are dropped.
const MESSAGES_WAITING: usize = 64;
/// How long the end of the process waits for the last message to be sent.
const LAST_MESSAGE: Duration = Duration::from_millis(200);

impl Systemd {
    /// Finds out whether there is a manager to tell.
    pub(super) fn find() -> io::Result<Self> {
        if env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self { messages: None, done: None });
        }
        let (sender, messages) = sync_channel::<Message>(MESSAGES_WAITING);
        let (finished, done) = channel();
        thread::Builder::new().name("sd_notify".to_owned()).spawn(move || {
            while let Ok(message) = messages.recv() {
                if let Err(error) = daemon::notify(message.iter()) {
                    tracing::debug!("cannot notify systemd: {error}");
                }
            }
            // The loop may not wait any more.
            let _ = finished.send(());
        })?;
        Ok(Self { messages: Some(sender), done: Some(done) })
    }

    /// The service is up, or a reload is over; `status` is the line for `systemctl status`.
    pub(super) fn ready(&self, status: &str) {
        self.send(vec![("READY", "1".to_owned()), ("STATUS", status.to_owned())]);
    }

    /// The line for `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.send(vec![("STATUS", status.to_owned())]);
    }

    /// A reload begins; [`Systemd::ready`] ends it.
    pub(super) fn reloading(&self) {
        // Type=notify-reload wants the time, so that it can tell this reload's end from an earlier one's.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        self.send(vec![("RELOADING", "1".to_owned()), ("MONOTONIC_USEC", now.as_micros().to_string())]);
    }

    /// The loop is alive.
    pub(super) fn alive(&self) {
        self.send(vec![("WATCHDOG", "1".to_owned())]);
    }

    /// The process is about to end.
    pub(super) fn stopping(mut self) {
        self.send(vec![("STOPPING", "1".to_owned()), ("STATUS", "stopped; the rules stay in force".to_owned())]);
        drop(self.messages.take());
        if let Some(done) = &self.done
            && done.recv_timeout(LAST_MESSAGE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("systemd does not read its notifications");
        }
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages
            && messages.try_send(message).is_err()
        {
            tracing::warn!("systemd does not read its notifications");
        }
    }
}

/// How often to call [`Systemd::alive`]: half of what systemd waits; `None` when it does not.
pub(super) fn watchdog_interval() -> Option<Duration> {
    match daemon::watchdog_enabled() {
        Ok(0) | Err(_) => None,
        Ok(microseconds) => Some(Duration::from_micros(microseconds / 2).max(Duration::from_millis(1))),
    }
}
