//! Certificates from Pebble, by every challenge, and through every interruption.

use std::sync::Arc;
use std::time::Duration;

use acme::{ChallengeKind, Error, ExternalAccount, Hook, Name, Order, Remedy, RevocationReason, Solvers};
use pki_core::Csr;

use crate::pebble::{Habits, Pebble};

pub(crate) fn names(all: &[&str]) -> Vec<Name> {
    all.iter().map(|name| name.parse().expect("a name")).collect()
}

/// A request with these names, and a key that nobody needs afterwards.
pub(crate) fn csr(names: &[Name]) -> Csr {
    csr_of(names, &rcgen::KeyPair::generate().expect("a key"))
}

fn csr_of(names: &[Name], key: &rcgen::KeyPair) -> Csr {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = rcgen::CertificateParams::new(names).expect("parameters");
    params.distinguished_name = rcgen::DistinguishedName::new();
    Csr::from_der(params.serialize_request(key).expect("a request").der()).expect("a request")
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tls_alpn_and_by_http() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let account = pebble.client().account().await.expect("an account");
    for (kind, host) in [(ChallengeKind::TlsAlpn01, "a.example.test"), (ChallengeKind::Http01, "b.example.test")] {
        let names = names(&[host]);
        let csr = csr(&names);
        let solvers = match kind {
            ChallengeKind::TlsAlpn01 => Solvers::new().with(kind, Arc::new(pebble.tls_alpn.clone())),
            _ => Solvers::new().with(kind, Arc::new(pebble.http.clone())),
        };
        let url = account.begin(&names, None).await.expect("an order");
        let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
        let chain = account.proceed(&order, &solvers).await.expect("a certificate");
        assert!(chain.certificates().len() >= 2 && chain.pem().starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(pebble.tls_alpn.is_empty() && pebble.http.is_empty(), "{kind}: everything is withdrawn");
        // Once more: the same certificate.
        let again = account.proceed(&order, &solvers).await.expect("a certificate");
        assert_eq!(again, chain);
    }
}

/// A program that sets records as others do by an API: here that of Pebble's own resolver.
#[tokio::test(flavor = "multi_thread")]
async fn a_zone_and_its_wildcard_by_the_hook() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let (script, log) = (pebble.work.path().join("hook"), pebble.work.path().join("calls"));
    let at = pebble.dns_management;
    let text = format!(
        r#"#!/bin/sh
echo "$1 $2" >> {log}
case "$1" in present) what=set-txt ;; cleanup) what=clear-txt ;; esac
exec curl -sS -o /dev/null -d "{{\"host\": \"$2.\", \"value\": \"$3\"}}" http://127.0.0.1:{at}/$what
"#,
        log = log.display()
    );
    std::fs::write(&script, text).expect("written");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("changed");
    let hook = Hook::new(&script, Duration::from_secs(5)).expect("a hook");
    let solvers = pebble.solvers().with(ChallengeKind::Dns01, Arc::new(hook));
    let account = pebble.client().account().await.expect("an account");
    let names = names(&["example.test", "*.example.test"]);
    let csr = csr(&names);
    let url = account.begin(&names, None).await.expect("an order");
    // The second turn: tls-alpn-01 has failed before, and dns-01 is what the wildcard leaves anyway.
    let order = Order { url: &url, names: &names, csr: &csr, failures: 2 };
    account.proceed(&order, &solvers).await.expect("a certificate");
    let mut calls: Vec<_> = std::fs::read_to_string(&log).expect("calls").lines().map(str::to_owned).collect();
    calls.sort();
    let line = |verb| format!("{verb} _acme-challenge.example.test");
    assert_eq!(calls, [line("cleanup"), line("cleanup"), line("present"), line("present")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_third_nonce_is_refused() {
    let Some(pebble) = Pebble::start(&Habits { refused_nonces: 34, ..Habits::default() }).await else { return };
    let account = loop {
        // Making an account has seven attempts in a row, of which each fails by chance.
        match pebble.client().account().await {
            Ok(account) => break account,
            Err(error) => assert_eq!(error.remedy(), Remedy::NewOrder, "{error:?}"),
        }
    };
    let names = names(&["a.example.test"]);
    let csr = csr(&names);
    let url = loop {
        match account.begin(&names, None).await {
            Ok(url) => break url,
            Err(error) => assert_eq!(error.remedy(), Remedy::NewOrder, "{error:?}"),
        }
    };
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    account.proceed(&order, &pebble.solvers()).await.expect("a certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_found_again_and_a_lost_one_is_told() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let first = pebble.client().account().await.expect("an account");
    let client = pebble.client();
    let again = client.account().await.expect("the same account");
    assert_eq!(first.uri(), again.uri());
    client.forget().await.expect("forgotten");
    let other = client.account().await.expect("another account");
    assert_ne!(first.uri(), other.uri());
    // The order of one account is none of another's.
    let names = names(&["a.example.test"]);
    let (csr, solvers) = (csr(&names), pebble.solvers());
    let url = first.begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    let error = other.proceed(&order, &solvers).await.expect_err("not this account's");
    assert!(matches!(error, Error::OrderGone { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_have_to_be_agreed_to() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let mut settings = pebble.settings();
    settings.agree_terms = false;
    let file = acme::AccountFile::new(pebble.work.path().join("account.json"));
    let client = acme::Client::new(settings, Arc::new(file)).expect("a client");
    let error = client.account().await.expect_err("terms");
    assert!(matches!(&error, Error::TermsNotAgreed { url } if url.starts_with("data:text/plain")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_account_is_bound() {
    const KEY: &str = "3q2-7wDerb7vAN6tvu8A3q2-7wDerb7vAN6tvu8A3q2-7w";
    let habits = Habits { external_account: Some(("kid-1", KEY)), ..Habits::default() };
    let Some(pebble) = Pebble::start(&habits).await else { return };
    let client = |account: Option<ExternalAccount>| {
        let mut settings = pebble.settings();
        settings.external_account = account;
        let file = acme::AccountFile::new(pebble.work.path().join("account.json"));
        acme::Client::new(settings, Arc::new(file)).expect("a client")
    };
    let other = ExternalAccount::new("kid-1", "AAAA").expect("a key");
    for wrong in [None, Some(other)] {
        let error = client(wrong).account().await.expect_err("not bound");
        assert!(matches!(error, Error::ExternalAccount { .. }), "{error:?}");
    }
    let right = ExternalAccount::new("kid-1", KEY).expect("a key");
    let uri = client(Some(right)).account().await.expect("an account").uri().to_owned();
    // It is bound once: afterwards the key may be forgotten.
    assert_eq!(client(None).account().await.expect("the account").uri(), uri);
}

/// Another name than the order's, and a key that Pebble does not take: the requester is told, with the words of Pebble.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_taken() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let account = pebble.client().account().await.expect("an account");
    let names = names(&["a.example.test"]);
    let other = csr(&self::names(&["b.example.test"]));
    let url = account.begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &other, failures: 0 };
    let error = account.proceed(&order, &pebble.solvers()).await.expect_err("refused");
    assert!(matches!(error, Error::Csr { .. }), "{error:?}");
    assert_eq!(error.fault(), acme::Fault::Requester);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_be_verified() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let account = pebble.client().account().await.expect("an account");
    let names = names(&["a.example.test"]);
    let csr = csr(&names);
    let url = account.begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    // A table that nobody serves.
    let solvers = Solvers::new().with(ChallengeKind::Http01, Arc::new(acme::Http01::new()));
    let error = account.proceed(&order, &solvers).await.expect_err("not verified");
    assert!(matches!(&error, Error::AuthorizationFailed { name, .. } if name.to_string() == "a.example.test"));
    assert_eq!(error.remedy(), Remedy::NewOrder);
    let none = account.begin(&names, None).await.expect("an order");
    let order = Order { url: &none, ..order };
    let error = account.proceed(&order, &Solvers::new()).await.expect_err("nothing to prove by");
    assert!(matches!(error, Error::NoChallenge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_once_and_twice() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let account = pebble.client().account().await.expect("an account");
    let names = names(&["a.example.test"]);
    let csr = csr(&names);
    let url = account.begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    let chain = account.proceed(&order, &pebble.solvers()).await.expect("a certificate");
    for _ in 0..2 {
        account.revoke(chain.leaf(), RevocationReason::CessationOfOperation).await.expect("revoked");
    }
}
