//! Private keys: made here, kept in files of mode 0600.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pkcs8::der::asn1::{AnyRef, OctetStringRef};
use pkcs8::der::pem::PemLabel as _;
use pkcs8::der::{Decode as _, SliceReader, Tag, TagNumber, Tagged as _};
use pkcs8::spki::AlgorithmIdentifierRef;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};
use pki_core::crypto::PrivateKeyError;
use pki_core::crypto::aws_lc::PrivateKey;
use rcgen::{KeyPair, RsaKeySize};
use zeroize::Zeroizing;

use crate::{CaDirError, write_new};

/// What kind of key to make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyAlgorithm {
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

impl KeyAlgorithm {
    /// Every kind with its name, the usual one first.
    pub const ALL: [(&'static str, Self); 6] = [
        ("p256", Self::P256),
        ("p384", Self::P384),
        ("ed25519", Self::Ed25519),
        ("rsa2048", Self::Rsa2048),
        ("rsa3072", Self::Rsa3072),
        ("rsa4096", Self::Rsa4096),
    ];
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, algorithm)| algorithm == self);
        f.write_str(name.map_or("", |(name, _)| *name))
    }
}

impl FromStr for KeyAlgorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("use one of {}", names.join(", "))
        })
    }
}

/// What decrypts a key file.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

/// A passphrase that nobody wrote: a secret that was not filled in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the passphrase is empty: it needs a character other than a blank")]
pub struct EmptyPassphrase;

impl Passphrase {
    /// From the text; line ends are part of it.
    ///
    /// # Errors
    ///
    /// [`EmptyPassphrase`] when there are no more than blanks.
    pub fn new(text: String) -> Result<Self, EmptyPassphrase> {
        let text = Zeroizing::new(text);
        if text.trim().is_empty() { Err(EmptyPassphrase) } else { Ok(Self(text)) }
    }

    /// From a file's text: its first line, without the byte order mark that
    /// some editors put before it.
    ///
    /// # Errors
    ///
    /// As [`Passphrase::new`].
    pub fn from_file_text(text: &str) -> Result<Self, EmptyPassphrase> {
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        Self::new(text.lines().next().unwrap_or_default().to_owned())
    }

    pub(crate) fn octets(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No private key in PEM.
    #[error("{} is not a private key in PEM (label PRIVATE KEY, ENCRYPTED PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY)", path.display())]
    Malformed {
        /// The path.
        path: PathBuf,
    },
    /// The passphrase is wrong.
    #[error("the passphrase does not decrypt {}", path.display())]
    Passphrase {
        /// The path.
        path: PathBuf,
    },
    /// A passphrase was given for nothing: whoever gave it believes that the key is safe.
    #[error("{} is not encrypted, and a passphrase was given: encrypt it (openssl pkcs8 -topk8) or give none", path.display())]
    NotEncrypted {
        /// The path.
        path: PathBuf,
    },
    /// Encrypted as OpenSSL did before version 1.0.
    #[error("{} is encrypted in a way that anyone can break: encrypt it anew (openssl pkcs8 -topk8)", path.display())]
    OldEncryption {
        /// The path.
        path: PathBuf,
    },
    /// The key is encrypted.
    #[error("{} is encrypted: give its passphrase", path.display())]
    PassphraseMissing {
        /// The path.
        path: PathBuf,
    },
    /// Written by an editor of Windows.
    #[error("{} is UTF-16: save it as UTF-8", path.display())]
    Utf16 {
        /// The path.
        path: PathBuf,
    },
    /// A key that cannot sign here.
    #[error("the key cannot sign")]
    Unusable(#[from] PrivateKeyError),
    /// The key could not be made or encrypted.
    #[error("cannot make a private key: {0}")]
    Make(String),
}

/// Makes a key. RSA takes a while.
///
/// # Errors
///
/// [`KeyFileError::Make`].
pub fn generate_key(algorithm: KeyAlgorithm) -> Result<KeyPair, KeyFileError> {
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
    match algorithm {
        KeyAlgorithm::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        KeyAlgorithm::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyAlgorithm::Rsa2048 => rsa(RsaKeySize::_2048),
        KeyAlgorithm::Rsa3072 => rsa(RsaKeySize::_3072),
        KeyAlgorithm::Rsa4096 => rsa(RsaKeySize::_4096),
    }
    .map_err(|error| KeyFileError::Make(error.to_string()))
}

/// Writes a key as PEM of mode 0600 to a file that must not exist, encrypted
/// (PBES2: scrypt and AES-256) if there is a passphrase.
///
/// # Errors
///
/// [`CaDirError::Exists`], [`CaDirError::Io`] or [`CaDirError::Key`].
pub fn write_private_key(path: &Path, key: &KeyPair, passphrase: Option<&Passphrase>) -> Result<(), CaDirError> {
    let make = |error: &dyn fmt::Display| KeyFileError::Make(error.to_string());
    let der = Zeroizing::new(key.serialize_der());
    let (label, document) = match passphrase {
        None => (PrivateKeyInfoRef::PEM_LABEL, SecretDocument::try_from(der.as_slice()).map_err(|error| make(&error))?),
        Some(passphrase) => {
            let info = PrivateKeyInfoRef::from_der(&der).map_err(|error| make(&error))?;
            let encrypted = info.encrypt(passphrase.0.as_bytes()).map_err(|error| make(&error))?;
            (EncryptedPrivateKeyInfoRef::PEM_LABEL, encrypted)
        }
    };
    let pem = document.to_pem(label, LineEnding::LF).map_err(|error| make(&error))?;
    write_new(path, pem.as_bytes(), 0o600)
}

/// Reads a key in PKCS #8, decrypting it if it is encrypted, or an RSA or EC
/// key in the form of its own (PKCS #1, SEC 1), as OpenSSL writes them, too.
///
/// Whatever else stands in the file, parameters or certificates, is passed over.
///
/// # Errors
///
/// [`KeyFileError`] names the file.
pub fn read_private_key(path: &Path, passphrase: Option<&Passphrase>) -> Result<PrivateKey, KeyFileError> {
    Ok(PrivateKey::from_pkcs8_der(&read_pkcs8(path, passphrase)?)?)
}

pub(crate) fn read_pkcs8(path: &Path, passphrase: Option<&Passphrase>) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let text = fs::read(path).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
    pkcs8_from_text(&Zeroizing::new(text), path, passphrase)
}

/// The first private key of a text, as the DER of PKCS #8 without encryption;
/// `path` is for errors. See [`read_private_key`].
///
/// # Errors
///
/// [`KeyFileError`].
pub fn pkcs8_from_text(
    text: &[u8],
    path: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let path = || path.to_owned();
    let malformed = || KeyFileError::Malformed { path: path() };
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err(KeyFileError::Utf16 { path: path() });
    }
    let text = std::str::from_utf8(text).map_err(|_| malformed())?;
    let (label, block) = first_key(text).ok_or_else(malformed)?;
    // The encryption that OpenSSL had before PKCS #8: its key is one MD5 of the passphrase.
    if block.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(KeyFileError::OldEncryption { path: path() });
    }
    if label != EncryptedPrivateKeyInfoRef::PEM_LABEL && passphrase.is_some() {
        return Err(KeyFileError::NotEncrypted { path: path() });
    }
    let (_, document) = SecretDocument::from_pem(block).map_err(|_| malformed())?;
    let plain = match label {
        RSA_LABEL => wrapped_rsa(document.as_bytes()).ok_or_else(malformed)?,
        EC_LABEL => wrapped_ec(document.as_bytes()).ok_or_else(malformed)?,
        EncryptedPrivateKeyInfoRef::PEM_LABEL => {
            let passphrase = passphrase.ok_or_else(|| KeyFileError::PassphraseMissing { path: path() })?;
            let encrypted = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|_| malformed())?;
            encrypted.decrypt(passphrase.0.as_bytes()).map_err(|_| KeyFileError::Passphrase { path: path() })?
        }
        _ => document,
    };
    Ok(Zeroizing::new(plain.as_bytes().to_vec()))
}

