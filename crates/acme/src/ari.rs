//! When an authority wants a certificate to be renewed (RFC 9773): the pure part.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pki_core::{Certificate, Time, inspect_certificate};
use serde::Deserialize;

use crate::problem::cleaned;

/// What an authority calls a certificate (RFC 9773 section 4.1): key identifier of the issuer, and serial number.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CertId {
    pub(crate) issuer: String,
    pub(crate) serial: String,
}

impl CertId {
    /// Of a certificate in DER; `None` if it does not say which key issued it.
    pub fn of(leaf: &[u8]) -> Option<Self> {
        let issuer = inspect_certificate(leaf).ok()?.authority_key_identifier?;
        let issuer = base16ct::lower::decode_vec(issuer).ok()?;
        let serial = Certificate::from_der(leaf).ok()?.serial();
        // By way of the text, so that one which is stored is read again.
        format!("{}.{}", URL_SAFE_NO_PAD.encode(issuer), URL_SAFE_NO_PAD.encode(serial)).parse().ok()
    }
}

impl fmt::Display for CertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.issuer, self.serial)
    }
}

/// Reads what [`CertId`] shows.
impl FromStr for CertId {
    type Err = NoCertId;

    fn from_str(text: &str) -> Result<Self, NoCertId> {
        let is_part = |part: &str| (1..=100).contains(&part.len()) && URL_SAFE_NO_PAD.decode(part).is_ok();
        let (issuer, serial) =
            text.split_once('.').filter(|(one, other)| is_part(one) && is_part(other)).ok_or(NoCertId)?;
        Ok(Self { issuer: issuer.to_owned(), serial: serial.to_owned() })
    }
}

/// A text that is not what an authority calls a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a key identifier and a serial number in base64url, with a dot between")]
pub struct NoCertId;

/// The window within which a certificate should be renewed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RenewalWindow {
    /// Its first moment.
    pub start: Time,
    /// Its last moment.
    pub end: Time,
    /// A page that tells why, if the authority names one.
    pub explanation: Option<String>,
}

/// Why a document tells no window.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewalWindowError {
    /// Not the document of RFC 9773 section 4.2.
    #[error("the renewal information is not one of RFC 9773: {0}")]
    Document(String),
    /// RFC 9773 section 4.2: such a one is ignored.
    #[error("the suggested window ends at {end}, before it begins at {start}")]
    Reversed {
        /// Where it begins.
        start: Time,
        /// Where it ends.
        end: Time,
    },
}

/// How often is asked, if the authority does not say, and within which bounds if it does.
const ASK_AGAIN: Duration = Duration::from_secs(6 * 60 * 60);
const SOONEST: Duration = Duration::from_secs(60);
const LATEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The most octets of a document that are read; an honest one has 200.
const DOCUMENT: usize = 16 * 1024;

impl RenewalWindow {
    /// Reads the document of RFC 9773 section 4.2.
    ///
    /// # Errors
    ///
    /// [`RenewalWindowError`].
    pub fn parse(document: &[u8]) -> Result<Self, RenewalWindowError> {
        let error = |words: &str| RenewalWindowError::Document(cleaned(words, 200));
        if document.len() > DOCUMENT {
            return Err(error("it is too long"));
        }
        let Document { window, explanation } =
            serde_json::from_slice(document).map_err(|fault| error(&fault.to_string()))?;
        let time = |text: &str| {
            let read: jiff::Timestamp = text.parse().map_err(|_| error(&format!("\"{text}\" is no time")))?;
            Ok(Time::from_unix(read.as_second()))
        };
        let (start, end) = (time(&window.start)?, time(&window.end)?);
        if end < start {
            return Err(RenewalWindowError::Reversed { start, end });
        }
        let is_link = |text: &String| text.starts_with("https://") && text.len() <= 1000;
        Ok(Self { start, end, explanation: explanation.filter(is_link).map(|text| cleaned(&text, 1000)) })
    }

