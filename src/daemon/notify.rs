//! What systemd is told (sd_notify(3)) and asked (sd_watchdog_enabled(3)). Without systemd all of it does nothing.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use systemd::daemon;

/// The service is up, or a reload is over; `status` is the line for `systemctl status`.
pub(super) fn ready(status: &str) {
    send(&[("READY", "1"), ("STATUS", status)]);
}

/// The line for `systemctl status`.
pub(super) fn status(status: &str) {
    send(&[("STATUS", status)]);
}

/// A reload begins; [`ready`] ends it.
pub(super) fn reloading() {
    // Type=notify-reload wants the time, so that it can tell this reload's end from an earlier one's.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    send(&[("RELOADING", "1"), ("MONOTONIC_USEC", &now.as_micros().to_string())]);
}

/// The service is about to end.
pub(super) fn stopping() {
    send(&[("STOPPING", "1"), ("STATUS", "stopped; the rules stay in force")]);
}

/// The loop is alive.
pub(super) fn alive() {
    send(&[("WATCHDOG", "1")]);
}

/// How often to call [`alive`]: half of what systemd waits; `None` when it does not.
pub(super) fn watchdog_interval() -> Option<Duration> {
    match daemon::watchdog_enabled() {
        Ok(0) | Err(_) => None,
        Ok(microseconds) => Some(Duration::from_micros(microseconds / 2).max(Duration::from_millis(1))),
    }
}

fn send(state: &[(&str, &str)]) {
    if let Err(error) = daemon::notify(state.iter()) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}
