//! The end of a request's body, which is read whatever the answer is: who is
//! still sending when the connection closes gets a reset and no answer (RFC 9112
//! section 9.6).

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::Shared;

/// Octets that are read and dropped; who sends more hears of it or not.
const MAX_DROPPED: usize = 16 * 1024 * 1024;

/// Reads what is left of the body when the answer is made.
pub(super) async fn read_to_its_end(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // Who asks before it sends has its answer, and sends nothing.
    let waits = request.headers().contains_key(header::EXPECT);
    let (back, mut left) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, back: Some(back), is_begun: !waits }));
    let response = next.run(request).await;
    if let Ok(body) = left.try_recv() {
        // Who is slow about it has had its time.
        let _ = tokio::time::timeout(shared.limits.request, drop_all(body)).await;
    }
    response
}

async fn drop_all(mut body: Body) {
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, Bytes::len);
        if size > MAX_DROPPED {
            return;
        }
    }
}

/// A body that comes back when it is dropped with something left of it.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
    /// Does its sender send?
    is_begun: bool,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.is_begun = true;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_begun
            && !self.body.is_end_stream()
            && let Some(back) = self.back.take()
        {
            // Whoever gave it may have gone.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}
