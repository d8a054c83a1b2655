//! The certificates of this host: certbot's and the panel's own, when they
//! end, and their renewal.

use std::path::Path;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use pki_core::Certificate;
use serde::Serialize;

use crate::authority::timestamp;
use crate::directory::{CA_CERTIFICATE, CLIENT_CERTIFICATE};
use crate::panel::Panel;
use crate::programs::{Nginx, Programs, excerpt};
use crate::state::milliseconds;

/// A certificate as the list has it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Whose it is.
    pub r#type: ListedType,
    /// certbot's name for it.
    pub domain: Option<String>,
    /// RFC 3339; `null` if it cannot be read.
    pub expires_at: Option<String>,
    /// Whole days from now, rounded down.
    pub days_until_expiry: i64,
    /// Where it lies.
    pub path: String,
    /// 30 days or less.
    pub expiring_soon: bool,
}

/// Whose certificate it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListedType {
    /// One that certbot keeps.
    #[serde(rename = "letsencrypt")]
    LetsEncrypt,
    /// The panel's authority.
    MtlsCa,
    /// The admin's.
    MtlsClient,
}

/// When certificates are renewed by themselves.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoRenewal {
    /// Does a timer of certbot run?
    pub active: bool,
    /// RFC 3339.
    pub next_run: Option<String>,
    /// RFC 3339.
    pub last_run: Option<String>,
}

/// A renewal that worked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Renewed {
    /// The new certificate's notAfter, if it can be read.
    pub expires_at: Option<Timestamp>,
    /// What nginx said.
    pub nginx: Nginx,
}

/// A renewal that did not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotRenewed {
    /// certbot said no; the text is for a person.
    Failed(String),
    /// certbot has no such certificate.
    NotFound,
}

const DAY_MILLIS: i64 = 86_400_000;
/// Certificates that are listed; a host has tens.
const MAX_LINEAGES: usize = 10_000;

/// Days from now, rounded down; negative when it is over.
pub(crate) fn days_until(expires_at: Timestamp, now: Timestamp) -> i64 {
    (expires_at.as_millisecond() - now.as_millisecond()).div_euclid(DAY_MILLIS)
}

/// 30 days or less.
pub(crate) fn is_soon(days: i64) -> bool {
    days <= 30
}

impl Panel {
    /// All certificates, the one that ends first at the beginning.
    ///
    /// A source that cannot be read is logged and left out.
    pub async fn certificates(&self) -> Vec<Listed> {
        let now = self.now();
        let mut listed = lineages(self.programs(), now).await;
        for (r#type, name) in [(ListedType::MtlsCa, CA_CERTIFICATE), (ListedType::MtlsClient, CLIENT_CERTIFICATE)] {
            let path = self.paths().at(name);
            match not_after(&path) {
                Ok(expires_at) => listed.push(Listed::new(r#type, None, Some(expires_at), &path, now)),
                Err(error) => tracing::warn!(path = %path.display(), error, "a certificate is left out of the list"),
            }
        }
        listed.sort_by_key(|listed| listed.days_until_expiry);
        listed
    }

    /// Has certbot renew a certificate now, and nginx load it.
    ///
    /// # Errors
    ///
    /// [`NotRenewed`]; what certbot has is as it was.
    pub async fn renew(&self, domain: &str) -> Result<Renewed, NotRenewed> {
        if !is_domain(domain) {
            return Err(NotRenewed::NotFound);
        }
        let programs = self.programs();
        let configuration = programs.letsencrypt().join("renewal").join(format!("{domain}.conf"));
        // "not found" in what certbot says may be about a program; the file tells.
        if matches!(configuration.try_exists(), Ok(false)) {
            return Err(NotRenewed::NotFound);
        }
        let failed = |text: String| {
            tracing::warn!(domain, reason = text, "a certificate was not renewed");
            Err(NotRenewed::Failed(text))
        };
        // Also after a kill, or a certbot that changes files and then fails.
        self.mark_reload().await;
        match programs.renew(domain).await {
            Ok(output) if output.status.success() => {}
            Ok(output) if output.stderr.contains("No certificate found with name") => return Err(NotRenewed::NotFound),
            Ok(output) => return failed(excerpt(&output.stderr)),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                return failed("certbot did not end in time and was stopped".to_owned());
            }
            Err(error) => return failed(format!("certbot cannot be started: {}", error.kind())),
        }
        let path = programs.letsencrypt().join("live").join(domain).join("fullchain.pem");
        let expires_at = match not_after(&path) {
            Ok(expires_at) => Some(expires_at),
            Err(error) => {
                // certbot keeps its directories to root, and tells what is in them.
                let told = told_end(programs, domain, self.now()).await;
                if told.is_none() {
                    tracing::warn!(path = %path.display(), error, "cannot read the renewed certificate");
                }
                told
            }
        };
        tracing::info!(domain, "renewed a certificate");
        Ok(Renewed { expires_at, nginx: self.tell_nginx().await })
    }

    /// Does a timer renew certificates, and when?
    pub async fn auto_renewal(&self) -> AutoRenewal {
        for timer in ["certbot.timer", "certbot-renew.timer"] {
            let is_active = self.programs().systemctl_says(&["is-active", timer]).await;
            if !is_active.is_ok_and(|output| output.stdout.trim() == "active") {
                continue;
            }
            let properties = "--property=NextElapseUSecRealtime,LastTriggerUSec";
            let shown = self.programs().systemctl_says(&["show", timer, properties]).await;
            let shown = shown.map(|output| output.stdout).unwrap_or_default();
            let property = |name: &str| {
                let line = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
                line.and_then(systemd_time).map(milliseconds)
            };
            return AutoRenewal {
                active: true,
                next_run: property("NextElapseUSecRealtime"),
                last_run: property("LastTriggerUSec"),
            };
        }
        AutoRenewal::default()
    }
}

/// A host name of two labels or more, in lower case.
pub(crate) fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_label)
}

