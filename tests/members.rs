//! Members of sets that go ahead of the documents: what may, that it comes to what the documents come to, and that the kernel has it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::daemon::{Node, management_link};
use lab::dice::Dice;
use lab::{isolated, sh};
use nodewall::compile::compile;
use nodewall::config::Config;
use nodewall::driver::{self, Error, Kernel, Netlink, Read, change_members};
use nodewall::net::facts::{Facts, Link};
use nodewall::net::interface::InterfaceName;
use nodewall::nft::ir::Ruleset;
use nodewall::nft::netlink::canonical_set;
use nodewall::policy::model::NamedSet;
use nodewall::policy::resolve::resolve;
use nodewall::reconcile::{
    Confirmation, Documents, Done, Effect, Emergency, Event, Phase, Report, State, Term, Texts, Trial, step,
};
use nodewall::source::{Sourced, decode_text};

/// A set as it stands in a file.
fn set(name: &str, members: &str) -> String {
    format!("[[set]]\nname = \"{name}\"\nlabels = {{ kind = \"{name}\" }}\ncidrs = [{members}]\n")
}

/// Rules over `a` and `b`, together, without each other, and by label; twelve sets in a row, which become a map; one that no rule has.
fn text(a: &str, b: &str) -> String {
    let many: Vec<String> = (0..12).map(|number| format!("m{number}")).collect();
    let mut text = set("a", a) + &set("b", b) + &set("unused", "\"10.3.0.0/16\"");
    for (number, name) in many.iter().enumerate() {
        text += &set(name, &format!("\"10.4.{number}.0/24\""));
    }
    text += "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\negress = [\n";
    text += "{ action = \"deny\", to = { sets = [\"a\"], except = { sets = [\"b\"] } } },\n";
    text += "{ action = \"allow\", to = { select = \"kind == 'b'\", cidrs = [\"192.0.2.1\"] } },\n]\ningress = [\n";
    text += "{ action = \"deny\", protocol = \"tcp\", from = { sets = [\"a\", \"b\"] } },\n";
    text += "{ action = \"log\", from = { sets = [\"a\"], local = true } },\n";
    text += "]\n[[policy]]\nname = \"q\"\ntier = \"baseline\"\norder = 1\ninterfaces = \"all()\"\ningress = [\n";
    for name in &many {
        writeln!(text, "{{ action = \"allow\", from = {{ sets = [\"{name}\"] }} }},").unwrap();
    }
    text + "]\n"
}

fn sourced(text: &str) -> Sourced {
    let sourced = decode_text("10-sets.toml", text);
    assert!(sourced.findings.is_empty(), "{:?}", sourced.findings);
    sourced
}

fn documents(text: &str, trial: Option<Trial>) -> Documents {
    let Sourced { policy, findings, kept, .. } = sourced(text);
    let texts = Texts { policy: kept, settings: Arc::from("") };
    Documents { policy, settings: Config::shipped().settings, findings, probes: Vec::new(), texts, trial }
}

fn facts(address: &str) -> Facts {
    let mut link = Link::named(2, InterfaceName::new("eth0").unwrap());
    (link.default_route, link.addresses) = (true, [address.parse().unwrap()].into());
    Facts { node: "n".to_owned(), links: [(2, link)].into(), ..Facts::default() }
}

/// The sets of these names, as a file with this text has them.
fn members(text: &str, names: &[&str]) -> Event {
    let sets = sourced(text).policy.sets;
    let sets: BTreeMap<String, NamedSet> = sets.into_iter().filter(|(name, _)| names.contains(&&**name)).collect();
    assert_eq!(sets.len(), names.len());
    Event::MembersChanged(sets)
}

fn done() -> Event {
    Event::Applied(Ok(Done { changes: 1 }))
}

/// What the whole text comes to.
fn wanted(text: &str, facts: &Facts) -> Ruleset {
    compile(&resolve(&sourced(text).policy, &Config::shipped().settings, facts).0)
}

const A: &str = r#""10.1.0.0/16", "10.2.3.0/24""#;
const B: &str = r#""10.2.0.0/16""#;
const MORE: &str = r#""10.1.0.0/16", "10.2.3.0/24", "10.9.0.0/30""#;

/// A state in which this text is in force.
fn in_force(text: &str) -> State {
    let mut state = State::default();
    for event in [
        Event::KernelSeen { table: false },
        Event::FactsChanged(facts("10.0.0.2/24")),
        Event::DocumentsLoaded(documents(text, None)),
        done(),
    ] {
        step(&mut state, event);
    }
    assert_eq!((state.phase(), state.generation()), (Phase::InForce, 1));
    state
}

