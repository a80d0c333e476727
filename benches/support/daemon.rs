//! The real daemon on files of its own.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The daemon with a configuration of its own, ready.
pub struct Daemon {
    pub child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the daemon on these policy files; it is ready.
pub fn start<N: AsRef<str>>(policies: impl IntoIterator<Item = (N, String)>) -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let policy_directory = folder.path().join("policy.d");
    std::fs::create_dir(&policy_directory).unwrap();
    for (name, text) in policies {
        std::fs::write(policy_directory.join(name.as_ref()), text).unwrap();
    }
    let config = folder.path().join("nodewall.toml");
    let socket = folder.path().join("nodewall.sock");
    let state = folder.path().join("state");
    std::fs::write(&config, format!("socket = \"{}\"\nstate_directory = \"{}\"\n", socket.display(), state.display()))
        .unwrap();
    let notify = folder.path().join("notify");
    let ready = UnixDatagram::bind(&notify).unwrap();
    ready.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_nodewall"))
        .arg("--config")
        .arg(&config)
        .arg("--policy-dir")
        .arg(&policy_directory)
        .arg("run")
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon { child, folder };
    let mut message = [0; 4096];
    loop {
        let length = ready.recv(&mut message).expect("the daemon says READY within five minutes");
        if String::from_utf8_lossy(&message[..length]).contains("READY=1") {
            return daemon;
        }
    }
}

impl Daemon {
    /// Where its policy files are.
    pub fn policies(&self) -> PathBuf {
        self.folder.path().join("policy.d")
    }

    /// A field of /proc/PID/status, as a number.
    pub fn status(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
