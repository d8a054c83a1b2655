//! Statements and rows: each record to its table and back.

use std::str::FromStr;

use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tunnel_model::{
    ApiKey, Certificate, Identity, IdentityId, IdentityKey, KeyId, Metadata, OrganizationId, Scope, SecretHash, Status,
    Timestamp, TlsMode, Tunnel, TunnelId, TunnelName, Usage,
};

use crate::{ClientCertificate, EdgeCertificate, Page, Place};

type Result<T> = rusqlite::Result<T>;

macro_rules! tunnel_columns {
    ($prefix:literal) => {
        concat!(
            $prefix,
            "id, ",
            $prefix,
            "organization, ",
            $prefix,
            "name, ",
            $prefix,
            "identity, ",
            $prefix,
            "tls_mode, ",
            $prefix,
            "status, ",
            $prefix,
            "description, ",
            $prefix,
            "metadata, ",
            $prefix,
            "cert_pem, ",
            $prefix,
            "cert_fingerprint, ",
            $prefix,
            "cert_serial, ",
            $prefix,
            "cert_expires_at, ",
            $prefix,
            "secret_hash, ",
            $prefix,
            "last_connected_at, ",
            $prefix,
            "last_connected_ip, ",
            $prefix,
            "last_disconnected_at, ",
            $prefix,
            "restore_deadline, ",
            $prefix,
            "created_at, ",
            $prefix,
            "updated_at"
        )
    };
}
const TUNNEL_WIDTH: usize = 19;

pub(super) fn tunnel(connection: &Connection, id: TunnelId) -> Result<Option<Tunnel>> {
    connection
        .prepare_cached(concat!("SELECT ", tunnel_columns!(""), " FROM tunnels WHERE id = ?1"))?
        .query_row([id.as_bytes()], |row| read_tunnel(row, 0))
        .optional()
}

pub(super) fn tunnel_by_name(connection: &Connection, name: &TunnelName) -> Result<Option<Tunnel>> {
    connection
        .prepare_cached(concat!("SELECT ", tunnel_columns!(""), " FROM tunnels WHERE name = ?1"))?
        .query_row([name.as_str()], |row| read_tunnel(row, 0))
        .optional()
}

/// Before every record that has a time.
const BEGINNING: Place = Place { created_at: Timestamp::from_micros(i64::MIN), id: [0; 16] };

/// The parameters of a page, from `?1` on. A negative LIMIT is none.
fn page_of(organization: &OrganizationId, page: Page) -> (&str, i64, [u8; 16], i64) {
    let Place { created_at, id } = page.after.unwrap_or(BEGINNING);
    (organization.as_str(), created_at.micros(), id, page.limit.map_or(-1, i64::from))
}

pub(super) fn tunnels(connection: &Connection, organization: &OrganizationId, page: Page) -> Result<Vec<Tunnel>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            tunnel_columns!(""),
            " FROM tunnels WHERE organization = ?1 AND (created_at, id) > (?2, ?3) ORDER BY created_at, id LIMIT ?4"
        ))?
        .query_map(page_of(organization, page), |row| read_tunnel(row, 0))?
        .collect()
}

