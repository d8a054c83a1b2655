//! What a certificate is for: a host, or every host one label below a domain.

use std::fmt;
use std::str::FromStr;

use pki_core::{DnsName, DnsNameError};

/// An identifier of an order: a host name, or a wildcard.
///
/// ```
/// let name: acme::Name = "*.example.org".parse()?;
/// assert!(name.is_wildcard());
/// assert_eq!(name.domain().as_str(), "example.org");
/// # Ok::<(), pki_core::DnsNameError>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    domain: DnsName,
    wildcard: bool,
}

impl Name {
    /// One host.
    pub fn host(host: DnsName) -> Self {
        Self { domain: host, wildcard: false }
    }

    /// Every host one label below `domain`.
    pub fn wildcard(domain: DnsName) -> Self {
        Self { domain, wildcard: true }
    }

    /// The name without `*.`: whose control is proved.
    pub fn domain(&self) -> &DnsName {
        &self.domain
    }

    /// Does it begin with `*.`?
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }
}

impl From<DnsName> for Name {
    fn from(host: DnsName) -> Self {
        Self::host(host)
    }
}

impl FromStr for Name {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        match text.strip_prefix("*.") {
            Some(domain) => domain.parse().map(Self::wildcard),
            None => text.parse().map(Self::host),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wildcard { write!(f, "*.{}", self.domain) } else { self.domain.fmt(f) }
    }
}
