//! `[metrics]` of nodewall.toml: where the numbers about this node can be read, and by whom.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::decode::path;
use crate::text::finding::Code;
use crate::text::read::{Fields, Reader, quoted};
use crate::text::tree::{Node, Value};

/// Where metrics are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetricsSettings {
    /// The unix socket; `None`: there is none.
    pub socket: Option<PathBuf>,
    /// The TCP endpoint; `None`: there is none.
    pub listen: Option<Endpoint>,
    /// Whether each rule has its series.
    pub rules: bool,
    /// Whether it is looked from time to time what of this host can be reached.
    pub exposed: bool,
}

/// An address at which somebody who shows that he may can read metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The address.
    pub address: SocketAddr,
    /// The server's certificate and key; `None`: no TLS, which only a token on loopback does without.
    pub tls: Option<KeyPair>,
    /// Who may read.
    pub readers: Readers,
}

/// A certificate chain and its key, in files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyPair {
    /// The certificate, with those between it and its authority: PEM.
    pub certificate: PathBuf,
    /// The key: PEM, readable by root alone.
    pub key: PathBuf,
}

/// Who may read metrics over TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Readers {
    /// Who has a client certificate of an authority in this file.
    Certificate(PathBuf),
    /// Who knows the token in this file.
    Token(PathBuf),
    /// Who has both: authority, token.
    Both(PathBuf, PathBuf),
}

/// The name of the unix socket, beside the control socket.
const SOCKET: &str = "metrics.sock";

impl MetricsSettings {
    /// What holds where nothing is said: a unix socket beside the control socket.
    pub fn beside(control: &Path) -> Self {
        Self { socket: Some(control.with_file_name(SOCKET)), listen: None, rules: false, exposed: true }
    }
}

/// Reads `[metrics]`.
pub(super) fn metrics<'t>(reader: &mut Reader<'t>, mut fields: Fields<'_, 't>, control: &Path) -> MetricsSettings {
    let mut settings = MetricsSettings::beside(control);
    if let Some(node) = fields.get("socket") {
        settings.socket = match &node.value {
            Value::Boolean(false) => None,
            Value::String(text) if text.is_empty() => None,
            _ => path(reader, node, "socket").or(settings.socket),
        };
    }
    for (key, place) in [("rules", &mut settings.rules), ("exposed", &mut settings.exposed)] {
        if let Some(said) = fields.get(key).and_then(|node| reader.boolean(node, key)) {
            *place = said;
        }
    }
    let listen = fields.get("listen");
    let mut file = |key: &'static str| {
        let node = fields.get(key)?;
        let path = path(reader, node, key)?;
        Some((node, path))
    };
    let (certificate, key) = (file("certificate"), file("key"));
    let (authority, token) = (file("client_ca"), file("token_file"));
    match listen {
        Some(node) => settings.listen = endpoint(reader, node, (certificate, key), (authority, token)),
        None => {
            if let Some((node, _)) = [certificate, key, authority, token].into_iter().flatten().next() {
                let help =
                    "write listen = \"127.0.0.1:9477\", or leave this out: who may open the unix socket says its group";
                reader.error_with_help(Code::MissingKey, node.span, "there is no `listen` that this is for", help);
            }
        }
    }
    fields.finish(reader, "[metrics]");
    settings
}

/// A file with the node that named it.
type Named<'n, 't> = Option<(&'n Node<'t>, PathBuf)>;

