//! What can change while the server runs is read again: all of it at SIGHUP, and
//! certificates when their files have changed, too.
//!
//! That is the log's filter and the certificates of the edge and of the panel. What
//! cannot be used is logged, and what was used before goes on.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use api::Metrics;
use edge::Edge;
use pki_core::Time;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use store::{Clock as _, SystemClock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::logging::SetFilter;
use crate::pem::Pair;
use crate::settings::{Options, Settings};

/// Between two looks at the files of certificates.
const LOOK: Duration = Duration::from_secs(10);
/// Between two warnings of a certificate that is about to end.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What is left of its life then.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Why something is read again.
const HANGUP: &str = "SIGHUP";
const CHANGED: &str = "its files have changed";

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

    /// Reads all again at every signal, and certificates whose files have changed, until it
    /// is dropped. `settings` are those of the start.
    pub(crate) async fn run(
        mut self,
        mut settings: Settings,
        edge: Edge,
        panel: Option<PanelCertificate>,
        metrics: Arc<Metrics>,
    ) {
        let used = Used { edge, panel, metrics };
        used.count(&settings);
        let (mut at_edge, mut at_panel) = (Files::of_edge(&settings), Files::of_panel(&settings));
        let mut warned = None;
        loop {
            if warned.is_none_or(|warned: Instant| warned.elapsed() >= DAY) {
                warned = Some(Instant::now());
                warn_of_ends(&settings);
            }
            tokio::select! {
                hangup = self.hangups.recv() => {
                    if hangup.is_none() {
                        return;
                    }
                    match Settings::resolve(&self.options) {
                        Ok(read) => settings = read,
                        Err(error) => {
                            tell(HANGUP, "the configuration", Err(error));
                            continue;
                        }
                    }
                    tell(HANGUP, "the log's filter", (self.set_filter)(&settings));
                    // Looked at before they are read: what is written meanwhile is read again.
                    (at_edge, at_panel) = (Files::of_edge(&settings), Files::of_panel(&settings));
                    used.edge(&settings, HANGUP);
                    used.panel(&settings, HANGUP);
                }
                () = sleep(LOOK) => {
                    if at_edge.have_changed() {
                        used.edge(&settings, CHANGED);
                    }
                    if at_panel.have_changed() {
                        used.panel(&settings, CHANGED);
                    }
                }
            }
        }
    }
}

/// Who uses certificates that an operator names.
struct Used {
    edge: Edge,
    panel: Option<PanelCertificate>,
    metrics: Arc<Metrics>,
}

/// As the metrics call them.
const EDGE: &str = "edge";
const PANEL: &str = "panel";

impl Used {
    /// Counts what is used from the start on.
    fn count(&self, settings: &Settings) {
        let ends = |kind, pair: Option<anyhow::Result<Pair>>| {
            let end = pair.and_then(Result::ok).and_then(|pair| pair.ends_at());
            self.metrics.set_certificate_expiry(kind, end.map(Time::unix));
        };
        ends(EDGE, edge_pair(settings));
        ends(PANEL, self.panel.as_ref().map(|_| crate::panel::pair(settings)));
    }

    fn edge(&self, settings: &Settings, why: &str) {
        if let Some(pair) = edge_pair(settings) {
            self.change(EDGE, pair, |pair| use_at_edge(&self.edge, pair), why, "the edge's certificate");
        }
    }

    fn panel(&self, settings: &Settings, why: &str) {
        if let Some(panel) = &self.panel {
            let pair = crate::panel::pair(settings);
            self.change(PANEL, pair, |pair| panel.replace(pair), why, "the panel's certificate");
        }
    }

    /// Uses a pair that was read, unless something is wrong with it.
    fn change(
        &self,
        kind: &'static str,
        pair: anyhow::Result<Pair>,
        use_it: impl FnOnce(Pair) -> anyhow::Result<()>,
        why: &str,
        what: &str,
    ) {
        let read = pair.and_then(checked).and_then(|pair| {
            let end = pair.ends_at();
            use_it(pair).map(|()| self.metrics.set_certificate_expiry(kind, end.map(Time::unix)))
        });
        if read.is_err() {
            self.metrics.certificate_refused(kind);
        }
        tell(why, what, read);
    }
}

fn tell(why: &str, what: &str, read: anyhow::Result<()>) {
    match read {
        Ok(()) => tracing::info!("{why}: read {what} again"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "{why}: {what} stays as it was"),
    }
}

/// Tells of certificates that end soon. Those that have ended were told of when they were read.
fn warn_of_ends(settings: &Settings) {
    let panel = settings.panel.tls_cert.as_ref().map(|_| crate::panel::pair(settings));
    for (what, pair) in [("the edge's certificate", edge_pair(settings)), ("the panel's certificate", panel)] {
        let Some(Ok(pair)) = pair else { continue };
        if let Some(until) = pair.ends_within(SOON, now()) {
            tracing::warn!(%until, "{what} ends soon: renew it");
        }
    }
}

/// The files of one certificate, to see when they have changed.
struct Files {
    paths: Vec<PathBuf>,
    used: Vec<Option<Stamp>>,
    seen: Vec<Option<Stamp>>,
}

/// What changes when a file is written, or another one takes its place.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Stamp([i64; 4]);

impl Files {
    fn of_edge(settings: &Settings) -> Self {
        Self::new([&settings.edge.tls_cert, &settings.edge.tls_key])
    }

    fn of_panel(settings: &Settings) -> Self {
        Self::new([&settings.panel.tls_cert, &settings.panel.tls_key])
    }

    fn new(paths: [&Option<PathBuf>; 2]) -> Self {
        let paths: Vec<PathBuf> = paths.into_iter().flatten().cloned().collect();
        let used = stamps(&paths);
        Self { seen: used.clone(), paths, used }
    }

    /// Are they others than those that were used, and at rest since the look before? Whoever
    /// writes a certificate and a key is between the two for a moment.
    fn have_changed(&mut self) -> bool {
        let now = stamps(&self.paths);
        let is_at_rest = now == self.seen;
        let have_changed = is_at_rest && now != self.used;
        if have_changed {
            self.used.clone_from(&now);
        }
        self.seen = now;
        have_changed
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: Metadata| {
        let device_and_file = file.dev().wrapping_mul(31).wrapping_add(file.ino());
        Stamp([device_and_file.cast_signed(), file.size().cast_signed(), file.mtime(), file.mtime_nsec()])
    };
    paths.iter().map(|path| std::fs::metadata(path).ok().map(stamp)).collect()
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

pub(crate) fn certified(Pair { chain, key }: Pair) -> anyhow::Result<Arc<CertifiedKey>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_changed_when_they_are_others_and_at_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("written");
        write("crt", "one");
        write("key", "one");
        let mut files = Files::new([&Some(path("crt")), &Some(path("key"))]);
        assert!(!files.have_changed(), "as they were");
        write("crt", "second");
        assert!(!files.have_changed(), "the key may follow");
        write("key", "second");
        assert!(!files.have_changed(), "it has followed just now");
        assert!(files.have_changed(), "at rest");
        assert!(!files.have_changed(), "that has been told");
        // Another file in its place, as long as the one before.
        write("other", "second");
        std::fs::rename(path("other"), path("crt")).expect("renamed");
        assert!([files.have_changed(), files.have_changed(), files.have_changed()] == [false, true, false]);
        std::fs::remove_file(path("key")).expect("removed");
        assert!([files.have_changed(), files.have_changed(), files.have_changed()] == [false, true, false]);
        assert!(!Files::new([&None, &None]).have_changed(), "nobody names any");
    }
}
