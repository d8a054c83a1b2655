//! A public authority, by ACME.
//!
//! A certificate is public as soon as it exists, so everything is decided when its order begins
//! (`begin.rs`), and whatever comes of the order is put on record (`work.rs`). Orders are stored at each
//! step and go on after a restart. What has to be done in time without being asked, `tend.rs` does.

mod begin;
mod tend;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use acme::{Budget, Client, Habits, Name, Solvers, acceptable};
use async_trait::async_trait;
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Csr, DnsName, KeyPolicy, Time};
use sha2::{Digest as _, Sha256};
use store::{CertificateFilter, Clock, Holder, Observer, OrderState, Page, Store};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tunnel_model::{
    Caller, Certificate, Command, Event, Issuer, Origin, Refusal, Rules, Timestamp, Tunnel, TunnelId, TunnelName,
};

use crate::{Issuance, IssuanceError, Issued, TunnelRequest};

/// Orders certificates of a public authority. Cheap to clone.
#[derive(Clone)]
pub struct Public(Arc<Shared>);

/// How certificates are ordered.
#[derive(Clone, Debug)]
pub struct PublicSettings {
    /// How long [`Issuance::for_tunnel`] waits for an order, before it says that it is pending.
    pub wait: Duration,
    /// How long [`Issuance::for_edge`] does: a visitor waits with it.
    pub wait_of_edge: Duration,
    /// The authority's limits.
    pub budget: Budget,
    /// Which requests the authority takes.
    pub habits: Habits,
    /// The zone of all hosts.
    pub zone: DnsName,
    /// Is there one certificate for the zone and all that is one label below it? It needs a challenge in the DNS.
    pub wildcard: bool,
}

impl PublicSettings {
    /// Those of Let's Encrypt, for hosts in `zone`.
    pub fn new(zone: DnsName) -> Self {
        Self {
            wait: Duration::from_secs(50),
            wait_of_edge: Duration::from_secs(5),
            budget: Budget::default(),
            habits: Habits::default(),
            zone,
            wildcard: false,
        }
    }
}

/// What has come of orders.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OrderStats {
    /// Orders that go on.
    pub pending: usize,
    /// Orders that came to a certificate, since the start.
    pub issued: u64,
    /// Orders that failed, by a word for why, since the start.
    pub failed: BTreeMap<&'static str, u64>,
    /// When the first of the edge's certificates ends, of those in use.
    pub edge_ends_at: Option<Timestamp>,
}

struct Shared {
    client: Client,
    solvers: Solvers,
    store: Arc<dyn Store>,
    rules: Arc<Rules>,
    clock: Arc<dyn Clock>,
    settings: PublicSettings,
    /// One order begins at a time: what the limits leave is counted and taken in one act.
    begins: tokio::sync::Mutex<()>,
    running: Mutex<HashMap<Key, Running>>,
    /// Something has changed that is to be looked at.
    changed: Notify,
    stop: watch::Sender<bool>,
    started_at: Timestamp,
    counted: Mutex<OrderStats>,
    /// Certificates that could not be revoked: how often it was tried, and when it is again.
    revocations: Mutex<HashMap<[u8; 32], (u32, Timestamp)>>,
    /// When the account was last made anew, because the authority had forgotten it.
    renewed_account_at: Mutex<Option<Timestamp>>,
}

/// For whom an order is; one at a time.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Key {
    Tunnel(TunnelId, TunnelName),
    Edge(String),
}

/// An order that is being worked on.
struct Running {
    order: [u8; 16],
    done: Done,
    task: AbortHandle,
    /// How often another key has taken its place.
    switches: u32,
}

/// How an order goes on, for all who wait for it.
type Done = watch::Receiver<Progress>;

/// How far an order is.
#[derive(Clone, Debug)]
enum Progress {
    /// The authority is being asked.
    Asking,
    /// It said something, and is asked again later.
    Waiting { words: String, until: Timestamp },
    /// It has ended.
    Ended(Result<Issued, Failed>),
}

/// Why an order has not come to a certificate.
#[derive(Clone, Debug)]
enum Failed {
    /// Whoever sent the request can mend it.
    Request(String),
    /// Its tunnel is not what it was.
    Refused(Refusal),
    /// The authority says so.
    Authority { words: String, retry_after: Duration },
}

/// When whoever asked for an order that goes on is to ask again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

