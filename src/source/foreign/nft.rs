//! Reads what `nft -j list ruleset` prints (libnftables-json(5)). Pure.

mod expression;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use self::expression::{Element, Reading, elements};
use super::cube::Cube;
use super::model::{Base, Chain, Hook, Rule, Ruleset, Verdict, owner};
use crate::net::addr::AddrSet;
use crate::text::finding::{Code, Finding};
use crate::text::place::Place;
use crate::text::read::quoted;
use crate::text::tree::Source;

/// The most rules that one becomes, by what its sets and maps hold together.
const MOST_PARTS: usize = 4096;

/// Tables that other programs write, by how their names begin.
const OWNERS: &[(&str, &str)] = &[
    ("kube-proxy", "kube-proxy"),
    ("calico", "Calico"),
    ("cali-", "Calico"),
    ("cilium", "Cilium"),
    ("docker", "Docker"),
    ("libvirt", "libvirt"),
    ("netavark", "Podman"),
    ("podman", "Podman"),
    ("f2b-", "fail2ban"),
    ("crowdsec", "CrowdSec"),
    ("tailscale", "Tailscale"),
    ("flannel", "flannel"),
    ("lxc", "LXC"),
    ("incus", "Incus"),
    ("lxd", "LXD"),
];

/// How nft is told to print text as JSON without a change to the host.
const AS_JSON: &str = "as JSON: `nft -j list ruleset`, or of a file, in a network namespace of its own, `unshare -n sh -c 'nft -f FILE && nft -j list ruleset'`";

/// A table: its family and name.
type Table = (String, String);

/// A set or map.
#[derive(Clone, Debug, Default)]
struct Set {
    elements: Vec<Element>,
    /// Its members come and go by themselves.
    moves: bool,
}

/// What was read, before names are looked up.
#[derive(Default)]
struct Read {
    /// Chains by their table and name, in order.
    chains: BTreeMap<(Table, String), usize>,
    sets: BTreeMap<(Table, String), Set>,
    /// Rules as they were read: their chain, the object, where.
    rules: Vec<(usize, Table, Json, Place)>,
    /// Tables that are passed over.
    left: BTreeSet<Table>,
    /// Base chains that translate addresses.
    nat: bool,
    /// Base chains outside of IP: netdev, bridge.
    elsewhere: BTreeMap<usize, Place>,
}

/// The chains of these texts.
pub(super) fn read(sources: &[Source]) -> Ruleset {
    let (mut ruleset, mut read) = (Ruleset::default(), Read::default());
    for source in sources {
        let place = Place::file(source.file.clone());
        let text = source.text.trim_start();
        if !text.starts_with(['{', '[']) {
            let help =
                format!("nft is to read it, since names and includes mean what they mean to nft: give it {AS_JSON}");
            let message = "this is not JSON, which is what is read of nft";
            ruleset.findings.push(Finding::error(Code::Syntax, &place, message).help(help));
            continue;
        }
        let json: Json = match serde_json::from_str(text) {
            Ok(json) => json,
            Err(error) => {
                ruleset.findings.push(
                    Finding::error(Code::Syntax, &place, format!("not the JSON of nft: {error}"))
                        .help(format!("give the rules {AS_JSON}")),
                );
                continue;
            }
        };
        let Some(objects) = json.get("nftables").and_then(Json::as_array) else {
            ruleset.refuse(&place, "there is no \"nftables\" in this JSON", "give what `nft -j list ruleset` prints");
            continue;
        };
        for object in objects {
            self::object(object, &mut read, &mut ruleset, source);
        }
    }
    finish(read, ruleset)
}

