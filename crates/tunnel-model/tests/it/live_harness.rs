//! A plain model of a tunnel's traffic, and the loop that compares it with the
//! real one. Uses the crate's public interface only, so that a fuzz target may
//! include this file too.
//!
//! The plain model keeps vectors, walks them for everything, and is written from
//! what agents and visitors are promised, not from `Live`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tunnel_model::{
    Carrier, EndReason, ExchangeId, ExchangeKind, Failure, InstanceId, IntakeId, Live, LiveCommand, LiveEvent,
    LiveRefusal, LiveRules, SessionId, SessionKind,
};

/// Decodes commands from `bytes`, gives them to both models, and panics when
/// they differ or an invariant breaks. Answers which events and refusals there
/// were, and `BesideOwn` and `BesideOther` if sessions of one or of several instances
/// stood side by side.
pub(crate) fn run(bytes: &[u8]) -> BTreeSet<String> {
    #[expect(clippy::disallowed_methods, reason = "an instant has no other beginning; only differences count")]
    let start = Instant::now();
    let rules = LiveRules { queue_limit: 4, intake_limit: 3, ..LiveRules::new() };
    let mut bytes = bytes.iter().copied();
    let beginning = bytes.next().unwrap_or(0);
    let expected_until = (beginning % 2 == 1).then(|| start + Duration::from_secs(3));
    let mut real = Live::new(rules, expected_until);
    let mut plain = Plain::new(rules, expected_until);
    let mut outcomes = BTreeSet::new();
    let mut now = start;
    let open_odds = OPEN_ODDS[usize::from(beginning >> 1) % OPEN_ODDS.len()];
    let mut numbers = Numbers { sessions: 0, exchanges: 0, open_odds };
    while let (Some(step), Some(first), Some(second)) = (bytes.next(), bytes.next(), bytes.next()) {
        now += Duration::from_millis(STEPS[usize::from(step >> 4) % STEPS.len()]);
        let due: Vec<_> = real.handle_timeout(now).iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(sorted(due.clone()), sorted(plain.handle_timeout(now)), "left: the model, right: the plain one");
        assert!(real.poll_timeout().is_none_or(|due| due > now), "what is due was done");
        let command = command(step & 0x0f, first, second, &mut numbers);
        let told = format!("{command:?} at {:?}", now - start);
        let got = real.handle(command, now).map(|events| events.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>());
        let expected = plain.handle(command, now);
        assert_eq!(got.clone().map(sorted), expected.map(sorted), "left: the model, right: the plain one; {told}");
        real.assert_invariants();
        assert_eq!(real.carrier(), plain.carrier(), "after {told}");
        assert_eq!(real.is_online(), plain.carrier().is_some(), "after {told}");
        assert_eq!(real.expected_until(), plain.expected_until, "after {told}");
        assert_eq!(real.exchanges(), plain.exchanges.len(), "after {told}");
        assert_eq!(real.is_idle(now), plain.is_idle(now), "after {told}");
        outcomes.extend(plain.company());
        let name = |text: &String| text.split([' ', '(', '{']).next().map(str::to_owned);
        outcomes.extend(due.iter().chain(got.iter().flatten()).filter_map(name));
        outcomes.extend(got.err().map(|refusal| format!("{refusal:?}")));
    }
    outcomes
}

/// Just before, at and after what the rules say, and what lies between.
const STEPS: [u64; 16] = [0, 0, 0, 0, 1, 1, 10, 100, 499, 500, 1_000, 2_000, 4_999, 5_001, 10_000, 35_000];

/// Of 255 sessions so many are open: some tunnels see one kind only, some have both.
const OPEN_ODDS: [u8; 4] = [0, 100, 220, 255];

/// How many there were.
struct Numbers {
    sessions: u64,
    exchanges: u64,
    open_odds: u8,
}

