//! The CSR gate: from bytes that somebody sent to a request that may be signed.
//!
//! ```text
//! bytes ──► Csr ──► VerifiedCsr ──► Approved ──► (issue.rs) ToBeSigned ──► Leaf
//!         parse   key, signature   names, extensions
//! ```
//!
//! Each arrow is the only way into the next type, so that a check cannot be
//! left out. Offsets into the one copy of the DER are kept instead of parsed
//! values: proof of possession is checked over the octets that were signed,
//! and the key is copied into the certificate octet for octet.

use std::ops::Range;

use crate::algorithm::{AlgorithmError, KeyKind, SignatureAlgorithm};
use crate::crypto::{Verifier, VerifyError};
use crate::csr_error::CsrError;
use crate::der::{self, DerError, Reader, Tlv};
use crate::dns_name::DnsName;
use crate::extension::{self, Extension, GeneralName};
use crate::key::{KeyError, KeyPolicy, PublicKey};
use crate::name::{Attribute, Subject, attributes};
use crate::oid::{self, ObjectIdentifier};
use crate::pem::{self, PemError, Shown};

/// The most octets of PEM or DER that the gate reads: about five times a
/// request in PEM with an RSA-8192 key.
pub const MAX_CSR_OCTETS: usize = 16 * 1024;

/// RFC 7468 section 7; the second one is of Windows and older Javas.
const LABELS: [&str; 2] = ["CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"];

/// A well-formed PKCS #10 request (RFC 2986). Nothing in it is proved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Csr {
    der: Vec<u8>,
    /// CertificationRequestInfo with its header: what the signature covers.
    signed: Range<usize>,
    subject: Range<usize>,
    spki: Range<usize>,
    /// The content of `[0] attributes`.
    attributes: Range<usize>,
    signature_algorithm: Range<usize>,
    signature: Range<usize>,
}

