//! Other agents' base chains: whose they are as far as names tell, and whether they can drop what we accepted. What their rules look
//! at is not read.

use std::collections::{BTreeMap, BTreeSet};

use super::socket::{Answer, refused};
use super::{Error, Kernel, Netlink};
use crate::nft::TABLE_NAME;
use crate::nft::netlink::{AnyChain, BaseHook, Effect, Family, effect, list_rules};

/// A base chain of a table that is not ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherChain {
    /// The family of its table.
    pub family: Family,
    /// The name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it hooks in.
    pub base: BaseHook,
    /// Who made it, by the names of the table and of its chains; empty when nothing tells. Several agents share the tables that
    /// iptables makes.
    pub owners: Vec<&'static str>,
    /// Whether it sees packets that a chain of ours accepted at the same hook, and may drop them. A chain of the same priority counts
    /// as later: the kernel does not tell which was there first.
    pub after_ours: bool,
    /// Whether it drops at all.
    pub drops: Drops,
}

/// How a base chain drops packets, if it does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Drops {
    /// Its policy is accept, and none of the rules that it leads to drops or rejects.
    No,
    /// Its rules were not read, or they ask a program or a map that may.
    Maybe,
    /// A rule that it leads to drops or rejects.
    Rules,
    /// Its policy is drop.
    Policy,
}

impl Drops {
    /// The word for people and scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
            Self::Rules => "rules",
            Self::Policy => "policy",
        }
    }
}

/// A table by family and name.
type Table = (Family, String);

/// More rules than these are not read: kube-proxy has tens of thousands, and their list would take longer than anybody waits.
const MOST_RULES: usize = 50_000;

/// The base chains that are not ours in the network namespace of this socket, in the order in which packets meet them.
///
/// # Errors
/// The kernel's. Rules that cannot be read leave only the answer open whether they drop.
pub fn coexisting(netlink: &mut Netlink) -> Result<Vec<OtherChain>, Error> {
    let chains = netlink.chains()?;
    // Of chains that come before ours, and of those that rewrite, the rules do not matter.
    let wanted: BTreeSet<Table> = others(&chains, &BTreeMap::new())
        .into_iter()
        .filter(|chain| chain.after_ours && chain.drops == Drops::Maybe)
        .map(|chain| (chain.family, chain.table))
        .collect();
    let mut rules = BTreeMap::new();
    let mut left = MOST_RULES;
    for (family, table) in wanted {
        if let Some(effects) = effects(netlink, family, &table, left)? {
            left -= effects.len();
            rules.insert((family, table), effects);
        }
    }
    Ok(others(&chains, &rules))
}

/// The rules of a table; `None` where there are more than `most`, or they keep changing.
fn effects(netlink: &mut Netlink, family: Family, table: &str, most: usize) -> Result<Option<Vec<Effect>>, Error> {
    let sequence = netlink.take_sequence(1);
    netlink.send(&list_rules(family, table, sequence))?;
    let (mut effects, mut count) = (Vec::new(), 0);
    let answer = netlink.answer(sequence, &mut |message| {
        count += 1;
        if count <= most {
            effects.extend(effect(message)?);
        }
        Ok(())
    })?;
    match answer {
        Answer::Complete if count <= most => Ok(Some(effects)),
        Answer::Complete | Answer::Interrupted => Ok(None),
        // It went away meanwhile.
        Answer::Error(answer) if answer.errno == nix::errno::Errno::ENOENT as i32 => Ok(None),
        Answer::Error(answer) => Err(refused(format!("to show the rules of table {} {table}", family.name()), &answer)),
    }
}

/// Whether the rules of a base chain drop, given those of its table.
fn drops(chain: &str, rules: &[Effect]) -> Drops {
    let mut found = Drops::No;
    let (mut seen, mut next) = (BTreeSet::new(), vec![chain]);
    while let Some(chain) = next.pop() {
        if !seen.insert(chain) {
            continue;
        }
        for rule in rules.iter().filter(|rule| rule.chain == chain) {
            if rule.drops {
                return Drops::Rules;
            }
            if rule.asks || rule.by_map {
                found = Drops::Maybe;
            }
            if rule.by_map && rules.iter().any(|rule| rule.drops) {
                // It may lead anywhere in the table.
                return Drops::Rules;
            }
            next.extend(rule.leads_to.iter().map(String::as_str));
        }
    }
    found
}

/// The tables of one agent alone, by the beginning of their names.
const TABLES: &[(&str, &str)] = &[
    ("kube-proxy", "kube-proxy"),
    ("calico", "Calico"),
    ("cilium", "Cilium"),
    ("docker", "Docker"),
    ("firewalld", "firewalld"),
    ("tailscale", "Tailscale"),
    ("ts-", "Tailscale"),
    ("libvirt", "libvirt"),
    ("incus", "Incus"),
    ("lxd", "LXD"),
    ("f2b-", "fail2ban"),
    ("kube-router", "kube-router"),
    ("kubernetes", "Kubernetes"),
    ("cni", "CNI plugins"),
    ("netavark", "Podman"),
];

