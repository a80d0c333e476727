//! Where policies are evaluated: a stage and a direction, with the hook, the chains and the verdicts that go with it.

use crate::net::interface::Direction;
use crate::nft::ir::{BaseChain, ChainPolicy, Hook, Verdict};
use crate::nft::key::{Key, Side};
use crate::policy::effective::Effective;
use crate::policy::model::{Mode, Stage};

/// Priority of `input`, `forward` and `output` (nft(8): `filter`).
const FILTER_PRIORITY: i32 = 0;
/// Priority of `prednat`: after conntrack (-200) and mangle (-150), before everybody's DNAT (nft(8): `dstnat`, -100).
const PREDNAT_PRIORITY: i32 = -110;
/// Priority of the untracked stage (nft(8): `raw`): after reassembly (-400), before conntrack (-200).
const RAW_PRIORITY: i32 = -300;

/// A stage and a direction in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Point {
    /// The stage.
    pub(super) stage: Stage,
    /// By the interface on which a packet arrives, or by the one by which it leaves.
    pub(super) direction: Direction,
}

/// The chain that lets through what the untracked stage allows: no conntrack entry, and no question by later stages.
pub(super) const ACCEPT_UNTRACKED: &str = "accept_untracked";
/// The chain that lets through what an early stage allows: no question by later stages.
pub(super) const ACCEPT_EARLY: &str = "accept_early";
/// The chain that goes on with a forwarded packet by the interface by which it leaves.
pub(super) const FORWARD_OUT: &str = "forward_out";

impl Point {
    /// Every point, in the kernel's order for each packet.
    pub(super) const ALL: [Self; 7] = [
        Self { stage: Stage::Untracked, direction: Direction::Ingress },
        Self { stage: Stage::Untracked, direction: Direction::Egress },
        Self { stage: Stage::Prednat, direction: Direction::Ingress },
        Self { stage: Stage::Host, direction: Direction::Ingress },
        Self { stage: Stage::Host, direction: Direction::Egress },
        Self { stage: Stage::Forward, direction: Direction::Ingress },
        Self { stage: Stage::Forward, direction: Direction::Egress },
    ];

    /// Whether it is there: the host stage always is, because interfaces have defaults in it; others where a policy governs.
    pub(super) fn exists(self, effective: &Effective) -> bool {
        self.stage == Stage::Host
            || effective
                .tiers
                .iter()
                .flat_map(|tier| &tier.policies)
                .any(|policy| policy.stage == self.stage && policy.rules(self.direction).is_some())
    }

    /// The side of a packet's way whose interface counts.
    pub(super) const fn side(self) -> Side {
        match self.direction {
            Direction::Ingress => Side::Source,
            Direction::Egress => Side::Destination,
        }
    }

    /// A key of which all packets have the same value here: a bucket by this key is one for all. What comes in has no interface by which
    /// it leaves, and the other way round (nft_meta.c: the name is empty). What is forwarded has both, and is new to connection tracking,
    /// but for what is not tracked at all and, where that is let through, invalid.
    pub(super) const fn alike(self) -> Key {
        match (self.stage, self.direction) {
            (Stage::Forward, _) => Key::CtState,
            (_, Direction::Ingress) => Key::InterfaceName(Side::Destination),
            (_, Direction::Egress) => Key::InterfaceName(Side::Source),
        }
    }

    /// The chain in which it begins.
    pub(super) const fn chain(self) -> &'static str {
        match (self.stage, self.direction) {
            (Stage::Untracked, Direction::Ingress) => "raw_prerouting",
            (Stage::Untracked, Direction::Egress) => "raw_output",
            (Stage::Prednat, _) => "prednat",
            (Stage::Host, Direction::Ingress) => "input",
            (Stage::Host, Direction::Egress) => "output",
            (Stage::Forward, Direction::Ingress) => "forward",
            (Stage::Forward, Direction::Egress) => FORWARD_OUT,
        }
    }

    /// What the names of its chains and maps begin with.
    pub(super) const fn prefix(self) -> &'static str {
        match (self.stage, self.direction) {
            (Stage::Untracked, Direction::Ingress) => "raw_in",
            (Stage::Untracked, Direction::Egress) => "raw_out",
            (Stage::Prednat, _) => "prednat_in",
            (Stage::Host, Direction::Ingress) => "in",
            (Stage::Host, Direction::Egress) => "out",
            (Stage::Forward, Direction::Ingress) => "forward_in",
            (Stage::Forward, Direction::Egress) => "forward_out",
        }
    }

    /// How the kernel comes to its first chain; `None` where another chain of ours leads there.
    pub(super) fn base(self, mode: Mode) -> Option<BaseChain> {
        let (hook, priority) = match (self.stage, self.direction) {
            (Stage::Untracked, Direction::Ingress) => (Hook::Prerouting, RAW_PRIORITY),
            (Stage::Untracked, Direction::Egress) => (Hook::Output, RAW_PRIORITY),
            (Stage::Prednat, _) => (Hook::Prerouting, PREDNAT_PRIORITY),
            (Stage::Host, Direction::Ingress) => (Hook::Input, FILTER_PRIORITY),
            (Stage::Host, Direction::Egress) => (Hook::Output, FILTER_PRIORITY),
            (Stage::Forward, Direction::Ingress) => (Hook::Forward, FILTER_PRIORITY),
            (Stage::Forward, Direction::Egress) => return None,
        };
        // Nothing reaches the end of `input`; if ever it did, closed is the side to err on, except that a host must be able
        // to answer and under audit nothing may change. The other stages have no default.
        let policy = match (self.stage, self.direction, mode) {
            (Stage::Host, Direction::Ingress, Mode::Enforce) => ChainPolicy::Drop,
            _ => ChainPolicy::Accept,
        };
        Some(BaseChain { hook, priority, policy, device: None })
    }

    /// What `allow` does.
    pub(super) fn allow(self, mode: Mode) -> Verdict {
        match (self.stage, self.direction) {
            // Without a conntrack entry there is no NAT either: under audit, nothing may change.
            (Stage::Untracked, _) if mode == Mode::Enforce => Verdict::Goto(ACCEPT_UNTRACKED.to_owned()),
            (Stage::Untracked | Stage::Prednat, _) => Verdict::Goto(ACCEPT_EARLY.to_owned()),
            (Stage::Host, _) | (Stage::Forward, Direction::Egress) => Verdict::Accept,
            (Stage::Forward, Direction::Ingress) => Verdict::Goto(FORWARD_OUT.to_owned()),
        }
    }

    /// What `deny` does. Under node-wide audit the packet goes on, and later stages do not count what would not have come to them.
    pub(super) fn deny(self, mode: Mode) -> Verdict {
        match (mode, self.stage) {
            (Mode::Enforce, _) => Verdict::Drop,
            (Mode::Audit, Stage::Untracked | Stage::Prednat) => Verdict::Goto(ACCEPT_EARLY.to_owned()),
            (Mode::Audit, Stage::Host | Stage::Forward) => Verdict::Accept,
        }
    }

    /// What becomes of a packet that nothing here decides, and that failsafe or an essential lets through.
    pub(super) fn go_on(self) -> Verdict {
        match (self.stage, self.direction) {
            (Stage::Forward, Direction::Ingress) => Verdict::Goto(FORWARD_OUT.to_owned()),
            _ => Verdict::Accept,
        }
    }
}

/// Whether what an early or forwarding stage allows goes on in this chain.
pub(super) fn is_accepting(chain: &str) -> bool {
    [ACCEPT_EARLY, ACCEPT_UNTRACKED, FORWARD_OUT].contains(&chain)
}
