//! What RFC 9110, 9112 and 9113 ask of an edge, where the wire to agents has no
//! word of its own for it.

use std::time::Duration;

use agent::Upstream;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use edge::Counts;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tunnel_model::TlsMode;

use crate::visitor::{body_of, connect, connect_h2, get as ask, raw};
use crate::world::World;

const HOST: &str = "shop.adit.localhost";

fn header(name: &'static str, value: String, status: u16, body: &'static str) -> Response {
    Response::builder().status(status).header(name, value).body(Body::from(body)).expect("a response")
}

/// Answers that proxies tend to change.
fn application() -> Router {
    let gzip = |status, body| header("content-encoding", "gzip".to_owned(), status, body);
    let fields = |count: usize| {
        let answer = (0..count).fold(Response::builder(), |answer, n| answer.header(format!("x-{n}"), "v"));
        answer.body(Body::empty()).expect("a response")
    };
    Router::new()
        .route("/part", get(move || async move { gzip(206, "a part begins anywhere") }))
        .route("/whole", get(move || async move { gzip(200, "no gzip, whatever it says") }))
        .route("/fat", get(|| async { header("x-fat", "a".repeat(65 * 1024), 200, "") }))
        .route("/large", get(|| async { header("x-large", "a".repeat(60 * 1024), 200, "") }))
        .route("/many", get(move || async move { fields(180) }))
        .route("/too-many", get(move || async move { fields(220) }))
        .route("/none", get(|| async { StatusCode::NO_CONTENT }))
        .route("/slow", get(|| tokio::time::sleep(Duration::from_secs(20))))
}

