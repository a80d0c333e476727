//! Rules of other firewalls of a host as documents of ours: iptables, nft, ufw and firewalld. Pure.
//!
//! Readers make chains of a text (`model`), whose rules match conjunctions of sets (`cube`); `flatten` makes one list of decisions
//! out of the chains of a hook, and `lower` writes it as policies. New packets that the original denies are denied: a rule that lets
//! through and cannot be said is left out, one that denies denies more. Both are told, and where neither can be, it is an error.

mod cube;
mod firewalld;
mod flatten;
mod iptables;
mod limits;
mod lower;
mod model;
mod names;
mod nft;
mod ufw;
mod words;

use std::collections::BTreeMap;

use self::model::{Hook, Ruleset};
use super::document;
use super::object::convert::{Document, to_toml};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;
use crate::text::tree::Source;

/// How many places a finding names that is true of several.
const MOST_PLACES: usize = 4;

/// A firewall whose rules can be converted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firewall {
    /// What `iptables-save` and `ip6tables-save` print.
    Iptables,
    /// What `nft -j list ruleset` prints.
    Nft,
    /// The files of /etc/ufw, with /etc/default/ufw.
    Ufw,
    /// The files of /etc/firewalld, with the services of /usr/lib/firewalld.
    Firewalld,
}

impl Firewall {
    /// What it is called, which names of tiers and policies begin with.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nft => "nft",
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
        }
    }
}

/// The documents that mean what these texts mean together. With an error among the findings there are none.
pub fn convert(firewall: Firewall, sources: &[Source]) -> (Vec<Document>, Vec<Finding>) {
    let mut ruleset = match firewall {
        Firewall::Iptables => {
            let mut tables = iptables::Tables::default();
            sources.iter().for_each(|source| tables.read(source));
            tables.ruleset()
        }
        Firewall::Ufw => ufw::read(sources),
        Firewall::Nft => nft::read(sources),
        Firewall::Firewalld => firewalld::read(sources),
    };
    let file = sources.first().map_or_else(|| firewall.name().into(), |source| source.file.clone());
    if ruleset.bases.is_empty() && !has_errors(&ruleset.findings) {
        let message = "there is no chain here that the kernel begins with, so nothing to convert";
        ruleset.refuse(&Place::file(file), message, "give all rules of the host");
    }
    if has_errors(&ruleset.findings) {
        return (Vec::new(), grouped(ruleset.findings));
    }
    limits::pair(&mut ruleset);
    let (documents, said) = lower::documents(&ruleset, firewall.name());
    let mut findings = differences(&ruleset);
    findings.extend(ruleset.findings);
    findings.extend(said);
    findings.extend(refused(&documents));
    let documents = if has_errors(&findings) { Vec::new() } else { documents };
    (documents, grouped(findings))
}

fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

/// Where nodewall differs whatever the rules say.
fn differences(ruleset: &Ruleset) -> Vec<Finding> {
    let Some(first) = ruleset.bases.first() else { return Vec::new() };
    let warn =
        |place: &Place, message: String, help: &str| Finding::warning(Code::NotConverted, place, message).help(help);
    let message = "before any of these policies, nodewall lets through established and related flows, loopback, neighbour discovery, multicast listener reports, the ICMP errors of path-MTU discovery, answers of DHCP servers and its failsafe (SSH from anyone on management interfaces, unless that is narrowed), and drops invalid packets and loopback addresses from outside; its guards go first as well";
    let mut findings = vec![warn(
        &first.place,
        message.to_owned(),
        "where the rules here are stricter, narrow [failsafe] in nodewall.toml; see EVALUATION and GUARDS in nodewall-policy(5)",
    )];
    let input: Vec<_> = ruleset.bases.iter().filter(|base| base.hook == Hook::Input).collect();
    let sees = (input.iter().any(|base| base.v4), input.iter().any(|base| base.v6));
    if sees != (true, true) {
        let which = match sees {
            (true, _) => "IPv6",
            (_, true) => "IPv4",
            _ => "IPv4 or IPv6",
        };
        let message =
            format!("nothing here is about what comes in by {which}: the defaults of nodewall decide, which deny it");
        findings.push(warn(&first.place, message, "give the rules of both families in one call"));
    }
    if let Some(place) = &ruleset.flags {
        let message = "TCP flags are taken for those of the packet that opens a connection: nodewall looks at none, and what the rule says of other packets is left out";
        findings.push(warn(place, message.to_owned(), ""));
    }
    if let Some(cube) = ruleset.untracked.first().filter(|cube| !cube.is_empty()) {
        let _ = cube;
        let message = "`notrack` is not converted: what lets in only packets that are tracked, or only those that are not, is left out where it may meet these";
        findings.push(warn(
            &first.place,
            message.to_owned(),
            "write a policy of stage \"untracked\" if connections are not to be tracked",
        ));
    }
    findings
}

/// What we write has to load: what would not.
fn refused(documents: &[Document]) -> Vec<Finding> {
    let written = Source::new("converted", to_toml(documents));
    let (_, said) = document::decode(&written);
    let place = documents.first().map_or_else(|| Place::file("converted"), |first| first.place.clone());
    let errors = said.iter().filter(|finding| finding.severity == Severity::Error);
    errors
        .map(|finding| {
            let message = format!("what it would be would be refused: {}", finding.message);
            Finding::error(Code::NotConverted, &place, message).help(finding.help.clone())
        })
        .collect()
}

/// What is true of several rules, said once.
fn grouped(findings: Vec<Finding>) -> Vec<Finding> {
    let mut groups: BTreeMap<(Severity, String), usize> = BTreeMap::new();
    let mut said: Vec<(Finding, usize)> = Vec::new();
    for finding in findings {
        match groups.get(&(finding.severity, finding.message.clone())).and_then(|at| said.get_mut(*at)) {
            Some((first, others)) => {
                *others += 1;
                if *others <= MOST_PLACES && first.place != finding.place {
                    first.related.push((finding.place, "here as well".to_owned()));
                }
            }
            None => {
                groups.insert((finding.severity, finding.message.clone()), said.len());
                said.push((finding, 0));
            }
        }
    }
    said.into_iter()
        .map(|(mut finding, others)| {
            if others > MOST_PLACES {
                finding.message = format!("{} (and at {others} other places)", finding.message);
            }
            finding
        })
        .collect()
}
