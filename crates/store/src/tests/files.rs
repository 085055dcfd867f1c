use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::StoreError;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn is_made_for_us_alone_and_found_again() {
    let directory = Directory::new();
    let path = directory.file("a/b/backstop.db");
    let store = Store::open(&path).await.unwrap();
    let revision = commit(&store, vec![put("chat", "1"), Op::Append(entry("chat", "started", 1))]).await;
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(Path::new(&format!("{}{suffix}", path.display()))), 0o600, "{suffix}");
    }
    assert_eq!(mode(&directory.file("a/b")), 0o700);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(store.get(&key("chat")).await.unwrap().unwrap().revision, revision);
    assert_eq!(commit(&store, vec![put("chat", "2")]).await, Revision(revision.0 + 1));
}

#[tokio::test]
async fn a_file_that_can_not_be_a_store_is_refused_and_left_alone() {
    #[track_caller]
    fn said(result: Result<Store, StoreError>) -> String {
        result.err().expect("it is refused").to_string()
    }
    let directory = Directory::new();
    let path = directory.file("db");

    std::fs::write(&path, "listen: 127.0.0.1:8080\n".repeat(100)).unwrap();
    let text = said(Store::open(&path).await);
    assert!(text.contains("does not begin as a database does\nhint: "), "{text}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("listen:"));
    std::fs::remove_file(&path).unwrap();

    raw(&path).execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(said(Store::open(&path).await).contains("a database of another program\nhint: "));
    raw(&path).execute_batch("PRAGMA user_version = 7").unwrap();
    assert!(said(Store::open(&path).await).contains("a database of another program\nhint: "));
    std::fs::remove_file(&path).unwrap();

    assert!(said(Store::open(directory.file("").as_path()).await).contains("can't be used"));
    assert!(said(Store::open_existing(&path).await).contains("there is no such file"));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_newer_schema_is_refused_also_while_it_is_open() {
    let directory = Directory::new();
    let path = directory.file("db");
    let store = Store::open(&path).await.unwrap();
    commit(&store, vec![put("chat", "1")]).await;
    raw(&path).execute_batch("PRAGMA user_version = 99").unwrap();
    let newer = StoreError::TooNew { store: path.display().to_string(), found: 99, known: 1 };
    let ops = vec![put("chat", "2")];
    assert_eq!(expecting(&store, Vec::new(), ops).await, Err(newer.clone().into()));
    assert_eq!(Store::open(&path).await.err(), Some(newer));
    raw(&path).execute_batch("PRAGMA user_version = 1").unwrap();
    commit(&store, vec![put("chat", "2")]).await;
}

#[tokio::test]
async fn a_backup_is_a_store_as_it_was() {
    let directory = Directory::new();
    let (path, copy) = (directory.file("db"), directory.file("copy"));
    let store = Store::open(&path).await.unwrap();
    commit(&store, vec![put("chat", "1"), Op::Append(entry("chat", "started", 1)), effect("e", 0)]).await;
    // As the command does it, beside a process that serves.
    Store::open_existing(&path).await.unwrap().backup(&copy).await.unwrap();
    commit(&store, vec![put("chat", "2")]).await;

    let text = store.backup(&copy).await.unwrap_err().to_string();
    assert!(text.contains("exists already\nhint: "), "{text}");
    let names: Vec<_> = std::fs::read_dir(directory.file(""))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("copy"))
        .collect();
    assert_eq!(names, ["copy"]);
    assert_eq!(mode(&copy), 0o600);
    let restored = Store::open(&copy).await.unwrap();
    assert_eq!(restored.get(&key("chat")).await.unwrap().unwrap().value, b"1");
    assert_eq!(restored.pending("notify", 0, 10).await.unwrap().len(), 1);
    let checked = restored.check().await.unwrap();
    assert_eq!((checked.entries, checked.broken), (1, None));
    // A store in memory has one too.
    let store = Store::in_memory().await.unwrap();
    commit(&store, vec![put("chat", "m")]).await;
    store.backup(&directory.file("memory")).await.unwrap();
    let restored = Store::open(&directory.file("memory")).await.unwrap();
    assert_eq!(restored.get(&key("chat")).await.unwrap().unwrap().value, b"m");
}

#[tokio::test]
async fn looking_at_a_store_changes_nothing() {
    let directory = Directory::new();
    let path = directory.file("db");
    commit(&Store::open(&path).await.unwrap(), vec![put("chat", "1")]).await;
    let look = Store::open_existing(&path).await.unwrap();
    let refused = expecting(&look, Vec::new(), vec![put("chat", "2")]).await;
    assert!(matches!(refused, Err(CommitError::Store(StoreError::Unusable { .. }))), "{refused:?}");
    assert_eq!(look.get(&key("chat")).await.unwrap().unwrap().value, b"1");
}
