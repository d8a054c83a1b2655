//! The application behind the agent: a URL, or a service in this process.
//!
//! It is spoken to in HTTP/1.1, so that WebSockets and streamed bodies work the same way
//! for all, or in HTTP/2 where the URL says so. One that ends TLS itself gets octets.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::client::TlsStream;

use crate::Error;
use crate::dial::{Address, Proxies, bare};
use crate::outbound::{Outbound, Returned};
use crate::tls::Trust;

/// A body on its way to the application, or to a visitor.
pub type AgentBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Where visitors' requests go.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    dial: Dial,
    /// What the application sees as `Host`.
    host: HeaderValue,
    idle: Mutex<Vec<Connection>>,
    /// Connections for requests that are there, idle ones among them.
    connections: Arc<AtomicUsize>,
    /// The connection of an application that speaks HTTP/2, if it is there.
    http2: tokio::sync::Mutex<Option<http2::SendRequest<Outbound>>>,
}

enum Dial {
    /// HTTP/2, known to be spoken (RFC 9113 section 3.3): without TLS, or with it and by ALPN.
    Http2 {
        host: String,
        port: u16,
        trust: Option<Trust>,
    },
    /// Whoever ends the visitors' TLS.
    Raw {
        host: String,
        port: u16,
    },
    Tcp {
        host: String,
        port: u16,
    },
    Tls {
        host: String,
        port: u16,
        trust: Trust,
    },
    Service(Box<dyn Fn(tokio::io::DuplexStream) + Send + Sync>),
}

/// A connection to the application, which ends when nobody has it.
struct Connection {
    sender: SendRequest<Outbound>,
    task: Option<AbortHandle>,
    count: Arc<AtomicUsize>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a connection to the application is made of.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connections that wait for the next request; more are closed.
const MAX_IDLE: usize = 256;
/// Header fields of one message and their octets, to visitors and from them: what edges
/// take at least.
pub(crate) const MAX_FIELDS: usize = 200;
pub(crate) const MAX_HEADERS: usize = 64 * 1024;
/// What is read of an answer, or kept of a request, before the other side takes it: of one,
/// and about of all. There is always room for a head.
const MAX_BUFFER: usize = 256 * 1024;
const BUFFERS: usize = 64 * 1024 * 1024;
const LEAST_BUFFER: usize = MAX_HEADERS + 32 * 1024;
/// What an application that speaks HTTP/2 may send ahead on one stream, and on all.
const HTTP2_STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Octets between an in-process service and the agent.
const PIPE: usize = 64 * 1024;

impl Upstream {
    /// An application at an `http` or `https` URL; one at `h2c` or `h2` speaks HTTP/2, as
    /// gRPC servers do, without TLS or with it. `trust` is for those with TLS. One at
    /// `tls` ends the visitors' TLS itself, with a certificate of its own.
    ///
    /// # Errors
    ///
    /// When the URL is another one, or has a path.
    pub fn url(url: &Uri, trust: Option<&Trust>) -> Result<Self, Error> {
        let usage = Error::Upstream(
            "forward to a URL such as http://127.0.0.1:3000 without a path; the schemes are http, https, h2c, h2 and tls",
        );
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(usage);
        }
        let (Some(host), Some(authority)) = (url.host(), url.authority()) else { return Err(usage) };
        if authority.as_str().contains('@') {
            return Err(Error::Upstream(
                "the application's URL has a user: say it with --request-header Authorization",
            ));
        }
        let bare = bare(host).to_owned();
        let dial = match (url.scheme_str(), trust) {
            (Some("h2c"), _) => Dial::Http2 { host: bare, port: url.port_u16().unwrap_or(80), trust: None },
            (Some("h2"), Some(trust)) => {
                Dial::Http2 { host: bare, port: url.port_u16().unwrap_or(443), trust: Some(trust.clone()) }
            }
            (Some("tls"), _) => Dial::Raw { host: bare, port: url.port_u16().unwrap_or(443) },
            (Some("http"), _) => Dial::Tcp { host: bare, port: url.port_u16().unwrap_or(80) },
            (Some("https"), Some(trust)) => {
                Dial::Tls { host: bare, port: url.port_u16().unwrap_or(443), trust: trust.clone() }
            }
            _ => return Err(usage),
        };
        let host = HeaderValue::from_str(authority.as_str()).map_err(http::Error::from)?;
        Ok(Self::new(dial, host))
    }

