//! Snapshots with real processes: what is restored is as it was, after `kill -9` too, and no key leaves its place.

use serde_json::{Value, json};

use crate::backstop::{BIN, Backstop, Said, sim};
use crate::client::{chat, until};

const SLOW: &str = "    release:
      steps: [{ weight: 50%, hold: 1h }, { weight: 100% }]
      verify: 1s
      guardrails: [{ metric: error_rate }]
";
const KEY: &str = "KEY-IN-CLEAR";
/// What the harness puts into the environment.
const FROM_ENVIRONMENT: &str = "KEY-OF-THE-UPSTREAM";

/// The service as `backstop config` has it.
fn chat_of(backstop: &Backstop) -> Value {
    let shown: Value = serde_json::from_str(&backstop.order(&["config", "--json"])).unwrap();
    shown["config"]["services"][0].clone()
}

fn drift(backstop: &Backstop) -> String {
    let shown: Value = serde_json::from_str(&backstop.order(&["config", "--json"])).unwrap();
    shown["drift"].to_string()
}

async fn version(backstop: &Backstop) -> String {
    chat(backstop.addr, false).await.header("x-backstop-version").unwrap().to_owned()
}

async fn store_is_open(backstop: &Backstop) {
    until("the store is open", || backstop.ask(&["snapshot", "list"], "").code == Some(0)).await;
}

fn refused(backstop: &Backstop, arguments: &[&str], expected: &str) {
    let said = backstop.ask(&[&["snapshot"], arguments].concat(), "");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains(expected), "{}", said.err);
}

fn first_word(text: &str) -> String {
    text.split([':', ' ']).next().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_saved_comes_back() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let text = crate::release::config(&[&first, &second], SLOW)
        .replace(&format!("{}\",", first.url()), &format!("{}\", api_key: {KEY},", first.url()))
        .replace(
            &format!("{}\",", second.url()),
            &format!("{}\", api_key: \"${{UPSTREAM_KEY}}\",", second.url()),
        );
    let mut backstop = Backstop::serve(&text, &[]).await;
    backstop.ready().await;
    store_is_open(&backstop).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let under_way = backstop.order(&["snapshot", "save"]);
    assert!(under_way.contains("is under way; nothing of it is saved"), "{under_way}");
    refused(&backstop, &["restore", &first_word(&under_way)], "has a release under way");
    until("promoted", || backstop.ask(&["release", "promote", "chat"], "").code == Some(0)).await;
    let listed = backstop.order(&["snapshot", "list", "--service", "chat"]);
    assert!(listed.contains("local, automatic") && listed.contains("made v2 stable"), "{listed}");
    backstop.order(&[
        "endpoint",
        "add",
        &third.url(),
        "--service",
        "chat",
        "--version",
        "v2",
        "--engine",
        "sim",
    ]);

    let saved = backstop.order(&["snapshot", "save", "--description", "two of v2"]);
    assert!(saved.ends_with(": chat v2\n"), "{saved}");
    let id = first_word(&saved);
    let before = chat_of(&backstop);
    // Much is changed, at run time and in the file.
    backstop.order(&["endpoint", "drain", &third.url()]);
    backstop.order(&["endpoint", "remove", &second.url(), "--force"]);
    backstop.order(&["release", "rollback", "chat", "--to", "v1"]);
    backstop.write(&text.replace(
        "    timeouts: { first_token: 1s }",
        "    timeouts: { first_token: 2s }\n    balance: random",
    ));
    until("reloaded", || chat_of(&backstop)["balance"] == "random").await;
    assert_eq!(version(&backstop).await, "v1");
    until("rolled back", || {
        let status: Value =
            serde_json::from_str(&backstop.order(&["release", "status", "chat", "--json"])).unwrap();
        status["ended"] == true
    })
    .await;

    refused(&backstop, &["restore", &id], "was sent back by release");
    let dry = backstop.order(&["snapshot", "restore", &id, "--again", "--force", "--dry-run"]);
    for told in ["chat: stable: v1 → v2", "`balance`", "nothing was changed"] {
        assert!(dry.contains(told), "no `{told}` in {dry}");
    }
    assert_eq!(version(&backstop).await, "v1");
    let said =
        backstop.order(&["snapshot", "restore", &id, "--again", "--force", "--description", "better before"]);
    assert!(said.contains(&format!("snapshot {id} is restored; ")), "{said}");
    assert_eq!(chat_of(&backstop), before);
    until("v2 serves", || backstop.text().contains("\"to\":\"healthy\"")).await;
    assert_eq!(version(&backstop).await, "v2");
    backstop.kill_and_restart().await;
    assert_eq!(chat_of(&backstop), before);
    backstop.ready().await;
    assert_eq!(version(&backstop).await, "v2");
    store_is_open(&backstop).await;
    until("on record", || {
        let history = backstop.ask(&["release", "history", "chat", "--limit", "100"], "").out;
        history.contains(&format!("restore snapshot {id}: chat: ")) && history.contains("(better before)")
    })
    .await;
    // Keys stay where they were written.
    for file in ["backstop.db", "backstop.db-wal"] {
        let bytes = std::fs::read(backstop.path(file)).unwrap_or_default();
        for key in [KEY, FROM_ENVIRONMENT] {
            let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!found, "`{key}` is in {file}");
        }
    }

    // Taken into the file, it holds there, and nothing differs any more.
    assert!(drift(&backstop).contains(&format!("snapshot {id} was restored")));
    let shown = backstop.order(&["snapshot", "show", &id, "--service", "chat"]);
    assert!(shown.contains("# chat: v2 is stable, before it v1\n") && shown.contains("\"***\""), "{shown}");
    assert!(shown.contains("${UPSTREAM_KEY}"), "{shown}");
    let head = text.split("services:").next().unwrap();
    backstop.write(&format!("{head}{}", shown.replace("\"***\"", KEY)));
    until("the file has it", || drift(&backstop) == "{}").await;
    let taken = json!({ "stable": "v2" });
    let same = |(key, value): (&String, &Value)| chat_of(&backstop)[key] == *taken.get(key).unwrap_or(value);
    assert!(before.as_object().unwrap().iter().all(same), "{:#}", chat_of(&backstop));
}

