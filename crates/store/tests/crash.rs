//! A process that commits without a pause is killed, again and again, wherever it is. Whatever it was told of must be
//! there afterwards, and nothing by halves.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![expect(clippy::print_stdout, reason = "a process that is to be killed tells how far it is")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backstop_store::{Commit, Effect, HistoryEntry, HistoryFilter, Key, Op, Pending, Store};
use rand::RngExt;
use serde_json::json;

/// Tells the process where its store is.
const STORE: &str = "BACKSTOP_CRASH_STORE";
/// How often it is killed; more by `BACKSTOP_CRASHES`.
const KILLS: usize = 40;

fn counter() -> Key {
    Key::new(&["counter"]).unwrap()
}

/// The number of the last commit, as each of its parts tells it.
async fn state(store: &Store) -> [u64; 4] {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().parse::<u64>().unwrap();
    let count = store.get(&counter()).await.unwrap().map_or(0, |value| number(&value.value));
    let filter = HistoryFilter { limit: 1, ..HistoryFilter::default() };
    let history = store.history(&filter).await.unwrap();
    let last = history.first().map_or(0, |entry| entry.entry.body["number"].as_u64().unwrap());
    let pending = store.pending("next", u64::MAX, 10).await.unwrap();
    let effect = |pending: &Pending| number(pending.effect.id.as_bytes());
    assert!(pending.len() <= 1, "a commit finishes one effect and adds another: {pending:?}");
    let copies = store.list(&Key::new(&["copy"]).unwrap()).await.unwrap();
    let copy = copies.entries.iter().map(|(_, value)| number(&value.value)).max().unwrap_or(0);
    [count, last, pending.first().map_or(0, effect), copy]
}

/// One commit that touches everything, some of it large.
async fn step(store: &Store, number: u64) {
    let before = store.get(&counter()).await.unwrap().map(|value| value.revision);
    let text = number.to_string();
    let copy = Key::new(&["copy", &(number % 7).to_string()]).unwrap();
    let large = Key::new(&["large"]).unwrap();
    let effect = Effect { id: text.clone(), kind: "next".to_owned(), body: json!(null), not_before: number };
    let entry = HistoryEntry {
        at: number,
        actor: "a test".to_owned(),
        service: "chat".to_owned(),
        kind: "step".to_owned(),
        subject: String::new(),
        body: json!({ "number": number }),
    };
    let ops = vec![
        Op::Put { key: counter(), value: text.clone().into() },
        Op::Put { key: large, value: vec![0; (number % 11) as usize * 9000] },
        Op::Put { key: copy, value: text.into() },
        Op::Append(entry),
        Op::Finish { effect: (number - 1).to_string() },
        Op::Enqueue(effect),
    ];
    store.commit(Commit { expect: vec![(counter(), before)], ops, fence: None }).await.unwrap();
}

/// Commits on and on if it is told where; otherwise a few times.
#[tokio::test]
async fn commits_count_up() {
    let given = std::env::var_os(STORE).map(PathBuf::from);
    let store = match &given {
        Some(path) => Store::open(path).await.unwrap(),
        None => Store::in_memory().await.unwrap(),
    };
    let mut number = state(&store).await[0];
    while given.is_some() || number < 20 {
        number += 1;
        step(&store, number).await;
        if given.is_some() {
            println!("committed {number}");
        }
    }
    assert_eq!(state(&store).await, [20; 4]);
}

fn start(store: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "commits_count_up", "--nocapture"])
        .env(STORE, store)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn what_was_told_of_outlives_kill() {
    let kills = std::env::var("BACKSTOP_CRASHES").map_or(KILLS, |text| text.parse().unwrap());
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let path = directory.join("db");
    let mut told = 0;
    for round in 0..kills {
        let mut child = start(&path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut number = |line: String| line.strip_prefix("committed ").map(|text| text.parse().unwrap());
        for _ in 0..rand::rng().random_range(1..30) {
            told = lines.by_ref().find_map(&mut number).unwrap();
        }
        // Somewhere within a commit.
        std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..3000)));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died.
        told = lines.filter_map(number).last().unwrap_or(told);

        let store = Store::open(&path).await.unwrap();
        let [count, others @ ..] = state(&store).await;
        assert!(count == told || count == told + 1, "round {round}: told of {told}, found {count}");
        assert_eq!(others, [count; 3], "round {round}");
        let checked = store.check().await.unwrap();
        assert_eq!((checked.entries, checked.broken), (count, None), "round {round}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
