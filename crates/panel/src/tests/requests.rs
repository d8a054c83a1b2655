//! Requests that are not as they should be.

use axum::body::Body;
use axum::http::{Request, Version};
use tower::ServiceExt as _;

use super::*;
use crate::http::{Bounds, Peer, router};

async fn status(world: &World, hosts: &[&str], version: Version, method: &str, path: &str, body: &str) -> u16 {
    let panel = Arc::new(world.open().await);
    let presented = Some(Arc::new(presented("admin", &world.admin_serial())));
    let mut request = Request::builder().method(method).uri(path).version(version);
    for host in hosts {
        request = request.header("host", *host);
    }
    let request = request
        .header("content-type", "application/json")
        .extension(Peer { address: ([127, 0, 0, 1], 1).into(), presented, is_proxy: false })
        .body(Body::from(body.to_owned()))
        .expect("a request");
    let answer = router(panel, Bounds::default()).oneshot(request).await.expect("routers do not fail");
    assert_eq!(answer.headers()["content-type"], "application/json; charset=utf-8");
    answer.status().as_u16()
}

#[tokio::test]
async fn a_request_has_one_host() {
    let world = World::new();
    for (hosts, version, expected) in [
        (&["127.0.0.1:9292"][..], Version::HTTP_11, 200),
        (&["panel.example.test"], Version::HTTP_11, 200),
        (&[], Version::HTTP_11, 400),
        (&["a.test", "b.test"], Version::HTTP_11, 400),
        (&["a.test", "a.test"], Version::HTTP_11, 400),
        (&["a.test/x"], Version::HTTP_11, 400),
        (&[], Version::HTTP_10, 200),
        (&["a.test", "b.test"], Version::HTTP_10, 400),
    ] {
        for path in ["/api/certs", "/api/health"] {
            assert_eq!(status(&world, hosts, version, "GET", path, "").await, expected, "{hosts:?} {path}");
        }
    }
}

#[tokio::test]
async fn an_array_is_no_object() {
    let world = World::new();
    for (method, path) in [
        ("POST", "/api/certs/agent"),
        ("POST", "/api/certs/agent/enroll"),
        ("POST", "/api/certs/agent/upgrade-cert"),
        ("POST", "/api/certs/admin/upgrade-to-hardware-bound"),
        ("POST", "/api/enroll"),
        ("PATCH", "/api/certs/agent/one/capabilities"),
        ("PATCH", "/api/certs/agent/one/allowed-sites"),
    ] {
        for body in ["[]", "[null, null]", r#"["label", ["tunnels:read"], []]"#] {
            let status = status(&world, &["a.test"], Version::HTTP_11, method, path, body).await;
            assert_eq!(status, 400, "{method} {path} {body}");
        }
    }
}

/// What somebody is told, with or without a certificate: status, type and body.
async fn told(world: &World, by: Option<Presented>, method: &str, path: &str, accept: &str) -> (u16, String, String) {
    let panel = Arc::new(world.open().await);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1:9292")
        .header("accept", accept)
        .extension(Peer { address: ([127, 0, 0, 1], 1).into(), presented: by.map(Arc::new), is_proxy: false })
        .body(Body::empty())
        .expect("a request");
    let answer = router(panel, Bounds::default()).oneshot(request).await.expect("routers do not fail");
    let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
    let status = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_person_without_a_certificate_gets_a_page_and_a_program_what_it_always_got() {
    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    const REQUIRED: &str = r#"{"error":"mTLS certificate required","details":{"hint":"Access to the Portlama panel requires a valid client certificate."}}"#;
    let world = World::new();
    let before = world.admin_serial();
    world.open().await.rotate(before.clone()).await.expect("rotated");
    let revoked = || Some(presented("admin", &before));
    let unknown = || Some(presented("agent:nobody", &nobodys()));
    for path in ["/", "/index.html", "/api/certs", "/api/certs/mtls/download", "/api/onboarding/status"] {
        let (status, kind, body) = told(&world, None, "GET", path, BROWSER).await;
        assert_eq!((status, kind.as_str()), (403, "text/html; charset=utf-8"), "{path}");
        assert!(body.contains("client.p12") && body.contains("127.0.0.1:9292"), "{path}: {body}");
        for accept in ["*/*", "application/json", "application/json, text/plain, */*"] {
            let (status, kind, body) = told(&world, None, "GET", path, accept).await;
            assert_eq!((status, kind.as_str()), (403, "application/json; charset=utf-8"), "{path} {accept}");
            assert_eq!(body, REQUIRED);
        }
    }
    for (by, title) in [(revoked(), "has been revoked"), (unknown(), "not one that counts")] {
        let (status, _, body) = told(&world, by, "GET", "/", BROWSER).await;
        assert_eq!((status, body.contains(title)), (403, true), "{body}");
    }
    assert_eq!(told(&world, None, "POST", "/api/certs/mtls/rotate", BROWSER).await.2, REQUIRED);
    assert_eq!(told(&world, None, "GET", "/api/nothing", BROWSER).await.2, r#"{"error":"Not found"}"#);
    let (status, kind, _) = told(&world, Some(presented("admin", &world.admin_serial())), "GET", "/", BROWSER).await;
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=utf-8"));
}

/// A serial number that nobody has.
fn nobodys() -> Serial {
    Serial::from_octets(&[1, 2, 3])
}
