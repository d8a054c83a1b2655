//! The edge with a real agent, over loopback: what a visitor gets, and what the
//! application behind the agent sees.

mod passthrough;
mod rules;
mod visitor;
mod world;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use edge::proxy_protocol;
use h2::ext::Protocol;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel_model::TlsMode;

use crate::visitor::{body_of, connect, connect_h2, get, raw};
use crate::world::{EVENTS, World, application};

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_reaches_the_application_in_both_modes() {
    let world = World::start().await;
    for (name, mode) in [("shop", TlsMode::Edge), ("bank", TlsMode::Passthrough)] {
        world.tunnel(name, mode).await;
        let _agent = world.agent(name).await;
        let response = get(&world, name, "/echo?x=%20y").await;
        assert_eq!(response.status(), StatusCode::OK, "{name}");
        let body = body_of(response).await;
        assert!(body.starts_with("GET /echo?x=%20y\n"), "{body}");
        // The visitor has named no port.
        assert!(body.contains(&format!("x-forwarded-host: {name}.adit.localhost\n")), "{body}");
        assert!(body.contains("x-forwarded-for: 127.0.0.1\n"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_there_is_503_and_without_a_tunnel_an_alert() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let response = get(&world, "shop", "/").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["inkbox-reason"], "agent-offline");
    let error = connect(&world, "nobody.adit.localhost", b"http/1.1").await.expect_err("there is no such name");
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_sni_must_agree() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    world.tunnel("other", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    for (host, status) in [
        ("shop.adit.localhost", 200),
        ("SHOP.adit.localhost:4443", 200),
        ("other.adit.localhost", 421),
        ("adit.localhost", 421),
        ("example.org", 421),
    ] {
        let answer = raw(&world, "shop", &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_never_reaches_an_agent() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: shop.adit.localhost\r\n{fields}\r\n0\r\n\r\n");
        let answer = raw(&world, "shop", &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole_both_ways() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    let mut sender = connect_h2(&world, "shop").await;
    let sent: Bytes = (0..20_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[2]).collect();
    let request = Request::post("https://shop.adit.localhost/mirror").body(()).expect("a request");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    stream.send_data(sent.clone(), true).expect("sent");
    let response = response.await.expect("an answer");
    let mut body = response.into_body();
    let mut received = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.expect("a chunk");
        body.flow_control().release_capacity(chunk.len()).expect("the stream is there");
        received.extend_from_slice(&chunk);
    }
    assert!(received == sent, "what came back is not what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_application_says_is_there_when_it_says_it() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    let mut body = get(&world, "shop", "/events/300/false").await.into_body();
    let begun = Instant::now();
    let mut came = Vec::new();
    while let Some(frame) = body.frame().await {
        assert_eq!(frame.expect("it is whole").into_data().expect("data"), "data: said\n\n");
        came.push(begun.elapsed());
    }
    assert_eq!(came.len(), 5, "{came:?}");
    assert!(came[0] < Duration::from_millis(200), "{came:?}");
    assert!(came.windows(2).all(|pair| pair[1] - pair[0] > Duration::from_millis(150)), "{came:?}");

    let mut broken = get(&world, "shop", "/events/100/true").await.into_body();
    while let Some(Ok(_)) = broken.frame().await {}
    assert!(!broken.is_end_stream(), "what broke off is not taken for whole");

    // Whoever leaves is not talked to for ever.
    let mut body = get(&world, "shop", "/events/3000/false").await.into_body();
    body.frame().await.expect("an event").expect("an event");
    assert!(EVENTS.load(Ordering::SeqCst) > 0);
    drop(body);
    let left = Instant::now();
    while EVENTS.load(Ordering::SeqCst) > 0 {
        assert!(left.elapsed() < Duration::from_secs(9), "the application talks on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_download_over_http2_is_not_idle() {
    // The windows of the client open in steps, a third of a second apart.
    let (idle, stall) = (Duration::from_millis(300), Duration::from_millis(900));
    let world = World::start_with(|settings| (settings.visitor.idle, settings.visitor.stall) = (idle, stall)).await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    let mut sender = connect_h2(&world, "shop").await;
    let request = Request::post("https://shop.adit.localhost/mirror").body(()).expect("a request");
    let (response, mut stream) = sender.send_request(request, false).expect("sent");
    stream.send_data(Bytes::from(vec![7; 2_500_000]), true).expect("sent");
    let mut body = response.await.expect("an answer").into_body();
    let (mut received, begun) = (0, Instant::now());
    while let Some(chunk) = body.data().await {
        received += chunk.as_ref().expect("it is not cut").len();
        tokio::time::sleep(Duration::from_millis(4)).await;
        body.flow_control().release_capacity(chunk.map_or(0, |chunk| chunk.len())).expect("the stream is there");
    }
    assert_eq!(received, 2_500_000);
    assert!(begun.elapsed() > idle + stall, "it took longer than an idle connection has");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_all_visitors_together_are_bounded() {
    let world = World::start_with(|settings| settings.visitor.buffered = 1_000_000).await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.sdk_agent("shop", application()).await;
    let mut slow = connect(&world, "shop.adit.localhost", b"http/1.1").await.expect("TLS");
    let head = "POST /mirror HTTP/1.1\r\nHost: shop.adit.localhost\r\nContent-Length: 800001\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("sent");
    slow.write_all(&vec![b'x'; 800_000]).await.expect("sent");
    slow.flush().await.expect("sent");
    let request = |size: usize| {
        let head = format!(
            "POST /mirror HTTP/1.1\r\nHost: shop.adit.localhost\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        );
        head + &"y".repeat(size)
    };
    // What came first is read first, sooner or later.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = raw(&world, "shop", &request(400_000)).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("server-busy"),
        "{}",
        &answer[..answer.len().min(300)]
    );
    let answer = raw(&world, "shop", &request(1000)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "small ones still fit");
    drop(slow);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answer = raw(&world, "shop", &request(400_000)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "the room is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_is_one_to_the_application() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _agent = world.agent("shop").await;
    let mut sender = connect_h2(&world, "shop").await;
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri("https://shop.adit.localhost/ws")
        .header("sec-websocket-version", "13")
        .body(())
        .expect("a request");
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let (response, mut send) = sender.send_request(request, false).expect("sent");
    let response = response.await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    // "hi", masked with zeros (RFC 6455 section 5.2).
    send.send_data(Bytes::from_static(b"\x81\x82\0\0\0\0hi"), false).expect("sent");
    let echoed = body.data().await.expect("a frame").expect("a frame");
    assert_eq!(&echoed[..], b"\x81\x02hi");
    send.send_data(Bytes::from_static(b"\x88\x82\0\0\0\0\x03\xe8"), true).expect("sent");
    let closed = body.data().await.expect("a frame").expect("a frame");
    assert_eq!(&closed[..], b"\x88\x02\x03\xe8");
    while let Some(rest) = body.data().await {
        assert_eq!(rest.expect("a clean end"), Bytes::new(), "one Close, and nothing after it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_balancer_the_visitor_is_who_the_proxy_header_says() {
    let world = World::start_with(|settings| settings.proxy_protocol = true).await;
    world.tunnel("shop", TlsMode::Edge).await;
    let header = |source: &str| {
        proxy_protocol::encode(source.parse().expect("an address"), "192.0.2.1:443".parse().expect("an address"))
    };
    let _agent = world.agent_after("shop", header("198.51.100.7:1")).await;
    let mut tls = visitor::connect_after(&world, "shop.adit.localhost", &header("203.0.113.9:9")).await;
    tls.write_all(
        b"GET /echo HTTP/1.1\r\nHost: shop.adit.localhost\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n",
    )
    .await
    .expect("sent");
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("x-forwarded-for: 203.0.113.9\n"), "{answer}");
    assert!(!answer.contains("6.6.6.6"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tunnel_has_no_traffic_and_its_agent_ends_for_good() {
    let world = World::start().await;
    let id = world.tunnel("shop", TlsMode::Edge).await;
    let agent = world.agent("shop").await;
    assert!(world.edge.is_connected(id));
    world.delete(id).await;
    assert!(!world.edge.is_connected(id), "when the deletion is answered the session is over");
    let response = get(&world, "shop", "/").await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let ended = agent.ended().await;
    assert!(matches!(ended, Err(agent::Error::Denied { .. })), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_agent_wins_and_the_older_ends_for_good() {
    let world = World::start().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let older = world.agent("shop").await;
    let _newer = world.agent("shop").await;
    let ended = older.ended().await;
    assert!(matches!(ended, Err(agent::Error::Superseded)), "{ended:?}");
    assert_eq!(get(&world, "shop", "/").await.status(), StatusCode::OK);
}