/// A visitor's WebSocket, after the 101.
async fn websocket(world: &World) -> TlsStream<TcpStream> {
    let mut tls = connect(world, HOST, b"http/1.1").await.expect("TLS");
    let handshake = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    tls.write_all(handshake.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    tls
}

async fn shop() -> (World, crate::world::Running) {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let agent = world.agent_for("shop", Upstream::service(application())).await;
    (world, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_coding_stays_where_the_body_cannot_tell() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.sdk_agent("shop", application()).await;
    let response = ask(&world, "shop", "/part").await;
    assert_eq!(
        (response.status(), &response.headers()["content-encoding"]),
        (StatusCode::PARTIAL_CONTENT, &"gzip".parse().expect("a value"))
    );
    assert!(!ask(&world, "shop", "/whole").await.headers().contains_key("content-encoding"));
    let head = raw(&world, "shop", &format!("HEAD /whole HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_heads_pass_and_larger_ones_are_answered_at_once() {
    let (world, _agent) = shop().await;
    let begun = std::time::Instant::now();
    for (path, status) in [("/large", 200), ("/many", 200), ("/fat", 502), ("/too-many", 502)] {
        let response = ask(&world, "shop", path).await;
        assert_eq!(response.status(), status, "{path}: {:?}", response.headers().get("inkbox-reason"));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_a_fragment_is_refused_and_one_with_any_letters_arrives() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    world.tunnel("bank", TlsMode::Passthrough).await;
    let _other = world.agent("bank").await;
    for name in ["shop", "bank"] {
        let request = format!("GET /echo#part HTTP/1.1\r\nHost: {name}.adit.localhost\r\n\r\n");
        let answer = raw(&world, name, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
    }
    let request = format!("DELETE /echo?name=josé HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = raw(&world, "shop", &request).await;
    assert!(answer.contains("DELETE /echo?name=jos%C3%A9\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_without_a_path_is_for_the_edge() {
    let (world, _agent) = shop().await;
    let request = format!("OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = raw(&world, "shop", &request).await;
    assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains("allow: GET, HEAD"), "{answer}");
    let answer = raw(&world, "shop", &request.replace("OPTIONS", "GET")).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_heard_by_who_is_still_sending() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let mut sender = connect_h2(&world, "shop").await;
    let request = Request::post(format!("https://{HOST}/")).body(()).expect("a request");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    stream.send_data(Bytes::from(vec![7; 3_000_000]), true).expect("sent");
    let response = response.await.expect("not reset");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        chunk.expect("all of it comes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_follows_a_status_that_has_no_body() {
    let (world, _agent) = shop().await;
    let mut sender = connect_h2(&world, "shop").await;
    let request = Request::get(format!("https://{HOST}/none")).body(()).expect("a request");
    let (response, _) = sender.send_request(request, true).expect("sent");
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert!(response.into_body().data().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_offers_both_protocols_at_the_zone_wants_the_api() {
    let world = World::start().await;
    for (offer, chosen) in
        [(&[&b"h2"[..], b"http/1.1"][..], &b"http/1.1"[..]), (&[b"h2"], b"h2"), (&[b"http/1.0"], b"http/1.0")]
    {
        let tls = crate::visitor::connect_with(&world, "adit.localhost", offer).await.expect("TLS");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(chosen));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_the_zone_is_for_agents_and_says_so() {
    let world = World::start().await;
    let tls = connect(&world, "adit.localhost", b"h2").await.expect("TLS");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("h2");
    tokio::spawn(connection);
    for (method, path, status) in [(Method::GET, "/api/v1/tunnels", 421), (Method::POST, "/_system/nothing", 404)] {
        let request = Request::builder().method(method).uri(format!("https://adit.localhost{path}"));
        let (response, _) = sender.send_request(request.body(()).expect("a request"), true).expect("sent");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), status, "{path}");
        if status == 421 {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            let problem = response.into_body().data().await.expect("a body").expect("a body");
            assert!(problem.starts_with(b"{") && problem.ends_with(b"}"), "{problem:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_keeps_its_place_and_its_connection_is_not_idle() {
    let idle = Duration::from_millis(200);
    let world = World::start_with(|settings| settings.visitor.idle = idle).await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    // Over HTTP/1.1 the place is the WebSocket's after the 101.
    let tls = websocket(&world).await;
    let of = |counts: Counts| (counts.of(edge::Kind::WebSocket), counts.of(edge::Kind::Visitor));
    assert_eq!(of(world.edge.stats().connections), (1, 0));
    // Over HTTP/2 it is one stream of a connection that goes on.
    let mut sender = connect_h2(&world, "shop").await;
    let mut request = Request::connect(format!("https://{HOST}/ws")).header("sec-websocket-version", "13");
    request.extensions_mut().expect("a request").insert(h2::ext::Protocol::from_static("websocket"));
    let (response, _stream) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
    assert_eq!(response.await.expect("an answer").status(), StatusCode::OK);
    tokio::time::sleep(5 * idle).await;
    let (response, _) = sender
        .send_request(Request::get(format!("https://{HOST}/echo")).body(()).expect("a request"), true)
        .expect("it is not told to go");
    assert_eq!(response.await.expect("an answer").status(), StatusCode::OK);
    drop(tls);
    for _ in 0..100 {
        if of(world.edge.stats().connections) == (0, 1) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the place is not free: {:?}", world.edge.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passthrough_connection_on_which_nothing_moves_is_ended() {
    let world = World::start_with(|settings| settings.visitor.quiet = Duration::from_millis(400)).await;
    world.tunnel("bank", TlsMode::Passthrough).await;
    let _agent = world.agent("bank").await;
    let mut tls = connect(&world, "bank.adit.localhost", b"http/1.1").await.expect("TLS");
    let ended = tokio::time::timeout(Duration::from_secs(5), tls.read_to_end(&mut Vec::new())).await;
    ended.expect("it is ended").ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_ends_its_requests_at_once() {
    let world = World::start().await;
    let (_, key) = world.identity("shop", TlsMode::Edge).await;
    let agent = world.agent_with_key("shop", Upstream::service(application()), &key).await;
    let asked = async { ask(&world, "shop", "/slow").await };
    let revoked = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.revoke(&key).await;
        std::time::Instant::now()
    };
    let (response, since) = tokio::join!(asked, revoked);
    assert_eq!(
        (response.status(), &response.headers()["inkbox-reason"]),
        (StatusCode::BAD_GATEWAY, &"agent-lost".parse().expect("a value"))
    );
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    let ended = agent.ended().await;
    assert!(matches!(ended, Err(agent::Error::Denied { .. })), "{ended:?}");
    drop(body_of(response).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_of_ours_ends_the_connection_when_it_is_answered() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.sdk_agent("shop", crate::world::application()).await;
    let mut tls = websocket(&world).await;
    // A reserved bit is a violation: the edge says so and waits for our Close.
    tls.write_all(&[0xc1, 0x80, 0, 0, 0, 0]).await.expect("sent");
    let mut close = [0; 4];
    tls.read_exact(&mut close).await.expect("a Close");
    assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1002));
    // 1009 for a message that is too large leaves the connection readable.
    let mut tls = websocket(&world).await;
    let large = [&[0x82, 0xff][..], &(2_090_000_u64).to_be_bytes(), &[0; 4], &vec![7; 2_090_000]].concat();
    tls.write_all(&large).await.expect("sent");
    let mut close = [0; 4];
    tls.read_exact(&mut close).await.expect("a Close");
    assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1009));
    tls.read_exact(&mut vec![0; usize::from(close[1]) - 2]).await.expect("its reason");
    let begun = std::time::Instant::now();
    tls.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf1]).await.expect("sent");
    tls.read_to_end(&mut Vec::new()).await.expect("the end");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bodies_of_one_tunnel_leave_room_for_another() {
    let world = World::start_with(|settings| settings.visitor.buffered = 80_000_000).await;
    for name in ["shop", "bank"] {
        world.tunnel(name, TlsMode::Edge).await;
    }
    let _agents = (
        world.sdk_agent("shop", crate::world::application()).await,
        world.sdk_agent("bank", crate::world::application()).await,
    );
    // Two bodies that do not end, of which one tunnel may have half of what there is.
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut tls = connect(&world, HOST, b"http/1.1").await.expect("TLS");
        let head = format!("POST /mirror HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 30000001\r\n\r\n");
        tls.write_all(head.as_bytes()).await.expect("sent");
        // The second one is refused on the way.
        let _ = tls.write_all(&vec![7; 30_000_000]).await;
        slow.push(tls);
    }
    let mut status = [0; 12];
    slow[1].read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 503");
    let mut sender = connect_h2(&world, "bank").await;
    let request = Request::post("https://bank.adit.localhost/mirror").body(()).expect("a request");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    stream.send_data(Bytes::from(vec![7; 20_000_000]), true).expect("sent");
    assert_eq!(response.await.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_follows_its_tunnel_to_a_new_name() {
    for mode in [TlsMode::Passthrough, TlsMode::Edge] {
        let world = World::start().await;
        world.identity("shop", mode).await;
        let _agent = world.agent("shop").await;
        assert_eq!(ask(&world, "shop", "/echo").await.status(), StatusCode::OK);
        world.rename("shop", "store").await;
        let error = connect(&world, HOST, b"http/1.1").await.expect_err("the old name is nobody's");
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let begun = std::time::Instant::now();
        // In passthrough mode there is nobody until the agent has a certificate for the new name.
        while connect(&world, "store.adit.localhost", b"http/1.1").await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the agent does not follow");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let body = body_of(ask(&world, "store", "/echo").await).await;
        assert!(body.contains("x-forwarded-host: store.adit.localhost"), "{body}");
    }
}
