//! What SQLite adds: a file, a lock, a version, and many writers at once.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use store::{
    ApiKeys as _, CertificateFilter, ClientCertificates as _, Commands as _, Holder, Identities as _,
    IssuedCertificate, IssuedCertificates as _, OpenError, Page, SCHEMA_VERSION, SqliteStore, Store as _, StoreError,
    Tunnels as _,
};
use tunnel_model::{Command, IdentityKey, Issuer, Rules, Timestamp, TlsMode};

use crate::world::*;

#[tokio::test]
async fn everything_survives_a_reopen() {
    let directory = tempfile::tempdir().expect("a directory");
    let before = {
        let store = open(directory.path());
        done(&store, create_identity(1, "my-agent")).await;
        done(&store, record(1, "my-agent", 1)).await;
        done(&store, create_key(1, Some(identity_id(1)))).await;
        done(&store, create_tunnel(2, "lonely", TlsMode::Edge)).await;
        done(&store, Command::DeleteTunnel { id: tunnel_id(2) }).await;
        store.touch_api_key(key_id(1), NOW).await.expect("touched");
        contents(&store).await
    };
    let store = open(directory.path());
    assert_eq!(contents(&store).await, before);
    // The quota remembers, too.
    for serial in 2..=10 {
        done(&store, record(1, "my-agent", serial)).await;
    }
    execute(&store, admin(), record(1, "my-agent", 11), NOW).await.expect_err("ten before");
}

#[tokio::test]
async fn an_open_directory_is_locked() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let second = SqliteStore::open(directory.path()).expect_err("the first one has it");
    assert!(matches!(&second, OpenError::Locked { path } if path == directory.path()), "{second:?}");
    // The refused one did no harm.
    done(&store, create_tunnel(1, "my-agent", TlsMode::Edge)).await;
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.tunnels(&organization("org_own"), Page::ALL).await.expect("an answer").len(), 1);
}

#[test]
fn an_unknown_schema_version_is_refused() {
    for version in [0, SCHEMA_VERSION + 1, -1] {
        let directory = tempfile::tempdir().expect("a directory");
        drop(open(directory.path()));
        connect(directory.path()).pragma_update(None, "user_version", version).expect("a version");
        let refused = SqliteStore::open(directory.path()).expect_err("an unknown version");
        assert!(matches!(refused, OpenError::SchemaVersion { found, .. } if found == version), "{refused:?}");
    }
}

#[tokio::test]
async fn a_database_of_version_1_is_brought_up_to_date() {
    let directory = tempfile::tempdir().expect("a directory");
    let before = {
        let store = open(directory.path());
        done(&store, create_tunnel(1, "my-agent", TlsMode::Edge)).await;
        contents(&store).await
    };
    connect(directory.path())
        .execute_batch(&format!(
            "DROP TABLE client_certificates; DROP TABLE certificates; DROP TABLE orders;
             ALTER TABLE tunnels DROP COLUMN cert_renew_at;
             {CERTIFICATES_OF_VERSION_1} PRAGMA user_version = 1"
        ))
        .expect("as version 1 left it");
    let store = open(directory.path());
    assert_eq!(contents(&store).await, before);
    assert_eq!(store.client_certificates().await.expect("an answer"), []);
    drop(store);
    let version = connect(directory.path()).pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    assert_eq!(version, Ok(SCHEMA_VERSION));
}

#[tokio::test]
async fn a_database_of_version_2_is_brought_up_to_date() {
    let directory = tempfile::tempdir().expect("a directory");
    connect(directory.path())
        .execute_batch(&format!(
            "{} {} PRAGMA application_id = 0x41444954; PRAGMA user_version = 2;
             INSERT INTO client_certificates VALUES ('0A', x'{}', 7); INSERT INTO grace VALUES (1, '0A', '0B', 7);",
            include_str!("../../src/schema.sql"),
            include_str!("../../src/schema-2.sql"),
            "01".repeat(32),
        ))
        .expect("as version 2 left it");
    let store = open(directory.path());
    let kept = store.client_certificates().await.expect("an answer");
    assert_eq!(kept.iter().map(|certificate| certificate.serial.as_str()).collect::<Vec<_>>(), ["0A"]);
    assert_eq!(store.certificates(&CertificateFilter::default(), Page::ALL).await.expect("an answer"), []);
    store.check().await.expect("in order");
    done(&store, create_identity(1, "my-agent")).await;
}

