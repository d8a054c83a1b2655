//! Agents: made, enrolled, changed, revoked.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use super::admin::Bundled;
use super::{Access, ask, cell};
use crate::commands::print_json;
use crate::files;

/// What an agent is to be called and to be allowed.
#[derive(Args)]
struct Grant {
    /// What the agent is to be called: lower-case letters, digits and hyphens
    label: String,
    /// What it may do
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "tunnels:read")]
    capabilities: Vec<String>,
    /// Sites that it may use
    #[arg(long, value_name = "SITE,..", value_delimiter = ',')]
    sites: Vec<String>,
}

impl Grant {
    fn body(&self) -> Value {
        json!({"label": self.label, "capabilities": self.capabilities, "allowedSites": self.sites})
    }
}

#[derive(Args)]
#[command(after_help = "\
The token goes to standard output. The agent sends it with a request of its own:

Examples:
  ca-cli panel enroll laptop --pki-dir adit-data/pki
  ca-cli panel enroll build --sites blog,docs --json | jq -r .token")]
pub(super) struct Enroll {
    #[command(flatten)]
    grant: Grant,
}

#[derive(Args)]
#[command(after_help = "\
The password goes to standard output, once: the panel does not keep it.

Examples:
  ca-cli panel bundle laptop --pki-dir adit-data/pki > laptop.password
  ca-cli panel bundle phone --out phone.p12 --cert client.p12 --password-file pw -k")]
pub(super) struct Bundle {
    #[command(flatten)]
    grant: Grant,
    /// Where the bundle goes; never overwrites a file [default: LABEL.p12]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ca-cli panel revoke laptop --pki-dir adit-data/pki
  ca-cli panel drop-token laptop --pki-dir adit-data/pki")]
pub(super) struct Label {
    /// The agent's label
    label: String,
}

#[derive(Args)]
#[command(after_help = "\
The list takes the place of the one before. tunnels:read must be in it.

Examples:
  ca-cli panel capabilities laptop tunnels:read,sites:read --pki-dir adit-data/pki
  ca-cli panel capabilities laptop tunnels:read --cert client.p12 --password-file pw -k")]
pub(super) struct Capabilities {
    /// The agent's label
    label: String,
    /// All that it may do from now on
    #[arg(value_name = "NAME,..", value_delimiter = ',', required = true)]
    capabilities: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "\
The list takes the place of the one before.

Examples:
  ca-cli panel sites laptop blog,docs --pki-dir adit-data/pki
  ca-cli panel sites laptop --none --pki-dir adit-data/pki")]
pub(super) struct Sites {
    /// The agent's label
    label: String,
    /// All sites that it may use from now on
    #[arg(value_name = "SITE,..", value_delimiter = ',', required_unless_present = "none")]
    sites: Vec<String>,
    /// No site at all
    #[arg(long, conflicts_with = "sites")]
    none: bool,
}

impl Enroll {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let answer = ask(&access.client()?, "POST", "/api/certs/agent/enroll", Some(&self.grant.body()))?;
        if json {
            return print_json(&answer);
        }
        let (label, until) = (&self.grant.label, cell(&answer["expiresAt"]));
        files::print(&format!("{}\n", cell(&answer["token"])))?;
        eprintln!("the agent {label} may enrol with this token once, until {until}");
        Ok(())
    }
}

impl Bundle {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let client = access.client()?;
        let label = &self.grant.label;
        let path = format!("{}/download", path_of(label)?);
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from(format!("{label}.p12")));
        let bundle = Bundled::reserve(&out)?;
        let answer = ask(&client, "POST", "/api/certs/agent", Some(&self.grant.body()))?;
        bundle.fetch(&client, &path, answer, json)?;
        eprintln!("made the agent {label}; its bundle is in {}", out.display());
        Ok(())
    }
}

impl Capabilities {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let body = json!({"capabilities": self.capabilities});
        change(access, &self.label, "capabilities", &body, ("capabilities", "may do"), json)
    }
}

impl Sites {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let body = json!({"allowedSites": self.sites});
        change(access, &self.label, "allowed-sites", &body, ("allowedSites", "may use"), json)
    }
}

fn change(
    access: &Access,
    label: &str,
    what: &str,
    body: &Value,
    (field, verb): (&str, &str),
    json: bool,
) -> anyhow::Result<()> {
    let path = format!("{}/{what}", path_of(label)?);
    let answer = ask(&access.client()?, "PATCH", &path, Some(body))?;
    if json {
        return print_json(&answer);
    }
    let listed = cell(&answer[field]);
    let listed = if listed.is_empty() { "nothing" } else { &listed };
    eprintln!("from its next request on {label} {verb}: {listed}");
    Ok(())
}

pub(super) fn revoke(access: &Access, Label { label }: &Label, json: bool) -> anyhow::Result<()> {
    let answer = ask(&access.client()?, "DELETE", &path_of(label)?, None)?;
    if json {
        return print_json(&answer);
    }
    eprintln!("revoked {label}: its next request is refused");
    Ok(())
}

pub(super) fn drop_token(access: &Access, Label { label }: &Label, json: bool) -> anyhow::Result<()> {
    require_label(label)?;
    let answer = ask(&access.client()?, "DELETE", &format!("/api/certs/agent/enroll/{label}"), None)?;
    if json {
        return print_json(&answer);
    }
    let was_there = answer["revoked"] == true;
    eprintln!("{}", if was_there { format!("dropped the token of {label}") } else { format!("{label} has no token") });
    Ok(())
}

/// Where an agent is. What a path would take for something else is no label.
pub(super) fn path_of(label: &str) -> anyhow::Result<String> {
    require_label(label)?;
    Ok(format!("/api/certs/agent/{label}"))
}

fn require_label(label: &str) -> anyhow::Result<()> {
    let is_of_label = |octet: u8| octet.is_ascii_alphanumeric() || b"-:".contains(&octet);
    let is_label = !label.is_empty() && label.bytes().all(is_of_label);
    ensure!(is_label, "{label:?} is not a label: use lower-case letters, digits and hyphens");
    Ok(())
}
