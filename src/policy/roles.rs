//! What each interface is for: the first `[[interface]]` that matches, else built-in detection (`policy.md` section 2).

use std::collections::{BTreeMap, BTreeSet};

use super::coverage::{self, Coverage};
use super::effective::{Expected, Interface, Pattern};
use super::model::{InterfaceMatch, InterfaceOverride};
use super::rails::{self, Nic, Rail};
use super::selector::Labels;
use crate::net::device::Flavour;
use crate::net::facts::{Facts, Link};
use crate::net::interface::{Direction, InterfaceName, Role};
use crate::net::rail::{self, Rails};

/// Names that container networks give their links; only where the kind does not already say it.
const POD_PREFIXES: &[&str] = &["cali", "lxc"];
/// Bridges of container runtimes.
const POD_NAMES: &[&str] = &["cni0", "docker0"];
/// Kinds of links into containers.
const POD_KINDS: &[&str] = &["veth", "netkit"];
/// Kinds of tunnels between nodes.
const OVERLAY_KINDS: &[&str] = &["vxlan", "geneve", "wireguard"];
/// What the host's driver of a BlueField calls its links (Mellanox/rshim-user-space).
const TMFIFO_PREFIX: &str = "tmfifo_net";
/// Drivers of the Ethernet over USB that board management controllers offer. Their addresses tell nothing: some are not link-local.
const USB_DRIVERS: &[&str] = &["cdc_ether", "cdc_ncm", "cdc_subset", "rndis_host"];

/// What detection knows of a node.
#[derive(Clone, PartialEq, Debug)]
pub struct Classified {
    /// The interfaces with role and labels, sorted by name.
    pub interfaces: Vec<Interface>,
    /// The rails that are there, by number.
    pub rails: BTreeMap<u32, Rail>,
    /// What is to be remembered of rails.
    pub remembered: Rails,
}

/// The interfaces of this node with role and labels, and its rails.
pub fn classify(overrides: &[InterfaceOverride], facts: &Facts) -> Classified {
    let uplinks = uplinks(facts);
    let said: BTreeMap<&InterfaceName, &InterfaceOverride> = facts
        .links
        .values()
        .filter_map(|link| Some((&link.name, overrides.iter().find(|candidate| matches(&candidate.matches, link))?)))
        .collect();
    let nics = rail_nics(&said, &uplinks, facts);
    let (rails, remembered) = rails::assign(&facts.rails, facts, &nics);
    let node = Node { facts, uplinks, rails: &rails };
    let mut interfaces: Vec<Interface> =
        facts.links.values().map(|link| node.classify(said.get(&link.name).copied(), link)).collect();
    interfaces.sort_by(|left, right| left.name.cmp(&right.name));
    Classified { interfaces, rails, remembered }
}

/// The NICs that may be rails. What carries the default route is none, nor is what somebody says is something else.
fn rail_nics(
    said: &BTreeMap<&InterfaceName, &InterfaceOverride>,
    uplinks: &BTreeSet<InterfaceName>,
    facts: &Facts,
) -> Vec<Nic> {
    let (mut rails, mut others) = (BTreeSet::new(), BTreeSet::new());
    for link in facts.links.values() {
        let Some(device) = rdma_of(facts, link) else { continue };
        match said.get(&link.name).and_then(|said| said.role) {
            Some(Role::Rail) => drop(rails.insert(device)),
            Some(Role::Ipoib) => {}
            Some(_) => drop(others.insert(device)),
            None if uplinks.contains(&link.name) => drop(others.insert(device)),
            None => {}
        }
    }
    others.retain(|device| !rails.contains(device));
    rails::nics(facts, &rails, &others)
}

/// The RDMA device of a link: its own, that of the bond it is part of (one device replaces those of both ports), or of one of its
/// slaves.
pub fn rdma_of<'a>(facts: &'a Facts, link: &'a Link) -> Option<&'a str> {
    let named = |name: &InterfaceName| facts.links.values().find(|other| other.name == *name);
    let own = || link.rdma.as_deref();
    let bonds = || link.master.as_ref().and_then(named).filter(|master| is_bond(master))?.rdma.as_deref();
    let slaves = || {
        let mut slaves = facts.links.values().filter(|slave| slave.master.as_ref() == Some(&link.name));
        is_bond(link).then(|| slaves.find_map(|slave| slave.rdma.as_deref())).flatten()
    };
    own().or_else(bonds).or_else(slaves)
}

