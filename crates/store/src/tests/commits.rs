use std::time::Duration;

use super::*;
use crate::{CommitError, Fence, StoreError};

const TTL: Duration = Duration::from_secs(10);

/// Ids of the effects that are due.
async fn due(store: &Store, now: u64) -> Vec<String> {
    let pending = store.pending("notify", now, 10).await.unwrap();
    pending.into_iter().map(|pending| pending.effect.id).collect()
}

#[tokio::test]
async fn all_of_it_happens_or_nothing() {
    let store = Store::in_memory().await.unwrap();
    let first = commit(&store, vec![put("chat", "1"), put("embed", "1")]).await;
    let second = commit(&store, vec![put("chat", "2")]).await;
    assert!(second > first);

    let ops = vec![put("embed", "2"), Op::Append(entry("chat", "started", 1)), effect("e", 0)];
    let expect = vec![(key("embed"), Some(first)), (key("chat"), Some(first))];
    let refused = expecting(&store, expect, ops.clone()).await;
    let conflict = CommitError::Conflict { key: key("chat"), expected: Some(first), found: Some(second) };
    assert_eq!(refused, Err(conflict));
    assert_eq!(store.get(&key("embed")).await.unwrap().unwrap().value, b"1");
    assert!(store.history(&crate::HistoryFilter::default()).await.unwrap().is_empty());
    assert!(due(&store, 0).await.is_empty());

    let expect = vec![(key("embed"), Some(first)), (key("chat"), Some(second)), (key("none"), None)];
    let third = expecting(&store, expect, ops).await.unwrap();
    let embed = store.get(&key("embed")).await.unwrap().unwrap();
    assert_eq!((embed.value.as_slice(), embed.revision), (&b"2"[..], third));
    assert_eq!(store.get(&key("chat")).await.unwrap().unwrap().revision, second);
    assert_eq!(due(&store, 0).await, ["e"]);
}

#[tokio::test]
async fn a_key_that_is_not_there_can_be_expected() {
    let store = Store::in_memory().await.unwrap();
    let there = expecting(&store, vec![(key("chat"), None)], vec![put("chat", "1")]).await.unwrap();
    let again = expecting(&store, vec![(key("chat"), None)], vec![put("chat", "2")]).await;
    let conflict = CommitError::Conflict { key: key("chat"), expected: None, found: Some(there) };
    assert_eq!(again, Err(conflict));
    commit(&store, vec![Op::Delete { key: key("chat") }]).await;
    assert_eq!(store.get(&key("chat")).await.unwrap(), None);
    let gone = expecting(&store, vec![(key("chat"), Some(there))], vec![put("chat", "2")]).await;
    assert!(matches!(gone, Err(CommitError::Conflict { found: None, .. })));
    expecting(&store, vec![(key("chat"), None)], vec![put("chat", "3")]).await.unwrap();
    assert_eq!(store.get(&key("chat")).await.unwrap().unwrap().value, b"3");
}

