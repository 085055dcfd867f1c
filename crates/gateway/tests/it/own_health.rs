//! Backstop's own health, as kubelets, balancers and operators ask for it.

use backstop_core::health::State;
use backstop_core::status::DependencyState;
use backstop_core::table::{
    DependencyCheck, DependencyEffect, DependencySpec, Digest, EndpointSpec, Engine, ReadinessSpec, Role,
    TokenSpec,
};
use backstop_engine_sim::{Fault, SimConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::client::{CHAT, call, hi, until};
use crate::world::{World, ms};

async fn get(world: &World, path: &str) -> (u16, Value) {
    let reply = call(world.addr, "GET", path, "", b"").await;
    (reply.status, reply.json())
}

fn dependency(name: &str, port: u16, effect: DependencyEffect) -> DependencySpec {
    DependencySpec {
        name: name.to_owned(),
        check: DependencyCheck::Tcp { host: "127.0.0.1".to_owned(), port },
        effect,
        interval: ms(20),
        timeout: ms(500),
        up: 1,
        down: 2,
    }
}

async fn until_answer(world: &World, path: &str, expected: (u16, Value)) {
    let asking = async { while get(world, path).await != expected {} };
    crate::client::soon(&format!("{path}: {expected:?}"), asking).await;
}

#[tokio::test]
async fn startup_is_once_and_for_all() {
    let world = World::unchecked(vec![SimConfig::default()], |service| {
        service.health.interval = ms(20);
        service.health.down = 1;
    })
    .await;
    world.until_all(State::Healthy).await;
    assert_eq!(get(&world, "/health/startup").await, (200, json!({ "status": "started" })));
    world.sims[0].kill().await;
    world.until_state(0, State::Unhealthy).await;
    assert_eq!(get(&world, "/health/readiness").await.0, 503);
    assert_eq!(get(&world, "/health/startup").await.0, 200, "a fault later is not a slow start");
    assert_eq!(get(&world, "/health/liveness").await.0, 200);
}

#[tokio::test]
async fn not_started_while_an_endpoint_is_missing() {
    let world = World::unchecked(vec![SimConfig::default()], |service| {
        service.versions[0].endpoints[0].target.port = 1;
    })
    .await;
    let (status, body) = get(&world, "/health/startup").await;
    assert_eq!((status, &body["status"], &body["services"]), (503, &json!("starting"), &json!(["chat"])));
}

#[tokio::test]
async fn a_dependency_takes_readiness_with_it_or_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = World::start(1, |service| {
        service.dependencies = vec![
            dependency("vectors", port, DependencyEffect::NotReady),
            dependency("cache", 1, DependencyEffect::Degraded),
        ];
    })
    .await;
    let degraded = json!({ "status": "ready", "degraded": ["dependency_cache_failed"] });
    until_answer(&world, "/ready", (200, degraded.clone())).await;
    drop(listener);
    let failed =
        json!({ "status": "not_ready", "reason": "dependency_vectors_failed", "services": ["chat"] });
    until_answer(&world, "/ready", (503, failed.clone())).await;
    assert_eq!(call(world.addr, "POST", CHAT, "", &hi(false)).await.status, 200, "requests are served");
    let status = &world.gateway.status().services[0].dependencies[0];
    assert_eq!(status.state, DependencyState::Down);
    assert!(status.reason.contains("refused"), "{}", status.reason);

    assert_eq!(world.gateway.force_dependency(Some("chat"), "vectors", Some(DependencyState::Up)), 1);
    assert_eq!(get(&world, "/ready").await, (200, degraded));
    assert_eq!(world.gateway.force_dependency(None, "vectors", None), 1);
    assert_eq!(get(&world, "/ready").await, (503, failed));
    assert_eq!(world.gateway.force_dependency(Some("other"), "vectors", None), 0);
    let page = world.gateway.metrics();
    assert!(page.contains("backstop_dependency_up{service=\"chat\",dependency=\"vectors\"} 0"), "{page}");
}

