//! The two layers inside the DATA of a bridge stream.
//!
//! The outer layer are WebSocket frames, read by [`OuterDecoder`]. On a TCP bridge
//! their payload is what the visitor sent. On a WebSocket bridge it is a stream of
//! [`Message`]s, each a length of four octets and that much JSON; message and frame
//! boundaries have nothing to do with each other.

use std::borrow::Cow;
use std::collections::VecDeque;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;

use crate::frame::{FrameError, FrameHeader, HeaderOctets, MAX_HEADER, Opcode, apply_mask, encode_close, encode_frame};

/// Takes a bridge stream apart into frames.
///
/// Agents mask what they send and the edge does not, but either may: a frame is
/// taken as it comes. The payload of data frames is given out as it arrives, so no
/// frame is too long. Chunks that nobody else holds are unmasked where they lie.
///
/// A peer that is wrong about anything but frames is not noticed here: neither the
/// codes nor the reasons of Close frames are checked.
#[derive(Debug, Default)]
pub struct OuterDecoder {
    chunks: VecDeque<Chunk>,
    /// The octets of a header that has not arrived whole.
    header: [u8; MAX_HEADER],
    header_len: usize,
    frame: Option<Frame>,
    /// The payload of a control frame so far.
    control: Vec<u8>,
    /// What the message is whose last fragment has not begun.
    fragmented: Option<Opcode>,
    /// Why nothing more is read.
    end: Option<Result<(), FrameError>>,
}

impl OuterDecoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what arrived. It is held until [`next_event`](Self::next_event) has
    /// given it out, so a caller asks until there is no more.
    pub fn push(&mut self, chunk: Bytes) {
        if self.end.is_none() && !chunk.is_empty() {
            self.chunks.push_back(Chunk::from(chunk));
        }
    }

    /// The next thing in the stream, or `None` until more has arrived.
    ///
    /// Frames without payload give no [`Outer::Data`]. After [`Outer::Close`] the
    /// rest of the stream is not read.
    ///
    /// # Errors
    ///
    /// The stream cannot be read further, and every later call says so again.
    pub fn next_event(&mut self) -> Result<Option<Outer>, FrameError> {
        if let Some(end) = self.end {
            return end.map(|()| None);
        }
        let event = self.advance();
        match &event {
            Ok(Some(Outer::Close { .. })) => self.stop(Ok(())),
            Ok(_) => {}
            Err(error) => self.stop(Err(*error)),
        }
        event
    }

    /// Whether the stream would be cut inside a frame if it ended here. Meant to
    /// be asked once [`next_event`](Self::next_event) has answered `None`.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.header_len > 0 || self.frame.is_some_and(|frame| frame.remaining > 0)
    }

    fn advance(&mut self) -> Result<Option<Outer>, FrameError> {
        loop {
            let Some(frame) = self.frame else {
                let Some(header) = self.read_header()? else { return Ok(None) };
                self.frame = Some(self.begin(header)?);
                continue;
            };
            if frame.remaining == 0 {
                self.frame = None;
                match self.finish(frame.opcode) {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            let Some(payload) = self.take_payload(frame) else { return Ok(None) };
            match frame.opcode {
                Opcode::Text => return Ok(Some(Outer::Text(payload))),
                Opcode::Binary | Opcode::Continuation => return Ok(Some(Outer::Data(payload))),
                Opcode::Close | Opcode::Ping | Opcode::Pong => self.control.extend_from_slice(&payload),
            }
        }
    }

    /// The next header, from the first chunk alone if it can be.
    fn read_header(&mut self) -> Result<Option<FrameHeader>, FrameError> {
        while let Some(chunk) = self.chunks.front_mut() {
            let octets = chunk.as_slice();
            let (parsed, held) = if self.header_len == 0 {
                (FrameHeader::parse(octets)?, 0)
            } else {
                let held = self.header_len;
                let more = octets.len().min(MAX_HEADER - held);
                self.header[held..held + more].copy_from_slice(&octets[..more]);
                (FrameHeader::parse(&self.header[..held + more])?, held)
            };
            if let Some((header, len)) = parsed {
                chunk.advance(len - held);
                if chunk.as_slice().is_empty() {
                    self.chunks.pop_front();
                }
                self.header_len = 0;
                return Ok(Some(header));
            }

            // No header is longer than `MAX_HEADER`, so the chunk is too short.
            let more = octets.len().min(MAX_HEADER - held);
            self.header[held..held + more].copy_from_slice(&octets[..more]);
            self.header_len = held + more;
            self.chunks.pop_front();
        }
        Ok(None)
    }

    fn begin(&mut self, header: FrameHeader) -> Result<Frame, FrameError> {
        if header.rsv != 0 {
            return Err(FrameError::ReservedBits);
        }
        let opcode = match (header.opcode, self.fragmented) {
            (control, _) if control.is_control() => control,
            (Opcode::Continuation, None) => return Err(FrameError::StrayContinuation),
            (Opcode::Continuation, Some(opcode)) => opcode,
            (_, Some(_)) => return Err(FrameError::MessageUnfinished),
            (opcode, None) => opcode,
        };
        if !opcode.is_control() {
            self.fragmented = (!header.fin).then_some(opcode);
        }
        Ok(Frame { opcode, mask: header.mask, offset: 0, remaining: header.payload_len })
    }

    /// What a frame of which all payload has been read amounts to.
    fn finish(&mut self, opcode: Opcode) -> Option<Outer> {
        let payload = std::mem::take(&mut self.control);
        match opcode {
            Opcode::Continuation | Opcode::Text | Opcode::Binary => None,
            Opcode::Ping => Some(Outer::Ping(Bytes::from(payload))),
            Opcode::Pong => Some(Outer::Pong),
            Opcode::Close => Some(match payload.split_first_chunk() {
                Some((code, reason)) => Outer::Close {
                    code: Some(u16::from_be_bytes(*code)),
                    reason: String::from_utf8_lossy(reason).into_owned(),
                },
                None => Outer::Close { code: None, reason: String::new() },
            }),
        }
    }

    /// As much of the payload of `frame` as the first chunk holds.
    fn take_payload(&mut self, mut frame: Frame) -> Option<Bytes> {
        let chunk = self.chunks.front_mut()?;
        let held = chunk.as_slice().len();
        let payload = match usize::try_from(frame.remaining) {
            Ok(remaining) if remaining < held => chunk.split_to(remaining),
            // All of the chunk, without the cost of a split.
            _ => self.chunks.pop_front()?,
        };
        let len = payload.as_slice().len();
        let payload = payload.unmask(frame.mask, frame.offset);
        frame.remaining -= len as u64;
        frame.offset = (frame.offset + len) % 4;
        self.frame = Some(frame);
        Some(payload)
    }

    fn stop(&mut self, end: Result<(), FrameError>) {
        *self = Self { end: Some(end), ..Self::default() };
    }
}

/// What arrives on a bridge stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outer {
    /// The next octets of binary frames; never empty. Where one frame ends and the
    /// next begins is not told.
    Data(Bytes),
    /// The next octets of text frames; never empty, and not checked to be UTF-8.
    Text(Bytes),
    /// Asks for a [`Opcode::Pong`] with this payload.
    Ping(Bytes),
    /// Means nothing.
    Pong,
    /// The last frame of this direction.
    Close {
        /// The code, if the frame had one, whatever it is.
        code: Option<u16>,
        /// The reason, with what is not UTF-8 replaced.
        reason: String,
    },
}