impl Public {
    /// Orders through `client`, proves names by `solvers`, and puts everything on record in `store`.
    pub fn new(
        client: Client,
        solvers: Solvers,
        store: Arc<dyn Store>,
        rules: Arc<Rules>,
        clock: Arc<dyn Clock>,
        settings: PublicSettings,
    ) -> Self {
        let started_at = clock.now();
        let this = Self(Arc::new(Shared {
            client,
            solvers,
            store,
            rules,
            clock,
            settings,
            begins: tokio::sync::Mutex::new(()),
            running: Mutex::default(),
            changed: Notify::new(),
            stop: watch::Sender::new(false),
            started_at,
            counted: Mutex::default(),
            revocations: Mutex::default(),
            renewed_account_at: Mutex::default(),
        }));
        this.0.store.observe(Arc::new(GivenUp(Arc::downgrade(&this.0))));
        this
    }

    /// The latest certificate for the same names and key, if it is good, and when it is to be renewed.
    async fn issued_before(&self, wanted: &begin::Wanted) -> Result<Option<(Issued, Timestamp)>, IssuanceError> {
        let store = &self.0.store;
        let order = store.latest_issued_order(&wanted.holder, Some(wanted.key)).await?;
        let order = order.filter(|order| order.names == begin::texts(&wanted.names) && self.0.is_ours(order));
        let Some(OrderState::Issued { fingerprint, chain, renew_at, .. }) = order.map(|order| order.state) else {
            return Ok(None);
        };
        let filter = CertificateFilter { fingerprint: Some(fingerprint), ..CertificateFilter::default() };
        let is_revoked = store.certificates(&filter, Page::ALL).await?.iter().any(|one| one.revoked_at.is_some());
        let now = self.0.now();
        let issued = issued(&chain, renew_at).filter(|issued| now < issued.certificate.expires_at && !is_revoked);
        Ok(issued.map(|issued| (issued, renew_at)))
    }

    /// Of several agents with keys of their own, the tunnel shows the certificate of the one that asked last.
    async fn make_current(
        &self,
        wanted: &begin::Wanted,
        tunnel: &Tunnel,
        issued: &Issued,
    ) -> Result<(), IssuanceError> {
        let current = tunnel.certificate.as_ref().map(|certificate| certificate.fingerprint);
        if current == Some(issued.certificate.fingerprint) {
            return Ok(());
        }
        let origin = Origin {
            issuer: Issuer::Acme,
            requested_by: wanted.caller.key(),
            key: wanted.key,
            not_before: issued.not_before,
            profile: None,
        };
        let (name, certificate) = (tunnel.name.clone(), issued.certificate.clone());
        let command = Command::FinishOrder { id: tunnel.id, name, certificate, origin };
        self.0.store.execute(Caller::System, command, &self.0.rules, self.0.now()).await?;
        Ok(())
    }

    /// Begins an order, or joins it; what comes of it, if it comes within `wait`.
    async fn obtain(&self, wanted: begin::Wanted, wait: Duration) -> Result<Issued, IssuanceError> {
        let mut done = self.begin(wanted).await?;
        let latest = self.0.now().plus(wait);
        let is_worth_waiting = |progress: &Progress| match progress {
            Progress::Asking => true,
            Progress::Waiting { until, .. } => *until <= latest,
            Progress::Ended(_) => false,
        };
        let mut stopping = self.0.stop.subscribe();
        tokio::select! {
            _ = timeout(wait, done.wait_for(|progress| !is_worth_waiting(progress))) => {}
            _ = stopping.wait_for(|stops| *stops) => {}
        }
        let progress = done.borrow().clone();
        match progress {
            Progress::Ended(outcome) => outcome.map_err(IssuanceError::from),
            Progress::Asking => Err(IssuanceError::Pending { words: None, retry_after: ASK_AGAIN }),
            Progress::Waiting { words, until } => {
                let retry_after = until.since(self.0.now()).max(ASK_AGAIN);
                Err(IssuanceError::Pending { words: Some(words), retry_after })
            }
        }
    }

    /// What has come of orders.
    pub fn stats(&self) -> OrderStats {
        OrderStats { pending: self.0.running().len(), ..self.0.counted().clone() }
    }

    /// Nobody is kept waiting any more; what was ordered goes on at the next start.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
    }
}

/// Names that are given up: `tend` looks at once.
struct GivenUp(Weak<Shared>);

