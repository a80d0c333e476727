//! The daemon over a host's life, as the real binary in a namespace: generations on disk, confirmations, ways back, emergencies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{isolated, sh};
use serde_json::Value;

/// What waits longer than this has failed; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Port 80 is what a prober uses; everything on loopback but this policy is allowed by default, so the prober is on a veth.
fn policy(name: &str, action: &str) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\norder = 10\ninterfaces = \"all()\"\ningress = [\n  {{ action = \"{action}\", protocol = \"tcp\", ports = [8080] }},\n]\n"
    )
}

/// A node with the daemon on it, and a prober behind a wire.
struct Node {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    prober: Prober,
}

/// A second namespace that connects to the node's port 8080.
struct Prober {
    pid: u32,
    sleeper: Child,
}

impl Prober {
    fn new() -> Self {
        let sleeper = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().unwrap();
        let pid = sleeper.id();
        // The namespace is another one as soon as unshare(1) has made it.
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let start = Instant::now();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() == own {
            assert!(start.elapsed() < PATIENCE, "no namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        sh(&format!("ip link add mgmt0 type veth peer name peer0; ip link set peer0 netns {pid}"));
        sh("ip link set mgmt0 up; ip addr add 10.77.0.2/24 dev mgmt0; ip route add default via 10.77.0.1");
        sh(&format!("nsenter -t {pid} -n sh -ec 'ip link set peer0 up; ip addr add 10.77.0.1/24 dev peer0'"));
        Self { pid, sleeper }
    }

    /// Whether a new connection is let through, within 150 ms.
    fn connects(&self) -> bool {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let address: SocketAddr = "10.77.0.2:8080".parse().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_millis(150)).is_ok()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// The daemon is in force with a policy that lets the prober in.
    fn new() -> Self {
        let prober = Prober::new();
        let listener = TcpListener::bind("10.77.0.2:8080").unwrap();
        std::thread::spawn(move || while listener.accept().is_ok() {});
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        let mut node = Self { folder, daemon: None, prober };
        node.write("nodewall.toml", &node.settings());
        node.write("policy.d/10.toml", &policy("open", "allow"));
        node.run();
        node.until("in force", |code, _| code == 0);
        assert!(node.prober.connects());
        node
    }

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

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.nodewall(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}\n{}", self.log());
        stdout
    }

    fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        self.daemon = Some(self.command(&["run"]).stderr(Stdio::from(log)).spawn().unwrap());
    }

