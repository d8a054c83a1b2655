//! What was issued: for public hosts (`certificates`), and to agents and admins (`client_certificates`).

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params, params_from_iter};
use tunnel_model::{Issuer, KeyId, OrganizationId, Timestamp, TunnelId, TunnelName};

use super::{BEGINNING, Result, optional, optional_timestamp, parse, timestamp};
use crate::certificates::UNKNOWN;
use crate::{CertificateFilter, ClientCertificate, Holder, IssuedCertificate, Page, Place};

/// One that is there already stays as it is: it is the same.
pub(in crate::sqlite) fn insert_certificate(connection: &Connection, certificate: &IssuedCertificate) -> Result<()> {
    let (tunnel, name, organization, host) = match &certificate.holder {
        Holder::Tunnel { id, name, organization } => {
            (Some(id.as_bytes()), Some(name.as_str()), organization.as_ref().map(OrganizationId::as_str), None)
        }
        Holder::Edge(host) => (None, None, None, Some(host)),
    };
    connection
        .prepare_cached(
            "INSERT INTO certificates (fingerprint, serial, tunnel, name, organization, host, issuer, profile, key,
             requested_by, not_before, not_after, issued_at)
             VALUES (:fingerprint, :serial, :tunnel, :name, :organization, :host, :issuer, :profile, :key,
             :requested_by, :not_before, :not_after, :issued_at) ON CONFLICT (fingerprint) DO NOTHING",
        )?
        .execute(named_params! {
            ":fingerprint": certificate.fingerprint,
            ":serial": certificate.serial,
            ":tunnel": tunnel,
            ":name": name,
            ":organization": organization,
            ":host": host,
            ":issuer": issuer_word(certificate.issuer),
            ":profile": certificate.profile,
            ":key": certificate.key,
            ":requested_by": certificate.requested_by.as_ref().map(KeyId::as_bytes),
            ":not_before": certificate.not_before.map(Timestamp::micros),
            ":not_after": certificate.not_after.micros(),
            ":issued_at": certificate.issued_at.unwrap_or(UNKNOWN).micros(),
        })
        .map(drop)
}

/// The conditions are those that are given, so that each can use its index.
pub(in crate::sqlite) fn certificates(
    connection: &Connection,
    filter: &CertificateFilter,
    page: Page,
) -> Result<Vec<IssuedCertificate>> {
    let (statement, parameters) = select(filter, page);
    connection.prepare_cached(&statement)?.query_map(params_from_iter(parameters), read_certificate)?.collect()
}

fn select(filter: &CertificateFilter, page: Page) -> (String, Vec<Value>) {
    let CertificateFilter { organization, tunnel, host, serial, fingerprint, issuer, revoked, ends_before, ends_from } =
        filter;
    let Place { created_at, id } = page.after.unwrap_or(BEGINNING);
    // A place has the first half of the fingerprint; with the other half at its greatest, what comes
    // after is another certificate.
    let after = [id, [0xff; 16]].concat();
    let mut conditions = vec!["(issued_at, fingerprint) > (?, ?)"];
    let mut parameters = vec![Value::from(created_at.micros()), Value::from(after)];
    let mut add = |condition, values: Vec<Value>| {
        conditions.push(condition);
        parameters.extend(values);
    };
    if let Some(organization) = organization {
        add("(tunnel IS NULL OR organization = ?)", vec![organization.as_str().to_owned().into()]);
    }
    if let Some(tunnel) = tunnel {
        add("tunnel = ?", vec![tunnel.as_bytes().to_vec().into()]);
    }
    if let Some(host) = host {
        let name = host.name.as_ref().map(|name| name.as_str().to_owned());
        add("(name = ? OR host = ?)", vec![name.into(), host.host.clone().into()]);
    }
    if let Some(serial) = serial {
        add("serial = ?", vec![serial.clone().into()]);
    }
    if let Some(fingerprint) = fingerprint {
        add("fingerprint = ?", vec![fingerprint.to_vec().into()]);
    }
    if let Some(issuer) = issuer {
        add("issuer = ?", vec![issuer_word(*issuer).to_owned().into()]);
    }
    if let Some(revoked) = revoked {
        add(if *revoked { "revoked_at IS NOT NULL" } else { "revoked_at IS NULL" }, Vec::new());
    }
    if let Some(end) = ends_before {
        add("not_after < ?", vec![end.micros().into()]);
    }
    if let Some(end) = ends_from {
        add("not_after >= ?", vec![end.micros().into()]);
    }
    parameters.push(page.limit.map_or(-1, i64::from).into());
    let conditions = conditions.join(" AND ");
    (format!("SELECT * FROM certificates WHERE {conditions} ORDER BY issued_at, fingerprint LIMIT ?"), parameters)
}

