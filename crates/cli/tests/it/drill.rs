//! Drills and freezes with real processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};

use crate::backstop::{Backstop, Said, oracle, sim};
use crate::client::{chat, soon, until};
use crate::release::{Load, all_well, config, history, phase, served, status};

/// Long streams take about a second: some of them run while the twin is left.
const TOKENS: u64 = 40;
const ITL: u64 = 25;

fn settings(drill: &str) -> String {
    format!(
        "    release:\n      steps: [{{ weight: 50%, hold: 1h }}, {{ weight: 100% }}]\n      verify: 20s\n      \
         guardrails: [{{ metric: error_rate }}]\n      drill: {drill}\n"
    )
}

/// Streams that are asked for again and again, until dropped; each must be whole.
struct Streams {
    ends: Arc<AtomicBool>,
    whole: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
}

impl Streams {
    fn on(addr: std::net::SocketAddr) -> Self {
        let streams = Self { ends: Arc::default(), whole: Arc::default(), broken: Arc::default() };
        let expected = oracle(usize::try_from(TOKENS).unwrap());
        for _ in 0..8 {
            let (ends, whole, broken) =
                (Arc::clone(&streams.ends), Arc::clone(&streams.whole), Arc::clone(&streams.broken));
            let expected = expected.clone();
            tokio::spawn(async move {
                while !ends.load(Relaxed) {
                    let reply = chat(addr, true).await;
                    let is_whole = reply.status == 200 && reply.is_done() && reply.content() == expected;
                    let count = if is_whole { &whole } else { &broken };
                    count.fetch_add(1, Relaxed);
                }
            });
        }
        streams
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
    }
}

fn reported(backstop: &Backstop) -> Value {
    serde_json::from_str(&backstop.order(&["release", "report", "chat", "--json"])).unwrap()
}

async fn metrics(backstop: &Backstop) -> String {
    crate::client::call(backstop.admin, "GET", "/metrics", "", b"").await.text()
}