pub(super) fn expired_tunnels(connection: &Connection, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>> {
    connection
        .prepare_cached("SELECT id FROM tunnels WHERE restore_deadline <= ?1 ORDER BY restore_deadline LIMIT ?2")?
        .query_map(params![now.micros(), limit], |row| Ok(TunnelId::from_bytes(row.get(0)?)))?
        .collect()
}

pub(super) fn tunnels_restorable_after(
    connection: &Connection,
    latest: Timestamp,
    limit: u32,
) -> Result<Vec<TunnelId>> {
    connection
        .prepare_cached("SELECT id FROM tunnels WHERE restore_deadline > ?1 ORDER BY restore_deadline LIMIT ?2")?
        .query_map(params![latest.micros(), limit], |row| Ok(TunnelId::from_bytes(row.get(0)?)))?
        .collect()
}

/// Reads every record that a list or a look-up may ask for.
pub(super) fn read_all(connection: &Connection) -> Result<()> {
    let mut tunnels = connection.prepare(concat!("SELECT ", tunnel_columns!(""), " FROM tunnels"))?;
    tunnels.query_map([], |row| read_tunnel(row, 0).map(drop))?.collect::<Result<()>>()?;
    let mut identities = connection.prepare("SELECT * FROM identities")?;
    identities.query_map([], |row| read_identity(row).map(drop))?.collect::<Result<()>>()?;
    let mut keys = connection.prepare("SELECT * FROM api_keys")?;
    keys.query_map([], |row| read_api_key(row).map(drop))?.collect()
}

pub(super) fn insert_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    let certificate = tunnel.certificate.as_ref();
    connection
        .prepare_cached(concat!(
            "INSERT INTO tunnels (",
            tunnel_columns!(""),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)"
        ))?
        .execute(params![
            tunnel.id.as_bytes(),
            tunnel.organization.as_str(),
            tunnel.name.as_str(),
            tunnel.identity.as_ref().map(IdentityId::as_bytes),
            match tunnel.tls_mode {
                TlsMode::Edge => "edge",
                TlsMode::Passthrough => "passthrough",
            },
            status_text(tunnel.status),
            tunnel.description.as_ref().map(|description| description.as_str()),
            tunnel.metadata.to_string(),
            certificate.map(|certificate| &certificate.pem),
            certificate.map(|certificate| certificate.fingerprint),
            certificate.map(|certificate| &certificate.serial),
            certificate.map(|certificate| certificate.expires_at.micros()),
            tunnel.secret_hash.as_ref().map(SecretHash::as_bytes),
            tunnel.last_connected_at.map(Timestamp::micros),
            tunnel.last_connected_ip.map(|address| address.to_string()),
            tunnel.last_disconnected_at.map(Timestamp::micros),
            tunnel.restore_deadline.map(Timestamp::micros),
            tunnel.created_at.micros(),
            tunnel.updated_at.micros(),
        ])
        .map(drop)
}

// SQLite rewrites the index entries of every column that an UPDATE names, changed or
// not. So each of the three below names what its event changes, and a signing, the one
// that is frequent, no indexed column at all.

pub(super) fn update_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    connection
        .prepare_cached(
            "UPDATE tunnels SET status = ?2, description = ?3, metadata = ?4, secret_hash = ?5, last_connected_at = ?6,
             last_connected_ip = ?7, last_disconnected_at = ?8, restore_deadline = ?9, updated_at = ?10 WHERE id = ?1",
        )?
        .execute(params![
            tunnel.id.as_bytes(),
            status_text(tunnel.status),
            tunnel.description.as_ref().map(|description| description.as_str()),
            tunnel.metadata.to_string(),
            tunnel.secret_hash.as_ref().map(SecretHash::as_bytes),
            tunnel.last_connected_at.map(Timestamp::micros),
            tunnel.last_connected_ip.map(|address| address.to_string()),
            tunnel.last_disconnected_at.map(Timestamp::micros),
            tunnel.restore_deadline.map(Timestamp::micros),
            tunnel.updated_at.micros(),
        ])
        .map(drop)
}

pub(super) fn update_certificate(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    let certificate = tunnel.certificate.as_ref();
    connection
        .prepare_cached(
            "UPDATE tunnels SET status = ?2, cert_pem = ?3, cert_fingerprint = ?4, cert_serial = ?5,
             cert_expires_at = ?6, updated_at = ?7 WHERE id = ?1",
        )?
        .execute(params![
            tunnel.id.as_bytes(),
            status_text(tunnel.status),
            certificate.map(|certificate| &certificate.pem),
            certificate.map(|certificate| certificate.fingerprint),
            certificate.map(|certificate| &certificate.serial),
            certificate.map(|certificate| certificate.expires_at.micros()),
            tunnel.updated_at.micros(),
        ])
        .map(drop)
}

pub(super) fn update_name(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    connection
        .prepare_cached("UPDATE tunnels SET name = ?2 WHERE id = ?1")?
        .execute(params![tunnel.id.as_bytes(), tunnel.name.as_str()])
        .map(drop)
}

pub(super) fn delete_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    connection.prepare_cached("DELETE FROM tunnels WHERE id = ?1")?.execute([tunnel.id.as_bytes()])?;
    connection.prepare_cached("DELETE FROM uses WHERE subject = ?1")?.execute([subject(&Usage::Sign(tunnel.id))])?;
    Ok(())
}

