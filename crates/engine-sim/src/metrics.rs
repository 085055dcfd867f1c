//! `/metrics` in Prometheus' text format, under the names of the engine imitated.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Dialect;
use crate::engine::Engine;

/// KV cache assumed for the usage gauge when there is no limit, in tokens.
const NOMINAL_KV: u64 = 1 << 20;

/// `None` from an engine without metrics.
pub(crate) fn text(engine: &Engine) -> Option<String> {
    let own = match engine.config.dialect {
        Dialect::Vllm => vllm(engine),
        Dialect::Sglang => sglang(engine),
        Dialect::LlamaCpp => llama_cpp(engine),
        Dialect::OpenAi => return None,
    };
    Some(own + &memory(engine))
}

fn memory(engine: &Engine) -> String {
    let mut text = String::new();
    if let Some(leak) = engine.config.leak {
        let bytes = (1 << 30) + leak * get(&engine.counters.requests);
        header(&mut text, "process_resident_memory_bytes", "gauge");
        line(&mut text, "process_resident_memory_bytes", "", &bytes.to_string());
    }
    text
}

fn vllm(engine: &Engine) -> String {
    let stats = engine.stats();
    let model = engine.config.model.as_deref().unwrap_or(&engine.config.name);
    let labels = format!("engine=\"0\",model_name=\"{}\"", escaped(model));
    let mut text = String::new();
    let mut one = |name: &str, kind: &str, value: String| {
        header(&mut text, name, kind);
        line(&mut text, name, &labels, &value);
    };
    one("vllm:num_requests_running", "gauge", stats.running.to_string());
    one("vllm:num_requests_waiting", "gauge", stats.waiting.to_string());
    one("vllm:kv_cache_usage_perc", "gauge", kv_usage(engine).to_string());
    one("vllm:prompt_tokens_total", "counter", stats.prompt_tokens.to_string());
    one("vllm:generation_tokens_total", "counter", stats.generation_tokens.to_string());
    let success = "vllm:request_success_total";
    header(&mut text, success, "counter");
    let counters = &engine.counters;
    let reasons = [("stop", &counters.stopped), ("length", &counters.length), ("abort", &counters.cancelled)];
    for (reason, counter) in reasons {
        let labels = format!("{labels},finished_reason=\"{reason}\"");
        line(&mut text, success, &labels, &get(counter).to_string());
    }
    text
}

fn sglang(engine: &Engine) -> String {
    let stats = engine.stats();
    let model = engine.config.model.as_deref().unwrap_or(&engine.config.name);
    let labels = format!("engine_type=\"unified\",model_name=\"{}\"", escaped(model));
    let mut text = String::new();
    let metrics = [
        ("sglang:num_running_reqs", "gauge", stats.running.to_string()),
        ("sglang:num_queue_reqs", "gauge", stats.waiting.to_string()),
        ("sglang:token_usage", "gauge", kv_usage(engine).to_string()),
    ];
    for (name, kind, value) in metrics {
        header(&mut text, name, kind);
        line(&mut text, name, &labels, &value);
    }
    let tokens = "sglang:realtime_tokens_total";
    header(&mut text, tokens, "counter");
    for (mode, value) in [("prefill_compute", stats.prompt_tokens), ("decode", stats.generation_tokens)] {
        line(&mut text, tokens, &format!("{labels},mode=\"{mode}\""), &value.to_string());
    }
    text
}

fn llama_cpp(engine: &Engine) -> String {
    let stats = engine.stats();
    let mut text = String::new();
    let metrics = [
        ("llamacpp:prompt_tokens_total", "counter", stats.prompt_tokens),
        ("llamacpp:tokens_predicted_total", "counter", stats.generation_tokens),
        ("llamacpp:n_decode_total", "counter", get(&engine.counters.decode_steps)),
        ("llamacpp:requests_processing", "gauge", stats.running),
        ("llamacpp:requests_deferred", "gauge", stats.waiting),
    ];
    for (name, kind, value) in metrics {
        header(&mut text, name, kind);
        line(&mut text, name, "", &value.to_string());
    }
    text
}

/// Share of the KV cache that is taken.
fn kv_usage(engine: &Engine) -> f64 {
    let capacity = engine.config.kv_tokens.unwrap_or(NOMINAL_KV).max(1);
    (engine.scheduler.occupancy().kv_used as f64 / capacity as f64).min(1.0)
}

fn header(text: &mut String, name: &str, kind: &str) {
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "# HELP {name} Simulated.\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: &str) {
    let _ = match labels {
        "" => writeln!(text, "{name} {value}"),
        labels => writeln!(text, "{name}{{{labels}}} {value}"),
    };
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}
