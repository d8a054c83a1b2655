//! Whom the agent trusts, and how it dials.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;
use crate::dial::Address;

/// The certificates that a server's chain may end in.
#[derive(Clone, Debug)]
pub struct Trust(Arc<RootCertStore>);

/// How long TCP and TLS may take, together.
const CONNECT: Duration = Duration::from_secs(10);

impl Trust {
    /// Those of a PEM file, and no others.
    ///
    /// # Errors
    ///
    /// When the file has no certificate.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        Self::only(read.map_err(|error| Error::Trust(error.into()))?)
    }

    /// These certificates, and no others.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or there is none.
    pub fn only(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| Error::Trust(error.into()))?;
        }
        if roots.is_empty() { Err(Error::Trust("there is no certificate".into())) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Those that the system trusts.
    ///
    /// # Errors
    ///
    /// When the system trusts nobody.
    pub fn of_system() -> Result<Self, Error> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems have a few that cannot be read; the others do.
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Error::Trust("the system has no trusted certificates: give the root's file".into()));
        }
        Ok(Self(Arc::new(roots)))
    }

    /// Connects to `host` at `address` with one application protocol.
    pub(crate) async fn connect(
        &self,
        host: &str,
        address: Address<'_>,
        protocol: &[u8],
    ) -> Result<TlsStream<TcpStream>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Error::Trust(error.into()))?
            .with_root_certificates(Arc::clone(&self.0))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|error| Error::Trust(error.into()))?;
        let connect = async {
            let stream = address.connect().await?;
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        timeout(CONNECT, connect).await.map_err(io::Error::from).flatten().map_err(Error::Connect)
    }
}
