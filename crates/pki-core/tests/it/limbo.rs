//! x509-limbo (C2SP) judges `verify_chain`, and rustls-webpki beside it.
//!
//! `ADIT_LIMBO` names its `limbo.json`. Where we and limbo differ, the case
//! stands in `tests/data/limbo-differences.tsv` with its reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pki_core::crypto::Verifier;
use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::{DnsName, Expectation, Time, Usage, certificates_from_pem, verify_chain};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

#[test]
fn chains_of_limbo_are_judged_as_it_says_or_for_a_reason() {
    let Ok(path) = std::env::var("ADIT_LIMBO") else { return };
    let limbo: Value = serde_json::from_slice(&fs::read(path).expect("limbo.json")).expect("JSON");
    let differences = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/limbo-differences.tsv");
    let differences = fs::read_to_string(differences).expect("the differences");
    let reason = |line: &'static str| line.split_once('\t').expect("an id and a reason");
    let mut known: BTreeMap<_, _> =
        differences.leak().lines().filter(|line| !line.starts_with('#')).map(reason).collect();
    let mut complaints = Vec::new();
    let mut judged = 0;
    for case in limbo["testcases"].as_array().expect("cases").iter().filter_map(Case::read) {
        judged += 1;
        let start = Instant::now();
        let ours = case.verify(&RustCrypto);
        if start.elapsed() > Duration::from_secs(1) {
            complaints.push(format!("{}: takes {:?}", case.id, start.elapsed()));
        }
        #[cfg(feature = "aws-lc-rs")]
        assert_eq!(ours.is_ok(), case.verify(&pki_core::crypto::aws_lc::AwsLc).is_ok(), "{}", case.id);
        let webpki = case.verify_with_webpki();
        let is_known = known.remove(case.id).is_some();
        match (case.is_good, &ours, &webpki) {
            (true, Ok(()), _) | (false, Err(_), _) if is_known => {
                complaints.push(format!("{}: listed, and does not differ", case.id));
            }
            (true, Ok(()), _) | (false, Err(_), _) => {}
            (true, Err(error), Ok(())) => complaints.push(format!("{}: good for limbo and webpki: {error}", case.id)),
            (false, Ok(()), Err(error)) => complaints.push(format!("{}: accepted; webpki says {error}", case.id)),
            _ if is_known => {}
            _ => complaints.push(format!("{}: good: {}, ours: {ours:?}, not listed", case.id, case.is_good)),
        }
    }
    complaints.extend(known.keys().map(|id| format!("{id}: listed, and not judged")));
    assert!(judged >= 180, "{judged}");
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A case that `verify_chain` can be asked.
struct Case<'a> {
    id: &'a str,
    chain: Vec<Vec<u8>>,
    anchors: Vec<Vec<u8>>,
    host: Option<DnsName>,
    usage: Usage,
    at: Time,
    is_good: bool,
}

impl<'a> Case<'a> {
    fn read(case: &'a Value) -> Option<Self> {
        let text = |key: &str| case[key].as_str();
        let certificates = |key: &str| -> Vec<Vec<u8>> {
            let blocks = case[key].as_array().into_iter().flatten().filter_map(Value::as_str);
            blocks.flat_map(|pem| certificates_from_pem(pem.as_bytes()).expect("PEM")).collect()
        };
        let is_asked = case["max_chain_depth"].is_null() && case["key_usage"].as_array().is_some_and(Vec::is_empty);
        let host = match case["expected_peer_name"]["kind"].as_str() {
            Some("DNS") => Some(case["expected_peer_name"]["value"].as_str()?.parse().ok()?),
            None => None,
            Some(_) => return None,
        };
        let mut chain = certificates_from_pem(text("peer_certificate")?.as_bytes()).expect("PEM");
        chain.extend(certificates("untrusted_intermediates"));
        let at = text("validation_time").map_or(NOW, |time| read_time(time).expect("a time"));
        is_asked.then_some(Self {
            id: text("id")?,
            chain,
            anchors: certificates("trusted_certs"),
            host,
            usage: if text("validation_kind") == Some("CLIENT") { Usage::ClientAuth } else { Usage::ServerAuth },
            at,
            is_good: text("expected_result") == Some("SUCCESS"),
        })
    }

    fn verify(&self, verifier: &dyn Verifier) -> Result<(), pki_core::ChainError> {
        let chain: Vec<_> = self.chain.iter().map(Vec::as_slice).collect();
        let anchors: Vec<_> = self.anchors.iter().map(Vec::as_slice).collect();
        let expectation = Expectation { host: self.host.as_ref(), usage: Some(self.usage), at: self.at };
        verify_chain(&chain, &anchors, &expectation, verifier)
    }

    fn verify_with_webpki(&self) -> Result<(), webpki::Error> {
        let chain: Vec<_> = self.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<_> = self.anchors.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<_> = anchors.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
        let leaf = EndEntityCert::try_from(&chain[0])?;
        let seconds = u64::try_from(self.at.unix()).expect("a time after 1970");
        let usage = match self.usage {
            Usage::ClientAuth => KeyUsage::client_auth(),
            _ => KeyUsage::server_auth(),
        };
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &chain[1..], at, usage, None, None)?;
        match &self.host {
            Some(host) => leaf.verify_is_valid_for_subject_name(&ServerName::try_from(host.as_str()).expect("a host")),
            None => Ok(()),
        }
    }
}

/// Cases without a time are meant for today; a literal keeps them so.
const NOW: Time = Time::from_unix(1_780_000_000);

/// `2024-03-01T00:00:00.999+00:00`, always in UTC; fractions are cut off.
fn read_time(text: &str) -> Option<Time> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Years that begin in March end with the leap day.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(Time::from_unix(days * 86_400 + number(11, 13)? * 3_600 + number(14, 16)? * 60 + number(17, 19)?))
}
