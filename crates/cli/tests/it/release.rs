//! Releases with real processes: promoted, sent back, killed in between, without their store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use backstop_engine_sim::{Fault, Sim};
use serde_json::{Value, json};

use crate::backstop::{Backstop, Said, sim};
use crate::client::{call, chat, soon, until};

pub(crate) const QUICK: &str = "    release:
      steps: [{ weight: 50%, hold: 1s, min_requests: 20 }, { weight: 100%, min_requests: 5 }]
      bake: 1s
      warmup: 0s
      verify: 5s
      guardrails: [{ metric: error_rate }, { metric: empty_rate }]
";
pub(crate) const SLOW: &str = "    release:
      steps: [{ weight: 50%, hold: 1h }, { weight: 100% }]
      guardrails: [{ metric: error_rate }]
";

/// Versions `v1`, `v2`, … of a service, each on an engine of its own.
pub(crate) fn config(sims: &[&Sim], release: &str) -> String {
    let versions: String = (1..)
        .zip(sims)
        .map(|(n, sim)| {
            format!("      - {{ name: v{n}, endpoints: [{{ url: \"{}\", engine: sim }}] }}\n", sim.url())
        })
        .collect();
    format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: 127.0.0.1:0 }}\nstore: sqlite:./backstop.db\nservices:\n  - name: chat\n    \
         versions:\n{versions}    rules: [{{ match: {{ header: {{ x-version: v2 }} }}, version: v2 }}]\n    \
         health: {{ interval: 100ms, down: 2, slow_start: 0s }}\n    timeouts: {{ first_token: 1s }}\n{release}"
    )
}

pub(crate) async fn serve(sims: &[&Sim], release: &str) -> Backstop {
    let backstop = Backstop::serve(&config(sims, release), &[]).await;
    all_well(&backstop, sims.len()).await;
    backstop
}

pub(crate) async fn all_well(backstop: &Backstop, sims: usize) {
    until("all are checked", || backstop.text().matches("\"to\":\"healthy\"").count() >= sims).await;
    store_is_open(backstop).await;
}

pub(crate) async fn store_is_open(backstop: &Backstop) {
    until("the store is open", || backstop.ask(&["release", "list", "chat"], "").code == Some(0)).await;
}

/// Clients that ask again and again, until dropped.
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    /// Answers by version and status.
    answers: Arc<Mutex<BTreeMap<(String, u16), u64>>>,
}

impl Load {
    pub(crate) fn on(addr: SocketAddr) -> Self {
        let load = Self { ends: Arc::default(), answers: Arc::default() };
        for _ in 0..4 {
            let (ends, answers) = (Arc::clone(&load.ends), Arc::clone(&load.answers));
            tokio::spawn(async move {
                while !ends.load(Relaxed) {
                    let reply = chat(addr, false).await;
                    let version = reply.header("x-backstop-version").unwrap_or_default().to_owned();
                    *answers.lock().unwrap().entry((version, reply.status)).or_default() += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            });
        }
        load
    }

    pub(crate) fn of(&self, version: &str) -> u64 {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|((name, _), _)| name == version).map(|(_, count)| count).sum()
    }