impl Csr {
    /// Reads one `CERTIFICATE REQUEST` or `NEW CERTIFICATE REQUEST` block.
    ///
    /// CRLF, blank lines, lines of any length and text before the block are
    /// accepted; text after it is not.
    ///
    /// # Errors
    ///
    /// [`CsrError::TooLarge`], [`CsrError::Pem`], and those of [`Csr::from_der`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, CsrError> {
        within_limit(pem)?;
        Self::parse(pem::decode(pem, &LABELS)?)
    }

    /// Reads the DER of one request.
    ///
    /// # Errors
    ///
    /// [`CsrError::TooLarge`], [`CsrError::Der`], [`CsrError::TrailingData`] or
    /// [`CsrError::Version`].
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        within_limit(der)?;
        Self::parse(der.to_vec())
    }

    /// Reads PEM or DER, whichever a file holds. In PEM the one request may stand
    /// among other blocks, such as its key: this is for one's own files, and
    /// [`Csr::from_pem`] for what others send.
    ///
    /// # Errors
    ///
    /// As [`Csr::from_pem`] and [`Csr::from_der`].
    pub fn from_file(bytes: &[u8]) -> Result<Self, CsrError> {
        match requests_from_file(bytes)?.as_slice() {
            [one] => Self::from_der(one),
            _ => Err(PemError::SeveralBlocks.into()),
        }
    }

    fn parse(der: Vec<u8>) -> Result<Self, CsrError> {
        let mut document = Reader::new(&der);
        let request = document.element(der::SEQUENCE, "SEQUENCE of a CertificationRequest")?;
        if !document.is_empty() {
            return Err(CsrError::TrailingData { octets: document.remaining() });
        }
        let mut request = request.reader();
        // ContentInfo begins with its type: a request of CMC in the armour of a plain one.
        if request.clone().optional(der::OBJECT_IDENTIFIER, "contentType")?.is_some() {
            return Err(CsrError::Message);
        }
        let info = request.element(der::SEQUENCE, "CertificationRequestInfo")?;
        let signature_algorithm = request.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?;
        let signature = request.element(der::BIT_STRING, "BIT STRING of the signature")?;
        signature.bit_string_octets()?;
        request.end("the end of the CertificationRequest")?;

        let mut fields = info.reader();
        let version = fields.element(der::INTEGER, "INTEGER of the version")?;
        let subject = fields.element(der::SEQUENCE, "Name of the subject")?;
        let spki = fields.element(der::SEQUENCE, "SubjectPublicKeyInfo")?;
        // Devices and Java leave an empty set of attributes out, which RFC 2986 does not allow.
        let (end, attributes) = (fields.offset(), fields.optional(der::context(0), "[0] attributes")?);
        fields.end("the end of the CertificationRequestInfo")?;
        version.integer()?;
        if version.value != [0] {
            return Err(CsrError::Version { version: version.small_integer().unwrap_or(u64::MAX) });
        }
        let signature_octets = signature.value_range();
        Ok(Self {
            signed: info.range(),
            subject: subject.range(),
            spki: spki.range(),
            attributes: attributes.map_or(end..end, |attributes| attributes.value_range()),
            signature_algorithm: signature_algorithm.range(),
            signature: signature_octets.start + 1..signature_octets.end,
            der,
        })
    }

    /// Checks the key, then that the requester holds its private half.
    ///
    /// # Errors
    ///
    /// [`CsrError::Key`] for a key that `policy` or its form rules out; the
    /// signature variants of [`CsrError`], last of them
    /// [`CsrError::ProofOfPossession`].
    pub fn verify(self, verifier: &dyn Verifier, policy: &KeyPolicy) -> Result<VerifiedCsr, CsrError> {
        let key = PublicKey::from_der(&self.der[self.spki.clone()])?;
        policy.check(&key)?;
        let algorithm = self.read_signature_algorithm()?;
        if !algorithm.matches(key.kind()) {
            return Err(CsrError::SignatureKeyMismatch { key: key.kind(), signature: algorithm });
        }
        let key_kind = key.kind();
        verifier.verify(&key, algorithm, &self.der[self.signed.clone()], &self.der[self.signature.clone()]).map_err(
            |error| match (error, key_kind) {
                (VerifyError::Key, KeyKind::P256 | KeyKind::P384 | KeyKind::P521) => KeyError::PointNotOnCurve.into(),
                (VerifyError::Key, KeyKind::Ed25519) => KeyError::Ed25519Point.into(),
                _ => CsrError::ProofOfPossession,
            },
        )?;
        Ok(VerifiedCsr { csr: self, key_kind })
    }

    /// The request in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The common names of the subject, whoever they are; what is no text is told by
    /// a replacement character.
    ///
    /// # Errors
    ///
    /// [`CsrError::Der`] for a subject that is no Name.
    pub fn common_names(&self) -> Result<Vec<String>, CsrError> {
        let mut names = attributes(self.subject(), self.subject.start)?;
        names.retain(|attribute| attribute.kind == oid::COMMON_NAME);
        Ok(names.iter().map(|name| String::from_utf8_lossy(name.value).into_owned()).collect())
    }

    /// The SubjectPublicKeyInfo in DER; well-formed outside, unchecked inside.
    pub fn spki(&self) -> &[u8] {
        &self.der[self.spki.clone()]
    }

    /// The subject's Name in DER.
    fn subject(&self) -> &[u8] {
        &self.der[self.subject.clone()]
    }

    fn read_signature_algorithm(&self) -> Result<SignatureAlgorithm, CsrError> {
        let identifier = Reader::at(&self.der[self.signature_algorithm.clone()], self.signature_algorithm.start)
            .any("AlgorithmIdentifier of the signature")?;
        signature_algorithm(&identifier)
    }

    /// The extensions of the one extensionRequest, or none.
    pub(crate) fn requested_extensions(&self) -> Result<Vec<Extension<'_>>, CsrError> {
        requested_extensions(Reader::at(&self.der[self.attributes.clone()], self.attributes.start))
    }
}

