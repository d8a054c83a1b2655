//! What the database tells: what was ordered this week, and what ends soon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use acme::{Budget, Rate};
use pki_core::Time;
use store::{
    Ask, CertificateFilter, Clock as _, Holder, Host, IssuedCertificate, Ordered, Page, Place, Records, SystemClock,
};
use tunnel_model::{Issuer, Timestamp};

use super::host::blocking;
use super::{Finding, SOON_DAYS, Seen, in_words, list};

const DAY: Duration = Duration::from_secs(86_400);
/// Of a list that may be long, as many are told.
const SHOWN: usize = 5;

/// How many certificates the public authority still issues this week, and what has failed lately.
pub(super) async fn budget(seen: Arc<Seen>) -> Vec<Finding> {
    if !seen.is_public() {
        return Vec::new();
    }
    blocking(move || {
        let now = SystemClock.now();
        let rate = Rate { count: seen.settings.acme.certificates_per_week, ..Budget::default().domain };
        let since = now.minus(rate.window);
        let had = read(&seen, "acme.budget", |records| {
            let filter = CertificateFilter { issuer: Some(Issuer::Acme), ..CertificateFilter::default() };
            let page = Page { after: Some(Place { created_at: since, id: [0; 16] }), limit: None };
            let issued = records.certificates(&filter, page)?.into_iter();
            let issued = issued.map(|one| (one.fingerprint, one.issued_at.unwrap_or(now))).collect();
            Ok((records.ordered_since(since)?, issued))
        });
        let directory = seen.settings.acme.directory.as_deref().unwrap_or_default();
        match had {
            Ok(had) => {
                let (ordered, issued): (_, Vec<_>) = had.unwrap_or_default();
                tell(directory, &ordered, &issued, rate, now)
            }
            Err(finding) => vec![finding],
        }
    })
    .await
}

/// `issued` are fingerprints of the public authority's certificates, and when they came.
fn tell(
    directory: &str,
    ordered: &[Ordered],
    issued: &[([u8; 32], Timestamp)],
    rate: Rate,
    now: Timestamp,
) -> Vec<Finding> {
    // As the server counts them when it orders.
    let is_free = |one: &&Ordered| one.ask == Ask::RenewalInWindow || one.directory != directory;
    let free: Vec<_> = ordered.iter().filter(is_free).filter_map(|one| Some(one.issued?.1)).collect();
    let issued = issued.iter().filter(|(fingerprint, _)| !free.contains(fingerprint)).map(|(_, at)| *at);
    let pending = ordered.iter().filter(|one| one.issued.is_none() && one.failed.is_none() && !is_free(one));
    let spent: Vec<Time> = issued.chain(pending.map(|one| one.begun_at)).map(time).collect();
    let left = rate.left(&spent, time(now));
    let detail = format!("{left} of {} new certificates are left for these 7 days", rate.count);
    let budget = match rate.free_at(&spent, time(now)) {
        Some(free_at) => Finding::warn(
            "acme.budget",
            format!("{detail}: new hosts get none before {free_at}"),
            "wait, or have one certificate for all hosts by dns-01; ask the authority for a higher limit",
        ),
        None if left <= rate.count / 10 => Finding::warn("acme.budget", detail, "make few new hosts for now"),
        None => Finding::ok("acme.budget", detail),
    };
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, cause) in ordered.iter().filter_map(|one| one.failed.as_ref()).filter(|(at, _)| *at > now.minus(DAY)) {
        *causes.entry(cause).or_default() += 1;
    }
    if causes.is_empty() {
        return vec![budget];
    }
    let told = list(causes.iter().map(|(cause, count)| format!("{count} by {cause}")));
    let detail = format!("orders that have failed within a day: {told}");
    vec![budget, Finding::warn("acme.failures", detail, "the server's log has what the authority said")]
}

