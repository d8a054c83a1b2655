//! The header of a WebSocket frame, as visitors send it and as bridge streams
//! carry it ([RFC 6455, section 5.2]).
//!
//! Two decoders stand on this file: [`OuterDecoder`](crate::bridge::OuterDecoder)
//! for bridge streams and [`Reader`](crate::websocket::Reader) for WebSockets.
//!
//! [RFC 6455, section 5.2]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2

use std::ops::Deref;

use bytes::BytesMut;

/// What a frame is ([RFC 6455, section 5.2]).
///
/// [RFC 6455, section 5.2]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opcode {
    /// The next fragment of the message before it.
    Continuation,
    /// A text message, or its first fragment.
    Text,
    /// A binary message, or its first fragment.
    Binary,
    /// The last frame of this direction.
    Close,
    /// Asks for a [`Pong`](Self::Pong) with the same payload.
    Ping,
    /// Answers a [`Ping`](Self::Ping), or means nothing.
    Pong,
}

impl Opcode {
    /// Whether such a frame is a control frame: unfragmented, and short
    /// ([RFC 6455, section 5.5](https://www.rfc-editor.org/rfc/rfc6455#section-5.5)).
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

impl From<Opcode> for u8 {
    fn from(opcode: Opcode) -> Self {
        match opcode {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        }
    }
}

impl TryFrom<u8> for Opcode {
    type Error = FrameError;

    fn try_from(value: u8) -> Result<Self, FrameError> {
        match value {
            0x0 => Ok(Self::Continuation),
            0x1 => Ok(Self::Text),
            0x2 => Ok(Self::Binary),
            0x8 => Ok(Self::Close),
            0x9 => Ok(Self::Ping),
            0xa => Ok(Self::Pong),
            reserved => Err(FrameError::ReservedOpcode(reserved)),
        }
    }
}

/// The header of one frame ([RFC 6455, section 5.2]).
///
/// [RFC 6455, section 5.2]: https://www.rfc-editor.org/rfc/rfc6455#section-5.2
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// Whether the frame is the last fragment of its message.
    pub fin: bool,
    /// RSV1 to RSV3, RSV1 being 4. No extension is ever agreed on here, so both
    /// decoders refuse all but 0.
    pub rsv: u8,
    /// What the frame is.
    pub opcode: Opcode,
    /// The key that the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// How many octets of payload follow; at most 2^63 - 1.
    pub payload_len: u64,
}

impl FrameHeader {
    /// Reads the header that `bytes` begin with, and says how many octets it
    /// took. `None` asks for more; 14 octets always suffice.
    ///
    /// Checks all that one header shows by itself, except the reserved bits:
    /// they are the caller's, as are the rules for masks and fragments.
    ///
    /// # Errors
    ///
    /// The first offence in the order of the octets, so that an error does not
    /// depend on how many of them have arrived.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let opcode = Opcode::try_from(first & 0x0f)?;
        let fin = first & FIN != 0;
        let rsv = first >> 4 & 0x7;
        if opcode.is_control() && !fin {
            return Err(FrameError::FragmentedControl);
        }

        let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
        let short = second & 0x7f;
        if opcode.is_control() && short > 125 {
            return Err(FrameError::ControlTooLong);
        }
        let (payload_len, rest) = match short {
            126 => {
                let Some((octets, rest)) = rest.split_first_chunk() else { return Ok(None) };
                let length = u16::from_be_bytes(*octets);
                if length < 126 {
                    return Err(FrameError::LengthNotMinimal);
                }
                (u64::from(length), rest)
            }
            127 => {
                let Some((octets, rest)) = rest.split_first_chunk() else { return Ok(None) };
                let length = u64::from_be_bytes(*octets);
                if length <= u64::from(u16::MAX) {
                    return Err(FrameError::LengthNotMinimal);
                }
                if length > u64::MAX >> 1 {
                    return Err(FrameError::LengthTooLarge);
                }
                (length, rest)
            }
            short => (u64::from(short), rest),
        };

        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            let Some((key, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (Some(*key), rest)
        };
        Ok(Some((Self { fin, rsv, opcode, mask, payload_len }, bytes.len() - rest.len())))
    }

    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.to_octets());
    }

    /// The header as it goes on the wire.
    ///
    /// Writes what it is told: a fragmented Ping stays one.
    #[must_use]
    pub fn to_octets(&self) -> HeaderOctets {
        let mut header = HeaderOctets { octets: [0; MAX_HEADER], len: 0 };
        let fin = if self.fin { FIN } else { 0 };
        header.put(&[fin | (self.rsv & 0x7) << 4 | u8::from(self.opcode)]);

        let masked = if self.mask.is_some() { MASKED } else { 0 };
        match (u8::try_from(self.payload_len), u16::try_from(self.payload_len)) {
            (Ok(length @ ..=125), _) => header.put(&[masked | length]),
            (_, Ok(length)) => {
                header.put(&[masked | 126]);
                header.put(&length.to_be_bytes());
            }
            _ => {
                header.put(&[masked | 127]);
                header.put(&self.payload_len.to_be_bytes());
            }
        }
        if let Some(key) = self.mask {
            header.put(&key);
        }
        header
    }
}

