//! TLS for connections that were just accepted.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::linger;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFailed {
    /// The peer was told, if there was something to tell.
    #[error("the TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    /// The peer did not finish in time.
    #[error("the TLS handshake took too long")]
    Slow,
}

/// Does the handshake within `limit`. A peer that is refused gets the alert, and the
/// time to read it.
///
/// # Errors
///
/// [`TlsFailed`], and the connection has ended.
pub async fn accept_tls<IO>(io: IO, config: Arc<ServerConfig>, limit: Duration) -> Result<TlsStream<IO>, TlsFailed>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(limit, TlsAcceptor::from(config).accept(io).into_fallible()).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, io))) => {
            linger(io).await;
            Err(TlsFailed::Handshake(error))
        }
        Err(_) => Err(TlsFailed::Slow),
    }
}
