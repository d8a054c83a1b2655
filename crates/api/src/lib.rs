//! The REST control plane for tunnels, identities and API keys.
//!
//! [`App`] has the use cases and knows no HTTP; [`router`] puts handlers of a
//! few lines before it; [`serve`] binds both to a listener within limits.
//! Clients of two generations are served at the same paths.

mod app;
mod attach;
mod error;
mod http;
mod metrics;
mod server;

pub use app::{App, DataPlane, Listed, NewTunnel, Random, SystemRandom};
pub use attach::{Agent, Attached, Busy, Serve};
pub use error::{Detail, Error, Problem};
pub use http::{openapi, router};
pub use metrics::{Metrics, TrafficStats};
pub use server::{Limits, serve, serve_connection};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
