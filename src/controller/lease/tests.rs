//! Elections: by hand, and by chance with clocks that differ, servers that fail and candidates that hang.
#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Election {
    fn leads(&self, now: Duration) -> bool {
        self.left(now).is_some()
    }
}

/// A Lease on a server. All clocks stand still, as they do not matter.
#[derive(Default)]
struct Server {
    lease: Option<Record>,
    version: u64,
}

impl Server {
    /// Does what a candidate wants; the answer is there `later`.
    fn serve(&mut self, candidate: &mut Election, now: Duration, later: Duration) {
        match candidate.step(now, "2026-11-26T05:00:00.000000Z") {
            Step::Read => {
                let found = self.lease.clone().map(|record| (self.version.to_string(), record));
                candidate.read(found, now + later);
            }
            Step::Create(record) if self.lease.is_none() => self.store(candidate, record, now),
            Step::Replace(version, record) if self.lease.is_some() && version == self.version.to_string() => {
                self.store(candidate, record, now);
            }
            Step::Create(_) | Step::Replace(..) => candidate.failed(now),
            Step::Wait(_) => {}
        }
    }

    fn store(&mut self, candidate: &mut Election, record: Record, sent: Duration) {
        self.version += 1;
        self.lease = Some(record.clone());
        candidate.wrote(self.version.to_string(), record, sent);
    }
}

#[test]
fn the_first_one_makes_the_lease_and_renews_it_every_five_seconds() {
    let (mut server, mut a) = (Server::default(), Election::new("a".to_owned()));
    assert_eq!(a.step(s(100), "t"), Step::Read);
    server.serve(&mut a, s(100), s(0));
    assert!(!a.leads(s(100)));
    server.serve(&mut a, s(100), s(0));
    assert!(a.leads(s(100)) && a.leads(s(109)) && !a.leads(s(110)));
    assert_eq!(a.step(s(101), "t"), Step::Wait(s(4)));
    server.serve(&mut a, s(105), s(0));
    assert_eq!((a.left(s(105)), server.version), (Some(s(10)), 2));
    let record = server.lease.clone().unwrap();
    assert_eq!((record.holder.as_str(), record.seconds, record.transitions), ("a", 15, 0));
}

#[test]
fn another_takes_over_fifteen_seconds_after_it_saw_the_last_sign_whatever_the_clocks_of_the_record_say() {
    let mut server = Server::default();
    let record =
        Record { holder: "a".to_owned(), seconds: 15, renewed: "1970-01-01T00:00:00Z".to_owned(), ..Record::default() };
    server.lease = Some(record);
    let mut b = Election::new("b".to_owned());
    server.serve(&mut b, s(1000), s(0));
    assert_eq!(b.step(s(1000), "t"), Step::Wait(LOOK));
    for now in 1001..1015 {
        server.serve(&mut b, s(now), s(0));
        assert!(!b.leads(s(now)), "{now}");
    }
    for now in 1015..1018 {
        server.serve(&mut b, s(now), s(0));
    }
    assert!(b.leads(s(1018)));
    assert_eq!(server.lease.unwrap().transitions, 1);
}

#[test]
fn one_that_is_released_is_taken_at_once() {
    let (mut server, mut a, mut b) = (Server::default(), Election::new("a".to_owned()), Election::new("b".to_owned()));
    for _ in 0..2 {
        server.serve(&mut a, s(10), s(0));
    }
    server.serve(&mut b, s(11), s(0));
    assert_eq!(b.release("t"), None);
    let (version, record) = a.release("t").unwrap();
    assert_eq!(version, server.version.to_string());
    server.store(&mut a, record, s(12));
    assert!(!a.leads(s(12)));
    for now in [13, 14, 14] {
        server.serve(&mut b, s(now), s(0));
    }
    assert!(b.leads(s(14)));
}

#[test]
fn one_that_cannot_renew_stops_before_another_may_begin_and_goes_on_when_nobody_did() {
    let (mut server, mut a) = (Server::default(), Election::new("a".to_owned()));
    for _ in 0..2 {
        server.serve(&mut a, s(10), s(0));
    }
    for now in 15..20 {
        a.failed(s(now));
        assert!(a.leads(s(now)));
    }
    assert!(!a.leads(s(20)));
    for now in [21, 22] {
        server.serve(&mut a, s(now), s(0));
    }
    assert!(a.leads(s(22)), "the record is ours still");
}

proptest! {
    /// Three candidates, each with a clock of its own, served in any order, with failures, hangs and slow answers: never do two work.
    #[test]
    fn never_do_two_work_at_once(
        offsets in prop::array::uniform3(1_u64..1_000_000),
        turns in prop::collection::vec((0_usize..3, 0_u64..4000, 0_u8..10, 0_u64..3000), 50..400),
    ) {
        let mut server = Server::default();
        let mut all: Vec<Election> = ["a", "b", "c"].map(|name| Election::new(name.to_owned())).into();
        let mut now = 0_u64;
        for (who, pause, luck, later) in turns {
            now += pause;
            let own = |index: usize| Duration::from_millis(now + offsets[index] * 1000);
            match luck {
                0 => all[who].failed(own(who)),
                // It got there, and the answer did not.
                1 => {
                    let mut shadow = all[who].clone();
                    server.serve(&mut shadow, own(who), Duration::ZERO);
                    all[who].failed(own(who));
                }
                _ => server.serve(&mut all[who], own(who), Duration::from_millis(later)),
            }
            let leaders = (0..3).filter(|index| all[*index].leads(own(*index))).count();
            prop_assert!(leaders <= 1, "{all:#?}");
        }
    }
}
