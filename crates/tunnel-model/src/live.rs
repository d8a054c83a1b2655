//! The state machine of one tunnel's traffic: agents' sessions, the intakes
//! that they park, and the exchanges of visitors.
//!
//! A [`LiveCommand`] goes in; [`LiveEvent`]s or one [`LiveRefusal`] come out,
//! and nothing changes on a refusal. The shell carries the events out: it has
//! the connections, the bodies and the clock. Time passes only when it says so:
//! it calls [`Live::handle_timeout`] at [`Live::poll_timeout`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// One agent connection. A session whose hello came later has a greater number.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub u64);

/// One parked stream of a session; unique within it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct IntakeId(pub u32);

/// One request of a visitor with its reply, and the bridge that may follow.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ExchangeId(pub u64);

/// What a visitor wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExchangeKind {
    /// One request, one reply.
    Http,
    /// Raw bytes both ways; there is no reply, the bridge opens at once.
    Tcp,
    /// A reply, and after one that accepts, a bridge.
    WebSocket,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub enum LiveCommand {
    /// An agent said hello and was let in.
    AdmitSession {
        /// The connection.
        session: SessionId,
    },
    /// An agent offers to take one envelope.
    ParkIntake {
        /// Whose stream it is.
        session: SessionId,
        /// The stream.
        intake: IntakeId,
    },
    /// An envelope could not be handed to the intake that it was for.
    ReturnEnvelope {
        /// The session that was to take it.
        session: SessionId,
        /// What it was for.
        exchange: ExchangeId,
    },
    /// A visitor came.
    StartExchange {
        /// A number that was never used before.
        exchange: ExchangeId,
        /// What it wants.
        kind: ExchangeKind,
    },
    /// A reply's head came.
    Reply {
        /// On which session: any of the tunnel's.
        session: SessionId,
        /// To what.
        exchange: ExchangeId,
        /// Is it the acceptance of a WebSocket?
        accepts: bool,
    },
    /// An agent opens the bridge of an exchange.
    OpenBridge {
        /// On which session.
        session: SessionId,
        /// For which exchange.
        exchange: ExchangeId,
        /// For which kind of exchange this stream is.
        kind: ExchangeKind,
    },
    /// The visitor left, or reply or bridge came to their end.
    EndExchange {
        /// Which one.
        exchange: ExchangeId,
    },
    /// The agent's connection is gone.
    CloseSession {
        /// Which one.
        session: SessionId,
    },
    /// The tunnel is not what the agent took it for: it is to look again.
    Announce,
    /// The server stops: sessions are to go elsewhere.
    Drain,
    /// One session may not go on: its credential is worth nothing any more.
    RevokeSession {
        /// Which one.
        session: SessionId,
    },
    /// The tunnel carries no traffic any more.
    Revoke,
}

/// What happened, and what the shell has to do about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LiveEvent {
    /// The session is the tunnel's one live client.
    SessionAdmitted(SessionId),
    /// The tunnel has no live client any more.
    TunnelWentOffline(SessionId),
    /// Hand the exchange's envelope to this intake.
    EnvelopeAssigned {
        /// The session.
        session: SessionId,
        /// Its stream, which is used up by this.
        intake: IntakeId,
        /// The exchange.
        exchange: ExchangeId,
    },
    /// End this parked intake, which is used up by it: the agent is to look at its
    /// tunnel again.
    TunnelAnnounced {
        /// The session.
        session: SessionId,
        /// Its stream.
        intake: IntakeId,
    },
    /// The exchange waits for an intake.
    ExchangeQueued(ExchangeId),
    /// Hand the reply to the visitor, and end the exchange when all of it has come.
    ReplyAccepted(ExchangeId),
    /// Join visitor and bridge.
    BridgeOpened(ExchangeId),
    /// The session of a bridge, or of a reply that was coming, is gone.
    BridgeLost(ExchangeId),
    /// Tell the visitor why there is no reply.
    ExchangeFailed {
        /// Which exchange.
        exchange: ExchangeId,
        /// Why.
        failure: Failure,
    },
    /// Nothing is handed to the session any more: tell the agent to go
    /// elsewhere, as the last bytes of a write.
    SessionDrained(SessionId),
    /// End the session's parked intakes: the agent has had time to move.
    IntakesReleased(SessionId),
    /// End the session's intakes and connection, and say why.
    SessionEnded {
        /// Which one.
        session: SessionId,
        /// Why.
        reason: EndReason,
    },
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EndReason {
    /// The server stops, and the session is done or out of time.
    Drained,
    /// Its credential or its tunnel is of no use any more.
    Revoked,
    /// A newer session took the tunnel over.
    Superseded,
}

