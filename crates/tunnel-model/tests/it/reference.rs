//! The model against a plain one, on random commands.

use proptest::prelude::*;

use crate::harness;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_model_agrees_with_a_plain_one(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        harness::run(&bytes);
    }
}

#[test]
fn random_commands_reach_every_event_and_refusal() {
    // A linear congruential generator (Knuth's MMIX constants): the same octets in every run.
    let mut state = 1_u64;
    let bytes: Vec<u8> = (0..200_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect();
    let mut outcomes = std::collections::BTreeSet::new();
    for chunk in bytes.chunks(2000) {
        outcomes.extend(harness::run(chunk));
    }
    for outcome in [
        "CertificateIssued",
        "IdentityCreated",
        "IdentityDeleted",
        "IdentityUpdated",
        "KeyCreated",
        "KeyRevoked",
        "SecretRotated",
        "SigningCounted",
        "TunnelConnected",
        "TunnelCreated",
        "TunnelDeleted",
        "TunnelDisconnected",
        "TunnelFinalized",
        "TunnelRenamed",
        "TunnelRestored",
        "TunnelUpdated",
        "AdminKeyForbidden",
        "CreateQuota",
        "Forbidden",
        "IdentityOwned",
        "NameTaken",
        "NameUnavailable",
        "NotDeletePending",
        "NotFound",
        "NotPassthrough",
        "NotSignable",
        "RestoreWindowOver",
        "SignQuota",
    ] {
        assert!(outcomes.contains(outcome), "never seen: {outcome}");
    }
}
