//! The API server as tasks see it: reads as they come, and writes at a pace that all tasks share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::Value as Json;

use super::pace::Pace;
use crate::identity::client::{Client, Failure};

/// Who writes fields by server-side apply.
const MANAGER: &str = "nodewall-controller";

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    pace: Arc<Mutex<Pace>>,
    /// Who this is among the controllers.
    pub(super) instance: String,
}

impl Api {
    pub(super) fn new(client: Client, instance: String) -> Self {
        Self { client, pace: Arc::default(), instance }
    }

    pub(super) async fn get(&self, collection: &str, name: &str) -> Result<Json, Failure> {
        self.client.get(collection, name).await
    }

    pub(super) async fn list(&self, collection: &str, fields: Option<&str>) -> Result<Vec<Json>, Failure> {
        self.client.list(collection, fields).await
    }

    pub(super) async fn list_metadata(&self, collection: &str) -> Result<Vec<Json>, Failure> {
        self.client.list_metadata(collection).await
    }

    pub(super) async fn each(&self, collection: &str, each: impl FnMut(Json)) -> Result<(), Failure> {
        self.client.each(collection, each).await
    }

    pub(super) async fn each_metadata(&self, collection: &str, each: impl FnMut(Json)) -> Result<(), Failure> {
        self.client.each_metadata(collection, each).await
    }

    pub(super) async fn create(&self, collection: &str, object: &Json) -> Result<Json, Failure> {
        self.turn().await;
        self.client.create(collection, object).await
    }

    pub(super) async fn replace(
        &self,
        collection: &str,
        name: &str,
        below: Option<&str>,
        object: &Json,
    ) -> Result<Json, Failure> {
        self.turn().await;
        self.client.replace(collection, name, below, object).await
    }

    pub(super) async fn apply_status(&self, collection: &str, name: &str, object: &Json) -> Result<Json, Failure> {
        self.turn().await;
        self.client.apply_status(collection, name, MANAGER, object).await
    }

    /// Says by server-side apply what an object is. Whoever writes many of them has a pace of its own for that.
    pub(super) async fn apply(&self, collection: &str, name: &str, object: &Json) -> Result<Json, Failure> {
        self.client.apply(collection, name, MANAGER, object).await
    }

    pub(super) async fn delete(&self, collection: &str, name: &str, uid: &str, version: &str) -> Result<(), Failure> {
        self.turn().await;
        self.client.delete(collection, name, uid, version).await
    }

    /// Waits for the turn of a write.
    async fn turn(&self) {
        // Nothing panics with the lock; what is in it is as good as ever.
        let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).next(elapsed());
        tokio::time::sleep(wait).await;
    }
}

/// The time since the host was started, with that during which it slept.
pub(super) fn elapsed() -> Duration {
    // The clock is there since Linux 2.6.39; without it, time stands still and nobody leads for long.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, |time| {
        Duration::new(time.tv_sec().unsigned_abs(), u32::try_from(time.tv_nsec()).unwrap_or(0))
    })
}
