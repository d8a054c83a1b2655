//! The directory, changed all or nothing.
//!
//! One thread writes. A change is decided on the state as it stands, put aside
//! file by file in `.staging`, and becomes true with the rename of one record,
//! `.intent`, that says what is to be moved where. Whoever finds a record
//! finishes what it says: this program after a crash, or `reset-admin`. An
//! answer is given when all is in its place and on disk.
//!
//! Other programs write here too, when the lock `.lock` is free, so that before
//! every use the files are looked at: what has another stamp is read again.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use pki_core::Certificate;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::files;
use crate::setup::{SERVER_CERTIFICATE, SERVER_KEY};
use crate::state::{Admin, Config, Edit, Grace, Malformed, Mode, Revoked, Serial, State, Touched};

/// Makes `crl.pem` of the revocations, to take the place of the one that is there.
pub(crate) type MakeCrl = dyn Fn(&State, Option<&[u8]>) -> Result<String, Error> + Send + Sync;

/// The directory of one panel. Clones are the same directory.
#[derive(Clone)]
pub(crate) struct Directory {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    reloads: watch::Receiver<u64>,
}

struct Shared {
    paths: Paths,
    current: RwLock<Current>,
}

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The directory.
    pub(crate) root: PathBuf,
    /// `panel.json`, which may lie elsewhere.
    pub(crate) config: PathBuf,
}

impl Paths {
    /// Of a directory and its `panel.json`. What is written down for a change that is under way
    /// must not depend on where a program was started, so that both are absolute.
    pub(crate) fn new(root: &Path, config: &Path) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { root: absolute(root), config: absolute(config) }
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }
}

#[derive(Clone)]
struct Current {
    state: State,
    stamps: Stamps,
}

/// What is decided on a state: changes and what to answer.
type Decision = Box<dyn FnOnce(&State) -> Result<Decided, Refused> + Send>;
/// Called when the changes are on disk, or could not get there.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;
type Refused = Box<dyn FnOnce() + Send>;

struct Decided {
    edits: Vec<Edit>,
    answer: Answer,
}

struct Job(Decision);

/// Changes that share one commit; bounds how long the first one waits.
const GROUP: usize = 64;
/// Changes that wait for the writer before callers wait for a place.
const QUEUE: usize = 256;

impl Directory {
    /// Opens a directory: finishes what was interrupted and reads the lists.
    ///
    /// `keys` are those of certificates that were issued before.
    pub(crate) fn open(
        paths: Paths,
        keys: Vec<(Serial, [u8; 32])>,
        make_crl: Box<MakeCrl>,
        step: files::Step,
    ) -> io::Result<Self> {
        let files = files(&paths, step);
        let lock = files.lock()?;
        files.recover()?;
        let current = Current { stamps: Stamps::of(&paths), state: read_state(&paths, keys) };
        let shared = Arc::new(Shared { paths, current: RwLock::new(current) });
        drop(lock);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (telling, reloads) = watch::channel(0);
        let writer = Writer { shared: Arc::clone(&shared), files, make_crl, reloads: telling };
        std::thread::Builder::new().name("panel-writer".to_owned()).spawn(move || writer.run(queue))?;
        Ok(Self { shared, jobs, reloads })
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.shared.paths
    }