fn is_bond(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("bond" | "team"))
}

/// A node while its links are looked at.
struct Node<'a> {
    facts: &'a Facts,
    uplinks: BTreeSet<InterfaceName>,
    rails: &'a BTreeMap<u32, Rail>,
}

impl Node<'_> {
    fn classify(&self, said: Option<&InterfaceOverride>, link: &Link) -> Interface {
        let (detected, reason) = self.detect(link);
        // Loopback is what the kernel says it is: essentials trust it, so nobody may be talked into that role or out of it.
        let fixed = detected == Role::Loopback;
        let (role, why) = match said.and_then(|said| said.role.map(|role| (role, said))) {
            Some((role, said)) if !fixed && role != Role::Loopback => {
                (role, format!("[[interface]] {} ({})", said.name, said.place.short()))
            }
            _ => (detected, reason),
        };
        let own = said.map(|said| said.labels.clone()).unwrap_or_default();
        let mut labels = labels_of(link, role, own);
        if let Some((number, _)) = self.rail(link).filter(|_| matches!(role, Role::Rail | Role::Ipoib)) {
            labels.insert("rail".to_owned(), rail::name(number));
        }
        let declared = said.filter(|said| said.bypassed).map(coverage::declared);
        let found = |direction| coverage::of_link(self.facts, link, direction);
        let coverage: BTreeMap<Direction, Coverage> =
            Direction::BOTH.map(|way| (way, declared.clone().unwrap_or_else(|| found(way)))).into();
        if let Some(coverage) = coverage.get(&Direction::Ingress) {
            labels.insert("coverage".to_owned(), coverage.state.name().to_owned());
        }
        Interface { name: link.name.clone(), index: link.index, role, why, labels, coverage }
    }

    /// The rail that a link is the interface of.
    fn rail(&self, link: &Link) -> Option<(u32, &Rail)> {
        let device = rdma_of(self.facts, link)?;
        self.rails.iter().find(|(_, rail)| rail.rdma == device).map(|(number, rail)| (*number, rail))
    }

    /// Detection without overrides, strongest signal first (`domain.md` section 2.1): hardware type, default route, kind, name, port
    /// of a switch, bus, RDMA.
    fn detect(&self, link: &Link) -> (Role, String) {
        let name = link.name.as_str();
        if link.hardware == 772 {
            return (Role::Loopback, "loopback device".to_owned());
        }
        if self.uplinks.contains(&link.name) {
            let why = if link.default_route { "default route" } else { "part of the link with the default route" };
            return (Role::Mgmt, why.to_owned());
        }
        if let Some(kind) = &link.kind {
            if POD_KINDS.contains(&kind.as_str()) {
                return (Role::Pod, format!("kind {kind}"));
            }
            if OVERLAY_KINDS.contains(&kind.as_str()) {
                return (Role::Overlay, format!("kind {kind}"));
            }
        }
        if POD_NAMES.contains(&name) || POD_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return (Role::Pod, "name of a container link".to_owned());
        }
        // The program of the BlueField's host driver makes it, as a TUN device: there is nothing else to know it by.
        if name.starts_with(TMFIFO_PREFIX) && matches!(link.kind.as_deref(), None | Some("tun")) {
            return (Role::Dpu, "name of a BlueField's tmfifo".to_owned());
        }
        if let Some(port) = represented(link) {
            return (Role::Representor, port);
        }
        if link.bus.as_deref() == Some("usb")
            && let Some(driver) = link.driver.as_deref().filter(|driver| USB_DRIVERS.contains(driver))
        {
            return (Role::Bmc, format!("USB, driver {driver}"));
        }
        if link.hardware == 32 {
            let key = link.pkey.map(|key| format!(", P_Key {key:#06x}")).unwrap_or_default();
            return (Role::Ipoib, format!("IP over InfiniBand{key}"));
        }
        // A VLAN on a rail is none, though its packets take the same way.
        let software = link.location.is_none() && link.kind.is_some() && !is_bond(link);
        match rdma_of(self.facts, link).filter(|_| !software) {
            Some(device) if self.facts.rdma.get(device).is_some_and(|device| device.software) => {}
            Some(device) => {
                return match self.rail(link) {
                    Some((_, Rail { gpu: Some((gpu, distance)), .. })) => {
                        (Role::Rail, format!("RDMA device {device}, GPU {gpu} at the {}", distance.proximity.words()))
                    }
                    Some(_) => (Role::Rail, format!("RDMA device {device}, said to be a rail")),
                    None => (Role::Fabric, format!("RDMA device {device}, no GPU of its own")),
                };
            }
            None => {}
        }
        (Role::Unknown, "not recognised".to_owned())
    }
}

