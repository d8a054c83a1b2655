//! Records in memory, for tests and for trying things out. Nothing survives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use tunnel_model::{
    ApiKey, Caller, Command, Event, Identity, IdentityId, IdentityKey, Issuer, KeyId, OrganizationId, Rules, Scope,
    Timestamp, Tunnel, TunnelId, TunnelName, Usage,
};

use crate::decide::{Transaction, run};
use crate::observer::{Observer, Observers};
use crate::{
    ApiKeys, CertificateFilter, ClientCertificate, ClientCertificates, Commands, ExecuteError, Holder, Identities,
    IssuedCertificate, IssuedCertificates, Order, OrderState, Ordered, Orders, Page, Placed, Store, StoreError,
    Tunnels,
};

/// A store without a disk.
#[derive(Debug, Default)]
pub struct MemoryStore {
    observers: Observers,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tunnels: BTreeMap<TunnelId, Tunnel>,
    names: BTreeMap<TunnelName, TunnelId>,
    identities: BTreeMap<IdentityId, Identity>,
    api_keys: BTreeMap<KeyId, ApiKey>,
    uses: BTreeMap<Usage, Vec<Timestamp>>,
    client_certificates: BTreeMap<String, ClientCertificate>,
    certificates: BTreeMap<[u8; 32], IssuedCertificate>,
    orders: BTreeMap<[u8; 16], Order>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock would have been in the model, before any change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Commands for MemoryStore {
    fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.add(observer);
    }

    async fn execute(
        &self,
        caller: Caller,
        command: Command,
        rules: &Arc<Rules>,
        now: Timestamp,
    ) -> Result<Vec<Event>, ExecuteError> {
        // The lock is what keeps the observers' order.
        let mut state = self.state();
        let events = run(&mut *state, &caller, command, rules, now)?;
        self.observers.tell(&events);
        Ok(events)
    }

    async fn prune_uses(&self, before: Timestamp) -> Result<(), StoreError> {
        self.state().uses.retain(|_, times| {
            times.retain(|time| *time >= before);
            !times.is_empty()
        });
        Ok(())
    }
}

#[async_trait]
impl Tunnels for MemoryStore {
    async fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        Transaction::tunnel(&*self.state(), id)
    }

    async fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError> {
        Transaction::tunnel_by_name(&*self.state(), name)
    }

    async fn tunnels(&self, organization: &OrganizationId, page: Page) -> Result<Vec<Tunnel>, StoreError> {
        let state = self.state();
        Ok(page_of(page, state.tunnels.values().filter(|tunnel| tunnel.organization == *organization).cloned()))
    }

    async fn expired_tunnels(&self, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError> {
        let state = self.state();
        let expired = state.tunnels.values().filter(|tunnel| tunnel.is_expired(now)).map(|tunnel| tunnel.id);
        Ok(expired.take(limit as usize).collect())
    }

    async fn tunnels_restorable_after(&self, latest: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError> {
        let state = self.state();
        let is_late = |tunnel: &&Tunnel| tunnel.restore_deadline.is_some_and(|deadline| deadline > latest);
        let late = state.tunnels.values().filter(is_late).map(|tunnel| tunnel.id);
        Ok(late.take(limit as usize).collect())
    }
}

#[async_trait]
impl Identities for MemoryStore {
    async fn identity(&self, key: IdentityKey<'_>) -> Result<Option<(Identity, Tunnel)>, StoreError> {
        let state = self.state();
        let identity = Transaction::identity(&*state, key)?;
        Ok(identity.and_then(|identity| state.tunnels.get(&identity.tunnel).cloned().map(|tunnel| (identity, tunnel))))
    }

    async fn identities(
        &self,
        organization: &OrganizationId,
        page: Page,
    ) -> Result<Vec<(Identity, Tunnel)>, StoreError> {
        let state = self.state();
        let identities = state
            .identities
            .values()
            .filter(|identity| identity.organization == *organization)
            .filter_map(|identity| Some((identity.clone(), state.tunnels.get(&identity.tunnel)?.clone())));
        Ok(page_of(page, identities))
    }
}

#[async_trait]
impl ApiKeys for MemoryStore {
    async fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        Transaction::api_key(&*self.state(), id)
    }

    async fn api_keys(&self, organization: &OrganizationId, page: Page) -> Result<Vec<ApiKey>, StoreError> {
        let state = self.state();
        Ok(page_of(page, state.api_keys.values().filter(|key| key.organization == *organization).cloned()))
    }

    async fn touch_api_key(&self, id: KeyId, now: Timestamp) -> Result<(), StoreError> {
        if let Some(key) = self.state().api_keys.get_mut(&id) {
            key.last_used_at = Some(now);
        }
        Ok(())
    }
}

