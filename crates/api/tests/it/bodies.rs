//! Requests that are not as they should be.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use api::{Limits, Metrics};
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::world::*;

#[tokio::test]
async fn an_array_is_no_object() {
    let world = World::new().await;
    let (_, tunnel, _) = world.identity("my-agent", "passthrough").await;
    for (method, path) in [
        ("POST", "/api/v1/tunnels".to_owned()),
        ("PATCH", format!("/api/v1/tunnels/{tunnel}")),
        ("POST", format!("/api/v1/tunnels/{tunnel}/sign-csr")),
        ("POST", "/api/v1/identities".to_owned()),
        ("PATCH", "/api/v1/identities/my-agent".to_owned()),
        ("POST", "/api/v1/api-keys".to_owned()),
    ] {
        for body in [json!([]), json!([null, null]), json!(["a-name", "words", "edge"]), json!("{}"), json!(7)] {
            world.admin(method, &path, body).await.problem(422, "wrong-shape");
        }
    }
    let nested = json!({"agent_handle": "another", "tunnel": ["edge"]});
    world.admin("POST", "/api/v1/identities", nested).await.problem(422, "wrong-shape");
    let metadata = json!({"metadata": [["key", "value"]]});
    world.admin("PATCH", &format!("/api/v1/tunnels/{tunnel}"), metadata).await.problem(422, "wrong-shape");
}

#[tokio::test]
async fn a_key_that_is_given_twice_is_refused() {
    let world = World::new().await;
    for body in
        [r#"{"tunnel_name": "one", "tunnel_name": "two"}"#, r#"{"tunnel_name": "one", "unknown": {"a": 1, "a": 2}}"#]
    {
        let request = Request::post("/api/v1/tunnels").header("x-api-key", &world.admin).body(Body::from(body));
        world.send(request.expect("a request")).await.problem(422, "wrong-shape");
    }
    let listed = world.admin("GET", "/api/v1/tunnels", Value::Null).await.expect(200).body;
    assert_eq!(listed["tunnels"], json!([]));
}

#[tokio::test]
async fn a_request_has_one_host() {
    let world = World::new().await;
    let ask = async |hosts: &[&str], version| {
        let mut request = Request::get("/api/v1/tunnels").version(version).header("x-api-key", &world.admin);
        for host in hosts {
            request = request.header("host", *host);
        }
        world.send_as_it_is(request.body(Body::empty()).expect("a request")).await
    };
    use axum::http::Version;
    for hosts in [&["adit.localhost:8080"][..], &["[::1]:8080"], &[""]] {
        ask(hosts, Version::HTTP_11).await.expect(200);
    }
    for hosts in [&[][..], &["a.test", "b.test"], &["a.test", "a.test"], &["a.test/x"], &["a b"]] {
        ask(hosts, Version::HTTP_11).await.problem(400, "wrong-host");
    }
    ask(&[], Version::HTTP_10).await.expect(200);
    ask(&["a.test", "b.test"], Version::HTTP_10).await.problem(400, "wrong-host");
}

/// Sends a request over a connection and reads the answer to its end.
async fn answer_to(world: &World, request: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (router, limits) = (world.router.clone(), Limits::default());
    let serving = tokio::spawn(async move {
        api::serve(listener, router, &limits, Arc::new(Metrics::new()), std::future::pending()).await;
    });
    let exchange = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.write_all(&request).expect("all is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("no reset");
        answer
    });
    let answer = exchange.await.expect("no panic");
    serving.abort();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_too_much_is_told() {
    let world = World::new().await;
    let path = "/api/v1/tunnels";
    let (admin, nobody) = (format!("X-API-Key: {}\r\n", world.admin), String::new());
    for (size, path, key, status, kind) in [
        (BODY_LIMIT + 1, path, &admin, "413", "body-too-large"),
        (4 * 1024 * 1024, path, &admin, "413", "body-too-large"),
        (12 * 1024 * 1024, path, &admin, "413", "body-too-large"),
        (12 * 1024 * 1024, path, &nobody, "401", "unauthorized"),
        (12 * 1024 * 1024, "/nothing", &admin, "404", "unknown-path"),
    ] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{key}Content-Length: {size}\r\n\r\n");
        let answer = answer_to(&world, [head.into_bytes(), vec![b' '; size]].concat()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{size}: {answer}");
        assert!(answer.contains(&format!("urn:adit:problem:{kind}")) && answer.ends_with('}'), "{size}: {answer}");
    }
    // Who asks before it sends hears the same without sending.
    let head = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n");
    let answer = answer_to(&world, head.into_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}