/// The DER of every request of a file: PEM blocks, or one request in DER. Other
/// blocks are passed over.
///
/// # Errors
///
/// [`CsrError::TooLarge`] for PEM beyond 1 MiB, and [`CsrError::Pem`] when there is
/// no block of a request; DER is not parsed here.
pub fn requests_from_file(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CsrError> {
    const LIMIT: usize = 1024 * 1024;
    if bytes.first() == Some(&der::SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    if bytes.len() > LIMIT {
        return Err(CsrError::TooLarge { size: bytes.len(), limit: LIMIT });
    }
    Ok(pem::decode_all(bytes, &LABELS)?)
}

/// A request whose signer holds the private key, with a key that the policy accepts.
///
/// The names and powers that it asks for are not looked at yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedCsr {
    csr: Csr,
    key_kind: KeyKind,
}

impl VerifiedCsr {
    /// Approves a request for a server certificate of exactly one host.
    ///
    /// The subject has exactly one commonName and it is `host`, whatever the
    /// case; a subjectAltName may be missing, but may name nothing else. A
    /// `host` of more than 64 characters fits no commonName: then the subject
    /// has none and the subjectAltName is required.
    ///
    /// Other subject attributes, basicConstraints, key usages and unknown
    /// extensions are read past: they never reach the certificate.
    ///
    /// # Errors
    ///
    /// The name and extension variants of [`CsrError`].
    pub fn approve_host(self, host: &DnsName) -> Result<Approved, CsrError> {
        let common_names = self.common_names()?;
        if host.fits_common_name() {
            check_common_name(&common_names, host)?;
        } else if !common_names.is_empty() {
            return Err(CsrError::CommonNameUnexpected { expected: host.to_string() });
        }
        let extensions = self.checked_extensions()?;
        let alt_name = extensions.iter().find(|extension| extension.id == oid::SUBJECT_ALT_NAME);
        match alt_name {
            Some(alt_name) => check_alt_name(alt_name, host)?,
            None if host.fits_common_name() => {}
            None => return Err(CsrError::SubjectAltNameMissing { expected: host.to_string() }),
        }
        let subject = if host.fits_common_name() { Subject::common_name(host.as_str()) } else { Subject::empty() };
        Ok(Approved::new(self, subject, vec![host.clone()]))
    }

    /// Approves a request for a client certificate with a subject that the
    /// issuer decides: the request contributes its key and nothing else.
    ///
    /// # Errors
    ///
    /// The extension variants of [`CsrError`].
    pub fn approve_subject(self, subject: Subject) -> Result<Approved, CsrError> {
        self.checked_extensions()?;
        Ok(Approved::new(self, subject, Vec::new()))
    }

    /// The SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &[u8] {
        self.csr.spki()
    }

    /// The kind of key that is asked to be certified.
    pub fn key_kind(&self) -> KeyKind {
        self.key_kind
    }

    fn common_names(&self) -> Result<Vec<Attribute<'_>>, DerError> {
        let mut names = attributes(self.csr.subject(), self.csr.subject.start)?;
        names.retain(|attribute| attribute.kind == oid::COMMON_NAME);
        Ok(names)
    }

    fn checked_extensions(&self) -> Result<Vec<Extension<'_>>, CsrError> {
        let extensions = self.csr.requested_extensions()?;
        for (at, extension) in extensions.iter().enumerate() {
            if extensions[..at].iter().any(|earlier| earlier.id == extension.id) {
                return Err(CsrError::DuplicateExtension { extension: ObjectIdentifier::new(extension.id) });
            }
            if KNOWN_EXTENSIONS.contains(&extension.id) {
                extension
                    .check_content()
                    .map_err(|_| CsrError::MalformedExtension { extension: ObjectIdentifier::new(extension.id) })?;
            } else if extension.critical {
                return Err(CsrError::CriticalExtension { extension: ObjectIdentifier::new(extension.id) });
            }
        }
        Ok(extensions)
    }
}

/// A request that may be signed, with the names that the certificate gets.
///
/// Holds the requester's key and nothing else of the request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Approved {
    pub(crate) spki: Vec<u8>,
    pub(crate) key_kind: KeyKind,
    pub(crate) subject: Subject,
    pub(crate) hosts: Vec<DnsName>,
}

impl Approved {
    fn new(verified: VerifiedCsr, subject: Subject, hosts: Vec<DnsName>) -> Self {
        let VerifiedCsr { csr, key_kind } = verified;
        Self { spki: csr.spki().to_vec(), key_kind, subject, hosts }
    }
}

/// Extensions whose critical bit is no reason to refuse, because we know what
/// is asked and decide it ourselves.
const KNOWN_EXTENSIONS: [&[u8]; 6] = [
    oid::BASIC_CONSTRAINTS,
    oid::EXTENDED_KEY_USAGE,
    oid::KEY_USAGE,
    oid::SUBJECT_ALT_NAME,
    oid::SUBJECT_KEY_IDENTIFIER,
    oid::TLS_FEATURE,
];

fn within_limit(input: &[u8]) -> Result<(), CsrError> {
    if input.len() > MAX_CSR_OCTETS {
        return Err(CsrError::TooLarge { size: input.len(), limit: MAX_CSR_OCTETS });
    }
    Ok(())
}

