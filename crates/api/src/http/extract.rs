//! What a handler takes from a request, or the answer that the request gets
//! instead.

use std::borrow::Cow;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use base16ct::{lower, mixed};
use pki_core::DnsName;
use serde::de::DeserializeOwned;
use store::{CertificateFilter, Host, Page, Place};
use tunnel_model::{ApiKey, Issuer, KeyId, Kind, Refusal, Timestamp, TunnelId, TunnelName, parse_key_id};

use super::{Shared, json};
use crate::error::Error;

/// Who calls, by the `X-API-Key` header.
pub(super) struct Caller(pub(super) tunnel_model::Caller);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Error> {
        authenticate(parts, shared).await.map(|(caller, _)| Self(caller))
    }
}

/// The key itself, for those who ask who they are.
pub(super) struct PresentedKey(pub(super) ApiKey);

impl FromRequestParts<Shared> for PresentedKey {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Error> {
        authenticate(parts, shared).await.map(|(_, key)| Self(key))
    }
}

async fn authenticate(parts: &Parts, shared: &Shared) -> Result<(tunnel_model::Caller, ApiKey), Error> {
    let mut presented = parts.headers.get_all("x-api-key").iter();
    let (Some(presented), None) = (presented.next(), presented.next()) else { return Err(Error::Unauthorized) };
    let presented = presented.to_str().map_err(|_| Error::Unauthorized)?;
    shared.app.authenticate(presented).await
}

/// The tunnel of the path; what is no UUID names no tunnel.
pub(super) struct TunnelPath(pub(super) TunnelId);

impl<S: Send + Sync> FromRequestParts<S> for TunnelPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let segment = segment(parts, state).await?;
        segment.parse().map(Self).map_err(|_| Refusal::NotFound(Kind::Tunnel).into())
    }
}

/// The identity of the path, with or without `@`.
pub(super) struct HandlePath(pub(super) TunnelName);

impl<S: Send + Sync> FromRequestParts<S> for HandlePath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let segment = segment(parts, state).await?;
        TunnelName::from_handle(&segment).map(Self).map_err(|_| Refusal::NotFound(Kind::Identity).into())
    }
}

/// The API key of the path.
pub(super) struct KeyPath(pub(super) KeyId);

impl<S: Send + Sync> FromRequestParts<S> for KeyPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let segment = segment(parts, state).await?;
        parse_key_id(&segment).map(Self).ok_or(Refusal::NotFound(Kind::ApiKey).into())
    }
}

/// Which part of a list is asked for, by `limit` and `cursor`.
pub(super) struct PageQuery(pub(super) Page);

impl<S: Send + Sync> FromRequestParts<S> for PageQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let limit = parameter(parts, "limit")?.map(|text| match text.parse() {
            Ok(limit @ 1..=MAX_PAGE) => Ok(limit),
            _ => Err(Error::invalid("limit", &format!("use a number from 1 to {MAX_PAGE}"))),
        });
        let after = parameter(parts, "cursor")?.map(|text| {
            parse_cursor(&text).ok_or_else(|| Error::invalid("cursor", &"use what an answer gave as the next one"))
        });
        Ok(Self(Page { after: after.transpose()?, limit: limit.transpose()? }))
    }
}

/// A tunnel's name in the query.
pub(super) struct NameQuery(pub(super) Option<TunnelName>);

impl<S: Send + Sync> FromRequestParts<S> for NameQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let name = parameter(parts, "tunnel_name")?.map(|text| text.parse());
        name.transpose().map(Self).map_err(|error| Error::invalid("tunnel_name", &error))
    }
}

/// Which certificates are wanted.
pub(super) struct CertificateQuery(pub(super) CertificateFilter);

