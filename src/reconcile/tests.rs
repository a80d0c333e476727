//! The state machine, event by event.

#![allow(clippy::unwrap_used, clippy::panic)]

mod found;
pub(crate) mod sequences;
pub(crate) mod world;

use super::*;
use crate::net::facts::Link;
use crate::net::interface::InterfaceName;
use crate::policy::model::{HostPolicy, Stage, Tier, TierDefault};
use crate::policy::selector::Selector;
use crate::policy::settings::LogSettings;
use crate::text::finding::Code;

fn place(file: &str) -> Place {
    Place { line: 3, column: 1, ..Place::file(file) }
}

/// Settings without a way in.
pub(crate) fn settings() -> NodeSettings {
    NodeSettings {
        node: None,
        mode: Mode::Enforce,
        labels: Default::default(),
        failsafe: Vec::new(),
        defaults: Default::default(),
        early: std::collections::BTreeSet::new(),
        accept_mark: 0x10,
        drop_invalid: true,
        revoke: false,
        log: LogSettings { group: 5, denied: false, rate: 1, burst: 1 },
    }
}

/// Documents with one policy of this name that denies everything on the interfaces of a role.
fn documents(name: &str) -> Documents {
    let mut policy = Policy::with_builtin_tiers();
    let tier = Tier { name: name.into(), order: 1, default: TierDefault::Deny, place: place("10.toml") };
    policy.tiers.insert(name.to_owned(), tier);
    policy.policies.push(HostPolicy {
        name: name.to_owned(),
        tier: name.to_owned(),
        order: None,
        interfaces: Selector::All,
        nodes: Selector::All,
        stage: Stage::Host,
        mode: Mode::Enforce,
        expires: None,
        acknowledges_bypass: false,
        ingress: Some(Vec::new()),
        egress: None,
        place: place("10.toml"),
        tier_place: place("10.toml"),
    });
    let policy_texts = [(name.to_owned(), Arc::from(name))].into();
    let texts = Texts { policy: policy_texts, settings: Arc::from("") };
    Documents { policy, settings: settings(), findings: Vec::new(), probes: Vec::new(), texts, trial: None }
}

fn bad(name: &str) -> Documents {
    let finding = Finding::error(Code::UnknownKey, &place("20.toml"), "\"x\" is not a key");
    let mut documents = documents(name);
    documents.texts.settings = Arc::from("bad");
    Documents { findings: vec![finding], ..documents }
}

fn facts(names: &[&str]) -> Facts {
    let link = |(index, name): (usize, &&str)| {
        (index as u32 + 1, Link::named(index as u32 + 1, InterfaceName::new(name).unwrap()))
    };
    Facts { links: names.iter().enumerate().map(link).collect(), ..Facts::default() }
}

/// The effects in one word each.
fn words(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        // What is kept has tests of its own.
        .filter(|effect| !matches!(effect, Effect::Keep(..)))
        .map(|effect| match effect {
            Effect::Keep(..) => String::new(),
            Effect::Deadline(after) => format!("deadline {after:?}"),
            Effect::BreakGlass(after) => format!("break-glass {after:?}"),
            Effect::SelfTest { after, .. } => format!("probe {after:?}"),
            Effect::Expiry(at) => format!("expiry {at:?}"),
            Effect::Report(Report::Expired { policy, .. }) => format!("expired {policy}"),
            Effect::Answer(Ok(_)) => "done".to_owned(),
            Effect::Answer(Err(why)) => format!("refused: {why}"),
            Effect::Report(Report::Unconfirmed { generation, .. }) => format!("unconfirmed {generation}"),
            Effect::Report(Report::Held { until }) => format!("held until {until}"),
            Effect::Report(Report::SelfTest { generation, failing }) => format!("{generation} fails: {failing}"),
            Effect::Report(Report::Confirmed { generation, .. }) => format!("confirmed {generation}"),
            Effect::Report(Report::RolledBack { to, .. }) => format!("back to {to}"),
            Effect::Report(Report::Emergency { on, .. }) => format!("emergency {on}"),
            Effect::Report(Report::NotKept { .. }) => "not kept".to_owned(),
            Effect::Apply(_) => "apply".to_owned(),
            Effect::ChangeMembers { sets, .. } => format!("members {sets:?}"),
            Effect::Reload => "reload".to_owned(),
            Effect::Report(Report::Members { changes, .. }) => format!("members, {changes} changes"),
            Effect::Repair(_) => "repair".to_owned(),
            Effect::Look => "look".to_owned(),
            Effect::Retry(after) => format!("retry {after:?}"),
            Effect::ForgetRetry => "forget".to_owned(),
            Effect::Ready => "ready".to_owned(),
            Effect::Report(Report::InForce { generation, lockdown, .. }) => {
                format!("{} {generation}", if *lockdown { "lockdown" } else { "in-force" })
            }
            Effect::Report(Report::Refused { instead, .. }) => format!("refused, {instead:?}"),
            Effect::Report(Report::Warned { .. }) => "warned".to_owned(),
            Effect::Report(Report::Failed { attempt, .. }) => format!("failed {attempt}"),
            Effect::Report(Report::Interface { name, role, .. }) => format!("{name} is {role}"),
            Effect::Report(Report::InterfaceGone { name }) => format!("{name} is gone"),
        })
        .collect()
}

