//! Who gets a request: policies, weights, sessions, tiers, and what is left when all seem broken.

use std::time::Duration;

use backstop_core::health::State;
use backstop_core::table::{BalancePolicy, InferenceSpec};
use backstop_engine_sim::{Dist, Fault, SimConfig};
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::{CHAT, Conn, chat, hi, until};
use crate::world::{LONG, TOKENS, World, ms, oracle, side_by_side};

/// So many plain chats, one after the other.
async fn chats(world: &World, count: usize, headers: &str) {
    let mut conn = Conn::open(world.addr).await;
    for _ in 0..count {
        conn.send("POST", CHAT, headers, &hi(false)).await;
        let reply = conn.reply().await;
        assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    }
}

#[tokio::test]
async fn every_policy_spreads_requests_as_it_should() {
    let third = 20..=40;
    let any = 1..=58;
    let cases = [
        (BalancePolicy::RoundRobin, [1.0, 1.0, 1.0], [20..=20, 20..=20, 20..=20]),
        // Weights are not its business.
        (BalancePolicy::RoundRobin, [5.0, 1.0, 1.0], [20..=20, 20..=20, 20..=20]),
        (BalancePolicy::WeightedRoundRobin, [3.0, 2.0, 1.0], [28..=32, 18..=22, 8..=12]),
        (BalancePolicy::LeastRequests, [1.0, 1.0, 1.0], [20..=20, 20..=20, 20..=20]),
        (BalancePolicy::Random, [1.0, 1.0, 1.0], [6..=40, 6..=40, 6..=40]),
        (BalancePolicy::Random, [10.0, 1.0, 1.0], [third.start() + 15..=60, 0..=20, 0..=20]),
        (BalancePolicy::PeakEwma, [1.0, 1.0, 1.0], [any.clone(), any.clone(), any.clone()]),
        (BalancePolicy::DynamicWeights, [1.0, 1.0, 1.0], [10..=30, 10..=30, 10..=30]),
    ];
    for (policy, weights, expected) in cases {
        let world = World::start(3, |service| {
            side_by_side(service);
            service.balance = policy;
            for (endpoint, weight) in service.versions[0].endpoints.iter_mut().zip(weights) {
                endpoint.weight = weight;
            }
        })
        .await;
        chats(&world, 60, "").await;
        let got = world.requests();
        assert_eq!(got.iter().sum::<usize>(), 60);
        let fits = got.iter().zip(&expected).all(|(got, range)| range.contains(got));
        assert!(fits, "{policy:?} with {weights:?}: {got:?}, not within {expected:?}");
    }
}

/// The load of a stream counts until its end, not until its head.
#[tokio::test]
async fn a_running_stream_counts_as_load() {
    for policy in [BalancePolicy::LeastRequests, BalancePolicy::PeakEwma] {
        let world = World::start(2, |service| {
            side_by_side(service);
            service.balance = policy;
        })
        .await;
        world.sims[0].set_fault(Fault::Stall { after: 2 });
        world.sims[1].set_fault(Fault::Stall { after: 2 });
        let mut streaming = Conn::open(world.addr).await;
        streaming.send("POST", CHAT, "", &hi(true)).await;
        assert_eq!(streaming.head().await.unwrap().status, 200);
        streaming.contents(2).await;
        for sim in &world.sims {
            sim.clear_faults();
        }
        let busy = usize::from(world.requests() == [0, 1]);
        assert_eq!((world.endpoint(busy).in_flight, world.endpoint(1 - busy).in_flight), (1, 0));
        if policy == BalancePolicy::LeastRequests {
            chats(&world, 10, "").await;
            assert_eq!((world.requests()[busy], world.requests()[1 - busy]), (1, 10));
        }
        drop(streaming);
        until("the load is gone", || world.endpoint(busy).in_flight == 0).await;
    }
}

