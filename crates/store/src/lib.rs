//! Where tunnels, identities and API keys are kept.
//!
//! [`Store`] is what callers see: look-ups, and [`Store::execute`], which takes
//! a command of the model, decides it on facts of the same transaction and
//! answers when the events are durable. Backends know rows and transactions;
//! what may happen is the model's to say.

mod memory;
mod sqlite;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use tunnel_model::{
    ApiKey, Caller, Command, Event, Facts, Identity, IdentityId, IdentityKey, KeyId, OrganizationId, Refusal, Rules,
    Scope, Tunnel, TunnelId, TunnelName, Usage, Wants, decide,
};

pub use memory::MemoryStore;
pub use sqlite::{OpenError, SCHEMA_VERSION, SqliteStore, check_copy, copy, lock_directory};
pub use tunnel_model::Timestamp;

/// A place to keep the records of the model.
///
/// Every look-up is one by an index. Nothing is filtered by who asks: that is
/// the caller's, see [`Caller::sees_tunnel`].
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Tells `observer` of every event that is committed from now on.
    fn observe(&self, observer: Arc<dyn Observer>);

    /// Decides a command and stores its events, all or none.
    ///
    /// Answers after the events are durable and the observers were told of them,
    /// which both happen also when the caller has gone. Commands that run at once
    /// end as if one had come after the other.
    ///
    /// # Errors
    ///
    /// [`ExecuteError::Refused`] changes nothing. After [`ExecuteError::Store`]
    /// nothing was acknowledged; the events are stored or not, never in part.
    async fn execute(
        &self,
        caller: Caller,
        command: Command,
        rules: &Arc<Rules>,
        now: Timestamp,
    ) -> Result<Vec<Event>, ExecuteError>;

    /// One tunnel, also one whose restore window is over.
    async fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError>;

    /// The tunnel that holds a name.
    async fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError>;

    /// A page of an organization's tunnels, oldest first.
    async fn tunnels(&self, organization: &OrganizationId, page: Page) -> Result<Vec<Tunnel>, StoreError>;

    /// One identity with its tunnel.
    async fn identity(&self, key: IdentityKey<'_>) -> Result<Option<(Identity, Tunnel)>, StoreError>;

    /// A page of an organization's identities with their tunnels, oldest first.
    async fn identities(
        &self,
        organization: &OrganizationId,
        page: Page,
    ) -> Result<Vec<(Identity, Tunnel)>, StoreError>;

    /// One API key, also a revoked one.
    async fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError>;

    /// A page of an organization's API keys, oldest first.
    async fn api_keys(&self, organization: &OrganizationId, page: Page) -> Result<Vec<ApiKey>, StoreError>;

    /// Remembers when a key was last used; may be lost in a crash.
    async fn touch_api_key(&self, id: KeyId, now: Timestamp) -> Result<(), StoreError>;

    /// Tunnels whose restore window is over at `now`, at most `limit`.
    async fn expired_tunnels(&self, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError>;

    /// Tunnels whose restore window ends after `latest`, at most `limit`.
    async fn tunnels_restorable_after(&self, latest: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError>;

    /// Forgets successes that no quota counts any more: those before `before`.
    async fn prune_uses(&self, before: Timestamp) -> Result<(), StoreError>;

    /// Puts a client certificate on record, before it is handed out.
    async fn record_client_certificate(&self, certificate: ClientCertificate) -> Result<(), StoreError>;

    /// Every client certificate on record, in no order.
    async fn client_certificates(&self) -> Result<Vec<ClientCertificate>, StoreError>;

    /// Forgets those whose life ended before `now`.
    async fn forget_client_certificates(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Puts a certificate that the edge has issued for a name of its own on record.
    async fn record_edge_certificate(&self, certificate: EdgeCertificate) -> Result<(), StoreError>;

    /// Those on record for a name, the one that ends first at the beginning.
    async fn edge_certificates(&self, name: &str) -> Result<Vec<EdgeCertificate>, StoreError>;

    /// Can it be read and written?
    async fn check(&self) -> Result<(), StoreError>;
}

/// A part of a list whose order is that of creation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Page {
    /// What comes after this place; from the beginning if there is none.
    pub after: Option<Place>,
    /// How many at most; all if there is none.
    pub limit: Option<u32>,
}

impl Page {
    /// The whole list.
    pub const ALL: Self = Self { after: None, limit: None };
}

/// Where a record stands in a list. What comes and goes elsewhere moves nothing.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// When the record was created.
    pub created_at: Timestamp,
    /// The octets of its id.
    pub id: [u8; 16],
}

/// A record with a place in its list.
pub trait Placed {
    /// Where it stands.
    fn place(&self) -> Place;
}

impl Placed for Tunnel {
    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: *self.id.as_bytes() }
    }
}

