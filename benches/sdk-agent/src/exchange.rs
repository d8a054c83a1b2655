//! Visitors of an edge tunnel: envelopes in, replies out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::bridge::{Message, MessageDecoder, Outer, OuterDecoder, encode_outer_close};
use agent_proto::limits::MAX_BODY;
use agent_proto::visitor::{acceptance_headers, check_path, reply_headers};
use agent_proto::websocket::{Event, Reader, Role, write_close, write_frame};
use agent_proto::{BridgeId, BridgeKind, Opcode, ReplyHead, RequestId, is_valid_close_code};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use h2::SendStream;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::{Instant, timeout, timeout_at};

use crate::bridge::{Bridge, Inbound};
use crate::session::Streams;
use crate::upstream::{AgentBody, MAX_FIELDS, MAX_HEADERS, UpstreamBody, full, upgraded};
use crate::{Error, InFlight, Shared, mask};

/// How long a bridge or a handshake may take, if the edge sets no limit.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long the second side of a WebSocket may take to end after the first.
const CLOSING: Duration = Duration::from_secs(5);
/// Octets of one message in either direction.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;
const READ: usize = 16 * 1024;
/// RFC 6455 section 7.4.1
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const INTERNAL_ERROR: u16 = 1011;

/// A reply of the agent itself.
pub(crate) fn failure(status: StatusCode, reason: &'static str) -> (ReplyHead, Bytes) {
    let mut head = ReplyHead::new(status);
    head.reason = Some(reason.to_owned());
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    (head, Bytes::from(format!("{reason}\n")))
}

/// The reply to an answer whose head nobody takes.
pub(crate) fn headers_too_large() -> (ReplyHead, Bytes) {
    tracing::warn!("the application's headers have more than {MAX_HEADERS} octets or {MAX_FIELDS} fields");
    failure(StatusCode::BAD_GATEWAY, "response-headers-too-large")
}

/// The reply when the application could not be asked.
pub(crate) fn upstream_failure(shared: &Shared, error: &Error) -> (ReplyHead, Bytes) {
    if error.is_too_large() {
        return headers_too_large();
    }
    shared.tell(crate::Event::UpstreamFailed { error: error.chain() });
    failure(StatusCode::BAD_GATEWAY, "upstream-unreachable")
}

/// The body of a reply.
pub(crate) enum Content {
    /// All of it.
    Whole(Bytes),
    /// What the application has said so far, and what it says on.
    Coming { begun: Bytes, rest: UpstreamBody, length: Option<u64> },
}

impl From<Bytes> for Content {
    fn from(body: Bytes) -> Self {
        Self::Whole(body)
    }
}

/// How long an application may take to say all at once. What takes longer is handed on
/// as it comes: events, tokens, progress.
const AT_ONCE: Duration = Duration::from_millis(5);
/// Octets that are collected; of more there is no reason to wait for the end.
const ENOUGH: usize = 256 * 1024;

/// One request to the application. Answers when it has an answer, of which the body may
/// still be coming.
pub(crate) async fn serve(
    shared: &Shared,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: Bytes,
    visitor: Option<IpAddr>,
) -> (ReplyHead, Content) {
    let failed = |(head, body): (ReplyHead, Bytes)| (head, Content::Whole(body));
    let Ok(request) = request(shared, method, path, headers, full(body), visitor) else {
        return failed(failure(StatusCode::BAD_REQUEST, "invalid-path"));
    };
    let response = match shared.upstream.send(request).await {
        Ok(response) => response,
        Err(error) => return failed(upstream_failure(shared, &error)),
    };
    let (head, body) = response.into_parts();
    let mut reply = ReplyHead::new(head.status);
    reply.headers = reply_headers(head.headers);
    if body.size_hint().lower() > MAX_BODY as u64 {
        return failed(failure(StatusCode::BAD_GATEWAY, "response-too-large"));
    }
    match begin(body).await {
        Ok(content) => (reply, content),
        Err(_) => failed(failure(StatusCode::BAD_GATEWAY, "upstream-error")),
    }
}

/// Takes what there is of a body at once.
///
/// # Errors
///
/// When it broke off meanwhile.
async fn begin(mut body: UpstreamBody) -> Result<Content, Error> {
    let length = body.size_hint().exact();
    let until = Instant::now() + AT_ONCE;
    let mut begun = BytesMut::new();
    while begun.len() < ENOUGH {
        let Ok(frame) = timeout_at(until, body.frame()).await else { break };
        let Some(frame) = frame else { return Ok(Content::Whole(begun.freeze())) };
        let Ok(data) = frame?.into_data() else { continue };
        if begun.is_empty() && body.is_end_stream() {
            // Most bodies are one frame, which needs no copy.
            return Ok(Content::Whole(data));
        }
        begun.extend_from_slice(&data);
    }
    Ok(Content::Coming { begun: begun.freeze(), rest: body, length })
}