    /// A moment of the window, the same for the same random number (RFC 9773 section 4.2).
    ///
    /// One that has passed already means: now.
    pub fn choose(&self, random: u64) -> Time {
        let length = self.end.unix().abs_diff(self.start.unix());
        self.start.plus(Duration::from_secs(random % length.saturating_add(1)))
    }

    /// Is a renewal at this time one that the authority suggested? Later than the window, it still is.
    pub fn has_begun(&self, now: Time) -> bool {
        now >= self.start
    }
}

/// How long after an answer to ask again, from its `Retry-After` (RFC 9773 section 4.3.2).
pub fn ask_again_after(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or(ASK_AGAIN).clamp(SOONEST, LATEST)
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "suggestedWindow")]
    window: Window,
    #[serde(default, rename = "explanationURL")]
    explanation: Option<String>,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(start: &str, end: &str) -> String {
        let window = format!(r#"{{"start": "{start}", "end": "{end}"}}"#);
        format!(r#"{{"suggestedWindow": {window}, "explanationURL": "https://a.example/ari"}}"#)
    }

    #[test]
    fn a_window_is_read_and_every_moment_of_it_may_come() {
        let window = RenewalWindow::parse(document("2026-11-22T13:30:00Z", "2026-11-22T15:30:02+02:00").as_bytes());
        let window = window.expect("a window");
        let start = Time::from_unix(1_795_354_200);
        assert_eq!((window.start, window.end), (start, Time::from_unix(1_795_354_202)));
        let chosen: Vec<_> = (0..4).map(|random| window.choose(random).unix() - start.unix()).collect();
        assert_eq!(chosen, [0, 1, 2, 0]);
        assert!(window.has_begun(start) && !window.has_begun(start.minus(Duration::from_secs(1))));
        let whole = RenewalWindow { start: Time::MIN, end: Time::MAX, explanation: None };
        assert!(whole.choose(u64::MAX) <= Time::MAX);
    }

    #[test]
    fn documents_that_tell_nothing() {
        let reversed = document("2026-11-22T13:30:01Z", "2026-11-22T13:30:00Z");
        assert!(matches!(RenewalWindow::parse(reversed.as_bytes()), Err(RenewalWindowError::Reversed { .. })));
        let endless = document(&"9".repeat(20_000), "2026-11-22T13:30:00Z");
        for text in ["", "{}", "null", r#"{"suggestedWindow": []}"#, &document("soon", "later"), &endless] {
            assert!(matches!(RenewalWindow::parse(text.as_bytes()), Err(RenewalWindowError::Document(_))));
        }
    }

    #[test]
    fn asking_again_has_bounds() {
        let seconds = Duration::from_secs;
        for (said, wanted) in [(None, 21_600), (Some(0), 60), (Some(3600), 3600), (Some(u64::MAX), 86_400)] {
            assert_eq!(ask_again_after(said.map(seconds)), seconds(wanted));
        }
    }

    /// The example of RFC 9773 section 4.1 in its parts: the serial keeps its leading zero.
    #[test]
    fn an_identifier_has_the_octets_of_the_der() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).expect("parameters");
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x87, 0x65, 0x43, 0x21]));
        params.use_authority_key_identifier_extension = true;
        let mut authority = rcgen::CertificateParams::default();
        let identifier = base16ct::lower::decode_vec("69885b6b8746404 1e1b37b847ba0ae2cde01c8d4".replace(' ', ""));
        authority.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(identifier.expect("hex"));
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::Issuer::new(authority, rcgen::KeyPair::generate().expect("a key"));
        let leaf = params.signed_by(&key, &issuer).expect("signed");
        let id = CertId::of(leaf.der()).expect("an identifier");
        assert_eq!(id.to_string(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in
            ["", ".", "a.b.c", "AAAA", "AAAA.", ".AAAA", "AAAA.A/A", "AAAA.A", &format!("AAAA.{}", "A".repeat(104))]
        {
            assert_eq!(text.parse::<CertId>(), Err(NoCertId), "{text}");
        }
    }
}
