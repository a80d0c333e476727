//! The real daemon in a network namespace of its own: what it tells systemd, what it does to the kernel, and what it leaves there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lab::conntrack::{inject, plain};
use lab::{isolated, sh};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodewall::driver::{Conntrack, Kernel, Netlink, Read};
use nodewall::net::interface::InterfaceName;
use nodewall::net::protocol::Protocol;
use nodewall::nft::ir::{ElementKey, Elements, Verdict};
use nodewall::nft::key::Datum;
use serde_json::Value;

/// What waits longer than this has failed; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

const KUBELET: &str = r#"
[[set]]
name = "control-plane"
cidrs = ["10.0.0.10", "fd00::10"]

[[policy]]
name = "kubelet"
order = 100
interfaces = "role in {'mgmt', 'pod'}"
ingress = [
  { action = "allow", from = { sets = ["control-plane"] }, protocol = "tcp", ports = [10250] },
  { action = "deny", protocol = "tcp", ports = [10250] },
]
"#;

/// A node with its files in a temporary directory, and the daemon on it.
struct Node {
    folder: tempfile::TempDir,
    /// What systemd is told.
    systemd: mpsc::Receiver<String>,
    daemon: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Node {
    /// A management link, a rail, and the files; nothing runs yet.
    fn new() -> Self {
        sh("ip link add mgmt0 type veth peer name mgmt0p; ip link set mgmt0 up; ip link set mgmt0p up");
        sh("ip addr add 10.77.0.2/24 dev mgmt0; ip route add default via 10.77.0.1");
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
        let node = Self { folder, systemd, daemon: None };
        node.write("nodewall.toml", &node.settings());
        node.write("policy.d/20-kubelet.toml", KUBELET);
        node
    }

    /// nodewall.toml.
    fn settings(&self) -> String {
        let (socket, state) = (self.path("run/nodewall.sock"), self.path("state"));
        format!("socket = \"{}\"\nstate_directory = \"{}\"\n", socket.display(), state.display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.arg("--config").arg(self.path("nodewall.toml")).arg("--policy-dir").arg(self.path("policy.d"));
        command.args(arguments);
        command
    }

    /// Exit code, stdout and stderr of a subcommand.
    fn nodewall(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// Starts the daemon without waiting for anything.
    fn start(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(&["run"]);
        command.env("NOTIFY_SOCKET", self.path("notify")).env("WATCHDOG_USEC", "400000").stderr(Stdio::from(log));
        self.daemon = Some(command.spawn().unwrap());
    }

    /// Starts the daemon and waits until it is ready.
    fn run(&mut self) {
        self.start();
        self.told("READY=1");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.daemon.as_ref().unwrap().id().try_into().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        self.daemon.take().unwrap().wait().unwrap()
    }

    /// Waits for a message to systemd that has this, and returns it.
    fn told(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(message) = self.systemd.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if message.contains(wanted) {
                return message;
            }
        }
        panic!("systemd was never told {wanted}; the log:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn status(&self) -> (i32, Value) {
        let (code, stdout, stderr) = self.nodewall(&["status", "--json"]);
        (code, serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}")))
    }

    /// Waits until the status is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(i32, &Value) -> bool) -> Value {
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
}

/// The table with handles and without the counters, which count what the machine's own links send.
fn table() -> String {
    let text = sh("nft -a list table inet nodewall");
    let words: Vec<&str> = text.split(' ').collect();
    let counted = |index: usize| index > 0 && matches!(words[index - 1], "packets" | "bytes");
    words.iter().enumerate().map(|(index, word)| if counted(index) { "N" } else { *word }).collect::<Vec<_>>().join(" ")
}

/// The chain that the input dispatch map has for an interface.
fn chain_of(interface: &str) -> Option<String> {
    let loaded = Netlink::open().unwrap().load(&Read::Everything).unwrap();
    let Elements::Keys(keys) =
        &loaded.ruleset.sets.iter().find(|(name, _)| name.starts_with("in_interfaces/")).unwrap().1.elements
    else {
        panic!("no map of names")
    };
    let name = InterfaceName::new(interface).unwrap();
    keys.iter().find_map(|(key, verdict)| match verdict {
        Some(Verdict::Goto(chain) | Verdict::Jump(chain)) if *key == ElementKey::of([Datum::name(name.as_str())]) => {
            Some(chain.clone())
        }
        _ => None,
    })
}

#[test]
fn ready_comes_with_the_rules_and_the_watchdog_is_fed() {
    isolated("ready", || {
        let mut node = Node::new();
        node.start();
        let message = node.told("READY=1");
        assert!(table().contains("kubelet#1 20-kubelet.toml:"), "ready means in force");
        assert!(message.contains("STATUS=generation 1 in force: 1 policies"), "{message}");
        node.told("WATCHDOG=1");
        let first = Instant::now();
        node.told("WATCHDOG=1");
        node.told("WATCHDOG=1");
        let two = first.elapsed();
        assert!((Duration::from_millis(200)..Duration::from_secs(4)).contains(&two), "{two:?} for two of 200 ms");

        let (code, status) = node.status();
        assert_eq!(code, 0);
        assert_eq!(status["version"], 1);
        assert_eq!((&status["state"], &status["in_sync"]), (&"in-force".into(), &true.into()));
        assert_eq!(status["hash"].as_str().unwrap().len(), 64);
        assert!(status["since"].as_str().unwrap().ends_with('Z'));
        let mgmt = status["interfaces"].as_array().unwrap().iter().find(|link| link["name"] == "mgmt0").unwrap();
        assert_eq!((&mgmt["role"], &mgmt["why"]), (&"mgmt".into(), &"default route".into()));
        let policy = &status["policies"][0];
        assert_eq!((&policy["name"], &policy["rules"]), (&"kubelet".into(), &2.into()));
        let (code, text, _) = node.nodewall(&["status"]);
        assert_eq!(code, 0);
        assert!(text.starts_with("state      in force\ngeneration 1 since 20"), "{text}");
    });
}

#[test]
fn sighup_reloads_and_tells_when_it_is_done() {
    isolated("sighup", || {
        let mut node = Node::new();
        node.run();
        node.signal(Signal::SIGHUP);
        let reloading = node.told("RELOADING=1");
        let stamp = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
        assert!(stamp.parse::<u64>().unwrap() > 0);
        node.told("READY=1");
    });
}

#[test]
fn changed_files_are_in_force_without_being_told() {
    isolated("files", || {
        let mut node = Node::new();
        node.run();
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("10250", "10255"));
        node.until("the new port", |_, status| status["generation"] == 2);
        assert!(table().contains("10255") && !table().contains("10250"));
        node.write(
            "policy.d/30-more.toml.new",
            "[[policy]]\nname = \"more\"\norder = 5\ninterfaces = \"all()\"\ningress = []\n",
        );
        std::fs::rename(node.path("policy.d/30-more.toml.new"), node.path("policy.d/30-more.toml")).unwrap();
        node.until("one more policy", |_, status| status["policies"].as_array().unwrap().len() == 2);
        std::fs::remove_dir_all(node.path("policy.d")).unwrap();
        node.until("no policy", |_, status| status["policies"].as_array().unwrap().is_empty());
        std::fs::create_dir(node.path("policy.d")).unwrap();
        node.write("policy.d/20-kubelet.toml", KUBELET);
        node.until("the policy again", |_, status| status["policies"].as_array().unwrap().len() == 1);
    });
}

#[test]
fn a_link_is_under_its_roles_rules_within_100_ms_of_coming_and_of_being_renamed() {
    isolated("links", || {
        let mut node = Node::new();
        node.write(
            "policy.d/10-nics.toml",
            "[[interface]]\nname = \"rails\"\nmatch = { name = \"rail*\" }\nrole = \"rail\"\n",
        );
        node.run();
        let within = |what: &str, interface: &str, wanted: Option<&str>| {
            let start = Instant::now();
            while chain_of(interface).as_deref() != wanted {
                assert!(
                    start.elapsed() < PATIENCE,
                    "{what}: {interface} has {:?}\n{}",
                    chain_of(interface),
                    node.log()
                );
            }
            start.elapsed()
        };
        let mut times = Vec::new();
        for round in 0..5 {
            sh(&format!("ip link add x{round} type veth peer name y{round}"));
            times.push(within("a new veth", &format!("x{round}"), Some("in_pod")));
            sh(&format!("ip link set x{round} name rail{round}"));
            times.push(within("a renamed one", &format!("rail{round}"), Some("in_rail")));
            within("its old name", &format!("x{round}"), None);
        }
        times.sort();
        println!("until the chain was seen by reading the map again and again: {times:?}");
        assert!(times[times.len() / 2] < Duration::from_millis(100), "{times:?}");
    });
}

#[test]
fn bad_files_leave_the_last_good_generation_in_force_and_links_are_followed_all_the_same() {
    isolated("bad files", || {
        let mut node = Node::new();
        node.run();
        let before = table();
        node.write(
            "policy.d/30-bad.toml",
            "[[policy]]\nname = \"open\"\ninterfaces = \"all()\"\ningress = []\ncolour = 1\n",
        );
        let status = node.until("degraded", |code, _| code == 9);
        assert_eq!(status["state"], "degraded");
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains("30-bad.toml:5:1") && reason.contains("last good policy"), "{reason}");
        assert!(status["findings"].to_string().contains("unknown-key"));
        assert_eq!(table(), before);
        node.told("STATUS=degraded: ");
        sh("ip link add pod0 type veth peer name pod0p");
        node.until("the new link", |_, status| status["interfaces"].to_string().contains("\"pod0\""));
        assert_eq!(chain_of("pod0").as_deref(), Some("in_pod"));
        // A reload that is refused is over, too.
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        std::fs::remove_file(node.path("policy.d/30-bad.toml")).unwrap();
        node.until("in force", |code, _| code == 0);
    });
}

#[test]
fn sigterm_and_sigkill_leave_the_rules_and_a_restart_adopts_them() {
    isolated("restart", || {
        let mut node = Node::new();
        node.run();
        let before = table();
        node.signal(Signal::SIGTERM);
        assert_eq!(node.ended().code(), Some(0));
        assert_eq!(table(), before);
        let (code, text, messages) = node.nodewall(&["status"]);
        assert_eq!(code, 3);
        assert!(text.starts_with("the table it left is in force: "), "{text}");
        assert!(messages.contains("not running"), "{messages}");

        node.run();
        assert_eq!(table(), before, "handles and counters as they were");
        node.signal(Signal::SIGKILL);
        node.ended();
        assert_eq!(table(), before);
        node.run();
        assert_eq!(table(), before, "the leftover socket is no obstacle");
        assert_eq!(node.status().0, 0);
    });
}

#[test]
fn a_first_start_with_bad_files_locks_down_or_keeps_what_it_finds() {
    isolated("first start", || {
        let mut node = Node::new();
        node.write("policy.d/20-kubelet.toml", "this is not toml");
        node.run();
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("lockdown"), "{status}");
        assert!(table().contains("failsafe:ssh#1"));
        assert!(table().contains("default of mgmt ingress: deny"));
        node.signal(Signal::SIGTERM);
        node.ended();

        node.write("policy.d/20-kubelet.toml", KUBELET);
        assert_eq!(node.nodewall(&["apply"]).0, 0);
        let before = table();
        node.write("policy.d/20-kubelet.toml", "this is not toml");
        node.run();
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("found in the kernel"), "{status}");
        assert_eq!(table(), before);
        node.write("policy.d/20-kubelet.toml", KUBELET);
        node.until("in force", |code, _| code == 0);
        assert_eq!(table(), before, "adopted as it was");
    });
}

