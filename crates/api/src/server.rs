//! Connections: accepted within limits, closed when they idle, finished when
//! the server stops.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;

/// How much a listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets of a request's body that are read.
    pub body: usize,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// From the connection to its first octet, from there to the end of the
    /// request's headers, and from an answer to the end of the next one's.
    pub headers: Duration,
    /// From a request's headers to the end of its body.
    pub request: Duration,
    /// From the signal to stop to the end of what is in flight.
    pub grace: Duration,
}

impl Default for Limits {
    /// For a server that many clients reach through a proxy: 64 KiB bodies,
    /// 16384 connections, 15 s for headers, 30 s for a request, 30 s to stop.
    fn default() -> Self {
        Self {
            body: 64 * 1024,
            connections: 16 * 1024,
            headers: Duration::from_secs(15),
            request: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

/// Header fields of a request; the clients send about ten.
const MAX_HEADERS: usize = 64;
/// Octets of a request's headers, and of a body that waits to be read.
const MAX_BUFFER: usize = 16 * 1024;

/// Serves HTTP/1.1 until `stop` is done, then finishes what is in flight.
///
/// # Errors
///
/// When the listener cannot accept at all; errors of single connections end
/// those.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let limits = *limits;
    let places = Arc::new(Semaphore::new(limits.connections));
    let connections = GracefulShutdown::new();
    let (stopping, _) = watch::channel(());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((place, stream))
        };
        let (place, stream) = tokio::select! {
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
        let watcher = connections.watcher();
        let service = TowerToHyperService::new(router.clone());
        let metrics = Arc::clone(&metrics);
        let mut stopping = stopping.subscribe();
        tokio::spawn(async move {
            metrics.connection_opened();
            let first_octet = tokio::select! {
                _ = stopping.changed() => false,
                readable = timeout(limits.headers, stream.readable()) => matches!(readable, Ok(Ok(()))),
            };
            // A peer that has sent nothing costs a socket and a small task: the
            // connection's buffers and its large future come afterwards.
            if first_octet {
                Box::pin(async move {
                    let connection = protocol(&limits).serve_connection(TokioIo::new(stream), service);
                    if let Err(error) = watcher.watch(connection).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
                    }
                })
                .await;
            }
            metrics.connection_closed();
            drop(place);
        });
    }
    drop(stopping);
    drop(listener);
    if timeout(limits.grace, connections.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight at the end of the grace period");
    }
    Ok(())
}

/// Serves one connection that somebody else has accepted, until it ends or
/// `stop` is done.
pub async fn serve_connection<IO>(io: IO, router: Router, limits: &Limits, stop: impl Future<Output = ()>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(protocol(limits).serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}

fn protocol(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER);
    builder
}
