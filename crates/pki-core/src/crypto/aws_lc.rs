//! AWS-LC through aws-lc-rs: the fast backend, and the one that signs with RSA.

use aws_lc_rs::rand;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, ParsedPublicKey, RsaKeyPair,
    UnparsedPublicKey, VerificationAlgorithm,
};

use super::{PrivateKeyError, SignError, Signer, Verifier, VerifyError};
use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::key::{PublicKey, is_weak_ed25519};

/// Verification by AWS-LC.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsLc;

impl Verifier for AwsLc {
    fn verify(
        &self,
        key: &PublicKey<'_>,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), VerifyError> {
        let verification = verification(key.kind(), algorithm).ok_or(VerifyError::Signature)?;
        // AWS-LC checks less than RFC 8032's strict verification: R of small order passes there.
        if algorithm == SignatureAlgorithm::Ed25519 && (signature.len() != 64 || is_weak_ed25519(&signature[..32])) {
            return Err(VerifyError::Signature);
        }
        UnparsedPublicKey::new(verification, key.bits()).verify(message, signature).map_err(|_| {
            // AWS-LC does not say which of the two was wrong; asking costs only refusals.
            match ParsedPublicKey::new(verification, key.bits()) {
                Ok(_) => VerifyError::Signature,
                Err(_) => VerifyError::Key,
            }
        })
    }
}

/// A private key; ECDSA takes its nonces from the operating system.
pub struct PrivateKey {
    key: Key,
    spki: Vec<u8>,
}

enum Key {
    Ecdsa(EcdsaKeyPair, SignatureAlgorithm),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl PrivateKey {
    /// From the DER of an unencrypted PKCS #8 PrivateKeyInfo (RFC 5958).
    ///
    /// # Errors
    ///
    /// [`PrivateKeyError::Malformed`] when it is no key that AWS-LC reads.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, PrivateKeyError> {
        use aws_lc_rs::encoding::AsDer as _;

        let ecdsa = |signing: &'static EcdsaSigningAlgorithm, algorithm| {
            EcdsaKeyPair::from_pkcs8(signing, der).map(|key| Key::Ecdsa(key, algorithm))
        };
        let key = ecdsa(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, SignatureAlgorithm::EcdsaSha256)
            .or_else(|_| ecdsa(&signature::ECDSA_P384_SHA384_ASN1_SIGNING, SignatureAlgorithm::EcdsaSha384))
            .or_else(|_| ecdsa(&signature::ECDSA_P521_SHA512_ASN1_SIGNING, SignatureAlgorithm::EcdsaSha512))
            .or_else(|_| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Key::Ed25519))
            .or_else(|_| RsaKeyPair::from_pkcs8(der).map(|key| Key::Rsa(Box::new(key))))
            .map_err(|_| PrivateKeyError::Malformed)?;
        let spki = match &key {
            Key::Ecdsa(key, _) => key.public_key().as_der(),
            Key::Ed25519(key) => key.public_key().as_der(),
            Key::Rsa(key) => key.public_key().as_der(),
        };
        let spki = spki.map_err(|_| PrivateKeyError::Malformed)?.as_ref().to_vec();
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
        match &self.key {
            Key::Ecdsa(_, algorithm) => *algorithm,
            Key::Ed25519(_) => SignatureAlgorithm::Ed25519,
            Key::Rsa(_) => SignatureAlgorithm::RsaPkcs1Sha256,
        }
    }

    fn spki(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        // AWS-LC takes the nonces of ECDSA from a generator of its own, whatever is passed here.
        #[expect(clippy::disallowed_types, reason = "the backend's own nonces are no value of ours")]
        let random = rand::SystemRandom::new();
        let failed = |error: aws_lc_rs::error::Unspecified| SignError { reason: error.to_string() };
        match &self.key {
            Key::Ecdsa(key, _) => Ok(key.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            Key::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

fn verification(key: KeyKind, algorithm: SignatureAlgorithm) -> Option<&'static dyn VerificationAlgorithm> {
    use SignatureAlgorithm as Algorithm;

    Some(match (key, algorithm) {
        (KeyKind::P256, Algorithm::EcdsaSha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (KeyKind::P256, Algorithm::EcdsaSha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (KeyKind::P256, Algorithm::EcdsaSha512) => &signature::ECDSA_P256_SHA512_ASN1,
        (KeyKind::P384, Algorithm::EcdsaSha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (KeyKind::P384, Algorithm::EcdsaSha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (KeyKind::P384, Algorithm::EcdsaSha512) => &signature::ECDSA_P384_SHA512_ASN1,
        (KeyKind::P521, Algorithm::EcdsaSha256) => &signature::ECDSA_P521_SHA256_ASN1,
        (KeyKind::P521, Algorithm::EcdsaSha384) => &signature::ECDSA_P521_SHA384_ASN1,
        (KeyKind::P521, Algorithm::EcdsaSha512) => &signature::ECDSA_P521_SHA512_ASN1,
        (KeyKind::Ed25519, Algorithm::Ed25519) => &signature::ED25519,
        (KeyKind::Rsa, Algorithm::RsaPkcs1Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (KeyKind::Rsa, Algorithm::RsaPkcs1Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (KeyKind::Rsa, Algorithm::RsaPkcs1Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (KeyKind::Rsa, Algorithm::RsaPssSha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (KeyKind::Rsa, Algorithm::RsaPssSha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (KeyKind::Rsa, Algorithm::RsaPssSha512) => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
