//! Active checks: the machine, the process, the application, and a real small inference.
//!
//! Two tasks watch each endpoint, so that a slow inference never delays the check that the process is there.
//! What they find goes to [`backstop_core::health`], which decides.

mod client;
mod engine_metrics;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::health::{Finding, Layer, State};
use backstop_core::progress::{Look, Progress};
use backstop_core::table::{CheckSpec, Engine, InferenceSpec};
use rand::RngExt;
use serde_json::{Value, json};

use crate::clock;
use crate::endpoint::{Endpoint, Settings};
use client::{Client, ProbeError};
use engine_metrics::EngineMetrics;

/// How soon an unsettled verdict is looked at again: after a failed check of an endpoint that still serves, and
/// while a new one has not answered yet.
const CONFIRM: Duration = Duration::from_millis(500);
/// Share of the KV cache from which an engine with a queue counts as saturated.
const KV_SATURATED: f64 = 0.95;
/// The inference that confirms a stall or its end, where none is configured.
const CONFIRMING: InferenceSpec =
    InferenceSpec { every: Duration::from_secs(60), max_latency: Duration::from_secs(10) };

/// Watches machine, process, application and progress of `endpoint` for as long as the task lives.
pub(crate) async fn watch(endpoint: Arc<Endpoint>) {
    let client = Client::new(endpoint.pool.target().clone());
    let mut progress = Progress::new(clock::now());
    loop {
        let began = clock::now();
        let settings = endpoint.settings.load_full();
        let settled = round(&endpoint, &settings, &client, &mut progress).await;
        endpoint.update_dynamic_weight();
        endpoint.pool.sweep();
        let interval = settings.health.interval;
        let pause = if settled { interval } else { interval.min(CONFIRM) };
        let jittered = pause.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            // A failure in traffic asks for a look at once, but not for one after the other.
            () = endpoint.suspicion.notified() => {
                tokio::time::sleep_until((began + interval.min(CONFIRM)).into()).await;
            }
        }
    }
}

/// One look at everything but inference; `false` if it should be repeated soon.
async fn round(endpoint: &Endpoint, settings: &Settings, client: &Client, progress: &mut Progress) -> bool {
    let process = check_process(endpoint, settings, client).await;
    let alive = process == Some(Finding::Pass);
    if let Some(finding) = process {
        endpoint.observe(Layer::Process, finding);
    }
    if !alive {
        return !endpoint.may_serve();
    }
    let metrics = client.engine_metrics(settings).await;
    watch_progress(endpoint, settings, metrics, progress);
    if let Some(finding) = check_application(settings, client, metrics).await {
        endpoint.observe(Layer::Application, finding);
    }
    if let Some(finding) = check_machine(settings, client).await {
        endpoint.observe(Layer::Infrastructure, finding);
    }
    true
}

/// The worst that the configured checks find: one finding for the layer, or one check's pass would make another's
/// failures forgotten. `None` without checks.
async fn check_machine(settings: &Settings, client: &Client) -> Option<Finding> {
    let mut worst = None;
    for check in &settings.health.checks {
        let finding = check_infrastructure(check, settings, client).await;
        worst = match (worst, finding) {
            (Some(worst @ Finding::Fail(_)), _) | (Some(worst), Finding::Pass) => Some(worst),
            (Some(worst @ Finding::Degraded(_)), Finding::Degraded(_)) => Some(worst),
            (_, finding) => Some(finding),
        };
    }
    worst
}

/// `None` if the look proves nothing: a busy server may answer its health check late, which is not death.
async fn check_process(endpoint: &Endpoint, settings: &Settings, client: &Client) -> Option<Finding> {
    let path = settings.health.path.as_deref().unwrap_or(settings.spec.engine.health_path());
    let (moved_before, _) = endpoint.movement();
    match client.get(path, settings).await {
        Ok(answer) if answer.status.is_success() => Some(Finding::Pass),
        Ok(answer) => Some(Finding::Fail(format!("`{path}` answered {}", answer.status))),
        Err(ProbeError::Timeout(_)) if endpoint.movement().0 != moved_before => None,
        Err(error) => Some(Finding::Fail(format!("`{path}`: {error}"))),
    }
}

fn watch_progress(
    endpoint: &Endpoint,
    settings: &Settings,
    metrics: Option<EngineMetrics>,
    progress: &mut Progress,
) {
    let (moved, timeouts) = endpoint.movement();
    let look = match metrics.and_then(|metrics| metrics.steps.map(|steps| (metrics, steps))) {
        Some((metrics, steps)) => Look {
            moved: moved.wrapping_add(steps),
            in_flight: u64::from(endpoint.in_flight()).max(metrics.running + metrics.waiting),
            timeouts,
        },
        // Without the engine's own counters a long plain answer can't be told from a stall: only streams that
        // have begun to flow are held against it.
        None => Look { moved, in_flight: u64::from(endpoint.flowing()), timeouts },
    };
    let owed = progress.observe(look, clock::now());
    let limit = settings.health.stall;
    let Some(owed) = owed.filter(|owed| *owed >= limit) else { return };
    if look.in_flight > 0 {
        let evidence = format!("{} requests in flight and no token for {} s", look.in_flight, owed.as_secs());
        endpoint.observe(Layer::Progress, Finding::Certain(evidence));
    } else {
        // Requests timed out and nothing else was asked of it since: an inference has to tell.
        endpoint.suspect_stall();
    }
}