/// The request as the application sees it.
fn request(
    shared: &Shared,
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: AgentBody,
    visitor: Option<IpAddr>,
) -> Result<Request<AgentBody>, Error> {
    check_path(path).map_err(|error| Error::Hello(error.into()))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(http::Error::from)?;
    *request.headers_mut() = headers;
    put_forwarded(request.headers_mut(), HeaderValue::try_from(shared.public_authority()).ok(), visitor);
    Ok(request)
}

/// Who asked, and for what: the application sees our connection only.
pub(crate) fn put_forwarded(headers: &mut HeaderMap, authority: Option<HeaderValue>, visitor: Option<IpAddr>) {
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Some(host) = authority {
        headers.insert("x-forwarded-host", host);
    }
    let Some(visitor) = visitor else { return };
    // RFC 7239 section 6: an IPv6 address stands in brackets and quotes.
    let forwarded = if visitor.is_ipv6() { format!("for=\"[{visitor}]\"") } else { format!("for={visitor}") };
    for (name, value) in [("x-forwarded-for", visitor.to_string()), ("forwarded", forwarded)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

/// One WebSocket to the application.
#[expect(clippy::too_many_arguments, reason = "the parts of one envelope")]
pub(crate) async fn serve_websocket(
    shared: &Arc<Shared>,
    streams: Streams,
    request_id: RequestId,
    id: BridgeId,
    path: &str,
    headers: HeaderMap,
    visitor: Option<IpAddr>,
    deadline: Option<Duration>,
) {
    let limit = deadline.unwrap_or(HANDSHAKE);
    let local = timeout(limit, open(shared, path, headers, visitor)).await;
    let local = local.unwrap_or_else(|_| Err(refusal(StatusCode::GATEWAY_TIMEOUT, "response-deadline-exceeded")));
    let (head, local) = match local {
        Ok(accepted) => accepted,
        Err(refusal) => {
            let (head, body) = *refusal;
            streams.reply(request_id, head, body).await;
            return;
        }
    };
    // The edge answers the reply before it joins the bridge.
    streams.reply(request_id, head, Bytes::new()).await;
    match streams.bridge(BridgeKind::WebSocket, id, InFlight::of(shared), limit).await {
        Ok(bridge) => join(local, bridge).await,
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no bridge for a WebSocket"),
    }
}

/// What the visitor gets instead of a WebSocket.
type Refusal = Box<(ReplyHead, Bytes)>;

fn refusal(status: StatusCode, reason: &'static str) -> Refusal {
    Box::new(failure(status, reason))
}

/// The handshake with the application (RFC 6455 section 4.1).
async fn open(
    shared: &Shared,
    path: &str,
    headers: HeaderMap,
    visitor: Option<IpAddr>,
) -> Result<(ReplyHead, impl AsyncRead + AsyncWrite), Refusal> {
    let mut request = request(shared, Method::GET, path, headers, full(Bytes::new()), visitor)
        .map_err(|_| refusal(StatusCode::BAD_REQUEST, "invalid-path"))?;
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal"))?;
    let fields = request.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::try_from(STANDARD.encode(key)) {
        fields.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    let failed = |error: Error| Box::new(upstream_failure(shared, &error));
    let response = shared.upstream.send_upgrade(request).await.map_err(failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        // 200 would be an acceptance.
        let status = if head.status.is_success() { StatusCode::BAD_GATEWAY } else { head.status };
        let mut reply = ReplyHead::new(status);
        reply.headers = reply_headers(head.headers);
        return Err(Box::new((reply, body)));
    }
    let mut reply = ReplyHead::new(StatusCode::OK);
    reply.headers = acceptance_headers(response.headers().clone());
    let local = upgraded(response).await.map_err(|_| refusal(StatusCode::BAD_GATEWAY, "upstream-error"))?;
    Ok((reply, local))
}

/// Carries messages both ways until both sides have ended.
async fn join(local: impl AsyncRead + AsyncWrite, mut bridge: Bridge) {
    let (read, write) = split(local);
    let write = tokio::sync::Mutex::new(write);
    let mut forward = std::pin::pin!(to_local(&mut bridge.recv, &write));
    let mut backward = std::pin::pin!(to_edge(read, &write, &mut bridge.send));
    tokio::select! {
        () = forward.as_mut() => drop(timeout(CLOSING, backward).await),
        () = backward.as_mut() => drop(timeout(CLOSING, forward).await),
    }
    // Both are done with it; a connection that is closed already is closed.
    let _ = write.lock().await.shutdown().await;
}

/// What the visitor says.
async fn to_local(recv: &mut Inbound, write: &tokio::sync::Mutex<impl AsyncWrite + Unpin>) {
    let mut outer = OuterDecoder::new();
    let mut messages = MessageDecoder::new(MAX_MESSAGE / 3 * 4 + 1024);
    let mut end = None;
    while end.is_none() {
        let Some(Ok(chunk)) = recv.data().await else { break };
        let octets = chunk.len();
        outer.push(chunk);
        let mut out = BytesMut::new();
        end = loop {
            match messages.next_message() {
                Ok(Some(Message::Text(text))) => write_frame(Opcode::Text, text.as_bytes(), Some(mask()), &mut out),
                Ok(Some(Message::Binary(data))) => write_frame(Opcode::Binary, &data, Some(mask()), &mut out),
                Ok(Some(Message::Close { code, reason })) => break Some((code, reason)),
                Err(_) => break Some((INTERNAL_ERROR, String::new())),
                Ok(None) => match outer.next_event() {
                    Ok(Some(Outer::Data(data) | Outer::Text(data))) => messages.push(&data),
                    Ok(Some(Outer::Close { code, reason })) => break Some((code.unwrap_or(NORMAL), reason)),
                    Ok(Some(Outer::Ping(_) | Outer::Pong)) => {}
                    Ok(None) => break None,
                    Err(_) => break Some((INTERNAL_ERROR, String::new())),
                },
            }
        };
        if !out.is_empty() && write.lock().await.write_all(&out).await.is_err() {
            return;
        }
        recv.release(octets);
    }
    let (code, reason) = end.unwrap_or((GOING_AWAY, String::new()));
    let mut close = BytesMut::new();
    write_close(Some(if is_valid_close_code(code) { code } else { NORMAL }), &reason, Some(mask()), &mut close);
    let _ = write.lock().await.write_all(&close).await;
    recv.drain().await;
}

/// What the application says.
async fn to_edge(
    mut read: impl AsyncRead + Unpin,
    write: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    send: &mut SendStream<Bytes>,
) {
    let mut reader = Reader::new(Role::Client, MAX_MESSAGE);
    let mut buffer = BytesMut::with_capacity(READ);
    let (code, reason) = loop {
        let message = match reader.next_event() {
            Ok(Some(Event::Text(text))) => Message::Text(text),
            Ok(Some(Event::Binary(data))) => Message::Binary(data),
            Ok(Some(Event::Ping(data))) => {
                let mut pong = BytesMut::new();
                write_frame(Opcode::Pong, &data, Some(mask()), &mut pong);
                if write.lock().await.write_all(&pong).await.is_err() {
                    break (INTERNAL_ERROR, String::new());
                }
                continue;
            }
            Ok(Some(Event::Pong(_))) => continue,
            Ok(Some(Event::Close { code, reason })) => break (code.unwrap_or(NORMAL), reason),
            Err(violation) => break (violation.close_code(), violation.to_string()),
            Ok(None) => {
                buffer.clear();
                match read.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => break (INTERNAL_ERROR, String::new()),
                    Ok(_) => reader.push(&buffer),
                }
                continue;
            }
        };
        let mut frame = BytesMut::with_capacity(message.encoded_len() + 4);
        message.encode(Some(mask()), &mut frame);
        if send_all(send, frame.freeze()).await.is_err() {
            return;
        }
    };
    // The second one is for edges that read the outer layer only.
    let mut close = BytesMut::new();
    Message::Close { code, reason: reason.clone() }.encode(Some(mask()), &mut close);
    encode_outer_close(if is_valid_close_code(code) { code } else { NORMAL }, &reason, Some(mask()), &mut close);
    let _ = send.send_data(close.freeze(), true);
}

/// Sends as the window opens.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut octets: Bytes) -> Result<(), h2::Error> {
    while !octets.is_empty() {
        send.reserve_capacity(octets.len());
        while send.capacity() == 0 {
            match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(room) => drop(room?),
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            }
        }
        let part = octets.split_to(send.capacity().min(octets.len()));
        send.send_data(part, false)?;
    }
    Ok(())
}