    /// How many changes there were that nginx must hear of, since this was opened.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.clone()
    }

    /// The state as the files have it now.
    pub(crate) fn state(&self) -> Snapshot<'_> {
        if files::is_promised(&self.shared.paths.root) {
            // Most often it is our own and nearly done. If `reset-admin` was killed there, this has
            // the writer look. A full queue means that it will.
            let _ = self.jobs.try_send(Job(Box::new(|_| Err(Box::new(|| {})))));
        }
        self.shared.refresh();
        Snapshot(self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Can every list be read, and a file be written?
    pub(crate) async fn check(&self) -> Result<(), Error> {
        {
            let state = self.state();
            state.agents()?;
            readable(&state.tokens)?;
            state.revoked()?;
            state.config()?;
        }
        // Taken by the writer in its turn, so that it holds the lock.
        let probe = self.paths().at(PROBE);
        self.change(move |_| {
            let written = fs::write(&probe, "").and_then(|()| fs::remove_file(&probe));
            let written = written.map_err(|error| Error::internal(malformed(&probe, &error)));
            written.map(|()| (Vec::new(), ()))
        })
        .await
    }

    /// Decides a change that nobody waits for. A full queue drops it.
    pub(crate) fn try_change(&self, decide: impl FnOnce(&State) -> Vec<Edit> + Send + 'static) {
        let decide = |state: &State| Ok(Decided { edits: decide(state), answer: Box::new(|_| {}) });
        let _ = self.jobs.try_send(Job(Box::new(decide)));
    }

    /// Decides a change on the state and answers when it is on disk. A caller who
    /// has gone before its turn changes nothing.
    ///
    /// # Errors
    ///
    /// What `decide` says, which changes nothing; [`Error::Internal`] when the
    /// change could not be written: then all of it is done at the next start,
    /// or nothing.
    pub(crate) async fn change<T, F>(&self, decide: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> Result<(Vec<Edit>, T), Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Job(Box::new(move |state| {
            if reply.is_closed() {
                // Nobody would hear of it: a new password, for one, would be lost with the old key.
                return Err(Box::new(|| {}));
            }
            // Whoever goes after this may miss the answer; what was decided stands.
            match decide(state) {
                Ok((edits, value)) => Ok(Decided {
                    edits,
                    answer: Box::new(move |written| {
                        let _ = reply.send(written.map(|()| value));
                    }),
                }),
                Err(error) => Err(Box::new(move || {
                    let _ = reply.send(Err(error));
                })),
            }
        }));
        let stopped = || Error::internal("the directory's writer panicked, or is gone");
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// The files of a directory, for whoever holds its lock.
pub(crate) fn files(paths: &Paths, step: files::Step) -> files::Files {
    // The port's pair has another way in, which may be killed as well.
    let names = [REGISTRY, REVOKED, TOKENS, CRL, SERVER_CERTIFICATE, SERVER_KEY];
    let mut lists: Vec<_> = names.into_iter().map(|name| paths.at(name)).collect();
    lists.push(paths.config.clone());
    files::Files::new(paths.root.clone(), lists, step)
}

/// The state, held still while it is looked at. Not to be kept across an await.
pub(crate) struct Snapshot<'a>(RwLockReadGuard<'a, Current>);

impl std::ops::Deref for Snapshot<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0.state
    }
}

impl Shared {
    fn refresh(&self) {
        let stamps = Stamps::of(&self.paths);
        let is_current = self.current.read().unwrap_or_else(PoisonError::into_inner).stamps == stamps;
        if !is_current {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            current.read_again(&self.paths);
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    files: files::Files,
    make_crl: Box<MakeCrl>,
    reloads: watch::Sender<u64>,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            // Whoever panics takes its group along, and not the panel. What was promised on disk
            // is finished before the next change.
            if catch_unwind(AssertUnwindSafe(|| self.group(job, &mut queue))).is_err() {
                tracing::error!("a change of the panel's directory panicked");
            }
        }
    }

    /// Decides the jobs that wait, writes them together, and answers each.
    ///
    /// A change that writes files ends its group: of two rotations both sets of files
    /// are to exist, one after the other, and what is made is not removed in one go.
    fn group(&self, first: Job, queue: &mut mpsc::Receiver<Job>) {
        let locked = self.files.lock().and_then(|lock| {
            if self.files.recover()? {
                // Whoever made the change may have died before nginx heard of it.
                self.reloads.send_modify(|reloads| *reloads += 1);
            }
            Ok(lock)
        });
        self.shared.refresh();
        let Current { mut state, mut stamps } =
            self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut edits, mut answers, mut refusals) = (Vec::new(), Vec::new(), Vec::new());
        let mut touched = Touched::default();
        let mut next = Some(first);
        while let Some(Job(decide)) = next.take() {
            match decide(&state) {
                Err(refuse) => refusals.push(refuse),
                Ok(decided) => match decided.edits.iter().try_for_each(|edit| state.apply(edit, &mut touched)) {
                    Ok(()) => {
                        edits.extend(decided.edits);
                        answers.push(decided.answer);
                    }
                    // Deciding needs the lists that applying needs.
                    Err(malformed) => (decided.answer)(Err(malformed.into())),
                },
            }
            if answers.len() + refusals.len() < GROUP && !edits.iter().any(Edit::writes_file) {
                next = queue.try_recv().ok();
            }
        }
        let written = locked.map_err(Error::internal).and_then(|lock| {
            write(&self.files, &self.shared.paths, &self.make_crl, &state, &edits, touched)?;
            Ok(lock)
        });
        if written.is_ok() && !edits.is_empty() {
            // Only what was written here is known to be as it is here. The stamps of the other
            // files are those of their content, so that what others wrote meanwhile is read.
            stamps.renew(&self.shared.paths, touched);
            *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = Current { state, stamps };
            if edits.iter().any(|edit| matches!(edit, Edit::TellNginx)) {
                self.reloads.send_modify(|reloads| *reloads += 1);
            }
        }
        refusals.into_iter().for_each(|refuse| refuse());
        for answer in answers {
            answer(match &written {
                Ok(_) => Ok(()),
                Err(error) => Err(error.clone()),
            });
        }
    }
}

