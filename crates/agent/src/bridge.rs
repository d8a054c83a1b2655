//! The streams of a bridge, and how they end.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::InFlight;
use crate::session::Open;

/// Both halves of a stream, which stays until the edge has all that was sent.
///
/// `h2` forgets what it has queued when nobody holds a stream whose other side is
/// still open (hyperium/h2#880): the end of an answer, a TLS alert, a Close. So
/// dropping a bridge ends the sending half behind what is queued, and leaves the
/// receiving half to a task that reads, and forgets, until the edge ends it too. That
/// also takes in the rest of an upload that was answered early: unread, it would make
/// the edge reset the visitor before the answer is read.
pub(crate) struct Bridge {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: Inbound,
    kept: Option<Kept>,
}

/// What lasts as long as the stream.
type Kept = (InFlight, Open);

/// What the edge sends on a bridge.
pub(crate) struct Inbound(Option<RecvStream>);

/// How long the edge may take to take the rest. It gives up sooner on a visitor who
/// takes nothing, and 400 KiB at most are queued here: 7 KiB/s are enough.
const LINGER: Duration = Duration::from_secs(60);

impl Bridge {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, kept: Kept) -> Self {
        Self { send, recv: Inbound(Some(recv)), kept: Some(kept) }
    }
}

impl Inbound {
    /// The next octets, or none at the end.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let Some(recv) = &mut self.0 else { return Poll::Ready(None) };
        Poll::Ready(ready!(recv.poll_data(cx)).map(|chunk| {
            // Fails only when the stream is gone.
            chunk.inspect(|chunk| drop(recv.flow_control().release_capacity(chunk.len())))
        }))
    }

    /// Reads and forgets to the end.
    pub(crate) async fn drain(&mut self) {
        while let Some(Ok(_)) = std::future::poll_fn(|cx| self.poll_data(cx)).await {}
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Fails when the stream has ended already.
        let _ = self.send.send_data(Bytes::new(), true);
        let mut recv = Inbound(self.recv.0.take());
        let kept = self.kept.take();
        let is_open = recv.0.as_ref().is_some_and(|recv| !recv.is_end_stream());
        // Without a runtime there is no connection either.
        if let Some(runtime) = Handle::try_current().ok().filter(|_| is_open) {
            runtime.spawn(async move {
                let _ = timeout(LINGER, recv.drain()).await;
                drop(kept);
            });
        }
    }
}
