//! Chain verification: from a leaf over intermediates to an anchor (RFC 5280
//! section 6).
//!
//! The intermediates may come in any order and with company: every path is
//! tried until one holds, within a [`Budget`]. Not checked: revocation,
//! certificate policies, transparency. Why this is not a library's:
//! docs/decisions/0017-own-chain-verification.md.

use crate::algorithm::{AlgorithmError, SignatureAlgorithm};
use crate::certificate::{Certificate, CertificateError};
use crate::crypto::Verifier;
use crate::dns_name::DnsName;
use crate::extension::{self, BasicConstraints, GeneralName, KEY_CERT_SIGN};
use crate::key::{KeyError, PublicKey};
use crate::name_constraints::Objection;
use crate::oid::{self, ObjectIdentifier};
use crate::profile::Usage;
use crate::time::Time;

/// What a chain must be good for.
#[derive(Clone, Debug)]
pub struct Expectation<'a> {
    /// The host that the leaf's subjectAltName must name, if any.
    pub host: Option<&'a DnsName>,
    /// What the leaf's extended key usage must allow, if anything.
    pub usage: Option<Usage>,
    /// The time at which every certificate must be valid.
    pub at: Time,
}

/// Which check failed. `depth` counts from the leaf, which is 0; the anchor is
/// one past the last certificate of the path.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// Signed in a way that is not accepted, whoever signed.
    #[error("certificate {depth}: {error}")]
    Algorithm {
        /// Which certificate.
        depth: usize,
        /// What is wrong with it.
        error: AlgorithmError,
    },
    /// An authority in the place of a server or a client.
    #[error("certificate 0 is one of a certificate authority, and no server or client")]
    Authority,
    /// An extension that stands twice (RFC 5280 section 4.2).
    #[error("certificate {depth} has the extension {extension} twice")]
    DuplicateExtension {
        /// Which certificate.
        depth: usize,
        /// The extension.
        extension: ObjectIdentifier,
    },
    /// The list of certificates is empty.
    #[error("there is no certificate to verify")]
    Empty,
    /// Its time is over.
    #[error("certificate {depth} expired on {not_after}, and the time is {at}")]
    Expired {
        /// Which certificate.
        depth: usize,
        /// Its last second.
        not_after: Time,
        /// The time of the check.
        at: Time,
    },
    /// The leaf does not name the host.
    #[error("the certificate is for {found:?}, not for \"{expected}\"")]
    Host {
        /// The host that was asked for.
        expected: DnsName,
        /// The dNSNames of the leaf.
        found: Vec<String>,
    },
    /// The next certificate is not its issuer.
    #[error("certificate {depth} was issued by another name than the next one's subject: send the chain leaf first")]
    IssuerMismatch {
        /// Which certificate.
        depth: usize,
    },
    /// The public key cannot be read: another algorithm, or not in its form.
    #[error("the key of certificate {depth} is not accepted: {error}")]
    Key {
        /// Which certificate.
        depth: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// Bytes that are no certificate.
    #[error("certificate {depth}: {error}")]
    Malformed {
        /// Which certificate.
        depth: usize,
        /// What is wrong with it.
        error: CertificateError,
    },
    /// A name outside of an authority's nameConstraints.
    #[error("certificate {depth} has a name which the authority at {authority} may not sign")]
    NameConstraints {
        /// Which certificate has the name.
        depth: usize,
        /// Whose constraints forbid it; one past the last is the anchor.
        authority: usize,
    },
    /// It signs, but is no authority.
    #[error("certificate {depth} is not one of a certificate authority")]
    NotAnAuthority {
        /// Which certificate.
        depth: usize,
    },
    /// Its time has not come.
    #[error("certificate {depth} is valid from {not_before}, and the time is {at}")]
    NotYetValid {
        /// Which certificate.
        depth: usize,
        /// Its first second.
        not_before: Time,
        /// The time of the check.
        at: Time,
    },
    /// More authorities below it than its pathLenConstraint allows.
    #[error("certificate {depth} has more authorities below it than it may")]
    PathLength {
        /// Which certificate.
        depth: usize,
    },
    /// The signature does not match the issuer's key.
    #[error("the signature of certificate {depth} does not match its issuer's key")]
    Signature {
        /// Which certificate.
        depth: usize,
    },
    /// A chain that only takes time.
    #[error("the chain takes more work to verify than any that is meant well")]
    TooCostly,
    /// More certificates than are looked at, or than a path may have.
    #[error("the chain has {length} certificates, more than the {limit} that are walked")]
    TooLong {
        /// How many were given.
        length: usize,
        /// How many are walked.
        limit: usize,
    },
    /// An authority limits names of a kind that is not compared here, and the
    /// certificate has one.
    #[error(
        "certificate {depth} has a name of the kind {kind}: the authority at {authority} limits those, and they are not compared here"
    )]
    UnknownConstraint {
        /// Which certificate has the name.
        depth: usize,
        /// Whose constraints they are.
        authority: usize,
        /// The kind as RFC 5280 calls it.
        kind: &'static str,
    },
    /// A critical extension that is not understood here.
    #[error("certificate {depth} has a critical extension {extension} that is not understood")]
    UnknownCritical {
        /// Which certificate.
        depth: usize,
        /// The extension.
        extension: ObjectIdentifier,
    },
    /// Nobody at hand has the certificate's issuer as its subject.
    #[error("no trust anchor issued certificate {depth}: the issuer's certificate is missing or not trusted")]
    UnknownIssuer {
        /// The last certificate that was reached.
        depth: usize,
    },
    /// The extended key usage does not allow it.
    #[error("certificate {depth} may not be used for {usage:?}")]
    Usage {
        /// Which certificate.
        depth: usize,
        /// What it was to be used for.
        usage: Usage,
    },
    /// Not of the version that is verified here.
    #[error("certificate {depth} is of version {version}, not {expected}")]
    Version {
        /// Which certificate.
        depth: usize,
        /// 1 or 3.
        version: u8,
        /// The version that was asked for.
        expected: u8,
    },
}

