//! The list of what is in a backup.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::DATABASE;
use super::files::{copy_file, make_directories, pump, read_document};

/// What is in a backup: `backup.json`.
#[derive(Deserialize, Serialize)]
pub(super) struct Manifest {
    /// Of this document and of how files are named.
    pub(super) format: u32,
    /// RFC 3339.
    pub(super) made_at: String,
    /// The version of the program that made it.
    pub(super) program: String,
    /// The version of the database's tables.
    pub(super) schema: i64,
    pub(super) zone: String,
    /// `/`-separated, in the order of their names.
    pub(super) files: Vec<Kept>,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Kept {
    pub(super) path: String,
    pub(super) size: u64,
    /// Hex.
    pub(super) sha256: String,
    /// Permission bits.
    pub(super) mode: u32,
}

pub(super) const FORMAT: u32 = 1;
pub(super) const MANIFEST: &str = "backup.json";

impl Kept {
    /// Of a file as it is, with no path.
    pub(super) fn of(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(cannot)?;
        let mode = file.metadata().with_context(cannot)?.permissions().mode() & 0o777;
        let (size, sha256) = pump(&mut file, &mut io::sink()).with_context(cannot)?;
        Ok(Self { path: String::new(), size, sha256, mode })
    }

    pub(super) fn verify(&self, from: &Path) -> anyhow::Result<()> {
        self.require(&Self::of(&from.join(&self.path))?, from)
    }

    pub(super) fn copy(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        if let Some(parent) = to.parent().filter(|parent| !parent.exists()) {
            make_directories(parent)?;
        }
        let copied = copy_file(&from.join(&self.path), to, Some(self.mode))?;
        self.require(&copied, from)
    }

    fn require(&self, found: &Self, from: &Path) -> anyhow::Result<()> {
        ensure!(
            (found.size, &found.sha256) == (self.size, &self.sha256),
            "{} is not as it was when the backup was made: use another backup",
            from.join(&self.path).display()
        );
        Ok(())
    }
}

pub(super) fn read_manifest(from: &Path) -> anyhow::Result<Manifest> {
    let path = from.join(MANIFEST);
    let bad = || format!("{} is not the list of a backup", path.display());
    let text = read_document(&path)?;
    /// Read first: a later format may have another shape.
    #[derive(Deserialize)]
    struct Head {
        format: u32,
        program: String,
    }
    let head: Head = serde_json::from_slice(&text).with_context(bad)?;
    ensure!(
        head.format == FORMAT,
        "the backup has the format {}, made by version {}: restore it with that version or a later one",
        head.format,
        head.program
    );
    let manifest: Manifest = serde_json::from_slice(&text).with_context(bad)?;
    ensure!(
        manifest.schema <= store::SCHEMA_VERSION,
        "the backup was made by version {}, whose database this program does not know: restore it with that one",
        manifest.program
    );
    let is_plain = |file: &Kept| Path::new(&file.path).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(manifest.files.iter().all(is_plain), "{}: a file that is not in the backup", path.display());
    ensure!(manifest.files.iter().any(|file| file.path == DATABASE), "{}: it has no database", path.display());
    Ok(manifest)
}
