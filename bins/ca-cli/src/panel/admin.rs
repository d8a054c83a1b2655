//! The admin's own certificate, and those of the host.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use ca_dir::KeyAlgorithm;
use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::agents::path_of;
use super::{Access, Client, answered, ask, cell};
use crate::commands::print_json;
use crate::files::{self, Output};

#[derive(Args)]
#[command(after_help = "\
The new password goes to standard output. For ten minutes, or until the new certificate is
used, the old one may still fetch the new bundle, and nothing else; --out does so at once.

Examples:
  ca-cli panel rotate --pki-dir adit-data/pki > /dev/null       the directory has the new ones
  ca-cli panel rotate --out new.p12 --cert client.p12 --password-file pw > new.password")]
pub(super) struct Rotate {
    /// Fetch the new bundle, too; never overwrites a file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ca-cli panel download --cert client.p12 --password-file pw --out client-new.p12
  ca-cli panel download laptop --pki-dir adit-data/pki           makes laptop.p12
  ca-cli panel download laptop --out - | ca-cli p12 inspect --password-file laptop.password")]
pub(super) struct Download {
    /// An agent whose key the server made; without one it is the admin's bundle
    label: Option<String>,
    /// Where the bundle goes, - for standard output; never overwrites a file [default: client.p12 or LABEL.p12]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "\
The panel then has no bundle and no key of the admin's any more; what could authenticate
before is revoked. `api-server reset-admin` on the server is the way back.

Examples:
  ca-cli panel upgrade --pki-dir adit-data/pki                   makes admin.key and admin.crt
  ca-cli panel upgrade --csr token.csr --out admin.crt --cert client.p12 --password-file pw
  ca-cli panel upgrade --agent --out laptop.crt --cert laptop.p12 --password-file pw")]
pub(super) struct Upgrade {
    /// The private key to be signed: used if it exists, made if not [default: admin.key, or agent.key]
    #[arg(long, value_name = "FILE", conflicts_with = "csr")]
    new_key: Option<PathBuf>,
    /// A request in PEM instead, of a key in a token or another device
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// Kind of a new key: p256, p384, ed25519, rsa2048, rsa3072, rsa4096
    #[arg(long, value_name = "KIND", default_value = "p256")]
    algorithm: KeyAlgorithm,
    /// Where the certificate goes [default: admin.crt, or agent.crt]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The certificate that asks is an agent's: its own is replaced
    #[arg(long)]
    agent: bool,
    /// Write the certificate over a file with a private key or over an input
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  ca-cli panel renew app.example.com --pki-dir adit-data/pki")]
pub(super) struct Renew {
    /// What certbot calls the certificate; `ca-cli panel certs` lists them
    name: String,
}

impl Rotate {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let client = access.client()?;
        let bundle = self.out.as_deref().map(Bundled::reserve).transpose()?;
        let answer = ask(&client, "POST", "/api/certs/mtls/rotate", None)?;
        // What nginx said, if anything, is in the warning after the first sentences, which are for browsers.
        let warning = cell(&answer["warning"]);
        let note = warning.split_once(" Note: ").map(|(_, note)| note.to_owned());
        match (bundle, &self.out) {
            (Some(bundle), Some(out)) => {
                bundle.fetch(&client, DOWNLOAD, answer, json)?;
                eprintln!("the admin's certificate is rotated; the new bundle is in {}", out.display());
            }
            _ => {
                print_password(&answer, json)?;
                match &access.pki_dir {
                    Some(directory) => {
                        let bundle = directory.join("client.p12");
                        eprintln!("the admin's certificate is rotated; the new bundle is {}", bundle.display());
                    }
                    None => {
                        eprintln!("the admin's certificate is rotated; fetch the new bundle within ten minutes:");
                        eprintln!("  ca-cli panel download --out FILE, with the certificate that asked for this");
                    }
                }
            }
        }
        if let Some(note) = note {
            eprintln!("warning: {note}");
        }
        Ok(())
    }
}

impl Download {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let (path, name) = match &self.label {
            Some(label) => (format!("{}/download", path_of(label)?), format!("{label}.p12")),
            None => (DOWNLOAD.to_owned(), "client.p12".to_owned()),
        };
        let client = access.client()?;
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from(name));
        if out == Path::new("-") {
            ensure!(!json, "--json says where the bundle is: leave one of --out - and --json out");
            return files::print_bytes(&answered(&client, "GET", &path, None)?.octets);
        }
        let bundle = Bundled::reserve(&out)?;
        bundle.fill(&answered(&client, "GET", &path, None)?.octets)?;
        if json {
            return print_json(&json!({"bundle": out}));
        }
        eprintln!("the bundle is in {}", out.display());
        Ok(())
    }
}

