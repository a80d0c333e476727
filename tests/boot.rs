//! The real `nodewall boot` in network namespaces of its own: what it puts in force from good, damaged and missing state, how long it
//! takes when something hangs, and what a packet meets that comes in by an interface of later.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::net::{Answer, Host, Probe, What, probe, wire};
use nodewall::boot::Lockdown;
use nodewall::config::Config;
use nodewall::driver::{self, Error, Netlink};
use nodewall::nft::change::{Batch, Change};
use nodewall::nft::ir::Ruleset;
use nodewall::nft::netlink::encode;
use nodewall::nft::text::render;
use nodewall::plan::boot_batch;
use nodewall::store::{Directory, Generation, Store};

/// The promise: rules in force, or the fail mode, after this.
const LIMIT: Duration = Duration::from_secs(5);

const POLICY: &str = r#"
[[interface]]
name  = "rails"
match = { name = "rail*" }
role  = "rail"

[[policy]]
name       = "front"
order      = 100
interfaces = "role == 'mgmt'"
ingress = [{ action = "allow", protocol = "tcp", ports = [80] }, { action = "allow", protocol = "udp", ports = [7001] }]

[[policy]]
name       = "rails"
order      = 200
interfaces = "role == 'rail'"
ingress = [{ action = "allow", protocol = "tcp", ports = [4420] }]
"#;

/// The rules of a node that has mgmt0 and no rail.
fn ruleset(policy: &str) -> Ruleset {
    let node = Host::new();
    node.sh("ip link add mgmt0 type veth peer name p; ip link set mgmt0 up; ip link set p up");
    node.sh("ip addr add 10.0.0.5/24 dev mgmt0; ip route add default via 10.0.0.1");
    node.compiled(policy, &Config::shipped().settings)
}

fn generation(number: u64, batch: Vec<u8>) -> Generation {
    Generation {
        number,
        time: "2026-11-23T20:00:00Z".to_owned(),
        source: "files".to_owned(),
        hash: String::new(),
        policy: [].into(),
        settings: String::new(),
        batch,
    }
}

