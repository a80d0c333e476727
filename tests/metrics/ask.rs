//! Requests to the sockets of metrics, and what is in the answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::lab::daemon::{Node, PATIENCE};

/// What Prometheus 2.42 accepts.
pub const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// An answer: status, headers, body.
#[derive(Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends a request and reads to the end; an empty answer of somebody who hung up.
pub fn over(mut stream: impl Read + Write, request: &str) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut bytes).map(|_| ()));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Answer::default() };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// The lines of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: node\r\n{headers}Connection: close\r\n\r\n")
}

/// `GET /metrics` on a unix socket.
pub fn unix(path: &Path, accept: &str) -> Answer {
    let Ok(stream) = UnixStream::connect(path) else { return Answer::default() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    over(stream, &request("GET", "/metrics", &[("Accept", accept)]))
}

/// The same over TCP, with a token.
pub fn tcp(address: &str, token: &str) -> Answer {
    let Ok(stream) = TcpStream::connect(address) else { return Answer::default() };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    over(stream, &request("GET", "/metrics", &[("Authorization", &format!("Bearer {token}"))]))
}

/// Waits until the page is as wanted; of pages that are kept for a second, a new one.
#[track_caller]
pub fn until(node: &Node, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let body = unix(&node.path("run/metrics.sock"), "text/plain").body;
        if wanted(&body) {
            return body;
        }
        assert!(Instant::now() < deadline, "{what} never came:\n{body}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The sum of the series of a name that have all of these labels; `None` where there is none.
pub fn value(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let values: Vec<f64> = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// Runs promtool with this on its standard input; what it prints. `None` where there is no promtool, which CI does not take.
pub fn promtool(arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool: {error}");
            println!("SKIPPED what promtool says: {error}");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8(text).unwrap()))
}
