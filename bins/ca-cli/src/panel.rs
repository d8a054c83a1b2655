//! `ca-cli panel`: what an admin does with a panel, from a shell.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use pki_core::pkcs12;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::commands::print_json;
use crate::panel_client::{Answer, Client, Identity, Trust};
use crate::{files, p12};

#[derive(Args)]
pub(crate) struct Panel {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    access: Access,
}

/// Where the panel is, and who asks.
#[derive(Args)]
struct Access {
    /// Where the panel is
    #[arg(long, global = true, value_name = "URL", env = "ADIT_PANEL_URL", default_value = "https://127.0.0.1:9292")]
    url: String,
    /// On the panel's own host: its directory, with the admin's bundle and the server's certificate
    #[arg(long, global = true, value_name = "DIR", env = "ADIT_PKI_DIR", conflicts_with_all = ["cert", "key"])]
    pki_dir: Option<PathBuf>,
    /// The admin's certificate: a PKCS #12 bundle, or PEM with --key
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_CERT")]
    cert: Option<PathBuf>,
    /// The private key of a certificate in PEM: PKCS #8, not encrypted
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_KEY")]
    key: Option<PathBuf>,
    /// The bundle's password is the first line of this file [default: ADIT_P12_PASSWORD]
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Trust a server that shows exactly this certificate, or one that this authority issued
    #[arg(long, global = true, value_name = "FILE", env = "ADIT_PANEL_SERVER_CERT")]
    server_cert: Option<PathBuf>,
    /// Do not look at the server's certificate: whoever answers learns what you ask
    #[arg(long, short = 'k', global = true, conflicts_with = "server_cert")]
    insecure: bool,
}

#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  ca-cli panel agents --pki-dir adit-data/pki
  ca-cli panel enroll laptop --capabilities tunnels:read,sites:read --cert client.p12 --password-file pw -k
  ca-cli panel revoke laptop --url https://203.0.113.42:9292 --cert client.p12 --server-cert panel.pem
  ca-cli panel certs --json | jq '.certs[] | select(.expiringSoon)'")]
enum Command {
    /// List the agents
    Agents,
    /// List the host's certificates, the one that ends first at the top
    Certs,
    /// Make a token with which an agent enrols its own key, once and within ten minutes
    Enroll(Enroll),
    /// Revoke an agent's certificate, at once
    Revoke(Revoke),
}

#[derive(Args)]
struct Enroll {
    /// What the agent is to be called: lower-case letters, digits and hyphens
    label: String,
    /// What it may do
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "tunnels:read")]
    capabilities: Vec<String>,
    /// Sites that it may use
    #[arg(long, value_name = "SITE,..", value_delimiter = ',')]
    sites: Vec<String>,
}

#[derive(Args)]
struct Revoke {
    /// The agent's label
    label: String,
}

pub(crate) fn run(panel: &Panel, json: bool) -> anyhow::Result<()> {
    let client = panel.access.client()?;
    match &panel.command {
        Command::Agents => list(&client, "/api/certs/agent", "agents", AGENT, json),
        Command::Certs => list(&client, "/api/certs", "certs", CERTIFICATE, json),
        Command::Enroll(enroll) => self::enroll(&client, enroll, json),
        Command::Revoke(revoke) => self::revoke(&client, revoke, json),
    }
}

/// Fields that a list shows, with their titles.
type Columns = &'static [(&'static str, &'static str)];

const AGENT: Columns = &[
    ("label", "LABEL"),
    ("status", "STATUS"),
    ("enrollmentMethod", "KEY"),
    ("expiresAt", "EXPIRES"),
    ("capabilities", "CAPABILITIES"),
];
const CERTIFICATE: Columns =
    &[("type", "TYPE"), ("domain", "NAME"), ("daysUntilExpiry", "DAYS"), ("expiresAt", "EXPIRES"), ("path", "PATH")];

