//! What came back is looked at before anybody holds it.

use std::collections::BTreeSet;

use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{
    Certificate, CertificateError, ChainError, Expectation, Fingerprint, Time, Usage, certificate_to_pem,
    certificates_from_pem, inspect_certificate, verify_chain,
};

use crate::name::Name;
use crate::roots::Roots;

/// A certificate that is what was asked for, with its intermediates.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    certificates: Vec<Vec<u8>>,
    not_before: Time,
    not_after: Time,
}

/// Why a chain is not what was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// The path to an anchor does not hold; also when it is not valid now, which may be our clock's fault.
    #[error("its chain does not hold: {0}")]
    Chain(ChainError),
    /// No certificates.
    #[error("it is no chain of certificates: {0}")]
    Form(CertificateError),
    /// Another key.
    #[error("it has another key than the request")]
    Key,
    /// Other names.
    #[error("it is for {found:?}, and {wanted:?} was asked for")]
    Names {
        /// What it is for.
        found: Vec<String>,
        /// What was asked for.
        wanted: Vec<String>,
    },
    /// More than an honest chain has.
    #[error("it has {found} certificates, more than {limit}")]
    TooLong {
        /// How many.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Not for servers.
    #[error("it is not for servers: its extended key usage is {found:?}")]
    Usage {
        /// What it is for.
        found: Vec<String>,
    },
}

impl Wrong {
    /// Might it be right, and our clock wrong?
    pub fn may_be_our_clock(&self) -> bool {
        matches!(self, Self::Chain(ChainError::Expired { .. } | ChainError::NotYetValid { .. }))
    }
}

/// The most certificates of a chain; an honest one has two to four.
const LENGTH: usize = 8;

impl Chain {
    /// Reads a chain in PEM and looks whether it is for this key and exactly these names, for
    /// servers, valid at `now`, and ends in one of the roots.
    ///
    /// # Errors
    ///
    /// [`Wrong`], the first thing that is.
    pub fn check(pem: &[u8], spki: &[u8], names: &[Name], roots: &Roots, now: Time) -> Result<Self, Wrong> {
        let certificates = certificates_from_pem(pem).map_err(Wrong::Form)?;
        if certificates.len() > LENGTH {
            return Err(Wrong::TooLong { found: certificates.len(), limit: LENGTH });
        }
        let Some(leaf) = certificates.first() else { return Err(Wrong::Chain(ChainError::Empty)) };
        let summary = inspect_certificate(leaf).map_err(Wrong::Form)?;
        let read = Certificate::from_der(leaf).map_err(Wrong::Form)?;
        if read.spki() != spki {
            return Err(Wrong::Key);
        }
        let wanted: BTreeSet<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let found: BTreeSet<_> = summary.subject_alt_names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let found: BTreeSet<_> = found.iter().map(|name| name.replacen("dns:", "DNS:", 1)).collect();
        if wanted != found {
            return Err(Wrong::Names { found: found.into_iter().collect(), wanted: wanted.into_iter().collect() });
        }
        if !summary.extended_key_usage.iter().any(|usage| usage == "serverAuth") {
            return Err(Wrong::Usage { found: summary.extended_key_usage });
        }
        let chain: Vec<_> = certificates.iter().map(Vec::as_slice).collect();
        let anchors: Vec<_> = roots.der().collect();
        let expectation = Expectation { host: None, usage: Some(Usage::ServerAuth), at: now };
        verify_chain(&chain, &anchors, &expectation, &AwsLc).map_err(Wrong::Chain)?;
        let (not_before, not_after) = (read.not_before(), read.not_after());
        Ok(Self { certificates, not_before, not_after })
    }

    /// The certificate in DER.
    pub fn leaf(&self) -> &[u8] {
        self.certificates.first().map(Vec::as_slice).unwrap_or_default()
    }

    /// All in DER, leaf first.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }

    /// The certificate in PEM.
    pub fn leaf_pem(&self) -> String {
        certificate_to_pem(self.leaf())
    }

    /// The certificates behind the leaf, in PEM.
    pub fn intermediates_pem(&self) -> String {
        self.certificates.iter().skip(1).map(|der| certificate_to_pem(der)).collect()
    }

    /// All in PEM, leaf first.
    pub fn pem(&self) -> String {
        self.certificates.iter().map(|der| certificate_to_pem(der)).collect()
    }

    /// The leaf's first second.
    pub fn not_before(&self) -> Time {
        self.not_before
    }

    /// The leaf's last second.
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// The leaf's SHA-256.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.leaf())
    }
}

/// The leaf of a chain that was refused, so that it can be revoked.
pub(crate) fn leaf_of(pem: &[u8]) -> Option<Vec<u8>> {
    let leaf = certificates_from_pem(pem).ok()?.into_iter().next()?;
    Certificate::from_der(&leaf).is_ok().then_some(leaf)
}
