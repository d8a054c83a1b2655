//! A private certificate where there is no public one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pki_core::DnsName;
use store::{Clock, Store};
use tunnel_model::{Caller, Command, Rules};

use crate::{Issuance, IssuanceError, Issued, TunnelRequest};

/// Asks one issuer, and another one where the first has not issued.
pub struct Fallback {
    first: Arc<dyn Issuance>,
    second: Arc<dyn Issuance>,
    store: Arc<dyn Store>,
    rules: Arc<Rules>,
    clock: Arc<dyn Clock>,
}

/// When the first one is to be asked again.
const AGAIN: Duration = Duration::from_secs(10 * 60);

impl Fallback {
    /// Asks `second` for what `first` does not issue, though nothing is wrong with the request.
    pub fn new(
        first: Arc<dyn Issuance>,
        second: Arc<dyn Issuance>,
        store: Arc<dyn Store>,
        rules: Arc<Rules>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { first, second, store, rules, clock }
    }

    fn for_now(&self, mut issued: Issued) -> Issued {
        issued.certificate.renew_at = Some(self.clock.now().plus(AGAIN));
        issued
    }
}

fn is_of_the_issuer(error: &IssuanceError) -> bool {
    let of_the_issuer = matches!(
        error,
        IssuanceError::Exhausted { .. }
            | IssuanceError::Failed(_)
            | IssuanceError::Pending { .. }
            | IssuanceError::Unavailable(_)
            | IssuanceError::Upstream { .. }
    );
    if of_the_issuer {
        tracing::warn!(error = error as &dyn std::error::Error, "a private certificate takes a public one's place");
    }
    of_the_issuer
}

#[async_trait]
impl Issuance for Fallback {
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError> {
        match self.first.for_tunnel(request).await {
            Err(error) if is_of_the_issuer(&error) => {
                let issued = self.for_now(self.second.for_tunnel(request).await?);
                // Its agent asks again when it is told to.
                let (id, fingerprint) = (request.tunnel.id, issued.certificate.fingerprint);
                if let Some(renew_at) = issued.certificate.renew_at {
                    let command = Command::SetRenewal { id, fingerprint, renew_at };
                    self.store.execute(Caller::System, command, &self.rules, self.clock.now()).await?;
                }
                Ok(issued)
            }
            answer => answer,
        }
    }

    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError> {
        match self.first.for_edge(host, csr_pem).await {
            Err(error) if is_of_the_issuer(&error) => Ok(self.for_now(self.second.for_edge(host, csr_pem).await?)),
            answer => answer,
        }
    }

    fn names(&self, host: &str) -> Vec<String> {
        self.first.names(host)
    }

    fn is_slow(&self) -> bool {
        self.first.is_slow()
    }
}
