//! One connection to the edge: hello, parked intakes, and what they bring.

use std::sync::Arc;
use std::time::Duration;

use agent_proto::limits::{
    INTAKE_SUPERSEDED, MAX_BODY, MAX_REPLY_FIELDS, MAX_REPLY_HEADERS, PING_INTERVAL, PING_TIMEOUT, SUPERSEDED,
    TUNNEL_CHANGED,
};
use agent_proto::{
    BridgeId, BridgeKind, Credential, Envelope, EnvelopeKind, Hello, HelloAnswer, Intake, OwnerToken, Reply, ReplyHead,
    RequestId,
};
use bytes::{Bytes, BytesMut};
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::uri::Authority;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use crate::bridge::Bridge;
use crate::exchange::{Content, send_all};
use crate::upstream::UpstreamBody;
use crate::{Error, InFlight, Shared, exchange, passthrough};

/// The streams of one session, for those who answer what it brought.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) send: SendRequest<Bytes>,
    zone: Authority,
    tunnel: Uuid,
    credential: Credential,
    /// The newest session: replies go there when this one takes no more streams.
    newest: watch::Receiver<Option<SendRequest<Bytes>>>,
}

/// A session after its hello.
pub(crate) struct Session {
    streams: Streams,
    connection: Connection<TlsStream<TcpStream>, Bytes>,
    pings: Option<PingPong>,
    answer: HelloAnswer,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The edge goes away for a planned restart.
    Drained,
    /// The connection broke; it may have served for a while.
    Lost(Option<Box<dyn std::error::Error + Send + Sync>>),
    /// This agent is to stop.
    Stopped,
    /// Somebody else has the tunnel now.
    Superseded,
}

/// How long a hello may take.
const HELLO: Duration = Duration::from_secs(15);
/// How long the answer to a reply is waited for, and room for each [`PIECE`] of it.
const REPLY: Duration = Duration::from_secs(30);
/// Octets of a reply that are sent at once.
const PIECE: usize = 64 * 1024;
/// How long a reply waits for the next session.
const HANDOFF: Duration = Duration::from_secs(5);
/// How long the intakes of a lost connection may take to say why it was lost.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// Between two intakes when the edge ends them without a word.
const PAUSE: Duration = Duration::from_millis(200);
/// What the edge may send ahead on one stream, and on all.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
/// Small frames of many bridges that nobody has read yet, in octets of bookkeeping.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;

impl Session {
    /// Connects and says hello.
    pub(crate) async fn begin(
        shared: &Shared,
        tls: TlsStream<TcpStream>,
        newest: watch::Receiver<Option<SendRequest<Bytes>>>,
    ) -> Result<Self, Error> {
        let handshake = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .enable_push(false)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_concurrent_reset_streams(1024)
            .handshake(tls)
            .await;
        let (send, mut connection) = handshake?;
        let pings = connection.ping_pong();
        let tunnel = shared.tunnel();
        let zone: Authority = tunnel.zone.parse().map_err(http::Error::from)?;
        let credential = shared.credential.clone();
        let hello = Hello { tunnel: tunnel.id, credential: credential.clone(), pool_size: shared.pool_size };
        let streams = Streams { send, zone, tunnel: tunnel.id, credential, newest };
        let mut send = streams.send.clone();
        let request = hello.to_request(&streams.zone)?;
        let said = async move {
            let (response, _) = send.send_request(request, true)?;
            let response = response.await?;
            let status = response.status();
            Ok::<_, h2::Error>((status, collect(response.into_body(), 64 * 1024).await?))
        };
        tokio::select! {
            said = timeout(HELLO, said) => {
                let (status, body) = said.map_err(|_| Error::Slow("the answer to the hello"))??;
                let answer = match status {
                    StatusCode::OK => HelloAnswer::from_json(&body).map_err(|error| Error::Hello(error.into()))?,
                    StatusCode::CONFLICT if is_superseded(&body) => return Err(Error::Superseded),
                    _ => {
                        // Without its word it is not the edge that says so.
                        let is_final = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                        return Err(match reason(&body) {
                            Some(reason) if is_final => Error::Denied { status, reason },
                            reason => Error::Hello(
                                format!("the edge answered {status} {}", reason.unwrap_or_default()).into(),
                            ),
                        });
                    }
                };
                Ok(Self { streams, connection, pings, answer })
            }
            // Driven here until the session runs; its end before the answer is an error.
            ended = &mut connection => {
                ended?;
                Err(Error::Hello("the edge closed the connection".into()))
            }
        }
    }

