//! Requests at once: whatever the order, the end is one of the legal ones.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{MemoryStore, SqliteStore};
use tunnel_model::Rules;

use crate::world::*;

const ROUNDS: usize = 20;

macro_rules! on_every_backend {
    ($($test:ident),+ $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test(super::World::with(std::sync::Arc::new(super::MemoryStore::new()), super::rules()).await).await;
            })+
        }

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                let directory = tempfile::tempdir().expect("a directory");
                let store = super::SqliteStore::open(directory.path()).expect("a store");
                super::$test(super::World::with(std::sync::Arc::new(store), super::rules()).await).await;
            })+
        }
    };
}

on_every_backend! {
    delete_identity_against_sign,
    delete_key_against_use,
    force_against_restore,
    many_create_one_name,
    many_rename_to_one_name,
    many_signings_keep_the_quota,
    read_against_rename,
    rename_against_next_rename,
    rename_against_sign,
    restore_against_sweep,
    sign_against_delete,
}

/// Rounds create more than a day's tunnels.
fn rules() -> Rules {
    let mut rules = Rules::new();
    rules.creates.limit = 1000;
    rules
}

async fn many_create_one_name(world: World) {
    for round in 0..ROUNDS {
        let name = format!("agent-{round}");
        let answers = at_once(&world, 32, |world, number| {
            let name = name.clone();
            async move {
                let key = if number % 3 == 0 { &world.stranger } else { &world.admin };
                if number % 2 == 0 {
                    world.call(key, "POST", "/api/v1/tunnels", json!({"tunnel_name": name})).await.status
                } else {
                    world.call(key, "POST", "/api/v1/identities", json!({"agent_handle": name})).await.status
                }
            }
        })
        .await;
        assert_eq!(count(&answers, 201), 1, "{answers:?}");
        assert_eq!(count(&answers, 409), 31, "{answers:?}");
    }
}

async fn many_rename_to_one_name(world: World) {
    for number in 0..8 {
        world.identity(&format!("agent-{number}"), "edge").await;
    }
    let answers = at_once(&world, 8, |world, number| async move {
        let path = format!("/api/v1/identities/agent-{number}");
        world.admin("PATCH", &path, json!({"agent_handle": "the-agent"})).await.status
    })
    .await;
    assert_eq!((count(&answers, 200), count(&answers, 409)), (1, 7), "{answers:?}");
    let list = world.admin("GET", "/api/v1/identities", Value::Null).await.expect(200).body;
    for identity in list.as_array().expect("a list") {
        assert_eq!(identity["agent_handle"], identity["tunnel"]["tunnel_name"]);
    }
}

async fn many_signings_keep_the_quota(world: World) {
    for round in 0..2 {
        let name = format!("agent-{round}");
        let id = world.tunnel(&name, "passthrough").await;
        let csr = csr_for(&name);
        let answers = at_once(&world, 32, |world, _| {
            let (id, csr) = (id.clone(), csr.clone());
            async move { world.sign(&world.admin, &id, &csr).await }
        })
        .await;
        let signed: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!(signed.len(), 10);
        assert_eq!(answers.iter().filter(|answer| answer.status == 429).count(), 22);
        let tunnel = world.admin("GET", &format!("/api/v1/tunnels/{id}"), Value::Null).await.expect(200).body;
        assert!(signed.iter().any(|answer| answer.body["cert_pem"] == tunnel["cert_pem"]), "the last one stands");
        let mut fingerprints: Vec<_> =
            signed.iter().map(|answer| answer.body["cert_fingerprint_sha256"].to_string()).collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        assert_eq!(fingerprints.len(), 10);
    }
}

async fn sign_against_delete(world: World) {
    for round in 0..ROUNDS {
        let name = format!("agent-{round}");
        let id = world.tunnel(&name, "passthrough").await;
        let (csr, path) = (csr_for(&name), format!("/api/v1/tunnels/{id}"));
        let (signed, deleted) = both(
            {
                let (world, id, csr) = (world.clone(), id.clone(), csr.clone());
                async move { world.sign(&world.admin, &id, &csr).await }
            },
            {
                let (world, path) = (world.clone(), path.clone());
                async move { world.admin("DELETE", &path, Value::Null).await }
            },
        )
        .await;
        deleted.expect(200);
        let tunnel = world.admin("GET", &path, Value::Null).await.expect(200).body;
        assert_eq!(tunnel["status"], "delete_pending");
        match signed.status {
            200 => assert_eq!(tunnel["cert_pem"], signed.body["cert_pem"]),
            _ => {
                signed.problem(409, "state-conflict");
                assert_eq!(tunnel["cert_pem"], Value::Null);
            }
        }
    }
}

