//! Agents that want to serve a tunnel: who they are, and whether they may.

use std::pin::Pin;
use std::time::Duration;

use agent_proto::{Attach, Credential};
use connections::{Peer, Upgraded};
use tunnel_model::{InstanceId, KeyId, SecretHash, Status, TlsMode, Tunnel, TunnelId, TunnelName};

use crate::app::App;
use crate::error::Error;

/// An agent that may serve its tunnel.
#[derive(Debug)]
pub struct Agent {
    /// Which tunnel.
    pub tunnel: Tunnel,
    /// The API key that it came with; none with the tunnel's secret.
    pub key: Option<KeyId>,
    /// Where it is, and its account.
    pub peer: Peer,
    /// Its process.
    pub instance: InstanceId,
    /// May other instances serve beside it?
    pub shares: bool,
    /// Does its application bring key and certificate?
    pub own_certificate: bool,
    /// How long its application may take to begin an answer, if it says so.
    pub response_deadline: Option<Duration>,
}

/// A session that waits for its link.
pub struct Attached {
    /// What the log calls it.
    pub session: String,
    /// Serves the link.
    pub serve: Serve,
}

/// Serves a link until it ends.
pub type Serve = Box<dyn FnOnce(Upgraded) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Why an agent should come back later.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Busy(pub &'static str);

impl App {
    /// The tunnel that an agent names, if its credential is one for it and it can be served.
    pub(crate) async fn attachable(&self, wanted: &Attach) -> Result<(Tunnel, Option<KeyId>), Error> {
        let named = &wanted.tunnel;
        let (tunnel, key) = match &wanted.credential {
            Credential::ApiKey(presented) => {
                let (caller, key) = self.authenticate(presented).await?;
                let tunnel = self.named(named).await?.filter(|tunnel| caller.sees_tunnel(tunnel));
                (tunnel.ok_or(Error::TunnelForbidden)?, Some(key.id))
            }
            Credential::TunnelSecret(secret) => {
                let presented = SecretHash::of(secret);
                let tunnel = self.named(named).await?;
                let tunnel = tunnel.filter(|tunnel| tunnel.secret_hash.is_some_and(|hash| hash.matches(&presented)));
                (tunnel.ok_or(Error::SecretRefused)?, None)
            }
        };
        match (tunnel.tls_mode, tunnel.status) {
            (TlsMode::Edge, _) if wanted.own_certificate => {
                Err(Error::InvalidAttach("an application with its own certificate needs a passthrough tunnel"))
            }
            (_, Status::Active) => Ok((tunnel, key)),
            (_, Status::AwaitingCert) if wanted.own_certificate => Ok((tunnel, key)),
            _ => Err(Error::TunnelNotActive),
        }
    }

    /// What has the form of an id is one.
    async fn named(&self, named: &str) -> Result<Option<Tunnel>, Error> {
        if let Ok(id) = named.parse::<TunnelId>() {
            return Ok(self.store().tunnel(id).await?);
        }
        match named.parse::<TunnelName>() {
            Ok(name) => Ok(self.store().tunnel_by_name(&name).await?),
            Err(_) => Ok(None),
        }
    }

    /// Lets an agent in.
    pub(crate) fn attach(&self, agent: Agent) -> Result<Attached, Error> {
        self.data_plane().attach(agent).map_err(|busy| Error::Unavailable(Box::new(busy)))
    }
}
