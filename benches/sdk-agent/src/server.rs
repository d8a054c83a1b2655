//! HTTP with the visitors of a passthrough tunnel. They are strangers: whatever they
//! hold of this process has a limit and a time.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use connections::Guarded;
use http::{Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::upstream::{AgentBody, MAX_FIELDS, MAX_HEADERS};

/// How long a visitor may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the head of a request, and between two over HTTP/1.1.
    pub(crate) head: Duration,
    /// Without a request over HTTP/2.
    pub(crate) idle: Duration,
    /// To take the next piece of an answer.
    pub(crate) stall: Duration,
    /// To take the last answers, when the connection is to end.
    pub(crate) leave: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let second = Duration::from_secs;
        Self { head: second(30), idle: second(120), stall: second(60), leave: second(10) }
    }
}

/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 100;
/// Requests that a visitor may give up within a second (CVE-2023-44487).
const MAX_RESETS: u32 = 100;
/// What a visitor may send ahead on one HTTP/2 stream, and on all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is read ahead of HTTP/1.1, and kept of an answer that is not taken yet.
const MAX_BUFFER: usize = 128 * 1024;
/// Between two PINGs, and to their acknowledgement.
const PING: Duration = Duration::from_secs(30);

/// Speaks HTTP/1 or HTTP/2 with whoever is at the other end of `io`, and hands each
/// request to `serve`; when `stopped` is done, what is in progress is finished.
pub(crate) async fn serve_http<IO, S, F>(
    io: IO,
    is_http2: bool,
    patience: Patience,
    stopped: impl Future<Output = ()>,
    serve: S,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<AgentBody>> + Send + 'static,
{
    let pace = Arc::new(Pace::new());
    let paced = Arc::clone(&pace);
    let io = Guarded::new(io);
    let guard = io.lift();
    if is_http2 {
        guard.lift();
    }
    let service = service_fn(move |request| {
        let exchange = Pace::begin(&paced);
        let response = serve(request);
        let guard = guard.clone();
        async move {
            let response = response.await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                guard.lift();
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| Paced { body, exchange }))
        }
    });
    let quiet = pace.quiet(patience);
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                biased;
                ended = connection.as_mut() => return ended,
                quiet = quiet => {
                    if let Quiet::Stalled = quiet {
                        return Ok(());
                    }
                }
                () = pace.lost.notified() => return Ok(()),
                () = stopped => {}
            }
            connection.as_mut().graceful_shutdown();
            timeout(patience.leave, connection).await.unwrap_or(Ok(()))
        }};
    }
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS as u32 + MAX_FIELDS as u32 * 32)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        run!(builder.serve_connection(TokioIo::new(io), service))
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(patience.head)
            .max_headers(MAX_FIELDS)
            .max_header_size(MAX_HEADERS)
            .max_buf_size(MAX_BUFFER);
        run!(builder.serve_connection(TokioIo::new(io), service).with_upgrades())
    }
}

/// How the exchanges of one connection go on.
struct Pace {
    state: Mutex<State>,
    /// Told when the visitor does nothing but ask and give up.
    lost: Notify,
}

struct State {
    /// Each with the tick since which the visitor is waited for; none while the
    /// application is. A few, in no order.
    exchanges: Vec<(u64, Option<u32>)>,
    last: u64,
    /// Counted every now and then: a clock that costs nothing to read.
    tick: u32,
    /// When there was an exchange last.
    moved: u32,
    /// Exchanges that the visitor has given up, and since when they are counted.
    resets: (u32, Instant),
}

/// Ticks in the time that a visitor has.
const TICKS: u32 = 4;

impl Pace {
    fn new() -> Self {
        let state = State { exchanges: Vec::new(), last: 0, tick: 0, moved: 0, resets: (0, Instant::now()) };
        Self { state: Mutex::new(state), lost: Notify::new() }
    }

    fn begin(this: &Arc<Self>) -> Exchange {
        let mut state = this.state();
        state.last += 1;
        let number = state.last;
        state.exchanges.push((number, None));
        Exchange { pace: Arc::clone(this), number, is_done: false }
    }

    /// Returns when there has been no exchange for so long, or when the visitor has taken
    /// nothing of an answer for so long.
    async fn quiet(&self, patience: Patience) -> Quiet {
        let ticks = patience.idle.div_duration_f64(patience.stall).ceil() * f64::from(TICKS);
        loop {
            sleep(patience.stall / TICKS).await;
            let mut state = self.state();
            state.tick = state.tick.wrapping_add(1);
            let since = |tick: u32| state.tick.wrapping_sub(tick);
            if state.exchanges.iter().filter_map(|exchange| exchange.1).any(|tick| since(tick) > TICKS) {
                return Quiet::Stalled;
            }
            if state.exchanges.is_empty() && f64::from(since(state.moved)) > ticks {
                return Quiet::Idle;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a visitor does not do.
enum Quiet {
    Idle,
    Stalled,
}

/// From a request to the end of its answer.
struct Exchange {
    pace: Arc<Pace>,
    number: u64,
    /// Is there nothing more of the answer?
    is_done: bool,
}

impl Exchange {
    fn waits_for_visitor(&self, waits: bool) {
        let mut state = self.pace.state();
        let since = waits.then_some(state.tick);
        if let Some(exchange) = state.exchanges.iter_mut().find(|exchange| exchange.0 == self.number) {
            exchange.1 = since;
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.pace.state();
        state.exchanges.retain(|exchange| exchange.0 != self.number);
        state.moved = state.tick;
        if self.is_done {
            return;
        }
        if state.resets.1.elapsed() >= Duration::from_secs(1) {
            state.resets = (0, Instant::now());
        }
        state.resets.0 += 1;
        if state.resets.0 > MAX_RESETS {
            self.pace.lost.notify_one();
        }
    }
}

/// An answer's body. Whoever sends it asks for the next piece when there is room for
/// it: until then the visitor is waited for.
struct Paced {
    body: AgentBody,
    exchange: Exchange,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = <AgentBody as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.exchange.waits_for_visitor(false);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // An answer that breaks off is not given up by the visitor.
        self.exchange.is_done = !matches!(frame, Some(Ok(_))) || self.body.is_end_stream();
        if !self.exchange.is_done {
            self.exchange.waits_for_visitor(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.exchange.is_done |= self.body.is_end_stream();
    }
}