/// What says that a link stands for another function: devlink, else the port's name (Documentation/networking/representors.rst and
/// switchdev.rst: "pf0vf3", "c1pf0sf88"). A port with a connector ("p0") is one of the host's own.
pub(super) fn represented(link: &Link) -> Option<String> {
    match link.flavour {
        Some(flavour) if flavour.is_representor() => {
            let port = link.port.as_deref().map(|port| format!(" {port}")).unwrap_or_default();
            return Some(format!("representor{port}, by devlink"));
        }
        Some(Flavour::Physical | Flavour::Virtual) => return None,
        _ => {}
    }
    let port = link.port.as_deref().filter(|_| link.switch.is_some())?;
    let number = |text: &'_ str| -> usize { text.bytes().take_while(u8::is_ascii_digit).count() };
    let rest = port.strip_prefix('c').map_or(port, |rest| &rest[number(rest)..]);
    let rest = rest.strip_prefix('p').filter(|rest| number(rest) > 0).map_or(rest, |rest| &rest[number(rest)..]);
    let rest = rest.strip_prefix("pf").filter(|rest| number(rest) > 0)?;
    let rest = &rest[number(rest)..];
    let function = rest.strip_prefix("vf").or_else(|| rest.strip_prefix("sf")).is_some_and(|rest| number(rest) > 0);
    (rest.is_empty() || function).then(|| format!("representor {port}"))
}

/// The labels that an interface brings along, over those it was given.
fn labels_of(link: &Link, role: Role, own: Labels) -> Labels {
    let mut labels = own;
    let mut built_in = |key: &str, value: &str| {
        labels.insert(key.to_owned(), value.to_owned());
    };
    built_in("name", link.name.as_str());
    built_in("role", role.name());
    built_in("link", link.link_layer());
    for (key, value) in [("kind", &link.kind), ("driver", &link.driver), ("rdma", &link.rdma)] {
        if let Some(value) = value {
            built_in(key, value);
        }
    }
    labels
}

