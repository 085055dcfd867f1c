//! [`Backend`]: what a store has to be able to do.

use std::path::Path;

use crate::commit::{Commit, CommitError, Pending, Revision};
use crate::error::StoreError;
use crate::history::{Chain, HistoryFilter, Recorded, Stored};
use crate::key::Key;

/// A place where things are kept. It is called by one thread of its own, which it may block for some seconds.
///
/// It reads no clock: whoever calls says what time it is, in milliseconds since the Unix epoch.
pub(crate) trait Backend: Send {
    /// All of it, for good, or nothing.
    fn commit(&mut self, commit: &Commit) -> Result<Revision, CommitError>;

    fn get(&mut self, key: &Key) -> Result<Option<Value>, StoreError>;

    /// What is below `key`, in its order, without `key` itself.
    fn list(&mut self, key: &Key) -> Result<Listed, StoreError>;

    /// The last so many of what is below `key`, the last one first.
    fn last(&mut self, key: &Key, limit: usize) -> Result<Vec<(Key, Value)>, StoreError>;

    /// The keys below `key`, in their order.
    fn keys(&mut self, key: &Key) -> Result<Vec<Key>, StoreError>;

    /// What has changed after a revision, in the order of the last change.
    fn changes(&mut self, after: Revision) -> Result<Changes, StoreError>;

    /// The newest first.
    fn history(&mut self, filter: &HistoryFilter) -> Result<Vec<Recorded>, StoreError>;

    /// Some entries after one of them, by their numbers; none if there are no more.
    fn entries(&mut self, after: u64) -> Result<Vec<Stored>, StoreError>;

    /// Where the history ends.
    fn head(&mut self) -> Result<Chain, StoreError>;

    /// Effects of a kind that are due, in the order in which they were enqueued.
    fn pending(&mut self, kind: &str, now: u64, limit: usize) -> Result<Vec<Pending>, StoreError>;

    /// How many effects of a kind there are, due or not.
    fn count(&mut self, kind: &str) -> Result<u64, StoreError>;

    /// The epoch, if nobody else has the lease.
    fn acquire(&mut self, lease: &str, holder: &str, ttl: u64, now: u64) -> Result<Option<u64>, StoreError>;

    /// Who has taken the lease last, whether or not it still lasts; `None` if nobody ever has.
    fn holder(&mut self, lease: &str) -> Result<Option<String>, StoreError>;

    /// Whether nobody has taken it since.
    fn renew(&mut self, lease: &str, epoch: u64, ttl: u64, now: u64) -> Result<bool, StoreError>;

    /// Nothing, if somebody has taken it since.
    fn release(&mut self, lease: &str, epoch: u64) -> Result<(), StoreError>;

    /// Whether the medium is whole; the history is another matter.
    fn check(&mut self) -> Result<(), StoreError>;

    /// Copies everything to a new file.
    fn backup(&mut self, to: &Path) -> Result<(), StoreError>;
}

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub value: Vec<u8>,
    /// Of the commit that put it there.
    pub revision: Revision,
}

/// A list at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Of the store at that moment: a watch from here misses nothing.
    pub revision: Revision,
    pub entries: Vec<(Key, Value)>,
}

/// A key that was changed. Of several changes only the last is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    /// `None`: it was deleted.
    pub value: Option<Vec<u8>>,
    pub revision: Revision,
}

/// What has happened since a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Of the store now.
    pub(crate) revision: Revision,
    /// `None`: it is too long ago to know.
    pub(crate) changes: Option<Vec<Change>>,
}
