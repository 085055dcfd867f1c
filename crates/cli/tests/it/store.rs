//! `backstop store` on the file of a store, as a process that serves has it open.

use std::path::Path;
use std::process::Command;

use backstop_store::{Commit, HistoryEntry, Op, Store};
use serde_json::{Value, json};

use crate::backstop::{BIN, Directory, Said};

const CONFIG: &str = "
listen: 127.0.0.1:0
store: sqlite:./kept/backstop.db
services: [{ name: chat, versions: [{ name: v1, endpoints: [{ url: \"http://127.0.0.1:1\" }] }] }]
";

fn run(directory: &Directory, arguments: &[&str]) -> Said {
    let mut command = Command::new(BIN);
    command.arg("store").args(arguments).current_dir(&directory.0);
    Said::of(command)
}

async fn store(directory: &Directory) -> Store {
    Store::open(&directory.0.join("kept/backstop.db")).await.unwrap()
}

async fn append(store: &Store, subject: &str) {
    let entry = HistoryEntry {
        at: 1,
        actor: "ops".to_owned(),
        service: "chat".to_owned(),
        kind: "step".to_owned(),
        subject: subject.to_owned(),
        body: json!({}),
    };
    store.commit(Commit { ops: vec![Op::Append(entry)], ..Commit::default() }).await.unwrap();
}

#[tokio::test]
async fn copies_and_checks_a_store_that_is_in_use() {
    let directory = Directory::with(CONFIG);
    let store = store(&directory).await;
    append(&store, "r1").await;
    append(&store, "r2").await;
    let head = store.check().await.unwrap().head.to_string();
    let said = run(&directory, &["check"]);
    assert_eq!(
        said.out,
        format!("./kept/backstop.db: ok, 2 entries of history\nthe last has the hash {head}\n")
    );
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));

    let said = run(&directory, &["backup", "--to", "copy.db"]);
    assert_eq!(said.out, "copy.db: copied from ./kept/backstop.db, 2 entries of history\n");
    append(&store, "r3").await;
    let again = run(&directory, &["backup", "--to", "copy.db"]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("`copy.db` exists already\nhint: "), "{}", again.err);

    // The copy is a store of its own.
    let config = CONFIG.replace("./kept/backstop.db", "./copy.db");
    std::fs::write(directory.0.join("copy.yaml"), config).unwrap();
    let said = run(&directory, &["check", "-c", "copy.yaml", "--json"]);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    let expected = json!({
        "store": "./copy.db", "ok": true, "error": null,
        "history": { "entries": 2, "head": head, "broken": null },
    });
    assert_eq!(found, expected);
}

#[tokio::test]
async fn says_what_is_wrong() {
    let directory = Directory::with(CONFIG);
    let check = |arguments: &[&str], expected: &str| {
        let said = run(&directory, arguments);
        assert_eq!(said.code, Some(1), "{arguments:?}");
        assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    };
    check(&["check"], "error: the store `./kept/backstop.db` can't be used: there is no such file");
    check(&["backup", "--to", "copy.db"], "there is no such file");
    check(&["check", "-c", "none.yaml"], "none.yaml: no such file");
    std::fs::write(
        directory.0.join("memory.yaml"),
        CONFIG.replace("sqlite:./kept/backstop.db", "\"memory:\""),
    )
    .unwrap();
    check(&["check", "-c", "memory.yaml"], "error: the store is `memory:`");

    let _store = store(&directory).await;
    // All in one file, without a log that would still have what is damaged in it.
    assert_eq!(run(&directory, &["backup", "--to", "copy.db"]).code, Some(0));
    damage(&directory.0.join("copy.db"));
    std::fs::write(directory.0.join("copy.yaml"), CONFIG.replace("./kept/backstop.db", "./copy.db")).unwrap();
    check(&["check", "-c", "copy.yaml"], "the store `./copy.db` is damaged: ");
    let said = run(&directory, &["check", "-c", "copy.yaml", "--json"]);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.code, &found["ok"], &found["history"]), (Some(1), &json!(false), &Value::Null));
    assert!(found["error"].as_str().unwrap().contains("damaged"), "{found}");
}

fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(path, bytes).unwrap();
}
