//! What was issued: to tunnels (`certificates`), to agents and admins (`client_certificates`), and
//! for the edge's own names (`edge_certificates`).

use rusqlite::{Connection, named_params, params};
use tunnel_model::{Timestamp, Tunnel};

use super::{Result, timestamp};
use crate::{ClientCertificate, EdgeCertificate};

pub(in crate::sqlite) fn record_issuance(connection: &Connection, tunnel: &Tunnel, now: Timestamp) -> Result<()> {
    let Some(certificate) = &tunnel.certificate else { return Ok(()) };
    connection
        .prepare_cached(
            "INSERT INTO certificates (serial, tunnel, name, fingerprint, expires_at, issued_at)
             VALUES (:serial, :tunnel, :name, :fingerprint, :expires_at, :issued_at)",
        )?
        .execute(named_params! {
            ":serial": certificate.serial,
            ":tunnel": tunnel.id.as_bytes(),
            ":name": tunnel.name.as_str(),
            ":fingerprint": certificate.fingerprint,
            ":expires_at": certificate.expires_at.micros(),
            ":issued_at": now.micros(),
        })
        .map(drop)
}

pub(in crate::sqlite) fn insert_client_certificate(
    connection: &Connection,
    certificate: &ClientCertificate,
) -> Result<()> {
    let ClientCertificate { serial, key, not_after } = certificate;
    connection
        .prepare_cached("INSERT OR REPLACE INTO client_certificates (serial, key, not_after) VALUES (?1, ?2, ?3)")?
        .execute(params![serial, key, not_after.micros()])
        .map(drop)
}

pub(in crate::sqlite) fn client_certificates(connection: &Connection) -> Result<Vec<ClientCertificate>> {
    let mut statement = connection.prepare_cached("SELECT * FROM client_certificates")?;
    let certificates = statement.query_map([], |row| {
        Ok(ClientCertificate {
            serial: row.get("serial")?,
            key: row.get("key")?,
            not_after: timestamp(row, "not_after")?,
        })
    })?;
    certificates.collect()
}

pub(in crate::sqlite) fn forget_client_certificates(connection: &Connection, now: Timestamp) -> Result<()> {
    connection.prepare_cached("DELETE FROM client_certificates WHERE not_after < ?1")?.execute([now.micros()]).map(drop)
}

pub(in crate::sqlite) fn insert_edge_certificate(connection: &Connection, certificate: &EdgeCertificate) -> Result<()> {
    let EdgeCertificate { name, serial, fingerprint, not_after } = certificate;
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO edge_certificates (serial, name, fingerprint, not_after) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![serial, name, fingerprint, not_after.micros()])
        .map(drop)
}

pub(in crate::sqlite) fn edge_certificates(connection: &Connection, name: &str) -> Result<Vec<EdgeCertificate>> {
    connection
        .prepare_cached("SELECT * FROM edge_certificates WHERE name = ?1 ORDER BY not_after")?
        .query_map([name], |row| {
            Ok(EdgeCertificate {
                name: row.get("name")?,
                serial: row.get("serial")?,
                fingerprint: row.get("fingerprint")?,
                not_after: timestamp(row, "not_after")?,
            })
        })?
        .collect()
}
