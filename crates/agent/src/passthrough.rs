//! Visitors of a passthrough tunnel: TLS ends here, with a key that the edge
//! never sees.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_proto::bridge::{Outer, OuterDecoder, encode_outer_close, outer_prefix};
use agent_proto::limits::MAX_TCP_FRAME;
use agent_proto::visitor::reply_headers;
use agent_proto::{BridgeId, BridgeKind, Opcode, apply_mask};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::bridge::Bridge;
use crate::exchange::put_forwarded;
use crate::session::Streams;
use crate::upstream::{AgentBody, full, serve_http, upgraded};
use crate::{InFlight, Shared, mask};

/// How long the bridge and the visitor's handshake may take, each.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection of a visitor until it ends.
pub(crate) async fn serve(shared: &Arc<Shared>, streams: Streams, id: BridgeId, visitor: Option<IpAddr>) {
    let Some(certificate) = &shared.certificate else {
        tracing::warn!("the edge sends a raw connection, but TLS ends there");
        return;
    };
    let bridge = match streams.bridge(BridgeKind::Tcp, id, InFlight::of(shared), HANDSHAKE).await {
        Ok(bridge) => bridge,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "no bridge for a connection");
            return;
        }
    };
    let bridge = BridgeIo { bridge, decoder: OuterDecoder::new(), read: Bytes::new(), is_done: false };
    let accepted = timeout(HANDSHAKE, TlsAcceptor::from(certificate.server_config()).accept(bridge)).await;
    let tls = match accepted {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a visitor's TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let served = Arc::clone(shared);
    let ended = serve_http(tls, is_http2, move |request| {
        let shared = Arc::clone(&served);
        async move { forward(&shared, request, visitor).await }
    });
    if let Err(error) = ended.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a visitor's connection ended");
    }
}

/// One request to the application, its bodies streamed both ways.
async fn forward(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    visitor_ip: Option<IpAddr>,
) -> Response<AgentBody> {
    let begun = std::time::Instant::now();
    let (method, path) =
        (request.method().clone(), request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned());
    let is_upgrade = request.version() == Version::HTTP_11 && request.headers().contains_key(header::UPGRADE);
    let visitor = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let (head, body) = request.into_parts();
    let mut onward = Request::new(body.map_err(Into::into).boxed_unsync());
    *onward.method_mut() = head.method;
    *onward.uri_mut() = path.parse().unwrap_or_default();
    *onward.headers_mut() = end_to_end(&head.headers);
    put_forwarded(onward.headers_mut(), &shared.tunnel.public_host, visitor_ip);
    let response = match (visitor, upgrade) {
        (Some(visitor), Some(protocol)) => {
            onward.headers_mut().insert(header::UPGRADE, protocol);
            onward.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            forward_upgrade(shared, onward, visitor).await
        }
        _ => shared.upstream.send(onward).await.map(|response| {
            let (head, body) = response.into_parts();
            let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
            *response.status_mut() = head.status;
            let length = head.headers.get(header::CONTENT_LENGTH).cloned();
            *response.headers_mut() = reply_headers(head.headers);
            // Known before the body, and for a HEAD all there is.
            if let Some(length) = length {
                response.headers_mut().insert(header::CONTENT_LENGTH, length);
            }
            response
        }),
    };
    let response = response.unwrap_or_else(|error| {
        shared.tell(crate::Event::UpstreamFailed { error: error.chain() });
        let mut response = Response::new(full(Bytes::from_static(b"the application cannot be reached\n")));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    });
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.tell(crate::Event::Served { method, path, status: response.status(), micros });
    response
}

/// The headers of a request without those of the visitor's connection; `host`
/// and what is said about the visitor's address are ours to say.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let websocket: Vec<_> = headers.iter().filter(|(name, _)| name.as_str().starts_with("sec-websocket-")).collect();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut kept = agent_proto::visitor::request_headers(headers, length.unwrap_or(u64::MAX));
    for (name, value) in websocket {
        kept.append(name.clone(), value.clone());
    }
    kept
}

async fn forward_upgrade(
    shared: &Arc<Shared>,
    request: Request<AgentBody>,
    visitor: hyper::upgrade::OnUpgrade,
) -> Result<Response<AgentBody>, crate::Error> {
    let response = shared.upstream.send_upgrade(request).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        let mut refused = Response::new(body.map_err(Into::into).boxed_unsync());
        *refused.status_mut() = status;
        *refused.headers_mut() = reply_headers(head.headers);
        return Ok(refused);
    }
    let mut switched = Response::new(full(Bytes::new()));
    *switched.status_mut() = status;
    *switched.headers_mut() = response.headers().clone();
    tokio::spawn(async move {
        let (Ok(visitor), Ok(mut local)) = (visitor.await, upgraded(response).await) else { return };
        // Either side may end it; an error is an end too.
        let _ = copy_bidirectional(&mut hyper_util::rt::TokioIo::new(visitor), &mut local).await;
    });
    Ok(switched)
}

/// The bytes of a bridge as a connection.
struct BridgeIo {
    bridge: Bridge,
    decoder: OuterDecoder,
    read: Bytes,
    is_done: bool,
}

/// Octets of the header of the largest frame, mask included.
const HEADER: usize = 8;

impl AsyncRead for BridgeIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.read.is_empty() {
                let octets = self.read.len().min(buf.remaining());
                buf.put_slice(&self.read[..octets]);
                self.read.advance(octets);
                return Poll::Ready(Ok(()));
            }
            match self.decoder.next_event().map_err(io::Error::other)? {
                Some(Outer::Data(data) | Outer::Text(data)) => {
                    self.read = data;
                    continue;
                }
                Some(Outer::Close { .. }) => self.is_done = true,
                Some(Outer::Ping(_) | Outer::Pong) => continue,
                None => {}
            }
            if self.is_done {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.bridge.recv.poll_data(cx)) {
                Some(Ok(chunk)) => self.decoder.push(chunk),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => self.is_done = true,
            }
        }
    }
}

impl AsyncWrite for BridgeIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    // TLS has one attempt to say why a handshake fails, behind what it has still to say.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let octets = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MAX_TCP_FRAME - HEADER);
        let key = mask();
        let header = outer_prefix(Opcode::Binary, octets, Some(key));
        let wanted = header.len() + octets;
        let send = &mut self.bridge.send;
        send.reserve_capacity(wanted);
        while send.capacity() < wanted {
            match ready!(send.poll_capacity(cx)) {
                Some(room) => drop(room.map_err(io::Error::other)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let mut frame = BytesMut::with_capacity(wanted);
        frame.extend_from_slice(&header);
        for buf in bufs {
            frame.extend_from_slice(&buf[..buf.len().min(wanted - frame.len())]);
        }
        apply_mask(&mut frame[header.len()..], key, 0);
        send.send_data(frame.freeze(), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(octets))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut close = BytesMut::new();
        encode_outer_close(1000, "clean-eof", Some(mask()), &mut close);
        // Small: h2 keeps it until there is room. A stream that has ended is shut down.
        let _ = self.bridge.send.send_data(close.freeze(), true);
        Poll::Ready(Ok(()))
    }
}
