//! Requests and handshakes of visitors as envelopes, and what comes back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::limits::MAX_BODY;
use agent_proto::visitor::{acceptance_headers, handshake_headers, reply_headers, request_headers};
use agent_proto::{Envelope, EnvelopeError, EnvelopeKind};
use bytes::{Bytes, BytesMut};
use connections::Lease;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tunnel_model::{ExchangeId, ExchangeKind};

use super::octets::Octets;
use super::reply::AgentReply;
use super::streams::{Bridge, Pending, start};
use super::websocket;
use crate::Shared;
use crate::link::{Handshake, LinkError, MAX_REPLY_FIELDS, MAX_REPLY_HEADERS, Patience, ReplyBody, Visitor, WebSocket};
use crate::tunnels::{Entry, Ticket};

/// The way to an agent that speaks the wire of the published SDKs.
pub(crate) struct Link<'a> {
    entry: Arc<Entry>,
    shared: &'a Arc<Shared>,
}

impl<'a> Link<'a> {
    pub(crate) fn new(entry: Arc<Entry>, shared: &'a Arc<Shared>) -> Self {
        Self { entry, shared }
    }

    fn start(
        &self,
        exchange: ExchangeId,
        kind: ExchangeKind,
        envelope: Envelope,
        body: Bytes,
    ) -> Result<Pending, LinkError> {
        let encoded = envelope.encode()?;
        Ok(start(&self.shared.tunnels, &self.entry, exchange, kind, envelope, encoded, body)?)
    }
}

impl crate::link::Link for Link<'_> {
    type WebSocket = AgentWebSocket;
    type Duplex = Octets;

    async fn request(
        &self,
        request: Request<()>,
        body: &mut Option<Incoming>,
        visitor: &Visitor<'_>,
    ) -> Result<Response<ReplyBody>, LinkError> {
        let shared = self.shared;
        let (head, ()) = request.into_parts();
        let body = if let Some(body) = body.as_mut().filter(|body| !body.is_end_stream()) {
            let lease = visitor.place.lease(vec![Arc::clone(&shared.bodies), Arc::clone(&self.entry.bodies)]);
            collect(body, &head.headers, lease, shared.settings.visitor.body).await?
        } else {
            Bytes::new()
        };
        let exchange = shared.tunnels.next_exchange();
        let (request_id, _) = shared.names.of(exchange);
        let mut headers = request_headers(&head.headers, body.len() as u64);
        limit_encodings(&mut headers);
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let is_head = head.method == Method::HEAD;
        let kind = EnvelopeKind::Webhook { method: head.method, path, headers, body_uri: None };
        let envelope = Envelope { request_id, forwarded_for: Some(visitor.ip), kind };
        let mut pending = self.start(exchange, ExchangeKind::Http, envelope, body)?;
        let reply = pending.reply().await?;
        respond(reply, pending.ticket, visitor.patience.clone(), is_head, &shared.stopping).await
    }

    async fn websocket(
        &self,
        request: &Request<()>,
        visitor: &Visitor<'_>,
    ) -> Result<Handshake<AgentWebSocket>, LinkError> {
        let exchange = self.shared.tunnels.next_exchange();
        let (request_id, id) = self.shared.names.of(exchange);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let kind = EnvelopeKind::WebSocket { id, path, headers: handshake_headers(request.headers()) };
        let envelope = Envelope { request_id, forwarded_for: Some(visitor.ip), kind };
        let mut pending = self.start(exchange, ExchangeKind::WebSocket, envelope, Bytes::new())?;
        let reply = pending.reply().await?;
        if reply.head.status != StatusCode::OK {
            let refused =
                respond(reply, pending.ticket, visitor.patience.clone(), false, &self.shared.stopping).await?;
            return Ok(Handshake::Refused(refused));
        }
        let AgentReply { head, body } = reply;
        // The agent opens the bridge only after this is answered.
        drop(body);
        let bridge = pending.bridge().await?;
        let websocket = AgentWebSocket { bridge, ticket: pending.ticket, shared: Arc::clone(self.shared) };
        Ok(Handshake::Accepted(acceptance_headers(head.headers), websocket))
    }

    async fn connect(&self, host: String, first: Bytes, visitor: IpAddr) -> Result<Octets, LinkError> {
        let exchange = self.shared.tunnels.next_exchange();
        let (request_id, id) = self.shared.names.of(exchange);
        let kind = EnvelopeKind::Tcp { id, sni_host: host };
        let envelope = Envelope { request_id, forwarded_for: Some(visitor), kind };
        let mut pending = self.start(exchange, ExchangeKind::Tcp, envelope, Bytes::new())?;
        let bridge = pending.bridge().await?;
        let mut octets = Octets::new(bridge, pending.ticket);
        octets.send(first).await?;
        Ok(octets)
    }
}

