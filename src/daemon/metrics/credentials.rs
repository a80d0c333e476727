//! What the TCP endpoint shows of itself and asks of others: certificates and the token, read again when their files change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::config::metrics::{Endpoint, Readers};
use crate::textfile::{self, Trust, Unread};

/// A shorter token can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// SHA-256 of a token: comparing digests tells nobody how much of a guess was right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Token([u8; 32]);

impl Token {
    /// Whether an `Authorization` header (RFC 6750) has it.
    pub(super) fn is_in(&self, header: Option<&str>) -> bool {
        let said = header.and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        said.is_some_and(|said| Self::of(said) == *self)
    }

    fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }
}

/// What a connection needs.
#[derive(Clone)]
pub(super) struct Keys {
    /// `None`: no TLS.
    pub(super) tls: Option<TlsAcceptor>,
    /// `None`: the certificate says enough.
    pub(super) token: Option<Token>,
}

/// Which file that was: another one has another number, time or length.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// The files of an endpoint, and what was in them.
pub(super) struct Credentials {
    endpoint: Endpoint,
    stamps: Vec<Stamp>,
    keys: Keys,
    /// What was wrong with the newest files, so that it is told once.
    told: Option<String>,
}

impl Credentials {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(super) fn read(endpoint: &Endpoint) -> Result<Self, String> {
        let stamps = stamps(endpoint);
        let keys = keys(endpoint)?;
        Ok(Self { endpoint: endpoint.clone(), stamps, keys, told: None })
    }

    /// What holds now. Files that cannot be used change nothing: half of a new pair may be there already.
    pub(super) fn now(&mut self) -> Keys {
        let stamps = stamps(&self.endpoint);
        if stamps != self.stamps {
            match keys(&self.endpoint) {
                Ok(keys) => {
                    tracing::info!("the files of the metrics endpoint {} were read again", self.endpoint.address);
                    (self.keys, self.stamps, self.told) = (keys, stamps, None);
                }
                Err(trouble) => {
                    if self.told.as_ref() != Some(&trouble) {
                        tracing::error!("{trouble}; the metrics endpoint goes on with what was there before");
                    }
                    self.told = Some(trouble);
                }
            }
        }
        self.keys.clone()
    }
}

fn stamps(endpoint: &Endpoint) -> Vec<Stamp> {
    let pair = endpoint.tls.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
    let readers: Vec<&PathBuf> = match &endpoint.readers {
        Readers::Certificate(file) | Readers::Token(file) => vec![file],
        Readers::Both(authority, token) => vec![authority, token],
    };
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
    };
    pair.chain(readers).map(stamp).collect()
}

fn keys(endpoint: &Endpoint) -> Result<Keys, String> {
    let (authority, token) = match &endpoint.readers {
        Readers::Certificate(authority) => (Some(authority), None),
        Readers::Token(token) => (None, Some(token)),
        Readers::Both(authority, token) => (Some(authority), Some(token)),
    };
    let token = token.map(|path| {
        let text = secret(path)?;
        let text = text.trim();
        if text.len() < SHORTEST_TOKEN || text.contains(char::is_whitespace) {
            return Err(format!("{}: a token is one word of at least {SHORTEST_TOKEN} bytes", path.display()));
        }
        Ok(Token::of(text))
    });
    let tls = match &endpoint.tls {
        None => None,
        Some(pair) => {
            let chain = certificates(&pair.certificate)?;
            let key = PrivateKeyDer::from_pem_slice(secret(&pair.key)?.as_bytes())
                .map_err(|error| format!("{}: no key in PEM: {error}", pair.key.display()))?;
            Some(acceptor(chain, key, authority.map(PathBuf::as_path)).map_err(|error| {
                format!("{} and {} cannot be used: {error}", pair.certificate.display(), pair.key.display())
            })?)
        }
    };
    Ok(Keys { tls, token: token.transpose()? })
}

fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: Option<&Path>,
) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let text = |error: &dyn std::error::Error| error.to_string();
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?;
    let config = match authority {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().map_err(|error| text(&error))?)
        }
    };
    let mut config = config.with_single_cert(chain, key).map_err(|error| text(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // With a session that is taken up again nobody shows a certificate: one of an authority that holds no more would go on.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{}: no certificate in PEM", path.display())),
        Err(error) => Err(format!("{}: no certificate in PEM: {error}", path.display())),
    }
}

/// A file that only root may change.
fn read(path: &Path) -> Result<String, String> {
    textfile::read(path, Trust::Required).map_err(|unread| match unread {
        Unread::Missing => format!("{} does not exist", path.display()),
        Unread::Refused(finding) => format!("{}: {}", path.display(), finding.message),
    })
}

/// A file that only root may read, too.
fn secret(path: &Path) -> Result<String, String> {
    let text = read(path)?;
    let mode = fs::metadata(path).map_or(0o777, |metadata| metadata.mode());
    if mode & 0o077 != 0 {
        return Err(format!("{}: others can read it; run chmod 600 on it", path.display()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_the_whole_word_of_its_scheme() {
        let token = Token::of("0123456789abcdef");
        for (header, good) in [
            (Some("Bearer 0123456789abcdef"), true),
            (Some("bearer  0123456789abcdef"), true),
            (Some("Bearer 0123456789abcde"), false),
            (Some("Bearer 0123456789abcdef0"), false),
            (Some("Basic 0123456789abcdef"), false),
            (Some("0123456789abcdef"), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(token.is_in(header), good, "{header:?}");
        }
    }

    #[test]
    fn a_token_that_others_can_read_or_guess_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let endpoint =
            Endpoint { address: "127.0.0.1:1".parse().unwrap(), tls: None, readers: Readers::Token(path.clone()) };
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Credentials::read(&endpoint).map(|mut credentials| credentials.now().token.is_some())
        };
        assert_eq!(write("0123456789abcdef\n", 0o600), Ok(true));
        assert!(write("0123456789abcdef\n", 0o640).unwrap_err().ends_with("others can read it; run chmod 600 on it"));
        assert!(write("short\n", 0o600).unwrap_err().contains("at least 16 bytes"));
    }
}
