//! The deployment's own authority.

use std::sync::Arc;

use async_trait::async_trait;
use pki_core::{Authority, AuthorityError, DnsName, IssueError, Leaf, SerialNumber, Time};
use sha2::{Digest as _, Sha256};
use store::{Clock, ExecuteError, Holder, IssuedCertificate, Store};
use tunnel_model::{Certificate, Command, Issuer, Origin, Rules, Timestamp};

use crate::{Issuance, IssuanceError, Issued, TunnelRequest};

/// Signs at once, and puts on record what it has signed (docs/decisions, 0006).
pub struct Private {
    authority: Authority,
    store: Arc<dyn Store>,
    rules: Arc<Rules>,
    clock: Arc<dyn Clock>,
}

impl Private {
    /// Whatever `authority` signs is put on record in `store`; `rules` say how often a tunnel may ask.
    pub fn new(authority: Authority, store: Arc<dyn Store>, rules: Arc<Rules>, clock: Arc<dyn Clock>) -> Self {
        Self { authority, store, rules, clock }
    }

    fn sign(&self, host: &DnsName, csr_pem: &[u8], now: Timestamp) -> Result<Signed, IssuanceError> {
        let mut octets = [0; 20];
        getrandom::fill(&mut octets).map_err(|error| IssuanceError::Failed(Box::new(error)))?;
        let serial = SerialNumber::from_random(octets);
        let leaf = self.authority.issue(csr_pem, host, serial, Time::from_unix(now.micros().div_euclid(1_000_000)))?;
        Signed::new(&leaf, self.authority.chain_pem())
    }
}

/// A certificate that nobody has seen.
struct Signed {
    issued: Issued,
    /// SHA-256 of its SubjectPublicKeyInfo.
    key: [u8; 32],
}

impl Signed {
    fn new(leaf: &Leaf, chain_pem: &str) -> Result<Self, IssuanceError> {
        let read =
            pki_core::Certificate::from_der(leaf.der()).map_err(|error| IssuanceError::Failed(Box::new(error)))?;
        let issued = Issued {
            der: leaf.der().to_vec(),
            certificate: Certificate {
                pem: leaf.to_pem(),
                fingerprint: *leaf.fingerprint().as_bytes(),
                serial: leaf.serial().as_bytes().to_vec(),
                expires_at: timestamp(leaf.not_after()),
                renew_at: Some(renewal(timestamp(leaf.not_before()), timestamp(leaf.not_after()))),
            },
            not_before: timestamp(leaf.not_before()),
            chain_pem: chain_pem.to_owned(),
        };
        Ok(Self { issued, key: Sha256::digest(read.spki()).into() })
    }
}

/// A third of its life is left when the next one is asked for.
pub(crate) fn renewal(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_before.plus(not_after.since(not_before) / 3 * 2)
}

pub(crate) fn timestamp(time: Time) -> Timestamp {
    Timestamp::from_micros(time.unix().saturating_mul(1_000_000))
}

#[async_trait]
impl Issuance for Private {
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError> {
        let TunnelRequest { caller, tunnel, host, csr_pem } = request;
        let Signed { issued, key } = self.sign(host, csr_pem, self.clock.now())?;
        let command = Command::RecordCertificate {
            id: tunnel.id,
            name: tunnel.name.clone(),
            certificate: issued.certificate.clone(),
            origin: Origin {
                issuer: Issuer::Private,
                requested_by: caller.key(),
                key,
                not_before: issued.not_before,
                profile: None,
            },
        };
        self.store.execute(caller.clone(), command, &self.rules, self.clock.now()).await?;
        Ok(issued)
    }

    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError> {
        let now = self.clock.now();
        let Signed { issued, key } = self.sign(host, csr_pem, now)?;
        let record = IssuedCertificate {
            holder: Holder::Edge(host.as_str().to_owned()),
            serial: issued.certificate.serial.clone(),
            fingerprint: issued.certificate.fingerprint,
            issuer: Issuer::Private,
            profile: None,
            key: Some(key),
            requested_by: None,
            not_before: Some(issued.not_before),
            not_after: issued.certificate.expires_at,
            issued_at: Some(now),
            revoked_at: None,
        };
        self.store.record_certificate(record).await?;
        Ok(issued)
    }
}

impl From<AuthorityError> for IssuanceError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Csr(error) => Self::Csr(error),
            // The operator must renew the issuer; until then nobody is served.
            AuthorityError::Issue(IssueError::OutlivesIssuer { .. }) => Self::Unavailable(Box::new(error)),
            error => Self::Failed(Box::new(error)),
        }
    }
}

impl From<ExecuteError> for IssuanceError {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::Refused(refusal) => Self::Refused(refusal),
            ExecuteError::Store(error) => Self::Store(error),
        }
    }
}