/// The table as it was up to version 3.
const CERTIFICATES_OF_VERSION_1: &str =
    "CREATE TABLE certificates (serial BLOB PRIMARY KEY, tunnel BLOB NOT NULL, name TEXT NOT NULL,
     fingerprint BLOB NOT NULL, expires_at INTEGER NOT NULL, issued_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;";

#[tokio::test]
async fn what_version_3_knew_of_certificates_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let (tunnel, ones, twos) = (tunnel_id(1), "01".repeat(32), "02".repeat(32));
    let id: String = tunnel.as_bytes().iter().map(|octet| format!("{octet:02x}")).collect();
    connect(directory.path())
        .execute_batch(&format!(
            "{} {} {} PRAGMA application_id = 0x41444954; PRAGMA user_version = 3;
             INSERT INTO api_keys VALUES (x'{id}', 'org_own', NULL, 'a', NULL, x'{ones}', 'abcd', NULL, 1, 1, NULL, NULL);
             INSERT INTO certificates VALUES (x'0a', x'{id}', 'my-agent', x'{ones}', 9, 5);
             INSERT INTO edge_certificates VALUES (x'0b', 'a.example.test', x'{twos}', 8);",
            include_str!("../../src/schema.sql"),
            include_str!("../../src/schema-2.sql"),
            include_str!("../../src/schema-3.sql"),
        ))
        .expect("as version 3 left it");
    let store = open(directory.path());
    let of = |holder, serial: u8, octet: u8, not_after, issued_at: Option<i64>| IssuedCertificate {
        holder,
        serial: vec![serial],
        fingerprint: [octet; 32],
        issuer: Issuer::Private,
        profile: None,
        key: None,
        requested_by: None,
        not_before: None,
        not_after: Timestamp::from_micros(not_after),
        issued_at: issued_at.map(Timestamp::from_micros),
        revoked_at: None,
    };
    let organization = Some(organization("org_own"));
    let of_tunnel = of(Holder::Tunnel { id: tunnel, name: name("my-agent"), organization }, 0x0a, 1, 9, Some(5));
    let of_edge = of(Holder::Edge("a.example.test".to_owned()), 0x0b, 2, 8, None);
    let found = store.certificates(&CertificateFilter::default(), Page::ALL).await.expect("an answer");
    assert_eq!(found, [of_edge, of_tunnel]);
}

/// Each condition that narrows a list has its index.
#[test]
fn lists_of_certificates_use_their_indexes() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path()));
    let connection = connect(directory.path());
    let source = include_str!("../../src/sqlite/rows/certificates.rs");
    for (condition, index) in [
        ("tunnel = ?", "certificates_by_tunnel"),
        ("(name = ? OR host = ?)", "certificates_by_host"),
        ("(name = ? OR host = ?)", "certificates_by_name"),
        ("serial = ?", "certificates_by_serial"),
        ("fingerprint = ?", "certificates_by_fingerprint"),
        ("(tunnel IS NULL OR organization = ?)", "certificates_in_order"),
    ] {
        assert!(source.contains(condition), "the source has no condition {condition}: change it here as well");
        let statement = format!(
            "EXPLAIN QUERY PLAN SELECT * FROM certificates WHERE (issued_at, fingerprint) > (?, ?) AND {condition}
             ORDER BY issued_at, fingerprint LIMIT ?"
        );
        let mut explain = connection.prepare(&statement).expect("a statement");
        let parameters = rusqlite::params_from_iter(std::iter::repeat_n(1, explain.parameter_count()));
        let plan: Vec<String> =
            explain.query_map(parameters, |row| row.get(3)).expect("a plan").collect::<Result<_, _>>().expect("a plan");
        let plan = plan.join("; ");
        assert!(plan.contains(index) && !plan.contains("SCAN"), "{condition}: {plan}");
    }
}

#[test]
fn a_database_of_another_program_is_refused() {
    for statements in [
        "CREATE TABLE things (id INTEGER)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 1; CREATE TABLE tunnels (id BLOB)",
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        connect(directory.path()).execute_batch(statements).expect("a database");
        let refused = SqliteStore::open(directory.path()).expect_err("not ours");
        assert!(matches!(refused, OpenError::Foreign { .. }), "{statements}: {refused:?}");
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("adit.db");
    let text = "not a database at all, but long enough to have a header ".repeat(40);
    std::fs::write(&file, &text).expect("a file");
    let refused = SqliteStore::open(directory.path()).expect_err("no database");
    assert!(matches!(refused, OpenError::Sqlite { .. }), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), text);
}

