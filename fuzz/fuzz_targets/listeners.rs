//! Whatever sock_diag, RDMA netlink and the files in /proc/net say of listeners: reading it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::host::attribute::messages;
use nodewall::host::{diag, rdma_cm};
use nodewall::net::protocol::Protocol;

fuzz_target!(|bytes: &[u8]| {
    for payload in messages(bytes).map(|message| message.payload).chain([bytes]) {
        if let Some(found) = diag::listening(payload, Protocol::SCTP) {
            assert!(found.port != 0 && !found.addresses.is_empty());
        }
        let _ = rdma_cm::listening(payload);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        for found in diag::from_text(text, Protocol::TCP) {
            assert!(found.port != 0);
        }
    }
});
