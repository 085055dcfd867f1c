//! What operators order: drain, isolate, restore; and which regions come first.

use backstop_core::health::State;
use backstop_core::table::{Duty, RegionMode, RegionSpec};
use backstop_engine_sim::{Dist, Fault, SimConfig};

use crate::client::{CHAT, Conn, End, chat, hi};
use crate::world::{TOKENS, World, ms, oracle, side_by_side};

fn order(world: &mut World, endpoint: usize, duty: Duty) {
    world.apply(|spec| spec.services[0].versions[0].endpoints[endpoint].duty = duty);
}

#[tokio::test]
async fn a_draining_endpoint_ends_what_it_has_and_gets_nothing_new() {
    let slow = SimConfig { itl: Dist::Constant(ms(20)), ..SimConfig::default() };
    let mut world = World::of(vec![slow, SimConfig::default()], |_| {}).await;
    let mut streaming = Conn::open(world.addr).await;
    streaming.send("POST", CHAT, "", &hi(true)).await;
    let mut reply = streaming.head().await.unwrap();
    reply.body = streaming.contents(2).await;
    order(&mut world, 0, Duty::Draining);
    assert_eq!((world.state(0), world.endpoint(0).in_flight), (State::Draining, 1));
    for _ in 0..5 {
        assert_eq!(chat(world.addr, false).await.status, 200);
    }
    assert_eq!(world.requests(), [1, 5]);
    streaming.body(&mut reply).await;
    assert_eq!((reply.end, reply.content()), (End::Complete, oracle(TOKENS)));
    assert_eq!(world.endpoint(0).in_flight, 0);

    order(&mut world, 0, Duty::Active);
    world.until_state(0, State::Healthy).await;
    world.until_primary().await;
    assert_eq!(chat(world.addr, false).await.status, 200);
    assert_eq!(world.requests(), [2, 5]);
}

#[tokio::test]
async fn what_an_isolated_endpoint_has_not_answered_moves_elsewhere() {
    let mut world = World::start(2, |_| {}).await;
    world.sims[0].set_fault(Fault::Stall { after: 0 });
    let mut waiting = Conn::open(world.addr).await;
    waiting.send("POST", CHAT, "", &hi(false)).await;
    crate::client::until("the request arrives", || world.requests() == [1, 0]).await;
    order(&mut world, 0, Duty::Isolated);
    let reply = waiting.reply().await;
    assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)));
    assert_eq!((world.state(0), world.requests()), (State::Isolated, vec![1, 1]));
}

/// Not even panic mode uses it: an operator has said so.
#[tokio::test]
async fn with_nothing_else_an_order_still_holds() {
    for duty in [Duty::Draining, Duty::Isolated] {
        let mut world = World::start(1, |_| {}).await;
        order(&mut world, 0, duty);
        let reply = chat(world.addr, false).await;
        assert_eq!(
            (reply.status, reply.json()["error"]["code"].as_str()),
            (503, Some("no_healthy_endpoint"))
        );
        assert_eq!(world.requests(), [0]);
    }
}

#[tokio::test]
async fn an_endpoint_may_be_ordered_from_its_first_moment() {
    let world = World::unchecked(vec![SimConfig::default(); 2], |service| {
        side_by_side(service);
        service.versions[0].endpoints[0].duty = Duty::Isolated;
    })
    .await;
    world.until_state(1, State::Healthy).await;
    assert_eq!(world.state(0), State::Isolated);
}

/// Engines in eu and us, seen from a gateway in `own`.
async fn regions(own: Option<&str>, mode: RegionMode) -> World {
    let mut world = World::start(2, |service| {
        side_by_side(service);
        service.health.interval = ms(30);
        service.health.down = 1;
    })
    .await;
    world.apply(|spec| {
        spec.region = own.map(str::to_owned);
        let service = &mut spec.services[0];
        service.regions = RegionSpec { mode, order: vec!["eu".to_owned(), "us".to_owned()] };
        for (endpoint, region) in service.versions[0].endpoints.iter_mut().zip(["eu", "us"]) {
            endpoint.region = Some(region.to_owned());
        }
    });
    world
}

#[tokio::test]
async fn the_near_region_serves_while_it_can() {
    for (own, mode, expected) in [
        (Some("eu"), RegionMode::ActiveActive, [6, 0]),
        (Some("us"), RegionMode::ActiveActive, [0, 6]),
        (None, RegionMode::ActiveActive, [3, 3]),
        (Some("us"), RegionMode::ActivePassive, [6, 0]),
    ] {
        let world = regions(own, mode).await;
        for _ in 0..6 {
            assert_eq!(chat(world.addr, false).await.status, 200);
        }
        assert_eq!(world.requests(), expected, "from {own:?}, {mode:?}");
        let (near, far) = if expected[0] > 0 { (0, 1) } else { (1, 0) };
        world.sims[near].kill().await;
        world.until_state(near, State::Unhealthy).await;
        let before = world.requests()[far];
        assert_eq!(chat(world.addr, false).await.status, 200);
        assert_eq!(world.requests()[far], before + 1, "the other region takes over");
    }
}

/// The endpoint is let go of only when the table with the other one serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_meets_a_version_that_is_left_for_another() {
    let mut world = World::versions(Default::default(), |_| {}).await;
    let addr = world.addr;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                loop {
                    let reply = chat(addr, false).await;
                    assert_eq!(reply.status, 200, "{}", reply.text());
                }
            })
        })
        .collect();
    for turn in 0..200 {
        let (left, stable) = if turn % 2 == 0 { (0, 1) } else { (1, 0) };
        world.apply(|spec| {
            spec.services[0].versions.iter_mut().for_each(|it| it.endpoints[0].duty = Duty::Active);
        });
        world.until_all(State::Healthy).await;
        assert_eq!(chat(addr, false).await.status, 200);
        world.apply(|spec| {
            let service = &mut spec.services[0];
            service.stable.clone_from(&service.versions[stable].name);
            service.versions[left].endpoints[0].duty = Duty::Draining;
        });
    }
    for client in clients {
        assert!(!client.is_finished(), "{:?}", client.await);
        client.abort();
    }
}
