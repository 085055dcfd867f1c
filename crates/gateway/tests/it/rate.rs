//! Rate limits: what is refused, what clients are told, and that tokens count as they were really used.

use backstop_core::table::{CacheSpec, FallbackSpec, FallbackStep, KeySpec, RateSpec, ServiceSpec, When};
use backstop_engine_sim::SimConfig;
use serde_json::{Value, json};

use crate::client::{CHAT, Conn, Reply, call, until};
use crate::identity::key;
use crate::world::{World, ms, service};

fn requests(per_minute: u64) -> RateSpec {
    RateSpec { requests_per_minute: Some(per_minute), tokens_per_minute: None }
}

fn tokens(per_minute: u64) -> RateSpec {
    RateSpec { requests_per_minute: None, tokens_per_minute: Some(per_minute) }
}

fn limited(name: &str, limits: RateSpec) -> KeySpec {
    KeySpec { limits, ..key(name, &format!("sk-{name}"), None) }
}

/// Keys `a` with these limits and `b` without any.
async fn with_key(limits: RateSpec, sim: SimConfig) -> World {
    let mut world = World::of(vec![sim], |service| service.retry.attempts = 0).await;
    world.apply(|spec| spec.keys = vec![limited("a", limits), limited("b", RateSpec::default())]);
    world
}

async fn with_service(change: impl FnOnce(&mut ServiceSpec)) -> World {
    World::start(1, change).await
}

/// A chat of `key` with these fields on top.
async fn ask(world: &World, key: &str, fields: Value) -> Reply {
    call(world.addr, "POST", CHAT, &format!("authorization: Bearer sk-{key}\r\n"), &body(fields)).await
}

fn body(fields: Value) -> Vec<u8> {
    let mut body = json!({ "model": "chat", "messages": [{ "role": "user", "content": "hi" }] });
    let Value::Object(fields) = fields else { panic!("an object") };
    body.as_object_mut().unwrap().extend(fields);
    body.to_string().into_bytes()
}

fn number(reply: &Reply, header: &str) -> u64 {
    let value = reply.header(header).unwrap_or_else(|| panic!("no {header} in {:?}", reply.headers));
    value.parse().unwrap()
}

/// What is left of the tokens, by the answer to one more request that hardly takes any.
async fn left(world: &World) -> u64 {
    let reply = ask(world, "a", json!({ "max_tokens": 0 })).await;
    number(&reply, "x-ratelimit-remaining-tokens")
}

/// Waits until about so much is left.
async fn until_left(world: &World, about: u64) {
    let mut last = 0;
    for _ in 0..200 {
        last = left(world).await;
        // Each look takes some, and time gives some back.
        if last.abs_diff(about) <= 300 {
            return;
        }
        tokio::time::sleep(ms(10)).await;
    }
    panic!("{last} tokens are left, not about {about}");
}

#[track_caller]
fn refused(reply: &Reply, whose: &str) -> u64 {
    assert_eq!((reply.status, reply.error_code().as_str()), (429, "rate_limit_exceeded"), "{}", reply.text());
    let json = reply.json();
    assert_eq!(json["error"]["type"], "rate_limit_error");
    let message = json["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(whose) && message.contains("per minute"), "{message}");
    let (seconds, millis) = (number(reply, "retry-after"), number(reply, "retry-after-ms"));
    assert!(millis > 0 && seconds == millis.div_ceil(1000), "{seconds} s, {millis} ms");
    assert_eq!(reply.header("x-should-retry"), None);
    millis
}

#[tokio::test]
async fn requests_of_a_key() {
    let world = with_key(requests(3), SimConfig::default()).await;
    for remaining in [2, 1, 0] {
        let reply = ask(&world, "a", json!({ "stream": remaining == 1 })).await;
        assert_eq!(reply.status, 200);
        assert_eq!(number(&reply, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), remaining);
        assert!(reply.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), None, "tokens are not limited");
    }
    let reply = ask(&world, "a", json!({})).await;
    // One comes in every twenty seconds, and some of the first have passed.
    assert!((1..=20_000).contains(&refused(&reply, "this API key reached: 3 requests")));
    assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), 0);
    let other = ask(&world, "b", json!({})).await;
    assert_eq!((other.status, other.header("x-ratelimit-limit-requests")), (200, None));
    assert_eq!((world.requests(), world.totals().refused), (vec![4], 1));
    let page = world.gateway.metrics();
    for line in [
        "backstop_rate_limited_total{service=\"chat\",limit=\"key\",unit=\"requests\"} 1",
        "backstop_refused_total{code=\"rate_limit_exceeded\"} 1",
    ] {
        assert!(page.lines().any(|other| other == line), "no `{line}` in\n{page}");
    }
}