/// One frame of which the header has been read.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// For a continuation, that of the message.
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    /// How much of the payload has been read, modulo the length of the key.
    offset: usize,
    remaining: u64,
}

/// A part of the stream.
#[derive(Debug)]
enum Chunk {
    /// Nobody else sees these octets, so they may be changed.
    Unique(BytesMut),
    /// Somebody might.
    Shared(Bytes),
}

impl Chunk {
    fn advance(&mut self, count: usize) {
        match self {
            Self::Unique(octets) => octets.advance(count),
            Self::Shared(octets) => octets.advance(count),
        }
    }

    fn split_to(&mut self, at: usize) -> Self {
        match self {
            Self::Unique(octets) => Self::Unique(octets.split_to(at)),
            Self::Shared(octets) => Self::Shared(octets.split_to(at)),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Unique(octets) => octets,
            Self::Shared(octets) => octets,
        }
    }

    fn unmask(self, mask: Option<[u8; 4]>, offset: usize) -> Bytes {
        let (mut octets, key) = match (self, mask) {
            (Self::Unique(octets), Some(key)) => (octets, key),
            (Self::Shared(octets), Some(key)) => (BytesMut::from(octets.as_ref()), key),
            (Self::Unique(octets), None) => return octets.freeze(),
            (Self::Shared(octets), None) => return octets,
        };
        apply_mask(&mut octets, key, offset);
        octets.freeze()
    }
}

impl From<Bytes> for Chunk {
    fn from(octets: Bytes) -> Self {
        octets.try_into_mut().map_or_else(Self::Shared, Self::Unique)
    }
}

/// The header of an unfragmented outer frame, for a caller who has left
/// [`MAX_PREFIX`] octets of room before a payload. It does not touch the payload:
/// with a `mask`, [`apply_mask`] does.
#[must_use]
pub fn outer_prefix(opcode: Opcode, payload_len: usize, mask: Option<[u8; 4]>) -> HeaderOctets {
    FrameHeader { fin: true, rsv: 0, opcode, mask, payload_len: payload_len as u64 }.to_octets()
}

