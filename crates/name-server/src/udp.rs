//! Datagrams.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use connections::Throttle;
use tokio::net::UdpSocket;
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::rates::Verdict;
use crate::server::Inner;
use crate::{PAYLOAD, Transport};

/// Octets of a query that are taken. What is longer is cut off, and so malformed.
const MAX_QUERY: usize = 4096;

/// Queries in a row, before others in this process have their turn.
const TURN: usize = 64;

/// Answers one datagram after the other, until `stop` is done. Nothing is awaited for any of
/// them, so that none is in work while another one is.
pub(crate) async fn serve(inner: &Inner, socket: &UdpSocket, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut query = vec![0; MAX_QUERY];
    let mut answer = Vec::with_capacity(usize::from(PAYLOAD));
    let throttles = Throttles::default();
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return,
            ready = socket.readable() => {
                if ready.is_err() {
                    sleep(PAUSE).await;
                }
            }
        }
        for served in 1..=TURN {
            match socket.try_recv_from(&mut query) {
                Ok((length, peer)) => {
                    if respond(inner, &query[..length], peer, &mut answer, &throttles) {
                        send(inner, socket, &answer, peer, &throttles);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    if let Some(held_back) = throttles.received.pass(Instant::now()) {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, held_back, "cannot receive DNS queries");
                    }
                    sleep(PAUSE).await;
                    break;
                }
            }
            if served == TURN {
                yield_now().await;
            }
        }
    }
}

/// After an error, so that one which stays does not cost a core.
const PAUSE: Duration = Duration::from_millis(20);

/// Log lines that a peer can cause.
#[derive(Default)]
struct Throttles {
    limited: Throttle,
    received: Throttle,
    sent: Throttle,
}

/// Is there an answer to send?
fn respond(inner: &Inner, query: &[u8], peer: SocketAddr, answer: &mut Vec<u8>, throttles: &Throttles) -> bool {
    let Inner { zone, counters, limiter, .. } = inner;
    counters.count_message(Transport::Udp);
    let now = Instant::now();
    let verdict = limiter.judge(peer.ip(), now);
    if verdict != Verdict::Answer
        && let Some(held_back) = throttles.limited.pass(now)
    {
        tracing::info!(ip = %peer.ip().to_canonical(), held_back, "too many DNS queries from a network");
    }
    match verdict {
        Verdict::Answer => counters.count_outcome(zone.respond(query, Transport::Udp, answer)),
        Verdict::Drop => {
            counters.count_limited();
            return false;
        }
        Verdict::Slip => {
            counters.count_slipped();
            zone.slip(query, answer);
        }
    }
    !answer.is_empty()
}

/// Waits for nobody: an answer that the system does not take now is lost, as any may be.
fn send(inner: &Inner, socket: &UdpSocket, answer: &[u8], peer: SocketAddr, throttles: &Throttles) {
    let Err(error) = socket.try_send_to(answer, peer) else { return };
    inner.counters.count_unsent();
    if let Some(held_back) = throttles.sent.pass(Instant::now()) {
        // Nobody can be answered at port 0, for one.
        tracing::debug!(%peer, error = &error as &dyn std::error::Error, held_back, "cannot send a DNS answer");
    }
}
