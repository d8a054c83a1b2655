//! What a certificate or a request says, for people and programs to read.
//!
//! Nothing is verified here. Text from the document is passed on as it is;
//! whoever prints it to a terminal escapes control characters.

use base16ct::lower::encode_string as hex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use x509_cert::name::RdnSequence;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, CertificateError};
use crate::csr::{self, requested_extensions};
use crate::der::{self, DerError, Reader, Tlv};
use crate::extension::{self, Extension, GeneralName};
use crate::fingerprint::Fingerprint;
use crate::key::PublicKey;
use crate::name::attributes;
use crate::oid::{self, ObjectIdentifier};
use crate::time::Time;

/// A certificate in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct CertificateSummary {
    /// 1 or 3.
    pub version: u8,
    /// Lower-case hex.
    pub serial: String,
    /// RFC 4514, most specific part first.
    pub issuer: String,
    /// RFC 4514, most specific part first; empty for an empty Name.
    pub subject: String,
    /// The first second of its life.
    pub not_before: Time,
    /// The last second of its life.
    pub not_after: Time,
    /// For example `P-256` or `RSA 2048`; the algorithm's identifier if unknown.
    pub public_key: String,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub spki_sha256: String,
    /// For example `ECDSA with SHA-256`; the algorithm's identifier if unknown.
    pub signature_algorithm: String,
    /// Is it an authority's? From basicConstraints.
    pub is_ca: bool,
    /// pathLenConstraint.
    pub path_length: Option<u64>,
    /// Names of the bits as RFC 5280 spells them.
    pub key_usage: Vec<&'static str>,
    /// Short names, identifiers where there is none.
    pub extended_key_usage: Vec<String>,
    /// `DNS:…`, `IP:…`, `URI:…`, `email:…`.
    pub subject_alt_names: Vec<String>,
    /// Subtrees as `permitted DNS:…` and `excluded IP:…`.
    pub name_constraints: Vec<String>,
    /// Hex.
    pub subject_key_identifier: Option<String>,
    /// Hex.
    pub authority_key_identifier: Option<String>,
    /// URIs.
    pub crl_distribution_points: Vec<String>,
    /// Extensions without a field here, by identifier.
    pub other_extensions: Vec<String>,
    /// Extensions that cannot be read, or stand twice, and why.
    pub malformed_extensions: Vec<String>,
    /// SHA-256 of the DER.
    pub fingerprint_sha256: Fingerprint,
}

/// A request in words: as much of it as can be read.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CsrSummary {
    /// RFC 4514, most specific part first; empty for an empty Name.
    pub subject: Option<String>,
    /// The common names among it.
    pub common_names: Vec<String>,
    /// For example `P-256` or `RSA 2048`; why it is not accepted otherwise.
    pub public_key: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, lower-case hex.
    pub spki_sha256: Option<String>,
    /// For example `ECDSA with SHA-256`, or why it is none that is accepted.
    pub signature_algorithm: Option<String>,
    /// `DNS:…`, `IP:…`, `URI:…`, `email:…` of the requested subjectAltName.
    pub subject_alt_names: Vec<String>,
    /// All requested extensions, by identifier.
    pub requested_extensions: Vec<String>,
    /// Extensions that cannot be read, or stand twice, and why.
    pub malformed_extensions: Vec<String>,
}

/// Reads a certificate's DER.
///
/// Extensions that are malformed are left empty and named as such; the rest is
/// still told.
///
/// # Errors
///
/// [`CertificateError`] when it is not a certificate at all.
pub fn inspect_certificate(der: &[u8]) -> Result<CertificateSummary, CertificateError> {
    let certificate = Certificate::from_der(der)?;
    let tbs = &certificate.tbs;
    let constraints = tbs.extension(oid::BASIC_CONSTRAINTS).and_then(|ext| ext.basic_constraints().ok());
    let constraints = constraints.unwrap_or_default();
    let find = |id| tbs.extension(id);
    Ok(CertificateSummary {
        version: tbs.version,
        serial: hex(tbs.serial),
        issuer: distinguished_name(tbs.issuer),
        subject: distinguished_name(tbs.subject),
        not_before: tbs.not_before,
        not_after: tbs.not_after,
        public_key: public_key(tbs.spki),
        spki_sha256: hex(&Sha256::digest(tbs.spki)),
        signature_algorithm: signature_algorithm(&certificate.signature_algorithm),
        is_ca: constraints.ca,
        path_length: constraints.path_length,
        key_usage: find(oid::KEY_USAGE).and_then(|ext| ext.key_usage().ok()).map_or_else(Vec::new, key_usage),
        extended_key_usage: find(oid::EXTENDED_KEY_USAGE).map_or_else(Vec::new, extended_key_usage),
        subject_alt_names: find(oid::SUBJECT_ALT_NAME).map_or_else(Vec::new, general_names),
        name_constraints: find(oid::NAME_CONSTRAINTS).map_or_else(Vec::new, name_constraints),
        subject_key_identifier: find(oid::SUBJECT_KEY_IDENTIFIER)
            .and_then(|ext| ext.subject_key_identifier().ok())
            .map(hex),
        authority_key_identifier: find(oid::AUTHORITY_KEY_IDENTIFIER)
            .and_then(|ext| ext.authority_key_identifier().ok().flatten())
            .map(hex),
        crl_distribution_points: find(oid::CRL_DISTRIBUTION_POINTS)
            .and_then(|ext| ext.crl_distribution_points().ok())
            .map_or_else(Vec::new, |uris| uris.into_iter().map(text).collect()),
        other_extensions: tbs
            .extensions
            .iter()
            .filter(|extension| !TOLD.contains(&extension.id))
            .map(|extension| ObjectIdentifier::new(extension.id).to_string())
            .collect(),
        malformed_extensions: malformed(&tbs.extensions),
        fingerprint_sha256: Fingerprint::of(der),
    })
}

