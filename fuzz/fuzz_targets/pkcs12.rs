//! PKCS #12 files of strangers. The first octet chooses: the whole file, or what
//! is behind a MAC that matches, which no mutation finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::pkcs12::{MAX_PKCS12_BAGS, Pkcs12Error, open, seal_for_fuzzing};

const PASSWORD: &str = "secret";

fuzz_target!(|input: &[u8]| {
    let Some((choice, octets)) = input.split_first() else { return };
    if asks_for_much(octets) {
        return;
    }
    let opened = if choice & 1 == 0 {
        open(octets, PASSWORD)
    } else {
        let opened = open(&seal_for_fuzzing(octets, PASSWORD), PASSWORD);
        assert_ne!(opened.as_ref().err(), Some(&Pkcs12Error::WrongPassword), "the MAC matches");
        assert_ne!(opened.as_ref().err(), Some(&Pkcs12Error::MissingMac));
        opened
    };
    if let Ok(contents) = opened {
        assert!(contents.private_keys.len() + contents.certificates.len() <= MAX_PKCS12_BAGS);
        assert!(!format!("{contents:?}").contains("pkcs8: ["));
    }
});

/// Key derivation up to the limit is no finding, and takes the time of a hundred
/// thousand inputs: numbers above 65535 in three octets or more are left out.
fn asks_for_much(octets: &[u8]) -> bool {
    octets.windows(3).any(|window| matches!(window, [0x02, 3..=8, high] if *high != 0))
}
