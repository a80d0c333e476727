//! The journal's catalogue has an entry for each kind of message, and fields that these messages have.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn each_kind_of_message_is_explained() {
    let source = text("src/daemon/log.rs");
    let ids: BTreeMap<&str, &str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(crate) const ")?.split_once(": &str = "))
        .map(|(name, id)| (id.trim_matches(['"', ';']), name))
        .collect();
    assert!(ids.len() > 12, "{ids:?}");
    let catalogue = text("packaging/journal/nodewall.catalog");
    let entries: BTreeMap<&str, &str> =
        catalogue.split("\n-- ").skip(1).map(|entry| entry.split_once('\n').unwrap()).collect();
    assert_eq!(entries.keys().collect::<Vec<_>>(), ids.keys().collect::<Vec<_>>());
    for (id, entry) in entries {
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        let (header, body) = entry.split_once("\n\n").unwrap();
        for key in ["Subject: nodewall: ", "Defined-By: nodewall", "Support: ", "Documentation: man:"] {
            assert!(header.contains(key), "{}: no {key}", ids[id]);
        }
        assert!(body.lines().count() > 0, "{}", ids[id]);
        for command in body.split('"').filter(|word| word.starts_with("nodewall ")) {
            let known = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli")).unwrap();
            let known: Vec<String> = known
                .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").replace('_', "-"))
                .collect();
            let word = command.split(' ').nth(1).unwrap();
            let emergency = ["panic", "break-glass"].contains(&word);
            assert!(emergency || known.iter().any(|name| name == word), "{}: {command}", ids[id]);
        }
    }
}

/// The daemon sends each field that a text shows.
#[test]
fn texts_show_fields_that_there_are() {
    let catalogue = text("packaging/journal/nodewall.catalog");
    let mut sources = String::new();
    for file in ["mod.rs", "traffic/journal.rs", "drift.rs", "host.rs", "requests.rs"] {
        sources.push_str(&text(&format!("src/daemon/{file}")));
    }
    let mut shown = 0;
    for field in catalogue.split('@').skip(1).step_by(2) {
        let name = field.strip_prefix("NODEWALL_").unwrap_or_else(|| panic!("{field}")).to_lowercase();
        let sent = [format!("{name} ="), format!("{name},"), format!(" {name}\n")];
        assert!(sent.iter().any(|form| sources.contains(form)), "no message has {field}");
        shown += 1;
    }
    assert!(shown > 10, "{shown}");
}