/// Appends an unfragmented outer frame. Agents give a `mask`, the edge does not.
pub fn encode_outer(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut BytesMut) {
    encode_frame(opcode, payload, mask, out);
}

/// Appends an outer Close frame. A `reason` of more than 123 octets is cut, at a
/// character.
pub fn encode_outer_close(code: u16, reason: &str, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    encode_close(Some(code), reason, mask, out);
}

/// What a WebSocket bridge carries: one message of the visitor or of the
/// application, or the end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
    /// The sender closed its WebSocket.
    Close {
        /// Any code, even one that no Close frame may hold.
        code: u16,
        /// Why; often empty.
        reason: String,
    },
}

impl Message {
    /// Appends the message in one outer frame. Agents give a `mask`, the edge does
    /// not.
    ///
    /// A message of 4 GiB or more has no encoding and appends nothing; every peer's
    /// limit is far below.
    pub fn encode(&self, mask: Option<[u8; 4]>, out: &mut BytesMut) {
        let json_len = self.json_len();
        let Ok(prefix) = u32::try_from(json_len) else { return };

        out.reserve(MAX_PREFIX + LENGTH + json_len);
        out.extend_from_slice(&outer_prefix(Opcode::Binary, LENGTH + json_len, mask));
        let start = out.len();
        out.put_u32(prefix);
        match self {
            Self::Text(text) => {
                out.extend_from_slice(TEXT.as_bytes());
                put_escaped(text, out);
                out.extend_from_slice(END.as_bytes());
            }
            Self::Binary(data) => {
                out.extend_from_slice(BINARY.as_bytes());
                put_base64(data, out);
                out.extend_from_slice(END.as_bytes());
            }
            Self::Close { code, reason } => {
                out.extend_from_slice(CLOSE.as_bytes());
                out.extend_from_slice(code.to_string().as_bytes());
                out.extend_from_slice(REASON.as_bytes());
                put_escaped(reason, out);
                out.extend_from_slice(END.as_bytes());
            }
        }
        if let Some(key) = mask {
            apply_mask(&mut out[start..], key, 0);
        }
    }

    /// How many octets [`encode`](Self::encode) appends without a mask, frame
    /// header included. Agents that never get more window than they started with
    /// can only take a message that fits into it whole.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let payload_len = LENGTH + self.json_len();
        outer_prefix(Opcode::Binary, payload_len, None).len() + payload_len
    }

    fn json_len(&self) -> usize {
        match self {
            Self::Text(text) => TEXT.len() + escaped_len(text) + END.len(),
            Self::Binary(data) => BINARY.len() + base64_len(data) + END.len(),
            Self::Close { code, reason } => {
                let digits = code.checked_ilog10().map_or(1, |log| log as usize + 1);
                CLOSE.len() + digits + REASON.len() + escaped_len(reason) + END.len()
            }
        }
    }

    /// Undoes [`encode`](Self::encode), or answers `None` for what is no message.
    fn from_json(json: &[u8]) -> Option<Self> {
        let json: Json<'_> = serde_json::from_slice(json).ok()?;
        match &*json.kind {
            "text" => Some(Self::Text(json.data?.0.into_owned())),
            "binary" => Some(Self::Binary(STANDARD.decode(json.data?.0.as_bytes()).ok()?.into())),
            "close" => {
                let reason = json.reason.map_or_else(String::new, |reason| reason.0.into_owned());
                Some(Self::Close { code: json.code?, reason })
            }
            _ => None,
        }
    }
}

/// Takes the octets of a WebSocket bridge, as [`Outer::Data`] and [`Outer::Text`]
/// give them, apart into messages.
///
/// What cannot be read is skipped, as agents do too: JSON that is none, types that
/// nobody knows, fields missing or of another type, base64 that is not padded or not
/// canonical, and a close without a `code` or with one that is no `u16`. A close may
/// leave out its `reason`.
#[derive(Debug)]
pub struct MessageDecoder {
    buffer: BytesMut,
    max_len: usize,
    error: Option<MessageTooLarge>,
}

impl MessageDecoder {
    /// A decoder at the start of a stream, for messages of at most `max_len` octets
    /// of JSON.
    #[must_use]
    pub fn new(max_len: usize) -> Self {
        Self { buffer: BytesMut::new(), max_len, error: None }
    }

    /// Adds what arrived, unless it belongs to a message that is too large. A
    /// caller then asks [`next_message`](Self::next_message) until there is no more,
    /// so that at most one message is held.
    pub fn push(&mut self, data: &[u8]) {
        if self.error.is_none() && !matches!(self.announced(), Some(Err(_))) {
            self.buffer.extend_from_slice(data);
        }
    }