fn malformed(extensions: &[Extension<'_>]) -> Vec<String> {
    let twice = extension::repeated(extensions).map(|id| format!("{}: stands twice", ObjectIdentifier::new(id)));
    let unreadable = extensions.iter().filter_map(|extension| {
        let content = match extension.id {
            oid::AUTHORITY_INFO_ACCESS => extension.authority_info_access().map(drop),
            oid::AUTHORITY_KEY_IDENTIFIER => extension.authority_key_identifier().map(drop),
            oid::CRL_DISTRIBUTION_POINTS => extension.crl_distribution_points().map(drop),
            _ => extension.check_content(),
        };
        content.err().map(|error| format!("{}: {error}", ObjectIdentifier::new(extension.id)))
    });
    twice.into_iter().chain(unreadable).collect()
}

/// Tells what a request says, whether or not it would be signed, is well-formed, or
/// is all there; `None` if there is neither a subject nor a key.
///
/// What is wrong with it is [`Csr`](crate::Csr)'s to say.
pub fn inspect_csr(der: &[u8]) -> Option<CsrSummary> {
    let mut parts = Parts::default();
    // Where it ends is told by what is missing.
    let _ = parts.read(der);
    let names = parts.subject.and_then(|subject| attributes(subject.whole, subject.offset).ok());
    let is_key = parts.spki.is_some_and(|spki| PublicKey::from_der(spki.whole).is_ok());
    if names.is_none() && !is_key {
        return None;
    }
    let (extensions, unreadable) = match parts.attributes.map(|attributes| requested_extensions(attributes.reader())) {
        Some(Err(error)) => (Vec::new(), Some(error.to_string())),
        Some(Ok(extensions)) => (extensions, None),
        None => (Vec::new(), None),
    };
    let alt_name = extensions.iter().find(|extension| extension.id == oid::SUBJECT_ALT_NAME);
    Some(CsrSummary {
        subject: parts.subject.map(|subject| distinguished_name(subject.whole)),
        common_names: names
            .unwrap_or_default()
            .iter()
            .filter(|attribute| attribute.kind == oid::COMMON_NAME)
            .map(|attribute| text(attribute.value))
            .collect(),
        public_key: parts.spki.map(|spki| public_key(spki.whole)),
        spki_sha256: parts.spki.map(|spki| hex(&Sha256::digest(spki.whole))),
        signature_algorithm: parts.signature_algorithm.map(|identifier| match csr::signature_algorithm(&identifier) {
            Ok(algorithm) => algorithm.to_string(),
            Err(error) => error.to_string(),
        }),
        subject_alt_names: alt_name.map_or_else(Vec::new, general_names),
        requested_extensions: extensions
            .iter()
            .map(|extension| ObjectIdentifier::new(extension.id).to_string())
            .collect(),
        malformed_extensions: unreadable.into_iter().chain(malformed(&extensions)).collect(),
    })
}

/// The parts of a request that may be cut, or wrong anywhere.
#[derive(Default)]
struct Parts<'a> {
    subject: Option<Tlv<'a>>,
    spki: Option<Tlv<'a>>,
    attributes: Option<Tlv<'a>>,
    signature_algorithm: Option<Tlv<'a>>,
}

