//! Visitors of a passthrough tunnel: TLS ends here, with a key that the edge
//! never sees.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_proto::bridge::{Outer, OuterDecoder, encode_outer_close, outer_prefix};
use agent_proto::limits::MAX_TCP_FRAME;
use agent_proto::visitor::{ascii_target, reply_headers};
use agent_proto::{BridgeId, BridgeKind, Opcode, apply_mask};
use bytes::{Buf as _, Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::bridge::Bridge;
use crate::exchange::{put_forwarded, upstream_failure};
use crate::server::{Patience, serve_http};
use crate::session::Streams;
use crate::upstream::{AgentBody, MAX_FIELDS, full, upgraded};
use crate::{InFlight, Shared, mask};

/// How long the bridge and the visitor's handshake may take, each.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection of a visitor until it ends.
pub(crate) async fn serve(shared: &Arc<Shared>, streams: Streams, id: BridgeId, visitor: Option<IpAddr>) {
    let Some(certificate) = &shared.certificate else {
        tracing::warn!("the edge sends a raw connection, but TLS ends there");
        return;
    };
    let place = InFlight::visitor(shared);
    let is_full = place.is_none();
    let in_flight = place.unwrap_or_else(|| InFlight::of(shared));
    let bridge = match streams.bridge(BridgeKind::Tcp, id, in_flight, HANDSHAKE).await {
        Ok(bridge) => bridge,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "no bridge for a connection");
            return;
        }
    };
    if is_full {
        shared.tell_full();
        return;
    }
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
    let ended = serve_http(tls, is_http2, Patience::default(), shared.stopped(), move |request| {
        let shared = Arc::clone(&served);
        async move { forward(&shared, request, visitor).await }
    });
    if let Err(error) = ended.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a visitor's connection ended");
    }
}

/// One request to the application, its bodies streamed both ways.
async fn forward(shared: &Arc<Shared>, request: Request<Incoming>, visitor: Option<IpAddr>) -> Response<AgentBody> {
    let begun = std::time::Instant::now();
    let (method, path) = (request.method().clone(), target(request.uri()).into_owned());
    let tunnel = shared.tunnel();
    let checked = check(&request, &tunnel.public_host).map(|authority| forwarded_host(&authority));
    let response = match checked {
        Ok(authority) => exchange(shared, request, authority, visitor).await,
        Err(status) => refusal(status),
    };
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.tell(crate::Event::Served { method, path, status: response.status(), micros });
    response
}

async fn exchange(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    authority: Option<HeaderValue>,
    visitor: Option<IpAddr>,
) -> Response<AgentBody> {
    let Ok(uri) = target(request.uri()).parse() else { return refusal(StatusCode::BAD_REQUEST) };
    let protocol = request.headers().get(header::UPGRADE).filter(|protocol| may_upgrade(protocol)).cloned();
    let protocol = protocol.filter(|_| request.version() == Version::HTTP_11);
    let upgrade = protocol.map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (head, body) = request.into_parts();
    let mut onward = Request::new(Upload(Some(body)).map_err(Into::into).boxed_unsync());
    *onward.method_mut() = head.method;
    *onward.uri_mut() = uri;
    *onward.headers_mut() = end_to_end(&head.headers);
    put_forwarded(onward.headers_mut(), authority, visitor);
    let response = match upgrade {
        Some((protocol, visitor)) => {
            onward.headers_mut().insert(header::UPGRADE, protocol);
            onward.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            forward_upgrade(shared, onward, visitor).await
        }
        None => shared.upstream.send(onward).await.map(answer),
    };
    response.unwrap_or_else(|error| {
        let (head, body) = upstream_failure(shared, &error);
        let mut response = Response::new(full(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    })
}

/// A visitor's request body. If the application answers without reading all of it, the
/// rest is read and forgotten for a moment: over HTTP/2 a stream whose request nobody
/// holds is reset before its answer is sent, and over HTTP/1.1 the connection is.
struct Upload(Option<Incoming>);

/// How long a visitor may go on sending what is not wanted.
const LINGER: Duration = Duration::from_secs(2);

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let unread = self.0.take().filter(|body| !body.is_end_stream());
        // Without a runtime there is no visitor either.
        if let (Some(mut body), Ok(runtime)) = (unread, Handle::try_current()) {
            runtime.spawn(async move {
                let drained = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = timeout(LINGER, drained).await;
            });
        }
    }
}

