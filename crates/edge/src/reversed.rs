//! The native wire (docs/native-wire.md): the agent has dialled, and is the HTTP/2
//! server on its connection. A visitor's request is one stream.
//!
//! Nothing else is built on what is in here but through [`crate::link`], and the
//! [`Session`]s that the tunnels know.

mod exchange;
mod held;
mod octets;
mod reply;
mod session;
mod upload;
mod websocket;

pub(crate) use exchange::Link;
pub(crate) use held::{Held, Limits};
pub(crate) use session::Session;
pub use session::{Attach, Attached, Busy};
