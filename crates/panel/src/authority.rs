//! The panel's own certificate authority: signs for agents and admins.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ca_dir::{KeyAlgorithm, generate_key, random_serial, read_private_key};
use jiff::Timestamp;
use pki_core::crypto::Signer as _;
use pki_core::crypto::aws_lc::{AwsLc, PrivateKey};
use pki_core::pkcs12::{Bundle, Encryption};
use pki_core::{
    Certificate, Csr, IssueError, Issuer, KeyPolicy, Profile, ProfileConfig, RevocationList, RevokedCertificate,
    Subject, Time, Usage, VerifiedCsr, certificates_from_pem, revocation_lists_from_file,
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::directory::{CA_CERTIFICATE, CA_KEY, Paths, Stamp};
use crate::error::Error;
use crate::secret::{self, Secret};
use crate::state::{Revoked, Serial};

/// The organizationName in every certificate that a panel signs: its clients ask for it.
const ORGANIZATION: &str = "Portlama";
/// Octets of a request that are read.
pub(crate) const MAX_CSR: usize = 8192;

const DAY: u64 = 86_400;
/// From the time of signing.
const VALIDITY: u64 = 730 * DAY;
/// Clocks of clients may be late by as much.
const BACKDATE: i64 = 300;
/// How long a revocation list may be believed. It is made again at every
/// revocation and every start; after this, who reads it refuses everybody.
const CRL_VALIDITY: u64 = 365 * DAY;

/// The authority of one directory. The key is read when it is needed, and again
/// when its file changes.
pub(crate) struct ClientAuthority {
    key_path: PathBuf,
    certificate: Vec<u8>,
    pem: String,
    not_before: Time,
    not_after: Time,
    ready: Mutex<Option<(Stamp, Arc<Ready>)>>,
}

struct Ready {
    issuer: Issuer,
    key: PrivateKey,
}

/// A certificate that was signed and may be recorded.
pub(crate) struct Issued {
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
    pub(crate) serial: Serial,
    pub(crate) not_after: Timestamp,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) key: [u8; 32],
}

/// A certificate with a key that was made here.
pub(crate) struct Identity {
    pub(crate) issued: Issued,
    /// PKCS #8 as PEM.
    pub(crate) key_pem: Zeroizing<Vec<u8>>,
    pub(crate) p12: Zeroizing<Vec<u8>>,
    pub(crate) password: Secret,
}

/// How keys and bundles are made.
#[derive(Clone, Copy, Debug)]
pub struct Making {
    /// Kind of the keys.
    pub keys: KeyAlgorithm,
    /// Encryption of the bundles.
    pub encryption: Encryption,
}

