//! IP addresses: prefixes as operators write them, and sets of addresses as we compute with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::range::RangeSet;

/// An IP version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

/// Why a text is not a prefix that we accept.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PrefixError {
    /// Neither an address nor address/length.
    #[error("\"{0}\" is not an IP address or prefix")]
    Syntax(String),
    /// The length is larger than the family has bits.
    #[error("prefix length {length} is larger than {most}")]
    Length {
        /// The length that was written.
        length: u32,
        /// 32 or 128.
        most: u8,
    },
    /// The address has bits set to the right of the prefix length, so that it is unclear what was meant.
    #[error("{written} has host bits set; write {network} for the network or {address} for the one address")]
    HostBits {
        /// The text as written.
        written: String,
        /// The prefix with those bits cleared.
        network: IpNet,
        /// The address alone.
        address: IpAddr,
    },
    /// `::ffff:a.b.c.d`: no packet on a wire carries it (RFC 4291 section 2.5.5.2), so a rule with it would match nothing.
    #[error("{0} is an IPv4-mapped IPv6 address, which no packet carries; write {1}")]
    Mapped(String, Ipv4Addr),
}

/// Reads an address ("10.0.0.1", a prefix of full length) or a prefix ("10.0.0.0/8", "fd00::/8").
///
/// # Errors
/// Whatever is not exactly one network: see [`PrefixError`].
pub fn parse_prefix(text: &str) -> Result<IpNet, PrefixError> {
    let syntax = || PrefixError::Syntax(text.to_owned());
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let most: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(digits) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(syntax());
        }
        Some(digits) => {
            let length: u32 = digits.parse().map_err(|_| syntax())?;
            u8::try_from(length).ok().filter(|length| *length <= most).ok_or(PrefixError::Length { length, most })?
        }
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(PrefixError::Mapped(text.to_owned(), v4));
    }
    let prefix = IpNet::new(address, length).map_err(|_| syntax())?;
    let network = prefix.trunc();
    if network != prefix {
        return Err(PrefixError::HostBits { written: text.to_owned(), network, address });
    }
    Ok(prefix)
}

/// A set of IPv4 and IPv6 addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct AddrSet {
    /// The IPv4 addresses, as integers in host order.
    pub v4: RangeSet<u32>,
    /// The IPv6 addresses, as integers in host order.
    pub v6: RangeSet<u128>,
}

impl FromIterator<IpNet> for AddrSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match prefix {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        Self { v4: v4.into_iter().collect(), v6: v6.into_iter().collect() }
    }
}

impl FromIterator<IpAddr> for AddrSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        addresses.into_iter().map(IpNet::from).collect()
    }
}

impl AddrSet {
    /// Every address of both families.
    pub fn full() -> Self {
        Self { v4: RangeSet::full(), v6: RangeSet::full() }
    }

    /// Whether the set has no address.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether every address of both families is in the set.
    pub fn is_full(&self) -> bool {
        self.v4.is_full() && self.v6.is_full()
    }

    /// Whether `address` is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.contains(v6.to_bits()),
        }
    }

    /// The addresses in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { v4: self.v4.union(&other.v4), v6: self.v6.union(&other.v6) }
    }

    /// The addresses in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { v4: self.v4.intersection(&other.v4), v6: self.v6.intersection(&other.v6) }
    }

    /// The addresses in this set that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self { v4: self.v4.difference(&other.v4), v6: self.v6.difference(&other.v6) }
    }

    /// Whether the two sets have no address in common.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.v4.is_disjoint(&other.v4) && self.v6.is_disjoint(&other.v6)
    }

    /// How many ranges the set has in both families together.
    pub fn range_count(&self) -> usize {
        self.v4.ranges().len() + self.v6.ranges().len()
    }
}

/// The one prefix that covers exactly `start..=end`, if there is one: nft(8) prints such a range as a prefix.
pub fn prefix_of_v4(start: u32, end: u32) -> Option<Ipv4Net> {
    let length = (start ^ end).leading_zeros() as u8;
    let net = Ipv4Net::new(Ipv4Addr::from_bits(start), length).ok()?;
    (net.network().to_bits() == start && net.broadcast().to_bits() == end).then_some(net)
}

/// The one prefix that covers exactly `start..=end`, if there is one.
pub fn prefix_of_v6(start: u128, end: u128) -> Option<Ipv6Net> {
    let length = (start ^ end).leading_zeros() as u8;
    let net = Ipv6Net::new(Ipv6Addr::from_bits(start), length).ok()?;
    (net.network().to_bits() == start && net.broadcast().to_bits() == end).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_networks_are_prefixes() {
        assert_eq!(parse_prefix("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_prefix("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(parse_prefix("fd00::1").unwrap().to_string(), "fd00::1/128");
        assert_eq!(parse_prefix("::/0").unwrap().to_string(), "::/0");
        assert_eq!(parse_prefix("10.0.0.0/33"), Err(PrefixError::Length { length: 33, most: 32 }));
        assert!(matches!(parse_prefix("10.0.0.1/8"), Err(PrefixError::HostBits { .. })));
        assert!(matches!(parse_prefix("::ffff:10.0.0.1"), Err(PrefixError::Mapped(..))));
        for bad in ["", "10.0.0", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "010.0.0.1", "fe80::1%eth0", " 10.0.0.1"]
        {
            assert!(matches!(parse_prefix(bad), Err(PrefixError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn a_range_is_a_prefix_only_when_aligned() {
        let bits = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
        assert_eq!(prefix_of_v4(bits("10.0.0.0"), bits("10.0.0.255")).unwrap().to_string(), "10.0.0.0/24");
        assert_eq!(prefix_of_v4(0, u32::MAX).unwrap().to_string(), "0.0.0.0/0");
        assert_eq!(prefix_of_v4(bits("10.0.0.1"), bits("10.0.0.255")), None);
        assert_eq!(prefix_of_v6(1, 1).unwrap().to_string(), "::1/128");
    }
}
