//! Releases whose store or state directory is locked, full, damaged or somebody else's.

use std::time::Duration;

use backstop_engine_sim::Sim;
use serde_json::{Value, json};

use crate::backstop::{BIN, Backstop, Said, sim};
use crate::bad_days::{at_last, held_by};
use crate::client::{call, chat, until};
use crate::release::{
    Load, SLOW, all_well, config, history, phase, serve, served, status, status_of, store_is_open,
};

/// Goes on by itself as soon as it may.
const GOES_ON: &str = "    release:
      steps: [{ weight: 50%, hold: 1s, min_requests: 5 }, { weight: 100%, hold: 1h }]
      verify: 1h
      guardrails: [{ metric: error_rate }]
";

/// A figure of `/metrics` by its name and labels.
async fn metric(backstop: &Backstop, name: &str) -> f64 {
    let text = call(backstop.admin, "GET", "/metrics", "", b"").await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no `{name}` in\n{text}"))
}

fn routes(backstop: &Backstop) -> Value {
    let text = std::fs::read(backstop.path("state/routes.json")).unwrap();
    let mut routes: Value = serde_json::from_slice(&text).unwrap();
    routes["services"]["chat"].take()
}

#[tokio::test]
async fn while_the_store_is_locked_steps_up_wait_and_all_are_served() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], GOES_ON).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    let lock = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let load = Load::on(backstop.addr);
    held_by(&backstop, "unkept").await;
    assert_eq!(metric(&backstop, "backstop_storage_up{what=\"store\"}").await, 0.0);
    until("told", || backstop.text().contains("another program may have locked it")).await;
    // Longer than the lease lasts.
    for _ in 0..20 {
        let (before, phase) = (load.of("v1"), status_of(&backstop));
        assert_eq!(phase, "step 1");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(load.of("v1") > before, "requests are served");
    }
    lock.execute_batch("ROLLBACK").unwrap();
    at_last("goes on", async {
        while status_of(&backstop) != "step 2" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_eq!(metric(&backstop, "backstop_storage_up{what=\"store\"}").await, 1.0);
    load.none_lost();
    assert!(history(&backstop).contains("v2 goes on with 100%"));
}

/// A limit on the size of files makes all writes fail, as a full disk does, and can be lifted again.
#[cfg(target_os = "linux")]
fn let_write(backstop: &Backstop, most: Option<u64>) {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = Pid::from_raw(i32::try_from(backstop.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: most, maximum: None }).unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_a_version_can_be_sent_back_and_none_gets_more() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], GOES_ON).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    let_write(&backstop, Some(0));
    let load = Load::on(backstop.addr);
    held_by(&backstop, "unkept").await;
    assert_eq!((status_of(&backstop).as_str(), &status(&backstop)["share"]), ("step 1", &json!(0.5)));

    backstop.order(&["release", "rollback", "chat", "--reason", "now"]);
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
    assert_eq!(status_of(&backstop), "verifying");
    for what in ["store", "routes"] {
        assert_eq!(
            metric(&backstop, &format!("backstop_storage_up{{what=\"{what}\"}}")).await,
            0.0,
            "{what}"
        );
        let told = || backstop.log().iter().filter(|it| it["level"] == "ERROR" && it["what"] == what).count();
        until("told", || told() > 0).await;
        assert_eq!(told(), 1, "{what}: once, and loudly: {}", backstop.text());
    }
    let events = call(backstop.admin, "GET", "/api/v1/events?follow=false", "", b"").await.text();
    assert!(events.contains("\"event\":\"storage\""), "{events}");
    let before = status(&backstop)["progress"]["age_seconds"].as_f64();
    until("its time goes on", || status(&backstop)["progress"]["age_seconds"].as_f64() > before).await;
    assert_eq!(routes(&backstop)["vetoes"], Value::Null, "nothing could be written");

    let_write(&backstop, None);
    until("written down", || !routes(&backstop)["vetoes"]["v2"].is_null()).await;
    until("on record", || history(&backstop).contains("by local: now")).await;
    load.none_lost();
    backstop.kill_and_restart().await;
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_a_promoted_version_can_be_left() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    let_write(&backstop, Some(0));
    let refused = backstop.ask(&["release", "promote", "chat"], "");
    assert!(refused.code == Some(1) && refused.err.contains("can't be used"), "{refused:?}");
    assert_eq!(status_of(&backstop), "step 1", "it gets no more while nothing can be written down");
    let_write(&backstop, None);
    backstop.order(&["release", "promote", "chat"]);
    assert_eq!(served(&backstop).await.0, "v2");

    let_write(&backstop, Some(0));
    backstop.order(&["release", "rollback", "chat", "--reason", "after all"]);
    assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    let_write(&backstop, None);
    until("on record", || history(&backstop).contains("by local: after all")).await;
    assert_eq!(status(&backstop)["kind"], "rollback");
    until("written down", || !routes(&backstop)["vetoes"]["v2"].is_null()).await;
}

