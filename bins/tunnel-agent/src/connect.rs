//! `connect`: the agent, with a line for each thing that happens.

use std::io::{IsTerminal as _, stderr};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::{Agent, Credential, Event, HostHeader, Rest, Trust, Upstream};
use anyhow::Context as _;
use clap::Args;
use http::{HeaderName, HeaderValue, Uri};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::output::{Output, Stream};

#[derive(Args)]
pub(crate) struct Connect {
    /// The tunnel's name, or its id
    name: String,

    /// The application: http://HOST:PORT or https://HOST:PORT; h2c://HOST:PORT or h2://HOST:PORT for
    /// HTTP/2 without or with TLS (gRPC); tls://HOST:PORT for one that ends visitors' TLS itself
    #[arg(long, value_name = "URL")]
    forward_to: Uri,

    /// Where the edge is, if it is not at the zone's port 443 [default: from --server]
    #[arg(long, value_name = "HOST:PORT", env = "ADIT_EDGE", value_parser = host_and_port)]
    edge: Option<(String, u16)>,

    /// Where key and certificate of a passthrough tunnel are kept [default: ~/.local/state/adit/NAME]
    #[arg(long, value_name = "DIR", env = "ADIT_STATE_DIR")]
    state_dir: Option<PathBuf>,

    /// Connections to the edge: while one is cut, the others serve
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: u8,

    /// Serve beside other agents of the tunnel that say so, too, instead of taking it over from them
    #[arg(long)]
    share: bool,

    /// How long the application may take to begin an answer, in seconds [default: the server's setting]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    response_deadline: Option<u64>,

    /// What the application sees as Host: rewrite (its own name), preserve (the visitor's), or a name
    #[arg(long, value_name = "rewrite|preserve|NAME", default_value = "rewrite", value_parser = host_header)]
    host_header: HostHeader,

    /// Set a header of every request to the application; may be given again
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    request_header: Vec<(HeaderName, HeaderValue)>,

    /// Set a header of every answer to visitors; may be given again
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    response_header: Vec<(HeaderName, HeaderValue)>,

    /// Threads to serve with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,

    /// Tell of the connection, not of every request
    #[arg(long, short)]
    quiet: bool,

    /// Tell the queries of requests, too: they may hold secrets of visitors
    #[arg(long)]
    queries: bool,

    /// The tunnel's connect secret: what the edge is shown instead of the API key
    #[arg(
        long,
        value_name = "SECRET",
        env = "ADIT_CONNECT_SECRET",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    connect_secret: Option<String>,

    /// PEM file of the root that the certificate of an https or h2 application ends in [default: the system's]
    #[arg(long, value_name = "FILE")]
    forward_ca: Option<PathBuf>,
}

impl Connect {
    pub(crate) fn threads(&self) -> usize {
        self.threads.into()
    }

    pub(crate) async fn run(self, rest: Rest, json: bool, output: Output) -> anyhow::Result<()> {
        let trust = match (&self.forward_ca, self.forward_to.scheme_str()) {
            (Some(path), _) => Some(Trust::from_file(path)?),
            (None, Some("https" | "h2")) => Some(Trust::of_system()?),
            (None, _) => None,
        };
        let upstream = Upstream::url(&self.forward_to, trust.as_ref())?;
        let mut agent = Agent::new(rest, &self.name, upstream)
            .connections(self.connections)
            .share(self.share)
            .host_header(self.host_header);
        if let Some(seconds) = self.response_deadline {
            agent = agent.response_deadline(Duration::from_secs(seconds));
        }
        agent = self.request_header.into_iter().fold(agent, |agent, (name, value)| agent.request_header(name, value));
        agent = self.response_header.into_iter().fold(agent, |agent, (name, value)| agent.response_header(name, value));
        if let Some((host, port)) = self.edge {
            agent = agent.edge(host, port);
        }
        if let Some(directory) = self.state_dir {
            agent = agent.state_directory(directory);
        }
        if let Some(secret) = self.connect_secret {
            agent = agent.credential(Credential::TunnelSecret(secret));
        }
        let teller = Teller::new(json, self.quiet, self.queries, &self.forward_to, output);
        let mut signals = Signals::new()?;
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            signals.next().await;
            // The agent may have ended by itself.
            let _ = stop.send(());
            signals.next().await;
            // Whoever asks twice does not want to wait.
            std::process::exit(INTERRUPTED);
        });
        Ok(agent.run_until(move |event| teller.tell(&event), async { drop(stopped.await) }).await?)
    }

    /// Does the edge take something else than the API key?
    pub(crate) fn has_secret(&self) -> bool {
        self.connect_secret.is_some()
    }
}

