//! One request over mutual TLS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use pki_core::Certificate;
use pki_core::crypto::Signer as _;
use pki_core::crypto::aws_lc::PrivateKey;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::{Map, Value};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// Who asks.
pub(crate) struct Identity {
    /// The certificate first, in DER.
    pub(crate) chain: Vec<Vec<u8>>,
    /// PKCS #8 in DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
}

impl Identity {
    /// A key that is not the certificate's would be told by the panel, in words about TLS. What
    /// cannot be compared is left to it.
    pub(crate) fn may_fit(&self) -> bool {
        let certificate = self.chain.first().and_then(|der| Certificate::from_der(der).ok());
        let key = PrivateKey::from_pkcs8_der(&self.key).ok();
        certificate.zip(key).is_none_or(|(certificate, key)| certificate.spki() == key.spki())
    }
}

/// Who may answer.
pub(crate) enum Trust {
    Anybody,
    /// Who shows one of these, or a certificate that one of these issued.
    Only(Vec<Vec<u8>>),
    /// Whom the system trusts.
    System,
}

/// What a panel said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// An object; an empty one if it was something else.
    pub(crate) body: Value,
    /// As they came.
    pub(crate) octets: Zeroizing<Vec<u8>>,
}

/// A panel and who asks it.
pub(crate) struct Client {
    url: Uri,
    config: Arc<ClientConfig>,
}

/// Octets of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// A renewal may take this long, and nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

impl Client {
    pub(crate) fn new(url: &str, identity: Identity, trust: Trust) -> anyhow::Result<Self> {
        let wrong = || format!("{url:?} is not the URL of a panel: use https://HOST:PORT");
        let url: Uri = url.parse().with_context(wrong)?;
        if url.scheme_str() != Some("https") || url.host().is_none() {
            bail!(wrong());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.as_slice()));
        let key = provider.key_provider.load_private_key(key.clone_key()).context("cannot use the private key")?;
        let chain = identity.chain.into_iter().map(CertificateDer::from).collect();
        // Not `with_client_auth_cert`, which reads no certificate of version 1.
        let identity = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("no TLS")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust.verifier(provider)?))
            .with_client_cert_resolver(Arc::new(identity));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { url, config: Arc::new(config) })
    }

    /// The answer to a request, whatever it says.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
        runtime.block_on(async {
            let answer = timeout(PATIENCE, self.exchange(method, path, body)).await;
            answer.with_context(|| format!("no answer from {} within {} s", self.url, PATIENCE.as_secs()))?
        })
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let cannot_connect = || format!("cannot connect to {}", self.url);
        let host = self.url.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = TcpStream::connect((bare.as_str(), self.url.port_u16().unwrap_or(443)));
        let stream = stream.await.with_context(cannot_connect)?;
        let name = ServerName::try_from(bare).with_context(cannot_connect)?;
        let tls = TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await;
        let tls = tls.with_context(cannot_connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.with_context(cannot_connect)?;
        tokio::spawn(connection);
        let authority = self.url.authority().map_or("", |authority| authority.as_str());
        let mut request = Request::builder().method(method).uri(path).header("host", authority);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).context("cannot make the request")?;
        let answer = sender.send_request(request).await.context("the panel ended the connection")?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("the panel ended the connection")?.to_bytes();
        let octets = Zeroizing::new(body.to_vec());
        let body = serde_json::from_slice::<Map<_, _>>(&octets).unwrap_or_default();
        Ok(Answer { status, body: Value::Object(body), octets })
    }
}

impl Trust {
    fn verifier(self, provider: Arc<CryptoProvider>) -> anyhow::Result<Verifier> {
        let mut roots = RootCertStore::empty();
        let (is_anybody, pinned) = match self {
            Self::Anybody => (true, Vec::new()),
            Self::Only(certificates) => {
                let pinned: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
                roots.add_parsable_certificates(pinned.iter().cloned());
                (false, pinned)
            }
            Self::System => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                (false, Vec::new())
            }
        };
        let chains = match roots.is_empty() {
            true => None,
            false => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .context("cannot use the trusted certificates")?,
            ),
        };
        Ok(Verifier { is_anybody, pinned, chains, provider })
    }
}

/// Panels show certificates that they signed themselves: one is trusted by
/// being known, not by a chain.
struct Verifier {
    is_anybody: bool,
    pinned: Vec<CertificateDer<'static>>,
    chains: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("is_anybody", &self.is_anybody).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_anybody || self.pinned.iter().any(|pinned| pinned == certificate) {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.chains {
            Some(chains) => chains.verify_server_cert(certificate, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
