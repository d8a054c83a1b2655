//! This machine: settings, the data directory, the clock, certificate files.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use acme::ChallengeKind;
use pki_core::Time;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;

use super::{Finding, SOON_DAYS, Seen, days_until, list};
use crate::pem::Pair;
use crate::reload::{certified, edge_pair, now};
use crate::settings::Settings;
use crate::settings::acme::{CaaPolicy, Fallback, Issuer};

/// Does everything that was set fit together?
pub(super) async fn settings(seen: Arc<Seen>) -> Vec<Finding> {
    let Settings { acme, edge, .. } = &seen.settings;
    let mut findings = vec![zone(seen.zone(), acme.issuer)];
    let mut warn = |name: &str, detail: &str, remedy: &str| {
        findings.push(Finding::warn(format!("settings.{name}"), detail, remedy));
    };
    if acme.issuer == Issuer::Private && acme.directory.is_some() {
        warn("issuer", "acme_directory is set and issuer is private: strangers trust no certificate", "--issuer acme");
    }
    if acme.issuer == Issuer::Acme && acme.issuer_fallback == Fallback::Private {
        let detail = "where the public authority issues nothing, there are certificates that strangers do not trust, and \
                      there is no certificate for all hosts";
        warn("issuer_fallback", detail, "--issuer-fallback refuse, unless your visitors trust ca/root.crt");
    }
    if acme.issuer == Issuer::Private && acme.caa != CaaPolicy::None {
        warn("acme_caa", "acme_caa is set and issuer is private: nothing is said", "--acme-caa none");
    }
    let is_wanted = |kind| acme.challenges().contains(&kind);
    if acme.issuer == Issuer::Acme && acme.dns_hook.is_some() && !is_wanted(ChallengeKind::Dns01) {
        warn("acme_dns_hook", "acme_dns_hook is set and dns-01 is not among acme_challenge", "add dns-01");
    }
    if acme.issuer == Issuer::Acme && edge.tls_cert.is_some() {
        let detail = "edge_tls_cert is shown for what it covers; the public authority is asked for the rest";
        warn("edge_tls_cert", detail, "remove edge_tls_cert, unless that is what you want");
    }
    if acme.issuer == Issuer::Acme
        && acme.ca.is_none()
        && acme.directory.as_ref().is_some_and(|url| url.contains("staging"))
    {
        let detail = "what is issued for trying ends in roots that no system has, and a certificate that does not end in \
                      a trusted root is not used";
        let remedy = "--acme-ca FILE with the authority's roots for trying";
        warn("acme_ca", detail, remedy);
    }
    // An authority on this machine sees what is on this machine.
    let is_distant = !acme.directory.as_deref().is_some_and(|url| url.starts_with("https://localhost"));
    let hidden: Vec<_> = acme.addresses.iter().filter(|address| !is_global(**address)).collect();
    if acme.issuer == Issuer::Acme && is_distant && !hidden.is_empty() {
        let detail = format!("public_address has {}, which nobody reaches from the internet", list(hidden));
        warn("public_address", &detail, "name the addresses that visitors dial, those of the router if there is one");
    }
    findings
}

fn zone(zone: &str, issuer: Issuer) -> Finding {
    const NAME: &str = "settings.zone";
    const REMEDY: &str = "--zone with a name below a domain that you own";
    match (unsuitable(zone), issuer) {
        (None, _) => Finding::ok(NAME, zone),
        (Some(why), Issuer::Acme) => {
            Finding::fail(NAME, format!("no public authority issues for {zone}: {why}"), REMEDY)
        }
        (Some(why), Issuer::Private) => {
            let detail = format!("{zone} is good for trying: {why}, and public authorities do not issue for it");
            Finding::warn(NAME, detail, format!("for visitors from elsewhere: {REMEDY}"))
        }
    }
}

/// Why nobody out there can look a zone up.
pub(super) fn unsuitable(zone: &str) -> Option<&'static str> {
    let (_, last) = zone.rsplit_once('.').unwrap_or(("", zone));
    match last {
        "localhost" => Some("it means this machine, on every machine (RFC 6761)"),
        "local" => Some("it is for multicast DNS (RFC 6762)"),
        "example" | "invalid" | "test" => Some("its last label is reserved (RFC 6761)"),
        "internal" | "corp" | "home" | "lan" | "mail" => Some("its last label is for private networks"),
        "alt" | "onion" => Some("it is not in the DNS (RFC 9476, RFC 7686)"),
        "arpa" => Some("arpa is for the network itself (RFC 3172)"),
        _ if !zone.contains('.') => Some("it has one label only"),
        _ => None,
    }
}

