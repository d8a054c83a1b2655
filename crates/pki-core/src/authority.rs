//! Certificate authorities: one that signs requests, and the certificates of
//! the root that clients trust and of the intermediate, bound to its zone.

use std::sync::Arc;
use std::time::Duration;

use crate::crypto::{SignError, Signer, Verifier};
use crate::csr::Csr;
use crate::csr_error::CsrError;
use crate::der;
use crate::dns_name::DnsName;
use crate::extension::{CRL_SIGN, KEY_CERT_SIGN};
use crate::issue::{
    DNS_NAME, Fields, IP_ADDRESS, IssueError, Leaf, SerialNumber, ToBeSigned, certificate_to_pem, key_identifier,
    write_authority_key_identifier, write_extension, write_key_usage, write_subject_key_identifier,
};
use crate::issuer::{Issuer, IssuerError};
use crate::key::KeyPolicy;
use crate::lint::lint;
use crate::name::Subject;
use crate::oid;
use crate::profile::Profile;
use crate::time::Time;

/// An issuer with its key, and all that it goes by: signs requests for one
/// host by one profile.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<Issuer>,
    signer: Arc<dyn Signer>,
    verifier: Arc<dyn Verifier>,
    profile: Arc<Profile>,
    key_policy: Arc<KeyPolicy>,
    chain_pem: Arc<str>,
}

/// Why a request is not signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The requester can mend it.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The operator can.
    #[error("the certificate could not be assembled")]
    Issue(#[from] IssueError),
    /// The key can't be used.
    #[error("the certificate could not be signed")]
    Sign(#[from] SignError),
}

impl Authority {
    /// An authority with this certificate in DER, whose key `signer` holds.
    ///
    /// # Errors
    ///
    /// When certificate and key do not belong together.
    pub fn new(
        certificate: &[u8],
        signer: Arc<dyn Signer>,
        verifier: Arc<dyn Verifier>,
        profile: Profile,
        key_policy: KeyPolicy,
    ) -> Result<Self, IssuerError> {
        Ok(Self {
            issuer: Arc::new(Issuer::new(certificate, signer.as_ref())?),
            signer,
            verifier,
            profile: Arc::new(profile),
            key_policy: Arc::new(key_policy),
            chain_pem: certificate_to_pem(certificate).into(),
        })
    }

    /// The certificates between a leaf and the root, as PEM.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// May it sign for this host?
    pub fn permits(&self, host: &DnsName) -> bool {
        self.issuer.permits(host)
    }

    /// The last second of the authority's own life.
    pub fn not_after(&self) -> Time {
        self.issuer.not_after()
    }

    /// Checks a request for exactly `host` and signs it.
    ///
    /// Nothing is recorded here: a certificate that is not stored afterwards
    /// is thrown away, and nobody has seen it.
    ///
    /// # Errors
    ///
    /// [`AuthorityError::Csr`] says what the requester must change.
    pub fn issue(
        &self,
        csr_pem: &[u8],
        host: &DnsName,
        serial: SerialNumber,
        now: Time,
    ) -> Result<Leaf, AuthorityError> {
        let approved = Csr::from_pem(csr_pem)?.verify(self.verifier.as_ref(), &self.key_policy)?.approve_host(host)?;
        let to_be_signed = approved.to_be_signed(&self.issuer, &self.profile, serial, now)?;
        Ok(to_be_signed.sign(self.signer.as_ref())?)
    }
}

/// A self-signed certificate for `signer`'s own key.
///
/// It may have one level of authorities below it (pathLenConstraint 1).
///
/// # Errors
///
/// [`IssueError::Lint`], for example for an empty validity.
pub fn root(
    subject: &Subject,
    signer: &dyn Signer,
    validity: Duration,
    serial: SerialNumber,
    now: Time,
) -> Result<ToBeSigned, IssueError> {
    let name = {
        let mut writer = der::Writer::default();
        subject.write(&mut writer);
        writer.finish()
    };
    let fields = Fields {
        serial,
        algorithm: signer.algorithm(),
        issuer: &name,
        not_before: now,
        not_after: now.plus(validity.saturating_sub(Duration::from_secs(1))),
        subject,
        spki: signer.spki(),
    };
    assemble(&fields, &key_identifier(signer.spki()), 1, None)
}

impl Issuer {
    /// An intermediate for `subject` with the key of `spki`, which may sign
    /// hosts within `zone` only.
    ///
    /// nameConstraints permit the zone and exclude every IP address, since a
    /// constraint on one kind of name does not touch the others (RFC 5280
    /// section 4.2.1.10). No authority may stand below it (pathLenConstraint 0).
    ///
    /// # Errors
    ///
    /// [`IssueError::OutlivesIssuer`] and [`IssueError::Lint`].
    pub fn intermediate(
        &self,
        subject: &Subject,
        spki: &[u8],
        zone: &DnsName,
        validity: Duration,
        serial: SerialNumber,
        now: Time,
    ) -> Result<ToBeSigned, IssueError> {
        let not_after = now.plus(validity.saturating_sub(Duration::from_secs(1)));
        if not_after > self.not_after() {
            return Err(IssueError::OutlivesIssuer { not_after, issuer_not_after: self.not_after() });
        }
        let fields = Fields {
            serial,
            algorithm: self.algorithm(),
            issuer: self.name(),
            not_before: now,
            not_after,
            subject,
            spki,
        };
        assemble(&fields, self.key_identifier(), 0, Some(zone))
    }
}

fn assemble(
    fields: &Fields<'_>,
    authority_key: &[u8],
    path_length: u8,
    zone: Option<&DnsName>,
) -> Result<ToBeSigned, IssueError> {
    let tbs = fields.write(|extensions| {
        write_authority_key_identifier(extensions, authority_key);
        write_subject_key_identifier(extensions, fields.spki);
        write_extension(extensions, oid::BASIC_CONSTRAINTS, true, |value| {
            value.nested(der::SEQUENCE, |constraints| {
                constraints.element(der::BOOLEAN, &[0xff]);
                constraints.element(der::INTEGER, &[path_length]);
            });
        });
        write_key_usage(extensions, KEY_CERT_SIGN | CRL_SIGN);
        if let Some(zone) = zone {
            write_name_constraints(extensions, zone);
        }
    });
    if let Some(finding) = lint(&tbs).into_iter().next() {
        return Err(IssueError::Lint(finding));
    }
    Ok(ToBeSigned {
        tbs,
        algorithm: fields.algorithm,
        serial: fields.serial,
        not_before: fields.not_before,
        not_after: fields.not_after,
    })
}

fn write_name_constraints(extensions: &mut der::Writer, zone: &DnsName) {
    /// Address and mask of all of IPv4 and of all of IPv6.
    const EVERY_ADDRESS: [&[u8]; 2] = [&[0; 8], &[0; 32]];

    write_extension(extensions, oid::NAME_CONSTRAINTS, true, |value| {
        value.nested(der::SEQUENCE, |constraints| {
            constraints.nested(der::context(0), |permitted| {
                permitted.nested(der::SEQUENCE, |subtree| subtree.element(DNS_NAME, zone.as_str().as_bytes()));
            });
            constraints.nested(der::context(1), |excluded| {
                for address in EVERY_ADDRESS {
                    excluded.nested(der::SEQUENCE, |subtree| subtree.element(IP_ADDRESS, address));
                }
            });
        });
    });
}
