//! A plain model of the control plane, and the loop that compares it with the
//! real one. Uses the crate's public interface only, so that a fuzz target may
//! include this file too.
//!
//! The plain model keeps vectors, looks everything up by walking them, and is
//! written from the behaviour that clients are promised, not from `decide`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tunnel_model::{
    ApiKey, Caller, Certificate, Command, Event, Facts, Identity, IdentityId, IdentityKey, Issuer, KeyId, Kind,
    Metadata, NamePolicy, OrganizationId, Origin, Quota, Refusal, Rules, Scope, SecretHash, Status, Timestamp, TlsMode,
    Tunnel, TunnelId, TunnelName, Unavailable, Usage, Wants, decide,
};

/// Decodes commands from `bytes`, gives them to both models, and panics when
/// they differ or an invariant breaks. Answers which events and refusals there
/// were.
pub(crate) fn run(bytes: &[u8]) -> BTreeSet<String> {
    let rules = Rules {
        names: NamePolicy::new().deny([name("denied-word")]),
        creates: Quota { limit: CREATES, window: DAY },
        signings: Quota { limit: SIGNINGS, window: DAY },
        restore_window: DAY,
    };
    let mut input = Input { bytes, next: 0 };
    let mut real = World::default();
    let mut plain = Plain::default();
    let mut now = 1_750_000_000_000_000;
    let mut outcomes = BTreeSet::new();
    while let Some(step) = input.byte() {
        // Mostly moments, or no quota would ever be reached.
        now += if step < 232 { i64::from(step % 16) * 1_000_000 } else { STEPS[usize::from(step) % STEPS.len()] };
        let Some((caller, command)) = input.command(&real, now) else { break };
        let told = format!("{caller:?} {command:?} at {now}");
        let expected = plain.step(&caller, &command, now);
        let facts = real.load(&command.wants(&caller, &rules));
        let answer = decide(&caller, command, facts, &rules, Timestamp::from_micros(now));
        let got = match answer {
            Ok(events) => {
                let kinds: Vec<_> = events.iter().map(kind).collect();
                for event in events {
                    real.apply(event, now);
                }
                outcomes.extend(kinds.iter().map(|kind| (*kind).to_owned()));
                Ok(kinds)
            }
            Err(refusal) => {
                let text = format!("{refusal:?}");
                outcomes.extend(text.split([' ', '(']).next().map(str::to_owned));
                Err(refusal)
            }
        };
        assert_eq!(got, expected, "left: the model, right: the plain one; {told}");
        assert_eq!(real.seen(now), plain.seen(now), "left: the model, right: the plain one; after {told}");
        real.check();
    }
    outcomes
}

const CREATES: u32 = 3;
const SIGNINGS: u32 = 2;
const DAY: Duration = Duration::from_secs(86_400);
const DAY_MICROS: i64 = 86_400_000_000;
/// Just before, at and after the ends of windows, and what lies between.
const STEPS: [i64; 8] =
    [1, 61_500_000, 3_600_000_000, DAY_MICROS / 2, DAY_MICROS - 1, DAY_MICROS, DAY_MICROS + 1, 2 * DAY_MICROS];
/// Few, so that they collide; the last two are nobody's to have.
const NAMES: [&str; 6] = ["alpha", "bravo-2", "charlie", "delta", "www", "denied-word"];
const ORGANIZATIONS: [&str; 2] = ["org_a", "org_b"];

fn name(text: &str) -> TunnelName {
    text.parse().expect("a name of the pool")
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::CertificateIssued(..) => "CertificateIssued",
        Event::IdentityCreated(_) => "IdentityCreated",
        Event::IdentityDeleted(_) => "IdentityDeleted",
        Event::IdentityUpdated(_) => "IdentityUpdated",
        Event::KeyCreated(_) => "KeyCreated",
        Event::KeyRevoked(_) => "KeyRevoked",
        Event::SecretRotated(_) => "SecretRotated",
        Event::SigningCounted(_) => "SigningCounted",
        Event::TunnelConnected(_) => "TunnelConnected",
        Event::TunnelCreated(_) => "TunnelCreated",
        Event::TunnelDeleted(_) => "TunnelDeleted",
        Event::TunnelDisconnected(_) => "TunnelDisconnected",
        Event::TunnelFinalized(_) => "TunnelFinalized",
        Event::TunnelRenamed(_) => "TunnelRenamed",
        Event::TunnelRestored(_) => "TunnelRestored",
        Event::TunnelUpdated(_) => "TunnelUpdated",
    }
}

