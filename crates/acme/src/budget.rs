//! A budget of our own, so that the authority's limits are never reached: the pure part.
//!
//! Who counts keeps the times: of the certificates for the registered domain, of those for the
//! same names, of orders, and of authorizations that failed. An order in work counts as a
//! certificate. The windows slide, as those of Let's Encrypt do.

use std::time::Duration;

use pki_core::Time;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// So many within so long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// Within how long.
    pub window: Duration,
}

impl Rate {
    /// So many within so many seconds.
    pub const fn new(count: u32, seconds: u64) -> Self {
        Self { count, window: Duration::from_secs(seconds) }
    }

    /// From when on there is room for one more, if not now.
    ///
    /// `times` may be in any order; those beyond the window do not count, and those of the future
    /// (a clock that was put back) do.
    pub fn free_at(&self, times: &[Time], now: Time) -> Option<Time> {
        let begin = now.minus(self.window);
        let mut within: Vec<Time> = times.iter().copied().filter(|time| *time > begin).collect();
        let count = usize::try_from(self.count).unwrap_or(usize::MAX);
        if within.len() < count {
            return None;
        }
        if count == 0 {
            return Some(Time::MAX);
        }
        within.sort_unstable();
        // When this one has left the window, one fewer than `count` are in it.
        Some(within[within.len() - count].plus(self.window))
    }

    /// How many more there is room for.
    pub fn left(&self, times: &[Time], now: Time) -> u32 {
        let begin = now.minus(self.window);
        let within = times.iter().filter(|time| **time > begin).count();
        self.count.saturating_sub(u32::try_from(within).unwrap_or(u32::MAX))
    }
}

/// The limits of an account at an authority.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budget {
    /// New certificates for a registered domain and all below it.
    pub domain: Rate,
    /// Certificates for exactly the same names.
    pub same_names: Rate,
    /// New orders.
    pub orders: Rate,
    /// Authorizations of a name that failed.
    pub failures: Rate,
}

impl Default for Budget {
    /// Those of Let's Encrypt, of 2026.
    fn default() -> Self {
        Self {
            domain: Rate::new(50, 7 * DAY),
            same_names: Rate::new(5, 7 * DAY),
            orders: Rate::new(300, 3 * HOUR),
            failures: Rate::new(5, HOUR),
        }
    }
}

/// What has been had, as times in any order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spent<'a> {
    /// Certificates, and orders in work, for the registered domain; renewals within their window left out.
    pub domain: &'a [Time],
    /// Of those, the ones for exactly these names.
    pub same_names: &'a [Time],
    /// Orders of the account.
    pub orders: &'a [Time],
    /// Failed authorizations of the name of which most have failed.
    pub failures: &'a [Time],
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// A certificate for names that have none.
    New,
    /// The next one for the same names.
    Renewal,
    /// The next one, inside the window that the authority suggested, with `replaces`: it costs nothing there.
    RenewalInWindow,
}

/// A limit, and from when on there is room.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{limit} are used up until {free_at}")]
pub struct Exhausted {
    /// Which.
    pub limit: Limit,
    /// From when on.
    pub free_at: Time,
}

/// Which limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// [`Budget::domain`].
    Domain,
    /// [`Budget::failures`].
    Failures,
    /// [`Budget::orders`].
    Orders,
    /// [`Budget::same_names`].
    SameNames,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Domain => "the certificates that the authority issues for this domain",
            Self::Failures => "the failed attempts that the authority allows for this name",
            Self::Orders => "the orders that the authority takes",
            Self::SameNames => "the certificates that the authority issues for the same names",
        })
    }
}

