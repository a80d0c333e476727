//! Links, addresses and default routes of this network namespace by rtnetlink.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures_util::{Stream, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoIpoib, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, Prop, XdpAttached,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::Error;
use crate::net::device::Ahead;
use crate::net::facts::Link;
use crate::net::interface::InterfaceName;

/// The links by index, without addresses and routes.
pub(super) async fn links() -> Result<BTreeMap<u32, Link>, Error> {
    let attempt = "list links";
    let messages: Vec<LinkMessage> = dump(attempt, |handle| handle.link().get().execute()).await?;
    if messages.is_empty() {
        // Every namespace has a loopback device.
        return Err(Error::Netlink { attempt, source: io::Error::other("the kernel listed none") });
    }
    let names: BTreeMap<u32, InterfaceName> =
        messages.iter().filter_map(|message| Some((message.header.index, name(message)?))).collect();
    Ok(messages.iter().filter_map(|message| Some((message.header.index, link(message, &names)?))).collect())
}

/// Index and name of every link, by `if_nameindex(3)`: no attribute is decoded, so none is missed.
pub(super) fn names() -> Vec<(u32, String)> {
    nix::net::if_::if_nameindex()
        .map(|interfaces| {
            interfaces
                .iter()
                .filter_map(|interface| Some((interface.index(), interface.name().to_str().ok()?.to_owned())))
                .collect()
        })
        .unwrap_or_default()
}

/// Adds each link's addresses.
pub(super) async fn add_addresses(links: &mut BTreeMap<u32, Link>) -> Result<(), Error> {
    let messages: Vec<AddressMessage> = dump("list addresses", |handle| handle.address().get().execute()).await?;
    for message in &messages {
        if let Some(link) = links.get_mut(&message.header.index)
            && let Some(address) = address(message)
        {
            link.addresses.insert(address);
        }
    }
    Ok(())
}

/// Marks the links through which a default route of the main table leaves.
pub(super) async fn add_default_routes(links: &mut BTreeMap<u32, Link>) -> Result<(), Error> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().table_id(MAIN_TABLE).build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().table_id(MAIN_TABLE).build();
    for request in [v4, v6] {
        let messages: Vec<RouteMessage> = dump("list routes", |handle| handle.route().get(request).execute()).await?;
        for index in messages.iter().flat_map(default_route_links) {
            if let Some(link) = links.get_mut(&index) {
                link.default_route = true;
            }
        }
    }
    Ok(())
}

const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Everything one dump request answers, over a connection of its own that ends with it.
pub(super) async fn dump<M, S>(attempt: &'static str, request: impl FnOnce(Handle) -> S) -> Result<Vec<M>, Error>
where
    S: Stream<Item = Result<M, rtnetlink::Error>>,
{
    // A connection whose receiver of unasked messages is gone ends at once, and a dump with it, without an error.
    let (connection, handle, _unasked) =
        rtnetlink::new_connection().map_err(|source| Error::Netlink { attempt, source })?;
    let driver = tokio::spawn(connection);
    let answer = request(handle).try_collect().await;
    driver.abort();
    answer.map_err(|error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        Error::Netlink { attempt, source }
    })
}

pub(super) fn name(message: &LinkMessage) -> Option<InterfaceName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => InterfaceName::new(name),
        _ => None,
    })
}

fn link(message: &LinkMessage, names: &BTreeMap<u32, InterfaceName>) -> Option<Link> {
    let mut link = Link::named(message.header.index, name(message)?);
    link.hardware = message.header.link_layer_type.into();
    link.up = message.header.flags.contains(LinkFlags::Up);
    // An index of IFLA_LINK counts in the namespace that IFLA_LINK_NETNSID names; without that it is ours.
    let parent_elsewhere =
        message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                link.pkey = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Ipoib(ipoib)) => ipoib.iter().find_map(|part| match part {
                        InfoIpoib::Pkey(key) => Some(*key),
                        _ => None,
                    }),
                    _ => None,
                });
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::PropList(properties) => {
                link.altnames = properties
                    .iter()
                    .filter_map(|property| match property {
                        Prop::AltIfName(name) => Some(name.clone()),
                        _ => None,
                    })
                    .collect();
                link.altnames.sort();
            }
            LinkAttribute::Address(bytes) => link.mac = hardware_address(bytes),
            LinkAttribute::Mtu(bytes) => link.mtu = Some(*bytes),
            LinkAttribute::PhysPortName(port) => link.port = Some(port.clone()),
            LinkAttribute::Controller(index) => link.master = names.get(index).cloned(),
            LinkAttribute::Link(index) if !parent_elsewhere && *index != link.index => {
                link.parent = names.get(index).cloned();
            }
            _ => {}
        }
    }
    if has_xdp(message) {
        link.ahead.insert(Ahead::Xdp);
    }
    Some(link)
}

/// Whether a link has an XDP program.
pub(super) fn has_xdp(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => {
            parts.iter().any(|part| matches!(part, LinkXdp::Attached(attached) if *attached != XdpAttached::None))
        }
        _ => false,
    })
}

/// The kind of a queue that is not one: tc's hooks for programs and filters. What is attached by tcx (Linux 6.6) has none, and only
/// bpf(2) tells of it.
pub(super) fn tc_hook(queue: &TcMessage) -> Option<&str> {
    queue.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) if kind == "clsact" || kind == "ingress" => Some(kind.as_str()),
        _ => None,
    })
}

/// Marks the links with a hook of tc. A kernel without tc has none.
pub(super) async fn add_tc_hooks(links: &mut BTreeMap<u32, Link>) -> Result<(), Error> {
    let queues: Vec<TcMessage> = match dump("list queues", |handle| handle.qdisc().get().execute()).await {
        Err(Error::Netlink { source, .. }) if source.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => return Ok(()),
        queues => queues?,
    };
    for queue in queues.iter().filter(|queue| tc_hook(queue).is_some()) {
        if let Some(link) = u32::try_from(queue.header.index).ok().and_then(|index| links.get_mut(&index)) {
            link.ahead.insert(Ahead::Tc);
        }
    }
    Ok(())
}

/// Bytes in colon notation, as sysfs writes them.
fn hardware_address(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

/// Our address in a message: of a point-to-point link `IFA_LOCAL` is ours and `IFA_ADDRESS` the peer's.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// The interface indexes of a default route, one per path; nothing for any other route.
fn default_route_links(message: &RouteMessage) -> Vec<u32> {
    let header = &message.header;
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    if header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || table.unwrap_or(u32::from(header.table)) != MAIN_TABLE
    {
        return Vec::new();
    }
    let mut indexes = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => indexes.push(*index),
            RouteAttribute::MultiPath(paths) => indexes.extend(paths.iter().map(|path| path.interface_index)),
            _ => {}
        }
    }
    indexes
}
