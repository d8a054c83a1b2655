//! From an approved request to a certificate.
//!
//! Signing takes two steps, so that the key may sit in a file, an HSM or a
//! KMS: [`Approved::to_be_signed`] gives the bytes, which the self-lint has
//! read, and [`ToBeSigned::finish`] takes the signature.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::certificate::{Certificate, CertificateError};
use crate::crypto::Signer;
use crate::csr::Approved;
use crate::der::{self, Writer};
use crate::dns_name::DnsName;
use crate::extension::{CRL_SIGN, DIGITAL_SIGNATURE, GeneralName, KEY_CERT_SIGN, KEY_ENCIPHERMENT};
use crate::fingerprint::{Fingerprint, hex};
use crate::key::PublicKey;
use crate::lint::{Lint, lint};
use crate::name::Subject;
use crate::name_constraints::{NameConstraints, Subtree, is_within};
use crate::oid;
use crate::pem;
use crate::time::Time;

/// What the certificate is for: its extended key usage.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Usage {
    /// id-kp-clientAuth: agents and admins.
    ClientAuth,
    /// id-kp-serverAuth: tunnels.
    ServerAuth,
}

/// A profile as a file says it; [`Profile`] is what is trusted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileConfig {
    /// Server or client certificates.
    pub usage: Usage,
    /// Seconds from notBefore to notAfter, both included: 600 to 10 years.
    pub validity_seconds: u64,
    /// Seconds by which notBefore lies before the time of signing, for
    /// clocks that are late: 0 to 300.
    pub backdate_seconds: u64,
    /// `http` URI of the certificate revocation list, if there is one.
    #[serde(default)]
    pub crl_distribution_point: Option<String>,
    /// `http` URI of the issuer's certificate, if it is published.
    #[serde(default)]
    pub ca_issuers: Option<String>,
}

/// The shape of the certificates that are signed.
///
/// ```
/// use std::time::Duration;
/// use pki_core::{Profile, ProfileConfig, Usage};
///
/// let profile = Profile::try_from(ProfileConfig {
///     usage: Usage::ServerAuth,
///     validity_seconds: 90 * 86_400,
///     backdate_seconds: 300,
///     crl_distribution_point: None,
///     ca_issuers: None,
/// })?;
/// assert_eq!(profile.validity(), Duration::from_secs(90 * 86_400));
/// # Ok::<(), pki_core::ProfileError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    usage: Usage,
    validity: Duration,
    backdate: Duration,
    crl_distribution_point: Option<String>,
    ca_issuers: Option<String>,
}

/// A profile that must not be signed by.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// `backdate_seconds` is more than five minutes.
    #[error("backdate_seconds is {0}: at most 300 are allowed")]
    Backdate(u64),
    /// Not an `http` URI in ASCII.
    #[error("{field} is {uri:?}: use an http:// URI in ASCII of at most 1024 characters")]
    Uri {
        /// The field of [`ProfileConfig`].
        field: &'static str,
        /// What was given.
        uri: String,
    },
    /// `validity_seconds` is out of range.
    #[error("validity_seconds is {0}: use 600 (ten minutes) to 315360000 (ten years)")]
    Validity(u64),
}

const MIN_VALIDITY_SECONDS: u64 = 600;
const MAX_VALIDITY_SECONDS: u64 = 3650 * 86_400;
const MAX_BACKDATE_SECONDS: u64 = 300;

impl Profile {
    /// From notBefore to notAfter, both seconds included.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// Server or client certificates.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

impl TryFrom<ProfileConfig> for Profile {
    type Error = ProfileError;

    fn try_from(config: ProfileConfig) -> Result<Self, ProfileError> {
        if !(MIN_VALIDITY_SECONDS..=MAX_VALIDITY_SECONDS).contains(&config.validity_seconds) {
            return Err(ProfileError::Validity(config.validity_seconds));
        }
        if config.backdate_seconds > MAX_BACKDATE_SECONDS {
            return Err(ProfileError::Backdate(config.backdate_seconds));
        }
        let uris = [("crl_distribution_point", &config.crl_distribution_point), ("ca_issuers", &config.ca_issuers)];
        for (field, uri) in uris {
            if let Some(uri) = uri
                && (!uri.starts_with("http://")
                    || uri.len() > 1024
                    || !uri.bytes().all(|octet| octet.is_ascii_graphic()))
            {
                return Err(ProfileError::Uri { field, uri: uri.clone() });
            }
        }
        Ok(Self {
            usage: config.usage,
            validity: Duration::from_secs(config.validity_seconds),
            backdate: Duration::from_secs(config.backdate_seconds),
            crl_distribution_point: config.crl_distribution_point,
            ca_issuers: config.ca_issuers,
        })
    }
}

/// A serial number of exactly 20 octets, positive, with 158 random bits.
///
/// The top bit is clear, for a positive INTEGER (RFC 5280 section 4.1.2.2),
/// and the next one set, so that every serial takes the same 20 octets.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SerialNumber([u8; 20]);

impl SerialNumber {
    /// From octets of a cryptographically secure generator.
    pub const fn from_random(mut octets: [u8; 20]) -> Self {
        octets[0] = octets[0] & 0x7f | 0x40;
        Self(octets)
    }

