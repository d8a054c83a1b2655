//! `tunnels`: what the REST API does, from a shell.

use std::io::Read as _;
use std::path::PathBuf;

use agent::Rest;
use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum Tunnels {
    /// Every tunnel that the key sees
    List,
    /// A new tunnel
    Create {
        /// Its name: the label before the zone
        name: String,
        /// Who terminates TLS
        #[arg(long, value_enum, default_value = "edge")]
        tls_mode: TlsMode,
        /// Words of your own
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// One tunnel
    Show {
        /// Its name or id
        tunnel: String,
    },
    /// New words
    Update {
        /// Its name or id
        tunnel: String,
        /// Words of your own; empty clears them
        #[arg(long, value_name = "TEXT")]
        description: String,
    },
    /// Delete a tunnel; for a while it can be restored
    Delete {
        /// Its name or id
        tunnel: String,
    },
    /// Take a deletion back
    Restore {
        /// Its name or id
        tunnel: String,
    },
    /// Have a certificate signed; prints leaf and chain as PEM
    SignCsr {
        /// The tunnel's name or id
        tunnel: String,
        /// The request as PEM; - is standard input
        #[arg(value_name = "FILE")]
        csr: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TlsMode {
    /// The server
    Edge,
    /// The agent, with a key that never leaves it
    Passthrough,
}

impl Tunnels {
    /// Does it; answers what to print.
    pub(crate) async fn run(self, rest: &Rest, json: bool) -> anyhow::Result<String> {
        let answer = match self {
            Self::List => {
                let answer = rest.call(Method::GET, "/api/v1/tunnels", None).await?;
                let tunnels = answer["tunnels"].as_array().cloned().unwrap_or_default();
                if json {
                    return pretty(&Value::Array(tunnels));
                }
                if tunnels.is_empty() {
                    return Ok("no tunnels; make one with: tunnel-agent tunnels create NAME\n".to_owned());
                }
                return Ok(tunnels.iter().map(line).collect());
            }
            Self::Create { name, tls_mode, description } => {
                let tls_mode = match tls_mode {
                    TlsMode::Edge => "edge",
                    TlsMode::Passthrough => "passthrough",
                };
                let mut body = json!({ "tunnel_name": name, "tls_mode": tls_mode });
                if let Some(description) = description {
                    body["description"] = description.into();
                }
                let created = rest.call(Method::POST, "/api/v1/tunnels", Some(body)).await?;
                if json {
                    return pretty(&created);
                }
                let secret = created["connect_secret"].as_str().unwrap_or_default();
                return Ok(format!("{}connect secret (shown once): {secret}\n", line(&created["tunnel"])));
            }
            Self::Show { tunnel } => rest.call(Method::GET, &path(rest, &tunnel, "").await?, None).await?,
            Self::Update { tunnel, description } => {
                let description = if description.is_empty() { Value::Null } else { description.into() };
                let body = json!({ "description": description });
                rest.call(Method::PATCH, &path(rest, &tunnel, "").await?, Some(body)).await?
            }
            Self::Delete { tunnel } => rest.call(Method::DELETE, &path(rest, &tunnel, "").await?, None).await?,
            Self::Restore { tunnel } => rest.call(Method::POST, &path(rest, &tunnel, "/restore").await?, None).await?,
            Self::SignCsr { tunnel, csr } => {
                let request = read(&csr)?;
                let tunnel = rest.tunnel(&tunnel).await?;
                return Ok(rest.sign_csr(tunnel.id, &request).await?);
            }
        };
        if json { pretty(&answer) } else { Ok(line(&answer)) }
    }
}

async fn path(rest: &Rest, tunnel: &str, rest_of_path: &str) -> anyhow::Result<String> {
    let tunnel = rest.tunnel(tunnel).await?;
    Ok(format!("/api/v1/tunnels/{}{rest_of_path}", tunnel.id))
}

/// A tunnel in one line.
fn line(tunnel: &Value) -> String {
    let text = |field: &str| tunnel[field].as_str().unwrap_or_default();
    let online = if tunnel["currently_connected"] == Value::Bool(true) { "online" } else { "offline" };
    format!(
        "{:<24} {:<11} {:<14} {online:<7} https://{}/\n",
        text("tunnel_name"),
        text("tls_mode"),
        text("status"),
        text("public_host")
    )
}

fn pretty(value: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    // More than any request that the server would look at.
    const MAX: u64 = 64 * 1024;
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(MAX).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read the request from {}", path.display()))?;
    Ok(text)
}
