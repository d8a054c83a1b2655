//! The first bytes of a connection: no panic, and neither the reads nor the
//! records they come in change the answer.
#![no_main]

#[path = "../../crates/edge/src/client_hello.rs"]
#[allow(dead_code, reason = "the edge uses more of it")]
mod client_hello;

use client_hello::{ClientHello, HelloError, MAX_HELLO, Reader};
use libfuzzer_sys::fuzz_target;

/// The first answer that is not "more", and the reader.
fn read(bytes: &[u8], chunk: usize) -> (Result<Option<ClientHello>, HelloError>, Reader) {
    let mut reader = Reader::new(MAX_HELLO);
    let mut outcome = Ok(None);
    for chunk in bytes.chunks(chunk) {
        let answer = reader.push(chunk);
        if outcome == Ok(None) {
            outcome = answer;
        }
    }
    (outcome, reader)
}

fuzz_target!(|input: &[u8]| {
    let Some((chunk, bytes)) = input.split_first() else { return };

    let (at_once, _) = read(bytes, usize::MAX);
    let (outcome, reader) = read(bytes, usize::from(*chunk) + 1);
    assert_eq!(outcome, at_once);
    match outcome {
        Ok(None) => assert_eq!(reader.into_raw(), bytes),
        Ok(Some(hello)) => {
            if let Some(name) = &hello.server_name {
                assert!((1..=253).contains(&name.len()) && name.is_ascii() && *name == name.to_ascii_lowercase());
            }
            assert!(hello.alpn.iter().all(|protocol| hello.alpn.offers(protocol)));
            let coalesced = reader.into_coalesced();
            assert!(coalesced.len() <= bytes.len());
            let (again, reader) = read(&coalesced, usize::MAX);
            assert_eq!(again, Ok(Some(hello)));
            assert_eq!(reader.into_coalesced(), coalesced);
            assert_eq!(read(bytes, usize::MAX).1.into_raw(), bytes);
        }
        Err(error) => assert_eq!(error.alert().is_none(), error == HelloError::NotTls),
    }
});
