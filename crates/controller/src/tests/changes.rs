//! Changes of endpoints and of the file: checked, kept, applied, or nothing at all.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering::Relaxed;

use backstop_core::event::What;
use serde_json::json;

use super::*;
use crate::{Actor, StateFileError};

const DRAIN: &str = "/api/v1/endpoints/drain";

#[tokio::test]
async fn endpoints_change_and_stay_changed() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let added =
        post(&router, "/api/v1/endpoints", json!({ "service": "chat", "endpoint": { "url": "http://h:9" } }))
            .await;
    assert_eq!((added.status.as_u16(), added.etag.as_deref()), (201, Some("\"2\"")));
    assert_eq!(
        added.json(),
        json!({ "revision": 2, "changed": true, "endpoint": { "service": "chat", "version": "v1", "url": "http://h:9" } })
    );
    assert_eq!(post(&router, DRAIN, json!({ "url": "http://h:2/v1" })).await.status, 200);
    let isolated = json!({ "url": "http://h:1", "service": "chat" });
    assert_eq!(post(&router, "/api/v1/endpoints/isolate", isolated).await.status, 200);
    let now = ["http://h:1 isolated", "http://h:2 draining", "http://h:9 active"];
    assert_eq!(world.plane.endpoints(), now);
    let path = world.path("state/intent.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    // Another process goes on where this one ended.
    let again = World { directory: world.directory.clone(), plane: Plane::new() };
    let (control, router) = again.router();
    assert_eq!((again.plane.endpoints(), control.revision()), (now.map(str::to_owned).to_vec(), 5));
    let restored =
        post(&router, "/api/v1/endpoints/restore", json!({ "url": "http://h:1", "service": "chat" })).await;
    assert_eq!(restored.json()["revision"], 6);
    let removed = ask(&router, "DELETE", "/api/v1/endpoints?url=http://h:9", &[], Body::empty()).await;
    assert_eq!((removed.status.as_u16(), removed.etag.as_deref()), (200, Some("\"7\"")));
    assert_eq!(again.plane.endpoints(), ["http://h:1 active", "http://h:2 draining"]);
    let last = again.plane.happened().pop().unwrap();
    let expected = What::Change {
        actor: "local".into(),
        action: "remove".into(),
        subject: "http://h:9 of chat/v1".into(),
        revision: 7,
    };
    assert_eq!(last, expected);
}

#[tokio::test]
async fn work_is_given_back_on_order() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    let back = ask(&router, "POST", "/api/v1/services/chat/failback", &[], Body::empty()).await;
    assert_eq!((back.status.as_u16(), back.etag.as_deref()), (200, Some("\"1\"")));
    assert_eq!(back.json(), json!({ "tiers": ["priority 0 of version `v1`"] }));
    let ordered = What::Change {
        actor: "local".into(),
        action: "fail back".into(),
        subject: "chat".into(),
        revision: 1,
    };
    assert_eq!(world.plane.happened().pop(), Some(ordered));
    let stale = ["if-match: \"7\""];
    let stale = ask(&router, "POST", "/api/v1/services/chat/failback", &stale, Body::empty()).await;
    assert_eq!(stale.status, 412);
    let error = ask(&router, "POST", "/api/v1/services/embed/failback", &[], Body::empty()).await.json();
    let error = error["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(error, "nothing was failed back: nothing of `embed` has moved to a standby");
}

