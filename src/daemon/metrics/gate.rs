//! How many peers get in: never more than so many at once, nor in a second, and no address takes the place of all others. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Connections at once.
const AT_ONCE: usize = 32;
/// Connections at once from one address. All who may open the unix socket count as one more address.
const AT_ONCE_OF_ONE: usize = 8;
/// New connections in a second: a TLS handshake is about a millisecond of a core.
const IN_A_SECOND: usize = 100;
/// New connections in a second from one address.
const IN_A_SECOND_OF_ONE: usize = 20;
const SECOND: Duration = Duration::from_secs(1);

/// Who is inside, and who came in this second.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Gate {
    inside: BTreeMap<Option<IpAddr>, usize>,
    since: Option<Instant>,
    came: BTreeMap<Option<IpAddr>, usize>,
}

impl Gate {
    /// One more wants in: `None` by the unix socket. Who gets in has to [`Self::leave`].
    pub(super) fn enter(&mut self, peer: Option<IpAddr>, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            (self.since, self.came) = (Some(now), BTreeMap::new());
        }
        let of = |all: &BTreeMap<Option<IpAddr>, usize>| all.get(&peer).copied().unwrap_or_default();
        let room = of(&self.inside) < AT_ONCE_OF_ONE
            && of(&self.came) < IN_A_SECOND_OF_ONE
            && self.inside.values().sum::<usize>() < AT_ONCE
            && self.came.values().sum::<usize>() < IN_A_SECOND;
        if room {
            *self.inside.entry(peer).or_default() += 1;
            *self.came.entry(peer).or_default() += 1;
        }
        room
    }

    /// One of this address is gone.
    pub(super) fn leave(&mut self, peer: Option<IpAddr>) {
        if let Some(count) = self.inside.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.inside.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn one_address_does_not_take_the_place_of_others() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        let got_in = (0..50).filter(|_| gate.enter(address(1), start)).count();
        assert_eq!(got_in, AT_ONCE_OF_ONE);
        assert!(gate.enter(address(2), start) && gate.enter(None, start));
        // What comes and goes is limited by the second.
        for _ in 0..50 {
            gate.leave(address(1));
            gate.enter(address(1), start);
        }
        assert_eq!(gate.came.get(&address(1)), Some(&IN_A_SECOND_OF_ONE));
        assert!(gate.enter(address(3), start));
        gate.leave(address(1));
        assert!(gate.enter(address(1), start + SECOND));
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        let got_in = (0..200).filter(|last| gate.enter(address(*last), start)).count();
        assert_eq!(got_in, AT_ONCE);
        (0..200).for_each(|last| gate.leave(address(last)));
        assert_eq!(gate.inside.len(), 0);
    }
}
