//! The public authority: does it answer, and does it want anything that is not set?

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use acme::ChallengeKind;
use hickory_proto::rr::{RData, RecordType};
use pki_core::DnsName;

use super::{Finding, Seen, list};
use crate::settings::acme::{Acme, Fallback};

/// Looks into its directory, and at the challenges that would be answered.
pub(super) async fn check(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "acme.directory";
    let Some(directory) = seen.directory().await else { return Vec::new() };
    let settings = &seen.settings.acme;
    let url = settings.directory.as_deref().unwrap_or_default();
    let client = match &seen.client {
        Some(Ok(client)) => client,
        Some(Err(error)) => return vec![Finding::fail(NAME, error, "change the setting that it names")],
        None => return Vec::new(),
    };
    let mut findings = Vec::new();
    let account = seen.account().await;
    match directory {
        Err(error) => {
            let remedy = "see that this machine reaches it (HTTPS outwards, a resolver, the clock) and that \
                          acme_directory and acme_ca are right";
            findings.push(Finding::fail(NAME, format!("{url} cannot be used: {error}"), remedy));
        }
        Ok(directory) => {
            findings.push(Finding::ok(NAME, format!("{url} answers")));
            findings.extend(wanted(directory, settings, matches!(account, Ok(Some(_))), client));
        }
    }
    findings.push(match account {
        Ok(Some(account)) => Finding::ok("acme.account", account),
        Ok(None) => Finding::ok("acme.account", "there is none yet: the server makes it at its first order"),
        Err(error) => Finding::fail("acme.account", error, "mend acme-account.json in the data directory"),
    });
    if settings.challenges().contains(&ChallengeKind::DnsPersist01)
        && let (Ok(directory), Ok(Some(account))) = (directory, account)
    {
        findings.extend(standing(&seen, directory, account).await);
    }
    findings.extend(challenges(&seen));
    findings
}

/// The record of dns-persist-01, which stays: is it there?
async fn standing(seen: &Seen, directory: &acme::Directory, account: &str) -> Option<Finding> {
    const NAME: &str = "acme.persistent";
    let zone: DnsName = seen.zone().parse().ok()?;
    let Some(issuer) = directory.caa_identities().first() else {
        let detail = "the authority does not say by which name dns-persist-01 is to name it";
        return Some(Finding::fail(NAME, detail, "use another one of acme_challenge"));
    };
    let (name, value) = acme::persistent_record(&acme::Name::wildcard(zone), issuer, account);
    let has_value = |data: &RData| match data {
        RData::TXT(text) => text.txt_data.concat() == value.as_bytes(),
        _ => false,
    };
    Some(match seen.resolver.records(&name, RecordType::TXT).await {
        Ok(records) if records.iter().any(has_value) => Finding::ok(NAME, format!("{name} has the record")),
        Ok(_) => Finding::fail(NAME, format!("{name} has no such record"), format!("make it: {name} TXT \"{value}\"")),
        Err(error) => Finding::warn(NAME, format!("{name} is not seen: {error}"), format!("{name} TXT \"{value}\"")),
    })
}

/// What the authority wants before it makes an account or takes an order.
fn wanted(directory: &acme::Directory, settings: &Acme, has_account: bool, client: &acme::Client) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(terms) = directory.terms() {
        findings.push(if settings.agree_terms || has_account {
            Finding::ok("acme.terms", format!("agreed to {terms}"))
        } else {
            Finding::fail(
                "acme.terms",
                format!("nobody has agreed to {terms}"),
                "read them, and say --acme-agree-terms",
            )
        });
    }
    if directory.wants_external_account() {
        let is_given = client.settings().external_account.is_some();
        findings.push(if is_given || has_account {
            Finding::ok("acme.external_account", "the authority wants one, and it is given")
        } else {
            let remedy = "get a key id and a key from the authority: --acme-eab-key-id, and ADIT_ACME_EAB_KEY_FILE";
            Finding::fail("acme.external_account", "the authority makes no account without one", remedy)
        });
    }
    if let Some(profile) = &settings.profile {
        let known = directory.profiles();
        findings.push(if known.contains_key(profile) {
            Finding::ok("acme.profile", profile)
        } else {
            let detail = format!("the authority has no profile {profile:?}; it has: {}", list(known.keys()));
            Finding::fail("acme.profile", detail, "use one of those, or none")
        });
    }
    findings
}

/// How names would be proved, and what that needs.
fn challenges(seen: &Seen) -> Vec<Finding> {
    const NAME: &str = "acme.challenges";
    let settings = &seen.settings.acme;
    let kinds = settings.challenges();
    let mut findings = Vec::new();
    for kind in &kinds {
        let finding = match kind {
            ChallengeKind::Dns01 => settings.dns_hook.as_ref().and_then(|path| {
                let is_program =
                    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
                let detail = format!("acme_dns_hook {} is no program that can be run", path.display());
                (!is_program).then(|| Finding::fail("acme.hook", detail, "chmod 755, or another path"))
            }),
            _ => None,
        };
        findings.extend(finding);
    }
    let with_wildcard = kinds.iter().any(|kind| kind.proves_wildcards());
    let words = match (with_wildcard, settings.issuer_fallback) {
        (true, Fallback::Refuse) => "one certificate for the zone and all hosts of the edge",
        (true, Fallback::Private) => "a certificate for each host, because of issuer_fallback",
        (false, _) => "a certificate for each host, which counts in the authority's limits: dns-01 would make it one",
    };
    let mut needs = Vec::new();
    if kinds.contains(&ChallengeKind::TlsAlpn01) {
        needs.push(format!("port 443 of the public addresses has to lead to {}", seen.settings.edge.listen));
    }
    if let Some(address) = settings.http_address().filter(|_| kinds.contains(&ChallengeKind::Http01)) {
        needs.push(format!("port 80 to {address}"));
    }
    let needs = if needs.is_empty() { String::new() } else { format!("; {}", needs.join(", ")) };
    findings.push(Finding::ok(NAME, format!("{}: {words}{needs}", list(&kinds))));
    findings
}
