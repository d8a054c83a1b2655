//! The JSON of tunnels, identities and keys: every field that a client of
//! either generation reads, always sent.

use base16ct::lower;
use jiff::tz::Offset;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tunnel_model::{Identity, Scope, Status, Timestamp, TlsMode, Tunnel, key_id_text};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;

/// One tunnel, in the union of what both generations of clients read.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tunnel)]
pub(super) struct TunnelBody {
    /// Names it for ever.
    id: Uuid,
    /// Who owns it.
    organization_id: String,
    /// The label before the zone.
    tunnel_name: String,
    /// The owner's words, at most 1000 characters.
    description: Option<String>,
    /// The identity that it belongs to.
    agent_identity_id: Option<Uuid>,
    tls_mode: TlsModeBody,
    /// The leaf of the last signing, PEM with a final newline.
    cert_pem: Option<String>,
    /// SHA-256 of its DER, lower-case hex.
    cert_fingerprint_sha256: Option<String>,
    /// The end of its validity, RFC 3339.
    cert_expires_at: Option<String>,
    /// When the next one is to be asked for, RFC 3339.
    renew_after: Option<String>,
    status: StatusBody,
    /// What is to be done about the status, if something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<&'static str>,
    /// The last hello of an agent, RFC 3339.
    last_connected_at: Option<String>,
    /// Where it came from.
    last_connected_ip_addr: Option<String>,
    /// When the last agent left, RFC 3339.
    last_disconnected_at: Option<String>,
    /// Until when a deletion can be taken back, RFC 3339.
    restore_deadline_at: Option<String>,
    /// Is an agent connected now?
    currently_connected: bool,
    /// The host that third parties call.
    public_host: String,
    /// The host that agents dial.
    zone: String,
    /// The owner's data, at most 4 KB as JSON.
    metadata: serde_json::Map<String, serde_json::Value>,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
}

impl TunnelBody {
    pub(super) fn new(tunnel: Tunnel, app: &App) -> Self {
        let zone = app.zone();
        let currently_connected = app.is_connected(tunnel.id);
        // A rename drops the certificate, and most agents sign when they start only.
        let is_stale =
            tunnel.status == Status::AwaitingCert && currently_connected && !app.has_own_certificate(tunnel.id);
        let renew_at = tunnel.certificate.as_ref().and_then(|certificate| certificate.renew_at);
        let (cert_pem, fingerprint, expires_at) = match tunnel.certificate {
            Some(certificate) => (
                Some(certificate.pem),
                Some(lower::encode_string(&certificate.fingerprint)),
                Some(certificate.expires_at),
            ),
            None => (None, None, None),
        };
        Self {
            id: tunnel.id.uuid(),
            organization_id: tunnel.organization.to_string(),
            description: tunnel.description.map(|description| description.as_str().to_owned()),
            agent_identity_id: tunnel.identity.map(|identity| identity.uuid()),
            tls_mode: tunnel.tls_mode.into(),
            cert_pem,
            cert_fingerprint_sha256: fingerprint,
            cert_expires_at: expires_at.map(rfc3339),
            renew_after: renew_at.map(rfc3339),
            status: tunnel.status.into(),
            status_reason: is_stale.then_some(STALE),
            last_connected_at: tunnel.last_connected_at.map(rfc3339),
            last_connected_ip_addr: tunnel.last_connected_ip.map(|address| address.to_string()),
            last_disconnected_at: tunnel.last_disconnected_at.map(rfc3339),
            restore_deadline_at: tunnel.restore_deadline.map(rfc3339),
            currently_connected,
            public_host: zone.host(&tunnel.name).to_string(),
            zone: zone.to_string(),
            tunnel_name: tunnel.name.to_string(),
            metadata: tunnel.metadata.as_map().clone(),
            created_at: rfc3339(tunnel.created_at),
            updated_at: rfc3339(tunnel.updated_at),
        }
    }
}

/// Why a tunnel with an agent carries nothing.
const STALE: &str = "the connected agent has no certificate for the public host, which may have been renamed: \
                     restart the agent, so that it has one signed";

/// Who terminates the TLS of third parties.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TlsMode)]
pub(super) enum TlsModeBody {
    /// The server.
    #[default]
    Edge,
    /// The agent, with its own key.
    Passthrough,
}

// Derived, it would take `{"edge": null}`, and a number would be called a syntax error.
impl<'de> Deserialize<'de> for TlsModeBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "edge" => Ok(Self::Edge),
            "passthrough" => Ok(Self::Passthrough),
            _ => Err(D::Error::custom("tls_mode is `edge` or `passthrough`")),
        }
    }
}

impl From<TlsMode> for TlsModeBody {
    fn from(mode: TlsMode) -> Self {
        match mode {
            TlsMode::Edge => Self::Edge,
            TlsMode::Passthrough => Self::Passthrough,
        }
    }
}

impl From<TlsModeBody> for TlsMode {
    fn from(mode: TlsModeBody) -> Self {
        match mode {
            TlsModeBody::Edge => Self::Edge,
            TlsModeBody::Passthrough => Self::Passthrough,
        }
    }
}