    /// SIGKILL.
    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    fn until(&self, what: &str, wanted: impl Fn(i32, &Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (code, stdout, _) = self.nodewall(&["status", "--json"]);
            let status = serde_json::from_str(&stdout).unwrap_or_default();
            if wanted(code, &status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {code} {status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the prober is let in, and returns how long after `since` that was.
    #[track_caller]
    fn back(&self, since: Instant) -> Duration {
        while !self.prober.connects() {
            assert!(since.elapsed() < PATIENCE, "the prober is still cut off\n{}", self.log());
        }
        since.elapsed()
    }

    /// The numbers in the history, newest first, and the confirmed one.
    fn history(&self) -> (Vec<u64>, Option<u64>) {
        let history: Value = serde_json::from_str(&self.must(&["history", "--json"])).unwrap();
        let lines = history["generations"].as_array().unwrap();
        (lines.iter().map(|line| line["generation"].as_u64().unwrap()).collect(), history["confirmed"].as_u64())
    }
}

#[test]
fn every_change_is_a_generation_on_disk_and_a_restart_goes_on_with_the_same_one() {
    isolated("history", || {
        let mut node = Node::new();
        node.until("kept", |_, _| node.history() == (vec![1], Some(1)));
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        let status = node.until("the second", |_, status| status["generation"] == 2);
        node.until("kept", |_, _| node.history() == (vec![2, 1], Some(2)));
        assert!(!node.prober.connects());
        let history: Value = serde_json::from_str(&node.must(&["history", "--json"])).unwrap();
        assert_eq!(history["generations"][0]["hash"], status["hash"]);
        let text = node.must(&["history"]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].trim_start().starts_with("2  20") && lines[0].ends_with("  files  confirmed"), "{text}");
        node.kill();
        node.run();
        let status = node.until("again", |code, _| code == 0);
        assert_eq!((&status["generation"], &status["confirmed"]), (&2.into(), &2.into()));

        // A generation further back, by number; it holds over a restart, until the documents change.
        assert!(node.must(&["rollback"]).starts_with("generation 1 is in force"));
        assert!(node.prober.connects());
        node.kill();
        node.run();
        let status = node.until("again", |code, status| code == 0 && status["generation"] == 1);
        assert!(status["reason"].as_str().unwrap().contains("brought back by uid 0"), "{status}");
        assert!(node.prober.connects());
        node.must(&["rollback", "2"]);
        assert!(!node.prober.connects());
        node.must(&["rollback", "1"]);
        node.write("policy.d/10.toml", &policy("closed-again", "deny"));
        node.until("the third", |_, status| status["generation"] == 3);
        assert!(!node.prober.connects());
        let (code, _, stderr) = node.nodewall(&["rollback", "99"]);
        assert_eq!(code, 1, "{stderr}");
        assert_eq!(node.nodewall(&["confirm"]).0, 1);
    });
}

#[test]
fn what_cuts_the_operator_off_is_gone_when_nobody_confirms_it() {
    isolated("confirm", || {
        let mut node = Node::new();
        node.write("new.toml", &policy("closed", "deny"));
        let new = node.path("new.toml");
        let new = new.to_str().unwrap().to_owned();

        // Nobody answers.
        let start = Instant::now();
        let said = node.must(&["apply", "--confirm", "3s", &new]);
        assert!(said.starts_with("in force, unconfirmed"), "{said}");
        assert!(!node.prober.connects());
        let (_, text, _) = node.nodewall(&["status"]);
        assert!(text.contains("it goes back to generation 1 in "), "{text}");
        let back = node.back(start);
        println!("back after {back:?}");
        assert!((Duration::from_millis(2500)..Duration::from_millis(3500)).contains(&back), "{back:?}");
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("nobody confirmed it in time"), "{status}");

        // The daemon dies at once and comes again in time.
        let start = Instant::now();
        node.must(&["apply", "--confirm", "3s", &new]);
        node.kill();
        assert!(!node.prober.connects());
        node.run();
        let back = node.back(start);
        println!("back after {back:?} with a restart");
        assert!((Duration::from_millis(2500)..Duration::from_millis(3500)).contains(&back), "{back:?}");

        // It comes again too late.
        node.must(&["apply", "--confirm", "1s", &new]);
        node.kill();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!node.prober.connects());
        let start = Instant::now();
        node.run();
        let back = node.back(start);
        println!("back {back:?} after a late start");
        assert!(back < Duration::from_secs(2), "{back:?}");

        // A rollback before the time is over.
        node.must(&["apply", "--confirm", "5m", &new]);
        assert!(!node.prober.connects());
        node.must(&["rollback"]);
        assert!(node.prober.connects());

        // The operator answers; it stays, also over a restart.
        node.must(&["apply", "--confirm", "2s", &new]);
        assert!(node.must(&["confirm"]).contains("is confirmed"));
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!node.prober.connects());
        node.kill();
        node.run();
        node.until("in force", |code, _| code == 0);
        assert!(!node.prober.connects());
        let (numbers, confirmed) = node.history();
        assert_eq!(confirmed, numbers.first().copied());
    });
}

#[test]
fn documents_in_place_that_nobody_confirmed_stay_out_until_they_change() {
    isolated("trial of files", || {
        let mut node = Node::new();
        node.write("nodewall.toml", &format!("{}[apply]\nconfirm = \"2s\"\n", node.settings()));
        node.until("other settings", |_, status| status["state"] == "unconfirmed");
        node.must(&["confirm"]);
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        node.until("on trial", |_, status| status["state"] == "unconfirmed");
        let start = Instant::now();
        assert!(!node.prober.connects());
        node.back(start);
        // Neither a reload nor a restart brings them back.
        for _ in 0..2 {
            node.kill();
            node.run();
            node.until("the confirmed one", |code, _| code == 9);
            assert!(node.prober.connects());
        }
        // Asked for by name they have another chance, and a change of the files is one, too.
        node.must(&["apply", "--confirm", "5m"]);
        assert!(!node.prober.connects());
        node.write("policy.d/10.toml", &policy("open", "allow"));
        node.until("what is confirmed", |code, status| code == 0 && status["state"] == "in-force");
        assert!(node.prober.connects());
    });
}

