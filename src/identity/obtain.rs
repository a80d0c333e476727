//! Sends a request for a certificate and waits for what becomes of it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::certificate::Certificate;
use super::client::{Client, Failure};
use super::request::{Key, Progress, issued, progress};

/// Where certificate requests are.
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// The first look at a request comes after this time, and each pause is half as long again as the one before...
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// ... up to this: people and signers take longer than that.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// The server refuses to be asked.
    Refused(Failure),
    /// Somebody denied the request, or the signer could not sign it. It stays so for this key.
    Denied(String),
    /// What was issued is not what was asked for.
    Wrong(String),
    /// The time is over. The request stands.
    Late(String),
}

/// Asks for a certificate of a key and waits so long for it. A request of this key that is there already is waited for.
/// `tell` is told what the waiting is for.
pub(super) async fn obtain(
    client: &Client,
    node: &str,
    key: &Key,
    wait: Duration,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<(String, Certificate), Stopped> {
    let name = key.request_name(node);
    let request = key.request(node).map_err(Stopped::Wrong)?;
    let end = Instant::now() + wait;
    let (mut pause, mut seen, mut trouble) = (FIRST_PAUSE, None, None);
    loop {
        // Denied requests stay for an hour, others for a day (the API server's cleaner), and with the object the request is gone.
        let found = match client.get(REQUESTS, &name).await {
            Err(failure) if failure.is(404) => match client.create(REQUESTS, &request).await {
                // Somebody was quicker; the next look shows who.
                Err(failure) if failure.is(409) => Ok(request.clone()),
                answer => answer,
            },
            answer => answer,
        };
        match found.map(|object| progress(&object)) {
            Ok(Progress::Issued(chain)) => {
                let certificate = issued(&chain, node, key, super::now()).map_err(Stopped::Wrong)?;
                return Ok((chain, certificate));
            }
            Ok(Progress::Denied(why)) => return Err(Stopped::Denied(format!("the request {name} was denied: {why}"))),
            Ok(Progress::Failed(why)) => {
                return Err(Stopped::Denied(format!("the request {name} could not be signed: {why}")));
            }
            Ok(now @ (Progress::Pending | Progress::Approved)) => {
                if now == Progress::Pending && seen.as_ref() != Some(&now) {
                    tell(&format!(
                        "waiting until the request {name} is approved: `nodewall controller` does it, or else `kubectl certificate approve {name}`"
                    ));
                }
                (seen, trouble) = (Some(now), None);
            }
            Err(failure) if failure.passes() => {
                let now = format!("the server does not answer as it should: {failure}");
                if trouble.as_ref() != Some(&now) {
                    tell(&now);
                    trouble = Some(now);
                }
            }
            Err(failure) => return Err(Stopped::Refused(failure)),
        }
        if Instant::now() >= end {
            return Err(Stopped::Late(match (trouble, seen) {
                (Some(trouble), _) => trouble,
                (None, Some(Progress::Approved)) => format!("the request {name} is approved, and nobody signed it"),
                (None, _) => format!("nobody approved the request {name}"),
            }));
        }
        sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}