/// Which certificates on record end soon, and have no successor?
pub(super) async fn ends(seen: Arc<Seen>) -> Vec<Finding> {
    blocking(move || {
        const NAME: &str = "certificates.record";
        const REMEDY: &str =
            "agents renew when 14 days are left, if they run; the edge's own are renewed by the server: see its log";
        let now = SystemClock.now();
        let soon = now.plus(DAY * u32::try_from(SOON_DAYS).unwrap_or_default());
        let ending = read(&seen, NAME, |records| {
            let good = CertificateFilter { revoked: Some(false), ..CertificateFilter::default() };
            let filter = CertificateFilter { ends_from: Some(now), ends_before: Some(soon), ..good.clone() };
            let mut ending = Vec::new();
            for certificate in records.certificates(&filter, Page { after: None, limit: Some(1000) })? {
                let host = host(&certificate, seen.zone());
                let later = CertificateFilter { host: Some(host.clone()), ends_from: Some(soon), ..good.clone() };
                if records.certificates(&later, Page { after: None, limit: Some(1) })?.is_empty() {
                    ending.push(host.host);
                }
            }
            ending.sort();
            ending.dedup();
            Ok(ending)
        });
        vec![match ending {
            Err(finding) => finding,
            Ok(None) => Finding::ok(NAME, "there is no database yet"),
            Ok(Some(hosts)) if hosts.is_empty() => Finding::ok(NAME, format!("none ends within {SOON_DAYS} days")),
            Ok(Some(hosts)) => {
                let more = hosts.len().saturating_sub(SHOWN);
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                let detail = format!("within {SOON_DAYS} days end those of {}{more}", list(hosts.iter().take(SHOWN)));
                Finding::warn(NAME, detail, REMEDY)
            }
        }]
    })
    .await
}

fn host(certificate: &IssuedCertificate, zone: &str) -> Host {
    match &certificate.holder {
        Holder::Tunnel { name, .. } => Host { host: format!("{}.{zone}", name.as_str()), name: Some(name.clone()) },
        Holder::Edge(host) => Host { host: host.clone(), name: None },
    }
}

/// What the database says; `None` if there is none yet, or one that the next start brings up to date.
fn read<T>(
    seen: &Seen,
    name: &str,
    query: impl FnOnce(&Records) -> Result<T, store::StoreError>,
) -> Result<Option<T>, Finding> {
    const REMEDY: &str =
        "run this as the server's user; if the server has the same trouble, see Backup in docs/operating.md";
    let failed = |error: &dyn std::error::Error| Finding::fail(name, in_words(error), REMEDY);
    match Records::open(&seen.settings.general.data_dir).map_err(|error| failed(&error))? {
        Some(records) if records.is_current() => query(&records).map(Some).map_err(|error| failed(&error)),
        _ => Ok(None),
    }
}

fn time(timestamp: Timestamp) -> Time {
    Time::from_unix(timestamp.micros().div_euclid(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: &str = "https://ca.test/directory";
    use crate::check::Status;

    #[test]
    fn the_budget_is_what_the_server_counts() {
        let now = Timestamp::from_micros(1_795_354_200_000_000);
        let rate = Rate::new(3, 7 * 86_400);
        let order = |number: u8, days: u32, ask, failed: Option<&str>| {
            let at = now.minus(DAY * days);
            Ordered {
                directory: DIRECTORY.to_owned(),
                names: vec!["a.example.org".to_owned()],
                ask,
                begun_at: at,
                issued: failed.is_none().then_some((at, [number; 32])),
                failed: failed.map(|cause| (at, cause.to_owned())),
            }
        };
        let issued = |orders: &[Ordered]| {
            orders.iter().filter_map(|one| one.issued).map(|(at, fingerprint)| (fingerprint, at)).collect::<Vec<_>>()
        };
        let mut ordered = vec![
            order(1, 1, Ask::New, None),
            order(2, 2, Ask::RenewalInWindow, None),
            order(3, 3, Ask::New, Some("caa")),
        ];
        let told = tell(DIRECTORY, &ordered, &issued(&ordered), rate, now);
        assert_eq!((told.len(), told[0].status), (1, Status::Ok));
        assert!(told[0].detail.starts_with("2 of 3 "), "{}", told[0].detail);
        let pending = Ordered { issued: None, ..order(4, 2, Ask::Renewal, None) };
        ordered.extend([pending, order(5, 3, Ask::New, None), order(6, 0, Ask::New, Some("caa"))]);
        let told = tell(DIRECTORY, &ordered, &issued(&ordered), rate, now);
        assert_eq!(told.iter().map(|one| one.status).collect::<Vec<_>>(), [Status::Warn, Status::Warn]);
        assert!(told[0].detail.starts_with("0 of 3 "), "{}", told[0].detail);
        assert!(told[1].detail.ends_with("1 by caa"), "{}", told[1].detail);
    }
}
