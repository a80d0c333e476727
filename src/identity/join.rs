//! Makes a host a node of nodewall in a cluster: from a bootstrap token to a kubeconfig with a certificate of its own.

use std::time::Duration;

use super::certificate::roots;
use super::client::{Client, Failure};
use super::discovery::{Undiscovered, discover};
use super::files::Files;
use super::obtain::{Stopped, obtain};
use super::{Secret, now};
use crate::connect::kubeconfig;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The URL of the API server.
    pub server: String,
    /// How it is known.
    pub authority: Authority,
    /// A bootstrap token.
    pub token: Token,
    /// What this node is called in the cluster.
    pub node: String,
    /// Where to put what comes of it.
    pub files: Files,
    /// How long to wait for the certificate.
    pub wait: Duration,
    /// Whether to replace what is there.
    pub force: bool,
}

/// How a server is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Authority {
    /// By these roots, in PEM.
    Roots(String),
    /// By the roots that the cluster publishes, where the SHA-256 of their public keys is one of these.
    Hashes(Vec<[u8; 32]>),
}

/// A bootstrap token of Kubernetes: "abcdef.0123456789abcdef".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token(Secret);

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// It is none. What it is instead is not in the message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is = |part: &str, length: usize| {
            part.len() == length && part.chars().all(|next| matches!(next, 'a'..='z' | '0'..='9'))
        };
        let text = text.trim();
        if text.split_once('.').is_some_and(|(id, secret)| is(id, 6) && is(secret, 16)) {
            return Ok(Self(Secret::new(text)));
        }
        Err("this is no bootstrap token: 6 characters, a dot, and 16 characters, of a-z and 0-9".to_owned())
    }
}

/// Reads a hash of a root as kubeadm writes it: "sha256:" and 64 hexadecimal digits.
///
/// # Errors
/// A sentence for people that says what is accepted.
pub fn parse_hash(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "write sha256: and 64 hexadecimal digits, as `kubeadm token create --print-join-command` does";
    let digits =
        text.strip_prefix("sha256:").filter(|digits| digits.len() == 64 && digits.is_ascii()).ok_or_else(wrong)?;
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        if pair.starts_with('+') {
            return Err(wrong().to_owned());
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(hash)
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// Whether there is a new certificate; if not, the one that was there holds.
    pub new: bool,
    /// Until when it holds, in seconds since 1970-01-01 UTC.
    pub until: u64,
}

/// Why nothing came of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Something is in the way, or was given wrongly.
    #[error("{0}")]
    Unusable(String),
    /// The server does not let us.
    #[error("{0}")]
    NotAuthorised(String),
    /// The server did not answer, or somebody said no.
    #[error("{0}")]
    Failed(String),
    /// The time is over, and another run goes on.
    #[error("{0}")]
    Late(String),
}

/// Does it. What was begun and not finished is gone on with: the key is on disk before the request is sent. `tell` is told what the
/// waiting is for.
///
/// # Errors
/// [`Error`].
pub async fn join(wanted: &Wanted, tell: &(dyn Fn(&str) + Send + Sync)) -> Result<Joined, Error> {
    let Wanted { server, node, files, .. } = wanted;
    let present = if wanted.force { None } else { present(wanted)? };
    if let Some(until) = present
        && files.kubeconfig.exists()
    {
        return Ok(Joined { new: false, until });
    }
    let roots = known_roots(server, &wanted.authority).await?;
    let unwritten = |path: &std::path::Path, error: std::io::Error| {
        Error::Unusable(format!("cannot write {}: {error}", path.display()))
    };
    let until = match present {
        Some(until) => until,
        None => {
            let client = Client::with_token(server, roots.clone(), &wanted.token.0).map_err(Error::Unusable)?;
            let key = files.pending_key().map_err(|error| unwritten(&files.pending, error))?;
            let (chain, certificate) = match obtain(&client, node, &key, wanted.wait, tell).await {
                Ok(issued) => issued,
                Err(stopped) => {
                    if matches!(stopped, Stopped::Denied(_) | Stopped::Wrong(_)) {
                        // Nothing will come of this key any more.
                        files.forget_pending().map_err(|error| unwritten(&files.pending, error))?;
                    }
                    return Err(of_stopped(stopped));
                }
            };
            files.write_identity(&chain, &key).map_err(|error| unwritten(&files.identity, error))?;
            certificate.lifetime.until
        }
    };
    files.write_kubeconfig(server, &roots).map_err(|error| unwritten(&files.kubeconfig, error))?;
    Ok(Joined { new: present.is_none(), until })
}

