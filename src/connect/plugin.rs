//! The program that a kubeconfig logs in with: `ExecCredential` of client.authentication.k8s.io, as kubectl speaks it
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>).

use std::io::{self, ErrorKind, IsTerminal, Read};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use kube::config::{ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::authorization::base64;
use super::tls::Identity;
use crate::text::time::parse_rfc3339;

/// The versions that are spoken. kubectl has none else since 1.24.
const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
/// No answer is longer, in bytes: it has a token or a certificate in it.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What a program gave.
pub(super) struct Credential {
    /// A bearer token.
    pub(super) token: Option<String>,
    /// A client certificate.
    pub(super) identity: Option<Identity>,
    /// Until when, in seconds since 1970-01-01 UTC.
    pub(super) until: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: String,
    kind: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Runs the program, and waits for what it says: it may have a person log in meanwhile. What it writes to stderr is for that person.
///
/// # Errors
/// Why it gives no credential, for people. Nothing that it said is in it.
pub(super) fn log_in(config: &ExecConfig) -> Result<Credential, String> {
    let program = config.command.as_deref().filter(|command| !command.is_empty());
    let program = program.ok_or("the program to log in has no command")?;
    let wrong = |why: &str| format!("the program to log in, {program}, {why}");
    let version = config.api_version.as_deref().unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(wrong(&format!("is to speak \"{version}\"; what is spoken here is {}", VERSIONS.join(" and "))));
    }
    let interactive = match config.interactive_mode {
        Some(ExecInteractiveMode::Never) => false,
        Some(ExecInteractiveMode::IfAvailable) | None => io::stdin().is_terminal(),
        Some(ExecInteractiveMode::Always) if io::stdin().is_terminal() => true,
        Some(ExecInteractiveMode::Always) => return Err(wrong("needs a terminal, and stdin is none")),
    };
    let mut command = Command::new(program);
    command.args(config.args.iter().flatten());
    for variable in config.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    command.env("KUBERNETES_EXEC_INFO", question(config, version, interactive).to_string());
    command.stdin(if interactive { Stdio::inherit() } else { Stdio::null() }).stdout(Stdio::piped());
    let mut running = command.spawn().map_err(|error| match &config.install_hint {
        Some(hint) if error.kind() == ErrorKind::NotFound => wrong(&format!("is not there: {hint}")),
        _ => wrong(&format!("cannot be run: {error}")),
    })?;
    let mut answer = Vec::new();
    let read = running.stdout.take().map(|stdout| stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer));
    // Its pipe is closed by now, so that it ends even when it has more to say.
    let ended = running.wait().map_err(|error| wrong(&format!("cannot be waited for: {error}")))?;
    read.transpose().map_err(|error| wrong(&format!("cannot be listened to: {error}")))?;
    if !ended.success() {
        return Err(wrong(&format!("failed: {ended}")));
    }
    credential(&answer, version).map_err(|why| wrong(&why))
}

/// What the program is told.
fn question(config: &ExecConfig, version: &str, interactive: bool) -> Json {
    let mut spec = json!({ "interactive": interactive });
    // Set where `provideClusterInfo` is.
    if let Some(cluster) = &config.cluster {
        let authority = cluster.certificate_authority_data.as_ref().map(|pem| json!(base64(pem)));
        let known: Map<String, Json> = [
            ("server", cluster.server.as_ref().map(|server| json!(server))),
            ("tls-server-name", cluster.tls_server_name.as_ref().map(|name| json!(name))),
            ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify.map(|skip| json!(skip))),
            ("certificate-authority-data", authority),
            ("proxy-url", cluster.proxy_url.as_ref().map(|proxy| json!(proxy))),
            ("config", cluster.config.clone()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
        spec["cluster"] = Json::Object(known);
    }
    json!({ "kind": "ExecCredential", "apiVersion": version, "spec": spec })
}

fn credential(answer: &[u8], version: &str) -> Result<Credential, String> {
    // The words of serde may have a part of the answer in them.
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "does not answer with an ExecCredential as JSON")?;
    if answer.kind != "ExecCredential" || answer.api_version != version {
        return Err(format!("does not answer with an ExecCredential of {version}"));
    }
    let status = answer.status.ok_or("answers without a status")?;
    let until = match status.expiration_timestamp {
        Some(time) => Some(parse_rfc3339(&time).ok_or("answers with an expirationTimestamp that is no time")?),
        None => None,
    };
    let identity = match (status.client_certificate_data, status.client_key_data) {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: certificate.into_bytes(), key: key.into_bytes() })
        }
        (None, None) => None,
        _ => return Err("answers with one of certificate and key only".to_owned()),
    };
    let token = status.token.filter(|token| !token.is_empty());
    if token.is_none() && identity.is_none() {
        return Err("answers with neither a token nor a certificate".to_owned());
    }
    Ok(Credential { token, identity, until })
}