#[tokio::test]
async fn to_leave_a_version_comes_before_a_release_that_waits_for_the_store() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let backstop = std::sync::Arc::new(serve(&[&first, &second, &third], SLOW).await);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.order(&["release", "promote", "chat"]);
    let lock = rusqlite::Connection::open(backstop.path("backstop.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ask = |arguments: &'static [&str]| {
        let backstop = std::sync::Arc::clone(&backstop);
        tokio::task::spawn_blocking(move || backstop.ask(arguments, ""))
    };
    let start = ask(&["release", "start", "chat", "--to", "v3"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let back = ask(&["release", "rollback", "chat"]);
    at_last("v1 serves", async { while served(&backstop).await.0 != "v1" {} }).await;
    lock.execute_batch("ROLLBACK").unwrap();
    let (start, back) = (start.await.unwrap(), back.await.unwrap());
    // Whether the release had begun or not, it has to give way.
    assert_eq!(back.code, Some(0), "{start:?} {back:?}");
    let now = status(&backstop);
    assert_eq!((&now["kind"], &now["version"]), (&json!("rollback"), &json!("v2")));
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
}

/// All of it from the second page on.
fn damage(backstop: &Backstop) {
    let path = backstop.path("backstop.db");
    let whole = rusqlite::Connection::open(&path).unwrap();
    whole.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(whole);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0x5a);
    std::fs::write(path, bytes).unwrap();
}

fn check(backstop: &Backstop) -> Said {
    let mut command = std::process::Command::new(BIN);
    command.args(["store", "check"]).current_dir(&backstop.directory.0);
    Said::of(command)
}

#[tokio::test]
async fn with_a_damaged_store_it_serves_what_was_decided_and_says_what_to_do() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.kill();
    damage(&backstop);
    backstop.kill_and_restart().await;
    backstop.ready().await;
    until("told", || backstop.logged("there are no releases")).await;
    let load = Load::on(backstop.addr);
    until("the split is served", || load.of("v1") > 0 && load.of("v2") > 0).await;
    for arguments in [&["release", "status", "chat"][..], &["release", "start", "chat", "--to", "v2"]] {
        let said = backstop.ask(arguments, "");
        assert_eq!(said.code, Some(1));
        for part in
            ["the store `./backstop.db` is damaged: ", "`backstop store backup`", "begin with an empty store"]
        {
            assert!(said.err.contains(part), "no `{part}` in {}", said.err);
        }
    }
    assert!(check(&backstop).err.contains("the store `./backstop.db` is damaged"));
    backstop.order(&["release", "rollback", "chat", "--reason", "to be safe"]);
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }

    // What the hint says, without a restart.
    for name in ["backstop.db", "backstop.db-wal", "backstop.db-shm"] {
        let _ = std::fs::rename(backstop.path(name), backstop.path(&format!("damaged-{name}")));
    }
    store_is_open(&backstop).await;
    let known = status(&backstop);
    assert_eq!((&known["version"], &known["cause"]), (&json!("v2"), &json!("by local: to be safe")));
    load.none_lost();
    assert_eq!(check(&backstop).code, Some(0));
}

#[tokio::test]
async fn a_store_that_is_damaged_while_it_is_open_costs_no_request_and_no_rollback() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    damage(&backstop);
    held_by(&backstop, "unkept").await;
    until("told", || backstop.text().contains("is damaged")).await;
    backstop.order(&["release", "rollback", "chat", "--reason", "to be safe"]);
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
    load.none_lost();
    drop(load);
    backstop.kill_and_restart().await;
    for _ in 0..20 {
        assert_eq!(served(&backstop).await, ("v1".to_owned(), "v1".to_owned()));
    }
}

