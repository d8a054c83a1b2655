//! The ports, the background work, and the end of both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::{App, Metrics, TrafficStats};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header;
use axum::routing::get;
use ca_dir::{CaDirError, Validity};
use edge::{Edge, Rest};
use listenfd::ListenFd;
use name_server::NameServer;
use panel::Panel;
use store::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::panel::Served;
use crate::public::Authority;
use crate::reload::now;
use crate::settings::{Settings, panel_limits};
use crate::start::Started;

/// Serves until SIGTERM or SIGINT, then finishes what is in flight.
pub(crate) async fn serve(started: Started, settings: &Settings, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    // Each connection takes a descriptor; what the system allows is what we take.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot raise the limit of open files");
    }
    metrics.set_issuer_expiry(started.issuer_not_after.unix());
    let limits = settings.api.limits(&settings.connections);
    let edge = match inherited()? {
        Some(listener) => listener,
        None => bind("edge_listen", settings.edge.listen).await?,
    };
    let api = bind("api_listen", settings.api.listen).await?;
    let side = bind("metrics_listen", settings.api.metrics).await?;
    let panel = match started.panel {
        Some(served) => {
            let socket = bind("panel_listen", served.address).await?;
            tracing::info!(address = %socket.local_addr()?, "serving the panel");
            Some((served, socket))
        }
        None => None,
    };
    let plain = match settings.acme.http_address() {
        Some(address) => Some(bind("http_listen", address).await?),
        None => None,
    };
    let dns = match (&started.proofs.dns, settings.acme.dns_address()) {
        (Some(server), Some(address)) => {
            let listener = name_server::Listener::bind(address).await;
            Some((server.clone(), listener.with_context(|| format!("cannot listen on {address} (dns_listen)"))?))
        }
        _ => None,
    };
    if let Some(plain) = &plain {
        tracing::info!(address = %plain.local_addr()?, "serving plain HTTP");
    }
    if let Some((_, dns)) = &dns {
        tracing::info!(address = %dns.local_addr()?, "serving DNS");
    }
    tracing::info!(
        api = %api.local_addr()?, edge = %edge.local_addr()?, metrics = %side.local_addr()?, zone = %settings.general.zone.0,
        "serving"
    );

    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a reason to stop too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let sweeper = tokio::spawn(sweep(Arc::clone(&started.app), settings.tunnels.sweep_interval.0.0, stopped.clone()));
    let routes = api::router(Arc::clone(&started.app), Arc::clone(&metrics), &limits);
    let served = panel.as_ref().map(|(served, _)| Arc::clone(&served.panel));
    let watched = Watched { app: Arc::clone(&started.app), panel: served, validity: started.validity };
    let (public, dns_server) = (started.public.clone(), started.proofs.dns.clone());
    let side_routes = side_routes(watched, started.edge.clone(), public, dns_server, Arc::clone(&metrics));
    let rest: Rest = {
        let (routes, stopped) = (routes.clone(), stopped.clone());
        Arc::new(move |arrival| {
            let (routes, stop) = (routes.clone(), wait(stopped.clone()));
            Box::pin(async move { api::serve_connection(arrival, routes, &limits, stop).await })
        })
    };
    let plain = async {
        let Some(listener) = plain else { return };
        let https_port = settings.edge.listen.port();
        let routes = crate::public::plain_routes(Arc::clone(&started.app), started.proofs.http.clone(), https_port);
        // Strangers come here, one by one.
        let limits = api::Limits { per_address: limits.connections.div_ceil(4), ..limits };
        api::serve(listener, routes, &limits, Arc::clone(&metrics), wait(stopped.clone())).await;
    };
    let dns = async {
        if let Some((server, listener)) = dns {
            server.serve(listener, wait(stopped.clone())).await;
        }
    };
    let keeper = started.public.clone().map(|public| tokio::spawn(public.keep()));
    let edge = started.edge.serve(edge, Some(rest), wait(stopped.clone()));
    let api = api::serve(api, routes, &limits, Arc::clone(&metrics), wait(stopped.clone()));
    let side = api::serve(side, side_routes, &limits, Arc::clone(&metrics), wait(stopped.clone()));
    let panel = async {
        let Some((Served { panel, listener, .. }, socket)) = panel else { return };
        let routes = panel::router(Arc::clone(&panel), settings.panel.bounds(&settings.connections));
        let crl = tokio::spawn(keep_crl(Arc::clone(&panel), stopped.clone()));
        listener.serve(socket, routes, panel_limits(&settings.connections), wait(stopped.clone())).await;
        panel.finish().await;
        if let Err(error) = crl.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the renewal of crl.pem failed");
        }
    };
    let signals = async {
        let name = stop_signal().await?;
        tracing::info!(signal = name, "stopping: finishing what is in flight");
        stop.send_replace(true);
        if let Some(public) = &started.public {
            public.issuance.stop();
        }
        tokio::spawn(quit_at_a_second_signal());
        anyhow::Ok(())
    };
    let ((), (), signals, (), (), (), ()) = tokio::join!(api, side, signals, edge, panel, plain, dns);
    // What it was at goes on at the next start.
    if let Some(keeper) = keeper {
        keeper.abort();
    }
    signals?;
    sweeper.await.context("the sweep failed")?;
    tracing::info!("stopped");
    Ok(())
}