impl<'a> Parts<'a> {
    /// Keeps what there is before something is wrong.
    fn read(&mut self, der: &'a [u8]) -> Result<(), DerError> {
        let (request, at, _) = opened(der, 0)?;
        let (info, info_at, end) = opened(request, at)?;
        let mut fields = Reader::at(info, info_at);
        fields.element(der::INTEGER, "INTEGER of the version")?;
        self.subject = Some(fields.element(der::SEQUENCE, "Name of the subject")?);
        self.spki = Some(fields.element(der::SEQUENCE, "SubjectPublicKeyInfo")?);
        self.attributes = fields.optional(der::context(0), "[0] attributes").unwrap_or_default();
        let mut rest = Reader::at(&request[end - at..], end);
        self.signature_algorithm = Some(rest.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?);
        Ok(())
    }
}

/// The content of a SEQUENCE that may be cut: as much as is there, where it begins
/// in the document, and where it ends.
fn opened(part: &[u8], offset: usize) -> Result<(&[u8], usize, usize), DerError> {
    let error = DerError { offset, expected: "SEQUENCE" };
    let (header, length) = match *part {
        [der::SEQUENCE, length @ 0..=0x7f, ..] => (2, usize::from(length)),
        [der::SEQUENCE, 0x81, length, ..] => (3, usize::from(length)),
        [der::SEQUENCE, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return Err(error),
    };
    let end = part.len().min(header + length);
    Ok((&part[header..end], offset + header, offset + end))
}

/// Extensions that have a field of their own.
const TOLD: [&[u8]; 8] = [
    oid::AUTHORITY_KEY_IDENTIFIER,
    oid::BASIC_CONSTRAINTS,
    oid::CRL_DISTRIBUTION_POINTS,
    oid::EXTENDED_KEY_USAGE,
    oid::KEY_USAGE,
    oid::NAME_CONSTRAINTS,
    oid::SUBJECT_ALT_NAME,
    oid::SUBJECT_KEY_IDENTIFIER,
];

const KEY_USAGE_NAMES: [&str; 9] = [
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
];

pub(crate) fn distinguished_name(name: &[u8]) -> String {
    use ::der::Decode as _;

    RdnSequence::from_der(name).map_or_else(|_| format!("#{}", hex(name)), |name| name.to_string())
}

fn public_key(spki: &[u8]) -> String {
    match PublicKey::from_der(spki) {
        Ok(key) if key.kind() == crate::KeyKind::Rsa => format!("RSA {}", key.size()),
        Ok(key) => key.kind().to_string(),
        Err(error) => format!("not accepted ({error})"),
    }
}

pub(crate) fn signature_algorithm(identifier: &Tlv<'_>) -> String {
    match SignatureAlgorithm::read(identifier) {
        Ok(algorithm) => algorithm.to_string(),
        Err(error) => format!("not accepted ({error})"),
    }
}

fn key_usage(bits: u16) -> Vec<&'static str> {
    (0..).zip(KEY_USAGE_NAMES).filter(|(at, _)| bits & (0x8000 >> at) != 0).map(|(_, name)| name).collect()
}

fn extended_key_usage(extension: &Extension<'_>) -> Vec<String> {
    let purposes = extension.extended_key_usage().unwrap_or_default();
    let name = |purpose: &[u8]| match purpose {
        oid::CLIENT_AUTH => "clientAuth".to_owned(),
        oid::SERVER_AUTH => "serverAuth".to_owned(),
        purpose => ObjectIdentifier::new(purpose).to_string(),
    };
    purposes.into_iter().map(name).collect()
}

fn general_names(extension: &Extension<'_>) -> Vec<String> {
    extension.general_names().unwrap_or_default().iter().map(general_name).collect()
}

fn name_constraints(extension: &Extension<'_>) -> Vec<String> {
    let constraints = extension.name_constraints().unwrap_or_default();
    let permitted = constraints.permitted.iter().map(|name| format!("permitted {}", general_name(name)));
    let excluded = constraints.excluded.iter().map(|name| format!("excluded {}", general_name(name)));
    permitted.chain(excluded).collect()
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::Directory(name) => format!("dirName:{}", distinguished_name(name)),
        GeneralName::Dns(name) => format!("DNS:{}", text(name)),
        GeneralName::Ip(octets) => format!("IP:{}", address(octets)),
        GeneralName::Other(_, octets) => format!("{}:{}", name.kind(), hex(octets)),
        GeneralName::Rfc822(name) => format!("email:{}", text(name)),
        GeneralName::Uri(name) => format!("URI:{}", text(name)),
    }
}

/// An address, or in nameConstraints an address and its mask.
fn address(octets: &[u8]) -> String {
    let one = |octets: &[u8]| match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
        (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
        (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
        _ => hex(octets),
    };
    match octets.len() {
        8 | 32 => {
            let (network, mask) = octets.split_at(octets.len() / 2);
            format!("{}/{}", one(network), one(mask))
        }
        _ => one(octets),
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}
