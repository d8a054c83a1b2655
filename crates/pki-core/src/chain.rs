//! Chain verification: from a leaf through its intermediates to an anchor
//! (RFC 5280 section 6), for chains that come in order.
//!
//! Not checked: revocation, certificate policies, transparency. A chain in
//! the wrong order is refused, not sorted.

use crate::certificate::{Certificate, CertificateError};
use crate::crypto::Verifier;
use crate::dns_name::DnsName;
use crate::extension::{BasicConstraints, GeneralName, KEY_CERT_SIGN, NameConstraints, is_within};
use crate::issue::Usage;
use crate::key::{KeyError, PublicKey};
use crate::oid::{self, ObjectIdentifier};
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

/// Which check failed. `depth` counts from the leaf, which is 0.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
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
    #[error("certificate {depth} has a name that the authority at {authority} may not sign")]
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
    /// More certificates than are walked.
    #[error("the chain has {length} certificates, more than the {limit} that are walked")]
    TooLong {
        /// How many were given.
        length: usize,
        /// How many are walked.
        limit: usize,
    },
    /// A critical extension that is not understood here.
    #[error("certificate {depth} has a critical extension {extension} that is not understood")]
    UnknownCritical {
        /// Which certificate.
        depth: usize,
        /// The extension.
        extension: ObjectIdentifier,
    },
    /// No anchor has the last certificate's issuer as its subject.
    #[error("no trust anchor issued certificate {depth}: the issuer's certificate is missing or not trusted")]
    UnknownIssuer {
        /// The last certificate.
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

/// A chain is a leaf and a handful of intermediates; whoever sends more wants
/// our time for signature checks.
const MAX_CHAIN: usize = 8;

/// Verifies a chain, leaf first, up to one of the anchors.
///
/// The anchor itself may be left out or stand last. Of an anchor, name, key
/// and nameConstraints count, and its validity.
///
/// # Errors
///
/// The first [`ChainError`] from the leaf upwards.
pub fn verify_chain(
    chain: &[&[u8]],
    anchors: &[&[u8]],
    expectation: &Expectation<'_>,
    verifier: &dyn Verifier,
) -> Result<(), ChainError> {
    if chain.len() > MAX_CHAIN {
        return Err(ChainError::TooLong { length: chain.len(), limit: MAX_CHAIN });
    }
    let mut path = Vec::with_capacity(chain.len() + 1);
    for (depth, der) in chain.iter().enumerate() {
        path.push(Certificate::from_der(der).map_err(|error| ChainError::Malformed { depth, error })?);
    }
    let Some(last) = path.last() else { return Err(ChainError::Empty) };
    if !anchors.contains(&last.der) {
        let depth = path.len() - 1;
        path.push(find_anchor(last, depth, anchors, verifier)?);
    }
    for (depth, certificate) in path.iter().enumerate() {
        check_time(certificate, depth, expectation.at)?;
        check_critical(certificate, depth)?;
        if depth > 0 {
            check_authority(certificate, depth, path.len() - 1)?;
        }
    }
    for (depth, pair) in path.windows(2).enumerate() {
        if pair[0].tbs.issuer != pair[1].tbs.subject {
            return Err(ChainError::IssuerMismatch { depth });
        }
        if !is_signed_by(&pair[0], &pair[1], verifier) {
            return Err(ChainError::Signature { depth });
        }
    }
    check_name_constraints(&path)?;
    check_leaf(&path, expectation)
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
    for (depth, certificate) in path.iter().enumerate() {
        check_time(certificate, depth, at)?;
        PublicKey::from_der(certificate.spki()).map_err(|error| ChainError::Key { depth, error })?;
    }
    check_critical(anchor, 1)?;
    // Unlike in `verify_chain`, an anchor of version 1 is not taken: it cannot say that it is an authority.
    if anchor.version() == 1 {
        return Err(ChainError::NotAnAuthority { depth: 1 });
    }
    check_authority(anchor, 1, 1)?;
    if !is_signed_by(leaf, anchor, verifier) {
        return Err(ChainError::Signature { depth: 0 });
    }
    check_name_constraints(&path)?;
    check_leaf(&path, &Expectation { host: None, usage: Some(Usage::ClientAuth), at })
}

fn find_anchor<'a>(
    last: &Certificate<'_>,
    depth: usize,
    anchors: &[&'a [u8]],
    verifier: &dyn Verifier,
) -> Result<Certificate<'a>, ChainError> {
    let named = anchors
        .iter()
        .filter_map(|anchor| Certificate::from_der(anchor).ok())
        .filter(|anchor| anchor.tbs.subject == last.tbs.issuer);
    let mut found = ChainError::UnknownIssuer { depth };
    for anchor in named {
        if is_signed_by(last, &anchor, verifier) {
            return Ok(anchor);
        }
        found = ChainError::Signature { depth };
    }
    Err(found)
}

