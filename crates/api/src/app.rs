//! The use cases. No HTTP here: a test, or another front end, calls them as
//! the handlers do.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use issuance::{Issuance, Issued, TunnelRequest};
use pki_core::DnsName;
use store::{CertificateFilter, Clock, IssuedCertificate, Observer, Page, Place, Placed, Store, StoreError};
use tunnel_model::{
    ApiKey, ApiKeySecret, Caller, Command, Description, Event, Identity, IdentityId, IdentityKey, KeyId, Kind, Label,
    Metadata, OrganizationId, Refusal, Rules, Scope, SecretHash, Timestamp, TlsMode, Tunnel, TunnelId, TunnelName,
    Zone, check_signable, connect_secret,
};

use crate::attach::{Agent, Attached, Busy};
use crate::error::Error;

/// Fills octets from a cryptographically secure generator.
pub trait Random: Send + Sync {
    /// Fills all of `octets`.
    ///
    /// # Errors
    ///
    /// When the generator fails; nothing may be made of `octets` then.
    fn fill(&self, octets: &mut [u8]) -> Result<(), Error>;
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, octets: &mut [u8]) -> Result<(), Error> {
        getrandom::fill(octets).map_err(Error::internal)
    }
}

/// Where the traffic of the tunnels flows.
pub trait DataPlane: Send + Sync {
    /// Has the tunnel an agent now?
    fn is_connected(&self, tunnel: TunnelId) -> bool;

    /// Has it one whose application brings key and certificate, so that the tunnel needs none?
    fn has_own_certificate(&self, _tunnel: TunnelId) -> bool {
        false
    }

    /// Takes an agent that may serve its tunnel; its link is handed over later.
    ///
    /// # Errors
    ///
    /// [`Busy`] when it should come back.
    fn attach(&self, agent: Agent) -> Result<Attached, Busy>;
}

/// No traffic flows: a control plane by itself.
struct NoDataPlane;

impl DataPlane for NoDataPlane {
    fn is_connected(&self, _: TunnelId) -> bool {
        false
    }

    fn attach(&self, _: Agent) -> Result<Attached, Busy> {
        Err(Busy("no traffic flows here"))
    }
}

/// Tells the log whose agent is without a certificate now, though it is connected:
/// most agents sign when they start and never again. A data plane may hold the
/// store, which holds this.
struct Renames(Weak<dyn DataPlane>);

impl Observer for Renames {
    fn committed(&self, events: &[Event]) {
        let Some(data_plane) = self.0.upgrade() else { return };
        for event in events {
            if let Event::TunnelRenamed(tunnel) = event
                && tunnel.tls_mode == TlsMode::Passthrough
                && data_plane.is_connected(tunnel.id)
                && !data_plane.has_own_certificate(tunnel.id)
            {
                tracing::warn!(
                    tunnel = %tunnel.id, name = %tunnel.name,
                    "renamed while its agent is connected: unless it signs by itself, restart the agent"
                );
            }
        }
    }
}

/// The control plane of one deployment.
pub struct App {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    issuance: Arc<dyn Issuance>,
    rules: Arc<Rules>,
    zone: Zone,
    data_plane: Arc<dyn DataPlane>,
    /// When each key's `last_used_at` was last written.
    touched: Mutex<HashMap<KeyId, Timestamp>>,
}

/// A tunnel that was just created, with the secret that is shown once.
pub struct NewTunnel {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// The secret that its agent presents.
    pub connect_secret: String,
}

impl fmt::Debug for NewTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewTunnel").field("tunnel", &self.tunnel).field("connect_secret", &"..").finish()
    }
}

/// A part of a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed<T> {
    /// In the order of their creation.
    pub records: Vec<T>,
    /// Where the next part begins, if there is one.
    pub next: Option<Place>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { records: Vec::new(), next: None }
    }
}

impl<T: Placed> Listed<T> {
    /// Of what the store answers to [`one_more`].
    fn of(mut records: Vec<T>, page: Page) -> Self {
        let limit = page.limit.map_or(usize::MAX, |limit| limit as usize);
        let has_more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| has_more).map(Placed::place);
        Self { records, next }
    }

    /// Of a list of one at most.
    fn one(record: Option<T>, page: Page) -> Self {
        let record = record.filter(|record| page.after.is_none_or(|after| record.place() > after));
        Self { records: record.into_iter().collect(), next: None }
    }
}

/// Whether there is a next page is told by one record more.
fn one_more(page: Page) -> Page {
    Page { limit: page.limit.map(|limit| limit.saturating_add(1)), ..page }
}