#[test]
fn a_second_daemon_is_refused() {
    isolated("second", || {
        let mut node = Node::new();
        node.run();
        let (code, _, messages) = node.nodewall(&["run"]);
        assert_eq!(code, 1);
        assert!(messages.contains("another nodewall answers on"), "{messages}");
        assert_eq!(node.status().0, 0);
    });
}

#[test]
fn disarm_says_that_a_running_daemon_would_put_the_table_back() {
    isolated("disarm", || {
        let mut node = Node::new();
        node.run();
        let (code, stdout, messages) = node.nodewall(&["disarm"]);
        assert_eq!((code, stdout.as_str()), (0, "table inet nodewall removed; nodewall protects nothing now\n"));
        assert!(messages.contains("nodewall is running: it puts the table back"), "{messages}");
        node.until("the table again", |code, _| code == 0);
    });
}

#[test]
fn the_control_socket_takes_one_short_line_and_has_a_mode_for_its_readers() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    isolated("socket", || {
        let mut node = Node::new();
        node.run();
        let socket = node.path("run/nodewall.sock");
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        let ask = |request: &[u8]| -> Value {
            let mut stream = UnixStream::connect(&socket).unwrap();
            let _ = stream.write_all(request);
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            serde_json::from_str(&reply).unwrap()
        };
        for (request, code) in [
            (&b"{\"version\":1,\"request\":\"status\"}\n"[..], None),
            (b"{\"version\":2,\"request\":\"status\"}\n", Some("bad-request")),
            (b"{\"version\":1,\"request\":\"format\"}\n", Some("bad-request")),
            (b"\xff\xfe\n", Some("bad-request")),
            (b"no line end", Some("bad-request")),
        ] {
            assert_eq!(ask(request)["error"]["code"].as_str(), code, "{request:?}");
        }
        assert_eq!(ask(b"{\"version\":1,\"request\":\"reload\"}\n"), serde_json::json!({"version": 1}));
        node.told("RELOADING=1");
        node.told("READY=1");
    });
}

