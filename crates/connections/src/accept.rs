//! The loop that accepts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::{Kind, Place, Places, Throttle};

/// A connection that was just accepted.
pub struct Socket {
    /// The connection.
    pub stream: TcpStream,
    /// Where it comes from, or the proxy before it.
    pub peer: SocketAddr,
    /// The peer's account, to be kept for as long as anything serves it.
    pub place: Place,
}

impl Socket {
    /// Where it comes from, or the proxy before it.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    /// Has the peer said something within `limit`, before `stop` is done? Until then
    /// it costs a socket and a small task: what serves it comes afterwards.
    pub async fn speaks_within(&self, limit: Duration, stop: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = stop => false,
            readable = timeout(limit, self.stream.readable()) => matches!(readable, Ok(Ok(()))),
        }
    }
}

/// Accepts connections of one kind until `stop` is done, and gives each to `serve`,
/// which runs in a task of its own.
///
/// When all places of the kind are taken, more wait in the kernel. A peer whose
/// address has its share is closed without a word. With `is_proxied` the peers are
/// proxies, and whose connection it is turns out later.
pub async fn accept<F>(
    listener: &TcpListener,
    places: &Arc<Places>,
    kind: Kind,
    is_proxied: bool,
    stop: impl Future<Output = ()>,
    serve: impl Fn(Socket) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let (failures, refusals) = (Throttle::new(), Throttle::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            places.room(kind).await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            () = &mut stop => return,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: others must close first.
                places.count_failure();
                if let Some(held_back) = failures.pass(Instant::now()) {
                    tracing::warn!(error = &error as &dyn std::error::Error, held_back, "cannot accept");
                }
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match places.take(kind, Some(peer.ip()).filter(|_| !is_proxied)) {
            Ok(place) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot set a socket's options");
                }
                tokio::spawn(serve(Socket { stream, peer, place }));
            }
            Err(full) => {
                if let Some(held_back) = refusals.pass(Instant::now()) {
                    tracing::warn!(ip = %peer.ip(), held_back, error = &full as &dyn std::error::Error, "a connection is refused");
                }
            }
        }
    }
}

/// Octets that the kernel takes for a peer before it can send them.
const UNSENT: u32 = 128 * 1024;

/// Lets the kernel take 128 KiB for a peer before it can send them (`TCP_NOTSENT_LOWAT`); what
/// is on its way, far as the peer may be, is not counted.
///
/// Without a limit it takes megabytes for each peer that does not read (`tcp_wmem`), and when
/// all of its memory for TCP is gone, it drops what is for others. On a connection that many
/// share, what is small waits behind it.
///
/// # Errors
///
/// When the kernel knows no such option.
pub fn limit_unsent(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)
}

/// A peer that is gone without a word is noticed within two minutes.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    let socket = SockRef::from(stream);
    // Probes are not sent while something waits to be acknowledged; and with a shorter
    // time than theirs, the first one that is lost would be the last.
    socket.set_tcp_user_timeout(Some(Duration::from_secs(120)))?;
    limit_unsent(stream)?;
    socket.set_tcp_keepalive(&probes.with_retries(4))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpSocket;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_little_for_a_peer_that_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = TcpSocket::new_v4().expect("a socket");
        // What it takes in before it must read is its own affair, and little here.
        peer.set_recv_buffer_size(16 * 1024).expect("a size");
        let peer = peer.connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (mut stream, _) = listener.accept().await.expect("a peer");
        prepare(&stream).expect("options");
        let mut taken = 0;
        while let Ok(octets) = timeout(Duration::from_millis(200), stream.write(&[0; 64 * 1024])).await {
            taken += octets.expect("the peer is there");
            assert!(taken < 1024 * 1024, "as if there were no limit");
        }
        drop(peer);
    }
}
