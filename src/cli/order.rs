//! Orders to the daemon over its control socket.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::exit::Exit;
use super::output::Output;
use super::status::{ask, nobody_answers};
use crate::daemon::socket::{Refusal, Request};

/// What an order prints with `--json`.
#[derive(Serialize)]
struct Report {
    version: u32,
    outcome: String,
}

/// Sends an order, waits for its outcome and prints it.
pub(super) fn send(socket: &Path, request: &Request, output: &Output) -> Exit {
    let reply = match ask(socket, request) {
        Ok(reply) => reply,
        Err(error) if nobody_answers(&error) => {
            output.message(&format!("the daemon is not running (nobody answers on {})", socket.display()));
            return Exit::NotRunning;
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            output.message(&format!("not authorised: only root may do this on {}", socket.display()));
            return Exit::NotAuthorised;
        }
        Err(error) => {
            output.message(&format!("cannot ask the daemon on {}: {error}", socket.display()));
            return Exit::Failure;
        }
    };
    match (reply.outcome, reply.error) {
        (Some(outcome), _) if output.json => output.json(&Report { version: 1, outcome }),
        (Some(outcome), _) => output.data(&format!("{outcome}\n")),
        (None, Some(Refusal { code, message })) => {
            output.message(&message);
            if code == "not-authorised" { Exit::NotAuthorised } else { Exit::Failure }
        }
        (None, None) => {
            output.message("the daemon answered nothing");
            Exit::Failure
        }
    }
}
