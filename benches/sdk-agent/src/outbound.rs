//! The body of a request on its way to the application.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::upstream::{AgentBody, full};

/// A body that comes back when whoever sends it lets it go, as long as it is whole.
pub(crate) struct Outbound {
    body: AgentBody,
    /// What was taken of it.
    held: VecDeque<Bytes>,
    room: usize,
    is_whole: bool,
    back: Option<oneshot::Sender<Option<AgentBody>>>,
}

/// Where an [`Outbound`] comes back to.
pub(crate) struct Returned(oneshot::Receiver<Option<AgentBody>>);

/// Octets that are held, so that they can be sent again.
const MAX_HELD: usize = 64 * 1024;
/// How long a connection that has failed may take to let the body go.
const LET_GO: Duration = Duration::from_secs(1);

impl Outbound {
    /// A body of which the first octets are held, if it may be sent again.
    pub(crate) fn new(body: AgentBody, is_held: bool) -> (Self, Returned) {
        let (back, returned) = oneshot::channel();
        let room = if is_held { MAX_HELD } else { 0 };
        (Self { body, held: VecDeque::new(), room, is_whole: true, back: Some(back) }, Returned(returned))
    }

    fn hold(&mut self, frame: &Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) if self.is_whole && data.len() <= self.room => {
                self.room -= data.len();
                self.held.push_back(data.clone());
            }
            _ => (self.is_whole, self.held) = (false, VecDeque::new()),
        }
    }
}

impl Returned {
    /// Has the body been let go? If not, the application has not taken all of it.
    pub(crate) fn is_back(&mut self) -> bool {
        !matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// The body as it was, if it is whole.
    pub(crate) async fn body(self) -> Option<AgentBody> {
        timeout(LET_GO, self.0).await.ok()?.ok()?
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = <AgentBody as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.hold(frame),
            Some(Err(_)) => self.is_whole = false,
            None => {}
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

impl Drop for Outbound {
    fn drop(&mut self) {
        let rest = std::mem::replace(&mut self.body, full(Bytes::new()));
        let held = std::mem::take(&mut self.held);
        let again = self.is_whole.then(|| UnsyncBoxBody::new(Again { held, rest }));
        if let Some(back) = self.back.take() {
            // Nobody may wait for it any more.
            let _ = back.send(again);
        }
    }
}

/// What was held, then the rest.
struct Again {
    held: VecDeque<Bytes>,
    rest: AgentBody,
}

impl Body for Again {
    type Data = Bytes;
    type Error = <AgentBody as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.held.pop_front() {
            Some(held) => Poll::Ready(Some(Ok(Frame::data(held)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.iter().map(|held| held.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + held);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}