    /// The 20 octets, big-endian.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl std::fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// A certificate authority that signs: its certificate, and the algorithm of
/// its key. The key itself stays with the [`Signer`].
#[derive(Clone, Debug)]
pub struct Issuer {
    certificate: Vec<u8>,
    name: Vec<u8>,
    key_identifier: Vec<u8>,
    not_before: Time,
    not_after: Time,
    algorithm: SignatureAlgorithm,
    /// Without a key usage, or with cRLSign in it.
    signs_revocation_lists: bool,
    /// What the nameConstraints say of the kinds of names that are signed.
    hosts: Subtrees,
    subjects: Subtrees,
}

/// A certificate that cannot issue with this key.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IssuerError {
    /// Not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate's public key is not the signer's.
    #[error("the issuer's certificate and its private key do not belong together")]
    KeyMismatch,
    /// No basicConstraints with cA, or a key usage without keyCertSign.
    #[error("the issuer's certificate is not one of a certificate authority")]
    NotAnAuthority,
}

impl Issuer {
    /// The issuer with this certificate, whose key `signer` holds.
    ///
    /// Whether the certificate is valid, now or under an anchor, is not checked.
    ///
    /// # Errors
    ///
    /// [`IssuerError`] when the certificate is malformed, not of an authority or
    /// has another key.
    pub fn new(certificate: &[u8], signer: &dyn Signer) -> Result<Self, IssuerError> {
        let parsed = Certificate::from_der(certificate)?;
        if parsed.spki() != signer.spki() {
            return Err(IssuerError::KeyMismatch);
        }
        let tbs = &parsed.tbs;
        let basic = tbs.extension(oid::BASIC_CONSTRAINTS).map(|extension| extension.basic_constraints());
        let usage = tbs.extension(oid::KEY_USAGE).map(|extension| extension.key_usage());
        let is_authority = matches!(basic, Some(Ok(basic)) if basic.ca);
        let allows = |bit| usage.as_ref().is_none_or(|usage| usage.as_ref().is_ok_and(|usage| usage & bit != 0));
        if !is_authority || !allows(KEY_CERT_SIGN) {
            return Err(IssuerError::NotAnAuthority);
        }
        let key_identifier = match tbs.extension(oid::SUBJECT_KEY_IDENTIFIER) {
            Some(extension) => extension.subject_key_identifier().map_err(CertificateError::from)?.to_vec(),
            // Certificates of others leave it out. What is signed names the key all the same; nothing above
            // disagrees, and readers that look for a matching identifier find none to match.
            None => key_identifier(signer.spki()).to_vec(),
        };
        let constraints = match tbs.extension(oid::NAME_CONSTRAINTS) {
            Some(extension) => extension.name_constraints().map_err(CertificateError::from)?,
            None => NameConstraints::default(),
        };
        Ok(Self {
            name: tbs.subject.to_vec(),
            key_identifier,
            not_before: tbs.not_before,
            not_after: tbs.not_after,
            algorithm: signer.algorithm(),
            signs_revocation_lists: allows(CRL_SIGN),
            hosts: Subtrees::of(&constraints, |name| match name {
                GeneralName::Dns(base) => Some(base),
                _ => None,
            }),
            subjects: Subtrees::of(&constraints, |name| match name {
                GeneralName::Directory(base) => Some(base),
                _ => None,
            }),
            certificate: certificate.to_vec(),
        })
    }

    /// The issuer's certificate in DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The last second of the issuer's own life; nothing that it signs lives longer.
    pub fn not_after(&self) -> Time {
        self.not_after
    }

    /// RFC 5280 section 4.2.1.3: with a key usage, only cRLSign allows it.
    pub(crate) fn signs_revocation_lists(&self) -> bool {
        self.signs_revocation_lists
    }

