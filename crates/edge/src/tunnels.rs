//! The tunnels that have traffic, each with its [`Live`] model.
//!
//! The model decides, this file has it carried out: the wires keep the streams and
//! what waits for them, which the model knows by number only. A tunnel's lock spans
//! one command and the events that follow from it, and no `.await`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use agent_proto::limits::MAX_BODY;
use connections::Budget;
use store::{Clock, Observer};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout_at;
use tunnel_model::{
    Carrier, EndReason, Event, ExchangeId, ExchangeKind, Failure, KeyId, Live, LiveCommand, LiveEvent, LiveRefusal,
    LiveRules, SessionId, SessionKind, Status, TlsMode, Tunnel, TunnelId, TunnelName,
};

use crate::observations::Observations;
use crate::{parked, reversed};

/// All tunnels with traffic.
pub(crate) struct Tunnels {
    rules: LiveRules,
    started: Instant,
    /// For what is recorded; what is timed goes by `started`.
    clock: Arc<dyn Clock>,
    maps: RwLock<Maps>,
    next_session: AtomicU64,
    next_exchange: AtomicU64,
    pub(crate) observations: Observations,
    /// Octets of request bodies that may be held for one tunnel.
    bodies_limit: usize,
}

#[derive(Default)]
struct Maps {
    by_id: HashMap<TunnelId, Arc<Entry>>,
    by_name: HashMap<TunnelName, Arc<Entry>>,
}

impl Maps {
    /// The tunnel's name leads elsewhere from here on. Another tunnel may have it by now.
    fn forget_name(&mut self, name: &TunnelName, entry: &Arc<Entry>) {
        if self.by_name.get(name).is_some_and(|found| Arc::ptr_eq(found, entry)) {
            self.by_name.remove(name);
        }
    }
}

/// One tunnel with traffic.
pub(crate) struct Entry {
    pub(crate) id: TunnelId,
    state: Mutex<State>,
    /// Octets of request bodies that are held for it: an agent that takes none of them
    /// leaves room for the others.
    pub(crate) bodies: Arc<Budget>,
    /// The model's next timeout is sooner than it was.
    sooner: Notify,
    /// An agent has come, or will never come.
    arrived: Notify,
    /// Visitors who wait for that.
    waiting: AtomicUsize,
}

pub(crate) struct State {
    tunnel: Tunnel,
    live: Live,
    members: HashMap<SessionId, Member>,
    /// What agents of the published SDKs have open.
    pub(crate) parked: parked::Streams,
    /// The links of agents of the native wire.
    links: HashMap<SessionId, Arc<reversed::Session>>,
    /// Whoever was let in last has a certificate for the tunnel that is none of ours.
    own_certificate: bool,
    /// When the timer task wakes up, unless it is told to do so sooner.
    wakes_at: Option<Instant>,
    /// Out of the maps: whoever holds it must look again.
    pub(crate) is_removed: bool,
}

/// Who has a session.
pub(crate) struct Member {
    pub(crate) ip: IpAddr,
    /// The API key that it came with, if it was one.
    pub(crate) key: Option<KeyId>,
    /// Its application has key and certificate for the tunnel, whatever the tunnel has.
    pub(crate) own_certificate: bool,
    pub(crate) signals: mpsc::Sender<Signal>,
}

/// What a session's connection is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Signal {
    /// For a planned restart.
    GoElsewhere,
    /// The tunnel is not what it was.
    LookAgain,
    /// Another agent has taken the tunnel over: this one is to stop, when it is done.
    Superseded,
    /// The connection ends, for this reason.
    End(EndReason),
}

/// What a session is made of.
pub(crate) enum Connected {
    /// An agent of the published SDKs.
    Parking(Arc<parked::Connection>),
    /// An agent of the native wire.
    Link(Arc<reversed::Session>, SessionKind),
}

/// One visitor's exchange. Dropped, it is over for the model too.
pub(crate) struct Ticket {
    pub(crate) entry: Arc<Entry>,
    tunnels: Arc<Tunnels>,
    exchange: ExchangeId,
}

