//! Policy + settings + facts -> [`Effective`]: every name looked up, every set filled, everything in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::{Book, Named};
use super::coverage::{self, Unseen};
use super::effective::{
    Addresses, Effective, EffectiveFailsafe, EffectivePolicy, EffectiveRule, EffectiveTier, RuleId,
};
use super::expected;
use super::guards;
use super::l4::{answers, l4_of_rule, l4_of_services};
use super::local::process_match;
use super::model::{Action, BUILT_IN, Entity, HostPolicy, Policy, Rule, Service, ServicePort, Stage, Transport};
use super::ports;
use super::roles::{self, Classified};
use super::selector::Labels;
use super::settings::{Failsafe, NodeSettings};
use crate::net::addr::Family;
use crate::net::facts::Facts;
use crate::net::interface::{Direction, Role};
use crate::net::protocol::{L4Detail, L4Match, PortSet, Protocol};
use crate::text::finding::{Code, Finding, Severity};
use crate::text::place::Place;

/// RoCEv2's destination port (`ROCE_V2_UDP_DPORT`, include/rdma/ib_verbs.h).
const ROCE_V2_PORT: u16 = 4791;

/// What the policy comes to on this node, and what there is to say about it. Policies with an error finding are left out
/// of the result.
pub fn resolve(policy: &Policy, settings: &NodeSettings, facts: &Facts) -> (Effective, Vec<Finding>) {
    let Classified { interfaces, rails, remembered } = roles::classify(&policy.interfaces, facts);
    let mut resolver = Resolver {
        policy,
        facts,
        node: labels_of_node(settings, facts),
        book: Book::new(&policy.sets, facts),
        named: BTreeMap::new(),
        findings: Vec::new(),
        roce: coverage::roce(facts, &interfaces),
    };
    let expected = roles::expected(&policy.interfaces);
    let unknown = roles::unknown_labels();
    let failsafe = resolver.failsafe(settings, facts);
    let tiers = resolver.tiers();
    resolver.findings.extend(expected::missing(policy));
    let known: Vec<&Labels> = interfaces
        .iter()
        .map(|interface| &interface.labels)
        .chain(expected.iter().map(|expected| &expected.labels))
        .chain(std::iter::once(&unknown))
        .collect();
    for selected in tiers.iter().flat_map(|tier| &tier.policies) {
        let meant = !guards::is_built_in(&selected.place);
        if meant && !known.iter().any(|labels| selected.interfaces.matches(*labels)) {
            let message = format!("policy \"{}\" selects no interface of this node", selected.name);
            resolver.findings.push(
                Finding::warning(Code::SelectsNothing, &selected.place, message)
                    .label("not in force here")
                    .help("compare its `interfaces` with the labels that `nodewall status` shows"),
            );
        }
    }
    let named = Arc::new(Named::new(resolver.named, &policy.sets));
    let mut findings = resolver.findings;
    findings.sort_by(|left, right| {
        (&left.place, left.code, &left.message).cmp(&(&right.place, right.code, &right.message))
    });
    let defaults = Role::ALL
        .iter()
        .flat_map(|role| Direction::BOTH.map(|direction| (*role, direction)))
        .map(|(role, direction)| ((role, direction), settings.default_for(role, direction)))
        .collect();
    let effective = Effective {
        mode: settings.mode,
        interfaces,
        rails,
        remembered,
        expected,
        unknown,
        failsafe,
        tiers,
        named,
        defaults,
        early: settings.early.clone(),
        accept_mark: settings.accept_mark,
        drop_invalid: settings.drop_invalid,
        log: settings.log,
    };
    (effective, findings)
}

/// The labels that `nodes` selectors look at: those of the settings and the cluster, and the host's name as `name`.
pub fn labels_of_node(settings: &NodeSettings, facts: &Facts) -> Labels {
    let mut labels = facts.labels.clone();
    labels.extend(settings.labels.clone());
    labels.entry("name".to_owned()).or_insert_with(|| node_name(settings, facts).to_owned());
    labels
}

/// What this node is called in its cluster.
pub fn node_name<'a>(settings: &'a NodeSettings, facts: &'a Facts) -> &'a str {
    settings.node.as_deref().unwrap_or(&facts.node)
}

struct Resolver<'a> {
    policy: &'a Policy,
    facts: &'a Facts,
    node: Labels,
    book: Book<'a>,
    /// See [`Effective::named`].
    named: BTreeMap<String, Entity>,
    findings: Vec<Finding>,
    /// The interfaces whose RoCE passes the kernel by.
    roce: Vec<Unseen>,
}

