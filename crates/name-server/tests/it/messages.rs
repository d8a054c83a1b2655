//! Messages that are not what a resolver sends every day, and octets that are no message.

use std::fmt::Write as _;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{NULL, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use name_server::{Challenges, DomainName, MAX_TEXTS_AT_NAME, Outcome, PAYLOAD, Transport, Zone};
use proptest::prelude::*;

use crate::queries::{ZONE, ask, octets, query, respond, settings, with_payload, zone};

const TEXTS: &str = "_acme-challenge.adit.example";

/// A zone with a name whose TXT records have so many octets each, and there is no more room for more.
fn zone_with_texts(length: usize) -> std::sync::Arc<Zone> {
    let zone = zone();
    let name: DomainName = TEXTS.parse().expect("a name");
    for number in 0..MAX_TEXTS_AT_NAME {
        let text = format!("{number:0>length$}");
        Challenges::of(&zone).present(&name, &text).expect("room").keep();
    }
    zone
}

fn length(zone: &Zone, message: &Message, transport: Transport) -> (Outcome, usize) {
    let mut out = Vec::new();
    (zone.respond(&octets(message), transport, &mut out), out.len())
}

#[test]
fn an_answer_fits_what_the_client_takes_or_says_that_it_does_not() {
    let message = query(TEXTS, RecordType::TXT);
    // 46 octets of header and question, and 13 + length for each of 16 records.
    let whole = |length: usize| 46 + MAX_TEXTS_AT_NAME * (13 + length);
    for (text, payload, wanted) in [
        (16, None, whole(16)),
        (17, None, 46),
        (15, Some(0), whole(15) + 11),
        (16, Some(512), 57),
        (43, Some(1232), whole(43) + 11),
        (43, Some(1231), whole(43) + 11),
        (43, Some(usize::from(PAYLOAD).min(whole(43) + 11) as u16), whole(43) + 11),
        (43, Some((whole(43) + 10) as u16), 57),
        (60, Some(1232), whole(60) + 11),
        (61, Some(1232), 57),
        // More than we send to anybody in a datagram.
        (61, Some(4096), 57),
        (61, Some(65_535), 57),
    ] {
        let zone = zone_with_texts(text);
        let message = payload.map_or(message.clone(), |payload| with_payload(message.clone(), payload));
        let (outcome, came) = length(&zone, &message, Transport::Udp);
        let is_whole = wanted > 57;
        assert_eq!(came, wanted, "texts of {text}, payload {payload:?}");
        assert_eq!(outcome, if is_whole { Outcome::Answered } else { Outcome::Truncated });
        let answer = ask(&zone, &message);
        assert_eq!(answer.metadata.truncation, !is_whole);
        assert_eq!(answer.answers.len(), if is_whole { MAX_TEXTS_AT_NAME } else { 0 });
        assert_eq!(answer.edns.is_some(), payload.is_some());
        assert_eq!(answer.queries, message.queries);
        let over_tcp = respond(&zone, &octets(&message), Transport::Tcp).1.expect("an answer");
        assert!(!over_tcp.metadata.truncation);
        assert_eq!(over_tcp.answers.len(), MAX_TEXTS_AT_NAME);
    }
}

#[test]
fn the_largest_answer_goes_over_tcp() {
    let (outcome, length) = length(&zone_with_texts(1020), &query(TEXTS, RecordType::TXT), Transport::Tcp);
    assert_eq!(outcome, Outcome::Answered);
    assert_eq!(length, 46 + MAX_TEXTS_AT_NAME * (12 + 4 + 1020));
}

#[test]
fn addresses_of_name_servers_are_left_out_before_the_answer_is() {
    let mut settings = settings();
    settings.name_servers = (0..8).map(|number| format!("ns{number}.{ZONE}").parse().expect("a name")).collect();
    let zone = Zone::new(settings).expect("a zone");
    let message = query(ZONE, RecordType::NS);
    for (transport, additionals) in [(Transport::Udp, 0), (Transport::Tcp, 24)] {
        let answer = respond(&zone, &octets(&message), transport).1.expect("an answer");
        assert!(!answer.metadata.truncation);
        assert_eq!((answer.answers.len(), answer.additionals.len()), (8, additionals));
    }
}

#[test]
fn the_case_of_a_question_comes_back() {
    for name in ["aDiT.exAMPle.", "HOST.aDiT.exAMPle.", "x.HOST.adit.EXAMPLE."] {
        for record_type in [RecordType::A, RecordType::MX, RecordType::ANY, RecordType::AXFR] {
            let answer = ask(&zone(), &query(name, record_type));
            assert_eq!(answer.queries[0].name.to_string(), name);
        }
    }
}

#[test]
fn names_as_long_as_they_may_be_are_answered() {
    let label = "a".repeat(63);
    // 255 octets on the wire, with the root.
    let longest = format!("{label}.{label}.{label}.{}.{ZONE}.", "b".repeat(48));
    assert_eq!(longest.len(), 254);
    let deepest = format!("{}{ZONE}.", "a.".repeat(120));
    for name in [longest, deepest] {
        let mut sent = hand_made(1, 0, &[]);
        sent.truncate(12);
        for label in name.split('.') {
            sent.push(label.len() as u8);
            sent.extend(label.as_bytes());
        }
        sent.extend([0, 1, 0, 1]);
        let mut out = Vec::new();
        assert_eq!(zone().respond(&sent, Transport::Udp, &mut out), Outcome::Answered, "{name}");
        assert_eq!(out[12..sent.len()], sent[12..], "{name}");
    }
}

#[test]
fn octets_that_are_no_letters_come_back_as_they_were() {
    let mut sent = hand_made(1, 0, &[]);
    sent.truncate(12);
    sent.extend(b"\x05\x00.\xff\\ \x04adit\x07example\x00\x00\x01\x00\x01");
    let mut out = Vec::new();
    assert_eq!(zone().respond(&sent, Transport::Udp, &mut out), Outcome::Answered);
    assert_eq!(out[12..sent.len()], sent[12..]);
}

#[test]
fn edns_is_answered_as_it_was_asked() {
    let zone = zone();
    let edns = |version: u8, dnssec_ok: bool| {
        let mut edns = Edns::new();
        edns.set_version(version).set_max_payload(4096).set_dnssec_ok(dnssec_ok);
        let mut message = query(ZONE, RecordType::A);
        message.set_edns(edns);
        message
    };
    for (version, dnssec_ok, wanted) in
        [(0, false, Outcome::Answered), (0, true, Outcome::Answered), (1, true, Outcome::Malformed)]
    {
        let message = edns(version, dnssec_ok);
        let (outcome, answer) = respond(&zone, &octets(&message), Transport::Udp);
        assert_eq!(outcome, wanted);
        let answer = answer.expect("an answer");
        let ours = answer.edns.as_ref().expect("EDNS for EDNS");
        assert_eq!((ours.version(), ours.max_payload(), ours.flags().dnssec_ok), (0, PAYLOAD, dnssec_ok));
        // The high part of BADVERS, 16.
        assert_eq!(ours.rcode_high(), version);
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(version) * 16);
        assert_eq!(answer.answers.is_empty(), version > 0);
    }
    assert_eq!(ask(&zone, &query(ZONE, RecordType::A)).edns, None);

    // Options that nobody knows are passed over (RFC 6891 section 6.1.2).
    let mut message = edns(0, false);
    let option = EdnsOption::Unknown(65_001, b"what".to_vec());
    message.edns.as_mut().expect("EDNS").options_mut().insert(option);
    let answer = ask(&zone, &message);
    assert_eq!(answer.answers.len(), 2);
    assert!(answer.edns.expect("EDNS").options().as_ref().is_empty());
}

