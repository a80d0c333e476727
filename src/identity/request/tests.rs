//! Requests that a node makes, and those that others may send.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::*;

/// The PKCS #10 in a CertificateSigningRequest.
fn pem_of(object: &Json) -> Vec<u8> {
    serde_json::from_value::<ByteString>(object["spec"]["request"].clone()).unwrap().0
}

fn made(key: &KeyPair, change: impl Fn(&mut CertificateParams)) -> Vec<u8> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, GROUP);
    parameters.distinguished_name.push(DnType::CommonName, user("gpu-17"));
    change(&mut parameters);
    parameters.serialize_request(key).unwrap().pem().unwrap().into_bytes()
}

#[test]
fn what_a_node_asks_for_is_what_is_read() {
    let key = Key::generate().unwrap();
    let object = key.request("gpu-17.example").unwrap();
    assert_eq!(object["spec"]["signerName"], SIGNER);
    assert_eq!(object["spec"]["usages"], json!(["client auth", "digital signature"]));
    let asked = read(&pem_of(&object)).unwrap();
    assert_eq!(asked.user, "nodewall:node:gpu-17.example");
    assert_eq!(asked.groups, [GROUP.to_owned()].into());
    assert_eq!(asked.key, key.public());
    let again = Key::from_pem(&key.to_pem()).unwrap();
    assert_eq!(again.public(), key.public());
    assert_eq!(object["metadata"]["name"], again.request_name("gpu-17.example"));
    assert!(Key::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
}

#[test]
fn names_of_requests_are_names_of_objects_however_long_the_node_is_called() {
    let key = Key::generate().unwrap();
    let long = format!("{}.{}", "a".repeat(60), vec!["b".repeat(60); 3].join("."));
    for node in ["gpu-17", "a.b", &long, &format!("{}x.{}", &long[..232], "c".repeat(17))] {
        let name = key.request_name(node);
        // A DNS subdomain as Kubernetes has it, which limits the whole of a name only.
        assert!(name.starts_with("nodewall-") && name.len() <= 253, "{name}");
        assert!(
            name.split('.').all(|part| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')),
            "{name}"
        );
    }
}

#[test]
fn what_asks_for_more_is_not_read() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(read(&made(&key, |_| {})).is_ok());
    let names = |parameters: &mut CertificateParams| {
        parameters.subject_alt_names = vec![rcgen::SanType::DnsName("kubernetes".try_into().unwrap())];
    };
    let authority = |parameters: &mut CertificateParams| {
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    let unit = |parameters: &mut CertificateParams| {
        parameters.distinguished_name.push(DnType::OrganizationalUnitName, "x");
    };
    let nobody = |parameters: &mut CertificateParams| parameters.distinguished_name = DistinguishedName::new();
    assert_eq!(read(&made(&key, names)).unwrap_err(), "it asks for more than a subject");
    assert_eq!(read(&made(&key, authority)).unwrap_err(), "it asks for more than a subject");
    assert_eq!(read(&made(&key, unit)).unwrap_err(), "its subject has more than common name and organizations");
    assert_eq!(read(&made(&key, nobody)).unwrap_err(), "its subject has no common name");
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert_eq!(read(&made(&other, |_| {})).unwrap_err(), "its key is not on the curve P-256 or P-384");
    let stronger = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(read(&made(&stronger, |_| {})).is_ok());
    let mut two = made(&key, |_| {});
    two.extend(made(&key, |_| {}));
    assert_eq!(read(&two).unwrap_err(), "there is something after the request");
}

#[test]
fn a_certificate_that_was_not_asked_for_is_not_taken() {
    let key = Key::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, user("gpu-17"));
    let pem = parameters.self_signed(&key.0).unwrap().pem();
    assert!(issued(&pem, "gpu-17", &key, 1_700_000_000).is_ok());
    assert!(issued(&pem, "gpu-18", &key, 1_700_000_000).unwrap_err().contains("not for \"nodewall:node:gpu-18\""));
    assert!(issued(&pem, "gpu-17", &Key::generate().unwrap(), 1_700_000_000).unwrap_err().contains("another key"));
    assert!(issued(&pem, "gpu-17", &key, u64::MAX).unwrap_err().contains("over"));
    assert!(issued("", "gpu-17", &key, 0).is_err());
}

#[test]
fn what_becomes_of_a_request_is_read_from_its_conditions() {
    let of = |status: Json| progress(&json!({ "status": status }));
    assert_eq!(progress(&json!({})), Progress::Pending);
    assert_eq!(of(json!({ "conditions": [{ "type": "Approved" }] })), Progress::Approved);
    assert_eq!(
        of(json!({ "conditions": [{ "type": "Denied", "message": "who is it" }] })),
        Progress::Denied("who is it".into())
    );
    assert_eq!(
        of(json!({ "conditions": [{ "type": "Approved" }, { "type": "Failed" }] })),
        Progress::Failed("no reason is given".into())
    );
    assert_eq!(
        of(json!({ "conditions": [{ "type": "Approved" }], "certificate": "Zm9v" })),
        Progress::Issued("foo".into())
    );
    assert_eq!(of(json!({ "conditions": 7 })), Progress::Pending);
}

proptest! {
    /// Whoever has a token can send what they like; whatever it is, it has an answer.
    #[test]
    fn no_bytes_stop_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", json!(ByteString(bytes.clone())).as_str().unwrap());
        prop_assert!(read(text.as_bytes()).is_err());
        prop_assert!(read(&bytes).is_err());
        prop_assert!(certificate::read(&text.replace(" REQUEST", "")).is_err());
    }

    /// The same near what is right: bytes changed, cut and doubled. What is signed is what was asked, or it is not read.
    #[test]
    fn no_change_of_a_good_request_is_read_as_another(at in 0_usize..400, byte in any::<u8>(), cut in 0_usize..400, whole in any::<bool>()) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let good = made(&key, |_| {});
        let (_, block) = parse_x509_pem(&good).unwrap();
        let mut der = block.contents.clone();
        let at = at % der.len();
        der[at] = byte;
        if !whole {
            der.truncate(cut % (der.len() + 1));
        }
        let text = format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", json!(ByteString(der.clone())).as_str().unwrap());
        match read(text.as_bytes()) {
            Ok(asked) => prop_assert_eq!(&asked, &read(&good).unwrap()),
            Err(why) => prop_assert!(!why.is_empty() && der != block.contents),
        }
    }
}
