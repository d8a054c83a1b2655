//! Strict DER in and out, on slices.
//!
//! The reader keeps what X.509 policy needs beside a value: the whole TLV as it
//! was sent, for signatures and for copying, and where it stood, for errors. It
//! knows headers only, so that string types and identifiers that nobody has
//! heard of can be read past (docs/decisions/0003-own-der-reader.md).

use std::fmt;
use std::ops::Range;

use crate::oid;

pub(crate) const BIT_STRING: u8 = 0x03;
#[cfg(feature = "pkcs12")]
pub(crate) const BMP_STRING: u8 = 0x1e;
pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const NULL: u8 = 0x05;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const UTF8_STRING: u8 = 0x0c;

/// The tag octet of a constructed, context-specific element.
pub(crate) const fn context(number: u8) -> u8 {
    0xa0 | number
}

/// The tag octet of a primitive, context-specific element.
pub(crate) const fn context_primitive(number: u8) -> u8 {
    0x80 | number
}

/// Where a DER reading stopped and what should have stood there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DerError {
    /// Octets from the start of the document.
    pub offset: usize,
    /// The ASN.1 element that was expected.
    pub expected: &'static str,
}

impl fmt::Display for DerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at octet {}", self.expected, self.offset)
    }
}

impl std::error::Error for DerError {}

/// One element: header and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlv<'a> {
    /// The identifier octet. Long-form tags appear in nothing that we read
    /// and are refused.
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
    /// Header and value as they were sent.
    pub(crate) whole: &'a [u8],
    /// Where `whole` starts in the document.
    pub(crate) offset: usize,
}

impl<'a> Tlv<'a> {
    pub(crate) fn reader(&self) -> Reader<'a> {
        Reader::at(self.value, self.offset + self.whole.len() - self.value.len())
    }

    /// The octets that `whole` takes in the document.
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.whole.len()
    }

    /// The octets that `value` takes in the document.
    pub(crate) fn value_range(&self) -> Range<usize> {
        let end = self.offset + self.whole.len();
        end - self.value.len()..end
    }

    pub(crate) fn error(&self, expected: &'static str) -> DerError {
        DerError { offset: self.offset, expected }
    }

    /// The content octets of a well-formed OBJECT IDENTIFIER.
    pub(crate) fn object_identifier(&self) -> Result<&'a [u8], DerError> {
        if oid::is_well_formed(self.value) { Ok(self.value) } else { Err(self.error("OBJECT IDENTIFIER")) }
    }

    /// The content of a BIT STRING of whole octets.
    pub(crate) fn bit_string_octets(&self) -> Result<&'a [u8], DerError> {
        match self.value.split_first() {
            Some((0, octets)) => Ok(octets),
            _ => Err(self.error("BIT STRING of whole octets")),
        }
    }

    /// Is it an INTEGER in its shortest form, of either sign?
    pub(crate) fn integer(&self) -> Result<(), DerError> {
        match self.value {
            [] | [0, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..] => Err(self.error("INTEGER in its shortest form")),
            _ => Ok(()),
        }
    }

    /// The magnitude of a non-negative INTEGER, without a leading zero octet.
    pub(crate) fn unsigned_integer(&self) -> Result<&'a [u8], DerError> {
        let error = self.error("non-negative INTEGER in its shortest form");
        match self.value {
            [] => Err(error),
            [0] => Ok(self.value),
            [0, second, ..] if second & 0x80 == 0 => Err(error),
            [0, magnitude @ ..] => Ok(magnitude),
            [first, ..] if first & 0x80 != 0 => Err(error),
            magnitude => Ok(magnitude),
        }
    }

    /// A non-negative INTEGER that fits 64 bits.
    pub(crate) fn small_integer(&self) -> Result<u64, DerError> {
        let magnitude = self.unsigned_integer()?;
        if magnitude.len() > 8 {
            return Err(self.error("INTEGER of at most 64 bits"));
        }
        Ok(magnitude.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)))
    }

    pub(crate) fn boolean(&self) -> Result<bool, DerError> {
        match self.value {
            [0x00] => Ok(false),
            [0xff] => Ok(true),
            _ => Err(self.error("BOOLEAN 00 or FF")),
        }
    }
}

/// Reads elements one after the other from a slice of a document.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(document: &'a [u8]) -> Self {
        Self::at(document, 0)
    }

    /// A reader over a part of a document that starts at `offset`.
    pub(crate) fn at(part: &'a [u8], offset: usize) -> Self {
        Self { rest: part, offset }
    }

    /// The next element, whatever it is.
    pub(crate) fn any(&mut self, expected: &'static str) -> Result<Tlv<'a>, DerError> {
        let error = DerError { offset: self.offset, expected };
        let (header, length) = read_header(self.rest).ok_or(error)?;
        if self.rest.len() - header < length {
            return Err(error);
        }
        let (whole, rest) = self.rest.split_at(header + length);
        let tlv = Tlv { tag: whole[0], value: &whole[header..], whole, offset: self.offset };
        self.rest = rest;
        self.offset += whole.len();
        Ok(tlv)
    }

    /// The next element, which must have this tag.
    pub(crate) fn element(&mut self, tag: u8, expected: &'static str) -> Result<Tlv<'a>, DerError> {
        if self.rest.first() != Some(&tag) {
            return Err(DerError { offset: self.offset, expected });
        }
        self.any(expected)
    }

    /// The next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8, expected: &'static str) -> Result<Option<Tlv<'a>>, DerError> {
        if self.rest.first() != Some(&tag) {
            return Ok(None);
        }
        self.any(expected).map(Some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Where the next element stands in the document.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may follow.
    pub(crate) fn end(&self, expected: &'static str) -> Result<(), DerError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DerError { offset: self.offset, expected }) }
    }
}

/// Octets of the header, and the length of the value that follows it.
///
/// Only what DER and X.509 have: a tag number under 31 and a definite length
/// in its shortest form (X.690 section 10.1), here of at most four octets: a
/// revocation list may have more than the 16 MiB that three can say.
fn read_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let (tag, rest) = bytes.split_first()?;
    if tag & 0x1f == 0x1f || *tag == 0 {
        return None;
    }
    let (first, rest) = rest.split_first()?;
    match first {
        0..=0x7f => Some((2, usize::from(*first))),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let octets = rest.get(..count)?;
            let length = octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
            let is_shortest = octets[0] != 0 && length > 0x7f;
            is_shortest.then_some((2 + count, length))
        }
        _ => None,
    }
}

