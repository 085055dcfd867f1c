//! A release as it is kept, and what follows from it for the routes.

use backstop_core::evidence::{Judgement, Names, PlanError};
use backstop_core::health::State;
use backstop_core::report::Latencies;
use backstop_core::rollout::{
    ALL, Analysis, Freeze, Kind, Phase, Readiness, Release, Settings, Severity, Window,
};
use backstop_core::status::Status;
use backstop_core::table::Duty;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Rehearsal;
use crate::control::unix_millis;
use crate::routes::Active;

/// The most moments of a release that are told one by one; the first ones and the last ones are.
const MOST_MOMENTS: usize = 100;

/// Points of the chart that are kept.
const MOST_SAMPLES: usize = 256;

/// All that is known of a release.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) release: Release,
    pub(crate) analysis: Analysis,
    pub(crate) window: Option<Window>,
    /// Of the version on trial.
    pub(crate) digest: String,
    pub(crate) salt: String,
    /// Who began it, and why.
    pub(crate) actor: String,
    pub(crate) reason: String,
    /// Milliseconds since the Unix epoch.
    pub(crate) started_at: u64,
    pub(crate) ended_at: Option<u64>,
    /// How long stable's answers took before.
    pub(crate) baseline: Option<Latencies>,
    pub(crate) timeline: Vec<Moment>,
    /// How it went, for a chart.
    pub(crate) samples: Vec<Sample>,
    /// By which it is held up, if it is.
    #[serde(default)]
    pub(crate) frozen: Option<Freeze>,
    /// What was measured, if it is a drill.
    #[serde(default)]
    pub(crate) drill: Option<Rehearsal>,
}

/// A point of the chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Milliseconds of the release's time.
    pub(crate) at: u64,
    pub(crate) share: f64,
    pub(crate) log_m: f64,
}

/// Something that happened to a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// Milliseconds since the Unix epoch.
    pub(crate) at: u64,
    pub(crate) phase: Phase,
    /// Of the canary, 0–1.
    pub(crate) share: f64,
    pub(crate) severity: Severity,
    pub(crate) text: String,
    /// What was known at that moment, if it matters: a [`Judgement`], whose numbers may be infinite, so that it is not
    /// read again.
    pub(crate) evidence: Value,
}

impl Kept {
    pub(crate) fn share(&self) -> f64 {
        f64::from(self.release.buckets()) / f64::from(ALL)
    }

    /// How many requests the canary should have had before the phase ends.
    pub(crate) fn min_requests(&self) -> u64 {
        let steps = &self.release.plan.steps;
        match self.release.phase {
            Phase::Step { index } => steps.get(index).map_or(0, |step| step.min_requests),
            Phase::Bake => steps.last().map_or(0, |step| step.min_requests),
            _ => 0,
        }
    }

    pub(crate) fn judgement(&self) -> Judgement {
        // Afterwards by all that was seen.
        let phase = self.release.phase;
        let step = (!phase.is_final() && !phase.is_back()).then(|| self.release.exposure().step);
        let names = Names { stable: &self.release.stable, canary: &self.release.canary };
        self.analysis.judge_of(names, step, self.min_requests())
    }

    /// Puts something that happened at `at` into the account, in which time does not go back: that moment, or one right
    /// after the last. Gives which.
    pub(crate) fn tell(&mut self, at: u64, severity: Severity, text: String) -> u64 {
        let at = at.max(self.timeline.last().map_or(0, |last| last.at + 1));
        let known = (severity > Severity::Info).then(|| self.judgement());
        let evidence = serde_json::to_value(known).unwrap_or_default();
        let moment = Moment { at, phase: self.release.phase, share: self.share(), severity, text, evidence };
        if self.timeline.len() >= MOST_MOMENTS {
            self.timeline.remove(MOST_MOMENTS / 2);
        }
        self.timeline.push(moment);
        at
    }

    /// Remembers how it stands now.
    pub(crate) fn sample(&mut self) {
        let at = self.release.now;
        // Halved again and again, so that all of a long release is there.
        if self.samples.len() >= MOST_SAMPLES {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
        }
        let pause = at / MOST_SAMPLES as u64;
        let share = self.share();
        let is_news = |last: &Sample| last.share.to_bits() != share.to_bits() || at - last.at >= pause;
        if self.samples.last().is_none_or(is_news) {
            self.samples.push(Sample { at, share, log_m: self.analysis.log_m() });
        }
    }

