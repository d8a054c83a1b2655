//! Every status code that the published documents name, endpoint by endpoint.

use serde_json::{Value, json};

use crate::world::*;

/// One request and what must come back; `201` and the like have no kind.
struct Case<'a> {
    what: &'a str,
    key: &'a str,
    path: &'a str,
    body: Value,
    status: u16,
    kind: &'a str,
}

fn case<'a>(what: &'a str, key: &'a str, path: &'a str, body: Value, status: u16, kind: &'a str) -> Case<'a> {
    Case { what, key, path, body, status, kind }
}

/// Without a body.
fn bare<'a>(what: &'a str, key: &'a str, path: &'a str, status: u16, kind: &'a str) -> Case<'a> {
    case(what, key, path, Value::Null, status, kind)
}

async fn check(world: &World, method: &str, cases: impl IntoIterator<Item = Case<'_>>) {
    for Case { what, key, path, body, status, kind } in cases {
        let answer = world.call(key, method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path}, {what}: {:#}", answer.body);
        if status >= 400 {
            answer.problem(status, kind);
        }
    }
}

/// Nobody gets past these.
async fn check_unauthorized(world: &World, method: &str, path: &str, body: Value) {
    let unknown = format!("ApiKey_{NO_UUID}.{}", "x".repeat(43));
    let mut changed = world.admin.clone();
    changed.replace_range(changed.len() - 1.., if changed.ends_with('A') { "B" } else { "A" });
    for (what, key) in [
        ("no key", ""),
        ("an unknown key", unknown.as_str()),
        ("a key with a wrong secret", changed.as_str()),
        ("a key that is too short", "ApiKey_1"),
    ] {
        check(world, method, [case(what, key, path, body.clone(), 401, "unauthorized")]).await;
    }
}

#[tokio::test]
async fn create_tunnel() {
    let world = World::new().await;
    let path = "/api/v1/tunnels";
    let (_, _, scoped) = world.identity("my-agent", "edge").await;
    let named = |name: &str| json!({"tunnel_name": name});
    let described = |description: Value| json!({"tunnel_name": "described", "description": description});
    let (longest, too_long) = ("ü".repeat(1000), "ü".repeat(1001));
    let admin = world.admin.as_str();
    check_unauthorized(&world, "POST", path, named("new-name")).await;
    check(
        &world,
        "POST",
        [
            case("the mode is edge by default", admin, path, named("edge-one"), 201, ""),
            case("1000 characters", admin, path, described(longest.into()), 201, ""),
            case("a key that is bound to an identity", &scoped, path, named("new-name"), 403, "forbidden"),
            case("taken by a tunnel", admin, path, named("edge-one"), 409, "name-taken"),
            case("taken, to a stranger", &world.stranger, path, named("edge-one"), 409, "name-taken"),
            case("taken by an identity", admin, path, named("my-agent"), 409, "name-taken"),
            case("reserved", admin, path, named("www"), 409, "name-taken"),
            case("too short", admin, path, named("ab"), 422, "invalid-field"),
            case("too long", admin, path, named(&"a".repeat(64)), 422, "invalid-field"),
            case("upper case", admin, path, named("My-Agent"), 422, "invalid-field"),
            case("a hyphen first", admin, path, named("-abc"), 422, "invalid-field"),
            case("two hyphens", admin, path, named("a--b"), 422, "invalid-field"),
            case("empty", admin, path, named(""), 422, "invalid-field"),
            case("1001 characters", admin, path, described(too_long.into()), 422, "invalid-field"),
            case("no name", admin, path, json!({}), 422, "wrong-shape"),
            case("an unknown mode", admin, path, json!({"tunnel_name": "abc", "tls_mode": "tcp"}), 422, "wrong-shape"),
        ],
    )
    .await;

    let body = json!({"tunnel_name": "pass-one", "tls_mode": "passthrough", "description": "words"});
    let answer = world.admin("POST", path, body).await.expect(201).body;
    let tunnel = &answer["tunnel"];
    assert_eq!(tunnel["status"], "awaiting_cert");
    assert_eq!(tunnel["tls_mode"], "passthrough");
    assert_eq!(tunnel["description"], "words");
    assert_eq!(tunnel["public_host"], "pass-one.adit.localhost");
    assert_eq!(tunnel["agent_identity_id"], Value::Null);
    let secret = text(&answer["connect_secret"]);
    assert!(secret.len() >= 32 && secret.bytes().all(|octet| octet.is_ascii_graphic()));
}

#[tokio::test]
async fn create_tunnel_is_limited_to_ten_a_day() {
    let world = World::new().await;
    let create =
        |number: i32| world.admin("POST", "/api/v1/tunnels/", json!({"tunnel_name": format!("agent-{number}")}));
    for number in 0..10 {
        create(number).await.expect(201);
        // What is refused is not counted.
        create(number).await.expect(409);
        world.clock.advance(SECOND);
    }
    world.clock.advance(SECOND / 2);
    let answer = create(10).await;
    answer.problem(429, "create-quota");
    // 10.5 seconds after the first one, rounded up.
    assert_eq!(answer.retry_after(), 86_400 - 10);
    let identity = world.admin("POST", "/api/v1/identities/", json!({"agent_handle": "agent-10"})).await;
    identity.problem(429, "create-quota");
    world.call(&world.stranger, "POST", "/api/v1/tunnels", json!({"tunnel_name": "agent-10"})).await.expect(201);
    world.clock.advance(answer.retry_after() * SECOND);
    create(11).await.expect(201);
    create(12).await.problem(429, "create-quota");
}

#[tokio::test]
async fn list_tunnels() {
    let world = World::new().await;
    let path = "/api/v1/tunnels/";
    check_unauthorized(&world, "GET", path, Value::Null).await;
    let first = world.tunnel("first-one", "edge").await;
    world.clock.advance(SECOND);
    let (_, second, scoped) = world.identity("my-agent", "edge").await;
    let ids = |answer: Answer| -> Vec<String> {
        let list = answer.expect(200).body["tunnels"].as_array().expect("a list").clone();
        list.iter().map(|tunnel| text(&tunnel["id"])).collect()
    };
    assert_eq!(ids(world.admin("GET", path, Value::Null).await), [first.clone(), second.clone()]);
    assert_eq!(ids(world.call(&scoped, "GET", path, Value::Null).await), std::slice::from_ref(&second));
    assert!(ids(world.call(&world.stranger, "GET", path, Value::Null).await).is_empty());
    // Deleted ones stay as long as they may be restored.
    world.admin("DELETE", &format!("/api/v1/tunnels/{first}"), Value::Null).await.expect(200);
    assert_eq!(ids(world.admin("GET", path, Value::Null).await), [first, second.clone()]);
    world.clock.advance(DAY);
    assert_eq!(ids(world.admin("GET", path, Value::Null).await), [second]);
}

#[tokio::test]
async fn get_tunnel() {
    let world = World::new().await;
    let tunnel = world.tunnel("edge-one", "edge").await;
    let (_, own, scoped) = world.identity("my-agent", "edge").await;
    let path = |id: &str| format!("/api/v1/tunnels/{id}");
    let (lonely, own, unknown) = (path(&tunnel), path(&own), path(NO_UUID));
    check_unauthorized(&world, "GET", &lonely, Value::Null).await;
    let admin = world.admin.as_str();
    let get = |what, key, path| case(what, key, path, Value::Null, 200, "");
    let not_found = |what, key, path| case(what, key, path, Value::Null, 404, "no-such-tunnel");
    check(
        &world,
        "GET",
        [
            get("an admin's", admin, &lonely),
            get("an identity's, to the admin", admin, &own),
            get("an identity's, to its key", &scoped, &own),
            not_found("unknown", admin, &unknown),
            not_found("no UUID", admin, "/api/v1/tunnels/my-agent"),
            not_found("another organization's", &world.stranger, &lonely),
            not_found("not the identity's", &scoped, &lonely),
        ],
    )
    .await;
    world.admin("DELETE", &lonely, Value::Null).await.expect(200);
    check(&world, "GET", [get("in its restore window", admin, &lonely)]).await;
    world.clock.advance(DAY);
    check(&world, "GET", [not_found("after it", admin, &lonely)]).await;
    assert_eq!(world.app.sweep().await.expect("a store"), 1);
    check(&world, "GET", [not_found("after the sweep", admin, &lonely)]).await;
}

#[tokio::test]
async fn update_tunnel() {
    let world = World::new().await;
    let id = world.tunnel("edge-one", "edge").await;
    let path = format!("/api/v1/tunnels/{id}");
    let unknown = format!("/api/v1/tunnels/{NO_UUID}");
    let admin = world.admin.as_str();
    check_unauthorized(&world, "PATCH", &path, json!({})).await;
    let large = |octets: usize| json!({"metadata": {"k": "x".repeat(octets - r#"{"k":""}"#.len())}});
    check(
        &world,
        "PATCH",
        [
            case("4096 octets", admin, &path, large(4096), 200, ""),
            case("unknown", admin, &unknown, json!({}), 404, "no-such-tunnel"),
            case("another organization's", &world.stranger, &path, json!({}), 404, "no-such-tunnel"),
            case("4097 octets", admin, &path, large(4097), 422, "invalid-field"),
            case("1001 characters", admin, &path, json!({"description": "x".repeat(1001)}), 422, "invalid-field"),
            case("a list", admin, &path, json!({"metadata": []}), 422, "wrong-shape"),
            case("a text", admin, &path, json!({"metadata": "x"}), 422, "wrong-shape"),
            case("a number", admin, &path, json!({"description": 1}), 422, "wrong-shape"),
        ],
    )
    .await;

    let patch = async |body: Value| world.admin("PATCH", &path, body).await.expect(200).body;
    let tunnel = patch(json!({"description": "words", "metadata": {"a": 1}})).await;
    assert_eq!((&tunnel["description"], &tunnel["metadata"]), (&json!("words"), &json!({"a": 1})));
    let before = tunnel.clone();
    world.clock.advance(SECOND);
    assert_eq!(patch(json!({})).await, before, "nothing was asked for");
    let tunnel = patch(json!({"metadata": {"b": [null]}})).await;
    assert_eq!((&tunnel["description"], &tunnel["metadata"]), (&json!("words"), &json!({"b": [null]})));
    assert_ne!(tunnel["updated_at"], before["updated_at"]);
    let tunnel = patch(json!({"description": null, "metadata": null})).await;
    assert_eq!((&tunnel["description"], &tunnel["metadata"]), (&Value::Null, &json!({})));
    patch(json!({"metadata": {"c": 1}})).await;
    assert_eq!(patch(json!({"metadata": {}})).await["metadata"], json!({}));
    // Name and mode stay, whatever is asked.
    let tunnel = patch(json!({"tunnel_name": "other-name", "tls_mode": "passthrough", "unknown": 1})).await;
    assert_eq!((&tunnel["tunnel_name"], &tunnel["tls_mode"]), (&json!("edge-one"), &json!("edge")));
}

#[tokio::test]
async fn delete_tunnel() {
    let world = World::new().await;
    let id = world.tunnel("edge-one", "edge").await;
    let (_, owned, scoped) = world.identity("my-agent", "edge").await;
    let (path, owned) = (format!("/api/v1/tunnels/{id}"), format!("/api/v1/tunnels/{owned}"));
    let admin = world.admin.as_str();
    check_unauthorized(&world, "DELETE", &path, Value::Null).await;
    let unknown = format!("/api/v1/tunnels/{NO_UUID}");
    check(
        &world,
        "DELETE",
        [
            bare("unknown", admin, &unknown, 404, "no-such-tunnel"),
            bare("another organization's", &world.stranger, &path, 404, "no-such-tunnel"),
            bare("not the identity's", &scoped, &path, 404, "no-such-tunnel"),
            bare("an identity's", admin, &owned, 409, "identity-owned"),
            bare("an identity's, by its key", &scoped, &owned, 409, "identity-owned"),
        ],
    )
    .await;

    let deleted = world.admin("DELETE", &path, Value::Null).await.expect(200).body;
    assert_eq!(deleted["status"], "delete_pending");
    // NOW is 2026-11-22T13:30:00Z.
    assert_eq!(deleted["restore_deadline_at"], "2026-11-23T13:30:00+00:00");
    world.clock.advance(60 * SECOND);
    assert_eq!(world.admin("DELETE", &path, Value::Null).await.expect(200).body, deleted, "deleting again");
    // The name stays reserved for a day.
    let create = || world.call(&world.stranger, "POST", "/api/v1/tunnels", json!({"tunnel_name": "edge-one"}));
    create().await.problem(409, "name-taken");
    world.clock.advance(DAY - 60 * SECOND);
    world.admin("DELETE", &path, Value::Null).await.problem(404, "no-such-tunnel");
    create().await.expect(201);
}

#[tokio::test]
async fn restore_tunnel() {
    let world = World::new().await;
    let edge = world.tunnel("edge-one", "edge").await;
    let path = |id: &str| format!("/api/v1/tunnels/{id}");
    let restore = |id: &str| format!("/api/v1/tunnels/{id}/restore");
    let admin = world.admin.as_str();
    check_unauthorized(&world, "POST", &restore(&edge), Value::Null).await;
    check(
        &world,
        "POST",
        [
            bare("unknown", admin, &restore(NO_UUID), 404, "no-such-tunnel"),
            bare("another organization's", &world.stranger, &restore(&edge), 404, "no-such-tunnel"),
            bare("not deleted", admin, &restore(&edge), 409, "not-delete-pending"),
        ],
    )
    .await;

    let awaiting = world.tunnel("awaiting", "passthrough").await;
    let signed = world.tunnel("signed", "passthrough").await;
    world.sign(admin, &signed, &csr_for("signed")).await.expect(200);
    let late = world.tunnel("late", "edge").await;
    for (id, status) in [(&edge, "active"), (&awaiting, "awaiting_cert"), (&signed, "active")] {
        world.admin("DELETE", &path(id), Value::Null).await.expect(200);
        world.clock.advance(DAY - 1);
        let restored = world.admin("POST", &restore(id), Value::Null).await.expect(200).body;
        assert_eq!((&restored["status"], &restored["restore_deadline_at"]), (&json!(status), &Value::Null));
    }
    world.admin("DELETE", &path(&late), Value::Null).await.expect(200);
    world.clock.advance(DAY);
    world.admin("POST", &restore(&late), Value::Null).await.problem(409, "restore-window-over");
    assert_eq!(world.app.sweep().await.expect("a store"), 1);
    let gone = world.admin("POST", &restore(&late), Value::Null).await;
    gone.problem(404, "no-such-tunnel");
}

#[tokio::test]
async fn a_restored_tunnel_with_an_expired_certificate_awaits_another() {
    let world = World::new().await;
    let id = world.tunnel("pass-one", "passthrough").await;
    let path = format!("/api/v1/tunnels/{id}");
    let signed = world.sign(&world.admin, &id, &csr_for("pass-one")).await.expect(200).body;
    world.clock.advance(90 * DAY - DAY / 2);
    world.admin("DELETE", &path, Value::Null).await.expect(200);
    world.clock.advance(DAY - 1);
    let restored = world.admin("POST", &format!("{path}/restore"), Value::Null).await.expect(200).body;
    assert_eq!(restored["status"], "awaiting_cert");
    assert_eq!(restored["cert_pem"], signed["cert_pem"], "it is still on file");
}

#[tokio::test]
async fn force_delete_tunnel() {
    let world = World::new().await;
    let id = world.tunnel("edge-one", "edge").await;
    let (_, owned, scoped) = world.identity("my-agent", "edge").await;
    let force = |id: &str| format!("/api/v1/tunnels/{id}/force");
    let admin = world.admin.as_str();
    check_unauthorized(&world, "DELETE", &force(&id), Value::Null).await;
    check(
        &world,
        "DELETE",
        [
            bare("a key that is bound to an identity", &scoped, &force(&owned), 403, "forbidden"),
            bare("unknown", admin, &force(NO_UUID), 404, "no-such-tunnel"),
            bare("another organization's", &world.stranger, &force(&id), 404, "no-such-tunnel"),
            bare("not deleted", admin, &force(&id), 409, "not-delete-pending"),
        ],
    )
    .await;

    world.admin("DELETE", &format!("/api/v1/tunnels/{id}"), Value::Null).await.expect(200);
    let gone = world.admin("DELETE", &force(&id), Value::Null).await.expect(200).body;
    assert_eq!((&gone["status"], &gone["restore_deadline_at"]), (&json!("deleted"), &Value::Null));
    check(
        &world,
        "DELETE",
        [
            bare("force again", admin, &force(&id), 404, "no-such-tunnel"),
            bare("delete again", admin, &format!("/api/v1/tunnels/{id}"), 404, "no-such-tunnel"),
        ],
    )
    .await;
    // The name is free at once.
    world.call(&world.stranger, "POST", "/api/v1/tunnels", json!({"tunnel_name": "edge-one"})).await.expect(201);
}

#[tokio::test]
async fn rotate_secret() {
    let world = World::new().await;
    let body = json!({"tunnel_name": "edge-one"});
    let made = world.admin("POST", "/api/v1/tunnels", body).await.expect(201).body;
    let path = |id: &str| format!("/api/v1/tunnels/{id}/rotate-secret");
    let own = path(made["tunnel"]["id"].as_str().expect("an id"));
    check_unauthorized(&world, "POST", &own, Value::Null).await;
    let not_found = |key, path| case("unknown", key, path, Value::Null, 404, "no-such-tunnel");
    check(&world, "POST", [not_found(&world.admin, &path(NO_UUID)), not_found(&world.stranger, &own)]).await;
    let first = world.admin("POST", &own, Value::Null).await.expect(200).body;
    let second = world.admin("POST", &own, Value::Null).await.expect(200).body;
    assert_ne!(first["connect_secret"], made["connect_secret"]);
    assert_ne!(first["connect_secret"], second["connect_secret"]);
    assert!(text(&first["connect_secret"]).bytes().all(|octet| octet.is_ascii_graphic()));
}

#[tokio::test]
async fn sign_csr() {
    let world = World::new().await;
    let id = world.tunnel("pass-one", "passthrough").await;
    let edge = world.tunnel("my-tunnel", "edge").await;
    let path = |id: &str| format!("/api/v1/tunnels/{id}/sign-csr");
    let admin = world.admin.as_str();
    let good = csr_for("pass-one");
    let body = |csr: &str| json!({"csr_pem": csr});
    check_unauthorized(&world, "POST", &path(&id), body(&good)).await;
    let host = "pass-one.adit.localhost";
    let bad_signature = csr_without_proof("pass-one");
    let own = path(&id);
    let malformed = |what, csr: &str| case(what, admin, &own, body(csr), 400, "csr-refused");
    check(
        &world,
        "POST",
        [
            malformed("empty", ""),
            malformed("no PEM", "hello"),
            malformed("no base64", "-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----\n"),
            malformed("no DER", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
            malformed("two requests", &format!("{good}{good}")),
            malformed("a NUL", &format!("\0{good}")),
            malformed("not proven", &bad_signature),
            malformed("another common name", &csr_for("pass-two")),
            malformed("the bare name", &csr("pass-one", &[])),
            malformed("a name too many", &csr(host, &[host, "pass-two.adit.localhost"])),
            malformed("a wildcard", &csr(host, &["*.adit.localhost"])),
            case("no CSR", admin, &own, json!({}), 422, "wrong-shape"),
            case("unknown", admin, &path(NO_UUID), body(&good), 404, "no-such-tunnel"),
            case("another organization's", &world.stranger, &own, body(&good), 404, "no-such-tunnel"),
            case("wrong mode", admin, &path(&edge), body(&csr_for("my-tunnel")), 409, "tls-mode-mismatch"),
            case("wrong mode, and no CSR either", admin, &path(&edge), body("hello"), 409, "tls-mode-mismatch"),
        ],
    )
    .await;
    let tunnel = world.admin("GET", &format!("/api/v1/tunnels/{id}"), Value::Null).await.expect(200).body;
    assert_eq!((&tunnel["status"], &tunnel["cert_pem"]), (&json!("awaiting_cert"), &Value::Null));

    for csr in [good.clone(), csr(host, &[]), csr("PASS-ONE.Adit.Localhost", &[])] {
        let signed = world.sign(admin, &id, &csr).await.expect(200).body;
        assert!(text(&signed["cert_pem"]).ends_with("-----END CERTIFICATE-----\n"));
        assert!(text(&signed["chain_pem"]).starts_with("-----BEGIN CERTIFICATE-----\n"));
        let fingerprint = text(&signed["cert_fingerprint_sha256"]);
        assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f')));
        let tunnel = world.admin("GET", &format!("/api/v1/tunnels/{id}"), Value::Null).await.expect(200).body;
        assert_eq!(tunnel["status"], "active");
        for field in ["cert_pem", "cert_fingerprint_sha256", "cert_expires_at"] {
            assert_eq!(tunnel[field], signed[field], "{field}");
        }
    }
    let (_, owned, scoped) = world.identity("my-agent", "passthrough").await;
    world.sign(&scoped, &owned, &csr_for("my-agent")).await.expect(200);
    world.sign(&scoped, &id, &good).await.problem(404, "no-such-tunnel");
}

#[tokio::test]
async fn sign_csr_conflicts_are_told_apart_by_their_words() {
    let has_a_word = |answer: &Answer| {
        let detail = answer.body["detail"].as_str().expect("words").to_lowercase();
        ["edge", "tls_mode", "passthrough"].iter().any(|word| detail.contains(word))
    };
    let world = World::new().await;
    for name in ["edge-one", "passthrough-one", "my-tunnel"] {
        let pending = world.tunnel(name, "passthrough").await;
        world.admin("DELETE", &format!("/api/v1/tunnels/{pending}"), Value::Null).await.expect(200);
        let conflict = world.sign(&world.admin, &pending, &csr_for(name)).await;
        conflict.problem(409, "state-conflict");
        assert!(!has_a_word(&conflict), "{:#}", conflict.body);
    }
    let edge = world.tunnel("other-one", "edge").await;
    for deleted in [false, true] {
        if deleted {
            world.admin("DELETE", &format!("/api/v1/tunnels/{edge}"), Value::Null).await.expect(200);
        }
        let mismatch = world.sign(&world.admin, &edge, &csr_for("other-one")).await;
        mismatch.problem(409, "tls-mode-mismatch");
        assert!(has_a_word(&mismatch), "{:#}", mismatch.body);
    }
}

#[tokio::test]
async fn sign_csr_is_limited_to_ten_a_day() {
    let world = World::new().await;
    let id = world.tunnel("pass-one", "passthrough").await;
    let good = csr_for("pass-one");
    for _ in 0..10 {
        world.sign(&world.admin, &id, &good).await.expect(200);
        // What is refused is not counted.
        world.sign(&world.admin, &id, "hello").await.problem(400, "csr-refused");
        world.clock.advance(60 * SECOND);
    }
    let refused = world.sign(&world.admin, &id, &good).await;
    refused.problem(429, "sign-quota");
    assert_eq!(refused.retry_after(), 86_400 - 600);
    world.clock.advance(refused.retry_after() * SECOND - 1);
    world.sign(&world.admin, &id, &good).await.problem(429, "sign-quota");
    world.clock.advance(1);
    world.sign(&world.admin, &id, &good).await.expect(200);
}

#[tokio::test]
async fn create_identity() {
    let world = World::new().await;
    let path = "/api/v1/identities/";
    let (_, _, scoped) = world.identity("my-agent", "edge").await;
    world.tunnel("lonely", "edge").await;
    let admin = world.admin.as_str();
    let handle = |handle: &str| json!({"agent_handle": handle});
    let tunnel = |tunnel: Value| json!({"agent_handle": "new-agent", "tunnel": tunnel});
    check_unauthorized(&world, "POST", path, handle("new-agent")).await;
    check(
        &world,
        "POST",
        [
            case("a key that is bound to an identity", &scoped, path, handle("new-agent"), 403, "forbidden"),
            case("too short", admin, path, handle("@ab"), 422, "invalid-field"),
            case("two signs", admin, path, handle("@@abc"), 422, "invalid-field"),
            case("a blank", admin, path, handle("my agent"), 422, "invalid-field"),
            case("no handle", admin, path, json!({}), 422, "wrong-shape"),
            case("an unknown mode", admin, path, tunnel(json!({"tls_mode": "tcp"})), 422, "wrong-shape"),
            case("no object", admin, path, tunnel(json!("edge")), 422, "wrong-shape"),
            case(
                "an empty name",
                admin,
                path,
                json!({"agent_handle": "new-agent", "display_name": ""}),
                422,
                "invalid-field",
            ),
            case(
                "mail",
                admin,
                path,
                json!({"agent_handle": "new-agent", "mailbox": {"email_local_part": "a"}}),
                422,
                "invalid-field",
            ),
            case("mail, but nothing of it", admin, path, json!({"agent_handle": "new-agent", "mailbox": {}}), 201, ""),
            case("no options", admin, path, json!({"agent_handle": "@Newer-Agent", "tunnel": {}}), 201, ""),
        ],
    )
    .await;
    for (name, namespace) in [
        ("my-agent", json!("identities")),
        ("@My-Agent", json!("identities")),
        ("newer-agent", json!("identities")),
        ("lonely", json!("tunnels")),
        ("www", Value::Null),
    ] {
        let answer = world.admin("POST", path, handle(name)).await;
        answer.problem(409, "name-taken");
        let detail = &answer.body["detail"];
        assert_eq!(detail["error"], "agent_handle_unavailable", "{name}");
        assert_eq!(detail.get("blocking_namespace").unwrap_or(&Value::Null), &namespace, "{name}");
        assert!(detail["message"].as_str().is_some_and(|message| !message.is_empty()), "{name}");
        assert_eq!(detail.get("code"), None, "clients look at it first");
    }

    let body = json!({
        "agent_handle": "full", "display_name": "Full", "description": "words", "tunnel": {"tls_mode": "passthrough"},
    });
    let made = world.admin("POST", path, body).await.expect(201).body;
    assert_eq!(
        (&made["agent_handle"], &made["display_name"], &made["description"]),
        (&json!("full"), &json!("Full"), &json!("words"))
    );
    assert_eq!((&made["tunnel"]["tunnel_name"], &made["tunnel"]["status"]), (&json!("full"), &json!("awaiting_cert")));
    assert_eq!(made["tunnel"]["agent_identity_id"], made["id"]);
}

#[tokio::test]
async fn show_and_list_identities() {
    let world = World::new().await;
    let (id, _, scoped) = world.identity("my-agent", "edge").await;
    world.clock.advance(SECOND);
    let (other, _, _) = world.identity("her-agent", "edge").await;
    let path = "/api/v1/identities/my-agent";
    check_unauthorized(&world, "GET", path, Value::Null).await;
    check_unauthorized(&world, "GET", "/api/v1/identities/", Value::Null).await;
    let admin = world.admin.as_str();
    let get = |what, key, path, status| case(what, key, path, Value::Null, status, "no-such-identity");
    check(
        &world,
        "GET",
        [
            get("its own", &scoped, path, 200),
            get("with a sign", admin, "/api/v1/identities/@my-agent", 200),
            get("with an encoded sign", admin, "/api/v1/identities/%40My-Agent", 200),
            get("unknown", admin, "/api/v1/identities/nobody", 404),
            get("no handle", admin, "/api/v1/identities/a%00b", 404),
            get("another organization's", &world.stranger, path, 404),
            get("another's", &scoped, "/api/v1/identities/her-agent", 404),
        ],
    )
    .await;
    let list = async |key: &str| -> Vec<String> {
        let body = world.call(key, "GET", "/api/v1/identities/", Value::Null).await.expect(200).body;
        body.as_array().expect("a bare list").iter().map(|identity| text(&identity["id"])).collect()
    };
    assert_eq!(list(admin).await, [id.clone(), other]);
    assert_eq!(list(&scoped).await, [id]);
    assert!(list(&world.stranger).await.is_empty());
}

#[tokio::test]
async fn update_identity() {
    let world = World::new().await;
    let (_, tunnel, scoped) = world.identity("my-agent", "passthrough").await;
    world.identity("her-agent", "edge").await;
    world.sign(&scoped, &tunnel, &csr_for("my-agent")).await.expect(200);
    let path = "/api/v1/identities/my-agent";
    let admin = world.admin.as_str();
    let rename = |to: &str| json!({"agent_handle": to});
    check_unauthorized(&world, "PATCH", path, json!({})).await;
    check(
        &world,
        "PATCH",
        [
            case("nothing", &scoped, path, json!({}), 200, ""),
            case("its own name", &scoped, path, rename("@My-Agent"), 200, ""),
            case("a rename by its own key", &scoped, path, rename("new-agent"), 403, "forbidden"),
            case("unknown", admin, "/api/v1/identities/nobody", json!({}), 404, "no-such-identity"),
            case("another organization's", &world.stranger, path, json!({}), 404, "no-such-identity"),
            case("taken", admin, path, rename("her-agent"), 409, "name-taken"),
            case("reserved", admin, path, rename("www"), 409, "name-taken"),
            case("against the rules", admin, path, rename("a--b"), 422, "invalid-field"),
            case("mail", admin, path, json!({"mail_filter_mode": "whitelist"}), 422, "invalid-field"),
            case("a number", admin, path, json!({"display_name": 1}), 422, "wrong-shape"),
        ],
    )
    .await;
    let patch = async |key: &str, path: &str, body: Value| world.call(key, "PATCH", path, body).await.expect(200).body;
    let changed = patch(&scoped, path, json!({"display_name": "Me", "description": "words"})).await;
    assert_eq!((&changed["display_name"], &changed["description"]), (&json!("Me"), &json!("words")));
    let cleared = patch(&scoped, path, json!({"description": null})).await;
    assert_eq!((&cleared["display_name"], &cleared["description"]), (&json!("Me"), &Value::Null));

    let renamed = patch(admin, path, rename("New-Agent")).await;
    assert_eq!(renamed["agent_handle"], "new-agent");
    assert_eq!(renamed["tunnel"]["id"], tunnel);
    assert_eq!(renamed["tunnel"]["public_host"], "new-agent.adit.localhost");
    assert_eq!((&renamed["tunnel"]["status"], &renamed["tunnel"]["cert_pem"]), (&json!("awaiting_cert"), &Value::Null));
    world.admin("GET", path, Value::Null).await.problem(404, "no-such-identity");
    world.sign(&scoped, &tunnel, &csr_for("my-agent")).await.problem(400, "csr-refused");
    world.sign(&scoped, &tunnel, &csr_for("new-agent")).await.expect(200);
    world.admin("POST", "/api/v1/tunnels", json!({"tunnel_name": "my-agent"})).await.expect(201);
}

#[tokio::test]
async fn delete_identity() {
    let world = World::new().await;
    let (_, tunnel, scoped) = world.identity("my-agent", "edge").await;
    let path = "/api/v1/identities/my-agent";
    check_unauthorized(&world, "DELETE", path, Value::Null).await;
    check(
        &world,
        "DELETE",
        [
            bare("its own", &scoped, path, 403, "forbidden"),
            bare("unknown", &world.admin, "/api/v1/identities/nobody", 404, "no-such-identity"),
            bare("another organization's", &world.stranger, path, 404, "no-such-identity"),
        ],
    )
    .await;
    let gone = world.admin("DELETE", "/api/v1/identities/@my-agent", Value::Null).await.expect(204);
    assert_eq!(gone.body, Value::Null, "204 has no body");
    world.admin("DELETE", path, Value::Null).await.problem(404, "no-such-identity");
    world.admin("GET", &format!("/api/v1/tunnels/{tunnel}"), Value::Null).await.problem(404, "no-such-tunnel");
    world.call(&scoped, "GET", "/api/whoami", Value::Null).await.problem(401, "unauthorized");
    world.admin("POST", "/api/v1/identities", json!({"agent_handle": "my-agent"})).await.expect(201);
}

#[tokio::test]
async fn create_list_and_revoke_keys() {
    let world = World::new().await;
    let (identity, _, scoped) = world.identity("my-agent", "edge").await;
    let path = "/api/v1/api-keys";
    let admin = world.admin.as_str();
    let body = |label: &str, identity: Value| json!({"label": label, "scoped_identity_id": identity});
    let good = body("a key", json!(identity));
    check_unauthorized(&world, "POST", path, good.clone()).await;
    check_unauthorized(&world, "GET", path, Value::Null).await;
    check(
        &world,
        "POST",
        [
            case("an admin key", admin, path, json!({"label": "a key"}), 403, "admin-key-forbidden"),
            case("an admin key, by null", admin, path, body("a key", Value::Null), 403, "admin-key-forbidden"),
            case("by a bound key", &scoped, path, good.clone(), 403, "forbidden"),
            case("an unknown identity", admin, path, body("a key", json!(NO_UUID)), 404, "no-such-identity"),
            case("no UUID", admin, path, body("a key", json!("my-agent")), 404, "no-such-identity"),
            case("another organization's", &world.stranger, path, good.clone(), 404, "no-such-identity"),
            case("an empty label", admin, path, body("", json!(identity)), 422, "invalid-field"),
            case("256 characters", admin, path, body(&"x".repeat(256), json!(identity)), 422, "invalid-field"),
            case("a NUL", admin, path, body("a\0b", json!(identity)), 422, "invalid-field"),
            case("no label", admin, path, json!({"scoped_identity_id": identity}), 422, "wrong-shape"),
            case("255 characters", admin, path, body(&"x".repeat(255), json!(identity)), 201, ""),
        ],
    )
    .await;

    let made = world.admin("POST", path, good).await.expect(201).body;
    let (key, record) = (text(&made["api_key"]), &made["record"]);
    for field in [
        "id",
        "organization_id",
        "created_by",
        "creator_type",
        "scoped_identity_id",
        "label",
        "description",
        "status",
        "last4",
        "display_prefix",
        "last_used_at",
        "expires_at",
        "revoked_at",
        "created_at",
        "updated_at",
    ] {
        assert!(record.get(field).is_some(), "{field} is missing");
    }
    assert!(key.starts_with(&format!("{}.", text(&record["id"]))) && key.ends_with(&text(&record["last4"])));
    assert!(key.starts_with(&text(&record["display_prefix"])) && text(&record["display_prefix"]).len() == 15);
    assert_eq!((&record["status"], &record["scoped_identity_id"]), (&json!("active"), &json!(identity)));

    world.call(&scoped, "GET", path, Value::Null).await.problem(403, "forbidden");
    let list = world.admin("GET", path, Value::Null).await.expect(200).body;
    assert!(list["api_keys"].as_array().expect("a list").iter().any(|found| found["id"] == record["id"]));
    assert!(!list.to_string().contains(key.split_once('.').expect("a dot").1), "secrets are shown once");

    let revoke = format!("{path}/{}", text(&record["id"]));
    check_unauthorized(&world, "DELETE", &revoke, Value::Null).await;
    let unknown = format!("{path}/ApiKey_{NO_UUID}");
    check(
        &world,
        "DELETE",
        [
            bare("a bound key", &scoped, &revoke, 403, "forbidden"),
            bare("unknown", admin, &unknown, 404, "no-such-api-key"),
            bare("no id", admin, "/api/v1/api-keys/nothing", 404, "no-such-api-key"),
            bare("another organization's", &world.stranger, &revoke, 404, "no-such-api-key"),
        ],
    )
    .await;
    world.call(&key, "GET", "/api/whoami", Value::Null).await.expect(200);
    let revoked = world.admin("DELETE", &revoke, Value::Null).await.expect(200).body;
    assert_eq!(revoked["status"], "revoked");
    assert!(revoked["revoked_at"].is_string());
    assert_eq!(world.admin("DELETE", &revoke, Value::Null).await.expect(200).body["revoked_at"], revoked["revoked_at"]);
    world.call(&key, "GET", "/api/whoami", Value::Null).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn whoami() {
    let world = World::new().await;
    let (identity, _, scoped) = world.identity("my-agent", "edge").await;
    check_unauthorized(&world, "GET", "/api/whoami", Value::Null).await;
    let own = world.admin("GET", "/api/whoami", Value::Null).await.expect(200).body;
    assert_eq!((&own["auth_type"], &own["auth_subtype"]), (&json!("api_key"), &json!("api_key.admin_scoped")));
    assert_eq!(own["organization_id"], "org_own");
    assert!(world.admin.starts_with(own["key_id"].as_str().expect("an id")));
    let agent = world.call(&scoped, "GET", "/api/whoami/", Value::Null).await.expect(200).body;
    assert_eq!(agent["auth_subtype"], "api_key.agent_scoped.claimed");
    assert_eq!((&agent["scoped_identity_id"], &agent["label"]), (&json!(identity), &json!("agent")));
}
