//! Who asks: the header `Authorization` of each request.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use k8s_openapi::ByteString;
use kube::config::{AuthInfo, ExecConfig};
use secrecy::ExposeSecret;
use serde_json::json;

use super::plugin::{self, Credential};
use super::tls::Identity;

/// A token that was read from its file longer ago is read again: those of pods change each hour.
const AGE: Duration = Duration::from_secs(60);
/// A token of a program that holds for less than so many seconds is over.
const MARGIN: u64 = 60;
/// No token is longer, in bytes.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// What the header is made of.
#[derive(Clone)]
pub(super) enum Authorization {
    /// There is none: nobody asks, or whom a certificate names.
    None,
    /// It stays as it is.
    Fixed(HeaderValue),
    /// It comes from a file.
    File(Arc<TokenFile>),
    /// It comes from a program, and is over at a time (seconds since 1970-01-01 UTC).
    Program(Arc<tokio::sync::Mutex<(HeaderValue, u64)>>, Arc<ExecConfig>),
}

/// Who asks by what a kubeconfig says of its user, and a client certificate where a program gave one.
///
/// # Errors
/// Why that cannot be said, for people. Nothing secret is in it.
pub(super) fn of(user: &AuthInfo) -> Result<(Authorization, Option<Identity>), String> {
    if let Some(provider) = &user.auth_provider {
        return Err(format!(
            "the auth-provider \"{}\" is not supported, as kubectl has none any more; log in with a program (exec) or a token",
            provider.name
        ));
    }
    let authorization = if let (Some(name), Some(password)) = (&user.username, &user.password) {
        Authorization::Fixed(basic(&format!("{name}:{}", password.expose_secret()))?)
    } else if let Some(token) = &user.token {
        Authorization::Fixed(bearer(token.expose_secret())?)
    } else if let Some(path) = &user.token_file {
        Authorization::File(Arc::new(TokenFile::open(path.into())?))
    } else if let Some(program) = &user.exec {
        let Credential { token, identity, until } = plugin::log_in(program)?;
        let header = token.map(|token| bearer(&token)).transpose()?;
        let authorization = match (header, until) {
            (Some(header), Some(until)) => {
                Authorization::Program(Arc::new(tokio::sync::Mutex::new((header, until))), Arc::new(program.clone()))
            }
            (Some(header), None) => Authorization::Fixed(header),
            (None, _) => Authorization::None,
        };
        return Ok((authorization, identity));
    } else {
        Authorization::None
    };
    Ok((authorization, None))
}

impl Authorization {
    /// The header as it is now.
    ///
    /// # Errors
    /// The program that gives it gives none.
    pub(super) async fn header(&self) -> Result<Option<HeaderValue>, String> {
        match self {
            Self::None => Ok(None),
            Self::Fixed(header) => Ok(Some(header.clone())),
            Self::File(file) => Ok(Some(file.header(Instant::now()))),
            Self::Program(credential, program) => {
                let mut held = credential.lock().await;
                if plugin::now() + MARGIN >= held.1 {
                    let program = Arc::clone(program);
                    let new = tokio::task::spawn_blocking(move || plugin::log_in(&program));
                    let new = new.await.map_err(|_| "the program to log in did not end".to_owned())??;
                    let token = new.token.ok_or("the program to log in gives no token any more")?;
                    // One without an end holds as long as we do.
                    *held = (bearer(&token)?, new.until.unwrap_or(u64::MAX));
                }
                Ok(Some(held.0.clone()))
            }
        }
    }
}

/// A file with a token, and what was in it.
pub(super) struct TokenFile {
    path: PathBuf,
    held: Mutex<(HeaderValue, Instant)>,
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<Self, String> {
        let header = read(&path)?;
        Ok(Self { path, held: Mutex::new((header, Instant::now())) })
    }

