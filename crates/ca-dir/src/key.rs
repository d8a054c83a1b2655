//! Private keys: made here, kept in files of mode 0600.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pkcs8::der::Decode as _;
use pkcs8::der::pem::PemLabel as _;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
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

impl Passphrase {
    /// From the text; line ends are part of it.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

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
    /// Not a private key in PKCS #8.
    #[error("{} is not a private key in PKCS #8 (PEM label PRIVATE KEY or ENCRYPTED PRIVATE KEY)", path.display())]
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
    /// The key is encrypted.
    #[error("{} is encrypted: give its passphrase", path.display())]
    PassphraseMissing {
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

/// Reads a key in PKCS #8, decrypting it if it is encrypted, or an RSA key in
/// PKCS #1, as OpenSSL wrote it before version 3.
///
/// # Errors
///
/// [`KeyFileError`] names the file.
pub fn read_private_key(path: &Path, passphrase: Option<&Passphrase>) -> Result<PrivateKey, KeyFileError> {
    let path_of_error = || path.to_owned();
    let pem = fs::read_to_string(path).map_err(|source| KeyFileError::Io { path: path.to_owned(), source })?;
    let pem = Zeroizing::new(pem);
    let malformed = || KeyFileError::Malformed { path: path_of_error() };
    let (label, document) = SecretDocument::from_pem(&pem).map_err(|_| malformed())?;
    let plain = match label {
        PrivateKeyInfoRef::PEM_LABEL if passphrase.is_some() => {
            return Err(KeyFileError::NotEncrypted { path: path_of_error() });
        }
        PrivateKeyInfoRef::PEM_LABEL => document,
        RSA_LABEL if passphrase.is_some() => {
            return Err(KeyFileError::NotEncrypted { path: path_of_error() });
        }
        RSA_LABEL => wrapped_rsa(document.as_bytes()).ok_or_else(malformed)?,
        EncryptedPrivateKeyInfoRef::PEM_LABEL => {
            let passphrase = passphrase.ok_or_else(|| KeyFileError::PassphraseMissing { path: path_of_error() })?;
            let encrypted = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|_| malformed())?;
            encrypted
                .decrypt(passphrase.0.as_bytes())
                .map_err(|_| KeyFileError::Passphrase { path: path_of_error() })?
        }
        _ => return Err(malformed()),
    };
    Ok(PrivateKey::from_pkcs8_der(plain.as_bytes())?)
}

/// RSAPrivateKey, by itself (RFC 8017 appendix A.1.2).
const RSA_LABEL: &str = "RSA PRIVATE KEY";

/// The same key as a PrivateKeyInfo (RFC 5958).
fn wrapped_rsa(pkcs1: &[u8]) -> Option<SecretDocument> {
    use pkcs8::der::asn1::{AnyRef, OctetStringRef};
    use pkcs8::spki::AlgorithmIdentifierRef;

    const RSA_ENCRYPTION: pkcs8::ObjectIdentifier = pkcs8::ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    let algorithm = AlgorithmIdentifierRef { oid: RSA_ENCRYPTION, parameters: Some(AnyRef::NULL) };
    let info = PrivateKeyInfoRef::new(algorithm, OctetStringRef::new(pkcs1).ok()?);
    SecretDocument::try_from(info).ok()
}

pub(crate) fn signer(key: &KeyPair) -> Result<PrivateKey, KeyFileError> {
    let der = Zeroizing::new(key.serialize_der());
    Ok(PrivateKey::from_pkcs8_der(&der)?)
}