/// Why a visitor gets no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No intake was free in time.
    AgentBusy,
    /// The agent left with the request.
    AgentLost,
    /// There is no agent, and none came.
    AgentOffline,
    /// The agent did not reply in time.
    AgentTimeout,
    /// The tunnel was deleted.
    TunnelGone,
}

/// Why a command is not carried out.
///
/// Not `non_exhaustive`, as [`Refusal`](crate::Refusal): each has its answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LiveRefusal {
    /// The exchange has a bridge.
    #[error("the bridge is open already")]
    BridgeTaken,
    /// The session does not take envelopes, because it is to go elsewhere.
    #[error("the session is draining")]
    Draining,
    /// There is no agent, and none is expected back.
    #[error("no agent is connected")]
    Offline,
    /// Too many visitors wait for the agent.
    #[error("too many requests wait for the agent")]
    QueueFull,
    /// A later hello has won.
    #[error("a newer session has the tunnel")]
    Superseded,
    /// The session parks more streams than any agent needs.
    #[error("the session has too many parked intakes")]
    TooManyIntakes,
    /// Never started, answered, or out of time.
    #[error("there is no such exchange")]
    UnknownExchange,
    /// Never admitted, or closed.
    #[error("there is no such session")]
    UnknownSession,
    /// The exchange wants a stream of the other kind, or its reply first.
    #[error("the exchange does not wait for this bridge")]
    UnwantedBridge,
}

/// How long things may take, and how many may wait. In parentheses the values of
/// [`LiveRules::new`], with their reasons.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LiveRules {
    /// From a visitor's request to an intake that takes it (5 s: an agent parks a new
    /// intake a round trip after the last one was used; one that does not within seconds
    /// is stuck, and its visitors shall know before they give up by themselves).
    pub queue_time: Duration,
    /// Visitors that wait for an intake (4096: a burst for an agent of 32 intakes that
    /// answers within 40 ms is gone within [`Self::queue_time`]; more would only wait to
    /// be refused).
    pub queue_limit: usize,
    /// Streams that a session may park (64: twice of what agents are told that they may).
    pub intake_limit: usize,
    /// From an envelope to its reply (35 s: five seconds more than the 30 that agents are
    /// told, so that their own 504, which says more, comes first).
    pub reply_time: Duration,
    /// From acceptance, or a TCP envelope, to the bridge (10 s: what published agents
    /// themselves wait for a bridge's answer. An agent that takes no TCP ignores the
    /// envelope without a word).
    pub bridge_time: Duration,
    /// How long an agent that was lost may still reply, over another session (5 s: as
    /// long as published agents keep a reply for their next connection).
    pub orphan_time: Duration,
    /// How long visitors wait for an agent that was lost (5 s: published agents are back
    /// after one to two; a third try would come at seven).
    pub reconnect_time: Duration,
    /// How long a session that was taken over may finish its exchanges (2 s: they are
    /// answered within that as a rule, and the older agent believes so long that it
    /// serves).
    pub supersede_time: Duration,
    /// From the signal to go elsewhere to the end of the parked intakes (500 ms: an agent
    /// leaves within milliseconds of the signal, or needs a round trip to learn of it; an
    /// intake that ends before looks like a refusal).
    pub drain_pause: Duration,
    /// From the signal to go elsewhere to the end of the session (90 s: as long as the
    /// most patient of the published agents keeps the old connection for its bridges).
    pub drain_time: Duration,
}