    /// The next message, or `None` until more has arrived.
    ///
    /// # Errors
    ///
    /// The length of the next message is above the limit. It is not waited for, and
    /// every later call says so again.
    pub fn next_message(&mut self) -> Result<Option<Message>, MessageTooLarge> {
        if let Some(error) = self.error {
            return Err(error);
        }
        loop {
            let len = match self.announced() {
                None => return Ok(None),
                Some(Ok(len)) => len,
                Some(Err(error)) => {
                    self.buffer = BytesMut::new();
                    self.error = Some(error);
                    return Err(error);
                }
            };
            let Some(json) = self.buffer.get(LENGTH..).and_then(|rest| rest.get(..len)) else { return Ok(None) };
            let message = Message::from_json(json);
            self.buffer.advance(LENGTH + len);
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    /// Whether the stream would be cut inside a message if it ended here. Meant to
    /// be asked once [`next_message`](Self::next_message) has answered `None`.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// How long the next message is.
    fn announced(&self) -> Option<Result<usize, MessageTooLarge>> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk()?);
        Some(match usize::try_from(length) {
            Ok(len) if len <= self.max_len => Ok(len),
            _ => Err(MessageTooLarge { length, max_len: self.max_len }),
        })
    }
}

/// A message of a WebSocket bridge is longer than the receiver takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("bridge message of {length} octets is longer than {max_len}")]
pub struct MessageTooLarge {
    /// How long it says it is.
    pub length: u32,
    /// How long it may be.
    pub max_len: usize,
}

/// All fields that any message has.
#[derive(Deserialize)]
struct Json<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<JsonString<'a>>,
    code: Option<u16>,
    #[serde(borrow)]
    reason: Option<JsonString<'a>>,
}

/// A string that is only copied if it has escapes; within an `Option`, serde does
/// not see that a `Cow` could borrow.
#[derive(Deserialize)]
struct JsonString<'a>(#[serde(borrow)] Cow<'a, str>);

/// Appends the inside of a JSON string: everything as it is, except what
/// [RFC 8259, section 7](https://www.rfc-editor.org/rfc/rfc8259#section-7) wants
/// escaped.
fn put_escaped(text: &str, out: &mut BytesMut) {
    for block in text.as_bytes().chunks(BLOCK) {
        if block_cost(block) == 0 {
            out.extend_from_slice(block);
            continue;
        }
        // Gathered here first: `out` is slow for an octet at a time.
        let mut escaped = [0; BLOCK * "\\u0000".len()];
        let mut len = 0;
        for &octet in block {
            let named = match octet {
                b'"' | b'\\' => octet,
                0x08 => b'b',
                b'\t' => b't',
                b'\n' => b'n',
                0x0c => b'f',
                b'\r' => b'r',
                0x00..0x20 => {
                    let digits = b"0123456789abcdef";
                    let (high, low) = (digits[usize::from(octet >> 4)], digits[usize::from(octet & 0xf)]);
                    escaped[len..len + 6].copy_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                    len += 6;
                    continue;
                }
                _ => {
                    escaped[len] = octet;
                    len += 1;
                    continue;
                }
            };
            escaped[len..len + 2].copy_from_slice(&[b'\\', named]);
            len += 2;
        }
        out.extend_from_slice(&escaped[..len]);
    }
}

/// How much [`put_escaped`] appends.
fn escaped_len(text: &str) -> usize {
    text.len() + text.as_bytes().chunks(BLOCK).map(block_cost).sum::<usize>()
}

/// The [`escape_cost`] of at most [`BLOCK`] octets. The compiler makes vectors of
/// this, because nothing in it branches or is wider than an octet.
fn block_cost(block: &[u8]) -> usize {
    usize::from(block.iter().map(|octet| escape_cost(*octet)).sum::<u8>())
}

/// How much longer an octet becomes: one for `\n`, five for `\u0000`.
fn escape_cost(octet: u8) -> u8 {
    let is_named = octet.wrapping_sub(0x08) <= 0x05 && octet != 0x0b;
    u8::from(octet == b'"') + u8::from(octet == b'\\') + 5 * u8::from(octet < 0x20) - 4 * u8::from(is_named)
}

fn put_base64(data: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.resize(start + base64_len(data), 0);
    let written = STANDARD.encode_slice(data, &mut out[start..]);
    debug_assert_eq!(written.ok(), Some(base64_len(data)), "the room was counted");
}

/// How much [`put_base64`] appends.
fn base64_len(data: &[u8]) -> usize {
    data.len().div_ceil(3) * 4
}

/// The longest [`outer_prefix`].
pub const MAX_PREFIX: usize = MAX_HEADER;

/// So many octets that [`block_cost`] counts with one: 5 for each is below 256.
const BLOCK: usize = 32;

/// The octets of the length before each message.
const LENGTH: usize = 4;

