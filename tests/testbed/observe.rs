//! From what the witnesses say to what became of each packet.

use super::witness::{Point, State, Testimony};

/// The first hook at which a packet is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The device on which it arrives, for that hook only.
    Device,
    /// Prerouting, of a packet that arrives.
    Network,
    /// Output, of a packet that this host sends.
    Host,
}

/// A packet that came to a hook of the node, and how far it got.
#[derive(Clone, Debug)]
pub struct Observed {
    pub hook: Entry,
    /// The interface by which it came (index), or 0 for one that this host sends.
    pub input: u32,
    /// The interface by which it leaves, as far as it got to know it.
    pub output: u32,
    /// As the first hook had it.
    pub bytes: Vec<u8>,
    /// The packet mark that it had then.
    pub mark: u32,
    /// User and group of the process that sends it.
    pub owner: Option<(u32, u32)>,
    /// What connection tracking called it.
    pub state: Option<State>,
    /// The witnesses that saw it, in order.
    pub seen: Vec<Point>,
    /// As it was before `input`, `forward` or `output`.
    pub at_end: Option<Vec<u8>>,
    /// What our own rules logged of it, in order.
    pub logged: Vec<String>,
}

impl Observed {
    /// Whether a witness saw it.
    pub fn at(&self, point: Point) -> bool {
        self.seen.contains(&point)
    }

    /// Whether this host sends it.
    pub fn leaves(&self) -> bool {
        self.hook == Entry::Host
    }

    /// Its identification, which `frame::build` gave it if it is one of ours.
    pub fn id(&self) -> u32 {
        identification(&self.bytes)
    }

    /// Whether it was let through at its end: by `input`, `forward` or `output`.
    pub fn accepted(&self) -> bool {
        [Point::AfterInput, Point::AfterForward, Point::AfterOutput].iter().any(|point| self.at(*point))
    }
}

/// The IPv4 identification or IPv6 flow label.
pub fn identification(bytes: &[u8]) -> u32 {
    match bytes {
        [first, _, _, _, a, b, ..] if first >> 4 == 4 => u32::from(u16::from_be_bytes([*a, *b])),
        [_, a, b, c, ..] => u32::from_be_bytes([0, a & 0xf, *b, *c]),
        _ => 0,
    }
}

/// What address translation leaves alone, and so does a router: IP version, identification, source and protocol.
pub type Lasting = (u8, u32, u128, u8);

/// What all testimonies of one packet have in common; `None` if there is less than a header.
pub fn lasting(bytes: &[u8]) -> Option<Lasting> {
    let first = bytes.first()? >> 4;
    let (source, protocol) = if first == 4 { (12..16, 9) } else { (8..24, 6) };
    let source = bytes.get(source)?.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
    Some((first, identification(bytes), source, *bytes.get(protocol)?))
}

/// Sorts testimonies by packet. One packet is on its way at a time, but for the answer that a rejection makes; so it is always the
/// last of its kind.
///
/// # Errors
/// A testimony of a packet that no first witness saw.
pub fn observations(said: Vec<Testimony>) -> Result<Vec<Observed>, String> {
    let mut all: Vec<Observed> = Vec::new();
    for testimony in said {
        let Testimony { point, prefix, hook, input, output, mark, owner, bytes } = testimony;
        // `enum nf_inet_hooks`: `LOCAL_OUT` is 3, `INGRESS` 5.
        let hook = match hook {
            3 => Entry::Host,
            5 => Entry::Device,
            _ => Entry::Network,
        };
        if matches!(point, Some(Point::Ingress | Point::Arrived | Point::Sent)) {
            let seen = point.into_iter().collect();
            let logged = Vec::new();
            all.push(Observed { hook, input, output, bytes, mark, owner, state: None, seen, at_end: None, logged });
            continue;
        }
        let same = |packet: &&mut Observed| {
            let way = if hook == Entry::Host { packet.output == output } else { packet.input == input };
            packet.hook == hook && way && lasting(&packet.bytes) == lasting(&bytes)
        };
        let Some(packet) = all.iter_mut().rev().find(same) else {
            return Err(format!(
                "{point:?} {prefix:?} of a packet that nobody saw before: {bytes:02x?} by {input}, {output}"
            ));
        };
        match point {
            None => packet.logged.push(prefix),
            Some(point) => {
                packet.seen.push(point);
                match point {
                    Point::Tracked(state) | Point::SentTracked(state) => packet.state = Some(state),
                    Point::BeforeInput | Point::BeforeOutput => packet.at_end = Some(bytes),
                    Point::BeforeForward => {
                        packet.at_end = Some(bytes);
                        packet.output = output;
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(all)
}
