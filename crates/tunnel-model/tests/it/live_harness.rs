//! A plain model of a tunnel's traffic, and the loop that compares it with the
//! real one. Uses the crate's public interface only, so that a fuzz target may
//! include this file too.
//!
//! The plain model keeps vectors, walks them for everything, and is written from
//! what agents and visitors are promised, not from `Live`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tunnel_model::{
    EndReason, ExchangeId, ExchangeKind, Failure, IntakeId, Live, LiveCommand, LiveEvent, LiveRefusal, LiveRules,
    SessionId, SessionKind,
};

/// Decodes commands from `bytes`, gives them to both models, and panics when
/// they differ or an invariant breaks. Answers which events and refusals there
/// were.
pub(crate) fn run(bytes: &[u8]) -> BTreeSet<String> {
    #[expect(clippy::disallowed_methods, reason = "an instant has no other beginning; only differences count")]
    let start = Instant::now();
    let rules = LiveRules { queue_limit: 4, intake_limit: 3, ..LiveRules::new() };
    let mut bytes = bytes.iter().copied();
    let expected_until = bytes.next().filter(|byte| byte % 2 == 1).map(|_| start + Duration::from_secs(3));
    let mut real = Live::new(rules, expected_until);
    let mut plain = Plain::new(rules, expected_until);
    let mut outcomes = BTreeSet::new();
    let mut now = start;
    let mut numbers = Numbers::default();
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
        assert_eq!(real.is_online(), plain.admitted().is_some(), "after {told}");
        assert_eq!(real.exchanges(), plain.exchanges.len(), "after {told}");
        let name = |text: &String| text.split([' ', '(', '{']).next().map(str::to_owned);
        outcomes.extend(due.iter().chain(got.iter().flatten()).filter_map(name));
        outcomes.extend(got.err().map(|refusal| format!("{refusal:?}")));
    }
    outcomes
}

/// Just before, at and after what the rules say, and what lies between.
const STEPS: [u64; 16] = [0, 0, 0, 0, 1, 1, 10, 100, 499, 500, 1_000, 2_000, 4_999, 5_001, 10_000, 35_000];

/// How many there were.
#[derive(Default)]
struct Numbers {
    sessions: u64,
    exchanges: u64,
}

