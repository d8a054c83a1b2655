//! The streams that an agent opens: who asks, and for what.

use std::fmt;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use uuid::Uuid;

use crate::id::{BridgeId, OwnerToken, RequestId, is_same};
use crate::limits::MAX_POOL_SIZE;
use crate::reply::{ReplyError, ReplyHead};

/// What an agent proves itself with, at hello and on replies and bridges.
#[derive(Clone)]
pub enum Credential {
    /// `x-api-key`, of clients of the second generation.
    ApiKey(String),
    /// `x-tunnel-secret`, of clients of the first.
    TunnelSecret(String),
}

/// What a bridge carries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BridgeKind {
    /// Raw bytes of a visitor's TCP connection.
    Tcp,
    /// Messages of a visitor's WebSocket.
    WebSocket,
}

/// One stream, read from its request.
#[derive(Debug)]
pub enum StreamRequest {
    /// A bridge to a visitor.
    Bridge(Bridge),
    /// The first stream of a connection.
    Hello(Hello),
    /// A stream parked for one envelope.
    Intake(Intake),
    /// A reply to an envelope.
    Reply(Reply),
}

/// `POST /_system/hello`
#[derive(Clone, Debug)]
pub struct Hello {
    /// The tunnel that the agent serves.
    pub tunnel: Uuid,
    /// Its proof.
    pub credential: Credential,
    /// How many intakes it would like to park, 1 to 32.
    pub pool_size: Option<u8>,
}

/// `POST /_system/intake`
#[derive(Clone, Debug)]
pub struct Intake {
    /// The tunnel of the session.
    pub tunnel: Uuid,
    /// The token that the session was given.
    pub owner_token: OwnerToken,
    /// Which of the parked ones this is, from 0.
    pub slot: u32,
}

/// `POST /_system/response/{request_id}`
#[derive(Debug)]
pub struct Reply {
    /// The tunnel of the session.
    pub tunnel: Uuid,
    /// Its proof.
    pub credential: Credential,
    /// The envelope that this answers.
    pub request_id: RequestId,
    /// Status and headers for the visitor, unless they are malformed.
    pub head: Result<ReplyHead, ReplyError>,
}

/// `CONNECT /_system/ws/{id}` or `/_system/tcp/{id}` (RFC 8441)
#[derive(Clone, Debug)]
pub struct Bridge {
    /// The tunnel of the session.
    pub tunnel: Uuid,
    /// Its proof.
    pub credential: Credential,
    /// What it carries.
    pub kind: BridgeKind,
    /// The bridge that the envelope named.
    pub id: BridgeId,
}

/// A stream that no agent opens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A field that must be there is not, or is not what it must be.
    #[error("{0} is missing or malformed")]
    Field(&'static str),
    /// The path is known, the method another.
    #[error("the method does not fit the path")]
    Method,
    /// Nobody said who asks.
    #[error("there is no credential")]
    NoCredential,
    /// There is nothing at this path.
    #[error("the path is unknown")]
    UnknownPath,
}

impl StreamError {
    /// The status that the stream is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            // Agents stop at 403 and would try again for ever after 400.
            Self::Field("x-tunnel-id") => StatusCode::FORBIDDEN,
            Self::Field(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoCredential => StatusCode::UNAUTHORIZED,
            Self::UnknownPath => StatusCode::NOT_FOUND,
        }
    }
}

