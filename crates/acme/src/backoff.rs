//! When to try again after orders that failed: minutes at first, a day at last, thirty days in all.
//!
//! An order that fails costs one of the few failures that an authority allows, and is likely to
//! fail again: a record in the DNS is missing, a port is closed. So each wait is longer, as
//! certmagic does it.

use std::time::Duration;

use pki_core::Time;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The waits after each failure; the last one repeats.
const WAITS: [u64; 18] = [
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    20 * MINUTE,
    20 * MINUTE,
    30 * MINUTE,
    30 * MINUTE,
    HOUR,
    HOUR,
    2 * HOUR,
    2 * HOUR,
    3 * HOUR,
    3 * HOUR,
    6 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
];

/// After the first failure.
const ALL_IN_ALL: Duration = Duration::from_secs(30 * DAY);

/// The failures of one set of names, one after another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// The first of them.
    pub first: Time,
    /// The latest.
    pub latest: Time,
    /// Before this time the authority will not have it (`Retry-After`).
    pub not_before: Option<Time>,
}

impl Failures {
    /// The first failure.
    pub fn first(at: Time, not_before: Option<Time>) -> Self {
        Self { count: 1, first: at, latest: at, not_before }
    }

    /// One more.
    #[must_use]
    pub fn and(self, at: Time, not_before: Option<Time>) -> Self {
        Self { count: self.count.saturating_add(1), latest: at, not_before, ..self }
    }

    /// When to try again; `None` when it has been tried for thirty days, and somebody has to look.
    ///
    /// `random` spreads the attempts of many by up to a tenth of the wait.
    pub fn try_again_at(&self, random: u64) -> Option<Time> {
        let step = usize::try_from(self.count.saturating_sub(1)).unwrap_or(usize::MAX).min(WAITS.len() - 1);
        let wait = WAITS[step];
        let wait = Duration::from_secs(wait + random % (wait / 10 + 1));
        let at = self.latest.plus(wait).max(self.not_before.unwrap_or(Time::MIN));
        (at <= self.first.plus(ALL_IN_ALL)).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_day_and_end_after_thirty() {
        let begin = Time::from_unix(1_795_354_200);
        let mut failures = Failures::first(begin, None);
        let (mut last, mut tries) = (Duration::ZERO, 1);
        while let Some(at) = failures.try_again_at(0) {
            let wait = Duration::from_secs(u64::try_from(at.unix() - failures.latest.unix()).expect("later"));
            assert!(wait >= last && wait <= Duration::from_secs(DAY), "{wait:?} after {last:?}");
            assert!(at <= begin.plus(ALL_IN_ALL));
            (last, tries) = (wait, tries + 1);
            failures = failures.and(at, None);
        }
        assert!((40..60).contains(&tries), "{tries} attempts");
    }

    #[test]
    fn what_the_authority_asks_for_counts() {
        let begin = Time::from_unix(1_795_354_200);
        let later = begin.plus(Duration::from_secs(HOUR));
        assert_eq!(Failures::first(begin, Some(later)).try_again_at(7), Some(later));
        let never = begin.plus(Duration::from_secs(31 * DAY));
        assert_eq!(Failures::first(begin, Some(never)).try_again_at(7), None);
    }
}
