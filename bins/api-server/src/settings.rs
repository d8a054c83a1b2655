//! Settings: flag, else environment, else TOML file, else default.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ca_dir::KeyAlgorithm;
use clap::{Args, ValueEnum};
use panel::CommandLine;
use pki_core::pkcs12::Encryption;
use serde::{Deserialize, Serialize};
use tunnel_model::{NamePolicy, Quota, Rules, TunnelName, Zone};

/// What flags, environment and file may say. One struct is all three: clap
/// reads flags and environment into one value, serde the file into another.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// TOML file with settings
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// All that must survive: database, certificate authority, secrets [default: ./adit-data]
    #[arg(long, global = true, value_name = "DIR", env = "ADIT_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// Suffix of every public host, and the host that agents dial [default: adit.localhost]
    #[arg(long, global = true, value_name = "ZONE", env = "ADIT_ZONE")]
    zone: Option<Text<Zone>>,

    /// REST in plain HTTP [default: 127.0.0.1:8080]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_API_LISTEN")]
    api_listen: Option<SocketAddr>,

    /// Allow --api-listen on an address that others reach: keys cross the network unprotected
    #[arg(long, global = true, env = "ADIT_API_ALLOW_PLAINTEXT", num_args = 0..=1, default_missing_value = "true")]
    api_allow_plaintext: Option<bool>,

    /// Agents, visitors and REST over TLS, told apart by name; 443 in production [default: 127.0.0.1:4443]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_EDGE_LISTEN")]
    edge_listen: Option<SocketAddr>,

    /// Certificate chain for the names that it covers (the zone, `*.ZONE`); the rest get the authority's own
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_EDGE_TLS_CERT", requires = "edge_tls_key")]
    edge_tls_cert: Option<PathBuf>,

    /// Private key of --edge-tls-cert
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_EDGE_TLS_KEY", requires = "edge_tls_cert")]
    edge_tls_key: Option<PathBuf>,

    /// Every connection to --edge-listen begins with a PROXY protocol header, version 2 [default: false]
    #[arg(long, global = true, env = "ADIT_EDGE_PROXY_PROTOCOL", num_args = 0..=1, default_missing_value = "true")]
    edge_proxy_protocol: Option<bool>,

    /// Connections of one address at the edge, agents apart; an IPv6 address is its /64 [default: a quarter of
    /// max_connections]
    #[arg(long, global = true, value_name = "N", env = "ADIT_EDGE_CONNECTIONS_PER_ADDRESS")]
    edge_connections_per_address: Option<usize>,

    /// Addresses that stand for many, such as proxies in front of the edge: they may have any number of connections
    #[arg(long, global = true, value_name = "IP,..", env = "ADIT_EDGE_PROXIES", value_delimiter = ',')]
    edge_proxies: Option<Vec<IpAddr>>,

    /// Octets of visitors' request bodies that are held in memory at once, 32 MiB or more [default: 268435456]
    #[arg(long, global = true, value_name = "OCTETS", env = "ADIT_EDGE_BODY_MEMORY")]
    edge_body_memory: Option<usize>,

    /// How long an agent may take for a reply [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_RESPONSE_DEADLINE")]
    response_deadline: Option<Text<Span>>,

    /// Certificates API over mutual TLS; `none` for none [default: 127.0.0.1:9292]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_PANEL_LISTEN")]
    panel_listen: Option<Text<Listen>>,

    /// /metrics, /healthz and /readyz [default: 127.0.0.1:9464]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,

    /// Directory of the certificates API; one that is there is taken over as it is [default: DATA/pki]
    #[arg(long, global = true, value_name = "DIR", env = "ADIT_PKI_DIR")]
    pki_dir: Option<PathBuf>,

    /// panel.json of the certificates API [default: DATA/panel.json]
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_CONFIG")]
    panel_config: Option<PathBuf>,

    /// Server certificate of the panel port [default: self-signed.pem in the directory, made if missing]
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_TLS_CERT", requires = "panel_tls_key")]
    panel_tls_cert: Option<PathBuf>,

    /// Private key of the panel port
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_TLS_KEY", requires = "panel_tls_cert")]
    panel_tls_key: Option<PathBuf>,

    /// The panel port speaks plain HTTP, and X-SSL-Client-* headers count that come from this loopback address
    #[arg(long, global = true, value_name = "IP", env = "ADIT_PANEL_PROXY")]
    panel_proxy: Option<IpAddr>,

    /// Keys that the panel makes: rsa4096, p256, and what else ca-cli knows [default: rsa4096]
    #[arg(long, global = true, value_name = "KIND", env = "ADIT_PANEL_KEYS")]
    panel_keys: Option<Text<KeyAlgorithm>>,

    /// How bundles are encrypted: legacy (macOS Keychain reads nothing else) or aes256 [default: legacy]
    #[arg(long, global = true, value_name = "FORM", env = "ADIT_PANEL_P12")]
    panel_p12: Option<Text<Encryption>>,

    /// Capabilities that agents may have beyond the usual seven
    #[arg(long, global = true, value_name = "NAME,..", env = "ADIT_PANEL_CAPABILITIES", value_delimiter = ',')]
    panel_capabilities: Option<Vec<String>>,

    /// Enrolments that one address may try within a minute; 0 for any number [default: 30]
    #[arg(long, global = true, value_name = "N", env = "ADIT_PANEL_ENROLLMENTS_PER_MINUTE")]
    panel_enrollments_per_minute: Option<u32>,

    /// Where certbot keeps its files [default: /etc/letsencrypt]
    #[arg(long, global = true, value_name = "DIR", env = "ADIT_PANEL_LETSENCRYPT_DIR")]
    panel_letsencrypt_dir: Option<PathBuf>,

    /// How certbot is called [default: /usr/bin/certbot]
    #[arg(long, global = true, value_name = "COMMAND", env = "ADIT_PANEL_CERTBOT")]
    panel_certbot: Option<Text<CommandLine>>,

    /// How nginx' configuration is tested; `none` if there is no nginx [default: /usr/sbin/nginx -t]
    #[arg(long, global = true, value_name = "COMMAND", env = "ADIT_PANEL_NGINX_TEST")]
    panel_nginx_test: Option<Text<Program>>,

    /// How nginx is told to load new certificates [default: /usr/bin/systemctl reload nginx]
    #[arg(long, global = true, value_name = "COMMAND", env = "ADIT_PANEL_NGINX_RELOAD")]
    panel_nginx_reload: Option<Text<CommandLine>>,

    /// How systemd is asked for certbot's timer [default: /usr/bin/systemctl]
    #[arg(long, global = true, value_name = "COMMAND", env = "ADIT_PANEL_SYSTEMCTL")]
    panel_systemctl: Option<Text<CommandLine>>,

    /// How long certbot may take for a renewal [default: 90s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_PANEL_RENEWAL_TIMEOUT")]
    panel_renewal_timeout: Option<Text<Span>>,

    /// Owner of everything that the first admin key makes [default: org_adit]
    #[arg(long, global = true, value_name = "ORG", env = "ADIT_ORGANIZATION")]
    organization: Option<String>,

    /// Days that a tunnel's certificate is valid, 1 to 825 [default: 90]
    #[arg(long, global = true, value_name = "DAYS", env = "ADIT_CERT_DAYS")]
    cert_days: Option<u32>,

    /// Tunnels that an organization may create within 24 hours [default: 10]
    #[arg(long, global = true, value_name = "N", env = "ADIT_CREATES_PER_DAY")]
    creates_per_day: Option<u32>,

    /// Certificates that are signed for a tunnel within 24 hours [default: 10]
    #[arg(long, global = true, value_name = "N", env = "ADIT_SIGNINGS_PER_DAY")]
    signings_per_day: Option<u32>,

    /// How long a deletion can be taken back [default: 24h]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_RESTORE_WINDOW")]
    restore_window: Option<Text<Span>>,

    /// How often expired deletions are swept up [default: 1m]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_SWEEP_INTERVAL")]
    sweep_interval: Option<Text<Span>>,

    /// More names that nobody gets, as if reserved for the zone
    #[arg(long, global = true, value_name = "NAME,..", env = "ADIT_RESERVED_NAMES", value_delimiter = ',')]
    reserved_names: Option<Vec<Text<TunnelName>>>,

    /// Names that nobody gets because you say so
    #[arg(long, global = true, value_name = "NAME,..", env = "ADIT_DENIED_NAMES", value_delimiter = ',')]
    denied_names: Option<Vec<Text<TunnelName>>>,

    /// Octets of a request's body that are read, 24 KiB or more [default: 65536]
    #[arg(long, global = true, value_name = "OCTETS", env = "ADIT_MAX_BODY")]
    max_body: Option<usize>,

    /// HTTP connections at once; more wait in the kernel [default: 16384]
    #[arg(long, global = true, value_name = "N", env = "ADIT_MAX_CONNECTIONS")]
    max_connections: Option<usize>,

    /// How long a client may take for a request's headers, and idle between requests [default: 15s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_HEADER_TIMEOUT")]
    header_timeout: Option<Text<Span>>,

    /// How long a request's body may take to arrive [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_REQUEST_TIMEOUT")]
    request_timeout: Option<Text<Span>>,

    /// How long requests in flight may take after SIGTERM [default: 30s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_GRACE_PERIOD")]
    grace_period: Option<Text<Span>>,

    /// What is logged: error, warn, info, debug (every request), or directives as in RUST_LOG [default: info]
    #[arg(long, global = true, value_name = "FILTER", env = "ADIT_LOG")]
    log: Option<String>,

    /// How it is logged [default: text]
    #[arg(long, global = true, value_name = "FORMAT", env = "ADIT_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people; coloured on a terminal
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Settings that are complete and in range.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) zone: Text<Zone>,
    pub(crate) api_listen: SocketAddr,
    pub(crate) api_allow_plaintext: bool,
    pub(crate) edge_listen: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) edge_tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) edge_tls_key: Option<PathBuf>,
    pub(crate) edge_proxy_protocol: bool,
    pub(crate) edge_connections_per_address: usize,
    pub(crate) edge_proxies: Vec<IpAddr>,
    pub(crate) edge_body_memory: usize,
    pub(crate) response_deadline: Text<Span>,
    pub(crate) panel_listen: Text<Listen>,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) pki_dir: PathBuf,
    pub(crate) panel_config: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) panel_tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) panel_tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) panel_proxy: Option<IpAddr>,
    pub(crate) panel_keys: Text<KeyAlgorithm>,
    pub(crate) panel_p12: Text<Encryption>,
    pub(crate) panel_capabilities: Vec<String>,
    pub(crate) panel_enrollments_per_minute: u32,
    pub(crate) panel_letsencrypt_dir: PathBuf,
    pub(crate) panel_certbot: Text<CommandLine>,
    pub(crate) panel_nginx_test: Text<Program>,
    pub(crate) panel_nginx_reload: Text<CommandLine>,
    pub(crate) panel_systemctl: Text<CommandLine>,
    pub(crate) panel_renewal_timeout: Text<Span>,
    pub(crate) organization: String,
    pub(crate) cert_days: u32,
    pub(crate) creates_per_day: u32,
    pub(crate) signings_per_day: u32,
    pub(crate) restore_window: Text<Span>,
    pub(crate) sweep_interval: Text<Span>,
    pub(crate) reserved_names: Vec<Text<TunnelName>>,
    pub(crate) denied_names: Vec<Text<TunnelName>>,
    pub(crate) max_body: usize,
    pub(crate) max_connections: usize,
    pub(crate) header_timeout: Text<Span>,
    pub(crate) request_timeout: Text<Span>,
    pub(crate) grace_period: Text<Span>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

