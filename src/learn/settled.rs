//! Whether there is still something new to learn: who and what appeared for the first time, hour by hour.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Options;
use super::gather::Gathered;
use super::ground::Ground;
use super::peers::Names;
use super::triage::{Apart, Fate, Judged, triage};
use crate::net::interface::Direction;
use crate::net::protocol::Protocol;
use crate::traffic::Service;

/// An hour, in microseconds.
const HOUR: u64 = 3600 * 1_000_000;

/// What was new in an hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Peers that were not seen before.
    pub peers: usize,
    /// Services of this host that nobody had asked for before; ephemeral ports count as one.
    pub services: usize,
}

/// Peers and services of this host that appeared, by hour since the first record, quiet hours too; at most 168 of them. Scans and
/// what nobody answered do not count.
pub fn news(gathered: &Gathered, ground: &Ground<'_>) -> Vec<News> {
    let Some((first, last)) = gathered.first.zip(gathered.last) else { return Vec::new() };
    let mut peers: BTreeMap<IpAddr, u64> = BTreeMap::new();
    let mut services: BTreeMap<(Option<Protocol>, Option<Service>), u64> = BTreeMap::new();
    let names = Names::new(ground.policy, ground.facts);
    for Judged { flow, seen, fate, .. } in triage(gathered, ground, &names, &Options::default()) {
        // Strangers who knock at closed doors come every hour.
        let knocks = matches!(fate, Fate::Apart(Apart::Scan | Apart::Flood | Apart::Unanswered | Apart::Denied));
        if knocks || flow.direction != Direction::Ingress || seen.connections == 0 {
            continue;
        }
        if let Some(peer) = flow.peer {
            let at = peers.entry(peer).or_insert(seen.first);
            *at = (*at).min(seen.first);
        }
        let moves = matches!(flow.service, Service::Port(port) if ground.ephemeral.contains(port));
        let service = (flow.protocol, (!moves).then_some(flow.service));
        let at = services.entry(service).or_insert(seen.first);
        *at = (*at).min(seen.first);
    }
    let hour = |at: u64| usize::try_from(at.saturating_sub(first) / HOUR).unwrap_or(usize::MAX);
    let mut hours = vec![News::default(); hour(last).min(167) + 1];
    for at in peers.values() {
        if let Some(news) = hours.get_mut(hour(*at)) {
            news.peers += 1;
        }
    }
    for at in services.values() {
        if let Some(news) = hours.get_mut(hour(*at)) {
            news.services += 1;
        }
    }
    hours
}

/// How many hours without news make it settled.
pub const QUIET: usize = 4;

/// Whether the last [`QUIET`] hours brought nothing new.
pub fn is_settled(hours: &[News]) -> bool {
    hours.len() > QUIET && hours.iter().rev().take(QUIET).all(|news| *news == News::default())
}

/// How many peers and services of this host there are in all.
pub fn totals(hours: &[News]) -> (usize, usize) {
    hours.iter().fold((0, 0), |(peers, services), news| (peers + news.peers, services + news.services))
}

/// The peers that are in any flow, whoever began.
pub fn peers(gathered: &Gathered) -> usize {
    gathered.flows().keys().filter_map(|flow| flow.peer).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::super::triage::tests::record;
    use super::*;
    use crate::net::facts::Facts;
    use crate::policy::model::Policy;

    #[test]
    fn what_is_new_is_counted_in_the_hour_in_which_it_came() {
        let (policy, facts) = (Policy::with_builtin_tiers(), Facts::default());
        let settings = crate::learn::draft::tests::settings();
        let ground = Ground::new(&policy, &settings, &facts);
        let mut gathered = Gathered::default();
        for (peer, port, hour) in [
            ("10.0.0.1", 22, 0),
            ("10.0.0.2", 22, 0),
            ("10.0.0.1", 22, 5),
            ("10.0.0.3", 9100, 2),
            ("10.0.0.3", 40_001, 2),
            ("10.0.0.3", 40_002, 3),
        ] {
            let mut record = record(peer, port, 1);
            (record.first, record.last) = (hour * HOUR, hour * HOUR + 1);
            gathered.push(&record);
        }
        let hours = news(&gathered, &ground);
        let of = |peers, services| News { peers, services };
        assert_eq!(hours, [of(2, 1), of(0, 0), of(1, 2), of(0, 0), of(0, 0), of(0, 0)]);
        assert_eq!(totals(&hours), (3, 3));
        assert!(!is_settled(&hours));
        assert!(is_settled(&[hours.as_slice(), &[News::default()]].concat()));
        assert!(!is_settled(&hours[3..]));
    }
}
