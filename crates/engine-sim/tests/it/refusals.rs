//! Requests that are answered 400 for what they ask, in the words of each engine.

use backstop_engine_sim::{Dialect, Fault, Rule, Sim, SimConfig, expected_text};
use serde_json::{Value, json};

use crate::client::{call, faulty_chat, hi, post};
use crate::protocol::{HI, sim};

const CHAT: &str = "/v1/chat/completions";

const DIALECTS: [Dialect; 4] = [Dialect::Vllm, Dialect::Sglang, Dialect::LlamaCpp, Dialect::OpenAi];

async fn sim_of(dialect: Dialect, context: Option<u64>) -> Sim {
    Sim::start(SimConfig { dialect, context, ..SimConfig::default() }).await.unwrap()
}

/// The message of an error in the form of `dialect`, with its type and code.
#[track_caller]
fn error_of(dialect: Dialect, body: &Value) -> (String, Value, Value) {
    let error = if dialect == Dialect::Sglang { body } else { &body["error"] };
    assert_eq!(body["object"] == "error", dialect == Dialect::Sglang, "{body}");
    (error["message"].as_str().unwrap().to_owned(), error["type"].clone(), error["code"].clone())
}

#[tokio::test]
async fn prefills_are_rejected_and_nothing_else() {
    let ends_with_assistant = json!({
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the"}],
    });
    let asked = json!({
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the"}],
        "continue_final_message": true, "add_generation_prompt": false,
    });
    let before = json!({
        "messages": [{"role": "assistant", "content": "the"}, {"role": "user", "content": "hi"}],
    });
    for dialect in DIALECTS {
        let sim = sim_of(dialect, None).await;
        sim.set_fault(Rule::times(Fault::PrefillRejected, 2));
        // Neither spoilt nor counted.
        assert_eq!(post(sim.addr(), CHAT, &before).await.status, 200);
        assert_eq!(call(sim.addr(), "POST", "/v1/completions", "", "{\"prompt\": \"hi\"}").await.status, 200);
        for body in [&ends_with_assistant, &asked] {
            let reply = post(sim.addr(), CHAT, body).await;
            let (message, kind, code) = error_of(dialect, &reply.json());
            assert_eq!(reply.status, 400, "{dialect:?}");
            let (expected_kind, expected_code, part) = match dialect {
                Dialect::Vllm | Dialect::Sglang => ("BadRequestError", json!(400), "continue_final_message"),
                Dialect::LlamaCpp => ("invalid_request_error", json!(400), "prefill is incompatible"),
                Dialect::OpenAi => ("invalid_request_error", Value::Null, "does not support assistant"),
            };
            assert_eq!((kind, code), (json!(expected_kind), expected_code), "{dialect:?}");
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(post(sim.addr(), CHAT, &asked).await.status, 200, "that were the two");
        assert_eq!((sim.in_flight(), sim.stats().faulted), (0, 2));
    }
    let sim = sim().await;
    let by_header = async |body: &Value| {
        call(sim.addr(), "POST", CHAT, "x-sim-fault: prefill_rejected\r\n", &body.to_string()).await
    };
    assert_eq!(by_header(&ends_with_assistant).await.status, 400);
    assert_eq!(by_header(&before).await.status, 200);
}

#[tokio::test]
async fn a_context_has_an_end() {
    // Five tokens of prompt.
    let ask = |max: Value| json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": max});
    for dialect in DIALECTS {
        let sim = sim_of(dialect, Some(30)).await;
        let whole = post(sim.addr(), CHAT, &ask(json!(25))).await.json();
        assert_eq!(whole["usage"]["total_tokens"], 30, "{dialect:?}");
        // Without a wish of its own the answer ends with the context.
        let short = post(sim.addr(), CHAT, &ask(Value::Null)).await.json();
        assert_eq!(short["choices"][0]["message"]["content"], expected_text(0, HI, 25), "{dialect:?}");
        assert_eq!(short["choices"][0]["finish_reason"], "length");
        // Too long an answer: only llama.cpp begins it.
        let reply = post(sim.addr(), CHAT, &ask(json!(26))).await;
        if dialect == Dialect::LlamaCpp {
            assert_eq!((reply.status, &reply.json()["usage"]["total_tokens"]), (200, &json!(30)));
        } else {
            let (message, ..) = error_of(dialect, &reply.json());
            assert!(
                reply.status == 400 && message.contains("maximum context length") && message.contains("31")
            );
        }
        // Too long a prompt.
        let long = json!({"messages": [{"role": "user", "content": "x".repeat(400)}]});
        let reply = post(sim.addr(), CHAT, &long).await;
        check_context_error(dialect, reply.status, &reply.json(), 104, 30);
        assert_eq!(sim.in_flight(), 0);
    }
}

#[track_caller]
fn check_context_error(dialect: Dialect, status: u16, body: &Value, asked: u64, limit: u64) {
    let (message, kind, code) = error_of(dialect, body);
    assert!(message.contains(&asked.to_string()) && message.contains(&limit.to_string()), "{message}");
    let (expected_kind, expected_code, part) = match dialect {
        Dialect::Vllm => ("BadRequestError", json!(400), "maximum context length is"),
        Dialect::Sglang => ("BadRequestError", json!(400), "longer than the model's context length"),
        Dialect::LlamaCpp => ("exceed_context_size_error", json!(400), "exceeds the available context size"),
        Dialect::OpenAi => {
            ("invalid_request_error", json!("context_length_exceeded"), "maximum context length is")
        }
    };
    assert_eq!((status, kind, code), (400, json!(expected_kind), expected_code), "{body}");
    assert!(message.contains(part), "{message}");
    if dialect == Dialect::LlamaCpp {
        assert_eq!(
            (&body["error"]["n_prompt_tokens"], &body["error"]["n_ctx"]),
            (&json!(asked), &json!(limit))
        );
    }
}

#[tokio::test]
async fn a_prompt_may_be_too_long_whatever_it_is() {
    for dialect in DIALECTS {
        let sim = sim_of(dialect, None).await;
        for stream in [true, false] {
            let reply = faulty_chat(sim.addr(), "context_length", stream).await;
            check_context_error(dialect, reply.status, &reply.json(), 5, 4);
        }
        assert_eq!((sim.in_flight(), sim.cancelled(), sim.stats().running), (0, 0, 0));
    }
}

#[tokio::test]
async fn offending_prompts_and_answers() {
    let sim = sim().await;
    let reply = faulty_chat(sim.addr(), "content_policy", true).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("content_policy_violation")));
    let reply = faulty_chat(sim.addr(), "content_policy=content_filter", false).await;
    let error = &reply.json()["error"];
    assert_eq!(
        (reply.status, &error["code"], &error["param"]),
        (400, &json!("content_filter"), &json!("prompt"))
    );
    assert_eq!(error["innererror"]["content_filter_result"]["violence"]["filtered"], true);

    for after in [0, 3, 64, 100] {
        let fault = format!("content_filter={after}");
        let reply = faulty_chat(sim.addr(), &fault, true).await;
        assert_eq!((reply.content(), reply.is_done()), (expected_text(0, HI, after.min(64)), true));
        assert_eq!(reply.text().matches("\"finish_reason\":\"content_filter\"").count(), 1, "{after}");
        let choice = &faulty_chat(sim.addr(), &fault, false).await.json()["choices"][0];
        assert_eq!(choice["message"]["content"], expected_text(0, HI, after.min(64)));
        assert_eq!(choice["finish_reason"], "content_filter");
    }
    for stream in [true, false] {
        let body = json!({"input": "hi", "stream": stream}).to_string();
        let reply =
            call(sim.addr(), "POST", "/v1/responses", "x-sim-fault: content_filter=2\r\n", &body).await;
        let last = match stream {
            true => {
                serde_json::from_str::<Value>(reply.events().last().unwrap()).unwrap()["response"].clone()
            }
            false => reply.json(),
        };
        assert_eq!(last["incomplete_details"], json!({"reason": "content_filter"}));
        assert_eq!((&last["status"], &last["usage"]["output_tokens"]), (&json!("incomplete"), &json!(2)));
    }
}

