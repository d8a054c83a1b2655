//! Where tunnels, identities and API keys are kept.
//!
//! [`Store`] is what callers see, a trait for each subject: look-ups, and [`Commands`], which take
//! a command of the model, decide it on facts of the same transaction and
//! answer when the events are durable. Backends know rows and transactions;
//! what may happen is the model's to say.

mod certificates;
mod clock;
mod decide;
mod error;
mod memory;
mod observer;
mod orders;
mod page;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use tunnel_model::{
    ApiKey, Caller, Command, Event, Identity, IdentityKey, KeyId, OrganizationId, Rules, Tunnel, TunnelId, TunnelName,
};

pub use certificates::{CertificateFilter, ClientCertificate, Holder, Host, IssuedCertificate};
pub use clock::{Clock, SystemClock};
pub use error::{ExecuteError, StoreError};
pub use memory::MemoryStore;
pub use observer::Observer;
pub use orders::{Ask, Order, OrderState, Ordered};
pub use page::{Page, Place, Placed};
pub use sqlite::{OpenError, Records, SCHEMA_VERSION, SqliteStore, check_copy, copy, lock_directory};
pub use tunnel_model::Timestamp;

/// A place to keep the records of the model, and what was issued.
///
/// Every look-up is one by an index. Nothing is filtered by who asks: that is
/// the caller's, see [`Caller::sees_tunnel`]. Whoever needs one subject takes its trait:
/// `Arc<dyn Store>` becomes `Arc<dyn ClientCertificates>` by itself.
#[async_trait]
pub trait Store: Commands + Tunnels + Identities + ApiKeys + ClientCertificates + IssuedCertificates + Orders {
    /// Can it be read and written?
    async fn check(&self) -> Result<(), StoreError>;
}

/// Changes, which the model decides.
#[async_trait]
pub trait Commands: Send + Sync + 'static {
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

    /// Forgets successes that no quota counts any more: those before `before`.
    async fn prune_uses(&self, before: Timestamp) -> Result<(), StoreError>;
}

/// Look-ups of tunnels.
#[async_trait]
pub trait Tunnels: Send + Sync + 'static {
    /// One tunnel, also one whose restore window is over.
    async fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError>;

    /// The tunnel that holds a name.
    async fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError>;

    /// A page of an organization's tunnels, oldest first.
    async fn tunnels(&self, organization: &OrganizationId, page: Page) -> Result<Vec<Tunnel>, StoreError>;

    /// Tunnels whose restore window is over at `now`, at most `limit`.
    async fn expired_tunnels(&self, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError>;

    /// Tunnels whose restore window ends after `latest`, at most `limit`.
    async fn tunnels_restorable_after(&self, latest: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError>;
}

/// Look-ups of identities.
#[async_trait]
pub trait Identities: Send + Sync + 'static {
    /// One identity with its tunnel.
    async fn identity(&self, key: IdentityKey<'_>) -> Result<Option<(Identity, Tunnel)>, StoreError>;

    /// A page of an organization's identities with their tunnels, oldest first.
    async fn identities(
        &self,
        organization: &OrganizationId,
        page: Page,
    ) -> Result<Vec<(Identity, Tunnel)>, StoreError>;
}

/// API keys.
#[async_trait]
pub trait ApiKeys: Send + Sync + 'static {
    /// One API key, also a revoked one.
    async fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError>;

    /// A page of an organization's API keys, oldest first.
    async fn api_keys(&self, organization: &OrganizationId, page: Page) -> Result<Vec<ApiKey>, StoreError>;

    /// Remembers when a key was last used; may be lost in a crash.
    async fn touch_api_key(&self, id: KeyId, now: Timestamp) -> Result<(), StoreError>;
}

/// What the certificates API has issued.
#[async_trait]
pub trait ClientCertificates: Send + Sync + 'static {
    /// Puts a client certificate on record, before it is handed out.
    async fn record_client_certificate(&self, certificate: ClientCertificate) -> Result<(), StoreError>;

    /// Every client certificate on record, in no order.
    async fn client_certificates(&self) -> Result<Vec<ClientCertificate>, StoreError>;

    /// Forgets those whose life ended before `now`.
    async fn forget_client_certificates(&self, now: Timestamp) -> Result<(), StoreError>;
}

/// Every certificate of a public host that somebody may hold.
#[async_trait]
pub trait IssuedCertificates: Send + Sync + 'static {
    /// Puts a certificate that no tunnel has asked for on record, before anybody sees it. Those of
    /// tunnels come with their event.
    async fn record_certificate(&self, certificate: IssuedCertificate) -> Result<(), StoreError>;

    /// A page of those that are wanted, in the order in which they were issued.
    async fn certificates(&self, filter: &CertificateFilter, page: Page) -> Result<Vec<IssuedCertificate>, StoreError>;

    /// Forgets those whose life ended before `before`.
    async fn forget_certificates(&self, before: Timestamp) -> Result<(), StoreError>;

    /// Notes that a certificate was revoked. The first time counts.
    async fn note_revocation(&self, fingerprint: [u8; 32], now: Timestamp) -> Result<(), StoreError>;

    /// When the first of the certificates ends that tunnels have, of those that have not ended at `now`.
    async fn next_certificate_end(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError>;
}

/// What was ordered of a public authority.
#[async_trait]
pub trait Orders: Send + Sync + 'static {
    /// Puts an order on record, or what is new of it.
    async fn record_order(&self, order: Order) -> Result<(), StoreError>;

    /// The latest order for a tunnel, whatever its name was, or for a host of the edge.
    async fn latest_order(&self, holder: &Holder) -> Result<Option<Order>, StoreError>;

    /// The latest order for a holder that has come to a certificate, for this key if one is given, whatever
    /// others came to since.
    async fn latest_issued_order(&self, holder: &Holder, key: Option<[u8; 32]>) -> Result<Option<Order>, StoreError>;

    /// Those that go on.
    async fn pending_orders(&self) -> Result<Vec<Order>, StoreError>;

    /// Those whose certificate is good at `now`: on record, not ended, not revoked. By their ids, after `after`,
    /// at most `limit`.
    async fn issued_orders(
        &self,
        now: Timestamp,
        after: Option<[u8; 16]>,
        limit: u32,
    ) -> Result<Vec<Order>, StoreError>;

    /// Those that were decided at `since` or later, in no order, as limits count them.
    async fn ordered_since(&self, since: Timestamp) -> Result<Vec<Ordered>, StoreError>;

    /// Forgets those that were decided before `before` and have ended.
    async fn forget_orders(&self, before: Timestamp) -> Result<(), StoreError>;
}
