//! The zone in the DNS: where its names lead, what our own name server says, who is asked for it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use super::host::unsuitable;
use super::resolver::{Transport, ask};
use super::{Finding, Seen, list};
use crate::panel::reachable;

/// Do the zone and the hosts below it lead here?
pub(super) async fn zone(seen: Arc<Seen>) -> Vec<Finding> {
    if seen.zone().rsplit('.').next() == Some("localhost") && seen.settings.acme.addresses.is_empty() {
        let detail =
            "not asked for: browsers and curl find names below localhost on this machine, other programs may not";
        return vec![Finding::ok("dns.zone", detail)];
    }
    let [zone, probe] = seen.addresses().await;
    let public = &seen.settings.acme.addresses;
    let is_delegated = seen.settings.acme.dns_address().is_some();
    let is_silent = is_delegated && seen.server().await.is_none();
    let one = |what: &str, record: &str, host: &str, found: &Result<Vec<IpAddr>, String>| {
        let mut finding = leads_here(&format!("dns.{what}"), record, host, found, public);
        let is_found = found.as_ref().is_ok_and(|found| !found.is_empty());
        if is_delegated && !is_found {
            finding.remedy = Some(format!("delegate {} to this machine: see `delegation` below", seen.zone()));
        }
        // Nobody else answers for a zone that is ours, and nobody elsewhere looks such a name up.
        if unsuitable(seen.zone()).is_some() || (is_silent && !is_found) { finding.softened() } else { finding }
    };
    let every = format!("*.{}", seen.zone());
    let mut findings = vec![one("zone", seen.zone(), seen.zone(), zone), one("hosts", &every, &seen.probe, probe)];
    if let (Ok(zone), Ok(probe)) = (zone, probe)
        && public.is_empty()
        && !probe.is_empty()
        && zone != probe
    {
        let detail = format!("{} leads to {}, and hosts below it to {}", seen.zone(), list(zone), list(probe));
        let remedy = format!("point {} and {every} to the same addresses", seen.zone());
        findings.push(Finding::fail("dns.same", detail, remedy));
    }
    findings
}

/// `record` is what has to be there, and `host` who was asked for.
fn leads_here(name: &str, record: &str, host: &str, found: &Result<Vec<IpAddr>, String>, public: &[IpAddr]) -> Finding {
    let wanted = match public {
        [] => "the addresses of this machine that visitors reach".to_owned(),
        public => list(public),
    };
    let remedy = format!("make the records {record} A, or AAAA: {wanted}");
    let found = match found {
        Ok(found) if found.is_empty() => {
            return Finding::fail(name, format!("{record} has no address (asked for {host})"), remedy);
        }
        Ok(found) => found,
        Err(error) => {
            return Finding::fail(name, format!("{record} cannot be looked up (asked for {host}): {error}"), remedy);
        }
    };
    let detail = format!("{record} leads to {}", list(found));
    if public.is_empty() {
        return if found.iter().all(|address| is_of_this_machine(*address)) {
            Finding::ok(name, format!("{detail}, of this machine"))
        } else {
            let detail =
                format!("{detail}, which are not all of this machine: is there a router or a proxy before it?");
            Finding::warn(name, detail, "name the addresses that visitors dial: --public-address")
        };
    }
    let elsewhere: Vec<_> = found.iter().filter(|address| !public.contains(address)).collect();
    let missing: Vec<_> = public.iter().filter(|address| !found.contains(address)).collect();
    if !elsewhere.is_empty() {
        return Finding::fail(name, format!("{detail}: {} is not among public_address", list(elsewhere)), remedy);
    }
    if !missing.is_empty() {
        return Finding::warn(name, format!("{detail}, and not to {}", list(missing)), remedy);
    }
    Finding::ok(name, detail)
}

