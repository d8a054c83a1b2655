//! What the directory says, and how it changes: lists of agents, tokens and
//! revocations, the admin's certificate and the panel's configuration.
//!
//! The lists have the shape that the files have, so that other programs may
//! read and write them. What they hold beyond it is carried along.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use base16ct::{lower, upper};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The capability that every agent has.
pub(crate) const BASE_CAPABILITY: &str = "tunnels:read";

/// All that requests are decided on. A file that cannot be read as what it
/// should be fails whatever needs it, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) agents: Part<Agents>,
    pub(crate) tokens: Part<Tokens>,
    pub(crate) revoked: Part<Revoked>,
    pub(crate) config: Part<Config>,
    /// The certificate in `client.crt`, if there is one.
    pub(crate) admin: Option<Admin>,
    /// What the last rotation superseded; none if that is over.
    pub(crate) grace: Option<Grace>,
    /// Serial numbers that rotations replaced, one after the other, up to `admin`.
    pub(crate) superseded: Vec<Serial>,
    /// SHA-256 of the keys in certificates that we issued, by serial number.
    pub(crate) keys: Vec<(Serial, [u8; 32])>,
}

/// One file's content, or why there is none.
pub(crate) type Part<T> = Result<T, Malformed>;

/// A file of the wrong shape. Nothing is decided on it and it is not overwritten.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} cannot be used: {reason}", path.display())]
pub(crate) struct Malformed {
    pub(crate) path: PathBuf,
    pub(crate) reason: Arc<str>,
}

/// `agents/registry.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Agents {
    pub(crate) agents: Vec<Agent>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One certificate that an agent got, in the order of issuance.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The name after `agent:` in the certificate.
    pub label: String,
    /// Of the certificate that counts.
    pub serial: Serial,
    /// What it may do.
    #[serde(default = "base_capabilities")]
    pub capabilities: Vec<String>,
    /// Sites that it may read or write, if its capabilities say so.
    #[serde(default)]
    pub allowed_sites: Vec<String>,
    /// How its key came about.
    #[serde(default)]
    pub enrollment_method: EnrollmentMethod,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// RFC 3339; the certificate's notAfter.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// No longer valid.
    #[serde(default)]
    pub revoked: bool,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// The agent that vouches for this one: revoked with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_by: Option<String>,
    /// What other programs keep here.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// How an agent came to its key.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrollmentMethod {
    /// The server made it and hands it out as PKCS #12.
    #[default]
    P12,
    /// The agent made it and sent a request.
    HardwareBound,
    /// As above, on another agent's word.
    Delegated,
}

fn base_capabilities() -> Vec<String> {
    vec![BASE_CAPABILITY.to_owned()]
}

/// `enrollment-tokens.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tokens {
    pub(crate) tokens: Vec<Token>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The right to one certificate.
#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Token {
    /// `sha256:` and hex. Other programs may have written the token itself.
    token: String,
    pub(crate) label: String,
    #[serde(default = "base_capabilities")]
    pub(crate) capabilities: Vec<String>,
    #[serde(default)]
    pub(crate) allowed_sites: Vec<String>,
    #[serde(with = "rfc3339")]
    pub(crate) created_at: Timestamp,
    #[serde(with = "rfc3339")]
    pub(crate) expires_at: Timestamp,
    #[serde(default)]
    pub(crate) used: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_at: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("label", &self.label).field("used", &self.used).finish_non_exhaustive()
    }
}

/// The SHA-256 of a token, as it is kept: `sha256:` and hex.
#[derive(Clone)]
pub(crate) struct TokenHash(String);