#[tokio::test]
async fn what_is_so_already_changes_nothing() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    let again = post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    assert_eq!(
        (again.json()["revision"].as_u64(), again.json()["changed"].as_bool()),
        (Some(2), Some(false))
    );
    let restored =
        post(&router, "/api/v1/endpoints/restore", json!({ "url": "http://h:1", "service": "chat" })).await;
    assert_eq!(restored.json()["changed"], false);
    assert_eq!(world.plane.tables.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refused_change_changes_nothing() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    let cases = [
        (DRAIN, json!({ "url": "http://h:7" }), (404, "unknown_endpoint")),
        (DRAIN, json!({ "url": "http://h:1" }), (409, "ambiguous_endpoint")),
        (DRAIN, json!({ "url": "http://h:1", "service": "chta" }), (404, "unknown_service")),
        (DRAIN, json!({ "url": "http://h:1", "service": "chat", "version": "v9" }), (404, "unknown_version")),
        (DRAIN, json!({ "url": "http://h:1", "service": "embed" }), (409, "last_endpoint")),
        (
            "/api/v1/endpoints",
            json!({ "service": "chat", "endpoint": { "url": "http://h:1/" } }),
            (409, "endpoint_exists"),
        ),
        (
            "/api/v1/endpoints",
            json!({ "service": "chat", "endpoint": { "url": "h:9", "wieght": 1 } }),
            (422, "invalid_endpoint"),
        ),
        ("/api/v1/dependencies/db", json!({ "state": "down" }), (404, "unknown_dependency")),
    ];
    for (path, body, expected) in cases {
        let reply = post(&router, path, body).await;
        assert_eq!(reply.error(), (expected.0, expected.1.to_owned()));
        if expected.0 == 422 {
            assert_eq!(reply.json()["error"]["problems"].as_array().unwrap().len(), 2);
        }
    }
    assert_eq!(world.plane.tables.lock().unwrap().len(), 1);
    assert!(!world.path("state").exists());
    assert!(
        world
            .plane
            .happened()
            .iter()
            .all(|what| matches!(what, What::Refused { actor, .. } if actor == "local"))
    );

    let forced =
        post(&router, DRAIN, json!({ "url": "http://h:1", "service": "embed", "force": true })).await;
    assert_eq!((forced.status.as_u16(), control.revision()), (200, 2));
    // A name with a slash is one segment of the path.
    let reply = post(&router, "/api/v1/dependencies/a%2Fb", json!({ "state": "down" })).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({ "dependencies": 1 })));
}

/// The gateway says no: the file on disk must not make the next start fail.
#[tokio::test]
async fn a_change_that_can_not_be_served_is_taken_back() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    let before = std::fs::read(world.path("state/intent.json")).unwrap();
    world.plane.refuses.store(true, Relaxed);
    let reply = post(&router, "/api/v1/endpoints/restore", json!({ "url": "http://h:2" })).await;
    assert_eq!(reply.error(), (422, "not_servable".to_owned()));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("no such certificate"));
    assert_eq!(std::fs::read(world.path("state/intent.json")).unwrap(), before);
    let reload = ask(&router, "POST", "/api/v1/config/reload", &[], Body::empty()).await;
    assert_eq!(reload.error(), (422, "not_servable".to_owned()));
    assert_eq!(get(&router, "/api/v1/config").await.etag.as_deref(), Some("\"2\""));
}

#[tokio::test]
async fn a_change_that_can_not_be_kept_is_not_made() {
    let world = World::new(FILE);
    let (control, router) = world.router();
    // Neither root nor anybody else makes a directory of a file.
    std::fs::write(world.path("state"), "").unwrap();
    let reply = post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    assert_eq!(reply.error(), (500, "not_kept".to_owned()));
    assert!(reply.json()["error"]["hint"].as_str().unwrap().contains("state_dir"));
    assert_eq!((control.revision(), world.plane.tables.lock().unwrap().len()), (1, 1));
}