/// Numbers of exchanges are never used twice; commands name one of the last.
fn command(which: u8, first: u8, second: u8, numbers: &mut Numbers) -> LiveCommand {
    let session = SessionId(numbers.sessions.saturating_sub(u64::from(first % 4)));
    let exchange = ExchangeId(numbers.exchanges.saturating_sub(u64::from(second % 6)));
    // The kind follows from the number, so that most bridges are of the right one.
    let kind_of = |number: u64| match number % 3 {
        0 => ExchangeKind::Http,
        1 => ExchangeKind::Tcp,
        _ => ExchangeKind::WebSocket,
    };
    match which {
        0 if first < 200 => {
            // Those that are left out may come late.
            numbers.sessions += 1 + u64::from(first.is_multiple_of(8));
            LiveCommand::AdmitSession {
                session: SessionId(numbers.sessions),
                kind: session_kind(second, numbers.open_odds),
            }
        }
        0 => LiveCommand::AdmitSession { session, kind: session_kind(second, numbers.open_odds) },
        1..=7 if first < numbers.open_odds / 3 => {
            numbers.exchanges += 1;
            LiveCommand::OpenExchange { exchange: ExchangeId(numbers.exchanges) }
        }
        1..=4 => LiveCommand::ParkIntake { session, intake: IntakeId(u32::from(second)) },
        5..=7 => {
            numbers.exchanges += 1;
            LiveCommand::StartExchange { exchange: ExchangeId(numbers.exchanges), kind: kind_of(numbers.exchanges) }
        }
        8 | 9 => LiveCommand::Reply { session, exchange, accepts: first.is_multiple_of(2) },
        10 | 15 => {
            let kind = kind_of(exchange.0 + u64::from(first > 220));
            LiveCommand::OpenBridge { session, exchange, kind }
        }
        11 => LiveCommand::EndExchange { exchange },
        12 if second < 100 => LiveCommand::LeaveSession { session },
        12 => LiveCommand::CloseSession { session },
        13 => LiveCommand::ReturnEnvelope { session, exchange },
        14 if first < 40 => LiveCommand::Drain,
        14 if first < 60 => LiveCommand::Revoke,
        14 if first < 130 => LiveCommand::Announce,
        14 if first < 160 => LiveCommand::ExpectSession,
        _ => LiveCommand::RevokeSession { session },
    }
}

/// Often of the same few instances, so that they meet.
fn session_kind(byte: u8, open_odds: u8) -> SessionKind {
    if byte < open_odds {
        SessionKind::Open { instance: InstanceId(u128::from(byte % 3)), shares: byte % 8 < 5 }
    } else {
        SessionKind::Parking
    }
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Live,
    Draining(Instant, Instant),
    Released(Instant),
    Superseded(Instant),
    Over(EndReason),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Queued,
    WithAgent,
    WantsBridge,
    Bridged,
    Replying,
    /// On an open session.
    Open,
}

struct Session {
    id: SessionId,
    kind: SessionKind,
    stage: Stage,
    intakes: Vec<IntakeId>,
    has_news: bool,
}

#[derive(Clone, Copy)]
struct Exchange {
    id: ExchangeId,
    /// Of one that is open nothing follows from it.
    kind: ExchangeKind,
    phase: Phase,
    session: Option<SessionId>,
    until: Option<Instant>,
}

struct Plain {
    rules: LiveRules,
    /// In the order in which they were let in.
    sessions: Vec<Session>,
    /// In the order of the queue, as far as they are queued.
    exchanges: Vec<Exchange>,
    /// All that ever were let in, as what they were last.
    hellos: Vec<(SessionId, SessionKind)>,
    expected_until: Option<Instant>,
}

impl Plain {
    fn new(rules: LiveRules, expected_until: Option<Instant>) -> Self {
        Self { rules, sessions: Vec::new(), exchanges: Vec::new(), hellos: Vec::new(), expected_until }
    }

