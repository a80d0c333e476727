//! The store of flows on a real disk: its bounds, kill -9, copies as a power cut leaves them, a full disk, readers beside the writer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::dice::Dice;
use lab::{isolated, may_run, sh};
use nix::sched::{CloneFlags, unshare};
use nodewall::flow::store::{Error, FILE, Limits, Reader, Store};
use nodewall::net::interface::{Direction, InterfaceName, Role};
use nodewall::net::protocol::Protocol;
use nodewall::policy::effective::RuleId;
use nodewall::traffic::{Decider, Key, PeerName, Record, Service, Verdict};

const MIB: u64 = 1024 * 1024;
const NOW: u64 = 1_795_468_194_000_000;
const WINDOW: u64 = 10_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Set for the process that writes until it is killed.
const WRITER: &str = "NODEWALL_TEST_FLOW_WRITER";

fn limits(mib: u64) -> Limits {
    Limits { keep: DAY, bytes: mib * MIB }
}

fn record(number: u32, time: u64, place: &str) -> Record {
    Record {
        key: Key {
            direction: Direction::Ingress,
            interface: InterfaceName::new("eth0"),
            role: Some(Role::Mgmt),
            peer: Some(Ipv4Addr::from(number).into()),
            protocol: Some(Protocol::TCP),
            service: Service::Port(22),
            verdict: Verdict::Denied,
            decider: Decider::Rule(RuleId { policy: "ssh".into(), number: 2 }),
        },
        local: Some(Ipv4Addr::new(10, 0, 0, 1).into()),
        names: [PeerName::Set("office".into())].into(),
        tier: Some("default".to_owned()),
        place: Some(place.to_owned()),
        actors: BTreeSet::new(),
        connections: 3,
        packets: Some(6),
        bytes: Some(4000),
        first: time - 1_000_000,
        last: time,
    }
}

fn records(from: u32, count: u32, time: u64) -> Vec<Record> {
    (from..from + count).map(|number| record(number, time, "10-ssh.toml:7")).collect()
}

/// What database and log take on disk.
fn on_disk(directory: &Path) -> u64 {
    let length = |suffix: &str| fs::metadata(directory.join(format!("{FILE}{suffix}"))).map_or(0, |found| found.len());
    length("") + length("-wal") + length("-shm")
}

/// The peers that are in the store, and how many rows are damaged.
fn peers(directory: &Path) -> Result<(Vec<u32>, u64), Error> {
    let mut peers = Vec::new();
    let scan = Reader::open(directory)?.records(0, u64::MAX, &mut |record| {
        let Some(std::net::IpAddr::V4(peer)) = record.key.peer else { panic!("{record:?}") };
        peers.push(peer.to_bits());
        ControlFlow::Continue(())
    })?;
    Ok((peers, scan.damaged))
}

#[test]
fn the_bound_on_disk_holds_at_every_moment_and_the_newest_records_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits(4)).unwrap();
    let mut dice = Dice::from_environment(7);
    let (mut number, mut time, mut most) = (0, NOW, 0);
    for round in 0..120 {
        let count = if round % 10 == 9 { 8000 } else { 200 + u32::try_from(dice.below(1500)).unwrap() };
        time += WINDOW;
        let mut all = records(number, count, time);
        // Some rounds bring a string for each record.
        if round % 7 == 3 {
            for (at, record) in all.iter_mut().enumerate() {
                record.place = Some(format!("{round}-{at}.toml:{at}"));
            }
        }
        let written = store.write(&all, time).unwrap();
        assert_eq!((written.stored, written.left_out), (u64::from(count), 0), "round {round}");
        number += count;
        most = most.max(on_disk(folder.path()));
        assert!(most <= 4 * MIB, "round {round}: {most} bytes");
    }
    let (found, damaged) = peers(folder.path()).unwrap();
    assert_eq!(damaged, 0);
    assert_eq!(found.last(), Some(&(number - 1)));
    assert!(found.is_sorted() && found.len() == (number - found[0]) as usize, "what goes is the oldest");
    assert!(found.len() > 15_000 && most > 5 * MIB / 2, "{} records in {most} bytes", found.len());
    let seen = Reader::open(folder.path()).unwrap().seen(0, u64::MAX).unwrap();
    assert!(seen.since() > Some(NOW + 20 * WINDOW), "what went was not seen");

    // A smaller bound holds from the first write on.
    drop(store);
    let mut store = Store::open(folder.path(), limits(2)).unwrap();
    store.write(&records(number, 10, time), time).unwrap();
    assert!(on_disk(folder.path()) <= 2 * MIB, "{} bytes", on_disk(folder.path()));
    let (found, _) = peers(folder.path()).unwrap();
    assert_eq!(found.last(), Some(&(number + 9)));
    assert!(found.len() > 5000, "{}", found.len());
}

