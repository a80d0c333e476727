//! Which role and labels the policy gives the interface of a packet.

use super::packet::Packet;
use crate::net::interface::{InterfaceName, Role};
use crate::policy::effective::{Effective, Pattern};
use crate::policy::selector::Labels;

/// An interface as the policy sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recognised<'a> {
    /// Its role.
    pub role: Role,
    /// Its labels.
    pub labels: &'a Labels,
    /// How it was recognised.
    pub how: How<'a>,
}

/// How an interface was recognised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How<'a> {
    /// It is one of this node's interfaces; why it has its role, in words.
    Known(&'a str),
    /// It is not there yet, and this pattern expects it.
    Expected(&'a Pattern),
    /// Nothing is known about it.
    Unknown,
}

/// Recognises an interface: by its name among those there are, else by the first pattern that matches, else as unknown.
pub fn recognise<'a>(effective: &'a Effective, name: &InterfaceName, kind: Option<&str>) -> Recognised<'a> {
    if let Some(known) = effective.interfaces.iter().find(|interface| interface.name == *name) {
        return Recognised { role: known.role, labels: &known.labels, how: How::Known(&known.why) };
    }
    if let Some(expected) = effective.expected.iter().find(|expected| fits(&expected.pattern, name, kind)) {
        return Recognised { role: expected.role, labels: &expected.labels, how: How::Expected(&expected.pattern) };
    }
    let role = effective.unknown.get("role").and_then(|name| Role::by_name(name)).unwrap_or(Role::Unknown);
    Recognised { role, labels: &effective.unknown, how: How::Unknown }
}

/// Whether the packet stays on this host: its interface has the role loopback, or is `lo`, the name that the kernel
/// gives the loopback device of each network namespace (drivers/net/loopback.c), whatever role somebody gave it.
pub fn is_loopback(effective: &Effective, packet: &Packet) -> bool {
    packet.interface.as_str() == "lo"
        || recognise(effective, &packet.interface, packet.kind.as_deref()).role == Role::Loopback
}

fn fits(pattern: &Pattern, name: &InterfaceName, kind: Option<&str>) -> bool {
    match pattern {
        Pattern::Name(wanted) => wanted == name,
        Pattern::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
        Pattern::Kind(wanted) => kind == Some(wanted.as_str()),
    }
}
