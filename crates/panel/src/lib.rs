//! The certificates API: a panel that gives agents and admins certificates of
//! its own authority, and takes them back.
//!
//! [`Panel`] has the use cases and knows no HTTP. Its lists lie in a directory
//! whose layout other programs share ([`mod@setup`] makes one). [`router`] puts
//! handlers of a few lines before it; [`Listener`] serves them over mutual TLS,
//! or behind a proxy that does.

mod authority;
mod directory;
mod error;
mod files;
mod grace;
mod http;
mod identity;
mod listing;
mod panel;
mod programs;
mod reload;
mod secret;
mod server;
pub mod setup;
mod state;
mod subject;
#[cfg(test)]
mod tests;

pub use authority::Making;
pub use error::{Cause, Error};
pub use http::{Bounds, Peer, router};
pub use identity::{AgentCaller, Caller, Denied, Presented};
pub use listing::{AutoRenewal, Listed, ListedType, NotRenewed, Renewed};
pub use panel::{NewBundle, NewCertificate, NewToken, Panel, Parts, Rotated, Unready};
pub use programs::{CommandLine, Nginx, Programs};
pub use secret::Secret;
pub use server::{Limits, Listener, TlsError, tls};
pub use state::{AdminAuthMode, Agent, EnrollmentMethod, Grant, Serial};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
