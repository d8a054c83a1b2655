//! What the data plane counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use connections::Counts;

/// What is there now, and what there was since the start.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Connections, by what they are for.
    pub connections: Counts,
    /// Connections that found no place, since the start.
    pub refused: u64,
    /// Connections that could not be accepted, since the start: no descriptors are left.
    pub unaccepted: u64,
    /// Connections of agents that were let in.
    pub agents: usize,
    /// Requests, WebSockets and passthrough connections that have not ended.
    pub exchanges: usize,
    /// Requests that an application has answered, whatever it said.
    pub answered: u64,
    /// Requests that the edge has answered itself, by the word that its answer
    /// carries in `inkbox-reason`.
    pub failed: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    answered: AtomicU64,
    failed: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(crate) fn count_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_failure(&self, reason: &'static str) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> BTreeMap<&'static str, u64> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
