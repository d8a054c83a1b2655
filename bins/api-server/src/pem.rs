//! A certificate and its key, read from the files that an operator names.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use pki_core::{Certificate, Time};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A chain, leaf first, and the leaf's private key.
pub(crate) struct Pair {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// A setting with the file that it names.
pub(crate) type Named<'a> = (&'static str, &'a Path);

impl Pair {
    /// Reads both files. Whether they belong together is seen where they are used.
    ///
    /// # Errors
    ///
    /// What is wrong with which file, and what would be right.
    pub(crate) fn read(certificate: Named<'_>, key: Named<'_>) -> anyhow::Result<Self> {
        let chain = chain(certificate.1).with_context(|| in_words("certificates", certificate))?;
        let key = private_key(key.1).with_context(|| in_words("a private key", key))?;
        Ok(Self { chain, key })
    }

    /// Is it good for visitors at this time?
    ///
    /// # Errors
    ///
    /// Says when its life ended, or begins.
    pub(crate) fn check_validity(&self, now: Time) -> anyhow::Result<()> {
        let leaf = self.chain.first().context("there is no certificate")?;
        let leaf = Certificate::from_der(leaf).context("the first certificate cannot be read")?;
        let (since, until) = (leaf.not_before(), leaf.not_after());
        ensure!(now.unix() <= until.unix(), "the certificate has expired: it ended at {until}");
        ensure!(now.unix() >= since.unix(), "the certificate is not yet valid: it begins at {since}");
        Ok(())
    }
}

impl Pair {
    /// When its life ends.
    pub(crate) fn ends_at(&self) -> Option<Time> {
        Some(Certificate::from_der(self.chain.first()?).ok()?.not_after())
    }

    /// When its life ends, if that is within so long a time and not over.
    pub(crate) fn ends_within(&self, time: Duration, now: Time) -> Option<Time> {
        let until = self.ends_at()?;
        (now.unix() <= until.unix() && until.unix() <= now.plus(time).unix()).then_some(until)
    }
}

fn in_words(what: &str, (setting, path): Named<'_>) -> String {
    format!("{setting}: cannot read {what} from {}", path.display())
}

fn chain(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = text(path)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().context("the PEM text is damaged")?;
    if chain.is_empty() {
        if has_line(&text, "PRIVATE KEY") {
            bail!("it has a private key and no certificate: are the two settings changed over?");
        }
        bail!("it has no line \"-----BEGIN CERTIFICATE-----\": use PEM, leaf first, then the chain");
    }
    Ok(chain)
}

fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let text = text(path)?;
    if has_line(&text, "ENCRYPTED PRIVATE KEY") || contains(&text, "Proc-Type: 4,ENCRYPTED") {
        bail!(
            "the key is encrypted: write it without a passphrase (openssl pkey -in FILE -out KEY), for the server alone"
        );
    }
    match PrivateKeyDer::from_pem_slice(&text) {
        Err(rustls::pki_types::pem::Error::NoItemsFound) if has_line(&text, "CERTIFICATE") => {
            bail!("it has a certificate and no private key: are the two settings changed over?")
        }
        Err(rustls::pki_types::pem::Error::NoItemsFound) => {
            bail!("it has no line \"-----BEGIN PRIVATE KEY-----\": use PEM")
        }
        key => key.context("the PEM text is damaged"),
    }
}

/// The file without the mark that some editors begin a file of UTF-8 with.
fn text(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = std::fs::read(path)?;
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        bail!("it is UTF-16: save it as UTF-8");
    }
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// Has it a block of this kind?
fn has_line(text: &[u8], kind: &str) -> bool {
    String::from_utf8_lossy(text).lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(kind))
}