impl StreamRequest {
    /// Reads the head of a request; `protocol` is `:protocol` of an extended
    /// CONNECT.
    ///
    /// # Errors
    ///
    /// [`StreamError::status`] is the answer.
    pub fn decode(
        method: &Method,
        path: &str,
        protocol: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Self, StreamError> {
        let rest = path.strip_prefix("/_system/").ok_or(StreamError::UnknownPath)?;
        let expect = |expected: &Method| if method == expected { Ok(()) } else { Err(StreamError::Method) };
        if let Some(id) = rest.strip_prefix("response/") {
            expect(&Method::POST)?;
            return Ok(Self::Reply(Reply {
                tunnel: tunnel(headers)?,
                credential: Credential::decode(headers)?,
                request_id: id.parse().map_err(|_| StreamError::UnknownPath)?,
                head: ReplyHead::decode(headers),
            }));
        }
        if rest == "intake" {
            expect(&Method::POST)?;
            return Ok(Self::Intake(Intake {
                tunnel: tunnel(headers)?,
                owner_token: OwnerToken::new(text(headers, &OWNER_TOKEN).ok_or(StreamError::NoCredential)?),
                slot: number(headers, &POOL_SLOT, "x-pool-slot")?.unwrap_or(0),
            }));
        }
        if rest == "hello" {
            expect(&Method::POST)?;
            let pool_size = number(headers, &POOL_SIZE, "x-pool-size")?;
            let pool_size = pool_size.map(|size| size.clamp(1, u32::from(MAX_POOL_SIZE)));
            return Ok(Self::Hello(Hello {
                tunnel: tunnel(headers)?,
                credential: Credential::decode(headers)?,
                pool_size: pool_size.and_then(|size| u8::try_from(size).ok()),
            }));
        }
        for kind in [BridgeKind::WebSocket, BridgeKind::Tcp] {
            let Some(id) = path.strip_prefix(kind.path_prefix()) else { continue };
            expect(&Method::CONNECT)?;
            if protocol != Some(kind.protocol()) {
                return Err(StreamError::Field(":protocol"));
            }
            return Ok(Self::Bridge(Bridge {
                tunnel: tunnel(headers)?,
                credential: Credential::decode(headers)?,
                kind,
                id: id.parse().map_err(|_| StreamError::UnknownPath)?,
            }));
        }
        Err(StreamError::UnknownPath)
    }
}

impl Credential {
    fn decode(headers: &HeaderMap) -> Result<Self, StreamError> {
        if headers.contains_key(&TUNNEL_SECRET) {
            let secret = text(headers, &TUNNEL_SECRET).ok_or(StreamError::NoCredential)?;
            return Ok(Self::TunnelSecret(secret.to_owned()));
        }
        text(headers, &API_KEY).map(|key| Self::ApiKey(key.to_owned())).ok_or(StreamError::NoCredential)
    }

    pub(crate) fn put(&self, headers: &mut HeaderMap) -> Result<(), http::Error> {
        let (name, secret) = match self {
            Self::ApiKey(key) => (API_KEY, key),
            Self::TunnelSecret(secret) => (TUNNEL_SECRET, secret),
        };
        let mut value = HeaderValue::from_str(secret)?;
        // Never indexed by HPACK, never printed.
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    }
}

/// Takes the same time for every credential of this length.
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ApiKey(left), Self::ApiKey(right)) | (Self::TunnelSecret(left), Self::TunnelSecret(right)) => {
                is_same(left, right)
            }
            _ => false,
        }
    }
}

impl Eq for Credential {}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiKey(_) => "ApiKey(..)",
            Self::TunnelSecret(_) => "TunnelSecret(..)",
        })
    }
}

impl BridgeKind {
    /// The value of `:protocol` and of `sec-websocket-protocol`.
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::Tcp => "inkbox-tunnel-tcp",
            Self::WebSocket => "inkbox-tunnel-ws",
        }
    }

    const fn path_prefix(self) -> &'static str {
        match self {
            Self::Tcp => "/_system/tcp/",
            Self::WebSocket => "/_system/ws/",
        }
    }
}

impl Hello {
    /// The request that says it.
    ///
    /// # Errors
    ///
    /// When the credential does not fit a header field.
    pub fn to_request(&self, zone: &Authority) -> Result<Request<()>, http::Error> {
        let mut request = request(Method::POST, zone, "/_system/hello", self.tunnel)?;
        let headers = request.headers_mut();
        self.credential.put(headers)?;
        headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        if let Some(size) = self.pool_size {
            headers.insert(POOL_SIZE, HeaderValue::from(u16::from(size)));
        }
        Ok(request)
    }
}

