//! What stands in for an API server: list, watch and change of our kinds over TLS, with one revision counter for all, and with the
//! faults of real servers on command. What only a real server can show (schemas, admission, RBAC) it says nothing about.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

/// Every so often a watch without events tells its revision.
const BOOKMARKS: Duration = Duration::from_millis(500);

/// What is stored, and what goes wrong.
#[derive(Clone, Default)]
pub struct Content {
    revision: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Json>,
    /// Revision, plural, type and object of each event.
    events: Vec<(u64, String, &'static str, Json)>,
    /// Watches from before this are told 410.
    compacted: u64,
}

#[derive(Default)]
struct Faults {
    /// This status for so many requests.
    refuse: Option<(u16, usize)>,
    /// This status for all requests with this method.
    forbid: Option<(Method, u16)>,
    /// Whether 410 comes as an event.
    gone_in_stream: bool,
    /// The next event is cut in the middle of its line, and the connection with it.
    cut: bool,
    token: String,
    /// Groups of Calico's that it has.
    groups: Vec<String>,
    /// This status for every request for objects of a kind.
    kinds: BTreeMap<String, u16>,
}

struct Shared {
    content: Mutex<Content>,
    faults: Mutex<Faults>,
    /// Something is stored or goes wrong.
    changed: watch::Sender<u64>,
    /// Connections of an earlier epoch are closed.
    epoch: watch::Sender<u64>,
    /// Nothing comes through, and nobody is told.
    hole: watch::Sender<bool>,
    requests: Mutex<Vec<String>>,
}

/// The server, on loopback in the network namespace of the thread that starts it.
pub struct StandIn {
    shared: Arc<Shared>,
    folder: tempfile::TempDir,
}

type Body = BoxBody<Bytes, io::Error>;

impl StandIn {
    /// Starts it.
    pub fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let shared = Arc::new(Shared {
            content: Mutex::new(Content { revision: 100, ..Content::default() }),
            faults: Mutex::new(Faults { token: "first".to_owned(), ..Faults::default() }),
            changed: watch::channel(0).0,
            epoch: watch::channel(0).0,
            hole: watch::channel(false).0,
            requests: Mutex::default(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                accept(listener, TlsAcceptor::from(Arc::new(config)), serving).await;
            });
        });
        let stand_in = Self { shared, folder: tempfile::tempdir().unwrap() };
        std::fs::write(stand_in.folder.path().join("ca.crt"), made.cert.pem()).unwrap();
        stand_in.write_token("first");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster:\n    server: https://{address}\n    certificate-authority: ca.crt\n\
             users:\n- name: u\n  user:\n    tokenFile: token\n"
        );
        std::fs::write(stand_in.kubeconfig(), text).unwrap();
        stand_in
    }

    /// A kubeconfig for it, beside the token that it names.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Stores an object as a whole, whatever is there of it.
    pub fn put(&self, plural: &str, name: &str, mut object: Json) {
        object["metadata"]["name"] = json!(name);
        let mut content = self.content();
        let there = content.objects.contains_key(&(plural.to_owned(), name.to_owned()));
        store(&mut content, plural, name, if there { "MODIFIED" } else { "ADDED" }, object);
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Deletes an object.
    pub fn remove(&self, plural: &str, name: &str) {
        let (code, _) = change(&Method::DELETE, plural, Some(name), &BTreeMap::new(), &[], &self.shared);
        assert_eq!(code, 200, "{plural}/{name}");
    }

    /// Has Calico's objects in this group and version, too.
    pub fn serve(&self, group: &str) {
        self.faults().groups.push(group.to_owned());
    }

    /// Refuses all requests for a kind from now on, or none any more.
    pub fn refuse_kind(&self, plural: &str, code: Option<u16>) {
        match code {
            Some(code) => drop(self.faults().kinds.insert(plural.to_owned(), code)),
            None => drop(self.faults().kinds.remove(plural)),
        }
    }

    /// Puts a token where the kubeconfig says.
    pub fn write_token(&self, token: &str) {
        let (path, new) = (self.folder.path().join("token"), self.folder.path().join("token.new"));
        std::fs::write(&new, token).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Lets only this token in from now on.
    pub fn accept_token(&self, token: &str) {
        self.faults().token = token.to_owned();
    }

    /// Answers so many requests with this status.
    pub fn refuse(&self, code: u16, requests: usize) {
        self.faults().refuse = Some((code, requests));
    }

    /// Answers all requests with this method with this status, or none any more.
    pub fn forbid(&self, method: Option<(Method, u16)>) {
        self.faults().forbid = method;
    }

    /// An object as it is stored.
    pub fn object(&self, plural: &str, name: &str) -> Option<Json> {
        self.content().objects.get(&(plural.to_owned(), name.to_owned())).cloned()
    }

    /// Deletes an object.
    pub fn delete(&self, plural: &str, name: &str) {
        self.content().objects.remove(&(plural.to_owned(), name.to_owned()));
    }

    /// Whether it has refused as often as it was to.
    pub fn has_refused(&self) -> bool {
        self.faults().refuse.is_none()
    }

    /// Forgets all events, and tells watches from before so by the status or in the stream.
    pub fn compact(&self, in_stream: bool) {
        self.faults().gone_in_stream = in_stream;
        let mut content = self.content();
        content.compacted = content.revision;
        content.events.clear();
    }

    /// Cuts the next event in the middle of its line.
    pub fn cut(&self) {
        self.faults().cut = true;
    }

    /// Closes all connections, as a server that is killed and started again.
    pub fn restart(&self) {
        self.shared.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// What is stored.
    pub fn snapshot(&self) -> Content {
        self.content().clone()
    }

    /// Goes back to what was stored once, as when a backup of etcd is restored: watches go on as if nothing had been.
    pub fn rewind(&self, to: Content) {
        *self.content() = to;
    }

    /// Nothing comes through from now on, or again.
    pub fn black_hole(&self, on: bool) {
        self.shared.hole.send_replace(on);
    }

    /// How many requests there were whose line has this.
    pub fn requests(&self, part: &str) -> usize {
        self.shared.requests.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    /// The specs by plural and name.
    pub fn specs(&self) -> BTreeMap<(String, String), Json> {
        self.content().objects.iter().map(|(key, object)| (key.clone(), object["spec"].clone())).collect()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap()
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.shared.faults.lock().unwrap()
    }
}

/// The path of the files' folder, for what is to stand beside them.
impl AsRef<Path> for StandIn {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let (mut epoch, mut hole) = (shared.epoch.subscribe(), shared.hole.subscribe());
            let began = *epoch.borrow();
            let serve = async {
                let stream = acceptor.accept(stream).await.ok()?;
                let service = service_fn(|request| answer(request, Arc::clone(&shared)));
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok()
            };
            tokio::pin!(serve);
            loop {
                let in_hole = *hole.borrow_and_update();
                tokio::select! {
                    _ = &mut serve, if !in_hole => return,
                    _ = hole.changed() => {}
                    _ = epoch.wait_for(|now| *now > began) => return,
                }
            }
        });
    }
}

