//! Whatever bytes come from connection tracking: a message ends in a flow, an event or an error, and an event has the flow in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::nft::netlink::conntrack::{Phase, connection_event, flow};
use nodewall::nft::netlink::{Message, messages};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = NEW | 2;
const NLM_F_CREATE: u16 = 0x400;

fuzz_target!(|bytes: &[u8]| {
    let framed = |kind, flags| Message { kind, flags, sequence: 0, port: 0, payload: bytes };
    let framed = [framed(NEW, 0), framed(NEW, NLM_F_CREATE), framed(DELETE, 0)];
    for message in messages(bytes).unwrap_or_default().into_iter().chain(framed) {
        let known = flow(&message);
        let Ok(Some(event)) = connection_event(&message) else { continue };
        if event.kind == Phase::Began {
            assert_eq!(known.ok().flatten(), Some(event.flow));
        }
    }
});
