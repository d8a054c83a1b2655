//! Paths of a chain that is more than a line: cross-signed and renewed
//! authorities, several anchors of one name, and chains that only cost time.

use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::crypto::{Verifier, VerifyError};
use pki_core::{ChainError, DnsName, Expectation, PublicKey, SignatureAlgorithm, Time, Usage, verify_chain};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    NameConstraints, date_time_ymd,
};

const NOW: Time = Time::from_unix(1_795_354_200);
const HOST: &str = "a.example.com";

/// A name with a key; `certificate` may be asked as often as it was renewed.
struct Party {
    key: KeyPair,
    params: CertificateParams,
}

impl Party {
    fn authority(name: &str, path_length: Option<u8>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
        Self { key: KeyPair::generate().expect("a key"), params }
    }

    fn leaf(names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "leaf");
        Self { key: KeyPair::generate().expect("a key"), params }
    }

    fn with(mut self, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        edit(&mut self.params);
        self
    }

    fn self_signed(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).expect("a certificate").der().to_vec()
    }

    fn signed_by(&self, issuer: &Self) -> Vec<u8> {
        let issuer = Issuer::from_params(&issuer.params, &issuer.key);
        self.params.signed_by(&self.key, &issuer).expect("a certificate").der().to_vec()
    }
}

fn verify(chain: &[&[u8]], anchors: &[&[u8]]) -> Result<(), ChainError> {
    verify_for(HOST, chain, anchors)
}

fn verify_for(host: &str, chain: &[&[u8]], anchors: &[&[u8]]) -> Result<(), ChainError> {
    let host: DnsName = host.parse().expect("a host");
    let expectation = Expectation { host: Some(&host), usage: Some(Usage::ServerAuth), at: NOW };
    verify_chain(chain, anchors, &expectation, &RustCrypto)
}

/// openssl/openssl#16861 and many more.
#[test]
fn a_cross_signed_copy_of_the_root_at_the_end_is_passed_over() {
    let (root, other) = (Party::authority("Root", Some(1)), Party::authority("Other", None));
    let (issuing, leaf) = (Party::authority("Issuing", Some(0)), Party::leaf(&[HOST]));
    let (leaf, issuing) = (leaf.signed_by(&issuing), issuing.signed_by(&root));
    let cross = root.signed_by(&other);
    let chain = [leaf.as_slice(), &issuing, &cross];
    assert_eq!(verify(&chain, &[&root.self_signed()]), Ok(()));
    assert_eq!(verify(&chain, &[&other.self_signed()]), Ok(()));
    assert_eq!(
        verify(&chain, &[&Party::authority("Else", None).self_signed()]),
        Err(ChainError::UnknownIssuer { depth: 2 })
    );
}

/// chris2511/xca#82 and #719: self-issued certificates do not count in pathLenConstraint.
#[test]
fn a_renewed_root_takes_its_old_chains() {
    let old = Party::authority("Root", Some(1)).with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let key = KeyPair::try_from(old.key.serialize_der()).expect("a key");
    let new = Party { key, params: old.params.clone() }.with(|params| params.not_after = date_time_ymd(2090, 1, 1));
    let (issuing, leaf) = (Party::authority("Issuing", Some(0)), Party::leaf(&[HOST]));
    let (leaf, issuing) = (leaf.signed_by(&issuing), issuing.signed_by(&old));
    let (old_root, new_root) = (old.self_signed(), new.self_signed());
    let chain = [leaf.as_slice(), &issuing, &old_root];
    assert_eq!(verify(&chain, &[&new_root]), Ok(()));
    // Of two anchors of one name the first has expired.
    assert_eq!(verify(&chain, &[&old_root, &new_root]), Ok(()));
    assert!(matches!(verify(&chain, &[&old_root]), Err(ChainError::Expired { depth: 2, .. })));
    // Rolled over to another key, with the old signing the new: one more in the path.
    let next = Party::authority("Root", Some(1));
    let bridge = next.signed_by(&new);
    let issuing = Party::authority("Issuing", Some(0));
    let (leaf, issuing) = (Party::leaf(&[HOST]).signed_by(&issuing), issuing.signed_by(&next));
    assert_eq!(verify(&[&leaf, &issuing, &bridge], &[&new_root]), Ok(()));
    // One that is not self-issued counts.
    let middle = Party::authority("Middle", None);
    let issuing = Party::authority("Issuing", None);
    let leaf = Party::leaf(&[HOST]).signed_by(&issuing);
    let (issuing, middle) = (issuing.signed_by(&middle), middle.signed_by(&new));
    assert_eq!(verify(&[&leaf, &issuing, &middle], &[&new_root]), Err(ChainError::PathLength { depth: 3 }));
}

/// CVE-2025-61727, RUSTSEC-2026-0099.
#[test]
fn a_wildcard_is_all_of_its_names_to_constraints() {
    let check = |permitted: &[&str], excluded: &[&str], name: &str, host: &str| {
        let subtrees = |names: &[&str]| names.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
        let constraints =
            NameConstraints { permitted_subtrees: subtrees(permitted), excluded_subtrees: subtrees(excluded) };
        let root = Party::authority("Root", None).with(|params| params.name_constraints = Some(constraints));
        verify_for(host, &[&Party::leaf(&[name]).signed_by(&root)], &[&root.self_signed()])
    };
    let refused = Err(ChainError::NameConstraints { depth: 0, authority: 1 });
    assert_eq!(check(&[], &["bad.example.com"], "*.example.com", "bad.example.com"), refused);
    assert_eq!(check(&["a.example.com"], &[], "*.example.com", HOST), refused);
    assert_eq!(check(&[".example.com"], &[], "example.com", "example.com"), refused);
    assert_eq!(check(&[".example.com"], &[], HOST, HOST), Ok(()));
    assert_eq!(check(&["example.com"], &["b.example.com"], HOST, HOST), Ok(()));
    // Unreadable constraints are an error, and permit nothing.
    assert!(matches!(check(&["*.example.com"], &[], HOST, HOST), Err(ChainError::Malformed { depth: 1, .. })));
}

