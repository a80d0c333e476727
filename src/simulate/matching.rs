//! Whether a rule matches a packet, and if not, what stands in the way.

use super::packet::{Origin, Packet};
use crate::net::protocol::{L4Detail, L4Match};
use crate::policy::effective::{EffectiveRule, ProcessMatch};

/// The first condition of a rule that a packet does not meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mismatch {
    /// Another IP version.
    Family,
    /// The source address.
    From,
    /// The destination address.
    To,
    /// The protocol.
    Protocol,
    /// The destination port, or it cannot be read.
    Ports,
    /// The ICMP type or code, or they cannot be read.
    Icmp,
    /// The source port, or there is none.
    SourcePorts,
    /// The user, the group or the unit of the process that sends it, or there is none.
    Process,
}

impl Mismatch {
    /// What does not fit, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Family => "another IP version",
            Self::From => "another source address",
            Self::To => "another destination address",
            Self::Protocol => "another protocol",
            Self::Ports => "another destination port",
            Self::Icmp => "another ICMP type",
            Self::SourcePorts => "another source port",
            Self::Process => "another process",
        }
    }
}

/// Holds the rule's conditions against the packet.
///
/// # Errors
/// The first condition that does not hold.
pub fn matches(rule: &EffectiveRule, packet: &Packet) -> Result<(), Mismatch> {
    let holds = |condition: bool, mismatch: Mismatch| if condition { Ok(()) } else { Err(mismatch) };
    holds(rule.family.is_none_or(|family| family == packet.family()), Mismatch::Family)?;
    holds(rule.from.contains(packet.source), Mismatch::From)?;
    holds(rule.to.contains(packet.destination), Mismatch::To)?;
    transport(&rule.l4, packet)?;
    let source_port = packet.ports().map(|(source, _)| source);
    holds(
        rule.source_ports.as_ref().is_none_or(|wanted| source_port.is_some_and(|port| wanted.contains(port))),
        Mismatch::SourcePorts,
    )?;
    holds(rule.process.as_ref().is_none_or(|process| sends(process, &packet.origin)), Mismatch::Process)
}

fn sends(process: &ProcessMatch, origin: &Origin) -> bool {
    let Origin::Process(socket) = origin else { return false };
    process.users.as_ref().is_none_or(|users| users.contains(socket.uid))
        && process.groups.as_ref().is_none_or(|groups| groups.contains(socket.gid))
        && process.units.as_ref().is_none_or(|units| !units.cgroups.is_disjoint(&socket.cgroups))
}

fn transport(l4: &L4Match, packet: &Packet) -> Result<(), Mismatch> {
    let L4Match::Only(protocols) = l4 else { return Ok(()) };
    let Some(protocol) = packet.protocol else { return Err(Mismatch::Protocol) };
    match protocols.get(&protocol) {
        None => Err(Mismatch::Protocol),
        Some(L4Detail::All) => Ok(()),
        Some(L4Detail::Ports(wanted)) => match packet.ports() {
            Some((_, port)) if wanted.contains(port) => Ok(()),
            _ => Err(Mismatch::Ports),
        },
        Some(L4Detail::Icmp(wanted)) => match packet.icmp_of(protocol) {
            Some((kind, code)) if wanted.get(&kind).is_some_and(|codes| codes.contains(code)) => Ok(()),
            _ => Err(Mismatch::Icmp),
        },
    }
}
