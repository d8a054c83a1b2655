//! A copy of a database at one moment, beside the server that writes it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{APPLICATION_ID, DATABASE, OpenError, SCHEMA_VERSION};

/// Copies the database in `directory` to the new file `to` (mode 0600), durably; says which version
/// its tables have.
///
/// All of it is as it was at one moment. A server may have it open and go on writing: neither waits
/// for the other.
///
/// # Errors
///
/// [`OpenError`]; [`OpenError::Sqlite`] also when the database is damaged. What there is of `to` then is
/// of no use.
pub fn copy(directory: &Path, to: &Path) -> Result<i64, OpenError> {
    let database = directory.join(DATABASE);
    let sqlite = |source| OpenError::Sqlite { path: database.clone(), source };
    // The log beside it may have to be opened for writing, even to read.
    let connection = open(&database, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    let version = version(&connection, &database)?;
    let io = |source| OpenError::Io { path: to.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
    let name = to.to_str().ok_or_else(|| io(std::io::ErrorKind::InvalidFilename.into()))?;
    // One read transaction, and not the pages one by one, which would begin anew at every commit.
    connection.execute("VACUUM INTO ?1", [name]).map_err(sqlite)?;
    file.sync_all().map_err(io)?;
    check(to)?;
    Ok(version)
}

/// Looks through a database that nobody has open: is it ours, whole, and of a version that this
/// program knows?
///
/// # Errors
///
/// [`OpenError`].
pub fn check(database: &Path) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: database.to_owned(), source };
    let connection = open(database, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
    version(&connection, database)?;
    let told: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if told == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: database.to_owned(), told }) }
}

/// Takes a directory for one process; it is free again when the file is dropped.
///
/// # Errors
///
/// [`OpenError::Locked`] and [`OpenError::Io`].
pub fn lock(directory: &Path) -> Result<File, OpenError> {
    super::lock(directory)
}

fn open(database: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(database, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::from_secs(30))?;
    Ok(connection)
}

pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, OpenError> {
    let pragma = |name| {
        let value = connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        value.map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })
    };
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION_ID, found @ 1..=SCHEMA_VERSION) => Ok(found),
        (APPLICATION_ID, found) => Err(OpenError::SchemaVersion { path: path.to_owned(), found }),
        _ => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}
