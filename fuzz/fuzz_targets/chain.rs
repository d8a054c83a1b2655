//! Chains of strangers, with signatures believed so that mutated certificates reach
//! the checks behind them: judged no more kindly than by rustls-webpki, within a
//! budget, and the same whatever the order of the intermediates.
//!
//! An input is certificates one after the other: leaf, intermediates, anchor. They are
//! judged at the leaf's first second and for the first host that the leaf names.
#![no_main]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pki_core::crypto::{Verifier, VerifyError};
use pki_core::{
    Certificate, ChainError, DnsName, Expectation, PublicKey, SignatureAlgorithm, Usage, inspect_certificate,
    verify_chain,
};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, ServerName, SignatureVerificationAlgorithm, UnixTime, alg_id,
};
use webpki::{EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

/// Believes every signature, so that mutated certificates reach the checks behind it.
#[derive(Debug, Default)]
struct Gullible {
    asked: Counter,
}

impl Verifier for Gullible {
    fn verify(&self, _: &PublicKey<'_>, _: SignatureAlgorithm, _: &[u8], _: &[u8]) -> Result<(), VerifyError> {
        self.asked.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl Counter {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The same for rustls-webpki, of one kind of key with one algorithm.
#[derive(Debug)]
struct Believing {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
}

impl SignatureVerificationAlgorithm for Believing {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

const BELIEVING: [&dyn SignatureVerificationAlgorithm; 4] = [
    &Believing { key: alg_id::ECDSA_P256, signature: alg_id::ECDSA_SHA256 },
    &Believing { key: alg_id::ECDSA_P384, signature: alg_id::ECDSA_SHA384 },
    &Believing { key: alg_id::ED25519, signature: alg_id::ED25519 },
    &Believing { key: alg_id::RSA_ENCRYPTION, signature: alg_id::RSA_PKCS1_SHA256 },
];

fuzz_target!(|input: &[u8]| {
    let certificates = split(input);
    let Some((anchor, chain)) = certificates.split_last() else { return };
    let chain = if chain.is_empty() { &certificates } else { chain };
    let Ok(leaf) = Certificate::from_der(chain[0]) else { return };
    let host = inspect_certificate(chain[0]).ok().and_then(|summary| {
        summary.subject_alt_names.iter().find_map(|name| name.strip_prefix("DNS:")?.parse::<DnsName>().ok())
    });
    let host = host.unwrap_or_else(|| "my-agent.adit.localhost".parse().expect("a host"));
    let at = leaf.not_before();
    for usage in [Usage::ServerAuth, Usage::ClientAuth] {
        let host = (usage == Usage::ServerAuth).then_some(&host);
        let expectation = Expectation { host, usage: Some(usage), at };
        let gullible = Gullible::default();
        let verdict = verify_chain(chain, &[anchor], &expectation, &gullible);
        assert!(gullible.asked.get() <= MAX_SIGNATURES, "{} signatures", gullible.asked.get());
        if verdict.is_ok()
            && let Err(error) = webpki(chain, anchor, &expectation)
        {
            assert!(!is_contrary(&error, &certificates), "good for us, and for rustls-webpki {error:?}");
        }
        // An anchor beside it that signed nothing takes nothing away.
        if verdict.is_ok() {
            let beside = verify_chain(chain, &[chain[0], anchor], &expectation, &Gullible::default());
            assert!(beside.is_ok() || is_costly(&beside), "{beside:?}");
        }
        let mut turned = chain.to_vec();
        turned[1..].reverse();
        let turned = verify_chain(&turned, &[anchor], &expectation, &Gullible::default());
        assert!(turned.is_ok() == verdict.is_ok() || is_costly(&turned) || is_costly(&verdict));
    }
});

/// More signatures are not verified, whatever the chain: the budget of `verify_chain`.
const MAX_SIGNATURES: usize = 100;

fn is_costly(verdict: &Result<(), ChainError>) -> bool {
    matches!(verdict, Err(ChainError::TooCostly))
}

fn webpki(chain: &[&[u8]], anchor: &[u8], expectation: &Expectation<'_>) -> Result<(), Error> {
    let Ok(seconds) = u64::try_from(expectation.at.unix()) else { return Ok(()) };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
    let anchor = CertificateDer::from(anchor);
    let anchor = anchor_from_trusted_cert(&anchor)?;
    let leaf = EndEntityCert::try_from(&chain[0])?;
    let usage = match expectation.usage {
        Some(Usage::ClientAuth) => KeyUsage::client_auth(),
        _ => KeyUsage::server_auth(),
    };
    leaf.verify_for_usage(&BELIEVING, &[anchor], &chain[1..], at, usage, None, None)?;
    match expectation.host {
        Some(host) => leaf.verify_is_valid_for_subject_name(&ServerName::try_from(host.as_str()).expect("a host")),
        None => Ok(()),
    }
}

/// Is it a judgement of what a chain says? About forms the two differ: what
/// rustls-webpki does not read (other constraints, laxer DER) or count as we do
/// (pathLenConstraint of the self-issued) is no contradiction.
fn is_contrary(error: &Error, certificates: &[&[u8]]) -> bool {
    // Of several candidates the most specific error is told, which may be that of a superfluous one
    // when the right one cannot be read: rustls-webpki knows no times before 1970.
    let is_read = |der: &&[u8]| {
        let is_old = Certificate::from_der(der).is_ok_and(|certificate| certificate.not_before().unix() < 0);
        let der = CertificateDer::from(*der);
        !is_old && matches!(EndEntityCert::try_from(&der), Ok(_) | Err(Error::UnsupportedCriticalExtension))
    };
    if !certificates.iter().all(is_read) {
        return false;
    }
    let constraints = certificates.iter().filter_map(|der| inspect_certificate(der).ok());
    let is_compared = |text: &String| text.contains(" DNS:") || text.contains(" IP:");
    match error {
        Error::CaUsedAsEndEntity
        | Error::CertExpired { .. }
        | Error::CertNotValidForName(_)
        | Error::CertNotValidYet { .. }
        | Error::EndEntityUsedAsCa
        | Error::RequiredEkuNotFoundContext(_)
        | Error::UnsupportedCriticalExtension => true,
        Error::NameConstraintViolation => {
            constraints.into_iter().flat_map(|summary| summary.name_constraints).all(|text| is_compared(&text))
        }
        _ => false,
    }
}

/// Elements of DER, by their headers alone.
fn split(mut input: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    while elements.len() < 8 {
        let length = match input {
            [_, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            [_, 0x81, length, ..] => 3 + usize::from(*length),
            [_, length @ 0..=0x7f, ..] => 2 + usize::from(*length),
            _ => break,
        };
        let Some((element, rest)) = input.split_at_checked(length) else { break };
        elements.push(element);
        input = rest;
    }
    if elements.is_empty() { vec![input] } else { elements }
}
