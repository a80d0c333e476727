//! Requests, generations and records with damage: reading them ends, in what they say or in a reason; and peers of the control socket
//! that mean no good keep nobody else waiting.
//!
//! `NODEWALL_SEED=N` repeats a run; it is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lab::daemon::{Node, management_link, policy};
use lab::dice::Dice;
use lab::isolated;
use nodewall::daemon::socket::{Asked, What, parse};
use nodewall::reconcile::{Emergency, Pending, Pin, Record, Term};
use nodewall::store::{Generation, decode, decode_record, encode, encode_record};
use serde_json::Value;
use sha2::{Digest, Sha256};

const SEED: u64 = 20_261_123;

const REQUESTS: [&str; 8] = [
    r#"{"version":1,"request":"status"}"#,
    r#"{"version":1,"request":"reload"}"#,
    r#"{"version":1,"request":"apply","seconds":120,"paths":["/a","/b/c"]}"#,
    r#"{"version":1,"request":"confirm"}"#,
    r#"{"version":1,"request":"rollback","generation":3}"#,
    r#"{"version":1,"request":"panic","on":true,"reason":"worm"}"#,
    r#"{"version":1,"request":"break-glass","seconds":60,"reason":"console"}"#,
    r#"{"version":1,"request":"break-glass"}"#,
];

#[test]
fn a_damaged_request_is_refused_or_means_what_it_says() {
    let mut dice = Dice::from_environment(SEED);
    let (mut fine, mut refused) = (0, 0);
    for round in 0..40_000 {
        let line = dice.damage(REQUESTS[round % REQUESTS.len()].as_bytes());
        match parse(&line) {
            Ok(asked) => {
                fine += 1;
                check(&asked, &line);
            }
            Err(refusal) => {
                refused += 1;
                assert_eq!(refusal.code, "bad-request");
                assert!(
                    refusal.message.chars().count() <= 200 && !refusal.message.contains(char::is_control),
                    "{refusal:?}"
                );
            }
        }
    }
    println!("{fine} read, {refused} refused");
    assert!(fine > 500 && refused > 10_000, "{fine} read, {refused} refused");
    for line in
        ["[".repeat(60_000), format!("{{\"version\":1,\"request\":\"{}\"}}", "\u{1b}[2J".repeat(9000)), "\0".repeat(9)]
    {
        assert!(parse(line.as_bytes()).unwrap_err().message.len() < 1000);
    }
}

/// Nothing is ordered that the daemon could not do.
fn check(asked: &Asked, line: &[u8]) {
    let text = String::from_utf8_lossy(line);
    let week = Duration::from_secs(7 * 24 * 3600);
    let in_a_week = |time: &Duration| (Duration::from_secs(1)..=week).contains(time);
    let one_line = |reason: &String| reason.len() <= 500 && !reason.contains(char::is_control);
    let fits = match asked {
        Asked::Status | Asked::Watch | Asked::Reload | Asked::Order(What::Confirm | What::Rollback(_)) => true,
        Asked::Order(What::Apply { confirm, paths }) => {
            in_a_week(&confirm.time()) && paths.iter().all(|path| path.is_absolute())
        }
        Asked::Order(What::Panic { reason, .. }) => one_line(reason),
        Asked::Order(What::BreakGlass { time: Some(time), reason }) => {
            in_a_week(time) && one_line(reason) && !reason.is_empty()
        }
        Asked::Order(What::BreakGlass { time: None, reason }) => one_line(reason),
    };
    assert!(fits, "{asked:?} from {text}");
}

fn generation() -> Generation {
    Generation {
        number: 7,
        time: "2026-11-23T20:00:00Z".to_owned(),
        source: "files".to_owned(),
        hash: "ab".repeat(32),
        policy: [("a.toml".to_owned(), "x = 1\n".to_owned()), ("b.toml".to_owned(), "é\n".to_owned())].into(),
        settings: "mode = \"audit\"\n".to_owned(),
        batch: (0..=255).collect(),
    }
}

#[test]
fn a_damaged_generation_is_never_half_read() {
    let mut dice = Dice::from_environment(SEED);
    let good = encode(&generation());
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let damaged = dice.damage(&good);
        assert!(damaged == good || decode(&damaged).is_err(), "the checksum does not see it");
        // With a checksum that is right again, what is read is as it would be written.
        let mut signed = dice.damage(&good[..good.len() - 32]);
        let checksum = Sha256::digest(&signed);
        signed.extend_from_slice(&checksum);
        match decode(&signed) {
            Ok(read) => {
                fine += 1;
                assert_eq!(decode(&encode(&read)).unwrap(), read);
            }
            Err(_) => refused += 1,
        }
    }
    println!("{fine} read, {refused} refused");
    assert!(fine > 500 && refused > 500, "{fine} read, {refused} refused");
}

