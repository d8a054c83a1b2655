//! HTTP/1.1 as the APIs speak it: small requests, small answers.

use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::{Guarded, Impatient, Io};

/// How much time a connection gets.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// For a request's headers, and between an answer and the end of the next one's.
    pub headers: Duration,
    /// How long a peer may take nothing of an answer.
    pub stall: Duration,
}

/// Header fields of a request; the clients send about ten.
const MAX_HEADERS: usize = 64;
/// Octets of a request's headers, of a body that waits to be read, and of answers
/// that wait to be written.
const MAX_BUFFER: usize = 16 * 1024;

/// Serves one connection until it ends, idles, or `stop` is done and the request
/// in progress is answered. An answer of 101 gives it to whoever waits for it
/// ([`upgraded`](crate::upgraded)).
pub async fn serve_http1<S, B>(io: Box<dyn Io>, service: S, limits: HttpLimits, stop: impl Future<Output = ()>)
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(Guarded::new(Impatient::new(io, limits.stall))), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended");
    }
}
