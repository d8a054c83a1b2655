//! A visitor's TCP connection joined with an agent's bridge: TLS ends in the
//! agent, and here only bytes go by.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent_proto::bridge::{Outer, OuterDecoder, encode_outer_close, outer_prefix};
use agent_proto::limits::MAX_TCP_FRAME;
use agent_proto::{Envelope, EnvelopeKind, Opcode};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tunnel_model::ExchangeKind;

use crate::Shared;
use crate::flow::send_frame;
use crate::tunnels::{Bridge, Entry, Link};

/// Serves one connection, whose first bytes were read already, until it ends.
pub(crate) async fn serve(
    stream: TcpStream,
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
    let Bridge { recv, send, link } = bridge;
    let (read, write) = stream.into_split();
    let forward = to_agent(read, first, send, &link, &activity);
    let backward = to_visitor(recv, write, shared.settings.visitor.stall, &activity);
    let (mut forward, mut backward) = (std::pin::pin!(forward), std::pin::pin!(backward));
    let idle = shared.settings.visitor.half_closed;
    tokio::select! {
        () = forward.as_mut() => finish(backward, &activity, idle).await,
        _ = backward.as_mut() => drop(timeout(FIN, forward).await),
    }
}

/// How long a visitor may go on sending to an agent that is done.
const FIN: Duration = Duration::from_secs(1);

/// Lets the second direction end, as long as something moves.
async fn finish(mut rest: impl Future<Output = io::Result<()>> + Unpin, activity: &Activity<'_>, idle: Duration) {
    loop {
        let before = activity.octets();
        match timeout(idle, &mut rest).await {
            Ok(_) => return,
            Err(_) if activity.octets() == before => return,
            Err(_) => {}
        }
    }
}

async fn to_agent(
    mut read: OwnedReadHalf,
    first: Bytes,
    mut send: SendStream<Bytes>,
    link: &Link,
    activity: &Activity<'_>,
) {
    let mut rest = first;
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(PAYLOAD));
        let mut frame = BytesMut::with_capacity(HEADER + part.len());
        agent_proto::bridge::encode_outer(Opcode::Binary, &part, None, &mut frame);
        if send_frame(&mut send, link, frame.freeze()).await.is_err() {
            return;
        }
    }
    let mut buffer = BytesMut::new();
    loop {
        // The header's room comes first, so that what is read needs no copy.
        buffer.reserve(HEADER + PAYLOAD);
        buffer.resize(HEADER, 0);
        let mut room = bytes::BufMut::limit(&mut buffer, PAYLOAD);
        let read = read.read_buf(&mut room).await;
        let Ok(octets @ 1..) = read else { break };
        activity.add(octets);
        let header = outer_prefix(Opcode::Binary, octets, None);
        let header: &[u8] = header.as_ref();
        let unused = HEADER - header.len();
        buffer[unused..HEADER].copy_from_slice(header);
        let mut frame = buffer.split();
        frame.advance(unused);
        if send_frame(&mut send, link, frame.freeze()).await.is_err() {
            return;
        }
    }
    let mut close = BytesMut::new();
    encode_outer_close(1000, "", None, &mut close);
    // Small: h2 keeps it until there is room. If the stream has ended, so be it.
    let _ = send.send_data(close.freeze(), true);
}

/// Octets of the header of a frame that has [`PAYLOAD`].
const HEADER: usize = 4;
const PAYLOAD: usize = MAX_TCP_FRAME - HEADER;

async fn to_visitor(
    mut recv: RecvStream,
    mut write: OwnedWriteHalf,
    stall: Duration,
    activity: &Activity<'_>,
) -> io::Result<()> {
    let mut outer = OuterDecoder::new();
    while let Some(Ok(chunk)) = recv.data().await {
        let octets = chunk.len();
        activity.add(octets);
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

/// The bridges that are open, for whoever wants to stop when they are quiet.
#[derive(Debug)]
pub(crate) struct Bridges {
    started: Instant,
    open: AtomicUsize,
    /// Milliseconds from `started` to when something last moved.
    moved: AtomicU64,
}

/// One bridge's life.
pub(crate) struct Activity<'a> {
    bridges: &'a Bridges,
    octets: AtomicUsize,
}

impl Bridges {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), open: AtomicUsize::new(0), moved: AtomicU64::new(0) }
    }

    fn begin(&self) -> Activity<'_> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Activity { bridges: self, octets: AtomicUsize::new(0) }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Has nothing moved for so long, or is no bridge open?
    pub(crate) fn are_quiet(&self, time: Duration) -> bool {
        let quiet = self.now().saturating_sub(self.moved.load(Ordering::Relaxed));
        self.open() == 0 || u128::from(quiet) >= time.as_millis()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Activity<'_> {
    fn add(&self, octets: usize) {
        self.octets.fetch_add(octets, Ordering::Relaxed);
        self.bridges.moved.store(self.bridges.now(), Ordering::Relaxed);
    }

    fn octets(&self) -> usize {
        self.octets.load(Ordering::Relaxed)
    }
}

impl Drop for Activity<'_> {
    fn drop(&mut self) {
        self.bridges.open.fetch_sub(1, Ordering::Relaxed);
    }
}