#[track_caller]
fn check(state: &mut State, event: Event, expected: &[&str], phase: Phase) {
    let effects = step(state, event);
    assert_eq!(words(&effects), expected);
    assert_eq!(state.phase(), phase, "{:?}", state.reason());
}

fn done() -> Event {
    Event::Applied(Ok(Done { changes: 7 }))
}

/// A state in which the policy "a" is in force on eth0.
fn in_force() -> State {
    let mut state = State::default();
    for event in [
        Event::KernelSeen { table: false },
        Event::FactsChanged(facts(&["eth0"])),
        Event::DocumentsLoaded(documents("a")),
        done(),
    ] {
        step(&mut state, event);
    }
    assert_eq!(state.phase(), Phase::InForce);
    state
}

#[test]
fn nothing_is_touched_before_everything_is_known_in_whatever_order_it_comes() {
    let events = [
        Event::KernelSeen { table: true },
        Event::FactsChanged(facts(&["eth0"])),
        Event::DocumentsLoaded(documents("a")),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut state = State::default();
        check(&mut state, events[order[0]].clone(), &[], Phase::Waiting);
        check(&mut state, events[order[1]].clone(), &[], Phase::Waiting);
        check(&mut state, events[order[2]].clone(), &["apply"], Phase::Applying);
        check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
    }
}

#[test]
fn facts_that_are_the_same_are_no_work() {
    let mut state = in_force();
    check(&mut state, Event::FactsChanged(facts(&["eth0"])), &[], Phase::InForce);
    check(&mut state, Event::FactsChanged(facts(&["eth0", "cali1"])), &["cali1 is pod", "apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
    check(&mut state, Event::FactsChanged(facts(&["eth0"])), &["cali1 is gone", "apply"], Phase::Applying);
}

#[test]
fn one_transaction_at_a_time_and_the_newest_afterwards() {
    let mut state = in_force();
    check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Applying);
    check(&mut state, Event::FactsChanged(facts(&["eth0", "a1", "a2"])), &["a2 is unknown"], Phase::Applying);
    check(
        &mut state,
        Event::FactsChanged(facts(&["eth0", "a1", "a3"])),
        &["a3 is unknown", "a2 is gone"],
        Phase::Applying,
    );
    check(&mut state, done(), &["in-force 1", "apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
    assert_eq!(state.summary().unwrap().interfaces.len(), 3);
}

#[test]
fn a_reload_looks_at_the_kernel_even_when_nothing_changed() {
    let mut state = in_force();
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
    assert_eq!(state.generation(), 1);
}

#[test]
fn bad_documents_leave_the_last_good_ones_in_force_which_follow_the_links() {
    let mut state = in_force();
    check(&mut state, Event::DocumentsLoaded(bad("b")), &["refused, LastGood", "apply"], Phase::Degraded);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::Degraded);
    assert_eq!(state.reason().as_deref(), Some("20.toml:3:1: \"x\" is not a key; the last good policy stays in force"));
    check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Degraded);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    assert_eq!(state.summary().unwrap().policies[0].name, "a");
    check(&mut state, Event::DocumentsLoaded(documents("b")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
}

#[test]
fn bad_documents_at_the_first_start_lock_down_or_keep_what_is_there() {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Lockdown", "apply"], Phase::Degraded);
    check(&mut state, done(), &["lockdown 0", "forget", "ready"], Phase::Degraded);
    assert!(state.summary().unwrap().policies.is_empty());
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Degraded);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);

    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: true });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Found", "ready"], Phase::Degraded);
    check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &[], Phase::Degraded);
    assert!(state.reason().unwrap().ends_with("; the table found in the kernel stays in force"));
}

#[test]
fn a_failed_apply_is_tried_again_ever_more_slowly_and_what_is_in_force_stays() {
    let mut state = in_force();
    let refused = || Event::Applied(Err("the kernel refused chain input: EBUSY".to_owned()));
    step(&mut state, Event::DocumentsLoaded(documents("b")));
    for (attempt, pause) in
        [(1, "100ms"), (2, "200ms"), (3, "400ms"), (4, "800ms"), (5, "1.6s"), (6, "3.2s"), (7, "5s"), (8, "5s")]
    {
        let (failed, retry) = (format!("failed {attempt}"), format!("retry {pause}"));
        check(&mut state, refused(), &[&failed, &retry, "ready"], Phase::Degraded);
        check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
    }
    assert_eq!(state.summary().unwrap().policies[0].name, "a");
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
}