/// A state directory with these batches as generations 1, 2, …, the last of them confirmed.
fn state(batches: &[Vec<u8>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::new(Directory::open(folder.path()).unwrap());
    for (number, batch) in (1..).zip(batches) {
        store.write(&generation(number, batch.clone())).unwrap();
        store.confirm(number).unwrap();
    }
    folder
}

fn file(state: &Path, number: u64) -> std::path::PathBuf {
    state.join(format!("{number:020}.generation"))
}

/// A boot on a node: exit code, stdout and stderr. It is never late.
fn boot(node: &Host, state: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.arg("boot").arg("--state-directory").arg(state).args(arguments);
    let start = Instant::now();
    let output = node.enter(|| command.output().unwrap());
    let took = start.elapsed();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(took < LIMIT, "{took:?}: {stdout}{stderr}");
    (output.status.code().unwrap(), stdout, stderr)
}

/// Whether the node has these rules and nothing else in our table.
fn has(node: &Host, wanted: &Ruleset) -> bool {
    let applied = node.enter(|| driver::apply(&mut Netlink::open().unwrap(), wanted, None).unwrap());
    applied.changes == 0
}

fn root(name: &str) -> bool {
    lab::may_run(name)
}

#[test]
fn the_confirmed_generation_is_in_force_as_it_was_compiled() {
    if !root("the_confirmed_generation_is_in_force_as_it_was_compiled") {
        return;
    }
    let (old, new) = (ruleset(""), ruleset(POLICY));
    let state = state(&[boot_batch(&old), boot_batch(&new)]);
    let node = Host::new();
    node.sh("nft add table inet other; nft add chain inet other c");
    let other = node.sh("nft -a list table inet other");
    let (code, stdout, stderr) = boot(&node, state.path(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "in force: generation 2 of 2026-11-23T20:00:00Z (files)\n");
    assert!(has(&node, &new));
    assert_eq!(node.sh("nft -a list table inet other"), other, "only ours");

    // A second boot, by hand, leaves it alone, and so the counters.
    let before = node.sh("nft -a list table inet nodewall");
    let (code, stdout, _) = boot(&node, state.path(), &[]);
    assert_eq!((code, stdout.as_str()), (0, "our table is in force already, and was left alone\n"));
    assert_eq!(node.sh("nft -a list table inet nodewall"), before);

    // What has our name and filters nothing is not in force.
    node.sh("nft flush ruleset; nft add table inet nodewall; nft add chain inet nodewall input");
    let (code, stdout, _) = boot(&node, state.path(), &[]);
    assert!(code == 0 && stdout.contains("generation 2"), "{stdout}");
    assert!(has(&node, &new));
}

#[test]
fn a_damaged_generation_makes_way_for_the_one_before() {
    if !root("a_damaged_generation_makes_way_for_the_one_before") {
        return;
    }
    let (old, new) = (ruleset(""), ruleset(POLICY));
    let good = [boot_batch(&old), boot_batch(&new)];
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("checksum", |file| {
            let mut bytes = std::fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("checksum", |file| {
            let bytes = std::fs::read(file).unwrap();
            std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("format 7", |file| std::fs::write(file, "nodewall generation 7\nof a later day").unwrap()),
        ("not a generation", |file| std::fs::write(file, "").unwrap()),
        // What would wait for a writer for ever.
        ("not a regular file", |file| {
            std::fs::remove_file(file).unwrap();
            lab::sh(&format!("mkfifo {}", file.display()));
        }),
    ];
    for (reason, damage) in damages {
        let state = state(&good);
        damage(&file(state.path(), 2));
        let node = Host::new();
        let (code, stdout, stderr) = boot(&node, state.path(), &[]);
        assert_eq!(code, 0, "{reason}");
        assert!(stdout.contains("in force: generation 1 "), "{reason}: {stdout}");
        assert!(stderr.contains("generation 2 cannot be used") && stderr.contains(reason), "{reason}: {stderr}");
        assert!(has(&node, &old), "{reason}");
        // With nothing left to go back to: the lockdown.
        std::fs::remove_file(file(state.path(), 1)).unwrap();
        let node = Host::new();
        let (code, stdout, _) = boot(&node, state.path(), &[]);
        assert_eq!((code, stdout.as_str()), (0, "in force: the lockdown\n"), "{reason}");
        assert!(has(&node, &Lockdown::default().ruleset()), "{reason}");
    }
}

/// A file with a right checksum and a batch that does more than build our table: nothing of it is sent.
#[test]
fn a_batch_that_touches_anything_else_is_not_sent() {
    if !root("a_batch_that_touches_anything_else_is_not_sent") {
        return;
    }
    let good = boot_batch(&ruleset(POLICY));
    let renamed = {
        let mut bytes = good.clone();
        let places: Vec<usize> = (0..bytes.len() - 9).filter(|at| bytes[*at..].starts_with(b"nodewall\0")).collect();
        for place in places {
            bytes[place..place + 8].copy_from_slice(b"precious");
        }
        bytes
    };
    let nameless = {
        // A deletion without a name takes every table of the family.
        let mut bytes = good.clone();
        let second = 20 + u32::from_ne_bytes(bytes[20..24].try_into().unwrap()) as usize;
        bytes[second + 20 + 2] = 6;
        bytes
    };
    let deletes = encode(&Batch { generation: None, changes: vec![Change::AddTable, Change::DeleteTable] }, 0).bytes;
    let node = Host::new();
    node.sh("nft add table inet precious; nft add chain inet precious c; nft add table ip filter");
    let others = node.sh("nft -a list ruleset");
    for (hostile, reason) in [
        (renamed, "it names table inet precious"),
        (nameless, "a table with attribute 6 in it"),
        (deletes, "it does not begin by making the table anew"),
        (Vec::new(), "it has no beginning and no end"),
        (vec![0xff; 4096], "the batch is not one of ours"),
    ] {
        let error = node.enter(|| Netlink::open().unwrap().commit_bytes(&hostile)).unwrap_err();
        assert!(matches!(&error, Error::Batch(_)) && error.to_string().contains(reason), "{error}");
        assert_eq!(node.sh("nft -a list ruleset"), others, "{reason}");
        let state = state(&[hostile]);
        let (code, stdout, stderr) = boot(&node, state.path(), &[]);
        assert_eq!((code, stdout.as_str()), (0, "in force: the lockdown\n"), "{stderr}");
        assert!(stderr.contains("generation 1 cannot be loaded") && stderr.contains(reason), "{stderr}");
        node.sh("nft delete table inet nodewall");
        assert_eq!(node.sh("nft -a list ruleset"), others, "{reason}");
    }
}

/// What the kernel refuses leaves everything as it was, and says what it was about.
#[test]
fn a_batch_that_the_kernel_refuses_changes_nothing() {
    if !root("a_batch_that_the_kernel_refuses_changes_nothing") {
        return;
    }
    let wanted = ruleset(POLICY);
    let mut broken = wanted.clone();
    // Rules jump to it.
    broken.chains.remove("essential_in").unwrap();
    let node = Host::new();
    node.enter(|| {
        let mut kernel = Netlink::open().unwrap();
        kernel.commit_bytes(&boot_batch(&wanted)).unwrap();
        let error = kernel.commit_bytes(&boot_batch(&broken)).unwrap_err();
        assert!(matches!(&error, Error::Refused { subject, .. } if subject.contains("set __map")), "{error}");
        // The socket is of use after a refusal.
        kernel.commit_bytes(&boot_batch(&wanted)).unwrap();
    });
    assert!(has(&node, &wanted));
}

use Answer::{Allowed, Denied};

fn address(text: &str) -> IpAddr {
    text.split('/').next().unwrap().parse().unwrap()
}

/// What becomes of connections to TCP ports of the node from behind an interface. The first has to be an allowed one: a link that has
/// just come up may lose a packet before its carrier and the neighbours are known, so it is tried until it is answered.
fn answers(behind: &Host, there: &str, here: &str, ports: &[u16]) -> Vec<Answer> {
    let (source, destination) = (address(there), address(here));
    let probes: Vec<Probe> =
        ports.iter().map(|port| Probe { from: behind.clone(), source, destination, what: What::Tcp(*port) }).collect();
    let start = Instant::now();
    while probe(&probes[..1]) != [Allowed] {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?} is not answered", probes[0]);
    }
    probe(&probes)
}

#[test]
fn without_a_generation_the_lockdown_lets_ssh_in_and_everything_out_on_any_interface() {
    if !root("without_a_generation_the_lockdown_lets_ssh_in_and_everything_out_on_any_interface") {
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    for (state, reason) in
        [(empty.path().to_owned(), "no generation in"), (empty.path().join("gone"), "cannot list the generations")]
    {
        let node = Host::new();
        let (code, stdout, stderr) = boot(&node, &state, &[]);
        assert_eq!((code, stdout.as_str()), (0, "in force: the lockdown\n"));
        assert!(stderr.contains(reason) && stderr.contains("loading the lockdown"), "{stderr}");
        assert!(has(&node, &Lockdown::default().ruleset()));
        // Names and kinds that a policy would trust.
        for (interface, network) in [("cali1", 1), ("eth7", 2)] {
            let behind = Host::new();
            let (here, there) = (format!("10.0.{network}.5/24"), format!("10.0.{network}.1/24"));
            let (here6, there6) = (format!("fd00:{network}::5/64"), format!("fd00:{network}::1/64"));
            wire((&node, interface, &[&here, &here6]), (&behind, "eth0", &[&there, &there6]));
            let _servers = (node.serve(&[22, 80], &[]), behind.serve(&[443], &[]));
            assert_eq!(answers(&behind, &there, &here, &[22, 80]), [Allowed, Denied], "{interface}");
            assert_eq!(answers(&behind, &there6, &here6, &[22, 80]), [Allowed, Denied], "{interface}");
            assert_eq!(answers(&node, &here, &there, &[443]), [Allowed], "{interface}");
        }
    }
    let node = Host::new();
    let (code, ..) =
        boot(&node, empty.path(), &["--ssh-port", "2222", "--ssh-from", "10.0.1.0/24", "--ssh-from", "fd00::/8"]);
    assert_eq!(code, 0);
    let chosen = Lockdown {
        ssh_ports: vec![2222],
        ssh_from: ["10.0.1.0/24", "fd00::/8"].map(|prefix| prefix.parse().unwrap()).into(),
    };
    assert!(has(&node, &chosen.ruleset()));
}

/// Interfaces that were not there when the rules were loaded: one that was known when they were compiled, one of a pattern, one of
/// a kind. A sender that never stops shows that there is no first moment without rules.
#[test]
fn an_interface_of_later_is_under_its_rules_from_its_first_packet() {
    if !root("an_interface_of_later_is_under_its_rules_from_its_first_packet") {
        return;
    }
    let state = state(&[boot_batch(&ruleset(POLICY))]);
    let node = Host::new();
    assert_eq!(boot(&node, state.path(), &[]).0, 0);
    let (denied, allowed) = node.enter(|| {
        let bind = |port| UdpSocket::bind(("0.0.0.0", port)).unwrap();
        (bind(7000), bind(7001))
    });
    let done = AtomicBool::new(false);
    let front = Host::new();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            front.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    // Before there is a link this fails, and that is the point: it goes on until it does not.
                    for port in [7000, 7001] {
                        sent += usize::from(socket.send_to(b"first", ("10.0.0.5", port)).is_ok());
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                sent
            })
        });
        wire((&node, "mgmt0", &["10.0.0.5/24"]), (&front, "eth0", &["10.0.0.1/24"]));
        let _servers = node.serve(&[22, 80, 4420, 10250], &[]);
        let answers = answers(&front, "10.0.0.1", "10.0.0.5", &[22, 80, 4420, 10250]);
        done.store(true, Ordering::Relaxed);
        let sent = sending.join().unwrap();
        assert_eq!(answers, [Allowed, Allowed, Denied, Denied], "mgmt0, by its name");
        assert!(sent > 100, "{sent}");
    });
    for (socket, wanted) in [(&denied, false), (&allowed, true)] {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).is_ok(), wanted);
    }
    for (interface, expected) in [("rail3", [Allowed, Denied, Denied, Denied]), ("cali3", [Allowed; 4])] {
        let behind = Host::new();
        wire((&node, interface, &["10.9.0.5/24"]), (&behind, "eth0", &["10.9.0.1/24"]));
        let _servers = node.serve(&[22, 80, 4420, 10250], &[]);
        assert_eq!(answers(&behind, "10.9.0.1", "10.9.0.5", &[4420, 22, 80, 10250]), expected, "{interface}");
        node.sh(&format!("ip link del {interface}"));
    }
}