/// What shells say of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// The signals that end the agent.
struct Signals {
    hangup: Option<Signal>,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let wait = |kind| signal(kind).context("cannot wait for signals");
        // Under nohup a closed terminal is no reason to end.
        let hangup = if ignores_hangup() { None } else { Some(wait(SignalKind::hangup())?) };
        Ok(Self { hangup, interrupt: wait(SignalKind::interrupt())?, terminate: wait(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = hangup => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is the first bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let usage = || "it is HOST:PORT, without a scheme: tunnels.example:443, or [::1]:4443".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(usage)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bare {
        Some(ip) => ip.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['/', ':', '[', ']', '@']),
    };
    let port = port.parse().map_err(|_| usage())?;
    if is_host { Ok((bare.unwrap_or(host).to_owned(), port)) } else { Err(usage()) }
}

fn host_header(text: &str) -> Result<HostHeader, String> {
    match text {
        "rewrite" => Ok(HostHeader::Rewrite),
        "preserve" => Ok(HostHeader::Preserve),
        name if name.parse::<http::uri::Authority>().is_ok() => {
            HeaderValue::from_str(name).map(HostHeader::Value).map_err(|error| error.to_string())
        }
        _ => Err("it is rewrite, preserve, or a host name with or without a port".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("it is a name, a colon and a value: \"X-Frame-Options: DENY\"")?;
    let name: HeaderName = name.trim().parse().map_err(|_| format!("{name:?} is no name of a header"))?;
    let of_connection =
        ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];
    if of_connection.contains(&name.as_str()) {
        return Err(format!("{name} is not to be set: it belongs to the connection"));
    }
    let value =
        HeaderValue::from_str(value.trim()).map_err(|_| "the value has octets that no header has".to_owned())?;
    Ok((name, value))
}

/// Says what happens: JSON lines on stdout, or words on stderr; on a terminal
/// the last line is the present state.
struct Teller {
    json: bool,
    quiet: bool,
    queries: bool,
    is_terminal: bool,
    forward_to: String,
    served: AtomicU64,
    output: Output,
}

impl Teller {
    fn new(json: bool, quiet: bool, queries: bool, forward_to: &Uri, output: Output) -> Self {
        // A dumb terminal cannot go back in its line.
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_terminal = !json && !is_dumb && stderr().is_terminal();
        let forward_to = forward_to.to_string();
        Self { json, quiet, queries, is_terminal, forward_to, served: AtomicU64::new(0), output }
    }

    fn tell(&self, event: &Event) {
        if let Event::Served { .. } | Event::Relayed { .. } = event {
            self.served.fetch_add(1, Ordering::Relaxed);
            if self.quiet {
                return;
            }
        }
        let value = self.value(event);
        if self.json {
            self.output.say(Stream::Stdout, format!("{value}\n").into_bytes());
            return;
        }
        let mut words = value["event"].as_str().unwrap_or_default().to_owned();
        for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| *name != "event") {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push_str(&format!(" {name}={value}"));
        }
        if self.is_terminal {
            let served = self.served.load(Ordering::Relaxed);
            words = format!("\r\x1b[K{words}\n[{served} served, Ctrl-C stops]");
        } else {
            words.push('\n');
        }
        self.output.say(Stream::Stderr, words.into_bytes());
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
            Event::Relayed { micros } => json!({ "event": "relayed", "micros": micros }),
            Event::Served { method, path, status, micros } => {
                let path = if self.queries { path.as_str() } else { path.split('?').next().unwrap_or_default() };
                json!({
                    "event": "served", "method": method.as_str(), "path": path, "status": status.as_u16(),
                    "micros": micros,
                })
            }
            Event::UpstreamFailed { error } => json!({ "event": "upstream-failed", "error": error }),
            other => json!({ "event": format!("{other:?}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_is_a_host_and_a_port() {
        for (text, host, port) in
            [("a.example:443", "a.example", 443), ("[::1]:1", "::1", 1), ("127.0.0.1:2", "127.0.0.1", 2)]
        {
            assert_eq!(host_and_port(text), Ok((host.to_owned(), port)));
        }
        for wrong in
            ["here", "https://a.example:443", "::1:443", "[a]:1", "a.example:", "a.example:70000", ":1", "u@a:1"]
        {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_header_has_a_name_and_a_value_and_is_not_the_connections() {
        let (name, value) = header("X-Frame-Options:  DENY ").expect("a header");
        assert_eq!((name.as_str(), value.to_str().expect("ASCII")), ("x-frame-options", "DENY"));
        for wrong in ["X-Frame-Options", ": x", "a b: c", "Host: a", "Content-Length: 1", "x: a\nb"] {
            assert!(header(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(host_header("preserve"), Ok(HostHeader::Preserve));
        assert_eq!(host_header("a.example:80"), Ok(HostHeader::Value(HeaderValue::from_static("a.example:80"))));
        assert!(host_header("a b").is_err());
    }

    #[test]
    fn queries_are_told_to_who_asks_for_them() {
        let output = Output::start(|_| (Stream::Stderr, Vec::new()));
        let event = Event::Served {
            method: http::Method::GET,
            path: "/callback?code=OAUTHCODE".to_owned(),
            status: http::StatusCode::OK,
            micros: 1,
        };
        for (queries, path) in [(false, "/callback"), (true, "/callback?code=OAUTHCODE")] {
            let teller = Teller::new(true, false, queries, &Uri::from_static("http://127.0.0.1:1"), output.clone());
            assert_eq!(teller.value(&event)["path"], path);
        }
    }
}
