//! Each state with each command, for each kind of caller: a snapshot.
//!
//! `tests/data/transitions.txt` is for reading; a change in it is a change of
//! behaviour that clients may see.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use tunnel_model::{
    ApiKey, Caller, Certificate, Command, Event, Facts, Identity, IdentityId, Issuer, KeyId, Metadata, OrganizationId,
    Origin, Refusal, Rules, Scope, SecretHash, Status, Timestamp, TlsMode, Tunnel, TunnelId, TunnelName, decide,
};

const NOW: Timestamp = Timestamp::from_micros(1_750_000_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn transitions_are_as_recorded() {
    check_snapshot("transitions.txt", &table());
}

#[test]
fn every_command_is_in_the_table() {
    let seen: BTreeSet<_> = commands().iter().map(|(_, command)| variant(command)).collect();
    // As many as `variant` has arms; the compiler sees to it that none is missing there.
    assert_eq!(seen.len(), 18);
}

#[expect(clippy::disallowed_methods, reason = "the model does no I/O; its snapshot is a file")]
fn check_snapshot(file: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, got).expect("the snapshot is written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
        let number = number + 1;
        assert_eq!(got, expected, "{file}, line {number} differs: run with UPDATE_SNAPSHOTS=1 to write it anew");
    }
    let (got, expected) = (got.lines().count(), expected.lines().count());
    assert_eq!(got, expected, "{file} has another length: run with UPDATE_SNAPSHOTS=1 to write it anew");
}

fn table() -> String {
    let callers = callers();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (state, tunnel) in states() {
        rows.push(vec![format!("# {state}")]);
        let heads = callers.iter().map(|(head, _)| (*head).to_owned());
        rows.push(std::iter::once("command".to_owned()).chain(heads).collect());
        for (label, command) in commands() {
            let mut row = vec![label.to_owned()];
            row.extend(callers.iter().map(|(_, caller)| outcome(caller, &command, tunnel.as_ref())));
            rows.push(row);
        }
        rows.push(vec![String::new()]);
    }
    let width =
        |column: usize| rows.iter().filter(|row| row.len() > 1).map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<_> = (0..=callers.len()).map(width).collect();
    let mut text = "Every state x command. A cell has the events with the status afterwards, `-` if nothing happens,\n\
                    or `!` and the refusal. All commands are for the tunnel (or its name) of the state.\n\n"
        .to_owned();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:width$}  ").expect("a String takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

fn states() -> Vec<(&'static str, Option<Tunnel>)> {
    let edge = tunnel(TlsMode::Edge, Status::Active);
    let pending =
        |tunnel: Tunnel, deadline| Tunnel { status: Status::DeletePending, restore_deadline: Some(deadline), ..tunnel };
    let with = |tunnel: Tunnel, expires_at| Tunnel { certificate: Some(certificate(expires_at)), ..tunnel };
    let awaiting = tunnel(TlsMode::Passthrough, Status::AwaitingCert);
    let active = tunnel(TlsMode::Passthrough, Status::Active);
    let valid = with(active.clone(), NOW.plus(HOUR));
    let expired = with(active, NOW);
    let owned = |tunnel: Tunnel| Tunnel { identity: Some(own()), secret_hash: None, ..tunnel };
    vec![
        ("none", None),
        ("edge, active", Some(edge.clone())),
        ("edge, delete_pending", Some(pending(edge.clone(), NOW.plus(HOUR)))),
        ("edge, delete_pending, at the deadline", Some(pending(edge.clone(), NOW))),
        ("passthrough, awaiting_cert", Some(awaiting.clone())),
        ("passthrough, active, valid certificate", Some(valid.clone())),
        ("passthrough, active, expired certificate", Some(expired.clone())),
        ("passthrough, delete_pending, valid certificate", Some(pending(valid.clone(), NOW.plus(HOUR)))),
        ("passthrough, delete_pending, expired certificate", Some(pending(expired, NOW.plus(HOUR)))),
        ("passthrough, delete_pending, at the deadline", Some(pending(valid.clone(), NOW))),
        ("identity's, edge, active", Some(owned(edge))),
        ("identity's, passthrough, awaiting_cert", Some(owned(awaiting))),
        ("identity's, passthrough, active, valid certificate", Some(owned(valid))),
    ]
}

