//! What an authority says when it refuses: problem documents (RFC 7807), bounded and cleaned.

use std::fmt;

use serde::Deserialize;

/// A problem document of an authority (RFC 8555 section 6.7), fit to be shown and logged.
///
/// Its words are the authority's, shortened, in ASCII and without control characters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Problem {
    /// What stands behind `urn:ietf:params:acme:error:`, or the whole type if it is no such.
    pub kind: String,
    /// What the authority says of it.
    pub detail: String,
    /// The problems of single names.
    pub parts: Vec<Part>,
}

/// A problem with one of the names of an order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Part {
    /// The name.
    pub name: String,
    /// As [`Problem::kind`].
    pub kind: String,
    /// What the authority says of it.
    pub detail: String,
}

/// The most characters of a detail that are kept.
const DETAIL: usize = 500;

/// The most parts that are kept: an order has few names.
const PARTS: usize = 10;

/// What is said of one name: the name, the type, the detail.
type Words = (Option<String>, Option<String>, Option<String>);

const PREFIX: &str = "urn:ietf:params:acme:error:";

impl Problem {
    /// Reads a document; `None` if it is none.
    ///
    /// Members of another type than they should have are passed over, so that an authority with
    /// a habit of its own is still understood.
    pub fn parse(document: &[u8]) -> Option<Self> {
        let read: Document = serde_json::from_slice(document).ok()?;
        // An empty object, an order or an account is no problem document.
        if read.kind.is_none() && read.detail.is_none() {
            return None;
        }
        let parts = read.subproblems.into_iter();
        let parts = parts.map(|part| (part.identifier.and_then(|one| one.value), part.kind, part.detail));
        Some(Self::new(read.kind, &read.detail.unwrap_or_default(), parts))
    }

    /// As an authority says it, in as many words as are kept; parts are name, type and detail.
    pub(crate) fn new(full: Option<String>, detail: &str, parts: impl Iterator<Item = Words>) -> Self {
        let parts = parts.take(PARTS).map(|(name, full, detail)| Part {
            name: cleaned(&name.unwrap_or_default(), 253),
            kind: kind(full),
            detail: cleaned(&detail.unwrap_or_default(), DETAIL),
        });
        Self { kind: kind(full), detail: cleaned(detail, DETAIL), parts: parts.collect() }
    }

    /// An answer that should have been a problem document.
    pub(crate) fn silent(status: u16) -> Self {
        Self { detail: format!("status {status} without a problem document"), ..Self::default() }
    }

    /// Is it of this kind, as a whole or in one of its parts?
    pub fn is(&self, kind: &str) -> bool {
        self.kind == kind || self.parts.iter().any(|part| part.kind == kind)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |f: &mut fmt::Formatter<'_>, kind: &str, detail: &str| match (kind, detail) {
            ("", detail) => f.write_str(detail),
            (kind, "") => f.write_str(kind),
            (kind, detail) => write!(f, "{kind}: {detail}"),
        };
        said(f, &self.kind, &self.detail)?;
        for part in &self.parts {
            write!(f, "; {}: ", part.name)?;
            said(f, &part.kind, &part.detail)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default, rename = "type", deserialize_with = "text")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "text")]
    detail: Option<String>,
    #[serde(default, deserialize_with = "documents")]
    subproblems: Vec<Subdocument>,
}

#[derive(Default, Deserialize)]
struct Subdocument {
    #[serde(default, rename = "type", deserialize_with = "text")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "text")]
    detail: Option<String>,
    #[serde(default, deserialize_with = "identifier")]
    identifier: Option<Identifier>,
}

#[derive(Deserialize)]
struct Identifier {
    #[serde(default, deserialize_with = "text")]
    value: Option<String>,
}

/// A text, or nothing where something else stands.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    })
}

fn documents<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Subdocument>, D::Error> {
    let serde_json::Value::Array(all) = serde_json::Value::deserialize(deserializer)? else { return Ok(Vec::new()) };
    Ok(all.into_iter().take(PARTS).filter_map(|one| serde_json::from_value(one).ok()).collect())
}

fn identifier<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Identifier>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).ok())
}

fn kind(full: Option<String>) -> String {
    let full = full.unwrap_or_default();
    cleaned(full.strip_prefix(PREFIX).unwrap_or(&full), 100)
}

/// One harmless line of at most `limit` characters. What is not ASCII may turn a line around.
pub(crate) fn cleaned(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut after_blank = true;
    for character in text.chars() {
        let character = match character {
            character if character.is_whitespace() || character.is_control() => ' ',
            character if character.is_ascii() => character,
            _ => '?',
        };
        if character == ' ' && after_blank {
            continue;
        }
        after_blank = character == ' ';
        if line.len() == limit {
            line.push_str("...");
            return line;
        }
        line.push(character);
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_whatever_its_habits() {
        let document =
            br#"{"type": "urn:ietf:params:acme:error:compound", "detail": "two\nlines \u001b[31m", "status": 403,
            "subproblems": [{"type": "urn:ietf:params:acme:error:caa", "detail": "CAA", "identifier": {"type": "dns",
            "value": "a.example"}}, 7, {"detail": 8, "identifier": "none"}]}"#;
        let problem = Problem::parse(document).expect("a problem");
        assert_eq!((problem.kind.as_str(), problem.detail.as_str()), ("compound", "two lines [31m"));
        assert!(problem.is("caa") && problem.is("compound") && !problem.is("dns"));
        assert_eq!(problem.parts.len(), 2);
        assert_eq!(problem.parts[0].name, "a.example");
        assert_eq!(problem.to_string(), "compound: two lines [31m; a.example: caa: CAA; : ");
    }

    #[test]
    fn what_is_no_problem_is_none() {
        for document in ["", "{}", "[]", "null", "7", "\"text\"", r#"{"status": "pending"}"#, r#"{"type": 7}"#] {
            assert_eq!(Problem::parse(document.as_bytes()), None, "{document}");
        }
        let endless = format!(r#"{{"detail": "{}"}}"#, "word ".repeat(100_000));
        assert!(Problem::parse(endless.as_bytes()).expect("a problem").detail.len() <= DETAIL + 3);
    }

    #[test]
    fn words_are_one_harmless_line() {
        assert_eq!(cleaned("turned\u{202e}around \t\r\n\0 here  ", 100), "turned?around here");
        assert_eq!(cleaned("abcdef", 3), "abc...");
        assert_eq!(cleaned("abc", 3), "abc");
    }
}
