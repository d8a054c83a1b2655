//! The API over HTTP on loopback, SQLite, durable, keep-alive: requests per
//! second and latency, with the CPU that the whole process takes (server and
//! load generator) and the costs below it in the same run.
//!
//! `cargo bench -p benches --bench http`

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use api::{App, Limits, Metrics, SystemRandom};
use benches::{interleaved, percentile};
use ca_dir::{CaDir, leaf_profile};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use issuance::Private;
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Authority, KeyPolicy, Profile, Time, Usage};
use store::{Clock, SqliteStore, Store, SystemClock};
use tunnel_model::{
    Caller, Certificate, Command, Issuer, KeyId, OrganizationId, Origin, Quota, Rules, Scope, SecretHash, Timestamp,
    TlsMode, TunnelId,
};

const CLIENTS: usize = 32;
const SECONDS: u64 = 5;
/// More than the rate of one run can use up at ten signings a tunnel.
const TUNNELS: usize = 2000;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let server = Server::start(directory.path()).await?;
    println!("{CLIENTS} keep-alive clients on this machine, {SECONDS} s each, SQLite with a flush for every commit\n");
    println!("{:<28} {:>10} {:>9} {:>9} {:>9} {:>12}", "request", "per s", "p50 ms", "p99 ms", "max ms", "CPU us each");
    let whoami = server.load("GET whoami", |_| ("GET", "/api/whoami".to_owned(), String::new())).await?;
    let tunnels = Arc::clone(&server.tunnels);
    let get = server
        .load("GET tunnel", move |number| {
            ("GET", format!("/api/v1/tunnels/{}", tunnels[number % tunnels.len()].0), String::new())
        })
        .await?;
    let tunnels = Arc::clone(&server.tunnels);
    let sign = server
        .load("POST sign-csr", move |number| {
            let (id, body) = &tunnels[number % tunnels.len()];
            ("POST", format!("/api/v1/tunnels/{id}/sign-csr"), body.clone())
        })
        .await?;
    println!("\ngoals: GET tunnel >= 20000/s; POST sign-csr >= 3000/s with p99 <= 15 ms");
    println!("GET tunnel is {:.2} x GET whoami (routing, authentication and JSON without the tunnel)", get / whoami);
    println!("POST sign-csr is {:.2} x GET tunnel", sign / get);
    parts(&server).await?;
    disk(directory.path())
}

/// What a signing is made of, each part alone.
async fn parts(server: &Server) -> anyhow::Result<()> {
    let (_, body) = &server.tunnels[0];
    let csr: serde_json::Value = serde_json::from_str(body)?;
    let csr = csr["csr_pem"].as_str().context("the body has a request")?;
    let host = "tunnel-0.adit.localhost".parse()?;
    let serial = ca_dir::random_serial()?;
    let time = Time::from_unix(now()?);
    let mut issue = || drop(server.authority.issue(csr.as_bytes(), &host, serial, time).expect("a good request"));
    let issue = interleaved(50, &mut [("issue", &mut issue)])[0].micros();

    let rules =
        Arc::new(Rules { signings: Quota { limit: 1000, window: Duration::from_secs(86_400) }, ..Rules::new() });
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let mut writing = tokio::task::JoinSet::new();
    let mut count: u32 = 0;
    for client in 0..CLIENTS {
        let (store, rules, tunnels) = (Arc::clone(&server.store), Arc::clone(&rules), Arc::clone(&server.tunnels));
        writing.spawn(async move {
            for round in 0..200 {
                let number = (client + round * CLIENTS) % tunnels.len();
                let serial = ca_dir::random_serial()?;
                let mut fingerprint = [0; 32];
                fingerprint[..20].copy_from_slice(serial.as_bytes());
                let certificate = Certificate {
                    pem: "x".repeat(900),
                    fingerprint,
                    serial: serial.as_bytes().to_vec(),
                    expires_at: Timestamp::from_micros(i64::MAX),
                    renew_at: None,
                };
                let not_before = Timestamp::from_micros(0);
                let origin =
                    Origin { issuer: Issuer::Private, requested_by: None, key: [0; 32], not_before, profile: None };
                let name = format!("tunnel-{number}").parse()?;
                let command = Command::RecordCertificate { id: tunnels[number].0, name, certificate, origin };
                store.execute(Caller::System, command, &rules, Timestamp::from_micros(now()? * 1_000_000)).await?;
            }
            anyhow::Ok(200)
        });
    }
    while let Some(written) = writing.join_next().await {
        count += written??;
    }
    let (elapsed, cpu) = (started.elapsed(), cpu_time()? - cpu);
    println!("\nparts of a signing, each alone:");
    println!("  check and sign the request      {issue:>6.0} us of CPU");
    println!(
        "  record it in SQLite             {:>6.0} us of CPU, {:.0}/s from {CLIENTS} callers at once",
        cpu.as_secs_f64() * 1e6 / f64::from(count),
        f64::from(count) / elapsed.as_secs_f64(),
    );
    println!("  HTTP, authentication, JSON, and the load generator: as in GET whoami");
    Ok(())
}