#[test]
fn what_is_no_question_is_not_implemented() {
    for number in 1..16 {
        let mut message = query(ZONE, RecordType::SOA);
        message.metadata.op_code = OpCode::from_u8(number);
        let (outcome, answer) = respond(&zone(), &octets(&message), Transport::Udp);
        assert_eq!(outcome, Outcome::NotImplemented, "{number}");
        let head = answer.expect("an answer").metadata;
        assert_eq!((head.id, head.response_code), (4711, ResponseCode::NotImp));
        assert_eq!((head.message_type, u8::from(head.op_code)), (MessageType::Response, number));
    }
}

#[test]
fn flags_of_a_query_come_back_or_do_not() {
    let mut message = query(ZONE, RecordType::A);
    let head = &mut message.metadata;
    (head.recursion_desired, head.recursion_available, head.authentic_data) = (true, true, true);
    (head.checking_disabled, head.truncation, head.response_code) = (true, true, ResponseCode::ServFail);
    let head = ask(&zone(), &message).metadata;
    assert!(head.recursion_desired && head.authoritative);
    assert!(!head.recursion_available && !head.authentic_data && !head.checking_disabled && !head.truncation);
    assert_eq!((head.id, head.response_code), (4711, ResponseCode::NoError));
}

/// A query of these counts for questions and for what comes after; `after` follows the question.
fn hand_made(questions: u16, additionals: u16, after: &[u8]) -> Vec<u8> {
    let mut octets = vec![0x12, 0x67, 1, 0];
    for count in [questions, 0, 0, additionals] {
        octets.extend(count.to_be_bytes());
    }
    octets.extend(b"\x04adit\x07example\x00\x00\x01\x00\x01");
    octets.extend(after);
    octets
}

