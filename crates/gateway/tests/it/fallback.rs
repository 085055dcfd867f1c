//! What a client gets when the service can't answer as asked: the service's fallback, in its order, and only where it
//! is meant.

use backstop_core::health::State;
use backstop_core::table::{FallbackSpec, FallbackStep, RetrySpec, VersionSpec, When};
use backstop_engine_sim::{Fault, Rule, SimConfig};
use serde_json::{Value, json};

use crate::client::{CHAT, End, Reply, call, chat, hi};
use crate::world::{TOKENS, World, endpoint, header_rule, ms, oracle, service};

const ALWAYS: When = When { failure: true, overload: true };

fn step(step: FallbackStep) -> FallbackSpec {
    FallbackSpec { step, when: ALWAYS }
}

fn text(text: &str) -> FallbackSpec {
    step(FallbackStep::Static(text.to_owned()))
}

fn status(status: u16, retry_after: Option<u64>) -> Fault {
    Fault::Status { status, retry_after, message: None }
}

fn degraded(reply: &Reply) -> Option<&str> {
    reply.header("x-backstop-degraded")
}

/// Service `chat` on the first engine, `small` on the second.
async fn two_services(fallback: Vec<FallbackSpec>) -> World {
    let mut world = World::start(2, |_| {}).await;
    let mut small = service(&world.sims[1..]);
    (small.name, small.models) = ("small".to_owned(), vec!["tiny".to_owned()]);
    world.apply(|spec| {
        spec.services[0].versions[0].endpoints.truncate(1);
        spec.services[0].fallback = fallback;
        spec.services.push(small);
    });
    world.until_all(State::Healthy).await;
    world
}

#[tokio::test]
async fn another_service_answers_by_its_own_name() {
    let world = two_services(vec![step(FallbackStep::Service("small".to_owned()))]).await;
    assert_eq!(degraded(&chat(world.addr, false).await), None);
    world.sims[0].set_fault(status(500, None));
    for stream in [false, true] {
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(TOKENS)));
        assert_eq!(degraded(&reply), Some("service=small"));
    }
    let sent = world.sims[1].request_log();
    let sent: Value = serde_json::from_slice(&sent.iter().rfind(|it| it.path == CHAT).unwrap().body).unwrap();
    assert_eq!(sent["model"], "tiny");
}

#[tokio::test]
async fn each_entry_only_for_its_troubles_and_in_order() {
    let only = |failure, overload, words: &str| FallbackSpec {
        step: FallbackStep::Static(words.to_owned()),
        when: When { failure, overload },
    };
    let world = two_services(vec![only(false, true, "busy"), only(true, false, "broken")]).await;
    for (fault, words) in [
        (status(500, None), "broken"),
        (status(429, None), "busy"),
        (status(503, None), "busy"),
        (Fault::Hangup { how: backstop_engine_sim::Cut::Fin }, "broken"),
    ] {
        world.sims[0].set_fault(fault);
        for stream in [false, true] {
            let reply = chat(world.addr, stream).await;
            assert_eq!((reply.status, reply.end, reply.content().as_str()), (200, End::Complete, words));
            assert_eq!((degraded(&reply), !stream || reply.is_done()), (Some("static"), true));
        }
    }
    assert_eq!(world.totals().failed, 0);
}

#[tokio::test]
async fn an_answer_that_is_not_text_can_not_be_canned() {
    let world = two_services(vec![text("sorry")]).await;
    world.sims[0].set_fault(status(500, None));
    let body = json!({ "model": "chat", "input": "hi" }).to_string();
    let reply = call(world.addr, "POST", "/v1/embeddings", "", body.as_bytes()).await;
    assert_eq!((reply.status, degraded(&reply)), (500, None));
}

#[tokio::test]
async fn a_shorter_answer_may_be_had() {
    let world = two_services(vec![step(FallbackStep::MaxTokens(5)), text("busy")]).await;
    world.sims[0].set_fault(Rule { times: Some(3), ..Rule::from(status(503, Some(60))) });
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, degraded(&reply)), (200, Some("static")), "it still asks to be left alone");
}

/// The prompt is right and the first model is well: only one with a longer context can help, and if none can, the client
/// hears what the first one said.
#[tokio::test]
async fn a_prompt_that_is_too_long_goes_to_another_service_once() {
    let world = two_services(vec![text("sorry"), step(FallbackStep::Service("small".to_owned()))]).await;
    world.sims[0].set_fault(Fault::ContextLength);
    let reply = chat(world.addr, true).await;
    assert_eq!(
        (reply.status, reply.content(), degraded(&reply)),
        (200, oracle(TOKENS), Some("service=small"))
    );
    assert_eq!(world.requests(), [1, 1], "never sent to the same version again");
    world.sims[1].set_fault(Fault::ContextLength);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, degraded(&reply)), (400, None));
    assert_eq!(world.requests(), [2, 2]);
}