/// The JSON around the fields of the messages, as compact as it can be: the bridge
/// of an agent has a window of 64 KiB.
const TEXT: &str = r#"{"type":"text","data":""#;
const BINARY: &str = r#"{"type":"binary","data":""#;
const CLOSE: &str = r#"{"type":"close","code":"#;
const REASON: &str = r#","reason":""#;
const END: &str = r#""}"#;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that `octets` hold, with what one kind of data frame gave in a row put
    /// together, and what stopped it.
    fn outers(chunks: impl IntoIterator<Item = Bytes>) -> (Vec<Outer>, Result<bool, FrameError>) {
        let mut decoder = OuterDecoder::new();
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            loop {
                match (decoder.next_event(), events.last_mut()) {
                    (Ok(None), _) => break,
                    (Err(error), _) => {
                        assert_eq!(decoder.next_event(), Err(error));
                        assert!(!decoder.is_mid_frame());
                        return (events, Err(error));
                    }
                    (Ok(Some(Outer::Data(more))), Some(Outer::Data(data)))
                    | (Ok(Some(Outer::Text(more))), Some(Outer::Text(data))) => {
                        assert!(!more.is_empty());
                        *data = [&data[..], &more].concat().into();
                    }
                    (Ok(Some(event)), _) => events.push(event),
                }
            }
        }
        (events, Ok(decoder.is_mid_frame()))
    }

    /// The octets in chunks of `size`, of which somebody else holds every one or none.
    fn chunks(octets: &[u8], size: usize, shared: bool) -> (Vec<Bytes>, Bytes) {
        let whole = Bytes::copy_from_slice(octets);
        let split = |chunk: &[u8]| if shared { whole.slice_ref(chunk) } else { Bytes::copy_from_slice(chunk) };
        (whole.chunks(size.max(1)).map(split).collect(), whole.clone())
    }

    #[track_caller]
    fn check(octets: &[u8], events: &[Outer], end: Result<bool, FrameError>) {
        for size in [1, 2, 3, 5, 14, usize::MAX] {
            for shared in [false, true] {
                let (chunks, whole) = chunks(octets, size, shared);
                assert_eq!(outers(chunks), (events.to_vec(), end), "chunks of {size}");
                assert_eq!(whole, octets, "somebody else's octets are untouched");
            }
        }
    }

    fn data(octets: &[u8]) -> Outer {
        Outer::Data(Bytes::copy_from_slice(octets))
    }

    fn text(octets: &[u8]) -> Outer {
        Outer::Text(Bytes::copy_from_slice(octets))
    }

    fn close(code: Option<u16>, reason: &str) -> Outer {
        Outer::Close { code, reason: reason.to_owned() }
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let ping = Outer::Ping(Bytes::from_static(b"p"));
        check(b"", &[], Ok(false));
        check(b"\x82\x05hello", &[data(b"hello")], Ok(false));
        check(b"\x82\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e", &[data(b"hello")], Ok(false));
        check(b"\x82\x05hello\x82\x00\x82\x06 world", &[data(b"hello world")], Ok(false));
        check(b"\x82\x05hello\x81\x06 world", &[data(b"hello"), text(b" world")], Ok(false));
        check(b"\x82\x02he\x89\x01p\x82\x03llo", &[data(b"he"), ping.clone(), data(b"llo")], Ok(false));
        check(b"\x89\x00\x8a\x00\x8a\x03abc", &[Outer::Ping(Bytes::new()), Outer::Pong, Outer::Pong], Ok(false));
        check(b"\x89\x81\x01\x00\x00\x00q", &[ping], Ok(false));
        check(b"\x82", &[], Ok(true));
        check(b"\x82\x05hell", &[data(b"hell")], Ok(true));
        check(b"\x82\xfe\x00", &[], Ok(true));
        check(b"\x89\x02p", &[], Ok(true));
    }

    #[test]
    fn continuations_are_of_the_kind_they_continue() {
        let pong = Outer::Pong;
        check(b"\x02\x02he\x00\x00\x00\x02ll\x80\x01o\x82\x01!", &[data(b"hello!")], Ok(false));
        check(b"\x01\x02he\x8a\x00\x80\x03llo", &[text(b"he"), pong, text(b"llo")], Ok(false));
        check(b"\x02\x00", &[], Ok(false));
    }

    #[test]
    fn nothing_is_read_after_a_close() {
        check(b"\x88\x00\x82\x01a", &[close(None, "")], Ok(false));
        check(b"\x88\x01\x03", &[close(None, "")], Ok(false));
        check(b"\x88\x02\x03\xe8\x82", &[close(Some(1000), "")], Ok(false));
        check(b"\x88\x0b\x03\xe8clean-eof", &[close(Some(1000), "clean-eof")], Ok(false));
        check(b"\x88\x03\x00\x00\xff\xff", &[close(Some(0), "\u{fffd}")], Ok(false));
        check(b"\x02\x02he\x88\x02\x03\xe9", &[data(b"he"), close(Some(1001), "")], Ok(false));
    }

    #[test]
    fn bad_frames_end_the_stream() {
        let hello = [data(b"hello")];
        check(b"\x82\x05hello\xc2\x00", &hello, Err(FrameError::ReservedBits));
        check(b"\x82\x05hello\xa2\x00", &hello, Err(FrameError::ReservedBits));
        check(b"\x82\x05hello\x92\x00", &hello, Err(FrameError::ReservedBits));
        check(b"\x82\x05hello\x83", &hello, Err(FrameError::ReservedOpcode(3)));
        check(b"\x82\x05hello\x80\x01a", &hello, Err(FrameError::StrayContinuation));
        check(b"\x02\x05hello\x82\x01a", &hello, Err(FrameError::MessageUnfinished));
        check(b"\x02\x05hello\x81\x01a", &hello, Err(FrameError::MessageUnfinished));
        check(b"\x82\x05hello\x09\x00", &hello, Err(FrameError::FragmentedControl));
        check(b"\x82\x05hello\x88\x7e\x00\x7e", &hello, Err(FrameError::ControlTooLong));
        check(b"\x82\x05hello\x82\x7e\x00\x05", &hello, Err(FrameError::LengthNotMinimal));
    }

    #[test]
    fn unshared_chunks_are_unmasked_where_they_lie() {
        let mut out = BytesMut::new();
        encode_outer(Opcode::Binary, &[7; 1000], Some(*b"mask"), &mut out);
        encode_outer(Opcode::Binary, &[8; 1000], Some(*b"mask"), &mut out);
        let chunk = out.freeze();
        let start = chunk.as_ptr().addr();

        let mut decoder = OuterDecoder::new();
        decoder.push(chunk);
        for (octet, at) in [(7, 8), (8, 1016)] {
            let Ok(Some(Outer::Data(payload))) = decoder.next_event() else { panic!("no data") };
            assert_eq!(payload, [octet; 1000].as_slice());
            assert_eq!(payload.as_ptr().addr() - start, at);
        }
    }

    #[test]
    fn frames_of_any_length_are_not_waited_for() {
        let mut decoder = OuterDecoder::new();
        decoder.push(Bytes::from_static(b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"));
        for _ in 0..100 {
            decoder.push(Bytes::from_static(&[9; 1000]));
            assert_eq!(decoder.next_event(), Ok(Some(data(&[9; 1000]))));
            assert_eq!(decoder.next_event(), Ok(None));
            assert!(decoder.is_mid_frame());
        }
    }

    #[test]
    fn frames_are_written() {
        let mut out = BytesMut::new();
        encode_outer(Opcode::Ping, b"hi", None, &mut out);
        encode_outer(Opcode::Binary, b"hello", Some([1, 2, 3, 4]), &mut out);
        encode_outer_close(1000, "clean-eof", None, &mut out);
        assert_eq!(out, b"\x89\x02hi\x82\x85\x01\x02\x03\x04\x69\x67\x6f\x68\x6e\x88\x0b\x03\xe8clean-eof".as_slice());
        assert_eq!(&*outer_prefix(Opcode::Binary, 517, None), b"\x82\x7e\x02\x05");
        assert_eq!(outer_prefix(Opcode::Binary, usize::MAX, Some(*b"mask")).len(), MAX_PREFIX);
    }

    #[test]
    fn messages_are_compact_json_in_one_frame() {
        let close = |code, reason: &str| Message::Close { code, reason: reason.to_owned() };
        let table = [
            (Message::Text("hello".to_owned()), r#"{"type":"text","data":"hello"}"#),
            (Message::Text(String::new()), r#"{"type":"text","data":""}"#),
            (
                Message::Text("\"\\/\u{8}\t\n\u{c}\r\0\u{1f}\u{7f}é😀\u{2028}".to_owned()),
                "{\"type\":\"text\",\"data\":\"\\\"\\\\/\\b\\t\\n\\f\\r\\u0000\\u001f\u{7f}é😀\u{2028}\"}",
            ),
            (Message::Binary(Bytes::new()), r#"{"type":"binary","data":""}"#),
            (Message::Binary(Bytes::from_static(&[0xff])), r#"{"type":"binary","data":"/w=="}"#),
            (Message::Binary(Bytes::from_static(&[0xfb, 0xef, 0xbe, 0])), r#"{"type":"binary","data":"++++AA=="}"#),
            (close(1000, ""), r#"{"type":"close","code":1000,"reason":""}"#),
            (close(0, "a\"b"), r#"{"type":"close","code":0,"reason":"a\"b"}"#),
            (close(65_535, "é"), r#"{"type":"close","code":65535,"reason":"é"}"#),
        ];
        for (message, json) in table {
            let mut out = BytesMut::new();
            message.encode(None, &mut out);
            assert_eq!(out.len(), message.encoded_len());
            assert_eq!(out[..2], [0x82, u8::try_from(json.len() + 4).expect("short")]);
            assert_eq!(out[2..6], u32::try_from(json.len()).expect("short").to_be_bytes());
            assert_eq!(str::from_utf8(&out[6..]), Ok(json));
            assert_eq!(messages(&out[2..], 100), (vec![message], Ok(false)));
        }
    }

    /// All messages in `octets`, fed one by one and at once, and what stopped it.
    #[track_caller]
    fn messages(octets: &[u8], max_len: usize) -> (Vec<Message>, Result<bool, MessageTooLarge>) {
        let read = |size| {
            let mut decoder = MessageDecoder::new(max_len);
            let mut messages = Vec::new();
            for chunk in octets.chunks(size) {
                decoder.push(chunk);
                assert!(decoder.buffer.len() <= LENGTH + max_len.saturating_add(chunk.len()));
                loop {
                    match decoder.next_message() {
                        Ok(None) => break,
                        Ok(Some(message)) => messages.push(message),
                        Err(error) => {
                            assert_eq!(decoder.next_message(), Err(error));
                            assert!(!decoder.is_mid_message());
                            return (messages, Err(error));
                        }
                    }
                }
            }
            (messages, Ok(decoder.is_mid_message()))
        };
        let at_once = read(usize::MAX);
        assert_eq!(read(1), at_once);
        at_once
    }

    fn prefixed(jsons: &[&[u8]]) -> Vec<u8> {
        let prefixed =
            jsons.iter().map(|json| [&u32::try_from(json.len()).expect("short").to_be_bytes(), *json].concat());
        prefixed.collect::<Vec<_>>().concat()
    }

    #[test]
    fn messages_of_other_encoders_are_read() {
        let text = |text: &str| Message::Text(text.to_owned());
        let close = |code, reason: &str| Message::Close { code, reason: reason.to_owned() };
        let table: &[(&str, Message)] = &[
            (r#" { "data" : "a" , "type" : "text" } "#, text("a")),
            (r#"{"type":"text","data":"\u00e9\ud83d\ude00\/\u0022"}"#, text("é😀/\"")),
            (r#"{"type":"text","data":"a","id":{"deep":[1,null]}}"#, text("a")),
            (r#"{"ty\u0070e":"te\u0078t","data":"a"}"#, text("a")),
            (r#"{"type":"binary","data":"AA\u003d="}"#, Message::Binary(Bytes::from_static(&[0]))),
            (r#"{"type":"close","code":1000}"#, close(1000, "")),
            (r#"{"type":"close","code":1006,"reason":null}"#, close(1006, "")),
            (r#"{"type":"close","reason":"bye","code":65535,"data":null}"#, close(65_535, "bye")),
        ];
        for (json, message) in table {
            assert_eq!(messages(&prefixed(&[json.as_bytes()]), 100), (vec![message.clone()], Ok(false)), "{json}");
        }
    }

    #[test]
    fn messages_that_cannot_be_read_are_skipped() {
        let table: &[&[u8]] = &[
            b"",
            b"null",
            b"[]",
            b"{}",
            b"{\"type\":\"text\",\"data\":\"a\"",
            b"{\"type\":\"text\",\"data\":\"a\"} x",
            b"{\"type\":\"text\",\"data\":\"\xff\"}",
            b"{\"type\":\"text\",\"data\":\"\n\"}",
            br#"{"data":"a"}"#,
            br#"{"type":"text"}"#,
            br#"{"type":"text","data":null}"#,
            br#"{"type":"text","data":1}"#,
            br#"{"type":"text","data":"\ud800"}"#,
            br#"{"type":"text","data":"a","data":"b"}"#,
            br#"{"type":"Text","data":"a"}"#,
            br#"{"type":"ping","data":"a"}"#,
            br#"{"type":["text"],"data":"a"}"#,
            br#"{"type":"binary"}"#,
            br#"{"type":"binary","data":"AA"}"#,
            br#"{"type":"binary","data":"AA="}"#,
            br#"{"type":"binary","data":"AB=="}"#,
            br#"{"type":"binary","data":"-_8="}"#,
            br#"{"type":"binary","data":" AA=="}"#,
            br#"{"type":"binary","data":"AAAA="}"#,
            br#"{"type":"close"}"#,
            br#"{"type":"close","code":null}"#,
            br#"{"type":"close","code":"1000"}"#,
            br#"{"type":"close","code":1000.0}"#,
            br#"{"type":"close","code":-1}"#,
            br#"{"type":"close","code":65536}"#,
            br#"{"type":"close","code":1000,"reason":5}"#,
        ];
        let good = br#"{"type":"text","data":"good"}"#;
        for &json in table {
            let expected = (vec![Message::Text("good".to_owned())], Ok(false));
            assert_eq!(messages(&prefixed(&[json, good]), 100), expected, "{}", json.escape_ascii());
        }
    }

    #[test]
    fn messages_above_the_limit_are_not_waited_for() {
        let json: &[u8] = br#"{"type":"text","data":"a"}"#;
        let text = Message::Text("a".to_owned());
        let too_large = MessageTooLarge { length: 27, max_len: 26 };
        assert_eq!(messages(&prefixed(&[json]), 26), (vec![text.clone()], Ok(false)));
        assert_eq!(messages(&prefixed(&[json])[..29], 26), (vec![], Ok(true)));
        assert_eq!(messages(&[&prefixed(&[json]), &[0, 0, 0, 27][..]].concat(), 26), (vec![text], Err(too_large)));
        assert_eq!(messages(&[0xff; 4], 26), (vec![], Err(MessageTooLarge { length: u32::MAX, max_len: 26 })));

        let mut decoder = MessageDecoder::new(26);
        decoder.push(&[0xff; 4]);
        decoder.push(&[0; 1000]);
        assert_eq!(decoder.buffer.len(), 4);
    }

    fn message() -> impl Strategy<Value = Message> {
        let text = || {
            let chars = prop_oneof![any::<char>(), (0_u8..0x80).prop_map(char::from), Just('"'), Just('\u{1f600}')];
            prop::collection::vec(chars, 0..80).prop_map(String::from_iter)
        };
        prop_oneof![
            text().prop_map(Message::Text),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(|data| Message::Binary(data.into())),
            (any::<u16>(), text()).prop_map(|(code, reason)| Message::Close { code, reason }),
        ]
    }

    proptest! {
        #[test]
        fn json_is_as_serde_writes_it(message in message()) {
            let mut out = BytesMut::new();
            message.encode(None, &mut out);
            prop_assert_eq!(out.len(), message.encoded_len());
            let expected = match message {
                Message::Text(text) => format!("{TEXT}{END}").replace(r#""""#, &serde_json::to_string(&text).expect("a string")),
                Message::Binary(data) => format!("{BINARY}{}{END}", STANDARD.encode(data)),
                Message::Close { code, reason } => {
                    let reason = serde_json::to_string(&reason).expect("a string");
                    format!(r#"{{"type":"close","code":{code},"reason":{reason}}}"#)
                }
            };
            prop_assert!(out.ends_with(expected.as_bytes()));
            prop_assert_eq!(outer_prefix(Opcode::Binary, expected.len() + 4, None).len() + 4 + expected.len(), out.len());
        }

        #[test]
        fn messages_come_back(
            sent in prop::collection::vec((message(), any::<Option<[u8; 4]>>()), 0..8),
            size in 1_usize..100,
            shared: bool,
        ) {
            let mut out = BytesMut::new();
            for (message, mask) in &sent {
                message.encode(*mask, &mut out);
            }
            let (events, end) = outers(chunks(&out, size, shared).0);
            prop_assert_eq!(end, Ok(false));
            let stream: Vec<u8> = events
                .iter()
                .flat_map(|event| match event {
                    Outer::Data(data) => data.to_vec(),
                    other => panic!("{other:?}"),
                })
                .collect();
            let sent: Vec<Message> = sent.into_iter().map(|(message, _)| message).collect();
            prop_assert_eq!(messages(&stream, 10_000), (sent, Ok(false)));
        }

        #[test]
        fn lengths_of_long_messages_are_counted(len in prop::sample::select(vec![82_usize, 120, 65_500, 65_510]), more in 0_usize..40) {
            for message in [
                Message::Text("a".repeat(len + more)),
                Message::Binary(vec![0; (len + more) * 3 / 4].into()),
            ] {
                let mut out = BytesMut::new();
                message.encode(None, &mut out);
                prop_assert_eq!(out.len(), message.encoded_len());
            }
        }

        #[test]
        fn frames_are_the_same_however_they_are_cut(
            frames in prop::collection::vec(
                (prop::sample::select(vec![0, 1, 2, 0x80, 0x81, 0x82, 0x82, 0x88, 0x89, 0x8a, 0xc2, 0x83]),
                 any::<Option<[u8; 4]>>(),
                 prop::collection::vec(any::<u8>(), 0..200)),
                0..8,
            ),
            cut in 0_usize..10,
            size in 1_usize..300,
            shared: bool,
        ) {
            let mut octets = BytesMut::new();
            for (first, mask, payload) in &frames {
                let start = octets.len();
                encode_outer(Opcode::Binary, payload, *mask, &mut octets);
                octets[start] = *first;
            }
            octets.truncate(octets.len().saturating_sub(cut));
            let at_once = outers([octets.clone().freeze()]);
            prop_assert_eq!(outers(chunks(&octets, size, shared).0), at_once.clone());
            prop_assert_eq!(outers(chunks(&octets, 1, shared).0), at_once);
        }
    }
}
