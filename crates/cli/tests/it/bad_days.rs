//! Releases on days on which nothing goes as it should: each has an outcome that an operator can count on, and none
//! leaves traffic with a version that is known to be bad.

use std::future::Future;
use std::time::Duration;

use backstop_engine_sim::{Fault, Sim};
use serde_json::json;

use crate::backstop::{Backstop, Said, sim};
use crate::client::{chat, until};
use crate::release::{
    Load, QUICK, SLOW, all_well, config, history, phase, serve, served, status, status_of, store_is_open,
};

/// Waits for what may take as long as a lease lasts.
pub(crate) async fn at_last<T>(what: &str, future: impl Future<Output = T>) -> T {
    let long = Duration::from_secs(120);
    tokio::time::timeout(long, future).await.unwrap_or_else(|_| panic!("hung: {what}"))
}

/// Looks until the release is held up by this.
pub(crate) async fn held_by(backstop: &Backstop, hold: &str) {
    let is_held = async {
        loop {
            let status = status(backstop);
            if status["holds"].as_array().unwrap().iter().any(|it| it["hold"] == hold) {
                return;
            }
            assert_eq!(status["ended"], false, "it should be held up by `{hold}`: {status:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    at_last(hold, is_held).await;
}

/// Everybody gets `v1`.
async fn all_to_v1(backstop: &Backstop) {
    for _ in 0..20 {
        assert_eq!(chat(backstop.addr, false).await.header("x-backstop-version"), Some("v1"));
    }
}

#[track_caller]
fn refused(backstop: &Backstop, arguments: &[&str], expected: &str) -> Said {
    let said = backstop.ask(&[&["release"], arguments].concat(), "");
    assert_eq!(said.code, Some(1), "{arguments:?}: {said:?}");
    assert!(said.err.contains(expected), "{arguments:?}: {}", said.err);
    said
}

fn fails(sim: &Sim) {
    sim.set_fault(Fault::Status { status: 500, retry_after: None, message: None });
}

#[tokio::test]
async fn a_release_can_be_called_off_until_it_goes_back() {
    const BY_HAND: &str = "    release:
      steps: [{ weight: 50%, min_requests: 0, approval: true }, { weight: 100%, min_requests: 0, approval: true }]
      bake: 1h
      verify: 1h
      rollback: { gradual: { weights: [20%, 0%], every: 1h } }
      guardrails: [{ metric: error_rate }]
";
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], BY_HAND).await;
    let release = |arguments: &[&str]| backstop.order(&[&["release"], arguments].concat());
    for state in ["waiting", "step 1", "paused", "bake"] {
        release(&["start", "chat", "--to", "v2"]);
        held_by(&backstop, "approval").await;
        if state != "waiting" {
            release(&["approve", "chat"]);
            phase(&backstop, "step 1").await;
        }
        if state == "paused" {
            release(&["pause", "chat"]);
        }
        if state == "bake" {
            held_by(&backstop, "approval").await;
            release(&["approve", "chat"]);
            phase(&backstop, "step 2").await;
            phase(&backstop, "bake").await;
        }
        release(&["abort", "chat"]);
        assert_eq!(status_of(&backstop), "aborted", "while {state}");
        all_to_v1(&backstop).await;
        assert_eq!(served(&backstop).await.1, "v2", "while {state}: nothing is held against it");
        refused(&backstop, &["abort", "chat"], "the release has ended: aborted");
    }
    release(&["start", "chat", "--to", "v2"]);
    held_by(&backstop, "approval").await;
    release(&["approve", "chat"]);
    phase(&backstop, "step 1").await;
    release(&["rollback", "chat", "--gradual"]);
    assert_eq!(status_of(&backstop), "retreat 1");
    refused(&backstop, &["abort", "chat"], "the version is being sent back");
    release(&["rollback", "chat"]);
    assert_eq!(status_of(&backstop), "verifying");
    refused(&backstop, &["abort", "chat"], "the version is being sent back");
    all_to_v1(&backstop).await;
}

#[tokio::test]
async fn without_traffic_a_release_waits_until_it_is_too_old() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let aged = QUICK.replace("      bake: 1s\n", "      bake: 1s\n      max_age: 5s\n");
    let backstop = serve(&[&first, &second], &aged).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    let quiet = phase(&backstop, "step 1").await;
    assert_eq!(quiet["evidence"]["metrics"][0]["verdict"], "no_data", "{quiet:#}");
    let back = phase(&backstop, "verifying").await;
    assert_eq!((&back["cause"], &back["share"]), (&json!("expired"), &json!(0.0)));
    all_to_v1(&backstop).await;
    assert_eq!(served(&backstop).await.1, "v2", "it has shown no fault");

    let asks = aged.replace("max_age: 5s", "max_age: 5s\n      on_expiry: ask");
    let backstop = serve(&[&first, &second], &asks).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    held_by(&backstop, "expired").await;
    assert_eq!(status(&backstop)["share"], 0.5, "it stays as it is");
    backstop.order(&["release", "resume", "chat"]);
    let load = Load::on(backstop.addr);
    phase(&backstop, "promoted").await;
    load.none_lost();
}

#[tokio::test]
async fn while_both_versions_fail_nobody_is_to_blame() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], QUICK).await;
    fails(&first);
    fails(&second);
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    held_by(&backstop, "incident").await;
    let during = status(&backstop);
    assert_eq!((&during["phase"], &during["cause"]), (&json!("step 1"), &json!(null)));
    until("somebody is told", || backstop.text().contains("held up: incident: v1 is in trouble")).await;
    drop(load);
    first.clear_faults();
    second.clear_faults();
    // Those who ask now get answers, and the release goes on when the bad ones are long ago.
    let _load = Load::on(backstop.addr);
    at_last("promoted", phase_of(&backstop, "promoted")).await;
}

