//! Answers: what clients compare to the letter.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::error::Error;

/// JSON with the content type that clients expect.
pub(super) struct Answer<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        with_charset(Json(self.0).into_response())
    }
}

fn with_charset(mut response: Response) -> Response {
    const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A bundle to be saved under a name.
pub(super) struct Download {
    pub(super) name: String,
    pub(super) content: Zeroizing<Vec<u8>>,
}

impl IntoResponse for Download {
    fn into_response(self) -> Response {
        const P12: HeaderValue = HeaderValue::from_static("application/x-pkcs12");
        let mut response = self.content.to_vec().into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, P12);
        // Labels have letters, digits, hyphens and colons only.
        if let Ok(disposition) = HeaderValue::from_str(&format!("attachment; filename=\"{}\"", self.name)) {
            response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
        }
        response
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    body: Body,
    retry_after: Option<u64>,
}

#[derive(Debug)]
enum Body {
    Json(Value),
    Text(&'static str),
}

const fn text(status: StatusCode, text: &'static str) -> Failure {
    Failure { status, body: Body::Text(text), retry_after: None }
}

fn json(status: StatusCode, body: Value) -> Failure {
    Failure { status, body: Body::Json(body), retry_after: None }
}

impl Failure {
    pub(super) const BROKEN_BODY: Self = text(StatusCode::BAD_REQUEST, "The request ended before its body");
    pub(super) const CERTIFICATE_NOT_FOUND: Self = text(StatusCode::NOT_FOUND, "Certificate not found");
    pub(super) const CROSS_ORIGIN: Self = text(StatusCode::FORBIDDEN, "Requests from pages of other sites are refused");
    pub(super) const EMPTY_JSON: Self =
        text(StatusCode::BAD_REQUEST, "Body cannot be empty when content-type is set to 'application/json'");
    pub(super) const INVALID_AGENT_LABEL: Self = text(StatusCode::BAD_REQUEST, "Invalid agent label");
    pub(super) const MALFORMED_JSON: Self =
        text(StatusCode::BAD_REQUEST, "Body is not valid JSON but content-type is set to 'application/json'");
    pub(super) const NO_AGENT_LABEL: Self = text(StatusCode::FORBIDDEN, "Agent label not found in certificate");
    pub(super) const NOT_FOUND: Self = text(StatusCode::NOT_FOUND, "Not found");
    pub(super) const ONBOARDING_OVER: Self = text(StatusCode::GONE, "Onboarding already completed");
    pub(super) const REVOKED: Self = text(StatusCode::FORBIDDEN, "Certificate has been revoked");
    pub(super) const TOO_LARGE: Self = text(StatusCode::PAYLOAD_TOO_LARGE, "Request body is too large");
    pub(super) const TOO_SLOW: Self = text(StatusCode::REQUEST_TIMEOUT, "The request's body took too long");
    pub(super) const UNKNOWN_CERTIFICATE: Self =
        text(StatusCode::FORBIDDEN, "Certificate is not one of an active admin or agent");
    pub(super) const UNSUPPORTED_MEDIA_TYPE: Self = text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Media Type");
    pub(super) const WRONG_HOST: Self = text(StatusCode::BAD_REQUEST, "A request has one Host header");

    pub(super) fn certificate_required() -> Self {
        let hint = "Access to the Portlama panel requires a valid client certificate.";
        json(StatusCode::FORBIDDEN, json!({"error": "mTLS certificate required", "details": {"hint": hint}}))
    }

    /// For one kind of caller only.
    pub(super) fn scope() -> Self {
        let details = json!({"required": ["admin"], "current": "agent"});
        json(StatusCode::FORBIDDEN, json!({"error": "Insufficient certificate scope", "details": details}))
    }

    pub(super) fn capability(required: &str, granted: &[&String]) -> Self {
        let details = json!({"required": required, "granted": granted});
        json(StatusCode::FORBIDDEN, json!({"error": "Insufficient certificate capability", "details": details}))
    }

    pub(super) fn not_set_up(status: &str) -> Self {
        let body = json!({"error": "Onboarding not complete", "onboardingStatus": status});
        json(StatusCode::SERVICE_UNAVAILABLE, body)
    }

    pub(super) fn invalid(issues: &[Value]) -> Self {
        json(StatusCode::BAD_REQUEST, json!({"error": "Validation failed", "details": {"issues": issues}}))
    }

    pub(super) fn too_many(seconds: u64) -> Self {
        let body = json!({"error": format!("Rate limit exceeded, retry in {seconds} seconds")});
        Self { retry_after: Some(seconds), ..json(StatusCode::TOO_MANY_REQUESTS, body) }
    }

    pub(super) fn gone(what: &str) -> Self {
        let text = format!(
            "P12 certificate {what} is disabled. Admin uses hardware-bound authentication. \
             Use portlama-reset-admin on the server to revert."
        );
        json(StatusCode::GONE, json!({"error": text}))
    }

    pub(super) fn not_renewed(reason: &str) -> Self {
        let body = json!({"error": "Certificate renewal failed", "details": reason});
        json(StatusCode::INTERNAL_SERVER_ERROR, body)
    }

    /// A failure below, without a word on its cause.
    pub(super) fn internal(error: &Error) -> Self {
        Self::failed(error, "Internal server error")
    }

    /// What a use case says, and `otherwise` for what only the log may know.
    pub(super) fn of(error: &Error, otherwise: &str) -> Self {
        let status = match error {
            Error::AgentExists(_) | Error::AlreadyHardwareBound | Error::TokenExists(_) => StatusCode::CONFLICT,
            Error::AgentNotFound(_) | Error::NoClientCertificate => StatusCode::NOT_FOUND,
            Error::CsrTooLarge | Error::InvalidLabel => StatusCode::BAD_REQUEST,
            Error::InvalidCsr(cause) => {
                tracing::info!(%cause, "a request was not signed");
                StatusCode::BAD_REQUEST
            }
            Error::NoBundle => StatusCode::GONE,
            Error::Superseded => StatusCode::FORBIDDEN,
            Error::TokenExpired | Error::TokenUnknown | Error::TokenUsed => StatusCode::UNAUTHORIZED,
            Error::CaKeyMissing | Error::Internal(_) => return Self::failed(error, otherwise),
        };
        json(status, json!({"error": error.to_string()}))
    }

    fn failed(error: &Error, told: &str) -> Self {
        tracing::error!(error = error as &dyn std::error::Error, told, "a panel request failed");
        json(StatusCode::INTERNAL_SERVER_ERROR, json!({"error": told}))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = match self.body {
            Body::Json(body) => body,
            Body::Text(text) => json!({"error": text}),
        };
        let mut response = with_charset((self.status, Json(body)).into_response());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
