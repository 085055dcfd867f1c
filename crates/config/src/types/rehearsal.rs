//! When nothing is to change, and when going back is rehearsed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::order::ordered;
use crate::time::{DateTime, TimeZoneName};
use crate::units::{Percent, Span};

/// A time in which no step begins and no version is promoted. Going back is always possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "release-freeze", transform = ordered::<Self>)]
pub(crate) struct ReleaseFreeze {
    /// When it begins: a day, such as `2026-12-20`, or a minute of it, such as `2026-12-20T18:00`.
    pub(crate) from: DateTime,
    /// When it ends. A day belongs to it as a whole.
    pub(crate) to: DateTime,
    /// IANA name of the time zone.
    #[serde(default = "TimeZoneName::utc")]
    pub(crate) tz: TimeZoneName,
    /// Why; shown to those who have to wait.
    #[serde(default)]
    #[schemars(extend("x-default" = "none"))]
    pub(crate) reason: Option<String>,
}

/// How rollbacks are rehearsed: see `backstop drill`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "drill", transform = ordered::<Self>)]
pub(crate) struct Drill {
    /// How long after the last one the next one begins by itself: inside the release window, with no release under way, no
    /// freeze, and the stable version well. The first one comes as long after this was configured.
    #[schemars(extend("x-min" = "1m", "x-max" = "365d", "x-default" = "never"))]
    pub(crate) every: Option<Span>,
    /// Share that the stable version's twin, or the version that is named, gets for a moment; at least `0.001%`.
    pub(crate) weight: Percent,
    /// How long it may take from the decision to go back until nothing more is assigned to the version that is left.
    #[schemars(extend("x-min" = "1ms", "x-max" = "24h"))]
    pub(crate) target: Span,
}

impl Default for Drill {
    fn default() -> Self {
        Self { every: None, weight: Percent::new(5.0), target: Span::secs(5) }
    }
}
