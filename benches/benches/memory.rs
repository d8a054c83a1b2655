//! Memory of the server's process: idle on an empty directory, and with
//! 100,000 tunnels stored, before and after look-ups all over them.
//!
//! `cargo build --release -p api-server && cargo bench -p benches --bench memory`

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use store::{SqliteStore, Store};
use tunnel_model::{
    Caller, Command, KeyId, OrganizationId, Quota, Rules, Scope, SecretHash, Timestamp, TlsMode, TunnelId,
};

const TUNNELS: u32 = 100_000;
const KEY: &str = "memory-bench-admin-key";
const API: &str = "127.0.0.1:18080";
const SIDE: &str = "127.0.0.1:19464";

fn main() -> anyhow::Result<()> {
    let server = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/api-server");
    ensure!(server.exists(), "build the server first: cargo build --release -p api-server");
    let directory = tempfile::tempdir()?;
    let running = Server::start(&server, directory.path())?;
    println!("idle, nothing stored:           {:>6.1} MiB", running.resident()?);
    drop(running);
    let ids = fill(directory.path())?;
    let running = Server::start(&server, directory.path())?;
    println!("idle, {TUNNELS} tunnels stored:  {:>6.1} MiB", running.resident()?);
    let started = Instant::now();
    for id in ids.iter().step_by(97) {
        get(API, &format!("/api/v1/tunnels/{id}"))?;
    }
    let each = started.elapsed() / u32::try_from(ids.len().div_ceil(97))?;
    println!(
        "after look-ups all over them:   {:>6.1} MiB, {each:.0?} a look-up on a new connection",
        running.resident()?
    );
    println!("goal: <= 20 MiB");
    Ok(())
}

fn fill(directory: &Path) -> anyhow::Result<Vec<TunnelId>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory)?);
        let unlimited = Quota { limit: u32::MAX, window: Duration::from_secs(1) };
        let rules = Arc::new(Rules { creates: unlimited, ..Rules::new() });
        let organization = OrganizationId::new("org_adit");
        let caller = Caller::Key { id: KeyId::from_random([1; 16]), organization, scope: Scope::Admin };
        let mut ids = Vec::new();
        let mut writing = tokio::task::JoinSet::new();
        for number in 0..TUNNELS {
            let id = TunnelId::from_random(
                u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes(),
            );
            let command = Command::CreateTunnel {
                id,
                name: format!("tunnel-{number}").parse()?,
                tls_mode: TlsMode::Edge,
                description: None,
                secret_hash: SecretHash::from_sha256([0; 32]),
            };
            ids.push(id);
            let (store, caller, rules) = (Arc::clone(&store), caller.clone(), Arc::clone(&rules));
            writing.spawn(async move {
                store.execute(caller, command, &rules, Timestamp::from_micros(i64::from(number))).await.map(drop)
            });
        }
        while let Some(written) = writing.join_next().await {
            written??;
        }
        anyhow::Ok(ids)
    })
}

struct Server(Child);

impl Server {
    fn start(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let child = Process::new(program)
            .args([
                "--api-listen",
                API,
                "--metrics-listen",
                SIDE,
                "--panel-listen",
                "none",
                "--log",
                "error",
                "--data-dir",
            ])
            .arg(directory)
            .env("ADIT_BOOTSTRAP_API_KEY", KEY)
            .stdout(Stdio::null())
            .spawn()?;
        let server = Self(child);
        for _ in 0..100 {
            if get(SIDE, "/readyz").is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("the server does not become ready")
    }

    /// Resident memory in MiB.
    fn resident(&self) -> anyhow::Result<f64> {
        std::thread::sleep(Duration::from_millis(500));
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Process::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn get(address: &str, path: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    Ok(())
}
