//! The certificates API's use cases on a real directory and SQLite, durable:
//! enrolments per second, and what an agent's bundle costs beside its key.
//!
//! `cargo bench -p benches --bench panel`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ca_dir::{KeyAlgorithm, generate_key};
use jiff::Timestamp;
use panel::{Grant, Making, Panel, Parts, Presented, Programs, Serial, setup};
use pki_core::pkcs12::Encryption;
use store::{ClientCertificate, ClientCertificates as _, SqliteStore, SystemClock};

/// Agents that enrol at once.
const CALLERS: usize = 32;
const ENROLLMENTS: usize = 1600;
/// Agents of a large panel.
const FLEET: usize = 5000;
const REVOCATIONS: usize = 1600;
/// Times of RSA keys differ by a factor of ten among themselves.
const RSA_KEYS: usize = 16;
const EC_KEYS: usize = 100;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> anyhow::Result<()> {
    println!("{ENROLLMENTS} enrolments with P-256 requests, {CALLERS} at once; lists, record and SQLite flushed");
    for (keys, name) in [(KeyAlgorithm::P256, "P-256"), (KeyAlgorithm::Rsa4096, "RSA-4096")] {
        let directory = tempfile::tempdir()?;
        let panel = Arc::new(open(directory.path(), keys).await?);
        let rate = enroll(&panel).await?;
        println!("  authority with {name:<9} {rate:>7.0}/s");
        revoke(&panel).await?;
    }
    println!("goal: 500/s\n");
    println!(
        "the same beside {FLEET} agents that are there already, and {CALLERS} at once revoke {REVOCATIONS} of them"
    );
    for (keys, name) in [(KeyAlgorithm::P256, "P-256"), (KeyAlgorithm::Rsa4096, "RSA-4096")] {
        let directory = tempfile::tempdir()?;
        let panel = Arc::new(open_with_fleet(directory.path(), keys).await?);
        let enrolled = enroll(&panel).await?;
        let revoked = revoke_many(&panel).await?;
        println!("  authority with {name:<9} {enrolled:>7.0}/s enrolled, {revoked:>7.0}/s revoked");
    }
    println!();
    bundles(KeyAlgorithm::Rsa4096, "RSA-4096", RSA_KEYS).await?;
    bundles(KeyAlgorithm::P256, "P-256", EC_KEYS).await?;
    println!("goals: RSA-4096 at most 2 x its key alone; elliptic curves at most 10 ms");
    Ok(())
}

async fn open(directory: &Path, keys: KeyAlgorithm) -> anyhow::Result<Panel> {
    let (pki_dir, config) = (directory.join("pki"), directory.join("panel.json"));
    let making = Making { keys, encryption: Encryption::Legacy };
    setup::ensure(&pki_dir, &config, [127, 0, 0, 1].into(), "adit.localhost", making, Timestamp::now())?;
    let parts = Parts {
        pki_dir,
        config,
        store: Arc::new(SqliteStore::open(directory)?),
        making,
        capabilities: Vec::new(),
        programs: Programs::new().nginx(None),
        is_proxied: false,
        clock: Arc::new(SystemClock),
    };
    Ok(Panel::open(parts).await?)
}

/// A panel that has made certificates for a while: each in the registry and on record.
async fn open_with_fleet(directory: &Path, keys: KeyAlgorithm) -> anyhow::Result<Panel> {
    drop(open(directory, keys).await?);
    let store = SqliteStore::open(directory)?;
    let mut agents = Vec::with_capacity(FLEET);
    for number in 0..FLEET {
        let serial = format!("{:040X}", number + (1 << 60));
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let not_after = store::Timestamp::from_micros(i64::MAX / 2);
        store.record_client_certificate(ClientCertificate { serial: serial.clone(), key, not_after }).await?;
        agents.push(serde_json::json!({
            "label": format!("fleet-{number}"), "serial": serial, "capabilities": ["tunnels:read"],
            "allowedSites": [], "enrollmentMethod": "hardware-bound", "createdAt": "2026-01-01T00:00:00.000Z",
            "expiresAt": "2028-01-01T00:00:00.000Z", "revoked": false,
        }));
        let agent = directory.join("pki/agents").join(format!("fleet-{number}"));
        std::fs::create_dir_all(&agent)?;
        std::fs::write(agent.join("client.p12"), [0; 2048])?;
    }
    std::fs::write(directory.join("pki/agents/registry.json"), serde_json::json!({ "agents": agents }).to_string())?;
    drop(store);
    open(directory, keys).await
}

