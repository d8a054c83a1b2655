//! What has been answered, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Outcome, Transport};

/// What a server has done since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages that came in datagrams.
    pub udp: u64,
    /// Messages that came in streams.
    pub tcp: u64,
    /// [`Outcome::Answered`]
    pub answered: u64,
    /// [`Outcome::Ignored`]
    pub ignored: u64,
    /// [`Outcome::Malformed`]
    pub malformed: u64,
    /// [`Outcome::NotImplemented`]
    pub not_implemented: u64,
    /// [`Outcome::Refused`]
    pub refused: u64,
    /// [`Outcome::Truncated`]
    pub truncated: u64,
    /// Queries that got no answer, because their network had too many.
    pub limited: u64,
    /// Queries that got "ask again by TCP" instead, for the same reason.
    pub slipped: u64,
    /// Answers that the system would not take.
    pub unsent: u64,
    /// Connections that are open now.
    pub connections: u64,
    /// Connections that found no place.
    pub connections_refused: u64,
}

/// [`Stats`], while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    udp: AtomicU64,
    tcp: AtomicU64,
    answered: AtomicU64,
    ignored: AtomicU64,
    malformed: AtomicU64,
    not_implemented: AtomicU64,
    refused: AtomicU64,
    truncated: AtomicU64,
    limited: AtomicU64,
    slipped: AtomicU64,
    unsent: AtomicU64,
}

impl Counters {
    pub(crate) fn count_message(&self, transport: Transport) {
        count(match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
        });
    }

    pub(crate) fn count_outcome(&self, outcome: Outcome) {
        count(match outcome {
            Outcome::Answered => &self.answered,
            Outcome::Ignored => &self.ignored,
            Outcome::Malformed => &self.malformed,
            Outcome::NotImplemented => &self.not_implemented,
            Outcome::Refused => &self.refused,
            Outcome::Truncated => &self.truncated,
        });
    }

    pub(crate) fn count_limited(&self) {
        count(&self.limited);
    }

    pub(crate) fn count_slipped(&self) {
        count(&self.slipped);
    }

    pub(crate) fn count_unsent(&self) {
        count(&self.unsent);
    }

    pub(crate) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            udp: read(&self.udp),
            tcp: read(&self.tcp),
            answered: read(&self.answered),
            ignored: read(&self.ignored),
            malformed: read(&self.malformed),
            not_implemented: read(&self.not_implemented),
            refused: read(&self.refused),
            truncated: read(&self.truncated),
            limited: read(&self.limited),
            slipped: read(&self.slipped),
            unsent: read(&self.unsent),
            ..Stats::default()
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