pub(in crate::sqlite) fn forget_certificates(connection: &Connection, before: Timestamp) -> Result<()> {
    // A sweep that leaves some is followed by another.
    connection
        .prepare_cached(
            "DELETE FROM certificates WHERE fingerprint IN
             (SELECT fingerprint FROM certificates WHERE not_after < ?1 ORDER BY not_after LIMIT 10000)",
        )?
        .execute([before.micros()])
        .map(drop)
}

pub(in crate::sqlite) fn next_certificate_end(connection: &Connection, now: Timestamp) -> Result<Option<Timestamp>> {
    connection
        .prepare_cached(
            "SELECT certificates.not_after AS not_after FROM certificates JOIN tunnels ON tunnels.id = certificates.tunnel
             WHERE certificates.not_after >= ?1 AND tunnels.cert_fingerprint = certificates.fingerprint
             ORDER BY certificates.not_after LIMIT 1",
        )?
        .query_row([now.micros()], |row| timestamp(row, "not_after"))
        .optional()
}

pub(super) fn read_holder(row: &Row<'_>) -> Result<Holder> {
    Ok(match optional(row, "tunnel", TunnelId::from_bytes)? {
        Some(id) => Holder::Tunnel {
            id,
            name: parse(row, "name")?,
            organization: optional(row, "organization", |text: String| OrganizationId::new(text))?,
        },
        None => Holder::Edge(row.get("host")?),
    })
}

pub(super) fn read_certificate(row: &Row<'_>) -> Result<IssuedCertificate> {
    let issuer = match row.get_ref("issuer")?.as_str()? {
        "private" => Issuer::Private,
        "acme" => Issuer::Acme,
        _ => return Err(super::unreadable(row, "issuer", UnknownIssuer)),
    };
    Ok(IssuedCertificate {
        holder: read_holder(row)?,
        serial: row.get("serial")?,
        fingerprint: row.get("fingerprint")?,
        issuer,
        profile: row.get("profile")?,
        key: row.get("key")?,
        requested_by: optional(row, "requested_by", KeyId::from_bytes)?,
        not_before: optional_timestamp(row, "not_before")?,
        not_after: timestamp(row, "not_after")?,
        revoked_at: optional_timestamp(row, "revoked_at")?,
        issued_at: Some(timestamp(row, "issued_at")?).filter(|at| *at != UNKNOWN),
    })
}

#[derive(Debug, thiserror::Error)]
#[error("not an issuer")]
struct UnknownIssuer;

fn issuer_word(issuer: Issuer) -> &'static str {
    match issuer {
        Issuer::Private => "private",
        Issuer::Acme => "acme",
    }
}

pub(in crate::sqlite) fn others_certificate_until(
    connection: &Connection,
    name: &TunnelName,
    organization: &OrganizationId,
) -> Result<Option<Timestamp>> {
    connection
        .prepare_cached(
            "SELECT max(not_after) AS until FROM certificates
             WHERE name = ?1 AND issuer = 'acme' AND organization IS NOT ?2",
        )?
        .query_row(params![name.as_str(), organization.as_str()], |row| optional_timestamp(row, "until"))
}

/// Keeps the first time.
pub(in crate::sqlite) fn note_revocation(connection: &Connection, fingerprint: [u8; 32], now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("UPDATE certificates SET revoked_at = ?2 WHERE fingerprint = ?1 AND revoked_at IS NULL")?
        .execute(params![fingerprint, now.micros()])
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
