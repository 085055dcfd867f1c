//! Checks of the application (model, queue, cache) and of the machine.

use backstop_core::health::Finding;
use backstop_core::table::{CheckSpec, Engine};
use serde_json::Value;

use super::client::Client;
use super::engine_metrics::EngineMetrics;
use crate::endpoint::Settings;

/// Share of the KV cache from which an engine with a queue counts as saturated.
const KV_SATURATED: f64 = 0.95;

/// The worst that the configured checks find: one finding for the layer, or one check's pass would make another's
/// failures forgotten. `None` without checks.
///
/// Also the numbers that were read, by check.
pub(super) async fn machine(settings: &Settings, client: &Client) -> (Option<Finding>, Vec<(String, f64)>) {
    let mut worst = None;
    let mut numbers = Vec::new();
    for check in &settings.health.checks {
        let (finding, number) = infrastructure(check, settings, client).await;
        numbers.extend(number.map(|number| (name(check), number)));
        worst = match (worst, finding) {
            (Some(worst @ Finding::Fail(_)), _) | (Some(worst), Finding::Pass) => Some(worst),
            (Some(worst @ Finding::Degraded(_)), Finding::Degraded(_)) => Some(worst),
            (_, finding) => Some(finding),
        };
    }
    (worst, numbers)
}

/// `/gpu-memory used_ratio`
fn name(check: &CheckSpec) -> String {
    match &check.json {
        Some(json) => format!("{} {json}", check.path),
        None => check.path.clone(),
    }
}

pub(super) async fn application(
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
    let answer = client.get("/v1/models", settings).await.ok().filter(|answer| answer.status.is_success())?;
    let listing: Value = serde_json::from_slice(&answer.body).ok()?;
    let models: Vec<&str> =
        listing.get("data")?.as_array()?.iter().filter_map(|m| m.get("id")?.as_str()).collect();
    // Only where the listing is all that there is: llama.cpp takes any name for its one model, and a hosted API may
    // know more names than it lists.
    let wanted = match settings.spec.engine {
        Engine::LlamaCpp | Engine::OpenAi => None,
        _ => settings.spec.model.as_deref(),
    };
    let names = |wanted: &str, model: &str| model == wanted || model.strip_suffix(":latest") == Some(wanted);
    Some(match wanted {
        Some(wanted) if !models.iter().any(|model| names(wanted, model)) => {
            Finding::Fail(format!("model `{wanted}` is not loaded; it serves: {}", models.join(", ")))
        }
        None if models.is_empty() => Finding::Fail("no model is loaded".to_owned()),
        _ => Finding::Pass,
    })
}

/// What a check finds, and the number that it read.
async fn infrastructure(check: &CheckSpec, settings: &Settings, client: &Client) -> (Finding, Option<f64>) {
    let path = &check.path;
    let answer = match client.get(path, settings).await {
        Ok(answer) if answer.status.is_success() => answer,
        Ok(answer) => return (Finding::Degraded(format!("`{path}` answered {}", answer.status)), None),
        Err(error) => return (Finding::Degraded(format!("`{path}`: {error}")), None),
    };
    let Some(key) = &check.json else { return (Finding::Pass, None) };
    let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let value = value.as_ref().and_then(|root| key.split('.').try_fold(root, |node, part| node.get(part)));
    match value {
        Some(value) => (compare(check, key, value), value.as_f64()),
        None => (Finding::Degraded(format!("`{path}` has no `{key}`")), None),
    }
}

fn compare(check: &CheckSpec, key: &str, value: &Value) -> Finding {
    let path = &check.path;
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
