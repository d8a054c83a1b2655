//! Messages of DNS: no panic, no answer that is larger than it may be, and a question that is
//! answered comes back octet by octet.
#![no_main]

use std::sync::{Arc, LazyLock};

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;
use name_server::{Challenges, DomainName, MAX_TEXTS_AT_NAME, Outcome, PAYLOAD, Settings, Transport, Zone};

static ZONE: LazyLock<Arc<Zone>> = LazyLock::new(|| {
    let ip = |text: &str| text.parse().expect("an address");
    let name = |text: &str| text.parse::<DomainName>().expect("a name");
    let zone = Zone::new(Settings::new(name("a.b"), vec![ip("192.0.2.1"), ip("2001:db8::1")])).expect("a zone");
    // Together more than a datagram holds.
    for number in 0..MAX_TEXTS_AT_NAME {
        let text = format!("{number:0>100}");
        Challenges::of(&zone).present(&name("t.a.b"), &text).expect("room").keep();
    }
    zone
});

fuzz_target!(|input: &[u8]| {
    for (transport, most) in [(Transport::Udp, usize::from(PAYLOAD)), (Transport::Tcp, 65_535)] {
        let mut out = Vec::new();
        let outcome = ZONE.respond(input, transport, &mut out);
        assert!(out.len() <= most);
        assert_eq!(out.is_empty(), outcome == Outcome::Ignored);
        if outcome == Outcome::Ignored {
            continue;
        }
        assert_eq!(out[..2], input[..2]);
        assert!(out[2] & 0x80 != 0 && input[2] & 0x80 == 0);
        let answer = Message::from_vec(&out).expect("it can be read");
        let [question] = &answer.queries[..] else {
            // Nothing but the header: it could not be read, or wants something else.
            assert_eq!(out.len(), 12);
            continue;
        };
        let end = 12 + question.name.iter().map(|label| label.len() + 1).sum::<usize>() + 5;
        assert_eq!(out[12..end], input[12..end]);
        assert_eq!(answer.truncation, outcome == Outcome::Truncated);
        assert_eq!(answer.authoritative, matches!(outcome, Outcome::Answered | Outcome::Truncated));
        assert_eq!(answer.answers.len() + answer.authorities.len() > 0, outcome == Outcome::Answered);
        assert!(transport == Transport::Udp || outcome != Outcome::Truncated);
    }
});
