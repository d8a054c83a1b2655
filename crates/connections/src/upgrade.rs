//! Connections that became something else after a 101.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Guarded, Impatient, Io};

/// A connection of which something was read already.
pub struct Rewound<IO> {
    first: Bytes,
    io: IO,
}

impl<IO> Rewound<IO> {
    /// Gives `first`, then what `io` has.
    pub fn new(first: Bytes, io: IO) -> Self {
        Self { first, io }
    }
}

/// A connection of [`serve_http1`](crate::serve_http1) after its 101: what looked at
/// requests and waited for answers is gone from it.
pub type Upgraded = Rewound<Box<dyn Io>>;

/// Returns the connection when the 101 is written.
///
/// # Errors
///
/// When it ended before, or was not one of [`serve_http1`](crate::serve_http1).
pub async fn upgraded(on: OnUpgrade) -> io::Result<Upgraded> {
    let upgraded = on.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<TokioIo<Guarded<Impatient<Box<dyn Io>>>>>()
        .map_err(|_| io::Error::other("a connection of another server"))?;
    let io = parts.io.into_inner().into_inner().into_inner();
    Ok(Rewound::new(parts.read_buf, io))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let octets = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..octets]);
        self.first.advance(octets);
        if self.first.is_empty() {
            // Its memory is not needed for the rest of the connection.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
