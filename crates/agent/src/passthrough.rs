//! Visitors of a passthrough tunnel: TLS ends here, with a key that the edge
//! never sees, or in the application.

use std::borrow::Cow;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_proto::visitor::{ascii_target, onward_headers};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::bridge::Bridge;
use crate::exchange::{Failure, onward, outward};
use crate::server::{Patience, serve_http};
use crate::session::Open;
use crate::upstream::{AgentBody, MAX_FIELDS, full, upgraded};
use crate::websocket::{to_application, to_edge};
use crate::{InFlight, Shared};

/// How long the visitor's handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves one connection of a visitor until it ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    open: Open,
) {
    let visitor = request.headers().get("adit-visitor").and_then(|visitor| visitor.to_str().ok()?.parse().ok());
    let mut refuse = |status| {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // If the stream has gone, nobody waits.
        let _ = respond.send_response(response, true);
    };
    let Some(in_flight) = InFlight::visitor(&shared) else {
        shared.tell_full();
        return refuse(StatusCode::SERVICE_UNAVAILABLE);
    };
    let application = match (shared.upstream.connect_raw().await, &shared.certificate) {
        (Some(Ok(application)), _) => Ends::Application(application),
        (Some(Err(error)), _) => return refuse(Failure::of(&shared, &error).status),
        (None, Some(certificate)) => Ends::Here(TlsAcceptor::from(certificate.server_config())),
        (None, None) => {
            tracing::warn!("the edge sends a raw connection, but TLS ends there");
            return refuse(StatusCode::NOT_IMPLEMENTED);
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else { return };
    match application {
        Ends::Here(acceptor) => {
            let bridge = Bridge::new(send, request.into_body(), (in_flight, open));
            serve_tls(shared, acceptor, StreamIo { bridge, read: Bytes::new() }, visitor).await;
        }
        Ends::Application(application) => {
            let begun = std::time::Instant::now();
            relay(send, request.into_body(), application).await;
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.tell(crate::Event::Relayed { micros });
            drop((in_flight, open));
        }
    }
}

/// Where the visitor's TLS ends.
enum Ends {
    Here(TlsAcceptor),
    Application(TcpStream),
}

/// Carries octets both ways. An end is an end, and what breaks off breaks off.
async fn relay(mut send: SendStream<Bytes>, mut recv: RecvStream, mut application: TcpStream) {
    let has_ended = {
        let (read, write) = application.split();
        let (mut forward, mut backward) = (pin!(to_application(&mut recv, write)), pin!(to_edge(read, &mut send)));
        tokio::select! {
            has_ended = forward.as_mut() => has_ended && backward.await,
            has_ended = backward.as_mut() => has_ended && forward.await,
        }
    };
    if !has_ended {
        send.send_reset(Reason::CONNECT_ERROR);
        // What is not sent is forgotten, and the application reads a reset.
        let _ = application.set_zero_linger();
    }
}

async fn serve_tls(shared: Arc<Shared>, acceptor: TlsAcceptor, stream: StreamIo, visitor: Option<IpAddr>) {
    let accepted = timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let tls = match accepted {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "a visitor's TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let is_http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    let served = Arc::clone(&shared);
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
    let checked = check(&request, &tunnel.public_host).map(|authority| authority.parse().ok());
    let response = match checked {
        Ok(public) => exchange(shared, request, public, visitor).await,
        Err(status) => refusal(status),
    };
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.tell(crate::Event::Served { method, path, status: response.status(), micros });
    response
}

async fn exchange(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    public: Option<Authority>,
    visitor: Option<IpAddr>,
) -> Response<AgentBody> {
    let Ok(uri) = target(request.uri()).parse() else { return refusal(StatusCode::BAD_REQUEST) };
    let protocol = request.headers().get(header::UPGRADE).filter(|protocol| may_upgrade(protocol)).cloned();
    let protocol = protocol.filter(|_| request.version() == Version::HTTP_11);
    let upgrade = protocol.map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (head, body) = request.into_parts();
    let mut request = Request::new(Upload(Some(body)).map_err(Into::into).boxed_unsync());
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
    *request.headers_mut() = onward_headers(head.headers);
    if let Some(key) = key {
        request.headers_mut().insert(header::SEC_WEBSOCKET_KEY, key);
    }
    let mut request = onward(shared, request, public.as_ref(), visitor);
    let response = match upgrade {
        Some((protocol, visitor)) => {
            request.headers_mut().insert(header::UPGRADE, protocol);
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            forward_upgrade(shared, request, public.as_ref(), visitor).await
        }
        None => {
            let response = shared.upstream.send(request).await.map_err(|error| Failure::of(shared, &error));
            response.and_then(|response| answer(shared, response, public.as_ref()))
        }
    };
    response.unwrap_or_else(|failure| {
        let (head, body) = failure.response();
        head.map(|()| full(body))
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

/// Path and query, or `*`, as they are passed on.
fn target(uri: &Uri) -> Cow<'_, str> {
    ascii_target(uri.path_and_query().map_or("/", PathAndQuery::as_str))
}

/// Protocols of one connection: passed on, they would get past every rule for the next.
fn may_upgrade(protocol: &HeaderValue) -> bool {
    let tokens = protocol.to_str().unwrap_or("h2c").to_ascii_lowercase();
    !tokens.split(',').any(|token| {
        let name = token.trim().split('/').next().unwrap_or_default();
        matches!(name, "h2c" | "http" | "tls") || name.starts_with("adit-")
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
fn answer<B>(shared: &Shared, response: Response<B>, public: Option<&Authority>) -> Result<Response<AgentBody>, Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = response.into_parts();
    let answer = outward(shared, head.status, head.headers, public)?;
    Ok(answer.map(|()| body.map_err(Into::into).boxed_unsync()))
}

async fn forward_upgrade(
    shared: &Arc<Shared>,
    request: Request<AgentBody>,
    public: Option<&Authority>,
    visitor: hyper::upgrade::OnUpgrade,
) -> Result<Response<AgentBody>, Failure> {
    let response = shared.upstream.send_upgrade(request).await.map_err(|error| Failure::of(shared, &error))?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return answer(shared, response, public);
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

/// The octets of a stream as a connection.
struct StreamIo {
    bridge: Bridge,
    read: Bytes,
}

/// Octets that are sent at once.
const PIECE: usize = 64 * 1024;

impl AsyncRead for StreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.bridge.recv.poll_data(cx)) {
                Some(Ok(chunk)) => self.read = chunk,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let octets = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..octets]);
        self.read.advance(octets);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    // TLS has one attempt to say why a handshake fails, behind what it has still to say.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(PIECE);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let send = &mut self.bridge.send;
        send.reserve_capacity(wanted);
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(room) => drop(room.map_err(io::Error::other)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let room = send.capacity().min(wanted);
        let mut octets = BytesMut::with_capacity(room);
        for buf in bufs {
            octets.extend_from_slice(&buf[..buf.len().min(room - octets.len())]);
        }
        send.send_data(octets.freeze(), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream that has ended is shut down.
        let _ = self.bridge.send.send_data(Bytes::new(), true);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str, hosts: &[&str], version: Version) -> Request<()> {
        let builder = Request::builder().method(method).uri(target).version(version);
        let builder = hosts.iter().fold(builder, |builder, host| builder.header("host", *host));
        builder.body(()).expect("a request")
    }

    #[test]
    fn a_request_says_once_and_rightly_for_whom_it_is() {
        for (method, target, hosts, version, outcome) in [
            ("GET", "/", &["bank.example"][..], Version::HTTP_11, Ok("bank.example")),
            ("GET", "/", &["BANK.example.:443"], Version::HTTP_11, Ok("bank.example")),
            ("GET", "/", &["bank.example:4443"], Version::HTTP_11, Ok("bank.example:4443")),
            ("GET", "/", &["bank.example:443"], Version::HTTP_11, Ok("bank.example")),
            ("GET", "/", &["bank.example:+44"], Version::HTTP_11, Err(400)),
            ("GET", "/", &["bank.example.org"], Version::HTTP_11, Err(421)),
            ("GET", "/", &[], Version::HTTP_10, Ok("bank.example")),
            ("GET", "/", &[], Version::HTTP_11, Err(400)),
            ("GET", "/", &["bank.example", "bank.example"], Version::HTTP_11, Err(400)),
            ("GET", "/", &["bank.example/x"], Version::HTTP_11, Err(400)),
            ("GET", "/", &["user@bank.example"], Version::HTTP_11, Err(400)),
            ("GET", "/", &["shop.example"], Version::HTTP_11, Err(421)),
            ("GET", "https://bank.example/", &["shop.example"], Version::HTTP_11, Ok("bank.example")),
            ("GET", "https://bank.example/", &[], Version::HTTP_2, Ok("bank.example")),
            ("GET", "https://shop.example/", &[], Version::HTTP_2, Err(421)),
            ("OPTIONS", "*", &["bank.example"], Version::HTTP_11, Ok("bank.example")),
            ("CONNECT", "bank.example:443", &["bank.example"], Version::HTTP_11, Err(405)),
            ("TRACE", "/", &["bank.example"], Version::HTTP_11, Err(405)),
        ] {
            let request = request(method, target, hosts, version);
            let checked = check(&request, "bank.example");
            let checked = checked.as_deref().map_err(|status| status.as_u16());
            assert_eq!(checked, outcome, "{method} {target} {hosts:?}");
        }
    }

    #[test]
    fn protocols_of_the_next_connection_are_not_asked_for() {
        for (protocol, may) in
            [("websocket", true), ("h2c", false), ("foo, TLS/1.0", false), ("HTTP/2.0", false), ("adit-h2", false)]
        {
            assert_eq!(may_upgrade(&HeaderValue::from_static(protocol)), may, "{protocol}");
        }
    }
}
