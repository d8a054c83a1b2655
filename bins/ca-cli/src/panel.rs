//! `ca-cli panel`: what an admin does with a panel, from a shell. Here is who asks,
//! and how a list or a refusal looks; the commands stand in files beside this one.

mod admin;
mod agents;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use pki_core::pkcs12;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::commands::print_json;
use crate::panel_client::{Answer, Client, Identity, Trust};
use crate::text::{Columns, cell};
use crate::{files, p12, text};

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
  ca-cli panel enroll laptop --sites blog,docs --cert client.p12 --password-file pw -k
  ca-cli panel revoke laptop --url https://203.0.113.42:9292 --cert client.p12 -k
  ca-cli panel certs --json | jq '.certs[] | select(.expiringSoon)'
  ca-cli panel rotate --out new.p12 --cert client.p12 --password-file pw > new.password

Exit status: 0 done, 1 refused or failed, 2 wrong arguments.")]
enum Command {
    /// List the agents
    Agents,
    /// Make an agent with a key of the server's making, and fetch its bundle
    Bundle(agents::Bundle),
    /// Change what an agent may do, from its next request on
    Capabilities(agents::Capabilities),
    /// List the host's certificates, the one that ends first at the top
    Certs,
    /// Fetch the admin's bundle, or an agent's
    Download(admin::Download),
    /// Drop the token of an agent that has not enrolled yet
    DropToken(agents::Label),
    /// Make a token with which an agent enrols its own key, once and within ten minutes
    Enroll(agents::Enroll),
    /// Have certbot renew a certificate now
    Renew(admin::Renew),
    /// Revoke an agent's certificate, at once
    Revoke(agents::Label),
    /// Make the admin a new key, certificate and bundle; the old ones are revoked
    Rotate(admin::Rotate),
    /// Change the sites that an agent may use, from its next request on
    Sites(agents::Sites),
    /// Have a key of your own signed in place of the bundle: it never leaves your device
    Upgrade(admin::Upgrade),
}

pub(crate) fn run(panel: &Panel, json: bool) -> anyhow::Result<()> {
    let access = &panel.access;
    match &panel.command {
        Command::Agents => list(&access.client()?, "/api/certs/agent", "agents", AGENT, json),
        Command::Bundle(bundle) => bundle.run(access, json),
        Command::Capabilities(capabilities) => capabilities.run(access, json),
        Command::Certs => list(&access.client()?, "/api/certs", "certs", CERTIFICATE, json),
        Command::Download(download) => download.run(access, json),
        Command::DropToken(label) => agents::drop_token(access, label, json),
        Command::Enroll(enroll) => enroll.run(access, json),
        Command::Renew(renew) => renew.run(access, json),
        Command::Revoke(label) => agents::revoke(access, label, json),
        Command::Rotate(rotate) => rotate.run(access, json),
        Command::Sites(sites) => sites.run(access, json),
        Command::Upgrade(upgrade) => upgrade.run(access, json),
    }
}

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
    files::print(&text::table(columns, answer[field].as_array().map_or(&[], Vec::as_slice)))
}

impl Access {
    /// Who asks, and whom.
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
                let identity = Identity { chain, key: files::pkcs8_from_pem(&pem, key)? };
                ensure!(
                    identity.may_fit(),
                    "{} is not the key of the certificate {}",
                    key.display(),
                    certificate.display()
                );
                return Ok(identity);
            }
            (None, Some(bundle), None) => (bundle.clone(), self.password_file.clone()),
            (None, None, _) => bail!("who are you? give --cert FILE, or --pki-dir DIR on the panel's own host"),
        };
        if self.pki_dir.is_some() && !bundle.exists() {
            // An upgrade takes the bundle away; without client.crt this is another directory.
            let is_bound = bundle.with_file_name("client.crt").exists();
            return Err(NoBundle { path: bundle, is_bound }.into());
        }
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
    Ok(answered(client, method, path, body)?.body)
}

fn answered(client: &Client, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let answer = client.ask(method, path, body)?;
    if (200..300).contains(&answer.status) { Ok(answer) } else { Err(Refused::new(&answer).into()) }
}

/// `--pki-dir` names a directory without a bundle.
#[derive(Debug)]
pub(crate) struct NoBundle {
    path: PathBuf,
    is_bound: bool,
}

impl NoBundle {
    pub(crate) fn hint(&self) -> &'static str {
        if self.is_bound {
            "give --cert and --key of the admin's device; `api-server reset-admin` makes a bundle again"
        } else {
            "--pki-dir is DATA/pki of the server, or its setting pki_dir"
        }
    }
}

impl fmt::Display for NoBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.is_bound {
            write!(f, "{path} is not there: the admin's key is hardware-bound")
        } else {
            write!(f, "{path} is not there")
        }
    }
}

impl std::error::Error for NoBundle {}

/// What the panel says is wrong.
#[derive(Debug)]
pub(crate) struct Refused {
    status: u16,
    /// In one line.
    said: String,
}

impl Refused {
    fn new(answer: &Answer) -> Self {
        let error = cell(&answer.body["error"]);
        let mut said = if error == "-" { format!("the panel answered {}", answer.status) } else { error };
        for issue in answer.body["details"]["issues"].as_array().into_iter().flatten() {
            let path: Vec<_> = issue["path"].as_array().into_iter().flatten().map(cell).collect();
            said += &format!("; {}: {}", path.join("."), cell(&issue["message"]));
        }
        if let Some(details) = answer.body["details"].as_str() {
            said += &format!(": {}", cell(&details.into()));
        }
        Self { status: answer.status, said }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        let says = |text: &str| self.said.contains(text);
        Some(match self.status {
            403 if says("certificate required") => {
                "this certificate is not one that the panel made, or its time is over"
            }
            403 if says("revoked") => {
                "a rotation has replaced it, or it was taken back: use the new bundle, or `api-server reset-admin`"
            }
            403 if says("Agent label") => "this is for agents: leave --agent out to upgrade the admin",
            403 if says("scope") => "this is an agent's certificate: give --cert of an admin",
            404 if says("Agent certificate") => {
                "`ca-cli panel agents` lists those that there are; bundles are of active ones"
            }
            409 if says("enrollment token") => "`ca-cli panel drop-token LABEL` drops the one before",
            409 if says("Agent certificate") => "choose another label, or `ca-cli panel revoke LABEL` first",
            410 => "the admin's key is hardware-bound: `api-server reset-admin` on the server makes a bundle again",
            503 if says("Onboarding") => "set the panel up first: its panel.json says how far it is",
            _ => return None,
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl std::error::Error for Refused {}
