//! SQLite in one directory, opened by one process at a time.
//!
//! One thread writes. It takes every command that is waiting, runs each in a
//! savepoint of one transaction and commits once: concurrent writers share a
//! flush of the disk, and each is answered after it, when the observers have
//! been told. Look-ups have connections
//! of their own (WAL), so that they never wait for a commit.

mod copy;
mod health;
mod records;
mod rows;

use std::fs::{File, OpenOptions};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{mpsc, oneshot};
use tunnel_model::{
    ApiKey, Caller, Command, Event, Identity, IdentityId, IdentityKey, KeyId, OrganizationId, Rules, Timestamp, Tunnel,
    TunnelId, TunnelName, Usage,
};

use crate::decide::{Transaction, run};
use crate::observer::{Observer, Observers};
use crate::{
    ApiKeys, CertificateFilter, ClientCertificate, ClientCertificates, Commands, ExecuteError, Holder, Identities,
    IssuedCertificate, IssuedCertificates, Order, Ordered, Orders, Page, Store, StoreError, Tunnels,
};
pub use copy::{check as check_copy, copy, lock as lock_directory};
use health::{Health, Look};
pub use records::Records;

/// The version of the tables that this program reads and writes.
pub const SCHEMA_VERSION: i64 = 4;

/// What each version of the tables has that the one before had not, the first one all.
const MIGRATIONS: [&str; 4] = [
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
];

const DATABASE: &str = "adit.db";
const LOCK: &str = "lock";
/// "ADIT": tells our files from other SQLite databases.
const APPLICATION_ID: i64 = 0x4144_4954;
/// Commands that wait for the writer before callers wait for a place.
const QUEUE: usize = 1024;
/// Commands that share one commit; bounds how long the first one waits.
const GROUP: usize = 256;
/// Look-up connections that are kept open when idle.
const IDLE_READERS: usize = 8;

/// A store in a directory.
#[derive(Debug)]
pub struct SqliteStore {
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    readers: Arc<Readers>,
    /// The last look at the whole database, which may be under way.
    look: Mutex<Option<Look>>,
    observers: Arc<Observers>,
    /// Held until the store is dropped.
    _lock: File,
}

/// Why a directory's store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process has the directory open.
    #[error("another server is using {}: stop it, or use another data directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A database of another program.
    #[error("{} is a database of another program", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Tables of a version that this program does not know.
    #[error("{} has schema version {found}, and this program knows {SCHEMA_VERSION}: use the program that wrote it", path.display())]
    SchemaVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Pages or records are not as they were written.
    #[error("the database {} is damaged: {told}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        told: String,
    },
    /// SQLite.
    #[error("cannot use the database {}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
}

impl SqliteStore {
    /// Opens the store of a directory, which must exist; an empty one gets a
    /// new database.
    ///
    /// # Errors
    ///
    /// [`OpenError::Locked`] when another process, or another store of this
    /// one, has it; the others say what is wrong with which file.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let lock = lock(directory)?;
        let database = directory.join(DATABASE);
        let sqlite = |source| OpenError::Sqlite { path: database.clone(), source };
        let mut connection = Connection::open(&database).map_err(sqlite)?;
        // First make sure that it is ours: nothing of another program is touched.
        migrate(&mut connection, &database)?;
        restrict_to_owner(&database)?;
        configure(&connection, 4096).map_err(sqlite)?;
        sync_directory(directory)?;
        let health = Arc::new(Health::default());
        let readers =
            Arc::new(Readers { idle: Mutex::default(), database: database.clone(), health: Arc::clone(&health) });
        let look = Mutex::new(Look::first(&readers).map_err(sqlite)?);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let observers = Arc::new(Observers::default());
        let writes = Writer { connection, observers: Arc::clone(&observers), health };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writes.run(queue))
            .map_err(|source| OpenError::Io { path: directory.to_owned(), source })?;
        Ok(Self { jobs: Some(jobs), writer: Some(writer), readers, look, observers, _lock: lock })
    }

    /// Runs a look-up of one record in place: out of the page cache it takes
    /// microseconds, less than handing it to another thread.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.readers.read(query)
    }

    /// Runs a look-up of many records where it keeps nobody waiting.
    async fn read_many<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        // A look-up that panicked, or a runtime that is shutting down.
        tokio::task::spawn_blocking(move || readers.read(query)).await.unwrap_or(Err(StoreError::Closed))
    }

    async fn write(&self, work: Work) -> Result<Vec<Event>, ExecuteError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Job { work, reply }).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn write_only(&self, work: Work) -> Result<(), StoreError> {
        match self.write(work).await {
            Ok(_) => Ok(()),
            Err(ExecuteError::Store(error)) => Err(error),
            // Only commands of the model are refused.
            Err(ExecuteError::Refused(_)) => Ok(()),
        }
    }
}

