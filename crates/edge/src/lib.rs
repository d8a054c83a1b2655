//! The data plane: TLS, agents, visitors and the bridges between them.
//!
//! One listener, three roles, told apart by the name in the ClientHello before
//! any TLS ends: the zone's is for agents (HTTP/2) and for REST (HTTP/1.1), that
//! of an edge tunnel for visitors whose TLS ends here, that of a passthrough
//! tunnel for visitors whose TLS ends in the agent. What a tunnel may do is
//! decided by [`tunnel_model::Live`]; the wire to agents is `agent_proto`'s.

mod ahead;
pub mod client_hello;
pub mod proxy_protocol;

mod heart;
mod link;
mod listener;
mod observations;
mod parked;
mod passthrough;
mod reversed;
mod stats;
mod tls;
mod tunnels;
mod visitor;

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agent_proto::limits::{MAX_BODY, RESPONSE_DEADLINE};
use connections::{Arrival, Budget, Full, Places, Throttle};
use issuance::Issuance;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use store::{Clock, ExecuteError, Observer, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tunnel_model::{Caller, Carrier, Command, LiveRules, Refusal, Rules, TunnelId, Zone};

use crate::ahead::Ahead;
use crate::link::LinkError;
use crate::parked::{Buffered, Names};
use crate::passthrough::Bridges;
use crate::reversed::{Held, Limits};
use crate::stats::Counters;
use crate::tls::Certificates;
use crate::tunnels::{Entry, Tunnels};

pub use connections::{Counts, Kind};
pub use reversed::{Attach, Attached, Busy};
pub use stats::Stats;

/// What the data plane goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The suffix of every public host, and the name that agents dial.
    pub zone: Zone,
    /// Connections at once, and how many of one address.
    pub places: connections::Limits,
    /// From a connection's begin to the end of its ClientHello, of its TLS
    /// handshake, and for an agent of its hello, each.
    pub hello_time: Duration,
    /// Every connection begins with a PROXY protocol header (version 2).
    pub proxy_protocol: bool,
    /// What agents are told that a reply may take; [`LiveRules::reply_time`]
    /// should be longer, so that their own 504 comes first.
    pub response_deadline: Duration,
    /// From the signal to stop to the end.
    pub grace: Duration,
    /// Deadlines and queues of the tunnels.
    pub live: LiveRules,
    /// How long nothing may move either way on an exchange of the native wire.
    pub exchange_idle: Duration,
    /// Limits of agents' connections.
    pub agent: AgentLimits,
    /// Limits of visitors' connections.
    pub visitor: VisitorLimits,
}

/// Limits of one agent's connection.
#[derive(Clone, Copy, Debug)]
pub struct AgentLimits {
    /// Octets that an agent may send ahead on one stream: the more, the faster
    /// over a long path.
    pub stream_window: u32,
    /// Octets that it may send ahead on all streams: the memory that bridges
    /// with slow visitors may take for one agent.
    pub connection_window: u32,
    /// Octets of replies that wait for slow visitors, before the agent is slowed.
    pub reply_buffer: usize,
    /// The same of all agents together.
    pub reply_buffers: usize,
    /// Octets of a WebSocket message to an agent, framed, where the agent takes
    /// more than the Python ones.
    pub max_message: usize,
    /// Octets of a WebSocket message from an agent, as JSON.
    pub max_agent_message: usize,
}

/// Limits of one visitor's connection.
#[derive(Clone, Copy, Debug)]
pub struct VisitorLimits {
    /// For a request's headers, and between two requests over HTTP/1.1.
    pub head: Duration,
    /// Between two parts of a request's body.
    pub body: Duration,
    /// Octets of all visitors' request bodies that are held at once.
    pub buffered: usize,
    /// Without a request over HTTP/2.
    pub idle: Duration,
    /// Between two PINGs over HTTP/2.
    pub keep_alive: Duration,
    /// How long a visitor may take nothing of what is written to it.
    pub stall: Duration,
    /// How long nothing may move on a passthrough connection of which one side
    /// is done.
    pub half_closed: Duration,
    /// How long nothing may move on a WebSocket or a passthrough connection.
    pub quiet: Duration,
}