impl Intake {
    /// The request that parks it.
    ///
    /// # Errors
    ///
    /// When the token does not fit a header field.
    pub fn to_request(&self, zone: &Authority) -> Result<Request<()>, http::Error> {
        let mut request = request(Method::POST, zone, "/_system/intake", self.tunnel)?;
        let headers = request.headers_mut();
        let mut token = HeaderValue::from_str(self.owner_token.expose())?;
        token.set_sensitive(true);
        headers.insert(OWNER_TOKEN, token);
        headers.insert(POOL_SLOT, HeaderValue::from(self.slot));
        headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok(request)
    }
}

impl Reply {
    /// The request that delivers it.
    ///
    /// # Errors
    ///
    /// When head or credential do not fit header fields.
    pub fn to_request(&self, zone: &Authority) -> Result<Request<()>, http::Error> {
        let path = format!("/_system/response/{}", self.request_id);
        let mut request = request(Method::POST, zone, &path, self.tunnel)?;
        let headers = request.headers_mut();
        self.credential.put(headers)?;
        let mut id = HeaderValue::from_str(&self.request_id.to_string())?;
        // Never again: no use in HPACK's table.
        id.set_sensitive(true);
        headers.insert(crate::envelope::REQUEST_ID, id);
        if let Ok(head) = &self.head {
            head.encode(headers)?;
        }
        Ok(request)
    }
}

impl Bridge {
    /// The request that opens it; the caller adds `:protocol`, which is
    /// [`BridgeKind::protocol`].
    ///
    /// # Errors
    ///
    /// When the credential does not fit a header field.
    pub fn to_request(&self, zone: &Authority) -> Result<Request<()>, http::Error> {
        let path = format!("{}{}", self.kind.path_prefix(), self.id);
        let mut request = request(Method::CONNECT, zone, &path, self.tunnel)?;
        let headers = request.headers_mut();
        self.credential.put(headers)?;
        headers.insert(http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(http::header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.kind.protocol()));
        let name = match self.kind {
            BridgeKind::Tcp => crate::envelope::TCP_ID,
            BridgeKind::WebSocket => crate::envelope::WS_ID,
        };
        headers.insert(name, HeaderValue::from_str(&self.id.to_string())?);
        Ok(request)
    }
}

const TUNNEL_ID: HeaderName = HeaderName::from_static("x-tunnel-id");
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
pub(crate) const TUNNEL_SECRET: HeaderName = HeaderName::from_static("x-tunnel-secret");
const OWNER_TOKEN: HeaderName = HeaderName::from_static("x-owner-token");
const POOL_SIZE: HeaderName = HeaderName::from_static("x-pool-size");
const POOL_SLOT: HeaderName = HeaderName::from_static("x-pool-slot");

fn request(method: Method, zone: &Authority, path: &str, tunnel: Uuid) -> Result<Request<()>, http::Error> {
    let path: PathAndQuery = path.parse()?;
    let uri = Uri::builder().scheme("https").authority(zone.clone()).path_and_query(path).build()?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(TUNNEL_ID, HeaderValue::from_str(&tunnel.to_string())?);
    Ok(request)
}

fn tunnel(headers: &HeaderMap) -> Result<Uuid, StreamError> {
    let id = text(headers, &TUNNEL_ID).ok_or(StreamError::Field("x-tunnel-id"))?;
    Uuid::try_parse(id).map_err(|_| StreamError::Field("x-tunnel-id"))
}

