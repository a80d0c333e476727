//! The chains of all tables as a dump lists them: where they hook in, and nothing about their rules.

use super::attribute::Malformed;
use super::constant::{
    NF_DROP, NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV, NFT_MSG_NEWCHAIN,
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_CHAIN_USE,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
};
use super::decode::{Message, devices};
use crate::nft::key::Datum;

/// The family of a table, as nft(8) names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// ARP.
    Arp,
    /// Bridged frames.
    Bridge,
    /// Frames of one device.
    Netdev,
}

impl Family {
    /// The word of nft(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        }
    }

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Ip => NFPROTO_IPV4,
            Self::Ip6 => NFPROTO_IPV6,
            Self::Arp => NFPROTO_ARP,
            Self::Bridge => NFPROTO_BRIDGE,
            Self::Netdev => NFPROTO_NETDEV,
        }
    }

    pub(super) const fn of(number: u8) -> Option<Self> {
        Some(match number {
            NFPROTO_INET => Self::Inet,
            NFPROTO_IPV4 => Self::Ip,
            NFPROTO_IPV6 => Self::Ip6,
            NFPROTO_ARP => Self::Arp,
            NFPROTO_BRIDGE => Self::Bridge,
            NFPROTO_NETDEV => Self::Netdev,
            _ => return None,
        })
    }

    /// The word of nft(8) for a hook of this family (include/uapi/linux/netfilter.h, netfilter_arp.h).
    const fn hook(self, number: u32) -> &'static str {
        match (self, number) {
            (Self::Netdev, 0) => "ingress",
            (Self::Netdev, 1) => "egress",
            (Self::Netdev, _) => "unknown",
            (Self::Arp, 0) => "input",
            (Self::Arp, 1) => "output",
            (Self::Arp, 2) => "forward",
            (Self::Arp, _) => "unknown",
            (_, 0) => "prerouting",
            (_, 1) => "input",
            (_, 2) => "forward",
            (_, 3) => "output",
            (_, 4) => "postrouting",
            (Self::Inet, 5) => "ingress",
            _ => "unknown",
        }
    }
}

/// Where a base chain hooks in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseHook {
    /// The hook, as nft(8) names it.
    pub hook: &'static str,
    /// The priority; lower goes first.
    pub priority: i32,
    /// The devices, at ingress and egress; a name that ends in `*` stands for all that begin so (Linux 6.16).
    pub devices: Vec<String>,
    /// "filter", "nat" or "route".
    pub kind: String,
    /// Whether the policy is drop.
    pub drops: bool,
    /// How many rules it has: nothing can jump to it, so that what uses it are its rules.
    pub rules: u32,
}

/// A chain of any table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnyChain {
    /// The family of its table.
    pub family: Family,
    /// The name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it hooks in, if it is a base chain.
    pub base: Option<BaseHook>,
}

