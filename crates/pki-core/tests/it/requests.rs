//! Requests that must be refused, each for its own reason, and requests that
//! must be accepted, on every backend.
//!
//! `tests/data/requests/make_requests.py` made them, with an encoder of its
//! own; `index.tsv` says what each is.

use std::path::Path;

use pki_core::{Approved, Csr, CsrError, DnsName, KeyPolicy, PemError, inspect_csr, requests_from_file};

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

/// The cause and the mend, for what people send most.
#[test]
fn refusals_name_the_cause_and_the_mend() {
    for (file, words) in [
        ("refuse-point-compressed-p256.pem", &["point is not in uncompressed form", "-conv_form uncompressed"][..]),
        ("refuse-point-compressed-p384.pem", &["point is not in uncompressed form", "-conv_form uncompressed"]),
        ("refuse-cms.pem", &["CMS message", "send PKCS #10", "openssl req"]),
        ("refuse-cms-new-label.pem", &["CMS message", "send PKCS #10", "openssl req"]),
        ("refuse-pem-utf16.pem", &["UTF-16", "save it as UTF-8"]),
    ] {
        let bytes = std::fs::read(directory().join(file)).expect("the file");
        for (backend, verifier) in backends() {
            let verified = Csr::from_pem(&bytes).and_then(|csr| csr.verify(verifier.as_ref(), &KeyPolicy::new()));
            let text = verified.expect_err("refused").to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{backend}: {file}: {text}");
        }
    }
}

/// Cut after every octet, and with every octet changed: what is told is what is
/// there, and nothing of it needs the whole to be right.
#[test]
fn what_can_be_read_of_a_request_is_told() {
    let fixture = fixtures().into_iter().find(|fixture| fixture.file == "accept-asks-everything.pem");
    let fixture = fixture.expect("a request with extensions");
    let pem = std::fs::read(directory().join(fixture.file)).expect("the file");
    let der = Csr::from_pem(&pem).expect("a request").der().to_vec();
    let whole = inspect_csr(&der).expect("readable");
    assert!(whole.subject.is_some() && !whole.requested_extensions.is_empty());
    let mut told = [0; 4];
    for end in 0..der.len() {
        let cut = inspect_csr(&der[..end]).unwrap_or_default();
        let extensions = (!cut.requested_extensions.is_empty()).then(|| format!("{:?}", cut.requested_extensions));
        let of_whole = Some(format!("{:?}", whole.requested_extensions));
        for (at, (part, whole)) in [
            (&cut.subject, &whole.subject),
            (&cut.public_key, &whole.public_key),
            (&extensions, &of_whole),
            (&cut.signature_algorithm, &whole.signature_algorithm),
        ]
        .into_iter()
        .enumerate()
        {
            assert!(part.is_none() || part == whole, "octets to {end}: {part:?}");
            told[at] += usize::from(part.is_some());
        }
        assert_eq!(cut.public_key.is_some(), cut.spki_sha256.is_some());
    }
    assert!(told[0] > told[1] && told[1] > told[2] && told[2] >= told[3] && told[3] > 0, "{told:?}");
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 0xff;
        let _ = inspect_csr(&changed);
    }
    // A bad attribute hides neither subject nor key.
    let attributes = der.windows(2).position(|pair| pair[0] == 0xa0).expect("[0] attributes");
    let mut changed = der.clone();
    let attribute =
        attributes + if der[attributes + 1] < 0x80 { 2 } else { 2 + usize::from(der[attributes + 1] & 0x7f) };
    changed[attribute] = 0x04;
    let told = inspect_csr(&changed).expect("readable");
    assert_eq!((&told.subject, &told.public_key), (&whole.subject, &whole.public_key));
    assert!(told.malformed_extensions[0].contains("Attribute"), "{told:?}");
    // A certificate of version 1 begins with two INTEGERs less, and is none.
    assert_eq!(inspect_csr(b""), None);
    assert_eq!(inspect_csr(&der[..4]), None);
}

/// From one's own file; what others send is one block and nothing else.
#[test]
fn a_request_is_read_beside_other_blocks_of_a_file() {
    let read = |file: &str| std::fs::read(directory().join(file)).expect("the file");
    for file in ["refuse-pem-key-then-request.pem", "refuse-pem-several-then-key.pem"] {
        assert!(Csr::from_pem(&read(file)).is_err(), "{file}");
        assert!(Csr::from_file(&read(file)).is_ok(), "{file}");
        assert_eq!(requests_from_file(&read(file)).map(|requests| requests.len()), Ok(1), "{file}");
    }
    let two = read("refuse-pem-several-two-requests.pem");
    assert_eq!(Csr::from_file(&two), Err(CsrError::Pem(PemError::SeveralBlocks)));
    assert_eq!(requests_from_file(&two).map(|requests| requests.len()), Ok(2));
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
