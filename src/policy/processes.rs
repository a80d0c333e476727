//! Local processes in text: lists of users, groups and units.

use super::model::Account;
use super::parse;
use crate::text::finding::Code;
use crate::text::place::Place;
use crate::text::read::{Reader, quoted};
use crate::text::tree::{Node, Value};

/// The longest name of an account and of a directory (`NAME_MAX`).
const LONGEST_NAME_BYTES: usize = 255;
/// How deep a control group can be named: the kernel's `socket cgroupv2 level` has 8 bits, systemd nests about six.
const DEEPEST_PATH: usize = 32;
/// How many names one list can have: they are looked up one by one.
const MOST_NAMES: usize = 256;
/// The unit types that have a control group (systemd.unit(5)).
const UNIT_TYPES: [&str; 6] = [".service", ".slice", ".scope", ".socket", ".mount", ".swap"];

/// Users or groups: names and numbers.
pub fn accounts<'t>(reader: &mut Reader<'t>, node: &Node<'t>, key: &str) -> Vec<(Account, Place)> {
    let mut found = Vec::new();
    for item in items(reader, node, key) {
        let account = match &item.value {
            Value::String(text) => match account_name(text) {
                Ok(()) => Some(Account::Name(text.to_string())),
                Err(help) => {
                    let message = format!("{} cannot be in `{key}`", quoted(text));
                    reader.error_with_help(Code::Value, item.span, message, help);
                    None
                }
            },
            // The last number stands for "none" (`INVALID_UID`).
            Value::Integer(_) => reader
                .integer(item, "an id", 0, i64::from(u32::MAX) - 1)
                .and_then(|id| u32::try_from(id).ok())
                .map(Account::Id),
            other => {
                let message = format!("`{key}` has names and numbers, not {}", other.kind());
                reader.error(Code::Type, item.span, message);
                None
            }
        };
        found.extend(account.map(|account| (account, reader.place(item.span))));
    }
    found
}

/// Whether an account can have this name; the directory services of a site allow much (spaces, "DOMAIN\user"), and /etc/passwd
/// and /etc/group allow no colon.
fn account_name(text: &str) -> Result<(), &'static str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("write the number without quotes");
    }
    let fits = (1..=LONGEST_NAME_BYTES).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(|next| next.is_control() || matches!(next, '/' | ':' | ','));
    if fits { Ok(()) } else { Err("a name as in /etc/passwd or /etc/group, or a number") }
}

/// Units with a control group, slices, and paths of control groups.
pub fn units<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<(String, Place)> {
    let mut found = Vec::new();
    for item in items(reader, node, "units") {
        let Value::String(text) = &item.value else {
            reader.error(Code::Type, item.span, format!("`units` has names, not {}", item.value.kind()));
            continue;
        };
        match unit(text) {
            Ok(()) => found.push((text.to_string(), reader.place(item.span))),
            Err(help) => {
                let message = format!("{} cannot be in `units`", quoted(text));
                reader.error_with_help(Code::Value, item.span, message, help);
            }
        }
    }
    found
}

/// Whether this is the name of a unit with a control group, or a path from the root of the control groups.
fn unit(text: &str) -> Result<(), String> {
    if text == "-.slice" {
        return Err("every process is in the root slice: leave `units` out".to_owned());
    }
    if let Some(path) = text.strip_prefix('/') {
        return Err(format!("write it without the leading \"/\": {}", quoted(path)));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let directory = |part: &&str| {
        (1..=LONGEST_NAME_BYTES).contains(&part.len())
            && !part.starts_with('.')
            && part.chars().all(|next| next.is_ascii_graphic() && !matches!(next, '"' | '*' | '?' | '[' | ']'))
    };
    if parts.len() > DEEPEST_PATH || !parts.iter().all(directory) {
        return Err("a unit like \"sshd.service\", a slice, or a path like \"system.slice/sshd.service\"".to_owned());
    }
    match parts.as_slice() {
        [name] if !UNIT_TYPES.iter().any(|kind| name.ends_with(kind)) => {
            Err(format!("a unit has its type in its name: \"{name}.service\"; or write a path of control groups"))
        }
        _ => Ok(()),
    }
}

/// The items of a list that is neither empty nor endless.
fn items<'n, 't>(reader: &mut Reader<'t>, node: &'n Node<'t>, key: &str) -> &'n [Node<'t>] {
    let items = parse::some(reader, node, key);
    if items.len() > MOST_NAMES {
        let message = format!("`{key}` has more than {MOST_NAMES} names");
        reader.error_with_help(
            Code::Value,
            node.span,
            message,
            "write several rules, or a group or slice for them all",
        );
        return &[];
    }
    items
}
