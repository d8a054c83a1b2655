//! The self-lint: the bytes that are about to be signed, read back as a
//! stranger would and held against RFC 5280.
//!
//! The assembler cannot vouch for itself; this file shares no code with it
//! but the DER layer.

use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::certificate::{CertificateError, TbsCertificate};
use crate::der::{self, Reader, Writer};
use crate::dns_name::DnsName;
use crate::extension::{
    BasicConstraints, CRL_SIGN, DIGITAL_SIGNATURE, Extension, GeneralName, KEY_CERT_SIGN, KEY_ENCIPHERMENT,
};
use crate::key::PublicKey;
use crate::name::{Attribute, attributes};
use crate::oid::{self, ObjectIdentifier};

/// One rule that a TBSCertificate breaks.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Lint {
    /// 4.2.1.1: needed unless self-signed.
    #[error("authorityKeyIdentifier with a keyIdentifier is missing (4.2.1.1)")]
    AuthorityKeyIdentifierMissing,
    /// 4.2.1.9: an authority's must be critical.
    #[error("basicConstraints is missing or not critical (4.2.1.9)")]
    BasicConstraints,
    /// Appendix A, ub-common-name.
    #[error("a common name is longer than 64 characters")]
    CommonNameLength,
    /// The common name of a server certificate repeats a dNSName.
    #[error("the common name is not among the dNSNames")]
    CommonNameNotInAltName,
    /// 4.2: an extension that we never write and do not know.
    #[error("critical extension {0} is not known")]
    CriticalUnknown(ObjectIdentifier),
    /// 4.2.1.6: a dNSName in preferred name syntax.
    #[error("a dNSName is not a host name (4.2.1.6)")]
    DnsName,
    /// 4.2: one instance of each.
    #[error("extension {0} stands twice (4.2)")]
    DuplicateExtension(ObjectIdentifier),
    /// 4.2.1.12: a leaf says what it is for.
    #[error("extKeyUsage is missing (4.2.1.12)")]
    ExtendedKeyUsageMissing,
    /// 4.1.2.4: the issuer's name is not empty.
    #[error("the issuer's name is empty (4.1.2.4)")]
    IssuerEmpty,
    /// 4.2.1.3: present and critical.
    #[error("keyUsage is missing or not critical (4.2.1.3)")]
    KeyUsage,
    /// 4.2.1.3, 4.2.1.9: authorities, and only they, sign certificates.
    #[error("keyUsage and basicConstraints contradict each other (4.2.1.9)")]
    KeyUsageAuthority,
    /// RFC 3279, 5480, 8410: bits that this kind of key cannot have.
    #[error("keyUsage does not fit a key of kind {0}")]
    KeyUsageKind(KeyKind),
    /// Not a TBSCertificate.
    #[error("not a TBSCertificate: {0}")]
    Malformed(CertificateError),
    /// The content is not what its section says.
    #[error("extension {0} is malformed")]
    MalformedExtension(ObjectIdentifier),
    /// A Name that is not made as RFC 5280 says.
    #[error("a name is malformed (4.1.2.4)")]
    MalformedName,
    /// 4.2.1.10: critical, and in authorities only.
    #[error("nameConstraints are not critical, or not in an authority's certificate (4.2.1.10)")]
    NameConstraints,
    /// 4.2: these extensions must not be critical.
    #[error("extension {0} must not be critical")]
    NotCritical(ObjectIdentifier),
    /// 4.2.1.9: only authorities have one.
    #[error("pathLenConstraint without cA (4.2.1.9)")]
    PathLength,
    /// 4.1.2.2, and 64 bits of randomness as the CA/Browser Forum asks.
    #[error("the serial number is not a positive integer of 8 to 20 octets (4.1.2.2)")]
    Serial,
    /// 4.1.1.2: a known algorithm with its parameters.
    #[error("the signature algorithm is not one that we sign with (4.1.1.2)")]
    SignatureAlgorithm,
    /// 4.2.1.6: a sequence of one or more.
    #[error("subjectAltName is empty (4.2.1.6)")]
    SubjectAltNameEmpty,
    /// 4.2.1.6: critical with an empty subject, and needed then.
    #[error("the subject is empty and subjectAltName is missing or not critical (4.2.1.6)")]
    SubjectEmpty,
    /// 4.1.2.6: an authority has a name.
    #[error("an authority's subject is empty (4.1.2.6)")]
    SubjectEmptyAuthority,
    /// 4.1.2.7: a key that we can read.
    #[error("the subjectPublicKeyInfo is malformed (4.1.2.7)")]
    SubjectKey,
    /// 4.2.1.2: authorities must, leafs should.
    #[error("subjectKeyIdentifier is missing (4.2.1.2)")]
    SubjectKeyIdentifierMissing,
    /// 4.1.2.5: UTCTime to 2049, GeneralizedTime from 2050.
    #[error("a time is not in the form for its year (4.1.2.5)")]
    TimeForm,
    /// 4.1.2.8: must not be there.
    #[error("a unique identifier is present (4.1.2.8)")]
    UniqueIdentifier,
    /// notBefore is later than notAfter.
    #[error("the validity ends before it begins (4.1.2.5)")]
    Validity,
    /// 4.1.2.1: version 3 with extensions.
    #[error("the version is not 3 (4.1.2.1)")]
    Version,
}

