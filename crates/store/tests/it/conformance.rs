//! What every backend does alike: each test runs on all of them.

use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use store::{
    Ask, CertificateFilter, ClientCertificate, Holder, Host, IssuedCertificate, MemoryStore, Observer, Order,
    OrderState, Page, Place, Placed, SqliteStore, Store,
};
use tunnel_model::{
    Caller, Command, Event, IdentityKey, Issuer, Kind, Metadata, OrganizationId, Origin, Refusal, Rules, Scope, Status,
    TlsMode, Unavailable,
};

use crate::world::*;

macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&super::MemoryStore::new()).await;
            })+
        }

        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                let directory = tempfile::tempdir().expect("a directory");
                let store = super::SqliteStore::open(directory.path()).expect("a store");
                super::$test(&store).await;
            })+
        }
    };
}

on_every_backend! {
    a_deleted_identity_takes_its_tunnel_and_keys_along,
    a_key_round_trips_with_every_field,
    a_name_is_free_after_its_holder_is_gone,
    a_refusal_changes_nothing,
    a_renamed_identity_is_found_by_its_new_handle_only,
    a_revoked_key_is_kept_with_its_time,
    a_tunnel_round_trips_with_every_field,
    an_identity_round_trips_with_every_field,
    client_certificates_are_kept_by_serial_number,
    creations_are_counted_by_organization,
    every_state_of_a_tunnel_round_trips,
    events_are_observed_in_their_order_also_of_callers_who_left,
    expired_tunnels_are_those_at_their_deadline,
    extreme_values_round_trip,
    lists_are_ordered_and_of_one_organization,
    names_are_unique_among_tunnels_and_identities,
    uses_of_a_clock_that_was_ahead_count_from_now,
    pruned_uses_do_not_count_and_others_do,
    signings_are_counted_by_tunnel,
    certificates_are_found_by_what_is_on_record,
    a_name_with_anothers_public_certificate_is_not_free,
    orders_are_kept_until_they_are_forgotten,
    the_store_is_in_order,
    touching_a_key_changes_its_last_use_only,
    what_is_not_there_is_not_found,
}

async fn the_store_is_in_order(store: &dyn Store) {
    store.check().await.expect("in order");
}

/// Writes down what it hears.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn committed(&self, events: &[Event]) {
        let names = events.iter().map(|event| match event {
            Event::TunnelCreated(tunnel) => format!("+{}", tunnel.name),
            Event::TunnelDeleted(tunnel) => format!("-{}", tunnel.name),
            other => panic!("unexpected: {other:?}"),
        });
        self.0.lock().expect("no panic").extend(names);
    }
}

