//! The state machine of the control plane: who may do what, and what follows.
//!
//! A [`Command`] and the [`Facts`] that it needs go in; [`Event`]s or one
//! [`Refusal`] come out. Nothing changes on a refusal. The caller loads the
//! facts and stores the events in one transaction, so that two commands at
//! once end as if one had come after the other.

use std::net::IpAddr;
use std::time::Duration;

use crate::id::{IdentityId, KeyId, OrganizationId, SecretHash, TunnelId};
use crate::name::{NamePolicy, TunnelName, Unavailable};
use crate::quota::{Quota, Usage};
use crate::record::{
    ApiKey, Certificate, Description, Identity, Label, Metadata, Origin, Scope, Status, TlsMode, Tunnel,
};
use crate::time::Timestamp;

/// Who commands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// The holder of an API key.
    Key {
        /// Which key.
        id: KeyId,
        /// Whose it is.
        organization: OrganizationId,
        /// What it may do.
        scope: Scope,
    },
    /// The server itself: first start and background work.
    System,
}

/// What is to be done. Identifiers, hashes and certificates are made before.
#[derive(Clone, Debug)]
pub enum Command {
    /// A tunnel by itself (clients of the first generation).
    CreateTunnel {
        /// Its id.
        id: TunnelId,
        /// Its label.
        name: TunnelName,
        /// Who terminates TLS.
        tls_mode: TlsMode,
        /// The owner's words.
        description: Option<Description>,
        /// Hash of its connect secret.
        secret_hash: SecretHash,
    },
    /// New words or data; what is `None` stays.
    UpdateTunnel {
        /// Which tunnel.
        id: TunnelId,
        /// `Some(None)` clears it.
        description: Option<Option<Description>>,
        /// Replaces the whole object.
        metadata: Option<Metadata>,
    },
    /// A certificate was signed for `name`; it counts when this is stored.
    RecordCertificate {
        /// Which tunnel.
        id: TunnelId,
        /// The name that the certificate is for.
        name: TunnelName,
        /// The certificate.
        certificate: Certificate,
        /// Where it comes from.
        origin: Origin,
    },
    /// A certificate for `name` is about to be asked for where it becomes public at once: decided, and
    /// counted, before.
    BeginOrder {
        /// Which tunnel.
        id: TunnelId,
        /// The name that the certificate is to be for.
        name: TunnelName,
    },
    /// What came of [`Command::BeginOrder`], which has been counted.
    FinishOrder {
        /// Which tunnel.
        id: TunnelId,
        /// The name that the certificate is for.
        name: TunnelName,
        /// The certificate.
        certificate: Certificate,
        /// Where it comes from.
        origin: Origin,
    },
    /// The issuer wants a tunnel's certificate to be renewed at another time; only the server says so.
    SetRenewal {
        /// Which tunnel.
        id: TunnelId,
        /// SHA-256 of the certificate. If the tunnel has another one, nothing changes.
        fingerprint: [u8; 32],
        /// When.
        renew_at: Timestamp,
    },
    /// Deletion with a restore window, which is never longer than the rules say.
    DeleteTunnel {
        /// Which tunnel.
        id: TunnelId,
    },
    /// Takes a deletion back.
    RestoreTunnel {
        /// Which tunnel.
        id: TunnelId,
    },
    /// Ends the restore window now.
    ForceDeleteTunnel {
        /// Which tunnel.
        id: TunnelId,
    },
    /// Deletes a tunnel whose restore window is over.
    FinalizeTunnel {
        /// Which tunnel.
        id: TunnelId,
    },
    /// An agent of the tunnel came online; only the server says so.
    RecordHello {
        /// Which tunnel.
        id: TunnelId,
        /// Where the agent came from.
        ip: IpAddr,
    },
    /// The last agent of the tunnel left; only the server says so.
    RecordGoodbye {
        /// Which tunnel.
        id: TunnelId,
    },
    /// A new connect secret; live connections keep the old one.
    RotateSecret {
        /// Which tunnel.
        id: TunnelId,
        /// Hash of the new secret.
        secret_hash: SecretHash,
    },
    /// An identity with its tunnel (clients of the second generation).
    CreateIdentity {
        /// Its id.
        id: IdentityId,
        /// Its tunnel's id.
        tunnel: TunnelId,
        /// Handle and tunnel name.
        handle: TunnelName,
        /// A name for people.
        display_name: Option<Label>,
        /// The owner's words.
        description: Option<Description>,
        /// Who terminates TLS.
        tls_mode: TlsMode,
    },
    /// New names or words; what is `None` stays.
    UpdateIdentity {
        /// Which identity.
        handle: TunnelName,
        /// A new handle, which renames the tunnel.
        rename: Option<TunnelName>,
        /// `Some(None)` clears it.
        display_name: Option<Option<Label>>,
        /// `Some(None)` clears it.
        description: Option<Option<Description>>,
    },
    /// Deletes an identity, its tunnel and its keys at once.
    DeleteIdentity {
        /// Which identity.
        handle: TunnelName,
    },
    /// A key; see [`Refusal::AdminKeyForbidden`].
    CreateKey {
        /// Its id.
        id: KeyId,
        /// Whose it is; the caller's own organization unless the server makes it.
        organization: OrganizationId,
        /// The identity that it is bound to; none for an admin key.
        identity: Option<IdentityId>,
        /// The owner's name for it.
        label: Label,
        /// The owner's words.
        description: Option<Description>,
        /// Hash of the whole key.
        hash: SecretHash,
        /// The last four characters of the key.
        last4: String,
    },
    /// Ends a key for good.
    RevokeKey {
        /// Which key.
        id: KeyId,
    },
}

