//! The second part of the story: a good version is promoted, a worse one and a dead one are sent back.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::load::Load;
use super::replica::{Backstop, Replica};
use super::view::{self, View};

/// How long a release may take before the demo gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A release as the control API shows it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ReleaseView {
    pub(super) stable: String,
    pub(super) version: String,
    pub(super) phase: String,
    ended: bool,
    pub(super) share: f64,
    cause: Option<String>,
    requests_in_all: Arms,
    pub(super) evidence: Evidence,
}

#[derive(Debug, Clone, Deserialize)]
struct Arms {
    canary: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Evidence {
    /// Natural logarithms.
    pub(super) log: f64,
    pub(super) log_limit: f64,
}

/// How a release ended.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    version: String,
    promoted: bool,
    /// Why it was sent back.
    cause: Option<String>,
    /// Requests that it was given.
    requests: u64,
    seconds: f64,
}

impl Outcome {
    /// It was sent back, by itself.
    pub(super) fn is_back(&self) -> bool {
        self.cause.is_some()
    }

    pub(super) fn is_promoted(&self) -> bool {
        self.promoted
    }
}

/// Releases `version`, and watches what becomes of it. `victim` is killed when the release has given it its first share.
pub(super) async fn release(
    view: &mut View,
    backstop: &Backstop,
    load: &Load,
    version: &str,
    mut victim: Option<&mut Replica>,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    backstop.release(version).await.with_context(|| format!("the release of {version} can't begin"))?;
    let mut last = String::new();
    while started.elapsed() < PATIENCE {
        let now = backstop.released().await?;
        let endpoints = backstop.endpoints().await.unwrap_or_default();
        view.release(now.clone());
        view.draw(&endpoints, load.counts());
        if now.phase != last {
            view.note(&told(&now, started.elapsed()));
            last.clone_from(&now.phase);
        }
        if now.share > 0.0
            && let Some(victim) = victim.take()
        {
            view.note(&format!("kill -9 of the only replica of {version}"));
            victim.kill().await;
        }
        if now.ended || now.phase == "verifying" {
            return Ok(Outcome {
                version: version.to_owned(),
                promoted: now.phase == "promoted",
                cause: now.cause,
                requests: now.requests_in_all.canary,
                seconds: started.elapsed().as_secs_f64(),
            });
        }
        tokio::time::sleep(view::REFRESH).await;
    }
    bail!("the release of {version} has not ended after {} s", PATIENCE.as_secs())
}

fn told(now: &ReleaseView, after: Duration) -> String {
    let ReleaseView { version, stable, phase, cause, .. } = now;
    match (phase.as_str(), cause) {
        ("waiting", _) => format!("{version} is to be released in place of {stable}"),
        ("promoted", _) => format!("{version} is promoted after {:.1} s", after.as_secs_f64()),
        (_, Some(cause)) => {
            let requests = now.requests_in_all.canary;
            format!(
                "{version} is sent back after {:.1} s and {requests} requests: {cause}",
                after.as_secs_f64()
            )
        }
        _ => format!("{version} has {}% of the traffic", now.share * 100.0),
    }
}
