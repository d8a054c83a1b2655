//! SHA-256 over the DER, by which people and monitors tell certificates apart.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a DER document, shown as 64 lower-case hex digits.
///
/// `openssl x509 -fingerprint -sha256` prints the same octets with colons and
/// in upper case; both forms parse.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Fingerprint([u8; 32]);

/// A text that is not 32 octets in hex.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a SHA-256 fingerprint has 64 hex digits, with or without colons")]
pub struct FingerprintError;

impl Fingerprint {
    /// The fingerprint of a document in DER.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// The 32 octets.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits: Vec<u8> = text.bytes().filter(|octet| *octet != b':').collect();
        let mut octets = [0; 32];
        match base16ct::mixed::decode(&digits, &mut octets) {
            Ok(all) if all.len() == 32 => {}
            _ => return Err(FingerprintError),
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base16ct::lower::encode_string(&self.0))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_parse() {
        let fingerprint = Fingerprint::of(b"");
        let plain = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(fingerprint.to_string(), plain);
        assert_eq!(plain.parse(), Ok(fingerprint));
        let with_colons = plain.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase());
        assert_eq!(with_colons.collect::<Vec<_>>().join(":").parse(), Ok(fingerprint));
        assert_eq!("e3".parse::<Fingerprint>(), Err(FingerprintError));
        assert_eq!(plain.replace('e', "ß").parse::<Fingerprint>(), Err(FingerprintError));
    }
}
