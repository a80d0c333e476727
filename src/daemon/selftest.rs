//! The probes of a self-test, tried: new connections, requests and commands, all at once and each within its time. Nothing here
//! keeps the loop waiting.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::reconcile::selftest::{Attempt, Outcome, Probe, Tried};

/// The longest status line of an HTTP answer, in bytes.
const LONGEST_STATUS_LINE: u64 = 1024;
/// How many servers of one probe are named when none of them answers.
const SERVERS_NAMED: usize = 4;
/// What a command that was killed has to be gone by; one that waits for hardware may not be.
const GRACE: Duration = Duration::from_secs(1);
/// Where a command finds others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Tries all of them.
pub(super) async fn run(probes: Vec<Probe>) -> Vec<Tried> {
    join_all(probes.into_iter().map(tried)).await
}

async fn tried(probe: Probe) -> Tried {
    let Probe { name, what, timeout: limit, optional } = probe;
    let outcome = match what {
        Attempt::Tcp(servers) => {
            let connect = |server| async move { TcpStream::connect(server).await.map(drop).map_err(Trouble::from) };
            any(&servers, limit, optional, connect).await
        }
        Attempt::Http { servers, host, path } => {
            let request = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nodewall/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
                env!("CARGO_PKG_VERSION")
            );
            any(&servers, limit, optional, |server| get(server, &request)).await
        }
        Attempt::Command(words) => command(words, limit).await,
    };
    Tried { probe: name, outcome }
}

/// Why a server did not answer as it should.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Trouble {
    /// Nobody listens there.
    Refused,
    /// In words.
    Other(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset => Self::Other("the connection was reset".to_owned()),
            io::ErrorKind::PermissionDenied => Self::Other("a rule of this host forbids it".to_owned()),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::Other("no way there".to_owned())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Whether one of the servers at least is as it should be.
async fn any<F: Future<Output = Result<(), Trouble>>>(
    servers: &[SocketAddr],
    limit: Duration,
    optional: bool,
    attempt: impl Fn(SocketAddr) -> F,
) -> Outcome {
    let silent = || Trouble::Other(format!("no answer within {} s", limit.as_secs()));
    let one = |server: SocketAddr| {
        let attempt = timeout(limit, attempt(server));
        async move { (server, attempt.await.unwrap_or_else(|_| Err(silent()))) }
    };
    let mut waiting: FuturesUnordered<_> = servers.iter().copied().map(one).collect();
    let mut troubles = Vec::new();
    while let Some((server, answer)) = waiting.next().await {
        match answer {
            Ok(()) => return Outcome::Passed,
            Err(trouble) => troubles.push((server, trouble)),
        }
    }
    troubles.sort_by_key(|(server, _)| *server);
    let absent = optional && troubles.iter().all(|(_, trouble)| *trouble == Trouble::Refused);
    let mut named: Vec<String> = troubles
        .iter()
        .take(SERVERS_NAMED)
        .map(|(server, trouble)| match trouble {
            Trouble::Refused => format!("{server}: connection refused"),
            Trouble::Other(words) => format!("{server}: {words}"),
        })
        .collect();
    if troubles.len() > SERVERS_NAMED {
        named.push(format!("and {} more", troubles.len() - SERVERS_NAMED));
    }
    let why = named.join(", ");
    if absent { Outcome::Absent(why) } else { Outcome::Failed(why) }
}

/// Asks and looks at the first line of the answer only.
async fn get(server: SocketAddr, request: &str) -> Result<(), Trouble> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST_STATUS_LINE)).read_until(b'\n', &mut line).await?;
    match status(&line) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(Trouble::Other(format!("HTTP status {status}"))),
        None => Err(Trouble::Other("its answer is not HTTP".to_owned())),
    }
}

/// The status of a line like "HTTP/1.1 200 OK" (RFC 9112 section 4).
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut words = line.strip_prefix("HTTP/1.")?.split([' ', '\r']);
    let minor = words.next()?;
    let digits = words.next()?;
    let well_formed =
        minor.len() == 1 && digits.len() == 3 && [minor, digits].concat().bytes().all(|c| c.is_ascii_digit());
    digits.parse().ok().filter(|_| well_formed)
}

/// Runs a command on a thread of its own: one whose disk hangs must not keep the others waiting.
async fn command(words: Vec<String>, limit: Duration) -> Outcome {
    match timeout(limit + GRACE, tokio::task::spawn_blocking(move || run_command(&words, limit))).await {
        Ok(Ok(Ok(()))) => Outcome::Passed,
        Ok(Ok(Err(why))) => Outcome::Failed(why),
        Ok(Err(_)) | Err(_) => Outcome::Failed("it neither ends nor can be killed".to_owned()),
    }
}

fn run_command(words: &[String], limit: Duration) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or_else(|| "there is no command".to_owned())?;
    trusted(program)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    let ended = match pid {
        Ok(pid) => ended(pid, limit),
        Err(_) => false,
    };
    // What it left behind goes, too. It is still there itself, be it dead, so that its number is nobody else's.
    if let Ok(pid) = pid {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let status: ExitStatus = child.wait().map_err(|error| format!("{program}: {error}"))?;
    match status {
        _ if !ended => Err(format!("{program} did not end within {} s", limit.as_secs())),
        status if status.success() => Ok(()),
        status => Err(format!("{program}: {status}")),
    }
}

