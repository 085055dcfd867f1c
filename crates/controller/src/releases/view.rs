//! Releases as operators see them.

use backstop_core::evidence::{Figures, Judgement, Verdict};
use backstop_core::rollout::{Command, Hold, Kind, Phase, Severity};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Kept, Rehearsal, describe};

/// A release in a few words.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) service: String,
    /// `canary`, `blue_green`, `rollback` or `drill`.
    kind: &'static str,
    /// The version on trial, or the one that is left.
    version: String,
    /// The version that is known to be good.
    stable: String,
    /// Such as `step 2`, `promoted` or `rolled back`.
    phase: String,
    /// It has ended, and does not begin again.
    ended: bool,
    /// Of the version on trial, 0–1.
    share: f64,
    /// Why it was sent back.
    cause: Option<String>,
    /// Who began it.
    actor: String,
    reason: String,
    /// Milliseconds since the Unix epoch.
    started_at: u64,
    ended_at: Option<u64>,
}

/// A release with all that is known of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ReleaseView {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    /// Shares of its steps, 0–1.
    steps: Vec<f64>,
    /// What keeps it from going on.
    holds: Vec<HoldView>,
    progress: Progress,
    /// Requests that were assigned in this phase.
    requests: ArmsView,
    /// The same since the release began.
    requests_in_all: ArmsView,
    evidence: EvidenceView,
    timeline: Vec<MomentView>,
    /// What was measured, if it is a drill.
    drill: Option<Rehearsal>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct HoldView {
    /// Such as `paused`, `approval`, `freeze` or `incident`.
    hold: String,
    text: String,
    seconds: f64,
}