/// What is to be sent: the ruleset and the names of its sets that change.
fn sent(effects: &[Effect]) -> Option<(&Arc<Ruleset>, &BTreeSet<String>)> {
    match effects {
        [Effect::ChangeMembers { ruleset, sets }] => Some((ruleset, sets)),
        [Effect::Reload] | [] => None,
        other => panic!("{other:?}"),
    }
}

/// The ruleset that is to be applied.
fn applied(effects: &[Effect]) -> Option<&Arc<Ruleset>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Apply(ruleset) => Some(ruleset),
        _ => None,
    })
}

#[test]
fn what_goes_ahead_is_what_the_documents_come_to() {
    let (mut state, new) = (in_force(&text(A, B)), text(MORE, B));
    let effects = step(&mut state, members(&new, &["a"]));
    let (ruleset, sets) = sent(&effects).unwrap();
    let names: Vec<&str> = sets.iter().map(String::as_str).collect();
    assert_eq!(names, ["a/b_4", "a/except/b_4", "a/host/local_4"]);
    assert_eq!(**ruleset, wanted(&new, &facts("10.0.0.2/24")));
    let effects = step(&mut state, done());
    assert!(matches!(effects[0], Effect::Report(Report::Members { generation: 1, changes: 1 })), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Keep(..))), "the documents are kept, not this");
    assert_eq!((state.phase(), state.generation()), (Phase::InForce, 1));

    // A link that changes its address meanwhile.
    let moved = facts("10.0.0.3/24");
    let effects = step(&mut state, Event::FactsChanged(moved.clone()));
    assert_eq!(**applied(&effects).unwrap(), wanted(&new, &moved));
    step(&mut state, done());

    // The documents follow: a generation with the same rules.
    let effects = step(&mut state, Event::DocumentsLoaded(documents(&new, None)));
    let ruleset = applied(&effects).expect("a look at the kernel");
    assert!(Arc::ptr_eq(ruleset, state.in_force().unwrap()), "the very same");
    let effects = step(&mut state, Event::Applied(Ok(Done { changes: 0 })));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Keep(..))), "{effects:?}");
    assert_eq!(state.generation(), 2);
}

#[test]
fn whatever_changes_goes_ahead_to_the_same_or_takes_the_long_way() {
    let mut dice = Dice::from_environment(0x3e3b_e125);
    let (mut ahead, mut long) = (0, 0);
    let list = |dice: &mut Dice| {
        let member = |dice: &mut Dice| match dice.below(40) {
            0 => format!("\"fd00:{}::/64\"", dice.below(4)),
            1 => format!("\"10.{}.3.4\"", dice.below(4)),
            _ => format!("\"10.{}.{}.0/24\"", dice.below(4), dice.below(6)),
        };
        let members: Vec<String> = (0..1 + dice.below(5)).map(|_| member(dice)).collect();
        members.join(", ")
    };
    for _ in 0..40 {
        let (before, after) = (text(&list(&mut dice), &list(&mut dice)), text(&list(&mut dice), &list(&mut dice)));
        let mut state = in_force(&before);
        let effects = step(&mut state, members(&after, &["a", "b"]));
        let new = wanted(&after, &facts("10.0.0.2/24"));
        match sent(&effects) {
            Some((ruleset, sets)) => {
                ahead += 1;
                assert_eq!(**ruleset, new, "from\n{before}\nto\n{after}");
                let old = wanted(&before, &facts("10.0.0.2/24"));
                let others = |ruleset: &Ruleset| -> Vec<_> {
                    let other = |(name, _): &(&String, _)| !sets.contains(*name);
                    ruleset.sets.iter().filter(other).map(|(name, set)| (name.clone(), set.clone())).collect()
                };
                assert_eq!(others(&old), others(&new), "only the sets that are named");
            }
            None if effects.is_empty() => assert_eq!(**state.in_force().unwrap(), new),
            None => long += 1,
        }
    }
    assert!(ahead > 4 && long > 4, "{ahead} ahead, {long} the long way");
}

