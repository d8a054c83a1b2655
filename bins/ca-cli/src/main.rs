//! Certificates from a shell: make an authority, request, sign, inspect,
//! verify, ask a server or a panel. Data goes to stdout, words to stderr.

mod certificates;
mod commands;
mod files;
mod p12;
mod panel;
mod panel_client;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use ca_dir::KeyAlgorithm;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use pki_core::{DnsName, Time, Usage};

/// Make, sign, inspect and verify certificates, offline; ask a server or a panel.
#[derive(Parser)]
#[command(
    version,
    after_help = "A file named - is standard input or output. A private key is never overwritten,\n\
                  nor is an input: --force does.\n\n\
                  Examples:\n  \
                  ca-cli init ca --zone adit.localhost        an authority in the directory ca\n  \
                  ca-cli csr my-agent.adit.localhost          a key and a request in two files\n  \
                  ca-cli sign my-agent.adit.localhost.csr --ca ca --out my-agent.crt\n  \
                  ca-cli verify my-agent.crt --anchor ca/root.crt --host my-agent.adit.localhost\n  \
                  ca-cli inspect my-agent.crt --json | jq .subject_alt_names\n  \
                  ca-cli certificates --expires-within 14     what a server's tunnels have to renew soon\n\n\
                  Exit status: 0 done and good, 1 refused or failed, 2 wrong arguments."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// JSON instead of text on stdout
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a certificate authority: a root, and an issuing intermediate for one zone
    Init(Init),
    /// Make a private key and a certificate signing request
    Csr(NewCsr),
    /// Check a certificate signing request and sign it
    Sign(Sign),
    /// Tell what a request, a certificate, a chain or a revocation list says
    Inspect(Inspect),
    /// Verify a chain against a trust anchor, and say which check fails
    Verify(Verify),
    /// Print the SHA-256 of each certificate's DER
    Fingerprint(Fingerprint),
    /// Make a PKCS #12 file (.p12) for browsers and keychains, or look into one
    P12(p12::P12),
    /// Ask a server which certificates of public hosts it has on record
    Certificates(certificates::Certificates),
    /// Ask a panel: agents, tokens and bundles, the host's certificates, the admin's own
    Panel(panel::Panel),
    /// Print a completion script for a shell
    Completions(Completions),
}

#[derive(Args)]
struct Init {
    /// The directory to make; api-server uses DATA/ca
    directory: PathBuf,
    /// The suffix of every host that may be signed
    #[arg(long, value_name = "ZONE")]
    zone: DnsName,
    /// Encrypt the keys with the first line of this file
    #[arg(long, value_name = "FILE", env = "ADIT_CA_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
struct NewCsr {
    /// The host to be named
    host: DnsName,
    /// The private key: used if it exists, made if not [default: HOST.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the request goes [default: HOST.csr]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Kind of a new key: p256, p384, ed25519, rsa2048, rsa3072, rsa4096
    #[arg(long, value_name = "KIND", default_value = "p256")]
    algorithm: KeyAlgorithm,
    /// Write the request over a file with a private key or over an input
    #[arg(long)]
    force: bool,
    /// Decrypt the key, or encrypt a new one, with the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
struct Sign {
    /// The request, PEM or DER
    csr: PathBuf,
    /// Directory of the authority, as `ca-cli init` or api-server (DATA/ca) made it
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// The host that the request must name [default: its own common name]
    #[arg(long, value_name = "HOST")]
    host: Option<DnsName>,
    /// Days of validity
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=825))]
    days: u32,
    /// Where the certificate goes, with its chain
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// Leave the intermediate out
    #[arg(long)]
    no_chain: bool,
    /// Write the certificate over a file with a private key or over an input
    #[arg(long)]
    force: bool,
    /// Decrypt the key with the first line of this file
    #[arg(long, value_name = "FILE", env = "ADIT_CA_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
struct Inspect {
    /// A request, a certificate, a chain or a revocation list, PEM or DER
    #[arg(default_value = "-")]
    file: PathBuf,
}

#[derive(Args)]
struct Verify {
    /// The chain, leaf first
    chain: PathBuf,
    /// Certificates that are trusted
    #[arg(long, value_name = "FILE")]
    anchor: PathBuf,
    /// More intermediates, in any order
    #[arg(long, value_name = "FILE")]
    untrusted: Option<PathBuf>,
    /// The host that the leaf must name
    #[arg(long, value_name = "HOST")]
    host: Option<DnsName>,
    /// What the leaf must be good for
    #[arg(long, value_name = "USAGE", value_parser = parse_usage)]
    usage: Option<Usage>,
    /// Seconds since 1970, instead of now
    #[arg(long, value_name = "SECONDS", value_parser = parse_time)]
    at: Option<Time>,
}

#[derive(Args)]
struct Fingerprint {
    /// Certificates, PEM or DER
    #[arg(default_value = "-")]
    file: PathBuf,
}

#[derive(Args)]
struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: clap_complete::Shell,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Init(init) => commands::init(&init, cli.json),
        Command::Csr(csr) => commands::csr(&csr, cli.json),
        Command::Sign(sign) => commands::sign(&sign, cli.json),
        Command::Inspect(inspect) => commands::inspect(&inspect, cli.json),
        Command::Verify(verify) => commands::verify(&verify, cli.json),
        Command::Fingerprint(fingerprint) => commands::fingerprint(&fingerprint, cli.json),
        Command::P12(p12) => p12::run(&p12, cli.json),
        Command::Certificates(certificates) => certificates::run(&certificates, cli.json),
        Command::Panel(panel) => panel::run(&panel, cli.json),
        Command::Completions(Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ca-cli", &mut script);
            files::print(&String::from_utf8_lossy(&script))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ca-cli: error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            if let Some(hint) = text::hint(&error) {
                eprintln!("  hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn parse_usage(text: &str) -> Result<Usage, String> {
    match text {
        "client" => Ok(Usage::ClientAuth),
        "server" => Ok(Usage::ServerAuth),
        _ => Err("use server or client".to_owned()),
    }
}

fn parse_time(text: &str) -> Result<Time, String> {
    text.parse().map(Time::from_unix).map_err(|_| "use seconds since 1970-01-01T00:00:00Z".to_owned())
}
