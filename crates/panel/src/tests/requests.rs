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