/// Octets as decisions.
struct Input<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.next).copied();
        self.next += 1;
        byte
    }

    fn pick<T: Copy>(&mut self, pool: &[T]) -> Option<T> {
        let byte = self.byte()?;
        pool.get(usize::from(byte) % pool.len().max(1)).copied()
    }

    /// An id that exists, did exist, or (where the pool is empty) never did.
    fn id<T: Copy>(&mut self, pool: &[T], unknown: T) -> Option<T> {
        let byte = self.byte()?;
        Some(if pool.is_empty() || byte == 255 {
            unknown
        } else {
            pool[pool.len() - 1 - usize::from(byte) % pool.len().min(8)]
        })
    }

    /// This number and the position are in no other id.
    fn fresh(&self, number: u8) -> [u8; 16] {
        let mut octets = [number; 16];
        octets[..8].copy_from_slice(&(self.next as u64).to_be_bytes());
        octets
    }

    fn command(&mut self, world: &World, now: i64) -> Option<(Caller, Command)> {
        let unknown = [0xff; 16];
        let caller = match self.byte()? % 8 {
            0..4 => self.admin(0),
            4 => self.admin(1),
            5 => Caller::System,
            _ => {
                let identity = self.id(&world.identities_ever, IdentityId::from_bytes(unknown))?;
                let organization = world.organization_ever(identity);
                Caller::Key { id: KeyId::from_bytes([9; 16]), organization, scope: Scope::Identity(identity) }
            }
        };
        let tunnels = &world.tunnels_ever;
        let tls_mode = |byte: u8| if byte.is_multiple_of(2) { TlsMode::Passthrough } else { TlsMode::Edge };
        let text = |byte: u8| (!byte.is_multiple_of(3)).then(|| format!("words {byte}"));
        let no_tunnel = TunnelId::from_bytes(unknown);
        let command = match self.byte()? % 22 {
            0..4 => Command::CreateTunnel {
                id: TunnelId::from_bytes(self.fresh(1)),
                name: name(self.pick(&NAMES)?),
                tls_mode: tls_mode(self.byte()?),
                description: text(self.byte()?).map(|text| text.parse().expect("a description")),
                secret_hash: SecretHash::from_sha256([self.byte()?; 32]),
            },
            4..6 => Command::CreateIdentity {
                id: IdentityId::from_bytes(self.fresh(2)),
                tunnel: TunnelId::from_bytes(self.fresh(1)),
                handle: name(self.pick(&NAMES)?),
                display_name: text(self.byte()?).map(|text| text.parse().expect("a label")),
                description: text(self.byte()?).map(|text| text.parse().expect("a description")),
                tls_mode: tls_mode(self.byte()?),
            },
            6 => Command::UpdateTunnel {
                id: self.id(tunnels, no_tunnel)?,
                description: match self.byte()? {
                    0..64 => None,
                    byte => Some(text(byte).map(|text| text.parse().expect("a description"))),
                },
                metadata: match self.byte()? {
                    0..64 => None,
                    byte => Some(metadata(byte)),
                },
            },
            7..11 => {
                let id = self.id(tunnels, no_tunnel)?;
                let other = name(self.pick(&NAMES)?);
                let held = world.tunnels.get(&id).map(|tunnel| tunnel.name.clone());
                let name = if self.byte()? < 230 { held.unwrap_or(other) } else { other };
                let lifetime = [3_600_000_000, DAY_MICROS + 5, 90 * DAY_MICROS][usize::from(self.byte()? % 3)];
                let serial = self.fresh(3).to_vec();
                let certificate = Certificate {
                    pem: format!("certificate {}\n", self.next),
                    fingerprint: [self.byte()?; 32],
                    serial,
                    expires_at: Timestamp::from_micros(now + lifetime),
                    renew_at: None,
                };
                let origin = Origin {
                    issuer: Issuer::Private,
                    requested_by: None,
                    key: [self.byte()?; 32],
                    not_before: Timestamp::from_micros(now),
                    profile: None,
                };
                match self.byte()? {
                    0..150 => Command::RecordCertificate { id, name, certificate, origin },
                    150..190 => Command::BeginOrder { id, name },
                    190..200 => {
                        let held = world.tunnels.get(&id).and_then(|tunnel| tunnel.certificate.as_ref());
                        let fingerprint = held.map_or([0; 32], |certificate| certificate.fingerprint);
                        Command::SetRenewal { id, fingerprint, renew_at: Timestamp::from_micros(now + lifetime) }
                    }
                    200.. => Command::FinishOrder { id, name, certificate, origin },
                }
            }
            11..13 => Command::DeleteTunnel { id: self.id(tunnels, no_tunnel)? },
            13 => Command::RestoreTunnel { id: self.id(tunnels, no_tunnel)? },
            14 => Command::ForceDeleteTunnel { id: self.id(tunnels, no_tunnel)? },
            15 => Command::FinalizeTunnel { id: self.id(tunnels, no_tunnel)? },
            16 => {
                let id = self.id(tunnels, no_tunnel)?;
                match self.byte()? {
                    octet @ 0..160 => Command::RotateSecret { id, secret_hash: SecretHash::from_sha256([octet; 32]) },
                    octet @ 160..220 => Command::RecordHello { id, ip: IpAddr::from([10, 0, 0, octet]) },
                    220.. => Command::RecordGoodbye { id },
                }
            }
            17 => Command::UpdateIdentity {
                handle: name(self.pick(&NAMES)?),
                rename: match self.byte()? {
                    0..128 => Some(name(self.pick(&NAMES)?)),
                    _ => None,
                },
                display_name: match self.byte()? {
                    0..128 => None,
                    byte => Some(text(byte).map(|text| text.parse().expect("a label"))),
                },
                description: match self.byte()? {
                    0..128 => None,
                    byte => Some(text(byte).map(|text| text.parse().expect("a description"))),
                },
            },
            18 => Command::DeleteIdentity { handle: name(self.pick(&NAMES)?) },
            19..21 => {
                let identity = match self.byte()? {
                    0..32 => None,
                    _ => Some(self.id(&world.identities_ever, IdentityId::from_bytes(unknown))?),
                };
                // Whoever is not the server makes keys of its own organization.
                let organization = match (&caller, identity) {
                    (Caller::Key { organization, .. }, _) => organization.clone(),
                    (Caller::System, Some(identity)) => world.organization_ever(identity),
                    (Caller::System, None) => OrganizationId::new(self.pick(&ORGANIZATIONS)?),
                };
                Command::CreateKey {
                    id: KeyId::from_bytes(self.fresh(4)),
                    organization,
                    identity,
                    label: "a key".parse().expect("a label"),
                    description: text(self.byte()?).map(|text| text.parse().expect("a description")),
                    hash: SecretHash::from_sha256([self.byte()?; 32]),
                    last4: "last".to_owned(),
                }
            }
            _ => Command::RevokeKey { id: self.id(&world.keys_ever, KeyId::from_bytes(unknown))? },
        };
        Some((caller, command))
    }

    fn admin(&self, organization: usize) -> Caller {
        let octet = u8::try_from(organization).unwrap_or_default();
        Caller::Key {
            id: KeyId::from_bytes([octet; 16]),
            organization: OrganizationId::new(ORGANIZATIONS[organization]),
            scope: Scope::Admin,
        }
    }
}

