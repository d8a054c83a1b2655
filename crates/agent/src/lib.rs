//! Puts a local application behind a public name.
//!
//! An [`Agent`] dials the edge of an Adit server, attaches to its tunnel and
//! serves what visitors send: to a URL on this machine, or to a service in this
//! process. In passthrough mode TLS ends here, with a key that never leaves.
//!
//! ```no_run
//! use agent::{Agent, Credential, Rest, Trust, Upstream};
//!
//! # async fn example() -> Result<(), agent::Error> {
//! let trust = Trust::from_file("adit-data/ca/root.crt".as_ref())?;
//! let key = Credential::ApiKey(std::env::var("ADIT_API_KEY").unwrap_or_default());
//! let rest = Rest::new("https://tunnels.example".parse().expect("a URL"), key, Some(trust))?;
//! let upstream = Upstream::url(&"http://127.0.0.1:3000".parse().expect("a URL"), None)?;
//! Agent::new(rest, "my-agent", upstream).run(|event| println!("{event:?}")).await
//! # }
//! ```

mod bridge;
mod certificate;
mod dial;
mod exchange;
mod outbound;
mod passthrough;
mod rest;
mod server;
mod session;
mod tls;
mod upstream;
mod websocket;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub use agent_proto::Credential;
pub use dial::Proxies;
pub use rest::{Rest, Tunnel};
pub use tls::Trust;
pub use upstream::{AgentBody, Upstream};

use crate::certificate::Certificate;
use crate::dial::Address;
use crate::session::{End, Session};

/// Serves one tunnel.
#[derive(Debug)]
pub struct Agent {
    rest: Rest,
    name: String,
    upstream: Upstream,
    edge: Option<(String, u16)>,
    state: Option<PathBuf>,
    credential: Option<Credential>,
    connections: u8,
    settings: Settings,
}

/// How the agent serves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    shares: bool,
    response_deadline: Option<Duration>,
    host: HostHeader,
    request_headers: Vec<(HeaderName, HeaderValue)>,
    response_headers: Vec<(HeaderName, HeaderValue)>,
}

/// What the application sees as `Host`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum HostHeader {
    /// What visitors call. The application makes its links of it.
    Preserve,
    /// Its own name, as it is dialled. Redirects to that are rewritten for the visitor.
    #[default]
    Rewrite,
    /// This one.
    Value(HeaderValue),
}