async fn check_application(
    settings: &Settings,
    client: &Client,
    metrics: Option<EngineMetrics>,
) -> Option<Finding> {
    if let Some(EngineMetrics { kv_usage: Some(used), waiting, .. }) = metrics
        && used >= KV_SATURATED
        && waiting > 0
    {
        let percent = used * 100.0;
        return Some(Finding::Degraded(format!(
            "KV cache {percent:.0} % full and {waiting} requests waiting"
        )));
    }
    // llama.cpp serves one model and takes any name for it.
    let wanted = settings.spec.model.as_deref().filter(|_| settings.spec.engine != Engine::LlamaCpp);
    let answer = client.get("/v1/models", settings).await.ok().filter(|answer| answer.status.is_success())?;
    let listing: Value = serde_json::from_slice(&answer.body).ok()?;
    let models: Vec<&str> =
        listing.get("data")?.as_array()?.iter().filter_map(|m| m.get("id")?.as_str()).collect();
    Some(match wanted {
        Some(wanted) if !models.contains(&wanted) => {
            Finding::Fail(format!("model `{wanted}` is not loaded; it serves: {}", models.join(", ")))
        }
        None if models.is_empty() => Finding::Fail("no model is loaded".to_owned()),
        _ => Finding::Pass,
    })
}

async fn check_infrastructure(check: &CheckSpec, settings: &Settings, client: &Client) -> Finding {
    let path = &check.path;
    let answer = match client.get(path, settings).await {
        Ok(answer) if answer.status.is_success() => answer,
        Ok(answer) => return Finding::Degraded(format!("`{path}` answered {}", answer.status)),
        Err(error) => return Finding::Degraded(format!("`{path}`: {error}")),
    };
    let Some(key) = &check.json else { return Finding::Pass };
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let Some(value) =
        value.as_ref().and_then(|root| key.split('.').try_fold(root, |node, part| node.get(part)))
    else {
        return Finding::Degraded(format!("`{path}` has no `{key}`"));
    };
    if let Some(expected) = &check.equals
        && value.as_str() != Some(expected)
    {
        return Finding::Fail(format!("`{path}` says {key} = {value}, not {expected}"));
    }
    match (check.max, value.as_f64()) {
        (Some(max), Some(number)) if number > max => {
            Finding::Degraded(format!("`{path}` says {key} = {number}, above {max}"))
        }
        (Some(_), None) => Finding::Degraded(format!("`{path}` has no number in `{key}`")),
        _ => Finding::Pass,
    }
}

/// Sends a real small request as often as configured, and whenever a stall is to be confirmed or cleared.
pub(crate) async fn watch_inference(endpoint: Arc<Endpoint>) {
    let client = Client::new(endpoint.pool.target().clone());
    let mut last: Option<Instant> = None;
    loop {
        let settings = endpoint.settings.load_full();
        let spec = settings.health.inference;
        let due = spec.is_some_and(|spec| last.is_none_or(|last| clock::now() - last >= spec.every));
        let alive = endpoint.state() != State::Starting && client.port_is_open().await;
        let suspected = endpoint.stall_is_suspected();
        if alive && (due || suspected || endpoint.health().needs_inference()) {
            last = Some(clock::now());
            let finding = infer(&endpoint, &settings, &client, spec.unwrap_or(CONFIRMING)).await;
            match finding {
                Some(Finding::Fail(evidence)) if suspected => {
                    endpoint.observe(Layer::Progress, Finding::Certain(evidence));
                }
                Some(finding) => endpoint.observe(Layer::Inference, finding),
                None => {}
            }
        }
        let pause = settings.health.interval.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
    }
}

/// One token, with the shape and within the time that a real request would expect. `None` proves nothing: the
/// engine is busy with others' tokens, or does not offer chat.
async fn infer(
    endpoint: &Endpoint,
    settings: &Settings,
    client: &Client,
    spec: InferenceSpec,
) -> Option<Finding> {
    let body = json!({
        "model": settings.probe_model,
        "messages": [{ "role": "user", "content": "ping" }],
        "max_tokens": 1,
        "temperature": 0,
    });
    let (moved_before, _) = endpoint.movement();
    let started = clock::now();
    let answer = client.post("/v1/chat/completions", &body, settings, 2 * spec.max_latency).await;
    let took = clock::now() - started;
    match answer {
        Err(ProbeError::Timeout(_)) if endpoint.movement().0 != moved_before => None,
        Err(error) => Some(Finding::Fail(format!("a one-token chat: {error}"))),
        Ok(answer) if matches!(answer.status.as_u16(), 400..=499) => None,
        Ok(answer) if answer.status == 503 => None,
        Ok(answer) if !answer.status.is_success() => {
            Some(Finding::Fail(format!("a one-token chat was answered {}", answer.status)))
        }
        Ok(answer) => {
            let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
            let has_choice =
                value.is_some_and(|v| v.pointer("/choices/0/message").is_some_and(Value::is_object));
            Some(match has_choice {
                false => Finding::Fail("a one-token chat was answered without a choice".to_owned()),
                true if took > spec.max_latency => {
                    Finding::Degraded(format!("a one-token chat took {:.1} s", took.as_secs_f64()))
                }
                true => {
                    endpoint.moved();
                    Finding::Pass
                }
            })
        }
    }
}
