//! `connect`: the agent, with a line for each thing that happens.

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::{Agent, Credential, Event, Rest, Trust, Upstream};
use anyhow::Context as _;
use clap::Args;
use http::Uri;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Args)]
pub(crate) struct Connect {
    /// The tunnel's name, or its id
    name: String,

    /// The application: http://HOST:PORT or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    forward_to: Uri,

    /// Where the edge is, if it is not at the zone's port 443 [default: from --server]
    #[arg(long, value_name = "HOST:PORT", env = "ADIT_EDGE")]
    edge: Option<String>,

    /// Where key and certificate of a passthrough tunnel are kept [default: ~/.local/state/adit/NAME]
    #[arg(long, value_name = "DIR", env = "ADIT_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// Requests that may arrive at once, 1 to 32; any number may be in progress
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=32))]
    pool_size: u8,

    /// Threads to serve with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,

    /// Tell of the connection, not of every request
    #[arg(long, short)]
    quiet: bool,

    /// The tunnel's connect secret: what the edge is shown instead of the API key
    #[arg(
        long,
        value_name = "SECRET",
        env = "ADIT_CONNECT_SECRET",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    connect_secret: Option<String>,

    /// PEM file of the root that an https application's certificate ends in [default: the system's]
    #[arg(long, value_name = "FILE")]
    forward_ca: Option<PathBuf>,
}

impl Connect {
    pub(crate) fn threads(&self) -> usize {
        self.threads.into()
    }

    pub(crate) async fn run(self, rest: Rest, json: bool) -> anyhow::Result<()> {
        let trust = match (&self.forward_ca, self.forward_to.scheme_str()) {
            (Some(path), _) => Some(Trust::from_file(path)?),
            (None, Some("https")) => Some(Trust::of_system()?),
            (None, _) => None,
        };
        let upstream = Upstream::url(&self.forward_to, trust.as_ref())?;
        let mut agent = Agent::new(rest, &self.name, upstream).pool_size(self.pool_size);
        if let Some(edge) = &self.edge {
            let (host, port) = edge.rsplit_once(':').context("--edge is HOST:PORT")?;
            agent = agent.edge(host, port.parse().context("--edge is HOST:PORT")?);
        }
        if let Some(directory) = self.state_dir {
            agent = agent.state_directory(directory);
        }
        if let Some(secret) = self.connect_secret {
            agent = agent.credential(Credential::TunnelSecret(secret));
        }
        let teller = Teller::new(json, self.quiet, &self.forward_to);
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(agent.run_until(move |event| teller.tell(&event), stop).await?)
    }
}

/// Says what happens: JSON lines on stdout, or words on stderr; on a terminal
/// the last line is the present state.
struct Teller {
    json: bool,
    quiet: bool,
    is_terminal: bool,
    forward_to: String,
    served: AtomicU64,
}

impl Teller {
    fn new(json: bool, quiet: bool, forward_to: &Uri) -> Self {
        let is_terminal = !json && stderr().is_terminal();
        Self { json, quiet, is_terminal, forward_to: forward_to.to_string(), served: AtomicU64::new(0) }
    }

    fn tell(&self, event: &Event) {
        if let Event::Served { .. } = event {
            self.served.fetch_add(1, Ordering::Relaxed);
            if self.quiet {
                return;
            }
        }
        let value = self.value(event);
        // Whoever listens may have gone; the tunnel goes on.
        if self.json {
            let _ = writeln!(stdout().lock(), "{value}");
            return;
        }
        let mut words = value["event"].as_str().unwrap_or_default().to_owned();
        for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| *name != "event") {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push_str(&format!(" {name}={value}"));
        }
        if self.is_terminal {
            let served = self.served.load(Ordering::Relaxed);
            let _ = write!(stderr().lock(), "\r\x1b[K{words}\n[{served} served, Ctrl-C stops]");
        } else {
            let _ = writeln!(stderr().lock(), "{words}");
        }
    }

    fn value(&self, event: &Event) -> Value {
        match event {
            Event::CertificateRenewed { not_after } => {
                let not_after = jiff::Timestamp::try_from(*not_after).map(|time| time.to_string()).unwrap_or_default();
                json!({ "event": "certificate-renewed", "not_after": not_after })
            }
            Event::Connected { url, tls_mode } => json!({
                "event": "connected", "url": url, "tls_mode": tls_mode,
                "forward_to": self.forward_to,
            }),
            Event::Connecting => json!({ "event": "connecting" }),
            Event::Draining => json!({ "event": "draining" }),
            Event::Reconnecting { delay, error } => {
                json!({ "event": "reconnecting", "delay_ms": delay.as_millis() as u64, "error": error })
            }
            Event::RenewalFailed { error } => json!({ "event": "renewal-failed", "error": error }),
            Event::Served { method, path, status, micros } => json!({
                "event": "served", "method": method.as_str(), "path": path, "status": status.as_u16(), "micros": micros,
            }),
            Event::UpstreamFailed { error } => json!({ "event": "upstream-failed", "error": error }),
            other => json!({ "event": format!("{other:?}") }),
        }
    }
}
