//! The store as its callers see it.

mod commits;
mod files;
mod history;
mod waiting;
mod watching;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::{Commit, CommitError, Effect, HistoryEntry, Key, Op, Revision, Store};

/// A directory that is removed at the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("backstop-store-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A connection that knows nothing of our rules.
fn raw(path: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(path).unwrap()
}

fn key(name: &str) -> Key {
    Key::new(&["release", name]).unwrap()
}

fn put(name: &str, value: &str) -> Op {
    Op::Put { key: key(name), value: value.into() }
}

fn entry(service: &str, kind: &str, at: u64) -> HistoryEntry {
    let body = json!({ "why": "a test" });
    HistoryEntry {
        at,
        actor: "ops".to_owned(),
        service: service.to_owned(),
        kind: kind.to_owned(),
        subject: "r1".to_owned(),
        body,
    }
}

fn effect(id: &str, not_before: u64) -> Op {
    let (id, kind) = (id.to_owned(), "notify".to_owned());
    Op::Enqueue(Effect { id, kind, body: json!({ "text": "hello" }), not_before })
}

async fn commit(store: &Store, ops: Vec<Op>) -> Revision {
    store.commit(Commit { ops, ..Commit::default() }).await.unwrap()
}

async fn expecting(
    store: &Store,
    expect: Vec<(Key, Option<Revision>)>,
    ops: Vec<Op>,
) -> Result<Revision, CommitError> {
    store.commit(Commit { expect, ops, ..Commit::default() }).await
}
