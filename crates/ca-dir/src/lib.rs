//! A certificate authority on disk: a directory with a root and an issuing
//! intermediate.
//!
//! ```text
//! root.crt      what clients trust            issuing.crt   signs every day, for one zone
//! root.key      may move to a safe place      issuing.key   0600
//! ```
//!
//! `api-server` and `ca-cli` read and make the same layout. A directory is made
//! beside its place and moved there whole, so a crash leaves none or all of it.

mod key;
mod sealed;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pki_core::crypto::aws_lc::{AwsLc, PrivateKey};
use pki_core::crypto::{PrivateKeyError, SignError, Signer};
use pki_core::{
    Certificate, CertificateError, ChainError, DnsName, Expectation, IssueError, Issuer, IssuerError, ProfileConfig,
    SerialNumber, Subject, SubjectError, Time, Usage, certificate_to_pem, certificates_from_pem, verify_chain,
};

use key::read_pkcs8;
pub use key::{
    EmptyPassphrase, KeyAlgorithm, KeyFileError, Passphrase, generate_key, pkcs8_from_text, read_private_key,
    write_private_key,
};
pub use sealed::{seal, unseal};

/// The root's certificate.
pub const ROOT_CERTIFICATE: &str = "root.crt";
/// The root's private key.
pub const ROOT_KEY: &str = "root.key";
/// The issuing intermediate's certificate.
pub const ISSUING_CERTIFICATE: &str = "issuing.crt";
/// The issuing intermediate's private key.
pub const ISSUING_KEY: &str = "issuing.key";

const DAY: Duration = Duration::from_secs(86_400);
const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);
const ISSUING_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Clocks of clients may be late by as much.
const BACKDATE: Duration = Duration::from_secs(300);

/// An issuing authority that was read from a directory, with its key in the
/// form of one backend or another.
#[derive(Debug)]
pub struct CaDir<K = PrivateKey> {
    /// The root's certificate in DER.
    pub root: Vec<u8>,
    /// The intermediate's certificate in DER.
    pub issuing: Vec<u8>,
    /// The intermediate's key.
    pub key: K,
}