pub(super) fn identity(connection: &Connection, key: IdentityKey<'_>) -> Result<Option<Identity>> {
    const BY_HANDLE: &str = "SELECT id, organization, handle, display_name, description, tunnel, created_at, updated_at
                             FROM identities WHERE handle = ?1";
    const BY_ID: &str = "SELECT id, organization, handle, display_name, description, tunnel, created_at, updated_at
                         FROM identities WHERE id = ?1";
    match key {
        IdentityKey::Handle(handle) => {
            connection.prepare_cached(BY_HANDLE)?.query_row([handle.as_str()], read_identity)
        }
        IdentityKey::Id(id) => connection.prepare_cached(BY_ID)?.query_row([id.as_bytes()], read_identity),
    }
    .optional()
}

pub(super) fn identities(
    connection: &Connection,
    organization: &OrganizationId,
    page: Page,
) -> Result<Vec<(Identity, Tunnel)>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            tunnel_columns!("t."),
            ", i.id, i.organization, i.handle, i.display_name, i.description, i.tunnel, i.created_at, i.updated_at
             FROM identities i JOIN tunnels t ON t.id = i.tunnel
             WHERE i.organization = ?1 AND (i.created_at, i.id) > (?2, ?3) ORDER BY i.created_at, i.id LIMIT ?4"
        ))?
        .query_map(page_of(organization, page), |row| Ok((read_identity_at(row, TUNNEL_WIDTH)?, read_tunnel(row, 0)?)))?
        .collect()
}

pub(super) fn insert_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    write_identity(connection, "INSERT INTO identities VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)", identity)
}

pub(super) fn update_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    write_identity(
        connection,
        "UPDATE identities SET organization = ?2, handle = ?3, display_name = ?4, description = ?5, tunnel = ?6,
         created_at = ?7, updated_at = ?8 WHERE id = ?1",
        identity,
    )
}

pub(super) fn delete_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    connection.prepare_cached("DELETE FROM identities WHERE id = ?1")?.execute([identity.id.as_bytes()]).map(drop)
}

pub(super) fn api_key(connection: &Connection, id: KeyId) -> Result<Option<ApiKey>> {
    connection
        .prepare_cached("SELECT * FROM api_keys WHERE id = ?1")?
        .query_row([id.as_bytes()], read_api_key)
        .optional()
}

pub(super) fn api_keys(connection: &Connection, organization: &OrganizationId, page: Page) -> Result<Vec<ApiKey>> {
    connection
        .prepare_cached(
            "SELECT * FROM api_keys WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
        )?
        .query_map(page_of(organization, page), read_api_key)?
        .collect()
}

pub(super) fn active_keys(connection: &Connection, identity: IdentityId) -> Result<Vec<ApiKey>> {
    connection
        .prepare_cached("SELECT * FROM api_keys WHERE identity = ?1 AND revoked_at IS NULL")?
        .query_map([identity.as_bytes()], read_api_key)?
        .collect()
}

pub(super) fn insert_api_key(connection: &Connection, key: &ApiKey) -> Result<()> {
    // An id that is there already fails: no key silently takes another's place.
    write_api_key(connection, "INSERT INTO api_keys VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)", key)
}

pub(super) fn update_api_key(connection: &Connection, key: &ApiKey) -> Result<()> {
    write_api_key(
        connection,
        "UPDATE api_keys SET organization = ?2, identity = ?3, label = ?4, description = ?5, hash = ?6, last4 = ?7,
         created_by = ?8, created_at = ?9, updated_at = ?10, last_used_at = ?11, revoked_at = ?12 WHERE id = ?1",
        key,
    )
}

fn write_api_key(connection: &Connection, statement: &str, key: &ApiKey) -> Result<()> {
    let identity = match &key.scope {
        Scope::Admin => None,
        Scope::Identity(identity) => Some(identity.as_bytes()),
    };
    connection
        .prepare_cached(statement)?
        .execute(params![
            key.id.as_bytes(),
            key.organization.as_str(),
            identity,
            key.label.as_str(),
            key.description.as_ref().map(|description| description.as_str()),
            key.hash.as_bytes(),
            key.last4,
            key.created_by.as_ref().map(KeyId::as_bytes),
            key.created_at.micros(),
            key.updated_at.micros(),
            key.last_used_at.map(Timestamp::micros),
            key.revoked_at.map(Timestamp::micros),
        ])
        .map(drop)
}

pub(super) fn insert_client_certificate(connection: &Connection, certificate: &ClientCertificate) -> Result<()> {
    let ClientCertificate { serial, key, not_after } = certificate;
    connection
        .prepare_cached("INSERT OR REPLACE INTO client_certificates (serial, key, not_after) VALUES (?1, ?2, ?3)")?
        .execute(params![serial, key, not_after.micros()])
        .map(drop)
}

