//! Envelopes: what an intake is answered with.

use std::net::IpAddr;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::id::{BridgeId, RequestId};
use crate::limits::{MAX_HEADER_FIELDS, MAX_HEADER_OCTETS};
use crate::reply::unprefixed;
use crate::stream::text;
use crate::visitor::ascii_target;

/// One visitor's request. The body, if any, follows in the stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Envelope {
    /// Names it, and its reply.
    pub request_id: RequestId,
    /// Where the visitor is.
    pub forwarded_for: Option<IpAddr>,
    /// What the visitor wants.
    pub kind: EnvelopeKind,
}

/// What a visitor wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EnvelopeKind {
    /// Raw bytes both ways.
    Tcp {
        /// The bridge to open.
        id: BridgeId,
        /// The name in the visitor's ClientHello.
        sni_host: String,
    },
    /// One request.
    Webhook {
        /// Its method.
        method: Method,
        /// Path and query, as the visitor sent them.
        path: String,
        /// Its headers.
        headers: HeaderMap,
        /// Where the body is, if it is not in the stream.
        body_uri: Option<String>,
    },
    /// A WebSocket.
    WebSocket {
        /// The bridge to open after accepting.
        id: BridgeId,
        /// Path and query, as the visitor sent them.
        path: String,
        /// The headers of the handshake.
        headers: HeaderMap,
    },
}

/// An envelope that cannot be sent, or is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// A field is missing or malformed.
    #[error("the envelope's {0} is missing or malformed")]
    Field(&'static str),
    /// Agents lose what is larger.
    #[error("the header list has {octets} octets, and {MAX_HEADER_OCTETS} fit")]
    TooLarge {
        /// By HPACK's measure: 32 octets are added for each field.
        octets: usize,
    },
    /// Agents lose what has more.
    #[error("there are {fields} header fields, and {MAX_HEADER_FIELDS} fit")]
    TooManyFields {
        /// How many.
        fields: usize,
    },
}

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("inkbox-request-id");
pub(crate) const WS_ID: HeaderName = HeaderName::from_static("inkbox-ws-id");
pub(crate) const TCP_ID: HeaderName = HeaderName::from_static("inkbox-tcp-id");
const ROUTE_KIND: HeaderName = HeaderName::from_static("inkbox-route-kind");
const METHOD: HeaderName = HeaderName::from_static("inkbox-method");
const PATH: HeaderName = HeaderName::from_static("inkbox-path");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("inkbox-forwarded-for");
const SNI_HOST: HeaderName = HeaderName::from_static("inkbox-sni-host");
const BODY_URI: HeaderName = HeaderName::from_static("inkbox-body-uri");
/// Stands before the name of every header that is not the protocol's own.
pub(crate) const PREFIX: &str = "inkbox-h-";

impl Envelope {
    /// The headers of the 200 that delivers it.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::TooLarge`] and [`EnvelopeError::TooManyFields`] are a
    /// 431 to the visitor, [`EnvelopeError::Field`] a 400.
    pub fn encode(&self) -> Result<HeaderMap, EnvelopeError> {
        let visitors = match &self.kind {
            EnvelopeKind::Tcp { .. } => 0,
            EnvelopeKind::Webhook { headers, .. } | EnvelopeKind::WebSocket { headers, .. } => headers.len(),
        };
        if visitors > MAX_HEADER_FIELDS {
            return Err(EnvelopeError::TooManyFields { fields: visitors });
        }
        let mut fields = HeaderMap::with_capacity(visitors + 8);
        fields.insert(REQUEST_ID, once(&self.request_id.to_string())?);
        let kind = match &self.kind {
            EnvelopeKind::Tcp { id, sni_host } => {
                fields.insert(TCP_ID, once(&id.to_string())?);
                fields.insert(SNI_HOST, value("SNI host", sni_host)?);
                "tcp-stream"
            }
            EnvelopeKind::Webhook { method, path, headers, body_uri } => {
                fields.insert(METHOD, value("method", method.as_str())?);
                fields.insert(PATH, value("path", &ascii_target(path))?);
                if let Some(uri) = body_uri {
                    fields.insert(BODY_URI, value("body URI", uri)?);
                }
                put_prefixed(headers, &mut fields)?;
                "webhook"
            }
            EnvelopeKind::WebSocket { id, path, headers } => {
                fields.insert(METHOD, HeaderValue::from_static("GET"));
                fields.insert(PATH, value("path", &ascii_target(path))?);
                fields.insert(WS_ID, once(&id.to_string())?);
                put_prefixed(headers, &mut fields)?;
                "ws-upgrade"
            }
        };
        fields.insert(ROUTE_KIND, HeaderValue::from_static(kind));
        if let Some(ip) = self.forwarded_for {
            fields.insert(FORWARDED_FOR, value("forwarded-for", &ip.to_string())?);
        }
        let octets = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        if octets > MAX_HEADER_OCTETS {
            return Err(EnvelopeError::TooLarge { octets });
        }
        Ok(fields)
    }