#[test]
fn what_others_changed_is_repaired_without_a_new_generation() {
    let mut state = in_force();
    check(&mut state, Event::Drifted, &["repair"], Phase::InForce);
    check(&mut state, Event::Drifted, &[], Phase::InForce);
    check(&mut state, done(), &["forget", "ready", "repair"], Phase::InForce);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
    assert_eq!(state.generation(), 1);
    // While something is on its way, it goes first.
    check(&mut state, Event::DocumentsLoaded(documents("b")), &["apply"], Phase::Applying);
    check(&mut state, Event::Drifted, &[], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "ready", "repair"], Phase::InForce);
    check(&mut state, Event::DocumentsLoaded(documents("c")), &[], Phase::InForce);
    check(&mut state, done(), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::InForce);
}

#[test]
fn what_is_not_ours_by_doing_is_not_repaired() {
    let mut state = State::default();
    check(&mut state, Event::Drifted, &[], Phase::Waiting);
    step(&mut state, Event::KernelSeen { table: true });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    step(&mut state, Event::DocumentsLoaded(bad("a")));
    check(&mut state, Event::Drifted, &["look"], Phase::Degraded);
    check(&mut state, Event::KernelSeen { table: true }, &[], Phase::Degraded);
    // The first apply is on its way, and fails: there is nothing to come back to.
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, Event::Drifted, &[], Phase::Applying);
    let refused = Event::Applied(Err("no".to_owned()));
    check(&mut state, refused, &["failed 1", "retry 100ms", "ready"], Phase::Degraded);
}

#[test]
fn while_the_kernel_refuses_the_newest_what_is_in_force_is_repaired() {
    let mut state = in_force();
    let old = Arc::clone(state.in_force().unwrap());
    step(&mut state, Event::DocumentsLoaded(documents("b")));
    step(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])));
    step(&mut state, Event::Applied(Err("no".to_owned())));
    step(&mut state, Event::Applied(Err("no".to_owned())));
    assert_eq!(step(&mut state, Event::Drifted), [Effect::Repair(Arc::clone(&old))]);
    check(&mut state, done(), &["ready"], Phase::Degraded);
    assert_eq!(state.in_force(), Some(&old));
    assert_eq!(state.generation(), 1);
    check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
    // A repair that fails is tried again.
    check(&mut state, Event::Drifted, &["repair"], Phase::InForce);
    let refused = Event::Applied(Err("no".to_owned()));
    check(&mut state, refused, &["failed 1", "retry 100ms", "ready"], Phase::Degraded);
    check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
}

#[test]
fn a_first_apply_that_fails_locks_down_and_goes_on_trying() {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    step(&mut state, Event::DocumentsLoaded(documents("a")));
    let refused = || Event::Applied(Err("no".to_owned()));
    check(&mut state, refused(), &["failed 1", "retry 100ms", "apply"], Phase::Degraded);
    check(&mut state, done(), &["lockdown 0", "ready"], Phase::Degraded);
    check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
    check(&mut state, refused(), &["failed 2", "retry 200ms", "ready"], Phase::Degraded);
    check(&mut state, Event::RetryDue, &["apply"], Phase::Degraded);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
}

/// The last ticket that the disk was given.
fn kept(effects: &[Effect]) -> (u64, Vec<String>) {
    let found = effects.iter().rev().find_map(|effect| match effect {
        Effect::Keep(ticket, what) => Some((*ticket, what)),
        _ => None,
    });
    let (ticket, what) = found.unwrap();
    let word = |keep: &Keep| match keep {
        Keep::Generation { number, .. } => format!("generation {number}"),
        Keep::Confirmed(number) => format!("confirmed {number}"),
        Keep::Record(record) => {
            let pending = record.pending.as_ref().map(|pending| pending.generation);
            let pin = record.pin.as_ref().map(|pin| pin.generation);
            format!("record {pending:?} {pin:?} {}", record.emergency.is_some())
        }
    };
    (ticket, what.iter().map(word).collect())
}

fn on_trial(name: &str) -> Event {
    let term = Term { until: 1_000_000, period: 60_000 };
    let trial = Some(Trial { term, confirmation: Confirmation::Operator });
    Event::ApplyRequested { documents: Documents { trial, ..documents(name) }, elsewhere: Some("/new".to_owned()) }
}

/// A state in which "b" is in force on trial after "a".
fn unconfirmed() -> State {
    let mut state = in_force();
    let effects = step(&mut state, on_trial("b"));
    assert_eq!(words(&effects), ["deadline Some(60s)", "unconfirmed 2"], "nothing for the kernel yet");
    assert_eq!(state.phase(), Phase::Applying);
    let (ticket, what) = kept(&effects);
    assert_eq!(what, ["generation 2", "record Some(2) Some(2) false"]);
    check(&mut state, Event::Kept(ticket, Ok(())), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "done", "ready"], Phase::Unconfirmed);
    state
}

