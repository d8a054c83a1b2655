//! An agent's reply on its way to a visitor.
//!
//! Two rules of the agents shape this file. A reply's stream is never reset and
//! its octets are credited as they come: a Python agent that is not credited
//! holds that reply for ever. And the stream is answered as soon as it has
//! ended, whatever the visitor does.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use agent_proto::ReplyHead;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::link::{Patience, ReplyBody, ReplyBroken};
use crate::tunnels::Ticket;

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

/// How much of the replies of one agent, or of all, waits for slow visitors.
#[derive(Debug)]
pub(crate) struct Buffered {
    octets: AtomicUsize,
    limit: usize,
    /// That of all agents.
    all: Option<Arc<Self>>,
}

/// A body between the agent, who is never kept waiting, and a visitor.
struct Queue {
    buffered: Arc<Buffered>,
    state: Mutex<State>,
    /// The visitor has gone.
    left: Notify,
}

struct State {
    chunks: VecDeque<Bytes>,
    end: Option<Result<(), ReplyBroken>>,
    reader: Option<Waker>,
    /// When the visitor last took something.
    taken_at: Instant,
    /// The visitor is gone.
    is_abandoned: bool,
}

/// Bodies up to this size are collected, so that the visitor gets them in one piece, if
/// they are there at once.
const SMALL: u64 = 64 * 1024;
/// How long a small body may take to be there at once. One that takes longer goes on
/// octet by octet: the application has something to say before it has said all. It said
/// how long that is, so that it is hardly a stream of events.
const AT_ONCE: Duration = Duration::from_millis(50);

/// How long a visitor may take nothing while the agent's buffer is full.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How long an agent may go on with a reply whose visitor has left; if the reply has a length,
/// how long it may pause. An event stream would go on for ever.
const UNWANTED: Duration = Duration::from_secs(5);
/// How long a reply without a known end may go on when the server is to stop.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Between two looks at a buffer that is full.
const FULL: Duration = Duration::from_millis(20);

impl Buffered {
    /// No more than about `limit` octets.
    pub(crate) fn new(limit: usize) -> Self {
        Self { octets: AtomicUsize::new(0), limit, all: None }
    }

    /// The same, as a part of `all`.
    pub(crate) fn of_agent(all: &Arc<Self>, limit: usize) -> Self {
        Self { all: Some(Arc::clone(all)), ..Self::new(limit) }
    }

    fn add(&self, octets: usize) {
        self.octets.fetch_add(octets, Ordering::Relaxed);
        if let Some(all) = &self.all {
            all.add(octets);
        }
    }

    fn remove(&self, octets: usize) {
        self.octets.fetch_sub(octets, Ordering::Relaxed);
        if let Some(all) = &self.all {
            all.remove(octets);
        }
    }

    fn is_full(&self) -> bool {
        self.octets.load(Ordering::Relaxed) >= self.limit || self.all.as_ref().is_some_and(|all| all.is_full())
    }
}

impl Queue {
    fn new(buffered: Arc<Buffered>) -> Self {
        let (chunks, taken_at) = (VecDeque::new(), Instant::now());
        let state = State { chunks, end: None, reader: None, taken_at, is_abandoned: false };
        Self { buffered, state: Mutex::new(state), left: Notify::new() }
    }

    fn put(&self, chunk: Bytes) {
        let mut state = self.state();
        if state.is_abandoned || state.end.is_some() {
            return;
        }
        if state.chunks.is_empty() {
            // The clock runs from when there is something to take.
            state.taken_at = Instant::now();
        }
        self.buffered.add(chunk.len());
        state.chunks.push_back(chunk);
        state.wake();
    }

