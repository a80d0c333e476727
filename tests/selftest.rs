//! Changes that confirm themselves, by the real daemon in a namespace: with servers that the probes reach or do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::may_run;
use lab::net::{Host, Servers, wire};
use serde_json::Value;

/// What waits longer than this has failed; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A policy that lets everybody in to port 8080 and this host out to everybody but a port; 0 is none.
fn policy(name: &str, denied: u16) -> String {
    format!(
        "[[policy]]\nname = \"{name}\"\norder = 10\ninterfaces = \"all()\"\ningress = [\n  \
         {{ action = \"allow\", protocol = \"tcp\", ports = [8080] }},\n]\negress = [\n  \
         {{ action = \"deny\", protocol = \"tcp\", ports = [{}] }},\n]\n",
        if denied == 0 { 9 } else { denied }
    )
}

/// A node with the daemon on it, and a neighbour with servers.
struct Node {
    host: Host,
    /// Gone with this is the other end of the wire.
    _neighbour: Host,
    servers: Option<Servers>,
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// The daemon is in force with a policy that lets everything out. `settings` are added to nodewall.toml.
    fn new(settings: &str) -> Self {
        let (host, neighbour) = (Host::new(), Host::new());
        wire((&host, "mgmt0", &["10.77.0.2/24", "fd77::2/64"]), (&neighbour, "peer0", &["10.77.0.1/24", "fd77::1/64"]));
        host.sh("ip route add default via 10.77.0.1");
        let servers = Some(neighbour.serve(&[443, 6443], &[]));
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        let mut node = Self { host, _neighbour: neighbour, servers, folder, daemon: None };
        node.settings(settings);
        node.write("kubeconfig", "server: https://10.77.0.1:6443\n");
        node.write("policy.d/10.toml", &policy("first", 0));
        node.run();
        node.until("in force", |code, status| code == 0 && status["confirmed"] == 1);
        node
    }

    fn settings(&self, more: &str) {
        let path = |name: &str| self.path(name).display().to_string();
        let (socket, state, kubeconfig) = (path("run/nodewall.sock"), path("state"), path("kubeconfig"));
        let text =
            format!("socket = \"{socket}\"\nstate_directory = \"{state}\"\nkubeconfig = \"{kubeconfig}\"\n{more}");
        self.write("nodewall.toml", &text);
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
        let output = self.host.enter(|| self.command(arguments).output().unwrap());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.nodewall(arguments);
        assert_eq!(code, 0, "{arguments:?}: {stdout}{stderr}\n{}", self.log());
        stdout
    }

    /// Applies a policy from a file of its own, with what else is asked for.
    fn apply(&self, policy: &str, arguments: &[&str]) -> (i32, String, String) {
        self.write("new.toml", policy);
        let new = self.path("new.toml");
        self.nodewall(&[&["apply"], arguments, &[new.to_str().unwrap()]].concat())
    }

    fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(&["run"]);
        self.daemon = Some(self.host.enter(move || command.stderr(Stdio::from(log)).spawn().unwrap()));
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
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until something holds.
    #[track_caller]
    fn wait(&self, what: &str, wanted: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted() {
            assert!(Instant::now() < deadline, "{what} did not come\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the node reaches a port of its neighbour.
    fn reaches(&self, port: u16) -> bool {
        let end = format!("10.77.0.1:{port}").parse().unwrap();
        self.host.enter(|| TcpStream::connect_timeout(&end, Duration::from_millis(300)).is_ok())
    }
}

const STORE: &str = "[[selftest.probe]]\nname = \"store\"\ntcp = \"10.77.0.1:443\"\n";

/// The outcome of a probe in a status.
fn outcome<'a>(status: &'a Value, probe: &str) -> &'a str {
    let results = status["selftest"]["results"].as_array().unwrap();
    let result = results.iter().find(|result| result["probe"] == probe);
    result.unwrap_or_else(|| panic!("no {probe} in {status:#}"))["outcome"].as_str().unwrap()
}

#[test]
fn a_change_with_which_everything_works_confirms_itself() {
    if !may_run("self-test passes") {
        return;
    }
    let mut node = Node::new("");
    // Says what was in the kernel when it was run.
    let script = format!(
        "#!/bin/sh\nnft list table inet nodewall | grep -c 'second#' >> {}\nexit 0\n",
        node.path("seen").display()
    );
    node.write("look", &script);
    std::fs::set_permissions(node.path("look"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let look = format!(
        "[[selftest.probe]]\nname = \"look\"\ncommand = [\"{}\"]\ntimeout = \"5s\"\n",
        node.path("look").display()
    );
    node.settings(&format!("{STORE}{look}"));
    node.until("other settings", |code, status| code == 0 && status["generation"] == 2 && status["confirmed"] == 2);
    let (code, stdout, stderr) = node.apply(&policy("second", 0), &["--confirm", "auto", "--wait"]);
    assert_eq!(code, 0, "{stderr}\n{}", node.log());
    assert!(stderr.contains("in force, unconfirmed: it goes in 60 s unless its self-test"), "{stderr}");
    assert!(stdout.starts_with("generation 3 is confirmed by self-test: "), "{stdout}");
    let status = node.until("confirmed", |code, status| code == 0 && status["confirmed"] == 3);
    assert_eq!((&status["state"], &status["selftest"]["state"]), (&"in-force".into(), &"passed".into()));
    for probe in ["cluster API", "failsafe ssh", "store", "look"] {
        assert_eq!(outcome(&status, probe), "passed", "{status:#}");
        assert!(stdout.contains(probe), "{stdout}");
    }
    // Nobody listens on 22 and 10248 here.
    for probe in ["listener ssh", "kubelet healthz"] {
        assert_eq!(outcome(&status, probe), "absent", "{status:#}");
        assert!(!stdout.contains(probe), "{stdout}");
    }
    // Once without the change and once with it.
    let seen = std::fs::read_to_string(node.path("seen")).unwrap();
    let seen: Vec<u32> = seen.lines().map(|line| line.parse().unwrap()).collect();
    assert!(seen.len() == 2 && seen[0] == 0 && seen[1] > 0, "{seen:?}");
    let log = node.log();
    assert!(log.contains("confirmed by self-test: ") && log.contains("unless its self-test passes"), "{log}");
    assert!(node.must(&["status"]).contains("self-test  generation 3 was confirmed by it; "));
    for wrong in [&["apply", "--wait"][..], &["apply", "--confirm", "2m", "--wait"], &["apply", "--confirm", "autos"]] {
        assert_eq!(node.nodewall(wrong).0, 2, "{wrong:?}");
    }
    // It is what a restart goes on with.
    node.kill();
    node.run();
    node.until("again", |code, status| code == 0 && status["generation"] == 3 && status["confirmed"] == 3);
}

#[test]
fn a_change_that_cuts_something_off_goes_also_when_the_daemon_dies_meanwhile() {
    if !may_run("self-test fails") {
        return;
    }
    let mut node = Node::new(STORE);
    let (code, stdout, stderr) = node.apply(&policy("cut", 443), &["--confirm", "auto:12s"]);
    assert_eq!(code, 0, "{stderr}\n{}", node.log());
    assert!(stdout.starts_with("in force, unconfirmed: it goes in 12 s unless its self-test"), "{stdout}");
    assert!(!node.reaches(443));
    node.kill();
    assert!(!node.reaches(443), "nothing changes with the daemon's death");
    node.run();
    let status = node.until("tested again", |_, status| status["selftest"]["rounds"].as_u64() > Some(0));
    assert_eq!(status["state"], "unconfirmed", "{status:#}");
    assert_eq!((&status["confirm_by"], outcome(&status, "store")), (&"self-test".into(), "failed"), "{status:#}");
    let text = node.nodewall(&["status"]).1;
    assert!(
        text.contains("unless its self-test passes") && text.contains("store failed: 10.77.0.1:443: no answer"),
        "{text}"
    );
    let status = node.until("given up", |code, status| code == 9 && status["state"] == "degraded");
    let why = "generation 2 was given up: its self-test failed: store: 10.77.0.1:443: no answer within 2 s";
    assert!(status["reason"].as_str().unwrap().starts_with(why), "{status:#}");
    assert_eq!((&status["generation"], &status["selftest"]["state"]), (&1.into(), &"failed".into()));
    assert!(node.reaches(443));
    let log = node.log();
    assert!(
        log.contains(&format!("rolling back: {why}")) && log.contains("the self-test fails and goes on: store: "),
        "{log}"
    );

    // At the beginning, by the daemon that was started again, and after half of the time that it had.
    assert!(log.matches("unconfirmed: it goes in ").count() >= 3, "{log}");

    // The one who ordered it and waits is told.
    let (code, stdout, stderr) = node.apply(&policy("cut", 443), &["--confirm", "auto:6s", "--wait"]);
    assert_eq!((code, stdout.as_str()), (7, ""), "{stderr}");
    assert!(
        stderr.contains("was given up: its self-test failed: store: 10.77.0.1:443: no answer within 2 s"),
        "{stderr}"
    );
    assert!(node.reaches(443));
}

#[test]
fn the_cluster_api_counts_unless_it_was_away_before() {
    if !may_run("cluster API") {
        return;
    }
    let mut node = Node::new("[failsafe]\nentry = []\n");
    let (code, _, stderr) = node.apply(&policy("cut", 6443), &["--confirm", "auto:6s", "--wait"]);
    assert_eq!(code, 7, "{stderr}\n{}", node.log());
    assert!(stderr.contains("cluster API: 10.77.0.1:6443: no answer within 2 s"), "{stderr}");
    assert!(node.reaches(6443));
    // With a failsafe entry for it no policy can cut it off.
    node.settings("");
    node.until("the failsafe", |_, status| status["failsafe"].as_array().is_some_and(|entries| entries.len() == 4));
    let (code, _, stderr) = node.apply(&policy("cut", 6443), &["--confirm", "auto", "--wait"]);
    assert_eq!(code, 0, "{stderr}\n{}", node.log());
    assert!(node.reaches(6443));
    // A server that is down is no reason to keep a policy from being changed.
    node.servers = None;
    let (code, stdout, stderr) = node.apply(&policy("other", 9), &["--confirm", "auto", "--wait"]);
    assert_eq!(code, 0, "{stderr}\n{}", node.log());
    assert!(stdout.contains("cluster API failed before too: 10.77.0.1:6443: connection refused"), "{stdout}");
    let status = node.until("confirmed", |code, _| code == 0);
    assert_eq!(outcome(&status, "cluster API"), "failed-before-too", "{status:#}");
}

#[test]
fn files_that_change_are_tested_and_stay_out_when_they_fail() {
    if !may_run("self-test of files") {
        return;
    }
    let mut node = Node::new(&format!("{STORE}[apply]\nconfirm = \"auto:5s\"\n"));
    node.write("policy.d/10.toml", &policy("second", 0));
    node.until("the second", |code, status| code == 0 && status["confirmed"] == 2);
    node.write("policy.d/10.toml", &policy("cut", 443));
    node.until("on trial", |_, status| status["state"] == "unconfirmed");
    node.until("given up", |code, status| code == 9 && status["generation"] == 2);
    assert!(node.reaches(443));
    // A restart does not bring them back, and other files count again.
    node.kill();
    node.run();
    node.until("the confirmed one", |code, status| code == 9 && status["generation"] == 2);
    assert!(node.reaches(443));
    node.write("policy.d/10.toml", &policy("third", 0));
    node.until("the third", |code, status| code == 0 && status["confirmed"].as_u64() > Some(3));
    // A mistake that is put right in time is none.
    node.settings(&format!("{STORE}[apply]\nconfirm = \"auto:60s\"\n"));
    node.until("other settings", |code, status| code == 0 && status["confirmed"].as_u64() > Some(4));
    node.write("policy.d/10.toml", &policy("cut-again", 443));
    let status = node.until("a failing one", |_, status| {
        status["selftest"]["rounds"].as_u64() > Some(0) && status["state"] == "unconfirmed"
    });
    let failing = status["generation"].as_u64().unwrap();
    node.write("policy.d/10.toml", &policy("mended", 0));
    node.until("the mended one", |code, status| code == 0 && status["confirmed"].as_u64() > Some(failing));
}

#[test]
fn who_logs_in_is_told_while_something_holds_for_the_moment_only() {
    if !may_run("motd") {
        return;
    }
    let mut node = Node::new("");
    let motd = node.path("motd.d/nodewall");
    node.settings(&format!("{STORE}[apply]\nmotd = \"{}\"\n", motd.display()));
    node.until("other settings", |code, status| code == 0 && status["confirmed"] == 2);
    assert!(!motd.exists());
    let text = || std::fs::read_to_string(&motd).unwrap_or_default();
    let (code, _, stderr) = node.apply(&policy("second", 0), &["--confirm", "5m"]);
    assert_eq!(code, 0, "{stderr}");
    node.wait("the motd", || motd.exists());
    assert!(
        text().starts_with("nodewall: generation 3 is not confirmed: it goes back to generation 2 at 20"),
        "{}",
        text()
    );
    assert!(text().contains("nodewall confirm") && text().contains("nodewall rollback"), "{}", text());
    assert_eq!(std::fs::metadata(&motd).unwrap().mode() & 0o7777, 0o644);
    // It says so also while the daemon is away, and afterwards.
    let before = text();
    node.kill();
    assert_eq!(text(), before);
    node.run();
    node.until("again", |_, status| status["state"] == "unconfirmed");
    assert_eq!(text(), before);
    node.must(&["confirm"]);
    node.wait("its end", || !motd.exists());

    // A self-test that fails.
    let (code, _, stderr) = node.apply(&policy("cut", 443), &["--confirm", "auto:5s"]);
    assert_eq!(code, 0, "{stderr}");
    node.wait("the motd", || text().contains("unless its self-test passes"));
    node.wait("its end", || !motd.exists());
    node.wait("the way back", || node.reaches(443));

    node.must(&["panic", "on", "--reason", "worm"]);
    node.wait("the motd", || {
        text().contains("PANIC") && text().contains("worm") && text().contains("nodewall panic off")
    });
    node.must(&["break-glass", "--for", "15m", "--reason", "console"]);
    node.wait("the motd", || text().contains("BREAK-GLASS") && text().contains(", until 20"));
    node.kill();
    node.run();
    node.until("again", |_, status| status["state"] == "break-glass");
    node.must(&["break-glass", "--end"]);
    node.wait("its end", || !motd.exists());
    // What a crash left behind is gone with the next start.
    node.kill();
    node.write("motd.d/nodewall", "old");
    node.run();
    node.wait("its end", || !motd.exists());
    // One that cannot be written is no reason to do anything else.
    node.write("file", "");
    node.settings(&format!("[apply]\nmotd = \"{}/x\"\n", node.path("file").display()));
    node.until("other settings", |code, _| code == 0);
    node.must(&["panic", "on"]);
    node.wait("the warning", || node.log().contains("WARN cannot keep "));
    node.must(&["panic", "off"]);
}

#[test]
fn panic_waits_for_no_self_test() {
    if !may_run("panic meanwhile") {
        return;
    }
    let slow = "[[selftest.probe]]\nname = \"slow\"\ntcp = \"10.77.0.77:443\"\ntimeout = \"5s\"\n";
    let node = Node::new("");
    node.settings(slow);
    node.until("other settings", |code, status| code == 0 && status["confirmed"] == 2);
    // Nobody on the wire has that hardware address, so that what is sent there gets no answer.
    node.host.sh("ip neigh add 10.77.0.77 lladdr 02:00:00:00:00:01 dev mgmt0");
    node.write("new.toml", &policy("second", 0));
    let mut command = node.command(&["apply", "--confirm", "auto", node.path("new.toml").to_str().unwrap()]);
    let waiting = node.host.enter(|| command.stderr(Stdio::piped()).spawn().unwrap());
    node.until("the probes without it", |_, status| status["selftest"]["state"] == "before");
    let start = Instant::now();
    node.must(&["panic", "on"]);
    println!("panic after {:?}", start.elapsed());
    let output = waiting.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("panic or break-glass was ordered meanwhile"), "{stderr}");
    let status = node.until("panic", |code, status| code == 9 && status["state"] == "panic");
    assert_eq!(status["selftest"], Value::Null, "{status:#}");
    node.must(&["panic", "off"]);
    node.until("as before", |code, status| code == 0 && status["generation"] == 2);
}
