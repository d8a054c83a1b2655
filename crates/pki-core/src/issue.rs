//! From an approved request to a certificate.
//!
//! Signing takes two steps, so that the key may sit in a file, an HSM or a
//! KMS: [`Approved::to_be_signed`] gives the bytes, which the self-lint has
//! read, and [`ToBeSigned::finish`] takes the signature.

use std::time::Duration;

use base16ct::lower::encode_string as hex;
use sha2::{Digest as _, Sha256};

use crate::algorithm::{KeyKind, SignatureAlgorithm};
use crate::crypto::Signer;
use crate::csr::Approved;
use crate::der::{self, Writer};
use crate::dns_name::DnsName;
use crate::extension::{DIGITAL_SIGNATURE, KEY_ENCIPHERMENT};
use crate::fingerprint::Fingerprint;
use crate::issuer::Issuer;
use crate::key::PublicKey;
use crate::lint::{Lint, lint};
use crate::name::Subject;
use crate::oid;
use crate::pem;
use crate::profile::{Profile, Usage};
use crate::time::Time;

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
        let not_before = now.minus(profile.backdate).max(issuer.not_before());
        if not_before > now {
            return Err(IssueError::NotYetValid { not_before, now });
        }
        // RFC 5280 section 4.1.2.5: both ends are part of the validity.
        let not_after = not_before.plus(profile.validity - Duration::from_secs(1));
        if not_after > issuer.not_after() {
            return Err(IssueError::OutlivesIssuer { not_after, issuer_not_after: issuer.not_after() });
        }
        let fields = Fields {
            serial,
            algorithm: issuer.algorithm(),
            issuer: issuer.name(),
            not_before,
            not_after,
            subject: &self.subject,
            spki: &self.spki,
        };
        let tbs = fields.write(|extensions| self.write_extensions(issuer, profile, extensions));
        if let Some(finding) = lint(&tbs).into_iter().next() {
            return Err(IssueError::Lint(finding));
        }
        Ok(ToBeSigned { tbs, algorithm: issuer.algorithm(), serial, not_before, not_after })
    }

    fn write_extensions(&self, issuer: &Issuer, profile: &Profile, extensions: &mut Writer) {
        write_authority_key_identifier(extensions, issuer.key_identifier());
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