/// The octets of one [`FrameHeader`], without a heap allocation.
#[derive(Clone, Copy, Debug)]
pub struct HeaderOctets {
    octets: [u8; MAX_HEADER],
    len: usize,
}

impl HeaderOctets {
    fn put(&mut self, octets: &[u8]) {
        self.octets[self.len..self.len + octets.len()].copy_from_slice(octets);
        self.len += octets.len();
    }
}

impl Deref for HeaderOctets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// What no frame may be, whoever sends it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// An opcode that no document gives a meaning to.
    #[error("opcode {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// RSV1 to RSV3, that only an extension may set.
    #[error("reserved bits are set")]
    ReservedBits,
    /// A control frame without FIN.
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A control frame of more than 125 octets.
    #[error("control frame is longer than 125 octets")]
    ControlTooLong,
    /// A length in more octets than it needs.
    #[error("payload length is not in its shortest form")]
    LengthNotMinimal,
    /// A length with the most significant bit set.
    #[error("payload length does not fit into 63 bits")]
    LengthTooLarge,
    /// A continuation of nothing.
    #[error("continuation frame follows no fragment")]
    StrayContinuation,
    /// A new message before the last fragment of the one before it.
    #[error("message begins inside a fragmented message")]
    MessageUnfinished,
}

/// Masks or unmasks `payload`, of which the first octet is the `offset`th of its
/// frame ([RFC 6455, section 5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.3)).
pub fn apply_mask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let mut key = key;
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);

    // Eight octets hold the key twice, so every word starts it anew. The
    // compiler makes vectors of this.
    let (words, rest) = payload.as_chunks_mut();
    for octets in words {
        *octets = (u64::from_ne_bytes(*octets) ^ word).to_ne_bytes();
    }
    for (octet, key) in rest.iter_mut().zip(key.into_iter().cycle()) {
        *octet ^= key;
    }
}

/// Whether `code` may stand in a Close frame ([RFC 6455, section 7.4]).
///
/// These are the codes that the registry gives out for the wire, 1000 to 1003 and
/// 1007 to 1014, and those of libraries and applications, 3000 to 4999. Not 1005,
/// 1006 and 1015, which only say locally how a connection ended.
///
/// [RFC 6455, section 7.4]: https://www.rfc-editor.org/rfc/rfc6455#section-7.4
#[must_use]
pub const fn is_valid_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends one unfragmented frame.
pub(crate) fn encode_frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let header = FrameHeader { fin: true, rsv: 0, opcode, mask, payload_len: payload.len() as u64 };
    out.reserve(MAX_HEADER + payload.len());
    header.encode(out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key, 0);
    }
}

