//! What the links hold for visitors who do not take it, and streams on which nothing moves.
//!
//! Each answer that is still coming is known here. Once a second all are looked at: who
//! takes nothing for too long is cut off, and where nothing moves either way, the stream
//! is. Beyond a budget for each tunnel and one for all, whoever has taken nothing for longest
//! goes first: a window that was given while few streams were open cannot be taken back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use h2::FlowControl;
use tokio::sync::{Notify, watch};

use tunnel_model::TunnelId;

use crate::link::Patience;

/// Every answer that is coming.
#[derive(Default)]
pub(crate) struct Held {
    /// Seconds, counted once a second: a clock that costs nothing to read.
    now: AtomicU32,
    streams: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    next: u64,
    coming: HashMap<u64, Arc<Pace>>,
}

/// How many octets may be held.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) all: usize,
    pub(crate) tunnel: usize,
}

/// How one stream goes on.
pub(super) struct Pace {
    tunnel: TunnelId,
    /// Says how much is held, once there is an answer.
    flow: OnceLock<FlowControl>,
    /// Has the answer a known end?
    has_end: AtomicBool,
    patience: Patience,
    /// When an octet last moved, either way.
    moved: AtomicU32,
    /// When the visitor last took something.
    taken: AtomicU32,
    is_cut: AtomicBool,
    reader: Mutex<Option<Waker>>,
    /// For the one who sends the request's body.
    cut: Notify,
}

/// A stream's place among those that are looked at. Dropped, it is not any more.
pub(super) struct Watched {
    held: Arc<Held>,
    number: u64,
    pace: Arc<Pace>,
}

/// Seconds for answers without a known end when the server is to stop: it waits for no
/// event stream.
const LAST_WORDS: u64 = 10;
/// Whoever has just begun to wait is left alone.
const LEAST_STALL: u32 = 2;

impl Held {
    /// Looks after a stream from here on.
    pub(super) fn watch(self: &Arc<Self>, tunnel: TunnelId, patience: Patience) -> Watched {
        let now = self.now.load(Ordering::Relaxed);
        let pace = Arc::new(Pace {
            tunnel,
            flow: OnceLock::new(),
            has_end: AtomicBool::new(false),
            patience,
            moved: AtomicU32::new(now),
            taken: AtomicU32::new(now),
            is_cut: AtomicBool::new(false),
            reader: Mutex::default(),
            cut: Notify::new(),
        });
        let mut streams = self.streams();
        streams.next += 1;
        let number = streams.next;
        streams.coming.insert(number, Arc::clone(&pace));
        drop(streams);
        Watched { held: Arc::clone(self), number, pace }
    }

