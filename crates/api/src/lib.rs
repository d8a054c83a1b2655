//! The REST control plane for tunnels, identities and API keys.
//!
//! [`App`] has the use cases and knows no HTTP; [`router`] puts handlers of a
//! few lines before it; [`serve`] binds both to a listener within limits.
//! Clients of two generations are served at the same paths.

mod app;
mod authority;
mod error;
mod http;
mod metrics;
mod secret;
mod server;

pub use app::{App, Clock, NewTunnel, Random, SignedCertificate, SystemClock, SystemRandom};
pub use authority::{Authority, AuthorityError};
pub use error::{Detail, Error, Problem};
pub use http::{openapi, router};
pub use metrics::Metrics;
pub use secret::{ApiKeySecret, SecretError};
pub use server::{Limits, serve};
