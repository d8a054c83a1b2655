//! Load, decide, apply: the same on every backend.

use tunnel_model::{
    ApiKey, Caller, Command, Event, Facts, Identity, IdentityId, IdentityKey, KeyId, OrganizationId, Rules, Timestamp,
    Tunnel, TunnelId, TunnelName, Usage, Wants, decide,
};

use crate::{ExecuteError, IssuedCertificate, StoreError};

/// What a backend offers inside one transaction.
pub(crate) trait Transaction {
    fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError>;
    fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError>;
    /// When the last certificate of a public authority ends for a name that another organization's tunnel had.
    fn others_certificate_until(
        &self,
        name: &TunnelName,
        organization: &OrganizationId,
    ) -> Result<Option<Timestamp>, StoreError>;
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
    fn record_certificate(&mut self, certificate: &IssuedCertificate) -> Result<(), StoreError>;
}

/// Carries a command out in a transaction. What a refused command leaves
/// behind are rewound uses, which are to stay.
pub(crate) fn run(
    transaction: &mut impl Transaction,
    caller: &Caller,
    command: Command,
    rules: &Rules,
    now: Timestamp,
) -> Result<Vec<Event>, ExecuteError> {
    let facts = load(transaction, caller, &command.wants(caller, rules), now)?;
    let events = decide(caller, command, facts, rules, now)?;
    for event in &events {
        apply(transaction, event, now)?;
    }
    Ok(events)
}

fn load(
    transaction: &mut impl Transaction,
    caller: &Caller,
    wants: &Wants<'_>,
    now: Timestamp,
) -> Result<Facts, StoreError> {
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
        if let Some(organization) = caller.organization() {
            facts.others_certificate_until = transaction.others_certificate_until(name, organization)?;
        }
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
        Event::CertificateIssued(tunnel, origin) => {
            transaction.update_certificate(tunnel)?;
            if let Some(certificate) = IssuedCertificate::of_tunnel(tunnel, origin, now) {
                transaction.record_certificate(&certificate)?;
            }
            Ok(())
        }
        Event::SigningCounted(tunnel) => transaction.record_use(&Usage::Sign(*tunnel), now),
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