/// Appends a Close frame; `reason` is cut at a character so that the frame stays
/// a control frame, and left out without a `code`.
pub(crate) fn encode_close(code: Option<u16>, reason: &str, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let mut payload = [0; MAX_CONTROL];
    let mut len = 0;
    if let Some(code) = code {
        let mut end = reason.len().min(MAX_CONTROL - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        len = 2 + end;
        payload[..2].copy_from_slice(&code.to_be_bytes());
        payload[2..len].copy_from_slice(&reason.as_bytes()[..end]);
    }
    encode_frame(Opcode::Close, &payload[..len], mask, out);
}

/// The longest header: two octets, a length of eight, and a masking key.
pub(crate) const MAX_HEADER: usize = 14;

/// The longest payload of a control frame
/// ([RFC 6455, section 5.5](https://www.rfc-editor.org/rfc/rfc6455#section-5.5)).
const MAX_CONTROL: usize = 125;

/// The bit of the first octet that marks the last fragment.
const FIN: u8 = 0x80;

/// The bit of the second octet that announces a masking key.
const MASKED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(opcode: Opcode, mask: Option<[u8; 4]>, payload_len: u64) -> FrameHeader {
        FrameHeader { fin: true, rsv: 0, opcode, mask, payload_len }
    }

    #[test]
    fn headers_of_every_length_are_read_and_written() {
        let table: &[(u64, &[u8])] = &[
            (0, &[0x82, 0]),
            (1, &[0x82, 1]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (127, &[0x82, 126, 0, 127]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (u64::MAX >> 1, &[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ];
        for &(payload_len, octets) in table {
            let unmasked = header(Opcode::Binary, None, payload_len);
            assert_eq!(&*unmasked.to_octets(), octets);
            assert_eq!(FrameHeader::parse(octets), Ok(Some((unmasked, octets.len()))));

            let masked = header(Opcode::Binary, Some(*b"mask"), payload_len);
            let mut octets = octets.to_vec();
            octets[1] |= 0x80;
            octets.extend(b"mask");
            assert_eq!(&*masked.to_octets(), octets);
            octets.extend(b"payload");
            assert_eq!(FrameHeader::parse(&octets), Ok(Some((masked, octets.len() - 7))));
            for short in 0..octets.len() - 7 {
                assert_eq!(FrameHeader::parse(&octets[..short]), Ok(None));
            }
        }
    }

    #[test]
    fn bad_headers_are_refused_at_the_octet_that_shows_it() {
        let reserved = |opcode| FrameError::ReservedOpcode(opcode);
        let table: &[(&[u8], FrameError)] = &[
            (&[0x83], reserved(3)),
            (&[0x84], reserved(4)),
            (&[0x85], reserved(5)),
            (&[0x86], reserved(6)),
            (&[0x07], reserved(7)),
            (&[0x8b], reserved(0xb)),
            (&[0x8c], reserved(0xc)),
            (&[0x8d], reserved(0xd)),
            (&[0x8e], reserved(0xe)),
            (&[0xff], reserved(0xf)),
            (&[0x08], FrameError::FragmentedControl),
            (&[0x09], FrameError::FragmentedControl),
            (&[0x0a], FrameError::FragmentedControl),
            (&[0x88, 126], FrameError::ControlTooLong),
            (&[0x89, 127], FrameError::ControlTooLong),
            (&[0x8a, 0xfe], FrameError::ControlTooLong),
            (&[0x82, 126, 0, 0], FrameError::LengthNotMinimal),
            (&[0x82, 126, 0, 125], FrameError::LengthNotMinimal),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 0, 0], FrameError::LengthNotMinimal),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], FrameError::LengthNotMinimal),
            (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], FrameError::LengthTooLarge),
        ];
        for &(octets, error) in table {
            assert_eq!(FrameHeader::parse(octets), Err(error));
            assert_eq!(FrameHeader::parse(&octets[..octets.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn close_codes_of_the_wire_are_valid() {
        for code in [1000, 1001, 1002, 1003, 1007, 1009, 1011, 1014, 3000, 3999, 4000, 4999] {
            assert!(is_valid_close_code(code), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, u16::MAX] {
            assert!(!is_valid_close_code(code), "{code}");
        }
    }

    #[test]
    fn close_reasons_are_cut_at_a_character() {
        let table = [
            (Some(1000), String::new(), 2),
            (Some(1000), "a".repeat(123), 125),
            (Some(1000), "a".repeat(124), 125),
            (Some(1000), format!("{}é", "a".repeat(121)), 125),
            (Some(1000), format!("{}é", "a".repeat(122)), 124),
            (Some(1000), format!("{}😀", "a".repeat(120)), 122),
            (None, "lost".to_owned(), 0),
        ];
        for (code, reason, len) in table {
            let mut out = BytesMut::new();
            encode_close(code, &reason, None, &mut out);
            assert_eq!(out[..2], [0x88, len]);
            assert_eq!(out.len(), 2 + usize::from(len));
            if let Some(code) = code {
                assert_eq!(out[2..4], u16::to_be_bytes(code));
                assert!(reason.as_bytes().starts_with(&out[4..]));
                assert!(str::from_utf8(&out[4..]).is_ok());
            }
        }
    }

    fn opcode() -> impl Strategy<Value = Opcode> {
        prop::sample::select(vec![0x0, 0x1, 0x2, 0x8, 0x9, 0xa])
            .prop_map(|opcode| Opcode::try_from(opcode).expect("an opcode"))
    }

    proptest! {
        #[test]
        fn headers_come_back(fin: bool, rsv in 0_u8..8, opcode in opcode(), mask: Option<[u8; 4]>, len: u64, shift in 1_u32..64) {
            let is_control = opcode.is_control();
            let payload_len = if is_control { len % 126 } else { len >> shift };
            let header = FrameHeader { fin: fin || is_control, rsv, opcode, mask, payload_len };
            let mut out = BytesMut::new();
            header.encode(&mut out);
            prop_assert_eq!(FrameHeader::parse(&out), Ok(Some((header, out.len()))));
        }

        #[test]
        fn what_is_read_is_written_the_same(octets in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(Some((header, len))) = FrameHeader::parse(&octets) {
                prop_assert_eq!(&*header.to_octets(), &octets[..len]);
            }
        }

        #[test]
        fn masks_are_applied_octet_by_octet(payload in prop::collection::vec(any::<u8>(), 0..100), key: [u8; 4], offset: usize) {
            let naive: Vec<u8> = payload
                .iter()
                .enumerate()
                .map(|(at, octet)| octet ^ key[at.wrapping_add(offset) % 4])
                .collect();
            let mut masked = payload.clone();
            apply_mask(&mut masked, key, offset);
            prop_assert_eq!(&masked, &naive);
            apply_mask(&mut masked, key, offset);
            prop_assert_eq!(masked, payload);
        }
    }
}
