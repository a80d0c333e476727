//! Frames of a capture: any bytes end in a packet or in a reason why not, and a policy decides every packet.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nodewall::net::addr::AddrSet;
use nodewall::net::facts::Facts;
use nodewall::net::interface::{Direction, InterfaceName};
use nodewall::policy::model::Policy;
use nodewall::policy::resolve::resolve;
use nodewall::simulate::Origin;
use nodewall::simulate::link::LinkType;
use nodewall::simulate::replay::{Captured, Replay, Way};
use nodewall::simulate::wire::{arriving, beginning, packet};

const LINKS: [i32; 8] = [0, 1, 101, 108, 113, 228, 242, 276];

fuzz_target!(|input: (u8, Vec<Vec<u8>>)| {
    let (choice, frames) = input;
    let settings = nodewall::config::Config::shipped().settings;
    let (effective, _) = resolve(&Policy::with_builtin_tiers(), &settings, &Facts::default());
    let Some(interface) = InterfaceName::new("eth0") else { return };
    let Some(link) = LinkType::by_number(LINKS[usize::from(choice) % LINKS.len()]) else { return };
    let way = Way {
        interface,
        kind: None,
        direction: Direction::Ingress,
        exit: None,
        local: AddrSet::default(),
        vlans: Vec::new(),
        origin: Origin::Unknown,
    };
    let mut replay = Replay::new(&effective, way);
    for bytes in &frames {
        for headers in [packet(bytes), arriving(bytes, bytes.len()), beginning(bytes, bytes.len() + usize::from(choice))] {
            let Ok(headers) = headers else { continue };
            assert!(headers.transport.is_none_or(|transport| transport.len() <= bytes.len()));
            assert!(headers.ports().is_none() || headers.icmp().is_none());
        }
        let length = bytes.len() + usize::from(choice & 1);
        let (_, answer) = replay.next(&Captured { link, bytes, length, seen: None });
        let _ = answer.outcome();
    }
});