pub(super) fn client_certificates(connection: &Connection) -> Result<Vec<ClientCertificate>> {
    let mut statement = connection.prepare_cached("SELECT serial, key, not_after FROM client_certificates")?;
    let certificates = statement.query_map([], |row| {
        Ok(ClientCertificate { serial: row.get(0)?, key: row.get(1)?, not_after: Timestamp::from_micros(row.get(2)?) })
    })?;
    certificates.collect()
}

pub(super) fn forget_client_certificates(connection: &Connection, now: Timestamp) -> Result<()> {
    connection.prepare_cached("DELETE FROM client_certificates WHERE not_after < ?1")?.execute([now.micros()]).map(drop)
}

pub(super) fn insert_edge_certificate(connection: &Connection, certificate: &EdgeCertificate) -> Result<()> {
    let EdgeCertificate { name, serial, fingerprint, not_after } = certificate;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO edge_certificates (serial, name, fingerprint, not_after) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![serial, name, fingerprint, not_after.micros()])
        .map(drop)
}

pub(super) fn edge_certificates(connection: &Connection, name: &str) -> Result<Vec<EdgeCertificate>> {
    connection
        .prepare_cached(
            "SELECT name, serial, fingerprint, not_after FROM edge_certificates WHERE name = ?1 ORDER BY not_after",
        )?
        .query_map([name], |row| {
            Ok(EdgeCertificate {
                name: row.get(0)?,
                serial: row.get(1)?,
                fingerprint: row.get(2)?,
                not_after: Timestamp::from_micros(row.get(3)?),
            })
        })?
        .collect()
}

pub(super) fn touch_api_key(connection: &Connection, id: KeyId, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1")?
        .execute(params![id.as_bytes(), now.micros()])
        .map(drop)
}

pub(super) fn rewind_uses(connection: &Connection, usage: &Usage, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("UPDATE uses SET at = ?2 WHERE subject = ?1 AND at > ?2")?
        .execute(params![subject(usage), now.micros()])
        .map(drop)
}

pub(super) fn nth_use(connection: &Connection, usage: &Usage, nth: u32) -> Result<Timestamp> {
    connection
        .prepare_cached("SELECT at FROM uses WHERE subject = ?1 ORDER BY at DESC LIMIT 1 OFFSET ?2")?
        .query_row(params![subject(usage), nth.saturating_sub(1)], |row| Ok(Timestamp::from_micros(row.get(0)?)))
}

pub(super) fn record_use(connection: &Connection, usage: &Usage, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO uses VALUES (?1, ?2)")?
        .execute(params![subject(usage), now.micros()])
        .map(drop)
}

pub(super) fn prune_uses(connection: &Connection, before: Timestamp) -> Result<()> {
    // Rows stand in the order in which they were written, so the oldest come first and
    // no index by time is needed. A sweep that leaves some is followed by another.
    connection
        .prepare_cached(
            "DELETE FROM uses WHERE at < ?1 AND rowid IN (SELECT rowid FROM uses ORDER BY rowid LIMIT 100000)",
        )?
        .execute([before.micros()])
        .map(drop)
}

pub(super) fn record_issuance(connection: &Connection, tunnel: &Tunnel, now: Timestamp) -> Result<()> {
    let Some(certificate) = &tunnel.certificate else { return Ok(()) };
    connection
        .prepare_cached("INSERT INTO certificates VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            certificate.serial,
            tunnel.id.as_bytes(),
            tunnel.name.as_str(),
            certificate.fingerprint,
            certificate.expires_at.micros(),
            now.micros(),
        ])
        .map(drop)
}

fn subject(usage: &Usage) -> String {
    match usage {
        Usage::Create(organization) => format!("create:{organization}"),
        Usage::Sign(tunnel) => format!("sign:{tunnel}"),
    }
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::AwaitingCert => "awaiting_cert",
        Status::Active => "active",
        Status::DeletePending => "delete_pending",
        // The table's CHECK refuses it: deleted tunnels have no row.
        Status::Deleted => "deleted",
    }
}

