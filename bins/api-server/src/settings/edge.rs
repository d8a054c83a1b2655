//! The data plane.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tunnel_model::Zone;

use super::api::Connections;
use super::values::{Span, Text};

/// Of the edge.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Edge {
    #[serde(rename = "edge_listen")]
    pub(crate) listen: SocketAddr,
    #[serde(rename = "edge_tls_cert", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(rename = "edge_tls_key", skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(rename = "edge_proxy_protocol")]
    pub(crate) proxy_protocol: bool,
    #[serde(rename = "edge_connections_per_address")]
    connections_per_address: usize,
    #[serde(rename = "edge_proxies")]
    proxies: Vec<IpAddr>,
    #[serde(rename = "edge_body_memory")]
    body_memory: usize,
    response_deadline: Text<Span>,
}

impl Edge {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            bail!("edge_tls_cert and edge_tls_key belong together: set both, or neither");
        }
        if self.connections_per_address == 0 {
            bail!("edge_connections_per_address is 0: use 1 or more");
        }
        // One request of the largest size must fit.
        if self.body_memory < 32 * 1024 * 1024 {
            bail!("edge_body_memory is {}: use 33554432 octets or more", self.body_memory);
        }
        if self.response_deadline.0.0 < Duration::from_secs(1) {
            bail!("response_deadline is {}: use 1s or more", self.response_deadline.0);
        }
        Ok(())
    }

    pub(crate) fn settings(&self, zone: Zone, connections: &Connections) -> edge::Settings {
        // The agent's own 504 is to come first.
        const AFTER_THE_AGENT: Duration = Duration::from_secs(5);
        let mut edge = edge::Settings::new(zone);
        edge.places.connections = connections.max;
        edge.places.per_address = self.connections_per_address;
        edge.places.exempt.clone_from(&self.proxies);
        edge.proxy_protocol = self.proxy_protocol;
        edge.visitor.buffered = self.body_memory;
        edge.response_deadline = self.response_deadline.0.0;
        edge.live.reply_time = self.response_deadline.0.0 + AFTER_THE_AGENT;
        edge.grace = connections.grace_period.0.0;
        edge
    }
}