impl FromRequestParts<Shared> for CertificateQuery {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Error> {
        let host = parameter(parts, "host")?.map(|text| {
            let host: DnsName = text.parse().map_err(|error| Error::invalid("host", &error))?;
            let host = host.as_str().to_owned();
            let label = host.strip_suffix(shared.app.zone().as_str()).and_then(|rest| rest.strip_suffix('.'));
            Ok::<_, Error>(Host { name: label.and_then(|label| label.parse().ok()), host })
        });
        let octets = |name: &'static str| {
            let text = parameter(parts, name)?;
            let octets =
                text.map(|text| mixed::decode_vec(text.replace(':', "")).ok().filter(|octets| !octets.is_empty()));
            octets.map(|octets| octets.ok_or(Error::invalid(name, &"use hexadecimal digits, two an octet"))).transpose()
        };
        let fingerprint = octets("fingerprint")?.map(|octets| {
            octets.try_into().map_err(|_| Error::invalid("fingerprint", &"use the 64 hexadecimal digits of a SHA-256"))
        });
        let tunnel = parameter(parts, "tunnel_id")?
            .map(|text| text.parse().map_err(|_| Error::invalid("tunnel_id", &"use the UUID of a tunnel")));
        let issuer = parameter(parts, "issuer")?.map(|text| match text.as_str() {
            "private" => Ok(Issuer::Private),
            "acme" => Ok(Issuer::Acme),
            _ => Err(Error::invalid("issuer", &"use private or acme")),
        });
        let revoked = parameter(parts, "revoked")?
            .map(|text| text.parse().map_err(|_| Error::invalid("revoked", &"use true or false")));
        let time = |name: &'static str| {
            let time = parameter(parts, name)?.map(|text| {
                let time: Result<jiff::Timestamp, _> = text.parse();
                time.map(|time| Timestamp::from_micros(time.as_microsecond()))
                    .map_err(|_| Error::invalid(name, &"use a time such as 2030-01-31T12:00:00Z"))
            });
            time.transpose()
        };
        Ok(Self(CertificateFilter {
            organization: None,
            tunnel: tunnel.transpose()?,
            host: host.transpose()?,
            serial: octets("serial")?,
            fingerprint: fingerprint.transpose()?,
            issuer: issuer.transpose()?,
            revoked: revoked.transpose()?,
            ends_before: time("expires_before")?,
            ends_from: time("expires_after")?,
        }))
    }
}

/// Records that a page may have.
const MAX_PAGE: u32 = 1000;

/// A place in a list, for clients to hand back as it is.
pub(super) fn cursor(place: Place) -> String {
    lower::encode_string(&place.created_at.micros().to_be_bytes()) + &lower::encode_string(&place.id)
}

fn parse_cursor(text: &str) -> Option<Place> {
    let octets: [u8; 24] = mixed::decode_vec(text).ok()?.try_into().ok()?;
    let (created_at, id) = octets.split_first_chunk()?;
    Some(Place { created_at: Timestamp::from_micros(i64::from_be_bytes(*created_at)), id: id.try_into().ok()? })
}

/// The one value of a query parameter; others are not looked at.
fn parameter(parts: &Parts, name: &'static str) -> Result<Option<String>, Error> {
    let query = parts.uri.query().unwrap_or_default();
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (value, None) => Ok(value.map(Cow::into_owned)),
        _ => Err(Error::invalid(name, &"it is given more than once")),
    }
}

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Error> {
    // Percent-encoding that is no UTF-8 names nothing that exists.
    let Path(segment) = Path::from_request_parts(parts, state).await.map_err(|_| Error::UnknownPath)?;
    Ok(segment)
}

/// A JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Error> {
        let media_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        // A body without a type is taken for JSON; one that says it is something else is not.
        if media_type.is_some_and(|media_type| !is_json(media_type)) {
            return Err(Error::UnsupportedMediaType);
        }
        let body = body(request, shared).await?;
        json::from_slice(&body).map(Self).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Error::WrongShape(error.to_string()),
            _ => Error::Malformed(error.to_string()),
        })
    }
}

async fn body(request: Request, shared: &Shared) -> Result<Bytes, Error> {
    // Only what the client does is timed: work that has begun is finished and told.
    let read = tokio::time::timeout(shared.limits.request, Bytes::from_request(request, shared));
    read.await.map_err(|_| Error::Timeout)?.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(error) if error.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
            Error::BodyTooLarge { limit: shared.limits.body }
        }
        rejection => Error::Malformed(rejection.body_text()),
    })
}

fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
