//! Whatever RDMA netlink, devlink and the kernel's events say of devices: reading it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::host::attribute::messages;
use nodewall::host::{device_watch, devlink, nldev};
use nodewall::net::pci::PciPath;

fuzz_target!(|bytes: &[u8]| {
    for message in messages(bytes) {
        let _ = (nldev::device(message.payload), nldev::port(message.payload));
        let _ = (devlink::read_family(message.payload), devlink::read_port(message.payload));
    }
    let _ = (nldev::device(bytes), nldev::port(bytes), devlink::read_family(bytes), devlink::read_port(bytes));
    let _ = device_watch::is_of_interest(bytes);
    if let Ok(path) = std::str::from_utf8(bytes) {
        // What is read from a path is written as such a path, and read again from that.
        if let Some(found) = PciPath::of(path) {
            let chain: Vec<String> = found.bridges.iter().chain([&found.address]).map(ToString::to_string).collect();
            assert_eq!(PciPath::of(&format!("{}/{}", found.root, chain.join("/"))), Some(found));
        }
    }
});
