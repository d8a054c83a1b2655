//! Serves a tunnel as the published SDKs do, to be measured beside the native wire.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use http::Uri;
use sdk_agent::{Agent, Credential, Rest, Trust, Upstream};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Put a local application behind a public name, over the wire of the published SDKs.
#[derive(Parser)]
struct Cli {
    /// The tunnel's name
    name: String,
    /// The application
    #[arg(long)]
    forward_to: Uri,
    /// The server's API
    #[arg(long)]
    server: Uri,
    /// File with the API key
    #[arg(long)]
    api_key_file: PathBuf,
    /// PEM file of the root to trust
    #[arg(long)]
    ca: PathBuf,
    /// Port of the edge on this machine
    #[arg(long)]
    edge_port: u16,
    /// Where key and certificate of a passthrough tunnel are kept
    #[arg(long)]
    state_dir: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let key = std::fs::read_to_string(&cli.api_key_file).context("cannot read the API key")?;
        let trust = Trust::from_file(&cli.ca)?;
        let rest = Rest::new(cli.server, Credential::ApiKey(key.trim().to_owned()), Some(trust))?;
        let mut agent =
            Agent::new(rest, cli.name, Upstream::url(&cli.forward_to, None)?).edge("127.0.0.1", cli.edge_port);
        if let Some(directory) = cli.state_dir {
            agent = agent.state_directory(directory);
        }
        Ok(agent.run(|event| eprintln!("{event:?}")).await?)
    })
}
