//! Reads kubeconfigs: YAML or JSON, as kubectl understands it. What is wrong is said by its line, and never in the words of the text:
//! there are secrets in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use kube::config::{
    AuthInfo, AuthProviderConfig, Cluster, Context, ExecConfig, ExecInteractiveMode, KubeConfigOptions, Kubeconfig,
    KubeconfigError, NamedAuthInfo, NamedCluster, NamedContext, NamedExtension,
};
use serde_json::Value as Json;

use crate::text::cause::chain;
use crate::text::tree::{Entry, MAX_TEXT_BYTES, Node, Source, Value};
use crate::text::yaml;

/// Reads a file, which may be a pipe, of at most [`MAX_TEXT_BYTES`]. Whose it is makes no difference here.
///
/// # Errors
/// Why it is no kubeconfig, for people.
pub fn read(path: &Path) -> Result<Kubeconfig, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("it cannot be read: {error}"))?;
    let read = file.take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("it cannot be read: {error}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    parse(&text, path.parent())
}

/// Reads a text, which may have several documents. Paths in it are relative to a directory.
///
/// # Errors
/// Why it is no kubeconfig, for people.
pub fn parse(text: &str, directory: Option<&Path>) -> Result<Kubeconfig, String> {
    let source = Source::new("", text.strip_prefix('\u{feff}').unwrap_or(text));
    let (documents, findings) = yaml::parse(&source);
    if let Some(finding) = findings.first() {
        return Err(match finding.place.line {
            0 => format!("it is larger than {} MiB", MAX_TEXT_BYTES >> 20),
            line => format!(
                "line {line} is not read: write plain YAML without anchors, aliases and tags, each key once, and text like yes or 010 in quotes"
            ),
        });
    }
    let mut all = Kubeconfig::default();
    for document in &documents {
        let mut config = self::document(&source, document)?;
        if let Some(directory) = directory {
            resolve(&mut config, directory);
        }
        all = merge(all, config)?;
    }
    Ok(all)
}

/// Two kubeconfigs as one: of what has the same name in both, the first counts.
///
/// # Errors
/// One of them is something else, or of another version.
pub fn merge(first: Kubeconfig, second: Kubeconfig) -> Result<Kubeconfig, String> {
    first.merge(second).map_err(|error| said(&error))
}

/// What the current context of a kubeconfig says. Proxies come from it, else from the environment.
///
/// # Errors
/// Why there is none, for people.
pub async fn config(kubeconfig: Kubeconfig) -> Result<kube::Config, String> {
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.map_err(|error| said(&error))
}

/// Not by its own `Display`, which has the words of a reader of YAML in it that is not used.
fn said(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::CurrentContextNotSet => "it has no current-context".to_owned(),
        KubeconfigError::KindMismatch => "it is of another kind than the one before it".to_owned(),
        KubeconfigError::ApiVersionMismatch => "it is of another apiVersion than the one before it".to_owned(),
        KubeconfigError::LoadContext(name) => format!("it has no context \"{name}\""),
        KubeconfigError::LoadClusterOfContext(name) => format!("it has no cluster \"{name}\", which the context names"),
        KubeconfigError::MissingClusterUrl => "the cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(error) => format!("the server of the cluster is no URL: {error}"),
        KubeconfigError::ParseProxyUrl(error) => format!("the proxy is no URL: {error}"),
        KubeconfigError::LoadCertificateAuthority(error) => {
            format!("the certificate authority cannot be read: {}", chain(error))
        }
        KubeconfigError::ParseCertificates(error) => format!("the certificate authority is not PEM: {}", chain(error)),
        KubeconfigError::ParseNoProxy(error) => format!("NO_PROXY is not understood: {}", chain(error)),
        _ => "it is no kubeconfig".to_owned(),
    }
}

