//! Who may come in.

use serde_json::json;

use super::*;
use crate::Actor;

fn with_tokens() -> String {
    format!(
        "admin: {{ tokens: [{{ name: ops, token: SECRET-O, role: operator }}, {{ name: eye, token: SECRET-V }}] }}\n{FILE}"
    )
}

const DRAIN: (&str, &str) = ("POST", "/api/v1/endpoints/drain");

async fn status_with(router: &Router, (method, path): (&str, &str), authorization: &str) -> u16 {
    let body = json!({ "url": "http://h:2" }).to_string();
    let mut headers = vec!["content-type: application/json", "host: backstop.example"];
    if !authorization.is_empty() {
        headers.push(authorization);
    }
    ask(router, method, path, &headers, body).await.status.as_u16()
}

#[tokio::test]
async fn tokens_and_their_roles() {
    let world = World::new(&with_tokens());
    let (control, router) = world.router();
    let looks = [
        ("GET", "/api/v1/services"),
        ("GET", "/metrics"),
        ("GET", "/api/v1/openapi.json"),
        ("GET", "/nothing"),
    ];
    for look in looks {
        for none in [
            "",
            "authorization: Basic SECRET-V",
            "authorization: Bearer",
            "authorization: Bearer wrong",
            "authorization: Bearer SECRET-V2",
        ] {
            assert_eq!(status_with(&router, look, none).await, 401, "{look:?} {none}");
        }
        let expected = if look.1 == "/nothing" { 404 } else { 200 };
        for right in [
            "authorization: Bearer SECRET-V",
            "authorization: bearer  SECRET-V",
            "authorization: Bearer SECRET-O",
        ] {
            assert_eq!(status_with(&router, look, right).await, expected, "{look:?} {right}");
        }
    }
    assert_eq!(status_with(&router, DRAIN, "").await, 401);
    assert_eq!(status_with(&router, DRAIN, "authorization: Bearer SECRET-V").await, 403);
    let viewer = ["authorization: Bearer SECRET-V", "content-type: application/json"];
    let refused = ask(&router, "POST", DRAIN.1, &viewer, "{}").await;
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("the role `operator`"));
    for other in [
        ("DELETE", "/api/v1/endpoints?url=x"),
        ("POST", "/api/v1/config/reload"),
        ("POST", "/api/v1/config/check"),
    ] {
        assert_eq!(status_with(&router, other, "authorization: Bearer SECRET-V").await, 403, "{other:?}");
    }
    assert_eq!(control.revision(), 1, "nothing of that changed anything");
    assert_eq!(status_with(&router, DRAIN, "authorization: Bearer SECRET-O").await, 200);
    assert_eq!(control.current().last_change.as_ref().unwrap().actor, "ops");
    let shown = String::from_utf8(ask(&router, "GET", "/api/v1/config", &viewer, "").await.body).unwrap();
    assert!(!shown.contains("SECRET"), "{shown}");
}

#[tokio::test]
async fn tokens_change_with_a_reload() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    assert_eq!(get(&router, "/api/v1/services").await.status, 200);
    world.write(&with_tokens());
    control.reload(&Actor::Signal, None).unwrap();
    assert_eq!(get(&router, "/api/v1/services").await.error(), (401, "no_token".to_owned()));
    world.write(&with_tokens().replace("SECRET-V", "NEW"));
    control.reload(&Actor::Signal, None).unwrap();
    let service = ("GET", "/api/v1/services");
    assert_eq!(status_with(&router, service, "authorization: Bearer SECRET-V").await, 401);
    assert_eq!(status_with(&router, service, "authorization: Bearer NEW").await, 200);
}

/// Without tokens a browser on this machine must not be made to act for a page of somebody else.
#[tokio::test]
async fn pages_of_other_sites_are_kept_out() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    for (host, origin, expected) in [
        ("host: 127.0.0.1:9090", "", 200),
        ("host: localhost:9090", "", 200),
        ("host: [::1]:9090", "", 200),
        ("host: localhost:9090", "origin: http://localhost:9090", 200),
        // Its name was pointed at this machine.
        ("host: evil.example:9090", "", 403),
        ("host: evil.example:9090", "origin: http://evil.example:9090", 403),
        ("host: 127.0.0.1:9090", "origin: https://evil.example", 403),
        ("host: 127.0.0.1:9090", "origin: null", 403),
        // Another server of this machine.
        ("host: 127.0.0.1:9090", "origin: http://127.0.0.1:3000", 403),
    ] {
        let mut headers = vec!["content-type: application/json", host];
        headers.extend(Some(origin).filter(|it| !it.is_empty()));
        let body = json!({ "url": "http://h:2" }).to_string();
        let reply = ask(&router, DRAIN.0, DRAIN.1, &headers, body).await;
        assert_eq!(reply.status.as_u16(), expected, "{host} {origin}");
        if expected == 403 {
            assert_eq!(reply.error().1, "other_site");
        }
        assert_eq!(ask(&router, "GET", "/metrics", &headers, "").await.status.as_u16(), expected);
    }
    // What a form of another site could send without asking.
    for simple in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let headers = [format!("content-type: {simple}")];
        let reply =
            ask(&router, DRAIN.0, "/api/v1/endpoints/restore", &[&headers[0]], r#"{"url":"http://h:2"}"#)
                .await;
        assert_eq!(reply.error(), (415, "unsupported_media_type".to_owned()));
    }
    assert_eq!(control.revision(), 2);
}
