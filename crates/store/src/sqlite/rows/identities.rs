//! The table `identities`.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params};
use tunnel_model::{Identity, IdentityId, IdentityKey, OrganizationId, Tunnel, TunnelId};

use super::{Result, page_of, parse, parse_optional, timestamp, tunnel};
use crate::Page;

pub(in crate::sqlite) fn identity(connection: &Connection, key: IdentityKey<'_>) -> Result<Option<Identity>> {
    match key {
        IdentityKey::Handle(handle) => connection
            .prepare_cached("SELECT * FROM identities WHERE handle = ?1")?
            .query_row([handle.as_str()], read_identity),
        IdentityKey::Id(id) => connection
            .prepare_cached("SELECT * FROM identities WHERE id = ?1")?
            .query_row([id.as_bytes()], read_identity),
    }
    .optional()
}

/// Each with its tunnel. The connection is to be in a transaction: one snapshot for all.
pub(in crate::sqlite) fn identities(
    connection: &Connection,
    organization: &OrganizationId,
    page: Page,
) -> Result<Vec<(Identity, Tunnel)>> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM identities WHERE organization = ?1 AND (created_at, id) > (?2, ?3)
         ORDER BY created_at, id LIMIT ?4",
    )?;
    let identities = statement.query_map(page_of(organization, page), read_identity)?;
    let with_tunnel = identities.filter_map(|identity| match identity {
        Ok(identity) => match tunnel(connection, identity.tunnel) {
            Ok(tunnel) => tunnel.map(|tunnel| Ok((identity, tunnel))),
            Err(error) => Some(Err(error)),
        },
        Err(error) => Some(Err(error)),
    });
    with_tunnel.collect()
}

pub(in crate::sqlite) fn insert_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    write_identity(
        connection,
        "INSERT INTO identities (id, organization, handle, display_name, description, tunnel, created_at, updated_at)
         VALUES (:id, :organization, :handle, :display_name, :description, :tunnel, :created_at, :updated_at)",
        identity,
    )
}

pub(in crate::sqlite) fn update_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    write_identity(
        connection,
        "UPDATE identities SET organization = :organization, handle = :handle, display_name = :display_name,
         description = :description, tunnel = :tunnel, created_at = :created_at, updated_at = :updated_at
         WHERE id = :id",
        identity,
    )
}

pub(in crate::sqlite) fn delete_identity(connection: &Connection, identity: &Identity) -> Result<()> {
    connection.prepare_cached("DELETE FROM identities WHERE id = ?1")?.execute([identity.id.as_bytes()]).map(drop)
}

fn write_identity(connection: &Connection, statement: &str, identity: &Identity) -> Result<()> {
    connection
        .prepare_cached(statement)?
        .execute(named_params! {
            ":id": identity.id.as_bytes(),
            ":organization": identity.organization.as_str(),
            ":handle": identity.handle.as_str(),
            ":display_name": identity.display_name.as_ref().map(|name| name.as_str()),
            ":description": identity.description.as_ref().map(|description| description.as_str()),
            ":tunnel": identity.tunnel.as_bytes(),
            ":created_at": identity.created_at.micros(),
            ":updated_at": identity.updated_at.micros(),
        })
        .map(drop)
}

pub(super) fn read_identity(row: &Row<'_>) -> Result<Identity> {
    Ok(Identity {
        id: row.get("id").map(IdentityId::from_bytes)?,
        organization: row.get::<_, String>("organization").map(OrganizationId::new)?,
        handle: parse(row, "handle")?,
        display_name: parse_optional(row, "display_name")?,
        description: parse_optional(row, "description")?,
        tunnel: row.get("tunnel").map(TunnelId::from_bytes)?,
        created_at: timestamp(row, "created_at")?,
        updated_at: timestamp(row, "updated_at")?,
    })
}
