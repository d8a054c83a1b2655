//! What an operator wants to know before the first visitor comes.
//!
//! Each check is a function that answers with what it found. All run at once, each within [`LIMIT`], and
//! are told in the order in which they stand here. Nothing is changed and no lock is taken, so that a server
//! may run meanwhile, or none may have been started yet.

mod authority;
mod caa;
mod host;
mod names;
mod ports;
mod records;
mod resolver;

use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pki_core::Time;
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::settings::acme::Issuer;
use crate::settings::{Options, Settings};
use resolver::Resolver;

/// How long a check may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long it waits for somebody else, so that it can say who was silent.
const PATIENCE: Duration = Duration::from_secs(4);
/// What is left of a certificate's life when somebody has to hear of it.
const SOON_DAYS: i64 = 14;

/// Everything that was found.
#[derive(Serialize)]
struct Report {
    checks: Vec<Finding>,
    ok: bool,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// The group and the thing, such as `dns.zone`.
    name: String,
    status: Status,
    detail: String,
    /// What to do about it.
    remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warn,
    Fail,
}

impl Finding {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Warn, remedy: Some(remedy.into()), ..Self::ok(name, detail) }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Fail, remedy: Some(remedy.into()), ..Self::ok(name, detail) }
    }

    /// The same, as no more than a warning.
    fn softened(self) -> Self {
        Self { status: if self.status == Status::Fail { Status::Warn } else { self.status }, ..self }
    }
}

