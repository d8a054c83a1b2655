//! `/_system/attach`: an agent's connection becomes its link (docs/native-wire.md).

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use connections::{Peer, upgraded};
use hyper::upgrade::OnUpgrade;
use tunnel_model::InstanceId;

use super::Shared;
use crate::WIRE_VERSION;
use crate::attach::{Agent, Attached, Credential};
use crate::error::Error;

/// What the connection becomes.
pub(super) const PROTOCOL: &str = "adit-h2";
pub(super) const VERSION: HeaderName = HeaderName::from_static("adit-version");
const TUNNEL: HeaderName = HeaderName::from_static("adit-tunnel");
const SESSION: HeaderName = HeaderName::from_static("adit-session");
/// The longest that an application may take to begin an answer, in seconds.
const LONGEST_DEADLINE: u64 = 3600;

/// Lets an agent in.
pub(super) async fn attach(State(shared): State<Shared>, mut request: Request) -> Result<Response, Error> {
    let on = request.extensions_mut().remove::<OnUpgrade>();
    let headers = request.headers();
    check_upgrade(headers)?;
    let on = on.ok_or(Error::UnsupportedVersion { why: "HTTP/1.1 is needed for it" })?;
    let wanted = Wanted::of(headers)?;
    let peer = request.extensions().get::<Peer>().cloned();
    let peer = peer.ok_or_else(|| Error::Internal("a connection of nobody".into()))?;
    let (tunnel, key) = shared.app.attachable(wanted.tunnel, wanted.credential).await?;
    let id = tunnel.id;
    let (instance, shares, response_deadline) = (wanted.instance, wanted.shares, wanted.response_deadline);
    let Attached { session, serve } =
        shared.app.attach(Agent { tunnel, key, peer, instance, shares, response_deadline })?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    fields.insert(VERSION, HeaderValue::from_static(WIRE_VERSION));
    fields.insert(TUNNEL, HeaderValue::try_from(id.to_string()).map_err(Error::internal)?);
    fields.insert(SESSION, HeaderValue::try_from(session).map_err(Error::internal)?);
    tokio::spawn(async move {
        match upgraded(on).await {
            Ok(link) => serve(link).await,
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "an agent left at its 101"),
        }
    });
    Ok(response)
}

/// Is it a request for our protocol, in a version that is spoken, with nothing behind it?
fn check_upgrade(headers: &HeaderMap) -> Result<(), Error> {
    let has = |name: &HeaderName, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
    };
    if !has(&UPGRADE, PROTOCOL) || !has(&CONNECTION, "upgrade") {
        return Err(Error::UnsupportedVersion { why: "this is no request for an upgrade" });
    }
    if !headers.contains_key(VERSION) {
        return Err(Error::InvalidAttach("Adit-Version says which versions of the wire the agent speaks"));
    }
    if !has(&VERSION, WIRE_VERSION) {
        return Err(Error::UnsupportedVersion { why: "the agent speaks other versions" });
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_body { Err(Error::InvalidAttach("the request has no body: Content-Length is 0")) } else { Ok(()) }
}

/// What the agent says of itself.
struct Wanted<'a> {
    tunnel: &'a str,
    credential: Credential<'a>,
    instance: InstanceId,
    shares: bool,
    response_deadline: Option<Duration>,
}

impl<'a> Wanted<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, Error> {
        let wrong = Error::InvalidAttach;
        let credential = match (one(headers, "x-api-key")?, one(headers, "x-tunnel-secret")?) {
            (Some(key), None) => Credential::ApiKey(key),
            (None, Some(secret)) => Credential::Secret(secret),
            (None, None) => return Err(Error::Unauthorized),
            (Some(_), Some(_)) => return Err(wrong("X-API-Key or X-Tunnel-Secret, not both")),
        };
        let tunnel = one(headers, "adit-tunnel")?.ok_or(wrong("Adit-Tunnel is the tunnel's id or name"))?;
        let instance = one(headers, "adit-instance")?.and_then(instance);
        let instance = instance.ok_or(wrong("Adit-Instance is 32 hexadecimal digits"))?;
        let shares = match one(headers, "adit-share")? {
            Some("true") => true,
            Some("false") | None => false,
            Some(_) => return Err(wrong("Adit-Share is true or false")),
        };
        // Digits alone: a sign is none.
        let is_digits = |text: &&str| text.bytes().all(|digit| digit.is_ascii_digit());
        let seconds = one(headers, "adit-response-deadline")?;
        let seconds = seconds.map(|text| Some(text).filter(is_digits).unwrap_or_default().parse::<u64>());
        let response_deadline = match seconds {
            None => None,
            Some(Ok(seconds @ 1..=LONGEST_DEADLINE)) => Some(Duration::from_secs(seconds)),
            Some(_) => return Err(wrong("Adit-Response-Deadline is a number of seconds, 1 to 3600")),
        };
        Ok(Self { tunnel, credential, instance, shares, response_deadline })
    }
}

/// The value of a field that is there once, or not at all.
fn one<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(Some).map_err(|_| Error::InvalidAttach("a field's value is not ASCII"))
        }
        (Some(_), Some(_)) => Err(Error::InvalidAttach("a field is there twice")),
    }
}

fn instance(text: &str) -> Option<InstanceId> {
    let is_hex = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(InstanceId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_thirty_two_digits() {
        assert_eq!(instance("000000000000000000000000000000fF"), Some(InstanceId(255)));
        for wrong in ["", "ff", "+00000000000000000000000000000ff", "g00000000000000000000000000000ff"] {
            assert_eq!(instance(wrong), None, "{wrong}");
        }
    }
}
