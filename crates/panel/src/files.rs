//! Files that change together: put aside, promised in one record, moved.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Called before every step that touches the disk. A test makes it fail, and
/// every step after it, as if the process had been killed there.
pub(crate) type Step = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A step that always goes on.
pub(crate) fn go_on() -> Step {
    Arc::new(|| Ok(()))
}

/// The files of one directory.
pub(crate) struct Files {
    root: PathBuf,
    /// Files that are replaced one at a time, or lie outside of the directory.
    lists: Vec<PathBuf>,
    step: Step,
}

/// The lock that every writer holds, of whichever process.
const LOCK: &str = ".lock";
/// The record of what is to be moved where.
const INTENT: &str = ".intent";
/// Where new files wait.
const STAGING: &str = ".staging";
/// How a new file is called that must wait elsewhere, beside its place.
const BESIDE: &str = "adit-new";

/// Does a change wait to be finished?
pub(crate) fn is_promised(root: &Path) -> bool {
    root.join(INTENT).exists()
}

/// What is to become true at once.
#[derive(Default)]
pub(crate) struct Change {
    items: Vec<Item>,
}

enum Item {
    Directory(PathBuf, Vec<(&'static str, Zeroizing<Vec<u8>>, u32)>),
    File(PathBuf, Zeroizing<Vec<u8>>, u32),
    Remove(PathBuf),
}

impl Change {
    /// A file with this content and mode, in place of what is there.
    pub(crate) fn write(&mut self, path: PathBuf, content: Zeroizing<Vec<u8>>, mode: u32) {
        self.items.push(Item::File(path, content, mode));
    }

    /// A directory of mode 0700 with these files, in place of what is there.
    pub(crate) fn write_directory(&mut self, path: PathBuf, files: Vec<(&'static str, Zeroizing<Vec<u8>>, u32)>) {
        self.items.push(Item::Directory(path, files));
    }

    /// No file or directory there.
    pub(crate) fn remove(&mut self, path: PathBuf) {
        self.items.push(Item::Remove(path));
    }
}

/// One move, as the record has it: relative to the directory, if within it.
/// Doing it twice does no harm.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Move {
    Remove(PathBuf),
    Rename { from: PathBuf, to: PathBuf },
}

impl Move {
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Remove(path) => vec![path],
            Self::Rename { from, to } => vec![from, to],
        }
    }

    /// What is not as it was afterwards.
    fn target(&self) -> &Path {
        match self {
            Self::Remove(path) | Self::Rename { to: path, .. } => path,
        }
    }
}

impl Files {
    pub(crate) fn new(root: PathBuf, lists: Vec<PathBuf>, step: Step) -> Self {
        Self { root, lists, step }
    }

