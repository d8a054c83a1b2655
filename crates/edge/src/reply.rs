//! An agent's reply on its way to a visitor.
//!
//! Two rules of the agents shape this file. A reply's stream is never reset and
//! its octets are credited as they come: a Python agent that is not credited
//! holds that reply for ever. And the stream is answered as soon as it has
//! ended, whatever the visitor does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use agent_proto::ReplyHead;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, mpsc};

/// Head and body of a reply. Dropped, it takes the rest of the body from the
/// agent all the same.
pub(crate) struct AgentReply {
    pub(crate) head: ReplyHead,
    pub(crate) body: ReplyStream,
}

/// The stream that a reply comes on.
pub(crate) struct ReplyStream(Option<Open>);

struct Open {
    recv: RecvStream,
    respond: SendResponse<Bytes>,
    buffered: Arc<Buffered>,
}

/// How much of the replies of one agent waits for slow visitors.
#[derive(Debug)]
pub(crate) struct Buffered {
    octets: AtomicUsize,
    limit: usize,
    taken: Notify,
}

/// Why a body is not complete.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ReplyBroken {
    #[error("the agent's connection broke")]
    Lost,
    #[error("the reply is larger than {0} octets")]
    TooLarge(usize),
    #[error("the reply has not as many octets as its content-length says")]
    WrongLength,
}

/// Bodies up to this size are collected before the visitor gets anything.
const SMALL: u64 = 64 * 1024;

impl Buffered {
    /// No more than about `limit` octets.
    pub(crate) fn new(limit: usize) -> Self {
        Self { octets: AtomicUsize::new(0), limit, taken: Notify::new() }
    }

    fn add(&self, octets: usize) {
        self.octets.fetch_add(octets, Ordering::Relaxed);
    }

    fn take(&self, octets: usize) {
        let before = self.octets.fetch_sub(octets, Ordering::Relaxed);
        if before >= self.limit {
            self.taken.notify_waiters();
        }
    }

    async fn room(&self) {
        loop {
            let taken = self.taken.notified();
            if self.octets.load(Ordering::Relaxed) < self.limit {
                return;
            }
            taken.await;
        }
    }
}

impl ReplyStream {
    pub(crate) fn new(recv: RecvStream, respond: SendResponse<Bytes>, buffered: Arc<Buffered>) -> Self {
        let mut open = Open { recv, respond, buffered };
        if open.recv.is_end_stream() {
            open.answer(StatusCode::OK);
            return Self(None);
        }
        Self(Some(open))
    }

    /// Takes the body for a visitor; small ones are complete when this returns.
    ///
    /// # Errors
    ///
    /// When the body breaks off before the visitor got anything of it.
    pub(crate) async fn into_body(mut self, length: Option<u64>, limit: usize) -> Result<ReplyBody, ReplyBroken> {
        if length.is_some_and(|length| length > limit as u64) {
            return Err(ReplyBroken::TooLarge(limit));
        }
        let Some(open) = self.0.as_mut() else {
            return if length.unwrap_or(0) == 0 {
                Ok(ReplyBody::Full(Bytes::new()))
            } else {
                Err(ReplyBroken::WrongLength)
            };
        };
        if let Some(length) = length.filter(|length| *length <= SMALL) {
            let body = open.collect(length).await?;
            if let Some(mut open) = self.0.take() {
                open.answer(StatusCode::OK);
            }
            return Ok(ReplyBody::Full(body));
        }
        let Some(open) = self.0.take() else { return Ok(ReplyBody::Full(Bytes::new())) };
        let (sender, chunks) = mpsc::unbounded_channel();
        let buffered = Arc::clone(&open.buffered);
        tokio::spawn(open.pump(sender, length, limit));
        Ok(ReplyBody::Stream(Streamed { chunks, first: None, left: length, buffered }))
    }

    /// Takes the body from the agent, forgets it and answers `status`.
    pub(crate) fn refuse(mut self, status: StatusCode) {
        if let Some(open) = self.0.take() {
            open.drain(status);
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.drain(StatusCode::GONE);
        }
    }
}

impl Open {
    fn drain(mut self, status: StatusCode) {
        tokio::spawn(async move {
            while let Some(Ok(chunk)) = self.recv.data().await {
                self.credit(chunk.len());
            }
            self.answer(status);
        });
    }

