//! The streams that agents of the published SDKs have open, and what waits for
//! one: the model knows both by number only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

use agent_proto::{BridgeId, Envelope, ReplyHead, RequestId};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use tunnel_model::{EndReason, ExchangeId, ExchangeKind, Failure, IntakeId, LiveCommand, LiveRefusal, SessionId};

use super::reply::{AgentReply, Buffered, ReplyStream, answer};
use super::splice::Windows;
use crate::tunnels::{Entry, Ticket, Tunnels};

/// What one tunnel's agents have open, and the exchanges that are theirs.
#[derive(Default)]
pub(crate) struct Streams {
    sessions: HashMap<SessionId, Session>,
    exchanges: HashMap<ExchangeId, Exchange>,
}

struct Session {
    intakes: HashMap<IntakeId, SendResponse<Bytes>>,
    connection: Arc<Connection>,
}

/// What all bridges and replies of a session share.
pub(crate) struct Connection {
    pub(super) ip: IpAddr,
    pub(super) windows: Windows,
    pub(super) buffered: Arc<Buffered>,
    /// Held from the first octet of a bridge's message to the last, where the
    /// agent's window has no room for two.
    pub(super) turn: AsyncMutex<()>,
}

struct Exchange {
    envelope: Envelope,
    /// What the envelope is on the wire, until it was handed out once.
    encoded: Option<HeaderMap>,
    body: Bytes,
    /// Where the body is on its way, as long as the agent may not have all of it.
    sending: Option<SendStream<Bytes>>,
    reply: Option<oneshot::Sender<Result<AgentReply, Failure>>>,
    bridge: Option<oneshot::Sender<Result<Bridge, Failure>>>,
}

/// The agent's side of a bridge.
pub(super) struct Bridge {
    pub(super) recv: RecvStream,
    pub(super) send: SendStream<Bytes>,
    pub(super) connection: Arc<Connection>,
}

/// An exchange that has begun. Dropped, it is over.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    reply: Option<oneshot::Receiver<Result<AgentReply, Failure>>>,
    bridge: Option<oneshot::Receiver<Result<Bridge, Failure>>>,
}

/// How exchanges are called on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// The upper half of every id of this process.
    prefix: u64,
}

impl Names {
    pub(crate) fn new(prefix: u64) -> Self {
        Self { prefix }
    }

    pub(super) fn of(self, ExchangeId(number): ExchangeId) -> (RequestId, BridgeId) {
        let bits = u128::from(self.prefix) << 64 | u128::from(number);
        (RequestId::from_u128(bits), BridgeId::from_u128(bits))
    }

    /// The exchange that a name of this process means.
    pub(super) fn exchange(self, bits: u128) -> Option<ExchangeId> {
        let number = u64::try_from(bits & u128::from(u64::MAX)).ok()?;
        (bits >> 64 == u128::from(self.prefix)).then_some(ExchangeId(number))
    }
}

/// Parks a stream of a session.
pub(super) fn park(
    tunnels: &Tunnels,
    entry: &Arc<Entry>,
    session: SessionId,
    intake: u32,
    mut respond: SendResponse<Bytes>,
) -> Result<(), LiveRefusal> {
    let mut state = entry.state();
    let intake = IntakeId(intake);
    let Some(found) = state.parked.sessions.get_mut(&session) else {
        end_intake(&mut respond, StatusCode::UNAUTHORIZED, "owner-token-invalid");
        return Err(LiveRefusal::UnknownSession);
    };
    found.intakes.insert(intake, respond);
    let parked = tunnels.handle(entry, &mut state, LiveCommand::ParkIntake { session, intake });
    if let Err(refusal) = parked {
        let (status, reason) = match refusal {
            LiveRefusal::Superseded => (StatusCode::CONFLICT, agent_proto::limits::INTAKE_SUPERSEDED),
            LiveRefusal::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            // What no agent of ours does; the others are not refusals of an intake.
            LiveRefusal::BridgeTaken
            | LiveRefusal::Offline
            | LiveRefusal::QueueFull
            | LiveRefusal::TooManyIntakes
            | LiveRefusal::UnknownExchange
            | LiveRefusal::UnknownSession
            | LiveRefusal::UnwantedBridge => (StatusCode::UNAUTHORIZED, "owner-token-invalid"),
        };
        if let Some(mut refused) = state.parked.take_intake(session, intake) {
            end_intake(&mut refused, status, reason);
        }
    }
    parked
}