    /// Looks at all streams once a second, for ever. When the server is to stop, answers
    /// without an end have a little time.
    pub(crate) async fn keep(self: Arc<Self>, limits: Limits, idle: Duration, stopping: watch::Receiver<bool>) {
        let mut stopped = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let streams: Vec<Arc<Pace>> = self.streams().coming.values().cloned().collect();
            stopped += u64::from(*stopping.borrow());
            if stopped > LAST_WORDS {
                streams.iter().filter(|pace| !pace.has_end.load(Ordering::Relaxed)).for_each(|pace| pace.cut());
            }
            look(streams, now, limits, idle);
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts whoever is due.
fn look(streams: Vec<Arc<Pace>>, now: u32, limits: Limits, idle: Duration) {
    let mut stalled = Vec::new();
    // Strangers cause these lines: one a second, for all.
    let (mut visitors, mut left) = (0_usize, 0);
    for pace in streams {
        let octets = pace.flow.get().map_or(0, FlowControl::used_capacity);
        let waits = now.wrapping_sub(pace.taken.load(Ordering::Relaxed));
        if octets > 0 && u64::from(waits) > whole_seconds(pace.patience.stall) {
            (visitors, left) = (visitors + 1, left + octets);
            pace.leave();
        } else if octets == 0 && u64::from(now.wrapping_sub(pace.moved.load(Ordering::Relaxed))) > whole_seconds(idle) {
            tracing::debug!("nothing moves on an exchange for long");
            pace.cut();
        } else if octets > 0 {
            stalled.push(Stalled { tunnel: pace.tunnel, waits, octets, who: pace });
        } else {
            // Nothing waits: the visitor's time begins with the next octet.
            pace.taken.store(now, Ordering::Relaxed);
        }
    }
    if visitors > 0 {
        tracing::info!(visitors, octets = left, "visitors do not take their answers; closing");
    }
    let gone = beyond(limits, stalled);
    if let Some(one) = gone.first() {
        let octets: usize = gone.iter().map(|each| each.octets).sum();
        let (tunnel, visitors) = (one.tunnel, gone.len());
        tracing::warn!(visitors, octets, %tunnel, "too much waits for visitors: those who have waited longest go");
    }
    gone.iter().for_each(|each| each.who.leave());
}

/// A visitor for whom octets wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stalled<T> {
    tunnel: TunnelId,
    /// Since so many seconds.
    waits: u32,
    octets: usize,
    who: T,
}

/// Who has to go, so that what is held is within the limits again.
fn beyond<T>(limits: Limits, mut stalled: Vec<Stalled<T>>) -> Vec<Stalled<T>> {
    let (mut all, mut tunnels) = (0, HashMap::<_, usize>::new());
    for each in &stalled {
        all += each.octets;
        *tunnels.entry(each.tunnel).or_default() += each.octets;
    }
    if all <= limits.all && tunnels.values().all(|held| *held <= limits.tunnel) {
        return Vec::new();
    }
    stalled.retain(|each| each.waits >= LEAST_STALL);
    stalled.sort_unstable_by_key(|each| std::cmp::Reverse((each.waits, each.octets)));
    stalled.retain(|each| {
        let tunnel = tunnels.entry(each.tunnel).or_default();
        let goes = all > limits.all || *tunnel > limits.tunnel;
        if goes {
            all -= each.octets;
            *tunnel -= each.octets;
        }
        goes
    });
    stalled
}

fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Pace {
    /// Is it to end?
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Returns when it is to end.
    pub(super) async fn ended(&self) {
        self.cut.notified().await;
    }

    /// Who reads is told when it is to end.
    pub(super) fn waits(&self, cx: &Context<'_>) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if !reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
            *reader = Some(cx.waker().clone());
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
        self.cut.notify_one();
        if let Some(reader) = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take() {
            reader.wake();
        }
    }

    /// The visitor's connection ends: nobody reads there who could be told.
    fn leave(&self) {
        self.cut();
        self.patience.lost.notify_one();
    }
}

impl Watched {
    pub(super) fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// The answer has begun, and this says how much of it is held.
    pub(super) fn holds(&self, flow: FlowControl, has_end: bool) {
        self.pace.has_end.store(has_end, Ordering::Relaxed);
        // An answer begins once.
        let _ = self.pace.flow.set(flow);
    }

    /// The visitor has taken something.
    pub(super) fn taken(&self) {
        let now = self.held.now.load(Ordering::Relaxed);
        self.pace.moved.store(now, Ordering::Relaxed);
        self.pace.taken.store(now, Ordering::Relaxed);
    }

    /// What says that the visitor has sent something.
    pub(super) fn progress(&self) -> Progress {
        Progress { held: Arc::clone(&self.held), pace: Arc::clone(&self.pace) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.held.streams().coming.remove(&self.number);
        // Whoever still sends the request holds the stream: it is not reset before.
        self.pace.cut();
    }
}

/// Told of what moves towards the agent. Does not keep the stream.
#[derive(Clone)]
pub(super) struct Progress {
    held: Arc<Held>,
    pace: Arc<Pace>,
}

impl Progress {
    pub(super) fn made(&self) {
        self.pace.moved.store(self.held.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) async fn ended(&self) {
        self.pace.ended().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_longest_goes_until_each_limit_is_kept() {
        let tunnel = |number| TunnelId::from_bytes([number; 16]);
        let stalled = |who, number, waits, octets| Stalled { tunnel: tunnel(number), waits, octets, who };
        let gone = |all, tunnel, stalled: &[Stalled<&'static str>]| -> Vec<&'static str> {
            beyond(Limits { all, tunnel }, stalled.to_vec()).iter().map(|each| each.who).collect()
        };
        let some = [stalled("a", 1, 9, 40), stalled("b", 1, 5, 40), stalled("c", 2, 20, 40), stalled("d", 2, 1, 500)];
        assert_eq!(gone(1000, 1000, &some), Vec::<&str>::new());
        // One tunnel's are no matter of another one's, and who has just begun to wait stays.
        assert_eq!(gone(1000, 79, &some[..2]), ["a"]);
        assert_eq!(gone(1000, 100, &some), ["c"]);
        assert_eq!(gone(580, 1000, &some), ["c"]);
        assert_eq!(gone(579, 79, &some), ["c", "a"]);
        assert_eq!(gone(0, 0, &some), ["c", "a", "b"]);
    }
}
