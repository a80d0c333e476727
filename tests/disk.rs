//! The real daemon on a disk that is full, read-only or damaged: it says so, and what is in force gets no worse by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lab;

use std::path::PathBuf;

use lab::daemon::{Node, Prober, loaded, policy};
use lab::{isolated, sh};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A node whose state directory is a file system of its own, of 64 pages, in a mount namespace of the test's.
struct Disk {
    node: Node,
    prober: Prober,
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.node.kill();
        sh(&format!("umount -l {}", self.node.path("state").display()));
    }
}

impl Disk {
    /// Nothing runs yet; the documents in place let the prober in.
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate /");
        let prober = Prober::new();
        let node = Node::new(&[("10.toml", &policy("open", "allow"))]);
        std::fs::create_dir(node.path("state")).unwrap();
        sh(&format!("mount -t tmpfs -o size=256k,mode=700 tmpfs {}", node.path("state").display()));
        Self { node, prober }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.node.path("state").join(name)
    }

    /// Takes the space that is left.
    fn fill(&self) {
        sh(&format!("head -c 1M /dev/zero > {} 2>/dev/null || true", self.state("filler").display()));
    }

    fn remount(&self, how: &str) {
        sh(&format!("mount -o remount,{how} {}", self.node.path("state").display()));
    }

    /// Puts documents in place that close the port, or open it, and waits until they are in force.
    fn change(&self, name: &str, action: &str) -> Value {
        self.node.write("policy.d/10.toml", &policy(name, action));
        self.node.until("the new policy", |_, status| {
            status["state"] == "in-force" && status["policies"].to_string().contains(&format!("\"{name}\""))
        })
    }

    /// Waits until the store has what is in force.
    fn kept(&self) {
        let status = self.node.until("kept", |code, status| code == 0 && status["store_error"].is_null());
        let (numbers, confirmed) = self.node.history();
        assert_eq!((numbers[0], confirmed), (status["generation"].as_u64().unwrap(), status["generation"].as_u64()));
    }
}

#[test]
fn a_full_disk_is_reported_changes_nothing_in_force_and_is_written_when_there_is_space() {
    isolated("full disk", || {
        let mut disk = Disk::new();
        disk.node.run();
        disk.kept();
        disk.fill();
        let status = disk.change("closed", "deny");
        assert!(!disk.prober.connects(), "a change of the files is in force all the same");
        let generation = status["generation"].clone();
        let full = |status: &Value| status["store_error"].as_str().is_some_and(|error| error.contains("No space left"));
        disk.node.until("the trouble", |code, status| code == 0 && full(status));
        disk.node.logs("not on disk: cannot write");
        assert!(disk.node.must(&["status"]).contains("not on disk, a boot has an older policy"));
        assert_eq!(disk.node.history(), (vec![1], Some(1)), "what was there is untouched");
        assert!(!sh(&format!("ls {}", disk.node.path("state").display())).contains(".new"), "half a file is removed");

        // Without a way back, nothing is tried.
        disk.node.write("new.toml", &policy("again", "allow"));
        let new = disk.node.path("new.toml");
        let (code, _, stderr) = disk.node.nodewall(&["apply", "--confirm", "2m", new.to_str().unwrap()]);
        assert!(code == 1 && stderr.contains("nothing was changed"), "{code} {stderr}");
        assert!(!disk.prober.connects());

        // A panic does not wait for a disk, but says that it would not outlive the daemon.
        disk.change("open-again", "allow");
        assert!(disk.prober.connects());
        let (code, _, stderr) = disk.node.nodewall(&["panic", "on"]);
        assert!(code == 1 && stderr.contains("not on disk, and a restart takes it back"), "{code} {stderr}");
        assert!(!disk.prober.connects());
        let (code, ..) = disk.node.nodewall(&["panic", "off"]);
        assert_eq!(code, 1);
        assert!(disk.prober.connects());
        disk.change("closed", "deny");

        // A start on a full disk: the documents in place, as before.
        disk.node.kill();
        let before = loaded();
        disk.node.run();
        disk.node.until("in force", |code, status| code == 0 && full(status));
        assert_eq!(loaded(), before);
        assert!(!disk.prober.connects());

        std::fs::remove_file(disk.state("filler")).unwrap();
        disk.node.signal(Signal::SIGHUP);
        disk.kept();
        assert!(generation.as_u64() > Some(1));
    });
}

#[test]
fn a_disk_that_is_full_from_the_beginning_keeps_no_host_open() {
    isolated("full from the beginning", || {
        let mut disk = Disk::new();
        disk.fill();
        disk.node.write("policy.d/10.toml", &policy("closed", "deny"));
        disk.node.run();
        disk.node.until("in force", |code, status| code == 0 && !status["store_error"].is_null());
        assert!(!disk.prober.connects());
        std::fs::remove_file(disk.state("filler")).unwrap();
        disk.node.signal(Signal::SIGHUP);
        disk.kept();
    });
}

