//! Events as a client gets them.

use futures_util::StreamExt;
use serde_json::json;

use super::*;

fn table(revision: u64) -> What {
    What::Table { revision }
}

fn breaker() -> What {
    let endpoint = backstop_core::event::EndpointName {
        service: "s".into(),
        version: "v".into(),
        url: "http://h:1".into(),
    };
    What::Breaker { endpoint, open: true }
}

/// The events that are there, as `id` or as `missed N`.
async fn kept(router: &Router, query: &str, headers: &[&str]) -> Vec<String> {
    let reply = ask(router, "GET", &format!("/api/v1/events?follow=false{query}"), headers, "").await;
    assert_eq!(reply.status, 200);
    read(std::str::from_utf8(&reply.body).unwrap())
}

fn read(text: &str) -> Vec<String> {
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let data: Value = serde_json::from_str(&field("data: ").unwrap()).unwrap();
        match field("event: ").as_deref() {
            Some("missed") => format!("missed {}", data["missed"]),
            _ => {
                assert!(field("id: ").unwrap().ends_with(&format!("-{}", data["id"])));
                data["id"].to_string()
            }
        }
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn what_happened_can_be_asked_for() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    for revision in 2..6 {
        world.plane.emit(table(revision));
        world.plane.emit(breaker());
    }
    assert_eq!(kept(&router, "", &[]).await.len(), 8);
    assert_eq!(kept(&router, "&after=6", &[]).await, ["7", "8"]);
    assert_eq!(kept(&router, "", &["last-event-id: 7"]).await, ["8"]);
    assert_eq!(kept(&router, "&types=breaker", &[]).await, ["2", "4", "6", "8"]);
    assert_eq!(kept(&router, "&types=table,breaker&after=7", &[]).await, ["8"]);
    world.plane.forget(5);
    assert_eq!(kept(&router, "&after=3", &[]).await, ["missed 2", "6", "7", "8"]);
    assert_eq!(kept(&router, "&after=5", &[]).await, ["6", "7", "8"]);
    assert_eq!(kept(&router, "", &[]).await, ["6", "7", "8"], "one who has seen nothing misses nothing");
    // The process that gave this id is gone.
    assert_eq!(kept(&router, "&after=4711", &[]).await, ["6", "7", "8"]);
    assert_eq!(kept(&router, "", &["last-event-id: 1700000000000-7"]).await, ["6", "7", "8"]);
    let reply = get(&router, "/api/v1/events?follow=false&after=6").await;
    let text = String::from_utf8(reply.body).unwrap();
    let id = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert_eq!(kept(&router, "", &[&format!("last-event-id: {id}")]).await, ["8"]);
}

/// Sixteen wait at most; a client that does not read is told how many it missed, and holds up nobody.
#[tokio::test]
async fn a_client_that_does_not_read_is_told_what_it_missed() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let request = Request::get("/api/v1/events").body(Body::empty()).unwrap();
    let mut body = router.clone().oneshot(request).await.unwrap().into_body().into_data_stream();
    for revision in 0..40 {
        world.plane.emit(table(revision));
    }
    let mut text = String::new();
    while !text.contains("-40\n") {
        text += std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap();
    }
    let events = read(&text);
    assert_eq!(events[..2], ["missed 24", "25"]);
    assert_eq!(events.len(), 17);
}

#[tokio::test]
async fn followers_are_bounded() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let mut followers = Vec::new();
    for _ in 0..64 {
        let request = Request::get("/api/v1/events").body(Body::empty()).unwrap();
        followers.push(router.clone().oneshot(request).await.unwrap());
    }
    assert!(followers.iter().all(|it| it.status() == StatusCode::OK));
    let refused = get(&router, "/api/v1/events").await;
    assert_eq!(refused.error(), (503, "too_many_subscribers".to_owned()));
    assert_eq!(get(&router, "/api/v1/services").await.status, 200, "others are served");
    drop(followers);
    assert_eq!(kept(&router, "", &[]).await, [""; 0]);
}

#[test]
fn kinds_are_what_is_sent() {
    for what in [table(1), breaker()] {
        assert_eq!(json!(what)["event"], what.kind());
        assert!(What::KINDS.contains(&what.kind()));
    }
}