    /// Reads an envelope as agents do: what is absent has a default. What is there
    /// and cannot be read has none: half of a request is another request.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Field`]; if [`RequestId::of_envelope`] can be read, the answer
    /// is a 400.
    pub fn decode(fields: &HeaderMap) -> Result<Self, EnvelopeError> {
        let request_id = RequestId::of_envelope(fields).ok_or(EnvelopeError::Field("request id"))?;
        let bridge = |name: &HeaderName| {
            text(fields, name).and_then(|id| id.parse().ok()).ok_or(EnvelopeError::Field("bridge id"))
        };
        let path = || match optional(fields, &PATH, "path")?.unwrap_or("/") {
            path if path.starts_with('/') || path == "*" => Ok(path.to_owned()),
            _ => Err(EnvelopeError::Field("path")),
        };
        let kind = match optional(fields, &ROUTE_KIND, "route kind")?.unwrap_or("webhook") {
            "webhook" => {
                let method = optional(fields, &METHOD, "method")?.unwrap_or("GET");
                EnvelopeKind::Webhook {
                    method: Method::from_bytes(method.as_bytes()).map_err(|_| EnvelopeError::Field("method"))?,
                    path: path()?,
                    headers: unprefixed(fields),
                    body_uri: optional(fields, &BODY_URI, "body URI")?.map(str::to_owned),
                }
            }
            "ws-upgrade" => EnvelopeKind::WebSocket { id: bridge(&WS_ID)?, path: path()?, headers: unprefixed(fields) },
            "tcp-stream" => EnvelopeKind::Tcp {
                id: bridge(&TCP_ID)?,
                sni_host: optional(fields, &SNI_HOST, "SNI host")?.unwrap_or_default().to_owned(),
            },
            _ => return Err(EnvelopeError::Field("route kind")),
        };
        let forwarded_for = optional(fields, &FORWARDED_FOR, "forwarded-for")?;
        let forwarded_for = forwarded_for.map(|ip| ip.parse().map_err(|_| EnvelopeError::Field("forwarded-for")));
        let forwarded_for = forwarded_for.transpose()?;
        Ok(Self { request_id, forwarded_for, kind })
    }
}

impl RequestId {
    /// The request that an envelope is, even if the rest of it cannot be read.
    pub fn of_envelope(fields: &HeaderMap) -> Option<Self> {
        text(fields, &REQUEST_ID)?.parse().ok()
    }
}

/// A field that may be absent, but not unreadable or there twice.
fn optional<'a>(
    fields: &'a HeaderMap,
    name: &HeaderName,
    what: &'static str,
) -> Result<Option<&'a str>, EnvelopeError> {
    let mut values = fields.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(value), None) => Ok(Some(value)),
        _ => Err(EnvelopeError::Field(what)),
    }
}

fn value(what: &'static str, text: &str) -> Result<HeaderValue, EnvelopeError> {
    HeaderValue::from_str(text).map_err(|_| EnvelopeError::Field(what))
}