fn endpoint<'t>(
    reader: &mut Reader<'t>,
    node: &Node<'t>,
    (certificate, key): (Named<'_, 't>, Named<'_, 't>),
    (authority, token): (Named<'_, 't>, Named<'_, 't>),
) -> Option<Endpoint> {
    let text = reader.string(node, "listen")?;
    let Ok(address) = text.parse::<SocketAddr>() else {
        let message = format!("{} is not an address with a port", quoted(text));
        reader.error_with_help(Code::Value, node.span, message, "write \"192.0.2.7:9477\" or \"[::]:9477\"");
        return None;
    };
    let tls = match (certificate, key) {
        (Some((_, certificate)), Some((_, key))) => Some(KeyPair { certificate, key }),
        (None, None) => None,
        (Some((node, _)), None) => {
            reader.error_with_help(
                Code::MissingKey,
                node.span,
                "a certificate without its `key`",
                "write key = \"/PATH\"",
            );
            return None;
        }
        (None, Some((node, _))) => {
            let help = "write certificate = \"/PATH\"";
            reader.error_with_help(Code::MissingKey, node.span, "a key without its `certificate`", help);
            return None;
        }
    };
    let file = |named: Named<'_, 't>| named.map(|(_, path)| path);
    let readers = match (file(authority), file(token)) {
        (Some(authority), Some(token)) => Readers::Both(authority, token),
        (Some(authority), None) => Readers::Certificate(authority),
        (None, Some(token)) => Readers::Token(token),
        (None, None) => {
            let message = "anybody could read metrics at `listen`";
            let help = "write certificate, key and client_ca, for those with a certificate, or token_file, for those with a token";
            reader.error_with_help(Code::MissingKey, node.span, message, help);
            return None;
        }
    };
    if tls.is_none() && !matches!(readers, Readers::Token(_)) {
        let help = "write certificate = \"/PATH\" and key = \"/PATH\"";
        reader.error_with_help(Code::MissingKey, node.span, "client_ca needs `certificate` and `key`", help);
        return None;
    }
    if tls.is_none() && !address.ip().is_loopback() {
        let message = format!("a token would go over the network in the clear to {address}");
        let help = "write certificate = \"/PATH\" and key = \"/PATH\", or listen on 127.0.0.1";
        reader.error_with_help(Code::Value, node.span, message, help);
        return None;
    }
    Some(Endpoint { address, tls, readers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, decode_text};

    fn decoded(text: &str) -> (MetricsSettings, Vec<String>) {
        let (config, findings) = decode_text("nodewall.toml", text);
        (config.metrics, findings.iter().map(|finding| finding.message.clone()).collect())
    }

    #[test]
    fn a_unix_socket_beside_the_control_socket_is_all_there_is_by_default() {
        assert_eq!(decoded("").0, Config::shipped().metrics);
        assert_eq!(decoded("").0.socket.as_deref(), Some(Path::new("/run/nodewall/metrics.sock")));
        let (settings, findings) = decoded("socket = \"/run/other/a.sock\"\n[metrics]\nrules = true\n");
        assert_eq!(settings.socket.as_deref(), Some(Path::new("/run/other/metrics.sock")));
        assert!(settings.rules && settings.listen.is_none() && findings.is_empty());
        for off in ["\"\"", "false"] {
            assert_eq!(decoded(&format!("[metrics]\nsocket = {off}\n")).0.socket, None);
        }
        let (settings, findings) = decoded("[metrics]\nsocket = \"metrics.sock\"\n");
        assert_eq!((settings, findings.len()), (Config::shipped().metrics, 1));
    }

    #[test]
    fn over_tcp_somebody_has_to_show_that_he_may() {
        let tls = "certificate = \"/a\"\nkey = \"/b\"\n";
        for (rest, expected) in [
            (format!("listen = \"[::]:9477\"\n{tls}client_ca = \"/c\""), None),
            (format!("listen = \"[::]:9477\"\n{tls}token_file = \"/c\""), None),
            (format!("listen = \"[::]:9477\"\n{tls}token_file = \"/c\"\nclient_ca = \"/d\""), None),
            ("listen = \"127.0.0.1:9477\"\ntoken_file = \"/c\"".to_owned(), None),
            (
                "listen = \"192.0.2.7:9477\"\ntoken_file = \"/c\"".to_owned(),
                Some("a token would go over the network in the clear to 192.0.2.7:9477"),
            ),
            ("listen = \"127.0.0.1:9477\"".to_owned(), Some("anybody could read metrics at `listen`")),
            (format!("listen = \"127.0.0.1:9477\"\n{tls}"), Some("anybody could read metrics at `listen`")),
            (
                "listen = \"127.0.0.1:9477\"\nclient_ca = \"/c\"".to_owned(),
                Some("client_ca needs `certificate` and `key`"),
            ),
            (
                "listen = \"127.0.0.1:9477\"\ntoken_file = \"/c\"\nkey = \"/b\"".to_owned(),
                Some("a key without its `certificate`"),
            ),
            (
                "listen = \"127.0.0.1:9477\"\ntoken_file = \"/c\"\ncertificate = \"/b\"".to_owned(),
                Some("a certificate without its `key`"),
            ),
            ("listen = \"localhost:9477\"".to_owned(), Some("\"localhost:9477\" is not an address with a port")),
            ("token_file = \"/c\"".to_owned(), Some("there is no `listen` that this is for")),
        ] {
            let (settings, findings) = decoded(&format!("[metrics]\n{rest}\n"));
            assert_eq!(findings, expected.into_iter().map(str::to_owned).collect::<Vec<_>>(), "{rest}");
            assert_eq!(settings.listen.is_some(), expected.is_none(), "{rest}");
        }
    }
}
