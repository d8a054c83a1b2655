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

    /// Opens the file, for what is had once and must not be lost when it comes.
    pub(crate) fn open(self) -> anyhow::Result<Opened<'a>> {
        let path = self.0;
        if path == Path::new("-") {
            return Ok(Opened { path, file: None, is_unwritten: false });
        }
        let mut options = fs::OpenOptions::new();
        options.write(true);
        let opened = match options.clone().create_new(true).open(path) {
            // A link to nothing is there, too, and is followed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                options.create(true).open(path).map(|file| (file, false))
            }
            made => made.map(|file| (file, true)),
        };
        let (file, is_made) = opened.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Opened { path, file: Some(file), is_unwritten: is_made })
    }
}

/// An [`Output`] that can be written. One that was made for it and never written is removed.
pub(crate) struct Opened<'a> {
    path: &'a Path,
    /// None is standard output.
    file: Option<fs::File>,
    /// It was made, and has nothing in it.
    is_unwritten: bool,
}

impl Opened<'_> {
    pub(crate) fn write(mut self, content: &[u8]) -> anyhow::Result<()> {
        let written = match &mut self.file {
            // What is longer than the new content goes last: a device cannot be cut, and need not be.
            Some(file) => file.write_all(content).and_then(|()| cut(file, content.len() as u64)),
            None => to_stdout(content),
        };
        self.is_unwritten = false;
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if self.is_unwritten {
            // Nobody has anything in it.
            let _ = fs::remove_file(self.path);
        }
    }
}

fn cut(file: &fs::File, len: u64) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(len) } else { Ok(()) }
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

/// A key that is used if it is there, and made if not: of `-` neither can be said.
pub(crate) fn require_file_for_key(path: &Path) -> anyhow::Result<()> {
    ensure!(path != Path::new("-"), "a private key is used from a file, or made in one: name it");
    Ok(())
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
