//! Visitors of passthrough tunnels, whose TLS and HTTP end in the agent.

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel_model::TlsMode;

use crate::visitor::{connect, connect_h2, raw};
use crate::world::{Running, World, filler};

async fn bank() -> (World, Running) {
    let world = World::start().await;
    world.tunnel("bank", TlsMode::Passthrough).await;
    let agent = world.agent("bank").await;
    (world, agent)
}

const HOST: &str = "bank.adit.localhost";

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_whole_though_its_connection_ends_with_it() {
    let (world, _agent) = bank().await;
    for size in [0, 1, 1000, 16_384, 65_535, 65_537, 1_000_000, 10_000_000] {
        for request in [
            format!("GET /octets/{size} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"),
            format!("GET /octets/{size} HTTP/1.0\r\nHost: {HOST}\r\n\r\n"),
        ] {
            let mut tls = connect(&world, HOST, b"http/1.1").await.expect("TLS");
            tls.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = Vec::new();
            // An end without close_notify would be an error.
            tls.read_to_end(&mut answer).await.expect("a clean end");
            let head = answer.windows(4).position(|octets| octets == b"\r\n\r\n").expect("a head") + 4;
            assert!(answer.starts_with(b"HTTP/1."), "{size}");
            assert!(answer[head..] == filler(size), "{size}: {} octets came", answer.len() - head);
        }
        let tls = connect(&world, HOST, b"h2").await.expect("TLS");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls));
        let (mut sender, connection) = handshake.await.expect("h2");
        tokio::spawn(connection);
        let request = Request::get(format!("https://{HOST}/octets/{size}")).body(Empty::<bytes::Bytes>::new());
        let response = sender.send_request(request.expect("a request")).await.expect("an answer");
        drop(sender);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(body == filler(size), "{size}: {} octets came", body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_an_upload_is_read() {
    let (world, _agent) = bank().await;
    for size in [100_000, 5_000_000] {
        let head =
            format!("POST /early HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
        let answer = raw(&world, "bank", &(head + &"x".repeat(size))).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{size}: {answer:?}");

        let mut sender = connect_h2(&world, "bank").await;
        let request = Request::post(format!("https://{HOST}/early")).body(()).expect("a request");
        let (response, mut stream) = sender.send_request(request, false).expect("sent");
        stream.send_data(vec![7; size].into(), true).expect("sent");
        let response = response.await.expect("not reset");
        assert_eq!(response.status(), 413, "{size}");
        let mut body = response.into_body();
        while let Some(piece) = body.data().await {
            piece.expect("the answer is whole");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_refuses_a_visitor_is_told() {
    let (world, _agent) = bank().await;
    let error = connect(&world, HOST, b"gopher").await.expect_err("nobody speaks it");
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    let fields: String = (0..300).map(|number| format!("x-{number}: 1\r\n")).collect();
    let answer = raw(&world, "bank", &format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_for_this_host_and_the_application_hears_what_was_called() {
    let (world, _agent) = bank().await;
    let port = world.address.port();
    for (request, status, told) in [
        (format!("GET /echo HTTP/1.1\r\nHost: {HOST}:{port}\r\n"), 200, format!("x-forwarded-host: {HOST}:{port}\n")),
        (format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\n"), 200, format!("x-forwarded-host: {HOST}\n")),
        ("GET /echo HTTP/1.1\r\n".to_owned(), 400, String::new()),
        (format!("GET /echo HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n"), 400, String::new()),
        ("GET /echo HTTP/1.1\r\nHost: shop.adit.localhost\r\n".to_owned(), 421, String::new()),
        (format!("TRACE /echo HTTP/1.1\r\nHost: {HOST}\r\n"), 405, "allow: GET, HEAD".to_owned()),
        (format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n"), 405, "allow: GET, HEAD".to_owned()),
        (format!("OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\n"), 204, "x-target: *".to_owned()),
        (
            format!("GET /echo?name=jos\u{e9} HTTP/1.1\r\nHost: {HOST}\r\n"),
            200,
            "GET /echo?name=jos%C3%A9\n".to_owned(),
        ),
    ] {
        let answer = raw(&world, "bank", &format!("{request}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(&told), "{request}: {answer}");
    }
    let tls = connect(&world, HOST, b"http/1.0").await.expect("an old protocol is one");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.0"[..]));
}

/// What an application answers with so many fields of so many octets.
async fn answers(world: &World, name: &str, fields: usize, octets: usize) -> String {
    raw(
        world,
        name,
        &format!("GET /headers/{fields}/{octets} HTTP/1.1\r\nHost: {name}.adit.localhost\r\nConnection: close\r\n\r\n"),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answers_head_passes_up_to_64_kib_and_200_fields_and_is_refused_at_once_beyond() {
    let (world, _agent) = bank().await;
    world.tunnel("shop", TlsMode::Edge).await;
    let _other = world.agent("shop").await;
    let begun = std::time::Instant::now();
    for (name, fields, octets, passes) in [
        ("bank", 190, 10, true),
        ("bank", 1, 65_000, true),
        ("bank", 210, 10, false),
        ("bank", 1, 66_000, false),
        ("shop", 190, 10, true),
        ("shop", 210, 10, false),
        ("shop", 1, 65_000, true),
        ("shop", 1, 66_000, false),
    ] {
        let answer = answers(&world, name, fields, octets).await;
        let (wanted, told) = if passes { (200, "") } else { (502, "response-headers-too-large") };
        let is_so = answer.starts_with(&format!("HTTP/1.1 {wanted} ")) && answer.contains(told);
        assert!(is_so, "{name} {fields} {octets}: {}", &answer[..answer.len().min(200)]);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "at once");
}
