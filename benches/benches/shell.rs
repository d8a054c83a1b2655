//! One certificate from a shell: a process that reads the authority, checks a
//! request, signs and writes, beside one that only starts.
//!
//! `cargo build --release -p ca-cli && cargo bench -p benches --bench shell`
//!
//! `CA_CLI` names another binary.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use benches::percentile;

const ROUNDS: usize = 300;
const HOST: &str = "my-agent.adit.localhost";

fn main() -> anyhow::Result<()> {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/ca-cli");
    let program = std::env::var_os("CA_CLI").map_or_else(built, PathBuf::from);
    ensure!(program.exists(), "build it first: cargo build --release -p ca-cli");
    let directory = tempfile::tempdir()?;
    let run = |arguments: &[&str]| -> anyhow::Result<Duration> {
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let status = command.status().context("it does not start")?;
        let took = started.elapsed();
        ensure!(status.success(), "ca-cli {arguments:?}: {status}");
        Ok(took)
    };
    run(&["init", "ca", "--zone", "adit.localhost"])?;
    run(&["csr", HOST])?;
    let request = format!("{HOST}.csr");
    let operations: [(&str, &[&str]); 3] = [
        ("start and end", &["--version"]),
        ("verify a certificate", &["verify", "leaf.crt", "--anchor", "ca/root.crt", "--host", HOST]),
        ("sign a P-256 request", &["sign", &request, "--ca", "ca", "--out", "leaf.crt"]),
    ];
    run(operations[2].1)?;
    // In turn, so that whatever else the machine does touches all of them alike.
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, arguments), times) in operations.iter().zip(&mut times) {
            times.push(run(arguments)?);
        }
    }
    println!("{:<24} {:>10} {:>10} {:>10}", "one process", "least", "median", "p90");
    for ((name, _), times) in operations.iter().zip(&mut times) {
        times.sort();
        let millis = |percent| format!("{:.2} ms", percentile(times, percent).as_secs_f64() * 1e3);
        println!("{name:<24} {:>10} {:>10} {:>10}", millis(0.0), millis(50.0), millis(90.0));
    }
    println!("goal: sign <= 2 ms");
    Ok(())
}
