//! Who gets which version while a release is on its way.

use std::collections::HashMap;

use backstop_core::assign::BUCKETS;
use backstop_core::report::BadEvent;
use backstop_core::table::{Duty, ServiceSpec, UnitSource};
use backstop_engine_sim::{Fault, SimConfig};
use serde_json::json;

use crate::client::{CHAT, Conn, Reply, call, chat, hi, until};
use crate::identity::key;
use crate::world::{World, endpoint, trial};

async fn split(buckets: u32, sticky: &[UnitSource]) -> World {
    World::versions(Default::default(), |service| {
        service.sticky = sticky.to_vec();
        service.trial = Some(trial(buckets));
    })
    .await
}

fn version(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.header("x-backstop-version").unwrap().to_owned()
}

async fn ask(world: &World, headers: &str, user: Option<&str>) -> String {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "model": "chat", "user": user, "max_tokens": 1, "messages": messages }).to_string();
    version(&call(world.addr, "POST", CHAT, headers, body.as_bytes()).await)
}

async fn users(world: &World) -> Vec<String> {
    let mut versions = Vec::new();
    for user in 0..60 {
        versions.push(ask(world, "", Some(&format!("user-{user}"))).await);
    }
    versions
}

#[tokio::test]
async fn a_user_keeps_their_version() {
    let mut world = split(BUCKETS / 2, &[UnitSource::User]).await;
    let first = users(&world).await;
    let canary = first.iter().filter(|version| *version == "v2").count();
    assert!((15..=45).contains(&canary), "{canary} of 60");
    assert_eq!(users(&world).await, first, "nothing changes by itself");
    assert_eq!(users(&split(BUCKETS / 2, &[UnitSource::User]).await).await, first, "nor in another process");
    // More share moves some to the canary, and nobody back.
    world.apply(|spec| spec.services[0].trial = Some(trial(BUCKETS * 4 / 5)));
    let more = users(&world).await;
    assert!(more.iter().zip(&first).all(|(now, before)| now == "v2" || before == "v1"));
    assert!(more.iter().filter(|version| *version == "v2").count() > canary);
    // The engines have seen it in the same way.
    let v2 = 2 * canary + more.iter().filter(|version| *version == "v2").count();
    assert_eq!(world.requests(), [180 - v2, v2]);
}

#[tokio::test]
async fn the_first_unit_that_a_request_has_counts() {
    let sticky = [
        UnitSource::Header("x-session-id".to_owned()),
        UnitSource::User,
        UnitSource::Cookie("backstop".to_owned()),
        UnitSource::Ip,
    ];
    let world = split(BUCKETS / 2, &sticky).await;
    let mut by = HashMap::new();
    for unit in 0..20 {
        let unit = format!("u{unit}");
        let session = ask(&world, &format!("x-session-id: {unit}\r\n"), None).await;
        let user = ask(&world, "", Some(&unit)).await;
        let cookie = ask(&world, &format!("cookie: a=b; backstop={unit}; c=d\r\n"), None).await;
        // Whatever else a request has.
        let more = format!("x-session-id: {unit}\r\ncookie: backstop=other\r\n");
        assert_eq!(ask(&world, &more, Some("other")).await, session);
        assert_eq!(ask(&world, "cookie: backstop=other\r\n", Some(&unit)).await, user);
        // What is empty is not there.
        assert_eq!(ask(&world, "x-session-id:\r\n", Some(&unit)).await, user);
        assert_eq!(ask(&world, &format!("cookie: backstop=; backstop={unit}\r\n"), Some("")).await, cookie);
        for (what, version) in [("session", session), ("user", user), ("cookie", cookie)] {
            *by.entry((what, version)).or_insert(0) += 1;
        }
    }
    assert_eq!(by.len(), 6, "each divides: {by:?}");
    let ip = ask(&world, "", None).await;
    assert_eq!(ask(&world, "cookie: other=1; backstop\r\n", None).await, ip);
}

