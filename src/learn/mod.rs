//! A policy learned from what went on: records to a draft that people review, and a draft held against the same records.
//!
//! ```text
//!  Record ── gather ──> flows ── triage ──> wanted ── services, peers ──> draft ── text ──> TOML
//!                         │         └────> set apart: scans, one-offs, unanswered, denied ──┘
//!                         └── verify (simulate, flow by flow, with the draft in force)
//! ```

pub mod draft;
pub mod gather;
mod ground;
mod peers;
mod services;
pub mod settled;
pub mod text;
pub mod triage;
pub mod verify;

use std::fmt;

pub use draft::{Draft, draft};
pub use gather::{Flow, Gathered, Seen};
pub use ground::Ground;
pub use triage::Apart;

/// How far peers may be widened beyond the addresses that were seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Generalise {
    /// Only single addresses.
    None,
    /// To sets of the policy and nodes of clusters.
    Sets,
    /// To those, and to prefixes of at least these lengths: IPv4, IPv6.
    Prefixes(u8, u8),
}

/// As far as networks go where one link has a prefix of its own.
pub const SHIPPED: Generalise = Generalise::Prefixes(24, 64);

impl Generalise {
    /// Reads "none", "sets", or prefix lengths: "/24", "/64" or "/24,/64".
    ///
    /// # Errors
    /// A sentence for people that says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is none of: none, sets, /24, /24,/64 (lengths of IPv4 and IPv6 prefixes)");
        let length = |text: &str, most: u8| {
            let digits = text.trim().strip_prefix('/')?;
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u8>().ok()).flatten().filter(|length| *length >= 8 && *length <= most)
        };
        match text {
            "none" => return Ok(Self::None),
            "sets" => return Ok(Self::Sets),
            _ => {}
        }
        let (v4, v6) = text.split_once(',').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
        let v6 = v6.map_or(Some(64), |v6| length(v6, 128));
        length(v4, 32).zip(v6).map(|(v4, v6)| Self::Prefixes(v4, v6)).ok_or_else(wrong)
    }
}

impl fmt::Display for Generalise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Sets => formatter.write_str("sets"),
            Self::Prefixes(v4, v6) => write!(formatter, "/{v4},/{v6}"),
        }
    }
}

/// What a draft is asked to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How far peers may be widened.
    pub generalise: Generalise,
    /// How many connections make a habit; what was seen less often is set apart as a one-off.
    pub seen: u64,
    /// Whether what this host begins is drafted also where it may begin everything.
    pub egress: bool,
    /// Whether what an enforcing policy, or a rule that says so, denies is proposed.
    pub denied: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { generalise: SHIPPED, seen: 2, egress: false, denied: false }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn how_far_to_generalise_is_read_and_written() {
        for (text, read) in [
            ("none", Generalise::None),
            ("sets", Generalise::Sets),
            ("/24,/64", Generalise::Prefixes(24, 64)),
            ("/16", Generalise::Prefixes(16, 64)),
            ("/32,/128", Generalise::Prefixes(32, 128)),
        ] {
            assert_eq!(Generalise::parse(text).unwrap(), read);
        }
        assert_eq!(Generalise::parse(&SHIPPED.to_string()).unwrap(), SHIPPED);
        for wrong in ["", "24", "/0", "/33", "/24,/129", "/24,", "/+24", "all", "/7"] {
            assert!(Generalise::parse(wrong).is_err(), "{wrong}");
        }
    }
}
