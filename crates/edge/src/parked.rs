//! The wire of the published SDKs, all of it: agents that park streams and are
//! answered with envelopes, replies on streams of their own, bridges of messages.
//!
//! Nothing else is built on what is in here but through [`crate::link`], the sessions
//! that the tunnels know, and [`Streams`], which each tunnel keeps for it.

mod agent;
mod exchange;
mod flow;
mod octets;
mod reply;
mod splice;
mod streams;
mod websocket;

pub(crate) use agent::serve;
pub(crate) use exchange::Link;
pub(crate) use reply::Buffered;
pub(crate) use streams::{Connection, Names, Streams};