#[tokio::test]
async fn damaged_routes_stop_the_start_and_say_how_to_go_on() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.kill();
    let path = backstop.path("state/routes.json");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let mut again = Backstop::start(&backstop.directory, &[], &[]);
    assert_eq!(again.exit().await.code(), Some(1));
    until("read", || again.has_been_read()).await;
    for part in [
        "error: the routes in `./state/routes.json` are damaged: the end is missing",
        "hint: put back a copy of the file, or move it aside (`mv ./state/routes.json ./state/routes.json.damaged`)",
    ] {
        assert!(again.text().contains(part), "no `{part}` in {}", again.text());
    }
    // As it says; the store still knows of the release.
    std::fs::rename(&path, backstop.path("state/routes.json.damaged")).unwrap();
    backstop.kill_and_restart().await;
    assert_eq!(served(&backstop).await.0, "v1");
    all_well(&backstop, 2).await;
    until("it goes on", || routes_are_there(&backstop)).await;
    assert_eq!(status(&backstop)["share"], 0.5);
}

fn routes_are_there(backstop: &Backstop) -> bool {
    backstop.path("state/routes.json").exists()
}

/// Two Backstops on the first one's store, which has begun a release.
async fn two(sims: [&Sim; 2], release: &str, until: &str) -> (Backstop, Backstop) {
    let first = serve(&sims, release).await;
    first.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&first, until).await;
    let store = first.path("backstop.db").display().to_string();
    let second = Backstop::serve(&config(&sims, release).replace("./backstop.db", &store), &[]).await;
    all_well(&second, sims.len()).await;
    let said = second.ask(&["release", "pause", "chat"], "");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("another Backstop decides"), "{}", said.err);
    let leads = first.path("state").canonicalize().unwrap().display().to_string();
    assert!(said.err.contains(&leads), "it says who: {}", said.err);
    let said = second.ask(&["release", "rollback", "chat"], "");
    assert!(said.code == Some(1) && said.err.contains("another Backstop decides"), "{said:?}");
    (first, second)
}

/// Until this Backstop may decide.
async fn takes_over(backstop: &Backstop) {
    at_last("the other one takes over", async {
        while backstop.ask(&["release", "pause", "chat"], "").code != Some(0) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn when_the_backstop_that_decides_dies_the_other_one_takes_over() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let (mut leads, follows) = two([&first, &second], SLOW, "step 1").await;
    leads.kill();
    takes_over(&follows).await;
    let load = Load::on(follows.addr);
    until("the split is served", || load.of("v1") > 0 && load.of("v2") > 0).await;
    follows.order(&["release", "rollback", "chat"]);
    assert_eq!(served(&follows).await, ("v1".to_owned(), "v1".to_owned()));
}

/// One that was stopped for longer than its lease, with a step to take as soon as it goes on.
async fn stopped(release: &str, at: &str) {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let (stopped, leads) = two([&first, &second], release, at).await;
    stopped.signal("STOP");
    takes_over(&leads).await;
    let before = routes(&stopped);
    stopped.signal("CONT");
    until("it notices", || stopped.logged("another Backstop")).await;
    let said = stopped.ask(&["release", "promote", "chat"], "");
    assert!(said.code == Some(1) && said.err.contains("another Backstop decides"), "{said:?}");
    let after = routes(&stopped);
    assert_eq!(after["stable"], before["stable"], "{after:#}");
    assert_eq!(after["active"]["release"]["phase"], before["active"]["release"]["phase"]);
    let now = status(&leads);
    assert_eq!((&now["phase"], &now["holds"][0]["hold"]), (&json!(at), &json!("paused")), "{now:#}");
    assert_eq!(chat(stopped.addr, false).await.status, 200);

    // What is taken from a version is taken here, too.
    leads.order(&["release", "rollback", "chat"]);
    until("it follows", || stopped.logged("another Backstop has sent it back")).await;
    for _ in 0..20 {
        assert_eq!(served(&stopped).await, ("v1".to_owned(), "v1".to_owned()));
    }
}

#[tokio::test]
async fn one_that_was_stopped_for_too_long_takes_no_step() {
    let steps = "{ weight: 50%, hold: 8s, min_requests: 0 }, { weight: 100%, hold: 1h, min_requests: 0 }";
    let guardrails = "guardrails: [{ metric: error_rate }]";
    stopped(&format!("    release: {{ steps: [{steps}], {guardrails} }}\n"), "step 1").await;
}

#[tokio::test]
async fn one_that_was_stopped_for_too_long_promotes_nothing() {
    let steps = "{ weight: 100%, min_requests: 0 }";
    let guardrails = "guardrails: [{ metric: error_rate }]";
    stopped(&format!("    release: {{ steps: [{steps}], bake: 8s, {guardrails} }}\n"), "bake").await;
}
