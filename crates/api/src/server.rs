//! The ports of the API: how much they take on, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use connections::{Arrival, HttpLimits, Io, Kind, Peer, Places, Socket, accept, serve_http1};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// How much a listener takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets of a request's body that are read.
    pub body: usize,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// Of these, how many one address may have: all, where it is loopback's, or that of a proxy.
    pub per_address: usize,
    /// From the connection to its first octet, from there to the end of the
    /// request's headers, and from an answer to the end of the next one's.
    pub headers: Duration,
    /// From a request's headers to the end of its body.
    pub request: Duration,
    /// How long a client may take nothing of an answer.
    pub stall: Duration,
    /// From the signal to stop to the end of what is in flight.
    pub grace: Duration,
}

impl Default for Limits {
    /// For a server that many clients reach through a proxy: 64 KiB bodies,
    /// 16384 connections, 15 s for headers, 30 s for a request, to take an answer, and
    /// to stop.
    fn default() -> Self {
        Self {
            body: 64 * 1024,
            connections: 16 * 1024,
            per_address: 16 * 1024,
            headers: Duration::from_secs(15),
            request: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            grace: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn http(&self) -> HttpLimits {
        HttpLimits { headers: self.headers, stall: self.stall }
    }
}

/// Serves HTTP/1.1 until `stop` is done, then finishes what is in flight.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let limits = *limits;
    let per_port =
        connections::Limits { per_address: limits.per_address, ..connections::Limits::new(limits.connections) };
    let places = Places::new(per_port);
    let (stop_all, stopping) = watch::channel(false);
    let serve = |socket: Socket| {
        let (metrics, router) = (Arc::clone(&metrics), router.clone());
        let stopping = stopping.clone();
        async move {
            metrics.connection_opened();
            if socket.speaks_within(limits.headers, stopped(stopping.clone())).await {
                let peer = Peer { ip: socket.ip(), place: socket.place };
                Box::pin(serve_peer(Box::new(socket.stream), peer, router, limits, stopped(stopping))).await;
            }
            metrics.connection_closed();
        }
    };
    accept(&listener, &places, Kind::Client, false, stop, serve).await;
    drop(listener);
    stop_all.send_replace(true);
    if !places.emptied(limits.grace).await {
        tracing::warn!("requests were still in flight at the end of the grace period");
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a reason to stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Serves one connection that somebody else has accepted, until it ends or
/// `stop` is done.
pub async fn serve_connection(arrival: Arrival, router: Router, limits: &Limits, stop: impl Future<Output = ()>) {
    let Arrival { io, ip, place } = arrival;
    serve_peer(io, Peer { ip, place }, router, *limits, stop).await;
}

/// Serves one connection, whose requests say whose they are.
async fn serve_peer(io: Box<dyn Io>, peer: Peer, router: Router, limits: Limits, stop: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.call(request)
    });
    serve_http1(io, service, limits.http(), stop).await;
}
