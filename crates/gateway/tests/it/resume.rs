//! Streams that end too soon and are carried on elsewhere: the client must not notice, or be told clearly.

use backstop_core::table::{Across, Engine, ResumeMode, ResumeSpec, ServiceSpec, VersionSpec};
use backstop_engine_sim::{Cut, Dialect, Dist, Fault, SimConfig, expected_completion, expected_text};
use serde_json::{Value, json};

use crate::client::{CHAT, Conn, End, Reply, call, chat, hi, until};
use crate::world::{TOKENS, World, endpoint, header_rule, ms, oracle};

pub(crate) fn resumes(service: &mut ServiceSpec) {
    resumes_by(service, &[ResumeMode::Continue, ResumeMode::Replay]);
}

fn resumes_by(service: &mut ServiceSpec, modes: &[ResumeMode]) {
    service.resume =
        ResumeSpec { attempts: 2, modes: modes.to_vec(), across: vec![Across::Version, Across::Stable] };
    service.timeouts.inter_token = ms(300);
}

fn cut(after: u64) -> Fault {
    Fault::Cut { after, how: Cut::Rst, mid_event: false }
}

/// Chunks of a stream, `[DONE]` left out.
fn chunks(reply: &Reply) -> Vec<Value> {
    let events = reply.events();
    let data = events.iter().filter(|event| *event != "[DONE]");
    data.map(|event| serde_json::from_str(event).unwrap_or_else(|_| panic!("{event}"))).collect()
}

/// A complete answer that looks like one stream.
#[track_caller]
pub(crate) fn seamless(reply: &Reply, text: &str) {
    assert_eq!((reply.status, reply.end, reply.is_done()), (200, End::Complete, true), "{}", reply.text());
    assert_eq!(reply.content(), text);
    let chunks = chunks(reply);
    for chunk in &chunks {
        for constant in ["id", "created", "model", "object"] {
            assert_eq!(chunk[constant], chunks[0][constant], "{constant} of {chunk}");
        }
    }
    let count = |pointer: &str| {
        chunks.iter().filter(|chunk| chunk.pointer(pointer).is_some_and(|it| !it.is_null())).count()
    };
    assert_eq!(count("/choices/0/finish_reason"), 1, "{}", reply.text());
    assert!(count("/choices/0/delta/role") <= 1, "the role is said once: {}", reply.text());
}

/// Ended with an error event and nothing that a client would take for an end.
#[track_caller]
fn told(reply: &Reply, code: &str) {
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], code, "{}", reply.text());
    assert!(!reply.is_done());
    assert!(oracle(TOKENS).starts_with(&reply.content()));
}

#[tokio::test]
async fn whatever_ends_a_stream_too_soon_the_client_gets_all_of_it_once() {
    let faults = [
        cut(5),
        cut(63),
        Fault::Cut { after: 9, how: Cut::Fin, mid_event: false },
        Fault::Cut { after: 9, how: Cut::Fin, mid_event: true },
        Fault::Stall { after: 7 },
        Fault::Garbage { after: 3 },
        Fault::InvalidEvent { after: 3 },
        Fault::ErrorEvent { after: 20, done: false },
        Fault::ErrorEvent { after: 20, done: true },
        Fault::NoFinish,
        Fault::Failed { after: 4 },
    ];
    for modes in [&[ResumeMode::Continue][..], &[ResumeMode::Replay]] {
        for fault in &faults {
            let world = World::start(2, |service| resumes_by(service, modes)).await;
            world.sims[0].set_fault(fault.clone());
            let reply = chat(world.addr, true).await;
            seamless(&reply, &oracle(TOKENS));
            assert_eq!(world.requests(), [1, 1]);
            until("the accounts are settled", || world.totals().answered == 1).await;
            assert_eq!(world.endpoint(0).in_flight + world.endpoint(1).in_flight, 0);
        }
    }
}

