//! The data plane: TLS, agents, visitors and the bridges between them.
//!
//! One listener, three roles, told apart by the name in the ClientHello before
//! any TLS ends: the zone's is for agents (HTTP/2) and for REST (HTTP/1.1), that
//! of an edge tunnel for visitors whose TLS ends here, that of a passthrough
//! tunnel for visitors whose TLS ends in the agent. What a tunnel may do is
//! decided by [`tunnel_model::Live`]; the wire to agents is `agent_proto`'s.

pub mod client_hello;
pub mod proxy_protocol;

mod agent;
mod flow;
mod framing;
mod impatient;
mod listener;
mod passthrough;
mod reply;
mod splice;
mod stats;
mod tls;
mod tunnels;
mod visitor;
mod websocket;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use agent_proto::limits::{MAX_BODY, RESPONSE_DEADLINE};
use pki_core::{Authority, Time};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use store::{ExecuteError, Observer, Store};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tunnel_model::{Caller, Command, LiveRules, Refusal, Rules, Timestamp, TunnelId, Zone};

use crate::passthrough::Bridges;
use crate::stats::Counters;
use crate::tls::Certificates;
use crate::tunnels::{Observation, Tunnels};

pub use stats::Stats;

/// What the data plane goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The suffix of every public host, and the name that agents dial.
    pub zone: Zone,
    /// Connections at once, of agents and visitors; more wait in the kernel.
    pub connections: usize,
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
    /// Octets of replies that wait for slow visitors, before agents are slowed.
    pub reply_buffer: usize,
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
}

impl Settings {
    /// The defaults for a zone.
    pub fn new(zone: Zone) -> Self {
        Self {
            zone,
            connections: 16 * 1024,
            hello_time: Duration::from_secs(10),
            proxy_protocol: false,
            response_deadline: RESPONSE_DEADLINE,
            grace: Duration::from_secs(30),
            live: LiveRules::new(),
            agent: AgentLimits {
                stream_window: 8 * 1024 * 1024,
                connection_window: 64 * 1024 * 1024,
                reply_buffer: 2 * MAX_BODY,
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
            },
        }
    }
}

/// A connection on which somebody else speaks HTTP/1.1: REST at the zone's name.
pub type Rest = Arc<dyn Fn(Box<dyn Io>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What a connection can do.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

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
    observed: Arc<Mutex<Option<mpsc::UnboundedReceiver<Observation>>>>,
}

pub(crate) struct Shared {
    settings: Settings,
    store: Arc<dyn Store>,
    tunnels: Arc<Tunnels>,
    bridges: Bridges,
    counters: Counters,
    zone_tls: Arc<ServerConfig>,
    visitor_tls: Arc<ServerConfig>,
    rest: OnceLock<Rest>,
    stopping: watch::Receiver<bool>,
    connections: AtomicUsize,
    /// Octets of request bodies that are held.
    buffered: AtomicUsize,
}

/// One connection's place in the count.
struct Connection {
    shared: Arc<Shared>,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    fn connection(self: &Arc<Self>) -> Connection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connection { shared: Arc::clone(self) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Edge {
    /// A data plane over `store`, whose own certificates `authority` signs.
    ///
    /// From now on it observes the store: what is deleted or revoked there has no
    /// traffic any more when the command is answered.
    ///
    /// # Errors
    ///
    /// When TLS cannot be prepared.
    pub fn new(settings: Settings, store: Arc<dyn Store>, authority: Authority) -> Result<Self, Error> {
        let certificates = Arc::new(Certificates::new(authority, || Time::from_unix(now().micros() / 1_000_000))?);
        let (observer, observed) = mpsc::unbounded_channel();
        let mut prefix = [0; 8];
        getrandom::fill(&mut prefix).map_err(Error::certificate)?;
        let (stop, stopping) = watch::channel(false);
        let tunnels = Arc::new(Tunnels::new(settings.live, u64::from_be_bytes(prefix), observer));
        store.observe(Arc::clone(&tunnels) as Arc<dyn Observer>);
        let shared = Shared {
            tunnels,
            settings,
            store,
            bridges: Bridges::new(),
            counters: Counters::default(),
            zone_tls: tls::server_config(Arc::clone(&certificates), &[b"h2", b"http/1.1"])?,
            visitor_tls: tls::server_config(Arc::clone(&certificates), &[b"h2", b"http/1.1"])?,
            rest: OnceLock::new(),
            stopping,
            connections: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            certificates,
            stop: Arc::new(stop),
            observed: Arc::new(Mutex::new(Some(observed))),
        })
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

    /// Has the tunnel an agent now?
    pub fn is_connected(&self, tunnel: TunnelId) -> bool {
        self.shared.tunnels.is_connected(tunnel)
    }

    /// What is there now, and what there was since the start.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.shared.connections.load(Ordering::Relaxed),
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
        let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let recorder = tokio::spawn(record(Arc::clone(&self.shared), observed));
        listener::accept(listener, &self.shared, stop).await;
        let end = Instant::now() + self.shared.settings.grace;
        self.stop.send_replace(true);
        let shared = &self.shared;
        // First the visitors, while the agents are still there to answer.
        let is_answered = || {
            let answered = shared.tunnels.exchanges() <= shared.bridges.open();
            answered
                && shared.bridges.are_quiet()
                && shared.connections.load(Ordering::Relaxed) <= shared.tunnels.sessions() + shared.bridges.open()
        };
        wait_for(is_answered, end - LEAVE.min(shared.settings.grace)).await;
        shared.tunnels.drain();
        // Bridges that are left would hold up those who wait for the next server.
        wait_for(|| shared.tunnels.sessions() == 0, end.min(Instant::now() + LEAVE)).await;
        if shared.tunnels.exchanges() > 0 {
            tracing::warn!("exchanges were still in flight at the end of the grace period");
        }
        // What the last agents left is written down, if the store still answers.
        wait_for(|| shared.tunnels.unrecorded.load(Ordering::Relaxed) == 0, Instant::now() + LEAVE).await;
        recorder.abort();
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

/// Writes down when agents come and go.
async fn record(shared: Arc<Shared>, observed: Option<mpsc::UnboundedReceiver<Observation>>) {
    // No rule of the control plane applies to what merely happened.
    let rules = Arc::new(Rules::new());
    let Some(mut observed) = observed else { return };
    while let Some(observation) = observed.recv().await {
        let command = match observation {
            Observation::Hello { tunnel, ip } => Command::RecordHello { id: tunnel, ip },
            Observation::Goodbye { tunnel } => Command::RecordGoodbye { id: tunnel },
        };
        match shared.store.execute(Caller::System, command, &rules, now()).await {
            // The tunnel was deleted, and its agent left because of it.
            Ok(_) | Err(ExecuteError::Refused(Refusal::NotFound(_))) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot record that an agent came or left");
            }
        }
        shared.tunnels.unrecorded.fetch_sub(1, Ordering::Relaxed);
    }
}

fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
