//! `ca-cli certificates`: what a server has issued for public hosts, and what ends soon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::{Credential, Rest, Trust};
use anyhow::{Context as _, bail};
use clap::Args;
use http::{Method, Uri};
use serde_json::{Value, json};

use crate::commands::{now, print_json};
use crate::{files, text};

#[derive(Args)]
#[command(after_help = "\
Examples:
  ca-cli certificates                                  all that a server beside us has on record
  ca-cli certificates --expires-within 14              what ends in the next two weeks
  ca-cli certificates --host my-agent.example.net --json | jq '.certificates[].serial'
  ca-cli certificates --server https://example.net --api-key-file admin-api-key --serial 4f:a1:…

Exit status: 0 done, 1 refused or failed, 2 wrong arguments.")]
pub(crate) struct Certificates {
    /// The server: https://ZONE, or its plain API port on this machine
    #[arg(long, value_name = "URL", env = "ADIT_SERVER", default_value = "http://127.0.0.1:8080")]
    server: Uri,
    /// File with the API key [default: ADIT_API_KEY, else ./adit-data/admin-api-key]
    #[arg(long, value_name = "FILE", env = "ADIT_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// PEM file of the root to trust instead of the system's [default: ./adit-data/ca/root.crt, if it is there]
    #[arg(long, value_name = "FILE", env = "ADIT_CA")]
    server_ca: Option<PathBuf>,
    /// Only those for this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Only those with this serial number, hex
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// Only the one with this SHA-256, hex
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Only those of the tunnel with this UUID, which may be gone
    #[arg(long, value_name = "UUID")]
    tunnel: Option<String>,
    /// Only those of this issuer: private or acme
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
    /// Only those that were revoked (true), or were not (false)
    #[arg(long, value_name = "BOOL")]
    revoked: Option<bool>,
    /// Only those that end before this time, such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "expires_within")]
    expires_before: Option<String>,
    /// Only those that end from now to so many days on
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(..=36_500))]
    expires_within: Option<u32>,
}

/// Records that are asked for at once.
const PAGE: &str = "1000";

const COLUMNS: text::Columns = &[
    ("host", "HOST"),
    ("issuer", "ISSUER"),
    ("not_after", "ENDS"),
    ("issued_at", "ISSUED"),
    ("tunnel_id", "TUNNEL"),
    ("serial", "SERIAL"),
];

pub(crate) fn run(certificates: &Certificates, json: bool) -> anyhow::Result<()> {
    let rest = certificates.rest()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let found = runtime.block_on(all(&rest, &certificates.query()))?;
    if json {
        return print_json(&json!({ "certificates": found }));
    }
    files::print(&text::table(COLUMNS, &found))
}

async fn all(rest: &Rest, query: &[(&'static str, String)]) -> anyhow::Result<Vec<Value>> {
    let (mut found, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut encoded = form_urlencoded::Serializer::new(String::new());
        encoded.extend_pairs(query).append_pair("limit", PAGE);
        if let Some(cursor) = &cursor {
            encoded.append_pair("cursor", cursor);
        }
        let path = format!("/api/v1/certificates?{}", encoded.finish());
        let mut page = rest.call(Method::GET, &path, None).await.context("cannot list the certificates")?;
        let Value::Array(records) = page["certificates"].take() else {
            bail!("the server's answer has no list of certificates: is it older than this program?");
        };
        found.extend(records);
        match page["next_cursor"].take() {
            Value::String(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => return Ok(found),
        }
    }
}

impl Certificates {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query: Vec<_> = [
            ("host", &self.host),
            ("serial", &self.serial),
            ("fingerprint", &self.fingerprint),
            ("tunnel_id", &self.tunnel),
            ("issuer", &self.issuer),
            ("expires_before", &self.expires_before),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect();
        if let Some(revoked) = self.revoked {
            query.push(("revoked", revoked.to_string()));
        }
        if let Some(days) = self.expires_within {
            let now = now();
            let end = now.plus(Duration::from_secs(u64::from(days) * 24 * 60 * 60));
            query.extend([("expires_after", now.to_string()), ("expires_before", end.to_string())]);
        }
        query
    }

    fn rest(&self) -> anyhow::Result<Rest> {
        /// Where a server that was started beside us keeps these.
        const LOCAL_KEY: &str = "adit-data/admin-api-key";
        const LOCAL_ROOT: &str = "adit-data/ca/root.crt";

        let local = |path: &str| Some(PathBuf::from(path)).filter(|path| path.exists());
        let key = match (&self.api_key_file, std::env::var("ADIT_API_KEY")) {
            (Some(path), _) => first_line(path)?,
            (None, Ok(key)) => key,
            (None, Err(_)) => match local(LOCAL_KEY) {
                Some(path) => first_line(&path)?,
                None => bail!("there is no API key: set ADIT_API_KEY, or name its file with --api-key-file"),
            },
        };
        let trust = match self.server_ca.clone().or_else(|| local(LOCAL_ROOT)) {
            Some(path) => Trust::from_file(&path).with_context(|| format!("cannot use {}", path.display()))?,
            None => Trust::of_system()?,
        };
        Ok(Rest::new(self.server.clone(), Credential::ApiKey(key), Some(trust))?)
    }
}

fn first_line(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    Ok(text.with_context(|| format!("cannot read the API key from {}", path.display()))?.trim().to_owned())
}
