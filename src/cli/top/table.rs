//! The tables of `top`: which rows a page has, in which order, with which figures.

use std::cmp::Ordering;
use std::time::Duration;

use super::model::{Class, Counter, DEFAULTS, Model, Party, RuleKey, Seen, Three, Unit, add_up};

/// A page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Page {
    Policies,
    Interfaces,
    Peers,
    Policy(String),
    Interface(String),
    Peer(String),
    Rule(RuleKey),
}

/// What rows are sorted by. Of equal rows the name decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Sort {
    /// How much a second, all together.
    #[default]
    Rate,
    /// What is denied, or would be, a second; then since the start.
    Denied,
    /// Since the start, all together.
    Sum,
    /// The name.
    Name,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Denied,
            Self::Denied => Self::Sum,
            Self::Sum => Self::Name,
            Self::Name => Self::Rate,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Denied => "denied",
            Self::Sum => "sum",
            Self::Name => "name",
        }
    }
}

/// How to look at a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) sort: Sort,
    pub(super) unit: Unit,
    /// Only rows with this in name or note; capitals do not matter.
    pub(super) filter: String,
}

/// How a row stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tone {
    /// Something is denied just now.
    Denied,
    /// Something would be denied without audit mode.
    Would,
    /// Something goes on.
    Busy,
    /// Nothing goes on.
    Quiet,
}

/// A row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Where Enter leads.
    pub(super) leads: Option<Page>,
    pub(super) name: String,
    pub(super) note: String,
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// Rows under one head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Section {
    /// What the names are.
    pub(super) head: &'static str,
    /// What the notes are.
    pub(super) note: &'static str,
    /// What the cells are.
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Row>,
}

const RATES_AND_SUMS: &[&str] = &["ALLOW/s", "DENY/s", "WOULD/s", "ALLOWED", "DENIED", "WOULD"];
const OF_RULES: &[&str] = &["PACKETS/s", "BYTES/s", "PACKETS", "BYTES"];

/// A row with the figures that it is sorted by.
struct Figures {
    row: Row,
    rates: Three<f64>,
    sums: Three<u64>,
}

/// The sections of a page; those of a rule are its counters.
pub(super) fn sections(model: &Model, page: &Page, look: &Look, now: Duration) -> Vec<Section> {
    let of_party = |party: Option<&Party>| party.map(|party| parts(party, look, now)).unwrap_or_default();
    match page {
        Page::Policies => vec![policies(model, look)],
        Page::Interfaces => {
            let rows = model.interfaces.iter().map(|(name, party)| {
                of_seen(name.clone(), party.note.clone(), Some(Page::Interface(name.clone())), &party.seen, look, now)
            });
            vec![section("INTERFACE", "ROLE", rows.collect(), look)]
        }
        Page::Peers => {
            let rows = model.peers.iter().map(|(name, party)| {
                of_seen(name.clone(), party.note.clone(), Some(Page::Peer(name.clone())), &party.seen, look, now)
            });
            let mut rows: Vec<Figures> = rows.collect();
            if model.peers_left_out > 0 {
                let name = format!("({} earlier ones)", model.peers_left_out);
                rows.push(of_seen(name, String::new(), None, &model.other_peers, look, now));
            }
            vec![section("PEER", "NAMES", rows, look)]
        }
        Page::Policy(name) => {
            let rows = model.rules_of(name).map(|(rule, counter)| of_rule(rule, counter)).collect();
            vec![Section { columns: OF_RULES, ..section("RULE", "VERDICT, PLACE", rows, look) }]
        }
        Page::Interface(name) => of_party(model.interfaces.get(name)),
        Page::Peer(name) => of_party(model.peers.get(name)),
        Page::Rule(rule) => {
            let rows = model.counters_of(rule).map(|counter| of_rule(rule, counter)).collect();
            vec![Section { columns: OF_RULES, ..section("RULE", "VERDICT, PLACE", rows, &Look::default()) }]
        }
    }
}

fn policies(model: &Model, look: &Look) -> Section {
    let known = model.policies.iter().map(|policy| {
        let audit = if policy.mode == "audit" { "audit, " } else { "" };
        (policy.name.clone(), format!("{audit}{}, {}", policy.tier, policy.interfaces.join(" ")))
    });
    let mut names: Vec<(String, String)> = known.collect();
    // Failsafe entries and defaults are no policies, and count as well.
    let mut others: Vec<&str> = model.rules.keys().map(|(rule, _)| rule.policy()).collect();
    others.dedup();
    for name in others {
        if !names.iter().any(|(known, _)| known == name) {
            names.push((name.to_owned(), if name == DEFAULTS { "" } else { "failsafe" }.to_owned()));
        }
    }
    let rows = names.into_iter().map(|(name, note)| {
        let (rates, sums) = add_up(model.rules_of(&name).map(|(_, counter)| counter));
        let note = note.trim_end_matches([',', ' ']).to_owned();
        figures(name.clone(), note, Some(Page::Policy(name)), rates, sums)
    });
    section("POLICY", "TIER, INTERFACES", rows.collect(), look)
}