#[test]
fn extensions_stand_once() {
    let root = Party::authority("Root", None);
    let twice = || CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![0x05, 0x00]);
    let leaf = Party::leaf(&[HOST]).with(|params| params.custom_extensions = vec![twice(), twice()]);
    let refused = verify(&[&leaf.signed_by(&root)], &[&root.self_signed()]);
    let Err(ChainError::DuplicateExtension { depth: 0, extension }) = refused else { panic!("{refused:?}") };
    assert_eq!(extension.to_string(), "1.2.3.4");
}

/// The signature may be fine; that nobody here can say so is told as what it is.
#[test]
fn algorithms_and_keys_that_are_not_accepted_are_named() {
    let root = Party::authority("Root", None);
    let good = Party::leaf(&[HOST]).signed_by(&root);
    let replaced = |from: &[u8], to: &[u8]| {
        let mut der = good.clone();
        while let Some(at) = der.windows(from.len()).position(|window| window == from) {
            der[at..at + to.len()].copy_from_slice(to);
        }
        verify(&[&der], &[&root.self_signed()])
    };
    // ecdsa-with-SHA256 becomes an arc that nobody knows.
    let unknown = replaced(b"\x2a\x86\x48\xce\x3d\x04\x03\x02", b"\x2a\x86\x48\xce\x3d\x04\x03\x7f");
    let text = unknown.expect_err("an unknown algorithm").to_string();
    assert_eq!(text, "certificate 0: signature algorithm 1.2.840.10045.4.3.127 is not accepted");
}

/// Believes every signature, and so every path.
struct Gullible;

impl Verifier for Gullible {
    fn verify(&self, _: &PublicKey<'_>, _: SignatureAlgorithm, _: &[u8], _: &[u8]) -> Result<(), VerifyError> {
        Ok(())
    }
}

/// As x509-limbo's `pathological` cases: authorities of one name that all
/// could have signed each other.
#[test]
fn a_knot_of_authorities_costs_no_more_than_the_budget() {
    let knot: Vec<_> = (0..40).map(|_| Party::authority("Knot", None)).collect();
    let leaf = Party::leaf(&[HOST]).signed_by(&knot[0]);
    let knot: Vec<_> = knot.iter().map(Party::self_signed).collect();
    let chain: Vec<_> = std::iter::once(&leaf).chain(&knot).map(Vec::as_slice).collect();
    let expectation = Expectation { host: None, usage: None, at: NOW };
    let anchor = Party::authority("Anchor", None).self_signed();
    assert_eq!(verify_chain(&chain, &[&anchor], &expectation, &Gullible), Err(ChainError::TooCostly));
    // More than a house full is not even read.
    let many = vec![leaf.as_slice(); 65];
    let refused = verify_chain(&many, &[&anchor], &expectation, &Gullible);
    assert_eq!(refused, Err(ChainError::TooLong { length: 65, limit: 64 }));
}

/// As x509-limbo's `nc-dos-2`.
#[test]
fn names_times_constraints_cost_no_more_than_the_budget() {
    let root = Party::authority("Root", None).with(|params| {
        let excluded = (0..1_000).map(|number| GeneralSubtree::DnsName(format!("x{number}.example.org"))).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees: vec![], excluded_subtrees: excluded });
    });
    let names: Vec<_> = (0..1_000).map(|number| format!("n{number}.example.com")).collect();
    let leaf = Party::leaf(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let refused = verify(&[&leaf.signed_by(&root)], &[&root.self_signed()]);
    assert_eq!(refused, Err(ChainError::TooCostly));
}

/// `openssl req -x509` for one server, trusted by itself.
#[test]
fn a_self_signed_leaf_may_be_its_own_anchor() {
    let leaf = Party::leaf(&[HOST]).self_signed();
    assert_eq!(verify(&[&leaf], &[&leaf]), Ok(()));
    assert_eq!(verify(&[&leaf], &[]), Err(ChainError::UnknownIssuer { depth: 0 }));
}

#[test]
fn wildcards_of_a_whole_top_level_domain_match_nothing() {
    let root = Party::authority("Root", None);
    let refused = verify_for("example.com", &[&Party::leaf(&["*.com"]).signed_by(&root)], &[&root.self_signed()]);
    assert!(matches!(refused, Err(ChainError::Host { .. })));
}

#[test]
fn a_leaf_in_an_authority_s_place_is_refused() {
    let root = Party::authority("Root", None);
    let middle = Party::leaf(&[HOST]);
    let leaf = Party::leaf(&[HOST]).with(|params| params.distinguished_name.push(DnType::CommonName, "below"));
    let (leaf, middle) = (leaf.signed_by(&middle), middle.signed_by(&root));
    assert_eq!(verify(&[&leaf, &middle], &[&root.self_signed()]), Err(ChainError::NotAnAuthority { depth: 1 }));
    assert_eq!(verify(&[&leaf], &[&middle]), Err(ChainError::NotAnAuthority { depth: 1 }));
}
