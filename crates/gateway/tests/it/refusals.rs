//! Errors in the words of each engine: what no other endpoint could do better goes back at once, as it is.

use backstop_engine_sim::{Dialect, Fault, PolicyCode, SimConfig};
use serde_json::{Value, json};

use crate::client::{CHAT, End, Reply, all, call, chat, error_code, hi};
use crate::stream_end::{check_cut, late_fault};
use crate::world::{TOKENS, World, ms, oracle, with_raw};

const DIALECTS: [Dialect; 4] = [Dialect::Vllm, Dialect::Sglang, Dialect::LlamaCpp, Dialect::OpenAi];

fn prefill(stream: bool) -> Vec<u8> {
    let body = json!({
        "model": "chat", "stream": stream, "continue_final_message": true, "add_generation_prompt": false,
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": oracle(3)}],
    });
    body.to_string().into_bytes()
}

/// The engine's own answer and the one that came through, to the same request.
async fn refused(engines: usize, dialect: Dialect, fault: &Fault, body: &[u8]) -> (World, Reply, Reply) {
    let config = SimConfig { dialect, ..SimConfig::default() };
    // One failure would open the breaker.
    let world = World::of(vec![config; engines], |service| service.breaker.failures = 1).await;
    world.sims[0].set_fault(fault.clone());
    let through = call(world.addr, "POST", CHAT, "", body).await;
    assert_eq!(world.requests()[0], 1, "{dialect:?}, {fault:?}");
    let direct = call(world.sims[0].addr(), "POST", CHAT, "", body).await;
    (world, direct, through)
}

#[tokio::test]
async fn refusals_come_back_from_the_first_engine() {
    let mut running = Vec::new();
    for fault in [
        Fault::ContextLength,
        Fault::PrefillRejected,
        Fault::ContentPolicy { code: PolicyCode::ContentPolicyViolation },
        Fault::ContentPolicy { code: PolicyCode::ContentFilter },
    ] {
        for dialect in DIALECTS {
            for (engines, stream) in [(1, true), (1, false), (2, true), (2, false)] {
                running.push(tokio::spawn(case(fault.clone(), dialect, engines, stream)));
            }
        }
    }
    all(running).await;

    async fn case(fault: Fault, dialect: Dialect, engines: usize, stream: bool) {
        let context = format!("{fault:?} of {dialect:?}, {engines} engines, stream {stream}");
        let body = if fault == Fault::PrefillRejected { prefill(stream) } else { hi(stream) };
        let (world, direct, through) = refused(engines, dialect, &fault, &body).await;
        assert_eq!((direct.status, through.status, through.attempts()), (400, 400, 1), "{context}");
        assert_eq!(through.header("content-type"), Some("application/json"), "{context}");
        let (direct, through) = (direct.json(), through.json());
        // Only SGLang leaves out the envelope that OpenAI's clients look into.
        if direct["error"].is_object() {
            assert_eq!(through, direct, "{context}");
        } else {
            error_code(&through);
            assert_eq!(through["error"]["message"], direct["message"], "{context}");
        }
        assert!(world.requests()[1..].iter().all(|&asked| asked == 0), "{context}");
        let totals = world.totals();
        assert_eq!((totals.answered, totals.failed, totals.retries), (1, 0, 0), "{context}");
        assert!(!world.endpoint(0).breaker_open, "{context}");
    }
}

/// What is too long for one endpoint is so for its siblings, even if it should not be.
#[tokio::test]
async fn a_long_prompt_is_sent_to_one_engine() {
    let short = SimConfig { context: Some(20), dialect: Dialect::OpenAi, ..SimConfig::default() };
    let world = World::of(vec![short, SimConfig::default()], |_| {}).await;
    for stream in [true, false] {
        let long = json!({
            "model": "chat", "stream": stream, "messages": [{"role": "user", "content": "x".repeat(400)}],
        });
        let reply = call(world.addr, "POST", CHAT, "", long.to_string().as_bytes()).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "context_length_exceeded"));
        // And what fits is cut off by the engine where its context ends, as clients know it.
        let reply = chat(world.addr, stream).await;
        assert_eq!((reply.status, reply.content()), (200, oracle(15)));
        let body = String::from_utf8(reply.body).unwrap();
        assert_eq!(body.matches("\"finish_reason\":\"length\"").count(), 1);
    }
    assert_eq!(world.requests(), [4, 0]);
}

