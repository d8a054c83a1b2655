//! A WebSocket end to end: its octets pass as they are (RFC 8441 section 5).
//!
//! What goes to the visitor is followed from frame to frame, so that a server that is to
//! stop can put a Close between two of them. Nothing else is read.

use std::io;
use std::time::Duration;

use agent_proto::websocket::write_close;
use bytes::{Buf as _, Bytes, BytesMut};
use connections::Progress;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::watch;
use tokio::time::timeout;

use super::session::InFlight;
use super::upload::capacity;
use crate::link::WebSocket;

/// A WebSocket that the application has accepted.
pub(crate) struct Tunnelled {
    send: SendStream<Bytes>,
    recv: RecvStream,
    in_flight: InFlight,
    quiet: Duration,
    stopping: watch::Receiver<bool>,
}

/// Octets that are read of a visitor at once.
const READ: usize = 16 * 1024;
/// How long the second side may take to end after the first.
const CLOSING: Duration = Duration::from_secs(5);
/// How long a visitor may take nothing.
const STALL: Duration = Duration::from_secs(30);
/// RFC 6455 section 11.7
const SERVICE_RESTART: u16 = 1012;

impl Tunnelled {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        in_flight: InFlight,
        quiet: Duration,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { send, recv, in_flight, quiet, stopping }
    }
}

impl WebSocket for Tunnelled {
    async fn run<IO>(self, visitor: IO)
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let Self { mut send, mut recv, in_flight, quiet, mut stopping } = self;
        let progress = Progress::default();
        let (read, write) = split(visitor);
        {
            let mut forward = std::pin::pin!(to_agent(read, &mut send, &progress));
            let mut backward = std::pin::pin!(to_visitor(&mut recv, write, &progress, &mut stopping));
            tokio::select! {
                forward = forward.as_mut() => if forward.is_ok() {
                    drop(timeout(CLOSING, backward).await);
                },
                backward = backward.as_mut() => if backward.is_ok() {
                    drop(timeout(CLOSING, forward).await);
                },
                () = progress.stalled(quiet) => {}
            }
        }
        if !recv.is_end_stream() {
            send.send_reset(Reason::CANCEL);
        }
        drop(in_flight);
    }
}

/// What the visitor says, to its end.
async fn to_agent<IO>(mut read: ReadHalf<IO>, send: &mut SendStream<Bytes>, progress: &Progress) -> io::Result<()>
where
    IO: AsyncRead,
{
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let octets = read.read_buf(&mut buffer).await?;
        progress.made();
        if octets == 0 {
            return send.send_data(Bytes::new(), true).map_err(io::Error::other);
        }
        let mut octets = buffer.split().freeze();
        while !octets.is_empty() {
            let room = capacity(send, octets.len()).await.ok_or(io::ErrorKind::BrokenPipe)?;
            let part = octets.split_to(room.min(octets.len()));
            send.send_data(part, false).map_err(io::Error::other)?;
        }
    }
}

/// What the application says, to its end; or, when the server is to stop, to the end of a
/// frame and a Close.
async fn to_visitor<IO>(
    recv: &mut RecvStream,
    mut write: WriteHalf<IO>,
    progress: &Progress,
    stopping: &mut watch::Receiver<bool>,
) -> io::Result<()>
where
    IO: AsyncWrite,
{
    let mut frames = Frames::default();
    loop {
        let chunk = tokio::select! {
            chunk = recv.data() => chunk,
            () = stopped(stopping), if frames.is_between() => {
                let mut close = BytesMut::new();
                write_close(Some(SERVICE_RESTART), "", None, &mut close);
                timeout(STALL, write.write_all(&close)).await??;
                return write.shutdown().await;
            }
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(io::Error::other)?;
        progress.made();
        frames.follow(&chunk);
        timeout(STALL, write.write_all(&chunk)).await??;
        // What the socket has no room for waits in TLS, and nothing else may ever be said.
        timeout(STALL, write.flush()).await??;
        // Fails only when the stream is gone.
        let _ = recv.flow_control().release_capacity(chunk.len());
    }
    write.shutdown().await
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Where in the stream of frames the octets are (RFC 6455 section 5.2).
#[derive(Default)]
struct Frames {
    header: [u8; LONGEST],
    have: usize,
    /// Octets of the payload that are to come.
    left: u64,
}

/// Octets of a header with the longest length and a mask.
const LONGEST: usize = 14;

impl Frames {
    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    fn follow(&mut self, mut octets: &[u8]) {
        while octets.has_remaining() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(octets.len());
                self.left -= skipped as u64;
                octets.advance(skipped);
                continue;
            }
            self.header[self.have] = octets.get_u8();
            self.have += 1;
            if self.have == self.length() {
                self.left = self.payload();
                self.have = 0;
            }
        }
    }

    /// Octets of the header, as far as is known.
    fn length(&self) -> usize {
        let mask = if self.have > 1 && self.header[1] & 0x80 != 0 { 4 } else { 0 };
        let extended = match self.header[1] & 0x7f {
            _ if self.have < 2 => 0,
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + mask
    }

    fn payload(&self) -> u64 {
        let octets = match self.header[1] & 0x7f {
            126 => &self.header[2..4],
            127 => &self.header[2..10],
            short => return u64::from(short),
        };
        octets.iter().fold(0, |length, octet| length << 8 | u64::from(*octet))
    }
}

#[cfg(test)]
mod tests {
    use agent_proto::Opcode;
    use agent_proto::websocket::write_frame;

    use super::*;

    #[test]
    fn the_end_of_a_frame_is_seen_wherever_the_octets_are_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut octets = BytesMut::new();
                write_frame(Opcode::Binary, &vec![7; length], mask, &mut octets);
                for step in [1, 3, 4096] {
                    let mut frames = Frames::default();
                    assert!(frames.is_between());
                    let mut fed = 0;
                    for part in octets.chunks(step) {
                        frames.follow(part);
                        fed += part.len();
                        assert_eq!(frames.is_between(), fed == octets.len(), "{length} {mask:?} {step} {fed}");
                    }
                }
            }
        }
    }
}
