//! Pure Rust: the RustCrypto crates.
//!
//! RSA is for verification only. Private-key operations of the `rsa` crate
//! leak timing (RUSTSEC-2023-0071), so no RSA key signs here.

use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use rsa::BoxedUint;
use rsa::pkcs1v15;
use rsa::pss;
use sha2::{Digest, Sha256, Sha384, Sha512};
use signature::hazmat::PrehashVerifier;
use signature::{SignatureEncoding as _, Signer as _};

use super::{PrivateKeyError, SignError, Signer, Verifier, VerifyError};
use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::key::{PublicKey, RsaNumbers};

/// Verification by p256, p384, p521, ed25519-dalek and rsa.
#[derive(Clone, Copy, Debug, Default)]
pub struct RustCrypto;

impl Verifier for RustCrypto {
    fn verify(
        &self,
        key: &PublicKey<'_>,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), VerifyError> {
        if !algorithm.matches(key.kind()) {
            return Err(VerifyError::Signature);
        }
        match key.kind() {
            KeyKind::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key.bits()).map_err(|_| VerifyError::Key)?;
                let signature = p256::ecdsa::Signature::from_der(signature).map_err(|_| VerifyError::Signature)?;
                verify_ecdsa(&key, algorithm, message, &signature)
            }
            KeyKind::P384 => {
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key.bits()).map_err(|_| VerifyError::Key)?;
                let signature = p384::ecdsa::Signature::from_der(signature).map_err(|_| VerifyError::Signature)?;
                verify_ecdsa(&key, algorithm, message, &signature)
            }
            KeyKind::P521 => {
                let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(key.bits()).map_err(|_| VerifyError::Key)?;
                let signature = p521::ecdsa::Signature::from_der(signature).map_err(|_| VerifyError::Signature)?;
                verify_ecdsa(&key, algorithm, message, &signature)
            }
            KeyKind::Ed25519 => {
                let key = key.bits().try_into().map_err(|_| VerifyError::Key)?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| VerifyError::Key)?;
                let signature = signature.try_into().map_err(|_| VerifyError::Signature)?;
                let signature = ed25519_dalek::Signature::from_bytes(signature);
                key.verify_strict(message, &signature).map_err(|_| VerifyError::Signature)
            }
            KeyKind::Rsa => {
                let key = rsa_key(key.rsa().ok_or(VerifyError::Key)?)?;
                verify_rsa(key, algorithm, message, signature)
            }
        }
    }
}

/// A private key that signs by RFC 6979 (ECDSA) or RFC 8032 (Ed25519), both
/// without randomness.
pub struct PrivateKey {
    key: Key,
    spki: Vec<u8>,
}

enum Key {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    P521(p521::ecdsa::SigningKey),
}

impl PrivateKey {
    /// From the DER of an unencrypted PKCS #8 PrivateKeyInfo (RFC 5958).
    ///
    /// # Errors
    ///
    /// [`PrivateKeyError::Unsupported`] for RSA, [`PrivateKeyError::Malformed`]
    /// for everything else that is not a key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        use ed25519_dalek::pkcs8::EncodePublicKey as _;

        let key = p256::ecdsa::SigningKey::from_pkcs8_der(der)
            .map(Key::P256)
            .or_else(|_| p384::ecdsa::SigningKey::from_pkcs8_der(der).map(Key::P384))
            .or_else(|_| p521::ecdsa::SigningKey::from_pkcs8_der(der).map(Key::P521))
            .or_else(|_| ed25519_dalek::SigningKey::from_pkcs8_der(der).map(Key::Ed25519));
        let Ok(key) = key else {
            let is_pkcs8 = ed25519_dalek::pkcs8::PrivateKeyInfoRef::try_from(der).is_ok();
            return Err(if is_pkcs8 { PrivateKeyError::Unsupported } else { PrivateKeyError::Malformed });
        };
        let spki = match &key {
            Key::Ed25519(key) => key.verifying_key().to_public_key_der(),
            Key::P256(key) => key.verifying_key().to_public_key_der(),
            Key::P384(key) => key.verifying_key().to_public_key_der(),
            Key::P521(key) => key.verifying_key().to_public_key_der(),
        };
        let spki = spki.map_err(|_| PrivateKeyError::Malformed)?.into_vec();
        Ok(Self { key, spki })
    }

    /// From a `PRIVATE KEY` PEM block.
    ///
    /// # Errors
    ///
    /// As [`PrivateKey::from_pkcs8_der`], and [`PrivateKeyError::Pem`].
    pub fn from_pkcs8_pem(pem: &[u8]) -> Result<Self, PrivateKeyError> {
        Self::from_pkcs8_der(&crate::pem::decode_private_key(pem)?)
    }
}