/// A value that never comes again: kept out of HPACK's table, where it would
/// push out those that do (RFC 7541 section 6.2.3).
pub(crate) fn once(text: &str) -> Result<HeaderValue, EnvelopeError> {
    let mut value = value("id", text)?;
    value.set_sensitive(true);
    Ok(value)
}

fn put_prefixed(headers: &HeaderMap, fields: &mut HeaderMap) -> Result<(), EnvelopeError> {
    for (name, value) in headers {
        let name = prefixed(name).map_err(|_| EnvelopeError::Field("header name"))?;
        fields.append(name, value.clone());
    }
    Ok(())
}

/// The name with the prefix; the frequent ones are made at compile time.
pub(crate) fn prefixed(name: &HeaderName) -> Result<HeaderName, http::header::InvalidHeaderName> {
    if let Some((_, prefixed)) = FREQUENT.iter().find(|(plain, _)| *plain == name.as_str()) {
        return Ok(HeaderName::from_static(prefixed));
    }
    let mut prefixed = BytesMut::with_capacity(PREFIX.len() + name.as_str().len());
    prefixed.extend_from_slice(PREFIX.as_bytes());
    prefixed.extend_from_slice(name.as_str().as_bytes());
    HeaderName::from_bytes(&prefixed)
}

const FREQUENT: [(&str, &str); 16] = [
    ("accept", "inkbox-h-accept"),
    ("user-agent", "inkbox-h-user-agent"),
    ("content-type", "inkbox-h-content-type"),
    ("content-length", "inkbox-h-content-length"),
    ("accept-encoding", "inkbox-h-accept-encoding"),
    ("accept-language", "inkbox-h-accept-language"),
    ("cookie", "inkbox-h-cookie"),
    ("set-cookie", "inkbox-h-set-cookie"),
    ("date", "inkbox-h-date"),
    ("server", "inkbox-h-server"),
    ("cache-control", "inkbox-h-cache-control"),
    ("etag", "inkbox-h-etag"),
    ("last-modified", "inkbox-h-last-modified"),
    ("origin", "inkbox-h-origin"),
    ("referer", "inkbox-h-referer"),
    ("authorization", "inkbox-h-authorization"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(headers: HeaderMap) -> Envelope {
        let kind = EnvelopeKind::Webhook { method: Method::GET, path: "/a?b".to_owned(), headers, body_uri: None };
        Envelope { request_id: RequestId::from_u128(1), forwarded_for: Some([203, 0, 113, 9].into()), kind }
    }

    #[test]
    fn a_request_has_the_fields_that_agents_read() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("k=v"));
        headers.insert("x-any", HeaderValue::from_static("1"));
        let fields = envelope(headers).encode().expect("it fits");
        let get = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(get("inkbox-route-kind"), Some("webhook"));
        assert_eq!(get("inkbox-method"), Some("GET"));
        assert_eq!(get("inkbox-path"), Some("/a?b"));
        assert_eq!(get("inkbox-forwarded-for"), Some("203.0.113.9"));
        assert_eq!(get("inkbox-h-cookie"), Some("k=v"));
        assert_eq!(get("inkbox-h-x-any"), Some("1"));
        assert_eq!(get("inkbox-request-id"), Some("00000000-0000-0000-0000-000000000001"));
    }

    #[test]
    fn agents_get_no_more_than_110_fields_and_60_kib() {
        let with = |count: usize, len: usize| {
            let mut headers = HeaderMap::new();
            for _ in 0..count {
                headers.append("x", HeaderValue::from_str(&"v".repeat(len)).expect("a value"));
            }
            envelope(headers).encode().err()
        };
        assert_eq!(with(110, 1), None);
        assert_eq!(with(111, 1), Some(EnvelopeError::TooManyFields { fields: 111 }));
        assert!(matches!(with(61, 1024), Some(EnvelopeError::TooLarge { .. })));
    }

    #[test]
    fn an_envelope_without_an_id_is_none_and_the_rest_has_defaults() {
        let mut fields = HeaderMap::new();
        assert_eq!(Envelope::decode(&fields), Err(EnvelopeError::Field("request id")));
        fields.insert(REQUEST_ID, HeaderValue::from_static("00000000-0000-0000-0000-000000000001"));
        let Ok(Envelope { kind: EnvelopeKind::Webhook { method, path, .. }, .. }) = Envelope::decode(&fields) else {
            panic!("a webhook")
        };
        assert_eq!((method, path.as_str()), (Method::GET, "/"));
        fields.insert(ROUTE_KIND, HeaderValue::from_static("tcp-stream"));
        assert_eq!(Envelope::decode(&fields), Err(EnvelopeError::Field("bridge id")));
    }

    #[test]
    fn what_fits_no_field_is_percent_encoded_on_its_way() {
        for kind in [
            EnvelopeKind::Webhook {
                method: Method::DELETE,
                path: "/items?name=jos\u{e9}".to_owned(),
                headers: HeaderMap::new(),
                body_uri: None,
            },
            EnvelopeKind::WebSocket {
                id: BridgeId::from_u128(9),
                path: "/items?name=jos\u{e9}".to_owned(),
                headers: HeaderMap::new(),
            },
        ] {
            let envelope = Envelope { request_id: RequestId::from_u128(1), forwarded_for: None, kind };
            let fields = envelope.encode().expect("it fits");
            assert_eq!(fields["inkbox-path"], "/items?name=jos%C3%A9");
        }
    }

    #[test]
    fn what_is_there_and_cannot_be_read_is_an_error_and_no_default() {
        let good = envelope(HeaderMap::new()).encode().expect("it fits");
        for (name, what) in [
            (PATH, "path"),
            (METHOD, "method"),
            (ROUTE_KIND, "route kind"),
            (FORWARDED_FOR, "forwarded-for"),
            (BODY_URI, "body URI"),
        ] {
            let mut fields = good.clone();
            fields.insert(name.clone(), HeaderValue::from_bytes(b"/jos\xe9").expect("a value"));
            assert_eq!(Envelope::decode(&fields), Err(EnvelopeError::Field(what)));
            assert_eq!(RequestId::of_envelope(&fields), Some(RequestId::from_u128(1)), "it can be answered");
            fields.append(name, HeaderValue::from_static("/"));
            assert_eq!(Envelope::decode(&fields), Err(EnvelopeError::Field(what)));
        }
        let mut fields = good;
        for path in ["", "a", "?x"] {
            fields.insert(PATH, HeaderValue::from_static(path));
            assert_eq!(Envelope::decode(&fields), Err(EnvelopeError::Field("path")), "{path:?}");
        }
    }

    #[test]
    fn frequent_names_are_the_prefix_and_the_name() {
        for (plain, prefixed) in FREQUENT {
            assert_eq!(prefixed, format!("{PREFIX}{plain}"));
        }
    }

    fn headers() -> impl Strategy<Value = HeaderMap> {
        proptest::collection::vec(("[a-z][a-z0-9-]{0,12}", "[!-~]{0,20}"), 0..20).prop_map(|pairs| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(
                    HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                    HeaderValue::from_str(&value).expect("a value"),
                );
            }
            headers
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(id: u128, bridge: u128, path in "/[!-~]{0,40}", headers in headers(), which in 0..3) {
            let bridge = BridgeId::from_u128(bridge);
            let kind = match which {
                0 => EnvelopeKind::Webhook { method: Method::POST, path, headers, body_uri: None },
                1 => EnvelopeKind::WebSocket { id: bridge, path, headers },
                _ => EnvelopeKind::Tcp { id: bridge, sni_host: "a.example".to_owned() },
            };
            let envelope = Envelope { request_id: RequestId::from_u128(id), forwarded_for: None, kind };
            let fields = envelope.encode().expect("it fits");
            prop_assert_eq!(Envelope::decode(&fields), Ok(envelope));
        }
    }
}