/// Can an address be reached from elsewhere?
fn is_global(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(four) => {
            let is_shared = four.octets()[0] == 100 && four.octets()[1] & 0xc0 == 0x40;
            !(four.is_private() || four.is_loopback() || four.is_link_local() || four.is_unspecified() || is_shared)
        }
        std::net::IpAddr::V6(six) => {
            !(six.is_unique_local() || six.is_unicast_link_local() || six.is_loopback() || six.is_unspecified())
        }
    }
}

/// The data directory, and the authority in it.
pub(super) async fn data_directory(seen: Arc<Seen>) -> Vec<Finding> {
    blocking(move || {
        let directory = &seen.settings.general.data_dir;
        let mut findings = vec![directory_itself(directory)];
        if directory.read_dir().is_ok() {
            findings.push(authority(&seen.settings));
        }
        findings
    })
    .await
}

fn directory_itself(directory: &Path) -> Finding {
    const NAME: &str = "data.directory";
    let shown = directory.display();
    let metadata = match directory.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Finding::ok(NAME, format!("{shown} is not there yet: the first start makes it"));
        }
        Err(error) => return Finding::fail(NAME, format!("{shown}: {error}"), "let this user look into it"),
    };
    if !metadata.is_dir() {
        return Finding::fail(NAME, format!("{shown} is no directory"), "name another one with --data-dir");
    }
    if let Err(error) = crate::backup::require_restored(directory) {
        return Finding::fail(NAME, error.to_string(), "finish the restore");
    }
    if let Err(error) = directory.read_dir() {
        let remedy = "run this command as the server's user, with sudo -u";
        return Finding::fail(NAME, format!("{shown} cannot be looked into: {error}"), remedy);
    }
    let (owner, user) = (metadata.uid(), rustix::process::geteuid());
    if owner != user.as_raw() {
        let detail = format!("{shown} belongs to user {owner}, and this is user {}", user.as_raw());
        return Finding::warn(NAME, detail, "run this command and the server as that user: a service's User=");
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let detail = format!("{shown} has mode {mode:04o}: others can look into it");
        return Finding::warn(NAME, detail, format!("chmod 700 {shown}"));
    }
    Finding::ok(NAME, format!("{shown}, mode {mode:04o}, user {owner}"))
}

fn authority(settings: &Settings) -> Finding {
    const NAME: &str = "data.authority";
    let path = settings.general.data_dir.join("ca");
    if !path.exists() {
        return Finding::ok(NAME, "there is no certificate authority yet: the first start makes it");
    }
    let opened = crate::start::passphrase().and_then(|passphrase| {
        let ca = ca_dir::CaDir::open(&path, passphrase.as_ref())?;
        let validity = ca.validity()?;
        Ok((validity, crate::start::authority(settings, ca)?.not_after()))
    });
    let (validity, not_after) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            return Finding::fail(NAME, format!("{error:#}"), "the server does not start before that is mended");
        }
    };
    if let Err(error) = validity.check(now()) {
        let remedy = "set the clock, or renew the issuing certificate as docs/operating.md says";
        return Finding::fail(NAME, error.to_string(), remedy);
    }
    let days = days_until(not_after);
    let detail = format!("the issuing certificate is good for {days} days, until {not_after}");
    if days < 2 * i64::from(settings.tunnels.cert_days) {
        return Finding::warn(NAME, detail, "renew it as docs/operating.md says: certificates cannot outlive it");
    }
    Finding::ok(NAME, detail)
}

/// Does the clock agree with what is known of the time?
pub(super) async fn clock(seen: Arc<Seen>) -> Vec<Finding> {
    const REMEDY: &str = "have the machine's clock set by NTP, such as systemd-timesyncd or chrony";
    let mut findings = match ca_dir::check_clock(now()) {
        Ok(()) => vec![Finding::ok("clock.itself", format!("{}", now()))],
        Err(error) => vec![Finding::fail("clock.itself", error.to_string(), REMEDY)],
    };
    let directory = seen.directory().await;
    let ahead = seen.client().and_then(acme::Client::clock_ahead);
    if let (Some(Ok(_)), Some(ahead)) = (directory, ahead) {
        const NAME: &str = "clock.authority";
        let detail = match ahead {
            0 => "the same as the public authority's".to_owned(),
            1.. => format!("{ahead} s behind the public authority's"),
            _ => format!("{} s ahead of the public authority's", ahead.unsigned_abs()),
        };
        findings.push(match ahead.unsigned_abs() {
            0..=30 => Finding::ok(NAME, detail),
            31..=300 => Finding::warn(NAME, detail, REMEDY),
            _ => Finding::fail(NAME, detail, REMEDY),
        });
    }
    findings
}

