//! Secrets that are no private key, encrypted as those are.

use std::path::Path;

use pkcs8::der::{Decode as _, SecretDocument, asn1::OctetStringRef, pem::LineEnding};
use pkcs8::pkcs5::{EncryptionScheme, pbes2};
use pkcs8::{EncryptedPrivateKeyInfo, EncryptedPrivateKeyInfoRef};
use zeroize::Zeroizing;

use crate::key::{KeyFileError, Passphrase};

/// EncryptedPrivateKeyInfo (RFC 5958 section 3) whose content is not what that says.
const LABEL: &str = "ADIT SEALED";

/// Encrypts octets (PBES2: scrypt and AES-256), as PEM.
///
/// # Errors
///
/// [`KeyFileError::Make`].
pub fn seal(octets: &[u8], passphrase: &Passphrase) -> Result<Zeroizing<String>, KeyFileError> {
    let make = |error: &dyn std::fmt::Display| KeyFileError::Make(error.to_string());
    let parameters = pbes2::Parameters::generate();
    let encrypted = parameters.encrypt(passphrase.octets(), octets).map_err(|error| make(&error))?;
    let sealed = EncryptedPrivateKeyInfo {
        encryption_algorithm: EncryptionScheme::from(parameters),
        encrypted_data: OctetStringRef::new(&encrypted).map_err(|error| make(&error))?,
    };
    let document = SecretDocument::encode_msg(&sealed).map_err(|error| make(&error))?;
    document.to_pem(LABEL, LineEnding::LF).map_err(|error| make(&error))
}

/// Decrypts what [`seal`] has made; `path` is for errors. Octets that are not sealed are answered as they
/// are, if there is no passphrase.
///
/// # Errors
///
/// [`KeyFileError::PassphraseMissing`], [`KeyFileError::Passphrase`], [`KeyFileError::NotEncrypted`] and
/// [`KeyFileError::Malformed`].
pub fn unseal(octets: &[u8], path: &Path, passphrase: Option<&Passphrase>) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let path = || path.to_owned();
    let is_sealed = octets.starts_with(b"-----BEGIN ADIT SEALED-----");
    match (is_sealed, passphrase) {
        (false, None) => Ok(Zeroizing::new(octets.to_vec())),
        (false, Some(_)) => Err(KeyFileError::NotEncrypted { path: path() }),
        (true, None) => Err(KeyFileError::PassphraseMissing { path: path() }),
        (true, Some(passphrase)) => {
            let malformed = || KeyFileError::Malformed { path: path() };
            let text = std::str::from_utf8(octets).map_err(|_| malformed())?;
            let (_, document) = SecretDocument::from_pem(text).map_err(|_| malformed())?;
            let sealed = EncryptedPrivateKeyInfoRef::from_der(document.as_bytes()).map_err(|_| malformed())?;
            let data = sealed.encrypted_data.as_bytes();
            let plain = sealed.encryption_algorithm.decrypt(passphrase.octets(), data);
            plain.map(Zeroizing::new).map_err(|_| KeyFileError::Passphrase { path: path() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read_with_its_passphrase_only() {
        let (right, wrong) =
            ["right", "wrong"].map(|text| Passphrase::new(text.to_owned()).expect("a passphrase")).into();
        let path = Path::new("a-file");
        let sealed = seal(b"{\"a\": 1}", &right).expect("sealed");
        assert!(!sealed.contains("\"a\""));
        assert_eq!(unseal(sealed.as_bytes(), path, Some(&right)).expect("opened").as_slice(), b"{\"a\": 1}");
        assert!(matches!(unseal(sealed.as_bytes(), path, Some(&wrong)), Err(KeyFileError::Passphrase { .. })));
        assert!(matches!(unseal(sealed.as_bytes(), path, None), Err(KeyFileError::PassphraseMissing { .. })));
        assert!(matches!(unseal(b"{}", path, Some(&right)), Err(KeyFileError::NotEncrypted { .. })));
        assert_eq!(unseal(b"{}", path, None).expect("as it is").as_slice(), b"{}");
        let cut = &sealed.as_bytes()[..sealed.len() / 2];
        assert!(matches!(unseal(cut, path, Some(&right)), Err(KeyFileError::Malformed { .. })));
    }
}