fn metadata(byte: u8) -> Metadata {
    let mut map = serde_json::Map::new();
    if !byte.is_multiple_of(4) {
        map.insert("number".to_owned(), byte.into());
    }
    Metadata::try_from(map).expect("a small object")
}

/// What a store would keep for the real model.
#[derive(Default)]
struct World {
    tunnels: BTreeMap<TunnelId, Tunnel>,
    identities: BTreeMap<IdentityId, Identity>,
    keys: BTreeMap<KeyId, ApiKey>,
    /// Every success there ever was; no store keeps as many.
    uses: BTreeMap<Usage, Vec<Timestamp>>,
    tunnels_ever: Vec<TunnelId>,
    identities_ever: Vec<IdentityId>,
    owners_ever: BTreeMap<IdentityId, OrganizationId>,
    keys_ever: Vec<KeyId>,
}

impl World {
    fn load(&self, wants: &Wants<'_>) -> Facts {
        let mut facts =
            Facts { tunnel: wants.tunnel.and_then(|id| self.tunnels.get(&id)).cloned(), ..Facts::default() };
        let identity = wants.identity.and_then(|key| match key {
            IdentityKey::Handle(handle) => self.identities.values().find(|identity| identity.handle == *handle),
            IdentityKey::Id(id) => self.identities.get(&id),
        });
        if let Some(identity) = identity {
            facts.identity = Some(identity.clone());
            facts.tunnel = self.tunnels.get(&identity.tunnel).cloned();
            let is_active = |key: &&ApiKey| key.scope == Scope::Identity(identity.id) && key.revoked_at.is_none();
            facts.keys = self.keys.values().filter(is_active).cloned().collect();
        }
        facts.holder = wants.name.and_then(|name| self.tunnels.values().find(|tunnel| tunnel.name == *name)).cloned();
        facts.key = wants.key.and_then(|id| self.keys.get(&id)).cloned();
        facts.nth_use = wants.usage.as_ref().and_then(|(usage, nth)| {
            let times = self.uses.get(usage)?;
            times.iter().rev().nth(usize::try_from(*nth).ok()?.checked_sub(1)?).copied()
        });
        facts
    }

