//! `[guards]`: which of the built-in policies hold, and for whom there are exceptions.

use std::collections::BTreeSet;

use crate::policy::guards::{Agents, Guards, NAMES};
use crate::policy::processes::{accounts, units};
use crate::text::finding::Code;
use crate::text::read::{Reader, quoted, suggestion};
use crate::text::tree::Node;

/// `off` and `metadata`.
pub(super) fn guards<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Guards {
    let mut guards = Guards::default();
    let Some(mut fields) = reader.table(node, "[guards]") else { return guards };
    if let Some(off) = fields.get("off") {
        guards.off = names(reader, off);
    }
    guards.metadata = fields.get("metadata").and_then(|metadata| agents(reader, metadata));
    fields.finish(reader, "[guards]");
    guards
}

/// Names of guards. A name that is none would leave on what somebody wanted off.
fn names<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for item in reader.list(node, "off").unwrap_or_default() {
        let Some(name) = reader.string(item, "the name of a guard") else { continue };
        if NAMES.contains(&name) {
            found.insert(name.to_owned());
        } else {
            let message = format!("{} is not a guard", quoted(name));
            reader.error_with_help(Code::UnknownName, item.span, message, suggestion(name, &NAMES));
        }
    }
    found
}

/// `metadata = { users, units }`; with neither, nobody may.
fn agents<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<Agents> {
    let mut fields = reader.table(node, "metadata")?;
    let mut agents = Agents::default();
    if let Some(users) = fields.get("users") {
        agents.users = accounts(reader, users, "users");
    }
    if let Some(named) = fields.get("units") {
        agents.units = units(reader, named);
    }
    fields.finish(reader, "metadata");
    Some(agents)
}

#[cfg(test)]
mod tests {
    use crate::config::decode_text;
    use crate::policy::guards::{DHCP_SERVER, METADATA};
    use crate::policy::model::Account;
    use crate::text::render::line;

    fn decoded(text: &str) -> (super::Guards, Vec<String>) {
        let (config, findings) = decode_text("nodewall.toml", text);
        (config.guards, findings.iter().map(line).collect())
    }

    #[test]
    fn guards_are_switched_off_by_name_and_agents_named() {
        let text =
            "[guards]\noff = [\"guard-dhcp-server\"]\nmetadata = { users = [\"root\", 7], units = [\"a.service\"] }\n";
        let (guards, findings) = decoded(text);
        assert_eq!(findings, Vec::<String>::new());
        assert_eq!(guards.off.into_iter().collect::<Vec<_>>(), [DHCP_SERVER]);
        let agents = guards.metadata.unwrap_or_default();
        let users: Vec<_> = agents.users.into_iter().map(|(user, _)| user).collect();
        assert_eq!(users, [Account::Name("root".to_owned()), Account::Id(7)]);
        assert_eq!(agents.units[0].0, "a.service");
        assert_eq!(decoded("[guards]\nmetadata = {}\n").0.metadata, Some(super::Agents::default()));
        assert_eq!(decoded("[guards]\noff = []\n"), (super::Guards::default(), vec![]));
    }

    #[test]
    fn an_unknown_guard_is_an_error_with_the_nearest() {
        let (guards, findings) = decoded("[guards]\noff = [\"guard-metdata\"]\nmetadata = { user = [0] }\nof = []\n");
        assert!(!guards.off.contains(METADATA));
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].contains("\"guard-metdata\" is not a guard"), "{findings:?}");
        assert!(findings[0].contains("did you mean") && findings[0].contains("guard-metadata"), "{findings:?}");
    }
}
