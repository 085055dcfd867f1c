//! Wire shapes, texts and continuation.

use backstop_engine_sim::{Dialect, Sim, SimConfig, expected_completion, expected_text};
use serde_json::{Value, json};

use crate::client::{Conn, End, call, faulty_chat, hi, post};

pub(crate) const HI: &[(&str, &str)] = &[("user", "hi")];

pub(crate) async fn sim() -> Sim {
    Sim::start(SimConfig::default()).await.unwrap()
}

#[tokio::test]
async fn a_chat_streams_role_tokens_finish_and_done() {
    let sim = sim().await;
    let body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 5,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    });
    let reply = post(sim.addr(), "/v1/chat/completions", &body).await;
    assert_eq!((reply.status, reply.end), (200, End::Complete));
    assert!(reply.head.contains("content-type: text/event-stream"));
    let events = reply.events();
    assert_eq!(events.len(), 1 + 5 + 1 + 1 + 1);
    let events: Vec<Value> = events.iter().map(|it| serde_json::from_str(it).unwrap_or_default()).collect();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[6]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[7]["choices"], json!([]));
    assert_eq!(events[7]["usage"]["completion_tokens"], 5);
    assert!(events[..8].iter().all(|it| it["id"] == events[0]["id"] && it["model"] == "m"));
    assert!(reply.is_done());
    assert_eq!(reply.content(), expected_text(0, HI, 5));
}

#[tokio::test]
async fn a_chat_is_answered_in_one_piece() {
    let sim = sim().await;
    let reply = call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(false)).await.json();
    assert_eq!(reply["choices"][0]["message"]["content"], expected_text(0, HI, 64));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["usage"]["completion_tokens"], 64);
    let stats = sim.stats();
    assert_eq!((stats.requests, stats.completed, stats.in_flight, stats.cancelled), (1, 1, 0, 0));
}

#[tokio::test]
async fn vllm_continues_when_asked_only() {
    let sim = sim().await;
    let whole = expected_text(0, HI, 64);
    for cut in (0..whole.len()).filter(|at| whole.is_char_boundary(*at)).step_by(7) {
        let mut body = json!({
            "model": "m", "stream": true, "continue_final_message": true, "add_generation_prompt": false,
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": whole[..cut]}],
        });
        let reply = post(sim.addr(), "/v1/chat/completions", &body).await;
        assert_eq!(format!("{}{}", &whole[..cut], reply.content()), whole);
        body["continue_final_message"] = json!(false);
        body["add_generation_prompt"] = json!(true);
        let reply = post(sim.addr(), "/v1/chat/completions", &body).await;
        assert_eq!(reply.content(), expected_text(0, &[("user", "hi"), ("assistant", &whole[..cut])], 64));
    }
    let both = json!({
        "continue_final_message": true, "messages": [{"role": "assistant", "content": "a"}],
    });
    assert_eq!(post(sim.addr(), "/v1/chat/completions", &both).await.status, 400);
}

#[tokio::test]
async fn llama_cpp_continues_always() {
    let sim = Sim::start(SimConfig { dialect: Dialect::LlamaCpp, ..SimConfig::default() }).await.unwrap();
    let whole = expected_text(0, HI, 64);
    let cut = whole.char_indices().nth(20).unwrap().0;
    let prefill = json!({
        "stream": true,
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": whole[..cut]}],
    });
    let reply = post(sim.addr(), "/v1/chat/completions", &prefill).await;
    assert_eq!(reply.content(), whole[cut..]);
}

#[tokio::test]
async fn sglang_continues_when_asked_and_openai_never() {
    let whole = expected_text(0, HI, 64);
    let cut = whole.char_indices().nth(20).unwrap().0;
    let so_far = &whole[..cut];
    let anew = expected_text(0, &[("user", "hi"), ("assistant", so_far)], 64);
    for (dialect, asked, expected) in [
        (Dialect::Sglang, true, &whole[cut..]),
        (Dialect::Sglang, false, &anew),
        (Dialect::OpenAi, true, &anew),
        (Dialect::OpenAi, false, &anew),
    ] {
        let sim = Sim::start(SimConfig { dialect, ..SimConfig::default() }).await.unwrap();
        let body = json!({
            "stream": true, "continue_final_message": asked,
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": so_far}],
        });
        let reply = post(sim.addr(), "/v1/chat/completions", &body).await;
        assert_eq!(reply.content(), expected, "{dialect:?}, asked {asked}");
    }
}

/// Whatever was sent to a client before, the same request again gives the same text from its beginning.
#[tokio::test]
async fn the_same_request_gives_the_same_text() {
    let sim = sim().await;
    let cut = faulty_chat(sim.addr(), "cut=9;how=end", true).await.content();
    let again = call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await.content();
    assert!(again.starts_with(&cut) && again == expected_text(0, HI, 64));
}