#[tokio::test]
async fn a_page_and_other_content_types() {
    let sim = sim().await;
    for stream in [true, false] {
        let reply = faulty_chat(sim.addr(), "html_page", stream).await;
        assert!(reply.status == 200 && reply.head.contains("content-type: text/html"), "{}", reply.head);
        assert!(reply.text().starts_with("<!doctype html>"));
        let reply = faulty_chat(sim.addr(), "content_type=text/plain", stream).await;
        assert!(reply.head.contains("content-type: text/plain\r\n"), "{}", reply.head);
        let whole = expected_text(0, HI, 64);
        if stream {
            assert_eq!((reply.content(), reply.is_done()), (whole, true));
        } else {
            assert_eq!(reply.json()["choices"][0]["message"]["content"], whole);
        }
    }
}

#[tokio::test]
async fn what_no_request_can_bring_is_refused() {
    let sim = sim().await;
    for fault in ["freeze", "health=503", "refuse;up=1s;down=1s", "no_done;times=2"] {
        let reply = faulty_chat(sim.addr(), fault, true).await;
        let message = reply.json()["error"]["message"].to_string();
        assert!(reply.status == 400 && message.contains("hint: "), "{fault}: {message}");
    }
    assert!(call(sim.addr(), "POST", CHAT, "", &hi(true)).await.is_done());
}
