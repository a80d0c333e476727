//! The real daemon and what changes on its host without a document changing: time, units and accounts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use lab::conntrack::{inject, plain};
use lab::{isolated, sh};
use nodewall::driver::Conntrack;
use nodewall::host::cgroup;
use nodewall::net::protocol::Protocol;
use nodewall::text::time;
use serde_json::Value;

/// What waits longer than this has failed; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with its files in a temporary directory, and the daemon on it.
struct Node {
    folder: tempfile::TempDir,
    root: PathBuf,
    daemon: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// A management link and the files, with this policy; `root` is where the node's accounts and units are looked for.
    fn new(root: &Path, policy: &str) -> Self {
        sh("ip link add mgmt0 type veth peer name mgmt0p; ip link set mgmt0 up; ip link set mgmt0p up");
        sh("ip addr add 10.77.0.2/24 dev mgmt0; ip route add default via 10.77.0.1");
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("policy.d")).unwrap();
        let (socket, state) = (folder.path().join("run/nodewall.sock"), folder.path().join("state"));
        let settings = format!("socket = \"{}\"\nstate_directory = \"{}\"\n", socket.display(), state.display());
        std::fs::write(folder.path().join("nodewall.toml"), settings).unwrap();
        let node = Self { folder, root: root.to_owned(), daemon: None };
        node.write(policy);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, policy: &str) {
        std::fs::write(self.path("policy.d/10.toml"), policy).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.arg("--config").arg(self.path("nodewall.toml")).arg("--policy-dir").arg(self.path("policy.d"));
        if self.root != Path::new("/") {
            command.arg("--root").arg(&self.root);
        }
        command.args(arguments);
        command
    }

    /// Exit code and stdout of a subcommand.
    fn nodewall(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        self.daemon = Some(self.command(&["run"]).stderr(Stdio::from(log)).spawn().unwrap());
        self.until("in force", |status| status["state"] == "in-force");
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
    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = serde_json::from_str(&self.nodewall(&["status", "--json"]).1).unwrap_or(Value::Null);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what} did not come: {status:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn table() -> String {
    sh("nft list table inet nodewall")
}

fn codes(status: &Value) -> Vec<String> {
    let findings = status["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect()
}

fn policies(status: &Value) -> Vec<String> {
    let policies = status["policies"].as_array().unwrap();
    policies.iter().map(|policy| policy["name"].as_str().unwrap().to_owned()).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Lets guests in until a time, and somebody else for good.
fn until(at: u64) -> String {
    format!(
        r#"
[[policy]]
name = "guests"
order = 1
interfaces = "all()"
expires = {}
ingress = [{{ action = "allow", protocol = "tcp", ports = [8080] }}]

[[policy]]
name = "rest"
order = 2
interfaces = "all()"
ingress = [{{ action = "allow", protocol = "tcp", ports = [9090] }}]
"#,
        time::rfc3339(at)
    )
}

#[test]
fn a_policy_goes_at_its_time_with_its_flows_and_stays_away() {
    isolated("expiry", || {
        let far = now() + 3600;
        let mut node = Node::new(Path::new("/"), &until(far));
        node.run();
        let status = node.until("both policies", |status| policies(status) == ["guests", "rest"]);
        let guests = status["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == "guests").unwrap();
        assert_eq!(guests["expires"], time::rfc3339(far));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let flow = |port| plain(Protocol::TCP, ip("10.77.0.9"), 40_000 + port, ip("10.77.0.2"), port);
        inject(&[flow(8080), flow(9090)]);
        assert!(table().contains("guests#1"));

        let at = now() + 3;
        node.write(&until(at));
        while table().contains("guests#1") {
            assert!(now() < at + 20, "{}", node.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(now() >= at, "too early");
        println!("gone {} s after its time", now() - at);
        let status = node.until("the end", |status| policies(status) == ["rest"]);
        assert_eq!((&status["state"], &status["generation"]), (&"in-force".into(), &2.into()));
        assert!(codes(&status).contains(&"expired-policy".to_owned()), "{status:#}");
        assert!(table().contains("rest#1"));
        assert!(node.log().contains(&format!("policy \"guests\" expired at {}", time::rfc3339(at))), "{}", node.log());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let flows = Conntrack::open().unwrap().flows(&mut |_| true).unwrap();
            let ports: Vec<u16> = flows.iter().filter_map(|flow| Some(flow.original.ports()?.1)).collect();
            if ports == [9090] {
                break;
            }
            assert!(Instant::now() < deadline, "{ports:?}\n{}", node.log());
            std::thread::sleep(Duration::from_millis(20));
        }

        node.kill();
        node.run();
        assert_eq!(policies(&node.until("a start", |status| status["in_sync"] == true)), ["rest"]);
        assert!(!table().contains("guests#1"));
        let (code, text) = node.nodewall(&["check"]);
        assert!(code == 0 && text.contains("warning[expired-policy]"), "{text}");
        assert!(!node.nodewall(&["render"]).1.contains("guests#1"));
        node.write(&until(now() + 3600));
        node.until("another time", |status| policies(status) == ["guests", "rest"]);
        assert!(table().contains("guests#1"));
        let (code, text) = node.nodewall(&["render"]);
        assert!(code == 0 && text.contains("guests#1"), "{text}");
    });
}

#[test]
fn a_boot_opens_nothing_that_may_be_over() {
    isolated("boot without expiry", || {
        let mut node = Node::new(Path::new("/"), &until(now() + 3600));
        node.run();
        // It is confirmed when the generation is on disk.
        let state = node.path("state");
        node.until("on disk", |_| state.join("confirmed").exists());
        node.kill();
        sh("nft delete table inet nodewall");
        let (code, text) = node.nodewall(&["boot", "--state-directory", state.to_str().unwrap()]);
        assert!(code == 0 && text.contains("generation 1"), "{text}");
        assert!(table().contains("rest#1") && !table().contains("guests#1"));
        node.run();
        node.until("the daemon knows the time", |_| table().contains("guests#1"));
    });
}

/// A slice of our own at the root of the machine's hierarchy; gone with the test.
struct Slice(PathBuf);

impl Slice {
    fn new(name: &str) -> Option<Self> {
        let path = cgroup::find(Path::new("/"))?.join(format!("nodewalltest{}{name}.slice", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_unit_is_followed_through_stop_and_start_by_its_real_control_group() {
    isolated("units", || {
        use std::os::unix::fs::MetadataExt;
        let Some(slice) = Slice::new("a") else {
            assert!(std::env::var_os("CI").is_none(), "a hierarchy of cgroup v2 that can be written is needed");
            println!("SKIPPED: no hierarchy of cgroup v2 that can be written");
            return;
        };
        let unit = format!("nodewall-test-{}.service", std::process::id());
        let folder = slice.0.join(&unit);
        let policy = format!(
            "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [\n  {{ action = \"allow\", units = [\"{unit}\"] }},\n]\n"
        );
        let mut node = Node::new(Path::new("/"), &policy);
        assert!(node.nodewall(&["check"]).1.contains("warning[not-running]"));
        node.run();
        let cgroups = |status: &Value| status["units"][0]["cgroups"].as_array().cloned().unwrap_or_default();
        let status = node.until("the unit's name", |status| status["units"][0]["name"] == unit.as_str());
        assert_eq!(cgroups(&status), Vec::<Value>::new());
        assert!(!codes(&status).contains(&"not-running".to_owned()), "the daemon follows units");
        let (_, text) = node.nodewall(&["status"]);
        assert!(text.contains(&format!("units      1 of 1 do not run: {unit}")), "{text}");

        let mut times = Vec::new();
        let mut ids = Vec::new();
        for _ in 0..3 {
            std::fs::create_dir(&folder).unwrap();
            let (start, id) = (Instant::now(), std::fs::metadata(&folder).unwrap().ino());
            let wanted = serde_json::json!([{ "level": 2, "id": id }]);
            node.until("the control group", |status| status["units"][0]["cgroups"] == wanted);
            times.push(start.elapsed());
            ids.push(id);
            // A restart: gone and there again at once.
            std::fs::remove_dir(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
            let again = std::fs::metadata(&folder).unwrap().ino();
            let wanted = serde_json::json!([{ "level": 2, "id": again }]);
            node.until("the new control group", |status| status["units"][0]["cgroups"] == wanted);
            ids.push(again);
            std::fs::remove_dir(&folder).unwrap();
            node.until("no control group", |status| cgroups(status).is_empty());
        }
        println!("until `nodewall status` had it, asked again and again: {times:?}");
        ids.dedup();
        assert_eq!(ids.len(), 6, "every start is another one: {ids:?}");
    });
}

#[test]
fn accounts_come_from_files_below_the_root_and_are_followed() {
    isolated("accounts", || {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        let write = |text: &str| std::fs::write(root.path().join("etc/passwd"), text).unwrap();
        write("root:x:0:0::/:/bin/sh\n");
        let policy = "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [\n  { action = \"allow\", users = [\"slurm\", \"root\"] },\n]\n";
        let mut node = Node::new(root.path(), policy);
        assert!(node.nodewall(&["check"]).1.contains("this node knows no user \"slurm\""));
        node.run();
        let status = node.until("the finding", |status| codes(status).contains(&"unknown-account".to_owned()));
        assert_eq!(codes(&status).iter().filter(|code| *code == "unknown-account").count(), 1);
        write("root:x:0:0::/:/bin/sh\nslurm:x:64030:64030::/:/bin/sh\n");
        node.until("no finding", |status| !codes(status).contains(&"unknown-account".to_owned()));
        assert!(!node.nodewall(&["check"]).1.contains("unknown-account"));
    });
}
