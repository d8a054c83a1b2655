//! The table `tunnels`.

use rusqlite::types::FromSqlError;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use tunnel_model::{
    Certificate, IdentityId, Metadata, OrganizationId, SecretHash, Status, Timestamp, TlsMode, Tunnel, TunnelId,
    TunnelName, Usage,
};

use super::{Result, optional, optional_timestamp, page_of, parse, parse_optional, subject, timestamp, unreadable};
use crate::Page;

pub(in crate::sqlite) fn tunnel(connection: &Connection, id: TunnelId) -> Result<Option<Tunnel>> {
    connection.prepare_cached("SELECT * FROM tunnels WHERE id = ?1")?.query_row([id.as_bytes()], read_tunnel).optional()
}

pub(in crate::sqlite) fn tunnel_by_name(connection: &Connection, name: &TunnelName) -> Result<Option<Tunnel>> {
    connection
        .prepare_cached("SELECT * FROM tunnels WHERE name = ?1")?
        .query_row([name.as_str()], read_tunnel)
        .optional()
}

pub(in crate::sqlite) fn tunnels(
    connection: &Connection,
    organization: &OrganizationId,
    page: Page,
) -> Result<Vec<Tunnel>> {
    connection
        .prepare_cached(
            "SELECT * FROM tunnels WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
        )?
        .query_map(page_of(organization, page), read_tunnel)?
        .collect()
}

pub(in crate::sqlite) fn expired_tunnels(connection: &Connection, now: Timestamp, limit: u32) -> Result<Vec<TunnelId>> {
    connection
        .prepare_cached("SELECT id FROM tunnels WHERE restore_deadline <= ?1 ORDER BY restore_deadline LIMIT ?2")?
        .query_map(params![now.micros(), limit], |row| row.get("id").map(TunnelId::from_bytes))?
        .collect()
}

pub(in crate::sqlite) fn tunnels_restorable_after(
    connection: &Connection,
    latest: Timestamp,
    limit: u32,
) -> Result<Vec<TunnelId>> {
    connection
        .prepare_cached("SELECT id FROM tunnels WHERE restore_deadline > ?1 ORDER BY restore_deadline LIMIT ?2")?
        .query_map(params![latest.micros(), limit], |row| row.get("id").map(TunnelId::from_bytes))?
        .collect()
}

pub(in crate::sqlite) fn insert_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    let certificate = tunnel.certificate.as_ref();
    connection
        .prepare_cached(
            "INSERT INTO tunnels (id, organization, name, identity, tls_mode, status, description, metadata, cert_pem,
             cert_fingerprint, cert_serial, cert_expires_at, cert_renew_at, secret_hash, last_connected_at, last_connected_ip,
             last_disconnected_at, restore_deadline, created_at, updated_at)
             VALUES (:id, :organization, :name, :identity, :tls_mode, :status, :description, :metadata, :cert_pem,
             :cert_fingerprint, :cert_serial, :cert_expires_at, :cert_renew_at, :secret_hash, :last_connected_at, :last_connected_ip,
             :last_disconnected_at, :restore_deadline, :created_at, :updated_at)",
        )?
        .execute(named_params! {
            ":id": tunnel.id.as_bytes(),
            ":organization": tunnel.organization.as_str(),
            ":name": tunnel.name.as_str(),
            ":identity": tunnel.identity.as_ref().map(IdentityId::as_bytes),
            ":tls_mode": tls_mode_text(tunnel.tls_mode),
            ":status": status_text(tunnel.status),
            ":description": tunnel.description.as_ref().map(|description| description.as_str()),
            ":metadata": tunnel.metadata.to_string(),
            ":cert_pem": certificate.map(|certificate| &certificate.pem),
            ":cert_fingerprint": certificate.map(|certificate| certificate.fingerprint),
            ":cert_serial": certificate.map(|certificate| &certificate.serial),
            ":cert_expires_at": certificate.map(|certificate| certificate.expires_at.micros()),
            ":cert_renew_at": certificate.and_then(|certificate| certificate.renew_at).map(Timestamp::micros),
            ":secret_hash": tunnel.secret_hash.as_ref().map(SecretHash::as_bytes),
            ":last_connected_at": tunnel.last_connected_at.map(Timestamp::micros),
            ":last_connected_ip": tunnel.last_connected_ip.map(|address| address.to_string()),
            ":last_disconnected_at": tunnel.last_disconnected_at.map(Timestamp::micros),
            ":restore_deadline": tunnel.restore_deadline.map(Timestamp::micros),
            ":created_at": tunnel.created_at.micros(),
            ":updated_at": tunnel.updated_at.micros(),
        })
        .map(drop)
}

// SQLite rewrites the index entries of every column that an UPDATE names, changed or
// not. So each of the three below names what its event changes, and a signing, the one
// that is frequent, no indexed column at all.

