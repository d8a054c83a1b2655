//! PEM as anybody may send it: no panic, and what is read reads again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::{Csr, certificate_to_pem, certificates_from_pem};

fuzz_target!(|text: &[u8]| {
    let _ = Csr::from_pem(text);
    if let Ok(certificates) = certificates_from_pem(text) {
        let written: String = certificates.iter().map(|der| certificate_to_pem(der)).collect();
        let again = certificates_from_pem(written.as_bytes()).expect("what we write we read");
        assert_eq!(again, certificates);
    }
});