#[tokio::test]
async fn two_operators_do_not_overwrite_each_other() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    assert_eq!(get(&router, "/api/v1/endpoints").await.etag.as_deref(), Some("\"1\""));
    let headers = ["content-type: application/json", "if-match: \"1\""];
    let body = json!({ "url": "http://h:2" }).to_string();
    assert_eq!(ask(&router, "POST", DRAIN, &headers, body.clone()).await.status, 200);
    let late = ask(&router, "POST", "/api/v1/endpoints/restore", &headers, body.clone()).await;
    assert_eq!((late.error(), late.etag.as_deref()), ((412, "revision_conflict".to_owned()), Some("\"2\"")));
    let error = &late.json()["error"];
    assert_eq!((&error["revision"], &error["last_change"]["action"]), (&json!(2), &json!("drain")));
    assert!(
        error["message"].as_str().unwrap().contains("`local` did `drain` (http://h:2 of chat/v1)"),
        "{error}"
    );
    for (path, method) in [("/api/v1/config/reload", "POST"), ("/api/v1/endpoints?url=http://h:2", "DELETE")]
    {
        let late = ask(&router, method, path, &["if-match: \"1\""], Body::empty()).await;
        assert_eq!(late.status, 412);
    }
    for right in ["if-match: \"1\", \"2\"", "if-match: *"] {
        let headers = ["content-type: application/json", right];
        assert_eq!(ask(&router, "POST", DRAIN, &headers, body.clone()).await.status, 200);
    }
    for wrong in ["if-match: 2", "if-match: W/\"2\"", "if-match: \"x\""] {
        let reply =
            ask(&router, "POST", DRAIN, &["content-type: application/json", wrong], body.clone()).await;
        assert_eq!(reply.error(), (400, "invalid_if_match".to_owned()));
    }
}

