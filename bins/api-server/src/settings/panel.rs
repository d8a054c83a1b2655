//! The certificates API.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::bail;
use ca_dir::KeyAlgorithm;
use panel::CommandLine;
use pki_core::pkcs12::Encryption;
use serde::{Deserialize, Serialize};

use super::api::Connections;
use super::values::{Listen, Program, Span, Text};

/// Of the panel.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Panel {
    #[serde(rename = "panel_listen")]
    pub(crate) listen: Text<Listen>,
    pub(crate) pki_dir: PathBuf,
    #[serde(rename = "panel_config")]
    pub(crate) config: PathBuf,
    #[serde(rename = "panel_tls_cert", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(rename = "panel_tls_key", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(rename = "panel_proxy", skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<IpAddr>,
    #[serde(rename = "panel_keys")]
    pub(crate) keys: Text<KeyAlgorithm>,
    #[serde(rename = "panel_p12")]
    p12: Text<Encryption>,
    #[serde(rename = "panel_capabilities")]
    pub(crate) capabilities: Vec<String>,
    #[serde(rename = "panel_enrollments_per_minute")]
    enrollments_per_minute: u32,
    #[serde(rename = "panel_letsencrypt_dir")]
    letsencrypt_dir: PathBuf,
    #[serde(rename = "panel_certbot")]
    certbot: Text<CommandLine>,
    #[serde(rename = "panel_nginx_test")]
    nginx_test: Text<Program>,
    #[serde(rename = "panel_nginx_reload")]
    nginx_reload: Text<CommandLine>,
    #[serde(rename = "panel_systemctl")]
    systemctl: Text<CommandLine>,
    #[serde(rename = "panel_renewal_timeout")]
    renewal_timeout: Text<Span>,
}

impl Panel {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            bail!("panel_tls_cert and panel_tls_key belong together: set both, or neither");
        }
        if let Some(proxy) = self.proxy {
            if !proxy.is_loopback() {
                bail!("panel_proxy is {proxy}: use a loopback address, for the headers are not protected on their way");
            }
            if let Some(address) = self.listen.0.0
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
        if let Some(name) = self.capabilities.iter().find(|name| !is_capability(name)) {
            bail!("panel_capabilities has {name:?}: use words such as identity:read");
        }
        Ok(())
    }

    /// Its keys and bundles.
    pub(crate) fn making(&self) -> panel::Making {
        panel::Making { keys: self.keys.0, encryption: self.p12.0 }
    }

    /// The programs around it.
    pub(crate) fn programs(&self) -> panel::Programs {
        let nginx = self.nginx_test.0.0.clone().map(|test| (test, self.nginx_reload.0.clone()));
        panel::Programs::new()
            .certbot(self.certbot.0.clone(), self.letsencrypt_dir.clone(), self.renewal_timeout.0.0)
            .nginx(nginx)
            .systemctl(self.systemctl.0.clone())
    }

    /// How much it takes on.
    pub(crate) fn bounds(&self, connections: &Connections) -> panel::Bounds {
        panel::Bounds { enrollments_per_minute: self.enrollments_per_minute, request: connections.request_timeout.0.0 }
    }
}

/// What its listener takes on.
pub(crate) fn limits(connections: &Connections) -> panel::Limits {
    panel::Limits {
        connections: connections.max,
        headers: connections.header_timeout.0.0,
        stall: connections.request_timeout.0.0,
        grace: connections.grace_period.0.0,
    }
}
