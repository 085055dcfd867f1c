//! What only looks. All of a question is answered from one statement or one transaction, so from one moment.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault::Fault;
use super::{number, unsigned};
use crate::backend::{Change, Changes, Listed, Value};
use crate::commit::{Effect, Pending, Revision};
use crate::history::{Chain, Hash, HistoryFilter, Recorded, Stored};
use crate::key::Key;

/// Of history, in one answer.
pub(crate) const MOST_ENTRIES: usize = 1000;

pub(crate) fn revision(connection: &Connection) -> Result<Revision, Fault> {
    let revision = connection.query_row("SELECT revision FROM meta", [], |row| row.get(0))?;
    Ok(Revision(unsigned(revision)))
}

pub(crate) fn get(connection: &Connection, key: &Key) -> Result<Option<Value>, Fault> {
    let sql = "SELECT value, revision FROM entry WHERE key = ?1 AND value IS NOT NULL";
    let found = connection.query_row(sql, [key.stored()], |row| {
        Ok(Value { value: row.get(0)?, revision: Revision(unsigned(row.get(1)?)) })
    });
    Ok(found.optional()?)
}

pub(crate) fn list(connection: &mut Connection, key: &Key) -> Result<Listed, Fault> {
    let transaction = connection.transaction()?;
    let (first, end) = below(key);
    let sql = "SELECT key, value, revision FROM entry
               WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key";
    let mut statement = transaction.prepare(sql)?;
    let rows = statement.query_map([first, end], |row| {
        let value = Value { value: row.get(1)?, revision: Revision(unsigned(row.get(2)?)) };
        Ok((Key::of_stored(row.get(0)?), value))
    })?;
    let entries = rows.collect::<Result<_, _>>()?;
    Ok(Listed { revision: revision(&transaction)?, entries })
}

/// Keys are visible ASCII, and the byte after `/` is `0`.
fn below(key: &Key) -> (String, String) {
    (format!("{}/", key.stored()), format!("{}0", key.stored()))
}

pub(crate) fn last(connection: &Connection, key: &Key, limit: usize) -> Result<Vec<(Key, Value)>, Fault> {
    let (first, end) = below(key);
    let sql = "SELECT key, value, revision FROM entry
               WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key DESC LIMIT ?3";
    let mut statement = connection.prepare(sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(rusqlite::params![first, end, limit], |row| {
        let value = Value { value: row.get(1)?, revision: Revision(unsigned(row.get(2)?)) };
        Ok((Key::of_stored(row.get(0)?), value))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn keys(connection: &Connection, key: &Key) -> Result<Vec<Key>, Fault> {
    let (first, end) = below(key);
    let sql = "SELECT key FROM entry WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([first, end], |row| Ok(Key::of_stored(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn changes(connection: &mut Connection, after: Revision) -> Result<Changes, Fault> {
    let transaction = connection.transaction()?;
    let revision = revision(&transaction)?;
    let compacted = transaction.query_row("SELECT compacted FROM meta", [], |row| row.get(0))?;
    // A revision that is still to come is of another store, such as the one before a backup was put back.
    if after.0 < unsigned(compacted) || after > revision {
        return Ok(Changes { revision, changes: None });
    }
    let sql = "SELECT key, value, revision FROM entry WHERE revision > ?1 ORDER BY revision, key";
    let mut statement = transaction.prepare(sql)?;
    let rows = statement.query_map([number(after.0)], |row| {
        let (key, value) = (Key::of_stored(row.get(0)?), row.get(1)?);
        Ok(Change { key, value, revision: Revision(unsigned(row.get(2)?)) })
    })?;
    Ok(Changes { revision, changes: Some(rows.collect::<Result<_, _>>()?) })
}

pub(crate) fn history(connection: &Connection, filter: &HistoryFilter) -> Result<Vec<Recorded>, Fault> {
    let sql = "SELECT seq, at, actor, service, kind, subject, body, prev, hash FROM history
               WHERE (?1 IS NULL OR service = ?1) AND (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR at >= ?3)
                 AND (?4 IS NULL OR seq < ?4) ORDER BY seq DESC LIMIT ?5";
    let HistoryFilter { service, kind, since, before, limit } = filter;
    let limit = number((*limit).clamp(1, MOST_ENTRIES) as u64);
    let mut statement = connection.prepare(sql)?;
    let rows =
        statement.query_map(params![service, kind, since.map(number), before.map(number), limit], stored)?;
    let recorded = |entry: Stored| {
        let seq = entry.seq;
        Recorded::try_from(entry)
            .map_err(|_| Fault::Damaged(format!("the body of entry {seq} of the history is not JSON")))
    };
    rows.map(|row| recorded(row?)).collect()
}

pub(crate) fn entries(connection: &Connection, after: u64, limit: usize) -> Result<Vec<Stored>, Fault> {
    let sql = "SELECT seq, at, actor, service, kind, subject, body, prev, hash FROM history
               WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([number(after), number(limit as u64)], stored)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        seq: unsigned(row.get(0)?),
        at: unsigned(row.get(1)?),
        actor: row.get(2)?,
        service: row.get(3)?,
        kind: row.get(4)?,
        subject: row.get(5)?,
        body: row.get(6)?,
        prev: Hash(row.get(7)?),
        hash: Hash(row.get(8)?),
    })
}

pub(crate) fn head(connection: &Connection) -> Result<Chain, Fault> {
    let sql = "SELECT entries, head FROM meta";
    let head = connection
        .query_row(sql, [], |row| Ok(Chain { entries: unsigned(row.get(0)?), head: Hash(row.get(1)?) }));
    Ok(head?)
}

pub(crate) fn holder(connection: &Connection, lease: &str) -> Result<Option<String>, Fault> {
    let sql = "SELECT holder FROM lease WHERE name = ?1";
    Ok(connection.query_row(sql, [lease], |row| row.get(0)).optional()?)
}

pub(crate) fn pending(
    connection: &Connection,
    kind: &str,
    now: u64,
    limit: usize,
) -> Result<Vec<Pending>, Fault> {
    let sql = "SELECT id, body, not_before, attempts, revision, epoch FROM effect
               WHERE kind = ?1 AND not_before <= ?2 ORDER BY position LIMIT ?3";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map(params![kind, number(now), number(limit as u64)], |row| {
        let epoch: Option<i64> = row.get(5)?;
        let (id, body, not_before): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let effect =
            Effect { id, kind: kind.to_owned(), body: body.into(), not_before: unsigned(not_before) };
        let (attempts, revision) = (row.get(3)?, Revision(unsigned(row.get(4)?)));
        Ok(Pending { effect, attempts, revision, epoch: epoch.map(unsigned) })
    })?;
    let parsed = |mut pending: Pending| {
        let text = pending.effect.body.as_str().unwrap_or_default();
        let body = serde_json::from_str(text);
        let not_json = |_| Fault::Damaged(format!("the body of effect `{}` is not JSON", pending.effect.id));
        pending.effect.body = body.map_err(not_json)?;
        Ok(pending)
    };
    rows.map(|row| parsed(row?)).collect()
}

pub(crate) fn count(connection: &Connection, kind: &str) -> Result<u64, Fault> {
    let sql = "SELECT count(*) FROM effect WHERE kind = ?1";
    Ok(unsigned(connection.query_row(sql, [kind], |row| row.get(0))?))
}
