use super::*;
use crate::{Seen, Watch};

/// What the watch sees next: keys with their values.
async fn seen(watch: &mut Watch) -> Vec<(Key, Option<String>)> {
    match watch.next().await.unwrap() {
        Seen::Changes(changes) => {
            let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
            changes.into_iter().map(|change| (change.key, change.value.map(text))).collect()
        }
        Seen::TooLate => panic!("nothing is forgotten yet"),
    }
}

#[tokio::test]
async fn sees_what_changes_from_a_revision_on() {
    let store = Store::in_memory().await.unwrap();
    let from = commit(&store, vec![put("chat", "1")]).await;
    commit(&store, vec![put("chat", "2"), put("embed", "1")]).await;
    commit(&store, vec![put("chat", "3"), Op::Append(entry("chat", "step", 1))]).await;
    let mut watch = store.watch(from);
    let some = |text: &str| Some(text.to_owned());
    // Of a key only the last change.
    assert_eq!(seen(&mut watch).await, [(key("embed"), some("1")), (key("chat"), some("3"))]);
    let (changes, revision) = tokio::join!(seen(&mut watch), async {
        // It waits meanwhile, and history is no reason to wake up.
        commit(&store, vec![Op::Append(entry("chat", "step", 1))]).await;
        commit(&store, vec![Op::Delete { key: key("chat") }]).await
    });
    assert_eq!(changes, [(key("chat"), None)]);
    assert_eq!(watch.revision(), revision);
}

#[tokio::test]
async fn sees_what_another_process_changes() {
    let directory = Directory::new();
    let ours = Store::open(&directory.file("db")).await.unwrap();
    let theirs = Store::open(&directory.file("db")).await.unwrap();
    let mut watch = ours.watch(Revision(0));
    let (changes, _) = tokio::join!(seen(&mut watch), commit(&theirs, vec![put("chat", "theirs")]));
    assert_eq!(changes, [(key("chat"), Some("theirs".to_owned()))]);
}

#[tokio::test]
async fn whoever_was_away_for_too_long_is_told() {
    let store = Store::in_memory().await.unwrap();
    let first = commit(&store, vec![put("chat", "1")]).await;
    let deleted = commit(&store, vec![Op::Delete { key: key("chat") }]).await;
    let (mut early, mut late) = (store.watch(first), store.watch(deleted));
    for _ in 0..10_000 {
        commit(&store, vec![put("embed", "1")]).await;
    }
    // Deletions are forgotten when something else is deleted.
    let last = commit(&store, vec![Op::Delete { key: key("embed") }]).await;
    assert_eq!(early.next().await.unwrap(), Seen::TooLate);
    assert_eq!(early.revision(), last);
    // It has seen all that is forgotten.
    assert_eq!(seen(&mut late).await, [(key("embed"), None)]);
    // A revision that is still to come is not of this store.
    assert_eq!(store.watch(Revision(last.0 + 1)).next().await.unwrap(), Seen::TooLate);
}