impl Drop for SqliteStore {
    /// Waits until what was accepted is written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

#[async_trait]
impl Commands for SqliteStore {
    fn observe(&self, observer: Arc<dyn Observer>) {
        self.observers.add(observer);
    }

    async fn execute(
        &self,
        caller: Caller,
        command: Command,
        rules: &Arc<Rules>,
        now: Timestamp,
    ) -> Result<Vec<Event>, ExecuteError> {
        self.write(Work::Execute { caller, command: Box::new(command), rules: Arc::clone(rules), now }).await
    }

    async fn prune_uses(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::Prune { before }).await
    }
}

#[async_trait]
impl Tunnels for SqliteStore {
    async fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        self.read(|connection| rows::tunnel(connection, id))
    }

    async fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError> {
        self.read(|connection| rows::tunnel_by_name(connection, name))
    }

    async fn tunnels(&self, organization: &OrganizationId, page: Page) -> Result<Vec<Tunnel>, StoreError> {
        let organization = organization.clone();
        self.read_many(move |connection| rows::tunnels(connection, &organization, page)).await
    }

    async fn expired_tunnels(&self, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError> {
        self.read_many(move |connection| rows::expired_tunnels(connection, now, limit)).await
    }

    async fn tunnels_restorable_after(&self, latest: Timestamp, limit: u32) -> Result<Vec<TunnelId>, StoreError> {
        self.read_many(move |connection| rows::tunnels_restorable_after(connection, latest, limit)).await
    }
}

#[async_trait]
impl Identities for SqliteStore {
    async fn identity(&self, key: IdentityKey<'_>) -> Result<Option<(Identity, Tunnel)>, StoreError> {
        self.read(|connection| {
            // One snapshot for both queries: a rename between them would tear the names apart.
            let snapshot = connection.unchecked_transaction()?;
            let Some(identity) = rows::identity(&snapshot, key)? else { return Ok(None) };
            Ok(rows::tunnel(&snapshot, identity.tunnel)?.map(|tunnel| (identity, tunnel)))
        })
    }

    async fn identities(
        &self,
        organization: &OrganizationId,
        page: Page,
    ) -> Result<Vec<(Identity, Tunnel)>, StoreError> {
        let organization = organization.clone();
        self.read_many(move |connection| {
            let snapshot = connection.unchecked_transaction()?;
            rows::identities(&snapshot, &organization, page)
        })
        .await
    }
}

#[async_trait]
impl ApiKeys for SqliteStore {
    async fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        self.read(|connection| rows::api_key(connection, id))
    }

    async fn api_keys(&self, organization: &OrganizationId, page: Page) -> Result<Vec<ApiKey>, StoreError> {
        let organization = organization.clone();
        self.read_many(move |connection| rows::api_keys(connection, &organization, page)).await
    }

    async fn touch_api_key(&self, id: KeyId, now: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::Touch { id, now }).await
    }
}

#[async_trait]
impl ClientCertificates for SqliteStore {
    async fn record_client_certificate(&self, certificate: ClientCertificate) -> Result<(), StoreError> {
        self.write_only(Work::RecordClientCertificate(certificate)).await
    }

    async fn client_certificates(&self) -> Result<Vec<ClientCertificate>, StoreError> {
        self.read_many(rows::client_certificates).await
    }

    async fn forget_client_certificates(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::ForgetClientCertificates { now }).await
    }
}

#[async_trait]
impl IssuedCertificates for SqliteStore {
    async fn record_certificate(&self, certificate: IssuedCertificate) -> Result<(), StoreError> {
        self.write_only(Work::RecordCertificate(Box::new(certificate))).await
    }

    async fn certificates(&self, filter: &CertificateFilter, page: Page) -> Result<Vec<IssuedCertificate>, StoreError> {
        let filter = filter.clone();
        self.read_many(move |connection| rows::certificates(connection, &filter, page)).await
    }