/// Why a directory could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaDirError {
    /// Something is there already.
    #[error("{} exists: nothing is overwritten", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory that cannot be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// `read`, `write` or `create`.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The machine's clock was not set.
    #[error("the clock says {now}, which is before this program was written: set it first")]
    Clock {
        /// What the clock says.
        now: Time,
    },
    /// The authority's time is over.
    #[error("{file} expired on {not_after}: nothing that it signs is accepted any more, renew it")]
    Expired {
        /// Which certificate.
        file: &'static str,
        /// Its last second.
        not_after: Time,
    },
    /// The authority's time has not come, or the clock is late.
    #[error("{file} is valid from {not_before}, and the clock says {now}: is it right?")]
    NotYetValid {
        /// Which certificate.
        file: &'static str,
        /// Its first second.
        not_before: Time,
        /// What the clock says.
        now: Time,
    },
    /// A file that is no certificate.
    #[error("{} is not a certificate", path.display())]
    Certificate {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// A chain, or a bundle, where one certificate belongs.
    #[error("{} has {count} certificates: leave in it the one that its name says, and no chain", path.display())]
    SeveralCertificates {
        /// The path.
        path: PathBuf,
        /// How many it has.
        count: usize,
    },
    /// The intermediate was not issued by the root beside it.
    #[error("{} was not issued by the root beside it", path.display())]
    Chain {
        /// The intermediate's path.
        path: PathBuf,
        /// What does not verify.
        source: ChainError,
    },
    /// Certificate and key do not belong together, or the certificate may not sign.
    #[error("{} cannot sign", path.display())]
    Issuer {
        /// The certificate's path.
        path: PathBuf,
        /// Why not.
        source: IssuerError,
    },
    /// A private key that cannot be read.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// A certificate that could not be made.
    #[error("cannot make a certificate")]
    Issue(#[from] IssueError),
    /// A certificate that could not be signed.
    #[error("cannot sign a certificate")]
    Sign(#[from] SignError),
    /// A name that X.509 has no room for.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The operating system gave no random octets.
    #[error("the operating system gives no random octets")]
    Random,
}

impl CaDir {
    /// Makes a new authority for `zone` at `path`, which must not exist.
    ///
    /// Keys are P-256, encrypted if there is a passphrase. The root lives for
    /// 20 years, the intermediate for 10 and signs below `zone` only.
    ///
    /// # Errors
    ///
    /// [`CaDirError`], that of [`check_clock`] among them; nothing is left at `path` then.
    pub fn create(path: &Path, zone: &DnsName, passphrase: Option<&Passphrase>, now: Time) -> Result<Self, CaDirError> {
        if path.exists() {
            return Err(CaDirError::Exists { path: path.to_owned() });
        }
        check_clock(now)?;
        let made = now.minus(BACKDATE);
        let (root_key, issuing_key) = (generate_key(KeyAlgorithm::P256)?, generate_key(KeyAlgorithm::P256)?);
        let (root_signer, signer) = (key::signer(&root_key)?, key::signer(&issuing_key)?);
        // Two authorities for one zone must not have one name: clients look issuers up by it.
        let tag = random_tag()?;
        let root_subject = Subject::with_organization(&format!("Adit Root CA {tag}"), "Adit")?;
        let issuing_subject = Subject::with_organization(&format!("Adit Issuing CA {tag}"), "Adit")?;

        let root = pki_core::root(&root_subject, &root_signer, ROOT_VALIDITY, random_serial()?, made)?;
        let root = root.sign(&root_signer)?.der().to_vec();
        let issuer = Issuer::new(&root, &root_signer)
            .map_err(|source| CaDirError::Issuer { path: path.join(ROOT_CERTIFICATE), source })?;
        let spki = signer.spki();
        let issuing = issuer.intermediate(&issuing_subject, spki, zone, ISSUING_VALIDITY, random_serial()?, made)?;
        let issuing = issuing.sign(&root_signer)?.der().to_vec();

        make_directory(path, |building| {
            write_new(&building.join(ROOT_CERTIFICATE), certificate_to_pem(&root).as_bytes(), 0o644)?;
            write_private_key(&building.join(ROOT_KEY), &root_key, passphrase)?;
            write_new(&building.join(ISSUING_CERTIFICATE), certificate_to_pem(&issuing).as_bytes(), 0o644)?;
            write_private_key(&building.join(ISSUING_KEY), &issuing_key, passphrase)
        })?;
        Ok(Self { root, issuing, key: signer })
    }

    /// Reads the intermediate and its key; the root's key is not touched.
    ///
    /// # Errors
    ///
    /// [`CaDirError`] names the file that is missing or wrong.
    pub fn open(path: &Path, passphrase: Option<&Passphrase>) -> Result<Self, CaDirError> {
        CaDir::open_with(path, passphrase, PrivateKey::from_pkcs8_der)
    }
}

impl<K: Signer> CaDir<K> {
    /// As [`CaDir::open`], with the key as `load` makes it of PKCS #8 in DER.
    ///
    /// # Errors
    ///
    /// As [`CaDir::open`], and those of `load`.
    pub fn open_with(
        path: &Path,
        passphrase: Option<&Passphrase>,
        load: impl FnOnce(&[u8]) -> Result<K, PrivateKeyError>,
    ) -> Result<Self, CaDirError> {
        let root = read_certificate(&path.join(ROOT_CERTIFICATE))?;
        let issuing = read_certificate(&path.join(ISSUING_CERTIFICATE))?;
        let issued = Certificate::from_der(&issuing)
            .map_err(|source| CaDirError::Certificate { path: path.join(ISSUING_CERTIFICATE), source })?;
        // Whether the two belong together, and not whether they are valid now: see `Validity`. A
        // root that was renewed with the same key is younger than what it issued.
        let trusted = Certificate::from_der(&root)
            .map_err(|source| CaDirError::Certificate { path: path.join(ROOT_CERTIFICATE), source })?;
        let at = issued.not_before().max(trusted.not_before());
        let expectation = Expectation { host: None, usage: None, at };
        verify_chain(&[&issuing], &[&root], &expectation, &AwsLc)
            .map_err(|source| CaDirError::Chain { path: path.join(ISSUING_CERTIFICATE), source })?;
        let key = load(&read_pkcs8(&path.join(ISSUING_KEY), passphrase)?).map_err(KeyFileError::from)?;
        Issuer::new(&issuing, &key)
            .map_err(|source| CaDirError::Issuer { path: path.join(ISSUING_CERTIFICATE), source })?;
        Ok(Self { root, issuing, key })
    }

    /// When root and intermediate are valid.
    ///
    /// # Errors
    ///
    /// [`CaDirError::Certificate`], for a `CaDir` that was not read from a directory.
    pub fn validity(&self) -> Result<Validity, CaDirError> {
        let period = |file: &'static str, der: &[u8]| {
            let certificate = Certificate::from_der(der)
                .map_err(|source| CaDirError::Certificate { path: PathBuf::from(file), source })?;
            Ok::<_, CaDirError>((file, certificate.not_before(), certificate.not_after()))
        };
        Ok(Validity([period(ISSUING_CERTIFICATE, &self.issuing)?, period(ROOT_CERTIFICATE, &self.root)?]))
    }
}

/// When the certificates of an authority are valid: file, first and last second of each.
#[derive(Clone, Copy, Debug)]
pub struct Validity([(&'static str, Time, Time); 2]);

impl Validity {
    /// Are all valid at this time, and may the clock be right? Whoever signs all the same
    /// makes certificates that nobody accepts.
    ///
    /// # Errors
    ///
    /// Those of [`check_clock`], [`CaDirError::Expired`] or [`CaDirError::NotYetValid`].
    pub fn check(&self, now: Time) -> Result<(), CaDirError> {
        check_clock(now)?;
        for (file, not_before, not_after) in self.0 {
            if now > not_after {
                return Err(CaDirError::Expired { file, not_after });
            }
            if now < not_before {
                return Err(CaDirError::NotYetValid { file, not_before, now });
            }
        }
        Ok(())
    }
}

/// Refuses a clock that cannot be right: it shows a time before this code was
/// written. Machines without a battery start in 1970, and an authority made
/// then lives in the past.
///
/// # Errors
///
/// [`CaDirError::Clock`].
pub fn check_clock(now: Time) -> Result<(), CaDirError> {
    // A literal, and not the time of the build, so that builds can be repeated.
    const WRITTEN: Time = Time::from_unix(1_793_491_200);
    if now < WRITTEN { Err(CaDirError::Clock { now }) } else { Ok(()) }
}

/// The profile of leafs that this layout is for: `days` of validity, and
/// notBefore five minutes back.
pub fn leaf_profile(usage: Usage, days: u32) -> ProfileConfig {
    ProfileConfig {
        usage,
        validity_seconds: u64::from(days) * DAY.as_secs(),
        backdate_seconds: BACKDATE.as_secs(),
        crl_distribution_point: None,
        ca_issuers: None,
    }
}

/// A serial number from the operating system's generator.
///
/// # Errors
///
/// [`CaDirError::Random`].
pub fn random_serial() -> Result<SerialNumber, CaDirError> {
    let mut octets = [0; 20];
    getrandom::fill(&mut octets).map_err(|_| CaDirError::Random)?;
    Ok(SerialNumber::from_random(octets))
}

/// Writes a file that must not exist, durably, with this mode.
///
/// # Errors
///
/// [`CaDirError::Exists`] or [`CaDirError::Io`].
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), CaDirError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = open.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CaDirError::Exists { path: path.to_owned() },
        _ => CaDirError::Io { doing: "create", path: path.to_owned(), source },
    })?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io_error("write", path))
}

