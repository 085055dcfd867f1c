//! Endpoints beside the completions.

use backstop_engine_sim::{Dialect, Sim, SimConfig, expected_text};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::{End, call, hi, post};
use crate::protocol::{HI, sim};

#[tokio::test]
async fn embeddings_come_as_floats_and_base64() {
    let sim = sim().await;
    let ask = |format: &str, dimensions: u64| json!({"model": "m", "input": ["a", "b"], "encoding_format": format, "dimensions": dimensions});
    let floats = post(sim.addr(), "/v1/embeddings", &ask("float", 8)).await.json();
    let packed = post(sim.addr(), "/v1/embeddings", &ask("base64", 8)).await.json();
    for index in 0..2 {
        let floats: Vec<f32> = serde_json::from_value(floats["data"][index]["embedding"].clone()).unwrap();
        let packed = STANDARD.decode(packed["data"][index]["embedding"].as_str().unwrap()).unwrap();
        let packed: Vec<f32> =
            packed.chunks(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect();
        assert_eq!((floats.len(), &floats), (8, &packed));
        assert!((floats.iter().map(|it| it * it).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_ne!(floats["data"][0]["embedding"], floats["data"][1]["embedding"]);
    assert_eq!((&floats["usage"]["total_tokens"], &floats["model"]), (&json!(2), &json!("m")));
    let plain = post(sim.addr(), "/v1/embeddings", &json!({"input": "a"})).await.json();
    assert_eq!(plain["data"][0]["embedding"].as_array().unwrap().len(), 64);
    assert_eq!(post(sim.addr(), "/v1/embeddings", &ask("float", 0)).await.status, 400);
    let cut =
        call(sim.addr(), "POST", "/v1/embeddings", "x-sim-fault: cut=0\r\n", "{\"input\": \"a\"}").await;
    assert_eq!(cut.end, End::Fin);
}

#[tokio::test]
async fn responses_stream_typed_events() {
    let sim = sim().await;
    let body = json!({"model": "m", "input": "hi", "stream": true});
    let reply = post(sim.addr(), "/v1/responses", &body).await;
    let events: Vec<Value> = reply.events().iter().map(|it| serde_json::from_str(it).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("response.created", "response.completed"));
    for kind in &kinds {
        assert!(reply.text().contains(&format!("event: {kind}\n")));
    }
    let text: String = events.iter().filter_map(|it| it["delta"].as_str()).collect();
    assert_eq!(text, expected_text(0, HI, 64));
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], text);
    assert_eq!((&last["usage"]["output_tokens"], &last["status"]), (&json!(64), &json!("completed")));

    let body = json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        "max_output_tokens": 3});
    let plain = post(sim.addr(), "/v1/responses", &body).await.json();
    assert_eq!(plain["output"][0]["content"][0]["text"], expected_text(0, HI, 3));
    assert_eq!((&plain["status"], &plain["object"]), (&json!("incomplete"), &json!("response")));
}

#[tokio::test]
async fn metrics_have_the_engines_names() {
    let names = |dialect| match dialect {
        Dialect::Vllm => vec![
            "vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 0",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"sim\"} 0",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0",
            "vllm:prompt_tokens_total{engine=\"0\",model_name=\"sim\"} 5",
            "vllm:generation_tokens_total{engine=\"0\",model_name=\"sim\"} 64",
            "vllm:request_success_total{engine=\"0\",model_name=\"sim\",finished_reason=\"stop\"} 1",
            "vllm:request_success_total{engine=\"0\",model_name=\"sim\",finished_reason=\"abort\"} 0",
        ],
        Dialect::Sglang => vec![
            "sglang:num_running_reqs{engine_type=\"unified\",model_name=\"sim\"} 0",
            "sglang:num_queue_reqs{engine_type=\"unified\",model_name=\"sim\"} 0",
            "sglang:token_usage{engine_type=\"unified\",model_name=\"sim\"} 0",
            "sglang:realtime_tokens_total{engine_type=\"unified\",model_name=\"sim\",mode=\"prefill_compute\"} 5",
            "sglang:realtime_tokens_total{engine_type=\"unified\",model_name=\"sim\",mode=\"decode\"} 64",
        ],
        Dialect::LlamaCpp => vec![
            "llamacpp:prompt_tokens_total 5",
            "llamacpp:tokens_predicted_total 64",
            "llamacpp:n_decode_total 64",
            "llamacpp:requests_processing 0",
            "llamacpp:requests_deferred 0",
        ],
        Dialect::OpenAi => Vec::new(),
    };
    for dialect in [Dialect::Vllm, Dialect::Sglang, Dialect::LlamaCpp] {
        let sim = Sim::start(SimConfig { dialect, ..SimConfig::default() }).await.unwrap();
        call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(false)).await;
        let text = call(sim.addr(), "GET", "/metrics", "", "").await.text();
        for name in names(dialect) {
            assert!(text.lines().any(|line| line == name), "no {name} in {text}");
        }
    }
    let sim = Sim::start(SimConfig { dialect: Dialect::OpenAi, ..SimConfig::default() }).await.unwrap();
    assert_eq!(call(sim.addr(), "GET", "/metrics", "", "").await.status, 404);
    assert_eq!(sim.requests(), 0);
}

#[tokio::test]
async fn faults_are_set_by_admin_calls() {
    let sim = sim().await;
    let rules = json!([
        {"kind": "status", "status": 429, "retry_after": 7, "times": 1},
        {"kind": "cut", "after": 2, "how": "end", "probability": 1.0},
        {"kind": "health", "status": 503},
    ]);
    assert_eq!(post(sim.addr(), "/sim/faults", &rules).await.status, 200);
    assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 503);
    let reply = call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await;
    assert!(reply.status == 429 && reply.head.contains("retry-after: 7"));
    for _ in 0..2 {
        let reply = call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await;
        assert_eq!(reply.content(), expected_text(0, HI, 2));
    }
    let listed = call(sim.addr(), "GET", "/sim/faults", "", "").await.json();
    assert_eq!(listed["faults"].as_array().unwrap().len(), 2);
    assert_eq!((&listed["faults"][0]["kind"], &listed["faults"][0]["how"]), (&json!("cut"), &json!("end")));
    assert_eq!(call(sim.addr(), "DELETE", "/sim/faults", "", "").await.json(), json!({"faults": []}));
    assert_eq!(call(sim.addr(), "GET", "/health", "", "").await.status, 200);
    assert!(call(sim.addr(), "POST", "/v1/chat/completions", "", &hi(true)).await.is_done());

    let wrong = json!([{"kind": "no_done"}, {"kind": "no_such"}]);
    assert_eq!(post(sim.addr(), "/sim/faults", &wrong).await.status, 400);
    assert!(sim.faults().list().is_empty());
    let stats = call(sim.addr(), "GET", "/sim/stats", "", "").await.json();
    assert_eq!((&stats["requests"], &stats["faulted"]), (&json!(4), &json!(3)));
    let log = call(sim.addr(), "GET", "/sim/requests", "", "").await.json();
    assert_eq!(log["requests"].as_array().unwrap().len(), 4);
    assert_eq!(log["requests"][0]["body"], hi(true));
    assert_eq!(call(sim.addr(), "GET", "/sim/nothing", "", "").await.status, 404);
}