    pub(crate) fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// The certificate's subjectKeyIdentifier, or one of its key.
    pub(crate) fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Do the issuer's nameConstraints allow certificates for this host?
    pub fn permits(&self, host: &DnsName) -> bool {
        self.hosts.permit(host.as_str().as_bytes(), GeneralName::Dns)
    }

    /// Do they allow this subject, a Name in DER? An empty one is no name.
    fn permits_subject(&self, subject: &Subject) -> bool {
        let mut name = Writer::default();
        subject.write(&mut name);
        subject.is_empty() || self.subjects.permit(&name.finish(), GeneralName::Directory)
    }
}

/// The bases of one kind among nameConstraints.
#[derive(Clone, Debug)]
struct Subtrees {
    permitted: Vec<Vec<u8>>,
    excluded: Vec<Vec<u8>>,
}

impl Subtrees {
    fn of<'a>(constraints: &NameConstraints<'a>, base: impl Fn(&GeneralName<'a>) -> Option<&'a [u8]>) -> Self {
        let bases = |names: &[GeneralName<'a>]| names.iter().filter_map(&base).map(<[u8]>::to_vec).collect();
        Self { permitted: bases(&constraints.permitted), excluded: bases(&constraints.excluded) }
    }

    fn permit<'a>(&'a self, name: &'a [u8], kind: impl Fn(&'a [u8]) -> GeneralName<'a>) -> bool {
        let is_inside = |base: &'a Vec<u8>, subtree| is_within(&kind(name), &kind(base), subtree) == Some(true);
        // RFC 5280 section 4.2.1.10: without a permitted subtree of the kind, all of it is.
        let is_permitted =
            self.permitted.is_empty() || self.permitted.iter().any(|base| is_inside(base, Subtree::Permitted));
        is_permitted && !self.excluded.iter().any(|base| is_inside(base, Subtree::Excluded))
    }
}

/// Why an approved request is not signed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The assembled bytes break a rule: a mistake of ours, not the requester's.
    #[error("the assembled certificate breaks a rule of RFC 5280: {0}")]
    Lint(Lint),
    /// The issuer's nameConstraints do not allow the host.
    #[error("the issuer may not sign for \"{host}\"")]
    NotPermitted {
        /// The host that was asked for.
        host: DnsName,
    },
    /// The issuer is not valid yet.
    #[error("the issuer is valid from {not_before}, and it is {now}")]
    NotYetValid {
        /// The first second of the issuer's life.
        not_before: Time,
        /// The time of signing.
        now: Time,
    },
    /// The certificate would live longer than its issuer.
    #[error("the certificate would end on {not_after}, after its issuer on {issuer_not_after}: renew the issuer")]
    OutlivesIssuer {
        /// The certificate's last second.
        not_after: Time,
        /// The issuer's last second.
        issuer_not_after: Time,
    },
    /// The issuer's nameConstraints do not allow the subject.
    #[error("the issuer's certificate limits the subjects that it may sign, and this is none of them")]
    SubjectNotPermitted,
    /// A server certificate without a host, or a client certificate with one.
    #[error("the profile and the approved names do not go together")]
    UsageMismatch,
}

impl Approved {
    /// Assembles the certificate to sign and lints it.
    ///
    /// `now` is when it is signed; validity and backdate are the profile's.
    ///
    /// # Errors
    ///
    /// [`IssueError`]; nothing has been signed then.
    pub fn to_be_signed(
        &self,
        issuer: &Issuer,
        profile: &Profile,
        serial: SerialNumber,
        now: Time,
    ) -> Result<ToBeSigned, IssueError> {
        if (profile.usage == Usage::ServerAuth) == self.hosts.is_empty() {
            return Err(IssueError::UsageMismatch);
        }
        if let Some(host) = self.hosts.iter().find(|host| !issuer.permits(host)) {
            return Err(IssueError::NotPermitted { host: host.clone() });
        }
        if !issuer.permits_subject(&self.subject) {
            return Err(IssueError::SubjectNotPermitted);
        }
        let not_before = now.minus(profile.backdate).max(issuer.not_before);
        if not_before > now {
            return Err(IssueError::NotYetValid { not_before, now });
        }
        // RFC 5280 section 4.1.2.5: both ends are part of the validity.
        let not_after = not_before.plus(profile.validity - Duration::from_secs(1));
        if not_after > issuer.not_after {
            return Err(IssueError::OutlivesIssuer { not_after, issuer_not_after: issuer.not_after });
        }
        let fields = Fields {
            serial,
            algorithm: issuer.algorithm,
            issuer: &issuer.name,
            not_before,
            not_after,
            subject: &self.subject,
            spki: &self.spki,
        };
        let tbs = fields.write(|extensions| self.write_extensions(issuer, profile, extensions));
        if let Some(finding) = lint(&tbs).into_iter().next() {
            return Err(IssueError::Lint(finding));
        }
        Ok(ToBeSigned { tbs, algorithm: issuer.algorithm, serial, not_before, not_after })
    }

