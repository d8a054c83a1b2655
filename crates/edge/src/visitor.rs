//! Visitors of edge tunnels: HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use connections::{Guarded, Impatient, Kind, Place};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::ext::Protocol;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tunnel_model::{Failure, Status, TlsMode, TunnelName};

use crate::link::{Handshake, Link, LinkError, Patience, ReplyBody, ReplyBroken, Visitor, WebSocket as _, discard};
use crate::tunnels::Entry;
use crate::{Shared, Wire};

/// Who visits, and whom.
pub(crate) struct Visit {
    pub(crate) ip: IpAddr,
    /// The name that TLS was made for.
    pub(crate) host: String,
    pub(crate) name: TunnelName,
    pub(crate) shared: Arc<Shared>,
    place: Place,
    /// Requests that have no answer yet, and WebSockets.
    active: AtomicUsize,
    resets: Resets,
    /// The connection is not worth keeping.
    lost: Arc<Notify>,
}

/// Requests that were reset before their answer: each has cost the agent work.
#[derive(Debug)]
struct Resets(Mutex<(u32, Instant)>);

/// Resets a second that a connection may go on with.
const MAX_RESETS: u32 = 100;

impl Resets {
    /// Counts one; are these too many?
    fn count(&self) -> bool {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.1.elapsed() >= Duration::from_secs(1) {
            *recent = (0, Instant::now());
        }
        recent.0 += 1;
        recent.0 > MAX_RESETS
    }
}

/// A request between its head and its answer.
struct Active<'a> {
    visit: &'a Visit,
    is_answered: bool,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.visit.active.fetch_sub(1, Ordering::Relaxed);
        if !self.is_answered && self.visit.resets.count() {
            self.visit.lost.notify_one();
        }
    }
}

/// A WebSocket, or a reply that is still coming: it keeps its connection from being idle,
/// and the visitor's place.
struct Busy(Arc<Visit>);

/// A reply that is still coming.
struct Coming {
    body: Pin<Box<dyn Body<Data = Bytes, Error = ReplyBroken> + Send>>,
    _busy: Busy,
}

impl Body for Coming {
    type Data = Bytes;
    type Error = ReplyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyBroken>>> {
        self.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Busy {
    fn new(visit: &Arc<Visit>) -> Self {
        visit.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(visit))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Header fields of a request; the wires take as many or fewer.
const MAX_FIELDS: usize = 200;
/// Octets of a request's head that is read at once, and of what waits to be written.
const MAX_BUFFER: usize = 64 * 1024;
/// Octets of a request's headers over HTTP/2.
const MAX_HEADER_LIST: u32 = 32 * 1024;
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 128;
/// A visitor sends at most this much before it is read.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

impl Visit {
    pub(crate) fn new(ip: IpAddr, host: String, name: TunnelName, place: Place, shared: Arc<Shared>) -> Self {
        let resets = Resets(Mutex::new((0, Instant::now())));
        Self { ip, host, name, shared, place, active: AtomicUsize::new(0), resets, lost: Arc::new(Notify::new()) }
    }

    fn visitor(&self) -> Visitor<'_> {
        let patience = Patience { stall: self.shared.settings.visitor.stall, lost: Arc::clone(&self.lost) };
        Visitor { ip: self.ip, place: &self.place, patience }
    }
}

/// Serves one connection until it ends, idles, or the server stops.
pub(crate) async fn serve<IO>(io: IO, is_http2: bool, visit: Arc<Visit>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stopping = visit.shared.stopping.clone();
    let limits = visit.shared.settings.visitor;
    let served = Arc::clone(&visit);
    let service = service_fn(move |request| {
        let visit = Arc::clone(&served);
        async move {
            visit.active.fetch_add(1, Ordering::Relaxed);
            let mut active = Active { visit: &visit, is_answered: false };
            let mut response = Box::pin(answer(&visit, request)).await;
            if visit.shared.is_stopping() && !is_http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            active.is_answered = true;
            drop(active);
            Ok::<_, Infallible>(response)
        }
    });
    let ended = if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(limits.keep_alive)
            .keep_alive_timeout(limits.head)
            .serve_connection(TokioIo::new(Impatient::new(io, limits.stall)), service);
        let mut connection = std::pin::pin!(connection);
        let leave = async {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => {}
                () = idle(&visit, limits.idle) => {}
            }
        };
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = visit.lost.notified() => {
                tracing::debug!(ip = %visit.ip, "a visitor resets its requests, or takes nothing of a reply; closing");
                Ok(())
            }
            () = leave => {
                connection.as_mut().graceful_shutdown();
                // Replies that are still being taken are finished; a visitor that takes
                // nothing of a small one would stay for ever.
                tokio::select! {
                    ended = timeout(LEAVING, connection) => ended.unwrap_or(Ok(())),
                    () = visit.lost.notified() => Ok(()),
                }
            }
        }
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(Guarded::new(Impatient::new(io, limits.stall))), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = visit.lost.notified() => Ok(()),
            () = stopped_for(&mut stopping, LAME_DUCK) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(ip = %visit.ip, error = &error as &dyn std::error::Error, "a visitor's connection ended");
    }
}

