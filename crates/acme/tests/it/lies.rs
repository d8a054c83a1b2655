//! What a directory that lies costs: a clear error, in a bounded time, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use acme::{
    AccountFile, CertId, ChallengeKind, Client, Error, Http01, Name, Order, Remedy, RevocationReason, Solvers, Wrong,
};
use pki_core::ChainError;
use serde_json::json;

use crate::liar::{Issued, Liar, Lie, csr};
use crate::orders::names;

fn the_name() -> Vec<Name> {
    names(&["a.example.test"])
}

/// From nothing to a certificate, or to the first error; nothing takes long and nothing stays visible.
async fn obtain(liar: &Liar) -> Result<acme::Chain, Error> {
    let began = Instant::now();
    let shown = Http01::new();
    let result = async {
        let account = liar.client().account().await?;
        let names = the_name();
        let url = account.begin(&names, None).await?;
        let solvers = Solvers::new().with(ChallengeKind::Http01, Arc::new(shown.clone()));
        let order = Order { url: &url, names: &names, csr: &csr(), failures: 0 };
        account.proceed(&order, &solvers).await
    }
    .await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(shown.is_empty());
    result
}

async fn error_of(lie: Lie) -> Error {
    let words = format!("{lie:?}");
    let error = obtain(&Liar::start(lie).await).await.expect_err(&words);
    let told = error.to_string();
    assert!(told.len() < 1000 && told.is_ascii() && !told.contains(char::is_control), "{told:?}");
    error
}

const JSON: (&str, &str) = ("content-type", "application/json");
const PROBLEM: (&str, &str) = ("content-type", "application/problem+json");

fn problem_of(kind: &str) -> String {
    json!({"type": format!("urn:ietf:params:acme:error:{kind}"), "detail": "some\nwords"}).to_string()
}

#[tokio::test]
async fn without_a_lie_there_is_a_certificate() {
    let liar = Liar::start(Lie::None).await;
    let chain = obtain(&liar).await.expect("a certificate");
    assert_eq!(chain.certificates().len(), 2);
    let agents = liar.state.agents.lock().expect("no panic").clone();
    assert!(agents.iter().all(|agent| agent == concat!("adit/", env!("CARGO_PKG_VERSION"))), "{agents:?}");
    liar.client()
        .account()
        .await
        .expect("an account")
        .revoke(chain.leaf(), RevocationReason::Superseded)
        .await
        .expect("revoked");
}

/// A record that stands already: nothing is presented.
#[tokio::test]
async fn by_a_record_that_stays() {
    let liar = Liar::start(Lie::None).await;
    let account = liar.client().account().await.expect("an account");
    let (names, csr) = (the_name(), csr());
    let (record, value) = acme::persistent_record(&names[0], &account.caa_identities()[0], account.uri());
    assert_eq!(record, "_validation-persist.a.example.test");
    assert!(value.starts_with("ca.example; accounturi=https://localhost:") && value.ends_with("/account/1"), "{value}");
    let url = account.begin(&names, None).await.expect("an order");
    let solvers = Solvers::new().with(ChallengeKind::DnsPersist01, Arc::new(acme::Standing));
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    account.proceed(&order, &solvers).await.expect("a certificate");
}

#[tokio::test]
async fn limits_are_told_with_their_end() {
    let rate = || problem_of("rateLimited");
    for (path, status, body) in [
        ("/order", 429, rate()),
        ("/order", 429, "<html>slow down</html>".to_owned()),
        ("/order", 503, String::new()),
        ("/account", 429, rate()),
        ("/dir", 503, String::new()),
        ("/order/1", 429, rate()),
        ("/order/1", 503, String::new()),
        ("/finalize", 429, rate()),
    ] {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs();
        let error = error_of(Lie::Answer(path, status, vec![PROBLEM, ("retry-after", "3600")], body)).await;
        let Error::RateLimited { until: Some(until), .. } = &error else { panic!("{path} {status}: {error:?}") };
        assert!((0..5).contains(&(until.unix() - 3600 - i64::try_from(now).expect("seconds"))), "{until}");
        assert_eq!((error.remedy(), error.not_before()), (Remedy::Again, Some(*until)));
    }
    let error = error_of(Lie::Answer("/order", 400, vec![PROBLEM], rate())).await;
    assert!(matches!(error, Error::RateLimited { until: None, .. }), "{error:?}");
}