impl TokenHash {
    pub(crate) fn of(token: &str) -> Self {
        Self(format!("{HASHED}{}", lower::encode_string(&Sha256::digest(token.as_bytes()))))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

const HASHED: &str = "sha256:";

impl Token {
    pub(crate) fn new(hash: TokenHash, grant: Grant, created_at: Timestamp, expires_at: Timestamp) -> Self {
        let Grant { label, capabilities, allowed_sites } = grant;
        let token = hash.0;
        let (used, used_at, rest) = (false, None, Map::new());
        Self { token, label, capabilities, allowed_sites, created_at, expires_at, used, used_at, rest }
    }

    /// In constant time, whichever way the token is kept.
    fn is(&self, hash: &TokenHash) -> bool {
        if self.token.starts_with(HASHED) {
            bool::from(self.token.as_bytes().ct_eq(hash.0.as_bytes()))
        } else {
            bool::from(TokenHash::of(&self.token).0.as_bytes().ct_eq(hash.0.as_bytes()))
        }
    }

    pub(crate) fn is_pending(&self, now: Timestamp) -> bool {
        !self.used && !self.is_over(now)
    }

    /// Its life is no longer because the clock was ahead when it was made.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        now >= self.expires_at || self.created_at.duration_since(now) > self.expires_at.duration_since(self.created_at)
    }

    /// Is it another program's, for a kind of enrolment that is not ours?
    pub(crate) fn is_delegated(&self) -> bool {
        self.rest.contains_key("delegatedBy")
    }
}

/// What an agent is to be called and to be allowed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Its name.
    pub label: String,
    /// What it may do.
    pub capabilities: Vec<String>,
    /// Sites that it may read or write, if its capabilities say so.
    pub allowed_sites: Vec<String>,
}

/// `revoked.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Revoked {
    pub(crate) revoked: Vec<Revocation>,
    #[serde(flatten)]
    rest: Map<String, Value>,
    #[serde(skip)]
    serials: HashSet<Serial>,
}

/// A serial number that is no longer accepted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Revocation {
    pub(crate) serial: Serial,
    /// Whose it was, for people.
    #[serde(default)]
    pub(crate) label: String,
    #[serde(default)]
    pub(crate) revoked_at: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Revocation {
    pub(crate) fn new(serial: Serial, label: String, at: Timestamp) -> Self {
        Self { serial, label, revoked_at: Some(milliseconds(at)), rest: Map::new() }
    }
}

impl Revoked {
    pub(crate) fn contains(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// Reads the index off the list.
    pub(crate) fn indexed(mut self) -> Self {
        self.serials = self.revoked.iter().map(|revocation| revocation.serial.clone()).collect();
        self
    }
}

/// `panel.json`; most of it is other programs', and some of that secret.
#[derive(Clone)]
pub(crate) struct Config {
    document: Map<String, Value>,
    pub(crate) admin_auth_mode: AdminAuthMode,
    /// `COMPLETED`, or how far the installation is.
    pub(crate) onboarding: String,
    pub(crate) ip: String,
    pub(crate) domain: Option<String>,
    pub(crate) static_dir: Option<PathBuf>,
    pub(crate) two_factor: bool,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("admin_auth_mode", &self.admin_auth_mode).finish_non_exhaustive()
    }
}

/// How the admin authenticates.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminAuthMode {
    /// With a bundle that the server made.
    #[default]
    P12,
    /// With a key that never left the admin's device.
    HardwareBound,
}

impl Config {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        /// The part that is ours to know.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Known {
            #[serde(default)]
            admin_auth_mode: AdminAuthMode,
            #[serde(default)]
            onboarding: Onboarding,
            #[serde(default)]
            ip: String,
            #[serde(default)]
            domain: Option<String>,
            #[serde(default)]
            static_dir: Option<PathBuf>,
            #[serde(default)]
            panel2fa: TwoFactor,
        }
        #[derive(Deserialize)]
        struct Onboarding {
            status: String,
        }
        impl Default for Onboarding {
            fn default() -> Self {
                Self { status: "FRESH".to_owned() }
            }
        }
        #[derive(Default, Deserialize)]
        struct TwoFactor {
            #[serde(default)]
            enabled: bool,
        }
        let document: Map<String, Value> = serde_json::from_slice(text)?;
        let known = Known::deserialize(Value::Object(document.clone()))?;
        Ok(Self {
            document,
            admin_auth_mode: known.admin_auth_mode,
            onboarding: known.onboarding.status,
            ip: known.ip,
            domain: known.domain,
            static_dir: known.static_dir,
            two_factor: known.panel2fa.enabled,
        })
    }

    pub(crate) fn document(&self) -> &Map<String, Value> {
        &self.document
    }

    pub(crate) fn is_completed(&self) -> bool {
        self.onboarding == COMPLETED
    }

    fn set_mode(&mut self, mode: AdminAuthMode) {
        let text = match mode {
            AdminAuthMode::HardwareBound => "hardware-bound",
            AdminAuthMode::P12 => "p12",
        };
        self.document.insert("adminAuthMode".to_owned(), text.into());
        self.admin_auth_mode = mode;
    }
}

