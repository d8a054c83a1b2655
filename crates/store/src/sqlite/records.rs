//! A look at a database, beside a server that writes it or without one, that changes nothing.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tunnel_model::Timestamp;

use super::{DATABASE, OpenError, SCHEMA_VERSION, copy, rows, store_error};
use crate::{CertificateFilter, IssuedCertificate, Ordered, Page, StoreError};

/// The records of a directory, for reading. Takes no lock that a server wants, and writes nothing.
#[derive(Debug)]
pub struct Records {
    connection: Connection,
    schema: i64,
}

impl Records {
    /// Opens the database in `directory`; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(directory: &Path) -> Result<Option<Self>, OpenError> {
        let database = directory.join(DATABASE);
        let io = |source| OpenError::Io { path: database.clone(), source };
        let path = match database.canonicalize() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            path => path.map_err(io)?,
        };
        let text = path.to_str().ok_or_else(|| io(std::io::ErrorKind::InvalidFilename.into()))?;
        let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        // With no log beside it, the file is all there is; SQLite would make a log to read it.
        let has_log = ["db-shm", "db-wal"].iter().any(|name| path.with_extension(name).exists());
        let immutable = if has_log { "" } else { "&immutable=1" };
        let sqlite = |source| OpenError::Sqlite { path: database.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let uri = format!("file:{escaped}?mode=ro{immutable}");
        let connection = Connection::open_with_flags(uri, flags).map_err(sqlite)?;
        connection.busy_timeout(Duration::from_secs(2)).map_err(sqlite)?;
        let schema = copy::version(&connection, &database)?;
        Ok(Some(Self { connection, schema }))
    }

    /// Are its tables those of this program? Those of an earlier version are brought up to date by the next
    /// [`SqliteStore::open`](crate::SqliteStore::open), and cannot be looked at before.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.schema == SCHEMA_VERSION
    }

    /// As [`Orders::ordered_since`](crate::Orders::ordered_since).
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn ordered_since(&self, since: Timestamp) -> Result<Vec<Ordered>, StoreError> {
        rows::ordered_since(&self.connection, since).map_err(store_error)
    }

    /// As [`IssuedCertificates::certificates`](crate::IssuedCertificates::certificates).
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn certificates(&self, filter: &CertificateFilter, page: Page) -> Result<Vec<IssuedCertificate>, StoreError> {
        rows::certificates(&self.connection, filter, page).map_err(store_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Commands as _, SqliteStore};

    #[tokio::test]
    async fn a_look_changes_nothing_with_a_server_or_without() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(Records::open(directory.path()).expect("nothing there is no error").is_none());
        let files = || {
            let names = std::fs::read_dir(directory.path()).expect("a directory");
            let mut names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
            names.sort();
            names
        };
        assert!(files().is_empty());
        let store = SqliteStore::open(directory.path()).expect("a store");
        store.prune_uses(Timestamp::from_micros(0)).await.expect("written");
        let before = files();
        let records = Records::open(directory.path()).expect("opened beside it").expect("there");
        assert!(records.is_current());
        assert_eq!(records.ordered_since(Timestamp::from_micros(0)).expect("read"), []);
        drop(records);
        assert_eq!(files(), before);
        drop(store);
        let before = files();
        let records = Records::open(directory.path()).expect("opened alone").expect("there");
        assert_eq!(records.certificates(&CertificateFilter::default(), Page::ALL).expect("read"), []);
        drop(records);
        assert_eq!(files(), before);
        SqliteStore::open(directory.path()).expect("and a server starts");
    }
}