/// Makes paths absolute, where the directory is.
fn resolve(config: &mut Kubeconfig, directory: &Path) {
    let absolute = |path: &mut Option<String>| {
        if let Some(text) = path
            && Path::new(text).is_relative()
            && let Some(whole) = directory.join(&*text).to_str()
        {
            *text = whole.to_owned();
        }
    };
    for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        absolute(&mut cluster.certificate_authority);
    }
    for user in config.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        absolute(&mut user.client_certificate);
        absolute(&mut user.client_key);
        absolute(&mut user.token_file);
        // A name without a directory is looked for in PATH.
        if let Some(exec) = &mut user.exec
            && exec.command.as_ref().is_some_and(|command| command.contains('/'))
        {
            absolute(&mut exec.command);
        }
    }
}

/// A table of a kubeconfig. What else is in it is for others.
#[derive(Clone, Copy)]
struct Table<'a> {
    source: &'a Source,
    entries: &'a [Entry<'a>],
}

fn document(source: &Source, node: &Node<'_>) -> Result<Kubeconfig, String> {
    let root = table(source, node, "a kubeconfig")?;
    Ok(Kubeconfig {
        kind: root.text("kind")?,
        api_version: root.text("apiVersion")?,
        current_context: root.text("current-context")?,
        clusters: root.named("clusters", "cluster", |name, cluster| {
            Ok(NamedCluster { name, cluster: cluster.map(read_cluster).transpose()?, ..NamedCluster::default() })
        })?,
        contexts: root.named("contexts", "context", |name, context| {
            Ok(NamedContext { name, context: context.map(read_context).transpose()?, ..NamedContext::default() })
        })?,
        auth_infos: root.named("users", "user", |name, user| {
            Ok(NamedAuthInfo { name, auth_info: user.map(read_user).transpose()?, ..NamedAuthInfo::default() })
        })?,
        ..Kubeconfig::default()
    })
}

fn read_cluster(table: Table<'_>) -> Result<Cluster, String> {
    Ok(Cluster {
        server: table.text("server")?,
        insecure_skip_tls_verify: table.boolean("insecure-skip-tls-verify")?,
        certificate_authority: table.text("certificate-authority")?,
        certificate_authority_data: table.text("certificate-authority-data")?,
        proxy_url: table.text("proxy-url")?,
        disable_compression: table.boolean("disable-compression")?,
        tls_server_name: table.text("tls-server-name")?,
        extensions: table.extensions()?,
        ..Cluster::default()
    })
}

fn read_context(table: Table<'_>) -> Result<Context, String> {
    Ok(Context {
        cluster: table.text("cluster")?.unwrap_or_default(),
        user: table.text("user")?,
        namespace: table.text("namespace")?,
        ..Context::default()
    })
}

fn read_user(table: Table<'_>) -> Result<AuthInfo, String> {
    let extra = table.table("as-user-extra")?;
    let extra = extra.map(|extra| -> Result<HashMap<String, Vec<String>>, String> {
        let values =
            extra.entries.iter().map(|entry| Ok((entry.key.to_string(), extra.texts_of(&entry.node, &entry.key)?)));
        values.collect()
    });
    Ok(AuthInfo {
        username: table.text("username")?,
        password: table.text("password")?.map(Into::into),
        token: table.text("token")?.map(Into::into),
        token_file: table.text("tokenFile")?,
        client_certificate: table.text("client-certificate")?,
        client_certificate_data: table.text("client-certificate-data")?,
        client_key: table.text("client-key")?,
        client_key_data: table.text("client-key-data")?.map(Into::into),
        impersonate: table.text("as")?,
        impersonate_uid: table.text("as-uid")?,
        impersonate_groups: table.texts("as-groups")?,
        impersonate_user_extra: extra.transpose()?,
        auth_provider: table.table("auth-provider")?.map(read_provider).transpose()?,
        exec: table.table("exec")?.map(read_program).transpose()?,
        ..AuthInfo::default()
    })
}

/// Only who it is, as none is supported.
fn read_provider(table: Table<'_>) -> Result<AuthProviderConfig, String> {
    Ok(AuthProviderConfig { name: table.text("name")?.unwrap_or_default(), ..AuthProviderConfig::default() })
}