/// Begins an exchange: the envelope goes to the agent, or waits for one.
pub(super) fn start(
    tunnels: &Arc<Tunnels>,
    entry: &Arc<Entry>,
    exchange: ExchangeId,
    kind: ExchangeKind,
    envelope: Envelope,
    encoded: HeaderMap,
    body: Bytes,
) -> Result<Pending, LiveRefusal> {
    let (reply, reply_receiver) = oneshot::channel();
    let (bridge, bridge_receiver) = oneshot::channel();
    let has_bridge = kind != ExchangeKind::Http;
    let (reply, bridge, encoded) = (Some(reply), has_bridge.then_some(bridge), Some(encoded));
    let pending = Exchange { envelope, encoded, body, sending: None, reply, bridge };
    let mut state = entry.state();
    if state.is_removed {
        return Err(LiveRefusal::Offline);
    }
    state.parked.exchanges.insert(exchange, pending);
    let begun = tunnels.begin(entry, &mut state, exchange, kind);
    if begun.is_err() {
        state.parked.forget(exchange);
    }
    drop(state);
    let bridge = has_bridge.then_some(bridge_receiver);
    Ok(Pending { ticket: begun?, reply: Some(reply_receiver), bridge })
}

/// Hands a reply to the visitor who waits for it.
pub(super) fn reply(
    tunnels: &Tunnels,
    entry: &Arc<Entry>,
    session: SessionId,
    exchange: ExchangeId,
    head: ReplyHead,
    mut stream: ReplyStream,
) -> Result<(), LiveRefusal> {
    let mut state = entry.state();
    let accepts = head.status == StatusCode::OK;
    let sender = state.parked.exchanges.get_mut(&exchange).and_then(|exchange| exchange.reply.take());
    let handled = tunnels.handle(entry, &mut state, LiveCommand::Reply { session, exchange, accepts });
    drop(state);
    match (&handled, sender) {
        // Without a receiver the visitor has left, and the reply is let go of.
        (Ok(()), Some(sender)) => {
            stream.acknowledge();
            drop(sender.send(Ok(AgentReply { head, body: stream })));
        }
        (Err(_), _) | (Ok(()), None) => stream.refuse(StatusCode::GONE),
    }
    handled
}

/// Joins a bridge with the visitor who waits for it.
pub(super) fn open_bridge(
    tunnels: &Tunnels,
    entry: &Arc<Entry>,
    session: SessionId,
    exchange: ExchangeId,
    kind: ExchangeKind,
    recv: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), (LiveRefusal, RecvStream, SendResponse<Bytes>)> {
    let mut state = entry.state();
    let Some(connection) = state.parked.sessions.get(&session).map(|session| Arc::clone(&session.connection)) else {
        return Err((LiveRefusal::UnknownSession, recv, respond));
    };
    if let Err(refusal) = tunnels.handle(entry, &mut state, LiveCommand::OpenBridge { session, exchange, kind }) {
        return Err((refusal, recv, respond));
    }
    let sender = state.parked.exchanges.get_mut(&exchange).and_then(|exchange| exchange.bridge.take());
    drop(state);
    let (Some(sender), Ok(send)) = (sender, respond.send_response(Response::new(()), false)) else {
        return Ok(());
    };
    // Without a receiver the visitor has left, and the streams end.
    drop(sender.send(Ok(Bridge { recv, send, connection })));
    Ok(())
}

impl Streams {
    /// A session is there, with nothing open yet.
    pub(crate) fn admit(&mut self, session: SessionId, connection: Arc<Connection>) {
        self.sessions.insert(session, Session { intakes: HashMap::new(), connection });
    }

