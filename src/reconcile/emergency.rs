//! What panic and break-glass come to: a policy without tiers, whose defaults decide.

use super::life::Emergency;
use crate::net::facts::Facts;
use crate::net::interface::{Direction, Role};
use crate::policy::effective::Effective;
use crate::policy::model::{Mode, Policy};
use crate::policy::resolve::resolve;
use crate::policy::settings::{Default, NodeSettings};

/// The policy of an emergency. Panic denies every new flow that essentials and failsafe do not let through, in and out and on
/// every role but loopback, and it denies even where the node is in audit mode; flows that are established go on. Break-glass
/// lets everything through.
pub fn effective(emergency: &Emergency, settings: &NodeSettings, facts: &Facts) -> Effective {
    let (mut effective, _) = resolve(&Policy::with_builtin_tiers(), settings, facts);
    let panic = matches!(emergency, Emergency::Panic { .. });
    for role in Role::ALL.iter().copied() {
        for direction in Direction::BOTH {
            let default = if panic && role != Role::Loopback { Default::Deny } else { Default::Allow };
            effective.defaults.insert((role, direction), default);
        }
    }
    if panic {
        effective.mode = Mode::Enforce;
    } else {
        effective.drop_invalid = false;
    }
    effective
}
