//! The issuing certificate authority behind the API.

use std::sync::Arc;

use pki_core::crypto::{SignError, Signer, Verifier};
use pki_core::{
    Csr, CsrError, DnsName, IssueError, Issuer, IssuerError, KeyPolicy, Leaf, Profile, SerialNumber, Time,
    certificate_to_pem,
};

/// Signs requests for one host by one profile.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer>,
    signer: Arc<dyn Signer>,
    verifier: Arc<dyn Verifier>,
    profile: Arc<Profile>,
    key_policy: Arc<KeyPolicy>,
    chain_pem: Arc<str>,
}

/// Why a request is not signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The requester can mend it.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The operator can.
    #[error("the certificate could not be assembled")]
    Issue(#[from] IssueError),
    /// The key can't be used.
    #[error("the certificate could not be signed")]
    Sign(#[from] SignError),
}

impl Authority {
    /// An authority with this certificate in DER, whose key `signer` holds.
    ///
    /// # Errors
    ///
    /// When certificate and key do not belong together.
    pub fn new(
        certificate: &[u8],
        signer: Arc<dyn Signer>,
        verifier: Arc<dyn Verifier>,
        profile: Profile,
        key_policy: KeyPolicy,
    ) -> Result<Self, IssuerError> {
        Ok(Self {
            issuer: Arc::new(Issuer::new(certificate, signer.as_ref())?),
            signer,
            verifier,
            profile: Arc::new(profile),
            key_policy: Arc::new(key_policy),
            chain_pem: certificate_to_pem(certificate).into(),
        })
    }

    /// The certificates between a leaf and the root, as PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// May it sign for this host?
    pub fn permits(&self, host: &DnsName) -> bool {
        self.issuer.permits(host)
    }

    /// The last second of the authority's own life.
    pub fn not_after(&self) -> Time {
        self.issuer.not_after()
    }

    /// Checks a request for exactly `host` and signs it.
    ///
    /// Nothing is recorded here: a certificate that is not stored afterwards
    /// is thrown away, and nobody has seen it.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Csr`] says what the requester must change.
    pub fn issue(
        &self,
        csr_pem: &[u8],
        host: &DnsName,
        serial: SerialNumber,
        now: Time,
    ) -> Result<Leaf, AuthorityError> {
        let approved = Csr::from_pem(csr_pem)?.verify(self.verifier.as_ref(), &self.key_policy)?.approve_host(host)?;
        let to_be_signed = approved.to_be_signed(&self.issuer, &self.profile, serial, now)?;
        Ok(to_be_signed.sign(self.signer.as_ref())?)
    }
}
