//! The table `orders`.

use rusqlite::types::FromSqlError;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use tunnel_model::{KeyId, OrganizationId, Timestamp};

use super::certificates::read_holder;
use super::{Result, optional, optional_timestamp, timestamp, unreadable};
use crate::{Ask, Holder, Order, OrderState, Ordered};

/// Puts an order on record, or what is new of it.
pub(in crate::sqlite) fn record_order(connection: &Connection, order: &Order) -> Result<()> {
    let (tunnel, name, organization, host) = match &order.holder {
        Holder::Tunnel { id, name, organization } => {
            (Some(id.as_bytes()), Some(name.as_str()), organization.as_ref().map(OrganizationId::as_str), None)
        }
        Holder::Edge(host) => (None, None, None, Some(host)),
    };
    let (mut ended_at, mut fingerprint, mut chain, mut renew_at, mut again) = (None, None, None, None, None);
    let mut told = false;
    let (mut cause, mut words, mut not_before) = (None, None, None);
    let state = match &order.state {
        OrderState::Pending => "pending",
        OrderState::Issued { at, fingerprint: issued, chain: pem, renew_at: renewal, is_told, ask_again_at } => {
            told = *is_told;
            (ended_at, fingerprint, chain) = (Some(at), Some(issued), Some(pem));
            (renew_at, again) = (Some(renewal), ask_again_at.as_ref());
            "issued"
        }
        OrderState::Failed { at, cause: word, words: told, not_before: until } => {
            (ended_at, cause, words, not_before) = (Some(at), Some(word), Some(told), until.as_ref());
            "failed"
        }
    };
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO orders (id, tunnel, name, organization, host, directory, names, csr, key, requested_by, profile,
             ask, replaces, url, begun_at, failures, failing_since, state, ended_at, fingerprint, chain, renew_at, is_told, ask_again_at,
             cause, words, not_before)
             VALUES (:id, :tunnel, :name, :organization, :host, :directory, :names, :csr, :key, :requested_by, :profile,
             :ask, :replaces, :url, :begun_at, :failures, :failing_since, :state, :ended_at, :fingerprint, :chain,
             :renew_at, :is_told, :ask_again_at, :cause, :words, :not_before)",
        )?
        .execute(named_params! {
            ":id": order.id,
            ":tunnel": tunnel,
            ":name": name,
            ":organization": organization,
            ":host": host,
            ":directory": order.directory,
            ":names": order.names.join(" "),
            ":csr": order.csr,
            ":key": order.key,
            ":requested_by": order.requested_by.as_ref().map(KeyId::as_bytes),
            ":profile": order.profile,
            ":ask": ask_word(order.ask),
            ":replaces": order.replaces,
            ":url": order.url,
            ":begun_at": order.begun_at.micros(),
            ":failures": order.failures,
            ":failing_since": order.failing_since.map(Timestamp::micros),
            ":state": state,
            ":ended_at": ended_at.map(|at| at.micros()),
            ":fingerprint": fingerprint,
            ":chain": chain,
            ":renew_at": renew_at.map(|at| at.micros()),
            ":is_told": told,
            ":ask_again_at": again.map(|at| at.micros()),
            ":cause": cause,
            ":words": words,
            ":not_before": not_before.map(|at| at.micros()),
        })
        .map(drop)
}

pub(in crate::sqlite) fn latest_order(connection: &Connection, holder: &Holder) -> Result<Option<Order>> {
    let (statement, parameter): (_, &dyn rusqlite::ToSql) = match holder {
        Holder::Tunnel { id, .. } => {
            ("SELECT * FROM orders WHERE tunnel = ?1 ORDER BY begun_at DESC LIMIT 1", &id.as_bytes().as_slice())
        }
        Holder::Edge(host) => ("SELECT * FROM orders WHERE host = ?1 ORDER BY begun_at DESC LIMIT 1", host),
    };
    connection.prepare_cached(statement)?.query_row([parameter], read_order).optional()
}

