//! What a version changes in the requests that it gets, as its engine sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_core::assign::BUCKETS;
use backstop_core::table::{Across, CacheSpec, ResumeMode, ResumeSpec, ServiceSpec, ShapeSpec};
use backstop_engine_sim::{Cut, Fault, SimConfig, expected_text};
use serde_json::{Value, json};

use crate::client::{CHAT, Reply, call, chat, hi};
use crate::resume::seamless;
use crate::world::{World, endpoint, header_rule, ms, trial};

fn terse() -> ShapeSpec {
    ShapeSpec {
        system: Some("Be terse.".to_owned()),
        params: BTreeMap::from([
            ("temperature".to_owned(), json!(0.2)),
            ("max_tokens".to_owned(), json!(40)),
        ]),
        headers: BTreeMap::from([("x-namespace".to_owned(), "gray".to_owned())]),
    }
}

/// The conversation that a shaped "hi" is.
const CONVERSATION: [(&str, &str); 2] = [("system", "Be terse."), ("user", "hi")];

/// All goes to `v2`, which is shaped.
async fn world(change: impl FnOnce(&mut ServiceSpec)) -> World {
    World::versions(Default::default(), |service| {
        service.versions[1].request = terse();
        service.trial = Some(trial(BUCKETS));
        change(service);
    })
    .await
}

/// Body and headers of the last request that an engine got from a client.
fn last(world: &World, sim: usize) -> (Value, Vec<String>) {
    let log = world.sims[sim].request_log();
    let request = log.iter().rfind(|it| it.method == "POST").unwrap();
    let namespaces = request.headers.iter().filter(|(name, _)| name == "x-namespace");
    (serde_json::from_slice(&request.body).unwrap(), namespaces.map(|(_, value)| value.clone()).collect())
}

async fn ask(world: &World, path: &str, headers: &str, body: &str) -> Reply {
    let reply = call(world.addr, "POST", path, headers, body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

#[tokio::test]
async fn the_engine_gets_the_versions_prompt_parameters_and_headers() {
    let world = world(|_| {}).await;
    let body = r#"{"model":"chat","temperature":1,"max_completion_tokens":7,"x_own":1.50,
        "messages":[{"role":"developer","content":"Talk."},{"role":"user","content":"hi"}]}"#;
    // The client can neither choose the header nor have it taken out.
    let reply = ask(&world, CHAT, "x-namespace: mine\r\nconnection: x-namespace\r\n", body).await;
    assert_eq!(reply.header("x-backstop-version"), Some("v2"));
    let (sent, namespaces) = last(&world, 1);
    let messages =
        json!([{ "role": "developer", "content": "Be terse." }, { "role": "user", "content": "hi" }]);
    assert_eq!(
        sent,
        json!({ "model": "chat", "x_own": 1.5, "messages": messages, "max_tokens": 40, "temperature": 0.2 })
    );
    assert_eq!(namespaces, ["gray"]);
    // Streams too, and what the client gets is the answer to that.
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.content(), reply.is_done()), (expected_text(0, &CONVERSATION, 40), true));
}

