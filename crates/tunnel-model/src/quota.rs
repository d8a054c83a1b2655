//! Rolling quotas: so many successes within a window that moves with the clock.

use std::time::Duration;

use crate::id::{OrganizationId, TunnelId};
use crate::time::Timestamp;

/// What is counted. Only successes are.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Usage {
    /// Tunnels created by an organization.
    Create(OrganizationId),
    /// Certificates signed for a tunnel.
    Sign(TunnelId),
}

/// At most `limit` successes within any `window`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    /// How many; 0 allows none.
    pub limit: u32,
    /// Within which time.
    pub window: Duration,
}

impl Quota {
    /// May one more succeed now, if the success that is `limit` successes
    /// back happened at `nth_use`?
    ///
    /// That one time decides it: if it lies within the window, so do all
    /// later ones, and there are `limit` of them. A time to come is one of a clock
    /// that was ahead, and counts as now.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tunnel_model::{Quota, Timestamp};
    ///
    /// let quota = Quota { limit: 10, window: Duration::from_secs(60) };
    /// let tenth_back = Timestamp::from_micros(0);
    /// let now = tenth_back.plus(Duration::from_secs(45));
    /// assert_eq!(quota.admit(Some(tenth_back), now), Err(Duration::from_secs(15)));
    /// assert_eq!(quota.admit(None, now), Ok(()));
    /// ```
    ///
    /// # Errors
    ///
    /// How long to wait, at least a second.
    pub fn admit(&self, nth_use: Option<Timestamp>, now: Timestamp) -> Result<(), Duration> {
        if self.limit == 0 {
            return Err(self.window);
        }
        match nth_use.map(|nth_use| nth_use.min(now)) {
            Some(nth_use) if now < nth_use.plus(self.window) => {
                Err(nth_use.plus(self.window).since(now).max(Duration::from_secs(1)))
            }
            _ => Ok(()),
        }
    }
}
