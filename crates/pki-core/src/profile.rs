//! What the certificates of an authority look like: the part of the decision
//! that an operator makes, once, in a file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the certificate is for: its extended key usage.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Usage {
    /// id-kp-clientAuth: agents and admins.
    ClientAuth,
    /// id-kp-serverAuth: tunnels.
    ServerAuth,
}

/// A profile as a file says it; [`Profile`] is what is trusted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileConfig {
    /// Server or client certificates.
    pub usage: Usage,
    /// Seconds from notBefore to notAfter, both included: 600 to 10 years.
    pub validity_seconds: u64,
    /// Seconds by which notBefore lies before the time of signing, for
    /// clocks that are late: 0 to 300.
    pub backdate_seconds: u64,
    /// `http` URI of the certificate revocation list, if there is one.
    #[serde(default)]
    pub crl_distribution_point: Option<String>,
    /// `http` URI of the issuer's certificate, if it is published.
    #[serde(default)]
    pub ca_issuers: Option<String>,
}

/// The shape of the certificates that are signed.
///
/// ```
/// use std::time::Duration;
/// use pki_core::{Profile, ProfileConfig, Usage};
///
/// let profile = Profile::try_from(ProfileConfig {
///     usage: Usage::ServerAuth,
///     validity_seconds: 90 * 86_400,
///     backdate_seconds: 300,
///     crl_distribution_point: None,
///     ca_issuers: None,
/// })?;
/// assert_eq!(profile.validity(), Duration::from_secs(90 * 86_400));
/// # Ok::<(), pki_core::ProfileError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    pub(crate) usage: Usage,
    pub(crate) validity: Duration,
    pub(crate) backdate: Duration,
    pub(crate) crl_distribution_point: Option<String>,
    pub(crate) ca_issuers: Option<String>,
}

/// A profile that must not be signed by.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// `backdate_seconds` is more than five minutes.
    #[error("backdate_seconds is {0}: at most 300 are allowed")]
    Backdate(u64),
    /// Not an `http` URI in ASCII.
    #[error("{field} is {uri:?}: use an http:// URI in ASCII of at most 1024 characters")]
    Uri {
        /// The field of [`ProfileConfig`].
        field: &'static str,
        /// What was given.
        uri: String,
    },
    /// `validity_seconds` is out of range.
    #[error("validity_seconds is {0}: use 600 (ten minutes) to 315360000 (ten years)")]
    Validity(u64),
}

const MIN_VALIDITY_SECONDS: u64 = 600;
const MAX_VALIDITY_SECONDS: u64 = 3650 * 86_400;
const MAX_BACKDATE_SECONDS: u64 = 300;

impl Profile {
    /// From notBefore to notAfter, both seconds included.
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// Server or client certificates.
    pub fn usage(&self) -> Usage {
        self.usage
    }
}

impl TryFrom<ProfileConfig> for Profile {
    type Error = ProfileError;

    fn try_from(config: ProfileConfig) -> Result<Self, ProfileError> {
        if !(MIN_VALIDITY_SECONDS..=MAX_VALIDITY_SECONDS).contains(&config.validity_seconds) {
            return Err(ProfileError::Validity(config.validity_seconds));
        }
        if config.backdate_seconds > MAX_BACKDATE_SECONDS {
            return Err(ProfileError::Backdate(config.backdate_seconds));
        }
        let uris = [("crl_distribution_point", &config.crl_distribution_point), ("ca_issuers", &config.ca_issuers)];
        for (field, uri) in uris {
            if let Some(uri) = uri
                && (!uri.starts_with("http://")
                    || uri.len() > 1024
                    || !uri.bytes().all(|octet| octet.is_ascii_graphic()))
            {
                return Err(ProfileError::Uri { field, uri: uri.clone() });
            }
        }
        Ok(Self {
            usage: config.usage,
            validity: Duration::from_secs(config.validity_seconds),
            backdate: Duration::from_secs(config.backdate_seconds),
            crl_distribution_point: config.crl_distribution_point,
            ca_issuers: config.ca_issuers,
        })
    }
}
