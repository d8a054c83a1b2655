//! How much may be sent ahead on a stream of the native wire.
//!
//! HTTP/2 gives a connection one window for all streams, and a reader who takes nothing
//! would close it for the others. So that window is as wide as it can be, and what is
//! held is bounded by the streams' own: a budget, divided by those that are open.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The window of the connection, which is never the limit (RFC 9113 section 6.9.1).
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The most that one stream may send ahead: a long path is filled with it.
const LARGEST: u32 = 16 * 1024 * 1024;
/// The least: what HTTP/2 begins with.
const SMALLEST: u32 = 64 * 1024;

/// The window of the streams of one connection (`SETTINGS_INITIAL_WINDOW_SIZE`).
///
/// ```
/// let windows = agent_proto::Windows::new(64 * 1024 * 1024);
/// assert!(!windows.opened(), "one stream has as much as none");
/// assert_eq!(windows.wanted(windows.widest()), 16 * 1024 * 1024);
/// ```
#[derive(Debug)]
pub struct Windows {
    /// Octets that all streams together may send ahead.
    budget: u32,
    open: AtomicUsize,
}

impl Windows {
    /// None is open, and `budget` octets may be sent ahead on all together.
    pub fn new(budget: u32) -> Self {
        Self { budget, open: AtomicUsize::new(0) }
    }

    /// What a stream that is alone may send ahead.
    pub fn widest(&self) -> u32 {
        self.of(1)
    }

    /// What a stream may send ahead when `open` of them are there. Powers of two, so that
    /// it is seldom changed.
    fn of(&self, open: usize) -> u32 {
        let open = u32::try_from(open.max(1).next_power_of_two()).unwrap_or(u32::MAX);
        (self.budget / open).clamp(SMALLEST, LARGEST)
    }

    /// One stream more. Answers whether the window is smaller now.
    pub fn opened(&self) -> bool {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        self.of(before + 1) < self.of(before)
    }

    /// One stream less.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Streams that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// What the window should be, if it is `now`: at once less, and more only when half of
    /// the streams have gone.
    pub fn wanted(&self, now: u32) -> u32 {
        let open = self.open();
        let least = self.of(open);
        if least < now { least } else { self.of(open * 2).max(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_alone_has_much_and_a_thousand_have_their_share() {
        let windows = Windows::new(64 * 1024 * 1024);
        let mib = 1024 * 1024;
        for (open, window) in [(0, 16 * mib), (1, 16 * mib), (4, 16 * mib), (5, 8 * mib), (32, 2 * mib)] {
            assert_eq!(windows.of(open), window, "{open}");
        }
        assert_eq!([1000, 4096, usize::MAX / 2].map(|open| windows.of(open)), [SMALLEST; 3]);
    }

    #[test]
    fn it_is_less_at_once_and_more_when_half_have_gone() {
        let windows = Windows::new(64 * 1024 * 1024);
        let told: Vec<usize> = (1..=100).filter(|_| windows.opened()).collect();
        assert_eq!(told, [5, 9, 17, 33, 65]);
        assert_eq!(windows.wanted(LARGEST), 512 * 1024);
        (0..40).for_each(|_| windows.closed());
        assert_eq!(windows.wanted(512 * 1024), 512 * 1024, "60 are open: it could be more, but not for long");
        (0..40).for_each(|_| windows.closed());
        assert_eq!(windows.wanted(512 * 1024), 1024 * 1024, "20 are open");
    }
}
