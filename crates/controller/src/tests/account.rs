//! What is put on record, and in what a service differs from its file.

use backstop_store::{HistoryFilter, Store};
use serde_json::json;

use super::*;
use crate::Actor;
use crate::record::turn;

const DRAIN: &str = "/api/v1/endpoints/drain";

fn ops() -> Actor {
    Actor::Token("ops".to_owned())
}

/// `actor kind status: told` of what waits for the store, without what the file began with.
fn waiting(control: &Control) -> Vec<String> {
    let (_, waiting) = control.waiting();
    let entries = waiting.into_iter().map(|it| it.entry);
    let told = entries.map(|it| {
        let told: Vec<&str> = it.body["told"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let (status, told) = (it.body["status"].as_str().unwrap(), told.join("; "));
        format!("{} {} {} {status}: {told}", it.actor, it.service, it.kind)
    });
    told.filter(|it| !it.contains("new in the file")).collect()
}

/// Another process in the same place.
fn again(world: &World) -> Arc<Control> {
    let other = World { directory: world.directory.clone(), plane: Plane::new() };
    let control = other.start().unwrap();
    std::mem::forget(other);
    control.take_stock();
    control
}

#[tokio::test]
async fn who_changed_what() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    control.take_stock();
    let (_, began) = control.waiting();
    assert_eq!(began[0].entry.body["told"], json!(["new in the file: stable v1 of v1"]));
    post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    post(&router, DRAIN, json!({ "url": "http://h:1", "service": "chat" })).await;
    post(&router, DRAIN, json!({ "url": "http://h:1", "service": "chat" })).await;
    ask(&router, "POST", "/api/v1/services/chat/failback", &[], Body::empty()).await;
    world.write(&FILE.replace("name: chat", "name: chat\n    stable: v2").replace(
        "http://h:2\" }] }",
        "http://h:2\" }] }\n      - { name: v2, endpoints: [{ url: \"http://h:3\" }] }",
    ));
    control.reload(&ops(), None).unwrap();
    control.reload(&ops(), None).unwrap();
    let last = "`http://h:1` is the last endpoint that serves version `v1` of service `chat`";
    let expected = [
        "local chat endpoint done: drain http://h:2 of version v1".to_owned(),
        format!("local chat endpoint refused: drain http://h:1: {last}"),
        "local chat failback done: fail back chat".to_owned(),
        "ops chat file done: stable: v1 → v2; version v2 is new".to_owned(),
    ];
    assert_eq!(waiting(&control), expected);
    let (_, waiting_now) = control.waiting();
    let body = &waiting_now.last().unwrap().entry.body;
    assert_eq!(body["versions"]["v2"]["endpoints"], json!(["http://h:3"]));

    // All of it is there for the next process, which has nothing to add.
    assert_eq!(waiting(&again(&world)), expected);
}

#[tokio::test]
async fn what_was_changed_while_nobody_looked() {
    let world = World::new(FILE);
    again(&world);
    world.write(&FILE.replace("http://h:2\" }", "http://h:2\" }, { url: \"http://h:9\" }"));
    let control = again(&world);
    assert_eq!(waiting(&control), ["file chat file done: version v1: http://h:9 is new"]);
    assert_eq!(waiting(&again(&world)).len(), 1, "once");
    world.write(&FILE.replace("embed", "other"));
    let control = again(&world);
    let told = waiting(&control);
    assert!(told.contains(&"file embed file done: gone from the file".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_change_that_failed_is_no_change() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    control.take_stock();
    world.plane.refuses.store(true, Relaxed);
    post(&router, DRAIN, json!({ "url": "http://h:2", "service": "chat" })).await;
    let told = "drain http://h:2 of chat/v1: the gateway can't serve that: no such certificate";
    assert_eq!(waiting(&control), [format!("local chat endpoint failed: {told}")]);
    // What is on disk says nothing else.
    assert!(waiting(&again(&world)).iter().all(|it| it.contains("failed")));
}

#[tokio::test]
async fn each_entry_gets_into_the_history_once() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    let store = Store::in_memory().await.unwrap();
    control.take_stock();
    post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    let path = world.path("state/intent.json");
    let before = std::fs::read(&path).unwrap();
    turn(&control, &store).await.unwrap();
    assert_eq!(control.waiting().1, []);
    let filter = HistoryFilter { service: Some("chat".to_owned()), limit: 10, ..HistoryFilter::default() };
    let entries = store.history(&filter).await.unwrap();
    let kinds: Vec<&str> = entries.iter().map(|it| it.entry.kind.as_str()).collect();
    assert_eq!(kinds, ["endpoint", "file"]);

    // The process ended before it knew.
    std::fs::write(&path, before).unwrap();
    let control = again(&world);
    assert_eq!(control.waiting().1.len(), 3);
    turn(&control, &store).await.unwrap();
    assert_eq!((control.waiting().1, store.history(&filter).await.unwrap().len()), (Vec::new(), 2));
    // A file that is lost counts anew, and what comes then is put on record all the same.
    std::fs::remove_file(&path).unwrap();
    let control = again(&world);
    turn(&control, &store).await.unwrap();
    assert_eq!(store.history(&filter).await.unwrap().len(), 3);
}

async fn drift(router: &Router) -> Vec<String> {
    let services = get(router, "/api/v1/services").await.json();
    let drift = services["services"][0]["drift"].as_array().unwrap();
    assert!(drift.iter().all(|it| it["remedy"].as_str().is_some_and(|it| !it.is_empty())), "{drift:?}");
    drift.iter().map(|it| it["what"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn drift_is_told_until_the_file_has_it() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    assert_eq!(drift(&router).await, [""; 0]);
    let added = json!({ "service": "chat", "endpoint": { "url": "http://h:9" } });
    post(&router, "/api/v1/endpoints", added).await;
    ask(&router, "DELETE", "/api/v1/endpoints?url=http://h:2", &[], Body::empty()).await;
    post(&router, "/api/v1/endpoints/isolate", json!({ "url": "http://h:1", "service": "chat" })).await;
    let expected = [
        "endpoint http://h:9 of v1 was added",
        "endpoint http://h:2 of v1 was removed",
        "endpoint http://h:1 of v1 is isolated",
    ];
    assert_eq!(drift(&router).await, expected);
    let config = get(&router, "/api/v1/config").await.json();
    assert_eq!(config["drift"]["chat"].as_array().unwrap().len(), 3);
    assert_eq!(config["drift"].get("embed"), None);

    world.write(&FILE.replace("{ url: \"http://h:2\" }", "{ url: \"http://h:9\" }"));
    control.reload(&ops(), None).unwrap();
    assert_eq!(drift(&router).await, ["endpoint http://h:1 of v1 is isolated"]);
    post(&router, "/api/v1/endpoints/restore", json!({ "url": "http://h:1", "service": "chat" })).await;
    assert_eq!(drift(&router).await, [""; 0]);
}