#[tokio::test]
async fn tokens_count_as_they_were_used() {
    let sim = SimConfig { tokens: 100, ..SimConfig::default() };
    let world = with_key(tokens(10_000), sim).await;
    // Whatever they might have taken, it was about a hundred each.
    for fields in [
        json!({ "max_tokens": 9000 }),
        json!({ "max_tokens": 9000, "stream": true }),
        json!({ "max_tokens": 9000, "stream": true, "stream_options": { "include_usage": true } }),
    ] {
        let reply = ask(&world, "a", fields).await;
        assert_eq!((reply.status, number(&reply, "x-ratelimit-limit-tokens")), (200, 10_000));
        assert!(number(&reply, "x-ratelimit-remaining-tokens") < 1000, "while it runs");
        until_left(&world, 9_700).await;
    }
}

#[tokio::test]
async fn what_did_not_come_is_given_back() {
    let sim = SimConfig { tokens: 5000, ..SimConfig::default() };
    let world = with_key(tokens(10_000), sim).await;
    for fault in ["status=500", "hangup=rst", "status=400", "cut=3;how=rst", "error_event=2"] {
        let headers = format!("authorization: Bearer sk-a\r\nx-sim-fault: {fault}\r\n");
        let fields = json!({ "max_tokens": 9000, "stream": true });
        call(world.addr, "POST", CHAT, &headers, &body(fields)).await;
        until_left(&world, 10_000).await;
    }
    // A client that leaves has had what it got, and the engine has read its prompt.
    let mut conn = Conn::open(world.addr).await;
    let long = "x".repeat(12_000);
    let fields = json!({ "max_tokens": 5000, "stream": true, "x": long });
    conn.send("POST", CHAT, "authorization: Bearer sk-a\r\nx-sim-fault: stall=1500\r\n", &body(fields)).await;
    conn.head().await.unwrap();
    conn.contents(1500).await;
    drop(conn);
    until_left(&world, 5_500).await;
}

#[tokio::test]
async fn a_debt_has_to_be_waited_for() {
    let sim = SimConfig { tokens: 2000, ..SimConfig::default() };
    let world = with_key(tokens(600), sim).await;
    // It does not say how much it wants, and gets far more than is usual.
    assert_eq!(ask(&world, "a", json!({})).await.status, 200);
    let reply = ask(&world, "a", json!({ "max_tokens": 1 })).await;
    let millis = refused(&reply, "600 tokens per minute");
    // 2,000 and the prompt were taken of 600; ten come in each second.
    assert!((130_000..160_000).contains(&millis), "{millis}");
    assert_eq!(number(&reply, "x-ratelimit-remaining-tokens"), 0);
    assert_eq!(world.requests(), [1]);
}

#[tokio::test]
async fn what_never_fits_is_no_reason_to_come_again() {
    let world = with_key(tokens(1000), SimConfig::default()).await;
    for fields in [
        json!({ "max_tokens": 5000 }),
        json!({ "max_tokens": 400, "n": 3 }),
        json!({ "max_tokens": 1e300 }),
        json!({ "max_completion_tokens": u64::MAX }),
        json!({ "x": "y".repeat(5000) }),
    ] {
        let reply = ask(&world, "a", fields).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "request_exceeds_rate_limit"));
        assert!(reply.text().contains("1000 tokens per minute: it can never be let in"), "{}", reply.text());
        assert_eq!((reply.header("retry-after"), reply.header("x-should-retry")), (None, Some("false")));
    }
    // What makes no sense counts as if it had not been said; whether it is right is the engine's to judge.
    for max_tokens in [json!(-5), json!("many"), json!(null)] {
        let reply = ask(&world, "a", json!({ "max_tokens": max_tokens })).await;
        assert!(!reply.text().contains("request_exceeds_rate_limit"), "{max_tokens}");
        assert!(number(&reply, "x-ratelimit-remaining-tokens") < 500);
        until_left(&world, 900).await;
    }
    // A picture is not its length in tokens.
    let picture = format!("data:image/png;base64,{}", "A".repeat(100_000));
    let picture =
        json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": picture } }] }]);
    let reply = ask(&world, "a", json!({ "max_tokens": 10, "messages": picture })).await;
    assert!(!reply.text().contains("request_exceeds_rate_limit"), "{}", reply.text());
}

