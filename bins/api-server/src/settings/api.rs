//! REST, and what all ports ask of connections.

use std::net::SocketAddr;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::values::{Span, Text};

/// Of the REST port and the one for metrics.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Api {
    #[serde(rename = "api_listen")]
    pub(crate) listen: SocketAddr,
    #[serde(rename = "api_allow_plaintext")]
    allow_plaintext: bool,
    #[serde(rename = "metrics_listen")]
    pub(crate) metrics: SocketAddr,
    max_body: usize,
}

/// Of every port.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Connections {
    #[serde(rename = "max_connections")]
    pub(crate) max: usize,
    pub(crate) header_timeout: Text<Span>,
    pub(crate) request_timeout: Text<Span>,
    pub(crate) grace_period: Text<Span>,
}

impl Api {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() && !self.allow_plaintext {
            bail!(
                "api_listen is {}, which others reach in plain HTTP: use a loopback address behind a proxy, \
                 or say --api-allow-plaintext",
                self.listen
            );
        }
        // A request of the largest size, escaped as JSON, must fit.
        if self.max_body < 24 * 1024 || self.max_body > 16 * 1024 * 1024 {
            bail!("max_body is {}: use 24576 to 16777216 octets", self.max_body);
        }
        Ok(())
    }

    pub(crate) fn limits(&self, connections: &Connections) -> api::Limits {
        api::Limits {
            body: self.max_body,
            connections: connections.max,
            per_address: connections.max,
            headers: connections.header_timeout.0.0,
            request: connections.request_timeout.0.0,
            stall: connections.request_timeout.0.0,
            grace: connections.grace_period.0.0,
        }
    }
}

impl Connections {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.max == 0 {
            bail!("max_connections is 0: use 1 or more");
        }
        Ok(())
    }
}