impl Placed for (Identity, Tunnel) {
    fn place(&self) -> Place {
        Place { created_at: self.0.created_at, id: *self.0.id.as_bytes() }
    }
}

impl Placed for ApiKey {
    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: *self.id.as_bytes() }
    }
}

/// Hears of what was committed: who carries traffic has to know of a revocation
/// whether or not anybody still waits for its answer.
pub trait Observer: Send + Sync {
    /// These events of one command are durable. Called in the order of the commits and
    /// before the command is answered, on the thread that writes: it must be quick,
    /// and must not ask the store.
    fn committed(&self, events: &[Event]);
}

/// Those who want to hear of what a backend commits.
#[derive(Default)]
struct Observers(RwLock<Vec<Arc<dyn Observer>>>);

impl Observers {
    fn add(&self, observer: Arc<dyn Observer>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    fn tell(&self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        for observer in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            // The others are to hear of it all the same, and those who wait for their answer.
            let told = catch_unwind(AssertUnwindSafe(|| observer.committed(events)));
            if told.is_err() {
                tracing::error!("an observer of the store panicked");
            }
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observers(..)")
    }
}

/// A certificate that the certificates API issued. Its own directory does not
/// say which key is in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// Upper-case hex.
    pub serial: String,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The last second of its life.
    pub not_after: Timestamp,
}

/// A certificate that the edge has issued for a host that it answers for itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EdgeCertificate {
    /// The host.
    pub name: String,
    /// The serial number's octets.
    pub serial: Vec<u8>,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
    /// The last second of its life.
    pub not_after: Timestamp,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The model says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The backend failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A backend that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// A row that no version of this program wrote.
    #[error("a stored {0} cannot be read")]
    Corrupt(&'static str),
    /// Pages or records are not as they were written.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// No room is left to write.
    #[error("there is no space left for the database")]
    Full,
    /// SQLite, disk or memory.
    #[error("the database failed")]
    Sqlite(#[source] rusqlite::Error),
    /// The group that a command was written in was not committed.
    #[error("the database could not commit: {0}")]
    Uncommitted(String),
}

impl StoreError {
    /// What fails, for whoever may not know more of it.
    pub fn in_short(&self) -> &'static str {
        match self {
            Self::Closed => "the store is closed",
            Self::Corrupt(_) | Self::Damaged(_) => "the database is damaged",
            Self::Full => "there is no space left for the database",
            Self::Sqlite(_) | Self::Uncommitted(_) => "the database cannot be read or written",
        }
    }
}

