//! The one root that the agent is to trust: that of the PEM file `ADIT_ROOT`.

use std::sync::LazyLock;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};

/// What the crate of this name has for the public roots.
pub static TLS_SERVER_ROOTS: LazyLock<Vec<TrustAnchor<'static>>> = LazyLock::new(|| {
    let path = std::env::var_os("ADIT_ROOT").expect("ADIT_ROOT names a PEM file");
    let root = CertificateDer::from_pem_file(path).expect("a certificate");
    vec![webpki::anchor_from_trusted_cert(&root).expect("a root").to_owned()]
});
