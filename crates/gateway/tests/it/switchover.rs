//! Endpoints that are taken out while streams run on them: these end there in time, or go on elsewhere.

use std::time::Duration;

use backstop_core::health::State;
use backstop_core::table::{Duty, ServiceSpec};
use backstop_engine_sim::{Dist, Fault, SimConfig};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::client::{CHAT, Conn, Reply, hi, until};
use crate::resume::{resumes, seamless};
use crate::world::{LONG, TOKENS, World, ms, oracle};

/// About three seconds for an answer.
fn slow() -> SimConfig {
    SimConfig { itl: Dist::Constant(ms(50)), ..SimConfig::default() }
}

fn patient(service: &mut ServiceSpec) {
    resumes(service);
    service.timeouts.inter_token = LONG;
    service.failover.drain = ms(100);
}

async fn world(spares: usize) -> World {
    let sims = [vec![slow()], vec![SimConfig::default(); spares]].concat();
    World::of(sims, patient).await
}

/// A stream that has begun to flow on the first engine.
async fn flowing(world: &World, fields: Value) -> JoinHandle<Reply> {
    let mut body: Value = serde_json::from_slice(&hi(true)).unwrap();
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", body.to_string().as_bytes()).await;
    let mut reply = conn.head().await.unwrap();
    reply.body = conn.contents(2).await;
    assert_eq!(world.requests()[0], 1);
    tokio::spawn(async move {
        conn.body(&mut reply).await;
        reply
    })
}

fn order(world: &mut World, duty: Duty) {
    world.apply(|spec| spec.services[0].versions[0].endpoints[0].duty = duty);
}

#[tokio::test]
async fn when_its_time_is_over_the_rest_comes_from_elsewhere() {
    let mut world = world(1).await;
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Draining);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1]);
    until("nothing runs on it", || world.endpoint(0).in_flight == 0).await;
    // Nobody is to blame.
    let failures = "backstop_attempts_total{service=\"chat\",version=\"v1\",endpoint=\"";
    let failures = format!("{failures}{}\",outcome=\"failure\"}} 0", world.sims[0].url());
    let metrics = world.gateway.metrics();
    assert!(metrics.lines().any(|line| line == failures), "{metrics}");
}

#[tokio::test]
async fn isolated_is_left_without_delay() {
    let mut world = world(1).await;
    world.apply(|spec| spec.services[0].failover.drain = LONG);
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Isolated);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1]);
}

#[tokio::test]
async fn what_leaves_the_table_is_drained_too() {
    let mut world = world(1).await;
    let stream = flowing(&world, json!({})).await;
    world.apply(|spec| _ = spec.services[0].versions[0].endpoints.remove(0));
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1]);
}

#[tokio::test]
async fn within_its_time_a_stream_ends_where_it_is() {
    let mut world = world(1).await;
    world.apply(|spec| spec.services[0].failover.drain = LONG);
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Draining);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 0]);
}

#[tokio::test]
async fn a_restored_endpoint_keeps_its_streams() {
    let mut world = world(1).await;
    world.apply(|spec| spec.services[0].failover.drain = ms(700));
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Draining);
    order(&mut world, Duty::Active);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 0]);
}

/// It still serves: nothing is lost by letting it.
#[tokio::test]
async fn what_can_not_go_on_elsewhere_ends_where_it_is() {
    for (spares, fields) in [(1, json!({ "tool_choice": "required", "tools": [] })), (0, json!({}))] {
        let mut world = world(spares).await;
        let stream = flowing(&world, fields).await;
        order(&mut world, Duty::Isolated);
        seamless(&stream.await.unwrap(), &oracle(TOKENS));
        assert_eq!(world.requests()[0], 1);
        assert_eq!(world.requests().iter().sum::<usize>(), 1);
    }
}

#[tokio::test]
async fn if_nobody_can_take_over_the_stream_goes_on_where_it_was() {
    let mut world = world(2).await;
    world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    world.sims[2].set_fault(Fault::Cut { after: 0, how: backstop_engine_sim::Cut::Rst, mid_event: false });
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Isolated);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1, 1], "both were asked");
    assert_eq!(world.totals().cut, 0);
}

#[tokio::test]
async fn a_silent_stream_of_an_endpoint_that_is_found_dead_goes_on_elsewhere() {
    let world = World::start(2, |service| {
        patient(service);
        service.health.interval = ms(30);
        service.health.down = 1;
    })
    .await;
    world.sims[0].set_fault(Fault::Stall { after: 7 });
    let stream = flowing(&world, json!({})).await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    world.until_state(0, State::Unhealthy).await;
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1]);
}

/// Checks may be wrong, or the port that they ask.
#[tokio::test]
async fn a_stream_that_flows_is_not_taken_from_an_endpoint_that_fails_its_checks() {
    let world = World::of(vec![slow(), SimConfig::default()], |service| {
        patient(service);
        service.health.interval = ms(30);
        service.health.down = 1;
    })
    .await;
    let stream = flowing(&world, json!({})).await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    world.until_state(0, State::Unhealthy).await;
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 0]);
}

