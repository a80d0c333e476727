//! The bytes of an IP packet as nf_tables reads them, and what the kernel drops before any rule is asked.
//!
//! What rules can read follows the kernel's `nft_set_pktinfo_ipv4` and `nft_set_pktinfo_ipv6` (include/net/netfilter/nf_tables_ipv4.h,
//! nf_tables_ipv6.h), `ipv6_find_hdr` (net/ipv6/exthdrs_core.c) and `nft_payload_eval` (net/netfilter/nft_payload.c); what never gets to
//! a rule follows `ip_rcv_core` (net/ipv4/ip_input.c), `ip6_rcv_core` (net/ipv6/ip6_input.c) and `ip6_parse_tlv` (net/ipv6/exthdrs.c).

mod hop_by_hop;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ConntrackState, Origin, Packet};
use crate::net::addr::Family;
use crate::net::interface::{Direction, InterfaceName};
use crate::net::protocol::Protocol;

/// What rules can read of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Headers<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same family.
    pub destination: IpAddr,
    /// IPv4 time to live or IPv6 hop limit.
    pub hop_limit: u8,
    /// What `meta l4proto` reads; `None` where IPv6 extension headers break off before it.
    pub protocol: Option<Protocol>,
    /// Which part of a larger packet it is.
    pub fragment: Option<Fragment>,
    /// The packet from its transport header on, as far as it goes and was captured; `None` where no rule reads it: without a
    /// protocol, and in fragments after the first.
    pub transport: Option<&'a [u8]>,
    /// Whether the packet goes on after that: the capture, or the ICMP error that quotes it, has only its beginning.
    pub cut: bool,
}

/// Which part of a larger packet a fragment is. Rules of ours see packets after reassembly (priority -400 in prerouting), which
/// puts the first fragment's headers before all of the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// What the fragments of one packet have in common, with the addresses and in IPv4 the protocol.
    pub id: u32,
    /// Where in the data of the larger packet this one's begins, in bytes.
    pub offset: u16,
    /// Whether others come after it.
    pub more: bool,
}

impl Fragment {
    /// Whether the headers are in it.
    pub fn is_first(self) -> bool {
        self.offset == 0
    }
}

/// Why no rule ever sees a packet, or why nobody can say what rules would see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than an IP header has.
    #[error("the IP header is not all there")]
    Short,
    /// Neither 4 nor 6.
    #[error("IP version {0}")]
    Version(u8),
    /// IPv4: a header of fewer than 20 bytes, or one that is longer than the packet.
    #[error("the IP header says that it is {0} bytes long")]
    HeaderLength(u16),
    /// More bytes are promised than there are.
    #[error("the IP header says that the packet is {said} bytes long, and it is {there}")]
    Length {
        /// By the header.
        said: u32,
        /// In truth.
        there: u32,
    },
    /// IPv4: the checksum of the header is wrong.
    #[error("the checksum of the IP header is wrong")]
    Checksum,
    /// IPv6: an address that no packet may have there.
    #[error("an IPv6 packet must not have this {0} address")]
    Address(&'static str),
    /// IPv6, of a packet that arrives: hop-by-hop options that a host has to discard.
    #[error("the hop-by-hop options are invalid or have to be discarded")]
    HopByHop,
    /// Not the packet's fault: the capture has only its beginning, and what rules read comes after that.
    #[error("the capture has only the beginning of the packet")]
    Cut,
}

/// What rules read of a packet that begins with its IP header; bytes after its end, which the link added, are left out.
///
/// # Errors
/// The kernel would not take it for a packet: see [`WireError`]. What else it drops on arrival is for [`arriving`] to say.
pub fn packet(bytes: &[u8]) -> Result<Headers<'_>, WireError> {
    read(bytes, bytes.len(), false)
}

