//! Callers, commands and times for the tests of stores.

use std::sync::Arc;
use std::time::Duration;

use store::{ExecuteError, Store};
use tunnel_model::{
    ApiKey, Caller, Certificate, Command, Event, IdentityId, Issuer, KeyId, OrganizationId, Origin, Refusal, Rules,
    Scope, SecretHash, Timestamp, TlsMode, Tunnel, TunnelId, TunnelName,
};

pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_750_000_000_123_456);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn name(text: &str) -> TunnelName {
    text.parse().expect("a name")
}

pub(crate) fn organization(text: &str) -> OrganizationId {
    OrganizationId::new(text)
}

/// The admin of `org_own`.
pub(crate) fn admin() -> Caller {
    admin_of("org_own")
}

pub(crate) fn admin_of(text: &str) -> Caller {
    Caller::Key { id: KeyId::from_bytes([7; 16]), organization: organization(text), scope: Scope::Admin }
}

pub(crate) fn tunnel_id(number: u8) -> TunnelId {
    TunnelId::from_bytes([number; 16])
}

pub(crate) fn identity_id(number: u8) -> IdentityId {
    IdentityId::from_bytes([number; 16])
}

pub(crate) fn key_id(number: u8) -> KeyId {
    KeyId::from_bytes([number; 16])
}

pub(crate) fn create_tunnel(number: u8, of: &str, tls_mode: TlsMode) -> Command {
    Command::CreateTunnel {
        id: tunnel_id(number),
        name: name(of),
        tls_mode,
        description: Some(format!("ünïcode ☃ of {of}").parse().expect("a description")),
        secret_hash: SecretHash::from_sha256([number; 32]),
    }
}

pub(crate) fn create_identity(number: u8, of: &str) -> Command {
    Command::CreateIdentity {
        id: identity_id(number),
        tunnel: tunnel_id(number),
        handle: name(of),
        display_name: Some("Display ñame".parse().expect("a label")),
        description: Some("line one\nline 'two' \"three\"".parse().expect("a description")),
        tls_mode: TlsMode::Passthrough,
    }
}

pub(crate) fn create_key(number: u8, identity: Option<IdentityId>) -> Command {
    Command::CreateKey {
        id: key_id(number),
        organization: organization("org_own"),
        identity,
        label: "a key".parse().expect("a label"),
        description: Some("for a test".parse().expect("a description")),
        hash: SecretHash::from_sha256([number; 32]),
        last4: "wxyz".to_owned(),
    }
}

pub(crate) fn record(number: u8, of: &str, serial: u8) -> Command {
    Command::RecordCertificate {
        id: tunnel_id(number),
        name: name(of),
        certificate: certificate(serial),
        origin: origin(serial),
    }
}

pub(crate) fn origin(serial: u8) -> Origin {
    let requested_by = Some(key_id(7));
    Origin {
        issuer: Issuer::Private,
        requested_by,
        key: [serial ^ 0xff; 32],
        not_before: NOW,
        profile: Some("short".to_owned()),
    }
}

pub(crate) fn certificate(serial: u8) -> Certificate {
    Certificate {
        pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
        fingerprint: [serial; 32],
        serial: vec![0x7f, serial],
        expires_at: NOW.plus(90 * DAY),
        renew_at: Some(NOW.plus(60 * DAY)),
    }
}

pub(crate) fn rename(from: &str, to: &str) -> Command {
    Command::UpdateIdentity { handle: name(from), rename: Some(name(to)), display_name: None, description: None }
}

/// Executes with the rules that clients expect.
pub(crate) async fn execute(
    store: &dyn Store,
    caller: Caller,
    command: Command,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    match store.execute(caller, command, &Arc::new(Rules::new()), now).await {
        Ok(events) => Ok(events),
        Err(ExecuteError::Refused(refusal)) => Err(refusal),
        Err(ExecuteError::Store(error)) => panic!("the store failed: {error:?}"),
    }
}

/// By the admin of `org_own`, now; it must succeed.
pub(crate) async fn done(store: &dyn Store, command: Command) -> Vec<Event> {
    execute(store, admin(), command, NOW).await.expect("it is allowed")
}

/// Every field; a secret's hash has no `Debug` that tells it.
pub(crate) fn tunnel_text(tunnel: &Tunnel) -> String {
    format!("{tunnel:?} {:?}", tunnel.secret_hash.map(|hash| *hash.as_bytes()))
}

/// Every field.
pub(crate) fn key_text(key: &ApiKey) -> String {
    format!("{key:?} {:?}", key.hash.as_bytes())
}