async fn events_are_observed_in_their_order_also_of_callers_who_left(store: &dyn Store) {
    let notes = Arc::new(Notes::default());
    store.observe(Arc::clone(&notes) as Arc<dyn Observer>);
    done(store, create_tunnel(1, "first", TlsMode::Edge)).await;
    let heard = || notes.0.lock().expect("no panic").clone();
    assert_eq!(heard(), ["+first"], "before the answer");
    {
        let rules = Arc::new(Rules::new());
        let mut deletion = store.execute(admin(), Command::DeleteTunnel { id: tunnel_id(1) }, &rules, NOW);
        // Asked, and gone before the answer.
        let _ = deletion.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    execute(store, admin(), create_tunnel(3, "first", TlsMode::Edge), NOW).await.expect_err("the name is taken");
    done(store, create_tunnel(2, "second", TlsMode::Edge)).await;
    let deleted = store.tunnel(tunnel_id(1)).await.expect("a look-up").expect("it is restorable");
    assert_eq!(deleted.status, Status::DeletePending);
    assert_eq!(heard(), ["+first", "-first", "+second"]);
}

async fn what_is_not_there_is_not_found(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    assert!(store.tunnel(tunnel_id(9)).await.expect("an answer").is_none());
    assert!(store.tunnel_by_name(&name("her-agent")).await.expect("an answer").is_none());
    assert!(store.identity(IdentityKey::Id(identity_id(9))).await.expect("an answer").is_none());
    assert!(store.identity(IdentityKey::Handle(&name("her-agent"))).await.expect("an answer").is_none());
    assert!(store.api_key(key_id(9)).await.expect("an answer").is_none());
    store.touch_api_key(key_id(9), NOW).await.expect("nothing to do");
    assert!(store.api_key(key_id(9)).await.expect("an answer").is_none());
    assert!(store.tunnels(&organization("org_other"), Page::ALL).await.expect("an answer").is_empty());
}

async fn a_tunnel_round_trips_with_every_field(store: &dyn Store) {
    done(store, create_tunnel(1, "my-agent", TlsMode::Passthrough)).await;
    let metadata = serde_json::json!({"a": [1, null, true, 1.5, "\u{0}☃"], "b": {"c": {}}});
    let serde_json::Value::Object(metadata) = metadata else { unreachable!("an object") };
    let metadata = Metadata::try_from(metadata).expect("small");
    done(store, Command::UpdateTunnel { id: tunnel_id(1), description: None, metadata: Some(metadata) }).await;
    let events = execute(store, admin(), record(1, "my-agent", 1), NOW.plus(SECOND)).await.expect("signed");
    let [Event::CertificateIssued(expected, _), Event::SigningCounted(_)] = &events[..] else { panic!("{events:?}") };
    assert!(expected.certificate.is_some() && expected.description.is_some() && expected.secret_hash.is_some());
    assert_eq!(expected.certificate, Some(certificate(1)));

    let by_id = store.tunnel(tunnel_id(1)).await.expect("an answer").expect("it exists");
    let by_name = store.tunnel_by_name(&name("my-agent")).await.expect("an answer").expect("it exists");
    let listed = store.tunnels(&organization("org_own"), Page::ALL).await.expect("an answer");
    assert_eq!(tunnel_text(&by_id), tunnel_text(expected));
    assert_eq!(tunnel_text(&by_name), tunnel_text(expected));
    assert_eq!(listed.iter().map(tunnel_text).collect::<Vec<_>>(), [tunnel_text(expected)]);
}

async fn every_state_of_a_tunnel_round_trips(store: &dyn Store) {
    done(store, create_tunnel(1, "edge-one", TlsMode::Edge)).await;
    done(store, create_tunnel(2, "awaiting", TlsMode::Passthrough)).await;
    done(store, create_tunnel(3, "deleted", TlsMode::Edge)).await;
    done(store, Command::DeleteTunnel { id: tunnel_id(3) }).await;
    for (number, tls_mode, status, deadline) in [
        (1, TlsMode::Edge, Status::Active, None),
        (2, TlsMode::Passthrough, Status::AwaitingCert, None),
        (3, TlsMode::Edge, Status::DeletePending, Some(NOW.plus(DAY))),
    ] {
        let tunnel = store.tunnel(tunnel_id(number)).await.expect("an answer").expect("it exists");
        assert_eq!((tunnel.tls_mode, tunnel.status, tunnel.restore_deadline), (tls_mode, status, deadline));
        assert_eq!(tunnel.certificate, None);
    }
    done(store, Command::RestoreTunnel { id: tunnel_id(3) }).await;
    let tunnel = store.tunnel(tunnel_id(3)).await.expect("an answer").expect("it exists");
    assert_eq!((tunnel.status, tunnel.restore_deadline), (Status::Active, None));
}

async fn an_identity_round_trips_with_every_field(store: &dyn Store) {
    let events = done(store, create_identity(1, "my-agent")).await;
    let [Event::TunnelCreated(tunnel), Event::IdentityCreated(identity)] = &events[..] else { panic!("{events:?}") };
    let handle = name("my-agent");
    for key in [IdentityKey::Id(identity_id(1)), IdentityKey::Handle(&handle)] {
        let (found, its_tunnel) = store.identity(key).await.expect("an answer").expect("it exists");
        assert_eq!(found, *identity);
        assert_eq!(tunnel_text(&its_tunnel), tunnel_text(tunnel));
    }
    let listed = store.identities(&organization("org_own"), Page::ALL).await.expect("an answer");
    let [(found, its_tunnel)] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(found, identity);
    assert_eq!(tunnel_text(its_tunnel), tunnel_text(tunnel));
}

async fn a_key_round_trips_with_every_field(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    let scoped = done(store, create_key(1, Some(identity_id(1)))).await;
    let first = execute(store, Caller::System, create_key(2, None), NOW).await.expect("the server may");
    for (number, events) in [(1, scoped), (2, first)] {
        let [Event::KeyCreated(expected)] = &events[..] else { panic!("{events:?}") };
        let found = store.api_key(key_id(number)).await.expect("an answer").expect("it exists");
        assert_eq!(key_text(&found), key_text(expected));
    }
    let scope = |number| async move { store.api_key(key_id(number)).await.expect("an answer").expect("it exists") };
    assert_eq!((scope(1).await.scope, scope(1).await.created_by), (Scope::Identity(identity_id(1)), Some(key_id(7))));
    assert_eq!((scope(2).await.scope, scope(2).await.created_by), (Scope::Admin, None));
}

async fn extreme_values_round_trip(store: &dyn Store) {
    let description = "☃".repeat(1000);
    let mut map = serde_json::Map::new();
    map.insert("k".to_owned(), "x".repeat(4096 - r#"{"k":""}"#.len()).into());
    let metadata = Metadata::try_from(map).expect("4096 octets fit");
    let longest = "a".repeat(63);
    done(store, create_tunnel(0, &longest, TlsMode::Edge)).await;
    let update = Command::UpdateTunnel {
        id: tunnel_id(0),
        description: Some(Some(description.parse().expect("1000 characters fit"))),
        metadata: Some(metadata.clone()),
    };
    done(store, update).await;
    let tunnel = store.tunnel_by_name(&name(&longest)).await.expect("an answer").expect("it exists");
    assert_eq!(tunnel.description.as_ref().map(|text| text.as_str()), Some(description.as_str()));
    assert_eq!(tunnel.metadata, metadata);
    let quotes = OrganizationId::new("org_'; DROP TABLE tunnels; --");
    assert!(store.tunnels(&quotes, Page::ALL).await.expect("an answer").is_empty());
}

async fn names_are_unique_among_tunnels_and_identities(store: &dyn Store) {
    done(store, create_tunnel(1, "one", TlsMode::Edge)).await;
    done(store, create_identity(2, "two")).await;
    for (of, by_identity) in [("one", false), ("two", true)] {
        let taken = Some(Refusal::NameTaken { by_identity });
        for organization in ["org_own", "org_other"] {
            let caller = || admin_of(organization);
            let tunnel = execute(store, caller(), create_tunnel(9, of, TlsMode::Edge), NOW).await;
            assert_eq!(tunnel.err(), taken);
            let identity = execute(store, caller(), create_identity(9, of), NOW).await;
            assert_eq!(identity.err(), taken);
        }
    }
    let renamed = execute(store, admin(), rename("two", "one"), NOW).await;
    assert_eq!(renamed.err(), Some(Refusal::NameTaken { by_identity: false }));
}

async fn a_name_is_free_after_its_holder_is_gone(store: &dyn Store) {
    done(store, create_tunnel(1, "my-agent", TlsMode::Edge)).await;
    done(store, Command::DeleteTunnel { id: tunnel_id(1) }).await;
    let early = execute(store, admin(), create_tunnel(2, "my-agent", TlsMode::Edge), NOW.plus(DAY - SECOND)).await;
    assert_eq!(early.err(), Some(Refusal::NameTaken { by_identity: false }));
    let events =
        execute(store, admin_of("org_other"), create_tunnel(2, "my-agent", TlsMode::Edge), NOW.plus(DAY)).await;
    assert!(matches!(events.as_deref(), Ok([Event::TunnelFinalized(_), Event::TunnelCreated(_)])), "{events:?}");
    assert!(store.tunnel(tunnel_id(1)).await.expect("an answer").is_none());
    let holder = store.tunnel_by_name(&name("my-agent")).await.expect("an answer").expect("it exists");
    assert_eq!((holder.id, holder.organization), (tunnel_id(2), organization("org_other")));

    let delete = Command::DeleteTunnel { id: tunnel_id(2) };
    execute(store, admin_of("org_other"), delete, NOW.plus(DAY)).await.expect("a deletion");
    let force = Command::ForceDeleteTunnel { id: tunnel_id(2) };
    execute(store, admin_of("org_other"), force, NOW.plus(DAY)).await.expect("the end");
    assert!(store.tunnel_by_name(&name("my-agent")).await.expect("an answer").is_none());
    done(store, create_identity(3, "my-agent")).await;
}

async fn lists_are_ordered_and_of_one_organization(store: &dyn Store) {
    // Created in another order than that of their ids; two at the same time.
    for (number, after) in [(5_u8, 0), (3, 1), (9, 2), (4, 2), (1, 3)] {
        let now = NOW.plus(after * SECOND);
        execute(store, admin(), create_identity(number, &format!("agent-{number}")), now).await.expect("created");
        let key = create_key(number, Some(identity_id(number)));
        execute(store, admin(), key, now).await.expect("created");
    }
    execute(store, admin_of("org_other"), create_identity(2, "stranger"), NOW).await.expect("created");

    let own = organization("org_own");
    let expected = [5, 3, 4, 9, 1];
    let tunnels = store.tunnels(&own, Page::ALL).await.expect("an answer");
    assert_eq!(tunnels.iter().map(|tunnel| tunnel.id).collect::<Vec<_>>(), expected.map(tunnel_id));
    let identities = store.identities(&own, Page::ALL).await.expect("an answer");
    let ids: Vec<_> = identities.iter().map(|(identity, tunnel)| (identity.id, tunnel.id)).collect();
    assert_eq!(ids, expected.map(|number| (identity_id(number), tunnel_id(number))));
    let keys = store.api_keys(&own, Page::ALL).await.expect("an answer");
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), expected.map(key_id));

    let other = organization("org_other");
    assert_eq!(store.tunnels(&other, Page::ALL).await.expect("an answer").len(), 1);
    assert_eq!(store.identities(&other, Page::ALL).await.expect("an answer").len(), 1);
    assert!(store.api_keys(&other, Page::ALL).await.expect("an answer").is_empty());

    for limit in 1..=6 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = Page { after, limit: Some(limit) };
            let tunnels = store.tunnels(&own, page).await.expect("an answer");
            let identities = store.identities(&own, page).await.expect("an answer");
            assert!(tunnels.len() <= limit as usize);
            assert_eq!(tunnels.iter().map(Placed::place).collect::<Vec<_>>(), places(&identities));
            assert_eq!(places(&store.api_keys(&own, page).await.expect("an answer")), places(&identities));
            found.extend(tunnels.iter().map(|tunnel| tunnel.id));
            match tunnels.last() {
                Some(last) => after = Some(last.place()),
                None => break,
            }
        }
        assert_eq!(found, expected.map(tunnel_id), "by {limit}");
    }
    // A page goes on behind a record that is gone.
    let second = Place { created_at: NOW.plus(SECOND), id: *tunnel_id(3).as_bytes() };
    execute(store, admin(), Command::DeleteIdentity { handle: name("agent-3") }, NOW).await.expect("deleted");
    let rest = store.tunnels(&own, Page { after: Some(second), limit: Some(2) }).await.expect("an answer");
    assert_eq!(rest.iter().map(|tunnel| tunnel.id).collect::<Vec<_>>(), [4, 9].map(tunnel_id));
}