/// The links with a default route, and what those bonds and bridges are made of, at any depth.
pub(super) fn uplinks(facts: &Facts) -> BTreeSet<InterfaceName> {
    let mut found: BTreeSet<InterfaceName> =
        facts.links.values().filter(|link| link.default_route).map(|link| link.name.clone()).collect();
    loop {
        // A bridge of containers may carry the default route of nothing but itself; its veth members stay pod links.
        let more: Vec<InterfaceName> = facts
            .links
            .values()
            .filter(|link| !found.contains(&link.name))
            .filter(|link| !link.kind.as_deref().is_some_and(|kind| POD_KINDS.contains(&kind)))
            .filter(|link| link.master.as_ref().is_some_and(|master| found.contains(master)))
            .map(|link| link.name.clone())
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Whether a link is what `match` says.
fn matches(wanted: &InterfaceMatch, link: &Link) -> bool {
    let same = |wanted: &Option<String>, found: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| found.is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
    };
    let named = wanted.name.as_deref().is_none_or(|pattern| {
        glob(pattern, link.name.as_str()) || link.altnames.iter().any(|altname| glob(pattern, altname))
    });
    named
        && same(&wanted.kind, link.kind.as_deref())
        && same(&wanted.driver, link.driver.as_deref())
        && same(&wanted.bus, link.bus.as_deref())
        && same(&wanted.pci, link.pci.as_deref())
        && same(&wanted.rdma, link.rdma.as_deref())
        && same(&wanted.link, Some(link.link_layer()))
        && same(&wanted.mac, link.mac.as_deref())
        && same(&wanted.master, link.master.as_ref().map(InterfaceName::as_str))
}

/// glob(7) without braces: `*`, `?`, `[a-z]`, `[!a-z]`. A bracket that does not close stands for itself.
pub fn glob(pattern: &str, text: &str) -> bool {
    glob_chars(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

fn glob_chars(pattern: &[char], text: &[char]) -> bool {
    // Backtracks to the last star only: linear in pattern times text, whatever the pattern.
    let (mut at_pattern, mut at_text) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at_text < text.len() {
        let step = match pattern.get(at_pattern) {
            Some('*') => {
                star = Some((at_pattern + 1, at_text));
                at_pattern += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match bracket(&pattern[at_pattern..], text[at_text]) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                None => (text[at_text] == '[').then_some(1),
            },
            Some(literal) => (*literal == text[at_text]).then_some(1),
            None => None,
        };
        match (step, star) {
            (Some(length), _) => {
                at_pattern += length;
                at_text += 1;
            }
            (None, Some((after_star, from))) => {
                star = Some((after_star, from + 1));
                at_pattern = after_star;
                at_text = from + 1;
            }
            (None, None) => return false,
        }
    }
    pattern[at_pattern..].iter().all(|rest| *rest == '*')
}

/// Whether `[...]` at the start of `pattern` holds `wanted`, and its length; `None` if it does not close.
fn bracket(pattern: &[char], wanted: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let first = if negated { 2 } else { 1 };
    let close = (first + 1..pattern.len()).find(|index| pattern[*index] == ']')?;
    let inside = &pattern[first..close];
    let mut found = false;
    let mut index = 0;
    while index < inside.len() {
        if index + 2 < inside.len() && inside[index + 1] == '-' {
            found |= (inside[index]..=inside[index + 2]).contains(&wanted);
            index += 3;
        } else {
            found |= inside[index] == wanted;
            index += 1;
        }
    }
    Some((found != negated, close + 1))
}

/// How interfaces that are not there yet are recognised, first match wins: what `[[interface]]` says by name or kind alone,
/// then the built-in names and kinds. Anything else about a new interface takes rtnetlink and sysfs to know.
pub fn expected(overrides: &[InterfaceOverride]) -> Vec<Expected> {
    let said = overrides.iter().filter_map(|said| {
        let role = said.role.filter(|role| *role != Role::Loopback)?;
        let pattern = pattern_of(&said.matches)?;
        Some(expect(pattern, role, said.labels.clone()))
    });
    let pod = POD_PREFIXES.iter().map(|prefix| Pattern::Prefix((*prefix).to_owned()));
    let pod = pod.chain(POD_NAMES.iter().filter_map(|name| InterfaceName::new(name)).map(Pattern::Name));
    let pod = pod.chain(POD_KINDS.iter().map(|kind| Pattern::Kind((*kind).to_owned())));
    let overlay = OVERLAY_KINDS.iter().map(|kind| Pattern::Kind((*kind).to_owned()));
    said.chain(pod.map(|pattern| expect(pattern, Role::Pod, Labels::new())))
        .chain(overlay.map(|pattern| expect(pattern, Role::Overlay, Labels::new())))
        .collect()
}

fn expect(pattern: Pattern, role: Role, own: Labels) -> Expected {
    let mut labels = own;
    labels.insert("role".to_owned(), role.name().to_owned());
    match &pattern {
        Pattern::Name(name) => labels.insert("name".to_owned(), name.to_string()),
        Pattern::Kind(kind) => labels.insert("kind".to_owned(), kind.clone()),
        Pattern::Prefix(_) => None,
    };
    Expected { pattern, role, labels }
}

/// The pattern that says the same as `match`, if one does.
fn pattern_of(wanted: &InterfaceMatch) -> Option<Pattern> {
    let InterfaceMatch { name, kind, driver, bus, pci, rdma, link, mac, master } = wanted;
    if [driver, bus, pci, rdma, link, mac, master].into_iter().any(Option::is_some) {
        return None;
    }
    let special = |text: &str| text.contains(['*', '?', '[']);
    match (name, kind) {
        (None, Some(kind)) if kind.len() <= 15 => Some(Pattern::Kind(kind.clone())),
        (Some(name), None) if !special(name) => InterfaceName::new(name).map(Pattern::Name),
        (Some(name), None) => {
            let prefix = name.strip_suffix('*')?;
            (!special(prefix) && !prefix.is_empty() && prefix.len() < 15).then(|| Pattern::Prefix(prefix.to_owned()))
        }
        _ => None,
    }
}

/// The labels of an interface about which nothing is known.
pub fn unknown_labels() -> Labels {
    [("role".to_owned(), Role::Unknown.name().to_owned())].into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::text::place::Place;

    fn link(index: u32, name: &str, change: impl FnOnce(&mut Link)) -> (u32, Link) {
        let mut link = Link::named(index, InterfaceName::new(name).unwrap());
        change(&mut link);
        (index, link)
    }

    fn roles(overrides: &[InterfaceOverride], facts: &Facts) -> Vec<String> {
        classify(overrides, facts).interfaces.iter().map(|found| format!("{} {}", found.name, found.role)).collect()
    }

    fn kind(name: &str) -> impl FnOnce(&mut Link) {
        let name = name.to_owned();
        |link| link.kind = Some(name)
    }

    fn node() -> Facts {
        let bond = InterfaceName::new("bond0").unwrap();
        let slave = bond.clone();
        let links = [
            link(1, "lo", |link| link.hardware = 772),
            link(2, "bond0", |link| {
                link.kind = Some("bond".to_owned());
                link.default_route = true;
            }),
            link(3, "eth0", |link| link.master = Some(slave)),
            link(4, "eth1", |link| link.master = Some(bond)),
            link(5, "rail0", |link| link.driver = Some("mlx5_core".to_owned())),
            link(6, "veth12ab", kind("veth")),
            link(7, "cali1234", kind("veth")),
            link(8, "docker0", kind("bridge")),
            link(9, "vxlan.calico", kind("vxlan")),
            link(10, "eth9", |_| {}),
        ];
        Facts { links: links.into(), ..Facts::default() }
    }

    #[test]
    fn built_in_detection() {
        let expected = [
            "bond0 mgmt",
            "cali1234 pod",
            "docker0 pod",
            "eth0 mgmt",
            "eth1 mgmt",
            "eth9 unknown",
            "lo loopback",
            "rail0 unknown",
            "veth12ab pod",
            "vxlan.calico overlay",
        ];
        assert_eq!(roles(&[], &node()), expected);
    }

    #[test]
    fn the_first_override_that_matches_wins_and_loopback_is_nobodys_choice() {
        let say = |name: &str, matches: InterfaceMatch, role| InterfaceOverride {
            name: name.to_owned(),
            matches,
            role: Some(role),
            bypassed: false,
            labels: [("zone".to_owned(), name.to_owned())].into(),
            place: Place::file("10-nics.toml"),
        };
        let driver = InterfaceMatch { driver: Some("mlx5_core".to_owned()), ..InterfaceMatch::default() };
        let name = |glob: &str| InterfaceMatch { name: Some(glob.to_owned()), ..InterfaceMatch::default() };
        let overrides = [
            say("rails", driver, Role::Rail),
            say("second", name("rail[0-9]"), Role::Storage),
            say("odd", name("eth?"), Role::Loopback),
            say("lo", name("lo"), Role::Mgmt),
        ];
        let found = classify(&overrides, &node()).interfaces;
        let rail = found.iter().find(|interface| interface.name.as_str() == "rail0").unwrap();
        assert_eq!(rail.role, Role::Rail);
        assert_eq!(rail.labels["zone"], "rails");
        assert_eq!(rail.why, "[[interface]] rails (10-nics.toml)");
        assert!(roles(&overrides, &node()).contains(&"lo loopback".to_owned()));
        assert!(roles(&overrides, &node()).contains(&"eth9 unknown".to_owned()));
    }

    #[test]
    fn representors_are_known_by_devlink_or_by_the_name_of_their_port() {
        let port = |port: &str, flavour: Option<Flavour>| {
            let (_, link) = link(1, "eth0", |link| {
                link.switch = Some("0c42a1".to_owned());
                link.port = Some(port.to_owned());
                link.flavour = flavour;
            });
            represented(&link).is_some()
        };
        for (name, expected) in [
            ("p0", false),
            ("p0s1", false),
            ("pf0", true),
            ("pf1vf2", true),
            ("pf0sf88", true),
            ("c1pf0vf3", true),
            ("p0pf1vf2", true),
            ("pfvf", false),
            ("", false),
        ] {
            assert_eq!(port(name, None), expected, "{name}");
        }
        assert!(port("0", Some(Flavour::PciVf)), "devlink says so");
        assert!(!port("pf0vf0", Some(Flavour::Virtual)), "the function itself");
        let (_, outside) = link(1, "eth0", |link| link.port = Some("pf0vf0".to_owned()));
        assert_eq!(represented(&outside), None, "without a switch there is nothing to represent");
    }

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("eth*", "eth0", true),
            ("eth*", "et", false),
            ("*", "", true),
            ("e?h0", "eth0", true),
            ("rail[0-3]", "rail3", true),
            ("rail[0-3]", "rail4", false),
            ("rail[!0-3]", "rail4", true),
            ("[", "[", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("*****************a", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", false),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