/// The chain in a message; `None` when it is about something else, or about a family that we do not know.
///
/// # Errors
/// A message that is not as the kernel writes it.
pub fn any_chain(message: &Message<'_>) -> Result<Option<AnyChain>, Malformed> {
    if message.nft() != Some(NFT_MSG_NEWCHAIN) {
        return Ok(None);
    }
    let attributes = message.attributes()?;
    let Some(family) = message.payload.first().copied().and_then(Family::of) else { return Ok(None) };
    let mut base = None;
    if attributes.get(NFTA_CHAIN_HOOK).is_some() {
        let hook = attributes.nested(NFTA_CHAIN_HOOK)?;
        let mut devices: Vec<String> = devices(&hook)?.iter().map(Datum::as_name).collect();
        devices.sort();
        base = Some(BaseHook {
            hook: family.hook(hook.u32(NFTA_HOOK_HOOKNUM)?.unwrap_or(u32::MAX)),
            priority: hook.u32(NFTA_HOOK_PRIORITY)?.unwrap_or(0).cast_signed(),
            devices,
            kind: attributes.text(NFTA_CHAIN_TYPE),
            drops: attributes.u32(NFTA_CHAIN_POLICY)?.map(u32::cast_signed) == Some(NF_DROP),
            rules: attributes.u32(NFTA_CHAIN_USE)?.unwrap_or(0),
        });
    }
    Ok(Some(AnyChain {
        family,
        table: attributes.text(NFTA_CHAIN_TABLE),
        name: attributes.text(NFTA_CHAIN_NAME),
        base,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attribute::Writer;
    use super::super::constant::{NFNL_SUBSYS_NFTABLES, NFTA_DEVICE_NAME, NFTA_HOOK_DEV, NFTA_HOOK_DEVS};
    use super::super::decode::messages;
    use super::*;

    fn chain(family: u8) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.bytes.extend([0; 4]);
        writer.bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN).to_ne_bytes());
        writer.bytes.extend([0; 10]);
        writer.bytes.extend([family, 0, 0, 0]);
        writer.put_text(NFTA_CHAIN_TABLE, "filter");
        writer.put_text(NFTA_CHAIN_NAME, "INPUT");
        writer.nest(NFTA_CHAIN_HOOK, |hook| {
            hook.put_u32(NFTA_HOOK_HOOKNUM, 1);
            hook.put_u32(NFTA_HOOK_PRIORITY, (-5i32).cast_unsigned());
        });
        writer.put_u32(NFTA_CHAIN_POLICY, 0);
        writer.put_u32(NFTA_CHAIN_USE, 3);
        writer.put_text(NFTA_CHAIN_TYPE, "filter");
        let length = (writer.bytes.len() as u32).to_ne_bytes();
        writer.bytes[..4].copy_from_slice(&length);
        writer.bytes
    }

    #[test]
    fn a_base_chain_is_read() {
        let read = |bytes: &[u8]| any_chain(&messages(bytes).unwrap()[0]).unwrap();
        let found = read(&chain(NFPROTO_IPV4)).unwrap();
        let base = BaseHook {
            hook: "input",
            priority: -5,
            devices: Vec::new(),
            kind: "filter".to_owned(),
            drops: true,
            rules: 3,
        };
        assert_eq!((found.family, found.base), (Family::Ip, Some(base)));
        assert_eq!((found.table.as_str(), found.name.as_str()), ("filter", "INPUT"));
        assert_eq!(read(&chain(200)), None);
    }

    /// Of one device the kernel says the name twice, and versions of it only once.
    #[test]
    fn devices_are_read_in_either_form() {
        let read = |fill: &dyn Fn(&mut Writer)| {
            let mut writer = Writer { bytes: [[0; 16].as_slice(), &[NFPROTO_INET, 0, 0, 0]].concat() };
            writer.bytes[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN).to_ne_bytes());
            writer.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.put_u32(NFTA_HOOK_HOOKNUM, 5);
                fill(hook);
            });
            let length = (writer.bytes.len() as u32).to_ne_bytes();
            writer.bytes[..4].copy_from_slice(&length);
            let base = any_chain(&messages(&writer.bytes).unwrap()[0]).unwrap().unwrap().base.unwrap();
            assert_eq!(base.hook, "ingress");
            base.devices.join(" ")
        };
        let list = |kinds: &'static [(u16, &str)]| {
            move |hook: &mut Writer| {
                hook.nest(NFTA_HOOK_DEVS, |list| kinds.iter().for_each(|(kind, name)| list.put_text(*kind, name)));
            }
        };
        assert_eq!(read(&|_| {}), "");
        assert_eq!(read(&|hook| hook.put_text(NFTA_HOOK_DEV, "eth0")), "eth0");
        assert_eq!(read(&list(&[(NFTA_DEVICE_NAME, "eth0")])), "eth0");
        assert_eq!(read(&list(&[(NFTA_DEVICE_NAME, "eth0"), (NFTA_DEVICE_NAME + 1, "ib")])), "eth0 ib*");
        let both = |hook: &mut Writer| {
            list(&[(NFTA_DEVICE_NAME, "eth0")])(hook);
            hook.put_text(NFTA_HOOK_DEV, "eth0");
        };
        assert_eq!(read(&both), "eth0");
    }

    #[test]
    fn malformed_chains_are_errors_or_nothing() {
        let whole = chain(NFPROTO_IPV4);
        for index in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[index] = value;
                for message in messages(&bytes).unwrap_or_default() {
                    let _ = any_chain(&message);
                }
            }
        }
    }
}
