//! Single operations below the ratios of `pki.rs`, to see where time goes.
//!
//! `cargo bench -p benches --bench operations`

use divan::{Bencher, black_box};
use pki_core::crypto::aws_lc::{self, AwsLc};
use pki_core::pkcs12::{Bundle, Encryption};
use pki_core::{Csr, Issuer, KeyPolicy, RevocationList, RevokedCertificate, SerialNumber, Subject, Time};

const NOW: Time = Time::from_unix(1_795_354_200);
const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

fn main() {
    divan::main();
}

fn request() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["my-agent.adit.localhost".to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "my-agent.adit.localhost");
    params.serialize_request(&key).expect("a request").pem().expect("PEM")
}

#[divan::bench]
fn csr_from_pem(bencher: Bencher<'_, '_>) {
    let csr = request();
    bencher.bench(|| Csr::from_pem(black_box(csr.as_bytes())).expect("a request"));
}

#[divan::bench]
fn approve_host(bencher: Bencher<'_, '_>) {
    let csr = Csr::from_pem(request().as_bytes()).expect("a request");
    let verified = csr.verify(&AwsLc, &KeyPolicy::new()).expect("proof of possession");
    let host = "my-agent.adit.localhost".parse().expect("a host");
    bencher.with_inputs(|| verified.clone()).bench_values(|csr| csr.approve_host(&host).expect("the right name"));
}

#[divan::bench]
fn lint(bencher: Bencher<'_, '_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let zone = "adit.localhost".parse().expect("a zone");
    let ca = ca_dir::CaDir::create(&directory.path().join("ca"), &zone, None, NOW).expect("an authority");
    // The TBSCertificate starts after a header of four octets and has one like it.
    let certificate = &ca.issuing[4..];
    let length = 4 + usize::from(u16::from_be_bytes([certificate[2], certificate[3]]));
    let tbs = &certificate[..length];
    assert!(pki_core::lint(tbs).is_empty());
    bencher.bench(|| pki_core::lint(black_box(tbs)));
}

/// A P-256 key, its PKCS #8 and a root certificate.
fn root() -> (aws_lc::PrivateKey, Vec<u8>, Vec<u8>) {
    let pkcs8 = rcgen::KeyPair::generate().expect("a key").serialize_der();
    let key = aws_lc::PrivateKey::from_pkcs8_der(&pkcs8).expect("PKCS #8");
    let subject = Subject::new("Bench Root").expect("a subject");
    let root = pki_core::root(&subject, &key, 365 * DAY, SerialNumber::from_random([1; 20]), NOW);
    let root = root.expect("a root").sign(&key).expect("the key signs").der().to_vec();
    (key, pkcs8, root)
}

/// Serials as random ones are: spread, of 20 octets. A goal for 100,000: 15 ms.
fn serials(count: u64) -> Vec<[u8; 20]> {
    let serial = |number: u64| {
        let mut serial = [0x55; 20];
        serial[1..9].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        serial[12..].copy_from_slice(&number.wrapping_mul(0xd1b5_4a32_d192_ed03).to_be_bytes());
        serial
    };
    (0..count).map(serial).collect()
}

#[divan::bench(args = [1000, 100_000])]
fn revocation_list(bencher: Bencher<'_, '_>, count: u64) {
    let (key, _, root) = root();
    let issuer = Issuer::new(&root, &key).expect("an authority");
    let serials = serials(count);
    let revoked: Vec<_> = (0..).zip(&serials).map(|(at, serial)| revoked(serial, at)).collect();
    bencher.bench(|| {
        let list = issuer.revocation_list(black_box(&revoked), 1, NOW, NOW.plus(DAY)).expect("a list");
        list.sign(&key).expect("the key signs")
    });
}

#[divan::bench(args = [1000, 100_000])]
fn read_revocation_list(bencher: Bencher<'_, '_>, count: u64) {
    let (key, _, root) = root();
    let issuer = Issuer::new(&root, &key).expect("an authority");
    let serials = serials(count);
    let revoked: Vec<_> = (0..).zip(&serials).map(|(at, serial)| revoked(serial, at)).collect();
    let list = issuer.revocation_list(&revoked, 1, NOW, NOW.plus(DAY)).expect("a list");
    let list = list.sign(&key).expect("the key signs");
    bencher.bench(|| RevocationList::from_der(black_box(list.der())).expect("a list").is_revoked(&[7]));
}

fn revoked(serial: &[u8], at: i64) -> RevokedCertificate<'_> {
    RevokedCertificate { serial, revoked_at: Time::from_unix(1_700_000_000 + 571 * at) }
}

#[divan::bench(args = [Encryption::Aes256, Encryption::Legacy])]
fn pkcs12(bencher: Bencher<'_, '_>, encryption: Encryption) {
    let (_, private_key, root) = root();
    let bundle = Bundle { private_key: &private_key, certificate: &root, authorities: &[&root], friendly_name: None };
    bencher.bench(|| bundle.encrypt(black_box("3fa9c1"), encryption, &[7; 80]).expect("a file"));
}