/// Tests give a tunnel, its identity and its key the same octets.
fn places(records: &[impl Placed]) -> Vec<Place> {
    records.iter().map(Placed::place).collect()
}

async fn a_refusal_changes_nothing(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    done(store, create_tunnel(2, "lonely", TlsMode::Edge)).await;
    done(store, create_key(1, Some(identity_id(1)))).await;
    let before = everything(store).await;
    let scoped =
        || Caller::Key { id: key_id(1), organization: organization("org_own"), scope: Scope::Identity(identity_id(1)) };
    for (caller, command) in [
        (admin(), create_tunnel(3, "my-agent", TlsMode::Edge)),
        (admin(), create_tunnel(3, "www", TlsMode::Edge)),
        (admin(), create_identity(3, "lonely")),
        (admin(), rename("my-agent", "lonely")),
        (admin(), record(2, "lonely", 1)),
        (admin(), record(1, "other-name", 1)),
        (admin(), Command::DeleteTunnel { id: tunnel_id(1) }),
        (admin(), Command::RestoreTunnel { id: tunnel_id(2) }),
        (admin(), Command::ForceDeleteTunnel { id: tunnel_id(2) }),
        (Caller::System, Command::FinalizeTunnel { id: tunnel_id(2) }),
        (admin(), create_key(3, None)),
        (admin_of("org_other"), Command::DeleteTunnel { id: tunnel_id(2) }),
        (admin_of("org_other"), Command::DeleteIdentity { handle: name("my-agent") }),
        (admin_of("org_other"), Command::RevokeKey { id: key_id(1) }),
        (scoped(), create_tunnel(3, "new-name", TlsMode::Edge)),
        (scoped(), Command::DeleteIdentity { handle: name("my-agent") }),
        (scoped(), Command::RevokeKey { id: key_id(1) }),
    ] {
        let told = format!("{caller:?} {command:?}");
        execute(store, caller, command, NOW.plus(SECOND)).await.expect_err(&told);
        assert_eq!(everything(store).await, before, "{told}");
    }
}

