use backstop_core::table::Engine;

/// What an engine says of itself in its Prometheus metrics, whatever it calls it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct EngineMetrics {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    /// 0–1.
    pub(crate) kv_usage: Option<f64>,
    /// Sum of the counters that move with *every* prefill and decode step. `None` where the engine counts only
    /// finished requests, which tells nothing about a long one.
    pub(super) steps: Option<u64>,
    /// Of the engine's process.
    pub(crate) resident_bytes: Option<f64>,
    /// Of the engine's process, since it began.
    pub(crate) cpu_seconds: Option<f64>,
}

impl EngineMetrics {
    pub(super) fn expected_of(engine: Engine) -> bool {
        matches!(engine, Engine::Vllm | Engine::Sglang | Engine::LlamaCpp | Engine::Sim)
    }

    /// Sums over labels, since data-parallel engines report each rank on its own.
    pub(super) fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name_end = line.find(['{', ' ']).unwrap_or(line.len());
            // A label may contain a space, so the value is what follows the labels; a timestamp may follow it.
            let after = if line[name_end..].starts_with('{') {
                line.rfind('}').map(|at| at + 1)
            } else {
                Some(name_end)
            };
            let value = after.and_then(|at| line[at..].split_whitespace().next());
            let Some(value) = value.and_then(|value| value.parse::<f64>().ok()).filter(|v| v.is_finite())
            else {
                continue;
            };
            let count = value.max(0.0) as u64;
            match &line[..name_end] {
                "vllm:num_requests_running" | "sglang:num_running_reqs" | "llamacpp:requests_processing" => {
                    metrics.running += count;
                }
                "vllm:num_requests_waiting" | "sglang:num_queue_reqs" | "llamacpp:requests_deferred" => {
                    metrics.waiting += count;
                }
                "vllm:kv_cache_usage_perc"
                | "vllm:gpu_cache_usage_perc"
                | "sglang:token_usage"
                | "llamacpp:kv_cache_usage_ratio" => {
                    metrics.kv_usage = Some(metrics.kv_usage.unwrap_or(0.0).max(value));
                }
                "vllm:prompt_tokens_total"
                | "vllm:generation_tokens_total"
                | "sglang:realtime_tokens_total"
                | "llamacpp:prompt_tokens_total"
                | "llamacpp:n_decode_total" => {
                    metrics.steps = Some(metrics.steps.unwrap_or(0).saturating_add(count));
                }
                "process_resident_memory_bytes" => add(&mut metrics.resident_bytes, value),
                "process_cpu_seconds_total" => add(&mut metrics.cpu_seconds, value),
                _ => {}
            }
        }
        metrics
    }
}

fn add(sum: &mut Option<f64>, value: f64) {
    *sum = Some(sum.unwrap_or(0.0) + value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_engine() {
        let vllm = "# HELP vllm:num_requests_running x\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 2.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a b\"} 1.0\n\
            vllm:num_requests_waiting{engine=\"0\"} 4.0\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.5\n\
            vllm:prompt_tokens_total{engine=\"0\"} 1e3\nvllm:generation_tokens_total{engine=\"0\"} 10\n\
            vllm:time_to_first_token_seconds_sum 99\n\
            process_resident_memory_bytes 1.5e9\nprocess_cpu_seconds_total 12.5\n";
        assert_eq!(
            EngineMetrics::parse(vllm),
            EngineMetrics {
                running: 3,
                waiting: 4,
                kv_usage: Some(0.5),
                steps: Some(1010),
                resident_bytes: Some(1.5e9),
                cpu_seconds: Some(12.5)
            }
        );
        let llama = "llamacpp:n_decode_total 7\nllamacpp:prompt_tokens_total 5 1700000000\n\
            llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n";
        assert_eq!(
            EngineMetrics::parse(llama),
            EngineMetrics { running: 1, steps: Some(12), ..EngineMetrics::default() }
        );
        let sglang = "sglang:num_running_reqs{m=\"x\"} 1\nsglang:generation_tokens_total{m=\"x\"} 5\n";
        assert_eq!(EngineMetrics::parse(sglang), EngineMetrics { running: 1, ..EngineMetrics::default() });
        assert_eq!(EngineMetrics::parse("<html>\n{ }\nvllm:x{ NaN\n"), EngineMetrics::default());
    }
}
