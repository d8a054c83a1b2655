//! A bridge stream, and the messages in it: neither chunks nor who holds them
//! change what is read, and no more is kept than was announced to be small.
#![no_main]

use agent_proto::FrameError;
use agent_proto::bridge::{Message, MessageDecoder, MessageTooLarge, Outer, OuterDecoder};
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

/// A limit that the fuzzer can reach.
const MAX_LEN: usize = 200;

/// All events, with what data frames of one kind gave put together.
fn outers(chunks: impl Iterator<Item = Bytes>) -> (Vec<Outer>, Result<bool, FrameError>) {
    let mut decoder = OuterDecoder::new();
    let mut events = Vec::new();
    for chunk in chunks {
        let mut room = chunk.len();
        decoder.push(chunk);
        loop {
            match (decoder.next_event(), events.last_mut()) {
                (Ok(None), _) => break,
                (Err(error), _) => {
                    assert_eq!(decoder.next_event(), Err(error));
                    return (events, Err(error));
                }
                (Ok(Some(Outer::Data(more))), last) => {
                    assert!(!more.is_empty());
                    // Given out as it arrives: nothing of it was waited for.
                    room = room.checked_sub(more.len()).expect("data of this chunk");
                    match last {
                        Some(Outer::Data(data)) => *data = [&data[..], &more].concat().into(),
                        _ => events.push(Outer::Data(more)),
                    }
                }
                (Ok(Some(Outer::Text(more))), last) => {
                    assert!(!more.is_empty());
                    room = room.checked_sub(more.len()).expect("text of this chunk");
                    match last {
                        Some(Outer::Text(text)) => *text = [&text[..], &more].concat().into(),
                        _ => events.push(Outer::Text(more)),
                    }
                }
                (Ok(Some(event)), _) => {
                    if let Outer::Ping(payload) = &event {
                        assert!(payload.len() <= 125);
                    }
                    events.push(event);
                }
            }
        }
    }
    (events, Ok(decoder.is_mid_frame()))
}

fn messages(octets: &[u8], chunk: usize) -> (Vec<Message>, Result<bool, MessageTooLarge>) {
    let mut decoder = MessageDecoder::new(MAX_LEN);
    let mut messages = Vec::new();
    for chunk in octets.chunks(chunk) {
        decoder.push(chunk);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_message(), Err(error));
                    assert!(usize::try_from(error.length).is_ok_and(|length| length > MAX_LEN));
                    return (messages, Err(error));
                }
            }
        }
    }
    (messages, Ok(decoder.is_mid_message()))
}

fuzz_target!(|input: &[u8]| {
    let Some((chunk, octets)) = input.split_first() else { return };
    let chunk = usize::from(*chunk) + 1;

    let at_once = outers(std::iter::once(Bytes::copy_from_slice(octets)));
    assert_eq!(outers(octets.chunks(chunk).map(Bytes::copy_from_slice)), at_once);
    let shared = Bytes::copy_from_slice(octets);
    assert_eq!(outers(shared.chunks(chunk).map(|part| shared.slice_ref(part))), at_once);
    assert_eq!(shared, octets);

    let mut stream = Vec::new();
    for event in &at_once.0 {
        if let Outer::Data(data) | Outer::Text(data) = event {
            stream.extend_from_slice(data);
        }
    }
    for stream in [&stream, octets] {
        let at_once = messages(stream, usize::MAX);
        assert_eq!(messages(stream, chunk), at_once);
        for message in at_once.0 {
            let mut out = BytesMut::new();
            message.encode(None, &mut out);
            assert_eq!(out.len(), message.encoded_len());
            let mut decoder = OuterDecoder::new();
            decoder.push(out.freeze());
            let Ok(Some(Outer::Data(data))) = decoder.next_event() else { panic!("no frame") };
            let mut decoder = MessageDecoder::new(usize::MAX);
            decoder.push(&data);
            assert_eq!(decoder.next_message(), Ok(Some(message)));
            assert!(!decoder.is_mid_message());
        }
    }
});
