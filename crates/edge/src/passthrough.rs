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

use crate::Shared;
use crate::link::{Duplex as _, Link as _, Payload, Receiver, Room, Sender};
use crate::tunnels::Entry;

/// Serves one connection, whose first bytes were read already, until it ends.
pub(crate) async fn serve(
    mut stream: TcpStream,
    first: Bytes,
    ip: IpAddr,
    host: String,
    entry: Arc<Entry>,
    shared: Arc<Shared>,
) {
    let mut duplex = match shared.link(entry).connect(host, ip).await {
        Ok(duplex) => duplex,
        Err(error) => {
            // There is nothing that could be said to the visitor: it speaks TLS with the agent.
            tracing::debug!(%ip, ?error, "no way to the agent for a visitor");
            return;
        }
    };
    let activity = shared.bridges.begin();
    let limits = &shared.settings.visitor;
    {
        let (read, write) = stream.split();
        let (sender, receiver) = duplex.halves();
        let forward = to_agent(read, first, sender, &activity);
        let backward = to_visitor(receiver, write, limits.stall, &activity);
        let (mut forward, mut backward) = (std::pin::pin!(forward), std::pin::pin!(backward));
        tokio::select! {
            () = forward.as_mut() => finish(backward, &activity, limits.half_closed).await,
            _ = backward.as_mut() => drop(timeout(LINGER, forward).await),
            () = activity.progress.stalled(limits.quiet) => {
                tracing::debug!(%ip, "nothing has moved on a passthrough connection for long; closing");
            }
        }
    }
    // Whoever ends a stream holds it until the other side has it: the agent's octets
    // are in the visitor's socket, and the visitor's in the agent's stream. The exchange
    // is over; that the visitor has time to read its end is nobody's wait.
    duplex.close();
    drop(activity);
    linger(stream).await;
}

/// Lets the second direction end, as long as something moves.
async fn finish(rest: impl Future<Output = io::Result<()>>, activity: &Activity<'_>, idle: Duration) {
    tokio::select! {
        _ = rest => {}
        () = activity.progress.stalled(idle) => {}
    }
}

async fn to_agent(mut read: ReadHalf<'_>, first: Bytes, sender: &mut impl Sender, activity: &Activity<'_>) {
    let Room { before, payload } = sender.room();
    let mut rest = first;
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(payload));
        let mut buffer = BytesMut::with_capacity(before + part.len());
        buffer.resize(before, 0);
        buffer.extend_from_slice(&part);
        if sender.send(Payload::new(buffer, before)).await.is_err() {
            return;
        }
    }
    let mut buffer = BytesMut::new();
    loop {
        // The header's room comes first, so that what is read needs no copy.
        buffer.reserve(before + payload);
        buffer.resize(before, 0);
        let mut room = bytes::BufMut::limit(&mut buffer, payload);
        let read = read.read_buf(&mut room).await;
        let Ok(1..) = read else { break };
        activity.moved(true);
        if sender.send(Payload::new(buffer.split(), before)).await.is_err() {
            return;
        }
    }
    sender.finish();
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
