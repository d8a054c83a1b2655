//! What is stored: tunnels, the identities that own them, and API keys.
//!
//! Plain data. Records change only by the events of [`decide`](crate::decide).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{IdentityId, KeyId, OrganizationId, SecretHash, TunnelId};
use crate::name::TunnelName;
use crate::time::Timestamp;

/// Who terminates the TLS of third parties. Fixed at creation.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// The server, with a certificate of its own.
    #[default]
    Edge,
    /// The agent, with a key that the server never sees.
    Passthrough,
}

/// Where a tunnel is in its life.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Passthrough, and no certificate has been signed for its name.
    AwaitingCert,
    /// Routable.
    Active,
    /// Deleted, and may be restored until its deadline.
    DeletePending,
    /// Gone. Seen in the answer to the deletion only; nothing is stored.
    Deleted,
}

/// One tunnel.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Names it for ever.
    pub id: TunnelId,
    /// Who owns it.
    pub organization: OrganizationId,
    /// The label; unique among all tunnels.
    pub name: TunnelName,
    /// The identity that it belongs to, or none if it was created by itself.
    pub identity: Option<IdentityId>,
    /// Who terminates TLS.
    pub tls_mode: TlsMode,
    /// Where it is in its life.
    pub status: Status,
    /// The owner's words.
    pub description: Option<Description>,
    /// The owner's data.
    pub metadata: Metadata,
    /// The certificate of the last signing.
    pub certificate: Option<Certificate>,
    /// Hash of the connect secret, if it has one.
    pub secret_hash: Option<SecretHash>,
    /// The last successful hello of an agent.
    pub last_connected_at: Option<Timestamp>,
    /// Where that agent came from.
    pub last_connected_ip: Option<IpAddr>,
    /// When the last agent left.
    pub last_disconnected_at: Option<Timestamp>,
    /// Until when it may be restored; set while `DeletePending` only.
    pub restore_deadline: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl Tunnel {
    /// Is its restore window over? It is as good as deleted then, whether or
    /// not the sweep has been there.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.status == Status::DeletePending && self.restore_deadline.is_none_or(|deadline| now >= deadline)
    }

    /// The status of a tunnel that is not deleted, by what it has.
    pub(crate) fn live_status(&self, now: Timestamp) -> Status {
        let has_certificate = self.certificate.as_ref().is_some_and(|certificate| now < certificate.expires_at);
        if self.tls_mode == TlsMode::Edge || has_certificate { Status::Active } else { Status::AwaitingCert }
    }
}

/// A signed certificate as the tunnel remembers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The leaf as PEM with a final newline.
    pub pem: String,
    /// SHA-256 of the DER.
    pub fingerprint: [u8; 32],
    /// The serial number's octets.
    pub serial: Vec<u8>,
    /// The end of its validity.
    pub expires_at: Timestamp,
    /// When the next one is to be asked for; unknown of some that are older than this field.
    pub renew_at: Option<Timestamp>,
}

/// What is on record of a certificate, beside what its tunnel remembers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Who signed it.
    pub issuer: Issuer,
    /// The key of whoever asked; the server itself has none.
    pub requested_by: Option<KeyId>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The beginning of its validity.
    pub not_before: Timestamp,
    /// The issuer's word for its kind, where it has several.
    pub profile: Option<String>,
}

/// Who signs certificates.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Issuer {
    /// The deployment's own authority.
    Private,
    /// A public authority, by ACME (RFC 8555).
    Acme,
}

/// One identity: a handle with the tunnel of the same name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Names it for ever.
    pub id: IdentityId,
    /// Who owns it.
    pub organization: OrganizationId,
    /// The handle, which is its tunnel's name.
    pub handle: TunnelName,
    /// A name for people.
    pub display_name: Option<Label>,
    /// The owner's words.
    pub description: Option<Description>,
    /// The tunnel of the same name.
    pub tunnel: TunnelId,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scope {
    /// Everything in its organization.
    Admin,
    /// What concerns one identity and its tunnel.
    Identity(IdentityId),
}

/// One API key.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// Names it for ever.
    pub id: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// What it may do.
    pub scope: Scope,
    /// The owner's name for it.
    pub label: Label,
    /// The owner's words.
    pub description: Option<Description>,
    /// Hash of the whole key.
    pub hash: SecretHash,
    /// The last four characters of the key, to tell keys apart by.
    pub last4: String,
    /// The key that created it; none for the first one.
    pub created_by: Option<KeyId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was last used, to the minute or so.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A description of at most 1000 characters.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Description(String);

/// A description that is too long, or has a NUL.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a description has at most 1000 characters and no NUL")]
pub struct DescriptionError;

impl Description {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Description {
    type Err = DescriptionError;

    fn from_str(text: &str) -> Result<Self, DescriptionError> {
        if text.chars().count() > 1000 || text.contains('\0') {
            return Err(DescriptionError);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A label of 1 to 255 characters.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// A label that is empty, too long, or has control characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a label has 1 to 255 characters and no control characters")]
pub struct LabelError;

impl Label {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if !(1..=255).contains(&text.chars().count()) || text.chars().any(char::is_control) {
            return Err(LabelError);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A JSON object of at most 4096 octets when written without white space.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata(serde_json::Map<String, serde_json::Value>);

/// Metadata that is too large.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("metadata has {size} octets as JSON, and 4096 are kept")]
pub struct MetadataError {
    /// Octets of the JSON.
    pub size: usize,
}

impl Metadata {
    const MAX: usize = 4096;

    /// The object.
    pub fn as_map(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.0
    }
}

impl TryFrom<serde_json::Map<String, serde_json::Value>> for Metadata {
    type Error = MetadataError;

    fn try_from(map: serde_json::Map<String, serde_json::Value>) -> Result<Self, MetadataError> {
        let metadata = Self(map);
        let size = metadata.to_string().len();
        if size > Self::MAX { Err(MetadataError { size }) } else { Ok(metadata) }
    }
}

impl fmt::Display for Metadata {
    /// The JSON without white space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}
