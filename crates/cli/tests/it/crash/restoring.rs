//! A restore whose process ends in the middle: afterwards there is what was before, or the snapshot, whole.

use backstop_engine_sim::Sim;
use serde_json::{Value, json};

use super::{ask, whole_history};
use crate::backstop::{Backstop, Directory, sim};
use crate::client::{soon, until};

/// The points of a restore, and from where on it is decided. Before it the table was changed twice.
const POINTS: [(&str, bool); 8] = [
    ("before-restore:1", false),
    ("restore-noted:1", true),
    ("restore-half:1", true),
    ("restore-whole:1", true),
    ("after-restore:1", true),
    ("before-apply:3", true),
    ("after-apply:3", true),
    ("after-record:1", false),
];

#[tokio::test]
async fn a_restore() {
    let mut runs = Vec::new();
    for (point, is_decided) in POINTS {
        runs.push((point, tokio::spawn(run(point, is_decided))));
        if runs.len() == super::AT_ONCE {
            end(std::mem::take(&mut runs)).await;
        }
    }
    end(runs).await;
}

async fn end(runs: Vec<(&str, tokio::task::JoinHandle<()>)>) {
    for (point, run) in runs {
        let ended = tokio::time::timeout(super::HUNG, run).await;
        ended.unwrap_or_else(|_| panic!("hung with a crash at point {point}")).unwrap();
    }
}

fn file(sims: &[&Sim]) -> String {
    super::config(sims, "").replace("    rules:", "    stable: v1\n    rules:")
}

async fn post(backstop: &Backstop, path: &str, body: Value) -> Option<Value> {
    let reply = ask(backstop.admin, "POST", path, "", &body.to_string()).await?;
    assert!(reply.status < 300, "{path}: {}", reply.text());
    Some(reply.json())
}

async fn run(point: &'static str, is_decided: bool) {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let directory = Directory::with(&file(&[&first, &second]));
    let mut backstop = Backstop::start(&directory, &[], &[("BACKSTOP_CRASH_AT", point)]);
    // It may end before: the first look at the file is on record at once.
    backstop.serves().await;
    let new = ("v1".to_owned(), "active".to_owned());
    let old = ("v2".to_owned(), "isolated".to_owned());
    if let Some(id) = saved(&backstop).await {
        let isolate = json!({ "url": first.url(), "force": true });
        drop(post(&backstop, "/api/v1/endpoints/isolate", isolate).await);
        backstop.write(&file(&[&first, &second]).replace("stable: v1", "stable: v2"));
        drop(post(&backstop, "/api/v1/config/reload", Value::Null).await);
        let wanted = json!({ "force": true });
        drop(post(&backstop, &format!("/api/v1/snapshots/{id}/restore"), wanted).await);
    }
    until("the crash", || backstop.has_ended()).await;
    backstop.kill_and_restart().await;
    if point.starts_with("after-record") {
        // Nobody knows how far the rest has come; what counts is that nothing is on record twice.
        soon("the history", entries(&backstop, "new in the file", 1)).await;
        whole_history(&backstop.path(""), point).await;
        return;
    }
    let expected = if is_decided { new } else { old };
    assert_eq!(served(&backstop).await, expected, "point {point}");
    until("what was begun is done", || !backstop.path("state/restore.json").exists()).await;
    backstop.kill_and_restart().await;
    assert_eq!(served(&backstop).await, expected, "point {point}, again");
    soon("the history", entries(&backstop, "stable: v2 → v1", usize::from(is_decided))).await;
    soon("the history", entries(&backstop, "new in the file", 1)).await;
    whole_history(&backstop.path(""), point).await;
}

/// Which version is stable, and what is wanted of the first one's endpoint.
async fn served(backstop: &Backstop) -> (String, String) {
    let service = ask(backstop.admin, "GET", "/api/v1/services/chat", "", "").await.unwrap().json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&service["stable"]), text(&service["versions"][0]["endpoints"][0]["duty"]))
}

/// The id of a new snapshot, as soon as there is a store; `None` if the process has ended.
async fn saved(backstop: &Backstop) -> Option<String> {
    loop {
        let reply = ask(backstop.admin, "POST", "/api/v1/snapshots", "", "{}").await?;
        if reply.status == 201 {
            return Some(reply.json()["id"].as_str().unwrap().to_owned());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until the history has so many entries that tell this, and everything that waited is in it.
async fn entries(backstop: &Backstop, told: &str, count: usize) {
    let waiting = || {
        let text = std::fs::read_to_string(backstop.path("state/intent.json")).unwrap_or_default();
        let stored: Value = serde_json::from_str(&text).unwrap_or_default();
        stored["ledger"]["waiting"].as_array().map_or(0, Vec::len)
    };
    loop {
        let reply = ask(backstop.admin, "GET", "/api/v1/services/chat/history?limit=100", "", "").await;
        let entries = reply.filter(|reply| reply.status == 200).map(|reply| reply.text()).unwrap_or_default();
        let found = entries.matches(told).count();
        assert!(found <= count, "{told}: {entries}");
        if found == count && !entries.is_empty() && waiting() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