pub(in crate::sqlite) fn latest_issued_order(
    connection: &Connection,
    holder: &Holder,
    key: Option<[u8; 32]>,
) -> Result<Option<Order>> {
    let (statement, parameter): (_, &dyn rusqlite::ToSql) = match holder {
        Holder::Tunnel { id, .. } => (
            "SELECT * FROM orders WHERE tunnel = ?1 AND state = 'issued' AND (?2 IS NULL OR key = ?2)
             ORDER BY begun_at DESC LIMIT 1",
            &id.as_bytes().as_slice(),
        ),
        Holder::Edge(host) => (
            "SELECT * FROM orders WHERE host = ?1 AND state = 'issued' AND (?2 IS NULL OR key = ?2)
             ORDER BY begun_at DESC LIMIT 1",
            host,
        ),
    };
    connection.prepare_cached(statement)?.query_row(params![parameter, key], read_order).optional()
}

pub(in crate::sqlite) fn pending_orders(connection: &Connection) -> Result<Vec<Order>> {
    connection.prepare_cached("SELECT * FROM orders WHERE state = 'pending'")?.query_map([], read_order)?.collect()
}

pub(in crate::sqlite) fn issued_orders(
    connection: &Connection,
    now: Timestamp,
    after: Option<[u8; 16]>,
    limit: u32,
) -> Result<Vec<Order>> {
    connection
        .prepare_cached(
            "SELECT orders.* FROM orders JOIN certificates ON certificates.fingerprint = orders.fingerprint
             WHERE orders.id > ?2 AND orders.state = 'issued' AND certificates.not_after >= ?1
             AND certificates.revoked_at IS NULL ORDER BY orders.id LIMIT ?3",
        )?
        .query_map(params![now.micros(), after.map_or(Vec::new(), Vec::from), limit], read_order)?
        .collect()
}

pub(in crate::sqlite) fn ordered_since(connection: &Connection, since: Timestamp) -> Result<Vec<Ordered>> {
    connection
        .prepare_cached("SELECT * FROM orders WHERE begun_at >= ?1")?
        .query_map([since.micros()], |row| read_order(row).map(|order| order.counted()))?
        .collect()
}

pub(in crate::sqlite) fn forget_orders(connection: &Connection, before: Timestamp) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM orders WHERE begun_at < ?1 AND state <> 'pending'")?
        .execute(params![before.micros()])
        .map(drop)
}

pub(super) fn read_order(row: &Row<'_>) -> Result<Order> {
    let state = match row.get_ref("state")?.as_str()? {
        "pending" => OrderState::Pending,
        "issued" => OrderState::Issued {
            at: timestamp(row, "ended_at")?,
            fingerprint: row.get("fingerprint")?,
            chain: row.get("chain")?,
            renew_at: timestamp(row, "renew_at")?,
            is_told: row.get("is_told")?,
            ask_again_at: optional_timestamp(row, "ask_again_at")?,
        },
        "failed" => OrderState::Failed {
            at: timestamp(row, "ended_at")?,
            cause: row.get("cause")?,
            words: row.get("words")?,
            not_before: optional_timestamp(row, "not_before")?,
        },
        _ => return Err(unreadable(row, "state", FromSqlError::InvalidType)),
    };
    let ask = match row.get_ref("ask")?.as_str()? {
        "new" => Ask::New,
        "renewal" => Ask::Renewal,
        "renewal_in_window" => Ask::RenewalInWindow,
        _ => return Err(unreadable(row, "ask", FromSqlError::InvalidType)),
    };
    Ok(Order {
        id: row.get("id")?,
        holder: read_holder(row)?,
        directory: row.get("directory")?,
        names: row.get_ref("names")?.as_str()?.split(' ').map(str::to_owned).collect(),
        csr: row.get("csr")?,
        key: row.get("key")?,
        requested_by: optional(row, "requested_by", KeyId::from_bytes)?,
        profile: row.get("profile")?,
        ask,
        replaces: row.get("replaces")?,
        url: row.get("url")?,
        begun_at: timestamp(row, "begun_at")?,
        failures: row.get("failures")?,
        failing_since: optional_timestamp(row, "failing_since")?,
        state,
    })
}

fn ask_word(ask: Ask) -> &'static str {
    match ask {
        Ask::New => "new",
        Ask::Renewal => "renewal",
        Ask::RenewalInWindow => "renewal_in_window",
    }
}
