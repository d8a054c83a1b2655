//! Revocation lists of strangers: read, told and verified without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::{RevocationList, inspect_crl};

/// The authority whose lists are among the seeds.
const ISSUER: &[u8] = include_bytes!("../corpus/certificate/crl-issuer.der");

fuzz_target!(|der: &[u8]| {
    let parsed = RevocationList::from_der(der);
    let summary = inspect_crl(der);
    assert_eq!(parsed.is_ok(), summary.is_ok());
    let (Ok(list), Ok(summary)) = (parsed, summary) else { return };
    assert_eq!(list.entries().len(), summary.revoked_count);
    assert_eq!(list.entries().count(), summary.revoked_count, "every entry was read before");
    for entry in list.entries().take(8) {
        assert!(list.is_revoked(entry.serial()));
        let _ = entry.reason();
    }
    let _ = list.verify(ISSUER, &RustCrypto);
});