impl From<CertificateError> for Lint {
    fn from(error: CertificateError) -> Self {
        Self::Malformed(error)
    }
}

/// Holds a TBSCertificate in DER against the rules; empty when it keeps all.
pub fn lint(tbs: &[u8]) -> Vec<Lint> {
    let mut document = Reader::new(tbs);
    let tbs = document
        .element(der::SEQUENCE, "TBSCertificate")
        .and_then(|tbs| document.end("the end of the TBSCertificate").map(|()| tbs))
        .map_err(CertificateError::from)
        .and_then(|tbs| TbsCertificate::read(&tbs));
    match tbs {
        Ok(tbs) => Rules::new(&tbs).run(),
        Err(error) => vec![Lint::Malformed(error)],
    }
}

struct Rules<'a> {
    tbs: &'a TbsCertificate<'a>,
    constraints: BasicConstraints,
    findings: Vec<Lint>,
}

impl<'a> Rules<'a> {
    fn new(tbs: &'a TbsCertificate<'a>) -> Self {
        let constraints = tbs.extension(oid::BASIC_CONSTRAINTS).map(|extension| extension.basic_constraints());
        Self { tbs, constraints: constraints.and_then(Result::ok).unwrap_or_default(), findings: Vec::new() }
    }

    fn run(mut self) -> Vec<Lint> {
        self.fields();
        self.extensions();
        self.key_usage();
        self.names();
        self.findings
    }

    fn expect(&mut self, holds: bool, otherwise: Lint) {
        if !holds {
            self.findings.push(otherwise);
        }
    }

    fn fields(&mut self) {
        let tbs = self.tbs;
        self.expect(tbs.version == 3, Lint::Version);
        let is_positive = tbs.serial.first().is_some_and(|first| first & 0x80 == 0);
        self.expect(is_positive && (8..=20).contains(&tbs.serial.len()), Lint::Serial);
        self.expect(SignatureAlgorithm::read(&tbs.signature_algorithm).is_ok(), Lint::SignatureAlgorithm);
        self.expect(tbs.not_before <= tbs.not_after, Lint::Validity);
        let mut times = Writer::with_capacity(40);
        tbs.not_before.write(&mut times);
        tbs.not_after.write(&mut times);
        self.expect(times.finish() == tbs.validity.value, Lint::TimeForm);
        self.expect(!tbs.has_unique_identifier, Lint::UniqueIdentifier);
    }

    fn extensions(&mut self) {
        let tbs = self.tbs;
        for (at, extension) in tbs.extensions.iter().enumerate() {
            let is_repeated = tbs.extensions[..at].iter().any(|earlier| earlier.id == extension.id);
            self.expect(!is_repeated, Lint::DuplicateExtension(ObjectIdentifier::new(extension.id)));
            if !KNOWN.contains(&extension.id) {
                self.expect(!extension.critical, Lint::CriticalUnknown(ObjectIdentifier::new(extension.id)));
            } else if !is_well_formed(extension) {
                self.findings.push(Lint::MalformedExtension(ObjectIdentifier::new(extension.id)));
            } else if NEVER_CRITICAL.contains(&extension.id) {
                self.expect(!extension.critical, Lint::NotCritical(ObjectIdentifier::new(extension.id)));
            }
        }
        let has = |id| tbs.extension(id).is_some();
        self.expect(has(oid::SUBJECT_KEY_IDENTIFIER), Lint::SubjectKeyIdentifierMissing);
        let authority_key = tbs
            .extension(oid::AUTHORITY_KEY_IDENTIFIER)
            .is_some_and(|extension| matches!(extension.authority_key_identifier(), Ok(Some(id)) if !id.is_empty()));
        self.expect(authority_key || tbs.issuer == tbs.subject, Lint::AuthorityKeyIdentifierMissing);
        let is_critical = |id| tbs.extension(id).is_some_and(|extension| extension.critical);
        self.expect(is_critical(oid::BASIC_CONSTRAINTS), Lint::BasicConstraints);
        self.expect(self.constraints.ca || self.constraints.path_length.is_none(), Lint::PathLength);
        self.expect(self.constraints.ca || has(oid::EXTENDED_KEY_USAGE), Lint::ExtendedKeyUsageMissing);
        if has(oid::NAME_CONSTRAINTS) {
            self.expect(self.constraints.ca && is_critical(oid::NAME_CONSTRAINTS), Lint::NameConstraints);
        }
    }

