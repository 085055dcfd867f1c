//! A real small request: the whole way through the engine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop_core::health::{Finding, Layer, State};
use backstop_core::table::InferenceSpec;
use rand::RngExt;
use serde_json::{Value, json};

use super::client::{Client, ProbeError};
use crate::clock;
use crate::endpoint::{Endpoint, Settings};

/// The inference that confirms a stall or its end, where none is configured.
const CONFIRMING: InferenceSpec =
    InferenceSpec { every: Duration::from_secs(60), max_latency: Duration::from_secs(10) };

/// Sends a real small request as often as configured, and whenever a stall is to be confirmed or cleared.
pub(crate) async fn watch(endpoint: Arc<Endpoint>) {
    let client = Client::new(&endpoint.pool);
    let mut last: Option<Instant> = None;
    loop {
        let settings = endpoint.settings.load_full();
        let spec = settings.health.inference;
        let due = spec.is_some_and(|spec| last.is_none_or(|last| clock::now() - last >= spec.every));
        let suspected = endpoint.stall_is_suspected();
        let wanted = due || suspected || endpoint.health().needs_inference();
        if wanted && endpoint.state() != State::Starting && client.port_is_open().await {
            last = Some(clock::now());
            match infer(&endpoint, &settings, &client).await {
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

/// Asks `endpoint` once, and how long that took. An engine that is too busy to answer is well.
pub(crate) async fn infer_once(endpoint: &Endpoint) -> (Result<(), String>, Duration) {
    let settings = endpoint.settings.load_full();
    let client = Client::new(&endpoint.pool);
    let started = clock::now();
    let finding = infer(endpoint, &settings, &client).await;
    let took = clock::now() - started;
    match finding {
        Some(Finding::Fail(reason) | Finding::Certain(reason)) => (Err(reason), took),
        Some(Finding::Pass | Finding::Degraded(_)) | None => (Ok(()), took),
    }
}

/// One token, with the shape and within the time that a real request would expect. `None` proves nothing: the
/// engine is busy with others' tokens.
async fn infer(endpoint: &Endpoint, settings: &Settings, client: &Client) -> Option<Finding> {
    let configured = settings.health.inference;
    let spec = configured.unwrap_or(CONFIRMING);
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
    let answer = match answer {
        Ok(answer) => answer,
        Err(ProbeError::Timeout(_)) if endpoint.movement().0 != moved_before => return None,
        Err(error) => return Some(Finding::Fail(format!("a one-token chat: {error}"))),
    };
    match answer.status.as_u16() {
        200 => {}
        // Busy is not dead.
        429 | 503 => return None,
        // An engine without chat can't be asked; whether it works, its traffic will show.
        400..=499 if configured.is_none() => return Some(Finding::Pass),
        _ => return Some(Finding::Fail(format!("a one-token chat was answered {}", answer.status))),
    }
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    if !value.is_some_and(|value| value.pointer("/choices/0/message").is_some_and(Value::is_object)) {
        return Some(Finding::Fail("a one-token chat was answered without a choice".to_owned()));
    }
    endpoint.moved();
    if took > spec.max_latency {
        return Some(Finding::Degraded(format!("a one-token chat took {:.1} s", took.as_secs_f64())));
    }
    Some(Finding::Pass)
}