#[tokio::test]
async fn a_version_that_fails_when_it_has_all_traffic_goes_back() {
    const ALL_AT_ONCE: &str = "    release:
      steps: [{ weight: 100%, min_requests: 5 }]
      bake: 1h
      guardrails: [{ metric: error_rate }]
";
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], ALL_AT_ONCE).await;
    let load = Load::on(backstop.addr);
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "bake").await;
    fails(&second);
    // What was well before has to be half a minute ago.
    at_last("verifying", phase_of(&backstop, "verifying")).await;
    let back = status(&backstop);
    let cause = back["cause"].as_str().unwrap();
    assert!(cause.starts_with("hard stop: ") && cause.contains("requests failed within 30 s"), "{cause}");
    load.none_lost();
    all_to_v1(&backstop).await;
}

/// As [`phase`], with more patience.
async fn phase_of(backstop: &Backstop, phase: &str) {
    loop {
        let status = status(backstop);
        if status["phase"] == phase {
            return;
        }
        assert_eq!(status["ended"], false, "it should come to `{phase}`: {status:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_broken_stable_version_can_be_left_but_not_gone_back_to() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let backstop = serve(&[&first, &second], SLOW).await;
    first.set_fault(Fault::Health { status: 503 });
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    held_by(&backstop, "incident").await;
    assert_eq!(status_of(&backstop), "step 1");
    for arguments in [&["rollback", "chat"][..], &["rollback", "chat", "--gradual"], &["abort", "chat"]] {
        refused(&backstop, arguments, "the version to go back to has no endpoint that can serve");
    }
    backstop.order(&["release", "promote", "chat"]);
    assert_eq!(served(&backstop).await.0, "v2");

    let said = refused(&backstop, &["rollback", "chat"], "the version to go back to has no endpoint");
    assert!(said.err.contains("--force"), "{}", said.err);
    assert_eq!(served(&backstop).await.0, "v2", "nobody is sent where nobody answers");
    backstop.order(&[
        "release",
        "rollback",
        "chat",
        "--force",
        "--reason",
        "it answers, whatever checks say",
    ]);
    assert_eq!(status_of(&backstop), "verifying");
    first.clear_faults();
    backstop.ready().await;
    all_to_v1(&backstop).await;
    refused(&backstop, &["rollback", "chat", "--to", "v2"], "`v2` was sent back by release");
}

#[tokio::test]
async fn nobody_goes_back_to_a_version_that_was_sent_back() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let quickly = SLOW.replace("    release:\n", "    release:\n      verify: 0s\n");
    let backstop = serve(&[&first, &second, &third], &quickly).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.order(&["release", "rollback", "chat"]);
    phase(&backstop, "rolled back").await;
    refused(&backstop, &["rollback", "chat", "--to", "v2"], "`v2` was sent back by release");
    all_to_v1(&backstop).await;
    backstop.order(&["release", "rollback", "chat", "--to", "v2", "--force"]);
    assert_eq!(served(&backstop).await.0, "v2");
}

/// As if the clock had been a lifetime ahead when the last release began.
#[tokio::test]
async fn a_clock_that_is_put_back_loses_no_decision() {
    let (first, second) = (sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.order(&["release", "abort", "chat"]);
    let id = status(&backstop)["id"].as_str().unwrap().to_owned();
    backstop.kill();
    let routes = std::fs::read_to_string(backstop.path("state/routes.json")).unwrap();
    std::fs::write(backstop.path("state/routes.json"), routes.replace(&id, &format!("2099{}", &id[4..])))
        .unwrap();
    backstop.kill_and_restart().await;
    all_well(&backstop, 2).await;

    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    let load = Load::on(backstop.addr);
    at_last("the step is served", async {
        while load.of("v2") == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    drop(load);
    backstop.order(&["release", "promote", "chat"]);
    assert_eq!(served(&backstop).await.0, "v2");
    backstop.order(&["release", "rollback", "chat", "--reason", "after all"]);
    all_to_v1(&backstop).await;
    backstop.kill_and_restart().await;
    all_to_v1(&backstop).await;
    store_is_open(&backstop).await;
    let last = status(&backstop);
    assert_eq!((&last["kind"], &last["cause"]), (&json!("rollback"), &json!("by local: after all")));
    assert!(
        history(&backstop).contains("v2 is promoted") || history(&backstop).contains("promoted by local")
    );
}

/// What was on trial is another version after the restart, of which nobody has said that it is to be released.
#[tokio::test]
async fn a_version_that_was_changed_while_backstop_was_away_is_not_tried() {
    let (first, second, third) = (sim(0, 3).await, sim(0, 3).await, sim(0, 3).await);
    let mut backstop = serve(&[&first, &second], SLOW).await;
    backstop.order(&["release", "start", "chat", "--to", "v2"]);
    phase(&backstop, "step 1").await;
    backstop.kill();
    backstop.write(&config(&[&first, &third], SLOW));
    backstop.kill_and_restart().await;
    all_to_v1(&backstop).await;
    all_well(&backstop, 2).await;
    let back = phase(&backstop, "verifying").await;
    assert_eq!(back["cause"], "hard stop: the file means another version by this name now");
    assert_eq!(served(&backstop).await.1, "v2", "the new one has done nothing wrong");
}