/// How long the last replies of an HTTP/2 connection may take: 32 MiB at 60 kB/s.
const LEAVING: Duration = Duration::from_secs(600);
/// How long a connection is kept after the signal to stop for the request that
/// may be on its way: its answer says that it is the last one.
const LAME_DUCK: Duration = Duration::from_secs(1);

async fn stopped_for(stopping: &mut watch::Receiver<bool>, time: Duration) {
    // An error means that the sender is gone, which is a reason to stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
    tokio::time::sleep(time).await;
}

/// Returns when no request has been there for a while.
async fn idle(visit: &Visit, time: Duration) {
    let mut quiet = 0;
    // Looked at four times: a connection that is busy now and then is not idle.
    while quiet < 4 {
        tokio::time::sleep(time / 4).await;
        quiet = if visit.active.load(Ordering::Relaxed) == 0 { quiet + 1 } else { 0 };
    }
}

async fn answer(visit: &Arc<Visit>, request: Request<Incoming>) -> Response<ReplyBody> {
    let is_head = request.method() == Method::HEAD;
    let (head, body) = request.into_parts();
    let (request, mut body) = (Request::from_parts(head, ()), Some(body));
    let answered = match Wanted::of(&request, visit) {
        Ok(Wanted::Http) => exchange(visit, request, &mut body).await,
        Ok(Wanted::Options) => Ok(options()),
        Ok(Wanted::WebSocket { key }) => upgrade(visit, request, key).await,
        Err(problem) => Err(problem),
    };
    if let (Err(_), Some(body)) = (&answered, body.filter(|body| !body.is_end_stream())) {
        discard(body, visit.shared.settings.visitor.body);
    }
    let counters = &visit.shared.counters;
    let mut response = answered.inspect(|_| counters.count_answer()).unwrap_or_else(|problem| {
        counters.count_failure(problem.parts().1);
        problem.into()
    });
    if is_head {
        *response.body_mut() = ReplyBody::Headless;
    }
    response
}

/// What a request asks for, by its head.
enum Wanted {
    Http,
    /// What the server can do, whatever the path: `OPTIONS *`.
    Options,
    /// With `Sec-WebSocket-Key` over HTTP/1.1, without over HTTP/2.
    WebSocket {
        key: Option<HeaderValue>,
    },
}

