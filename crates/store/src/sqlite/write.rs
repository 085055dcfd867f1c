//! What changes the store: commits and leases.

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::fault::Fault;
use super::read::{head, revision};
use super::{number, schema, unsigned};
use crate::commit::{Commit, CommitError, Effect, Fence, Op, Revision};
use crate::history::{HistoryEntry, Stored};
use crate::key::Key;

/// For so many revisions a deletion can be watched; whoever was away for longer lists anew.
const DELETIONS_KEPT: u64 = 10_000;

pub(crate) fn commit(connection: &mut Connection, commit: &Commit) -> Result<Revision, Fault> {
    commit.check_size()?;
    let transaction = begin(connection)?;
    if let Some(fence) = &commit.fence {
        check_fence(&transaction, fence)?;
    }
    for (key, expected) in &commit.expect {
        check_revision(&transaction, key, *expected)?;
    }
    let before = revision(&transaction)?;
    if commit.ops.is_empty() {
        return Ok(before);
    }
    let revision = Revision(before.0 + 1);
    let epoch = commit.fence.as_ref().map(|fence| fence.epoch);
    for op in &commit.ops {
        apply(&transaction, op, revision, epoch)?;
    }
    transaction.execute("UPDATE meta SET revision = ?1", [number(revision.0)])?;
    transaction.commit()?;
    Ok(revision)
}

/// Nobody else writes from here to the end. The schema is looked at each time: a newer Backstop may have taken over.
fn begin(connection: &mut Connection) -> Result<Transaction<'_>, Fault> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    schema::version(&transaction)?;
    Ok(transaction)
}

fn check_fence(transaction: &Transaction<'_>, fence: &Fence) -> Result<(), Fault> {
    let now = epoch(transaction, &fence.lease)?;
    if now == fence.epoch {
        return Ok(());
    }
    let Fence { lease, epoch } = fence.clone();
    Err(CommitError::Fenced { lease, epoch, now }.into())
}

fn check_revision(transaction: &Transaction<'_>, key: &Key, expected: Option<Revision>) -> Result<(), Fault> {
    let sql = "SELECT revision FROM entry WHERE key = ?1 AND value IS NOT NULL";
    let found = transaction.query_row(sql, [key.stored()], |row| row.get(0)).optional()?;
    let found = found.map(|revision| Revision(unsigned(revision)));
    if found == expected {
        return Ok(());
    }
    Err(CommitError::Conflict { key: key.clone(), expected, found }.into())
}

fn apply(
    transaction: &Transaction<'_>,
    op: &Op,
    revision: Revision,
    epoch: Option<u64>,
) -> Result<(), Fault> {
    let at = number(revision.0);
    match op {
        Op::Put { key, value } => {
            let sql = "INSERT INTO entry (key, value, revision) VALUES (?1, ?2, ?3)
                       ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision";
            transaction.execute(sql, params![key.stored(), value, at])?;
        }
        Op::Delete { key } => delete(transaction, key, revision)?,
        Op::Append(entry) => append(transaction, entry)?,
        Op::Enqueue(Effect { id, kind, body, not_before }) => {
            let sql = "INSERT INTO effect (id, kind, body, not_before, attempts, revision, epoch)
                       VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6) ON CONFLICT (id) DO NOTHING";
            let epoch = epoch.map(number);
            transaction.execute(sql, params![id, kind, body.to_string(), number(*not_before), at, epoch])?;
        }
        Op::Finish { effect } => drop(transaction.execute("DELETE FROM effect WHERE id = ?1", [effect])?),
        Op::Defer { effect, until, attempts } => {
            let sql = "UPDATE effect SET not_before = ?2, attempts = ?3 WHERE id = ?1";
            transaction.execute(sql, params![effect, number(*until), attempts])?;
        }
    }
    Ok(())
}

fn delete(transaction: &Transaction<'_>, key: &Key, revision: Revision) -> Result<(), Fault> {
    let sql = "UPDATE entry SET value = NULL, revision = ?2 WHERE key = ?1 AND value IS NOT NULL";
    transaction.execute(sql, params![key.stored(), number(revision.0)])?;
    let old = number(revision.0.saturating_sub(DELETIONS_KEPT));
    let sql = "SELECT max(revision) FROM entry WHERE value IS NULL AND revision <= ?1";
    let forgotten: Option<i64> = transaction.query_row(sql, [old], |row| row.get(0))?;
    if let Some(forgotten) = forgotten {
        transaction.execute("DELETE FROM entry WHERE value IS NULL AND revision <= ?1", [forgotten])?;
        transaction.execute("UPDATE meta SET compacted = ?1", [forgotten])?;
    }
    Ok(())
}

fn append(transaction: &Transaction<'_>, entry: &HistoryEntry) -> Result<(), Fault> {
    let Stored { seq, at, actor, service, kind, subject, body, prev, hash } =
        Stored::next(head(transaction)?, entry);
    let sql = "INSERT INTO history (seq, at, actor, service, kind, subject, body, prev, hash)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let (seq, at) = (number(seq), number(at));
    transaction.execute(sql, params![seq, at, actor, service, kind, subject, body, prev.0, hash.0])?;
    transaction.execute("UPDATE meta SET entries = ?1, head = ?2", params![seq, hash.0])?;
    Ok(())
}

/// Of a lease, 0 if it has never been taken.
fn epoch(transaction: &Transaction<'_>, lease: &str) -> Result<u64, Fault> {
    let sql = "SELECT epoch FROM lease WHERE name = ?1";
    let epoch = transaction.query_row(sql, [lease], |row| row.get(0)).optional()?;
    Ok(epoch.map_or(0, unsigned))
}

/// The row of a lease stays for ever, so that epochs only grow.
pub(crate) fn acquire(
    connection: &mut Connection,
    lease: &str,
    holder: &str,
    ttl: u64,
    now: u64,
) -> Result<Option<u64>, Fault> {
    let transaction = begin(connection)?;
    let sql = "SELECT holder, expires FROM lease WHERE name = ?1";
    let held = transaction.query_row(sql, [lease], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let held: Option<(String, i64)> = held;
    if let Some((_, expires)) = held.filter(|(other, expires)| other != holder && unsigned(*expires) > now) {
        // None lasts longer than that. If this one does, the clock was put back since it was taken: its holder, if there
        // still is one, renews it in time, and if there is none nobody has to wait until the clock comes there again.
        let longest = now.saturating_add(ttl);
        if unsigned(expires) > longest {
            let sql = "UPDATE lease SET expires = ?2 WHERE name = ?1";
            transaction.execute(sql, params![lease, number(longest)])?;
            transaction.commit()?;
        }
        return Ok(None);
    }
    let epoch = epoch(&transaction, lease)? + 1;
    let sql = "INSERT INTO lease (name, holder, epoch, expires) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (name)
               DO UPDATE SET holder = excluded.holder, epoch = excluded.epoch, expires = excluded.expires";
    transaction.execute(sql, params![lease, holder, number(epoch), number(now.saturating_add(ttl))])?;
    transaction.commit()?;
    Ok(Some(epoch))
}

/// Sets when a lease ends, if it is still of that epoch.
pub(crate) fn set_end(connection: &mut Connection, lease: &str, epoch: u64, end: u64) -> Result<bool, Fault> {
    let transaction = begin(connection)?;
    let sql = "UPDATE lease SET expires = ?3 WHERE name = ?1 AND epoch = ?2";
    let changed = transaction.execute(sql, params![lease, number(epoch), number(end)])?;
    transaction.commit()?;
    Ok(changed > 0)
}
