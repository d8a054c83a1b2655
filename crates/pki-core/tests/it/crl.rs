//! Revocation lists: what is written reads back, and what is wrong is refused.
//! `ADIT_JUDGED_CERTS` gets a directory `crl` with lists, for OpenSSL.

use std::collections::BTreeSet;
use std::time::Duration;

use pki_core::crypto::Signer;
use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::{
    Crl, CrlError, Issuer, RevocationList, RevokedCertificate, Time, certificate_to_pem, inspect_crl,
    revocation_lists_from_file,
};
use proptest::prelude::*;

use crate::authority::{Authority, NOW, key, serial};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

fn list(authority: &Authority, revoked: &[RevokedCertificate<'_>], number: u64) -> Crl {
    let to_be_signed = authority.issuer.revocation_list(revoked, number, NOW, NOW.plus(WEEK)).expect("a list");
    to_be_signed.sign(authority.signer.as_ref()).expect("the key signs")
}

fn revoked(serial: &[u8], seconds: i64) -> RevokedCertificate<'_> {
    RevokedCertificate { serial, revoked_at: Time::from_unix(seconds) }
}

#[test]
fn what_is_written_reads_back() {
    let authority = Authority::new();
    let entries =
        [revoked(&[0x80, 1], 50), revoked(&[7], 2_000_000_000), revoked(&[0, 0, 7], 1_700_000_000), revoked(&[0], 1)];
    let crl = list(&authority, &entries, 0x80);
    let read = RevocationList::from_der(crl.der()).expect("a list");
    assert_eq!(read.verify(authority.issuer.certificate(), &RustCrypto), Ok(()));
    assert_eq!((read.version(), read.number(), read.this_update()), (2, Some(0x80), NOW));
    assert_eq!(read.next_update(), Some(NOW.plus(WEEK)));
    let found: Vec<_> = read.entries().map(|entry| (entry.serial().to_vec(), entry.revoked_at().unix())).collect();
    // Each once, in the first place and with the earlier date of two.
    assert_eq!(found, [(vec![0x80, 1], 50), (vec![7], 1_700_000_000), (vec![0], 1)]);
    assert!(read.is_revoked(&[0, 0, 0x80, 1]) && read.is_revoked(&[7]) && read.is_revoked(&[0]));
    assert!(!read.is_revoked(&[8]) && !read.is_revoked(&[0x80]));
    let pem = crl.to_pem();
    assert!(pem.starts_with("-----BEGIN X509 CRL-----\n") && pem.ends_with("-----END X509 CRL-----\n"));
    assert_eq!(revocation_lists_from_file(pem.as_bytes()), Ok(vec![crl.der().to_vec()]));
    let two = format!("{pem}{}{pem}", certificate_to_pem(b"another block"));
    assert_eq!(revocation_lists_from_file(two.as_bytes()).map(|lists| lists.len()), Ok(2));
    assert_eq!(revocation_lists_from_file(crl.der()), Ok(vec![crl.der().to_vec()]));
    let summary = inspect_crl(crl.der()).expect("a list");
    assert_eq!((summary.revoked_count, summary.number.as_deref()), (3, Some("128")));
    assert_eq!(summary.revoked[0].serial, "8001");
    assert_eq!(summary.issuer, "O=Adit Tests,CN=Test Issuing");
    assert!(summary.authority_key_identifier.is_some());
}

#[test]
fn an_empty_list_has_no_entries_field() {
    let authority = Authority::new();
    let crl = list(&authority, &[], 1);
    let read = RevocationList::from_der(crl.der()).expect("a list");
    assert_eq!(read.verify(authority.issuer.certificate(), &RustCrypto), Ok(()));
    assert_eq!(read.entries().len(), 0);
    assert!(!read.is_revoked(&[1]));
}

#[test]
fn lists_that_mean_nothing_are_not_made() {
    let authority = Authority::new();
    let make = |entries: &[RevokedCertificate<'_>], next_update| {
        authority.issuer.revocation_list(entries, 1, NOW, next_update).err()
    };
    let next_update = Some(CrlError::NextUpdate { this_update: NOW, next_update: NOW });
    assert_eq!(make(&[], NOW), next_update);
    assert_eq!(make(&[revoked(&[], 1)], NOW.plus(WEEK)), Some(CrlError::Serial));
}