/// The extensions of the one extensionRequest among attributes, or none.
pub(crate) fn requested_extensions(mut attributes: Reader<'_>) -> Result<Vec<Extension<'_>>, CsrError> {
    let mut requested = None;
    let mut count = 0;
    while !attributes.is_empty() {
        let mut attribute = attributes.element(der::SEQUENCE, "Attribute")?.reader();
        let kind = attribute.element(der::OBJECT_IDENTIFIER, "type of an Attribute")?.object_identifier()?;
        let values = attribute.element(der::SET, "values of an Attribute")?;
        attribute.end("the end of an Attribute")?;
        if kind != oid::EXTENSION_REQUEST {
            continue;
        }
        if values.value.is_empty() {
            return Err(CsrError::ExtensionRequestCount { count: 0 });
        }
        let mut values = values.reader();
        while !values.is_empty() {
            requested = Some(values.element(der::SEQUENCE, "Extensions")?);
            count += 1;
        }
    }
    match requested {
        None => Ok(Vec::new()),
        Some(extensions) if count == 1 => Ok(extension::read_all(extensions.reader())?),
        Some(_) => Err(CsrError::ExtensionRequestCount { count }),
    }
}

/// How a signature is made, from the AlgorithmIdentifier of a request.
pub(crate) fn signature_algorithm(identifier: &Tlv<'_>) -> Result<SignatureAlgorithm, CsrError> {
    SignatureAlgorithm::read(identifier).map_err(|error| match error {
        AlgorithmError::Der(error) => error.into(),
        AlgorithmError::Parameters => CsrError::SignatureParameters,
        AlgorithmError::SaltLength { found, expected } => CsrError::SaltLength { found, expected },
        AlgorithmError::Unknown(algorithm) => CsrError::SignatureAlgorithm { algorithm },
        AlgorithmError::WeakDigest(digest) => CsrError::WeakDigest { digest },
    })
}

fn check_common_name(common_names: &[Attribute<'_>], host: &DnsName) -> Result<(), CsrError> {
    let found = match common_names {
        [] => return Err(CsrError::CommonNameMissing { expected: host.to_string() }),
        [one] => one,
        many => return Err(CsrError::CommonNameRepeated { count: many.len() }),
    };
    if !found.is_octet_string_type() {
        return Err(CsrError::CommonNameType);
    }
    match compare(found.value, host) {
        Comparison::Equal => Ok(()),
        Comparison::BadCharacter(found) => Err(CsrError::CommonNameCharacter { found }),
        _ if found.value.len() > 64 => Err(CsrError::CommonNameTooLong { length: found.value.len() }),
        Comparison::Wildcard(found) => Err(CsrError::CommonNameWildcard { expected: host.to_string(), found }),
        Comparison::Other(found) => Err(CsrError::CommonNameMismatch { expected: host.to_string(), found }),
    }
}

fn check_alt_name(alt_name: &Extension<'_>, host: &DnsName) -> Result<(), CsrError> {
    let names = alt_name
        .general_names()
        .map_err(|_| CsrError::MalformedExtension { extension: ObjectIdentifier::new(oid::SUBJECT_ALT_NAME) })?;
    if names.is_empty() {
        return Err(CsrError::SubjectAltNameEmpty);
    }
    for name in names {
        let GeneralName::Dns(name) = name else {
            return Err(CsrError::SubjectAltNameType { kind: name.kind() });
        };
        match compare(name, host) {
            Comparison::Equal => {}
            Comparison::BadCharacter(found) => return Err(CsrError::SubjectAltNameCharacter { found }),
            Comparison::Wildcard(found) => {
                return Err(CsrError::SubjectAltNameWildcard { expected: host.to_string(), found });
            }
            Comparison::Other(found) => {
                return Err(CsrError::SubjectAltNameMismatch { expected: host.to_string(), found });
            }
        }
    }
    Ok(())
}

enum Comparison {
    BadCharacter(String),
    Equal,
    Other(String),
    Wildcard(String),
}

/// ASCII case is all that may differ: no trimming, no trailing dot, no IDNA.
fn compare(found: &[u8], host: &DnsName) -> Comparison {
    if found.eq_ignore_ascii_case(host.as_str().as_bytes()) {
        return Comparison::Equal;
    }
    let shown = Shown(found).to_string();
    if found.iter().any(|octet| !octet.is_ascii_graphic()) {
        Comparison::BadCharacter(shown)
    } else if found.contains(&b'*') {
        Comparison::Wildcard(shown)
    } else {
        Comparison::Other(shown)
    }
}