#[test]
fn what_is_in_force_is_kept_and_confirmed_once_and_again_when_a_boot_would_need_it() {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0", "cali1"])));
    step(&mut state, Event::DocumentsLoaded(documents("a")));
    let (ticket, what) = kept(&step(&mut state, done()));
    assert_eq!(what, ["generation 1", "confirmed 1", "record None None false"]);
    step(&mut state, Event::Kept(ticket, Ok(())));
    let keeps = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Keep(..)));
    step(&mut state, Event::FactsChanged(facts(&["eth0", "cali1", "cali2"])));
    assert!(!keeps(&step(&mut state, done())), "one more pod link is no other boot");
    step(&mut state, Event::DocumentsLoaded(documents("a")));
    assert!(!keeps(&step(&mut state, done())), "a reload is none");
    let mut managed = facts(&["eth0", "cali1"]);
    managed.links.get_mut(&1).unwrap().default_route = true;
    step(&mut state, Event::FactsChanged(managed));
    let (ticket, what) = kept(&step(&mut state, done()));
    assert_eq!(what, ["generation 1", "record None None false"], "a role that was not there is");
    // What the disk did not take it is given again, with the next look at the kernel.
    check(&mut state, Event::Kept(ticket, Err("full".to_owned())), &["not kept"], Phase::InForce);
    assert_eq!(state.not_kept(), Some("full"));
    step(&mut state, Event::DocumentsLoaded(documents("a")));
    let (ticket, what) = kept(&step(&mut state, done()));
    assert_eq!(what, ["generation 1", "confirmed 1", "record None None false"]);
    step(&mut state, Event::Kept(ticket, Ok(())));
    assert_eq!(state.not_kept(), None);
}

#[test]
fn what_nobody_confirms_goes_and_stays_out_until_the_documents_change() {
    let mut state = unconfirmed();
    // Neither links nor a reload of the documents in place make a difference to that.
    check(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::Unconfirmed);
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::Unconfirmed);
    let effects = step(&mut state, Event::DeadlineDue);
    assert_eq!(words(&effects), ["deadline None", "back to 1", "apply"]);
    assert_eq!(kept(&effects).1, ["record None Some(1) false"]);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    assert!(state.reason().unwrap().contains("generation 2 was given up: nobody confirmed it in time"));
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    check(&mut state, Event::DocumentsLoaded(documents("c")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::InForce);
    // A deadline that comes late finds nothing to do.
    check(&mut state, Event::DeadlineDue, &[], Phase::InForce);
}

#[test]
fn the_way_back_is_taken_even_when_not_all_of_it_can_be_used_any_more() {
    let mut state = unconfirmed();
    let mut broken = documents("a").policy.policies[0].clone();
    (broken.name, broken.tier) = ("broken".to_owned(), "no such tier".to_owned());
    state.confirmed.as_mut().unwrap().policy.policies.push(broken);
    let effects = step(&mut state, Event::DeadlineDue);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Apply(_))), "{:?}", words(&effects));
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    assert_eq!(state.summary().unwrap().policies.len(), 1);
    assert_eq!(state.summary().unwrap().policies[0].name, "a");
}

#[test]
fn a_confirmation_is_answered_when_it_is_on_disk() {
    let mut state = unconfirmed();
    let effects = step(&mut state, Event::ConfirmRequested { by: "me".to_owned() });
    assert_eq!(words(&effects), ["deadline None", "confirmed 2"]);
    let (ticket, what) = kept(&effects);
    assert_eq!(what, ["confirmed 2", "record None Some(2) false"]);
    check(&mut state, Event::Kept(ticket, Ok(())), &["done"], Phase::InForce);
    assert_eq!((state.generation(), state.confirmed()), (2, Some(2)));
    let nothing = "refused: nothing waits for a confirmation";
    check(&mut state, Event::ConfirmRequested { by: "me".to_owned() }, &[nothing], Phase::InForce);
    check(
        &mut state,
        on_trial("b"),
        &["refused: these documents are confirmed already, so there is nothing to go back from"],
        Phase::InForce,
    );
}

#[test]
fn without_a_way_back_on_disk_nothing_is_tried() {
    let mut state = in_force();
    let (ticket, _) = kept(&step(&mut state, on_trial("b")));
    let effects = step(&mut state, Event::Kept(ticket, Err("full".to_owned())));
    assert_eq!(
        words(&effects),
        ["not kept", "refused: full; nothing was changed", "deadline None", "back to 1", "apply"]
    );
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    assert_eq!(state.summary().unwrap().policies[0].name, "a");
    // And without anything to go back to neither.
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    let refused = "refused: there is no confirmed generation to go back to";
    check(&mut state, on_trial("b"), &[refused], Phase::Waiting);
}

