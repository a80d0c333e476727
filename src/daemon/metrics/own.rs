//! What /proc tells of this process.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::{SysconfVar, sysconf};

use crate::metrics::snapshot::Process;

/// Fields of /proc/self/stat after the name, from 0: user time, system time, threads, start (proc(5), fields 14, 15, 20, 22).
const USER: usize = 11;
const SYSTEM: usize = 12;
const THREADS: usize = 17;
const START: usize = 19;

/// As it is now.
pub(super) fn process() -> Process {
    let (stat, statm) = (read("/proc/self/stat"), read("/proc/self/statm"));
    let mut process = of(&stat, &statm, setting(SysconfVar::CLK_TCK), setting(SysconfVar::PAGE_SIZE));
    // Of the directory itself one is open while it is read.
    process.files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as u64);
    let booted = SystemTime::now().duration_since(UNIX_EPOCH).ok().zip(uptime());
    process.started = process.started.zip(booted).map(|(after, (now, up))| now.as_secs_f64() - up + after);
    process
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn setting(name: SysconfVar) -> Option<u64> {
    sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

/// Seconds since boot.
fn uptime() -> Option<f64> {
    read("/proc/uptime").split(' ').next()?.parse().ok()
}

/// What these texts tell; the start in seconds after boot. Pure.
fn of(stat: &str, statm: &str, ticks: Option<u64>, page: Option<u64>) -> Process {
    // The name may have spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect()).unwrap_or_default();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let seconds = |count: u64| ticks.map(|ticks| count as f64 / ticks as f64);
    let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Process {
        resident: resident.zip(page).map(|(pages, page)| pages.saturating_mul(page)),
        cpu: field(USER).zip(field(SYSTEM)).and_then(|(user, system)| seconds(user.saturating_add(system))),
        threads: field(THREADS),
        files: None,
        started: field(START).and_then(seconds),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_with_spaces_moves_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 12345 1 2";
        let process = of(stat, "5000 300 1 1 0 1 0\n", Some(100), Some(4096));
        let expected = Process {
            resident: Some(300 * 4096),
            cpu: Some(2.0),
            threads: Some(9),
            files: None,
            started: Some(123.45),
        };
        assert_eq!(process, expected);
        assert_eq!(of("", "", Some(100), Some(4096)), Process::default());
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let process = process();
        assert!(process.resident.unwrap() > 100_000 && process.files.unwrap() >= 3 && process.threads.unwrap() >= 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - process.started.unwrap()) < 24.0 * 3600.0, "{process:?}");
    }
}