impl LiveRules {
    /// The values that agents expect.
    pub const fn new() -> Self {
        Self {
            queue_time: Duration::from_secs(5),
            queue_limit: 4096,
            intake_limit: 64,
            reply_time: Duration::from_secs(35),
            bridge_time: Duration::from_secs(10),
            orphan_time: Duration::from_secs(5),
            reconnect_time: Duration::from_secs(5),
            supersede_time: Duration::from_secs(2),
            drain_pause: Duration::from_millis(500),
            drain_time: Duration::from_secs(90),
        }
    }
}

impl Default for LiveRules {
    fn default() -> Self {
        Self::new()
    }
}

/// One tunnel's traffic.
///
/// A session, from its hello to the end of its connection. One at most is admitted;
/// from every stage [`LiveCommand::CloseSession`] leads out of the picture, and
/// [`LiveCommand::RevokeSession`] to *ended*.
///
/// ```text
///  AdmitSession
///       │
///       ▼        Drain            drain_pause: IntakesReleased
///   admitted ───────────► draining ───────────────► released
///       │                                              │ its last exchange ends,
///       │ a newer hello                                │ or drain_time
///       ▼            its last exchange ends,           ▼
///   superseded ───────────────────────────────────►  ended ───► CloseSession
///                    or supersede_time          SessionEnded
/// ```
///
/// An exchange, from the visitor's request to its end. From every phase
/// [`LiveCommand::EndExchange`] leads out.
///
/// ```text
///  StartExchange ──► queued ──────────────────────────────────► failed: queue_time,
///       │              │ ParkIntake                              reconnect_time
///       │ an intake    │       ▲ ReturnEnvelope
///       │ is parked    ▼       │
///       ├──────────► delivered ───────────────────────────────► failed: reply_time,
///       │              │   │ Reply                               orphan_time
///       │              │   └────────► replying ───────────────► BridgeLost, if the
///       │              │ Reply that accepts a WebSocket          session goes
///       │ TCP          ▼
///       └──────────► accepted ────────────────────────────────► failed: bridge_time,
///                      │ OpenBridge                              orphan_time
///                      ▼
///                   bridged ──────────────────────────────────► BridgeLost, if the
///                                                                session goes
/// ```
///
/// Each timer is a rule of [`LiveRules`], and no other time counts.
#[derive(Debug)]
pub struct Live {
    rules: LiveRules,
    sessions: BTreeMap<SessionId, Session>,
    /// The session that envelopes go to.
    admitted: Option<SessionId>,
    /// The highest number that was ever admitted.
    newest: Option<SessionId>,
    /// Exchanges without an intake, oldest first.
    waiting: VecDeque<ExchangeId>,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    /// Until when an agent is expected back.
    expected_until: Option<Instant>,
    timers: BTreeSet<(Instant, Timer)>,
}

#[derive(Debug)]
struct Session {
    stage: Stage,
    parked: VecDeque<IntakeId>,
    /// The next intake that it parks tells it to look at its tunnel.
    has_news: bool,
    /// Exchanges that it has the envelope of, bridges among them.
    held: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Admitted,
    /// Until its intakes are released.
    Draining {
        released_at: Instant,
        ends_at: Instant,
    },
    /// Until it is done or out of time.
    Released {
        ends_at: Instant,
    },
    /// Finishes what it has until then.
    Superseded {
        ends_at: Instant,
    },
    /// The shell was told to close it.
    Ended(EndReason),
}

