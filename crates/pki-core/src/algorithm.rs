//! Keys and signature algorithms: what the gate knows, and how DER names it.

use std::fmt;

use serde::Serialize;

use crate::der::{self, DerError, Reader, Tlv};
use crate::oid::{self, ObjectIdentifier};

/// The family and curve of a public key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum KeyKind {
    /// NIST P-256, secp256r1.
    #[serde(rename = "P-256")]
    P256,
    /// NIST P-384, secp384r1.
    #[serde(rename = "P-384")]
    P384,
    /// NIST P-521, secp521r1.
    #[serde(rename = "P-521")]
    P521,
    /// Edwards curve 25519 (RFC 8410).
    Ed25519,
    /// RSA of any size.
    #[serde(rename = "RSA")]
    Rsa,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        })
    }
}

/// A signature algorithm that is accepted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub enum SignatureAlgorithm {
    /// ecdsa-with-SHA256 (RFC 5758).
    EcdsaSha256,
    /// ecdsa-with-SHA384.
    EcdsaSha384,
    /// ecdsa-with-SHA512.
    EcdsaSha512,
    /// Ed25519 (RFC 8410).
    Ed25519,
    /// sha256WithRSAEncryption (RFC 4055).
    RsaPkcs1Sha256,
    /// sha384WithRSAEncryption.
    RsaPkcs1Sha384,
    /// sha512WithRSAEncryption.
    RsaPkcs1Sha512,
    /// RSASSA-PSS with SHA-256, MGF1 with the same and 32 octets of salt.
    RsaPssSha256,
    /// RSASSA-PSS with SHA-384, MGF1 with the same and 48 octets of salt.
    RsaPssSha384,
    /// RSASSA-PSS with SHA-512, MGF1 with the same and 64 octets of salt.
    RsaPssSha512,
}

impl SignatureAlgorithm {
    /// Can a key of this kind make such a signature?
    ///
    /// Any SHA-2 goes with any curve: requests sign with SHA-256 whatever
    /// their key is.
    pub fn matches(self, key: KeyKind) -> bool {
        match self {
            Self::EcdsaSha256 | Self::EcdsaSha384 | Self::EcdsaSha512 => {
                matches!(key, KeyKind::P256 | KeyKind::P384 | KeyKind::P521)
            }
            Self::Ed25519 => key == KeyKind::Ed25519,
            Self::RsaPkcs1Sha256
            | Self::RsaPkcs1Sha384
            | Self::RsaPkcs1Sha512
            | Self::RsaPssSha256
            | Self::RsaPssSha384
            | Self::RsaPssSha512 => key == KeyKind::Rsa,
        }
    }

    /// The AlgorithmIdentifier in DER.
    pub(crate) fn identifier_der(self) -> &'static [u8] {
        match self {
            Self::EcdsaSha256 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02",
            Self::EcdsaSha384 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03",
            Self::EcdsaSha512 => b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04",
            Self::Ed25519 => b"\x30\x05\x06\x03\x2b\x65\x70",
            Self::RsaPkcs1Sha256 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00",
            Self::RsaPkcs1Sha384 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00",
            Self::RsaPkcs1Sha512 => b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00",
            Self::RsaPssSha256 => RSA_PSS_SHA256,
            Self::RsaPssSha384 => RSA_PSS_SHA384,
            Self::RsaPssSha512 => RSA_PSS_SHA512,
        }
    }

    /// Reads an AlgorithmIdentifier, or says what is wrong with it.
    pub(crate) fn read(identifier: &Tlv<'_>) -> Result<Self, AlgorithmError> {
        if let Some(known) = FIXED.iter().find(|known| known.identifier_der() == identifier.whole) {
            return Ok(*known);
        }
        let mut fields = identifier.reader();
        let algorithm = fields.element(der::OBJECT_IDENTIFIER, "OBJECT IDENTIFIER of the signature algorithm")?;
        let algorithm = algorithm.object_identifier()?;
        if algorithm == oid::RSASSA_PSS {
            return read_pss(fields);
        }
        if let Some((_, digest)) = WEAK.iter().find(|(weak, _)| *weak == algorithm) {
            return Err(AlgorithmError::WeakDigest(digest));
        }
        match FIXED.iter().find(|known| known.identifier() == algorithm) {
            // RFC 4055 section 5: RSA's NULL may be left out.
            Some(known) if known.matches(KeyKind::Rsa) && fields.is_empty() => Ok(*known),
            Some(_) => Err(AlgorithmError::Parameters),
            None => Err(AlgorithmError::Unknown(ObjectIdentifier::new(algorithm))),
        }
    }

    /// The content of the OBJECT IDENTIFIER.
    fn identifier(self) -> &'static [u8] {
        // SEQUENCE header and OBJECT IDENTIFIER header take two octets each.
        let der = self.identifier_der();
        &der[4..4 + usize::from(der[3])]
    }
}

