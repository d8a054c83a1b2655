//! Requests, handshakes and connections of visitors as streams of a link.

use std::borrow::Cow;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use agent_proto::visitor::{ascii_target, onward_headers};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;
use tunnel_model::{Carrier, Failure, LiveRefusal};

use super::held::Watched;
use super::octets::Octets;
use super::reply::{self, Coming};
use super::session::{InFlight, Session};
use super::upload::{Stopped, Upload};
use super::websocket::Tunnelled;
use crate::Shared;
use crate::link::{Handshake, LinkError, Patience, ReplyBody, Visitor};
use crate::tunnels::Entry;

/// The way to agents that speak the native wire.
pub(crate) struct Link<'a> {
    entry: Arc<Entry>,
    shared: &'a Arc<Shared>,
}

/// Where the visitor is.
const VISITOR: HeaderName = HeaderName::from_static("adit-visitor");
/// Header fields of a request, and their octets.
const MAX_FIELDS: usize = 200;
const MAX_HEADERS: usize = 32 * 1024;
/// Sessions that a request is tried on.
const MAX_ATTEMPTS: usize = 4;

/// Why a stream has no answer.
#[derive(Clone, Copy)]
enum Missed {
    /// The agent has not begun with it.
    Refused,
    /// The agent has not begun with it, and leaves.
    Left,
    /// The connection broke.
    Lost,
    /// What the visitor is told.
    Final(LinkError),
}

/// A stream that has begun.
struct Begun {
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    in_flight: InFlight,
}

/// A stream whose answer has begun.
struct Answered {
    head: http::response::Parts,
    recv: RecvStream,
    /// There already, while the request goes on.
    watched: Option<Watched>,
    in_flight: InFlight,
}

impl<'a> Link<'a> {
    pub(crate) fn new(entry: Arc<Entry>, shared: &'a Arc<Shared>) -> Self {
        Self { entry, shared }
    }