#[tokio::test]
async fn answers_that_make_no_sense() {
    let html = ("content-type", "text/html");
    let order = r#"{"status": "pending", "authorizations": [], "finalize": "https://localhost/f"}"#;
    for (lie, part) in [
        (Lie::Answer("/dir", 200, vec![html], "<html>".to_owned()), "type \"text/html\""),
        (Lie::Answer("/dir", 200, vec![JSON], "{}".to_owned()), "no ACME directory"),
        (Lie::Answer("/dir", 200, vec![JSON], "[[".repeat(100_000)), "no ACME directory"),
        (Lie::Answer("/dir", 302, vec![("location", "https://example.test/")], String::new()), "redirect"),
        (Lie::Answer("/order/1", 307, vec![("location", "https://example.test/")], String::new()), "redirect"),
        (Lie::Answer("/order/1", 200, vec![html], "<html>".to_owned()), "type \"text/html\""),
        (Lie::Answer("/order/1", 200, vec![JSON], "null".to_owned()), "JSON"),
        (Lie::Answer("/order/1", 200, vec![JSON], problem_of("malformed")), "JSON"),
        (Lie::Answer("/order/1", 200, vec![JSON], order.to_owned()), "nothing to prove"),
        (Lie::Answer("/order/1", 200, vec![PROBLEM], String::new()), "problem document without one"),
        (Lie::Answer("/certificate", 200, vec![html], "<html>".to_owned()), "type \"text/html\""),
        (Lie::Floods("/dir"), "more than 262144 octets"),
        (Lie::Floods("/order/1"), "more than 262144 octets"),
        (Lie::Changed("/dir", json!({"newOrder": "http://localhost/order"})), "no https URL"),
        (Lie::Changed("/dir", json!({"newNonce": "gopher"})), "no https URL"),
        (Lie::Changed("/order/1", json!({"authorizations": vec!["https://localhost/a"; 1000]})), "1000 authorizations"),
        (
            Lie::Changed("/authz", json!({"identifier": {"type": "dns", "value": "bank.example"}})),
            "\"bank.example\", which was not asked for",
        ),
        (Lie::Changed("/authz", json!({"wildcard": true})), "\"*.a.example.test\", which was not asked for"),
        (
            Lie::Changed(
                "/authz",
                json!({"challenges": [{"type": "http-01", "url": "https://localhost/c", "token": "../../etc/passwd",
                    "status": "pending"}]}),
            ),
            "token of http-01",
        ),
    ] {
        let words = format!("{lie:?}");
        let words = &words[..words.len().min(200)];
        let error = error_of(lie).await;
        assert!(matches!(&error, Error::Nonsense(said) if said.contains(part)), "{words}: {error:?}");
    }
}

/// A document of problems is one, whatever its status.
#[tokio::test]
async fn refusals_say_whose_fault_it_is() {
    for (path, status, kind, label) in [
        ("/order", 200, "serverInternal", "refused"),
        ("/order", 400, "rejectedIdentifier", "names"),
        ("/order", 403, "userActionRequired", "terms_changed"),
        ("/order", 400, "accountDoesNotExist", "account_gone"),
        ("/order/1", 404, "malformed", "order_gone"),
        ("/finalize", 403, "caa", "caa"),
        ("/finalize", 400, "badCSR", "csr"),
        ("/finalize", 403, "unauthorized", "csr"),
        ("/finalize", 400, "badPublicKey", "csr"),
        ("/account", 403, "externalAccountRequired", "external_account"),
        ("/certificate", 404, "malformed", "refused"),
        ("/dir", 502, "", "refused"),
    ] {
        let error = error_of(Lie::Answer(path, status, vec![PROBLEM], problem_of(kind))).await;
        assert_eq!(error.label(), label, "{path} {status} {kind}: {error:?}");
        if kind != "serverInternal" {
            assert!(error.to_string().contains("some words"), "{error}");
        }
    }
}