fn contains(text: &[u8], words: &str) -> bool {
    text.windows(words.len()).any(|window| window == words.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Files {
        directory: tempfile::TempDir,
        certificate: String,
        key: String,
    }

    impl Files {
        /// A certificate of the year 2026.
        fn new() -> Self {
            let pair = rcgen::KeyPair::generate().expect("a key");
            let mut params = rcgen::CertificateParams::new(vec!["a.example.test".to_owned()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(2026, 1, 1);
            params.not_after = rcgen::date_time_ymd(2027, 1, 1);
            let certificate = params.self_signed(&pair).expect("a certificate").pem();
            Self { directory: tempfile::tempdir().expect("a directory"), certificate, key: pair.serialize_pem() }
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, content).expect("written");
            path
        }

        fn read(&self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> anyhow::Result<Pair> {
            let (certificate, key) = (self.write("crt", certificate), self.write("key", key));
            Pair::read(("tls_cert", &certificate), ("tls_key", &key))
        }
    }

    fn at(year: i64) -> Time {
        Time::from_unix((year - 1970) * 31_556_952 + 86_400)
    }

    #[track_caller]
    fn assert_told(result: anyhow::Result<Pair>, words: &[&str]) {
        let told = format!("{:#}", result.err().expect("an error"));
        for word in words {
            assert!(told.contains(word), "{word}: {told}");
        }
        assert!(!told.contains("-----BEGIN PRIVATE KEY-----\n"), "{told}");
    }

    #[test]
    fn a_mark_at_the_beginning_is_no_matter() {
        let files = Files::new();
        let marked = |text: &str| format!("\u{feff}{text}");
        let pair = files.read(marked(&files.certificate), marked(&files.key)).expect("a pair");
        assert_eq!(pair.chain.len(), 1);
        let commented = format!("Bag Attributes\r\n{}", files.certificate.replace('\n', "\r\n"));
        assert_eq!(files.read(commented.repeat(2), &files.key).expect("a pair").chain.len(), 2);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let files = Files::new();
        let (certificate, key) = (&files.certificate, &files.key);
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert_told(files.read(certificate, encrypted), &["tls_key", "is encrypted", "openssl pkey"]);
        let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
        assert_told(files.read(certificate, old), &["tls_key", "is encrypted"]);
        assert_told(files.read(key, certificate), &["tls_cert", "changed over"]);
        assert_told(files.read(certificate, certificate), &["tls_key", "changed over"]);
        assert_told(files.read("", key), &["tls_cert", "BEGIN CERTIFICATE"]);
        assert_told(files.read(certificate, "words"), &["tls_key", "BEGIN PRIVATE KEY"]);
        assert_told(files.read(certificate.replace("-----END", "----END"), key), &["tls_cert", "damaged"]);
        let utf16: Vec<u8> =
            [0xfeff].into_iter().chain(certificate.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        assert_told(files.read(utf16, key), &["tls_cert", "UTF-16"]);
        let missing = Pair::read(("tls_cert", Path::new("/nowhere/crt")), ("tls_key", Path::new("/nowhere/key")));
        assert_told(missing, &["tls_cert", "/nowhere/crt", "No such file"]);
    }

    #[test]
    fn an_end_is_told_of_two_weeks_before_it() {
        let files = Files::new();
        let pair = files.read(&files.certificate, &files.key).expect("a pair");
        let end = pair.ends_within(Duration::MAX, at(2026)).expect("it ends");
        let fortnight = Duration::from_secs(14 * 86_400);
        for (before, is_told) in [(15 * 86_400, false), (14 * 86_400, true), (1, true), (-1, false)] {
            let now = Time::from_unix(end.unix() - before);
            assert_eq!(pair.ends_within(fortnight, now).is_some(), is_told, "{before} s before its end");
        }
    }

    #[test]
    fn a_certificate_has_its_time() {
        let files = Files::new();
        let pair = files.read(&files.certificate, &files.key).expect("a pair");
        pair.check_validity(at(2026)).expect("valid");
        for (year, words) in
            [(2025, "not yet valid: it begins at 2026-01-01"), (2028, "expired: it ended at 2027-01-01")]
        {
            let told = pair.check_validity(at(year)).expect_err("not now").to_string();
            assert!(told.contains(words), "{told}");
        }
    }
}
