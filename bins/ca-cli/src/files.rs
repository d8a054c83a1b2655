//! Files, and `-` for standard input and output.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use ca_dir::Passphrase;
use zeroize::Zeroizing;

/// More than a chain of certificates ever has.
const MAX_OCTETS: u64 = 1024 * 1024;

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_at_most(path, MAX_OCTETS)
}

pub(crate) fn read_at_most(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(bytes.len() as u64 <= limit, "{} has more than {limit} octets", path.display());
    Ok(bytes)
}

/// Requests and certificates are public and may be replaced.
pub(crate) fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let written = if path == Path::new("-") { to_stdout(content) } else { fs::write(path, content) };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// An answer on standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    to_stdout(text.as_bytes()).context("cannot write to standard output")
}

/// Whoever reads may have seen enough (`| head`): that is no error.
fn to_stdout(content: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(content).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

pub(crate) fn read_key_pair(path: &Path) -> anyhow::Result<rcgen::KeyPair> {
    let pem = Zeroizing::new(fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?);
    rcgen::KeyPair::from_pem(&pem)
        .with_context(|| format!("{} is not an unencrypted private key in PKCS #8", path.display()))
}

/// The DER of a `PRIVATE KEY` block.
pub(crate) fn pkcs8_from_pem(pem: &[u8], path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let not_a_key = || format!("{} is not an unencrypted private key in PKCS #8", path.display());
    let pem = std::str::from_utf8(pem).with_context(not_a_key)?;
    let pair = rcgen::KeyPair::from_pem(pem).with_context(not_a_key)?;
    Ok(Zeroizing::new(pair.serialize_der()))
}

/// The first line of a file.
pub(crate) fn passphrase(path: Option<&Path>) -> anyhow::Result<Option<Passphrase>> {
    let Some(path) = path else { return Ok(None) };
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the passphrase file {}", path.display()))?;
    Ok(Some(Passphrase::new(text.lines().next().unwrap_or_default().to_owned())))
}
