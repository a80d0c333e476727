//! The thread that serves metrics by HTTP/1.1: `GET /metrics`, on a unix socket and over TCP, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Ask;
use super::book::Book;
use super::credentials::{Credentials, Keys, Token};
use super::gate::Gate;
use crate::config::metrics::{Endpoint, MetricsSettings};
use crate::daemon::socket;
use crate::metrics::text::Format;
use crate::metrics::verdicts::Verdicts;
use crate::text::cause::chain;
use crate::textfile::reason;

/// What could not be opened is tried again after this time: the address may come, and so may certificates.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a peer may take for the TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// How long it may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long all of it may take, with reading the answer.
const PEER_TIME: Duration = Duration::from_secs(30);
/// A request is a line and a few headers.
const MOST_REQUEST_BYTES: usize = 16 * 1024;

/// The thread.
pub(super) struct Server {
    settings: watch::Sender<Option<MetricsSettings>>,
    standing: Arc<Mutex<Standing>>,
}

/// How it is with what should be open.
#[derive(Default)]
struct Standing {
    troubles: Vec<String>,
    socket: bool,
}

impl Server {
    /// Starts it; it serves nothing before [`Self::configure`].
    pub(super) fn start(
        asks: mpsc::Sender<Ask>,
        first: oneshot::Receiver<Verdicts>,
        config: Option<PathBuf>,
    ) -> io::Result<Self> {
        let (settings, wanted) = watch::channel(None);
        let standing = Arc::new(Mutex::new(Standing::default()));
        let told = Arc::clone(&standing);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            let book = Arc::new(Book::new(asks, first, config));
            runtime.block_on(serve(wanted, &book, &told));
        })?;
        Ok(Self { settings, standing })
    }

    /// Serves by these settings from now on.
    pub(super) fn configure(&self, settings: MetricsSettings) {
        // The thread is gone only when the process ends.
        let _ = self.settings.send(Some(settings));
    }

    /// Why metrics cannot be read somewhere.
    pub(super) fn trouble(&self) -> Option<String> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        (!standing.troubles.is_empty()).then(|| standing.troubles.join("; "))
    }

    /// Whether the unix socket is ours.
    pub(super) fn has_socket(&self) -> bool {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).socket
    }
}

/// Something that is open, as long as this is there.
struct Open<T> {
    what: T,
    task: JoinHandle<()>,
}

impl<T> Open<T> {
    /// Closes it, so that its address is free afterwards.
    async fn close(mut self) {
        self.task.abort();
        // It ends with being aborted.
        let _ = (&mut self.task).await;
    }
}

impl<T> Drop for Open<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens what the settings want, and closes what they do not, until the loop is gone.
async fn serve(mut wanted: watch::Receiver<Option<MetricsSettings>>, book: &Arc<Book>, told: &Mutex<Standing>) {
    let gate = Arc::new(Mutex::new(Gate::default()));
    let mut unix: Option<Open<PathBuf>> = None;
    let mut tcp: Option<Open<Endpoint>> = None;
    loop {
        let settings = wanted.borrow_and_update().clone();
        let (socket, endpoint) = settings.map(|settings| (settings.socket, settings.listen)).unwrap_or_default();
        if let Some(open) = unix.take_if(|open| Some(&open.what) != socket.as_ref()) {
            // Nobody is to find a socket that nobody answers on.
            let _ = std::fs::remove_file(&open.what);
            open.close().await;
        }
        if let Some(open) = tcp.take_if(|open| Some(&open.what) != endpoint.as_ref()) {
            open.close().await;
        }
        let mut troubles = Vec::new();
        if let (None, Some(path)) = (&unix, socket) {
            match socket::bind(&path) {
                Ok(listener) => {
                    let task = tokio::spawn(accept_unix(listener, Arc::clone(book), Arc::clone(&gate)));
                    unix = Some(Open { what: path, task });
                }
                Err(error) => troubles.push(chain(&error)),
            }
        }
        if let (None, Some(endpoint)) = (&tcp, endpoint) {
            match open_tcp(&endpoint).await {
                Ok((listener, credentials)) => {
                    let task = tokio::spawn(accept_tcp(listener, credentials, Arc::clone(book), Arc::clone(&gate)));
                    tcp = Some(Open { what: endpoint, task });
                }
                Err(trouble) => troubles.push(trouble),
            }
        }
        let again = !troubles.is_empty();
        tell(told, troubles, unix.is_some());
        let changed =
            if again { timeout(AGAIN, wanted.changed()).await.unwrap_or(Ok(())) } else { wanted.changed().await };
        if changed.is_err() || book.is_closed() {
            return;
        }
    }
}

