//! A visitor's request on an edge tunnel: a stream of the link in, a request to the
//! application out, and its answer back, each octet as it comes.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use agent_proto::visitor::{answer_headers, answer_trailers};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};

use crate::session::Open;
use crate::upstream::{AgentBody, MAX_FIELDS, MAX_HEADERS, UpstreamBody, full};
use crate::{Error, HostHeader, InFlight, Shared};

/// Why the agent answers by itself.
const REASON: HeaderName = HeaderName::from_static("adit-reason");
const VISITOR: &str = "adit-visitor";
/// Octets of an answer that h2 keeps without asking for room: what is there at once is one write.
const AT_ONCE: usize = 16 * 1024;

/// An answer of the agent itself.
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
}

/// Serves one request.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    open: Open,
) {
    let in_flight = InFlight::of(&shared);
    let begun = Instant::now();
    let (mut head, body) = request.into_parts();
    let (method, path) = (head.method.clone(), head.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned());
    let (public, visitor) = asked(&mut head);
    let asked = async {
        let body = Inflow::of(body, &head.headers);
        let request = onward(&shared, Request::from_parts(head, body), public.as_ref(), visitor);
        shared.upstream.send(request).await.map_err(|error| Failure::of(&shared, &error))
    };
    let answered = tokio::select! {
        biased;
        answered = asked => answered,
        // The visitor has left: so does the request.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let answered = answered.and_then(|response| {
        let (head, body) = response.into_parts();
        let head = outward(&shared, head.status, head.headers, public.as_ref())?;
        Ok((head, body))
    });
    let status = answered.as_ref().map_or_else(|failure| failure.status, |(head, _)| head.status());
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.tell(crate::Event::Served { method, path, status, micros });
    let sent = match answered {
        Ok((head, body)) => send(&mut respond, head, body).await,
        Err(failure) => failure.send(&mut respond),
    };
    if let Err(error) = sent {
        tracing::debug!(error = &error as &dyn std::error::Error, "an answer did not get to its end");
    }
    drop((open, in_flight));
}

/// What the visitor calls, and where it is: the head is an application's without it.
pub(crate) fn asked(head: &mut http::request::Parts) -> (Option<Authority>, Option<IpAddr>) {
    let visitor = head.headers.remove(VISITOR).and_then(|visitor| visitor.to_str().ok()?.parse().ok());
    let uri = std::mem::take(&mut head.uri).into_parts();
    head.uri = Uri::from(uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    head.version = Version::HTTP_11;
    head.extensions.clear();
    (uri.authority, visitor)
}

/// The request as the application sees it, of a visitor who calls `public`.
pub(crate) fn onward(
    shared: &Shared,
    mut request: Request<AgentBody>,
    public: Option<&Authority>,
    visitor: Option<IpAddr>,
) -> Request<AgentBody> {
    let headers = request.headers_mut();
    let called = public.and_then(|authority| HeaderValue::from_str(without_https_port(authority)).ok());
    put_forwarded(headers, called.clone(), visitor);
    match &shared.settings.host {
        HostHeader::Rewrite => {}
        HostHeader::Preserve => drop(called.map(|host| headers.insert(HOST, host))),
        HostHeader::Value(value) => drop(headers.insert(HOST, value.clone())),
    }
    for (name, value) in &shared.settings.request_headers {
        headers.insert(name.clone(), value.clone());
    }
    request
}

/// The head of an answer as the visitor sees it.
pub(crate) fn outward(
    shared: &Shared,
    status: StatusCode,
    headers: HeaderMap,
    public: Option<&Authority>,
) -> Result<Response<()>, Failure> {
    let mut headers = fields(status, headers);
    let octets: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if octets > MAX_HEADERS || headers.len() > MAX_FIELDS {
        return Err(Failure::headers_too_large());
    }
    if matches!(shared.settings.host, HostHeader::Rewrite)
        && let (Some(location), Some(public)) = (headers.get(LOCATION), public)
        && let Some(rewritten) = rewritten(location, shared.upstream.host(), public)
    {
        headers.insert(LOCATION, rewritten);
    }
    for (name, value) in &shared.settings.response_headers {
        headers.insert(name.clone(), value.clone());
    }
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = headers;
    Ok(head)
}

fn fields(status: StatusCode, headers: HeaderMap) -> HeaderMap {
    let mut headers = answer_headers(headers);
    // RFC 9110 section 8.6: what has no content has no length.
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    headers
}

/// A redirect of the application to itself, as it calls itself, for the visitor.
fn rewritten(location: &HeaderValue, host: &HeaderValue, public: &Authority) -> Option<HeaderValue> {
    let (location, host) = (location.to_str().ok()?, host.to_str().ok()?);
    let rest = location.strip_prefix("http://").or_else(|| location.strip_prefix("https://"))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let is_itself = rest[..end].eq_ignore_ascii_case(host);
    let location = || format!("https://{}{}", without_https_port(public), &rest[end..]);
    is_itself.then(|| HeaderValue::try_from(location()).ok()).flatten()
}

fn without_https_port(authority: &Authority) -> &str {
    authority.as_str().strip_suffix(":443").unwrap_or(authority.as_str())
}

/// Sends an answer, as it comes.
pub(crate) async fn send(
    respond: &mut SendResponse<Bytes>,
    head: Response<()>,
    mut body: UpstreamBody,
) -> Result<(), Error> {
    if body.is_end_stream() {
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut stream = respond.send_response(head, false)?;
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            // Whoever reads it has gone, and an event stream might not speak for hours.
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Ok(()),
        };
        let frame = match frame {
            None => return Ok(stream.send_data(Bytes::new(), true)?),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                // Nobody may take it for whole.
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Err(error.into());
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let is_end = body.is_end_stream();
                if data.len() <= AT_ONCE && is_end {
                    // h2 keeps what the window has no room for yet.
                    return Ok(stream.send_data(data, true)?);
                }
                send_all(&mut stream, data).await?;
                if is_end {
                    return Ok(stream.send_data(Bytes::new(), true)?);
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Ok(stream.send_trailers(answer_trailers(trailers))?);
                }
            }
        }
    }
}

