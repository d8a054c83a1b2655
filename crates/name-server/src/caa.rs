//! Who may issue certificates for the zone.

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::CAA;

use crate::DomainName;

/// What the zone says in CAA ([RFC 8659](https://www.rfc-editor.org/rfc/rfc8659)).
///
/// It is said at the zone's apex. Names below have no CAA of their own, so that an
/// authority climbs to the apex (section 3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caa(Vec<String>);

/// Why a CAA record cannot be made.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CaaError {
    /// An account URI with a blank, a semicolon, or something that is not ASCII; or none.
    #[error("the account URI {0:?} cannot stand in a CAA record: printable ASCII without blanks and semicolons can")]
    Account(String),
    /// No issuer: that would let everybody issue.
    #[error("a CAA record names at least one issuer")]
    Issuer,
    /// The value is longer than a record of ours may be.
    #[error("a CAA value has at most {MAX_VALUE} characters")]
    Length,
    /// A challenge's name that is not letters, digits and hyphens.
    #[error("the validation method {0:?} is not letters, digits and hyphens")]
    Method(String),
}

/// Far more than any account has, and small enough for an answer over UDP.
const MAX_VALUE: usize = 512;

impl Caa {
    /// Nothing: every authority may issue.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// `issue ";"`: nobody may issue. For as long as the account is not known that [`Caa::account`] will name.
    #[must_use]
    pub fn nobody() -> Self {
        Self(vec![";".to_owned()])
    }

    /// These authorities may issue, wildcards too (RFC 8659 section 4.3: without `issuewild`, `issue` counts).
    ///
    /// # Errors
    ///
    /// [`CaaError::Issuer`] without any.
    pub fn authority(issuers: &[DomainName]) -> Result<Self, CaaError> {
        Self::with(issuers, "")
    }

    /// These authorities may issue, for this account and after these validations only
    /// ([RFC 8657](https://www.rfc-editor.org/rfc/rfc8657) sections 3 and 4); after any, if none is named.
    ///
    /// # Errors
    ///
    /// When a value does not fit the grammar of RFC 8659 section 4.2: an authority takes a
    /// value that it cannot read for "nobody".
    pub fn account(issuers: &[DomainName], account_uri: &str, methods: &[&str]) -> Result<Self, CaaError> {
        // parameter-value = *(%x21-3A / %x3C-7E)
        if account_uri.is_empty() || !account_uri.bytes().all(|octet| octet.is_ascii_graphic() && octet != b';') {
            return Err(CaaError::Account(account_uri.to_owned()));
        }
        let is_method = |method: &str| {
            !method.is_empty() && method.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
        };
        if let Some(method) = methods.iter().find(|method| !is_method(method)) {
            return Err(CaaError::Method((*method).to_owned()));
        }
        let mut parameters = format!("; accounturi={account_uri}");
        if !methods.is_empty() {
            parameters = format!("{parameters}; validationmethods={}", methods.join(","));
        }
        Self::with(issuers, &parameters)
    }

    /// The values of the records, as `dig` shows them.
    #[must_use]
    pub fn values(&self) -> &[String] {
        &self.0
    }

    fn with(issuers: &[DomainName], parameters: &str) -> Result<Self, CaaError> {
        if issuers.is_empty() {
            return Err(CaaError::Issuer);
        }
        let values: Vec<_> = issuers.iter().map(|issuer| format!("{issuer}{parameters}")).collect();
        if values.iter().any(|value| value.len() > MAX_VALUE) {
            return Err(CaaError::Length);
        }
        Ok(Self(values))
    }

    pub(crate) fn records(&self) -> Vec<RData> {
        let record = |value: &String| {
            let mut record = CAA::new_issue(false, None, Vec::new());
            record.value = value.clone().into_bytes();
            RData::CAA(record)
        };
        self.0.iter().map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuers() -> [DomainName; 1] {
        ["letsencrypt.org".parse().expect("a name")]
    }

    #[test]
    fn a_caa_value_fits_the_grammar_or_is_not_made() {
        assert_eq!(Caa::none().values(), [""; 0]);
        assert_eq!(Caa::nobody().values(), [";"]);
        assert_eq!(Caa::authority(&issuers()).expect("fits").values(), ["letsencrypt.org"]);
        let uri = "https://acme.example/acct/1";
        for (uri, methods, wanted) in [
            (
                uri,
                &["dns-01", "tls-alpn-01"][..],
                Ok("letsencrypt.org; accounturi=https://acme.example/acct/1; validationmethods=dns-01,tls-alpn-01"),
            ),
            (uri, &[], Ok("letsencrypt.org; accounturi=https://acme.example/acct/1")),
            ("", &[], Err(CaaError::Account(String::new()))),
            ("https://a/;b", &[], Err(CaaError::Account("https://a/;b".to_owned()))),
            ("https://a/ b", &[], Err(CaaError::Account("https://a/ b".to_owned()))),
            ("https://ä/", &[], Err(CaaError::Account("https://ä/".to_owned()))),
            (uri, &["dns,01"], Err(CaaError::Method("dns,01".to_owned()))),
            (uri, &[""], Err(CaaError::Method(String::new()))),
            (&"a".repeat(600), &[], Err(CaaError::Length)),
        ] {
            let came = Caa::account(&issuers(), uri, methods).map(|caa| caa.values().concat());
            assert_eq!(came, wanted.map(str::to_owned));
        }
        assert_eq!(Caa::authority(&[]), Err(CaaError::Issuer));
    }
}