/// Takes note of what is wrong, and tells the journal what is new.
fn tell(told: &Mutex<Standing>, troubles: Vec<String>, socket: bool) {
    let mut standing = told.lock().unwrap_or_else(PoisonError::into_inner);
    for trouble in troubles.iter().filter(|trouble| !standing.troubles.contains(trouble)) {
        tracing::error!("metrics cannot be read: {trouble}");
    }
    *standing = Standing { troubles, socket };
}

async fn open_tcp(endpoint: &Endpoint) -> Result<(TcpListener, Credentials), String> {
    let credentials = Credentials::read(endpoint)?;
    let address = endpoint.address;
    let listener =
        TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {}", reason(&error)))?;
    Ok((listener, credentials))
}

/// A place inside, until this is gone.
struct Inside {
    gate: Arc<Mutex<Gate>>,
    peer: Option<IpAddr>,
}

impl Inside {
    fn enter(gate: &Arc<Mutex<Gate>>, peer: Option<IpAddr>) -> Option<Self> {
        let entered = gate.lock().unwrap_or_else(PoisonError::into_inner).enter(peer, Instant::now());
        entered.then(|| Self { gate: Arc::clone(gate), peer })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).leave(self.peer);
    }
}

async fn accept_unix(listener: UnixListener, book: Arc<Book>, gate: Arc<Mutex<Gate>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Inside::enter(&gate, None) {
                Some(inside) => {
                    let book = Arc::clone(&book);
                    tokio::spawn(async move {
                        let _inside = inside;
                        converse(stream, None, &book).await;
                    });
                }
                None => book.refused("busy"),
            },
            Err(error) => cannot_accept(&error).await,
        }
    }
}

async fn accept_tcp(listener: TcpListener, mut credentials: Credentials, book: Arc<Book>, gate: Arc<Mutex<Gate>>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match Inside::enter(&gate, Some(peer.ip().to_canonical())) {
                Some(inside) => {
                    let (book, keys) = (Arc::clone(&book), credentials.now());
                    tokio::spawn(async move {
                        let _inside = inside;
                        shake_hands(stream, peer, keys, &book).await;
                    });
                }
                None => book.refused("busy"),
            },
            Err(error) => cannot_accept(&error).await,
        }
    }
}

async fn cannot_accept(error: &io::Error) {
    tracing::warn!("cannot accept a connection for metrics: {error}");
    sleep(Duration::from_secs(1)).await;
}

async fn shake_hands(stream: tokio::net::TcpStream, peer: SocketAddr, keys: Keys, book: &Arc<Book>) {
    let Keys { tls, token } = keys;
    let Some(acceptor) = tls else { return converse(stream, token, book).await };
    match timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, token, book).await,
        Ok(Err(error)) => {
            book.refused("handshake");
            tracing::debug!("{peer} may not read metrics: {error}");
        }
        Err(_) => book.refused("handshake"),
    }
}

/// One request and its answer.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, token: Option<Token>, book: &Arc<Book>) {
    let service = service_fn(|request: Request<Incoming>| {
        let book = Arc::clone(book);
        async move { Ok::<_, Infallible>(answer(&request, token, &book).await) }
    });
    let connection = http1::Builder::new()
        // A place is for one question: who keeps the connection open would keep others out.
        .keep_alive(false)
        .max_buf_size(MOST_REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that goes away or is too slow is nobody's concern but its own.
    let _ = timeout(PEER_TIME, connection).await;
}

async fn answer(request: &Request<Incoming>, token: Option<Token>, book: &Book) -> Response<Full<Bytes>> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if token.is_some_and(|token| !token.is_in(header(AUTHORIZATION))) {
        book.request("unauthorised");
        return plain(StatusCode::UNAUTHORIZED, Some((WWW_AUTHENTICATE, "Bearer")), "unauthorised\n");
    }
    if request.uri().path() != "/metrics" {
        book.request("not-found");
        return plain(StatusCode::NOT_FOUND, None, "there is only /metrics\n");
    }
    if request.method() != Method::GET {
        book.request("bad-method");
        return plain(StatusCode::METHOD_NOT_ALLOWED, Some((ALLOW, "GET")), "there is only GET\n");
    }
    // Several headers of one name are one list (RFC 9110 section 5.3).
    let accepts: Vec<&str> = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accepts.join(","));
    match book.page(format).await {
        Some(page) => {
            book.request("served");
            let mut response = Response::new(Full::new(page));
            response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(format.content_type()));
            response
        }
        None => {
            book.request("unavailable");
            plain(StatusCode::SERVICE_UNAVAILABLE, None, "the daemon is too busy to answer\n")
        }
    }
}

fn plain(
    status: StatusCode,
    header: Option<(hyper::header::HeaderName, &'static str)>,
    text: &'static str,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some((name, value)) = header {
        headers.insert(name, hyper::header::HeaderValue::from_static(value));
    }
    response
}