/// A big-endian magnitude in its shortest form; nothing for zero.
pub(crate) fn without_leading_zeros(magnitude: &[u8]) -> &[u8] {
    let zeros = magnitude.iter().take_while(|octet| **octet == 0).count();
    &magnitude[zeros..]
}

/// Writes DER: every method appends one element.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(octets: usize) -> Self {
        Self { buffer: Vec::with_capacity(octets) }
    }

    /// An element with the content that `write` appends.
    pub(crate) fn nested(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        self.buffer.extend_from_slice(&[tag, 0]);
        let start = self.buffer.len();
        write(self);
        let length = self.buffer.len() - start;
        if length < 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "compared with 0x80 above")]
            let octet = length as u8;
            self.buffer[start - 1] = octet;
        } else {
            let octets = length.to_be_bytes();
            let octets = &octets[(length.leading_zeros() / 8) as usize..];
            #[expect(clippy::cast_possible_truncation, reason = "at most eight octets of length")]
            let count = octets.len() as u8;
            self.buffer[start - 1] = 0x80 | count;
            self.buffer.splice(start..start, octets.iter().copied());
        }
    }

    pub(crate) fn element(&mut self, tag: u8, value: &[u8]) {
        self.nested(tag, |writer| writer.raw(value));
    }

    /// The non-negative INTEGER of a big-endian magnitude, in its shortest form.
    pub(crate) fn unsigned_integer(&mut self, magnitude: &[u8]) {
        let magnitude = without_leading_zeros(magnitude);
        self.nested(INTEGER, |writer| {
            if magnitude.first().is_none_or(|first| first & 0x80 != 0) {
                writer.raw(&[0]);
            }
            writer.raw(magnitude);
        });
    }

    pub(crate) fn object_identifier(&mut self, content: &[u8]) {
        self.element(OBJECT_IDENTIFIER, content);
    }

    pub(crate) fn bit_string(&mut self, octets: &[u8]) {
        self.nested(BIT_STRING, |writer| {
            writer.raw(&[0]);
            writer.raw(octets);
        });
    }

    /// Octets that are DER already.
    pub(crate) fn raw(&mut self, der: &[u8]) {
        self.buffer.extend_from_slice(der);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (length, header) in [
            (0, vec![0x04, 0x00]),
            (0x7f, vec![0x04, 0x7f]),
            (0x80, vec![0x04, 0x81, 0x80]),
            (0xff, vec![0x04, 0x81, 0xff]),
            (0x100, vec![0x04, 0x82, 0x01, 0x00]),
            (0x1_0000, vec![0x04, 0x83, 0x01, 0x00, 0x00]),
            (0x100_0000, vec![0x04, 0x84, 0x01, 0x00, 0x00, 0x00]),
        ] {
            let mut writer = Writer::default();
            writer.element(OCTET_STRING, &vec![7; length]);
            let written = writer.finish();
            assert_eq!(written[..header.len()], header, "length {length}");
            let tlv = Reader::new(&written).any("OCTET STRING").expect("what we write we read");
            assert_eq!((tlv.tag, tlv.value.len()), (OCTET_STRING, length));
        }
    }

    #[test]
    fn long_and_indefinite_lengths_are_refused() {
        for bytes in [
            &[0x30, 0x80, 0x00, 0x00][..],
            &[0x30, 0x81, 0x01, 0x00],
            &[0x30, 0x82, 0x00, 0x01, 0x00],
            &[0x30, 0x84, 0x00, 0x01, 0x00, 0x00],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00],
            &[0x30, 0x84, 0xff, 0xff],
            &[0x30, 0x85, 0x01, 0x00, 0x00, 0x00, 0x00],
            &[0x1f, 0x01, 0x00],
            &[0x00, 0x00],
        ] {
            assert!(Reader::new(bytes).any("SEQUENCE").is_err(), "{bytes:02x?}");
        }
    }

    #[test]
    fn magnitudes_are_written_as_positive_integers() {
        for (magnitude, expected) in [
            (&[][..], &[2, 1, 0][..]),
            (&[0, 0], &[2, 1, 0]),
            (&[0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0, 0, 1, 0], &[2, 2, 1, 0]),
        ] {
            let mut writer = Writer::default();
            writer.unsigned_integer(magnitude);
            assert_eq!(writer.finish(), expected, "{magnitude:02x?}");
        }
    }

    #[test]
    fn integers_have_one_form() {
        let integer = |value: &'static [u8]| Tlv { tag: INTEGER, value, whole: value, offset: 0 };
        assert_eq!(integer(&[0]).small_integer(), Ok(0));
        assert_eq!(integer(&[0, 0x80]).small_integer(), Ok(128));
        for bad in [&[][..], &[0, 0x7f], &[0x80], &[0, 0]] {
            assert!(integer(bad).unsigned_integer().is_err(), "{bad:02x?}");
        }
    }
}
