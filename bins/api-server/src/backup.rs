//! A copy of all that cannot be made again, taken while a server runs, and the way back.
//!
//! A backup is a directory. `backup.json` names every file in it with its
//! SHA-256; it is written last, and the directory gets its name when all of it
//! is on disk. A restore leaves a mark in the data directory until it is done,
//! and no server starts beside that mark.

mod files;
mod manifest;

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;

use files::{Partial, copy_file, empty, is_free, make_directory, read_document, sync, sync_tree, write_new};
use manifest::{FORMAT, Kept, MANIFEST, Manifest, read_manifest};

use crate::public::{ACCOUNT_FILE, EDGE_KEY_FILE};
use crate::settings::Settings;
use crate::start::ADMIN_KEY_FILE;

const DATABASE: &str = "adit.db";
const CA: &str = "ca";
const PKI: &str = "pki";
const PANEL_CONFIG: &str = "panel.json";
/// What the settings were: for whoever restores, and read by nobody.
const SETTINGS: &str = "adit.toml";
/// In a data directory whose restore is not done.
const RESTORING: &str = ".restoring";
/// Files of the panel's directory that are of the moment.
const MOMENTARY: [&str; 4] = [".lock", ".staging", ".intent", ".probe"];

/// Makes a backup at `to`, which must not be there, or be empty.
pub(crate) fn back_up(settings: &Settings, to: &Path, json: bool) -> anyhow::Result<()> {
    let data = &settings.general.data_dir;
    require_restored(data)?;
    ensure!(
        data.join(DATABASE).exists(),
        "there is nothing to back up: {} has no database; name the server's directory with --data-dir or --config",
        data.display()
    );
    for directory in [data, &settings.panel.pki_dir] {
        if let Some((user, _)) = crate::panel::other_owner(directory)? {
            bail!("{} belongs to the user with the number {user}: make the backup as that user", directory.display());
        }
    }
    ensure!(is_free(to)?, "{} is there already: nothing is overwritten, name another directory", to.display());
    let (pki, config) = (&settings.panel.pki_dir, &settings.panel.config);
    ensure!(
        pki.exists() || settings.panel.listen.0.0.is_none(),
        "there is no panel at {} (pki_dir): name the server's directory, or say --panel-listen none if it has none",
        pki.display()
    );
    let within = std::path::absolute(to).ok().and_then(|to| to.parent()?.canonicalize().ok());
    for copied in [&data.join(CA), pki] {
        let is_within = |within: &Path| copied.canonicalize().is_ok_and(|copied| within.starts_with(copied));
        ensure!(
            !within.as_deref().is_some_and(is_within),
            "{} is in {}, which is copied: name a place elsewhere",
            to.display(),
            copied.display()
        );
    }
    let partial = Partial::begin(to)?;
    let mut copy = Copy { root: partial.path.clone(), files: Vec::new(), left_out: None };
    // The panel first: what its lists name has been put on record in the database before.
    if pki.exists() {
        /// Changes take a moment; who has it for longer has stopped amid one.
        const PATIENCE: Duration = Duration::from_secs(60);
        say("waiting until nobody changes the panel's directory");
        let held = panel::setup::hold_still(pki, config, PATIENCE)?;
        copy.left_out = config.canonicalize().ok();
        copy.directory(pki, PKI)?;
        copy.file(config, PANEL_CONFIG)?;
        drop(held);
    }
    copy.directory(&data.join(CA), CA)?;
    for file in [ADMIN_KEY_FILE, ACCOUNT_FILE, EDGE_KEY_FILE] {
        if data.join(file).exists() {
            copy.file(&data.join(file), file)?;
        }
    }
    say(&format!("copying the database, {}", size_of(&data.join(DATABASE))));
    let schema = store::copy(data, &partial.path.join(DATABASE))?;
    copy.note(DATABASE)?;
    copy.text(SETTINGS, &settings.to_toml()?)?;
    let Copy { mut files, .. } = copy;
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let manifest = Manifest {
        format: FORMAT,
        made_at: format!("{:.0}", Timestamp::now()),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        schema,
        zone: settings.general.zone.0.as_str().to_owned(),
        files,
    };
    let text = serde_json::to_vec_pretty(&manifest)?;
    write_new(&partial.path.join(MANIFEST), &text, 0o600)?;
    partial.finish()?;
    if json {
        return crate::print(&(serde_json::json!({"directory": to, "backup": manifest}).to_string() + "\n"));
    }
    let (count, octets) = (manifest.files.len(), manifest.files.iter().map(|file| file.size).sum::<u64>());
    crate::print(&format!(
        "{}: {count} files, {} KiB, of {}: the database, the authority{}\n\
         It holds private keys: keep it as you would keep them.\n\
         To go back to it: api-server restore --from {}\n",
        to.display(),
        octets.div_ceil(1024),
        manifest.made_at,
        if pki.exists() { ", the panel" } else { "; no panel" },
        to.display(),
    ))
}

