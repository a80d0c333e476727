//! What the sequences found, each with nothing around it.

use super::*;

fn panic_on() -> Emergency {
    Emergency::Panic { by: "me".to_owned(), reason: String::new() }
}

fn open(period: u64) -> Emergency {
    Emergency::BreakGlass { term: Term { until: 1_000_000, period }, by: "me".to_owned(), reason: "x".to_owned() }
}

fn ordered(emergency: Option<Emergency>) -> Event {
    Event::EmergencyRequested { emergency, by: "me".to_owned() }
}

fn refused() -> Event {
    Event::Applied(Err("no".to_owned()))
}

/// A start that finds a table and nothing else that is of use.
fn found() -> State {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: true });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Found", "ready"], Phase::Degraded);
    state
}

#[test]
fn a_break_glass_ends_also_where_no_good_documents_are_known() {
    let mut state = found();
    step(&mut state, ordered(Some(open(9_000))));
    check(&mut state, done(), &["in-force 0", "forget", "ready"], Phase::Degraded);
    let effects = step(&mut state, Event::BreakGlassDue);
    assert_eq!(words(&effects), ["break-glass None", "emergency false", "apply"]);
    check(&mut state, done(), &["lockdown 0", "forget", "ready"], Phase::Degraded);
}

#[test]
fn an_emergency_that_was_refused_and_is_over_is_not_tried_again() {
    let mut state = found();
    step(&mut state, ordered(Some(panic_on())));
    step(&mut state, refused());
    let effects = step(&mut state, ordered(None));
    assert_eq!(words(&effects), ["break-glass None", "emergency false", "forget", "ready"]);
    check(&mut state, Event::Kept(kept(&effects).0, Ok(())), &["done"], Phase::Degraded);
    check(&mut state, Event::RetryDue, &[], Phase::Degraded);
}

#[test]
fn a_table_that_was_found_and_is_removed_makes_way_for_the_lockdown() {
    let mut state = found();
    check(&mut state, Event::Drifted, &["look"], Phase::Degraded);
    check(&mut state, Event::KernelSeen { table: false }, &["apply"], Phase::Degraded);
    check(&mut state, done(), &["lockdown 0", "forget", "ready"], Phase::Degraded);
}

#[test]
fn good_documents_do_not_wait_for_a_lockdown_that_is_refused() {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    check(&mut state, Event::DocumentsLoaded(bad("a")), &["refused, Lockdown", "apply"], Phase::Degraded);
    check(&mut state, Event::DocumentsLoaded(documents("a")), &[], Phase::Applying);
    check(&mut state, refused(), &["apply"], Phase::Degraded);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
}

#[test]
fn what_waits_for_the_disk_does_not_come_into_force_as_a_repair() {
    let mut state = in_force();
    let old = Arc::clone(state.in_force().unwrap());
    step(&mut state, on_trial("b"));
    assert_eq!(step(&mut state, Event::Drifted), [Effect::Repair(old)]);
}

#[test]
fn a_break_glass_that_is_over_does_not_come_back_as_a_repair() {
    let mut state = in_force();
    step(&mut state, ordered(Some(open(9_000))));
    step(&mut state, done());
    let normal = step(&mut state, Event::BreakGlassDue);
    let Some(Effect::Apply(normal)) = normal.last() else { panic!("{normal:?}") };
    step(&mut state, refused());
    assert_eq!(step(&mut state, Event::Drifted), [Effect::Repair(Arc::clone(normal))]);
}

#[test]
fn nothing_is_done_at_a_start_before_the_documents_are_read_although_a_generation_is_known() {
    let mut state = in_force();
    let confirmed = state.good.clone();
    let record = Record { emergency: Some(panic_on()), ..Record::default() };
    let memory = Memory { record, confirmed, next: 2, ..Memory::default() };
    state = State::default();
    step(&mut state, Event::KernelSeen { table: true });
    step(&mut state, Event::Remembered(Box::new(memory)));
    check(&mut state, Event::FactsChanged(facts(&["eth0"])), &[], Phase::Panic);
    let refused = "refused: nodewall is starting; try again";
    let request = Event::ApplyRequested { documents: documents("b"), elsewhere: None };
    step(&mut state, ordered(None));
    check(&mut state, request, &[refused], Phase::Waiting);
}

#[test]
fn an_emergency_lets_in_who_the_last_good_settings_let_in() {
    let mut state = in_force();
    let shipped = bad("b");
    let mut bad = bad("b");
    bad.settings.log.group = 9;
    step(&mut state, Event::DocumentsLoaded(bad));
    step(&mut state, done());
    let effects = step(&mut state, ordered(Some(panic_on())));
    let wanted = compile(&emergency::effective(&panic_on(), &shipped.settings, &facts(&["eth0"])));
    assert_eq!(effects.last(), Some(&Effect::Apply(Arc::new(wanted))));
}

