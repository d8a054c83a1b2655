//! Visitors of passthrough tunnels, whose TLS and HTTP end in the agent.

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel_model::TlsMode;

use crate::visitor::{connect, raw};
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
