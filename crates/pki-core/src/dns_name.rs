//! Host names as certificates carry them.

use std::fmt;
use std::str::FromStr;

/// A fully qualified host name in LDH form (RFC 5890 section 2.3.1), lower case.
///
/// No wildcard, no trailing dot, no address, no underscore.
///
/// ```
/// use pki_core::DnsName;
/// let name: DnsName = "My-Agent.adit.localhost".parse()?;
/// assert_eq!(name.as_str(), "my-agent.adit.localhost");
/// assert!("*.adit.localhost".parse::<DnsName>().is_err());
/// # Ok::<(), pki_core::DnsNameError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DnsName(String);

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DnsNameError {
    /// All-numeric last label: an IPv4 address or something that reads like one.
    #[error("a host name does not end in a number")]
    Address,
    /// A character other than a letter, a digit, a hyphen or a dot.
    #[error("a host name has letters, digits, hyphens and dots only")]
    Character,
    /// An empty label, one over 63 octets, or one with a hyphen at its end.
    #[error("each part of a host name has 1 to 63 characters and neither starts nor ends with a hyphen")]
    Label,
    /// Empty, or more than 253 octets (RFC 1035 section 2.3.4 less the root).
    #[error("a host name has 1 to 253 characters")]
    Length,
}

/// RFC 5280, ub-common-name.
const COMMON_NAME_MAX: usize = 64;

impl DnsName {
    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Can the name stand in a commonName, which holds 64 characters?
    pub fn fits_common_name(&self) -> bool {
        self.0.len() <= COMMON_NAME_MAX
    }

    /// Is this name `zone` itself or below it?
    pub fn is_within(&self, zone: &Self) -> bool {
        self.0.strip_suffix(&zone.0).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        if text.is_empty() || text.len() > 253 {
            return Err(DnsNameError::Length);
        }
        if !text.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'.') {
            return Err(DnsNameError::Character);
        }
        let is_label =
            |label: &str| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
        if !text.split('.').all(is_label) {
            return Err(DnsNameError::Label);
        }
        let last = text.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err(DnsNameError::Address);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_ldh_rule() {
        let long_label = format!("{}.localhost", "a".repeat(64));
        let long_name = format!("{}a", "a.".repeat(127));
        for (text, error) in [
            ("", DnsNameError::Length),
            (long_name.as_str(), DnsNameError::Length),
            (long_label.as_str(), DnsNameError::Label),
            ("a..b", DnsNameError::Label),
            ("a.b.", DnsNameError::Label),
            ("-a.b", DnsNameError::Label),
            ("a-.b", DnsNameError::Label),
            ("*.b", DnsNameError::Character),
            ("a_b.c", DnsNameError::Character),
            ("a\0.b", DnsNameError::Character),
            ("bücher.example", DnsNameError::Character),
            ("127.0.0.1", DnsNameError::Address),
        ] {
            assert_eq!(text.parse::<DnsName>(), Err(error), "{text:?}");
        }
        for text in ["localhost", "a.b", "xn--bcher-kva.example", "1.example", "a--b.example"] {
            assert!(text.parse::<DnsName>().is_ok(), "{text}");
        }
    }

    #[test]
    fn a_zone_holds_itself_and_what_is_below_it() {
        let name = |text: &str| text.parse::<DnsName>().expect("a host name");
        let zone = name("adit.localhost");
        assert!(name("adit.localhost").is_within(&zone));
        assert!(name("a.adit.localhost").is_within(&zone));
        assert!(!name("xadit.localhost").is_within(&zone));
        assert!(!name("localhost").is_within(&zone));
    }
}
