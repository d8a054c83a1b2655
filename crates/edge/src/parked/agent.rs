//! One agent's connection: HTTP/2 with the `h2` crate directly, because the
//! end of a session needs a GOAWAY of its own (see [`super::splice`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::limits::{DEFAULT_POOL_SIZE, DRAIN_DEBUG_DATA, MAX_BODY, SUPERSEDED, SUPERSEDED_DEBUG_DATA};
use agent_proto::{BridgeKind, Credential, Hello, HelloAnswer, OwnerToken, StreamRequest};
use bytes::Bytes;
use connections::{Kind, Place};
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::{Builder, Connection, SendResponse};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tunnel_model::{
    ApiKeySecret, Caller, EndReason, ExchangeKind, KeyId, LiveRefusal, SecretHash, SessionId, Status, Tunnel, TunnelId,
};
use uuid::Uuid;

use super::reply::{Buffered, ReplyStream, answer, hold};
use super::splice::{Control, SILENCE, Splice};
use super::streams::{self, Connection as Held, end_intake};
use crate::Shared;
use crate::heart::Heart;
use crate::tunnels::{Connected, Entry, Member, Signal};

/// Serves one connection until it ends.
pub(crate) async fn serve<IO>(io: IO, ip: IpAddr, place: Place, shared: Arc<Shared>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let control = Arc::new(Control::default());
    // Boxed, and gone when it is done: an agent that idles keeps no room for it.
    let begun = Box::pin(begin(io, Arc::clone(&control), shared.settings.hello_time)).await;
    let Some(connection) = begun else {
        tracing::debug!(%ip, "an agent's connection ended before HTTP/2 began");
        return;
    };
    let (signals, received) = mpsc::channel(SIGNALS);
    let (admission, admitted) = oneshot::channel();
    let agent = Agent {
        ip,
        place,
        session: shared.tunnels.next_session(),
        shared,
        control,
        signals,
        admission: Some(admission),
        membership: None,
        strays: 0,
    };
    agent.run(connection, received, admitted).await;
}

/// HTTP/2 up to its preface.
async fn begin<IO>(io: IO, control: Arc<Control>, time: Duration) -> Option<Box<Connection<Splice<IO>, Bytes>>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = Builder::new()
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        // Whoever has not said hello is a stranger: the windows grow afterwards.
        .initial_window_size(STRANGERS_WINDOW)
        .initial_connection_window_size(STRANGERS_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        // An agent whose application cancels a request resets its streams in
        // bursts; the defaults of h2 would take that for an attack.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_concurrent_reset_streams(MAX_STREAMS as usize)
        .max_local_error_reset_streams(None)
        // A thousand WebSockets may each have small frames on their way.
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(Splice::new(io, control));
    tokio::time::timeout(time, handshake).await.ok()?.ok().map(Box::new)
}

/// Octets that may be sent before the hello is answered: what HTTP/2 begins with.
const STRANGERS_WINDOW: u32 = 65_535;
/// Streams at once: every parked intake, reply and bridge is one.
const MAX_STREAMS: u32 = 4096;
/// Four times the least: fewer headers on large replies, where the agent follows.
const MAX_FRAME: u32 = 64 * 1024;
/// Of the headers of a reply; twice what visitors get, so that too many are answered
/// and not only refused.
const MAX_HEADER_LIST: u32 = 128 * 1024;
/// Octets of bookkeeping for small frames that nobody has read yet.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// Octets of one stream that are taken from a bridge before they are sent: what a
/// visitor can make us hold for an agent that opens its windows and reads nothing.
const SEND_BUFFER: usize = 128 * 1024;
/// The model tells a session to go elsewhere and to end, each once.
const SIGNALS: usize = 4;
/// Streams that are answered with an error before the connection is ended, and those
/// of a connection without a hello.
const MAX_STRAYS: u32 = 256;
const STRANGERS_STRAYS: u32 = 16;
/// From the 409s of a takeover to its GOAWAY, so that they leave first.
const SETTLE: Duration = Duration::from_millis(20);

