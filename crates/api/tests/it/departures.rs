//! Callers who leave at every moment of a change: what is committed is noticed,
//! and what is noticed is committed.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use serde_json::{Value, json};
use store::{Observer, Page, SqliteStore, Store};
use tunnel_model::{Event, OrganizationId, Rules};

use crate::world::*;

/// What somebody knows who has heard of every event.
#[derive(Default)]
struct Heard(Mutex<Records>);

/// Tunnels, identities and keys by their ids, in words.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Records {
    tunnels: BTreeMap<String, String>,
    identities: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
}

impl Records {
    async fn stored(store: &dyn Store) -> Self {
        let own = OrganizationId::new("org_own");
        let tunnels = store.tunnels(&own, Page::ALL).await.expect("tunnels").into_iter();
        let identities = store.identities(&own, Page::ALL).await.expect("identities").into_iter();
        let keys = store.api_keys(&own, Page::ALL).await.expect("keys").into_iter();
        Self {
            tunnels: tunnels.map(|tunnel| (tunnel.id.to_string(), tunnel_in_words(&tunnel))).collect(),
            identities: identities.map(|(identity, _)| (identity.id.to_string(), format!("{identity:?}"))).collect(),
            keys: keys.map(|key| (format!("{:?}", key.id), key_in_words(&key))).collect(),
        }
    }
}

/// A hash does not show itself.
fn tunnel_in_words(tunnel: &tunnel_model::Tunnel) -> String {
    format!("{tunnel:?} {:?}", tunnel.secret_hash.as_ref().map(tunnel_model::SecretHash::as_bytes))
}

/// Its last use is no event.
fn key_in_words(key: &tunnel_model::ApiKey) -> String {
    format!("{:?}", tunnel_model::ApiKey { last_used_at: None, ..key.clone() })
}

impl Observer for Heard {
    fn committed(&self, events: &[Event]) {
        let mut records = self.0.lock().expect("no panic");
        for event in events {
            match event {
                Event::CertificateIssued(tunnel, _)
                | Event::SecretRotated(tunnel)
                | Event::TunnelConnected(tunnel)
                | Event::TunnelCreated(tunnel)
                | Event::TunnelDeleted(tunnel)
                | Event::TunnelDisconnected(tunnel)
                | Event::TunnelRenamed(tunnel)
                | Event::TunnelRestored(tunnel)
                | Event::TunnelUpdated(tunnel) => {
                    records.tunnels.insert(tunnel.id.to_string(), tunnel_in_words(tunnel));
                }
                Event::SigningCounted(_) => {}
                Event::TunnelFinalized(tunnel) => drop(records.tunnels.remove(&tunnel.id.to_string())),
                Event::IdentityCreated(identity) | Event::IdentityUpdated(identity) => {
                    records.identities.insert(identity.id.to_string(), format!("{identity:?}"));
                }
                Event::IdentityDeleted(identity) => drop(records.identities.remove(&identity.id.to_string())),
                Event::KeyCreated(key) | Event::KeyRevoked(key) => {
                    if key.organization == OrganizationId::new("org_own") {
                        records.keys.insert(format!("{:?}", key.id), key_in_words(key));
                    }
                }
            }
        }
    }
}

/// Every route that changes something, on these tunnels and this key.
fn mutations(tunnel: &str, deleted: &str, passthrough: &str, key: &str) -> Vec<(&'static str, String, Value)> {
    vec![
        ("POST", "/api/v1/tunnels".to_owned(), json!({"tunnel_name": "another", "tls_mode": "edge"})),
        ("PATCH", format!("/api/v1/tunnels/{tunnel}"), json!({"description": "words"})),
        ("DELETE", format!("/api/v1/tunnels/{tunnel}"), Value::Null),
        ("POST", format!("/api/v1/tunnels/{deleted}/restore"), Value::Null),
        ("DELETE", format!("/api/v1/tunnels/{deleted}/force"), Value::Null),
        ("POST", format!("/api/v1/tunnels/{tunnel}/rotate-secret"), Value::Null),
        ("POST", format!("/api/v1/tunnels/{passthrough}/sign-csr"), json!({"csr_pem": csr_for("my-agent")})),
        ("POST", "/api/v1/identities".to_owned(), json!({"agent_handle": "another"})),
        ("PATCH", "/api/v1/identities/my-agent".to_owned(), json!({"agent_handle": "another"})),
        ("DELETE", "/api/v1/identities/my-agent".to_owned(), Value::Null),
        ("POST", "/api/v1/api-keys".to_owned(), json!({"label": "x", "scoped_identity_id": passthrough})),
        ("DELETE", format!("/api/v1/api-keys/{key}"), Value::Null),
    ]
}