async fn creations_are_counted_by_organization(store: &dyn Store) {
    for number in 0..10_u8 {
        let now = NOW.plus(u32::from(number) * SECOND);
        let of = format!("agent-{number}");
        let command =
            if number % 2 == 0 { create_tunnel(number, &of, TlsMode::Edge) } else { create_identity(number, &of) };
        execute(store, admin(), command, now).await.expect("within the quota");
    }
    // What is deleted still counts.
    done(store, Command::DeleteIdentity { handle: name("agent-1") }).await;
    let eleventh = |now| execute(store, admin(), create_tunnel(11, "agent-11", TlsMode::Edge), now);
    let refused = eleventh(NOW.plus(10 * SECOND)).await.err();
    assert_eq!(refused, Some(Refusal::CreateQuota { limit: 10, retry_after: DAY - 10 * SECOND }));
    // Another organization has its own quota.
    execute(store, admin_of("org_other"), create_tunnel(12, "agent-12", TlsMode::Edge), NOW).await.expect("its first");
    eleventh(NOW.plus(DAY)).await.expect("the first one is a day old");
    let twelfth = execute(store, admin(), create_identity(13, "agent-13"), NOW.plus(DAY)).await;
    assert_eq!(twelfth.err(), Some(Refusal::CreateQuota { limit: 10, retry_after: SECOND }));
}

async fn signings_are_counted_by_tunnel(store: &dyn Store) {
    done(store, create_tunnel(1, "one", TlsMode::Passthrough)).await;
    done(store, create_tunnel(2, "two", TlsMode::Passthrough)).await;
    for serial in 0..10 {
        done(store, record(1, "one", serial)).await;
    }
    let refused = execute(store, admin(), record(1, "one", 10), NOW.plus(SECOND)).await.err();
    assert_eq!(refused, Some(Refusal::SignQuota { limit: 10, retry_after: DAY - SECOND }));
    done(store, record(2, "two", 11)).await;
    execute(store, admin(), record(1, "one", 12), NOW.plus(DAY)).await.expect("a day later");

    let mut rules = Rules::new();
    rules.signings.limit = 0;
    let none = store.execute(admin(), record(2, "two", 13), &Arc::new(rules), NOW).await;
    assert!(none.is_err(), "{none:?}");
}

async fn uses_of_a_clock_that_was_ahead_count_from_now(store: &dyn Store) {
    done(store, create_tunnel(1, "one", TlsMode::Passthrough)).await;
    for serial in 0..10_u8 {
        execute(store, admin(), record(1, "one", serial), NOW.plus(400 * DAY)).await.expect("within the quota");
    }
    // The refusals are what counts: nobody else looks.
    for (after, left) in [(Duration::ZERO, DAY), (SECOND, DAY - SECOND), (DAY - SECOND, SECOND)] {
        let refused = execute(store, admin(), record(1, "one", 10), NOW.plus(after)).await.err();
        assert_eq!(refused, Some(Refusal::SignQuota { limit: 10, retry_after: left }));
    }
    execute(store, admin(), record(1, "one", 10), NOW.plus(DAY)).await.expect("the window is over");
}

async fn pruned_uses_do_not_count_and_others_do(store: &dyn Store) {
    done(store, create_tunnel(1, "one", TlsMode::Passthrough)).await;
    for serial in 0..10_u8 {
        let now = NOW.plus(u32::from(serial) * SECOND);
        execute(store, admin(), record(1, "one", serial), now).await.expect("within the quota");
    }
    // At the limit itself: a use at `before` is kept.
    store.prune_uses(NOW).await.expect("pruned");
    let now = NOW.plus(10 * SECOND);
    assert!(execute(store, admin(), record(1, "one", 10), now).await.is_err());
    store.prune_uses(NOW.plus(SECOND)).await.expect("pruned");
    execute(store, admin(), record(1, "one", 10), now).await.expect("nine are left");
    assert!(execute(store, admin(), record(1, "one", 11), now).await.is_err());
}

