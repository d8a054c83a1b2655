//! Helpers for benches that compare: operations take turns in one run, so that
//! whatever else the machine does touches all of them alike.

use std::time::{Duration, Instant};

/// One operation and its median time.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was done.
    pub name: &'static str,
    /// The median of all rounds, for one operation.
    pub median: Duration,
}

impl Measured {
    /// Microseconds.
    pub fn micros(&self) -> f64 {
        self.median.as_secs_f64() * 1e6
    }
}

/// Runs every operation in turn, `rounds` times, a few dozen a round, and
/// gives the medians in the order of `operations`.
pub fn interleaved(rounds: usize, operations: &mut [(&'static str, &mut dyn FnMut())]) -> Vec<Measured> {
    const BATCH: u32 = 32;
    let mut times = vec![Vec::with_capacity(rounds); operations.len()];
    for _ in 0..rounds {
        for ((_, operation), times) in operations.iter_mut().zip(&mut times) {
            let started = Instant::now();
            for _ in 0..BATCH {
                operation();
            }
            times.push(started.elapsed() / BATCH);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let names = operations.iter().map(|(name, _)| *name);
    names.zip(times.iter_mut()).map(|(name, times)| Measured { name, median: median(times) }).collect()
}

/// The time under which `percent` of the sorted times lie.
pub fn percentile(sorted: &[Duration], percent: f64) -> Duration {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() as f64 - 1.0) * percent / 100.0).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}