struct Agent {
    ip: IpAddr,
    place: Place,
    session: SessionId,
    shared: Arc<Shared>,
    control: Arc<Control>,
    signals: mpsc::Sender<Signal>,
    /// Gone with the first hello: a connection has one.
    admission: Option<oneshot::Sender<Membership>>,
    membership: Option<Membership>,
    strays: u32,
}

/// What a connection has after its hello.
struct Membership {
    tunnel: Uuid,
    entry: Arc<Entry>,
    credential: Credential,
    owner_token: OwnerToken,
    connection: Arc<Held>,
}

impl Agent {
    async fn run<IO>(
        mut self,
        mut connection: Box<Connection<Splice<IO>, Bytes>>,
        mut signals: mpsc::Receiver<Signal>,
        mut admitted: oneshot::Receiver<Membership>,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut heart = Heart::new(connection.ping_pong());
        let mut plan = Plan::default();
        let mut stopping = self.shared.stopping.clone();
        let hello_until = Instant::now() + self.shared.settings.hello_time;
        let mut is_stranger = true;
        loop {
            if is_stranger && self.membership.is_some() {
                let limits = &self.shared.settings.agent;
                connection.set_target_window_size(limits.connection_window);
                // Refused until the agent has acknowledged our first SETTINGS: then with its next stream.
                is_stranger = connection.set_initial_window_size(limits.stream_window).is_err();
            }
            // Here too: a flood of streams would keep the clock below from being asked.
            if self.membership.is_none() && Instant::now() >= hello_until {
                break;
            }
            tokio::select! {
                biased;
                // Before streams: an agent parks its intakes as soon as it has the answer.
                // Without a membership it is never ready: then the hello was refused.
                Ok(membership) = &mut admitted, if !admitted.is_terminated() => self.membership = Some(membership),
                // Before streams too: an agent that floods us can still be told to go.
                Some(signal) = signals.recv() => plan.follow(signal),
                () = plan.due(), if plan.is_pending() => match plan.step() {
                    Step::GoAway { code, debug_data } => self.control.go_away(code, debug_data),
                    Step::Close => break,
                },
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        if self.membership.is_none() {
                            self.membership = admitted.try_recv().ok();
                        }
                        self.handle(request, respond);
                        let is_stranger = self.membership.is_none();
                        if self.strays > if is_stranger { STRANGERS_STRAYS } else { MAX_STRAYS } {
                            tracing::warn!(ip = %self.ip, "an agent opens nothing but streams that nobody knows; closing");
                            break;
                        }
                    }
                    Some(Err(error)) => {
                        tracing::debug!(ip = %self.ip, error = &error as &dyn std::error::Error, "an agent's connection broke");
                        break;
                    }
                    None => break,
                },
                () = heart.beat() => {
                    tracing::info!(ip = %self.ip, "an agent does not answer PINGs; closing");
                    break;
                }
                _ = stopping.wait_for(|stop| *stop), if self.membership.is_none() => break,
                () = sleep_until(hello_until), if self.membership.is_none() => {
                    tracing::debug!(ip = %self.ip, "no hello in time; closing");
                    break;
                }
            }
        }
        // A hello that is still being checked must not leave a session behind.
        admitted.close();
        let membership = self.membership.take().or_else(|| admitted.try_recv().ok());
        if let Some(membership) = membership {
            self.shared.tunnels.close_session(&membership.entry, self.session);
            tracing::info!(tunnel = %membership.tunnel, ip = %self.ip, "an agent left");
        }
    }

    fn handle(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (head, body) = request.into_parts();
        let protocol = head.extensions.get::<Protocol>().map(Protocol::as_str);
        let stream = StreamRequest::decode(&head.method, head.uri.path(), protocol, &head.headers);
        match stream {
            Ok(StreamRequest::Hello(hello)) => self.hello(hello, respond),
            Ok(StreamRequest::Intake(intake)) => {
                let member = self.membership.as_ref().filter(|member| member.tunnel == intake.tunnel);
                let member = member.filter(|member| member.owner_token.matches(intake.owner_token.expose()));
                let Some(member) = member else {
                    self.strays += 1;
                    end_intake(&mut respond, StatusCode::UNAUTHORIZED, "owner-token-invalid");
                    return;
                };
                let parked = streams::park(
                    &self.shared.tunnels,
                    &member.entry,
                    self.session,
                    respond.stream_id().as_u32(),
                    respond,
                );
                self.strays = if parked.is_ok() { 0 } else { self.strays + 1 };
            }
            Ok(StreamRequest::Reply(reply)) => {
                let Some(member) = self.member(reply.tunnel, &reply.credential) else {
                    self.strays += 1;
                    ReplyStream::new(body, respond, Arc::new(Buffered::new(0))).refuse(StatusCode::UNAUTHORIZED);
                    return;
                };
                let stream = ReplyStream::new(body, respond, Arc::clone(&member.connection.buffered));
                let Some(exchange) = self.shared.names.exchange(reply.request_id.as_u128()) else {
                    stream.refuse(StatusCode::NOT_FOUND);
                    return;
                };
                let head = reply.head.unwrap_or_else(|error| {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a malformed reply");
                    let mut head = agent_proto::ReplyHead::new(StatusCode::BAD_GATEWAY);
                    head.reason = Some("reply-malformed".to_owned());
                    head
                });
                // Refused for a reply that is late or the second one; the agent was told so.
                let _ = streams::reply(&self.shared.tunnels, &member.entry, self.session, exchange, head, stream);
            }
            Ok(StreamRequest::Bridge(bridge)) => {
                let Some(member) = self.member(bridge.tunnel, &bridge.credential) else {
                    self.strays += 1;
                    answer(&mut respond, StatusCode::UNAUTHORIZED);
                    return hold(body, respond);
                };
                let kind = match bridge.kind {
                    BridgeKind::Tcp => ExchangeKind::Tcp,
                    BridgeKind::WebSocket => ExchangeKind::WebSocket,
                };
                let Some(exchange) = self.shared.names.exchange(bridge.id.as_u128()) else {
                    answer(&mut respond, StatusCode::NOT_FOUND);
                    return hold(body, respond);
                };
                let tunnels = &self.shared.tunnels;
                let opened = streams::open_bridge(tunnels, &member.entry, self.session, exchange, kind, body, respond);
                if let Err((refusal, body, mut respond)) = opened {
                    let status = match refusal {
                        LiveRefusal::BridgeTaken | LiveRefusal::UnwantedBridge => StatusCode::CONFLICT,
                        LiveRefusal::Draining
                        | LiveRefusal::Offline
                        | LiveRefusal::QueueFull
                        | LiveRefusal::Superseded
                        | LiveRefusal::TooManyIntakes
                        | LiveRefusal::UnknownExchange
                        | LiveRefusal::UnknownSession => StatusCode::NOT_FOUND,
                    };
                    answer(&mut respond, status);
                    hold(body, respond);
                }
            }
            Err(_) if !head.uri.path().starts_with("/_system/") => {
                self.strays += 1;
                misdirected(body, respond);
            }
            Err(error) => {
                self.strays += 1;
                tracing::debug!(ip = %self.ip, path = head.uri.path(), error = &error as &dyn std::error::Error, "a stream that no agent opens");
                ReplyStream::new(body, respond, Arc::new(Buffered::new(0))).refuse(error.status());
            }
        }
    }

    /// The membership, if the stream is its tunnel's and shows its credential.
    ///
    /// It is compared with that of the hello, not checked anew: after a rotation
    /// a live connection goes on with the old secret.
    fn member(&self, tunnel: Uuid, credential: &Credential) -> Option<&Membership> {
        let member = self.membership.as_ref()?;
        (member.tunnel == tunnel && member.credential == *credential).then_some(member)
    }

    fn hello(&mut self, hello: Hello, mut respond: SendResponse<Bytes>) {
        let Some(admission) = self.admission.take() else {
            self.strays += 1;
            answer(&mut respond, StatusCode::CONFLICT);
            return;
        };
        let (shared, session, ip) = (Arc::clone(&self.shared), self.session, self.ip);
        let (signals, place) = (self.signals.clone(), self.place.clone());
        let connection = Arc::new(Held {
            ip,
            windows: self.control.windows(),
            buffered: Arc::new(Buffered::of_agent(&shared.replies, shared.settings.agent.reply_buffer.max(MAX_BODY))),
            turn: tokio::sync::Mutex::new(()),
        });
        tokio::spawn(async move {
            let tunnel = hello.tunnel;
            match admit(&shared, hello, session, Arc::clone(&connection), signals, &place).await {
                Ok((membership, body)) => {
                    tracing::info!(%tunnel, %ip, "an agent is connected");
                    let entry = Arc::clone(&membership.entry);
                    if admission.send(membership).is_err() {
                        shared.tunnels.close_session(&entry, session);
                        return;
                    }
                    answer_hello(&mut respond, StatusCode::OK, body);
                }
                Err(denied) => {
                    if let Some(held_back) = shared.told.agents.pass(std::time::Instant::now()) {
                        tracing::info!(%tunnel, %ip, reason = denied.reason(), held_back, "an agent was not let in");
                    }
                    let body = format!(r#"{{"reason":"{}"}}"#, denied.reason());
                    answer_hello(&mut respond, denied.status(), body.into_bytes());
                }
            }
        });
    }
}

