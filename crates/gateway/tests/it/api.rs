//! What goes through: every API, untouched but for what is the gateway's to change.

use backstop_core::table::{ServiceSpec, VersionSpec};
use backstop_engine_sim::{Sim, SimConfig, expected_completion};
use serde_json::{Value, json};

use crate::client::{CHAT, Conn, End, call, chat, hi};
use crate::world::{TOKENS, World, endpoint, header_rule, oracle, service, with_raw};

#[tokio::test]
async fn every_api_passes() {
    let world = World::start(1, |_| {}).await;
    for stream in [false, true] {
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.end, reply.content()), (200, End::Complete, oracle(TOKENS)));
        let body = json!({"model": "chat", "prompt": "hi", "stream": stream}).to_string();
        let reply = call(world.addr, "POST", "/v1/completions", "", body.as_bytes()).await;
        assert_eq!((reply.status, reply.content()), (200, expected_completion(0, "hi", TOKENS)));
        let body = json!({"model": "chat", "input": "hi", "stream": stream}).to_string();
        let reply = call(world.addr, "POST", "/v1/responses", "", body.as_bytes()).await;
        assert_eq!((reply.status, reply.end), (200, End::Complete));
        if stream {
            assert!(reply.text().contains("event: response.completed\n"));
            assert_eq!(reply.content(), oracle(TOKENS));
        } else {
            assert_eq!(reply.json()["output"][0]["content"][0]["text"], oracle(TOKENS));
        }
    }
    let body = json!({"model": "chat", "input": ["a", "b"]}).to_string();
    let reply = call(world.addr, "POST", "/v1/embeddings", "", body.as_bytes()).await;
    assert_eq!((reply.status, reply.json()["data"].as_array().unwrap().len()), (200, 2));
    assert_eq!(world.requests(), [7]);
    assert_eq!(world.totals().answered, 7);
}

#[tokio::test]
async fn the_models_that_are_served() {
    let world = World::start(1, |service| {
        service.models = vec!["chat".to_owned(), "org/chat-large".to_owned()];
    })
    .await;
    let reply = call(world.addr, "GET", "/v1/models", "", b"").await;
    let ids: Vec<Value> =
        reply.json()["data"].as_array().unwrap().iter().map(|it| it["id"].clone()).collect();
    assert_eq!((reply.status, ids), (200, vec![json!("chat"), json!("org/chat-large")]));
    for path in ["/v1/models/org/chat-large", "/v1/models/org%2Fchat-large"] {
        let reply = call(world.addr, "GET", path, "", b"").await;
        assert_eq!((reply.status, reply.json()["id"].clone()), (200, json!("org/chat-large")));
    }
    let reply = call(world.addr, "GET", "/v1/models/other", "", b"").await;
    assert_eq!((reply.status, reply.error_code().as_str()), (404, "model_not_found"));
    assert_eq!(world.requests(), [0], "the gateway knows by itself");
}