#[test]
fn an_emergency_stands_above_the_documents_until_it_ends() {
    let mut state = in_force();
    let ordered = |emergency| Event::EmergencyRequested { emergency, by: "me".to_owned() };
    let panic = Emergency::Panic { by: "me".to_owned(), reason: String::new() };
    let normal = state.in_force().cloned().unwrap();
    let effects = step(&mut state, ordered(Some(panic)));
    assert_eq!(words(&effects), ["break-glass None", "emergency true", "apply"]);
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Panic);
    // Nobody is told before it is on disk: a crash would end it.
    check(&mut state, Event::Kept(kept(&effects).0, Ok(())), &["done"], Phase::Panic);
    assert!(state.summary().unwrap().policies.is_empty());
    let closed = state.in_force().cloned().unwrap();
    check(&mut state, Event::DocumentsLoaded(documents("b")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Panic);
    let refused = "refused: panic or break-glass is on; end it first";
    check(&mut state, on_trial("c"), &[refused], Phase::Panic);
    let term = Term { until: 1_000_000, period: 9_000 };
    let open = Emergency::BreakGlass { term, by: "me".to_owned(), reason: "x".to_owned() };
    let effects = step(&mut state, ordered(Some(open)));
    assert_eq!(words(&effects), ["break-glass Some(9s)", "emergency true", "apply"]);
    check(&mut state, Event::Kept(kept(&effects).0, Ok(())), &[], Phase::Applying);
    check(&mut state, done(), &["in-force 0", "forget", "done", "ready"], Phase::BreakGlass);
    assert!(*state.in_force().unwrap() != closed);
    let effects = step(&mut state, Event::BreakGlassDue);
    assert_eq!(words(&effects), ["break-glass None", "emergency false", "apply"]);
    assert_eq!(kept(&effects).1, ["record None None false"]);
    check(&mut state, done(), &["in-force 2", "forget", "ready"], Phase::InForce);
    assert!(*state.in_force().unwrap() != normal);
    assert_eq!(state.summary().unwrap().policies[0].name, "b");
    check(&mut state, Event::BreakGlassDue, &[], Phase::InForce);
}

/// Facts of a host with an address on eth0, so that it has somebody to reach.
fn networked(names: &[&str]) -> Facts {
    let mut facts = facts(names);
    facts.links.get_mut(&1).unwrap().addresses = ["10.0.0.2/24".parse().unwrap()].into();
    facts
}

/// A state in which "a" is in force and whose host has an address.
fn reachable() -> State {
    let mut state = in_force();
    step(&mut state, Event::FactsChanged(networked(&["eth0"])));
    step(&mut state, done());
    assert_eq!(state.phase(), Phase::InForce);
    state
}

/// Documents that a self-test confirms within a minute.
fn to_be_tested(name: &str) -> Documents {
    let term = Term { until: 1_000_000, period: 60_000 };
    let trial = Trial { term, confirmation: Confirmation::SelfTest { before: None } };
    Documents { trial: Some(trial), ..documents(name) }
}

fn to_be_tested_by_order(name: &str) -> Event {
    Event::ApplyRequested { documents: to_be_tested(name), elsewhere: Some("/new".to_owned()) }
}

/// The answer of the probes that were asked for last: those that are named failed.
fn answer(state: &State, failed: &[&str]) -> Event {
    let tried = |name: &&str| {
        let failing = failed.contains(name);
        let outcome = if failing { selftest::Outcome::Failed("no".to_owned()) } else { selftest::Outcome::Passed };
        Tried { probe: (*name).to_owned(), outcome }
    };
    Event::SelfTested {
        ticket: state.probing,
        results: ["store", "mirror"].iter().map(tried).collect(),
        now: 7_000_000,
    }
}