    fn write_extensions(&self, issuer: &Issuer, profile: &Profile, extensions: &mut Writer) {
        write_authority_key_identifier(extensions, &issuer.key_identifier);
        write_subject_key_identifier(extensions, &self.spki);
        // CA:FALSE is the default, so the DER is an empty SEQUENCE.
        write_extension(extensions, oid::BASIC_CONSTRAINTS, true, |value| value.element(der::SEQUENCE, &[]));
        let usage = match (profile.usage, self.key_kind) {
            // The RSA key exchange of TLS 1.2 encrypts to the server's key.
            (Usage::ServerAuth, KeyKind::Rsa) => DIGITAL_SIGNATURE | KEY_ENCIPHERMENT,
            // RFC 5280 section 4.2.1.12: a client only signs.
            _ => DIGITAL_SIGNATURE,
        };
        write_key_usage(extensions, usage);
        let purpose = match profile.usage {
            Usage::ClientAuth => oid::CLIENT_AUTH,
            Usage::ServerAuth => oid::SERVER_AUTH,
        };
        write_extension(extensions, oid::EXTENDED_KEY_USAGE, false, |value| {
            value.nested(der::SEQUENCE, |purposes| purposes.object_identifier(purpose));
        });
        if !self.hosts.is_empty() {
            // RFC 5280 section 4.2.1.6: critical if nothing else names the subject.
            write_extension(extensions, oid::SUBJECT_ALT_NAME, self.subject.is_empty(), |value| {
                value.nested(der::SEQUENCE, |names| {
                    for host in &self.hosts {
                        names.element(DNS_NAME, host.as_str().as_bytes());
                    }
                });
            });
        }
        if let Some(uri) = &profile.crl_distribution_point {
            write_extension(extensions, oid::CRL_DISTRIBUTION_POINTS, false, |value| {
                value.nested(der::SEQUENCE, |points| {
                    points.nested(der::SEQUENCE, |point| {
                        point.nested(der::context(0), |name| {
                            name.nested(der::context(0), |full_name| full_name.element(URI, uri.as_bytes()));
                        });
                    });
                });
            });
        }
        if let Some(uri) = &profile.ca_issuers {
            write_extension(extensions, oid::AUTHORITY_INFO_ACCESS, false, |value| {
                value.nested(der::SEQUENCE, |descriptions| {
                    descriptions.nested(der::SEQUENCE, |description| {
                        description.object_identifier(oid::CA_ISSUERS);
                        description.element(URI, uri.as_bytes());
                    });
                });
            });
        }
    }
}

/// A TBSCertificate that passed the self-lint and waits for its signature.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "nothing is issued before `finish`"]
pub struct ToBeSigned {
    pub(crate) tbs: Vec<u8>,
    pub(crate) algorithm: SignatureAlgorithm,
    pub(crate) serial: SerialNumber,
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
}

impl ToBeSigned {
    /// What the issuer's key must sign.
    pub fn as_bytes(&self) -> &[u8] {
        &self.tbs
    }

    /// How it must be signed.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// Joins the signature to the bytes.
    ///
    /// The signature is not verified here: a signer that may fail silently is
    /// the caller's to check, with [`verify_chain`](crate::verify_chain).
    pub fn finish(self, signature: &[u8]) -> Leaf {
        let mut writer = Writer::with_capacity(self.tbs.len() + signature.len() + 32);
        writer.nested(der::SEQUENCE, |certificate| {
            certificate.raw(&self.tbs);
            certificate.raw(self.algorithm.identifier_der());
            certificate.bit_string(signature);
        });
        let der = writer.finish();
        Leaf {
            fingerprint: Fingerprint::of(&der),
            der,
            serial: self.serial,
            not_before: self.not_before,
            not_after: self.not_after,
        }
    }

