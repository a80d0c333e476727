//! The pages of metrics: asked for together, made once, kept for a moment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::exposed::Exposing;
use super::{Ask, Told, own};
use crate::compile::counted::{Meaning, meaning};
use crate::metrics::families::families;
use crate::metrics::snapshot::{Serving, Snapshot};
use crate::metrics::text::{Family, Format, encode};
use crate::metrics::verdicts::Verdicts;
use crate::nft::ir::Ruleset;

/// How long the loop and the kernel's thread may take: a transaction of a million elements is on its way for seconds.
const ANSWER_TIME: Duration = Duration::from_secs(8);
/// A page is kept this long, however many want it.
const KEPT: Duration = Duration::from_secs(1);
/// And this many times as long as it took: a ruleset that takes 100 ms to read is read every two seconds at most.
const PART: u32 = 20;

/// What all peers share.
pub(super) struct Book {
    asks: mpsc::Sender<Ask>,
    /// The settings file, for audit; `None`: sockets are not looked at.
    config: Option<PathBuf>,
    exposing: Exposing,
    serving: Mutex<Serving>,
    kept: tokio::sync::Mutex<Kept>,
}

/// What was made last, and what the next one needs.
struct Kept {
    /// What the counters were at the start, until that was asked for.
    first: Option<oneshot::Receiver<Verdicts>>,
    verdicts: Verdicts,
    meaning: Option<(Arc<Ruleset>, Meaning)>,
    families: Vec<Family>,
    pages: BTreeMap<Format, Bytes>,
    good_until: Option<Instant>,
}

impl Book {
    pub(super) fn new(asks: mpsc::Sender<Ask>, first: oneshot::Receiver<Verdicts>, config: Option<PathBuf>) -> Self {
        let mut serving = Serving::default();
        serving
            .requests
            .extend(["served", "unauthorised", "not-found", "bad-method", "unavailable"].map(|word| (word, 0)));
        serving.refused.extend(["busy", "handshake"].map(|word| (word, 0)));
        let kept = Kept {
            first: Some(first),
            verdicts: Verdicts::default(),
            meaning: None,
            families: Vec::new(),
            pages: BTreeMap::new(),
            good_until: None,
        };
        Self {
            asks,
            config,
            exposing: Exposing::default(),
            serving: Mutex::new(serving),
            kept: tokio::sync::Mutex::new(kept),
        }
    }

    /// Counts a request.
    pub(super) fn request(&self, outcome: &'static str) {
        *self.serving().requests.entry(outcome).or_default() += 1;
    }

    /// Counts a connection that was not let in.
    pub(super) fn refused(&self, reason: &'static str) {
        *self.serving().refused.entry(reason).or_default() += 1;
    }

    fn serving(&self) -> std::sync::MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a loop to ask.
    pub(super) fn is_closed(&self) -> bool {
        self.asks.is_closed()
    }

    /// The page; `None` when the loop does not answer in time.
    pub(super) async fn page(&self, format: Format) -> Option<Bytes> {
        let mut kept = self.kept.lock().await;
        let began = Instant::now();
        if kept.good_until.is_none_or(|until| began >= until) {
            let snapshot = timeout(ANSWER_TIME, self.look(&mut kept)).await.ok().flatten()?;
            kept.families = families(&snapshot);
            kept.pages.clear();
            kept.good_until = Some(Instant::now() + KEPT.max(began.elapsed() * PART));
        }
        if let Some(page) = kept.pages.get(&format) {
            return Some(page.clone());
        }
        let page = Bytes::from(encode(&kept.families, format));
        kept.pages.insert(format, page.clone());
        Some(page)
    }

    /// Everything at this moment.
    async fn look(&self, kept: &mut Kept) -> Option<Snapshot> {
        let (ask, told) = oneshot::channel();
        self.asks.send(ask).await.ok()?;
        let Told { mut snapshot, in_force, kernel, settings } = told.await.ok()?;
        if let Some(first) = &mut kept.first {
            // Should nobody tell, all that the kernel counted is new.
            kept.verdicts = first.await.unwrap_or_default();
            kept.first = None;
        }
        if let Some(in_force) = in_force
            && let Ok(loaded) = kernel.rules().await
        {
            snapshot.policy.kernel_read = true;
            let known = kept.meaning.take().filter(|(ruleset, _)| Arc::ptr_eq(ruleset, &in_force));
            let (ruleset, meaning) = known.unwrap_or_else(|| {
                let meaning = meaning(&in_force);
                (in_force, meaning)
            });
            kept.verdicts.take(&meaning, &loaded, settings.rules);
            kept.meaning = Some((ruleset, meaning));
        }
        snapshot.verdicts = kept.verdicts.clone();
        snapshot.exposed =
            self.config.as_ref().filter(|_| settings.exposed).and_then(|config| self.exposing.now(config));
        snapshot.process = own::process();
        snapshot.serving = self.serving().clone();
        Some(snapshot)
    }
}
