//! Settings: flag, else environment, else TOML file, else default.
//!
//! Each part of the server has a section of its own, which knows what is in range and makes of it
//! what the crate wants. The keys are one flat list.

pub(crate) mod acme;
mod api;
mod edge;
mod options;
mod panel;
mod tunnels;
mod values;

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use tunnel_model::Zone;

use acme::Acme;
use api::{Api, Connections};
use edge::Edge;
pub(crate) use options::Options;
use panel::Panel;
pub(crate) use panel::limits as panel_limits;
use tunnels::Tunnels;
use values::Text;

/// What is used where nothing is said, but for what depends on other settings.
const DEFAULTS: &str = r#"
data_dir = "./adit-data"
zone = "adit.localhost"
log = "info"
log_format = "text"

api_listen = "127.0.0.1:8080"
api_allow_plaintext = false
metrics_listen = "127.0.0.1:9464"
max_body = 65536

max_connections = 16384
header_timeout = "15s"
request_timeout = "30s"
grace_period = "30s"

edge_listen = "127.0.0.1:4443"
edge_proxy_protocol = false
edge_proxies = []
edge_body_memory = 268435456
response_deadline = "30s"

panel_listen = "127.0.0.1:9292"
panel_keys = "rsa4096"
panel_p12 = "legacy"
panel_capabilities = []
panel_enrollments_per_minute = 30
panel_letsencrypt_dir = "/etc/letsencrypt"
panel_certbot = "/usr/bin/certbot"
panel_nginx_test = "/usr/sbin/nginx -t"
panel_nginx_reload = "/usr/bin/systemctl reload nginx"
panel_systemctl = "/usr/bin/systemctl"
panel_renewal_timeout = "90s"

issuer = "private"
issuer_fallback = "refuse"
acme_contact = []
acme_agree_terms = false
acme_challenge = []
acme_wait = "50s"
acme_caa = "none"
acme_certificates_per_week = 50
http_listen = "none"
dns_listen = "none"
public_address = []
dns_name_server = []

organization = "org_adit"
cert_days = 90
creates_per_day = 10
signings_per_day = 10
restore_window = "24h"
sweep_interval = "1m"
reserved_names = []
denied_names = []
"#;

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
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) general: General,
    pub(crate) acme: Acme,
    pub(crate) api: Api,
    pub(crate) connections: Connections,
    pub(crate) edge: Edge,
    pub(crate) panel: Panel,
    pub(crate) tunnels: Tunnels,
}

/// Of the whole server.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct General {
    pub(crate) data_dir: PathBuf,
    pub(crate) zone: Text<Zone>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
}

impl Settings {
    /// Joins the sources and checks the result.
    ///
    /// # Errors
    ///
    /// Names the setting, its value and what would be right.
    pub(crate) fn resolve(options: &Options) -> anyhow::Result<Self> {
        let mut file = match &options.config {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                toml::from_str(&text).with_context(|| format!("cannot use the configuration {}", path.display()))?
            }
            None => Options::default(),
        };
        // What other programs around a panel know of it goes for more than the file.
        for (name, path) in [("PORTLAMA_PKI_DIR", &mut file.pki_dir), ("PORTLAMA_CONFIG", &mut file.panel_config)] {
            if let Some(value) = std::env::var_os(name) {
                *path = Some(value.into());
            }
        }
        Self::from_sources(&file, options)
    }

    fn from_sources(file: &Options, options: &Options) -> anyhow::Result<Self> {
        let mut table: Table = toml::from_str(DEFAULTS)?;
        for source in [file, options] {
            table.extend(Table::try_from(source).context(
                "a setting cannot be used: paths have to be UTF-8, and numbers no greater than 9223372036854775807",
            )?);
        }
        let general: General = section(&table)?;
        let connections: Connections = section(&table)?;
        let within = |name| Value::try_from(general.data_dir.join(name)).context("data_dir");
        let quarter = Value::try_from(connections.max.div_ceil(4)).context("max_connections")?;
        table.entry("pki_dir").or_insert(within("pki")?);
        table.entry("panel_config").or_insert(within("panel.json")?);
        table.entry("edge_connections_per_address").or_insert(quarter);
        let (api, edge) = (section::<Api>(&table)?, section::<Edge>(&table)?);
        let (panel, tunnels) = (section::<Panel>(&table)?, section::<Tunnels>(&table)?);
        let acme: Acme = section(&table)?;
        acme.check()?;
        api.check()?;
        tunnels.check()?;
        edge.check()?;
        panel.check()?;
        connections.check()?;
        Ok(Self { general, acme, api, connections, edge, panel, tunnels })
    }

    /// As a configuration file.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        let Self { general, acme, api, connections, edge, panel, tunnels } = self;
        let sections = [
            toml::to_string(general),
            toml::to_string(api),
            toml::to_string(connections),
            toml::to_string(edge),
            toml::to_string(acme),
            toml::to_string(panel),
            toml::to_string(tunnels),
        ];
        let sections: Result<Vec<_>, _> = sections.into_iter().collect();
        Ok(sections.context("cannot write the settings as TOML")?.join("\n"))
    }
}

/// What a section wants of the list.
fn section<'de, T: Deserialize<'de>>(table: &Table) -> anyhow::Result<T> {
    T::deserialize(table.clone()).context("cannot use the settings")
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    fn resolve(toml: &str) -> anyhow::Result<Settings> {
        Settings::from_sources(&toml::from_str(toml)?, &Options::default())
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
    fn every_flag_is_a_setting_of_some_section() {
        const UNSET: [&str; 10] = [
            "edge_tls_cert",
            "edge_tls_key",
            "panel_tls_cert",
            "panel_tls_key",
            "panel_proxy",
            "acme_directory",
            "acme_ca",
            "acme_eab_key_id",
            "acme_profile",
            "acme_dns_hook",
        ];
        let printed: Table = toml::from_str(&resolve("").expect("defaults").to_toml().expect("TOML")).expect("TOML");
        let command = Options::augment_args(clap::Command::new("api-server"));
        let flags = command.get_arguments().map(|flag| flag.get_id().as_str()).filter(|flag| *flag != "config");
        for flag in flags {
            assert_ne!(printed.contains_key(flag), UNSET.contains(&flag), "{flag}");
        }
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
            ("issuer = \"acme\"", "acme-staging-v02"),
            ("issuer = \"acme\"\nacme_directory = \"http://ca.test/\"", "https URL"),
            ("acme_challenge = [\"carrier-pigeon\"]", "tls-alpn-01"),
            ("issuer = \"acme\"\nacme_directory = \"https://ca.test\"\nacme_challenge = [\"http-01\"]", "http_listen"),
            ("issuer = \"acme\"\nacme_directory = \"https://ca.test\"\nacme_challenge = [\"dns-01\"]", "dns_listen"),
            ("acme_wait = \"180s\"", "170s or less"),
            ("acme_dns_hook = \"hook\"", "absolute path"),
            ("dns_listen = \"127.0.0.1:53\"", "public_address"),
            ("acme_caa = \"account\"", "needs dns_listen"),
            ("issuer = \"acme\"\nacme_directory = \"https://a:b@ca.test/\"", "without user"),
            ("issuer = \"acme\"\nacme_directory = \"https://ca.test/\"\nacme_contact = [\"me\"]", "mail address"),
            ("issuer = \"acme\"\nacme_directory = \"https://ca.test/\"\nacme_certificates_per_week = 0", "1 or more"),
        ] {
            let error = format!("{:#}", resolve(toml).expect_err(toml));
            assert!(error.contains(words), "{toml}: {error}");
        }
    }
}