/// What the disk allows: appends of one page with a flush each.
fn disk(directory: &std::path::Path) -> anyhow::Result<()> {
    use std::io::Write as _;

    let mut file = std::fs::File::create(directory.join("flush"))?;
    let mut times = Vec::new();
    for _ in 0..500 {
        let started = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort();
    println!(
        "one flush of this disk: median {:.2} ms, p99 {:.2} ms",
        millis(percentile(&times, 50.0)),
        millis(percentile(&times, 99.0))
    );
    Ok(())
}

struct Server {
    address: SocketAddr,
    admin_key: String,
    store: Arc<dyn Store>,
    authority: Authority,
    /// Passthrough tunnels, each with the body that asks for its certificate.
    tunnels: Arc<Vec<(TunnelId, String)>>,
}

impl Server {
    async fn start(directory: &std::path::Path) -> anyhow::Result<Self> {
        let ca = CaDir::create(&directory.join("ca"), &"adit.localhost".parse()?, None, Time::from_unix(now()?))?;
        let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, 90))?;
        let authority = Authority::new(&ca.issuing, Arc::new(ca.key), Arc::new(AwsLc), profile, KeyPolicy::new())?;
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory)?);
        let organization = OrganizationId::new("org_bench");
        let day = Duration::from_secs(86_400);
        // Far more signings a tunnel than the default, so that the quota is counted but not met.
        let rules = Rules { signings: Quota { limit: 1000, window: day }, ..Rules::new() };
        let tunnels = create_tunnels(&*store, &organization).await?;
        let clock = Arc::new(SystemClock);
        let rules = Arc::new(rules);
        let issuance = Private::new(
            authority.clone(),
            Arc::clone(&store),
            Arc::clone(&rules),
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        let (random, issuance) = (Arc::new(SystemRandom), Arc::new(issuance));
        let app = App::new(Arc::clone(&store), clock, random, issuance, rules, "adit.localhost".parse()?);
        let admin_key = app.bootstrap(&organization, None).await?.context("a new store has no key")?;

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let limits = Limits::default();
        let metrics = Arc::new(Metrics::new());
        let router = api::router(Arc::new(app), Arc::clone(&metrics), &limits);
        tokio::spawn(async move { api::serve(listener, router, &limits, metrics, std::future::pending()).await });
        Ok(Self { address, admin_key: admin_key.expose().to_owned(), store, authority, tunnels: Arc::new(tunnels) })
    }

    /// Answers per second.
    async fn load<F>(&self, name: &str, request: F) -> anyhow::Result<f64>
    where
        F: Fn(usize) -> (&'static str, String, String) + Send + Sync + 'static,
    {
        let request = Arc::new(request);
        let next = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut sender = self.connect().await?;
            let (request, next, stop) = (Arc::clone(&request), Arc::clone(&next), Arc::clone(&stop));
            let admin_key = self.admin_key.clone();
            clients.push(tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let (method, path, body) = request(next.fetch_add(1, Ordering::Relaxed));
                    let request = Request::builder()
                        .method(method)
                        .uri(path)
                        .header("host", "127.0.0.1")
                        .header("x-api-key", &admin_key)
                        .header("content-type", "application/json")
                        .body(Full::new(Bytes::from(body)))?;
                    let started = Instant::now();
                    let response = sender.send_request(request).await?;
                    let status = response.status();
                    let body = response.into_body().collect().await?.to_bytes();
                    times.push(started.elapsed());
                    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
                }
                anyhow::Ok(times)
            }));
        }
        let (started, cpu) = (Instant::now(), cpu_time()?);
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        stop.store(true, Ordering::Relaxed);
        let (elapsed, cpu) = (started.elapsed(), cpu_time()? - cpu);
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await??);
        }
        times.sort();
        #[expect(clippy::cast_precision_loss, reason = "counts of requests")]
        let count = times.len() as f64;
        let rate = count / elapsed.as_secs_f64();
        println!(
            "{name:<28} {rate:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>12.0}",
            millis(percentile(&times, 50.0)),
            millis(percentile(&times, 99.0)),
            millis(percentile(&times, 100.0)),
            cpu.as_secs_f64() * 1e6 / count,
        );
        Ok(rate)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn create_tunnels(store: &dyn Store, organization: &OrganizationId) -> anyhow::Result<Vec<(TunnelId, String)>> {
    let unlimited = Quota { limit: u32::MAX, window: Duration::from_secs(1) };
    let rules = Arc::new(Rules { creates: unlimited, ..Rules::new() });
    let key = rcgen::KeyPair::generate()?;
    let caller =
        Caller::Key { id: KeyId::from_random([1; 16]), organization: organization.clone(), scope: Scope::Admin };
    let mut tunnels = Vec::new();
    for number in 0..TUNNELS {
        let id = TunnelId::from_random(u128::to_be_bytes(number as u128 * 0x9e37_79b9_7f4a_7c15 + 1));
        let name = format!("tunnel-{number}");
        let host = format!("{name}.adit.localhost");
        let mut params = rcgen::CertificateParams::new(vec![host.clone()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, host);
        let csr = params.serialize_request(&key)?.pem()?;
        let command = Command::CreateTunnel {
            id,
            name: name.parse()?,
            tls_mode: TlsMode::Passthrough,
            description: None,
            secret_hash: SecretHash::from_sha256([0; 32]),
        };
        store.execute(caller.clone(), command, &rules, Timestamp::from_micros(now()? * 1_000_000)).await?;
        tunnels.push((id, serde_json::json!({ "csr_pem": csr }).to_string()));
    }
    Ok(tunnels)
}

fn now() -> anyhow::Result<i64> {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH)?;
    Ok(i64::try_from(since_epoch.as_secs())?)
}

/// User and system time of this process, from /proc.
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    // USER_HZ is 100 on every Linux that we know.
    Ok(Duration::from_millis(ticks * 10))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
