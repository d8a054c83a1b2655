//! What flags, environment and file may say.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use acme::ChallengeKind;
use ca_dir::KeyAlgorithm;
use clap::Args;
use panel::CommandLine;
use pki_core::pkcs12::Encryption;
use serde::{Deserialize, Serialize};
use tunnel_model::{TunnelName, Zone};

use super::LogFormat;
use super::acme::{CaaPolicy, Fallback, Issuer};
use super::values::{Listen, Program, Span, Text};

/// One struct is all three: clap reads flags and environment into one value, serde the file into
/// another. As tables they lie one over the other, and both over the defaults.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// TOML file with settings
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_CONFIG")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,

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
    pub(super) pki_dir: Option<PathBuf>,

    /// panel.json of the certificates API [default: DATA/panel.json]
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_CONFIG")]
    pub(super) panel_config: Option<PathBuf>,

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

    /// Who issues certificates for public hosts: the deployment's own authority, or a public one [default: private]
    #[arg(long, global = true, value_name = "ISSUER", env = "ADIT_ISSUER")]
    issuer: Option<Issuer>,

    /// Where the public authority issues nothing: refuse, or a certificate that strangers do not trust [default: refuse]
    #[arg(long, global = true, value_name = "WHAT", env = "ADIT_ISSUER_FALLBACK")]
    issuer_fallback: Option<Fallback>,

    /// Directory of the public authority, such as https://acme-v02.api.letsencrypt.org/directory
    #[arg(long, global = true, value_name = "URL", env = "ADIT_ACME_DIRECTORY")]
    #[allow(rustdoc::bare_urls, reason = "the words of --help")]
    acme_directory: Option<String>,

    /// PEM file of roots that the authority and its certificates are trusted by, beside the system's
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_ACME_CA")]
    acme_ca: Option<PathBuf>,

    /// Where the authority reaches you
    #[arg(long, global = true, value_name = "MAIL,..", env = "ADIT_ACME_CONTACT", value_delimiter = ',')]
    acme_contact: Option<Vec<String>>,

    /// You agree to the authority's terms [default: false]
    #[arg(long, global = true, env = "ADIT_ACME_AGREE_TERMS", num_args = 0..=1, default_missing_value = "true")]
    acme_agree_terms: Option<bool>,

    /// Key id of the account that the authority binds ours to; its key is ADIT_ACME_EAB_KEY, or in the file that
    /// ADIT_ACME_EAB_KEY_FILE names
    #[arg(long, global = true, value_name = "ID", env = "ADIT_ACME_EAB_KEY_ID")]
    acme_eab_key_id: Option<String>,

    /// Kind of certificates, where the authority has several; published clients need 30 days or more
    #[arg(long, global = true, value_name = "NAME", env = "ADIT_ACME_PROFILE")]
    acme_profile: Option<String>,

    /// How names are proved, the most wanted first: tls-alpn-01, http-01, dns-01, dns-persist-01 [default: what is
    /// possible, dns-01 first]
    #[arg(long, global = true, value_name = "KIND,..", env = "ADIT_ACME_CHALLENGE", value_delimiter = ',')]
    acme_challenge: Option<Vec<Text<ChallengeKind>>>,

    /// Program for dns-01 where the zone's DNS is elsewhere, called as FILE present|cleanup NAME VALUE
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_ACME_DNS_HOOK")]
    acme_dns_hook: Option<PathBuf>,

    /// How long sign-csr waits for the public authority [default: 50s]
    #[arg(long, global = true, value_name = "DURATION", env = "ADIT_ACME_WAIT")]
    acme_wait: Option<Text<Span>>,

    /// What the name server says of who may issue: none, authority, or account, which forbids agents to get
    /// certificates of their own [default: none]
    #[arg(long, global = true, value_name = "WHO", env = "ADIT_ACME_CAA")]
    acme_caa: Option<CaaPolicy>,

    /// New certificates that the authority issues for the zone's domain within 7 days [default: 50]
    #[arg(long, global = true, value_name = "N", env = "ADIT_ACME_CERTIFICATES_PER_WEEK")]
    acme_certificates_per_week: Option<u32>,

    /// Plain HTTP: proofs by http-01, and the way to https for everybody else; 80 in production [default: none]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_HTTP_LISTEN")]
    http_listen: Option<Text<Listen>>,

    /// Name server of the zone, UDP and TCP; 53 in production [default: none]
    #[arg(long, global = true, value_name = "ADDR", env = "ADIT_DNS_LISTEN")]
    dns_listen: Option<Text<Listen>>,

    /// Addresses of the zone and of all hosts in it, for the name server
    #[arg(long, global = true, value_name = "IP,..", env = "ADIT_PUBLIC_ADDRESS", value_delimiter = ',')]
    public_address: Option<Vec<IpAddr>>,

    /// Names of the zone's name servers, as the delegation has them [default: ns1.ZONE]
    #[arg(long, global = true, value_name = "NAME,..", env = "ADIT_DNS_NAME_SERVER", value_delimiter = ',')]
    dns_name_server: Option<Vec<String>>,

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
