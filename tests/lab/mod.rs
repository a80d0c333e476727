//! What every test on a real kernel stands on: network namespaces that are gone with the test.
//!
//! [`isolated`] is one namespace for one test. [`net`] is several of them with wires between, servers and probes; [`services`] are
//! the rules of kube-proxy and CNI in one of them. [`daemon`] is the real daemon in one of them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod conntrack;
pub mod daemon;
pub mod dice;
pub mod net;
pub mod rules;
pub mod services;
pub mod stream;

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread in a network namespace of its own, with loopback up; commands started there are inside too.
/// Without root it says that it skips, and under CI it fails instead.
pub fn isolated(name: &str, test: impl FnOnce() + Send + 'static) {
    if !may_run(name) {
        return;
    }
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        sh("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether kernel tests can run here: they need root. CI must not skip them.
pub fn may_run(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "{name} needs root, and CI skips nothing");
        println!("SKIPPED {name}: needs root");
    }
    root
}

/// Runs a shell command in the namespace of this thread; it must succeed. Returns what it printed.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("sh starts");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
