//! The wires between an agent and the edge, without I/O.
//!
//! On the native wire the edge sends an agent HTTP/2 requests: [`Attach`] is how that
//! begins, a [`Notice`] what the edge says itself, and [`Windows`] how much is on the way.
//!
//! On the wire of the published SDKs the agent opens the streams: [`StreamRequest`] reads
//! what it asks. Intakes are answered with an [`Envelope`], a visitor's request; the
//! [`ReplyHead`] comes back on a stream of its own. WebSockets and raw TCP connections
//! run over bridges, whose bytes are framed as [`bridge`] says.
//!
//! [`visitor`] has the rules for what crosses from visitors to agents on either wire, and
//! [`websocket`] the strict RFC 6455 that visitors speak.

pub mod bridge;
pub mod limits;
pub mod visitor;
pub mod websocket;

mod attach;
mod envelope;
mod frame;
mod hello;
mod id;
mod reply;
mod stream;
mod windows;

pub use attach::{Attach, AttachError, Notice, WIRE_VERSION};
pub use envelope::{Envelope, EnvelopeError, EnvelopeKind};
pub use frame::{FrameError, FrameHeader, HeaderOctets, Opcode, apply_mask, is_valid_close_code};
pub use hello::{HelloAnswer, HelloAnswerError};
pub use id::{BridgeId, IdError, OwnerToken, RequestId};
pub use reply::{ReplyError, ReplyHead};
pub use stream::{Bridge, BridgeKind, Credential, Hello, Intake, Reply, StreamError, StreamRequest};
pub use windows::{CONNECTION_WINDOW, Windows};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
