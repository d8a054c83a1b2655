//! PEM as people and JSON clients send it, read within bounds.
//!
//! RFC 7468 asks parsers to be lax about white space and text around the
//! block. `pem-rfc7468` refuses a trailing blank line, so a front end finds
//! the one block, drops the white space in its body and hands over a body of
//! base64 characters only. What lies inside the block is not interpreted here.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pem_rfc7468::LineEnding;

/// Why a text is not one PEM block with the wanted label.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// No `-----BEGIN` line.
    #[error("no PEM block: a line \"-----BEGIN {expected}-----\" is missing")]
    NoBlock {
        /// The label that the caller asked for.
        expected: &'static str,
    },
    /// The block is something else, often a private key or a certificate.
    #[error("the PEM block is a {found}, not a {expected}")]
    WrongLabel {
        /// The label that the caller asked for.
        expected: &'static str,
        /// The label that was sent, shortened to 64 characters.
        found: String,
    },
    /// Text after the block holds another `-----BEGIN`.
    #[error("more than one PEM block: send exactly one")]
    SeveralBlocks,
    /// Line ends that some program wrote as a backslash and an n.
    #[error("the line ends of the PEM block are written as \\n: put real ones in their place")]
    EscapedLineEnds,
    /// The `-----END` line is missing or has another label.
    #[error("the PEM block does not end with \"-----END {label}-----\"")]
    NoEnd {
        /// The label of the block's first line, shortened to 64 characters.
        label: String,
    },
    /// The body holds something that is not base64, or has wrong padding.
    #[error("the PEM body is not base64")]
    Base64,
    /// Written by an editor of Windows.
    #[error("the text is UTF-16: save it as UTF-8")]
    Utf16,
    /// Text other than white space follows the block.
    #[error("text follows the PEM block: remove everything after the END line")]
    TrailingText,
}

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the one block of a text whose label is one of `labels`.
///
/// Text before the block, any line ending, any line length and blank lines
/// are accepted. The caller bounds the size of `text`.
pub(crate) fn decode(text: &[u8], labels: &[&'static str]) -> Result<Vec<u8>, PemError> {
    let (der, rest) = decode_first(text, labels)?;
    if find(rest, BEGIN.as_bytes()).is_some() {
        return Err(PemError::SeveralBlocks);
    }
    if !rest.iter().all(u8::is_ascii_whitespace) {
        return Err(PemError::TrailingText);
    }
    Ok(der)
}

/// Reads every block of a text that has one of `labels`, and passes over the
/// others: keys, parameters and chains stand in one file as often as not.
pub(crate) fn decode_all(text: &[u8], labels: &[&'static str]) -> Result<Vec<Vec<u8>>, PemError> {
    let mut blocks = Vec::new();
    let mut other = None;
    let mut rest = text;
    while blocks.is_empty() && other.is_none() || block_start(rest).is_some() {
        match decode_first(rest, labels) {
            Ok((der, after)) => {
                blocks.push(der);
                rest = after;
            }
            Err(error @ PemError::WrongLabel { .. }) => {
                let start = block_start(rest).unwrap_or_default();
                rest = &rest[start + BEGIN.len()..];
                other.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match other {
        Some(error) if blocks.is_empty() => Err(error),
        _ => Ok(blocks),
    }
}

/// Reads a `PRIVATE KEY` block in constant time, and strictly: keys are written
/// by programs.
#[cfg(any(feature = "aws-lc-rs", feature = "rustcrypto"))]
pub(crate) fn decode_private_key(text: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, PemError> {
    const LABEL: &str = "PRIVATE KEY";
    match pem_rfc7468::decode_vec(text) {
        Ok((LABEL, der)) => Ok(zeroize::Zeroizing::new(der)),
        Ok((label, _)) => Err(PemError::WrongLabel { expected: LABEL, found: shortened(label.as_bytes()) }),
        Err(_) => Err(PemError::NoBlock { expected: LABEL }),
    }
}

/// One block with 64-column lines and a final newline.
pub(crate) fn encode(label: &'static str, der: &[u8]) -> String {
    pem_rfc7468::encode_string(label, LineEnding::LF, der).unwrap_or_else(|error| {
        // Only a bad label or more than isize::MAX octets end here; both are ours.
        unreachable!("PEM encoding of a {label}: {error}")
    })
}

fn decode_first<'a>(text: &'a [u8], labels: &[&'static str]) -> Result<(Vec<u8>, &'a [u8]), PemError> {
    let expected = labels[0];
    let start = block_start(text)
        .ok_or_else(|| if is_utf16(text) { PemError::Utf16 } else { PemError::NoBlock { expected } })?;
    let after_begin = &text[start + BEGIN.len()..];
    let label_length = find(after_begin, DASHES.as_bytes()).ok_or(PemError::NoBlock { expected })?;
    let label = &after_begin[..label_length];
    if !labels.iter().any(|wanted| wanted.as_bytes() == label) {
        return Err(PemError::WrongLabel { expected, found: shortened(label) });
    }
    let body = &after_begin[label_length + DASHES.len()..];
    let no_end = || PemError::NoEnd { label: shortened(label) };
    if body.starts_with(b"\\n") || body.starts_with(b"\\r") {
        return Err(PemError::EscapedLineEnds);
    }
    let body_length = find(body, DASHES.as_bytes()).ok_or_else(no_end)?;
    let (body, end) = body.split_at(body_length);
    let end = end
        .strip_prefix(b"-----END ")
        .and_then(|end| end.strip_prefix(label))
        .and_then(|end| end.strip_prefix(DASHES.as_bytes()))
        .ok_or_else(no_end)?;
    Ok((decode_body(body)?, end))
}

/// A block starts at the beginning of a line, so that dashes in the text
/// before it do not count.
fn block_start(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let start = from + find(&text[from..], BEGIN.as_bytes())?;
        let is_line = start == 0 || matches!(text[start - 1], b'\n' | b'\r' | b' ' | b'\t');
        // Notepad and PowerShell put a mark before UTF-8.
        if is_line || text[..start] == *BYTE_ORDER_MARK {
            return Some(start);
        }
        from = start + BEGIN.len();
    }
}

/// By its mark, or by `-----BEGIN` in two octets a character.
fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") || find(text, b"-\0-\0-\0").is_some()
}

fn decode_body(body: &[u8]) -> Result<Vec<u8>, PemError> {
    // White space carries no meaning here, wherever it stands; the decoder takes none.
    let mut compact = Vec::with_capacity(body.len());
    for line in body.split(u8::is_ascii_whitespace) {
        compact.extend_from_slice(line);
    }
    // What is decoded here is public. The constant time of pem-rfc7468's decoder, which
    // keys need, would take a microsecond for nothing.
    match STANDARD.decode(&compact) {
        Ok(der) if !der.is_empty() => Ok(der),
        _ => Err(PemError::Base64),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = needle[0];
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|octet| *octet == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

fn shortened(label: &[u8]) -> String {
    Shown(label).to_string()
}

/// Untrusted octets in an error text: escaped, at most 64 of them.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 64;
        write!(f, "{}", self.0[..self.0.len().min(LIMIT)].escape_ascii())?;
        if self.0.len() > LIMIT { f.write_str("...") } else { Ok(()) }
    }
}
