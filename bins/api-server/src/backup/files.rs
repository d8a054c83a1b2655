//! Files and directories, durably, and what is known of each.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::manifest::Kept;

/// The most octets of `backup.json` and of the mark that are read.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// A backup in the making, beside its place. Dropped before it is done, it is removed.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    to: PathBuf,
    parent: PathBuf,
    is_done: bool,
    /// Held until it is done, so that two do not make the same.
    _lock: File,
}

impl Partial {
    /// For a directory `to` that is not there, or is empty.
    pub(super) fn begin(to: &Path) -> anyhow::Result<Self> {
        if to.file_name().is_none() {
            bail!("{} cannot be made: name a directory in it", to.display());
        }
        let to = std::path::absolute(to).with_context(|| format!("cannot use {}", to.display()))?;
        // Without a slash at its end, which a rename would stumble over.
        let to: PathBuf = to.components().collect();
        let (Some(parent), Some(name)) = (to.parent(), to.file_name().and_then(|name| name.to_str())) else {
            bail!("{} cannot be made: name a directory in it", to.display());
        };
        let device = |path: &Path| {
            fs::metadata(path).map(|metadata| metadata.dev()).with_context(|| format!("cannot use {}", path.display()))
        };
        if to.exists() && device(&to)? != device(parent)? {
            bail!("{} is a mount point, which cannot be replaced: name a directory in it", to.display());
        }
        let path = parent.join(format!(".{name}.adit-partial"));
        if path.exists() {
            Self::lock(&path)?;
            // Of one that was interrupted.
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        make_directory(&path)?;
        let lock = Self::lock(&path)?;
        let parent = parent.to_owned();
        Ok(Self { path, to, parent, is_done: false, _lock: lock })
    }

    fn lock(path: &Path) -> anyhow::Result<File> {
        let directory = File::open(path).with_context(|| format!("cannot use {}", path.display()))?;
        match directory.try_lock() {
            Ok(()) => Ok(directory),
            Err(fs::TryLockError::WouldBlock) => bail!("another backup is being made in {}", path.display()),
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        sync(&self.path)?;
        fs::rename(&self.path, &self.to).with_context(|| format!("cannot create {}", self.to.display()))?;
        self.is_done = true;
        sync(&self.parent)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_done {
            // It holds keys. What cannot be removed now, the next one removes.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

pub(super) fn read_document(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = Vec::new();
    File::open(path).with_context(cannot)?.take(MAX_DOCUMENT).read_to_end(&mut text).with_context(cannot)?;
    Ok(text)
}

/// Copies a file to a new one, durably, with this mode or its own.
pub(super) fn copy_file(from: &Path, to: &Path, mode: Option<u32>) -> anyhow::Result<Kept> {
    let cannot = || format!("cannot copy {} to {}", from.display(), to.display());
    let copied = || -> io::Result<Kept> {
        let mut source = File::open(from)?;
        let mode = mode.map_or_else(|| Ok(source.metadata()?.permissions().mode() & 0o777), Ok::<_, io::Error>)?;
        // Nobody else's before it has its mode.
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        let (size, sha256) = pump(&mut source, &mut target)?;
        target.set_permissions(Permissions::from_mode(mode))?;
        target.sync_all()?;
        Ok(Kept { path: String::new(), size, sha256, mode })
    };
    copied().with_context(cannot)
}

/// Hands all octets on; how many there were, and their SHA-256 in hex.
pub(super) fn pump(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<(u64, String)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((size, hash.finalize().iter().map(|octet| format!("{octet:02x}")).collect())),
            Ok(count) => {
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn write_new(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    Ok(ca_dir::write_new(path, content, mode)?)
}

pub(super) fn make_directory(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("cannot create {}", path.display()))
}

pub(super) fn make_directories(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot create {}", path.display()))
}

/// Is nothing there, or an empty directory?
pub(super) fn is_free(path: &Path) -> anyhow::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::read_dir(path).map(|mut entries| entries.next().is_none()),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    };
    found.with_context(|| format!("cannot read {}", path.display()))
}

/// Removes a file, or what is in a directory: whose place it is may not be ours to change.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::read_dir(path)?.try_for_each(|entry| {
            let entry = entry?;
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
        }),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The directory, those below it, and the one that it is in.
pub(super) fn sync_tree(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let entry = entry?.path();
            if entry.is_dir() {
                sync_tree(&entry)?;
            }
        }
        sync(path)?;
    }
    path.parent().filter(|parent| parent.is_dir()).map_or(Ok(()), sync)
}

pub(super) fn sync(directory: &Path) -> anyhow::Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.with_context(|| format!("cannot write {}", directory.display()))
}
