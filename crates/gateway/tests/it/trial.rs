//! The evidence for or against a release.

use backstop_core::assign::BUCKETS;
use backstop_core::report::{ArmReport, BadEvent, EpochReport, TrialReport};
use backstop_core::table::{
    CacheSpec, LatencyLimit, LatencyMetric, PriceSpec, ResumeMode, ResumeSpec, ServiceSpec, UnitSource,
};
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use serde_json::json;

use crate::client::{CHAT, Conn, call, chat, hi, until};
use crate::world::{LONG, World, ms, trial};

/// All goes to the canary.
async fn world(change: impl FnOnce(&mut ServiceSpec)) -> World {
    World::versions(Default::default(), |service| {
        service.trial = Some(trial(BUCKETS));
        change(service);
    })
    .await
}

fn report(world: &World) -> TrialReport {
    world.gateway.trial_report("chat").unwrap()
}

/// Of the only epoch.
fn epoch(world: &World) -> EpochReport {
    let mut report = report(world);
    assert_eq!((report.release.as_str(), report.epochs.len()), ("r-1", 1));
    report.epochs.remove(0)
}

fn canary(world: &World) -> ArmReport {
    epoch(world).canary
}

/// Events with their requests.
fn bad(arm: &ArmReport) -> Vec<(BadEvent, u64)> {
    arm.bad.iter().map(|bad| (bad.event, bad.requests)).collect()
}

fn limit(metric: LatencyMetric, seconds: f64) -> LatencyLimit {
    LatencyLimit { metric, seconds }
}

#[tokio::test]
async fn a_canary_answers_for_its_first_attempts() {
    let cut = || Fault::Cut { after: 5, how: Cut::Rst, mid_event: false };
    let status = |status| Fault::Status { status, retry_after: None, message: None };
    let cases: [(Fault, bool, BadEvent); 9] = [
        (status(500), false, BadEvent::Error),
        (status(503), true, BadEvent::Error),
        (status(429), false, BadEvent::Error),
        (Fault::Hangup { how: Cut::Rst }, false, BadEvent::Error),
        (cut(), true, BadEvent::Error),
        (Fault::HtmlPage, false, BadEvent::Error),
        (status(401), false, BadEvent::Error),
        (status(404), false, BadEvent::Rejected),
        (Fault::ContextLength, true, BadEvent::Rejected),
    ];
    for (fault, stream, expected) in cases {
        let world = world(|service| {
            service.resume = ResumeSpec {
                attempts: 2,
                modes: vec![ResumeMode::Replay],
                across: vec![backstop_core::table::Across::Stable],
            };
        })
        .await;
        world.sims[1].set_fault(fault.clone());
        let reply = chat(world.addr, stream).await;
        // What makes it good for the client makes it no better for the canary.
        if expected == BadEvent::Error {
            assert_eq!(reply.status, 200, "{fault:?}: {}", reply.text());
        }
        let epoch = epoch(&world);
        assert_eq!((epoch.canary.requests, epoch.canary.ended), (1, 1), "{fault:?}");
        assert_eq!(bad(&epoch.canary), [(expected, 1)], "{fault:?}");
        assert_eq!(epoch.stable, ArmReport::default(), "{fault:?}");
    }
}

#[tokio::test]
async fn good_answers_are_counted_with_what_they_cost() {
    let world =
        world(|service| service.versions[1].price = Some(PriceSpec { input: 1e6, output: 2e6 })).await;
    let mut asked = Vec::new();
    for (stream, most) in [(false, 10), (true, 20)] {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let options = stream.then(|| json!({ "include_usage": true }));
        let body = json!({
            "model": "chat", "stream": stream, "max_tokens": most, "messages": messages, "stream_options": options,
        });
        let reply = call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let usage = if stream {
            let events = reply.events();
            let last = events.iter().rev().find(|event| event.contains("prompt_tokens")).unwrap();
            serde_json::from_str::<serde_json::Value>(last).unwrap()["usage"].clone()
        } else {
            reply.json()["usage"].clone()
        };
        assert_eq!(usage["completion_tokens"], most);
        asked.push(usage["prompt_tokens"].as_f64().unwrap() + 2.0 * f64::from(most));
    }
    let arm = canary(&world);
    assert_eq!((arm.requests, arm.ended, arm.units), (2, 2, 2));
    let tokens = arm.output_tokens;
    assert_eq!((tokens.count, tokens.sum, tokens.sum_of_squares), (2, 30.0, 500.0));
    assert_eq!((arm.cost.count, arm.cost.sum), (2, asked.iter().sum()));
    // They ended at the length that was asked for.
    assert_eq!(bad(&arm), [(BadEvent::Length, 2)]);
}

