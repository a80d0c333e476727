//! A control socket that says what a test wants.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What waits longer than this has failed; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the peers of the socket share.
#[derive(Debug, Default)]
struct Shared {
    /// What a watcher is sent at once.
    first: String,
    /// Who watches.
    watchers: Vec<UnixStream>,
    /// How often "status" was asked for.
    looks: u64,
    /// What answers it, given the directory and how often it was asked before.
    status: Option<fn(&Path, u64) -> Value>,
    /// The answer to "watch", if it is refused.
    refusal: Option<Value>,
}

/// The socket, and the settings that name it.
#[derive(Debug)]
pub(crate) struct StandIn {
    folder: tempfile::TempDir,
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

impl StandIn {
    /// Whoever watches is sent these lines first.
    pub(crate) fn new(lines: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nodewall.sock");
        std::fs::write(folder.path().join("nodewall.toml"), format!("socket = \"{}\"\n", socket.display())).unwrap();
        let first = lines.iter().map(|line| format!("{line}\n")).collect();
        let shared = Arc::new((Mutex::new(Shared { first, ..Shared::default() }), Condvar::new()));
        let listener = UnixListener::bind(socket).unwrap();
        let path = folder.path().to_owned();
        let stand_in = Self { folder, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, path, shared) = (stream.unwrap(), path.clone(), Arc::clone(&shared));
                // A peer that goes away is nobody's concern.
                std::thread::spawn(move || answer(stream, &path, &shared));
            }
        });
        stand_in
    }

    /// A file in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// nodewall with the settings that name this socket.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.arg("--config").arg(self.path("nodewall.toml")).args(arguments);
        command
    }

    /// Waits until somebody watches.
    pub(crate) fn watched(&self) {
        let (shared, changed) = &*self.shared;
        let shared = shared.lock().unwrap();
        let (shared, _) = changed.wait_timeout_while(shared, PATIENCE, |shared| shared.watchers.is_empty()).unwrap();
        assert!(!shared.watchers.is_empty(), "nobody watches");
    }

    /// Sends all who watch these lines; whether somebody takes them.
    pub(crate) fn say(&self, lines: &[Value]) -> bool {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut shared = self.shared.0.lock().unwrap();
        shared.watchers.retain_mut(|stream| stream.write_all(text.as_bytes()).is_ok());
        !shared.watchers.is_empty()
    }

    /// Closes the streams of all who watch.
    pub(crate) fn close(&self) {
        for stream in self.shared.0.lock().unwrap().watchers.drain(..) {
            stream.shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Answers "status" with this, which is given the directory and how often it was asked before.
    pub(crate) fn set_status(&self, status: fn(&Path, u64) -> Value) {
        self.shared.0.lock().unwrap().status = Some(status);
    }

    /// Refuses to be watched from now on.
    pub(crate) fn refuse(&self, code: &str, message: &str) {
        let refusal = json!({ "version": 1, "error": { "code": code, "message": message } });
        self.shared.0.lock().unwrap().refusal = Some(refusal);
    }
}

fn answer(stream: UnixStream, folder: &Path, shared: &(Mutex<Shared>, Condvar)) {
    let mut line = String::new();
    if BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).is_err() {
        return;
    }
    let request: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(request["version"], 1, "{request}");
    let (lock, changed) = shared;
    let (text, watches) = {
        let mut shared = lock.lock().unwrap();
        match (request["request"].as_str().unwrap(), &shared.refusal) {
            ("watch", Some(refusal)) => (format!("{refusal}\n"), false),
            ("watch", None) => (shared.first.clone(), true),
            ("status", _) => {
                let status = shared.status.map(|status| status(folder, shared.looks));
                shared.looks += 1;
                (format!("{}\n", json!({ "version": 1, "status": status })), false)
            }
            (other, _) => panic!("nobody should ask for {other}"),
        }
    };
    let mut stream = stream;
    // Without the lock: the peer may not read.
    if stream.write_all(text.as_bytes()).is_ok() && watches {
        lock.lock().unwrap().watchers.push(stream);
        changed.notify_all();
    }
}

/// An event with these keys, as a line of the stream.
pub(crate) fn event(keys: Value) -> Value {
    let mut event = json!({
        "time": "2026-11-26T08:20:19.123456Z", "kind": "packet", "verdict": "denied", "direction": "ingress",
        "interface": "eth0", "role": "mgmt", "out": null, "source": "10.0.7.9", "destination": "10.0.0.5",
        "protocol": "tcp", "source_port": 40122, "destination_port": 10250, "icmp_type": null, "icmp_code": null,
        "length": 60, "peer": "10.0.7.9", "names": ["node:gpu-17", "set:ops"], "rule": "kubelet#2",
        "policy": "kubelet", "tier": "platform", "place": "20-kubelet.toml:14", "process": null
    });
    for (key, value) in keys.as_object().unwrap() {
        event[key] = value.clone();
    }
    json!({ "version": 1, "event": event })
}

/// Whether a file comes to be as wanted while there is patience.
pub(crate) fn eventually(mut is: impl FnMut() -> bool) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < PATIENCE {
        if is() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// What a file has, as far as it is there.
pub(crate) fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