/// The most certificates of one call, leaf and intermediates: a bundle of
/// somebody's whole house, and no more.
const MAX_CANDIDATES: usize = 64;

/// The most certificates of one path, the anchor not counted.
const MAX_PATH: usize = 8;

/// What one call may cost. A few kilobytes of certificates that all could have
/// signed each other, or of names and constraints, would take minutes
/// otherwise (x509-limbo, `pathological`). The numbers are rustls-webpki's.
#[derive(Debug)]
struct Budget {
    comparisons: usize,
    signatures: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { comparisons: 250_000, signatures: 100 }
    }
}

/// A Name without an attribute.
const EMPTY_NAME: &[u8] = &[0x30, 0x00];

/// Verifies a chain, leaf first, up to one of the anchors.
///
/// Behind the leaf come intermediates, in any order; superfluous ones do no
/// harm. The anchor may be left out or be among them, and need not be
/// self-signed. Of an anchor count name, key and validity, and what its
/// extensions say about itself and those below it; an anchor that cannot be
/// read or does not fit is passed over.
///
/// # Errors
///
/// [`ChainError`]: of the path that came furthest, its first from the leaf upwards.
pub fn verify_chain(
    chain: &[&[u8]],
    anchors: &[&[u8]],
    expectation: &Expectation<'_>,
    verifier: &dyn Verifier,
) -> Result<(), ChainError> {
    if chain.len() > MAX_CANDIDATES {
        return Err(ChainError::TooLong { length: chain.len(), limit: MAX_CANDIDATES });
    }
    let mut candidates = Vec::with_capacity(chain.len());
    for (depth, der) in chain.iter().enumerate() {
        candidates.push(Certificate::from_der(der).map_err(|error| ChainError::Malformed { depth, error })?);
    }
    let Some((leaf, intermediates)) = candidates.split_first() else { return Err(ChainError::Empty) };
    let anchors: Vec<_> = anchors.iter().filter_map(|anchor| Certificate::from_der(anchor).ok()).collect();
    check_certificate(leaf, 0, expectation)?;
    check_version(leaf, 0)?;
    if expectation.usage.is_some() && basic_constraints(leaf, 0)?.ca {
        return Err(ChainError::Authority);
    }
    let mut search = Search { anchors: &anchors, intermediates, expectation, verifier, budget: Budget::default() };
    search.extend(&mut vec![leaf])?;
    check_host(leaf, expectation)
}