async fn revoke_many(panel: &Arc<Panel>) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut revoking = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let panel = Arc::clone(panel);
        revoking.spawn(async move {
            for number in (caller..REVOCATIONS).step_by(CALLERS) {
                panel.revoke(format!("fleet-{number}"), by()?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(revoked) = revoking.join_next().await {
        revoked??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    Ok(REVOCATIONS as f64 / started.elapsed().as_secs_f64())
}

/// The admin who asks.
fn by() -> anyhow::Result<Serial> {
    Serial::parse("0A").context("a serial number")
}

fn grant(label: String) -> Grant {
    Grant { label, capabilities: vec!["tunnels:read".to_owned()], allowed_sites: Vec::new() }
}

fn csr() -> anyhow::Result<String> {
    let key = generate_key(KeyAlgorithm::P256)?;
    Ok(rcgen::CertificateParams::default().serialize_request(&key)?.pem()?)
}

async fn enroll(panel: &Arc<Panel>) -> anyhow::Result<f64> {
    let mut making = tokio::task::JoinSet::new();
    for number in 0..ENROLLMENTS {
        let panel = Arc::clone(panel);
        making.spawn(async move {
            let token = panel.create_token(grant(format!("agent-{number}")), by()?).await?;
            anyhow::Ok((token.token.expose().to_owned(), csr()?))
        });
    }
    let mut callers = vec![Vec::new(); CALLERS];
    let mut number = 0;
    while let Some(made) = making.join_next().await {
        callers[number % CALLERS].push(made??);
        number += 1;
    }
    let started = Instant::now();
    let mut enrolling = tokio::task::JoinSet::new();
    for requests in callers {
        let panel = Arc::clone(panel);
        enrolling.spawn(async move {
            for (token, csr) in requests {
                panel.enroll(&token, csr).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(enrolled) = enrolling.join_next().await {
        enrolled??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    Ok(ENROLLMENTS as f64 / started.elapsed().as_secs_f64())
}

/// From the answer to the first request that is refused.
async fn revoke(panel: &Panel) -> anyhow::Result<()> {
    let agents = panel.agents()?;
    let agent = agents.first().context("an agent")?;
    let subject = format!("CN=agent:{},O=Portlama", agent.label);
    let presented = Presented::from_headers("SUCCESS", &subject, &agent.serial.to_string()).context("a certificate")?;
    let started = Instant::now();
    anyhow::ensure!(panel.authenticate(Some(&presented), false).is_ok(), "the agent is let in");
    let let_in = started.elapsed();
    let started = Instant::now();
    panel.revoke(agent.label.clone(), by()?).await?;
    let revoked = started.elapsed();
    let started = Instant::now();
    anyhow::ensure!(panel.authenticate(Some(&presented), false).is_err(), "the agent is refused");
    let refused = started.elapsed();
    println!(
        "    of {} agents one is let in in {:.0} us, revoked in {:.1} ms, and refused in {:.0} us after that",
        agents.len(),
        micros(let_in),
        micros(revoked) / 1000.0,
        micros(refused),
    );
    Ok(())
}

/// Keys alone and whole bundles take turns, so that both see the same machine.
async fn bundles(keys: KeyAlgorithm, name: &str, count: usize) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let panel = open(directory.path(), keys).await?;
    let (mut alone, mut whole) = (Duration::ZERO, Duration::ZERO);
    for number in 0..count {
        let started = Instant::now();
        generate_key(keys)?;
        alone += started.elapsed();
        let started = Instant::now();
        panel.create_agent(grant(format!("agent-{number}")), by()?).await?;
        whole += started.elapsed();
    }
    let count = f64::from(u32::try_from(count)?);
    println!(
        "an agent with a bundle, {name}: {:.1} ms, its key alone {:.1} ms ({:.2} x), the rest {:.1} ms",
        micros(whole) / count / 1000.0,
        micros(alone) / count / 1000.0,
        whole.as_secs_f64() / alone.as_secs_f64(),
        (micros(whole) - micros(alone)) / count / 1000.0,
    );
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