impl Tunnels {
    /// Nothing has traffic yet. Of `buffered` octets of bodies, one tunnel may have half.
    pub(crate) fn new(rules: LiveRules, buffered: usize, clock: Arc<dyn Clock>) -> Self {
        Self {
            rules,
            started: Instant::now(),
            clock,
            maps: RwLock::default(),
            next_session: AtomicU64::new(1),
            next_exchange: AtomicU64::new(1),
            observations: Observations::default(),
            bodies_limit: (buffered / 2).max(MAX_BODY),
        }
    }

    /// A number for a session whose hello has just come.
    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// A number for a visitor's exchange.
    pub(crate) fn next_exchange(&self) -> ExchangeId {
        ExchangeId(self.next_exchange.fetch_add(1, Ordering::Relaxed))
    }

    /// A tunnel with traffic, by its label.
    pub(crate) fn by_name(&self, name: &TunnelName) -> Option<Arc<Entry>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    pub(crate) fn is_connected(&self, tunnel: TunnelId) -> bool {
        let entry = self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&tunnel).cloned();
        entry.is_some_and(|entry| entry.state().live.is_online())
    }

    /// Is an agent there whose application has its own certificate?
    pub(crate) fn has_own_certificate(&self, tunnel: TunnelId) -> bool {
        let entry = self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&tunnel).cloned();
        entry.is_some_and(|entry| {
            let state = entry.state();
            state.own_certificate && state.live.is_online()
        })
    }

    /// Exchanges that have not ended, over all tunnels.
    pub(crate) fn exchanges(&self) -> usize {
        self.entries().iter().map(|entry| entry.state().live.exchanges()).sum()
    }

    /// Sessions whose connection is there, over all tunnels.
    pub(crate) fn sessions(&self) -> usize {
        self.entries().iter().map(|entry| entry.state().members.len()).sum()
    }

    /// Lets an agent in: its session is the tunnel's one from now on.
    pub(crate) fn admit(
        self: &Arc<Self>,
        tunnel: &Tunnel,
        session: SessionId,
        member: Member,
        connected: Connected,
    ) -> Result<Arc<Entry>, LiveRefusal> {
        let kind = match connected {
            Connected::Parking(_) => SessionKind::Parking,
            Connected::Link(_, kind) => kind,
        };
        let mut admission = Some((member, connected));
        loop {
            let entry = self.entry(tunnel);
            let mut state = entry.state();
            if state.is_removed {
                continue;
            }
            if let Some((member, connected)) = admission.take() {
                state.members.insert(session, member);
                match connected {
                    Connected::Parking(connection) => state.parked.admit(session, connection),
                    Connected::Link(link, _) => drop(state.links.insert(session, link)),
                }
            }
            let admitted = self.handle(&entry, &mut state, LiveCommand::AdmitSession { session, kind });
            if let Err(refusal) = admitted {
                state.remove(session);
                return Err(refusal);
            }
            drop(state);
            return Ok(entry);
        }
    }

    /// An agent was let in, and its link is about to begin: visitors who come before that wait
    /// for it.
    pub(crate) fn expect(self: &Arc<Self>, tunnel: &Tunnel, own_certificate: bool) {
        let entry = self.entry(tunnel);
        let mut state = entry.state();
        // One that is removed in this moment has no visitors: they ask the store.
        state.own_certificate |= own_certificate && !state.live.is_online();
        // Never refused.
        let _ = self.handle(&entry, &mut state, LiveCommand::ExpectSession);
    }

    /// Begins an exchange that is in its place.
    pub(crate) fn begin(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        state: &mut State,
        exchange: ExchangeId,
        kind: ExchangeKind,
    ) -> Result<Ticket, LiveRefusal> {
        self.handle(entry, state, LiveCommand::StartExchange { exchange, kind })?;
        Ok(Ticket { entry: Arc::clone(entry), tunnels: Arc::clone(self), exchange })
    }

    /// Begins an exchange on the link that has the fewest.
    pub(crate) fn open(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<(Ticket, Arc<reversed::Session>), LiveRefusal> {
        let exchange = self.next_exchange();
        let mut state = entry.state();
        if state.is_removed {
            return Err(LiveRefusal::Offline);
        }
        let events = state.live.handle(LiveCommand::OpenExchange { exchange }, Instant::now())?;
        let session = events.into_iter().find_map(|event| match event {
            LiveEvent::ExchangeOpened { session, .. } => Some(session),
            _ => None,
        });
        let link = session.and_then(|session| state.links.get(&session).cloned());
        drop(state);
        let ticket = Ticket { entry: Arc::clone(entry), tunnels: Arc::clone(self), exchange };
        link.map(|link| (ticket, link)).ok_or(LiveRefusal::UnknownSession)
    }

    /// Nothing new goes to a session.
    pub(crate) fn leave(&self, entry: &Arc<Entry>, session: SessionId) {
        let mut state = entry.state();
        // Refused for one that has gone.
        let _ = self.handle(entry, &mut state, LiveCommand::LeaveSession { session });
    }

    /// How visitors' exchanges are carried; waits for an agent that is on its way back.
    ///
    /// # Errors
    ///
    /// When there is none, or too many wait already.
    pub(crate) async fn carrier(&self, entry: &Entry) -> Result<Carrier, Failure> {
        loop {
            let mut arrived = std::pin::pin!(entry.arrived.notified());
            // Heard from here on, so that nothing is missed between look and wait.
            arrived.as_mut().enable();
            let expected_until = {
                let state = entry.state();
                if state.is_removed {
                    return Err(Failure::AgentOffline);
                }
                if let Some(carrier) = state.live.carrier() {
                    return Ok(carrier);
                }
                state.live.expected_until()
            };
            let expected_until = expected_until.filter(|until| Instant::now() < *until).ok_or(Failure::AgentOffline)?;
            let waits = Waits::of(&entry.waiting, self.rules.queue_limit).ok_or(Failure::AgentBusy)?;
            // Either way it is looked at again.
            let _ = timeout_at(expected_until.into(), arrived).await;
            drop(waits);
        }
    }

    /// The tunnel's entry if it has traffic, or an agent that was there lately
    /// is on its way back.
    pub(crate) fn entry_for_visitor(self: &Arc<Self>, tunnel: &Tunnel) -> Option<Arc<Entry>> {
        self.is_expected(tunnel).then(|| self.entry(tunnel))
    }

    /// The connection of a session is gone.
    pub(crate) fn close_session(&self, entry: &Arc<Entry>, session: SessionId) {
        let mut state = entry.state();
        // Refused only for a session that was never admitted.
        let _ = self.handle(entry, &mut state, LiveCommand::CloseSession { session });
        state.remove(session);
        drop(state);
        // The timer task looks whether the entry is of use any more.
        entry.sooner.notify_one();
    }

    /// Ends what a tunnel has: it was deleted, or is not what it was at hello.
    pub(crate) fn revoke(&self, tunnel: TunnelId) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = maps.by_id.remove(&tunnel) else { return };
        let mut state = entry.state();
        maps.forget_name(&state.tunnel.name, &entry);
        drop(maps);
        state.is_removed = true;
        // Never refused.
        let _ = self.handle(&entry, &mut state, LiveCommand::Revoke);
        drop(state);
        entry.sooner.notify_one();
        entry.arrived.notify_waiters();
    }

    /// Tells the agents that can have two links at once to make the next one, while this
    /// one goes on.
    pub(crate) fn warn(&self) {
        for entry in self.entries() {
            let state = entry.state();
            state.links.keys().for_each(|session| state.signal(*session, Signal::GoElsewhere));
        }
    }

    /// Tells every agent to go elsewhere.
    pub(crate) fn drain(&self) {
        for entry in self.entries() {
            let mut state = entry.state();
            // Never refused.
            let _ = self.handle(&entry, &mut state, LiveCommand::Drain);
        }
    }

    /// Ends what is left, when the time of a stop is over.
    pub(crate) fn end(&self) {
        for entry in self.entries() {
            let state = entry.state();
            state.members.keys().for_each(|session| state.signal(*session, Signal::End(EndReason::Drained)));
        }
    }

    fn revoke_key(&self, key: KeyId) {
        for entry in self.entries() {
            let mut state = entry.state();
            let sessions: Vec<SessionId> =
                state.members.iter().filter(|(_, member)| member.key == Some(key)).map(|(id, _)| *id).collect();
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
            maps.forget_name(&state.tunnel.name, &entry);
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
                members: HashMap::new(),
                parked: parked::Streams::default(),
                links: HashMap::new(),
                own_certificate: false,
                wakes_at: None,
                is_removed: false,
            }),
            bodies: Arc::new(Budget::new(self.bodies_limit)),
            sooner: Notify::new(),
            arrived: Notify::new(),
            waiting: AtomicUsize::new(0),
        });
        maps.by_id.insert(tunnel.id, Arc::clone(&entry));
        // Who is there already hears of every new name; what an agent was let in with may be older.
        maps.by_name.entry(tunnel.name.clone()).or_insert_with(|| Arc::clone(&entry));
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
                if state.is_removed && state.members.is_empty() {
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
        if state.is_removed || !state.members.is_empty() || !state.live.is_idle(Instant::now()) {
            return;
        }
        state.is_removed = true;
        maps.by_id.remove(&entry.id);
        maps.forget_name(&state.tunnel.name, entry);
    }

    pub(crate) fn handle(
        &self,
        entry: &Arc<Entry>,
        state: &mut State,
        command: LiveCommand,
    ) -> Result<(), LiveRefusal> {
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
                    if !state.parked.deliver(session, intake, exchange) {
                        // Refused only if the exchange has ended meanwhile.
                        let _ = self.handle(entry, state, LiveCommand::ReturnEnvelope { session, exchange });
                    }
                }
                LiveEvent::TunnelAnnounced { session, intake } => {
                    if !state.parked.announce(session, intake) {
                        // The next intake tells it. Never refused.
                        let _ = self.handle(entry, state, LiveCommand::Announce);
                    }
                }
                LiveEvent::ExchangeFailed { exchange, failure } => state.parked.fail(exchange, failure),
                LiveEvent::BridgeLost(exchange) => state.parked.forget(exchange),
                LiveEvent::SessionDrained(session) => state.signal(session, Signal::GoElsewhere),
                LiveEvent::IntakesReleased(session) => state.parked.release(session, EndReason::Drained),
                LiveEvent::SessionEnded { session, reason } => {
                    state.parked.release(session, reason);
                    state.signal(session, Signal::End(reason));
                }
                LiveEvent::SessionAdmitted(session) => {
                    if let Some(member) = state.members.get(&session) {
                        state.own_certificate = member.own_certificate;
                        self.observations.hello(entry.id, member.ip, self.clock.now());
                    }
                    entry.arrived.notify_waiters();
                }
                LiveEvent::TunnelWentOffline(_) => self.observations.goodbye(entry.id, self.clock.now()),
                LiveEvent::ExchangeQueued(_)
                | LiveEvent::ReplyAccepted(_)
                | LiveEvent::BridgeOpened(_)
                // No session is open as yet.
                // Whoever opens one sees to it.
                | LiveEvent::ExchangeOpened { .. } => {}
                LiveEvent::SessionSuperseded(session) => state.signal(session, Signal::Superseded),
                LiveEvent::SessionAnnounced(session) => state.signal(session, Signal::LookAgain),
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
                | Event::CertificateIssued(tunnel, _)
                | Event::TunnelUpdated(tunnel) => self.update(tunnel),
                Event::KeyRevoked(key) => self.revoke_key(key.id),
                _ => {}
            }
        }
    }
}

impl Entry {
    /// Who terminates its TLS?
    pub(crate) fn mode(&self) -> TlsMode {
        self.state().tunnel.tls_mode
    }

    /// Is there a certificate for its name, ours or the application's own?
    pub(crate) fn is_routable(&self) -> bool {
        let state = self.state();
        state.tunnel.status == Status::Active || (state.tunnel.status == Status::AwaitingCert && state.own_certificate)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, session: SessionId) {
        self.members.remove(&session);
        self.links.remove(&session);
        self.parked.remove(session);
    }

    fn signal(&self, session: SessionId, signal: Signal) {
        if let Some(member) = self.members.get(&session) {
            // Without a receiver the connection has ended by itself.
            let _ = member.signals.try_send(signal);
        }
    }
}

/// A visitor who waits for an agent.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    /// One more, if there are not too many.
    fn of(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let waits = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < limit).then_some(waits)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.entry.state();
        state.parked.forget(self.exchange);
        // Refused if it has ended in the meantime.
        let _ = self.tunnels.handle(&self.entry, &mut state, LiveCommand::EndExchange { exchange: self.exchange });
    }
}