#[tokio::test]
async fn of_each_unit_the_first_answer_of_a_step_counts_for_the_means() {
    let mut world = world(|service| service.sticky = vec![UnitSource::User]).await;
    let ask = async |addr, user: &str| {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let body =
            json!({ "model": "chat", "user": user, "messages": messages, "max_tokens": 5 }).to_string();
        assert_eq!(call(addr, "POST", CHAT, "", body.as_bytes()).await.status, 200);
    };
    for user in ["alice", "alice", "bob", "alice"] {
        ask(world.addr, user).await;
    }
    world.apply(|spec| {
        let trial = spec.services[0].trial.as_mut().unwrap();
        (trial.epoch, trial.step) = (2, 2);
    });
    ask(world.addr, "alice").await;
    let report = report(&world);
    let counts: Vec<u64> = report.epochs.iter().map(|epoch| epoch.canary.output_tokens.count).collect();
    assert_eq!(counts, [2, 1]);
}

#[tokio::test]
async fn flaws_of_whole_answers() {
    for stream in [false, true] {
        let world = world(|_| {}).await;
        assert_eq!(chat(world.addr, stream).await.status, 200);
        assert_eq!(bad(&canary(&world)), [], "an answer that ends by itself");
        world.sims[1].set_fault(Fault::ContentFilter { after: 4 });
        assert_eq!(chat(world.addr, stream).await.status, 200);
        assert_eq!(bad(&canary(&world)), [(BadEvent::Filtered, 1)]);
        world.sims[1].set_fault(Fault::ContentFilter { after: 0 });
        assert_eq!(chat(world.addr, stream).await.status, 200);
        assert_eq!(bad(&canary(&world)), [(BadEvent::Empty, 1), (BadEvent::Filtered, 2)], "stream: {stream}");
    }
}

/// Nobody knows yet how it will end, but it is late already.
#[tokio::test]
async fn what_is_late_counts_when_the_time_has_passed() {
    let world = world(|service| {
        let limits = vec![
            limit(LatencyMetric::Ttft, 0.05),
            limit(LatencyMetric::Total, 0.1),
            limit(LatencyMetric::Total, 60.0),
        ];
        service.trial.as_mut().unwrap().limits = limits;
    })
    .await;
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut waiting = Vec::new();
    for stream in [true, false] {
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(stream)).await;
        waiting.push(conn);
    }
    let late = [(BadEvent::Slow(0), 1), (BadEvent::Slow(1), 2)];
    until("both are late", || bad(&canary(&world)) == late).await;
    assert_eq!((canary(&world).requests, canary(&world).ended), (2, 0));
    // The clients leave: nothing else is to be said of it, and it is not said twice.
    drop(waiting);
    until("they have left", || world.totals().cancelled == 2).await;
    let arm = canary(&world);
    assert_eq!((bad(&arm), arm.ended), (late.to_vec(), 0));
}

/// Whether or not anybody has looked meanwhile.
#[tokio::test]
async fn an_attempt_that_fails_late_was_late_too() {
    let world = world(|service| {
        service.timeouts.first_token = ms(200);
        service.trial.as_mut().unwrap().limits =
            vec![limit(LatencyMetric::Ttft, 0.02), limit(LatencyMetric::Total, 60.0)];
    })
    .await;
    world.sims[1].set_fault(Fault::NoAnswer);
    assert_eq!(chat(world.addr, true).await.status, 200);
    assert_eq!(bad(&canary(&world)), [(BadEvent::Error, 1), (BadEvent::Slow(0), 1)]);
}

