//! From PEM to signed DER, as a ratio to one raw verification and one raw
//! signature of the same backend; and the gate for RSA keys.
//!
//! `cargo bench -p benches --bench pki`

use std::time::Duration;

use benches::interleaved;
use pki_core::crypto::{Signer, Verifier, aws_lc, rustcrypto};
use pki_core::{
    Csr, DnsName, Issuer, KeyPolicy, Profile, PublicKey, SerialNumber, SignatureAlgorithm, Subject, Time, Usage, root,
};

const NOW: Time = Time::from_unix(1_795_354_200);
const HOST: &str = "my-agent.adit.localhost";
const ROUNDS: usize = 400;

fn main() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = request(&key);
    let pkcs8 = rcgen::KeyPair::generate().expect("a key").serialize_der();
    println!("P-256 request in PEM -> certificate in DER, every gate and the self-lint; medians of one thread\n");
    println!("{:<14} {:>10} {:>10} {:>10} {:>8} {:>8}", "backend", "verify us", "sign us", "issue us", "ratio", "goal");
    let aws = aws_lc::PrivateKey::from_pkcs8_der(&pkcs8).expect("PKCS #8");
    report("aws-lc-rs", &aws_lc::AwsLc, &aws, &csr, 1.10);
    let pure = rustcrypto::PrivateKey::from_pkcs8_der(&pkcs8).expect("PKCS #8");
    report("rustcrypto", &rustcrypto::RustCrypto, &pure, &csr, 1.05);
    rsa_gate();
}

fn report(name: &str, verifier: &dyn Verifier, signer: &dyn Signer, csr: &str, goal: f64) {
    let subject = Subject::new("Bench Root").expect("a subject");
    let root = root(&subject, signer, Duration::from_secs(86_400 * 365), SerialNumber::from_random([1; 20]), NOW);
    let root = root.expect("a root").sign(signer).expect("the key signs");
    let issuer = Issuer::new(root.der(), signer).expect("the root issues");
    let profile = Profile::try_from(ca_dir::leaf_profile(Usage::ServerAuth, 90)).expect("a profile");
    let host: DnsName = HOST.parse().expect("a host");
    let policy = KeyPolicy::new();

    // A message and signature like those of the request and the certificate.
    let spki = signer.spki().to_vec();
    let message = vec![7; 400];
    let signature = signer.sign(&message).expect("the key signs");
    let measured = interleaved(
        ROUNDS,
        &mut [
            ("verify", &mut || {
                let key = PublicKey::from_der(&spki).expect("a key");
                verifier.verify(&key, SignatureAlgorithm::EcdsaSha256, &message, &signature).expect("it verifies");
            }),
            ("sign", &mut || drop(signer.sign(&message).expect("the key signs"))),
            ("issue", &mut || {
                let leaf = Csr::from_pem(csr.as_bytes())
                    .and_then(|csr| csr.verify(verifier, &policy))
                    .and_then(|csr| csr.approve_host(&host))
                    .expect("a good request")
                    .to_be_signed(&issuer, &profile, SerialNumber::from_random([9; 20]), NOW)
                    .expect("lint passes")
                    .sign(signer)
                    .expect("the key signs");
                assert!(!leaf.der().is_empty());
            }),
        ],
    );
    let [verify, sign, issue] = &measured[..] else { return };
    let ratio = issue.micros() / (verify.micros() + sign.micros());
    println!(
        "{name:<14} {:>10.1} {:>10.1} {:>10.1} {ratio:>8.3} {goal:>8.2}",
        verify.micros(),
        sign.micros(),
        issue.micros()
    );
}

fn rsa_gate() {
    println!("\nWeak-key gate for RSA: size, exponent, small factors, ROCA, 100 rounds of Fermat\n");
    println!("{:<14} {:>10} {:>10}", "key", "us", "goal us");
    for (name, size, goal) in [
        ("RSA-2048", rcgen::RsaKeySize::_2048, "25"),
        ("RSA-3072", rcgen::RsaKeySize::_3072, "-"),
        ("RSA-4096", rcgen::RsaKeySize::_4096, "-"),
    ] {
        let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).expect("a key");
        let csr = Csr::from_pem(request(&key).as_bytes()).expect("a request");
        let policy = KeyPolicy::new();
        let measured = interleaved(
            ROUNDS,
            &mut [("gate", &mut || {
                policy.check(&PublicKey::from_der(csr.spki()).expect("a key")).expect("a strong key");
            })],
        );
        println!("{name:<14} {:>10.1} {goal:>10}", measured[0].micros());
    }
}

fn request(key: &rcgen::KeyPair) -> String {
    let mut params = rcgen::CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, HOST);
    params.serialize_request(key).expect("a request").pem().expect("PEM")
}