/// The same for a packet of `length` bytes of which only the first are there.
///
/// # Errors
/// As [`packet`], and [`WireError::Cut`].
pub fn beginning(bytes: &[u8], length: usize) -> Result<Headers<'_>, WireError> {
    read(bytes, length.max(bytes.len()), false)
}

/// The same for a packet that comes from another host, which goes through more checks before any rule is asked.
///
/// # Errors
/// As [`beginning`], and where the kernel drops it on arrival. Not looked at: checksums of transport headers (a wrong one makes the
/// packet invalid to connection tracking), and IPv4 options, which are judged after the prerouting rules.
pub fn arriving(bytes: &[u8], length: usize) -> Result<Headers<'_>, WireError> {
    let headers = read(bytes, length.max(bytes.len()), true)?;
    match (headers.source, headers.destination) {
        (IpAddr::V4(_), _) => {
            let header = bytes.get(..header_length(bytes)).ok_or(WireError::Cut)?;
            if !checksum_holds(header) {
                return Err(WireError::Checksum);
            }
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let scope = destination.octets()[1] & 0xf;
            // Reserved and interface-local (RFC 4291 section 2.7): no packet on a link.
            if source.is_multicast() {
                return Err(WireError::Address("source"));
            } else if destination.is_multicast() && scope <= 1 {
                return Err(WireError::Address("destination"));
            }
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => {}
    }
    Ok(headers)
}

/// What rules would read of a packet that an ICMP error quotes: its end is missing, and that is no fault.
///
/// # Errors
/// Not even its header is there.
pub(super) fn quoted(bytes: &[u8]) -> Result<Headers<'_>, WireError> {
    let first = bytes.first().ok_or(WireError::Short)?;
    let skb = Skb { bytes, length: bytes.len() };
    let headers = match first >> 4 {
        4 if header_length(bytes) < IPV4_HEADER => Err(WireError::HeaderLength(u16::from(first & 0xf) * 4)),
        4 => ipv4(skb, header_length(bytes)),
        6 => ipv6(skb),
        other => Err(WireError::Version(other)),
    }?;
    Ok(Headers { cut: true, ..headers })
}

impl Headers<'_> {
    /// Source and destination port, of a protocol that has them. A header that ends between the two has neither here; the kernel
    /// reads the first of them, but connection tracking calls such a packet invalid.
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.words().filter(|_| self.protocol.is_some_and(Protocol::has_ports))
    }

    /// ICMP type and code, of ICMP in IPv4 and ICMPv6 in IPv6.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let wanted = match self.family() {
            Family::V4 => Protocol::ICMP,
            Family::V6 => Protocol::ICMPV6,
        };
        match self.transport {
            Some([kind, code, ..]) if self.protocol == Some(wanted) => Some((*kind, *code)),
            _ => None,
        }
    }

    /// The first two words of the transport header, whatever the protocol is: what `th sport` and `th dport` read.
    pub fn words(&self) -> Option<(u16, u16)> {
        match self.transport {
            Some([a, b, c, d, ..]) => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
            _ => None,
        }
    }

    /// The IP version.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The packet on an interface, by nobody that is known, new to connection tracking.
    pub fn packet(&self, direction: Direction, interface: InterfaceName) -> Packet {
        Packet {
            direction,
            interface,
            kind: None,
            source: self.source,
            destination: self.destination,
            protocol: self.protocol,
            ports: self.ports(),
            icmp: self.icmp(),
            hop_limit: self.hop_limit,
            state: ConntrackState::New,
            forward: None,
            translated: None,
            origin: Origin::Unknown,
        }
    }
}