/// Writes what edits have changed, all or nothing. The lock is the caller's to hold.
pub(crate) fn write(
    files: &files::Files,
    paths: &Paths,
    make_crl: &MakeCrl,
    state: &State,
    edits: &[Edit],
    touched: Touched,
) -> Result<(), Error> {
    let mut change = files::Change::default();
    // Revocations come first: whoever reads between two renames sees no more than before.
    if touched.revoked {
        let revoked = state.revoked()?;
        change.write(paths.at(REVOKED), pretty(revoked)?, 0o600);
    }
    if touched.crl {
        // To revoke matters more than that the list counts on: then its number follows the clock.
        let before = read(&paths.at(CRL)).unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "{CRL} is made anew");
            None
        });
        match make_crl(state, before.as_deref()) {
            Ok(crl) => change.write(paths.at(CRL), Zeroizing::new(crl.into_bytes()), 0o644),
            // To revoke matters more than to tell those who read lists.
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot sign {CRL}"),
        }
    }
    // A token that is used has nobody yet, rather than that an agent is there and its token good.
    if touched.tokens {
        change.write(paths.at(TOKENS), pretty(readable(&state.tokens)?)?, 0o600);
    }
    if touched.agents {
        change.write(paths.at(REGISTRY), pretty(readable(&state.agents)?)?, 0o600);
    }
    if touched.config {
        let mode = fs::metadata(&paths.config).map_or(0o640, |metadata| metadata.permissions().mode() & 0o777);
        change.write(paths.config.clone(), pretty(state.config()?.document())?, mode);
    }
    if touched.grace {
        match &state.grace {
            Some(grace) => change.write(paths.at(GRACE), pretty(grace)?, 0o600),
            None => change.remove(paths.at(GRACE)),
        }
    }
    for edit in edits {
        match edit {
            Edit::Put(path, content, mode) => change.write(paths.at(path), content.clone(), bits(*mode)),
            Edit::PutDirectory(path, content) => {
                let content = content.iter().map(|(name, content, mode)| (*name, content.clone(), bits(*mode)));
                change.write_directory(paths.at(path), content.collect());
            }
            Edit::Remove(path) => change.remove(paths.at(path)),
            _ => {}
        }
    }
    files.commit(&change).map_err(Error::internal)
}

pub(crate) fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Owner => 0o600,
        Mode::World => 0o644,
    }
}

/// JSON as the files have it: two blanks deep, with a final newline.
fn pretty(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut text = serde_json::to_vec_pretty(value).map_err(Error::internal)?;
    text.push(b'\n');
    Ok(Zeroizing::new(text))
}

fn readable<T>(part: &Result<T, Malformed>) -> Result<&T, Malformed> {
    part.as_ref().map_err(Clone::clone)
}

pub(crate) const REGISTRY: &str = "agents/registry.json";
pub(crate) const REVOKED: &str = "revoked.json";
pub(crate) const TOKENS: &str = "enrollment-tokens.json";
/// Is there for a moment, to see that a file can be.
const PROBE: &str = ".probe";
/// Ours alone; whoever does not know it has no grace.
pub(crate) const GRACE: &str = ".grace.json";
pub(crate) const CRL: &str = "crl.pem";
pub(crate) const CA_CERTIFICATE: &str = "ca.crt";
pub(crate) const CA_KEY: &str = "ca.key";
pub(crate) const CLIENT_CERTIFICATE: &str = "client.crt";
pub(crate) const CLIENT_KEY: &str = "client.key";
pub(crate) const CLIENT_P12: &str = "client.p12";
pub(crate) const P12_PASSWORD: &str = ".p12-password";

/// The most octets of a list or a configuration that are read.
const MAX_LIST: u64 = 64 * 1024 * 1024;

/// Reads all lists; what is wrong with one is kept in its place.
pub(crate) fn read_state(paths: &Paths, keys: Vec<(Serial, [u8; 32])>) -> State {
    State {
        agents: read_list(&paths.at(REGISTRY)),
        tokens: read_list(&paths.at(TOKENS)),
        revoked: read_list(&paths.at(REVOKED)).map(Revoked::indexed),
        config: read_config(&paths.config),
        admin: read_admin(&paths.at(CLIENT_CERTIFICATE)),
        grace: read_grace(&paths.at(GRACE)),
        superseded: Vec::new(),
        keys,
    }
}