/// Verifies a client certificate of version 1 that the anchor issued itself.
///
/// `openssl x509 -req` of OpenSSL 3.0 writes version 1 when it is given no
/// extensions, so certificates of that kind are in use. They cannot say what
/// they are for or that they are no authority; that is why they are verified
/// by this function alone, directly below an anchor that the caller trusts for
/// client certificates. The leaf's issuer must be the anchor's subject octet
/// for octet, both must be valid at `at`, the anchor must be an authority (and
/// its nameConstraints and extended key usage, if any, allow the leaf), and
/// its key must have made the signature. Of the leaf's own key only the form is
/// checked; see [`KeyPolicy`](crate::KeyPolicy) for its strength.
///
/// # Errors
///
/// [`ChainError::Version`] for a leaf of version 3; otherwise the first check
/// that fails. Depth 0 is the leaf and depth 1 the anchor.
pub fn verify_version_1_leaf(leaf: &[u8], anchor: &[u8], at: Time, verifier: &dyn Verifier) -> Result<(), ChainError> {
    let read = |der, depth| Certificate::from_der(der).map_err(|error| ChainError::Malformed { depth, error });
    let path = [read(leaf, 0)?, read(anchor, 1)?];
    let [leaf, anchor] = &path;
    if leaf.version() != 1 {
        return Err(ChainError::Version { depth: 0, version: leaf.version(), expected: 1 });
    }
    if leaf.tbs.issuer != anchor.tbs.subject {
        return Err(ChainError::IssuerMismatch { depth: 0 });
    }
    let expectation = Expectation { host: None, usage: Some(Usage::ClientAuth), at };
    for (depth, certificate) in [leaf, anchor].into_iter().enumerate() {
        PublicKey::from_der(certificate.spki()).map_err(|error| ChainError::Key { depth, error })?;
        check_certificate(certificate, depth, &expectation)?;
    }
    // Unlike in `verify_chain`, an anchor of version 1 is not taken: it cannot say that it is an authority.
    check_authority(anchor, 1, false, 0)?;
    check_signature(leaf, anchor, 0, verifier)?;
    check_name_constraints(&[leaf, anchor], &mut Budget::default().comparisons)
}

/// The search for a path that holds, depth first.
struct Search<'a> {
    anchors: &'a [Certificate<'a>],
    intermediates: &'a [Certificate<'a>],
    expectation: &'a Expectation<'a>,
    verifier: &'a dyn Verifier,
    budget: Budget,
}