fn read_tunnel(row: &Row<'_>, first: usize) -> Result<Tunnel> {
    let pem: Option<String> = row.get(first + 8)?;
    let certificate = match pem {
        None => None,
        Some(pem) => Some(Certificate {
            pem,
            fingerprint: row.get(first + 9)?,
            serial: row.get(first + 10)?,
            expires_at: Timestamp::from_micros(row.get(first + 11)?),
        }),
    };
    let metadata: serde_json::Map<_, _> =
        serde_json::from_str(row.get_ref(first + 7)?.as_str()?).map_err(|error| unreadable(first + 7, error))?;
    let tls_mode = match row.get_ref(first + 4)?.as_str()? {
        "edge" => TlsMode::Edge,
        "passthrough" => TlsMode::Passthrough,
        _ => return Err(unreadable(first + 4, FromSqlError::InvalidType)),
    };
    let status = match row.get_ref(first + 5)?.as_str()? {
        "awaiting_cert" => Status::AwaitingCert,
        "active" => Status::Active,
        "delete_pending" => Status::DeletePending,
        _ => return Err(unreadable(first + 5, FromSqlError::InvalidType)),
    };
    Ok(Tunnel {
        id: TunnelId::from_bytes(row.get(first)?),
        organization: OrganizationId::new(row.get::<_, String>(first + 1)?),
        name: parse(row, first + 2)?,
        identity: row.get::<_, Option<[u8; 16]>>(first + 3)?.map(IdentityId::from_bytes),
        tls_mode,
        status,
        description: parse_optional(row, first + 6)?,
        metadata: Metadata::try_from(metadata).map_err(|error| unreadable(first + 7, error))?,
        certificate,
        secret_hash: row.get::<_, Option<[u8; 32]>>(first + 12)?.map(SecretHash::from_sha256),
        last_connected_at: timestamp(row, first + 13)?,
        last_connected_ip: parse_optional(row, first + 14)?,
        last_disconnected_at: timestamp(row, first + 15)?,
        restore_deadline: timestamp(row, first + 16)?,
        created_at: Timestamp::from_micros(row.get(first + 17)?),
        updated_at: Timestamp::from_micros(row.get(first + 18)?),
    })
}

fn write_identity(connection: &Connection, statement: &str, identity: &Identity) -> Result<()> {
    connection
        .prepare_cached(statement)?
        .execute(params![
            identity.id.as_bytes(),
            identity.organization.as_str(),
            identity.handle.as_str(),
            identity.display_name.as_ref().map(|name| name.as_str()),
            identity.description.as_ref().map(|description| description.as_str()),
            identity.tunnel.as_bytes(),
            identity.created_at.micros(),
            identity.updated_at.micros(),
        ])
        .map(drop)
}

fn read_identity(row: &Row<'_>) -> Result<Identity> {
    read_identity_at(row, 0)
}

fn read_identity_at(row: &Row<'_>, first: usize) -> Result<Identity> {
    Ok(Identity {
        id: IdentityId::from_bytes(row.get(first)?),
        organization: OrganizationId::new(row.get::<_, String>(first + 1)?),
        handle: parse(row, first + 2)?,
        display_name: parse_optional(row, first + 3)?,
        description: parse_optional(row, first + 4)?,
        tunnel: TunnelId::from_bytes(row.get(first + 5)?),
        created_at: Timestamp::from_micros(row.get(first + 6)?),
        updated_at: Timestamp::from_micros(row.get(first + 7)?),
    })
}

fn read_api_key(row: &Row<'_>) -> Result<ApiKey> {
    let identity = row.get::<_, Option<[u8; 16]>>(2)?.map(IdentityId::from_bytes);
    Ok(ApiKey {
        id: KeyId::from_bytes(row.get(0)?),
        organization: OrganizationId::new(row.get::<_, String>(1)?),
        scope: identity.map_or(Scope::Admin, Scope::Identity),
        label: parse(row, 3)?,
        description: parse_optional(row, 4)?,
        hash: SecretHash::from_sha256(row.get(5)?),
        last4: row.get(6)?,
        created_by: row.get::<_, Option<[u8; 16]>>(7)?.map(KeyId::from_bytes),
        created_at: Timestamp::from_micros(row.get(8)?),
        updated_at: Timestamp::from_micros(row.get(9)?),
        last_used_at: timestamp(row, 10)?,
        revoked_at: timestamp(row, 11)?,
    })
}

fn timestamp(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_micros))
}

fn parse<T>(row: &Row<'_>, column: usize) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?.as_str()?.parse().map_err(|error| unreadable(column, error))
}

fn parse_optional<T>(row: &Row<'_>, column: usize) -> Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str_or_null()?;
    text.map(|text| text.parse().map_err(|error| unreadable(column, error))).transpose()
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
