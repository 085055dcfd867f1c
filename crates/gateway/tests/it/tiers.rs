//! Priorities: who has the work, how it moves to a standby, and how it comes back.

use backstop_core::event::What;
use backstop_core::health::State;
use backstop_core::standby::Stage;
use backstop_core::table::{Failback, InferenceSpec, ServiceSpec};
use backstop_engine_sim::{Dist, Fault, SimConfig};

use crate::client::{chat, until};
use crate::world::{LONG, World, ms};

/// Fails its checks at once, is back at once, and has to be stable for a while.
fn watched(service: &mut ServiceSpec) {
    service.health.interval = ms(20);
    service.health.down = 1;
    service.failover.stable_for = ms(400);
    service.failover.ramp = vec![0.5, 1.0];
}

/// Every change so far: stage and share.
fn moves(world: &World) -> Vec<(Stage, f64)> {
    let events = world.gateway.events_after(0).into_iter();
    let moves = events.filter_map(|event| match event.what {
        What::Failover { service, version, tier, stage, share, reason } => {
            assert_eq!((&*service, &*version, &*tier), ("chat", "v1", "priority 0"));
            assert!(!reason.is_empty());
            Some((stage, share))
        }
        _ => None,
    });
    moves.collect()
}

fn stage(world: &World) -> Stage {
    world.gateway.status().services[0].versions[0].tiers[0].stage
}

async fn until_stage(world: &World, wanted: Stage) {
    until(&format!("{wanted}"), || stage(world) == wanted).await;
}

/// A world whose standby has the work, though the primary is well again.
async fn away(change: impl FnOnce(&mut ServiceSpec)) -> World {
    let world = World::start(2, |service| {
        watched(service);
        change(service);
    })
    .await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    until_stage(&world, Stage::Standby).await;
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
    world
}

