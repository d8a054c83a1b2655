//! Names as the zone's owner writes them.

use std::fmt;
use std::str::FromStr;

use hickory_proto::rr::Name;

/// A domain name of letters, digits, hyphens and underscores, lower case.
///
/// Underscores are let in because of names such as `_acme-challenge`
/// ([RFC 8552](https://www.rfc-editor.org/rfc/rfc8552)). A dot at the end may be there
/// or not.
///
/// ```
/// use name_server::DomainName;
/// let name: DomainName = "_acme-challenge.Adit.example.".parse()?;
/// assert_eq!(name.to_string(), "_acme-challenge.adit.example");
/// assert!("adit..example".parse::<DomainName>().is_err());
/// # Ok::<(), name_server::DomainNameError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct DomainName(Name);

/// Why a text is not a domain name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainNameError {
    /// A character other than a letter, a digit, a hyphen, an underscore or a dot.
    #[error("a domain name has letters, digits, hyphens, underscores and dots only")]
    Character,
    /// An empty label, or one over 63 octets.
    #[error("each part of a domain name has 1 to 63 characters")]
    Label,
    /// Empty, or more than 253 octets (RFC 1035 section 2.3.4 less the root).
    #[error("a domain name has 1 to 253 characters")]
    Length,
}

impl DomainName {
    /// Is this name `zone` itself or below it?
    #[must_use]
    pub fn is_within(&self, zone: &Self) -> bool {
        zone.0.zone_of(&self.0)
    }

    /// The name with one more label in front.
    pub(crate) fn below(&self, label: &str) -> Result<Self, DomainNameError> {
        format!("{label}.{self}").parse()
    }

    pub(crate) fn wire(&self) -> &Name {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.to_ascii().trim_end_matches('.'))
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return Err(DomainNameError::Length);
        }
        let is_allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
        if !text.bytes().all(is_allowed) {
            return Err(DomainNameError::Character);
        }
        let lower = text.to_ascii_lowercase();
        if !lower.split('.').all(|label| (1..=63).contains(&label.len())) {
            return Err(DomainNameError::Label);
        }
        let mut name = Name::from_labels(lower.split('.').map(str::as_bytes)).map_err(|_| DomainNameError::Length)?;
        name.set_fqdn(true);
        Ok(Self(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_lower_case_or_refused_with_a_reason() {
        let long_label = "a".repeat(64);
        let longest = format!("{}.{}", "a.".repeat(120), "b".repeat(12));
        assert_eq!(longest.len(), 253);
        for (text, wanted) in [
            ("a", Ok("a")),
            ("A.b-C.example.", Ok("a.b-c.example")),
            ("_acme-challenge.a", Ok("_acme-challenge.a")),
            ("", Err(DomainNameError::Length)),
            (".", Err(DomainNameError::Length)),
            ("a..b", Err(DomainNameError::Label)),
            (".a", Err(DomainNameError::Label)),
            (&long_label, Err(DomainNameError::Label)),
            ("*.a", Err(DomainNameError::Character)),
            ("a b", Err(DomainNameError::Character)),
            ("a\\046b", Err(DomainNameError::Character)),
            ("ä.example", Err(DomainNameError::Character)),
            (&format!("{longest}c"), Err(DomainNameError::Length)),
        ] {
            let came = text.parse::<DomainName>().map(|name| name.to_string());
            assert_eq!(came, wanted.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn a_zone_has_itself_and_what_is_below() {
        let name = |text: &str| text.parse::<DomainName>().expect("a name");
        for (inner, outer, wanted) in [
            ("a.example", "a.example", true),
            ("x.y.a.example", "a.example", true),
            ("xa.example", "a.example", false),
            ("example", "a.example", false),
        ] {
            assert_eq!(name(inner).is_within(&name(outer)), wanted, "{inner} {outer}");
        }
    }
}