/// RSAPrivateKey, by itself (RFC 8017 appendix A.1.2).
const RSA_LABEL: &str = "RSA PRIVATE KEY";
/// ECPrivateKey, by itself (RFC 5915).
const EC_LABEL: &str = "EC PRIVATE KEY";

/// Label and text of the first PEM block with a private key.
fn first_key(text: &str) -> Option<(&'static str, &str)> {
    const LABELS: [&str; 4] =
        [PrivateKeyInfoRef::PEM_LABEL, EncryptedPrivateKeyInfoRef::PEM_LABEL, RSA_LABEL, EC_LABEL];
    let block = |label: &'static str| {
        let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
        let start = text.find(&begin)?;
        let length = text[start..].find(&end)? + end.len();
        Some((start, label, &text[start..start + length]))
    };
    let first = LABELS.into_iter().filter_map(block).min_by_key(|(start, ..)| *start);
    first.map(|(_, label, block)| (label, block))
}

/// The same key as a PrivateKeyInfo (RFC 5958).
fn wrapped_rsa(pkcs1: &[u8]) -> Option<SecretDocument> {
    const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    wrapped(AlgorithmIdentifierRef { oid: RSA_ENCRYPTION, parameters: Some(AnyRef::NULL) }, pkcs1)
}

/// The same key as a PrivateKeyInfo, which names the curve outside.
fn wrapped_ec(sec1: &[u8]) -> Option<SecretDocument> {
    const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    let fields = AnyRef::from_der(sec1).ok()?;
    let mut fields = SliceReader::new(fields.value()).ok()?;
    let _version = u8::decode(&mut fields).ok()?;
    let _key = <&OctetStringRef>::decode(&mut fields).ok()?;
    let parameters = AnyRef::decode(&mut fields).ok()?;
    let is_named = parameters.tag() == Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
    let curve: ObjectIdentifier = is_named.then(|| ObjectIdentifier::from_der(parameters.value()).ok())??;
    wrapped(AlgorithmIdentifierRef { oid: EC_PUBLIC_KEY, parameters: Some((&curve).into()) }, sec1)
}

fn wrapped(algorithm: AlgorithmIdentifierRef<'_>, key: &[u8]) -> Option<SecretDocument> {
    SecretDocument::try_from(PrivateKeyInfoRef::new(algorithm, OctetStringRef::new(key).ok()?)).ok()
}

pub(crate) fn signer(key: &KeyPair) -> Result<PrivateKey, KeyFileError> {
    let der = Zeroizing::new(key.serialize_der());
    Ok(PrivateKey::from_pkcs8_der(&der)?)
}
