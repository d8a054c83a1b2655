//! Connections whose peer must take what is written to it, and gets the time to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};

/// A connection that breaks when the peer takes nothing for a while, and lingers at
/// its end until the peer has read it.
///
/// A socket that is closed while something unread has come makes the kernel send a
/// reset, which destroys what the peer has not read yet: the 413 of an upload, or
/// the alert of a handshake. So its shutdown ends our half, then reads what the
/// peer still sends, and forgets it, for at most [`LINGER`].
///
/// Whoever has begun to write or to flush goes on with it: given up while it waits, it
/// would count as a peer that takes nothing.
pub struct Impatient<IO> {
    io: IO,
    patience: Duration,
    /// Since when nothing could be written; not there while things move.
    waiting: Option<Pin<Box<Sleep>>>,
    end: End,
}

/// How far the shutdown is.
enum End {
    Open,
    /// Our half has ended; until then the peer may go on.
    Lingering(Pin<Box<Sleep>>),
    Done,
}

/// How long a peer may take to read the end: round trips, but no upload.
pub const LINGER: Duration = Duration::from_secs(2);
/// Octets that are read at once to be forgotten.
const SCRAP: usize = 4 * 1024;

impl<IO> Impatient<IO> {
    /// Breaks when the peer takes nothing for `patience`.
    pub fn new(io: IO, patience: Duration) -> Self {
        Self { io, patience, waiting: None, end: End::Open }
    }

    /// The connection itself: nothing is waited for any more.
    pub fn into_inner(self) -> IO {
        self.io
    }

    fn judge<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        // Whoever took something in time has woken this task in time: what is taken now goes
        // into a buffer between, that of TLS.
        if self.waiting.as_mut().is_some_and(|waiting| waiting.as_mut().poll(cx).is_ready()) {
            self.waiting = None;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if written.is_ready() {
            self.waiting = None;
        } else if self.waiting.is_none() {
            let mut waiting = Box::pin(sleep(self.patience));
            // It has not begun without being asked.
            let _ = waiting.as_mut().poll(cx);
            self.waiting = Some(waiting);
        }
        written
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Impatient<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Impatient<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.judge(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.end {
                End::Open => {
                    let shut = Pin::new(&mut this.io).poll_shutdown(cx);
                    ready!(this.judge(shut, cx))?;
                    this.end = End::Lingering(Box::pin(sleep(LINGER)));
                }
                End::Lingering(until) => {
                    let mut scrap = [0; SCRAP];
                    let mut scrap = ReadBuf::new(&mut scrap);
                    let is_over = until.as_mut().poll(cx).is_ready()
                        || match Pin::new(&mut this.io).poll_read(cx, &mut scrap) {
                            // Said to whoever still listened; it has closed, or broken off.
                            Poll::Ready(read) => read.is_err() || scrap.filled().is_empty(),
                            Poll::Pending => return Poll::Pending,
                        };
                    if is_over {
                        this.end = End::Done;
                    }
                }
                End::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Ends a connection whose last word was written: the peer has [`LINGER`] to read it.
pub async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    use tokio::io::AsyncWriteExt as _;

    let mut io = Impatient::new(&mut io, LINGER);
    // Said to whoever still listens.
    let _ = timeout(2 * LINGER, io.shutdown()).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Impatient::new(near, Duration::from_secs(30));
        near.write_all(&[0; 8]).await.expect("there is room");
        let begun = Instant::now();
        let error = near.write_all(&[0; 8]).await.expect_err("there is none");
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, Duration::from_secs(30)));
        far.read_exact(&mut [0; 8]).await.expect("what was written");
        near.write_all(&[0; 8]).await.expect("it may be tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_buffer_takes_is_not_taken_by_the_peer() {
        let (near, _far) = tokio::io::duplex(8);
        // It stands for TLS, which has a buffer of its own.
        let buffered = tokio::io::BufWriter::with_capacity(64, near);
        let mut near = Impatient::new(buffered, Duration::from_secs(30));
        near.write_all(&[0; 12]).await.expect("there is room in the buffer");
        let flushed = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll_flush(cx))).await;
        assert!(flushed.is_pending(), "the peer takes eight octets");
        // Then the timer wakes whoever writes, and that is tried before the flush.
        sleep(Duration::from_secs(30)).await;
        let error = near.write_all(&[0; 12]).await.expect_err("the peer has taken nothing");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_goes_on_and_on_is_cut_off() {
        let (near, mut far) = tokio::io::duplex(8);
        tokio::spawn(async move {
            while far.write_all(b"more").await.is_ok() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let begun = Instant::now();
        Impatient::new(near, Duration::from_secs(30)).shutdown().await.expect("ended");
        assert!(begun.elapsed() <= LINGER, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn the_last_words_reach_a_peer_that_is_still_sending() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a peer");
            stream.read_exact(&mut [0; 4]).await.expect("the beginning");
            stream.write_all(b"too much").await.expect("written");
            linger(stream).await;
        });
        let mut peer = TcpStream::connect(address).await.expect("connected");
        peer.write_all(&[7; 300_000]).await.expect("sent");
        let mut told = Vec::new();
        peer.read_to_end(&mut told).await.expect("no reset");
        assert_eq!(told, b"too much");
        drop(peer);
        server.await.expect("no panic");
    }
}