/// What was let in and kept out before is let in and kept out all the while.
#[test]
fn the_daemon_takes_over_without_a_gap() {
    if !root("the_daemon_takes_over_without_a_gap") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("policy.d")).unwrap();
    std::fs::write(path("policy.d/policy.toml"), POLICY).unwrap();
    std::fs::write(
        path("nodewall.toml"),
        format!("socket = \"{}\"\nstate_directory = \"{}\"\n", path("socket").display(), path("state").display()),
    )
    .unwrap();
    for batches in [Vec::new(), vec![boot_batch(&ruleset(""))]] {
        let state = state(&batches);
        let (node, front) = (Host::new(), Host::new());
        assert_eq!(boot(&node, state.path(), &[]).0, 0);
        wire((&node, "mgmt0", &["10.0.0.5/24"]), (&front, "eth0", &["10.0.0.1/24"]));
        node.sh("ip route add default via 10.0.0.1");
        let _servers = node.serve(&[22], &[]);
        let denied = node.enter(|| UdpSocket::bind("0.0.0.0:7000").unwrap());
        assert_eq!(answers(&front, "10.0.0.1", "10.0.0.5", &[22]), [Allowed]);
        let (source, destination) = (address("10.0.0.1"), address("10.0.0.5"));
        let ssh = Probe { from: front.clone(), source, destination, what: What::Tcp(22) };
        let (done, mut connected) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                front.enter(|| {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    let mut sent = 0;
                    while !done.load(Ordering::Relaxed) {
                        sent += usize::from(socket.send_to(b"between", "10.0.0.5:7000").is_ok());
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    sent
                })
            });
            let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
            command.arg("--config").arg(path("nodewall.toml")).arg("--policy-dir").arg(path("policy.d")).arg("run");
            let log = std::fs::File::create(path("log")).unwrap();
            let mut daemon = node.enter(|| command.stderr(log).spawn().unwrap());
            let start = Instant::now();
            let mut taken_over = false;
            // A quick daemon is there before the first look: connections go on beyond the moment in which it is seen.
            while connected < 10 || (!taken_over && start.elapsed() < Duration::from_secs(20)) {
                taken_over = taken_over || node.sh("nft list table inet nodewall").contains("front#1 policy.toml");
                assert_eq!(probe(std::slice::from_ref(&ssh)), [Allowed]);
                connected += 1;
            }
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            done.store(true, Ordering::Relaxed);
            assert!(taken_over, "{}", std::fs::read_to_string(path("log")).unwrap());
            assert!(sending.join().unwrap() > 20);
        });
        denied.set_nonblocking(true).unwrap();
        assert!(denied.recv(&mut [0; 16]).is_err(), "a packet came through between the two");
    }
}