#[test]
fn a_record_takes_less_than_a_hundred_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits(64)).unwrap();
    for round in 0..20 {
        store
            .write(&records(round * 5000, 5000, NOW + u64::from(round) * WINDOW), NOW + u64::from(round) * WINDOW)
            .unwrap();
    }
    drop(store);
    let each = fs::metadata(folder.path().join(FILE)).unwrap().len() as f64 / 100_000.0;
    println!("{each:.1} bytes for each record");
    assert!(each < 100.0, "{each}");
}

#[test]
fn a_reader_that_never_goes_costs_records_and_not_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits(4)).unwrap();
    store.write(&records(0, 1000, NOW), NOW).unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let (mut time, mut number, mut left_out) = (NOW, 1000, 0);
    let mut during = 0;
    reader
        .records(0, u64::MAX, &mut |_| {
            if during == 0 {
                for _ in 0..60 {
                    time += WINDOW;
                    left_out += store.write(&records(number, 1000, time), time).unwrap().left_out;
                    number += 1000;
                    assert!(on_disk(folder.path()) <= 4 * MIB, "{} bytes", on_disk(folder.path()));
                }
            }
            during += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(during, 1000, "what it reads is as it was when it began");
    assert!(left_out > 0, "the log was full at some time");
    // Now that it is gone, all goes on.
    time += WINDOW;
    assert_eq!(store.write(&records(number, 1000, time), time).unwrap().left_out, 0);
    let seen = reader.seen(0, u64::MAX).unwrap();
    assert_eq!(seen.left_out, left_out, "and what was left out is told");
    assert_eq!(peers(folder.path()).unwrap().0.last(), Some(&(number + 999)));
}

/// Not a test of its own: the process that the next one kills.
#[test]
fn writer_that_is_killed() {
    let Some(directory) = std::env::var_os(WRITER).map(PathBuf::from) else { return };
    let mut store = Store::open(&directory, limits(2)).unwrap();
    let mut number = peers(&directory).ok().and_then(|(found, _)| found.last().copied()).map_or(0, |last| last + 1);
    for round in 0.. {
        let time = NOW + round * WINDOW;
        let written = store.write(&records(number, 700, time), time).unwrap();
        assert_eq!(written.left_out, 0);
        number += 700;
        println!("\nwritten {number}");
    }
}

#[test]
fn after_kill_9_at_any_time_every_finished_write_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut dice = Dice::from_environment(11);
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_that_is_killed", "--nocapture"])
            .env(WRITER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let written = |line: &str| line.strip_prefix("written ").map(|number| number.parse::<u32>().unwrap());
        let writes = 1 + dice.below(12);
        let mut finished = 0;
        for _ in 0..writes {
            finished = lines.by_ref().find_map(|line| written(&line.unwrap())).unwrap();
        }
        std::thread::sleep(Duration::from_micros(dice.below(20_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it told of before it died counts, too.
        finished = lines.filter_map(|line| written(&line.unwrap())).last().unwrap_or(finished);
        let (found, damaged) = peers(folder.path()).unwrap();
        assert_eq!(damaged, 0, "round {round}");
        assert!(found.last().is_some_and(|last| *last + 1 >= finished), "round {round}: {:?} {finished}", found.last());
        assert!(found.len() == (found.last().unwrap() + 1 - found[0]) as usize, "round {round}: a hole");
        assert!(found.len().is_multiple_of(700) || found[0] > 0, "round {round}: half a write");
    }
}

#[test]
fn a_copy_of_database_and_log_from_any_moment_opens() {
    let folder = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits(2)).unwrap();
    for round in 0..40u32 {
        let time = NOW + u64::from(round) * WINDOW;
        // A reader keeps what is written in the log now and then, so that there is something to recover.
        let reader = Reader::open(folder.path()).unwrap();
        let number = round * 900;
        if round % 3 == 1 {
            reader
                .records(0, u64::MAX, &mut |_| {
                    store.write(&records(number, 900, time), time).unwrap();
                    ControlFlow::Break(())
                })
                .unwrap();
        } else {
            store.write(&records(number, 900, time), time).unwrap();
        }
        drop(reader);
        for suffix in ["", "-wal"] {
            fs::copy(folder.path().join(format!("{FILE}{suffix}")), copy.path().join(format!("{FILE}{suffix}")))
                .unwrap();
        }
        let _ = fs::remove_file(copy.path().join(format!("{FILE}-shm")));
        // The last bytes of the log did not reach the medium.
        if round % 2 == 1 {
            let log = fs::OpenOptions::new().write(true).open(copy.path().join(format!("{FILE}-wal"))).unwrap();
            let length = log.metadata().unwrap().len();
            log.set_len(length.saturating_sub(u64::from(round) * 100)).unwrap();
        }
        let (found, damaged) = peers(copy.path()).unwrap();
        assert_eq!(damaged, 0);
        assert!(found.len() == (found.last().unwrap() + 1 - found[0]) as usize);
        if round % 2 == 0 {
            assert_eq!(found.last(), Some(&(number + 899)));
        }
        let mut again = Store::open(copy.path(), limits(2)).unwrap();
        assert_eq!(again.write(&records(number + 900, 5, time), time).unwrap().stored, 5);
        assert_eq!(again.told(), Vec::<String>::new());
    }
}

fn without_log(path: &Path) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

#[test]
fn a_store_that_is_damaged_or_of_another_version_is_set_aside_and_a_new_one_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let mut dice = Dice::from_environment(3);
    let fresh = || {
        let mut store = Store::open(folder.path(), limits(4)).unwrap();
        store.write(&records(0, 3000, NOW), NOW).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 3] = [
        ("not a database", &|| {
            without_log(&path);
            fs::write(&path, vec![b'x'; 50_000]).unwrap();
        }),
        ("of version 99", &|| {
            rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
        }),
        ("not a store", &|| {
            rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA application_id = 5").unwrap();
        }),
    ];
    for (why, damage) in damages {
        fresh();
        damage();
        assert!(peers(folder.path()).is_err(), "{why}");
        let mut store = Store::open(folder.path(), limits(4)).unwrap();
        let told = store.told();
        assert!(told.len() == 1 && told[0].contains(why), "{why}: {told:?}");
        assert!(folder.path().join(format!("{FILE}.aside")).exists());
        assert_eq!(store.write(&records(0, 10, NOW), NOW).unwrap().stored, 10);
        assert_eq!(peers(folder.path()).unwrap().0.len(), 10);
    }
    // Garbled and truncated anywhere: never a panic, and writing goes on, in a new store if need be.
    for round in 0..40 {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(folder.path().join(format!("{FILE}{suffix}")));
        }
        fresh();
        // The log has the last pages, and would mend them.
        if round % 3 > 0 {
            without_log(&path);
        }
        let mut bytes = fs::read(&path).unwrap();
        if round % 4 == 0 {
            bytes.truncate(usize::try_from(dice.below(bytes.len() as u64)).unwrap());
        } else {
            for _ in 0..1 + dice.below(30) {
                let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= 1 << dice.below(8);
            }
        }
        fs::write(&path, bytes).unwrap();
        let read = peers(folder.path());
        assert!(read.is_err() || read.unwrap().0.len() <= 3000);
        let mut store = Store::open(folder.path(), limits(4)).unwrap();
        let done: Vec<_> = (1..=3).map(|step| store.write(&records(5000, 2000, NOW + step), NOW + step)).collect();
        let stored: u64 = done.iter().flatten().map(|done| done.stored).sum();
        assert!(stored > 0, "round {round}: {done:?}");
    }
}