fn text_of<'j>(fields: &'j Map<String, Json>, key: &str) -> &'j str {
    fields.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn object(object: &Json, read: &mut Read, ruleset: &mut Ruleset, source: &Source) {
    let Some((kind, fields)) = object.as_object().and_then(|fields| fields.iter().next()) else { return };
    // Commands, as libnftables takes them.
    if kind == "add" {
        return self::object(fields, read, ruleset, source);
    }
    let file = Place::file(source.file.clone());
    let Some(fields) = fields.as_object() else { return };
    let (family, name) = (text_of(fields, "family"), text_of(fields, "name"));
    let table: Table = (family.to_owned(), text_of(fields, if kind == "table" { "name" } else { "table" }).to_owned());
    if kind == "table" {
        return self::table(fields, table, read, ruleset, &file);
    }
    if read.left.contains(&table) {
        return;
    }
    match kind.as_str() {
        "metainfo" | "counter" | "quota" | "limit" | "ct helper" | "ct timeout" | "ct expectation" | "secmark"
        | "synproxy" | "flowtable" => {}
        "chain" => chain(fields, table, read, ruleset, &file),
        "set" | "map" => {
            let flags = fields.get("flags").and_then(Json::as_array);
            let flag = |wanted: &str| flags.is_some_and(|flags| flags.iter().any(|flag| flag == wanted));
            let set = Set {
                elements: elements(fields.get("elem").unwrap_or(&Json::Null)),
                moves: flag("dynamic") || flag("timeout") || fields.contains_key("timeout"),
            };
            read.sets.insert((table, name.to_owned()), set);
        }
        "element" => {
            if let Some(set) = read.sets.get_mut(&(table, name.to_owned())) {
                set.elements.extend(elements(fields.get("elem").unwrap_or(&Json::Null)));
            }
        }
        "rule" => {
            let chain = text_of(fields, "chain");
            let handle = fields.get("handle").and_then(Json::as_u64);
            let number = handle.map(|handle| format!(" handle {handle}")).unwrap_or_default();
            let place = Place::file(format!("{}: {} {} {chain}{number}", source.file, table.0, table.1));
            match read.chains.get(&(table.clone(), chain.to_owned())) {
                Some(index) => {
                    let expressions = fields.get("expr").cloned().unwrap_or_default();
                    // What rules add to comes and goes.
                    for statement in expressions.as_array().into_iter().flatten() {
                        let named = statement.get("set").and_then(|set| set.get("set")).and_then(Json::as_str);
                        let named = named.and_then(|name| name.strip_prefix('@'));
                        if let Some(set) = named.and_then(|name| read.sets.get_mut(&(table.clone(), name.to_owned()))) {
                            set.moves = true;
                        }
                    }
                    read.rules.push((*index, table, expressions, place));
                }
                None => ruleset.refuse(
                    &place,
                    format!("there is no chain {} here", quoted(chain)),
                    "give all that nft lists",
                ),
            }
        }
        other => {
            let message = format!("{} is nothing that is known of nft", quoted(other));
            ruleset.refuse(&file, message, "give what `nft -j list ruleset` prints");
        }
    }
}

fn table(fields: &Map<String, Json>, table: Table, read: &mut Read, ruleset: &mut Ruleset, file: &Place) {
    let (family, name) = (&table.0, &table.1);
    let is_dormant =
        fields.get("flags").and_then(Json::as_array).is_some_and(|flags| flags.iter().any(|flag| flag == "dormant"));
    let owner = OWNERS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, owner)| *owner);
    if name == "nodewall" {
        // Ours.
    } else if name == "firewalld" {
        let help = "convert firewalld's own files with --from firewalld, or stop firewalld first";
        ruleset.refuse(file, format!("the table {family} {name} is firewalld's"), help);
    } else if is_dormant {
        ruleset.warn(file, format!("the table {family} {name} is dormant, so that it decides nothing"), "");
    } else if let Some(owner) = owner {
        let message = format!("the table {family} {name} of {owner} stays where it is and goes on deciding there");
        let help = "nodewall only restricts: what its rules deny stays denied, and what they let through needs nodewall's leave as well";
        ruleset.warn(file, message, help);
    } else if family == "arp" {
        ruleset.warn(
            file,
            format!("the table arp {name} is not converted: nodewall is about IP"),
            "keep it where it is",
        );
    } else {
        return;
    }
    read.left.insert(table);
}

/// The number of a priority, which may have its name.
fn priority(value: Option<&Json>) -> i32 {
    let named = |name: &str| match name {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "security" => 50,
        "srcnat" => 100,
        _ => 0,
    };
    match value {
        Some(Json::String(name)) => named(name),
        Some(number) => number.as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
        None => 0,
    }
}