/// Whether there is an strace. CI must not skip what needs it.
fn strace(name: &str) -> bool {
    let there = Command::new("strace").arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "strace is missing, and CI skips nothing");
        println!("SKIPPED {name}: strace is missing");
    }
    there
}

/// Calls that hang for longer than any boot: strace holds them up.
#[test]
fn what_hangs_ends_in_the_fail_mode_in_time() {
    if !root("what_hangs_ends_in_the_fail_mode_in_time") {
        return;
    }
    if !strace("what_hangs_ends_in_the_fail_mode_in_time") {
        return;
    }
    let state = state(&[boot_batch(&ruleset(POLICY))]);
    let file = file(state.path(), 1);
    let disk = ["-P", file.to_str().unwrap(), "-e", "inject=openat:delay_enter=60s"];
    let kernel = ["-e", "trace=sendto,exit_group", "-e", "inject=sendto:delay_enter=60s"];

    let node = Host::new();
    let hung = Hung::boot(&node, state.path(), &disk, "lockdown");
    hung.says("stdout", "in force: the lockdown\n");
    hung.says("stderr", "no generation is in force: no rules were in force after");
    assert!(has(&node, &Lockdown::default().ruleset()));
    drop(hung);

    for (before, fail_mode) in [(&disk, "open"), (&kernel, "lockdown"), (&kernel, "open")] {
        let node = Host::new();
        let hung = Hung::boot(&node, state.path(), before, fail_mode);
        hung.says("stderr", "nothing is in force: no rules were in force after");
        if *before == kernel {
            hung.says("trace", "exit_group(1)");
        }
        drop(hung);
        assert_eq!(node.sh("nft list ruleset"), "");
    }
}