/// Where a tunnel is in its life.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TunnelStatus)]
pub(super) enum StatusBody {
    /// Passthrough without a signed certificate.
    AwaitingCert,
    /// Routable.
    Active,
    /// Deleted, and may be restored until `restore_deadline_at`.
    DeletePending,
    /// Gone; in the answer to `force` only.
    Deleted,
}

impl From<Status> for StatusBody {
    fn from(status: Status) -> Self {
        match status {
            Status::AwaitingCert => Self::AwaitingCert,
            Status::Active => Self::Active,
            Status::DeletePending => Self::DeletePending,
            Status::Deleted => Self::Deleted,
        }
    }
}

/// An identity with its tunnel in full.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Identity)]
pub(super) struct IdentityBody {
    /// Names it for ever.
    id: Uuid,
    /// Who owns it.
    organization_id: String,
    /// Handle, and name of its tunnel.
    agent_handle: String,
    /// A name for people.
    display_name: Option<String>,
    /// The owner's words.
    description: Option<String>,
    /// Always null: this server has tunnels only.
    email_address: Option<String>,
    /// Always null.
    mailbox: Option<String>,
    /// Always null.
    phone_number: Option<String>,
    /// Always null.
    imessage_number: Option<String>,
    /// The tunnel of the same name.
    tunnel: TunnelBody,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
}

impl IdentityBody {
    pub(super) fn new(identity: Identity, tunnel: Tunnel, app: &App) -> Self {
        Self {
            id: identity.id.uuid(),
            organization_id: identity.organization.to_string(),
            agent_handle: identity.handle.to_string(),
            display_name: identity.display_name.map(|name| name.as_str().to_owned()),
            description: identity.description.map(|description| description.as_str().to_owned()),
            email_address: None,
            mailbox: None,
            phone_number: None,
            imessage_number: None,
            tunnel: TunnelBody::new(tunnel, app),
            created_at: rfc3339(identity.created_at),
            updated_at: rfc3339(identity.updated_at),
        }
    }
}

/// An API key without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(super) struct ApiKeyBody {
    /// `ApiKey_` and a UUID.
    id: String,
    /// Whose it is.
    organization_id: String,
    /// The key that created it, or `system`.
    created_by: String,
    /// `human`.
    creator_type: &'static str,
    /// The identity that it is bound to; null for an admin key.
    scoped_identity_id: Option<Uuid>,
    /// The owner's name for it.
    label: String,
    /// The owner's words.
    description: Option<String>,
    status: KeyStatusBody,
    /// The last four characters of the key.
    last4: String,
    /// The start of the key.
    display_prefix: String,
    /// When it was last used, to the minute or so, RFC 3339.
    last_used_at: Option<String>,
    /// Always null: keys last until they are revoked.
    expires_at: Option<String>,
    /// RFC 3339.
    revoked_at: Option<String>,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339.
    updated_at: String,
}

/// Is a key of use?
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ApiKeyStatus)]
pub(super) enum KeyStatusBody {
    /// Yes.
    Active,
    /// No more.
    Revoked,
}

impl From<tunnel_model::ApiKey> for ApiKeyBody {
    fn from(key: tunnel_model::ApiKey) -> Self {
        let id = key_id_text(key.id);
        Self {
            // `ApiKey_` and the first eight hex digits.
            display_prefix: id.chars().take(15).collect(),
            id,
            organization_id: key.organization.to_string(),
            created_by: creator(&key.created_by),
            creator_type: CREATOR_TYPE,
            scoped_identity_id: scoped_identity(key.scope),
            label: key.label.as_str().to_owned(),
            description: key.description.map(|description| description.as_str().to_owned()),
            status: if key.revoked_at.is_some() { KeyStatusBody::Revoked } else { KeyStatusBody::Active },
            last4: key.last4,
            last_used_at: key.last_used_at.map(rfc3339),
            expires_at: None,
            revoked_at: key.revoked_at.map(rfc3339),
            created_at: rfc3339(key.created_at),
            updated_at: rfc3339(key.updated_at),
        }
    }
}

/// The clients know `human` and `agent`; keys here are made by people's keys.
pub(super) const CREATOR_TYPE: &str = "human";

pub(super) fn creator(key: &Option<tunnel_model::KeyId>) -> String {
    key.map_or_else(|| "system".to_owned(), key_id_text)
}

pub(super) fn scoped_identity(scope: Scope) -> Option<Uuid> {
    match scope {
        Scope::Admin => None,
        Scope::Identity(identity) => Some(identity.uuid()),
    }
}

/// RFC 3339 with an offset in digits, which Python reads in every version.
pub(super) fn rfc3339(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_microsecond(time.micros()).unwrap_or(jiff::Timestamp::MAX);
    time.display_with_offset(Offset::UTC).to_string()
}

/// Tells `null` (`Some(None)`) from an absent key (`None`).
pub(super) fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_carry_their_offset_in_digits() {
        assert_eq!(rfc3339(Timestamp::from_micros(0)), "1970-01-01T00:00:00+00:00");
        assert_eq!(rfc3339(Timestamp::from_micros(1_735_689_600_000_001)), "2025-01-01T00:00:00.000001+00:00");
    }
}