/// Is the request for this host, and one that is passed on? Answers what the visitor
/// called, without the port 443.
fn check<'a, B>(request: &'a Request<B>, public_host: &'a str) -> Result<Cow<'a, str>, StatusCode> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    // HTTP/2 counts octets alone.
    if request.headers().len() > MAX_FIELDS {
        return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    let said = host.and_then(|host| host.to_str().ok());
    // What nearly everybody says.
    let port = said.and_then(|said| said.strip_prefix(public_host)).filter(|_| request.uri().authority().is_none());
    match port {
        Some("" | ":443") => return Ok(Cow::Borrowed(public_host)),
        Some(port) if port.strip_prefix(':').is_some_and(is_port) => {
            return Ok(Cow::Borrowed(said.unwrap_or(public_host)));
        }
        _ => {}
    }
    let host = host.map(|host| host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()));
    // RFC 9112 section 3.2.2, RFC 9113 section 8.3.1: the target's own authority counts.
    let authority = match (request.uri().authority(), host) {
        (_, Some(None)) => return Err(StatusCode::BAD_REQUEST),
        (Some(authority), _) => authority.clone(),
        (None, Some(Some(host))) => host,
        // Hosts came with HTTP/1.1, and the ClientHello has named ours.
        (None, None) if request.version() <= Version::HTTP_10 => return Ok(Cow::Borrowed(public_host)),
        (None, None) => return Err(StatusCode::BAD_REQUEST),
    };
    if authority.as_str().contains('@') || authority.port().is_some_and(|port| !is_port(port.as_str())) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let called = authority.host().strip_suffix('.').unwrap_or(authority.host());
    if !called.eq_ignore_ascii_case(public_host) {
        return Err(StatusCode::MISDIRECTED_REQUEST);
    }
    let port = authority.port_u16().filter(|port| *port != 443);
    Ok(port.map_or(Cow::Borrowed(public_host), |port| Cow::Owned(format!("{public_host}:{port}"))))
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|octet| octet.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// What was checked fits a field.
fn forwarded_host(authority: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(authority).ok()
}

/// Path and query, or `*`, as they are passed on.
fn target(uri: &Uri) -> Cow<'_, str> {
    ascii_target(uri.path_and_query().map_or("/", PathAndQuery::as_str))
}

/// Protocols of one connection: passed on, they would get past every rule for the next.
fn may_upgrade(protocol: &HeaderValue) -> bool {
    let tokens = protocol.to_str().unwrap_or("h2c").to_ascii_lowercase();
    !tokens.split(',').any(|token| {
        let name = token.trim().split('/').next().unwrap_or_default();
        matches!(name, "h2c" | "http" | "tls")
    })
}

fn refusal(status: StatusCode) -> Response<AgentBody> {
    let words = status.canonical_reason().unwrap_or_default().to_ascii_lowercase();
    let mut response = Response::new(full(Bytes::from(words + "\n")));
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// The application's answer as the visitor gets it.
fn answer<B>(response: Response<B>) -> Response<AgentBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = response.into_parts();
    // Known before the body, and for a HEAD all there is. RFC 9110 section 8.6: what
    // has no content has no length.
    let length = head.headers.get(header::CONTENT_LENGTH).filter(|_| head.status != StatusCode::NO_CONTENT).cloned();
    let mut answer = Response::new(body.map_err(Into::into).boxed_unsync());
    *answer.status_mut() = head.status;
    *answer.headers_mut() = reply_headers(head.headers);
    if let Some(length) = length {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    answer
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
        return Ok(answer(response));
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