#[tokio::test]
async fn a_dependency_over_http() {
    let world = World::start(1, |_| {}).await;
    let target = world.sims[0].addr().into();
    let mut world = world;
    let check = DependencyCheck::Http { target, path: "/health".to_owned() };
    world.apply(|spec| {
        let dependency = dependency("engine", 1, DependencyEffect::NotReady);
        spec.services[0].dependencies = vec![DependencySpec { check, ..dependency }];
    });
    let state = || world.gateway.status().services[0].dependencies[0].clone();
    until("up", || state().state == DependencyState::Up).await;
    world.sims[0].set_fault(Fault::Health { status: 500 });
    until("down", || state().state == DependencyState::Down).await;
    assert_eq!(state().reason, "answered 500 Internal Server Error");
}

/// No machine uses less memory than none.
#[tokio::test]
async fn a_full_machine_is_not_ready() {
    let mut world = World::start(1, |_| {}).await;
    world.apply(|spec| spec.readiness = ReadinessSpec { max_memory: Some(0.0), max_cpu: None });
    let expected = json!({ "status": "not_ready", "reason": "high_memory_usage", "services": [] });
    until_answer(&world, "/readyz", (503, expected)).await;
    let (status, summary) = get(&world, "/health/metrics").await;
    assert_eq!(status, 200);
    assert_eq!(summary["health"]["reason"], "high_memory_usage");
    assert!(summary["memory"]["used_ratio"].as_f64().unwrap() > 0.0, "{summary}");
    assert_eq!(
        summary["services"],
        json!([{ "name": "chat", "endpoints": 1, "endpoints_up": 1, "in_flight": 0 }])
    );
    world.apply(|spec| spec.readiness = ReadinessSpec::default());
    assert_eq!(get(&world, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_deep_check_asks_for_a_real_answer_and_not_too_often() {
    let world = World::start(1, |_| {}).await;
    let (status, body) = get(&world, "/health/deep").await;
    assert_eq!((status, &body["services"][0]["status"]), (200, &json!("ok")), "{body}");
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    let again = get(&world, "/deep_health").await;
    assert_eq!(again, (200, body), "the answer is kept for a while");

    let emptied = call(world.addr, "POST", "/health/trigger_gc", "", b"").await;
    assert_eq!(emptied.status, 200);
    let (status, body) = get(&world, "/health/deep").await;
    assert_eq!(status, 503);
    assert_eq!(body["services"][0]["reason"], "a one-token chat was answered 500 Internal Server Error");
}

#[tokio::test]
async fn what_costs_something_is_for_operators() {
    let mut world = World::start(1, |_| {}).await;
    let token = |name: &str, secret: &str, role| TokenSpec {
        name: name.to_owned(),
        digest: Digest(Sha256::digest(secret).into()),
        role,
    };
    world.apply(|spec| {
        spec.tokens =
            vec![token("v", "viewer-token", Role::Viewer), token("o", "operator-token", Role::Operator)];
    });
    for (method, path) in [("GET", "/health/deep"), ("GET", "/deep_health"), ("POST", "/health/trigger_gc")] {
        for (headers, expected) in [
            ("", 401),
            ("authorization: Bearer wrong\r\n", 401),
            ("authorization: Bearer viewer-token\r\n", 403),
            ("authorization: Bearer operator-token\r\n", 200),
        ] {
            let reply = call(world.addr, method, path, headers, b"").await;
            assert_eq!(reply.status, expected, "{method} {path} {headers}: {}", reply.text());
        }
    }
    let unknown =
        call(world.addr, "POST", "/health/trigger_gc?all", "authorization: Bearer operator-token\r\n", b"");
    assert_eq!(unknown.await.status, 400);
}

#[tokio::test]
async fn engines_are_flushed_only_when_asked() {
    let mut world = World::start(1, |_| {}).await;
    let target = world.sims[0].addr().into();
    world.apply(|spec| {
        spec.services[0].versions[0].endpoints = vec![EndpointSpec::new(target, Engine::Vllm)];
    });
    world.until_all(State::Healthy).await;
    assert_eq!(call(world.addr, "POST", CHAT, "", &hi(false)).await.status, 200);
    let plain = call(world.addr, "POST", "/health/trigger_gc", "", b"").await.json();
    assert_eq!((&plain["engines"], &plain["connections_closed"]), (&json!([]), &json!(1)));
    let flushed = call(world.addr, "POST", "/health/trigger_gc?engines=true", "", b"").await.json();
    assert_eq!(flushed["engines"][0]["flushed"], json!(false), "the simulator has no such path: {flushed}");
    assert!(flushed["engines"][0]["reason"].as_str().unwrap().contains("/reset_prefix_cache"));
}