impl Observer for GivenUp {
    fn committed(&self, events: &[Event]) {
        let is_it = |event: &Event| matches!(event, Event::TunnelFinalized(_) | Event::TunnelRenamed(_));
        if events.iter().any(is_it)
            && let Some(shared) = self.0.upgrade()
        {
            shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn revocations(&self) -> MutexGuard<'_, HashMap<[u8; 32], (u32, Timestamp)>> {
        self.revocations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self) -> MutexGuard<'_, OrderStats> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stored chain as it is handed out.
fn issued(chain: &str, renew_at: Timestamp) -> Option<Issued> {
    let mut certificates = pki_core::certificates_from_pem(chain.as_bytes()).ok()?.into_iter();
    let der = certificates.next()?;
    let chain_pem = certificates.map(|der| pki_core::certificate_to_pem(&der)).collect();
    let leaf = pki_core::Certificate::from_der(&der).ok()?;
    let certificate = Certificate {
        pem: pki_core::certificate_to_pem(&der),
        fingerprint: *leaf.fingerprint().as_bytes(),
        serial: leaf.serial().to_vec(),
        expires_at: crate::private::timestamp(leaf.not_after()),
        renew_at: Some(renew_at),
    };
    let not_before = crate::private::timestamp(leaf.not_before());
    Some(Issued { certificate, not_before, chain_pem, der })
}

#[async_trait]
impl Issuance for Public {
    async fn for_tunnel(&self, request: TunnelRequest<'_>) -> Result<Issued, IssuanceError> {
        let TunnelRequest { caller, tunnel, host, csr_pem } = request;
        let csr = Csr::from_pem(csr_pem)?;
        csr.clone().verify(&AwsLc, &KeyPolicy::new())?.approve_host(host)?;
        let habits = self.0.settings.habits;
        acceptable(&csr, host, habits).map_err(|error| IssuanceError::Unacceptable(error.to_string()))?;
        let key = Sha256::digest(csr.spki()).into();
        let holder = Holder::Tunnel {
            id: tunnel.id,
            name: tunnel.name.clone(),
            organization: Some(tunnel.organization.clone()),
        };
        let wanted = begin::Wanted { holder, names: vec![Name::host(host.clone())], csr, key, caller: caller.clone() };
        // An agent that starts anew with the key that it has gets what it has.
        let before = self.issued_before(&wanted).await?;
        if let Some((issued, _)) = &before {
            self.make_current(&wanted, tunnel, issued).await?;
        }
        match before {
            Some((issued, renew_at)) if self.0.now() < renew_at => Ok(issued),
            Some((issued, _)) => {
                Ok(self.obtain(wanted, self.0.settings.wait).await.or_else(|error| error.instead(issued))?)
            }
            None => self.obtain(wanted, self.0.settings.wait).await,
        }
    }

    async fn for_edge(&self, host: &DnsName, csr_pem: &[u8]) -> Result<Issued, IssuanceError> {
        let names = self.names(host.as_str());
        let csr = Csr::from_pem(csr_pem)?;
        let key = Sha256::digest(csr.spki()).into();
        let holder = Holder::Edge(names.first().cloned().unwrap_or_default());
        let names = names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
        let names = names.map_err(|error: pki_core::DnsNameError| IssuanceError::Failed(Box::new(error)))?;
        let wanted = begin::Wanted { holder, names, csr, key, caller: Caller::System };
        // The next one comes by itself, see `tend.rs`; until then this one is good.
        match self.issued_before(&wanted).await? {
            Some((issued, _)) => Ok(issued),
            None => self.obtain(wanted, self.0.settings.wait_of_edge).await,
        }
    }

    fn names(&self, host: &str) -> Vec<String> {
        let zone = self.0.settings.zone.as_str();
        let is_covered = |host: &str| {
            let label = host.strip_suffix(zone).and_then(|rest| rest.strip_suffix('.'));
            host == zone || label.is_some_and(|label| !label.contains('.'))
        };
        if self.0.settings.wildcard && is_covered(host) {
            vec![zone.to_owned(), format!("*.{zone}")]
        } else {
            vec![host.to_owned()]
        }
    }

    fn is_slow(&self) -> bool {
        true
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Public").field("client", self.0.client.settings()).finish_non_exhaustive()
    }
}

impl IssuanceError {
    /// What there is still good where the next one cannot be had now.
    fn instead(self, issued: Issued) -> Result<Issued, Self> {
        match self {
            Self::Exhausted { .. }
            | Self::Pending { .. }
            | Self::Refused(Refusal::SignQuota { .. })
            | Self::Unacceptable(_)
            | Self::Unavailable(_)
            | Self::Upstream { .. } => Ok(issued),
            _ => Err(self),
        }
    }
}

impl Key {
    fn of(holder: &Holder) -> Self {
        match holder {
            Holder::Tunnel { id, name, .. } => Self::Tunnel(*id, name.clone()),
            Holder::Edge(host) => Self::Edge(host.clone()),
        }
    }
}

impl From<Failed> for IssuanceError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Request(words) => Self::Unacceptable(words),
            Failed::Refused(refusal) => Self::Refused(refusal),
            Failed::Authority { words, retry_after } => Self::Upstream { words, retry_after },
        }
    }
}

/// Seconds since the Unix epoch, as the authority's library counts.
fn time(timestamp: Timestamp) -> Time {
    Time::from_unix(timestamp.micros().div_euclid(1_000_000))
}