#[tokio::test]
async fn whoever_is_slow_is_waited_for_in_bounds() {
    for lie in
        [Lie::Hangs("/dir"), Lie::Drips("/dir"), Lie::Hangs("/order/1"), Lie::Drips("/order/1"), Lie::Hangs("/nonce")]
    {
        let error = error_of(lie).await;
        assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
        assert_eq!(error.remedy(), Remedy::Again);
    }
    let pending = json!({"status": "pending"});
    for lie in [Lie::Changed("/order/1", pending.clone()), Lie::Changed("/order/1", json!({"status": "processing"}))] {
        let error = error_of(lie).await;
        assert!(matches!(error, Error::Overdue), "{error:?}");
    }
    // It is taken again and again, and stays as it was.
    let error = error_of(Lie::Changed("/order/1", json!({"status": "ready"}))).await;
    assert!(matches!(&error, Error::Nonsense(words) if words.contains("stays as it was")), "{error:?}");
    let error = error_of(Lie::Nonces).await;
    assert!(matches!(&error, Error::Refused { problem, .. } if problem.kind == "badNonce"), "{error:?}");
}

#[tokio::test]
async fn an_authority_that_stumbles_is_asked_again() {
    obtain(&Liar::start(Lie::Stumbles(3)).await).await.expect("a certificate");
    obtain(&Liar::start(Lie::Quicker).await).await.expect("a certificate");
}

