//! Secrets that are shown once: API keys and connect secrets.
//!
//! Both are compared by their SHA-256, in constant time. A plain digest is
//! enough: what we make has 256 random bits, and no dictionary reaches there.

use std::fmt;
use std::str::FromStr;

use crate::decide::Caller;
use crate::id::{KeyId, SecretHash};
use crate::record::ApiKey;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const PREFIX: &str = "ApiKey_";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// An API key in full, as a client presents it.
///
/// Ours are `ApiKey_` + UUID + `.` + 43 characters; the operator's first key
/// may be any printable ASCII of 16 to 256 characters.
#[derive(Clone)]
pub struct ApiKeySecret(String);

/// A text that cannot be an API key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an API key has 16 to 256 printable ASCII characters and no blanks")]
pub struct SecretError;

impl ApiKeySecret {
    /// A key with this id and 32 random octets.
    pub fn generate(id: KeyId, random: &[u8; 32]) -> Self {
        Self(format!("{}.{}", key_id_text(id), base64url(random)))
    }

    /// The id under which the key is stored: its own, or for a key in a form
    /// of the operator's one that follows from the whole key.
    pub fn id(&self) -> KeyId {
        let own = self.0.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')).and_then(|(id, _)| id.parse().ok());
        own.unwrap_or_else(|| {
            let digest = Sha256::new().chain_update(b"adit api key id").chain_update(&self.0).finalize();
            let mut octets = [0; 16];
            octets.copy_from_slice(&digest[..16]);
            KeyId::from_random(octets)
        })
    }

    /// What is stored of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(&self.0)
    }

    /// The last four characters, by which people tell keys apart.
    pub fn last4(&self) -> &str {
        // ASCII of at least 16 characters.
        &self.0[self.0.len() - 4..]
    }

    /// The key itself, to be shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKeySecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let is_key = (16..=256).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_graphic());
        if is_key { Ok(Self(text.to_owned())) } else { Err(SecretError) }
    }
}

impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(..)")
    }
}

/// `ApiKey_` and the UUID, as clients see it.
pub fn key_id_text(id: KeyId) -> String {
    format!("{PREFIX}{id}")
}

/// The id in `ApiKey_…` or a bare UUID.
pub fn parse_key_id(text: &str) -> Option<KeyId> {
    text.strip_prefix(PREFIX).unwrap_or(text).parse().ok()
}

/// A connect secret from 32 random octets: 43 characters that fit an HTTP header.
pub fn connect_secret(random: &[u8; 32]) -> String {
    base64url(random)
}

impl SecretHash {
    /// Hashes a secret.
    pub fn of(secret: &str) -> Self {
        Self::from_sha256(Sha256::digest(secret).into())
    }

    /// Is this the hash of the same secret? Takes the same time for every answer.
    pub fn matches(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl ApiKey {
    /// Who presents `secret`, if it is this key and still of use?
    pub fn caller(&self, secret: &ApiKeySecret) -> Option<Caller> {
        (secret.hash().matches(&self.hash) && self.revoked_at.is_none()).then(|| Caller::Key {
            id: self.id,
            organization: self.organization.clone(),
            scope: self.scope,
        })
    }
}

/// base64url without padding (RFC 4648 section 5).
fn base64url(octets: &[u8; 32]) -> String {
    let mut text = String::with_capacity(43);
    for chunk in octets.chunks(3) {
        let mut triple = [0; 4];
        triple[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(triple);
        for at in 0..=chunk.len() {
            let index = bits >> (18 - 6 * at) & 0x3f;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_carries_its_id() {
        let id = KeyId::from_random([7; 16]);
        let key = ApiKeySecret::generate(id, &[9; 32]);
        assert_eq!(key.id(), id);
        assert_eq!(key.expose().len(), PREFIX.len() + 36 + 1 + 43);
        assert_eq!(key.expose().parse::<ApiKeySecret>().map(|key| key.id()), Ok(id));
        assert_eq!(format!("{key:?}"), "ApiKeySecret(..)");
    }

    #[test]
    fn keys_of_the_operators_form_have_an_id_too() {
        let key: ApiKeySecret = "correct-horse-battery".parse().expect("a key");
        let other: ApiKeySecret = "correct-horse-batterz".parse().expect("a key");
        assert_ne!(key.id(), other.id());
        assert_eq!(key.last4(), "tery");
        for bad in ["short", "has a blank in the middle", "ümlaut-and-long-enough", &"x".repeat(257)] {
            assert!(bad.parse::<ApiKeySecret>().is_err(), "{bad}");
        }
    }

    #[test]
    fn base64url_is_what_rfc_4648_says() {
        let octets: Vec<u8> = (0..32).map(|octet| octet * 8 + 3).collect();
        let octets: [u8; 32] = octets.try_into().expect("32 octets");
        assert_eq!(base64url(&octets), "AwsTGyMrMztDS1NbY2tze4OLk5ujq7O7w8vT2-Pr8_s");
    }
}