/// Numbers of exchanges are never used twice; commands name one of the last.
fn command(which: u8, first: u8, second: u8, numbers: &mut Numbers) -> LiveCommand {
    let session = SessionId(numbers.sessions.saturating_sub(u64::from(first % 3)));
    let exchange = ExchangeId(numbers.exchanges.saturating_sub(u64::from(second % 6)));
    // The kind follows from the number, so that most bridges are of the right one.
    let kind_of = |number: u64| match number % 3 {
        0 => ExchangeKind::Http,
        1 => ExchangeKind::Tcp,
        _ => ExchangeKind::WebSocket,
    };
    match which {
        0 if first < 200 => {
            numbers.sessions += 1;
            LiveCommand::AdmitSession { session: SessionId(numbers.sessions), kind: SessionKind::Parking }
        }
        0 => LiveCommand::AdmitSession { session, kind: SessionKind::Parking },
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
        12 => LiveCommand::CloseSession { session },
        13 => LiveCommand::ReturnEnvelope { session, exchange },
        14 if first < 40 => LiveCommand::Drain,
        14 if first < 60 => LiveCommand::Revoke,
        14 if first < 130 => LiveCommand::Announce,
        _ => LiveCommand::RevokeSession { session },
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
}

struct Session {
    id: SessionId,
    stage: Stage,
    intakes: Vec<IntakeId>,
    has_news: bool,
}

#[derive(Clone, Copy)]
struct Exchange {
    id: ExchangeId,
    kind: ExchangeKind,
    phase: Phase,
    session: Option<SessionId>,
    until: Option<Instant>,
}

struct Plain {
    rules: LiveRules,
    sessions: Vec<Session>,
    /// In the order of the queue, as far as they are queued.
    exchanges: Vec<Exchange>,
    newest: Option<SessionId>,
    expected_until: Option<Instant>,
}

impl Plain {
    fn new(rules: LiveRules, expected_until: Option<Instant>) -> Self {
        Self { rules, sessions: Vec::new(), exchanges: Vec::new(), newest: None, expected_until }
    }

    fn admitted(&self) -> Option<SessionId> {
        self.sessions.iter().find(|session| session.stage == Stage::Live).map(|session| session.id)
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
            LiveCommand::AdmitSession { session, kind: _ } => {
                if self.newest.is_some_and(|newest| newest >= session) {
                    return Err(LiveRefusal::Superseded);
                }
                self.newest = Some(session);
                for older in &mut self.sessions {
                    if older.stage == Stage::Live {
                        older.stage = Stage::Superseded(now + self.rules.supersede_time);
                    }
                }
                self.sessions.push(Session { id: session, stage: Stage::Live, intakes: Vec::new(), has_news: false });
                self.expected_until = None;
                events.push(LiveEvent::SessionAdmitted(session));
            }
            LiveCommand::ParkIntake { session, intake } => {
                let at = self.at(session)?;
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
                if !self.intake_is_free() {
                    events.push(LiveEvent::ExchangeQueued(exchange));
                }
            }
            LiveCommand::StartExchange { exchange, kind } => {
                self.start(exchange, kind, now, &mut events)?;
            }
            LiveCommand::Reply { session, exchange, accepts } => {
                self.at(session)?;
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
                let at = self.at(session)?;
                if matches!(self.sessions[at].stage, Stage::Over(_)) {
                    return Err(LiveRefusal::UnknownSession);
                }
                let at = self.exchange(exchange)?;
                match self.exchanges[at].phase {
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
                if self.sessions[at].stage == Stage::Live {
                    self.expected_until = Some(now + self.rules.reconnect_time);
                    events.push(LiveEvent::TunnelWentOffline(session));
                }
                self.sessions.remove(at);
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
                if let Some(session) = self.admitted() {
                    let at = self.at(session)?;
                    let ends_at = now + self.rules.drain_time;
                    self.sessions[at].stage = Stage::Draining(now + self.rules.drain_pause, ends_at);
                    self.expected_until = Some(now + self.rules.reconnect_time);
                    events.push(LiveEvent::SessionDrained(session));
                    events.push(LiveEvent::TunnelWentOffline(session));
                }
            }
            LiveCommand::Announce => {
                if let Some(session) = self.sessions.iter_mut().find(|session| session.stage == Stage::Live) {
                    if session.intakes.is_empty() {
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
                    Phase::Bridged | Phase::Replying => LiveEvent::BridgeLost(exchange.id),
                    _ => LiveEvent::ExchangeFailed { exchange: exchange.id, failure: Failure::AgentLost },
                }));
            }
            LiveCommand::OpenExchange { .. } | LiveCommand::LeaveSession { .. } => {
                unreachable!("not among the commands")
            }
            LiveCommand::Revoke => {
                for at in 0..self.sessions.len() {
                    self.end(at, EndReason::Revoked, &mut events);
                }
                self.expected_until = None;
                for exchange in self.exchanges.drain(..) {
                    events.push(match exchange.phase {
                        Phase::Bridged | Phase::Replying => LiveEvent::BridgeLost(exchange.id),
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
        let until = match (self.admitted(), self.expected_until) {
            (Some(_), _) => now + self.rules.queue_time,
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

    /// Envelopes go to free intakes, and sessions without work end.
    fn settle(&mut self, now: Instant, events: &mut Vec<LiveEvent>) {
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
            let has_work = self.exchanges.iter().any(|exchange| exchange.session == Some(id));
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
        events.push(LiveEvent::SessionEnded { session: session.id, reason });
        if session.stage == Stage::Live {
            events.push(LiveEvent::TunnelWentOffline(session.id));
        }
        session.stage = Stage::Over(reason);
        session.intakes.clear();
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
            (Phase::Queued, _) if self.admitted().is_some() => Failure::AgentBusy,
            (Phase::Queued, _) => Failure::AgentOffline,
            (_, None) => Failure::AgentLost,
            (_, Some(_)) => Failure::AgentTimeout,
        };
        events.push(LiveEvent::ExchangeFailed { exchange: id, failure });
    }

    fn session_is_due(&mut self, id: SessionId, events: &mut Vec<LiveEvent>) {
        let Ok(at) = self.at(id) else { return };
        match self.sessions[at].stage {
            Stage::Draining(_, ends_at) => {
                self.sessions[at].stage = Stage::Released(ends_at);
                self.sessions[at].intakes.clear();
                events.push(LiveEvent::IntakesReleased(id));
            }
            Stage::Released(_) => self.end(at, EndReason::Drained, events),
            Stage::Superseded(_) => self.end(at, EndReason::Superseded, events),
            Stage::Live | Stage::Over(_) => {}
        }
    }
}
