//! More requests than a service takes at a time: who waits, for how long, who is turned away, and that every place is
//! free again however its request ended.

use backstop_core::health::State;
use backstop_core::table::{
    Across, AdmissionLimit, AdmissionSpec, CacheSpec, FallbackSpec, FallbackStep, ResumeMode, ResumeSpec,
    RetrySpec, ServiceSpec, TableSpec, When,
};
use backstop_engine_sim::{Cut, Dist, Fault, SimConfig};
use tokio::task::JoinHandle;

use crate::client::{CHAT, Conn, Reply, call, chat, hi, soon, until};
use crate::identity::key;
use crate::world::{LONG, TOKENS, World, endpoint, ms, oracle, service};

fn fixed(limit: u32, queue: u32) -> Option<AdmissionSpec> {
    Some(AdmissionSpec { limit: AdmissionLimit::Fixed(limit), queue })
}

/// One engine behind so many places.
async fn one(limit: u32, queue: u32) -> World {
    World::start(1, |service| service.admission = fixed(limit, queue)).await
}

/// A gauge or counter of the service `chat`.
fn metric(world: &World, name: &str, labels: &str) -> u32 {
    of_service(world, "chat", name, labels)
}

fn of_service(world: &World, service: &str, name: &str, labels: &str) -> u32 {
    let page = world.gateway.metrics();
    let line = format!("backstop_admission_{name}{{service=\"{service}\"{labels}}} ");
    let value =
        page.lines().find_map(|it| it.strip_prefix(&line)).unwrap_or_else(|| panic!("{line}\n{page}"));
    value.parse().unwrap()
}

fn rejected(world: &World, reason: &str) -> u32 {
    metric(world, "rejected_total", &format!(",reason=\"{reason}\""))
}

async fn until_waiting(world: &World, count: u32) {
    until(&format!("{count} wait"), || metric(world, "queue_length", "") == count).await;
}

async fn until_free(world: &World) {
    until("all places are free", || metric(world, "in_flight", "") == 0).await;
    assert_eq!(metric(world, "queue_length", ""), 0);
}

/// A stream that neither goes on nor ends: it holds a place until it is dropped.
async fn hold(world: &World) -> Conn {
    hold_as(world, "").await
}

async fn hold_as(world: &World, headers: &str) -> Conn {
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, &format!("x-sim-fault: stall=2\r\n{headers}"), &hi(true)).await;
    assert_eq!(conn.head().await.unwrap().status, 200);
    conn.contents(2).await;
    conn
}

/// A request under a name that the engine's log shows.
fn ask(world: &World, name: &str, headers: &str) -> JoinHandle<Reply> {
    let (addr, headers) = (world.addr, format!("x-name: {name}\r\n{headers}"));
    tokio::spawn(async move { call(addr, "POST", CHAT, &headers, &hi(false)).await })
}

/// Asks, and waits until it waits.
async fn queue(world: &World, name: &str, headers: &str) -> JoinHandle<Reply> {
    let before = metric(world, "queue_length", "");
    let asked = ask(world, name, headers);
    until_waiting(world, before + 1).await;
    asked
}

/// Names in the order in which they reached the engine.
fn order(world: &World) -> Vec<String> {
    let log = world.sims[0].request_log();
    log.iter().filter_map(|request| request.header("x-name").map(str::to_owned)).collect()
}

fn overload(step: FallbackStep) -> FallbackSpec {
    FallbackSpec { step, when: When { failure: false, overload: true } }
}

fn busy() -> FallbackSpec {
    overload(FallbackStep::Static("busy".to_owned()))
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once() {
    let world = one(1, 1).await;
    let _first = hold(&world).await;
    let second = queue(&world, "second", "").await;
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "overloaded"));
    assert_eq!(reply.json()["error"]["type"], "overloaded_error");
    assert!(reply.text().contains("its queue is full"), "{}", reply.text());
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    assert_eq!(reply.header("x-should-retry"), None, "clients may come back");
    assert_eq!((reply.header("x-backstop-version"), reply.attempts()), (Some("v1"), 0));
    assert_eq!((world.requests(), rejected(&world, "queue_full")), (vec![1], 1));
    second.abort();
    until_waiting(&world, 0).await;
}

