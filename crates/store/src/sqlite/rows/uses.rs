//! The table `uses`: what quotas count.

use rusqlite::{Connection, OptionalExtension as _, params};
use tunnel_model::{Timestamp, Usage};

use super::{Result, timestamp};

pub(in crate::sqlite) fn rewind_uses(connection: &Connection, usage: &Usage, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("UPDATE uses SET at = ?2 WHERE subject = ?1 AND at > ?2")?
        .execute(params![subject(usage), now.micros()])
        .map(drop)
}

pub(in crate::sqlite) fn nth_use(connection: &Connection, usage: &Usage, nth: u32) -> Result<Option<Timestamp>> {
    connection
        .prepare_cached("SELECT at FROM uses WHERE subject = ?1 ORDER BY at DESC LIMIT 1 OFFSET ?2")?
        .query_row(params![subject(usage), nth.saturating_sub(1)], |row| timestamp(row, "at"))
        .optional()
}

pub(in crate::sqlite) fn record_use(connection: &Connection, usage: &Usage, now: Timestamp) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO uses (subject, at) VALUES (?1, ?2)")?
        .execute(params![subject(usage), now.micros()])
        .map(drop)
}

pub(in crate::sqlite) fn prune_uses(connection: &Connection, before: Timestamp) -> Result<()> {
    // Rows stand in the order in which they were written, so the oldest come first and
    // no index by time is needed. A sweep that leaves some is followed by another.
    connection
        .prepare_cached(
            "DELETE FROM uses WHERE at < ?1 AND rowid IN (SELECT rowid FROM uses ORDER BY rowid LIMIT 100000)",
        )?
        .execute([before.micros()])
        .map(drop)
}

pub(super) fn subject(usage: &Usage) -> String {
    match usage {
        Usage::Create(organization) => format!("create:{organization}"),
        Usage::Sign(tunnel) => format!("sign:{tunnel}"),
    }
}
