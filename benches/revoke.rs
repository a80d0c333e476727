//! How long it takes to find and end the flows that a new policy denies, in a table of 100,000.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/lab/conntrack.rs"]
mod conntrack;
mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conntrack::{Entry, inject, plain};
use nodewall::driver::Conntrack;
use nodewall::net::protocol::Protocol;
use nodewall::revoke::Revocation;

const FLOWS: u32 = 100_000;

/// Every flow from another address, which is the worst case: no two have the same answer.
fn flows() -> Vec<Entry> {
    let here: IpAddr = [10, 77, 0, 2].into();
    let client = |index: u32| {
        // Half of them in the second /30 of each /29, which the set of the policy lacks.
        let address = 0x0a00_0000 + index * 4;
        IpAddr::from(address.to_be_bytes())
    };
    (0..FLOWS).map(|index| plain(Protocol::TCP, client(index), 40_000, here, 8080)).collect()
}

fn main() {
    support::enter_namespace();
    support::run("ip", &["link", "add", "mgmt0", "type", "veth", "peer", "name", "peer0"]);
    support::run("ip", &["addr", "add", "10.77.0.2/24", "dev", "mgmt0"]);
    support::run("ip", &["link", "set", "mgmt0", "up"]);
    support::run("ip", &["link", "set", "peer0", "up"]);
    support::run("ip", &["route", "add", "default", "via", "10.77.0.1"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let facts = runtime.block_on(nodewall::host::collect(std::path::Path::new("/"))).unwrap();
    let sourced = nodewall::source::decode_text("bench.toml", &support::fifty_rules(50_000));
    let (effective, _) = nodewall::policy::resolve::resolve(&sourced.policy, &support::settings(), &facts);
    let revocation = Revocation::new(Arc::new(effective), &facts);
    let mut conntrack = Conntrack::open().unwrap();

    let (mut judged, mut ended) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let all = conntrack.flows(&mut |_| true).unwrap();
        conntrack.end(&all).unwrap();
        inject(&flows());
        let start = Instant::now();
        let (denied, seen) = conntrack.denied(&revocation).unwrap();
        judged = judged.min(start.elapsed());
        assert_eq!((denied.len(), seen), (FLOWS as usize / 2, FLOWS as usize));
        let start = Instant::now();
        let revoked = conntrack.revoke(&revocation, &mut |_| true).unwrap();
        ended = ended.min(start.elapsed());
        assert_eq!(revoked.ended, FLOWS as usize / 2);
    }
    let (judged, ended) = (judged.as_secs_f64(), ended.as_secs_f64());
    println!();
    let what = "100,000 flows and addresses, 50 rules, 50,000 prefixes: judged";
    support::figure(what, judged, "s", "< 2", judged < 2.0);
    support::figure("  judged, and 50,000 of them ended", ended, "s", "< 2", ended < 2.0);
}