/// Bytes of which the first may be all that is there.
#[derive(Clone, Copy)]
struct Skb<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Skb<'a> {
    /// `N` bytes, like `skb_header_pointer` of include/linux/skbuff.h: `None` where the packet ends before.
    fn get<const N: usize>(self, at: usize) -> Result<Option<[u8; N]>, WireError> {
        let end = at.saturating_add(N);
        if end > self.length {
            return Ok(None);
        }
        match self.bytes.get(at..end).and_then(|found| found.try_into().ok()) {
            Some(found) => Ok(Some(found)),
            None => Err(WireError::Cut),
        }
    }

    /// Without what the link added at the end.
    fn trimmed(self, length: usize) -> Self {
        Self { bytes: self.bytes.get(..length).unwrap_or(self.bytes), length }
    }

    fn from(self, at: usize) -> &'a [u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    fn is_cut(self) -> bool {
        self.bytes.len() < self.length
    }
}

fn read(bytes: &[u8], length: usize, arriving: bool) -> Result<Headers<'_>, WireError> {
    let skb = Skb { bytes, length };
    let [first] = skb.get(0)?.ok_or(WireError::Short)?;
    let headers = match first >> 4 {
        4 => ipv4(ipv4_whole(skb)?, header_length(bytes))?,
        6 => ipv6(ipv6_whole(skb, arriving)?)?,
        other => return Err(WireError::Version(other)),
    };
    // Rules read ports and ICMP types; where the capture ends before them, nobody knows what they are.
    let wanted = match headers.protocol {
        Some(Protocol::ICMP | Protocol::ICMPV6) => 2,
        Some(protocol) if protocol.has_ports() => 4,
        _ => 0,
    };
    match headers.transport {
        Some(there) if there.len() < wanted && headers.cut => Err(WireError::Cut),
        _ => Ok(headers),
    }
}

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// The largest length that 16 bits say. Longer packets are of one kind: segments of a TCP connection that the kernel or the NIC
/// put together, whose header says 0 ("BIG TCP": `iph_totlen`, include/linux/ip.h; `ipv6_payload_len`, include/linux/ipv6.h).
const LONGEST: usize = 65_535;

/// The header's own word on its length, in bytes.
fn header_length(bytes: &[u8]) -> usize {
    usize::from(bytes.first().copied().unwrap_or_default() & 0xf) * 4
}