#[test]
fn the_key_usage_decides_who_signs_lists() {
    use rcgen::KeyUsagePurpose::{CrlSign, KeyCertSign};

    for (usages, allowed) in [(vec![], true), (vec![KeyCertSign], false), (vec![KeyCertSign, CrlSign], true)] {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = usages;
        let certificate = params.self_signed(&pair).expect("a certificate");
        let key = pki_core::crypto::rustcrypto::PrivateKey::from_pkcs8_der(pair.serialized_der()).expect("PKCS #8");
        let issuer = Issuer::new(certificate.der(), &key).expect("an authority");
        let made = issuer.revocation_list(&[revoked(&[5], 1)], 1, NOW, NOW.plus(WEEK));
        if allowed {
            let crl = made.expect("a list").sign(&key).expect("the key signs");
            let read = RevocationList::from_der(crl.der()).expect("a list");
            assert_eq!(read.verify(certificate.der(), &RustCrypto), Ok(()));
        } else {
            assert_eq!(made.err(), Some(CrlError::NotAllowed));
        }
    }
}

#[test]
fn a_list_is_believed_only_with_its_issuers_signature() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let to_be_signed = |issuer: &Issuer| issuer.revocation_list(&[revoked(&[5], 1)], 1, NOW, NOW.plus(WEEK));
    let verify = |crl: &Crl, certificate: &[u8]| {
        RevocationList::from_der(crl.der()).expect("a list").verify(certificate, &RustCrypto)
    };
    let crl = to_be_signed(&authority.issuer).expect("a list").sign(authority.signer.as_ref()).expect("signed");
    assert_eq!(verify(&crl, authority.issuer.certificate()), Ok(()));
    // Same name, other key; other name; another key's signature.
    assert_eq!(verify(&crl, stranger.issuer.certificate()), Err(CrlError::Signature));
    assert_eq!(verify(&crl, &authority.root), Err(CrlError::IssuerMismatch));
    assert!(matches!(verify(&crl, b"no certificate"), Err(CrlError::Issuer(_))));
    let other = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let forged = to_be_signed(&authority.issuer).expect("a list");
    let signature = other.sign(forged.as_bytes()).expect("signed");
    assert_eq!(verify(&forged.finish(&signature), authority.issuer.certificate()), Err(CrlError::Signature));
}

#[test]
fn critical_extensions_of_list_and_entry_are_not_overlooked() {
    // A list with a reason for each entry, by another writer.
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&pair).expect("a certificate");
    let issuer = rcgen::Issuer::from_params(&params, &pair);
    let make = |distribution_point: Option<rcgen::CrlIssuingDistributionPoint>| {
        let entry = rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from(0xbeef_u64),
            revocation_time: rcgen::date_time_ymd(2026, 1, 2),
            reason_code: Some(rcgen::RevocationReason::Superseded),
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2026, 1, 3),
            next_update: rcgen::date_time_ymd(2060, 1, 3),
            crl_number: rcgen::SerialNumber::from_slice(&[1; 20]),
            issuing_distribution_point: distribution_point,
            revoked_certs: vec![entry],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).expect("a list").der().to_vec()
    };
    let plain = make(None);
    let read = RevocationList::from_der(&plain).expect("a list");
    assert_eq!(read.verify(certificate.der(), &RustCrypto), Ok(()));
    assert_eq!(read.entries().next().and_then(|entry| entry.reason()), Some("superseded"));
    assert_eq!(read.number(), None, "160 bits");
    assert_eq!(inspect_crl(&plain).expect("a list").number, Some(format!("0x{}", "01".repeat(20))));
    let point = rcgen::CrlIssuingDistributionPoint {
        distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://pki.example/crl".to_owned()] },
        scope: None,
    };
    let partial = make(Some(point));
    let refused = RevocationList::from_der(&partial).expect("a list").verify(certificate.der(), &RustCrypto);
    assert!(matches!(&refused, Err(CrlError::UnknownCritical(id)) if id.to_string() == "2.5.29.28"), "{refused:?}");
}

/// Believes every signature, so that lists can be changed by hand.
struct Gullible;

impl pki_core::crypto::Verifier for Gullible {
    fn verify(
        &self,
        _: &pki_core::PublicKey<'_>,
        _: pki_core::SignatureAlgorithm,
        _: &[u8],
        _: &[u8],
    ) -> Result<(), pki_core::crypto::VerifyError> {
        Ok(())
    }
}

