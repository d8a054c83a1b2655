//! What was ordered of a public authority, and what came of it.

use tunnel_model::{KeyId, Timestamp};

use crate::Holder;

/// One order. It is stored before anybody outside hears of it, and again at each step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Order {
    /// Names it for ever.
    pub id: [u8; 16],
    /// For whom.
    pub holder: Holder,
    /// The directory of the authority.
    pub directory: String,
    /// The names of the certificate, a wildcard with its `*.`.
    pub names: Vec<String>,
    /// The certificate signing request, DER.
    pub csr: Vec<u8>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
    /// The API key of whoever asked; none for the server itself.
    pub requested_by: Option<KeyId>,
    /// The authority's word for the kind of certificate, where it has several.
    pub profile: Option<String>,
    /// What kind of order it is for the authority's limits.
    pub ask: Ask,
    /// The certificate that this one follows, as the authority calls it (RFC 9773 section 4.1).
    pub replaces: Option<String>,
    /// What the authority calls the order, as soon as it has it.
    pub url: Option<String>,
    /// When it was decided.
    pub begun_at: Timestamp,
    /// How many orders for this holder have failed, one after another, before this one.
    pub failures: u32,
    /// When the first of them failed.
    pub failing_since: Option<Timestamp>,
    /// How far it is.
    pub state: OrderState,
}

/// What kind of order it is for the authority's limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// For names that have no certificate.
    New,
    /// The next one for the same names.
    Renewal,
    /// The next one, within the time that the authority has suggested.
    RenewalInWindow,
}

/// How far an order is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OrderState {
    /// It goes on, or will at the next start.
    Pending,
    /// There is a certificate, which is on record.
    Issued {
        /// When it came.
        at: Timestamp,
        /// SHA-256 of the leaf.
        fingerprint: [u8; 32],
        /// The leaf and what is between it and the root, PEM.
        chain: String,
        /// When the next one is to be ordered.
        renew_at: Timestamp,
        /// Has the authority said so itself?
        is_told: bool,
        /// When the authority is to be asked again when it wants the certificate renewed.
        ask_again_at: Option<Timestamp>,
    },
    /// There is none.
    Failed {
        /// When.
        at: Timestamp,
        /// A word that stays the same.
        cause: String,
        /// What is to be told to whoever asks.
        words: String,
        /// Before this time nothing is ordered for the same holder; `None` if somebody has to change something.
        not_before: Option<Timestamp>,
    },
}

/// An order as limits count it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ordered {
    /// The directory of the authority.
    pub directory: String,
    /// The names of the certificate.
    pub names: Vec<String>,
    /// What kind of order it was.
    pub ask: Ask,
    /// When it was decided.
    pub begun_at: Timestamp,
    /// When it ended with a certificate, and the leaf's SHA-256.
    pub issued: Option<(Timestamp, [u8; 32])>,
    /// When it ended without one, and why.
    pub failed: Option<(Timestamp, String)>,
}

impl Order {
    /// As limits count it.
    pub(crate) fn counted(&self) -> Ordered {
        let (issued, failed) = match &self.state {
            OrderState::Pending => (None, None),
            OrderState::Issued { at, fingerprint, .. } => (Some((*at, *fingerprint)), None),
            OrderState::Failed { at, cause, .. } => (None, Some((*at, cause.clone()))),
        };
        Ordered {
            directory: self.directory.clone(),
            names: self.names.clone(),
            ask: self.ask,
            begun_at: self.begun_at,
            issued,
            failed,
        }
    }
}