async fn expired_tunnels_are_those_at_their_deadline(store: &dyn Store) {
    for number in 1..=4_u8 {
        done(store, create_tunnel(number, &format!("agent-{number}"), TlsMode::Edge)).await;
    }
    for number in 1..=3_u8 {
        let delete = Command::DeleteTunnel { id: tunnel_id(number) };
        execute(store, admin(), delete, NOW.plus(u32::from(number) * SECOND)).await.expect("deleted");
    }
    let expired = |after, limit| async move {
        let mut ids = store.expired_tunnels(NOW.plus(DAY + after), limit).await.expect("an answer");
        ids.sort_unstable();
        ids
    };
    assert!(expired(SECOND - Duration::from_micros(1), 10).await.is_empty());
    assert_eq!(expired(SECOND, 10).await, [tunnel_id(1)]);
    assert_eq!(expired(3 * SECOND, 10).await, [1, 2, 3].map(tunnel_id));
    assert_eq!(expired(3 * SECOND, 2).await.len(), 2);

    let finalize = || Command::FinalizeTunnel { id: tunnel_id(1) };
    execute(store, Caller::System, finalize(), NOW.plus(DAY + SECOND)).await.expect("its window is over");
    assert!(store.tunnel(tunnel_id(1)).await.expect("an answer").is_none());
    let again = execute(store, Caller::System, finalize(), NOW.plus(DAY + SECOND)).await;
    assert_eq!(again.err(), Some(Refusal::NotFound(Kind::Tunnel)));
    let early = Command::FinalizeTunnel { id: tunnel_id(3) };
    let early = execute(store, Caller::System, early, NOW.plus(DAY)).await;
    assert_eq!(early.err(), Some(Refusal::NotDeletePending));
    assert_eq!(expired(3 * SECOND, 10).await, [2, 3].map(tunnel_id));

    // Of those whose clock was ahead nobody waits for longer than the window.
    for (latest, late) in [(NOW.plus(DAY + 2 * SECOND), vec![tunnel_id(3)]), (NOW.plus(DAY + 3 * SECOND), vec![])] {
        assert_eq!(store.tunnels_restorable_after(latest, 10).await.expect("an answer"), late);
    }
}

async fn a_deleted_identity_takes_its_tunnel_and_keys_along(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    done(store, create_identity(2, "her-agent")).await;
    for (key, identity) in [(1, 1), (2, 1), (3, 2)] {
        done(store, create_key(key, Some(identity_id(identity)))).await;
    }
    done(store, record(1, "my-agent", 1)).await;
    let delete = Command::DeleteIdentity { handle: name("my-agent") };
    execute(store, admin(), delete, NOW.plus(SECOND)).await.expect("deleted");

    assert!(store.identity(IdentityKey::Id(identity_id(1))).await.expect("an answer").is_none());
    assert!(store.identity(IdentityKey::Handle(&name("my-agent"))).await.expect("an answer").is_none());
    assert!(store.tunnel(tunnel_id(1)).await.expect("an answer").is_none());
    assert!(store.tunnel_by_name(&name("my-agent")).await.expect("an answer").is_none());
    for (number, revoked_at) in [(1, Some(NOW.plus(SECOND))), (2, Some(NOW.plus(SECOND))), (3, None)] {
        let key = store.api_key(key_id(number)).await.expect("an answer").expect("keys are kept");
        assert_eq!(key.revoked_at, revoked_at, "key {number}");
    }
    let other = store.identity(IdentityKey::Id(identity_id(2))).await.expect("an answer");
    assert!(other.is_some_and(|(_, tunnel)| tunnel.id == tunnel_id(2)));
}

async fn a_renamed_identity_is_found_by_its_new_handle_only(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    done(store, record(1, "my-agent", 1)).await;
    done(store, rename("my-agent", "her-agent")).await;
    let (old, new) = (name("my-agent"), name("her-agent"));
    assert!(store.identity(IdentityKey::Handle(&old)).await.expect("an answer").is_none());
    assert!(store.tunnel_by_name(&old).await.expect("an answer").is_none());
    let (identity, tunnel) = store.identity(IdentityKey::Handle(&new)).await.expect("an answer").expect("it exists");
    assert_eq!((identity.handle, tunnel.name.clone()), (new.clone(), new.clone()));
    assert_eq!((tunnel.status, tunnel.certificate), (Status::AwaitingCert, None));
    assert!(store.tunnel_by_name(&new).await.expect("an answer").is_some());
    // The old name is free at once, and back again too.
    done(store, create_tunnel(2, "my-agent", TlsMode::Edge)).await;
    done(store, Command::DeleteTunnel { id: tunnel_id(2) }).await;
    done(store, Command::ForceDeleteTunnel { id: tunnel_id(2) }).await;
    done(store, rename("her-agent", "my-agent")).await;
    assert!(store.tunnel_by_name(&old).await.expect("an answer").is_some());
}