/// OPT, version 0, for 1232 octets, with these options.
fn opt(options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).expect("short").to_be_bytes();
    [&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0], &length[..], options].concat()
}

#[test]
fn a_message_that_cannot_be_read_is_malformed_or_passed_over() {
    let good = hand_made(1, 0, &[]);
    let changed = |at: usize, octet: u8| {
        let mut octets = good.clone();
        octets[at] = octet;
        octets
    };
    let named = |name: &[u8]| [&good[..12], name, &[0, 1, 0, 1]].concat();
    let second = &good[12..];
    for (what, sent, wanted) in [
        ("as it should be", good.clone(), Outcome::Answered),
        ("nothing", vec![], Outcome::Ignored),
        ("one octet", vec![7], Outcome::Ignored),
        ("eleven octets", good[..11].to_vec(), Outcome::Ignored),
        ("an answer", changed(2, 0x81), Outcome::Ignored),
        ("an answer without its end", changed(2, 0x81)[..13].to_vec(), Outcome::Ignored),
        ("a header", good[..12].to_vec(), Outcome::Malformed),
        ("no question", hand_made(0, 0, &[])[..12].to_vec(), Outcome::Malformed),
        ("no question counted", hand_made(0, 0, &[]), Outcome::Malformed),
        ("two questions", hand_made(2, 0, second), Outcome::Malformed),
        ("two questions counted", hand_made(2, 0, &[]), Outcome::Malformed),
        ("65535 questions", hand_made(u16::MAX, 0, &[]), Outcome::Malformed),
        ("something after the end", hand_made(1, 0, &[0]), Outcome::Malformed),
        ("cut off in the name", good[..16].to_vec(), Outcome::Malformed),
        ("cut off in the type", good[..27].to_vec(), Outcome::Malformed),
        ("cut off in the class", good[..29].to_vec(), Outcome::Malformed),
        ("records counted that are not there", hand_made(1, 1, &[]), Outcome::Malformed),
        ("65535 records", hand_made(1, u16::MAX, &[]), Outcome::Malformed),
        ("an answer counted", changed(7, 1), Outcome::Malformed),
        ("a pointer to itself", named(&[0xc0, 12]), Outcome::Malformed),
        ("a pointer forward", named(&[0xc0, 14]), Outcome::Malformed),
        ("a pointer into the header", named(&[0xc0, 4]), Outcome::Malformed),
        ("a pointer after a label", named(&[1, b'a', 0xc0, 12]), Outcome::Malformed),
        ("a label of 64", named(&[&[64][..], &[b'a'; 64], &[0]].concat()), Outcome::Malformed),
        ("a label of kind 01", named(&[0x41, 0]), Outcome::Malformed),
        ("a label of kind 10", named(&[0x80, 0]), Outcome::Malformed),
        ("a name of 256", named(&[[1, b'a'].repeat(128), vec![0]].concat()), Outcome::Malformed),
        ("OPT", hand_made(1, 1, &opt(&[])), Outcome::Answered),
        ("OPT, cut off", hand_made(1, 1, &opt(&[])[..10]), Outcome::Malformed),
        ("OPT twice", hand_made(1, 2, &opt(&[]).repeat(2)), Outcome::Malformed),
        ("OPT with a name", hand_made(1, 1, &[&[1, b'a'][..], &opt(&[])].concat()), Outcome::Malformed),
        ("OPT with an option", hand_made(1, 1, &opt(&[0, 3, 0, 0])), Outcome::Answered),
        ("OPT with half an option", hand_made(1, 1, &opt(&[0, 3, 0, 9, 1])), Outcome::Malformed),
        ("OPT for 0 octets", hand_made(1, 1, &[0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 0]), Outcome::Answered),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let (outcome, answer) = respond(&zone(), &sent, transport);
            assert_eq!(outcome, wanted, "{what}");
            let Some(answer) = answer else { continue };
            assert_eq!(answer.metadata.id, 0x1267, "{what}");
            let code = if wanted == Outcome::Answered { ResponseCode::NoError } else { ResponseCode::FormErr };
            assert_eq!(answer.metadata.response_code, code, "{what}");
        }
    }
}

