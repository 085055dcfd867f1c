//! Who may use what: API keys, tenants, services.

use backstop_core::table::{Digest, KeySpec, RateSpec};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::client::{CHAT, call, hi};
use crate::world::{World, service};

pub(crate) fn key(name: &str, secret: &str, services: Option<&[&str]>) -> KeySpec {
    KeySpec {
        name: name.to_owned(),
        digest: Digest(Sha256::digest(secret).into()),
        tenant: None,
        services: services.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        limits: RateSpec::default(),
    }
}

/// Services `chat` and `other`; one key for both, one for `chat` only.
async fn world() -> World {
    let mut world = World::start(1, |_| {}).await;
    let mut other = service(&world.sims);
    (other.name, other.models) = ("other".to_owned(), vec!["other".to_owned()]);
    world.apply(|spec| {
        spec.services.push(other);
        spec.keys = vec![key("all", "sk-all", None), key("chat-only", "sk-chat", Some(&["chat"]))];
    });
    world.until_all(backstop_core::health::State::Healthy).await;
    world
}

#[tokio::test]
async fn without_a_known_key_nothing_is_served() {
    let world = world().await;
    for (headers, code) in [
        ("", "missing_api_key"),
        ("authorization: Bearer sk-nobody\r\n", "invalid_api_key"),
        ("authorization: Basic c2stYWxs\r\n", "missing_api_key"),
    ] {
        for (method, path, body) in [("POST", CHAT, hi(false)), ("GET", "/v1/models", Vec::new())] {
            let reply = call(world.addr, method, path, headers, &body).await;
            assert_eq!(reply.status, 401, "{headers}{path}");
            assert_eq!(reply.json()["error"]["code"], code);
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(world.requests(), [0], "nothing reached the engine");
    assert_eq!(call(world.addr, "GET", "/ready", "", b"").await.status, 200, "probes need no key");
}

#[tokio::test]
async fn a_key_opens_its_services_and_stays_here() {
    let world = world().await;
    let ask = async |secret: &str, model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}]}).to_string();
        let headers = format!("authorization: Bearer {secret}\r\n");
        call(world.addr, "POST", CHAT, &headers, body.as_bytes()).await
    };
    assert_eq!(ask("sk-all", "chat").await.status, 200);
    assert_eq!(ask("sk-all", "other").await.status, 200);
    assert_eq!(ask("sk-chat", "chat").await.status, 200);
    let refused = ask("sk-chat", "other").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("service_not_allowed")));
    let unknown = ask("sk-chat", "nothing").await;
    assert_eq!(unknown.status, 404);
    assert!(!unknown.text().contains("other"), "others' models are not named: {}", unknown.text());

    let named = "authorization: Bearer sk-chat\r\nx-backstop-service: other\r\n";
    assert_eq!(call(world.addr, "POST", CHAT, named, &hi(false)).await.status, 403);
    let listed = call(world.addr, "GET", "/v1/models", "x-api-key: sk-chat\r\n", b"").await;
    let listed = listed.json();
    let ids: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["chat"]);
    let hidden = call(world.addr, "GET", "/v1/models/other", "x-api-key: sk-chat\r\n", b"").await;
    assert_eq!(hidden.status, 404);
    let log = world.sims[0].request_log();
    assert!(log.iter().all(|it| it.header("authorization").is_none() && it.header("x-api-key").is_none()));
}

#[tokio::test]
async fn keys_change_with_the_table() {
    let mut world = world().await;
    let ask = async |world: &World| {
        call(world.addr, "POST", CHAT, "authorization: Bearer sk-new\r\n", &hi(false)).await.status
    };
    assert_eq!(ask(&world).await, 401);
    world.apply(|spec| spec.keys = vec![key("new", "sk-new", None)]);
    assert_eq!(ask(&world).await, 200);
    world.apply(|spec| spec.keys.clear());
    assert_eq!(call(world.addr, "POST", CHAT, "", &hi(false)).await.status, 200, "open again");
}
