//! The daemon over a host's life, as the real binary in a namespace: generations on disk, confirmations, ways back, emergencies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::time::{Duration, Instant};

use lab::daemon::{Node, PATIENCE, Prober, policy};
use lab::{isolated, sh};
use serde_json::Value;

/// A node whose daemon has a policy in force that lets the prober in, and the prober.
fn node() -> (Node, Prober) {
    let prober = Prober::new();
    let mut node = Node::new(&[("10.toml", &policy("open", "allow"))]);
    node.run();
    node.until("in force", |code, _| code == 0);
    assert!(prober.connects());
    (node, prober)
}

#[test]
fn every_change_is_a_generation_on_disk_and_a_restart_goes_on_with_the_same_one() {
    isolated("history", || {
        let (mut node, prober) = node();
        node.until("kept", |_, _| node.history() == (vec![1], Some(1)));
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        let status = node.until("the second", |_, status| status["generation"] == 2);
        node.until("kept", |_, _| node.history() == (vec![2, 1], Some(2)));
        assert!(!prober.connects());
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
        assert!(prober.connects());
        node.kill();
        node.run();
        let status = node.until("again", |code, status| code == 0 && status["generation"] == 1);
        assert!(status["reason"].as_str().unwrap().contains("brought back by uid 0"), "{status}");
        assert!(prober.connects());
        node.must(&["rollback", "2"]);
        assert!(!prober.connects());
        node.must(&["rollback", "1"]);
        node.write("policy.d/10.toml", &policy("closed-again", "deny"));
        node.until("the third", |_, status| status["generation"] == 3);
        assert!(!prober.connects());
        let (code, _, stderr) = node.nodewall(&["rollback", "99"]);
        assert_eq!(code, 1, "{stderr}");
        assert_eq!(node.nodewall(&["confirm"]).0, 1);
    });
}

#[test]
fn what_cuts_the_operator_off_is_gone_when_nobody_confirms_it() {
    isolated("confirm", || {
        let (mut node, prober) = node();
        node.write("new.toml", &policy("closed", "deny"));
        let new = node.path("new.toml");
        let new = new.to_str().unwrap().to_owned();

        // Nobody answers.
        let start = Instant::now();
        let said = node.must(&["apply", "--confirm", "3s", &new]);
        assert!(said.starts_with("in force, unconfirmed"), "{said}");
        assert!(!prober.connects());
        let (_, text, _) = node.nodewall(&["status"]);
        assert!(text.contains("it goes back to generation 1 in "), "{text}");
        let back = prober.back(start, &node);
        println!("back after {back:?}");
        assert!((Duration::from_millis(2500)..Duration::from_millis(4500)).contains(&back), "{back:?}");
        let status = node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("nobody confirmed it in time"), "{status}");

        // The daemon dies at once and comes again in time.
        let start = Instant::now();
        node.must(&["apply", "--confirm", "3s", &new]);
        node.kill();
        assert!(!prober.connects());
        node.run();
        let back = prober.back(start, &node);
        println!("back after {back:?} with a restart");
        assert!((Duration::from_millis(2500)..Duration::from_millis(4500)).contains(&back), "{back:?}");

        // It comes again too late.
        node.must(&["apply", "--confirm", "1s", &new]);
        node.kill();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!prober.connects());
        let start = Instant::now();
        node.run();
        let back = prober.back(start, &node);
        println!("back {back:?} after a late start");
        assert!(back < Duration::from_secs(3), "{back:?}");

        // A rollback before the time is over.
        node.must(&["apply", "--confirm", "5m", &new]);
        assert!(!prober.connects());
        node.must(&["rollback"]);
        assert!(prober.connects());

        // The operator answers; it stays, also over a restart.
        node.must(&["apply", "--confirm", "2s", &new]);
        assert!(node.must(&["confirm"]).contains("is confirmed"));
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!prober.connects());
        node.kill();
        node.run();
        node.until("in force", |code, _| code == 0);
        assert!(!prober.connects());
        let (numbers, confirmed) = node.history();
        assert_eq!(confirmed, numbers.first().copied());
    });
}

#[test]
fn documents_in_place_that_nobody_confirmed_stay_out_until_they_change() {
    isolated("trial of files", || {
        let (mut node, prober) = node();
        node.write("nodewall.toml", &format!("{}[apply]\nconfirm = \"4s\"\n", node.settings()));
        node.until("other settings", |_, status| status["state"] == "unconfirmed");
        node.must(&["confirm"]);
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        node.until("on trial", |_, status| status["state"] == "unconfirmed");
        let start = Instant::now();
        assert!(!prober.connects());
        prober.back(start, &node);
        // Neither a reload nor a restart brings them back.
        for _ in 0..2 {
            node.kill();
            node.run();
            node.until("the confirmed one", |code, _| code == 9);
            assert!(prober.connects());
        }
        // Asked for by name they have another chance, and a change of the files is one, too.
        node.must(&["apply", "--confirm", "5m"]);
        assert!(!prober.connects());
        node.write("policy.d/10.toml", &policy("open", "allow"));
        node.until("what is confirmed", |code, status| code == 0 && status["state"] == "in-force");
        assert!(prober.connects());
    });
}

