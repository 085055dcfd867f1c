//! Engines that come and go: requests are answered, and states change no oftener than their thresholds say.

use backstop_core::health::State;
use backstop_core::table::ServiceSpec;
use backstop_engine_sim::{Dist, Fault, Rule, SimConfig};
use tokio::net::TcpStream;

use crate::client::{Reply, chat, until};
use crate::retry::check_whole;
use crate::stream_end::check_cut;
use crate::world::{World, ms};

fn watched(service: &mut ServiceSpec) {
    service.health.interval = ms(20);
    service.health.up = 2;
    service.health.down = 2;
}

/// Checks that fail now and then are no outage, however many there are.
#[tokio::test]
async fn single_failed_checks_change_nothing() {
    let world = World::start(1, watched).await;
    world.sims[0].set_fault(Fault::Flap { up: 1, down: 1, status: 503 });
    let before = world.sims[0].stats().health_checks;
    until("many checks", || world.sims[0].stats().health_checks > before + 20).await;
    check_whole(&chat(world.addr, true).await, true, "flapping");
    assert_eq!(world.health_changes(), ["starting → healthy: all checks pass"]);
}

/// Each change takes as many checks as its threshold says, and nobody notices while there is another engine.
#[tokio::test]
async fn flapping_health_moves_requests_and_loses_none() {
    let world = World::start(2, watched).await;
    world.sims[0].set_fault(Fault::Flap { up: 6, down: 6, status: 503 });
    for _ in 0..2 {
        for state in [State::Unhealthy, State::Healthy] {
            while world.state(0) != state {
                for stream in [true, false] {
                    check_whole(&chat(world.addr, stream).await, stream, "flapping");
                }
            }
        }
    }
    // Each was sent to one engine and no more.
    let sent: usize = world.requests().iter().sum();
    assert_eq!(sent as u64, world.totals().answered);
    let flapped = world.health_changes().into_iter().skip(1).filter(|change| !change.starts_with("starting"));
    let (mut down, mut up) = (0, 0);
    for change in flapped {
        match change.as_str() {
            "healthy → unhealthy: process: `/health` answered 503 Service Unavailable" => down += 1,
            "unhealthy → healthy: all checks pass" => up += 1,
            other => panic!("{other}"),
        }
        assert!(down == up || down == up + 1, "{down} down, {up} up");
    }
    assert!(up >= 2);
    assert_eq!(world.totals().failed, 0);
}

/// Alone there is nobody else to ask: whole answers or a clear refusal, nothing between.
#[tokio::test]
async fn flapping_alone_is_answered_or_refused() {
    let world = World::start(1, watched).await;
    world.sims[0].set_fault(Fault::Flap { up: 6, down: 6, status: 503 });
    let (mut whole, mut refused) = (0, 0);
    let mut stream = false;
    while whole < 5 || refused < 5 {
        stream = !stream;
        let reply = chat(world.addr, stream).await;
        if reply.status == 200 {
            check_whole(&reply, stream, "alone");
            whole += 1;
        } else {
            assert_eq!((reply.status, reply.error_code().as_str()), (503, "no_healthy_endpoint"));
            assert_eq!(reply.header("retry-after"), Some("1"));
            refused += 1;
        }
    }
}

#[tokio::test]
async fn slow_checks_pass_until_they_take_too_long() {
    let world = World::start(2, |service| {
        watched(service);
        service.health.timeout = ms(500);
    })
    .await;
    let before = world.sims[0].stats().health_checks;
    world.sims[0].set_fault(Fault::SlowHealth { delay: ms(20) });
    until("some checks", || world.sims[0].stats().health_checks > before + 5).await;
    assert_eq!(world.state(0), State::Healthy);
    world.sims[0].set_fault(Fault::SlowHealth { delay: ms(60_000) });
    world.until_state(0, State::Unhealthy).await;
    let reason = world.endpoint(0).reason;
    assert!(reason.starts_with("process: `/health`") && reason.contains("500ms"), "{reason}");
    // Nobody waits for a check.
    check_whole(&chat(world.addr, true).await, true, "slow health");
    assert_eq!((world.requests(), world.state(1)), (vec![0, 1], State::Healthy));
    world.sims[0].clear_faults();
    world.until_state(0, State::Healthy).await;
}

/// A process that dies every now and then, with the connections it has.
fn crashing() -> Rule {
    Rule::times(Fault::Refuse { up: ms(70), down: ms(50) }, 8)
}

/// Lets the last outage pass.
async fn over(world: &World) {
    while TcpStream::connect(world.sims[0].addr()).await.is_err() {
        tokio::time::sleep(ms(5)).await;
    }
    world.until_state(0, State::Healthy).await;
}

/// A whole answer, or the beginning of one and the truth.
#[track_caller]
fn check_honest(reply: &Reply, stream: bool) {
    if stream && reply.status == 200 && !reply.is_done() {
        check_cut(reply, &reply.content(), "upstream_disconnected", "crashed");
    } else {
        check_whole(reply, stream, "between crashes");
    }
}

#[tokio::test]
async fn crashes_cost_no_answer_while_there_is_another_engine() {
    let config = SimConfig { itl: Dist::Constant(ms(1)), ..SimConfig::default() };
    let world = World::of(vec![config; 2], watched).await;
    world.sims[0].set_fault(crashing());
    let mut stream = false;
    while !world.sims[0].faults().list().is_empty() {
        stream = !stream;
        check_honest(&chat(world.addr, stream).await, stream);
    }
    assert!(world.requests()[1] > 0, "{:?}", world.requests());
    assert_eq!(world.totals().failed, 0);
    over(&world).await;
    check_whole(&chat(world.addr, true).await, true, "afterwards");
    until("settled", || world.endpoints().iter().all(|it| it.in_flight == 0)).await;
}

#[tokio::test]
async fn crashes_of_the_only_engine_are_told() {
    let config = SimConfig { itl: Dist::Constant(ms(1)), ..SimConfig::default() };
    let world = World::of(vec![config], watched).await;
    world.sims[0].set_fault(crashing());
    let mut stream = false;
    while !world.sims[0].faults().list().is_empty() {
        stream = !stream;
        let reply = chat(world.addr, stream).await;
        match reply.status {
            200 => check_honest(&reply, stream),
            502 => {
                let code = reply.error_code();
                assert!(["upstream_unreachable", "upstream_disconnected"].contains(&code.as_str()), "{code}");
            }
            503 => assert_eq!(reply.error_code(), "no_healthy_endpoint"),
            other => panic!("{other}: {}", reply.text()),
        }
    }
    over(&world).await;
    check_whole(&chat(world.addr, true).await, true, "afterwards");
    until("settled", || world.endpoint(0).in_flight == 0).await;
}
