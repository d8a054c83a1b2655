//! The two operations that policy needs from cryptography, and two backends.
//!
//! [`rustcrypto`] is pure Rust and the default; [`aws_lc`] (feature
//! `aws-lc-rs`) is three to five times as fast. A key in an HSM or a KMS is a
//! [`Signer`] of the caller's own.

use crate::algorithm::SignatureAlgorithm;
use crate::key::PublicKey;

#[cfg(feature = "aws-lc-rs")]
pub mod aws_lc;
#[cfg(feature = "rustcrypto")]
pub mod rustcrypto;

/// Checks signatures.
pub trait Verifier: Send + Sync {
    /// Is `signature` one that the holder of `key` made over `message`?
    ///
    /// # Errors
    ///
    /// [`VerifyError::Key`] when the key is no point of its curve,
    /// [`VerifyError::Signature`] when the signature is not the key's or the
    /// algorithm is not for such keys.
    fn verify(
        &self,
        key: &PublicKey<'_>,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), VerifyError>;
}

/// Makes signatures with one private key.
pub trait Signer: Send + Sync {
    /// The algorithm of every signature that [`Signer::sign`] makes.
    fn algorithm(&self) -> SignatureAlgorithm;

    /// The SubjectPublicKeyInfo of the key in DER.
    fn spki(&self) -> &[u8];

    /// Signs `message` (not its digest).
    ///
    /// # Errors
    ///
    /// When the key cannot be used now: an HSM that is gone, a source of
    /// randomness that fails.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

impl<S: Signer + ?Sized> Signer for Box<S> {
    fn algorithm(&self) -> SignatureAlgorithm {
        (**self).algorithm()
    }

    fn spki(&self) -> &[u8] {
        (**self).spki()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        (**self).sign(message)
    }
}

/// Why a signature does not verify.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The key is not a point of its curve, or no key at all.
    #[error("the public key is not valid")]
    Key,
    /// The signature was not made by the key over the message.
    #[error("the signature does not match")]
    Signature,
}

/// A private key that did not sign.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the private key could not sign: {reason}")]
pub struct SignError {
    /// What the backend says; holds no secret.
    pub reason: String,
}

/// Why a private key is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateKeyError {
    /// Not PKCS #8, or a key that contradicts itself.
    #[error("not a PKCS #8 private key")]
    Malformed,
    /// The PEM block is encrypted or something else.
    #[error(transparent)]
    Pem(#[from] crate::pem::PemError),
    /// A kind of key that the backend does not sign with.
    #[error("keys of this kind cannot sign here: use P-256, P-384, P-521 or Ed25519")]
    Unsupported,
}
