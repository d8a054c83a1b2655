//! Public keys: what a SubjectPublicKeyInfo holds, and which keys are refused
//! whoever asks.

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::algorithm::KeyKind;
use crate::der::{self, DerError, Reader};
use crate::oid::{self, ObjectIdentifier};
use crate::weak_rsa;

/// A public key as its SubjectPublicKeyInfo has it (RFC 5280 section 4.1.2.7).
///
/// A value of this type is well-formed; whether an elliptic curve point lies
/// on its curve is the backend's to say.
#[derive(Clone, Copy, Debug)]
pub struct PublicKey<'a> {
    kind: KeyKind,
    spki: &'a [u8],
    bits: &'a [u8],
    rsa: Option<RsaNumbers<'a>>,
}

/// Modulus and exponent, big-endian without leading zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RsaNumbers<'a> {
    pub(crate) modulus: &'a [u8],
    pub(crate) exponent: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// Reads the DER of a SubjectPublicKeyInfo.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when the algorithm is not known or the key is not in the
    /// form that its RFC fixes (RFC 3279, RFC 5480, RFC 8410). Size and
    /// strength are not looked at: see [`KeyPolicy`].
    pub fn from_der(spki: &'a [u8]) -> Result<Self, KeyError> {
        let mut document = Reader::new(spki);
        let outer = document.element(der::SEQUENCE, "SubjectPublicKeyInfo")?;
        document.end("the end of the SubjectPublicKeyInfo")?;
        let mut fields = outer.reader();
        let algorithm = fields.element(der::SEQUENCE, "AlgorithmIdentifier of the key")?;
        let bits = fields.element(der::BIT_STRING, "BIT STRING of the key")?.bit_string_octets()?;
        fields.end("the end of the SubjectPublicKeyInfo")?;

        let mut algorithm = algorithm.reader();
        let identifier = algorithm.element(der::OBJECT_IDENTIFIER, "OBJECT IDENTIFIER of the key")?;
        let key = |kind| Self { kind, spki, bits, rsa: None };
        match identifier.object_identifier()? {
            oid::EC_PUBLIC_KEY => {
                let kind = named_curve(&mut algorithm)?;
                let is_uncompressed = bits.len() == uncompressed_length(kind) && bits[0] == 0x04;
                if is_uncompressed { Ok(key(kind)) } else { Err(KeyError::PointForm) }
            }
            oid::ED25519 => {
                algorithm.end("no parameters").map_err(|_| KeyError::KeyParameters { key: "Ed25519" })?;
                if bits.len() == 32 { Ok(key(KeyKind::Ed25519)) } else { Err(KeyError::Ed25519Point) }
            }
            oid::RSA_ENCRYPTION => {
                let null = algorithm.element(der::NULL, "NULL");
                if !null.is_ok_and(|null| null.value.is_empty()) || !algorithm.is_empty() {
                    return Err(KeyError::KeyParameters { key: "RSA" });
                }
                Ok(Self { rsa: Some(rsa_numbers(bits)?), ..key(KeyKind::Rsa) })
            }
            oid::RSASSA_PSS => Err(KeyError::RsaPss),
            algorithm => Err(KeyError::KeyAlgorithm { algorithm: ObjectIdentifier::new(algorithm) }),
        }
    }

    /// Family and curve.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The whole SubjectPublicKeyInfo in DER, as it was read.
    pub fn spki(&self) -> &'a [u8] {
        self.spki
    }

    /// The key without its algorithm: an uncompressed point, 32 octets of
    /// Ed25519 or the DER of an RSAPublicKey.
    pub fn bits(&self) -> &'a [u8] {
        self.bits
    }

    /// The size in bits by which people call the key: 256 for P-256, the
    /// modulus for RSA.
    pub fn size(&self) -> u32 {
        match (self.kind, self.rsa) {
            (_, Some(rsa)) => bit_length(rsa.modulus),
            (KeyKind::P384, _) => 384,
            (KeyKind::P521, _) => 521,
            _ => 256,
        }
    }

    /// RSA keys of fewer bits can be factored, and of more take too long.
    pub(crate) fn check_size(&self) -> Result<(), KeyError> {
        match (self.kind, self.size()) {
            (KeyKind::Rsa, bits) if !(2048..=8192).contains(&bits) => Err(KeyError::RsaModulusSize { bits }),
            _ => Ok(()),
        }
    }

    #[cfg(feature = "rustcrypto")]
    pub(crate) fn rsa(&self) -> Option<RsaNumbers<'a>> {
        self.rsa
    }
}