#[test]
fn a_damaged_record_is_never_half_read() {
    let mut dice = Dice::from_environment(SEED);
    let term = Term { until: 1_795_468_194_000, period: 120_000 };
    let record = Record {
        pin: Some(Pin {
            generation: 3,
            documents: "ab".repeat(32),
            why: "it was brought back".to_owned(),
            expired: false,
        }),
        pending: Some(Pending { generation: 4, documents: "cd".repeat(32), term, before: None }),
        emergency: Some(Emergency::BreakGlass { term, by: "uid 0".to_owned(), reason: "é".to_owned() }),
        expired: [("temporary".to_owned(), 1_795_468_194)].into(),
    };
    let text = serde_json::to_string(&record).unwrap();
    let good = encode_record(&text);
    assert_eq!(decode_record(&good).unwrap(), text);
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let damaged = dice.damage(&good);
        assert!(damaged == good || decode_record(&damaged).is_err(), "the checksum does not see it");
        let Ok(text) = String::from_utf8(dice.damage(text.as_bytes())) else { continue };
        assert_eq!(decode_record(&encode_record(&text)).unwrap(), text);
        match serde_json::from_str::<Record>(&text) {
            Ok(read) => {
                fine += 1;
                let left = read.pending.as_ref().and_then(|pending| pending.term.left(1_795_468_100_000));
                let whole = read.pending.as_ref().map(|pending| pending.term.whole());
                assert!(left <= whole, "{left:?} of {whole:?}");
            }
            Err(_) => refused += 1,
        }
    }
    println!("{fine} read, {refused} refused");
    assert!(fine > 100 && refused > 1000, "{fine} read, {refused} refused");
}

/// What the socket says to some bytes; "" when it hangs up.
fn says(node: &Node, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(node.path("run/nodewall.sock")).unwrap();
    // It may be cut off before all of it is written.
    let _ = stream.write_all(request);
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

fn code(reply: &str) -> Option<String> {
    let reply: Value = serde_json::from_str(reply).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
    reply["error"]["code"].as_str().map(str::to_owned)
}

/// A status takes a few milliseconds; this is for busy machines, and far below what it takes when peers are waited for.
const IN_TIME: Duration = Duration::from_secs(5);

#[test]
fn hostile_peers_of_the_control_socket_keep_nobody_waiting() {
    isolated("hostile peers", || {
        management_link();
        let mut node = Node::new(&[("10.toml", &policy("open", "allow"))]);
        node.run();
        let connect = || UnixStream::connect(node.path("run/nodewall.sock")).unwrap();
        let in_time = |what: &str| {
            let start = Instant::now();
            node.until(what, |code, status| code == 0 && status["state"] == "in-force");
            let took = start.elapsed();
            println!("{what}: {took:?}");
            assert!(took < IN_TIME, "{what}: {took:?}");
        };
        in_time("alone");
        // Half a line, and then nothing; a line that never ends; bytes that are no text; one that hangs up.
        assert_eq!(code(&says(&node, &vec![b'{'; 1 << 20])).as_deref(), Some("bad-request"));
        assert_eq!(code(&says(&node, b"\xff\xfe\n")).as_deref(), Some("bad-request"));
        let mut half = connect();
        half.write_all(b"{\"version\":1,\"requ").unwrap();
        drop(connect());
        // 300 that say nothing, and 300 that ask and do not read.
        let silent: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
        in_time("beside 300 that say nothing");
        let deaf: Vec<UnixStream> = (0..300)
            .map(|_| {
                let mut stream = connect();
                // One that has to go is cut off.
                let _ = stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n");
                stream
            })
            .collect();
        in_time("beside 300 that ask and do not read");
        // Orders are not kept waiting either.
        let start = Instant::now();
        node.must(&["panic", "on"]);
        node.must(&["panic", "off"]);
        assert!(start.elapsed() < 2 * IN_TIME, "{:?}", start.elapsed());
        drop((silent, deaf));
        let mut answer = String::new();
        half.read_to_string(&mut answer).unwrap();
        assert!(["bad-request", "unavailable"].map(Some).contains(&code(&answer).as_deref()), "{answer}");
        in_time("afterwards");
    });
}
