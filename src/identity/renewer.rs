//! The thread that renews the identity of one kubeconfig.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use tokio::sync::{oneshot, watch};

use super::client::Client;
use super::files::{Files, Identity};
use super::now;
use super::obtain::{Stopped, obtain};
use super::renew::{Worry, due, pause, worry};
use crate::net::splitmix;
use crate::text::time::rfc3339;

/// The files are looked at again after this time, whatever they said: somebody may have joined anew, and clocks jump.
const LOOK: Duration = Duration::from_secs(300);
/// An attempt waits so long for its approval; then there is a pause, and another goes on waiting.
const WAIT: Duration = Duration::from_secs(600);

/// How it is with an identity.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Until when its certificate holds, in seconds since 1970-01-01 UTC; `None`: there is none of ours.
    pub until: Option<u64>,
    /// What somebody has to look at.
    pub error: Option<String>,
}

/// Renews until this is dropped.
#[derive(Debug)]
pub struct Renewer {
    standing: watch::Receiver<Standing>,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Renewer {
    /// Renews the certificate of this kubeconfig from a thread of its own, where `join` made it. `seed` spreads the requests of nodes in
    /// time.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(kubeconfig: &Path, seed: u64) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let (tell, standing) = watch::channel(Standing::default());
        let mut work = Work { kubeconfig: kubeconfig.to_owned(), seed, failures: 0, trouble: None, tell };
        thread::Builder::new().name("identity".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = ended => {}
                    () = work.renew() => {}
                }
            });
            // A name server that does not answer is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { standing, _end: end })
    }

    /// How it is.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }
}

struct Work {
    kubeconfig: PathBuf,
    seed: u64,
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// Why the last one did.
    trouble: Option<String>,
    tell: watch::Sender<Standing>,
}

impl Work {
    async fn renew(&mut self) {
        loop {
            let rest = self.look().await;
            tokio::time::sleep(rest).await;
            if self.tell.is_closed() {
                // Nobody asks any more; the end comes by itself.
                pending::<()>().await;
            }
        }
    }

    /// Looks once, renews if it is time, and says how long to wait.
    async fn look(&mut self) -> Duration {
        let (files, identity) = match self.identity() {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.say(Standing::default());
                return LOOK;
            }
            Err(why) => {
                tracing::warn!("the node's certificate cannot be renewed: {why}");
                self.say(Standing { until: None, error: Some(why) });
                return LOOK;
            }
        };
        let lifetime = identity.certificate.lifetime;
        let at = due(&lifetime, splitmix::nth(self.seed, lifetime.from));
        let left = at.saturating_sub(now());
        if left > 0 {
            (self.failures, self.trouble) = (0, None);
            self.stand(&identity);
            return LOOK.min(Duration::from_secs(left));
        }
        self.stand(&identity);
        match self.attempt(&files, &identity).await {
            Ok(until) => {
                (self.failures, self.trouble) = (0, None);
                tracing::info!(
                    "the certificate of node \"{}\" is renewed; it holds until {}",
                    identity.node,
                    rfc3339(until)
                );
                self.say(Standing { until: Some(until), error: None });
                // What came may be over soon, too; it is looked at, but not at once.
                Duration::from_secs(1)
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                let (node, until) = (&identity.node, rfc3339(lifetime.until));
                match worry(&lifetime, now()) {
                    Worry::None => tracing::warn!("the certificate of node \"{node}\" is not renewed yet: {why}"),
                    Worry::Ending => {
                        tracing::error!(
                            "the certificate of node \"{node}\" ends at {until} and cannot be renewed: {why}"
                        );
                    }
                    Worry::Over => tracing::error!(
                        "the certificate of node \"{node}\" ended at {until}: run `nodewall join` with a new token ({why})"
                    ),
                }
                self.trouble = Some(why);
                self.stand(&identity);
                pause(self.failures, splitmix::nth(self.seed, u64::from(self.failures)))
            }
        }
    }

    fn identity(&self) -> Result<Option<(Files, Identity)>, String> {
        let Some(files) = Files::of_kubeconfig(&self.kubeconfig)? else { return Ok(None) };
        // One that is no node's is somebody else's to renew.
        Ok(files.identity().ok().flatten().map(|identity| (files, identity)))
    }

    async fn attempt(&self, files: &Files, identity: &Identity) -> Result<u64, String> {
        if worry(&identity.certificate.lifetime, now()) == Worry::Over {
            return Err("it is over, and the server does not know the node any more".to_owned());
        }
        let unwritten = |error: io::Error| format!("cannot write beside {}: {error}", files.identity.display());
        let client = Client::open(&self.kubeconfig).await?;
        let key = files.pending_key().map_err(unwritten)?;
        let tell = |what: &str| tracing::info!("{what}");
        match obtain(&client, &identity.node, &key, WAIT, &tell).await {
            Ok((chain, certificate)) => {
                files.write_identity(&chain, &key).map_err(unwritten)?;
                Ok(certificate.lifetime.until)
            }
            Err(stopped) => {
                if matches!(stopped, Stopped::Denied(_) | Stopped::Wrong(_)) {
                    files.forget_pending().map_err(unwritten)?;
                }
                Err(match stopped {
                    Stopped::Refused(failure) => failure.to_string(),
                    Stopped::Denied(why) | Stopped::Wrong(why) | Stopped::Late(why) => why,
                })
            }
        }
    }

    /// Tells how it is with an identity.
    fn stand(&self, identity: &Identity) {
        let lifetime = identity.certificate.lifetime;
        let until = rfc3339(lifetime.until);
        let why = self.trouble.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let error = match worry(&lifetime, now()) {
            Worry::None => None,
            Worry::Ending => Some(format!("the node's certificate ends at {until} and is not renewed{why}")),
            Worry::Over => {
                Some(format!("the node's certificate ended at {until}: run `nodewall join` with a new token"))
            }
        };
        self.say(Standing { until: Some(lifetime.until), error });
    }

    fn say(&self, standing: Standing) {
        self.tell.send_if_modified(|before| {
            let new = *before != standing;
            *before = standing;
            new
        });
    }
}