impl Resolver<'_> {
    fn tiers(&mut self) -> Vec<EffectiveTier> {
        let mut tiers: Vec<_> = self.policy.tiers.values().collect();
        tiers.sort_by(|left, right| (left.order, &left.name).cmp(&(right.order, &right.name)));
        for pair in tiers.windows(2) {
            if let [first, second] = pair
                && first.order == second.order
            {
                let (name, other, order) = (&second.name, &first.name, first.order);
                let message = format!("tier \"{name}\" has the same order as tier \"{other}\": {order}");
                // The built-in one has no place in a file.
                let built_in = |place: &Place| &*place.file == BUILT_IN;
                let (place, elsewhere) =
                    if built_in(&second.place) { (&first.place, &second.place) } else { (&second.place, &first.place) };
                let finding = Finding::error(Code::DuplicateOrder, place, message).label("which of them goes first?");
                let finding = finding.help("give one of them another `order`");
                let finding = if built_in(elsewhere) { finding } else { finding.related(elsewhere, "the other one") };
                self.findings.push(finding);
            }
        }
        let known: BTreeSet<&str> = tiers.iter().map(|tier| tier.name.as_str()).collect();
        let mut by_tier: BTreeMap<&str, Vec<&HostPolicy>> = BTreeMap::new();
        for policy in &self.policy.policies {
            if known.contains(policy.tier.as_str()) {
                by_tier.entry(&policy.tier).or_default().push(policy);
            } else {
                self.unknown_name("tier", &policy.tier, &policy.tier_place, known.iter().copied());
            }
        }
        tiers
            .into_iter()
            .map(|tier| {
                let mut policies = by_tier.remove(tier.name.as_str()).unwrap_or_default();
                // A policy without an order goes last; names keep the order total.
                policies.sort_by_key(|policy| (policy.order.is_none(), policy.order, policy.name.clone()));
                let policies = policies.into_iter().filter_map(|policy| self.policy(policy)).collect();
                EffectiveTier { name: tier.name.clone(), default: tier.default, policies }
            })
            .collect()
    }

    /// One policy, unless it does not exist on this node or has an error.
    fn policy(&mut self, policy: &HostPolicy) -> Option<EffectivePolicy> {
        let before = self.errors();
        let name: Arc<str> = policy.name.as_str().into();
        let here = policy.nodes.matches(&self.node);
        let mut direction = |rules: &Option<Vec<Rule>>| {
            rules.as_ref().map(|rules| {
                let rules = rules.iter().enumerate();
                rules.map(|(index, rule)| self.rule((&name, policy), index, rule, here)).collect::<Vec<_>>()
            })
        };
        let ingress = direction(&policy.ingress);
        let egress = direction(&policy.egress);
        if here && !policy.acknowledges_bypass {
            for rule in ingress.iter().chain(&egress).flatten() {
                self.unseen(policy, rule);
            }
        }
        self.roce_both_ways(policy, ingress.as_deref(), egress.as_deref());
        self.untracked_both_ways(policy, ingress.as_deref(), egress.as_deref());
        if here {
            self.findings.extend(ports::clashes(policy.stage, ingress.as_deref(), &self.facts.ports));
        }
        // Its findings are worth having on every node, but it takes effect only where it is meant.
        (self.errors() == before && here).then(|| EffectivePolicy {
            name: policy.name.clone(),
            stage: policy.stage,
            expires: policy.expires,
            mode: policy.mode,
            interfaces: policy.interfaces.clone(),
            ingress,
            egress,
            place: policy.place.clone(),
        })
    }

    fn errors(&self) -> usize {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    fn rule(
        &mut self,
        (name, policy): (&Arc<str>, &HostPolicy),
        index: usize,
        rule: &Rule,
        here: bool,
    ) -> EffectiveRule {
        let before = self.errors();
        let services = (!rule.services.is_empty()).then(|| self.services(policy, &rule.services));
        // What is declared only, by a policy that says that it knows.
        let declared = services.as_ref().is_some_and(Vec::is_empty);
        let l4 = l4_of_rule(rule, services.as_deref());
        let from = self.addresses(rule.from.as_ref(), Some(rule.action), &rule.place);
        let to = self.addresses(rule.to.as_ref(), Some(rule.action), &rule.place);
        let source_ports = rule.from.as_ref().and_then(|from| from.ports.clone());
        let process = rule.process.as_ref().map(|process| {
            let mut findings = Vec::new();
            let process = process_match(process, self.facts, &mut findings);
            // Other nodes need not have the accounts.
            self.findings.extend(findings.into_iter().filter(|_| here));
            process
        });
        let unresolved = self.errors() != before || declared || [&from, &to].into_iter().any(is_empty);
        let effective = EffectiveRule {
            id: RuleId { policy: Arc::clone(name), number: u32::try_from(index + 1).unwrap_or(u32::MAX) },
            place: rule.place.clone(),
            action: rule.action,
            from,
            to,
            l4,
            source_ports,
            family: rule.family,
            process,
            limit: rule.limit,
            log: rule.log.clone(),
        };
        // An entity without addresses and a name that nothing has have their own finding, and usually another cause.
        if !unresolved && !can_match(&effective) {
            let message = format!("no packet can match rule {}", effective.id);
            self.findings.push(
                Finding::warning(Code::NeverMatches, &rule.place, message)
                    .label("contradicts itself")
                    .help("compare `family`, the addresses of `from` and `to`, `protocol` and `not`"),
            );
        }
        effective
    }

    fn services(&mut self, policy: &HostPolicy, names: &[(String, Place)]) -> Vec<ServicePort> {
        let mut ports = Vec::new();
        for (name, place) in names {
            match self.policy.services.get(name) {
                Some(Service { transport: Transport::Rdma, .. }) if policy.acknowledges_bypass => {}
                Some(Service { transport: Transport::Rdma, .. }) => self.findings.push(
                    Finding::error(Code::NeverMatches, place, format!("service \"{name}\" is carried by RDMA-CM"))
                        .label("not a TCP or UDP port")
                        .help("no nftables rule sees it; enforce it in the fabric (switch ACL, P_Key, DPU), and write acknowledge = \"bypass\" in a policy that says so"),
                ),
                Some(service) => ports.extend(service.ports.iter().cloned()),
                None => self.unknown_name("service", name, place, self.policy.services.keys().map(String::as_str)),
            }
        }
        ports
    }

    /// The addresses of an entity; `action` is that of its rule, if it is in one.
    fn addresses(&mut self, entity: Option<&Entity>, action: Option<Action>, place: &Place) -> Addresses {
        let Some(entity) = entity else { return Addresses::Any };
        if !entity.names_addresses() && entity.except.is_none() {
            return Addresses::Any;
        }
        let errors = self.errors();
        let mut unknown = Vec::new();
        let resolved = self.book.look_up(entity, &mut |name, place| unknown.push((name.to_owned(), place.clone())));
        for (name, place) in unknown {
            let may_be_missing = action.is_some_and(|action| expected::may_be_missing(action, entity, &place));
            match self.policy.expected_sets.iter().find(|expected| expected.set == name) {
                Some(_) if may_be_missing => {}
                Some(expected) => self.must_be_there(&name, &place, &expected.place),
                None => self.unknown_name("set", &name, &place, self.policy.sets.keys().map(String::as_str)),
            }
        }
        let told = expected::is_all_missing(entity, self.policy) || self.nodes_unknown(entity, action, place);
        if resolved.addresses.is_empty() && self.errors() == errors && !told {
            let place = entity.place.as_ref().unwrap_or(place);
            let help = match &entity.nodes {
                Some(_) => {
                    "compare `nodes` with `kubectl get nodes --show-labels`, and `role` with `kubectl get hoststates -o yaml`"
                }
                None => "fill the set, or leave the rule out",
            };
            self.findings.push(
                Finding::warning(Code::EmptyEntity, place, "this resolves to no address, so the rule matches nothing")
                    .label("no address")
                    .help(help),
            );
        }
        let Some(name) = resolved.kernel_name() else { return Addresses::Literal(resolved.addresses) };
        if !self.named.contains_key(&name) {
            self.named.insert(name.clone(), entity.clone());
        }
        Addresses::Named(name, resolved.addresses)
    }

    /// Whether an entity names nodes and no cluster says who they are, which is found then.
    fn nodes_unknown(&mut self, entity: &Entity, action: Option<Action>, place: &Place) -> bool {
        if !self.facts.nodes.is_empty() || !entity.names_nodes() {
            return false;
        }
        let less = action.is_none_or(|action| expected::nodes_may_be_missing(action, entity));
        let new = if less { Finding::warning } else { Finding::error };
        let place = entity.place.as_ref().unwrap_or(place);
        let message = "no cluster says who its nodes are";
        let help = match less {
            true => "the rule matches no node until a [[source.cluster]] has \"nodes\" in `contribute`",
            false => {
                "without them the rule would let more through; name a [[source.cluster]] with \"nodes\" in `contribute`"
            }
        };
        self.findings.push(new(Code::EmptyEntity, place, message).label("no nodes").help(help));
        true
    }

    fn failsafe(&mut self, settings: &NodeSettings, facts: &Facts) -> Vec<EffectiveFailsafe> {
        let mut entries = Vec::new();
        for entry in &settings.failsafe {
            if entry.cluster_api {
                entries.extend(cluster_api(entry, facts));
            } else {
                entries.push(self.failsafe_entry(entry));
            }
        }
        entries
    }

    fn failsafe_entry(&mut self, entry: &Failsafe) -> EffectiveFailsafe {
        let peers = self.addresses(entry.peers.as_ref(), None, &entry.place);
        let anyone = match &peers {
            Addresses::Any => true,
            Addresses::Literal(set) | Addresses::Named(_, set) => set.is_full(),
        };
        if anyone && entry.direction == Direction::Ingress {
            let message = format!("failsafe \"{}\" is open to anyone", entry.name);
            self.findings.push(
                Finding::warning(Code::OpenFailsafe, &entry.place, message)
                    .label("no policy can close this")
                    .help("give it `peers`: the addresses from which you administer this host"),
            );
        }
        let (from, to) = match entry.direction {
            Direction::Ingress => (peers, Addresses::Any),
            Direction::Egress => (Addresses::Any, peers),
        };
        effective_failsafe(entry, 0, (from, to), l4_of_services(&entry.ports))
    }

    /// A rule about RoCE on interfaces where it passes the kernel by is a promise that nobody keeps.
    fn unseen(&mut self, policy: &HostPolicy, rule: &EffectiveRule) {
        let mut selected = self.roce.iter().filter(|unseen| policy.interfaces.matches(&unseen.labels));
        let Some(first) = selected.next().filter(|_| names_roce(&rule.l4)) else { return };
        let others = match selected.count() {
            0 => String::new(),
            1 => " and on another interface".to_owned(),
            more => format!(" and on {more} more interfaces"),
        };
        let (id, subject, why) = (&rule.id, &first.subject, &first.why);
        let message =
            format!("rule {id} names udp/{ROCE_V2_PORT}, which never reaches nftables on {subject}{others}: {why}");
        self.findings.push(Finding::error(Code::Bypassed, &rule.place, message).label("cannot be enforced here").help(
            "enforce it in the fabric (switch ACL, P_Key, DPU); select by the label `coverage`, \
                 or write acknowledge = \"bypass\" in the policy",
        ));
    }

    /// Soft-RoCE sends both ways to udp/4791, so a rule for one direction never sees the other as established
    /// (`policy.md` section 3).
    fn roce_both_ways(
        &mut self,
        policy: &HostPolicy,
        ingress: Option<&[EffectiveRule]>,
        egress: Option<&[EffectiveRule]>,
    ) {
        let allows_roce = |rules: Option<&[EffectiveRule]>| {
            rules.unwrap_or_default().iter().find(|rule| rule.action == Action::Allow && names_roce(&rule.l4)).cloned()
        };
        let one_way = match (allows_roce(ingress), allows_roce(egress)) {
            (Some(rule), None) if egress.is_some() => Some((rule, "egress")),
            (None, Some(rule)) => Some((rule, "ingress")),
            _ => None,
        };
        if let Some((rule, missing)) = one_way {
            let message = format!("policy \"{}\" allows udp/{ROCE_V2_PORT} one way only", policy.name);
            self.findings.push(
                Finding::warning(Code::OneWayRoce, &rule.place, message)
                    .label(format!("no such rule in {missing}"))
                    .help("conntrack never sees Soft-RoCE as established: write the rule for both directions"),
            );
        }
    }

    /// Without a conntrack entry the answers to what is allowed are packets like any other: they need a rule of their own.
    fn untracked_both_ways(
        &mut self,
        policy: &HostPolicy,
        ingress: Option<&[EffectiveRule]>,
        egress: Option<&[EffectiveRule]>,
    ) {
        let allows = |rules: Option<&[EffectiveRule]>| {
            rules.unwrap_or_default().iter().find(|rule| rule.action == Action::Allow).map(|rule| rule.place.clone())
        };
        let one_way = match (allows(ingress), allows(egress)) {
            _ if policy.stage != Stage::Untracked => None,
            (Some(place), None) => Some((place, "egress")),
            (None, Some(place)) => Some((place, "ingress")),
            _ => None,
        };
        if let Some((place, missing)) = one_way {
            let message = format!("policy \"{}\" allows one way only, and its stage knows no flows", policy.name);
            self.findings.push(
                Finding::warning(Code::OneWayUntracked, &place, message)
                    .label(format!("no rule that allows in {missing}"))
                    .help("stage \"untracked\" makes no conntrack entry: write the rule for both directions"),
            );
        }
    }

    /// A set is expected, but what names it would let more through without than with it.
    fn must_be_there(&mut self, name: &str, place: &Place, expected: &Place) {
        let finding = Finding::error(Code::UnknownName, place, format!("there is no set \"{name}\""));
        self.findings.push(
            finding
                .label("without it more would get through")
                .related(expected, "expected here")
                .help("add a [[set]] with this name; [[expect]] stands in only where an empty set lets nobody through"),
        );
    }

    fn unknown_name<'n>(&mut self, kind: &str, name: &str, place: &Place, known: impl Iterator<Item = &'n str>) {
        let nearest = known
            .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
            .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 4)
            .min();
        let help = match nearest {
            Some((_, candidate)) => format!("did you mean \"{candidate}\"?"),
            None => format!("add a [[{kind}]] with this name"),
        };
        let finding = Finding::error(Code::UnknownName, place, format!("there is no {kind} \"{name}\""));
        self.findings.push(finding.label(format!("no such {kind}")).help(help));
    }
}