/// Sends as the window opens.
pub(crate) async fn send_all(send: &mut SendStream<Bytes>, mut octets: Bytes) -> Result<(), h2::Error> {
    while !octets.is_empty() {
        send.reserve_capacity(octets.len());
        while send.capacity() == 0 {
            match poll_fn(|cx| send.poll_capacity(cx)).await {
                Some(room) => drop(room?),
                None => return Err(Reason::STREAM_CLOSED.into()),
            }
        }
        let part = octets.split_to(send.capacity().min(octets.len()));
        send.send_data(part, false)?;
    }
    Ok(())
}

/// A visitor's request body. What was taken of it, the edge may send more of.
struct Inflow {
    recv: RecvStream,
    left: Option<u64>,
    is_done: bool,
}

impl Inflow {
    fn of(recv: RecvStream, headers: &HeaderMap) -> AgentBody {
        if recv.is_end_stream() {
            return full(Bytes::new());
        }
        let left = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { recv, left, is_done: false }.map_err(Into::into).boxed_unsync()
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                // Fails only when the stream is gone.
                let _ = self.recv.flow_control().release_capacity(data.len());
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {}
        }
        let trailers = ready!(self.recv.poll_trailers(cx));
        self.is_done = true;
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.is_done || self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

impl Failure {
    pub(crate) fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason }
    }

    fn headers_too_large() -> Self {
        tracing::warn!("the application's headers have more than {MAX_HEADERS} octets or {MAX_FIELDS} fields");
        Self::new(StatusCode::BAD_GATEWAY, "response-headers-too-large")
    }

    /// The application could not be asked.
    pub(crate) fn of(shared: &Shared, error: &Error) -> Self {
        if error.is_too_large() {
            return Self::headers_too_large();
        }
        shared.tell(crate::Event::UpstreamFailed { error: error.chain() });
        Self::new(StatusCode::BAD_GATEWAY, "upstream-unreachable")
    }

    /// Head and body, for whoever speaks HTTP with the visitor.
    pub(crate) fn response(&self) -> (Response<()>, Bytes) {
        let mut head = Response::new(());
        *head.status_mut() = self.status;
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        (head, Bytes::from(format!("{}\n", self.reason)))
    }

    /// The same on the link, with the word for the edge.
    pub(crate) fn send(&self, respond: &mut SendResponse<Bytes>) -> Result<(), Error> {
        let (mut head, body) = self.response();
        head.headers_mut().insert(REASON, HeaderValue::from_static(self.reason));
        respond.send_response(head, false)?.send_data(body, true)?;
        Ok(())
    }
}