fn whole(code: u16, body: &Json) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn status(code: u16, message: &str) -> Json {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": "Fault", "code": code })
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    shared.requests.lock().unwrap().push(line);
    let refusal = {
        let mut faults = shared.faults.lock().unwrap();
        let wanted = format!("Bearer {}", faults.token);
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if let Some((code, left)) = faults.refuse {
            faults.refuse = (left > 1).then(|| (code, left - 1));
            Some((code, "as it was told"))
        } else if let Some((_, code)) = faults.forbid.as_ref().filter(|(method, _)| method == request.method()) {
            Some((*code, "as it was told"))
        } else if token != Some(wanted.as_str()) {
            Some((401, "Unauthorized"))
        } else {
            None
        }
    };
    if let Some((code, message)) = refusal {
        return Ok(whole(code, &status(code, message)));
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let applies =
        request.headers().get("content-type").is_some_and(|kind| kind.as_bytes() == b"application/apply-patch+yaml");
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let groups = shared.faults.lock().unwrap().groups.clone();
    let known = ["/apis/nodewall.dev/v1alpha1/", "/api/v1/", "/apis/coordination.k8s.io/v1/namespaces/nodewall/"];
    let mut known = known.map(str::to_owned).to_vec();
    known.extend(groups.iter().map(|group| format!("/apis/{group}/")));
    let Some(rest) = known.iter().find_map(|prefix| path.strip_prefix(prefix.as_str())) else {
        return Ok(whole(404, &status(404, "the server could not find the requested resource")));
    };
    let (plural, name) = rest.split_once('/').map_or((rest, None), |(plural, name)| (plural, Some(name)));
    let refused = shared.faults.lock().unwrap().kinds.get(plural).copied();
    if let Some(code) = refused {
        return Ok(whole(code, &status(code, "as it was told of this kind")));
    }
    if method == Method::GET && query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        return Ok(watched(plural.to_owned(), &query, shared));
    }
    if method == Method::PATCH && applies {
        let (code, body) = apply(plural, name.unwrap(), &query, &body, &shared);
        return Ok(whole(code, &body));
    }
    let (code, body) = change(&method, plural, name, &query, &body, &shared);
    Ok(whole(code, &body))
}