/// How stale `last_used_at` of a key may be: a write a minute at most.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);
/// How long a certificate is on record after its end.
const KEPT: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Records that are looked through at once.
const MANY: u32 = 256;

impl App {
    /// Joins the parts.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        issuance: Arc<dyn Issuance>,
        rules: Arc<Rules>,
        zone: Zone,
    ) -> Self {
        let data_plane = Arc::new(NoDataPlane);
        Self { store, clock, random, issuance, rules, zone, data_plane, touched: Mutex::default() }
    }

    /// Asks `data_plane` who is connected.
    #[must_use]
    pub fn with_data_plane(self, data_plane: Arc<dyn DataPlane>) -> Self {
        self.store.observe(Arc::new(Renames(Arc::downgrade(&data_plane))));
        Self { data_plane, ..self }
    }

    /// Tells `observer` of everything that the store commits from now on.
    pub(crate) fn tell(&self, observer: Arc<dyn Observer>) {
        self.store.observe(observer);
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(crate) fn data_plane(&self) -> &dyn DataPlane {
        &*self.data_plane
    }

    /// Has the tunnel an agent now?
    pub fn is_connected(&self, tunnel: TunnelId) -> bool {
        self.data_plane.is_connected(tunnel)
    }

    /// Has it one that needs no certificate of ours?
    pub fn has_own_certificate(&self, tunnel: TunnelId) -> bool {
        self.data_plane.has_own_certificate(tunnel)
    }

    /// The suffix of every public host.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Who presents this API key?
    ///
    /// # Errors
    ///
    /// [`Error::Unauthorized`] for keys that are unknown or revoked.
    pub async fn authenticate(&self, presented: &str) -> Result<(Caller, ApiKey), Error> {
        let presented: ApiKeySecret = presented.parse().map_err(|_| Error::Unauthorized)?;
        let key = self.store.api_key(presented.id()).await?.ok_or(Error::Unauthorized)?;
        let caller = key.caller(&presented).ok_or(Error::Unauthorized)?;
        self.touch(&key);
        Ok((caller, key))
    }

    /// The first admin key: `chosen`, or a new one if no admin key of the
    /// organization is active. Answers the key if one was made now.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidField`] when the chosen key was revoked, or has the id of
    /// another one; those of the store.
    pub async fn bootstrap(
        &self,
        organization: &OrganizationId,
        chosen: Option<ApiKeySecret>,
    ) -> Result<Option<ApiKeySecret>, Error> {
        let secret = match chosen {
            Some(chosen) => match self.store.api_key(chosen.id()).await? {
                None => chosen,
                Some(key) if !key.hash.matches(&chosen.hash()) => {
                    return Err(Error::invalid("bootstrap key", &"another key has its id: choose another one"));
                }
                Some(key) if key.revoked_at.is_some() => {
                    return Err(Error::invalid("bootstrap key", &"it was revoked: choose another one"));
                }
                Some(_) => return Ok(None),
            },
            None if self.has_admin_key(organization).await? => return Ok(None),
            None => self.generate_key()?,
        };
        let label = "bootstrap".parse().map_err(Error::internal)?;
        self.store_key(Caller::System, organization.clone(), &secret, None, label, None).await?;
        Ok(Some(secret))
    }

    /// A page of the tunnels that the caller sees, oldest first.
    pub async fn tunnels(&self, caller: &Caller, page: Page) -> Result<Listed<Tunnel>, Error> {
        let now = self.clock.now();
        let mut tunnels = match caller {
            Caller::Key { scope: Scope::Identity(id), .. } => {
                let identity = self.store.identity(IdentityKey::Id(*id)).await?;
                Listed::one(identity.map(|(_, tunnel)| tunnel), page)
            }
            Caller::Key { organization, .. } => {
                Listed::of(self.store.tunnels(organization, one_more(page)).await?, page)
            }
            Caller::System => Listed::default(),
        };
        tunnels.records.retain(|tunnel| caller.sees_tunnel(tunnel) && !tunnel.is_expired(now));
        Ok(tunnels)
    }

    /// The tunnel with this name, if the caller sees it.
    pub async fn tunnel_by_name(&self, caller: &Caller, name: &TunnelName) -> Result<Option<Tunnel>, Error> {
        let now = self.clock.now();
        let tunnel = self.store.tunnel_by_name(name).await?;
        Ok(tunnel.filter(|tunnel| caller.sees_tunnel(tunnel) && !tunnel.is_expired(now)))
    }

    /// Is there a tunnel of this name, whoever asks?
    pub async fn has_tunnel(&self, name: &TunnelName) -> Result<bool, Error> {
        let now = self.clock.now();
        Ok(self.store.tunnel_by_name(name).await?.is_some_and(|tunnel| !tunnel.is_expired(now)))
    }

    /// One tunnel.
    pub async fn tunnel(&self, caller: &Caller, id: TunnelId) -> Result<Tunnel, Error> {
        let now = self.clock.now();
        let tunnel = self.store.tunnel(id).await?;
        let tunnel = tunnel.filter(|tunnel| caller.sees_tunnel(tunnel) && !tunnel.is_expired(now));
        tunnel.ok_or(Error::Refused(Refusal::NotFound(Kind::Tunnel)))
    }

    /// A tunnel by itself, with a connect secret.
    pub async fn create_tunnel(
        &self,
        caller: Caller,
        name: TunnelName,
        tls_mode: TlsMode,
        description: Option<Description>,
    ) -> Result<NewTunnel, Error> {
        let id = TunnelId::from_random(self.random()?);
        let secret = connect_secret(&self.random()?);
        let secret_hash = SecretHash::of(&secret);
        let command = Command::CreateTunnel { id, name, tls_mode, description, secret_hash };
        let events = self.execute(caller, command).await?;
        let created = events.into_iter().find_map(|event| match event {
            Event::TunnelCreated(tunnel) => Some(*tunnel),
            _ => None,
        });
        let tunnel = created.ok_or_else(Error::unexpected)?;
        Ok(NewTunnel { tunnel, connect_secret: secret })
    }

    /// New words or data; what is `None` stays.
    pub async fn update_tunnel(
        &self,
        caller: Caller,
        id: TunnelId,
        description: Option<Option<Description>>,
        metadata: Option<Metadata>,
    ) -> Result<Tunnel, Error> {
        self.change_tunnel(caller, id, Command::UpdateTunnel { id, description, metadata }).await
    }

    /// Deletion with a restore window; deleting again changes nothing.
    pub async fn delete_tunnel(&self, caller: Caller, id: TunnelId) -> Result<Tunnel, Error> {
        self.change_tunnel(caller, id, Command::DeleteTunnel { id }).await
    }

    /// Takes a deletion back.
    pub async fn restore_tunnel(&self, caller: Caller, id: TunnelId) -> Result<Tunnel, Error> {
        self.change_tunnel(caller, id, Command::RestoreTunnel { id }).await
    }

    /// Ends the restore window now.
    pub async fn force_delete_tunnel(&self, caller: Caller, id: TunnelId) -> Result<Tunnel, Error> {
        self.change_tunnel(caller, id, Command::ForceDeleteTunnel { id }).await
    }

    /// A new connect secret, which counts from the next hello on.
    pub async fn rotate_secret(&self, caller: Caller, id: TunnelId) -> Result<String, Error> {
        let secret = connect_secret(&self.random()?);
        let secret_hash = SecretHash::of(&secret);
        self.execute(caller, Command::RotateSecret { id, secret_hash }).await?;
        Ok(secret)
    }

    /// Checks a certificate signing request for the tunnel's public host, and answers with a
    /// certificate for it, which is on record.
    pub async fn sign_csr(&self, caller: Caller, id: TunnelId, csr_pem: &str) -> Result<Issued, Error> {
        let tunnel = self.tunnel(&caller, id).await?;
        check_signable(&tunnel, self.clock.now())?;
        let host: DnsName = self.zone.host(&tunnel.name).as_str().parse().map_err(Error::internal)?;
        let request = TunnelRequest { caller: &caller, tunnel: &tunnel, host: &host, csr_pem: csr_pem.as_bytes() };
        Ok(self.issuance.for_tunnel(request).await?)
    }

    /// A page of the certificates on record that the caller sees and wants, oldest first: an
    /// organization's, with the edge's own, or those of an identity's tunnel.
    pub async fn certificates(
        &self,
        caller: &Caller,
        wanted: CertificateFilter,
        page: Page,
    ) -> Result<Listed<IssuedCertificate>, Error> {
        let filter = match caller {
            Caller::Key { scope: Scope::Identity(id), .. } => {
                let identity = self.store.identity(IdentityKey::Id(*id)).await?;
                let Some((_, tunnel)) = identity else { return Ok(Listed::default()) };
                if wanted.tunnel.is_some_and(|wanted| wanted != tunnel.id) {
                    return Ok(Listed::default());
                }
                CertificateFilter { tunnel: Some(tunnel.id), ..wanted }
            }
            Caller::Key { organization, .. } => {
                CertificateFilter { organization: Some(organization.clone()), ..wanted }
            }
            Caller::System => wanted,
        };
        Ok(Listed::of(self.store.certificates(&filter, one_more(page)).await?, page))
    }

    /// When the first of the certificates ends that tunnels have, of those that have not ended.
    pub async fn next_certificate_end(&self) -> Result<Option<Timestamp>, Error> {
        Ok(self.store.next_certificate_end(self.clock.now()).await?)
    }

    /// A page of the identities that the caller sees, oldest first.
    pub async fn identities(&self, caller: &Caller, page: Page) -> Result<Listed<(Identity, Tunnel)>, Error> {
        Ok(match caller {
            Caller::Key { scope: Scope::Identity(id), .. } => {
                Listed::one(self.store.identity(IdentityKey::Id(*id)).await?, page)
            }
            Caller::Key { organization, .. } => {
                Listed::of(self.store.identities(organization, one_more(page)).await?, page)
            }
            Caller::System => Listed::default(),
        })
    }

    /// One identity with its tunnel.
    pub async fn identity(&self, caller: &Caller, handle: &TunnelName) -> Result<(Identity, Tunnel), Error> {
        let found = self.store.identity(IdentityKey::Handle(handle)).await?;
        let found = found.filter(|(identity, _)| caller.sees_identity(identity));
        found.ok_or(Error::Refused(Refusal::NotFound(Kind::Identity)))
    }

    /// An identity and its tunnel, at once.
    pub async fn create_identity(
        &self,
        caller: Caller,
        handle: TunnelName,
        display_name: Option<Label>,
        description: Option<Description>,
        tls_mode: TlsMode,
    ) -> Result<(Identity, Tunnel), Error> {
        let command = Command::CreateIdentity {
            id: IdentityId::from_random(self.random()?),
            tunnel: TunnelId::from_random(self.random()?),
            handle,
            display_name,
            description,
            tls_mode,
        };
        let (mut tunnel, mut identity) = (None, None);
        for event in self.execute(caller, command).await? {
            match event {
                Event::TunnelCreated(created) => tunnel = Some(*created),
                Event::IdentityCreated(created) => identity = Some(created),
                _ => {}
            }
        }
        identity.zip(tunnel).ok_or_else(Error::unexpected)
    }

    /// New names or words; what is `None` stays.
    pub async fn update_identity(
        &self,
        caller: Caller,
        handle: TunnelName,
        rename: Option<TunnelName>,
        display_name: Option<Option<Label>>,
        description: Option<Option<Description>>,
    ) -> Result<(Identity, Tunnel), Error> {
        let command = Command::UpdateIdentity { handle: handle.clone(), rename, display_name, description };
        let updated = self.execute(caller.clone(), command).await?.into_iter().find_map(|event| match event {
            Event::IdentityUpdated(identity) => Some(identity.id),
            _ => None,
        });
        let Some(id) = updated else { return self.identity(&caller, &handle).await };
        // By its id: the next rename may have come already.
        let found = self.store.identity(IdentityKey::Id(id)).await?;
        found.ok_or(Error::Refused(Refusal::NotFound(Kind::Identity)))
    }

    /// Deletes an identity, its tunnel and its keys.
    pub async fn delete_identity(&self, caller: Caller, handle: TunnelName) -> Result<(), Error> {
        self.execute(caller, Command::DeleteIdentity { handle }).await.map(drop)
    }

    /// A key that is bound to an identity; the key itself is shown once.
    pub async fn create_api_key(
        &self,
        caller: Caller,
        identity: Option<IdentityId>,
        label: Label,
        description: Option<Description>,
    ) -> Result<(ApiKeySecret, ApiKey), Error> {
        let organization = caller.organization().ok_or_else(Error::unexpected)?.clone();
        let secret = self.generate_key()?;
        let key = self.store_key(caller, organization, &secret, identity, label, description).await?;
        Ok((secret, key))
    }

    /// A page of the organization's keys, oldest first; for admins.
    pub async fn api_keys(&self, caller: &Caller, page: Page) -> Result<Listed<ApiKey>, Error> {
        match caller {
            Caller::Key { organization, scope: Scope::Admin, .. } => {
                Ok(Listed::of(self.store.api_keys(organization, one_more(page)).await?, page))
            }
            _ => Err(Error::Refused(Refusal::Forbidden)),
        }
    }

    /// Ends a key for good; revoking again changes nothing.
    pub async fn revoke_api_key(&self, caller: Caller, id: KeyId) -> Result<ApiKey, Error> {
        self.execute(caller, Command::RevokeKey { id }).await?;
        let key = self.store.api_key(id).await?;
        key.ok_or(Error::Refused(Refusal::NotFound(Kind::ApiKey)))
    }

    /// Deletes tunnels whose restore window is over, and forgets successes
    /// that no quota counts any more, and certificates that ended more than a year ago. Restore windows that are too long, because the
    /// clock was ahead or the setting another, begin anew. Answers how many tunnels went.
    ///
    /// # Errors
    ///
    /// Those of the store; what was deleted before stays deleted.
    pub async fn sweep(&self) -> Result<usize, Error> {
        let now = self.clock.now();
        let mut deleted = 0;
        for id in self.store.expired_tunnels(now, MANY).await? {
            match self.execute(Caller::System, Command::FinalizeTunnel { id }).await {
                Ok(_) => deleted += 1,
                // Somebody was faster.
                Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let latest = now.plus(self.rules.restore_window);
        for id in self.store.tunnels_restorable_after(latest, MANY).await? {
            match self.execute(Caller::System, Command::DeleteTunnel { id }).await {
                // Refused: somebody was faster.
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let longest = self.rules.creates.window.max(self.rules.signings.window);
        self.store.prune_uses(now.minus(longest)).await?;
        self.store.forget_certificates(now.minus(KEPT)).await?;
        Ok(deleted)
    }

    /// Can the store be written durably, and read?
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }

    /// Most often the first key is one; an organization may have very many.
    async fn has_admin_key(&self, organization: &OrganizationId) -> Result<bool, Error> {
        let mut page = Page { after: None, limit: Some(MANY) };
        loop {
            let keys = self.store.api_keys(organization, page).await?;
            if keys.iter().any(|key| key.scope == Scope::Admin && key.revoked_at.is_none()) {
                return Ok(true);
            }
            let Some(last) = keys.last() else { return Ok(false) };
            page.after = Some(last.place());
        }
    }

    async fn execute(&self, caller: Caller, command: Command) -> Result<Vec<Event>, Error> {
        Ok(self.store.execute(caller, command, &self.rules, self.clock.now()).await?)
    }

    /// The tunnel after a command, or as it is if the command changed nothing.
    async fn change_tunnel(&self, caller: Caller, id: TunnelId, command: Command) -> Result<Tunnel, Error> {
        let events = self.execute(caller.clone(), command).await?;
        let changed = events.into_iter().find_map(|event| match event {
            Event::TunnelDeleted(tunnel)
            | Event::TunnelFinalized(tunnel)
            | Event::TunnelRestored(tunnel)
            | Event::TunnelUpdated(tunnel) => Some(*tunnel),
            _ => None,
        });
        match changed {
            Some(tunnel) => Ok(tunnel),
            None => self.tunnel(&caller, id).await,
        }
    }

    fn generate_key(&self) -> Result<ApiKeySecret, Error> {
        Ok(ApiKeySecret::generate(KeyId::from_random(self.random()?), &self.random()?))
    }

    async fn store_key(
        &self,
        caller: Caller,
        organization: OrganizationId,
        secret: &ApiKeySecret,
        identity: Option<IdentityId>,
        label: Label,
        description: Option<Description>,
    ) -> Result<ApiKey, Error> {
        let command = Command::CreateKey {
            id: secret.id(),
            organization,
            identity,
            label,
            description,
            hash: secret.hash(),
            last4: secret.last4().to_owned(),
        };
        let events = self.execute(caller, command).await?;
        let created = events.into_iter().find_map(|event| match event {
            Event::KeyCreated(key) => Some(*key),
            _ => None,
        });
        created.ok_or_else(Error::unexpected)
    }

    /// Writes down that a key is in use, without making the caller wait.
    fn touch(&self, key: &ApiKey) {
        let now = self.clock.now();
        {
            let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
            let last = touched.get(&key.id).copied().or(key.last_used_at);
            // A time to come is one of a clock that was ahead.
            if last.is_some_and(|last| last <= now && now.since(last) < TOUCH_INTERVAL) {
                return;
            }
            touched.insert(key.id, now);
        }
        let (store, id) = (Arc::clone(&self.store), key.id);
        tokio::spawn(async move {
            if let Err(error) = store.touch_api_key(id, now).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot record the use of an API key");
            }
        });
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut octets = [0; N];
        self.random.fill(&mut octets)?;
        Ok(octets)
    }
}
