//! What can go wrong, and how it is told: RFC 9457 problem documents whose
//! `detail` the published clients understand.

use std::time::Duration;

use axum::http::StatusCode;
use issuance::IssuanceError;
use pki_core::CsrError;
use serde::Serialize;
use store::{ExecuteError, StoreError};
use tunnel_model::{Kind, Refusal};
use utoipa::ToSchema;

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The body has more octets than are read.
    #[error("the body has more than the {limit} octets that are read")]
    BodyTooLarge {
        /// Octets allowed.
        limit: usize,
    },
    /// The certificate signing request is refused.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A handle that is not to be had; clients want to know from what.
    #[error("the handle is not available")]
    HandleUnavailable(#[source] Refusal),
    /// Something failed that the caller cannot mend.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// One field breaks its rule.
    #[error("{field}: {message}")]
    InvalidField {
        /// The JSON name of the field.
        field: &'static str,
        /// What its rule is.
        message: String,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    Malformed(String),
    /// The public authority's limits leave no room for one more certificate.
    #[error("{words}")]
    AuthorityExhausted {
        /// Which limit, and until when.
        words: String,
        /// When there is room again.
        retry_after: Duration,
    },
    /// The public authority has not issued a certificate.
    #[error("the certificate authority has not issued a certificate: {words}")]
    AuthorityFailed {
        /// What it says.
        words: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// A certificate was ordered, and is not there yet.
    #[error("{words}")]
    CertificatePending {
        /// That, and what the authority has said.
        words: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The public authority does not take such a request.
    #[error("{0}")]
    CsrUnacceptable(String),
    /// The path exists, the method does not.
    #[error("this path does not have that method")]
    MethodNotAllowed,
    /// An agent's request to attach breaks a rule of the wire.
    #[error("{0}")]
    InvalidAttach(&'static str),
    /// The model says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The tunnel's secret is another one, or there is no such tunnel.
    #[error("the X-Tunnel-Secret header is not the secret of that tunnel")]
    SecretRefused,
    /// The request's body took too long to arrive.
    #[error("the request did not arrive in time")]
    Timeout,
    /// There is no such tunnel for whoever asks to serve it.
    #[error("there is no such tunnel, or this credential may not serve it")]
    TunnelForbidden,
    /// The tunnel cannot be served as it is.
    #[error("the tunnel is deleted, or has no certificate for its name yet")]
    TunnelNotActive,
    /// There is no such path.
    #[error("there is nothing at this path")]
    UnknownPath,
    /// No API key, or one that is unknown or revoked.
    #[error("the X-API-Key header is missing, or its key is unknown or revoked")]
    Unauthorized,
    /// The server cannot work now; later it may.
    #[error("the server cannot take this request now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An agent that speaks another version of the wire, or does not ask for it.
    #[error("attach with Upgrade: adit-h2 and Adit-Version: {version}: {why}", version = agent_proto::WIRE_VERSION)]
    UnsupportedVersion {
        /// What is wrong.
        why: &'static str,
    },
    /// The body is of another type.
    #[error("the body must be application/json")]
    UnsupportedMediaType,
    /// No Host header, or not one.
    #[error("an HTTP/1.1 request has one Host header, which is a host name or an address")]
    WrongHost,
    /// JSON, but not of the shape that is expected.
    #[error("{0}")]
    WrongShape(String),
}

impl Error {
    pub(crate) fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Internal(Box::new(error))
    }

    /// The store answered events that do not fit the command.
    pub(crate) fn unexpected() -> Self {
        Self::Internal("the command had no such event".into())
    }

    pub(crate) fn invalid(field: &'static str, message: &dyn std::fmt::Display) -> Self {
        Self::InvalidField { field, message: message.to_string() }
    }

    /// Is it no failure of this server, though a client is to come back?
    pub(crate) fn is_the_authoritys(&self) -> bool {
        matches!(self, Self::AuthorityFailed { .. } | Self::CertificatePending { .. })
    }

    /// As a problem document; exhaustive, so that a new error needs a new answer.
    pub fn problem(&self) -> Problem {
        let problem = |status, slug, title| Problem::new(status, slug, title, self.to_string());
        match self {
            Self::BodyTooLarge { .. } => problem(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large"),
            Self::AuthorityExhausted { retry_after, .. } => Problem {
                retry_after: Some(*retry_after),
                ..problem(StatusCode::TOO_MANY_REQUESTS, "authority-limit", "The certificate authority's limit")
            },
            Self::AuthorityFailed { retry_after, .. } => Problem {
                retry_after: Some(*retry_after),
                ..problem(StatusCode::SERVICE_UNAVAILABLE, "authority-failed", "No certificate was issued")
            },
            Self::CertificatePending { retry_after, .. } => Problem {
                retry_after: Some(*retry_after),
                ..problem(StatusCode::SERVICE_UNAVAILABLE, "certificate-pending", "The certificate is not there yet")
            },
            Self::Csr(_) | Self::CsrUnacceptable(_) => {
                problem(StatusCode::BAD_REQUEST, "csr-refused", "Certificate signing request refused")
            }
            Self::HandleUnavailable(refusal) => Problem {
                detail: Detail::Handle {
                    error: "agent_handle_unavailable",
                    blocking_namespace: blocking_namespace(refusal),
                    message: format!("the handle is unavailable: {refusal}"),
                },
                ..problem(StatusCode::CONFLICT, "name-taken", "Name not available")
            },
            Self::Internal(_) => {
                problem(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal server error").without_cause()
            }
            Self::InvalidField { .. } => {
                problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid-field", "A field breaks its rule")
            }
            Self::InvalidAttach(_) => problem(StatusCode::BAD_REQUEST, "invalid-attach", "Cannot attach"),
            Self::Malformed(_) => problem(StatusCode::BAD_REQUEST, "malformed-body", "Malformed body"),
            Self::MethodNotAllowed => {
                problem(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")
            }
            Self::Refused(refusal) => refused(refusal),
            Self::SecretRefused => problem(StatusCode::UNAUTHORIZED, "unauthorized", "Secret refused"),
            Self::Timeout => problem(StatusCode::REQUEST_TIMEOUT, "timeout", "Request timeout"),
            Self::TunnelForbidden => problem(StatusCode::FORBIDDEN, "tunnel-forbidden", "Tunnel forbidden"),
            Self::TunnelNotActive => problem(StatusCode::FORBIDDEN, "tunnel-not-active", "Tunnel not active"),
            Self::UnknownPath => problem(StatusCode::NOT_FOUND, "unknown-path", "Unknown path"),
            Self::Unauthorized => problem(StatusCode::UNAUTHORIZED, "unauthorized", "API key needed"),
            Self::Unavailable(_) => Problem {
                retry_after: Some(Duration::from_secs(5)),
                ..problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Service unavailable").without_cause()
            },
            Self::UnsupportedVersion { .. } => {
                problem(StatusCode::UPGRADE_REQUIRED, "unsupported-version", "Unsupported version")
            }
            Self::UnsupportedMediaType => {
                problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "Unsupported media type")
            }
            Self::WrongHost => problem(StatusCode::BAD_REQUEST, "wrong-host", "Wrong Host header"),
            Self::WrongShape(_) => problem(StatusCode::UNPROCESSABLE_ENTITY, "wrong-shape", "Unexpected JSON"),
        }
    }
}

/// Among what a name is taken, for clients that ask.
fn blocking_namespace(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::NameTaken { by_identity: true } => Some("identities"),
        Refusal::NameTaken { by_identity: false } => Some("tunnels"),
        Refusal::AdminKeyForbidden
        | Refusal::CreateQuota { .. }
        | Refusal::Forbidden
        | Refusal::IdentityOwned
        | Refusal::NameUnavailable(_)
        | Refusal::NotDeletePending
        | Refusal::NotFound(_)
        | Refusal::NotPassthrough
        | Refusal::NotSignable
        | Refusal::RestoreWindowOver
        | Refusal::SignQuota { .. } => None,
    }
}

fn refused(refusal: &Refusal) -> Problem {
    let problem = |status, slug, title| Problem::new(status, slug, title, refusal.to_string());
    match refusal {
        Refusal::AdminKeyForbidden => problem(StatusCode::FORBIDDEN, "admin-key-forbidden", "Admin key refused"),
        Refusal::CreateQuota { retry_after, .. } => Problem {
            retry_after: Some(*retry_after),
            ..problem(StatusCode::TOO_MANY_REQUESTS, "create-quota", "Too many tunnels created")
        },
        Refusal::Forbidden => problem(StatusCode::FORBIDDEN, "forbidden", "Forbidden"),
        Refusal::IdentityOwned => problem(StatusCode::CONFLICT, "identity-owned", "Tunnel of an identity"),
        Refusal::NameTaken { .. } | Refusal::NameUnavailable(_) => {
            problem(StatusCode::CONFLICT, "name-taken", "Name not available")
        }
        Refusal::NotDeletePending => problem(StatusCode::CONFLICT, "not-delete-pending", "Tunnel not deleted"),
        Refusal::NotFound(Kind::ApiKey) => problem(StatusCode::NOT_FOUND, "no-such-api-key", "No such API key"),
        Refusal::NotFound(Kind::Identity) => problem(StatusCode::NOT_FOUND, "no-such-identity", "No such identity"),
        Refusal::NotFound(Kind::Tunnel) => problem(StatusCode::NOT_FOUND, "no-such-tunnel", "No such tunnel"),
        Refusal::NotPassthrough => problem(StatusCode::CONFLICT, "tls-mode-mismatch", "Wrong TLS mode"),
        Refusal::NotSignable => problem(StatusCode::CONFLICT, "state-conflict", "Wrong state"),
        Refusal::RestoreWindowOver => problem(StatusCode::CONFLICT, "restore-window-over", "Restore window over"),
        Refusal::SignQuota { retry_after, .. } => Problem {
            retry_after: Some(*retry_after),
            ..problem(StatusCode::TOO_MANY_REQUESTS, "sign-quota", "Too many certificates signed")
        },
    }
}

/// An error as a client gets it: `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:adit:problem:` and a word that stays the same.
    #[serde(rename = "type")]
    #[schema(example = "urn:adit:problem:no-such-tunnel")]
    pub kind: String,
    /// The same words for every occurrence.
    #[schema(example = "No such tunnel")]
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What is wrong this time, and what to change.
    pub detail: Detail,
    /// The request, as the log knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// For the `Retry-After` header.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// Text for most problems; an object where clients look for its fields.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Detail {
    /// A handle that is not to be had.
    Handle {
        /// `agent_handle_unavailable`.
        error: &'static str,
        /// `identities` or `tunnels`, whoever has the name; absent for reserved names.
        #[serde(skip_serializing_if = "Option::is_none")]
        blocking_namespace: Option<&'static str>,
        /// The same in words.
        message: String,
    },
    /// Everything else.
    Text(String),
}

impl Problem {
    fn new(status: StatusCode, slug: &str, title: &'static str, detail: String) -> Self {
        Self {
            kind: format!("urn:adit:problem:{slug}"),
            title,
            status: status.as_u16(),
            detail: Detail::Text(detail),
            request_id: None,
            retry_after: None,
        }
    }

    /// A 5xx never tells its cause; the log does.
    fn without_cause(self) -> Self {
        let detail = "the server failed; the log has the cause under this request's id".to_owned();
        Self { detail: Detail::Text(detail), ..self }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed | StoreError::Full => Self::Unavailable(Box::new(error)),
            error => Self::internal(error),
        }
    }
}

impl From<ExecuteError> for Error {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::Refused(refusal) => Self::Refused(refusal),
            ExecuteError::Store(error) => error.into(),
        }
    }
}

impl From<IssuanceError> for Error {
    fn from(error: IssuanceError) -> Self {
        match error {
            IssuanceError::Csr(error) => Self::Csr(error),
            IssuanceError::Exhausted { words, retry_after } => Self::AuthorityExhausted { words, retry_after },
            IssuanceError::Pending { retry_after, .. } => {
                Self::CertificatePending { words: error.to_string(), retry_after }
            }
            IssuanceError::Unacceptable(words) => Self::CsrUnacceptable(words),
            IssuanceError::Upstream { words, retry_after } => Self::AuthorityFailed { words, retry_after },
            IssuanceError::Refused(refusal) => Self::Refused(refusal),
            IssuanceError::Store(error) => error.into(),
            IssuanceError::Unavailable(_) => Self::Unavailable(Box::new(error)),
            error => Self::internal(error),
        }
    }
}