/// What a command must know. `None` and empty mean that there is no such thing.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The tunnel of [`Wants::tunnel`], or that of the identity.
    pub tunnel: Option<Tunnel>,
    /// The identity of [`Wants::identity`].
    pub identity: Option<Identity>,
    /// The tunnel that has the name of [`Wants::name`].
    pub holder: Option<Tunnel>,
    /// When the last certificate ends that strangers trust for the name of [`Wants::name`], and that
    /// another organization than the caller's has.
    pub others_certificate_until: Option<Timestamp>,
    /// The active keys of the identity.
    pub keys: Vec<ApiKey>,
    /// The key of [`Wants::key`].
    pub key: Option<ApiKey>,
    /// When the use of [`Wants::usage`] that is `limit` uses back happened.
    pub nth_use: Option<Timestamp>,
}

/// Which [`Facts`] a command needs; everything else may be left out.
#[derive(Clone, Debug, Default)]
pub struct Wants<'a> {
    /// This tunnel.
    pub tunnel: Option<TunnelId>,
    /// This identity, with its tunnel and its keys.
    pub identity: Option<IdentityKey<'a>>,
    /// Whoever has this name.
    pub name: Option<&'a TunnelName>,
    /// This key.
    pub key: Option<KeyId>,
    /// The n-th most recent of these uses.
    pub usage: Option<(Usage, u32)>,
}

/// By what an identity is looked up.
#[derive(Clone, Copy, Debug)]
pub enum IdentityKey<'a> {
    /// By its handle.
    Handle(&'a TunnelName),
    /// By its id.
    Id(IdentityId),
}

