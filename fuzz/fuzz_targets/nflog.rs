//! Whatever bytes come from the packet log: each message ends in a packet or an error, and a packet in headers and a rule, or not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::compile::logged;
use nodewall::nft::netlink::log::{LONGEST_PAYLOAD, LONGEST_PREFIX, LoggedPacket, logged_packet};
use nodewall::nft::netlink::{Message, messages};
use nodewall::simulate::wire::{beginning, packet};

/// `NFNL_SUBSYS_ULOG` and `NFULNL_MSG_PACKET`.
const KIND: u16 = 4 << 8;

fn told(logged_packet: &LoggedPacket) {
    let LoggedPacket { prefix, payload, .. } = logged_packet;
    assert!(payload.len() <= LONGEST_PAYLOAD && prefix.len() <= 3 * LONGEST_PREFIX);
    let _ = logged(prefix);
    for headers in [packet(payload), beginning(payload, usize::from(u16::MAX))].into_iter().flatten() {
        assert!(headers.ports().is_none() || headers.icmp().is_none());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let framed = Message { kind: KIND, flags: 0, sequence: 0, port: 0, payload: bytes };
    for message in messages(bytes).unwrap_or_default().into_iter().chain([framed]) {
        if let Ok(Some(packet)) = logged_packet(&message) {
            told(&packet);
        }
    }
    let _ = logged(&String::from_utf8_lossy(bytes));
});
