//! What one for a whole cluster does: `nodewall controller`. It has the rights that nodes must not have, and no node needs it: without
//! it, certificates wait for an administrator, and objects do not say what is wrong with them.
//!
//! Several may run; the one that holds the Lease works (`lease` decides, `leader` does it). Each task is a decision without I/O and a
//! few lines around it: `approval` and `approver`, `documents` and `judge`, `seen` with `events` and `reporter`, `leftovers` and `sweeper`.

mod api;
mod approval;
mod approver;
pub mod digests;
mod documents;
mod event;
mod events;
mod judge;
mod leader;
mod lease;
mod leftovers;
mod pace;
mod peers;
mod reporter;
mod seen;
mod sweeper;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::identity::client::{Client, Failure};
use crate::identity::now;
use crate::source::kube::Access;
use crate::text::time::rfc3339;
use api::Api;

/// Who says so, in Events.
const REPORTER: &str = "nodewall.dev/controller";

/// What the controller is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// How to reach the API server; `None`: as the ServiceAccount of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub lease: String,
    /// What this host, or pod, is called.
    pub host: String,
    /// How often it looks at what there is once for each node.
    pub intervals: Intervals,
}

/// How often is looked at what there is once for each node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intervals {
    /// For changes of HostStates, of which Events tell.
    pub changes: Duration,
    /// For HostStates of nodes that are gone; two looks in a row must show that.
    pub leftovers: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { changes: Duration::from_secs(10), leftovers: Duration::from_secs(600) }
    }
}

/// Works until SIGTERM or SIGINT, and lets the Lease go then.
///
/// # Errors
/// Why it cannot begin, for people.
pub async fn run(options: Options) -> Result<(), String> {
    let handled = |error| format!("cannot handle signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(handled)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(handled)?;
    let client = match &options.kubeconfig {
        Some(path) => Client::open(path).await?,
        None => Client::in_cluster()
            .map_err(|why| format!("this is no pod with a ServiceAccount, and no --kubeconfig is named: {why}"))?,
    };
    // A name that nobody else has: the next process on this host may have the same number.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let instance = format!("{}_{}-{since:x}", options.host, std::process::id());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "controller {instance} waits for Lease {}/{}",
        options.namespace,
        options.lease
    );
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let api = Api::new(client.clone(), instance.clone());
    let access = options.kubeconfig.clone().map_or(Access::Pod, Access::Kubeconfig);
    leader::run(&client, &options, instance, || tasks(&api, &access, options.intervals), ended).await;
    tracing::info!("stopped");
    Ok(())
}

/// Everything that the one who leads does. Dropped, it ends, wherever it is: so each task must be one that can be begun again.
fn tasks(api: &Api, access: &Access, intervals: Intervals) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(approver::run(api.clone()));
    tasks.spawn(judge::run(api.clone()));
    tasks.spawn(reporter::run(api.clone(), intervals.changes));
    tasks.spawn(sweeper::run(api.clone(), intervals.leftovers));
    tasks.spawn(peers::run(api.clone(), access.clone(), now()));
    tasks
}

/// What went wrong the last time: said once, however often it goes wrong again.
#[derive(Default)]
struct Trouble(Option<String>);

impl Trouble {
    /// Says what came of another time, if that is something new.
    fn say(&mut self, what: &str, came: Result<(), Failure>) {
        let now = came.err().map(|failure| failure.to_string());
        if let Some(why) = now.as_ref().filter(|_| self.0 != now) {
            tracing::warn!("{what}: {why}");
        }
        self.0 = now;
    }
}

/// The time of day: RFC 3339 with whole seconds.
fn wall() -> String {
    rfc3339(now())
}