/// Seconds since 1970-01-01 UTC.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use kube::config::ExecAuthCluster;

    use super::*;

    /// A program that is a shell with this to do.
    fn shell(script: &str) -> ExecConfig {
        ExecConfig {
            api_version: Some(VERSIONS[0].to_owned()),
            command: Some("sh".to_owned()),
            args: Some(vec!["-c".to_owned(), script.to_owned(), "name".to_owned(), "first argument".to_owned()]),
            env: Some(vec![HashMap::from([
                ("name".to_owned(), "SAID".to_owned()),
                ("value".to_owned(), "of the kubeconfig".to_owned()),
            ])]),
            interactive_mode: Some(ExecInteractiveMode::Never),
            ..ExecConfig::default()
        }
    }

    fn answering(status: &str) -> ExecConfig {
        shell(&format!(r#"echo '{{"kind":"ExecCredential","apiVersion":"{}","status":{status}}}'"#, VERSIONS[0]))
    }

    fn failure(config: &ExecConfig) -> String {
        log_in(config).err().unwrap()
    }

    #[test]
    fn a_program_gives_a_token_for_a_time_or_a_certificate() {
        let credential = log_in(&answering(r#"{"token":"abc","expirationTimestamp":"2026-11-26T14:00:00Z"}"#)).unwrap();
        assert_eq!((credential.token.as_deref(), credential.until), (Some("abc"), Some(1_795_701_600)));
        assert!(credential.identity.is_none());
        let credential =
            log_in(&answering(r#"{"token":"","clientCertificateData":"the certificate","clientKeyData":"the key"}"#));
        let credential = credential.unwrap();
        let identity = credential.identity.unwrap();
        assert_eq!((&*identity.certificate, &*identity.key), (&b"the certificate"[..], &b"the key"[..]));
        assert_eq!((credential.token, credential.until), (None, None));
    }

    #[test]
    fn a_program_is_told_what_the_kubeconfig_says_and_which_cluster_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let mut config = shell(&format!(
            r#"printf '%s\n' "$1" "$SAID" "$KUBERNETES_EXEC_INFO" > {}; echo '{{"kind":"ExecCredential","apiVersion":"{}","status":{{"token":"t"}}}}'"#,
            told.display(),
            VERSIONS[1],
        ));
        config.api_version = Some(VERSIONS[1].to_owned());
        config.cluster = Some(ExecAuthCluster {
            server: Some("https://api:6443".to_owned()),
            certificate_authority_data: Some(b"pem".to_vec()),
            config: Some(json!({ "audience": "x" })),
            ..ExecAuthCluster::default()
        });
        assert_eq!(log_in(&config).unwrap().token.as_deref(), Some("t"));
        let told = std::fs::read_to_string(told).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[..2], ["first argument", "of the kubeconfig"]);
        assert_eq!(
            serde_json::from_str::<Json>(lines[2]).unwrap(),
            json!({
                "kind": "ExecCredential", "apiVersion": VERSIONS[1],
                "spec": {
                    "interactive": false,
                    "cluster": { "server": "https://api:6443", "certificate-authority-data": "cGVt", "config": { "audience": "x" } },
                },
            })
        );
    }

    #[test]
    fn what_a_program_does_wrong_is_said_and_not_what_it_said() {
        let wrong = [
            (shell("echo secret; exit 3"), "the program to log in, sh, failed: exit status: 3"),
            (shell("echo secret"), "does not answer with an ExecCredential as JSON"),
            (answering("null"), "answers without a status"),
            (answering("{}"), "answers with neither a token nor a certificate"),
            (answering(r#"{"token":"secret","expirationTimestamp":"soon"}"#), "an expirationTimestamp that is no time"),
            (answering(r#"{"clientKeyData":"secret"}"#), "answers with one of certificate and key only"),
            (
                ExecConfig { api_version: Some(VERSIONS[1].to_owned()), ..answering("{}") },
                "an ExecCredential of client",
            ),
            (
                ExecConfig { api_version: Some("client.authentication.k8s.io/v1alpha1".to_owned()), ..shell("") },
                "what is spoken here is client.authentication.k8s.io/v1 and ",
            ),
            (ExecConfig { command: None, ..shell("") }, "has no command"),
            (
                ExecConfig {
                    command: Some("/nowhere/at-all".to_owned()),
                    install_hint: Some("install it".to_owned()),
                    ..shell("")
                },
                "/nowhere/at-all, is not there: install it",
            ),
        ];
        for (config, wanted) in wrong {
            let said = failure(&config);
            assert!(said.contains(wanted) && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn an_answer_without_an_end_is_not_listened_to_for_ever() {
        // How it ends depends on whether somebody above had SIGPIPE ignored.
        let said = failure(&shell("yes secret"));
        assert!(said.contains("failed: ") && !said.contains("secret"), "{said}");
    }
}