    /// How long after the canary got its first share it was sent back, in milliseconds.
    pub(crate) fn noticed_after(&self) -> Option<u64> {
        let began = self.timeline.iter().find(|moment| moment.share > 0.0)?.at;
        let back = self.timeline.iter().find(|moment| moment.phase.is_back())?.at;
        Some(back.saturating_sub(began))
    }

    /// A release that is served and of which nothing else is known any more.
    pub(crate) fn of_served(active: &Active, settings: &Settings) -> Result<Self, PlanError> {
        let mut analysis = Analysis::new(settings)?;
        analysis.go_on_with(&active.limits);
        Ok(Self {
            release: active.release.clone(),
            analysis,
            window: settings.window.clone(),
            digest: active.digest.clone(),
            salt: active.salt.clone(),
            actor: "unknown".to_owned(),
            reason: "its record was lost".to_owned(),
            started_at: unix_millis(),
            ended_at: None,
            baseline: None,
            timeline: Vec::new(),
            samples: Vec::new(),
            frozen: None,
            drill: None,
        })
    }

    /// The release as it is to be served.
    pub(crate) fn active(&self) -> Active {
        let names = (self.digest.as_str(), self.salt.as_str());
        Active::new(&self.release, names, self.analysis.limits(), self.analysis.patience())
    }

    /// Whether a step may begin at `now`, in milliseconds since the Unix epoch.
    pub(crate) fn window_open(&self, now: u64) -> bool {
        is_open(self.window.as_ref(), now)
    }
}

/// Whether a window is open at `now`, in milliseconds since the Unix epoch; without one, always.
pub(crate) fn is_open(window: Option<&Window>, now: u64) -> bool {
    let Some(window) = window else { return true };
    let zone = TimeZone::get(&window.tz).unwrap_or(TimeZone::UTC);
    let millis = i64::try_from(now).unwrap_or(i64::MAX);
    let Ok(now) = jiff::Timestamp::from_millisecond(millis) else { return false };
    let now = now.to_zoned(zone);
    let day = usize::try_from(now.weekday().to_monday_zero_offset()).unwrap_or_default();
    let minute = u16::try_from(i32::from(now.hour()) * 60 + i32::from(now.minute())).unwrap_or_default();
    window.is_open(day, minute)
}

/// Which of a release's versions have an endpoint that can serve.
pub(crate) fn readiness(status: &Status, release: &Release) -> Readiness {
    let serves = |version: &str| can_serve(status, &release.service, version);
    // If they fall, they fall together.
    let is_apart = release.kind != Kind::Drill || release.backed_by() != release.stable;
    Readiness {
        canary: serves(release.backed_by()),
        canary_down: is_down(status, &release.service, release.backed_by()).filter(|_| is_apart),
        stable: serves(&release.stable),
    }
}

pub(crate) fn can_serve(status: &Status, service: &str, version: &str) -> bool {
    let services = status.services.iter().filter(|it| it.name == service);
    let mut versions = services.flat_map(|it| &it.versions).filter(|it| it.name == version);
    versions.any(|version| {
        version.endpoints.iter().any(|endpoint| {
            // What its answers say of it is the evidence's business: a breaker that is open may wait for somebody to ask.
            let is_well = matches!(endpoint.state, State::Healthy | State::Degraded);
            is_well && endpoint.duty == Duty::Active
        })
    })
}

/// Endpoints whose reasons are told when a version is down.
const MOST_REASONS: usize = 3;

/// Why all endpoints of a version can't serve, if checks have found so. One that is not checked yet is not down.
fn is_down(status: &Status, service: &str, version: &str) -> Option<String> {
    let services = status.services.iter().filter(|it| it.name == service);
    let version = services.flat_map(|it| &it.versions).find(|it| it.name == version)?;
    let endpoints = &version.endpoints;
    if endpoints.iter().any(|endpoint| endpoint.state != State::Unhealthy) {
        return None;
    }
    let mut reasons: Vec<String> = endpoints
        .iter()
        .take(MOST_REASONS)
        .map(|endpoint| format!("{} at {}", endpoint.reason, endpoint.url))
        .collect();
    if endpoints.len() > MOST_REASONS {
        reasons.push(format!("and {} more", endpoints.len() - MOST_REASONS));
    }
    Some(if reasons.is_empty() { "it has none".to_owned() } else { reasons.join(", ") })
}
