//! What servers and networks do to those who watch: after each, what is held is what the objects say, and in between nothing less.

use std::time::Duration;

use nodewall::policy::clusters::Cluster;
use nodewall::source::kube::Reach;
use nodewall::source::object::Kind;
use serde_json::json;

use super::follower::{Follower, cluster};
use super::server::Admin;
use super::stand_in::StandIn;

const SET: Kind = Kind::HostNetworkSet;

/// A server with sets a and b, which are followed.
fn followed() -> (StandIn, Admin, Follower) {
    let server = StandIn::start();
    let admin = Admin::new(server.kubeconfig());
    admin.create(SET, "a", &json!({ "cidrs": ["10.0.0.1"] }));
    admin.create(SET, "b", &json!({ "cidrs": ["10.0.0.2"] }));
    let mut follower = Follower::new(cluster(&server.kubeconfig()));
    follower.until("the first list", |it| it.specs() == server.specs() && it.health().reach == Reach::Synced);
    (server, admin, follower)
}

#[track_caller]
fn in_sync(server: &StandIn, follower: &mut Follower) -> Duration {
    follower.until("what the objects say", |it| it.specs() == server.specs() && it.health().reach == Reach::Synced)
}

#[test]
fn a_list_comes_in_pages() {
    let server = StandIn::start();
    let admin = Admin::new(server.kubeconfig());
    for number in 0..1100 {
        admin.create(
            SET,
            &format!("s{number}"),
            &json!({ "cidrs": [format!("10.0.{}.{}", number / 256, number % 256)] }),
        );
    }
    let mut follower = Follower::new(cluster(&server.kubeconfig()));
    in_sync(&server, &mut follower);
    assert_eq!(follower.specs().len(), 1100);
    assert_eq!(server.requests("hostnetworksets?&limit=500"), 3, "pages of 500");
}

#[test]
fn a_server_that_is_killed_and_started_again_is_followed_within_seconds() {
    let (server, admin, mut follower) = followed();
    for _ in 0..3 {
        server.restart();
        // What happens meanwhile is not in any watch.
        admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.3"] }));
        admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.4"] }));
        let took = in_sync(&server, &mut follower);
        println!("in sync {} ms after a restart", took.as_millis());
        admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.5"] }));
        in_sync(&server, &mut follower);
    }
}

#[test]
fn a_watch_that_is_too_old_is_told_so_in_either_form_and_lists_again() {
    for in_stream in [false, true] {
        let (server, admin, mut follower) = followed();
        admin.delete(SET, "b");
        in_sync(&server, &mut follower);
        let before = server.requests("hostpolicies?&limit");
        // The watch of policies ends by itself after two seconds, and what it would go on from is gone. Others have moved on.
        admin.create(Kind::HostService, "s", &json!({ "ports": ["tcp/80"] }));
        server.compact(in_stream);
        server.restart();
        admin.create(SET, "c", &json!({ "cidrs": ["10.0.0.9"] }));
        in_sync(&server, &mut follower);
        assert!(server.requests("hostpolicies?&limit") > before, "{in_stream}");
        // 410 at the start of a watch: the next list is older than what was forgotten meanwhile.
        admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.8"] }));
        in_sync(&server, &mut follower);
    }
}

#[test]
fn refusals_take_nothing_away_and_pass() {
    let (server, admin, mut follower) = followed();
    for code in [401, 403, 404, 429, 500, 503, 504] {
        let before = follower.specs();
        // So that no pass is whole: what is about one kind is asked for each, and all else once.
        server.refuse(code, if matches!(code, 403 | 404) { 14 } else { 3 });
        server.restart();
        follower.until("the refusal", |it| it.health().reach != Reach::Synced);
        assert_eq!(follower.specs(), before, "{code}");
        follower.until("the end of the refusals", |it| it.health().reach == Reach::Synced && server.has_refused());
        assert_eq!(follower.specs(), before, "{code}");
        admin.change(SET, "a", &json!({ "cidrs": [format!("10.1.0.{}", code % 256 % 250)] }));
        in_sync(&server, &mut follower);
    }
}

#[test]
fn an_event_that_is_cut_in_the_middle_is_not_lost() {
    let (server, admin, mut follower) = followed();
    server.cut();
    admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.7"] }));
    in_sync(&server, &mut follower);
}

