//! [`Prometheus`]: whom to ask for metrics that Backstop does not count itself.

use std::fmt;
use std::time::Duration;

use backstop_core::table::Target;

use crate::types;

/// Whom to ask, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Prometheus {
    /// Host and port, and the path before `/api/v1`.
    pub target: Target,
    pub token: Option<String>,
    pub headers: Vec<(String, String)>,
    /// Pause between two rounds of questions.
    pub interval: Duration,
    /// For one answer.
    pub timeout: Duration,
}

pub(crate) fn prometheus(prometheus: &types::Prometheus) -> Prometheus {
    let types::Prometheus { url, token, headers, interval, timeout } = prometheus;
    let mut target = url.0.clone();
    // Of `/api/v1`, which its users know by heart.
    if let Some(base) = target.base_path.strip_suffix("/api") {
        target.base_path = base.to_owned();
    }
    Prometheus {
        target,
        token: token.as_ref().map(|token| token.0.clone()),
        headers: headers.iter().map(|(name, value)| (name.0.clone(), value.0.clone())).collect(),
        interval: interval.0,
        timeout: timeout.0,
    }
}

impl fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prometheus at {}", self.target.url())
    }
}
