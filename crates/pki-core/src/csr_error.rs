//! Why a request is refused: one variant a reason, with what the requester
//! needs to mend it.

use crate::oid::ObjectIdentifier;

use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::der::DerError;
use crate::key::KeyError;
use crate::pem::PemError;

/// Why a certificate signing request is refused.
///
/// Each variant is one row of the gate. The text tells the requester what to
/// change; it holds no more than 64 octets of what was sent, escaped.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    // Size, armour and structure, in the order of the gate.
    /// More octets than the gate reads.
    #[error("the request has {size} octets, more than the {limit} that are read")]
    TooLarge {
        /// Octets sent.
        size: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// The text is not one PEM block of a request.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Not the DER of a CertificationRequest (RFC 2986).
    #[error("the request is not valid DER: {0}")]
    Der(DerError),
    /// A signed message (RFC 5652) that may hold a request.
    #[error("this is a CMS message and not a plain request: send PKCS #10, as openssl req makes it")]
    Message,
    /// Octets follow the request.
    #[error("{octets} octets follow the request: send the DER of one request and nothing else")]
    TrailingData {
        /// How many.
        octets: usize,
    },
    /// RFC 2986 knows version 0 (v1) only.
    #[error("the request has version {version}, and only version 0 exists (RFC 2986)")]
    Version {
        /// The number in the request; `u64::MAX` stands for anything larger.
        version: u64,
    },

    /// The key itself is refused.
    #[error(transparent)]
    Key(#[from] KeyError),

    // The signature.
    /// MD5, SHA-1 and older.
    #[error("the request is signed with {digest}: sign it with SHA-256")]
    WeakDigest {
        /// The digest's name.
        digest: &'static str,
    },
    /// An algorithm that is not in the gate.
    #[error("signature algorithm {algorithm} is not accepted: sign with SHA-256 and the request's own key")]
    SignatureAlgorithm {
        /// The algorithm's identifier.
        algorithm: ObjectIdentifier,
    },
    /// The parameters of the signature algorithm are not those that its RFC fixes.
    #[error("the signature algorithm has wrong parameters")]
    SignatureParameters,
    /// OpenSSL's default for RSA-PSS is the longest salt that fits.
    #[error(
        "the RSA-PSS signature has {found} octets of salt: use {expected} (openssl: -sigopt rsa_pss_saltlen:digest)"
    )]
    SaltLength {
        /// Octets that the request says.
        found: u64,
        /// Octets of the digest.
        expected: u64,
    },
    /// The signature is of another family than the key.
    #[error("the request has a {key} key but a {signature} signature: sign it with its own key")]
    SignatureKeyMismatch {
        /// What the SubjectPublicKeyInfo holds.
        key: KeyKind,
        /// What the signature claims.
        signature: SignatureAlgorithm,
    },
    /// Proof of possession failed.
    #[error("the request's signature does not match its key: it was changed after signing, or signed with another key")]
    ProofOfPossession,

    // Names.
    /// The subject has no commonName.
    #[error("the subject has no common name: set CN to \"{expected}\"")]
    CommonNameMissing {
        /// The host that must stand there.
        expected: String,
    },
    /// The subject has more than one commonName.
    #[error("the subject has {count} common names: send exactly one")]
    CommonNameRepeated {
        /// How many.
        count: usize,
    },
    /// A commonName in a string type that no one should use.
    #[error("the common name is not a UTF8String or PrintableString")]
    CommonNameType,
    /// A NUL, blank, control or non-ASCII character.
    #[error("the common name \"{found}\" has a character that no host name has")]
    CommonNameCharacter {
        /// What was sent, escaped and shortened.
        found: String,
    },
    /// A wildcard.
    #[error("the common name \"{found}\" is a wildcard: name the one host \"{expected}\"")]
    CommonNameWildcard {
        /// The host that must stand there.
        expected: String,
        /// What was sent, escaped and shortened.
        found: String,
    },
    /// RFC 5280 allows 64 characters (ub-common-name).
    #[error(
        "the common name has {length} characters and X.509 allows 64: leave the subject empty and name the host in the subjectAltName"
    )]
    CommonNameTooLong {
        /// Characters sent.
        length: usize,
    },
    /// Another name than the one expected.
    #[error("the common name is \"{found}\"{}: it must be \"{expected}\"", told_default(found))]
    CommonNameMismatch {
        /// The host that must stand there.
        expected: String,
        /// What was sent, escaped and shortened.
        found: String,
    },
    /// The host is too long for a commonName, so there can be none that is right.
    #[error("\"{expected}\" is too long for a common name: leave the subject empty and name it in the subjectAltName")]
    CommonNameUnexpected {
        /// The host that was asked for.
        expected: String,
    },
    /// The host is too long for a commonName and no subjectAltName names it.
    #[error("\"{expected}\" is too long for a common name: leave the subject empty and name it in the subjectAltName")]
    SubjectAltNameMissing {
        /// The host that must stand there.
        expected: String,
    },
    /// A subjectAltName without an entry.
    #[error("the subjectAltName is empty: leave it out or name the host")]
    SubjectAltNameEmpty,
    /// An entry that is not a dNSName.
    #[error("the subjectAltName has an entry of type {kind}: only dNSName is signed")]
    SubjectAltNameType {
        /// The GeneralName's choice.
        kind: &'static str,
    },
    /// A NUL, blank, control or non-ASCII character.
    #[error("the subjectAltName \"{found}\" has a character that no host name has")]
    SubjectAltNameCharacter {
        /// What was sent, escaped and shortened.
        found: String,
    },
    /// A wildcard.
    #[error("the subjectAltName \"{found}\" is a wildcard: name the one host \"{expected}\"")]
    SubjectAltNameWildcard {
        /// The host that must stand there.
        expected: String,
        /// What was sent, escaped and shortened.
        found: String,
    },
    /// Another name than the one expected.
    #[error("the subjectAltName has \"{found}\": it may name \"{expected}\" only")]
    SubjectAltNameMismatch {
        /// The host that must stand there.
        expected: String,
        /// What was sent, escaped and shortened.
        found: String,
    },

    // Attributes and extensions.
    /// More than one extensionRequest attribute, or one with several values.
    #[error("the request asks for extensions {count} times: send one extensionRequest with one value")]
    ExtensionRequestCount {
        /// How many values there are in all.
        count: usize,
    },
    /// The same extension twice.
    #[error("extension {extension} is requested twice")]
    DuplicateExtension {
        /// The extension's identifier.
        extension: ObjectIdentifier,
    },
    /// A critical extension that the gate does not know.
    #[error("extension {extension} is marked critical and not known here: leave it out")]
    CriticalExtension {
        /// The extension's identifier.
        extension: ObjectIdentifier,
    },
    /// A known extension whose content is not what its RFC says.
    #[error("extension {extension} is malformed")]
    MalformedExtension {
        /// The extension's identifier.
        extension: ObjectIdentifier,
    },
}

// Not `#[from]`: the text tells it, and whoever prints a chain of sources would tell it twice.
impl From<DerError> for CsrError {
    fn from(error: DerError) -> Self {
        Self::Der(error)
    }
}

/// A name that nobody chose tells who did.
fn told_default(common_name: &str) -> &'static str {
    match common_name {
        "rcgen self signed cert" => ", which is rcgen's default when no distinguished name is set",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_told_by_its_author() {
        let found = "rcgen self signed cert".to_owned();
        let text = CsrError::CommonNameMismatch { expected: "a.example".to_owned(), found }.to_string();
        assert!(text.contains("rcgen's default") && text.ends_with("it must be \"a.example\""), "{text}");
    }
}
