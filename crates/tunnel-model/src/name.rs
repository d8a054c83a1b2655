//! Names: the label of a tunnel, the zone above it, and both joined.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The label of a tunnel, which is also the handle of the identity that owns it.
///
/// 3 to 63 characters of `a`-`z`, `0`-`9` and `-`; first and last alphanumeric;
/// no two hyphens in a row.
///
/// ```
/// use tunnel_model::{NameError, TunnelName};
/// assert!("my-agent".parse::<TunnelName>().is_ok());
/// assert_eq!("My-Agent".parse::<TunnelName>(), Err(NameError::Character));
/// // Handles are forgiving where tunnel names are not.
/// assert_eq!(TunnelName::from_handle("@My-Agent")?.as_str(), "my-agent");
/// # Ok::<(), NameError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct TunnelName(String);

/// Why a text is not a tunnel name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Something other than a lower-case letter, a digit or a hyphen.
    #[error("a tunnel name has lower-case letters, digits and hyphens only")]
    Character,
    /// Two hyphens in a row.
    #[error("a tunnel name has no two hyphens in a row")]
    ConsecutiveHyphens,
    /// A hyphen at either end.
    #[error("a tunnel name starts and ends with a letter or a digit")]
    Edge,
    /// Shorter than 3 or longer than 63 characters.
    #[error("a tunnel name has 3 to 63 characters")]
    Length,
}

impl TunnelName {
    /// From an agent handle: one leading `@` is dropped and letters are
    /// lowered before the rules apply.
    ///
    /// # Errors
    ///
    /// [`NameError`], as for a tunnel name.
    pub fn from_handle(handle: &str) -> Result<Self, NameError> {
        handle.strip_prefix('@').unwrap_or(handle).to_ascii_lowercase().parse()
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TunnelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // Characters, so that a text of two umlauts is not called long enough.
        if !(3..=63).contains(&text.chars().count()) {
            return Err(NameError::Length);
        }
        if !text.bytes().all(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(NameError::Character);
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Edge);
        }
        if text.contains("--") {
            return Err(NameError::ConsecutiveHyphens);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TunnelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The suffix of every public host, and the host that agents dial.
///
/// Dot-separated labels of letters, digits and hyphens, lower case, at most
/// 189 characters, so that a tunnel name of 63 fits before it.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Zone(String);

/// Why a text is not a zone.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a zone is a host name of at most 189 characters: labels of letters, digits and inner hyphens, joined by dots, \
     for example tunnels.example.com"
)]
pub struct ZoneError;

