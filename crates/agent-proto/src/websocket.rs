//! One end of a WebSocket ([RFC 6455]): towards visitors as the server, towards a
//! local server as the client.
//!
//! Strict where [`bridge`](crate::bridge) is not, because here stands whoever finds
//! the address. Handshake and extensions are elsewhere: none is agreed on.
//!
//! [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::{FrameError, FrameHeader, Opcode, apply_mask, encode_close, encode_frame, is_valid_close_code};

/// Which end of the WebSocket we are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// We dialled; the peer must not mask.
    Client,
    /// We answered; the peer must mask.
    Server,
}

/// Reads what the peer sends, message by message.
///
/// Holds at most one message besides the chunk that was pushed last.
#[derive(Debug)]
pub struct Reader {
    role: Role,
    max_message: usize,
    /// What has not been read yet.
    input: BytesMut,
    /// The data frame whose payload is arriving.
    frame: Option<Frame>,
    message: Option<Assembly>,
    /// Why nothing more is read.
    end: Option<Result<(), Violation>>,
}

impl Reader {
    /// A reader at the start of a WebSocket, of which we are the end `role`, for
    /// messages of at most `max_message` octets.
    #[must_use]
    pub fn new(role: Role, max_message: usize) -> Self {
        Self { role, max_message, input: BytesMut::new(), frame: None, message: None, end: None }
    }

    /// Adds what arrived. A caller then asks [`next_event`](Self::next_event) until
    /// there is no more.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.end.is_none() {
            self.input.extend_from_slice(chunk);
        }
    }

    /// What the peer did next, or `None` until more has arrived.
    ///
    /// Fragments are put together, and control frames between them come first.
    /// After [`Event::Close`] nothing more is read.
    ///
    /// # Errors
    ///
    /// The peer broke a rule: we close with [`Violation::close_code`]. Nothing more
    /// is read, and every later call says so again. Which violation it is does not
    /// depend on the sizes of the chunks.
    pub fn next_event(&mut self) -> Result<Option<Event>, Violation> {
        if let Some(end) = self.end {
            return end.map(|()| None);
        }
        let event = self.advance();
        match &event {
            Ok(Some(Event::Close { .. })) => self.stop(Ok(())),
            Ok(_) => {}
            Err(violation) => self.stop(Err(*violation)),
        }
        event
    }

    fn advance(&mut self) -> Result<Option<Event>, Violation> {
        loop {
            if let Some(frame) = self.frame {
                match self.read_payload(frame)? {
                    Progress::Starved => return Ok(None),
                    Progress::Fragment => {}
                    Progress::Message(event) => return Ok(Some(event)),
                }
            }

            let Some((header, header_len)) = FrameHeader::parse(&self.input)? else { return Ok(None) };
            self.check(&header)?;
            if header.opcode.is_control() {
                // Checked to be at most 125, so the whole frame can be waited for.
                let len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
                if self.input.len() - header_len < len {
                    return Ok(None);
                }
                self.input.advance(header_len);
                let mut payload = self.input.split_to(len);
                if let Some(key) = header.mask {
                    apply_mask(&mut payload, key, 0);
                }
                return control(header.opcode, &payload).map(Some);
            }
            self.input.advance(header_len);
            self.begin(&header)?;
        }
    }

    /// What every header must meet, whatever came before it.
    fn check(&self, header: &FrameHeader) -> Result<(), Violation> {
        if header.rsv != 0 {
            return Err(FrameError::ReservedBits.into());
        }
        match (self.role, header.mask) {
            (Role::Server, None) => Err(Violation::NotMasked),
            (Role::Client, Some(_)) => Err(Violation::Masked),
            (Role::Server, Some(_)) | (Role::Client, None) => Ok(()),
        }
    }

    fn begin(&mut self, header: &FrameHeader) -> Result<(), Violation> {
        let message = match (header.opcode, self.message.take()) {
            (Opcode::Continuation, None) => return Err(FrameError::StrayContinuation.into()),
            (Opcode::Continuation, Some(message)) => message,
            (_, Some(_)) => return Err(FrameError::MessageUnfinished.into()),
            (Opcode::Text, None) => Assembly::Text(Text::default()),
            (_, None) => Assembly::Binary(Vec::new()),
        };

        let too_large = Violation::MessageTooLarge { max_message: self.max_message };
        let room = self.max_message.saturating_sub(message.len());
        let remaining = usize::try_from(header.payload_len).map_err(|_| too_large)?;
        if remaining > room {
            return Err(too_large);
        }
        self.message = Some(message);
        self.frame = Some(Frame { fin: header.fin, mask: header.mask, offset: 0, remaining });
        Ok(())
    }

    /// Moves what has arrived of `frame` into the message.
    fn read_payload(&mut self, mut frame: Frame) -> Result<Progress, Violation> {
        let len = frame.remaining.min(self.input.len());
        let payload = &mut self.input[..len];
        if let Some(key) = frame.mask {
            apply_mask(payload, key, frame.offset);
        }
        if let Some(message) = &mut self.message {
            message.push(payload, self.max_message)?;
        }
        self.input.advance(len);
        frame.remaining -= len;
        frame.offset = (frame.offset + len) % 4;

        if frame.remaining > 0 {
            self.frame = Some(frame);
            return Ok(Progress::Starved);
        }
        self.frame = None;
        if !frame.fin {
            return Ok(Progress::Fragment);
        }
        match self.message.take() {
            Some(message) => message.finish().map(Progress::Message),
            None => Ok(Progress::Fragment),
        }
    }

    fn stop(&mut self, end: Result<(), Violation>) {
        *self = Self { end: Some(end), ..Self::new(self.role, self.max_message) };
    }
}