#[tokio::test]
async fn nobody_waits_longer_than_the_deadline() {
    let mut world = World::start(1, |service| {
        service.admission = fixed(1, 9);
        service.timeouts.queue = ms(50);
    })
    .await;
    let _first = hold(&world).await;
    let reply = soon("turned away", chat(world.addr, false)).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "overloaded"));
    assert!(reply.text().contains("no place became free within 50ms"), "{}", reply.text());
    assert_eq!((metric(&world, "queue_length", ""), rejected(&world, "waited_too_long")), (0, 1));
    // The whole request's deadline counts as well.
    world.apply(|spec| (spec.services[0].timeouts.queue, spec.services[0].timeouts.total) = (LONG, ms(50)));
    let reply = soon("timed out", chat(world.addr, false)).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (504, "total_timeout"));
    assert_eq!((metric(&world, "queue_length", ""), world.requests()), (0, vec![1]));
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_gone_at_once() {
    let world = one(1, 1).await;
    let first = hold(&world).await;
    let mut second = Conn::open(world.addr).await;
    second.send("POST", CHAT, "x-name: second\r\n", &hi(false)).await;
    until_waiting(&world, 1).await;
    drop(second);
    until_waiting(&world, 0).await;
    until("it is accounted for", || world.totals().cancelled == 1).await;
    let third = queue(&world, "third", "").await;
    drop(first);
    assert_eq!((third.await.unwrap().status, order(&world)), (200, vec!["third".to_owned()]));
    until_free(&world).await;
}

#[tokio::test]
async fn closing_ends_the_wait() {
    let world = one(1, 1).await;
    let _first = hold(&world).await;
    let second = queue(&world, "second", "").await;
    world.gateway.close();
    let reply = second.await.unwrap();
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "shutting_down"));
}

#[tokio::test]
async fn first_come_first_served_one_at_a_time() {
    let world = one(1, 9).await;
    let first = hold(&world).await;
    let mut waiting = Vec::new();
    for name in ["a", "b", "c"] {
        waiting.push(queue(&world, name, "").await);
    }
    assert_eq!(world.requests(), [1], "nothing was sent for those who wait");
    drop(first);
    for reply in waiting {
        assert_eq!(reply.await.unwrap().content(), oracle(TOKENS));
    }
    assert_eq!(order(&world), ["a", "b", "c"]);
    until_free(&world).await;
    assert_eq!((metric(&world, "limit", ""), metric(&world, "wait_seconds_count", "")), (1, 4));
    assert_eq!(metric(&world, "wait_seconds_bucket", ",le=\"0.002\""), 1, "one did not wait");
}