/// An answer that the engine's filter ended has ended.
#[tokio::test]
async fn filtered_answers_are_whole() {
    let world = World::start(2, |_| {}).await;
    for after in [0, 3, TOKENS] {
        world.sims[0].set_fault(Fault::ContentFilter { after: after as u64 });
        for stream in [true, false] {
            let reply = chat(world.addr, stream).await;
            let context = format!("after {after}, stream {stream}: {}", reply.text());
            assert_eq!((reply.status, reply.end, reply.attempts()), (200, End::Complete, 1), "{context}");
            assert_eq!(reply.content(), oracle(after), "{context}");
            assert_eq!(reply.text().matches("\"finish_reason\":\"content_filter\"").count(), 1, "{context}");
            assert!(!stream || reply.is_done(), "{context}");
        }
    }
    assert_eq!((world.requests(), world.totals().answered), (vec![6, 0], 6));
}

/// vLLM and SGLang send `[DONE]` behind an error, which would make the answer look complete.
#[tokio::test]
async fn no_end_mark_follows_an_error() {
    for dialect in DIALECTS {
        for done in [true, false] {
            let context = format!("{dialect:?}, done {done}");
            let fault = |after| Fault::ErrorEvent { after, done };
            let itl = backstop_engine_sim::Dist::Constant(ms(20));
            let config = SimConfig { dialect, itl, tokens: 12, ..SimConfig::default() };
            let world = World::of(vec![config; 2], |_| {}).await;
            world.sims[0].set_fault(fault(0));
            let reply = chat(world.addr, true).await;
            assert_eq!((reply.attempts(), reply.content()), (2, oracle(12)), "{context}");
            assert!(reply.is_done(), "{context}");
            world.sims[0].set_fault(fault(3));
            let reply = late_fault(&world).await;
            check_cut(&reply, &oracle(3), "upstream_stream_error", &context);
            assert!(reply.text().contains("simulated error in the stream"), "{}", reply.text());
            assert!(!reply.text().contains("[DONE]"), "{context}");
        }
    }
}

/// Older engines report errors in events that no client of OpenAI's takes for one.
#[tokio::test]
async fn an_error_that_looks_like_none_completes_nothing() {
    let first = r#"data: {"choices":[{"index":0,"delta":{"content":"the"},"finish_reason":null}]}"#;
    let flat = r#"data: {"object":"error","message":"out of memory","type":"X","param":null,"code":500}"#;
    let field = r#"error: {"code":500,"message":"out of memory","type":"server_error"}"#;
    for (error, end) in [(flat, "data: [DONE]\n\n"), (flat, ""), (field, "")] {
        let headers = "content-type: text/event-stream; charset=utf-8\r\n";
        // Before the first output: no answer.
        let raw = with_raw(1, "200 OK", headers, &format!("{error}\n\n{end}"), |_| {}).await;
        let reply = chat(raw.world.addr, true).await;
        assert_eq!(
            (reply.attempts(), reply.content(), reply.is_done()),
            (2, oracle(TOKENS), true),
            "{error}"
        );
        let raw = with_raw(0, "200 OK", headers, &format!("{error}\n\n{end}"), |_| {}).await;
        let reply = chat(raw.world.addr, true).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_truncated"), "{error}");
        if !end.is_empty() {
            continue;
        }
        // Behind it: an incomplete one.
        let raw = with_raw(0, "200 OK", headers, &format!("{first}\n\n{error}\n\n{end}"), |_| {}).await;
        let reply = chat(raw.world.addr, true).await;
        let text = reply.text();
        let (_, last) = text.trim_end().rsplit_once("\n\n").unwrap();
        let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((reply.status, error_code(&last).as_str()), (200, "upstream_truncated"), "{text}");
        assert!(text.starts_with(first) && !text.contains("[DONE]"), "{text}");
    }
}