#[async_trait]
impl ClientCertificates for MemoryStore {
    async fn record_client_certificate(&self, certificate: ClientCertificate) -> Result<(), StoreError> {
        self.state().client_certificates.insert(certificate.serial.clone(), certificate);
        Ok(())
    }

    async fn client_certificates(&self) -> Result<Vec<ClientCertificate>, StoreError> {
        Ok(self.state().client_certificates.values().cloned().collect())
    }

    async fn forget_client_certificates(&self, now: Timestamp) -> Result<(), StoreError> {
        self.state().client_certificates.retain(|_, certificate| certificate.not_after >= now);
        Ok(())
    }
}

#[async_trait]
impl IssuedCertificates for MemoryStore {
    async fn record_certificate(&self, certificate: IssuedCertificate) -> Result<(), StoreError> {
        Transaction::record_certificate(&mut *self.state(), &certificate)
    }

    async fn certificates(&self, filter: &CertificateFilter, page: Page) -> Result<Vec<IssuedCertificate>, StoreError> {
        let state = self.state();
        let wanted = state.certificates.values().filter(|certificate| filter.matches(certificate));
        Ok(page_of(page, wanted.cloned()))
    }

    async fn forget_certificates(&self, before: Timestamp) -> Result<(), StoreError> {
        self.state().certificates.retain(|_, certificate| certificate.not_after >= before);
        Ok(())
    }

    async fn note_revocation(&self, fingerprint: [u8; 32], now: Timestamp) -> Result<(), StoreError> {
        if let Some(certificate) = self.state().certificates.get_mut(&fingerprint) {
            certificate.revoked_at.get_or_insert(now);
        }
        Ok(())
    }

    async fn next_certificate_end(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let state = self.state();
        let certificates = state.tunnels.values().filter_map(|tunnel| tunnel.certificate.as_ref());
        Ok(certificates.map(|certificate| certificate.expires_at).filter(|end| *end >= now).min())
    }
}

#[async_trait]
impl Orders for MemoryStore {
    async fn record_order(&self, order: Order) -> Result<(), StoreError> {
        self.state().orders.insert(order.id, order);
        Ok(())
    }

    async fn latest_order(&self, holder: &Holder) -> Result<Option<Order>, StoreError> {
        let state = self.state();
        let orders = state.orders.values().filter(|order| is_same(&order.holder, holder));
        Ok(orders.max_by_key(|order| order.begun_at).cloned())
    }

    async fn latest_issued_order(&self, holder: &Holder, key: Option<[u8; 32]>) -> Result<Option<Order>, StoreError> {
        let state = self.state();
        let is_issued =
            |order: &&Order| matches!(order.state, OrderState::Issued { .. }) && key.is_none_or(|key| key == order.key);
        let orders = state.orders.values().filter(|order| is_same(&order.holder, holder)).filter(is_issued);
        Ok(orders.max_by_key(|order| order.begun_at).cloned())
    }

    async fn pending_orders(&self) -> Result<Vec<Order>, StoreError> {
        let state = self.state();
        Ok(state.orders.values().filter(|order| order.state == OrderState::Pending).cloned().collect())
    }

    async fn issued_orders(
        &self,
        now: Timestamp,
        after: Option<[u8; 16]>,
        limit: u32,
    ) -> Result<Vec<Order>, StoreError> {
        let state = self.state();
        let is_good = |order: &&Order| match &order.state {
            OrderState::Issued { fingerprint, .. } => {
                let certificate = state.certificates.get(fingerprint);
                certificate.is_some_and(|found| found.not_after >= now && found.revoked_at.is_none())
            }
            OrderState::Pending | OrderState::Failed { .. } => false,
        };
        let orders = state.orders.values().filter(|order| after.is_none_or(|after| order.id > after));
        Ok(orders.filter(is_good).take(limit as usize).cloned().collect())
    }

    async fn ordered_since(&self, since: Timestamp) -> Result<Vec<Ordered>, StoreError> {
        let state = self.state();
        Ok(state.orders.values().filter(|order| order.begun_at >= since).map(Order::counted).collect())
    }

