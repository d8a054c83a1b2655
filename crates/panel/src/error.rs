//! Why a use case did not do what it was asked.

use std::fmt;
use std::sync::Arc;

use crate::state::Malformed;

/// What is wrong, for whom. Its text is what clients compare.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The admin's key never leaves the device, so there is nothing to upgrade.
    #[error("Admin is already using hardware-bound authentication")]
    AlreadyHardwareBound,
    /// A label that an active certificate has.
    #[error("Agent certificate with label \"{0}\" already exists")]
    AgentExists(String),
    /// No active certificate has the label.
    #[error("Agent certificate \"{0}\" not found")]
    AgentNotFound(String),
    /// `ca.key` is not there.
    #[error("CA key not found")]
    CaKeyMissing,
    /// A request that is too large to be read.
    #[error("CSR too large")]
    CsrTooLarge,
    /// A request that is not signed. The cause is for the log.
    #[error("Invalid CSR: structure or signature verification failed")]
    InvalidCsr(#[source] Cause),
    /// A label that is none.
    #[error("Invalid agent label")]
    InvalidLabel,
    /// The admin's key never leaves the device, so there is no bundle.
    #[error("the admin uses hardware-bound authentication")]
    NoBundle,
    /// Another failure. The cause is for the log.
    #[error("Internal server error")]
    Internal(#[source] Cause),
    /// No P12 of the admin is there.
    #[error("No client certificate found")]
    NoClientCertificate,
    /// Whoever asked was revoked meanwhile, or has another certificate.
    #[error("Certificate has been revoked")]
    Superseded,
    /// A token of the label waits to be used.
    #[error("An active enrollment token for label \"{0}\" already exists")]
    TokenExists(String),
    /// The token's time is over.
    #[error("Enrollment token has expired")]
    TokenExpired,
    /// No such token.
    #[error("Invalid enrollment token")]
    TokenUnknown,
    /// The token has been used.
    #[error("Enrollment token has already been used")]
    TokenUsed,
}

/// What went wrong below; many that wait for one commit share it.
#[derive(Clone, Debug)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Error {
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(Cause(Arc::from(error.into())))
    }

    pub(crate) fn invalid_csr(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::InvalidCsr(Cause(Arc::from(error.into())))
    }
}

impl From<Malformed> for Error {
    fn from(error: Malformed) -> Self {
        Self::internal(error)
    }
}

impl Eq for Cause {}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
