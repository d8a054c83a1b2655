//! Adit in one process: a server on a temporary directory, an agent that asks
//! it for a certificate, and a visitor who checks the agent's TLS.
//!
//! Run it with `cargo run -p examples --bin quickstart`.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use api::{App, Clock as _, Limits, Metrics, SystemClock, SystemRandom};
use ca_dir::{CaDir, leaf_profile};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Authority, DnsName, KeyPolicy, Profile, Time, Usage, certificates_from_pem, inspect_certificate};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use serde_json::{Value, json};
use store::SqliteStore;
use tunnel_model::{OrganizationId, Rules};

const ZONE: &str = "adit.localhost";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    println!("Adit quickstart: everything below happens in this process and in a temporary directory.\n");

    let (server, root) = Server::start(directory.path()).await?;
    step(1, "A server starts on an empty directory");
    tell("API", &format!("http://{}", server.address));
    tell("root certificate", &inspect_certificate(&root)?.subject);
    tell("admin API key", "made and stored as a hash only");

    step(2, "Somebody creates a tunnel whose TLS ends in the agent");
    let wanted = json!({ "tunnel_name": "my-agent", "tls_mode": "passthrough" });
    let created = server.call("POST", "/api/v1/tunnels", &wanted).await?.expect_status(201)?;
    let tunnel = &created["tunnel"];
    let (id, host) = (text(tunnel, "id")?, text(tunnel, "public_host")?);
    tell("public host", &host);
    tell("status", &text(tunnel, "status")?);

    step(3, "The agent makes a key, which never leaves it, and a certificate signing request");
    let key = rcgen::KeyPair::generate()?;
    let csr = request(&key, &host)?;
    tell("key", "ECDSA P-256, in the agent's memory");
    tell("request", &format!("CN={host}, {} octets of PEM", csr.len()));

    step(4, "The server checks the request and signs it");
    let sign = format!("/api/v1/tunnels/{id}/sign-csr");
    let signed = server.call("POST", &sign, &json!({ "csr_pem": csr })).await?.expect_status(200)?;
    let first = chain(&signed)?;
    let leaf = inspect_certificate(&first[0])?;
    tell("gate", "size, PEM, DER, key, signature, proof of possession, names, extensions: passed");
    tell("certificate", &format!("{} for {}", leaf.serial, leaf.subject_alt_names.join(", ")));
    tell("valid until", &leaf.not_after.to_string());
    tell("chain", &format!("leaf <- {} <- root", leaf.issuer));
    tell("SHA-256", &text(&signed, "cert_fingerprint_sha256")?);
    let shown = server.call("GET", &format!("/api/v1/tunnels/{id}"), &Value::Null).await?.expect_status(200)?;
    ensure!(
        shown["cert_fingerprint_sha256"] == signed["cert_fingerprint_sha256"],
        "the tunnel shows another certificate"
    );
    tell("tunnel's status", &text(&shown, "status")?);

    step(5, "A visitor who trusts the root makes a TLS handshake with the agent");
    tell("verified", &handshake(&first, &key, &root, &host)?);

    step(6, "The certificate is renewed with a new key before it ends");
    let new_key = rcgen::KeyPair::generate()?;
    let renewed =
        server.call("POST", &sign, &json!({ "csr_pem": request(&new_key, &host)? })).await?.expect_status(200)?;
    let second = chain(&renewed)?;
    tell("new serial", &inspect_certificate(&second[0])?.serial);
    tell("verified", &handshake(&second, &new_key, &root, &host)?);

    step(7, "A request for somebody else's name is refused, with the reason");
    let foreign = request(&key, &format!("someone-else.{ZONE}"))?;
    let refused = server.call("POST", &sign, &json!({ "csr_pem": foreign })).await?.expect_status(400)?;
    tell("answer", &format!("400 {}", text(&refused, "title")?));
    tell("detail", &text(&refused, "detail")?);

    println!("\nNext:");
    println!("  cargo run -p api-server                               a server that stays, in ./adit-data");
    println!("  curl -H \"X-API-Key: $(cat adit-data/admin-api-key)\" http://127.0.0.1:8080/api/v1/tunnels");
    println!("  cargo run -p ca-cli -- csr my-agent.adit.localhost    a key and a request of your own");
    println!("  cargo run -p ca-cli -- --help                         sign, inspect and verify from a shell");
    Ok(())
}