#[derive(Debug)]
struct Exchange {
    kind: ExchangeKind,
    phase: Phase,
    session: Option<SessionId>,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// For an intake.
    Queued,
    /// For a reply.
    Delivered,
    /// For the bridge.
    Accepted,
    /// It has one; no deadline is left.
    Bridged,
    /// The reply is coming; no deadline is left.
    Replying,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Timer {
    Exchange(ExchangeId),
    Session(SessionId),
}

impl Live {
    /// A tunnel without an agent. If one was there lately, visitors wait for it
    /// until `expected_until`.
    pub fn new(rules: LiveRules, expected_until: Option<Instant>) -> Self {
        Self {
            rules,
            sessions: BTreeMap::new(),
            admitted: None,
            newest: None,
            waiting: VecDeque::new(),
            exchanges: BTreeMap::new(),
            expected_until,
            timers: BTreeSet::new(),
        }
    }

    /// Decides one command.
    ///
    /// # Errors
    ///
    /// The [`LiveRefusal`] says why not; nothing has changed then.
    pub fn handle(&mut self, command: LiveCommand, now: Instant) -> Result<Vec<LiveEvent>, LiveRefusal> {
        let mut events = Vec::new();
        match command {
            LiveCommand::AdmitSession { session } => self.admit(session, now, &mut events)?,
            LiveCommand::ParkIntake { session, intake } => self.park(session, intake, now, &mut events)?,
            LiveCommand::ReturnEnvelope { session, exchange } => {
                self.return_envelope(session, exchange, now, &mut events)?;
            }
            LiveCommand::StartExchange { exchange, kind } => self.start(exchange, kind, now, &mut events)?,
            LiveCommand::Reply { session, exchange, accepts } => {
                self.reply(session, exchange, accepts, now, &mut events)?;
            }
            LiveCommand::OpenBridge { session, exchange, kind } => {
                self.open_bridge(session, exchange, kind, &mut events)?;
            }
            LiveCommand::EndExchange { exchange } => self.end_exchange(exchange, &mut events)?,
            LiveCommand::CloseSession { session } => self.close_session(session, now, &mut events)?,
            LiveCommand::Announce => self.announce(&mut events),
            LiveCommand::Drain => self.drain(now, &mut events),
            LiveCommand::RevokeSession { session } => self.revoke_session(session, &mut events)?,
            LiveCommand::Revoke => self.revoke(&mut events),
        }
        Ok(events)
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<LiveEvent> {
        let mut events = Vec::new();
        while let Some((_, timer)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            match timer {
                Timer::Exchange(exchange) => self.exchange_is_due(exchange, &mut events),
                Timer::Session(session) => self.session_is_due(session, &mut events),
            }
        }
        events
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// The session that envelopes go to: the tunnel's one live client.
    pub fn admitted(&self) -> Option<SessionId> {
        self.admitted
    }

    /// Exchanges that have not ended.
    pub fn exchanges(&self) -> usize {
        self.exchanges.len()
    }

    /// Nothing is there that would be lost with it at `now`.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.sessions.is_empty()
            && self.exchanges.is_empty()
            && self.expected_until.is_none_or(|expected_until| expected_until <= now)
    }

    fn admit(&mut self, session: SessionId, now: Instant, events: &mut Vec<LiveEvent>) -> Result<(), LiveRefusal> {
        if self.newest.is_some_and(|newest| newest >= session) {
            return Err(LiveRefusal::Superseded);
        }
        self.newest = Some(session);
        if let Some(older) = self.admitted.take() {
            let ends_at = now + self.rules.supersede_time;
            self.set_stage(older, Stage::Superseded { ends_at });
            self.end_if_done(older, events);
        }
        let parked = VecDeque::new();
        self.sessions.insert(session, Session { stage: Stage::Admitted, parked, has_news: false, held: 0 });
        self.admitted = Some(session);
        self.expected_until = None;
        events.push(LiveEvent::SessionAdmitted(session));
        Ok(())
    }

    fn park(
        &mut self,
        session: SessionId,
        intake: IntakeId,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let limit = self.rules.intake_limit;
        let found = self.sessions.get_mut(&session).ok_or(LiveRefusal::UnknownSession)?;
        match found.stage {
            Stage::Admitted | Stage::Draining { .. } | Stage::Superseded { .. } => {}
            Stage::Released { .. } | Stage::Ended(EndReason::Drained) => return Err(LiveRefusal::Draining),
            Stage::Ended(EndReason::Revoked) => return Err(LiveRefusal::UnknownSession),
            Stage::Ended(EndReason::Superseded) => return Err(LiveRefusal::Superseded),
        }
        if found.parked.len() >= limit {
            return Err(LiveRefusal::TooManyIntakes);
        }
        if found.stage == Stage::Admitted && std::mem::take(&mut found.has_news) {
            events.push(LiveEvent::TunnelAnnounced { session, intake });
            return Ok(());
        }
        found.parked.push_back(intake);
        if found.stage == Stage::Admitted
            && let Some(exchange) = self.waiting.pop_front()
        {
            self.assign(session, exchange, now, events);
        }
        Ok(())
    }

    fn return_envelope(
        &mut self,
        session: SessionId,
        exchange: ExchangeId,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let found = self.exchanges.get(&exchange).ok_or(LiveRefusal::UnknownExchange)?;
        let is_fresh =
            matches!((found.kind, found.phase), (_, Phase::Delivered) | (ExchangeKind::Tcp, Phase::Accepted));
        if found.session != Some(session) || !is_fresh {
            return Err(LiveRefusal::UnknownExchange);
        }
        self.unhold(exchange, events);
        match self.admitted.filter(|admitted| self.has_parked(*admitted)) {
            Some(admitted) => self.assign(admitted, exchange, now, events),
            None => {
                // First in the queue: it was there before the others.
                self.waiting.push_front(exchange);
                self.enter(exchange, Phase::Queued, None, Some(now + self.rules.queue_time));
                events.push(LiveEvent::ExchangeQueued(exchange));
            }
        }
        Ok(())
    }

    fn start(
        &mut self,
        exchange: ExchangeId,
        kind: ExchangeKind,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let intake_is_free = self.admitted.is_some_and(|admitted| self.has_parked(admitted));
        let deadline = match (self.admitted, self.expected_until) {
            (Some(_), _) => now + self.rules.queue_time,
            (None, Some(expected_until)) if now < expected_until => expected_until,
            (None, _) => return Err(LiveRefusal::Offline),
        };
        if !intake_is_free && self.waiting.len() >= self.rules.queue_limit {
            return Err(LiveRefusal::QueueFull);
        }
        self.exchanges.insert(exchange, Exchange { kind, phase: Phase::Queued, session: None, deadline: None });
        match self.admitted.filter(|_| intake_is_free) {
            Some(admitted) => self.assign(admitted, exchange, now, events),
            None => {
                self.waiting.push_back(exchange);
                self.enter(exchange, Phase::Queued, None, Some(deadline));
                events.push(LiveEvent::ExchangeQueued(exchange));
            }
        }
        Ok(())
    }

    fn reply(
        &mut self,
        session: SessionId,
        exchange: ExchangeId,
        accepts: bool,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        self.known(session)?;
        let found = self.exchanges.get(&exchange).filter(|found| found.phase == Phase::Delivered);
        let found = found.ok_or(LiveRefusal::UnknownExchange)?;
        let before = found.session;
        let (phase, deadline) = match found.kind == ExchangeKind::WebSocket && accepts {
            true => (Phase::Accepted, Some(now + self.rules.bridge_time)),
            // Its body may take long; the session is held until the shell ends the exchange.
            false => (Phase::Replying, None),
        };
        self.enter(exchange, phase, Some(session), deadline);
        events.push(LiveEvent::ReplyAccepted(exchange));
        self.move_hold(before, session, events);
        Ok(())
    }

    fn open_bridge(
        &mut self,
        session: SessionId,
        exchange: ExchangeId,
        kind: ExchangeKind,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let stage = self.known(session)?;
        if matches!(stage, Stage::Ended(_)) {
            return Err(LiveRefusal::UnknownSession);
        }
        let found = self.exchanges.get(&exchange).ok_or(LiveRefusal::UnknownExchange)?;
        if found.kind != kind {
            return Err(LiveRefusal::UnwantedBridge);
        }
        match found.phase {
            Phase::Accepted => {}
            Phase::Bridged => return Err(LiveRefusal::BridgeTaken),
            Phase::Queued | Phase::Delivered | Phase::Replying => return Err(LiveRefusal::UnwantedBridge),
        }
        // A reply may come over one session and its bridge over the next one.
        let before = found.session;
        self.enter(exchange, Phase::Bridged, Some(session), None);
        events.push(LiveEvent::BridgeOpened(exchange));
        self.move_hold(before, session, events);
        Ok(())
    }

    fn end_exchange(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) -> Result<(), LiveRefusal> {
        if !self.exchanges.contains_key(&exchange) {
            return Err(LiveRefusal::UnknownExchange);
        }
        self.waiting.retain(|waiting| *waiting != exchange);
        self.forget(exchange, events);
        Ok(())
    }

    fn close_session(
        &mut self,
        session: SessionId,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let stage = self.known(session)?;
        self.set_timer(Timer::Session(session), stage.due(), None);
        self.sessions.remove(&session);
        if self.admitted == Some(session) {
            self.admitted = None;
            self.expected_until = Some(now + self.rules.reconnect_time);
            events.push(LiveEvent::TunnelWentOffline(session));
        }
        let held: Vec<ExchangeId> =
            self.exchanges.iter().filter(|(_, e)| e.session == Some(session)).map(|(id, _)| *id).collect();
        for exchange in held {
            let Some(found) = self.exchanges.get_mut(&exchange) else { continue };
            found.session = None;
            if matches!(found.phase, Phase::Bridged | Phase::Replying) {
                events.push(LiveEvent::BridgeLost(exchange));
                self.forget(exchange, events);
            } else {
                let orphaned_until = now + self.rules.orphan_time;
                let deadline = found.deadline.map_or(orphaned_until, |deadline| deadline.min(orphaned_until));
                let phase = found.phase;
                self.enter(exchange, phase, None, Some(deadline));
            }
        }
        Ok(())
    }

    fn drain(&mut self, now: Instant, events: &mut Vec<LiveEvent>) {
        if let Some(session) = self.admitted.take() {
            let (released_at, ends_at) = (now + self.rules.drain_pause, now + self.rules.drain_time);
            self.set_stage(session, Stage::Draining { released_at, ends_at });
            self.expected_until = Some(now + self.rules.reconnect_time);
            events.push(LiveEvent::SessionDrained(session));
            events.push(LiveEvent::TunnelWentOffline(session));
        }
    }

    fn announce(&mut self, events: &mut Vec<LiveEvent>) {
        // An agent that comes later has looked.
        let Some(session) = self.admitted else { return };
        let Some(found) = self.sessions.get_mut(&session) else { return };
        match found.parked.pop_front() {
            Some(intake) => events.push(LiveEvent::TunnelAnnounced { session, intake }),
            None => found.has_news = true,
        }
    }

    fn revoke_session(&mut self, session: SessionId, events: &mut Vec<LiveEvent>) -> Result<(), LiveRefusal> {
        self.known(session)?;
        self.end_session(session, EndReason::Revoked, events);
        // No reply will come over another session: there is no other credential.
        let held: Vec<ExchangeId> =
            self.exchanges.iter().filter(|(_, e)| e.session == Some(session)).map(|(id, _)| *id).collect();
        for exchange in held {
            self.abort(exchange, Failure::AgentLost, events);
        }
        Ok(())
    }

    /// Ends an exchange in whichever way its phase has.
    fn abort(&mut self, exchange: ExchangeId, failure: Failure, events: &mut Vec<LiveEvent>) {
        let phase = self.exchanges.get(&exchange).map(|found| found.phase);
        let is_bridged = matches!(phase, Some(Phase::Bridged | Phase::Replying));
        events.push(if is_bridged {
            LiveEvent::BridgeLost(exchange)
        } else {
            LiveEvent::ExchangeFailed { exchange, failure }
        });
        self.forget(exchange, events);
    }

    fn revoke(&mut self, events: &mut Vec<LiveEvent>) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.end_session(session, EndReason::Revoked, events);
        }
        self.expected_until = None;
        self.waiting.clear();
        let exchanges: Vec<ExchangeId> = self.exchanges.keys().copied().collect();
        for exchange in exchanges {
            self.abort(exchange, Failure::TunnelGone, events);
        }
    }

