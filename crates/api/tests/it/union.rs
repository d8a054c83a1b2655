//! Bodies in both directions: what clients of either generation read, and
//! what becomes of bodies that nobody should send.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test]
async fn a_tunnel_has_every_field_of_both_generations() {
    let world = World::new().await;
    let (identity, tunnel, scoped) = world.identity("my-agent", "passthrough").await;
    let path = format!("/api/v1/tunnels/{tunnel}");
    for signed in [false, true] {
        if signed {
            world.sign(&scoped, &tunnel, &csr_for("my-agent")).await.expect(200);
        }
        let alone = world.admin("GET", &path, Value::Null).await.expect(200).body;
        let listed = world.admin("GET", "/api/v1/tunnels/", Value::Null).await.expect(200).body["tunnels"][0].clone();
        let nested = world.admin("GET", "/api/v1/identities/my-agent", Value::Null).await.expect(200).body;
        assert_eq!(alone, listed);
        assert_eq!(alone, nested["tunnel"]);
        check_tunnel(&alone);
        assert_eq!(alone["agent_identity_id"], identity);
        assert_eq!(alone["cert_pem"].is_string(), signed);
        assert_eq!(alone["cert_fingerprint_sha256"].is_string(), signed);
        assert_eq!(alone["cert_expires_at"].is_string(), signed);
    }
    let made = world.admin("POST", "/api/v1/tunnels/", json!({"tunnel_name": "lonely"})).await.expect(201).body;
    check_tunnel(&made["tunnel"]);
    assert_eq!(made.as_object().expect("an object").len(), 2);
    let path = format!("/api/v1/tunnels/{}", text(&made["tunnel"]["id"]));
    check_tunnel(&world.admin("PATCH", &path, json!({"metadata": {"a": 1}})).await.expect(200).body);
    check_tunnel(&world.admin("DELETE", &path, Value::Null).await.expect(200).body);
    check_tunnel(&world.admin("POST", &format!("{path}/restore"), Value::Null).await.expect(200).body);
    world.admin("DELETE", &path, Value::Null).await.expect(200);
    check_tunnel(&world.admin("DELETE", &format!("{path}/force"), Value::Null).await.expect(200).body);
}

#[tokio::test]
async fn an_identity_has_what_the_parsers_require() {
    let world = World::new().await;
    world.identity("my-agent", "edge").await;
    let identity = world.admin("GET", "/api/v1/identities/my-agent", Value::Null).await.expect(200).body;
    for field in ["id", "organization_id", "agent_handle", "created_at", "updated_at"] {
        assert!(identity[field].is_string(), "{field}");
    }
    for field in ["display_name", "description", "email_address", "mailbox", "phone_number", "imessage_number"] {
        assert_eq!(identity.get(field), Some(&Value::Null), "{field}");
    }
    // The Rust client's defaults apply to absent keys only.
    for (field, value) in identity.as_object().expect("an object") {
        let is_optional = field.ends_with("_enabled") || field.ends_with("_mode");
        assert!(!(is_optional && value.is_null()), "{field}");
    }
}

