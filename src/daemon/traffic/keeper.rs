//! The thread that writes records to disk, which may hang: nobody waits for it, and what it cannot take is counted.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use super::{Shared, Wanted, journal};
use crate::daemon::clock::micros;
use crate::flow::store::{self, Limits, Store};
use crate::text::cause::chain;
use crate::traffic::Record;

/// How many windows wait for the disk.
const WAITING: usize = 4;
/// How often the store notes that somebody watches, if nothing happens.
const NOTE: Duration = Duration::from_secs(300);

/// Starts the thread; the receiver is closed when it has ended, after the last records.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<(SyncSender<Vec<Record>>, Receiver<()>)> {
    let (records, waiting) = mpsc::sync_channel(WAITING);
    let mut keeper = Keeper { shared, store: None, lost: (0, 0), error: None };
    let (written, end) = mpsc::channel();
    thread::Builder::new().name("flows".to_owned()).spawn(move || {
        let _written = written;
        keeper.serve(&waiting);
    })?;
    Ok((records, end))
}

struct Keeper {
    shared: Arc<Shared>,
    /// The store with what was wanted when it was opened.
    store: Option<(Store, Wanted)>,
    /// The losses that the store knows of.
    lost: (u64, u64),
    /// What was told last.
    error: Option<String>,
}

impl Keeper {
    fn serve(&mut self, waiting: &Receiver<Vec<Record>>) {
        loop {
            let records = match waiting.recv_timeout(NOTE) {
                Ok(records) => records,
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(wanted) = self.shared.wanted().clone().filter(|wanted| wanted.flows.store) else {
                self.store = None;
                continue;
            };
            let outcome = self.write(&records, &wanted);
            self.tell(outcome, records.len());
        }
    }

    fn write(&mut self, records: &[Record], wanted: &Wanted) -> Result<store::Written, store::Error> {
        let directory = store::directory(&wanted.directory);
        if self.store.as_ref().is_none_or(|(_, opened)| opened != wanted) {
            self.store = None;
            let limits = Limits { keep: wanted.flows.keep, bytes: wanted.flows.size };
            self.store = Some((Store::open(&directory, limits)?, wanted.clone()));
        }
        let Some((store, _)) = &mut self.store else { return Ok(store::Written::default()) };
        let now = {
            let numbers = self.shared.numbers();
            (numbers.lost_packets, numbers.connection_overruns)
        };
        store.lost(now.0.saturating_sub(self.lost.0), now.1.saturating_sub(self.lost.1));
        self.lost = now;
        let written = store.write(records, micros());
        for told in store.told() {
            journal::tell_blind(&told);
        }
        written
    }

    fn tell(&mut self, outcome: Result<store::Written, store::Error>, records: usize) {
        let bytes = self.store.as_ref().map_or(0, |(_, wanted)| store::size(&store::directory(&wanted.directory)));
        let error = outcome.as_ref().err().map(|error| chain(error));
        {
            let mut numbers = self.shared.numbers();
            numbers.store_bytes = bytes;
            numbers.store_error.clone_from(&error);
            match &outcome {
                Ok(written) => {
                    numbers.stored = numbers.stored.saturating_add(written.stored);
                    numbers.left_out = numbers.left_out.saturating_add(written.left_out);
                }
                Err(_) => numbers.left_out = numbers.left_out.saturating_add(records as u64),
            }
        }
        if error != self.error {
            match &error {
                Some(error) => journal::tell_blind(&format!("records of flows are not kept: {error}")),
                None => tracing::info!("records of flows are kept again"),
            }
            self.error = error;
        }
    }
}
