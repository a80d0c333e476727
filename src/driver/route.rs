//! The kernel's routes, asked one by one: what `ip route get` asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Parseable};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Error;
use super::socket::Netlink;

/// The routes of the network namespace in which it is opened.
#[derive(Debug)]
pub struct Routes(Netlink);

/// include/uapi/linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;

impl Routes {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`Error::Socket`] when there is none to be had.
    pub fn open() -> Result<Self, Error> {
        Netlink::speaking(NETLINK_ROUTE).map(Self)
    }

    /// The index of the interface by which this host sends from `local` to `remote`; `None` where it has no route.
    pub fn interface(&mut self, local: IpAddr, remote: IpAddr) -> Option<u32> {
        let sequence = self.0.take_sequence(1);
        self.0.send(&request(local, remote, sequence)).ok()?;
        let answer = self.0.one(sequence, |message| {
            if message.kind != RTM_NEWROUTE {
                return None;
            }
            let route = RouteMessage::parse(message.payload).ok()?;
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
        });
        answer.ok().flatten()
    }
}

/// The interfaces, by index, by which this host sends to these addresses, as far as it has routes.
///
/// # Errors
/// rtnetlink cannot be asked.
pub fn ways(addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, u32>, Error> {
    let mut routes = Routes::open()?;
    let any =
        |remote: &IpAddr| if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(addresses.iter().filter_map(|to| Some((*to, routes.interface(any(to), *to)?))).collect())
}

fn request(local: IpAddr, remote: IpAddr, sequence: u32) -> Vec<u8> {
    let mut route = RouteMessage::default();
    let (family, length) = if remote.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    route.header.address_family = family;
    route.header.destination_prefix_length = length;
    route.header.source_prefix_length = length;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(remote)),
        RouteAttribute::Source(RouteAddress::from(local)),
    ];
    let mut header = NetlinkHeader::default();
    // Without an acknowledgement: there is one answer, the route or an error.
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetRoute(route)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
