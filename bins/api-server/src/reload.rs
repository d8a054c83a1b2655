//! SIGHUP: what can change while the server runs is read again.
//!
//! That is the log's filter and the certificates of the edge and of the panel. What
//! cannot be used is logged, and what was used before goes on.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use edge::Edge;
use pki_core::Time;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::{Clock as _, SystemClock};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging::SetFilter;
use crate::pem::Pair;
use crate::settings::{Options, Settings};

/// Waits for SIGHUP, from its making on: the signal ends nothing from then.
pub(crate) struct Reload {
    hangups: Signal,
    options: Options,
    set_filter: SetFilter,
}

impl Reload {
    /// `options` are what flags and environment said; the file is read again.
    pub(crate) fn new(options: Options, set_filter: SetFilter) -> anyhow::Result<Self> {
        let hangups = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
        Ok(Self { hangups, options, set_filter })
    }

    /// Reads all again at every signal, until it is dropped.
    pub(crate) async fn run(mut self, edge: Edge, panel: Option<PanelCertificate>) {
        while self.hangups.recv().await.is_some() {
            let settings = match Settings::resolve(&self.options) {
                Ok(settings) => settings,
                Err(error) => {
                    tell("the configuration", Err(error));
                    continue;
                }
            };
            tell("the log's filter", (self.set_filter)(&settings));
            if let Some(pair) = edge_pair(&settings) {
                tell("the edge's certificate", pair.and_then(checked).and_then(|pair| use_at_edge(&edge, pair)));
            }
            if let Some(panel) = &panel {
                let pair = crate::panel::pair(&settings);
                tell("the panel's certificate", pair.and_then(checked).and_then(|pair| panel.replace(pair)));
            }
        }
    }
}

fn tell(what: &str, read: anyhow::Result<()>) {
    match read {
        Ok(()) => tracing::info!("SIGHUP: read {what} again"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "SIGHUP: {what} stays as it was"),
    }
}

/// The operator's own certificate for the edge, if there is one.
pub(crate) fn edge_pair(settings: &Settings) -> Option<anyhow::Result<Pair>> {
    let (chain, key) = (settings.edge.tls_cert.as_ref()?, settings.edge.tls_key.as_ref()?);
    Some(Pair::read(("edge_tls_cert", chain), ("edge_tls_key", key)))
}

/// Has the edge use it from the next handshake on.
pub(crate) fn use_at_edge(edge: &Edge, Pair { chain, key }: Pair) -> anyhow::Result<()> {
    edge.use_certificate(chain, key).context("edge_tls_cert and edge_tls_key do not belong together")
}

/// One that takes another's place is to be valid now.
fn checked(pair: Pair) -> anyhow::Result<Pair> {
    pair.check_validity(now()).map(|()| pair)
}

/// At a start there is nothing that could be used instead, and more is served
/// than what the certificate is for: it is used, and the log says what is wrong.
pub(crate) fn warned(pair: Pair, path: &Path) -> Pair {
    if let Err(error) = pair.check_validity(now()) {
        tracing::error!(file = %path.display(), "{error}");
    }
    pair
}

/// What the machine's clock says.
pub(crate) fn now() -> Time {
    Time::from_unix(SystemClock.now().micros().div_euclid(1_000_000))
}

/// The certificate of the panel's port, which may be replaced.
#[derive(Clone)]
pub(crate) struct PanelCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl PanelCertificate {
    /// Takes the place of the one that the configuration has.
    pub(crate) fn new(config: &mut ServerConfig, pair: Pair) -> anyhow::Result<Self> {
        let this = Self(Arc::new(RwLock::new(certified(pair)?)));
        config.cert_resolver = Arc::new(this.clone());
        Ok(this)
    }

    fn replace(&self, pair: Pair) -> anyhow::Result<()> {
        let certified = certified(pair)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

fn certified(Pair { chain, key }: Pair) -> anyhow::Result<Arc<CertifiedKey>> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider);
    certified.map(Arc::new).context("panel_tls_cert and panel_tls_key do not belong together")
}

impl fmt::Debug for PanelCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PanelCertificate(..)")
    }
}

impl ResolvesServerCert for PanelCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}