/// The services and rules of a peer or an interface.
fn parts(party: &Party, look: &Look, now: Duration) -> Vec<Section> {
    let services =
        party.services.iter().map(|(name, seen)| of_seen(name.clone(), String::new(), None, seen, look, now));
    let rules = party.rules.iter().map(|(rule, seen)| {
        of_seen(rule.rule.clone(), rule.place.clone(), Some(Page::Rule(rule.clone())), seen, look, now)
    });
    let others = |seen: &Seen| {
        let any = seen.sums(Unit::Both).iter().any(|sum| *sum > 0);
        any.then(|| of_seen("(others)".to_owned(), String::new(), None, seen, look, now))
    };
    vec![
        section("SERVICE", "", services.chain(others(&party.other_services)).collect(), look),
        section("RULE", "PLACE", rules.chain(others(&party.other_rules)).collect(), look),
    ]
}

fn of_seen(name: String, note: String, leads: Option<Page>, seen: &Seen, look: &Look, now: Duration) -> Figures {
    figures(name, note, leads, seen.rates(look.unit, now), seen.sums(look.unit))
}

fn figures(name: String, note: String, leads: Option<Page>, rates: Three<f64>, sums: Three<u64>) -> Figures {
    let cells = rates.iter().map(|rate| rate_words(*rate)).chain(sums.iter().map(|sum| sum_words(*sum))).collect();
    Figures { row: Row { leads, name, note, cells, tone: tone(rates) }, rates, sums }
}

fn of_rule(rule: &RuleKey, counter: &Counter) -> Figures {
    let cells = vec![
        rate_words(counter.rates.0),
        rate_words(counter.rates.1),
        sum_words(counter.sums.0),
        sum_words(counter.sums.1),
    ];
    let note = format!("{} {}", counter.verdict, rule.place).trim_end().to_owned();
    let (mut rates, mut sums) = add_up(std::iter::once(counter));
    if Class::of(&counter.verdict).is_none() {
        // It decides nothing, and is sorted like what is allowed.
        (rates[0], sums[0]) = (counter.rates.0, counter.sums.0);
    }
    let row = Row { leads: Some(Page::Rule(rule.clone())), name: rule.rule.clone(), note, cells, tone: tone(rates) };
    Figures { row, rates, sums }
}

fn tone([allowed, denied, would]: Three<f64>) -> Tone {
    match (denied > 0.0, would > 0.0, allowed > 0.0) {
        (true, ..) => Tone::Denied,
        (_, true, _) => Tone::Would,
        (_, _, true) => Tone::Busy,
        _ => Tone::Quiet,
    }
}

fn section(head: &'static str, note: &'static str, mut rows: Vec<Figures>, look: &Look) -> Section {
    let filter = look.filter.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&filter);
    rows.retain(|figures| has(&figures.row.name) || has(&figures.row.note));
    rows.sort_by(|one, two| compare(one, two, look.sort));
    Section { head, note, columns: RATES_AND_SUMS, rows: rows.into_iter().map(|figures| figures.row).collect() }
}

fn compare(one: &Figures, two: &Figures, sort: Sort) -> Ordering {
    let more = |one: f64, two: f64| two.total_cmp(&one);
    let rate = |figures: &Figures| figures.rates.iter().sum::<f64>();
    let sum = |figures: &Figures| figures.sums.iter().fold(0_u64, |all, sum| all.saturating_add(*sum));
    let denied = |figures: &Figures| figures.rates[1] + figures.rates[2];
    let denials = |figures: &Figures| figures.sums[1].saturating_add(figures.sums[2]);
    match sort {
        Sort::Rate => more(rate(one), rate(two)).then_with(|| sum(two).cmp(&sum(one))),
        Sort::Denied => more(denied(one), denied(two)).then_with(|| denials(two).cmp(&denials(one))),
        Sort::Sum => sum(two).cmp(&sum(one)),
        Sort::Name => Ordering::Equal,
    }
    .then_with(|| one.row.name.cmp(&two.row.name))
    .then_with(|| one.row.note.cmp(&two.row.note))
}

/// "0", "0.4", "12", "1.2k", "3.4M".
pub(super) fn rate_words(rate: f64) -> String {
    match rate {
        rate if rate <= 0.0 => "0".to_owned(),
        rate if rate < 0.05 => "<0.1".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}"),
        rate => scaled(rate),
    }
}

/// "0", "999", "12.3k", "3.4M".
pub(super) fn sum_words(sum: u64) -> String {
    scaled(sum as f64)
}

