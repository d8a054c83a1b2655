//! Every error as its problem document: a snapshot for reading.

use std::error::Error as _;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use api::{Detail, Error};
use pki_core::CsrError;
use tunnel_model::{Kind, Refusal, Unavailable};

/// Stands for what an operator would not want a stranger to read.
const CAUSE: &str = "cause-with-/secret/path";

#[test]
fn problems_are_as_recorded() {
    let mut text =
        "Every error and the problem that clients get: status, type, title, Retry-After; then the detail.\n".to_owned();
    for (label, error) in errors() {
        let problem = error.problem();
        let retry_after = problem.retry_after.map(|wait| format!(", retry after {wait:?}")).unwrap_or_default();
        let detail = match problem.detail {
            Detail::Text(text) => text,
            detail => serde_json::to_string(&detail).expect("JSON"),
        };
        writeln!(
            text,
            "\n{label}\n  {} {} \"{}\"{retry_after}\n  {detail}",
            problem.status, problem.kind, problem.title
        )
        .expect("a String takes everything");
    }
    check_snapshot("problems.txt", &text);
}

#[test]
fn a_5xx_does_not_tell_its_cause() {
    let mut seen = 0;
    for (label, error) in errors() {
        let problem = error.problem();
        // What a public authority has said is no secret of this server.
        let is_the_authoritys = matches!(error, Error::AuthorityFailed { .. } | Error::CertificatePending { .. });
        if problem.status >= 500 && !is_the_authoritys {
            seen += 1;
            let told = serde_json::to_string(&problem).expect("JSON");
            assert!(!told.contains(CAUSE), "{label}: {told}");
            // The log gets it by the chain of sources.
            assert!(error.source().is_some_and(|source| source.to_string().contains(CAUSE)), "{label}");
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn every_variant_is_listed() {
    let labels: Vec<_> = errors().into_iter().map(|(label, _)| label).collect();
    for (source, name) in [
        (include_str!("../../src/error.rs"), "Error"),
        (include_str!("../../../tunnel-model/src/decide.rs"), "Refusal"),
    ] {
        let (_, after) = source.split_once(&format!("pub enum {name} {{\n")).expect("the enum");
        let (body, _) = after.split_once("\n}").expect("its end");
        let variants = body.lines().filter_map(|line| {
            let line = line.strip_prefix("    ")?;
            let is_variant = line.starts_with(|first: char| first.is_ascii_uppercase());
            is_variant.then(|| line.split(['(', ' ', ',']).next().unwrap_or_default())
        });
        for variant in variants.filter(|variant| *variant != "Refused") {
            assert!(labels.iter().any(|label| label.contains(variant)), "{name}::{variant} is not listed");
        }
    }
}

fn errors() -> Vec<(String, Error)> {
    let cause = || std::io::Error::other(CAUSE).into();
    let retry_after = Duration::from_millis(61_500);
    let mut errors = vec![
        Error::AuthorityExhausted { words: "the orders that the authority takes are used up".to_owned(), retry_after },
        Error::AuthorityFailed { words: "the authority could not verify a host".to_owned(), retry_after },
        Error::BodyTooLarge { limit: 65_536 },
        Error::CertificatePending { words: "the certificate has been ordered".to_owned(), retry_after },
        Error::Csr(CsrError::TooLarge { size: 70_000, limit: 16_384 }),
        Error::CsrUnacceptable("the request needs a subjectAltName".to_owned()),
        Error::HandleUnavailable(Refusal::NameTaken { by_identity: true }),
        Error::HandleUnavailable(Refusal::NameTaken { by_identity: false }),
        Error::HandleUnavailable(Refusal::NameUnavailable(Unavailable::Denied)),
        Error::HandleUnavailable(Refusal::NameUnavailable(Unavailable::Reserved)),
        Error::Internal(cause()),
        Error::InvalidField { field: "description", message: "a description has at most 1000 characters".to_owned() },
        Error::InvalidAttach("Adit-Instance is 32 hexadecimal digits"),
        Error::Malformed("expected value at line 1 column 1".to_owned()),
        Error::MethodNotAllowed,
        Error::SecretRefused,
        Error::Timeout,
        Error::TunnelForbidden,
        Error::TunnelNotActive,
        Error::UnknownPath,
        Error::Unauthorized,
        Error::Unavailable(cause()),
        Error::UnsupportedMediaType,
        Error::UnsupportedVersion { why: "the agent speaks other versions" },
        Error::WrongHost,
        Error::WrongShape("missing field `tunnel_name` at line 1 column 2".to_owned()),
    ];
    let refusals = [
        Refusal::AdminKeyForbidden,
        Refusal::CreateQuota { limit: 10, retry_after },
        Refusal::Forbidden,
        Refusal::IdentityOwned,
        Refusal::NameTaken { by_identity: true },
        Refusal::NameTaken { by_identity: false },
        Refusal::NameUnavailable(Unavailable::Denied),
        Refusal::NameUnavailable(Unavailable::Reserved),
        Refusal::NotDeletePending,
        Refusal::NotFound(Kind::ApiKey),
        Refusal::NotFound(Kind::Identity),
        Refusal::NotFound(Kind::Tunnel),
        Refusal::NotPassthrough,
        Refusal::NotSignable,
        Refusal::RestoreWindowOver,
        Refusal::SignQuota { limit: 10, retry_after },
    ];
    errors.extend(refusals.map(Error::Refused));
    errors.into_iter().map(|error| (format!("{error:?}"), error)).collect()
}

fn check_snapshot(file: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, got).expect("the snapshot is written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(got, expected, "{file} differs: run with UPDATE_SNAPSHOTS=1 to write it anew");
}