#[test]
fn a_new_policy_ends_the_flows_that_it_denies() {
    isolated("revoke", || {
        let mut node = Node::new();
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let flow = |from, port| plain(Protocol::TCP, ip(from), 40_000, ip("10.77.0.2"), port);
        let ports = || -> Vec<u16> {
            let flows = Conntrack::open().unwrap().flows(&mut |_| true).unwrap();
            flows.iter().filter_map(|flow| Some(flow.original.ports()?.1)).collect()
        };
        node.run();
        inject(&[flow("10.0.0.10", 10250), flow("10.9.0.1", 22)]);
        // What changes no rule ends nothing.
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        node.write("policy.d/20-kubelet.toml", &KUBELET.replace("\"10.0.0.10\", ", ""));
        node.until("the new policy", |_, status| status["generation"] == 2);
        let deadline = Instant::now() + PATIENCE;
        while ports() != [22] {
            assert!(Instant::now() < deadline, "{:?}\n{}", ports(), node.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        while !node.log().contains("ended 1 of 2 flows, which the policy denies") {
            assert!(Instant::now() < deadline, "{}", node.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // And not where it is switched off.
        node.write(
            "nodewall.toml",
            &format!(
                "socket = \"{}\"\nstate_directory = \"{}\"\n[conntrack]\nrevoke = false\n",
                node.path("run/nodewall.sock").display(),
                node.path("state").display()
            ),
        );
        node.signal(Signal::SIGHUP);
        node.told("READY=1");
        inject(&[flow("10.0.0.10", 10250)]);
        node.write(
            "policy.d/30-more.toml",
            "[[policy]]\nname = \"more\"\norder = 5\ninterfaces = \"all()\"\ningress = [{ action = \"deny\", protocol = \"udp\" }]\n",
        );
        node.until("one more policy", |_, status| status["generation"] == 3);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(ports().len(), 2);
    });
}