impl Current {
    /// Reads what has changed. The stamps are taken first: a file that changes
    /// while it is read differs from its stamp and is read once more.
    fn read_again(&mut self, paths: &Paths) {
        let now = Stamps::of(paths);
        let (before, state) = (&self.stamps, &mut self.state);
        if before.agents != now.agents {
            state.agents = read_list(&paths.at(REGISTRY));
        }
        if before.tokens != now.tokens {
            state.tokens = read_list(&paths.at(TOKENS));
        }
        if before.revoked != now.revoked {
            state.revoked = read_list(&paths.at(REVOKED)).map(Revoked::indexed);
        }
        if before.config != now.config {
            state.config = read_config(&paths.config);
        }
        if before.admin != now.admin {
            state.admin = read_admin(&paths.at(CLIENT_CERTIFICATE));
            state.superseded.clear();
        }
        if before.grace != now.grace {
            state.grace = read_grace(&paths.at(GRACE));
        }
        for malformed in [state.agents.as_ref().err(), state.tokens.as_ref().err(), state.revoked.as_ref().err()]
            .into_iter()
            .chain([state.config.as_ref().err()])
            .flatten()
        {
            tracing::error!(
                error = malformed as &dyn std::error::Error,
                "what needs this file fails until it is mended"
            );
        }
        self.stamps = now;
    }
}

/// A list that is not there is empty; anything else is as it should be, or an error.
fn read_list<T: Default + for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Malformed> {
    match read(path)? {
        Some(text) => serde_json::from_slice(&text).map_err(|error| malformed(path, &place(&error))),
        None => Ok(T::default()),
    }
}

fn read_config(path: &Path) -> Result<Config, Malformed> {
    let text = read(path)?.ok_or_else(|| malformed(path, &"it is not there"))?;
    Config::parse(&text).map_err(|error| malformed(path, &place(&error)))
}

/// Where JSON is wrong. What stands there may be a secret and is not told.
fn place(error: &serde_json::Error) -> String {
    let what = if error.is_data() { "it has not the shape that it should have" } else { "it is not JSON" };
    match error.line() {
        0 => what.to_owned(),
        line => format!("{what}, at line {line}, column {}", error.column()),
    }
}

/// None of it is not an error: then no certificate is the admin's current one.
fn read_admin(path: &Path) -> Option<Admin> {
    let certificates = pki_core::certificates_from_pem(&read(path).ok()??).ok()?;
    let certificate = Certificate::from_der(certificates.first()?).ok()?;
    Some(Admin { serial: Serial::from_octets(certificate.serial()), key: Sha256::digest(certificate.spki()).into() })
}

/// One that cannot be read is none: then superseded certificates are refused.
fn read_grace(path: &Path) -> Option<Grace> {
    let grace = read_list(path);
    grace.unwrap_or_else(|error: Malformed| {
        tracing::warn!(error = &error as &dyn std::error::Error, "superseded certificates are refused");
        None
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Malformed> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_LIST => Err(malformed(path, &"it is too large")),
        Ok(_) => fs::read(path).map(Some).map_err(|error| malformed(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(malformed(path, &error)),
    }
}

fn malformed(path: &Path, reason: &dyn std::fmt::Display) -> Malformed {
    Malformed { path: path.to_owned(), reason: reason.to_string().into() }
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Stamp(Option<(u64, u64, i64, i64, u64)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Self {
        let stamp = |metadata: fs::Metadata| {
            (
                metadata.dev(),
                metadata.ino(),
                metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
                metadata.len(),
            )
        };
        Self(fs::metadata(path).ok().map(stamp))
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamps {
    agents: Stamp,
    tokens: Stamp,
    revoked: Stamp,
    config: Stamp,
    grace: Stamp,
    admin: Stamp,
}

impl Stamps {
    fn renew(&mut self, paths: &Paths, touched: Touched) {
        let now = Self::of(paths);
        let renewed = [
            (touched.agents, &mut self.agents, now.agents),
            (touched.tokens, &mut self.tokens, now.tokens),
            (touched.revoked, &mut self.revoked, now.revoked),
            (touched.config, &mut self.config, now.config),
            (touched.grace, &mut self.grace, now.grace),
            (touched.admin, &mut self.admin, now.admin),
        ];
        for (is_touched, stamp, now) in renewed {
            if is_touched {
                *stamp = now;
            }
        }
    }

    fn of(paths: &Paths) -> Self {
        Self {
            agents: Stamp::of(&paths.at(REGISTRY)),
            tokens: Stamp::of(&paths.at(TOKENS)),
            revoked: Stamp::of(&paths.at(REVOKED)),
            config: Stamp::of(&paths.config),
            grace: Stamp::of(&paths.at(GRACE)),
            admin: Stamp::of(&paths.at(CLIENT_CERTIFICATE)),
        }
    }
}
