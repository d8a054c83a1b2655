//! What visitors ask of a tunnel's agent, whichever wire it speaks.
//!
//! `visitor` and `passthrough` know this and no wire. A wire knows neither of
//! them: it has a file or a directory of its own, which implements [`Link`].

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agent_proto::limits::MAX_BODY;
use bytes::{Bytes, BytesMut};
use connections::Place;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::timeout;
use tunnel_model::{Failure, LiveRefusal};

/// The way to the agent of one tunnel.
pub(crate) trait Link {
    /// A WebSocket that the application has accepted.
    type WebSocket: WebSocket;
    /// A connection to whoever ends the visitor's TLS.
    type Duplex: Duplex;

    /// One request of a visitor, with the application's answer. What is left of the
    /// body after an error is the caller's to read; taken, it is still being sent.
    async fn request(
        &self,
        request: Request<()>,
        body: &mut Option<Incoming>,
        visitor: &Visitor<'_>,
    ) -> Result<Response<ReplyBody>, LinkError>;

    /// A WebSocket handshake.
    async fn websocket(
        &self,
        request: &Request<()>,
        visitor: &Visitor<'_>,
    ) -> Result<Handshake<Self::WebSocket>, LinkError>;

    /// A connection for the octets of a visitor who asked for `host`; `first` are those
    /// that it has sent.
    async fn connect(&self, host: String, first: Bytes, visitor: IpAddr) -> Result<Self::Duplex, LinkError>;
}

/// Who asks.
pub(crate) struct Visitor<'a> {
    pub(crate) ip: IpAddr,
    /// Whose account bodies are held on.
    pub(crate) place: &'a Place,
    pub(crate) patience: Patience,
}

/// How long a visitor may take nothing of a reply, and who is told then: the
/// visitor's connection, which would keep what was written so far for ever.
#[derive(Clone)]
pub(crate) struct Patience {
    pub(crate) stall: Duration,
    pub(crate) lost: Arc<Notify>,
}

/// What an application says to a WebSocket handshake.
pub(crate) enum Handshake<W> {
    /// Yes, with these headers.
    Accepted(HeaderMap, W),
    /// No, in an answer like any other.
    Refused(Response<ReplyBody>),
}

/// A WebSocket on its way to the agent.
pub(crate) trait WebSocket: Send + 'static {
    /// Joins it with the visitor, who speaks RFC 6455 on `visitor`, until both have ended.
    fn run<IO>(self, visitor: IO) -> impl Future<Output = ()> + Send
    where
        IO: AsyncRead + AsyncWrite + Send + 'static;
}

/// Octets to and from an agent.
pub(crate) trait Duplex: Send {
    type Sender: Sender;
    type Receiver: Receiver;

    /// May one direction go on when the other has ended?
    const IS_HALF_CLOSED: bool;

    fn halves(&mut self) -> (&mut Self::Sender, &mut Self::Receiver);

    /// Ends both directions. What is on its way to the agent arrives.
    fn close(self);

    /// Breaks both directions off.
    fn reset(self);
}

/// What an agent is sent.
pub(crate) trait Sender: Send {
    /// Octets that [`Sender::send`] wants to have free before the payload, and the most
    /// that it takes at once.
    fn room(&self) -> Room;

    /// Sends `payload`, before which there is room in its buffer, when the agent takes it.
    fn send(&mut self, payload: Payload) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// The visitor has said all that it has to say.
    fn finish(&mut self);
}

/// What an agent sends.
pub(crate) trait Receiver: Send {
    /// The next octets; `None` at the end, an error if it is not one. Those before are
    /// taken to be used when this is called.
    fn next(&mut self) -> impl Future<Output = Option<io::Result<Bytes>>> + Send;
}

/// See [`Sender::room`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) before: usize,
    pub(crate) payload: usize,
}

/// Octets with room for a header before them, so that nothing is copied.
pub(crate) struct Payload {
    /// The room, then the octets.
    buffer: BytesMut,
    room: usize,
}

impl Payload {
    /// Of a buffer whose first `room` octets have no meaning.
    pub(crate) fn new(buffer: BytesMut, room: usize) -> Self {
        Self { buffer, room }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.room
    }

    /// The octets with a header, which has to fit into the room, before them.
    pub(crate) fn after(mut self, header: &[u8]) -> Bytes {
        let start = self.room - header.len();
        self.buffer[start..self.room].copy_from_slice(header);
        self.buffer.freeze().slice(start..)
    }
}

/// Takes the rest of a request that is refused, for a while: clients that are cut
/// off while they send lose the answer (curl does so over HTTP/2).
pub(crate) fn discard(mut body: Incoming, time: Duration) {
    tokio::spawn(async move {
        let mut left = MAX_BODY;
        let rest = async {
            while let Some(Ok(frame)) = body.frame().await {
                let octets = frame.data_ref().map_or(0, Bytes::len);
                if octets > left {
                    return;
                }
                left -= octets;
            }
        };
        // Either way it has had its time.
        let _ = timeout(time, rest).await;
    });
}

/// Octets and number of a reply's header fields.
pub(crate) const MAX_REPLY_HEADERS: usize = 64 * 1024;
pub(crate) const MAX_REPLY_FIELDS: usize = 200;

/// Why there is no answer of the application.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkError {
    /// The request's body did not come to its end.
    BodyBroken,
    BodyTooLarge,
    BodyTooSlow,
    Failed(Failure),
    HeadersTooLarge,
    /// The room for bodies is taken.
    NoMemory,
    /// The agent does not speak what is asked for.
    NotSpoken,
    ReplyBroken,
    ReplyHeadersTooLarge,
    /// The wire has no word for this request target.
    Target,
}

impl From<Failure> for LinkError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<LiveRefusal> for LinkError {
    fn from(refusal: LiveRefusal) -> Self {
        match refusal {
            LiveRefusal::QueueFull => Self::Failed(Failure::AgentBusy),
            // Of these a visitor's command meets the first one alone.
            LiveRefusal::Offline
            | LiveRefusal::BridgeTaken
            | LiveRefusal::Draining
            | LiveRefusal::Superseded
            | LiveRefusal::TooManyIntakes
            | LiveRefusal::UnknownExchange
            | LiveRefusal::UnknownSession
            | LiveRefusal::UnwantedBridge => Self::Failed(Failure::AgentOffline),
        }
    }
}

impl From<ReplyBroken> for LinkError {
    fn from(_: ReplyBroken) -> Self {
        Self::ReplyBroken
    }
}

/// Why a reply's body is not complete.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ReplyBroken {
    #[error("the agent's connection broke")]
    Lost,
    #[error("the visitor does not take the reply")]
    Stalled,
    #[error("the reply is larger than {0} octets")]
    TooLarge(usize),
    #[error("the reply has not as many octets as its content-length says")]
    WrongLength,
}

/// The body that a visitor gets.
pub(crate) enum ReplyBody {
    Full(Bytes),
    /// None, and nothing is said of how long it would be: the answer to a HEAD.
    Headless,
    /// What is still coming.
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = ReplyBroken> + Send>>),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyBroken>>> {
        match &mut *self {
            Self::Headless => Poll::Ready(None),
            Self::Full(body) if body.is_empty() => Poll::Ready(None),
            Self::Full(body) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(body))))),
            Self::Stream(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_empty(),
            Self::Headless => false,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => SizeHint::with_exact(body.len() as u64),
            Self::Headless => SizeHint::default(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}
