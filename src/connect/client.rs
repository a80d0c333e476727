//! The client: connections through proxies and TLS, and the requests on them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Request, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use rustls::ClientConfig;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use super::{authorization, said, tls};

/// A client of the server that a configuration names, as `kube::Client::try_from` makes it, but for two things: it never asks again by
/// itself, and it logs nothing. When something is asked again, and what is told of a server that does not answer, is decided elsewhere.
///
/// # Errors
/// Why there is none, for people. Nothing secret is in it.
pub fn client(config: kube::Config) -> Result<kube::Client, String> {
    let (authorization, identity) = authorization::of(&config.auth_info)?;
    let tls = Tls { settings: tls::settings(&config, identity)?, server_name: config.tls_server_name.clone() };
    let route = Route::new(config.proxy_url.as_ref(), &tls)?;
    let lines = service_fn(move |server: Uri| route.clone().connect(server));
    let mut connector = TimeoutConnector::new(tls.over(lines)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let sender = service_fn(move |mut request: Request<Body>| {
        let (client, authorization) = (client.clone(), authorization.clone());
        async move {
            if let Some(header) = authorization.header().await? {
                request.headers_mut().insert(AUTHORIZATION, header);
            }
            client.request(request).await.map_err(BoxError::from)
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer().map_err(|error| said(&error))?)
        .service(sender);
    Ok(kube::Client::new(service, config.default_namespace))
}

/// TLS as a configuration wants it.
struct Tls {
    settings: ClientConfig,
    server_name: Option<String>,
}

impl Tls {
    /// A connector that speaks TLS, where the URL says so, on the connections of another.
    fn over<C>(&self, connector: C) -> Result<HttpsConnector<C>, String> {
        let mut builder = HttpsConnectorBuilder::new().with_tls_config(self.settings.clone()).https_or_http();
        if let Some(name) = &self.server_name {
            let name =
                name.clone().try_into().map_err(|_| format!("tls-server-name \"{name}\" is no name of a server"))?;
            builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        Ok(builder.enable_http1().wrap_connector(connector))
    }
}

/// How a server is reached. Behind each is the same type of connection, so that all above it is there once.
#[derive(Clone)]
enum Route {
    Direct(HttpConnector),
    Proxy(Tunnel<HttpConnector>),
    TlsProxy(Tunnel<HttpsConnector<HttpConnector>>),
}

impl Route {
    fn new(proxy: Option<&Uri>, tls: &Tls) -> Result<Self, String> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        let Some(proxy) = proxy else { return Ok(Self::Direct(http)) };
        match proxy.scheme_str() {
            Some("http") => Ok(Self::Proxy(authorised(Tunnel::new(proxy.clone(), http), proxy))),
            Some("https") => Ok(Self::TlsProxy(authorised(Tunnel::new(proxy.clone(), tls.over(http)?), proxy))),
            other => {
                let scheme = other.unwrap_or("nothing");
                Err(format!("a proxy by {scheme} is not supported; http and https are"))
            }
        }
    }

    async fn connect(self, server: Uri) -> Result<Line, BoxError> {
        Ok(match self {
            Self::Direct(connector) => Line(Box::new(connector.oneshot(server).await?)),
            Self::Proxy(connector) => Line(Box::new(connector.oneshot(server).await?)),
            Self::TlsProxy(connector) => Line(Box::new(connector.oneshot(server).await?)),
        })
    }
}

/// With name and password, where the proxy's URL has them.
fn authorised<C>(tunnel: Tunnel<C>, proxy: &Uri) -> Tunnel<C> {
    let user = proxy.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
    let header = user.and_then(|(user, _)| {
        let mut header = HeaderValue::try_from(format!("Basic {}", authorization::base64(&decoded(user)))).ok()?;
        header.set_sensitive(true);
        Some(header)
    });
    match header {
        Some(header) => tunnel.with_auth(header),
        None => tunnel,
    }
}

/// What a part of a URL stands for (RFC 3986, section 2.1).
fn decoded(text: &str) -> Vec<u8> {
    let (mut rest, mut decoded) = (text.as_bytes(), Vec::new());
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|byte| (*byte as char).to_digit(16));
        let escaped = digit(0).zip(digit(1)).filter(|_| *first == b'%');
        rest = after.get(if escaped.is_some() { 2 } else { 0 }..).unwrap_or_default();
        decoded.push(escaped.map_or(*first, |(high, low)| (high * 16 + low) as u8));
    }
    decoded
}

/// A connection, whatever is below it.
struct Line(Box<dyn Stream>);

trait Stream: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Stream for T {}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl Read for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, into)
    }
}

impl Write for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(context, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_passwords_of_proxies_are_decoded() {
        assert_eq!(decoded("user:pa%40ss%3Aword"), b"user:pa@ss:word");
        assert_eq!(decoded("user:p%C3%A9"), "user:pé".as_bytes());
        // What is no escape stays as it is.
        assert_eq!(decoded("100%:%+A%4"), b"100%:%+A%4");
    }
}
