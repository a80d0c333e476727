//! What a certificate says: who it is for, until when, and which key it is of.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::pem::Pem;
use x509_parser::x509::X509Name;

/// A certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The user (common name).
    pub user: String,
    /// Its groups (organizations).
    pub groups: BTreeSet<String>,
    /// When it begins and ends.
    pub lifetime: Lifetime,
    /// Its public key: the DER of SubjectPublicKeyInfo.
    pub key: Vec<u8>,
}

/// From when until when a certificate holds, in seconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// The first second.
    pub from: u64,
    /// The last.
    pub until: u64,
}

/// The first certificate in a PEM text, which is the one of the key in a chain.
///
/// # Errors
/// Why there is none that can be read.
pub fn read(pem: &str) -> Result<Certificate, String> {
    let first = certificates(pem.as_bytes())?.into_iter().next().ok_or("there is no certificate in it")?;
    let certificate = first.parse_x509().map_err(|error| format!("the certificate cannot be read: {error}"))?;
    of(&certificate)
}

/// A certificate of a CA.
pub(super) struct Root {
    /// The SHA-256 of its SubjectPublicKeyInfo.
    pub(super) hash: [u8; 32],
    /// All of it.
    pub(super) der: Vec<u8>,
}

/// The roots in a PEM text.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn roots(pem: &[u8]) -> Result<Vec<Root>, String> {
    let mut roots = Vec::new();
    for pem in certificates(pem)? {
        let certificate = pem.parse_x509().map_err(|error| format!("a certificate cannot be read: {error}"))?;
        roots.push(Root { hash: fingerprint(certificate.public_key().raw), der: pem.contents.clone() });
    }
    Ok(roots)
}

/// The SHA-256 of a public key, as kubeadm's `discovery-token-ca-cert-hash` has it.
pub fn fingerprint(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The blocks of a PEM text that are certificates.
fn certificates(pem: &[u8]) -> Result<Vec<Pem>, String> {
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| format!("it is no PEM text: {error}"))?;
        if block.label == "CERTIFICATE" {
            found.push(block);
        }
    }
    Ok(found)
}

fn of(certificate: &X509Certificate<'_>) -> Result<Certificate, String> {
    let (user, groups) = subject(certificate.subject())?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    Ok(Certificate {
        user,
        groups,
        lifetime: Lifetime {
            from: seconds(validity.not_before.timestamp()),
            until: seconds(validity.not_after.timestamp()),
        },
        key: certificate.public_key().raw.to_vec(),
    })
}

/// User and groups of a subject that has nothing else.
///
/// # Errors
/// What else it has, or what it lacks.
pub(super) fn subject(name: &X509Name<'_>) -> Result<(String, BTreeSet<String>), String> {
    let (mut user, mut groups) = (None, BTreeSet::new());
    for attribute in name.iter_attributes() {
        let text = text(attribute.attr_value()).ok_or("its subject has something that is no text")?;
        if *attribute.attr_type() == OID_X509_COMMON_NAME {
            if user.replace(text).is_some() {
                return Err("its subject has more than one common name".to_owned());
            }
        } else if *attribute.attr_type() == OID_X509_ORGANIZATION_NAME {
            groups.insert(text);
        } else {
            return Err("its subject has more than common name and organizations".to_owned());
        }
    }
    Ok((user.ok_or("its subject has no common name")?, groups))
}

/// The text of the kinds of strings that Go reads as such, too.
fn text(value: &Any<'_>) -> Option<String> {
    matches!(value.tag(), Tag::Utf8String | Tag::PrintableString)
        .then(|| std::str::from_utf8(value.data).ok().map(str::to_owned))
        .flatten()
}
