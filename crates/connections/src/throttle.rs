//! Log lines that a peer can cause, at most one a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets one through a second, and counts the others.
///
/// ```
/// use std::time::{Duration, Instant};
/// let (throttle, now) = (connections::Throttle::new(), Instant::now());
/// assert_eq!(throttle.pass(now), Some(0));
/// assert_eq!(throttle.pass(now), None);
/// assert_eq!(throttle.pass(now + Duration::from_secs(1)), Some(1), "one was held back");
/// ```
#[derive(Debug, Default)]
pub struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// Nothing has passed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// May one pass at `now`? Then how many were held back since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < Duration::from_secs(1)) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}
