//! Requests that two servers could understand differently.
//!
//! A request target with a `#` is one: `http` cuts it there, and the application would
//! see another path than what stands before us has judged. A request target has no
//! fragment ([RFC 9112 section 3.2](https://www.rfc-editor.org/rfc/rfc9112#section-3.2)).
//! The others are requests whose end could be seen in different places.
//!
//! hyper takes a request with both `Content-Length` and `Transfer-Encoding`
//! and drops the length, and takes the same `Content-Length` twice. Either may
//! be smuggling past a proxy in front of us, so here they are refused:
//! [RFC 9112 section 6.1](https://www.rfc-editor.org/rfc/rfc9112#section-6.1)
//! and [6.3](https://www.rfc-editor.org/rfc/rfc9112#section-6.3),
//! [RFC 9110 section 8.6](https://www.rfc-editor.org/rfc/rfc9110#section-8.6).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection on which no ambiguous head is ever complete.
///
/// What reads from it, which is hyper's HTTP/1 server, finds a head it cannot
/// parse in its place, answers 400 and closes.
pub struct Guarded<IO> {
    io: IO,
    framing: Framing,
    /// What is still to be read in place of the end of an ambiguous head;
    /// there from then on, and nothing else is read any more.
    spoilt: Option<&'static [u8]>,
    lift: Lift,
}

/// Ends the looking: after a 101 the octets are of another protocol.
#[derive(Clone, Debug, Default)]
pub struct Lift(Arc<AtomicBool>);