#[tokio::test]
async fn every_engine_continues_in_its_own_dialect() {
    for (engine, dialect) in [
        (Engine::Vllm, Dialect::Vllm),
        (Engine::Sglang, Dialect::Sglang),
        (Engine::LlamaCpp, Dialect::LlamaCpp),
        (Engine::Ollama, Dialect::LlamaCpp),
    ] {
        let sims = vec![SimConfig { dialect, ..SimConfig::default() }; 2];
        let world = World::unchecked(sims, |service| {
            resumes_by(service, &[ResumeMode::Continue]);
            for endpoint in &mut service.versions[0].endpoints {
                endpoint.engine = engine;
            }
            if engine == Engine::Ollama {
                service.health.path = Some("/health".to_owned());
            }
        })
        .await;
        world.until_all(backstop_core::health::State::Healthy).await;
        world.sims[0].set_fault(cut(11));
        seamless(&chat(world.addr, true).await, &oracle(TOKENS));
        let metrics = world.gateway.metrics();
        let line = "backstop_resumes_total{service=\"chat\",version=\"v1\",mode=\"continue\"} 1";
        assert!(metrics.lines().any(|other| other == line), "{engine:?}: {metrics}");
    }
}

#[tokio::test]
async fn an_engine_that_takes_no_prefill_is_asked_anew_and_remembered() {
    let world = World::start(2, resumes).await;
    world.sims[0].set_fault(cut(6));
    world.sims[1].set_fault(Fault::PrefillRejected);
    for requests in [[1, 2], [2, 3]] {
        seamless(&chat(world.addr, true).await, &oracle(TOKENS));
        assert_eq!(world.requests(), requests, "rejected once, then not asked that way again");
    }
}

#[tokio::test]
async fn a_rejected_prefill_does_not_hide_the_real_fault() {
    let world = World::start(2, |service| resumes_by(service, &[ResumeMode::Continue])).await;
    world.sims[0].set_fault(cut(6));
    world.sims[1].set_fault(Fault::PrefillRejected);
    told(&chat(world.addr, true).await, "upstream_disconnected");
}

#[tokio::test]
async fn the_replacement_may_die_too() {
    let world = World::start(3, resumes).await;
    world.sims[0].set_fault(cut(10));
    world.sims[1].set_fault(cut(10));
    seamless(&chat(world.addr, true).await, &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1, 1]);

    let world = World::start(4, resumes).await;
    for sim in &world.sims {
        sim.set_fault(cut(10));
    }
    let reply = chat(world.addr, true).await;
    told(&reply, "upstream_disconnected");
    assert_eq!(reply.content(), oracle(30), "what each brought before it died is kept");
    assert_eq!(world.requests(), [1, 1, 1, 0], "attempts are bounded");
}

#[tokio::test]
async fn the_next_attempt_differs_from_the_one_that_was_lost() {
    let world =
        World::start(3, |service| resumes_by(service, &[ResumeMode::Replay, ResumeMode::Continue])).await;
    world.sims[0].set_fault(cut(30));
    world.sims[1].set_fault(cut(10));
    seamless(&chat(world.addr, true).await, &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1, 1]);
    let metrics = world.gateway.metrics();
    let line = "backstop_resumes_total{service=\"chat\",version=\"v1\",mode=\"continue\"} 1";
    assert!(metrics.lines().any(|other| other == line), "{metrics}");
}

#[tokio::test]
async fn another_text_is_not_spliced() {
    let sims = vec![SimConfig::default(), SimConfig { seed: 1, ..SimConfig::default() }];
    let world = World::of(sims, |service| resumes_by(service, &[ResumeMode::Replay])).await;
    world.sims[0].set_fault(cut(10));
    let reply = chat(world.addr, true).await;
    told(&reply, "upstream_disconnected");
    assert_eq!(reply.content(), oracle(10));
}

#[tokio::test]
async fn what_must_not_be_carried_on_is_not() {
    for fields in [
        json!({ "n": 2 }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "guided_json": {} }),
        json!({ "tool_choice": "required", "tools": [] }),
    ] {
        let world = World::start(2, resumes).await;
        world.sims[0].set_fault(cut(10));
        let mut body: Value = serde_json::from_slice(&hi(true)).unwrap();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let reply = call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
        assert_eq!(
            serde_json::from_str::<Value>(reply.events().last().unwrap()).unwrap()["error"]["code"],
            "upstream_disconnected",
            "{fields}"
        );
        assert_eq!(world.requests(), [1, 0], "{fields}");
    }
}

