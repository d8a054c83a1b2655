//! Secrets are shown once: in the answer that makes them, and nowhere else.

use serde_json::{Value, json};
use store::Page;
use tunnel_model::{Caller, KeyId, OrganizationId, Scope, TlsMode};

use crate::world::*;

#[tokio::test]
async fn debug_output_of_what_the_use_cases_answer_has_no_secret() {
    let world = World::new().await;
    let (caller, admin_record) = world.app.authenticate(&world.admin).await.expect("a key");
    let name = "my-agent".parse().expect("a name");
    let made = world.app.create_tunnel(caller.clone(), name, TlsMode::Edge, None).await.expect("a tunnel");
    let rotated = world.app.rotate_secret(caller.clone(), made.tunnel.id).await.expect("another secret");
    let handle = "her-agent".parse().expect("a handle");
    let identity =
        world.app.create_identity(caller.clone(), handle, None, None, TlsMode::Edge).await.expect("an identity");
    let label = "a key".parse().expect("a label");
    let key = world.app.create_api_key(caller.clone(), Some(identity.0.id), label, None).await.expect("a key");
    let organization = OrganizationId::new("org_own");
    let tunnels = world.store.tunnels(&organization, Page::ALL).await.expect("an answer");
    let keys = world.store.api_keys(&organization, Page::ALL).await.expect("an answer");

    let secrets = [world.admin.as_str(), made.connect_secret.as_str(), rotated.as_str(), key.0.expose()];
    let texts = [
        format!("{made:?}"),
        format!("{key:?}"),
        format!("{admin_record:?}"),
        format!("{tunnels:?} {keys:?} {caller:?}"),
    ];
    for text in &texts {
        for secret in secrets {
            let secret = secret.split_once('.').map_or(secret, |(_, secret)| secret);
            assert!(!text.contains(secret), "{text}");
        }
        // Nor a digest that could be looked up.
        assert!(!text.contains("hash: SecretHash([") && !text.contains("[u8; 32]"), "{text}");
    }
}

#[tokio::test]
async fn problems_and_later_answers_have_no_secret() {
    let world = World::new().await;
    let (_, _, scoped) = world.identity("my-agent", "edge").await;
    let made = world.admin("POST", "/api/v1/tunnels", json!({"tunnel_name": "lonely"})).await.expect(201).body;
    let id = text(&made["tunnel"]["id"]);
    let first = text(&made["connect_secret"]);
    let rotate = format!("/api/v1/tunnels/{id}/rotate-secret");
    let second = text(&world.admin("POST", &rotate, Value::Null).await.expect(200).body["connect_secret"]);
    // Almost a key: the right id, and a secret that somebody mistyped.
    let mistyped = format!("{}xyz", world.admin);
    let secrets: Vec<&str> = [&world.admin, &scoped, &mistyped, &first, &second]
        .map(|secret| secret.split_once('.').map_or(secret.as_str(), |(_, secret)| secret))
        .to_vec();

    let tunnel = format!("/api/v1/tunnels/{id}");
    for (key, method, path, body) in [
        (mistyped.as_str(), "GET", "/api/whoami", Value::Null),
        (&scoped, "GET", "/api/whoami", Value::Null),
        (&scoped, "POST", "/api/v1/tunnels", json!({"tunnel_name": "new-name"})),
        (&scoped, "GET", "/api/v1/api-keys", Value::Null),
        (&world.admin, "GET", "/api/v1/api-keys", Value::Null),
        (&world.admin, "GET", "/api/whoami", Value::Null),
        (&world.admin, "GET", "/api/v1/tunnels", Value::Null),
        (&world.admin, "GET", "/api/v1/identities", Value::Null),
        (&world.admin, "GET", &tunnel, Value::Null),
        (&world.admin, "PATCH", &tunnel, json!({"metadata": {"a": 1}})),
        (&world.admin, "POST", "/api/v1/tunnels", json!({"tunnel_name": "lonely"})),
        (&world.admin, "DELETE", &tunnel, Value::Null),
        (&world.admin, "POST", &format!("{tunnel}/restore"), Value::Null),
        // A secret in the wrong place is not sent back either.
        (&world.admin, "GET", &format!("/api/v1/tunnels/{first}"), Value::Null),
        (&world.admin, "GET", &format!("/api/v1/identities/{first}"), Value::Null),
        (&world.admin, "GET", &format!("/{first}"), Value::Null),
        (&world.admin, "DELETE", &format!("/api/v1/api-keys/{}", world.admin), Value::Null),
        (&world.admin, "POST", "/api/v1/tunnels", json!({"tunnel_name": first})),
        (&world.admin, "POST", "/api/v1/identities", json!({"agent_handle": first})),
        (&world.admin, "POST", &format!("{tunnel}/sign-csr"), json!({"csr_pem": first})),
        (&world.admin, "POST", "/api/v1/api-keys", json!({"label": "a key", "scoped_identity_id": first})),
    ] {
        let answer = world.call(key, method, path, body).await;
        let told = format!("{} {:?}", answer.body, answer.headers);
        for secret in &secrets {
            assert!(!told.contains(secret), "{method} {path}: {told}");
        }
    }
}

#[tokio::test]
async fn debug_output_of_errors_has_no_secret() {
    let world = World::new().await;
    let mistyped = format!("{}xyz", world.admin);
    let error = world.app.authenticate(&mistyped).await.expect_err("mistyped");
    let told = format!("{error:?} {error} {}", serde_json::to_string(&error.problem()).expect("JSON"));
    assert!(!told.contains(mistyped.split_once('.').expect("a dot").1), "{told}");

    let stranger = Caller::Key {
        id: KeyId::from_bytes([1; 16]),
        organization: OrganizationId::new("org_other"),
        scope: Scope::Admin,
    };
    let id = world.tunnel("my-agent", "edge").await.parse().expect("an id");
    let error = world.app.rotate_secret(stranger, id).await.expect_err("not theirs");
    assert_eq!(format!("{error:?}"), "Refused(NotFound(Tunnel))");
    assert!(format!("{:?}", "not-a-key".parse::<tunnel_model::ApiKeySecret>()).starts_with("Err(SecretError"));
}
