//! A certificate authority for tests: root and issuing, both backends.

use std::time::Duration;

use pki_core::crypto::rustcrypto::PrivateKey;
use pki_core::crypto::{Signer, Verifier};
use pki_core::{DnsName, Issuer, Profile, ProfileConfig, SerialNumber, Subject, Time, Usage, root};

pub(crate) const NOW: Time = Time::from_unix(1_795_354_200);
pub(crate) const ZONE: &str = "adit.localhost";
const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(crate) struct Authority {
    pub(crate) root: Vec<u8>,
    pub(crate) issuer: Issuer,
    pub(crate) signer: Box<dyn Signer>,
}

impl Authority {
    /// Fresh P-256 keys; everything else is the same in every run.
    pub(crate) fn new() -> Self {
        let root_key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
        let signer = key(&rcgen::PKCS_ECDSA_P256_SHA256);
        Self::with_keys(&root_key, Box::new(signer))
    }

    pub(crate) fn with_keys(root_key: &dyn Signer, signer: Box<dyn Signer>) -> Self {
        let subject = |name| Subject::with_organization(name, "Adit Tests").expect("a subject");
        let made = NOW.minus(Duration::from_secs(3600));
        let root = root(&subject("Test Root"), root_key, 20 * YEAR, serial(1), made).expect("a root");
        let root = root.sign(root_key).expect("the key signs").der().to_vec();
        let zone: DnsName = ZONE.parse().expect("a zone");
        let intermediate = Issuer::new(&root, root_key)
            .expect("the root issues")
            .intermediate(&subject("Test Issuing"), signer.spki(), &zone, 10 * YEAR, serial(2), made)
            .expect("an intermediate")
            .sign(root_key)
            .expect("the key signs");
        let issuer = Issuer::new(intermediate.der(), signer.as_ref()).expect("the intermediate issues");
        Self { root, issuer, signer }
    }
}

pub(crate) fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> PrivateKey {
    let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
    PrivateKey::from_pkcs8_der(pair.serialized_der()).expect("PKCS #8")
}

pub(crate) fn serial(number: u8) -> SerialNumber {
    SerialNumber::from_random([number; 20])
}

pub(crate) fn profile(usage: Usage) -> Profile {
    Profile::try_from(ProfileConfig {
        usage,
        validity_seconds: 90 * 86_400,
        backdate_seconds: 60,
        crl_distribution_point: None,
        ca_issuers: None,
    })
    .expect("a profile")
}

/// Every backend that is compiled in, by name.
pub(crate) fn backends() -> Vec<(&'static str, Box<dyn Verifier>)> {
    vec![
        ("rustcrypto", Box::new(pki_core::crypto::rustcrypto::RustCrypto)),
        #[cfg(feature = "aws-lc-rs")]
        ("aws-lc-rs", Box::new(pki_core::crypto::aws_lc::AwsLc)),
    ]
}
