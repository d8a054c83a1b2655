//! The whole gate on DER: no panic, and an accepted request names one host.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::crypto::{Verifier, VerifyError};
use pki_core::{Csr, CsrError, DnsName, KeyError, KeyPolicy, PublicKey, SignatureAlgorithm, inspect_csr};

/// Believes every signature, so that mutated requests get past the proof of
/// possession and reach the checks behind it.
struct Gullible;

impl Verifier for Gullible {
    fn verify(&self, _: &PublicKey<'_>, _: SignatureAlgorithm, _: &[u8], _: &[u8]) -> Result<(), VerifyError> {
        Ok(())
    }
}

fuzz_target!(|der: &[u8]| {
    // Tells what it can of anything, and all of what is well-formed.
    let summary = inspect_csr(der);
    let Ok(csr) = Csr::from_der(der) else { return };
    assert_eq!(csr.der(), der);
    if let (Some(summary), Ok(names)) = (&summary, csr.common_names()) {
        assert_eq!(summary.common_names, names);
        assert!(summary.spki_sha256.is_some() && summary.signature_algorithm.is_some());
    }
    let host: DnsName = "my-agent.adit.localhost".parse().expect("a host");
    let policy = KeyPolicy::new();
    let believed = csr.clone().verify(&Gullible, &policy);
    let proved = csr.verify(&RustCrypto, &policy);
    match (&believed, &proved) {
        // Belief only ever adds: whatever else is wrong is found either way.
        (Err(believed), Err(proved)) => assert_eq!(believed, proved),
        (Ok(_), Err(error)) => assert!(matches!(
            error,
            CsrError::ProofOfPossession | CsrError::Key(KeyError::PointNotOnCurve | KeyError::Ed25519Point)
        )),
        (Ok(_), Ok(_)) => {}
        (Err(error), Ok(_)) => panic!("proved but not believed: {error}"),
    }
    if let Ok(verified) = believed {
        let _ = verified.approve_host(&host);
    }
});
