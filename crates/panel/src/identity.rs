//! Who a certificate says it is, and whether that counts.

use jiff::Timestamp;
use pki_core::crypto::aws_lc::AwsLc;
use pki_core::{Certificate, verify_version_1_leaf};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::authority::{seconds, timestamp};
use crate::error::Error;
use crate::panel::DELEGATED;
use crate::state::{Serial, State};
use crate::subject::common_names;

/// A client certificate that our authority signed, and whose key the peer has.
///
/// What it says is not looked at yet: [`Panel::authenticate`](crate::Panel::authenticate) does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Presented {
    /// Every commonName of the subject.
    pub common_names: Vec<String>,
    /// Its serial number.
    pub serial: Serial,
    /// First and last second; `None` when a proxy has looked.
    validity: Option<(Timestamp, Timestamp)>,
}

/// Who asks, with the certificate's serial number or label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// May do everything.
    Admin(Serial),
    /// An agent.
    Agent(AgentCaller),
}

/// An agent that asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AgentCaller {
    /// As in the registry.
    pub label: String,
    /// Of its certificate.
    pub serial: Serial,
    /// As in the registry; not all need be valid today.
    pub capabilities: Vec<String>,
}

/// Why nobody is let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Denied {
    /// The lists cannot be read, so nobody can be told from the revoked.
    Internal(Error),
    /// None, or none of ours, or not now.
    NoCertificate,
    /// On the list.
    Revoked,
    /// Ours, but of nobody who is known, or not the one that counts.
    Unknown,
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Self::Internal(error)
    }
}

impl Presented {
    /// From a certificate that was presented in a TLS handshake.
    ///
    /// Version 3 is verified by rustls-webpki. Version 1, which OpenSSL makes
    /// of a request without a configuration, is verified by pki-core. Both
    /// must be signed by `authority` itself. `None` otherwise.
    pub fn verify(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>, now: Timestamp) -> Option<Self> {
        let parsed = Certificate::from_der(certificate).ok()?;
        match parsed.version() {
            1 => verify_version_1_leaf(certificate, authority, seconds(now), &AwsLc).ok()?,
            _ => verify_version_3(certificate, authority, now)?,
        }
        Some(Self {
            common_names: parsed.common_names().ok()?,
            serial: Serial::from_octets(parsed.serial()),
            validity: Some((timestamp(parsed.not_before()), timestamp(parsed.not_after()))),
        })
    }

    /// From the headers of a proxy that has verified the certificate: what it
    /// says of it, the subject (RFC 2253, or the older form with slashes) and
    /// the serial number.
    pub fn from_headers(verify: &str, subject: &str, serial: &str) -> Option<Self> {
        if verify != "SUCCESS" {
            return None;
        }
        Some(Self { common_names: common_names(subject)?, serial: Serial::parse(serial)?, validity: None })
    }

    /// Connections outlive certificates.
    pub(crate) fn is_valid_at(&self, now: Timestamp) -> bool {
        self.validity.is_none_or(|(first, last)| first <= now && now.as_second() <= last.as_second())
    }
}

fn verify_version_3(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>, now: Timestamp) -> Option<()> {
    let anchor = webpki::anchor_from_trusted_cert(authority).ok()?;
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(now.as_second()).ok()?));
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let usage = webpki::KeyUsage::client_auth();
    certificate.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[], now, usage, None, None).ok().map(drop)
}

/// Holds a certificate against the lists; whether it is revoked was asked before.
pub(crate) fn recognize(presented: &Presented, state: &State) -> Result<Caller, Denied> {
    // Whoever could choose the first of two names could choose whom to be.
    let [name] = presented.common_names.as_slice() else { return Err(Denied::Unknown) };
    let label = match name.as_str() {
        "admin" | "Portlama Client" => return Ok(Caller::Admin(presented.serial.clone())),
        name if name.starts_with(DELEGATED) => name,
        name => name.strip_prefix("agent:").ok_or(Denied::Unknown)?,
    };
    let agent = state.active(label).map_err(Error::from)?.ok_or(Denied::Unknown)?;
    if agent.serial != presented.serial {
        return Err(Denied::Unknown);
    }
    Ok(Caller::Agent(AgentCaller {
        label: label.to_owned(),
        serial: agent.serial.clone(),
        capabilities: agent.capabilities.clone(),
    }))
}

impl AgentCaller {
    /// Vouched for by another agent, with rights of its own.
    pub(crate) fn is_delegated(&self) -> bool {
        self.label.starts_with(DELEGATED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_is_success() {
        for verify in ["NONE", "FAILED:expired", "success", "SUCCESS ", ""] {
            assert_eq!(Presented::from_headers(verify, "CN=admin", "01"), None, "{verify}");
        }
        assert_eq!(Presented::from_headers("SUCCESS", "CN=admin", ""), None, "no serial number");
        assert!(Presented::from_headers("SUCCESS", "CN=admin", "01").is_some());
    }
}