/// Chains by which an agent is known in tables that several share, by the beginning of their names.
const CHAINS: &[(&str, &str)] = &[
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-", "kube-proxy"),
    ("cali-", "Calico"),
    ("cali:", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("DOCKER", "Docker"),
    ("ufw-", "ufw"),
    ("ufw6-", "ufw"),
    ("ts-", "Tailscale"),
    ("LIBVIRT_", "libvirt"),
    ("CNI-", "CNI plugins"),
    ("FLANNEL-", "flannel"),
    ("f2b-", "fail2ban"),
    ("NETAVARK", "Podman"),
];

/// The tables that the iptables program of the nf_tables kind makes, and the beginning of their base chains' hooks.
const IPTABLES_TABLES: &[&str] = &["filter", "nat", "mangle", "raw", "security"];
const IPTABLES_CHAINS: &[&str] = &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The base chains that are not ours among all chains, in the order in which packets meet them, given the rules of those tables that
/// were read.
fn others(chains: &[AnyChain], rules: &BTreeMap<Table, Vec<Effect>>) -> Vec<OtherChain> {
    // Of each hook the first of ours; at ingress each device has a hook of its own.
    let mut ours: BTreeMap<(&str, Option<&str>), i32> = BTreeMap::new();
    let mut names: BTreeMap<(Family, &str), BTreeSet<&str>> = BTreeMap::new();
    for chain in chains {
        if !is_ours(chain) {
            names.entry((chain.family, &chain.table)).or_default().insert(&chain.name);
        } else if let Some(base) = &chain.base {
            for place in places(base) {
                let first = ours.entry(place).or_insert(base.priority);
                *first = base.priority.min(*first);
            }
        }
    }
    let mut found: Vec<OtherChain> = chains
        .iter()
        .filter(|chain| !is_ours(chain))
        .filter_map(|chain| {
            let base = chain.base.clone()?;
            // At ingress chains of both families are in one list (kernel nf_hook_entry_head).
            let sees_ip = matches!(chain.family, Family::Inet | Family::Ip | Family::Ip6)
                || (chain.family, base.hook) == (Family::Netdev, INGRESS);
            let later = ours.iter().any(|((hook, device), priority)| {
                let there = device.is_none_or(|device| base.devices.iter().any(|pattern| is_named(device, pattern)));
                *hook == base.hook && there && base.priority >= *priority
            });
            let drops = match rules.get(&(chain.family, chain.table.clone())) {
                _ if base.drops => Drops::Policy,
                _ if base.rules == 0 => Drops::No,
                Some(rules) => drops(&chain.name, rules),
                None => Drops::Maybe,
            };
            Some(OtherChain {
                family: chain.family,
                table: chain.table.clone(),
                name: chain.name.clone(),
                owners: owners(&chain.table, names.get(&(chain.family, chain.table.as_str()))),
                // Chains of type nat rewrite; the kernel refuses none of their packets by policy, and few rules drop there.
                after_ours: sees_ip && later && base.kind != "nat" && drops != Drops::No,
                drops,
                base,
            })
        })
        .collect();
    let order = |hook: &str| HOOKS.iter().position(|known| *known == hook).unwrap_or(HOOKS.len());
    found.sort_by(|one, other| {
        let key = |chain: &OtherChain| (order(chain.base.hook), chain.base.priority);
        key(one)
            .cmp(&key(other))
            .then_with(|| (one.family, &one.table, &one.name).cmp(&(other.family, &other.table, &other.name)))
    });
    found
}

/// Where a base chain of ours is: the hook, and of several devices each.
fn places(base: &BaseHook) -> Vec<(&str, Option<&str>)> {
    if base.hook == INGRESS {
        base.devices.iter().map(|device| (base.hook, Some(device.as_str()))).collect()
    } else {
        vec![(base.hook, None)]
    }
}

fn is_named(device: &str, pattern: &str) -> bool {
    pattern.strip_suffix('*').map_or(device == pattern, |start| device.starts_with(start))
}

const INGRESS: &str = "ingress";

/// The hooks in the order in which a packet to this host, through it and from it meets them.
const HOOKS: &[&str] = &[INGRESS, "prerouting", "input", "forward", "output", "postrouting", "egress"];

pub(super) fn is_ours(chain: &AnyChain) -> bool {
    (chain.family, chain.table.as_str()) == (Family::Inet, TABLE_NAME)
}

fn known(list: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    list.iter().find(|(start, _)| name.starts_with(start)).map(|(_, owner)| *owner)
}

/// Who made a table, if it is one that a single agent has for itself.
pub(super) fn owner_of_table(table: &str) -> Option<&'static str> {
    known(TABLES, table)
}

/// Who made a chain of a table that several share.
pub(super) fn owner_of_chain(chain: &str) -> Option<&'static str> {
    known(CHAINS, chain)
}