    async fn collect(&mut self, length: u64) -> Result<Bytes, ReplyBroken> {
        let mut whole = Bytes::new();
        let mut parts = BytesMut::new();
        while let Some(chunk) = self.recv.data().await {
            let chunk = chunk.map_err(|_| ReplyBroken::Lost)?;
            self.credit(chunk.len());
            if whole.is_empty() && parts.is_empty() {
                // Most bodies are one frame, which needs no copy.
                whole = chunk;
                continue;
            }
            if parts.is_empty() {
                parts.extend_from_slice(&whole);
            }
            parts.extend_from_slice(&chunk);
            if parts.len() as u64 > length {
                return Err(ReplyBroken::WrongLength);
            }
        }
        let body = if parts.is_empty() { whole } else { parts.freeze() };
        if body.len() as u64 == length { Ok(body) } else { Err(ReplyBroken::WrongLength) }
    }

    /// Moves a large body to the visitor's queue, whether or not anybody takes it.
    async fn pump(
        mut self,
        visitor: mpsc::UnboundedSender<Result<Bytes, ReplyBroken>>,
        length: Option<u64>,
        limit: usize,
    ) {
        let mut octets = 0_u64;
        let mut failure = None;
        loop {
            let chunk = match self.recv.data().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(_)) => {
                    failure = Some(ReplyBroken::Lost);
                    break;
                }
                None => break,
            };
            octets += chunk.len() as u64;
            let len = chunk.len();
            if octets > limit as u64 {
                failure = Some(ReplyBroken::TooLarge(limit));
            } else if failure.is_none() && !chunk.is_empty() {
                self.buffered.add(len);
                if visitor.send(Ok(chunk)).is_err() {
                    self.buffered.take(len);
                }
            }
            self.credit(len);
            if !visitor.is_closed() {
                tokio::select! {
                    () = self.buffered.room() => {}
                    () = visitor.closed() => {}
                }
            }
        }
        if failure.is_none() && length.is_some_and(|length| length != octets) {
            failure = Some(ReplyBroken::WrongLength);
        }
        if let Some(failure) = failure {
            // A visitor that has left does not mind.
            let _ = visitor.send(Err(failure));
        }
        self.answer(StatusCode::OK);
    }

    fn credit(&mut self, octets: usize) {
        // Fails only when the stream is gone.
        let _ = self.recv.flow_control().release_capacity(octets);
    }

    fn answer(&mut self, status: StatusCode) {
        answer(&mut self.respond, status);
    }
}

/// Ends a stream with a status and nothing else.
pub(crate) fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}

/// The body that a visitor gets.
pub(crate) enum ReplyBody {
    Full(Bytes),
    /// None, and nothing is said of how long it would be: the answer to a HEAD.
    Headless,
    Stream(Streamed),
}

/// A body that is still coming.
pub(crate) struct Streamed {
    chunks: mpsc::UnboundedReceiver<Result<Bytes, ReplyBroken>>,
    /// The first chunk, if it was looked at.
    first: Option<Bytes>,
    left: Option<u64>,
    buffered: Arc<Buffered>,
}

impl ReplyBody {
    /// Does the body begin with these octets? Waits for the first of them.
    ///
    /// # Errors
    ///
    /// When the body breaks off before.
    pub(crate) async fn begins_with(&mut self, octets: &[u8]) -> Result<bool, ReplyBroken> {
        match self {
            Self::Full(body) => Ok(body.starts_with(octets)),
            Self::Headless => Ok(false),
            Self::Stream(streamed) => {
                if streamed.first.is_none() {
                    streamed.first = streamed.chunks.recv().await.transpose()?;
                }
                Ok(streamed.first.as_ref().is_some_and(|first| first.starts_with(octets)))
            }
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyBroken>>> {
        match &mut *self {
            Self::Headless => Poll::Ready(None),
            Self::Full(body) if body.is_empty() => Poll::Ready(None),
            Self::Full(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
            Self::Stream(streamed) => streamed.poll_chunk(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(body) if body.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => SizeHint::with_exact(body.len() as u64),
            Self::Stream(Streamed { left: Some(left), .. }) => SizeHint::with_exact(*left),
            Self::Stream(_) | Self::Headless => SizeHint::default(),
        }
    }
}

impl Streamed {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReplyBroken>>> {
        let chunk = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.chunks.poll_recv(cx)),
        };
        if let Some(Ok(chunk)) = &chunk {
            self.buffered.take(chunk.len());
            self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
        }
        Poll::Ready(chunk)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.chunks.close();
        let first = self.first.take().map(Ok);
        for chunk in first.into_iter().chain(std::iter::from_fn(|| self.chunks.try_recv().ok())).flatten() {
            self.buffered.take(chunk.len());
        }
    }
}