#[tokio::test]
async fn a_bad_file_is_refused_and_a_good_one_keeps_the_changes() {
    let world = World::new(FILE);
    let (_, router) = world.router();
    post(&router, DRAIN, json!({ "url": "http://h:2" })).await;
    world.write("listen: 8080\nservices: []\ncolour: blue");
    let reply = ask(&router, "POST", "/api/v1/config/reload", &[], Body::empty()).await;
    assert_eq!(reply.error(), (422, "invalid_config".to_owned()));
    let problems = reply.json()["error"]["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 3, "{problems}");
    assert_eq!((&problems[0]["line"], &problems[0]["column"]), (&json!(1), &json!(9)));
    assert!(
        matches!(world.plane.happened().last(), Some(What::Refused { action, .. }) if action == "reload")
    );

    world
        .write(&FILE.replace("http://h:1\" }, {", "http://h:3\" }, {").replace("127.0.0.1:0", "127.0.0.1:1"));
    let reply = ask(&router, "POST", "/api/v1/config/reload", &[], Body::empty()).await;
    assert_eq!(reply.json(), json!({ "revision": 3, "needs_restart": ["listen"] }));
    assert_eq!(world.plane.endpoints(), ["http://h:3 active", "http://h:2 draining"]);
    // The endpoint leaves the file: the change waits for it.
    world.write(&FILE.replace("h:2", "h:4"));
    ask(&router, "POST", "/api/v1/config/reload", &[], Body::empty()).await;
    let config = get(&router, "/api/v1/config").await.json();
    assert_eq!(
        config["changes"],
        json!([{ "service": "chat", "version": "v1", "url": "http://h:2", "standing": "draining", "added": false, "pending": true }])
    );
    assert_eq!((&config["revision"], &config["needs_restart"]), (&json!(4), &json!([])));
}

/// The listener stays where it is until the restart.
#[test]
fn tokens_can_not_be_taken_from_an_open_listener() {
    let tokens = "admin: { listen: \"0.0.0.0:9090\", tokens: [{ name: ops, token: x, role: operator }] }\n";
    let world = World::new(&format!("{tokens}{FILE}"));
    let control = world.start().unwrap();
    world.write(FILE);
    let refusal = control.reload(&Actor::File, None).unwrap_err().to_string();
    assert!(refusal.contains("1 problem in"), "{refusal}");
    assert_eq!((world.plane.tables.lock().unwrap().len(), control.current().tokens.len()), (1, 1));
}

#[test]
fn damaged_changes_stop_the_start_and_say_how_to_go_on() {
    let world = World::new(FILE);
    std::fs::create_dir(world.path("state")).unwrap();
    let path = world.path("state/intent.json");
    for (text, said) in [
        ("", "the end is missing"),
        ("{\"format\": 1, \"revision\": 1, \"endp", "the end is missing"),
        ("nonsense", "this is not JSON, line 1 column 2"),
        ("{\"format\": 1, \"revision\": 1}", "this is not what Backstop writes"),
        ("{\"format\": 2}", "written by a newer Backstop (format 2"),
    ] {
        std::fs::write(&path, text).unwrap();
        let Err(StartError::State(error)) = world.start() else { panic!("{text}") };
        assert!(matches!(error, StateFileError::Damaged { .. } | StateFileError::Newer { .. }));
        let told = error.to_string();
        assert!(told.contains(said) && told.contains("hint: ") && told.contains("mv "), "{told}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "left as it was");
    }
}

#[tokio::test]
async fn a_process_that_takes_over_takes_the_changes_made_meanwhile() {
    let world = World::new(FILE);
    let (old, old_router) = world.router();
    let new = World { directory: world.directory.clone(), plane: Plane::new() };
    let (control, new_router) = new.router();
    for what in [DRAIN, "/api/v1/endpoints/restore", DRAIN] {
        post(&old_router, what, json!({ "url": "http://h:2" })).await;
    }
    let last = old.revision();
    old.follow();
    control.lead();
    assert_eq!(new.plane.endpoints(), ["http://h:1 active", "http://h:2 draining"]);
    assert!(control.revision() > last, "{} after {last}", control.revision());
    control.lead();
    assert_eq!(new.plane.tables.lock().unwrap().len(), 2, "there was nothing more to take");
    // It did not come to that: the old one goes on, with what the new one may have changed.
    post(&new_router, "/api/v1/endpoints/restore", json!({ "url": "http://h:2" })).await;
    old.lead();
    assert_eq!(world.plane.endpoints(), ["http://h:1 active", "http://h:2 active"]);
    let reply = post(&old_router, DRAIN, json!({ "url": "http://h:2" })).await;
    assert_eq!(reply.status, StatusCode::OK);
    std::fs::write(world.path("state/intent.json"), "{").unwrap();
    control.lead();
    assert_eq!(new.plane.endpoints(), ["http://h:1 active", "http://h:2 active"], "damaged, so as it was");
}

#[tokio::test]
async fn a_process_that_has_handed_over_follows_the_new_one() {
    let world = World::new(FILE);
    let (old, old_router) = world.router();
    let new = World { directory: world.directory.clone(), plane: Plane::new() };
    let (_, new_router) = new.router();
    old.follow();
    assert_eq!(world.plane.tables.lock().unwrap().len(), 1, "nothing is new yet");
    post(&new_router, DRAIN, json!({ "url": "http://h:2" })).await;
    new.write(&FILE.replace("h:1\" }, {", "h:3\" }, {"));
    old.follow();
    assert_eq!(world.plane.endpoints(), ["http://h:3 active", "http://h:2 draining"]);
    // Half a file changes nothing, and the other half of the truth is still followed.
    new.write("listen: 8080");
    post(&new_router, "/api/v1/endpoints/restore", json!({ "url": "http://h:2" })).await;
    old.follow();
    assert_eq!(world.plane.endpoints(), ["http://h:3 active", "http://h:2 active"]);
    std::fs::write(world.path("state/intent.json"), "{").unwrap();
    old.follow();
    assert_eq!(world.plane.endpoints(), ["http://h:3 active", "http://h:2 active"]);

    let late = post(&old_router, DRAIN, json!({ "url": "http://h:2" })).await;
    assert_eq!(late.error(), (503, "handed_over".to_owned()));
    assert_eq!(std::fs::read_to_string(world.path("state/intent.json")).unwrap(), "{", "not ours any more");
}