#[tokio::test]
async fn what_no_model_would_answer_goes_back_with_its_reason() {
    let world = two_services(vec![text("sorry"), step(FallbackStep::Service("small".to_owned()))]).await;
    world.sims[0].set_fault(Fault::ContentPolicy { code: Default::default() });
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, degraded(&reply), world.requests()), (400, None, vec![1, 0]));
}

/// Version `v2` on the first engine, stable `v1` on the second.
async fn gray(change: impl FnOnce(&mut backstop_core::table::ServiceSpec)) -> World {
    let mut world = World::start(2, |_| {}).await;
    let gray = endpoint(&world.sims[0], 0);
    world.apply(|spec| {
        let service = &mut spec.services[0];
        service.versions[0].endpoints.remove(0);
        service.versions.push(VersionSpec::new("v2", vec![gray]));
        service.rules = vec![header_rule("x-gray", "1", "v2")];
        change(service);
    });
    world.until_all(State::Healthy).await;
    world
}

async fn ask_gray(world: &World) -> Reply {
    call(world.addr, "POST", CHAT, "x-gray: 1\r\n", &hi(false)).await
}

#[tokio::test]
async fn the_stable_version_stands_in_for_another() {
    for fault in [status(500, None), status(401, None), status(429, None), status(503, Some(60))] {
        let world = gray(|_| {}).await;
        world.sims[0].set_fault(fault.clone());
        let reply = ask_gray(&world).await;
        assert_eq!((reply.status, reply.header("x-backstop-version")), (200, Some("v1")), "{fault:?}");
        assert_eq!(world.requests(), [1, 1], "{fault:?}");
    }
}

#[tokio::test]
async fn a_key_that_was_refused_is_not_shown_to_its_siblings() {
    let world = World::start(2, |_| {}).await;
    world.sims[0].set_fault(status(401, None));
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_credentials"));
    assert_eq!(world.requests(), [1, 0]);
}

#[tokio::test]
async fn a_short_pause_is_waited_for_rather_than_answered_by_another_model() {
    let world = gray(|_| {}).await;
    world.sims[0].set_fault(Rule { times: Some(1), ..Rule::from(status(429, Some(1))) });
    let reply = ask_gray(&world).await;
    assert_eq!((reply.status, reply.header("x-backstop-version")), (200, Some("v2")));
    assert_eq!(world.requests(), [2, 0]);
}

/// Three second tries may be made at a time, however few the requests. Others wait for them, but not for ever.
#[tokio::test]
async fn second_tries_are_limited_together() {
    let world = World::of(vec![SimConfig::default(); 2], |service| {
        service.timeouts.queue = ms(200);
        service.retry = RetrySpec { attempts: 1, budget: 0.0, backoff: ms(2), retry_after_max: ms(5000) };
    })
    .await;
    world.sims[0].set_fault(status(500, None));
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let addr = world.addr;
        asked.spawn(async move {
            tokio::time::timeout(ms(1500), chat(addr, false)).await.map(|reply| reply.status)
        });
    }
    let replies = asked.join_all().await;
    let refused = replies.iter().filter(|reply| matches!(reply, Ok(500))).count();
    assert_eq!((refused, world.requests()[1]), (7, 3), "{replies:?}");
}

#[tokio::test]
async fn second_tries_wait_for_their_turn() {
    let late = SimConfig { ttft: backstop_engine_sim::Dist::Constant(ms(200)), ..SimConfig::default() };
    let world = World::of(vec![SimConfig::default(), late], |service| {
        service.retry = RetrySpec { attempts: 1, budget: 0.0, backoff: ms(2), retry_after_max: ms(5000) };
    })
    .await;
    world.sims[0].set_fault(status(500, None));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let addr = world.addr;
        asked.spawn(async move { chat(addr, false).await.status });
    }
    let mut most = 0;
    while !asked.is_empty() {
        most = most.max(world.endpoint(1).in_flight);
        if let Some(status) = asked.try_join_next() {
            assert_eq!(status.unwrap(), 200);
        }
        tokio::time::sleep(ms(2)).await;
    }
    assert_eq!(most, 3);
    // Not while there is too much to do anyway.
    world.sims[0].set_fault(status(503, None));
    world.sims[1].set_fault(Fault::NoAnswer);
    let refused = async {
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let addr = world.addr;
            asked.spawn(async move { chat(addr, false).await.status });
        }
        assert_eq!(asked.join_next().await.unwrap().unwrap(), 503);
    };
    crate::client::soon("at once", refused).await;
}

/// However many must be replaced: an endpoint that is gone is no reason to fail.
#[tokio::test]
async fn replacing_what_is_gone_is_free() {
    let world = World::of(vec![SimConfig::default(); 2], |service| {
        service.retry = RetrySpec { attempts: 1, budget: 0.0, backoff: ms(2), retry_after_max: ms(5000) };
    })
    .await;
    world.sims[0].set_fault(Fault::Hangup { how: backstop_engine_sim::Cut::Rst });
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let addr = world.addr;
        asked.spawn(async move { chat(addr, false).await.status });
    }
    assert_eq!(asked.join_all().await, [200; 30]);
}
