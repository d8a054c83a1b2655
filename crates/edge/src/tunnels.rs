//! The tunnels that have traffic, each with its [`Live`] model.
//!
//! The model decides, this file carries out: it keeps the streams, channels and
//! envelopes that the model knows by number only. A tunnel's lock spans one
//! command and the events that follow from it, and no `.await`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use agent_proto::limits::MAX_BODY;
use agent_proto::{BridgeId, Envelope, ReplyHead, RequestId};
use bytes::Bytes;
use connections::Budget;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use store::{Clock, Observer};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, oneshot};
use tunnel_model::{
    EndReason, Event, ExchangeId, ExchangeKind, Failure, IntakeId, KeyId, Live, LiveCommand, LiveEvent, LiveRefusal,
    LiveRules, SessionId, Status, TlsMode, Tunnel, TunnelId, TunnelName,
};

use crate::observations::Observations;
use crate::reply::{AgentReply, Buffered, ReplyStream, answer};
use crate::splice::Windows;

/// All tunnels with traffic.
pub(crate) struct Tunnels {
    rules: LiveRules,
    started: Instant,
    /// For what is recorded; what is timed goes by `started`.
    clock: Arc<dyn Clock>,
    maps: RwLock<Maps>,
    next_session: AtomicU64,
    next_exchange: AtomicU64,
    /// The upper half of every request id of this process.
    prefix: u64,
    pub(crate) observations: Observations,
    /// Octets of request bodies that may be held for one tunnel.
    bodies_limit: usize,
}

#[derive(Default)]
struct Maps {
    by_id: HashMap<TunnelId, Arc<Entry>>,
    by_name: HashMap<TunnelName, Arc<Entry>>,
}

/// One tunnel with traffic.
pub(crate) struct Entry {
    id: TunnelId,
    state: Mutex<State>,
    /// Octets of request bodies that are held for it: an agent that takes none of them
    /// leaves room for the others.
    pub(crate) bodies: Arc<Budget>,
    /// The model's next timeout is sooner than it was.
    sooner: Notify,
}

struct State {
    tunnel: Tunnel,
    live: Live,
    sessions: HashMap<SessionId, Session>,
    exchanges: HashMap<ExchangeId, Exchange>,
    /// When the timer task wakes up, unless it is told to do so sooner.
    wakes_at: Option<Instant>,
    /// Out of the maps: whoever holds it must look again.
    is_removed: bool,
}

/// What a session's connection is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Signal {
    /// GOAWAY for a planned restart.
    GoElsewhere,
    /// The connection ends, for this reason.
    End(EndReason),
}

struct Session {
    intakes: HashMap<IntakeId, SendResponse<Bytes>>,
    signals: mpsc::Sender<Signal>,
    link: Arc<Link>,
    key: Option<KeyId>,
}

/// What all bridges and replies of a session share.
pub(crate) struct Link {
    pub(crate) ip: IpAddr,
    pub(crate) windows: Windows,
    pub(crate) buffered: Arc<Buffered>,
    /// Held from the first octet of a bridge's message to the last, where the
    /// agent's window has no room for two.
    pub(crate) turn: AsyncMutex<()>,
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
pub(crate) struct Bridge {
    pub(crate) recv: RecvStream,
    pub(crate) send: SendStream<Bytes>,
    pub(crate) link: Arc<Link>,
}

/// One visitor's exchange. Dropped, it is over for the model too.
pub(crate) struct Ticket {
    entry: Arc<Entry>,
    tunnels: Arc<Tunnels>,
    exchange: ExchangeId,
    reply: Option<oneshot::Receiver<Result<AgentReply, Failure>>>,
    bridge: Option<oneshot::Receiver<Result<Bridge, Failure>>>,
}

impl Tunnels {
    /// Nothing has traffic yet. Of `buffered` octets of bodies, one tunnel may have half.
    pub(crate) fn new(rules: LiveRules, prefix: u64, buffered: usize, clock: Arc<dyn Clock>) -> Self {
        Self {
            rules,
            started: Instant::now(),
            clock,
            maps: RwLock::default(),
            next_session: AtomicU64::new(1),
            next_exchange: AtomicU64::new(1),
            prefix,
            observations: Observations::default(),
            bodies_limit: (buffered / 2).max(MAX_BODY),
        }
    }

