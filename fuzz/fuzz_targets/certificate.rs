//! Certificates of strangers: read, inspected and linted without a panic, and the
//! readers agree on what is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::{Certificate, Fingerprint, Time, inspect_certificate, lint};

fuzz_target!(|der: &[u8]| {
    let _ = lint(der);
    let summary = inspect_certificate(der);
    let Ok(certificate) = Certificate::from_der(der) else {
        assert!(summary.is_err());
        return;
    };
    let summary = summary.expect("what is read can be told");
    assert_eq!(summary.fingerprint_sha256, Fingerprint::of(der));
    assert_eq!(summary.not_before, certificate.not_before());
    assert!(matches!(summary.version, 1 | 3));
    assert!(summary.not_after.unix() >= Time::from_unix(i64::MIN).unix());
    // Whatever is not told in a field of its own is named.
    assert!(summary.version == 3 || summary.other_extensions.is_empty());
});
