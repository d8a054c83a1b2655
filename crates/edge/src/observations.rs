//! When agents came and went, until it is written down.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tunnel_model::{Timestamp, TunnelId};

/// What is not written down yet: of each tunnel the last that is worth it, so
/// that agents which come and go faster than the disk make no queue.
#[derive(Default)]
pub(crate) struct Observations {
    state: Mutex<State>,
    added: Notify,
}

#[derive(Default)]
struct State {
    waiting: HashMap<TunnelId, Observed>,
    /// Whose turn it is; each is there once.
    turns: VecDeque<TunnelId>,
    is_writing: bool,
}

/// What happened to one tunnel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Observed {
    /// From where an agent came last, and when.
    pub(crate) hello: Option<(IpAddr, Timestamp)>,
    /// When the last one left, after that.
    pub(crate) goodbye: Option<Timestamp>,
}

impl Observations {
    /// An agent came.
    pub(crate) fn hello(&self, tunnel: TunnelId, ip: IpAddr, at: Timestamp) {
        self.observe(tunnel, |observed| *observed = Observed { hello: Some((ip, at)), goodbye: None });
    }

    /// The last agent left.
    pub(crate) fn goodbye(&self, tunnel: TunnelId, at: Timestamp) {
        self.observe(tunnel, |observed| observed.goodbye = Some(at));
    }

    /// The next to be written down, when there is one.
    pub(crate) async fn next(&self) -> (TunnelId, Observed) {
        loop {
            {
                let mut state = self.state();
                let next = state.turns.pop_front();
                if let Some((tunnel, observed)) = next.and_then(|id| state.waiting.remove_entry(&id)) {
                    state.is_writing = true;
                    return (tunnel, observed);
                }
            }
            // One waits, and what came before is remembered.
            self.added.notified().await;
        }
    }

    /// What was taken last is written down, or cannot be.
    pub(crate) fn recorded(&self) {
        self.state().is_writing = false;
    }

    /// Is nothing left to be written down?
    pub(crate) fn are_recorded(&self) -> bool {
        let state = self.state();
        state.waiting.is_empty() && !state.is_writing
    }

    fn observe(&self, tunnel: TunnelId, change: impl FnOnce(&mut Observed)) {
        let mut state = self.state();
        if !state.waiting.contains_key(&tunnel) {
            state.turns.push_back(tunnel);
        }
        change(state.waiting.entry(tunnel).or_default());
        drop(state);
        self.added.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tunnel_that_flaps_waits_once_and_with_its_own_times() {
        let observations = Observations::default();
        let (flapping, other) = (TunnelId::from_bytes([1; 16]), TunnelId::from_bytes([2; 16]));
        let (ip, at) = (IpAddr::from([192, 0, 2, 1]), Timestamp::from_micros);
        for micros in 0..10_000 {
            observations.hello(flapping, ip, at(2 * micros));
            observations.goodbye(flapping, at(2 * micros + 1));
        }
        observations.goodbye(other, at(7));
        assert_eq!(observations.state().turns.len(), 2);
        let last = Observed { hello: Some((ip, at(19_998))), goodbye: Some(at(19_999)) };
        assert_eq!(observations.next().await, (flapping, last));
        assert_eq!(observations.next().await, (other, Observed { hello: None, goodbye: Some(at(7)) }));
        assert!(!observations.are_recorded(), "the last one is being written");
        observations.recorded();
        assert!(observations.are_recorded());
    }
}