#[tokio::test]
async fn the_header_says_how_urgent_it_is() {
    let world = one(1, 4).await;
    let first = hold(&world).await;
    let mut waiting = Vec::new();
    for (name, priority) in [("low", "low"), ("odd", "urgent!"), ("normal", "normal"), ("high", "HIGH")] {
        waiting.push(queue(&world, name, &format!("x-priority: {priority}\r\n")).await);
    }
    // The queue is full: one with more right takes the place of the lowest.
    let late = ask(&world, "late", "");
    let displaced = waiting.remove(0).await.unwrap();
    assert_eq!((displaced.status, displaced.error_code().as_str()), (503, "overloaded"));
    assert_eq!(rejected(&world, "displaced"), 1);
    until_waiting(&world, 4).await;
    drop(first);
    assert_eq!(late.await.unwrap().status, 200);
    for reply in waiting {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(order(&world), ["high", "odd", "normal", "late"]);
}

#[tokio::test]
async fn tenants_get_their_turns_however_much_others_ask_for() {
    let mut world = one(2, 9).await;
    world.apply(|spec| {
        spec.keys = vec![key("a1", "sk-a1", None), key("a2", "sk-a2", None), key("b", "sk-b", None)];
        for key in &mut spec.keys[..2] {
            key.tenant = Some("a".to_owned());
        }
    });
    let with = |secret: &str| format!("authorization: Bearer {secret}\r\n");
    let first = hold_as(&world, &with("sk-a1")).await;
    let second = hold_as(&world, &with("sk-a2")).await;
    let mut waiting = Vec::new();
    for (name, secret) in [("a3", "sk-a1"), ("a4", "sk-a2"), ("b1", "sk-b")] {
        waiting.push(queue(&world, name, &with(secret)).await);
    }
    drop((first, second));
    for reply in waiting {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(order(&world)[0], "b1", "the tenant that has nothing in flight");
}

/// Whatever becomes of a request, its place is free again; and while its client reads, it is not.
#[tokio::test]
async fn every_place_is_free_again_however_its_request_ended() {
    let world = World::start(1, |service| {
        service.admission = fixed(2, 9);
        service.retry.attempts = 1;
        service.timeouts.first_token = ms(200);
        service.timeouts.response = ms(200);
        service.timeouts.inter_token = ms(200);
    })
    .await;
    for fault in [
        "",
        "status=500",
        "status=400",
        "status=429;retry_after=1",
        "hangup=rst",
        "no_answer",
        "cut=3;how=rst",
        "error_event=3",
        "stall=3",
        "html_page",
    ] {
        for stream in [false, true] {
            let headers = if fault.is_empty() { String::new() } else { format!("x-sim-fault: {fault}\r\n") };
            let reply = call(world.addr, "POST", CHAT, &headers, &hi(stream)).await;
            assert_ne!(reply.status, 0, "{fault}");
            until_free(&world).await;
        }
    }
    let stream = hold(&world).await;
    assert_eq!(metric(&world, "in_flight", ""), 1);
    drop(stream);
    until_free(&world).await;
}

#[tokio::test]
async fn a_crowd_is_served_never_more_than_the_limit_at_a_time() {
    let slow = SimConfig { ttft: Dist::Constant(ms(3)), tokens: 3, ..SimConfig::default() };
    let world = World::of(vec![slow], |service| service.admission = fixed(5, 512)).await;
    let mut crowd = tokio::task::JoinSet::new();
    for i in 0..200_usize {
        let addr = world.addr;
        crowd.spawn(async move {
            if i % 4 == 0 {
                // Some lose patience.
                let _ = tokio::time::timeout(ms(i as u64), chat(addr, i % 8 == 0)).await;
                return None;
            }
            Some(chat(addr, i % 2 == 0).await.status)
        });
    }
    let mut answered = 0;
    while let Some(status) = crowd.join_next().await {
        assert!(world.sims[0].in_flight() <= 5 && metric(&world, "in_flight", "") <= 5);
        if let Some(status) = status.unwrap() {
            assert_eq!(status, 200);
            answered += 1;
        }
    }
    assert_eq!(answered, 150);
    until_free(&world).await;
    let (in_place, next) = (hold(&world).await, chat(world.addr, false).await);
    assert_eq!(next.status, 200, "all places are there");
    drop(in_place);
}

#[tokio::test]
async fn a_lower_limit_throws_nobody_out() {
    let mut world = one(3, 9).await;
    let mut held = vec![hold(&world).await, hold(&world).await, hold(&world).await];
    world.apply(|spec| spec.services[0].admission = fixed(1, 9));
    let next = queue(&world, "next", "").await;
    for left in [2, 1] {
        drop(held.pop());
        until("a place is given back", || metric(&world, "in_flight", "") == left).await;
        assert_eq!(metric(&world, "queue_length", ""), 1, "there is no room yet");
    }
    drop(held.pop());
    assert_eq!(next.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_higher_limit_lets_in_who_waits() {
    let mut world = one(1, 9).await;
    let _first = hold(&world).await;
    let next = queue(&world, "next", "").await;
    world.apply(|spec| spec.services[0].admission = fixed(2, 9));
    assert_eq!(next.await.unwrap().status, 200);
}

#[tokio::test]
async fn without_admission_whoever_waits_goes_on() {
    let mut world = one(1, 9).await;
    let first = hold(&world).await;
    let next = queue(&world, "next", "").await;
    world.apply(|spec| spec.services[0].admission = None);
    assert_eq!(next.await.unwrap().status, 200);
    assert!(!world.gateway.metrics().contains("backstop_admission_"), "it has no figures any more");
    // What is in flight is still known when it comes back.
    world.apply(|spec| spec.services[0].admission = fixed(1, 9));
    let next = queue(&world, "next", "").await;
    // And a service that goes keeps nobody waiting.
    let mut gone = service(&world.sims);
    (gone.name, gone.models) = ("other".to_owned(), vec!["other".to_owned()]);
    world.apply(|spec| spec.services = vec![gone]);
    let reply = next.await.unwrap();
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "no_healthy_endpoint"));
    drop(first);
}

#[tokio::test]
async fn further_attempts_need_no_further_place() {
    let world = World::start(2, |service| {
        service.admission = fixed(1, 0);
        service.resume = ResumeSpec {
            attempts: 2,
            modes: vec![ResumeMode::Continue],
            across: vec![Across::Version, Across::Stable],
        };
    })
    .await;
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS), "retried");
    world.sims[0].set_fault(Fault::Cut { after: 5, how: Cut::Rst, mid_event: false });
    until_free(&world).await;
    assert_eq!(chat(world.addr, true).await.content(), oracle(TOKENS), "resumed");
    until_free(&world).await;
}

