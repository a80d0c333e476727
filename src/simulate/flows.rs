//! Connection tracking over a capture: what the kernel's would say of each packet, as far as a capture tells (nf_conntrack_core.c
//! and nf_conntrack_proto_*.c in net/netfilter).
//!
//! A flow begins with the first of its packets that is let through. Its packets are new until one comes back, and established from
//! then on. No time goes by, sequence numbers and checksums of transport headers are not looked at, nobody translates addresses, and
//! no helper expects a flow.

use std::collections::BTreeMap;

use super::packet::ConntrackState;
use super::wire::{Headers, quoted};
use crate::net::addr::Family;
use crate::net::flow::{Detail, Tuple};
use crate::net::protocol::Protocol;

/// The flows there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flows {
    /// By the first packet's tuple.
    known: BTreeMap<Tuple, Known>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Known {
    /// Whether a packet came back.
    replied: bool,
    /// TCP: which sides have sent a FIN, the one that began first.
    fins: [bool; 2],
    /// TCP: whether it is over, so that a SYN begins another one.
    over: bool,
}

/// What connection tracking says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// `ct state`.
    pub state: ConntrackState,
    /// Whether it goes against the direction in which its flow began.
    pub reply: bool,
    /// The flow that begins with it if it is let through.
    begins: Option<Tuple>,
}

impl Sight {
    const fn stateless(state: ConntrackState) -> Self {
        Self { state, reply: false, begins: None }
    }
}

impl Flows {
    /// What connection tracking says of a packet.
    pub fn see(&mut self, headers: &Headers<'_>) -> Sight {
        match reading(headers) {
            Reading::Invalid => Sight::stateless(ConntrackState::Invalid),
            Reading::Untracked => Sight::stateless(ConntrackState::Untracked),
            Reading::Error(quote) => self.related(headers, quote),
            Reading::Flow(tuple, tcp) => self.flow(tuple, tcp),
        }
    }

    /// The packet was let through.
    pub fn confirm(&mut self, sight: Sight) {
        if let Some(tuple) = sight.begins {
            self.known.entry(tuple).or_default();
        }
    }

    fn flow(&mut self, tuple: Tuple, tcp: Option<Tcp>) -> Sight {
        let Some(inverse) = invert(&tuple) else { return Sight::stateless(ConntrackState::Invalid) };
        let reply = !self.known.contains_key(&tuple) && self.known.contains_key(&inverse);
        let key = if reply { inverse } else { tuple };
        let again = |known: &Known| known.over && tcp == Some(Tcp::Syn);
        if self.known.get(&key).is_some_and(again) {
            self.known.remove(&key);
        }
        let Some(known) = self.known.get_mut(&key) else {
            // A connection under way is picked up (`nf_conntrack_tcp_loose`), but not at its second packet or its end.
            let begins = !matches!(tcp, Some(Tcp::SynAck | Tcp::Fin | Tcp::Reset)) && may_begin(&tuple);
            return match begins {
                true => Sight { state: ConntrackState::New, reply: false, begins: Some(tuple) },
                false => Sight::stateless(ConntrackState::Invalid),
            };
        };
        known.replied |= reply;
        match tcp {
            Some(Tcp::Reset) => known.over = true,
            Some(Tcp::Fin) => {
                known.fins[usize::from(reply)] = true;
                known.over = known.fins == [true; 2];
            }
            _ => {}
        }
        let state = if known.replied { ConntrackState::Established } else { ConntrackState::New };
        Sight { state, reply, begins: None }
    }

    /// An ICMP error belongs to the flow of the packet that it quotes, if it goes to that packet's sender
    /// (`nf_conntrack_inet_error`, nf_conntrack_proto_icmp.c).
    fn related(&self, headers: &Headers<'_>, quote: &[u8]) -> Sight {
        let tuple = quoted(quote).ok().filter(|inner| inner.source == headers.destination).and_then(|inner| {
            match reading(&inner) {
                Reading::Flow(tuple, _) => Some(tuple),
                _ => None,
            }
        });
        let (original, reply) = match tuple {
            Some(tuple) => (
                self.known.contains_key(&tuple),
                invert(&tuple).is_some_and(|inverse| self.known.contains_key(&inverse)),
            ),
            None => (false, false),
        };
        match original || reply {
            // It goes against the packet that it is about.
            true => Sight { state: ConntrackState::Related, reply: original, begins: None },
            false => Sight::stateless(ConntrackState::Invalid),
        }
    }
}

/// What there is to track in a packet.
enum Reading<'a> {
    Invalid,
    /// The kernel leaves neighbour discovery and multicast listeners alone.
    Untracked,
    /// An ICMP error, with what it quotes.
    Error(&'a [u8]),
    Flow(Tuple, Option<Tcp>),
}

/// What a TCP segment does to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tcp {
    Syn,
    SynAck,
    Ack,
    Fin,
    Reset,
}

