//! One link: from the agent's 101 to the end of its connection.

use std::sync::Arc;
use std::time::Duration;

use agent_proto::{CONNECTION_WINDOW, Notice, Windows};
use bytes::Bytes;
use connections::{Kind, Peer, Upgraded};
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tunnel_model::{EndReason, InstanceId, KeyId, SessionId, SessionKind, Status, Tunnel};

use crate::Shared;
use crate::heart::Heart;
use crate::tunnels::{Connected, Member, Signal, Ticket};

/// An agent that may serve its tunnel, as whoever let it in says.
#[derive(Debug)]
pub struct Attach {
    /// Which tunnel.
    pub tunnel: Tunnel,
    /// The API key that it came with; none with the tunnel's secret.
    pub key: Option<KeyId>,
    /// Where it is, and its account.
    pub peer: Peer,
    /// Its process.
    pub instance: InstanceId,
    /// May other instances serve beside it?
    pub shares: bool,
    /// Does its application bring key and certificate, so that the tunnel needs none?
    pub own_certificate: bool,
    /// How long its application may take to begin an answer, if it says so.
    pub response_deadline: Option<Duration>,
}

/// Why an agent should come back later.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[error("{}", self.in_short())]
pub enum Busy {
    /// The server is on its way out.
    Draining,
    /// All places of agents are taken.
    Full,
}

impl Busy {
    /// In words.
    pub fn in_short(self) -> &'static str {
        match self {
            Self::Draining => "the server is about to stop",
            Self::Full => "the server has no place for another agent",
        }
    }
}

/// A session that waits for its link.
pub struct Attached {
    shared: Arc<Shared>,
    attach: Attach,
    session: SessionId,
}

/// The streams of one link.
pub(crate) struct Session {
    pub(super) id: SessionId,
    pub(super) send: SendRequest<Bytes>,
    pub(super) response_deadline: Duration,
    windows: Windows,
    /// The streams' window is to be smaller.
    crowded: Notify,
}

/// An exchange on a link. Dropped, it is over.
pub(crate) struct InFlight {
    pub(super) session: Arc<Session>,
    _ticket: Ticket,
}

/// The model tells a session to go elsewhere, to look again and to end.
const SIGNALS: usize = 8;
/// Octets of a frame: fewer headers on large answers, where the agent follows.
const MAX_FRAME: u32 = 64 * 1024;
/// Octets of the headers of an answer; more than visitors get, so that too many are told of.
const MAX_HEADER_LIST: u32 = 96 * 1024;
/// Octets of bookkeeping for small frames that nobody has read yet.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// Octets of one stream that are taken before they are sent.
const SEND_BUFFER: usize = 128 * 1024;
/// Streams that were reset and may still be spoken of: an application's visitors leave in bursts.
const MAX_RESETS: usize = 4096;
/// How long an agent may take to hear why its link ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// From what the server says last to the end of the connection.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks whether the window can be larger again.
const LOOK: Duration = Duration::from_secs(1);

impl Attached {
    /// Takes an agent in.
    ///
    /// # Errors
    ///
    /// [`Busy`] when there is no place for it, or the server is to stop.
    pub(crate) fn new(shared: &Arc<Shared>, attach: Attach) -> Result<Self, Busy> {
        if shared.is_stopping() {
            return Err(Busy::Draining);
        }
        attach.peer.place.change(Kind::Agent, attach.peer.ip).map_err(|_| Busy::Full)?;
        let session = shared.tunnels.next_session();
        shared.tunnels.expect(&attach.tunnel, attach.own_certificate);
        Ok(Self { shared: Arc::clone(shared), attach, session })
    }

    /// What the log calls the session.
    pub fn session(&self) -> String {
        self.session.0.to_string()
    }

    /// Serves the link until it ends.
    pub async fn serve(self, link: Upgraded) {
        let ip = self.attach.peer.ip;
        let begun = Box::pin(timeout(self.shared.settings.hello_time, begin(link, &self.shared))).await;
        let Ok(Some((send, connection, pings))) = begun else {
            tracing::debug!(%ip, "a link ended before HTTP/2 began");
            return;
        };
        if self.shared.is_stopping() {
            // It would never be told to go.
            return;
        }
        self.run(send, connection, pings).await;
    }

    async fn run(self, send: SendRequest<Bytes>, mut connection: Box<Connection<Upgraded, Bytes>>, pings: PingPong) {
        let Self { shared, attach, session: id } = self;
        let Attach { tunnel, key, peer: Peer { ip, place }, instance, shares, own_certificate, response_deadline } =
            attach;
        let session = Arc::new(Session {
            id,
            send,
            response_deadline: response_deadline.unwrap_or(shared.settings.response_deadline),
            windows: Windows::new(shared.settings.agent.connection_window),
            crowded: Notify::new(),
        });
        let (signals, mut received) = mpsc::channel(SIGNALS);
        let member = Member { ip, key, own_certificate, signals };
        let connected = Connected::Link(Arc::clone(&session), SessionKind::Open { instance, shares });
        let Ok(entry) = shared.tunnels.admit(&tunnel, id, member, connected) else {
            tracing::debug!(%ip, "a later session of another instance was faster");
            tell(&session, Some(&mut connection), Notice::Superseded).await;
            return;
        };
        tracing::info!(tunnel = %tunnel.id, %ip, "an agent is connected");
        // The connection must be driven while the store is asked.
        let checked = tokio::select! {
            checked = still_may(&shared, &tunnel, key, own_certificate) => checked,
            _ = &mut *connection => Check::Gone,
        };
        match checked {
            Check::Good(tunnel) => {
                shared.tunnels.update(&tunnel);
                drive(&session, &mut connection, pings, &mut received).await;
            }
            Check::Refused => tell(&session, Some(&mut connection), Notice::Revoked).await,
            Check::Gone => {}
        }
        shared.tunnels.close_session(&entry, id);
        tracing::info!(tunnel = %tunnel.id, %ip, "an agent left");
        drop(place);
    }
}