#[tokio::test]
async fn a_text_completion_continues_its_prompt() {
    let sim = sim().await;
    let whole = expected_completion(0, "Once", 64);
    let ask = |prompt: String| json!({"model": "m", "prompt": prompt, "stream": true, "max_tokens": 64});
    let reply = post(sim.addr(), "/v1/completions", &ask("Once".to_owned())).await;
    assert_eq!((reply.content(), reply.is_done()), (whole.clone(), true));
    let cut = whole.char_indices().nth(33).unwrap().0;
    let reply = post(sim.addr(), "/v1/completions", &ask(format!("Once{}", &whole[..cut]))).await;
    assert_eq!(reply.content(), whole[cut..]);
}

#[tokio::test]
async fn choices_stop_and_ids_differ() {
    let sim = sim().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "n": 3, "max_completion_tokens": 9});
    let reply = post(sim.addr(), "/v1/chat/completions", &body).await.json();
    let texts: Vec<_> = (0..3).map(|it| reply["choices"][it]["message"]["content"].clone()).collect();
    assert_eq!(texts[0], expected_text(0, HI, 9));
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    assert_eq!(reply["usage"]["completion_tokens"], 27);
    let again = post(sim.addr(), "/v1/chat/completions", &body).await.json();
    assert_ne!(again["id"], reply["id"]);

    let whole = expected_text(0, HI, 64);
    let at = whole.char_indices().nth(40).unwrap().0;
    let stop: String = whole[at..].chars().take(5).collect();
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "stop": stop});
    let reply = post(sim.addr(), "/v1/chat/completions", &body).await;
    assert_eq!(reply.content(), whole[..whole.find(&stop).unwrap()]);
    assert!(reply.text().contains("\"finish_reason\":\"stop\""));
}

#[tokio::test]
async fn errors_have_the_shape_of_openai() {
    let config = SimConfig {
        model: Some("only".to_owned()),
        kv_tokens: Some(50),
        dialect: Dialect::OpenAi,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await.unwrap();
    let chat = "/v1/chat/completions";
    let long =
        json!({"model": "only", "messages": [{"role": "user", "content": "x".repeat(400)}]}).to_string();
    let wrong = [
        (chat, "{", 400, Value::Null),
        (chat, "{\"messages\": []}", 400, Value::Null),
        (chat, &hi(true), 404, json!("model_not_found")),
        (chat, &long, 400, json!("context_length_exceeded")),
        ("/v1/nothing", "{}", 404, Value::Null),
    ];
    for (path, body, status, code) in wrong {
        let reply = call(sim.addr(), "POST", path, "", body).await;
        assert_eq!(reply.status, status, "{body}");
        let error = &reply.json()["error"];
        assert_eq!(error["code"], code);
        assert!(error["message"].is_string() && error["type"].is_string());
    }
    assert_eq!(sim.in_flight(), 0);
}

#[tokio::test]
async fn models_and_health_answer() {
    let sim = sim().await;
    let models = call(sim.addr(), "GET", "/v1/models", "", "").await.json();
    assert_eq!((&models["object"], &models["data"][0]["object"]), (&json!("list"), &json!("model")));
    let one = call(sim.addr(), "GET", "/v1/models/org/name", "", "").await.json();
    assert_eq!((&one["id"], &one["object"]), (&json!("org/name"), &json!("model")));
    assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 200);
    assert_eq!(sim.stats().health_checks, 1);
}

#[tokio::test]
async fn the_log_shows_what_arrived() {
    let sim = Sim::start(SimConfig { log: 2, ..SimConfig::default() }).await.unwrap();
    for n in 0..3 {
        call(sim.addr(), "POST", "/v1/chat/completions?x=1", &format!("X-N: {n}\r\n"), &hi(false)).await;
    }
    let log = sim.request_log();
    assert_eq!(log.iter().map(|it| it.header("x-n").unwrap()).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(log[1].json()["messages"][0]["content"], "hi");
    assert_eq!((log[1].method.as_str(), log[1].path.as_str()), ("POST", "/v1/chat/completions?x=1"));
}

#[tokio::test]
async fn each_event_is_a_write_of_its_own() {
    let sim = sim().await;
    let mut conn = Conn::open(sim.addr()).await;
    conn.send("POST", "/v1/chat/completions", "", &hi(true)).await;
    conn.head().await.unwrap();
    loop {
        let chunk = String::from_utf8(conn.chunk().await.unwrap()).unwrap();
        if chunk.is_empty() {
            break;
        }
        assert!(chunk.ends_with("\n\n") && chunk.matches("data: ").count() == 1, "{chunk:?}");
    }
    // The connection can be used again.
    conn.send("POST", "/v1/chat/completions", "", &hi(true)).await;
    assert!(conn.reply().await.is_done());
}
