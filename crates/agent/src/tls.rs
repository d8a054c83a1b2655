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
            let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
            tls.map_err(|error| if speaks_no_tls(&error) { no_tls(address) } else { address.named(&error) })
        };
        timeout(CONNECT, connect).await.unwrap_or_else(|_| Err(address.silent())).map_err(Error::Connect)
    }
}

/// Was the first answer no record of TLS?
fn speaks_no_tls(error: &io::Error) -> bool {
    use rustls::{Error, InvalidMessage};
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(error, Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

fn no_tls(address: Address<'_>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}:{} does not speak TLS", address.host, address.port))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{NamedGroup, ServerConfig};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::dial::Proxies;

    #[tokio::test]
    async fn what_is_said_today_is_not_read_by_the_quantum_computers_of_tomorrow() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["a.localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            acceptor.accept(stream).await.expect("TLS")
        });
        let trust = Trust::only(vec![certificate]).expect("a root");
        let address = Address { host: "a.localhost", port, proxies: &Proxies::none() };
        let tls = trust.connect("a.localhost", address, b"h2").await.expect("TLS");
        let group = tls.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        let (_, server) = served.await.map(|stream| stream.into_inner()).expect("no panic");
        assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full), "the first share is the right one");
    }
}