/// What became of a tunnel between the check of the credential and the admission: what
/// was revoked meanwhile was not there to be ended.
enum Check {
    Good(Box<Tunnel>),
    Refused,
    Gone,
}

async fn still_may(shared: &Shared, tunnel: &Tunnel, key: Option<KeyId>, own_certificate: bool) -> Check {
    let failed = |error: store::StoreError| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot check an agent again");
        Check::Gone
    };
    if let Some(key) = key {
        match shared.store.api_key(key).await {
            Ok(Some(found)) if found.revoked_at.is_none() => {}
            Ok(_) => return Check::Refused,
            Err(error) => return failed(error),
        }
    }
    match shared.store.tunnel(tunnel.id).await {
        Ok(Some(found)) if found.status == Status::Active => Check::Good(Box::new(found)),
        Ok(Some(found)) if found.status == Status::AwaitingCert && own_certificate => Check::Good(Box::new(found)),
        Ok(_) => {
            shared.tunnels.revoke(tunnel.id);
            Check::Refused
        }
        Err(error) => failed(error),
    }
}

type Begun = (SendRequest<Bytes>, Box<Connection<Upgraded, Bytes>>, PingPong);

/// HTTP/2 up to the first acknowledged PING: then the agent's SETTINGS are known.
async fn begin(link: Upgraded, shared: &Shared) -> Option<Begun> {
    let windows = Windows::new(shared.settings.agent.connection_window);
    let handshake = Builder::new()
        .enable_push(false)
        .initial_window_size(windows.widest())
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(None)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(link)
        .await;
    let (send, connection) = handshake.ok()?;
    let mut connection = Box::new(connection);
    connection.set_target_window_size(CONNECTION_WINDOW);
    let mut pings = connection.ping_pong()?;
    tokio::select! {
        _ = &mut *connection => None,
        pong = pings.ping(Ping::opaque()) => pong.ok().map(|_| (send, connection, pings)),
    }
}

/// Carries frames until the connection or the session ends.
async fn drive(
    session: &Arc<Session>,
    connection: &mut Connection<Upgraded, Bytes>,
    pings: PingPong,
    signals: &mut mpsc::Receiver<Signal>,
) {
    let mut heart = Heart::new(Some(pings));
    let widest = session.windows.widest();
    let mut window = widest;
    let mut look_at = Instant::now() + LOOK;
    let mut is_told = false;
    loop {
        tokio::select! {
            biased;
            Some(signal) = signals.recv() => match signal {
                Signal::GoElsewhere if std::mem::replace(&mut is_told, true) => {}
                Signal::GoElsewhere => spawn_tell(session, Notice::Drain),
                Signal::Superseded => spawn_tell(session, Notice::Superseded),
                Signal::LookAgain => spawn_tell(session, Notice::Renamed),
                Signal::End(EndReason::Superseded) => return last_words(connection).await,
                Signal::End(EndReason::Revoked) => return tell(session, Some(connection), Notice::Revoked).await,
                Signal::End(EndReason::Drained) => return,
            },
            ended = &mut *connection => {
                if let Err(error) = ended {
                    tracing::debug!(error = &error as &dyn std::error::Error, "an agent's connection broke");
                }
                return;
            }
            () = session.crowded.notified() => {}
            () = sleep_until(look_at), if window < widest => look_at = Instant::now() + LOOK,
            () = heart.beat() => {
                tracing::info!("an agent does not answer PINGs; closing");
                return;
            }
        }
        let wanted = session.windows.wanted(window);
        // Refused until the agent has acknowledged the one before: then at the next look.
        if wanted != window && connection.set_initial_window_size(wanted).is_ok() {
            window = wanted;
        }
    }
}

/// What was said is written, before the connection ends.
async fn last_words(connection: &mut Connection<Upgraded, Bytes>) {
    // Either way it has had its time.
    let _ = timeout(SETTLE, connection).await;
}

fn spawn_tell(session: &Arc<Session>, notice: Notice) {
    let session = Arc::clone(session);
    tokio::spawn(async move { tell(&session, None, notice).await });
}

/// Tells the agent something of the server's own, and gives it the time to hear it.
/// Drives the connection, if nobody else does.
async fn tell(session: &Session, connection: Option<&mut Connection<Upgraded, Bytes>>, notice: Notice) {
    let mut send = session.send.clone();
    let told = async move {
        std::future::poll_fn(|cx| send.poll_ready(cx)).await?;
        let (answer, _) = send.send_request(notice.to_request(), true)?;
        answer.await.map(drop)
    };
    let told = timeout(LAST_WORDS, told);
    let result = match connection {
        None => told.await,
        Some(connection) => tokio::select! {
            told = told => told,
            _ = connection => return,
        },
    };
    if !matches!(result, Ok(Ok(()))) {
        tracing::debug!(?notice, "an agent was not told");
    }
}

impl InFlight {
    /// An exchange that has begun on a session.
    pub(super) fn new(session: Arc<Session>, ticket: Ticket) -> Self {
        if session.windows.opened() {
            session.crowded.notify_one();
        }
        Self { session, _ticket: ticket }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.session.windows.closed();
    }
}