/// Certificates that an operator names: can they be read, do they fit, how long are they good?
pub(super) async fn pairs(seen: Arc<Seen>) -> Vec<Finding> {
    blocking(move || {
        let settings = &seen.settings;
        let mut findings = Vec::new();
        if let Some(pair) = edge_pair(settings) {
            findings.push(pair_in_words("certificates.edge", pair, Some([seen.zone(), &seen.probe])));
        }
        if settings.panel.listen.0.0.is_some() && settings.panel.tls_cert.is_some() {
            findings.push(pair_in_words("certificates.panel", crate::panel::pair(settings), None));
        }
        findings
    })
    .await
}

/// `hosts` are the zone and a name below it.
fn pair_in_words(name: &str, pair: anyhow::Result<Pair>, hosts: Option<[&str; 2]>) -> Finding {
    const RENEW: &str = "renew it; the server reads the files when they change";
    let pair = match pair {
        Ok(pair) => pair,
        Err(error) => return Finding::fail(name, format!("{error:#}"), "mend the file that it names"),
    };
    if let Err(error) = pair.check_validity(now()) {
        return Finding::fail(name, error.to_string(), RENEW);
    }
    let end = pair.ends_at();
    let leaf = pair.chain.first().cloned();
    if let Err(error) = certified(pair) {
        return Finding::fail(
            name,
            format!("the certificate and the key do not fit: {error:#}"),
            "name the key that it was made for",
        );
    }
    let covers = |host: &str| {
        let certificate = leaf.as_ref().and_then(|leaf| ParsedCertificate::try_from(leaf).ok())?;
        let host = ServerName::try_from(host.to_owned()).ok()?;
        verify_server_name(&certificate, &host).ok()
    };
    let detail = end.map_or_else(String::new, in_days);
    match hosts.map(|hosts| hosts.map(|host| covers(host).is_some())) {
        None => soon(name, detail, end, RENEW),
        Some([true, true]) => soon(name, format!("for the zone and all hosts, {detail}"), end, RENEW),
        Some([true, false]) => soon(name, format!("for the zone and not for all hosts, {detail}"), end, RENEW),
        Some([false, true]) => soon(name, format!("for all hosts and not for the zone, {detail}"), end, RENEW),
        Some([false, false]) => Finding::warn(
            name,
            format!("neither for the zone nor for all hosts, {detail}: those get others"),
            "name a certificate for the zone and for *.ZONE",
        ),
    }
}

fn in_days(end: Time) -> String {
    format!("good for {} days, until {end}", days_until(end))
}

fn soon(name: &str, detail: String, end: Option<Time>, remedy: &str) -> Finding {
    match end {
        Some(end) if days_until(end) < SOON_DAYS => Finding::warn(name, detail, remedy),
        _ => Finding::ok(name, detail),
    }
}

/// Where waiting for a disk keeps nobody.
pub(super) async fn blocking(look: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    let failed = |error| vec![Finding::fail("check", format!("{error}"), "tell the maintainers")];
    tokio::task::spawn_blocking(look).await.unwrap_or_else(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn public_authorities_issue_for_names_that_everybody_can_look_up() {
        for (name, is_suitable) in [
            ("tunnels.example.org", true),
            ("adit.dev", true),
            ("localhost.example.net", true),
            ("adit.localhost", false),
            ("printer.local", false),
            ("a.test", false),
            ("a.example", false),
            ("prod.internal", false),
            ("a.home.arpa", false),
            ("hidden.onion", false),
            ("com", false),
        ] {
            assert_eq!(unsuitable(name).is_none(), is_suitable, "{name}");
        }
        assert_eq!(zone("a.test", Issuer::Acme).status, Status::Fail);
        assert_eq!(zone("a.test", Issuer::Private).status, Status::Warn);
    }

    #[test]
    fn private_addresses_are_not_reached_from_elsewhere() {
        for (address, wanted) in [
            ("192.0.2.1", true),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("169.254.1.1", false),
            ("2001:db8::1", true),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
        ] {
            assert_eq!(is_global(address.parse().expect("an address")), wanted, "{address}");
        }
    }
}