#[tokio::test]
async fn an_answer_that_came_late_is_late_and_one_in_time_is_not() {
    let slow = SimConfig {
        ttft: Dist::Constant(ms(60)),
        itl: Dist::Constant(ms(10)),
        tokens: 20,
        ..SimConfig::default()
    };
    let world = World::versions([SimConfig::default(), slow], |service| {
        service.trial = Some(trial(BUCKETS));
        service.trial.as_mut().unwrap().limits = vec![
            limit(LatencyMetric::Ttft, 0.03),
            limit(LatencyMetric::Ttft, 30.0),
            limit(LatencyMetric::Tpot, 0.002),
            limit(LatencyMetric::Tpot, 2.0),
            limit(LatencyMetric::Total, 0.1),
            limit(LatencyMetric::Total, 30.0),
        ];
    })
    .await;
    assert_eq!(chat(world.addr, true).await.status, 200);
    let streamed = [BadEvent::Slow(0), BadEvent::Slow(2), BadEvent::Slow(4)].map(|event| (event, 1));
    assert_eq!(bad(&canary(&world)), streamed);
    // Of a plain answer only the whole can be timed.
    assert_eq!(chat(world.addr, false).await.status, 200);
    assert_eq!(bad(&canary(&world)).last(), Some(&(BadEvent::Slow(4), 2)));
    assert_eq!(bad(&canary(&world))[..2], streamed[..2]);
}

/// With what it may still bring it will be slow in any case.
#[tokio::test]
async fn a_pace_that_can_not_be_made_up_for_is_late_at_once() {
    let world = world(|service| {
        service.trial.as_mut().unwrap().limits = vec![limit(LatencyMetric::Tpot, 0.01)];
    })
    .await;
    world.sims[1].set_fault(Fault::Stall { after: 3 });
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "model": "chat", "stream": true, "max_tokens": 6, "messages": messages }).to_string();
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", body.as_bytes()).await;
    until("it is late", || bad(&canary(&world)) == [(BadEvent::Slow(0), 1)]).await;
}

#[tokio::test]
async fn a_client_that_leaves_says_nothing_about_a_version() {
    let world = world(|_| {}).await;
    world.sims[1].set_fault(Fault::Stall { after: 3 });
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    drop(conn);
    until("it has left", || world.totals().cancelled == 1).await;
    let arm = canary(&world);
    assert_eq!((arm.requests, arm.ended, bad(&arm)), (1, 0, vec![]));
}

#[tokio::test]
async fn a_unit_is_bad_once_in_a_step() {
    let mut world = world(|service| service.sticky = vec![UnitSource::User]).await;
    world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    let ask = async |addr, user: &str| {
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let body = json!({ "model": "chat", "user": user, "messages": messages }).to_string();
        assert_eq!(call(addr, "POST", CHAT, "", body.as_bytes()).await.status, 200);
    };
    for user in ["alice", "alice", "bob"] {
        ask(world.addr, user).await;
    }
    let next = |epoch, step| {
        move |spec: &mut backstop_core::table::TableSpec| {
            let trial = spec.services[0].trial.as_mut().unwrap();
            (trial.epoch, trial.step) = (epoch, step);
        }
    };
    // The same step under another weight, then the next step.
    world.apply(next(2, 1));
    ask(world.addr, "alice").await;
    ask(world.addr, "carol").await;
    world.apply(next(3, 2));
    ask(world.addr, "alice").await;
    let report = report(&world);
    let of = |epoch: &EpochReport| {
        let [bad] = &epoch.canary.bad[..] else { panic!("{epoch:?}") };
        assert!(!bad.overflow);
        (epoch.epoch, epoch.step, epoch.canary.units, bad.requests, bad.units.clone())
    };
    let [first, second, third] = &report.epochs[..] else { panic!("{report:?}") };
    let (first, second, third) = (of(first), of(second), of(third));
    assert_eq!((first.0, first.1, first.2, first.3, first.4.len()), (1, 1, 2, 3, 2));
    assert_eq!((second.0, second.1, second.2, second.3, second.4.len()), (2, 1, 2, 2, 1));
    assert_eq!((third.0, third.1, third.3, third.4.len()), (3, 2, 1, 1));
    assert!(first.4.contains(&third.4[0]) && !first.4.contains(&second.4[0]));
}