/// What happened. Records are as they are afterwards.
#[derive(Clone, Debug)]
pub enum Event {
    /// A certificate was signed for a tunnel.
    CertificateIssued(Box<Tunnel>, Origin),
    /// A certificate of this tunnel counts in its quota.
    SigningCounted(TunnelId),
    /// An identity exists.
    IdentityCreated(Identity),
    /// An identity is gone.
    IdentityDeleted(Identity),
    /// An identity has other names or words.
    IdentityUpdated(Identity),
    /// A key exists.
    KeyCreated(Box<ApiKey>),
    /// A key is of no use any more; live connections that used it end.
    KeyRevoked(Box<ApiKey>),
    /// The connect secret is another one from the next hello on.
    SecretRotated(Box<Tunnel>),
    /// A tunnel has an agent.
    TunnelConnected(Box<Tunnel>),
    /// A tunnel exists.
    TunnelCreated(Box<Tunnel>),
    /// A tunnel carries no traffic any more and may be restored.
    TunnelDeleted(Box<Tunnel>),
    /// A tunnel has no agent any more.
    TunnelDisconnected(Box<Tunnel>),
    /// A tunnel is gone and its name free.
    TunnelFinalized(Box<Tunnel>),
    /// A tunnel has another name and with it another public host.
    TunnelRenamed(Box<Tunnel>),
    /// A deletion was taken back.
    TunnelRestored(Box<Tunnel>),
    /// A tunnel has other words or data.
    TunnelUpdated(Box<Tunnel>),
}

/// Why a command is not carried out.
///
/// Not `non_exhaustive`: whoever turns refusals into answers shall not compile
/// before a new one has its own.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A key may not make a key of its own power.
    #[error("an API key cannot create an admin key: name the identity that the new key is for")]
    AdminKeyForbidden,
    /// Too many tunnels were created lately.
    #[error("the organization has created {limit} tunnels within a day: try again later")]
    CreateQuota {
        /// How many are allowed.
        limit: u32,
        /// When the next one is allowed.
        retry_after: Duration,
    },
    /// A key that is bound to an identity may not do this.
    #[error("this key is bound to one identity: use an admin key")]
    Forbidden,
    /// The tunnel goes when its identity goes.
    #[error("the tunnel belongs to an identity: delete the identity instead")]
    IdentityOwned,
    /// The name belongs to somebody.
    #[error("the name is taken")]
    NameTaken {
        /// Does an identity have it, or a tunnel by itself?
        by_identity: bool,
    },
    /// The name is on one of the operator's lists.
    #[error("the name is reserved")]
    NameUnavailable(Unavailable),
    /// Restore and force need a deletion first.
    #[error("the tunnel is not in delete_pending state: delete it first")]
    NotDeletePending,
    /// No such thing, or none that the caller may see.
    #[error("there is no such {0}")]
    NotFound(Kind),
    /// Only agents that terminate TLS need a certificate.
    #[error("the tunnel's tls_mode is edge: only passthrough tunnels have their own certificate")]
    NotPassthrough,
    // The clients tell the two reasons not to sign apart by words: this text
    // must not have `edge`, `passthrough` or `tls_mode` in it.
    /// The tunnel is on its way out, or changed its name since the request was checked.
    #[error("the tunnel cannot be signed for in its present state")]
    NotSignable,
    /// The deadline has passed.
    #[error("the restore window of the tunnel is over")]
    RestoreWindowOver,
    /// Too many certificates were signed lately.
    #[error("{limit} certificates were signed for the tunnel within a day: try again later")]
    SignQuota {
        /// How many are allowed.
        limit: u32,
        /// When the next one is allowed.
        retry_after: Duration,
    },
}

/// What was not found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// An API key.
    ApiKey,
    /// An identity.
    Identity,
    /// A tunnel.
    Tunnel,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ApiKey => "API key",
            Self::Identity => "identity",
            Self::Tunnel => "tunnel",
        })
    }
}

/// The operator's settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Names that nobody gets.
    pub names: NamePolicy,
    /// Tunnels that one organization may create.
    pub creates: Quota,
    /// Certificates that may be signed for one tunnel.
    pub signings: Quota,
    /// How long a deletion can be taken back.
    pub restore_window: Duration,
}