impl fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaSha256 => "ECDSA with SHA-256",
            Self::EcdsaSha384 => "ECDSA with SHA-384",
            Self::EcdsaSha512 => "ECDSA with SHA-512",
            Self::Ed25519 => "Ed25519",
            Self::RsaPkcs1Sha256 => "RSA with SHA-256",
            Self::RsaPkcs1Sha384 => "RSA with SHA-384",
            Self::RsaPkcs1Sha512 => "RSA with SHA-512",
            Self::RsaPssSha256 => "RSA-PSS with SHA-256",
            Self::RsaPssSha384 => "RSA-PSS with SHA-384",
            Self::RsaPssSha512 => "RSA-PSS with SHA-512",
        })
    }
}

/// Why an AlgorithmIdentifier names no accepted signature algorithm.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AlgorithmError {
    /// Not an AlgorithmIdentifier.
    #[error(transparent)]
    Der(#[from] DerError),
    /// A known algorithm with parameters that its RFC does not allow.
    #[error("the signature algorithm has wrong parameters")]
    Parameters,
    /// RSASSA-PSS with another salt than its digest is long.
    #[error("the RSA-PSS signature has {found} octets of salt, not {expected}")]
    SaltLength {
        /// Octets that are said.
        found: u64,
        /// Octets of the digest.
        expected: u64,
    },
    /// Not in the list.
    #[error("signature algorithm {0} is not accepted")]
    Unknown(ObjectIdentifier),
    /// MD2, MD4, MD5 or SHA-1.
    #[error("signatures with {0} are not accepted")]
    WeakDigest(&'static str),
}

/// Algorithms whose identifier has one encoding.
const FIXED: [SignatureAlgorithm; 7] = [
    SignatureAlgorithm::EcdsaSha256,
    SignatureAlgorithm::EcdsaSha384,
    SignatureAlgorithm::EcdsaSha512,
    SignatureAlgorithm::RsaPkcs1Sha256,
    SignatureAlgorithm::RsaPkcs1Sha384,
    SignatureAlgorithm::RsaPkcs1Sha512,
    SignatureAlgorithm::Ed25519,
];

const WEAK: [(&[u8], &str); 6] = [
    (b"\x2a\x86\x48\xce\x3d\x04\x01", "SHA-1"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x02", "MD2"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x03", "MD4"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", "MD5"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", "SHA-1"),
    (b"\x2b\x0e\x03\x02\x1d", "SHA-1"),
];

macro_rules! pss_identifier {
    ($digest:literal, $salt:literal) => {
        &[
            0x30, 0x41, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30,
            0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, $digest, 0x05, 0x00, 0xa1, 0x1c, 0x30,
            0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86,
            0x48, 0x01, 0x65, 0x03, 0x04, 0x02, $digest, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, $salt,
        ]
    };
}
const RSA_PSS_SHA256: &[u8] = pss_identifier!(1, 32);
const RSA_PSS_SHA384: &[u8] = pss_identifier!(2, 48);
const RSA_PSS_SHA512: &[u8] = pss_identifier!(3, 64);

/// RSASSA-PSS-params (RFC 4055 section 3.1) with one digest throughout and
/// salt as long as the digest, which is all that TLS 1.3 and both backends use.
fn read_pss(mut fields: Reader<'_>) -> Result<SignatureAlgorithm, AlgorithmError> {
    let parameters = fields.element(der::SEQUENCE, "RSASSA-PSS-params").map_err(|_| AlgorithmError::Parameters)?;
    let mut parameters = parameters.reader();
    let mut explicit = |number| {
        let field = parameters.element(der::context(number), "RSASSA-PSS-params field")?;
        field.reader().any("RSASSA-PSS-params field")
    };
    let Ok(hash) = explicit(0) else {
        // Left out, it means SHA-1.
        return Err(AlgorithmError::WeakDigest("SHA-1"));
    };
    let (Ok(mask), Ok(salt)) = (explicit(1), explicit(2)) else {
        return Err(AlgorithmError::Parameters);
    };
    let mut mask = mask.reader();
    let mask_algorithm = mask.element(der::OBJECT_IDENTIFIER, "MGF1")?.object_identifier()?;
    let mask_hash = mask.element(der::SEQUENCE, "MGF1 digest")?;
    let digest = digest(&hash)?;
    let (algorithm, expected) = match digest {
        oid::SHA_256 => (SignatureAlgorithm::RsaPssSha256, 32),
        oid::SHA_384 => (SignatureAlgorithm::RsaPssSha384, 48),
        oid::SHA_512 => (SignatureAlgorithm::RsaPssSha512, 64),
        oid::SHA_1 => return Err(AlgorithmError::WeakDigest("SHA-1")),
        _ => return Err(AlgorithmError::Parameters),
    };
    let found = salt.small_integer()?;
    if found != expected {
        return Err(AlgorithmError::SaltLength { found, expected });
    }
    let same = mask_algorithm == oid::MGF1 && self::digest(&mask_hash)? == digest;
    if same && parameters.is_empty() && fields.is_empty() { Ok(algorithm) } else { Err(AlgorithmError::Parameters) }
}

/// A digest's AlgorithmIdentifier; its parameters are NULL or absent (RFC 4055 section 2.1).
fn digest<'a>(identifier: &Tlv<'a>) -> Result<&'a [u8], AlgorithmError> {
    let mut fields = identifier.reader();
    let algorithm = fields.element(der::OBJECT_IDENTIFIER, "digest algorithm")?.object_identifier()?;
    if let Some(null) = fields.optional(der::NULL, "NULL")?
        && !null.value.is_empty()
    {
        return Err(AlgorithmError::Parameters);
    }
    if fields.is_empty() { Ok(algorithm) } else { Err(AlgorithmError::Parameters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_reads_back() {
        use SignatureAlgorithm::*;
        for algorithm in [
            EcdsaSha256,
            EcdsaSha384,
            EcdsaSha512,
            Ed25519,
            RsaPkcs1Sha256,
            RsaPkcs1Sha384,
            RsaPkcs1Sha512,
            RsaPssSha256,
            RsaPssSha384,
            RsaPssSha512,
        ] {
            let mut reader = Reader::new(algorithm.identifier_der());
            let tlv = reader.element(der::SEQUENCE, "AlgorithmIdentifier").expect("well-formed");
            assert_eq!(SignatureAlgorithm::read(&tlv), Ok(algorithm));
            assert!(reader.is_empty());
        }
    }

    /// openssl/openssl#8621: the default is the longest salt that fits.
    #[test]
    fn another_salt_is_named() {
        let mut der = RSA_PSS_SHA256.to_vec();
        *der.last_mut().expect("the salt") = 94;
        let tlv = Reader::new(&der).element(der::SEQUENCE, "AlgorithmIdentifier").expect("well-formed");
        assert_eq!(SignatureAlgorithm::read(&tlv), Err(AlgorithmError::SaltLength { found: 94, expected: 32 }));
    }
}
