//! Tables and how they come to be.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::fault::Fault;

/// In the file's header: it is one of ours.
const APPLICATION: i64 = 0x4253_5450;

/// Each takes the schema from its number to the next. They are never changed once released, only added to.
const MIGRATIONS: [&str; 1] = [
    // `entry`: a deleted key stays for a while with NULL, for those who watch. `meta.compacted`: deletions up to there
    // are forgotten. `meta.entries` and `head`: the end of the history, without which nobody would notice that the last
    // entries are missing.
    "
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        revision INTEGER NOT NULL,
        compacted INTEGER NOT NULL,
        entries INTEGER NOT NULL,
        head BLOB NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (1, 0, 0, 0, zeroblob(32));

    CREATE TABLE entry (
        key TEXT NOT NULL PRIMARY KEY,
        value BLOB,
        revision INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX entry_by_revision ON entry (revision);
    CREATE INDEX entry_deleted ON entry (revision) WHERE value IS NULL;

    CREATE TABLE history (
        seq INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        actor TEXT NOT NULL,
        service TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        body TEXT NOT NULL,
        prev BLOB NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE INDEX history_by_service ON history (service, seq);
    CREATE TRIGGER history_is_not_changed BEFORE UPDATE ON history
        BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
    CREATE TRIGGER history_is_not_deleted BEFORE DELETE ON history
        BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
    CREATE TRIGGER history_has_no_gaps BEFORE INSERT ON history
        WHEN new.seq IS NOT (SELECT entries + 1 FROM meta)
        BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;

    CREATE TABLE effect (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        body TEXT NOT NULL,
        not_before INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        epoch INTEGER
    ) STRICT;
    CREATE INDEX effect_by_kind ON effect (kind, position);

    CREATE TABLE lease (
        name TEXT NOT NULL PRIMARY KEY,
        holder TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT;
    ",
];

/// The schema that this program works with.
pub(crate) const CURRENT: u32 = MIGRATIONS.len() as u32;

/// Brings the schema up to date, in one transaction.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), Fault> {
    // Most of the time there is nothing to do, and no need for a lock.
    if version(connection)? == CURRENT {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    if found == 0 {
        refuse_others(&transaction)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    }
    for migration in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", CURRENT)?;
    Ok(transaction.commit()?)
}

/// Of the file; refused if it is newer than ours.
pub(crate) fn version(connection: &Connection) -> Result<u32, Fault> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    match found {
        0 => Ok(0),
        _ if application != APPLICATION => Err(Fault::NotOurs),
        found if found > CURRENT => Err(Fault::TooNew(found)),
        found => Ok(found),
    }
}

/// An empty file is fine; one with somebody else's tables is not.
fn refuse_others(transaction: &Transaction<'_>) -> Result<(), Fault> {
    let tables: u32 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 { Ok(()) } else { Err(Fault::NotOurs) }
}
