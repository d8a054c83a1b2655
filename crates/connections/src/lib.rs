//! Accepts connections, and says what each may cost.
//!
//! Every port of a server has the same questions: how many at once, and of one
//! address; how long a peer may take for its greeting, leave an answer unread or
//! say nothing; how much of it is held; when the last one has ended. Here they
//! are answered once, and what one port learns the others know.
//!
//! A [`Place`] is a peer's account. It is taken when the connection is accepted
//! and goes with it, through TLS, upgrades and bridges, until the last task that
//! serves the peer has ended; on the way it may change its [`Kind`]. What is held
//! of a peer's octets is a [`Lease`] on its [`Budget`].

mod accept;
mod budget;
mod framing;
mod http1;
mod impatient;
mod places;
mod progress;
mod throttle;
mod tls;
mod upgrade;

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncWrite};

pub use accept::{Socket, accept, limit_unsent};
pub use budget::{Budget, Lease};
pub use framing::{Guarded, Lift};
pub use http1::{HttpLimits, serve_http1};
pub use impatient::{Impatient, LINGER, linger};
pub use places::{Counts, Full, Kind, Limits, Place, Places};
pub use progress::Progress;
pub use throttle::Throttle;
pub use tls::{TlsFailed, accept_tls};
pub use upgrade::{Rewound, Upgraded, upgraded};

/// What a connection can do.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Who is at the other end of a request, among its extensions where a handler is to know.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the peer is.
    pub ip: IpAddr,
    /// The peer's account: whoever goes on with the connection after a 101 keeps it.
    pub place: Place,
}

/// A connection that one part of a server has accepted and another one serves.
pub struct Arrival {
    /// The connection.
    pub io: Box<dyn Io>,
    /// Where the peer is.
    pub ip: IpAddr,
    /// The peer's account, to be kept for as long as anything serves it.
    pub place: Place,
}

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