    /// Waits until nobody else writes.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let file = self.lock_file()?;
        file.lock()?;
        Ok(file)
    }

    /// The lock, if nobody else writes now.
    pub(crate) fn try_lock(&self) -> io::Result<Option<File>> {
        let file = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn lock_file(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.root.join(LOCK))
    }

    /// Makes a change, all or nothing. The lock is the caller's to hold.
    ///
    /// # Errors
    ///
    /// Before the record stood nothing is changed; after it the rest is done by
    /// the next [`Files::recover`].
    pub(crate) fn commit(&self, change: &Change) -> io::Result<()> {
        match change.items.as_slice() {
            [] => Ok(()),
            // One rename is atomic by itself, and so is one removal.
            [Item::Remove(path)] => self.remove(path).and_then(|()| self.sync_parent(path)),
            [Item::File(path, content, mode)] => {
                let beside = beside(path);
                self.make_parent(path)?;
                let written = self.write(&beside, content, *mode).and_then(|()| self.rename(&beside, path));
                written.inspect_err(|_| drop(self.remove(&beside))).and_then(|()| self.sync_parent(path))
            }
            items => {
                let promised = self.stage(items);
                if promised.is_err() && !is_promised(&self.root) {
                    // What was put aside has no meaning, and perhaps there is no room for it.
                    // If it stays, `recover` clears it away.
                    let _ = self.clear();
                }
                promised.and_then(|moves| self.carry_out(&moves))
            }
        }
    }

    /// Finishes a change that was promised, and clears away one that was not.
    /// Was one promised?
    pub(crate) fn recover(&self) -> io::Result<bool> {
        let intent = self.root.join(INTENT);
        let is_promised = intent.try_exists()?;
        if is_promised {
            let mut moves: Vec<Move> = serde_json::from_slice(&fs::read(&intent)?)?;
            if !moves.iter_mut().flat_map(Move::paths).all(|path| self.is_ours(path)) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{INTENT} names files elsewhere")));
            }
            tracing::warn!(moves = moves.len(), "finishing a change that was interrupted");
            self.carry_out(&moves)?;
        }
        self.clear()?;
        Ok(is_promised)
    }

    /// Below the directory, or one of the lists that lie elsewhere.
    fn is_ours(&self, path: &Path) -> bool {
        let is_below = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        is_below || self.lists.iter().any(|list| path == list || path == beside(list))
    }

    /// Removes what waits for a change that is done or was never promised.
    fn clear(&self) -> io::Result<()> {
        self.remove(&self.root.join(STAGING))?;
        self.lists.iter().try_for_each(|path| self.remove(&beside(path)))
    }

    /// Writes all that is new and the record; with the record's rename the
    /// change is made.
    fn stage(&self, items: &[Item]) -> io::Result<Vec<Move>> {
        let staging = self.root.join(STAGING);
        self.make_directory(&staging)?;
        let mut moves: Vec<Move> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::File(path, content, mode) => {
                    // A rename stays within a file system, and panel.json may lie on another.
                    let from = if path.starts_with(&self.root) { staging.join(at.to_string()) } else { beside(path) };
                    self.write(&from, content, *mode)?;
                    // Flushed before the record is, or a move that is missing looks like one that was made.
                    if !from.starts_with(&self.root) {
                        self.sync_parent(&from)?;
                    }
                    moves.push(Move::Rename { from, to: path.clone() });
                }
                Item::Directory(path, files) => {
                    let from = staging.join(at.to_string());
                    self.make_directory(&from)?;
                    for (name, content, mode) in files {
                        self.write(&from.join(name), content, *mode)?;
                    }
                    sync(&from)?;
                    moves.push(Move::Remove(path.clone()));
                    moves.push(Move::Rename { from, to: path.clone() });
                }
                Item::Remove(path) => moves.push(Move::Remove(path.clone())),
            }
        }
        for path in moves.iter_mut().flat_map(Move::paths) {
            if let Ok(within) = path.strip_prefix(&self.root) {
                *path = within.to_owned();
            }
        }
        let record = staging.join("intent");
        self.write(&record, &serde_json::to_vec(&moves)?, 0o600)?;
        sync(&staging)?;
        self.rename(&record, &self.root.join(INTENT))?;
        sync(&self.root)?;
        Ok(moves)
    }

    fn carry_out(&self, moves: &[Move]) -> io::Result<()> {
        let mut parents = Vec::new();
        for step in moves {
            match step {
                // A directory whose successor has moved in already has nothing waiting for it.
                Move::Remove(path) if self.is_replaced(path, moves) => {}
                Move::Remove(path) => self.remove(&self.root.join(path))?,
                Move::Rename { from, to } => {
                    let (from, to) = (self.root.join(from), self.root.join(to));
                    self.make_parent(&to)?;
                    if from.try_exists()? {
                        self.rename(&from, &to)?;
                    }
                }
            }
            parents.extend(self.root.join(step.target()).parent().map(Path::to_owned));
        }
        parents.sort_unstable();
        parents.dedup();
        // What was removed may have had a directory that is not there, either.
        parents.iter().filter(|parent| parent.exists()).try_for_each(|parent| sync(parent))?;
        (self.step)()?;
        fs::remove_file(self.root.join(INTENT))?;
        // Durably: a record that came back would undo what comes after.
        sync(&self.root)?;
        // All is done; what stays of the staging is cleared away before the next change.
        let _ = self.clear();
        Ok(())
    }

    fn is_replaced(&self, path: &Path, moves: &[Move]) -> bool {
        let has_moved = |from: &Path| !self.root.join(from).exists();
        moves.iter().any(|step| matches!(step, Move::Rename { from, to } if to == path && has_moved(from)))
    }

    fn make_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !parent.try_exists()? => self.make_directory(parent),
            _ => Ok(()),
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        (self.step)()?;
        DirBuilder::new().mode(0o700).create(path)
    }

    fn write(&self, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
        (self.step)()?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        // The umask may have taken bits, and a file may have been there.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        (self.step)()?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.step)()?;
        fs::rename(from, to)
    }

    /// What is not there is removed already.
    fn remove(&self, path: &Path) -> io::Result<()> {
        let is_directory = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        (self.step)()?;
        if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) }
    }

    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        (self.step)()?;
        path.parent().map_or(Ok(()), sync)
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(BESIDE);
    PathBuf::from(name)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
