//! Who on this host has the sockets of what goes on: asked of the kernel, but never more often than it may cost.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::traffic::Actor;

/// For how long an answer about a service of this host holds.
const HOLDS_MICROS: u64 = 2_000_000;
/// How many answers are remembered.
const REMEMBERED: usize = 4096;
/// How many questions there may be at once, and how many more in each second.
const BURST: u64 = 2000;
const A_SECOND: u64 = 500;

/// Asks who has the socket of local address and port to a remote address and port.
pub(super) type Ask<'a> = dyn FnMut(Protocol, (IpAddr, u16), (IpAddr, u16)) -> Option<Actor> + 'a;

/// What is known of who has sockets.
#[derive(Debug, Default)]
pub(super) struct People {
    services: BTreeMap<(Protocol, IpAddr, u16), (u64, Option<Actor>)>,
    /// Questions that may be asked, in millionths.
    left: u64,
    since: Option<u64>,
}

impl People {
    /// Who has the socket on this host of a packet, or of a connection that begins, `from` one end `to` the other; `now` in
    /// microseconds.
    pub(super) fn of(
        &mut self,
        direction: Direction,
        protocol: Protocol,
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        now: u64,
        ask: &mut Ask<'_>,
    ) -> Option<Actor> {
        if direction == Direction::Egress {
            return self.may_ask(now).then(|| ask(protocol, from, to))?;
        }
        // Whoever calls, the service is the same.
        let key = (protocol, to.0, to.1);
        if let Some((until, known)) = self.services.get(&key)
            && now < *until
        {
            return known.clone();
        }
        if !self.may_ask(now) {
            return None;
        }
        let actor = ask(protocol, to, from);
        if self.services.len() >= REMEMBERED {
            self.services.clear();
        }
        self.services.insert(key, (now.saturating_add(HOLDS_MICROS), actor.clone()));
        actor
    }

    /// Whether one more question may be asked.
    fn may_ask(&mut self, now: u64) -> bool {
        const ONE: u64 = 1_000_000;
        let gained = match self.since {
            None => BURST * ONE,
            Some(since) => now.saturating_sub(since).saturating_mul(A_SECOND),
        };
        self.left = self.left.saturating_add(gained).min(BURST * ONE);
        self.since = Some(self.since.map_or(now, |since| since.max(now)));
        let may = self.left >= ONE;
        self.left -= if may { ONE } else { 0 };
        may
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn questions_have_a_measure() {
        let mut people = People::default();
        let asked = (0..5000).filter(|_| people.may_ask(7)).count();
        assert_eq!(asked as u64, BURST);
        let asked = (0..5000).filter(|_| people.may_ask(1_000_007)).count();
        assert_eq!(asked as u64, A_SECOND);
        assert!(!people.may_ask(3), "a clock that goes back gives nothing");
    }
}