#[test]
fn panic_closes_and_break_glass_opens_until_its_time_is_over_whatever_happens_to_the_daemon() {
    isolated("emergency", || {
        let mut node = Node::new();
        node.must(&["panic", "on", "--reason", "worm"]);
        assert!(!node.prober.connects());
        let (code, text, _) = node.nodewall(&["status"]);
        assert!(code == 9 && text.contains("PANIC") && text.contains("worm"), "{code} {text}");
        assert_eq!(node.nodewall(&["apply", "--confirm", "5s"]).0, 1);
        node.kill();
        node.run();
        node.until("panic again", |code, status| code == 9 && status["state"] == "panic");
        assert!(!node.prober.connects());
        node.must(&["panic", "off"]);
        assert!(node.prober.connects());
        assert_eq!(node.until("in force", |code, _| code == 0)["generation"], 1);

        node.write("policy.d/10.toml", &policy("closed", "deny"));
        node.until("closed", |_, status| status["generation"] == 2);
        assert_eq!(node.nodewall(&["break-glass", "--for", "2s"]).0, 2, "a reason is needed");
        let start = Instant::now();
        node.must(&["break-glass", "--for", "3s", "--reason", "console is gone"]);
        assert!(node.prober.connects());
        node.kill();
        node.run();
        node.until("open again", |_, status| status["state"] == "break-glass");
        assert!(node.prober.connects());
        while node.prober.connects() {
            assert!(start.elapsed() < PATIENCE, "it does not end\n{}", node.log());
        }
        let open = start.elapsed();
        println!("open for {open:?}");
        assert!((Duration::from_millis(2500)..Duration::from_millis(3700)).contains(&open), "{open:?}");
        node.until("in force", |code, status| code == 0 && status["generation"] == 2);
        let log = node.log();
        for words in
            ["PANIC: only essentials", "by uid 0 (pid ", ": worm", "BREAK-GLASS: ", ": console is gone", "over: "]
        {
            assert!(log.contains(words), "{words} is not in\n{log}");
        }
        node.must(&["break-glass", "--for", "15m", "--reason", "x"]);
        node.must(&["break-glass", "--end"]);
        assert!(!node.prober.connects());
    });
}

#[test]
fn a_store_that_cannot_be_written_is_reported_and_changes_nothing_in_force() {
    isolated("no store", || {
        let mut node = Node::new();
        node.kill();
        std::fs::remove_dir_all(node.path("state")).unwrap();
        node.write("state", "not a directory");
        node.run();
        let status = node.until("in force", |code, status| code == 0 && !status["store_error"].is_null());
        assert_eq!(status["state"], "in-force");
        assert!(node.prober.connects());
        node.write("new.toml", &policy("closed", "deny"));
        let (code, _, stderr) = node.nodewall(&["apply", "--confirm", "2s", node.path("new.toml").to_str().unwrap()]);
        assert_eq!(code, 1, "no way back, no trial: {stderr}");
        assert!(node.prober.connects());
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        let start = Instant::now();
        while node.prober.connects() {
            assert!(start.elapsed() < PATIENCE, "a change of the files is in force all the same\n{}", node.log());
        }
        // The disk is back: what is in force is kept with the next change.
        std::fs::remove_file(node.path("state")).unwrap();
        node.write("policy.d/10.toml", &policy("open", "allow"));
        node.until("kept", |code, status| code == 0 && status["store_error"].is_null());
        assert_eq!(node.history().1, Some(node.history().0[0]));
    });
}

/// What a boot does: the bytes on disk, sent as they are, over whatever our table holds.
#[test]
fn the_batch_of_a_generation_puts_it_in_force_without_a_parser() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
        sockopt,
    };
    use nodewall::store::{Directory, Store};
    use std::os::fd::AsRawFd;
    isolated("batch", || {
        let mut node = Node::new();
        node.until("kept", |_, _| node.history() == (vec![1], Some(1)));
        node.kill();
        let generation = Store::new(Directory::existing(&node.path("state"))).confirmed().0.unwrap();
        let rules = || {
            // What a packet of the links themselves counted meanwhile is no difference, nor is the order of sets.
            let text = sh("nft -s list table inet nodewall");
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let before = rules();
        assert!(before.len() > 50);
        for ruin in ["nft delete table inet nodewall", "nft flush chain inet nodewall input", "true"] {
            sh(ruin);
            let netlink =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                    .unwrap();
            bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
            setsockopt(&netlink, sockopt::SndBuf, &(1 << 20)).unwrap();
            let kernel = NetlinkAddr::new(0, 0);
            sendto(netlink.as_raw_fd(), &generation.batch, &kernel, MsgFlags::empty()).unwrap();
            let mut answer = [0; 8192];
            let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
            // struct nlmsghdr, then struct nlmsgerr's errno: 0 is an acknowledgement.
            assert!(length >= 20);
            assert_eq!(i32::from_ne_bytes(answer[16..20].try_into().unwrap()), 0, "after {ruin}");
            assert_eq!(rules(), before, "after {ruin}");
        }
        let (code, _, stderr) = node.nodewall(&["confirm"]);
        assert_eq!(code, 3, "{stderr}");
        // The daemon adopts what a boot loaded.
        node.run();
        node.until("in force", |code, _| code == 0);
        assert!(node.log().contains("policy in force generation=1 rules=68 changes=0"), "{}", node.log());
    });
}