fn owners(table: &str, chains: Option<&BTreeSet<&str>>) -> Vec<&'static str> {
    if let Some(owner) = owner_of_table(table) {
        return vec![owner];
    }
    let chains = || chains.into_iter().flatten();
    let mut owners: BTreeSet<&'static str> = chains().filter_map(|name| owner_of_chain(name)).collect();
    let iptables = IPTABLES_TABLES.contains(&table) && chains().any(|name| IPTABLES_CHAINS.contains(name));
    if owners.is_empty() && iptables {
        owners.insert("iptables-nft");
    }
    owners.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: Family, table: &str, name: &str, base: Option<(&'static str, i32, &str, bool, u32)>) -> AnyChain {
        AnyChain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
            base: base.map(|(hook, priority, kind, drops, rules)| BaseHook {
                hook,
                priority,
                devices: Vec::new(),
                kind: kind.to_owned(),
                drops,
                rules,
            }),
        }
    }

    #[test]
    fn owners_are_told_by_names_and_order_by_priority() {
        use Family::{Inet, Ip, Netdev};
        let chains = [
            chain(Inet, "nodewall", "input", Some(("input", 0, "filter", false, 5))),
            chain(Inet, "nodewall", "in_mgmt", None),
            chain(Inet, "firewalld", "filter_INPUT", Some(("input", 10, "filter", false, 4))),
            chain(Ip, "filter", "INPUT", Some(("input", 0, "filter", true, 0))),
            chain(Ip, "filter", "ufw-before-input", None),
            chain(Ip, "filter", "KUBE-FIREWALL", None),
            chain(Ip, "mangle", "OUTPUT", Some(("output", -150, "route", false, 0))),
            chain(Ip, "kube-proxy", "filter-input", Some(("input", -110, "filter", false, 1))),
            chain(Ip, "kube-proxy", "nat-prerouting", Some(("prerouting", -100, "nat", false, 1))),
            chain(Inet, "mine", "late", Some(("input", 300, "filter", false, 0))),
            chain(Netdev, "mine", "first", Some(("ingress", 0, "filter", true, 1))),
        ];
        let found = others(&chains, &BTreeMap::new());
        let lines: Vec<String> = found
            .iter()
            .map(|chain| {
                let after = if chain.after_ours { " after ours" } else { "" };
                format!(
                    "{} {} {}: {}{after}",
                    chain.base.hook,
                    chain.base.priority,
                    chain.table,
                    chain.owners.join("+")
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                "ingress 0 mine: ",
                "prerouting -100 kube-proxy: kube-proxy",
                "input -110 kube-proxy: kube-proxy",
                "input 0 filter: kube-proxy+ufw after ours",
                "input 10 firewalld: firewalld after ours",
                "input 300 mine: ",
                "output -150 mangle: iptables-nft",
            ]
        );
        assert_eq!(others(&[], &BTreeMap::new()), Vec::new());
    }

    #[test]
    fn a_chain_drops_what_the_rules_that_it_leads_to_drop() {
        let rule = |chain: &str| Effect { chain: chain.to_owned(), ..Effect::default() };
        let to = |chain: &str, next: &str| Effect { leads_to: vec![next.to_owned()], ..rule(chain) };
        let drop = |chain: &str| Effect { drops: true, ..rule(chain) };
        let map = |chain: &str| Effect { by_map: true, ..rule(chain) };
        assert_eq!(drops("a", &[rule("a"), to("a", "b"), to("b", "a")]), Drops::No);
        assert_eq!(drops("a", &[to("a", "b"), to("b", "c"), drop("c")]), Drops::Rules);
        assert_eq!(drops("a", &[to("a", "b"), drop("elsewhere")]), Drops::No);
        assert_eq!(drops("a", &[map("a")]), Drops::Maybe);
        assert_eq!(drops("a", &[map("a"), drop("anywhere")]), Drops::Rules);
        assert_eq!(drops("a", &[Effect { asks: true, ..rule("a") }]), Drops::Maybe);
    }

    #[test]
    fn at_ingress_only_chains_on_a_device_of_ours_come_after_ours() {
        let on = |family, table: &str, devices: &[&str], priority| {
            let mut chain = chain(family, table, "ingress", Some(("ingress", priority, "filter", true, 1)));
            chain.base.iter_mut().for_each(|base| base.devices = devices.iter().map(ToString::to_string).collect());
            chain
        };
        let chains = [
            on(Family::Inet, "nodewall", &["eth0"], -500),
            on(Family::Inet, "nodewall", &["eth1"], 7),
            on(Family::Netdev, "before", &["eth0"], -501),
            on(Family::Netdev, "after", &["eth0"], -500),
            on(Family::Inet, "too", &["ib0", "eth0"], 0),
            on(Family::Inet, "all", &["eth*"], 0),
            on(Family::Netdev, "elsewhere", &["eth01", "ib0"], 0),
            on(Family::Inet, "earlier", &["eth1"], 0),
            on(Family::Netdev, "nowhere", &[], 0),
            chain(Family::Inet, "later", "prerouting", Some(("prerouting", 0, "filter", true, 1))),
        ];
        let after: Vec<String> = others(&chains, &BTreeMap::new())
            .into_iter()
            .filter(|chain| chain.after_ours)
            .map(|chain| chain.table)
            .collect();
        assert_eq!(after, ["after", "all", "too"]);
    }
}