impl Settings {
    /// The defaults for a zone.
    pub fn new(zone: Zone) -> Self {
        Self {
            zone,
            places: connections::Limits::new(16 * 1024),
            hello_time: Duration::from_secs(10),
            proxy_protocol: false,
            response_deadline: RESPONSE_DEADLINE,
            grace: Duration::from_secs(30),
            live: LiveRules::new(),
            exchange_idle: Duration::from_secs(5 * 60),
            agent: AgentLimits {
                stream_window: 8 * 1024 * 1024,
                connection_window: 64 * 1024 * 1024,
                reply_buffer: 2 * MAX_BODY,
                reply_buffers: 16 * MAX_BODY,
                max_message: 2 * 1024 * 1024,
                max_agent_message: 16 * 1024 * 1024,
            },
            visitor: VisitorLimits {
                head: Duration::from_secs(30),
                body: Duration::from_secs(30),
                buffered: 8 * MAX_BODY,
                idle: Duration::from_secs(60),
                keep_alive: Duration::from_secs(30),
                stall: Duration::from_secs(30),
                half_closed: Duration::from_secs(10),
                quiet: Duration::from_secs(60 * 60),
            },
        }
    }
}

/// Serves a connection on which HTTP/1.1 is spoken: REST at the zone's name.
pub type Rest = Arc<dyn Fn(Arrival) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What shows a certificate to whoever proves that a host is ours (RFC 8737), if that is being done for it.
pub type Challenges = Arc<dyn Fn(&str) -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Why the data plane cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key, a certificate or TLS itself.
    #[error("cannot prepare TLS")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    fn certificate(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Certificate(error.into())
    }
}

/// The data plane of one deployment.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
    certificates: Arc<Certificates>,
    stop: Arc<watch::Sender<bool>>,
}

pub(crate) struct Shared {
    settings: Settings,
    store: Arc<dyn Store>,
    tunnels: Arc<Tunnels>,
    /// How exchanges are called on the wire of the published SDKs.
    names: Names,
    bridges: Bridges,
    counters: Counters,
    zone_tls: Arc<ServerConfig>,
    visitor_tls: Arc<ServerConfig>,
    ahead: Arc<Ahead>,
    rest: OnceLock<Rest>,
    challenges: OnceLock<Challenges>,
    certificates: Arc<Certificates>,
    stopping: watch::Receiver<bool>,
    places: Arc<Places>,
    /// Octets of request bodies that are held.
    bodies: Arc<Budget>,
    /// Octets of replies that wait for visitors.
    replies: Arc<Buffered>,
    /// Answers of the native wire that are coming.
    held: Arc<Held>,
    /// Octets of small replies that visitors over HTTP/2 have not taken.
    answers: Arc<Budget>,
    told: Told,
}

