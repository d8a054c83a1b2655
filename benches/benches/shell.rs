//! One certificate from a shell: a process that reads the authority, checks a
//! request, signs and writes, beside one that only starts, and beside OpenSSL's.
//!
//! `cargo build --release -p ca-cli && cargo bench -p benches --bench shell`
//!
//! `CA_CLI` names another binary.

use std::path::{Path, PathBuf};
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
    let run = |program: &Path, arguments: &[&str]| -> anyhow::Result<Duration> {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let status = command.status().with_context(|| format!("{} does not start", program.display()))?;
        let took = started.elapsed();
        ensure!(status.success(), "{} {arguments:?}: {status}", program.display());
        Ok(took)
    };
    run(&program, &["init", "ca", "--zone", "adit.localhost"])?;
    run(&program, &["csr", HOST])?;
    let request = format!("{HOST}.csr");
    let sign = ["sign", &request, "--ca", "ca", "--out", "leaf.crt"];
    let openssl =
        ["x509", "-req", "-in", &request, "-CA", "ca/issuing.crt", "-CAkey", "ca/issuing.key", "-out", "other.crt"];
    run(&program, &sign)?;
    let operations: [(&str, &Path, &[&str]); 4] = [
        ("start and end", &program, &["--version"]),
        ("verify a certificate", &program, &["verify", "leaf.crt", "--anchor", "ca/root.crt", "--host", HOST]),
        ("sign a P-256 request", &program, &sign),
        ("openssl x509 -req", Path::new("openssl"), &openssl),
    ];
    // In turn, so that whatever else the machine does touches all of them alike.
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for ((_, program, arguments), times) in operations.iter().zip(&mut times) {
            times.push(run(program, arguments)?);
        }
    }
    println!("{:<24} {:>10} {:>10} {:>10}", "one process", "least", "median", "p90");
    for ((name, ..), times) in operations.iter().zip(&mut times) {
        times.sort();
        let millis = |percent| format!("{:.2} ms", percentile(times, percent).as_secs_f64() * 1e3);
        println!("{name:<24} {:>10} {:>10} {:>10}", millis(0.0), millis(50.0), millis(90.0));
    }
    let ratio = times[2][0].as_secs_f64() / times[3][0].as_secs_f64();
    println!("goal: sign <= 2 ms on an idle machine; here it takes {ratio:.2} x openssl's time, at least");
    Ok(())
}
