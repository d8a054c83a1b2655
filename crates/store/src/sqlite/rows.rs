//! Statements and rows: each record to its table and back, columns by their names.

mod certificates;
mod identities;
mod keys;
mod orders;
mod tunnels;
mod uses;

use std::str::FromStr;

use rusqlite::types::{FromSql, Type};
use rusqlite::{Connection, Row};
use tunnel_model::{OrganizationId, Timestamp};

use crate::{Page, Place};

pub(super) use certificates::*;
pub(super) use identities::*;
pub(super) use keys::*;
pub(super) use orders::*;
pub(super) use tunnels::*;
pub(super) use uses::*;

type Result<T> = rusqlite::Result<T>;

/// Reads every record that a list or a look-up may ask for.
pub(super) fn read_all(connection: &Connection) -> Result<()> {
    let mut tunnels = connection.prepare("SELECT * FROM tunnels")?;
    tunnels.query_map([], |row| read_tunnel(row).map(drop))?.collect::<Result<()>>()?;
    let mut identities = connection.prepare("SELECT * FROM identities")?;
    identities.query_map([], |row| read_identity(row).map(drop))?.collect::<Result<()>>()?;
    let mut keys = connection.prepare("SELECT * FROM api_keys")?;
    keys.query_map([], |row| read_api_key(row).map(drop))?.collect::<Result<()>>()?;
    let mut certificates = connection.prepare("SELECT * FROM certificates")?;
    certificates.query_map([], |row| read_certificate(row).map(drop))?.collect::<Result<()>>()?;
    let mut orders = connection.prepare("SELECT * FROM orders")?;
    orders.query_map([], |row| read_order(row).map(drop))?.collect()
}

/// Before every record that has a time.
const BEGINNING: Place = Place { created_at: Timestamp::from_micros(i64::MIN), id: [0; 16] };

/// The parameters of a page, from `?1` on. A negative LIMIT is none.
fn page_of(organization: &OrganizationId, page: Page) -> (&str, i64, [u8; 16], i64) {
    let Place { created_at, id } = page.after.unwrap_or(BEGINNING);
    (organization.as_str(), created_at.micros(), id, page.limit.map_or(-1, i64::from))
}

fn timestamp(row: &Row<'_>, column: &str) -> Result<Timestamp> {
    row.get(column).map(Timestamp::from_micros)
}

fn optional_timestamp(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>> {
    optional(row, column, Timestamp::from_micros)
}

/// What a column has, made into what it means; `None` for NULL.
fn optional<T: FromSql, M>(row: &Row<'_>, column: &str, meaning: impl FnOnce(T) -> M) -> Result<Option<M>> {
    Ok(row.get::<_, Option<T>>(column)?.map(meaning))
}

fn parse<T>(row: &Row<'_>, column: &str) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    row.get_ref(column)?.as_str()?.parse().map_err(|error| unreadable(row, column, error))
}

fn parse_optional<T>(row: &Row<'_>, column: &str) -> Result<Option<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str_or_null()?;
    text.map(|text| text.parse().map_err(|error| unreadable(row, column, error))).transpose()
}

fn unreadable(row: &Row<'_>, column: &str, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    let column = row.as_ref().column_index(column).unwrap_or(usize::MAX);
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
