//! The local process of a rule: `users`, `groups` and `units`.

use crate::net::interface::Direction;
use crate::policy::model::{LocalProcess, Stage};
use crate::policy::processes::{accounts, units};
use crate::text::finding::Code;
use crate::text::read::{Fields, Reader};

/// The local process that the fields of a rule name, if they name one. Only what this host's own sockets send has one: anywhere
/// else the keys are errors.
pub(super) fn local_process<'t>(
    reader: &mut Reader<'t>,
    fields: &mut Fields<'_, 't>,
    (direction, stage): (Direction, Stage),
) -> Option<LocalProcess> {
    let (users, groups, named_units) = (fields.entry("users"), fields.entry("groups"), fields.entry("units"));
    let entries = [("users", users), ("groups", groups), ("units", named_units)];
    for (key, entry) in entries {
        let Some(entry) = entry else { continue };
        let message = match (direction, stage) {
            (Direction::Ingress, _) => format!("`{key}` names local processes, which only egress has"),
            (Direction::Egress, Stage::Host) => continue,
            (Direction::Egress, stage) => {
                format!("`{key}` names local processes, which stage \"{}\" does not see", stage.name())
            }
        };
        let help = "the kernel knows the sending process of this host's own packets: egress of stage \"host\"";
        reader.error_with_help(Code::Conflict, entry.span, message, help);
    }
    if entries.iter().all(|(_, entry)| entry.is_none()) {
        return None;
    }
    Some(LocalProcess {
        users: users.map(|entry| accounts(reader, &entry.node, "users")).unwrap_or_default(),
        groups: groups.map(|entry| accounts(reader, &entry.node, "groups")).unwrap_or_default(),
        units: named_units.map(|entry| units(reader, &entry.node)).unwrap_or_default(),
    })
}