    fn apply(&mut self, event: Event, now: i64) {
        let time = Timestamp::from_micros(now);
        match event {
            Event::CertificateIssued(tunnel, _) => self.replace(&tunnel),
            Event::SigningCounted(tunnel) => self.uses.entry(Usage::Sign(tunnel)).or_default().push(time),
            Event::IdentityCreated(identity) => {
                self.identities_ever.push(identity.id);
                self.owners_ever.insert(identity.id, identity.organization.clone());
                assert!(self.identities.insert(identity.id, identity).is_none());
            }
            Event::IdentityDeleted(identity) => assert!(self.identities.remove(&identity.id).is_some()),
            Event::IdentityUpdated(identity) => {
                assert!(self.identities.insert(identity.id, identity).is_some());
            }
            Event::KeyCreated(key) => {
                self.keys_ever.push(key.id);
                assert!(self.keys.insert(key.id, *key).is_none());
            }
            Event::KeyRevoked(key) => assert!(self.keys.insert(key.id, *key).is_some()),
            Event::TunnelCreated(tunnel) => {
                self.tunnels_ever.push(tunnel.id);
                self.uses.entry(Usage::Create(tunnel.organization.clone())).or_default().push(time);
                assert!(self.tunnels.insert(tunnel.id, *tunnel).is_none());
            }
            Event::TunnelFinalized(tunnel) => {
                assert_eq!((tunnel.status, tunnel.restore_deadline), (Status::Deleted, None));
                assert!(self.tunnels.remove(&tunnel.id).is_some());
            }
            Event::SecretRotated(tunnel)
            | Event::TunnelConnected(tunnel)
            | Event::TunnelDeleted(tunnel)
            | Event::TunnelDisconnected(tunnel)
            | Event::TunnelRenamed(tunnel)
            | Event::TunnelRestored(tunnel)
            | Event::TunnelUpdated(tunnel) => self.replace(&tunnel),
        }
    }

    fn replace(&mut self, tunnel: &Tunnel) {
        let before = self.tunnels.insert(tunnel.id, tunnel.clone()).expect("what changes exists");
        assert_eq!(before.organization, tunnel.organization);
        assert_eq!(before.identity, tunnel.identity);
        assert_eq!(before.tls_mode, tunnel.tls_mode);
        assert_eq!(before.created_at, tunnel.created_at);
    }

    fn organization_ever(&self, identity: IdentityId) -> OrganizationId {
        self.owners_ever.get(&identity).cloned().unwrap_or_else(|| OrganizationId::new(ORGANIZATIONS[0]))
    }

    /// Every record, and who sees what, in lines.
    fn seen(&self, now: i64) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for tunnel in self.tunnels.values() {
            let status = match tunnel.status {
                Status::Active => "active",
                Status::AwaitingCert => "awaiting_cert",
                Status::DeletePending => "delete_pending",
                Status::Deleted => "deleted",
            };
            lines.insert(line(&PlainTunnel {
                id: tunnel.id,
                organization: tunnel.organization.to_string(),
                name: tunnel.name.to_string(),
                identity: tunnel.identity,
                passthrough: tunnel.tls_mode == TlsMode::Passthrough,
                status,
                description: tunnel.description.as_ref().map(|text| text.as_str().to_owned()),
                metadata: tunnel.metadata.to_string(),
                certificate: tunnel
                    .certificate
                    .as_ref()
                    .map(|found| (found.pem.clone(), found.expires_at.micros(), found.renew_at.map(Timestamp::micros))),
                secret: tunnel.secret_hash.map(|hash| *hash.as_bytes()),
                deadline: tunnel.restore_deadline.map(Timestamp::micros),
                created: tunnel.created_at.micros(),
                updated: tunnel.updated_at.micros(),
            }));
            for organization in ORGANIZATIONS {
                let admin = Caller::Key {
                    id: KeyId::from_bytes([0; 16]),
                    organization: OrganizationId::new(organization),
                    scope: Scope::Admin,
                };
                if admin.sees_tunnel(tunnel) && !tunnel.is_expired(Timestamp::from_micros(now)) {
                    lines.insert(format!("{organization} sees {}", tunnel.id));
                }
            }
        }
        for identity in self.identities.values() {
            lines.insert(line(&PlainIdentity {
                id: identity.id,
                organization: identity.organization.to_string(),
                handle: identity.handle.to_string(),
                display_name: identity.display_name.as_ref().map(|text| text.as_str().to_owned()),
                description: identity.description.as_ref().map(|text| text.as_str().to_owned()),
                tunnel: identity.tunnel,
                created: identity.created_at.micros(),
                updated: identity.updated_at.micros(),
            }));
        }
        for key in self.keys.values() {
            lines.insert(line(&PlainKey {
                id: key.id,
                organization: key.organization.to_string(),
                identity: match key.scope {
                    Scope::Admin => None,
                    Scope::Identity(identity) => Some(identity),
                },
                description: key.description.as_ref().map(|text| text.as_str().to_owned()),
                hash: *key.hash.as_bytes(),
                created_by: key.created_by,
                created: key.created_at.micros(),
                updated: key.updated_at.micros(),
                revoked: key.revoked_at.map(Timestamp::micros),
            }));
        }
        lines
    }

    /// What holds whatever happened before.
    fn check(&self) {
        let names: BTreeSet<_> = self.tunnels.values().map(|tunnel| &tunnel.name).collect();
        assert_eq!(names.len(), self.tunnels.len(), "two tunnels have one name");
        for tunnel in self.tunnels.values() {
            let pending = tunnel.status == Status::DeletePending;
            assert_eq!(
                pending,
                tunnel.restore_deadline.is_some(),
                "delete_pending has a deadline, nothing else: {tunnel:?}"
            );
            assert_ne!(tunnel.status, Status::Deleted, "kept after its end: {tunnel:?}");
            let passthrough = tunnel.tls_mode == TlsMode::Passthrough;
            assert!(passthrough || tunnel.status != Status::AwaitingCert, "edge awaits a certificate: {tunnel:?}");
            assert!(passthrough || tunnel.certificate.is_none(), "edge has a certificate: {tunnel:?}");
            assert!(tunnel.identity.is_none() || !pending, "goes without its identity: {tunnel:?}");
            if let Some(identity) = tunnel.identity {
                let identity = self.identities.get(&identity).expect("its identity exists");
                assert_eq!(identity.tunnel, tunnel.id);
            }
        }
        for identity in self.identities.values() {
            let tunnels: Vec<_> = self.tunnels.values().filter(|tunnel| tunnel.identity == Some(identity.id)).collect();
            let [tunnel] = tunnels[..] else { panic!("{identity:?} has {} tunnels", tunnels.len()) };
            assert_eq!((tunnel.id, &tunnel.name), (identity.tunnel, &identity.handle));
            assert_eq!(tunnel.organization, identity.organization);
        }
        for key in self.keys.values() {
            if let (Scope::Identity(identity), None) = (key.scope, key.revoked_at) {
                let identity = self.identities.get(&identity).expect("an active key's identity exists");
                assert_eq!(identity.organization, key.organization);
            }
        }
        for (usage, times) in &self.uses {
            let limit = match usage {
                Usage::Create(_) => CREATES,
                Usage::Sign(_) => SIGNINGS,
            };
            for end in times {
                let within = times.iter().filter(|time| *time <= end && end.since(**time) < DAY).count();
                assert!(within <= limit as usize, "{usage:?}: {within} within a day");
            }
        }
    }
}

