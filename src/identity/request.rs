//! The key of a node, the request for a certificate that is made with it, and what a request of others asks for.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::certificate::{self, Certificate, fingerprint, subject};
use super::{GROUP, SIGNER, USAGES, user};

/// How long a certificate is to hold: a node may be off for a month and more without a new token, and what was stolen ends in a season,
/// as Kubernetes revokes no certificates. In seconds.
const LIFETIME: u32 = 90 * 24 * 3600;

/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// A key of a node: ECDSA on P-256.
pub struct Key(KeyPair);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Self, String> {
        let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        made.map(Self).map_err(|error| format!("cannot make a key: {error}"))
    }

    /// The first private key in a PEM text.
    ///
    /// # Errors
    /// There is none that can be used. The text is not in the message.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        // rcgen looks at the first block only, which is a certificate's.
        let block = pem.find("-----BEGIN PRIVATE KEY-----").and_then(|start| pem.get(start..));
        let key = block.and_then(|block| KeyPair::from_pem(block).ok());
        key.map(Self).ok_or_else(|| "there is no private key in it that can be used".to_owned())
    }

    /// It as PKCS #8 in PEM.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Its public part: the DER of SubjectPublicKeyInfo.
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// What the object of the request is called: the same for the same key, so that whoever was interrupted finds it again.
    pub fn request_name(&self, node: &str) -> String {
        let hash = fingerprint(&self.public());
        let hash: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let room = LONGEST_NAME - "nodewall--".len() - hash.len();
        let node = node.get(..room).unwrap_or(node).trim_end_matches(['.', '-']);
        format!("nodewall-{node}-{hash}")
    }

    /// The CertificateSigningRequest with which a node asks for its identity.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn request(&self, node: &str) -> Result<Json, String> {
        let mut parameters = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, GROUP);
        name.push(DnType::CommonName, user(node));
        parameters.distinguished_name = name;
        let unsigned = |error| format!("cannot sign the request: {error}");
        let request = parameters.serialize_request(&self.0).map_err(unsigned)?.pem().map_err(unsigned)?;
        Ok(json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": { "name": self.request_name(node) },
            "spec": {
                "request": ByteString(request.into_bytes()),
                "signerName": SIGNER,
                "usages": USAGES,
                "expirationSeconds": LIFETIME,
            },
        }))
    }
}

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nobody has approved it yet.
    Pending,
    /// It is approved, and not signed yet.
    Approved,
    /// Somebody denied it, with these words.
    Denied(String),
    /// The signer could not sign it.
    Failed(String),
    /// The certificate, and the chain behind it, in PEM.
    Issued(String),
}

/// What is said of a CertificateSigningRequest.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
    certificate: Option<ByteString>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    message: String,
}

/// How it is with a CertificateSigningRequest, as the API gives it.
pub fn progress(object: &Json) -> Progress {
    let status = object.get("status").cloned().unwrap_or_default();
    let Status { conditions, certificate } = serde_json::from_value(status).unwrap_or_default();
    let said = |kind: &str| {
        let condition = conditions.iter().find(|condition| condition.kind == kind)?;
        Some(if condition.message.is_empty() { "no reason is given" } else { &condition.message }.to_owned())
    };
    if let Some(why) = said("Denied") {
        return Progress::Denied(why);
    }
    if let Some(why) = said("Failed") {
        return Progress::Failed(why);
    }
    let issued = certificate.map(|bytes| bytes.0).filter(|bytes| !bytes.is_empty());
    match issued.map(String::from_utf8) {
        Some(Ok(pem)) => Progress::Issued(pem),
        Some(Err(_)) => Progress::Failed("what the signer gave is no PEM text".to_owned()),
        None if said("Approved").is_some() => Progress::Approved,
        None => Progress::Pending,
    }
}

/// The certificate in a PEM text, if it is what a node asked for with this key.
///
/// # Errors
/// What is wrong with it.
pub fn issued(pem: &str, node: &str, key: &Key, now: u64) -> Result<Certificate, String> {
    let certificate = certificate::read(pem)?;
    if certificate.key != key.public() {
        return Err("the certificate is of another key".to_owned());
    }
    if certificate.user != user(node) {
        return Err(format!("the certificate is for \"{}\", not for \"{}\"", certificate.user, user(node)));
    }
    if certificate.lifetime.until <= now {
        return Err("the certificate is over".to_owned());
    }
    Ok(certificate)
}

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The user.
    pub user: String,
    /// The groups.
    pub groups: BTreeSet<String>,
    /// For which key: the DER of SubjectPublicKeyInfo.
    pub key: Vec<u8>,
}

/// Reads a request (PKCS #10 in PEM), whoever sent it. Only one that asks for nothing but a subject, is of an elliptic key on P-256 or
/// P-384, and is signed with that key is read.
///
/// # Errors
/// Why it is not, for people.
pub fn read(pem: &[u8]) -> Result<Asked, String> {
    let (after, block) = parse_x509_pem(pem).map_err(|_| "it is no PEM text")?;
    if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
        return Err("it is no certificate request".to_owned());
    }
    if !after.iter().all(u8::is_ascii_whitespace) {
        return Err("there is something after the request".to_owned());
    }
    let (rest, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|_| "it is no request of PKCS #10")?;
    if !rest.is_empty() {
        return Err("there is something after the request".to_owned());
    }
    let info = &request.certification_request_info;
    // Names and addresses, constraints, a password: nothing of that is for a node.
    if !info.attributes().is_empty() {
        return Err("it asks for more than a subject".to_owned());
    }
    let algorithm = &info.subject_pki.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_good = algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384);
    if !is_good {
        return Err("its key is not on the curve P-256 or P-384".to_owned());
    }
    request.verify_signature().map_err(|_| "it is not signed with its key")?;
    let (user, groups) = subject(&info.subject)?;
    Ok(Asked { user, groups, key: info.subject_pki.raw.to_vec() })
}

#[cfg(test)]
mod tests;