/// How the status of a panel that is set up is written.
pub(crate) const COMPLETED: &str = "COMPLETED";

/// What `client.crt` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Admin {
    pub(crate) serial: Serial,
    pub(crate) key: [u8; 32],
}

/// The time in which superseded certificates of the admin may still fetch the
/// bundle of their successor.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Grace {
    /// Of the superseded ones.
    pub(crate) serials: Vec<Serial>,
    /// Of the new one.
    pub(crate) successor: Serial,
    /// When it began.
    #[serde(with = "rfc3339")]
    pub(crate) since: Timestamp,
}

/// A certificate's serial number as clients see it: upper-case hex, two digits
/// an octet, no leading zero octets.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Serial(String);

impl Serial {
    /// From the octets of the INTEGER, big-endian.
    pub fn from_octets(octets: &[u8]) -> Self {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count().min(octets.len().saturating_sub(1));
        Self(upper::encode_string(&octets[zeros..]))
    }

    /// From text, which may have colons, blanks or `0x`; `None` without a digit.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        let mut digits: String = text.chars().filter(|character| !matches!(character, ':' | ' ')).collect();
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        digits.make_ascii_uppercase();
        if digits.len() % 2 == 1 {
            digits.insert(0, '0');
        }
        while digits.len() > 2 && digits.starts_with("00") {
            digits.drain(..2);
        }
        Some(Self(digits))
    }

    /// The octets, big-endian.
    pub(crate) fn octets(&self) -> Vec<u8> {
        // Every way in leaves pairs of digits.
        upper::decode_vec(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a serial number has hex digits only"))
    }
}

/// One change to the state and the directory. It may hold keys: it has no `Debug`.
pub(crate) enum Edit {
    AddAgent(Agent),
    AddToken(Token),
    /// Nobody is in grace any more.
    EndGrace,
    /// Drops the unused tokens of a label.
    DropTokens(String),
    /// Drops tokens that were made before, or so much later that the clock was ahead.
    ForgetTokens(Range<Timestamp>),
    /// The key in a certificate that we issued.
    RememberKey(Serial, [u8; 32]),
    /// Signs the revocation list anew.
    RenewCrl,
    Revoke(Revocation),
    /// What `client.crt` will be, in place of those that it leaves in grace.
    RotateAdmin(Admin, Grace),
    /// What `client.crt` will be.
    SetAdmin(Admin),
    SetMode(AdminAuthMode),
    /// nginx must load files again: told when all is in its place.
    TellNginx,
    /// The entry with this serial number changes.
    UpdateAgent(Serial, Agent),
    UseToken(TokenHash, Timestamp),

