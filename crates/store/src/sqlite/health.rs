//! Is the database as it was written? Looked at when it is opened, and again
//! when a look-up has failed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, InterruptHandle};

use super::{Readers, StoreError, rows, store_error};

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// What is wrong.
    damage: Option<String>,
    /// When all of it was looked at last.
    looked_at: Option<Instant>,
}

/// Octets of a database that is looked through before it is served; a larger
/// one is served meanwhile.
const AT_ONCE: u64 = 32 * 1024 * 1024;
/// From one look at a damaged database to the next.
const PAUSE: Duration = Duration::from_secs(60);

/// A look that is under way. It ends when this is dropped.
pub(super) struct Look {
    interrupt: InterruptHandle,
    thread: Option<JoinHandle<()>>,
}

impl Health {
    /// Remembers a look-up that failed because of the file or the disk.
    pub(super) fn note_read(&self, error: &StoreError) {
        self.note(error, &[ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase, ErrorCode::SystemIoFailure]);
    }

    /// The same of a change. A disk that is full, or takes no more, is no damage.
    pub(super) fn note_write(&self, error: &StoreError) {
        self.note(error, &[ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase]);
    }

    fn note(&self, error: &StoreError, codes: &[ErrorCode]) {
        let is_damage = match error {
            StoreError::Corrupt(_) => true,
            StoreError::Backend(error) => {
                let code = error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code);
                code.is_some_and(|code| codes.contains(&code))
            }
            _ => false,
        };
        if is_damage {
            self.known().damage.get_or_insert_with(|| in_words(error));
        }
    }

    /// What is wrong, if anything is known to be.
    pub(super) fn damage(&self) -> Option<String> {
        self.known().damage.clone()
    }

    /// Is it time to look whether the damage is still there? Whoever hears so does it.
    pub(super) fn is_to_be_looked_at(&self) -> bool {
        let mut known = self.known();
        let is_time = known.damage.is_some() && known.looked_at.is_none_or(|at| at.elapsed() >= PAUSE);
        if is_time {
            known.looked_at = Some(Instant::now());
        }
        is_time
    }

    /// Looks at every page and reads every record.
    pub(super) fn look(&self, connection: &Connection) {
        let damage = match look(connection) {
            // The store is closing.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => return,
            Err(error) => Some(in_words(&store_error(error))),
            Ok(damage) => damage,
        };
        if let Some(damage) = &damage {
            tracing::error!(damage, "the database is damaged: restore a backup");
        }
        *self.known() = Known { damage, looked_at: Some(Instant::now()) };
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Look {
    /// The first look at a database: at once if it is small, else beside the work.
    pub(super) fn first(readers: &Readers) -> rusqlite::Result<Option<Self>> {
        if std::fs::metadata(&readers.database).is_ok_and(|metadata| metadata.len() > AT_ONCE) {
            return Self::aside(readers).map(Some);
        }
        readers.health.look(&readers.open()?);
        Ok(None)
    }

    /// A look on a thread of its own.
    pub(super) fn aside(readers: &Readers) -> rusqlite::Result<Self> {
        let (connection, health) = (readers.open()?, Arc::clone(&readers.health));
        let interrupt = connection.get_interrupt_handle();
        let look = move || health.look(&connection);
        // Without a thread nothing new is known.
        let thread = std::thread::Builder::new().name("store-check".to_owned()).spawn(look).ok();
        Ok(Self { interrupt, thread })
    }

    /// Has it not come to its end?
    pub(super) fn is_under_way(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Look(..)")
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // One statement may end just before the next begins.
            while !thread.is_finished() {
                self.interrupt.interrupt();
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

/// What SQLite finds, then the first record that we cannot read.
fn look(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Some(found));
    }
    rows::read_all(connection).map(|()| None)
}

fn in_words(error: &StoreError) -> String {
    match error {
        StoreError::Backend(source) => source.to_string(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readers(directory: &std::path::Path) -> Readers {
        Readers { idle: Mutex::default(), database: directory.join("adit.db"), health: Arc::default() }
    }

    /// A database of other tables, some of whose pages nothing refers to any more.
    fn make(directory: &std::path::Path, rows: u32) -> Connection {
        let connection = Connection::open(directory.join("adit.db")).expect("a database");
        let fill = format!(
            "CREATE TABLE many (text TEXT); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO many SELECT hex(randomblob(400)) FROM n"
        );
        connection.execute_batch(&fill).expect("rows");
        connection
    }

    #[test]
    fn a_look_aside_tells_what_it_finds() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(make(directory.path(), 10));
        let readers = readers(directory.path());
        let look = Look::aside(&readers).expect("a look");
        let begun = Instant::now();
        while readers.health.damage().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(10), "no such table");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(look);
        assert_eq!(readers.health.damage().expect("damage"), "no such table: tunnels");
        assert!(!readers.health.is_to_be_looked_at(), "it was just looked at");
    }

    #[test]
    fn a_look_ends_with_the_store() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(make(directory.path(), 50_000));
        let readers = readers(directory.path());
        let begun = Instant::now();
        drop(Look::aside(&readers).expect("a look"));
        assert!(begun.elapsed() < Duration::from_secs(5));
        // It was interrupted, which is nothing that is wrong with the database.
        assert_eq!(readers.health.damage(), None);
    }

    #[test]
    fn what_failed_is_looked_at_once_at_a_time() {
        let health = Health::default();
        assert!(!health.is_to_be_looked_at(), "nothing is known to be wrong");
        health.note_write(&StoreError::Full);
        assert_eq!(health.damage(), None);
        health.note_read(&StoreError::Corrupt("record"));
        assert_eq!(health.damage().expect("damage"), "a stored record cannot be read");
        assert!(health.is_to_be_looked_at());
        assert!(!health.is_to_be_looked_at(), "somebody does already");
    }
}
