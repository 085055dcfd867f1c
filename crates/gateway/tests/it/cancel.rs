//! A client that leaves takes its work with it, and nobody is blamed.

use backstop_core::health::State;
use backstop_engine_sim::{Dist, Fault, SimConfig};

use crate::client::{CHAT, Conn, hi, until};
use crate::world::{World, ms};

/// When the client leaves.
#[derive(Debug, Clone, Copy)]
enum Moment {
    WaitingForTheFirstToken,
    AfterSomeTokens(usize),
    WaitingForAPlainAnswer,
}

#[tokio::test]
async fn leaving_cancels_the_work_and_blames_nobody() {
    for moment in
        [Moment::WaitingForTheFirstToken, Moment::AfterSomeTokens(3), Moment::WaitingForAPlainAnswer]
    {
        let slow = SimConfig { itl: Dist::Constant(ms(20)), tokens: 100_000, ..SimConfig::default() };
        let world = World::of(vec![slow; 2], |service| service.breaker.failures = 1).await;
        if matches!(moment, Moment::WaitingForTheFirstToken) {
            world.sims[0].set_fault(Fault::NoAnswer);
        }
        let mut conn = Conn::open(world.addr).await;
        let stream = !matches!(moment, Moment::WaitingForAPlainAnswer);
        conn.send("POST", CHAT, "", &hi(stream)).await;
        if let Moment::AfterSomeTokens(count) = moment {
            assert_eq!(conn.head().await.unwrap().status, 200);
            conn.contents(count).await;
        }
        until("in flight", || world.sims[0].in_flight() == 1 && world.endpoint(0).in_flight == 1).await;
        drop(conn);
        until("cancelled upstream", || world.sims[0].cancelled() == 1).await;
        until("accounted for", || world.totals().cancelled == 1).await;
        assert_eq!(world.sims[0].in_flight(), 0);
        let endpoint = world.endpoint(0);
        assert_eq!((endpoint.state, endpoint.in_flight), (State::Healthy, 0), "{moment:?}");
        assert!(!endpoint.breaker_open && !endpoint.ejected, "{moment:?}");
        // Nor is it tried anywhere else.
        assert_eq!(world.requests(), [1, 0], "{moment:?}");
        let totals = world.totals();
        assert_eq!((totals.requests, totals.retries, totals.failed, totals.cut), (1, 0, 0, 0), "{moment:?}");
    }
}

/// Leaving while the second attempt runs blames the first engine, which failed, and nobody else.
#[tokio::test]
async fn leaving_during_a_retry_cancels_the_retry() {
    let world = World::start(2, |service| service.breaker.failures = 1).await;
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    until("the second attempt", || world.sims[1].in_flight() == 1).await;
    drop(conn);
    until("cancelled upstream", || world.sims[1].cancelled() == 1).await;
    until("accounted for", || world.totals().cancelled == 1).await;
    assert!(world.endpoint(0).breaker_open && !world.endpoint(1).breaker_open);
    assert_eq!(world.requests(), [1, 1]);
}

#[tokio::test]
async fn a_client_that_leaves_while_we_wait_for_another_try_is_gone() {
    let world = World::start(1, |service| service.retry.backoff = ms(20_000)).await;
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(false)).await;
    until("it has failed once", || world.requests() == [1] && world.endpoint(0).in_flight == 0).await;
    drop(conn);
    until("it counts as cancelled", || world.totals().cancelled == 1).await;
    assert_eq!(world.requests(), [1]);
}