async fn a_revoked_key_is_kept_with_its_time(store: &dyn Store) {
    done(store, create_identity(1, "my-agent")).await;
    done(store, create_key(1, Some(identity_id(1)))).await;
    let revoke = || Command::RevokeKey { id: key_id(1) };
    execute(store, admin(), revoke(), NOW.plus(SECOND)).await.expect("revoked");
    let again = execute(store, admin(), revoke(), NOW.plus(2 * SECOND)).await;
    assert!(matches!(again.as_deref(), Ok([])), "{again:?}");
    let key = store.api_key(key_id(1)).await.expect("an answer").expect("it exists");
    assert_eq!((key.revoked_at, key.updated_at), (Some(NOW.plus(SECOND)), NOW.plus(SECOND)));
    assert_eq!(store.api_keys(&organization("org_own"), Page::ALL).await.expect("an answer").len(), 1);
}

async fn touching_a_key_changes_its_last_use_only(store: &dyn Store) {
    execute(store, Caller::System, create_key(1, None), NOW).await.expect("the server may");
    let mut expected = store.api_key(key_id(1)).await.expect("an answer").expect("it exists");
    assert_eq!(expected.last_used_at, None);
    store.touch_api_key(key_id(1), NOW.plus(DAY)).await.expect("touched");
    expected.last_used_at = Some(NOW.plus(DAY));
    let found = store.api_key(key_id(1)).await.expect("an answer").expect("it exists");
    assert_eq!(key_text(&found), key_text(&expected));
}

async fn client_certificates_are_kept_by_serial_number(store: &dyn Store) {
    let certificate =
        |serial: &str, key| ClientCertificate { serial: serial.to_owned(), key: [key; 32], not_after: NOW };
    for (serial, key) in [("0A", 1), ("0B", 2), ("0A", 3)] {
        store.record_client_certificate(certificate(serial, key)).await.expect("recorded");
    }
    let mut found = store.client_certificates().await.expect("an answer");
    found.sort_by(|one, other| one.serial.cmp(&other.serial));
    assert_eq!(found, [certificate("0A", 3), certificate("0B", 2)]);
    store.forget_client_certificates(NOW).await.expect("none is over");
    assert_eq!(store.client_certificates().await.expect("an answer").len(), 2);
    store.forget_client_certificates(NOW.plus(DAY)).await.expect("all are over");
    assert_eq!(store.client_certificates().await.expect("an answer"), []);
}

async fn certificates_are_found_by_what_is_on_record(store: &dyn Store) {
    let of_edge = |host: &str, octet: u8, not_after| IssuedCertificate {
        holder: Holder::Edge(host.to_owned()),
        serial: vec![octet],
        fingerprint: [octet; 32],
        issuer: Issuer::Private,
        profile: None,
        key: Some([octet; 32]),
        requested_by: None,
        not_before: Some(NOW),
        not_after,
        issued_at: Some(NOW.plus(DAY)),
        revoked_at: None,
    };
    done(store, create_tunnel(1, "my-agent", TlsMode::Passthrough)).await;
    execute(store, admin(), record(1, "my-agent", 1), NOW).await.expect("signed");
    execute(store, admin(), record(1, "my-agent", 2), NOW.plus(SECOND)).await.expect("signed");
    let (one, other) =
        (of_edge("a.example.test", 3, NOW.plus(SECOND)), of_edge("b.example.test", 4, NOW.plus(2 * DAY)));
    for certificate in [&other, &one] {
        store.record_certificate(certificate.clone()).await.expect("recorded");
    }
    let holder =
        Holder::Tunnel { id: tunnel_id(1), name: name("my-agent"), organization: Some(organization("org_own")) };
    let of_tunnel = |serial: u8, issued_at| {
        let (certificate, origin) = (certificate(serial), origin(serial));
        IssuedCertificate {
            holder: holder.clone(),
            serial: certificate.serial,
            fingerprint: certificate.fingerprint,
            issuer: origin.issuer,
            profile: origin.profile,
            key: Some(origin.key),
            requested_by: origin.requested_by,
            not_before: Some(origin.not_before),
            not_after: certificate.expires_at,
            issued_at: Some(issued_at),
            revoked_at: None,
        }
    };
    let (first, second) = (of_tunnel(1, NOW), of_tunnel(2, NOW.plus(SECOND)));
    let all = [&first, &second, &one, &other];
    let host = |host: &str, label: Option<&str>| Some(Host { host: host.to_owned(), name: label.map(name) });
    let none = CertificateFilter::default;
    let cases = [
        (none(), &all[..]),
        (CertificateFilter { organization: Some(organization("org_own")), ..none() }, &all[..]),
        (CertificateFilter { organization: Some(organization("org_other")), ..none() }, &[&one, &other]),
        (CertificateFilter { tunnel: Some(tunnel_id(1)), ..none() }, &[&first, &second]),
        (CertificateFilter { tunnel: Some(tunnel_id(2)), ..none() }, &[]),
        (CertificateFilter { host: host("my-agent.example.test", Some("my-agent")), ..none() }, &[&first, &second]),
        (CertificateFilter { host: host("a.example.test", None), ..none() }, &[&one]),
        (CertificateFilter { host: host("c.example.test", None), ..none() }, &[]),
        (CertificateFilter { serial: Some(vec![4]), ..none() }, &[&other]),
        (CertificateFilter { fingerprint: Some([2; 32]), ..none() }, &[&second]),
        (CertificateFilter { issuer: Some(Issuer::Private), ..none() }, &all[..]),
        (CertificateFilter { ends_before: Some(NOW.plus(2 * DAY)), ..none() }, &[&one]),
        (CertificateFilter { ends_from: Some(NOW.plus(2 * DAY)), ..none() }, &[&first, &second, &other]),
        (
            CertificateFilter {
                tunnel: Some(tunnel_id(1)),
                ends_before: Some(NOW),
                fingerprint: Some([1; 32]),
                ..none()
            },
            &[],
        ),
    ];
    for (filter, expected) in cases {
        let found = store.certificates(&filter, Page::ALL).await.expect("an answer");
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
        let mut page = Page { after: None, limit: Some(1) };
        for expected in expected {
            let found = store.certificates(&filter, page).await.expect("an answer");
            assert_eq!(found.iter().collect::<Vec<_>>(), [*expected], "{filter:?} {page:?}");
            page.after = Some(expected.place());
        }
        assert_eq!(store.certificates(&filter, page).await.expect("an answer"), [], "{filter:?}");
    }
    let next_end = async |now| store.next_certificate_end(now).await.expect("an answer");
    assert_eq!(next_end(second.not_after).await, Some(second.not_after));
    assert_eq!(next_end(second.not_after.plus(SECOND)).await, None);
    store.forget_certificates(NOW.plus(2 * DAY)).await.expect("forgotten");
    let found = store.certificates(&none(), Page::ALL).await.expect("an answer");
    assert_eq!(found, [first.clone(), second.clone(), other.clone()]);
    // What is recorded again is the same, and what is revoked stays so.
    for at in [NOW.plus(DAY), NOW.plus(2 * DAY)] {
        store.note_revocation([4; 32], at).await.expect("noted");
    }
    store.record_certificate(other.clone()).await.expect("recorded");
    let revoked = CertificateFilter { revoked: Some(true), ..none() };
    let found = store.certificates(&revoked, Page::ALL).await.expect("an answer");
    assert_eq!(found, [IssuedCertificate { revoked_at: Some(NOW.plus(DAY)), ..other }]);
    let good = CertificateFilter { revoked: Some(false), ..none() };
    assert_eq!(store.certificates(&good, Page::ALL).await.expect("an answer"), [first, second]);
}