#[test]
fn panic_closes_and_break_glass_opens_until_its_time_is_over_whatever_happens_to_the_daemon() {
    isolated("emergency", || {
        let (mut node, prober) = node();
        node.must(&["panic", "on", "--reason", "worm"]);
        assert!(!prober.connects());
        let (code, text, _) = node.nodewall(&["status"]);
        assert!(code == 9 && text.contains("PANIC") && text.contains("worm"), "{code} {text}");
        assert_eq!(node.nodewall(&["apply", "--confirm", "5s"]).0, 1);
        node.kill();
        node.run();
        node.until("panic again", |code, status| code == 9 && status["state"] == "panic");
        assert!(!prober.connects());
        node.must(&["panic", "off"]);
        assert!(prober.connects());
        assert_eq!(node.until("in force", |code, _| code == 0)["generation"], 1);

        node.write("policy.d/10.toml", &policy("closed", "deny"));
        node.until("closed", |_, status| status["generation"] == 2);
        assert_eq!(node.nodewall(&["break-glass", "--for", "2s"]).0, 2, "a reason is needed");
        let start = Instant::now();
        node.must(&["break-glass", "--for", "3s", "--reason", "console is gone"]);
        assert!(prober.connects());
        node.kill();
        node.run();
        node.until("open again", |_, status| status["state"] == "break-glass");
        assert!(prober.connects());
        while prober.connects() {
            assert!(start.elapsed() < PATIENCE, "it does not end\n{}", node.log());
        }
        let open = start.elapsed();
        println!("open for {open:?}");
        assert!((Duration::from_millis(2500)..Duration::from_millis(4500)).contains(&open), "{open:?}");
        node.until("in force", |code, status| code == 0 && status["generation"] == 2);
        let log = node.log();
        for words in
            ["PANIC: only essentials", "by uid 0 (pid ", ": worm", "BREAK-GLASS: ", ": console is gone", "over: "]
        {
            assert!(log.contains(words), "{words} is not in\n{log}");
        }
        node.must(&["break-glass", "--for", "15m", "--reason", "x"]);
        node.must(&["break-glass", "--end"]);
        assert!(!prober.connects());
    });
}

#[test]
fn a_store_that_cannot_be_written_is_reported_and_changes_nothing_in_force() {
    isolated("no store", || {
        let (mut node, prober) = node();
        node.kill();
        std::fs::remove_dir_all(node.path("state")).unwrap();
        node.write("state", "not a directory");
        node.run();
        let status = node.until("in force", |code, status| code == 0 && !status["store_error"].is_null());
        assert_eq!(status["state"], "in-force");
        assert!(prober.connects());
        node.write("new.toml", &policy("closed", "deny"));
        let (code, _, stderr) = node.nodewall(&["apply", "--confirm", "2s", node.path("new.toml").to_str().unwrap()]);
        assert_eq!(code, 1, "no way back, no trial: {stderr}");
        assert!(prober.connects());
        node.write("policy.d/10.toml", &policy("closed", "deny"));
        let start = Instant::now();
        while prober.connects() {
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
        let (mut node, _prober) = node();
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
        assert!(node.log().contains("policy in force: generation 1, 88 rules (0 changes)"), "{}", node.log());
    });
}

/// Another start of the host: no rules, another boot id, `nodewall boot`, and then the daemon.
fn reboot(node: &mut Node, prober: &Prober, number: usize) -> String {
    node.kill();
    sh("nft delete table inet nodewall");
    node.write("boot_id", &format!("{number:08}-0000-4000-8000-000000000000\n"));
    let state = node.path("state");
    let (code, stdout, stderr) = node.nodewall(&["boot", "--state-directory", state.to_str().unwrap()]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(prober.connects(), "a boot loads what is confirmed: {stdout}{stderr}");
    node.run();
    stdout
}

#[test]
fn a_reboot_ends_a_trial_and_a_break_glass_and_not_a_panic() {
    isolated("reboot", || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate /");
        let (mut node, prober) = node();
        node.until("kept", |_, _| node.history() == (vec![1], Some(1)));
        node.write("boot_id", "00000000-0000-4000-8000-000000000000\n");
        sh(&format!("mount --bind {} /proc/sys/kernel/random/boot_id", node.path("boot_id").display()));
        node.kill();
        node.run();

        node.write("new.toml", &policy("closed", "deny"));
        node.must(&["apply", "--confirm", "1h", node.path("new.toml").to_str().unwrap()]);
        assert!(!prober.connects());
        let booted = reboot(&mut node, &prober, 1);
        assert!(booted.starts_with("in force: generation 1 "), "{booted}");
        let status = node.until("given up", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("the host was started again"), "{status:#}");
        assert!(prober.connects());

        // Documents that let the prober in stay the confirmed ones, so that a boot lets it in.
        node.must(&["break-glass", "--for", "1h", "--reason", "x"]);
        reboot(&mut node, &prober, 2);
        let status = node.until("over", |_, status| status["state"] != "break-glass");
        assert!(status["break_glass_until"].is_null(), "{status:#}");
        node.logs("break-glass is over: its time ended, or the host was started again");

        node.must(&["panic", "on"]);
        assert!(!prober.connects());
        reboot(&mut node, &prober, 3);
        node.until("panic again", |_, status| status["state"] == "panic");
        assert!(!prober.connects());
        node.kill();
        sh("umount /proc/sys/kernel/random/boot_id");
    });
}
