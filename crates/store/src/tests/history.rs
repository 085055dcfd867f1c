use super::*;
use crate::{HistoryFilter, Recorded};

fn numbers(entries: &[Recorded]) -> Vec<u64> {
    entries.iter().map(|entry| entry.seq).collect()
}

#[tokio::test]
async fn is_found_by_service_kind_and_time() {
    let store = Store::in_memory().await.unwrap();
    for (service, kind, at) in
        [("chat", "started", 10), ("embed", "started", 20), ("chat", "step", 30), ("chat", "step", 40)]
    {
        commit(&store, vec![Op::Append(entry(service, kind, at))]).await;
    }
    let all = HistoryFilter { limit: 10, ..HistoryFilter::default() };
    let check = async |filter: HistoryFilter, expected: &[u64]| {
        let found = store.history(&filter).await.unwrap();
        assert_eq!(numbers(&found), expected, "{filter:?}");
    };
    check(all.clone(), &[4, 3, 2, 1]).await;
    let chat = HistoryFilter { service: Some("chat".to_owned()), ..all.clone() };
    check(chat.clone(), &[4, 3, 1]).await;
    check(HistoryFilter { limit: 2, ..chat.clone() }, &[4, 3]).await;
    check(HistoryFilter { before: Some(3), ..chat.clone() }, &[1]).await;
    check(HistoryFilter { kind: Some("started".to_owned()), ..chat }, &[1]).await;
    check(HistoryFilter { since: Some(20), kind: Some("started".to_owned()), ..all.clone() }, &[2]).await;

    let [newest, before, ..] = &store.history(&all).await.unwrap()[..] else { panic!("there are four") };
    assert_eq!(newest.entry, entry("chat", "step", 40));
    assert_eq!(newest.prev, before.hash);
    let checked = store.check().await.unwrap();
    assert_eq!((checked.entries, checked.head, checked.broken), (4, newest.hash, None));
}

#[tokio::test]
async fn nobody_changes_it_by_mistake() {
    let directory = Directory::new();
    let store = Store::open(&directory.file("db")).await.unwrap();
    commit(&store, vec![Op::Append(entry("chat", "started", 1)), Op::Append(entry("chat", "step", 2))]).await;
    let raw = raw(&directory.file("db"));
    raw.pragma_update(None, "recursive_triggers", true).unwrap();
    for sql in [
        "UPDATE history SET actor = 'nobody' WHERE seq = 1",
        "DELETE FROM history WHERE seq = 2",
        "INSERT OR REPLACE INTO history SELECT seq, at, 'nobody', service, kind, subject, body, prev, hash FROM history",
        "INSERT INTO history SELECT 9, at, actor, service, kind, subject, body, prev, hash FROM history LIMIT 1",
    ] {
        let refused = raw.execute(sql, []).unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{sql}: {refused}");
    }
    assert_eq!(store.check().await.unwrap().broken, None);
}

/// Whoever takes the triggers away is found out.
#[tokio::test]
async fn the_check_says_where_the_chain_breaks() {
    for (sql, at) in [
        ("UPDATE history SET body = '{}' WHERE seq = 1200", 1200),
        ("DELETE FROM history WHERE seq = 3", 3),
        ("DELETE FROM history WHERE seq > 1198", 1199),
        ("UPDATE history SET hash = prev WHERE seq = 1", 1),
        ("UPDATE meta SET entries = 7", 1201),
    ] {
        let directory = Directory::new();
        let store = Store::open(&directory.file("db")).await.unwrap();
        // More than are read at a time.
        for number in 0..1201 / 100 {
            let entries = (0..100).map(|at| Op::Append(entry("chat", "step", number * 100 + at)));
            commit(&store, entries.collect()).await;
        }
        commit(&store, vec![Op::Append(entry("chat", "ended", 9))]).await;
        assert_eq!(store.check().await.unwrap().broken, None);
        let raw = raw(&directory.file("db"));
        raw.execute_batch("DROP TRIGGER history_is_not_changed; DROP TRIGGER history_is_not_deleted")
            .unwrap();
        raw.execute(sql, []).unwrap();
        assert_eq!(store.check().await.unwrap().broken.map(|broken| broken.seq), Some(at), "{sql}");
    }
}