    /// A session is gone, with all that it had open.
    pub(crate) fn remove(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// An exchange is over.
    pub(crate) fn forget(&mut self, exchange: ExchangeId) {
        self.exchanges.remove(&exchange);
    }

    /// Hands an envelope to a parked stream. False if the stream is gone.
    pub(crate) fn deliver(&mut self, session: SessionId, intake: IntakeId, exchange: ExchangeId) -> bool {
        let stream = self.take_intake(session, intake);
        let (Some(mut stream), Some(exchange)) = (stream, self.exchanges.get_mut(&exchange)) else { return false };
        // A stream that the agent has reset is ready here, without a wait.
        if stream.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return false;
        }
        let encoded = exchange.encoded.take().map_or_else(|| exchange.envelope.encode(), Ok);
        let Ok(headers) = encoded else { return false };
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let Ok(mut stream) = stream.send_response(response, exchange.body.is_empty()) else { return false };
        let body = std::mem::take(&mut exchange.body);
        if !body.is_empty() {
            // Nothing waits for the window here: h2 keeps the body until there is room.
            // If the stream ends first, the agent never has the whole request, and no reply comes.
            let _ = stream.send_data(body, true);
            exchange.sending = Some(stream);
        }
        true
    }

    /// Tells whoever waits for an exchange that nothing comes.
    pub(crate) fn fail(&mut self, exchange: ExchangeId, failure: Failure) {
        let Some(mut exchange) = self.exchanges.remove(&exchange) else { return };
        // Whoever waits, waits for one of the two; without a receiver it has left.
        if let Some(reply) = exchange.reply.take() {
            drop(reply.send(Err(failure)));
        }
        if let Some(bridge) = exchange.bridge.take() {
            drop(bridge.send(Err(failure)));
        }
    }

    /// A parked stream that ends with 200 and names no request is parked again by every
    /// agent; ours reads the reason, and looks at its tunnel.
    /// False if the agent has reset this one.
    pub(crate) fn announce(&mut self, session: SessionId, intake: IntakeId) -> bool {
        let Some(mut respond) = self.take_intake(session, intake) else { return true };
        if respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return false;
        }
        end_intake(&mut respond, StatusCode::OK, TUNNEL_CHANGED);
        true
    }

    /// Ends the parked streams of a session, and says why.
    pub(crate) fn release(&mut self, session: SessionId, reason: EndReason) {
        let (status, why) = match reason {
            EndReason::Drained => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            EndReason::Revoked => (StatusCode::UNAUTHORIZED, "revoked"),
            EndReason::Superseded => (StatusCode::CONFLICT, agent_proto::limits::INTAKE_SUPERSEDED),
        };
        let Some(session) = self.sessions.get_mut(&session) else { return };
        for (_, mut respond) in session.intakes.drain() {
            end_intake(&mut respond, status, why);
        }
    }

    fn take_intake(&mut self, session: SessionId, intake: IntakeId) -> Option<SendResponse<Bytes>> {
        self.sessions.get_mut(&session)?.intakes.remove(&intake)
    }
}

impl Pending {
    /// Waits for the agent's reply.
    pub(super) async fn reply(&mut self) -> Result<AgentReply, Failure> {
        let Some(reply) = self.reply.take() else { return Err(Failure::AgentLost) };
        reply.await.unwrap_or(Err(Failure::AgentLost))
    }

    /// Waits for the bridge.
    pub(super) async fn bridge(&mut self) -> Result<Bridge, Failure> {
        let Some(bridge) = self.bridge.take() else { return Err(Failure::AgentLost) };
        bridge.await.unwrap_or(Err(Failure::AgentLost))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // What the agent has not taken of the body, nobody wants any more. Does nothing
        // if all of it has left.
        if let Some(sending) = &mut self.sending {
            sending.send_reset(Reason::CANCEL);
        }
    }
}

/// Why an intake ends when the tunnel was renamed.
const TUNNEL_CHANGED: &str = "tunnel-changed";

/// Ends a parked stream without an envelope, and says why.
pub(super) fn end_intake(respond: &mut SendResponse<Bytes>, status: StatusCode, reason: &'static str) {
    let mut headers = HeaderMap::new();
    headers.insert("inkbox-reason", HeaderValue::from_static(reason));
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if respond.send_response(response, true).is_err() {
        answer(respond, status);
    }
}