/// The way to an agent, as it speaks.
pub(crate) enum Wire<'a> {
    Parked(parked::Link<'a>),
    Reversed(reversed::Link<'a>),
}

/// When the log was last told of what any peer can cause.
#[derive(Default)]
struct Told {
    headers: Throttle,
    refusals: Throttle,
    agents: Throttle,
}

impl Shared {
    /// The way to a tunnel's agent; waits for one that is on its way back.
    pub(crate) async fn wire(self: &Arc<Self>, entry: Arc<Entry>) -> Result<Wire<'_>, LinkError> {
        Ok(match self.tunnels.carrier(&entry).await? {
            Carrier::Parking => Wire::Parked(parked::Link::new(entry, self)),
            Carrier::Open => Wire::Reversed(reversed::Link::new(entry, self)),
        })
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Says that a peer found no place, once in a while.
    fn refused(&self, ip: IpAddr, full: Full) {
        if let Some(held_back) = self.told.refusals.pass(std::time::Instant::now()) {
            tracing::warn!(%ip, held_back, error = &full as &dyn std::error::Error, "a connection is refused");
        }
    }
}

impl Edge {
    /// A data plane over `store`, which gets its own certificates by `issuance`, for a new key, and goes by
    /// `clock`.
    ///
    /// From now on it observes the store: what is deleted or revoked there has no
    /// traffic any more when the command is answered.
    ///
    /// # Errors
    ///
    /// When TLS cannot be prepared.
    pub fn new(
        settings: Settings,
        store: Arc<dyn Store>,
        issuance: Arc<dyn Issuance>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let key = rcgen::KeyPair::generate().map_err(Error::certificate)?;
        Self::with_key(settings, store, issuance, clock, key)
    }

    /// As [`Self::new`], for a key that outlives this process: certificates that are rare are for it.
    ///
    /// # Errors
    ///
    /// When TLS cannot be prepared.
    pub fn with_key(
        settings: Settings,
        store: Arc<dyn Store>,
        issuance: Arc<dyn Issuance>,
        clock: Arc<dyn Clock>,
        key: rcgen::KeyPair,
    ) -> Result<Self, Error> {
        let certificates = Arc::new(Certificates::new(issuance, Arc::clone(&clock), key));
        let mut prefix = [0; 8];
        getrandom::fill(&mut prefix).map_err(Error::certificate)?;
        let (stop, stopping) = watch::channel(false);
        let tunnels = Arc::new(Tunnels::new(settings.live, settings.visitor.buffered, clock));
        store.observe(Arc::clone(&tunnels) as Arc<dyn Observer>);
        let ahead = Arc::new(Ahead::new(Arc::clone(&certificates), settings.zone.clone()));
        store.observe(Arc::clone(&ahead) as Arc<dyn Observer>);
        let mut places = settings.places.clone();
        places.octets_per_address = (settings.visitor.buffered / 4).max(MAX_BODY);
        let shared = Shared {
            tunnels,
            names: Names::new(u64::from_be_bytes(prefix)),
            places: Places::new(places),
            bodies: Arc::new(Budget::new(settings.visitor.buffered)),
            answers: Arc::new(Budget::new(settings.visitor.buffered)),
            replies: Arc::new(Buffered::new(settings.agent.reply_buffers)),
            held: Arc::default(),
            certificates: Arc::clone(&certificates),
            told: Told::default(),
            settings,
            store,
            bridges: Bridges::new(),
            counters: Counters::default(),
            zone_tls: tls::server_config(Arc::clone(&certificates), &[b"http/1.1", b"h2", b"http/1.0"])?,
            visitor_tls: tls::server_config(Arc::clone(&certificates), &[b"h2", b"http/1.1", b"http/1.0"])?,
            ahead,
            rest: OnceLock::new(),
            challenges: OnceLock::new(),
            stopping,
        };
        Ok(Self { shared: Arc::new(shared), certificates, stop: Arc::new(stop) })
    }

    /// Uses this chain, leaf first, for the names that its leaf covers; the
    /// others get certificates of the authority.
    ///
    /// # Errors
    ///
    /// When chain and key do not belong together.
    pub fn use_certificate(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), Error> {
        self.certificates.configure(chain, key)
    }

    /// Answers connections that prove a host, by tls-alpn-01, with what `challenges` says.
    pub fn answer_challenges(&self, challenges: Challenges) {
        // Told twice, it stays what it was.
        let _ = self.shared.challenges.set(challenges);
    }

    /// Has the tunnel an agent now?
    pub fn is_connected(&self, tunnel: TunnelId) -> bool {
        self.shared.tunnels.is_connected(tunnel)
    }

    /// Has it one whose application brings key and certificate, so that the tunnel needs none?
    pub fn has_own_certificate(&self, tunnel: TunnelId) -> bool {
        self.shared.tunnels.has_own_certificate(tunnel)
    }

    /// Takes in an agent of the native wire, whose credential was checked.
    ///
    /// # Errors
    ///
    /// [`Busy`] when it should come back.
    pub fn attach(&self, attach: Attach) -> Result<Attached, Busy> {
        Attached::new(&self.shared, attach)
    }

    /// What is there now, and what there was since the start.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.shared.places.counts(),
            refused: self.shared.places.refused(),
            unaccepted: self.shared.places.failures(),
            agents: self.shared.tunnels.sessions(),
            exchanges: self.shared.tunnels.exchanges(),
            answered: self.shared.counters.answered(),
            failed: self.shared.counters.failed(),
        }
    }

    /// Serves until `stop` is done; then finishes what is in flight, sends the
    /// agents elsewhere, and returns within [`Settings::grace`]. `rest` serves
    /// HTTP/1.1 at the zone's name.
    pub async fn serve(&self, listener: TcpListener, rest: Option<Rest>, stop: impl Future<Output = ()>) {
        if let Some(rest) = rest {
            // Served twice, it stays what it was.
            let _ = self.shared.rest.set(rest);
        }
        let recorder = tokio::spawn(record(Arc::clone(&self.shared)));
        let shared = &self.shared;
        let (agent, idle) = (&shared.settings.agent, shared.settings.exchange_idle);
        // Several links, and windows that got smaller while it was on its way, are within a tunnel's half.
        let limits = Limits { all: agent.reply_buffers, tunnel: agent.reply_buffers / 2 };
        let keeper = tokio::spawn(Arc::clone(&shared.held).keep(limits, idle, shared.stopping.clone()));
        let ahead = tokio::spawn({
            let ahead = Arc::clone(&shared.ahead);
            async move { ahead.ask().await }
        });
        let is_proxied = shared.settings.proxy_protocol;
        let serve = |socket| listener::serve(socket, Arc::clone(shared));
        connections::accept(&listener, &shared.places, Kind::Stranger, is_proxied, stop, serve).await;
        drop(listener);
        let end = Instant::now() + self.shared.settings.grace;
        self.stop.send_replace(true);
        shared.tunnels.warn();
        // First the visitors, while the agents are still there to answer.
        let is_answered = || {
            let answered = shared.tunnels.exchanges() <= shared.bridges.open();
            answered
                && shared.bridges.are_quiet()
                && shared.places.counts().total() <= shared.tunnels.sessions() + shared.bridges.open()
        };
        wait_for(is_answered, end - LEAVE.min(shared.settings.grace)).await;
        shared.tunnels.drain();
        // Bridges that are left would hold up those who wait for the next server.
        wait_for(|| shared.tunnels.sessions() == 0, end.min(Instant::now() + LEAVE)).await;
        if shared.tunnels.exchanges() > 0 {
            tracing::warn!("exchanges were still in flight at the end of the grace period");
        }
        // Links that came through the API would live as long as its own requests may.
        shared.tunnels.end();
        // What the last agents left is written down, if the store still answers.
        wait_for(|| shared.tunnels.observations.are_recorded(), Instant::now() + LEAVE).await;
        recorder.abort();
        keeper.abort();
        ahead.abort();
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// What agents need to leave, and the store to write that down.
const LEAVE: Duration = Duration::from_secs(2);

async fn wait_for(is_done: impl Fn() -> bool, end: Instant) {
    while !is_done() && Instant::now() < end {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Writes down when agents come and go, for ever.
async fn record(shared: Arc<Shared>) {
    // No rule of the control plane applies to what merely happened.
    let rules = Arc::new(Rules::new());
    loop {
        let (id, observed) = shared.tunnels.observations.next().await;
        let hello = observed.hello.map(|(ip, at)| (Command::RecordHello { id, ip }, at));
        let goodbye = observed.goodbye.map(|at| (Command::RecordGoodbye { id }, at));
        for (command, at) in hello.into_iter().chain(goodbye) {
            match shared.store.execute(Caller::System, command, &rules, at).await {
                // The tunnel was deleted, and its agent left because of it.
                Ok(_) | Err(ExecuteError::Refused(Refusal::NotFound(_))) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot record that an agent came or left"
                    );
                }
            }
        }
        shared.tunnels.observations.recorded();
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
