//! PINGs that must be answered: a path that is gone tells nobody.

use agent_proto::limits::{PING_INTERVAL, PING_TIMEOUT};
use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until};

/// The PINGs of one connection.
pub(crate) struct Heart {
    pings: Option<PingPong>,
    due: Instant,
    is_waiting: bool,
}

impl Heart {
    pub(crate) fn new(pings: Option<PingPong>) -> Self {
        Self { pings, due: Instant::now() + PING_INTERVAL, is_waiting: false }
    }

    /// Returns when a PING was not answered in time.
    pub(crate) async fn beat(&mut self) {
        let Some(pings) = &mut self.pings else { return std::future::pending().await };
        loop {
            if self.is_waiting {
                tokio::select! {
                    pong = std::future::poll_fn(|cx| pings.poll_pong(cx)) => {
                        if pong.is_err() {
                            // The connection's own end says more.
                            return std::future::pending().await;
                        }
                        self.is_waiting = false;
                        self.due = Instant::now() + PING_INTERVAL;
                    }
                    () = sleep_until(self.due) => return,
                }
            } else {
                sleep_until(self.due).await;
                if pings.send_ping(Ping::opaque()).is_err() {
                    return std::future::pending().await;
                }
                self.is_waiting = true;
                self.due = Instant::now() + PING_TIMEOUT;
            }
        }
    }
}