/// Service `chat` on the first engine, `small` on the second, each with so many places.
async fn two_services(
    chat: Option<AdmissionSpec>,
    small: Option<AdmissionSpec>,
    fallback: Vec<FallbackSpec>,
) -> World {
    let mut world = World::start(2, |_| {}).await;
    let other = ServiceSpec {
        name: "small".to_owned(),
        models: vec!["small".to_owned()],
        admission: small,
        ..service(&world.sims[1..])
    };
    let own = endpoint(&world.sims[0], 0);
    world.apply(|spec: &mut TableSpec| {
        spec.services[0].versions[0].endpoints = vec![own];
        spec.services[0].admission = chat;
        spec.services[0].fallback = fallback;
        // No budget for second tries beyond the three that there always are.
        spec.services[0].retry =
            RetrySpec { attempts: 0, budget: 0.0, backoff: ms(2), retry_after_max: ms(0) };
        spec.services.push(other);
    });
    world.until_all(State::Healthy).await;
    world
}

fn degraded(reply: &Reply) -> Option<&str> {
    reply.header("x-backstop-degraded")
}

#[tokio::test]
async fn an_overload_goes_down_the_ladder() {
    let ladder = vec![
        FallbackSpec {
            step: FallbackStep::Static("broken".to_owned()),
            when: When { failure: true, overload: false },
        },
        overload(FallbackStep::MaxTokens(5)),
        overload(FallbackStep::Service("small".to_owned())),
        busy(),
    ];
    let world = two_services(fixed(1, 0), fixed(1, 512), ladder).await;
    let first = hold(&world).await;
    // Not the same service with fewer tokens: it is full.
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.content(), degraded(&reply)), (oracle(TOKENS), Some("service=small")));
    until("the place in `small` is free", || of_service(&world, "small", "in_flight", "") == 0).await;
    assert_eq!(world.requests(), [1, 1]);
    // Nobody waits a second time.
    let mut other = Conn::open(world.addr).await;
    let small = String::from_utf8(hi(true)).unwrap().replace("chat", "small");
    other.send("POST", CHAT, "x-sim-fault: stall=2\r\n", small.as_bytes()).await;
    other.head().await.unwrap();
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, degraded(&reply)), (200, Some("static")));
    assert_eq!(of_service(&world, "small", "rejected_total", ",reason=\"no_room\""), 1);
    drop(first);
    until_free(&world).await;
    assert_eq!(degraded(&chat(world.addr, true).await), None);
}

/// A first try of its own elsewhere is no second try: the budget for those does not bound it.
#[tokio::test]
async fn going_elsewhere_at_once_costs_no_budget() {
    let world =
        two_services(fixed(1, 0), fixed(64, 0), vec![overload(FallbackStep::Service("small".to_owned()))])
            .await;
    let _first = hold(&world).await;
    world.sims[1].set_fault(Fault::SlowFirstToken { delay: ms(300) });
    let asked: Vec<_> = (0..20).map(|_| ask(&world, "x", "")).collect();
    for reply in asked {
        assert_eq!(degraded(&reply.await.unwrap()), Some("service=small"));
    }
}

/// A request has one place: where its answer comes from.
#[tokio::test]
async fn a_request_that_is_answered_elsewhere_holds_its_place_there() {
    let anyway = FallbackSpec {
        step: FallbackStep::Service("small".to_owned()),
        when: When { failure: true, overload: true },
    };
    let world = two_services(fixed(1, 0), fixed(1, 0), vec![anyway]).await;
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    world.sims[1].set_fault(Fault::Stall { after: 2 });
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    let places =
        |world: &World| (metric(world, "in_flight", ""), of_service(world, "small", "in_flight", ""));
    assert_eq!(places(&world), (0, 1));
    drop(conn);
    until("both are free", || places(&world) == (0, 0)).await;
}