/// A kernel that lacks nf_tables answers as this one does to a subsystem that it does not know: strace changes what is asked.
#[test]
fn a_kernel_without_nf_tables_is_an_exit_code_of_its_own() {
    if !root("a_kernel_without_nf_tables_is_an_exit_code_of_its_own") || !strace("a_kernel_without_nf_tables") {
        return;
    }
    let state = state(&[boot_batch(&ruleset(POLICY))]);
    for (what, words) in [
        // The length of a header with nothing behind it, and a type of no subsystem.
        ("inject=sendto:poke_enter=@arg2=14000000107f", "which it does not have (module nf_tables): EOPNOTSUPP"),
        ("inject=socket:error=EPROTONOSUPPORT", "cannot open the netlink socket: "),
    ] {
        let node = Host::new();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", what]).arg(env!("CARGO_BIN_EXE_nodewall"));
        command.args(["boot", "--state-directory"]).arg(state.path());
        let output = node.enter(|| command.output().unwrap());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(6), "{what}: {stderr}");
        assert!(stderr.contains(words) && stderr.contains("nothing is in force"), "{what}: {stderr}");
    }
}

/// A boot under strace. strace does not let go of a process whose call it holds up, as a kernel would not, so what counts is when
/// it says what it says and asks to end.
struct Hung {
    strace: std::process::Child,
    folder: tempfile::TempDir,
    start: Instant,
}

impl Hung {
    fn boot(node: &Host, state: &Path, hold_up: &[&str], fail_mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let create = |name: &str| std::fs::File::create(folder.path().join(name)).unwrap();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(folder.path().join("trace")).args(hold_up);
        command.arg(env!("CARGO_BIN_EXE_nodewall")).args(["boot", "--fail-mode", fail_mode, "--state-directory"]);
        command.arg(state).stdout(create("stdout")).stderr(create("stderr"));
        let start = Instant::now();
        let strace = node.enter(|| command.spawn().unwrap());
        Self { strace, folder, start }
    }

    /// Waits until a file has a text, but not longer than a boot may take.
    fn says(&self, file: &str, wanted: &str) {
        loop {
            let text = std::fs::read_to_string(self.folder.path().join(file)).unwrap_or_default();
            if text.contains(wanted) {
                return;
            }
            // Starting strace on a busy machine takes its time too.
            assert!(self.start.elapsed() < LIMIT + Duration::from_secs(1), "no \"{wanted}\" in {file}: {text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

#[test]
fn a_slip_on_the_command_line_does_not_leave_the_host_open() {
    if !root("a_slip_on_the_command_line_does_not_leave_the_host_open") {
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    for slip in [&["--limt", "3"][..], &["--limit", "0"], &["--ssh-port", "ssh"], &["--ssh-from", "10.0.0.1/8"]] {
        let node = Host::new();
        let (code, stdout, stderr) = boot(&node, empty.path(), slip);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.starts_with("in force: "), "{stdout}{stderr}");
        assert!(stderr.contains("going on with the defaults"), "{stderr}");
        assert!(node.sh("nft list table inet nodewall").contains("hook input"));
    }
}

#[test]
fn render_prints_the_lockdown_that_a_boot_loads() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_nodewall"))
            .args(["render", "--lockdown"])
            .args(arguments)
            .env("PATH", "")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&[]), (Some(0), render(&Lockdown::default().ruleset())));
    let (code, text) = run(&["--ssh-port", "2222"]);
    assert!(code == Some(0) && text.contains("tcp dport 2222"), "{text}");
    assert!(run(&["--json"]).1.contains("\"nftables\""));
    assert_eq!(run(&["policy.toml"]).0, Some(2), "no policy is in it");
    let output = Command::new(env!("CARGO_BIN_EXE_nodewall")).args(["render", "--ssh-port", "22"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