    /// Writes a file of the directory.
    Put(PathBuf, Zeroizing<Vec<u8>>, Mode),
    /// Makes a directory of files, in place of what is there.
    PutDirectory(PathBuf, Vec<(&'static str, Zeroizing<Vec<u8>>, Mode)>),
    /// Removes a file or a directory, if it is there.
    Remove(PathBuf),
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// 0600.
    Owner,
    /// 0644.
    World,
}

impl Edit {
    /// Does it write a file beyond the lists? What it only removes may go with others'.
    pub(crate) fn writes_file(&self) -> bool {
        matches!(self, Self::Put(..) | Self::PutDirectory(..))
    }
}

/// The lists that a change touches, each a file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) agents: bool,
    pub(crate) tokens: bool,
    pub(crate) revoked: bool,
    pub(crate) crl: bool,
    pub(crate) config: bool,
    pub(crate) grace: bool,
    /// `client.crt`.
    pub(crate) admin: bool,
}

impl State {
    /// Carries out what concerns the lists; says which.
    ///
    /// # Errors
    ///
    /// When a list that must change cannot be read.
    pub(crate) fn apply(&mut self, edit: &Edit, touched: &mut Touched) -> Result<(), Malformed> {
        match edit {
            Edit::AddAgent(agent) => {
                part(&mut self.agents)?.agents.push(agent.clone());
                touched.agents = true;
            }
            Edit::UpdateAgent(serial, agent) => {
                let agents = &mut part(&mut self.agents)?.agents;
                if let Some(entry) = agents.iter_mut().find(|entry| entry.serial == *serial) {
                    *entry = agent.clone();
                }
                touched.agents = true;
            }
            Edit::AddToken(token) => {
                part(&mut self.tokens)?.tokens.push(token.clone());
                touched.tokens = true;
            }
            Edit::DropTokens(label) => {
                part(&mut self.tokens)?.tokens.retain(|token| token.used || token.label != *label);
                touched.tokens = true;
            }
            Edit::ForgetTokens(kept) => {
                let tokens = &mut part(&mut self.tokens)?.tokens;
                let count = tokens.len();
                tokens.retain(|token| kept.contains(&token.created_at));
                touched.tokens |= tokens.len() != count;
            }
            Edit::UseToken(hash, at) => {
                let tokens = &mut part(&mut self.tokens)?.tokens;
                if let Some(token) = tokens.iter_mut().find(|token| token.is(hash)) {
                    (token.used, token.used_at) = (true, Some(milliseconds(*at)));
                }
                touched.tokens = true;
            }
            Edit::Revoke(revocation) => {
                let revoked = part(&mut self.revoked)?;
                if revoked.serials.insert(revocation.serial.clone()) {
                    revoked.revoked.push(revocation.clone());
                    (touched.revoked, touched.crl) = (true, true);
                }
            }
            Edit::RenewCrl => {
                part(&mut self.revoked)?;
                touched.crl = true;
            }
            Edit::SetMode(mode) => {
                part(&mut self.config)?.set_mode(*mode);
                touched.config = true;
            }
            Edit::RememberKey(serial, key) => self.keys.push((serial.clone(), *key)),
            Edit::RotateAdmin(admin, grace) => {
                self.admin = Some(admin.clone());
                self.superseded.extend(grace.serials.iter().cloned());
                self.grace = Some(grace.clone());
                // What was in grace before is not any more, which the list may have to say.
                (touched.admin, touched.grace, touched.crl) = (true, true, true);
            }
            Edit::EndGrace => self.end_grace(touched),
            Edit::SetAdmin(admin) => {
                self.admin = Some(admin.clone());
                self.superseded.clear();
                touched.admin = true;
                self.end_grace(touched);
            }
            Edit::TellNginx | Edit::Put(..) | Edit::PutDirectory(..) | Edit::Remove(_) => {}
        }
        Ok(())
    }

    fn end_grace(&mut self, touched: &mut Touched) {
        if self.grace.take().is_some() {
            (touched.grace, touched.crl) = (true, true);
        }
    }

    pub(crate) fn agents(&self) -> Result<&[Agent], Malformed> {
        self.agents.as_ref().map(|list| list.agents.as_slice()).map_err(Clone::clone)
    }