impl Wanted {
    fn of(request: &Request<()>, visit: &Visit) -> Result<Self, Problem> {
        let headers = request.headers();
        check_authority(request, &visit.host)?;
        check_framing(request)?;
        let protocol = request.extensions().get::<Protocol>();
        match (request.method(), protocol) {
            (&Method::CONNECT, Some(protocol)) if protocol.as_str() == "websocket" => {
                check_version(headers)?;
                return Ok(Self::WebSocket { key: None });
            }
            (&Method::CONNECT, Some(_)) => return Err(Problem::NotImplemented),
            (&Method::CONNECT | &Method::TRACE, None) => return Err(Problem::MethodNotAllowed),
            (&Method::OPTIONS, None) if request.uri().path() == "*" => return Ok(Self::Options),
            _ => {}
        }
        if !has_token(headers, &header::UPGRADE, "websocket") || request.version() != Version::HTTP_11 {
            return Ok(Self::Http);
        }
        // RFC 6455 section 4.2.1
        if request.method() != Method::GET || !has_token(headers, &header::CONNECTION, "upgrade") {
            return Err(Problem::BadRequest("a WebSocket handshake is a GET with Connection: Upgrade"));
        }
        check_version(headers)?;
        let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        match (keys.next(), keys.next()) {
            (Some(key), None) if key.len() == 24 && key.as_bytes().ends_with(b"==") => {
                Ok(Self::WebSocket { key: Some(key.clone()) })
            }
            _ => Err(Problem::BadRequest("Sec-WebSocket-Key must be 16 octets in base64")),
        }
    }
}

/// Host and SNI must agree (RFC 9110 section 7.4): a connection that was made
/// for one name is used for no other.
fn check_authority(request: &Request<()>, host: &str) -> Result<(), Problem> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Problem::BadRequest("there is more than one Host"));
    }
    let field =
        field.map(|value| value.to_str().map_err(|_| Problem::BadRequest("Host is no host name"))).transpose()?;
    let authority = match (request.uri().authority(), field) {
        // The target's authority wins (RFC 9112 section 3.2.2), but who sends two
        // different ones means trouble.
        (Some(authority), Some(field)) if !same_host(authority.as_str(), field) => {
            return Err(Problem::BadRequest("Host and request target do not agree"));
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(field)) => field,
        (None, None) => return Err(Problem::BadRequest("there is no Host")),
    };
    if authority.contains('@') {
        return Err(Problem::BadRequest("the authority has user information"));
    }
    if same_host(authority, host) { Ok(()) } else { Err(Problem::Misdirected) }
}

fn same_host(left: &str, right: &str) -> bool {
    let bare = |authority: &str| {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
            _ => authority,
        };
        host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
    };
    bare(left) == bare(right)
}

/// What two servers in a row could understand differently.
fn check_framing(request: &Request<()>) -> Result<(), Problem> {
    let headers = request.headers();
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    if lengths > 1 || (lengths == 1 && headers.contains_key(header::TRANSFER_ENCODING)) {
        return Err(Problem::BadRequest("the length of the body is ambiguous"));
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    if codings > 1 || headers.get(header::TRANSFER_ENCODING).is_some_and(|coding| !is_chunked(coding)) {
        return Err(Problem::BadRequest("the only transfer coding is chunked"));
    }
    let is_http2 = request.version() == Version::HTTP_2;
    if is_http2 && headers.get(header::TE).is_some_and(|te| te != "trailers") {
        return Err(Problem::BadRequest("TE may only say trailers"));
    }
    let is_asterisk = request.method() == Method::OPTIONS && request.uri().path() == "*";
    if !request.uri().path().starts_with('/') && request.method() != Method::CONNECT && !is_asterisk {
        return Err(Problem::BadRequest("the request target must begin with a slash"));
    }
    Ok(())
}

fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    let is_13 = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    if is_13 { Ok(()) } else { Err(Problem::WebSocketVersion) }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(token))
}

/// What every application may be asked (RFC 9110 section 9.3.7): the wire to agents
/// has no word for a request without a path.
fn options() -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::Full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::ALLOW, METHODS);
    response
}

