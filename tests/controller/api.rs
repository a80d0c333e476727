//! What stands in for an API server where that has to know who asks: client certificates that it signs itself, tokens, any kind of
//! object with versions, approval of certificate requests, and statuses. What only a real server can show (schemas, admission, RBAC) it
//! says nothing about.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use nodewall::identity::certificate::{self, fingerprint};
use nodewall::identity::{BOOTSTRAP_GROUP, request};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A bootstrap token for joining.
pub const TOKEN: &str = "abcdef.0123456789abcdef";
/// Where certificate requests are.
pub const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Somebody.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Who {
    user: String,
    groups: BTreeSet<String>,
    /// The hash of the key of the certificate.
    key: String,
}

#[derive(Default)]
struct Content {
    version: u64,
    /// By collection and name.
    objects: BTreeMap<(String, String), Json>,
    /// Method, path and user of each request.
    requests: Vec<String>,
    /// From when until when the next certificates hold, in seconds from now.
    lifetimes: Vec<(i64, i64)>,
}

struct Shared {
    content: Mutex<Content>,
    authority: Issuer<'static, KeyPair>,
    authority_pem: String,
}

/// The server, on loopback.
pub struct Api {
    shared: Arc<Shared>,
    /// Its URL.
    pub url: String,
    /// Its CA, in PEM.
    pub ca: String,
    folder: tempfile::TempDir,
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    let made = parameters.self_signed(&key).unwrap();
    (made.pem(), Issuer::new(parameters, key), made.der().to_vec())
}

/// The public key of somebody else.
struct Foreign(Vec<u8>);

impl PublicKeyData for Foreign {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Api {
    /// Starts it. There are an administrator and controllers by token, nodes by certificate, and who may join by [`TOKEN`].
    pub fn start() -> Self {
        let (ca, issuer, _) = authority("server-ca");
        let (authority_pem, signer, client_root) = authority("client-ca");
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(client_root.into()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![made.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let shared = Arc::new(Shared {
            content: Mutex::new(Content { version: 100, ..Content::default() }),
            authority: signer,
            authority_pem,
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                accept(TcpListener::from_std(listener).unwrap(), TlsAcceptor::from(Arc::new(config)), serving).await;
            });
        });
        let api = Self { shared, url, ca, folder: tempfile::tempdir().unwrap() };
        let encoded = json!(ByteString(api.ca.clone().into_bytes()));
        let published = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: ''\n  cluster: {{server: 'https://elsewhere.invalid', certificate-authority-data: {encoded}}}\n"
        );
        api.put(
            "/api/v1/namespaces/kube-public/configmaps",
            "cluster-info",
            json!({ "data": { "kubeconfig": published } }),
        );
        api
    }

