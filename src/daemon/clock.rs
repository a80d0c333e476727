//! The wall clock: what time it is, and that time as RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::text::time;

/// Seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    seconds(SystemTime::now())
}

/// Microseconds since 1970-01-01 UTC.
pub fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// "2026-11-23T21:09:54Z".
pub(super) fn rfc3339(at: SystemTime) -> String {
    time::rfc3339(seconds(at))
}

/// The same of milliseconds since 1970-01-01 UTC.
pub(super) fn of_milliseconds(milliseconds: u64) -> String {
    time::rfc3339(milliseconds / 1000)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
