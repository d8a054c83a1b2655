//! Visitors who trust the world's root and nothing else.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{World, ZONE};

pub(crate) async fn connect(world: &World, host: &str, protocol: &[u8]) -> io::Result<TlsStream<TcpStream>> {
    connect_with(world, host, &[protocol]).await
}

pub(crate) async fn connect_with(world: &World, host: &str, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
    handshake(world, TcpStream::connect(world.address).await?, host, protocols).await
}

pub(crate) async fn connect_after(world: &World, host: &str, header: &[u8]) -> TlsStream<TcpStream> {
    let mut stream = TcpStream::connect(world.address).await.expect("the edge is there");
    stream.write_all(header).await.expect("sent");
    handshake(world, stream, host, &[b"http/1.1"]).await.expect("TLS")
}

async fn handshake(
    world: &World,
    stream: TcpStream,
    host: &str,
    protocols: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(world.root.clone()).expect("a root");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub(crate) async fn connect_h2(world: &World, name: &str) -> SendRequest<Bytes> {
    let tls = connect(world, &format!("{name}.{ZONE}"), b"h2").await.expect("TLS");
    let (sender, connection) =
        h2::client::Builder::new().initial_window_size(1 << 20).handshake(tls).await.expect("h2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

pub(crate) async fn get(world: &World, name: &str, path: &str) -> Response<Incoming> {
    let host = format!("{name}.{ZONE}");
    let tls = connect(world, &host, b"http/1.1").await.expect("TLS");
    let handshake = hyper::client::conn::http1::Builder::new().max_headers(1000).handshake(TokioIo::new(tls));
    let (mut sender, connection) = handshake.await.expect("HTTP");
    tokio::spawn(connection);
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new()).expect("a request");
    sender.send_request(request).await.expect("an answer")
}

pub(crate) async fn body_of(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

/// Octets in, octets out.
pub(crate) async fn raw(world: &World, name: &str, request: &str) -> String {
    let mut tls = connect(world, &format!("{name}.{ZONE}"), b"http/1.1").await.expect("TLS");
    tls.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A connection that is closed hard was closed.
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
