//! An authoritative DNS server for one zone, in which every name leads to the same
//! machine.
//!
//! Whoever delegates a zone to it has nothing else to set up: the zone and every name
//! below it have the same addresses, a certificate authority finds the TXT records of
//! its challenges, and CAA says who may issue. There are no zone files, no transfers and
//! no recursion.
//!
//! [`Zone`] is what is answered, without any I/O: octets in, octets out. [`NameServer`]
//! carries octets over UDP and TCP, and keeps limits. Messages are decoded and encoded
//! by hickory-proto, within bounds that are set here.
//!
//! What it does not do: DNSSEC (the delegation stays unsigned), dynamic updates
//! ([RFC 2136](https://www.rfc-editor.org/rfc/rfc2136)), DNS cookies, and
//! signed requests, which are answered as if they were not signed.

mod caa;
mod challenges;
mod message;
mod name;
mod rates;
mod server;
mod stats;
mod tcp;
mod udp;
mod zone;

pub use caa::{Caa, CaaError};
pub use challenges::{ChallengeError, Challenges, MAX_TEXTS, MAX_TEXTS_AT_NAME, Presented};
pub use message::{Outcome, PAYLOAD, Transport};
pub use name::{DomainName, DomainNameError};
pub use rates::Rates;
pub use server::{Limits, Listener, NameServer};
pub use stats::Stats;
pub use zone::{MAX_ADDRESSES, MAX_NAME_SERVERS, Settings, SettingsError, Zone};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
