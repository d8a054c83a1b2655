//! The state machine of one tunnel's traffic: agents' sessions, the intakes
//! that some of them park, and the exchanges of visitors.
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

/// One process of an agent: a random number that it chose when it started.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InstanceId(pub u128);

/// How a session takes exchanges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SessionKind {
    /// As many as come, without intakes. It stands beside those of its own instance, and
    /// beside those of others if both sides share.
    Open {
        /// The agent's process.
        instance: InstanceId,
        /// Other instances may have the tunnel at the same time, if they say so too.
        shares: bool,
    },
    /// One for each intake that it parks. It stands alone.
    Parking,
}

/// How a visitor's exchange is carried: which sessions are admitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Carrier {
    /// By an open session: [`LiveCommand::OpenExchange`].
    Open,
    /// By the parking session: [`LiveCommand::StartExchange`].
    Parking,
}

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
        /// How it takes exchanges.
        kind: SessionKind,
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
    /// A visitor came, and an open session is there ([`Carrier::Open`]): of several, the one
    /// with the fewest exchanges takes it. Nothing waits for an open session: without one
    /// this is refused.
    ///
    /// An exchange that the agent refused is ended, and opened anew under another number.
    OpenExchange {
        /// A number that was never used before.
        exchange: ExchangeId,
    },
    /// A visitor came, and an intake is to take the exchange, or an agent is expected back.
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
    /// The visitor left, or reply, bridge or stream came to their end.
    EndExchange {
        /// Which one.
        exchange: ExchangeId,
    },
    /// The agent's connection is gone.
    CloseSession {
        /// Which one.
        session: SessionId,
    },
    /// The session's agent leaves by itself: nothing new goes to it, and it finishes what it
    /// has. Without effect on a session that is on its way out already.
    LeaveSession {
        /// Which one.
        session: SessionId,
    },
    /// An agent has been told that it may come, and its session is about to begin: visitors
    /// wait for it as for one that comes back. Without effect while a session is admitted.
    ExpectSession,
    /// The tunnel is not what its agents took it for: they are to look again.
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
    /// The session takes exchanges from now on.
    SessionAdmitted(SessionId),
    /// The tunnel has no live client any more; this was the last one.
    TunnelWentOffline(SessionId),
    /// Open a stream for the exchange on this session. There is no deadline but the shell's.
    ExchangeOpened {
        /// The session.
        session: SessionId,
        /// The exchange.
        exchange: ExchangeId,
    },
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
    /// Tell the agent of this open session to look at its tunnel again.
    SessionAnnounced(SessionId),
    /// Tell the agent of this open session that another one has the tunnel: what it has
    /// begun it may finish.
    SessionSuperseded(SessionId),
    /// The exchange waits for an intake.
    ExchangeQueued(ExchangeId),
    /// Hand the reply to the visitor, and end the exchange when all of it has come.
    ReplyAccepted(ExchangeId),
    /// Join visitor and bridge.
    BridgeOpened(ExchangeId),
    /// The session of a bridge, or of a reply that was coming, is gone; or an open exchange
    /// may not go on. Cut it.
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
    /// End the parking session's intakes: the agent has had time to move.
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
    /// The server stops or the agent leaves, and the session is done or out of time.
    Drained,
    /// Its credential or its tunnel is of no use any more.
    Revoked,
    /// A newer session took the tunnel over.
    Superseded,
}