/// Makes a directory of mode 0700 with what `fill` puts into it, all of it or
/// nothing: beside its place, and moved there when it is complete.
///
/// # Errors
///
/// [`CaDirError::Io`] as `E`, and those of `fill`.
pub fn make_directory<E: From<CaDirError>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut building = path.as_os_str().to_owned();
    building.push(format!(".new-{}", random_tag()?));
    let building = Building(PathBuf::from(building));
    DirBuilder::new().mode(0o700).create(&building.0).map_err(io_error("create", &building.0))?;
    fill(&building.0)?;
    sync(&building.0)?;
    fs::rename(&building.0, path).map_err(io_error("create", path))?;
    Ok(sync(parent)?)
}

/// A directory in the making; goes away unless it was moved to its place.
struct Building(PathBuf);

impl Drop for Building {
    fn drop(&mut self) {
        // Gone already when all went well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read_certificate(path: &Path) -> Result<Vec<u8>, CaDirError> {
    let pem = fs::read(path).map_err(io_error("read", path))?;
    let malformed = |source| CaDirError::Certificate { path: path.to_owned(), source };
    let mut certificates = certificates_from_pem(&pem).map_err(malformed)?;
    match certificates.len() {
        1 => Ok(certificates.remove(0)),
        count => Err(CaDirError::SeveralCertificates { path: path.to_owned(), count }),
    }
}

fn random_tag() -> Result<String, CaDirError> {
    let mut octets = [0; 4];
    getrandom::fill(&mut octets).map_err(|_| CaDirError::Random)?;
    Ok(format!("{:08x}", u32::from_be_bytes(octets)))
}

fn sync(directory: &Path) -> Result<(), CaDirError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("write", directory))
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> CaDirError {
    move |source| CaDirError::Io { doing, path: path.to_owned(), source }
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: Time = Time::from_unix(1_795_354_200);

    fn zone() -> DnsName {
        "adit.localhost".parse().expect("a zone")
    }

    #[test]
    fn what_is_made_can_be_opened() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        let made = CaDir::create(&path, &zone(), None, NOW).expect("made");
        let opened = CaDir::open(&path, None).expect("opened");
        assert_eq!((made.root, made.issuing), (opened.root, opened.issuing));
        for (file, mode) in [(ROOT_KEY, 0o600), (ISSUING_KEY, 0o600), (ROOT_CERTIFICATE, 0o644)] {
            let metadata = fs::metadata(path.join(file)).expect("a file");
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
        }
        assert!(matches!(CaDir::create(&path, &zone(), None, NOW), Err(CaDirError::Exists { .. })));
        let left: Vec<_> = fs::read_dir(directory.path()).expect("a directory").collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn keys_can_be_encrypted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        let passphrase = Passphrase::new("correct horse".to_owned()).expect("a passphrase");
        CaDir::create(&path, &zone(), Some(&passphrase), NOW).expect("made");
        let pem = fs::read_to_string(path.join(ISSUING_KEY)).expect("a key");
        assert!(pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{pem}");
        assert!(CaDir::open(&path, Some(&passphrase)).is_ok());
        let wrong = Passphrase::new("wrong".to_owned()).expect("a passphrase");
        let refused = CaDir::open(&path, Some(&wrong)).expect_err("refused");
        assert!(matches!(refused, CaDirError::Key(KeyFileError::Passphrase { .. })), "{refused}");
        let refused = CaDir::open(&path, None).expect_err("refused");
        assert!(matches!(refused, CaDirError::Key(KeyFileError::PassphraseMissing { .. })), "{refused}");
    }

    #[test]
    fn a_key_of_another_authority_is_found_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let (ours, other) = (directory.path().join("ours"), directory.path().join("other"));
        CaDir::create(&ours, &zone(), None, NOW).expect("made");
        CaDir::create(&other, &zone(), None, NOW).expect("made");
        fs::copy(other.join(ISSUING_KEY), ours.join(ISSUING_KEY)).expect("copied");
        assert!(matches!(CaDir::open(&ours, None), Err(CaDirError::Issuer { .. })));
        fs::copy(other.join(ISSUING_CERTIFICATE), ours.join(ISSUING_CERTIFICATE)).expect("copied");
        assert!(matches!(CaDir::open(&ours, None), Err(CaDirError::Chain { .. })));
    }

    #[test]
    fn a_passphrase_for_nothing_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        CaDir::create(&path, &zone(), None, NOW).expect("made");
        let refused =
            CaDir::open(&path, Some(&Passphrase::new("idle".to_owned()).expect("a passphrase"))).expect_err("refused");
        assert!(matches!(refused, CaDirError::Key(KeyFileError::NotEncrypted { .. })), "{refused}");
    }

    /// chris2511/xca#411, OpenVPN/easy-rsa#1384: `openssl x509 -in root.crt -signkey root.key`.
    #[test]
    fn a_root_renewed_with_its_key_keeps_its_intermediate() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        let made = CaDir::create(&path, &zone(), None, NOW).expect("made");
        let key = read_private_key(&path.join(ROOT_KEY), None).expect("the root's key");
        let old = Certificate::from_der(&made.root).expect("a certificate");
        let name = old.common_names().expect("a name").remove(0);
        let subject = Subject::with_organization(&name, "Adit").expect("a subject");
        let later = NOW.plus(365 * DAY);
        let new = pki_core::root(&subject, &key, ROOT_VALIDITY, random_serial().expect("random"), later);
        let new = new.map(|root| root.sign(&key).expect("signed")).expect("a root");
        fs::write(path.join(ROOT_CERTIFICATE), new.to_pem()).expect("written");
        let validity = CaDir::open(&path, None).and_then(|ca| ca.validity()).expect("the two belong together");
        assert!(validity.check(later).is_ok());
        let early = validity.check(NOW);
        assert!(matches!(early, Err(CaDirError::NotYetValid { file: ROOT_CERTIFICATE, .. })), "{early:?}");
        let late = validity.check(NOW.plus(ISSUING_VALIDITY));
        assert!(matches!(late, Err(CaDirError::Expired { file: ISSUING_CERTIFICATE, .. })), "{late:?}");
    }

    /// No battery, no network yet: 1970.
    #[test]
    fn no_authority_is_made_before_the_clock_is_set() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        let refused = CaDir::create(&path, &zone(), None, Time::from_unix(3_600)).expect_err("refused");
        assert!(matches!(refused, CaDirError::Clock { .. }), "{refused}");
        assert!(!path.exists());
    }

    #[test]
    fn a_passphrase_of_nothing_is_none() {
        for text in ["", "\n", "  \t\nsecond line", "\u{feff}", "\u{feff}\r\n"] {
            assert!(Passphrase::from_file_text(text).is_err(), "{text:?}");
        }
        assert!(Passphrase::from_file_text("\u{feff}correct horse\r\n").is_ok());
    }

    /// `openssl ecparam -genkey` writes two blocks; editors add marks and line ends.
    #[test]
    fn keys_are_read_in_every_form_that_openssl_writes() {
        const SEC1: &str = include_str!("../tests/data/sec1.pem");
        const PARAMETERS: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key.pem");
        let read = |text: &[u8]| {
            fs::write(&path, text).expect("written");
            read_private_key(&path, None).map(|key| key.spki().to_vec())
        };
        let spki = read(SEC1.as_bytes()).expect("a key");
        for text in [
            format!("{PARAMETERS}{SEC1}"),
            format!("\u{feff}{SEC1}"),
            SEC1.replace('\n', "\r\n"),
            format!("Key of the authority\n{SEC1}\n\n"),
            format!("{}{SEC1}", certificate_to_pem(b"a certificate")),
        ] {
            assert_eq!(read(text.as_bytes()).expect("a key"), spki, "{text}");
        }
        let refused = read(&[b"\xff\xfe", SEC1.as_bytes()].concat()).expect_err("refused");
        assert!(matches!(refused, KeyFileError::Utf16 { .. }), "{refused}");
        let old = SEC1.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1);
        let refused = read(old.as_bytes()).expect_err("refused");
        assert!(matches!(refused, KeyFileError::OldEncryption { .. }), "{refused}");
        let refused = read(PARAMETERS.as_bytes()).expect_err("refused");
        assert!(matches!(refused, KeyFileError::Malformed { .. }), "{refused}");
    }

    #[test]
    fn a_chain_in_the_place_of_a_certificate_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca");
        let made = CaDir::create(&path, &zone(), None, NOW).expect("made");
        let chain = certificate_to_pem(&made.issuing) + &certificate_to_pem(&made.root);
        fs::write(path.join(ISSUING_CERTIFICATE), chain).expect("written");
        let refused = CaDir::open(&path, None).expect_err("refused");
        assert!(
            refused.to_string().ends_with("has 2 certificates: leave in it the one that its name says, and no chain")
        );
    }
}
