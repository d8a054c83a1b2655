//! Who signs: the authority's certificate, joined to its key, and what its
//! nameConstraints leave it to sign.

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, CertificateError};
use crate::crypto::Signer;
use crate::der::Writer;
use crate::dns_name::DnsName;
use crate::extension::{CRL_SIGN, GeneralName, KEY_CERT_SIGN};
use crate::issue::key_identifier;
use crate::name::Subject;
use crate::name_constraints::{NameConstraints, Subtree, is_within};
use crate::oid;
use crate::time::Time;

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

    pub(crate) fn not_before(&self) -> Time {
        self.not_before
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
    pub(crate) fn permits_subject(&self, subject: &Subject) -> bool {
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