    /// All clients got whole answers.
    #[track_caller]
    pub(crate) fn none_lost(&self) {
        let answers = self.answers.lock().unwrap();
        assert!(answers.keys().all(|(_, status)| *status == 200), "{answers:?}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
    }
}

pub(crate) fn status(backstop: &Backstop) -> Value {
    serde_json::from_str(&backstop.order(&["release", "status", "chat", "--json"])).unwrap()
}

pub(crate) async fn phase(backstop: &Backstop, phase: &str) -> Value {
    let reached = async {
        loop {
            let status = status(backstop);
            if status["phase"] == phase {
                return status;
            }
            assert_eq!(status["ended"], false, "it should come to `{phase}`: {status:#}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    soon(phase, reached).await
}

/// Which version answers now, and one that is asked for by a rule.
pub(crate) async fn served(backstop: &Backstop) -> (String, String) {
    let version = |reply: &crate::client::Reply| reply.header("x-backstop-version").unwrap().to_owned();
    let plain = chat(backstop.addr, false).await;
    let body = json!({ "model": "chat", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
    let headers = "content-type: application/json\r\nx-version: v2\r\n";
    let ruled = call(backstop.addr, "POST", "/v1/chat/completions", headers, body.as_bytes()).await;
    (version(&plain), version(&ruled))
}

pub(crate) fn history(backstop: &Backstop) -> String {
    backstop.order(&["release", "history", "chat", "--limit", "100"])
}

#[tokio::test]
async fn a_good_version_is_promoted_and_can_be_left_again() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], QUICK).await;
    let load = Load::on(backstop.addr);
    let said = backstop.order(&["release", "start", "chat", "--to", "v2", "--reason", "a better one"]);
    assert!(said.starts_with("chat: v1 → v2"), "{said}");
    let half = phase(&backstop, "step 1").await;
    assert_eq!((&half["share"], &half["reason"]), (&json!(0.5), &json!("a better one")));
    phase(&backstop, "promoted").await;
    assert_eq!(served(&backstop).await, ("v2".to_owned(), "v2".to_owned()));
    backstop.kill_and_restart().await;
    all_well(&backstop, 2).await;
    assert_eq!(served(&backstop).await.0, "v2", "though the file says v1");

    let (v1, v2) = (first.stats().requests, second.stats().requests);
    assert!(v1 > 0 && v2 > 0);
    let said = backstop.order(&["release", "rollback", "chat", "--reason", "second thoughts"]);
    assert!(said.contains("second thoughts"), "{said}");
    assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()), "rules are no way around it");
    let _load = Load::on(backstop.addr);
    phase(&backstop, "rolled back").await;
    let history = history(&backstop);
    for told in ["v2 is promoted", "v2 goes back: by local: second thoughts", "v1 serves"] {
        assert!(history.contains(told), "no `{told}` in\n{history}");
    }
    drop(load);
}

#[tokio::test]
async fn a_bad_version_is_sent_back_and_nobody_notices() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], SLOW).await;
    let load = Load::on(backstop.addr);
    second.set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let status = phase(&backstop, "rolled back").await;
    let cause = status["cause"].as_str().unwrap();
    assert!(cause.starts_with("regressed: error_rate") || cause.starts_with("hard stop"), "{cause}");
    load.none_lost();
    assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));

    let account = backstop.order(&["release", "report", "chat"]);
    for part in ["# chat: v1 → v2", "v2 was sent back", "| error_rate |", "## What happened", "goes back"] {
        assert!(account.contains(part), "no `{part}` in\n{account}");
    }
    let chart = backstop.order(&["release", "report", "chat", "--format", "svg"]);
    assert!(chart.starts_with("<svg") && chart.contains("Share of v2"), "{chart}");
    let json: Value =
        serde_json::from_str(&backstop.order(&["release", "report", "chat", "--json"])).unwrap();
    assert_eq!(json["id"], status["id"]);
    let unknown = backstop.ask(&["release", "report", "chat", "--release", "r9"], "");
    assert!(unknown.err.contains("service `chat` has no release `r9`"), "{}", unknown.err);

    let refused = backstop.ask(&["release", "start", "chat", "--to", "v2"], "");
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.err.contains("was sent back by release") && refused.err.contains("--again"),
        "{}",
        refused.err
    );
    second.clear_faults();
    backstop.order(&["release", "start", "chat", "--to", "v2", "--again"]);
    phase(&backstop, "step 1").await;
    backstop.order(&["release", "abort", "chat"]);
    assert_eq!(status_of(&backstop), "aborted");
    assert_eq!(served(&backstop).await.1, "v2", "nothing is held against it");

    let check = Said::of({
        let mut command = std::process::Command::new(crate::backstop::BIN);
        command.args(["store", "check"]).current_dir(&backstop.directory.0);
        command
    });
    assert_eq!(check.code, Some(0), "{check:?}");
}