fn line(record: &impl std::fmt::Debug) -> String {
    format!("{record:?}")
}

/// The plain model.
#[derive(Default)]
struct Plain {
    tunnels: Vec<PlainTunnel>,
    identities: Vec<PlainIdentity>,
    keys: Vec<PlainKey>,
    creations: Vec<(String, i64)>,
    signings: Vec<(TunnelId, i64)>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "read by Debug, to be compared as text")]
struct PlainTunnel {
    id: TunnelId,
    organization: String,
    name: String,
    identity: Option<IdentityId>,
    passthrough: bool,
    status: &'static str,
    description: Option<String>,
    metadata: String,
    certificate: Option<(String, i64, Option<i64>)>,
    secret: Option<[u8; 32]>,
    deadline: Option<i64>,
    created: i64,
    updated: i64,
}

#[derive(Debug)]
#[expect(dead_code, reason = "read by Debug, to be compared as text")]
struct PlainIdentity {
    id: IdentityId,
    organization: String,
    handle: String,
    display_name: Option<String>,
    description: Option<String>,
    tunnel: TunnelId,
    created: i64,
    updated: i64,
}

#[derive(Debug)]
#[expect(dead_code, reason = "read by Debug, to be compared as text")]
struct PlainKey {
    id: KeyId,
    organization: String,
    identity: Option<IdentityId>,
    description: Option<String>,
    hash: [u8; 32],
    created_by: Option<KeyId>,
    created: i64,
    updated: i64,
    revoked: Option<i64>,
}

/// Who calls, as the plain model sees it.
struct Who {
    key: Option<KeyId>,
    organization: Option<String>,
    identity: Option<IdentityId>,
}

impl Who {
    fn of(caller: &Caller) -> Self {
        match caller {
            Caller::System => Self { key: None, organization: None, identity: None },
            Caller::Key { id, organization, scope } => Self {
                key: Some(*id),
                organization: Some(organization.to_string()),
                identity: if let Scope::Identity(identity) = scope { Some(*identity) } else { None },
            },
        }
    }

    fn may_see(&self, organization: &str, identity: Option<IdentityId>) -> bool {
        if self.identity.is_some() {
            return self.identity == identity;
        }
        self.organization.is_none() || self.organization.as_deref() == Some(organization)
    }
}

const NO_TUNNEL: Refusal = Refusal::NotFound(Kind::Tunnel);
const NO_IDENTITY: Refusal = Refusal::NotFound(Kind::Identity);
const NO_KEY: Refusal = Refusal::NotFound(Kind::ApiKey);