#[tokio::test]
async fn both_spellings_of_every_path_are_served() {
    let world = World::new().await;
    let (_, tunnel, _) = world.identity("my-agent", "edge").await;
    for path in [
        "/api/v1/tunnels".to_owned(),
        format!("/api/v1/tunnels/{tunnel}"),
        "/api/v1/identities".to_owned(),
        "/api/v1/identities/my-agent".to_owned(),
        "/api/v1/api-keys".to_owned(),
        "/api/whoami".to_owned(),
    ] {
        let without = world.admin("GET", &path, Value::Null).await.expect(200).body;
        let with = world.admin("GET", &format!("{path}/"), Value::Null).await.expect(200).body;
        assert_eq!(without, with, "{path}");
        world.admin("GET", &format!("{path}/?page=1"), Value::Null).await.expect(200);
        world.admin("GET", &format!("{path}//"), Value::Null).await.problem(404, "unknown-path");
    }
    for (path, status) in [("/api/v1/tunnels", 201), ("/api/v1/tunnels/", 409), ("/api/v1/identities", 409)] {
        let body = json!({"tunnel_name": "new-name", "agent_handle": "new-name"});
        world.admin("POST", path, body).await.expect(status);
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let world = World::new().await;
    for path in ["/", "/api", "/api/v1", "/api/v2/tunnels", "/api/v1/tunnels/a/b/c", "/api/v1//tunnels", "/%ff"] {
        world.admin("GET", path, Value::Null).await.problem(404, "unknown-path");
    }
    for (method, path) in [
        ("PUT", "/api/v1/tunnels/"),
        ("DELETE", "/api/v1/tunnels"),
        ("GET", "/api/v1/tunnels/a/sign-csr"),
        ("POST", "/api/whoami"),
        ("TRACE", "/api/v1/identities/"),
    ] {
        let answer = world.admin(method, path, Value::Null).await;
        answer.problem(405, "method-not-allowed");
        assert!(answer.headers.contains_key("allow"), "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_are_read_up_to_a_limit() {
    let world = World::new().await;
    let body = |octets: usize| {
        let empty = r#"{"tunnel_name":"my-agent","padding":""}"#.len();
        json!({"tunnel_name": "my-agent", "padding": "x".repeat(octets - empty)})
    };
    world.admin("POST", "/api/v1/tunnels", body(BODY_LIMIT + 1)).await.problem(413, "body-too-large");
    // Without a length, it is noticed on the way.
    let long = Body::new(Chunks(BODY_LIMIT / 1024 + 1));
    let request = Request::post("/api/v1/tunnels").header("x-api-key", &world.admin);
    let request = request.header(header::CONTENT_TYPE, "application/json").body(long).expect("a request");
    world.send(request).await.problem(413, "body-too-large");
    world.admin("POST", "/api/v1/tunnels", body(BODY_LIMIT)).await.expect(201);
    // Who may not come in is told so, whatever is sent.
    world.call("", "POST", "/api/v1/tunnels", body(BODY_LIMIT + 1)).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn bodies_of_another_type_are_refused() {
    let world = World::new().await;
    let send = async |media_type: Option<&str>, body: &str| {
        let mut request = Request::post("/api/v1/tunnels").header("x-api-key", &world.admin);
        if let Some(media_type) = media_type {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        world.send(request.body(Body::from(body.to_owned())).expect("a request")).await
    };
    for media_type in ["text/plain", "application/x-www-form-urlencoded", "application/xml", "text/json", ""] {
        send(Some(media_type), r#"{"tunnel_name": "my-agent"}"#).await.problem(415, "unsupported-media-type");
    }
    for (number, media_type) in
        [Some("application/json"), Some("Application/JSON; charset=utf-8"), None].into_iter().enumerate()
    {
        send(media_type, &format!(r#"{{"tunnel_name": "agent-{number}"}}"#)).await.expect(201);
    }
}

#[tokio::test]
async fn what_is_no_json_is_malformed_and_what_has_another_shape_is_told_so() {
    let world = World::new().await;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    for (body, status, kind) in [
        ("", 400, "malformed-body"),
        ("{", 400, "malformed-body"),
        ("{'tunnel_name': 'my-agent'}", 400, "malformed-body"),
        (r#"{"tunnel_name": "my-agent"} x"#, 400, "malformed-body"),
        ("{\"tunnel_name\": \"my-\0agent\"}", 400, "malformed-body"),
        (r#"{"tunnel_name": "\ud800"}"#, 400, "malformed-body"),
        (deep.as_str(), 400, "malformed-body"),
        ("null", 422, "wrong-shape"),
        ("[]", 422, "wrong-shape"),
        ("\"my-agent\"", 422, "wrong-shape"),
        (r#"{"tunnel_name": null}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": ["my-agent"]}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "tunnel_name": "my-agent"}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "tls_mode": 1}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "tls_mode": []}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "tls_mode": "Edge"}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "tls_mode": {"edge": null}}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my-agent", "description": {}}"#, 422, "wrong-shape"),
        (r#"{"tunnel_name": "my\u0000agent"}"#, 422, "invalid-field"),
        (r#"{"tunnel_name": "my-agent", "description": "a\u0000b"}"#, 422, "invalid-field"),
    ] {
        let request = Request::post("/api/v1/tunnels").header("x-api-key", &world.admin);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let answer = world.send(request.body(Body::from(body.to_owned())).expect("a request")).await;
        let start: String = body.chars().take(60).collect();
        assert_eq!(answer.status, status, "{start}: {:#}", answer.body);
        answer.problem(status, kind);
    }
    for mode in [json!(1), json!(true), json!("tcp"), json!({"edge": null})] {
        let body = json!({"agent_handle": "my-agent", "tunnel": {"tls_mode": mode}});
        world.admin("POST", "/api/v1/identities/", body).await.problem(422, "wrong-shape");
    }
    let request = Request::post("/api/v1/tunnels").header("x-api-key", &world.admin);
    let latin1 = b"{\"tunnel_name\": \"b\xfcro\"}".to_vec();
    world.send(request.body(Body::from(latin1)).expect("a request")).await.problem(400, "malformed-body");
    let list = world.admin("GET", "/api/v1/tunnels", Value::Null).await.expect(200).body;
    assert_eq!(list, json!({"tunnels": []}), "none of them made a tunnel");
}

#[tokio::test]
async fn deep_json_is_refused() {
    let world = World::new().await;
    let tunnel = format!("/api/v1/tunnels/{}", world.tunnel("my-agent", "edge").await);
    let lists = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    for deep in [lists.as_str(), objects.as_str()] {
        for (method, path, body) in [
            ("PATCH", tunnel.as_str(), format!(r#"{{"metadata":{{"deep":{deep}}}}}"#)),
            ("POST", "/api/v1/identities", format!(r#"{{"agent_handle":"her-agent","mailbox":{deep}}}"#)),
            ("PATCH", tunnel.as_str(), format!(r#"{{"description":"words","unknown":{deep}}}"#)),
        ] {
            let request = Request::builder().method(method).uri(path).header("x-api-key", &world.admin);
            let request = request.body(Body::from(body)).expect("a request");
            world.send(request).await.problem(400, "malformed-body");
        }
    }
}

#[tokio::test]
async fn an_agent_that_a_rename_left_without_a_certificate_is_told_of() {
    let world = World::new().await;
    let (_, tunnel, key) = world.identity("my-agent", "passthrough").await;
    let path = format!("/api/v1/tunnels/{tunnel}");
    let reason = async || world.admin("GET", &path, Value::Null).await.expect(200).body.get("status_reason").cloned();
    world.sign(&key, &tunnel, &csr_for("my-agent")).await.expect(200);
    world.connected.store(true, Ordering::SeqCst);
    assert_eq!(reason().await, None);
    let renamed = json!({"agent_handle": "her-agent"});
    let renamed = world.admin("PATCH", "/api/v1/identities/my-agent", renamed).await.expect(200).body;
    let told = text(&renamed["tunnel"]["status_reason"]);
    assert!(told.contains("restart the agent"), "{told}");
    assert_eq!(reason().await, Some(json!(told)));
    world.connected.store(false, Ordering::SeqCst);
    assert_eq!(reason().await, None, "nobody has to be restarted");
    world.connected.store(true, Ordering::SeqCst);
    world.sign(&key, &tunnel, &csr_for("her-agent")).await.expect(200);
    assert_eq!(reason().await, None);
}

#[tokio::test]
async fn metadata_comes_back_as_it_was() {
    let world = World::new().await;
    let path = format!("/api/v1/tunnels/{}", world.tunnel("my-agent", "edge").await);
    let mut deep = json!({});
    for _ in 0..100 {
        deep = json!({"d": deep});
    }
    for metadata in [
        json!({"nul": "\u{0}", "text": "ünïcode ☃ \"quoted\"", "": ""}),
        json!({"integer": 9_007_199_254_740_993_i64, "least": i64::MIN, "most": u64::MAX, "half": 0.5}),
        json!({"null": null, "list": [1, [2, {"three": false}]]}),
        deep,
    ] {
        let patched = world.admin("PATCH", &path, json!({"metadata": metadata})).await.expect(200).body;
        assert_eq!(patched["metadata"], metadata);
        assert_eq!(world.admin("GET", &path, Value::Null).await.expect(200).body["metadata"], metadata);
    }
}

#[tokio::test]
async fn one_key_is_presented_once() {
    let world = World::new().await;
    let request = Request::get("/api/whoami").header("x-api-key", &world.admin).header("x-api-key", &world.admin);
    world.send(request.body(Body::empty()).expect("a request")).await.problem(401, "unauthorized");
    let request = Request::get("/api/whoami").header("authorization", format!("Bearer {}", world.admin));
    world.send(request.body(Body::empty()).expect("a request")).await.problem(401, "unauthorized");
    let request = Request::get("/api/whoami")
        .header("x-api-key", &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..]);
    world.send(request.body(Body::empty()).expect("a request")).await.problem(401, "unauthorized");
}

/// So many chunks of 1 KiB, and no length told before.
struct Chunks(usize);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 -= 1;
        Poll::Ready(Some(Ok(hyper::body::Frame::data(Bytes::from_static(&[b' '; 1024])))))
    }
}

fn check_tunnel(tunnel: &Value) {
    let is_time = |value: &Value| value.as_str().is_some_and(|time| time.ends_with("+00:00") && time.contains('T'));
    let is_uuid = |value: &Value| {
        value.as_str().is_some_and(|id| {
            id.len() == 36 && id.bytes().all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f' | b'-'))
        })
    };
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    type Rule<'a> = (&'a str, bool, &'a dyn Fn(&Value) -> bool);
    let rules: [Rule<'_>; 21] = [
        ("id", false, &is_uuid),
        ("organization_id", false, &is_text),
        ("tunnel_name", false, &is_text),
        ("description", true, &is_text),
        ("agent_identity_id", true, &is_uuid),
        ("tls_mode", false, &|mode| mode == "edge" || mode == "passthrough"),
        ("cert_pem", true, &|pem| pem.as_str().is_some_and(|pem| pem.ends_with('\n'))),
        ("cert_fingerprint_sha256", true, &is_text),
        ("cert_expires_at", true, &is_time),
        ("renew_after", true, &is_time),
        ("status", false, &is_text),
        ("last_connected_at", true, &is_time),
        ("last_connected_ip_addr", true, &is_text),
        ("last_disconnected_at", true, &is_time),
        ("restore_deadline_at", true, &is_time),
        ("currently_connected", false, &Value::is_boolean),
        ("public_host", false, &is_text),
        ("zone", false, &|zone| zone == ZONE),
        ("metadata", false, &Value::is_object),
        ("created_at", false, &is_time),
        ("updated_at", false, &is_time),
    ];
    for (field, nullable, rule) in rules {
        let value = tunnel.get(field).unwrap_or_else(|| panic!("{field} is missing: {tunnel:#}"));
        assert!((nullable && value.is_null()) || rule(value), "{field}: {value}");
    }
    assert_eq!(tunnel.as_object().expect("an object").len(), 21, "a field that no client reads: {tunnel:#}");
    let pending = tunnel["status"] == "delete_pending";
    assert_eq!(tunnel["restore_deadline_at"].is_string(), pending, "{tunnel:#}");
    assert_eq!(tunnel["public_host"], format!("{}.{ZONE}", text(&tunnel["tunnel_name"])));
}