#[test]
fn a_trial_is_written_together_with_the_way_back_where_the_disk_does_not_have_that() {
    let mut state = State::default();
    step(&mut state, Event::KernelSeen { table: false });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    step(&mut state, Event::DocumentsLoaded(documents("a")));
    let (first, _) = kept(&step(&mut state, done()));
    // The disk has not answered yet when the trial begins, and then says that it did not take the way back.
    let (second, what) = kept(&step(&mut state, on_trial("b")));
    assert_eq!(what, ["generation 2", "record Some(2) Some(2) false"]);
    step(&mut state, Event::Kept(first, Err("full".to_owned())));
    let effects = step(&mut state, Event::Kept(second, Ok(())));
    let (third, what) = kept(&effects);
    assert_eq!(words(&effects), [""; 0]);
    assert_eq!(what, ["generation 1", "confirmed 1", "generation 2", "record Some(2) Some(2) false"]);
    check(&mut state, Event::Kept(third, Ok(())), &["apply"], Phase::Applying);
}

#[test]
fn a_trial_without_a_way_back_is_over_at_the_next_start() {
    let mut state = unconfirmed();
    let (record, meant) = (state.record.clone(), state.good.clone());
    let memory = Memory { record, meant, pending_left: Some(Duration::from_secs(9)), next: 3, ..Memory::default() };
    state = State::default();
    step(&mut state, Event::KernelSeen { table: true });
    step(&mut state, Event::FactsChanged(facts(&["eth0"])));
    let effects = step(&mut state, Event::Remembered(Box::new(memory)));
    assert_eq!(kept(&effects).1, ["record None None false"]);
    check(&mut state, Event::DocumentsLoaded(documents("a")), &["apply"], Phase::Applying);
    check(&mut state, done(), &["in-force 3", "forget", "ready"], Phase::InForce);
}

#[test]
fn confirmed_documents_do_not_wait_for_the_disk_that_a_trial_waits_for() {
    let mut state = in_force();
    step(&mut state, on_trial("b"));
    step(&mut state, Event::FactsChanged(facts(&["eth0", "a1"])));
    let (ticket, _) = kept(&step(&mut state, Event::DocumentsLoaded(documents("c"))));
    let effects = step(&mut state, Event::DocumentsLoaded(documents("a")));
    assert_eq!(words(&effects), ["deadline None", "apply"]);
    let (last, what) = kept(&effects);
    assert_eq!(what, ["record None None false"]);
    check(&mut state, Event::Kept(ticket, Err("full".to_owned())), &["not kept"], Phase::Applying);
    check(&mut state, Event::Kept(last, Ok(())), &[], Phase::Applying);
    let effects = step(&mut state, done());
    assert_eq!(words(&effects), ["in-force 1", "forget", "ready"]);
    // Who asked for "b" is told that it did not come to that.
    let other = "refused: something else came in between, and is in force instead";
    check(&mut state, Event::Kept(kept(&effects).0, Ok(())), &[other], Phase::InForce);
}

#[test]
fn documents_in_place_that_are_asked_for_count_although_others_are_on_trial() {
    let mut state = unconfirmed();
    let request = Event::ApplyRequested { documents: documents("a"), elsewhere: None };
    assert_eq!(words(&step(&mut state, request)), ["deadline None", "apply"]);
    check(&mut state, done(), &["in-force 1", "forget", "ready"], Phase::InForce);
}

#[test]
fn a_refused_request_takes_no_way_back_away_and_answers_nobody_else() {
    let mut state = unconfirmed();
    step(&mut state, Event::DeadlineDue);
    step(&mut state, done());
    let mut documents = bad("c");
    documents.trial =
        Some(Trial { term: Term { until: 1_000_000, period: 60_000 }, confirmation: Confirmation::Operator });
    let effects = step(&mut state, Event::ApplyRequested { documents, elsewhere: None });
    assert!(words(&effects)[0].starts_with("refused: 20.toml:3:1"), "{:?}", words(&effects));
    assert!(state.record.pin.is_some());
    step(&mut state, done());
    // Somebody waits for a panic when other documents turn out to be bad.
    step(&mut state, ordered(Some(panic_on())));
    let effects = step(&mut state, Event::DocumentsLoaded(bad("d")));
    assert_eq!(words(&effects), ["refused, LastGood"]);
}
