//! Connections: TLS with a certificate that the client may show, or plain from
//! a proxy.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::http::Peer;
use crate::identity::Presented;
use crate::panel::Clock;

/// How connections come in.
#[derive(Clone)]
pub enum Listener {
    /// From a proxy at this address, which says whom it has verified. Others
    /// may connect and are nobody.
    Proxied(IpAddr),
    /// From clients. The authority's certificate is in DER.
    Tls {
        /// See [`tls`].
        config: Arc<ServerConfig>,
        /// Whose certificates count.
        authority: Arc<[u8]>,
        /// When they count.
        clock: Clock,
    },
}

/// How much a listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// For the handshake, and for the headers of a request.
    pub headers: Duration,
    /// From the signal to stop to the end of what is in flight.
    pub grace: Duration,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("the panel's certificate, its key or its authority cannot be used for TLS")]
pub struct TlsError(#[source] rustls::Error);

/// TLS 1.2 and 1.3 with this certificate. The client may show a certificate;
/// it is told that ones of `authority` (DER) are wanted.
///
/// # Errors
///
/// When certificate and key do not belong together, or `authority` is no
/// certificate.
pub fn tls(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: &[u8],
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let malformed = |_| TlsError(rustls::Error::InvalidCertificate(CertificateError::BadEncoding));
    let subject = pki_core::Certificate::from_der(authority).map_err(malformed)?.subject_der().to_vec();
    let verifier = PossessionVerifier { algorithms, hints: [DistinguishedName::from(subject)] };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)
        .map_err(TlsError)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Listener {
    /// Serves `router` until `stop` is done, then finishes what is in flight.
    pub async fn serve(self, listener: TcpListener, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(limits.connections));
        let connections = GracefulShutdown::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
                let (stream, address) = listener.accept().await?;
                Ok::<_, io::Error>((place, stream, address))
            };
            let (place, stream, address) = tokio::select! {
                () = &mut stop => break,
                accepted = accepted => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: others must close first.
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept");
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let (this, router, watcher) = (self.clone(), router.clone(), connections.watcher());
            tokio::spawn(async move {
                this.connection(stream, address, router, limits, watcher).await;
                drop(place);
            });
        }
        drop(listener);
        if timeout(limits.grace, connections.shutdown()).await.is_err() {
            tracing::warn!("panel requests were still in flight at the end of the grace period");
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        address: SocketAddr,
        router: Router,
        limits: Limits,
        watcher: Watcher,
    ) {
        /// How long a peer may leave an answer unread.
        const UNREAD: Duration = Duration::from_secs(30);

        // Small answers wait for nothing. That a socket cannot be told so is no reason to close it.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
        match self {
            Self::Proxied(proxy) => {
                let peer = Peer { address, presented: None, is_proxy: address.ip().to_canonical() == proxy };
                serve(stream, peer, router, limits, watcher).await;
            }
            Self::Tls { config, authority, clock } => {
                let stream = match timeout(limits.headers, TlsAcceptor::from(config).accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::debug!(%address, %error, "no TLS");
                        return;
                    }
                    Err(_) => return,
                };
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let authority = CertificateDer::from(&authority[..]);
                let presented = shown.and_then(|shown| Presented::verify(shown, &authority, clock()));
                let peer = Peer { address, presented: presented.map(Arc::new), is_proxy: false };
                serve(stream, peer, router, limits, watcher).await;
            }
        }
    }
}

async fn serve<IO>(io: IO, peer: Peer, router: Router, limits: Limits, watcher: Watcher)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Header fields of a request, and octets of them.
    const MAX_HEADERS: usize = 64;
    const MAX_BUFFER: usize = 16 * 1024;

    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(io), service);
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "panel connection ended");
    }
}

/// Lets every certificate in whose key the client has. Whose it is and whether
/// it counts is asked at each request, so that the answer can say what is wrong.
struct PossessionVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    hints: [DistinguishedName; 1],
}

impl fmt::Debug for PossessionVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PossessionVerifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for PossessionVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // TLS 1.3 has no place for PKCS #1 and binds the curve to the digest (RFC 8446 section 4.2.3).
        if !is_of_tls13(signed.scheme) {
            return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl PossessionVerifier {
    /// With the key alone, for rustls-webpki reads no certificate of version 1.
    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let malformed = |_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding);
        let parsed = pki_core::Certificate::from_der(certificate).map_err(malformed)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.spki());
        let key = webpki::RawPublicKeyEntity::try_from(&key)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let candidates = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let candidates = candidates.map_or(&[][..], |(_, algorithms)| *algorithms);
        let is_valid =
            candidates.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
        if is_valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }
}

fn is_of_tls13(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::ECDSA_NISTP256_SHA256
            | SignatureScheme::ECDSA_NISTP384_SHA384
            | SignatureScheme::ECDSA_NISTP521_SHA512
            | SignatureScheme::ED25519
            | SignatureScheme::RSA_PSS_SHA256
            | SignatureScheme::RSA_PSS_SHA384
            | SignatureScheme::RSA_PSS_SHA512
    )
}
