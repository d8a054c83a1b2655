//! `ca-cli p12`: a key and its certificates in one PKCS #12 file, and what is
//! in such a file.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use base16ct::lower::encode_string as hex;
use clap::{Args, Subcommand};
use pki_core::crypto::Signer as _;
use pki_core::crypto::aws_lc::PrivateKey;
use pki_core::pkcs12::{Bundle, Contents, Encryption, KeyBag, open};
use pki_core::{Certificate, CertificateSummary, KeyKind, PublicKey, certificates_from_file, inspect_certificate};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::commands::{borrowed, print_json};
use crate::{files, text};

#[derive(Args)]
pub(crate) struct P12 {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put a private key, its certificate and its chain into one file with a password
    #[command(after_help = "\
The password is the first line of --password-file, or else ADIT_P12_PASSWORD. Without
either one is made, of 128 random bits, and printed to standard error, once.

Examples:
  ca-cli p12 export --cert my-agent.crt --key my-agent.key        makes my-agent.p12
  ca-cli p12 export --cert my-agent.crt --key my-agent.key --encryption legacy --name laptop
  ca-cli p12 export --cert a.crt --key a.key --chain ca.crt --password-file - --out - < pw > a.p12")]
    Export(Export),
    /// Tell what is in a file; never prints a key
    #[command(after_help = "\
The password is the first line of --password-file, or else ADIT_P12_PASSWORD, or else empty.

Examples:
  ca-cli p12 inspect my-agent.p12 --password-file my-agent.p12-password
  ca-cli p12 inspect my-agent.p12 --json | jq .certificates[0].subject")]
    Inspect(Inspect),
}

#[derive(Args)]
struct Export {
    /// The certificate, PEM or DER; what follows it in the file is taken for its chain
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key: PKCS #8 in PEM, not encrypted
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Certificates of authorities to put beside it
    #[arg(long, value_name = "FILE")]
    chain: Option<PathBuf>,
    /// The name that a keychain shows
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// aes256, or legacy (3DES and SHA-1): macOS Keychain reads nothing newer
    #[arg(long, value_name = "ENCRYPTION", default_value_t = Encryption::Aes256)]
    encryption: Encryption,
    /// Encrypt with the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Where it goes; never overwrites a file [default: the certificate's name with .p12]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct Inspect {
    /// The file
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Decrypt with the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

const PASSWORD_VARIABLE: &str = "ADIT_P12_PASSWORD";

pub(crate) fn run(p12: &P12, json: bool) -> anyhow::Result<()> {
    match &p12.command {
        Command::Export(export) => self::export(export, json),
        Command::Inspect(inspect) => self::inspect(inspect, json),
    }
}

fn export(export: &Export, json: bool) -> anyhow::Result<()> {
    let inputs = [Some(&export.cert), Some(&export.key), export.chain.as_ref(), export.password_file.as_ref()];
    one_from_stdin(&inputs)?;
    let out = match &export.out {
        Some(out) => out.clone(),
        None if export.cert == Path::new("-") => PathBuf::from("-"),
        None => export.cert.with_extension("p12"),
    };
    let use_certificate = || format!("cannot use {}", export.cert.display());
    let mut certificates = certificates_from_file(&files::read(&export.cert)?).with_context(use_certificate)?;
    if let Some(chain) = &export.chain {
        let more = certificates_from_file(&files::read(chain)?);
        certificates.extend(more.with_context(|| format!("cannot use {}", chain.display()))?);
    }
    let leaf = certificates.remove(0);
    let certificate = Certificate::from_der(&leaf).with_context(use_certificate)?;
    // The chain may stand in both files.
    let mut authorities: Vec<Vec<u8>> = Vec::new();
    for authority in certificates {
        if authority != leaf && !authorities.contains(&authority) {
            authorities.push(authority);
        }
    }
    let pem = Zeroizing::new(files::read(&export.key)?);
    let key = files::pkcs8_from_pem(&pem, &export.key)?;
    let private_key = PrivateKey::from_pkcs8_der(&key);
    let private_key = private_key.with_context(|| format!("cannot use the key {}", export.key.display()))?;
    ensure!(
        private_key.spki() == certificate.spki(),
        "{} is not the key of the certificate {}",
        export.key.display(),
        export.cert.display()
    );

    let given = password(export.password_file.as_deref())?;
    let made = if given.is_none() { Some(random_password()?) } else { None };
    let Some(password) = given.as_ref().or(made.as_ref()) else { bail!("no password") };
    ensure!(!password.trim().is_empty(), "the password is empty: it needs a character other than a blank");
    let mut random = Zeroizing::new([0; 80]);
    getrandom::fill(&mut *random).context("the system gives no random numbers")?;
    let bundle = Bundle {
        private_key: &key,
        certificate: &leaf,
        authorities: &borrowed(&authorities),
        friendly_name: export.name.as_deref(),
    };
    let file = bundle.encrypt(password, export.encryption, &random).context("cannot make the PKCS #12 file")?;
    if out == Path::new("-") {
        files::print_bytes(&file)?;
    } else {
        ca_dir::write_new(&out, &file, 0o600)?;
        eprintln!("made {}: a key, its certificate and {} of authorities", out.display(), authorities.len());
    }
    if let Some(password) = &made {
        eprintln!("its password, which is shown this once: {}", password.as_str());
    }
    if json && out != Path::new("-") {
        return print_json(&json!({
            "p12": out,
            "encryption": export.encryption.to_string(),
            "certificates": authorities.len() + 1,
            "friendly_name": export.name,
            "fingerprint_sha256": certificate.fingerprint(),
        }));
    }
    Ok(())
}

fn inspect(inspect: &Inspect, json: bool) -> anyhow::Result<()> {
    one_from_stdin(&[Some(&inspect.file), inspect.password_file.as_ref()])?;
    let file = Zeroizing::new(files::read(&inspect.file)?);
    let password = password(inspect.password_file.as_deref())?.unwrap_or_default();
    let context = || format!("cannot inspect {}", inspect.file.display());
    let contents = open(&file, &password).with_context(context)?;
    let summary = Summary::new(&contents).with_context(context)?;
    if json { print_json(&summary) } else { files::print(&summary.text()) }
}

/// What is in a file, for people and programs.
#[derive(Serialize)]
struct Summary {
    mac: String,
    encryption: Vec<String>,
    private_keys: Vec<Key>,
    /// Has every key its certificate in the file?
    keys_match: bool,
    certificates: Vec<Entry>,
    /// Why each of the others is none.
    unreadable_certificates: Vec<String>,
}

#[derive(Serialize)]
struct Key {
    /// For example `P-256`; `unknown` for one that cannot be read.
    kind: String,
    friendly_name: Option<String>,
    local_key_id: Option<String>,
    /// The place of its certificate among `certificates`, from 0.
    certificate: Option<usize>,
}

#[derive(Serialize)]
struct Entry {
    friendly_name: Option<String>,
    local_key_id: Option<String>,
    #[serde(flatten)]
    certificate: CertificateSummary,
}

impl Summary {
    fn new(contents: &Contents) -> anyhow::Result<Self> {
        let mut certificates = Vec::new();
        let mut spkis = Vec::new();
        let mut unreadable = Vec::new();
        for bag in &contents.certificates {
            // One that cannot be read does not hide the others.
            let summary = match (Certificate::from_der(&bag.der), inspect_certificate(&bag.der)) {
                (Ok(certificate), Ok(summary)) => {
                    spkis.push(certificate.spki());
                    summary
                }
                (Err(error), _) | (_, Err(error)) => {
                    unreadable.push(error.to_string());
                    continue;
                }
            };
            certificates.push(Entry {
                friendly_name: bag.friendly_name.clone(),
                local_key_id: bag.local_key_id.as_deref().map(hex),
                certificate: summary,
            });
        }
        let private_keys: Vec<_> = contents.private_keys.iter().map(|bag| Key::new(bag, &spkis)).collect();
        Ok(Self {
            mac: contents.mac.clone(),
            encryption: contents.encryption.clone(),
            keys_match: private_keys.iter().all(|key| key.certificate.is_some()),
            private_keys,
            certificates,
            unreadable_certificates: unreadable,
        })
    }