/// Who asked, and for what: the application sees our connection only.
fn put_forwarded(headers: &mut HeaderMap, authority: Option<HeaderValue>, visitor: Option<IpAddr>) {
    headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Some(host) = authority {
        headers.insert("x-forwarded-host", host);
    }
    let Some(visitor) = visitor else { return };
    // RFC 7239 section 6: an IPv6 address stands in brackets and quotes.
    let forwarded = if visitor.is_ipv6() { format!("for=\"[{visitor}]\"") } else { format!("for={visitor}") };
    for (name, value) in [("x-forwarded-for", visitor.to_string()), ("forwarded", forwarded)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_of_an_application_to_itself_go_to_the_public_host() {
        let host = HeaderValue::from_static("127.0.0.1:3000");
        let public = |text: &'static str| Authority::from_static(text);
        for (location, name, expected) in [
            ("http://127.0.0.1:3000/a?b#c", "shop.example", Some("https://shop.example/a?b#c")),
            ("https://127.0.0.1:3000", "shop.example:443", Some("https://shop.example")),
            ("http://127.0.0.1:3000?x", "shop.example:4443", Some("https://shop.example:4443?x")),
            ("http://127.0.0.1:3001/", "shop.example", None),
            ("http://127.0.0.1:30000/", "shop.example", None),
            ("/relative", "shop.example", None),
            ("http://other.example/127.0.0.1:3000", "shop.example", None),
        ] {
            let location = HeaderValue::from_static(location);
            let rewritten = rewritten(&location, &host, &public(name));
            assert_eq!(rewritten.as_ref().map(|value| value.to_str().expect("ASCII")), expected, "{location:?}");
        }
    }

    #[test]
    fn what_has_no_content_has_no_length() {
        let length = |status| {
            let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("5"))]);
            fields(status, headers).contains_key(CONTENT_LENGTH)
        };
        assert!(!length(StatusCode::NO_CONTENT) && length(StatusCode::NOT_MODIFIED) && length(StatusCode::OK));
    }

    #[test]
    fn the_application_is_told_who_asked_and_for_what() {
        let forwarded =
            |headers: &[(&'static str, &'static str)], authority: Option<&'static str>, visitor: Option<&str>| {
                let mut fields: HeaderMap = headers
                    .iter()
                    .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
                    .collect();
                put_forwarded(
                    &mut fields,
                    authority.map(HeaderValue::from_static),
                    visitor.map(|ip| ip.parse().expect("an address")),
                );
                let text = |name: &str| fields.get(name).map(|value| value.to_str().expect("ASCII").to_owned());
                ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-for", "forwarded"].map(text)
            };
        let told = |values: [Option<&str>; 4]| values.map(|value| value.map(str::to_owned));
        assert_eq!(
            forwarded(&[], Some("shop.example:4443"), Some("192.0.2.7")),
            told([Some("https"), Some("shop.example:4443"), Some("192.0.2.7"), Some("for=192.0.2.7")])
        );
        assert_eq!(
            forwarded(&[], Some("shop.example"), Some("2001:db8::7")),
            told([Some("https"), Some("shop.example"), Some("2001:db8::7"), Some("for=\"[2001:db8::7]\"")])
        );
        // What is known replaces what was said; what is not known is not made up.
        assert_eq!(
            forwarded(&[("x-forwarded-proto", "http"), ("x-forwarded-for", "10.0.0.1")], None, Some("192.0.2.7")),
            told([Some("https"), None, Some("192.0.2.7"), Some("for=192.0.2.7")])
        );
        assert_eq!(forwarded(&[], None, None), told([Some("https"), None, None, None]));
    }
}
