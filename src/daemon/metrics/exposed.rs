//! What of this host can be reached, for metrics: `nodewall audit` in a process of its own, so that what it costs in time and memory
//! is bounded and the daemon keeps none of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::metrics::snapshot::Exposed;

/// A look is not done again before this time.
const AGAIN: Duration = Duration::from_secs(300);
/// A look may take this part of a core over time: one that takes three seconds is done every five minutes, one of ten every 17.
const PART: u32 = 100;
/// A look that takes longer is given up.
const LONGEST: Duration = Duration::from_secs(60);
/// How often it is looked whether it is over.
const STEP: Duration = Duration::from_millis(50);
/// The most that it may print.
const MOST_BYTES: u64 = 64 * 1024 * 1024;
/// This program, even where its file was replaced.
const OURSELVES: &str = "/proc/self/exe";

/// The way to the newest look.
#[derive(Clone, Default)]
pub(super) struct Exposing(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    running: bool,
    /// What came of the last look, when that was and how long it took; `None`: it told nothing.
    last: Option<(Option<Counts>, Instant, Duration)>,
}

/// The numbers of a look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Counts {
    sockets: BTreeMap<String, u64>,
    findings: BTreeMap<(String, String), u64>,
}

impl Exposing {
    /// What is known, and a new look in the background where it is time for one. `None` while nobody could look.
    pub(super) fn now(&self, config: &Path) -> Option<Exposed> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = kept.last.as_ref().is_none_or(|(_, at, took)| at.elapsed() >= AGAIN.max(*took * PART));
        if due && !kept.running {
            let (this, config) = (self.clone(), config.to_owned());
            let started = thread::Builder::new().name("exposed".to_owned()).spawn(move || this.look(&config));
            match started {
                Ok(_) => kept.running = true,
                Err(error) => {
                    tracing::warn!("cannot start the thread that looks what can be reached: {error}");
                    kept.last = Some((None, Instant::now(), Duration::ZERO));
                }
            }
        }
        let (counts, at, took) = kept.last.as_ref()?;
        let Counts { sockets, findings } = counts.clone()?;
        Some(Exposed { sockets, findings, age: at.elapsed().as_secs_f64(), took: took.as_secs_f64() })
    }

    fn look(&self, config: &Path) {
        let began = Instant::now();
        let counts = audit(config).and_then(|text| counts(&text));
        if let Err(why) = &counts {
            tracing::debug!("what can be reached is not known: {why}");
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.running = false;
        kept.last = Some((counts.ok(), Instant::now(), began.elapsed()));
    }
}

/// What `audit --json` prints.
fn audit(config: &Path) -> Result<Vec<u8>, String> {
    let command = |program: &str, before: &[&str]| {
        let mut command = Command::new(program);
        command.args(before).arg("--config").arg(config).args(["audit", "--json"]);
        // Nobody may choose by our environment what is looked at, and it is not the one that systemd waits for.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    // The processor is for those who need it.
    let exe = std::fs::read_link(OURSELVES).unwrap_or_else(|_| PathBuf::from(OURSELVES));
    let exe = if exe.is_file() { exe } else { PathBuf::from(OURSELVES) };
    let exe = exe.to_string_lossy().into_owned();
    let mut child = command("nice", &["-n", "19", &exe])
        .spawn()
        .or_else(|_| command(&exe, &[]).spawn())
        .map_err(|error| format!("cannot start audit: {error}"))?;
    let printed = child.stdout.take();
    let reading = thread::Builder::new().name("audit".to_owned()).spawn(move || {
        let mut text = Vec::new();
        let whole = printed.map(|printed| printed.take(MOST_BYTES).read_to_end(&mut text));
        whole.and_then(Result::ok).map(|_| text)
    });
    let deadline = Instant::now() + LONGEST;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(STEP),
            Ok(None) => break Err(format!("audit took longer than {} s", LONGEST.as_secs())),
            Err(error) => break Err(format!("cannot wait for audit: {error}")),
        }
    };
    if ended.is_err() {
        // It may be over by now.
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = reading.map_err(|error| format!("cannot read what audit prints: {error}"))?.join().ok().flatten();
    match (ended?, text) {
        (status, Some(text)) if status.success() => Ok(text),
        (status, _) => Err(format!("audit ended with {status}")),
    }
}

/// What of `audit --json` is counted.
#[derive(Deserialize)]
struct Report {
    counts: BTreeMap<String, u64>,
    findings: Vec<FindingRecord>,
    troubles: Vec<String>,
}

#[derive(Deserialize)]
struct FindingRecord {
    severity: String,
    code: String,
}

/// How a trouble begins that says that sockets of a protocol are missing from the report.
const NOT_LISTED: &str = "cannot list the sockets of ";

/// The numbers in what it printed. Where sockets could not be listed, they would be too small.
fn counts(text: &[u8]) -> Result<Counts, String> {
    let report: Report =
        serde_json::from_slice(text).map_err(|error| format!("cannot read what audit prints: {error}"))?;
    if let Some(trouble) = report.troubles.iter().find(|trouble| trouble.starts_with(NOT_LISTED)) {
        return Err(trouble.clone());
    }
    let mut findings: BTreeMap<(String, String), u64> = BTreeMap::new();
    for finding in report.findings {
        *findings.entry((finding.code, finding.severity)).or_default() += 1;
    }
    Ok(Counts { sockets: report.counts, findings })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn findings_are_counted_by_kind() {
        let text = r#"{"counts": {"anyone": 2, "loopback": 1}, "troubles": [], "more": 1,
            "findings": [{"severity": "error", "code": "exposed-service"}, {"severity": "error", "code": "exposed-service"}]}"#;
        let found = counts(text.as_bytes()).unwrap();
        assert_eq!(found.sockets, [("anyone".to_owned(), 2), ("loopback".to_owned(), 1)].into());
        assert_eq!(found.findings, [(("exposed-service".to_owned(), "error".to_owned()), 2)].into());
    }

    #[test]
    fn sockets_that_could_not_be_listed_are_not_none() {
        let text = r#"{"counts": {}, "findings": [], "troubles": ["cannot list the sockets of tcp: no"]}"#;
        assert_eq!(counts(text.as_bytes()), Err("cannot list the sockets of tcp: no".to_owned()));
        assert!(counts(b"").is_err());
    }
}
