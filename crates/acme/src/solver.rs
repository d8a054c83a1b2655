//! How challenges are answered: a trait, and the answers that need no other room.

mod hook;
mod http_01;
mod tls_alpn;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pki_core::DnsName;
use sha2::{Digest as _, Sha256};

pub use hook::{Hook, HookError};
pub use http_01::Http01;
pub use tls_alpn::{ALPN, TlsAlpn};

use crate::name::Name;
use crate::order::ChallengeKind;

/// Makes the answer to a challenge visible, and takes it away.
///
/// The same answer may be presented twice, by two orders for the same name: it stays until it has
/// been withdrawn as often.
#[async_trait]
pub trait Solver: Send + Sync {
    /// Returns when the authority can see the answer.
    ///
    /// # Errors
    ///
    /// When it cannot be made visible. It is withdrawn all the same.
    async fn present(&self, challenge: &Challenge) -> Result<(), SolverError>;

    /// Takes the answer away. Called once for each [`Solver::present`], also for one that failed or was
    /// given up half-way, and perhaps on another task.
    ///
    /// # Errors
    ///
    /// When it cannot be taken away; that is logged.
    async fn withdraw(&self, challenge: &Challenge) -> Result<(), SolverError>;
}

/// Why a challenge cannot be answered.
pub type SolverError = Box<dyn std::error::Error + Send + Sync>;

/// A challenge, and what answers it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    pub(crate) name: Name,
    pub(crate) kind: ChallengeKind,
    pub(crate) token: String,
    pub(crate) key_authorization: String,
}

impl Challenge {
    /// A challenge for a name. `thumbprint` is that of the account's key.
    pub fn new(name: Name, kind: ChallengeKind, token: &str, thumbprint: &str) -> Self {
        Self { name, kind, token: token.to_owned(), key_authorization: format!("{token}.{thumbprint}") }
    }

    /// The name that is to be proved.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The host or domain of it.
    pub fn host(&self) -> &DnsName {
        self.name.domain()
    }

    /// Which challenge it is.
    pub fn kind(&self) -> ChallengeKind {
        self.kind
    }

    /// The token: letters, digits, hyphens and underscores.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// What http-01 answers (RFC 8555 section 8.1).
    pub fn key_authorization(&self) -> &str {
        &self.key_authorization
    }

    /// What the certificate of tls-alpn-01 holds (RFC 8737 section 3).
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.key_authorization).into()
    }

    /// The name of dns-01's TXT record (RFC 8555 section 8.4).
    pub fn dns_name(&self) -> String {
        format!("_acme-challenge.{}", self.host())
    }

    /// The value of dns-01's TXT record.
    pub fn dns_value(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.digest())
    }
}

/// RFC 8555 section 8.1: base64url. Anything else could be a path, or an option of a hook.
pub(crate) fn is_token(token: &str) -> bool {
    let is_character = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
    (1..=256).contains(&token.len()) && token.bytes().all(is_character)
}

/// The solvers that there are, in order of preference.
#[derive(Clone, Default)]
pub struct Solvers(Vec<(ChallengeKind, Arc<dyn Solver>)>);

impl Solvers {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more, less preferred than those before.
    #[must_use]
    pub fn with(mut self, kind: ChallengeKind, solver: Arc<dyn Solver>) -> Self {
        self.0.push((kind, solver));
        self
    }

    /// The challenges that can be answered, in order of preference.
    pub fn kinds(&self) -> Vec<ChallengeKind> {
        self.0.iter().map(|(kind, _)| *kind).collect()
    }

    pub(crate) fn of(&self, kind: ChallengeKind) -> Option<Arc<dyn Solver>> {
        self.0.iter().find(|(one, _)| *one == kind).map(|(_, solver)| Arc::clone(solver))
    }
}

/// Answers by a key, each as often as it was presented.
struct Table<K, V>(Mutex<HashMap<K, Vec<V>>>);

impl<K: Eq + Hash, V: Clone> Table<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn insert(&self, key: K, value: V) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().push(value);
    }

    fn remove(&self, key: &K, is_it: impl Fn(&V) -> bool) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = table.get_mut(key) {
            if let Some(at) = values.iter().rposition(is_it) {
                values.remove(at);
            }
            if values.is_empty() {
                table.remove(key);
            }
        }
    }

    /// The latest.
    fn latest(&self, key: &K) -> Option<V> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).and_then(|values| values.last().cloned())
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The TXT record of dns-persist-01: name and value.
///
/// `issuer` is a name of the authority (`caaIdentities` of its directory, see
/// [`Account::caa_identities`](crate::Account::caa_identities)), `account` the account's URI. The
/// record stays, so whoever sets it once has to do nothing for the next certificate.
pub fn persistent_record(name: &Name, issuer: &str, account: &str) -> (String, String) {
    let policy = if name.is_wildcard() { "; policy=wildcard" } else { "" };
    (format!("_validation-persist.{}", name.domain()), format!("{issuer}; accounturi={account}{policy}"))
}

/// For dns-persist-01, where an operator has set the record: there is nothing to present.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing;

#[async_trait]
impl Solver for Standing {
    async fn present(&self, _: &Challenge) -> Result<(), SolverError> {
        Ok(())
    }

    async fn withdraw(&self, _: &Challenge) -> Result<(), SolverError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_base64url() {
        assert!(is_token("DGyRejmCefe7v4NfDGDKfA"));
        for token in ["", "a/b", "..", "a b", "a\n", "a=", "ä", &"a".repeat(257)] {
            assert!(!is_token(token), "{token}");
        }
    }

    /// RFC 8555 section 8.4 tells how; the numbers are of `openssl dgst -sha256 -binary | basenc --base64url`.
    #[test]
    fn the_answers_of_a_challenge() {
        let name = "*.example.org".parse().expect("a name");
        let challenge = Challenge::new(name, ChallengeKind::Dns01, "token", "thumb");
        assert_eq!(challenge.key_authorization(), "token.thumb");
        assert_eq!(challenge.dns_name(), "_acme-challenge.example.org");
        assert_eq!(challenge.dns_value().len(), 43);
    }

    #[test]
    fn what_was_presented_twice_is_withdrawn_twice() {
        let table = Table::new();
        table.insert("a", 1);
        table.insert("a", 1);
        table.insert("a", 2);
        assert_eq!(table.latest(&"a"), Some(2));
        table.remove(&"a", |one| *one == 1);
        table.remove(&"a", |one| *one == 2);
        assert_eq!(table.latest(&"a"), Some(1));
        table.remove(&"a", |one| *one == 1);
        table.remove(&"a", |one| *one == 1);
        assert!(table.is_empty());
    }

    #[test]
    fn the_record_that_stays() {
        let uri = "https://ca.example/acct/7";
        let (name, value) = persistent_record(&"*.example.org".parse().expect("a name"), "ca.example", uri);
        assert_eq!(name, "_validation-persist.example.org");
        assert_eq!(value, "ca.example; accounturi=https://ca.example/acct/7; policy=wildcard");
    }
}
