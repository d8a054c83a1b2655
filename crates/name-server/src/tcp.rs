//! Streams.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use connections::{Kind, Socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::server::{Inner, stopped};
use crate::{Outcome, Transport};

/// Octets of a query: a header, and what any real one has many times over.
const QUERY: std::ops::RangeInclusive<usize> = 12..=4096;

/// More than a task needs to see that it is to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Serves connections until the other end of `stopping` is gone, and returns when the last has ended.
pub(crate) async fn serve(inner: &Arc<Inner>, listener: &TcpListener, stopping: watch::Receiver<()>) {
    connections::accept(listener, &inner.places, Kind::Client, false, stopped(stopping.clone()), |socket| {
        let (inner, stopping) = (Arc::clone(inner), stopping.clone());
        async move {
            let Socket { stream, place, .. } = socket;
            tokio::select! {
                () = stopped(stopping) => {}
                // How it ends is of interest to nobody: whoever still wants an answer asks again.
                _ = timeout(inner.limits.lifetime, converse(&inner, stream)) => {}
            }
            drop(place);
        }
    })
    .await;
    inner.places.emptied(GRACE).await;
}

/// Answers one query after the other, in their order (RFC 7766 section 6.2.1.1 allows any), for as
/// long as the peer asks something within the limits. What is not a query ends the connection.
async fn converse(inner: &Inner, stream: TcpStream) -> io::Result<()> {
    let limits = &inner.limits;
    let mut stream = BufReader::with_capacity(*QUERY.end(), stream);
    let (mut query, mut answer) = (Vec::new(), Vec::new());
    loop {
        // Two octets of length come first (RFC 1035 section 4.2.2).
        let length = usize::from(timeout(idle(inner), stream.read_u16()).await??);
        if !QUERY.contains(&length) {
            return Ok(());
        }
        query.resize(length, 0);
        timeout(limits.message, stream.read_exact(&mut query)).await??;
        inner.counters.count_message(Transport::Tcp);
        let outcome = inner.zone.respond(&query, Transport::Tcp, &mut answer);
        inner.counters.count_outcome(outcome);
        let length = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes();
        if outcome == Outcome::Ignored {
            return Ok(());
        }
        // In one segment: some clients read the length and the answer as one (RFC 7766 section 8).
        let mut octets = Buf::chain(&length[..], &answer[..]);
        timeout(limits.message, stream.write_all_buf(&mut octets)).await??;
    }
}

/// How long a connection may be quiet from now on. Beyond half of the places a tenth of what it
/// may be otherwise (RFC 7766 section 6.2.3): who takes all of them must come back for them so
/// often that others get in between.
fn idle(inner: &Inner) -> Duration {
    let limits = &inner.limits;
    let taken = inner.places.counts().of(Kind::Client);
    if taken * 2 > limits.connections { limits.idle / 10 } else { limits.idle }
}