/// Server-side apply by one manager: what it says of a part takes the place of what it said, and saying the same again is no event.
fn apply(plural: &str, path: &str, query: &BTreeMap<String, String>, body: &[u8], shared: &Shared) -> (u16, Json) {
    assert!(query["fieldManager"].starts_with("nodewall") && query["force"] == "true", "{query:?}");
    let object: Json = serde_json::from_slice(body).unwrap();
    let (name, part) = path.split_once('/').unwrap_or((path, "spec"));
    assert_eq!((object["metadata"]["name"].as_str(), object["kind"].is_string()), (Some(name), true));
    // A status on the object itself is left out, as everything else is on the status.
    let mut content = shared.content.lock().unwrap();
    let before = content.objects.get(&(plural.to_owned(), name.to_owned())).cloned();
    let answer = match before {
        None if part == "status" => return (404, status(404, "not found")),
        None => {
            let mut made = object.clone();
            made.as_object_mut().unwrap().remove("status");
            (201, store(&mut content, plural, name, "ADDED", made))
        }
        Some(before) if before[part] == object[part] => (200, before),
        Some(mut after) => {
            after[part] = object[part].clone();
            if object["metadata"]["annotations"].is_object() {
                after["metadata"]["annotations"] = object["metadata"]["annotations"].clone();
            }
            (200, store(&mut content, plural, name, "MODIFIED", after))
        }
    };
    shared.changed.send_modify(|count| *count += 1);
    answer
}

/// Whatever is no watch.
fn change(
    method: &Method,
    plural: &str,
    name: Option<&str>,
    query: &BTreeMap<String, String>,
    body: &[u8],
    shared: &Shared,
) -> (u16, Json) {
    let mut content = shared.content.lock().unwrap();
    let Some(name) = name else {
        if method == Method::GET {
            return list(plural, query, &content);
        }
        let object: Json = serde_json::from_slice(body).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let answer = store(&mut content, plural, &name, "ADDED", object);
        shared.changed.send_modify(|count| *count += 1);
        return (201, answer);
    };
    let key = (plural.to_owned(), name.to_owned());
    let Some(before) = content.objects.get(&key).cloned() else { return (404, status(404, "not found")) };
    if method == Method::GET {
        return (200, before);
    }
    if method == Method::GET {
        return (200, before);
    }
    let answer = if method == Method::PUT {
        let object: Json = serde_json::from_slice(body).unwrap();
        if object["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] {
            return (409, status(409, "there is another version"));
        }
        store(&mut content, plural, name, "MODIFIED", object)
    } else if method == Method::DELETE {
        content.objects.remove(&key);
        content.revision += 1;
        let revision = content.revision;
        let mut object = before;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        content.events.push((revision, plural.to_owned(), "DELETED", object.clone()));
        object
    } else {
        let patch: Json = serde_json::from_slice(body).unwrap();
        let mut object = before;
        for (key, value) in patch["spec"].as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        store(&mut content, plural, name, "MODIFIED", object)
    };
    shared.changed.send_modify(|count| *count += 1);
    (200, answer)
}