#[tokio::test]
async fn users_of_two_tenants_are_two_users() {
    let mut world = split(BUCKETS / 2, &[UnitSource::User, UnitSource::Key]).await;
    world.apply(|spec| spec.keys = vec![key("a", "sk-a", None), key("b", "sk-b", None)]);
    let [a, b] = ["a", "b"].map(|name| format!("authorization: Bearer sk-{name}\r\n"));
    let mut differ = 0;
    for user in 0..30 {
        let user = format!("user-{user}");
        differ += usize::from(ask(&world, &a, Some(&user)).await != ask(&world, &b, Some(&user)).await);
    }
    assert!((5..=25).contains(&differ), "{differ} of 30");
    let of_key = ask(&world, &a, None).await;
    for _ in 0..5 {
        assert_eq!(ask(&world, &a, None).await, of_key);
    }
}

#[tokio::test]
async fn each_request_may_be_a_unit() {
    let world = split(BUCKETS / 2, &[UnitSource::Request]).await;
    let mut canary = 0;
    for _ in 0..120 {
        canary += usize::from(ask(&world, "", Some("alice")).await == "v2");
    }
    // Six standard deviations.
    assert!((27..=93).contains(&canary), "{canary} of 120");
    let report = world.gateway.trial_report("chat").unwrap();
    let [epoch] = &report.epochs[..] else { panic!("{report:?}") };
    assert_eq!((epoch.stable.requests + epoch.canary.requests, epoch.canary.requests), (120, canary as u64));
    assert_eq!(epoch.stable.units + epoch.canary.units, 120);
}

/// It can't be kept together with the others of its kind, so it moves with the last of all.
#[tokio::test]
async fn what_has_no_unit_moves_with_the_whole() {
    let mut world = split(BUCKETS - 1, &[UnitSource::User]).await;
    assert_eq!(ask(&world, "", None).await, "v1");
    world.apply(|spec| spec.services[0].trial = Some(trial(BUCKETS)));
    assert_eq!(ask(&world, "", None).await, "v2");
    assert_eq!(world.gateway.trial_report("chat").unwrap().epochs[0].canary.requests, 0, "no evidence");
}

fn without_trial(service: &mut ServiceSpec) {
    service.trial = None;
}

#[tokio::test]
async fn nobody_new_goes_to_a_version_that_was_taken_back() {
    let mut world = World::versions(Default::default(), |service| service.trial = Some(trial(BUCKETS))).await;
    let second = endpoint(&world.sims[1], 1);
    assert_eq!(version(&chat(world.addr, false).await), "v2");
    // One that is under way there when that happens: what it still needs it gets from the stable version, though another
    // endpoint of the canary is there.
    let spare = backstop_engine_sim::Sim::start(SimConfig::default()).await.unwrap();
    world.apply(|spec| {
        let mut other = endpoint(&spare, 0);
        other.priority = 1;
        spec.services[0].versions[1].endpoints =
            vec![backstop_core::table::EndpointSpec { priority: 0, ..second }, other];
    });
    world.until_all(backstop_core::health::State::Healthy).await;
    world.sims[1].set_fault(Fault::NoAnswer);
    let mut conn = Conn::open(world.addr).await;
    conn.send("POST", CHAT, "", &hi(false)).await;
    until("it is under way", || world.requests()[1] == 2).await;
    world.apply(|spec| without_trial(&mut spec.services[0]));
    assert_eq!(version(&chat(world.addr, false).await), "v1");
    world.sims[1].kill().await;
    let reply = conn.reply().await;
    assert_eq!((version(&reply).as_str(), reply.attempts()), ("v1", 2));
    let asked = spare.request_log().iter().filter(|it| it.path == CHAT).count();
    assert_eq!((asked, world.requests()[0]), (0, 2));
}

