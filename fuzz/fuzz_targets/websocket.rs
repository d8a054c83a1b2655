//! What the peer of a WebSocket sends: chunks do not change what is read, no
//! message is above the limit, and what was read can be written and read again.
#![no_main]

use agent_proto::websocket::{Event, Reader, Role, Violation, write_close, write_frame};
use agent_proto::{Opcode, is_valid_close_code};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

/// A limit that the fuzzer can reach.
const MAX_MESSAGE: usize = 300;

fn read(role: Role, octets: &[u8], chunk: usize) -> (Vec<Event>, Option<Violation>) {
    let mut reader = Reader::new(role, MAX_MESSAGE);
    let mut events = Vec::new();
    for chunk in octets.chunks(chunk) {
        reader.push(chunk);
        loop {
            match reader.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(violation) => {
                    assert_eq!(reader.next_event(), Err(violation));
                    assert!(is_valid_close_code(violation.close_code()));
                    return (events, Some(violation));
                }
            }
        }
    }
    (events, None)
}

fuzz_target!(|input: &[u8]| {
    let Some((chunk, octets)) = input.split_first() else { return };
    let role = if chunk & 1 == 0 { Role::Server } else { Role::Client };
    let mask = (role == Role::Server).then_some([1, 2, 3, *chunk]);

    let (events, violation) = read(role, octets, usize::MAX);
    assert_eq!(read(role, octets, usize::from(chunk >> 1) + 1), (events.clone(), violation));

    let mut out = BytesMut::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Text(text) => write_frame(Opcode::Text, text.as_bytes(), mask, &mut out),
            Event::Binary(data) => write_frame(Opcode::Binary, data, mask, &mut out),
            Event::Ping(payload) => write_frame(Opcode::Ping, payload, mask, &mut out),
            Event::Pong(payload) => write_frame(Opcode::Pong, payload, mask, &mut out),
            Event::Close { code, reason } => {
                assert!(violation.is_none() && at == events.len() - 1, "nothing comes after a close");
                assert!(code.is_none_or(is_valid_close_code));
                write_close(*code, reason, mask, &mut out);
            }
        }
    }
    // Whatever was above the limit would be here too.
    assert_eq!(read(role, &out, usize::MAX), (events, None));
});