/// Byte for byte, with one exception: the endpoint's own name for the model.
#[tokio::test]
async fn bodies_pass_untouched() {
    const BODY: &str = "{ \"messages\":[{\"role\":\"user\",\"content\":\"h\\u0069\",\"model\":\"chat\"}],\n\t\
        \"model\" : \"chat\" ,\"x_unknown\":{\"deep\":[1e400,-0.0,12345678901234567890123]},\"y\":\"\\ud83d\\ude00\" }\r\n";
    for mapped in [None, Some("engine/\"name\"")] {
        let world = World::start(1, |service| {
            service.versions[0].endpoints[0].model = mapped.map(str::to_owned);
        })
        .await;
        let reply = call(world.addr, "POST", CHAT, "", BODY.as_bytes()).await;
        let expected = match mapped {
            None => BODY.to_owned(),
            Some(name) => BODY.replace("\"model\" : \"chat\"", &format!("\"model\" : {}", json!(name))),
        };
        let sent = world.sims[0].request_log().into_iter().rfind(|it| it.method == "POST").unwrap();
        assert_eq!(String::from_utf8(sent.body.to_vec()).unwrap(), expected);
        assert!(reply.status == 200 || reply.status == 400, "whatever the engine thinks of it");
        // In chunks it is the same body.
        let chunked = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            40,
            &BODY[..40],
            BODY.len() - 40,
            &BODY[40..]
        );
        let mut conn = Conn::open(world.addr).await;
        conn.write(chunked.as_bytes()).await;
        conn.reply().await;
        let sent = world.sims[0].request_log().into_iter().rfind(|it| it.method == "POST").unwrap();
        assert_eq!(sent.body, expected.as_bytes());
        assert_eq!(sent.header("content-length"), Some(expected.len().to_string().as_str()));
        assert_eq!(sent.header("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn headers_pass_unless_they_are_somebody_elses() {
    let world = World::start(1, |service| {
        service.versions[0].endpoints[0].api_key = Some("engine-key".to_owned());
    })
    .await;
    let headers = "authorization: Bearer client-key\r\nx-api-key: client-key\r\napi-key: client-key\r\n\
        proxy-authorization: client-key\r\ncookie: client-key\r\nconnection: x-named, keep-alive\r\nx-named: hop\r\n\
        keep-alive: timeout=5\r\nte: trailers\r\nupgrade: h2c\r\naccept-encoding: gzip\r\n\
        openai-organization: org\r\nx-custom: one\r\nx-custom: two\r\nuser-agent: OpenAI/Python\r\n";
    let reply = call(world.addr, "POST", CHAT, headers, &hi(false)).await;
    assert_eq!(reply.content(), oracle(TOKENS));
    let sent = world.sims[0].request_log().into_iter().rfind(|it| it.method == "POST").unwrap();
    let all = format!("{:?}", sent.headers);
    for gone in
        ["client-key", "x-named", "\"keep-alive\"", "\"te\"", "upgrade", "gzip", "proxy-auth", "cookie"]
    {
        assert!(!all.contains(gone), "{gone} in {all}");
    }
    assert_eq!(sent.header("authorization"), Some("Bearer engine-key"));
    assert_eq!(sent.header("accept-encoding"), Some("identity"));
    assert_eq!(sent.header("openai-organization"), Some("org"));
    assert_eq!(sent.header("user-agent"), Some("OpenAI/Python"));
    assert_eq!(sent.headers.iter().filter(|(name, _)| name == "x-custom").count(), 2);
    assert_eq!(sent.header("x-request-id"), reply.header("x-request-id"), "both sides can tell which it was");
}

#[tokio::test]
async fn answers_say_where_they_come_from() {
    let world = World::start(1, |_| {}).await;
    let long = "x".repeat(129);
    let cases = [
        ("my-id_1.2:3/4", true),
        ("", false),
        ("two words", false),
        ("\u{e9}", false),
        (long.as_str(), false),
    ];
    for stream in [true, false] {
        for (given, kept) in cases {
            let headers = format!("x-request-id: {given}\r\n");
            for (body, status) in [(hi(stream), 200), (b"{}".to_vec(), 400)] {
                let reply = call(world.addr, "POST", CHAT, &headers, &body).await;
                let id = reply.header("x-request-id").unwrap();
                assert_eq!((reply.status, id == given), (status, kept), "{given:?} → {id:?}");
                assert!(kept || id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id:?}");
            }
        }
        let (one, two) = (chat(world.addr, stream).await, chat(world.addr, stream).await);
        assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
        assert_eq!(one.header("x-backstop-version"), Some("v1"));
        assert_eq!(one.header("x-backstop-attempts"), Some("1"));
    }
}

async fn two_services() -> World {
    let mut sims = Vec::new();
    for _ in 0..3 {
        sims.push(Sim::start(SimConfig::default()).await.unwrap());
    }
    let mut chat = service(&sims[..1]);
    chat.versions.push(VersionSpec::new("v2", vec![endpoint(&sims[1], 0)]));
    chat.rules = vec![header_rule("x-gray", "yes", "v2"), header_rule("x-gray", "v2", "v2")];
    let other = ServiceSpec {
        name: "other".to_owned(),
        models: vec!["other-model".to_owned()],
        ..service(&sims[2..])
    };
    let world = World::serve(sims, vec![chat, other]).await;
    world.until_all(backstop_core::health::State::Healthy).await;
    world
}

#[tokio::test]
async fn the_model_selects_the_service_and_a_header_the_version() {
    let world = two_services().await;
    let other = json!({"model": "other-model", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let cases: [(&str, &[u8], &str, [usize; 3]); 7] = [
        ("", &hi(false), "v1", [1, 0, 0]),
        ("x-gray: yes\r\n", &hi(true), "v2", [0, 1, 0]),
        ("X-GRAY: v2\r\n", &hi(true), "v2", [0, 1, 0]),
        ("x-gray: no\r\nx-gray: yes\r\n", &hi(true), "v2", [0, 1, 0]),
        ("x-gray: YES\r\n", &hi(false), "v1", [1, 0, 0]),
        ("x-gray: yes\r\n", other.as_bytes(), "v1", [0, 0, 1]),
        // The header names the service whatever the body says.
        ("x-backstop-service: other\r\n", &hi(false), "v1", [0, 0, 1]),
    ];
    for (headers, body, version, expected) in cases {
        let before = world.requests();
        let reply = call(world.addr, "POST", CHAT, headers, body).await;
        assert_eq!((reply.status, reply.header("x-backstop-version")), (200, Some(version)), "{headers}");
        let asked: Vec<usize> =
            world.requests().iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(asked, expected, "{headers}");
    }
}

/// The simulator knows no such path, but it is the engine's 404 that comes back.
#[tokio::test]
async fn other_paths_pass_by_model_or_header() {
    let world = two_services().await;
    let form = b"--x\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n\xff\xfe\r\n--x--\r\n";
    let json = json!({"model": "other-model", "input": "hi"}).to_string();
    let cases: [(&str, &str, &str, &[u8]); 4] = [
        ("POST", "/v1/rerank?top=1", "content-type: application/json\r\n", json.as_bytes()),
        (
            "POST",
            "/v1/audio/transcriptions",
            "content-type: multipart/form-data; boundary=x\r\nx-backstop-service: other\r\n",
            form,
        ),
        ("GET", "/v1/files/f%20x?limit=2", "x-backstop-service: other\r\n", b""),
        ("DELETE", "/v1/files/f-1", "x-backstop-service: other\r\n", b""),
    ];
    for (method, path, headers, body) in cases {
        let reply = call(world.addr, method, path, headers, body).await;
        assert_eq!(reply.status, 404, "{path}");
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("unknown request"), "{path}: {message}");
        let sent = world.sims[2].request_log().pop().unwrap();
        assert_eq!((sent.method.as_str(), sent.path.as_str(), &sent.body[..]), (method, path, body));
    }
    assert_eq!(world.requests(), [0, 0, 4]);
}

/// What they mean is not known, so whatever comes is passed on whole: in one piece or as a stream, asked for or not.
#[tokio::test]
async fn answers_of_other_paths_pass_whole() {
    let named = "x-backstop-service: chat\r\n";
    let json = "content-type: application/json\r\n";
    let by_model: [&[u8]; 2] = [br#"{"model":"chat","x":1}"#, br#"{"model":"chat","stream":true}"#];
    let answers = [
        (json, r#"{"results":[{"index":0}]}"#),
        ("content-type: audio/mpeg\r\n", "\u{1}sound"),
        ("", ""),
        ("content-type: text/event-stream\r\n", "event: a\ndata: {\"delta\":1}\n\ndata: plain text\n\n"),
        ("content-type: text/event-stream\r\n", "data: {}\n\ndata: [DONE]\n\n"),
    ];
    for (headers, body) in answers {
        let raw = with_raw(0, "200 OK", headers, body, |_| {}).await;
        let mut cases: Vec<(&str, &str, String, &[u8])> = vec![
            ("GET", "/v1/files/f-1", named.to_owned(), b""),
            ("POST", "/v1/audio/transcriptions", format!("content-type: text/plain\r\n{named}"), b"form"),
        ];
        cases.extend(by_model.map(|body| ("POST", "/v1/rerank", json.to_owned(), body)));
        cases.extend(by_model.map(|body| ("POST", "/v1/rerank", format!("{json}{named}"), body)));
        let count = cases.len();
        for (method, path, sent, request) in cases {
            let context = format!("{method} {path} {sent:?} → {headers:?} {body:?}");
            let reply = call(raw.world.addr, method, path, &sent, request).await;
            assert_eq!((reply.status, reply.end), (200, End::Complete), "{context}: {}", reply.text());
            assert_eq!(reply.text(), body, "{context}");
            let content_type = headers.trim_end().strip_prefix("content-type: ");
            assert_eq!(reply.header("content-type"), content_type, "{context}");
        }
        assert_eq!(raw.asked(), count);
    }
}

/// An engine would redirect to the path without it.
#[tokio::test]
async fn a_slash_at_the_end_is_dropped() {
    let world = World::start(1, |_| {}).await;
    let cases = [
        ("/v1/chat/completions/", CHAT),
        ("/v1/chat/completions/?x=1", "/v1/chat/completions?x=1"),
        (CHAT, CHAT),
    ];
    for stream in [true, false] {
        for (asked, expected) in cases {
            let reply = call(world.addr, "POST", asked, "", &hi(stream)).await;
            assert_eq!((reply.status, reply.content()), (200, oracle(TOKENS)), "{asked}");
            assert_eq!(world.sims[0].request_log().pop().unwrap().path, expected);
        }
    }
}

#[tokio::test]
async fn checks_may_ask_for_the_head_alone() {
    let world = World::start(1, |service| {
        service.health.interval = crate::world::ms(30);
        service.health.down = 1;
    })
    .await;
    let head = async |path| {
        let mut conn = Conn::open(world.addr).await;
        conn.send("HEAD", path, "", b"").await;
        let reply = conn.head().await.unwrap();
        // Nothing follows, and the connection is good for more.
        assert_eq!(conn.rest_or_idle().await, (Vec::new(), None), "{path}");
        conn.send("POST", CHAT, "", &hi(false)).await;
        (reply.status, conn.reply().await.status)
    };
    for path in ["/health", "/healthz", "/ready", "/readyz"] {
        assert_eq!(head(path).await, (200, 200), "{path}");
    }
    world.sims[0].kill().await;
    world.until_state(0, backstop_core::health::State::Unhealthy).await;
    assert_eq!((head("/health").await, head("/ready").await), ((200, 503), (503, 503)));
}