    /// Signs and joins in one step.
    ///
    /// # Errors
    ///
    /// Those of [`Signer::sign`].
    pub fn sign(self, signer: &dyn Signer) -> Result<Leaf, crate::crypto::SignError> {
        let signature = signer.sign(&self.tbs)?;
        Ok(self.finish(&signature))
    }
}

/// A signed certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf {
    der: Vec<u8>,
    fingerprint: Fingerprint,
    serial: SerialNumber,
    not_before: Time,
    not_after: Time,
}

impl Leaf {
    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate as one PEM block that ends with a newline.
    pub fn to_pem(&self) -> String {
        certificate_to_pem(&self.der)
    }

    /// The SHA-256 of the DER.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Its serial number.
    pub fn serial(&self) -> SerialNumber {
        self.serial
    }

    /// The first second of its life.
    pub fn not_before(&self) -> Time {
        self.not_before
    }

    /// The last second of its life.
    pub fn not_after(&self) -> Time {
        self.not_after
    }
}

/// One `CERTIFICATE` block with a final newline.
pub fn certificate_to_pem(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der)
}

/// The fields of a TBSCertificate before its extensions.
pub(crate) struct Fields<'a> {
    pub(crate) serial: SerialNumber,
    pub(crate) algorithm: SignatureAlgorithm,
    /// The issuer's Name as its certificate has it, never re-encoded.
    pub(crate) issuer: &'a [u8],
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
    pub(crate) subject: &'a Subject,
    pub(crate) spki: &'a [u8],
}

impl Fields<'_> {
    pub(crate) fn write(&self, write_extensions: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::with_capacity(512 + self.spki.len());
        writer.nested(der::SEQUENCE, |tbs| {
            tbs.nested(der::context(0), |version| version.element(der::INTEGER, &[2]));
            tbs.element(der::INTEGER, self.serial.as_bytes());
            tbs.raw(self.algorithm.identifier_der());
            tbs.raw(self.issuer);
            tbs.nested(der::SEQUENCE, |validity| {
                self.not_before.write(validity);
                self.not_after.write(validity);
            });
            self.subject.write(tbs);
            tbs.raw(self.spki);
            tbs.nested(der::context(3), |explicit| explicit.nested(der::SEQUENCE, write_extensions));
        });
        writer.finish()
    }
}

/// GeneralName choices with implicit tags.
pub(crate) const DNS_NAME: u8 = der::context_primitive(2);
pub(crate) const IP_ADDRESS: u8 = der::context_primitive(7);
const URI: u8 = der::context_primitive(6);

pub(crate) fn write_extension(extensions: &mut Writer, id: &[u8], critical: bool, write: impl FnOnce(&mut Writer)) {
    extensions.nested(der::SEQUENCE, |extension| {
        extension.object_identifier(id);
        if critical {
            extension.element(der::BOOLEAN, &[0xff]);
        }
        extension.nested(der::OCTET_STRING, write);
    });
}

/// All bits that are used here lie in the first octet.
pub(crate) fn write_key_usage(extensions: &mut Writer, usage: u16) {
    let [octet, _] = usage.to_be_bytes();
    #[expect(clippy::cast_possible_truncation, reason = "at most eight")]
    let unused = octet.trailing_zeros() as u8;
    write_extension(extensions, oid::KEY_USAGE, true, |value| value.element(der::BIT_STRING, &[unused, octet]));
}

pub(crate) fn write_subject_key_identifier(extensions: &mut Writer, spki: &[u8]) {
    write_extension(extensions, oid::SUBJECT_KEY_IDENTIFIER, false, |value| {
        value.element(der::OCTET_STRING, &key_identifier(spki));
    });
}

pub(crate) fn write_authority_key_identifier(extensions: &mut Writer, key_identifier: &[u8]) {
    write_extension(extensions, oid::AUTHORITY_KEY_IDENTIFIER, false, |value| {
        value.nested(der::SEQUENCE, |fields| fields.element(der::context_primitive(0), key_identifier));
    });
}

/// RFC 7093 section 2, method 1: the leftmost 160 bits of the SHA-256 of the
/// key's BIT STRING, without its header.
pub(crate) fn key_identifier(spki: &[u8]) -> [u8; 20] {
    let bits = PublicKey::from_der(spki).map_or(spki, |key| key.bits());
    let digest: [u8; 32] = Sha256::digest(bits).into();
    let mut identifier = [0; 20];
    identifier.copy_from_slice(&digest[..20]);
    identifier
}
