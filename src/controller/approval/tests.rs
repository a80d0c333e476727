//! Requests of nodes, and of those who would like to be one.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::identity::request::Key;
use crate::identity::user;

const NOW: u64 = 1_795_000_000;

/// A request for the name of a node, by somebody.
fn asked(node: &str, by: &str, groups: &[&str]) -> Json {
    let mut object = Key::generate().unwrap().request(node).unwrap();
    object["spec"]["username"] = json!(by);
    object["spec"]["groups"] = json!(groups);
    object
}

fn renewal(node: &str) -> Json {
    asked(node, &user(node), &[GROUP, "system:authenticated"])
}

fn first(node: &str) -> Json {
    asked(node, "system:bootstrap:abcdef", &["system:bootstrappers", BOOTSTRAP_GROUP])
}

fn request(object: &Json) -> Request {
    serde_json::from_value(object.clone()).unwrap()
}

fn with(mut object: Json, pointer: &str, value: Json) -> Request {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    request(&object)
}

/// The judgement over the first of them.
fn judged(all: &[Request], is_known: bool) -> Judgement {
    judge(&all[0], all, is_known, NOW)
}

#[track_caller]
fn left(all: &[Request], is_known: bool, why: &str) {
    match judged(all, is_known) {
        Judgement::Leave(said) => assert!(said.contains(why), "{said}"),
        other => assert!(why.is_empty() && other == Judgement::Pass, "{other:?} instead of: {why}"),
    }
}

#[test]
fn a_node_renews_its_own_certificate_and_no_other() {
    let good = renewal("gpu-17");
    assert_eq!(
        judged(&[request(&good)], true),
        Judgement::Approve("node \"gpu-17\" renews its certificate".to_owned())
    );
    left(
        &[request(&asked("gpu-18", &user("gpu-17"), &[GROUP]))],
        true,
        "node \"gpu-17\" asks for the certificate of node \"gpu-18\"",
    );
    left(&[request(&asked("gpu-17", &user("gpu-17"), &["system:authenticated"]))], true, "node \"gpu-17\" asks");
    left(
        &[with(good.clone(), "/spec/usages", json!(["client auth", "digital signature", "server auth"]))],
        true,
        "something else",
    );
    left(&[with(good.clone(), "/spec/usages", json!(["client auth"]))], true, "something else");
    left(&[with(good.clone(), "/spec/request", json!("Zm9v"))], true, "no PEM");
    left(&[with(good.clone(), "/spec/signerName", json!("kubernetes.io/kubelet-serving"))], true, "");
    for settled in ["Approved", "Denied", "Failed"] {
        left(&[with(good.clone(), "/status", json!({ "conditions": [{ "type": settled }] }))], true, "");
    }
}

#[test]
fn a_name_that_nobody_has_is_given_to_whoever_may_join() {
    assert_eq!(judged(&[request(&first("gpu-17"))], false), Judgement::Approve("node \"gpu-17\" joins".to_owned()));
    left(&[request(&first("gpu-17"))], true, "there is a node \"gpu-17\" already");
    // The kubelets' own tokens are none of ours, and nobody else is.
    left(&[request(&asked("gpu-17", "system:bootstrap:abcdef", &["system:bootstrappers"]))], false, "may not ask");
    left(&[request(&asked("gpu-17", "system:serviceaccount:nodewall:nodewall-node", &[]))], false, "may not ask");
}

#[test]
fn a_name_that_somebody_has_or_wants_is_left_to_a_person() {
    let issued = |until: i32| {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, user("gpu-17"));
        parameters.not_after = rcgen::date_time_ymd(until, 1, 1);
        let pem = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        json!({ "conditions": [{ "type": "Approved" }], "certificate": ByteString(pem.into_bytes()) })
    };
    let approved = json!({ "conditions": [{ "type": "Approved" }] });
    let failed = json!({ "conditions": [{ "type": "Approved" }, { "type": "Failed" }] });
    let denied = json!({ "conditions": [{ "type": "Denied" }] });
    let other = |status: Json| [request(&first("gpu-17")), with(first("gpu-17"), "/status", status)];
    left(&other(json!({})), false, "wants to be node \"gpu-17\", too");
    left(&other(approved), false, "was approved already");
    left(&other(issued(2100)), false, "was approved already");
    left(
        &other(json!({ "conditions": [{ "type": "Approved" }], "certificate": "Zm9v" })),
        false,
        "was approved already",
    );
    for nobody in [issued(2001), failed, denied] {
        assert!(matches!(judged(&other(nobody), false), Judgement::Approve(_)));
    }
    let elsewhere = [request(&first("gpu-17")), request(&first("gpu-18")), request(&renewal("gpu-18"))];
    assert!(matches!(judged(&elsewhere, false), Judgement::Approve(_)));
    let renewed = [request(&first("gpu-17")), request(&renewal("gpu-17"))];
    left(&renewed, false, "wants to be node \"gpu-17\", too");
}

#[test]
fn what_is_not_about_nodes_is_passed_by() {
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "jane");
    let pem = parameters.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let mut jane = renewal("gpu-17");
    jane["metadata"]["name"] = json!("jane");
    left(&[with(jane.clone(), "/spec/request", json!(ByteString(pem.into_bytes())))], false, "");
    left(&[with(jane, "/spec/request", json!("Zm9v"))], false, "");
    parameters.distinguished_name.push(rcgen::DnType::OrganizationName, GROUP);
    let pem = parameters.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    left(
        &[with(renewal("gpu-17"), "/spec/request", json!(ByteString(pem.into_bytes())))],
        false,
        "is no name of a node",
    );
}

proptest! {
    /// Whoever asks, with whatever groups, for whatever name: only a node itself, or somebody with a token for joining and a free name.
    #[test]
    fn nobody_else_is_ever_approved(
        name in prop::sample::select(vec!["a", "b", "system:masters", "A", ""]),
        by in prop::sample::select(vec!["nodewall:node:a", "nodewall:node:b", "nodewall:node:", "system:bootstrap:abcdef", "jane"]),
        groups in prop::sample::subsequence(vec![GROUP, BOOTSTRAP_GROUP, "system:masters", "system:bootstrappers"], 0..4),
        is_known in any::<bool>(),
    ) {
        let one = request(&asked(name, by, &groups));
        let is_node = name == "a" || name == "b";
        let itself = is_node && by == user(name) && groups.contains(&GROUP);
        let joins = is_node && !by.starts_with("nodewall:node:a") && !by.starts_with("nodewall:node:b") && groups.contains(&BOOTSTRAP_GROUP) && !is_known;
        let approved = matches!(judge(&one, std::slice::from_ref(&one), is_known, NOW), Judgement::Approve(_));
        prop_assert_eq!(approved, itself || joins);
    }
}