#[test]
fn what_takes_more_than_elements_takes_the_long_way() {
    let (old, reload) = (text(A, B), [Effect::Reload]);
    let away = |old: &str, new: &str, names: &[&str]| step(&mut in_force(old), members(new, names));
    for (why, a) in
        [("hosts only", r#""10.1.0.1""#), ("nothing", ""), ("another family", r#""10.1.0.0/16", "fd00::/8""#)]
    {
        assert_eq!(away(&old, &text(a, B), &["a"]), reload, "{why}");
    }
    assert_eq!(away(&old, &old.replace("10.4.7.0/24", "10.5.0.0/16"), &["m7"]), reload, "a set that is part of a map");
    assert_eq!(away(&old, &old.replace("10.3.0.0/16", "10.6.0.0/16"), &["unused"]), [], "a set that no rule has");
    let labelled = old.replace("kind = \"a\"", "kind = \"b\"");
    assert_eq!(away(&old, &labelled, &["a"]), reload, "other labels");
    let Event::MembersChanged(mut sets) = members(&text(MORE, B), &["a"]) else { panic!() };
    sets.values_mut().for_each(|set| set.place.file = "20-other.toml".into());
    assert_eq!(step(&mut in_force(&old), Event::MembersChanged(sets)), reload, "a set of another file");
}

#[test]
fn nothing_goes_ahead_of_a_trial_an_emergency_or_what_somebody_went_back_to() {
    let (old, new) = (text(A, B), text(MORE, B));
    let reload = [Effect::Reload];
    let mut state = in_force(&old);
    let emergency = Some(Emergency::Panic { by: "me".to_owned(), reason: String::new() });
    step(&mut state, Event::EmergencyRequested { emergency, by: "me".to_owned() });
    assert_eq!(step(&mut state, members(&new, &["a"])), [], "it waits for the kernel");
    assert!(step(&mut state, done()).contains(&Effect::Reload));
    assert_eq!(step(&mut state, members(&new, &["a"])), reload);

    let mut state = in_force(&old);
    let elsewhere = Some("/elsewhere".to_owned());
    step(&mut state, Event::ApplyRequested { documents: documents(&text(B, B), None), elsewhere });
    step(&mut state, done());
    assert_eq!(
        step(&mut state, members(&new, &["a"])),
        reload,
        "something else is in force than the documents in place"
    );

    let mut state = in_force(&old);
    let term = Term { until: 1_000_000, period: 60_000 };
    let trial = Some(Trial { term, confirmation: Confirmation::Operator });
    step(&mut state, Event::DocumentsLoaded(documents(&text(B, A), trial)));
    assert!(state.record().pending.is_some());
    assert_eq!(step(&mut state, members(&new, &["a"])), reload);

    let mut state = in_force(&old);
    step(&mut state, Event::Drifted);
    assert_eq!(step(&mut state, members(&new, &["a"])), [], "it waits for the repair");
    let effects = step(&mut state, done());
    assert!(effects.iter().any(|effect| matches!(effect, Effect::ChangeMembers { .. })));
}

#[test]
fn changes_that_come_while_one_is_on_its_way_go_together_behind_it() {
    let mut state = in_force(&text(A, B));
    assert!(sent(&step(&mut state, members(&text(MORE, B), &["a"]))).is_some());
    assert_eq!(step(&mut state, members(&text(B, B), &["a"])), []);
    assert_eq!(step(&mut state, members(&text(B, MORE), &["b"])), []);
    let effects = step(&mut state, done());
    let last = effects.last().map(std::slice::from_ref).unwrap_or_default();
    assert_eq!(**sent(last).unwrap().0, wanted(&text(B, MORE), &facts("10.0.0.2/24")));
}

#[test]
fn a_change_that_the_kernel_refuses_is_tried_again_as_a_whole() {
    let (mut state, new) = (in_force(&text(A, B)), text(MORE, B));
    step(&mut state, members(&new, &["a"]));
    let effects = step(&mut state, Event::Applied(Err("no".to_owned())));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Retry(_))), "{effects:?}");
    assert_eq!(state.phase(), Phase::Degraded);
    let effects = step(&mut state, Event::RetryDue);
    let [Effect::Apply(ruleset)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(**ruleset, wanted(&new, &facts("10.0.0.2/24")));
}

#[test]
fn what_somebody_went_back_to_holds_when_the_documents_follow() {
    let (old, new) = (text(A, B), text(MORE, B));
    let mut state = in_force(&old);
    step(&mut state, members(&new, &["a"]));
    step(&mut state, done());
    let elsewhere = Some("/elsewhere".to_owned());
    step(&mut state, Event::ApplyRequested { documents: documents(&text(B, B), None), elsewhere });
    step(&mut state, done());
    let there = wanted(&text(B, B), &facts("10.0.0.2/24"));
    assert_eq!(**state.in_force().unwrap(), there);
    for _ in 0..2 {
        step(&mut state, Event::DocumentsLoaded(documents(&new, None)));
        step(&mut state, Event::Applied(Ok(Done { changes: 0 })));
        assert_eq!(**state.in_force().unwrap(), there, "these documents were dealt with");
    }
    step(&mut state, Event::DocumentsLoaded(documents(&old, None)));
    step(&mut state, done());
    assert_eq!(**state.in_force().unwrap(), wanted(&old, &facts("10.0.0.2/24")));
}