/// What the agent did, for whoever watches.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A new certificate is in use.
    CertificateRenewed {
        /// The end of its validity.
        not_after: SystemTime,
    },
    /// Visitors reach the application.
    Connected {
        /// What they call; with the edge's port, if it is not 443.
        url: String,
        /// Who terminates TLS: `edge` or `passthrough`.
        tls_mode: String,
    },
    /// The edge is being dialled.
    Connecting,
    /// The edge restarts: another session takes over.
    Draining,
    /// The connection is lost; the next attempt comes after `delay`.
    Reconnecting {
        /// How long the agent waits.
        delay: Duration,
        /// What happened.
        error: String,
    },
    /// A certificate could not be renewed, or a tunnel not be looked up again; it is tried
    /// again in a minute. Or the clock is wrong, and renewing would not help.
    RenewalFailed {
        /// What happened.
        error: String,
    },
    /// A visitor's connection to an application that ends TLS itself is over.
    Relayed {
        /// How long it was there.
        micros: u64,
    },
    /// A visitor was answered.
    Served {
        /// The request's method.
        method: Method,
        /// Its path and query.
        path: String,
        /// The status of the answer.
        status: StatusCode,
        /// How long it took.
        micros: u64,
    },
    /// The application could not be asked.
    UpstreamFailed {
        /// What happened.
        error: String,
    },
}

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// JSON of another shape.
    #[error("the server's answer is not what was expected")]
    Answer(#[source] serde_json::Error),
    /// The edge does not let this agent attach now.
    #[error("the edge does not let the agent attach: {0}")]
    Attach(String),
    /// No certificate could be made or used.
    #[error("cannot use the certificate")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// TCP or TLS.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The edge does not let this agent in, now or later.
    #[error("the edge refuses the agent: {status}, {reason}")]
    Denied {
        /// 401 or 403.
        status: StatusCode,
        /// The edge's word for it.
        reason: String,
    },
    /// HTTP/2 broke.
    #[error("the connection to the edge broke")]
    Http2(#[from] h2::Error),
    /// A value that fits no header field or URI.
    #[error("a value does not fit HTTP")]
    Http(#[from] http::Error),
    /// Half an answer, or more of it than anybody needs.
    #[error("the answer broke off, or is larger than 16 MiB")]
    Cut,
    /// HTTP/1.1 broke.
    #[error("HTTP failed")]
    Hyper(#[from] hyper::Error),
    /// There is no place for key and certificate.
    #[error("neither HOME nor XDG_STATE_HOME is set: say where to keep the tunnel's key (--state-dir)")]
    NoHome,
    /// No tunnel of this name is there for this key.
    #[error("there is no tunnel {0:?} that this key may see: create it first")]
    NoTunnel(String),
    /// The server, or a proxy before it, says no.
    #[error("the server answered {status}: {detail}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its words.
        detail: String,
        /// Is it a problem document of an Adit server?
        is_ours: bool,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// The server's URL cannot be used.
    #[error("{0}")]
    Server(&'static str),
    /// Something took too long.
    #[error("{0} did not come in time")]
    Slow(&'static str),
    /// A file of the agent's state.
    #[error("cannot use {}", path.display())]
    State {
        /// Which file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The edge is older than the wire that this agent speaks.
    #[error("the server is older than this agent and does not know how it attaches: update the server")]
    TooOld,
    /// Another agent has taken the tunnel over.
    #[error("another agent has taken the tunnel over")]
    Superseded,
    /// No trust anchors.
    #[error("cannot tell whom to trust")]
    Trust(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The application's URL cannot be used.
    #[error("{0}")]
    Upstream(&'static str),
}

impl Error {
    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Is it an answer of the application whose head is too large?
    fn is_too_large(&self) -> bool {
        matches!(self, Self::Hyper(error) if error.is_parse_too_large())
    }

    /// Would another attempt fail the same way?
    pub fn is_final(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::NoTunnel(_) | Self::Superseded | Self::Server(_) | Self::Trust(_) => true,
            Self::Upstream(_) | Self::State { .. } | Self::Http(_) | Self::NoHome => true,
            // What else a server says passes, and so does whatever a proxy says.
            Self::Refused { status, is_ours, .. } => {
                *is_ours && matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            }
            _ => false,
        }
    }

    /// How long to wait at least before the next attempt.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => retry_after.map(|time| time.min(LONGEST_DELAY)),
            _ => None,
        }
    }

    /// Does an Adit server say that there is no such thing?
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, is_ours: true, .. })
    }

    /// Would a tunnel have to be looked at again?
    fn is_not_active(&self) -> bool {
        matches!(self, Self::Denied { reason, .. } if reason == NOT_ACTIVE)
    }
}

/// What all parts of a running agent share.
pub(crate) struct Shared {
    rest: Rest,
    /// As it was when it was last looked up: an identity's tunnel can get another name.
    tunnel: RwLock<Arc<Tunnel>>,
    /// Where the edge is dialled.
    edge: (String, u16),
    credential: Credential,
    upstream: Upstream,
    /// Places for visitors of a passthrough tunnel.
    visitors: Arc<Semaphore>,
    /// When it was last told that there are none.
    full: Mutex<Option<Instant>>,
    certificate: Option<Certificate>,
    settings: Settings,
    /// This process, for the edge.
    instance: u128,
    /// Told when the tunnel is to be looked up again.
    changed: Notify,
    stop: watch::Sender<bool>,
    in_flight: AtomicUsize,
    observer: Box<dyn Fn(Event) + Send + Sync>,
}

impl Shared {
    fn tell(&self, event: Event) {
        (self.observer)(event);
    }

    fn tunnel(&self) -> Arc<Tunnel> {
        Arc::clone(&self.tunnel.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks the tunnel up again whenever somebody says that it has changed.
    async fn follow(&self) {
        loop {
            self.changed.notified().await;
            let mut delay = FIRST_DELAY;
            while let Err(error) = self.look_again().await {
                // After a restart the API may come later than the edge: that is nothing to
                // be told. What is final the edge says, too, to the session.
                if error.is_final() || delay >= LAST_DELAY {
                    self.tell(Event::RenewalFailed { error: error.chain() });
                }
                if error.is_final() {
                    break;
                }
                sleep(jitter(delay).max(error.retry_after().unwrap_or_default())).await;
                delay = (delay * 2).min(certificate::RETRY);
            }
        }
    }

    /// Looks the tunnel up again. A new name has a new certificate signed.
    async fn look_again(&self) -> Result<(), Error> {
        let before = self.tunnel();
        let tunnel = Arc::new(self.rest.tunnel_of(before.id).await?);
        if tunnel.status == "delete_pending" {
            return Err(Error::Denied { status: StatusCode::FORBIDDEN, reason: NOT_ACTIVE.to_owned() });
        }
        let is_renamed = tunnel.public_host != before.public_host;
        if let Some(certificate) = self.certificate.as_ref().filter(|_| is_renamed || tunnel.status != "active") {
            certificate.renew(&self.rest, &tunnel).await?;
        }
        *self.tunnel.write().unwrap_or_else(PoisonError::into_inner) = tunnel;
        if is_renamed {
            self.tell_connected();
        }
        Ok(())
    }

    /// There is no place for a visitor: says so, once in a while.
    fn tell_full(&self) {
        const PAUSE: Duration = Duration::from_secs(10);
        let mut told = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= PAUSE) {
            *told = Some(Instant::now());
            tracing::warn!("{MAX_VISITORS} visitors are connected: more are turned away");
        }
    }

    fn tell_connected(&self) {
        let url = format!("https://{}/", self.public_authority());
        self.tell(Event::Connected { url, tls_mode: self.tunnel().tls_mode.clone() });
    }

    /// What visitors call: the public host, with the edge's port if it is not 443.
    fn public_authority(&self) -> String {
        let host = &self.tunnel().public_host;
        match self.edge.1 {
            443 => host.clone(),
            port => format!("{host}:{port}"),
        }
    }

    /// Returns when the agent is to stop.
    async fn stopped(&self) {
        // The sender lives as long as we do.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}

/// One exchange that is not finished.
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    place: Option<OwnedSemaphorePermit>,
}

impl InFlight {
    fn of(shared: &Arc<Shared>) -> Self {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), place: None }
    }

    /// A visitor's connection; none if there are too many.
    fn visitor(shared: &Arc<Shared>) -> Option<Self> {
        let place = Arc::clone(&shared.visitors).try_acquire_owned().ok()?;
        let mut in_flight = Self::of(shared);
        in_flight.place = Some(place);
        Some(in_flight)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        drop(self.place.take());
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections of visitors to a passthrough tunnel at once: with 64 KiB or so for each,
/// what a small machine has.
const MAX_VISITORS: usize = 4096;
/// The first delay before another attempt, and the longest.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LAST_DELAY: Duration = Duration::from_secs(30);
/// The same while the edge restarts.
const HANDOFF_DELAY: Duration = Duration::from_millis(100);
/// The longest that a server can ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);
/// What the edge calls a tunnel that is deleted, or has no certificate for its name.
const NOT_ACTIVE: &str = "tunnel-not-active";
/// For an application that ends TLS itself.
const NEEDS_PASSTHROUGH: &str = "a tls:// application needs a tunnel in passthrough mode: visitors' TLS of others ends at \
                                 the edge";
/// How long what is in progress may take after the signal to stop.
const FINISH: Duration = Duration::from_secs(10);
/// A session that served for so long begins with [`FIRST_DELAY`] again.
const SERVED: Duration = Duration::from_secs(5);

impl Agent {
    /// An agent for the tunnel `name`, whose visitors `upstream` answers.
    pub fn new(rest: Rest, name: impl Into<String>, upstream: Upstream) -> Self {
        let settings = Settings::default();
        Self { rest, name: name.into(), upstream, edge: None, state: None, credential: None, connections: 1, settings }
    }

    /// Dials the edge at this host and port instead of the zone's port 443. TLS
    /// still verifies the zone.
    #[must_use]
    pub fn edge(self, host: impl Into<String>, port: u16) -> Self {
        Self { edge: Some((host.into(), port)), ..self }
    }

    /// Keeps key and certificate of a passthrough tunnel here, instead of
    /// `~/.local/state/adit/NAME`.
    #[must_use]
    pub fn state_directory(self, path: impl Into<PathBuf>) -> Self {
        Self { state: Some(path.into()), ..self }
    }

    /// Keeps so many connections to the edge, 1 to 16: while one is cut, the others serve.
    #[must_use]
    pub fn connections(self, connections: u8) -> Self {
        Self { connections: connections.clamp(1, 16), ..self }
    }

    /// Lets other agents that say so, too, serve the tunnel beside this one, instead of
    /// one taking it over from the other.
    #[must_use]
    pub fn share(mut self, shares: bool) -> Self {
        self.settings.shares = shares;
        self
    }

    /// How long the application may take to begin an answer, a second to an hour, instead
    /// of the server's setting.
    #[must_use]
    pub fn response_deadline(mut self, deadline: Duration) -> Self {
        self.settings.response_deadline = Some(deadline.clamp(Duration::from_secs(1), Duration::from_secs(3600)));
        self
    }

    /// What the application sees as `Host`.
    #[must_use]
    pub fn host_header(mut self, host: HostHeader) -> Self {
        self.settings.host = host;
        self
    }

    /// Sets a field of every request to the application.
    #[must_use]
    pub fn request_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.settings.request_headers.push((name, value));
        self
    }

    /// Sets a field of every answer to visitors.
    #[must_use]
    pub fn response_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.settings.response_headers.push((name, value));
        self
    }

    /// Proves itself to the edge with this, instead of the control plane's key:
    /// for tunnels with a connect secret.
    #[must_use]
    pub fn credential(self, credential: Credential) -> Self {
        Self { credential: Some(credential), ..self }
    }

    /// Serves until another agent takes the tunnel over or the edge refuses
    /// this one for good; what passes is tried again. The observer is called where visitors
    /// are served: it must not wait.
    ///
    /// # Errors
    ///
    /// Always: there is no other end. Dropping the future stops the agent at once.
    pub async fn run(self, observer: impl Fn(Event) + Send + Sync + 'static) -> Result<(), Error> {
        self.run_until(observer, std::future::pending()).await
    }

    /// The same, until `stop` is done: then nothing new is taken, and what is in
    /// progress is finished, for up to ten seconds.
    ///
    /// # Errors
    ///
    /// For every end but that by `stop`.
    pub async fn run_until(
        self,
        observer: impl Fn(Event) + Send + Sync + 'static,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let mut stop = std::pin::pin!(stop);
        let prepared = tokio::select! {
            prepared = self.prepare(Box::new(observer)) => prepared,
            () = stop.as_mut() => return Ok(()),
        };
        let shared = Arc::new(prepared?);
        let ended = {
            let mut serving = std::pin::pin!(self.serve(Arc::clone(&shared)));
            tokio::select! {
                ended = serving.as_mut() => ended,
                () = stop => {
                    shared.stop.send_replace(true);
                    tokio::time::timeout(FINISH, serving).await.unwrap_or(Ok(()))
                }
            }
        };
        // Streams that are open are written to the end by tasks of their own.
        let end = Instant::now() + FINISH;
        let is_orderly = matches!(ended, Ok(()) | Err(Error::Superseded));
        while is_orderly && shared.in_flight.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            sleep(Duration::from_millis(10)).await;
        }
        ended
    }

    async fn serve(&self, shared: Arc<Shared>) -> Result<(), Error> {
        let sessions = async {
            let mut lanes = JoinSet::new();
            for lane in 0..self.connections {
                lanes.spawn(serve(Arc::clone(&shared), lane == 0));
            }
            while let Some(ended) = lanes.join_next().await {
                // What is final for one is so for all, and whoever panics has ended.
                ended.unwrap_or(Ok(()))?;
            }
            Ok(())
        };
        let fresh = async {
            match &shared.certificate {
                Some(certificate) => {
                    certificate.keep_fresh(&shared.rest, || shared.tunnel(), |event| shared.tell(event)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = sessions => ended,
            () = fresh => Ok(()),
            () = shared.follow() => Ok(()),
        }
    }

    /// Everything that comes before the first session, tried until it works or
    /// cannot work.
    async fn prepare(&self, observer: Box<dyn Fn(Event) + Send + Sync>) -> Result<Shared, Error> {
        let mut delay = FIRST_DELAY;
        loop {
            let error = match self.look_up().await {
                Ok((tunnel, certificate)) => {
                    return Ok(Shared {
                        rest: self.rest.clone(),
                        edge: self.edge.clone().unwrap_or_else(|| edge_address(&self.rest, &tunnel)),
                        tunnel: RwLock::new(Arc::new(tunnel)),
                        visitors: Arc::new(Semaphore::new(MAX_VISITORS)),
                        full: Mutex::default(),
                        credential: self.credential.clone().unwrap_or_else(|| self.rest.credential().clone()),
                        upstream: self.upstream.clone(),
                        certificate,
                        settings: self.settings.clone(),
                        instance: instance()?,
                        changed: Notify::new(),
                        stop: watch::Sender::new(false),
                        in_flight: AtomicUsize::new(0),
                        observer,
                    });
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => error,
            };
            let wait = delay.max(error.retry_after().unwrap_or_default());
            observer(Event::Reconnecting { delay: wait, error: error.chain() });
            sleep(wait).await;
            delay = (delay * 2).min(LAST_DELAY);
        }
    }

    async fn look_up(&self) -> Result<(Tunnel, Option<Certificate>), Error> {
        let tunnel = self.rest.tunnel(&self.name).await?;
        let certificate = match tunnel.tls_mode.as_str() {
            "passthrough" if tunnel.status == "delete_pending" => {
                return Err(Error::Denied { status: StatusCode::FORBIDDEN, reason: NOT_ACTIVE.to_owned() });
            }
            "passthrough" if self.upstream.is_raw() => None,
            _ if self.upstream.is_raw() => return Err(Error::Upstream(NEEDS_PASSTHROUGH)),
            "passthrough" => {
                let directory = self.state.clone().or_else(|| certificate::default_directory(&self.name));
                let directory = directory.ok_or(Error::NoHome)?;
                Some(Certificate::open(directory, &self.rest, &tunnel).await?)
            }
            _ => None,
        };
        Ok((tunnel, certificate))
    }
}

/// Where the data plane is, if nobody said.
fn edge_address(rest: &Rest, tunnel: &Tunnel) -> (String, u16) {
    // A server that runs with its defaults on this machine.
    const LOCAL_PORT: u16 = 4443;
    let port = if dial::is_localhost(&tunnel.zone) { LOCAL_PORT } else { 443 };
    rest.edge_address().unwrap_or_else(|| (tunnel.zone.clone(), port))
}

/// One session after the other; during a restart of the edge, two at once. Only the first
/// lane tells of what it does.
async fn serve(shared: Arc<Shared>, is_first: bool) -> Result<(), Error> {
    let tell = |event| {
        if is_first {
            shared.tell(event);
        }
    };
    let zone = shared.tunnel().zone.clone();
    let (host, port) = shared.edge.clone();
    let trust = shared.rest.trust().cloned().map_or_else(Trust::of_system, Ok)?;
    let (mut delay, mut is_handoff) = (FIRST_DELAY, false);
    let (mut has_served, mut has_looked) = (false, false);
    loop {
        if !is_handoff {
            tell(Event::Connecting);
        }
        let begun = async {
            let address = Address { host: &host, port, proxies: shared.rest.through() };
            let tls = trust.connect(&zone, address, b"http/1.1").await?;
            Session::begin(&shared, tls).await
        };
        let begun = tokio::select! {
            begun = tokio::time::timeout(LAST_DELAY, begun) => begun.unwrap_or(Err(Error::Slow("the session"))),
            () = shared.stopped() => return Ok(()),
        };
        let mut not_before = Duration::ZERO;
        let error = match begun {
            Ok(session) => {
                // While nobody was connected the tunnel may have got another name.
                if has_served {
                    shared.changed.notify_one();
                }
                (has_served, has_looked) = (true, false);
                if is_first {
                    shared.tell_connected();
                }
                let since = Instant::now();
                let end = session.run(Arc::clone(&shared)).await;
                if since.elapsed() >= SERVED {
                    delay = FIRST_DELAY;
                }
                match end {
                    End::Stopped => return Ok(()),
                    End::Superseded => return Err(Error::Superseded),
                    End::Drained => {
                        tell(Event::Draining);
                        (is_handoff, delay) = (true, HANDOFF_DELAY);
                        continue;
                    }
                    End::Lost(error) => {
                        error.map_or_else(|| "the edge closed the connection".to_owned(), |e| chain(&*e))
                    }
                }
            }
            Err(error) if error.is_not_active() && !has_looked => {
                has_looked = true;
                match shared.look_again().await {
                    Ok(()) => continue,
                    Err(error) if error.is_final() => return Err(error),
                    Err(error) => error.chain(),
                }
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                not_before = error.retry_after().unwrap_or_default();
                error.chain()
            }
        };
        // Those who were told the same time do not come at once either.
        let wait = not_before + jitter(delay);
        tell(Event::Reconnecting { delay: wait, error });
        tokio::select! {
            () = sleep(wait) => {}
            () = shared.stopped() => return Ok(()),
        }
        is_handoff = false;
        delay = (delay * 2).min(LAST_DELAY);
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A quarter more or less, so that a thousand agents do not knock at once.
fn jitter(delay: Duration) -> Duration {
    let fraction = u32::from_be_bytes(noise());
    delay.mul_f64(0.75 + 0.5 * f64::from(fraction) / f64::from(u32::MAX))
}

/// Four octets that differ. Nobody is harmed by who knows the next ones.
fn noise() -> [u8; 4] {
    static STATE: AtomicU64 = AtomicU64::new(0);
    if STATE.load(Ordering::Relaxed) == 0 {
        let mut seed = [0; 8];
        // Without a generator they are known ones, which are as good as any.
        let _ = getrandom::fill(&mut seed);
        STATE.store(u64::from_ne_bytes(seed) | 1, Ordering::Relaxed);
    }
    // splitmix64
    let state = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let octets = (mixed ^ (mixed >> 31)).to_be_bytes();
    [octets[0], octets[1], octets[2], octets[3]]
}

/// What this process calls itself at the edge.
fn instance() -> Result<u128, Error> {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).map_err(|error| Error::Attach(error.to_string()))?;
    Ok(u128::from_be_bytes(octets))
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("tunnel", &self.tunnel).finish_non_exhaustive()
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::tests::{json, server, tunnel};

    fn shared(rest: Rest, named: &str, told: &Arc<Mutex<Vec<String>>>) -> Arc<Shared> {
        let told = Arc::clone(told);
        let upstream = Upstream::url(&http::Uri::from_static("http://127.0.0.1:1"), None).expect("a URL");
        Arc::new(Shared {
            credential: rest.credential().clone(),
            rest,
            tunnel: RwLock::new(Arc::new(serde_json::from_value(tunnel(1, named)).expect("a tunnel"))),
            edge: ("127.0.0.1".to_owned(), 4443),
            upstream,
            visitors: Arc::new(Semaphore::new(1)),
            full: Mutex::default(),
            certificate: None,
            settings: Settings::default(),
            instance: instance().expect("random octets"),
            changed: Notify::new(),
            stop: watch::Sender::new(false),
            in_flight: AtomicUsize::new(0),
            observer: Box::new(move |event| told.lock().expect("no panic").push(format!("{event:?}"))),
        })
    }

    #[test]
    fn delays_are_a_quarter_more_or_less_and_double_to_half_a_minute() {
        let mut delay = FIRST_DELAY;
        let mut delays = vec![delay];
        while delay < LAST_DELAY {
            delay = (delay * 2).min(LAST_DELAY);
            delays.push(delay);
        }
        assert_eq!(delays.len(), 9, "{delays:?}");
        for delay in delays {
            let waits: Vec<Duration> = (0..1000).map(|_| jitter(delay)).collect();
            let (least, most) = (delay.mul_f64(0.75), delay.mul_f64(1.25));
            assert!(waits.iter().all(|wait| (least..=most).contains(wait)), "{delay:?}");
            // Spread out: a thousand agents do not knock at once.
            let early = waits.iter().filter(|wait| **wait < delay).count();
            assert!((350..=650).contains(&early), "{early} of 1000 came early at {delay:?}");
        }
    }

    #[test]
    fn noise_differs() {
        let noises: std::collections::HashSet<[u8; 4]> = (0..1000).map(|_| noise()).collect();
        assert!(noises.len() > 990, "{}", noises.len());
    }

    #[test]
    fn the_edge_is_where_the_servers_url_or_the_zone_says() {
        let tunnel_in = |zone: &str| -> Tunnel {
            let mut tunnel = tunnel(1, "shop");
            tunnel["zone"] = zone.into();
            serde_json::from_value(tunnel).expect("a tunnel")
        };
        let key = || Credential::ApiKey("key".to_owned());
        let root = || {
            let key = rcgen::KeyPair::generate().expect("a key");
            let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root");
            Trust::only(vec![root.der().clone()]).expect("a root")
        };
        for (url, zone, expected) in [
            ("https://tunnels.example", "other.example", ("tunnels.example", 443)),
            ("https://tunnels.example:8443/", "other.example", ("tunnels.example", 8443)),
            ("https://[::1]:8443", "other.example", ("::1", 8443)),
            ("http://127.0.0.1:8080", "tunnels.example", ("tunnels.example", 443)),
            ("http://127.0.0.1:8080", "adit.localhost", ("adit.localhost", 4443)),
        ] {
            let rest = Rest::new(url.parse().expect("a URL"), key(), Some(root())).expect(url);
            let (host, port) = edge_address(&rest, &tunnel_in(zone));
            assert_eq!((host.as_str(), port), expected, "{url} {zone}");
        }
    }

    #[test]
    fn what_another_attempt_cannot_mend_is_final() {
        let refused = |status, is_ours| Error::Refused { status, detail: "no".to_owned(), is_ours, retry_after: None };
        for (error, is_final) in [
            (Error::Denied { status: StatusCode::FORBIDDEN, reason: "forbidden".to_owned() }, true),
            (Error::NoTunnel("shop".to_owned()), true),
            (Error::Superseded, true),
            (Error::Server("use https"), true),
            (Error::NoHome, true),
            (refused(StatusCode::UNAUTHORIZED, true), true),
            (refused(StatusCode::UNAUTHORIZED, false), false),
            (refused(StatusCode::NOT_FOUND, true), false),
            (Error::Connect(io::ErrorKind::ConnectionRefused.into()), false),
            (Error::Slow("the session"), false),
            (Error::Cut, false),
        ] {
            assert_eq!(error.is_final(), is_final, "{error:?}");
        }
        assert!(refused(StatusCode::NOT_FOUND, true).is_not_found());
        assert!(!refused(StatusCode::NOT_FOUND, false).is_not_found(), "a proxy's 404 is not the server's");
        let error = Error::Connect(io::Error::new(io::ErrorKind::TimedOut, "nobody answers"));
        assert_eq!(error.chain(), chain(&error));
        assert_eq!(error.chain().matches("nobody answers").count(), 1, "a cause is told once");
    }

    #[tokio::test]
    async fn a_renamed_tunnel_is_looked_up_by_its_id_and_told_of() {
        let (rest, asked) = server(|_| json("200 OK", &tunnel(1, "new-name"))).await;
        let told = Arc::default();
        let shared = shared(rest, "old-name", &told);
        let following = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { shared.follow().await }
        });
        shared.changed.notify_one();
        while shared.tunnel().tunnel_name == "old-name" {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(shared.public_authority(), "new-name.example:4443");
        let told = told.lock().expect("no panic").join("\n");
        assert!(told.contains("Connected") && told.contains("https://new-name.example:4443/"), "{told}");
        let id = uuid::Uuid::from_u128(1);
        assert_eq!(*asked.lock().expect("no panic"), [format!("/api/v1/tunnels/{id}")]);
        following.abort();
    }

    #[tokio::test]
    async fn a_deleted_tunnel_is_final_when_it_is_looked_at_again() {
        let (rest, _) = server(|_| {
            let mut tunnel = tunnel(1, "shop");
            tunnel["status"] = "delete_pending".into();
            json("200 OK", &tunnel)
        })
        .await;
        let error = shared(rest, "shop", &Arc::default()).look_again().await.expect_err("it is deleted");
        assert!(error.is_final() && error.is_not_active(), "{error:?}");
    }

    #[tokio::test]
    async fn a_stop_is_heard_while_the_edge_is_dialled() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (rest, _) = server(|_| json("200 OK", &serde_json::json!({ "tunnels": [tunnel(1, "shop")] }))).await;
        let upstream = Upstream::url(&http::Uri::from_static("http://127.0.0.1:1"), None).expect("a URL");
        let port = silent.local_addr().expect("bound").port();
        let (dialling, dialled) = tokio::sync::oneshot::channel();
        let dialling = Mutex::new(Some(dialling));
        let observer = move |event| {
            if let Event::Connecting = event
                && let Some(dialling) = dialling.lock().expect("no panic").take()
            {
                let _ = dialling.send(());
            }
        };
        let stop = async { drop(dialled.await) };
        let agent = Agent::new(rest, "shop", upstream).edge("127.0.0.1", port);
        let ended = tokio::time::timeout(Duration::from_secs(2), agent.run_until(observer, stop)).await;
        ended.expect("at once").expect("it was asked to");
    }
}