#[tokio::test]
async fn an_order_that_failed_has_a_reason() {
    let invalid = json!({"status": "invalid"});
    let error = error_of(Lie::Changed("/order/1", invalid.clone())).await;
    assert!(matches!(&error, Error::OrderFailed { problem } if problem.detail.contains("no reason")), "{error:?}");
    let error = error_of(Lie::Changed("/authz", invalid)).await;
    assert!(matches!(&error, Error::AuthorizationFailed { problem, .. } if problem.detail.contains("no reason")));
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_handed_to_nobody() {
    type IsRight = fn(&Wrong) -> bool;
    let all: [(Issued, IsRight); 6] = [
        (Issued::OtherKey, |wrong| matches!(wrong, Wrong::Key)),
        (Issued::OtherName, |wrong| matches!(wrong, Wrong::Names { .. })),
        (Issued::OneMoreName, |wrong| matches!(wrong, Wrong::Names { .. })),
        (Issued::ForClients, |wrong| matches!(wrong, Wrong::Usage { .. })),
        (Issued::OtherRoot, |wrong| matches!(wrong, Wrong::Chain(_))),
        (Issued::NoIntermediate, |wrong| matches!(wrong, Wrong::Chain(_))),
    ];
    for (issued, is_right) in all {
        let error = error_of(Lie::Issues(issued)).await;
        let Error::Wrong { wrong, leaf: Some(_) } = &error else { panic!("{issued:?}: {error:?}") };
        assert!(is_right(wrong), "{issued:?}: {wrong:?}");
    }
    // Nothing is wrong with these but the time: perhaps ours.
    for issued in [Issued::Expired, Issued::FromTomorrow] {
        let error = error_of(Lie::Issues(issued)).await;
        let Error::NotNow { wrong: Wrong::Chain(wrong), .. } = &error else { panic!("{issued:?}: {error:?}") };
        assert!(matches!(wrong, ChainError::Expired { .. } | ChainError::NotYetValid { .. }), "{wrong:?}");
        assert_eq!((error.remedy(), error.fault()), (Remedy::Again, acme::Fault::Operator));
    }
    let pem = ("content-type", "application/pem-certificate-chain");
    let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    for body in ["", "rubbish", "-----BEGIN CERTIFICATE-----\n", block, &block.repeat(1000)] {
        let error = error_of(Lie::Answer("/certificate", 200, vec![pem], body.to_owned())).await;
        assert!(matches!(error, Error::Wrong { leaf: None, .. }), "{body}: {error:?}");
    }
}

#[tokio::test]
async fn a_clock_that_differs_is_seen() {
    let mut liar = Liar::start(Lie::Date("Thu, 03 Dec 2026 10:00:00 GMT")).await;
    let ours = pki_core::Time::from_unix(1_796_032_800); // 2026-11-30T10:00:00Z
    liar.settings.clock = Arc::new(move || ours);
    let client = liar.client();
    assert_eq!(client.clock_ahead(), None);
    client.account().await.expect("an account");
    assert_eq!(client.clock_ahead(), Some(3 * 86_400));
}

#[tokio::test]
async fn renewals_are_told_and_replace() {
    let liar = Liar::start(Lie::Replaced).await;
    let chain = obtain(&liar).await.expect("a certificate");
    let id = CertId::of(chain.leaf()).expect("an identifier");
    let account = liar.client().account().await.expect("an account");
    let renewal = account.renewal(&id).await.expect("a window");
    assert_eq!(renewal.window.start.to_string(), "2026-11-22T13:30:00Z");
    // `Retry-After` is in whole seconds of two clocks.
    assert!((7190..=7200).contains(&renewal.ask_again_after.as_secs()), "{renewal:?}");
    account.begin(&the_name(), Some(&id)).await.expect("an order without it");
    let asked = liar.state.new_orders.lock().expect("no panic").clone();
    let replaced: Vec<_> = asked.iter().map(|order| order["replaces"].as_str().map(str::to_owned)).collect();
    assert_eq!(replaced, [None, Some(id.to_string()), None]);
    let honest = Liar::start(Lie::None).await;
    let account = honest.client().account().await.expect("an account");
    account.begin(&the_name(), Some(&id)).await.expect("an order");
    assert_eq!(honest.state.new_orders.lock().expect("no panic")[0]["replaces"], id.to_string());
    // One that has not understood is told without it.
    let other = Liar::start(Lie::Changed("/order", json!({"replaces": null}))).await;
    let account = other.client().account().await.expect("an account");
    account.begin(&the_name(), Some(&id)).await.expect("an order");
    assert_eq!(other.state.new_orders.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn settings_that_the_authority_does_not_know() {
    let mut liar = Liar::start(Lie::None).await;
    liar.settings.profile = Some("shortlived".to_owned());
    let error = obtain(&liar).await.expect_err("no such profile");
    assert!(matches!(error, Error::UnknownProfile { .. }), "{error:?}");
    let meta = json!({"profiles": {"shortlived": "six days"}, "externalAccountRequired": true});
    let mut liar = Liar::start(Lie::Changed("/dir", json!({"meta": meta}))).await;
    liar.settings.profile = Some("shortlived".to_owned());
    let error = obtain(&liar).await.expect_err("no external account");
    assert!(matches!(error, Error::ExternalAccount { .. }), "{error:?}");
    liar.settings.external_account = Some(acme::ExternalAccount::new("kid", "AAAA").expect("a key"));
    obtain(&liar).await.expect("a certificate");
    assert_eq!(liar.state.new_orders.lock().expect("no panic")[0]["profile"], "shortlived");
}

/// From staging to production and back.
#[tokio::test]
async fn accounts_of_two_authorities_are_kept_in_one_file() {
    let (one, other) = (Liar::start(Lie::None).await, Liar::start(Lie::None).await);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("account.json");
    let client = |liar: &Liar| Client::new(liar.settings.clone(), Arc::new(AccountFile::new(&path))).expect("a client");
    for liar in [&one, &other, &one, &other] {
        client(liar).account().await.expect("an account");
    }
    assert_eq!([&one, &other].map(|liar| liar.accounts()), [1, 1]);
    client(&one).forget().await.expect("forgotten");
    for liar in [&one, &other] {
        client(liar).account().await.expect("an account");
    }
    assert_eq!([&one, &other].map(|liar| liar.accounts()), [2, 1]);
    std::fs::write(&path, "rubbish").expect("written");
    let error = client(&one).account().await.expect_err("nothing is overwritten");
    assert!(matches!(error, Error::AccountStore(_)), "{error:?}");
    assert_eq!(std::fs::read(&path).expect("a file"), b"rubbish");
}

/// Nobody is trusted but whom the settings name.
#[tokio::test]
async fn an_authority_that_is_not_trusted() {
    let (liar, other) = (Liar::start(Lie::None).await, Liar::start(Lie::None).await);
    let mut settings = other.settings.clone();
    settings.directory.clone_from(&liar.url);
    let directory = tempfile::tempdir().expect("a directory");
    let file = AccountFile::new(directory.path().join("account.json"));
    let error = Client::new(settings, Arc::new(file)).expect("a client").account().await.expect_err("not trusted");
    assert!(matches!(&error, Error::Unreachable(words) if words.contains("certificate")), "{error:?}");
}