    fn end(&self, end: Result<(), ReplyBroken>) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(end);
        }
        state.wake();
    }

    /// Ends the body if the visitor has taken nothing for `time`.
    fn cut_if_stalled(&self, time: Duration) -> bool {
        let mut state = self.state();
        if state.chunks.is_empty() || state.taken_at.elapsed() < time {
            return false;
        }
        self.forget_chunks(&mut state);
        state.end = Some(Err(ReplyBroken::Stalled));
        state.wake();
        true
    }

    fn is_full(&self) -> bool {
        self.buffered.is_full()
    }

    /// Is there something that the visitor has not taken?
    fn is_waiting(&self) -> bool {
        let state = self.state();
        !state.is_abandoned && !state.chunks.is_empty()
    }

    fn abandon(&self) {
        let mut state = self.state();
        state.is_abandoned = true;
        self.forget_chunks(&mut state);
        self.left.notify_one();
    }

    fn forget_chunks(&self, state: &mut State) {
        let octets = state.chunks.drain(..).map(|chunk| chunk.len()).sum();
        self.buffered.remove(octets);
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReplyBroken>>> {
        let mut state = self.state();
        if let Some(chunk) = state.chunks.pop_front() {
            state.taken_at = Instant::now();
            self.buffered.remove(chunk.len());
            return Poll::Ready(Some(Ok(chunk)));
        }
        match state.end {
            Some(end) => Poll::Ready(end.err().map(Err)),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Does the body begin with these octets? Ready when there is a first chunk.
    fn poll_begins_with(&self, octets: &[u8], cx: &mut Context<'_>) -> Poll<Result<bool, ReplyBroken>> {
        let mut state = self.state();
        match (state.chunks.front(), state.end) {
            (Some(first), _) => Poll::Ready(Ok(first.starts_with(octets))),
            (None, Some(end)) => Poll::Ready(end.map(|()| false)),
            (None, None) => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// The beginning of a body. Most bodies are one frame, which needs no copy.
#[derive(Default)]
struct Begun {
    first: Bytes,
    /// All of it, once there is more than the first part.
    parts: BytesMut,
}

impl Begun {
    fn push(&mut self, chunk: Bytes) {
        if self.len() == 0 {
            self.first = chunk;
            return;
        }
        if self.parts.is_empty() {
            self.parts.extend_from_slice(&self.first);
        }
        self.parts.extend_from_slice(&chunk);
    }

    fn len(&self) -> usize {
        self.first.len().max(self.parts.len())
    }

    fn into_octets(self) -> Bytes {
        if self.parts.is_empty() { self.first } else { self.parts.freeze() }
    }
}

impl ReplyStream {
    pub(crate) fn new(recv: RecvStream, respond: SendResponse<Bytes>, buffered: Arc<Buffered>) -> Self {
        Self(Some(Open { recv, respond, buffered }))
    }

    /// The reply is taken: one without a body is acknowledged at once.
    pub(crate) fn acknowledge(&mut self) {
        if let Some(mut open) = self.0.take_if(|open| open.recv.is_end_stream()) {
            open.answer(StatusCode::OK);
        }
    }

    /// Takes the body for a visitor; small ones that are there at once are complete when this returns.
    /// The exchange of `ticket` ends when all of it has come.
    ///
    /// # Errors
    ///
    /// When the body breaks off before the visitor got anything of it.
    pub(crate) async fn into_body(
        mut self,
        length: Option<u64>,
        limit: usize,
        patience: Patience,
        ticket: Ticket,
        stopping: &watch::Receiver<bool>,
    ) -> Result<AgentBody, ReplyBroken> {
        if length.is_some_and(|length| length > limit as u64) {
            return Err(ReplyBroken::TooLarge(limit));
        }
        let Some(open) = self.0.as_mut() else {
            return if length.unwrap_or(0) == 0 {
                Ok(AgentBody::Full(Bytes::new()))
            } else {
                Err(ReplyBroken::WrongLength)
            };
        };
        let mut begun = Begun::default();
        if let Some(length) = length.filter(|length| *length <= SMALL)
            && let Ok(collected) = timeout(AT_ONCE, open.collect(&mut begun, length)).await
        {
            collected?;
            if let Some(mut open) = self.0.take() {
                open.answer(StatusCode::OK);
            }
            return Ok(AgentBody::Full(begun.into_octets()));
        }
        let Some(open) = self.0.take() else { return Ok(AgentBody::Full(Bytes::new())) };
        let queue = Arc::new(Queue::new(Arc::clone(&open.buffered)));
        let begun = begun.into_octets();
        let octets = begun.len();
        if octets > 0 {
            queue.put(begun);
        }
        let stopping = stopping.clone();
        tokio::spawn(open.pump(Arc::clone(&queue), octets as u64, length, limit, patience, ticket, stopping));
        Ok(AgentBody::Stream(Streamed { queue, left: length }))
    }

    /// Takes the body from the agent, forgets it and answers `status`.
    pub(crate) fn refuse(mut self, status: StatusCode) {
        if let Some(open) = self.0.take() {
            open.refuse(status);
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.refuse(StatusCode::GONE);
        }
    }
}

impl Open {
    fn refuse(mut self, status: StatusCode) {
        if self.recv.is_end_stream() {
            self.answer(status);
            return;
        }
        tokio::spawn(async move {
            while let Some(Ok(chunk)) = self.recv.data().await {
                self.credit(chunk.len());
            }
            self.answer(status);
        });
    }

    /// Takes a body of a known length, which is whole when this returns. What it has when it
    /// is dropped before is in `begun`.
    async fn collect(&mut self, begun: &mut Begun, length: u64) -> Result<(), ReplyBroken> {
        while let Some(chunk) = self.recv.data().await {
            let chunk = chunk.map_err(|_| ReplyBroken::Lost)?;
            self.credit(chunk.len());
            begun.push(chunk);
            if begun.len() as u64 > length {
                return Err(ReplyBroken::WrongLength);
            }
        }
        if begun.len() as u64 == length { Ok(()) } else { Err(ReplyBroken::WrongLength) }
    }

    /// Moves what comes of a body, after `octets` that are there, to the visitor's queue, whether or
    /// not anybody takes it; then sees to it that a visitor who stalls does not keep it.
    #[expect(clippy::too_many_arguments, reason = "what a task of its own has to know")]
    async fn pump(
        mut self,
        queue: Arc<Queue>,
        mut octets: u64,
        length: Option<u64>,
        limit: usize,
        patience: Patience,
        ticket: Ticket,
        mut stopping: watch::Receiver<bool>,
    ) {
        let (mut end, mut status) = (Ok(()), StatusCode::OK);
        let (mut has_left, mut is_stopping) = (false, false);
        // Until when the agent may go on.
        let mut until: Option<Instant> = None;
        loop {
            let chunk = tokio::select! {
                biased;
                // Octets come last: an agent that never pauses would keep the rest from being looked at.
                () = queue.left.notified(), if !has_left => {
                    has_left = true;
                    until = Some(Instant::now() + UNWANTED);
                    continue;
                }
                _ = stopping.wait_for(|stop| *stop), if length.is_none() && !is_stopping => {
                    is_stopping = true;
                    until = until.or(Some(Instant::now() + LAST_WORDS));
                    continue;
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    (end, status) = (Err(ReplyBroken::Lost), StatusCode::GONE);
                    break;
                }
                // Nothing may come for long, and what came before be taken by nobody.
                () = sleep(patience.stall / 4), if queue.is_waiting() => {
                    if queue.cut_if_stalled(patience.stall) {
                        patience.lost.notify_one();
                    }
                    continue;
                }
                chunk = self.recv.data() => chunk,
            };
            let chunk = match chunk {
                Some(Ok(chunk)) => chunk,
                Some(Err(_)) => {
                    end = Err(ReplyBroken::Lost);
                    break;
                }
                None => break,
            };
            octets += chunk.len() as u64;
            let len = chunk.len();
            if length.is_some() {
                // It has an end, which is on its way: published agents do not expect to be stopped.
                until = until.map(|_| Instant::now() + UNWANTED);
            }
            if octets > limit as u64 && end.is_ok() {
                end = Err(ReplyBroken::TooLarge(limit));
                // Told at once: the rest may never end.
                queue.end(end);
                until = until.or(Some(Instant::now() + UNWANTED));
            }
            if queue.cut_if_stalled(patience.stall) {
                patience.lost.notify_one();
            }
            if end.is_ok() && !chunk.is_empty() {
                queue.put(chunk);
                // What is not credited is held against every stream of the agent: only a
                // visitor who takes what it gets may make it wait, and only while it has some.
                while queue.is_full() && queue.is_waiting() {
                    if queue.cut_if_stalled(IMPATIENCE) {
                        patience.lost.notify_one();
                        break;
                    }
                    sleep(FULL).await;
                }
            }
            self.credit(len);
        }
        if end.is_ok() && length.is_some_and(|length| length != octets) {
            end = Err(ReplyBroken::WrongLength);
        }
        queue.end(end);
        self.answer(status);
        // The agent is done with it: its session may end.
        drop((self, ticket));
        while queue.is_waiting() {
            if queue.cut_if_stalled(patience.stall) {
                patience.lost.notify_one();
                break;
            }
            sleep(patience.stall / 4).await;
        }
    }

    fn credit(&mut self, octets: usize) {
        // Fails only when the stream is gone.
        let _ = self.recv.flow_control().release_capacity(octets);
    }

    fn answer(&mut self, status: StatusCode) {
        answer(&mut self.respond, status);
    }
}

/// Keeps a stream that we have ended until the agent ends it too, for a while:
/// dropped before, it would be reset under what the agent is sending. `kept` is our
/// half of it.
pub(crate) fn hold(mut recv: RecvStream, kept: impl Send + 'static) {
    tokio::spawn(async move {
        let rest = async {
            while let Some(Ok(chunk)) = recv.data().await {
                // Fails only when the stream is gone.
                let _ = recv.flow_control().release_capacity(chunk.len());
            }
        };
        // Either way it has had its time.
        let _ = timeout(HOLD, rest).await;
        drop(kept);
    });
}

/// How long an agent may take to end a stream that we have ended.
const HOLD: Duration = Duration::from_secs(5);

/// Ends a stream with a status and nothing else.
pub(crate) fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if respond.send_response(response, true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}

/// The body of a reply: all of it, or what is still coming.
pub(super) enum AgentBody {
    Full(Bytes),
    Stream(Streamed),
}

/// A body that is still coming.
pub(super) struct Streamed {
    queue: Arc<Queue>,
    left: Option<u64>,
}

impl AgentBody {
    /// Does the body begin with these octets? Waits for the first of them.
    ///
    /// # Errors
    ///
    /// When the body breaks off before.
    pub(super) async fn begins_with(&mut self, octets: &[u8]) -> Result<bool, ReplyBroken> {
        match self {
            Self::Full(body) => Ok(body.starts_with(octets)),
            Self::Stream(streamed) => poll_fn(|cx| streamed.queue.poll_begins_with(octets, cx)).await,
        }
    }
}

impl From<AgentBody> for ReplyBody {
    fn from(body: AgentBody) -> Self {
        match body {
            AgentBody::Full(body) => Self::Full(body),
            AgentBody::Stream(streamed) => Self::Stream(Box::pin(streamed)),
        }
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = ReplyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyBroken>>> {
        let chunk = ready!(self.queue.poll_take(cx));
        if let Some(Ok(chunk)) = &chunk {
            self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}