fn commands() -> Vec<(&'static str, Command)> {
    let id = tunnel_id();
    let secret_hash = SecretHash::from_sha256([2; 32]);
    let update = |rename, display_name| Command::UpdateIdentity {
        handle: name("my-agent"),
        rename,
        display_name,
        description: None,
    };
    let create_key = |identity| Command::CreateKey {
        id: KeyId::from_bytes([8; 16]),
        organization: organization(),
        identity,
        label: "a key".parse().expect("a label"),
        description: None,
        hash: secret_hash,
        last4: "wxyz".to_owned(),
    };
    let origin =
        || Origin { issuer: Issuer::Private, requested_by: None, key: [5; 32], not_before: NOW, profile: None };
    let record = |of: &str| Command::RecordCertificate {
        id,
        name: name(of),
        certificate: certificate(NOW.plus(HOUR)),
        origin: origin(),
    };
    let finish = |of: &str| Command::FinishOrder {
        id,
        name: name(of),
        certificate: certificate(NOW.plus(HOUR)),
        origin: origin(),
    };
    vec![
        (
            "CreateTunnel",
            Command::CreateTunnel {
                id: TunnelId::from_bytes([3; 16]),
                name: name("my-agent"),
                tls_mode: TlsMode::Edge,
                description: None,
                secret_hash,
            },
        ),
        ("UpdateTunnel", Command::UpdateTunnel { id, description: Some(None), metadata: Some(Metadata::default()) }),
        ("UpdateTunnel, nothing", Command::UpdateTunnel { id, description: None, metadata: None }),
        ("RecordCertificate", record("my-agent")),
        ("RecordCertificate, other name", record("her-agent")),
        ("BeginOrder", Command::BeginOrder { id, name: name("my-agent") }),
        ("BeginOrder, other name", Command::BeginOrder { id, name: name("her-agent") }),
        ("FinishOrder", finish("my-agent")),
        ("FinishOrder, other name", finish("her-agent")),
        ("SetRenewal", Command::SetRenewal { id, fingerprint: [1; 32], renew_at: NOW }),
        ("SetRenewal, other certificate", Command::SetRenewal { id, fingerprint: [2; 32], renew_at: NOW }),
        ("DeleteTunnel", Command::DeleteTunnel { id }),
        ("RestoreTunnel", Command::RestoreTunnel { id }),
        ("ForceDeleteTunnel", Command::ForceDeleteTunnel { id }),
        ("FinalizeTunnel", Command::FinalizeTunnel { id }),
        ("RecordHello", Command::RecordHello { id, ip: std::net::Ipv4Addr::LOCALHOST.into() }),
        ("RecordGoodbye", Command::RecordGoodbye { id }),
        ("RotateSecret", Command::RotateSecret { id, secret_hash }),
        (
            "CreateIdentity",
            Command::CreateIdentity {
                id: IdentityId::from_bytes([3; 16]),
                tunnel: TunnelId::from_bytes([3; 16]),
                handle: name("my-agent"),
                display_name: None,
                description: None,
                tls_mode: TlsMode::Passthrough,
            },
        ),
        ("UpdateIdentity", update(None, Some(None))),
        ("UpdateIdentity, nothing", update(None, None)),
        ("UpdateIdentity, rename", update(Some(name("her-agent")), None)),
        ("UpdateIdentity, same name", update(Some(name("my-agent")), None)),
        ("DeleteIdentity", Command::DeleteIdentity { handle: name("my-agent") }),
        ("CreateKey, admin", create_key(None)),
        ("CreateKey, for the identity", create_key(Some(own()))),
        ("RevokeKey", Command::RevokeKey { id: key_id() }),
    ]
}

fn variant(command: &Command) -> &'static str {
    match command {
        Command::CreateTunnel { .. } => "CreateTunnel",
        Command::UpdateTunnel { .. } => "UpdateTunnel",
        Command::RecordCertificate { .. } => "RecordCertificate",
        Command::BeginOrder { .. } => "BeginOrder",
        Command::FinishOrder { .. } => "FinishOrder",
        Command::SetRenewal { .. } => "SetRenewal",
        Command::DeleteTunnel { .. } => "DeleteTunnel",
        Command::RestoreTunnel { .. } => "RestoreTunnel",
        Command::ForceDeleteTunnel { .. } => "ForceDeleteTunnel",
        Command::FinalizeTunnel { .. } => "FinalizeTunnel",
        Command::RecordHello { .. } => "RecordHello",
        Command::RecordGoodbye { .. } => "RecordGoodbye",
        Command::RotateSecret { .. } => "RotateSecret",
        Command::CreateIdentity { .. } => "CreateIdentity",
        Command::UpdateIdentity { .. } => "UpdateIdentity",
        Command::DeleteIdentity { .. } => "DeleteIdentity",
        Command::CreateKey { .. } => "CreateKey",
        Command::RevokeKey { .. } => "RevokeKey",
    }
}

fn callers() -> Vec<(&'static str, Caller)> {
    let key = |organization, scope| Caller::Key { id: KeyId::from_bytes([7; 16]), organization, scope };
    let other = IdentityId::from_bytes([6; 16]);
    vec![
        ("admin", key(organization(), Scope::Admin)),
        ("scoped, own", key(organization(), Scope::Identity(own()))),
        ("scoped, other", key(organization(), Scope::Identity(other))),
        ("other organization", key(OrganizationId::new("org_other"), Scope::Admin)),
        ("System", Caller::System),
    ]
}