/// Puts a backup where the settings say, where nothing may be yet.
pub(crate) fn restore(settings: &Settings, from: &Path, json: bool) -> anyhow::Result<()> {
    let manifest = read_manifest(from)?;
    ensure!(
        manifest.zone == settings.general.zone.0.as_str(),
        "the backup is of the zone {}, and the settings say {}: set `zone`, as {} has it",
        manifest.zone,
        settings.general.zone.0,
        from.join(SETTINGS).display()
    );
    say(&format!("looking through {}", from.display()));
    for file in &manifest.files {
        file.verify(from)?;
    }
    store::check_copy(&from.join(DATABASE))?;

    let data = &settings.general.data_dir;
    let parent = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
    for directory in [data, &settings.panel.pki_dir, &parent(&settings.panel.config)] {
        if let Some((user, _)) = crate::panel::other_owner(directory)? {
            bail!("{} belongs to the user with the number {user}: restore as that user", directory.display());
        }
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot create the data directory {}", data.display()))?;
    let _lock = store::lock_directory(data)?;
    let places = Places::new(settings);
    places.require_apart(&manifest)?;
    clear_way(data, &places)?;
    for file in &manifest.files {
        if let Some(to) = places.of(&file.path) {
            file.copy(from, &to)?;
        }
    }
    for directory in places.all() {
        sync_tree(directory)?;
    }
    fs::remove_file(data.join(RESTORING)).with_context(|| format!("cannot write in {}", data.display()))?;
    sync(data)?;
    if json {
        return crate::print(&(serde_json::json!({"data_dir": data, "backup": manifest}).to_string() + "\n"));
    }
    crate::print(&format!(
        "{} is as it was at {}. Start the server.\n\
         What happened since then is forgotten: tunnels, keys and agents made later are gone, and what was\n\
         revoked later, API keys and certificates of the panel, is good again: revoke it anew.\n",
        data.display(),
        manifest.made_at,
    ))
}

/// Refuses a data directory whose restore was not finished.
pub(crate) fn require_restored(data: &Path) -> anyhow::Result<()> {
    ensure!(
        !data.join(RESTORING).exists(),
        "a restore into {} was not finished: run `api-server restore` again, with the same settings",
        data.display()
    );
    Ok(())
}

/// Where the parts of a backup belong.
struct Places {
    parts: Vec<(&'static str, PathBuf)>,
}

impl Places {
    fn new(settings: &Settings) -> Self {
        let data = &settings.general.data_dir;
        let parts = vec![
            (DATABASE, data.join(DATABASE)),
            (CA, data.join(CA)),
            (ADMIN_KEY_FILE, data.join(ADMIN_KEY_FILE)),
            (ACCOUNT_FILE, data.join(ACCOUNT_FILE)),
            (EDGE_KEY_FILE, data.join(EDGE_KEY_FILE)),
            (PKI, settings.panel.pki_dir.clone()),
            (PANEL_CONFIG, settings.panel.config.clone()),
        ];
        Self { parts }
    }

    /// `None` for what is for people only.
    fn of(&self, path: &str) -> Option<PathBuf> {
        self.parts.iter().find_map(|(name, place)| match path.strip_prefix(name)? {
            "" => Some(place.clone()),
            below => Some(place.join(below.strip_prefix('/')?)),
        })
    }

    /// Two files of one place: the second could not be written when the first one is.
    fn require_apart(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut places = HashSet::new();
        for place in manifest.files.iter().filter_map(|file| self.of(&file.path)) {
            ensure!(!places.contains(&place), "the backup has two files for {}", place.display());
            places.insert(place);
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|(_, place)| place.as_path())
    }

    /// What SQLite leaves beside a database belongs to that one, and to no other.
    fn taken(&self, data: &Path) -> Vec<PathBuf> {
        let beside = ["adit.db-wal", "adit.db-shm"].map(|name| data.join(name));
        self.all().map(Path::to_owned).chain(beside).collect()
    }
}

/// Makes sure that nothing is where the backup goes, and leaves the mark. What
/// an interrupted restore left, to the same places, is removed.
fn clear_way(data: &Path, places: &Places) -> anyhow::Result<()> {
    let mark = data.join(RESTORING);
    let taken = places.taken(data);
    let text = serde_json::to_string(&taken)?;
    let before = if mark.exists() { read_document(&mark)? } else { Vec::new() };
    if !before.is_empty() {
        ensure!(
            before == text.as_bytes(),
            "a restore into {} was interrupted, to other places than the settings say now: finish it with the settings \
             of then, or remove what it left and {} ({})",
            data.display(),
            mark.display(),
            String::from_utf8_lossy(&before)
        );
        for path in &taken {
            empty(path)
                .with_context(|| format!("cannot remove what an interrupted restore left: {}", path.display()))?;
        }
        return Ok(());
    }
    for path in &taken {
        ensure!(
            is_free(path)?,
            "{} is there: nothing is overwritten; stop the server, move what there is away, and restore then",
            path.display()
        );
    }
    // Whole or not there: nothing is written before the mark says what that is.
    let unfinished = data.join(".restoring.new");
    empty(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    write_new(&unfinished, text.as_bytes(), 0o600)?;
    fs::rename(&unfinished, &mark).with_context(|| format!("cannot write {}", mark.display()))?;
    sync(data)
}

/// Copies into a backup.
struct Copy {
    root: PathBuf,
    files: Vec<Kept>,
    /// What has a place of its own in the backup.
    left_out: Option<PathBuf>,
}

impl Copy {
    /// All files of a directory. A link to a file is the file, as it is to the server.
    fn directory(&mut self, from: &Path, name: &str) -> anyhow::Result<()> {
        make_directory(&self.root.join(name))?;
        let cannot = || format!("cannot read {}", from.display());
        for entry in fs::read_dir(from).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            let path = entry.path();
            let kind = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let Ok(file) = entry.file_name().into_string() else {
                bail!("{}: a name that is not UTF-8", path.display());
            };
            let inner = format!("{name}/{file}");
            let is_momentary = name == PKI && MOMENTARY.contains(&file.as_str());
            if is_momentary || self.left_out.is_some() && path.canonicalize().ok() == self.left_out {
                continue;
            }
            if entry.file_type().with_context(cannot)?.is_dir() {
                self.directory(&path, &inner)?;
            } else if kind.is_file() {
                self.file(&path, &inner)?;
            } else {
                bail!("{} is neither a file nor a directory, and cannot be kept: move it elsewhere", path.display());
            }
        }
        sync(&self.root.join(name))
    }

    fn file(&mut self, from: &Path, name: &str) -> anyhow::Result<()> {
        let kept = copy_file(from, &self.root.join(name), None)?;
        self.files.push(Kept { path: name.to_owned(), ..kept });
        Ok(())
    }

    fn text(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        write_new(&self.root.join(name), text.as_bytes(), 0o600)?;
        self.note(name)
    }

    /// A file that is in its place already.
    fn note(&mut self, name: &str) -> anyhow::Result<()> {
        let kept = Kept::of(&self.root.join(name))?;
        self.files.push(Kept { path: name.to_owned(), ..kept });
        Ok(())
    }
}

fn size_of(path: &Path) -> String {
    fs::metadata(path).map_or_else(|_| "size unknown".to_owned(), |file| format!("{} KiB", file.len().div_ceil(1024)))
}

/// To whoever sits there and waits.
fn say(text: &str) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "api-server: {text}");
    }
}