impl Listed {
    fn new(
        r#type: ListedType,
        domain: Option<String>,
        expires_at: Option<Timestamp>,
        path: &Path,
        now: Timestamp,
    ) -> Self {
        let days = expires_at.map_or(0, |expires_at| days_until(expires_at, now));
        Self {
            r#type,
            domain,
            expires_at: expires_at.map(milliseconds),
            days_until_expiry: days,
            path: path.display().to_string(),
            expiring_soon: is_soon(days),
        }
    }
}

/// What certbot keeps: from its directory, else as it says itself.
///
/// Its own listing takes its lock, so that it fails while a renewal runs, and
/// asks servers about revocation.
async fn lineages(programs: &Programs, now: Timestamp) -> Vec<Listed> {
    let live = programs.letsencrypt().join("live");
    let from_directory = {
        let live = live.clone();
        tokio::task::spawn_blocking(move || read_live(&live, now)).await
    };
    let names = match from_directory {
        Ok(Ok(Live { listed, is_closed: false })) => return listed,
        // Names without dates are better than nothing.
        Ok(Ok(Live { listed, is_closed: true })) => listed,
        Ok(Err(error)) => {
            tracing::debug!(path = %live.display(), %error, "asking certbot for its certificates");
            Vec::new()
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot list certificates");
            Vec::new()
        }
    };
    told(programs, now).await.filter(|told| !told.is_empty()).unwrap_or(names)
}

/// What certbot says that it has; `None` if it does not say.
async fn told(programs: &Programs, now: Timestamp) -> Option<Vec<Listed>> {
    match programs.list().await {
        Ok(output) if output.status.success() => return Some(parse_listing(&output.stdout, now)),
        Ok(output) => {
            tracing::warn!(status = %output.status, stderr = excerpt(&output.stderr), "certbot does not list certificates");
        }
        // A host without certbot has no certificates of certbot's.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "certbot does not list certificates");
        }
    }
    None
}

/// The end of a certificate as certbot says it.
async fn told_end(programs: &Programs, name: &str, now: Timestamp) -> Option<Timestamp> {
    let listed = told(programs, now).await?;
    let listed = listed.into_iter().find(|listed| listed.domain.as_deref() == Some(name))?;
    listed.expires_at?.parse().ok()
}

/// What `live` has.
struct Live {
    listed: Vec<Listed>,
    /// Certificates in it may not be read.
    is_closed: bool,
}

fn read_live(live: &Path, now: Timestamp) -> std::io::Result<Live> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(live)?.take(MAX_LINEAGES) {
        let entry = entry?;
        // certbot's README lies there, too.
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_dir()
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    let is_closed = names.iter().any(|name| {
        let opened = std::fs::File::open(live.join(name).join("fullchain.pem"));
        opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    });
    let listed = names.into_iter().map(|name| {
        let path = live.join(&name).join("fullchain.pem");
        let expires_at = not_after(&path)
            .inspect_err(|error| tracing::warn!(path = %path.display(), error, "a certificate cannot be read"))
            .ok();
        Listed::new(ListedType::LetsEncrypt, Some(name), expires_at, &path, now)
    });
    Ok(Live { listed: listed.collect(), is_closed })
}

