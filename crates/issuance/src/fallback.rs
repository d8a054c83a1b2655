//! A private certificate where there is no public one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// What hosts of the edge have for now.
    held: Mutex<HashMap<String, Issued>>,
}

/// Hosts whose certificate is held; others get another one each time.
const MAX_HELD: usize = 16 * 1024;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
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
        Self { first, second, store, rules, clock, held: Mutex::default() }
    }

    /// One that was made before, and is good for a while.
    fn held(&self, host: &str) -> Option<Issued> {
        let later = self.clock.now().plus(DAY);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, issued| issued.certificate.expires_at > later);
        held.get(host).cloned().map(|issued| self.for_now(issued))
    }

    fn for_now(&self, mut issued: Issued) -> Issued {
        issued.certificate.renew_at = Some(self.clock.now().plus(AGAIN));
        issued
    }
}

fn is_of_the_issuer(error: &IssuanceError) -> bool {
    matches!(
        error,
        IssuanceError::Exhausted { .. }
            | IssuanceError::Failed(_)
            | IssuanceError::Pending { .. }
            | IssuanceError::Unavailable(_)
            | IssuanceError::Upstream { .. }
    )
}

fn tell(error: &IssuanceError, host: &DnsName) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, %host, "a private certificate takes a public one's place");
}

#[async_trait]
impl Issuance for Fallback {
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError> {
        match self.first.for_tunnel(request).await {
            Err(error) if is_of_the_issuer(&error) => {
                let issued = self.for_now(self.second.for_tunnel(request).await?);
                tell(&error, request.host);
                // Its agent asks again when it is told to.
                let (id, fingerprint) = (request.tunnel.id, issued.certificate.fingerprint);
                if let Some(renew_at) = issued.certificate.renew_at {
                    let command = Command::SetRenewal { id, fingerprint, renew_at };
                    let noted = self.store.execute(Caller::System, command, &self.rules, self.clock.now()).await;
                    if let Err(error) = noted {
                        // The certificate is on record, and as good as if it were.
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "cannot record when a certificate is to be renewed"
                        );
                    }
                }
                Ok(issued)
            }
            answer => answer,
        }
    }

    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError> {
        match self.first.for_edge(host, csr_pem).await {
            Err(error) if is_of_the_issuer(&error) => {
                if let Some(issued) = self.held(host.as_str()) {
                    return Ok(issued);
                }
                let issued = self.for_now(self.second.for_edge(host, csr_pem).await?);
                tell(&error, host);
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                if held.len() < MAX_HELD {
                    held.insert(host.as_str().to_owned(), issued.clone());
                }
                Ok(issued)
            }
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
