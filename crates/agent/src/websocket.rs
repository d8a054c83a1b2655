//! A visitor's WebSocket: the handshake with the application is made here, and the octets
//! pass as they are (RFC 8441 section 5).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::visitor::answer_headers;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::timeout;

use crate::exchange::{Failure, asked, onward, outward, send, send_all};
use crate::session::Open;
use crate::upstream::{UpstreamBody, full, upgraded};
use crate::{InFlight, Shared};

/// How long the second side may take to end after the first.
const CLOSING: Duration = Duration::from_secs(5);
const READ: usize = 16 * 1024;

/// Serves one WebSocket to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    open: Open,
) {
    let in_flight = InFlight::of(&shared);
    let begun = std::time::Instant::now();
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let (head, recv) = request.into_parts();
    let shaken = tokio::select! {
        biased;
        shaken = shake(&shared, head) => shaken,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let status = match &shaken {
        Ok(Shaken::Accepted(..)) => StatusCode::SWITCHING_PROTOCOLS,
        Ok(Shaken::Refused(head, _)) => head.status(),
        Err(failure) => failure.status,
    };
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.tell(crate::Event::Served { method: Method::GET, path, status, micros });
    let sent = match shaken {
        Ok(Shaken::Accepted(head, local)) => match respond.send_response(head, false) {
            Ok(stream) => {
                join(local, stream, recv).await;
                Ok(())
            }
            Err(error) => Err(error.into()),
        },
        Ok(Shaken::Refused(head, body)) => send(&mut respond, head, body).await,
        Err(failure) => failure.send(&mut respond),
    };
    if let Err(error) = sent {
        tracing::debug!(error = &error as &dyn std::error::Error, "a WebSocket did not begin");
    }
    drop((open, in_flight));
}

/// What the application says to the handshake.
enum Shaken<IO> {
    Accepted(Response<()>, IO),
    Refused(Response<()>, UpstreamBody),
}

/// The handshake with the application (RFC 6455 section 4.1).
async fn shake(
    shared: &Shared,
    mut head: http::request::Parts,
) -> Result<Shaken<impl AsyncRead + AsyncWrite>, Failure> {
    let (public, visitor) = asked(&mut head);
    head.method = Method::GET;
    let request = Request::from_parts(head, full(Bytes::new()));
    let mut request = onward(shared, request, public.as_ref(), visitor);
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal"))?;
    let fields = request.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::try_from(STANDARD.encode(key)) {
        fields.insert(header::SEC_WEBSOCKET_KEY, key);
    }
    let response = shared.upstream.send_upgrade(request).await.map_err(|error| Failure::of(shared, &error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        // 2xx would be an acceptance.
        let status = if head.status.is_success() { StatusCode::BAD_GATEWAY } else { head.status };
        let head = outward(shared, status, head.headers, public.as_ref())?;
        return Ok(Shaken::Refused(head, shared.upstream.body_of_its_own(body)));
    }
    let mut head = Response::new(());
    *head.headers_mut() = answer_headers(response.headers().clone());
    for name in [header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH] {
        head.headers_mut().remove(name);
    }
    let local = upgraded(response).await.map_err(|_| Failure::new(StatusCode::BAD_GATEWAY, "upstream-error"))?;
    Ok(Shaken::Accepted(head, local))
}

/// Carries octets both ways until both sides have ended.
async fn join(local: impl AsyncRead + AsyncWrite, mut stream: SendStream<Bytes>, mut recv: RecvStream) {
    let (read, write) = split(local);
    let has_ended = {
        let mut forward = std::pin::pin!(to_application(&mut recv, write));
        let mut backward = std::pin::pin!(to_edge(read, &mut stream));
        tokio::select! {
            forward = forward.as_mut() => match forward {
                true => timeout(CLOSING, backward).await.unwrap_or(false),
                false => false,
            },
            backward = backward.as_mut() => match backward {
                true => timeout(CLOSING, forward).await.unwrap_or(false),
                false => false,
            },
        }
    };
    if !has_ended {
        stream.send_reset(Reason::CANCEL);
    }
}

/// What the visitor says; true if it came to its end.
pub(crate) async fn to_application(recv: &mut RecvStream, mut write: impl AsyncWrite + Unpin) -> bool {
    while let Some(chunk) = recv.data().await {
        let Ok(chunk) = chunk else { return false };
        // What the socket has no room for would wait in TLS.
        if write.write_all(&chunk).await.is_err() || write.flush().await.is_err() {
            return false;
        }
        // Fails only when the stream is gone.
        let _ = recv.flow_control().release_capacity(chunk.len());
    }
    // An application that has closed already is closed.
    let _ = write.shutdown().await;
    true
}

/// What the application says; true if it came to its end.
pub(crate) async fn to_edge(mut read: impl AsyncRead + Unpin, stream: &mut SendStream<Bytes>) -> bool {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let octets = tokio::select! {
            octets = read.read_buf(&mut buffer) => octets,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return false,
        };
        match octets {
            Ok(0) => return stream.send_data(Bytes::new(), true).is_ok(),
            Ok(_) => {
                if send_all(stream, buffer.split().freeze()).await.is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
}
