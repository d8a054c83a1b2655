//! What an authority says: problem documents and renewal information end in words and times that do no harm.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../crates/acme/src/ari.rs"]
mod ari;
#[allow(dead_code)]
#[path = "../../crates/acme/src/problem.rs"]
mod problem;

fuzz_target!(|document: &[u8]| {
    if let Some(problem) = problem::Problem::parse(document) {
        let words = problem.to_string();
        assert!(words.is_ascii() && !words.contains(|character: char| character.is_ascii_control()), "{words:?}");
        assert!(words.len() < 12_000 && problem.parts.len() <= 10);
        // What has been cleaned once stays as it is.
        assert_eq!(problem::cleaned(&problem.detail, 1000), problem.detail);
    }
    match ari::RenewalWindow::parse(document) {
        Ok(window) => {
            for random in [0, 1, 1 << 40, u64::MAX] {
                let at = window.choose(random);
                assert!(window.start <= at && at <= window.end);
            }
        }
        Err(error) => assert!(error.to_string().is_ascii()),
    }
    // And as a certificate that asks for its name.
    if let Some(id) = ari::CertId::of(document) {
        assert_eq!(id.to_string().parse().ok(), Some(id.clone()));
        let id = id.to_string();
        assert_eq!(id.matches('.').count(), 1);
        assert!(id.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet)));
    }
});