impl<'a> Search<'a> {
    /// Continues a path that holds so far, up to an anchor.
    fn extend(&mut self, path: &mut Vec<&'a Certificate<'a>>) -> Result<(), ChainError> {
        let Some(last) = path.last().copied() else { return Err(ChainError::Empty) };
        let mut failure = ChainError::UnknownIssuer { depth: path.len() - 1 };
        // Anchors first: what a server sends above an anchor, a cross-signed copy of it or its
        // predecessor, then does not matter.
        let (anchors, intermediates) = (self.anchors, self.intermediates);
        let candidates =
            anchors.iter().map(|anchor| (anchor, true)).chain(intermediates.iter().map(|one| (one, false)));
        for (issuer, is_anchor) in candidates.filter(|(issuer, _)| issuer.tbs.subject == last.tbs.issuer) {
            // An authority twice in a path leads nowhere that it would not lead once.
            let is_same =
                |other: &&Certificate<'_>| other.tbs.subject == issuer.tbs.subject && other.tbs.spki == issuer.tbs.spki;
            if !is_anchor && path.iter().any(is_same) {
                continue;
            }
            path.push(issuer);
            let result = self.check_issuer(path, is_anchor).and_then(|()| match is_anchor {
                true => check_name_constraints(path, &mut self.budget.comparisons),
                false => self.extend(path),
            });
            path.pop();
            match result {
                Ok(()) => return Ok(()),
                Err(ChainError::TooCostly) => return Err(ChainError::TooCostly),
                Err(error) if weight(&error) > weight(&failure) => failure = error,
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// Everything that can be said of the last of a path as the issuer of the
    /// one before it.
    fn check_issuer(&mut self, path: &[&Certificate<'_>], is_anchor: bool) -> Result<(), ChainError> {
        let [below @ .., issuer] = path else { return Err(ChainError::Empty) };
        let (Some(certificate), depth) = (below.last(), below.len()) else { return Err(ChainError::Empty) };
        if depth > MAX_PATH || (depth == MAX_PATH && !is_anchor) {
            return Err(ChainError::TooLong { length: depth + 1, limit: MAX_PATH });
        }
        self.budget.signatures = self.budget.signatures.checked_sub(1).ok_or(ChainError::TooCostly)?;
        check_signature(certificate, issuer, depth - 1, self.verifier)?;
        check_certificate(issuer, depth, self.expectation)?;
        // Who trusts a self-signed certificate itself trusts no authority.
        if is_anchor && depth == 1 && issuer.der == certificate.der {
            return Ok(());
        }
        if !is_anchor {
            check_version(issuer, depth)?;
        }
        // RFC 5280 section 4.2.1.9: the leaf does not count, nor does who renewed its own key.
        let authorities = below.iter().skip(1).filter(|certificate| !certificate.is_self_issued()).count();
        check_authority(issuer, depth, is_anchor, authorities)
    }
}

/// Of the failures of several paths the one that says most is told: how the
/// path to a known authority fails rather than that another leads nowhere.
fn weight(error: &ChainError) -> (u8, usize) {
    match error {
        ChainError::UnknownIssuer { depth } => (0, *depth),
        ChainError::Signature { depth } => (1, *depth),
        _ => (2, 0),
    }
}

fn check_signature(
    certificate: &Certificate<'_>,
    issuer: &Certificate<'_>,
    depth: usize,
    verifier: &dyn Verifier,
) -> Result<(), ChainError> {
    // RFC 5280 section 4.1.1.2: the algorithm stands twice and must be the same.
    if certificate.signature_algorithm.whole != certificate.tbs.signature_algorithm.whole {
        return Err(ChainError::Signature { depth });
    }
    let algorithm = SignatureAlgorithm::read(&certificate.signature_algorithm);
    let algorithm = algorithm.map_err(|error| ChainError::Algorithm { depth, error })?;
    let key_error = |error| ChainError::Key { depth: depth + 1, error };
    let key = PublicKey::from_der(issuer.spki()).map_err(key_error)?;
    // Not every backend refuses short keys.
    key.check_size().map_err(key_error)?;
    let verified = verifier.verify(&key, algorithm, certificate.tbs_der, certificate.signature);
    verified.map_err(|_| ChainError::Signature { depth })
}

/// What must hold of every certificate of a path, whatever its place.
fn check_certificate(
    certificate: &Certificate<'_>,
    depth: usize,
    expectation: &Expectation<'_>,
) -> Result<(), ChainError> {
    check_time(certificate, depth, expectation.at)?;
    check_extensions(certificate, depth)?;
    let Some(usage) = expectation.usage else { return Ok(()) };
    let wanted = match usage {
        Usage::ClientAuth => oid::CLIENT_AUTH,
        Usage::ServerAuth => oid::SERVER_AUTH,
    };
    // An intermediate's extended key usage limits what is below it, as browsers hold it.
    let purposes = certificate.tbs.extension(oid::EXTENDED_KEY_USAGE).map(|extension| extension.extended_key_usage());
    match purposes {
        None => Ok(()),
        Some(Ok(purposes)) if purposes.contains(&wanted) => Ok(()),
        Some(_) => Err(ChainError::Usage { depth, usage }),
    }
}

fn check_version(certificate: &Certificate<'_>, depth: usize) -> Result<(), ChainError> {
    match certificate.version() {
        3 => Ok(()),
        version => Err(ChainError::Version { depth, version, expected: 3 }),
    }
}

fn check_time(certificate: &Certificate<'_>, depth: usize, at: Time) -> Result<(), ChainError> {
    let (not_before, not_after) = (certificate.not_before(), certificate.not_after());
    if at < not_before {
        return Err(ChainError::NotYetValid { depth, not_before, at });
    }
    if at > not_after {
        return Err(ChainError::Expired { depth, not_after, at });
    }
    Ok(())
}

/// Each once, those that decide something readable, and no critical one that
/// is not understood.
fn check_extensions(certificate: &Certificate<'_>, depth: usize) -> Result<(), ChainError> {
    const UNDERSTOOD: [&[u8]; 5] =
        [oid::BASIC_CONSTRAINTS, oid::EXTENDED_KEY_USAGE, oid::KEY_USAGE, oid::NAME_CONSTRAINTS, oid::SUBJECT_ALT_NAME];
    let extensions = &certificate.tbs.extensions;
    if let Some(id) = extension::repeated(extensions) {
        return Err(ChainError::DuplicateExtension { depth, extension: ObjectIdentifier::new(id) });
    }
    for extension in extensions {
        if extension.critical && !UNDERSTOOD.contains(&extension.id) {
            return Err(ChainError::UnknownCritical { depth, extension: ObjectIdentifier::new(extension.id) });
        }
        extension.check_content().map_err(|error| ChainError::Malformed { depth, error: error.into() })?;
    }
    Ok(())
}

fn basic_constraints(certificate: &Certificate<'_>, depth: usize) -> Result<BasicConstraints, ChainError> {
    let extension = certificate.tbs.extension(oid::BASIC_CONSTRAINTS);
    let constraints = extension.map(|extension| extension.basic_constraints()).transpose();
    constraints.map(Option::unwrap_or_default).map_err(|error| ChainError::Malformed { depth, error: error.into() })
}

/// May it sign certificates, with so many `authorities` between it and the leaf?
fn check_authority(
    certificate: &Certificate<'_>,
    depth: usize,
    is_anchor: bool,
    authorities: usize,
) -> Result<(), ChainError> {
    // A version 1 anchor has no extensions and is trusted by configuration.
    if is_anchor && certificate.version() == 1 {
        return Ok(());
    }
    let constraints = basic_constraints(certificate, depth)?;
    let usage = certificate.tbs.extension(oid::KEY_USAGE).map(|extension| extension.key_usage());
    let may_sign = usage.is_none_or(|usage| usage.is_ok_and(|usage| usage & KEY_CERT_SIGN != 0));
    // RFC 5280 section 4.1.2.6: an authority has a name.
    if !constraints.ca || !may_sign || certificate.tbs.subject == EMPTY_NAME {
        return Err(ChainError::NotAnAuthority { depth });
    }
    let authorities = u64::try_from(authorities).unwrap_or(u64::MAX);
    if constraints.path_length.is_some_and(|limit| authorities > limit) {
        return Err(ChainError::PathLength { depth });
    }
    Ok(())
}

fn check_name_constraints(path: &[&Certificate<'_>], budget: &mut usize) -> Result<(), ChainError> {
    for (authority, certificate) in path.iter().enumerate().skip(1) {
        let Some(extension) = certificate.tbs.extension(oid::NAME_CONSTRAINTS) else { continue };
        let malformed = |error| ChainError::Malformed { depth: authority, error: CertificateError::Der(error) };
        let constraints = extension.name_constraints().map_err(malformed)?;
        for (depth, below) in path[..authority].iter().enumerate() {
            // RFC 5280 section 4.2.1.10: self-issued intermediates are exempt.
            if depth > 0 && below.is_self_issued() {
                continue;
            }
            for name in names(below, depth)? {
                constraints.check(&name, budget).map_err(|objection| match objection {
                    Objection::Budget => ChainError::TooCostly,
                    Objection::Kind(kind) => ChainError::UnknownConstraint { depth, authority, kind },
                    Objection::Name => ChainError::NameConstraints { depth, authority },
                })?;
            }
        }
    }
    Ok(())
}

/// Every name that constraints may speak of.
fn names<'a>(certificate: &Certificate<'a>, depth: usize) -> Result<Vec<GeneralName<'a>>, ChainError> {
    let alt_name = certificate.tbs.extension(oid::SUBJECT_ALT_NAME).map(|extension| extension.general_names());
    let names = alt_name.transpose().map_err(|error| ChainError::Malformed { depth, error: error.into() })?;
    let mut names = names.unwrap_or_default();
    if certificate.tbs.subject != EMPTY_NAME {
        names.push(GeneralName::Directory(certificate.tbs.subject));
    }
    Ok(names)
}

fn check_host(leaf: &Certificate<'_>, expectation: &Expectation<'_>) -> Result<(), ChainError> {
    let Some(expected) = expectation.host else { return Ok(()) };
    let dns_names: Vec<_> = names(leaf, 0)?
        .iter()
        .filter_map(|name| match name {
            GeneralName::Dns(name) => Some(String::from_utf8_lossy(name).into_owned()),
            _ => None,
        })
        .collect();
    if dns_names.iter().any(|name| matches_host(name, expected)) {
        Ok(())
    } else {
        Err(ChainError::Host { expected: expected.clone(), found: dns_names })
    }
}

/// RFC 9525 section 6.3: a wildcard is the whole left-most label; and it is not
/// one of a whole top-level domain.
fn matches_host(pattern: &str, host: &DnsName) -> bool {
    match pattern.strip_prefix("*.") {
        Some(rest) if !rest.contains('.') => false,
        Some(rest) => host.as_str().split_once('.').is_some_and(|(_, parent)| parent.eq_ignore_ascii_case(rest)),
        None => pattern.eq_ignore_ascii_case(host.as_str()),
    }
}

#[cfg(all(test, feature = "rustcrypto"))]
mod tests {
    use rcgen::{BasicConstraints as Constraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    use rcgen::{PublicKeyData as _, SigningKey as _};

    use super::*;
    use crate::algorithm::SignatureAlgorithm;
    use crate::crypto::rustcrypto::RustCrypto;
    use crate::der::{self, Writer};
    use crate::name::Subject;

    const NOW: Time = Time::from_unix(1_795_354_200);
    const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

    struct Anchor {
        key: KeyPair,
        algorithm: SignatureAlgorithm,
        der: Vec<u8>,
    }

    impl Anchor {
        fn new(key: KeyPair, algorithm: SignatureAlgorithm, edit: impl FnOnce(&mut CertificateParams)) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, "Test CA");
            params.is_ca = IsCa::Ca(Constraints::Unconstrained);
            edit(&mut params);
            let der = params.self_signed(&key).expect("a certificate").der().to_vec();
            Self { key, algorithm, der }
        }

        fn p256(edit: impl FnOnce(&mut CertificateParams)) -> Self {
            Self::new(KeyPair::generate().expect("a key"), SignatureAlgorithm::EcdsaSha256, edit)
        }

        /// As `openssl x509 -req` writes it, with what `extra` appends.
        fn issue(&self, leaf: &KeyPair, extra: impl FnOnce(&mut Writer)) -> Vec<u8> {
            let anchor = Certificate::from_der(&self.der).expect("a certificate");
            let mut writer = Writer::default();
            writer.nested(der::SEQUENCE, |tbs| {
                tbs.element(der::INTEGER, &[0x42; 20]);
                tbs.raw(self.algorithm.identifier_der());
                tbs.raw(anchor.subject_der());
                tbs.nested(der::SEQUENCE, |validity| {
                    NOW.minus(DAY).write(validity);
                    NOW.plus(DAY).write(validity);
                });
                Subject::with_organization("agent:laptop", "Adit").expect("a subject").write(tbs);
                tbs.raw(&leaf.subject_public_key_info());
                extra(tbs);
            });
            self.sign(&writer.finish(), self.algorithm)
        }

        fn sign(&self, tbs: &[u8], outer: SignatureAlgorithm) -> Vec<u8> {
            let mut writer = Writer::default();
            writer.nested(der::SEQUENCE, |certificate| {
                certificate.raw(tbs);
                certificate.raw(outer.identifier_der());
                certificate.bit_string(&self.key.sign(tbs).expect("the key signs"));
            });
            writer.finish()
        }

        fn verify(&self, leaf: &[u8], at: Time) -> Result<(), ChainError> {
            verify_version_1_leaf(leaf, &self.der, at, &RustCrypto)
        }
    }

    fn ec() -> KeyPair {
        KeyPair::generate().expect("a key")
    }

    fn rsa() -> KeyPair {
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key")
    }

    #[test]
    fn leafs_of_version_1_verify_below_their_anchor() {
        let anchors = [Anchor::p256(|_| ()), Anchor::new(rsa(), SignatureAlgorithm::RsaPkcs1Sha256, |_| ())];
        for anchor in &anchors {
            for key in [ec(), rsa()] {
                let leaf = anchor.issue(&key, |_| ());
                let certificate = Certificate::from_der(&leaf).expect("a certificate");
                assert_eq!(certificate.version(), 1);
                assert_eq!(certificate.common_names(), Ok(vec!["agent:laptop".to_owned()]));
                assert_eq!(anchor.verify(&leaf, NOW), Ok(()));
                let late = NOW.plus(2 * DAY);
                assert!(matches!(anchor.verify(&leaf, late), Err(ChainError::Expired { depth: 0, .. })));
                let early = NOW.minus(2 * DAY);
                assert!(matches!(anchor.verify(&leaf, early), Err(ChainError::NotYetValid { depth: 0, .. })));
                // Every octet counts, and none of them ends in a panic.
                for at in 0..leaf.len() {
                    let mut changed = leaf.clone();
                    changed[at] ^= 1;
                    assert!(anchor.verify(&changed, NOW).is_err(), "octet {at}");
                }
            }
        }
        let leaf = anchors[0].issue(&ec(), |_| ());
        assert_eq!(anchors[1].verify(&leaf, NOW), Err(ChainError::Signature { depth: 0 }));
    }

    #[test]
    fn version_3_goes_another_way() {
        let anchor = Anchor::p256(|_| ());
        let expected = Err(ChainError::Version { depth: 0, version: 3, expected: 1 });
        assert_eq!(anchor.verify(&anchor.der, NOW), expected);
        // A version 1 certificate cannot have extensions, and says nothing by them.
        let leaf = anchor.issue(&ec(), |tbs| {
            tbs.nested(der::context(3), |explicit| explicit.element(der::SEQUENCE, &[]));
        });
        assert!(matches!(anchor.verify(&leaf, NOW), Err(ChainError::Malformed { depth: 0, .. })));
    }

    #[test]
    fn only_an_authority_is_an_anchor() {
        let not_an_authority = Err(ChainError::NotAnAuthority { depth: 1 });
        let explicit = Anchor::p256(|params| params.is_ca = IsCa::ExplicitNoCa);
        assert_eq!(explicit.verify(&explicit.issue(&ec(), |_| ()), NOW), not_an_authority);
        let silent = Anchor::p256(|params| params.is_ca = IsCa::NoCa);
        assert_eq!(silent.verify(&silent.issue(&ec(), |_| ()), NOW), not_an_authority);
        let signs_lists = Anchor::p256(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
        assert_eq!(signs_lists.verify(&signs_lists.issue(&ec(), |_| ()), NOW), not_an_authority);
        let signs = Anchor::p256(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
        assert_eq!(signs.verify(&signs.issue(&ec(), |_| ()), NOW), Ok(()));
        let servers = Anchor::p256(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        let usage = Err(ChainError::Usage { depth: 1, usage: Usage::ClientAuth });
        assert_eq!(servers.verify(&servers.issue(&ec(), |_| ()), NOW), usage);
    }

    #[test]
    fn a_version_1_leaf_signs_nothing() {
        let anchor = Anchor::p256(|_| ());
        let key = ec();
        let leaf = anchor.issue(&key, |_| ());
        let below = Anchor { key, algorithm: SignatureAlgorithm::EcdsaSha256, der: leaf };
        let refused = below.verify(&below.issue(&ec(), |_| ()), NOW);
        assert_eq!(refused, Err(ChainError::NotAnAuthority { depth: 1 }));
    }

    #[test]
    fn names_algorithms_and_keys_must_agree() {
        let anchor = Anchor::p256(|_| ());
        let other = Anchor::p256(|params| {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Another");
        });
        let leaf = anchor.issue(&ec(), |_| ());
        assert_eq!(other.verify(&leaf, NOW), Err(ChainError::IssuerMismatch { depth: 0 }));
        let tbs = Certificate::from_der(&leaf).expect("a certificate").tbs_der.to_vec();
        let leaf = anchor.sign(&tbs, SignatureAlgorithm::EcdsaSha384);
        assert_eq!(anchor.verify(&leaf, NOW), Err(ChainError::Signature { depth: 0 }));
        // A key that nobody can use: an odd algorithm in place of id-ecPublicKey.
        let mut leaf = anchor.issue(&ec(), |_| ());
        let at = leaf.windows(7).rposition(|window| window == oid::EC_PUBLIC_KEY).expect("the key's algorithm");
        leaf[at + 6] = 0x7f;
        assert!(matches!(anchor.verify(&leaf, NOW), Err(ChainError::Key { depth: 0, .. })));
    }
}
