//! Holds the Lease, and has tasks work as long as it does: does what `lease` decides.

use std::future::pending;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::api::elapsed;
use super::lease::{Election, Record, Step};
use super::{Options, Trouble};
use crate::identity::client::{Client, Failure};
use crate::text::time::rfc3339;

/// How long an answer about the Lease may take: there is time for another attempt before the deadline.
const ANSWER: Duration = Duration::from_secs(4);

const TROUBLE: &str = "the Lease cannot be read or written";

/// Works whenever it leads, until `ended` says so; then others may begin at once.
pub(super) async fn run(
    client: &Client,
    options: &Options,
    instance: String,
    tasks: impl Fn() -> JoinSet<()>,
    ended: impl Future<Output = ()>,
) {
    let mut holder = Holder {
        client: client.within(ANSWER),
        collection: format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", options.namespace),
        name: options.lease.clone(),
        election: Election::new(instance),
        trouble: Trouble::default(),
    };
    let mut working: Option<JoinSet<()>> = None;
    let mut ended = std::pin::pin!(ended);
    loop {
        let left = holder.election.left(elapsed());
        match (left.is_some(), working.is_some()) {
            (true, false) => {
                tracing::info!("this controller leads");
                working = Some(tasks());
            }
            (false, true) => {
                tracing::warn!("this controller does not lead any more");
                // Here they end, at whatever they wait for.
                working = None;
            }
            _ => {}
        }
        tokio::select! {
            () = &mut ended => break,
            () = holder.act() => {}
            // A request that hangs does not make us lead for longer. Whether it got there is not known.
            () = over(left) => holder.election.failed(elapsed()),
        }
    }
    drop(working);
    holder.release().await;
}

async fn over(left: Option<Duration>) {
    match left {
        Some(left) => sleep(left).await,
        None => pending().await,
    }
}

struct Holder {
    client: Client,
    collection: String,
    name: String,
    election: Election,
    trouble: Trouble,
}

impl Holder {
    async fn act(&mut self) {
        let sent = elapsed();
        match self.election.step(sent, &wall()) {
            Step::Wait(time) => sleep(time).await,
            Step::Read => match self.client.get(&self.collection, &self.name).await {
                Ok(object) => {
                    self.trouble.say(TROUBLE, Ok(()));
                    self.election.read(Some(record(&object)), elapsed());
                }
                Err(failure) if failure.is(404) => self.election.read(None, elapsed()),
                Err(failure) => self.failed(failure),
            },
            Step::Create(record) => {
                let answer = self.client.create(&self.collection, &self.object(None, &record)).await;
                self.wrote(answer, record, sent);
            }
            Step::Replace(version, record) => {
                let object = self.object(Some(&version), &record);
                let answer = self.client.replace(&self.collection, &self.name, None, &object).await;
                self.wrote(answer, record, sent);
            }
        }
    }

    fn wrote(&mut self, answer: Result<Json, Failure>, wrote: Record, sent: Duration) {
        match answer {
            Ok(object) => {
                self.trouble.say(TROUBLE, Ok(()));
                self.election.wrote(record(&object).0, wrote, sent);
            }
            // Somebody was quicker, or it is gone: that is no trouble.
            Err(failure) if failure.is(409) || failure.is(404) => self.election.failed(elapsed()),
            Err(failure) => self.failed(failure),
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.trouble.say(TROUBLE, Err(failure));
        self.election.failed(elapsed());
    }

    async fn release(self) {
        let Some((version, record)) = self.election.release(&wall()) else { return };
        let object = self.object(Some(&version), &record);
        match self.client.replace(&self.collection, &self.name, None, &object).await {
            Ok(_) => tracing::info!("the Lease is free"),
            Err(failure) => tracing::warn!("the Lease is not let go, and ends by itself: {failure}"),
        }
    }

    fn object(&self, version: Option<&str>, record: &Record) -> Json {
        let time = |text: &str| if text.is_empty() { Json::Null } else { json!(text) };
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": self.name, "resourceVersion": version },
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": record.seconds,
                "acquireTime": time(&record.acquired),
                "renewTime": time(&record.renewed),
                "leaseTransitions": record.transitions,
            },
        })
    }
}

/// Version and record of a Lease, as the API gives it. What is missing is nothing.
fn record(object: &Json) -> (String, Record) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Json::as_str).unwrap_or_default().to_owned();
    let number = |pointer: &str| object.pointer(pointer).and_then(Json::as_u64).unwrap_or_default();
    let record = Record {
        holder: text("/spec/holderIdentity"),
        seconds: number("/spec/leaseDurationSeconds"),
        acquired: text("/spec/acquireTime"),
        renewed: text("/spec/renewTime"),
        transitions: number("/spec/leaseTransitions"),
    };
    (text("/metadata/resourceVersion"), record)
}

/// The time of day as Leases have it: RFC 3339 with microseconds.
fn wall() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}Z", rfc3339(since.as_secs()).trim_end_matches('Z'), since.subsec_micros())
}