#[test]
fn on_a_full_or_read_only_disk_writing_fails_and_goes_on_when_it_can() {
    isolated("flows on a full disk", || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate /");
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display().to_string();
        sh(&format!("mount -t tmpfs -o size=1m tmpfs {at}"));
        let mut store = Store::open(folder.path(), limits(8)).unwrap();
        store.write(&records(0, 1000, NOW), NOW).unwrap();
        sh(&format!("head -c 2M /dev/zero > {at}/filler 2>/dev/null || true"));
        let mut failed = 0;
        for round in 1..30u32 {
            let time = NOW + u64::from(round) * WINDOW;
            failed += u64::from(store.write(&records(round * 1000, 1000, time), time).is_err());
        }
        assert!(failed > 10, "{failed}");
        let (found, damaged) = peers(folder.path()).unwrap();
        assert!(damaged == 0 && found[0] == 0, "a full disk takes nothing from what is there");
        fs::remove_file(folder.path().join("filler")).unwrap();
        let time = NOW + 31 * WINDOW;
        assert_eq!(store.write(&records(31_000, 1000, time), time).unwrap().stored, 1000);
        let seen = Reader::open(folder.path()).unwrap().seen(0, u64::MAX).unwrap();
        assert_eq!(seen.left_out, failed * 1000);

        drop(store);
        sh(&format!("mount -o remount,ro {at}"));
        assert!(Store::open(folder.path(), limits(8)).is_err());
        assert_eq!(peers(folder.path()).unwrap().0.last(), Some(&31_999), "reading needs no writing");
        sh(&format!("mount -o remount,rw {at}"));
        let mut store = Store::open(folder.path(), limits(8)).unwrap();
        assert_eq!(store.told(), Vec::<String>::new());
        assert_eq!(store.write(&records(32_000, 10, time), time).unwrap().stored, 10);
        drop(store);
        sh(&format!("umount -l {at}"));
    });
}

