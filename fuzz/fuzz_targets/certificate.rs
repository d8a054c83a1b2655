//! Certificates of strangers: inspected, linted and verified without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::{Certificate, Expectation, Time, Usage, inspect_certificate, lint, verify_chain};

fuzz_target!(|der: &[u8]| {
    let _ = lint(der);
    let parsed = Certificate::from_der(der);
    assert_eq!(parsed.is_ok(), inspect_certificate(der).is_ok());
    let Ok(certificate) = parsed else { return };
    let host = "my-agent.adit.localhost".parse().expect("a host");
    let expectation = Expectation { host: Some(&host), usage: Some(Usage::ServerAuth), at: certificate.not_before() };
    let _ = verify_chain(&[der], &[der], &expectation, &RustCrypto);
    let _ = verify_chain(&[der, der], &[der], &Expectation { at: Time::from_unix(0), ..expectation }, &RustCrypto);
});