/// Why a visitor gets no reply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// No intake was free in time, or an open session came and there will be none.
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
    /// There is no agent that takes exchanges in this way, and none is expected back.
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
    /// Never admitted, closed, or without intakes.
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
    /// serves. An open session is told at once, and has [`Self::drain_time`]).
    pub supersede_time: Duration,
    /// From the signal to go elsewhere to the end of the parked intakes (500 ms: an agent
    /// leaves within milliseconds of the signal, or needs a round trip to learn of it; an
    /// intake that ends before looks like a refusal).
    pub drain_pause: Duration,
    /// From the signal to go elsewhere, or from the agent's that it leaves, to the end of the
    /// session (90 s: as long as the most patient of the published agents keeps the old
    /// connection for its bridges).
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
/// A session, from its hello to the end of its connection. Admitted are one that parks
/// intakes, or any number of open ones that may stand beside each other ([`SessionKind`]).
/// From every stage [`LiveCommand::CloseSession`] leads out of the picture, and
/// [`LiveCommand::RevokeSession`] to *ended*.
///
/// ```text
///  AdmitSession    ┌───────────────── LeaveSession ────────────────────┐
///       │          │                                                   │
///       ▼          │ Drain            drain_pause, or LeaveSession:    ▼
///   admitted ──────┴────► draining ───────────────────────────────► released
///       │                                 IntakesReleased              │ its last
///       │ a newer hello of a session                                   │ exchange ends,
///       │ that may not stand beside it                                 │ or drain_time
///       ▼            its last exchange ends,                           ▼
///   superseded ────────────────────────────────────────────────────► ended
///                    or supersede_time                     SessionEnded │
///                                                                       ▼
///                                                                 CloseSession
/// ```
///
/// An exchange, from the visitor's request to its end. From every phase
/// [`LiveCommand::EndExchange`] leads out.
///
/// ```text
///  StartExchange ──► queued ──────────────────────────────────► failed: queue_time,
///       │              │ ParkIntake                              reconnect_time, or an
///       │ an intake    │       ▲ ReturnEnvelope                  open session came
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
///
///  OpenExchange ───► open ────────────────────────────────────► BridgeLost, if its session
///                                                                or tunnel is revoked;
///                                                                forgotten, if the session
///                                                                goes: its stream broke
/// ```
///
/// Each timer is a rule of [`LiveRules`], and no other time counts.
#[derive(Debug)]
pub struct Live {
    rules: LiveRules,
    sessions: BTreeMap<SessionId, Session>,
    /// The sessions that exchanges go to, in the order in which they came: one that parks,
    /// or open ones.
    admitted: Vec<SessionId>,
    /// The highest number that was ever admitted.
    newest: Option<(SessionId, SessionKind)>,
    /// Exchanges without an intake, oldest first.
    waiting: VecDeque<ExchangeId>,
    /// Those that are for intakes.
    exchanges: BTreeMap<ExchangeId, Exchange>,
    /// Those of open sessions. Each request passes here twice: nothing walks this but the
    /// end of a session.
    open: BTreeMap<ExchangeId, SessionId>,
    /// Until when an agent is expected back.
    expected_until: Option<Instant>,
    timers: BTreeSet<(Instant, Timer)>,
}

#[derive(Debug)]
struct Session {
    kind: SessionKind,
    stage: Stage,
    parked: VecDeque<IntakeId>,
    /// The next intake that it parks tells it to look at its tunnel.
    has_news: bool,
    /// Exchanges that it has the envelope of, bridges among them, or that are open on it.
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
            admitted: Vec::new(),
            newest: None,
            waiting: VecDeque::new(),
            exchanges: BTreeMap::new(),
            open: BTreeMap::new(),
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
            LiveCommand::AdmitSession { session, kind } => self.admit(session, kind, now, &mut events)?,
            LiveCommand::ParkIntake { session, intake } => self.park(session, intake, now, &mut events)?,
            LiveCommand::ReturnEnvelope { session, exchange } => {
                self.return_envelope(session, exchange, now, &mut events)?;
            }
            LiveCommand::OpenExchange { exchange } => self.open_exchange(exchange, &mut events)?,
            LiveCommand::StartExchange { exchange, kind } => self.start(exchange, kind, now, &mut events)?,
            LiveCommand::Reply { session, exchange, accepts } => {
                self.reply(session, exchange, accepts, now, &mut events)?;
            }
            LiveCommand::OpenBridge { session, exchange, kind } => {
                self.open_bridge(session, exchange, kind, &mut events)?;
            }
            LiveCommand::EndExchange { exchange } => self.end_exchange(exchange, &mut events)?,
            LiveCommand::CloseSession { session } => self.close_session(session, now, &mut events)?,
            LiveCommand::LeaveSession { session } => self.leave_session(session, now, &mut events)?,
            LiveCommand::ExpectSession => self.expect_session(now),
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

    /// The tunnel has a live client.
    pub fn is_online(&self) -> bool {
        !self.admitted.is_empty()
    }

    /// How a visitor's exchange would be carried now; `None` if no session is admitted.
    pub fn carrier(&self) -> Option<Carrier> {
        let session = self.sessions.get(self.admitted.first()?)?;
        Some(match session.kind {
            SessionKind::Open { .. } => Carrier::Open,
            SessionKind::Parking => Carrier::Parking,
        })
    }

