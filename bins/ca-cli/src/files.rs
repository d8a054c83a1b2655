//! Files, and `-` for standard input and output.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
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

/// A file that a command will write. Requests and certificates are public and
/// may be replaced; what is an input, or holds a private key, may not.
pub(crate) struct Output<'a>(&'a Path);

impl<'a> Output<'a> {
    /// Looks before anything is read, made or written; `force` looks away.
    pub(crate) fn new(path: &'a Path, inputs: &[&Path], force: bool) -> anyhow::Result<Self> {
        if !force && path != Path::new("-") {
            let shown = path.display();
            let is_same = |input: &&Path| *input == path || is_same_file(input, path).unwrap_or(false);
            ensure!(
                !inputs.iter().any(is_same),
                "{shown} is an input of this command: name another file, or use --force"
            );
            ensure!(!holds_private_key(path), "{shown} holds a private key: name another file, or use --force");
        }
        Ok(Self(path))
    }

    pub(crate) fn write(&self, content: &[u8]) -> anyhow::Result<()> {
        write(self.0, content)
    }
}

/// By whatever names: links, and `./x` for `x`.
fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn holds_private_key(path: &Path) -> bool {
    // What is not there, or cannot be read, is told when it is written.
    let Ok(bytes) = read(path).map(Zeroizing::new) else { return false };
    const WORDS: &[u8] = b"PRIVATE KEY-----";
    // In DER, private keys of every form and PKCS #12 files begin with a version; requests,
    // certificates and lists with a sequence.
    let in_der = match bytes.as_slice() {
        [0x30, 0x81, _, tag, ..] | [0x30, 0x82, _, _, tag, ..] | [0x30, 0..=0x7f, tag, ..] => *tag == 0x02,
        _ => false,
    };
    in_der || bytes.windows(WORDS.len()).any(|window| window == WORDS)
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let written = if path == Path::new("-") { to_stdout(content) } else { fs::write(path, content) };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// An answer on standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    to_stdout(bytes).context("cannot write to standard output")
}

/// Whoever reads may have seen enough (`| head`): that is no error.
fn to_stdout(content: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(content).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

pub(crate) fn read_key_pair(path: &Path, passphrase: Option<&Passphrase>) -> anyhow::Result<rcgen::KeyPair> {
    let pem = Zeroizing::new(read(path)?);
    let pkcs8 = ca_dir::pkcs8_from_text(&pem, path, passphrase)?;
    rcgen::KeyPair::try_from(pkcs8.as_slice()).with_context(|| format!("cannot use the key {}", path.display()))
}

/// The DER of a private key that is not encrypted.
pub(crate) fn pkcs8_from_pem(pem: &[u8], path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    Ok(ca_dir::pkcs8_from_text(pem, path, None)?)
}

/// The first line of a file.
pub(crate) fn passphrase(path: Option<&Path>) -> anyhow::Result<Option<Passphrase>> {
    let Some(path) = path else { return Ok(None) };
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the passphrase file {}", path.display()))?;
    let text = Zeroizing::new(text);
    let passphrase = Passphrase::from_file_text(&text);
    passphrase.map(Some).with_context(|| format!("cannot use the passphrase file {}", path.display()))
}