/// An IPv4 packet without what comes after it.
fn ipv4_whole(skb: Skb<'_>) -> Result<Skb<'_>, WireError> {
    let header: [u8; IPV4_HEADER] = skb.get(0)?.ok_or(WireError::Short)?;
    let header_length = header_length(&header);
    if header_length < IPV4_HEADER {
        return Err(WireError::HeaderLength(u16::from(header[0] & 0xf) * 4));
    }
    let said = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let tcp = header[9] == Protocol::TCP.0;
    let length = if said == 0 && tcp && skb.length > LONGEST { skb.length } else { said };
    if length > skb.length {
        return Err(too_long(length, skb.length));
    }
    if header_length > length {
        return Err(WireError::HeaderLength(u16::from(header[0] & 0xf) * 4));
    }
    Ok(skb.trimmed(length))
}

fn too_long(said: usize, there: usize) -> WireError {
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    WireError::Length { said: number(said), there: number(there) }
}

/// `nft_set_pktinfo_ipv4`.
fn ipv4(skb: Skb<'_>, header_length: usize) -> Result<Headers<'_>, WireError> {
    let header: [u8; IPV4_HEADER] = skb.get(0)?.ok_or(WireError::Short)?;
    let [.., a, b, c, d, e, f, g, h] = header;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    Ok(Headers {
        source: Ipv4Addr::new(a, b, c, d).into(),
        destination: Ipv4Addr::new(e, f, g, h).into(),
        hop_limit: header[8],
        protocol: Some(Protocol(header[9])),
        fragment: (offset != 0 || more).then_some(Fragment { id, offset, more }),
        transport: (offset == 0).then(|| skb.from(header_length)),
        cut: skb.is_cut(),
    })
}

/// Whether the sum over the header, its checksum included, is as it has to be (`ip_fast_csum`; RFC 1071).
fn checksum_holds(header: &[u8]) -> bool {
    let sum: u32 = header.chunks(2).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

/// Extension headers that the kernel knows (`ipv6_ext_hdr`): whatever else comes next is the transport protocol.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// An IPv6 packet without what comes after it. Nobody looks at the hop-by-hop options of a packet that this host sends.
fn ipv6_whole(skb: Skb<'_>, arriving: bool) -> Result<Skb<'_>, WireError> {
    let header: [u8; IPV6_HEADER] = skb.get(0)?.ok_or(WireError::Short)?;
    let said = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let next = header[6];
    let mut whole = skb;
    // Zero may mean that a hop-by-hop option says it (RFC 2675), and without that option the kernel takes the packet for as long as
    // the link says.
    if said != 0 || next != HOP_BY_HOP {
        let tcp = next == Protocol::TCP.0;
        let payload =
            if said == 0 && tcp && skb.length > LONGEST + IPV6_HEADER { skb.length - IPV6_HEADER } else { said };
        let length = IPV6_HEADER + payload;
        if length > skb.length {
            return Err(too_long(length, skb.length));
        }
        whole = skb.trimmed(length);
    }
    if next == HOP_BY_HOP && arriving {
        whole = hop_by_hop::checked(whole, said)?;
    }
    Ok(whole)
}

/// `nft_set_pktinfo_ipv6`.
fn ipv6(skb: Skb<'_>) -> Result<Headers<'_>, WireError> {
    let header: [u8; IPV6_HEADER] = skb.get(0)?.ok_or(WireError::Short)?;
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let Found { protocol, at, fragment } = find_header(skb, header[6])?;
    Ok(Headers {
        source: address(8),
        destination: address(24),
        hop_limit: header[7],
        protocol,
        fragment,
        transport: at.map(|at| skb.from(at)),
        cut: skb.is_cut(),
    })
}

/// Where `ipv6_find_hdr` ends.
struct Found {
    protocol: Option<Protocol>,
    /// Where the transport header begins.
    at: Option<usize>,
    fragment: Option<Fragment>,
}

/// `ipv6_find_hdr` with the flag `IP6_FH_F_AUTH` and no target: the last header of the chain.
fn find_header(skb: Skb<'_>, first: u8) -> Result<Found, WireError> {
    let mut next = first;
    let mut at = IPV6_HEADER;
    let mut fragment = None;
    let broken = |fragment| Ok(Found { protocol: None, at: None, fragment });
    while is_extension(next) {
        let Some([after, length]) = skb.get(at)? else { return broken(fragment) };
        let mut size = (usize::from(length) + 1) * 8;
        match next {
            ROUTING if skb.get::<4>(at)?.is_none() => return broken(fragment),
            FRAGMENT => {
                let Some([high, low]) = skb.get(at + 2)? else { return broken(fragment) };
                let word = u16::from_be_bytes([high, low]);
                let (offset, more) = (word & !0x7, word & 1 != 0);
                let id = skb.get(at + 4)?.map_or(0, u32::from_be_bytes);
                // One that is the whole packet (RFC 6946) is no more than a header to skip.
                if offset != 0 || more {
                    fragment = Some(Fragment { id, offset, more });
                }
                if offset != 0 {
                    let protocol = (!is_extension(after)).then_some(Protocol(after));
                    return Ok(Found { protocol, at: None, fragment });
                }
                size = 8;
            }
            AUTHENTICATION => break,
            _ => {}
        }
        next = after;
        at += size;
    }
    // The kernel keeps the offset in 16 bits, and takes a chain that is longer for a broken one.
    if at > LONGEST {
        return broken(fragment);
    }
    Ok(Found { protocol: Some(Protocol(next)), at: Some(at), fragment })
}

/// Whether the chain goes on in it; "no next header" (59) ends the chain, and counts as a protocol.
fn is_extension(header: u8) -> bool {
    matches!(header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

#[cfg(test)]
pub(super) mod tests;