    pub(crate) fn revoked(&self) -> Result<&Revoked, Malformed> {
        self.revoked.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn config(&self) -> Result<&Config, Malformed> {
        self.config.as_ref().map_err(Clone::clone)
    }

    /// The entry that counts for a label.
    pub(crate) fn active(&self, label: &str) -> Result<Option<&Agent>, Malformed> {
        // The newest, should another program have left two.
        Ok(self.agents()?.iter().rev().find(|agent| agent.label == label && !agent.revoked))
    }

    pub(crate) fn token(&self, hash: &TokenHash) -> Result<Option<&Token>, Malformed> {
        let tokens = self.tokens.as_ref().map_err(Clone::clone)?;
        // All are compared, so that the time does not tell which one it is.
        Ok(tokens.tokens.iter().fold(None, |found, token| if token.is(hash) { Some(token) } else { found }))
    }

    pub(crate) fn has_pending_token(&self, label: &str, now: Timestamp) -> Result<bool, Malformed> {
        let tokens = self.tokens.as_ref().map_err(Clone::clone)?;
        Ok(tokens.tokens.iter().any(|token| token.label == label && token.is_pending(now)))
    }

    /// The active certificates with this key, the admin's among them.
    pub(crate) fn is_key_bound(&self, key: &[u8; 32], besides: Option<&Serial>) -> Result<bool, Malformed> {
        if self.admin.as_ref().is_some_and(|admin| admin.key == *key && Some(&admin.serial) != besides) {
            return Ok(true);
        }
        let agents = self.agents()?;
        let is_active = |serial: &Serial| agents.iter().any(|agent| agent.serial == *serial && !agent.revoked);
        Ok(self.keys.iter().any(|(serial, known)| known == key && Some(serial) != besides && is_active(serial)))
    }
}

fn part<T>(part: &mut Part<T>) -> Result<&mut T, Malformed> {
    part.as_mut().map_err(|error| error.clone())
}

/// RFC 3339 with milliseconds, as every time in the files and answers.
pub(crate) fn milliseconds(at: Timestamp) -> String {
    format!("{at:.3}")
}

mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::milliseconds(*at))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_one_form() {
        for (text, canonical) in [
            ("0A0B", "0A0B"),
            ("0x0a:0b", "0A0B"),
            ("1", "01"),
            ("00", "00"),
            ("0", "00"),
            ("00F1F2", "F1F2"),
            ("f1 f2", "F1F2"),
            ("0001", "01"),
        ] {
            assert_eq!(Serial::parse(text).map(|serial| serial.0), Some(canonical.to_owned()), "{text}");
        }
        for bad in ["", "0x", "xyz", "-1"] {
            assert_eq!(Serial::parse(bad), None, "{bad}");
        }
        for (octets, canonical) in [(&[0, 0xf1][..], "F1"), (&[0], "00"), (&[1], "01"), (&[0x0a, 0x0b], "0A0B")] {
            assert_eq!(Serial::from_octets(octets).0, canonical);
        }
        assert_eq!(Serial::from_octets(&[0x0a, 0x0b]).octets(), [0x0a, 0x0b]);
    }

    #[test]
    fn what_others_keep_in_the_lists_survives() {
        let text = r#"{"agents":[{"label":"a","serial":"0a","certType":"plugin-agent","x":{"y":[1]}}],"version":3}"#;
        let list: Agents = serde_json::from_str(text).expect("a registry");
        assert_eq!(list.agents[0].capabilities, [BASE_CAPABILITY]);
        assert_eq!(list.agents[0].enrollment_method, EnrollmentMethod::P12);
        let written = serde_json::to_value(&list).expect("JSON");
        assert_eq!(written["version"], 3);
        assert_eq!(written["agents"][0]["x"]["y"][0], 1);
        assert_eq!(written["agents"][0]["certType"], "plugin-agent");
    }

    #[test]
    fn times_have_milliseconds() {
        let at = "2026-11-22T06:43:17.053999Z".parse::<Timestamp>().expect("a time");
        assert_eq!(milliseconds(at), "2026-11-22T06:43:17.053Z");
        assert_eq!(milliseconds(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn tokens_are_found_by_their_hash_only() {
        let now = Timestamp::UNIX_EPOCH;
        let grant = Grant { label: "a".to_owned(), capabilities: Vec::new(), allowed_sites: Vec::new() };
        let token = Token::new(TokenHash::of("secret"), grant, now, now);
        assert!(token.is(&TokenHash::of("secret")));
        assert!(!token.is(&TokenHash::of(&token.token)), "the hash is no token");
        assert!(!serde_json::to_string(&token).expect("JSON").contains("\"secret\""));
        let clear = serde_json::from_value::<Token>(serde_json::json!({
            "token": "secret", "label": "a", "createdAt": "2026-11-22T06:43:17.053Z",
            "expiresAt": "2026-11-22T06:53:17.053Z", "used": false,
        }));
        assert!(clear.expect("another program's").is(&TokenHash::of("secret")));
    }
}