/// When a caller leaves, who has been served for a while.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// While what it waits for is under way.
    Waiting,
    /// When that is done and it has not heard.
    BeforeItHears,
}

/// Polls a future so many times; `None` if it was not done by then.
async fn leave_after<F: Future>(polls: usize, leaves: Leaves, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match (future.as_mut().poll(context), leaves) {
            (Poll::Ready(output), _) => Poll::Ready(Some(output)),
            (Poll::Pending, Leaves::Waiting) if left == 0 => Poll::Ready(None),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

/// A data plane that looks into the store.
struct Traffic(#[expect(dead_code, reason = "it is held")] Arc<dyn Store>);

impl api::DataPlane for Traffic {
    fn is_connected(&self, _: tunnel_model::TunnelId) -> bool {
        true
    }

    fn attach(&self, _: api::Agent) -> Result<api::Attached, api::Busy> {
        Err(api::Busy("no traffic flows here"))
    }
}

#[tokio::test]
async fn the_store_goes_with_those_who_use_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).expect("a store"));
    let app = app(Arc::clone(&store), Arc::new(store::SystemClock), Rules::new())
        .with_data_plane(Arc::new(Traffic(Arc::clone(&store))));
    let app = Arc::new(app);
    drop(api::router(Arc::clone(&app), Arc::default(), &api::Limits::default()));
    drop((app, store));
    // Nothing is written any more: another one may have the directory.
    SqliteStore::open(directory.path()).expect("the lock is free");
}

#[tokio::test]
async fn what_a_caller_who_left_has_changed_is_noticed_and_nothing_else() {
    let mut committed = 0;
    for at in 0..mutations("", "", "", "").len() {
        for leaves in [Leaves::Waiting, Leaves::BeforeItHears] {
            for polls in 0.. {
                assert!(polls < 100, "it takes too long");
                let directory = tempfile::tempdir().expect("a directory");
                let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).expect("a store"));
                let heard = Arc::new(Heard::default());
                store.observe(Arc::clone(&heard) as Arc<dyn Observer>);
                let world = World::with(Arc::clone(&store), Rules::new()).await;
                let tunnel = world.tunnel("lonely", "edge").await;
                let deleted = world.tunnel("deleted", "edge").await;
                world.admin("DELETE", &format!("/api/v1/tunnels/{deleted}"), Value::Null).await.expect(200);
                let (identity, passthrough, key) = world.identity("my-agent", "passthrough").await;
                let before = heard.0.lock().expect("no panic").clone();

                let key = key.split('.').next().expect("an id").to_owned();
                let (method, path, mut body) = mutations(&tunnel, &deleted, &passthrough, &key).swap_remove(at);
                if let Some(scope) = body.get_mut("scoped_identity_id") {
                    *scope = identity.into();
                }
                let answer = leave_after(polls, leaves, world.admin(method, &path, body)).await;
                // What the writer has accepted before is done then.
                store.check().await.expect("a store");

                let when = format!("{method} {path}, left after {polls} polls, {leaves:?}");
                let heard = heard.0.lock().expect("no panic").clone();
                assert_eq!(heard, Records::stored(&*store).await, "{when}");
                let is_changed = heard != before;
                committed += usize::from(is_changed && answer.is_none());
                let signed = usize::from(is_changed && path.ends_with("sign-csr"));
                let counted = format!("adit_certificates_signed_total {signed}\n");
                assert!(world.metrics.encode().contains(&counted), "{when}: {counted}");
                if let Some(answer) = answer {
                    assert!((200..300).contains(&answer.status), "{when}: {answer:?}");
                    assert!(is_changed, "{when}: what was acknowledged holds");
                    break;
                }
            }
        }
    }
    assert!(committed > 10, "many have left and were served all the same: {committed}");
}