impl ClientAuthority {
    /// Reads the certificate of a directory's authority.
    ///
    /// # Errors
    ///
    /// When `ca.crt` is not there or holds no certificate.
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        let pem = std::fs::read_to_string(paths.at(CA_CERTIFICATE)).map_err(Error::internal)?;
        let certificate = certificates_from_pem(pem.as_bytes()).map_err(Error::internal)?.swap_remove(0);
        let parsed = Certificate::from_der(&certificate).map_err(Error::internal)?;
        let (not_before, not_after) = (parsed.not_before(), parsed.not_after());
        let key_path = paths.at(CA_KEY);
        Ok(Self { key_path, pem, not_before, not_after, ready: Mutex::default(), certificate })
    }

    /// The authority's certificate in DER.
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// `ca.crt`, to the letter.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Is the key there?
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.ready().map(drop)
    }

    /// Signs the key of a request for this common name. What else the request
    /// asks for is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::CsrTooLarge`], [`Error::CaKeyMissing`], [`Error::InvalidCsr`].
    pub(crate) fn sign(&self, csr: &str, common_name: &str, now: Timestamp) -> Result<Issued, Error> {
        if csr.len() > MAX_CSR {
            return Err(Error::CsrTooLarge);
        }
        let ready = self.ready()?;
        let request = Csr::from_pem(csr.as_bytes()).map_err(Error::invalid_csr)?;
        let verified = request.verify(&AwsLc, &KeyPolicy::new()).map_err(Error::invalid_csr)?;
        if verified.spki() == ready.key.spki() {
            return Err(Error::invalid_csr("the request has the authority's own key"));
        }
        self.issue(&ready, verified, common_name, now)
    }

    /// Makes a key and a certificate for it, and bundles both.
    ///
    /// # Errors
    ///
    /// [`Error::CaKeyMissing`] and [`Error::Internal`].
    pub(crate) fn make(&self, common_name: &str, making: Making, now: Timestamp) -> Result<Identity, Error> {
        let ready = self.ready()?;
        let key = generate_key(making.keys).map_err(Error::internal)?;
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let key_pem = Zeroizing::new(key.serialize_pem().into_bytes());
        // A request of our own goes the way of all requests.
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(Error::internal)?;
        let verified = Csr::from_der(request.der())
            .and_then(|request| request.verify(&AwsLc, &KeyPolicy::new()))
            .map_err(Error::internal)?;
        let issued = self.issue(&ready, verified, common_name, now)?;
        let password = secret::p12_password()?;
        let bundle = Bundle {
            private_key: &pkcs8,
            certificate: &issued.der,
            authorities: &[&self.certificate],
            friendly_name: None,
        };
        let p12 = bundle.encrypt(password.expose(), making.encryption, &secret::random()?).map_err(Error::internal)?;
        Ok(Identity { issued, key_pem, p12, password })
    }

    /// The end of the authority, if it is over.
    pub(crate) fn expired(&self, now: Timestamp) -> Option<Timestamp> {
        (seconds(now) > self.not_after).then(|| timestamp(self.not_after))
    }

    /// Signs the list of revoked serial numbers but those that are `withheld`, as PEM, in place
    /// of the one `before`.
    ///
    /// # Errors
    ///
    /// [`Error::CaKeyMissing`] and [`Error::Internal`].
    pub(crate) fn revocation_list(
        &self,
        revoked: &Revoked,
        withheld: &[Serial],
        before: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<String, Error> {
        let ready = self.ready()?;
        let entries: Vec<_> = revoked
            .revoked
            .iter()
            .filter(|entry| !withheld.contains(&entry.serial))
            .map(|entry| (entry.serial.octets(), entry.revoked_at.as_deref().and_then(|at| at.parse().ok())))
            .collect();
        let entries: Vec<_> = entries
            .iter()
            .map(|(serial, at)| RevokedCertificate { serial, revoked_at: seconds(at.unwrap_or(now)) })
            .collect();
        let this_update = seconds(now);
        let next_update = this_update.plus(std::time::Duration::from_secs(CRL_VALIDITY));
        let number = number_after(before, now);
        let list = ready
            .issuer
            .revocation_list(&entries, number, this_update, next_update)
            .map_err(Error::internal)?
            .sign(&ready.key)
            .map_err(Error::internal)?;
        Ok(list.to_pem())
    }

    fn issue(&self, ready: &Ready, verified: VerifiedCsr, common_name: &str, now: Timestamp) -> Result<Issued, Error> {
        let key = Sha256::digest(verified.spki()).into();
        let subject = Subject::with_organization(common_name, ORGANIZATION).map_err(Error::internal)?;
        let approved = verified.approve_subject(subject).map_err(Error::invalid_csr)?;
        let serial = random_serial().map_err(Error::internal)?;
        let leaf = approved
            .to_be_signed(&ready.issuer, &self.profile(now)?, serial, seconds(now))
            .map_err(|error: IssueError| Error::internal(error))?
            .sign(&ready.key)
            .map_err(Error::internal)?;
        Ok(Issued {
            pem: leaf.to_pem(),
            der: leaf.der().to_vec(),
            serial: Serial::from_octets(leaf.serial().as_bytes()),
            not_after: timestamp(leaf.not_after()),
            key,
        })
    }

    /// 730 days to the second from now, or to the end of the authority. The
    /// first second lies back as far as the authority's own beginning allows.
    fn profile(&self, now: Timestamp) -> Result<Profile, Error> {
        let now = now.as_second();
        let backdate = (now - self.not_before.unix()).clamp(0, BACKDATE).unsigned_abs();
        let left = u64::try_from(self.not_after.unix() - now).unwrap_or_default();
        let config = ProfileConfig {
            usage: Usage::ClientAuth,
            // Both ends are part of the validity.
            validity_seconds: backdate + VALIDITY.min(left) + 1,
            backdate_seconds: backdate,
            crl_distribution_point: None,
            ca_issuers: None,
        };
        Profile::try_from(config).map_err(Error::internal)
    }

    fn ready(&self) -> Result<Arc<Ready>, Error> {
        let stamp = Stamp::of(&self.key_path);
        if stamp == Stamp::default() {
            return Err(Error::CaKeyMissing);
        }
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match &*ready {
            Some((known, ready)) if *known == stamp => Ok(Arc::clone(ready)),
            _ => {
                let key = read_private_key(&self.key_path, None).map_err(Error::internal)?;
                let issuer = Issuer::new(&self.certificate, &key).map_err(Error::internal)?;
                let made = Arc::new(Ready { issuer, key });
                *ready = Some((stamp, Arc::clone(&made)));
                Ok(made)
            }
        }
    }
}

/// A number above that of the list before (RFC 5280, 5.2.3), whatever the clock does. It follows
/// the clock otherwise: a directory that was restored must not give out again what was seen.
fn number_after(before: Option<&[u8]>, now: Timestamp) -> u64 {
    let counted = before.and_then(|before| {
        let lists = revocation_lists_from_file(before).ok()?;
        RevocationList::from_der(lists.first()?).ok()?.number()
    });
    let by_clock = u64::try_from(now.as_millisecond()).unwrap_or_default();
    counted.map_or(by_clock, |counted| counted.saturating_add(1).max(by_clock))
}

pub(crate) fn seconds(at: Timestamp) -> Time {
    Time::from_unix(at.as_second())
}

pub(crate) fn timestamp(at: Time) -> Timestamp {
    // X.509 ends with the year 9999, and so does jiff.
    Timestamp::from_second(at.unix()).unwrap_or(Timestamp::MAX)
}