fn reading<'a>(headers: &Headers<'a>) -> Reading<'a> {
    let (Some(protocol), Some(transport)) = (headers.protocol, headers.transport) else { return Reading::Invalid };
    let detail = match (protocol, headers.family()) {
        (Protocol::ICMP, Family::V4) | (Protocol::ICMPV6, Family::V6) => {
            let Some((kind, code)) = headers.icmp() else { return Reading::Invalid };
            let error = if protocol == Protocol::ICMP { matches!(kind, 3..=5 | 11 | 12) } else { kind < 128 };
            if error {
                return transport.get(8..).map_or(Reading::Invalid, Reading::Error);
            }
            // nf_conntrack_proto_icmpv6.c `noct_valid_new`; 151 and 152 since Linux 5.15.
            if protocol == Protocol::ICMPV6 && matches!(kind, 130..=136 | 143 | 151 | 152) {
                return Reading::Untracked;
            }
            match transport {
                [_, _, _, _, a, b, _, _, ..] => Detail::Icmp { kind, code, id: u16::from_be_bytes([*a, *b]) },
                _ => return Reading::Invalid,
            }
        }
        _ if protocol.has_ports() => match headers.words() {
            Some((source, destination)) => Detail::Ports(source, destination),
            None => return Reading::Invalid,
        },
        // "No next header": there is nothing to track.
        (Protocol(59), Family::V6) => return Reading::Invalid,
        _ => Detail::None,
    };
    let tuple = Tuple { source: headers.source, destination: headers.destination, protocol, detail };
    let whole = !headers.cut && headers.fragment.is_none();
    match protocol {
        Protocol::TCP if whole || transport.len() >= TCP_HEADER => match segment(transport, whole) {
            Some(tcp) => Reading::Flow(tuple, Some(tcp)),
            None => Reading::Invalid,
        },
        _ if whole && transport.len() < smallest(protocol) => Reading::Invalid,
        Protocol::UDP if whole && !matches!(transport, [_, _, _, _, a, b, ..] if fits(*a, *b, transport.len())) => {
            Reading::Invalid
        }
        _ => Reading::Flow(tuple, None),
    }
}

/// Whether UDP's own length is that of a datagram that is all there (`udp_error`, nf_conntrack_proto_udp.c).
fn fits(high: u8, low: u8, there: usize) -> bool {
    (8..=there).contains(&usize::from(u16::from_be_bytes([high, low])))
}

/// The shortest header that connection tracking takes.
fn smallest(protocol: Protocol) -> usize {
    match protocol {
        Protocol::UDP | Protocol::UDPLITE => 8,
        Protocol::SCTP | Protocol::DCCP => 12,
        _ => 0,
    }
}

/// A TCP header without options, in bytes.
const TCP_HEADER: usize = 20;

/// What a segment says, if it says anything (`tcp_error` and its table of flags, nf_conntrack_proto_tcp.c).
fn segment(transport: &[u8], whole: bool) -> Option<Tcp> {
    let (offset, flags) = (transport.get(12)?, transport.get(13)?);
    let header = usize::from(offset >> 4) * 4;
    if header < TCP_HEADER || (whole && header > transport.len()) {
        return None;
    }
    // PSH, ECE and CWR go with anything.
    match flags & (FIN | SYN | RST | ACK | URG) {
        flags if flags == SYN || flags == SYN | URG => Some(Tcp::Syn),
        flags if flags == SYN | ACK => Some(Tcp::SynAck),
        flags if flags & !ACK == RST => Some(Tcp::Reset),
        flags if flags & !URG == FIN | ACK => Some(Tcp::Fin),
        flags if flags & !URG == ACK => Some(Tcp::Ack),
        _ => None,
    }
}

/// Flags of a TCP header (RFC 9293).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const URG: u8 = 32;

/// The tuple of an answer; `None` for ICMP that has none (`nf_ct_invert_tuple`).
fn invert(tuple: &Tuple) -> Option<Tuple> {
    let detail = match tuple.detail {
        Detail::Ports(source, destination) => Detail::Ports(destination, source),
        Detail::Icmp { kind, code, id } => Detail::Icmp { kind: answer(tuple.protocol, kind)?, code, id },
        Detail::None => Detail::None,
    };
    Some(Tuple { source: tuple.destination, destination: tuple.source, protocol: tuple.protocol, detail })
}

/// The type that goes with a type: request and reply (`invmap` of nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c).
fn answer(protocol: Protocol, kind: u8) -> Option<u8> {
    let pairs: &[(u8, u8)] =
        if protocol == Protocol::ICMP { &[(8, 0), (13, 14), (15, 16), (17, 18)] } else { &[(128, 129), (139, 140)] };
    pairs.iter().find_map(|(request, reply)| match kind {
        kind if kind == *request => Some(*reply),
        kind if kind == *reply => Some(*request),
        _ => None,
    })
}

/// A flow does not begin with an answer.
fn may_begin(tuple: &Tuple) -> bool {
    match tuple.detail {
        Detail::Icmp { kind, .. } => matches!(kind, 8 | 13 | 15 | 17 | 128 | 139),
        Detail::Ports(..) | Detail::None => true,
    }
}

#[cfg(test)]
mod tests;