    fn exchange_is_due(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.exchanges.get(&exchange) else { return };
        let failure = match (found.phase, found.session) {
            (Phase::Queued, _) if self.admitted.is_some() => Failure::AgentBusy,
            (Phase::Queued, _) => Failure::AgentOffline,
            (_, None) => Failure::AgentLost,
            (_, Some(_)) => Failure::AgentTimeout,
        };
        self.waiting.retain(|waiting| *waiting != exchange);
        events.push(LiveEvent::ExchangeFailed { exchange, failure });
        self.forget(exchange, events);
    }

    fn session_is_due(&mut self, session: SessionId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        match found.stage {
            Stage::Draining { ends_at, .. } => {
                found.parked.clear();
                self.set_stage(session, Stage::Released { ends_at });
                events.push(LiveEvent::IntakesReleased(session));
                self.end_if_done(session, events);
            }
            Stage::Released { .. } => self.end_session(session, EndReason::Drained, events),
            Stage::Superseded { .. } => self.end_session(session, EndReason::Superseded, events),
            Stage::Admitted | Stage::Ended(_) => {}
        }
    }

    /// Hands an exchange to a parked intake of the session.
    fn assign(&mut self, session: SessionId, exchange: ExchangeId, now: Instant, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        let Some(intake) = found.parked.pop_front() else { return };
        found.held += 1;
        let is_tcp = self.exchanges.get(&exchange).is_some_and(|found| found.kind == ExchangeKind::Tcp);
        let (phase, time) = match is_tcp {
            true => (Phase::Accepted, self.rules.bridge_time),
            false => (Phase::Delivered, self.rules.reply_time),
        };
        self.enter(exchange, phase, Some(session), Some(now + time));
        events.push(LiveEvent::EnvelopeAssigned { session, intake, exchange });
    }