    pub(crate) fn send_request(&self) -> SendRequest<Bytes> {
        self.streams.send.clone()
    }

    /// Serves until the session ends. Answers as soon as nothing new comes; what
    /// was begun is finished in the background.
    pub(crate) async fn run(self, shared: Arc<Shared>) -> End {
        let Self { streams, connection, pings, answer } = self;
        let (ends, mut ended) = mpsc::channel(4);
        let driver = ends.clone();
        tokio::spawn(async move {
            let end = match connection.await {
                Err(error) if error.is_remote() && error.reason() == Some(SUPERSEDED.into()) => End::Superseded,
                Err(error) => End::Lost(Some(error.into())),
                Ok(()) => End::Lost(None),
            };
            // Nobody listens when the session has ended for another reason.
            let _ = driver.send(end).await;
        });
        let mut slots = JoinSet::new();
        let deadline = answer.response_deadline_seconds.map(Duration::from_secs_f64);
        for slot in 0..u32::from(answer.pool_size.or(shared.pool_size).unwrap_or(1)) {
            let (shared, streams, ends) = (Arc::clone(&shared), streams.clone(), ends.clone());
            let owner_token = answer.owner_token.clone();
            slots.spawn(async move {
                let end = serve_slot(&shared, streams, owner_token, slot, deadline).await;
                let _ = ends.send(end).await;
            });
        }
        drop(ends);
        let end = tokio::select! {
            end = ended.recv() => end.unwrap_or(End::Lost(None)),
            // The parked streams are reset with this.
            () = shared.stopped() => return End::Stopped,
            () = beat(pings) => return End::Lost(Some("the edge does not answer PINGs".into())),
        };
        // The connection's end may be told before the reason that the intakes were given.
        match end {
            End::Lost(_) => timeout(LAST_WORDS, last_words(&mut ended)).await.ok().flatten().unwrap_or(end),
            _ => end,
        }
    }
}

/// The end that says why, if one does.
async fn last_words(ended: &mut mpsc::Receiver<End>) -> Option<End> {
    while let Some(end) = ended.recv().await {
        if !matches!(end, End::Lost(_)) {
            return Some(end);
        }
    }
    None
}

/// Parks one intake after the other.
async fn serve_slot(
    shared: &Arc<Shared>,
    mut streams: Streams,
    owner_token: OwnerToken,
    slot: u32,
    deadline: Option<Duration>,
) -> End {
    let intake = Intake { tunnel: streams.tunnel, owner_token, slot };
    loop {
        let parked = match intake.to_request(&streams.zone) {
            Ok(request) => streams.open(request, true).await,
            Err(error) => return End::Lost(Some(error.into())),
        };
        let answered = match parked {
            Ok((response, _)) => tokio::select! {
                biased;
                response = response => response,
                // The parked stream is reset with this.
                () = shared.stopped() => return End::Stopped,
            },
            Err(error) => Err(error),
        };
        let response = match answered {
            Ok(response) => response,
            Err(error) if error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) => return End::Drained,
            Err(error) if error.is_go_away() && error.reason() == Some(SUPERSEDED.into()) => return End::Superseded,
            Err(error) if error.is_reset() => {
                sleep(PAUSE).await;
                continue;
            }
            Err(error) => return End::Lost(Some(error.into())),
        };
        let (head, body) = response.into_parts();
        let why = head.headers.get("inkbox-reason").and_then(|reason| reason.to_str().ok()).unwrap_or_default();
        match head.status {
            StatusCode::OK => {}
            _ if why == INTAKE_SUPERSEDED => return End::Superseded,
            _ if why == "draining" => return End::Drained,
            StatusCode::UNAUTHORIZED => return End::Lost(Some(format!("the edge rejects the session: {why}").into())),
            _ => {
                sleep(PAUSE).await;
                continue;
            }
        }
        match Envelope::decode(&head.headers) {
            Ok(envelope) => {
                let (shared, streams) = (Arc::clone(shared), streams.clone());
                let in_flight = InFlight::of(&shared);
                tokio::spawn(async move {
                    serve_envelope(shared, streams, envelope, body, deadline).await;
                    drop(in_flight);
                });
            }
            Err(_) if why == TUNNEL_CHANGED => shared.changed.notify_one(),
            // An idle poll ends with a 200 that names no request.
            Err(_) if !head.headers.contains_key("inkbox-request-id") => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an envelope that cannot be read");
                let Some(request_id) = RequestId::of_envelope(&head.headers) else { continue };
                let (streams, in_flight) = (streams.clone(), InFlight::of(shared));
                tokio::spawn(async move {
                    let (head, body) = exchange::failure(StatusCode::BAD_REQUEST, "invalid-request");
                    streams.reply(request_id, head, body).await;
                    drop(in_flight);
                });
            }
        }
    }
}