/// A number that may be absent, but not unreadable.
fn number(headers: &HeaderMap, name: &HeaderName, what: &'static str) -> Result<Option<u32>, StreamError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|number| number.parse().ok());
    number.map(Some).ok_or(StreamError::Field(what))
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Authority {
        Authority::from_static("tunnels.example")
    }

    fn decode(request: &Request<()>, protocol: Option<&str>) -> Result<StreamRequest, StreamError> {
        StreamRequest::decode(request.method(), request.uri().path(), protocol, request.headers())
    }

    #[test]
    fn what_an_agent_asks_is_what_the_edge_reads() {
        let tunnel = Uuid::from_u128(7);
        let credential = Credential::ApiKey("ApiKey_x".to_owned());
        let hello = Hello { tunnel, credential: credential.clone(), pool_size: Some(4) };
        let request = hello.to_request(&zone()).expect("a request");
        let Ok(StreamRequest::Hello(read)) = decode(&request, None) else { panic!("a hello") };
        assert!(read.credential == credential && read.tunnel == tunnel && read.pool_size == Some(4));

        let intake = Intake { tunnel, owner_token: OwnerToken::new("token"), slot: 3 };
        let Ok(StreamRequest::Intake(read)) = decode(&intake.to_request(&zone()).expect("a request"), None) else {
            panic!("an intake")
        };
        assert!(read.owner_token.matches("token") && !read.owner_token.matches("tokex") && read.slot == 3);

        for kind in [BridgeKind::Tcp, BridgeKind::WebSocket] {
            let bridge = Bridge { tunnel, credential: credential.clone(), kind, id: BridgeId::from_u128(9) };
            let request = bridge.to_request(&zone()).expect("a request");
            let Ok(StreamRequest::Bridge(read)) = decode(&request, Some(kind.protocol())) else { panic!("a bridge") };
            assert_eq!((read.kind, read.id), (kind, bridge.id));
            assert_eq!(decode(&request, Some("websocket")).err(), Some(StreamError::Field(":protocol")));
        }
    }

    #[test]
    fn what_no_agent_asks_has_its_status() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
        };
        let id = ("x-tunnel-id", "00000000-0000-0000-0000-000000000007");
        for (method, path, pairs, status) in [
            (Method::POST, "/", vec![], 404),
            (Method::POST, "/_system/connect", vec![id], 404),
            (Method::GET, "/_system/hello", vec![id], 405),
            (Method::POST, "/_system/hello", vec![("x-api-key", "k")], 403),
            (Method::POST, "/_system/hello", vec![id], 401),
            (Method::POST, "/_system/intake", vec![id], 401),
            (Method::POST, "/_system/intake", vec![id, ("x-owner-token", "t"), ("x-pool-slot", "one")], 400),
            (Method::POST, "/_system/hello", vec![id, ("x-api-key", "k"), ("x-pool-size", "many")], 400),
            (Method::POST, "/_system/response/not-a-uuid", vec![id, ("x-api-key", "k")], 404),
            (Method::POST, "/_system/ws/00000000-0000-0000-0000-000000000007", vec![id, ("x-api-key", "k")], 405),
        ] {
            let error = StreamRequest::decode(&method, path, None, &headers(&pairs)).expect_err(path);
            assert_eq!(error.status().as_u16(), status, "{method} {path}");
        }
    }

    #[test]
    fn the_first_generations_credential_wins() {
        let mut headers = HeaderMap::new();
        headers.insert(API_KEY, HeaderValue::from_static("key"));
        headers.insert(TUNNEL_SECRET, HeaderValue::from_static("secret"));
        let credential = Credential::decode(&headers).expect("there are two");
        assert_eq!(credential, Credential::TunnelSecret("secret".to_owned()));
        assert_eq!(format!("{credential:?}"), "TunnelSecret(..)");
        headers.insert(TUNNEL_SECRET, HeaderValue::from_bytes(b"\xe9").expect("a value"));
        assert_eq!(Credential::decode(&headers).err(), Some(StreamError::NoCredential), "not the other one");
    }
}