impl Plain {
    fn step(&mut self, caller: &Caller, command: &Command, now: i64) -> Result<Vec<&'static str>, Refusal> {
        let who = Who::of(caller);
        match command {
            Command::CreateTunnel { id, name, tls_mode, description, secret_hash } => {
                let (organization, mut told) = self.make_room(&who, name.as_str(), now)?;
                self.creations.push((organization.clone(), now));
                self.tunnels.push(PlainTunnel {
                    id: *id,
                    organization,
                    name: name.to_string(),
                    identity: None,
                    passthrough: *tls_mode == TlsMode::Passthrough,
                    status: if *tls_mode == TlsMode::Edge { "active" } else { "awaiting_cert" },
                    description: description.as_ref().map(|text| text.as_str().to_owned()),
                    metadata: "{}".to_owned(),
                    certificate: None,
                    secret: Some(*secret_hash.as_bytes()),
                    deadline: None,
                    created: now,
                    updated: now,
                });
                told.push("TunnelCreated");
                Ok(told)
            }
            Command::CreateIdentity { id, tunnel, handle, display_name, description, tls_mode } => {
                let (organization, mut told) = self.make_room(&who, handle.as_str(), now)?;
                self.creations.push((organization.clone(), now));
                self.tunnels.push(PlainTunnel {
                    id: *tunnel,
                    organization: organization.clone(),
                    name: handle.to_string(),
                    identity: Some(*id),
                    passthrough: *tls_mode == TlsMode::Passthrough,
                    status: if *tls_mode == TlsMode::Edge { "active" } else { "awaiting_cert" },
                    description: None,
                    metadata: "{}".to_owned(),
                    certificate: None,
                    secret: None,
                    deadline: None,
                    created: now,
                    updated: now,
                });
                self.identities.push(PlainIdentity {
                    id: *id,
                    organization,
                    handle: handle.to_string(),
                    display_name: display_name.as_ref().map(|text| text.as_str().to_owned()),
                    description: description.as_ref().map(|text| text.as_str().to_owned()),
                    tunnel: *tunnel,
                    created: now,
                    updated: now,
                });
                told.extend(["TunnelCreated", "IdentityCreated"]);
                Ok(told)
            }
            Command::UpdateTunnel { id, description, metadata } => {
                let at = self.living_tunnel(&who, *id, now)?;
                if description.is_none() && metadata.is_none() {
                    return Ok(vec![]);
                }
                let tunnel = &mut self.tunnels[at];
                if let Some(description) = description {
                    tunnel.description = description.as_ref().map(|text| text.as_str().to_owned());
                }
                if let Some(metadata) = metadata {
                    tunnel.metadata = metadata.to_string();
                }
                tunnel.updated = now;
                Ok(vec!["TunnelUpdated"])
            }
            Command::FinishOrder { .. } if caller.organization().is_some() => Err(Refusal::Forbidden),
            Command::RecordCertificate { id, name, .. }
            | Command::BeginOrder { id, name }
            | Command::FinishOrder { id, name, .. } => {
                let at = self.living_tunnel(&who, *id, now)?;
                if !self.tunnels[at].passthrough {
                    return Err(Refusal::NotPassthrough);
                }
                if self.tunnels[at].status == "delete_pending" || self.tunnels[at].name != name.as_str() {
                    return Err(Refusal::NotSignable);
                }
                let (mut issued, mut counted) = (vec![], vec![]);
                if !matches!(command, Command::FinishOrder { .. }) {
                    let times: Vec<i64> = self.signings.iter().filter(|(of, _)| of == id).map(|(_, at)| *at).collect();
                    if let Some(retry_after) = wait(&times, SIGNINGS, now) {
                        return Err(Refusal::SignQuota { limit: SIGNINGS, retry_after });
                    }
                    self.signings.push((*id, now));
                    counted.push("SigningCounted");
                }
                if let Command::RecordCertificate { certificate, .. } | Command::FinishOrder { certificate, .. } =
                    command
                {
                    let tunnel = &mut self.tunnels[at];
                    tunnel.certificate = Some((certificate.pem.clone(), certificate.expires_at.micros(), None));
                    tunnel.status = "active";
                    tunnel.updated = now;
                    issued.push("CertificateIssued");
                }
                issued.append(&mut counted);
                Ok(issued)
            }
            Command::SetRenewal { .. } if caller.organization().is_some() => Err(Refusal::Forbidden),
            Command::SetRenewal { id, renew_at, .. } => {
                let at = self.living_tunnel(&who, *id, now)?;
                match &mut self.tunnels[at].certificate {
                    Some((_, _, before)) if *before != Some(renew_at.micros()) => {
                        *before = Some(renew_at.micros());
                        Ok(vec!["TunnelUpdated"])
                    }
                    _ => Ok(vec![]),
                }
            }
            Command::DeleteTunnel { id } => {
                let at = self.living_tunnel(&who, *id, now)?;
                let tunnel = &mut self.tunnels[at];
                if tunnel.identity.is_some() {
                    return Err(Refusal::IdentityOwned);
                }
                if tunnel.status == "delete_pending" {
                    return Ok(vec![]);
                }
                tunnel.status = "delete_pending";
                tunnel.deadline = Some(now + DAY_MICROS);
                tunnel.updated = now;
                Ok(vec!["TunnelDeleted"])
            }
            Command::RestoreTunnel { id } => {
                let at = self.visible_tunnel(&who, *id)?;
                let over = self.over(at, now);
                let tunnel = &mut self.tunnels[at];
                if tunnel.status != "delete_pending" {
                    return Err(Refusal::NotDeletePending);
                }
                if over {
                    return Err(Refusal::RestoreWindowOver);
                }
                let certified = tunnel.certificate.as_ref().is_some_and(|(_, expires_at, _)| *expires_at > now);
                tunnel.status = if tunnel.passthrough && !certified { "awaiting_cert" } else { "active" };
                tunnel.deadline = None;
                tunnel.updated = now;
                Ok(vec!["TunnelRestored"])
            }
            Command::ForceDeleteTunnel { id } => {
                if who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                let at = self.living_tunnel(&who, *id, now)?;
                if self.tunnels[at].status != "delete_pending" {
                    return Err(Refusal::NotDeletePending);
                }
                self.tunnels.remove(at);
                Ok(vec!["TunnelFinalized"])
            }
            Command::FinalizeTunnel { id } => {
                let at = self.visible_tunnel(&who, *id)?;
                if who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                if !self.over(at, now) {
                    return Err(Refusal::NotDeletePending);
                }
                self.tunnels.remove(at);
                Ok(vec!["TunnelFinalized"])
            }
            Command::RecordHello { id, .. } | Command::RecordGoodbye { id } => {
                if !matches!(caller, Caller::System) {
                    return Err(Refusal::Forbidden);
                }
                self.living_tunnel(&who, *id, now)?;
                let is_hello = matches!(command, Command::RecordHello { .. });
                Ok(vec![if is_hello { "TunnelConnected" } else { "TunnelDisconnected" }])
            }
            Command::RotateSecret { id, secret_hash } => {
                let at = self.living_tunnel(&who, *id, now)?;
                self.tunnels[at].secret = Some(*secret_hash.as_bytes());
                self.tunnels[at].updated = now;
                Ok(vec!["SecretRotated"])
            }
            Command::UpdateIdentity { handle, rename, display_name, description } => {
                let at = self.visible_identity(&who, |identity| identity.handle == handle.as_str())?;
                let rename = rename.as_ref().filter(|rename| *rename != handle);
                if rename.is_some() && who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                let mut told = vec![];
                if let Some(rename) = rename {
                    told = self.take_name(rename.as_str(), now)?;
                    let id = self.identities[at].tunnel;
                    let tunnel = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id).expect("its tunnel");
                    tunnel.name = rename.to_string();
                    tunnel.certificate = None;
                    tunnel.status = if tunnel.passthrough { "awaiting_cert" } else { "active" };
                    tunnel.updated = now;
                    self.identities[at].handle = rename.to_string();
                    told.push("TunnelRenamed");
                }
                let identity = &mut self.identities[at];
                if let Some(display_name) = display_name {
                    identity.display_name = display_name.as_ref().map(|text| text.as_str().to_owned());
                }
                if let Some(description) = description {
                    identity.description = description.as_ref().map(|text| text.as_str().to_owned());
                }
                if rename.is_some() || display_name.is_some() || description.is_some() {
                    identity.updated = now;
                    told.push("IdentityUpdated");
                }
                Ok(told)
            }
            Command::DeleteIdentity { handle } => {
                let at = self.visible_identity(&who, |identity| identity.handle == handle.as_str())?;
                if who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                let identity = self.identities.remove(at);
                let mut told = vec![];
                for key in &mut self.keys {
                    if key.identity == Some(identity.id) && key.revoked.is_none() {
                        key.revoked = Some(now);
                        key.updated = now;
                        told.push("KeyRevoked");
                    }
                }
                self.tunnels.retain(|tunnel| tunnel.id != identity.tunnel);
                told.extend(["TunnelFinalized", "IdentityDeleted"]);
                Ok(told)
            }
            Command::CreateKey { id, organization, identity, description, hash, .. } => {
                if who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                match identity {
                    Some(identity) => {
                        self.visible_identity(&who, |found| found.id == *identity)?;
                    }
                    None if who.key.is_some() => return Err(Refusal::AdminKeyForbidden),
                    None => {}
                }
                self.keys.push(PlainKey {
                    id: *id,
                    organization: organization.to_string(),
                    identity: *identity,
                    description: description.as_ref().map(|text| text.as_str().to_owned()),
                    hash: *hash.as_bytes(),
                    created_by: who.key,
                    created: now,
                    updated: now,
                    revoked: None,
                });
                Ok(vec!["KeyCreated"])
            }
            Command::RevokeKey { id } => {
                if who.identity.is_some() {
                    return Err(Refusal::Forbidden);
                }
                let key = self.keys.iter_mut().find(|key| key.id == *id).ok_or(NO_KEY)?;
                if who.organization.as_ref().is_some_and(|organization| *organization != key.organization) {
                    return Err(NO_KEY);
                }
                if key.revoked.is_some() {
                    return Ok(vec![]);
                }
                key.revoked = Some(now);
                key.updated = now;
                Ok(vec!["KeyRevoked"])
            }
        }
    }

    /// Whose the new tunnel will be, once its name is free and the quota kept.
    fn make_room(&mut self, who: &Who, name: &str, now: i64) -> Result<(String, Vec<&'static str>), Refusal> {
        let organization = who.organization.clone().filter(|_| who.identity.is_none()).ok_or(Refusal::Forbidden)?;
        self.may_take_name(name, now)?;
        let times: Vec<i64> = self.creations.iter().filter(|(of, _)| *of == organization).map(|(_, at)| *at).collect();
        if let Some(retry_after) = wait(&times, CREATES, now) {
            return Err(Refusal::CreateQuota { limit: CREATES, retry_after });
        }
        let told = self.take_name(name, now)?;
        Ok((organization, told))
    }

    fn may_take_name(&self, name: &str, now: i64) -> Result<(), Refusal> {
        match name {
            "www" => return Err(Refusal::NameUnavailable(Unavailable::Reserved)),
            "denied-word" => return Err(Refusal::NameUnavailable(Unavailable::Denied)),
            _ => {}
        }
        for (at, tunnel) in self.tunnels.iter().enumerate() {
            if tunnel.name == name && !self.over(at, now) {
                return Err(Refusal::NameTaken { by_identity: tunnel.identity.is_some() });
            }
        }
        Ok(())
    }

    fn take_name(&mut self, name: &str, now: i64) -> Result<Vec<&'static str>, Refusal> {
        self.may_take_name(name, now)?;
        let before = self.tunnels.len();
        self.tunnels.retain(|tunnel| tunnel.name != name);
        Ok(if self.tunnels.len() < before { vec!["TunnelFinalized"] } else { vec![] })
    }

    fn over(&self, at: usize, now: i64) -> bool {
        self.tunnels[at].deadline.is_some_and(|deadline| deadline <= now)
    }

    fn visible_tunnel(&self, who: &Who, id: TunnelId) -> Result<usize, Refusal> {
        let is_it = |tunnel: &PlainTunnel| tunnel.id == id && who.may_see(&tunnel.organization, tunnel.identity);
        self.tunnels.iter().position(is_it).ok_or(NO_TUNNEL)
    }

    fn living_tunnel(&self, who: &Who, id: TunnelId, now: i64) -> Result<usize, Refusal> {
        let at = self.visible_tunnel(who, id)?;
        if self.over(at, now) { Err(NO_TUNNEL) } else { Ok(at) }
    }

    fn visible_identity(&self, who: &Who, is_it: impl Fn(&PlainIdentity) -> bool) -> Result<usize, Refusal> {
        let seen = |identity: &PlainIdentity| who.may_see(&identity.organization, Some(identity.id));
        self.identities.iter().position(|identity| is_it(identity) && seen(identity)).ok_or(NO_IDENTITY)
    }

    fn seen(&self, now: i64) -> BTreeSet<String> {
        let mut lines: BTreeSet<_> = self.tunnels.iter().map(line).collect();
        lines.extend(self.identities.iter().map(line));
        lines.extend(self.keys.iter().map(line));
        for (at, tunnel) in self.tunnels.iter().enumerate() {
            if !self.over(at, now) {
                lines.insert(format!("{} sees {}", tunnel.organization, tunnel.id));
            }
        }
        lines
    }
}

/// How long until the oldest of the last day's successes is a day old, if
/// there are as many as may be.
fn wait(times: &[i64], limit: u32, now: i64) -> Option<Duration> {
    let recent: Vec<i64> = times.iter().copied().filter(|time| time + DAY_MICROS > now).collect();
    if recent.len() < limit as usize {
        return None;
    }
    let oldest = recent.iter().min()?;
    let micros = u64::try_from(oldest + DAY_MICROS - now).expect("still to come");
    Some(Duration::from_micros(micros).max(Duration::from_secs(1)))
}