async fn serve_envelope(
    shared: Arc<Shared>,
    streams: Streams,
    envelope: Envelope,
    body: RecvStream,
    deadline: Option<Duration>,
) {
    let Envelope { request_id, forwarded_for, kind } = envelope;
    match kind {
        EnvelopeKind::Webhook { method, path, headers, body_uri } => {
            let begun = Instant::now();
            let label = (method.clone(), path.clone());
            let whole = |(head, body): (ReplyHead, Bytes)| (head, Content::Whole(body));
            let answer = async {
                if body_uri.is_some() {
                    return whole(exchange::failure(StatusCode::BAD_GATEWAY, "body-fetch-failed"));
                }
                match collect(body, MAX_BODY).await {
                    Ok(body) => exchange::serve(&shared, method, &path, headers, body, forwarded_for).await,
                    Err(_) => whole(exchange::failure(StatusCode::PAYLOAD_TOO_LARGE, "request-body-too-large")),
                }
            };
            let (head, body) = match deadline {
                Some(deadline) => timeout(deadline, answer).await.unwrap_or_else(|_| {
                    whole(exchange::failure(StatusCode::GATEWAY_TIMEOUT, "response-deadline-exceeded"))
                }),
                None => answer.await,
            };
            shared.tell(crate::Event::Served {
                method: label.0,
                path: label.1,
                status: head.status,
                micros: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
            });
            streams.reply(request_id, head, body).await;
        }
        EnvelopeKind::WebSocket { id, path, headers } => {
            exchange::serve_websocket(&shared, streams, request_id, id, &path, headers, forwarded_for, deadline).await;
        }
        EnvelopeKind::Tcp { id, .. } => passthrough::serve(&shared, streams, id, forwarded_for).await,
    }
}

impl Streams {
    /// Posts a reply; over the next session if this one takes no more streams. Ends with
    /// the reply's body, however long the application takes to say it.
    pub(crate) async fn reply(&self, request_id: RequestId, head: ReplyHead, content: impl Into<Content>) {
        let too_large = head.octets() > MAX_REPLY_HEADERS || head.headers.len() > MAX_REPLY_FIELDS;
        let (mut head, content) = if too_large {
            let (head, body) = exchange::headers_too_large();
            (head, body.into())
        } else {
            (head, content.into())
        };
        let (begun, rest) = match content {
            Content::Whole(body) => {
                head.content_length = Some(body.len() as u64);
                (body, None)
            }
            Content::Coming { begun, rest, length } => {
                head.content_length = length;
                (begun, Some(rest))
            }
        };
        let reply = Reply { tunnel: self.tunnel, credential: self.credential.clone(), request_id, head: Ok(head) };
        let request = match reply.to_request(&self.zone) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a reply that cannot be written");
                return;
            }
        };
        let is_end = begun.is_empty() && rest.is_none();
        let mut streams = self.clone();
        let posted = match streams.open(request.clone(), is_end).await {
            Err(error) if error.is_go_away() || error.is_io() => match self.successor().await {
                Some(successor) => {
                    streams.send = successor;
                    streams.open(request, is_end).await
                }
                None => Err(error),
            },
            posted => posted,
        };
        let answered = async {
            let (mut response, mut send) = posted?;
            if let Some(rest) = rest {
                tokio::select! {
                    sent = send_as_it_comes(&mut send, begun, rest) => sent?,
                    // It wants no more: the visitor has left.
                    response = &mut response => return Ok(response?),
                }
            } else if !begun.is_empty() {
                send_piece_by_piece(&mut send, begun).await?;
            }
            timeout(REPLY, response).await.map_err(|_| Error::Slow("the acknowledgement"))?.map_err(Error::from)
        };
        match answered.await {
            Ok(response) if response.status().is_success() => {}
            // The visitor left, or the edge gave up on us before.
            Ok(response) => tracing::debug!(status = %response.status(), "a reply was not taken"),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "a reply could not be delivered"),
        }
    }

    /// Opens a bridge and waits until the edge has joined it.
    pub(crate) async fn bridge(
        &self,
        kind: BridgeKind,
        id: BridgeId,
        in_flight: InFlight,
        time: Duration,
    ) -> Result<Bridge, Error> {
        let bridge = agent_proto::Bridge { tunnel: self.tunnel, credential: self.credential.clone(), kind, id };
        let mut request = bridge.to_request(&self.zone)?;
        request.extensions_mut().insert(Protocol::from_static(kind.protocol()));
        let mut streams = self.clone();
        let (response, send) = streams.open(request, false).await?;
        let response = timeout(time, response).await.map_err(|_| Error::Slow("the edge's bridge"))??;
        if response.status() != StatusCode::OK {
            return Err(Error::Bridge(response.status()));
        }
        Ok(Bridge::new(send, response.into_body(), in_flight))
    }

    async fn open(
        &mut self,
        request: Request<()>,
        is_end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        std::future::poll_fn(|cx| self.send.poll_ready(cx)).await?;
        self.send.send_request(request, is_end)
    }

    async fn successor(&self) -> Option<SendRequest<Bytes>> {
        let mut newest = self.newest.clone();
        let mut send = self.send.clone();
        let is_usable = async {
            loop {
                let candidate = newest.borrow_and_update().clone();
                if let Some(mut candidate) = candidate
                    && std::future::poll_fn(|cx| candidate.poll_ready(cx)).await.is_ok()
                {
                    send = candidate;
                    return true;
                }
                if newest.changed().await.is_err() {
                    return false;
                }
            }
        };
        timeout(HANDOFF, is_usable).await.unwrap_or(false).then_some(send)
    }
}