    /// A service in this process, for example an `axum::Router`.
    pub fn service<S, B>(service: S) -> Self
    where
        S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let serve = move |io| {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the service's connection ended");
                }
            });
        };
        Self::new(Dial::Service(Box::new(serve)), HeaderValue::from_static("localhost"))
    }

    fn new(dial: Dial, host: HeaderValue) -> Self {
        let (idle, http2) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { dial, host, idle, connections: Arc::default(), http2 }))
    }

    /// What the application calls itself.
    pub(crate) fn host(&self) -> &HeaderValue {
        &self.0.host
    }

    /// Does the application end the visitors' TLS itself?
    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.0.dial, Dial::Raw { .. })
    }

    /// A connection to whoever ends the visitors' TLS; none if the agent does.
    pub(crate) async fn connect_raw(&self) -> Option<Result<TcpStream, Error>> {
        let Dial::Raw { host, port } = &self.0.dial else { return None };
        Some(direct(host, *port).connect().await.map_err(Error::Connect))
    }

    /// The body of an answer whose connection is used for nothing else.
    pub(crate) fn body_of_its_own(&self, body: Incoming) -> UpstreamBody {
        UpstreamBody { body, connection: None, returned: Returned::at_once(), upstream: self.clone() }
    }

    /// Sends a request and answers when the head of the response is there. Without a
    /// `host`, it is the application's own.
    pub(crate) async fn send(&self, mut request: Request<AgentBody>) -> Result<Response<UpstreamBody>, Error> {
        request.headers_mut().entry(header::HOST).or_insert_with(|| self.0.host.clone());
        if let Dial::Http2 { host, port, trust } = &self.0.dial {
            return self.send_http2(request, direct(host, *port), trust.as_ref()).await;
        }
        let mut idle = self.take_idle();
        loop {
            let is_reused = idle.is_some();
            let mut connection = match idle.take() {
                Some(connection) => connection,
                None => self.dial().await?,
            };
            let copy = Some(&request).filter(|request| is_reused && request.method().is_idempotent()).map(head_of);
            let (head, body) = request.into_parts();
            let (outbound, returned) = Outbound::new(body, copy.is_some());
            let mut error = match connection.sender.try_send_request(Request::from_parts(head, outbound)).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let connection = Some(connection);
                    let body = UpstreamBody { body, connection, returned, upstream: self.clone() };
                    return Ok(Response::from_parts(head, body));
                }
                Err(error) => error,
            };
            // The application closed an idle connection while we took it: if nothing was
            // sent, or what was may be sent twice (RFC 9110 section 9.2.2), a new one has it.
            let unsent = error.take_message().filter(|_| is_reused).map(|unsent| head_of(&unsent));
            let Some(head) = unsent.or(copy) else { return Err(error.into_error().into()) };
            drop(connection);
            let Some(body) = returned.body().await else { return Err(error.into_error().into()) };
            request = head.map(|()| body);
        }
    }

    /// The same to an application that speaks HTTP/2: all requests share a connection.
    async fn send_http2(
        &self,
        request: Request<AgentBody>,
        address: Address<'_>,
        trust: Option<&Trust>,
    ) -> Result<Response<UpstreamBody>, Error> {
        let (mut head, body) = request.into_parts();
        let authority = head.headers.remove(header::HOST).unwrap_or_else(|| self.0.host.clone());
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let scheme = if trust.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(authority.as_bytes()).path_and_query(target).build();
        (head.uri, head.version) = (uri?, http::Version::HTTP_2);
        let mut sender = {
            let mut shared = self.0.http2.lock().await;
            match shared.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => {
                    let io: Box<dyn Io> = match trust {
                        Some(trust) => Box::new(http2_by_alpn(address, trust).await?),
                        None => Box::new(address.connect().await.map_err(Error::Connect)?),
                    };
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    builder
                        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
                        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
                        .max_header_list_size(MAX_HEADERS as u32 + MAX_FIELDS as u32 * 32);
                    let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            let error = &error as &dyn std::error::Error;
                            tracing::debug!(error, "a connection to the application ended");
                        }
                    });
                    shared.insert(sender).clone()
                }
            }
        };
        let (outbound, returned) = Outbound::new(body, false);
        sender.ready().await?;
        let response = sender.send_request(Request::from_parts(head, outbound)).await?;
        let upstream = self.clone();
        Ok(response.map(|body| UpstreamBody { body, connection: None, returned, upstream }))
    }

    /// Sends a request on a connection of its own, which may be upgraded.
    pub(crate) async fn send_upgrade(&self, mut request: Request<AgentBody>) -> Result<Response<Incoming>, Error> {
        request.headers_mut().entry(header::HOST).or_insert_with(|| self.0.host.clone());
        let mut connection = self.dial().await?;
        // It lives on as what it becomes.
        connection.task = None;
        let request = request.map(|body| Outbound::new(body, false).0);
        Ok(connection.sender.send_request(request).await?)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn put_idle(&self, connection: Connection) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }

    async fn dial(&self) -> Result<Connection, Error> {
        let io: Box<dyn Io> = match &self.0.dial {
            // Upgrades are of HTTP/1.1.
            Dial::Http2 { host, port, trust: None } | Dial::Tcp { host, port } => {
                Box::new(direct(host, *port).connect().await.map_err(Error::Connect)?)
            }
            // The edge asks for octets only.
            Dial::Raw { .. } => return Err(Error::Upstream("the application speaks TLS with visitors alone")),
            Dial::Http2 { host, port, trust: Some(trust) } | Dial::Tls { host, port, trust } => {
                Box::new(trust.connect(host, direct(host, *port), b"http/1.1").await?)
            }
            Dial::Service(serve) => {
                let (near, far) = tokio::io::duplex(PIPE);
                serve(far);
                Box::new(near)
            }
        };
        let count = Arc::clone(&self.0.connections);
        let buffer = buffer_of(count.load(Ordering::Relaxed) + 1);
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_FIELDS).max_header_size(MAX_HEADERS).max_buf_size(buffer);
        let (sender, connection) = builder.handshake(TokioIo::new(AnswerFirst { io, is_deaf: false })).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a connection to the application ended");
            }
        });
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Connection { sender, task: Some(task.abort_handle()), count })
    }
}