fn outcome(caller: &Caller, command: &Command, tunnel: Option<&Tunnel>) -> String {
    let identity = tunnel.and_then(|tunnel| tunnel.identity).map(|id| Identity {
        id,
        organization: organization(),
        handle: name("my-agent"),
        display_name: None,
        description: None,
        tunnel: tunnel_id(),
        created_at: NOW,
        updated_at: NOW,
    });
    let key = ApiKey {
        id: key_id(),
        organization: organization(),
        scope: Scope::Identity(own()),
        label: "a key".parse().expect("a label"),
        description: None,
        hash: SecretHash::from_sha256([1; 32]),
        last4: "wxyz".to_owned(),
        created_by: None,
        created_at: NOW,
        updated_at: NOW,
        last_used_at: None,
        revoked_at: None,
    };
    let rules = Rules::new();
    let wants = command.wants(caller, &rules);
    let facts = Facts {
        tunnel: tunnel.filter(|_| wants.tunnel.is_some() || wants.identity.is_some()).cloned(),
        holder: tunnel.filter(|tunnel| wants.name == Some(&tunnel.name)).cloned(),
        keys: identity.iter().filter(|_| wants.identity.is_some()).map(|_| key.clone()).collect(),
        identity: identity.filter(|_| wants.identity.is_some()),
        key: wants.key.map(|_| key),
        nth_use: None,
        others_certificate_until: None,
    };
    match decide(caller, command.clone(), facts, &rules, NOW) {
        Ok(events) if events.is_empty() => "-".to_owned(),
        Ok(events) => events.iter().map(event).collect::<Vec<_>>().join(", "),
        Err(refusal) => format!("!{}", refused(&refusal)),
    }
}

fn event(event: &Event) -> String {
    match event {
        Event::CertificateIssued(tunnel, _) => format!("CertificateIssued {}", status(tunnel)),
        Event::SigningCounted(_) => "SigningCounted".to_owned(),
        Event::IdentityCreated(_) => "IdentityCreated".to_owned(),
        Event::IdentityDeleted(_) => "IdentityDeleted".to_owned(),
        Event::IdentityUpdated(_) => "IdentityUpdated".to_owned(),
        Event::KeyCreated(_) => "KeyCreated".to_owned(),
        Event::KeyRevoked(_) => "KeyRevoked".to_owned(),
        Event::SecretRotated(tunnel) => format!("SecretRotated {}", status(tunnel)),
        Event::TunnelConnected(tunnel) => format!("TunnelConnected {}", status(tunnel)),
        Event::TunnelCreated(tunnel) => format!("TunnelCreated {}", status(tunnel)),
        Event::TunnelDeleted(tunnel) => format!("TunnelDeleted {}", status(tunnel)),
        Event::TunnelDisconnected(tunnel) => format!("TunnelDisconnected {}", status(tunnel)),
        Event::TunnelFinalized(tunnel) => format!("TunnelFinalized {}", status(tunnel)),
        Event::TunnelRenamed(tunnel) => format!("TunnelRenamed {}", status(tunnel)),
        Event::TunnelRestored(tunnel) => format!("TunnelRestored {}", status(tunnel)),
        Event::TunnelUpdated(tunnel) => format!("TunnelUpdated {}", status(tunnel)),
    }
}

fn status(tunnel: &Tunnel) -> &'static str {
    match tunnel.status {
        Status::AwaitingCert => "awaiting_cert",
        Status::Active => "active",
        Status::DeletePending => "delete_pending",
        Status::Deleted => "deleted",
    }
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NameTaken { by_identity: true } => "NameTaken(identity)".to_owned(),
        Refusal::NameTaken { by_identity: false } => "NameTaken(tunnel)".to_owned(),
        refusal => format!("{refusal:?}"),
    }
}

fn tunnel_id() -> TunnelId {
    TunnelId::from_bytes([1; 16])
}

/// The identity that the states' tunnels belong to, where they do.
fn own() -> IdentityId {
    IdentityId::from_bytes([5; 16])
}

fn key_id() -> KeyId {
    KeyId::from_bytes([4; 16])
}

fn organization() -> OrganizationId {
    OrganizationId::new("org_own")
}

fn name(text: &str) -> TunnelName {
    text.parse().expect("a name")
}

fn certificate(expires_at: Timestamp) -> Certificate {
    Certificate { pem: "PEM\n".to_owned(), fingerprint: [1; 32], serial: vec![1], expires_at, renew_at: None }
}

fn tunnel(tls_mode: TlsMode, status: Status) -> Tunnel {
    Tunnel {
        id: tunnel_id(),
        organization: organization(),
        name: name("my-agent"),
        identity: None,
        tls_mode,
        status,
        description: None,
        metadata: Metadata::default(),
        certificate: None,
        secret_hash: Some(SecretHash::from_sha256([1; 32])),
        last_connected_at: None,
        last_connected_ip: None,
        last_disconnected_at: None,
        restore_deadline: None,
        created_at: NOW,
        updated_at: NOW,
    }
}