async fn a_name_with_anothers_public_certificate_is_not_free(store: &dyn Store) {
    done(store, create_tunnel(1, "my-agent", TlsMode::Passthrough)).await;
    let finish = |serial: u8, issuer| Command::FinishOrder {
        id: tunnel_id(1),
        name: name("my-agent"),
        certificate: certificate(serial),
        origin: Origin { issuer, ..origin(serial) },
    };
    execute(store, Caller::System, finish(1, Issuer::Acme), NOW).await.expect("recorded");
    let delete = |by| execute(store, by, Command::DeleteTunnel { id: tunnel_id(1) }, NOW);
    delete(admin()).await.expect("deleted");
    execute(store, admin(), Command::ForceDeleteTunnel { id: tunnel_id(1) }, NOW).await.expect("gone");
    let stranger = admin_of("org_other");
    let wanted = |number| create_tunnel(number, "my-agent", TlsMode::Edge);
    let end = certificate(1).expires_at;
    let refused = execute(store, stranger.clone(), wanted(2), end).await;
    assert_eq!(refused.err(), Some(Refusal::NameUnavailable(Unavailable::Quarantined)));
    execute(store, admin(), wanted(3), NOW).await.expect("it was its own");
    execute(store, admin(), Command::DeleteTunnel { id: tunnel_id(3) }, NOW).await.expect("deleted");
    execute(store, admin(), Command::ForceDeleteTunnel { id: tunnel_id(3) }, NOW).await.expect("gone");
    execute(store, stranger, wanted(4), end.plus(SECOND)).await.expect("the certificate has ended");
}