    /// A number for a session whose hello has just come.
    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// A number for a visitor's exchange, and its names on the wire.
    pub(crate) fn next_exchange(&self) -> (ExchangeId, RequestId, BridgeId) {
        let number = self.next_exchange.fetch_add(1, Ordering::Relaxed);
        let bits = u128::from(self.prefix) << 64 | u128::from(number);
        (ExchangeId(number), RequestId::from_u128(bits), BridgeId::from_u128(bits))
    }

    /// The exchange that a wire name of this process means.
    pub(crate) fn exchange_of(&self, bits: u128) -> Option<ExchangeId> {
        let number = u64::try_from(bits & u128::from(u64::MAX)).ok()?;
        (bits >> 64 == u128::from(self.prefix)).then_some(ExchangeId(number))
    }

    /// A tunnel with traffic, by its label.
    pub(crate) fn by_name(&self, name: &TunnelName) -> Option<Arc<Entry>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    pub(crate) fn is_connected(&self, tunnel: TunnelId) -> bool {
        let entry = self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&tunnel).cloned();
        entry.is_some_and(|entry| entry.state().live.admitted().is_some())
    }

    /// Exchanges that have not ended, over all tunnels.
    pub(crate) fn exchanges(&self) -> usize {
        self.entries().iter().map(|entry| entry.state().live.exchanges()).sum()
    }

    /// Sessions whose connection is there, over all tunnels.
    pub(crate) fn sessions(&self) -> usize {
        self.entries().iter().map(|entry| entry.state().sessions.len()).sum()
    }

    /// Lets an agent in: its session is the tunnel's one from now on.
    pub(crate) fn admit(
        self: &Arc<Self>,
        tunnel: &Tunnel,
        session: SessionId,
        link: Arc<Link>,
        key: Option<KeyId>,
        signals: mpsc::Sender<Signal>,
    ) -> Result<Arc<Entry>, LiveRefusal> {
        let admission = Session { intakes: HashMap::new(), signals, link, key };
        let mut admission = Some(admission);
        loop {
            let entry = self.entry(tunnel);
            let mut state = entry.state();
            if state.is_removed {
                continue;
            }
            if let Some(admission) = admission.take() {
                state.sessions.insert(session, admission);
            }
            let admitted = self.handle(&entry, &mut state, LiveCommand::AdmitSession { session });
            if let Err(refusal) = admitted {
                state.sessions.remove(&session);
                return Err(refusal);
            }
            drop(state);
            return Ok(entry);
        }
    }