fn store(content: &mut Content, plural: &str, name: &str, what: &'static str, mut object: Json) -> Json {
    content.revision += 1;
    let revision = content.revision;
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    if object["metadata"]["managedFields"].is_null() {
        object["metadata"]["managedFields"] = json!([{ "manager": "test", "operation": "Update" }]);
    }
    content.objects.insert((plural.to_owned(), name.to_owned()), object.clone());
    content.events.push((revision, plural.to_owned(), what, object.clone()));
    object
}

fn list(plural: &str, query: &BTreeMap<String, String>, content: &Content) -> (u16, Json) {
    let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let from: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let all: Vec<&Json> =
        content.objects.iter().filter(|((kind, _), _)| kind == plural).map(|(_, object)| object).collect();
    let items: Vec<&Json> = all.iter().skip(from).take(limit).copied().collect();
    let mut metadata = json!({ "resourceVersion": content.revision.to_string() });
    if from + items.len() < all.len() {
        metadata["continue"] = json!((from + items.len()).to_string());
    }
    (200, json!({ "kind": "List", "apiVersion": "nodewall.dev/v1alpha1", "metadata": metadata, "items": items }))
}

/// A line that is told a watch; `None` cuts the connection.
type Line = Result<Bytes, io::Error>;

fn watched(plural: String, query: &BTreeMap<String, String>, shared: Arc<Shared>) -> Response<Body> {
    let mut at: u64 = query.get("resourceVersion").and_then(|revision| revision.parse().ok()).unwrap_or_default();
    let seconds = query.get("timeoutSeconds").map_or(60, |seconds| seconds.parse().unwrap());
    let gone = at < shared.content.lock().unwrap().compacted;
    let mut in_stream = None;
    if gone {
        let status = status(410, "too old resource version");
        if !shared.faults.lock().unwrap().gone_in_stream {
            return whole(410, &status);
        }
        in_stream = Some(json!({ "type": "ERROR", "object": status }));
    }
    let (lines, said) = mpsc::unbounded_channel::<Line>();
    tokio::spawn(async move {
        let say = |event: &Json| lines.send(Ok(format!("{event}\n").into())).is_ok();
        if let Some(error) = in_stream {
            say(&error);
            return;
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut changed = shared.changed.subscribe();
        let mut bookmark = Instant::now() + BOOKMARKS;
        loop {
            changed.borrow_and_update();
            let (events, seen): (Vec<Json>, u64) = {
                let content = shared.content.lock().unwrap();
                let new = content.events.iter().filter(|(revision, kind, ..)| *revision > at && *kind == plural);
                let events = new.map(|(_, _, what, object)| json!({ "type": what, "object": object }));
                (events.collect(), content.revision)
            };
            for event in events {
                if std::mem::take(&mut shared.faults.lock().unwrap().cut) {
                    let line = event.to_string();
                    let _ = lines.send(Ok(Bytes::copy_from_slice(&line.as_bytes()[..line.len() / 2])));
                    let _ = lines.send(Err(io::Error::other("cut")));
                    return;
                }
                if !say(&event) {
                    return;
                }
            }
            // One that was rewound stays ahead, and misses what comes.
            at = at.max(seen);
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(bookmark) => {
                    bookmark = Instant::now() + BOOKMARKS;
                    let metadata = json!({ "resourceVersion": at.to_string() });
                    let object = json!({ "kind": "K", "apiVersion": "nodewall.dev/v1alpha1", "metadata": metadata });
                    if !say(&json!({ "type": "BOOKMARK", "object": object })) {
                        return;
                    }
                }
                () = sleep_until(end) => return,
            }
        }
    });
    let frames = stream::unfold(said, |mut said| async move {
        let line = said.recv().await?;
        Some((line.map(Frame::data), said))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}