/// Asks until `wanted`, for no failure.
async fn ask_until(world: &World, wanted: Stage) {
    while stage(world) != wanted {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
}

/// Where the next requests go.
async fn sent(world: &World, requests: usize) -> Vec<usize> {
    let before = world.requests();
    for _ in 0..requests {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    world.requests().iter().zip(before).map(|(now, before)| now - before).collect()
}

#[tokio::test]
async fn a_dead_primary_comes_back_step_by_step() {
    let world = World::start(2, watched).await;
    assert_eq!(sent(&world, 10).await, [10, 0]);
    world.sims[0].set_fault(Fault::Health { status: 503 });
    until_stage(&world, Stage::Standby).await;
    assert_eq!(sent(&world, 10).await, [0, 10]);
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
    assert_eq!(sent(&world, 10).await, [0, 10], "it has to be stable first");
    ask_until(&world, Stage::Returning).await;
    let both = sent(&world, 40).await;
    assert!(both[0] > 5 && both[1] > 5, "{both:?}");
    ask_until(&world, Stage::Primary).await;
    assert_eq!(sent(&world, 10).await, [10, 0]);
    let all = [(Stage::Standby, 0.0), (Stage::Returning, 0.5), (Stage::Primary, 1.0)];
    assert_eq!(moves(&world), all);
    assert_eq!((world.totals().failed, world.totals().cut), (0, 0));
}

#[tokio::test]
async fn a_return_that_fails_is_taken_back() {
    let world = World::start(2, watched).await;
    world.sims[0].set_fault(Fault::Health { status: 503 });
    until_stage(&world, Stage::Standby).await;
    // Its checks pass, its answers don't.
    world.sims[0].clear_faults();
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    until_stage(&world, Stage::Returning).await;
    ask_until(&world, Stage::Standby).await;
    let failed = world.gateway.status().services[0].versions[0].tiers[0].reason.clone();
    assert!(failed.starts_with("it failed: ") && failed.ends_with(" requests"), "{failed}");
    assert_eq!(sent(&world, 10).await, [0, 10]);
    assert_eq!(world.totals().failed, 0, "second attempts have answered");
}

#[tokio::test]
async fn a_degraded_primary_is_left_step_by_step() {
    let slow = SimConfig { ttft: Dist::Constant(ms(600)), ..SimConfig::default() };
    let world = World::unchecked(vec![slow, SimConfig::default()], |service| {
        watched(service);
        service.health.inference = Some(InferenceSpec { every: ms(50), max_latency: ms(400) });
    })
    .await;
    world.until_state(1, State::Healthy).await;
    world.until_state(0, State::Degraded).await;
    until_stage(&world, Stage::Leaving).await;
    while world.requests().contains(&0) {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    ask_until(&world, Stage::Standby).await;
    assert_eq!(sent(&world, 10).await, [0, 10]);
    assert_eq!(moves(&world), [(Stage::Leaving, 0.5), (Stage::Standby, 0.0)]);
}

#[tokio::test]
async fn with_manual_failback_an_operator_decides() {
    let world = World::start(2, |service| {
        watched(service);
        service.failover.failback = Failback::Manual;
        service.failover.stable_for = ms(50);
    })
    .await;
    let failback = || world.gateway.fail_back("chat");
    assert_eq!(failback().unwrap_err().to_string(), "nothing of `chat` has moved to a standby");
    world.sims[0].set_fault(Fault::Health { status: 503 });
    until_stage(&world, Stage::Standby).await;
    assert_eq!(failback().unwrap_err().to_string(), "priority 0 of version `v1` is down");
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
    assert_eq!(sent(&world, 50).await, [0, 50]);
    tokio::time::sleep(ms(300)).await;
    assert_eq!(stage(&world), Stage::Standby, "stable for long enough, but nobody has said so");
    assert_eq!(failback().unwrap(), ["priority 0 of version `v1`"]);
    assert_eq!(stage(&world), Stage::Returning);
    let unknown = world.gateway.fail_back("nobody").unwrap_err();
    assert_eq!(unknown.to_string(), "there is no service `nobody`");
    ask_until(&world, Stage::Primary).await;
}

#[tokio::test]
async fn a_dead_standby_is_left_at_once() {
    let world = away(|service| service.failover.stable_for = LONG).await;
    world.sims[1].set_fault(Fault::Health { status: 503 });
    world.until_state(1, State::Unhealthy).await;
    assert_eq!(sent(&world, 10).await, [10, 0]);
    until_stage(&world, Stage::Primary).await;
}

/// What is known of tiers outlives a reload, as what is known of endpoints does.
#[tokio::test]
async fn a_reload_does_not_fail_back() {
    let mut world = away(|service| service.failover.stable_for = LONG).await;
    world.apply(|spec| spec.services[0].retry.attempts = 1);
    assert_eq!(sent(&world, 10).await, [0, 10]);
    let metrics = world.gateway.metrics();
    let share = "backstop_tier_share_ratio{service=\"chat\",version=\"v1\",tier=\"priority 0\"} 0";
    assert!(metrics.lines().any(|line| line == share), "{metrics}");
    // A shorter time counts at once.
    world.apply(|spec| spec.services[0].failover.stable_for = ms(1));
    ask_until(&world, Stage::Primary).await;
}

/// An operator who drains a primary moves its work; taken back, it comes back as after a failure.
#[tokio::test]
async fn draining_a_primary_is_a_switch_over() {
    let mut world = World::start(2, watched).await;
    let duty = |duty| {
        move |spec: &mut backstop_core::table::TableSpec| {
            spec.services[0].versions[0].endpoints[0].duty = duty;
        }
    };
    world.apply(duty(backstop_core::table::Duty::Draining));
    assert_eq!(sent(&world, 10).await, [0, 10]);
    until_stage(&world, Stage::Standby).await;
    world.apply(duty(backstop_core::table::Duty::Active));
    ask_until(&world, Stage::Returning).await;
    ask_until(&world, Stage::Primary).await;
    assert_eq!(sent(&world, 10).await, [10, 0]);
}

/// Streams take a while to prove anything, and until then a breaker that has been open lets nobody else through.
#[tokio::test]
async fn a_return_is_not_undone_by_its_first_request() {
    let slow = SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() };
    let world = World::of(vec![slow.clone(), slow], |service| {
        watched(service);
        service.breaker = backstop_core::table::BreakerSpec { failures: 1, open: ms(10_000) };
    })
    .await;
    world.sims[0].kill().await;
    assert_eq!(chat(world.addr, true).await.status, 200);
    assert!(world.endpoint(0).breaker_open);
    until_stage(&world, Stage::Standby).await;
    world.sims[0].restart().await.unwrap();
    let mut streams = tokio::task::JoinSet::new();
    while stage(&world) != Stage::Primary {
        let addr = world.addr;
        streams.spawn(async move { chat(addr, true).await.status });
        tokio::time::sleep(ms(20)).await;
    }
    assert!(streams.join_all().await.iter().all(|status| *status == 200));
    let all = [(Stage::Standby, 0.0), (Stage::Returning, 0.5), (Stage::Primary, 1.0)];
    assert_eq!(moves(&world), all);
}

/// What a standby that was taken away had is forgotten with it.
#[tokio::test]
async fn another_standby_begins_without_work() {
    let mut world = away(|service| service.failover.failback = Failback::Manual).await;
    let standby = crate::world::endpoint(&world.sims[1], 1);
    world.apply(|spec| _ = spec.services[0].versions[0].endpoints.pop());
    assert_eq!(sent(&world, 5).await, [5, 0]);
    world.apply(|spec| spec.services[0].versions[0].endpoints.push(standby));
    world.until_state(1, State::Healthy).await;
    assert_eq!(sent(&world, 5).await, [5, 0]);
}
