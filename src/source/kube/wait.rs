//! Waiting for a time that may not be set.

use std::future;

use tokio::time::{Instant, sleep_until};

/// Until this time, or for ever without one.
pub(super) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => future::pending().await,
    }
}