/// Which well-formed keys are refused all the same.
///
/// RSA of 2048 to 8192 bits with an exponent from 65537 to 2^31 - 1, without
/// a factor up to 751, without the ROCA fingerprint and out of reach of 100
/// rounds of Fermat's method; Ed25519 points that are canonical and not of
/// small order; nothing from the block list.
#[derive(Clone, Debug, Default)]
pub struct KeyPolicy {
    blocked: BTreeSet<[u8; 32]>,
}

impl KeyPolicy {
    /// The policy with an empty block list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses the key whose SubjectPublicKeyInfo has this SHA-256: one that
    /// is known to be compromised, or a Debian weak key (CVE-2008-0166).
    #[must_use]
    pub fn block(mut self, spki_sha256: [u8; 32]) -> Self {
        self.blocked.insert(spki_sha256);
        self
    }

    /// Checks one key.
    ///
    /// # Errors
    ///
    /// The [`KeyError`] of the first rule that the key breaks.
    pub fn check(&self, key: &PublicKey<'_>) -> Result<(), KeyError> {
        if let Some(rsa) = key.rsa {
            weak_rsa::check(rsa)?;
        }
        if key.kind == KeyKind::Ed25519 && is_weak_ed25519(key.bits) {
            return Err(KeyError::Ed25519Point);
        }
        if !self.blocked.is_empty() {
            let spki_sha256 = Sha256::digest(key.spki).into();
            if self.blocked.contains(&spki_sha256) {
                return Err(KeyError::BlockedKey { spki_sha256 });
            }
        }
        Ok(())
    }
}

/// Why a public key is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not the DER of a SubjectPublicKeyInfo.
    #[error("the key is not valid DER: {0}")]
    Der(DerError),
    /// Neither RSA, ECDSA nor Ed25519.
    #[error("keys of algorithm {algorithm} are not signed: use P-256, P-384, P-521, Ed25519 or RSA")]
    KeyAlgorithm {
        /// `algorithm` of the SubjectPublicKeyInfo.
        algorithm: ObjectIdentifier,
    },
    /// A key for RSASSA-PSS alone, which few clients of TLS take.
    #[error("the key is one for RSA-PSS alone: make a plain RSA key, which signs with RSA-PSS as well")]
    RsaPss,
    /// A named curve other than the three NIST curves.
    #[error("curve {curve} is not signed: use P-256, P-384 or P-521")]
    Curve {
        /// The curve's identifier.
        curve: ObjectIdentifier,
    },
    /// Curve parameters written out (CVE-2020-0601 started so).
    #[error("the key spells out its curve parameters: name the curve instead (RFC 5480)")]
    ExplicitCurve,
    /// RSA parameters that are not NULL, Ed25519 parameters that are present, and the like.
    #[error("the {key} key has wrong algorithm parameters")]
    KeyParameters {
        /// The key's family, for example `RSA`.
        key: &'static str,
    },
    /// A compressed, hybrid or empty point.
    #[error("the key's point is not in uncompressed form (RFC 5480 section 2.2; openssl: -conv_form uncompressed)")]
    PointForm,
    /// The point does not satisfy the curve's equation.
    #[error("the key's point is not on its curve")]
    PointNotOnCurve,
    /// An Ed25519 key of the wrong length, of small order or not canonical.
    #[error("the Ed25519 key is not a point of the prime-order group: make a new key")]
    Ed25519Point,
    /// The RSA modulus is too short or too long.
    #[error("the RSA key has {bits} bits: use 2048 to 8192")]
    RsaModulusSize {
        /// Bits of the modulus.
        bits: u32,
    },
    /// An exponent that is even, under 65537 or over 31 bits.
    #[error("the RSA key's public exponent is not accepted: use 65537")]
    RsaExponent,
    /// The modulus has a small factor.
    #[error("the RSA modulus is divisible by {factor}: the key is broken, make a new one")]
    RsaSmallFactor {
        /// The smallest prime found.
        factor: u32,
    },
    /// The fingerprint of CVE-2017-15361.
    #[error("the RSA key was made by a library with the ROCA weakness (CVE-2017-15361): make a new one elsewhere")]
    RsaRoca,
    /// Fermat's method factors the modulus (CVE-2022-26320).
    #[error("the RSA key's two primes are too close to each other: the key is broken, make a new one")]
    RsaClosePrimes,
    /// The caller's block list has this key.
    #[error("this key is known to be compromised: make a new one")]
    BlockedKey {
        /// SHA-256 of the SubjectPublicKeyInfo.
        spki_sha256: [u8; 32],
    },
}