    /// Until when an agent is expected back, if none is there. It may have passed.
    pub fn expected_until(&self) -> Option<Instant> {
        self.expected_until
    }

    /// Exchanges that have not ended.
    pub fn exchanges(&self) -> usize {
        self.exchanges.len() + self.open.len()
    }

    /// Nothing is there that would be lost with it at `now`.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.sessions.is_empty()
            && self.exchanges() == 0
            && self.expected_until.is_none_or(|expected_until| expected_until <= now)
    }

    fn admit(
        &mut self,
        session: SessionId,
        kind: SessionKind,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        if self.comes_too_late(session, kind) {
            return Err(LiveRefusal::Superseded);
        }
        self.newest = self.newest.filter(|(newest, _)| *newest > session).or(Some((session, kind)));
        let must_go =
            |other: &mut SessionId| self.sessions.get(other).is_none_or(|other| !kind.may_stand_beside(other.kind));
        let superseded: Vec<SessionId> = self.admitted.extract_if(.., must_go).collect();
        for older in superseded {
            let is_open = self.sessions.get(&older).is_some_and(|older| older.kind != SessionKind::Parking);
            let time = if is_open { self.rules.drain_time } else { self.rules.supersede_time };
            if is_open {
                events.push(LiveEvent::SessionSuperseded(older));
            }
            self.set_stage(older, Stage::Superseded { ends_at: now + time });
            self.end_if_done(older, events);
        }
        if kind != SessionKind::Parking {
            // Nobody will park an intake for them, and no visitor shall wait in vain.
            while let Some(exchange) = self.waiting.pop_front() {
                self.abort(exchange, Failure::AgentBusy, events);
            }
        }
        let parked = VecDeque::new();
        self.sessions.insert(session, Session { kind, stage: Stage::Admitted, parked, has_news: false, held: 0 });
        self.admitted.push(session);
        self.expected_until = None;
        events.push(LiveEvent::SessionAdmitted(session));
        Ok(())
    }

    /// A session with a later hello, which it may not stand beside, was admitted before it.
    ///
    /// Of those that have gone only the newest counts. An older one of them matters no
    /// more: the newest either took over from it, and so speaks for the tunnel, or stood
    /// beside it. Sessions of one instance may come in any order.
    fn comes_too_late(&self, session: SessionId, kind: SessionKind) -> bool {
        let admitted = self.admitted.iter().filter_map(|id| Some((*id, self.sessions.get(id)?.kind)));
        self.sessions.contains_key(&session)
            || self
                .newest
                .into_iter()
                .chain(admitted)
                .any(|(other, other_kind)| other == session || (other > session && !kind.may_stand_beside(other_kind)))
    }

    fn park(
        &mut self,
        session: SessionId,
        intake: IntakeId,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let limit = self.rules.intake_limit;
        let found = self.sessions.get_mut(&session).filter(|found| found.kind == SessionKind::Parking);
        let found = found.ok_or(LiveRefusal::UnknownSession)?;
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
        match self.free_session() {
            Some(admitted) => self.assign(admitted, exchange, now, events),
            // Nobody will park an intake for it.
            None if self.carrier() == Some(Carrier::Open) => self.abort(exchange, Failure::AgentBusy, events),
            None => {
                // First in the queue: it was there before the others.
                self.waiting.push_front(exchange);
                self.enter(exchange, Phase::Queued, None, Some(now + self.rules.queue_time));
                events.push(LiveEvent::ExchangeQueued(exchange));
            }
        }
        Ok(())
    }

    fn open_exchange(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) -> Result<(), LiveRefusal> {
        if self.carrier() != Some(Carrier::Open) {
            return Err(LiveRefusal::Offline);
        }
        let held = |id: &SessionId| self.sessions.get(id).map_or(usize::MAX, |session| session.held);
        // The first of those that have as few.
        let session = self.admitted.iter().copied().min_by_key(held).ok_or(LiveRefusal::Offline)?;
        let found = self.sessions.get_mut(&session).ok_or(LiveRefusal::Offline)?;
        found.held += 1;
        self.open.insert(exchange, session);
        events.push(LiveEvent::ExchangeOpened { session, exchange });
        Ok(())
    }

    fn start(
        &mut self,
        exchange: ExchangeId,
        kind: ExchangeKind,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let deadline = match self.carrier() {
            Some(Carrier::Parking) => now + self.rules.queue_time,
            Some(Carrier::Open) => return Err(LiveRefusal::Offline),
            None => self.expected_until.filter(|until| now < *until).ok_or(LiveRefusal::Offline)?,
        };
        let free = self.free_session();
        if free.is_none() && self.waiting.len() >= self.rules.queue_limit {
            return Err(LiveRefusal::QueueFull);
        }
        self.exchanges.insert(exchange, Exchange { kind, phase: Phase::Queued, session: None, deadline: None });
        match free {
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
        self.known_parking(session)?;
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
        let stage = self.known_parking(session)?;
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
        if let Some(session) = self.open.remove(&exchange) {
            self.release(Some(session), events);
            return Ok(());
        }
        let found = self.exchanges.get(&exchange).ok_or(LiveRefusal::UnknownExchange)?;
        if found.phase == Phase::Queued {
            self.waiting.retain(|waiting| *waiting != exchange);
        }
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
        self.dismiss(session, Some(now + self.rules.reconnect_time), events);
        // Their streams broke with it, which whoever has them sees.
        self.open.retain(|_, holder| *holder != session);
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

    fn leave_session(
        &mut self,
        session: SessionId,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        match self.known(session)? {
            Stage::Admitted => {
                self.dismiss(session, Some(now + self.rules.reconnect_time), events);
                self.release_intakes(session, now + self.rules.drain_time, events);
            }
            Stage::Draining { ends_at, .. } => self.release_intakes(session, ends_at, events),
            Stage::Ended(_) | Stage::Released { .. } | Stage::Superseded { .. } => {}
        }
        Ok(())
    }

    fn drain(&mut self, now: Instant, events: &mut Vec<LiveEvent>) {
        let (released_at, ends_at) = (now + self.rules.drain_pause, now + self.rules.drain_time);
        let drained = std::mem::take(&mut self.admitted);
        for session in &drained {
            self.set_stage(*session, Stage::Draining { released_at, ends_at });
            events.push(LiveEvent::SessionDrained(*session));
        }
        if let Some(last) = drained.last() {
            self.expected_until = Some(now + self.rules.reconnect_time);
            events.push(LiveEvent::TunnelWentOffline(*last));
        }
    }

    fn expect_session(&mut self, now: Instant) {
        if self.admitted.is_empty() {
            let soon = now + self.rules.reconnect_time;
            self.expected_until = Some(self.expected_until.map_or(soon, |until| until.max(soon)));
        }
    }

    fn announce(&mut self, events: &mut Vec<LiveEvent>) {
        // An agent that comes later has looked.
        for session in &self.admitted {
            let Some(found) = self.sessions.get_mut(session) else { continue };
            match (found.kind, found.parked.pop_front()) {
                (SessionKind::Open { .. }, _) => events.push(LiveEvent::SessionAnnounced(*session)),
                (SessionKind::Parking, Some(intake)) => {
                    events.push(LiveEvent::TunnelAnnounced { session: *session, intake });
                }
                (SessionKind::Parking, None) => found.has_news = true,
            }
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
        self.cut_open(|holder| holder == session, events);
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
        self.cut_open(|_| true, events);
    }

    /// Ends the open exchanges of these sessions, whose streams are still there.
    fn cut_open(&mut self, is_cut: impl Fn(SessionId) -> bool, events: &mut Vec<LiveEvent>) {
        let cut: Vec<ExchangeId> = self.open.iter().filter(|(_, holder)| is_cut(**holder)).map(|(id, _)| *id).collect();
        for exchange in cut {
            let holder = self.open.remove(&exchange);
            events.push(LiveEvent::BridgeLost(exchange));
            self.release(holder, events);
        }
    }

    fn exchange_is_due(&mut self, exchange: ExchangeId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.exchanges.get(&exchange) else { return };
        let failure = match (found.phase, found.session) {
            (Phase::Queued, _) if self.is_online() => Failure::AgentBusy,
            (Phase::Queued, _) => Failure::AgentOffline,
            (_, None) => Failure::AgentLost,
            (_, Some(_)) => Failure::AgentTimeout,
        };
        if found.phase == Phase::Queued {
            self.waiting.retain(|waiting| *waiting != exchange);
        }
        events.push(LiveEvent::ExchangeFailed { exchange, failure });
        self.forget(exchange, events);
    }

    fn session_is_due(&mut self, session: SessionId, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get(&session) else { return };
        match found.stage {
            Stage::Draining { ends_at, .. } => self.release_intakes(session, ends_at, events),
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

    /// The session on its way out takes nothing new from here, and finishes what it has.
    fn release_intakes(&mut self, session: SessionId, ends_at: Instant, events: &mut Vec<LiveEvent>) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        found.parked.clear();
        if found.kind == SessionKind::Parking {
            events.push(LiveEvent::IntakesReleased(session));
        }
        self.set_stage(session, Stage::Released { ends_at });
        self.end_if_done(session, events);
    }

    /// The session is not among the admitted ones any more. If it was the last one, an agent
    /// is `expected_until` then.
    fn dismiss(&mut self, session: SessionId, expected_until: Option<Instant>, events: &mut Vec<LiveEvent>) {
        let Some(at) = self.admitted.iter().position(|admitted| *admitted == session) else { return };
        self.admitted.remove(at);
        if self.admitted.is_empty() {
            self.expected_until = expected_until;
            events.push(LiveEvent::TunnelWentOffline(session));
        }
    }

    /// The admitted session, if it has an intake to spare.
    fn free_session(&self) -> Option<SessionId> {
        // One that parks stands alone.
        let session = *self.admitted.first()?;
        self.sessions.get(&session).filter(|found| !found.parked.is_empty()).map(|_| session)
    }

    fn known(&self, session: SessionId) -> Result<Stage, LiveRefusal> {
        self.sessions.get(&session).map(|session| session.stage).ok_or(LiveRefusal::UnknownSession)
    }

    /// Replies and bridges come only from agents that park intakes.
    fn known_parking(&self, session: SessionId) -> Result<Stage, LiveRefusal> {
        let found = self.sessions.get(&session).filter(|found| found.kind == SessionKind::Parking);
        found.map(|found| found.stage).ok_or(LiveRefusal::UnknownSession)
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
        self.dismiss(session, None, events);
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
        let mut listed = self.admitted.clone();
        listed.sort();
        let admitted = self.sessions.iter().filter(|(_, session)| session.stage == Stage::Admitted);
        assert_eq!(admitted.map(|(id, _)| *id).collect::<Vec<_>>(), listed, "the admitted sessions");
        for (at, id) in self.admitted.iter().enumerate() {
            let others = self.admitted.iter().skip(at + 1);
            let kind = |id: &SessionId| self.sessions.get(id).map(|session| session.kind);
            let may_stand = |other| kind(id).zip(kind(other)).is_some_and(|(a, b)| a.may_stand_beside(b));
            assert!(others.clone().all(may_stand), "{id:?} beside {others:?}");
        }
        assert!(self.admitted.is_empty() || self.expected_until.is_none(), "an agent is there and expected");
        for (id, session) in &self.sessions {
            let held = self.exchanges.values().filter(|exchange| exchange.session == Some(*id)).count();
            let open = self.open.values().filter(|holder| *holder == id).count();
            assert_eq!(held + open, session.held, "exchanges held by {id:?}");
            match session.kind {
                SessionKind::Open { .. } => assert_eq!((held, session.parked.len()), (0, 0), "{id:?} is open"),
                SessionKind::Parking => assert_eq!(open, 0, "{id:?} parks"),
            }
            assert!(session.parked.len() <= self.rules.intake_limit);
        }
        assert!(self.waiting.len() <= self.rules.queue_limit + self.rules.intake_limit * self.sessions.len() + 64);
        if self.free_session().is_some() || self.carrier() == Some(Carrier::Open) {
            assert!(self.waiting.is_empty(), "an exchange waits while an intake is free, or none will come");
        }
        assert!(
            self.open.values().all(|holder| self.sessions.contains_key(holder)),
            "an open exchange has its session"
        );
        assert!(self.open.keys().all(|id| !self.exchanges.contains_key(id)), "an exchange is open or for intakes");
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

impl SessionKind {
    /// Two sessions of these kinds may be admitted at the same time.
    fn may_stand_beside(self, other: Self) -> bool {
        match (self, other) {
            (Self::Open { instance, shares }, Self::Open { instance: other, shares: other_shares }) => {
                instance == other || (shares && other_shares)
            }
            (Self::Parking, _) | (_, Self::Parking) => false,
        }
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