#[tokio::test]
async fn lists_what_is_below_a_key() {
    let store = Store::in_memory().await.unwrap();
    let deep = Key::new(&["release", "chat", "2"]).unwrap();
    let other = Key::new(&["releases"]).unwrap();
    let ops = [deep.clone(), key("a/b"), key("zebra"), other].map(|key| Op::Put { key, value: b"x".into() });
    let revision = commit(&store, ops.to_vec()).await;
    commit(&store, vec![put("gone", "1"), Op::Delete { key: key("zebra") }]).await;
    let last = commit(&store, vec![Op::Delete { key: key("gone") }]).await;
    let listed = store.list(&Key::new(&["release"]).unwrap()).await.unwrap();
    assert_eq!(listed.revision, last);
    let keys: Vec<_> = listed.entries.iter().map(|(key, value)| (key.parts(), value.revision)).collect();
    let expected = [key("a/b"), deep].map(|key| (key.parts(), revision));
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn the_last_ones_below_a_key_are_read_without_the_others() {
    let store = Store::in_memory().await.unwrap();
    let entry =
        |id: &str| Op::Put { key: Key::new(&["ended", "chat", id]).unwrap(), value: id.as_bytes().to_vec() };
    let other = Op::Put { key: Key::new(&["ended", "chat2", "9"]).unwrap(), value: b"x".to_vec() };
    let gone = Op::Delete { key: Key::new(&["ended", "chat", "4"]).unwrap() };
    let ops = vec![entry("1"), entry("3"), entry("2"), entry("4"), other, gone];
    store.commit(Commit { ops, ..Commit::default() }).await.unwrap();
    let below = Key::new(&["ended", "chat"]).unwrap();
    let last = store.last(&below, 2).await.unwrap();
    let last: Vec<_> = last.iter().map(|(_, value)| value.value.as_slice()).collect();
    assert_eq!(last, [b"3", b"2"]);
    let ids = |keys: Vec<Key>| keys.iter().filter_map(|key| key.parts().pop()).collect::<Vec<_>>();
    assert_eq!(ids(store.keys(&below).await.unwrap()), ["1", "2", "3"]);
}

#[tokio::test]
async fn an_effect_stays_until_it_is_finished() {
    let store = Store::in_memory().await.unwrap();
    let revision = commit(&store, vec![effect("late", 200), effect("first", 0), effect("second", 0)]).await;
    assert_eq!(due(&store, 199).await, ["first", "second"]);
    assert_eq!(due(&store, 200).await, ["late", "first", "second"]);
    assert_eq!(store.pending("release", 200, 10).await.unwrap(), []);

    let again = Op::Enqueue(Effect {
        id: "first".to_owned(),
        kind: "notify".to_owned(),
        body: json!("other"),
        not_before: 900,
    });
    let defer = Op::Defer { effect: "second".to_owned(), until: 300, attempts: 2 };
    commit(&store, vec![again, defer]).await;
    let [late, first] = &store.pending("notify", 299, 10).await.unwrap()[..] else { panic!("two are due") };
    assert_eq!((first.effect.id.as_str(), first.attempts, first.revision), ("first", 0, revision));
    assert_eq!((&first.effect.body, first.epoch), (&json!({ "text": "hello" }), None));
    assert_eq!(late.effect.id, "late");
    let finish = |id: &str| Op::Finish { effect: id.to_owned() };
    commit(&store, vec![finish("first"), finish("late"), finish("unknown")]).await;
    let [second] = &store.pending("notify", u64::MAX, 10).await.unwrap()[..] else { panic!("one is left") };
    assert_eq!((second.effect.not_before, second.attempts), (300, 2));
    assert_eq!((store.count("notify").await, store.count("release").await), (Ok(1), Ok(0)));
    // What is finished may come again.
    commit(&store, vec![effect("first", 0)]).await;
    assert_eq!(due(&store, 0).await, ["first"]);
}

#[tokio::test]
async fn whoever_has_lost_the_lease_can_not_write() {
    let directory = Directory::new();
    let (ours, theirs) = (
        Store::open(&directory.file("db")).await.unwrap(),
        Store::open(&directory.file("db")).await.unwrap(),
    );
    let epoch = ours.acquire("controller", "us", TTL, 1000).await.unwrap().unwrap();
    assert_eq!(theirs.acquire("controller", "them", TTL, 10_999).await.unwrap(), None);
    let fence = Fence { lease: "controller".to_owned(), epoch };
    let ours_writes = || {
        let ops = vec![put("chat", "ours"), effect("ours", 0)];
        ours.commit(Commit { fence: Some(fence.clone()), ops, ..Commit::default() })
    };
    ours_writes().await.unwrap();
    assert_eq!(ours.pending("notify", 0, 1).await.unwrap()[0].epoch, Some(epoch));

    assert!(ours.renew("controller", epoch, TTL, 5000).await.unwrap());
    assert_eq!(theirs.acquire("controller", "them", TTL, 14_999).await.unwrap(), None);
    let next = theirs.acquire("controller", "them", TTL, 15_000).await.unwrap().unwrap();
    assert!(next > epoch);
    let fenced = CommitError::Fenced { lease: "controller".to_owned(), epoch, now: next };
    assert_eq!(ours_writes().await, Err(fenced));
    assert!(!ours.renew("controller", epoch, TTL, 15_001).await.unwrap());
    // Too late: it is somebody else's.
    ours.release("controller", epoch).await.unwrap();
    assert_eq!(ours.acquire("controller", "us", TTL, 15_002).await.unwrap(), None);
    theirs.release("controller", next).await.unwrap();
    assert!(ours.acquire("controller", "us", TTL, 15_003).await.unwrap().is_some_and(|last| last > next));
}

/// What the clock said when the lease was taken is to come again in an hour.
#[tokio::test]
async fn a_clock_that_is_put_back_keeps_nobody_waiting() {
    let store = Store::in_memory().await.unwrap();
    const HOUR: u64 = 3_600_000;
    let ours = store.acquire("controller", "us", TTL, HOUR).await.unwrap().unwrap();
    assert_eq!(store.acquire("controller", "them", TTL, 0).await.unwrap(), None);
    // Whoever lives renews it, and keeps it.
    assert!(store.renew("controller", ours, TTL, 5_000).await.unwrap());
    assert_eq!(store.acquire("controller", "them", TTL, 14_999).await.unwrap(), None);
    assert_eq!(store.holder("controller").await.unwrap().as_deref(), Some("us"));
    // And whoever has died has it for as long as ever.
    assert!(store.renew("controller", ours, TTL, HOUR).await.unwrap());
    assert_eq!(store.acquire("controller", "them", TTL, 0).await.unwrap(), None);
    assert_eq!(store.acquire("controller", "them", TTL, 9_999).await.unwrap(), None);
    let theirs = store.acquire("controller", "them", TTL, 10_000).await.unwrap();
    assert!(theirs.is_some_and(|theirs| theirs > ours));
    assert!(!store.renew("controller", ours, TTL, 10_001).await.unwrap(), "it is fenced");
}

/// After a restart the same holder comes back at once, and what it was before is fenced off.
#[tokio::test]
async fn the_same_holder_takes_its_lease_anew() {
    let store = Store::in_memory().await.unwrap();
    let before = store.acquire("controller", "us", TTL, 0).await.unwrap().unwrap();
    let after = store.acquire("controller", "us", TTL, 1).await.unwrap().unwrap();
    let fence = Some(Fence { lease: "controller".to_owned(), epoch: before });
    let late = store.commit(Commit { fence, ops: vec![put("chat", "1")], ..Commit::default() }).await;
    assert!(matches!(late, Err(CommitError::Fenced { now, .. }) if now == after));
}

#[tokio::test]
async fn a_commit_is_bounded() {
    let store = Store::in_memory().await.unwrap();
    let many = (0..101).map(|number| put(&number.to_string(), "x")).collect();
    let refused = expecting(&store, Vec::new(), many).await;
    assert_eq!(refused, Err(CommitError::TooLarge { ops: 101, bytes: 101 }));
    let large = vec![put("chat", &"x".repeat((8 << 20) + 1))];
    assert!(matches!(expecting(&store, Vec::new(), large).await, Err(CommitError::TooLarge { .. })));
    assert_eq!(store.list(&Key::new(&["release"]).unwrap()).await.unwrap().entries, []);
    commit(&store, vec![put("chat", &"x".repeat(8 << 20))]).await;
}

/// An empty commit asks whether things are as expected.
#[tokio::test]
async fn nothing_changes_without_operations() {
    let store = Store::in_memory().await.unwrap();
    let revision = commit(&store, vec![put("chat", "1")]).await;
    let expect = vec![(key("chat"), Some(revision))];
    assert_eq!(expecting(&store, expect, Vec::new()).await, Ok(revision));
    let refused: Result<_, CommitError> = expecting(&store, vec![(key("chat"), None)], Vec::new()).await;
    assert!(matches!(refused, Err(CommitError::Conflict { .. })));
    assert_eq!(store.check().await.map_err(|error: StoreError| error.to_string()).unwrap().entries, 0);
}