impl Zone {
    /// The zone without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The public host of a tunnel in this zone.
    pub fn host(&self, name: &TunnelName) -> PublicHost {
        PublicHost(format!("{name}.{self}"))
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        const MAX: usize = 253 - 63 - 1;
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = text.rsplit('.').next().unwrap_or_default();
        let ends_in_number = last.bytes().all(|octet| octet.is_ascii_digit());
        if text.len() > MAX || !text.split('.').all(is_label) || ends_in_number {
            return Err(ZoneError);
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `{tunnel name}.{zone}`: the host that third parties call.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PublicHost(String);

impl PublicHost {
    /// The host in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PublicHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names that nobody gets.
///
/// *Reserved* names belong to the operator of the zone, such as `www`, or are
/// probed by mail and browser software. The *deny list* is the operator's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamePolicy {
    reserved: BTreeSet<String>,
    denied: BTreeSet<String>,
}

/// Why a well-formed name is not given out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unavailable {
    /// On the operator's deny list.
    Denied,
    /// Somebody else has a certificate for it that strangers trust, and that is good still.
    Quarantined,
    /// Reserved for the zone itself.
    Reserved,
}

/// Hosts that a zone's operator needs, and those whose owner other software
/// takes for the zone's owner: mail set-up, certificates by e-mail, proxies.
const RESERVED: [&str; 40] = [
    "abuse",
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "app",
    "assets",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "dns",
    "docs",
    "ftp",
    "help",
    "hostmaster",
    "imap",
    "internal",
    "isatap",
    "localhost",
    "login",
    "mail",
    "mta-sts",
    "noc",
    "ns1",
    "ns2",
    "pki",
    "postmaster",
    "root",
    "security",
    "smtp",
    "status",
    "webmaster",
    "wpad",
    "www",
];

impl NamePolicy {
    /// The built-in reserved names and nothing denied.
    pub fn new() -> Self {
        Self { reserved: RESERVED.iter().map(|name| (*name).to_owned()).collect(), denied: BTreeSet::new() }
    }

    /// Reserves these names as well.
    #[must_use]
    pub fn reserve(mut self, names: impl IntoIterator<Item = TunnelName>) -> Self {
        self.reserved.extend(names.into_iter().map(|name| name.0));
        self
    }

    /// Denies these names.
    #[must_use]
    pub fn deny(mut self, names: impl IntoIterator<Item = TunnelName>) -> Self {
        self.denied.extend(names.into_iter().map(|name| name.0));
        self
    }

    /// May somebody have this name?
    ///
    /// # Errors
    ///
    /// Which list the name is on.
    pub fn check(&self, name: &TunnelName) -> Result<(), Unavailable> {
        if self.reserved.contains(name.as_str()) {
            Err(Unavailable::Reserved)
        } else if self.denied.contains(name.as_str()) {
            Err(Unavailable::Denied)
        } else {
            Ok(())
        }
    }
}

impl Default for NamePolicy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnel_names_follow_the_rules() {
        let longest = "a".repeat(63);
        let too_long = "a".repeat(64);
        for (text, expected) in [
            ("abc", Ok(())),
            ("a1-b2-c3", Ok(())),
            ("123", Ok(())),
            (longest.as_str(), Ok(())),
            (too_long.as_str(), Err(NameError::Length)),
            ("", Err(NameError::Length)),
            ("ab", Err(NameError::Length)),
            ("üü", Err(NameError::Length)),
            ("büro", Err(NameError::Character)),
            ("Abc", Err(NameError::Character)),
            ("a.b", Err(NameError::Character)),
            ("a_b", Err(NameError::Character)),
            ("a\0b", Err(NameError::Character)),
            (" abc", Err(NameError::Character)),
            ("-ab", Err(NameError::Edge)),
            ("ab-", Err(NameError::Edge)),
            ("a--b", Err(NameError::ConsecutiveHyphens)),
            ("xn--abc", Err(NameError::ConsecutiveHyphens)),
        ] {
            assert_eq!(text.parse::<TunnelName>().map(drop), expected, "{text:?}");
        }
    }

    #[test]
    fn handles_are_normalized_once() {
        let handle = |text| TunnelName::from_handle(text).map(|name| name.to_string());
        assert_eq!(handle("@My-Agent"), Ok("my-agent".to_owned()));
        assert_eq!(handle("@@my-agent"), Err(NameError::Character));
        assert_eq!(handle("@ab"), Err(NameError::Length));
    }

    #[test]
    fn zones_are_host_names() {
        for good in ["adit.localhost", "localhost", "Tunnels.Example.COM", "1.example"] {
            assert!(good.parse::<Zone>().is_ok(), "{good}");
        }
        let long = format!("{}b", "a.".repeat(100));
        for bad in ["", ".", "a.", ".a", "a..b", "*.a", "a_b.c", "10.0.0.1", long.as_str()] {
            assert_eq!(bad.parse::<Zone>(), Err(ZoneError), "{bad:?}");
        }
        let zone: Zone = "Adit.Localhost".parse().expect("a zone");
        let name = "my-agent".parse().expect("a name");
        assert_eq!(zone.host(&name).as_str(), "my-agent.adit.localhost");
    }

    #[test]
    fn reserved_and_denied_names_are_told_apart() {
        let name = |text: &str| text.parse::<TunnelName>().expect("a name");
        let policy = NamePolicy::new().deny([name("rude-word")]).reserve([name("intranet")]);
        assert_eq!(policy.check(&name("www")), Err(Unavailable::Reserved));
        assert_eq!(policy.check(&name("intranet")), Err(Unavailable::Reserved));
        assert_eq!(policy.check(&name("rude-word")), Err(Unavailable::Denied));
        assert_eq!(policy.check(&name("my-agent")), Ok(()));
        assert!(RESERVED.iter().all(|name| name.parse::<TunnelName>().is_ok()));
    }
}
