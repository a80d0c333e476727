//! Whom we believe, and which certificate says who we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use secrecy::ExposeSecret;
use serde_json::json;

use crate::text::cause::chain;

/// Roots that were read from their file longer ago are read again: clusters change theirs.
const AGE: Duration = Duration::from_secs(60);

/// A client certificate and its key (PEM).
#[derive(PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// The settings of TLS for a server. Without an `identity` it is the one of the kubeconfig's user.
///
/// # Errors
/// Why there are none, for people. Nothing secret is in it.
pub(super) fn settings(config: &kube::Config, identity: Option<Identity>) -> Result<ClientConfig, String> {
    let identity = match identity {
        Some(identity) => Some(identity),
        None => identity_of(&config.auth_info)?,
    };
    let builder = match &config.root_cert {
        Some(roots) => ClientConfig::builder().with_root_certificates(store(roots.iter().cloned())?),
        // The roots of the system, as for kubectl.
        None => ClientConfig::builder()
            .with_platform_verifier()
            .map_err(|error| format!("the system's certificate authorities cannot be used: {}", chain(&error)))?,
    };
    let mut settings = match identity {
        Some(identity) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&identity.certificate).collect();
            let chain = chain.ok().filter(|chain| !chain.is_empty());
            let chain = chain.ok_or("there is no client certificate (PEM) where one is named")?;
            // One that is encrypted is none.
            let key = PrivateKeyDer::from_pem_slice(&identity.key);
            let key = key.map_err(|_| "there is no client key (PEM, not encrypted) where one is named")?;
            let made = builder.with_client_auth_cert(chain, key);
            made.map_err(|error| format!("the client certificate cannot be used: {error}"))?
        }
        None => builder.with_no_client_auth(),
    };
    if config.accept_invalid_certs {
        settings.dangerous().set_certificate_verifier(Arc::new(Anybody));
    } else if let Some(path) = &config.root_cert_file {
        settings.dangerous().set_certificate_verifier(Arc::new(OfFile::open(path.clone())?));
    }
    Ok(settings)
}

fn store(roots: impl IntoIterator<Item = Vec<u8>>) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        let added = store.add(CertificateDer::from(root));
        added.map_err(|error| format!("a certificate authority cannot be used: {error}"))?;
    }
    Ok(store)
}

/// Certificate and key of a user.
fn identity_of(user: &AuthInfo) -> Result<Option<Identity>, String> {
    let certificate = data_or_file(user.client_certificate_data.as_deref(), user.client_certificate.as_deref());
    let certificate = certificate.map_err(|why| format!("the client certificate {why}"))?;
    let key = user.client_key_data.as_ref().map(|data| data.expose_secret());
    let key = data_or_file(key, user.client_key.as_deref()).map_err(|why| format!("the client key {why}"))?;
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(_), None) => Err("there is a client certificate without its key".to_owned()),
        (None, Some(_)) => Err("there is a client key without its certificate".to_owned()),
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
    }
}

/// What is written in base64, else what is in a file.
fn data_or_file(data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    if let Some(data) = data {
        let bytes: Result<ByteString, _> = serde_json::from_value(json!(data));
        return bytes.map(|bytes| Some(bytes.0)).map_err(|_| "is not base64".to_owned());
    }
    let Some(file) = file else { return Ok(None) };
    fs::read(file).map(Some).map_err(|error| format!("in {file} cannot be read: {error}"))
}

/// Believes whom the authorities in a file vouch for, as the file is now.
#[derive(Debug)]
struct OfFile {
    path: PathBuf,
    held: RwLock<(Arc<WebPkiServerVerifier>, Instant)>,
}

impl OfFile {
    fn open(path: PathBuf) -> Result<Self, String> {
        let verifier = load(&path)?;
        Ok(Self { path, held: RwLock::new((verifier, Instant::now())) })
    }