/// REST and visitors are elsewhere: says so, in the words of the API.
fn misdirected(body: RecvStream, mut respond: SendResponse<Bytes>) {
    let status = StatusCode::MISDIRECTED_REQUEST;
    let problem = r#"{"type":"about:blank","title":"Misdirected Request","status":421,"detail":"over HTTP/2 this name serves agents only: use HTTP/1.1 for the API"}"#;
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    // If the connection has gone, its task knows.
    let _ = stream.send_data(Bytes::from_static(problem.as_bytes()), true);
    hold(body, stream);
}

fn answer_hello(respond: &mut SendResponse<Bytes>, status: StatusCode, json: Vec<u8>) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(mut stream) = respond.send_response(response, false) {
        // If the connection has gone, its task knows.
        let _ = stream.send_data(Bytes::from(json), true);
    }
}

/// Why an agent is not let in.
#[derive(Clone, Copy, Debug)]
enum Denied {
    /// No such tunnel, or none for this credential: agents stop for good.
    Forbidden,
    /// The server is on its way out: agents come back.
    Draining,
    /// All places are taken: agents come back.
    Full,
    /// The store failed: agents come back.
    Internal,
    /// A later hello was faster.
    Superseded,
    /// Deleted, or without a certificate: agents stop for good.
    NotActive,
    /// Unknown or revoked: agents stop for good.
    Unauthorized,
}