    fn key_usage(&mut self) {
        let usage = match self.tbs.extension(oid::KEY_USAGE).map(|extension| (extension, extension.key_usage())) {
            Some((extension, Ok(usage))) if extension.critical && usage != 0 => usage,
            _ => return self.findings.push(Lint::KeyUsage),
        };
        let signs = usage & KEY_CERT_SIGN != 0;
        self.expect(signs == self.constraints.ca, Lint::KeyUsageAuthority);
        let Ok(key) = PublicKey::from_der(self.tbs.spki) else {
            return self.findings.push(Lint::SubjectKey);
        };
        let possible = match key.kind() {
            KeyKind::Rsa => DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_CERT_SIGN | CRL_SIGN,
            _ => DIGITAL_SIGNATURE | KEY_CERT_SIGN | CRL_SIGN,
        };
        self.expect(usage & !possible == 0, Lint::KeyUsageKind(key.kind()));
    }

    fn names(&mut self) {
        let tbs = self.tbs;
        let (Ok(issuer), Ok(subject)) = (attributes(tbs.issuer, 0), attributes(tbs.subject, 0)) else {
            return self.findings.push(Lint::MalformedName);
        };
        self.expect(!issuer.is_empty(), Lint::IssuerEmpty);
        let alt_name = tbs.extension(oid::SUBJECT_ALT_NAME);
        let alt_names = alt_name.and_then(|extension| extension.general_names().ok()).unwrap_or_default();
        if alt_name.is_some() {
            self.expect(!alt_names.is_empty(), Lint::SubjectAltNameEmpty);
        }
        if subject.is_empty() {
            self.expect(!self.constraints.ca, Lint::SubjectEmptyAuthority);
            self.expect(alt_name.is_some_and(|extension| extension.critical), Lint::SubjectEmpty);
        }
        let dns_names: Vec<_> = alt_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::Dns(name) => Some(*name),
                _ => None,
            })
            .collect();
        self.expect(dns_names.iter().all(|name| is_host_name(name)), Lint::DnsName);
        let is_common_name = |attribute: &&Attribute<'_>| attribute.kind == oid::COMMON_NAME;
        for common_name in subject.iter().filter(is_common_name) {
            let length = std::str::from_utf8(common_name.value).map(|text| text.chars().count());
            self.expect(length.is_ok_and(|length| length <= 64), Lint::CommonNameLength);
            self.expect(dns_names.is_empty() || dns_names.contains(&common_name.value), Lint::CommonNameNotInAltName);
        }
    }
}

const KNOWN: [&[u8]; 9] = [
    oid::AUTHORITY_KEY_IDENTIFIER,
    oid::BASIC_CONSTRAINTS,
    oid::CRL_DISTRIBUTION_POINTS,
    oid::EXTENDED_KEY_USAGE,
    oid::KEY_USAGE,
    oid::NAME_CONSTRAINTS,
    oid::SUBJECT_ALT_NAME,
    oid::SUBJECT_KEY_IDENTIFIER,
    oid::AUTHORITY_INFO_ACCESS,
];

const NEVER_CRITICAL: [&[u8]; 3] =
    [oid::AUTHORITY_KEY_IDENTIFIER, oid::SUBJECT_KEY_IDENTIFIER, oid::AUTHORITY_INFO_ACCESS];

fn is_well_formed(extension: &Extension<'_>) -> bool {
    match extension.id {
        oid::AUTHORITY_KEY_IDENTIFIER => extension.authority_key_identifier().is_ok(),
        oid::CRL_DISTRIBUTION_POINTS => extension.crl_distribution_points().is_ok_and(|uris| !uris.is_empty()),
        oid::NAME_CONSTRAINTS => extension.name_constraints().is_ok(),
        oid::AUTHORITY_INFO_ACCESS => extension.authority_info_access().is_ok_and(|list| !list.is_empty()),
        _ => extension.check_content().is_ok(),
    }
}

fn is_host_name(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| name.parse::<DnsName>().is_ok())
}
