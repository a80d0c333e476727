//! Orders to the daemon over its control socket.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::exit::Exit;
use super::output::Output;
use super::status::{ANSWER_TIME, ask, ask_for, nobody_answers};
use crate::daemon::socket::{DEGRADED, Refusal, Request};
use crate::daemon::status::{SelfTestRecord, Status};

/// What an order prints with `--json`.
#[derive(Serialize)]
struct Report {
    version: u32,
    outcome: String,
}

/// How often the daemon is asked how a self-test goes.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// So long after its end a change must be confirmed or gone, be it by a daemon that was started again.
const AFTER_THE_END: Duration = Duration::from_secs(30);

/// Sends an order, waits for its outcome and prints it.
pub(super) fn send(socket: &Path, request: &Request, output: &Output) -> Exit {
    send_for(socket, request, ANSWER_TIME, output)
}

/// Sends an order, waits for so long for its outcome and prints it.
pub(super) fn send_for(socket: &Path, request: &Request, time: Duration, output: &Output) -> Exit {
    match ordered(socket, request, time, output) {
        Ok(outcome) => print(outcome, output),
        Err(exit) => exit,
    }
}

/// Sends an order that puts a generation in force whose self-test has this time, and waits until it is confirmed or gone.
pub(super) fn send_and_wait(socket: &Path, request: &Request, time: Duration, output: &Output) -> Exit {
    match ordered(socket, request, ANSWER_TIME, output) {
        Ok(outcome) => output.message(&outcome),
        Err(exit) => return exit,
    }
    let deadline = Instant::now() + time + AFTER_THE_END;
    let mut generation = None;
    while Instant::now() < deadline {
        // A daemon that does not answer may be on its way up again.
        let status = ask(socket, &Request::new("status")).ok().and_then(|reply| reply.status);
        match status.as_ref().map(|status| seen(status, &mut generation)) {
            Some(Seen::Confirmed(words)) => return print(words, output),
            Some(Seen::Gone(words)) => {
                output.message(&words);
                return Exit::RolledBack;
            }
            Some(Seen::Waiting) | None => thread::sleep(ASK_EVERY),
        }
    }
    output.message("the daemon does not say what became of it; see `nodewall status`");
    Exit::Failure
}

/// What a status says of a generation that is tested.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Waiting,
    Confirmed(String),
    Gone(String),
}

/// `generation` is the one that was tested the last time that a status told.
fn seen(status: &Status, generation: &mut Option<u64>) -> Seen {
    let record = status.selftest.clone().unwrap_or_default();
    *generation = match (&status.confirm_until, status.confirm_by.as_deref()) {
        // It came while another one waited for somebody, and waits for that, too.
        (Some(_), Some("operator")) => Some(status.generation),
        _ => record.generation.or(*generation),
    };
    let under_way = matches!(record.state.as_str(), "waiting" | "before" | "running");
    let Some(number) = generation.filter(|_| status.confirm_until.is_none() && !under_way) else {
        return Seen::Waiting;
    };
    let SelfTestRecord { state, summary, .. } = record;
    if status.confirmed == Some(number) {
        return Seen::Confirmed(match state.as_str() {
            "passed" => format!("generation {number} is confirmed by self-test: {summary}"),
            _ => format!("generation {number} is confirmed"),
        });
    }
    Seen::Gone(match &status.reason {
        Some(reason) => reason.clone(),
        None => format!("generation {number} is gone, and was not confirmed"),
    })
}

fn print(outcome: String, output: &Output) -> Exit {
    match output.json {
        true => output.json(&Report { version: 1, outcome }),
        false => output.data(&format!("{outcome}\n")),
    }
}

/// The outcome of an order. What else there is to say was said.
fn ordered(socket: &Path, request: &Request, time: Duration, output: &Output) -> Result<String, Exit> {
    let reply = match ask_for(socket, request, time) {
        Ok(reply) => reply,
        Err(error) if nobody_answers(&error) => {
            output.message(&format!("the daemon is not running (nobody answers on {})", socket.display()));
            return Err(Exit::NotRunning);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            output.message(&format!("not authorised: only root may do this on {}", socket.display()));
            return Err(Exit::NotAuthorised);
        }
        Err(error) => {
            output.message(&format!("cannot ask the daemon on {}: {error}", socket.display()));
            return Err(Exit::Failure);
        }
    };
    match (reply.outcome, reply.error) {
        (Some(outcome), _) => Ok(outcome),
        (None, Some(Refusal { code, message })) => {
            output.message(&message);
            Err(match code.as_str() {
                "not-authorised" => Exit::NotAuthorised,
                DEGRADED => Exit::Degraded,
                _ => Exit::Failure,
            })
        }
        (None, None) => {
            output.message("the daemon answered nothing");
            Err(Exit::Failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, confirmed: u64, pending: bool, reason: Option<&str>) -> Status {
        let selftest = (!state.is_empty()).then(|| SelfTestRecord {
            generation: Some(2),
            state: state.to_owned(),
            summary: "cluster API passed".to_owned(),
            ..SelfTestRecord::default()
        });
        Status {
            confirmed: Some(confirmed),
            confirm_until: pending.then(|| "2026-11-23T21:09:54Z".to_owned()),
            selftest,
            reason: reason.map(str::to_owned),
            ..Status::default()
        }
    }

    #[test]
    fn the_end_of_a_self_test_is_seen_also_by_what_a_daemon_says_that_was_started_again() {
        let mut known = None;
        assert_eq!(seen(&status("", 1, false, None), &mut known), Seen::Waiting, "nothing is known yet");
        assert_eq!(seen(&status("running", 1, true, None), &mut known), Seen::Waiting);
        assert_eq!(seen(&status("running", 1, false, None), &mut known), Seen::Waiting);
        let passed = "generation 2 is confirmed by self-test: cluster API passed";
        assert_eq!(seen(&status("passed", 2, false, None), &mut known), Seen::Confirmed(passed.to_owned()));
        assert_eq!(
            seen(&status("ended", 2, false, None), &mut known),
            Seen::Confirmed("generation 2 is confirmed".to_owned())
        );
        let why = "generation 2 was given up: its self-test failed: x: no";
        for state in ["failed", ""] {
            assert_eq!(seen(&status(state, 1, false, Some(why)), &mut known), Seen::Gone(why.to_owned()));
        }
        assert!(matches!(seen(&status("ended", 1, false, None), &mut known), Seen::Gone(_)));
    }
}