#[test]
fn a_list_without_a_number_or_with_an_extension_twice_is_refused() {
    let authority = Authority::new();
    let crl = list(&authority, &[revoked(&[5], 1)], 7);
    let with_number_as = |id: &[u8; 3]| {
        let mut der = crl.der().to_vec();
        let at = der.windows(3).rposition(|window| window == b"\x55\x1d\x14").expect("the number");
        der[at..at + 3].copy_from_slice(id);
        let list = RevocationList::from_der(&der).expect("a list");
        list.verify(authority.issuer.certificate(), &Gullible)
    };
    assert_eq!(with_number_as(b"\x55\x1d\x14"), Ok(()));
    assert_eq!(with_number_as(b"\x55\x1d\x7f"), Err(CrlError::Number));
    assert!(matches!(with_number_as(b"\x55\x1d\x23"), Err(CrlError::DuplicateExtension(_))));
}

#[test]
fn lists_beyond_sixteen_mebibytes_read_back() {
    let authority = Authority::new();
    let serials: Vec<[u8; 20]> = (0..500_000_u32)
        .map(|number| {
            let mut serial = [0x55; 20];
            serial[16..].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
            serial
        })
        .collect();
    let entries: Vec<_> = serials.iter().map(|serial| revoked(serial, 1_795_000_000)).collect();
    let crl = list(&authority, &entries, 1);
    assert!(crl.der().len() > 1 << 24);
    let read = RevocationList::from_der(crl.der()).expect("a list");
    assert_eq!(read.entries().len(), serials.len());
    assert!(read.is_revoked(&serials[77]));
    assert_eq!(inspect_crl(crl.der()).expect("a list").revoked.len(), 1000);
}

#[test]
fn sizes_are_bounded_before_anything_is_read() {
    let limit = pki_core::MAX_CRL_OCTETS;
    let large = vec![0x30; limit + 1];
    let refused = RevocationList::from_der(&large).err();
    assert_eq!(refused, Some(CrlError::TooLarge { size: limit + 1, limit }));
    assert!(matches!(revocation_lists_from_file(&large), Err(CrlError::TooLarge { .. })));
}

#[test]
fn a_list_for_other_judges() {
    let Some(directory) = std::env::var_os("ADIT_JUDGED_CERTS").map(std::path::PathBuf::from) else { return };
    let directory = directory.join("crl");
    std::fs::create_dir_all(&directory).expect("a directory");
    let save = |name: &str, pem: &str| std::fs::write(directory.join(name), pem).expect("written");
    let root_key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let authority = Authority::with_keys(&root_key, Box::new(key(&rcgen::PKCS_ECDSA_P256_SHA256)));
    save("root.crt", &certificate_to_pem(&authority.root));
    save("issuing.crt", &certificate_to_pem(authority.issuer.certificate()));
    // The root's lists, with and without its issuing certificate.
    let root = Issuer::new(&authority.root, &root_key).expect("an authority");
    let serials = [vec![0x42; 20], vec![0x80], vec![1, 0], serial(2).as_bytes().to_vec()];
    let entries: Vec<_> = serials.iter().map(|serial| revoked(serial, NOW.unix() - 60)).collect();
    for (name, entries) in [("revoked.crl", &entries[..]), ("others.crl", &entries[..3]), ("empty.crl", &[])] {
        let made = root.revocation_list(entries, 17, NOW, NOW.plus(WEEK)).expect("a list");
        save(name, &made.sign(&root_key).expect("the key signs").to_pem());
    }
}

proptest! {
    #[test]
    fn any_set_of_serials_reads_back(
        serials in proptest::collection::vec(proptest::collection::vec(0..3_u8, 1..12), 0..40),
        number: u64,
    ) {
        let authority = Authority::new();
        let entries: Vec<_> = serials.iter().map(|serial| revoked(serial, 1_700_000_000)).collect();
        let crl = list(&authority, &entries, number);
        let read = RevocationList::from_der(crl.der()).expect("a list");
        prop_assert_eq!(read.number(), Some(number));
        prop_assert!(serials.iter().all(|serial| read.is_revoked(serial)));
        let found: BTreeSet<_> = read.entries().map(|entry| entry.serial().to_vec()).collect();
        prop_assert_eq!(found.len(), read.entries().len(), "each once");
    }

    #[test]
    fn octets_that_change_never_panic(at in 0..300_usize, flip in 1..=255_u8) {
        let authority = Authority::new();
        let crl = list(&authority, &[revoked(&[5], 1), revoked(&[0x99; 20], 2)], 7);
        let mut changed = crl.der().to_vec();
        let at = at % changed.len();
        changed[at] ^= flip;
        let summary = inspect_crl(&changed);
        let read = RevocationList::from_der(&changed);
        prop_assert_eq!(read.is_ok(), summary.is_ok());
        if let Ok(read) = read {
            prop_assert!(read.verify(authority.issuer.certificate(), &RustCrypto).is_err());
        }
    }
}
