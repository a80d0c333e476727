//! What a large set costs: a process of its own, as the peak of a process is measured.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write;

/// The peak of this process's resident memory in KiB (`VmHWM`, proc_pid_status(5)).
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_set_of_100_000_prefixes_is_read_within_30_mib() {
    let mut text = String::from("[[set]]\nname = \"many\"\ncidrs = [\n");
    for number in 0..100_000_u32 {
        writeln!(text, "  \"{}/32\",", std::net::Ipv4Addr::from_bits(0x0a00_0000 + number * 3)).unwrap();
    }
    text.push_str("]\n");
    let before = peak_kib();
    let started = std::time::Instant::now();
    let sourced = nodewall::source::decode_text("many.toml", &text);
    let grown = peak_kib() - before;
    println!("{} bytes: {grown} KiB, {:?}", text.len(), started.elapsed());
    assert_eq!(sourced.policy.sets["many"].cidrs.len(), 100_000);
    assert!(grown < 30 * 1024, "{grown} KiB");
}