impl Signer for PrivateKey {
    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key {
            Key::Ed25519(_) => SignatureAlgorithm::Ed25519,
            Key::P256(_) => SignatureAlgorithm::EcdsaSha256,
            Key::P384(_) => SignatureAlgorithm::EcdsaSha384,
            Key::P521(_) => SignatureAlgorithm::EcdsaSha512,
        }
    }

    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let failed = |error: signature::Error| SignError { reason: error.to_string() };
        Ok(match &self.key {
            Key::Ed25519(key) => key.try_sign(message).map_err(failed)?.to_vec(),
            Key::P256(key) => {
                let signature: p256::ecdsa::DerSignature = key.try_sign(message).map_err(failed)?;
                signature.to_vec()
            }
            Key::P384(key) => {
                let signature: p384::ecdsa::DerSignature = key.try_sign(message).map_err(failed)?;
                signature.to_vec()
            }
            Key::P521(key) => {
                let signature: p521::ecdsa::DerSignature = key.try_sign(message).map_err(failed)?;
                signature.to_vec()
            }
        })
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// The digest is the signature algorithm's, whatever the curve prefers.
fn verify_ecdsa<S>(
    key: &impl PrehashVerifier<S>,
    algorithm: SignatureAlgorithm,
    message: &[u8],
    signature: &S,
) -> Result<(), VerifyError> {
    let verified = match algorithm {
        SignatureAlgorithm::EcdsaSha256 => key.verify_prehash(&Sha256::digest(message), signature),
        SignatureAlgorithm::EcdsaSha384 => key.verify_prehash(&Sha384::digest(message), signature),
        SignatureAlgorithm::EcdsaSha512 => key.verify_prehash(&Sha512::digest(message), signature),
        _ => return Err(VerifyError::Signature),
    };
    verified.map_err(|_| VerifyError::Signature)
}

fn rsa_key(numbers: RsaNumbers<'_>) -> Result<rsa::RsaPublicKey, VerifyError> {
    const MAX_BITS: usize = 8192;
    if numbers.modulus.len() * 8 > MAX_BITS || numbers.exponent.len() > 8 {
        return Err(VerifyError::Key);
    }
    let modulus = BoxedUint::from_be_slice_vartime(numbers.modulus);
    let exponent = BoxedUint::from_be_slice_vartime(numbers.exponent);
    rsa::RsaPublicKey::new_with_size_limits(modulus, exponent, 1024..=MAX_BITS).map_err(|_| VerifyError::Key)
}

fn verify_rsa(
    key: rsa::RsaPublicKey,
    algorithm: SignatureAlgorithm,
    message: &[u8],
    signature: &[u8],
) -> Result<(), VerifyError> {
    let pkcs1 = || pkcs1v15::Signature::try_from(signature).map_err(|_| VerifyError::Signature);
    let pss = || pss::Signature::try_from(signature).map_err(|_| VerifyError::Signature);
    let verified = match algorithm {
        SignatureAlgorithm::RsaPkcs1Sha256 => {
            pkcs1v15::VerifyingKey::<Sha256>::new(key).verify_prehash(&Sha256::digest(message), &pkcs1()?)
        }
        SignatureAlgorithm::RsaPkcs1Sha384 => {
            pkcs1v15::VerifyingKey::<Sha384>::new(key).verify_prehash(&Sha384::digest(message), &pkcs1()?)
        }
        SignatureAlgorithm::RsaPkcs1Sha512 => {
            pkcs1v15::VerifyingKey::<Sha512>::new(key).verify_prehash(&Sha512::digest(message), &pkcs1()?)
        }
        SignatureAlgorithm::RsaPssSha256 => {
            pss::VerifyingKey::<Sha256>::new(key).verify_prehash(&Sha256::digest(message), &pss()?)
        }
        SignatureAlgorithm::RsaPssSha384 => {
            pss::VerifyingKey::<Sha384>::new(key).verify_prehash(&Sha384::digest(message), &pss()?)
        }
        SignatureAlgorithm::RsaPssSha512 => {
            pss::VerifyingKey::<Sha512>::new(key).verify_prehash(&Sha512::digest(message), &pss()?)
        }
        _ => return Err(VerifyError::Signature),
    };
    verified.map_err(|_| VerifyError::Signature)
}
