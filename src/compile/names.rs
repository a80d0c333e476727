//! Names for sets that a policy has no name for: after what they hold, so that equal sets are one set and other contents are
//! another set.

use sha2::{Digest, Sha256};

use crate::net::addr::Family;
use crate::net::protocol::Protocol;
use crate::nft::ir::{ElementKey, Elements, Verdict};
use crate::nft::key::{Datum, Key};

/// Longer names than this say a digest instead of the elements.
const LONGEST: usize = 60;

/// `ports/80_443_8000-8100`, `ports/tcp-53_udp-53`, `icmp/3_11`, `addresses/1c9f3a_4`. No document has a '/' in its name.
pub(super) fn of_elements(keys: &[Key], elements: &Elements) -> String {
    let what = match keys.last() {
        Some(Key::Port(..)) => "ports",
        Some(Key::IcmpType | Key::IcmpCode) => "icmp",
        Some(Key::Icmpv6Type | Key::Icmpv6Code) => "icmpv6",
        Some(Key::L4Proto) => "protocols",
        Some(Key::SocketUser) => "users",
        Some(Key::SocketGroup) => "groups",
        Some(Key::IpAddr(Family::V4, _)) => return format!("addresses/{}_4", digest(elements)),
        Some(Key::IpAddr(Family::V6, _)) => return format!("addresses/{}_6", digest(elements)),
        _ => "values",
    };
    if let Elements::Keys(all) = elements {
        let words: Vec<String> = all.keys().map(|element| words(keys, element)).collect();
        let name = format!("{what}/{}", words.join("_"));
        if name.len() <= LONGEST {
            return name;
        }
    }
    format!("{what}/{}", digest(elements))
}

/// One element: its fields joined by '-', a protocol by its name.
fn words(keys: &[Key], element: &ElementKey) -> String {
    let fields = keys.iter().zip(&element.0).map(|(key, (start, end))| {
        let word = |value: &Datum| match key {
            Key::L4Proto => Protocol(u8::try_from(value.number()).unwrap_or_default()).to_string(),
            _ => value.number().to_string(),
        };
        if start == end { word(start) } else { format!("{}-{}", word(start), word(end)) }
    });
    fields.collect::<Vec<_>>().join("-")
}

/// Six hexadecimal digits that stand for the elements of a set or map.
pub(super) fn digest(elements: &Elements) -> String {
    let mut hash = Sha256::new();
    match elements {
        Elements::V4(ranges) => hash.update(format!("{:?}", ranges.ranges())),
        Elements::V6(ranges) => hash.update(format!("{:?}", ranges.ranges())),
        Elements::Keys(_) => {}
    }
    if let Elements::Keys(keys) = elements {
        for (key, verdict) in keys {
            for (start, end) in &key.0 {
                hash.update(start.bytes());
                hash.update(end.bytes());
            }
            match verdict {
                Some(Verdict::Jump(chain) | Verdict::Goto(chain)) => hash.update(chain),
                other => hash.update(format!("{other:?}")),
            }
            hash.update([0]);
        }
    }
    short(hash)
}

/// Six hexadecimal digits that stand for a text.
pub(super) fn digest_text(text: &str) -> String {
    short(Sha256::new().chain_update(text))
}

fn short(hash: Sha256) -> String {
    hash.finalize().iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}