/// A state in which "b" is in force and is tested, after the probes that are named failed twice without it.
fn tested(failed: &[&str]) -> State {
    let mut state = reachable();
    check(&mut state, to_be_tested_by_order("b"), &["probe 0ns"], Phase::InForce);
    let mut effects = Vec::new();
    for _ in 0..if failed.is_empty() { 1 } else { 2 } {
        let event = answer(&state, failed);
        effects = step(&mut state, event);
    }
    assert_eq!(words(&effects), ["deadline Some(60s)", "unconfirmed 2"]);
    let (ticket, what) = kept(&effects);
    assert_eq!(what, ["generation 2", "record Some(2) Some(2) false"]);
    check(&mut state, Event::Kept(ticket, Ok(())), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 2", "forget", "done", "probe 0ns", "ready"], Phase::Unconfirmed);
    state
}

#[track_caller]
fn progress(state: &State, expected: Progress) {
    assert_eq!(state.selftest().unwrap().progress, expected);
}

#[test]
fn a_change_whose_self_test_passes_confirms_itself() {
    let mut state = tested(&[]);
    progress(&state, Progress::Running);
    // The time is for the change, and begins with it.
    assert_eq!(state.record().pending.as_ref().unwrap().term, Term { until: 7_060_000, period: 60_000 });
    let event = answer(&state, &[]);
    let effects = step(&mut state, event);
    assert_eq!(words(&effects), ["deadline None", "confirmed 2"]);
    let Some(Effect::Report(Report::Confirmed { by, .. })) = effects.get(1) else { panic!("{effects:?}") };
    assert_eq!(by, "self-test: store, mirror passed");
    let (ticket, what) = kept(&effects);
    assert_eq!(what, ["confirmed 2", "record None Some(2) false"]);
    check(&mut state, Event::Kept(ticket, Ok(())), &[], Phase::InForce);
    assert_eq!((state.generation(), state.confirmed()), (2, Some(2)));
    progress(&state, Progress::Passed);
    // Answers that come late, and a deadline, find nothing to do.
    let event = answer(&state, &["store"]);
    check(&mut state, event, &[], Phase::InForce);
    check(&mut state, Event::DeadlineDue, &[], Phase::InForce);
}

#[test]
fn a_change_whose_self_test_fails_is_tried_until_its_time_is_over_and_goes_with_the_reason() {
    let mut state = tested(&[]);
    let fails = "2 fails: store: no";
    let event = answer(&state, &["store"]);
    check(&mut state, event, &[fails, "probe 1s"], Phase::Unconfirmed);
    // The same again is no news; something else is.
    let event = answer(&state, &["store"]);
    check(&mut state, event, &["probe 1s"], Phase::Unconfirmed);
    let event = answer(&state, &["store", "mirror"]);
    check(&mut state, event, &["2 fails: store: no; mirror: no", "probe 1s"], Phase::Unconfirmed);
    assert_eq!(state.selftest().unwrap().rounds, 3);
    let effects = step(&mut state, Event::DeadlineDue);
    assert_eq!(words(&effects), ["deadline None", "back to 1", "apply"]);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    let why = "generation 2 was given up: its self-test failed: store: no; mirror: no";
    assert!(state.reason().unwrap().starts_with(why), "{:?}", state.reason());
    progress(&state, Progress::Failed);
    let event = answer(&state, &[]);
    check(&mut state, event, &[], Phase::Degraded);

    // One good round is enough, be it the last.
    let mut state = tested(&[]);
    let event = answer(&state, &["store"]);
    step(&mut state, event);
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline None", "confirmed 2"], Phase::InForce);

    // Probes that never answer are no good round.
    let mut state = tested(&[]);
    step(&mut state, Event::DeadlineDue);
    assert!(state.record().pin.as_ref().unwrap().why.ends_with("its self-test did not end in time"));
}

#[test]
fn what_failed_without_the_change_does_not_stand_in_its_way() {
    let mut state = tested(&["store"]);
    let event = answer(&state, &["store", "mirror"]);
    check(&mut state, event, &["2 fails: mirror: no", "probe 1s"], Phase::Unconfirmed);
    let event = answer(&state, &["store"]);
    let effects = step(&mut state, event);
    let Some(Effect::Report(Report::Confirmed { by, .. })) = effects.get(1) else { panic!("{effects:?}") };
    assert_eq!(by, "self-test: mirror passed; store failed before too: no");

    // What failed once without the change, and then did not, was a lost packet.
    let mut state = reachable();
    step(&mut state, to_be_tested_by_order("b"));
    let event = answer(&state, &["store"]);
    check(&mut state, event, &["probe 1s"], Phase::InForce);
    let event = answer(&state, &["mirror"]);
    step(&mut state, event);
    let before = state.record().pending.as_ref().unwrap().before.clone().unwrap();
    assert!(before.iter().all(|tried| tried.outcome == selftest::Outcome::Passed), "{before:?}");
}

#[test]
fn while_the_probes_are_tried_without_the_change_what_is_in_force_follows_the_links() {
    let mut state = reachable();
    step(&mut state, to_be_tested_by_order("b"));
    progress(&state, Progress::Before);
    check(&mut state, Event::FactsChanged(networked(&["eth0", "a1"])), &["a1 is unknown", "apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
    // Nor does a look at the documents in place put an end to what somebody asked for.
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline Some(60s)", "unconfirmed 2"], Phase::Applying);
    // But other documents do.
    let mut state = reachable();
    step(&mut state, to_be_tested_by_order("b"));
    let refused = "refused: the documents in place changed meanwhile; try again";
    check(&mut state, Event::DocumentsLoaded(documents("c")), &[refused, "apply"], Phase::Applying);
    let event = answer(&state, &[]);
    check(&mut state, event, &[], Phase::Applying);
    assert_eq!(state.selftest(), None);
}

#[test]
fn what_is_told_of_a_generation_that_is_not_in_force_any_more_does_not_count() {
    let mut state = tested(&[]);
    let late = answer(&state, &[]);
    // Newer documents have no more time, and are held against what was before all of it.
    let effects = step(&mut state, Event::DocumentsLoaded(to_be_tested("c")));
    let (ticket, what) = kept(&effects);
    assert_eq!((words(&effects), &*what[0]), (vec![], "generation 3"));
    check(&mut state, late.clone(), &[], Phase::Applying);
    check(&mut state, Event::Kept(ticket, Ok(())), &["apply"], Phase::Applying);
    check(&mut state, late, &[], Phase::Applying);
    check(&mut state, done(), &["in-force 3", "forget", "probe 0ns", "ready"], Phase::Unconfirmed);
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline None", "confirmed 3"], Phase::InForce);

    // The same when it is panic that came in between.
    let mut state = tested(&[]);
    let panic = |on: bool| Event::EmergencyRequested {
        emergency: on.then(|| Emergency::Panic { by: "me".to_owned(), reason: String::new() }),
        by: "me".to_owned(),
    };
    let (ticket, _) = kept(&step(&mut state, panic(true)));
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Panic);
    check(&mut state, Event::Kept(ticket, Ok(())), &["done"], Phase::Panic);
    let event = answer(&state, &[]);
    check(&mut state, event, &[], Phase::Panic);
    step(&mut state, panic(false));
    check(&mut state, done(), &["in-force 2", "forget", "probe 0ns", "ready"], Phase::Unconfirmed);
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline None", "confirmed 2"], Phase::InForce);
}

#[test]
fn somebody_may_decide_before_the_self_test_does() {
    let mut state = tested(&[]);
    let event = answer(&state, &["store"]);
    step(&mut state, event);
    let confirmed = Event::ConfirmRequested { by: "me".to_owned() };
    check(&mut state, confirmed, &["deadline None", "confirmed 2"], Phase::InForce);
    progress(&state, Progress::Ended);
    let mut state = tested(&[]);
    let back = Event::RollbackRequested { version: None, by: "me".to_owned() };
    check(&mut state, back, &["deadline None", "back to 1", "apply"], Phase::Applying);
    progress(&state, Progress::Ended);
    // What waits for somebody is not confirmed by what comes after it.
    let mut state = unconfirmed();
    step(&mut state, Event::FactsChanged(networked(&["eth0"])));
    step(&mut state, done());
    let effects = step(&mut state, Event::DocumentsLoaded(to_be_tested("c")));
    step(&mut state, Event::Kept(kept(&effects).0, Ok(())));
    check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::Unconfirmed);
    // Nor is what a self-test could confirm when somebody asks to do so.
    let mut state = tested(&[]);
    let effects = step(&mut state, on_trial("c"));
    step(&mut state, Event::Kept(kept(&effects).0, Ok(())));
    check(&mut state, done(), &["in-force 3", "forget", "done", "ready"], Phase::Unconfirmed);
    assert!(state.record().pending.as_ref().unwrap().before.is_none());
}

#[test]
fn a_restart_goes_on_with_the_self_test_by_what_is_on_disk() {
    let state = tested(&["store"]);
    let memory = |left| Memory {
        record: state.record().clone(),
        next: 3,
        confirmed: state.confirmed.clone(),
        older: false,
        meant: state.good.clone(),
        pending_left: left,
        emergency_left: None,
    };
    // As it is written and read again.
    let text = serde_json::to_string(state.record()).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), *state.record());
    let mut again = State::default();
    step(&mut again, Event::KernelSeen { table: true });
    step(&mut again, Event::FactsChanged(networked(&["eth0"])));
    let left = Some(Duration::from_secs(9));
    let effects = step(&mut again, Event::Remembered(Box::new(memory(left))));
    assert_eq!(words(&effects), ["deadline Some(9s)", "unconfirmed 2"]);
    check(&mut again, Event::DocumentsLoaded(to_be_tested("a")), &["apply"], Phase::Applying);
    check(&mut again, done(), &["in-force 2", "forget", "probe 0ns", "ready"], Phase::Unconfirmed);
    let event = answer(&again, &["store"]);
    check(&mut again, event, &["deadline None", "confirmed 2"], Phase::InForce);

    // After a reboot, or too late.
    let mut again = State::default();
    step(&mut again, Event::KernelSeen { table: true });
    step(&mut again, Event::FactsChanged(networked(&["eth0"])));
    check(&mut again, Event::Remembered(Box::new(memory(None))), &["back to 1"], Phase::Degraded);
    check(&mut again, Event::DocumentsLoaded(to_be_tested("a")), &["apply"], Phase::Applying);
    check(&mut again, done(), &["in-force 1", "forget", "ready"], Phase::Degraded);
    assert!(again.reason().unwrap().contains("its self-test had not passed when its time was over"));
}