    fn current(&self, now: Instant) -> Arc<WebPkiServerVerifier> {
        let old = |read: Instant| now.saturating_duration_since(read) >= AGE;
        {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            if !old(held.1) {
                return Arc::clone(&held.0);
            }
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if old(held.1) {
            // A file that is gone, or half written: what was in it before counts.
            let verifier = load(&self.path).unwrap_or_else(|_| Arc::clone(&held.0));
            *held = (verifier, now);
        }
        Arc::clone(&held.0)
    }
}

fn load(path: &Path) -> Result<Arc<WebPkiServerVerifier>, String> {
    let wrong = |why: String| format!("the certificate authorities in {} {why}", path.display());
    let text = fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let roots = roots.map_err(|_| wrong("are not PEM".to_owned()))?;
    let store = store(roots.iter().map(|root| root.to_vec())).map_err(|why| wrong(format!("are of no use: {why}")))?;
    WebPkiServerVerifier::builder(Arc::new(store)).build().map_err(|error| wrong(format!("are of no use: {error}")))
}

impl ServerCertVerifier for OfFile {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.current(Instant::now()).verify_server_cert(certificate, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current(Instant::now()).verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current(Instant::now()).verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current(Instant::now()).supported_verify_schemes()
    }
}

/// Believes anybody: `insecure-skip-tls-verify`, and whoever is asked only for what is compared with a hash.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn configuration() -> kube::Config {
        kube::Config::new("https://api:6443".parse().unwrap())
    }

    fn failure(config: &kube::Config) -> String {
        settings(config, None).err().unwrap()
    }

    #[test]
    fn certificate_and_key_come_from_files_or_stand_in_the_kubeconfig() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = made("node");
        let both = folder.path().join("both.pem");
        fs::write(&both, format!("{certificate}{key}")).unwrap();
        let mut config = configuration();
        config.root_cert = Some(Vec::new());
        assert!(!settings(&config, None).unwrap().client_auth_cert_resolver.has_certs());
        // As `nodewall join` writes it.
        config.auth_info.client_certificate = Some(both.to_str().unwrap().to_owned());
        assert_eq!(failure(&config), "there is a client certificate without its key");
        config.auth_info.client_key = config.auth_info.client_certificate.clone();
        assert!(settings(&config, None).unwrap().client_auth_cert_resolver.has_certs());
        // What stands in it counts before files.
        config.auth_info.client_key_data = Some("!".to_owned().into());
        assert_eq!(failure(&config), "the client key is not base64");
        let data = |text: &str| super::super::authorization::base64(text.as_bytes());
        config.auth_info.client_key_data = Some(data(&certificate).into());
        assert_eq!(failure(&config), "there is no client key (PEM, not encrypted) where one is named");
        config.auth_info.client_key_data = Some(data(&key).into());
        config.auth_info.client_certificate_data = Some(data("nothing"));
        assert_eq!(failure(&config), "there is no client certificate (PEM) where one is named");
        config.auth_info.client_certificate_data = Some(data(&certificate));
        assert!(settings(&config, None).is_ok());
        config.auth_info.client_certificate_data = None;
        config.auth_info.client_certificate = Some("/no/such".to_owned());
        assert!(failure(&config).starts_with("the client certificate in /no/such cannot be read: "));
        // Nor do they count beside those of a program.
        let identity = Identity { certificate: certificate.into_bytes(), key: key.into_bytes() };
        assert!(settings(&config, Some(identity)).unwrap().client_auth_cert_resolver.has_certs());
    }

    #[test]
    fn authorities_of_a_file_are_read_again_after_a_minute_and_kept_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let mut config = configuration();
        config.root_cert_file = Some(path.clone());
        config.root_cert = Some(Vec::new());
        assert!(failure(&config).contains("cannot be read"));
        fs::write(&path, made("one").0).unwrap();
        assert!(settings(&config, None).is_ok());
        let verifier = OfFile::open(path.clone()).unwrap();
        let start = verifier.held.read().unwrap().1;
        let first = verifier.current(start);
        fs::write(&path, made("two").0).unwrap();
        assert!(Arc::ptr_eq(&verifier.current(start + AGE - Duration::from_secs(1)), &first));
        let second = verifier.current(start + AGE);
        assert!(!Arc::ptr_eq(&second, &first));
        fs::write(&path, "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
        assert!(Arc::ptr_eq(&verifier.current(start + AGE * 2), &second));
    }
}