    fn live(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|session| session.stage == Stage::Live)
    }

    fn carrier(&self) -> Option<Carrier> {
        if self.live().any(|session| session.kind == SessionKind::Parking) {
            Some(Carrier::Parking)
        } else {
            self.live().next().map(|_| Carrier::Open)
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.sessions.is_empty() && self.exchanges.is_empty() && self.expected_until.is_none_or(|until| until <= now)
    }

    /// Who stands beside whom.
    fn company(&self) -> Option<String> {
        let instances: Vec<_> = self.live().filter_map(|session| instance(session.kind)).collect();
        let different: BTreeSet<_> = instances.iter().collect();
        match (different.len(), instances.len()) {
            (0, _) | (1, 1) => None,
            (1, _) => Some("BesideOwn".to_owned()),
            _ => Some("BesideOther".to_owned()),
        }
    }

    fn holds(&self, session: SessionId) -> usize {
        self.exchanges.iter().filter(|exchange| exchange.session == Some(session)).count()
    }

    /// Where a session that may park intakes is.
    fn parking_at(&self, id: SessionId) -> Result<usize, LiveRefusal> {
        let at = self.at(id)?;
        if self.sessions[at].kind == SessionKind::Parking { Ok(at) } else { Err(LiveRefusal::UnknownSession) }
    }

    /// A session that was live is not any more; `back` if an agent is likely to come back.
    fn went(&mut self, session: SessionId, back: Option<Instant>, events: &mut Vec<LiveEvent>) {
        if self.live().next().is_none() {
            self.expected_until = back;
            events.push(LiveEvent::TunnelWentOffline(session));
        }
    }

    fn at(&self, id: SessionId) -> Result<usize, LiveRefusal> {
        self.sessions.iter().position(|session| session.id == id).ok_or(LiveRefusal::UnknownSession)
    }

    fn exchange(&self, id: ExchangeId) -> Result<usize, LiveRefusal> {
        self.exchanges.iter().position(|exchange| exchange.id == id).ok_or(LiveRefusal::UnknownExchange)
    }

    fn handle(&mut self, command: LiveCommand, now: Instant) -> Result<Vec<String>, LiveRefusal> {
        let mut events: Vec<LiveEvent> = Vec::new();
        match command {
            LiveCommand::AdmitSession { session, kind } => {
                let is_known = self.at(session).is_ok();
                let is_live = |id| self.live().any(|live| live.id == id);
                let last = self.hellos.iter().map(|(id, _)| *id).max();
                // What an older one that has gone wanted, is the business of those after it.
                let counts = |id| is_live(id) || Some(id) == last;
                let is_beaten = self.hellos.iter().any(|(other, other_kind)| {
                    counts(*other) && *other >= session && (*other == session || !get_along(*other_kind, kind))
                });
                if is_known || is_beaten {
                    return Err(LiveRefusal::Superseded);
                }
                // A number that has gone may come again, as something else.
                self.hellos.retain(|(id, _)| *id != session);
                self.hellos.push((session, kind));
                for older in &mut self.sessions {
                    if older.stage == Stage::Live && !get_along(older.kind, kind) {
                        let parks = older.kind == SessionKind::Parking;
                        let time = if parks { self.rules.supersede_time } else { self.rules.drain_time };
                        if !parks {
                            events.push(LiveEvent::SessionSuperseded(older.id));
                        }
                        older.stage = Stage::Superseded(now + time);
                    }
                }
                let (stage, intakes) = (Stage::Live, Vec::new());
                self.sessions.push(Session { id: session, kind, stage, intakes, has_news: false });
                self.expected_until = None;
                events.push(LiveEvent::SessionAdmitted(session));
            }
            LiveCommand::ParkIntake { session, intake } => {
                let at = self.parking_at(session)?;
                match self.sessions[at].stage {
                    Stage::Released(_) | Stage::Over(EndReason::Drained) => return Err(LiveRefusal::Draining),
                    Stage::Over(EndReason::Revoked) => return Err(LiveRefusal::UnknownSession),
                    Stage::Over(EndReason::Superseded) => return Err(LiveRefusal::Superseded),
                    _ => {}
                }
                if self.sessions[at].intakes.len() >= self.rules.intake_limit {
                    return Err(LiveRefusal::TooManyIntakes);
                }
                if self.sessions[at].stage == Stage::Live && self.sessions[at].has_news {
                    self.sessions[at].has_news = false;
                    events.push(LiveEvent::TunnelAnnounced { session, intake });
                } else {
                    self.sessions[at].intakes.push(intake);
                }
            }
            LiveCommand::ReturnEnvelope { session, exchange } => {
                self.parking_at(session).map_err(|_| LiveRefusal::UnknownExchange)?;
                let at = self.exchange(exchange)?;
                let found = self.exchanges[at];
                let waits = found.phase == Phase::WithAgent
                    || (found.phase == Phase::WantsBridge && found.kind == ExchangeKind::Tcp);
                if found.session != Some(session) || !waits {
                    return Err(LiveRefusal::UnknownExchange);
                }
                self.exchanges.remove(at);
                let until = Some(now + self.rules.queue_time);
                self.exchanges.insert(0, Exchange { phase: Phase::Queued, session: None, until, ..found });
                if !self.intake_is_free() && self.carrier() != Some(Carrier::Open) {
                    events.push(LiveEvent::ExchangeQueued(exchange));
                }
            }
            LiveCommand::OpenExchange { exchange } => {
                let open: Vec<_> = self.live().filter(|live| live.kind != SessionKind::Parking).collect();
                let fewest = open.iter().map(|live| self.holds(live.id)).min().ok_or(LiveRefusal::Offline)?;
                let idlest = open.iter().find(|live| self.holds(live.id) == fewest).expect("one has the fewest");
                let (session, phase, kind) = (idlest.id, Phase::Open, ExchangeKind::Http);
                self.exchanges.push(Exchange { id: exchange, kind, phase, session: Some(session), until: None });
                events.push(LiveEvent::ExchangeOpened { session, exchange });
            }
            LiveCommand::StartExchange { exchange, kind } => {
                self.start(exchange, kind, now, &mut events)?;
            }
            LiveCommand::Reply { session, exchange, accepts } => {
                self.parking_at(session)?;
                let at = self.exchange(exchange)?;
                if self.exchanges[at].phase != Phase::WithAgent {
                    return Err(LiveRefusal::UnknownExchange);
                }
                events.push(LiveEvent::ReplyAccepted(exchange));
                self.exchanges[at].session = Some(session);
                if self.exchanges[at].kind == ExchangeKind::WebSocket && accepts {
                    self.exchanges[at].phase = Phase::WantsBridge;
                    self.exchanges[at].until = Some(now + self.rules.bridge_time);
                } else {
                    self.exchanges[at].phase = Phase::Replying;
                    self.exchanges[at].until = None;
                }
            }
            LiveCommand::OpenBridge { session, exchange, kind } => {
                let at = self.parking_at(session)?;
                if matches!(self.sessions[at].stage, Stage::Over(_)) {
                    return Err(LiveRefusal::UnknownSession);
                }
                let at = self.exchange(exchange)?;
                match self.exchanges[at].phase {
                    Phase::Open => return Err(LiveRefusal::UnknownExchange),
                    _ if self.exchanges[at].kind != kind => return Err(LiveRefusal::UnwantedBridge),
                    Phase::WantsBridge => {}
                    Phase::Bridged => return Err(LiveRefusal::BridgeTaken),
                    Phase::Queued | Phase::WithAgent | Phase::Replying => return Err(LiveRefusal::UnwantedBridge),
                }
                self.exchanges[at].phase = Phase::Bridged;
                self.exchanges[at].session = Some(session);
                self.exchanges[at].until = None;
                events.push(LiveEvent::BridgeOpened(exchange));
            }
            LiveCommand::EndExchange { exchange } => {
                let at = self.exchange(exchange)?;
                self.exchanges.remove(at);
            }
            LiveCommand::CloseSession { session } => {
                let at = self.at(session)?;
                let gone = self.sessions.remove(at);
                if gone.stage == Stage::Live {
                    self.went(session, Some(now + self.rules.reconnect_time), &mut events);
                }
                // The streams of these broke with the connection.
                self.exchanges.retain(|e| e.phase != Phase::Open || e.session != Some(session));
                for exchange in &mut self.exchanges {
                    if exchange.session == Some(session) {
                        exchange.session = None;
                        let orphaned = now + self.rules.orphan_time;
                        exchange.until = exchange.until.map(|until| until.min(orphaned));
                    }
                }
                let is_open = |phase| matches!(phase, Phase::Bridged | Phase::Replying);
                let is_lost = |e: &&Exchange| is_open(e.phase) && e.session.is_none();
                events.extend(self.exchanges.iter().filter(is_lost).map(|exchange| LiveEvent::BridgeLost(exchange.id)));
                self.exchanges.retain(|exchange| !is_lost(&exchange));
            }
            LiveCommand::Drain => {
                let live: Vec<_> = self.live().map(|session| session.id).collect();
                for session in &mut self.sessions {
                    if session.stage == Stage::Live {
                        let ends_at = now + self.rules.drain_time;
                        session.stage = Stage::Draining(now + self.rules.drain_pause, ends_at);
                    }
                }
                events.extend(live.iter().map(|session| LiveEvent::SessionDrained(*session)));
                if let Some(last) = live.last() {
                    self.went(*last, Some(now + self.rules.reconnect_time), &mut events);
                }
            }
            LiveCommand::LeaveSession { session } => {
                let at = self.at(session)?;
                match self.sessions[at].stage {
                    Stage::Live => {
                        self.let_finish(at, now + self.rules.drain_time, &mut events);
                        self.went(session, Some(now + self.rules.reconnect_time), &mut events);
                    }
                    Stage::Draining(_, ends_at) => self.let_finish(at, ends_at, &mut events),
                    Stage::Released(_) | Stage::Superseded(_) | Stage::Over(_) => {}
                }
            }
            LiveCommand::ExpectSession => {
                let soon = now + self.rules.reconnect_time;
                if self.carrier().is_none() && self.expected_until.is_none_or(|until| until < soon) {
                    self.expected_until = Some(soon);
                }
            }
            LiveCommand::Announce => {
                for session in self.sessions.iter_mut().filter(|session| session.stage == Stage::Live) {
                    if session.kind != SessionKind::Parking {
                        events.push(LiveEvent::SessionAnnounced(session.id));
                    } else if session.intakes.is_empty() {
                        session.has_news = true;
                    } else {
                        let intake = session.intakes.remove(0);
                        events.push(LiveEvent::TunnelAnnounced { session: session.id, intake });
                    }
                }
            }
            LiveCommand::RevokeSession { session } => {
                let at = self.at(session)?;
                self.end(at, EndReason::Revoked, &mut events);
                let (lost, kept): (Vec<_>, Vec<_>) =
                    self.exchanges.drain(..).partition(|exchange| exchange.session == Some(session));
                self.exchanges = kept;
                events.extend(lost.iter().map(|exchange| match exchange.phase {
                    Phase::Bridged | Phase::Open | Phase::Replying => LiveEvent::BridgeLost(exchange.id),
                    _ => LiveEvent::ExchangeFailed { exchange: exchange.id, failure: Failure::AgentLost },
                }));
            }
            LiveCommand::Revoke => {
                // By number; the last one that was live is told to have gone.
                let sessions: BTreeSet<_> = self.sessions.iter().map(|session| session.id).collect();
                for session in sessions {
                    let at = self.at(session)?;
                    self.end(at, EndReason::Revoked, &mut events);
                }
                self.expected_until = None;
                for exchange in self.exchanges.drain(..) {
                    events.push(match exchange.phase {
                        Phase::Bridged | Phase::Open | Phase::Replying => LiveEvent::BridgeLost(exchange.id),
                        _ => LiveEvent::ExchangeFailed { exchange: exchange.id, failure: Failure::TunnelGone },
                    });
                }
            }
        }
        self.settle(now, &mut events);
        Ok(events.iter().map(|event| format!("{event:?}")).collect())
    }

    fn start(
        &mut self,
        id: ExchangeId,
        kind: ExchangeKind,
        now: Instant,
        events: &mut Vec<LiveEvent>,
    ) -> Result<(), LiveRefusal> {
        let until = match (self.carrier(), self.expected_until) {
            (Some(Carrier::Parking), _) => now + self.rules.queue_time,
            (None, Some(until)) if now < until => until,
            _ => return Err(LiveRefusal::Offline),
        };
        let queued = self.exchanges.iter().filter(|exchange| exchange.phase == Phase::Queued).count();
        if !self.intake_is_free() && queued >= self.rules.queue_limit {
            return Err(LiveRefusal::QueueFull);
        }
        self.exchanges.push(Exchange { id, kind, phase: Phase::Queued, session: None, until: Some(until) });
        if !self.intake_is_free() {
            events.push(LiveEvent::ExchangeQueued(id));
        }
        Ok(())
    }

    fn intake_is_free(&self) -> bool {
        self.sessions.iter().any(|session| session.stage == Stage::Live && !session.intakes.is_empty())
    }

    /// Envelopes go to free intakes, nobody waits for one that cannot come, and sessions
    /// without work end.
    fn settle(&mut self, now: Instant, events: &mut Vec<LiveEvent>) {
        if self.carrier() == Some(Carrier::Open) {
            let failure = Failure::AgentBusy;
            let in_vain = self.exchanges.iter().filter(|exchange| exchange.phase == Phase::Queued);
            events.extend(in_vain.map(|exchange| LiveEvent::ExchangeFailed { exchange: exchange.id, failure }));
            self.exchanges.retain(|exchange| exchange.phase != Phase::Queued);
        }
        while self.intake_is_free() {
            let Some(at) = self.exchanges.iter().position(|exchange| exchange.phase == Phase::Queued) else { break };
            let Some(session) = self.sessions.iter_mut().find(|session| session.stage == Stage::Live) else { break };
            let intake = session.intakes.remove(0);
            let exchange = &mut self.exchanges[at];
            let (phase, time) = match exchange.kind {
                ExchangeKind::Tcp => (Phase::WantsBridge, self.rules.bridge_time),
                _ => (Phase::WithAgent, self.rules.reply_time),
            };
            (exchange.phase, exchange.until, exchange.session) = (phase, Some(now + time), Some(session.id));
            events.push(LiveEvent::EnvelopeAssigned { session: session.id, intake, exchange: exchange.id });
        }
        for at in 0..self.sessions.len() {
            let id = self.sessions[at].id;
            let has_work = self.holds(id) > 0;
            match self.sessions[at].stage {
                Stage::Released(_) if !has_work => self.end(at, EndReason::Drained, events),
                Stage::Superseded(_) if !has_work => self.end(at, EndReason::Superseded, events),
                _ => {}
            }
        }
    }

    fn end(&mut self, at: usize, reason: EndReason, events: &mut Vec<LiveEvent>) {
        let session = &mut self.sessions[at];
        if matches!(session.stage, Stage::Over(_)) {
            return;
        }
        let (id, was_live) = (session.id, session.stage == Stage::Live);
        session.stage = Stage::Over(reason);
        session.intakes.clear();
        events.push(LiveEvent::SessionEnded { session: id, reason });
        if was_live {
            self.went(id, None, events);
        }
    }

    /// Nothing new comes to the session from here on.
    fn let_finish(&mut self, at: usize, ends_at: Instant, events: &mut Vec<LiveEvent>) {
        let session = &mut self.sessions[at];
        session.stage = Stage::Released(ends_at);
        session.intakes.clear();
        if session.kind == SessionKind::Parking {
            events.push(LiveEvent::IntakesReleased(session.id));
        }
    }

    /// What is due, in the order of time.
    fn handle_timeout(&mut self, now: Instant) -> Vec<String> {
        let mut events = Vec::new();
        loop {
            let session_due = |session: &Session| match session.stage {
                Stage::Draining(due, _) | Stage::Released(due) | Stage::Superseded(due) => Some(due),
                Stage::Live | Stage::Over(_) => None,
            };
            let exchange = self.exchanges.iter().filter_map(|e| e.until.map(|until| (until, e.id))).min();
            let session = self.sessions.iter().filter_map(|s| session_due(s).map(|due| (due, s.id))).min();
            match (exchange.filter(|(due, _)| *due <= now), session.filter(|(due, _)| *due <= now)) {
                (Some((due, id)), other) if other.is_none_or(|(later, _)| due <= later) => {
                    self.exchange_is_due(id, &mut events);
                }
                (_, Some((_, id))) => self.session_is_due(id, &mut events),
                _ => break,
            }
            self.settle(now, &mut events);
        }
        events.iter().map(|event| format!("{event:?}")).collect()
    }

    fn exchange_is_due(&mut self, id: ExchangeId, events: &mut Vec<LiveEvent>) {
        let Ok(at) = self.exchange(id) else { return };
        let exchange = self.exchanges.remove(at);
        let failure = match (exchange.phase, exchange.session) {
            (Phase::Queued, _) if self.carrier().is_some() => Failure::AgentBusy,
            (Phase::Queued, _) => Failure::AgentOffline,
            (_, None) => Failure::AgentLost,
            (_, Some(_)) => Failure::AgentTimeout,
        };
        events.push(LiveEvent::ExchangeFailed { exchange: id, failure });
    }

    fn session_is_due(&mut self, id: SessionId, events: &mut Vec<LiveEvent>) {
        let Ok(at) = self.at(id) else { return };
        match self.sessions[at].stage {
            Stage::Draining(_, ends_at) => self.let_finish(at, ends_at, events),
            Stage::Released(_) => self.end(at, EndReason::Drained, events),
            Stage::Superseded(_) => self.end(at, EndReason::Superseded, events),
            Stage::Live | Stage::Over(_) => {}
        }
    }
}

/// May they have the tunnel at the same time?
fn get_along(one: SessionKind, other: SessionKind) -> bool {
    let shares = |kind| matches!(kind, SessionKind::Open { shares: true, .. });
    instance(one).is_some() && (instance(one) == instance(other) || (shares(one) && shares(other)))
}

fn instance(kind: SessionKind) -> Option<InstanceId> {
    match kind {
        SessionKind::Open { instance, .. } => Some(instance),
        SessionKind::Parking => None,
    }
}