async fn orders_are_kept_until_they_are_forgotten(store: &dyn Store) {
    let holder =
        Holder::Tunnel { id: tunnel_id(1), name: name("my-agent"), organization: Some(organization("org_own")) };
    let order = |number: u8, holder: &Holder, begun_at| Order {
        id: [number; 16],
        holder: holder.clone(),
        directory: "https://ca.test/directory".to_owned(),
        names: vec!["example.test".to_owned(), "*.example.test".to_owned()],
        csr: vec![number, 2],
        key: [number; 32],
        requested_by: Some(key_id(7)),
        profile: Some("short".to_owned()),
        ask: Ask::New,
        replaces: Some("a.b".to_owned()),
        url: None,
        begun_at,
        failures: 3,
        failing_since: Some(NOW),
        state: OrderState::Pending,
    };
    let mut first = order(1, &holder, NOW);
    let mut second = Order { ask: Ask::RenewalInWindow, ..order(2, &holder, NOW.plus(DAY)) };
    let mut third = Order { ask: Ask::Renewal, ..order(3, &Holder::Edge("example.test".to_owned()), NOW) };
    for order in [&second, &first, &third] {
        store.record_order(order.clone()).await.expect("recorded");
    }
    let sorted = |mut orders: Vec<Order>| {
        orders.sort_by_key(|order| order.id);
        orders
    };
    let pending = async || sorted(store.pending_orders().await.expect("an answer"));
    assert_eq!(pending().await, [first.clone(), second.clone(), third.clone()]);
    assert_eq!(store.latest_order(&holder).await.expect("an answer"), Some(second.clone()));
    assert_eq!(store.latest_order(&third.holder).await.expect("an answer"), Some(third.clone()));
    assert_eq!(store.latest_order(&Holder::Edge("other.test".to_owned())).await.expect("an answer"), None);

    first.state = OrderState::Failed {
        at: NOW.plus(SECOND),
        cause: "caa".to_owned(),
        words: "a record forbids it".to_owned(),
        not_before: Some(NOW.plus(DAY)),
    };
    for (order, ask_again_at) in [(&mut second, None), (&mut third, Some(NOW))] {
        order.url = Some(format!("https://ca.test/{}", order.id[0]));
        let chain = "PEM".to_owned();
        let fingerprint = [order.id[0]; 32];
        let (at, renew_at) = (NOW.plus(2 * DAY), NOW.plus(DAY));
        order.state =
            OrderState::Issued { at, fingerprint, chain, renew_at, is_told: ask_again_at.is_some(), ask_again_at };
    }
    for order in [&first, &second, &third] {
        store.record_order(order.clone()).await.expect("recorded");
    }
    assert_eq!(pending().await, []);
    assert_eq!(store.latest_order(&holder).await.expect("an answer"), Some(second.clone()));
    let mut ordered = store.ordered_since(NOW).await.expect("an answer");
    ordered.sort_by_key(|ordered| (ordered.begun_at, ordered.issued));
    let outcomes: Vec<_> = ordered.iter().map(|one| (one.ask, one.issued, one.failed.clone())).collect();
    let failed = Some((NOW.plus(SECOND), "caa".to_owned()));
    let issued = |octet: u8| Some((NOW.plus(2 * DAY), [octet; 32]));
    assert_eq!(
        outcomes,
        [(Ask::New, None, failed), (Ask::Renewal, issued(3), None), (Ask::RenewalInWindow, issued(2), None)]
    );
    assert!(ordered.iter().all(|one| one.names == second.names));
    assert_eq!(store.ordered_since(NOW.plus(SECOND)).await.expect("an answer").len(), 1);

    let again = Order { failures: 4, ..order(5, &holder, NOW.plus(2 * DAY)) };
    store.record_order(again.clone()).await.expect("recorded");
    assert_eq!(store.latest_order(&holder).await.expect("an answer"), Some(again.clone()));
    let issued_of = async |holder: &Holder| store.latest_issued_order(holder, None).await.expect("an answer");
    let of_key = async |key: u8| store.latest_issued_order(&holder, Some([key; 32])).await.expect("an answer");
    assert_eq!((of_key(2).await, of_key(1).await), (Some(second.clone()), None));
    assert_eq!(issued_of(&holder).await, Some(second.clone()));
    assert_eq!(issued_of(&third.holder).await, Some(third.clone()));
    assert_eq!(issued_of(&Holder::Edge("other.test".to_owned())).await, None);
    let at = NOW.plus(2 * DAY);
    let failed = OrderState::Failed { at, cause: "caa".to_owned(), words: String::new(), not_before: None };
    store.record_order(Order { state: failed, ..again }).await.expect("recorded");

    // Good are those whose certificate is on record, lives and was not revoked.
    let issued = async |now| store.issued_orders(now, None, 10).await.expect("an answer");
    assert_eq!(issued(NOW).await, []);
    for octet in [2, 3] {
        let certificate = IssuedCertificate {
            holder: Holder::Edge("example.test".to_owned()),
            serial: vec![octet],
            fingerprint: [octet; 32],
            issuer: Issuer::Acme,
            profile: None,
            key: None,
            requested_by: None,
            not_before: None,
            not_after: NOW.plus(DAY),
            issued_at: Some(NOW),
            revoked_at: None,
        };
        store.record_certificate(certificate).await.expect("recorded");
    }
    assert_eq!(issued(NOW.plus(DAY)).await, [second.clone(), third.clone()]);
    let page = async |after| store.issued_orders(NOW, after, 1).await.expect("an answer");
    assert_eq!((page(None).await, page(Some(second.id)).await), (vec![second.clone()], vec![third.clone()]));
    assert_eq!(page(Some(third.id)).await, []);
    assert_eq!(issued(NOW.plus(2 * DAY)).await, []);
    store.note_revocation([2; 32], NOW).await.expect("noted");
    assert_eq!(issued(NOW).await, [third.clone()]);

    store.record_order(order(4, &holder, NOW)).await.expect("recorded");
    store.forget_orders(NOW.plus(DAY)).await.expect("forgotten");
    assert_eq!(store.ordered_since(NOW).await.expect("an answer").len(), 3, "one is pending, two are younger");
}

async fn everything(store: &dyn Store) -> String {
    let own = organization("org_own");
    let tunnels = store.tunnels(&own, Page::ALL).await.expect("an answer");
    let identities = store.identities(&own, Page::ALL).await.expect("an answer");
    let keys = store.api_keys(&own, Page::ALL).await.expect("an answer");
    let tunnels: Vec<_> = tunnels.iter().map(tunnel_text).collect();
    let keys: Vec<_> = keys.iter().map(key_text).collect();
    format!("{tunnels:#?} {identities:#?} {keys:#?}")
}