async fn force_against_restore(world: World) {
    for round in 0..ROUNDS {
        let id = world.tunnel(&format!("agent-{round}"), "edge").await;
        let path = format!("/api/v1/tunnels/{id}");
        world.admin("DELETE", &path, Value::Null).await.expect(200);
        let (forced, restored) = both(
            {
                let (world, path) = (world.clone(), path.clone());
                async move { world.admin("DELETE", &format!("{path}/force"), Value::Null).await }
            },
            {
                let (world, path) = (world.clone(), path.clone());
                async move { world.admin("POST", &format!("{path}/restore"), Value::Null).await }
            },
        )
        .await;
        let after = world.admin("GET", &path, Value::Null).await;
        match (forced.status, restored.status) {
            (200, 404) => after.problem(404, "no-such-tunnel"),
            (409, 200) => assert_eq!(after.expect(200).body["status"], "active"),
            other => panic!("{other:?}"),
        }
    }
}

async fn restore_against_sweep(world: World) {
    for round in 0..ROUNDS {
        let id = world.tunnel(&format!("agent-{round}"), "edge").await;
        let path = format!("/api/v1/tunnels/{id}");
        world.admin("DELETE", &path, Value::Null).await.expect(200);
        world.clock.advance(DAY - 1);
        let (restored, swept) = both(
            {
                let (world, path) = (world.clone(), path.clone());
                async move { world.admin("POST", &format!("{path}/restore"), Value::Null).await }
            },
            {
                let world = world.clone();
                async move {
                    world.clock.advance(1);
                    world.app.sweep().await.expect("a store")
                }
            },
        )
        .await;
        let after = world.admin("GET", &path, Value::Null).await;
        match (restored.status, swept) {
            (200, 0) => assert_eq!(after.expect(200).body["status"], "active"),
            (404 | 409, 1) => after.problem(404, "no-such-tunnel"),
            other => panic!("{other:?}"),
        }
    }
}

async fn read_against_rename(world: World) {
    world.identity("agent-a", "edge").await;
    let (_, torn) = both(
        {
            let world = world.clone();
            async move {
                for round in 0..200 {
                    let (old, new) = if round % 2 == 0 { ("agent-a", "agent-b") } else { ("agent-b", "agent-a") };
                    let path = format!("/api/v1/identities/{old}");
                    world.admin("PATCH", &path, json!({"agent_handle": new})).await.expect(200);
                }
            }
        },
        {
            let world = world.clone();
            async move {
                let mut torn = Vec::new();
                for round in 0..4000 {
                    let path = format!("/api/v1/identities/agent-{}", if round % 2 == 0 { "a" } else { "b" });
                    let found = world.admin("GET", &path, Value::Null).await;
                    if found.status == 200 && found.body["agent_handle"] != found.body["tunnel"]["tunnel_name"] {
                        torn.push(found.body);
                    }
                }
                torn
            }
        },
    )
    .await;
    assert!(torn.is_empty(), "{} answers join two states, for example {:#}", torn.len(), torn[0]);
}

async fn rename_against_next_rename(world: World) {
    for round in 0..ROUNDS {
        let names = ["a", "b", "c"].map(|letter| format!("agent-{letter}-{round}"));
        world.identity(&names[0], "edge").await;
        let rename = |from: usize| {
            let (world, path) = (world.clone(), format!("/api/v1/identities/{}", names[from]));
            let body = json!({"agent_handle": names[from + 1]});
            async move {
                let mut answer = world.admin("PATCH", &path, body.clone()).await;
                // The second one waits for the first, and lets it run on the same thread.
                for _ in 0..100_000 {
                    if from == 0 || answer.status != 404 {
                        break;
                    }
                    tokio::task::yield_now().await;
                    answer = world.admin("PATCH", &path, body.clone()).await;
                }
                answer
            }
        };
        let (first, second) = both(rename(0), rename(1)).await;
        let handle = text(&first.expect(200).body["agent_handle"]);
        assert!(handle == names[1] || handle == names[2], "{handle}");
        assert_eq!(second.expect(200).body["agent_handle"], names[2]);
    }
}