/// Whoever has an address can send from it.
fn is_of_this_machine(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What our own name server says.
pub(super) async fn name_server(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "dns.server";
    let Some(listen) = seen.settings.acme.dns_address() else { return Vec::new() };
    if seen.server().await.is_none() {
        return vec![Finding::warn(NAME, "no server runs here that could be asked", "start it, and check again")];
    }
    let server = SocketAddr::new(reachable(listen.ip()), listen.port());
    let zone = seen.zone();
    let (soa, soa_by_tcp, addresses) = tokio::join!(
        authoritative(server, Transport::Udp, zone, RecordType::SOA),
        authoritative(server, Transport::Tcp, zone, RecordType::SOA),
        async {
            let four = authoritative(server, Transport::Udp, &seen.probe, RecordType::A).await?;
            let six = authoritative(server, Transport::Udp, &seen.probe, RecordType::AAAA).await?;
            Ok::<_, String>([four, six].concat())
        }
    );
    let mut findings = Vec::new();
    for (what, answer) in [("UDP", &soa), ("TCP", &soa_by_tcp)] {
        let finding = match answer {
            Ok(records) if records.iter().any(|data| matches!(data, RData::SOA(_))) => continue,
            Ok(_) => Finding::fail(NAME, format!("{server} has no SOA of {zone} by {what}"), "restart the server"),
            Err(error) => Finding::fail(
                NAME,
                format!("{error}, by {what}"),
                "let UDP and TCP through to dns_listen, and restart the server if its settings have changed",
            ),
        };
        findings.push(finding);
    }
    let addresses = addresses.unwrap_or_default();
    let missing: Vec<_> = seen
        .settings
        .acme
        .addresses
        .iter()
        .filter(|public| {
            !addresses.contains(&match public {
                IpAddr::V4(four) => RData::A((*four).into()),
                IpAddr::V6(six) => RData::AAAA((*six).into()),
            })
        })
        .collect();
    if findings.is_empty() && !missing.is_empty() {
        let detail = format!("{server} does not give {} for {}", list(missing), seen.probe);
        findings.push(Finding::fail(NAME, detail, "restart the server: public_address has changed since its start"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, format!("{server} answers for {zone}, by UDP and TCP")));
    }
    findings
}

async fn authoritative(
    server: SocketAddr,
    transport: Transport,
    name: &str,
    kind: RecordType,
) -> Result<Vec<RData>, String> {
    let answer = ask(server, transport, name, kind).await.map_err(|error| format!("{error:#}"))?;
    match answer.metadata.response_code {
        ResponseCode::NoError if answer.metadata.authoritative => {
            Ok(answer.answers.into_iter().map(|record| record.data).collect())
        }
        ResponseCode::NoError => {
            Err(format!("{server} answers for {name} without authority: something else listens there"))
        }
        code => Err(format!("{server} answers {code} for {name}")),
    }
}

/// Is the rest of the world told to ask us?
pub(super) async fn delegation(seen: Arc<Seen>) -> Vec<Finding> {
    const NAME: &str = "dns.delegation";
    let acme = &seen.settings.acme;
    if acme.dns_address().is_none() {
        return Vec::new();
    }
    let zone = seen.zone();
    let names = match acme.name_servers.as_slice() {
        [] => vec![format!("ns1.{zone}")],
        names => names.to_vec(),
    };
    let (parent, addresses) = (zone.split_once('.').map_or("the root", |(_, parent)| parent), list(&acme.addresses));
    let remedy = format!(
        "where the DNS of {parent} is made: {}, and the address of each: {addresses}",
        list(names.iter().map(|name| format!("{zone} NS {name}")))
    );
    let softened = |finding: Finding| if unsuitable(zone).is_some() { finding.softened() } else { finding };
    let records = match seen.resolver.records(zone, RecordType::NS).await {
        Ok(records) => records,
        // A resolver that finds nobody says just that it has failed.
        Err(error) if seen.server().await.is_none() => {
            let remedy = format!("start the server, and check again; if it stays so, {remedy}");
            return vec![Finding::warn(NAME, format!("not seen while no server answers: {error}"), remedy)];
        }
        Err(error) => {
            return vec![softened(Finding::fail(NAME, format!("the NS records of {zone}: {error}"), remedy))];
        }
    };
    let found: Vec<String> = records
        .iter()
        .filter_map(|data| match data {
            RData::NS(name) => Some(name.to_ascii().trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return vec![softened(Finding::fail(
            NAME,
            format!("{zone} has no NS records: nobody asks this server"),
            remedy,
        ))];
    }
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    // Nobody has more of them than that.
    for name in found.iter().take(8) {
        let leads = seen.resolver.addresses(name).await;
        let is_ours = leads.as_ref().is_ok_and(|leads| leads.iter().any(|address| acme.addresses.contains(address)));
        if is_ours { here.push(name) } else { elsewhere.push(name) }
    }
    let finding = match (here.is_empty(), elsewhere.is_empty()) {
        (false, true) => Finding::ok(NAME, format!("{zone} is answered for by {}, which leads here", list(here))),
        (false, false) => Finding::warn(
            NAME,
            format!("of the name servers of {zone}, {} leads here and {} does not", list(here), list(elsewhere)),
            "proofs by dns-01 are seen only here: remove the others, or use acme_dns_hook",
        ),
        (true, _) => {
            Finding::fail(NAME, format!("the name servers of {zone}, {}, do not lead here", list(elsewhere)), remedy)
        }
    };
    vec![softened(finding)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Status;

    #[test]
    fn names_lead_to_the_public_addresses_or_the_record_to_make_is_told() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
        let public = addresses(&["192.0.2.1", "2001:db8::1"]);
        let check = |found: &[&str], public: &[IpAddr]| {
            leads_here("dns.hosts", "*.example.org", "check-00.example.org", &Ok(addresses(found)), public)
        };
        assert_eq!(check(&["192.0.2.1", "2001:db8::1"], &public).status, Status::Ok);
        assert_eq!(check(&["192.0.2.1"], &public).status, Status::Warn);
        let elsewhere = check(&["192.0.2.1", "198.51.100.7"], &public);
        assert_eq!(elsewhere.status, Status::Fail);
        assert!(elsewhere.detail.contains("198.51.100.7 is not among"), "{elsewhere:?}");
        let nowhere = check(&[], &public);
        assert_eq!(
            nowhere.remedy.as_deref(),
            Some("make the records *.example.org A, or AAAA: 192.0.2.1, 2001:db8::1")
        );
        assert_eq!(check(&["127.0.0.1"], &[]).status, Status::Ok);
        assert_eq!(check(&["192.0.2.1"], &[]).status, Status::Warn);
    }
}
