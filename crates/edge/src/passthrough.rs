//! A visitor's TCP connection joined with an agent's bridge: TLS ends in the
//! agent, and here only bytes go by.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent_proto::bridge::{Outer, OuterDecoder, encode_outer_close, outer_prefix};
use agent_proto::{Envelope, EnvelopeKind, Opcode};
use bytes::{Buf as _, Bytes, BytesMut};
use connections::{LINGER, Progress, linger};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::timeout;
use tunnel_model::ExchangeKind;

use crate::Shared;
use crate::flow::send_frame;
use crate::reply::hold;
use crate::splice::MAX_OUTER_HEADER;
use crate::tunnels::{Bridge, Entry, Link};

/// Serves one connection, whose first bytes were read already, until it ends.
pub(crate) async fn serve(
    mut stream: TcpStream,
    first: Bytes,
    ip: IpAddr,
    host: String,
    entry: Arc<Entry>,
    shared: Arc<Shared>,
) {
    let (exchange, request_id, id) = shared.tunnels.next_exchange();
    let kind = EnvelopeKind::Tcp { id, sni_host: host };
    let envelope = Envelope { request_id, forwarded_for: Some(ip), kind };
    // Name and ids always fit.
    let Ok(encoded) = envelope.encode() else { return };
    let started = shared.tunnels.start(entry, exchange, ExchangeKind::Tcp, envelope, encoded, Bytes::new());
    let Ok(mut ticket) = started else { return };
    let bridge = match ticket.bridge().await {
        Ok(bridge) => bridge,
        Err(failure) => {
            // There is nothing that could be said to the visitor: it speaks TLS with the agent.
            tracing::debug!(%ip, ?failure, "no bridge for a visitor");
            return;
        }
    };
    let activity = shared.bridges.begin();
    let Bridge { mut recv, mut send, link } = bridge;
    let limits = &shared.settings.visitor;
    {
        let (read, write) = stream.split();
        let forward = to_agent(read, first, &mut send, &link, &activity);
        let backward = to_visitor(&mut recv, write, limits.stall, &activity);
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
    // are in the visitor's socket, and the visitor's in the agent's stream. If it has
    // ended, this says nothing.
    let _ = send.send_data(Bytes::new(), true);
    hold(recv, send);
    // The exchange is over; that the visitor has time to read its end is nobody's wait.
    drop((ticket, activity));
    linger(stream).await;
}

/// Lets the second direction end, as long as something moves.
async fn finish(rest: impl Future<Output = io::Result<()>>, activity: &Activity<'_>, idle: Duration) {
    tokio::select! {
        _ = rest => {}
        () = activity.progress.stalled(idle) => {}
    }
}

async fn to_agent(
    mut read: ReadHalf<'_>,
    first: Bytes,
    send: &mut SendStream<Bytes>,
    link: &Link,
    activity: &Activity<'_>,
) {
    let payload = link.windows.tcp_payload();
    let mut rest = first;
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(payload));
        let mut frame = BytesMut::with_capacity(MAX_OUTER_HEADER + part.len());
        agent_proto::bridge::encode_outer(Opcode::Binary, &part, None, &mut frame);
        if send_frame(send, link, frame.freeze()).await.is_err() {
            return;
        }
    }
    let mut buffer = BytesMut::new();
    loop {
        // The header's room comes first, so that what is read needs no copy.
        buffer.reserve(MAX_OUTER_HEADER + payload);
        buffer.resize(MAX_OUTER_HEADER, 0);
        let mut room = bytes::BufMut::limit(&mut buffer, payload);
        let read = read.read_buf(&mut room).await;
        let Ok(octets @ 1..) = read else { break };
        activity.moved(true);
        let header = outer_prefix(Opcode::Binary, octets, None);
        let header: &[u8] = header.as_ref();
        let unused = MAX_OUTER_HEADER - header.len();
        buffer[unused..MAX_OUTER_HEADER].copy_from_slice(header);
        let mut frame = buffer.split();
        frame.advance(unused);
        if send_frame(send, link, frame.freeze()).await.is_err() {
            return;
        }
    }
    let mut close = BytesMut::new();
    encode_outer_close(1000, "", None, &mut close);
    // Small: h2 keeps it until there is room. If the stream has ended, so be it.
    let _ = send.send_data(close.freeze(), true);
}

async fn to_visitor(
    recv: &mut RecvStream,
    mut write: WriteHalf<'_>,
    stall: Duration,
    activity: &Activity<'_>,
) -> io::Result<()> {
    let mut outer = OuterDecoder::new();
    while let Some(Ok(chunk)) = recv.data().await {
        let octets = chunk.len();
        activity.moved(false);
        outer.push(chunk);
        loop {
            match outer.next_event() {
                Ok(Some(Outer::Data(data) | Outer::Text(data))) => {
                    // A visitor that takes nothing holds the agent's window for nobody.
                    timeout(stall, write.write_all(&data)).await??;
                }
                Ok(Some(Outer::Close { .. })) => {
                    return write.shutdown().await;
                }
                Ok(Some(Outer::Ping(_) | Outer::Pong)) => {}
                Ok(None) => break,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        // Fails only when the stream is gone.
        let _ = recv.flow_control().release_capacity(octets);
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