/// For one of so many connections: visitors who do not read cost little when they are many.
fn buffer_of(connections: usize) -> usize {
    (BUFFERS / connections.max(1)).clamp(LEAST_BUFFER, MAX_BUFFER)
}

/// TLS with an application that is known to speak HTTP/2.
async fn http2_by_alpn(address: Address<'_>, trust: &Trust) -> Result<TlsStream<TcpStream>, Error> {
    let tls = trust.connect(address.host, address, b"h2").await?;
    match tls.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(tls),
        _ => Err(Error::Upstream("the application does not speak HTTP/2 (ALPN): forward to https:// instead of h2://")),
    }
}

/// Applications are near: no proxy is between.
fn direct(host: &str, port: u16) -> Address<'_> {
    static NONE: Proxies = Proxies::none();
    Address { host, port, proxies: &NONE }
}

/// A connection whose end is learnt by reading: an application that takes no more of a
/// request, and cannot be written to, may have answered it (RFC 9112 section 9.5).
struct AnswerFirst {
    io: Box<dyn Io>,
    is_deaf: bool,
}

impl AsyncRead for AnswerFirst {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for AnswerFirst {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.is_deaf {
            match ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs)) {
                Err(_) => self.is_deaf = true,
                written => return Poll::Ready(written),
            }
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_deaf |= !self.is_deaf && ready!(Pin::new(&mut self.io).poll_flush(cx)).is_err();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A request without its body.
fn head_of<B>(request: &Request<B>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("host", &self.0.host).finish_non_exhaustive()
    }
}

/// The body of a response. Read to its end, its connection is used again, unless the
/// application has answered without reading the request: then the rest of that is not
/// wanted, and whoever sends it learns so by the end of the connection.
pub(crate) struct UpstreamBody {
    body: Incoming,
    connection: Option<Connection>,
    returned: Returned,
    upstream: Upstream,
}

impl UpstreamBody {
    fn finish(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.returned.is_back()) {
            self.upstream.put_idle(connection);
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.finish(),
            Some(Ok(_)) if self.body.is_end_stream() => self.finish(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.connection = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.finish();
        }
    }
}

/// A body that is there already.
pub(crate) fn full(body: Bytes) -> AgentBody {
    http_body_util::Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

/// The application's side of an upgraded connection.
pub(crate) async fn upgraded<T>(response: Response<T>) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// An application that answers the first request of its first connection, and takes the
    /// second without a word; later connections are served.
    async fn forgetful() -> (Upstream, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let served = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&served);
        tokio::spawn(async move {
            for connection in 0.. {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = vec![0; 256 * 1024];
                while stream.read(&mut request).await.is_ok_and(|octets| octets > 0) {
                    // What follows in pieces belongs to it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if connection == 0 && count.load(Ordering::SeqCst) == 1 {
                        break;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("sent");
                }
            }
        });
        (Upstream::url(&url, None).expect("a URL"), served)
    }

    async fn ask(upstream: &Upstream, method: &Method, octets: usize) -> Result<(), Error> {
        let mut request = Request::new(full(Bytes::from(vec![7; octets])));
        *request.method_mut() = method.clone();
        let body = upstream.send(request).await?.into_body().collect().await.expect("a body");
        assert_eq!(body.to_bytes(), "ok");
        Ok(())
    }

    #[tokio::test]
    async fn what_may_be_done_twice_is_sent_again_when_a_reused_connection_dies() {
        for (method, octets, is_again) in [
            (Method::GET, 0, true),
            (Method::PUT, 0, true),
            (Method::DELETE, 1000, true),
            (Method::PUT, 64 * 1024, true),
            (Method::PUT, 64 * 1024 + 1, false),
            (Method::POST, 0, false),
            (Method::PATCH, 10, false),
        ] {
            let (upstream, served) = forgetful().await;
            ask(&upstream, &Method::GET, 0).await.expect("the first is answered");
            let outcome = ask(&upstream, &method, octets).await;
            assert_eq!(outcome.is_ok(), is_again, "{method} {octets}: {outcome:?}");
            assert_eq!(served.load(Ordering::SeqCst), if is_again { 2 } else { 1 }, "{method} {octets}");
        }
    }
}