/// One request through the tunnel.
async fn exchange(
    visit: &Arc<Visit>,
    request: Request<()>,
    body: &mut Option<Incoming>,
) -> Result<Response<ReplyBody>, Problem> {
    let version = request.version();
    let entry = find(visit).await?;
    let mut response = match visit.shared.wire(entry).await? {
        Wire::Parked(link) => link.request(request, body, &visit.visitor()).await,
        Wire::Reversed(link) => link.request(request, body, &visit.visitor()).await,
    }?;
    if let ReplyBody::Stream(body) = response.body_mut() {
        let coming = std::mem::replace(body, Box::pin(Empty::new().map_err(|never| match never {})));
        *body = Box::pin(Coming { body: coming, _busy: Busy::new(visit) });
    }
    if let (Version::HTTP_2, ReplyBody::Full(body)) = (version, response.body_mut()) {
        // Over HTTP/1.1 a visitor has one of them at a time, and is cut off if it takes nothing.
        let mut lease = visit.place.lease(vec![Arc::clone(&visit.shared.answers)]);
        if !lease.grow(body.len()) {
            return Err(Problem::Link(LinkError::NoMemory));
        }
        *body = lease.own(std::mem::take(body));
    }
    Ok(response)
}

/// A WebSocket handshake through the tunnel.
async fn upgrade(
    visit: &Arc<Visit>,
    request: Request<()>,
    key: Option<HeaderValue>,
) -> Result<Response<ReplyBody>, Problem> {
    let entry = find(visit).await?;
    match visit.shared.wire(entry).await? {
        Wire::Parked(link) => upgrade_by(link, visit, request, key).await,
        Wire::Reversed(link) => upgrade_by(link, visit, request, key).await,
    }
}

async fn upgrade_by(
    link: impl Link,
    visit: &Arc<Visit>,
    mut request: Request<()>,
    key: Option<HeaderValue>,
) -> Result<Response<ReplyBody>, Problem> {
    let handshake = link.websocket(&request, &visit.visitor()).await?;
    let (headers, websocket) = match handshake {
        Handshake::Accepted(headers, websocket) => (headers, websocket),
        Handshake::Refused(response) => return Ok(response),
    };
    let mut response = Response::new(ReplyBody::Full(Bytes::new()));
    *response.headers_mut() = headers;
    if let Some(key) = key {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept(&key));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    if request.version() == Version::HTTP_11 {
        // Among visitors, so that there is room.
        let _ = visit.place.change(Kind::WebSocket, visit.ip);
    }
    let busy = Busy::new(visit);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(upgraded) => websocket.run(TokioIo::new(upgraded)).await,
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "a WebSocket never began"),
        }
        // The account lasts as long as the last of its WebSockets.
        drop(busy);
    });
    Ok(response)
}

/// The tunnel, if it is an edge tunnel that can be asked.
async fn find(visit: &Visit) -> Result<Arc<Entry>, Problem> {
    let tunnels = &visit.shared.tunnels;
    if let Some(entry) = tunnels.by_name(&visit.name) {
        return match entry.mode() {
            TlsMode::Edge if entry.is_routable() => Ok(entry),
            TlsMode::Edge => Err(Problem::NotFound),
            TlsMode::Passthrough => Err(Problem::Misdirected),
        };
    }
    let tunnel = visit.shared.store.tunnel_by_name(&visit.name).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot look up a visitor's tunnel");
        Problem::Internal
    })?;
    let tunnel = tunnel.filter(|tunnel| tunnel.status == Status::Active).ok_or(Problem::NotFound)?;
    match tunnel.tls_mode {
        TlsMode::Passthrough => Err(Problem::Misdirected),
        TlsMode::Edge => {
            tunnels.entry_for_visitor(&tunnel).ok_or(Problem::Link(LinkError::Failed(Failure::AgentOffline)))
        }
    }
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
const REASON: HeaderName = HeaderName::from_static("inkbox-reason");
/// `Sec-WebSocket-Accept` for a visitor's key (RFC 6455 section 4.2.2).
fn accept(key: &HeaderValue) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let text = STANDARD.encode(context.finish());
    // base64 is ASCII.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Why a visitor gets no reply of the application.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Problem {
    BadRequest(&'static str),
    Internal,
    Link(LinkError),
    MethodNotAllowed,
    Misdirected,
    NotFound,
    NotImplemented,
    WebSocketVersion,
}

