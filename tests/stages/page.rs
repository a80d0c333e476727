//! The table of flows and stages, as nodewall-policy(5) has it.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;

use nodewall::net::interface::Direction;
use nodewall::policy::model::Stage;

/// A column of the table.
pub type Point = (Stage, Direction);

/// The columns, from left to right: the header of the page says the same.
pub const POINTS: [(Point, &str); 7] = [
    ((Stage::Untracked, Direction::Ingress), "Ui"),
    ((Stage::Untracked, Direction::Egress), "Uo"),
    ((Stage::Prednat, Direction::Ingress), "Pi"),
    ((Stage::Host, Direction::Ingress), "Hi"),
    ((Stage::Host, Direction::Egress), "Ho"),
    ((Stage::Forward, Direction::Ingress), "Fi"),
    ((Stage::Forward, Direction::Egress), "Fo"),
];

/// With which addresses a packet is seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// As the sender wrote them.
    Sent,
    /// With the destination that somebody's DNAT gave it; of a reply, with the source that answers.
    Translated,
}

/// What the page says of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Who sees its packets, and how.
    pub seen: BTreeMap<Point, Form>,
    /// Which direction of the untracked stage sees its replies, and how.
    pub replies: Option<(Direction, Form)>,
}

/// The rows of the page; those that it calls derived have no test.
pub fn rows() -> BTreeMap<String, Row> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/nodewall-policy.5");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n.Sh FLOWS AND STAGES\n").nth(1).expect("the section is there");
    let table = section.split(".Bl -column ").nth(1).expect("a table").split("\n.El\n").next().unwrap();
    let mut lines = table.lines().filter_map(|line| line.strip_prefix(".It ")).map(|line| line.split(" Ta "));
    // Some words are macros unless something says that they are not.
    let header: Vec<&str> = lines.next().expect("a header").map(|word| word.trim_start_matches("\\&")).collect();
    let columns: Vec<&str> = POINTS.iter().map(|(_, word)| *word).collect();
    assert_eq!((header[1..8].to_vec(), header[8]), (columns, "Replies"));
    let form = |word: &str| match word {
        "S" => Form::Sent,
        "D" => Form::Translated,
        other => panic!("{other:?} is no cell of the table"),
    };
    let mut rows = BTreeMap::new();
    for line in lines {
        let cells: Vec<&str> = line.collect();
        assert_eq!(cells.len(), 9, "{cells:?}");
        if cells[0].ends_with("(derived)") {
            continue;
        }
        let seen = POINTS.iter().zip(&cells[1..8]).filter(|(_, word)| **word != "-");
        let seen = seen.map(|((point, _), word)| (*point, form(word))).collect();
        let replies = (cells[8] != "-").then(|| match cells[8].split_once(' ') {
            Some(("in", word)) => (Direction::Ingress, form(word)),
            Some(("out", word)) => (Direction::Egress, form(word)),
            _ => panic!("{:?} is no cell for replies", cells[8]),
        });
        assert!(rows.insert(cells[0].to_owned(), Row { seen, replies }).is_none(), "{} is there twice", cells[0]);
    }
    rows
}