fn scaled(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if unit.is_empty() && value < 9_999.5 {
            return format!("{value:.0}");
        }
        if !unit.is_empty() && value < 999.95 {
            return format!("{value:.1}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::model::tests::{at, event, of, status};
    use super::*;

    fn rows(model: &Model, page: &Page, look: &Look) -> Vec<String> {
        let sections = sections(model, page, look, at(5));
        let rows = sections.iter().flat_map(|section| &section.rows);
        rows.map(|row| format!("{} | {} | {}", row.name, row.note, row.cells.join(" "))).collect()
    }

    fn model() -> Model {
        let mut model = Model::default();
        let before = ["default of mgmt ingress - denied 0", "failsafe:ssh#1 n.toml:3 allowed 0"];
        model.status(at(0), &status(&before));
        let after = [
            "default of mgmt ingress - denied 30000",
            "failsafe:ssh#1 n.toml:3 allowed 1",
            "kubelet#1 20-kubelet.toml:13 allowed 100",
            "kubelet#2 20-kubelet.toml:14 denied 2",
            "nccl#1 30-nccl.toml:9 would-deny 6",
            "nccl#2 30-nccl.toml:10 logged 8",
        ];
        model.status(at(2), &status(&after));
        for second in 0..5 {
            model.line(at(second), &of(event("denied", "packet", "10.0.7.9", 10250)));
            model.line(at(second), &of(event("allowed", "connection", "10.0.7.10", 22)));
            model.line(at(second), &of(event("allowed", "connection", "10.0.7.10", 22)));
        }
        model
    }

    #[test]
    fn policies_have_the_rates_of_their_rules() {
        let look = Look::default();
        assert_eq!(
            rows(&model(), &Page::Policies, &look),
            [
                "(no rule: defaults) |  | 0 15.0k 0 0 30.0k 0",
                "kubelet | platform, eth0 | 50 1.0 0 100 2 0",
                "nccl | audit, platform, eth0 | 0 0 3.0 0 0 6",
                "failsafe:ssh | failsafe | 0.5 0 0 1 0 0",
            ]
        );
        assert_eq!(
            rows(&model(), &Page::Policy("nccl".into()), &look),
            ["nccl#2 | logged 30-nccl.toml:10 | 4.0 240 8 480", "nccl#1 | would-deny 30-nccl.toml:9 | 3.0 180 6 360"]
        );
        let rule = RuleKey { rule: "kubelet#2".into(), place: "20-kubelet.toml:14".into() };
        assert_eq!(rows(&model(), &Page::Rule(rule), &look), ["kubelet#2 | denied 20-kubelet.toml:14 | 1.0 60 2 120"]);
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let names = |look: Look| {
            let rows = rows(&model(), &Page::Policies, &look);
            rows.iter().map(|row| row.split(" | ").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for (sort, expected) in [
            (Sort::Denied, ["(no rule: defaults)", "nccl", "kubelet", "failsafe:ssh"]),
            (Sort::Sum, ["(no rule: defaults)", "kubelet", "nccl", "failsafe:ssh"]),
            (Sort::Name, ["(no rule: defaults)", "failsafe:ssh", "kubelet", "nccl"]),
        ] {
            assert_eq!(names(Look { sort, ..Look::default() }), expected, "{sort:?}");
        }
        assert_eq!(names(Look { filter: "NCC".into(), ..Look::default() }), ["nccl"]);
        assert_eq!(names(Look { filter: "audit".into(), ..Look::default() }), ["nccl"]);
        assert_eq!(names(Look { filter: "x".into(), ..Look::default() }), [""; 0]);
    }

    #[test]
    fn peers_have_services_and_rules_and_figures_of_what_is_asked_for() {
        let all = Look::default();
        assert_eq!(
            rows(&model(), &Page::Peers, &all),
            ["10.0.7.10 |  | 2.0 0 0 10 0 0", "10.0.7.9 |  | 0 1.0 0 0 5 0"]
        );
        let packets = Look { unit: Unit::Packets, ..Look::default() };
        assert_eq!(rows(&model(), &Page::Interfaces, &packets), ["eth0 | mgmt | 0 1.0 0 0 5 0"]);
        assert_eq!(
            rows(&model(), &Page::Peer("10.0.7.9".into()), &all),
            ["in tcp 10250 |  | 0 1.0 0 0 5 0", "kubelet#2 | 20-kubelet.toml:14 | 0 1.0 0 0 5 0"]
        );
        assert_eq!(rows(&model(), &Page::Peer("10.9.9.9".into()), &all), [""; 0]);
    }

    #[test]
    fn numbers_are_short() {
        for (rate, words) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.05, "0.1"),
            (9.94, "9.9"),
            (9.96, "10"),
            (9_999.0, "9999"),
            (10_000.0, "10.0k"),
            (999_960.0, "1.0M"),
            (1e18, "1000P"),
        ] {
            assert_eq!(rate_words(rate), words);
        }
        assert_eq!(sum_words(u64::MAX), "18447P");
    }
}