fn read_program(table: Table<'_>) -> Result<ExecConfig, String> {
    let interactive_mode = match table.text("interactiveMode")?.as_deref() {
        None => None,
        Some("Never") => Some(ExecInteractiveMode::Never),
        Some("IfAvailable") => Some(ExecInteractiveMode::IfAvailable),
        Some("Always") => Some(ExecInteractiveMode::Always),
        Some(_) => return Err(table.wrong("interactiveMode", "Never, IfAvailable or Always")),
    };
    let mut env = Vec::new();
    for variable in table.list("env")?.unwrap_or_default() {
        let variable = self::table(table.source, variable, "a variable of env")?;
        let mut pair = HashMap::new();
        for key in ["name", "value"] {
            if let Some(text) = variable.text(key)? {
                pair.insert(key.to_owned(), text);
            }
        }
        env.push(pair);
    }
    Ok(ExecConfig {
        api_version: table.text("apiVersion")?,
        command: table.text("command")?,
        args: table.texts("args")?,
        env: (!env.is_empty()).then_some(env),
        install_hint: table.text("installHint")?,
        interactive_mode,
        provide_cluster_info: table.boolean("provideClusterInfo")?.unwrap_or(false),
        ..ExecConfig::default()
    })
}

fn table<'a>(source: &'a Source, node: &'a Node<'a>, what: &str) -> Result<Table<'a>, String> {
    match &node.value {
        Value::Table(entries) => Ok(Table { source, entries }),
        _ => Err(wrong(source, node, what, "a table")),
    }
}

fn wrong(source: &Source, node: &Node<'_>, what: &str, wanted: &str) -> String {
    format!("line {}: {what} must be {wanted}", source.place(node.span).line)
}

