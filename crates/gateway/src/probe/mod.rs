//! Active checks: the machine, the process, the application, and a real small inference.
//!
//! Two tasks watch each endpoint, so that a slow inference never delays the check that the process is there.
//! What they find goes to [`backstop_core::health`], which decides.

mod checks;
mod client;
mod engine_metrics;
mod inference;

use std::sync::Arc;
use std::time::Duration;

use backstop_core::health::{Finding, Layer};
use backstop_core::progress::{Look, Progress};
use rand::RngExt;

use crate::clock;
use crate::endpoint::{Endpoint, Report, Settings};
use client::{Client, ProbeError};

pub(crate) use engine_metrics::EngineMetrics;
pub(crate) use inference::{infer_once, watch as watch_inference};

/// How soon an unsettled verdict is looked at again: after a failed check of an endpoint that still serves, and
/// while a new one has not answered yet.
const CONFIRM: Duration = Duration::from_millis(500);

/// Sends `endpoint` an order of its engine's own; an error is what it said.
pub(crate) async fn post_once(endpoint: &Endpoint, path: &str) -> Result<(), String> {
    let settings = endpoint.settings.load_full();
    let client = Client::new(&endpoint.pool);
    match client.post(path, &serde_json::json!({}), &settings, settings.health.timeout).await {
        Ok(answer) if answer.status.is_success() => Ok(()),
        Ok(answer) => Err(format!("`{path}` answered {}", answer.status)),
        Err(error) => Err(format!("`{path}`: {error}")),
    }
}

/// Watches machine, process, application and progress of `endpoint` for as long as the task lives.
pub(crate) async fn watch(endpoint: Arc<Endpoint>) {
    let client = Client::new(&endpoint.pool);
    let mut progress = ProgressWatch::new();
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
async fn round(
    endpoint: &Endpoint,
    settings: &Settings,
    client: &Client,
    progress: &mut ProgressWatch,
) -> bool {
    let process = check_process(endpoint, settings, client).await;
    let alive = process == Some(Finding::Pass);
    if let Some(finding) = process {
        endpoint.observe(Layer::Process, finding);
    }
    if !alive {
        endpoint.report(Report::default());
        return !endpoint.may_serve();
    }
    let metrics = client.engine_metrics(settings).await;
    progress.look(endpoint, settings, metrics);
    let application = checks::application(settings, client, metrics).await;
    let model_loaded = application.as_ref().map(|finding| !matches!(finding, Finding::Fail(_)));
    if let Some(finding) = application {
        endpoint.observe(Layer::Application, finding);
    }
    let (machine, checks) = checks::machine(settings, client).await;
    if let Some(finding) = machine {
        endpoint.observe(Layer::Infrastructure, finding);
    }
    endpoint.report(Report { engine: metrics, model_loaded, checks });
    true
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

/// Watches whether work moves.
struct ProgressWatch {
    progress: Progress,
    /// The engine's counters when it last told them: a look without them must not seem to be a movement.
    steps: Option<u64>,
    moved: u64,
}

impl ProgressWatch {
    fn new() -> Self {
        Self { progress: Progress::new(clock::now()), steps: None, moved: 0 }
    }

    fn look(&mut self, endpoint: &Endpoint, settings: &Settings, metrics: Option<EngineMetrics>) {
        let metrics = metrics.unwrap_or_default();
        self.steps = metrics.steps.or(self.steps);
        let (moved, timeouts) = endpoint.movement();
        let moved = moved.wrapping_add(self.steps.unwrap_or(0));
        let in_flight = match self.steps {
            Some(_) => u64::from(endpoint.in_flight()).max(metrics.running + metrics.waiting),
            // Without the engine's own counters a long plain answer can't be told from a stall: only streams that
            // have begun to flow are held against it.
            None => u64::from(endpoint.flowing()),
        };
        if moved != self.moved && endpoint.health().needs_inference() {
            endpoint.observe(Layer::Progress, Finding::Pass);
        }
        self.moved = moved;
        let owed = self.progress.observe(Look { moved, in_flight, timeouts }, clock::now());
        let Some(owed) = owed.filter(|owed| *owed >= settings.health.stall) else { return };
        if in_flight > 0 {
            let evidence = format!("{in_flight} requests in flight and no token for {} s", owed.as_secs());
            endpoint.observe(Layer::Progress, Finding::Certain(evidence));
        } else {
            // Requests timed out and nothing else was asked of it since: an inference has to tell.
            endpoint.suspect_stall();
        }
    }
}