/// How much of what this phase needs is there.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct Progress {
    /// Time in which nothing held it up, and how much of it is needed.
    seconds: f64,
    needs_seconds: f64,
    /// Ended requests of the version on trial, and how many are needed.
    requests: u64,
    needs_requests: u64,
    /// Since the release began, and when it expires.
    age_seconds: f64,
    max_age_seconds: f64,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct ArmsView {
    stable: u64,
    canary: u64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct EvidenceView {
    /// How many times more likely what was seen is if the version is worse; natural logarithm.
    log: f64,
    /// From here on it is sent back.
    log_limit: f64,
    /// Probability that the split is as it should be, if it is so small that nothing is compared.
    imbalance: Option<f64>,
    metrics: Vec<MetricView>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct MetricView {
    metric: String,
    /// `pass`, `regressed`, `insufficient`, `no_data` or `provider_error`.
    #[schema(value_type = String)]
    verdict: Verdict,
    reason: String,
    /// Of this metric alone, natural logarithm.
    log: f64,
    /// Units that something bad happened to; of a time: by its limits.
    bad: Vec<ArmsView>,
    /// The evidence has shown that the version is not worse.
    proven: bool,
    /// For sure it is not so many times as much, or as often, as with the stable version; none if nothing is sure.
    excluded_above: Option<f64>,
    /// Of a mean, or of a number that is measured.
    figures: Option<FiguresView>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct FiguresView {
    stable: Option<f64>,
    canary: Option<f64>,
    /// Of a mean: how many times the stable version's it is, and between which it is for sure. None where nothing is known.
    ratio: Option<f64>,
    ratio_low: Option<f64>,
    ratio_high: Option<f64>,
    /// In words.
    limit: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct MomentView {
    /// Milliseconds since the Unix epoch.
    at: u64,
    phase: String,
    share: f64,
    #[schema(value_type = String)]
    severity: Severity,
    text: String,
}

impl Summary {
    pub(crate) fn of(kept: &Kept) -> Self {
        let release = &kept.release;
        Self {
            id: release.id.clone(),
            service: release.service.clone(),
            kind: match release.kind {
                Kind::Canary => "canary",
                Kind::BlueGreen => "blue_green",
                Kind::Rollback => "rollback",
                Kind::Drill => "drill",
            },
            version: release.canary.clone(),
            stable: release.stable.clone(),
            phase: release.phase.to_string(),
            ended: release.phase.is_final(),
            share: if release.phase == Phase::Promoted { 1.0 } else { kept.share() },
            cause: release.cause.as_ref().map(ToString::to_string),
            actor: kept.actor.clone(),
            reason: kept.reason.clone(),
            started_at: kept.started_at,
            ended_at: kept.ended_at,
        }
    }
}

impl ReleaseView {
    pub(crate) fn of(kept: &Kept) -> Self {
        let release = &kept.release;
        let (now, plan) = (release.now, &release.plan);
        let seconds = |millis: u64| millis as f64 / 1e3;
        let here = kept.analysis.counts(Some(release.exposure().step));
        let all = kept.analysis.counts(None);
        let needs = match release.phase {
            Phase::Step { index } => plan.steps.get(index).map(|step| step.hold),
            Phase::Bake => Some(plan.bake),
            Phase::Retreat { .. } => Some(plan.retreat_every),
            Phase::Verifying => Some(plan.verify),
            _ => None,
        };
        Self {
            summary: Summary::of(kept),
            steps: plan
                .steps
                .iter()
                .map(|step| f64::from(step.buckets) / f64::from(backstop_core::rollout::ALL))
                .collect(),
            holds: release
                .holds
                .iter()
                .map(|(hold, since)| HoldView {
                    hold: serde_json::to_value(hold)
                        .ok()
                        .and_then(|it| Some(it.as_str()?.to_owned()))
                        .unwrap_or_default(),
                    text: match &kept.frozen {
                        Some(freeze) if *hold == Hold::Freeze => describe(freeze),
                        _ => release.text_of(*hold),
                    },
                    seconds: seconds(now.saturating_sub(*since)),
                })
                .collect(),
            progress: Progress {
                seconds: seconds(if release.phase == Phase::Verifying {
                    now - release.since
                } else {
                    release.clean
                }),
                needs_seconds: needs.map_or(0.0, |needs| needs.as_secs_f64()),
                requests: here.canary.ended,
                needs_requests: kept.min_requests(),
                age_seconds: seconds(now),
                max_age_seconds: plan.max_age.as_secs_f64(),
            },
            requests: ArmsView { stable: here.stable.requests, canary: here.canary.requests },
            requests_in_all: ArmsView { stable: all.stable.requests, canary: all.canary.requests },
            evidence: EvidenceView::of(&kept.judgement()),
            timeline: kept
                .timeline
                .iter()
                .map(|moment| MomentView {
                    at: moment.at,
                    phase: moment.phase.to_string(),
                    share: moment.share,
                    severity: moment.severity,
                    text: moment.text.clone(),
                })
                .collect(),
            drill: kept.drill.clone(),
        }
    }
}

impl EvidenceView {
    fn of(judgement: &Judgement) -> Self {
        let metrics = judgement.metrics.iter().map(|metric| MetricView {
            metric: metric.name.clone(),
            verdict: metric.verdict,
            reason: metric.reason.clone(),
            log: metric.log_e,
            bad: metric.bad.iter().map(|bad| ArmsView { stable: bad.stable, canary: bad.canary }).collect(),
            proven: metric.proven,
            excluded_above: metric.excluded(),
            figures: metric.figures.as_ref().map(FiguresView::of),
        });
        Self {
            log: judgement.log_m,
            log_limit: judgement.log_certain,
            imbalance: judgement.imbalance,
            metrics: metrics.collect(),
        }
    }
}

impl FiguresView {
    fn of(figures: &Figures) -> Self {
        let Figures { stable, canary, ratio, limit } = figures.clone();
        Self {
            stable,
            canary,
            ratio: ratio.map(|ratio| ratio.estimate),
            ratio_low: ratio.map(|ratio| ratio.low),
            ratio_high: ratio.map(|ratio| ratio.high).filter(|high| high.is_finite()),
            limit,
        }
    }
}

/// What an operator did.
pub(crate) fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Pause => "paused",
        Command::Resume => "resumed",
        Command::Approve => "next step approved",
        Command::Promote => "promoted",
        Command::Abort => "aborted",
        Command::Rollback { .. } | Command::GiveWay { .. } => "rolled back",
    }
}