/// Sends a reply's body and its end. The edge may take long over all of it, but not
/// over one piece.
async fn send_piece_by_piece(send: &mut SendStream<Bytes>, mut body: Bytes) -> Result<(), Error> {
    while body.len() > PIECE {
        let piece = body.split_to(PIECE);
        timeout(REPLY, send_all(send, piece)).await.map_err(|_| Error::Slow("room for the reply"))??;
    }
    // h2 keeps what the window has no room for yet.
    Ok(send.send_data(body, true)?)
}

/// Sends a body that is still coming, and its end. If it has none, or is too large, the
/// stream is reset, so that nobody takes it for whole.
async fn send_as_it_comes(send: &mut SendStream<Bytes>, begun: Bytes, mut rest: UpstreamBody) -> Result<(), Error> {
    let mut left = MAX_BODY;
    let mut next = begun;
    loop {
        left = match left.checked_sub(next.len()) {
            Some(left) => left,
            None => {
                send.send_reset(Reason::CANCEL);
                return Err(Error::TooLarge);
            }
        };
        timeout(REPLY, send_all(send, next)).await.map_err(|_| Error::Slow("room for the reply"))??;
        next = match rest.frame().await {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            None => return Ok(send.send_data(Bytes::new(), true)?),
            Some(Err(error)) => {
                send.send_reset(Reason::CANCEL);
                return Err(error.into());
            }
        };
    }
}

/// A whole body of at most `limit` octets; the rest of a larger one is read and
/// forgotten.
pub(crate) async fn collect(mut body: RecvStream, limit: usize) -> Result<Bytes, h2::Error> {
    let mut collected = BytesMut::new();
    let mut is_too_large = false;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        // Fails only when the stream is gone.
        let _ = body.flow_control().release_capacity(chunk.len());
        is_too_large |= collected.len() + chunk.len() > limit;
        if is_too_large {
            continue;
        }
        if collected.is_empty() && body.is_end_stream() {
            return Ok(chunk);
        }
        collected.extend_from_slice(&chunk);
    }
    if is_too_large { Err(Reason::REFUSED_STREAM.into()) } else { Ok(collected.freeze()) }
}

fn reason(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    Some(body["reason"].as_str()?.chars().take(100).collect())
}

fn is_superseded(body: &[u8]) -> bool {
    reason(body).is_some_and(|reason| reason == "hello-superseded")
}

/// Returns when the edge has not answered a PING in time.
async fn beat(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_INTERVAL).await;
        let due = Instant::now() + PING_TIMEOUT;
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection's own end says more.
            return std::future::pending().await;
        }
        tokio::select! {
            pong = std::future::poll_fn(|cx| pings.poll_pong(cx)) => if pong.is_err() {
                return std::future::pending().await;
            },
            () = sleep_until(due) => return,
        }
    }
}