/// What is run as root must be nobody else's to change.
fn trusted(program: &str) -> Result<(), String> {
    let metadata = fs::metadata(program).map_err(|error| format!("{program} cannot be looked at: {error}"))?;
    let ours = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_file() || !ours || metadata.mode() & 0o022 != 0 {
        return Err(format!("{program} must be a file of root that nobody else can write"));
    }
    Ok(())
}

/// Whether a child ends within this time. It stays as it is: its number, which is also its group's, must not become another
/// process's before the group is killed.
fn ended(pid: Pid, limit: Duration) -> bool {
    let (told, heard) = mpsc::channel();
    let waiter = thread::Builder::new().name("probe".to_owned()).spawn(move || {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        // Nobody listens when the time is over.
        let _ = told.send(());
    });
    waiter.is_ok() && heard.recv_timeout(limit).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    fn probe(what: Attempt, optional: bool) -> Probe {
        Probe { name: "x".to_owned(), what, timeout: Duration::from_secs(1), optional }
    }

    fn outcome(what: Attempt, optional: bool) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut tried = runtime.block_on(run(vec![probe(what, optional)]));
        assert_eq!(tried.len(), 1);
        tried.remove(0).outcome
    }

    /// An address of this host where nobody listens.
    fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn one_server_that_takes_a_connection_is_enough() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (there, gone) = (listener.local_addr().unwrap(), nobody());
        assert_eq!(outcome(Attempt::Tcp(vec![gone, there]), false), Outcome::Passed);
        let why = format!("{gone}: connection refused");
        assert_eq!(outcome(Attempt::Tcp(vec![gone]), false), Outcome::Failed(why.clone()));
        assert_eq!(outcome(Attempt::Tcp(vec![gone]), true), Outcome::Absent(why));
    }

    /// A server that answers one request with these bytes, and what it was asked.
    fn server(answer: &'static [u8]) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 512];
            while !request.ends_with(b"\r\n\r\n") {
                let length = stream.read(&mut buffer).unwrap();
                request.extend_from_slice(&buffer[..length]);
            }
            let _ = stream.write_all(answer);
            String::from_utf8(request).unwrap()
        });
        (address, asked)
    }

    #[test]
    fn of_an_http_answer_the_status_counts() {
        for (answer, wanted) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], None),
            (b"HTTP/1.0 204\r\n\r\n", None),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Some("HTTP status 503")),
            (b"HTTP/1.1 301 Moved\r\n\r\n", Some("HTTP status 301")),
            (b"HTTP/1.1 200 without an end", Some("its answer is not HTTP")),
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", Some("its answer is not HTTP")),
            (b"HTTP/1.1 2000 OK\r\n", Some("its answer is not HTTP")),
            (b"HTTP/2 200\r\n", Some("its answer is not HTTP")),
            (b"", Some("its answer is not HTTP")),
        ] {
            let (address, asked) = server(answer);
            let attempt =
                Attempt::Http { servers: vec![address], host: "node:1".to_owned(), path: "/healthz?a".to_owned() };
            let wanted = wanted.map_or(Outcome::Passed, |why| Outcome::Failed(format!("{address}: {why}")));
            assert_eq!(outcome(attempt, true), wanted, "{}", String::from_utf8_lossy(answer));
            let asked = asked.join().unwrap();
            assert!(asked.starts_with("GET /healthz?a HTTP/1.1\r\nHost: node:1\r\n"), "{asked}");
        }
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let attempt = Attempt::Http { servers: vec![address], host: String::new(), path: "/".to_owned() };
        assert_eq!(outcome(attempt, true), Outcome::Failed(format!("{address}: no answer within 1 s")));
    }

    fn script(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn ran(words: &[&str]) -> Outcome {
        outcome(Attempt::Command(words.iter().map(|word| (*word).to_owned()).collect()), false)
    }

    #[test]
    fn of_a_command_the_exit_code_counts_and_nothing_of_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| script(folder.path(), name, text);
        assert_eq!(ran(&[&at("good", "test \"$1\" = 'a b' && test -z \"$NODEWALL_SECRET\""), "a b"]), Outcome::Passed);
        let bad = at("bad", "exit 3");
        assert_eq!(ran(&[&bad]), Outcome::Failed(format!("{bad}: exit status: 3")));
        let left = at("left", &format!("sleep 1000 & echo $! > {}/child", folder.path().display()));
        assert_eq!(ran(&[&left]), Outcome::Passed);
        let slow = at("slow", &format!("sleep 1000 & echo $! > {}/child2; wait", folder.path().display()));
        let start = Instant::now();
        assert_eq!(ran(&[&slow]), Outcome::Failed(format!("{slow} did not end within 1 s")));
        assert!(start.elapsed() >= Duration::from_secs(1));
        for child in ["child", "child2"] {
            let pid = fs::read_to_string(folder.path().join(child)).unwrap();
            // Dead, though init may not have buried it yet.
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            assert!(stat.is_empty() || stat.contains(") Z ") || stat.contains(") X "), "{child}: {stat}");
        }
    }

    #[test]
    fn a_command_that_others_can_write_is_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "open", &format!("touch {}/ran", folder.path().display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(ran(&[&path]), Outcome::Failed(format!("{path} must be a file of root that nobody else can write")));
        assert!(!folder.path().join("ran").exists());
        assert!(matches!(ran(&["/nonexistent"]), Outcome::Failed(why) if why.starts_with("/nonexistent cannot be")));
    }
}
