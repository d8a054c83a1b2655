//! Who issues certificates for public hosts, and what a public authority has to know or to see.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use acme::ChallengeKind;
use anyhow::bail;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::values::{Listen, Span, Text};

/// Of the issuer, and of the ports that prove names.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Acme {
    pub(crate) issuer: Issuer,
    pub(crate) issuer_fallback: Fallback,
    #[serde(rename = "acme_directory", skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<String>,
    #[serde(rename = "acme_ca", skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(rename = "acme_contact")]
    pub(crate) contacts: Vec<String>,
    #[serde(rename = "acme_agree_terms")]
    pub(crate) agree_terms: bool,
    #[serde(rename = "acme_eab_key_id", skip_serializing_if = "Option::is_none")]
    pub(crate) eab_key_id: Option<String>,
    #[serde(rename = "acme_profile", skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    #[serde(rename = "acme_challenge")]
    challenges: Vec<Text<ChallengeKind>>,
    #[serde(rename = "acme_dns_hook", skip_serializing_if = "Option::is_none")]
    pub(crate) dns_hook: Option<PathBuf>,
    #[serde(rename = "acme_wait")]
    pub(crate) wait: Text<Span>,
    #[serde(rename = "acme_caa")]
    pub(crate) caa: CaaPolicy,
    #[serde(rename = "acme_certificates_per_week")]
    pub(crate) certificates_per_week: u32,
    http_listen: Text<Listen>,
    dns_listen: Text<Listen>,
    #[serde(rename = "public_address")]
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(rename = "dns_name_server")]
    pub(crate) name_servers: Vec<String>,
}

/// Who issues certificates for public hosts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Issuer {
    /// The deployment's own authority, whose root clients must trust
    Private,
    /// A public authority, by ACME
    Acme,
}

/// What happens where the public authority issues nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fallback {
    /// There is no certificate
    Refuse,
    /// The deployment's own authority issues one, which strangers do not trust
    Private,
}

/// Whom the zone's name server lets issue.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CaaPolicy {
    /// Everybody: no CAA record
    None,
    /// The public authority, for anybody who proves a name
    Authority,
    /// The public authority, for this server's account only
    Account,
}

impl Acme {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        const LONGEST_WAIT: Duration = Duration::from_secs(170);

        if self.dns_address().is_some() && self.addresses.is_empty() {
            bail!("dns_listen needs public_address: the addresses at which visitors reach this server");
        }
        if self.caa != CaaPolicy::None && self.dns_address().is_none() {
            bail!("acme_caa needs dns_listen: where the zone's DNS is elsewhere, make the CAA record there");
        }
        if self.dns_hook.as_ref().is_some_and(|path| !path.is_absolute()) {
            bail!("acme_dns_hook: use an absolute path");
        }
        if self.wait.0.0 > LONGEST_WAIT {
            bail!("acme_wait is {}: use 170s or less, since published clients wait 180s", self.wait.0);
        }
        if self.issuer == Issuer::Private {
            return Ok(());
        }
        let Some(directory) = &self.directory else {
            bail!(
                "issuer acme needs acme_directory, such as https://acme-staging-v02.api.letsencrypt.org/directory \
                 to try it and https://acme-v02.api.letsencrypt.org/directory then"
            );
        };
        let host = directory.strip_prefix("https://").and_then(|rest| rest.split('/').next());
        match host {
            Some(host) if host.contains('@') => bail!("acme_directory: use a URL without user and password"),
            Some(host) if !host.is_empty() => {}
            _ => bail!("acme_directory is {directory:?}: use an https URL"),
        }
        let is_address = |contact: &&String| {
            let address = contact.strip_prefix("mailto:").unwrap_or(contact);
            let is_plain = |octet: u8| octet.is_ascii_graphic() && !matches!(octet, b'?' | b',' | b'<' | b'>');
            address.split('@').count() == 2 && address.bytes().all(is_plain)
        };
        if let Some(contact) = self.contacts.iter().find(|contact| !is_address(contact)) {
            bail!("acme_contact: {contact:?} is not a mail address such as you@example.com");
        }
        if self.certificates_per_week == 0 {
            bail!("acme_certificates_per_week is 0: use 1 or more");
        }
        for kind in self.challenges.iter().map(|kind| kind.0) {
            if kind == ChallengeKind::Http01 && self.http_address().is_none() {
                bail!("acme_challenge http-01 needs http_listen, to which port 80 of the public addresses leads");
            }
            if kind == ChallengeKind::Dns01 && !self.has_dns() {
                bail!("acme_challenge dns-01 needs dns_listen, with the zone delegated to it, or acme_dns_hook");
            }
        }
        Ok(())
    }

    pub(crate) fn http_address(&self) -> Option<SocketAddr> {
        self.http_listen.0.0
    }

    pub(crate) fn dns_address(&self) -> Option<SocketAddr> {
        self.dns_listen.0.0
    }

    fn has_dns(&self) -> bool {
        self.dns_address().is_some() || self.dns_hook.is_some()
    }

    /// The challenges that are answered, the most wanted first.
    pub(crate) fn challenges(&self) -> Vec<ChallengeKind> {
        if !self.challenges.is_empty() {
            return self.challenges.iter().map(|kind| kind.0).collect();
        }
        let mut kinds = Vec::new();
        if self.has_dns() {
            kinds.push(ChallengeKind::Dns01);
        }
        kinds.push(ChallengeKind::TlsAlpn01);
        if self.http_address().is_some() {
            kinds.push(ChallengeKind::Http01);
        }
        kinds
    }

    /// Let's Encrypt takes a name that stands in the common name alone; others are not known to.
    pub(crate) fn takes_common_names(&self) -> bool {
        let host = self.directory.as_deref().and_then(|url| url.strip_prefix("https://"));
        let host = host.and_then(|rest| rest.split(['/', ':']).next());
        host.is_some_and(|host| host.ends_with(".letsencrypt.org"))
    }
}