impl Problem {
    /// Status, word for programs, words for people.
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest(why) => (StatusCode::BAD_REQUEST, "bad-request", why),
            Self::Link(LinkError::BodyBroken) => (StatusCode::BAD_REQUEST, "bad-request", "the body broke off"),
            Self::Link(LinkError::BodyTooLarge) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "request-body-too-large", "32 MiB of body fit")
            }
            Self::Link(LinkError::BodyTooSlow) => {
                (StatusCode::REQUEST_TIMEOUT, "request-timeout", "the body did not arrive")
            }
            Self::Link(LinkError::Failed(Failure::AgentBusy)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "agent-busy", "the agent takes no more requests at the moment")
            }
            Self::Link(LinkError::Failed(Failure::AgentLost)) => {
                (StatusCode::BAD_GATEWAY, "agent-lost", "the agent left before it had answered")
            }
            Self::Link(LinkError::Failed(Failure::AgentOffline)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "agent-offline", "no agent is connected for this host")
            }
            Self::Link(LinkError::Failed(Failure::AgentTimeout)) => {
                (StatusCode::GATEWAY_TIMEOUT, "agent-timeout", "the agent did not answer in time")
            }
            Self::Link(LinkError::Failed(Failure::TunnelGone)) | Self::NotFound => {
                (StatusCode::NOT_FOUND, "not-found", "there is no such host")
            }
            Self::Link(LinkError::HeadersTooLarge) => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "headers-too-large",
                "the request has more header fields, or longer ones, than pass through this tunnel",
            ),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "CONNECT and TRACE stay here")
            }
            Self::Misdirected => {
                (StatusCode::MISDIRECTED_REQUEST, "misdirected", "the connection was made for another host")
            }
            Self::Link(LinkError::NoMemory) => {
                (StatusCode::SERVICE_UNAVAILABLE, "server-busy", "the server holds too many bodies at the moment")
            }
            Self::Link(LinkError::NotSpoken) => {
                (StatusCode::NOT_IMPLEMENTED, "not-implemented", "the agent takes no WebSockets")
            }
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "not-implemented", "the only protocol is websocket"),
            Self::Link(LinkError::ReplyBroken) => {
                (StatusCode::BAD_GATEWAY, "reply-malformed", "the agent's reply is not whole")
            }
            Self::Link(LinkError::ReplyHeadersTooLarge) => (
                StatusCode::BAD_GATEWAY,
                "response-headers-too-large",
                "the application's headers have more than 64 KiB or 200 fields",
            ),
            Self::Link(LinkError::Target) => {
                (StatusCode::BAD_REQUEST, "bad-request", "the request target has octets that no URI has")
            }
            Self::WebSocketVersion => {
                (StatusCode::UPGRADE_REQUIRED, "websocket-version", "Sec-WebSocket-Version must be 13")
            }
        }
    }
}

impl From<Problem> for Response<ReplyBody> {
    fn from(problem: Problem) -> Self {
        let (status, reason, words) = problem.parts();
        let mut response = Self::new(ReplyBody::Full(Bytes::from(format!("{words}\n"))));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(REASON, HeaderValue::from_static(reason));
        match problem {
            Problem::Link(LinkError::NoMemory | LinkError::Failed(Failure::AgentBusy | Failure::AgentOffline)) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            Problem::MethodNotAllowed => {
                headers.insert(header::ALLOW, METHODS);
            }
            Problem::WebSocketVersion => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            }
            // What was not read of the request must not be taken for the next one.
            Problem::BadRequest(_)
            | Problem::Link(
                LinkError::BodyBroken | LinkError::BodyTooLarge | LinkError::BodyTooSlow | LinkError::Target,
            ) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<LinkError> for Problem {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}
