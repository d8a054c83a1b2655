//! Limits and times of the protocol, each with its reason.

use std::time::Duration;

/// Octets of a request's or reply's body: the cap of every SDK, in both directions.
pub const MAX_BODY: usize = 32 * 1024 * 1024;
/// Intakes that an agent may ask to park; the SDKs refuse to ask for more.
pub const MAX_POOL_SIZE: u8 = 32;
/// Intakes of an agent that does not ask: enough that one is always back.
pub const DEFAULT_POOL_SIZE: u8 = 8;
/// Header fields of an envelope. Node drops a response with more than 128
/// fields; a dozen are ours.
pub const MAX_HEADER_FIELDS: usize = 110;
/// HPACK size of an envelope's header list (RFC 7541 section 4.1). Python
/// agents close the connection above 65536.
pub const MAX_HEADER_OCTETS: usize = 60 * 1024;
/// HPACK size of a reply's header fields as they cross, with their prefix: edges take
/// lists of 65536 octets, and the rest is the protocol's own.
pub const MAX_REPLY_HEADERS: usize = 64 * 1024 - 1024;
/// Header fields of a reply.
pub const MAX_REPLY_FIELDS: usize = 200;
/// An outer frame, with its header, that always fits the windows of an agent
/// with 65535 octets for all streams: it credits once 32767 were consumed.
pub const SMALL_WINDOW_FRAME: usize = 32 * 1024;
/// Octets of TCP in one outer frame: what every agent takes in one DATA frame.
pub const MAX_TCP_FRAME: usize = 16 * 1024;
/// What agents are told that a reply may take.
pub const RESPONSE_DEADLINE: Duration = Duration::from_secs(30);
/// What agents are told of idle intakes; no agent acts on it.
pub const INTAKE_IDLE: Duration = Duration::from_secs(600);
/// Between two PINGs, as the agents do it.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// From a PING to its acknowledgement, as the agents do it.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The GOAWAY error code that tells an agent that another one took its tunnel over.
pub const SUPERSEDED: u32 = 0x1201;
/// The debug data that goes with [`SUPERSEDED`].
pub const SUPERSEDED_DEBUG_DATA: &str = r#"{"reason":"superseded"}"#;
/// The debug data of the GOAWAY of a planned restart.
pub const DRAIN_DEBUG_DATA: &str = r#"{"reason":"drain"}"#;
/// `inkbox-reason` of intakes that end, with a 200 and no request, because the tunnel has
/// another name: the agent looks it up again.
pub const TUNNEL_CHANGED: &str = "tunnel-changed";
/// `inkbox-reason` of intakes that a takeover ends.
pub const INTAKE_SUPERSEDED: &str = "intake-superseded";
