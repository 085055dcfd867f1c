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
pub(super) async fn machine(settings: &Settings, client: &Client) -> Option<Finding> {
    let mut worst = None;
    for check in &settings.health.checks {
        let finding = infrastructure(check, settings, client).await;
        worst = match (worst, finding) {
            (Some(worst @ Finding::Fail(_)), _) | (Some(worst), Finding::Pass) => Some(worst),
            (Some(worst @ Finding::Degraded(_)), Finding::Degraded(_)) => Some(worst),
            (_, finding) => Some(finding),
        };
    }
    worst
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

async fn infrastructure(check: &CheckSpec, settings: &Settings, client: &Client) -> Finding {
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