#[test]
fn a_way_through_which_nothing_comes_is_noticed() {
    let (server, admin, mut follower) = followed();
    let before = follower.specs();
    admin.create(SET, "c", &json!({ "cidrs": ["10.0.0.9"] }));
    in_sync(&server, &mut follower);
    server.black_hole(true);
    let took = follower.until("the silence", |it| it.health().reach == Reach::Away);
    println!("a black hole is noticed after {} ms, with a watch of 2 s and a grace of 1 s", took.as_millis());
    assert!(before.iter().all(|(key, spec)| follower.specs().get(key) == Some(spec)), "nothing less");
    server.black_hole(false);
    in_sync(&server, &mut follower);
    admin.delete(SET, "c");
    in_sync(&server, &mut follower);
}

#[test]
fn an_older_state_is_followed_and_told() {
    let (server, admin, mut follower) = followed();
    let backup = server.snapshot();
    admin.create(SET, "later", &json!({ "cidrs": ["10.0.0.9"] }));
    in_sync(&server, &mut follower);
    server.rewind(backup);
    server.restart();
    in_sync(&server, &mut follower);
    let told: Vec<String> = follower.holding().findings.iter().map(|finding| finding.message.clone()).collect();
    assert!(told.len() == 1 && told[0].contains("went back"), "{told:?}");
    admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.8"] }));
    in_sync(&server, &mut follower);
}

#[test]
fn an_empty_server_is_doubted_until_it_has_something_or_is_to_be_believed() {
    let empty = StandIn::start().snapshot();
    let (server, admin, mut follower) = followed();
    let before = follower.specs();
    server.rewind(empty);
    server.restart();
    follower.until("the doubt", |it| it.health().reach == Reach::Doubted);
    assert_eq!(follower.specs(), before);
    let believing = Cluster { believe_empty: true, ..cluster(&server.kubeconfig()) };
    let mut believing = Follower::from(believing, follower.holding());
    believing.until("belief", |it| it.specs().is_empty() && it.health().reach == Reach::Synced);
    admin.create(SET, "c", &json!({ "cidrs": ["10.0.0.9"] }));
    in_sync(&server, &mut follower);
    assert_eq!(follower.specs().len(), 1);
}

#[test]
fn a_token_that_is_renewed_on_disk_is_used() {
    let (server, admin, mut follower) = followed();
    let before = follower.specs();
    server.accept_token("second");
    server.restart();
    follower.until("the refusal", |it| it.health().error.as_ref().is_some_and(|error| error.contains("401")));
    assert_eq!(follower.specs(), before);
    server.write_token("second");
    in_sync(&server, &mut follower);
    drop(admin);
    let admin = Admin::new(server.kubeconfig());
    admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.8"] }));
    in_sync(&server, &mut follower);
    // One that is renewed in time makes no noise.
    server.write_token("third");
    server.accept_token("third");
    in_sync(&server, &mut follower);
}

#[test]
fn a_kubeconfig_that_comes_later_is_used_and_one_of_others_is_not() {
    let server = StandIn::start();
    let late = tempfile::tempdir().unwrap();
    let path = late.path().join("kubeconfig");
    let mut follower = Follower::new(cluster(&path));
    follower
        .until("its absence", |it| it.health().error.as_ref().is_some_and(|error| error.contains("does not exist")));
    assert!(!follower.holding().heard);
    let text = std::fs::read_to_string(server.kubeconfig()).unwrap();
    for file in ["ca.crt", "token"] {
        let from: &std::path::Path = server.as_ref();
        std::fs::copy(from.join(file), late.path().join(file)).unwrap();
    }
    std::fs::write(&path, text.replace("tokenFile: token", "exec: {command: \"true\"}")).unwrap();
    follower
        .until("the refusal", |it| it.health().error.as_ref().is_some_and(|error| error.contains("runs a program")));
    std::fs::write(&path, text).unwrap();
    in_sync(&server, &mut follower);
    assert!(follower.holding().heard);
}

#[test]
fn a_bad_object_stops_nothing_else() {
    let (server, admin, mut follower) = followed();
    let before = follower.specs();
    admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.0/33"] }));
    follower.until("the finding", |it| it.health().invalid == ["HostNetworkSet/a"]);
    assert_eq!(follower.specs(), before, "the last good version");
    admin.change(SET, "b", &json!({ "cidrs": ["10.0.0.77"] }));
    follower.until("the other", |it| {
        it.specs()[&("hostnetworksets".to_owned(), "b".to_owned())] == json!({ "cidrs": ["10.0.0.77"] })
    });
    admin.change(SET, "a", &json!({ "cidrs": ["10.0.0.78"] }));
    in_sync(&server, &mut follower);
    assert_eq!(follower.holding().findings, []);
}