impl Rules {
    /// The values that clients expect: 10 creations an organization and 10
    /// signings a tunnel within 24 hours, and 24 hours to restore.
    pub fn new() -> Self {
        Self {
            names: NamePolicy::new(),
            creates: Quota { limit: 10, window: DAY },
            signings: Quota { limit: 10, window: DAY },
            restore_window: DAY,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::new()
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Command {
    /// The facts that [`decide`] asks for.
    pub fn wants<'a>(&'a self, caller: &Caller, rules: &Rules) -> Wants<'a> {
        let creation = |organization: &OrganizationId| (Usage::Create(organization.clone()), rules.creates.limit);
        match self {
            Self::CreateTunnel { name, .. } | Self::CreateIdentity { handle: name, .. } => {
                Wants { name: Some(name), usage: caller.organization().map(creation), ..Wants::default() }
            }
            Self::RecordCertificate { id, .. } | Self::BeginOrder { id, .. } => {
                Wants { tunnel: Some(*id), usage: Some((Usage::Sign(*id), rules.signings.limit)), ..Wants::default() }
            }
            Self::UpdateTunnel { id, .. }
            | Self::FinishOrder { id, .. }
            | Self::SetRenewal { id, .. }
            | Self::DeleteTunnel { id }
            | Self::RestoreTunnel { id }
            | Self::ForceDeleteTunnel { id }
            | Self::FinalizeTunnel { id }
            | Self::RecordHello { id, .. }
            | Self::RecordGoodbye { id }
            | Self::RotateSecret { id, .. } => Wants { tunnel: Some(*id), ..Wants::default() },
            Self::UpdateIdentity { handle, rename, .. } => {
                Wants { identity: Some(IdentityKey::Handle(handle)), name: rename.as_ref(), ..Wants::default() }
            }
            Self::DeleteIdentity { handle } => {
                Wants { identity: Some(IdentityKey::Handle(handle)), ..Wants::default() }
            }
            Self::CreateKey { identity, .. } => Wants { identity: identity.map(IdentityKey::Id), ..Wants::default() },
            Self::RevokeKey { id } => Wants { key: Some(*id), ..Wants::default() },
        }
    }
}

impl Caller {
    /// Whose things the caller sees; none for the server, which sees all.
    pub fn organization(&self) -> Option<&OrganizationId> {
        match self {
            Self::Key { organization, .. } => Some(organization),
            Self::System => None,
        }
    }

    /// The key that the caller holds; the server has none.
    pub fn key(&self) -> Option<KeyId> {
        match self {
            Self::Key { id, .. } => Some(*id),
            Self::System => None,
        }
    }

    /// May the caller know of this tunnel?
    pub fn sees_tunnel(&self, tunnel: &Tunnel) -> bool {
        match self {
            Self::Key { organization, scope: Scope::Admin, .. } => *organization == tunnel.organization,
            Self::Key { scope: Scope::Identity(identity), .. } => tunnel.identity == Some(*identity),
            Self::System => true,
        }
    }

    /// May the caller know of this identity?
    pub fn sees_identity(&self, identity: &Identity) -> bool {
        match self {
            Self::Key { organization, scope: Scope::Admin, .. } => *organization == identity.organization,
            Self::Key { scope: Scope::Identity(id), .. } => identity.id == *id,
            Self::System => true,
        }
    }

