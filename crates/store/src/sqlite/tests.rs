//! What disks and other processes do to a store.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::Sqlite;
use crate::backend::Backend;
use crate::tests::Directory;
use crate::{Commit, CommitError, Key, Op, Revision, Store, StoreError};

const PATIENCE: Duration = Duration::from_secs(10);

fn put(bytes: usize) -> Commit {
    let key = Key::new(&["key"]).unwrap();
    Commit { ops: vec![Op::Put { key, value: vec![7; bytes] }], ..Commit::default() }
}

/// With a short patience, and something done to the connection first.
async fn open(path: &Path, prepare: fn(&Connection)) -> Result<Store, StoreError> {
    let path = path.to_owned();
    let open = move || {
        let sqlite = Sqlite::open(&path, Duration::from_millis(20))?;
        prepare(&sqlite.connection);
        Ok(sqlite)
    };
    Store::start(open, PATIENCE).await
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let directory = Directory::new();
    let path = directory.file("db");
    let small = |connection: &Connection| connection.pragma_update(None, "max_page_count", 40).unwrap();
    let store = open(&path, small).await.unwrap();
    let before = store.commit(put(100)).await.unwrap();
    let full = StoreError::Full { store: path.display().to_string() };
    for _ in 0..3 {
        assert_eq!(store.commit(put(500_000)).await, Err(CommitError::Store(full.clone())));
    }
    let key = Key::new(&["key"]).unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value.len(), 100);
    // There is room again, for what is smaller.
    assert_eq!(store.commit(put(200)).await, Ok(Revision(before.0 + 1)));
    assert_eq!(store.check().await.unwrap().broken, None);
    assert!(full.to_string().contains("no space left"));
}

#[tokio::test]
async fn a_lock_of_another_process_is_an_error_after_a_while_and_passes() {
    let directory = Directory::new();
    let path = directory.file("db");
    let store = open(&path, |_| {}).await.unwrap();
    store.commit(put(1)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = StoreError::Busy { store: path.display().to_string() };
    assert_eq!(store.commit(put(2)).await, Err(CommitError::Store(busy.clone())));
    assert_eq!(store.acquire("controller", "us", PATIENCE, 0).await, Err(busy));
    // Reading goes on, and so does opening.
    let key = Key::new(&["key"]).unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, [7]);
    open(&path, |_| {}).await.unwrap();
    other.execute_batch("COMMIT").unwrap();
    store.commit(put(2)).await.unwrap();
}

#[tokio::test]
async fn damage_is_found_at_the_start_and_named() {
    let directory = Directory::new();
    let path = directory.file("db");
    let mut sqlite = Sqlite::open(&path, PATIENCE).unwrap();
    for bytes in [100_000, 200_000, 50_000] {
        sqlite.commit(&put(bytes)).unwrap();
    }
    // When it is closed all of the log is in the file.
    drop(sqlite);
    let whole = std::fs::read(&path).unwrap();
    // Pages within, the header of the second one, and the end.
    let page = 4096;
    let changes: [fn(&mut Vec<u8>, usize); 3] = [
        |bytes, page| bytes[2 * page..4 * page].fill(0x5a),
        |bytes, page| bytes[page..page + 8].fill(0xff),
        |bytes, page| bytes.truncate(3 * page + 100),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut bytes = whole.clone();
        change(&mut bytes, page);
        std::fs::write(&path, &bytes).unwrap();
        let error = Store::open(&path).await.err().unwrap_or_else(|| panic!("change {index} is not found"));
        assert!(matches!(error, StoreError::Damaged { .. }), "change {index}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("hint: stop backstop and keep a copy"), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "change {index}: it is left as it is");
    }
}

#[tokio::test]
async fn damage_is_noticed_while_it_serves() {
    let directory = Directory::new();
    let path = directory.file("db");
    let store =
        open(&path, |connection| connection.pragma_update(None, "cache_size", 0).unwrap()).await.unwrap();
    store.commit(put(200_000)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(other);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let error = store.commit(put(1)).await.unwrap_err();
    assert!(matches!(error, CommitError::Store(StoreError::Damaged { .. })), "{error:?}");
    assert!(matches!(store.check().await, Err(StoreError::Damaged { .. })));
}