impl Lift {
    /// From now on everything passes.
    pub fn lift(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_lifted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<IO> Guarded<IO> {
    /// Looks at what is read from `io` from its first octet on.
    pub fn new(io: IO) -> Self {
        Self { io, framing: Framing::default(), spoilt: None, lift: Lift::default() }
    }

    /// The connection itself: nothing is looked at any more.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// To be used when the connection is upgraded to a protocol whose octets may look
    /// like a request; those of a WebSocket do not.
    pub fn lift(&self) -> Lift {
        self.lift.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lift.is_lifted() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        if this.spoilt.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            if let Err(Ambiguous { at }) = this.framing.read(&buf.filled()[before..]) {
                buf.set_filled(before + at);
                this.spoilt = Some(SPOILT);
            }
        }
        if let Some(spoilt) = &mut this.spoilt {
            let (now, later) = spoilt.split_at(spoilt.len().min(buf.remaining()));
            buf.put_slice(now);
            *spoilt = later;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Reads along with hyper: where each request's head begins and ends, and
/// whether its framing is one that two servers could understand differently.
///
/// It stops looking only where hyper would close the connection: anything else
/// would be a way around it. So it goes on after a request to upgrade, which
/// may be declined. A connection that became a WebSocket is known by its first
/// octet: no frame begins like a method, and no HTTP/1 server reads past that.
/// `CONNECT` is a request like others, as we refuse it.
///
/// Does *not* check anything that hyper refuses itself: lengths that are no
/// number, a last transfer coding other than `chunked`, folded lines, spaces
/// before the colon, a bare CR.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    state: State,
}

impl Framing {
    /// Looks at what was just read.
    ///
    /// # Errors
    ///
    /// [`Ambiguous`] when a head is complete whose framing is ambiguous, and
    /// ever after.
    pub(crate) fn read(&mut self, octets: &[u8]) -> Result<(), Ambiguous> {
        let mut at = 0;
        while at < octets.len() {
            match &mut self.state {
                State::Head(head) => match head.read(&octets[at..]) {
                    (read, None) => at += read,
                    (read, Some(next)) => {
                        at += read;
                        let refused = matches!(next, State::Refused);
                        self.state = next;
                        if refused {
                            return Err(Ambiguous { at: at - 1 });
                        }
                    }
                },
                State::Body(left) => {
                    at += skip(left, octets.len() - at);
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
                State::Chunks(Chunks::Data(left)) => {
                    at += skip(left, octets.len() - at);
                    if *left == 0 {
                        self.state = State::Chunks(Chunks::DataCr);
                    }
                }
                State::Chunks(chunks) => {
                    self.state = chunks.after(octets[at]);
                    at += 1;
                }
                State::Pass => return Ok(()),
                State::Refused => break,
            }
        }
        if matches!(self.state, State::Refused) { Err(Ambiguous { at: 0 }) } else { Ok(()) }
    }
}

/// A head whose framing two servers could understand differently.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Ambiguous {
    /// Which of the octets read completed it; the first when that was earlier.
    at: usize,
}

#[derive(Debug)]
enum State {
    Head(Head),
    /// Octets of a body of known length that are to come.
    Body(u64),
    Chunks(Chunks),
    /// What was read makes hyper close, or is not HTTP any more.
    Pass,
    Refused,
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

/// A request's head as far as it was read.
#[derive(Debug, Default)]
struct Head {
    /// The request line has begun: before it, empty lines mean nothing.
    begun: bool,
    /// The request line has a `#`.
    cut: bool,
    line: Line,
    /// `Content-Length` fields.
    lengths: usize,
    /// The last one's value, when it is a number.
    length: Option<u64>,
    /// There is a `Transfer-Encoding`.
    coded: bool,
}

impl Head {
    /// Reads some octets, at least one of them: how many, and what comes next
    /// unless it is more of the head.
    fn read(&mut self, octets: &[u8]) -> (usize, Option<State>) {
        if let Line::Request | Line::Rest = self.line {
            let end = octets.iter().position(|&octet| octet == b'\n');
            let line = &octets[..end.unwrap_or(octets.len())];
            self.cut |= matches!(self.line, Line::Request) && line.contains(&b'#');
            let Some(end) = end else { return (octets.len(), None) };
            self.line = Line::Start;
            return (end + 1, None);
        }
        let octet = octets[0];
        self.line = match (self.line, octet) {
            (Line::Start | Line::EmptyCr, b'\n') if self.begun => return (1, Some(self.body())),
            (Line::Start, b'\r') => Line::EmptyCr,
            (Line::EmptyCr, b'\n') => Line::Start,
            (Line::EmptyCr, _) => return (1, Some(State::Pass)),
            (Line::Length(value), b'\n') => {
                self.lengths = self.lengths.saturating_add(1);
                self.length = value.number();
                Line::Start
            }
            (_, b'\n') => Line::Start,
            (Line::Start, _) if !self.begun => {
                if !is_token(octet) {
                    return (1, Some(State::Pass));
                }
                self.begun = true;
                self.cut = octet == b'#';
                Line::Request
            }
            (Line::Start, b'c' | b'C') => Line::Name { name: CONTENT_LENGTH, alike: 1 },
            (Line::Start, b't' | b'T') => Line::Name { name: TRANSFER_ENCODING, alike: 1 },
            (Line::Name { name, alike }, _) => match name.get(alike) {
                Some(expected) if octet.eq_ignore_ascii_case(expected) => Line::Name { name, alike: alike + 1 },
                None if octet == b':' && name == CONTENT_LENGTH => Line::Length(Value::Before),
                None if octet == b':' => {
                    self.coded = true;
                    Line::Rest
                }
                _ => Line::Rest,
            },
            (Line::Length(value), _) => Line::Length(value.after(octet)),
            (Line::Start | Line::Request | Line::Rest, _) => Line::Rest,
        };
        (1, None)
    }

    /// What follows the head that is now complete.
    fn body(&self) -> State {
        if self.cut {
            return State::Refused;
        }
        match (self.lengths, self.length, self.coded) {
            (0, _, true) => State::Chunks(Chunks::Size(None)),
            (0, _, false) | (1, Some(0), false) => State::default(),
            (1, Some(length), false) => State::Body(length),
            (1, None, false) => State::Pass,
            _ => State::Refused,
        }
    }
}

/// Where in a line of a head we are.
#[derive(Clone, Copy, Debug, Default)]
enum Line {
    #[default]
    Start,
    /// After the CR of a line that has nothing else.
    EmptyCr,
    /// In a field's name, which up to here is that of one we look for.
    Name { name: &'static [u8], alike: usize },
    /// In the value of a `Content-Length`.
    Length(Value),
    /// In the request line, after its first octet.
    Request,
    /// In what does not matter.
    Rest,
}

/// A `Content-Length`, octet by octet: the spaces around it may be many.
#[derive(Clone, Copy, Debug)]
enum Value {
    Before,
    Digits(u64),
    After(u64),
    NoNumber,
}

impl Value {
    fn after(self, octet: u8) -> Self {
        match (self, octet) {
            (Self::Before, b' ' | b'\t') => Self::Before,
            // A CR anywhere but before the LF is refused by hyper.
            (Self::Digits(number) | Self::After(number), b' ' | b'\t' | b'\r') => Self::After(number),
            (Self::Before, b'0'..=b'9') => Self::Digits(u64::from(octet - b'0')),
            (Self::Digits(number), b'0'..=b'9') => number
                .checked_mul(10)
                .and_then(|number| number.checked_add(u64::from(octet - b'0')))
                .map_or(Self::NoNumber, Self::Digits),
            _ => Self::NoNumber,
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Self::Digits(number) | Self::After(number) => Some(number),
            Self::Before | Self::NoNumber => None,
        }
    }
}

/// Where in a chunked body we are.
///
/// The same steps as hyper's decoder, which ends each line at CR and wants LF
/// after it: a LF alone is part of a trailer to it.
#[derive(Clone, Copy, Debug)]
enum Chunks {
    /// In a chunk's size; there are no digits yet when there is no number.
    Size(Option<u64>),
    /// In the white space after a size.
    SizeSpace(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// Where a trailer or the empty line begins.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

impl Chunks {
    fn after(self, octet: u8) -> State {
        State::Chunks(match (self, octet) {
            (Self::Size(size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(octet).to_digit(16).map_or(0, u64::from);
                let Some(size) = size.unwrap_or(0).checked_mul(16) else {
                    return State::Pass;
                };
                Self::Size(Some(size + digit))
            }
            (Self::Size(Some(size)) | Self::SizeSpace(size), b' ' | b'\t') => Self::SizeSpace(size),
            (Self::Size(Some(size)) | Self::SizeSpace(size), b';') => Self::Extension(size),
            (Self::Size(Some(size)) | Self::SizeSpace(size) | Self::Extension(size), b'\r') => Self::SizeLf(size),
            (Self::Extension(_), b'\n') => return State::Pass,
            (Self::Extension(size), _) => Self::Extension(size),
            (Self::SizeLf(0), b'\n') => Self::TrailerStart,
            (Self::SizeLf(size), b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(None),
            (Self::TrailerStart, b'\r') => Self::EndLf,
            (Self::Trailer, b'\r') => Self::TrailerLf,
            (Self::TrailerStart | Self::Trailer, _) => Self::Trailer,
            (Self::TrailerLf, b'\n') => Self::TrailerStart,
            (Self::EndLf, b'\n') => return State::default(),
            _ => return State::Pass,
        })
    }
}

/// Takes as many as there are from what is left, and says how many.
fn skip(left: &mut u64, there: usize) -> usize {
    let skipped = usize::try_from(*left).map_or(there, |left| left.min(there));
    *left -= skipped as u64;
    skipped
}

/// What a method is made of ([RFC 9110 section 5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2)).
fn is_token(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet)
}

const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";

/// Read in place of an ambiguous head's last LF.
///
/// NUL is allowed nowhere in a head. hyper does not look at a head that came
/// in parts before it sees the empty line at its end, so there is one.
const SPOILT: &[u8] = b"\0\n\n";

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BOTH: &str = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// How many octets are read when the end of an ambiguous head is among
    /// them, fed so many at a time.
    fn refused_at(octets: &[u8], at_once: usize) -> Option<usize> {
        let mut framing = Framing::default();
        let mut refused = None;
        for (index, part) in octets.chunks(at_once.max(1)).enumerate() {
            match (framing.read(part), refused) {
                (Ok(()), None) => {}
                (Err(Ambiguous { at }), None) => refused = Some(index * at_once.max(1) + at + 1),
                (Err(Ambiguous { at: 0 }), Some(_)) => {}
                (verdict, Some(_)) => panic!("{verdict:?} after it was refused"),
            }
        }
        refused
    }

    /// The verdict, which must not depend on how the octets arrive.
    fn refused(octets: &str) -> bool {
        let octets = octets.as_bytes();
        let verdict = refused_at(octets, octets.len());
        for split in 0..octets.len() {
            let mut framing = Framing::default();
            let (first, second) = octets.split_at(split);
            let parts = framing.read(first).and_then(|()| framing.read(second));
            assert_eq!(parts.is_err(), verdict.is_some(), "split at {split}");
        }
        assert_eq!(refused_at(octets, 1), verdict, "octet by octet");
        verdict.is_some()
    }

    #[test]
    fn one_length_or_one_coding_is_clear() {
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "\r\n\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length:\t  4 \t\r\n\r\nbody",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Lengths: 4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Lengt: 4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nX: Transfer-Encoding: chunked\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nX-Content-Length: 4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nTE: trailers\r\nTrailer: x\r\n\r\nbody",
            "Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n",
        ] {
            assert!(!refused(request), "{request}");
        }
    }

    #[test]
    fn two_lengths_or_a_length_and_a_coding_are_ambiguous() {
        for request in [
            BOTH,
            "POST / HTTP/1.1\nContent-Length: 4\nTransfer-Encoding: chunked\n\n",
            "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-LENGTH:4\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding:\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nHost: a\r\nContent-Length: 4\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            "GET / HTTP/1.0\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert!(refused(request), "{request}");
        }
    }

    #[test]
    fn a_target_with_a_fragment_is_ambiguous() {
        for request in ["GET /a#b HTTP/1.1\r\n\r\n", "#GET / HTTP/1.1\r\n\r\n", "GET /?a=b# HTTP/1.1\nHost: a\n\n"] {
            assert!(refused(request), "{request}");
        }
        assert!(!refused("GET /a HTTP/1.1\r\nX: a#b\r\n\r\n"), "a field may have one");
    }

    #[tokio::test]
    async fn after_an_upgrade_everything_passes() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut guarded = Guarded::new(near);
        let request = b"GET /attach HTTP/1.1\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n";
        far.write_all(request).await.expect("sent");
        guarded.read_exact(&mut [0; 64][..request.len().min(64)]).await.expect("read");
        guarded.lift().lift();
        let shell = b"# a comment\n\nContent-Length: 1\n";
        far.write_all(shell).await.expect("sent");
        drop(far);
        let mut passed = Vec::new();
        guarded.read_to_end(&mut passed).await.expect("read");
        assert!(passed.ends_with(shell), "{}", String::from_utf8_lossy(&passed));
    }

    #[test]
    fn a_long_line_does_not_stop_the_looking() {
        let requests = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n{BOTH}", "a".repeat(70_000));
        for at_once in [1, 1024, requests.len()] {
            assert_eq!(refused_at(requests.as_bytes(), at_once), Some(requests.len()), "by {at_once}");
        }
    }

    #[test]
    fn pipelined_requests_are_all_looked_at() {
        for before in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\n\nGET / HTTP/1.1\r\n\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 004\r\n\r\nbody",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nbody\r\n1 \t\r\n\n\r\n0 ;x\r\nA: b\r\nC: d\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\nA: b\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
        ] {
            assert!(!refused(before), "{before}");
            let pipelined = format!("{before}{BOTH}");
            assert!(refused(&pipelined), "{pipelined}");
            assert_eq!(refused_at(pipelined.as_bytes(), 7), Some(pipelined.len()), "{pipelined}");
        }
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_none() {
        let length = BOTH.len();
        assert!(!refused(&format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{BOTH}")));
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(!refused(&format!("{chunked}{length:x}\r\n{BOTH}\r\n0\r\n\r\n")));
        assert!(!refused(&format!("{chunked}0\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n")));
        assert!(!refused(&format!("{chunked}{:x}\r\n{BOTH}GET /\r\n0\r\n\r\n", length + 5)));
    }

    #[tokio::test]
    async fn what_hyper_refuses_is_left_to_it() {
        for (before, close) in [
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "x\r\n"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "\r\n"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "10000000000000000\r\n"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "0\n\n"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nxy"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "1;\n"),
            ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n", ""),
            ("POST / HTTP/1.1\r\nContent-Length: 4, 4\r\n\r\n", ""),
            ("POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\n", ""),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", ""),
            ("\r", "x"),
            (" ", ""),
        ] {
            let octets = format!("{before}{close}{BOTH}");
            assert!(!refused(&octets), "{octets}");
            let (_, called) = served(&octets, 1024, Then::Stay).await;
            assert!(!called.contains(&"/x".to_owned()), "{octets}");
        }
    }

    #[test]
    fn a_websocket_stops_the_looking() {
        let asked = "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        for begin in [0x01, 0x02, 0x81, 0x82, 0x88, 0x89, 0x8a] {
            let mut framing = Framing::default();
            assert_eq!(framing.read(asked.as_bytes()), Ok(()));
            assert_eq!(framing.read(&[begin]), Ok(()));
            assert_eq!(framing.read(format!("\n{BOTH}").as_bytes()), Ok(()), "{begin:#x}");
        }
        assert!(refused(&format!("{asked}{BOTH}")), "it may be declined");
    }

    proptest! {
        #[test]
        fn no_octets_are_too_much(octets in proptest::collection::vec(any::<u8>(), 0..300), at_once in 1_usize..20) {
            prop_assert_eq!(refused_at(&octets, at_once), refused_at(&octets, octets.len()));
        }

        #[test]
        fn parts_give_the_verdict_of_the_whole(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("GET / HTTP/1.1\r\n"),
                    Just("Content-Length: 2\r\n"),
                    Just("content-length:"),
                    Just("Transfer-Encoding: chunked\r\n"),
                    Just("\r\n"),
                    Just("\n"),
                    Just("\r"),
                    Just("5"),
                    Just("0\r\n"),
                    Just("4;x\r\nbody\r\n"),
                    Just(":"),
                ],
                0..30,
            ),
            at_once in 1_usize..20,
        ) {
            let octets = pieces.concat();
            prop_assert_eq!(refused_at(octets.as_bytes(), at_once), refused_at(octets.as_bytes(), octets.len()));
        }
    }

    proptest! {
        /// Whatever comes before it, and wherever hyper thinks that ends.
        #[test]
        fn hyper_never_sees_an_ambiguous_head(
            pieces in proptest::collection::vec(
                prop_oneof![
                    3 => Just("GET / HTTP/1.1\r\n\r\n"),
                    3 => Just("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
                    2 => Just("POST / HTTP/1.1\nContent-Length: 9\n\n"),
                    1 => Just("GET / HTTP/1.1\r\nUpgrade: x\r\n"),
                    1 => Just("GET / HTTP/1.1\r\nContent-Length: 00 \r\n"),
                    3 => Just("9\r\n"),
                    3 => Just("123456789"),
                    3 => Just("0\r\n"),
                    1 => Just("0 ;x\r\n"),
                    1 => Just("A: b\r\n"),
                    4 => Just("\r\n"),
                    1 => Just("\n"),
                    1 => Just("\r"),
                ],
                0..12,
            ),
            at_once in 1_usize..200,
        ) {
            let octets = format!("{}{BOTH}", pieces.concat());
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (_, called) = runtime.block_on(served(&octets, at_once, Then::Shut));
            prop_assert!(!called.contains(&"/x".to_owned()));
        }
    }

    /// What a client does that has sent everything.
    #[derive(Clone, Copy, PartialEq)]
    enum Then {
        /// Waits for hyper to close.
        Stay,
        Shut,
    }

    /// What hyper answers on a guarded connection, and the paths its service
    /// was called with.
    async fn served(octets: &str, at_once: usize, then: Then) -> (String, Vec<String>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let called = Arc::new(Mutex::new(Vec::new()));
        let calls = called.clone();
        let server = tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                calls.lock().expect("nobody panics").push(request.uri().path().to_owned());
                async move {
                    // A body that breaks is none of ours.
                    let _ = request.into_body().collect().await;
                    Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from_static(b"hello"))))
                }
            });
            // That it ended by a request it could not parse is what we want.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(Guarded::new(far)), service)
                .await;
        });
        let (mut answers, mut requests) = tokio::io::split(near);
        for part in octets.as_bytes().chunks(at_once) {
            if requests.write_all(part).await.is_err() {
                break;
            }
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        }
        if then == Then::Shut {
            // It may have closed already.
            let _ = requests.shutdown().await;
        }
        let mut answer = String::new();
        answers.read_to_string(&mut answer).await.expect("text until hyper closes");
        server.await.expect("the server ends");
        let called = called.lock().expect("nobody panics").clone();
        (answer, called)
    }

    #[tokio::test]
    async fn hyper_answers_400_and_calls_nobody() {
        let twice = "POST /x HTTP/1.1\nContent-Length: 4\nContent-Length: 4\n\n";
        for ambiguous in [BOTH, twice] {
            for at_once in [1, 2, 3, 5, ambiguous.len() - 1, 1024] {
                let (answer, called) = served(&format!("{ambiguous}4\r\nbody\r\n0\r\n\r\n"), at_once, Then::Stay).await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{answer} by {at_once}");
                assert_eq!(called, Vec::<String>::new(), "by {at_once}");
            }
        }
    }

    #[tokio::test]
    async fn hyper_serves_what_came_before() {
        let clear = "GET /1 HTTP/1.1\r\n\r\n\
            POST /2 HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody\
            POST /3 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;x\r\nbody\r\n0\r\n\nA: b\r\nC: d\r\n\r\n\
            GET /4 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n\
            HEAD /5 HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
        for at_once in [1, 2, 3, 7, 64, 1024] {
            let (answer, called) = served(&format!("{clear}{BOTH}4\r\nbody\r\n0\r\n\r\n"), at_once, Then::Stay).await;
            assert_eq!(called, ["/1", "/2", "/3", "/4", "/5"], "by {at_once}");
            assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 5, "{answer} by {at_once}");
            assert_eq!(answer.matches("HTTP/1.1 400 ").count(), 1, "{answer} by {at_once}");
        }
    }

    #[tokio::test]
    async fn a_reader_with_little_room_sees_no_complete_head() {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(BOTH.as_bytes()).await.expect("there is room");
        let mut guarded = Guarded::new(far);
        let mut read = Vec::new();
        while let Ok(octet) = guarded.read_u8().await {
            read.push(octet);
        }
        assert_eq!(read, [&BOTH.as_bytes()[..BOTH.len() - 1], SPOILT].concat());
    }

    #[tokio::test]
    async fn writes_pass() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut near = Guarded::new(near);
        assert!(near.is_write_vectored());
        let slices = [io::IoSlice::new(b"one "), io::IoSlice::new(b"two")];
        assert_eq!(near.write_vectored(&slices).await.expect("there is room"), 7);
        near.shutdown().await.expect("it shuts down");
        let mut read = String::new();
        far.read_to_string(&mut read).await.expect("what was written");
        assert_eq!(read, "one two");
    }
}
