//! Requests that two servers could understand differently: the verdict depends
//! neither on how the octets arrive nor on what stands before, it is that of
//! hyper's own parser where that one takes the head, and nothing of a request that
//! is refused is read to its end.
#![no_main]

#[path = "../../crates/connections/src/framing.rs"]
#[allow(dead_code, reason = "the server uses more of it")]
mod framing;

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use framing::{Framing, Guarded};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

/// So many octets at a time, and then the end.
struct Chunks<'a> {
    octets: &'a [u8],
    at_once: usize,
}

impl AsyncRead for Chunks<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.octets.split_at(self.octets.len().min(self.at_once).min(buf.remaining()));
        buf.put_slice(now);
        self.octets = later;
        Poll::Ready(Ok(()))
    }
}

/// All that hyper would read.
fn passed(octets: &[u8], at_once: usize) -> Vec<u8> {
    let mut guarded = pin!(Guarded::new(Chunks { octets, at_once }));
    let mut passed = Vec::new();
    loop {
        let mut space = [0; 512];
        let mut buf = ReadBuf::new(&mut space);
        let read = guarded.as_mut().poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
        assert!(matches!(read, Poll::Ready(Ok(()))));
        if buf.filled().is_empty() {
            return passed;
        }
        passed.extend_from_slice(buf.filled());
    }
}

/// Are these octets ambiguous, octet by octet?
fn is_refused(octets: &[u8]) -> bool {
    let mut framing = Framing::default();
    octets.iter().any(|octet| framing.read(std::slice::from_ref(octet)).is_err())
}

fuzz_target!(|input: &[u8]| {
    let Some((at_once, octets)) = input.split_first() else { return };
    let at_once = usize::from(*at_once) + 1;
    let whole = passed(octets, usize::MAX);
    assert_eq!(passed(octets, at_once), whole);
    // What is refused ends in a head that hyper cannot parse, and its last octet is not among what passes.
    assert_eq!(is_refused(octets), whole != octets);
    if whole != octets {
        let clear = whole.strip_suffix(b"\0\n\n").expect("an unreadable end");
        assert!(clear.len() < octets.len() && octets.starts_with(clear));
        assert_eq!(octets[clear.len()], b'\n');
    }

    // hyper's parser and ours, on the first head.
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(length)) = request.parse(octets) else { return };
    let count = |name: &str| request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
    let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
    let is_cut = request.path.is_some_and(|path| path.contains('#')) || request.method.is_some_and(|m| m.contains('#'));
    let is_ambiguous = is_cut || lengths > 1 || lengths > 0 && codings > 0;
    assert_eq!(is_refused(&octets[..length]), is_ambiguous);

    // A request before it that is clear changes nothing.
    let pipelined = [b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\n\n\n", &octets[..length]].concat();
    assert_eq!(is_refused(&pipelined), is_ambiguous);
});
