//! An application's answer on its way to a visitor, each octet as it comes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agent_proto::visitor::answer_trailers;
use bytes::Bytes;
use h2::RecvStream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

use super::held::Watched;
use super::session::InFlight;
use crate::link::{LinkError, MAX_REPLY_FIELDS, MAX_REPLY_HEADERS, ReplyBody, ReplyBroken};

/// Why an agent answers by itself, on the link and to the visitor.
const AGENTS_REASON: HeaderName = HeaderName::from_static("adit-reason");
const REASON: HeaderName = HeaderName::from_static("inkbox-reason");

/// Status and fields for the visitor.
///
/// # Errors
///
/// When there are too many.
pub(super) fn head(head: http::response::Parts) -> Result<Response<ReplyBody>, LinkError> {
    let mut headers = head.headers;
    let octets: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if octets > MAX_REPLY_HEADERS || headers.len() > MAX_REPLY_FIELDS {
        tracing::warn!(octets, fields = headers.len(), "a reply's headers are too large for visitors");
        return Err(LinkError::ReplyHeadersTooLarge);
    }
    let reason = headers.remove(AGENTS_REASON);
    let others: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("inkbox-") || name.as_str().starts_with("adit-"))
        .cloned()
        .collect();
    others.iter().for_each(|name| drop(headers.remove(name)));
    if let Some(reason) = reason {
        headers.insert(REASON, reason);
    }
    // RFC 9110 section 8.6: what has no content has no length.
    if head.status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    let mut response = Response::new(ReplyBody::Full(Bytes::new()));
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A body that is still coming.
pub(super) struct Coming {
    recv: RecvStream,
    /// What was there with the head.
    first: Option<Bytes>,
    left: Option<u64>,
    is_done: bool,
    watched: Watched,
    _in_flight: InFlight,
}

impl Coming {
    pub(super) fn new(
        recv: RecvStream,
        first: Option<Bytes>,
        headers: &HeaderMap,
        watched: Watched,
        in_flight: InFlight,
    ) -> Self {
        let left = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { recv, first, left, is_done: false, watched, _in_flight: in_flight }
    }

    fn pass(&mut self, octets: Bytes) -> Frame<Bytes> {
        self.left = self.left.map(|left| left.saturating_sub(octets.len() as u64));
        self.watched.taken();
        // Fails only when the stream is gone.
        let _ = self.recv.flow_control().release_capacity(octets.len());
        Frame::data(octets)
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = ReplyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyBroken>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(self.pass(first))));
        }
        if self.is_done {
            return Poll::Ready(None);
        }
        self.watched.pace().waits(cx);
        if self.watched.pace().is_cut() {
            return Poll::Ready(Some(Err(ReplyBroken::Stalled)));
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(octets)) => return Poll::Ready(Some(Ok(self.pass(octets)))),
            Some(Err(_)) => return Poll::Ready(Some(Err(ReplyBroken::Lost))),
            None => {}
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.is_done = true;
        Poll::Ready(match trailers {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(answer_trailers(trailers)))),
            Err(_) => Some(Err(ReplyBroken::Lost)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_done || (self.first.is_none() && self.recv.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