/// Deletes for good what nobody restored in time.
async fn sweep(app: Arc<App>, interval: Duration, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(interval) => {}
        }
        match app.sweep().await {
            Ok(0) => {}
            Ok(tunnels) => tracing::info!(tunnels, "deleted tunnels whose restore window was over"),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot sweep; trying again later");
            }
        }
    }
}

/// A list that is old says that it may be believed no longer.
async fn keep_crl(panel: Arc<Panel>, mut stopped: watch::Receiver<bool>) {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(DAY) => {}
        }
        panel.renew_crl().await;
    }
}

/// What has to be in order before everybody is answered.
#[derive(Clone)]
struct Watched {
    app: Arc<App>,
    panel: Option<Arc<Panel>>,
    validity: Validity,
}

impl Watched {
    /// What is not, in words for whoever may not know more of it; the log has the rest.
    async fn failures(&self) -> Vec<&'static str> {
        /// How long a disk may hang before whoever asks hears of it.
        const PATIENCE: Duration = Duration::from_secs(5);
        let told = |error: &(dyn std::error::Error + 'static), in_short| {
            tracing::error!(error, "not ready");
            in_short
        };
        let mut failures = Vec::new();
        match self.validity.check(now()) {
            Ok(()) => {}
            Err(error @ CaDirError::Expired { .. }) => {
                failures.push(told(&error, "the certificate authority has expired"));
            }
            Err(error) => {
                failures.push(told(&error, "the clock is wrong, or the certificate authority is of another time"));
            }
        }
        match timeout(PATIENCE, self.app.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(told(&error, error.in_short())),
            Err(_) => failures.push("the database does not answer"),
        }
        let Some(panel) = &self.panel else { return failures };
        match timeout(PATIENCE, panel.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.push(told(&error, error.in_short())),
            Err(_) => failures.push("the panel's directory does not answer"),
        }
        failures
    }
}

fn side_routes(
    watched: Watched,
    edge: Edge,
    public: Option<Authority>,
    names: Option<NameServer>,
    metrics: Arc<Metrics>,
) -> Router {
    const TEXT: [(header::HeaderName, &str); 1] =
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let app = Arc::clone(&watched.app);
    let ready = move || async move {
        match watched.failures().await.as_slice() {
            [] => (StatusCode::OK, "ready\n".to_owned()),
            failures => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", failures.join("; "))),
        }
    };
    let numbers = move || async move {
        let stats = edge.stats();
        metrics.set_traffic(TrafficStats {
            connections: stats.connections,
            refused: stats.refused,
            unaccepted: stats.unaccepted,
            agents: stats.agents,
            exchanges: stats.exchanges,
            answered: stats.answered,
            failed: stats.failed,
        });
        if let Some(public) = &public {
            let orders = public.issuance.stats();
            metrics.set_certificate_expiry("public_edge", orders.edge_ends_at.map(seconds));
            metrics.set_orders(orders.pending, orders.issued, orders.failed);
        }
        if let Some(names) = &names {
            let stats = names.stats();
            metrics.set_names([
                ("answered", stats.answered),
                ("ignored", stats.ignored),
                ("limited", stats.limited),
                ("malformed", stats.malformed),
                ("not_implemented", stats.not_implemented),
                ("refused", stats.refused),
                ("slipped", stats.slipped),
                ("truncated", stats.truncated),
                ("unsent", stats.unsent),
            ]);
        }
        match app.next_certificate_end().await {
            Ok(end) => metrics.set_certificate_expiry("tunnel", end.map(seconds)),
            // The rest can be told all the same.
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot tell which certificate ends first");
            }
        }
        (TEXT, metrics.encode())
    };
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
}

fn seconds(time: Timestamp) -> i64 {
    time.micros().div_euclid(1_000_000)
}

/// The listening socket that a supervisor has passed on (systemd's
/// `LISTEN_FDS`): it stays open while servers come and go, so no visitor is
/// ever refused. It is the edge's.
fn inherited() -> anyhow::Result<Option<TcpListener>> {
    let listener = ListenFd::from_env().take_tcp_listener(0).context("cannot use the socket of LISTEN_FDS")?;
    let Some(listener) = listener else { return Ok(None) };
    listener.set_nonblocking(true).context("cannot use the socket of LISTEN_FDS")?;
    Ok(Some(TcpListener::from_std(listener).context("cannot use the socket of LISTEN_FDS")?))
}

async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({setting})"))
}

/// Whoever asks twice does not want to wait. Nothing that was answered is lost by it.
async fn quit_at_a_second_signal() {
    if let Ok(name) = stop_signal().await {
        tracing::warn!(signal = name, "told to stop again: what is in flight is cut off");
        std::process::exit(1);
    }
}

async fn stop_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