fn chain(fields: &Map<String, Json>, table: Table, read: &mut Read, ruleset: &mut Ruleset, file: &Place) {
    let name = text_of(fields, "name");
    let index = ruleset.chains.len();
    let shown = format!("{} {} {name}", table.0, table.1);
    let place = Place::file(format!("{}: {shown}", file.file));
    ruleset.chains.push(Chain { name: shown, rules: Vec::new(), owner: owner(name) });
    read.chains.insert((table.clone(), name.to_owned()), index);
    let hook = text_of(fields, "hook");
    if hook.is_empty() {
        return;
    }
    let (v4, v6) = match table.0.as_str() {
        "ip" => (true, false),
        "ip6" => (false, true),
        "inet" => (true, true),
        _ => (false, false),
    };
    if text_of(fields, "type") == "nat" {
        read.nat = true;
        return;
    }
    let policy = if text_of(fields, "policy") == "drop" { Verdict::Drop } else { Verdict::Accept };
    match Hook::by_name(hook) {
        Some(hook) if v4 || v6 => {
            let word = if policy == Verdict::Drop { "drop" } else { "accept" };
            let text = format!("policy {word}");
            let priority = priority(fields.get("prio"));
            ruleset.bases.push(Base { chain: index, hook, priority, v4, v6, policy, place, text });
        }
        _ => {
            if policy == Verdict::Drop {
                ruleset.refuse(
                    &place,
                    "its policy drops what nodewall does not see so early or at all",
                    "keep this table where it is, and take it out of what is converted",
                );
            }
            read.elsewhere.insert(index, place);
        }
    }
}

fn finish(mut read: Read, mut ruleset: Ruleset) -> Ruleset {
    for ((_, name), set) in &read.sets {
        let addresses: Option<Vec<_>> = set.elements.iter().map(Element::addresses).collect();
        if let Some(addresses) = addresses.filter(|_| !set.moves) {
            let addresses = addresses.into_iter().fold(AddrSet::default(), |all, one| all.union(&one));
            let good = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
            if !addresses.is_empty()
                && good
                && name.len() <= 63
                && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            {
                ruleset.sets.entry(addresses).or_insert_with(|| name.clone());
            }
        }
    }
    // Two sets of one name in two tables.
    let mut seen = BTreeSet::new();
    ruleset.sets.retain(|_, name| seen.insert(name.clone()));
    if read.nat {
        let place =
            Place::file(read.rules.first().map_or("nft", |(.., place)| place.file.split(": ").next().unwrap_or("nft")));
        let message = "chains of type nat are not converted: nodewall translates no addresses";
        ruleset.warn(
            &place,
            message,
            "keep these chains where they are: nodewall decides on packets as they are after them",
        );
    }
    for (index, table, expressions, place) in std::mem::take(&mut read.rules) {
        let reading = Reading {
            set: &|name| {
                read.sets
                    .get(&(table.clone(), name.to_owned()))
                    .filter(|set| !set.moves)
                    .map(|set| set.elements.as_slice())
            },
            moves: &|name| read.sets.get(&(table.clone(), name.to_owned())).is_some_and(|set| set.moves),
            chain: &|name| read.chains.get(&(table.clone(), name.to_owned())).copied(),
        };
        let families = match table.0.as_str() {
            "ip" => Cube::of(true, false),
            "ip6" => Cube::of(false, true),
            _ => Cube::full(),
        };
        let text = words::rule(&expressions);
        let read_rule = reading.rule(&expressions, families);
        if read_rule.flags && ruleset.flags.is_none() {
            ruleset.flags = Some(place.clone());
        }
        ruleset.untracked.extend(read_rule.untracked);
        if read_rule.parts.len() > MOST_PARTS {
            ruleset.refuse(
                &place,
                format!("the rule comes to more than {MOST_PARTS} rules"),
                "write its sets as ranges, or take it out of what is converted",
            );
            continue;
        }
        if read.elsewhere.contains_key(&index) && read_rule.parts.iter().any(|(_, verdict)| denies(verdict)) {
            ruleset.refuse(
                &place,
                "this rule drops what nodewall does not see so early or at all",
                "keep this table where it is, and take it out of what is converted",
            );
            continue;
        }
        let rules = read_rule.parts.into_iter().map(|(cube, verdict)| Rule {
            cube,
            verdict,
            place: place.clone(),
            text: text.clone(),
        });
        if let Some(chain) = ruleset.chains.get_mut(index) {
            chain.rules.extend(rules);
        }
    }
    ruleset
}

const fn denies(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Drop | Verdict::Reject | Verdict::Jump(_) | Verdict::Goto(_) | Verdict::Other(_))
}