/// Until when the identity that is there holds, where it is what is wanted; what is in the way is an error.
fn present(wanted: &Wanted) -> Result<Option<u64>, Error> {
    let files = &wanted.files;
    let in_the_way = |why: String| Error::Unusable(format!("{why}; --force replaces it"));
    let shown = files.kubeconfig.display();
    if files.kubeconfig.exists() {
        let ours = Files::of_kubeconfig(&files.kubeconfig).map_err(in_the_way)?;
        if ours.as_ref().is_none_or(|ours| ours.identity != files.identity) {
            return Err(in_the_way(format!("{shown} is there already, and was not made by `nodewall join`")));
        }
        let server = kubeconfig::read(&files.kubeconfig).ok().and_then(|config| {
            config.clusters.into_iter().find_map(|named| named.cluster.and_then(|cluster| cluster.server))
        });
        if let Some(other) = server.filter(|server| server.trim_end_matches('/') != wanted.server.trim_end_matches('/'))
        {
            return Err(in_the_way(format!("{shown} is for another server, {other}")));
        }
    }
    let Some(identity) = files.identity().map_err(in_the_way)? else { return Ok(None) };
    if identity.node != wanted.node {
        let (shown, node, other) = (files.identity.display(), &wanted.node, &identity.node);
        return Err(in_the_way(format!("{shown} is the identity of node \"{other}\", not of \"{node}\"")));
    }
    // One that is over is worth nothing, and in nobody's way.
    Ok(Some(identity.certificate.lifetime.until).filter(|until| *until > now()))
}

async fn known_roots(server: &str, authority: &Authority) -> Result<Vec<Vec<u8>>, Error> {
    let hashes = match authority {
        Authority::Roots(pem) => {
            let known: Vec<_> =
                roots(pem.as_bytes()).map_err(Error::Unusable)?.into_iter().map(|root| root.der).collect();
            if known.is_empty() {
                return Err(Error::Unusable("the file of the CA has no certificate".to_owned()));
            }
            return Ok(known);
        }
        Authority::Hashes(hashes) => hashes,
    };
    discover(server, hashes).await.map_err(|why| match why {
        Undiscovered::Unanswered(failure) => {
            Error::Failed(format!("{server} does not say which CA it has: {failure}; --ca-file goes without asking"))
        }
        Undiscovered::Unusable(why) => Error::Failed(format!("{server}: {why}; --ca-file goes without asking")),
        Undiscovered::Strange => Error::Failed(format!(
            "no CA of {server} has the hash of --ca-hash: it is another cluster, or somebody is in between; the token was not sent"
        )),
    })
}

fn of_stopped(stopped: Stopped) -> Error {
    match stopped {
        Stopped::Refused(Failure::Refused { code: 401, message }) => Error::NotAuthorised(format!(
            "the server does not know the token: {message}; it may be over: make another with `kubeadm token create`"
        )),
        Stopped::Refused(Failure::Refused { code: 403, message }) => Error::NotAuthorised(format!(
            "the token may not ask for certificates: {message}; it needs the group {}",
            super::BOOTSTRAP_GROUP
        )),
        Stopped::Refused(failure) => Error::Failed(failure.to_string()),
        Stopped::Denied(why) => Error::Failed(format!("{why}; the next `nodewall join` asks with another key")),
        Stopped::Wrong(why) => Error::Failed(why),
        Stopped::Late(why) => Error::Late(format!("{why}; another `nodewall join` goes on waiting")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tokens_are_those_of_kubeadm_and_never_in_a_message() {
        let token = Token::parse("abcdef.0123456789abcdef\n").unwrap();
        assert_eq!(token.0.expose(), "abcdef.0123456789abcdef");
        assert!(!format!("{token:?}").contains("abcdef"));
        for wrong in [
            "",
            "abcdef",
            "abcdef.0123456789abcde",
            "Abcdef.0123456789abcdef",
            "abcdef.0123456789abcdéf",
            "abcdef 0123456789abcdef",
        ] {
            let said = Token::parse(wrong).unwrap_err();
            assert!(wrong.len() < 6 || !said.contains(wrong), "{said}");
        }
    }

    #[test]
    fn hashes_are_those_of_kubeadm() {
        let text = format!("sha256:{}0f", "ab".repeat(31));
        let hash = parse_hash(&text).unwrap();
        assert_eq!((hash[0], hash[30], hash[31]), (0xab, 0xab, 0x0f));
        for wrong in [
            "",
            "sha256:",
            "sha512:00",
            &text[..70],
            &text.replace("0f", "+f"),
            &text.replace("0f", "0g"),
            &text.replace("ab0f", "é0f"),
        ] {
            assert!(parse_hash(wrong).is_err(), "{wrong}");
        }
    }
}
