//! A version that is another name of a version's own endpoints, as drills have it.

use backstop_core::assign::BUCKETS;
use backstop_core::health::State;
use backstop_core::report::ArmReport;
use backstop_core::table::{TableSpec, TrialSpec, VersionSpec};
use backstop_engine_sim::{Dist, Fault, SimConfig};

use crate::client::{CHAT, Conn, chat, hi, until};
use crate::world::{World, ms, trial};

const TWIN: &str = "v1~drill";

/// All goes to a twin of `v1`.
fn add_twin(spec: &mut TableSpec) {
    let service = &mut spec.services[0];
    let twin =
        VersionSpec { name: TWIN.to_owned(), twin_of: Some("v1".to_owned()), ..service.versions[0].clone() };
    service.versions.push(twin);
    service.trial = Some(TrialSpec { canary: TWIN.to_owned(), ..trial(BUCKETS) });
}

fn remove_twin(spec: &mut TableSpec) {
    let service = &mut spec.services[0];
    service.versions.retain(|version| version.name != TWIN);
    service.trial = None;
}

fn counted(world: &World) -> ArmReport {
    let report = world.gateway.trial_report("chat").unwrap();
    report.epochs.into_iter().next().unwrap().canary
}

#[tokio::test]
async fn it_shares_all_that_is_known_of_its_endpoints() {
    let mut world =
        World::start(2, |service| (service.health.interval, service.health.down) = (ms(30), 2)).await;
    let before = world.health_changes();
    world.apply(add_twin);
    let reply = chat(world.addr, false).await;
    assert_eq!(
        (reply.status, reply.header("x-backstop-version")),
        (200, Some(TWIN)),
        "it need not be checked first"
    );
    let service = &world.gateway.status().services[0];
    let names: Vec<&str> = service.versions.iter().map(|version| version.name.as_str()).collect();
    assert_eq!(names, ["v1"], "each endpoint is in one version only");
    assert_eq!(world.endpoints().iter().map(|endpoint| endpoint.requests).sum::<u64>(), 1);

    // What is found of one is known of the other, and told once.
    world.sims[0].set_fault(Fault::Health { status: 503 });
    world.until_state(0, State::Unhealthy).await;
    let after = world.health_changes();
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some(TWIN));
    let metrics = world.gateway.metrics();
    assert!(
        metrics.contains(
            "backstop_requests_total{service=\"chat\",version=\"v1~drill\",outcome=\"answered\"} 2"
        )
    );
    assert!(!metrics.contains("version=\"v1~drill\",endpoint"), "{metrics}");
    world.apply(remove_twin);
    assert_eq!(world.health_changes().len(), after.len(), "nothing has happened to its endpoints");
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some("v1"));
}

#[tokio::test]
async fn what_runs_on_it_ends_in_peace_and_is_counted_until_then() {
    let slow = SimConfig { itl: Dist::Constant(ms(20)), tokens: 20, ..SimConfig::default() };
    let mut world = World::of(vec![slow], |_| {}).await;
    world.apply(add_twin);
    assert_eq!((counted(&world).requests, counted(&world).last_assigned), (0, None));
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(true)).await;
    conn.head().await.unwrap();
    conn.contents(2).await;
    let under_way = counted(&world);
    assert_eq!((under_way.requests, under_way.running, under_way.last_ended), (1, 1, None));
    assert!(under_way.last_assigned.is_some());
    world.apply(|spec| {
        let trial = spec.services[0].trial.as_mut().unwrap();
        (trial.buckets, trial.epoch) = (0, 2);
    });
    assert_eq!(chat(world.addr, false).await.header("x-backstop-version"), Some("v1"));
    world.apply(remove_twin);
    let mut rest = Vec::new();
    while !String::from_utf8_lossy(&rest).contains("[DONE]") {
        let chunk = conn.chunk().await.unwrap();
        assert!(!chunk.is_empty(), "it ended too soon: {}", String::from_utf8_lossy(&rest));
        rest.extend(chunk);
    }
    until("its end is counted", || counted(&world).running == 0).await;
    let ended = counted(&world);
    assert_eq!((ended.requests, ended.ended, ended.failed), (1, 1, 0));
    assert!(ended.last_ended.is_some());
}

#[tokio::test]
async fn clients_that_get_no_whole_answer_are_counted() {
    let mut world = World::start(1, |_| {}).await;
    world.apply(add_twin);
    world.sims[0].set_fault(Fault::Status { status: 500, retry_after: None, message: None });
    assert_eq!(chat(world.addr, false).await.status, 500);
    let failed = counted(&world);
    assert_eq!((failed.requests, failed.running, failed.failed), (1, 0, 1));
}