pub(crate) fn status_of(backstop: &Backstop) -> String {
    status(backstop)["phase"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_dead_version_is_sent_back_without_any_statistics() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    second.set_fault(Fault::Health { status: 503 });
    let status = phase(&backstop, "verifying").await;
    let cause = status["cause"].as_str().unwrap();
    assert!(cause.starts_with("hard stop: none of its endpoints can serve: "), "{cause}");
    assert!(cause.contains("answered 503") && cause.contains(&second.url()), "{cause}");
    let account = backstop.order(&["release", "report", "chat"]);
    assert!(account.contains(cause), "{account}");
    // Who took its endpoints out is no operator.
    let id = status["id"].as_str().unwrap();
    until("told", || backstop.text().contains(&format!("drained by release {id}"))).await;
}

#[tokio::test]
async fn a_crash_changes_nothing() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    until("some evidence", || load.of("v2") > 20).await;
    drop(load);
    let counted = async {
        while status(&backstop)["requests"]["canary"].as_u64() < Some(20) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    soon("counted", counted).await;
    backstop.kill_and_restart().await;
    // The split is there before the store is.
    let versions: Vec<String> = {
        let mut versions = Vec::new();
        for _ in 0..40 {
            versions.push(served(&backstop).await.0);
        }
        versions
    };
    assert!(["v1", "v2"].iter().all(|version| versions.iter().any(|it| it == version)), "{versions:?}");
    all_well(&backstop, 2).await;
    let after = status(&backstop);
    assert_eq!((&after["phase"], &after["share"]), (&json!("step 1"), &json!(0.5)));
    assert!(after["requests"]["canary"].as_u64() >= Some(20), "{after:#}");

    backstop.order(&["release", "rollback", "chat"]);
    backstop.kill_and_restart().await;
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
    store_is_open(&backstop).await;
    assert!(["verifying", "rolled back"].contains(&status_of(&backstop).as_str()));
}

#[tokio::test]
async fn a_rollback_needs_no_store() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    // Somebody else writes, and does not come to an end.
    let lock = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    backstop.order(&["release", "rollback", "chat", "--reason", "now"]);
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
    // A process that never gets to see its store keeps to what was decided.
    backstop.kill_and_restart().await;
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
    drop(lock);
    store_is_open(&backstop).await;
    let taken_up = async {
        while status(&backstop)["cause"].as_str().is_none_or(|cause| !cause.contains("now")) {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    soon("the release knows of it", taken_up).await;
    assert!(history(&backstop).contains("v2 has gone back: by local: now"), "{}", history(&backstop));
}

#[tokio::test]
async fn operators_decide_and_mistakes_are_told() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let sims = [&first, &second, &third];
    let approval =
        SLOW.replace("{ weight: 50%, hold: 1h }", "{ weight: 50%, min_requests: 0, approval: true }");
    let backstop = serve(&sims, &approval).await;
    let refused = |arguments: &[&str], expected: &str| {
        let said = backstop.ask(&[&["release"], arguments].concat(), "");
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.err.contains(expected), "{}", said.err);
    };
    refused(&["status", "chat"], "service `chat` has no release");
    refused(&["pause", "chat"], "service `chat` has no release");
    refused(&["start", "chta", "--to", "v2"], "there is no service `chta`");
    refused(&["start", "chat", "--to", "v9"], "service `chat` has no version `v9`; it has `v1`, `v2`, `v3`");
    refused(&["start", "chat", "--to", "v1"], "`v1` is the stable version already");
    refused(&["rollback", "chat"], "no earlier version");

    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    refused(&["start", "chat", "--to", "v3"], "has a release under way");
    let waits = async {
        while status(&backstop)["holds"][0]["hold"] != "approval" {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    soon("waits for approval", waits).await;
    backstop.order(&["release", "approve", "chat"]);
    phase(&backstop, "step 1").await;
    backstop.order(&["release", "pause", "chat"]);
    refused(&["pause", "chat"], "it is paused");
    refused(&["approve", "chat"], "needs no approval");
    backstop.order(&["release", "resume", "chat"]);

    // What a release is about stays as it is until it has ended.
    let stable = config(&sims, &approval).replace("    rules:", "    stable: v3\n    rules:");
    backstop.write(&stable);
    until("refused", || backstop.text().contains("its `stable` can't be changed now")).await;
    until("on record", || history(&backstop).contains("file backstop.yaml: refused: reload")).await;
    backstop.order(&["release", "promote", "chat"]);
    assert_eq!(served(&backstop).await.0, "v2");
    refused(&["abort", "chat"], "the release has ended: promoted");
    backstop.order(&["reload"]);
    assert_eq!(served(&backstop).await.0, "v3", "an operator has decided anew");
    let back = backstop.order(&["release", "rollback", "chat", "--to", "v1", "--json"]);
    assert!(back.contains("\"kind\": \"rollback\""), "{back}");
    assert_eq!(served(&backstop).await.0, "v1");
}

#[tokio::test]
async fn blue_and_green_change_at_once_when_green_has_answered() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let blue_green = QUICK.replace("    release:\n", "    release:\n      mode: blue_green\n");
    second.set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    let backstop = serve(&[&first, &second], &blue_green).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    until("told", || history(&backstop).contains("v2 does not answer")).await;
    let waiting = status(&backstop);
    assert_eq!((&waiting["phase"], &waiting["holds"][0]["hold"]), (&json!("waiting"), &json!("not_ready")));
    assert_eq!(load.of("v2"), 0);
    second.clear_faults();
    phase(&backstop, "promoted").await;
    load.none_lost();
    assert_eq!(served(&backstop).await.0, "v2");
    backstop.order(&["release", "rollback", "chat"]);
    assert_eq!(served(&backstop).await.0, "v1", "blue is still warm");
}

#[tokio::test]
async fn of_two_backstops_on_one_store_one_decides() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let store = backstop.path("backstop.db").display().to_string();
    let other = config(&[&first, &second], SLOW).replace("./backstop.db", &store);
    let other = Backstop::serve(&other, &[]).await;
    store_is_open(&other).await;
    let refused = other.ask(&["release", "pause", "chat"], "");
    assert!(refused.err.contains("another Backstop decides"), "{refused:?}");
    assert_eq!(status(&other)["service"], "chat", "it may look");
    phase(&backstop, "step 1").await;
}
