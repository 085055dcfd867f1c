//! What is found out about engines: dead, ill, frozen; and what is never held against them.

use std::sync::{Arc, Mutex};

use backstop_core::event::What;
use backstop_core::health::State;
use backstop_core::table::{CheckSpec, Engine, InferenceSpec, ServiceSpec, TableSpec};
use backstop_engine_sim::{Dist, Fault, Rule, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{CHAT, Conn, End, chat, hi, until};
use crate::world::{LONG, TOKENS, World, ms, oracle, service, side_by_side};

/// Checks in quick succession.
fn watched(service: &mut ServiceSpec) {
    service.health.interval = ms(30);
    service.health.down = 2;
}

fn slow(itl: u64, tokens: u64) -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(itl)), tokens, ..SimConfig::default() }
}

fn status(status: u16) -> Fault {
    Fault::Status { status, retry_after: None, message: None }
}

#[tokio::test]
async fn dead_and_back() {
    let world = World::start(1, watched).await;
    world.sims[0].kill().await;
    world.until_state(0, State::Unhealthy).await;
    let reason = world.endpoint(0).reason;
    assert!(reason.starts_with("process: `/health`: ") && reason.contains("refused"), "{reason}");
    world.sims[0].restart().await.unwrap();
    world.until_state(0, State::Healthy).await;
    let changes = world.health_changes();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(changes[0], "starting → healthy: all checks pass");
    assert!(changes[1].starts_with("healthy → unhealthy: process"));
    assert_eq!(changes[2], "unhealthy → healthy: all checks pass");
}

#[tokio::test]
async fn ill_by_its_own_account() {
    let world = World::start(1, watched).await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    world.until_state(0, State::Unhealthy).await;
    assert_eq!(world.endpoint(0).reason, "process: `/health` answered 503 Service Unavailable");
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
}

#[tokio::test]
async fn a_model_that_is_not_loaded() {
    let config = SimConfig { model: Some("other".to_owned()), ..SimConfig::default() };
    let world = World::unchecked(vec![config], |service| {
        watched(service);
        service.versions[0].endpoints[0].model = Some("wanted".to_owned());
    })
    .await;
    world.until_state(0, State::Unhealthy).await;
    let reason = world.endpoint(0).reason;
    assert_eq!(reason, "application: model `wanted` is not loaded; it serves: other");
}

/// An HTTP server that answers each path with what the table says, or 404.
async fn responder(answers: Arc<Mutex<Vec<(&'static str, &'static str)>>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = answers.lock().unwrap().iter().find(|(known, _)| *known == path).map(|(_, it)| *it);
            let (status, body) = answer.map_or(("404 Not Found", ""), |body| ("200 OK", body));
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n\
                 connection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    addr
}

