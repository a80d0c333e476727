//! Ports that other agents' rules publish on this host, by rewriting the destination of packets on their way in: NodePorts, hostPorts,
//! published ports of containers, forwarded ports.

mod walk;

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::foreign::{self, is_ours};
use super::socket::{Answer, refused};
use super::{Error, Kernel, Netlink};
use crate::net::addr::AddrSet;
use crate::net::published::Published;
use crate::nft::netlink::nat::{Element, NatRule, SetShape, elements, list_elements, list_sets, nat_rule, set_shape};
use crate::nft::netlink::{Family, Message, list_rules};
use walk::{Content, Table};

/// What is published on a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exposed {
    /// The ports, sorted.
    pub published: Vec<Published>,
    /// What could not be read, in words: there may be more than `published` has.
    pub unread: Vec<String>,
}

/// More rules of one table than these are not read. kube-proxy's iptables mode has about six for each endpoint of a service.
const MOST_RULES: usize = 250_000;
/// How often a table is read again that changed meanwhile.
const ATTEMPTS: usize = 5;

/// What rules that are not ours publish in the network namespace of this socket, on a host with these addresses
/// ([`Facts::local_addresses`](crate::net::facts::Facts::local_addresses)). What is for other addresses, such as those of services of a
/// cluster, is left out.
///
/// # Errors
/// The kernel's when it does not list its chains; what else cannot be read is in [`Exposed::unread`].
pub fn published(netlink: &mut Netlink, own: &AddrSet) -> Result<Exposed, Error> {
    let mut tables: BTreeMap<(Family, String), Vec<(i32, String)>> = BTreeMap::new();
    for chain in netlink.chains()?.into_iter().filter(|chain| !is_ours(chain)) {
        if let Some(base) = chain.base.filter(|base| base.kind == "nat" && base.hook == "prerouting" && base.rules > 0)
        {
            tables.entry((chain.family, chain.table)).or_default().push((base.priority, chain.name));
        }
    }
    let mut exposed = Exposed::default();
    for ((family, table), mut chains) in tables {
        chains.sort();
        let roots: Vec<String> = chains.into_iter().map(|(_, name)| name).collect();
        match read(netlink, family, &table, &roots, own) {
            Ok(found) => {
                exposed.published.extend(found.published);
                exposed.unread.extend(found.unread);
            }
            Err(error) => exposed.unread.push(format!("table {} {table}: {error}", family.name())),
        }
    }
    exposed.published.sort();
    Ok(exposed)
}

/// One table, at one generation of the ruleset if it holds still for long enough.
fn read(netlink: &mut Netlink, family: Family, table: &str, roots: &[String], own: &AddrSet) -> Result<Exposed, Error> {
    let mut last = Exposed::default();
    for _ in 0..ATTEMPTS {
        let before = netlink.generation()?;
        if let Some(found) = read_once(netlink, family, table, roots, own)? {
            if netlink.generation()? == before {
                return Ok(found);
            }
            last = found;
        }
    }
    last.unread.push(format!("table {} {table} changed each time that it was read", family.name()));
    Ok(last)
}

/// `None` when a listing was interrupted.
fn read_once(
    netlink: &mut Netlink,
    family: Family,
    table: &str,
    roots: &[String],
    own: &AddrSet,
) -> Result<Option<Exposed>, Error> {
    let mut chains: BTreeMap<String, Vec<NatRule>> = BTreeMap::new();
    let (mut count, mut broken) = (0, 0);
    let request = |sequence| list_rules(family, table, sequence);
    let whole = dump(netlink, request, &format!("the rules of table {} {table}", family.name()), &mut |message| {
        count += 1;
        if count <= MOST_RULES {
            match nat_rule(message) {
                Ok(Some(rule)) => chains.entry(rule.chain.clone()).or_default().push(rule),
                Ok(None) => {}
                Err(_) => broken += 1,
            }
        }
    })?;
    if !whole {
        return Ok(None);
    }
    let mut unread = Vec::new();
    if count > MOST_RULES {
        unread.push(format!("table {} {table} has {count} rules, of which {MOST_RULES} were read", family.name()));
    }
    if broken > 0 {
        unread.push(format!("{broken} rules of table {} {table} are not as we know them", family.name()));
    }
    let mut shapes: BTreeMap<String, SetShape> = BTreeMap::new();
    let request = |sequence| list_sets(family, table, sequence);
    let whole = dump(netlink, request, &format!("the sets of table {} {table}", family.name()), &mut |message| {
        if let Ok(Some(shape)) = set_shape(message) {
            shapes.insert(shape.name.clone(), shape);
        }
    })?;
    if !whole {
        return Ok(None);
    }
    let owner = foreign::owner_of_table(table);
    let table = Table { family, name: table, owner, chains: &chains };
    let mut sets = |name: &str| -> Option<Content> {
        let shape = shapes.get(name)?.clone();
        let elements = contents(netlink, family, table.name, &shape)?;
        Some(Content { shape, elements })
    };
    let walked = walk::walk(&table, roots, own, &mut sets);
    unread.extend(walked.unread);
    Ok(Some(Exposed { published: walked.published, unread }))
}

/// What is in a set; `None` when it could not be read.
fn contents(netlink: &mut Netlink, family: Family, table: &str, shape: &SetShape) -> Option<Vec<Element>> {
    let mut payloads = Vec::new();
    let request = |sequence| list_elements(family, table, &shape.name, sequence);
    let whole = dump(netlink, request, &shape.name, &mut |message| payloads.push(message.payload.to_vec()));
    whole.ok().filter(|whole| *whole).and_then(|_| elements(&payloads, shape).ok())
}

/// One listing; whether it came as a whole.
fn dump(
    netlink: &mut Netlink,
    request: impl Fn(u32) -> Vec<u8>,
    what: &str,
    each: &mut dyn FnMut(&Message<'_>),
) -> Result<bool, Error> {
    let sequence = netlink.take_sequence(1);
    netlink.send(&request(sequence))?;
    let answer = netlink.answer(sequence, &mut |message| {
        each(message);
        Ok(())
    })?;
    match answer {
        Answer::Complete => Ok(true),
        Answer::Interrupted => Ok(false),
        // It went away meanwhile.
        Answer::Error(answer) if answer.errno == Errno::ENOENT as i32 => Ok(false),
        Answer::Error(answer) => Err(refused(format!("to show {what}"), &answer)),
    }
}
