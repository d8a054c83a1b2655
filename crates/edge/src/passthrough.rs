//! A visitor's TCP connection joined with an agent: TLS ends there, and here only
//! octets go by.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use connections::{LINGER, Progress, linger};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;

use crate::link::{Duplex, Link, LinkError, Payload, Receiver, Room, Sender};
use crate::tunnels::Entry;
use crate::{Shared, VisitorLimits, Wire};

/// Serves one connection, whose first bytes were read already, until it ends.
pub(crate) async fn serve(
    stream: TcpStream,
    first: Bytes,
    ip: IpAddr,
    host: String,
    entry: Arc<Entry>,
    shared: Arc<Shared>,
) {
    let served = match shared.wire(entry).await {
        Ok(Wire::Parked(link)) => serve_by(link, stream, first, ip, host, &shared).await,
        Ok(Wire::Reversed(link)) => serve_by(link, stream, first, ip, host, &shared).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        // There is nothing that could be said to the visitor: it speaks TLS with the agent.
        tracing::debug!(%ip, ?error, "no way to the agent for a visitor");
    }
}

/// How a connection ended.
enum End {
    Both,
    /// One side has broken it off, and so does the other.
    Broken,
}

async fn serve_by(
    link: impl Link,
    mut stream: TcpStream,
    first: Bytes,
    ip: IpAddr,
    host: String,
    shared: &Shared,
) -> Result<(), LinkError> {
    let mut duplex = link.connect(host, first, ip).await?;
    let activity = shared.bridges.begin();
    let end = join(&mut stream, &mut duplex, &shared.settings.visitor, &activity).await;
    // Whoever ends a stream holds it until the other side has it: the agent's octets
    // are in the visitor's socket, and the visitor's in the agent's stream. The exchange
    // is over; that the visitor has time to read its end is nobody's wait.
    match end {
        End::Both => duplex.close(),
        End::Broken => {
            duplex.reset();
            // What is not sent is forgotten, and the visitor reads a reset.
            let _ = stream.set_zero_linger();
            return Ok(());
        }
    }
    drop(activity);
    linger(stream).await;
    Ok(())
}

async fn join<D: Duplex>(
    stream: &mut TcpStream,
    duplex: &mut D,
    limits: &VisitorLimits,
    activity: &Activity<'_>,
) -> End {
    let (read, write) = stream.split();
    let (sender, receiver) = duplex.halves();
    let forward = to_agent(read, sender, activity);
    let backward = to_visitor(receiver, write, limits.stall, activity);
    let (mut forward, mut backward) = (std::pin::pin!(forward), std::pin::pin!(backward));
    let rest = tokio::select! {
        sent = forward.as_mut() => match sent {
            Ok(()) => finish(backward, activity, limits.half_closed).await,
            Err(error) => Err(error),
        },
        taken = backward.as_mut() => match taken {
            Ok(()) if D::IS_HALF_CLOSED => finish(forward, activity, limits.half_closed).await,
            Ok(()) => timeout(LINGER, forward).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        },
        () = activity.progress.stalled(limits.quiet) => {
            tracing::debug!("nothing has moved on a passthrough connection for long; closing");
            Ok(())
        }
    };
    match rest {
        Ok(()) => End::Both,
        Err(_) if D::IS_HALF_CLOSED => End::Broken,
        Err(_) => End::Both,
    }
}

/// Lets the second direction end, as long as something moves.
async fn finish(rest: impl Future<Output = io::Result<()>>, activity: &Activity<'_>, idle: Duration) -> io::Result<()> {
    tokio::select! {
        ended = rest => ended,
        () = activity.progress.stalled(idle) => Ok(()),
    }
}

/// What the visitor says. An error is the visitor's: what an agent does not take is told
/// by what it says.
async fn to_agent(mut read: ReadHalf<'_>, sender: &mut impl Sender, activity: &Activity<'_>) -> io::Result<()> {
    let Room { before, payload } = sender.room();
    let mut buffer = BytesMut::new();
    loop {
        // The header's room comes first, so that what is read needs no copy.
        buffer.reserve(before + payload);
        buffer.resize(before, 0);
        let mut room = bytes::BufMut::limit(&mut buffer, payload);
        if read.read_buf(&mut room).await? == 0 {
            sender.finish();
            return Ok(());
        }
        activity.moved(true);
        if sender.send(Payload::new(buffer.split(), before)).await.is_err() {
            return Ok(());
        }
    }
}

async fn to_visitor(
    receiver: &mut impl Receiver,
    mut write: WriteHalf<'_>,
    stall: Duration,
    activity: &Activity<'_>,
) -> io::Result<()> {
    while let Some(octets) = receiver.next().await {
        let octets = octets?;
        activity.moved(false);
        // A visitor that takes nothing holds the agent's window for nobody.
        timeout(stall, write.write_all(&octets)).await??;
    }
    write.shutdown().await
}

/// How long nothing has moved on a bridge between two requests.
const QUIET: Duration = Duration::from_millis(500);
/// How long a visitor waits for an answer at most, as far as a stop is concerned.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// The bridges that are open, for whoever wants to stop when they are quiet.
#[derive(Debug)]
pub(crate) struct Bridges {
    started: Instant,
    open: AtomicUsize,
    /// Those on which the visitor spoke last, and may wait for an answer.
    asked: AtomicUsize,
    /// Milliseconds from `started` to when something last moved.
    moved: AtomicU64,
}

/// One bridge's life.
pub(crate) struct Activity<'a> {
    bridges: &'a Bridges,
    progress: Progress,
    has_asked: AtomicBool,
}

impl Bridges {
    pub(crate) fn new() -> Self {
        let (open, asked, moved) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        Self { started: Instant::now(), open, asked, moved }
    }

    fn begin(&self) -> Activity<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Activity { bridges: self, progress: Progress::default(), has_asked: AtomicBool::new(false) }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// May all bridges be cut without harm, as far as one can tell from outside?
    /// No visitor waits for an answer, and nothing has moved for a moment; or
    /// nothing has for so long that nobody waits.
    pub(crate) fn are_quiet(&self) -> bool {
        let quiet = Duration::from_millis(self.now().saturating_sub(self.moved.load(Ordering::Relaxed)));
        self.open() == 0 || quiet >= GIVEN_UP || (self.asked.load(Ordering::Relaxed) == 0 && quiet >= QUIET)
    }

    fn count_asked(&self, more: bool) {
        if more {
            self.asked.fetch_add(1, Ordering::Relaxed);
        } else {
            self.asked.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Activity<'_> {
    fn moved(&self, is_visitors: bool) {
        self.progress.made();
        if self.has_asked.swap(is_visitors, Ordering::Relaxed) != is_visitors {
            self.bridges.count_asked(is_visitors);
        }
        self.bridges.moved.store(self.bridges.now(), Ordering::Relaxed);
    }
}

impl Drop for Activity<'_> {
    fn drop(&mut self) {
        if *self.has_asked.get_mut() {
            self.bridges.count_asked(false);
        }
        self.bridges.open.fetch_sub(1, Ordering::Relaxed);
    }
}
