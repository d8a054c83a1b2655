//! Which authority, as whom, and within which limits.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pki_core::Time;
use zeroize::Zeroizing;

use crate::roots::Roots;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// An authority, and who we are there.
#[derive(Clone)]
pub struct Settings {
    /// The URL of its directory, `https://`.
    pub directory: String,
    /// Whom the connection to the authority is trusted by.
    pub roots: Roots,
    /// In whom what it issues must end. Often the same.
    pub issuers: Roots,
    /// Mail addresses, with or without `mailto:`.
    pub contacts: Vec<String>,
    /// Are the terms of the authority agreed to?
    pub agree_terms: bool,
    /// The account elsewhere that ours is bound to, where the authority wants one.
    pub external_account: Option<ExternalAccount>,
    /// The profile that certificates are ordered with, where the authority has several.
    pub profile: Option<String>,
    /// What the authority is told that we are.
    pub user_agent: String,
    /// How long, and how much.
    pub limits: Limits,
    /// The time.
    pub clock: Clock,
}

impl Settings {
    /// An authority without anything that has to be set. The terms are not agreed to.
    pub fn new(directory: impl Into<String>, roots: Roots) -> Self {
        Self {
            directory: directory.into(),
            issuers: roots.clone(),
            roots,
            contacts: Vec::new(),
            agree_terms: false,
            external_account: None,
            profile: None,
            user_agent: concat!("adit/", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
            clock: Arc::new(system_time),
        }
    }

    pub(crate) fn now(&self) -> Time {
        (self.clock)()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// External account binding (RFC 8555 section 7.3.4).
#[derive(Clone)]
pub struct ExternalAccount {
    /// The key identifier that the authority gave.
    pub key_id: String,
    /// The key, decoded.
    pub key: Zeroizing<Vec<u8>>,
}

/// A text that is no key of an external account.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the key of an external account is not base64url, as the authority writes it")]
pub struct ExternalAccountError;

impl ExternalAccount {
    /// With the key as authorities write it: base64url, with or without padding.
    ///
    /// # Errors
    ///
    /// [`ExternalAccountError`] when it is not, or empty.
    pub fn new(key_id: impl Into<String>, key: &str) -> Result<Self, ExternalAccountError> {
        // Some write plain base64.
        let key = Zeroizing::new(key.trim().trim_end_matches('=').replace('+', "-").replace('/', "_"));
        let key = URL_SAFE_NO_PAD.decode(key.as_bytes()).map_err(|_| ExternalAccountError)?;
        if key.is_empty() {
            return Err(ExternalAccountError);
        }
        Ok(Self { key_id: key_id.into(), key: Zeroizing::new(key) })
    }
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// How long, and how much.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// The most octets of an answer. A chain of five RSA certificates has 10 KiB.
    pub answer_octets: usize,
    /// How long TCP and TLS may take, together.
    pub connect: Duration,
    /// How long a request may take with its answer. Boulder is slow at finalize.
    pub request: Duration,
    /// How long an authority may be unreachable, or say "later", before [`Account::proceed`](crate::Account::proceed)
    /// ends. The order goes on when it is called again.
    pub patience: Duration,
    /// How long one call of [`Account::proceed`](crate::Account::proceed) may take.
    pub order: Duration,
    /// How long an answer to a challenge stays visible when [`Account::proceed`](crate::Account::proceed) is
    /// dropped after the authority was told to look for it.
    pub linger: Duration,
    /// How long after the first question the second one comes.
    pub first_look: Duration,
    /// The longest time between two questions, if the authority does not ask for more.
    pub longest_look: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            answer_octets: 1024 * 1024,
            connect: Duration::from_secs(10),
            request: Duration::from_secs(30),
            patience: Duration::from_secs(120),
            order: Duration::from_secs(1800),
            linger: Duration::from_secs(30),
            first_look: Duration::from_millis(500),
            longest_look: Duration::from_secs(30),
        }
    }
}

fn system_time() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
