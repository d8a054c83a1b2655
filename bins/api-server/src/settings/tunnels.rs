//! Tunnels and their certificates.

use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tunnel_model::{NamePolicy, Quota, Rules, TunnelName};

use super::values::{Span, Text};

/// What the model and the authority are told.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Tunnels {
    pub(crate) organization: String,
    pub(crate) cert_days: u32,
    creates_per_day: u32,
    signings_per_day: u32,
    restore_window: Text<Span>,
    pub(crate) sweep_interval: Text<Span>,
    reserved_names: Vec<Text<TunnelName>>,
    denied_names: Vec<Text<TunnelName>>,
}

impl Tunnels {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let is_word = |text: &str| text.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"_-".contains(&octet));
        if self.organization.is_empty() || self.organization.len() > 64 || !is_word(&self.organization) {
            bail!("organization is {:?}: use 1 to 64 letters, digits, `_` and `-`", self.organization);
        }
        if !(1..=825).contains(&self.cert_days) {
            bail!("cert_days is {}: use 1 to 825", self.cert_days);
        }
        Ok(())
    }

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
}