/// What the peer of a WebSocket did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// Sent a text message.
    Text(String),
    /// Sent a binary message.
    Binary(Bytes),
    /// Asks for a [`Opcode::Pong`] with this payload.
    Ping(Bytes),
    /// Answered a Ping, or said that it is there.
    Pong(Bytes),
    /// Closed; a code, if there is one, [is valid](is_valid_close_code).
    Close {
        /// The code, if the frame had one.
        code: Option<u16>,
        /// Why; often empty.
        reason: String,
    },
}

/// What the peer of a WebSocket may not do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Sent what is no frame, or not in this place.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Masked, as a server.
    #[error("frame of a server is masked")]
    Masked,
    /// Did not mask, as a client.
    #[error("frame of a client is not masked")]
    NotMasked,
    /// Sent a Close frame with half a code.
    #[error("payload of a close frame has one octet")]
    CloseTooShort,
    /// Closed with a code that is not [for the wire](is_valid_close_code).
    #[error("close code {0} is not valid")]
    CloseCode(u16),
    /// Sent a text message or a reason that is not UTF-8.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// Sent a message above our limit, or announced one.
    #[error("message is longer than {max_message} octets")]
    MessageTooLarge {
        /// The limit.
        max_message: usize,
    },
}

impl Violation {
    /// The code to close with
    /// ([RFC 6455, section 7.4.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1)).
    #[must_use]
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::Frame(_) | Self::Masked | Self::NotMasked | Self::CloseTooShort | Self::CloseCode(_) => 1002,
            Self::InvalidUtf8 => 1007,
            Self::MessageTooLarge { .. } => 1009,
        }
    }
}

/// Appends an unfragmented frame. Clients give a `mask` that nobody can foresee
/// ([RFC 6455, section 10.3](https://www.rfc-editor.org/rfc/rfc6455#section-10.3)),
/// servers none.
pub fn write_frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut BytesMut) {
    encode_frame(opcode, payload, mask, out);
}

/// Appends a Close frame. A `reason` of more than 123 octets is cut, at a character,
/// and without a `code` there is none. Whether the code
/// [is valid](is_valid_close_code) is left to the caller.
pub fn write_close(code: Option<u16>, reason: &str, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    encode_close(code, reason, mask, out);
}

fn control(opcode: Opcode, payload: &[u8]) -> Result<Event, Violation> {
    match opcode {
        Opcode::Ping => return Ok(Event::Ping(Bytes::copy_from_slice(payload))),
        Opcode::Close => {}
        _ => return Ok(Event::Pong(Bytes::copy_from_slice(payload))),
    }
    let Some((code, reason)) = payload.split_first_chunk() else {
        let empty = Event::Close { code: None, reason: String::new() };
        return if payload.is_empty() { Ok(empty) } else { Err(Violation::CloseTooShort) };
    };
    let code = u16::from_be_bytes(*code);
    if !is_valid_close_code(code) {
        return Err(Violation::CloseCode(code));
    }
    let reason = str::from_utf8(reason).map_err(|_| Violation::InvalidUtf8)?;
    Ok(Event::Close { code: Some(code), reason: reason.to_owned() })
}

