//! The laboratory is worth what its probes are worth: each answer is got from rules written by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "lab/mod.rs"]
mod lab;

use std::time::Instant;

use lab::net::{Answer, Host, Probe, What, probe, wire};

#[test]
fn probes_tell_allowed_denied_and_rejected_apart() {
    if !lab::may_run("probes_tell_allowed_denied_and_rejected_apart") {
        return;
    }
    let (node, host) = (Host::new(), Host::new());
    wire((&node, "eth0", &["10.0.0.5/24", "fd00::5/64"]), (&host, "eth0", &["10.0.0.1/24", "fd00::1/64"]));
    let _servers = node.serve(&[22, 80, 443], &[53, 123, 4791]);
    let probes: Vec<Probe> = [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")]
        .iter()
        .flat_map(|(source, destination)| {
            [What::Tcp(22), What::Tcp(80), What::Tcp(443), What::Udp(53), What::Udp(123), What::Udp(4791), What::Echo]
                .map(|what| Probe {
                    from: host.clone(),
                    source: source.parse().unwrap(),
                    destination: destination.parse().unwrap(),
                    what,
                })
        })
        .collect();
    let all = |answer| vec![answer; probes.len()];
    assert_eq!(probe(&probes), all(Answer::Allowed), "before there are rules");
    node.sh("nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
         add rule inet t c tcp dport 80 reject with tcp reset; add rule inet t c tcp dport 443 drop; \
         add rule inet t c udp dport 123 reject with icmpx admin-prohibited; add rule inet t c udp dport 4791 drop; \
         add rule inet t c icmp type echo-request drop; add rule inet t c icmpv6 type echo-request drop'");
    use Answer::{Allowed, Denied, Rejected};
    let expected = [Allowed, Rejected, Denied, Allowed, Rejected, Denied, Denied];
    assert_eq!(probe(&probes), [expected, expected].concat());
    node.sh("nft flush chain inet t c; nft add rule inet t c meta l4proto udp reject with icmpx admin-prohibited; \
             nft 'add rule inet t c icmp type echo-request reject with icmpx admin-prohibited'; \
             nft 'add rule inet t c icmpv6 type echo-request reject with icmpx admin-prohibited'");
    let expected = [Allowed, Allowed, Allowed, Rejected, Rejected, Rejected, Rejected];
    assert_eq!(probe(&probes), [expected, expected].concat());

    // Silence must not cost its time for each probe one after the other.
    node.sh("nft flush chain inet t c; nft add rule inet t c meta l4proto tcp drop");
    let many: Vec<Probe> =
        probes.iter().filter(|probe| matches!(probe.what, What::Tcp(_))).cycle().take(300).cloned().collect();
    let start = Instant::now();
    assert_eq!(probe(&many), vec![Denied; 300]);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}
