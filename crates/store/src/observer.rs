//! Who hears of what was committed.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use tunnel_model::Event;

/// Hears of what was committed: who carries traffic has to know of a revocation
/// whether or not anybody still waits for its answer.
pub trait Observer: Send + Sync {
    /// These events of one command are durable. Called in the order of the commits and
    /// before the command is answered, on the thread that writes: it must be quick,
    /// and must not ask the store.
    fn committed(&self, events: &[Event]);
}

/// Those who want to hear of what a backend commits.
#[derive(Default)]
pub(crate) struct Observers(RwLock<Vec<Arc<dyn Observer>>>);

impl Observers {
    pub(crate) fn add(&self, observer: Arc<dyn Observer>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    pub(crate) fn tell(&self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        for observer in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            // The others are to hear of it all the same, and those who wait for their answer.
            let told = catch_unwind(AssertUnwindSafe(|| observer.committed(events)));
            if told.is_err() {
                tracing::error!("an observer of the store panicked");
            }
        }
    }
}

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observers(..)")
    }
}
