//! Answers that are kept: the same to the same question, to nobody else, and not for ever.

use std::time::Duration;

use backstop_core::table::{
    CacheSpec, Digest, FallbackSpec, FallbackStep, KeySpec, RateSpec, ServiceSpec, When,
};
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::client::{CHAT, End, Reply, call};
use crate::world::{TOKENS, World, ms, oracle};

const CACHE: CacheSpec =
    CacheSpec { max_bytes: 1 << 20, ttl: Duration::from_secs(60), share_across_tenants: false };

fn cached(service: &mut ServiceSpec) {
    service.cache = Some(CACHE);
}

fn question(fields: Value) -> Vec<u8> {
    let mut body =
        json!({ "model": "chat", "messages": [{ "role": "user", "content": "hi" }], "temperature": 0 });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

async fn ask(world: &World, headers: &str, fields: Value) -> Reply {
    call(world.addr, "POST", CHAT, headers, &question(fields)).await
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("x-backstop-cache") == Some("hit")
}

#[tokio::test]
async fn the_same_question_is_asked_once() {
    let world = World::start(1, cached).await;
    for stream in [false, true] {
        let first = ask(&world, "", json!({ "stream": stream })).await;
        let again = ask(&world, "", json!({ "stream": stream, "user": "somebody else" })).await;
        assert_eq!((is_hit(&first), is_hit(&again)), (false, true));
        assert_eq!((again.status, again.end, again.content()), (200, End::Complete, oracle(TOKENS)));
        assert_eq!((!stream || again.is_done(), again.body == first.body), (true, true));
        assert_eq!(again.header("content-type"), first.header("content-type"));
        assert_eq!(again.header("x-backstop-version"), Some("v1"));
    }
    assert_eq!(world.requests(), [2]);
    // Spelt otherwise, it is the same question.
    let spelt = br#" { "temperature":0.0 ,"messages":[{"content":"hi","role":"user"}],"stream":false,"model":"chat"}"#;
    assert!(!is_hit(&call(world.addr, "POST", CHAT, "", spelt).await), "0 and 0.0 may differ to an engine");
    let spelt =
        br#" { "temperature":0 ,"messages":[{"content":"hi","role":"user"}],"stream":false,"model":"chat"}"#;
    assert!(is_hit(&call(world.addr, "POST", CHAT, "", spelt).await));
}

#[tokio::test]
async fn what_may_differ_each_time_is_asked_each_time() {
    let world = World::start(1, cached).await;
    for (headers, fields) in [
        ("", json!({ "temperature": 0.7 })),
        ("", json!({ "temperature": null })),
        ("", json!({ "n": 2 })),
        ("x-backstop-cache: off\r\n", json!({})),
        ("cache-control: no-store\r\n", json!({})),
    ] {
        for _ in 0..2 {
            assert!(!is_hit(&ask(&world, headers, fields.clone()).await), "{headers}{fields}");
        }
    }
    assert_eq!(world.requests(), [10]);
    let asked_for = "x-backstop-cache: on\r\n";
    assert!(!is_hit(&ask(&world, asked_for, json!({ "temperature": 0.7 })).await));
    assert!(is_hit(&ask(&world, asked_for, json!({ "temperature": 0.7 })).await));
}

#[tokio::test]
async fn errors_and_parts_of_answers_are_not_kept() {
    for fault in [
        Fault::Status { status: 400, retry_after: None, message: None },
        Fault::Cut { after: 5, how: Cut::Fin, mid_event: false },
    ] {
        let world = World::start(1, cached).await;
        world.sims[0].set_fault(fault);
        ask(&world, "", json!({ "stream": true })).await;
        world.sims[0].clear_faults();
        let reply = ask(&world, "", json!({ "stream": true })).await;
        assert_eq!((is_hit(&reply), reply.content()), (false, oracle(TOKENS)));
    }
}

#[tokio::test]
async fn one_tenants_answers_are_not_anothers() {
    let key = |name: &str, tenant: Option<&str>| KeySpec {
        name: name.to_owned(),
        digest: Digest(Sha256::digest(name).into()),
        tenant: tenant.map(str::to_owned),
        services: None,
        limits: RateSpec::default(),
    };
    for (shared, hits) in [(false, [false, true, false]), (true, [false, true, true])] {
        let mut world = World::start(1, |service| {
            service.cache = Some(CacheSpec { share_across_tenants: shared, ..CACHE });
        })
        .await;
        world.apply(|spec| spec.keys = vec![key("a1", Some("a")), key("a2", Some("a")), key("b", None)]);
        let mut seen = Vec::new();
        for name in ["a1", "a2", "b"] {
            seen.push(is_hit(&ask(&world, &format!("authorization: Bearer {name}\r\n"), json!({})).await));
        }
        assert_eq!(seen, hits, "shared: {shared}");
    }
}

#[tokio::test]
async fn equal_questions_at_the_same_time_are_asked_once() {
    let slow = SimConfig { ttft: Dist::Constant(ms(150)), ..SimConfig::default() };
    let world = World::of(vec![slow], cached).await;
    for stream in [false, true] {
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let addr = world.addr;
            let body = question(json!({ "stream": stream }));
            asked.spawn(async move { call(addr, "POST", CHAT, "", &body).await });
        }
        let replies = asked.join_all().await;
        assert!(replies.iter().all(|reply| reply.content() == oracle(TOKENS)));
        assert_eq!(replies.iter().filter(|reply| is_hit(reply)).count(), 19);
    }
    assert_eq!(world.requests(), [2]);
}

#[tokio::test]
async fn those_who_wait_for_an_answer_that_fails_ask_themselves() {
    let slow = SimConfig { ttft: Dist::Constant(ms(100)), ..SimConfig::default() };
    let world = World::of(vec![slow], |service| {
        cached(service);
        service.retry.attempts = 0;
    })
    .await;
    let once =
        backstop_engine_sim::Rule { times: Some(1), ..Fault::Hangup { how: Default::default() }.into() };
    world.sims[0].set_fault(once);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let addr = world.addr;
        asked.spawn(async move { call(addr, "POST", CHAT, "", &question(json!({}))).await.status });
    }
    let mut statuses = asked.join_all().await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 502]);
}

#[tokio::test]
async fn a_kept_answer_is_better_than_none() {
    let world = World::start(1, |service| {
        service.cache = Some(CacheSpec { ttl: ms(1), ..CACHE });
        let when = When { failure: true, overload: false };
        service.fallback = vec![FallbackSpec { step: FallbackStep::Cached, when }];
    })
    .await;
    assert_eq!(ask(&world, "", json!({})).await.status, 200);
    tokio::time::sleep(ms(5)).await;
    assert!(!is_hit(&ask(&world, "", json!({})).await), "it has expired");
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    tokio::time::sleep(ms(5)).await;
    let reply = ask(&world, "", json!({})).await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    assert_eq!(
        (reply.header("x-backstop-degraded"), reply.header("x-backstop-cache")),
        (Some("cached"), Some("stale"))
    );
    assert_eq!(ask(&world, "", json!({ "max_tokens": 3 })).await.status, 500, "that was never asked");
}
