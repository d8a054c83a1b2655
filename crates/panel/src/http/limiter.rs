//! How often an address may try.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket an address: a minute's tries at once, then one as time goes by.
pub(super) struct Limiter {
    per_minute: u32,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Addresses that are remembered. Beyond it the full buckets are forgotten,
/// then all of them: whoever has so many addresses has them for nothing.
const MAX_BUCKETS: usize = 16 * 1024;
const MINUTE: Duration = Duration::from_secs(60);

impl Limiter {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute, buckets: Mutex::default() }
    }

    /// Takes one; seconds to wait if there is none.
    pub(super) fn admit(&self, address: IpAddr, now: Instant) -> Result<(), u64> {
        if self.per_minute == 0 {
            return Ok(());
        }
        let (size, rate) = (f64::from(self.per_minute), f64::from(self.per_minute) / MINUTE.as_secs_f64());
        let filled =
            |bucket: &Bucket| (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * rate).min(size);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, bucket| filled(bucket) < size);
            if buckets.len() >= MAX_BUCKETS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(network(address)).or_insert(Bucket { tokens: size, at: now });
        let tokens = filled(bucket);
        let is_admitted = tokens >= 1.0;
        *bucket = Bucket { tokens: if is_admitted { tokens - 1.0 } else { tokens }, at: now };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 60")]
        if is_admitted { Ok(()) } else { Err(((1.0 - tokens) / rate).ceil().max(1.0) as u64) }
    }
}

/// Whoever has one IPv6 address has its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((address.to_bits() >> 64 << 64).to_be_bytes()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_tries_may_come_at_once() {
        let limiter = Limiter::new(6);
        let (now, ours) = (Instant::now(), "192.0.2.1".parse().expect("an address"));
        for _ in 0..6 {
            assert_eq!(limiter.admit(ours, now), Ok(()));
        }
        assert_eq!(limiter.admit(ours, now), Err(10));
        assert_eq!(limiter.admit("192.0.2.2".parse().expect("an address"), now), Ok(()));
        assert_eq!(limiter.admit("::ffff:192.0.2.1".parse().expect("an address"), now), Err(10));
        assert_eq!(limiter.admit(ours, now + Duration::from_secs(10)), Ok(()));
        assert_eq!(limiter.admit(ours, now + Duration::from_secs(15)), Err(5));
    }

    #[test]
    fn a_network_of_version_6_is_one() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        assert_eq!(limiter.admit("2001:db8::1".parse().expect("an address"), now), Ok(()));
        assert!(limiter.admit("2001:db8::2".parse().expect("an address"), now).is_err());
        assert_eq!(limiter.admit("2001:db8:0:1::2".parse().expect("an address"), now), Ok(()));
    }
}