    /// Parks a stream of a session.
    pub(crate) fn park(
        &self,
        entry: &Arc<Entry>,
        session: SessionId,
        intake: u32,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), LiveRefusal> {
        let mut state = entry.state();
        let intake = IntakeId(intake);
        let Some(found) = state.sessions.get_mut(&session) else {
            end_intake(&mut respond, StatusCode::UNAUTHORIZED, "owner-token-invalid");
            return Err(LiveRefusal::UnknownSession);
        };
        found.intakes.insert(intake, respond);
        let parked = self.handle(entry, &mut state, LiveCommand::ParkIntake { session, intake });
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
            let refused = state.sessions.get_mut(&session).and_then(|session| session.intakes.remove(&intake));
            if let Some(mut refused) = refused {
                end_intake(&mut refused, status, reason);
            }
        }
        parked
    }

    /// The tunnel's entry if it has traffic, or an agent that was there lately
    /// is on its way back.
    pub(crate) fn entry_for_visitor(self: &Arc<Self>, tunnel: &Tunnel) -> Option<Arc<Entry>> {
        self.is_expected(tunnel).then(|| self.entry(tunnel))
    }

    /// Begins an exchange: the envelope goes to the agent, or waits for one.
    pub(crate) fn start(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        exchange: ExchangeId,
        kind: ExchangeKind,
        envelope: Envelope,
        encoded: HeaderMap,
        body: Bytes,
    ) -> Result<Ticket, LiveRefusal> {
        let (reply, reply_receiver) = oneshot::channel();
        let (bridge, bridge_receiver) = oneshot::channel();
        let has_bridge = kind != ExchangeKind::Http;
        let (reply, bridge, encoded) = (Some(reply), has_bridge.then_some(bridge), Some(encoded));
        let pending = Exchange { envelope, encoded, body, sending: None, reply, bridge };
        let mut state = entry.state();
        if state.is_removed {
            return Err(LiveRefusal::Offline);
        }
        state.exchanges.insert(exchange, pending);
        if let Err(refusal) = self.handle(&entry, &mut state, LiveCommand::StartExchange { exchange, kind }) {
            state.exchanges.remove(&exchange);
            return Err(refusal);
        }
        drop(state);
        Ok(Ticket {
            entry,
            tunnels: Arc::clone(self),
            exchange,
            reply: Some(reply_receiver),
            bridge: has_bridge.then_some(bridge_receiver),
        })
    }

    /// Hands a reply to the visitor who waits for it.
    pub(crate) fn reply(
        &self,
        entry: &Arc<Entry>,
        session: SessionId,
        exchange: ExchangeId,
        head: ReplyHead,
        mut stream: ReplyStream,
    ) -> Result<(), LiveRefusal> {
        let mut state = entry.state();
        let accepts = head.status == StatusCode::OK;
        let sender = state.exchanges.get_mut(&exchange).and_then(|exchange| exchange.reply.take());
        let handled = self.handle(entry, &mut state, LiveCommand::Reply { session, exchange, accepts });
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
    pub(crate) fn open_bridge(
        &self,
        entry: &Arc<Entry>,
        session: SessionId,
        exchange: ExchangeId,
        kind: ExchangeKind,
        recv: RecvStream,
        mut respond: SendResponse<Bytes>,
    ) -> Result<(), (LiveRefusal, RecvStream, SendResponse<Bytes>)> {
        let mut state = entry.state();
        let Some(link) = state.sessions.get(&session).map(|session| Arc::clone(&session.link)) else {
            return Err((LiveRefusal::UnknownSession, recv, respond));
        };
        if let Err(refusal) = self.handle(entry, &mut state, LiveCommand::OpenBridge { session, exchange, kind }) {
            return Err((refusal, recv, respond));
        }
        let sender = state.exchanges.get_mut(&exchange).and_then(|exchange| exchange.bridge.take());
        drop(state);
        let (Some(sender), Ok(send)) = (sender, respond.send_response(Response::new(()), false)) else {
            return Ok(());
        };
        // Without a receiver the visitor has left, and the streams end.
        drop(sender.send(Ok(Bridge { recv, send, link })));
        Ok(())
    }

    /// The connection of a session is gone.
    pub(crate) fn close_session(&self, entry: &Arc<Entry>, session: SessionId) {
        let mut state = entry.state();
        // Refused only for a session that was never admitted.
        let _ = self.handle(entry, &mut state, LiveCommand::CloseSession { session });
        state.sessions.remove(&session);
        drop(state);
        // The timer task looks whether the entry is of use any more.
        entry.sooner.notify_one();
    }

    /// Ends what a tunnel has: it was deleted, or is not what it was at hello.
    pub(crate) fn revoke(&self, tunnel: TunnelId) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = maps.by_id.remove(&tunnel) else { return };
        let mut state = entry.state();
        maps.by_name.remove(&state.tunnel.name);
        drop(maps);
        state.is_removed = true;
        // Never refused.
        let _ = self.handle(&entry, &mut state, LiveCommand::Revoke);
        drop(state);
        entry.sooner.notify_one();
    }

    /// Tells every agent to go elsewhere.
    pub(crate) fn drain(&self) {
        for entry in self.entries() {
            let mut state = entry.state();
            // Never refused.
            let _ = self.handle(&entry, &mut state, LiveCommand::Drain);
        }
    }

    fn revoke_key(&self, key: KeyId) {
        for entry in self.entries() {
            let mut state = entry.state();
            let sessions: Vec<SessionId> =
                state.sessions.iter().filter(|(_, session)| session.key == Some(key)).map(|(id, _)| *id).collect();
            for session in sessions {
                // Refused only for a session that has gone.
                let _ = self.handle(&entry, &mut state, LiveCommand::RevokeSession { session });
            }
        }
    }

    /// The tunnel is like this now.
    pub(crate) fn update(&self, tunnel: &Tunnel) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = maps.by_id.get(&tunnel.id).cloned() else { return };
        let mut state = entry.state();
        if state.tunnel.name != tunnel.name {
            maps.by_name.remove(&state.tunnel.name);
            maps.by_name.insert(tunnel.name.clone(), Arc::clone(&entry));
        }
        let is_renamed = state.tunnel.name != tunnel.name;
        state.tunnel = tunnel.clone();
        drop(maps);
        if is_renamed {
            // Never refused.
            let _ = self.handle(&entry, &mut state, LiveCommand::Announce);
        }
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.values().cloned().collect()
    }

    /// Was an agent there so lately that it must be on its way back? Asked when
    /// this process has not seen one.
    fn is_expected(&self, tunnel: &Tunnel) -> bool {
        tunnel.status == Status::Active
            && tunnel.last_connected_at.is_some()
            && self.started.elapsed() < self.rules.reconnect_time
    }

    fn entry(self: &Arc<Self>, tunnel: &Tunnel) -> Arc<Entry> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = maps.by_id.get(&tunnel.id) {
            return Arc::clone(entry);
        }
        let expected_until = self.is_expected(tunnel).then(|| self.started + self.rules.reconnect_time);
        let entry = Arc::new(Entry {
            id: tunnel.id,
            state: Mutex::new(State {
                tunnel: tunnel.clone(),
                live: Live::new(self.rules, expected_until),
                sessions: HashMap::new(),
                exchanges: HashMap::new(),
                wakes_at: None,
                is_removed: false,
            }),
            bodies: Arc::new(Budget::new(self.bodies_limit)),
            sooner: Notify::new(),
        });
        maps.by_id.insert(tunnel.id, Arc::clone(&entry));
        maps.by_name.insert(tunnel.name.clone(), Arc::clone(&entry));
        drop(maps);
        tokio::spawn(Arc::clone(self).keep_time(Arc::clone(&entry)));
        entry
    }

    /// Does what is due, until the entry is of no use any more.
    async fn keep_time(self: Arc<Self>, entry: Arc<Entry>) {
        loop {
            let now = Instant::now();
            let wakes_at = {
                let mut state = entry.state();
                let events = state.live.handle_timeout(now);
                self.apply(&entry, &mut state, events);
                if state.is_removed && state.sessions.is_empty() {
                    return;
                }
                let idle_check = now + self.rules.reconnect_time + Duration::from_secs(1);
                let wakes_at = state.live.poll_timeout().unwrap_or(idle_check);
                state.wakes_at = Some(wakes_at);
                wakes_at
            };
            tokio::select! {
                () = tokio::time::sleep_until(wakes_at.into()) => {}
                () = entry.sooner.notified() => {}
            }
            self.remove_if_idle(&entry);
        }
    }

    fn remove_if_idle(&self, entry: &Arc<Entry>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = entry.state();
        if state.is_removed || !state.sessions.is_empty() || !state.live.is_idle(Instant::now()) {
            return;
        }
        state.is_removed = true;
        maps.by_id.remove(&entry.id);
        maps.by_name.remove(&state.tunnel.name);
    }

    fn handle(&self, entry: &Arc<Entry>, state: &mut State, command: LiveCommand) -> Result<(), LiveRefusal> {
        let events = state.live.handle(command, Instant::now())?;
        self.apply(entry, state, events);
        let due = state.live.poll_timeout();
        if let Some(due) = due
            && state.wakes_at.is_none_or(|wakes_at| due < wakes_at)
        {
            state.wakes_at = Some(due);
            entry.sooner.notify_one();
        }
        Ok(())
    }

    fn apply(&self, entry: &Arc<Entry>, state: &mut State, events: Vec<LiveEvent>) {
        for event in events {
            match event {
                LiveEvent::EnvelopeAssigned { session, intake, exchange } => {
                    if !state.deliver(session, intake, exchange) {
                        // Refused only if the exchange has ended meanwhile.
                        let _ = self.handle(entry, state, LiveCommand::ReturnEnvelope { session, exchange });
                    }
                }
                LiveEvent::TunnelAnnounced { session, intake } => {
                    if !state.announce(session, intake) {
                        // The next intake tells it. Never refused.
                        let _ = self.handle(entry, state, LiveCommand::Announce);
                    }
                }
                LiveEvent::ExchangeFailed { exchange, failure } => state.fail(exchange, failure),
                LiveEvent::BridgeLost(exchange) => drop(state.exchanges.remove(&exchange)),
                LiveEvent::SessionDrained(session) => state.signal(session, Signal::GoElsewhere),
                LiveEvent::IntakesReleased(session) => {
                    state.end_intakes(session, StatusCode::SERVICE_UNAVAILABLE, "draining");
                }
                LiveEvent::SessionEnded { session, reason } => {
                    let (status, why) = match reason {
                        EndReason::Drained => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
                        EndReason::Revoked => (StatusCode::UNAUTHORIZED, "revoked"),
                        EndReason::Superseded => (StatusCode::CONFLICT, agent_proto::limits::INTAKE_SUPERSEDED),
                    };
                    state.end_intakes(session, status, why);
                    state.signal(session, Signal::End(reason));
                }
                LiveEvent::SessionAdmitted(session) => {
                    if let Some(session) = state.sessions.get(&session) {
                        self.observations.hello(entry.id, session.link.ip, self.clock.now());
                    }
                }
                LiveEvent::TunnelWentOffline(_) => self.observations.goodbye(entry.id, self.clock.now()),
                LiveEvent::ExchangeQueued(_) | LiveEvent::ReplyAccepted(_) | LiveEvent::BridgeOpened(_) => {}
            }
        }
    }
}