    /// Is it more than one identity's key?
    pub fn is_admin(&self) -> bool {
        !matches!(self, Self::Key { scope: Scope::Identity(_), .. })
    }
}

/// Decides one command.
///
/// # Errors
///
/// The [`Refusal`] that comes first in this order: what only admins may do to
/// anything is forbidden, what the caller may not see is not found, what it may
/// not do to this one is forbidden, then the state, then the quota.
pub fn decide(
    caller: &Caller,
    command: Command,
    facts: Facts,
    rules: &Rules,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let decision = Decision { caller, facts, rules, now };
    match command {
        Command::CreateTunnel { id, name, tls_mode, description, secret_hash } => {
            let tunnel = NewTunnel { id, name, identity: None, tls_mode, description, secret_hash: Some(secret_hash) };
            decision.create_tunnel(tunnel)
        }
        Command::UpdateTunnel { description, metadata, .. } => decision.update_tunnel(description, metadata),
        Command::RecordCertificate { name, certificate, origin, .. } => {
            let counted = decision.count_signing(&name)?;
            decision.use_certificate(&name, certificate, origin).map(|issued| vec![issued, counted])
        }
        Command::BeginOrder { name, .. } => decision.count_signing(&name).map(|counted| vec![counted]),
        Command::FinishOrder { name, certificate, origin, .. } => {
            // What was begun is the server's to finish.
            if *caller != Caller::System {
                return Err(Refusal::Forbidden);
            }
            decision.use_certificate(&name, certificate, origin).map(|issued| vec![issued])
        }
        Command::SetRenewal { fingerprint, renew_at, .. } => decision.set_renewal(&fingerprint, renew_at),
        Command::DeleteTunnel { .. } => decision.delete_tunnel(),
        Command::RestoreTunnel { .. } => decision.restore_tunnel(),
        Command::ForceDeleteTunnel { .. } => decision.force_delete_tunnel(),
        Command::FinalizeTunnel { .. } => decision.finalize_tunnel(),
        Command::RecordHello { ip, .. } => decision.record_hello(ip),
        Command::RecordGoodbye { .. } => decision.record_goodbye(),
        Command::RotateSecret { secret_hash, .. } => decision.rotate_secret(secret_hash),
        Command::CreateIdentity { id, tunnel, handle, display_name, description, tls_mode } => {
            let new = NewTunnel {
                id: tunnel,
                name: handle,
                identity: Some(id),
                tls_mode,
                description: None,
                secret_hash: None,
            };
            decision.create_identity(id, display_name, description, new)
        }
        Command::UpdateIdentity { rename, display_name, description, .. } => {
            decision.update_identity(rename, display_name, description)
        }
        Command::DeleteIdentity { .. } => decision.delete_identity(),
        Command::CreateKey { id, organization, identity, label, description, hash, last4 } => {
            let key = ApiKey {
                id,
                organization,
                scope: identity.map_or(Scope::Admin, Scope::Identity),
                label,
                description,
                hash,
                last4,
                created_by: match caller {
                    Caller::Key { id, .. } => Some(*id),
                    Caller::System => None,
                },
                created_at: now,
                updated_at: now,
                last_used_at: None,
                revoked_at: None,
            };
            decision.create_key(key)
        }
        Command::RevokeKey { .. } => decision.revoke_key(),
    }
}

/// May a certificate be signed for this tunnel now, quota aside? Asked before
/// the request is looked at, and again by [`Command::RecordCertificate`].
///
/// # Errors
///
/// [`Refusal::NotFound`], [`Refusal::NotPassthrough`] or [`Refusal::NotSignable`].
pub fn check_signable(tunnel: &Tunnel, now: Timestamp) -> Result<(), Refusal> {
    if tunnel.is_expired(now) {
        return Err(Refusal::NotFound(Kind::Tunnel));
    }
    if tunnel.tls_mode != TlsMode::Passthrough {
        return Err(Refusal::NotPassthrough);
    }
    match tunnel.status {
        Status::AwaitingCert | Status::Active => Ok(()),
        Status::DeletePending | Status::Deleted => Err(Refusal::NotSignable),
    }
}

struct NewTunnel {
    id: TunnelId,
    name: TunnelName,
    identity: Option<IdentityId>,
    tls_mode: TlsMode,
    description: Option<Description>,
    secret_hash: Option<SecretHash>,
}

struct Decision<'a> {
    caller: &'a Caller,
    facts: Facts,
    rules: &'a Rules,
    now: Timestamp,
}