// Not `#[from]`: the text tells it, and whoever prints a chain of sources would tell it twice.
impl From<DerError> for KeyError {
    fn from(error: DerError) -> Self {
        Self::Der(error)
    }
}

fn named_curve(algorithm: &mut Reader<'_>) -> Result<KeyKind, KeyError> {
    let parameters = algorithm.any("named curve").map_err(|_| KeyError::KeyParameters { key: "EC" })?;
    if !algorithm.is_empty() {
        return Err(KeyError::KeyParameters { key: "EC" });
    }
    match parameters.tag {
        der::OBJECT_IDENTIFIER => match parameters.object_identifier()? {
            oid::P256 => Ok(KeyKind::P256),
            oid::P384 => Ok(KeyKind::P384),
            oid::P521 => Ok(KeyKind::P521),
            curve => Err(KeyError::Curve { curve: ObjectIdentifier::new(curve) }),
        },
        der::SEQUENCE => Err(KeyError::ExplicitCurve),
        _ => Err(KeyError::KeyParameters { key: "EC" }),
    }
}

fn uncompressed_length(kind: KeyKind) -> usize {
    match kind {
        KeyKind::P384 => 1 + 2 * 48,
        KeyKind::P521 => 1 + 2 * 66,
        _ => 1 + 2 * 32,
    }
}

fn rsa_numbers(public_key: &[u8]) -> Result<RsaNumbers<'_>, DerError> {
    let mut document = Reader::new(public_key);
    let outer = document.element(der::SEQUENCE, "RSAPublicKey")?;
    document.end("the end of the RSAPublicKey")?;
    let mut fields = outer.reader();
    let modulus = fields.element(der::INTEGER, "RSA modulus")?.unsigned_integer()?;
    let exponent = fields.element(der::INTEGER, "RSA exponent")?.unsigned_integer()?;
    fields.end("the end of the RSAPublicKey")?;
    Ok(RsaNumbers { modulus, exponent })
}

/// Bits of a big-endian number without leading zeros.
pub(crate) fn bit_length(number: &[u8]) -> u32 {
    let Some(first) = number.first() else { return 0 };
    u32::try_from(number.len()).unwrap_or(u32::MAX / 8).saturating_mul(8) - first.leading_zeros()
}

/// The y coordinates of the eight points of small order, little-endian,
/// without the sign bit of x. Signatures by such a key verify for messages
/// that nobody signed (RFC 8032 section 8.9 leaves the check to us).
const SMALL_ORDER_Y: [[u8; 32]; 5] = {
    let mut one = [0; 32];
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    minus_one[31] = 0x7f;
    [
        [0; 32],
        one,
        minus_one,
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
            0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
            0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
        ],
    ]
};

/// Is the encoded point of small order, or not in its canonical form?
pub(crate) fn is_weak_ed25519(key: &[u8]) -> bool {
    let Ok(mut y) = <[u8; 32]>::try_from(key) else { return true };
    y[31] &= 0x7f;
    // p = 2^255 - 19; a y of p or more is another spelling of a smaller one.
    let is_canonical = y[0] < 0xed || y[1..31].iter().any(|octet| *octet != 0xff) || y[31] != 0x7f;
    !is_canonical || SMALL_ORDER_Y.contains(&y)
}