/// What the control plane has done is carried out before it is answered.
impl Observer for Tunnels {
    fn committed(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::TunnelDeleted(tunnel) | Event::TunnelFinalized(tunnel) => self.revoke(tunnel.id),
                Event::TunnelRenamed(tunnel)
                | Event::TunnelRestored(tunnel)
                | Event::CertificateIssued(tunnel)
                | Event::TunnelUpdated(tunnel) => self.update(tunnel),
                Event::KeyRevoked(key) => self.revoke_key(key.id),
                _ => {}
            }
        }
    }
}

impl Entry {
    /// Who terminates its TLS, and is it routable?
    pub(crate) fn mode(&self) -> (TlsMode, Status) {
        let state = self.state();
        (state.tunnel.tls_mode, state.tunnel.status)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands an envelope to a parked stream. False if the stream is gone.
    fn deliver(&mut self, session: SessionId, intake: IntakeId, exchange: ExchangeId) -> bool {
        let stream = self.sessions.get_mut(&session).and_then(|session| session.intakes.remove(&intake));
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

    fn fail(&mut self, exchange: ExchangeId, failure: Failure) {
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
    fn announce(&mut self, session: SessionId, intake: IntakeId) -> bool {
        let intake = self.sessions.get_mut(&session).and_then(|session| session.intakes.remove(&intake));
        let Some(mut respond) = intake else { return true };
        if respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
            return false;
        }
        end_intake(&mut respond, StatusCode::OK, TUNNEL_CHANGED);
        true
    }

    fn end_intakes(&mut self, session: SessionId, status: StatusCode, reason: &'static str) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        for (_, mut respond) in session.intakes.drain() {
            end_intake(&mut respond, status, reason);
        }
    }

    fn signal(&self, session: SessionId, signal: Signal) {
        if let Some(session) = self.sessions.get(&session) {
            // Without a receiver the connection has ended by itself.
            let _ = session.signals.try_send(signal);
        }
    }
}

impl Ticket {
    /// Waits for the agent's reply.
    pub(crate) async fn reply(&mut self) -> Result<AgentReply, Failure> {
        let Some(reply) = self.reply.take() else { return Err(Failure::AgentLost) };
        reply.await.unwrap_or(Err(Failure::AgentLost))
    }

    /// Waits for the bridge.
    pub(crate) async fn bridge(&mut self) -> Result<Bridge, Failure> {
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

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.entry.state();
        state.exchanges.remove(&self.exchange);
        // Refused if it has ended in the meantime.
        let _ = self.tunnels.handle(&self.entry, &mut state, LiveCommand::EndExchange { exchange: self.exchange });
    }
}

/// Why an intake ends when the tunnel was renamed.
const TUNNEL_CHANGED: &str = "tunnel-changed";

/// Ends a parked stream without an envelope, and says why.
pub(crate) fn end_intake(respond: &mut SendResponse<Bytes>, status: StatusCode, reason: &'static str) {
    let mut headers = HeaderMap::new();
    headers.insert("inkbox-reason", HeaderValue::from_static(reason));
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if respond.send_response(response, true).is_err() {
        answer(respond, status);
    }
}
