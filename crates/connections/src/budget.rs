//! Octets that are held of peers, and who holds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::Place;

/// How much may be held at once.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// At most `limit` octets.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), limit }
    }

    /// Octets that are held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, octets: usize) -> bool {
        let taken = self.held.fetch_add(octets, Ordering::Relaxed) + octets <= self.limit;
        if !taken {
            self.give_back(octets);
        }
        taken
    }

    fn give_back(&self, octets: usize) {
        self.held.fetch_sub(octets, Ordering::Relaxed);
    }
}

/// A part of one or more budgets: the server's, the address's, the tunnel's.
/// Dropped, it is given back.
#[derive(Debug)]
pub struct Lease {
    budgets: Vec<Arc<Budget>>,
    octets: usize,
    /// Whose octets they are: who is held of keeps its place.
    _place: Option<Place>,
}

impl Lease {
    /// Nothing yet, of all of these.
    pub(crate) fn new(budgets: Vec<Arc<Budget>>, place: Option<Place>) -> Self {
        Self { budgets, octets: 0, _place: place }
    }

    /// Takes so much more of every budget, or nothing of any: then one is used up.
    #[must_use]
    pub fn grow(&mut self, octets: usize) -> bool {
        for (taken, budget) in self.budgets.iter().enumerate() {
            if !budget.take(octets) {
                self.budgets[..taken].iter().for_each(|budget| budget.give_back(octets));
                return false;
            }
        }
        self.octets += octets;
        true
    }

    /// The octets that the lease is for, as one value: the last copy of them
    /// gives it back, wherever that is.
    #[must_use]
    pub fn own(self, octets: Bytes) -> Bytes {
        if octets.is_empty() { octets } else { Bytes::from_owner(Owned { octets, _lease: self }) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budgets.iter().for_each(|budget| budget.give_back(self.octets));
    }
}

struct Owned {
    octets: Bytes,
    _lease: Lease,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_of_every_budget_or_of_none() {
        let (all, one) = (Arc::new(Budget::new(100)), Arc::new(Budget::new(30)));
        let mut lease = Lease::new(vec![Arc::clone(&all), Arc::clone(&one)], None);
        assert!(lease.grow(20));
        assert!(!lease.grow(20), "the second budget is smaller");
        assert_eq!((all.held(), one.held()), (20, 20));
        drop(lease);
        assert_eq!((all.held(), one.held()), (0, 0));
    }

    #[test]
    fn octets_keep_their_lease_until_the_last_copy_is_gone() {
        let budget = Arc::new(Budget::new(100));
        let mut lease = Lease::new(vec![Arc::clone(&budget)], None);
        assert!(lease.grow(4));
        let mut octets = lease.own(Bytes::from_static(b"body"));
        let part = octets.split_to(1);
        drop(octets);
        assert_eq!((budget.held(), &part[..]), (4, &b"b"[..]));
        drop(part);
        assert_eq!(budget.held(), 0);
    }
}
