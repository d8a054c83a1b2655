//! Adit in one process: a server on a temporary directory, an application on
//! loopback, an agent for each of two tunnels, and a visitor who trusts the
//! root and nothing else.
//!
//! Run it with `cargo run -p examples --bin quickstart`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, Credential, Event, Rest, Trust, Upstream};
use anyhow::{Context as _, ensure};
use api::{App, DataPlane, Limits, Metrics, SystemRandom};
use axum::Router;
use axum::routing::get;
use ca_dir::{CaDir, leaf_profile};
use edge::Edge;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use issuance::{Issuance, Private};
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Authority, DnsName, KeyPolicy, Profile, Time, Usage, inspect_certificate};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use store::{Clock as _, SqliteStore, Store, SystemClock};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tunnel_model::{OrganizationId, Rules, TunnelId};

const ZONE: &str = "adit.localhost";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    println!("Adit quickstart: everything below happens in this process and in a temporary directory.\n");

    step(1, "A server starts on an empty directory");
    let server = Server::start(directory.path()).await?;
    tell("API", &format!("http://{}", server.api));
    tell("edge", &format!("{} for agents and visitors, over TLS", server.edge));
    tell("root certificate", &inspect_certificate(&server.root)?.subject);
    tell("admin API key", "made and stored as a hash only");

    step(2, "Somebody has an application on this machine");
    let application = start_application().await?;
    tell("application", &format!("http://{application}"));

    step(3, "It gets two public names: TLS of the first ends at the server, of the second in the agent");
    let rest = server.rest()?;
    for (name, tls_mode) in [("shop", "edge"), ("bank", "passthrough")] {
        let wanted = json!({ "tunnel_name": name, "tls_mode": tls_mode });
        rest.call(Method::POST, "/api/v1/tunnels", Some(wanted)).await?;
        let tunnel = rest.tunnel(name).await?;
        tell(name, &format!("https://{}:{}/ ({tls_mode}, {})", tunnel.public_host, server.edge.port(), tunnel.status));
    }

    step(4, "An agent for each dials out; that of bank makes a key and has the server sign its certificate");
    for name in ["shop", "bank"] {
        let url = start_agent(&server, name, &format!("http://{application}"), directory.path()).await?;
        tell(name, &format!("connected, {url} leads to the application"));
    }
    let bank = rest.call(Method::GET, &format!("/api/v1/tunnels/{}", rest.tunnel("bank").await?.id), None).await?;
    let signed = bank["cert_fingerprint_sha256"].as_str().context("bank has a certificate")?.to_owned();
    tell("signed for bank", &format!("SHA-256 {signed}"));

    step(5, "A visitor fetches both");
    for name in ["shop", "bank"] {
        let visit = visit(&server, name, "/hello").await?;
        tell(name, &format!("{} {:?}", visit.status, visit.body.trim_end()));
        tell("  verified", &format!("{} over {}, chain up to the root", visit.host, visit.version));
        let is_agents = visit.fingerprint == signed;
        ensure!(is_agents == (name == "bank"), "{name} presented the wrong certificate");
        let who = if is_agents {
            "the agent: the certificate is the one signed for its key, which never left it"
        } else {
            "the server: it issued itself a certificate for this name"
        };
        tell("  TLS ended at", who);
    }

    step(6, "A request for somebody else's name is refused, with the reason");
    let foreign = request(&rcgen::KeyPair::generate()?, &format!("someone-else.{ZONE}"))?;
    let refused = rest.sign_csr(rest.tunnel("bank").await?.id, &foreign).await;
    tell("answer", &refused.err().context("it was signed")?.to_string());

    println!("\nNext, in three terminals, with an application on port 3000 (`python3 -m http.server 3000`):");
    println!("  1  cargo run --release -p api-server       a server that stays, in ./adit-data");
    println!("  2  cargo run --release -p tunnel-agent -- tunnels create my-agent");
    println!("  2  cargo run --release -p tunnel-agent -- connect my-agent --forward-to http://127.0.0.1:3000");
    println!("  3  curl --cacert adit-data/ca/root.crt https://my-agent.{ZONE}:4443/");
    Ok(())
}

/// A server as `api-server` wires it, on ports that the system chooses.
struct Server {
    api: SocketAddr,
    edge: SocketAddr,
    admin_key: String,
    root: Vec<u8>,
}

/// Where control plane and data plane meet: neither knows the other.
struct Joint(Edge);

impl DataPlane for Joint {
    fn is_connected(&self, tunnel: TunnelId) -> bool {
        self.0.is_connected(tunnel)
    }

    fn has_own_certificate(&self, tunnel: TunnelId) -> bool {
        self.0.has_own_certificate(tunnel)
    }

    fn attach(&self, agent: api::Agent) -> Result<api::Attached, api::Busy> {
        let api::Agent { tunnel, key, peer, instance, shares, own_certificate, response_deadline } = agent;
        let attach = edge::Attach { tunnel, key, peer, instance, shares, own_certificate, response_deadline };
        let attached = self.0.attach(attach).map_err(|busy| api::Busy(busy.in_short()))?;
        Ok(api::Attached { session: attached.session(), serve: Box::new(|link| Box::pin(attached.serve(link))) })
    }
}