fn list(client: &Client, path: &str, field: &str, columns: Columns, json: bool) -> anyhow::Result<()> {
    let answer = ask(client, "GET", path, None)?;
    if json {
        return print_json(&answer);
    }
    let empty = Vec::new();
    let rows = answer[field].as_array().unwrap_or(&empty);
    let cells = |row: &Value| columns.iter().map(|(field, _)| cell(&row[*field])).collect::<Vec<_>>();
    let mut lines = vec![columns.iter().map(|(_, title)| (*title).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let text = lines.iter().map(|line| {
        let line: String = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        format!("{}\n", line.trim_end())
    });
    files::print(&text.collect::<String>())
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    // What another wrote must not steer the terminal.
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

fn enroll(client: &Client, enroll: &Enroll, json: bool) -> anyhow::Result<()> {
    let body = json!({"label": enroll.label, "capabilities": enroll.capabilities, "allowedSites": enroll.sites});
    let answer = ask(client, "POST", "/api/certs/agent/enroll", Some(&body))?;
    if json {
        return print_json(&answer);
    }
    files::print(&format!("{}\n", cell(&answer["token"])))?;
    eprintln!("the agent {} may enrol with this token once, until {}", enroll.label, cell(&answer["expiresAt"]));
    Ok(())
}

fn revoke(client: &Client, revoke: &Revoke, json: bool) -> anyhow::Result<()> {
    let label = &revoke.label;
    // What a path would take for something else is no label.
    let is_label = |octet: u8| octet.is_ascii_alphanumeric() || b"-:".contains(&octet);
    ensure!(label.bytes().all(is_label), "{label:?} is not a label: use lower-case letters, digits and hyphens");
    let answer = ask(client, "DELETE", &format!("/api/certs/agent/{label}"), None)?;
    if json {
        return print_json(&answer);
    }
    eprintln!("revoked {label}: its next request is refused");
    Ok(())
}

impl Access {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.url, self.identity()?, self.trust()?)
    }

    fn identity(&self) -> anyhow::Result<Identity> {
        let (bundle, password_file) = match (&self.pki_dir, &self.cert, &self.key) {
            (Some(directory), ..) => (directory.join("client.p12"), Some(directory.join(".p12-password"))),
            (None, Some(certificate), Some(key)) => {
                let pem = Zeroizing::new(files::read(key)?);
                let chain = pki_core::certificates_from_file(&files::read(certificate)?)
                    .with_context(|| format!("cannot use {}", certificate.display()))?;
                return Ok(Identity { chain, key: files::pkcs8_from_pem(&pem, key)? });
            }
            (None, Some(bundle), None) => (bundle.clone(), self.password_file.clone()),
            (None, None, _) => bail!("who are you? give --cert FILE, or --pki-dir DIR on the panel's own host"),
        };
        let password = p12::password(password_file.as_deref())?.unwrap_or_default();
        let contents = pkcs12::open(&files::read(&bundle)?, &password)
            .with_context(|| format!("cannot open {}", bundle.display()))?;
        let [key] = contents.private_keys.as_slice() else { bail!("{} has not one private key", bundle.display()) };
        // The certificate of the key comes first; the authorities follow.
        let mut chain = contents.certificates;
        chain.sort_by_key(|certificate| certificate.local_key_id.is_none());
        let chain = chain.into_iter().map(|certificate| certificate.der).collect();
        Ok(Identity { chain, key: Zeroizing::new(key.pkcs8_der().to_vec()) })
    }

    fn trust(&self) -> anyhow::Result<Trust> {
        let own = self.pki_dir.as_ref().map(|directory| directory.join("self-signed.pem"));
        match (&self.server_cert, own) {
            _ if self.insecure => Ok(Trust::Anybody),
            (Some(path), _) => trusted(path),
            (None, Some(path)) if path.exists() => trusted(&path),
            (None, _) => Ok(Trust::System),
        }
    }
}

fn trusted(path: &std::path::Path) -> anyhow::Result<Trust> {
    let certificates = pki_core::certificates_from_file(&files::read(path)?);
    Ok(Trust::Only(certificates.with_context(|| format!("cannot use {}", path.display()))?))
}

/// The answer to a request, if it is a good one.
fn ask(client: &Client, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let Answer { status, body } = client.ask(method, path, body)?;
    if (200..300).contains(&status) { Ok(body) } else { bail!(complaint(status, &body)) }
}

/// What the panel says is wrong, in one line.
fn complaint(status: u16, answer: &Value) -> String {
    let error = cell(&answer["error"]);
    let mut said = if error == "-" { format!("the panel answered {status}") } else { error };
    for issue in answer["details"]["issues"].as_array().into_iter().flatten() {
        let path: Vec<_> = issue["path"].as_array().into_iter().flatten().map(cell).collect();
        said += &format!("; {}: {}", path.join("."), cell(&issue["message"]));
    }
    said
}