#[tokio::test]
async fn a_stream_is_carried_on_elsewhere_only_where_there_is_room() {
    let elsewhere = vec![overload(FallbackStep::Service("small".to_owned()))];
    let mut world = two_services(fixed(1, 0), fixed(1, 0), elsewhere).await;
    world.apply(|spec| {
        spec.services[0].resume =
            ResumeSpec { attempts: 2, modes: vec![ResumeMode::Continue], across: vec![Across::Fallback] };
    });
    let cut = Fault::Cut { after: 5, how: Cut::Rst, mid_event: false };
    world.sims[0].set_fault(cut);
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.content(), reply.is_done()), (oracle(TOKENS), true));
    let small = |world: &World| of_service(world, "small", "in_flight", "");
    until("it is free", || small(&world) == 0).await;

    let mut conn = Conn::open(world.addr).await;
    let body = String::from_utf8(hi(true)).unwrap().replace("chat", "small");
    conn.send("POST", CHAT, "x-sim-fault: stall=2\r\n", body.as_bytes()).await;
    conn.head().await.unwrap();
    let reply = chat(world.addr, true).await;
    let last: serde_json::Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "upstream_disconnected");
    drop(conn);
    until("all is free", || small(&world) == 0 && metric(&world, "in_flight", "") == 0).await;
}

#[tokio::test]
async fn an_adaptive_limit_grows_with_use_and_shrinks_when_answers_come_later() {
    let quick = SimConfig { ttft: Dist::Constant(ms(20)), tokens: 1, ..SimConfig::default() };
    let world = World::of(vec![quick], |service| {
        service.admission = Some(AdmissionSpec { limit: AdmissionLimit::Adaptive { max: 200 }, queue: 512 });
    })
    .await;
    assert_eq!(metric(&world, "limit", ""), 20);
    let crowd: Vec<_> = (0..60)
        .map(|i| {
            let addr = world.addr;
            tokio::spawn(async move {
                loop {
                    assert_eq!(chat(addr, i % 2 == 0).await.status, 200);
                }
            })
        })
        .collect();
    // Far enough to have learnt what is usual.
    until("it grows", || metric(&world, "limit", "") > 40).await;
    world.sims[0].set_fault(Fault::SlowFirstToken { delay: ms(400) });
    until("it shrinks", || metric(&world, "limit", "") < 35).await;
    for client in crowd {
        client.abort();
    }
    until_free(&world).await;
}

#[tokio::test]
async fn a_kept_answer_needs_no_place() {
    let world = World::start(1, |service| {
        service.admission = fixed(1, 0);
        service.cache = Some(CacheSpec { max_bytes: 1 << 20, ttl: LONG, share_across_tenants: false });
    })
    .await;
    let cold = String::from_utf8(hi(false)).unwrap().replacen('{', "{\"temperature\":0,", 1);
    let ask = async || call(world.addr, "POST", CHAT, "", cold.as_bytes()).await;
    assert_eq!(ask().await.content(), oracle(TOKENS));
    until_free(&world).await;
    let _first = hold(&world).await;
    let reply = ask().await;
    assert_eq!((reply.header("x-backstop-cache"), reply.content()), (Some("hit"), oracle(TOKENS)));
    assert_eq!(chat(world.addr, false).await.error_code(), "overloaded", "what is new does");
}

#[tokio::test]
async fn each_service_has_its_own_places() {
    let world = two_services(fixed(1, 0), None, Vec::new()).await;
    let _first = hold(&world).await;
    let small = String::from_utf8(hi(false)).unwrap().replace("chat", "small");
    for _ in 0..3 {
        assert_eq!(call(world.addr, "POST", CHAT, "", small.as_bytes()).await.status, 200);
    }
    assert_eq!(chat(world.addr, false).await.error_code(), "overloaded");
    let line = "backstop_errors_total{service=\"chat\",version=\"v1\",code=\"overloaded\"} 1";
    assert!(world.gateway.metrics().contains(line), "{}", world.gateway.metrics());
}