impl Server {
    async fn start(directory: &Path) -> anyhow::Result<Self> {
        let now = Time::from_unix(SystemClock.now().micros() / 1_000_000);
        let zone: DnsName = ZONE.parse()?;
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory)?);
        let ca = CaDir::create(&directory.join("ca"), &zone, None, now)?;
        let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, 90))?;
        let authority = Authority::new(&ca.issuing, Arc::new(ca.key), Arc::new(AwsLc), profile, KeyPolicy::new())?;
        let (clock, random, rules) = (Arc::new(SystemClock), Arc::new(SystemRandom), Arc::new(Rules::new()));
        let issuance: Arc<dyn Issuance> =
            Arc::new(Private::new(authority, Arc::clone(&store), Arc::clone(&rules), clock.clone()));
        let settings = edge::Settings::new(ZONE.parse()?);
        let edge = Edge::new(settings, Arc::clone(&store), Arc::clone(&issuance), clock.clone())?;
        let app = App::new(store, clock, random, issuance, rules, ZONE.parse()?)
            .with_data_plane(Arc::new(Joint(edge.clone())));
        let admin_key = app.bootstrap(&OrganizationId::new("org_quickstart"), None).await?;
        let admin_key = admin_key.context("an empty store has no key yet")?.expose().to_owned();

        let api_listener = TcpListener::bind("127.0.0.1:0").await?;
        let edge_listener = TcpListener::bind("127.0.0.1:0").await?;
        let (api_address, edge_address) = (api_listener.local_addr()?, edge_listener.local_addr()?);
        let limits = Limits::default();
        let metrics = Arc::new(Metrics::new());
        let router = api::router(Arc::new(app), Arc::clone(&metrics), &limits);
        let routes = router.clone();
        // At the zone's name the edge has the API, too: there agents attach.
        let rest: edge::Rest = Arc::new(move |arrival| {
            let routes = routes.clone();
            Box::pin(async move { api::serve_connection(arrival, routes, &limits, std::future::pending()).await })
        });
        tokio::spawn(async move { api::serve(api_listener, router, &limits, metrics, std::future::pending()).await });
        tokio::spawn(async move { edge.serve(edge_listener, Some(rest), std::future::pending()).await });
        Ok(Self { api: api_address, edge: edge_address, admin_key, root: ca.root })
    }

    fn rest(&self) -> anyhow::Result<Rest> {
        let trust = Trust::only(vec![CertificateDer::from(self.root.clone())])?;
        let key = Credential::ApiKey(self.admin_key.clone());
        Ok(Rest::new(format!("http://{}", self.api).parse()?, key, Some(trust))?)
    }
}

/// An application that knows nothing of tunnels.
async fn start_application() -> anyhow::Result<SocketAddr> {
    let hello = |headers: HeaderMap| async move {
        let asked = headers.get("x-forwarded-host").and_then(|host| host.to_str().ok()).unwrap_or("nobody");
        format!("hello from the application, asked for {asked}\n")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/hello", get(hello));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// Starts an agent and waits until it is connected; answers its public URL.
async fn start_agent(server: &Server, name: &str, forward_to: &str, directory: &Path) -> anyhow::Result<String> {
    let (connected, mut url) = tokio::sync::mpsc::unbounded_channel();
    let agent = Agent::new(server.rest()?, name, Upstream::url(&forward_to.parse()?, None)?)
        .edge("127.0.0.1", server.edge.port())
        .state_directory(directory.join(name));
    let observe = move |event| {
        if let Event::Connected { url, .. } = event {
            // The quickstart waits for the first one only.
            let _ = connected.send(url);
        }
    };
    let agent = tokio::spawn(agent.run(observe));
    tokio::select! {
        url = url.recv() => url.context("the agent ended"),
        ended = agent => ended?.map(|()| String::new()).context("the agent ended"),
        () = tokio::time::sleep(Duration::from_secs(15)) => anyhow::bail!("the agent did not connect in time"),
    }
}

/// What a visitor sees.
struct Visit {
    host: String,
    status: http::StatusCode,
    body: String,
    version: String,
    /// SHA-256 of the certificate that was presented.
    fingerprint: String,
}

/// One request by a visitor who trusts the root and nothing else.
async fn visit(server: &Server, name: &str, path: &str) -> anyhow::Result<Visit> {
    let host = format!("{name}.{ZONE}");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(server.root.clone()))?;
    let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let stream = TcpStream::connect(server.edge).await?;
    let tls = TlsConnector::from(config).connect(ServerName::try_from(host.clone())?, stream).await;
    let tls = tls.context("the visitor does not accept the certificate")?;
    let session = tls.get_ref().1;
    let version = format!("{:?}", session.protocol_version().context("the handshake is done")?);
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).context("a certificate was presented")?;
    let fingerprint = inspect_certificate(leaf)?.fingerprint_sha256.to_string();

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request = Request::builder().uri(path).header("host", &host).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "the visitor got {status}: {}", String::from_utf8_lossy(&body));
    Ok(Visit { host, status, body: String::from_utf8_lossy(&body).into_owned(), version, fingerprint })
}

/// What `openssl req -new` or an SDK would send.
fn request(key: &rcgen::KeyPair, host: &str) -> anyhow::Result<String> {
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, host);
    Ok(params.serialize_request(key)?.pem()?)
}

fn step(number: u32, what: &str) {
    println!("{number}. {what}");
}

fn tell(name: &str, value: &str) {
    println!("     {name:<17} {value}");
}
