//! The end of a rotation's grace: for a while the certificate that was superseded may
//! fetch the bundle of its successor, and then no more.
//!
//! A proxy refuses whoever `crl.pem` names before the panel hears of it. What is in
//! grace is therefore not named there yet, if a proxy stands before the panel; the
//! panel itself refuses it from the first moment, but for that one request. When the
//! grace is over, the list names it, and nginx is told.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use store::Clock;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::directory::Directory;
use crate::error::Error;
use crate::panel::now;
use crate::reload;
use crate::state::{Edit, Grace, Serial, State};

/// How long after a rotation the old certificate may fetch the new bundle.
const LASTS: SignedDuration = SignedDuration::from_mins(10);
/// The clock may be set meanwhile: it is looked at as often.
const LOOKS: Duration = Duration::from_secs(30);

/// Ends graces when their time is over. The task ends when this is dropped.
pub(crate) struct Graces {
    changed: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Graces {
    /// Starts the task, which first looks at what an earlier one has left.
    pub(crate) fn start(directory: &Directory, is_proxied: bool, clock: Arc<dyn Clock>) -> Self {
        let changed = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        task.spawn(keep(directory.clone(), is_proxied, clock, Arc::clone(&changed)));
        Self { changed, _task: task }
    }

    /// Has the task look: there is a new grace.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }
}

/// What is left of a grace; nothing when it is over.
pub(crate) fn left(grace: &Grace, now: Timestamp) -> Option<SignedDuration> {
    // A clock that was ahead when it began does not make it longer.
    let lasted = now.duration_since(grace.since).abs();
    Some(LASTS - lasted).filter(|left| left.is_positive())
}

/// Serial numbers that `crl.pem` does not name yet.
pub(crate) fn withheld(state: &State, is_proxied: bool) -> &[Serial] {
    state.grace.as_ref().filter(|_| is_proxied).map_or(&[], |grace| &grace.serials)
}

/// What ends a grace, and tells the proxy.
pub(crate) fn end(is_proxied: bool) -> Result<Vec<Edit>, Error> {
    let mut edits = vec![Edit::EndGrace];
    if is_proxied {
        edits.extend([reload::mark()?, Edit::TellNginx]);
    }
    Ok(edits)
}

async fn keep(directory: Directory, is_proxied: bool, clock: Arc<dyn Clock>, changed: Arc<Notify>) {
    loop {
        let left = directory.state().grace.as_ref().map(|grace| left(grace, now(&*clock)));
        let Some(left) = left else {
            changed.notified().await;
            continue;
        };
        if left.is_none() {
            let now = now(&*clock);
            let ended = directory.change(move |state| {
                let is_over = state.grace.as_ref().is_some_and(|grace| self::left(grace, now).is_none());
                Ok((if is_over { end(is_proxied)? } else { Vec::new() }, ()))
            });
            match ended.await {
                Ok(()) => continue,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the end of a grace is not written yet");
                }
            }
        }
        let pause = left.and_then(|left| left.try_into().ok()).map_or(LOOKS, |left: Duration| left.min(LOOKS));
        let _ = tokio::time::timeout(pause, changed.notified()).await;
    }
}