/// The end of a file's first certificate.
fn not_after(path: &Path) -> Result<Timestamp, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let certificates = pki_core::certificates_from_file(&text).map_err(|error| error.to_string())?;
    let first = certificates.first().ok_or("no certificate")?;
    Certificate::from_der(first)
        .map(|certificate| timestamp(certificate.not_after()))
        .map_err(|error| error.to_string())
}

/// Reads `certbot certificates`.
fn parse_listing(stdout: &str, now: Timestamp) -> Vec<Listed> {
    let blocks = stdout.split("Certificate Name:").skip(1);
    let listed = blocks.filter_map(|block| {
        let name = block.lines().next()?.trim().to_owned();
        let field = |label: &str| block.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
        let path = field("Certificate Path:")?;
        let expires_at = field("Expiry Date:").and_then(certbot_time);
        Some(Listed::new(ListedType::LetsEncrypt, Some(name), expires_at, Path::new(path), now))
    });
    listed.collect()
}

/// `2026-06-11 00:00:00+00:00 (VALID: 89 days)`, or the date alone.
fn certbot_time(text: &str) -> Option<Timestamp> {
    let mut words = text.split_whitespace();
    let date: Date = words.next()?.parse().ok()?;
    match words.next().filter(|word| !word.starts_with('(')) {
        Some(time) => format!("{date}T{time}").parse().ok(),
        None => date.to_zoned(TimeZone::UTC).ok().map(|midnight| midnight.timestamp()),
    }
}

/// `Sat 2026-03-14 03:00:00 UTC`, `@1773457200`; nothing for `n/a` and `0`.
fn systemd_time(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    if let Some(seconds) = text.strip_prefix('@') {
        return Timestamp::from_second(seconds.split('.').next()?.parse().ok()?).ok().filter(|at| at.as_second() > 0);
    }
    let words: Vec<_> = text.split_whitespace().collect();
    let [.., date, time, "UTC" | "GMT"] = words.as_slice() else { return None };
    let at: DateTime = format!("{date}T{time}").parse().ok()?;
    at.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn days_are_whole() {
        let now = at("2026-03-13T12:00:00Z");
        for (expires_at, days) in [
            ("2026-03-13T12:00:00Z", 0),
            ("2026-03-14T11:59:59Z", 0),
            ("2026-03-14T12:00:00Z", 1),
            ("2026-03-13T11:59:59Z", -1),
            ("2028-03-12T11:59:59Z", 729),
        ] {
            assert_eq!(days_until(at(expires_at), now), days, "{expires_at}");
        }
        assert!(is_soon(30) && is_soon(-1) && !is_soon(31));
    }

    #[test]
    fn the_listing_of_certbot_is_read() {
        let stdout = "\
Found the following certs:
  Certificate Name: app.example.com
    Serial Number: 4b1
    Key Type: ECDSA
    Identifiers: app.example.com
    Expiry Date: 2026-06-11 00:00:00+00:00 (VALID: 89 days)
    Certificate Path: /etc/letsencrypt/live/app.example.com/fullchain.pem
    Private Key Path: /etc/letsencrypt/live/app.example.com/privkey.pem
  Certificate Name: old.example.com-0001
    Domains: old.example.com
    Expiry Date: 2026-03-01 (INVALID: EXPIRED)
    Certificate Path: /etc/letsencrypt/live/old.example.com-0001/fullchain.pem
  Certificate Name: odd.example.com
    Expiry Date: soon
    Certificate Path: /odd
";
        let listed = parse_listing(stdout, at("2026-03-13T00:00:00Z"));
        let told: Vec<_> = listed
            .iter()
            .map(|one| (one.domain.as_deref().unwrap_or_default(), one.expires_at.as_deref(), one.days_until_expiry))
            .collect();
        assert_eq!(
            told,
            [
                ("app.example.com", Some("2026-06-11T00:00:00.000Z"), 90),
                ("old.example.com-0001", Some("2026-03-01T00:00:00.000Z"), -12),
                ("odd.example.com", None, 0),
            ]
        );
        assert!(listed[2].expiring_soon);
        assert!(parse_listing("No certificates found.\n", Timestamp::UNIX_EPOCH).is_empty());
    }

    #[test]
    fn times_of_systemd_are_read() {
        assert_eq!(systemd_time("Sat 2026-03-14 03:00:00 UTC"), Some(at("2026-03-14T03:00:00Z")));
        assert_eq!(systemd_time("@1773457200"), Some(at("2026-03-14T03:00:00Z")));
        for nothing in ["", "0", "n/a", "@0", "Sat 2026-03-14 03:00:00 CET", "soon"] {
            assert_eq!(systemd_time(nothing), None, "{nothing}");
        }
    }
}