#[tokio::test]
async fn users_of_a_tenant() {
    let mut world = with_service(|service| service.limits_per_user = requests(1)).await;
    let alice = json!({ "user": "alice" });
    let open = async |world: &World, fields: Value| call(world.addr, "POST", CHAT, "", &body(fields)).await;
    assert_eq!(open(&world, alice.clone()).await.status, 200);
    refused(&open(&world, alice.clone()).await, "this `user` reached: 1 requests");
    for others in
        [json!({ "user": "bob" }), json!({}), json!({ "user": "" }), json!({ "user": null }), json!({})]
    {
        assert_eq!(open(&world, others.clone()).await.status, 200, "{others}");
    }
    // Another tenant's alice is another.
    world.apply(|spec| {
        spec.keys = vec![limited("a", RateSpec::default()), limited("b", RateSpec::default())];
        spec.keys[1].tenant = Some("a".to_owned());
        spec.keys.push(limited("c", RateSpec::default()));
    });
    assert_eq!(ask(&world, "a", alice.clone()).await.status, 200);
    refused(&ask(&world, "b", alice.clone()).await, "this `user`");
    assert_eq!(ask(&world, "c", alice).await.status, 200);
}

fn overload(step: FallbackStep) -> FallbackSpec {
    FallbackSpec { step, when: When { failure: false, overload: true } }
}

#[tokio::test]
async fn a_services_own_limit_is_an_overload() {
    let mut world = with_service(|service| service.limits = requests(2)).await;
    world.apply(|spec| spec.keys = vec![limited("a", requests(100)), limited("b", RateSpec::default())]);
    assert_eq!(ask(&world, "b", json!({})).await.status, 200);
    let reply = ask(&world, "a", json!({})).await;
    assert_eq!(
        number(&reply, "x-ratelimit-limit-requests"),
        2,
        "of several limits the one with the least left"
    );
    let reply = ask(&world, "a", json!({})).await;
    refused(&reply, "the service `chat` reached: 2 requests");
    assert_eq!((world.totals().failed, world.totals().refused), (1, 0));
    // Nothing was taken from the key for it.
    world.apply(|spec| spec.services[0].fallback = vec![overload(FallbackStep::Static("busy".to_owned()))]);
    for remaining in [98, 97] {
        let reply = ask(&world, "a", json!({})).await;
        assert_eq!((reply.status, reply.header("x-backstop-degraded")), (200, Some("static")));
        assert_eq!(
            number(&reply, "x-ratelimit-remaining-requests"),
            remaining,
            "the key's limit counts all the same"
        );
    }
    assert_eq!(world.requests(), [2]);
}

/// The client's own limits are its own business: no ladder.
#[tokio::test]
async fn a_clients_own_limit_is_a_refusal() {
    let mut world = with_service(|service| {
        let when = When { failure: true, overload: true };
        service.fallback = vec![FallbackSpec { step: FallbackStep::Static("busy".to_owned()), when }];
    })
    .await;
    world.apply(|spec| spec.keys = vec![limited("a", requests(1))]);
    assert_eq!(ask(&world, "a", json!({})).await.status, 200);
    refused(&ask(&world, "a", json!({})).await, "this API key");
}

