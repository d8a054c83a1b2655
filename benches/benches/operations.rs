//! Single operations below the ratios of `pki.rs`, to see where time goes.
//!
//! `cargo bench -p benches --bench operations`

use divan::{Bencher, black_box};
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Csr, KeyPolicy};

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
    let now = pki_core::Time::from_unix(1_795_354_200);
    let ca = ca_dir::CaDir::create(&directory.path().join("ca"), &zone, None, now).expect("an authority");
    // The TBSCertificate starts after a header of four octets and has one like it.
    let certificate = &ca.issuing[4..];
    let length = 4 + usize::from(u16::from_be_bytes([certificate[2], certificate[3]]));
    let tbs = &certificate[..length];
    assert!(pki_core::lint(tbs).is_empty());
    bencher.bench(|| pki_core::lint(black_box(tbs)));
}
