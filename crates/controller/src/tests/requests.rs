//! Requests that are not as they should be.

use axum::body::Bytes;
use futures_util::stream;
use serde_json::json;

use super::*;
use crate::extract::MOST_BYTES;

const JSON: &str = "content-type: application/json";
const DRAIN: &str = "/api/v1/endpoints/drain";

#[tokio::test]
async fn mistakes_are_told_in_json() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    type Case = (&'static str, &'static str, &'static [&'static str], &'static str, u16, &'static str);
    let cases: [Case; 16] = [
        ("GET", "/", &[], "", 404, "not_found"),
        ("GET", "/api/v1/endpoint", &[], "", 404, "not_found"),
        ("GET", "/api/v1/services/nobody", &[], "", 404, "unknown_service"),
        ("POST", "/api/v1/services/nobody/failback", &[], "", 404, "unknown_service"),
        ("POST", "/api/v1/services/embed/failback", &[], "", 409, "nothing_to_fail_back"),
        ("GET", "/api/v1/services/%ff", &[], "", 400, "invalid_path"),
        ("PUT", "/api/v1/endpoints", &[JSON], "{}", 405, "method_not_allowed"),
        ("POST", "/metrics", &[JSON], "{}", 405, "method_not_allowed"),
        ("POST", DRAIN, &[], "{}", 415, "unsupported_media_type"),
        ("POST", DRAIN, &[JSON], "{\"url\":", 400, "invalid_json"),
        ("POST", DRAIN, &[JSON], "{\"url\":\"http://h:2\",\"frce\":true}", 400, "invalid_json"),
        ("POST", DRAIN, &[JSON], "[]", 400, "invalid_json"),
        ("GET", "/api/v1/endpoints?state=sleepy", &[], "", 400, "invalid_query"),
        ("GET", "/api/v1/endpoints?sevice=chat", &[], "", 400, "invalid_query"),
        ("DELETE", "/api/v1/endpoints", &[], "", 400, "invalid_query"),
        ("GET", "/api/v1/events?types=health,helth", &[], "", 400, "unknown_type"),
    ];
    for (method, path, headers, body, status, code) in cases {
        let reply = ask(&router, method, path, headers, body).await;
        assert_eq!(reply.error(), (status, code.to_owned()), "{method} {path}");
    }
    let named = ask(&router, "POST", DRAIN, &[JSON], "{\"frce\":true}").await.json();
    assert!(named["error"]["message"].as_str().unwrap().contains("`frce`"), "{named}");
}

#[tokio::test]
async fn bodies_are_bounded() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let yaml = ["content-type: application/yaml"];
    let check = "/api/v1/config/check";
    let reply = ask(&router, "POST", check, &yaml, "x".repeat(MOST_BYTES + 1)).await;
    assert_eq!(reply.error(), (413, "too_large".to_owned()));
    // One that never ends and does not say how long it is.
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 65_536])));
    let reply = ask(&router, "POST", check, &yaml, Body::from_stream(endless)).await;
    assert_eq!(reply.error(), (413, "too_large".to_owned()));
    let broken = stream::iter([Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("gone"))]);
    assert_eq!(
        ask(&router, "POST", check, &yaml, Body::from_stream(broken)).await.error(),
        (400, "invalid_body".to_owned())
    );
    assert_eq!(ask(&router, "POST", check, &yaml, vec![0xff]).await.error(), (400, "not_utf8".to_owned()));
    let largest = "#".repeat(MOST_BYTES);
    assert_eq!(ask(&router, "POST", check, &yaml, largest).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let reply =
        ask(&router, "POST", "/api/v1/endpoints/drain", &["content-type: application/json"], never).await;
    assert_eq!(reply.error(), (408, "body_timeout".to_owned()));
}

#[tokio::test]
async fn another_configuration_is_checked_without_being_taken() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    let check = async |text: &str| {
        let headers = ["content-type: application/yaml; charset=utf-8"];
        ask(&router, "POST", "/api/v1/config/check", &headers, text.to_owned()).await.json()
    };
    assert_eq!(check(FILE).await, json!({ "ok": true, "problems": [] }));
    let bad = check("listen: 8080\nservices: []\n").await;
    assert_eq!((&bad["ok"], bad["problems"].as_array().unwrap().len()), (&json!(false), 2));
    assert_eq!(bad["problems"][0]["path"], "listen");
    assert_eq!(control.revision(), 1);
}

#[tokio::test]
async fn what_is_served_can_be_seen() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let services = get(&router, "/api/v1/services").await;
    assert_eq!(
        (services.etag.as_deref(), services.json()["services"][1]["name"].as_str()),
        (Some("\"1\""), Some("embed"))
    );
    assert_eq!(get(&router, "/api/v1/services/embed").await.json()["stable"], "v1");
    let config = get(&router, "/api/v1/config").await;
    assert_eq!(
        (config.etag.as_deref(), &config.json()["config"]["services"][0]["name"]),
        (Some("\"1\""), &json!("chat"))
    );
    assert_eq!(get(&router, "/api/v1/dependencies").await.json(), json!([]));
    assert_eq!(get(&router, "/api/v1/version").await.json()["revision"], 1);
    assert_eq!(get(&router, "/metrics").await.body, b"up 1\n");
}