#[test]
fn records_beside_the_question_do_not_matter_if_they_are_few() {
    let record = |number| {
        let name = Name::from_ascii("a.").expect("a name");
        Record::from_rdata(name, 0, RData::Unknown { code: RecordType::from(number), rdata: NULL::with(vec![1, 2]) })
    };
    for (count, wanted) in [(0, Outcome::Answered), (4, Outcome::Answered), (5, Outcome::Malformed)] {
        let mut message = query(ZONE, RecordType::A);
        message.add_additionals((0..count).map(|_| record(65_300)));
        assert_eq!(respond(&zone(), &octets(&message), Transport::Udp).0, wanted, "{count}");
    }
    // IXFR says what it has (RFC 1995 section 3).
    let mut message = query(ZONE, RecordType::IXFR);
    let name = Name::from_ascii("adit.example.").expect("a name");
    let soa = RData::SOA(SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 1));
    message.add_authority(Record::from_rdata(name, 0, soa));
    assert_eq!(respond(&zone(), &octets(&message), Transport::Tcp).0, Outcome::Refused);
}

/// No octets make it panic, or say more than it may; a question that is answered is repeated.
fn judge(zone: &Zone, sent: &[u8]) {
    for (transport, most) in [(Transport::Udp, usize::from(PAYLOAD)), (Transport::Tcp, 65_535)] {
        let mut out = vec![7];
        let outcome = zone.respond(sent, transport, &mut out);
        assert!(out.len() <= most, "{} octets", out.len());
        if outcome == Outcome::Ignored {
            assert!(out.is_empty());
            continue;
        }
        assert_eq!(out[..2], sent[..2]);
        assert!(out[2] & 0x80 != 0 && sent[2] & 0x80 == 0);
        let answer = Message::from_vec(&out).expect("an answer that can be read");
        if let [question] = &answer.queries[..] {
            let end = 12 + question.name.iter().map(|label| label.len() + 1).sum::<usize>() + 1 + 4;
            assert_eq!(out[12..end], sent[12..end]);
        } else {
            assert_eq!(out.len(), 12);
        }
    }
}

proptest! {
    #[test]
    fn any_octets_are_survived(sent in proptest::collection::vec(any::<u8>(), 0..600)) {
        judge(&zone_with_texts(40), &sent);
    }

    #[test]
    fn any_octets_after_a_good_header_are_survived(
        counts in proptest::array::uniform4(0_u16..4),
        sent in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut octets = vec![1, 2, 1, 0];
        counts.iter().for_each(|count| octets.extend(count.to_be_bytes()));
        octets.extend(sent);
        judge(&zone(), &octets);
    }

    #[test]
    fn a_query_with_flaws_is_survived(
        labels in proptest::collection::vec("[a-zA-Z0-9_]{1,20}", 0..5),
        record_type in any::<u16>(),
        payload in proptest::option::of(any::<u16>()),
        flaws in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut name = String::new();
        for label in labels {
            write!(name, "{label}.").expect("a text");
        }
        let message = query(&format!("{name}{TEXTS}"), RecordType::from(record_type));
        let message = payload.map_or(message.clone(), |payload| with_payload(message, payload));
        let mut sent = octets(&message);
        for (at, octet) in flaws {
            let at = at.index(sent.len());
            sent[at] = octet;
        }
        if is_cut {
            sent.truncate(cut.index(sent.len()));
        }
        judge(&zone_with_texts(40), &sent);
    }
}