    async fn forget_certificates(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::ForgetCertificates { before }).await
    }

    async fn note_revocation(&self, fingerprint: [u8; 32], now: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::NoteRevocation { fingerprint, now }).await
    }

    async fn next_certificate_end(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.read_many(move |connection| rows::next_certificate_end(connection, now)).await
    }
}

#[async_trait]
impl Orders for SqliteStore {
    async fn record_order(&self, order: Order) -> Result<(), StoreError> {
        self.write_only(Work::RecordOrder(Box::new(order))).await
    }

    async fn latest_order(&self, holder: &Holder) -> Result<Option<Order>, StoreError> {
        self.read(|connection| rows::latest_order(connection, holder))
    }

    async fn latest_issued_order(&self, holder: &Holder, key: Option<[u8; 32]>) -> Result<Option<Order>, StoreError> {
        self.read(|connection| rows::latest_issued_order(connection, holder, key))
    }

    async fn pending_orders(&self) -> Result<Vec<Order>, StoreError> {
        self.read_many(rows::pending_orders).await
    }

    async fn issued_orders(
        &self,
        now: Timestamp,
        after: Option<[u8; 16]>,
        limit: u32,
    ) -> Result<Vec<Order>, StoreError> {
        self.read_many(move |connection| rows::issued_orders(connection, now, after, limit)).await
    }

    async fn ordered_since(&self, since: Timestamp) -> Result<Vec<Ordered>, StoreError> {
        self.read_many(move |connection| rows::ordered_since(connection, since)).await
    }

    async fn forget_orders(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write_only(Work::ForgetOrders { before }).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn check(&self) -> Result<(), StoreError> {
        self.write_only(Work::Check).await?;
        self.read(|connection| connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))?;
        let health = &self.readers.health;
        if health.is_to_be_looked_at() {
            // Its result is the next answer.
            let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
            // One that takes longer than the pause between two ends by itself.
            if !look.as_ref().is_some_and(Look::is_under_way) {
                *look = Some(Look::aside(&self.readers).map_err(store_error)?);
            }
        }
        health.damage().map_or(Ok(()), |damage| Err(StoreError::Damaged(damage)))
    }
}

/// Connections for look-ups, handed out one at a time.
#[derive(Debug)]
struct Readers {
    idle: Mutex<Vec<Connection>>,
    database: PathBuf,
    health: Arc<Health>,
}

impl Readers {
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().map_err(store_error)?,
        };
        let answer = query(&connection).map_err(store_error).inspect_err(|error| self.health.note_read(error));
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
        answer
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.database, flags)?;
        connection.pragma_update(None, "cache_size", -1024)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        Ok(connection)
    }
}

struct Job {
    work: Work,
    reply: oneshot::Sender<Result<Vec<Event>, ExecuteError>>,
}

enum Work {
    Execute {
        caller: Caller,
        command: Box<Command>,
        rules: Arc<Rules>,
        now: Timestamp,
    },
    Touch {
        id: KeyId,
        now: Timestamp,
    },
    Prune {
        before: Timestamp,
    },
    RecordClientCertificate(ClientCertificate),
    RecordCertificate(Box<IssuedCertificate>),
    ForgetCertificates {
        before: Timestamp,
    },
    RecordOrder(Box<Order>),
    ForgetOrders {
        before: Timestamp,
    },
    NoteRevocation {
        fingerprint: [u8; 32],
        now: Timestamp,
    },
    ForgetClientCertificates {
        now: Timestamp,
    },
    Check,
    /// Writes a use and panics.
    #[cfg(test)]
    Panic,
}