impl Budget {
    /// May this be ordered now?
    ///
    /// # Errors
    ///
    /// [`Exhausted`]: of the limits that are reached, the one that is free last.
    pub fn check(&self, ask: Ask, spent: &Spent<'_>, now: Time) -> Result<(), Exhausted> {
        // Let's Encrypt counts the next certificate for exactly the same names for itself.
        let is_new = ask == Ask::New;
        let domain = self.domain.free_at(spent.domain, now).filter(|_| is_new);
        let is_exempt = ask == Ask::RenewalInWindow;
        let same_names = self.same_names.free_at(spent.same_names, now).filter(|_| !is_exempt);
        let orders = self.orders.free_at(spent.orders, now).filter(|_| is_new);
        let failures = self.failures.free_at(spent.failures, now);
        let reached = [
            (Limit::Domain, domain),
            (Limit::Failures, failures),
            (Limit::Orders, orders),
            (Limit::SameNames, same_names),
        ];
        let last = reached.into_iter().filter_map(|(limit, at)| Some((limit, at?))).max_by_key(|(_, at)| *at);
        last.map_or(Ok(()), |(limit, free_at)| Err(Exhausted { limit, free_at }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Time = Time::from_unix(1_795_354_200);

    fn ago(seconds: u64) -> Time {
        NOW.minus(Duration::from_secs(seconds))
    }

    #[test]
    fn fifty_in_a_week_and_then_the_time_is_told() {
        let budget = Budget::default();
        let mut domain: Vec<_> = (0..49).map(|hour| ago(hour * HOUR)).collect();
        fn spent(domain: &[Time]) -> Spent<'_> {
            Spent { domain, ..Spent::default() }
        }
        assert_eq!(budget.check(Ask::New, &spent(&domain), NOW), Ok(()));
        domain.push(ago(6 * DAY));
        let wanted = Exhausted { limit: Limit::Domain, free_at: ago(6 * DAY).plus(Duration::from_secs(7 * DAY)) };
        assert_eq!(budget.check(Ask::New, &spent(&domain), NOW), Err(wanted));
        assert_eq!(budget.check(Ask::RenewalInWindow, &spent(&domain), NOW), Ok(()));
        assert_eq!(budget.check(Ask::New, &spent(&domain), wanted.free_at), Ok(()));
    }

    #[test]
    fn renewals_come_before_new_names() {
        let budget = Budget::default();
        let (domain, orders) = (vec![ago(DAY); 50], vec![ago(MINUTE); 300]);
        let spent = Spent { domain: &domain, orders: &orders, ..Spent::default() };
        assert!(budget.check(Ask::New, &spent, NOW).is_err());
        assert_eq!(budget.check(Ask::Renewal, &spent, NOW), Ok(()));
        // But one set of names has its own limit.
        let same = vec![ago(DAY); 5];
        let reached = budget.check(Ask::Renewal, &Spent { same_names: &same, ..spent }, NOW);
        assert_eq!(reached.map_err(|one| one.limit), Err(Limit::SameNames));
    }

    #[test]
    fn the_limit_that_is_free_last_is_told() {
        let budget = Budget::default();
        let (failures, same) = (vec![ago(MINUTE); 5], vec![ago(DAY); 5]);
        let spent = Spent { failures: &failures, same_names: &same, ..Spent::default() };
        assert_eq!(budget.check(Ask::New, &spent, NOW).map_err(|one| one.limit), Err(Limit::SameNames));
        // A name whose proof fails fails in the window, too.
        let reached = budget.check(Ask::RenewalInWindow, &spent, NOW);
        assert_eq!(reached.map_err(|one| one.limit), Err(Limit::Failures));
    }

    proptest! {
        /// Whoever goes by it never has more than `count` within any window, and waits no longer than needed.
        #[test]
        fn nobody_gets_more_than_the_rate(
            count in 1..6_u32,
            window in 1..50_u64,
            gaps in prop::collection::vec(0..20_u64, 1..60),
        ) {
            let rate = Rate::new(count, window);
            let (mut now, mut had) = (NOW, Vec::<Time>::new());
            for gap in gaps {
                now = now.plus(Duration::from_secs(gap));
                if let Some(at) = rate.free_at(&had, now) {
                    prop_assert!(at > now);
                    prop_assert_eq!(rate.left(&had, now), 0);
                    prop_assert!(rate.free_at(&had, at.minus(Duration::from_secs(1))).is_some());
                    prop_assert_eq!(rate.free_at(&had, at), None);
                    now = at;
                }
                had.push(now);
                let begin = now.minus(rate.window);
                prop_assert!(had.iter().filter(|time| **time > begin).count() <= count as usize);
            }
        }
    }
}
