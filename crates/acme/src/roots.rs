//! Whom we trust: for the connection to the authority, and for what it issues.

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

/// Trust anchors, in DER.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Roots(Vec<Vec<u8>>);

/// Why there are no trust anchors.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    /// The file has no certificate.
    #[error("no trusted certificate can be read: {0}")]
    File(pki_core::CertificateError),
    /// There is none that TLS can use.
    #[error("there is no trusted certificate that can be used")]
    None,
    /// The system has none.
    #[error("the system has no trusted certificates: name a file with those of the authority")]
    System,
}

impl Roots {
    /// The certificates of a file: PEM blocks, or one in DER.
    ///
    /// # Errors
    ///
    /// [`RootsError::File`] when there is none.
    pub fn from_file(contents: &[u8]) -> Result<Self, RootsError> {
        pki_core::certificates_from_file(contents).map(Self).map_err(RootsError::File)
    }

    /// Those of the operating system. Reads files.
    ///
    /// # Errors
    ///
    /// [`RootsError::System`] when there is none.
    pub fn of_system() -> Result<Self, RootsError> {
        // Systems have a few that cannot be read; the others do.
        let found = rustls_native_certs::load_native_certs().certs;
        if found.is_empty() {
            Err(RootsError::System)
        } else {
            Ok(Self(found.iter().map(|one| one.to_vec()).collect()))
        }
    }

    /// These and those of `others`: an authority for tests whose directory is served with a public
    /// certificate, while what it issues ends in a root of its own.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Each in DER.
    pub fn der(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    pub(crate) fn store(&self) -> Result<RootCertStore, RootsError> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.0.iter().map(|der| CertificateDer::from_slice(der)));
        if store.is_empty() { Err(RootsError::None) } else { Ok(store) }
    }
}