async fn in_background(backstop: &Backstop, arguments: &[&str]) -> Said {
    let mut command = std::process::Command::new(crate::backstop::BIN);
    command
        .args(arguments)
        .env("BACKSTOP_ADMIN", format!("http://{}", backstop.admin))
        .env("BACKSTOP_TOKEN", "");
    tokio::task::spawn_blocking(move || Said::of(command)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_passes_under_load_and_nobody_notices() {
    let (first, second) = (sim(ITL, TOKENS).await, sim(0, 3).await);
    let backstop =
        Backstop::serve(&config(&[&first, &second], &settings("{ weight: 40%, target: 30s }")), &[]).await;
    all_well(&backstop, 2).await;
    let (load, streams) = (Load::on(backstop.addr), Streams::on(backstop.addr));
    until("streams", || streams.whole.load(Relaxed) > 8).await;

    let said = in_background(&backstop, &["drill", "chat"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.starts_with("chat: v1~drill → v1  PASS"), "{}", said.out);
    assert!(said.err.contains("v1~drill goes back: trigger: drill"), "{}", said.err);
    load.none_lost();
    assert_eq!(streams.broken.load(Relaxed), 0, "no stream was cut");

    let account = reported(&backstop);
    let drill = &account["drill"];
    assert_eq!((&account["kind"], &drill["outcome"]), (&json!("drill"), &json!("passed")), "{account:#}");
    assert!(
        drill["requests"].as_u64() >= Some(20) && drill["failed"] == 0 && drill["assigned_late"] == 0,
        "{drill:#}"
    );
    for measured in ["recovery_ms", "swap_ms", "drained_ms", "verified_ms"] {
        assert!(drill[measured].is_number(), "{measured}: {drill:#}");
    }
    let before = load.of("v1");
    until("stable serves", || load.of("v1") > before + 20).await;
    let twins = load.of("v1~drill");
    assert!(twins > 0, "the twin had its share");
    assert_eq!(load.of("v2"), 0, "nobody else had any of it");

    let report = backstop.order(&["release", "report", "chat"]);
    assert!(report.contains("**PASS.**") && report.contains("## Measured"), "{report}");
    assert!(history(&backstop).contains("the drill passed: recovery took"), "{}", history(&backstop));
    let metrics = metrics(&backstop).await;
    assert!(metrics.contains("backstop_drill_passed{service=\"chat\"} 1"), "{metrics}");
    assert!(!metrics.contains("v1~drill\",endpoint"), "an endpoint is counted once");
    // It is as if nothing had been.
    assert_eq!(served(&backstop).await, ("v1".to_owned(), "v2".to_owned()));
    let list: Value = serde_json::from_str(&backstop.order(&["endpoint", "list", "--json"])).unwrap();
    assert!(!list.to_string().contains("drill"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_misses_its_target_fails_and_says_why() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let gradual = "{ weight: 60% }\n      rollback: { gradual: { weights: [20%, 0%], every: 1s } }";
    let backstop = Backstop::serve(&config(&[&first, &second], &settings(gradual)), &[]).await;
    all_well(&backstop, 2).await;
    let load = Load::on(backstop.addr);
    let said =
        in_background(&backstop, &["drill", "chat", "--to", "v2", "--gradual", "--target", "500ms"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("FAIL") && said.out.contains("500 ms is the target"), "{}", said.out);
    load.none_lost();
    assert!(load.of("v2") > 0);
    assert_eq!(served(&backstop).await, ("v1".to_owned(), "v2".to_owned()), "nothing is held against v2");
    assert!(metrics(&backstop).await.contains("backstop_drill_passed{service=\"chat\"} 0"));
}

#[tokio::test]
async fn a_drill_is_over_after_a_crash() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = Backstop::serve(&config(&[&first, &second], &settings("{ weight: 50% }")), &[]).await;
    all_well(&backstop, 2).await;
    // Without traffic it waits for some.
    let mut command = std::process::Command::new(crate::backstop::BIN);
    let admin = format!("http://{}", backstop.admin);
    command.args(["drill", "chat"]).env("BACKSTOP_ADMIN", admin).stderr(std::process::Stdio::null());
    let mut waits = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    until("begun", || backstop.ask(&["release", "status", "chat"], "").code == Some(0)).await;
    let half = phase(&backstop, "step 1").await;
    assert_eq!((&half["kind"], &half["share"]), (&json!("drill"), &json!(0.5)));
    let refused = backstop.ask(&["release", "start", "chat", "--to", "v2"], "");
    assert!(refused.err.contains("release under way"), "{refused:?}");
    let refused = backstop.ask(&["drill", "chat"], "");
    assert!(refused.err.contains("release under way"), "{refused:?}");
    backstop.kill_and_restart().await;
    waits.wait().unwrap();
    // At once, before the store is there.
    for _ in 0..20 {
        assert_eq!(served(&backstop).await.0, "v1");
    }
    all_well(&backstop, 2).await;
    let ended = async {
        while status(&backstop)["ended"] != true {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("over", ended).await;
    let over = status(&backstop);
    assert_eq!(
        (&over["phase"], &over["drill"]["outcome"]),
        (&json!("aborted"), &json!("called_off")),
        "{over:#}"
    );
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
}

#[tokio::test]
async fn drills_begin_by_themselves_and_mistakes_are_told() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = Backstop::serve(&config(&[&first, &second], &settings("{ weight: 50% }")), &[]).await;
    all_well(&backstop, 2).await;
    let refused = |backstop: &Backstop, arguments: &[&str], expected: &str| {
        let said = backstop.ask(&[&["drill"], arguments].concat(), "");
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains(expected), "{}", said.err);
    };
    refused(&backstop, &["chta"], "there is no service `chta`");
    refused(&backstop, &["chat", "--to", "v9"], "has no version `v9`; it has `v1`, `v2`");
    refused(&backstop, &["chat", "--to", "v1"], "`v1` is the stable version already");
    refused(&backstop, &["chat", "--weight", "lots"], "`lots` is no share to drill with");
    refused(&backstop, &["chat", "--target", "0s"], "`target_ms` is 0");
    backstop.order(&["release", "freeze", "chat", "--reason", "fair"]);
    refused(&backstop, &["chat"], "service `chat` is frozen by local: fair");
    backstop.order(&["release", "unfreeze", "chat"]);

    // The schedule begins with the configuration that has it, and outlasts the process.
    let scheduled = settings("{ weight: 50%, every: 1m }");
    backstop.write(&config(&[&first, &second], &scheduled));
    until("reloaded", || backstop.logged("configuration reloaded")).await;
    let db = backstop.path("backstop.db");
    let since = || {
        let db = rusqlite::Connection::open(&db).unwrap();
        let sql = "SELECT value FROM entry WHERE key = 'drill/chat'";
        db.query_row(sql, [], |row| row.get::<_, Vec<u8>>(0)).ok()
    };
    until("the schedule is kept", || since().is_some()).await;
    backstop.kill();
    // As if it had been a long time ago.
    let mut schedule: Value = serde_json::from_slice(&since().unwrap()).unwrap();
    schedule["since"] = json!(1);
    let changed = rusqlite::Connection::open(&db).unwrap();
    let sql = "UPDATE entry SET value = ?1 WHERE key = 'drill/chat'";
    changed.execute(sql, [serde_json::to_vec(&schedule).unwrap()]).unwrap();
    drop(changed);
    backstop.kill_and_restart().await;
    let _load = Load::on(backstop.addr);
    until("a drill", || backstop.ask(&["release", "status", "chat"], "").code == Some(0)).await;
    let drill = status(&backstop);
    assert_eq!((&drill["kind"], &drill["actor"]), (&json!("drill"), &json!("schedule")), "{drill:#}");
    let id = drill["id"].clone();
    let ended = phase_of(&backstop, "rolled back").await;
    assert_eq!(ended["drill"]["outcome"], "passed", "{ended:#}");
    backstop.kill_and_restart().await;
    all_well(&backstop, 2).await;
    assert_eq!(status(&backstop)["id"], id, "it is not repeated after a restart");
}

async fn phase_of(backstop: &Backstop, phase: &str) -> Value {
    crate::release::phase(backstop, phase).await
}

#[tokio::test]
async fn a_freeze_holds_over_restarts_and_without_a_store_and_lets_back() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let release = "    release:\n      steps: [{ weight: 50%, hold: 0s, min_requests: 0 }, { weight: 100%, hold: 1h }]\n      \
                   verify: 1s\n      guardrails: [{ metric: error_rate }]\n";
    let mut backstop = Backstop::serve(&config(&[&first, &second], release), &[]).await;
    all_well(&backstop, 2).await;
    let refused = |backstop: &Backstop, arguments: &[&str], expected: &str| {
        let said = backstop.ask(&[&["release"], arguments].concat(), "");
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains(expected), "{}", said.err);
    };
    refused(&backstop, &["unfreeze", "chat"], "no operator has frozen service `chat`");
    refused(&backstop, &["freeze", "chta"], "there is no service `chta`");
    refused(&backstop, &["freeze", "chat", "--until", "soon"], "`soon` is not a time");
    // Somebody else writes, and does not come to an end: the store is of no use.
    let lock = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let said = backstop.order(&["release", "freeze", "--all", "--for", "2h", "--reason", "launch"]);
    assert!(said.starts_with("all services: frozen until ") && said.contains("by local: launch"), "{said}");
    backstop.kill();
    drop(lock);
    backstop.kill_and_restart().await;
    all_well(&backstop, 2).await;
    let list = backstop.order(&["release", "list", "chat"]);
    assert!(list.contains("all services: frozen until"), "{list}");
    let recorded = || history(&backstop).contains("freeze all services: frozen until");
    until("it is on record", recorded).await;

    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let held = async {
        while status(&backstop)["holds"][0]["hold"] != "freeze" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("held up", held).await;
    let waiting = status(&backstop);
    assert_eq!(waiting["phase"], "waiting");
    assert!(waiting["holds"][0]["text"].as_str().unwrap().contains("by local: launch"), "{waiting:#}");
    refused(&backstop, &["promote", "chat"], "service `chat` is frozen until");
    refused(&backstop, &["unfreeze", "chat"], "no operator has frozen service `chat`");
    backstop.order(&["release", "unfreeze", "--all"]);
    phase(&backstop, "step 2").await;
    backstop.order(&["release", "freeze", "chat"]);
    backstop.order(&["release", "rollback", "chat"]);
    assert_eq!(served(&backstop).await.0, "v1", "going back is always possible");
    phase(&backstop, "rolled back").await;
    // And so is going on, for those who insist.
    backstop.order(&["release", "start", "chat", "--to", "v2", "--again"]);
    backstop.order(&["release", "promote", "chat", "--force"]);
    assert_eq!(served(&backstop).await.0, "v2");
}

/// What was sent back only seconds ago is not all that may have to be left.
#[tokio::test]
async fn a_third_version_can_be_gone_to_at_any_time() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let backstop =
        Backstop::serve(&config(&[&first, &second, &third], &settings("{ weight: 50% }")), &[]).await;
    all_well(&backstop, 3).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    let refused = backstop.ask(&["release", "rollback", "chat", "--to", "v2"], "");
    assert!(refused.err.contains("`v2` is the version on trial"), "{refused:?}");
    let refused = backstop.ask(&["release", "rollback", "chat", "--to", "v3", "--gradual"], "");
    assert!(refused.err.contains("only at once"), "{refused:?}");
    backstop.order(&["release", "rollback", "chat"]);
    assert_eq!(status(&backstop)["phase"], "verifying");
    let gone = backstop.order(&["release", "rollback", "chat", "--to", "v3", "--json"]);
    let gone: Value = serde_json::from_str(&gone).unwrap();
    assert_eq!(
        (&gone["kind"], &gone["stable"], &gone["version"]),
        (&json!("rollback"), &json!("v3"), &json!("v1"))
    );
    assert_eq!(served(&backstop).await, ("v3".to_owned(), "v3".to_owned()));
    let list: Value = serde_json::from_str(&backstop.order(&["release", "list", "chat", "--json"])).unwrap();
    assert_eq!((&list[1]["version"], &list[1]["phase"]), (&json!("v2"), &json!("rolled back")), "{list:#}");
    assert!(
        history(&backstop).contains("before v1 was verified: v3 gets the traffic"),
        "{}",
        history(&backstop)
    );
}