impl Denied {
    fn status(self) -> StatusCode {
        match self {
            Self::Forbidden | Self::NotActive => StatusCode::FORBIDDEN,
            Self::Draining | Self::Full => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Superseded => StatusCode::CONFLICT,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Draining => "draining",
            Self::Full => "server-busy",
            Self::Internal => "internal",
            Self::Superseded => "hello-superseded",
            Self::NotActive => "tunnel-not-active",
            Self::Unauthorized => "unauthorized",
        }
    }
}

impl From<store::StoreError> for Denied {
    fn from(error: store::StoreError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot check an agent's hello");
        Self::Internal
    }
}

async fn admit(
    shared: &Arc<Shared>,
    hello: Hello,
    session: SessionId,
    connection: Arc<Held>,
    signals: mpsc::Sender<Signal>,
    place: &Place,
) -> Result<(Membership, Vec<u8>), Denied> {
    if shared.is_stopping() {
        return Err(Denied::Draining);
    }
    let id = TunnelId::from_bytes(hello.tunnel.into_bytes());
    let (tunnel, key) = check(shared, id, &hello.credential).await?;
    place.change(Kind::Agent, connection.ip).map_err(|_| Denied::Full)?;
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).map_err(|_| Denied::Internal)?;
    let owner_token = OwnerToken::from_random(octets);
    let member = Member { ip: connection.ip, key, own_certificate: false, signals };
    let admitted = shared.tunnels.admit(&tunnel, session, member, Connected::Parking(Arc::clone(&connection)));
    let entry = admitted.map_err(|_| Denied::Superseded)?;
    // What was revoked or deleted between the check and the admission was not
    // there to be ended; what comes later finds the session.
    match check(shared, id, &hello.credential).await {
        // It may have another name since.
        Ok((tunnel, _)) => shared.tunnels.update(&tunnel),
        Err(denied) => {
            shared.tunnels.close_session(&entry, session);
            if shared.store.tunnel(id).await?.is_none_or(|tunnel| tunnel.status != Status::Active) {
                shared.tunnels.revoke(id);
            }
            return Err(denied);
        }
    }
    let answer = HelloAnswer {
        owner_token: owner_token.clone(),
        pool_size: Some(hello.pool_size.unwrap_or(DEFAULT_POOL_SIZE)),
        response_deadline_seconds: Some(shared.settings.response_deadline.as_secs_f64()),
    };
    let membership = Membership { tunnel: hello.tunnel, entry, credential: hello.credential, owner_token, connection };
    Ok((membership, answer.to_json()))
}