/// A WebSocket's bridge: messages, and no frames of RFC 6455.
pub(crate) struct AgentWebSocket {
    bridge: Bridge,
    ticket: Ticket,
    shared: Arc<Shared>,
}

impl WebSocket for AgentWebSocket {
    async fn run<IO>(self, visitor: IO)
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        websocket::run(visitor, self.bridge, &self.shared).await;
        drop(self.ticket);
    }
}

/// The whole body, which an envelope must have from its beginning.
///
/// It is leased until its last octet is sent to the agent: without a bound for all
/// together, a few thousand uploads would take all memory.
async fn collect(
    body: &mut Incoming,
    headers: &HeaderMap,
    mut lease: Lease,
    time: Duration,
) -> Result<Bytes, LinkError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(LinkError::BodyTooLarge);
    }
    let mut collected = BytesMut::new();
    loop {
        // The clock is for the next octets, not for the whole: slow is fine, silent is not.
        let frame = timeout(time, body.frame()).await.map_err(|_| LinkError::BodyTooSlow)?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| LinkError::BodyBroken)?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > MAX_BODY {
            return Err(LinkError::BodyTooLarge);
        }
        if !lease.grow(data.len()) {
            return Err(LinkError::NoMemory);
        }
        if collected.is_empty() && body.is_end_stream() {
            return Ok(lease.own(data));
        }
        collected.extend_from_slice(&data);
    }
    Ok(lease.own(collected.freeze()))
}

/// Agents of the SDKs decompress what their application answers and leave its
/// `content-encoding` there. For gzip the body tells; so only gzip is asked for.
fn limit_encodings(headers: &mut HeaderMap) {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(',')).map(str::trim);
    let takes_gzip = codings.any(|coding| coding.eq_ignore_ascii_case("gzip"));
    if headers.contains_key(header::ACCEPT_ENCODING) {
        let wanted = if takes_gzip { "gzip" } else { "identity" };
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(wanted));
    }
}

async fn respond(
    reply: AgentReply,
    ticket: Ticket,
    patience: Patience,
    is_head: bool,
    stopping: &watch::Receiver<bool>,
) -> Result<Response<ReplyBody>, LinkError> {
    let AgentReply { head, body } = reply;
    let octets: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if octets > MAX_REPLY_HEADERS || head.headers.len() > MAX_REPLY_FIELDS {
        tracing::warn!(octets, fields = head.headers.len(), "a reply's headers are too large for visitors");
        return Err(LinkError::ReplyHeadersTooLarge);
    }
    let mut response = Response::new(ReplyBody::Full(Bytes::new()));
    *response.status_mut() = head.status;
    let has_no_body = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut headers = reply_headers(head.headers);
    if let Some(reason) = head.reason.and_then(|reason| HeaderValue::try_from(reason).ok()) {
        headers.insert(REASON, reason);
    }
    if !has_no_body {
        let mut body = body.into_body(head.content_length, MAX_BODY, patience, ticket, stopping).await?;
        // See `limit_encodings`. A part of a body begins anywhere, and that of a HEAD nowhere.
        let is_whole = !is_head && head.status != StatusCode::PARTIAL_CONTENT;
        let claims_gzip = is_whole && headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding == "gzip");
        if claims_gzip && !body.begins_with(&GZIP_MAGIC).await? {
            headers.remove(header::CONTENT_ENCODING);
        }
        *response.body_mut() = body.into();
    }
    *response.headers_mut() = headers;
    Ok(response)
}

const REASON: HeaderName = HeaderName::from_static("inkbox-reason");
/// RFC 1952 section 2.3.1
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

impl From<EnvelopeError> for LinkError {
    fn from(error: EnvelopeError) -> Self {
        match error {
            EnvelopeError::TooLarge { .. } | EnvelopeError::TooManyFields { .. } => Self::HeadersTooLarge,
            _ => Self::Target,
        }
    }
}
