//! Wakes the loop at a time of the wall clock, and when that clock is set (timerfd_create(2)). The loop's other timers do not count
//! the time that a host is suspended, and know nothing of a clock that jumps.

use std::future;
use std::io;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::sync::mpsc;

use super::clock;

/// One time to wake at.
#[derive(Default)]
pub(super) struct Alarm {
    timer: Option<Timer>,
    /// When it rings, in seconds since 1970-01-01 UTC.
    at: Option<u64>,
    /// Whether the clock was set when nobody waited.
    clock_was_set: bool,
}

/// The kernel's timer with the thread that waits for it, for want of a safe way to have tokio wait for a descriptor.
struct Timer {
    timer: Arc<TimerFd>,
    rung: mpsc::Receiver<()>,
}

impl Timer {
    fn start() -> io::Result<Self> {
        let timer = Arc::new(TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?);
        let (sender, rung) = mpsc::channel(1);
        let waiting = Arc::clone(&timer);
        thread::Builder::new().name("alarm".to_owned()).spawn(move || {
            // Comes back too when the clock was set (`ECANCELED`), which is as good as a time that has come.
            while waiting.wait().is_ok() && sender.blocking_send(()).is_ok() {}
        })?;
        Ok(Self { timer, rung })
    }
}

impl Alarm {
    /// Rings at this time, in seconds since 1970-01-01 UTC, and at no earlier one that was set before; at once when it is over.
    pub(super) fn set(&mut self, at: Option<u64>) {
        self.at = at;
        if self.timer.is_none() && at.is_some() {
            self.timer = Timer::start()
                .inspect_err(|error| tracing::error!("cannot wait for the end of policies: {error}"))
                .ok();
        }
        let Some(Timer { timer, .. }) = &self.timer else { return };
        let set = match at {
            None => timer.unset(),
            Some(at) => {
                // A time of 0 would switch it off.
                let time = TimeSpec::new(i64::try_from(at).unwrap_or(i64::MAX).max(1), 0);
                let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
                timer.set(Expiration::OneShot(time), flags)
            }
        };
        match set {
            Ok(()) => {}
            // It is set all the same, and the clock was, too, since the last look.
            Err(Errno::ECANCELED) => self.clock_was_set = true,
            Err(error) => tracing::error!("cannot wait for the end of a policy: {error}"),
        }
    }

    /// Waits until it is time, or until somebody set the clock. May wake once too often, never once too seldom.
    pub(super) async fn rings(&mut self) {
        if std::mem::take(&mut self.clock_was_set) {
            return;
        }
        let rung = match &mut self.timer {
            Some(timer) => timer.rung.recv().await,
            None => None,
        };
        if rung.is_none() {
            return future::pending().await;
        }
        // The clock went back, or it rang for a time that was called off.
        if self.at.is_some_and(|at| at > clock::now()) {
            self.set(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn rings_within(alarm: &mut Alarm, limit: Duration) -> bool {
        timeout(limit, alarm.rings()).await.is_ok()
    }

    const SOON: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_rings_at_its_time_and_once() {
        let mut alarm = Alarm::default();
        assert!(!rings_within(&mut alarm, SOON).await, "never");
        let at = clock::now() + 2;
        alarm.set(Some(at));
        assert!(!rings_within(&mut alarm, SOON).await, "not yet");
        assert!(rings_within(&mut alarm, PATIENCE).await);
        assert!(clock::now() >= at, "not too early");
        assert!(!rings_within(&mut alarm, SOON).await, "once");
    }

    #[tokio::test]
    async fn a_time_that_is_over_is_now_and_a_far_one_is_never() {
        let mut alarm = Alarm::default();
        for over in [0, 1, clock::now() - 1] {
            alarm.set(Some(over));
            assert!(rings_within(&mut alarm, PATIENCE).await, "{over}");
        }
        for far in [clock::now() + 3600, 253_402_300_799, u64::MAX] {
            alarm.set(Some(far));
            assert!(!rings_within(&mut alarm, SOON).await, "{far}");
        }
        alarm.set(None);
        assert!(!rings_within(&mut alarm, SOON).await, "called off");
        alarm.set(Some(clock::now() + 1));
        assert!(rings_within(&mut alarm, PATIENCE).await, "set again");
    }
}