/// What a backend offers inside one transaction.
trait Transaction {
    fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError>;
    fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError>;
    fn identity(&self, key: IdentityKey<'_>) -> Result<Option<Identity>, StoreError>;
    fn active_keys(&self, identity: IdentityId) -> Result<Vec<ApiKey>, StoreError>;
    fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError>;
    /// Takes uses of a time to come for uses of now: the clock was ahead.
    fn rewind_uses(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError>;
    /// When the use that is `nth` uses back happened, 1 being the last one.
    fn nth_use(&self, usage: &Usage, nth: u32) -> Result<Option<Timestamp>, StoreError>;

    fn insert_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError>;
    /// Everything that changes while name and certificate stay.
    fn update_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError>;
    /// The certificate and what a signing changes with it.
    fn update_certificate(&mut self, tunnel: &Tunnel) -> Result<(), StoreError>;
    /// The name, after [`Self::update_certificate`] dropped what was for the old one.
    fn update_name(&mut self, tunnel: &Tunnel) -> Result<(), StoreError>;
    fn delete_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError>;
    fn insert_identity(&mut self, identity: &Identity) -> Result<(), StoreError>;
    fn update_identity(&mut self, identity: &Identity) -> Result<(), StoreError>;
    fn delete_identity(&mut self, identity: &Identity) -> Result<(), StoreError>;
    fn insert_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError>;
    fn update_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError>;
    fn record_use(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError>;
    /// Every certificate that was ever signed, for revocation and audit.
    fn record_issuance(&mut self, tunnel: &Tunnel, now: Timestamp) -> Result<(), StoreError>;
}

/// Load, decide, apply: the same on every backend. What a refused command leaves
/// behind are rewound uses, which are to stay.
fn run(
    transaction: &mut impl Transaction,
    caller: &Caller,
    command: Command,
    rules: &Rules,
    now: Timestamp,
) -> Result<Vec<Event>, ExecuteError> {
    let facts = load(transaction, &command.wants(caller, rules), now)?;
    let events = decide(caller, command, facts, rules, now)?;
    for event in &events {
        apply(transaction, event, now)?;
    }
    Ok(events)
}

fn load(transaction: &mut impl Transaction, wants: &Wants<'_>, now: Timestamp) -> Result<Facts, StoreError> {
    let mut facts = Facts::default();
    if let Some(id) = wants.tunnel {
        facts.tunnel = transaction.tunnel(id)?;
    }
    if let Some(key) = wants.identity
        && let Some(identity) = transaction.identity(key)?
    {
        facts.tunnel = transaction.tunnel(identity.tunnel)?;
        facts.keys = transaction.active_keys(identity.id)?;
        facts.identity = Some(identity);
    }
    if let Some(name) = wants.name {
        facts.holder = transaction.tunnel_by_name(name)?;
    }
    if let Some(id) = wants.key {
        facts.key = transaction.api_key(id)?;
    }
    if let Some((usage, nth)) = &wants.usage {
        transaction.rewind_uses(usage, now)?;
        facts.nth_use = transaction.nth_use(usage, *nth)?;
    }
    Ok(facts)
}

fn apply(transaction: &mut impl Transaction, event: &Event, now: Timestamp) -> Result<(), StoreError> {
    match event {
        Event::CertificateIssued(tunnel) => {
            transaction.update_certificate(tunnel)?;
            transaction.record_issuance(tunnel, now)?;
            transaction.record_use(&Usage::Sign(tunnel.id), now)
        }
        Event::IdentityCreated(identity) => transaction.insert_identity(identity),
        Event::IdentityDeleted(identity) => transaction.delete_identity(identity),
        Event::IdentityUpdated(identity) => transaction.update_identity(identity),
        Event::KeyCreated(key) => transaction.insert_api_key(key),
        Event::KeyRevoked(key) => transaction.update_api_key(key),
        Event::TunnelCreated(tunnel) => {
            transaction.insert_tunnel(tunnel)?;
            transaction.record_use(&Usage::Create(tunnel.organization.clone()), now)
        }
        Event::TunnelFinalized(tunnel) => transaction.delete_tunnel(tunnel),
        Event::TunnelRenamed(tunnel) => {
            transaction.update_certificate(tunnel)?;
            transaction.update_name(tunnel)
        }
        Event::SecretRotated(tunnel)
        | Event::TunnelConnected(tunnel)
        | Event::TunnelDeleted(tunnel)
        | Event::TunnelDisconnected(tunnel)
        | Event::TunnelRestored(tunnel)
        | Event::TunnelUpdated(tunnel) => transaction.update_tunnel(tunnel),
    }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
