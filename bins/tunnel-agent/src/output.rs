//! What is told while the tunnel serves. Nobody may read it: a pipe that is full, a
//! terminal after Ctrl-S. So a thread of its own writes, from a queue with an end; what
//! does not fit is counted, and told of when there is room.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Where lines go.
#[derive(Clone)]
pub(crate) struct Output {
    /// None is the end of what is to be said.
    lines: SyncSender<Option<Line>>,
    /// Lines that did not fit, since it was last told.
    missed: Arc<AtomicU64>,
    done: Arc<Mutex<Receiver<()>>>,
}

/// The stream of a line, and the line.
pub(crate) type Line = (Stream, Vec<u8>);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stream {
    Stderr,
    Stdout,
}

/// Lines that wait.
const QUEUE: usize = 1024;
/// How long the last ones may take.
const LAST: Duration = Duration::from_secs(1);

impl Output {
    /// Lines for this process's own streams; `missed` makes the line that tells how many
    /// were not shown.
    pub(crate) fn start(missed: impl Fn(u64) -> Line + Send + 'static) -> Self {
        Self::write_with(missed, |(stream, line)| {
            // Whoever listens may have gone; the tunnel goes on.
            let _ = match stream {
                Stream::Stderr => io::stderr().write_all(&line),
                Stream::Stdout => io::stdout().write_all(&line).and_then(|()| io::stdout().flush()),
            };
        })
    }

    fn write_with(missed: impl Fn(u64) -> Line + Send + 'static, write: impl Fn(Line) + Send + 'static) -> Self {
        let (lines, waiting) = sync_channel::<Option<Line>>(QUEUE);
        let (ended, done) = sync_channel(1);
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            while let Ok(Some(line)) = waiting.recv() {
                write(line);
                match counted.swap(0, Ordering::Relaxed) {
                    0 => {}
                    count => write(missed(count)),
                }
            }
            // Nobody may wait for it.
            let _ = ended.send(());
        });
        Self { lines, missed: count, done: Arc::new(Mutex::new(done)) }
    }

    /// Says a line, or counts it.
    pub(crate) fn say(&self, stream: Stream, line: Vec<u8>) {
        if self.lines.try_send(Some((stream, line))).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything is said, if somebody listens.
    pub(crate) fn finish(&self) {
        let end = Instant::now() + LAST;
        while let Err(TrySendError::Full(_)) = self.lines.try_send(None) {
            if Instant::now() >= end {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Ok(done) = self.done.lock() {
            let _ = done.recv_timeout(LAST);
        }
    }
}

/// The log goes the same way.
impl<'a> MakeWriter<'a> for Output {
    type Writer = Log<'a>;

    fn make_writer(&'a self) -> Log<'a> {
        Log(self, Vec::new())
    }
}

/// One event of the log.
pub(crate) struct Log<'a>(&'a Output, Vec<u8>);

impl Write for Log<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Log<'_> {
    fn drop(&mut self) {
        self.0.say(Stream::Stderr, std::mem::take(&mut self.1));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn missed(count: u64) -> Line {
        (Stream::Stderr, format!("{count} missed").into_bytes())
    }

    #[test]
    fn telling_never_waits_and_what_is_not_shown_is_counted() {
        let (stuck, written) = (channel::<()>(), channel());
        let output = Output::write_with(missed, move |line| {
            // Nobody reads until the other end is dropped.
            let _ = stuck.1.recv();
            written.0.send(line).expect("the test listens");
        });
        let lines = QUEUE * 2;
        for number in 0..lines {
            output.say(Stream::Stdout, format!("line {number}").into_bytes());
        }
        drop(stuck.0);
        output.finish();
        output.finish();
        let written: Vec<_> = written.1.try_iter().map(|(_, line)| String::from_utf8(line).expect("text")).collect();
        assert_eq!(written[0], "line 0");
        let told: u64 = written.iter().filter_map(|line| line.strip_suffix(" missed")?.parse::<u64>().ok()).sum();
        let shown = written.iter().filter(|line| line.starts_with("line ")).count();
        assert_eq!(shown as u64 + told, lines as u64);
        assert!(told >= QUEUE as u64 - 1, "{told}");
    }
}