#[tokio::test]
async fn counts_last_as_long_as_the_release() {
    let mut world = world(|_| {}).await;
    assert!(world.gateway.trial_report("other").is_none());
    assert_eq!(chat(world.addr, false).await.status, 200);
    let boot = report(&world).boot;
    // Tables come and go.
    world.apply(|spec| spec.services[0].trial = None);
    assert_eq!(chat(world.addr, false).await.status, 200);
    assert_eq!(epoch(&world).canary.requests, 1, "what was counted can still be read");
    world.apply(|spec| spec.services[0].trial = Some(trial(BUCKETS)));
    assert_eq!(chat(world.addr, false).await.status, 200);
    assert_eq!((epoch(&world).canary.requests, report(&world).boot), (2, boot));
    // Another release begins anew.
    world.apply(|spec| spec.services[0].trial.as_mut().unwrap().release = "r-2".to_owned());
    let begun = report(&world);
    assert_eq!((begun.release.as_str(), begun.boot, begun.epochs[0].canary.requests), ("r-2", boot, 0));
    let other = World::versions(Default::default(), |service| service.trial = Some(trial(BUCKETS))).await;
    assert_ne!(report(&other).boot, boot);
    assert_eq!((epoch(&other).share, epoch(&other).step), (1.0, 1));
    // No more than 64 changes are told apart; the oldest go.
    for number in 2..=70 {
        world.apply(|spec| spec.services[0].trial.as_mut().unwrap().epoch = number);
    }
    let epochs: Vec<u32> = report(&world).epochs.iter().map(|epoch| epoch.epoch).collect();
    assert_eq!(epochs, (7..=70).collect::<Vec<_>>());
}

/// Of a kept answer nobody can tell what the engine would have said, but its unit has been assigned.
#[tokio::test]
async fn kept_answers_are_assigned_but_no_attempts() {
    let world = world(|service| {
        service.cache = Some(CacheSpec { max_bytes: 1 << 20, ttl: LONG, share_across_tenants: false });
    })
    .await;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "model": "chat", "temperature": 0, "messages": messages }).to_string();
    for _ in 0..3 {
        assert_eq!(call(world.addr, "POST", CHAT, "", body.as_bytes()).await.status, 200);
    }
    let arm = canary(&world);
    assert_eq!((arm.requests, arm.units, arm.ended, world.requests()), (3, 3, 1, vec![0, 1]));
}

#[tokio::test]
async fn recent_latencies_are_known_of_every_version() {
    let slow = SimConfig {
        ttft: Dist::Constant(ms(40)),
        itl: Dist::Constant(ms(4)),
        tokens: 10,
        ..SimConfig::default()
    };
    let world = World::versions([slow, SimConfig::default()], |_| {}).await;
    assert!(
        world.gateway.latencies("chat", "v3").is_none() && world.gateway.latencies("other", "v1").is_none()
    );
    for _ in 0..3 {
        assert_eq!(chat(world.addr, true).await.status, 200);
    }
    assert_eq!(chat(world.addr, false).await.status, 200);
    let of = |version| world.gateway.latencies("chat", version).unwrap();
    let v1 = of("v1");
    assert_eq!((v1.ttft.count, v1.tpot.count, v1.total.count), (3, 3, 4));
    assert!(v1.ttft.p50 >= 0.039 && v1.tpot.p50 > 0.0 && v1.total.p50 >= 0.07, "{v1:?}");
    assert!(v1.ttft.p50 <= v1.ttft.p99 && v1.ttft.p50 < v1.total.p50, "{v1:?}");
    assert_eq!((of("v2").total.count, of("v2").total.p99), (0, 0.0));
}

#[tokio::test]
async fn requests_of_which_nothing_comes_are_told_before_they_fail() {
    let world = world(|service| service.timeouts.first_token = ms(2_000)).await;
    world.sims[1].set_fault(Fault::NoAnswer);
    let asking = tokio::spawn({
        let addr = world.addr;
        async move { chat(addr, true).await }
    });
    until("it is silent", || canary(&world).silent == 1).await;
    assert_eq!(bad(&canary(&world)), [], "it may answer yet");
    assert_eq!(asking.await.unwrap().status, 200);
    let after = canary(&world);
    assert_eq!((after.silent, bad(&after)), (0, vec![(BadEvent::Error, 1)]));
}
