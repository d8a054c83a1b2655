//! Connections: TLS with a certificate that the client may show, or plain from
//! a proxy.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use connections::{HttpLimits, Kind, Places, Socket, accept, accept_tls, serve_http1};
use hyper::service::service_fn;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use store::Clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::http::Peer;
use crate::identity::Presented;
use crate::panel::now;

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
        clock: Arc<dyn Clock>,
    },
}

/// How much a listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue. An address has a quarter.
    pub connections: usize,
    /// To the first octet, for the handshake, and for the headers of a request.
    pub headers: Duration,
    /// How long a peer may take nothing of an answer.
    pub stall: Duration,
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
        let mut per_port = connections::Limits::new(limits.connections);
        if let Self::Proxied(proxy) = &self {
            per_port.exempt.push(*proxy);
        }
        let places = Places::new(per_port);
        let (stop_all, stopping) = watch::channel(false);
        let serve = |socket: Socket| self.clone().connection(socket, router.clone(), limits, stopping.clone());
        accept(&listener, &places, Kind::Client, false, stop, serve).await;
        drop(listener);
        stop_all.send_replace(true);
        if !places.emptied(limits.grace).await {
            tracing::warn!("panel requests were still in flight at the end of the grace period");
        }
    }

    async fn connection(self, socket: Socket, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
        let stopped = async move {
            // An error means that the sender is gone, which is a reason to stop too.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let mut stopped = std::pin::pin!(stopped);
        if !socket.speaks_within(limits.headers, stopped.as_mut()).await {
            return;
        }
        let Socket { stream, peer: address, place } = socket;
        match self {
            Self::Proxied(proxy) => {
                let peer = Peer { address, presented: None, is_proxy: address.ip().to_canonical() == proxy };
                Box::pin(serve(stream, peer, router, limits, stopped)).await;
            }
            Self::Tls { config, authority, clock } => {
                let stream = match Box::pin(accept_tls(stream, config, limits.headers)).await {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::debug!(%address, error = &error as &dyn std::error::Error, "no TLS");
                        return;
                    }
                };
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let authority = CertificateDer::from(&authority[..]);
                let presented = shown.and_then(|shown| Presented::verify(shown, &authority, now(&*clock)));
                let peer = Peer { address, presented: presented.map(Arc::new), is_proxy: false };
                Box::pin(serve(stream, peer, router, limits, stopped)).await;
            }
        }
        drop(place);
    }
}

async fn serve<IO>(io: IO, peer: Peer, router: Router, limits: Limits, stop: impl Future<Output = ()>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    serve_http1(Box::new(io), service, HttpLimits { headers: limits.headers, stall: limits.stall }, stop).await;
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