    fn text(&self) -> String {
        let mut text = text::Text::new("PKCS #12 file");
        text.line("MAC", &self.mac);
        let plain = ["none".to_owned()];
        text.list("encryption", if self.encryption.is_empty() { &plain } else { &self.encryption });
        for key in &self.private_keys {
            text.line("private key", &key.kind);
            text.list("  name", key.friendly_name.as_slice());
            match key.certificate {
                Some(at) => text.line("  certificate", &format!("number {}", at + 1)),
                None => text.line("  certificate", "none in this file has this key"),
            }
        }
        text.line("certificates", &self.certificates.len().to_string());
        text.list("unreadable", &self.unreadable_certificates);
        let certificates = self.certificates.iter().map(|entry| text::certificate(&entry.certificate));
        text.finish() + &certificates.collect::<String>()
    }
}

impl Key {
    fn new(bag: &KeyBag, spkis: &[&[u8]]) -> Self {
        let key = PrivateKey::from_pkcs8_der(bag.pkcs8_der()).ok();
        let kind = key.as_ref().and_then(|key| PublicKey::from_der(key.spki()).ok()).map(|key| match key.kind() {
            KeyKind::Rsa => format!("RSA {}", key.size()),
            kind => kind.to_string(),
        });
        Self {
            kind: kind.unwrap_or_else(|| "unknown".to_owned()),
            friendly_name: bag.friendly_name.clone(),
            local_key_id: bag.local_key_id.as_deref().map(hex),
            certificate: key.and_then(|key| spkis.iter().position(|spki| *spki == key.spki())),
        }
    }
}

/// Standard input can be read once.
fn one_from_stdin(inputs: &[Option<&PathBuf>]) -> anyhow::Result<()> {
    let from_stdin = inputs.iter().flatten().filter(|path| path.as_path() == Path::new("-")).count();
    ensure!(from_stdin <= 1, "only one file can be - (standard input)");
    Ok(())
}

/// The first line of the file, or else the variable. Never an argument: other
/// users of the machine see those.
pub(crate) fn password(path: Option<&Path>) -> anyhow::Result<Option<Zeroizing<String>>> {
    let text = match path {
        Some(path) => {
            let bytes = Zeroizing::new(files::read(path)?);
            let text = std::str::from_utf8(&bytes).map(str::to_owned);
            Zeroizing::new(text.with_context(|| format!("the password in {} is not UTF-8", path.display()))?)
        }
        None => match env::var(PASSWORD_VARIABLE) {
            Ok(text) => Zeroizing::new(text),
            Err(env::VarError::NotPresent) => return Ok(None),
            Err(error) => return Err(error).context(PASSWORD_VARIABLE),
        },
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(Some(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned())))
}

fn random_password() -> anyhow::Result<Zeroizing<String>> {
    let mut octets = Zeroizing::new([0; 16]);
    getrandom::fill(&mut *octets).context("the system gives no random numbers")?;
    Ok(Zeroizing::new(hex(&*octets)))
}