#[tokio::test]
async fn the_machine_below() {
    const MODELS: (&str, &str) = ("/v1/models", r#"{"data":[{"id":"chat"}]}"#);
    const MEMORY: (&str, &str) = ("/gpu-memory", r#"{"gpu":{"used_ratio":0.5}}"#);
    const STATUS: (&str, &str) = ("/gpu-status", r#"{"status":"healthy"}"#);
    const GOOD: [(&str, &str); 3] = [MODELS, MEMORY, STATUS];
    let answers = Arc::new(Mutex::new(GOOD.to_vec()));
    let addr = responder(Arc::clone(&answers)).await;
    // Its only engine is the responder.
    let sim = backstop_engine_sim::Sim::start(SimConfig::default()).await.unwrap();
    let mut spec = service(&[sim]);
    watched(&mut spec);
    let check = |path: &str, json: &str| CheckSpec {
        path: path.to_owned(),
        json: Some(json.to_owned()),
        max: None,
        equals: None,
    };
    spec.health.checks = vec![
        CheckSpec { max: Some(0.95), ..check("/gpu-memory", "gpu.used_ratio") },
        CheckSpec { equals: Some("healthy".to_owned()), ..check("/gpu-status", "status") },
    ];
    let endpoint = &mut spec.versions[0].endpoints[0];
    (endpoint.target, endpoint.engine) = (addr.into(), Engine::OpenAi);
    let world = World::serve(Vec::new(), vec![spec]).await;
    world.until_all(State::Healthy).await;
    let cases = [
        (
            vec![MODELS, ("/gpu-memory", r#"{"gpu":{"used_ratio":0.96}}"#), STATUS],
            State::Degraded,
            "above 0.95",
        ),
        (
            vec![MODELS, ("/gpu-memory", r#"{"gpu":{"used_ratio":"full"}}"#), STATUS],
            State::Degraded,
            "no number",
        ),
        (vec![MODELS, ("/gpu-memory", r#"{"gpu":{}}"#), STATUS], State::Degraded, "has no `gpu.used_ratio`"),
        (vec![MODELS, MEMORY], State::Degraded, "`/gpu-status` answered 404"),
        (vec![MODELS, MEMORY, ("/gpu-status", r#"{"status":"failed"}"#)], State::Unhealthy, "not healthy"),
    ];
    for (answer, state, evidence) in cases {
        *answers.lock().unwrap() = answer;
        until(evidence, || world.endpoints()[0].state == state).await;
        let reason = world.endpoints()[0].reason.clone();
        assert!(reason.starts_with("infrastructure: ") && reason.contains(evidence), "{reason}");
        *answers.lock().unwrap() = GOOD.to_vec();
        world.until_all(State::Healthy).await;
    }
}

/// Idle is not stalled, however long it takes.
#[tokio::test]
async fn an_idle_engine_is_never_marked() {
    let world = World::start(1, |service| {
        watched(service);
        service.health.interval = ms(10);
        service.health.stall = ms(20);
    })
    .await;
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
    let checked = world.sims[0].stats().health_checks;
    until("many checks", || world.sims[0].stats().health_checks > checked + 40).await;
    assert_eq!(world.health_changes(), ["starting → healthy: all checks pass"]);
}

/// Busy is not dead: a request takes much longer than the stall limit, but tokens or counters move.
#[tokio::test]
async fn a_slow_engine_is_never_marked() {
    for engine in [Engine::Sim, Engine::OpenAi] {
        // Without counters only streams can be judged, and a plain answer is never held against it.
        let world = World::of(vec![slow(60, 25)], |service| {
            watched(service);
            service.health.stall = ms(500);
            service.versions[0].endpoints[0].engine = engine;
        })
        .await;
        let (streamed, plain) = tokio::join!(chat(world.addr, true), chat(world.addr, false));
        assert_eq!((streamed.content(), plain.content()), (oracle(25), oracle(25)));
        assert_eq!(world.health_changes(), ["starting → healthy: all checks pass"], "{engine:?}");
    }
}

/// Health answers 200, work is in flight, nothing moves.
#[tokio::test]
async fn a_frozen_engine_is_found_and_comes_back() {
    for stream in [true, false] {
        let world = World::of(vec![slow(15, 64), SimConfig::default()], |service| {
            watched(service);
            service.health.stall = ms(250);
            service.health.inference = Some(InferenceSpec { every: LONG, max_latency: ms(2000) });
        })
        .await;
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(stream)).await;
        let mut head = None;
        let mut begun = Vec::new();
        if stream {
            head = Some(conn.head().await.unwrap());
            begun = conn.contents(3).await;
        } else {
            until("some tokens", || world.sims[0].stats().generation_tokens > 3).await;
        }
        world.sims[0].set_fault(Fault::Freeze);
        world.until_state(0, State::Unhealthy).await;
        let reason = world.endpoint(0).reason;
        // An inference may be in flight besides.
        assert!(
            reason.starts_with("progress: ") && reason.contains(" in flight and no token for"),
            "{reason}"
        );
        // Others are served elsewhere meanwhile.
        assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
        assert_eq!(world.requests(), [1, 1]);
        world.sims[0].clear_faults();
        world.until_state(0, State::Healthy).await;
        // And the request that waited all the time gets its whole answer.
        let reply = match head {
            Some(mut reply) => {
                reply.body = begun;
                conn.body(&mut reply).await;
                reply
            }
            None => conn.reply().await,
        };
        assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(TOKENS)));
        assert_eq!(world.health_changes().len(), 4, "{:?}", world.health_changes());
    }
}

/// Each request is given up before the stall limit, so none is ever in flight for long; yet the engine is found.
#[tokio::test]
async fn a_frozen_engine_is_found_by_timeouts_too() {
    let world = World::of(vec![SimConfig::default(); 2], |service| {
        watched(service);
        service.health.stall = ms(400);
        service.health.inference = Some(InferenceSpec { every: LONG, max_latency: ms(300) });
        service.timeouts.first_token = ms(100);
    })
    .await;
    until("the first inference", || world.sims[0].requests() > 0 && world.sims[0].in_flight() == 0).await;
    world.sims[0].set_fault(Fault::Freeze);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.attempts(), reply.content()), (2, oracle(TOKENS)));
    world.until_state(0, State::Unhealthy).await;
    assert!(world.endpoint(0).reason.starts_with("progress: "), "{}", world.endpoint(0).reason);
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
}

/// A server that sends comments while its engine stands still.
#[tokio::test]
async fn comments_do_not_hide_a_frozen_engine() {
    for engine in [Engine::Sim, Engine::OpenAi] {
        let world = World::of(vec![slow(15, 64)], |service| {
            watched(service);
            service.health.stall = ms(250);
            service.versions[0].endpoints[0].engine = engine;
        })
        .await;
        world.sims[0].set_fault(Fault::Ping { every: ms(20) });
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        let mut reply = conn.head().await.unwrap();
        reply.body = conn.contents(3).await;
        world.sims[0].faults().add(Fault::Freeze);
        world.until_state(0, State::Unhealthy).await;
        assert!(world.endpoint(0).reason.starts_with("progress: "), "{}", world.endpoint(0).reason);
        world.sims[0].clear_faults();
        world.until_state(0, State::Healthy).await;
        conn.body(&mut reply).await;
        assert_eq!((reply.content(), reply.is_done()), (oracle(64), true), "{engine:?}");
    }
}

/// Its inference can't be asked by a chat; what else it answers must do.
#[tokio::test]
async fn a_frozen_engine_without_chat_comes_back() {
    let world = World::start(1, |service| {
        watched(service);
        service.health.stall = ms(250);
    })
    .await;
    let embed = async || {
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", "/v1/embeddings", "", br#"{"model":"chat","input":"hi"}"#).await;
        conn
    };
    world.sims[0].set_fault(Fault::NoChat);
    assert_eq!(embed().await.reply().await.status, 200);
    world.sims[0].faults().add(Fault::Freeze);
    let _waiting = embed().await;
    world.until_state(0, State::Unhealthy).await;
    assert!(world.endpoint(0).reason.starts_with("progress: "), "{}", world.endpoint(0).reason);
    world.sims[0].set_fault(Fault::NoChat);
    world.until_state(0, State::Healthy).await;
    assert_eq!(embed().await.reply().await.status, 200);
}

#[tokio::test]
async fn back_pressure_and_client_mistakes_never_open_the_breaker() {
    for code in [400, 404, 408, 422, 429, 503] {
        let world = World::start(1, |service| {
            service.breaker.failures = 3;
            service.retry.attempts = 0;
        })
        .await;
        world.sims[0].set_fault(status(code));
        for _ in 0..6 {
            assert_eq!(chat(world.addr, true).await.status, code);
        }
        // A 408 is the engine's own timeout.
        assert_eq!(world.endpoint(0).breaker_open, code == 408, "{code}");
    }
}

#[tokio::test]
async fn consecutive_failures_open_the_breaker() {
    let world = World::start(2, |service| {
        service.breaker.failures = 5;
        service.retry.attempts = 0;
    })
    .await;
    let fail = async || {
        world.sims[0].faults().add(Rule::times(status(500), 1));
        assert_eq!(chat(world.addr, true).await.status, 500);
    };
    for _ in 0..4 {
        fail().await;
    }
    // A success in between begins the count anew.
    assert_eq!(chat(world.addr, true).await.status, 200);
    for _ in 0..4 {
        fail().await;
    }
    assert!(!world.endpoint(0).breaker_open);
    fail().await;
    assert!(world.endpoint(0).breaker_open);
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
    assert_eq!(world.requests(), [10, 1]);
    let opened = |event: &backstop_core::event::Event| matches!(event.what, What::Breaker { open: true, .. });
    assert_eq!(world.gateway.events_after(0).iter().filter(|event| opened(event)).count(), 1);
}

/// Half open: one request tries the engine, the others go elsewhere, and only the end of its stream decides.
#[tokio::test]
async fn one_request_probes_a_half_open_breaker() {
    let world = World::of(vec![slow(10, 64), SimConfig::default()], |service| {
        service.breaker.failures = 1;
        service.breaker.open = ms(100);
        service.retry.attempts = 0;
    })
    .await;
    world.sims[0].faults().add(Rule::times(status(500), 1));
    assert_eq!(chat(world.addr, true).await.status, 500);
    assert!(world.endpoint(0).breaker_open);
    // Until the engine is asked again.
    let mut probe = loop {
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        assert_eq!(conn.head().await.unwrap().status, 200);
        if world.requests()[0] == 2 {
            break conn;
        }
    };
    let before = world.requests();
    let mut begun = probe.contents(2).await;
    for _ in 0..5 {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    assert_eq!(world.requests(), [2, before[1] + 5]);
    assert!(world.endpoint(0).breaker_open, "a stream that has begun proves nothing");
    loop {
        let chunk = probe.chunk().await.unwrap();
        if chunk.is_empty() {
            break;
        }
        begun.extend(chunk);
    }
    assert!(begun.ends_with(b"data: [DONE]\n\n"));
    until("the breaker closes", || !world.endpoint(0).breaker_open).await;
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS));
    assert_eq!(world.requests()[0], 3);
}

/// A stream from before the opening says nothing about the engine now; only the probe does.
#[tokio::test]
async fn a_stream_from_before_the_opening_closes_no_breaker() {
    let world = World::of(vec![slow(5, 64), SimConfig::default()], |service| {
        service.breaker.failures = 1;
        service.breaker.open = ms(100);
        service.retry.attempts = 0;
    })
    .await;
    let faults = world.sims[0].faults();
    let mut old = Conn::open(world.addr).await;
    old.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = old.head().await.unwrap();
    reply.body = old.contents(2).await;
    faults.add(Fault::Freeze);
    faults.add(Rule::times(status(500), 1));
    assert_eq!(chat(world.addr, true).await.status, 500);
    assert!(world.endpoint(0).breaker_open);
    // The probe reaches the engine, which leaves it without an answer.
    faults.add(Rule::times(Fault::NoAnswer, 1));
    let _probe = loop {
        let mut conn = Conn::open(world.addr).await;
        conn.send("POST", CHAT, "", &hi(true)).await;
        let is_probe = tokio::select! {
            () = until("the probe", || world.requests()[0] == 3) => true,
            reply = conn.reply() => {
                assert_eq!(reply.status, 200);
                false
            }
        };
        if is_probe {
            break conn;
        }
    };
    world.sims[0].clear_faults();
    old.body(&mut reply).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(64), true));
    until("accounted for", || world.endpoint(0).in_flight == 1).await;
    assert!(world.endpoint(0).breaker_open, "the probe has not ended");
    assert!(
        !world.gateway.events_after(0).iter().any(|it| matches!(it.what, What::Breaker { open: false, .. }))
    );
}

#[tokio::test]
async fn the_one_that_fails_more_than_its_siblings_is_ejected() {
    let world = World::start(3, |service| {
        side_by_side(service);
        service.outlier.interval = ms(500);
    })
    .await;
    world.sims[0].set_fault(Rule { fault: status(500), times: None, probability: 0.5 });
    let mut conn = Conn::open(world.addr).await;
    while !world.endpoint(0).ejected {
        conn.send("POST", CHAT, "", &hi(false)).await;
        assert_eq!(conn.reply().await.content(), oracle(TOKENS), "clients notice nothing");
        assert!(world.totals().requests < 20_000, "never ejected");
    }
    let before = world.requests()[0];
    for _ in 0..30 {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    assert_eq!(world.requests()[0], before);
    assert_eq!(world.endpoint(0).state, State::Healthy, "active checks have nothing against it");
    assert_eq!(world.endpoints().iter().filter(|it| it.ejected).count(), 1);
}

/// Endpoints that a new table names again keep all that is known of them.
#[tokio::test]
async fn what_is_known_survives_a_new_table() {
    let mut world = World::start(2, |service| {
        service.breaker.failures = 1;
        watched(service);
    })
    .await;
    world.sims[0].faults().add(Rule::times(status(500), 1));
    assert_eq!(chat(world.addr, true).await.attempts(), 2);
    world.sims[1].kill().await;
    world.until_state(1, State::Unhealthy).await;
    world.apply(|table: &mut TableSpec| table.services[0].retry.attempts = 1);
    assert_eq!(world.gateway.status().revision, 2);
    assert!(world.endpoint(0).breaker_open);
    assert_eq!((world.state(0), world.state(1)), (State::Healthy, State::Unhealthy));
    world.apply(|table| drop(table.services[0].versions[0].endpoints.pop()));
    assert_eq!(world.endpoints().len(), 1);
}