/// Who presents the credential, and may it speak for the tunnel?
async fn check(shared: &Shared, id: TunnelId, credential: &Credential) -> Result<(Tunnel, Option<KeyId>), Denied> {
    let tunnel = shared.store.tunnel(id).await?;
    let (tunnel, key) = match credential {
        Credential::TunnelSecret(secret) => {
            let tunnel = tunnel.ok_or(Denied::Unauthorized)?;
            let is_same = tunnel.secret_hash.is_some_and(|hash| hash.matches(&SecretHash::of(secret)));
            if !is_same {
                return Err(Denied::Unauthorized);
            }
            (tunnel, None)
        }
        Credential::ApiKey(presented) => {
            let presented: ApiKeySecret = presented.parse().map_err(|_| Denied::Unauthorized)?;
            let key = shared.store.api_key(presented.id()).await?.ok_or(Denied::Unauthorized)?;
            let caller: Caller = key.caller(&presented).ok_or(Denied::Unauthorized)?;
            (tunnel.filter(|tunnel| caller.sees_tunnel(tunnel)).ok_or(Denied::Forbidden)?, Some(key.id))
        }
    };
    if tunnel.status == Status::Active { Ok((tunnel, key)) } else { Err(Denied::NotActive) }
}

/// How a session ends, step by step.
#[derive(Default)]
struct Plan {
    steps: std::collections::VecDeque<(Instant, Step)>,
}

#[derive(Clone, Copy)]
enum Step {
    GoAway { code: u32, debug_data: &'static str },
    Close,
}

impl Plan {
    fn follow(&mut self, signal: Signal) {
        let now = Instant::now();
        let settled = now + SETTLE;
        self.steps.clear();
        match signal {
            Signal::GoElsewhere => {
                self.steps.push_back((now, Step::GoAway { code: 0, debug_data: DRAIN_DEBUG_DATA }));
            }
            Signal::End(EndReason::Superseded) => {
                let go_away = Step::GoAway { code: SUPERSEDED, debug_data: SUPERSEDED_DEBUG_DATA };
                self.steps.extend([(settled, go_away), (settled + SILENCE, Step::Close)]);
            }
            // An intake has told it, or will.
            Signal::LookAgain | Signal::Superseded => {}
            // The intakes were answered; what is written now is read before the end.
            Signal::End(EndReason::Drained | EndReason::Revoked) => self.steps.push_back((settled, Step::Close)),
        }
    }

    fn is_pending(&self) -> bool {
        !self.steps.is_empty()
    }

    async fn due(&self) {
        match self.steps.front() {
            Some((due, _)) => sleep_until(*due).await,
            None => std::future::pending().await,
        }
    }

    fn step(&mut self) -> Step {
        self.steps.pop_front().map_or(Step::Close, |(_, step)| step)
    }
}
