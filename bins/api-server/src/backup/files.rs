//! Files and directories, durably, and what is known of each.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::manifest::Kept;

/// The most octets of `backup.json` and of the mark that are read.
const MAX_DOCUMENT: u64 = 64 * 1024 * 1024;

/// A backup in the making, beside its place.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    /// Held until it is done, so that two do not make the same.
    _lock: File,
}

impl Partial {
    pub(super) fn begin(to: &Path) -> anyhow::Result<Self> {
        let mut path = to.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let cannot = || format!("cannot create {}", path.display());
        if path.exists() {
            Self::lock(&path)?;
            // Of one that was interrupted.
            fs::remove_dir_all(&path).with_context(cannot)?;
        }
        make_directory(&path)?;
        let lock = Self::lock(&path)?;
        Ok(Self { path, _lock: lock })
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

    pub(super) fn finish(self, to: &Path) -> anyhow::Result<()> {
        sync(&self.path)?;
        fs::rename(&self.path, to).with_context(|| format!("cannot create {}", to.display()))?;
        sync(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
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

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
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