#[tokio::test]
async fn limits_and_usage_are_those_of_the_whole_answer() {
    let world = World::start(2, |service| resumes_by(service, &[ResumeMode::Continue])).await;
    world.sims[0].set_fault(cut(10));
    let body = json!({
        "model": "chat", "stream": true, "max_tokens": 25, "stream_options": { "include_usage": true },
        "messages": [{ "role": "user", "content": "hi" }],
    });
    let reply = call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
    seamless(&reply, &oracle(25));
    let last = chunks(&reply).pop().unwrap();
    // The simulator counts the tokens of a prompt otherwise than it writes them, so only the answer's are known.
    let usage = |key: &str| last["usage"][key].as_u64().unwrap();
    assert_eq!(usage("completion_tokens"), 25);
    assert_eq!(usage("total_tokens"), usage("prompt_tokens") + 25);
    let sent = world.sims[1].request_log();
    let sent: Value = serde_json::from_slice(&sent.iter().find(|it| it.path == CHAT).unwrap().body).unwrap();
    assert_eq!(sent["max_tokens"], 15);

    // All tokens had come, only the end was missing: nobody needs to be asked.
    world.sims[0].set_fault(cut(25));
    let body = json!({ "model": "chat", "stream": true, "max_tokens": 25, "messages": [{ "role": "user", "content": "hi" }] });
    let before = world.requests()[1];
    let reply = call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
    seamless(&reply, &oracle(25));
    assert_eq!(chunks(&reply).pop().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(world.requests()[1], before);
}

#[tokio::test]
async fn completions_too() {
    let world = World::start(2, resumes).await;
    world.sims[0].set_fault(cut(10));
    let body = json!({ "model": "chat", "prompt": "hi", "stream": true }).to_string();
    let reply = call(world.addr, "POST", "/v1/completions", "", body.as_bytes()).await;
    assert_eq!((reply.end, reply.is_done()), (End::Complete, true), "{}", reply.text());
    assert_eq!(reply.content(), expected_completion(0, "hi", TOKENS));
}

#[tokio::test]
async fn another_version_may_carry_on_where_that_is_allowed() {
    for (across, carried) in [(vec![Across::Version, Across::Stable], true), (vec![Across::Version], false)] {
        let mut world = World::start(2, resumes).await;
        let gray = endpoint(&world.sims[0], 0);
        world.apply(|spec| {
            let service = &mut spec.services[0];
            service.versions[0].endpoints.remove(0);
            service.versions.push(VersionSpec::new("v2", vec![gray]));
            service.rules = vec![header_rule("x-gray", "1", "v2")];
            service.resume.across = across;
        });
        world.until_all(backstop_core::health::State::Healthy).await;
        world.sims[0].set_fault(cut(10));
        let reply = call(world.addr, "POST", CHAT, "x-gray: 1\r\n", &hi(true)).await;
        if carried {
            seamless(&reply, &oracle(TOKENS));
        } else {
            assert!(reply.text().contains("upstream_disconnected"), "{}", reply.text());
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_meanwhile_takes_the_replacement_with_it() {
    let world = World::start(2, resumes).await;
    world.sims[0].set_fault(cut(10));
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    conn.contents(10).await;
    until("the replacement is asked", || world.requests()[1] == 1).await;
    drop(conn);
    until("nothing is in flight", || world.endpoint(1).in_flight == 0).await;
    until("it counts as cancelled", || world.totals().cancelled == 1).await;
}

#[tokio::test]
async fn streams_of_a_dead_replica_all_go_on() {
    let slow = SimConfig { itl: Dist::Constant(ms(10)), tokens: 100, ..SimConfig::default() };
    let world = World::of(vec![slow; 3], |service| {
        crate::world::side_by_side(service);
        resumes(service);
        service.timeouts.inter_token = ms(5000);
    })
    .await;
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let addr = world.addr;
        streams.spawn(async move { chat(addr, true).await });
    }
    until("all have begun", || world.requests().iter().sum::<usize>() == 60).await;
    tokio::time::sleep(ms(200)).await;
    world.sims[0].kill().await;
    for reply in streams.join_all().await {
        seamless(&reply, &expected_text(0, &[("user", "hi")], 100));
    }
    assert_eq!(world.totals().cut, 0);
}

/// Whatever ails it has made somebody take it back.
#[tokio::test]
async fn nothing_is_carried_on_by_a_version_that_was_taken_back() {
    let slow = SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() };
    let mut world = World::of(vec![slow; 3], resumes).await;
    let [first, second] = [0, 1].map(|i| endpoint(&world.sims[i], i as u8));
    world.apply(|spec| {
        let service = &mut spec.services[0];
        service.versions[0].endpoints.drain(..2);
        service.versions.push(VersionSpec::new("v2", vec![first, second]));
        service.rules = vec![header_rule("x-gray", "1", "v2")];
    });
    world.until_all(backstop_core::health::State::Healthy).await;
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "x-gray: 1\r\n", &hi(true)).await;
    let mut reply = conn.head().await.unwrap();
    reply.body = conn.contents(5).await;
    world.apply(|spec| {
        spec.services[0].versions.pop();
        spec.services[0].rules.clear();
    });
    world.sims[0].kill().await;
    conn.body(&mut reply).await;
    seamless(&reply, &oracle(TOKENS));
    assert_eq!(world.requests()[1..], [0, 1]);
}

/// Second tries of a service have one budget, whatever part of an answer they are for.
#[tokio::test]
async fn resumes_are_within_the_budget_unless_the_endpoint_is_gone() {
    for (fault, within) in [(Fault::Stall { after: 5 }, true), (cut(5), false)] {
        let late = SimConfig { ttft: Dist::Constant(ms(1000)), ..SimConfig::default() };
        let world = World::of(vec![SimConfig::default(), late], |service| {
            resumes(service);
            service.retry.budget = 0.0;
        })
        .await;
        world.sims[0].set_fault(fault);
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let addr = world.addr;
            streams.spawn(async move { chat(addr, true).await });
        }
        let mut most = 0;
        while !streams.is_empty() {
            most = most.max(world.endpoint(1).in_flight);
            if let Some(reply) = streams.try_join_next() {
                seamless(&reply.unwrap(), &oracle(TOKENS));
            }
            tokio::time::sleep(ms(2)).await;
        }
        // Three may always, besides those whose rest has begun; the others wait for their turn.
        assert!(if within { most <= 6 } else { most > 6 }, "{most} at a time");
    }
}

