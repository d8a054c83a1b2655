//! A shell over the agent library: flags, printed output, exit statuses.

mod connect;
mod output;
mod tunnels;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use agent::{Credential, Proxies, Rest, Trust};
use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use http::Uri;
use serde_json::json;

use crate::output::{Line, Output, Stream};

/// Small pieces come and go with every request (docs/decisions, 0022).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Put a local application behind a public name.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
                  tunnel-agent tunnels create my-agent                          a name of your own\n  \
                  tunnel-agent connect my-agent --forward-to http://127.0.0.1:3000\n  \
                  tunnel-agent tunnels create bank --tls-mode passthrough       TLS ends here, not at the server\n  \
                  tunnel-agent tunnels list --json | jq -r '.[].public_host'\n\n\
                  Exit status: 0 done, 1 failed, 2 wrong flags, 3 another agent has taken the tunnel over,\n\
                  4 the server refuses this agent for good."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    server: Server,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a tunnel from this machine until it is stopped
    Connect(Box<connect::Connect>),
    /// Look after tunnels
    #[command(subcommand)]
    Tunnels(tunnels::Tunnels),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Where the server is, and who asks.
#[derive(Args)]
struct Server {
    /// The server: https://ZONE, or its plain API port on this machine
    #[arg(long, global = true, value_name = "URL", env = "ADIT_SERVER", default_value = "http://127.0.0.1:8080")]
    server: Uri,

    /// API key
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "ADIT_API_KEY",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    api_key: Option<String>,

    /// File with the API key [default: ./adit-data/admin-api-key, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,

    /// PEM file of the root to trust instead of the system's [default: ./adit-data/ca/root.crt, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_CA")]
    ca: Option<PathBuf>,

    /// Proxy for the server and its edge: http://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host where it wants that
    /// [default: HTTPS_PROXY or ALL_PROXY, but for NO_PROXY and this machine]
    #[arg(long, global = true, value_name = "URL", hide_env_values = true, env = "ADIT_PROXY")]
    proxy: Option<String>,

    /// JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

/// Where a server that was started beside us keeps these.
const LOCAL_KEY: &str = "adit-data/admin-api-key";
const LOCAL_ROOT: &str = "adit-data/ca/root.crt";

impl Server {
    fn rest(&self) -> anyhow::Result<Rest> {
        let proxies = match &self.proxy {
            Some(url) => Proxies::always(url).context("cannot use --proxy")?,
            None => Proxies::from_environment().context("cannot use the proxy of the environment")?,
        };
        let rest = Rest::new(self.server.clone(), Credential::ApiKey(self.key()?), Some(self.trust()?))?;
        Ok(rest.proxies(proxies))
    }

    fn key(&self) -> anyhow::Result<String> {
        if let Some(key) = &self.api_key {
            return Ok(key.clone());
        }
        let path = match &self.api_key_file {
            Some(path) => path.clone(),
            None if PathBuf::from(LOCAL_KEY).exists() => LOCAL_KEY.into(),
            None => bail!("there is no API key: set ADIT_API_KEY, or name its file with --api-key-file"),
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the API key from {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    fn trust(&self) -> anyhow::Result<Trust> {
        let path = self.ca.clone().or_else(|| Some(PathBuf::from(LOCAL_ROOT)).filter(|path| path.exists()));
        match path {
            Some(path) => Trust::from_file(&path).with_context(|| format!("cannot use {}", path.display())),
            None => Ok(Trust::of_system()?),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_agent = matches!(cli.command, Command::Connect(_));
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    let json = cli.server.json;
    let output = Output::start(move |missed| not_shown(missed, json));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(output.clone());
    log.with_ansi(has_colours()).init();
    let done = run(cli, &output);
    output.finish();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its events are lines of JSON, and this is the last one.
            if json && is_agent {
                let causes: Vec<_> = error.chain().skip(1).map(ToString::to_string).collect();
                let line = json!({ "event": "error", "error": error.to_string(), "causes": causes });
                // Whoever reads may have gone; the exit status says it, too.
                let _ = print(&format!("{line}\n"));
            }
            eprintln!("tunnel-agent: error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            match error.downcast_ref() {
                Some(agent::Error::Superseded) => ExitCode::from(3),
                Some(agent::Error::Denied { .. }) => ExitCode::from(4),
                Some(agent::Error::Refused { .. }) if is_agent => ExitCode::from(4),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// <https://no-color.org>, and terminals that have none.
fn has_colours() -> bool {
    let is_set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    is_set("NO_COLOR").is_none() && is_set("TERM").is_some_and(|term| term != "dumb") && io::stderr().is_terminal()
}

/// The line for those that did not fit.
fn not_shown(lines: u64, json: bool) -> Line {
    match json {
        true => (Stream::Stdout, format!("{}\n", json!({ "event": "not-shown", "events": lines })).into_bytes()),
        false => (Stream::Stderr, format!("{lines} events not shown\n").into_bytes()),
    }
}

fn run(cli: Cli, output: &Output) -> anyhow::Result<()> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "tunnel-agent", &mut io::stdout());
        return Ok(());
    }
    // One thread serves more than most applications do, and wakes no other.
    let mut runtime = match &cli.command {
        Command::Connect(connect) if connect.threads() > 1 => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(connect.threads());
            builder
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build().context("cannot start threads")?;
    let done = runtime.block_on(async {
        let rest = cli.server.rest().map_err(|error| match &cli.command {
            Command::Connect(connect) if connect.has_secret() => error.context(
                "the connect secret opens the edge only: which tunnel it is, and where, the API tells to an API key",
            ),
            _ => error,
        })?;
        match cli.command {
            Command::Connect(connect) => connect.run(rest, cli.server.json, output.clone()).await,
            Command::Tunnels(tunnels) => print(&tunnels.run(&rest, cli.server.json).await?),
            Command::Completions { .. } => Ok(()),
        }
    });
    // A look-up of a name that hangs is waited for by nobody.
    runtime.shutdown_background();
    done
}

/// Whoever reads may have seen enough (`| head`): that is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