    async fn forget_orders(&self, before: Timestamp) -> Result<(), StoreError> {
        self.state().orders.retain(|_, order| order.begun_at >= before || order.state == OrderState::Pending);
        Ok(())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn check(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The same tunnel, whatever its name, or the same host.
fn is_same(one: &Holder, other: &Holder) -> bool {
    match (one, other) {
        (Holder::Tunnel { id, .. }, Holder::Tunnel { id: other, .. }) => id == other,
        (Holder::Edge(host), Holder::Edge(other)) => host == other,
        _ => false,
    }
}

fn page_of<T: Placed>(page: Page, records: impl Iterator<Item = T>) -> Vec<T> {
    let mut records: Vec<_> = records.filter(|record| page.after.is_none_or(|after| record.place() > after)).collect();
    records.sort_by_key(Placed::place);
    records.truncate(page.limit.map_or(usize::MAX, |limit| limit as usize));
    records
}

/// No step below can fail, so a transaction needs no way back.
impl Transaction for State {
    fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        Ok(self.tunnels.get(&id).cloned())
    }

    fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError> {
        Ok(self.names.get(name).and_then(|id| self.tunnels.get(id)).cloned())
    }

    fn others_certificate_until(
        &self,
        name: &TunnelName,
        organization: &OrganizationId,
    ) -> Result<Option<Timestamp>, StoreError> {
        let is_others = |certificate: &&IssuedCertificate| match &certificate.holder {
            Holder::Tunnel { name: had, organization: owner, .. } => {
                certificate.issuer == Issuer::Acme && had == name && owner.as_ref() != Some(organization)
            }
            Holder::Edge(_) => false,
        };
        Ok(self.certificates.values().filter(is_others).map(|certificate| certificate.not_after).max())
    }

    fn identity(&self, key: IdentityKey<'_>) -> Result<Option<Identity>, StoreError> {
        Ok(match key {
            IdentityKey::Handle(handle) => {
                self.identities.values().find(|identity| identity.handle == *handle).cloned()
            }
            IdentityKey::Id(id) => self.identities.get(&id).cloned(),
        })
    }

    fn active_keys(&self, identity: IdentityId) -> Result<Vec<ApiKey>, StoreError> {
        let is_active = |key: &&ApiKey| key.scope == Scope::Identity(identity) && key.revoked_at.is_none();
        Ok(self.api_keys.values().filter(is_active).cloned().collect())
    }

    fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        Ok(self.api_keys.get(&id).cloned())
    }

    fn rewind_uses(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError> {
        let times = self.uses.get_mut(usage).into_iter().flatten();
        times.for_each(|time| *time = now.min(*time));
        Ok(())
    }

    fn nth_use(&self, usage: &Usage, nth: u32) -> Result<Option<Timestamp>, StoreError> {
        let times = self.uses.get(usage).map_or(&[][..], Vec::as_slice);
        let at = times.len().checked_sub(nth as usize);
        Ok(at.and_then(|at| times.get(at)).copied())
    }

    fn insert_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.names.insert(tunnel.name.clone(), tunnel.id);
        self.tunnels.insert(tunnel.id, tunnel.clone());
        Ok(())
    }

    fn update_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        if let Some(before) = self.tunnels.insert(tunnel.id, tunnel.clone()) {
            self.names.remove(&before.name);
        }
        self.names.insert(tunnel.name.clone(), tunnel.id);
        Ok(())
    }

    fn update_certificate(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.update_tunnel(tunnel)
    }

    fn update_name(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.update_tunnel(tunnel)
    }

    fn delete_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.tunnels.remove(&tunnel.id);
        self.names.remove(&tunnel.name);
        self.uses.remove(&Usage::Sign(tunnel.id));
        Ok(())
    }

    fn insert_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        self.update_identity(identity)
    }

    fn update_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        self.identities.insert(identity.id, identity.clone());
        Ok(())
    }

    fn delete_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        self.identities.remove(&identity.id);
        Ok(())
    }

    fn insert_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError> {
        self.update_api_key(key)
    }

    fn update_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError> {
        self.api_keys.insert(key.id, key.clone());
        Ok(())
    }

    fn record_use(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError> {
        let times = self.uses.entry(usage.clone()).or_default();
        // Clocks may step back; the list stays in order.
        let at = times.partition_point(|time| *time <= now);
        times.insert(at, now);
        Ok(())
    }

    fn record_certificate(&mut self, certificate: &IssuedCertificate) -> Result<(), StoreError> {
        self.certificates.entry(certificate.fingerprint).or_insert_with(|| certificate.clone());
        Ok(())
    }
}