impl Settings {
    /// Joins the sources and checks the result.
    ///
    /// # Errors
    ///
    /// Names the setting, its value and what would be right.
    pub(crate) fn resolve(options: Options) -> anyhow::Result<Self> {
        let file = match &options.config {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("cannot use the configuration {}", path.display()))?
            }
            None => Options::default(),
        };
        let given = options.or(file);
        let data_dir = given.data_dir.unwrap_or_else(|| "./adit-data".into());
        let settings = Self {
            zone: given.zone.map_or_else(|| default("adit.localhost"), Ok)?,
            api_listen: given.api_listen.unwrap_or_else(|| loopback(8080)),
            api_allow_plaintext: given.api_allow_plaintext.unwrap_or(false),
            edge_listen: given.edge_listen.unwrap_or_else(|| loopback(4443)),
            edge_tls_cert: given.edge_tls_cert,
            edge_tls_key: given.edge_tls_key,
            edge_proxy_protocol: given.edge_proxy_protocol.unwrap_or(false),
            edge_connections_per_address: given
                .edge_connections_per_address
                .unwrap_or_else(|| given.max_connections.unwrap_or(16 * 1024).div_ceil(4)),
            edge_proxies: given.edge_proxies.unwrap_or_default(),
            edge_body_memory: given.edge_body_memory.unwrap_or(256 * 1024 * 1024),
            response_deadline: given.response_deadline.map_or_else(|| default("30s"), Ok)?,
            panel_listen: given.panel_listen.map_or_else(|| default("127.0.0.1:9292"), Ok)?,
            metrics_listen: given.metrics_listen.unwrap_or_else(|| loopback(9464)),
            pki_dir: given.pki_dir.unwrap_or_else(|| data_dir.join("pki")),
            panel_config: given.panel_config.unwrap_or_else(|| data_dir.join("panel.json")),
            panel_tls_cert: given.panel_tls_cert,
            panel_tls_key: given.panel_tls_key,
            panel_proxy: given.panel_proxy,
            panel_keys: given.panel_keys.map_or_else(|| default("rsa4096"), Ok)?,
            panel_p12: given.panel_p12.map_or_else(|| default("legacy"), Ok)?,
            panel_capabilities: given.panel_capabilities.unwrap_or_default(),
            panel_enrollments_per_minute: given.panel_enrollments_per_minute.unwrap_or(30),
            panel_letsencrypt_dir: given.panel_letsencrypt_dir.unwrap_or_else(|| "/etc/letsencrypt".into()),
            panel_certbot: given.panel_certbot.map_or_else(|| default("/usr/bin/certbot"), Ok)?,
            panel_nginx_test: given.panel_nginx_test.map_or_else(|| default("/usr/sbin/nginx -t"), Ok)?,
            panel_nginx_reload: given
                .panel_nginx_reload
                .map_or_else(|| default("/usr/bin/systemctl reload nginx"), Ok)?,
            panel_systemctl: given.panel_systemctl.map_or_else(|| default("/usr/bin/systemctl"), Ok)?,
            panel_renewal_timeout: given.panel_renewal_timeout.map_or_else(|| default("90s"), Ok)?,
            organization: given.organization.unwrap_or_else(|| "org_adit".to_owned()),
            cert_days: given.cert_days.unwrap_or(90),
            creates_per_day: given.creates_per_day.unwrap_or(10),
            signings_per_day: given.signings_per_day.unwrap_or(10),
            restore_window: given.restore_window.map_or_else(|| default("24h"), Ok)?,
            sweep_interval: given.sweep_interval.map_or_else(|| default("1m"), Ok)?,
            reserved_names: given.reserved_names.unwrap_or_default(),
            denied_names: given.denied_names.unwrap_or_default(),
            max_body: given.max_body.unwrap_or(64 * 1024),
            max_connections: given.max_connections.unwrap_or(16 * 1024),
            header_timeout: given.header_timeout.map_or_else(|| default("15s"), Ok)?,
            request_timeout: given.request_timeout.map_or_else(|| default("30s"), Ok)?,
            grace_period: given.grace_period.map_or_else(|| default("30s"), Ok)?,
            log: given.log.unwrap_or_else(|| "info".to_owned()),
            log_format: given.log_format.unwrap_or_default(),
            data_dir,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        if !self.api_listen.ip().is_loopback() && !self.api_allow_plaintext {
            bail!(
                "api_listen is {}, which others reach in plain HTTP: use a loopback address behind a proxy, \
                 or say --api-allow-plaintext",
                self.api_listen
            );
        }
        let is_word = |text: &str| text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"_-".contains(&octet));
        if self.organization.is_empty() || self.organization.len() > 64 || !is_word(&self.organization) {
            bail!("organization is {:?}: use 1 to 64 letters, digits, `_` and `-`", self.organization);
        }
        if !(1..=825).contains(&self.cert_days) {
            bail!("cert_days is {}: use 1 to 825", self.cert_days);
        }
        // A request of the largest size, escaped as JSON, must fit.
        if self.max_body < 24 * 1024 || self.max_body > 16 * 1024 * 1024 {
            bail!("max_body is {}: use 24576 to 16777216 octets", self.max_body);
        }
        if self.edge_tls_cert.is_some() != self.edge_tls_key.is_some() {
            bail!("edge_tls_cert and edge_tls_key belong together: set both, or neither");
        }
        if self.edge_connections_per_address == 0 {
            bail!("edge_connections_per_address is 0: use 1 or more");
        }
        // One request of the largest size must fit.
        if self.edge_body_memory < 32 * 1024 * 1024 {
            bail!("edge_body_memory is {}: use 33554432 octets or more", self.edge_body_memory);
        }
        if self.response_deadline.0.0 < Duration::from_secs(1) {
            bail!("response_deadline is {}: use 1s or more", self.response_deadline.0);
        }
        if self.panel_tls_cert.is_some() != self.panel_tls_key.is_some() {
            bail!("panel_tls_cert and panel_tls_key belong together: set both, or neither");
        }
        if let Some(proxy) = self.panel_proxy {
            if !proxy.is_loopback() {
                bail!("panel_proxy is {proxy}: use a loopback address, for the headers are not protected on their way");
            }
            if let Some(address) = self.panel_listen.0.0
                && !address.ip().is_loopback()
            {
                bail!(
                    "panel_listen is {address} and panel_proxy is set: plain HTTP is served on loopback addresses only"
                );
            }
        }
        let is_capability = |name: &str| {
            let is_word = |word: &str| {
                !word.is_empty() && word.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            };
            name.split_once(':').is_some_and(|(scope, action)| is_word(scope) && is_word(action))
        };
        if let Some(name) = self.panel_capabilities.iter().find(|name| !is_capability(name)) {
            bail!("panel_capabilities has {name:?}: use words such as identity:read");
        }
        if self.max_connections == 0 {
            bail!("max_connections is 0: use 1 or more");
        }
        Ok(())
    }

    /// As a configuration file.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(self).context("cannot write the settings as TOML")
    }

    /// The model's part of the settings.
    pub(crate) fn rules(&self) -> Rules {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let names = |names: &[Text<TunnelName>]| names.iter().map(|name| name.0.clone()).collect::<Vec<_>>();
        Rules {
            names: NamePolicy::new().reserve(names(&self.reserved_names)).deny(names(&self.denied_names)),
            creates: Quota { limit: self.creates_per_day, window: DAY },
            signings: Quota { limit: self.signings_per_day, window: DAY },
            restore_window: self.restore_window.0.0,
        }
    }

    /// The data plane's part of the settings.
    pub(crate) fn edge(&self) -> edge::Settings {
        // The agent's own 504 is to come first.
        const AFTER_THE_AGENT: Duration = Duration::from_secs(5);
        let mut edge = edge::Settings::new(self.zone.0.clone());
        edge.places.connections = self.max_connections;
        edge.places.per_address = self.edge_connections_per_address;
        edge.places.exempt.clone_from(&self.edge_proxies);
        edge.proxy_protocol = self.edge_proxy_protocol;
        edge.visitor.buffered = self.edge_body_memory;
        edge.response_deadline = self.response_deadline.0.0;
        edge.live.reply_time = self.response_deadline.0.0 + AFTER_THE_AGENT;
        edge.grace = self.grace_period.0.0;
        edge
    }

    /// The panel's keys and bundles.
    pub(crate) fn making(&self) -> panel::Making {
        panel::Making { keys: self.panel_keys.0, encryption: self.panel_p12.0 }
    }

    /// The programs around the panel.
    pub(crate) fn programs(&self) -> panel::Programs {
        let test = self.panel_nginx_test.0.0.clone();
        let nginx = test.map(|test| (test, self.panel_nginx_reload.0.clone()));
        let letsencrypt = self.panel_letsencrypt_dir.clone();
        panel::Programs::new()
            .certbot(self.panel_certbot.0.clone(), letsencrypt, self.panel_renewal_timeout.0.0)
            .nginx(nginx)
            .systemctl(self.panel_systemctl.0.clone())
    }

    /// How much the panel takes on.
    pub(crate) fn panel_bounds(&self) -> panel::Bounds {
        panel::Bounds { enrollments_per_minute: self.panel_enrollments_per_minute, request: self.request_timeout.0.0 }
    }

    /// The panel listener's part of the settings.
    pub(crate) fn panel_limits(&self) -> panel::Limits {
        panel::Limits {
            connections: self.max_connections,
            headers: self.header_timeout.0.0,
            stall: self.request_timeout.0.0,
            grace: self.grace_period.0.0,
        }
    }

    /// The listeners' part of the settings.
    pub(crate) fn limits(&self) -> api::Limits {
        api::Limits {
            body: self.max_body,
            connections: self.max_connections,
            headers: self.header_timeout.0.0,
            request: self.request_timeout.0.0,
            stall: self.request_timeout.0.0,
            grace: self.grace_period.0.0,
        }
    }
}

