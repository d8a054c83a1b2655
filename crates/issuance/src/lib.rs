//! The one way to a certificate for a public host.
//!
//! The control plane asks for tunnels' agents, the data plane for the hosts that it answers for
//! itself. Both hold an `Arc<dyn Issuance>` and know nothing of who signs. What they are given is on
//! record: no certificate that somebody holds is missing there.

mod fallback;
mod private;
mod public;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use pki_core::{CsrError, DnsName};
use store::StoreError;
use tunnel_model::{Caller, Certificate, Refusal, Timestamp, Tunnel};

pub use fallback::Fallback;
pub use private::Private;
pub use public::{OrderStats, Public, PublicSettings};

/// Whoever issues certificates.
#[async_trait]
pub trait Issuance: Send + Sync + 'static {
    /// A certificate for a tunnel's agent, which counts as the tunnel's from now on.
    ///
    /// # Errors
    ///
    /// [`IssuanceError`]; nothing is on record then.
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError>;

    /// A certificate that covers a host that ends here. `csr_pem` has the names that [`Self::names`] says.
    ///
    /// Whoever asks for a host knows that there is one: an unknown name is no reason to ask.
    ///
    /// # Errors
    ///
    /// [`IssuanceError`]; nothing is on record then.
    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError>;

    /// The names of the certificate with which the edge answers for `host`. Hosts whose first one is the
    /// same have the same certificate.
    fn names(&self, host: &str) -> Vec<String> {
        vec![host.to_owned()]
    }

    /// Does it take so long that the edge asks before somebody visits?
    fn is_slow(&self) -> bool {
        false
    }
}

/// What an agent asks for.
#[derive(Clone, Copy, Debug)]
pub struct TunnelRequest<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// For which tunnel.
    pub tunnel: &'a Tunnel,
    /// The tunnel's public host.
    pub host: &'a DnsName,
    /// The certificate signing request, PEM.
    pub csr_pem: &'a [u8],
}

/// A certificate that is on record and may be handed out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Issued {
    /// The leaf, DER.
    pub der: Vec<u8>,
    /// The leaf as the record has it.
    pub certificate: Certificate,
    /// The beginning of its validity.
    pub not_before: Timestamp,
    /// The certificates between it and the root, PEM.
    pub chain_pem: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssuanceError {
    /// The requester can mend it.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The authority's limits leave no room for one more.
    #[error("{words}")]
    Exhausted {
        /// Which limit, and until when.
        words: String,
        /// When there is room again.
        retry_after: Duration,
    },
    /// Something failed that nobody outside can mend.
    #[error("the certificate could not be made")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was ordered, and is not there yet: asking again joins the order.
    #[error("the certificate has been ordered and is not there yet: ask again{}", said(words))]
    Pending {
        /// What the authority said last, if it was not satisfied.
        words: Option<String>,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The model says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be put on record.
    #[error("the certificate could not be put on record")]
    Store(#[from] StoreError),
    /// This authority does not take the request; the requester can mend it.
    #[error("{0}")]
    Unacceptable(String),
    /// The authority has not issued it; the operator may have to mend something.
    #[error("the certificate authority has not issued a certificate: {words}")]
    Upstream {
        /// What it says.
        words: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Whoever signs cannot do so now; the operator can mend it.
    #[error("nothing can be signed now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn said(words: &Option<String>) -> String {
    words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default()
}

impl fmt::Debug for dyn Issuance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issuance(..)")
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