#[test]
fn a_missing_directory_is_told_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing");
    let refused = SqliteStore::open(&missing).expect_err("nothing is there");
    assert!(matches!(&refused, OpenError::Io { path, .. } if path.starts_with(&missing)), "{refused:?}");
}

#[test]
fn only_the_owner_reads_the_database() {
    let directory = tempfile::tempdir().expect("a directory");
    let _store = open(directory.path());
    let metadata = std::fs::metadata(directory.path().join("adit.db")).expect("it exists");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    for file in ["adit.db-wal", "adit.db-shm"] {
        if let Ok(metadata) = std::fs::metadata(directory.path().join(file)) {
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_64_writers_were_told_is_there_after_a_reopen() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut rules = Rules::new();
    rules.creates.limit = 1000;
    let rules = Arc::new(rules);
    let store = Arc::new(open(directory.path()));
    let tasks: Vec<_> = (0..64_u8)
        .map(|number| {
            let (store, rules) = (Arc::clone(&store), Arc::clone(&rules));
            let command = create_tunnel(number, &format!("agent-{number}"), TlsMode::Edge);
            tokio::spawn(async move { store.execute(admin(), command, &rules, NOW).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("acknowledged");
    }
    drop(store);
    let store = open(directory.path());
    assert_eq!(store.tunnels(&organization("org_own"), Page::ALL).await.expect("an answer").len(), 64);
    for number in 0..64_u8 {
        let tunnel = store.tunnel_by_name(&name(&format!("agent-{number}"))).await.expect("an answer");
        assert_eq!(tunnel.map(|tunnel| tunnel.id), Some(tunnel_id(number)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refusal_in_a_group_does_not_undo_its_neighbours() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(directory.path()));
    let tasks: Vec<_> = (0..40_u8)
        .map(|number| {
            let store = Arc::clone(&store);
            // Half of them want one name, of which one gets it; the others have names of their own.
            let of = if number % 2 == 0 { "wanted".to_owned() } else { format!("agent-{number}") };
            let caller = admin_of(&format!("org_{number}"));
            tokio::spawn(async move {
                execute(store.as_ref(), caller, create_tunnel(number, &of, TlsMode::Edge), NOW).await.is_ok()
            })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        created += usize::from(task.await.expect("no panic"));
    }
    assert_eq!(created, 21);
    drop(store);
    let count: i64 =
        connect(directory.path()).query_row("SELECT count(*) FROM tunnels", [], |row| row.get(0)).expect("a count");
    assert_eq!(count, 21);
}

#[tokio::test]
async fn an_abandoned_command_leaves_the_store_working() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    {
        let rules = Arc::new(Rules::new());
        let abandoned = store.execute(admin(), create_tunnel(1, "my-agent", TlsMode::Edge), &rules, NOW);
        // Polled once, so that the writer has it, and dropped. The writer may be quick enough to have answered.
        let mut abandoned = std::pin::pin!(abandoned);
        let _ = abandoned.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    }
    store.check().await.expect("in order");
    drop(store);
    let store = open(directory.path());
    let tunnel = store.tunnel(tunnel_id(1)).await.expect("an answer");
    assert!(tunnel.is_some(), "what the writer took is decided, whether or not somebody waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_identity_is_read_with_the_tunnel_of_the_same_moment() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(directory.path()));
    done(store.as_ref(), create_identity(1, "agent-a")).await;
    let renaming = Arc::clone(&store);
    let renamed = tokio::spawn(async move {
        for round in 0..300 {
            let (from, to) = if round % 2 == 0 { ("agent-a", "agent-b") } else { ("agent-b", "agent-a") };
            done(renaming.as_ref(), rename(from, to)).await;
        }
    });
    while !renamed.is_finished() {
        let found = store.identity(IdentityKey::Id(identity_id(1))).await.expect("an answer");
        let (identity, tunnel) = found.expect("it exists");
        assert_eq!(identity.handle, tunnel.name);
    }
    renamed.await.expect("no panic");
}

#[tokio::test]
async fn issued_certificates_outlive_their_tunnel() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    done(&store, create_identity(1, "my-agent")).await;
    done(&store, record(1, "my-agent", 1)).await;
    done(&store, record(1, "my-agent", 2)).await;
    done(&store, Command::DeleteIdentity { handle: name("my-agent") }).await;
    drop(store);
    let connection = connect(directory.path());
    let mut statement = connection
        .prepare("SELECT serial, tunnel, name, fingerprint, not_after, issued_at FROM certificates ORDER BY serial")
        .expect("a statement");
    type Issued = (Vec<u8>, [u8; 16], String, [u8; 32], i64, i64);
    let issued: Vec<Issued> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)))
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("rows");
    let expected = |serial: u8| {
        let expires_at = NOW.plus(90 * DAY).micros();
        (vec![0x7f, serial], [1; 16], "my-agent".to_owned(), [serial; 32], expires_at, NOW.micros())
    };
    assert_eq!(issued, [expected(1), expected(2)]);
}

#[tokio::test]
async fn a_row_that_nobody_wrote_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    done(&store, create_identity(1, "my-agent")).await;
    drop(store);
    for statement in [
        "UPDATE tunnels SET name = 'NOT A NAME'",
        "UPDATE tunnels SET metadata = '['",
        "UPDATE tunnels SET created_at = NULL",
        "UPDATE tunnels SET last_connected_ip = 'nowhere'",
        "UPDATE tunnels SET identity = x'00'",
        "UPDATE tunnels SET secret_hash = x'00'",
    ] {
        let connection = connect(directory.path());
        let saved = std::fs::read(directory.path().join("adit.db")).expect("the file");
        // Where the schema itself says no, nothing can be read either.
        if connection.execute_batch(statement).is_err() {
            continue;
        }
        drop(connection);
        let store = open(directory.path());
        let answer = store.tunnel(tunnel_id(1)).await;
        assert!(answer.is_err(), "{statement}: {answer:?}");
        // Who lists them would get an error, too.
        let damaged = store.check().await;
        assert!(matches!(damaged, Err(StoreError::Damaged(_))), "{statement}: {damaged:?}");
        drop(store);
        std::fs::write(directory.path().join("adit.db"), saved).expect("as before");
    }
}

/// Writes zeros over a page of the table.
fn zero_a_page_of(directory: &Path, table: &str) {
    let connection = connect(directory);
    connection.pragma_update(None, "journal_mode", "DELETE").expect("all is in the file");
    let page_size: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).expect("a size");
    let statement = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let root: u32 = connection.query_row(statement, [table], |row| row.get(0)).expect("a table");
    drop(connection);
    let file = std::fs::OpenOptions::new().write(true).open(directory.join("adit.db")).expect("the file");
    file.write_all_at(&vec![0; page_size as usize], u64::from(root - 1) * u64::from(page_size)).expect("written");
}

#[tokio::test]
async fn a_page_that_is_gone_is_found_at_the_start() {
    for table in ["tunnels", "tunnels_by_organization", "identities", "api_keys", "uses"] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(directory.path());
        done(&store, create_identity(1, "my-agent")).await;
        store.check().await.expect("in order");
        drop(store);
        zero_a_page_of(directory.path(), table);
        let store = open(directory.path());
        let damaged = store.check().await.expect_err(table);
        assert!(matches!(damaged, StoreError::Damaged(_)), "{table}: {damaged:?}");
        assert_eq!(damaged.in_short(), "the database is damaged");
    }
}

#[tokio::test]
async fn a_look_up_that_fails_is_remembered() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    done(&store, create_identity(1, "my-agent")).await;
    connect(directory.path()).execute_batch("UPDATE tunnels SET metadata = '['").expect("another program");
    store.check().await.expect("nobody has looked");
    store.tunnels(&organization("org_own"), Page::ALL).await.expect_err("an unreadable row");
    assert!(matches!(store.check().await, Err(StoreError::Damaged(_))));
}