#[tokio::test]
async fn requests_that_wait_for_their_first_token_move_when_the_time_is_over() {
    let mut world = world(1).await;
    world.sims[0].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    until("the request arrives", || world.requests() == [1, 0]).await;
    order(&mut world, Duty::Draining);
    let reply = tokio::time::timeout(Duration::from_secs(20), conn.reply()).await.unwrap();
    seamless(&reply, &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1]);
}

/// Fifty streams, and not one notices.
#[tokio::test]
async fn everybody_moves() {
    let mut world = world(2).await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut conn = Conn::open(world.addr).await;
        streams.push(tokio::spawn(async move {
            conn.send("POST", CHAT, "", &hi(true)).await;
            conn.reply().await
        }));
    }
    until("all flow", || world.requests() == [50, 0, 0]).await;
    order(&mut world, Duty::Draining);
    for stream in streams {
        seamless(&stream.await.unwrap(), &oracle(TOKENS));
    }
    assert_eq!(world.requests()[1..].iter().sum::<usize>(), 50);
    assert_eq!((world.totals().cut, world.totals().failed), (0, 0));
}

/// As in a rolling upgrade: what orders cost is not what faults may cost.
#[tokio::test]
async fn orders_use_up_no_attempts() {
    let mut world = World::of(vec![slow(); 3], |service| {
        patient(service);
        service.resume.attempts = 1;
    })
    .await;
    let stream = flowing(&world, json!({})).await;
    for (endpoint, asked) in [(0, [1, 1, 0]), (1, [1, 1, 1])] {
        world.apply(|spec| spec.services[0].versions[0].endpoints[endpoint].duty = Duty::Isolated);
        until("it has moved", || world.requests() == asked).await;
    }
    world.apply(|spec| spec.services[0].versions[0].endpoints[0].duty = Duty::Active);
    world.until_state(0, State::Healthy).await;
    until("it flows", || world.endpoint(2).in_flight == 1 && world.endpoint(1).in_flight == 0).await;
    world.sims[2].kill().await;
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests()[0], 2);
}

#[tokio::test]
async fn a_move_that_failed_does_not_harm_the_next_resume() {
    let mut world = world(1).await;
    world.sims[1].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    let stream = flowing(&world, json!({})).await;
    order(&mut world, Duty::Isolated);
    until("the other was asked", || world.requests() == [1, 1]).await;
    world.sims[1].clear_faults();
    world.sims[0].kill().await;
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests()[1], 2);
}

#[tokio::test]
async fn a_request_that_has_no_other_attempt_is_answered_where_it_is() {
    let late = SimConfig { ttft: Dist::Constant(ms(2500)), ..SimConfig::default() };
    let mut world = World::of(vec![late, SimConfig::default()], |service| {
        patient(service);
        service.retry.attempts = 0;
    })
    .await;
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(false)).await;
    until("the request arrives", || world.requests() == [1, 0]).await;
    order(&mut world, Duty::Isolated);
    let reply = conn.reply().await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    assert_eq!(world.requests(), [1, 0]);
}

#[tokio::test]
async fn requests_move_when_all_endpoints_are_replaced() {
    let mut world = world(1).await;
    world.apply(|spec| _ = spec.services[0].versions[0].endpoints.pop());
    world.sims[0].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(false)).await;
    until("the request arrives", || world.requests() == [1, 0]).await;
    let other = crate::world::endpoint(&world.sims[1], 0);
    world.apply(|spec| spec.services[0].versions[0].endpoints = vec![other]);
    let reply = conn.reply().await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
}

#[tokio::test]
async fn the_table_may_change_while_a_stream_is_carried_on() {
    let late = SimConfig { ttft: Dist::Constant(ms(2500)), ..SimConfig::default() };
    let mut world = World::of(vec![slow(), late, SimConfig::default()], patient).await;
    let stream = flowing(&world, json!({})).await;
    world.sims[0].kill().await;
    until("the second is asked", || world.requests()[1] == 1).await;
    // A reload changes nothing; that the second one is taken out leads to the third.
    world.apply(|spec| spec.services[0].retry.attempts = 1);
    world.apply(|spec| spec.services[0].versions[0].endpoints[1].duty = Duty::Isolated);
    seamless(&stream.await.unwrap(), &oracle(TOKENS));
    assert_eq!(world.requests(), [1, 1, 1]);
}

#[tokio::test]
async fn a_client_that_leaves_during_a_move_ends_both() {
    let mut world = world(1).await;
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    conn.contents(2).await;
    order(&mut world, Duty::Isolated);
    until("the other is asked", || world.requests() == [1, 1]).await;
    assert_eq!(world.endpoint(0).in_flight, 1, "it keeps the stream until then");
    drop(conn);
    until("nothing is in flight", || world.endpoints().iter().all(|it| it.in_flight == 0)).await;
    until("it counts as cancelled", || world.totals().cancelled == 1).await;
}