impl Options {
    /// What is said here, and for the rest what `file` says.
    fn or(self, file: Self) -> Self {
        // Spelled out, so that a new setting cannot be forgotten here.
        let Self {
            config,
            data_dir,
            zone,
            api_listen,
            api_allow_plaintext,
            edge_listen,
            edge_tls_cert,
            edge_tls_key,
            edge_proxy_protocol,
            edge_connections_per_address,
            edge_proxies,
            edge_body_memory,
            response_deadline,
            panel_listen,
            metrics_listen,
            pki_dir,
            panel_config,
            panel_tls_cert,
            panel_tls_key,
            panel_proxy,
            panel_keys,
            panel_p12,
            panel_capabilities,
            panel_enrollments_per_minute,
            panel_letsencrypt_dir,
            panel_certbot,
            panel_nginx_test,
            panel_nginx_reload,
            panel_systemctl,
            panel_renewal_timeout,
            organization,
            cert_days,
            creates_per_day,
            signings_per_day,
            restore_window,
            sweep_interval,
            reserved_names,
            denied_names,
            max_body,
            max_connections,
            header_timeout,
            request_timeout,
            grace_period,
            log,
            log_format,
        } = self;
        Self {
            config,
            data_dir: data_dir.or(file.data_dir),
            zone: zone.or(file.zone),
            api_listen: api_listen.or(file.api_listen),
            api_allow_plaintext: api_allow_plaintext.or(file.api_allow_plaintext),
            edge_listen: edge_listen.or(file.edge_listen),
            edge_tls_cert: edge_tls_cert.or(file.edge_tls_cert),
            edge_tls_key: edge_tls_key.or(file.edge_tls_key),
            edge_proxy_protocol: edge_proxy_protocol.or(file.edge_proxy_protocol),
            edge_connections_per_address: edge_connections_per_address.or(file.edge_connections_per_address),
            edge_proxies: edge_proxies.or(file.edge_proxies),
            edge_body_memory: edge_body_memory.or(file.edge_body_memory),
            response_deadline: response_deadline.or(file.response_deadline),
            panel_listen: panel_listen.or(file.panel_listen),
            metrics_listen: metrics_listen.or(file.metrics_listen),
            pki_dir: pki_dir.or_else(|| std::env::var_os("PORTLAMA_PKI_DIR").map(PathBuf::from)).or(file.pki_dir),
            panel_config: panel_config
                .or_else(|| std::env::var_os("PORTLAMA_CONFIG").map(PathBuf::from))
                .or(file.panel_config),
            panel_tls_cert: panel_tls_cert.or(file.panel_tls_cert),
            panel_tls_key: panel_tls_key.or(file.panel_tls_key),
            panel_proxy: panel_proxy.or(file.panel_proxy),
            panel_keys: panel_keys.or(file.panel_keys),
            panel_p12: panel_p12.or(file.panel_p12),
            panel_capabilities: panel_capabilities.or(file.panel_capabilities),
            panel_enrollments_per_minute: panel_enrollments_per_minute.or(file.panel_enrollments_per_minute),
            panel_letsencrypt_dir: panel_letsencrypt_dir.or(file.panel_letsencrypt_dir),
            panel_certbot: panel_certbot.or(file.panel_certbot),
            panel_nginx_test: panel_nginx_test.or(file.panel_nginx_test),
            panel_nginx_reload: panel_nginx_reload.or(file.panel_nginx_reload),
            panel_systemctl: panel_systemctl.or(file.panel_systemctl),
            panel_renewal_timeout: panel_renewal_timeout.or(file.panel_renewal_timeout),
            organization: organization.or(file.organization),
            cert_days: cert_days.or(file.cert_days),
            creates_per_day: creates_per_day.or(file.creates_per_day),
            signings_per_day: signings_per_day.or(file.signings_per_day),
            restore_window: restore_window.or(file.restore_window),
            sweep_interval: sweep_interval.or(file.sweep_interval),
            reserved_names: reserved_names.or(file.reserved_names),
            denied_names: denied_names.or(file.denied_names),
            max_body: max_body.or(file.max_body),
            max_connections: max_connections.or(file.max_connections),
            header_timeout: header_timeout.or(file.header_timeout),
            request_timeout: request_timeout.or(file.request_timeout),
            grace_period: grace_period.or(file.grace_period),
            log: log.or(file.log),
            log_format: log_format.or(file.log_format),
        }
    }
}

