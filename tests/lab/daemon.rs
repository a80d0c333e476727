//! The real daemon with its files in a temporary directory, in the network namespace of the thread that starts it.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodewall::driver::{Kernel, Netlink, Read};
use nodewall::nft::ir::Ruleset;
use serde_json::Value;

use super::net::{Host, wire};
use super::sh;

/// What waits longer than this has failed; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A management link with a default route, whose other end is in the same namespace.
pub fn management_link() {
    sh("ip link add mgmt0 type veth peer name mgmt0p; ip link set mgmt0 up; ip link set mgmt0p up");
    sh("ip addr add 10.77.0.2/24 dev mgmt0; ip route add default via 10.77.0.1");
}

/// A node: its files, what systemd is told, and the daemon, once it is started. The daemon is killed with this.
#[derive(Debug)]
pub struct Node {
    folder: tempfile::TempDir,
    systemd: Mutex<mpsc::Receiver<String>>,
    daemon: Option<Child>,
    /// Another machine's /sys and /proc.
    root: Option<PathBuf>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// The files, with these policy documents by name; nothing runs yet.
    pub fn new(policy: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (told, systemd) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                if told.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        let node = Self { folder, systemd: Mutex::new(systemd), daemon: None, root: None };
        node.write("nodewall.toml", &node.settings());
        for (name, text) in policy {
            node.write(&format!("policy.d/{name}"), text);
        }
        node
    }

    /// The same on a machine whose /sys and /proc are below this directory.
    pub fn with_root(mut self, root: PathBuf) -> Self {
        self.root = Some(root);
        self
    }

    /// nodewall.toml: everything in the temporary directory.
    pub fn settings(&self) -> String {
        let (socket, state) = (self.path("run/nodewall.sock"), self.path("state"));
        format!("socket = \"{}\"\nstate_directory = \"{}\"\n", socket.display(), state.display())
    }

    /// The path of a file in the temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file there.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The binary with the arguments that make it use these files.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.arg("--config").arg(self.path("nodewall.toml")).arg("--policy-dir").arg(self.path("policy.d"));
        command.args(self.root.iter().flat_map(|root| [OsStr::new("--root"), root.as_os_str()])).args(arguments);
        command
    }

    /// Exit code, stdout and stderr of a subcommand.
    pub fn nodewall(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// What a subcommand prints that has to succeed.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.nodewall(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}\n{}", self.log());
        stdout
    }

    /// Starts the daemon, with a watchdog of 400 ms, without waiting for anything.
    pub fn start(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "400000").stderr(Stdio::from(log));
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Starts the daemon and waits until it is ready.
    #[track_caller]
    pub fn run(&mut self) {
        // What an earlier one told is no news.
        while self.systemd.get_mut().unwrap().try_recv().is_ok() {}
        self.start();
        self.told("READY=1");
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.daemon.as_ref().unwrap().id().try_into().unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub fn ended(&mut self) -> ExitStatus {
        self.daemon.take().unwrap().wait().unwrap()
    }

    /// SIGKILL, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Waits for a message to systemd that has this, and returns it.
    #[track_caller]
    pub fn told(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let systemd = self.systemd.lock().unwrap();
        while let Ok(message) = systemd.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if message.contains(wanted) {
                return message;
            }
        }
        panic!("systemd was never told {wanted}; the log:\n{}", self.log());
    }

    /// What the daemons of this node logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until the log has this.
    #[track_caller]
    pub fn logs(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(wanted) {
            assert!(Instant::now() < deadline, "{wanted} is never logged:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The exit code of `nodewall status --json` and what it prints.
    pub fn status(&self) -> (i32, Value) {
        let (code, stdout, _) = self.nodewall(&["status", "--json"]);
        (code, serde_json::from_str(&stdout).unwrap_or_default())
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    pub fn until(&self, what: &str, wanted: impl Fn(i32, &Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, status) = self.status();
            if wanted(code, &status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {code} {status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The numbers in the history, newest first, and the confirmed one.
    pub fn history(&self) -> (Vec<u64>, Option<u64>) {
        let history: Value = serde_json::from_str(&self.must(&["history", "--json"])).unwrap();
        let lines = history["generations"].as_array().unwrap();
        (lines.iter().map(|line| line["generation"].as_u64().unwrap()).collect(), history["confirmed"].as_u64())
    }
}

/// What the kernel has, and what in our table is not ours.
pub fn loaded() -> (Ruleset, Vec<String>) {
    let loaded = Netlink::open().unwrap().load(&Read::Everything).unwrap();
    (loaded.ruleset, loaded.foreign)
}

/// Waits until the kernel has this again, and says how long it took.
#[track_caller]
pub fn until_repaired(node: &Node, what: &str, wanted: &Ruleset) -> Duration {
    let start = Instant::now();
    loop {
        let (ruleset, foreign) = loaded();
        if ruleset == *wanted && foreign.is_empty() {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "{what} was not repaired\n{}\n{}", sh("nft list ruleset"), node.log());
    }
}

/// A host behind a wire that connects to this namespace's port 8080, which listens.
#[derive(Debug)]
pub struct Prober {
    host: Host,
}

impl Prober {
    /// The node's end of the wire is mgmt0.
    pub fn new() -> Self {
        let (node, host) = (Host::this(), Host::new());
        wire((&node, "mgmt0", &["10.77.0.2/24"]), (&host, "peer0", &["10.77.0.1/24"]));
        sh("ip route add default via 10.77.0.1");
        let listener = TcpListener::bind("10.77.0.2:8080").unwrap();
        std::thread::spawn(move || while listener.accept().is_ok() {});
        Self { host }
    }

    /// Whether a new connection is let through, within 150 ms; a machine that is busy has a second chance.
    pub fn connects(&self) -> bool {
        let address: SocketAddr = "10.77.0.2:8080".parse().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(150)).is_ok();
        self.host.enter(|| connect() || connect())
    }

    /// Waits until it is let through, and says how long after `since` that was.
    #[track_caller]
    pub fn back(&self, since: Instant, node: &Node) -> Duration {
        while !self.connects() {
            assert!(since.elapsed() < PATIENCE, "the prober is still cut off\n{}", node.log());
        }
        since.elapsed()
    }
}

/// A policy of this name that lets port 8080 in ("allow") or not ("deny").
pub fn policy(name: &str, action: &str) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\norder = 10\ninterfaces = \"all()\"\ningress = [\n  {{ action = \"{action}\", protocol = \"tcp\", ports = [8080] }},\n]\n"
    )
}