    fn has_parked(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|session| !session.parked.is_empty())
    }

    fn known(&self, session: SessionId) -> Result<Stage, LiveRefusal> {
        self.sessions.get(&session).map(|session| session.stage).ok_or(LiveRefusal::UnknownSession)
    }

    fn enter(&mut self, exchange: ExchangeId, phase: Phase, session: Option<SessionId>, deadline: Option<Instant>) {
        let Some(found) = self.exchanges.get_mut(&exchange) else { return };
        found.phase = phase;
        found.session = session;
        let before = std::mem::replace(&mut found.deadline, deadline);
        self.set_timer(Timer::Exchange(exchange), before, deadline);
    }

    /// The exchange is over; its session has one less to finish.
    fn forget(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.exchanges.remove(&exchange) else { return };
        self.set_timer(Timer::Exchange(exchange), found.deadline, None);
        self.release(found.session, events);
    }

    /// An exchange goes on over another session than before.
    fn move_hold(&mut self, before: Option<SessionId>, session: SessionId, events: &mut Vec<LiveEvent>) {
        if before == Some(session) {
            return;
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.held += 1;
        }
        self.release(before, events);
    }

    fn unhold(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) {
        let session = self.exchanges.get_mut(&exchange).and_then(|found| found.session.take());
        self.release(session, events);
    }

    fn release(&mut self, session: Option<SessionId>, events: &mut Vec<LiveEvent>) {
        let Some(session) = session else { return };
        if let Some(found) = self.sessions.get_mut(&session) {
            found.held = found.held.saturating_sub(1);
            self.end_if_done(session, events);
        }
    }

    /// A session that is on its way out and has nothing left to finish.
    fn end_if_done(&mut self, session: SessionId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get(&session).filter(|found| found.held == 0) else { return };
        match found.stage {
            Stage::Released { .. } => self.end_session(session, EndReason::Drained, events),
            Stage::Superseded { .. } => self.end_session(session, EndReason::Superseded, events),
            Stage::Admitted | Stage::Draining { .. } | Stage::Ended(_) => {}
        }
    }

    fn end_session(&mut self, session: SessionId, reason: EndReason, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        if matches!(found.stage, Stage::Ended(_)) {
            return;
        }
        found.parked.clear();
        self.set_stage(session, Stage::Ended(reason));
        events.push(LiveEvent::SessionEnded { session, reason });
        if self.admitted == Some(session) {
            self.admitted = None;
            events.push(LiveEvent::TunnelWentOffline(session));
        }
    }

    fn set_stage(&mut self, session: SessionId, stage: Stage) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        let before = std::mem::replace(&mut found.stage, stage);
        self.set_timer(Timer::Session(session), before.due(), stage.due());
    }

    fn set_timer(&mut self, timer: Timer, before: Option<Instant>, after: Option<Instant>) {
        if let Some(due) = before {
            self.timers.remove(&(due, timer));
        }
        if let Some(due) = after {
            self.timers.insert((due, timer));
        }
    }

    /// Panics if the parts disagree; for tests and fuzzing.
    #[doc(hidden)]
    pub fn assert_invariants(&self) {
        let admitted: Vec<_> = self.sessions.iter().filter(|(_, session)| session.stage == Stage::Admitted).collect();
        assert!(admitted.len() <= 1, "more than one admitted session");
        assert_eq!(admitted.first().map(|(id, _)| **id), self.admitted, "the admitted session");
        for (id, session) in &self.sessions {
            let held = self.exchanges.values().filter(|exchange| exchange.session == Some(*id)).count();
            assert_eq!(held, session.held, "exchanges held by {id:?}");
            assert!(session.parked.len() <= self.rules.intake_limit);
        }
        assert!(self.waiting.len() <= self.rules.queue_limit + self.rules.intake_limit * self.sessions.len() + 64);
        if self.admitted.is_some_and(|admitted| self.has_parked(admitted)) {
            assert!(self.waiting.is_empty(), "an exchange waits while an intake is free");
        }
        let mut timers = BTreeSet::new();
        for (id, exchange) in &self.exchanges {
            assert_eq!(exchange.phase == Phase::Queued, self.waiting.contains(id), "{id:?} in the queue");
            assert!(exchange.session.is_none_or(|session| self.sessions.contains_key(&session)));
            let is_open = matches!(exchange.phase, Phase::Bridged | Phase::Replying);
            assert_eq!(is_open, exchange.deadline.is_none(), "{id:?} has a deadline");
            timers.extend(exchange.deadline.map(|due| (due, Timer::Exchange(*id))));
        }
        timers.extend(self.sessions.iter().filter_map(|(id, s)| s.stage.due().map(|due| (due, Timer::Session(*id)))));
        assert_eq!(timers, self.timers);
    }
}

impl Stage {
    fn due(self) -> Option<Instant> {
        match self {
            Self::Draining { released_at, .. } => Some(released_at),
            Self::Released { ends_at } | Self::Superseded { ends_at } => Some(ends_at),
            Self::Admitted | Self::Ended(_) => None,
        }
    }
}