#[tokio::test]
async fn what_is_too_long_to_be_remembered_ends_in_an_error() {
    const MANY: u64 = 100_000;
    let long = SimConfig { tokens: MANY, ..SimConfig::default() };
    let world = World::of(vec![long; 2], resumes).await;
    world.sims[0].set_fault(cut(MANY - 10));
    let reply = chat(world.addr, true).await;
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "upstream_disconnected");
    assert!(reply.content().len() > 256 * 1024, "{}", reply.content().len());
    assert_eq!(world.requests(), [1, 0]);
}

/// A stream may outlive the trouble of more than one engine.
#[tokio::test]
async fn an_engine_that_is_well_again_is_no_longer_avoided() {
    let slow = SimConfig { itl: Dist::Constant(ms(30)), ..SimConfig::default() };
    let world = World::of(vec![slow; 2], |service| {
        resumes(service);
        (service.health.interval, service.health.down) = (ms(20), 1);
    })
    .await;
    world.sims[0].set_fault(Fault::Stall { after: 10 });
    let addr = world.addr;
    let stream = tokio::spawn(async move { chat(addr, true).await });
    until("the other one goes on", || world.requests() == [1, 1]).await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    world.until_state(0, backstop_core::health::State::Unhealthy).await;
    world.sims[0].clear_faults();
    world.until_state(0, backstop_core::health::State::Healthy).await;
    world.sims[1].kill().await;
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests()[0], 2);
}