#[tokio::test]
async fn a_session_stays_where_it_is() {
    let mut world = World::start(3, |service| {
        side_by_side(service);
        service.balance = BalancePolicy::Rendezvous;
        service.health.interval = ms(50);
        service.health.down = 1;
    })
    .await;
    let mut homes = Vec::new();
    for session in 0..30 {
        let before = world.requests();
        chats(&world, 2, &format!("x-session-id: s{session}\r\n")).await;
        // The name may come in the body as well.
        let body = json!({"model": "chat", "user": format!("s{session}"), "messages": [{"role": "user", "content": "hi"}]});
        let reply = crate::client::call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 200);
        let asked: Vec<usize> =
            world.requests().iter().zip(before).map(|(now, before)| now - before).collect();
        let home = asked.iter().position(|&asked| asked == 3);
        homes.push(home.unwrap_or_else(|| panic!("session {session} is spread: {asked:?}")));
    }
    for sim in 0..3 {
        assert!(homes.contains(&sim), "{homes:?}");
    }
    // One engine dies: its sessions move, the others stay.
    world.sims[0].kill().await;
    world.until_state(0, State::Unhealthy).await;
    for (session, &home) in homes.iter().enumerate() {
        let before = world.requests();
        chats(&world, 1, &format!("x-session-id: s{session}\r\n")).await;
        let moved = world.requests()[home] == before[home];
        assert_eq!(moved, home == 0, "session {session}");
    }
    // A new table changes nothing for sessions either.
    world.sims[0].restart().await.unwrap();
    world.until_state(0, State::Healthy).await;
    world.apply(|table| table.services[0].timeouts.total = Duration::from_secs(50));
    for (session, &home) in homes.iter().enumerate() {
        let before = world.requests();
        chats(&world, 1, &format!("x-session-id: s{session}\r\n")).await;
        assert_eq!(world.requests()[home], before[home] + 1, "session {session}");
    }
}

#[tokio::test]
async fn the_standby_serves_only_while_the_primary_is_gone() {
    let world = World::start(2, |service| {
        service.health.interval = ms(50);
        service.health.down = 1;
    })
    .await;
    chats(&world, 20, "").await;
    assert_eq!(world.requests(), [20, 0]);
    world.sims[0].kill().await;
    // From the very first request, before any check has noticed.
    chats(&world, 20, "").await;
    assert_eq!(world.requests(), [20, 20]);
    world.until_state(0, State::Unhealthy).await;
    chats(&world, 20, "").await;
    assert_eq!(world.requests(), [20, 40]);
    world.sims[0].restart().await.unwrap();
    world.until_state(0, State::Healthy).await;
    world.until_primary().await;
    chats(&world, 20, "").await;
    assert_eq!(world.requests(), [40, 40]);
    assert_eq!(world.totals().failed, 0);
}

#[tokio::test]
async fn broken_circuits_everywhere_are_better_than_none() {
    let world = World::start(2, |service| {
        service.breaker.failures = 1;
        service.breaker.open = LONG;
    })
    .await;
    for sim in &world.sims {
        sim.set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    }
    assert_eq!(chat(world.addr, false).await.status, 500);
    assert!(world.endpoints().iter().all(|it| it.breaker_open));
    for sim in &world.sims {
        sim.clear_faults();
    }
    chats(&world, 10, "").await;
}

/// Panic never goes so far as to ask engines that active checks have found dead.
#[tokio::test]
async fn unhealthy_engines_are_never_asked() {
    let world = World::start(2, |service| {
        service.health.interval = ms(50);
        service.health.down = 1;
    })
    .await;
    for sim in &world.sims {
        sim.set_fault(Fault::Health { status: 503 });
    }
    world.until_all(State::Unhealthy).await;
    let reply = chat(world.addr, true).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "no_healthy_endpoint"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!((reply.attempts(), world.requests()), (0, vec![0, 0]));
}

#[tokio::test]
async fn a_degraded_engine_gets_half_its_share() {
    let slow = SimConfig { ttft: Dist::Constant(ms(900)), ..SimConfig::default() };
    let world = World::unchecked(vec![SimConfig::default(), slow], |service| {
        side_by_side(service);
        service.health.interval = ms(50);
        service.health.down = 1;
        service.health.inference = Some(InferenceSpec { every: LONG, max_latency: ms(700) });
    })
    .await;
    world.until_state(1, State::Degraded).await;
    world.until_state(0, State::Healthy).await;
    assert!(world.endpoint(1).reason.starts_with("inference: a one-token chat took"));
    let mut running = JoinSet::new();
    for _ in 0..60 {
        let addr = world.addr;
        running.spawn(async move { assert_eq!(chat(addr, false).await.status, 200) });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    let got = world.requests();
    assert!((16..=24).contains(&got[1]), "{got:?}");
}

/// What only keeps work away for a moment, and is overruled when there is nothing else, is no reason to take the
/// whole gateway out of service.
#[tokio::test]
async fn passive_evidence_leaves_the_gateway_ready() {
    for status in [429, 500] {
        let world = World::start(1, |service| {
            service.breaker.failures = 1;
            service.retry.attempts = 0;
        })
        .await;
        world.sims[0].set_fault(Fault::Status { status, retry_after: Some(20), message: None });
        assert_eq!(chat(world.addr, true).await.status, status);
        world.sims[0].clear_faults();
        let ready = crate::client::call(world.addr, "GET", "/ready", "", b"").await;
        assert_eq!(ready.status, 200, "after {status}: {}", ready.text());
        chats(&world, 1, "").await;
    }
}
