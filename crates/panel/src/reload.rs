//! Telling nginx that it must load files again, whatever becomes of who asked.
//!
//! A change that nginx must hear of writes a mark into the directory with it. A
//! task tells nginx and takes the mark away. Whoever asked may wait for what
//! nginx said, and may as well have gone; after a kill the next start finds the
//! mark and makes up for it.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::directory::{Directory, Paths};
use crate::error::Error;
use crate::programs::{Nginx, Programs};
use crate::secret::random;
use crate::state::{Edit, Mode};

/// The task that tells nginx. It ends when this is dropped.
pub(crate) struct Reloads {
    wanted: watch::Receiver<u64>,
    told: watch::Receiver<Told>,
    _task: JoinSet<()>,
}

/// What nginx said last, and to how many of the changes that it had to hear of.
#[derive(Clone, Copy)]
struct Told {
    changes: u64,
    nginx: Nginx,
}

/// While it is there nginx has not been told of everything. Its content is of
/// no meaning but for being another one each time.
const MARK: &str = ".nginx-reload";

/// nginx reads `crl.pem` at a reload only, and refuses everybody when its copy has run out, which
/// is a year after. The list is renewed every day; to tell nginx so often is not needed.
const CRL: &str = ".nginx-crl";
const TELLS_OF_CRL: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What tells nginx of a renewed list, if that is due.
pub(crate) fn of_renewed_crl(paths: &Paths, now: Timestamp) -> Result<Vec<Edit>, Error> {
    let told = std::fs::read_to_string(paths.at(CRL)).ok().and_then(|text| text.trim().parse::<Timestamp>().ok());
    // A clock that was ahead when nginx was told does not put the next time off.
    if told.is_some_and(|told| now.duration_since(told).abs() < TELLS_OF_CRL) {
        return Ok(Vec::new());
    }
    let told = Zeroizing::new(format!("{now}\n").into_bytes());
    Ok(vec![mark()?, Edit::Put(CRL.into(), told, Mode::Owner), Edit::TellNginx])
}

/// Leaves the mark.
pub(crate) fn mark() -> Result<Edit, Error> {
    let content = base16ct::lower::encode_string(&random::<8>()?).into_bytes();
    Ok(Edit::Put(MARK.into(), Zeroizing::new(content), Mode::Owner))
}

/// The mark, for who tells nginx in the task's place.
pub(crate) fn path(paths: &Paths) -> PathBuf {
    paths.at(MARK)
}

impl Reloads {
    /// Starts the task, which first makes up for what an earlier one has left.
    pub(crate) fn start(directory: &Directory, programs: Arc<Programs>) -> Self {
        let wanted = directory.reloads();
        let (telling, told) = watch::channel(Told { changes: 0, nginx: Nginx::Reloaded });
        let mut task = JoinSet::new();
        task.spawn(tell(directory.clone(), programs, wanted.clone(), telling));
        Self { wanted, told, _task: task }
    }

    /// Waits until nginx has been told of all that is done; what did it say?
    pub(crate) async fn told(&self) -> Nginx {
        let changes = *self.wanted.borrow();
        let told = self.told.clone().wait_for(|told| told.changes >= changes).await.map(|told| told.nginx);
        // The task is gone with the runtime, which is stopping.
        told.unwrap_or(Nginx::ReloadFailed)
    }
}

async fn tell(
    directory: Directory,
    programs: Arc<Programs>,
    mut wanted: watch::Receiver<u64>,
    telling: watch::Sender<Told>,
) {
    loop {
        let changes = *wanted.borrow_and_update();
        let before = telling.borrow().changes;
        let mark = std::fs::read(path(directory.paths())).ok();
        if mark.is_some() || changes > before {
            let nginx = programs.reload_nginx().await;
            if let (Nginx::Reloaded, Some(mark)) = (nginx, mark) {
                forget(&directory, mark).await;
            }
            telling.send_replace(Told { changes, nginx });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// Takes the mark away, unless it is of a change that came meanwhile.
async fn forget(directory: &Directory, mark: Vec<u8>) {
    let path = path(directory.paths());
    let forgotten = directory.change(move |_| {
        let is_same = std::fs::read(path).is_ok_and(|now| now == mark);
        Ok((if is_same { vec![Edit::Remove(MARK.into())] } else { Vec::new() }, ()))
    });
    if let Err(error) = forgotten.await {
        tracing::warn!(error = &error as &dyn std::error::Error, "nginx will be told again at the next start");
    }
}