#[tokio::test]
async fn other_apis_get_what_fits_them() {
    let world = world(|_| {}).await;
    ask(&world, "/v1/completions", "", r#"{"model":"chat","prompt":"Once"}"#).await;
    let (sent, namespaces) = last(&world, 1);
    assert_eq!((&sent["prompt"], &sent["max_tokens"]), (&json!("Be terse.\n\nOnce"), &json!(40)));
    assert_eq!(namespaces, ["gray"]);
    ask(&world, "/v1/responses", "", r#"{"model":"chat","input":"hi","instructions":"Talk."}"#).await;
    assert_eq!(last(&world, 1).0["instructions"], "Be terse.");
    ask(&world, "/v1/embeddings", "", r#"{"model":"chat","input":"hi"}"#).await;
    let (sent, _) = last(&world, 1);
    assert_eq!((&sent["input"], sent.get("system"), &sent["temperature"]), (&json!("hi"), None, &json!(0.2)));
}

#[tokio::test]
async fn the_next_attempt_is_shaped_for_its_own_version() {
    for stream in [false, true] {
        let world = world(|_| {}).await;
        world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.header("x-backstop-version")), (200, Some("v1")));
        assert_eq!(reply.content(), expected_text(0, &[("user", "hi")], 64));
        let (sent, namespaces) = last(&world, 0);
        assert_eq!(sent, serde_json::from_slice::<Value>(&hi(stream)).unwrap());
        assert!(namespaces.is_empty());
    }
}

fn resumes(service: &mut ServiceSpec, mode: ResumeMode) {
    service.timeouts.inter_token = ms(300);
    service.resume =
        ResumeSpec { attempts: 2, modes: vec![mode], across: vec![Across::Version, Across::Stable] };
}

const CUT: Fault = Fault::Cut { after: 10, how: Cut::Rst, mid_event: false };

#[tokio::test]
async fn a_stream_goes_on_under_the_prompt_it_began_with() {
    for mode in [ResumeMode::Continue, ResumeMode::Replay] {
        let mut world = world(|service| resumes(service, mode)).await;
        let spare =
            backstop_engine_sim::Sim::start(SimConfig { log: 64, ..SimConfig::default() }).await.unwrap();
        world.apply(|spec| spec.services[0].versions[1].endpoints.push(endpoint(&spare, 1)));
        world.until_all(backstop_core::health::State::Healthy).await;
        world.sims[1].set_fault(CUT);
        let reply = chat(world.addr, true).await;
        // Both parts together have the length that the version allows.
        seamless(&reply, &expected_text(0, &CONVERSATION, 40));
        let log = spare.request_log();
        let request = log.iter().rfind(|it| it.method == "POST").unwrap();
        assert_eq!(request.header("x-namespace"), Some("gray"), "{mode}");
        let sent: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(sent["messages"][0], json!({ "role": "system", "content": "Be terse." }), "{mode}");
    }
}

#[tokio::test]
async fn a_stream_that_goes_on_in_another_version_is_asked_for_in_its_way() {
    let world = world(|service| resumes(service, ResumeMode::Continue)).await;
    world.sims[1].set_fault(CUT);
    let reply = chat(world.addr, true).await;
    assert!(reply.is_done(), "{}", reply.text());
    let (sent, namespaces) = last(&world, 0);
    let so_far = sent["messages"][1]["content"].as_str().unwrap();
    assert!(!so_far.is_empty() && expected_text(0, &CONVERSATION, 40).starts_with(so_far), "{so_far}");
    assert!(reply.content().starts_with(so_far));
    assert_eq!(
        sent["messages"],
        json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": so_far }])
    );
    assert_eq!((sent.get("max_tokens"), sent.get("temperature"), namespaces), (None, None, vec![]));
}

#[tokio::test]
async fn what_is_kept_was_asked_in_the_same_way() {
    let mut world = world(|service| {
        service.cache = Some(CacheSpec {
            max_bytes: 1 << 20,
            ttl: Duration::from_secs(600),
            share_across_tenants: false,
        });
        service.versions[1].request.params.insert("temperature".to_owned(), json!(0));
        service.rules = vec![header_rule("x-old", "1", "v1")];
    })
    .await;
    // The version makes it one that can be kept.
    let first = chat(world.addr, false).await;
    let again = chat(world.addr, false).await;
    assert_eq!(again.header("x-backstop-cache"), Some("hit"));
    assert_eq!((again.content(), again.header("x-backstop-version")), (first.content(), Some("v2")));
    let old = call(world.addr, "POST", CHAT, "x-old: 1\r\n", &hi(false)).await;
    assert_eq!((old.header("x-backstop-cache"), old.header("x-backstop-version")), (None, Some("v1")));
    // Another prompt, or another header, under the same name of a version.
    let change: [fn(&mut ShapeSpec); 2] = [
        |shape| shape.system = None,
        |shape| drop(shape.headers.insert("x-namespace".to_owned(), "b".to_owned())),
    ];
    for change in change {
        world.apply(|spec| change(&mut spec.services[0].versions[1].request));
        assert_eq!(chat(world.addr, false).await.header("x-backstop-cache"), None);
        assert_eq!(chat(world.addr, false).await.header("x-backstop-cache"), Some("hit"));
    }
    // What the stable version answered in its place is not the canary's answer.
    world.apply(|spec| spec.services[0].versions[1].request.system = Some("Another.".to_owned()));
    world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some("v1"));
    world.sims[1].clear_faults();
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.header("x-backstop-cache"), reply.header("x-backstop-version")), (None, Some("v2")));
}

/// A shorter answer is what the fallback is about.
#[tokio::test]
async fn a_fallback_for_fewer_tokens_is_kept() {
    use backstop_core::table::{FallbackSpec, FallbackStep, RetrySpec, When};
    let world = world(|service| {
        service.retry = RetrySpec { attempts: 0, ..service.retry };
        let when = When { failure: true, overload: true };
        service.fallback = vec![FallbackSpec { step: FallbackStep::MaxTokens(3), when }];
    })
    .await;
    let fault = Fault::Status { status: 500, retry_after: None, message: None };
    world.sims[1].set_fault(backstop_engine_sim::Rule { times: Some(1), ..fault.into() });
    let reply = chat(world.addr, false).await;
    assert_eq!((reply.status, reply.header("x-backstop-degraded")), (200, Some("max_tokens=3")));
    let (sent, _) = last(&world, 1);
    assert_eq!((&sent["max_tokens"], &sent["messages"][0]["content"]), (&json!(3), &json!("Be terse.")));
}