#[tokio::test]
async fn a_shorter_answer_may_fit() {
    let world = with_service(|service| {
        service.limits = tokens(1000);
        service.fallback = vec![overload(FallbackStep::MaxTokens(5))];
    })
    .await;
    let mut first = Conn::open(world.addr).await;
    first
        .send("POST", CHAT, "x-sim-fault: stall=2\r\n", &body(json!({ "stream": true, "max_tokens": 600 })))
        .await;
    first.head().await.unwrap();
    let second = call(world.addr, "POST", CHAT, "", &body(json!({ "max_tokens": 600 }))).await;
    assert_eq!((second.status, second.header("x-backstop-degraded")), (200, Some("max_tokens=5")));
}

/// A service that stands in has limits as well.
#[tokio::test]
async fn the_limits_of_another_service() {
    let mut world = with_service(|service| {
        service.limits = requests(1);
        service.fallback = vec![overload(FallbackStep::Service("small".to_owned()))];
    })
    .await;
    let other = ServiceSpec {
        name: "small".to_owned(),
        models: vec!["small".to_owned()],
        limits: requests(1),
        ..service(&world.sims)
    };
    world.apply(|spec| spec.services.push(other));
    world.until_all(backstop_core::health::State::Healthy).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let reply = call(world.addr, "POST", CHAT, "", &body(json!({}))).await;
        answers.push((reply.status, reply.header("x-backstop-degraded").map(str::to_owned)));
    }
    assert_eq!(answers, [(200, None), (200, Some("service=small".to_owned())), (429, None)]);
}

#[tokio::test]
async fn a_kept_answer_is_a_request_without_tokens() {
    let both = RateSpec { requests_per_minute: Some(9), tokens_per_minute: Some(10_000) };
    let mut world = with_key(both, SimConfig { tokens: 3000, ..SimConfig::default() }).await;
    world.apply(|spec| {
        let ttl = std::time::Duration::from_secs(60);
        spec.services[0].cache = Some(CacheSpec { max_bytes: 1 << 20, ttl, share_across_tenants: false });
    });
    let ask = async || ask(&world, "a", json!({ "temperature": 0, "max_tokens": 5000 })).await;
    let first = ask().await;
    until("it is settled", || world.totals().answered == 1).await;
    let mut last = 7_000;
    for remaining in [7, 6, 5] {
        let reply = ask().await;
        assert_eq!((reply.status, reply.header("x-backstop-cache")), (200, Some("hit")));
        assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), remaining);
        // While it is looked for, what it might take is taken.
        let now = number(&reply, "x-ratelimit-remaining-tokens") + 5_000;
        assert!(now + 100 >= last, "{now} after {last}");
        last = now;
    }
    assert_eq!(first.header("x-backstop-cache"), None);
    assert_eq!(world.requests(), [1]);
}

#[tokio::test]
async fn limits_change_with_the_table() {
    let mut world = with_key(requests(1), SimConfig::default()).await;
    let status = async |world: &World| ask(world, "a", json!({})).await.status;
    assert_eq!([status(&world).await, status(&world).await], [200, 429]);
    world.apply(|spec| spec.keys[0].limits = RateSpec::default());
    assert_eq!([status(&world).await, status(&world).await], [200, 200]);
    // A limit that is new begins with all of it.
    world.apply(|spec| spec.keys[0].limits = requests(2));
    assert_eq!([status(&world).await, status(&world).await, status(&world).await], [200, 200, 429]);
    // One that is lowered does not.
    world.apply(|spec| spec.keys[0].limits = requests(1));
    assert_eq!(status(&world).await, 429);
}

#[tokio::test]
async fn other_apis_count_as_well() {
    let world = with_key(tokens(10_000), SimConfig::default()).await;
    let send = async |path: &str, fields: Value| {
        let headers = "authorization: Bearer sk-a\r\ncontent-type: application/json\r\n";
        call(world.addr, "POST", path, headers, &body(fields)).await
    };
    let reply = send("/v1/embeddings", json!({ "input": "x".repeat(8000) })).await;
    assert_eq!(reply.status, 200);
    assert!((7_900..8_000).contains(&number(&reply, "x-ratelimit-remaining-tokens")), "no answer is counted");
    until("it is answered", || world.totals().answered == 1).await;
    let reply = send("/v1/completions", json!({ "prompt": "hi", "max_tokens": 9_999 })).await;
    assert_eq!(reply.error_code(), "request_exceeds_rate_limit");
}
