//! How versions are released.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rehearsal::{Drill, ReleaseFreeze};
use super::{Guardrail, Metric, Trigger};
use crate::order::ordered;
use crate::time::{Clock, TimeZoneName};
use crate::units::{Percent, Span};

/// How a new version gets the traffic of the stable one, and what sends it back. In force for the releases that begin
/// after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "release", transform = ordered::<Self>)]
pub(crate) struct Release {
    /// Step by step, or all at once after the new version has shown that it is ready.
    pub(crate) mode: ReleaseMode,
    /// Shares of the new version, rising. A `blue_green` release has one step of its own.
    #[schemars(length(min = 1, max = 20))]
    pub(crate) steps: Vec<ReleaseStep>,
    /// Times to the first token and the like count only after so much of a step: a cold engine is slow.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) warmup: Span,
    /// How long the new version has all traffic and can be left at once, before it is the stable one.
    #[schemars(extend("x-min" = "0s", "x-max" = "30d"))]
    pub(crate) bake: Span,
    /// A release that has not ended by then ends as `on_expiry` says.
    #[schemars(extend("x-min" = "1s", "x-max" = "365d"))]
    pub(crate) max_age: Span,
    /// What happens to a release that is too old.
    pub(crate) on_expiry: OnExpiry,
    /// When steps may begin. What has begun goes on, and going back is always possible.
    #[schemars(extend("x-default" = "always"))]
    pub(crate) window: Option<ReleaseWindow>,
    /// When nothing is to change, such as at the end of the year. In force as soon as the file is, for releases under way too;
    /// `backstop release freeze` does the same at once.
    #[schemars(length(max = 100))]
    pub(crate) freeze: Vec<ReleaseFreeze>,
    /// How often evidence may send back a version that is as good as the stable one, at most: 0.01 is one in a
    /// hundred releases, however often one looks.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = 0.5))]
    pub(crate) alpha: f64,
    /// What the new version must not be worse in than the stable one.
    #[schemars(length(min = 1))]
    pub(crate) guardrails: Vec<Guardrail>,
    /// Limits that it must not pass, whatever the stable one does. If the stable version passes one too, the release
    /// waits: nobody is to blame.
    pub(crate) triggers: Vec<Trigger>,
    /// How it goes back.
    pub(crate) rollback: Rollback,
    /// How long the stable version has to show after a rollback that it is as well as before.
    #[schemars(extend("x-min" = "0s", "x-max" = "24h"))]
    pub(crate) verify: Span,
    /// How going back is rehearsed.
    pub(crate) drill: Drill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "release-mode")]
pub(crate) enum ReleaseMode {
    #[default]
    Canary,
    BlueGreen,
}

/// A share of the traffic, and what it takes to go on from there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "release-step", transform = ordered::<Self>)]
pub(crate) struct ReleaseStep {
    /// Share of the units (see `sticky`) that the new version gets; at least `0.001%`.
    pub(crate) weight: Percent,
    /// How long at least. Time in which something holds the release up does not count.
    #[serde(default = "no_time")]
    #[schemars(extend("x-min" = "0s", "x-max" = "30d"))]
    pub(crate) hold: Span,
    /// How many requests the new version must have had in this step.
    #[serde(default = "enough")]
    #[schemars(range(max = 1_000_000_000))]
    pub(crate) min_requests: u64,
    /// Waits for `backstop release approve` before it begins.
    #[serde(default)]
    pub(crate) approval: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "on-expiry")]
pub(crate) enum OnExpiry {
    /// It goes back.
    #[default]
    Rollback,
    /// It stays as it is until somebody decides.
    Ask,
}

/// Hours of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "release-window", transform = ordered::<Self>)]
pub(crate) struct ReleaseWindow {
    /// Days of the week.
    #[serde(default = "every_day")]
    #[schemars(length(min = 1))]
    pub(crate) days: Vec<Day>,
    /// When it opens.
    #[serde(default = "Clock::midnight")]
    pub(crate) from: Clock,
    /// When it closes, later than `from`; `24:00` is the end of the day.
    #[serde(default = "Clock::end_of_day")]
    pub(crate) to: Clock,
    /// IANA name of the time zone.
    #[serde(default = "TimeZoneName::utc")]
    pub(crate) tz: TimeZoneName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "day")]
pub(crate) enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// How a version goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "rollback", transform = ordered::<Self>)]
pub(crate) struct Rollback {
    /// For a critical trigger.
    pub(crate) critical: Way,
    /// For evidence that it is worse.
    pub(crate) regressed: Way,
    /// How, if not at once.
    pub(crate) gradual: Gradual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "rollback-way")]
pub(crate) enum Way {
    /// At once.
    #[default]
    Instant,
    /// By the shares of `gradual`; at once if it gets worse meanwhile.
    Gradual,
}

/// Steps down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "gradual", transform = ordered::<Self>)]
pub(crate) struct Gradual {
    /// Shares of the new version, falling, and `0%` last. Those that are not below what it has are left out.
    #[schemars(length(min = 1, max = 20))]
    pub(crate) weights: Vec<Percent>,
    /// How long each lasts.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) every: Span,
}

impl Default for Release {
    fn default() -> Self {
        Self {
            mode: ReleaseMode::Canary,
            steps: [1.0, 10.0, 50.0, 100.0].map(ReleaseStep::of).to_vec(),
            warmup: Span::secs(60),
            bake: Span::secs(300),
            max_age: Span::secs(7 * 86_400),
            on_expiry: OnExpiry::Rollback,
            window: None,
            freeze: Vec::new(),
            alpha: 0.01,
            guardrails: vec![
                Guardrail::of(Metric::ErrorRate, 1.1, 5.0),
                Guardrail::of(Metric::Ttft, 1.0, 1.0),
                Guardrail::of(Metric::Tpot, 1.0, 1.0),
                Guardrail::of(Metric::Latency, 1.0, 1.0),
                Guardrail::of(Metric::EmptyRate, 1.1, 1.0),
                Guardrail::of(Metric::LengthRate, 1.1, 1.0),
            ],
            triggers: Vec::new(),
            rollback: Rollback::default(),
            verify: Span::secs(300),
            drill: Drill::default(),
        }
    }
}

impl ReleaseStep {
    fn of(percent: f64) -> Self {
        let hold = if percent < 100.0 { Span::secs(600) } else { no_time() };
        Self { weight: Percent::new(percent), hold, min_requests: enough(), approval: false }
    }
}

impl Default for Rollback {
    fn default() -> Self {
        Self { critical: Way::Instant, regressed: Way::Instant, gradual: Gradual::default() }
    }
}

impl Default for Gradual {
    fn default() -> Self {
        Self { weights: [50.0, 20.0, 5.0, 0.0].map(Percent::new).to_vec(), every: Span::secs(60) }
    }
}

fn no_time() -> Span {
    Span::secs(0)
}

fn enough() -> u64 {
    100
}

fn every_day() -> Vec<Day> {
    vec![Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun]
}