/// The entry for the cluster API: one rule per port, to the servers that the kubeconfig names by address. None at all while
/// nothing is known of them, since "no servers" must not become "any server".
fn cluster_api(entry: &Failsafe, facts: &Facts) -> Vec<EffectiveFailsafe> {
    let mut by_port: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for (address, port) in &facts.api_servers {
        by_port.entry(*port).or_default().push(*address);
    }
    let by_port = by_port.into_iter().enumerate();
    by_port
        .map(|(index, (port, servers))| {
            let to = Addresses::Literal(servers.into_iter().collect());
            let l4 = L4Match::Only([(Protocol::TCP, L4Detail::Ports(PortSet::single(port)))].into());
            effective_failsafe(entry, index, (Addresses::Any, to), l4)
        })
        .collect()
}

/// One rule of an entry, with the rules for its answers.
fn effective_failsafe(
    entry: &Failsafe,
    index: usize,
    (from, to): (Addresses, Addresses),
    l4: L4Match,
) -> EffectiveFailsafe {
    let answers = answers(&l4);
    let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
    let rule = EffectiveRule {
        id: RuleId { policy: format!("failsafe:{}", entry.name).into(), number },
        place: entry.place.clone(),
        action: Action::Allow,
        from,
        to,
        l4,
        source_ports: None,
        family: None,
        process: None,
        limit: None,
        log: None,
    };
    let reply = |(l4, source_ports)| {
        let (from, to) = (rule.to.clone(), rule.from.clone());
        EffectiveRule { from, to, l4, source_ports, ..rule.clone() }
    };
    EffectiveFailsafe {
        name: entry.name.clone(),
        direction: entry.direction,
        interfaces: entry.interfaces.clone(),
        replies: answers.into_iter().map(reply).collect(),
        rule,
    }
}

fn names_roce(l4: &L4Match) -> bool {
    let L4Match::Only(protocols) = l4 else { return false };
    matches!(protocols.get(&Protocol::UDP), Some(L4Detail::Ports(ports)) if ports.only() == Some(ROCE_V2_PORT))
}

fn is_empty(addresses: &Addresses) -> bool {
    match addresses {
        Addresses::Any => false,
        Addresses::Literal(set) | Addresses::Named(_, set) => set.is_empty(),
    }
}

/// Whether some packet can match: the families of addresses and `family` agree, and the transport part is not empty.
fn can_match(rule: &EffectiveRule) -> bool {
    let has = |addresses: &Addresses, family: Family| match addresses {
        Addresses::Any => true,
        Addresses::Literal(set) | Addresses::Named(_, set) => match family {
            Family::V4 => !set.v4.is_empty(),
            Family::V6 => !set.v6.is_empty(),
        },
    };
    let family = [Family::V4, Family::V6].into_iter().any(|family| {
        rule.family.is_none_or(|wanted| wanted == family) && has(&rule.from, family) && has(&rule.to, family)
    });
    let ports = rule.source_ports.as_ref().is_none_or(|ports| !ports.is_empty());
    family && ports && !rule.l4.is_empty()
}