    fn header(&self, now: Instant) -> HeaderValue {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(held.1) >= AGE {
            // A file that is gone, or half written: what was in it before counts as long as the server takes it.
            let header = read(&self.path).unwrap_or_else(|_| held.0.clone());
            *held = (header, now);
        }
        held.0.clone()
    }
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let shown = path.display();
    let mut token = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut token));
    read.map_err(|error| format!("the token in {shown} cannot be read: {error}"))?;
    match token.trim() {
        "" => Err(format!("there is no token in {shown}")),
        token => bearer(token).map_err(|why| format!("{shown}: {why}")),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    sensitive(&format!("Bearer {token}"), "the token has characters that no token has")
}

fn basic(pair: &str) -> Result<HeaderValue, String> {
    sensitive(&format!("Basic {}", base64(pair.as_bytes())), "name and password cannot be sent")
}

/// Standard base64, which is what the API's own type for bytes writes.
pub(super) fn base64(bytes: &[u8]) -> String {
    json!(ByteString(bytes.to_vec())).as_str().unwrap_or_default().to_owned()
}

fn sensitive(header: &str, wrong: &str) -> Result<HeaderValue, String> {
    let mut header = HeaderValue::try_from(header).map_err(|_| wrong.to_owned())?;
    // Shown in no log.
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    async fn header_of(user: &AuthInfo) -> Option<String> {
        let (authorization, identity) = of(user).unwrap();
        assert!(identity.is_none());
        let header = authorization.header().await.unwrap()?;
        assert!(header.is_sensitive());
        Some(header.to_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn name_and_password_come_before_a_token_and_that_before_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "of-the-file\n").unwrap();
        let mut user = AuthInfo::default();
        assert_eq!(header_of(&user).await, None);
        user.token_file = Some(path.to_str().unwrap().to_owned());
        assert_eq!(header_of(&user).await.unwrap(), "Bearer of-the-file");
        user.token = Some("inline".to_owned().into());
        assert_eq!(header_of(&user).await.unwrap(), "Bearer inline");
        user.username = Some("jane".to_owned());
        assert_eq!(header_of(&user).await.unwrap(), "Bearer inline");
        user.password = Some("pass:word".to_owned().into());
        // printf jane:pass:word | base64
        assert_eq!(header_of(&user).await.unwrap(), "Basic amFuZTpwYXNzOndvcmQ=");
    }

    #[test]
    fn what_cannot_be_sent_is_said_without_saying_it() {
        let mut user = AuthInfo { token: Some("secret\nother".to_owned().into()), ..AuthInfo::default() };
        let said = of(&user).err().unwrap();
        assert!(said.contains("the token has characters") && !said.contains("secret"), "{said}");
        user.auth_provider = Some(kube::config::AuthProviderConfig {
            name: "gcp".to_owned(),
            ..kube::config::AuthProviderConfig::default()
        });
        assert!(of(&user).err().unwrap().contains("the auth-provider \"gcp\" is not supported"));
    }

    #[test]
    fn a_file_is_read_again_after_a_minute_and_kept_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(TokenFile::open(path.clone()).err().unwrap().contains("cannot be read"));
        fs::write(&path, " \n").unwrap();
        assert!(TokenFile::open(path.clone()).err().unwrap().contains("there is no token in"));
        fs::write(&path, "first\n").unwrap();
        let file = TokenFile::open(path.clone()).unwrap();
        let start = file.held.lock().unwrap().1;
        fs::write(&path, "second\n").unwrap();
        assert_eq!(file.header(start + AGE - Duration::from_secs(1)), "Bearer first");
        assert_eq!(file.header(start + AGE), "Bearer second");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.header(start + AGE * 2), "Bearer second");
        fs::write(&path, "third\n").unwrap();
        // The look at the file that was gone counts as one.
        assert_eq!(file.header(start + AGE * 2), "Bearer second");
        assert_eq!(file.header(start + AGE * 3), "Bearer third");
    }
}