async fn rename_against_sign(world: World) {
    for round in 0..ROUNDS {
        let (old, new) = (format!("old-{round}"), format!("new-{round}"));
        let (_, id, scoped) = world.identity(&old, "passthrough").await;
        let csr = csr_for(&old);
        let (signed, renamed) = both(
            {
                let (world, id, csr, scoped) = (world.clone(), id.clone(), csr.clone(), scoped.clone());
                async move { world.sign(&scoped, &id, &csr).await }
            },
            {
                let (world, old, new) = (world.clone(), old.clone(), new.clone());
                async move {
                    let path = format!("/api/v1/identities/{old}");
                    world.admin("PATCH", &path, json!({"agent_handle": new})).await
                }
            },
        )
        .await;
        renamed.expect(200);
        // Signed before, refused by the state at the end, or refused by the name from the start.
        assert!(matches!(signed.status, 200 | 409 | 400), "{:#}", signed.body);
        let tunnel = world.admin("GET", &format!("/api/v1/tunnels/{id}"), Value::Null).await.expect(200).body;
        assert_eq!(tunnel["tunnel_name"], new);
        assert_eq!((&tunnel["status"], &tunnel["cert_pem"]), (&json!("awaiting_cert"), &Value::Null));
    }
}

async fn delete_identity_against_sign(world: World) {
    for round in 0..ROUNDS {
        let name = format!("agent-{round}");
        let (_, id, scoped) = world.identity(&name, "passthrough").await;
        let csr = csr_for(&name);
        let (signed, deleted) = both(
            {
                let (world, id, csr, scoped) = (world.clone(), id.clone(), csr.clone(), scoped.clone());
                async move { world.sign(&scoped, &id, &csr).await }
            },
            {
                let (world, name) = (world.clone(), name.clone());
                async move { world.admin("DELETE", &format!("/api/v1/identities/{name}"), Value::Null).await }
            },
        )
        .await;
        deleted.expect(204);
        assert!(matches!(signed.status, 200 | 401 | 404), "{:#}", signed.body);
        world.admin("GET", &format!("/api/v1/tunnels/{id}"), Value::Null).await.problem(404, "no-such-tunnel");
        world.admin("POST", "/api/v1/tunnels", json!({"tunnel_name": name})).await.expect(201);
    }
}

async fn delete_key_against_use(world: World) {
    for round in 0..ROUNDS {
        let (_, _, scoped) = world.identity(&format!("agent-{round}"), "edge").await;
        // A minute later the use of a key is written down again.
        world.clock.advance(61 * SECOND);
        let id = scoped.split_once('.').expect("a dot").0.to_owned();
        let (used, revoked) = both(
            {
                let (world, scoped) = (world.clone(), scoped.clone());
                async move { world.call(&scoped, "GET", "/api/whoami", Value::Null).await }
            },
            {
                let (world, id) = (world.clone(), id.clone());
                async move { world.admin("DELETE", &format!("/api/v1/api-keys/{id}"), Value::Null).await }
            },
        )
        .await;
        assert_eq!(revoked.expect(200).body["status"], "revoked");
        assert!(matches!(used.status, 200 | 401), "{:#}", used.body);
        world.call(&scoped, "GET", "/api/whoami", Value::Null).await.problem(401, "unauthorized");
    }
}

/// So many clients, started together; their answers by number.
async fn at_once<F, T>(world: &World, clients: usize, client: impl Fn(World, usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(clients));
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let (start, work) = (Arc::clone(&start), client(world.clone(), number));
            tokio::spawn(async move {
                start.wait().await;
                work.await
            })
        })
        .collect();
    let mut answers = Vec::with_capacity(clients);
    for task in tasks {
        answers.push(task.await.expect("no panic"));
    }
    answers
}

/// Two clients, started together on threads of their own.
async fn both<A, B>(
    first: impl Future<Output = A> + Send + 'static,
    second: impl Future<Output = B> + Send + 'static,
) -> (A, B)
where
    A: Send + 'static,
    B: Send + 'static,
{
    let start = Arc::new(tokio::sync::Barrier::new(2));
    let other = Arc::clone(&start);
    let first = tokio::spawn(async move {
        start.wait().await;
        first.await
    });
    let second = tokio::spawn(async move {
        other.wait().await;
        second.await
    });
    (first.await.expect("no panic"), second.await.expect("no panic"))
}

fn count(answers: &[u16], status: u16) -> usize {
    answers.iter().filter(|answer| **answer == status).count()
}
