//! [`Commit`]: what is to happen together or not at all.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::StoreError;
use crate::history::HistoryEntry;
use crate::key::Key;

/// In a commit. etcd, which is to come, takes 128 as it is set up by default.
pub(crate) const MOST_OPS: usize = 100;
/// All that a commit writes, in bytes: a long release with its whole account, twice, is some 2 MiB.
pub(crate) const MAX_COMMIT: usize = 8 << 20;

/// Grows with each commit. That of a key is the one of the commit that changed it last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// One transaction: if all expectations hold, all operations happen; otherwise nothing does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// The lease by which its holder writes; the commit fails once somebody else has taken it.
    pub fence: Option<Fence>,
    /// What the revisions of keys must be; `None` = there is no such key.
    pub expect: Vec<(Key, Option<Revision>)>,
    pub ops: Vec<Op>,
}

/// A lease at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub lease: String,
    /// As it was given when the lease was taken.
    pub epoch: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Put {
        key: Key,
        value: Vec<u8>,
    },
    /// Of a key that is not there: nothing.
    Delete {
        key: Key,
    },
    Append(HistoryEntry),
    /// One whose id is already there is left as it is.
    Enqueue(Effect),
    /// It has been carried out, or given up. One that is not there: nothing.
    Finish {
        effect: String,
    },
    /// It is to be tried again.
    Defer {
        effect: String,
        /// Milliseconds since the Unix epoch.
        until: u64,
        /// How often it has been tried.
        attempts: u32,
    },
}

/// Something to be done after the commit, and again if nobody knows whether it has been done.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// Unique among those that are not finished.
    pub id: String,
    /// Who is to do it, such as `notify`.
    pub kind: String,
    pub body: Value,
    /// Not earlier, in milliseconds since the Unix epoch; 0 = at once.
    pub not_before: u64,
}

/// An effect that is not finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    pub effect: Effect,
    /// How often it has been tried, as its last [`Op::Defer`] says.
    pub attempts: u32,
    /// Of the commit that it came with.
    pub revision: Revision,
    /// Of that commit's fence.
    pub epoch: Option<u64>,
}

/// Why nothing was committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("somebody else has changed {key:?} meanwhile: expected {}, found {}", at(*expected), at(*found))]
    Conflict { key: Key, expected: Option<Revision>, found: Option<Revision> },
    #[error("somebody else has taken the lease `{lease}`: ours was number {epoch}, theirs is {now}")]
    Fenced { lease: String, epoch: u64, now: u64 },
    #[error(
        "{ops} operations of {bytes} bytes are too much for one commit; {MOST_OPS} and {MAX_COMMIT} are the most"
    )]
    TooLarge { ops: usize, bytes: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Commit {
    /// That nobody can fill the store, or the memory, with one mistake.
    pub(crate) fn check_size(&self) -> Result<(), CommitError> {
        let (ops, bytes) = (self.ops.len() + self.expect.len(), self.ops.iter().map(Op::size).sum());
        if ops > MOST_OPS || bytes > MAX_COMMIT {
            return Err(CommitError::TooLarge { ops, bytes });
        }
        Ok(())
    }
}

impl Op {
    fn size(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Append(entry) => entry.size(),
            Self::Enqueue(effect) => effect.id.len() + effect.kind.len() + effect.body.to_string().len(),
            Self::Finish { effect } | Self::Defer { effect, .. } => effect.len(),
            Self::Delete { .. } => 0,
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn at(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "none".to_owned(), |revision| format!("revision {revision}"))
}
