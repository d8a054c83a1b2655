//! The table `api_keys`.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use tunnel_model::{ApiKey, IdentityId, KeyId, OrganizationId, Scope, SecretHash, Timestamp};

use super::{Result, optional, optional_timestamp, page_of, parse, parse_optional, timestamp};
use crate::Page;

pub(in crate::sqlite) fn api_key(connection: &Connection, id: KeyId) -> Result<Option<ApiKey>> {
    connection
        .prepare_cached("SELECT * FROM api_keys WHERE id = ?1")?
        .query_row([id.as_bytes()], read_api_key)
        .optional()
}

pub(in crate::sqlite) fn api_keys(
    connection: &Connection,
    organization: &OrganizationId,
    page: Page,
) -> Result<Vec<ApiKey>> {
    connection
        .prepare_cached(
            "SELECT * FROM api_keys WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
             ORDER BY created_at, id LIMIT ?4",
        )?
        .query_map(page_of(organization, page), read_api_key)?
        .collect()
}

pub(in crate::sqlite) fn active_keys(connection: &Connection, identity: IdentityId) -> Result<Vec<ApiKey>> {
    connection
        .prepare_cached("SELECT * FROM api_keys WHERE identity = ?1 AND revoked_at IS NULL")?
        .query_map([identity.as_bytes()], read_api_key)?
        .collect()
}

/// An id that is there already fails: no key silently takes another's place.
pub(in crate::sqlite) fn insert_api_key(connection: &Connection, key: &ApiKey) -> Result<()> {
    write_api_key(
        connection,
        "INSERT INTO api_keys (id, organization, identity, label, description, hash, last4, created_by, created_at,
         updated_at, last_used_at, revoked_at)
         VALUES (:id, :organization, :identity, :label, :description, :hash, :last4, :created_by, :created_at,
         :updated_at, :last_used_at, :revoked_at)",
        key,
    )
}

pub(in crate::sqlite) fn update_api_key(connection: &Connection, key: &ApiKey) -> Result<()> {
    write_api_key(
        connection,
        "UPDATE api_keys SET organization = :organization, identity = :identity, label = :label,
         description = :description, hash = :hash, last4 = :last4, created_by = :created_by, created_at = :created_at,
         updated_at = :updated_at, last_used_at = :last_used_at, revoked_at = :revoked_at WHERE id = :id",
        key,
    )
}

pub(in crate::sqlite) fn touch_api_key(connection: &Connection, id: KeyId, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1")?
        .execute(params![id.as_bytes(), now.micros()])
        .map(drop)
}

fn write_api_key(connection: &Connection, statement: &str, key: &ApiKey) -> Result<()> {
    let identity = match &key.scope {
        Scope::Admin => None,
        Scope::Identity(identity) => Some(identity.as_bytes()),
    };
    connection
        .prepare_cached(statement)?
        .execute(named_params! {
            ":id": key.id.as_bytes(),
            ":organization": key.organization.as_str(),
            ":identity": identity,
            ":label": key.label.as_str(),
            ":description": key.description.as_ref().map(|description| description.as_str()),
            ":hash": key.hash.as_bytes(),
            ":last4": key.last4,
            ":created_by": key.created_by.as_ref().map(KeyId::as_bytes),
            ":created_at": key.created_at.micros(),
            ":updated_at": key.updated_at.micros(),
            ":last_used_at": key.last_used_at.map(Timestamp::micros),
            ":revoked_at": key.revoked_at.map(Timestamp::micros),
        })
        .map(drop)
}

pub(super) fn read_api_key(row: &Row<'_>) -> Result<ApiKey> {
    Ok(ApiKey {
        id: row.get("id").map(KeyId::from_bytes)?,
        organization: row.get::<_, String>("organization").map(OrganizationId::new)?,
        scope: optional(row, "identity", IdentityId::from_bytes)?.map_or(Scope::Admin, Scope::Identity),
        label: parse(row, "label")?,
        description: parse_optional(row, "description")?,
        hash: row.get("hash").map(SecretHash::from_sha256)?,
        last4: row.get("last4")?,
        created_by: optional(row, "created_by", KeyId::from_bytes)?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
        last_used_at: optional_timestamp(row, "last_used_at")?,
        revoked_at: optional_timestamp(row, "revoked_at")?,
    })
}
