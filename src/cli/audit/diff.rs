//! What can be reached now and could not before.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::report::{ListenerRecord, PeerRecord, PublishedRecord, ReachRecord, Report, VERSION};

/// Reads what an earlier `audit --json` printed.
pub(super) fn read(path: &Path) -> Result<Report, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|error| format!("{shown}:{}: not what `audit --json` prints: {error}", error.line()))?;
    match report.version {
        VERSION => Ok(report),
        other => Err(format!("{shown}: version {other} of the form; this program knows {VERSION}: run audit again")),
    }
}

/// What `audit --diff --json` prints.
#[derive(Serialize)]
pub(super) struct Diff {
    version: u32,
    /// When the earlier one was made.
    since: String,
    /// What can be reached now and could not then.
    pub(super) new: Vec<Exposed>,
    /// What could be reached then and cannot now.
    gone: Vec<Exposed>,
}

/// One that can reach one thing by one role.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Exposed {
    /// "*:8265/tcp"
    place: String,
    /// Who is behind it: the unit, the pod, or else the program's name.
    who: String,
    role: String,
    from: String,
}

impl Diff {
    pub(super) fn of(before: &Report, after: &Report) -> Self {
        let (old, now) = (doors(before), doors(after));
        Self { version: 1, since: before.time.clone(), new: left(&now, &old), gone: left(&old, &now) }
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for (word, exposed) in [("new", &self.new), ("gone", &self.gone)] {
            for Exposed { place, who, role, from } in exposed {
                // Writing to a String does not fail.
                let _ = writeln!(out, "{word:<5}{place} ({who}) from {role}: {from}");
            }
        }
        if out.is_empty() {
            let _ = writeln!(out, "no more and no less than at {}", self.since);
        }
        out
    }
}

/// Something that can be reached, with by whom.
struct DoorTo<'a> {
    place: String,
    who: String,
    reach: &'a [ReachRecord],
}

fn doors(report: &Report) -> Vec<DoorTo<'_>> {
    let listener = |listener: &'_ ListenerRecord| {
        let name = || listener.processes.first().map(|process| process.name.clone());
        listener.home().or_else(name).unwrap_or_else(|| listener.held_by.clone())
    };
    let publisher = |published: &PublishedRecord| {
        let owner = published.owner.clone().unwrap_or_else(|| published.via.clone());
        published.comment.as_ref().map_or(owner.clone(), |comment| format!("{owner} {comment}"))
    };
    let listeners = report.listeners.iter().map(|record| DoorTo {
        place: record.place(),
        who: listener(record),
        reach: &record.reach,
    });
    let published = report.published.iter().map(|record| DoorTo {
        place: record.place(),
        who: publisher(record),
        reach: &record.reach,
    });
    listeners.chain(published).collect()
}

/// What is in `some` and not in `others`.
fn left(some: &[DoorTo<'_>], others: &[DoorTo<'_>]) -> Vec<Exposed> {
    let mut left = Vec::new();
    for door in some {
        for reach in door.reach {
            let same = others.iter().filter(|other| other.place == door.place && other.who == door.who);
            let known: Vec<&PeerRecord> = same
                .flat_map(|other| other.reach)
                .filter(|other| other.role == reach.role)
                .flat_map(|other| &other.from)
                .collect();
            for peer in reach.from.iter().filter(|peer| !known.iter().any(|known| covers(known, peer))) {
                let exposed = Exposed {
                    place: door.place.clone(),
                    who: door.who.clone(),
                    role: reach.role.clone(),
                    from: peer.text.clone(),
                };
                if !left.contains(&exposed) {
                    left.push(exposed);
                }
            }
        }
    }
    left
}

/// Whether everybody whom `inner` means is among `outer`.
fn covers(outer: &PeerRecord, inner: &PeerRecord) -> bool {
    let is_of = |but: &String, name: &String| but == name || but.strip_prefix("part of ") == Some(name);
    let left_out =
        |name: &Option<String>| name.as_ref().is_some_and(|name| outer.but.iter().any(|but| is_of(but, name)));
    match (outer.peer.as_str(), inner.peer.as_str()) {
        (_, "fabric") | ("fabric", _) => outer.peer == inner.peer,
        ("anyone", "anyone") => outer.name.is_none() || outer.name == inner.name,
        ("anyone", _) => outer.name.is_none(),
        ("anyone-but", "anyone") => false,
        ("anyone-but", "anyone-but") => outer.but.iter().all(|but| inner.but.contains(but)),
        ("anyone-but", "prefix" | "more-prefixes") => true,
        ("anyone-but", _) => !left_out(&inner.name),
        ("set" | "part-of-set", "part-of-set") => outer.name == inner.name,
        _ => outer.peer == inner.peer && outer.name == inner.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(kind: &str, name: Option<&str>, but: &[&str]) -> PeerRecord {
        PeerRecord {
            peer: kind.to_owned(),
            name: name.map(str::to_owned),
            but: but.iter().map(|name| (*name).to_owned()).collect(),
            text: String::new(),
        }
    }

    #[test]
    fn fewer_are_nothing_new() {
        let anyone = peer("anyone", None, &[]);
        let (v4, admin) = (peer("anyone", Some("ipv4"), &[]), peer("set", Some("admin"), &[]));
        let (part, but) = (peer("part-of-set", Some("admin"), &[]), peer("anyone-but", None, &["pods"]));
        let fewer = peer("anyone-but", None, &["pods", "admin"]);
        for (outer, inner) in
            [(&anyone, &admin), (&anyone, &v4), (&anyone, &but), (&admin, &part), (&but, &admin), (&but, &fewer)]
        {
            assert!(covers(outer, inner), "{outer:?} {inner:?}");
        }
        for (outer, inner) in [
            (&admin, &anyone),
            (&v4, &anyone),
            (&v4, &admin),
            (&but, &anyone),
            (&part, &admin),
            (&fewer, &but),
            (&fewer, &part),
        ] {
            assert!(!covers(outer, inner), "{outer:?} {inner:?}");
        }
        let but_parts = peer("anyone-but", None, &["part of admin", "test-admin"]);
        let test = peer("set", Some("test"), &[]);
        assert!(covers(&but_parts, &test) && !covers(&but_parts, &admin), "a name is not the end of another one");
        assert!(covers(&peer("anyone-but", None, &["test-admin"]), &admin));
        let fabric = peer("fabric", None, &[]);
        assert!(covers(&fabric, &fabric) && !covers(&anyone, &fabric) && !covers(&fabric, &admin));
    }
}