/// The statements of the crate, as they are written in its source.
#[test]
fn look_ups_use_an_index() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path()));
    let connection = connect(directory.path());
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let source = words(concat!(
        include_str!("../../src/sqlite/rows/certificates.rs"),
        include_str!("../../src/sqlite/rows/identities.rs"),
        include_str!("../../src/sqlite/rows/keys.rs"),
        include_str!("../../src/sqlite/rows/orders.rs"),
        include_str!("../../src/sqlite/rows/tunnels.rs"),
        include_str!("../../src/sqlite/rows/uses.rs"),
    ));
    for (statement, index) in [
        ("SELECT * FROM tunnels WHERE id = ?1", "PRIMARY KEY"),
        ("SELECT * FROM tunnels WHERE name = ?1", "sqlite_autoindex_tunnels"),
        (
            "SELECT * FROM tunnels WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
            "tunnels_by_organization (organization=? AND (created_at,id)>(?,?))",
        ),
        (
            "SELECT id FROM tunnels WHERE restore_deadline <= ?1 ORDER BY restore_deadline LIMIT ?2",
            "tunnels_by_deadline",
        ),
        ("UPDATE tunnels SET status = 'active' WHERE id = :id", "PRIMARY KEY"),
        ("DELETE FROM tunnels WHERE id = ?1", "PRIMARY KEY"),
        ("SELECT * FROM identities WHERE handle = ?1", "sqlite_autoindex_identities"),
        ("SELECT * FROM identities WHERE id = ?1", "PRIMARY KEY"),
        (
            "SELECT * FROM identities WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
            "identities_by_organization (organization=? AND (created_at,id)>(?,?))",
        ),
        ("SELECT * FROM api_keys WHERE id = ?1", "PRIMARY KEY"),
        (
            "SELECT * FROM api_keys WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
            "api_keys_by_organization (organization=? AND (created_at,id)>(?,?))",
        ),
        ("SELECT * FROM api_keys WHERE identity = ?1 AND revoked_at IS NULL", "api_keys_by_identity"),
        ("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1", "PRIMARY KEY"),
        ("SELECT at FROM uses WHERE subject = ?1 ORDER BY at DESC LIMIT 1 OFFSET ?2", "uses_by_subject"),
        ("DELETE FROM uses WHERE subject = ?1", "uses_by_subject"),
        ("UPDATE uses SET at = ?2 WHERE subject = ?1 AND at > ?2", "uses_by_subject (subject=? AND at>?)"),
        (
            "SELECT id FROM tunnels WHERE restore_deadline > ?1 ORDER BY restore_deadline LIMIT ?2",
            "tunnels_by_deadline",
        ),
        (
            "SELECT fingerprint FROM certificates WHERE not_after < ?1 ORDER BY not_after LIMIT 10000",
            "certificates_by_end",
        ),
        (
            "SELECT certificates.not_after AS not_after FROM certificates JOIN tunnels ON tunnels.id = certificates.tunnel
             WHERE certificates.not_after >= ?1 AND tunnels.cert_fingerprint = certificates.fingerprint
             ORDER BY certificates.not_after LIMIT 1",
            "certificates_by_end",
        ),
        ("SELECT * FROM orders WHERE tunnel = ?1 ORDER BY begun_at DESC LIMIT 1", "orders_by_tunnel"),
        ("SELECT * FROM orders WHERE host = ?1 ORDER BY begun_at DESC LIMIT 1", "orders_by_host"),
        ("SELECT * FROM orders WHERE state = 'pending'", "orders_by_state"),
        ("SELECT * FROM orders WHERE begun_at >= ?1", "orders_by_beginning"),
        ("DELETE FROM orders WHERE begun_at < ?1 AND state <> 'pending'", "orders_by_beginning"),
        (
            "UPDATE certificates SET revoked_at = ?2 WHERE fingerprint = ?1 AND revoked_at IS NULL",
            "certificates_by_fingerprint",
        ),
    ] {
        let tail =
            words(statement.split_once(" FROM ").or(statement.split_once(" SET ")).expect("a table or a value").1);
        let condition = words(&tail[tail.find("WHERE").expect("a condition")..]);
        assert!(source.contains(&condition), "the source has no statement with {condition}: change it here as well");
        let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).expect("a statement");
        let count = explain.parameter_count();
        let parameters = rusqlite::params_from_iter(std::iter::repeat_n(1, count));
        let plan: Vec<String> =
            explain.query_map(parameters, |row| row.get(3)).expect("a plan").collect::<Result<_, _>>().expect("a plan");
        let plan = plan.join("; ");
        assert!(plan.contains(index), "{statement}: {plan}");
        assert!(!plan.contains("SCAN"), "{statement}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "sorted by hand: {statement}: {plan}");
    }
}

fn open(directory: &Path) -> SqliteStore {
    SqliteStore::open(directory).expect("a store")
}

fn connect(directory: &Path) -> Connection {
    Connection::open(directory.join("adit.db")).expect("a connection")
}

async fn contents(store: &SqliteStore) -> String {
    let own = organization("org_own");
    let tunnels: Vec<_> = store.tunnels(&own, Page::ALL).await.expect("an answer").iter().map(tunnel_text).collect();
    let keys: Vec<_> = store.api_keys(&own, Page::ALL).await.expect("an answer").iter().map(key_text).collect();
    let identities = store.identities(&own, Page::ALL).await.expect("an answer");
    let by_id = store.identity(IdentityKey::Id(identity_id(1))).await.expect("an answer");
    format!("{tunnels:#?} {keys:#?} {identities:#?} {by_id:#?}")
}
