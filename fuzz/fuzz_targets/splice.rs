//! A GOAWAY between two frames: whatever the writes and whenever it is wanted,
//! the frames arrive whole and in order, each GOAWAY stands between two of them
//! and ends its write, and SETTINGS of strangers are read without a panic.
#![no_main]

#[path = "../../crates/edge/src/parked/splice.rs"]
#[allow(dead_code, unreachable_pub, reason = "the edge uses more of it")]
mod splice;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use splice::{Control, Splice};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Takes a few octets a write, and says now and then that it is busy.
struct Narrow {
    incoming: Vec<u8>,
    steps: Vec<u8>,
    at: usize,
    is_busy: bool,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Narrow {
    fn step(&mut self) -> u8 {
        self.at += 1;
        self.steps.get(self.at % self.steps.len().max(1)).copied().unwrap_or(u8::MAX)
    }
}

impl AsyncRead for Narrow {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = usize::from(self.step()) + 1;
        let taken = room.min(self.incoming.len()).min(buf.remaining());
        buf.put_slice(&self.incoming[..taken]);
        self.incoming.drain(..taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Narrow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let step = self.step();
        // Busy once, and not for ever.
        self.is_busy = step % 5 == 4 && !self.is_busy;
        if self.is_busy {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = buf.len().min(usize::from(step) + 1);
        self.written.lock().expect("no panic").extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const GOAWAY: u8 = 7;
/// What the fuzzer's own frames never are.
const MARK: &str = "the mark of ours";

fuzz_target!(|input: &[u8]| {
    let Some((&[plan, frames, ..], rest)) = input.split_first_chunk::<4>() else { return };
    let (steps, incoming) = rest.split_at(rest.len().min(usize::from(plan) % 32));
    // A few frames of lengths that the input gives, and writes that do not keep to them.
    let lengths: Vec<usize> = incoming.iter().take(usize::from(frames) % 8).map(|octet| usize::from(*octet)).collect();
    let mut output = Vec::new();
    for length in lengths {
        output.extend_from_slice(&[0, 0, u8::try_from(length).expect("an octet"), 0, 0, 0, 0, 0, 1]);
        output.extend(std::iter::repeat_n(0x55, length));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let written = Arc::new(Mutex::new(Vec::new()));
    let control = Arc::new(Control::default());
    let mut wanted = 0;
    runtime.expect("a runtime").block_on(async {
        let io = Narrow {
            incoming: incoming.to_vec(),
            steps: steps.to_vec(),
            at: usize::from(plan),
            is_busy: false,
            written: Arc::clone(&written),
        };
        let mut splice = Splice::new(io, Arc::clone(&control));
        // The other direction: an agent's preface, or anything else.
        let mut read = Vec::new();
        splice.read_to_end(&mut read).await.expect("read");
        assert_eq!(read, incoming);
        assert!(control.windows().tcp_payload() > 0);

        let mut left = &output[..];
        for step in steps.iter().chain(std::iter::repeat(&u8::MAX)) {
            if left.is_empty() {
                break;
            }
            if step % 7 == 3 && wanted < 4 {
                control.go_away(0, MARK);
                // Of two that are wanted before one can leave, the later one counts.
                wanted += 1;
            }
            let (now, later) = left.split_at(left.len().min(usize::from(*step) + 1));
            if step % 2 == 0 {
                splice.write_all(now).await.expect("written");
            } else {
                let (first, second) = now.split_at(now.len() / 2);
                let mut slices = [IoSlice::new(first), IoSlice::new(second)];
                let mut slices = &mut slices[..];
                while slices.iter().any(|slice| !slice.is_empty()) {
                    let count = splice.write_vectored(slices).await.expect("written");
                    IoSlice::advance_slices(&mut slices, count);
                }
            }
            left = later;
        }
        splice.flush().await.expect("flushed");
    });

    let written = written.lock().expect("no panic");
    let (mut rest, mut kept, mut found) = (&written[..], Vec::new(), 0);
    while let Some((header, after)) = rest.split_first_chunk::<9>() {
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        let (frame, next) = rest.split_at(9 + length);
        if header[3] == GOAWAY {
            assert!(after[..length].ends_with(MARK.as_bytes()));
            found += 1;
        } else {
            kept.extend_from_slice(frame);
        }
        rest = next;
    }
    assert!(rest.is_empty(), "a frame was cut");
    assert_eq!(kept, output, "frames are as they were");
    assert!(found <= wanted && (found > 0) == (wanted > 0), "{found} of {wanted}");
});
