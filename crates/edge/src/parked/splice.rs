//! What the `h2` crate cannot do on an agent's connection: a GOAWAY of our
//! choosing that leaves the streams alive, and a look at the agent's SETTINGS.
//!
//! `h2` sends a PING together with the GOAWAY of a graceful shutdown, and an
//! abrupt one ends every stream. The HTTP/2 library of the Python agents throws
//! when anything follows a GOAWAY in the same read, and the agent then takes
//! the planned restart for a lost connection. So the frame is put between two
//! frames of `h2`'s output, flushed, and for half a second nothing follows it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A connection below `h2`.
pub(crate) struct Splice<IO> {
    io: IO,
    control: Arc<Control>,
    output: Output,
    /// The GOAWAY that is being written.
    goaway: Vec<u8>,
    /// Nothing is written until then.
    silence: Option<Pin<Box<Sleep>>>,
    /// The first octets of the agent, until its SETTINGS are known.
    preface: Option<Vec<u8>>,
}

/// The other end of a [`Splice`], for whoever drives the connection.
#[derive(Default)]
pub(crate) struct Control(Mutex<State>);

#[derive(Default)]
struct State {
    goaway: Option<Vec<u8>>,
    windows: Windows,
}

/// How much an agent can take at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Windows {
    /// 65535 octets for all streams together, credited late: Python agents,
    /// and whoever is not known to do better.
    #[default]
    Small,
    /// Credited as octets arrive: TypeScript and our own agents.
    Credited,
    /// The same, but a passthrough frame goes into a TLS library that takes so much at
    /// once and loses the rest: Rust agents. rustls buffers 18,437 octets, of which a
    /// record that is not complete may have 16,406.
    CreditedInParts,
}

impl Windows {
    /// Octets of a visitor in one passthrough frame.
    pub(crate) fn tcp_payload(self) -> usize {
        match self {
            Self::Small | Self::Credited => agent_proto::limits::MAX_TCP_FRAME - MAX_OUTER_HEADER,
            Self::CreditedInParts => 2031,
        }
    }
}

/// Octets of the header of a frame of up to 64 KiB without a mask.
pub(crate) const MAX_OUTER_HEADER: usize = 4;

/// How long a connection is silent after a GOAWAY.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

/// The client's connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;

impl Control {
    /// Sends GOAWAY for every stream after the last possible one, so that none
    /// is refused. The connection must be driven once more for it to leave.
    pub(crate) fn go_away(&self, code: u32, debug_data: &str) {
        let payload = 8 + debug_data.len();
        let mut frame = Vec::with_capacity(FRAME_HEADER + payload);
        frame.extend_from_slice(&u32::try_from(payload).unwrap_or(8).to_be_bytes()[1..]);
        frame.extend_from_slice(&[0x7, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&0x7fff_ffff_u32.to_be_bytes());
        frame.extend_from_slice(&code.to_be_bytes());
        frame.extend_from_slice(debug_data.as_bytes());
        self.state().goaway = Some(frame);
    }

    pub(crate) fn windows(&self) -> Windows {
        self.state().windows
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<IO> Splice<IO> {
    pub(crate) fn new(io: IO, control: Arc<Control>) -> Self {
        let preface = Some(Vec::new());
        Self { io, control, output: Output::default(), goaway: Vec::new(), silence: None, preface }
    }

    /// Takes what was just read, until the agent's SETTINGS are complete.
    fn look_at(&mut self, read: &[u8]) {
        let Some(preface) = &mut self.preface else { return };
        preface.extend_from_slice(&read[..read.len().min(MAX_LOOK)]);
        match windows_of(preface) {
            Ok(None) if preface.len() < MAX_LOOK => {}
            Ok(windows) => {
                self.control.state().windows = windows.unwrap_or_default();
                self.preface = None;
            }
            Err(NotSettings) => self.preface = None,
        }
    }
}

impl<IO: AsyncWrite + Unpin> Splice<IO> {
    /// How many octets of `h2` may be written now: all, or those up to the end
    /// of the frame that a GOAWAY waits for.
    fn poll_room(&mut self, first: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_silence(cx));
            if self.goaway.is_empty() {
                let mut state = self.control.state();
                if state.goaway.is_none() {
                    return Poll::Ready(Ok(usize::MAX));
                }
                let rest = self.output.rest_of_frame(first);
                if rest > 0 {
                    return Poll::Ready(Ok(rest));
                }
                self.goaway = state.goaway.take().unwrap_or_default();
            }
            ready!(self.poll_goaway(cx))?;
        }
    }

    fn poll_goaway(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.goaway.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.goaway))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.goaway.drain(..written);
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.silence = Some(Box::pin(sleep(SILENCE)));
        Poll::Ready(Ok(()))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(silence) = &mut self.silence {
            ready!(silence.as_mut().poll(cx));
            self.silence = None;
        }
        Poll::Ready(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Splice<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.preface.is_some() {
            self.look_at(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Splice<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(buf, cx))?;
        let allowed = &buf[..buf.len().min(room)];
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, allowed))?;
        self.output.advance(&allowed[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        let room = ready!(self.poll_room(first, cx))?;
        if room < usize::MAX {
            let allowed = &first[..first.len().min(room)];
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, allowed))?;
            self.output.advance(&allowed[..written]);
            return Poll::Ready(Ok(written));
        }
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let part = &slice[..slice.len().min(left)];
            self.output.advance(part);
            left -= part.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Between two frames there is nothing that could come first.
        if self.silence.is_none() && self.output.is_between_frames() {
            let waiting = self.control.state().goaway.take();
            if let Some(frame) = waiting {
                self.goaway = frame;
            }
            if !self.goaway.is_empty() {
                ready!(self.poll_goaway(cx))?;
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Where in the stream of frames the output is (RFC 9113 section 4.1).
#[derive(Default)]
struct Output {
    header: [u8; FRAME_HEADER],
    /// Octets of the header that were written.
    have: usize,
    /// Octets of the payload that were not.
    left: usize,
}

impl Output {
    fn is_between_frames(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    fn advance(&mut self, mut written: &[u8]) {
        while !written.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(written.len());
                self.left -= skipped;
                written = &written[skipped..];
                continue;
            }
            let taken = (FRAME_HEADER - self.have).min(written.len());
            self.header[self.have..self.have + taken].copy_from_slice(&written[..taken]);
            self.have += taken;
            written = &written[taken..];
            if self.have == FRAME_HEADER {
                self.have = 0;
                self.left = payload_len(&self.header);
            }
        }
    }

    /// How many of the next octets belong to a frame that was begun; 0 between
    /// frames. At least one, if `next` has one.
    fn rest_of_frame(&self, next: &[u8]) -> usize {
        if self.have == 0 {
            return self.left;
        }
        let missing = FRAME_HEADER - self.have;
        if next.len() < missing {
            return missing;
        }
        let mut header = self.header;
        header[self.have..].copy_from_slice(&next[..missing]);
        missing + payload_len(&header)
    }
}

fn payload_len(header: &[u8; FRAME_HEADER]) -> usize {
    usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])
}

