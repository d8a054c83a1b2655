//! The server: flags, configuration, wiring, signals.

mod backup;
mod check;
mod listeners;
mod logging;
mod panel;
mod pem;
mod public;
mod reload;
mod settings;
mod start;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use api::Metrics;
use clap::{Parser, Subcommand};

use reload::Reload;
use settings::{Options, Settings};

/// What agents and visitors leave goes back to the system (docs/decisions, 0022).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A self-hosted tunnel service with its own certificate authority.
#[derive(Parser)]
#[command(
    version,
    after_help = "Every setting is taken from the flag, else from the environment, else from the TOML file \
                  (its keys are the long flags with `_` for `-`), else from the default.\n\n\
                  Examples:\n  \
                  api-server                                  serve from ./adit-data on 127.0.0.1:8080\n  \
                  api-server init --data-dir /var/lib/adit    make CA, database and admin key, and stop\n  \
                  api-server --config /etc/adit.toml          serve as the file says\n  \
                  api-server show-config                      what would be used, as TOML\n  \
                  api-server openapi > openapi.json           the API's description\n  \
                  api-server backup --to /backup/adit --data-dir /var/lib/adit\n                                              \
                  all that must not be lost, while it serves\n  \
                  api-server restore --from /backup/adit --data-dir /var/lib/adit\n                                              \
                  into a directory where nothing is yet\n  \
                  api-server reset-admin --data-dir /var/lib/adit\n                                              \
                  a new bundle for an admin who lost the key\n  \
                  api-server check --config /etc/adit.toml    what is still to be done before the first visitor comes\n\n\
                  Signals: SIGTERM and SIGINT finish what is in flight and stop, at the second one at once; SIGHUP reads \
                  certificates and the log's filter again.\n\n\
                  Exit status: 0 stopped as told, 1 could not start, failed, was told twice, or `check` found \
                  something that does not work, 2 wrong flags."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve,
    /// Make the data directory, the certificate authority and the first admin key, and stop
    Init,
    /// Look whether everything is ready for visitors; a server may be running, or none have been started yet
    ///
    /// Changes nothing. Each line is ok, warn or FAIL, with what to do about it; all are told within a few seconds.
    ///
    /// Exit status: 0 nothing failed, though there may be warnings, 1 something failed, 2 wrong flags.
    Check {
        /// Print one JSON document: {"checks": [{"name", "status", "detail", "remedy"}], "ok"}
        #[arg(long)]
        json: bool,
        /// Ask this one instead of the system's resolver
        #[arg(long, hide = true, value_name = "IP:PORT")]
        resolver: Option<SocketAddr>,
    },
    /// Print the settings that would be used, as TOML
    ShowConfig,
    /// Print the OpenAPI document
    Openapi,
    /// Copy everything that cannot be made again to a new directory; a server may be running
    Backup {
        /// The directory to make, such as /backup/adit-2026-11-30
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Put a backup into an empty data directory
    Restore {
        /// The directory that `backup` made
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Make the panel's admin a new bundle, and revoke the old one; a server may be running
    ResetAdmin {
        /// Leave nginx alone: whoever started this one tells it
        #[arg(long, hide = true)]
        files_only: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("api-server: error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let command = cli.command.unwrap_or(Command::Serve);
    if let Command::Openapi = command {
        return print(&api::openapi()).map(|()| ExitCode::SUCCESS);
    }
    if let Command::Check { json, resolver } = command {
        return check::check(&cli.options, resolver, json);
    }
    carry_out(&command, cli.options).map(|()| ExitCode::SUCCESS)
}

/// What either ends well or with an error.
fn carry_out(command: &Command, options: Options) -> anyhow::Result<()> {
    let settings = Settings::resolve(&options)?;
    match command {
        Command::ShowConfig => return print(&settings.to_toml()?),
        Command::Backup { to, json } => return backup::back_up(&settings, to, *json),
        Command::Restore { from, json } => return backup::restore(&settings, from, *json),
        _ => {}
    }
    let set_filter = logging::init(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        if let Command::ResetAdmin { files_only } = command {
            return panel::reset_admin(&settings, *files_only).await;
        }
        let reload = Reload::new(options, set_filter)?;
        let started = start::start(&settings).await?;
        if let Command::Init = command {
            return Ok(());
        }
        let panel = started.panel.as_ref().and_then(|served| served.certificate.clone());
        // It ends with the server.
        let mut tasks = tokio::task::JoinSet::new();
        let metrics = Arc::new(Metrics::new());
        tasks.spawn(reload.run(settings.clone(), started.edge.clone(), panel, Arc::clone(&metrics)));
        listeners::serve(started, &settings, metrics).await
    })
}

/// Whoever reads may have seen enough (`| head`): that is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