#[tokio::test]
async fn mistakes_are_told() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = Backstop::serve(&crate::release::config(&[&first, &second], SLOW), &[]).await;
    backstop.ready().await;
    store_is_open(&backstop).await;
    assert_eq!(backstop.ask(&["snapshot", "list"], "").err, "there is no such snapshot\n");
    refused(&backstop, &["show", "2026"], "there is no snapshot whose id begins with `2026`");
    refused(&backstop, &["restore", "../etc"], "there is no snapshot whose id begins with `../etc`");
    refused(&backstop, &["save", "--service", "chta"], "there is no service `chta`; there is `chat`");
    let one = first_word(&backstop.order(&["snapshot", "save"]));
    let two = first_word(&backstop.order(&["snapshot", "save", "--service", "chat"]));
    refused(&backstop, &["show", &one[..4]], "the ids of several snapshots begin with");
    refused(&backstop, &["show", &one, "--service", "chta"], "has no service `chta`; it has `chat`");
    refused(&backstop, &["restore", &one, "--service", "chta"], "has no service `chta`; it has `chat`");
    assert_eq!(backstop.order(&["snapshot", "delete", &two]), format!("{two} is deleted\n"));
    refused(&backstop, &["delete", &two], "there is no snapshot");
    assert_eq!(
        backstop.order(&["snapshot", "restore", &one[..4]]),
        format!("all is as in snapshot {one} already\n")
    );
    // What was saved can't be passed off as something else.
    let store = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    let change = "UPDATE entry SET value = CAST(replace(CAST(value AS TEXT), '\"stable\":\"v1\"', '\"stable\":\"v2\"') AS BLOB)";
    store.execute_batch(change).unwrap();
    refused(&backstop, &["restore", &one], "it has been changed in the store");
    let said = Said::of({
        let mut command = std::process::Command::new(BIN);
        command.args(["snapshot", "restore"]);
        command
    });
    assert_eq!(said.code, Some(2), "an id is needed");
}