impl<'a> Table<'a> {
    /// What a key has; nothing is nothing.
    fn get(&self, key: &str) -> Option<&'a Node<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (entry.node.value != Value::Null).then_some(&entry.node)
    }

    fn wrong(&self, key: &str, wanted: &str) -> String {
        let place = self.entries.iter().find(|entry| entry.key == key).map(|entry| self.source.place(entry.span).line);
        format!("line {}: {key} must be {wanted}", place.unwrap_or_default())
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        self.get(key).map(|node| self.text_of(node, key)).transpose()
    }

    /// Numbers and booleans are text as they are written, where text is wanted: so kubectl reads them.
    fn text_of(&self, node: &Node<'_>, what: &str) -> Result<String, String> {
        match &node.value {
            Value::String(text) => Ok(text.clone().into_owned()),
            Value::Integer(_) | Value::Float | Value::Boolean(_) => {
                let written = self.source.text.get(node.span.start as usize..node.span.end as usize);
                Ok(written.unwrap_or_default().trim().to_owned())
            }
            _ => Err(wrong(self.source, node, what, "text")),
        }
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key).map(|node| &node.value) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Node<'a>]>, String> {
        match self.get(key).map(|node| &node.value) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => Err(self.wrong(key, "a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String> {
        self.get(key).map(|node| self.texts_of(node, key)).transpose()
    }

    fn texts_of(&self, node: &Node<'_>, what: &str) -> Result<Vec<String>, String> {
        match &node.value {
            Value::Array(items) => items.iter().map(|item| self.text_of(item, what)).collect(),
            _ => Err(wrong(self.source, node, what, "a list")),
        }
    }

    fn table(&self, key: &str) -> Result<Option<Self>, String> {
        self.get(key).map(|node| table(self.source, node, key)).transpose()
    }

    /// A list of tables with a name, and what each has below a key.
    fn named<T>(
        &self,
        list: &str,
        key: &str,
        read: impl Fn(String, Option<Self>) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let mut all = Vec::new();
        for item in self.list(list)?.unwrap_or_default() {
            let item = table(self.source, item, &format!("each of {list}"))?;
            all.push(read(item.name(list)?, item.table(key)?)?);
        }
        Ok(all)
    }

    fn name(&self, list: &str) -> Result<String, String> {
        let line = self.entries.first().map(|entry| self.source.place(entry.span).line).unwrap_or_default();
        self.text("name")?.ok_or_else(|| format!("line {line}: each of {list} must have a name"))
    }

    /// What a cluster has for others, among them the program to log in.
    fn extensions(&self) -> Result<Option<Vec<NamedExtension>>, String> {
        let Some(items) = self.list("extensions")? else { return Ok(None) };
        let mut all = Vec::new();
        for item in items {
            let item = table(self.source, item, "each of extensions")?;
            let extension = item.get("extension").map_or(Json::Null, |node| self.json(node));
            all.push(NamedExtension { name: item.name("extensions")?, extension });
        }
        Ok(Some(all))
    }

    fn json(&self, node: &Node<'_>) -> Json {
        match &node.value {
            Value::Boolean(value) => Json::Bool(*value),
            Value::Integer(Some(number)) => Json::from(*number),
            Value::Integer(None) | Value::Float => {
                let written = self.text_of(node, "").unwrap_or_default();
                written.parse::<f64>().map_or(Json::Null, Json::from)
            }
            Value::String(text) => Json::from(&**text),
            Value::Array(items) => items.iter().map(|item| self.json(item)).collect(),
            Value::Table(entries) => {
                let entries = entries.iter().map(|entry| (entry.key.to_string(), self.json(&entry.node)));
                Json::Object(entries.collect())
            }
            Value::Null | Value::Datetime(_) => Json::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const EXAMPLES: [&str; 6] = [
        "",
        "apiVersion: v1\nkind: Config\nclusters: null\nusers: []\ncontexts:\ncurrent-context: ''\n",
        // As kubeadm writes it.
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: cGVt\n    server: https://10.0.0.1:6443\n  name: kubernetes\ncontexts:\n- context:\n    cluster: kubernetes\n    user: kubernetes-admin\n  name: kubernetes-admin@kubernetes\ncurrent-context: kubernetes-admin@kubernetes\nkind: Config\nusers:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: Y2VydA==\n    client-key-data: a2V5\n",
        // JSON, and everything that there is.
        r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}], "clusters": [{"name": "k", "cluster": {"server": "https://api/path", "insecure-skip-tls-verify": true, "tls-server-name": "other", "proxy-url": "http://proxy:3128", "disable-compression": false, "certificate-authority": "/ca.crt"}}], "users": [{"name": "u", "user": {"username": "jane", "password": "p", "token": "t", "tokenFile": "/token", "as": "x", "as-uid": "1", "as-groups": ["g", "h"], "as-user-extra": {"scopes": ["a", "b"]}, "client-certificate": "/c", "client-key": "/k"}}]}"#,
        // A program, as clouds write it, with what it is told of the cluster.
        "clusters:\n- name: k\n  cluster:\n    server: https://api\n    extensions:\n    - name: client.authentication.k8s.io/exec\n      extension: {audience: foo, tries: 3, share: 0.5, deep: [true, null, {a: b}]}\nusers:\n- name: u\n  user:\n    exec:\n      apiVersion: client.authentication.k8s.io/v1beta1\n      command: aws\n      args: [--region, eu-central-1, eks, get-token]\n      env:\n      - name: AWS_PROFILE\n        value: prod\n      installHint: |\n        Install it.\n        Then again.\n      interactiveMode: IfAvailable\n      provideClusterInfo: true\n- name: other\n  user: {auth-provider: {name: oidc}}\n- name: nobody\n",
        // Two documents, of which the first counts where both speak.
        "current-context: first\nclusters: [{name: a, cluster: {server: https://one}}]\n---\ncurrent-context: second\nclusters: [{name: a, cluster: {server: https://two}}, {name: b, cluster: {server: https://three}}]\n",
    ];

    #[test]
    fn kubeconfigs_are_read_as_kube_reads_them() {
        for text in EXAMPLES {
            let (ours, theirs) = (parse(text, None).unwrap(), Kubeconfig::from_yaml(text).unwrap());
            assert_eq!(serde_json::to_value(ours).unwrap(), serde_json::to_value(theirs).unwrap(), "{text}");
        }
    }

    #[test]
    fn files_are_read_with_paths_as_kube_makes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = "\u{feff}clusters:\n- name: k\n  cluster: {certificate-authority: pki/ca.crt}\nusers:\n- name: u\n  user:\n    tokenFile: token\n    client-certificate: ../cert\n    client-key: /key\n    exec: {command: bin/login}\n- name: v\n  user: {exec: {command: aws}}\n";
        std::fs::write(&path, text).unwrap();
        let (ours, theirs) = (read(&path).unwrap(), Kubeconfig::read_from(&path).unwrap());
        let ours = serde_json::to_value(ours).unwrap();
        assert_eq!(ours, serde_json::to_value(theirs).unwrap());
        let absolute = |name: &str| Json::from(folder.path().join(name).to_str().unwrap());
        assert_eq!(ours["users"][0]["user"]["exec"]["command"], absolute("bin/login"));
        assert_eq!(ours["users"][1]["user"]["exec"]["command"], "aws");
        assert_eq!(ours["clusters"][0]["cluster"]["certificate-authority"], absolute("pki/ca.crt"));
    }

    #[test]
    fn numbers_are_text_where_text_is_wanted_and_what_others_have_in_it_is_theirs() {
        let text = "preferences: {colors: true}\nmine: [1]\nusers:\n- name: 17\n  user: {token: 123456, password: true, username: 1.50, x: z}\n";
        let config = parse(text, None).unwrap();
        let user = serde_json::to_value(&config.auth_infos[0]).unwrap();
        assert_eq!(
            user,
            serde_json::json!({ "name": "17", "user": { "token": "123456", "password": "true", "username": "1.50" } })
        );
    }

    #[test]
    fn what_is_wrong_is_said_by_its_line_and_without_its_words() {
        let user = |field: &str| format!("users:\n- name: u\n  user:\n    {field}\n");
        let wrong = [
            ("- secret".to_owned(), "line 1: a kubeconfig must be a table"),
            ("clusters: secret".to_owned(), "line 1: clusters must be a list"),
            ("clusters:\n- secret".to_owned(), "line 2: each of clusters must be a table"),
            ("clusters:\n- cluster: {server: secret}".to_owned(), "line 2: each of clusters must have a name"),
            (user("token: [secret]"), "line 4: token must be text"),
            (user("token: 0123456"), "line 4 is not read"),
            (user("token: &secret x"), "line 4 is not read"),
            (user("token: a\n    token: secret"), "line 5 is not read"),
            (user("token: 'secret"), "is not read"),
            (user("as-groups: secret"), "line 4: as-groups must be a list"),
            (user("exec: {interactiveMode: secret}"), "line 4: interactiveMode must be Never, IfAvailable or Always"),
            (user("exec: {provideClusterInfo: secret}"), "line 4: provideClusterInfo must be true or false"),
            (format!("a: {}", "x".repeat(MAX_TEXT_BYTES)), "it is larger than 16 MiB"),
        ];
        for (text, wanted) in wrong {
            let said = parse(&text, None).unwrap_err();
            assert!(said.contains(wanted) && !said.contains("secret") && !said.contains("0123456"), "{said}");
        }
    }

    #[tokio::test]
    async fn what_a_context_lacks_is_said() {
        let cluster = "clusters: [{name: k, cluster: {server: 'https://api:6443'}}]\n";
        let context = "contexts: [{name: c, context: {cluster: k}}]\ncurrent-context: c\n";
        for (text, wanted) in [
            (cluster.to_owned(), "it has no current-context"),
            (format!("{cluster}current-context: d\n"), "it has no context \"d\""),
            (context.to_owned(), "it has no cluster \"k\", which the context names"),
            (format!("clusters: [{{name: k, cluster: {{}}}}]\n{context}"), "the cluster has no server"),
            (
                format!(
                    "clusters: [{{name: k, cluster: {{server: 'https://a', certificate-authority: /no/such}}}}]\n{context}"
                ),
                "the certificate authority cannot be read: ",
            ),
        ] {
            let said = config(parse(&text, None).unwrap()).await.unwrap_err();
            assert!(said.starts_with(wanted), "{said}");
        }
        let config = config(parse(&format!("{cluster}{context}"), None).unwrap()).await.unwrap();
        assert_eq!(config.cluster_url, "https://api:6443/");
        let other = merge(parse("kind: Config", None).unwrap(), parse("kind: Pod", None).unwrap());
        assert_eq!(other.unwrap_err(), "it is of another kind than the one before it");
    }
}
