//! The one way to a certificate for a public host.
//!
//! The control plane asks for tunnels' agents, the data plane for the hosts that it answers for
//! itself. Both hold an `Arc<dyn Issuance>` and know nothing of who signs. What they are given is on
//! record: no certificate that somebody holds is missing there.

mod private;

use std::fmt;

use async_trait::async_trait;
use pki_core::{CsrError, DnsName};
use store::StoreError;
use tunnel_model::{Caller, Certificate, Refusal, Timestamp, Tunnel};

pub use private::Private;

/// Whoever issues certificates.
#[async_trait]
pub trait Issuance: Send + Sync + 'static {
    /// A certificate for a tunnel's agent, which counts as the tunnel's from now on.
    ///
    /// # Errors
    ///
    /// [`IssuanceError`]; nothing is on record then.
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError>;

    /// A certificate for a host that ends here, with the key of `csr_pem`.
    ///
    /// # Errors
    ///
    /// [`IssuanceError`]; nothing is on record then.
    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError>;
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
    /// Something failed that nobody outside can mend.
    #[error("the certificate could not be made")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be put on record.
    #[error("the certificate could not be put on record")]
    Store(#[from] StoreError),
    /// Whoever signs cannot do so now; the operator can mend it.
    #[error("nothing can be signed now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
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