/// A server as `api-server` wires it, on a port that the system chooses.
struct Server {
    address: SocketAddr,
    admin_key: String,
}

impl Server {
    async fn start(directory: &std::path::Path) -> anyhow::Result<(Self, Vec<u8>)> {
        let now = Time::from_unix(SystemClock.now().micros() / 1_000_000);
        let zone: DnsName = ZONE.parse()?;
        let store = SqliteStore::open(directory)?;
        let ca = CaDir::create(&directory.join("ca"), &zone, None, now)?;
        let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, 90))?;
        let authority = Authority::new(&ca.issuing, Arc::new(ca.key), Arc::new(AwsLc), profile, KeyPolicy::new())?;
        let (clock, random) = (Arc::new(SystemClock), Arc::new(SystemRandom));
        let app = App::new(Arc::new(store), clock, random, authority, Rules::new(), ZONE.parse()?);
        let admin_key = app.bootstrap(&OrganizationId::new("org_quickstart"), None).await?;
        let admin_key = admin_key.context("an empty store has no key yet")?.expose().to_owned();

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let limits = Limits::default();
        let metrics = Arc::new(Metrics::new());
        let router = api::router(Arc::new(app), Arc::clone(&metrics), &limits);
        tokio::spawn(async move { api::serve(listener, router, &limits, metrics, std::future::pending()).await });
        Ok((Self { address, admin_key }, ca.root))
    }

    /// One HTTP request, as any client would send it.
    async fn call(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("x-api-key", &self.admin_key)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body: serde_json::from_slice(&body)? })
    }
}

struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    fn expect_status(self, status: u16) -> anyhow::Result<Value> {
        ensure!(self.status == status, "the server answered {}: {}", self.status, self.body);
        Ok(self.body)
    }
}

/// What `openssl req -new` or an SDK would send.
fn request(key: &rcgen::KeyPair, host: &str) -> anyhow::Result<String> {
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, host);
    Ok(params.serialize_request(key)?.pem()?)
}

/// Leaf and intermediate in DER, as a TLS server presents them.
fn chain(signed: &Value) -> anyhow::Result<Vec<Vec<u8>>> {
    let pem = text(signed, "cert_pem")? + &text(signed, "chain_pem")?;
    Ok(certificates_from_pem(pem.as_bytes())?)
}

/// A handshake over loopback: the agent presents its chain, the visitor trusts
/// the root and nothing else.
fn handshake(chain: &[Vec<u8>], key: &rcgen::KeyPair, root: &[u8], host: &str) -> anyhow::Result<String> {
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let agent = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(root.to_vec()))?;
    let visitor = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let serving = std::thread::spawn(move || -> anyhow::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut connection = ServerConnection::new(agent)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    let mut connection = ClientConnection::new(visitor, ServerName::try_from(host.to_owned())?)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).context("the visitor does not accept the certificate")?;
    }
    serving.join().map_err(|_| anyhow::anyhow!("the agent's thread panicked"))??;
    let version = connection.protocol_version().context("the handshake is done")?;
    Ok(format!("{host} over {version:?}, chain up to the root"))
}

fn step(number: u32, what: &str) {
    println!("{number}. {what}");
}

fn tell(name: &str, value: &str) {
    println!("     {name:<17} {value}");
}

fn text(object: &Value, field: &str) -> anyhow::Result<String> {
    let value = object[field].as_str().with_context(|| format!("the answer has no {field}: {object}"))?;
    Ok(value.to_owned())
}