impl Decision<'_> {
    fn create_tunnel(mut self, new: NewTunnel) -> Result<Vec<Event>, Refusal> {
        let organization = self.admin_organization()?;
        let mut events = self.free_name(&new.name)?;
        let quota = self.rules.creates;
        quota
            .admit(self.facts.nth_use, self.now)
            .map_err(|retry_after| Refusal::CreateQuota { limit: quota.limit, retry_after })?;
        events.push(Event::TunnelCreated(Box::new(self.tunnel_from(new, organization))));
        Ok(events)
    }

    fn create_identity(
        self,
        id: IdentityId,
        display_name: Option<Label>,
        description: Option<Description>,
        new: NewTunnel,
    ) -> Result<Vec<Event>, Refusal> {
        let identity = Identity {
            id,
            organization: self.admin_organization()?,
            handle: new.name.clone(),
            display_name,
            description,
            tunnel: new.id,
            created_at: self.now,
            updated_at: self.now,
        };
        let mut events = self.create_tunnel(new)?;
        events.push(Event::IdentityCreated(identity));
        Ok(events)
    }

    fn update_tunnel(
        mut self,
        description: Option<Option<Description>>,
        metadata: Option<Metadata>,
    ) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.tunnel()?;
        if description.is_none() && metadata.is_none() {
            return Ok(Vec::new());
        }
        if let Some(description) = description {
            tunnel.description = description;
        }
        if let Some(metadata) = metadata {
            tunnel.metadata = metadata;
        }
        tunnel.updated_at = self.now;
        Ok(vec![Event::TunnelUpdated(Box::new(tunnel))])
    }

    /// The tunnel, if a certificate may be signed for it and this name.
    fn signable(&self, name: &TunnelName) -> Result<&Tunnel, Refusal> {
        let tunnel = self.facts.tunnel.as_ref().filter(|tunnel| self.caller.sees_tunnel(tunnel));
        let tunnel = tunnel.ok_or(Refusal::NotFound(Kind::Tunnel))?;
        check_signable(tunnel, self.now)?;
        if tunnel.name == *name { Ok(tunnel) } else { Err(Refusal::NotSignable) }
    }

    fn count_signing(&self, name: &TunnelName) -> Result<Event, Refusal> {
        let tunnel = self.signable(name)?;
        let quota = self.rules.signings;
        let admitted = quota.admit(self.facts.nth_use, self.now);
        admitted.map_err(|retry_after| Refusal::SignQuota { limit: quota.limit, retry_after })?;
        Ok(Event::SigningCounted(tunnel.id))
    }

    fn use_certificate(&self, name: &TunnelName, certificate: Certificate, origin: Origin) -> Result<Event, Refusal> {
        let mut tunnel = self.signable(name)?.clone();
        tunnel.certificate = Some(certificate);
        tunnel.status = Status::Active;
        tunnel.updated_at = self.now;
        Ok(Event::CertificateIssued(Box::new(tunnel), origin))
    }

    fn set_renewal(mut self, fingerprint: &[u8; 32], renew_at: Timestamp) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.observed_tunnel()?;
        match &mut tunnel.certificate {
            Some(certificate) if certificate.fingerprint == *fingerprint && certificate.renew_at != Some(renew_at) => {
                certificate.renew_at = Some(renew_at);
                Ok(vec![Event::TunnelUpdated(Box::new(tunnel))])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn delete_tunnel(mut self) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.tunnel()?;
        if tunnel.identity.is_some() {
            return Err(Refusal::IdentityOwned);
        }
        // Deleting again changes nothing, unless the clock was ahead at the first time.
        let deadline = self.now.plus(self.rules.restore_window);
        if tunnel.status == Status::DeletePending && tunnel.restore_deadline.is_some_and(|before| before <= deadline) {
            return Ok(Vec::new());
        }
        tunnel.status = Status::DeletePending;
        tunnel.restore_deadline = Some(deadline);
        tunnel.updated_at = self.now;
        Ok(vec![Event::TunnelDeleted(Box::new(tunnel))])
    }

    fn restore_tunnel(mut self) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.stored_tunnel()?;
        if tunnel.status != Status::DeletePending {
            return Err(Refusal::NotDeletePending);
        }
        if tunnel.is_expired(self.now) {
            return Err(Refusal::RestoreWindowOver);
        }
        tunnel.status = tunnel.live_status(self.now);
        tunnel.restore_deadline = None;
        tunnel.updated_at = self.now;
        Ok(vec![Event::TunnelRestored(Box::new(tunnel))])
    }

    fn force_delete_tunnel(mut self) -> Result<Vec<Event>, Refusal> {
        if !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        let tunnel = self.tunnel()?;
        if tunnel.status != Status::DeletePending {
            return Err(Refusal::NotDeletePending);
        }
        Ok(vec![self.finalized(tunnel)])
    }

    fn finalize_tunnel(mut self) -> Result<Vec<Event>, Refusal> {
        let tunnel = self.stored_tunnel()?;
        if !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        if !tunnel.is_expired(self.now) {
            return Err(Refusal::NotDeletePending);
        }
        Ok(vec![self.finalized(tunnel)])
    }

    // Neither is a change that the owner made: `updated_at` stays.
    fn record_hello(mut self, ip: IpAddr) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.observed_tunnel()?;
        tunnel.last_connected_at = Some(self.now);
        tunnel.last_connected_ip = Some(ip);
        Ok(vec![Event::TunnelConnected(Box::new(tunnel))])
    }

    fn record_goodbye(mut self) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.observed_tunnel()?;
        tunnel.last_disconnected_at = Some(self.now);
        Ok(vec![Event::TunnelDisconnected(Box::new(tunnel))])
    }

    /// The tunnel, for what only the server says of it.
    fn observed_tunnel(&mut self) -> Result<Tunnel, Refusal> {
        match self.caller {
            Caller::System => self.tunnel(),
            Caller::Key { .. } => Err(Refusal::Forbidden),
        }
    }

    fn rotate_secret(mut self, secret_hash: SecretHash) -> Result<Vec<Event>, Refusal> {
        let mut tunnel = self.tunnel()?;
        tunnel.secret_hash = Some(secret_hash);
        tunnel.updated_at = self.now;
        Ok(vec![Event::SecretRotated(Box::new(tunnel))])
    }

    fn update_identity(
        mut self,
        rename: Option<TunnelName>,
        display_name: Option<Option<Label>>,
        description: Option<Option<Description>>,
    ) -> Result<Vec<Event>, Refusal> {
        let mut identity = self.identity()?;
        let rename = rename.filter(|handle| *handle != identity.handle);
        if rename.is_some() && !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        if rename.is_none() && display_name.is_none() && description.is_none() {
            return Ok(Vec::new());
        }
        let mut events = Vec::new();
        if let Some(handle) = rename {
            events = self.free_name(&handle)?;
            let mut tunnel = self.tunnel()?;
            // The certificate is for the old public host.
            tunnel.certificate = None;
            tunnel.status = tunnel.live_status(self.now);
            tunnel.name = handle.clone();
            tunnel.updated_at = self.now;
            events.push(Event::TunnelRenamed(Box::new(tunnel)));
            identity.handle = handle;
        }
        identity.display_name = display_name.unwrap_or(identity.display_name);
        identity.description = description.unwrap_or(identity.description);
        identity.updated_at = self.now;
        events.push(Event::IdentityUpdated(identity));
        Ok(events)
    }

    fn delete_identity(mut self) -> Result<Vec<Event>, Refusal> {
        let identity = self.identity()?;
        if !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        let keys = std::mem::take(&mut self.facts.keys);
        let mut events: Vec<_> = keys.into_iter().map(|key| self.revoked(key)).collect();
        if let Some(tunnel) = self.facts.tunnel.take() {
            events.push(self.finalized(tunnel));
        }
        events.push(Event::IdentityDeleted(identity));
        Ok(events)
    }

    fn create_key(self, key: ApiKey) -> Result<Vec<Event>, Refusal> {
        if !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        match (self.caller, key.scope) {
            (Caller::Key { .. }, Scope::Admin) => return Err(Refusal::AdminKeyForbidden),
            (_, Scope::Identity(_)) => {
                let identity = self.facts.identity.as_ref().filter(|identity| self.caller.sees_identity(identity));
                if identity.is_none() {
                    return Err(Refusal::NotFound(Kind::Identity));
                }
            }
            (Caller::System, Scope::Admin) => {}
        }
        Ok(vec![Event::KeyCreated(Box::new(key))])
    }

    fn revoke_key(mut self) -> Result<Vec<Event>, Refusal> {
        if !self.caller.is_admin() {
            return Err(Refusal::Forbidden);
        }
        let organization = self.caller.organization();
        let key = self.facts.key.take();
        let key = key.filter(|key| organization.is_none_or(|organization| *organization == key.organization));
        let key = key.ok_or(Refusal::NotFound(Kind::ApiKey))?;
        if key.revoked_at.is_some() {
            return Ok(Vec::new());
        }
        Ok(vec![self.revoked(key)])
    }

    /// The tunnel, if the caller sees it and it is not as good as deleted.
    fn tunnel(&mut self) -> Result<Tunnel, Refusal> {
        let now = self.now;
        let tunnel = self.stored_tunnel()?;
        if tunnel.is_expired(now) { Err(Refusal::NotFound(Kind::Tunnel)) } else { Ok(tunnel) }
    }

    /// The tunnel, if the caller sees it, even after its restore window.
    fn stored_tunnel(&mut self) -> Result<Tunnel, Refusal> {
        let tunnel = self.facts.tunnel.take().filter(|tunnel| self.caller.sees_tunnel(tunnel));
        tunnel.ok_or(Refusal::NotFound(Kind::Tunnel))
    }

    fn identity(&mut self) -> Result<Identity, Refusal> {
        let identity = self.facts.identity.take().filter(|identity| self.caller.sees_identity(identity));
        identity.ok_or(Refusal::NotFound(Kind::Identity))
    }

    fn admin_organization(&self) -> Result<OrganizationId, Refusal> {
        match self.caller {
            Caller::Key { organization, scope: Scope::Admin, .. } => Ok(organization.clone()),
            _ => Err(Refusal::Forbidden),
        }
    }

    /// Makes sure that the name can be had; finalizes a holder whose restore
    /// window is over.
    fn free_name(&mut self, name: &TunnelName) -> Result<Vec<Event>, Refusal> {
        self.rules.names.check(name).map_err(Refusal::NameUnavailable)?;
        // Whoever gave a name up could still pass for its next owner: browsers hardly ask what was revoked.
        if self.facts.others_certificate_until.is_some_and(|until| self.now <= until) {
            return Err(Refusal::NameUnavailable(Unavailable::Quarantined));
        }
        match self.facts.holder.take() {
            None => Ok(Vec::new()),
            Some(holder) if holder.is_expired(self.now) => Ok(vec![self.finalized(holder)]),
            Some(holder) => Err(Refusal::NameTaken { by_identity: holder.identity.is_some() }),
        }
    }

    fn finalized(&self, mut tunnel: Tunnel) -> Event {
        tunnel.status = Status::Deleted;
        tunnel.restore_deadline = None;
        tunnel.updated_at = self.now;
        Event::TunnelFinalized(Box::new(tunnel))
    }

    fn revoked(&self, mut key: ApiKey) -> Event {
        key.revoked_at = Some(self.now);
        key.updated_at = self.now;
        Event::KeyRevoked(Box::new(key))
    }

    fn tunnel_from(&self, new: NewTunnel, organization: OrganizationId) -> Tunnel {
        Tunnel {
            id: new.id,
            organization,
            name: new.name,
            identity: new.identity,
            status: match new.tls_mode {
                TlsMode::Edge => Status::Active,
                TlsMode::Passthrough => Status::AwaitingCert,
            },
            tls_mode: new.tls_mode,
            description: new.description,
            metadata: Metadata::default(),
            certificate: None,
            secret_hash: new.secret_hash,
            last_connected_at: None,
            last_connected_ip: None,
            last_disconnected_at: None,
            restore_deadline: None,
            created_at: self.now,
            updated_at: self.now,
        }
    }
}