struct Writer {
    connection: Connection,
    observers: Arc<Observers>,
    health: Arc<Health>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut group = Vec::with_capacity(GROUP);
        while let Some(job) = queue.blocking_recv() {
            group.push(job);
            while group.len() < GROUP {
                let Ok(job) = queue.try_recv() else { break };
                group.push(job);
            }
            self.commit(group.drain(..));
        }
    }

    /// Runs a group in one transaction and answers each after the commit.
    ///
    /// A refusal may rest on what an earlier command of the group wrote, so
    /// refusals too are answered after the commit only.
    fn commit(&mut self, group: impl Iterator<Item = Job>) {
        let (works, replies): (Vec<_>, Vec<_>) = group.map(|job| (job.work, job.reply)).unzip();
        // Whoever panics takes its group along, and not the store.
        let ran = catch_unwind(AssertUnwindSafe(|| self.run_group(works)));
        let panicked = || Err(StoreError::Uncommitted("the writer panicked".to_owned()));
        let answers = match ran.unwrap_or_else(|_| panicked()) {
            Ok(answers) => answers,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, commands = replies.len(), "commit failed");
                self.health.note_write(&error);
                let failed = |_: &_| Err(ExecuteError::Store(same_error(&error)));
                replies.iter().map(failed).collect()
            }
        };
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Whoever asked may be gone; what was decided stands, and is told.
            match &answer {
                Ok(events) => self.observers.tell(events),
                Err(ExecuteError::Store(error)) => self.health.note_write(error),
                Err(ExecuteError::Refused(_)) => {}
            }
            let _ = reply.send(answer);
        }
    }

    fn run_group(&mut self, works: Vec<Work>) -> Result<Vec<Result<Vec<Event>, ExecuteError>>, StoreError> {
        let mut transaction =
            self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(store_error)?;
        let mut answers = Vec::with_capacity(works.len());
        for work in works {
            let mut savepoint = transaction.savepoint().map_err(store_error)?;
            let answer = run_work(&mut Rows(&savepoint), work);
            if matches!(answer, Err(ExecuteError::Store(_))) {
                savepoint.rollback().map_err(store_error)?;
            }
            savepoint.commit().map_err(store_error)?;
            answers.push(answer);
        }
        transaction.commit().map_err(store_error)?;
        Ok(answers)
    }
}