    /// A kubeconfig for somebody with this token, who is called so.
    pub fn kubeconfig(&self, token: &str) -> PathBuf {
        let path = self.folder.path().join(token);
        let encoded = json!(ByteString(self.ca.clone().into_bytes()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster:\n    server: {}\n    certificate-authority-data: {encoded}\n\
             users:\n- name: u\n  user:\n    token: {token}\n",
            self.url
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A file with the CA.
    pub fn ca_file(&self) -> PathBuf {
        let path = self.folder.path().join("ca.crt");
        std::fs::write(&path, &self.ca).unwrap();
        path
    }

    /// The hash of the CA as kubeadm has it.
    pub fn ca_hash(&self) -> String {
        let key = certificate::read(&self.ca).unwrap().key;
        format!("sha256:{}", hex(&fingerprint(&key)))
    }

    /// Stores an object, new or not.
    pub fn put(&self, collection: &str, name: &str, object: Json) {
        self.put_all(collection, [(name.to_owned(), object)]);
    }

    /// Stores several, between which nobody is answered. One that was there keeps its uid.
    pub fn put_all(&self, collection: &str, objects: impl IntoIterator<Item = (String, Json)>) {
        let mut content = self.content();
        for (name, mut object) in objects {
            object["metadata"]["name"] = json!(name);
            let before = content.objects.get(&(collection.to_owned(), name.clone())).cloned();
            if let Some(before) = &before {
                object["metadata"]["uid"] = before["metadata"]["uid"].clone();
            }
            object["metadata"]["generation"] =
                json!(before.map_or(0, |before| before["metadata"]["generation"].as_i64().unwrap()) + 1);
            store(&mut content, collection, &name, object);
        }
    }

    /// Changes the spec of an object.
    pub fn change(&self, collection: &str, name: &str, spec: Json) {
        let mut object = self.get(collection, name).unwrap();
        object["spec"] = spec;
        self.put(collection, name, object);
    }

    /// Deletes an object.
    pub fn delete(&self, collection: &str, name: &str) {
        self.content().objects.remove(&(collection.to_owned(), name.to_owned())).unwrap();
    }

    /// An object.
    pub fn get(&self, collection: &str, name: &str) -> Option<Json> {
        self.content().objects.get(&(collection.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a collection.
    pub fn all(&self, collection: &str) -> Vec<Json> {
        let content = self.content();
        content.objects.iter().filter(|((of, _), _)| of == collection).map(|(_, object)| object.clone()).collect()
    }

    /// Says yes ("Approved") or no ("Denied") to a request, as an administrator.
    pub fn settle(&self, name: &str, kind: &str, message: &str) {
        let mut object = self.get(REQUESTS, name).unwrap();
        object["status"]["conditions"] = json!([{ "type": kind, "status": "True", "message": message }]);
        let mut content = self.content();
        sign(&self.shared, &mut content, &mut object);
        store(&mut content, REQUESTS, name, object);
    }

    /// From when until when the next certificate holds, in seconds from now.
    pub fn next_lifetime(&self, from: i64, until: i64) {
        self.content().lifetimes.push((from, until));
    }

    /// How many requests there were whose line has all of this: method, path, user, and the hash of the key.
    pub fn requests(&self, parts: &[&str]) -> usize {
        self.content().requests.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap()
    }
}

impl AsRef<Path> for Api {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await.ok()?;
            let who = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| of(leaf));
            let service = service_fn(|request| answer(request, who.clone(), Arc::clone(&shared)));
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok()
        });
    }
}

/// Who a certificate is of.
fn of(leaf: &[u8]) -> Who {
    let encoded = json!(ByteString(leaf.to_vec()));
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", encoded.as_str().unwrap());
    let read = certificate::read(&pem).unwrap();
    Who { user: read.user, groups: read.groups, key: hex(&fingerprint(&read.key)) }
}

/// Who a token is of.
fn by_token(token: &str) -> Option<Who> {
    let who = |user: &str, groups: &[&str]| {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Some(Who { user: user.to_owned(), groups, key: String::new() })
    };
    match token {
        TOKEN => who("system:bootstrap:abcdef", &["system:bootstrappers", BOOTSTRAP_GROUP]),
        "controller-a" | "controller-b" => who(token, &["system:serviceaccounts:nodewall"]),
        _ => None,
    }
}

fn refusal(code: u16, message: &str) -> (u16, Json) {
    (
        code,
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": "Test", "code": code }),
    )
}

async fn answer(
    request: Request<Incoming>,
    certificate: Option<Who>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let token = token.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    let who = certificate.or_else(|| token.and_then(by_token));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    // Whether all of each object is asked for.
    let accepts = request.headers().get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let what = if accepts.contains("PartialObjectMetadata") { "metadata" } else { "everything" };
    let (user, key) = who.as_ref().map_or(("nobody", ""), |who| (&who.user, &who.key));
    shared
        .content
        .lock()
        .unwrap()
        .requests
        .push(format!("{method} {path}?{query} by {user} key={key} token={} of={what}", token.unwrap_or("none")));
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if query.contains("watch=") {
        // Nothing happens on it; that is what it says when its time is over.
        let seconds = query.split('&').find_map(|pair| pair.strip_prefix("timeoutSeconds=")?.parse().ok());
        tokio::time::sleep(Duration::from_secs(seconds.unwrap_or(2))).await;
    }
    let (code, body) = match (who, token) {
        (None, None) if path.starts_with("/api/v1/namespaces/kube-public/") => {
            serve(&shared, None, &method, &path, &query, &body)
        }
        (None, None) => refusal(401, "nobody may do that"),
        (None, Some(_)) => refusal(401, "the token is not known"),
        (Some(who), _) if who.groups.contains(BOOTSTRAP_GROUP) && !path.starts_with(REQUESTS) => {
            refusal(403, "a token may only join")
        }
        (Some(who), _) => serve(&shared, Some(&who), &method, &path, &query, &body),
    };
    let text = if query.contains("watch=") { String::new() } else { body.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}

/// Collection, name and what is below it.
fn parts(path: &str) -> (String, Option<String>, Option<String>) {
    let all: Vec<&str> = path.split('/').collect();
    let mut length = if all[1] == "api" { 4 } else { 5 };
    if all.get(length - 1) == Some(&"namespaces") && all.len() > length + 1 {
        length += 2;
    }
    let at = |index: usize| all.get(index).map(|part| (*part).to_owned());
    (all[..length].join("/"), at(length), at(length + 1))
}

fn serve(shared: &Shared, who: Option<&Who>, method: &Method, path: &str, query: &str, body: &[u8]) -> (u16, Json) {
    let (collection, name, below) = parts(path);
    let mut content = shared.content.lock().unwrap();
    let Some(name) = name else {
        if *method == Method::POST {
            return create(&mut content, who, &collection, body);
        }
        let signer =
            query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector=")).map(|_| nodewall::identity::SIGNER);
        let of = content.objects.iter().filter(|((of, _), _)| *of == collection).map(|(_, object)| object);
        let items: Vec<&Json> =
            of.filter(|object| signer.is_none_or(|signer| object["spec"]["signerName"] == signer)).collect();
        // Pages: the token of the next one is where it begins.
        let option = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.parse::<usize>().ok());
        let (from, limit) = (option("continue=").unwrap_or(0), option("limit=").unwrap_or(usize::MAX));
        let next = from.saturating_add(limit);
        let next = if next < items.len() { json!(next.to_string()) } else { Json::Null };
        let page = items.into_iter().skip(from).take(limit).cloned().map(|mut object| {
            // As real servers do. That metadata come alone is asked for in a header, which is not looked at.
            object.as_object_mut().unwrap().remove("kind");
            object.as_object_mut().unwrap().remove("apiVersion");
            object
        });
        let page: Vec<Json> = page.collect();
        let metadata = json!({ "resourceVersion": content.version.to_string(), "continue": next });
        return (200, json!({ "kind": "List", "metadata": metadata, "items": page }));
    };
    let key = (collection.clone(), name.clone());
    let Some(before) = content.objects.get(&key).cloned() else { return refusal(404, &format!("{name} not found")) };
    if *method == Method::GET {
        return (200, before);
    }
    let said: Json = serde_json::from_slice(body).unwrap();
    if *method == Method::DELETE {
        let same = |field: &str| said["preconditions"][field] == before["metadata"][field];
        if !same("uid") || !same("resourceVersion") {
            return refusal(409, "the object is another one, or was modified");
        }
        content.objects.remove(&key);
        return (200, json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" }));
    }
    let version = said.pointer("/metadata/resourceVersion").and_then(Json::as_str);
    if version.is_some_and(|version| before["metadata"]["resourceVersion"] != version) {
        return refusal(
            409,
            "the object has been modified; please apply your changes to the latest version and try again",
        );
    }
    if said.pointer("/metadata/uid").is_some_and(|uid| before["metadata"]["uid"] != *uid) {
        return refusal(409, "it is another object");
    }
    let mut object = before;
    match (method.as_str(), below.as_deref()) {
        ("PUT", None) => object["spec"] = said["spec"].clone(),
        ("PUT", Some("approval")) => {
            object["status"]["conditions"] = said["status"]["conditions"].clone();
            sign(shared, &mut content, &mut object);
        }
        ("PATCH", Some("status")) => {
            assert!(query.contains("fieldManager="), "{query}");
            object["status"] = said["status"].clone();
        }
        other => panic!("{other:?} is not known here"),
    }
    (200, store(&mut content, &collection, &name, object))
}

fn create(content: &mut Content, who: Option<&Who>, collection: &str, body: &[u8]) -> (u16, Json) {
    let mut object: Json = serde_json::from_slice(body).unwrap();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    if content.objects.contains_key(&(collection.to_owned(), name.clone())) {
        return refusal(409, &format!("{name} already exists"));
    }
    object["metadata"]["generation"] = json!(1);
    if collection == REQUESTS {
        let who = who.unwrap();
        object["spec"]["username"] = json!(who.user);
        object["spec"]["groups"] = json!(who.groups);
    }
    (201, store(content, collection, &name, object))
}

fn store(content: &mut Content, collection: &str, name: &str, mut object: Json) -> Json {
    content.version += 1;
    object["metadata"]["resourceVersion"] = json!(content.version.to_string());
    if object["metadata"]["uid"].is_null() {
        object["metadata"]["uid"] = json!(format!("uid-{}", content.version));
    }
    content.objects.insert((collection.to_owned(), name.to_owned()), object.clone());
    object
}

/// Signs a request that is approved, as the controller of Kubernetes does.
fn sign(shared: &Shared, content: &mut Content, object: &mut Json) {
    let is = |kind: &str| {
        object["status"]["conditions"].as_array().unwrap().iter().any(|condition| condition["type"] == kind)
    };
    if !is("Approved") || is("Denied") {
        return;
    }
    let pem: ByteString = serde_json::from_value(object["spec"]["request"].clone()).unwrap();
    let asked = request::read(&pem.0).unwrap();
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    for group in &asked.groups {
        parameters.distinguished_name.push(DnType::OrganizationName, group.clone());
    }
    parameters.distinguished_name.push(DnType::CommonName, asked.user.clone());
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let (from, until) = if content.lifetimes.is_empty() { (-300, 90 * 24 * 3600) } else { content.lifetimes.remove(0) };
    let at = |seconds: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now + seconds) as u64);
    (parameters.not_before, parameters.not_after) = (at(from), at(until));
    // The key itself is at the end of SubjectPublicKeyInfo: 65 bytes of an uncompressed point on P-256.
    let key = Foreign(asked.key[asked.key.len() - 65..].to_vec());
    let certificate = parameters.signed_by(&key, &shared.authority).unwrap();
    let chain = certificate.pem() + &shared.authority_pem;
    object["status"]["certificate"] = json!(ByteString(chain.into_bytes()));
}