#[test]
fn a_read_only_disk_is_reported_and_written_again_when_it_can_be() {
    isolated("read-only", || {
        let mut disk = Disk::new();
        disk.node.run();
        disk.kept();
        disk.remount("ro");
        disk.change("closed", "deny");
        let read_only = |status: &Value| status["store_error"].to_string().contains("Read-only file system");
        disk.node.until("the trouble", |code, status| code == 0 && read_only(status));
        disk.node.logs("Read-only file system");
        assert!(!disk.prober.connects());
        disk.node.kill();
        assert!(!disk.prober.connects());
        disk.node.run();
        disk.node.until("in force", |code, status| code == 0 && read_only(status));
        assert!(!disk.prober.connects());
        disk.remount("rw");
        disk.node.signal(Signal::SIGHUP);
        disk.kept();
    });
}

/// What is wrong with a store, how it is made so, and the words for it.
const DAMAGES: [(&str, &str, &str); 9] = [
    ("a flipped bit in the confirmed generation", "printf X | dd of=$G bs=1 seek=100 conv=notrunc", "checksum"),
    ("half of it", "truncate -s 5000 $G", "checksum"),
    ("nothing of it", "truncate -s 0 $G", "not a generation file"),
    ("a later format", "printf 'nodewall generation 9\\nof a later day' > $G", "format 9"),
    ("something that never ends", "rm $G; mkfifo $G", "not a regular file"),
    ("the number of the confirmed one", "printf '2 0000000000000000\\n' > confirmed", "confirmed: the checksum"),
    ("a record of something else", "printf 'deadbeef {}\\n' > record", "record: the checksum"),
    ("half a record", "truncate -s 20 record", "record: the file is truncated"),
    ("a record that is a directory", "rm record; mkdir record", "not a regular file"),
];

#[test]
fn a_damaged_store_is_reported_and_passed_over_and_what_is_in_force_stays() {
    isolated("damaged", || {
        let mut disk = Disk::new();
        disk.node.run();
        disk.kept();
        disk.change("closed", "deny");
        disk.kept();
        disk.node.kill();
        sh(&format!("mkdir {0}; cp -a {1}/. {0}", disk.node.path("good").display(), disk.node.path("state").display()));
        let before = loaded();
        for (what, damage, words) in DAMAGES {
            for bad_documents in [false, true] {
                let what = format!("{what}, bad documents {bad_documents}");
                let (good, state) = (disk.node.path("good"), disk.node.path("state"));
                sh(&format!(
                    "cd {}; rm -rf ./*; cp -a {}/. .; G={:020}.generation; {damage} 2>/dev/null",
                    state.display(),
                    good.display(),
                    2
                ));
                let text = policy("closed", "deny");
                disk.node.write("policy.d/10.toml", if bad_documents { "this is not toml" } else { &text });
                std::fs::write(disk.node.path("log"), "").unwrap();
                disk.node.run();
                let status = disk.node.until(&what, |_, status| match bad_documents {
                    true => status["state"] == "degraded",
                    false => status["state"] == "in-force",
                });
                let damages = status["store_damages"].to_string();
                assert!(damages.contains(words), "{what}: {damages}");
                assert!(disk.node.log().contains("passed over on disk: "), "{what}: {}", disk.node.log());
                assert_eq!(loaded(), before, "{what}: {status:#}");
                assert!(!disk.prober.connects(), "{what}");
                if bad_documents {
                    disk.node.write("policy.d/10.toml", &text);
                    disk.node.until(&what, |code, _| code == 0);
                    assert_eq!(loaded(), before, "{what}: adopted as it was");
                }
                // It heals by itself; a directory in the place of a file is for people.
                if !bad_documents && !damage.contains("mkdir") {
                    disk.kept();
                    disk.node.kill();
                    disk.node.run();
                    let status = disk.node.until(&what, |code, _| code == 0);
                    assert_eq!(status["store_damages"].as_array().unwrap().len(), 0, "{what}: {status:#}");
                }
                disk.node.kill();
            }
        }
    });
}

/// With nothing in the kernel, nothing usable on disk and nothing usable in place, there is still the lockdown.
#[test]
fn a_store_of_garbage_with_bad_documents_ends_in_the_lockdown() {
    isolated("garbage", || {
        let mut disk = Disk::new();
        disk.node.run();
        disk.kept();
        disk.node.kill();
        sh(&format!(
            "cd {}; for file in *; do head -c 3000 /dev/urandom > $file; done",
            disk.node.path("state").display()
        ));
        sh("nft delete table inet nodewall");
        disk.node.write("policy.d/10.toml", "this is not toml");
        disk.node.run();
        let status = disk.node.until("degraded", |code, _| code == 9);
        assert!(status["reason"].as_str().unwrap().contains("lockdown"), "{status:#}");
        assert!(status["store_damages"].as_array().unwrap().len() >= 2, "{status:#}");
        assert!(!disk.prober.connects());
        assert!(sh("nft list table inet nodewall").contains("failsafe:ssh#1"));
    });
}
