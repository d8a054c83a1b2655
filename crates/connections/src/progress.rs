//! Whether anything moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;

/// Counts what moves on a connection that may be silent for long, but not for ever.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Something has moved.
    pub fn made(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns when nothing has moved for `limit`, give or take a quarter.
    pub async fn stalled(&self, limit: Duration) {
        let (mut seen, mut quiet) = (self.0.load(Ordering::Relaxed), 0);
        while quiet < 4 {
            sleep(limit / 4).await;
            let now = self.0.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    }
}