/// Its users are served, and the canary answers for it.
#[tokio::test]
async fn services_are_routed_anew_each_for_itself() {
    let mut world = split(BUCKETS, &[UnitSource::User]).await;
    world.apply(|spec| {
        let other = ServiceSpec {
            name: "other".to_owned(),
            models: vec!["other".to_owned()],
            ..spec.services[0].clone()
        };
        spec.services.push(other);
    });
    let ask_for = async |world: &World, model: &str| {
        let body = json!({ "model": model, "user": "u", "max_tokens": 1, "messages": [{ "role": "user", "content": "hi" }] });
        version(&call(world.addr, "POST", CHAT, "", body.to_string().as_bytes()).await)
    };
    let both = async |world: &World| [ask_for(world, "chat").await, ask_for(world, "other").await];
    assert_eq!(both(&world).await, ["v2", "v2"]);
    world.reroute(|spec| spec.services[0].trial = Some(trial(0)));
    assert_eq!(both(&world).await, ["v1", "v2"]);
    world.reroute(|spec| spec.services[1].trial = None);
    assert_eq!(both(&world).await, ["v1", "v1"]);
    // What follows is compared with what serves, not with what served first.
    world.reroute(|spec| spec.services[0].trial = Some(trial(BUCKETS)));
    assert_eq!(both(&world).await, ["v2", "v1"]);
    world.reroute(|spec| spec.services[0].versions[1].endpoints[0].duty = Duty::Draining);
    assert_eq!(both(&world).await, ["v1", "v1"], "an endpoint that is drained gets nothing new");
}

#[tokio::test]
async fn a_canary_that_nobody_serves_has_failed() {
    let mut world = World::versions(Default::default(), |service| service.trial = Some(trial(BUCKETS))).await;
    world.apply(|spec| spec.services[0].versions[1].endpoints[0].duty = Duty::Isolated);
    for stream in [false, true] {
        let reply = chat(world.addr, stream).await;
        assert_eq!((version(&reply).as_str(), reply.attempts()), ("v1", 1));
    }
    let report = world.gateway.trial_report("chat").unwrap();
    let epoch = &report.epochs[0];
    assert_eq!((epoch.canary.requests, epoch.canary.ended, epoch.stable.requests), (2, 2, 0));
    let bad: Vec<_> = epoch.canary.bad.iter().map(|bad| (bad.event, bad.requests, bad.units.len())).collect();
    assert_eq!(bad, [(BadEvent::Error, 2, 2)]);
}

#[tokio::test]
async fn a_share_for_a_version_that_is_not_there_stays_with_the_stable_one() {
    let unknown = |service: &mut ServiceSpec| {
        let mut trial = trial(BUCKETS / 2);
        "v9".clone_into(&mut trial.canary);
        service.trial = Some(trial);
    };
    let mut world = World::versions(Default::default(), unknown).await;
    assert_eq!(users(&world).await, ["v1"; 60]);
    // Nor does it keep what it had when it goes.
    world.apply(|spec| spec.services[0].trial = Some(trial(BUCKETS)));
    assert_eq!(users(&world).await, ["v2"; 60]);
    world.apply(|spec| unknown(&mut spec.services[0]));
    assert_eq!(users(&world).await, ["v1"; 60]);
}

#[tokio::test]
async fn metrics_tell_the_share_and_the_side() {
    let mut world = split(BUCKETS / 4, &[UnitSource::Request]).await;
    let metrics = world.gateway.metrics();
    let has = |metrics: &str, line: &str| metrics.lines().any(|it| it == line);
    assert!(has(&metrics, r#"backstop_release_share_ratio{service="chat",version="v2"} 0.25"#), "{metrics}");
    assert!(has(&metrics, r#"backstop_version_info{service="chat",version="v1",env="stable"} 1"#));
    assert!(has(&metrics, r#"backstop_version_info{service="chat",version="v2",env="gray"} 1"#));
    world.apply(|spec| without_trial(&mut spec.services[0]));
    assert!(!world.gateway.metrics().contains("backstop_release_share_ratio{"));
}