/// Looks at everything, prints it, and says by the exit status whether something has failed.
pub(crate) fn check(options: &Options, resolver: Option<SocketAddr>, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let checks = match Settings::resolve(options) {
        Ok(settings) => runtime.block_on(all(settings, resolver)),
        Err(error) => vec![Finding::fail("settings.values", format!("{error:#}"), "change the setting that it names")],
    };
    // Whoever still waits for a disk or a resolver waits for nobody.
    runtime.shutdown_background();
    let report = Report { ok: checks.iter().all(|finding| finding.status != Status::Fail), checks };
    let text = if json { serde_json::to_string_pretty(&report)? + "\n" } else { report.to_string() };
    crate::print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn all(settings: Settings, resolver: Option<SocketAddr>) -> Vec<Finding> {
    let seen = Arc::new(Seen::new(settings, resolver));
    let with = || Arc::clone(&seen);
    let tasks = [
        ("settings", begin(host::settings(with()))),
        ("data", begin(host::data_directory(with()))),
        ("clock", begin(host::clock(with()))),
        ("server", begin(ports::server(with()))),
        ("ports", begin(ports::listeners(with()))),
        ("dns.zone", begin(names::zone(with()))),
        ("dns.server", begin(names::name_server(with()))),
        ("dns.delegation", begin(names::delegation(with()))),
        ("dns.caa", begin(caa::check(with()))),
        ("reach", begin(ports::reach(with()))),
        ("acme", begin(authority::check(with()))),
        ("acme.budget", begin(records::budget(with()))),
        ("certificates.zone", begin(ports::certificate(with()))),
        ("certificates.files", begin(host::pairs(with()))),
        ("certificates.record", begin(records::ends(with()))),
    ];
    let mut findings = Vec::new();
    for (name, task) in tasks {
        match task.await {
            Ok(Some(found)) => findings.extend(found),
            Ok(None) => findings.push(Finding::fail(
                name,
                format!("no end within {} s", LIMIT.as_secs()),
                "see why the disk, the resolver or the network is so slow, and check again",
            )),
            Err(error) => findings.push(Finding::fail(name, format!("{error}"), "tell the maintainers")),
        }
    }
    findings
}

/// `None` if it takes too long.
fn begin(check: impl Future<Output = Vec<Finding>> + Send + 'static) -> JoinHandle<Option<Vec<Finding>>> {
    tokio::spawn(async move { timeout(LIMIT, check).await.ok() })
}

/// What the checks look at, and what several want to know, which is asked for once.
struct Seen {
    settings: Settings,
    resolver: Resolver,
    /// A name below the zone that nobody has.
    probe: String,
    /// `None` without a public authority.
    client: Option<Result<acme::Client, String>>,
    directory: OnceCell<Result<acme::Directory, String>>,
    account: OnceCell<Result<Option<String>, String>>,
    server: OnceCell<Option<ports::Server>>,
    addresses: OnceCell<[Result<Vec<IpAddr>, String>; 2]>,
}

impl Seen {
    fn new(settings: Settings, resolver: Option<SocketAddr>) -> Self {
        let mut random = [0; 5];
        // No secret: without chance it is a name that a resolver may know already.
        let _ = getrandom::fill(&mut random);
        let probe = format!("check-{}.{}", base16ct::lower::encode_string(&random), settings.general.zone.0);
        let client = || crate::public::client(&settings, crate::start::passphrase()?);
        let client = (settings.acme.issuer == Issuer::Acme).then(|| client().map_err(|error| format!("{error:#}")));
        Self {
            settings,
            resolver: Resolver::new(resolver),
            probe,
            client,
            directory: OnceCell::new(),
            account: OnceCell::new(),
            server: OnceCell::new(),
            addresses: OnceCell::new(),
        }
    }

    fn zone(&self) -> &str {
        self.settings.general.zone.0.as_str()
    }

    fn is_public(&self) -> bool {
        self.settings.acme.issuer == Issuer::Acme
    }

    /// The client of the public authority, if there is one that can be used.
    fn client(&self) -> Option<&acme::Client> {
        self.client.as_ref()?.as_ref().ok()
    }

    /// What the public authority offers; `None` if none is set.
    async fn directory(&self) -> Option<Result<&acme::Directory, &str>> {
        let client = match self.client.as_ref()? {
            Ok(client) => client,
            Err(error) => return Some(Err(error)),
        };
        let ask = async {
            match timeout(PATIENCE, client.directory()).await {
                Ok(answer) => answer.map_err(|error| in_words(&error)),
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            }
        };
        Some(self.directory.get_or_init(|| ask).await.as_ref().map_err(String::as_str))
    }

    /// The URI of our account there, if there is one already.
    async fn account(&self) -> Result<Option<&str>, &str> {
        let Some(client) = self.client() else { return Ok(None) };
        let look = async { client.stored_account().await.map_err(|error| in_words(&error)) };
        self.account.get_or_init(|| look).await.as_ref().map(Option::as_deref).map_err(String::as_str)
    }

    /// The server that runs with these settings, as far as its metrics port says.
    async fn server(&self) -> Option<&ports::Server> {
        self.server.get_or_init(|| ports::ask_server(&self.settings)).await.as_ref()
    }

    /// The addresses of the zone and of the probe.
    async fn addresses(&self) -> &[Result<Vec<IpAddr>, String>; 2] {
        let ask = async {
            let (zone, probe) =
                tokio::join!(self.resolver.addresses(self.zone()), self.resolver.addresses(&self.probe));
            [zone, probe]
        };
        self.addresses.get_or_init(|| ask).await
    }
}

/// An error with its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Days from now until then, less than none if it is over.
fn days_until(end: Time) -> i64 {
    (end.unix() - crate::reload::now().unix()).div_euclid(86_400)
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// What others have said may have lines, and worse for a terminal.
fn one_line(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut before = "";
        for Finding { name, status, detail, remedy } in &self.checks {
            let (group, what) = name.split_once('.').unwrap_or((name, "all"));
            if group != before {
                writeln!(f, "{group}")?;
                before = group;
            }
            let word = match status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "FAIL",
            };
            writeln!(f, "  {word:<4}  {what}: {}", one_line(detail))?;
            if let Some(remedy) = remedy {
                writeln!(f, "        -> {}", one_line(remedy))?;
            }
        }
        let count = |status| self.checks.iter().filter(|finding| finding.status == status).count();
        let (failed, warned) = (count(Status::Fail), count(Status::Warn));
        f.write_char('\n')?;
        writeln!(f, "{} ok, {warned} to look at, {failed} failed", count(Status::Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_grouped_and_says_what_to_do() {
        let checks = vec![
            Finding::ok("dns.zone", "leads here"),
            Finding::warn("dns.caa", "not\n\u{1b}seen", "ask again"),
            Finding::fail("acme", "no end", "wait"),
        ];
        let report = Report { ok: false, checks };
        let wanted = "dns\n  ok    zone: leads here\n  warn  caa: not seen\n        -> ask again\n\
                      acme\n  FAIL  all: no end\n        -> wait\n\n1 ok, 1 to look at, 1 failed\n";
        assert_eq!(report.to_string(), wanted);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(
            json["checks"][0],
            serde_json::json!({"name": "dns.zone", "status": "ok", "detail": "leads here", "remedy": null})
        );
        assert_eq!(json["checks"][2]["status"], "fail");
    }
}