fn run_work(rows: &mut Rows<'_>, work: Work) -> Result<Vec<Event>, ExecuteError> {
    match work {
        Work::Execute { caller, command, rules, now } => run(rows, &caller, *command, &rules, now),
        Work::Touch { id, now } => {
            Ok(rows::touch_api_key(rows.0, id, now).map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::Prune { before } => Ok(rows::prune_uses(rows.0, before).map(|()| Vec::new()).map_err(store_error)?),
        Work::RecordClientCertificate(certificate) => {
            let recorded = rows::insert_client_certificate(rows.0, &certificate);
            Ok(recorded.map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::RecordCertificate(certificate) => {
            let recorded = rows::insert_certificate(rows.0, &certificate);
            Ok(recorded.map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::RecordOrder(order) => Ok(rows::record_order(rows.0, &order).map(|()| Vec::new()).map_err(store_error)?),
        Work::ForgetOrders { before } => {
            Ok(rows::forget_orders(rows.0, before).map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::NoteRevocation { fingerprint, now } => {
            Ok(rows::note_revocation(rows.0, fingerprint, now).map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::ForgetCertificates { before } => {
            Ok(rows::forget_certificates(rows.0, before).map(|()| Vec::new()).map_err(store_error)?)
        }
        Work::ForgetClientCertificates { now } => {
            Ok(rows::forget_client_certificates(rows.0, now).map(|()| Vec::new()).map_err(store_error)?)
        }
        #[cfg(test)]
        Work::Panic => {
            let usage = Usage::Create(OrganizationId::new("org"));
            rows::record_use(rows.0, &usage, Timestamp::from_micros(0)).map_err(store_error)?;
            panic!("as told");
        }
        // Writes what is there already, so that the commit must reach the disk.
        Work::Check => {
            let written = rows.0.pragma_update(None, "user_version", SCHEMA_VERSION);
            Ok(written.map(|()| Vec::new()).map_err(store_error)?)
        }
    }
}

/// One transaction's view of the tables.
struct Rows<'a>(&'a Connection);

impl Transaction for Rows<'_> {
    fn tunnel(&self, id: TunnelId) -> Result<Option<Tunnel>, StoreError> {
        rows::tunnel(self.0, id).map_err(store_error)
    }

    fn tunnel_by_name(&self, name: &TunnelName) -> Result<Option<Tunnel>, StoreError> {
        rows::tunnel_by_name(self.0, name).map_err(store_error)
    }

    fn others_certificate_until(
        &self,
        name: &TunnelName,
        organization: &OrganizationId,
    ) -> Result<Option<Timestamp>, StoreError> {
        rows::others_certificate_until(self.0, name, organization).map_err(store_error)
    }

    fn identity(&self, key: IdentityKey<'_>) -> Result<Option<Identity>, StoreError> {
        rows::identity(self.0, key).map_err(store_error)
    }

    fn active_keys(&self, identity: IdentityId) -> Result<Vec<ApiKey>, StoreError> {
        rows::active_keys(self.0, identity).map_err(store_error)
    }

    fn api_key(&self, id: KeyId) -> Result<Option<ApiKey>, StoreError> {
        rows::api_key(self.0, id).map_err(store_error)
    }

    fn rewind_uses(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError> {
        rows::rewind_uses(self.0, usage, now).map_err(store_error)
    }

    fn nth_use(&self, usage: &Usage, nth: u32) -> Result<Option<Timestamp>, StoreError> {
        rows::nth_use(self.0, usage, nth).map_err(store_error)
    }

    fn insert_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        rows::insert_tunnel(self.0, tunnel).map_err(store_error)
    }

    fn update_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        rows::update_tunnel(self.0, tunnel).map_err(store_error)
    }

    fn update_certificate(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        rows::update_certificate(self.0, tunnel).map_err(store_error)
    }

    fn update_name(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        rows::update_name(self.0, tunnel).map_err(store_error)
    }

    fn delete_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), StoreError> {
        rows::delete_tunnel(self.0, tunnel).map_err(store_error)
    }

    fn insert_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        rows::insert_identity(self.0, identity).map_err(store_error)
    }

    fn update_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        rows::update_identity(self.0, identity).map_err(store_error)
    }

    fn delete_identity(&mut self, identity: &Identity) -> Result<(), StoreError> {
        rows::delete_identity(self.0, identity).map_err(store_error)
    }

    fn insert_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError> {
        rows::insert_api_key(self.0, key).map_err(store_error)
    }

    fn update_api_key(&mut self, key: &ApiKey) -> Result<(), StoreError> {
        rows::update_api_key(self.0, key).map_err(store_error)
    }

    fn record_use(&mut self, usage: &Usage, now: Timestamp) -> Result<(), StoreError> {
        rows::record_use(self.0, usage, now).map_err(store_error)
    }

    fn record_certificate(&mut self, certificate: &IssuedCertificate) -> Result<(), StoreError> {
        rows::insert_certificate(self.0, certificate).map_err(store_error)
    }
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join(LOCK);
    let io = |source| OpenError::Io { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked { path: directory.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

fn restrict_to_owner(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::PermissionsExt as _;

    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

fn sync_directory(directory: &Path) -> Result<(), OpenError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| OpenError::Io { path: directory.to_owned(), source })
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(sqlite);
    let (application, found) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    match (application, found, tables) {
        (0, 0, 0) => upgrade(connection, &MIGRATIONS).map_err(sqlite),
        (APPLICATION_ID, SCHEMA_VERSION, _) => Ok(()),
        (APPLICATION_ID, found, _) => {
            let known = usize::try_from(found).ok().filter(|found| *found > 0);
            match known.and_then(|found| MIGRATIONS.get(found..)) {
                Some(missing) => upgrade(connection, missing).map_err(sqlite),
                None => Err(OpenError::SchemaVersion { path: path.to_owned(), found }),
            }
        }
        _ => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}

fn upgrade(connection: &mut Connection, missing: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    missing.iter().try_for_each(|statements| transaction.execute_batch(statements))?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode NORMAL would leave the last commits to the kernel's mercy.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.busy_timeout(std::time::Duration::from_secs(5))
}

fn store_error(error: rusqlite::Error) -> StoreError {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
            StoreError::Corrupt("record")
        }
        error if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => StoreError::Full,
        error => StoreError::Backend(Box::new(error)),
    }
}

/// The same failure for another command of the group.
fn same_error(error: &StoreError) -> StoreError {
    match error {
        StoreError::Full => StoreError::Full,
        StoreError::Backend(error) => StoreError::Uncommitted(error.to_string()),
        error => StoreError::Uncommitted(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever it is that panics, in the writer or in who hears of it: the next one is answered.
    #[tokio::test]
    async fn a_panic_of_the_writer_costs_its_group_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SqliteStore::open(directory.path()).expect("a store");
        let failed = store.write_only(Work::Panic).await;
        assert!(matches!(failed, Err(StoreError::Uncommitted(_))), "{failed:?}");
        store.prune_uses(Timestamp::from_micros(0)).await.expect("the writer lives");
        let connection = store.readers.open().expect("a connection");
        let left = rows::nth_use(&connection, &Usage::Create(OrganizationId::new("org")), 1).expect("read");
        assert_eq!(left, None, "what was written before the panic is rolled back");
    }
}