    /// A place on the session that has the fewest; waits if one is on its way.
    async fn open(&self) -> Result<InFlight, LinkError> {
        loop {
            match self.shared.tunnels.open(&self.entry) {
                Ok((ticket, session)) => return Ok(InFlight::new(session, ticket)),
                Err(LiveRefusal::Offline) => match self.shared.tunnels.carrier(&self.entry).await? {
                    Carrier::Open => {}
                    // An agent that speaks the other wire has taken over meanwhile.
                    Carrier::Parking => return Err(LinkError::Failed(Failure::AgentOffline)),
                },
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Opens a stream for this request.
    async fn begin(&self, request: &Request<()>, is_end: bool) -> Result<Begun, LinkError> {
        for _ in 0..MAX_ATTEMPTS {
            let in_flight = self.open().await?;
            let mut send = in_flight.session.send.clone();
            let is_ready = poll_fn(|cx| send.poll_ready(cx)).await.is_ok();
            let is_extended = request.extensions().get::<Protocol>().is_some();
            if is_ready && is_extended && !send.is_extended_connect_protocol_enabled() {
                return Err(LinkError::NotSpoken);
            }
            if is_ready && let Ok((response, stream)) = send.send_request(request.clone(), is_end) {
                return Ok(Begun { response, stream, in_flight });
            }
            // It has said that it leaves, or is gone already: nothing new goes there.
            self.shared.tunnels.leave(&self.entry, in_flight.session.id);
        }
        Err(LinkError::Failed(Failure::AgentLost))
    }

    /// Sends a request, and its body, until there is the head of an answer.
    async fn ask(
        &self,
        begun: Begun,
        upload: &mut Option<Upload>,
        patience: &Patience,
    ) -> Result<Answered, (Missed, InFlight)> {
        let Begun { mut response, mut stream, in_flight } = begun;
        if let Some(uploaded) = upload {
            let progress = connections::Progress::default();
            let answered = tokio::select! {
                biased;
                answered = &mut response => Some(answered),
                sent = uploaded.send(&mut stream, || progress.made()) => match sent {
                    // An answer that came before its request was whole says why.
                    Ok(()) | Err(Stopped::Agent) => None,
                    Err(Stopped::Visitor) => return Err((Missed::Final(LinkError::BodyBroken), in_flight)),
                },
                () = progress.stalled(self.shared.settings.exchange_idle) => {
                    return Err((Missed::Final(LinkError::BodyTooSlow), in_flight));
                }
            };
            if let Some(answered) = answered {
                let (head, recv) = match answered {
                    Ok(answered) => answered.into_parts(),
                    Err(error) => return Err((Missed::by(&error), in_flight)),
                };
                let watched = upload.take().map(|upload| self.go_on(&recv, upload, stream, patience));
                return Ok(Answered { head, recv, watched: watched.flatten(), in_flight });
            }
        }
        match timeout(in_flight.session.response_deadline, response).await {
            Ok(Ok(answered)) => {
                if let Some(upload) = upload.take() {
                    upload.discard(self.shared.settings.visitor.body);
                }
                let (head, recv) = answered.into_parts();
                Ok(Answered { head, recv, watched: None, in_flight })
            }
            Ok(Err(error)) => Err((Missed::by(&error), in_flight)),
            Err(_) => Err((Missed::Final(LinkError::Failed(Failure::AgentTimeout)), in_flight)),
        }
    }

    /// The answer has begun, and the request goes on.
    fn go_on(
        &self,
        recv: &RecvStream,
        mut upload: Upload,
        mut stream: SendStream<Bytes>,
        patience: &Patience,
    ) -> Option<Watched> {
        let time = self.shared.settings.visitor.body;
        if recv.is_end_stream() {
            // All is said: nobody waits for the rest.
            upload.discard(time);
            return None;
        }
        upload.commit();
        let watched = self.shared.held.watch(self.entry.id, patience.clone());
        let progress = watched.progress();
        tokio::spawn(async move {
            let sent = tokio::select! {
                sent = upload.send(&mut stream, || progress.made()) => sent,
                () = progress.ended() => Err(Stopped::Agent),
            };
            if sent == Err(Stopped::Agent) {
                // Nothing, if the agent has ended it.
                stream.send_reset(Reason::CANCEL);
                upload.discard(time);
            }
        });
        Some(watched)
    }

    /// The answer as the visitor gets it.
    async fn reply(&self, answered: Answered, patience: &Patience) -> Result<Response<ReplyBody>, Missed> {
        let Answered { head, mut recv, watched, in_flight } = answered;
        let mut response = reply::head(head).map_err(Missed::Final)?;
        if recv.is_end_stream() {
            return Ok(response);
        }
        let there = poll_fn(|cx| Poll::Ready(recv.poll_data(cx))).await;
        let first = match there {
            Poll::Ready(Some(first)) => Some(first.map_err(|error| Missed::by(&error))?),
            // Trailers, or what is still to come.
            Poll::Ready(None) | Poll::Pending => None,
        };
        if let Some(first) = first.as_ref().filter(|_| recv.is_end_stream()) {
            *response.body_mut() = ReplyBody::Full(first.clone());
            return Ok(response);
        }
        let watched = watched.unwrap_or_else(|| self.shared.held.watch(self.entry.id, patience.clone()));
        watched.holds(recv.flow_control().clone(), response.headers().contains_key(header::CONTENT_LENGTH));
        let coming = Coming::new(recv, first, response.headers(), watched, in_flight);
        *response.body_mut() = ReplyBody::Stream(Box::pin(coming));
        Ok(response)
    }

    /// A request without a body, until there is the head of an answer, within `time` if that
    /// is not the agent's own. `first` is sent behind it; it is all that may have been sent when it is tried again.
    async fn connect_stream(
        &self,
        request: &Request<()>,
        first: &Bytes,
        time: Option<Duration>,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>, InFlight), LinkError> {
        let mut tried = Vec::new();
        while tried.len() < MAX_ATTEMPTS {
            let Begun { response, mut stream, in_flight } = self.begin(request, false).await?;
            if !first.is_empty() {
                // h2 keeps it until the window is open. If the stream has ended, the answer says so.
                let _ = stream.send_data(first.clone(), false);
            }
            match timeout(time.unwrap_or(in_flight.session.response_deadline), response).await {
                Ok(Ok(answered)) => return Ok((answered, stream, in_flight)),
                Ok(Err(error)) => match Missed::by(&error) {
                    Missed::Final(error) => return Err(error),
                    missed => {
                        self.miss(missed, &in_flight.session);
                        tried.push(in_flight);
                    }
                },
                Err(_) => return Err(LinkError::Failed(Failure::AgentTimeout)),
            }
        }
        Err(LinkError::Failed(Failure::AgentBusy))
    }

    /// Nothing new goes to a session that has died.
    fn miss(&self, missed: Missed, session: &Session) {
        if !matches!(missed, Missed::Refused) {
            self.shared.tunnels.leave(&self.entry, session.id);
        }
    }
}

impl crate::link::Link for Link<'_> {
    type WebSocket = Tunnelled;
    type Duplex = Octets;

    async fn request(
        &self,
        request: Request<()>,
        body: &mut Option<Incoming>,
        visitor: &Visitor<'_>,
    ) -> Result<Response<ReplyBody>, LinkError> {
        let request = onward(request, visitor.ip)?;
        let mut upload = body.take_if(|body| !body.is_end_stream()).map(Upload::new);
        let has_body = upload.is_some();
        // Kept until there is an answer, so that the next one is tried on another session.
        let (mut tried, mut attempts) = (Vec::new(), 0);
        let failed = loop {
            if attempts >= MAX_ATTEMPTS {
                break LinkError::Failed(Failure::AgentBusy);
            }
            let begun = match self.begin(&request, upload.is_none()).await {
                Ok(begun) => begun,
                // It was there, and left with the request.
                Err(LinkError::Failed(Failure::AgentOffline)) if attempts > 0 => {
                    break LinkError::Failed(Failure::AgentLost);
                }
                Err(error) => break error,
            };
            let (missed, session) = match self.ask(begun, &mut upload, &visitor.patience).await {
                Ok(answered) => {
                    let session = Arc::clone(&answered.in_flight.session);
                    match self.reply(answered, &visitor.patience).await {
                        Ok(response) => return Ok(response),
                        // The body is let go of when there is a head.
                        Err(Missed::Lost | Missed::Left | Missed::Refused) if has_body => {
                            break LinkError::Failed(Failure::AgentLost);
                        }
                        // Nothing of it was handed on: it is as if there had been no head.
                        Err(missed) => (missed, session),
                    }
                }
                Err((missed, in_flight)) => {
                    let session = Arc::clone(&in_flight.session);
                    tried.push(in_flight);
                    (missed, session)
                }
            };
            attempts += 1;
            let may_again = match missed {
                Missed::Refused => true,
                Missed::Left | Missed::Lost => matches!(missed, Missed::Left) || request.method().is_idempotent(),
                Missed::Final(error) => break error,
            };
            self.miss(missed, &session);
            if !may_again || !upload.as_mut().is_none_or(Upload::rewind) {
                break LinkError::Failed(Failure::AgentLost);
            }
        };
        *body = upload.map(Upload::into_body);
        Err(failed)
    }

    async fn websocket(&self, request: &Request<()>, visitor: &Visitor<'_>) -> Result<Handshake<Tunnelled>, LinkError> {
        let mut request = onward(request.clone(), visitor.ip)?;
        *request.method_mut() = Method::CONNECT;
        request.headers_mut().remove(header::CONTENT_LENGTH);
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let (answered, send, in_flight) = self.connect_stream(&request, &Bytes::new(), None).await?;
        let (head, recv) = answered.into_parts();
        if head.status != StatusCode::OK {
            // 2xx would be an acceptance.
            if head.status.is_success() {
                return Err(LinkError::ReplyBroken);
            }
            let answered = Answered { head, recv, watched: None, in_flight };
            let refused = self.reply(answered, &visitor.patience).await;
            return refused.map(Handshake::Refused).map_err(|missed| match missed {
                Missed::Final(error) => error,
                Missed::Refused | Missed::Left | Missed::Lost => LinkError::Failed(Failure::AgentLost),
            });
        }
        let mut headers = head.headers;
        for name in [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_ACCEPT, header::SEC_WEBSOCKET_KEY] {
            headers.remove(name);
        }
        let quiet = self.shared.settings.visitor.quiet;
        let stopping = self.shared.stopping.clone();
        Ok(Handshake::Accepted(headers, Tunnelled::new(send, recv, in_flight, quiet, stopping)))
    }

    async fn connect(&self, host: String, first: Bytes, visitor: IpAddr) -> Result<Octets, LinkError> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        let authority: Authority = format!("{host}:443").parse().map_err(|_| LinkError::Target)?;
        *request.uri_mut() = Uri::from(authority);
        put_visitor(request.headers_mut(), visitor);
        let time = self.shared.settings.live.bridge_time;
        let (answered, send, in_flight) = self.connect_stream(&request, &first, Some(time)).await?;
        match answered.status().is_success() {
            true => Ok(Octets::new(send, answered.into_body(), in_flight)),
            false => Err(LinkError::Failed(Failure::AgentBusy)),
        }
    }
}

impl Missed {
    fn by(error: &h2::Error) -> Self {
        match error.reason() {
            Some(Reason::REFUSED_STREAM) if error.is_reset() => Self::Refused,
            // Above the last stream of the agent's GOAWAY (RFC 9113 section 6.8).
            Some(Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => Self::Left,
            _ if error.is_reset() => Self::Final(LinkError::ReplyBroken),
            _ => Self::Lost,
        }
    }
}

/// The request as the agent gets it.
fn onward(request: Request<()>, visitor: IpAddr) -> Result<Request<()>, LinkError> {
    let (mut head, ()) = request.into_parts();
    let octets: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if octets > MAX_HEADERS || head.headers.len() > MAX_FIELDS {
        return Err(LinkError::HeadersTooLarge);
    }
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = match (head.uri.authority(), host) {
        (Some(authority), _) => Some(authority.clone()),
        (None, Some(host)) => host.parse().ok(),
        (None, None) => None,
    };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority.ok_or(LinkError::Target)?);
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    parts.path_and_query = match (ascii_target(target), head.uri.path_and_query()) {
        (Cow::Borrowed(text), Some(target)) if text.starts_with('/') => Some(target.clone()),
        (target, _) if target.starts_with('/') => Some(target.parse().map_err(|_| LinkError::Target)?),
        // An absolute form without a path (RFC 9112 section 3.2.2).
        (target, _) => Some(format!("/{target}").parse().map_err(|_| LinkError::Target)?),
    };
    let mut onward = Request::new(());
    *onward.uri_mut() = Uri::from_parts(parts).map_err(|_| LinkError::Target)?;
    *onward.method_mut() = std::mem::take(&mut head.method);
    *onward.version_mut() = http::Version::HTTP_2;
    *onward.headers_mut() = onward_headers(head.headers);
    put_visitor(onward.headers_mut(), visitor);
    Ok(onward)
}

fn put_visitor(headers: &mut HeaderMap, visitor: IpAddr) {
    if let Ok(visitor) = HeaderValue::try_from(visitor.to_string()) {
        headers.insert(VISITOR, visitor);
    }
}
