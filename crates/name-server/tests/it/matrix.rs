//! Every name with every type, over both transports.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use name_server::{Caa, Limits, Outcome, Transport};

use crate::queries::{Running, ZONE, ask, octets, query, respond, with_class, with_payload, zone};

const CHALLENGED: &str = "_acme-challenge.adit.example";

/// Names within the zone, and what they are.
const NAMES: [&str; 9] = [
    ZONE,
    "ADIT.eXample",
    "host.adit.example",
    "HoSt.aDit.example",
    "a.b.c.d.e.adit.example",
    "ns1.adit.example",
    CHALLENGED,
    "*.adit.example",
    "_acme-challenge.host.adit.example",
];

const TYPES: [RecordType; 16] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CAA,
    RecordType::CNAME,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::HTTPS,
    RecordType::MX,
    RecordType::NS,
    RecordType::NSEC,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::SVCB,
    RecordType::TXT,
    RecordType::Unknown(65_280),
];

/// The records of an answer, as a zone file would have them.
fn said(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| format!("{} {}", record.ttl, record.data)).collect()
}

fn wanted(name: &str, record_type: RecordType) -> Vec<&'static str> {
    let is_apex = name.eq_ignore_ascii_case(ZONE);
    match record_type {
        RecordType::A => vec!["300 192.0.2.1", "300 192.0.2.2"],
        RecordType::AAAA => vec!["300 2001:db8::1"],
        RecordType::CAA if is_apex => vec!["60 0 issue \"ca.example\""],
        RecordType::NS if is_apex => vec!["3600 ns1.adit.example."],
        RecordType::SOA if is_apex => {
            vec!["3600 ns1.adit.example. hostmaster.adit.example. SERIAL 7200 900 1209600 60"]
        }
        RecordType::TXT if name == CHALLENGED => vec!["1 of the zone", "1 of its wildcard"],
        _ => vec![],
    }
}

#[tokio::test]
async fn every_name_has_what_it_has_and_nothing_is_missing() {
    let running = Running::start(Limits::default()).await;
    running.server.zone().set_caa(&Caa::authority(&["ca.example".parse().expect("a name")]).expect("fits"));
    let challenged = CHALLENGED.parse().expect("a name");
    let challenges = running.server.challenges();
    let _first = challenges.present(&challenged, "of the zone").expect("room");
    let _second = challenges.present(&challenged, "of its wildcard").expect("room");
    for name in NAMES {
        for record_type in TYPES {
            let message = query(name, record_type);
            let over_udp = running.ask_udp(&message).await.expect("an answer");
            let over_tcp = running.ask_tcp(&message).await;
            assert_eq!(over_udp, over_tcp, "{name} {record_type}");
            judge(name, record_type, &over_udp);
        }
    }
    running.stop().await;
}

fn judge(name: &str, record_type: RecordType, answer: &Message) {
    let what = format!("{name} {record_type}");
    let head = answer.metadata;
    assert_eq!(head.response_code, ResponseCode::NoError, "{what}");
    assert!(head.authoritative && !head.recursion_available && !head.truncation, "{what}: {head}");
    assert_eq!(answer.queries[0].name.to_string(), format!("{name}."), "{what}");
    let soa = |record: &hickory_proto::rr::Record| match &record.data {
        RData::SOA(soa) => Some(soa.serial.to_string()),
        _ => None,
    };
    let serial = answer.all_sections().find_map(soa).unwrap_or_default();
    let said: Vec<_> = said(answer).iter().map(|said| said.replace(&serial, "SERIAL")).collect();
    let said = if serial.is_empty() { self::said(answer) } else { said };
    let wanted = wanted(name, record_type);
    assert_eq!(said, wanted, "{what}");
    assert!(answer.answers.iter().all(|record| record.name.eq_case(&answer.queries[0].name)), "{what}");
    // NODATA has the zone's SOA (RFC 2308 section 2.2), anything else has nothing there.
    let authorities: Vec<_> = answer.authorities.iter().map(|record| (record.ttl, record.record_type())).collect();
    let ttl = if record_type == RecordType::TXT { 1 } else { 60 };
    let nothing = vec![(ttl, RecordType::SOA)];
    assert_eq!(authorities, if wanted.is_empty() { nothing } else { vec![] }, "{what}");
    let is_referral = record_type == RecordType::NS && !wanted.is_empty();
    assert_eq!(answer.additionals.len(), if is_referral { 3 } else { 0 }, "{what}");
}