/// A value whose text has a rule, the same for flags and file.
#[derive(Clone, Debug)]
pub(crate) struct Text<T>(pub(crate) T);

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A length of time as people write it: `24h`, `90s`, `1h 30m`, `200ms`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "use a positive length of time such as 24h, 90s or 200ms".to_owned();
        let span: jiff::SignedDuration = text.parse().map_err(|_| usage())?;
        let duration = Duration::try_from(span).map_err(|_| usage())?;
        if duration.is_zero() { Err(usage()) } else { Ok(Self(duration)) }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let span = jiff::SignedDuration::try_from(self.0).unwrap_or(jiff::SignedDuration::MAX);
        write!(f, "{span:#}")
    }
}

/// An address, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "use an address such as 127.0.0.1:9292, or none";
        if text == NONE {
            Ok(Self(None))
        } else {
            text.parse().map(|address| Self(Some(address))).map_err(|_| usage.to_owned())
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

/// A program, or none.
#[derive(Clone, Debug)]
pub(crate) struct Program(pub(crate) Option<CommandLine>);

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE { Ok(Self(None)) } else { text.parse().map(|command| Self(Some(command))) }
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(command) => command.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

const NONE: &str = "none";

fn default<T: FromStr<Err: std::fmt::Display>>(text: &str) -> anyhow::Result<Text<T>> {
    text.parse().map_err(|error| anyhow::anyhow!("{text:?}: {error}"))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(toml: &str) -> anyhow::Result<Settings> {
        let file = toml::from_str(toml)?;
        Settings::resolve(Options::default().or(file))
    }

    #[test]
    fn defaults_are_printed_as_a_file_that_reads_back() {
        let settings = resolve("").expect("defaults");
        let printed = settings.to_toml().expect("TOML");
        let again = resolve(&printed).expect("what is printed can be used").to_toml().expect("TOML");
        assert_eq!(printed, again);
        assert!(printed.contains("restore_window = \"24h\""), "{printed}");
    }

    #[test]
    fn the_sample_of_the_documentation_can_be_used() {
        let sample = include_str!("../../../docs/samples/adit.toml");
        resolve(sample).expect("docs/samples/adit.toml");
        let sample = include_str!("../../../docs/samples/adit-panel.toml");
        resolve(sample).expect("docs/samples/adit-panel.toml");
    }

    #[test]
    fn bad_settings_say_what_would_be_right() {
        for (toml, words) in [
            ("zone = \"not a zone\"", "not a zone"),
            ("zonee = \"adit.localhost\"", "unknown field `zonee`"),
            ("api_listen = \"0.0.0.0:80\"", "--api-allow-plaintext"),
            ("restore_window = \"soon\"", "24h"),
            ("cert_days = 0", "use 1 to 825"),
            ("max_body = 1", "use 24576"),
            ("reserved_names = [\"UPPER\"]", "lower-case"),
            ("organization = \"a b\"", "letters, digits"),
            ("panel_listen = \"somewhere\"", "or none"),
            ("panel_proxy = \"192.0.2.1\"", "use a loopback address"),
            ("panel_proxy = \"127.0.0.1\"\npanel_listen = \"0.0.0.0:9292\"", "on loopback addresses only"),
            ("panel_keys = \"rsa1024\"", "use one of"),
            ("panel_p12 = \"rc2\"", "legacy"),
            ("panel_certbot = \"certbot\"", "absolute path"),
            ("panel_capabilities = [\"everything\"]", "identity:read"),
        ] {
            let error = format!("{:#}", resolve(toml).expect_err(toml));
            assert!(error.contains(words), "{toml}: {error}");
        }
    }
}