fn is_signed_by(certificate: &Certificate<'_>, issuer: &Certificate<'_>, verifier: &dyn Verifier) -> bool {
    // RFC 5280 section 4.1.1.2: the algorithm stands twice and must be the same.
    if certificate.signature_algorithm.whole != certificate.tbs.signature_algorithm.whole {
        return false;
    }
    let (Some(algorithm), Ok(key)) = (certificate.signature_algorithm(), PublicKey::from_der(issuer.spki())) else {
        return false;
    };
    verifier.verify(&key, algorithm, certificate.tbs_der, certificate.signature).is_ok()
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

fn check_critical(certificate: &Certificate<'_>, depth: usize) -> Result<(), ChainError> {
    const UNDERSTOOD: [&[u8]; 5] =
        [oid::BASIC_CONSTRAINTS, oid::EXTENDED_KEY_USAGE, oid::KEY_USAGE, oid::NAME_CONSTRAINTS, oid::SUBJECT_ALT_NAME];
    let unknown =
        certificate.tbs.extensions.iter().find(|extension| extension.critical && !UNDERSTOOD.contains(&extension.id));
    match unknown {
        Some(extension) => Err(ChainError::UnknownCritical { depth, extension: ObjectIdentifier::new(extension.id) }),
        None => Ok(()),
    }
}

fn check_authority(certificate: &Certificate<'_>, depth: usize, anchor: usize) -> Result<(), ChainError> {
    let constraints = certificate
        .tbs
        .extension(oid::BASIC_CONSTRAINTS)
        .map(|extension| extension.basic_constraints().unwrap_or_default());
    // A version 1 anchor has no extensions and is trusted by configuration.
    let constraints = match constraints {
        None if depth == anchor && certificate.tbs.version == 1 => BasicConstraints { ca: true, path_length: None },
        constraints => constraints.unwrap_or_default(),
    };
    let usage = certificate.tbs.extension(oid::KEY_USAGE).map(|extension| extension.key_usage());
    let may_sign = usage.is_none_or(|usage| usage.is_ok_and(|usage| usage & KEY_CERT_SIGN != 0));
    if !constraints.ca || !may_sign {
        return Err(ChainError::NotAnAuthority { depth });
    }
    // The leaf does not count as an authority below.
    let below = u64::try_from(depth - 1).unwrap_or(u64::MAX);
    if constraints.path_length.is_some_and(|limit| below > limit) {
        return Err(ChainError::PathLength { depth });
    }
    Ok(())
}

fn check_name_constraints(path: &[Certificate<'_>]) -> Result<(), ChainError> {
    for (authority, certificate) in path.iter().enumerate().skip(1) {
        let Some(extension) = certificate.tbs.extension(oid::NAME_CONSTRAINTS) else { continue };
        let constraints = extension.name_constraints().unwrap_or_else(|_| NameConstraints {
            // Unreadable constraints permit nothing.
            permitted: vec![GeneralName::Other(0, &[])],
            excluded: vec![GeneralName::Dns(&[])],
        });
        for (depth, below) in path[..authority].iter().enumerate() {
            // RFC 5280 section 4.2.1.10: self-issued intermediates are exempt.
            if depth > 0 && below.is_self_issued() {
                continue;
            }
            if !names(below).iter().all(|name| is_permitted(name, &constraints)) {
                return Err(ChainError::NameConstraints { depth, authority });
            }
        }
    }
    Ok(())
}

/// Every name that constraints may speak of.
fn names<'a>(certificate: &Certificate<'a>) -> Vec<GeneralName<'a>> {
    let alt_name = certificate.tbs.extension(oid::SUBJECT_ALT_NAME);
    let mut names = match alt_name.map(|extension| extension.general_names()) {
        None => Vec::new(),
        Some(Ok(names)) => names,
        Some(Err(_)) => vec![GeneralName::Other(0, &[])],
    };
    const EMPTY_NAME: &[u8] = &[0x30, 0x00];
    if certificate.tbs.subject != EMPTY_NAME {
        names.push(GeneralName::Directory(certificate.tbs.subject));
    }
    names
}

fn is_permitted(name: &GeneralName<'_>, constraints: &NameConstraints<'_>) -> bool {
    let of_kind = |base: &&GeneralName<'_>| base.kind() == name.kind();
    let mut permitted = constraints.permitted.iter().filter(of_kind).peekable();
    let is_unlimited = permitted.peek().is_none();
    let is_inside = is_unlimited || permitted.any(|base| is_within(name, base).unwrap_or(false));
    // A kind of name that we cannot compare counts as excluded.
    is_inside && !constraints.excluded.iter().filter(of_kind).any(|base| is_within(name, base).unwrap_or(true))
}

fn check_leaf(path: &[Certificate<'_>], expectation: &Expectation<'_>) -> Result<(), ChainError> {
    if let Some(usage) = expectation.usage {
        let wanted = match usage {
            Usage::ClientAuth => oid::CLIENT_AUTH,
            Usage::ServerAuth => oid::SERVER_AUTH,
        };
        // An intermediate's extended key usage limits what is below it, as browsers hold it.
        for (depth, certificate) in path.iter().enumerate() {
            let purposes = certificate.tbs.extension(oid::EXTENDED_KEY_USAGE).map(|ext| ext.extended_key_usage());
            let allows = purposes.is_none_or(|purposes| purposes.is_ok_and(|purposes| purposes.contains(&wanted)));
            if !allows {
                return Err(ChainError::Usage { depth, usage });
            }
        }
    }
    let (Some(expected), Some(leaf)) = (expectation.host, path.first()) else { return Ok(()) };
    let dns_names: Vec<_> = names(leaf)
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

/// RFC 9525 section 6.3: a wildcard is the whole left-most label.
fn matches_host(pattern: &str, host: &DnsName) -> bool {
    match pattern.strip_prefix("*.") {
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