#[test]
fn a_store_that_somebody_removed_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path(), limits(4)).unwrap();
    store.write(&records(0, 10, NOW), NOW).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    store.write(&records(10, 10, NOW), NOW).unwrap();
    assert_eq!(peers(folder.path()).unwrap().0, (10..20).collect::<Vec<_>>());
    assert!(matches!(Reader::open(&folder.path().join("none")), Err(Error::Missing { .. })));
}

/// Not a test of its own: a process without rights that reads.
#[test]
fn reader_without_rights() {
    let Some(directory) = std::env::var_os(WRITER).map(PathBuf::from) else { return };
    println!(
        "\nfound {:?}",
        peers(&directory).map(|(found, damaged)| (found.len(), damaged)).map_err(|error| error.to_string())
    );
}

#[test]
fn a_member_of_the_group_may_read_with_and_without_a_writer_and_nobody_else() {
    if !may_run("flows for readers") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("reader");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let directory = folder.path().join("flows");
    let mut store = Store::open(&directory, limits(4)).unwrap();
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o7777, 0o750);
    store.write(&records(0, 100, NOW), NOW).unwrap();
    let group = 54_321;
    sh(&format!("chgrp -R {group} {}", directory.display()));
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(fs::metadata(directory.join(format!("{FILE}{suffix}"))).unwrap().mode() & 0o777, 0o640, "{suffix}");
    }
    let read = |group: u32| {
        let output = Command::new(&program)
            .args(["--exact", "reader_without_rights", "--nocapture"])
            .env(WRITER, &directory)
            .current_dir("/")
            .uid(54_322)
            .gid(group)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("found ")).unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(read(group), "Ok((100, 0))", "beside the writer");
    assert!(read(54_322).contains("Permission denied"));
    drop(store);
    assert_eq!(read(group), "Ok((100, 0))", "after the writer");
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(directory.join(format!("{FILE}{suffix}"))).unwrap();
    }
    assert_eq!(read(group), "Ok((100, 0))", "where nobody left a log");
}