impl Upgrade {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let who = if self.agent { "agent" } else { "admin" };
        let key = self.new_key.clone().unwrap_or_else(|| PathBuf::from(format!("{who}.key")));
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from(format!("{who}.crt")));
        let input = self.csr.as_ref().unwrap_or(&key);
        files::require_file_for_key(&key)?;
        ensure!(!json || out != Path::new("-"), "--json has the certificate: leave one of --out - and --json out");
        let client = access.client()?;
        // Before anybody is asked: what the admin had is revoked by the answer, which alone has the new one.
        let output = Output::new(&out, &[input], self.force)?.open()?;
        let csr = match &self.csr {
            Some(csr) => {
                String::from_utf8(files::read(csr)?).with_context(|| format!("{} is no PEM", csr.display()))?
            }
            None => self.request(&key)?,
        };
        let path = match self.agent {
            true => "/api/certs/agent/upgrade-cert",
            false => "/api/certs/admin/upgrade-to-hardware-bound",
        };
        let answer = ask(&client, "POST", path, Some(&json!({"csr": csr})))?;
        let certificate = answer["cert"].as_str().context("the panel's answer has no certificate")?;
        output.write(certificate.as_bytes()).with_context(|| {
            // It is the only one that is let in from now on.
            format!("the certificate that the panel made is not written:\n{certificate}")
        })?;
        if json {
            return print_json(&answer);
        }
        eprintln!("the {who}'s certificate is in {}, valid until {}", out.display(), cell(&answer["expiresAt"]));
        eprintln!("what the {who} had before is revoked");
        match (self.csr.is_some(), self.agent) {
            (false, false) => {
                eprintln!("from now on: ca-cli panel agents --cert {} --key {}", out.display(), key.display());
            }
            (false, true) => eprintln!("its key is {}", key.display()),
            (true, _) => {}
        }
        Ok(())
    }

    /// A request for the key in a file, which is made before anybody is asked: an answer that
    /// is lost must not leave a certificate without its key.
    fn request(&self, path: &Path) -> anyhow::Result<String> {
        let key = if path.exists() {
            eprintln!("using the key in {}", path.display());
            files::read_key_pair(path, None)?
        } else {
            let key = ca_dir::generate_key(self.algorithm)?;
            ca_dir::write_private_key(path, &key, None)?;
            eprintln!("made a private key: {}", path.display());
            key
        };
        // The panel gives the name.
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key).context("cannot make the request")?;
        request.pem().context("cannot make the request")
    }
}

impl Renew {
    pub(super) fn run(&self, access: &Access, json: bool) -> anyhow::Result<()> {
        let is_of_host = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-.".contains(&octet);
        let name = &self.name;
        ensure!(
            !name.is_empty() && name.bytes().all(is_of_host),
            "the panel renews certificates that are called as a host, in lower case, and {name:?} is none: \
             renew it on the panel's host, with `certbot renew --cert-name`"
        );
        let answer = ask(&access.client()?, "POST", &format!("/api/certs/{name}/renew"), None)?;
        if json {
            return print_json(&answer);
        }
        eprintln!("renewed {name}; it ends {}", cell(&answer["newExpiry"]));
        if let Some(warning) = answer["warning"].as_str() {
            eprintln!("warning: {}", cell(&warning.into()));
        }
        Ok(())
    }
}

const DOWNLOAD: &str = "/api/certs/mtls/download";

/// A file that will hold a bundle: there before the panel is asked, for a key that
/// was made and cannot be kept is lost.
pub(super) struct Bundled<'a> {
    path: &'a Path,
    is_full: bool,
}

impl<'a> Bundled<'a> {
    pub(super) fn reserve(path: &'a Path) -> anyhow::Result<Self> {
        ensure!(path != Path::new("-"), "the password goes to standard output: name a file for the bundle with --out");
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(_) => Ok(Self { path, is_full: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("{} is there already: name another file with --out", path.display())
            }
            Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }

    /// Prints the password of an answer, then fetches the bundle that it opens.
    pub(super) fn fetch(self, client: &Client, from: &str, mut answer: Value, json: bool) -> anyhow::Result<()> {
        if !json {
            // First: it is told once, and the bundle can be fetched again.
            print_password(&answer, false)?;
        }
        let path = self.path;
        let fetched = answered(client, "GET", from, None).and_then(|bundle| self.fill(&bundle.octets));
        answer["bundle"] = if fetched.is_ok() { json!(path) } else { Value::Null };
        if json {
            print_json(&answer)?;
        }
        fetched.context("it is done, but the bundle was not fetched: try `ca-cli panel download`")
    }

    pub(super) fn fill(mut self, octets: &[u8]) -> anyhow::Result<()> {
        let written = fs::OpenOptions::new().write(true).open(self.path).and_then(|mut file| file.write_all(octets));
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.is_full = true;
        Ok(())
    }
}

impl Drop for Bundled<'_> {
    fn drop(&mut self) {
        if !self.is_full {
            // Nobody has anything in it.
            let _ = fs::remove_file(self.path);
        }
    }
}

fn print_password(answer: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(answer);
    }
    let line = Zeroizing::new(format!("{}\n", cell(&answer["p12Password"])));
    files::print(&line)
}
