//! A store in one file, by SQLite: a log that is written and synced before a commit is told of, so that what has been
//! told of survives `kill -9` and power cuts. Several processes may have the file open.

mod backup;
mod fault;
mod open;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::backend::{Backend, Changes, Listed, Value};
use crate::commit::{Commit, CommitError, Pending, Revision};
use crate::error::StoreError;
use crate::history::{Chain, HistoryFilter, Recorded, Stored};
use crate::key::Key;
use fault::Fault;
pub(crate) use open::BUSY_TIMEOUT;
pub(crate) use read::MOST_ENTRIES;

pub(crate) struct Sqlite {
    connection: Connection,
    /// As messages call it.
    name: String,
}

impl Sqlite {
    /// The file at `path`, made if it is not there.
    pub(crate) fn open(path: &Path, busy: Duration) -> Result<Self, StoreError> {
        Self::named(path.display().to_string(), open::open(path, busy))
    }

    /// The file at `path`, to look at.
    pub(crate) fn open_existing(path: &Path, busy: Duration) -> Result<Self, StoreError> {
        Self::named(path.display().to_string(), open::open_existing(path, busy))
    }

    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        Self::named("memory:".to_owned(), open::in_memory())
    }

    fn named(name: String, connection: Result<Connection, Fault>) -> Result<Self, StoreError> {
        match connection {
            Ok(connection) => Ok(Self { connection, name }),
            Err(fault) => Err(fault.of_store(&name)),
        }
    }

    fn told<T>(&self, result: Result<T, Fault>) -> Result<T, StoreError> {
        result.map_err(|fault| fault.of_store(&self.name))
    }
}

impl Backend for Sqlite {
    fn commit(&mut self, commit: &Commit) -> Result<Revision, CommitError> {
        write::commit(&mut self.connection, commit).map_err(|fault| fault.in_store(&self.name))
    }

    fn get(&mut self, key: &Key) -> Result<Option<Value>, StoreError> {
        self.told(read::get(&self.connection, key))
    }

    fn list(&mut self, key: &Key) -> Result<Listed, StoreError> {
        let listed = read::list(&mut self.connection, key);
        self.told(listed)
    }

    fn last(&mut self, key: &Key, limit: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        self.told(read::last(&self.connection, key, limit))
    }

    fn keys(&mut self, key: &Key) -> Result<Vec<Key>, StoreError> {
        self.told(read::keys(&self.connection, key))
    }

    fn changes(&mut self, after: Revision) -> Result<Changes, StoreError> {
        let changes = read::changes(&mut self.connection, after);
        self.told(changes)
    }

    fn history(&mut self, filter: &HistoryFilter) -> Result<Vec<Recorded>, StoreError> {
        self.told(read::history(&self.connection, filter))
    }

    fn entries(&mut self, after: u64) -> Result<Vec<Stored>, StoreError> {
        self.told(read::entries(&self.connection, after, MOST_ENTRIES))
    }

    fn head(&mut self) -> Result<Chain, StoreError> {
        self.told(read::head(&self.connection))
    }

    fn pending(&mut self, kind: &str, now: u64, limit: usize) -> Result<Vec<Pending>, StoreError> {
        self.told(read::pending(&self.connection, kind, now, limit))
    }

    fn count(&mut self, kind: &str) -> Result<u64, StoreError> {
        self.told(read::count(&self.connection, kind))
    }

    fn acquire(&mut self, lease: &str, holder: &str, ttl: u64, now: u64) -> Result<Option<u64>, StoreError> {
        let epoch = write::acquire(&mut self.connection, lease, holder, ttl, now);
        self.told(epoch)
    }

    fn holder(&mut self, lease: &str) -> Result<Option<String>, StoreError> {
        self.told(read::holder(&self.connection, lease))
    }

    fn renew(&mut self, lease: &str, epoch: u64, ttl: u64, now: u64) -> Result<bool, StoreError> {
        let renewed = write::set_end(&mut self.connection, lease, epoch, now.saturating_add(ttl));
        self.told(renewed)
    }

    fn release(&mut self, lease: &str, epoch: u64) -> Result<(), StoreError> {
        let released = write::set_end(&mut self.connection, lease, epoch, 0);
        self.told(released).map(drop)
    }

    fn check(&mut self) -> Result<(), StoreError> {
        self.told(open::check(&self.connection))
    }

    fn backup(&mut self, to: &Path) -> Result<(), StoreError> {
        self.told(backup::copy(&self.connection, to))
    }
}

/// SQLite has no numbers beyond; nothing of ours comes near.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
