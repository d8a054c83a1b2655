//! Quotas, renames and name holders: what a table of single states cannot show.

use std::time::Duration;

use tunnel_model::{
    Caller, Certificate, Command, Event, Facts, Identity, IdentityId, Issuer, KeyId, Metadata, OrganizationId, Origin,
    Quota, Refusal, Rules, Scope, SecretHash, Status, Timestamp, TlsMode, Tunnel, TunnelId, TunnelName, Unavailable,
    Usage, check_signable, decide,
};

const NOW: Timestamp = Timestamp::from_micros(1_750_000_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const MICRO: Duration = Duration::from_micros(1);

#[test]
fn a_quota_opens_to_the_microsecond() {
    let quota = Quota { limit: 10, window: DAY };
    let second = Duration::from_secs(1);
    for (since_nth_use, expected) in [
        (Duration::ZERO, Err(DAY)),
        (MICRO, Err(DAY - MICRO)),
        (DAY - 2 * second, Err(2 * second)),
        // Never less than a second: `Retry-After: 0` would invite a loop.
        (DAY - second / 2, Err(second)),
        (DAY - MICRO, Err(second)),
        (DAY, Ok(())),
        (DAY + MICRO, Ok(())),
    ] {
        assert_eq!(quota.admit(Some(NOW), NOW.plus(since_nth_use)), expected, "{since_nth_use:?}");
    }
    assert_eq!(quota.admit(None, NOW), Ok(()));
}

#[test]
fn a_quota_survives_a_clock_that_steps_back() {
    let quota = Quota { limit: 1, window: DAY };
    assert_eq!(quota.admit(Some(NOW), NOW.minus(400 * DAY)), Err(DAY), "no longer than the window");
}

#[test]
fn a_quota_of_none_allows_none() {
    let quota = Quota { limit: 0, window: DAY };
    assert_eq!(quota.admit(None, NOW), Err(DAY));
}

#[test]
fn creations_and_signings_ask_for_the_use_that_decides() {
    let mut rules = Rules::new();
    rules.creates.limit = 3;
    rules.signings.limit = 4;
    let create = create_tunnel("my-agent");
    assert_eq!(create.wants(&admin(), &rules).usage, Some((Usage::Create(organization()), 3)));
    assert_eq!(record("my-agent").wants(&admin(), &rules).usage, Some((Usage::Sign(tunnel_id()), 4)));
    assert_eq!(create_identity("my-agent").wants(&admin(), &rules).usage, Some((Usage::Create(organization()), 3)));
}

#[test]
fn an_exhausted_create_quota_says_when_to_come_back() {
    let refused = Refusal::CreateQuota { limit: 10, retry_after: Duration::from_secs(60) };
    let nth_use = Some(NOW.plus(Duration::from_secs(60)).minus(DAY));
    for command in [create_tunnel("my-agent"), create_identity("my-agent")] {
        let facts = Facts { nth_use, ..Facts::default() };
        assert_eq!(refusal(&admin(), command.clone(), facts), refused);
        let facts = Facts { nth_use: Some(NOW.minus(DAY)), ..Facts::default() };
        assert!(decide(&admin(), command, facts, &Rules::new(), NOW).is_ok());
    }
}

#[test]
fn an_exhausted_sign_quota_says_when_to_come_back() {
    let tunnel = tunnel(TlsMode::Passthrough, Status::Active);
    let facts = Facts { tunnel: Some(tunnel), nth_use: Some(NOW), ..Facts::default() };
    let refused = Refusal::SignQuota { limit: 10, retry_after: DAY };
    assert_eq!(refusal(&admin(), record("my-agent"), facts), refused);
}

#[test]
fn name_and_state_are_told_before_the_quota() {
    let exhausted = || Facts { nth_use: Some(NOW), ..Facts::default() };
    let holder = Some(tunnel(TlsMode::Edge, Status::Active));
    let taken = Facts { holder, ..exhausted() };
    assert_eq!(refusal(&admin(), create_tunnel("my-agent"), taken), Refusal::NameTaken { by_identity: false });
    let edge = Facts { tunnel: Some(tunnel(TlsMode::Edge, Status::Active)), ..exhausted() };
    assert_eq!(refusal(&admin(), record("my-agent"), edge), Refusal::NotPassthrough);
    assert_eq!(refusal(&scoped(), create_tunnel("my-agent"), exhausted()), Refusal::Forbidden);
}

#[test]
fn a_rename_drops_the_certificate() {
    for (tls_mode, status) in [(TlsMode::Passthrough, Status::AwaitingCert), (TlsMode::Edge, Status::Active)] {
        let mut owned = tunnel(tls_mode, Status::Active);
        owned.identity = Some(identity_id());
        if tls_mode == TlsMode::Passthrough {
            owned.certificate = Some(certificate());
        }
        let facts = Facts { tunnel: Some(owned), identity: Some(identity()), ..Facts::default() };
        let events = decide(&admin(), rename("her-agent"), facts, &Rules::new(), NOW).expect("a rename");
        let [Event::TunnelRenamed(tunnel), Event::IdentityUpdated(identity)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(tunnel.certificate, None);
        assert_eq!(tunnel.status, status);
        assert_eq!((&tunnel.name, &identity.handle), (&name("her-agent"), &name("her-agent")));
    }
}

#[test]
fn a_certificate_for_the_old_name_does_not_count_after_a_rename() {
    let renamed = Tunnel { name: name("her-agent"), ..tunnel(TlsMode::Passthrough, Status::AwaitingCert) };
    let facts = Facts { tunnel: Some(renamed), ..Facts::default() };
    assert_eq!(refusal(&admin(), record("my-agent"), facts), Refusal::NotSignable);
}

#[test]
fn a_name_is_free_when_its_holders_restore_window_is_over() {
    let holder = |deadline| Tunnel {
        organization: OrganizationId::new("org_other"),
        restore_deadline: Some(deadline),
        ..tunnel(TlsMode::Edge, Status::DeletePending)
    };
    for command in [create_tunnel("my-agent"), create_identity("my-agent")] {
        let facts = Facts { holder: Some(holder(NOW.plus(MICRO))), ..Facts::default() };
        assert_eq!(refusal(&admin(), command.clone(), facts), Refusal::NameTaken { by_identity: false });

        let facts = Facts { holder: Some(holder(NOW)), ..Facts::default() };
        let events = decide(&admin(), command, facts, &Rules::new(), NOW).expect("the name is free");
        let [Event::TunnelFinalized(gone), Event::TunnelCreated(new), ..] = &events[..] else { panic!("{events:?}") };
        assert_eq!((gone.id, gone.status), (tunnel_id(), Status::Deleted));
        assert_eq!((&new.organization, &new.name), (&organization(), &name("my-agent")));
    }
}

#[test]
fn a_rename_finalizes_an_expired_holder_too() {
    let owned = Tunnel { identity: Some(identity_id()), ..tunnel(TlsMode::Edge, Status::Active) };
    let holder = Tunnel {
        id: TunnelId::from_bytes([9; 16]),
        name: name("her-agent"),
        restore_deadline: Some(NOW),
        ..tunnel(TlsMode::Edge, Status::DeletePending)
    };
    let facts = Facts { tunnel: Some(owned), identity: Some(identity()), holder: Some(holder), ..Facts::default() };
    let events = decide(&admin(), rename("her-agent"), facts, &Rules::new(), NOW).expect("the name is free");
    assert!(
        matches!(&events[..], [Event::TunnelFinalized(_), Event::TunnelRenamed(_), Event::IdentityUpdated(_)]),
        "{events:?}"
    );
}

#[test]
fn a_deletion_may_be_taken_back_until_its_deadline() {
    let delete = Command::DeleteTunnel { id: tunnel_id() };
    let facts = Facts { tunnel: Some(tunnel(TlsMode::Edge, Status::Active)), ..Facts::default() };
    let events = decide(&admin(), delete, facts, &Rules::new(), NOW).expect("a deletion");
    let [Event::TunnelDeleted(deleted)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(deleted.restore_deadline, Some(NOW.plus(DAY)));

    let restore = |now| {
        let facts = Facts { tunnel: Some((**deleted).clone()), ..Facts::default() };
        decide(&admin(), Command::RestoreTunnel { id: tunnel_id() }, facts, &Rules::new(), now)
    };
    let restored = restore(NOW.plus(DAY - MICRO)).expect("just in time");
    let [Event::TunnelRestored(restored)] = &restored[..] else { panic!("{restored:?}") };
    assert_eq!((restored.status, restored.restore_deadline), (Status::Active, None));
    assert_eq!(restore(NOW.plus(DAY)).err(), Some(Refusal::RestoreWindowOver));
}

#[test]
fn a_restored_passthrough_tunnel_needs_a_certificate_that_still_counts() {
    for (left, status) in [(MICRO, Status::Active), (Duration::ZERO, Status::AwaitingCert)] {
        let tunnel = Tunnel {
            certificate: Some(Certificate { expires_at: NOW.plus(left), ..certificate() }),
            restore_deadline: Some(NOW.plus(DAY)),
            ..tunnel(TlsMode::Passthrough, Status::DeletePending)
        };
        let facts = Facts { tunnel: Some(tunnel), ..Facts::default() };
        let restore = Command::RestoreTunnel { id: tunnel_id() };
        let events = decide(&admin(), restore, facts, &Rules::new(), NOW).expect("a restored tunnel");
        let [Event::TunnelRestored(restored)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(restored.status, status, "{left:?} before the certificate ends");
    }
}

#[test]
fn the_words_of_the_two_signing_conflicts_are_kept_apart() {
    let has_a_word = |text: &str| ["edge", "tls_mode", "passthrough"].iter().any(|word| text.contains(word));
    assert!(has_a_word(&Refusal::NotPassthrough.to_string().to_lowercase()));
    assert!(!has_a_word(&Refusal::NotSignable.to_string().to_lowercase()));
    let pending =
        Tunnel { restore_deadline: Some(NOW.plus(DAY)), ..tunnel(TlsMode::Passthrough, Status::DeletePending) };
    assert_eq!(check_signable(&pending, NOW), Err(Refusal::NotSignable));
}

#[test]
fn an_admin_does_not_see_keys_of_another_organization() {
    let create = Command::CreateKey {
        id: KeyId::from_bytes([8; 16]),
        organization: OrganizationId::new("org_other"),
        identity: Some(identity_id()),
        label: "a key".parse().expect("a label"),
        description: None,
        hash: SecretHash::from_sha256([2; 32]),
        last4: "wxyz".to_owned(),
    };
    let stranger = Caller::Key {
        id: KeyId::from_bytes([7; 16]),
        organization: OrganizationId::new("org_other"),
        scope: Scope::Admin,
    };
    let facts = || Facts { identity: Some(identity()), ..Facts::default() };
    let not_found = Refusal::NotFound(tunnel_model::Kind::Identity);
    assert_eq!(refusal(&stranger, create, facts()), not_found);
    assert_eq!(refusal(&stranger, rename("her-agent"), facts()), not_found);
}

fn refusal(caller: &Caller, command: Command, facts: Facts) -> Refusal {
    decide(caller, command, facts, &Rules::new(), NOW).expect_err("a refusal")
}

fn create_tunnel(of: &str) -> Command {
    Command::CreateTunnel {
        id: TunnelId::from_bytes([3; 16]),
        name: name(of),
        tls_mode: TlsMode::Edge,
        description: None,
        secret_hash: SecretHash::from_sha256([2; 32]),
    }
}

fn create_identity(of: &str) -> Command {
    Command::CreateIdentity {
        id: IdentityId::from_bytes([3; 16]),
        tunnel: TunnelId::from_bytes([3; 16]),
        handle: name(of),
        display_name: None,
        description: None,
        tls_mode: TlsMode::Edge,
    }
}

#[test]
fn a_name_is_not_given_to_somebody_while_anothers_certificate_for_it_is_good() {
    for (until, expected) in [
        (Some(NOW), Err(Refusal::NameUnavailable(Unavailable::Quarantined))),
        (Some(NOW.minus(MICRO)), Ok(1)),
        (None, Ok(1)),
    ] {
        for command in [create_tunnel("my-agent"), create_identity("my-agent")] {
            let facts = Facts { others_certificate_until: until, ..Facts::default() };
            let decided = decide(&admin(), command, facts, &Rules::new(), NOW);
            assert_eq!(decided.map(|events| events.len().min(1)), expected, "{until:?}");
        }
    }
}

fn record(of: &str) -> Command {
    Command::RecordCertificate { id: tunnel_id(), name: name(of), certificate: certificate(), origin: origin() }
}

fn rename(to: &str) -> Command {
    Command::UpdateIdentity { handle: name("my-agent"), rename: Some(name(to)), display_name: None, description: None }
}

fn admin() -> Caller {
    Caller::Key { id: KeyId::from_bytes([7; 16]), organization: organization(), scope: Scope::Admin }
}

fn scoped() -> Caller {
    Caller::Key { id: KeyId::from_bytes([7; 16]), organization: organization(), scope: Scope::Identity(identity_id()) }
}

fn organization() -> OrganizationId {
    OrganizationId::new("org_own")
}

fn name(text: &str) -> TunnelName {
    text.parse().expect("a name")
}

fn tunnel_id() -> TunnelId {
    TunnelId::from_bytes([1; 16])
}

fn identity_id() -> IdentityId {
    IdentityId::from_bytes([5; 16])
}

fn identity() -> Identity {
    Identity {
        id: identity_id(),
        organization: organization(),
        handle: name("my-agent"),
        display_name: None,
        description: None,
        tunnel: tunnel_id(),
        created_at: NOW,
        updated_at: NOW,
    }
}

fn certificate() -> Certificate {
    Certificate {
        pem: "PEM\n".to_owned(),
        fingerprint: [1; 32],
        serial: vec![1],
        expires_at: NOW.plus(90 * DAY),
        renew_at: None,
    }
}

fn origin() -> Origin {
    let requested_by = Some(KeyId::from_bytes([7; 16]));
    Origin { issuer: Issuer::Private, requested_by, key: [2; 32], not_before: NOW, profile: None }
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
