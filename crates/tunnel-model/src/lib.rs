//! What a tunnel may do: names, states, quotas and scopes.
//!
//! No I/O, no clock and no randomness: time, identifiers and hashes come in as
//! values. [`decide`] takes a [`Command`] with the [`Facts`] it needs and gives
//! [`Event`]s or a [`Refusal`]; storing the events is the caller's work.
//! [`Live`] is the same for a tunnel's traffic: agents' sessions and visitors'
//! exchanges, which nobody stores.

mod decide;
mod id;
mod live;
mod name;
mod quota;
mod record;
mod secret;
mod time;

pub use decide::{Caller, Command, Event, Facts, IdentityKey, Kind, Refusal, Rules, Wants, check_signable, decide};
pub use id::{IdError, IdentityId, KeyId, OrganizationId, SecretHash, TunnelId};
pub use live::{
    Carrier, EndReason, ExchangeId, ExchangeKind, Failure, InstanceId, IntakeId, Live, LiveCommand, LiveEvent,
    LiveRefusal, LiveRules, SessionId, SessionKind,
};
pub use name::{NameError, NamePolicy, PublicHost, TunnelName, Unavailable, Zone, ZoneError};
pub use quota::{Quota, Usage};
pub use record::{
    ApiKey, Certificate, Description, DescriptionError, Identity, Issuer, Label, LabelError, Metadata, MetadataError,
    Origin, Scope, Status, TlsMode, Tunnel,
};
pub use secret::{ApiKeySecret, SecretError, connect_secret, key_id_text, parse_key_id};
pub use time::Timestamp;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