#[test]
fn no_type_is_an_error_but_that_of_transfers() {
    let zone = zone();
    for number in 0..=u16::MAX {
        let record_type = RecordType::from(number);
        for name in [ZONE, "a.adit.example"] {
            let message = with_payload(query(name, record_type), 1232);
            let sent = octets(&message);
            let mut out = Vec::new();
            let outcome = zone.respond(&sent, Transport::Udp, &mut out);
            let is_transfer = matches!(record_type, RecordType::AXFR | RecordType::IXFR);
            assert_eq!(outcome, if is_transfer { Outcome::Refused } else { Outcome::Answered }, "{name} {number}");
            // The question is repeated octet by octet: name, type, class.
            let end = 12 + name.len() + 2 + 4;
            assert_eq!(out[12..end], sent[12..end], "{name} {number}");
        }
    }
}

#[test]
fn any_is_answered_with_little() {
    for name in [ZONE, "a.adit.example"] {
        let answer = ask(&zone(), &query(name, RecordType::ANY));
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative);
        assert_eq!(answer.answers.len(), 1);
        let RData::HINFO(hinfo) = &answer.answers[0].data else { panic!("{:?}", answer.answers) };
        assert_eq!((&*hinfo.cpu, &*hinfo.os), (&b"RFC8482"[..], &b""[..]));
    }
}

#[test]
fn what_is_not_ours_is_refused() {
    let zone = zone();
    let a = |name| query(name, RecordType::A);
    for (what, message) in [
        ("the root", a(".")),
        ("above", a("example")),
        ("beside", a("adit.test")),
        ("looks alike", a("xadit.example")),
        ("longer", a("adit.example.test")),
        ("AXFR", query(ZONE, RecordType::AXFR)),
        ("IXFR", query(ZONE, RecordType::IXFR)),
        ("CH", with_class(query("version.bind", RecordType::TXT), DNSClass::CH)),
        ("CH of the zone", with_class(a(ZONE), DNSClass::CH)),
        ("HS", with_class(a(ZONE), DNSClass::HS)),
        ("NONE", with_class(a(ZONE), DNSClass::NONE)),
        ("class ANY", with_class(a(ZONE), DNSClass::ANY)),
        ("class 77", with_class(a(ZONE), DNSClass::Unknown(77))),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (outcome, answer) = respond(&zone, &octets(&message), transport);
            assert_eq!(outcome, Outcome::Refused, "{what}");
            let answer = answer.expect("an answer");
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{what}");
            assert!(!answer.metadata.authoritative && answer.all_sections().next().is_none(), "{what}");
            assert_eq!(answer.queries, message.queries, "{what}");
        }
    }
}

#[tokio::test]
async fn a_challenge_is_there_for_the_next_query_and_gone_after() {
    let running = Running::start(Limits::default()).await;
    let challenges = running.server.challenges();
    let name = CHALLENGED.parse().expect("a name");
    let message = query("_ACME-challenge.adit.EXAMPLE", RecordType::TXT);
    let mut serials = Vec::new();
    for round in 0..200 {
        let text = format!("round {round}");
        let presented = challenges.present(&name, &text).expect("room");
        let answer = running.ask_udp(&message).await.expect("an answer");
        assert_eq!(said(&answer), [format!("1 {text}")]);
        drop(presented);
        let answer = running.ask_udp(&message).await.expect("an answer");
        assert_eq!(said(&answer), [""; 0]);
        let RData::SOA(soa) = &answer.authorities[0].data else { panic!("no SOA") };
        serials.push(soa.serial);
    }
    assert!(serials.is_sorted_by(|one, next| one < next), "{serials:?}");
    running.stop().await;
}

#[test]
fn caa_changes_while_the_zone_is_served() {
    let zone = zone();
    let issuers = ["ca.example".parse().expect("a name")];
    let account = Caa::account(&issuers, "https://ca.example/acct/7", &["dns-01"]).expect("fits");
    for (caa, wanted) in [
        (Caa::none(), None),
        (Caa::nobody(), Some("60 0 issue \";\"")),
        (Caa::authority(&issuers).expect("fits"), Some("60 0 issue \"ca.example\"")),
        (account, Some("60 0 issue \"ca.example; accounturi=https://ca.example/acct/7; validationmethods=dns-01\"")),
        (Caa::none(), None),
    ] {
        zone.set_caa(&caa);
        let answer = ask(&zone, &query(ZONE, RecordType::CAA));
        assert_eq!(said(&answer), wanted.into_iter().collect::<Vec<_>>());
        assert_eq!(said(&ask(&zone, &query("host.adit.example", RecordType::CAA))), [""; 0]);
    }
}
