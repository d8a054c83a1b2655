//! tls-alpn-01 (RFC 8737): certificates that whoever terminates TLS shows for `acme-tls/1`.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use pki_core::DnsName;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Challenge, Solver, SolverError, Table};

/// The one application protocol of a validation (RFC 8737 section 6.2).
pub const ALPN: &[u8] = b"acme-tls/1";

/// Certificates of tls-alpn-01, by host. Cheap to clone.
///
/// Who routes by SNI asks [`TlsAlpn::certificate`] for a connection whose ALPN is exactly [`ALPN`]:
/// `None` means that it is not ours to answer. [`TlsAlpn::server_config`] answers it.
#[derive(Clone)]
pub struct TlsAlpn(Arc<Table<DnsName, Shown>>);

#[derive(Clone)]
struct Shown {
    digest: [u8; 32],
    certificate: Arc<CertifiedKey>,
}

impl TlsAlpn {
    /// An empty table.
    pub fn new() -> Self {
        Self(Arc::new(Table::new()))
    }

    /// The certificate to show for a host, if a challenge is pending.
    pub fn certificate(&self, host: &DnsName) -> Option<Arc<CertifiedKey>> {
        Some(self.0.latest(host)?.certificate)
    }

    /// Is a challenge for this host pending?
    pub fn is_pending(&self, host: &DnsName) -> bool {
        self.0.latest(host).is_some()
    }

    /// Is no challenge pending?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Answers validations and nothing else: no other protocol, no session tickets.
    ///
    /// # Errors
    ///
    /// None that depends on more than this library.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl Default for TlsAlpn {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for TlsAlpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsAlpn").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for TlsAlpn {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_validation = hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(ALPN));
        let host = hello.server_name()?.parse().ok()?;
        self.certificate(&host).filter(|_| is_validation)
    }
}

#[async_trait]
impl Solver for TlsAlpn {
    async fn present(&self, challenge: &Challenge) -> Result<(), SolverError> {
        let digest = challenge.digest();
        let certificate = Arc::new(certificate(challenge.host(), &digest)?);
        self.0.insert(challenge.host().clone(), Shown { digest, certificate });
        Ok(())
    }

    async fn withdraw(&self, challenge: &Challenge) -> Result<(), SolverError> {
        let digest = challenge.digest();
        self.0.remove(challenge.host(), |one| one.digest == digest);
        Ok(())
    }
}

/// RFC 8737 section 3: the host as its one name, and the digest in a critical extension.
///
/// rustls' `with_single_cert` parses the certificate and refuses the extension, so the key is
/// joined with it unseen.
fn certificate(host: &DnsName, digest: &[u8; 32]) -> Result<CertifiedKey, SolverError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let signed = params.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(CertifiedKey::new(vec![signed.der().clone()], aws_lc_rs::sign::any_supported_type(&key)?))
}