pub(in crate::sqlite) fn update_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    let renew_at = tunnel.certificate.as_ref().and_then(|certificate| certificate.renew_at);
    connection
        .prepare_cached(
            "UPDATE tunnels SET status = :status, description = :description, metadata = :metadata,
             secret_hash = :secret_hash, last_connected_at = :last_connected_at,
             last_connected_ip = :last_connected_ip, last_disconnected_at = :last_disconnected_at,
             restore_deadline = :restore_deadline, cert_renew_at = :cert_renew_at, updated_at = :updated_at
             WHERE id = :id",
        )?
        .execute(named_params! {
            ":id": tunnel.id.as_bytes(),
            ":status": status_text(tunnel.status),
            ":description": tunnel.description.as_ref().map(|description| description.as_str()),
            ":metadata": tunnel.metadata.to_string(),
            ":secret_hash": tunnel.secret_hash.as_ref().map(SecretHash::as_bytes),
            ":last_connected_at": tunnel.last_connected_at.map(Timestamp::micros),
            ":last_connected_ip": tunnel.last_connected_ip.map(|address| address.to_string()),
            ":last_disconnected_at": tunnel.last_disconnected_at.map(Timestamp::micros),
            ":cert_renew_at": renew_at.map(Timestamp::micros),
            ":restore_deadline": tunnel.restore_deadline.map(Timestamp::micros),
            ":updated_at": tunnel.updated_at.micros(),
        })
        .map(drop)
}

pub(in crate::sqlite) fn update_certificate(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    let certificate = tunnel.certificate.as_ref();
    connection
        .prepare_cached(
            "UPDATE tunnels SET status = :status, cert_pem = :cert_pem, cert_fingerprint = :cert_fingerprint,
             cert_serial = :cert_serial, cert_expires_at = :cert_expires_at, cert_renew_at = :cert_renew_at, updated_at = :updated_at
             WHERE id = :id",
        )?
        .execute(named_params! {
            ":id": tunnel.id.as_bytes(),
            ":status": status_text(tunnel.status),
            ":cert_pem": certificate.map(|certificate| &certificate.pem),
            ":cert_fingerprint": certificate.map(|certificate| certificate.fingerprint),
            ":cert_serial": certificate.map(|certificate| &certificate.serial),
            ":cert_expires_at": certificate.map(|certificate| certificate.expires_at.micros()),
            ":cert_renew_at": certificate.and_then(|certificate| certificate.renew_at).map(Timestamp::micros),
            ":updated_at": tunnel.updated_at.micros(),
        })
        .map(drop)
}

pub(in crate::sqlite) fn update_name(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    connection
        .prepare_cached("UPDATE tunnels SET name = ?2 WHERE id = ?1")?
        .execute(params![tunnel.id.as_bytes(), tunnel.name.as_str()])
        .map(drop)
}

pub(in crate::sqlite) fn delete_tunnel(connection: &Connection, tunnel: &Tunnel) -> Result<()> {
    connection.prepare_cached("DELETE FROM tunnels WHERE id = ?1")?.execute([tunnel.id.as_bytes()])?;
    connection.prepare_cached("DELETE FROM uses WHERE subject = ?1")?.execute([subject(&Usage::Sign(tunnel.id))])?;
    Ok(())
}

pub(super) fn read_tunnel(row: &Row<'_>) -> Result<Tunnel> {
    let certificate = match row.get("cert_pem")? {
        None => None,
        Some(pem) => Some(Certificate {
            pem,
            fingerprint: row.get("cert_fingerprint")?,
            serial: row.get("cert_serial")?,
            expires_at: timestamp(row, "cert_expires_at")?,
            renew_at: optional_timestamp(row, "cert_renew_at")?,
        }),
    };
    let metadata: serde_json::Map<_, _> =
        serde_json::from_str(row.get_ref("metadata")?.as_str()?).map_err(|error| unreadable(row, "metadata", error))?;
    Ok(Tunnel {
        id: row.get("id").map(TunnelId::from_bytes)?,
        organization: row.get::<_, String>("organization").map(OrganizationId::new)?,
        name: parse(row, "name")?,
        identity: optional(row, "identity", IdentityId::from_bytes)?,
        tls_mode: read_tls_mode(row)?,
        status: read_status(row)?,
        description: parse_optional(row, "description")?,
        metadata: Metadata::try_from(metadata).map_err(|error| unreadable(row, "metadata", error))?,
        certificate,
        secret_hash: optional(row, "secret_hash", SecretHash::from_sha256)?,
        last_connected_at: optional_timestamp(row, "last_connected_at")?,
        last_connected_ip: parse_optional(row, "last_connected_ip")?,
        last_disconnected_at: optional_timestamp(row, "last_disconnected_at")?,
        restore_deadline: optional_timestamp(row, "restore_deadline")?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
    })
}

fn tls_mode_text(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Edge => "edge",
        TlsMode::Passthrough => "passthrough",
    }
}

fn read_tls_mode(row: &Row<'_>) -> Result<TlsMode> {
    match row.get_ref("tls_mode")?.as_str()? {
        "edge" => Ok(TlsMode::Edge),
        "passthrough" => Ok(TlsMode::Passthrough),
        _ => Err(unreadable(row, "tls_mode", FromSqlError::InvalidType)),
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

fn read_status(row: &Row<'_>) -> Result<Status> {
    match row.get_ref("status")?.as_str()? {
        "awaiting_cert" => Ok(Status::AwaitingCert),
        "active" => Ok(Status::Active),
        "delete_pending" => Ok(Status::DeletePending),
        _ => Err(unreadable(row, "status", FromSqlError::InvalidType)),
    }
}