#[test]
fn a_record_of_a_version_without_self_tests_is_one_for_somebody() {
    let text =
        r#"{"pin":null,"pending":{"generation":2,"documents":"d","term":{"until":5,"period":4}},"emergency":null}"#;
    let record: Record = serde_json::from_str(text).unwrap();
    assert_eq!(record.pending.as_ref().unwrap().before, None);
    let written = serde_json::to_string(&record).unwrap();
    assert_eq!(written, text.replace(r#""emergency":null"#, r#""emergency":null,"expired":[]"#));
}

#[test]
fn at_a_start_the_confirmed_generation_holds_until_there_is_an_address_to_be_reached_at() {
    let earlier = reachable();
    let memory =
        Memory { record: Record::default(), next: 2, confirmed: earlier.confirmed.clone(), ..Memory::default() };
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::Remembered(Box::new(memory)));
    // Until the documents are read, nobody knows what is meant.
    check(&mut state, Event::FactsChanged(facts(&["eth0"])), &[], Phase::Waiting);
    let held = "held until this host has an address";
    check(&mut state, Event::DocumentsLoaded(to_be_tested("b")), &[held, "apply"], Phase::Applying);
    // The network waits for us, so that we must not wait for the network.
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
    progress(&state, Progress::Waiting);
    check(&mut state, Event::DocumentsLoaded(to_be_tested("b")), &[held, "ready"], Phase::InForce);
    let effects = step(&mut state, Event::FactsChanged(networked(&["eth0"])));
    // An address is nothing that the rules speak of here.
    assert!(words(&effects).contains(&"probe 0ns".to_owned()), "{:?}", words(&effects));
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline Some(60s)", "unconfirmed 2"], Phase::Applying);
}

#[test]
fn what_is_tried_from_elsewhere_takes_the_place_of_what_waits_only_when_it_is_good() {
    let mut state = in_force();
    let held = "held until this host has an address";
    check(&mut state, Event::DocumentsLoaded(to_be_tested("b")), &[held, "ready"], Phase::InForce);
    let event = Event::ApplyRequested { documents: bad("x"), elsewhere: Some("/new".to_owned()) };
    let refused = "refused: 20.toml:3:1: \"x\" is not a key; nothing was changed";
    check(&mut state, event, &[refused, "apply"], Phase::Applying);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
    progress(&state, Progress::Waiting);
    // Good ones, for somebody to confirm, are what counts until the documents in place change.
    let effects = step(&mut state, on_trial("c"));
    assert_eq!(words(&effects), ["deadline Some(60s)", "unconfirmed 2"]);
    step(&mut state, Event::Kept(kept(&effects).0, Ok(())));
    check(&mut state, done(), &["in-force 2", "forget", "done", "ready"], Phase::Unconfirmed);
    check(&mut state, Event::FactsChanged(networked(&["eth0"])), &[], Phase::Unconfirmed);
    assert_eq!(state.selftest(), None);
}

#[test]
fn in_an_emergency_no_probe_says_anything() {
    let mut state = reachable();
    step(&mut state, to_be_tested_by_order("b"));
    let panic = |on: bool| Event::EmergencyRequested {
        emergency: on.then(|| Emergency::Panic { by: "me".to_owned(), reason: String::new() }),
        by: "me".to_owned(),
    };
    let (ticket, _) = kept(&step(&mut state, panic(true)));
    assert_eq!(state.selftest(), None, "what was ordered is not brought back later");
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Panic);
    check(&mut state, Event::Kept(ticket, Ok(())), &["done"], Phase::Panic);
    let held = "held until the emergency is over";
    check(&mut state, Event::DocumentsLoaded(to_be_tested("c")), &[held, "ready"], Phase::Panic);
    let (ticket, _) = kept(&step(&mut state, panic(false)));
    check(&mut state, done(), &["in-force 1", "forget", "ready", "probe 0ns"], Phase::InForce);
    check(&mut state, Event::Kept(ticket, Ok(())), &["done"], Phase::InForce);
    let event = answer(&state, &[]);
    check(&mut state, event, &["deadline Some(60s)", "unconfirmed 2"], Phase::Applying);
    // A start in panic, with other documents than before, is in panic.
    let emergency = Some(Emergency::Panic { by: "me".to_owned(), reason: String::new() });
    let record = Record { emergency, ..Record::default() };
    let memory = Memory { record, next: 2, confirmed: reachable().confirmed.clone(), ..Memory::default() };
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(networked(&["eth0"])));
    step(&mut state, Event::Remembered(Box::new(memory)));
    check(&mut state, Event::DocumentsLoaded(to_be_tested("c")), &[held, "apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Panic);
}

#[test]
fn a_change_that_is_refused_or_confirmed_already_waits_for_no_probe() {
    let mut state = reachable();
    let trial = to_be_tested("b").trial;
    let refused = "refused: 20.toml:3:1: \"x\" is not a key; nothing was changed";
    let event =
        Event::ApplyRequested { documents: Documents { trial, ..bad("b") }, elsewhere: Some("/new".to_owned()) };
    let effects = step(&mut state, event);
    assert!(words(&effects).contains(&refused.to_owned()), "{:?}", words(&effects));
    step(&mut state, Event::Applied(Ok(Done { changes: 0 })));
    check(&mut state, Event::DocumentsLoaded(to_be_tested("a")), &["apply"], Phase::Applying);
    check(&mut state, Event::Applied(Ok(Done { changes: 0 })), &["forget", "ready"], Phase::InForce);
    assert_eq!(state.selftest(), None);
    // Without anything to go back to there is no trial.
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(networked(&["eth0"])));
    check(&mut state, Event::DocumentsLoaded(to_be_tested("a")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
}

#[test]
fn a_clock_that_jumps_back_makes_no_term_longer() {
    let term = Term::new(10_000, Duration::from_secs(2));
    assert_eq!(term.left(10_500), Some(Duration::from_millis(1500)));
    assert_eq!(term.left(1), Some(Duration::from_secs(2)));
    assert_eq!((term.left(12_000), term.left(99_000)), (None, None));
}