/// What reading a payload came to.
enum Progress {
    /// The rest of the frame has not arrived.
    Starved,
    /// The frame is done, its message is not.
    Fragment,
    /// The message is done.
    Message(Event),
}

/// One data frame of which the header has been read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    fin: bool,
    mask: Option<[u8; 4]>,
    /// How much of the payload has been read, modulo the length of the key.
    offset: usize,
    remaining: usize,
}

/// A message of which fragments may be missing.
#[derive(Debug)]
enum Assembly {
    Text(Text),
    Binary(Vec<u8>),
}

impl Assembly {
    /// Adds octets, that the caller has found to fit below `max_message`.
    fn push(&mut self, octets: &[u8], max_message: usize) -> Result<(), Violation> {
        match self {
            Self::Text(text) => text.push(octets, max_message),
            Self::Binary(data) => {
                data.reserve_exact(growth(data.len(), data.capacity(), octets.len(), max_message));
                data.extend_from_slice(octets);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Event, Violation> {
        match self {
            Self::Text(text) if text.partial_len > 0 => Err(Violation::InvalidUtf8),
            Self::Text(text) => Ok(Event::Text(text.whole)),
            Self::Binary(data) => Ok(Event::Binary(Bytes::from(data))),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.whole.len() + text.partial_len,
            Self::Binary(data) => data.len(),
        }
    }
}

/// Text that ends anywhere, even inside a character.
#[derive(Debug, Default)]
struct Text {
    whole: String,
    /// The first octets of the character after `whole`.
    partial: [u8; 4],
    partial_len: usize,
}

impl Text {
    /// Adds octets, and fails with the first that no UTF-8 can have in its place
    /// ([RFC 6455, section 8.1](https://www.rfc-editor.org/rfc/rfc6455#section-8.1)).
    fn push(&mut self, octets: &[u8], max_message: usize) -> Result<(), Violation> {
        let more = self.partial_len + octets.len();
        self.whole.reserve_exact(growth(self.whole.len(), self.whole.capacity(), more, max_message));

        let mut rest = octets;
        while self.partial_len > 0 {
            let Some((&octet, after)) = rest.split_first() else { return Ok(()) };
            rest = after;
            self.partial[self.partial_len] = octet;
            self.partial_len += 1;
            match str::from_utf8(&self.partial[..self.partial_len]) {
                Ok(character) => {
                    self.whole.push_str(character);
                    self.partial_len = 0;
                }
                // Four octets are a character or never will be.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Violation::InvalidUtf8),
            }
        }

        let (whole, partial) = rest.split_at(rest.len() - partial_character(rest));
        self.whole.push_str(str::from_utf8(whole).map_err(|_| Violation::InvalidUtf8)?);
        if str::from_utf8(partial).is_err_and(|error| error.error_len().is_some()) {
            return Err(Violation::InvalidUtf8);
        }
        self.partial[..partial.len()].copy_from_slice(partial);
        self.partial_len = partial.len();
        Ok(())
    }
}

/// How many octets at the end begin a character, by the look of the first, without
/// being all of it.
fn partial_character(octets: &[u8]) -> usize {
    for (before, &octet) in octets.iter().rev().take(3).enumerate() {
        let is_continuation = octet & 0xc0 == 0x80;
        if !is_continuation {
            let held = before + 1;
            return if octet.leading_ones() as usize > held { held } else { 0 };
        }
    }
    0
}

/// How much to reserve for `more` octets: twice what there was, as `Vec` does, but
/// no more than a message can need.
fn growth(len: usize, capacity: usize, more: usize, max_message: usize) -> usize {
    let needed = len + more;
    if needed <= capacity { 0 } else { capacity.saturating_mul(2).min(max_message).max(needed) - len }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const MAX: usize = 70_000;

    /// A masked frame with `first` as its first octet, whatever that is.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        write_frame(Opcode::Binary, payload, Some(KEY), &mut out);
        out[0] = first;
        out.to_vec()
    }

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
    }

    fn read(role: Role, max_message: usize, octets: &[u8], size: usize) -> (Vec<Event>, Option<Violation>) {
        let mut reader = Reader::new(role, max_message);
        let mut events = Vec::new();
        for chunk in octets.chunks(size) {
            reader.push(chunk);
            loop {
                match reader.next_event() {
                    Ok(Some(event)) => events.push(event),
                    Ok(None) => break,
                    Err(violation) => {
                        assert_eq!(reader.next_event(), Err(violation));
                        return (events, Some(violation));
                    }
                }
            }
            assert!(reader.input.len() < 14 + 125, "only a control frame is waited for");
            let capacity = match &reader.message {
                None => 0,
                Some(Assembly::Text(text)) => text.whole.capacity(),
                Some(Assembly::Binary(data)) => data.capacity(),
            };
            assert!(capacity <= max_message, "{capacity}");
        }
        (events, None)
    }

    #[track_caller]
    fn check(octets: &[u8], events: &[Event], violation: Option<Violation>) {
        for size in [1, 2, 3, 7, 1000, usize::MAX] {
            let (read, stop) = read(Role::Server, MAX, octets, size);
            assert_eq!((read.as_slice(), stop), (events, violation), "chunks of {size}");
        }
    }

    fn text(text: &str) -> Event {
        Event::Text(text.to_owned())
    }

    fn binary(octets: &[u8]) -> Event {
        Event::Binary(Bytes::copy_from_slice(octets))
    }

    fn ping(octets: &[u8]) -> Event {
        Event::Ping(Bytes::copy_from_slice(octets))
    }

    fn pong(octets: &[u8]) -> Event {
        Event::Pong(Bytes::copy_from_slice(octets))
    }

    fn close(code: Option<u16>, reason: &str) -> Event {
        Event::Close { code, reason: reason.to_owned() }
    }

    #[test]
    fn messages_of_every_length_are_read() {
        for len in [0, 1, 125, 126, 127, 128, 65_535, 65_536, MAX] {
            check(&frame(0x81, &vec![b'*'; len]), &[text(&"*".repeat(len))], None);
            check(&frame(0x82, &vec![0xfe; len]), &[binary(&vec![0xfe; len])], None);
        }
    }

    #[test]
    fn example_of_the_rfc_is_read() {
        // RFC 6455, section 5.7.
        let hello = [text("Hello")];
        check(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", &hello, None);
        let unmasked: [&[u8]; 2] = [b"\x81\x05\x48\x65\x6c\x6c\x6f", b"\x01\x03\x48\x65\x6c\x80\x02\x6c\x6f"];
        for octets in unmasked {
            assert_eq!(read(Role::Client, MAX, octets, 1), (hello.to_vec(), None));
        }
    }

    #[test]
    fn masks_are_as_the_role_wants_them() {
        let unmasked = b"\x81\x05Hello";
        check(unmasked, &[], Some(Violation::NotMasked));
        check(b"\x89\x00", &[], Some(Violation::NotMasked));
        for octets in [frame(0x81, b"Hello"), frame(0x89, b"")] {
            assert_eq!(read(Role::Client, MAX, &octets, 1), (vec![], Some(Violation::Masked)));
        }
    }

    #[test]
    fn control_frames_are_read() {
        let full = [b'*'; 125];
        check(&frame(0x89, b""), &[ping(b"")], None);
        check(&frame(0x89, &full), &[ping(&full)], None);
        check(&frame(0x8a, b""), &[pong(b"")], None);
        check(&frame(0x8a, b"\x00\xff"), &[pong(b"\x00\xff")], None);
        check(&frames(&[(0x89, b"1"), (0x89, b"2"), (0x8a, b"3")]), &[ping(b"1"), ping(b"2"), pong(b"3")], None);
        for first in [0x88, 0x89, 0x8a] {
            check(&frame(first, &[0; 126]), &[], Some(FrameError::ControlTooLong.into()));
        }
        for first in [0x08, 0x09, 0x0a] {
            check(&frame(first, b""), &[], Some(FrameError::FragmentedControl.into()));
        }
    }

    #[test]
    fn reserved_bits_and_opcodes_are_refused() {
        for first in [0xc1, 0xa1, 0x91, 0xf2, 0xc9, 0xa8] {
            let octets = frames(&[(0x81, b"ok"), (first, b"no"), (0x89, b"")]);
            check(&octets, &[text("ok")], Some(FrameError::ReservedBits.into()));
        }
        for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
            let octets = frames(&[(0x89, b"ok"), (0x80 | opcode, b"no")]);
            check(&octets, &[ping(b"ok")], Some(FrameError::ReservedOpcode(opcode).into()));
        }
    }

    #[test]
    fn lengths_are_in_their_shortest_form() {
        let table: [(&[u8], FrameError); 3] = [
            (b"\x81\xfe\x00\x05\0\0\0\0hello", FrameError::LengthNotMinimal),
            (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", FrameError::LengthNotMinimal),
            (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", FrameError::LengthTooLarge),
        ];
        for (octets, error) in table {
            check(octets, &[], Some(error.into()));
        }
    }

    #[test]
    fn fragments_are_put_together() {
        check(&frames(&[(0x01, b"a"), (0x80, b"b")]), &[text("ab")], None);
        check(&frames(&[(0x01, b""), (0x00, b""), (0x80, b"")]), &[text("")], None);
        check(&frames(&[(0x02, b""), (0x00, b"a"), (0x00, b""), (0x80, b"")]), &[binary(b"a")], None);
        check(
            &frames(&[(0x01, b"a"), (0x89, b"1"), (0x00, b"b"), (0x8a, b"2"), (0x89, b""), (0x80, b"c"), (0x82, b"d")]),
            &[ping(b"1"), pong(b"2"), ping(b""), text("abc"), binary(b"d")],
            None,
        );
        check(&frames(&[(0x01, b"a"), (0x88, b"")]), &[close(None, "")], None);
    }

    #[test]
    fn fragments_out_of_place_are_refused() {
        let stray = Some(FrameError::StrayContinuation.into());
        let unfinished = Some(FrameError::MessageUnfinished.into());
        check(&frames(&[(0x80, b"a")]), &[], stray);
        check(&frames(&[(0x00, b"a"), (0x80, b"b")]), &[], stray);
        check(&frames(&[(0x81, b"a"), (0x80, b"b")]), &[text("a")], stray);
        check(&frames(&[(0x01, b"a"), (0x80, b"b"), (0x80, b"c")]), &[text("ab")], stray);
        check(&frames(&[(0x01, b"a"), (0x81, b"b")]), &[], unfinished);
        check(&frames(&[(0x02, b"a"), (0x89, b""), (0x02, b"b")]), &[ping(b"")], unfinished);
    }

    #[test]
    fn text_is_utf8_across_fragments() {
        let whole = "κόσμε 𐍈 \u{10ffff}\u{fffe}\0";
        for at in 0..=whole.len() {
            let (first, second) = whole.as_bytes().split_at(at);
            check(&frames(&[(0x81, whole.as_bytes())]), &[text(whole)], None);
            let octets = frames(&[(0x01, first), (0x89, b""), (0x00, b""), (0x80, second)]);
            check(&octets, &[ping(b""), text(whole)], None);
        }
        let octet_by_octet: Vec<u8> = whole.bytes().flat_map(|octet| frame(0x00, &[octet])).collect();
        check(&[frame(0x01, b""), octet_by_octet, frame(0x80, b"")].concat(), &[text(whole)], None);
    }

    #[test]
    fn text_that_cannot_become_utf8_is_refused_at_once() {
        let table: &[&[u8]] = &[
            b"\x80",
            b"\xbf",
            b"\xc0",
            b"\xc1",
            b"\xf5",
            b"\xff",
            b"\xc3\x28",
            b"\xe0\x9f",
            b"\xe1\x80\xe1",
            b"\xed\xa0",
            b"\xed\xbf",
            b"\xf0\x8f",
            b"\xf4\x90",
            b"\xf1\x80\x80\x7f",
            b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0",
        ];
        for &octets in table {
            for before in ["", "a", "é", "0123456789abcdef"] {
                let bad = [before.as_bytes(), octets].concat();
                // The frame goes on, and so does the message.
                let mut more = frame(0x01, &[&bad[..], &[b'*'; 50]].concat());
                more.truncate(6 + bad.len());
                for size in [1, 2, 3, usize::MAX] {
                    let short = &more[..more.len() - 1];
                    assert_eq!(read(Role::Server, MAX, short, size), (vec![], None), "{bad:x?}");
                }
                check(&more, &[], Some(Violation::InvalidUtf8));
                // Split before the octet that shows it.
                let (first, last) = bad.split_at(bad.len() - 1);
                check(&frames(&[(0x01, first), (0x00, last)]), &[], Some(Violation::InvalidUtf8));
            }
        }
    }

    #[test]
    fn text_that_ends_inside_a_character_is_refused() {
        for partial in ["é", "κ", "€", "😀"].map(str::as_bytes).map(|character| &character[..character.len() - 1])
        {
            check(&frame(0x81, partial), &[], Some(Violation::InvalidUtf8));
            check(&frames(&[(0x01, partial), (0x80, b"")]), &[], Some(Violation::InvalidUtf8));
            check(&frames(&[(0x01, partial), (0x00, b"")]), &[], None);
            check(&frames(&[(0x01, partial), (0x80, b"a")]), &[], Some(Violation::InvalidUtf8));
        }
        check(&frame(0x82, b"\xff"), &[binary(b"\xff")], None);
        check(&frame(0x89, b"\xff"), &[ping(b"\xff")], None);
    }

    #[test]
    fn closes_are_checked_and_end_the_reading() {
        let close_with = |code: u16, reason: &[u8]| frame(0x88, &[&code.to_be_bytes(), reason].concat());
        let then_ping = |octets: Vec<u8>| [octets, frame(0x89, b"")].concat();
        check(&then_ping(frame(0x88, b"")), &[close(None, "")], None);
        check(&then_ping(close_with(1000, b"")), &[close(Some(1000), "")], None);
        check(&then_ping(close_with(4123, "tschüß".as_bytes())), &[close(Some(4123), "tschüß")], None);
        check(&close_with(1000, &[b'*'; 123]), &[close(Some(1000), &"*".repeat(123))], None);
        check(&then_ping(frame(0x88, b"\x03")), &[], Some(Violation::CloseTooShort));
        check(&close_with(1000, b"\xce"), &[], Some(Violation::InvalidUtf8));
        check(&close_with(1000, b"\xed\xa0\x80"), &[], Some(Violation::InvalidUtf8));
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            check(&close_with(code, b""), &[close(Some(code), "")], None);
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            check(&close_with(code, b"why"), &[], Some(Violation::CloseCode(code)));
        }
    }

    #[test]
    fn messages_above_the_limit_are_refused_by_their_headers() {
        let too_large = Some(Violation::MessageTooLarge { max_message: MAX });
        let header = |first, payload_len| {
            let opcode = Opcode::Binary;
            let header = FrameHeader { fin: true, rsv: 0, opcode, mask: Some(KEY), payload_len };
            let mut octets = header.to_octets().to_vec();
            octets[0] = first;
            octets
        };
        check(&header(0x82, MAX as u64), &[], None);
        check(&header(0x82, MAX as u64 + 1), &[], too_large);
        check(&header(0x81, u64::MAX >> 1), &[], too_large);
        let most = vec![b'*'; MAX - 1];
        for first in [0x01, 0x02] {
            check(&[frame(first, &most), header(0x80, 1)].concat(), &[], None);
            check(&[frame(first, &most), header(0x80, 2)].concat(), &[], too_large);
        }
        // A character that is not whole counts too.
        let octets = [frame(0x01, b"ab\xf0\x9f\x98"), header(0x80, 1)].concat();
        let violation = Violation::MessageTooLarge { max_message: 5 };
        assert_eq!(read(Role::Server, 5, &octets, 1), (vec![], Some(violation)));
        assert_eq!(read(Role::Server, 0, &frame(0x81, b""), 1), (vec![text("")], None));
    }

    #[test]
    fn violations_have_their_close_codes() {
        let table = [
            (Violation::Frame(FrameError::ReservedBits), 1002),
            (Violation::Masked, 1002),
            (Violation::NotMasked, 1002),
            (Violation::CloseTooShort, 1002),
            (Violation::CloseCode(1006), 1002),
            (Violation::InvalidUtf8, 1007),
            (Violation::MessageTooLarge { max_message: 1 }, 1009),
        ];
        for (violation, code) in table {
            assert_eq!(violation.close_code(), code);
        }
    }

    #[test]
    fn frames_are_written() {
        let mut out = BytesMut::new();
        write_frame(Opcode::Text, b"Hello", None, &mut out);
        write_frame(Opcode::Text, b"Hello", Some(KEY), &mut out);
        write_close(Some(1001), "bye", None, &mut out);
        write_close(None, "bye", None, &mut out);
        let expected = b"\x81\x05Hello\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x88\x05\x03\xe9bye\x88\x00";
        assert_eq!(out, expected.as_slice());
    }

    fn event() -> impl Strategy<Value = Event> {
        let octets = |max| prop::collection::vec(any::<u8>(), 0..=max).prop_map(Bytes::from);
        prop_oneof![
            3 => ".{0,200}".prop_map(Event::Text),
            3 => octets(300).prop_map(Event::Binary),
            1 => octets(125).prop_map(Event::Ping),
            1 => octets(125).prop_map(Event::Pong),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            events in prop::collection::vec((event(), any::<prop::sample::Index>(), any::<Option<u8>>()), 0..10),
            mask: Option<[u8; 4]>,
            size in 1_usize..200,
            reason in ".{0,200}",
        ) {
            let mut out = BytesMut::new();
            let mut expected = Vec::new();
            for (event, at, between) in events {
                let (opcode, payload): (_, &[u8]) = match &event {
                    Event::Text(text) => (Opcode::Text, text.as_bytes()),
                    Event::Binary(payload) => (Opcode::Binary, payload),
                    Event::Ping(payload) => (Opcode::Ping, payload),
                    Event::Pong(payload) => (Opcode::Pong, payload),
                    Event::Close { .. } => continue,
                };
                // Some messages are cut in two, and some of those have a Ping inside.
                let at = if opcode.is_control() { payload.len() } else { at.index(payload.len() + 1) };
                let start = out.len();
                write_frame(opcode, &payload[..at], mask, &mut out);
                if at < payload.len() {
                    out[start] &= 0x7f;
                    if let Some(between) = between {
                        write_frame(Opcode::Ping, &[between], mask, &mut out);
                        expected.push(ping(&[between]));
                    }
                    write_frame(Opcode::Continuation, &payload[at..], mask, &mut out);
                }
                expected.push(event);
            }
            write_close(Some(3000), &reason, mask, &mut out);

            let role = if mask.is_some() { Role::Server } else { Role::Client };
            let (mut events, violation) = read(role, 2000, &out, size);
            prop_assert_eq!(violation, None);
            let Some(Event::Close { code: Some(3000), reason: cut }) = events.pop() else { panic!("no close") };
            prop_assert!(reason.starts_with(&cut) && cut.len() >= reason.len().min(120));
            prop_assert_eq!(events, expected);
        }

        #[test]
        fn chunks_change_nothing(
            parts in prop::collection::vec(
                (prop::sample::select(vec![0x00, 0x00, 0x01, 0x02, 0x80, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0xc1, 0x83]),
                 prop_oneof![
                    any::<String>().prop_map(String::into_bytes),
                    prop::collection::vec(any::<u8>(), 0..200),
                    "[aé€😀]{1,8}".prop_map(|text| text.as_bytes()[..text.len() - 1].to_vec()),
                 ]),
                0..10,
            ),
            flip in any::<Option<(prop::sample::Index, u8)>>(),
            size in 1_usize..300,
            max_message in prop::sample::select(vec![0_usize, 10, 100, 1000]),
        ) {
            let mut octets: Vec<u8> = parts.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
            if let Some((at, bits)) = flip && !octets.is_empty() {
                let at = at.index(octets.len());
                octets[at] ^= bits;
            }
            let at_once = read(Role::Server, max_message, &octets, usize::MAX);
            prop_assert_eq!(read(Role::Server, max_message, &octets, size), at_once.clone());
            prop_assert_eq!(read(Role::Server, max_message, &octets, 1), at_once);
        }

        #[test]
        fn text_is_what_std_says(octets in prop::collection::vec(prop::sample::select(
            vec![b'a', 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5],
        ), 0..10), size in 1_usize..20) {
            let (events, violation) = read(Role::Server, 100, &frame(0x81, &octets), size);
            match String::from_utf8(octets) {
                Ok(text) => prop_assert_eq!((events, violation), (vec![Event::Text(text)], None)),
                Err(_) => prop_assert_eq!((events, violation), (vec![], Some(Violation::InvalidUtf8))),
            }
        }
    }
}