/// More settings than any agent sends.
const MAX_LOOK: usize = PREFACE.len() + FRAME_HEADER + 6 * 32;

struct NotSettings;

/// What the SETTINGS of the preface tell; none if octets are missing.
fn windows_of(preface: &[u8]) -> Result<Option<Windows>, NotSettings> {
    let Some(frame) = preface.get(PREFACE.len()..).filter(|frame| frame.len() >= FRAME_HEADER) else {
        return Ok(None);
    };
    let mut header = [0; FRAME_HEADER];
    header.copy_from_slice(&frame[..FRAME_HEADER]);
    if header[3] != 0x4 || payload_len(&header) > MAX_LOOK - PREFACE.len() - FRAME_HEADER {
        return Err(NotSettings);
    }
    let Some(payload) = frame.get(FRAME_HEADER..FRAME_HEADER + payload_len(&header)) else { return Ok(None) };
    let settings: Vec<(u16, u32)> = payload
        .chunks_exact(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
        .collect();
    const ENABLE_PUSH: (u16, u32) = (2, 0);
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let is_large = settings.iter().any(|(id, value)| *id == INITIAL_WINDOW_SIZE && *value >= LARGE_WINDOW);
    // Node sends no settings, the Rust SDK only that it wants no pushes.
    Ok(Some(match &settings[..] {
        [ENABLE_PUSH] => Windows::CreditedInParts,
        [] => Windows::Credited,
        _ if is_large => Windows::Credited,
        _ => Windows::Small,
    }))
}

/// Nobody offers this much who cannot credit it.
const LARGE_WINDOW: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, u8::try_from(payload.len()).expect("short"), kind, 0, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    #[tokio::test(start_paused = true)]
    async fn goaway_is_last_in_its_write_and_between_two_frames() {
        let (near, mut far) = tokio::io::duplex(4096);
        let control = Arc::new(Control::default());
        let mut splice = Splice::new(near, Arc::clone(&control));
        let first = frame(0, b"hello");
        // Half a frame is out when the GOAWAY is wanted.
        splice.write_all(&first[..4]).await.expect("written");
        control.go_away(0, r#"{"reason":"drain"}"#);
        let begun = tokio::time::Instant::now();
        let writer = tokio::spawn(async move {
            splice.write_all(&first[4..]).await.expect("written");
            splice.write_all(&frame(6, b"pingpong")).await.expect("written");
            splice.flush().await.expect("flushed");
        });
        let mut got = vec![0; 14 + 9 + 8 + 18];
        far.read_exact(&mut got).await.expect("a frame and the GOAWAY");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(got[14 + 3], 7, "a GOAWAY");
        assert_eq!(&got[14 + 9..14 + 17], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(&got[31..], br#"{"reason":"drain"}"#);
        far.read_exact(&mut [0; 17]).await.expect("the rest");
        assert!(begun.elapsed() >= SILENCE);
        writer.await.expect("no panic");
    }

    #[test]
    fn agents_are_told_apart_by_their_settings() {
        let settings = |pairs: &[(u16, u32)]| {
            let payload: Vec<u8> =
                pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
            let mut preface = [PREFACE, &frame(4, &payload)].concat();
            preface[PREFACE.len() + 8] = 0;
            windows_of(&preface).unwrap_or_default()
        };
        let python = [(1, 4096), (2, 1), (4, 65535), (5, 16384), (8, 0), (3, 100), (6, 65536)];
        assert_eq!(settings(&python), Some(Windows::Small));
        assert_eq!(settings(&[]), Some(Windows::Credited), "Node");
        assert_eq!(settings(&[(2, 0)]), Some(Windows::CreditedInParts), "Rust");
        assert_eq!(settings(&[(2, 0), (4, 1 << 20)]), Some(Windows::Credited), "our own");
        assert_eq!(settings(&[(3, 100)]), Some(Windows::Small), "unknown");
        assert_eq!(windows_of(PREFACE).unwrap_or_default(), None);
    }
}
