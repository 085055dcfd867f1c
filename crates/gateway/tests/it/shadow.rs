//! Another version gets some requests as well, and nobody notices.

use backstop_core::assign::BUCKETS;
use backstop_core::table::{ServiceSpec, ShadowSpec, ShapeSpec, UnitSource, VersionSpec};
use backstop_engine_sim::{Fault, SimConfig};
use serde_json::{Value, json};

use crate::client::{CHAT, Conn, call, chat, hi, until};
use crate::world::{TOKENS, World, ms, oracle, trial, with_raw};

/// `v2` is the shadow of `v1`.
async fn world(share: f64, compare: bool, change: impl FnOnce(&mut ServiceSpec)) -> World {
    World::versions(Default::default(), |service| {
        service.shadow = Some(ShadowSpec { to: "v2".to_owned(), share, compare });
        service.resume.attempts = 1;
        change(service);
    })
    .await
}

/// The value of a metric of `v2`, by the rest of its labels.
fn metric(world: &World, name: &str, label: &str) -> f64 {
    let start = format!("{name}{{service=\"chat\",version=\"v2\"{label}}} ");
    let metrics = world.gateway.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {start} in\n{metrics}")).parse().unwrap()
}

fn outcome(world: &World, outcome: &str) -> f64 {
    metric(world, "backstop_shadow_requests_total", &format!(",outcome=\"{outcome}\""))
}

#[tokio::test]
async fn the_shadow_gets_the_same_request_in_its_own_way() {
    let world = world(1.0, false, |service| {
        service.versions[1].request = ShapeSpec {
            headers: [("x-namespace".to_owned(), "gray".to_owned())].into(),
            ..ShapeSpec::default()
        };
    })
    .await;
    for (count, stream) in [(1, false), (2, true)] {
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
        assert_eq!((reply.header("x-backstop-version"), reply.attempts()), (Some("v1"), 1));
        until("the shadow has answered", || outcome(&world, "answered") == f64::from(count)).await;
        let log = world.sims[1].request_log();
        let sent = log.iter().rfind(|it| it.method == "POST").unwrap();
        assert_eq!(sent.header("x-namespace"), Some("gray"));
        assert_eq!(
            serde_json::from_slice::<Value>(&sent.body).unwrap(),
            serde_json::from_slice::<Value>(&hi(stream)).unwrap()
        );
    }
    // It is no request of a client's.
    assert_eq!((world.totals().requests, world.totals().answered, world.requests()), (2, 2, vec![2, 2]));
}

#[tokio::test]
async fn only_its_share_is_mirrored() {
    let world = world(0.5, false, |_| {}).await;
    for _ in 0..100 {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    // Five standard deviations.
    until("some are mirrored", || outcome(&world, "answered") >= 25.0).await;
    assert!(world.requests()[1] <= 75, "{:?}", world.requests());
}

/// What other APIs do, such as to store a file, would be done twice.
#[tokio::test]
async fn only_questions_are_mirrored() {
    let answer = r#"{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}"#;
    let raw = with_raw(1, "200 OK", "content-type: application/json\r\n", answer, |service| {
        let spare = service.versions[0].endpoints.pop().unwrap();
        service.versions.push(VersionSpec::new("v2", vec![spare]));
        service.shadow = Some(ShadowSpec { to: "v2".to_owned(), share: 1.0, compare: false });
    })
    .await;
    let world = &raw.world;
    for _ in 0..5 {
        let reply = call(world.addr, "POST", "/v1/files", "x-backstop-service: chat\r\n", b"").await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(chat(world.addr, false).await.status, 200);
    until("the chat is mirrored", || outcome(world, "answered") == 1.0).await;
    assert_eq!((raw.asked(), world.requests()), (6, vec![1]));
}

#[tokio::test]
async fn a_shadow_that_fails_or_hangs_is_not_noticed_and_there_are_few() {
    let world = world(1.0, true, |service| service.timeouts.first_token = ms(60_000)).await;
    world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    assert_eq!(chat(world.addr, false).await.content(), oracle(TOKENS));
    until("it has failed", || outcome(&world, "failed") == 1.0).await;
    assert_eq!(world.requests(), [1, 1], "nobody tries it again");
    world.sims[1].set_fault(Fault::NoAnswer);
    for _ in 0..70 {
        assert_eq!(chat(world.addr, false).await.content(), oracle(TOKENS));
    }
    until("some are left out", || outcome(&world, "left_out") == 6.0 && world.sims[1].in_flight() == 64)
        .await;
    assert_eq!(metric(&world, "backstop_shadow_compared_total", ""), 0.0);
}

#[tokio::test]
async fn answers_are_compared() {
    for stream in [false, true] {
        let mut world = world(1.0, true, |_| {}).await;
        let value = |world: &World, name: &str, label: &str| {
            metric(world, &format!("backstop_shadow_{name}_total"), label)
        };
        let expected = oracle(TOKENS).chars().count() as f64;
        assert_eq!(chat(world.addr, stream).await.status, 200);
        until("it is compared", || value(&world, "compared", "") == 1.0).await;
        assert_eq!(value(&world, "similarity", ""), 1.0, "the same engine");
        for side in ["original", "shadow"] {
            assert_eq!(value(&world, "characters", &format!(",side=\"{side}\"")), expected);
            assert!(value(&world, "seconds", &format!(",side=\"{side}\"")) > 0.0);
        }
        // Another prompt, another answer.
        world.apply(|spec| spec.services[0].versions[1].request.system = Some("Be terse.".to_owned()));
        assert_eq!(chat(world.addr, stream).await.content(), oracle(TOKENS));
        until("it is compared", || value(&world, "compared", "") == 2.0).await;
        assert!((1.0..1.5).contains(&value(&world, "similarity", "")));
    }
}

/// Of an answer that its client did not wait for, there is nothing to compare with.
#[tokio::test]
async fn half_an_answer_is_not_compared() {
    let slow = SimConfig { itl: backstop_engine_sim::Dist::Constant(ms(20)), ..SimConfig::default() };
    let world = World::versions([slow, SimConfig::default()], |service| {
        service.shadow = Some(ShadowSpec { to: "v2".to_owned(), share: 1.0, compare: true });
    })
    .await;
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    drop(conn);
    until("the shadow has answered", || outcome(&world, "answered") == 1.0).await;
    until("its client has left", || world.totals().cancelled == 1).await;
    assert_eq!(metric(&world, "backstop_shadow_compared_total", ""), 0.0);
}

#[tokio::test]
async fn a_version_is_no_shadow_of_itself_and_no_evidence() {
    let mut world = world(1.0, false, |service| {
        service.sticky = vec![UnitSource::Request];
        service.trial = Some(trial(BUCKETS));
    })
    .await;
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some("v2"));
    assert_eq!(world.requests(), [0, 1]);
    world.apply(|spec| {
        spec.services[0].trial = Some(backstop_core::table::TrialSpec { epoch: 2, ..trial(0) })
    });
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some("v1"));
    until("the shadow has answered", || outcome(&world, "answered") == 1.0).await;
    let report = world.gateway.trial_report("chat").unwrap();
    let epoch = &report.epochs[1];
    assert_eq!((epoch.stable.ended, epoch.canary.requests, epoch.canary.ended), (1, 0, 0));
    assert_eq!(json!(world.gateway.latencies("chat", "v2").unwrap().total.count), json!(1), "only its own");
}
