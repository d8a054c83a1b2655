//! Requests that must be refused, each for its own reason, and requests that
//! must be accepted, on every backend.
//!
//! `tests/data/requests/make_requests.py` made them, with an encoder of its
//! own; `index.tsv` says what each is.

use std::path::Path;

use pki_core::{Approved, Csr, CsrError, DnsName, KeyPolicy};

use crate::authority::backends;

struct Fixture {
    file: String,
    host: DnsName,
    expected: String,
}

fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/requests")
}

fn fixtures() -> Vec<Fixture> {
    let index = std::fs::read_to_string(directory().join("index.tsv")).expect("index.tsv");
    index
        .lines()
        .skip(1)
        .map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            let mut column = || columns.next().expect("four columns");
            Fixture {
                file: column(),
                host: column().parse().unwrap_or_else(|error| panic!("{line}: {error}")),
                expected: column(),
            }
        })
        .collect()
}

/// The variant's name, without its data; nested enums as `Pem::NoBlock`.
fn verdict(result: &Result<Approved, CsrError>) -> String {
    let name = |debug: String| {
        let end = debug.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(debug.len());
        debug[..end].to_owned()
    };
    match result {
        Ok(_) => "ok".to_owned(),
        Err(CsrError::Pem(error)) => format!("Pem::{}", name(format!("{error:?}"))),
        Err(CsrError::Key(error)) => name(format!("{error:?}")),
        Err(error) => name(format!("{error:?}")),
    }
}

#[test]
fn every_request_gets_the_verdict_that_it_was_made_for() {
    let fixtures = fixtures();
    let refused = fixtures.iter().filter(|fixture| fixture.expected != "ok").count();
    assert!(refused >= 60 && fixtures.len() - refused >= 60, "{refused} of {} refuse", fixtures.len());
    let mut wrong = Vec::new();
    for (backend, verifier) in backends() {
        for fixture in &fixtures {
            let bytes = std::fs::read(directory().join(&fixture.file)).expect("the file in the index");
            let csr = if fixture.file.ends_with(".der") { Csr::from_der(&bytes) } else { Csr::from_pem(&bytes) };
            let result = csr
                .and_then(|csr| csr.verify(verifier.as_ref(), &KeyPolicy::new()))
                .and_then(|csr| csr.approve_host(&fixture.host));
            let verdict = verdict(&result);
            if !fixture.expected.split('|').any(|expected| expected == verdict) {
                wrong.push(format!("{backend}: {}: {verdict}, not {}", fixture.file, fixture.expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_block_list_is_asked() {
    use sha2::{Digest as _, Sha256};

    let fixture = fixtures().into_iter().find(|fixture| fixture.expected == "ok" && fixture.file.ends_with(".pem"));
    let fixture = fixture.expect("an accepted request");
    let csr = Csr::from_pem(&std::fs::read(directory().join(fixture.file)).expect("the file")).expect("a request");
    let spki_sha256: [u8; 32] = Sha256::digest(csr.spki()).into();
    for (_, verifier) in backends() {
        let refused = csr.clone().verify(verifier.as_ref(), &KeyPolicy::new().block(spki_sha256));
        assert_eq!(refused, Err(CsrError::Key(pki_core::KeyError::BlockedKey { spki_sha256 })));
    }
}

/// Flipping any bit of the signed part is refused: by the parser, the key
/// policy or proof of possession.
#[test]
fn a_changed_bit_is_never_accepted() {
    let host: DnsName = "my-agent.adit.localhost".parse().expect("a host");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![host.to_string()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, host.as_str());
    let der = params.serialize_request(&key).expect("a request").der().to_vec();
    let judge = |bytes: &[u8]| {
        let verifier = pki_core::crypto::rustcrypto::RustCrypto;
        Csr::from_der(bytes)
            .and_then(|csr| csr.verify(&verifier, &KeyPolicy::new()))
            .and_then(|csr| csr.approve_host(&host))
    };
    assert!(judge(&der).is_ok());
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(judge(&changed).is_err(), "octet {at}");
    }
}