/// The rules of a text in the kernel, and what the kernel is known to have.
fn load(kernel: &mut Netlink, text: &str) -> driver::Applied {
    driver::apply(kernel, &wanted(text, &facts("10.0.0.2/24")), None).unwrap()
}

#[test]
fn the_kernel_has_the_new_members_and_everything_else_as_it_was() {
    isolated("the_kernel_has_the_new_members_and_everything_else_as_it_was", || {
        let mut kernel = Netlink::open().unwrap();
        let mut applied = load(&mut kernel, &text(A, B));
        let handles = applied.loaded.rules.clone();
        let steps = [
            (MORE, B),
            // Ranges that grow together, and come apart again.
            (r#""10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16""#, B),
            (r#""10.1.0.0/16", "10.3.0.0/16""#, r#""10.2.0.0/17", "255.255.255.0/24""#),
            (A, B),
        ];
        for (a, b) in steps {
            let new = wanted(&text(a, b), &facts("10.0.0.2/24"));
            let differ = |(name, set): (&String, &nodewall::nft::ir::Set)| {
                (applied.loaded.ruleset.sets.get(name) != Some(&canonical_set(set))).then(|| name.clone())
            };
            let names: BTreeSet<String> = new.sets.iter().filter_map(differ).collect();
            // Somebody else's transaction does not matter.
            sh("nft add table ip elsewhere");
            let changes = change_members(&mut kernel, &new, &names, &mut applied.loaded).unwrap();
            assert!(changes > 0);
            let there = kernel.load(&Read::Everything).unwrap();
            assert_eq!(there.ruleset, applied.loaded.ruleset, "{a} {b}");
            assert_eq!(there.rules.keys().collect::<Vec<_>>(), handles.keys().collect::<Vec<_>>());
            assert!(there.rules.values().flatten().zip(handles.values().flatten()).all(|(a, b)| a.handle == b.handle));
            assert_eq!(driver::apply(&mut kernel, &new, None).unwrap().changes, 0, "nothing is left to do");
        }
    });
}

#[test]
fn a_set_that_somebody_else_changed_is_not_taken_for_what_it_was() {
    isolated("a_set_that_somebody_else_changed_is_not_taken_for_what_it_was", || {
        let mut kernel = Netlink::open().unwrap();
        let mut applied = load(&mut kernel, &text(MORE, B));
        sh("nft delete element inet nodewall a/b_4 { 10.9.0.0/30 }");
        let new = wanted(&text(A, B), &facts("10.0.0.2/24"));
        let names = ["a/b_4".to_owned()].into();
        let error = change_members(&mut kernel, &new, &names, &mut applied.loaded).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        let error = change_members(&mut kernel, &new, &["nope".to_owned()].into(), &mut applied.loaded).unwrap_err();
        assert!(matches!(error, Error::Differs(_)), "{error}");
        assert!(driver::apply(&mut kernel, &new, Some(&applied.loaded)).unwrap().changes > 0);
    });
}

#[test]
fn a_set_that_is_written_is_in_the_kernel_before_its_generation() {
    isolated("a_set_that_is_written_is_in_the_kernel_before_its_generation", || {
        management_link();
        let policy = "[[policy]]\nname = \"p\"\norder = 1\ninterfaces = \"all()\"\ningress = [\n\
                      { action = \"allow\", from = { sets = [\"a\"] }, protocol = \"tcp\", ports = [22] },\n]\n";
        let mut node = Node::new(&[("10-sets.toml", &set("a", A)), ("20-policy.toml", policy)]);
        node.run();
        let before = node.until("the first generation", |_, status| status["generation"] == 1);
        node.write("policy.d/10-sets.toml.new", &set("a", MORE));
        std::fs::rename(node.path("policy.d/10-sets.toml.new"), node.path("policy.d/10-sets.toml")).unwrap();
        let start = Instant::now();
        while !sh("nft list set inet nodewall a_4").contains("10.9.0.0/30") {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
        let after = node.until("the documents that follow", |_, status| status["generation"] == 2);
        assert_ne!(before["hash"], after["hash"]);
        assert_eq!((&after["in_sync"], &after["state"]), (&true.into(), &"in-force".into()));
        assert_eq!(after["repairs"], before["repairs"], "what we do ourselves is no drift");
        // Written in place, and something else with it.
        node.write("policy.d/10-sets.toml", &(set("a", A) + &set("b", B)));
        node.until("other documents", |_, status| status["generation"] == 3);
        assert!(!sh("nft list set inet nodewall a_4").contains("10.9.0.0/30"));
    });
}
