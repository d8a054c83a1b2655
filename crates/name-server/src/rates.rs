//! How many answers a network gets over UDP.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many answers a network gets over UDP, where nobody knows who has really asked: a /24,
/// or a /56 of IPv6.
///
/// Who sends queries in the name of a victim makes us send answers to the victim. They are
/// larger than the queries, and so they must be few.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rates {
    /// Answers a second; 0 is no limit. A public resolver asks from few networks for all of
    /// its users, but keeps what it hears.
    pub per_second: u32,
    /// Answers at once, for a network that was quiet.
    pub burst: u32,
    /// Each so-manyth query beyond that is answered with "ask again by TCP", the others not at
    /// all; 0 is none. So a victim's own resolver gets through.
    pub slip: u32,
    /// Are queries from this machine not counted? Nobody can send them from elsewhere.
    pub exempts_loopback: bool,
}

impl Default for Rates {
    fn default() -> Self {
        Self { per_second: 200, burst: 1000, slip: 2, exempts_loopback: true }
    }
}

/// What is to be done with a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Answer,
    Drop,
    Slip,
}

/// Counts by network, in memory that does not grow.
///
/// Networks that fall into the same bucket share it. Which do is random for each process: nobody
/// can choose a bucket, or push another network's count out, as from a table that is full.
#[derive(Debug)]
pub(crate) struct Limiter {
    rates: Rates,
    begun: Instant,
    hash: RandomState,
    /// Until when the bucket's answers so far would take at the allowed rate, in nanoseconds.
    buckets: Box<[AtomicU64]>,
    limited: AtomicU64,
}

/// Half a MiB. Of a flood from random networks each has a 65,536th.
const BUCKETS: usize = 1 << 16;

const SECOND: u64 = 1_000_000_000;

impl Limiter {
    pub(crate) fn new(rates: Rates, now: Instant) -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { rates, begun: now, hash: RandomState::new(), buckets, limited: AtomicU64::new(0) }
    }

    pub(crate) fn judge(&self, peer: IpAddr, now: Instant) -> Verdict {
        let peer = peer.to_canonical();
        let Rates { per_second, burst, slip, exempts_loopback } = self.rates;
        if per_second == 0 || (exempts_loopback && peer.is_loopback()) {
            return Verdict::Answer;
        }
        let bucket = &self.buckets[self.hash.hash_one(network(peer)) as usize % BUCKETS];
        let now = nanoseconds(now.saturating_duration_since(self.begun));
        let interval = SECOND / u64::from(per_second);
        let most = interval.saturating_mul(u64::from(burst.max(1)));
        let take = |until: u64| {
            let until = until.max(now).saturating_add(interval);
            (until - now <= most).then_some(until)
        };
        if bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Verdict::Answer;
        }
        let limited = self.limited.fetch_add(1, Ordering::Relaxed);
        if slip > 0 && limited.is_multiple_of(u64::from(slip)) { Verdict::Slip } else { Verdict::Drop }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What one customer of a network has, at least (RFC 6177): a /24, or a /56.
fn network(ip: IpAddr) -> (bool, u64) {
    match ip {
        IpAddr::V4(ip) => (false, u64::from(ip.to_bits() >> 8)),
        IpAddr::V6(ip) => (true, (ip.to_bits() >> 72) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn answers(limiter: &Limiter, peer: &str, now: Instant) -> usize {
        (0..1000).filter(|_| limiter.judge(ip(peer), now) == Verdict::Answer).count()
    }

    #[test]
    fn a_network_has_its_burst_and_then_its_rate() {
        let begun = Instant::now();
        let rates = Rates { per_second: 10, burst: 20, slip: 3, exempts_loopback: true };
        let limiter = Limiter::new(rates, begun);
        assert_eq!(answers(&limiter, "192.0.2.1", begun), 20);
        // The same /24, mapped or not.
        assert_eq!(answers(&limiter, "192.0.2.200", begun), 0);
        assert_eq!(answers(&limiter, "::ffff:192.0.2.9", begun), 0);
        assert_eq!(answers(&limiter, "198.51.100.1", begun), 20);
        assert_eq!(answers(&limiter, "192.0.2.1", begun + Duration::from_secs(1)), 10);
        assert_eq!(answers(&limiter, "192.0.2.1", begun + Duration::from_secs(3600)), 20);
        assert_eq!(answers(&limiter, "2001:db8:0:ff::1", begun), 20);
        assert_eq!(answers(&limiter, "2001:db8:0:01::1", begun), 0);
        assert_eq!(answers(&limiter, "2001:db8:0:100::1", begun), 20);
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(answers(&limiter, peer, begun), 1000, "{peer}");
        }
    }

    #[test]
    fn every_so_manyth_beyond_is_told_to_come_by_tcp() {
        let begun = Instant::now();
        for (slip, wanted) in [(0, 0), (1, 300), (3, 100)] {
            let rates = Rates { per_second: 1, burst: 1, slip, exempts_loopback: false };
            let limiter = Limiter::new(rates, begun);
            assert_eq!(limiter.judge(ip("127.0.0.1"), begun), Verdict::Answer);
            let slips = (0..300).filter(|_| limiter.judge(ip("127.0.0.1"), begun) == Verdict::Slip).count();
            assert_eq!(slips, wanted);
        }
    }

    #[test]
    fn no_rate_is_no_limit() {
        let begun = Instant::now();
        let limiter = Limiter::new(Rates { per_second: 0, ..Rates::default() }, begun);
        assert_eq!(answers(&limiter, "192.0.2.1", begun), 1000);
    }
}
